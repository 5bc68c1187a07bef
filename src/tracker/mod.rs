//! The tracker's rules, for every protocol: the effect of an announce on the swarm, the number of
//! peers in its response, the interval.
//!
//! Depends on the store, but not on wire formats or sockets. Each worker has one [`Tracker`], with
//! its own random numbers and its own part of the upkeep of the shared store.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use fastrand::Rng;
use ipnet::IpNet;

mod admit;
mod client_stats;
mod connect_slip;
mod deltas;
mod dual_stack;
mod family_mix;
mod listing;
mod load;
mod nat_detection;
mod retries;
mod shedding;
mod software;

use crate::access;
pub use crate::access::Credentials;
use crate::counters::NotStoredCounters;
use crate::limiter;
pub use crate::store::PeerBuffers;
use crate::store::{
    AnnounceResult, CHOICE_MAX, ExpiryLimits, PeerAnnounce, PeerChange, Store, Stored, Sweeper,
};
use crate::time::Now;
use crate::types::{
    Announce, AnnounceResponse, Contact, Event, InfoHash, NotApplied, NotStored, PeerKind, Refusal,
    ScrapeEntry,
};
pub use admit::{AdmitError, ConnectionWork};
use client_stats::ClientCounter;
pub use client_stats::{ClientShare, ClientStats};
use connect_slip::ConnectSlip;
pub use deltas::{DeltaReceiver, DeltaSender, delta_ring};
pub use dual_stack::DualStackClients;
pub use listing::{ListedPeer, ListedTorrent, Listing, Role, StoreTotals, TorrentOrder};
pub use load::{BUSY_RATIO_CALM, BUSY_RATIO_FULL, Load};
use nat_detection::SourceWindow;
pub use nat_detection::{SourceAnomaly, SourceMonitor};
use retries::Retries;
pub use shedding::Shedding;
pub use software::software_of;

/// The number of passes of [`Tracker::prefetch`] over a batch.
pub const PREFETCH_STAGES: usize = crate::store::PREFETCH_STAGES;

/// The operator's settings, replaced as a whole on reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Seconds until the next announce without load.
    pub interval_s: u32,
    /// Seconds until the next announce under full load; at least `interval_s`.
    pub interval_s_max: u32,
    /// Whether swarms much larger than a response get longer intervals too.
    pub interval_by_swarm: bool,
    /// Each client's interval is drawn from `interval_s` ± this, so that clients that announced
    /// together do not return together.
    pub interval_jitter_s: u32,
    /// The least seconds between two announces of a client.
    pub min_interval_s: u32,
    /// Peers in a response without `numwant`.
    pub numwant_default: u32,
    /// Most peers in one response.
    pub numwant_max: u32,
    /// Seconds without an announce after which a peer is removed.
    pub peer_age_s_max: u32,
    /// Seconds for which the completed count of an empty torrent is kept.
    pub empty_torrent_age_s_max: u32,
    /// Networks that may name another address for their peers.
    pub ip_override_from: Vec<IpNet>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval_s: 1800,
            interval_s_max: 3600,
            interval_by_swarm: false,
            interval_jitter_s: 120,
            min_interval_s: 900,
            numwant_default: 50,
            numwant_max: 200,
            peer_age_s_max: 3900, // two intervals and five minutes: one announce may be missed
            empty_torrent_age_s_max: 24 * 3600,
            ip_override_from: Vec::new(),
        }
    }
}

/// The lowest port of a peer at an address other than the source of its announce.
const PORT_ELSEWHERE_MIN: u16 = 1024;

/// The result of an announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The content of the response.
    pub response: AnnounceResponse,
    /// The bytes of peers written, by [`PeerKind`].
    pub bytes: [usize; PeerKind::ALL.len()],
    /// Why the peer is not in the swarm, unless it is or has left. If it was to be stored, the
    /// interval is doubled, or is shorter for a peer that has just started.
    pub not_applied: Option<NotApplied>,
}

