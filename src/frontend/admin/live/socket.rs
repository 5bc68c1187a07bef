//! `/stats/live`: a WebSocket on which the page first gets the last minutes and then each second's
//! figures.
//!
//! Only pages from here may read it: a browser says which page asks (Origin), and it must be one
//! that the same host and port have served. A viewer has nothing to say: one that sends messages,
//! takes nothing, or answers no ping is cut off, so a viewer costs a seat and little memory.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::ExtensionRejection;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Bytes, Message};

use super::board::{Board, NoSeat};
use super::tables;
use crate::frontend::admin::problem::Problem;
use crate::frontend::admin::{Admin, Process, access};

/// How long to bear with a viewer.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long it may take nothing of what is sent to it. What it has not taken until then has
    /// filled the kernel's buffers.
    write: Duration,
    /// How long it may be silent. It is pinged far more often, and browsers answer by themselves.
    silence: Duration,
}

const PATIENCE: Patience =
    Patience { write: Duration::from_secs(10), silence: Duration::from_secs(60) };

/// Samples between two pings, and between two lists of the largest torrents.
const PING_EVERY: u64 = 10;

/// The longest message a viewer may send. It has no reason to send any.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Makes the message with the largest torrents, for those who may see them.
type Top = Box<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// Opens the socket, or says why not.
pub(in crate::frontend::admin) async fn socket<P: Process>(
    State(admin): State<Admin<P>>,
    from: Result<ConnectInfo<SocketAddr>, ExtensionRejection>,
    mut request: Request,
) -> Result<Response, Problem> {
    let key = accept_key(request.headers()).filter(|_| request.method() == Method::GET);
    let key = key.ok_or_else(Problem::no_socket)?;
    if !is_from_here(request.headers(), request.uri()) {
        return Err(Problem::foreign_page());
    }
    let top = access::admits(&admin, from.ok(), &request).then(|| top_of(&admin));
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(Problem::no_socket)?;
    let board = admin.process.board();
    let seat = board.seat().map_err(|reason| match reason {
        NoSeat::Full => Problem::too_many_viewers(),
        NoSeat::Over => Problem::stopping(),
    })?;
    tokio::spawn(async move {
        // Who goes away before the socket is open is no concern of ours.
        if let Ok(upgraded) = upgrade.await {
            let viewer = Viewer { board, top, patience: PATIENCE, _seat: seat };
            viewer.serve(TokioIo::new(upgraded)).await;
        }
    });
    let head: [(HeaderName, HeaderValue); 3] = [
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::SEC_WEBSOCKET_ACCEPT, key),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, head).into_response())
}

/// What the opening handshake has to be answered with, if it is one (RFC 6455, 4.2.1).
fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name, wanted: &str| {
        let all = headers.get_all(name).iter().filter_map(|it| it.to_str().ok());
        all.flat_map(|it| it.split(',')).any(|it| it.trim().eq_ignore_ascii_case(wanted))
    };
    let is_wanted = has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|it| is_wanted && it.len() == 24)?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()
}

/// Whether the request is of no page, or of one that came from the host and port it goes to.
fn is_from_here(headers: &HeaderMap, target: &Uri) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|it| it.parse::<Uri>().ok());
    let origin = origin.filter(|it| it.scheme().is_some());
    let origin = origin.and_then(|it| it.into_parts().authority);
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    let host = host.and_then(|it| Authority::try_from(it).ok());
    let host = host.or_else(|| target.authority().cloned());
    origin.is_some() && origin == host
}

/// What makes the message with the largest torrents.
fn top_of<P: Process>(admin: &Admin<P>) -> Top {
    let admin = admin.clone();
    Box::new(move || {
        let admin = admin.clone();
        Box::pin(async move {
            let rows = tables::top(&admin.top.latest(&admin).await);
            json!({ "type": "top", "rows": rows }).to_string()
        })
    })
}

/// One who looks.
struct Viewer {
    board: Arc<Board>,
    /// `None` for those who may not see torrents.
    top: Option<Top>,
    patience: Patience,
    _seat: OwnedSemaphorePermit,
}

impl Viewer {
    /// Sends until there is no more, or nobody takes it.
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let config = WebSocketConfig::default()
            .read_buffer_size(4096)
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        let (mut out, mut heard) = socket.split();
        let status = tokio::select! {
            status = self.send(&mut out) => status,
            status = listen(&mut heard, self.patience.silence) => status,
        };
        let Some(code) = status else { return };
        let close = Message::Close(Some(CloseFrame { code, reason: "".into() }));
        let _ = self.say(&mut out, close).await;
    }

    /// Sends what there is. Gives the status to close with, if there is anybody to be told.
    async fn send(&self, out: &mut (impl Sink<Message> + Unpin)) -> Option<CloseCode> {
        let mut beats = self.board.beats();
        let (mut seen, history) = self.board.after(None);
        self.say(out, Message::Text(history)).await?;
        let mut sent = 0_u64;
        loop {
            let beat = *beats.wait_for(|it| it.is_over || it.samples > seen).await.ok()?;
            if beat.is_over {
                return Some(CloseCode::Away);
            }
            let (samples, message) = self.board.after(Some(seen));
            seen = samples;
            self.say(out, Message::Text(message)).await?;
            if sent.is_multiple_of(PING_EVERY) {
                self.say(out, Message::Ping(Bytes::new())).await?;
                if let Some(top) = &self.top {
                    self.say(out, Message::text(top().await)).await?;
                }
            }
            sent += 1;
        }
    }

    /// Sends; `None` if nobody takes it.
    async fn say(&self, out: &mut (impl Sink<Message> + Unpin), message: Message) -> Option<()> {
        timeout(self.patience.write, out.send(message)).await.ok()?.ok()
    }
}

