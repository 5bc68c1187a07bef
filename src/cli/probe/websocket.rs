//! A WebTorrent client of one address: announce without offers, scrape and leave over one socket.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::error::ProtocolError;
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, Message, WebSocket};

use crate::client::url::Url;
use crate::types::{Refusal, ScrapeEntry};

use super::stream::{ConnectRoute, OpenError, ProbeStream, describe};
use super::{
    AnnounceReport, Conversation, ProbeIdentity, ProbeTimeouts, Scrape, StepFailure, hints,
    milliseconds, no_response,
};

/// The longest message that is accepted, in bytes.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Maximum number of messages that are read before the response, for instance other peers' offers.
const MESSAGES_MAX: usize = 1000;

/// A client of one address.
pub(super) struct WebSocketProbe {
    route: ConnectRoute,
    url: String,
    /// The path of the URL without its query.
    path: String,
    timeouts: ProbeTimeouts,
    identity: ProbeIdentity,
    socket: Option<WebSocket<ProbeStream>>,
}

/// Why there is no socket, or no response.
enum WebSocketProbeError {
    TimedOut,
    /// The tracker's reason, escaped.
    Refused(String),
    Failed(String),
}

impl WebSocketProbeError {
    /// The failure of a step.
    fn at(self, step: &'static str, timeouts: ProbeTimeouts) -> StepFailure {
        match self {
            Self::TimedOut => no_response(step, timeouts),
            Self::Refused(reason) => StepFailure::refused(step, reason),
            Self::Failed(problem) => StepFailure::new(step, problem),
        }
    }
}

impl WebSocketProbe {
    /// A client that has not connected yet.
    pub(super) fn new(
        url: &Url,
        route: ConnectRoute,
        timeouts: ProbeTimeouts,
        identity: ProbeIdentity,
    ) -> Self {
        // The stream itself may be TLS: the upgrade request is the same.
        let path = url.path_alone().to_owned();
        let url = format!("ws://{}{}", url.authority(), url.target());
        Self { route, url, path, timeouts, identity, socket: None }
    }

    fn open(&self, wait: Duration) -> Result<WebSocket<ProbeStream>, WebSocketProbeError> {
        let stream = self.route.open(wait).map_err(|error| match error {
            OpenError::TimedOut => WebSocketProbeError::TimedOut,
            OpenError::Failed(problem) => WebSocketProbeError::Failed(problem),
        })?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        match tungstenite::client::client_with_config(self.url.as_str(), stream, Some(config)) {
            Ok((socket, _)) => Ok(socket),
            Err(HandshakeError::Interrupted(_)) => Err(WebSocketProbeError::TimedOut),
            Err(HandshakeError::Failure(error)) => {
                Err(not_upgraded(&error, &self.path, self.route.tls.is_some()))
            }
        }
    }

    fn announce_event(
        &mut self,
        step: &'static str,
        event: &str,
    ) -> Result<AnnounceReport, StepFailure> {
        let message = json!({
            "action": "announce",
            "info_hash": latin1(&self.identity.info_hash.0),
            "peer_id": latin1(&self.identity.peer_id.0),
            "numwant": 0,
            "uploaded": 0,
            "downloaded": 0,
            "left": 1,
            "event": event,
            "offers": [],
        });
        let (response, duration_ms) = self.ask(step, &message, |it| is_announced(it, &message))?;
        let count = |key: &str| response[key].as_u64().and_then(|it| u32::try_from(it).ok());
        let malformed =
            |key| StepFailure::new(step, format!("malformed: no {key} in the response"));
        Ok(AnnounceReport {
            duration_ms,
            interval_s: count("interval").ok_or_else(|| malformed("interval"))?,
            seeders: count("complete").unwrap_or(0),
            leechers: count("incomplete").unwrap_or(0),
            peers: None,
        })
    }

    /// Sends a message until a response arrives or all tries are used. Returns the response and the
    /// duration in milliseconds.
    fn ask(
        &mut self,
        step: &'static str,
        message: &Value,
        matches: impl Fn(&Value) -> bool,
    ) -> Result<(Value, f64), StepFailure> {
        let clock = self.route.clock;
        let mut wait = self.timeouts.first_try;
        for _ in 0..self.timeouts.tries {
            if self.socket.is_none() {
                self.socket = match self.open(wait) {
                    Ok(socket) => Some(socket),
                    Err(WebSocketProbeError::TimedOut) => None,
                    Err(error) => return Err(error.at(step, self.timeouts)),
                };
            }
            if let Some(socket) = &mut self.socket {
                let sent = clock.now();
                socket.get_mut().allow(wait);
                match exchange(socket, message, &matches) {
                    Ok(response) => {
                        return Ok((response, milliseconds(clock.now().ns_since(sent))));
                    }
                    Err(WebSocketProbeError::TimedOut) => {}
                    Err(error) => {
                        self.socket = None;
                        return Err(error.at(step, self.timeouts));
                    }
                }
            }
            wait *= 2;
        }
        Err(no_response(step, self.timeouts))
    }
}

impl Conversation for WebSocketProbe {
    fn connect(&mut self) -> Result<f64, StepFailure> {
        let step = "connect";
        let (start, mut wait) = (self.route.clock.now(), self.timeouts.first_try);
        for _ in 0..self.timeouts.tries {
            match self.open(wait) {
                Ok(socket) => {
                    self.socket = Some(socket);
                    return Ok(milliseconds(self.route.clock.now().ns_since(start)));
                }
                Err(WebSocketProbeError::TimedOut) => wait *= 2,
                Err(error) => return Err(error.at(step, self.timeouts)),
            }
        }
        Err(no_response(step, self.timeouts))
    }