/// The parts of an announce that the tracker reads on demand: most announces are served without
/// them, and parsing takes time.
pub trait AnnounceDetails {
    /// The address that the announce names as that of its peer.
    fn claimed_address(&mut self) -> Option<IpAddr> {
        None
    }

    /// What access control checks.
    fn credentials(&mut self) -> Credentials<'_> {
        Credentials::default()
    }

    /// The usual interval in seconds of clients that keep a socket open; `None` for all others.
    fn interval_s(&self) -> Option<u32> {
        None
    }

    /// Called when the announce is allowed, before it is applied to the store.
    fn before_apply(&mut self) {}
}

/// An announce without further details.
impl AnnounceDetails for () {}

/// One worker's view of the tracker.
pub struct Tracker {
    store: Arc<Store>,
    options: arc_swap::Cache<Arc<ArcSwap<Options>>, Arc<Options>>,
    random: Rng,
    sweeper: Sweeper,
    client_counter: ClientCounter,
    dual_stack: Option<Arc<DualStackClients>>,
    source_window: SourceWindow,
    load: Arc<Load>,
    limiter: Option<limiter::Handle>,
    /// Whether a source was charged since this was cleared.
    was_charged: bool,
    retries: Retries,
    not_stored: Arc<NotStoredCounters>,
    access: Option<access::Gate>,
    shedding: Shedding,
    connect_slip: ConnectSlip,
    deltas: Option<DeltaSender>,
}

impl Tracker {
    /// Makes the tracker of `worker` (from 0) of `workers`, which does its part of the store's
    /// upkeep. `seed` is for the choice of peers; replacing the contents of `options` takes effect
    /// at once.
    pub fn new(
        store: Arc<Store>,
        options: Arc<ArcSwap<Options>>,
        seed: u64,
        worker: usize,
        workers: usize,
    ) -> Self {
        let sweeper = Sweeper::new(&store, worker, workers);
        let options = arc_swap::Cache::new(options);
        Self {
            store,
            options,
            random: Rng::with_seed(seed),
            sweeper,
            client_counter: ClientCounter::default(),
            dual_stack: None,
            source_window: SourceWindow::default(),
            load: Arc::default(),
            limiter: None,
            was_charged: false,
            retries: Retries::default(),
            not_stored: Arc::default(),
            access: None,
            shedding: Shedding::Nothing,
            connect_slip: ConnectSlip::default(),
            deltas: None,
        }
    }

    /// Makes the tracker of a stream worker, without upkeep, which the datagram workers do.
    pub fn without_upkeep(store: Arc<Store>, options: Arc<ArcSwap<Options>>, seed: u64) -> Self {
        Self::new(store, options, seed, 0, usize::MAX)
    }

    /// Counts the software of its clients in `clients`.
    #[must_use]
    pub fn with_client_stats(self, clients: &ClientStats) -> Self {
        Self { client_counter: clients.join(), ..self }
    }

    /// Omits a client's own other address, if it is in `dual_stack`, from its responses.
    #[must_use]
    pub fn with_dual_stack(self, dual_stack: Arc<DualStackClients>) -> Self {
        Self { dual_stack: Some(dual_stack), ..self }
    }

    /// Counts the sources of its announces in `sources`.
    #[must_use]
    pub fn with_source_monitor(self, sources: &SourceMonitor) -> Self {
        Self { source_window: sources.join(), ..self }
    }

    /// Counts what it does not store in `not_stored`, which no other worker writes.
    #[must_use]
    pub fn with_not_stored_counters(self, not_stored: Arc<NotStoredCounters>) -> Self {
        Self { not_stored, ..self }
    }

    /// Makes intervals depend on `load`.
    #[must_use]
    pub fn with_load(self, load: Arc<Load>) -> Self {
        Self { load, ..self }
    }

    /// Sends the changes to peers that its announces make to the ring of `deltas`, for other nodes.
    #[must_use]
    pub fn with_deltas(self, deltas: DeltaSender) -> Self {
        Self { deltas: Some(deltas), ..self }
    }

