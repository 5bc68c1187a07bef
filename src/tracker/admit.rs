//! Decides which requests are served: rate limits of a source, load shedding, and the operator's
//! lists, registrations and passkeys.
//!
//! ```text
//! connect   (unverified) shedding ─▶ responses to unverified sources ─▶ one in four slips
//! announce  (verified)   work of a source ─▶ one in 16 slips ─▶ access: lists, registry, passkey
//! scrape    (verified)   shedding ─▶ work of a source ─▶ access
//! stop      (verified)   free and always applied; without a response over UDP, and refused
//!                        otherwise, where the source has stopped thousands of peers that were not
//!                        there
//! ```
//!
//! An overloaded worker still serves the announce of a new torrent, but does not store its peer
//! ([`Tracker::announce`]).
//!
//! An announce that slips gets a response with no peers and the longest interval; its peer is not
//! stored. An announce that starts or completes a download never slips: its client would take the
//! response for a success, and would be in no swarm, or not be counted as a seeder, until the
//! interval is over. Without a response, it assumes a loss and retries soon.
//!
//! A datagram with a forged source is never charged to that source: unverified requests are charged
//! to a separate table, which limits responses only.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::{AnnounceDetails, PREFETCH_STAGES, PeerBuffers, Shedding, Tracker};
use crate::access;
use crate::limiter::{self, Price, Verdict};
use crate::time::Now;
use crate::types::{
    Announce, AnnounceResponse, Contact, Dropped, Event, InfoHash, PeerId, Refusal, ScrapeEntry,
};

/// Work over TCP that is not an announce or scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionWork {
    /// A TLS handshake.
    Handshake,
    /// A request that is not an announce or scrape, or is invalid; an upgrade; an invalid message.
    Request,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmitError {
    /// A rule forbids it.
    Refused(Refusal),
    /// Its source, or a network around it, is over a limit. Over UDP it gets no response. A stop is
    /// applied nevertheless.
    Limited,
    /// As [`Self::Limited`], but this announce was selected to get a response over UDP.
    Slipped(AnnounceResponse),
    /// The worker cannot keep up.
    Shed,
}

impl AdmitError {
    /// The refusal, for protocols in which every request gets a response: a failure is as short as
    /// an empty response, and more precise.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => *refusal,
            Self::Limited | Self::Slipped(_) | Self::Shed => Refusal::Limited,
        }
    }
}

impl From<Refusal> for AdmitError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Tracker {
    /// Limits sources by `limiter`. Without it, there are no limits.
    #[must_use]
    pub fn with_limiter(self, limiter: limiter::Handle) -> Self {
        Self { limiter: Some(limiter), ..self }
    }

    /// Serves only what `access` allows. Without it, everything is allowed.
    #[must_use]
    pub fn with_access(self, access: access::Gate) -> Self {
        Self { access: Some(access), ..self }
    }

    /// Checks whether an announce is allowed. Replaces its info-hash by that of its swarm, which
    /// may differ because a torrent may have two hashes. WebRTC peers name their own hash in
    /// messages to each other, so for them each hash has a separate swarm.
    ///
    /// # Errors
    /// Why it is refused. A stop is applied nevertheless: a peer that may not be served may leave,
    /// and should no longer be handed out.
    #[inline]
    pub(super) fn authorize(
        &mut self,
        now: Now,
        announce: &mut Announce,
        details: &mut impl AnnounceDetails,
    ) -> Result<(), Refusal> {
        let Some(access) = &mut self.access else { return Ok(()) };
        let authorized = access.announce(now, announce, || details.credentials());
        let is_stop = announce.event == Event::Stopped;
        let swarm = match authorized {
            Ok(swarm) => swarm,
            Err(_) if is_stop => access.swarm_of(&announce.info_hash),
            Err(refusal) => return Err(refusal),
        };
        if let Contact::Port(_) = announce.contact {
            announce.info_hash = swarm;
        }
        if authorized.is_err() {
            self.apply_to_swarm(now, announce, None, PeerBuffers::default());
        }
        authorized.map(|_| ())
    }

