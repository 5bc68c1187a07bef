//! `/stats/live`: a WebSocket that sends a page the last five minutes and the last 24 hours, then
//! the figures of each second and of each minute.
//!
//! A browser sends the origin of the page (Origin), which must match the host and port of the
//! request (Host). So no page of another name can read the figures. A page whose own name was
//! pointed here (DNS rebinding) can, as it could from `/stats` and `/metrics`: a proxy may serve
//! all three under any name, so they are open to every client that reaches the listener. Such a
//! page gets no torrents: `access` checks that anew before each list, because the token may have
//! changed.
//!
//! A viewer has no reason to send messages. One that sends any, accepts no data, or does not
//! respond to pings is disconnected, so a viewer costs a seat and little memory.

use std::net::SocketAddr;
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

use super::board::{JoinError, StatsHub};
use super::tables;
use crate::admin::access::RequestSender;
use crate::admin::problem::ApiError;
use crate::admin::{Admin, Process};
use crate::time::Now;

/// The timeouts of a viewer.
#[derive(Clone, Copy, Debug)]
struct ViewerTimeouts {
    /// How long it may accept no data. By then the kernel's buffers are full.
    write: Duration,
    /// How long it may send nothing. It is pinged far more often, and browsers respond by
    /// themselves.
    silence: Duration,
}

const VIEWER_TIMEOUTS: ViewerTimeouts =
    ViewerTimeouts { write: Duration::from_secs(10), silence: Duration::from_secs(60) };

/// Samples between two pings.
const PING_EVERY: u64 = 10;

/// The longest message of a viewer, in bytes. It has no reason to send any.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Returns the message with the largest torrents and the time of the list, if the viewer may see it
/// now and has not seen it yet. Does not wait.
type TopMessage = Box<dyn Fn(Option<Now>) -> Option<(Now, Message)> + Send + Sync>;