    /// Prefetches the memory for an announce of `info_hash`; see [`Store::prefetch`].
    #[inline]
    pub fn prefetch(&self, stage: usize, info_hash: &InfoHash) {
        self.store.prefetch(stage, info_hash);
    }

    /// Serves an announce: charges its source, determines the peer's address, checks access,
    /// applies it, and writes chosen peers to `room`, at most as many as wanted in total.
    ///
    /// This sets the peer's other address and the info-hash of its swarm in `announce`. It is not
    /// passed by value: copying it right after its fields were written costs more than the rules.
    ///
    /// # Errors
    /// Why it is not served. A stop is applied nevertheless, unless it names another address and a
    /// [low port](Refusal::LowPort): a stale peer harms others.
    #[inline]
    pub fn announce(
        &mut self,
        now: Now,
        announce: &mut Announce,
        details: &mut impl AnnounceDetails,
        room: PeerBuffers<'_>,
    ) -> Result<Announced, AdmitError> {
        if let Err(error) = self.charge_announce(now, announce.source, announce.event) {
            self.apply_limited_stop(now, announce, details);
            return Err(error);
        }
        Ok(self.serve_within_limits(now, announce, details, room)?)
    }

    /// Applies an announce that is over a limit, if it is a stop: a stale peer harms others.
    #[cold]
    fn apply_limited_stop(
        &mut self,
        now: Now,
        announce: &mut Announce,
        details: &mut impl AnnounceDetails,
    ) {
        if announce.event == Event::Stopped {
            // The response does not depend on the result.
            let _ = self.serve_within_limits(now, announce, details, PeerBuffers::default());
        }
    }

    /// Serves an announce that is within its source's limits.
    #[inline]
    fn serve_within_limits(
        &mut self,
        now: Now,
        announce: &mut Announce,
        details: &mut impl AnnounceDetails,
        room: PeerBuffers<'_>,
    ) -> Result<Announced, Refusal> {
        announce.address_override = self.address_override(announce, details)?;
        self.authorize(now, announce, details)?;
        details.before_apply();
        Ok(self.apply_to_swarm(now, announce, details.interval_s(), room))
    }

    /// The other address of a peer, if its announce names a trusted one: it is trusted only from
    /// the operator's own networks, for example for a seeder behind the same NAT as the tracker.
    ///
    /// # Errors
    /// [`Refusal::LowPort`] where another address is trusted and the port is below 1024, except 0
    /// and 1: a service on such a port is not a BitTorrent client, and must not be made a target.
    #[inline]
    fn address_override(
        &mut self,
        announce: &Announce,
        details: &mut impl AnnounceDetails,
    ) -> Result<Option<IpAddr>, Refusal> {
        let source = announce.source;
        let networks = &self.options.load().ip_override_from;
        if networks.is_empty() || !networks.iter().any(|it| it.contains(&source)) {
            return Ok(None);
        }
        let has_low_port = match announce.contact {
            Contact::Port(port) => port < PORT_ELSEWHERE_MIN,
            Contact::Web(_) => false,
        };
        match details.claimed_address().filter(|it| *it != source) {
            Some(address) if address.is_unspecified() || address.is_multicast() => Ok(None),
            Some(_) if has_low_port && announce.contact.accepts_connections() => {
                Err(Refusal::LowPort)
            }
            other => Ok(other),
        }
    }

