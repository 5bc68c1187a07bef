//! Two nodes: what the announces at one of them send makes the other's store equal. Seeds are
//! printed: `SEED=n cargo test --test store replication` runs one again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use fastrand::Rng;
use skep::store::{MergeResult, Options, PeerBuffers, Store, TICK_S};
use skep::time::Now;
use skep::tracker::{DeltaReceiver, Tracker, delta_ring};
use skep::types::{Announce, Contact, Event, InfoHash, PeerId};

use super::snapshot_model::exported;

/// The longest that a copy is older than its peer: a period without renewals, and a tick.
const BEHIND_S_MAX: u64 = 600 + TICK_S as u64;

struct Pair {
    tracker: Tracker,
    receiver: DeltaReceiver,
    here: Arc<Store>,
    there: Store,
    now: Now,
    random: Rng,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let (sender, receiver) = delta_ring(4096);
        let here = Arc::new(Store::new(Options { shards: 4, seed: Some(seed) }));
        let there = Store::new(Options { shards: 8, seed: Some(!seed) });
        let tracker = Tracker::without_upkeep(here.clone(), Arc::default(), seed)
            .with_deltas(sender.with_private_peers(true));
        let (now, random) = (Now::from_s(1_800_000_000), Rng::with_seed(seed));
        Self { tracker, receiver, here, there, now, random }
    }

    /// One announce of any peer to the first node. Swarms have up to `addresses` peers.
    fn announce_any(&mut self, addresses: u32) {
        let random = &mut self.random;
        let torrent = random.u8(..12).min(random.u8(..12));
        let event = match random.u8(..12) {
            0 | 1 => Event::Stopped,
            2 => Event::Completed,
            3 => Event::Paused,
            4 => Event::Started,
            _ => Event::None,
        };
        // The first torrent is popular, the others are small and become empty at times.
        let number = if torrent == 0 { random.u32(..addresses) } else { random.u32(..8) };
        let mut announce = Announce {
            info_hash: InfoHash([torrent; 20]),
            source: address(number),
            address_override: None,
            contact: Contact::Port(1 + random.u16(..3)), // with the first none is accepted
            peer_id: PeerId([1; 20]),
            left: random.u64(..3).min(1),
            event,
            numwant: Some(0),
        };
        let room = PeerBuffers::default();
        self.tracker.announce(self.now, &mut announce, &mut (), room).unwrap();
    }

    /// The second node takes what the first has sent, or a part of it.
    fn replicate(&mut self, records_max: usize) {
        let Self { receiver, there, now, random, .. } = self;
        receiver.drain(records_max, |delta| {
            assert_eq!(there.merge(*now, delta, random), MergeResult::Applied, "{delta:?}");
        });
        assert_eq!(receiver.lost(), 0);
    }

    /// Both stores are equal, and the second one's copies are not much older.
    fn compare(&mut self) {
        self.replicate(usize::MAX);
        let Self { here, there, now, .. } = self;
        assert_eq!(here.totals(), there.totals());
        let all = here.torrents_after(None, 100, |_| true);
        assert_eq!(all, there.torrents_after(None, 100, |_| true));
        let [mine, copied] = [&**here, there].map(|store| states(store, *now));
        assert!(mine.keys().eq(copied.keys()));
        for (peer, (state, age_s)) in &mine {
            let (copied_state, copied_age_s) = copied[peer];
            assert_eq!(*state, copied_state, "{peer:?}");
            let behind_s = u64::from(copied_age_s).saturating_sub(u64::from(*age_s));
            assert!(behind_s <= BEHIND_S_MAX, "{peer:?}: {behind_s}");
        }
    }
}

/// The `number`th address: both families, some of them private or of this host.
fn address(number: u32) -> IpAddr {
    match number % 16 {
        0 => Ipv4Addr::from(0x0a00_0000 + number).into(),
        1 => Ipv6Addr::LOCALHOST.into(),
        2..=5 => Ipv6Addr::from((0x2600_u128 << 112) + (u128::from(number) << 64) + 1).into(),
        _ => Ipv4Addr::from(0x0800_0000 + number).into(),
    }
}

/// Every peer by torrent and endpoint: its state and age.
fn states(store: &Store, at: Now) -> BTreeMap<(InfoHash, Vec<u8>), (u8, u16)> {
    let mut states = BTreeMap::new();
    for (info_hash, (_, _, v4, v6)) in exported(store, at) {
        let v4 = v4.iter().map(|it| (it.endpoint.to_vec(), (it.state, it.age_s())));
        let v6 = v6.iter().map(|it| (it.endpoint.to_vec(), (it.state, it.age_s())));
        states.extend(v4.chain(v6).map(|(endpoint, state)| ((info_hash, endpoint), state)));
    }
    states
}

#[test]
fn changes_in_order_make_another_store_equal() {
    let seeds = std::env::var("SEED");
    let seeds = seeds.map_or_else(|_| vec![1, 2, 3, 4], |seed| vec![seed.parse().unwrap()]);
    for seed in seeds {
        println!("SEED={seed}");
        let mut pair = Pair::new(seed);
        let (mut most, mut sent) = (0, 0);
        for step in 0..60_000_u32 {
            // From blocks to the large layout.
            pair.announce_any(if step < 5_000 { 12 } else { 2_000 });
            // Six hours at most, as nobody is swept.
            if pair.random.u8(..20) == 0 {
                pair.now = pair.now.plus_s(pair.random.u64(..10));
            }
            if pair.random.u8(..50) == 0 {
                let records_max = pair.random.usize(..200);
                pair.replicate(records_max);
                sent += 1;
            }
            if step % 3_000 == 0 {
                pair.compare();
                most = most.max(states(&pair.there, pair.now).len());
            }
        }
        pair.compare();
        let totals = pair.there.totals();
        assert!(most > 1_000 && sent > 100 && totals.completed > 500, "{most} {totals:?}");
    }
}
