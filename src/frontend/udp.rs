//! The UDP front end: one datagram in, at most one out. The function to read first is
//! [`UdpFrontend::handle`]; every line of it is a call into the module named by its word.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::frontend::connection_id::ConnectionIds;
use crate::frontend::{REPLY_BYTES_MAX, Responder};
use crate::protocol::passkey;
use crate::protocol::udp::{self, AnnounceRequest, Head, Options, Request};
use crate::time::Now;
use crate::tracker::{self, Admission, Announced, PeerBuffers, Shown, Tracker, Work};
use crate::types::{
    Action, Announce, Answered, Contact, Dropped, Family, InfoHash, Refusal, ScrapeEntry,
};

/// One worker's UDP front end.
pub struct UdpFrontend {
    tracker: Tracker,
    ids: SharedIds,
}

/// Connection ids under keys that may be replaced while running.
pub type SharedIds = arc_swap::Cache<Arc<ArcSwap<ConnectionIds>>, Arc<ConnectionIds>>;

impl UdpFrontend {
    /// A front end on one worker's tracker. Replacing what `ids` holds takes effect with the next
    /// datagram.
    pub fn new(tracker: Tracker, ids: Arc<ArcSwap<ConnectionIds>>) -> Self {
        Self { tracker, ids: SharedIds::new(ids) }
    }

    fn announce(
        &mut self,
        now: Now,
        source: SocketAddr,
        request: &AnnounceRequest,
        options: Options<'_>,
        out: &mut [u8],
    ) -> Answered {
        let claimed = || request.claimed_address().map(IpAddr::V4);
        let elsewhere = match self.tracker.peer_address(source.ip(), request.port.get(), claimed) {
            Ok(it) => it,
            Err(refusal) => return refused(Action::Announce, &request.head, refusal, out),
        };
        let mut announce = Announce {
            info_hash: request.info_hash,
            source: source.ip(),
            elsewhere,
            contact: Contact::Port(request.port.get()),
            peer_id: request.peer_id,
            left: request.left.get(),
            event: request.event(),
            numwant: request.numwant(),
        };
        let mut url = None;
        let entered = self.tracker.enter(now, &announce, || Shown {
            passkey: passkey::of_path(url.insert(options.url_data())),
            uploaded: request.uploaded.get(),
            downloaded: request.downloaded.get(),
        });
        match entered {
            Ok(swarm) => announce.info_hash = swarm,
            Err(refusal) => return refused(Action::Announce, &request.head, refusal, out),
        }
        let end = out.len().min(REPLY_BYTES_MAX);
        let peers = udp::peers_of(&mut out[..end]);
        let room = match Family::of(source.ip()) {
            Family::V4 => PeerBuffers { v4: peers, ..PeerBuffers::default() },
            Family::V6 => PeerBuffers { v6: peers, ..PeerBuffers::default() },
        };
        let Announced { reply, bytes, .. } = self.tracker.announce(now, &announce, room);
        let bytes = udp::encode_announced(&request.head, &reply, bytes.iter().sum(), out);
        Answered { action: Action::Announce, bytes, refusal: None }
    }

    /// Zeros stand for torrents that may not be scraped, unless none of them may. There is no
    /// passkey: BEP 41 has no options for scrapes.
    fn scrape(
        &mut self,
        now: Now,
        source: SocketAddr,
        head: &Head,
        info_hashes: &[InfoHash],
        out: &mut [u8],
    ) -> Answered {
        let (mut refusal, mut served) = (None, info_hashes.is_empty());
        let entries = info_hashes.iter().map(|it| {
            let entry = self.tracker.scrape_for(now, source.ip(), it, None);
            served |= entry.is_ok();
            entry.unwrap_or_else(|it| {
                refusal = Some(it);
                ScrapeEntry::default()
            })
        });
        let bytes = udp::encode_scraped(head, entries, out);
        match refusal {
            Some(refusal) if !served => refused(Action::Scrape, head, refusal, out),
            _ => Answered { action: Action::Scrape, bytes, refusal: None },
        }
    }

    #[cold]
    fn calm(&mut self, request: &AnnounceRequest, out: &mut [u8]) -> Answered {
        let bytes = udp::encode_announced(&request.head, &self.tracker.calm(), 0, out);
        Answered { action: Action::Announce, bytes, refusal: None }
    }
}

fn refused(action: Action, request: &Head, refusal: Refusal, out: &mut [u8]) -> Answered {
    let bytes = udp::encode_error(request, refusal, out);
    Answered { action, bytes, refusal: Some(refusal) }
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
    ) -> Result<Answered, Dropped> {
        let request = udp::decode(datagram)?;
        let ids = self.ids.load();
        match request {
            Request::Connect(head) => {
                self.tracker.admit_connect(now, source)?;
                let bytes = udp::encode_connected(head, ids.issue(now, source.ip()), out);
                Ok(Answered { action: Action::Connect, bytes, refusal: None })
            }
            Request::Announce(it, options) => {
                ids.check(now, source.ip(), it.head.connection_id.get())?;
                match self.tracker.admit(now, source.ip(), Work::Announce(it.event()))? {
                    Admission::Served => Ok(self.announce(now, source, it, options, out)),
                    Admission::Calmed => Ok(self.calm(it, out)),
                    Admission::Muted => {
                        self.announce(now, source, it, options, out);
                        Err(Dropped::Limited)
                    }
                }
            }
            Request::Scrape(head, info_hashes) => {
                ids.check(now, source.ip(), head.connection_id.get())?;
                self.tracker.admit(now, source.ip(), Work::Scrape(info_hashes.len()))?;
                // Only now: a forged scrape must not buy the work of 74 look-ups.
                for stage in 0..Self::PREFETCH_STAGES {
                    info_hashes.iter().for_each(|it| self.tracker.prefetch(stage, it));
                }
                Ok(self.scrape(now, source, head, info_hashes, out))
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