/// Opens the WebSocket, or responds with the error.
pub(in crate::admin) async fn socket<P: Process>(
    State(admin): State<Admin<P>>,
    from: Result<ConnectInfo<SocketAddr>, ExtensionRejection>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let key = accept_key(request.headers()).filter(|_| request.method() == Method::GET);
    let key = key.ok_or_else(ApiError::no_socket)?;
    if !is_from_here(request.headers(), request.uri()) {
        return Err(ApiError::foreign_page());
    }
    let top = top_of(&admin, RequestSender::of(from.ok(), &request));
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(ApiError::no_socket)?;
    let board = admin.process.board();
    let seat = board.seat().map_err(|reason| match reason {
        JoinError::Full => ApiError::too_many_viewers(),
        JoinError::Over => ApiError::stopping(),
    })?;
    tokio::spawn(async move {
        // The client may disconnect before the upgrade is complete.
        if let Ok(upgraded) = upgrade.await {
            let viewer = Viewer { board, top, timeouts: VIEWER_TIMEOUTS, _seat: seat };
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

/// The value of Sec-WebSocket-Accept, if this is an opening handshake (RFC 6455, 4.2.1).
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

/// Whether the request has no Origin, or one with the host and port of the request itself.
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

/// Creates the function that returns the message with the largest torrents.
fn top_of<P: Process>(admin: &Admin<P>, asker: RequestSender) -> TopMessage {
    let admin = admin.clone();
    Box::new(move |seen| {
        let listed = asker.is_served(&admin).then(|| admin.top.at_hand(&admin)).flatten();
        let (since, listed) = listed.filter(|it| Some(it.0) != seen)?;
        let rows = tables::top(&listed);
        Some((since, Message::text(json!({ "type": "top", "rows": rows }).to_string())))
    })
}

/// One open statistics page.
struct Viewer {
    board: Arc<StatsHub>,
    top: TopMessage,
    timeouts: ViewerTimeouts,
    _seat: OwnedSemaphorePermit,
}

impl Viewer {
    /// Sends until the tracker stops or the viewer is gone.
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
            status = listen(&mut heard, self.timeouts.silence) => status,
        };
        let Some(code) = status else { return };
        let close = Message::Close(Some(CloseFrame { code, reason: "".into() }));
        let _ = self.say(&mut out, close).await;
    }

    /// Sends all messages. Returns the status to close with; `None` if the viewer is gone.
    async fn send(&self, out: &mut (impl Sink<Message> + Unpin)) -> Option<CloseCode> {
        let mut beats = self.board.beats();
        let (mut seen, history) = self.board.after(None);
        self.say(out, Message::Text(history)).await?;
        let (mut sent, mut top_since, mut minutes) = (0_u64, None, None);
        loop {
            if let Some((seen, message)) = self.board.minutes_after(minutes) {
                minutes = Some(seen);
                self.say(out, Message::Text(message)).await?;
            }
            let beat = *beats.wait_for(|it| it.is_over || it.samples > seen).await.ok()?;
            if beat.is_over {
                return Some(CloseCode::Away);
            }
            let (samples, message) = self.board.after(Some(seen));
            seen = samples;
            self.say(out, Message::Text(message)).await?;
            if sent.is_multiple_of(PING_EVERY) {
                self.say(out, Message::Ping(Bytes::new())).await?;
            }
            if let Some((since, top)) = (self.top)(top_since) {
                top_since = Some(since);
                self.say(out, top).await?;
            }
            sent += 1;
        }
    }

    /// Sends a message; `None` if the viewer does not accept it in time.
    async fn say(&self, out: &mut (impl Sink<Message> + Unpin), message: Message) -> Option<()> {
        timeout(self.timeouts.write, out.send(message)).await.ok()?.ok()
    }
}

/// Reads pings and pongs until another message arrives or the silence is too long. Returns the
/// status to close with; `None` if the viewer is gone.
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
    use std::sync::Mutex;

    use serde_json::Value;
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::super::sample::Sample;
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    /// A viewer at the end of a pipe that buffers this many bytes.
    fn looking(
        board: &Arc<StatsHub>,
        top: TopMessage,
        timeouts: ViewerTimeouts,
        bytes: usize,
    ) -> (DuplexStream, JoinHandle<()>) {
        let (far, near) = duplex(bytes);
        let seat = board.seat().unwrap();
        let viewer = Viewer { board: board.clone(), top, timeouts, _seat: seat };
        (far, tokio::spawn(viewer.serve(near)))
    }

    /// Never returns a list of torrents.
    fn no_top() -> TopMessage {
        Box::new(|_| None)
    }

    #[tokio::test]
    async fn each_list_of_torrents_is_sent_once() {
        let board = Arc::new(StatsHub::default());
        let seen_when_asked = Arc::new(Mutex::new(Vec::new()));
        let noted = seen_when_asked.clone();
        let top: TopMessage = Box::new(move |seen| {
            let mut noted = noted.lock().unwrap();
            let since = Now::from_s([5, 5, 6, 6][noted.len()]);
            noted.push(seen);
            (Some(since) != seen).then(|| (since, Message::text(r#"{"type":"top"}"#)))
        });
        let (far, serving) = looking(&board, top, VIEWER_TIMEOUTS, 1 << 20);
        let mut far = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let mut kinds = Vec::new();
        let mut read_to = async |awaited: Option<&str>| loop {
            let message = timeout(LONG, far.next()).await.unwrap();
            let kind = match message.unwrap().unwrap() {
                Message::Text(text) => {
                    serde_json::from_str::<Value>(&text).unwrap()["type"].clone()
                }
                Message::Close(_) => break,
                _ => continue,
            };
            kinds.push(kind.as_str().unwrap().to_owned());
            if kinds.last().map(String::as_str) == awaited {
                break;
            }
        };
        read_to(Some("history")).await;
        for _ in 0..4 {
            board.show(Sample::default());
            read_to(Some("sample")).await;
        }
        board.close();
        read_to(None).await;
        assert_eq!(
            kinds,
            ["history", "minutes", "sample", "top", "sample", "sample", "top", "sample"]
        );
        let [five, six] = [5, 6].map(Now::from_s);
        assert_eq!(*seen_when_asked.lock().unwrap(), [None, Some(five), Some(five), Some(six)]);
        timeout(LONG, serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_takes_nothing_is_cut_off() {
        let board = Arc::new(StatsHub::default());
        let timeouts = ViewerTimeouts { write: SHORT, silence: LONG };
        let (far, serving) = looking(&board, no_top(), timeouts, 64);
        timeout(LONG, serving).await.unwrap().unwrap();
        assert_eq!(board.viewers(), 0, "the seat is free");
        drop(far);
    }

    #[tokio::test]
    async fn who_answers_no_ping_is_cut_off() {
        let board = Arc::new(StatsHub::default());
        let timeouts = ViewerTimeouts { write: LONG, silence: SHORT };
        let (mut far, serving) = looking(&board, no_top(), timeouts, 1 << 20);
        board.show(Sample::default());
        let mut received = Vec::new();
        timeout(LONG, far.read_to_end(&mut received)).await.unwrap().unwrap();
        assert!(!received.is_empty());
        timeout(LONG, serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn all_are_told_when_there_is_no_more() {
        let board = Arc::new(StatsHub::default());
        let (far, serving) = looking(&board, no_top(), VIEWER_TIMEOUTS, 1 << 20);
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
