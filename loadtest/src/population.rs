//! The peers of each swarm. Everything follows from the plan's seed, so two runs of one plan load
//! any two trackers with the same torrents, peers and roles.
//!
//! A peer is 8 bytes here. Its info-hash, peer id and port are computed when needed: for millions
//! of peers, that is cheaper than the cache misses of stored values.
//!
//! ```text
//! torrent (4) | place among the torrent's peers of one address (2) | life (1) | state (1)
//! ```

use skep::types::{Event, InfoHash, PeerId};

use crate::numbers::{mix, real, whole};
use crate::plan::{Distribution, Plan};
use crate::sources::peer_port;

/// One peer of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Index of the torrent.
    pub(crate) torrent: u32,
    place: u16,
    life: u8,
    state: u8,
}

/// Set for a peer that starts as a seeder.
const BORN_SEEDER: u8 = 1;
/// Set for a peer that has completed.
const COMPLETED: u8 = 2;
/// Set for a peer that was announced to the tracker.
const PRESENT: u8 = 4;

impl Peer {
    /// The first peer of a torrent at its address.
    pub(crate) fn leecher(torrent: u32) -> Self {
        Self { torrent, place: 0, life: 0, state: 0 }
    }

    /// Records that the tracker has no entry of it any more.
    pub(crate) fn forget(&mut self) {
        self.state &= !PRESENT;
    }

    /// Whether it was announced to the tracker and has not left.
    pub(crate) fn is_present(self) -> bool {
        self.state & PRESENT != 0
    }

    /// Whether it is a seeder now.
    pub(crate) fn is_seeder(self) -> bool {
        self.state & (BORN_SEEDER | COMPLETED) != 0
    }

    /// The port that it announces. A replacement has another port than the peer that left: each
    /// peer has two, and uses them in turn.
    pub(crate) fn port(self) -> u16 {
        peer_port(self.torrent, u32::from(self.place) * 2 + u32::from(self.life % 2))
    }

    /// Its peer id. No two peers of the load have the same, and a replacement has a new one.
    pub(crate) fn id(self, seed: u64, socket: u16, index: u32) -> PeerId {
        let mut id = *b"-SL0100-............";
        id[8..10].copy_from_slice(&socket.to_be_bytes());
        id[10..14].copy_from_slice(&index.to_be_bytes());
        id[14] = self.life;
        let noise = mix(seed ^ u64::from(index)).to_be_bytes();
        id[15..].copy_from_slice(&noise[..5]);
        PeerId(id)
    }

    /// The event of its next announce. `luck` is drawn anew for each announce, from 0 to 1.
    pub(crate) fn next_event(self, churn: f64, luck: f64) -> Event {
        if !self.is_present() {
            Event::Started
        } else if luck >= churn {
            Event::None
        } else if self.is_seeder() || luck < churn / 2.0 {
            Event::Stopped
        } else {
            Event::Completed
        }
    }

    /// Updates the peer after an event. A peer that stops is replaced by a new one of the same
    /// role, which has not been announced yet.
    pub(crate) fn live(&mut self, event: Event) {
        match event {
            Event::Stopped => {
                self.state &= BORN_SEEDER;
                self.life = self.life.wrapping_add(1);
            }
            Event::Completed => self.state |= COMPLETED | PRESENT,
            _ => self.state |= PRESENT,
        }
    }
}

/// The info-hash of a torrent: looks random, and is the same in every run.
pub(crate) fn info_hash(seed: u64, torrent: u32) -> InfoHash {
    let root = mix(mix(seed) ^ u64::from(torrent));
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&root.to_be_bytes());
    bytes[8..16].copy_from_slice(&mix(root ^ 1).to_be_bytes());
    bytes[16..].copy_from_slice(&mix(root ^ 2).to_be_bytes()[..4]);
    InfoHash(bytes)
}

/// The number of peers of each torrent. They add up to the plan's peers.
pub(crate) fn swarm_sizes(plan: &Plan) -> Vec<u32> {
    let torrents = plan.torrents;
    let mut sizes = vec![0; torrents as usize];
    match plan.distribution {
        Distribution::Flat => deal(&mut sizes, plan.peers, |_| 1.0),
        Distribution::Tail => {
            let one_each = plan.peers.min(torrents);
            sizes[..one_each as usize].fill(1);
            deal(&mut sizes, plan.peers - one_each, |rank| real(rank + 1).powf(-0.9));
        }
        Distribution::Aquatic => {
            let weight = |it| 0.5 + (6.5 - 500.0 * real(it) / f64::from(torrents)).exp();
            draw(&mut sizes, plan, weight);
        }
    }
    sizes
}

