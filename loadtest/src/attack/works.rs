//! Requests of honest clients, and requests that measure what is left of a population.

use std::collections::HashMap;

use skep::protocol::udp::client::Response;

use crate::numbers::mix;
use crate::plan::Plan;
use crate::slots::{Kind, Pending};
use crate::sources::peer_port;

use super::crowd::{Ask, Work};

/// Most attempts of a request of [`Filling`] or [`Counting`].
const TRIES_MAX: u8 = 4;

/// Requests that failed and are sent again.
#[derive(Default)]
struct Again {
    items: Vec<u32>,
    failures: HashMap<u32, u8>,
}

impl Again {
    /// Schedules another attempt, unless it has failed too often.
    fn failed(&mut self, item: u32) {
        let failures = self.failures.entry(item).or_default();
        *failures += 1;
        if *failures < TRIES_MAX {
            self.items.push(item);
        }
    }
}

/// Clients that announce repeatedly, each the same peer in the same torrent.
pub(crate) struct Honest {
    /// Seed of the torrents.
    pub(crate) seed: u64,
    /// Number of torrents.
    pub(crate) torrents: u32,
    /// Peers wanted per announce.
    pub(crate) numwant: u16,
}

impl Work for Honest {
    fn next(&mut self, turn: u16) -> Option<Ask> {
        let torrent = u32::from(turn) % self.torrents;
        Some(Ask {
            kind: Kind::Announce,
            torrent: (self.seed, torrent),
            count: self.numwant,
            port: peer_port(torrent, u32::from(turn)),
            ..Ask::connect(turn)
        })
    }
}

/// Announces every peer of a population until it gets a response.
pub(crate) struct Filling {
    seed: u64,
    torrents: u32,
    peers: u32,
    sources: u32,
    next: u32,
    again: Again,
    /// Peers whose announce was answered.
    pub(crate) answered: u64,
}

impl Filling {
    /// The plan's torrents and peers, from `sources` sources.
    pub(crate) fn new(plan: &Plan, sources: u16) -> Self {
        Self {
            seed: plan.seed,
            torrents: plan.torrents,
            peers: plan.peers,
            sources: u32::from(sources),
            next: 0,
            again: Again::default(),
            answered: 0,
        }
    }
}

impl Work for Filling {
    fn next(&mut self, _turn: u16) -> Option<Ask> {
        // New requests first, so that a second attempt comes later.
        let item = if self.next < self.peers {
            self.next += 1;
            self.next - 1
        } else {
            self.again.items.pop()?
        };
        let (torrent, member) = (item % self.torrents, item / self.torrents);
        let source = (torrent + member) % self.sources;
        Some(Ask {
            kind: Kind::Announce,
            item,
            torrent: (self.seed, torrent),
            // Enough peers for an honest announce, few enough to be fast.
            count: 10,
            port: peer_port(torrent, member),
            ..Ask::connect(u16::try_from(source).unwrap_or(0))
        })
    }

    fn answered(&mut self, asked: &Pending, _response: &Response<'_>) {
        self.answered += u64::from(asked.kind == Kind::Announce);
    }

    fn failed(&mut self, asked: &Pending) {
        if asked.kind == Kind::Announce {
            self.again.failed(asked.item);
        }
    }
}

/// Scrapes every torrent of a population until it gets a response.
pub(crate) struct Counting {
    seed: u64,
    torrents: u32,
    next: u32,
    again: Again,
    /// Peers that the tracker reports for them.
    pub(crate) peers: u64,
    /// Torrents that were scraped successfully.
    pub(crate) torrents_seen: u64,
}

/// Most info-hashes in a scrape.
pub(crate) const SCRAPE_HASHES_MAX: u16 = 74;

impl Counting {
    /// The plan's torrents.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            seed: plan.seed,
            torrents: plan.torrents,
            next: 0,
            again: Again::default(),
            peers: 0,
            torrents_seen: 0,
        }
    }
}

impl Work for Counting {
    fn next(&mut self, turn: u16) -> Option<Ask> {
        let first = if self.next < self.torrents {
            self.next += u32::from(SCRAPE_HASHES_MAX);
            self.next - u32::from(SCRAPE_HASHES_MAX)
        } else {
            self.again.items.pop()?
        };
        let count = (self.torrents - first).min(SCRAPE_HASHES_MAX.into());
        Some(Ask {
            kind: Kind::Scrape,
            item: first,
            torrent: (self.seed, first),
            count: u16::try_from(count).unwrap_or(SCRAPE_HASHES_MAX),
            ..Ask::connect(turn)
        })
    }

