//! The tracker's rules, whatever protocol asks: what an announce means for the swarm, how many
//! peers it is handed, when to come back.
//!
//! Knows the store; knows neither bytes nor sockets. One [`Tracker`] per worker: it owns the
//! worker's random numbers and its place in the upkeep of the store they share.

use std::sync::Arc;

use arc_swap::ArcSwap;
use fastrand::Rng;

mod census;
mod clients;
mod share;
mod software;

pub use crate::store::Room;
use crate::store::{CHOICE_MAX, Change, Limits, Store, Sweeper, Visit};
use crate::time::Now;
use crate::types::{Announce, AnnounceReply, Contact, Event, InfoHash, Kind, Refusal, ScrapeEntry};
pub use census::{Census, Listed, ListedPeer, Order, Role, Totals};
use clients::Counting;
pub use clients::{Clients, Share};

/// How many times [`Tracker::prefetch`] wants to see a batch.
pub const PREFETCH_STAGES: usize = crate::store::PREFETCH_STAGES;

/// What the operator may set; swapped whole on reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Seconds until the next announce.
    pub interval_s: u32,
    /// Each client's interval is drawn from `interval_s` ± this, so that clients which came at
    /// once do not come back at once.
    pub interval_jitter_s: u32,
    /// Seconds before which a client should not come back.
    pub min_interval_s: u32,
    /// Peers handed out where the client leaves it to us.
    pub numwant_default: u32,
    /// Most peers in one reply.
    pub numwant_max: u32,
    /// Seconds after which a peer that went silent is forgotten.
    pub peer_age_s_max: u32,
    /// Seconds for which the completed count of an empty torrent is kept.
    pub empty_torrent_age_s_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval_s: 1800,
            interval_jitter_s: 120,
            min_interval_s: 900,
            numwant_default: 50,
            numwant_max: 200,
            peer_age_s_max: 3900, // two intervals and five minutes: one missed announce is forgiven
            empty_torrent_age_s_max: 24 * 3600,
        }
    }
}

/// One worker's view of the tracker.
pub struct Tracker {
    store: Arc<Store>,
    options: arc_swap::Cache<Arc<ArcSwap<Options>>, Arc<Options>>,
    random: Rng,
    sweeper: Sweeper,
    counting: Counting,
}

impl Tracker {
    /// The tracker of `worker` (from 0) of `workers`, which keeps its share of the store tidy.
    /// `seed` feeds the choice of peers; replacing what `options` holds takes effect at once.
    pub fn new(
        store: Arc<Store>,
        options: Arc<ArcSwap<Options>>,
        seed: u64,
        worker: usize,
        workers: usize,
    ) -> Self {
        let sweeper = Sweeper::new(&store, worker, workers);
        let options = arc_swap::Cache::new(options);
        let counting = Counting::default();
        Self { store, options, random: Rng::with_seed(seed), sweeper, counting }
    }

    /// The tracker of a stream worker: it leaves upkeep to the datagram workers.
    pub fn without_upkeep(store: Arc<Store>, options: Arc<ArcSwap<Options>>, seed: u64) -> Self {
        Self::new(store, options, seed, 0, usize::MAX)
    }

    /// This tracker, with the software of its clients counted among those of `clients`.
    #[must_use]
    pub fn counting_in(self, clients: &Clients) -> Self {
        Self { counting: clients.join(), ..self }
    }

    /// Asks for the memory an announce of `info_hash` will need; see [`Store::prefetch`].
    #[inline]
    pub fn prefetch(&self, stage: usize, info_hash: &InfoHash) {
        self.store.prefetch(stage, info_hash);
    }

    /// Applies an announce and writes chosen peers to `room`; says what to tell the client, and how
    /// many bytes of peers of each family stand there: all families together, no more than wanted.
    ///
    /// # Errors
    /// [`Refusal::PortZero`] if the client wants to be a peer that nobody could reach.
    #[inline]
    pub fn announce(
        &mut self,
        now: Now,
        announce: &Announce,
        mut room: Room<'_>,
    ) -> Result<(AnnounceReply, [usize; Kind::ALL.len()]), Refusal> {
        let options = self.options.load();
        let change = change_of(announce);
        if announce.contact == Contact::Port(0) && change != Change::Stopped {
            return Err(Refusal::PortZero);
        }
        if change != Change::Stopped {
            self.counting.count(now, options.interval_s, announce.contact, &announce.peer_id);
        }
        let numwant = announce.numwant.unwrap_or(options.numwant_default).min(options.numwant_max);
        let numwant = (numwant as usize).min(CHOICE_MAX);
        let interval_s = interval_s(options, &mut self.random);
        let min_interval_s = options.min_interval_s.min(interval_s);
        limit(&mut room.v4, numwant * 6);
        limit(&mut room.v6, numwant * 18);
        limit(&mut room.web, numwant * 16);
        let visit = Visit {
            info_hash: &announce.info_hash,
            address: announce.source,
            contact: announce.contact,
            change,
        };
        let mut answer = self.store.announce(now, &visit, &mut room, &mut self.random);
        share::fit(&mut room, &mut answer, numwant, announce.source, &mut self.random);
        let (seeders, leechers) = (answer.seeders, answer.leechers);
        Ok((AnnounceReply { interval_s, min_interval_s, leechers, seeders }, answer.bytes))
    }

    /// One torrent's counts; zeros if it is unknown.
    #[inline]
    pub fn scrape(&self, info_hash: &InfoHash) -> ScrapeEntry {
        self.store.scrape(info_hash)
    }

    /// Seconds of silence after which a peer is forgotten.
    pub fn peer_age_s_max(&mut self) -> u32 {
        self.options.load().peer_age_s_max
    }

    /// A handle for lists of torrents, to be used away from the workers.
    pub fn census(&self) -> Census {
        Census::new(self.store.clone())
    }

    /// One bounded slice of forgetting silent peers.
    #[inline]
    pub fn upkeep(&mut self, now: Now) {
        let options = self.options.load();
        let limits = Limits {
            peer_age_s_max: options.peer_age_s_max,
            empty_torrent_age_s_max: options.empty_torrent_age_s_max,
        };
        self.sweeper.slice(&self.store, now, limits);
    }
}

/// What an announce means for the swarm. A peer is complete if it says so or has nothing left.
#[inline]
fn change_of(announce: &Announce) -> Change {
    let complete = announce.left == 0 || announce.event == Event::Completed;
    match announce.event {
        Event::Stopped => Change::Stopped,
        _ if complete => {
            Change::Present { role: Role::Seeder, completed: announce.event == Event::Completed }
        }
        Event::Paused => Change::Present { role: Role::Paused, completed: false },
        _ => Change::Present { role: Role::Leecher, completed: false },
    }
}

#[inline]
fn interval_s(options: &Options, random: &mut Rng) -> u32 {
    let jitter = options.interval_jitter_s.min(options.interval_s);
    options.interval_s - jitter + random.u32(..=jitter * 2)
}

fn limit(room: &mut &mut [u8], bytes: usize) {
    let whole = std::mem::take(room);
    let end = whole.len().min(bytes);
    *room = &mut whole[..end];
}
