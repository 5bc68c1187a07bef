//! A BEP 15 client of one address, which reports everything that a real client would reject.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::protocol::passkey;
use crate::protocol::udp::client::{
    Announcement, Response, ResponseDecodeError, decode, encode_announce, encode_connect,
    encode_scrape,
};
use crate::protocol::udp::{TransactionId, peer_stride};
use crate::sys::clock::Clock;
use crate::types::{Event, Family};

use super::{
    AnnounceReport, Conversation, ProbeIdentity, ProbeTimeouts, Scrape, StepFailure, hints,
    milliseconds, no_response,
};

/// The longest datagram that is read, in bytes: more than any tracker sends.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// A client of one address.
pub(super) struct UdpProbe {
    socket: UdpSocket,
    family: Family,
    clock: Clock,
    timeouts: ProbeTimeouts,
    /// BEP 41 options that follow the announce.
    options: Vec<u8>,
    /// Whether they hold a passkey.
    has_passkey: bool,
    connection_id: u64,
    identity: ProbeIdentity,
}

impl UdpProbe {
    /// A client that has sent nothing yet.
    pub(super) fn new(
        address: SocketAddr,
        path: &str,
        timeouts: ProbeTimeouts,
        identity: ProbeIdentity,
    ) -> Result<Self, StepFailure> {
        let failed = |error: io::Error| StepFailure::new("socket", describe(&error));
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0; 16], 0).into(),
        };
        let socket = UdpSocket::bind(any).map_err(failed)?;
        socket.connect(address).map_err(failed)?;
        Ok(Self {
            socket,
            family: Family::of(address.ip().to_canonical()),
            clock: Clock::start(),
            timeouts,
            options: url_data(path.as_bytes()),
            has_passkey: passkey::of_path(path.as_bytes()).is_some(),
            connection_id: 0,
            identity,
        })
    }

    fn announce_event(
        &self,
        step: &'static str,
        event: Event,
    ) -> Result<AnnounceReport, StepFailure> {
        let announcement = Announcement {
            info_hash: self.identity.info_hash,
            peer_id: self.identity.peer_id,
            downloaded: 0,
            left: 1,
            uploaded: 0,
            event,
            numwant: -1,
            port: self.socket.local_addr().map_or(1, |it| it.port()),
            key: [0; 4],
        };
        let response = self.ask(step, |id, out| {
            let bytes = encode_announce(self.connection_id, id, &announcement, out);
            out[bytes..bytes + self.options.len()].copy_from_slice(&self.options);
            bytes + self.options.len()
        })?;
        match self.read(step, &response)? {
            Response::Announced(announced, peers) => Ok(AnnounceReport {
                duration_ms: response.duration_ms,
                interval_s: announced.interval_s,
                seeders: announced.seeders,
                leechers: announced.leechers,
                peers: Some(peers.len() / peer_stride(self.family)),
            }),
            _ => Err(unexpected(step)),
        }
    }

    /// Sends a request until a response arrives or all tries are used.
    fn ask(
        &self,
        step: &'static str,
        encode: impl FnOnce(TransactionId, &mut [u8]) -> usize,
    ) -> Result<TimedResponse, StepFailure> {
        let transaction_id = TransactionId(fastrand::u32(..).to_be_bytes());
        let mut request = [0; DATAGRAM_BYTES_MAX];
        let bytes = encode(transaction_id, &mut request);
        let mut wait = self.timeouts.first_try;
        for _ in 0..self.timeouts.tries {
            let response = self.exchange(&request[..bytes], transaction_id, wait);
            match response.map_err(|error| StepFailure::new(step, describe(&error)))? {
                Some(response) => return Ok(response),
                None => wait *= 2,
            }
        }
        Err(no_response(step, self.timeouts))
    }

    /// Sends a request once. `None`: no response in time.
    fn exchange(
        &self,
        request: &[u8],
        transaction_id: TransactionId,
        wait: Duration,
    ) -> io::Result<Option<TimedResponse>> {
        let sent = self.clock.now();
        self.socket.send(request)?;
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let waited = Duration::from_nanos(self.clock.now().ns_since(sent));
            let Some(left) = wait.checked_sub(waited).filter(|it| !it.is_zero()) else {
                return Ok(None);
            };
            self.socket.set_read_timeout(Some(left))?;
            let bytes = match self.socket.recv(&mut datagram) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // Skips responses to earlier requests, which may still arrive.
            if datagram[..bytes].get(4..8) == Some(&transaction_id.0) {
                datagram.truncate(bytes);
                let duration_ms = milliseconds(self.clock.now().ns_since(sent));
                return Ok(Some(TimedResponse { datagram, duration_ms }));
            }
        }
    }

    /// Decodes a response as strictly as the strictest clients do.
    fn read<'a>(
        &self,
        step: &'static str,
        response: &'a TimedResponse,
    ) -> Result<Response<'a>, StepFailure> {
        let malformed =
            |it: ResponseDecodeError| StepFailure::new(step, format!("malformed: {it:?}"));
        match decode(&response.datagram, self.family).map_err(malformed)?.1 {
            Response::Error(text) => {
                Err(StepFailure::refused(step, text.escape_ascii().to_string()))
            }
            response => Ok(response),
        }
    }
}

