//! A whole tracker in virtual time: every front end, one store, upkeep, limits and snapshots; a
//! network that loses, doubles, delays and reorders; clients that come, stay, complete, fall silent
//! and come back; restarts, crashes, pauses, clocks that step, keys that roll over. One seed makes
//! one run. Whatever the tracker says is held against a naive model at the moment it says it.
//!
//! Time: a process reads the wall clock once, when it begins, and the monotonic clock after that.
//! So a step of the wall clock changes nothing until the next restart, and then all ages at once.
//! A pause (a stopped process, a sleeping host) shows as a jump of time with everything late.

mod clients;
mod judge;
mod saves;
mod site;
mod streams;
mod swarms;
mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use fastrand::Rng;
use skep::counters::Counter;
use skep::frontend::Responder as _;
use skep::frontend::ws::{PeerMessage, SocketRoute};
use skep::time::Now;
use skep::types::{Family, InfoHash};

use clients::{CLIENTS, Client};
pub(crate) use judge::{Invariant, Violation};
use judge::{Judged, hold};
use saves::{Kept, Saving};
use site::{Site, ids_of};
use swarms::Swarms;
use udp::Issued;

/// Nanoseconds in a second.
const S: u64 = 1_000_000_000;
/// Seconds between two rounds of upkeep.
const UPKEEP_S: u64 = 4;
/// How long a run is, in virtual seconds.
const RUN_S: u64 = 4 * 3600;
/// Everything is compared once in so many events.
const COMPARE_EVERY: u64 = 40;
/// Who asks for too much; no other address is near.
const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(99, 9, 9, 9));

/// What happens at some moment.
enum Happening {
    Wake(usize, u64),
    /// Reaches the tracker.
    Datagram(SocketAddr, Vec<u8>),
    /// Reaches a client.
    Response(SocketAddr, Vec<u8>),
    Mail(SocketRoute, Box<PeerMessage>),
    Close(u32),
    Upkeep,
    Save,
    SaveOn,
    /// The process ends; whether in order.
    End(bool),
    Begin(bool),
    /// In the life of that number.
    Restore(u64),
    Rollover,
    ClockStep,
    Pause,
}

/// A fault put between the tracker and those who judge it: what it breaks has to be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Nobody sweeps.
    NoUpkeep,
    /// A restart forgets the keys.
    FreshKeys,
    /// A restart takes the snapshot before the last one.
    OldSnapshot,
    /// Connects are answered with a byte more.
    LongResponses,
    /// Stops over UDP are taken for announces.
    StopsUnheard,
    /// The second peer of a response is the first one again.
    PeersTwice,
    /// The last peer of a response is missing.
    PeersLeftOut,
    /// The first peer of a response is the asker.
    AskerHanded,
    /// The first peer of a response is a private address.
    PrivateHanded,
    /// The first peer of a response never announced.
    StrangerHanded,
    /// What is no request is answered.
    NoiseAnswered,
    /// What is dropped is not counted.
    DropsUncounted,
}

/// What a run has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Datagrams that this life of the tracker was shown, by family.
    datagrams: [u64; 2],
    /// Peers handed out.
    pub(crate) handed: u64,
    /// What else happened, and how often.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// All of it in order, as one number.
    pub(crate) trace: u64,
}

