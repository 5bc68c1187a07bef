//! An announce over HTTP: its parameters, and its bencoded response (BEP 3, 7, 23, 24).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Options;
use crate::protocol::bencode::{Dict, ListWriter};
use crate::protocol::http::{self, AnnounceQuery, RequestHead};
use crate::protocol::passkey;
use crate::time::Now;
use crate::tracker::{AdmitError, AnnounceDetails, Announced, Credentials, PeerBuffers, Tracker};
use crate::types::{Announce, AnnounceResponse, Contact, NotApplied, PeerKind};

/// The most peers of one family in a response: the upper bound of `tracker.numwant_max`.
const PEERS_MAX: usize = 200;

/// The announce of a query from `source`.
pub(super) fn of_query(source: IpAddr, query: &AnnounceQuery) -> Announce {
    Announce {
        info_hash: query.info_hash,
        source,
        address_override: None,
        contact: Contact::Port(query.port),
        peer_id: query.peer_id,
        left: query.left,
        event: query.event,
        numwant: query.numwant,
    }
}

/// Parts of an announce that the tracker rarely reads.
pub(super) struct HttpDetails<'a> {
    pub(super) head: &'a RequestHead<'a>,
    pub(super) query: &'a AnnounceQuery,
}

impl AnnounceDetails for HttpDetails<'_> {
    fn claimed_address(&mut self) -> Option<IpAddr> {
        http::claimed_address(self.head.query)
    }

    fn credentials(&mut self) -> Credentials<'_> {
        Credentials {
            passkey: passkey::of_path(self.head.path),
            uploaded: self.query.uploaded,
            downloaded: self.query.downloaded,
        }
    }
}

/// Buffers for the peers of a response, reused without clearing: clearing would cost more than most
/// announces.
pub(super) struct Peers {
    v4: Box<[u8; PEERS_MAX * PeerKind::V4.bytes()]>,
    v6: Box<[u8; PEERS_MAX * PeerKind::V6.bytes()]>,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            v4: Box::new([0; PEERS_MAX * PeerKind::V4.bytes()]),
            v6: Box::new([0; PEERS_MAX * PeerKind::V6.bytes()]),
        }
    }
}

/// The content of the response to an announce.
pub(super) struct HttpAnnounceResponse<'a> {
    summary: AnnounceResponse,
    v4: &'a [u8],
    v6: &'a [u8],
    /// Why the peer is not handed out. The client gets the same response as any other.
    pub(super) not_applied: Option<NotApplied>,
}

impl Peers {
    /// Passes the announce to the tracker; the chosen peers are of both families.
    pub(super) fn announce(
        &mut self,
        tracker: &mut Tracker,
        now: Now,
        mut announce: Announce,
        details: &mut HttpDetails<'_>,
    ) -> Result<HttpAnnounceResponse<'_>, AdmitError> {
        let room = PeerBuffers { v4: &mut self.v4[..], v6: &mut self.v6[..], web: &mut [] };
        let Announced { response, bytes, not_applied } =
            tracker.announce(now, &mut announce, details, room)?;
        let v4 = &self.v4[..bytes[PeerKind::V4 as usize]];
        let v6 = &self.v6[..bytes[PeerKind::V6 as usize]];
        Ok(HttpAnnounceResponse { summary: response, v4, v6, not_applied })
    }
}

/// Writes the response. `peers` and `peers6` are always present: some clients reject a response
/// without `peers`, and take `peers6` as a sign of IPv6 support. Peers as dictionaries (BEP 3) are
/// in one list, without peer ids, which the tracker does not keep.
pub(super) fn write(
    announce: &Announce,
    response: &HttpAnnounceResponse<'_>,
    compact: bool,
    options: &Options,
    out: &mut Vec<u8>,
) {
    let summary = &response.summary;
    let mut dict = Dict::new(out);
    dict.integer(b"complete", summary.seeders.into());
    match announce.source {
        IpAddr::V4(address) => dict.bytes(b"external ip", &address.octets()),
        IpAddr::V6(address) => dict.bytes(b"external ip", &address.octets()),
    }
    dict.integer(b"incomplete", summary.leechers.into());
    dict.integer(b"interval", summary.interval_s.into());
    dict.integer(b"min interval", summary.min_interval_s.into());
    if compact {
        dict.bytes(b"peers", response.v4);
        dict.bytes(b"peers6", response.v6);
    } else {
        write_list(response, dict.list(b"peers"));
    }
    let texts: [(&[u8], &str); 2] =
        [(b"tracker id", &options.tracker_id), (b"warning message", &options.warning)];
    for (key, text) in texts.into_iter().filter(|it| !it.1.is_empty()) {
        dict.bytes(key, text.as_bytes());
    }
}

fn write_list(response: &HttpAnnounceResponse<'_>, mut list: ListWriter<'_>) {
    let mut text = String::new();
    let (v4, _) = response.v4.as_chunks::<6>();
    let (v6, _) = response.v6.as_chunks::<18>();
    let v4 = v4.iter().map(|&[a, b, c, d, port @ ..]| {
        (IpAddr::from(Ipv4Addr::new(a, b, c, d)), u16::from_be_bytes(port))
    });
    let v6 = v6.iter().map(|&[ref address @ .., high, low]| {
        (IpAddr::from(Ipv6Addr::from(*address)), u16::from_be_bytes([high, low]))
    });
    for (address, port) in v4.chain(v6) {
        text.clear();
        let _ = write!(text, "{address}"); // writing to a string never fails
        let mut peer = list.dict();
        peer.bytes(b"ip", text.as_bytes());
        peer.integer(b"port", port.into());
    }
}