    fn announce(&mut self) -> Result<AnnounceReport, StepFailure> {
        self.announce_event("announce", "started")
    }

    fn scrape(&mut self) -> Result<Option<Scrape>, StepFailure> {
        let step = "scrape";
        let info_hash = latin1(&self.identity.info_hash.0);
        let message = json!({ "action": "scrape", "info_hash": info_hash });
        let (response, duration_ms) = self.ask(step, &message, |it| it["action"] == "scrape")?;
        let entry = &response["files"][&info_hash];
        let count = |key: &str| entry[key].as_u64().and_then(|it| u32::try_from(it).ok());
        let entry = count("complete").zip(count("incomplete")).map(|(seeders, leechers)| {
            let completed = count("downloaded").unwrap_or(0);
            ScrapeEntry { seeders, leechers, completed, downloaders: 0 }
        });
        let problem = || "malformed: the response lacks the requested torrent".to_owned();
        let entry = entry.ok_or_else(|| StepFailure::new(step, problem()))?;
        Ok(Some(Scrape::of(duration_ms, entry)))
    }

    fn leave(&mut self) -> Result<(), StepFailure> {
        let left = self.announce_event("leave", "stopped").map(|_| ());
        if let Some(mut socket) = self.socket.take() {
            // A tracker removes the peers of a closed socket, so a failed close is harmless.
            let _ = socket.close(None).and_then(|()| socket.flush());
        }
        left
    }

    fn hurry(&mut self) {
        self.timeouts.tries = 1;
    }
}

/// Whether a message is the response to an announce. Relayed offers and answers look similar.
fn is_announced(message: &Value, announce: &Value) -> bool {
    message["action"] == "announce"
        && message["info_hash"] == announce["info_hash"]
        && message.get("offer").is_none()
        && message.get("answer").is_none()
}

/// Sends one message and waits for its response.
fn exchange(
    socket: &mut WebSocket<ProbeStream>,
    message: &Value,
    matches: impl Fn(&Value) -> bool,
) -> Result<Value, WebSocketProbeError> {
    socket.send(Message::text(message.to_string())).map_err(|it| broken(&it))?;
    for _ in 0..MESSAGES_MAX {
        let message = socket.read().map_err(|it| broken(&it))?;
        if !message.is_text() && !message.is_binary() {
            continue;
        }
        let bytes = message.into_data();
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
            let shown = bytes[..bytes.len().min(60)].escape_ascii();
            let problem = format!("not a tracker: the message is not JSON, but \"{shown}\"");
            return Err(WebSocketProbeError::Failed(problem));
        };
        if let Some(reason) = value.get("failure reason") {
            let reason = reason.as_str().unwrap_or_default();
            let reason: String = reason.chars().take(512).collect();
            return Err(WebSocketProbeError::Refused(reason.escape_default().to_string()));
        }
        if matches(&value) {
            return Ok(value);
        }
    }
    Err(WebSocketProbeError::Failed(format!("no response among {MESSAGES_MAX} messages")))
}

/// Why an upgrade failed.
fn not_upgraded(error: &Error, path: &str, has_tls: bool) -> WebSocketProbeError {
    match error {
        Error::Http(response) => {
            let status = response.status().as_u16();
            if let (300..400, Some(place)) = (status, response.headers().get("location")) {
                return WebSocketProbeError::Failed(hints::redirect(status, place.as_bytes()));
            }
            // skep names the reason in the body; other bodies are pages for browsers.
            let body = response.body().as_deref().unwrap_or_default().trim_ascii();
            match Refusal::ALL.iter().find(|it| it.text().as_bytes() == body) {
                Some(refusal) => WebSocketProbeError::Refused(refusal.text().to_owned()),
                None => WebSocketProbeError::Failed(hints::status(status, path, true)),
            }
        }
        Error::Io(error) => about(error),
        Error::Protocol(ProtocolError::HandshakeIncomplete) => {
            WebSocketProbeError::Failed(hints::without_response(has_tls, path))
        }
        Error::Protocol(_) => WebSocketProbeError::Failed(
            "the response is not a WebSocket upgrade: not a WebTorrent tracker".into(),
        ),
        other => broken(other),
    }
}

/// Why a socket cannot be used any more.
fn broken(error: &Error) -> WebSocketProbeError {
    match error {
        Error::Io(error) => about(error),
        Error::ConnectionClosed | Error::AlreadyClosed => {
            WebSocketProbeError::Failed("the tracker closed the socket".into())
        }
        other => WebSocketProbeError::Failed(format!(
            "WebSocket: {}",
            other.to_string().escape_default()
        )),
    }
}

fn about(error: &io::Error) -> WebSocketProbeError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => WebSocketProbeError::TimedOut,
        _ => WebSocketProbeError::Failed(describe(error)),
    }
}

/// Bytes in WebTorrent's form: each byte becomes the code point of the same value.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|it| char::from(*it)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relayed_messages_are_no_answers() {
        let announce = json!({ "info_hash": "\u{ff}x" });
        let response = json!({ "action": "announce", "info_hash": "\u{ff}x", "interval": 1 });
        assert!(is_announced(&response, &announce));
        for other in [
            json!({ "action": "announce", "info_hash": "\u{ff}x", "offer": {} }),
            json!({ "action": "announce", "info_hash": "\u{ff}x", "answer": {} }),
            json!({ "action": "announce", "info_hash": "other", "interval": 1 }),
            json!({ "action": "scrape", "info_hash": "\u{ff}x" }),
            json!([]),
        ] {
            assert!(!is_announced(&other, &announce), "{other}");
        }
    }

    #[test]
    fn bytes_become_code_points() {
        assert_eq!(latin1(b"a\x80\xff"), "a\u{80}\u{ff}");
    }
}