/// Distributes `count` peers by weight, as exactly as whole numbers allow, without randomness.
fn deal(sizes: &mut [u32], count: u32, weight: impl Fn(u64) -> f64) {
    let total: f64 = (0..sizes.len() as u64).map(&weight).sum();
    let (mut sum, mut dealt) = (0.0, 0);
    for (rank, size) in (0..).zip(sizes.iter_mut()) {
        sum += weight(rank);
        let due = whole((f64::from(count) * sum / total).round()).min(u64::from(count));
        let share = u32::try_from(due).unwrap_or(count).saturating_sub(dealt);
        *size += share;
        dealt += share;
    }
    if let Some(first) = sizes.first_mut() {
        *first += count - dealt;
    }
}

/// Lets each peer join a torrent that is drawn by weight.
fn draw(sizes: &mut [u32], plan: &Plan, weight: impl Fn(u64) -> f64) {
    let mut sum = 0.0;
    let sums: Vec<f64> = (0..sizes.len() as u64)
        .map(|value| {
            sum += weight(value);
            sum
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    for _ in 0..plan.peers {
        let drawn = random.f64() * sum;
        let torrent = sums.partition_point(|it| *it <= drawn).min(sizes.len() - 1);
        sizes[torrent] += 1;
    }
}

/// The position of a socket among those with the same address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    /// Its index among the sockets with its address.
    pub(crate) lane: u32,
    /// Number of sockets with its address.
    pub(crate) lanes: u32,
}

/// A swarm has more peers than its sockets have addresses and ports for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a swarm of {peers} peers needs more than {sockets} sockets with addresses of their own: raise \
     --sources, or give a network as --source"
)]
pub(crate) struct SwarmSizeError {
    /// Peers of the swarm.
    pub(crate) peers: u32,
    /// Sockets of the run.
    pub(crate) sockets: usize,
}

/// All peers by socket, each socket's in random order, so that swarms grow interleaved, as in
/// practice.
///
/// # Errors
/// If a swarm has more peers than the sources have ports.
pub(crate) fn populate(plan: &Plan, seats: &[Seat]) -> Result<Vec<Vec<Peer>>, SwarmSizeError> {
    let sockets = seats.len().max(1);
    let mut by_socket: Vec<Vec<Peer>> =
        seats.iter().map(|_| Vec::with_capacity(plan.peers as usize / sockets + 1)).collect();
    let mut random = fastrand::Rng::with_seed(mix(plan.seed));
    for (torrent, size) in (0_u32..).zip(swarm_sizes(plan)) {
        let offset = mix(plan.seed ^ u64::from(torrent).rotate_left(32)) % sockets as u64;
        let offset = usize::try_from(offset).unwrap_or(0);
        for member in 0..size as usize {
            let socket = (offset + member) % sockets;
            let (seat, turn) = (seats[socket], u32::try_from(member / sockets).unwrap_or(u32::MAX));
            let place = turn.saturating_mul(seat.lanes).saturating_add(seat.lane);
            // Each peer has two ports out of 65 534.
            let place = u16::try_from(place).ok().filter(|it| *it < 32_767);
            let place = place.ok_or(SwarmSizeError { peers: size, sockets })?;
            let state = if random.f64() < plan.seeders { BORN_SEEDER } else { 0 };
            by_socket[socket].push(Peer { torrent, place, life: 0, state });
        }
    }
    for peers in &mut by_socket {
        random.shuffle(peers);
    }
    Ok(by_socket)
}

