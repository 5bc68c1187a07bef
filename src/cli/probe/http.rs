//! An HTTP client of one address: announce, scrape and leave over one connection, as long as the
//! tracker keeps it open.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use crate::client::http::{
    BodyEnd, head, push_announce, push_scrape, push_separator, scrape_target, unchunk,
};
use crate::client::response::{self as tracker_response, ResponseError, TrackerResponse};
use crate::client::url::Url;
use crate::protocol::udp::client::Announcement;
use crate::types::{Event, ScrapeEntry};

use super::stream::{ConnectRoute, OpenError, ProbeStream, describe};
use super::{
    AnnounceReport, Conversation, ProbeIdentity, ProbeTimeouts, Scrape, StepFailure, hints,
    milliseconds, no_response,
};

/// The longest response, in bytes: the limit of the maintainers of public tracker lists.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// Bytes of an invalid response that an error shows.
const SHOWN_BYTES_MAX: usize = 60;

/// A client of one address.
pub(super) struct HttpProbe {
    route: ConnectRoute,
    authority: String,
    target: String,
    /// The target without its query.
    path: String,
    timeouts: ProbeTimeouts,
    identity: ProbeIdentity,
    stream: Option<ProbeStream>,
}

/// Why a request has no response.
enum HttpProbeError {
    TimedOut,
    /// A kept connection was closed before the request was read.
    Stale,
    /// A response with a status other than 200.
    Status(u16),
    Failed(String),
}

impl From<OpenError> for HttpProbeError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::TimedOut => Self::TimedOut,
            OpenError::Failed(problem) => Self::Failed(problem),
        }
    }
}

impl HttpProbe {
    /// A client that has not connected yet.
    pub(super) fn new(
        url: &Url,
        route: ConnectRoute,
        timeouts: ProbeTimeouts,
        identity: ProbeIdentity,
    ) -> Self {
        let (authority, target) = (url.authority(), url.target());
        let path = url.path_alone().to_owned();
        Self { route, authority, target, path, timeouts, identity, stream: None }
    }

    fn announce_event(
        &mut self,
        step: &'static str,
        event: Event,
    ) -> Result<AnnounceReport, StepFailure> {
        let mut target = self.target.clone().into_bytes();
        push_separator(&mut target);
        let ProbeIdentity { info_hash, peer_id, port } = self.identity;
        let announcement = Announcement {
            info_hash,
            peer_id,
            downloaded: 0,
            left: 1,
            uploaded: 0,
            event,
            numwant: -1,
            port,
            key: [0; 4],
        };
        push_announce(&mut target, &announcement);
        let (body, duration_ms) = self.ask(step, &target)?;
        let announce = granted(step, &body, &self.path, tracker_response::announced(&body))?;
        Ok(AnnounceReport {
            duration_ms,
            interval_s: announce.interval_s,
            seeders: announce.complete.unwrap_or(0),
            leechers: announce.incomplete.unwrap_or(0),
            peers: Some(announce.peer_count()),
        })
    }

    /// Sends a request until a response arrives or all tries are used. Returns the body and the
    /// duration in milliseconds.
    fn ask(&mut self, step: &'static str, target: &[u8]) -> Result<(Vec<u8>, f64), StepFailure> {
        let mut request = b"GET ".to_vec();
        request.extend(target);
        request.extend(b" HTTP/1.1\r\nHost: ");
        request.extend(self.authority.as_bytes());
        request.extend(concat!("\r\nUser-Agent: skep/", env!("CARGO_PKG_VERSION")).as_bytes());
        request.extend(b"\r\nAccept: */*\r\n\r\n");
        let mut wait = self.timeouts.first_try;
        let mut tries = 0;
        loop {
            let kept = self.stream.is_some();
            match self.exchange(&request, wait) {
                Ok(response) => return Ok(response),
                // An idle connection was closed: this does not count as a try.
                Err(HttpProbeError::Stale) if kept => {}
                Err(HttpProbeError::Stale) => {
                    let has_tls = self.route.tls.is_some();
                    return Err(StepFailure::new(
                        step,
                        hints::without_response(has_tls, &self.path),
                    ));
                }
                Err(HttpProbeError::Status(status)) => {
                    return Err(StepFailure::new(step, hints::status(status, &self.path, false)));
                }
                Err(HttpProbeError::Failed(problem)) => {
                    return Err(StepFailure::new(step, problem));
                }
                Err(HttpProbeError::TimedOut) => {
                    wait *= 2;
                    tries += 1;
                    if tries == self.timeouts.tries {
                        return Err(no_response(step, self.timeouts));
                    }
                }
            }
        }
    }

