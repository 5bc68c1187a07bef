//! Sends requests to a tracker's admin listener, with hyper: one connection per request, with
//! limits on time and size. Used by `skep doctor` and `skep health`, and by `admin`, which adds the
//! token and tries.
//!
//! `skep probe` has its own clients, because it times connect, TLS and response separately and
//! checks bytes that an HTTP library hides.

use std::cell::Cell;
use std::error::Error as _;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST};
use http::{Response, request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::client::http::HEAD_BYTES_MAX;
use crate::client::tls;

/// Limits of one request.
#[derive(Clone, Copy)]
pub(super) struct RequestLimits {
    /// Timeout of the connect, and again of the request with its response.
    pub(super) step: Duration,
    /// The longest body of a response, in bytes.
    pub(super) body_bytes: usize,
}

/// Why a request has no response.
#[derive(Debug)]
pub(super) enum AdminRequestError {
    /// The connect failed, the connection broke, or a step timed out.
    Connection(io::Error),
    /// The response is not HTTP, or longer than the limits.
    NotHttp,
}

impl From<io::Error> for AdminRequestError {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl From<hyper::Error> for AdminRequestError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() {
            return Self::NotHttp;
        }
        // What was read, if anything, is the begin of a response: a tracker that ends, or a proxy
        // in front of it, closes like this.
        if error.is_incomplete_message() {
            let problem = "the connection was closed before the response";
            return Self::Connection(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Self::Connection(io::Error::other(cause))
    }
}

/// The address at which this host reaches a listener.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let loopback =
        if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let ip = if listen.ip().is_unspecified() { loopback } else { listen.ip() };
    SocketAddr::new(ip, listen.port())
}

/// A server: where it is, and how to trust it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// HOST:PORT.
    pub(super) authority: String,
    /// TLS, with the name that the certificate must hold; `None`: plain HTTP.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// Why a request has no response, and whether it may have been carried out.
#[derive(Debug)]
pub(super) struct ExchangeError {
    /// Why.
    pub(super) error: AdminRequestError,
    /// Whether there was a connection, so that the request may have arrived.
    pub(super) is_sent: bool,
}

/// Sends a request to HOST:PORT and waits for the whole response. Blocks.
///
/// # Errors
/// [`AdminRequestError`] if there is no complete response.
pub(super) fn exchange(
    authority: &str,
    request: request::Builder,
    body: Vec<u8>,
    limits: RequestLimits,
) -> Result<Response<Bytes>, AdminRequestError> {
    let server = Server { authority: authority.to_owned(), tls: None };
    exchange_with(&server, request, body, limits).map_err(|it| it.error)
}

/// Sends a request to a server and waits for the whole response. Blocks.
///
/// # Errors
/// [`ExchangeError`] if there is no complete response.
pub(super) fn exchange_with(
    server: &Server,
    request: request::Builder,
    body: Vec<u8>,
    limits: RequestLimits,
) -> Result<Response<Bytes>, ExchangeError> {
    let is_sent = Cell::new(false);
    let exchanged = || -> Result<_, AdminRequestError> {
        let request = request.header(HOST, &server.authority).header(CONNECTION, "close");
        let request = request.body(Full::from(body)).map_err(io::Error::other)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(conversation(server, request, limits, &is_sent))
    };
    exchanged().map_err(|error| ExchangeError { error, is_sent: is_sent.get() })
}

/// Connects, sends a request and waits for the response. Sets `is_sent` once there is a connection.
async fn conversation(
    server: &Server,
    request: http::Request<Full<Bytes>>,
    limits: RequestLimits,
    is_sent: &Cell<bool>,
) -> Result<Response<Bytes>, AdminRequestError> {
    let timed_out = |text| io::Error::new(io::ErrorKind::TimedOut, text);
    let late = |_| timed_out(format!("timed out after {:?}", limits.step));
    let silent = |_| {
        let step = limits.step;
        timed_out(format!(
            "connected, but no response within {step:?}: it is stopped or overloaded"
        ))
    };
    let connecting = timeout(limits.step, TcpStream::connect(&server.authority));
    let stream = connecting.await.map_err(late)??;
    let Some((config, name)) = &server.tls else {
        is_sent.set(true);
        let responding = timeout(limits.step, converse(stream, request, limits.body_bytes));
        return responding.await.map_err(silent)?;
    };
    let connector = TlsConnector::from(config.clone());
    let shaking_hands = timeout(limits.step, connector.connect(name.clone(), stream));
    let stream = shaking_hands.await.map_err(late)?.map_err(|error| explained(error, name))?;
    is_sent.set(true);
    timeout(limits.step, converse(stream, request, limits.body_bytes)).await.map_err(silent)?
}

/// The error of a TLS handshake, with its remedy.
fn explained(error: io::Error, name: &ServerName<'_>) -> io::Error {
    let of_tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
    let text = of_tls.map(|it| tls::explain(it, &name.to_str()));
    text.map_or(error, io::Error::other)
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: http::Request<Full<Bytes>>,
    body_bytes_max: usize,
) -> Result<Response<Bytes>, AdminRequestError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let collected = Limited::new(body, body_bytes_max).collect().await;
    let body = collected.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => AdminRequestError::from(*error),
        Err(_too_long) => AdminRequestError::NotHttp,
    })?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    /// Sends a request to a server whose response is these bytes.
    fn ask(response: &'static [u8]) -> Result<Response<Bytes>, AdminRequestError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let responding = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let head = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<_> = head.take_while(|line| !line.is_empty()).collect();
            stream.write_all(response).unwrap();
            head
        });
        let limits = RequestLimits { step: Duration::from_secs(30), body_bytes: 5 };
        let result = exchange(&authority, http::Request::get("/x?y"), Vec::new(), limits);
        let head = responding.join().unwrap();
        assert_eq!(head[0], "GET /x?y HTTP/1.1");
        assert!(head.contains(&format!("host: {authority}")), "{head:?}");
        result
    }

    #[test]
    fn responses_are_read_however_they_end() {
        for response in [
            &b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello"[..],
            b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n\
              2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\n\r\nhello",
        ] {
            let response = ask(response).unwrap();
            assert_eq!((response.status().as_u16(), &response.body()[..]), (404, &b"hello"[..]));
        }
    }

    #[test]
    fn what_no_tracker_sends_is_not_a_response() {
        let long = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!";
        let endless = b"HTTP/1.1 200 OK\r\n\r\nhello, hello, hello";
        for response in [&b"hello"[..], b"SSH-2.0-OpenSSH_9.9\r\n", long, endless] {
            assert!(matches!(ask(response), Err(AdminRequestError::NotHttp)), "{response:?}");
        }
    }

    #[test]
    fn a_connection_that_is_closed_early_is_lost() {
        let cut = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell");
        assert!(matches!(cut, Err(AdminRequestError::Connection(_))), "{cut:?}");
        for begin in [&b""[..], b"HTTP/1.1 20"] {
            match ask(begin) {
                Err(AdminRequestError::Connection(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn nobody_and_silence_are_errors_of_the_connection() {
        let limits = RequestLimits { step: Duration::from_millis(50), body_bytes: 5 };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let error = || match exchange(&authority, http::Request::get("/"), Vec::new(), limits) {
            Err(AdminRequestError::Connection(error)) => error,
            other => panic!("{other:?}"),
        };
        let silent = error();
        assert_eq!(
            silent.kind(),
            io::ErrorKind::TimedOut,
            "it accepts, by its queue, and is silent"
        );
        assert!(silent.to_string().starts_with("connected, but no response within 50ms"));
        drop(listener);
        assert_eq!(error().kind(), io::ErrorKind::ConnectionRefused);
    }
}