/// Average number of peers in an announce response once all peers are resident, for a tracker that
/// sends no seeders to a seeder and has no caps. A fair limit responder sends this many.
pub(crate) fn peers_per_response(plan: &Plan) -> f64 {
    let wanted = f64::from(plan.numwant);
    let sum: f64 = swarm_sizes(plan)
        .into_iter()
        .filter(|size| *size > 0)
        .map(|size| {
            let others = f64::from(size - 1);
            let to_seeder = wanted.min(others * (1.0 - plan.seeders));
            f64::from(size) * (plan.seeders * to_seeder + (1.0 - plan.seeders) * wanted.min(others))
        })
        .sum();
    sum / f64::from(plan.peers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;
    use std::collections::HashSet;

    fn plan(distribution: Distribution) -> Plan {
        Plan { torrents: 10_000, peers: 20_000, distribution, ..Profile::Canonical.plan() }
    }

    fn seats(count: u32) -> Vec<Seat> {
        (0..count).map(|_| Seat { lane: 0, lanes: 1 }).collect()
    }

    #[test]
    fn sizes_add_up_and_no_torrent_is_empty_where_peers_suffice() {
        for distribution in [Distribution::Tail, Distribution::Flat] {
            let sizes = swarm_sizes(&plan(distribution));
            assert_eq!(sizes.iter().sum::<u32>(), 20_000);
            assert!(sizes.iter().all(|it| *it >= 1), "{distribution:?}");
        }
        let few = Plan { peers: 3, ..plan(Distribution::Tail) };
        assert_eq!(swarm_sizes(&few).iter().sum::<u32>(), 3);
    }

    #[test]
    fn the_tail_is_long() {
        let sizes = swarm_sizes(&plan(Distribution::Tail));
        let tiny = sizes.iter().filter(|it| **it <= 2).count();
        assert!(tiny > 8_500, "{tiny} of 10000 swarms have one or two peers");
        assert!(sizes[0] > 400, "the biggest has {}", sizes[0]);
    }

    #[test]
    fn the_aquatic_skew_has_its_head_and_its_empty_torrents() {
        let plan = Plan { torrents: 100_000, peers: 200_000, ..plan(Distribution::Aquatic) };
        let sizes = swarm_sizes(&plan);
        assert_eq!(sizes.iter().sum::<u32>(), 200_000);
        // Weight 665.6 of about 1.83 N, times 2 N peers: about 727.
        assert!((600..850).contains(&sizes[0]), "{}", sizes[0]);
        let empty = sizes.iter().filter(|it| **it == 0).count();
        assert!((55_000..62_000).contains(&empty), "{empty}");
    }

    #[test]
    fn a_seed_decides_everything() {
        let plan = plan(Distribution::Aquatic);
        let one = populate(&plan, &seats(4)).unwrap();
        assert_eq!(one, populate(&plan, &seats(4)).unwrap());
        let other = Plan { seed: 2, ..plan };
        assert_ne!(one, populate(&other, &seats(4)).unwrap());
        assert_ne!(info_hash(1, 5), info_hash(2, 5));
    }

    #[test]
    fn no_two_peers_of_a_swarm_share_address_and_port() {
        let mut plan = plan(Distribution::Tail);
        plan.torrents = 10;
        // Two sockets share the first address, the third has its own.
        let mut seats = seats(3);
        seats[0].lanes = 2;
        seats[1] = Seat { lane: 1, lanes: 2 };
        let addresses = [0, 0, 1];
        let mut seen = HashSet::new();
        for (peers, address) in populate(&plan, &seats).unwrap().iter().zip(addresses) {
            for peer in peers {
                assert!(seen.insert((peer.torrent, address, peer.port())), "{peer:?}");
            }
        }
        assert_eq!(seen.len(), 20_000);
    }

    #[test]
    fn swarms_too_big_for_the_sources_are_refused() {
        let plan = Plan { torrents: 1, peers: 40_000, ..plan(Distribution::Flat) };
        assert!(populate(&plan, &seats(1)).unwrap_err().to_string().contains("--source"));
        assert!(populate(&plan, &seats(2)).is_ok());
    }

    #[test]
    fn peers_live_start_complete_stop_and_are_replaced() {
        let mut peer = Peer { torrent: 1, place: 3, life: 0, state: 0 };
        let (first_port, first_id) = (peer.port(), peer.id(1, 0, 9));
        assert_eq!(peer.next_event(0.5, 0.1), Event::Started);
        peer.live(Event::Started);
        assert!(peer.is_present() && !peer.is_seeder());
        assert_eq!(peer.next_event(0.5, 0.9), Event::None);
        assert_eq!(peer.next_event(0.5, 0.4), Event::Completed);
        peer.live(Event::Completed);
        assert!(peer.is_seeder());
        assert_eq!(peer.next_event(0.5, 0.4), Event::Stopped);
        peer.live(Event::Stopped);
        assert!(!peer.is_present() && !peer.is_seeder());
        assert_ne!((peer.port(), peer.id(1, 0, 9)), (first_port, first_id));
    }

    #[test]
    fn responses_of_flat_swarms_can_be_foretold() {
        let plan = Plan { torrents: 10, peers: 30, seeders: 0.0, ..plan(Distribution::Flat) };
        assert!((peers_per_response(&plan) - 2.0).abs() < 1e-9);
    }
}