    /// Sends a request once, over the kept connection or a new one. Keeps the connection if the
    /// response allows it.
    fn exchange(
        &mut self,
        request: &[u8],
        wait: Duration,
    ) -> Result<(Vec<u8>, f64), HttpProbeError> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.route.open(wait)?,
        };
        let clock = self.route.clock;
        let sent = clock.now();
        stream.allow(wait);
        let written = stream.write_all(request).and_then(|()| stream.flush());
        written.map_err(|error| trouble(&error, true))?;
        let (body, keep_alive) = read_response(&mut stream)?;
        let duration_ms = milliseconds(clock.now().ns_since(sent));
        self.stream = keep_alive.then_some(stream);
        Ok((body, duration_ms))
    }
}

impl Conversation for HttpProbe {
    fn connect(&mut self) -> Result<f64, StepFailure> {
        let step = "connect";
        let (start, mut wait) = (self.route.clock.now(), self.timeouts.first_try);
        for _ in 0..self.timeouts.tries {
            match self.route.open(wait) {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return Ok(milliseconds(self.route.clock.now().ns_since(start)));
                }
                Err(OpenError::TimedOut) => wait *= 2,
                Err(OpenError::Failed(problem)) => return Err(StepFailure::new(step, problem)),
            }
        }
        Err(no_response(step, self.timeouts))
    }

    fn announce(&mut self) -> Result<AnnounceReport, StepFailure> {
        self.announce_event("announce", Event::Started)
    }

    fn scrape(&mut self) -> Result<Option<Scrape>, StepFailure> {
        let step = "scrape";
        let Some(target) = scrape_target(&self.target) else { return Ok(None) };
        let mut target = target.into_bytes();
        push_separator(&mut target);
        let info_hash = self.identity.info_hash;
        push_scrape(&mut target, std::iter::once(info_hash));
        let (body, duration_ms) = self.ask(step, &target)?;
        let mut found: Option<ScrapeEntry> = None;
        let scraped = tracker_response::scraped(&body, |torrent, entry| {
            found = found.or_else(|| (torrent == info_hash.0).then_some(entry));
        });
        let torrents = granted(step, &body, "", scraped)?;
        let problem = || format!("response has {torrents} torrents, without the requested one");
        let scrape_entry = found.ok_or_else(|| StepFailure::new(step, problem()))?;
        Ok(Some(Scrape::of(duration_ms, scrape_entry)))
    }

    fn leave(&mut self) -> Result<(), StepFailure> {
        self.announce_event("leave", Event::Stopped).map(|_| ())
    }

    fn hurry(&mut self) {
        self.timeouts.tries = 1;
    }
}

/// Reads one response to its end. Returns its body, and whether the connection can be reused.
fn read_response(stream: &mut ProbeStream) -> Result<(Vec<u8>, bool), HttpProbeError> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let received =
            stream.read(&mut chunk).map_err(|error| trouble(&error, bytes.is_empty()))?;
        bytes.extend_from_slice(&chunk[..received]);
        if bytes.len() > RESPONSE_BYTES_MAX {
            return Err(HttpProbeError::Failed(format!(
                "response longer than {RESPONSE_BYTES_MAX} bytes"
            )));
        }
        if let Some(response) = response_in(&bytes, received == 0)? {
            return Ok(response);
        }
        if received == 0 {
            return Err(match bytes.len() {
                0 => HttpProbeError::Stale,
                _ => HttpProbeError::Failed("malformed: closed in the middle of a response".into()),
            });
        }
    }
}

