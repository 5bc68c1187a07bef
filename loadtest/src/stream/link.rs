//! One connection that never blocks: bytes in, bytes out, through TLS if the endpoint uses it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;
use skep::sys::socket::choose_port_at_connect;
use socket2::{Domain, Socket, Type};

use crate::endpoint::Endpoint;

/// An open connection, or one that is opening.
pub(crate) struct Link {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    connected: bool,
    /// Bytes received and not consumed yet.
    pub(crate) input: Vec<u8>,
    /// Bytes that wait for room in the kernel's buffer.
    output: Vec<u8>,
    /// Whether the other side has closed.
    pub(crate) closed: bool,
}

impl Link {
    /// Starts to connect from a local address.
    pub(crate) fn open(
        from: IpAddr,
        to: SocketAddr,
        endpoint: &Endpoint,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if from.is_ipv6() && !from.is_unspecified() && !from.is_loopback() {
            // Allows an address that belongs to this host only by a route.
            socket.set_freebind_v6(true)?;
        }
        // Otherwise a source has ports for only some 28 000 connections, those in TIME_WAIT
        // included.
        choose_port_at_connect(&socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(IN_PROGRESS) => return Err(error),
            _ => {}
        }
        let mut socket = TcpStream::from_std(socket.into());
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        let tls = endpoint.tls.as_ref().map(|(config, name)| {
            ClientConnection::new(Arc::clone(config), name.clone()).map(Box::new)
        });
        Ok(Self {
            socket,
            tls: tls.transpose().map_err(io::Error::other)?,
            connected: false,
            input: Vec::new(),
            output: Vec::new(),
            closed: false,
        })
    }

    /// Whether requests can be sent: connected, and the TLS handshake is done.
    pub(crate) fn is_ready(&self) -> bool {
        self.connected && self.tls.as_ref().is_none_or(|it| !it.is_handshaking())
    }

    /// The local address.
    pub(crate) fn ip(&self) -> io::Result<IpAddr> {
        Ok(self.socket.local_addr()?.ip())
    }

    /// Sends bytes as soon as possible.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes)?,
            None if self.connected && self.output.is_empty() => {
                let sent = would_block(self.socket.write(bytes))?.unwrap_or(0);
                self.output.extend_from_slice(&bytes[sent..]);
                return Ok(());
            }
            None => self.output.extend_from_slice(bytes),
        }
        self.flush()
    }

    /// Called when the kernel accepts bytes, or connecting has finished.
    pub(crate) fn writable(&mut self) -> io::Result<()> {
        if !self.connected {
            if let Some(error) = self.socket.take_error()? {
                return Err(error);
            }
            if self.socket.peer_addr().is_err() {
                return Ok(());
            }
            self.connected = true;
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.connected {
            return Ok(());
        }
        while let Some(tls) = self.tls.as_mut().filter(|it| it.wants_write()) {
            if would_block(tls.write_tls(&mut self.socket))?.is_none() {
                return Ok(());
            }
        }
        while !self.output.is_empty() {
            let Some(sent) = would_block(self.socket.write(&self.output))? else { return Ok(()) };
            self.output.drain(..sent);
        }
        Ok(())
    }

    /// Reads all bytes that have arrived, and the end if it `has_ended`. Returns how many bytes
    /// were added to the input.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], has_ended: bool) -> io::Result<usize> {
        let before = self.input.len();
        while let Some(bytes) = would_block(self.socket.read(buffer))? {
            self.closed |= bytes == 0;
            match &mut self.tls {
                None => self.input.extend_from_slice(&buffer[..bytes]),
                Some(tls) => decrypt(tls, &buffer[..bytes], &mut self.input)?,
            }
            // A read that does not fill the buffer has emptied the socket. More bytes cause a new
            // event.
            if bytes == 0 || (bytes < buffer.len() && !has_ended) {
                break;
            }
        }
        if self.tls.is_some() {
            self.flush()?;
        }
        Ok(self.input.len() - before)
    }
}

/// EINPROGRESS, for which the standard library has no stable name.
const IN_PROGRESS: i32 = 115;

/// `None` if the call would block.
fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(None),
        Err(error) => Err(error),
    }
}

fn decrypt(tls: &mut ClientConnection, mut bytes: &[u8], input: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let start = input.len();
        input.resize(start + state.plaintext_bytes_to_read(), 0);
        tls.reader().read_exact(&mut input[start..])?;
    }
    Ok(())
}
