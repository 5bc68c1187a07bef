//! The UDP front end: one datagram in, at most one out. Read [`UdpFrontend::handle`] first: it
//! decodes the datagram, checks the connection id, and calls the tracker.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::frontend::connection_id::ConnectionIds;
use crate::frontend::{RESPONSE_BYTES_MAX, Responder};
use crate::protocol::passkey;
use crate::protocol::udp::{self, AnnounceRequest, Head, Request, UrlOptions};
use crate::time::Now;
use crate::tracker::{
    self, AdmitError, AnnounceDetails, Announced, Credentials, PeerBuffers, Tracker,
};
use crate::types::{
    Action, Announce, Contact, DatagramResponse, Dropped, Family, InfoHash, NotApplied,
};

/// One worker's UDP front end.
pub struct UdpFrontend {
    tracker: Tracker,
    ids: SharedIds,
}

/// Connection ids, whose keys may be replaced at run time.
pub type SharedIds = arc_swap::Cache<Arc<ArcSwap<ConnectionIds>>, Arc<ConnectionIds>>;

impl UdpFrontend {
    /// Makes a front end for one worker's tracker. Replacing the contents of `ids` takes effect
    /// with the next datagram.
    pub fn new(tracker: Tracker, ids: Arc<ArcSwap<ConnectionIds>>) -> Self {
        Self { tracker, ids: SharedIds::new(ids) }
    }
}

impl Responder for UdpFrontend {
    const PREFETCH_STAGES: usize = tracker::PREFETCH_STAGES;

    #[inline]
    fn prefetch(&mut self, stage: usize, datagram: &[u8]) {
        if let Some(info_hash) = udp::peek_info_hash(datagram) {
            self.tracker.prefetch(stage, info_hash);
        }
    }

    #[inline]
    fn handle(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        let request = udp::decode(datagram)?;
        let ids = self.ids.load();
        match request {
            Request::Connect(head) => {
                self.tracker.admit_connect(now, source)?;
                let bytes = udp::encode_connected(head, ids.issue(now, source.ip()), out);
                Ok(DatagramResponse::served(Action::Connect, bytes))
            }
            Request::Announce(announce, options) => {
                ids.check(now, source.ip(), announce.head.connection_id.get())?;
                self.announce(now, source, announce, options, out)
            }
            Request::Scrape(head, info_hashes) => {
                ids.check(now, source.ip(), head.connection_id.get())?;
                self.scrape(now, source, head, info_hashes, out)
            }
        }
    }

    #[inline]
    fn upkeep(&mut self, now: Now) {
        self.tracker.upkeep(now);
    }

    fn set_queue(&mut self, queue_permille: u32) {
        self.tracker.set_queue(queue_permille);
    }
}

impl UdpFrontend {
    fn announce(
        &mut self,
        now: Now,
        source: SocketAddr,
        request: &AnnounceRequest,
        options: UrlOptions<'_>,
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        let mut announce = Announce {
            info_hash: request.info_hash,
            source: source.ip(),
            address_override: None,
            contact: Contact::Port(request.port.get()),
            peer_id: request.peer_id,
            left: request.left.get(),
            event: request.event(),
            numwant: request.numwant(),
        };
        let mut details = UdpDetails { request, options, url: None };
        let end = out.len().min(RESPONSE_BYTES_MAX);
        let peers = udp::peers_of(&mut out[..end]);
        let room = match Family::of(source.ip()) {
            Family::V4 => PeerBuffers { v4: peers, ..PeerBuffers::default() },
            Family::V6 => PeerBuffers { v6: peers, ..PeerBuffers::default() },
        };
        match self.tracker.announce(now, &mut announce, &mut details, room) {
            Ok(Announced { response, bytes, not_applied }) => {
                let bytes = bytes.iter().sum();
                let bytes = udp::encode_announced(&request.head, &response, bytes, out);
                let served = DatagramResponse::served(Action::Announce, bytes);
                Ok(DatagramResponse { not_applied, ..served })
            }
            Err(error) => fail(Action::Announce, &request.head, error, out),
        }
    }

    /// There is no passkey: BEP 41 has no options for scrapes.
    fn scrape(
        &mut self,
        now: Now,
        source: SocketAddr,
        head: &Head,
        info_hashes: &[InfoHash],
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        let mut bytes = udp::encode_scraped_head(head, out);
        let scraped = self.tracker.scrape(now, source.ip(), info_hashes, None, |_, counts| {
            bytes += udp::encode_scraped_entry(&counts, out.get_mut(bytes..).unwrap_or_default());
        });
        match scraped {
            Ok(()) => Ok(DatagramResponse::served(Action::Scrape, bytes)),
            Err(error) => fail(Action::Scrape, head, error, out),
        }
    }
}

/// Parts of an announce that the tracker rarely reads.
struct UdpDetails<'a> {
    request: &'a AnnounceRequest,
    options: UrlOptions<'a>,
    /// The URL data of the options, joined on first use.
    url: Option<Cow<'a, [u8]>>,
}

impl AnnounceDetails for UdpDetails<'_> {
    fn claimed_address(&mut self) -> Option<IpAddr> {
        self.request.claimed_address().map(IpAddr::V4)
    }

    fn credentials(&mut self) -> Credentials<'_> {
        let url = self.url.get_or_insert_with(|| self.options.url_data());
        Credentials {
            passkey: passkey::of_path(url),
            uploaded: self.request.uploaded.get(),
            downloaded: self.request.downloaded.get(),
        }
    }
}

/// A request over a limit gets no response, because clients then wait longer than after an error.
#[cold]
fn fail(
    action: Action,
    request: &Head,
    error: AdmitError,
    out: &mut [u8],
) -> Result<DatagramResponse, Dropped> {
    match error {
        AdmitError::Refused(refusal) => {
            let bytes = udp::encode_error(request, refusal, out);
            let refusal = Some(refusal);
            Ok(DatagramResponse { refusal, ..DatagramResponse::served(action, bytes) })
        }
        AdmitError::Slipped(response) => {
            let bytes = udp::encode_announced(request, &response, 0, out);
            let not_applied = Some(NotApplied::Slipped);
            Ok(DatagramResponse { not_applied, ..DatagramResponse::served(action, bytes) })
        }
        AdmitError::Limited => Err(Dropped::Limited),
        AdmitError::Shed => Err(Dropped::ShedScrape),
    }
}