    /// Applies an announce that is allowed. A client that accepts no connections gets the same
    /// response as any other, and is neither stored nor counted. `socket_interval_s` is the usual
    /// interval of a client that keeps a socket.
    #[inline]
    fn apply_to_swarm(
        &mut self,
        now: Now,
        announce: &Announce,
        socket_interval_s: Option<u32>,
        mut room: PeerBuffers<'_>,
    ) -> Announced {
        let options = self.options.load();
        let change = change_of(announce);
        let joins = change != PeerChange::Stopped && announce.contact.accepts_connections();
        self.source_window.note(now, announce.source);
        let numwant = announce.numwant.unwrap_or(options.numwant_default).min(options.numwant_max);
        let numwant = (numwant as usize).min(CHOICE_MAX);
        limit_room(&mut room, numwant);
        let (source, address) =
            (announce.source, announce.address_override.unwrap_or(announce.source));
        let peer_announce = PeerAnnounce {
            info_hash: &announce.info_hash,
            address,
            contact: announce.contact,
            change,
            capped: self.limiter.as_ref().is_some_and(|limiter| !limiter.is_exempt(source)),
        };
        let (limiter, shedding) = (&mut self.limiter, self.shedding);
        let mut admits_new = || {
            shedding < Shedding::NewTorrents
                && limiter.as_mut().is_none_or(|it| it.admit_new_torrent(now, source))
        };
        let random = &mut self.random;
        let mut result = match change {
            PeerChange::Present { role, .. } if !joins => {
                self.store.look_up(&announce.info_hash, (address, role), &mut room, random)
            }
            _ => self.store.announce_if(now, &peer_announce, &mut room, random, &mut admits_new),
        };
        if change == PeerChange::Stopped
            && !result.was_there
            && let Some(limiter) = &mut self.limiter
        {
            limiter.charge_stop(now, source);
        }
        if let Some(deltas) = &mut self.deltas {
            deltas.note(now, &peer_announce, &result);
        }
        let stays = joins && result.stored == Stored::Yes;
        self.client_counter.note(now, window_s(options), announce, stays, result.announced_s);
        if let Some(clients) = &self.dual_stack
            && joins
            && !room.v4.is_empty()
            && !room.v6.is_empty()
        {
            clients.remove_own_address(announce, &mut room, &mut result);
        }
        family_mix::fit(&mut room, &mut result, numwant, announce.source, &mut self.random);
        let stretch = self.load.stretch();
        let interval_s = match socket_interval_s {
            None => interval_s(options, stretch, &result, announce.event, &mut self.random),
            Some(usual_s) => interval_of_socket_s(usual_s, stretch, &result),
        };
        let not_applied = not_applied(result.stored, shedding, change, joins);
        if let Some(NotApplied::NotStored(reason)) = not_applied {
            self.not_stored.of(reason).add(1);
        }
        let min_interval_s = options.min_interval_s.min(interval_s);
        let AnnounceResult { seeders, leechers, bytes, .. } = result;
        let response = AnnounceResponse { interval_s, min_interval_s, leechers, seeders };
        Announced { response, bytes, not_applied }
    }

    /// Removes a peer whose connection has closed, as for [`Event::Stopped`]. Its source is not
    /// charged: it sent no request, and the peer may have been replaced.
    pub fn leave(&mut self, now: Now, announce: &Announce) {
        let limiter = self.limiter.take();
        self.apply_to_swarm(now, announce, None, PeerBuffers::default());
        self.limiter = limiter;
    }

    /// One torrent's counts; zeros if it is unknown.
    #[inline]
    pub fn counts(&self, info_hash: &InfoHash) -> ScrapeEntry {
        self.store.scrape(info_hash)
    }

    /// Seconds without an announce after which a peer is removed.
    pub fn peer_age_s_max(&mut self) -> u32 {
        self.options.load().peer_age_s_max
    }

    /// A handle for lists of torrents that clients may see, to be used away from the workers.
    pub fn listing(&self) -> Listing {
        let access = self.access.as_ref().map(|it| it.access().clone());
        Listing::for_clients(self.store.clone(), access)
    }

    /// Does one bounded slice of removing silent peers.
    #[inline]
    pub fn upkeep(&mut self, now: Now) {
        let options = self.options.load();
        let limits = ExpiryLimits {
            peer_age_s_max: options.peer_age_s_max,
            empty_torrent_age_s_max: options.empty_torrent_age_s_max,
        };
        self.sweeper.slice(&self.store, now, limits);
    }
}