    fn answered(&mut self, asked: &Pending, response: &Response<'_>) {
        if let Response::Scraped(entries) = response {
            let peers = entries.iter().map(|it| u64::from(it.seeders) + u64::from(it.leechers));
            self.peers += peers.sum::<u64>();
            self.torrents_seen += u64::from(asked.count);
        }
    }

    fn failed(&mut self, asked: &Pending) {
        if asked.kind == Kind::Scrape {
            self.again.failed(asked.item);
        }
    }
}

/// Requests of attackers that have a connection id of their own.
pub(crate) struct Attacking {
    /// Announces, or scrapes of the most torrents that fit.
    pub(crate) kind: Kind,
    /// Seed of the torrents.
    pub(crate) seed: u64,
    /// Number of torrents.
    pub(crate) torrents: u32,
    /// Peers wanted per announce.
    pub(crate) numwant: u16,
    /// Requests so far.
    pub(crate) asked: u32,
}

impl Work for Attacking {
    fn next(&mut self, turn: u16) -> Option<Ask> {
        self.asked = self.asked.wrapping_add(1);
        let drawn = mix(u64::from(self.asked) << 16 | u64::from(turn));
        let most = SCRAPE_HASHES_MAX.min(u16::try_from(self.torrents).unwrap_or(u16::MAX));
        let count = if self.kind == Kind::Scrape { most } else { 1 };
        let torrents = u64::from(self.torrents - u32::from(count) + 1);
        let torrent = u32::try_from(drawn % torrents).unwrap_or(0);
        Some(Ask {
            kind: self.kind,
            torrent: (self.seed, torrent),
            count: if self.kind == Kind::Scrape { count } else { self.numwant },
            port: peer_port(torrent, u32::from(turn)),
            ..Ask::connect(turn)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;
    use std::collections::HashSet;

    fn pending(ask: &Ask) -> Pending {
        Pending {
            intended_ns: 0,
            sent_ns: 0,
            item: ask.item,
            client: ask.source,
            kind: ask.kind,
            count: ask.count,
            port: ask.port,
        }
    }

    #[test]
    fn filling_asks_for_each_peer_once_and_for_the_lost_again() {
        let plan = Plan { torrents: 10, peers: 35, ..Profile::Smoke.plan() };
        let mut filling = Filling::new(&plan, 4);
        let asks: Vec<Ask> = std::iter::from_fn(|| filling.next(0)).collect();
        let peers: HashSet<_> = asks.iter().map(|it| (it.torrent.1, it.source, it.port)).collect();
        assert_eq!((asks.len(), peers.len()), (35, 35));
        filling.failed(&pending(&asks[7]));
        let again = filling.next(0).unwrap();
        assert_eq!((again.item, again.source, again.port), (7, asks[7].source, asks[7].port));
        assert!(filling.next(0).is_none());
        for _ in 1..TRIES_MAX {
            filling.failed(&pending(&asks[7]));
        }
        let more = std::iter::from_fn(|| filling.next(0)).count();
        assert_eq!(more, usize::from(TRIES_MAX) - 2, "given up in the end");
    }

    #[test]
    fn counting_covers_every_torrent_once() {
        let plan = Plan { torrents: 100, ..Profile::Smoke.plan() };
        let mut counting = Counting::new(&plan);
        let parts: Vec<_> = std::iter::from_fn(|| counting.next(0)).collect();
        let parts: Vec<_> = parts.iter().map(|it| (it.torrent.1, it.count)).collect();
        assert_eq!(parts, [(0, 74), (74, 26)]);
    }

    #[test]
    fn attackers_stay_among_the_torrents() {
        for (kind, torrents) in [(Kind::Scrape, 80), (Kind::Scrape, 3), (Kind::Announce, 3)] {
            let mut attacking = Attacking { kind, seed: 1, torrents, numwant: 50, asked: 0 };
            for _ in 0..100 {
                let ask = attacking.next(1).unwrap();
                let hashes = if kind == Kind::Scrape { ask.count.into() } else { 1 };
                assert!(ask.torrent.1 + hashes <= torrents);
            }
        }
    }
}
