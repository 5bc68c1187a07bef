//! The store in the plainest terms, and an announce applied to both it and the real one. Shared by
//! the test of random operations and the fuzz target of chosen ones.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fastrand::Rng;
use skep::store::{Change, Limits, Role, Room, Store, TICK_S, Totals, Visit};
use skep::time::Now;
use skep::types::{Family, Scope, ScrapeEntry};

/// When both forget.
pub(crate) const LIMITS: Limits = Limits { peer_age_s_max: 3900, empty_torrent_age_s_max: 7200 };

/// A peer as the model knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) role: Role,
    pub(crate) was_leecher: bool,
    pub(crate) counted: bool,
    pub(crate) announced_s: u64,
}

#[derive(Default)]
pub(crate) struct Torrent {
    pub(crate) peers: BTreeMap<(IpAddr, u16), Known>,
    pub(crate) completed: u32,
    pub(crate) empty_since_s: u64,
}

impl Torrent {
    pub(crate) fn counts(&self) -> ScrapeEntry {
        let count = |it: usize| u32::try_from(it).expect("a model is small");
        let seeders = self.peers.values().filter(|it| it.role == Role::Seeder).count();
        let (seeders, leechers) = (count(seeders), count(self.peers.len() - seeders));
        ScrapeEntry { seeders, leechers, completed: self.completed }
    }
}

/// What the store should do, in the plainest terms.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) torrents: HashMap<[u8; 20], Torrent>,
    pub(crate) completed: u64,
}

impl Model {
    pub(crate) fn announce(&mut self, now: Now, visit: &Visit<'_>) -> ScrapeEntry {
        let torrent = self.torrents.entry(visit.info_hash.0).or_default();
        let key = (visit.address, visit.port);
        let before = torrent.peers.get(&key).copied();
        match visit.change {
            Change::Stopped => {
                torrent.peers.remove(&key);
            }
            Change::Present { role, completed } => {
                let was = before.is_some_and(|it| it.was_leecher);
                let mut counted = before.is_some_and(|it| it.counted);
                if completed && was && !counted {
                    counted = true;
                    torrent.completed += 1;
                    self.completed += 1;
                }
                let was_leecher = was || role != Role::Seeder;
                let announced_s = now.seconds();
                torrent.peers.insert(key, Known { role, was_leecher, counted, announced_s });
            }
        }
        if before.is_some() && torrent.peers.is_empty() {
            torrent.empty_since_s = now.seconds();
        }
        let counts = torrent.counts();
        if torrent.peers.is_empty() && torrent.completed == 0 {
            self.torrents.remove(&visit.info_hash.0);
        }
        counts
    }

    /// Whether a peer may be handed out: of the asker's scope or public, not the asker itself, and
    /// one who wants data if the asker does not.
    pub(crate) fn may_be_handed(
        visit: &Visit<'_>,
        role: Role,
        key: (IpAddr, u16),
        known: &Known,
    ) -> bool {
        let theirs = Scope::of(key.0);
        let shown = theirs == Scope::Public || theirs == Scope::of(visit.address);
        let useful = role == Role::Leecher || known.role == Role::Leecher;
        shown && useful && key != (visit.address, visit.port)
    }

    pub(crate) fn expire(&mut self, now: Now) {
        let tick = |seconds: u64| seconds / u64::from(TICK_S);
        self.torrents.retain(|_, torrent| {
            let had = !torrent.peers.is_empty();
            torrent.peers.retain(|_, known| {
                let ticks = tick(now.seconds()) - tick(known.announced_s);
                ticks.saturating_sub(1) * u64::from(TICK_S) <= u64::from(LIMITS.peer_age_s_max)
            });
            if !torrent.peers.is_empty() {
                return true;
            }
            if had {
                torrent.empty_since_s = now.seconds();
            }
            let kept_s = now.seconds() - torrent.empty_since_s;
            torrent.completed > 0 && kept_s <= u64::from(LIMITS.empty_torrent_age_s_max)
        });
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut sum = Totals { torrents: self.torrents.len() as u64, ..Totals::default() };
        sum.completed = self.completed;
        for (key, known) in self.torrents.values().flat_map(|it| &it.peers) {
            let family = Family::of(key.0) as usize;
            match known.role {
                Role::Seeder => sum.seeders[family] += 1,
                Role::Leecher | Role::Paused => sum.leechers[family] += 1,
            }
        }
        sum
    }
}

/// Peers in compact form, decoded.
pub(crate) fn decode(bytes: &[u8], stride: usize) -> Vec<(IpAddr, u16)> {
    let address = |bytes: &[u8]| match stride {
        6 => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    bytes.chunks(stride).map(|it| (address(&it[..stride - 2]), port(&it[stride - 2..]))).collect()
}

/// Announces to both and compares everything that is told.
pub(crate) fn announce_both(
    store: &Store,
    model: &mut Model,
    now: Now,
    visit: &Visit<'_>,
    random: &mut Rng,
) {
    let (want_v4, want_v6) = (random.usize(..=200), random.usize(..=67));
    let (mut v4, mut v6) = (vec![0; want_v4 * 6], vec![0; want_v6 * 18]);
    let mut room = Room { v4: &mut v4, v6: &mut v6 };
    let answer = store.announce(now, visit, &mut room, random);
    let counts = model.announce(now, visit);
    assert_eq!((answer.seeders, answer.leechers), (counts.seeders, counts.leechers));
    let Change::Present { role, .. } = visit.change else {
        assert_eq!(answer.bytes, [0, 0], "a stop gets no peers");
        return;
    };
    for (family, bytes, want, stride) in [
        (Family::V4, &v4[..answer.bytes[0]], want_v4, 6),
        (Family::V6, &v6[..answer.bytes[1]], want_v6, 18),
    ] {
        let peers = model.torrents.get(&visit.info_hash.0).map(|it| &it.peers).unwrap();
        let fits = |(key, known): &(&(IpAddr, u16), &Known)| {
            Family::of(key.0) == family && Model::may_be_handed(visit, role, **key, known)
        };
        let available = peers.iter().filter(fits).count();
        let mut handed = decode(bytes, stride);
        assert!(handed.iter().all(|it| Model::may_be_handed(visit, role, *it, &peers[it])));
        assert!(handed.iter().all(|it| Family::of(it.0) == family));
        assert_eq!(handed.len(), want.min(available), "exactly as many as there are");
        handed.sort_unstable();
        handed.dedup();
        assert_eq!(handed.len(), want.min(available), "distinct");
    }
}