impl Conversation for UdpProbe {
    fn connect(&mut self) -> Result<f64, StepFailure> {
        let step = "connect";
        let response = self.ask(step, encode_connect)?;
        match self.read(step, &response)? {
            Response::Connected(id) => self.connection_id = id,
            _ => return Err(unexpected(step)),
        }
        Ok(response.duration_ms)
    }

    fn announce(&mut self) -> Result<AnnounceReport, StepFailure> {
        self.announce_event("announce", Event::Started)
    }

    fn scrape(&mut self) -> Result<Option<Scrape>, StepFailure> {
        let step = "scrape";
        let torrents = [self.identity.info_hash];
        let response =
            self.ask(step, |id, out| encode_scrape(self.connection_id, id, &torrents, out))?;
        let entries = match self.read(step, &response) {
            Ok(Response::Scraped(entries)) => entries,
            Ok(_) => return Err(unexpected(step)),
            // A scrape carries no options (BEP 41), so a private tracker cannot serve it.
            Err(failure) if self.has_passkey && failure.refusal.is_some() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let problem = || format!("response has {} torrents, expected 1", entries.count());
        let entry = entries.iter().next().filter(|_| entries.count() == 1);
        let entry = entry.ok_or_else(|| StepFailure::new(step, problem()))?;
        Ok(Some(Scrape::of(response.duration_ms, entry)))
    }

    fn leave(&mut self) -> Result<(), StepFailure> {
        self.announce_event("leave", Event::Stopped).map(|_| ())
    }

    fn hurry(&mut self) {
        self.timeouts.tries = 1;
    }
}

/// A response datagram.
struct TimedResponse {
    datagram: Vec<u8>,
    duration_ms: f64,
}

/// A response to another action than that of the request.
fn unexpected(step: &'static str) -> StepFailure {
    StepFailure::new(step, "malformed: a response to another action")
}

/// A socket's error as text.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => hints::closed("UDP: ICMP port unreachable"),
        _ if hints::is_unrouted(error) => hints::NO_ROUTE.into(),
        _ => error.to_string(),
    }
}

/// URLData options with 255 bytes of the path each, and the end option (BEP 41).
fn url_data(path: &[u8]) -> Vec<u8> {
    const END: u8 = 0;
    const URL_DATA: u8 = 2;
    let mut options = Vec::new();
    for part in path.chunks(u8::MAX.into()) {
        options.extend([URL_DATA, u8::try_from(part.len()).unwrap_or(u8::MAX)]);
        options.extend(part);
    }
    options.extend((!options.is_empty()).then_some(END));
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::udp::{Request, decode as decode_request};

    #[test]
    fn a_path_goes_along_in_parts() {
        assert_eq!(url_data(b""), b"");
        assert_eq!(url_data(b"/a"), b"\x02\x02/a\0");
        let path = [b'x'; 300];
        let mut announce = vec![0; 98];
        announce[11] = 1;
        announce.extend(url_data(&path));
        let Ok(Request::Announce(_, options)) = decode_request(&announce) else { panic!() };
        assert_eq!(options.url_data(), &path[..]);
    }
}