/// The body of a response, once it is complete.
fn response_in(bytes: &[u8], closed: bool) -> Result<Option<(Vec<u8>, bool)>, HttpProbeError> {
    let not_http = |_| match bytes.first() {
        Some(0x15) => HttpProbeError::Failed("the port uses TLS: use https://".into()),
        _ => HttpProbeError::Failed(format!(
            "not a tracker: not an HTTP response, but {}",
            escaped_start(bytes)
        )),
    };
    let Some(head) = head(bytes).map_err(not_http)? else { return Ok(None) };
    if head.status != 200 {
        return Err(HttpProbeError::Status(head.status));
    }
    if head.encoded {
        let problem = "malformed: a compressed response, which was not requested";
        return Err(HttpProbeError::Failed(problem.into()));
    }
    let rest = &bytes[head.bytes..];
    let body = match head.body {
        BodyEnd::Length(length) => rest.get(..length).map(<[u8]>::to_vec),
        BodyEnd::Chunked => unchunk(rest).map_err(not_http)?,
        BodyEnd::UntilClose => closed.then(|| rest.to_vec()),
    };
    Ok(body.map(|it| (it, head.keep_alive && !closed)))
}

/// The first bytes of a response, escaped.
fn escaped_start(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes[..bytes.len().min(SHOWN_BYTES_MAX)].escape_ascii())
}

fn trouble(error: &io::Error, nothing_read: bool) -> HttpProbeError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => HttpProbeError::TimedOut,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe if nothing_read => {
            HttpProbeError::Stale
        }
        _ => HttpProbeError::Failed(describe(error)),
    }
}

/// The parsed response, or why it is refused or malformed. `path` is that of an announce.
fn granted<T>(
    step: &'static str,
    body: &[u8],
    path: &str,
    response: Result<TrackerResponse<'_, T>, ResponseError>,
) -> Result<T, StepFailure> {
    let problem = match response {
        Ok(TrackerResponse::Granted(value)) => return Ok(value),
        Ok(TrackerResponse::Failure(reason)) => {
            let reason = reason[..reason.len().min(512)].escape_ascii();
            return Err(StepFailure::refused(step, reason.to_string()));
        }
        Err(ResponseError::NotBencode) => {
            format!(
                "not a tracker: the response is not a bencoded dictionary, but {}",
                escaped_start(body)
            )
        }
        Err(flaw) => hints::incomplete(flaw.text(), path),
    };
    Err(StepFailure::new(step, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(bytes: &[u8], closed: bool) -> Option<(Vec<u8>, bool)> {
        response_in(bytes, closed).unwrap_or_else(|_| panic!("{}", bytes.escape_ascii()))
    }

    #[test]
    fn responses_are_complete_by_their_own_frame() {
        let length = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nde";
        assert_eq!(complete(length, false), Some((b"de".to_vec(), true)));
        assert_eq!(complete(&length[..length.len() - 1], true), None);
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(complete(chunks, false), Some((b"de".to_vec(), true)));
        let open = b"HTTP/1.0 200 OK\r\n\r\nde";
        assert_eq!(complete(open, false), None);
        assert_eq!(complete(open, true), Some((b"de".to_vec(), false)));
    }

    #[test]
    fn what_is_no_tracker_is_named() {
        for (bytes, said) in [
            (&b"\x15\x03\x01\0\x02\x02\x46"[..], "https://"),
            (b"220 \x1b[2Jmail\r\n", r#"not an HTTP response, but "220 \x1b[2Jmail\r\n""#),
            (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "compressed"),
        ] {
            let Err(HttpProbeError::Failed(problem)) = response_in(bytes, false) else {
                panic!("{said}")
            };
            assert!(problem.contains(said), "{problem}");
        }
        let other = response_in(b"HTTP/1.1 404 No\r\n\r\n", false);
        assert!(matches!(other, Err(HttpProbeError::Status(404))));
    }
}
