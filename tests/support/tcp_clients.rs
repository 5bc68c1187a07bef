//! Clients over TCP: plain HTTP, HTTPS, and WebSockets with and without TLS.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tungstenite::{Message, WebSocket};

use crate::support::DEADLINE;

/// A certificate for localhost and its key, in files.
pub(crate) struct Certificate {
    /// The certificate, which is its own authority.
    pub(crate) certificate: PathBuf,
    /// The key.
    pub(crate) key: PathBuf,
}

impl Certificate {
    /// Writes a new pair into a folder, over what is there.
    pub(crate) fn write(folder: &Path) -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certified_key = rcgen::generate_simple_self_signed(names).unwrap();
        let files =
            Self { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.key, certified_key.signing_key.serialize_pem()).unwrap();
        std::fs::write(&files.certificate, certified_key.cert.pem()).unwrap();
        files
    }

    /// A client that trusts it. Clones share what TLS sessions they may resume.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.certificate).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// Bytes both ways, with or without TLS.
pub(crate) trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// Connects to `address`, with TLS where a configuration is given.
pub(crate) fn connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Box<dyn Duplex> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    match tls {
        None => Box::new(stream),
        Some(config) => {
            let name = ServerName::try_from("localhost").unwrap();
            let connection = ClientConnection::new(config.clone(), name).unwrap();
            Box::new(StreamOwned::new(connection, stream))
        }
    }
}

/// A response over HTTP.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The head, lower case.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as the dictionary that an announce or scrape is answered with.
    pub(crate) fn bencoded(&self) -> BTreeMap<Vec<u8>, bt_bencode::Value> {
        assert_eq!(self.status, 200, "{self:?}");
        match bt_bencode::from_slice(&self.body).unwrap() {
            bt_bencode::Value::Dict(map) => {
                map.into_iter().map(|(key, value)| (key.into_vec(), value)).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Sends one request and reads its response, leaving the connection open.
pub(crate) fn exchange(stream: &mut dyn Duplex, request: &str) -> Response {
    stream.write_all(request.as_bytes()).unwrap();
    read_response(stream)
}

/// Reads one response with a Content-Length.
pub(crate) fn read_response(stream: &mut dyn Duplex) -> Response {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|it| it.strip_prefix("content-length: "));
    let mut body = vec![0; length.expect("a length").parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    Response { status, head, body }
}

/// One request on a connection of its own.
pub(crate) fn ask(address: SocketAddr, target: &str) -> Response {
    ask_with(address, None, target, "")
}

/// One request with further header lines, each ended by CRLF.
pub(crate) fn ask_with(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    target: &str,
    headers: &str,
) -> Response {
    let mut stream = connect(address, tls);
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    exchange(&mut *stream, &request)
}

/// The target of an announce by a peer of `port` whose id ends with it.
pub(crate) fn announce(torrent: u8, port: u16, rest: &str) -> String {
    let hash = format!("%{torrent:02x}").repeat(20);
    format!("/announce?info_hash={hash}&peer_id=-TR4060-k000000{port:05}&port={port}{rest}")
}

/// A WebTorrent client.
pub(crate) struct Browser {
    socket: WebSocket<Box<dyn Duplex>>,
}

impl Browser {
    /// Opens a WebSocket.
    pub(crate) fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Self {
        let stream = connect(address, tls);
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://localhost:{}/announce", address.port());
        let (socket, _) = tungstenite::client(url, stream).map_err(|it| it.to_string()).unwrap();
        Self { socket }
    }

    /// The same, from another address of this host.
    pub(crate) fn open_from(address: SocketAddr, source: [u8; 4]) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let stream: Box<dyn Duplex> = Box::new(stream);
        let url = format!("ws://localhost:{}/announce", address.port());
        let (socket, _) = tungstenite::client(url, stream).map_err(|it| it.to_string()).unwrap();
        Self { socket }
    }

    /// Sends a message.
    pub(crate) fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).unwrap();
    }

    /// The next message.
    pub(crate) fn receive(&mut self) -> Value {
        loop {
            match self.socket.read().unwrap() {
                Message::Text(text) => return serde_json::from_str(text.as_str()).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends a message and reads the next one.
    pub(crate) fn ask(&mut self, message: &Value) -> Value {
        self.send(message);
        self.receive()
    }

    /// Whether the far end has closed the socket, waiting for that.
    pub(crate) fn is_closed(&mut self) -> bool {
        loop {
            match self.socket.read() {
                Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed) => return true,
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) => {
                    return error.kind() != io::ErrorKind::WouldBlock;
                }
                Err(_) => return true,
            }
        }
    }
}

impl Browser {
    /// Waits until the far end closes the socket, and gives the status it named.
    pub(crate) fn closed_with(&mut self) -> Option<u16> {
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => return frame.map(|it| it.code.into()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}

/// An announce of a WebRTC peer; `offers` of them with made-up ids.
pub(crate) fn web_announce(torrent: u8, peer: u8, left: u64, offers: u8) -> Value {
    let text = |byte: u8| String::from_utf8(vec![byte; 20]).unwrap();
    let offer = |n: u8| {
        serde_json::json!({
            "offer": {"type": "offer", "sdp": format!("v=0 of {peer} number {n}")},
            "offer_id": text(n),
        })
    };
    serde_json::json!({
        "action": "announce", "info_hash": text(torrent), "peer_id": text(peer), "left": left,
        "numwant": offers, "offers": (1..=offers).map(offer).collect::<Vec<_>>(),
    })
}
