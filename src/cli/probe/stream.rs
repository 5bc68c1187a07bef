//! A TCP connection, with TLS if the URL needs it. Every operation has a deadline: a tracker that
//! sends single bytes cannot delay a probe beyond it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::client::tls;
use crate::sys::clock::Clock;
use crate::time::Now;

use super::hints;

/// Where to connect to, and how.
#[derive(Clone)]
pub(super) struct ConnectRoute {
    pub(super) address: SocketAddr,
    /// The name that the certificate must hold.
    pub(super) host: String,
    /// Set if TLS is used.
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) clock: Clock,
}

/// An open connection.
pub(super) enum ProbeStream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

/// A socket with a deadline.
pub(super) struct Timed {
    socket: TcpStream,
    clock: Clock,
    deadline: Now,
}

/// Why a connection was not opened.
pub(super) enum OpenError {
    /// The deadline passed.
    TimedOut,
    /// The cause, with the remedy.
    Failed(String),
}

impl ConnectRoute {
    /// Connects, TLS handshake included, within `wait`.
    pub(super) fn open(&self, wait: Duration) -> Result<ProbeStream, OpenError> {
        let deadline = later(&self.clock, wait);
        let socket = TcpStream::connect_timeout(&self.address, wait).map_err(|it| unopened(&it))?;
        // Requests are written as a whole: there is nothing to wait for.
        socket.set_nodelay(true).map_err(|it| unopened(&it))?;
        let mut timed = Timed { socket, clock: self.clock, deadline };
        let Some(config) = &self.tls else { return Ok(ProbeStream::Plain(timed)) };
        let failed = |problem: String| OpenError::Failed(problem);
        let name = tls::server_name(&self.host).map_err(|error| failed(error.to_string()))?;
        let mut session = ClientConnection::new(Arc::clone(config), name)
            .map_err(|it| failed(tls::explain(&it, &self.host)))?;
        while session.is_handshaking() {
            session.complete_io(&mut timed).map_err(|error| self.handshake_failed(&error))?;
        }
        Ok(ProbeStream::Tls(Box::new(StreamOwned::new(session, timed))))
    }

    fn handshake_failed(&self, error: &io::Error) -> OpenError {
        let cause = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
        match cause {
            Some(cause) => OpenError::Failed(tls::explain(cause, &self.host)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => OpenError::Failed(
                "closed during the TLS handshake: is it a TLS port? try http:// or ws://".into(),
            ),
            None => unopened(error),
        }
    }
}

fn unopened(error: &io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => OpenError::TimedOut,
        _ => OpenError::Failed(describe(error)),
    }
}

/// A connection's error as text, with a remedy.
pub(super) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => hints::closed("connection refused"),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the connection was reset: no tracker there, or it refuses this client".into()
        }
        _ if hints::is_unrouted(error) => hints::NO_ROUTE.into(),
        _ => error.to_string().escape_debug().to_string(),
    }
}

impl ProbeStream {
    /// Sets the deadline: all further operations together may take `wait`.
    pub(super) fn allow(&mut self, wait: Duration) {
        let timed = match self {
            Self::Plain(timed) => timed,
            Self::Tls(stream) => &mut stream.sock,
        };
        timed.deadline = later(&timed.clock, wait);
    }
}

/// The moment `wait` from now.
fn later(clock: &Clock, wait: Duration) -> Now {
    let wait_ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    Now::from_ns(clock.now().ns().saturating_add(wait_ns))
}

impl Timed {
    /// The time until the deadline.
    fn left(&self) -> io::Result<Duration> {
        let left_ns = self.deadline.ns_since(self.clock.now());
        if left_ns == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Duration::from_nanos(left_ns))
    }

    /// A socket's timeout is reported as `WouldBlock`.
    fn in_time<T>(result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        Self::in_time(self.socket.read(bytes))
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        Self::in_time(self.socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for ProbeStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.read(bytes),
            // Many servers close without TLS's close_notify. The HTTP framing shows a truncation.
            Self::Tls(owned) => match owned.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                other => other,
            },
        }
    }
}

impl Write for ProbeStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.write(bytes),
            Self::Tls(owned) => owned.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(timed) => timed.flush(),
            Self::Tls(owned) => owned.flush(),
        }
    }
}