impl Tally {
    fn note(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    fn add(&mut self, what: &'static str, count: u64) {
        *self.events.entry(what).or_default() += count;
    }
}

pub(crate) struct World {
    seed: u64,
    sabotage: Option<Sabotage>,
    random: Rng,
    mono_ns: u64,
    /// Wall clock less monotonic clock.
    ahead_ns: i64,
    plans: BTreeMap<(u64, u64), Happening>,
    planned: u64,
    site: Site,
    lives: u64,
    is_up: bool,
    is_restored: bool,
    swarms: Swarms,
    issued: Issued,
    /// The active key, and the one accepted as well.
    keys: (u8, Option<u8>),
    clients: Vec<Client>,
    sockets_opened: u32,
    /// The socket that a WebRTC peer announced on last.
    web_routes: BTreeMap<(InfoHash, usize), u32>,
    /// Sockets and the torrents they speak for.
    web_spoken: BTreeSet<(u32, InfoHash)>,
    saving: Option<Saving>,
    latest: Option<Kept>,
    previous: Option<Kept>,
    tally: Tally,
}

/// Runs one seed to its end.
///
/// # Errors
/// The first invariant that does not hold, with the moment.
pub(crate) fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Tally, Violation> {
    let mut world = World::new(seed, sabotage);
    world.run().map_err(|violation| {
        let what = format!("after {} s: {}", world.mono_ns / S, violation.what);
        Violation { what, ..violation }
    })?;
    Ok(world.tally)
}

impl World {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut random = Rng::with_seed(seed);
        let ahead_ns = 1_800_000_000_000_000_000;
        let now = Now::from_ns(1_800_000_000 * S);
        let clients = (0..CLIENTS).map(|it| Client::new(it, &mut random)).collect();
        let mut world = Self {
            seed,
            sabotage,
            random,
            mono_ns: 0,
            ahead_ns,
            plans: BTreeMap::new(),
            planned: 0,
            site: Site::new(seed, (1, None), ahead_ns, now),
            lives: 0,
            is_up: true,
            is_restored: true,
            swarms: Swarms::default(),
            issued: Issued::default(),
            keys: (1, None),
            clients,
            sockets_opened: 0,
            web_routes: BTreeMap::new(),
            web_spoken: BTreeSet::new(),
            saving: None,
            latest: None,
            previous: None,
            tally: Tally::default(),
        };
        for client in 0..CLIENTS {
            world.sleep(client, 60);
        }
        world.plan_in_ms(0, Happening::Upkeep);
        world.plan_in_ms(100_000, Happening::Save);
        for what in [Happening::End(true), Happening::End(false), Happening::Rollover] {
            world.plan_some_time(what);
        }
        world.plan_some_time(Happening::ClockStep);
        world.plan_some_time(Happening::Pause);
        world
    }

    /// The moment as the tracker has it.
    fn now(&self) -> Now {
        Now::from_ns(self.mono_ns.wrapping_add_signed(self.site.ahead_ns))
    }

    fn plan_in_ms(&mut self, ms: u64, what: Happening) {
        self.planned += 1;
        self.plans.insert((self.mono_ns + ms * 1_000_000, self.planned), what);
    }

    /// Plans what happens a few times in a run.
    fn plan_some_time(&mut self, what: Happening) {
        let ms = self.random.u64(..2 * RUN_S / 3 * 1000);
        self.plan_in_ms(ms, what);
    }

    /// Sends something over a bad network.
    fn transmit(&mut self, what: impl Fn() -> Happening) {
        let copies = match self.random.u8(..20) {
            0 | 1 => 0,
            2 | 3 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let longest_ms = match self.random.u8(..50) {
                0 => 400_000,
                1..=4 => 20_000,
                _ => 500,
            };
            let ms = self.random.u64(5..longest_ms);
            self.plan_in_ms(ms, what());
        }
    }

    fn run(&mut self) -> Judged {
        let mut hasher = DefaultHasher::new();
        let mut events = 0_u64;
        while let Some(((at_ns, number), what)) = self.plans.pop_first() {
            if at_ns > RUN_S * S {
                break;
            }
            self.mono_ns = self.mono_ns.max(at_ns);
            self.happen(what)?;
            (self.mono_ns, number, self.tally.handed).hash(&mut hasher);
            events += 1;
            if events.is_multiple_of(COMPARE_EVERY) {
                self.compare_everything()?;
            }
        }
        self.tally.add("forgotten", self.swarms.forgotten);
        self.tally.trace = hasher.finish();
        self.compare_everything()?;
        self.judge_counts()
    }