/// The least window for counting the software of peers, in seconds: some clients return no sooner,
/// whatever interval they get.
const WINDOW_S_MIN: u32 = 900;

/// The window for counting the software of peers, in seconds: every peer announces in each window.
#[inline]
fn window_s(options: &Options) -> u32 {
    let longest_s = options.interval_s.max(options.interval_s_max) + options.interval_jitter_s;
    longest_s.max(WINDOW_S_MIN)
}

/// Why a peer is not in the swarm, unless it is or has left. `joins`: whether it was to be stored.
#[inline]
fn not_applied(
    stored: Stored,
    shedding: Shedding,
    change: PeerChange,
    joins: bool,
) -> Option<NotApplied> {
    let reason = match stored {
        Stored::Yes if joins || change == PeerChange::Stopped => return None,
        Stored::Yes => return Some(NotApplied::NoPort),
        Stored::HostFull => NotStored::HostFull,
        Stored::NotAdmitted if shedding >= Shedding::NewTorrents => NotStored::Shed,
        Stored::NotAdmitted => NotStored::NewTorrentLimit,
        Stored::NoMemory => NotStored::Memory,
    };
    Some(NotApplied::NotStored(reason))
}

/// The effect of an announce on the swarm. A peer is complete if its event is `completed` or `left`
/// is 0.
#[inline]
fn change_of(announce: &Announce) -> PeerChange {
    let complete = announce.left == 0 || announce.event == Event::Completed;
    match announce.event {
        Event::Stopped => PeerChange::Stopped,
        _ if complete => PeerChange::Present {
            role: Role::Seeder,
            completed: announce.event == Event::Completed,
        },
        Event::Paused => PeerChange::Present { role: Role::Paused, completed: false },
        _ => PeerChange::Present { role: Role::Leecher, completed: false },
    }
}

/// Seconds until the next announce; twice as long if the peer was not stored.
#[inline]
fn interval_s(
    options: &Options,
    stretch: u32,
    result: &AnnounceResult,
    event: Event,
    random: &mut Rng,
) -> u32 {
    let (usual_s, longest_s) = (options.interval_s, options.interval_s_max);
    let peers = result.seeders + result.leechers;
    let middle_s = load::interval_s(usual_s, longest_s, stretch, options.interval_by_swarm, peers);
    let jitter = options.interval_jitter_s.min(usual_s);
    let interval_s = middle_s - jitter + random.u32(..=jitter * 2);
    if result.stored != Stored::Yes && event == Event::Started {
        // The peer is in no swarm, but its client takes the response for a success: whatever the
        // load, its interval is at most the usual one without load.
        let latest_s = interval_s.min(options.interval_s);
        return random.u32(options.min_interval_s.min(latest_s)..=latest_s);
    }
    doubled_if_not_stored(interval_s, result)
}

/// The interval of a client that keeps a socket, which shows that its peers are alive: at most
/// twice the usual interval, even under full load.
fn interval_of_socket_s(usual_s: u32, stretch: u32, result: &AnnounceResult) -> u32 {
    let longest_s = usual_s.saturating_mul(2);
    let interval_s = load::interval_s(usual_s, longest_s, stretch, false, 0);
    doubled_if_not_stored(interval_s, result)
}

#[inline]
fn doubled_if_not_stored(interval_s: u32, result: &AnnounceResult) -> u32 {
    if result.stored == Stored::Yes { interval_s } else { interval_s.saturating_mul(2) }
}

/// Limits the room for each kind of peers to `numwant` of them.
#[inline]
fn limit_room(room: &mut PeerBuffers<'_>, numwant: usize) {
    limit(&mut room.v4, numwant * PeerKind::V4.bytes());
    limit(&mut room.v6, numwant * PeerKind::V6.bytes());
    limit(&mut room.web, numwant * PeerKind::Web.bytes());
}

fn limit(room: &mut &mut [u8], bytes: usize) {
    let whole = std::mem::take(room);
    let end = whole.len().min(bytes);
    *room = &mut whole[..end];
}