/// Hears pongs until there is something else, or nothing for too long. Gives the status to close
/// with, if there is anybody to be told.
async fn listen(
    heard: &mut (impl Stream<Item = tungstenite::Result<Message>> + Unpin),
    silence: Duration,
) -> Option<CloseCode> {
    loop {
        match timeout(silence, heard.next()).await {
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::Close(_)))) => return Some(CloseCode::Normal),
            Ok(Some(Ok(_))) => return Some(CloseCode::Policy),
            Ok(Some(Err(_)) | None) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::super::sample::Sample;
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    /// Someone who looks, through a pipe of so many bytes.
    fn looking(
        board: &Arc<Board>,
        patience: Patience,
        bytes: usize,
    ) -> (DuplexStream, JoinHandle<()>) {
        let (far, near) = duplex(bytes);
        let seat = board.seat().unwrap();
        let viewer = Viewer { board: board.clone(), top: None, patience, _seat: seat };
        (far, tokio::spawn(viewer.serve(near)))
    }

    #[tokio::test]
    async fn who_takes_nothing_is_cut_off() {
        let board = Arc::new(Board::default());
        let patience = Patience { write: SHORT, silence: LONG };
        let (far, serving) = looking(&board, patience, 64);
        timeout(LONG, serving).await.unwrap().unwrap();
        assert_eq!(board.viewers(), 0, "the seat is free");
        drop(far);
    }

    #[tokio::test]
    async fn who_answers_no_ping_is_cut_off() {
        let board = Arc::new(Board::default());
        let patience = Patience { write: LONG, silence: SHORT };
        let (mut far, serving) = looking(&board, patience, 1 << 20);
        board.show(Sample::default());
        let mut received = Vec::new();
        timeout(LONG, far.read_to_end(&mut received)).await.unwrap().unwrap();
        assert!(!received.is_empty());
        timeout(LONG, serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn all_are_told_when_there_is_no_more() {
        let board = Arc::new(Board::default());
        let (far, serving) = looking(&board, PATIENCE, 1 << 20);
        board.close();
        let mut far = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let mut last = None;
        while let Some(Ok(message)) = timeout(LONG, far.next()).await.unwrap() {
            last = Some(message);
        }
        let Some(Message::Close(Some(close))) = last else { panic!("{last:?}") };
        assert_eq!(close.code, CloseCode::Away);
        timeout(LONG, serving).await.unwrap().unwrap();
        board.emptied().await;
    }

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, it)| (name.clone(), HeaderValue::from_static(it))).collect()
    }

    #[test]
    fn only_a_page_of_the_same_host_and_port_may_look() {
        let target = Uri::from_static("/stats/live");
        let from = |origin, host| {
            is_from_here(&headers(&[(header::ORIGIN, origin), (header::HOST, host)]), &target)
        };
        assert!(from("http://127.0.0.1:6970", "127.0.0.1:6970"));
        assert!(from("https://Stats.example", "stats.example"));
        assert!(from("http://[::1]:6970", "[::1]:6970"));
        for (origin, host) in [
            ("http://evil.example", "127.0.0.1:6970"),
            ("http://127.0.0.1:8080", "127.0.0.1:6970"),
            ("http://127.0.0.1", "127.0.0.1:6970"),
            ("null", "null"),
            ("", ""),
            ("http://", "127.0.0.1:6970"),
            ("http://127.0.0.1:6970.evil.example", "127.0.0.1:6970"),
            ("http://127.0.0.1:6970@evil.example", "127.0.0.1:6970"),
        ] {
            assert!(!from(origin, host), "{origin} {host}");
        }
        assert!(is_from_here(&headers(&[(header::HOST, "a")]), &target), "of no page");
        let absolute = Uri::from_static("http://a.example/stats/live");
        assert!(is_from_here(&headers(&[(header::ORIGIN, "http://a.example")]), &absolute));
        assert!(!is_from_here(&headers(&[(header::ORIGIN, "http://a.example")]), &target));
    }

    #[test]
    fn a_handshake_is_answered_as_rfc_6455_says() {
        let whole = [
            (header::UPGRADE, "WebSocket"),
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        assert_eq!(accept_key(&headers(&whole)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for missing in 0..whole.len() {
            let mut fields = whole.to_vec();
            fields.remove(missing);
            assert_eq!(accept_key(&headers(&fields)), None, "{missing}");
        }
    }
}