    fn happen(&mut self, what: Happening) -> Judged {
        match what {
            Happening::Wake(client, turn) if self.clients[client].turn == turn => {
                return self.wake(client);
            }
            Happening::Datagram(source, bytes) if self.is_up => {
                if let Some(response) = self.handle_datagram(source, &bytes)? {
                    self.transmit(|| Happening::Response(source, response.clone()));
                }
            }
            Happening::Wake(..) | Happening::Datagram(..) => {}
            Happening::Response(address, bytes) => {
                let client = self.clients.iter().position(|it| it.address == address);
                client.into_iter().for_each(|it| self.hear(it, &bytes));
            }
            Happening::Mail(route, mail) => return self.handle_mail(route, *mail),
            Happening::Close(slot) => return self.close_socket(slot),
            Happening::Upkeep => self.upkeep(),
            Happening::Save => return self.begin_save(),
            Happening::SaveOn => return self.save_on(),
            Happening::End(is_clean) => {
                self.plan_some_time(Happening::End(is_clean));
                return self.end(is_clean);
            }
            Happening::Begin(was_clean) => return self.begin(was_clean),
            Happening::Restore(life) => {
                if self.lives == life && self.is_up && !self.is_restored {
                    return self.restore();
                }
            }
            Happening::Rollover => self.roll_over(),
            Happening::ClockStep => self.step_clock(),
            Happening::Pause => {
                self.pause();
                self.plan_some_time(Happening::Pause);
            }
        }
        Ok(())
    }

    fn upkeep(&mut self) {
        let now = self.now();
        if self.is_up && self.sabotage != Some(Sabotage::NoUpkeep) {
            self.site.udp.iter_mut().for_each(|it| it.upkeep(now));
            self.tend_sockets();
        }
        self.plan_in_ms(UPKEEP_S * 1000, Happening::Upkeep);
    }

    /// The next step of replacing the key: all nodes know the new one before any uses it, and the
    /// old one goes when its last id has run out.
    fn roll_over(&mut self) {
        let wait_s = match self.keys {
            (active, None) => {
                self.keys = (active, Some(active.wrapping_add(1)));
                60
            }
            (active, Some(next)) if next == active.wrapping_add(1) => {
                self.keys = (next, Some(active));
                200
            }
            (active, Some(_)) => {
                self.keys = (active, None);
                self.tally.note("key rollovers");
                self.random.u64(600..6000)
            }
        };
        self.site.ids.store(Arc::new(ids_of(self.keys)));
        self.plan_in_ms(wait_s * 1000, Happening::Rollover);
    }

    /// Somebody sets the clock, forward or back.
    fn step_clock(&mut self) {
        let step_ns = [1, 60, 600, 10_000][self.random.usize(..4)] * 1_000_000_000;
        self.ahead_ns += if self.random.bool() { step_ns } else { -step_ns };
        self.tally.note("clock steps");
        self.plan_some_time(Happening::ClockStep);
    }

    fn compare(&mut self, torrent: &InfoHash) -> Judged {
        let (now, since_s) = (self.now(), self.site.swept_since_s);
        self.swarms.compare(&self.site.store, torrent, now, since_s)
    }

    fn compare_everything(&mut self) -> Judged {
        if !self.is_up {
            return Ok(());
        }
        let (now, since_s) = (self.now(), self.site.swept_since_s);
        self.swarms.compare_all(&self.site.store, now, since_s)
    }

    /// What was received is what was answered, refused or dropped, each once.
    fn judge_counts(&self) -> Judged {
        for family in Family::ALL {
            let (mut received, mut met) = (0, 0);
            for counters in self.site.counters.iter().map(|it| it.datagrams(family)) {
                received += counters.received.get();
                let all =
                    counters.answered.iter().chain(&counters.refused).chain(&counters.dropped);
                met += all.map(Counter::get).sum::<u64>();
            }
            let shown = self.tally.datagrams[family as usize];
            hold(received == shown && received == met, Invariant::CountsAddUp, || {
                format!("{received} of {shown} {family:?} datagrams, {met} met")
            })?;
        }
        Ok(())
    }
}