    /// Calls `each` with the counts of each torrent in turn: zeros for a torrent that is unknown or
    /// may not be scraped. After an error, the counts already passed to `each` must not be sent.
    ///
    /// # Errors
    /// If the source is over a limit, or none of the torrents may be scraped.
    pub fn scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hashes: &[InfoHash],
        passkey: Option<&[u8]>,
        mut each: impl FnMut(&InfoHash, ScrapeEntry),
    ) -> Result<(), AdmitError> {
        self.admit_scrape(now, source, info_hashes.len())?;
        // Prefetched only now, so that a forged scrape does not cause 74 look-ups.
        for stage in 0..PREFETCH_STAGES {
            info_hashes.iter().for_each(|it| self.prefetch(stage, it));
        }
        let (mut refusal, mut is_served) = (None, false);
        for info_hash in info_hashes {
            let swarm = match &mut self.access {
                None => Ok(*info_hash),
                Some(access) => access.scrape(now, source, info_hash, passkey),
            };
            let counts = swarm.map(|swarm| self.counts(&swarm));
            is_served |= counts.is_ok();
            each(info_hash, counts.unwrap_or_default());
            refusal = counts.err().or(refusal);
        }
        refusal.filter(|_| !is_served).map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// Checks whether a source may get the list of all torrents, and charges it if so.
    ///
    /// # Errors
    /// Why not.
    pub fn admit_full_scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        passkey: Option<&[u8]>,
    ) -> Result<(), AdmitError> {
        if let Some(access) = &mut self.access {
            access.list(source, passkey)?;
        }
        self.admit_scrape(now, source, 0)
    }

    /// Whether a peer may stay in its swarm: its network, torrent or passkey may have been denied
    /// since.
    pub fn may_stay(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hash: &InfoHash,
        passkey: Option<&[u8]>,
    ) -> bool {
        let access = self.access.as_mut();
        access.is_none_or(|it| it.scrape(now, source, info_hash, passkey).is_ok())
    }

    /// Frees the passkey's session of a peer whose connection has closed.
    pub fn release(&self, passkey: Option<&[u8]>, info_hash: &InfoHash, peer_id: &PeerId) {
        if let Some(access) = &self.access {
            access.release(passkey, info_hash, peer_id);
        }
    }

    /// The operator's reason for a refusal of this announce, for protocols that can carry it.
    pub fn reason(&mut self, refusal: Refusal, announce: &Announce) -> Option<&str> {
        self.access.as_mut()?.reason(refusal, announce)
    }

    /// Takes into account how full the worker's receive queue is, in thousandths.
    pub fn set_queue(&mut self, queue_permille: u32) {
        self.shedding = self.shedding.next(queue_permille);
    }

    /// Checks whether a connect, whose source is unverified, gets a response.
    ///
    /// # Errors
    /// Why it is dropped.
    #[inline]
    pub fn admit_connect(&mut self, now: Now, source: SocketAddr) -> Result<(), Dropped> {
        // Clients retry, and a client with a connection id needs no further connect for minutes.
        let (connect_slip, mut slips) = (&mut self.connect_slip, None);
        let mut slips = || *slips.get_or_insert_with(|| connect_slip.slips(source));
        if self.shedding >= Shedding::Connects && !slips() {
            return Err(Dropped::ShedConnect);
        }
        let limiter = self.limiter.as_mut();
        let admitted = limiter.is_none_or(|it| it.admit_response(now, source.ip(), slips));
        if admitted { Ok(()) } else { Err(Dropped::LimitedConnect) }
    }

    /// Charges an announce to a verified source, unless it is over a limit.
    ///
    /// A front end calls it directly for an announce that cannot be served under any rules, for
    /// example because it is malformed: it costs as much as any other.
    ///
    /// # Errors
    /// If it is over a limit. For a stop, this decides only whether it gets a response.
    #[inline]
    pub fn charge_announce(
        &mut self,
        now: Now,
        source: IpAddr,
        event: Event,
    ) -> Result<(), AdmitError> {
        self.was_charged = true;
        if self.limiter.is_some() { self.charge(now, source, event) } else { Ok(()) }
    }

    fn charge(&mut self, now: Now, source: IpAddr, event: Event) -> Result<(), AdmitError> {
        let Some(limiter) = &mut self.limiter else { return Ok(()) };
        let is_admitted = match event {
            Event::None | Event::Paused => match limiter.admit(now, source, Price::ANNOUNCE) {
                Verdict::Pass => true,
                Verdict::Slip => return Err(AdmitError::Slipped(self.slip_response())),
                Verdict::Drop => false,
            },
            Event::Stopped => limiter.admit_stop(now, source),
            Event::Started | Event::Completed => {
                limiter.admit_strictly(now, source, Price::ANNOUNCE)
            }
        };
        if is_admitted { Ok(()) } else { Err(AdmitError::Limited) }
    }

    /// Charges a scrape of `torrents` torrents to a verified source.
    fn admit_scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        torrents: usize,
    ) -> Result<(), AdmitError> {
        self.was_charged = true;
        if self.shedding >= Shedding::Scrapes {
            return Err(AdmitError::Shed);
        }
        let price = Price::scrape(torrents);
        let is_admitted =
            self.limiter.as_mut().is_none_or(|limiter| limiter.admit_strictly(now, source, price));
        if is_admitted { Ok(()) } else { Err(AdmitError::Limited) }
    }

    /// Seconds after which a refused request of `source` may be retried; `None` for never. Lists,
    /// registrations and passkeys change, often soon after the first announce. `torrent` is the
    /// torrent's name in the request.
    #[cold]
    pub fn retry_s<'a>(
        &mut self,
        now: Now,
        source: IpAddr,
        refusal: Refusal,
        torrent: impl FnOnce() -> &'a [u8],
    ) -> Option<u32> {
        match refusal {
            // Random, so that requests refused together do not return together.
            Refusal::Limited | Refusal::PasskeyLimit => Some(self.random.u32(RETRY_S)),
            Refusal::Unregistered
            | Refusal::SimilarTorrent
            | Refusal::TorrentDenied
            | Refusal::NetworkDenied
            | Refusal::PortDenied
            | Refusal::LowPort
            | Refusal::UnknownPasskey => Some(self.retries.wait_s(now, source, torrent())),
            _ => None,
        }
    }

    /// Whether a source is in an exempt network, as of the latest request.
    pub fn is_exempt(&self, source: IpAddr) -> bool {
        self.limiter.as_ref().is_some_and(|it| it.is_in_exempt_network(source))
    }

    /// Whether an announce or scrape was charged since the last call: if not, the caller must
    /// charge the work done meanwhile.
    pub fn take_was_charged(&mut self) -> bool {
        std::mem::take(&mut self.was_charged)
    }

    /// Decides on work of a source's connection, and charges it if it passes.
    pub fn admit_connection_work(
        &mut self,
        now: Now,
        source: IpAddr,
        work: ConnectionWork,
    ) -> bool {
        let price = match work {
            ConnectionWork::Handshake => Price::HANDSHAKE,
            ConnectionWork::Request => Price::ANNOUNCE,
        };
        self.limiter.as_mut().is_none_or(|it| it.admit_connection_work(now, source, price))
    }

    /// The response to an announce over the limit: the longest interval, and zero counts, because
    /// nothing is looked up.
    #[cold]
    fn slip_response(&mut self) -> AnnounceResponse {
        let options = self.options.load();
        let interval_s = options.interval_s.max(options.interval_s_max);
        AnnounceResponse { interval_s, min_interval_s: interval_s, leechers: 0, seeders: 0 }
    }
}

/// Seconds after which a request over a limit may be retried. In a minute, the load of a source
/// falls by some thousand announces, and a passkey's minute is over.
const RETRY_S: RangeInclusive<u32> = 30..=90;
