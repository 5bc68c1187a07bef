//! Operations on the store and on the naive model of `tests/models/store.rs`: both must return the
//! same at every step.
//!
//! ```text
//! input      { torrent (1) | address (1) | port (1) | operation (1) } × n
//! operation  2..0 what the peer does, or: 5 time passes, 6 a sweep, 7 a scrape and all lists
//!            6 the peer's host is under the cap; a sweep: the budget is `port` KiB from now on
//!            7 the peer is a WebRTC one, named by address and port
//!            3 the peer announced to another node; 4 its download was counted there, in the state
//!            of `port`
//! ```
#![no_main]

#[allow(dead_code, reason = "the tests use a part of it, this target another")]
#[path = "../../tests/models/store.rs"]
mod model;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use libfuzzer_sys::fuzz_target;
use model::{LIMITS, Model, Torrent, announce_both, compare_lists, merge_both};
use skep::store::{
    Budget, DeltaChange, Options, PeerAnnounce, PeerChange, PeerDelta, PeerState, Role, Store,
    Sweeper,
};
use skep::time::Now;
use skep::types::{Contact, InfoHash, WebPeer};

/// The address for a byte: both families, every scope.
fn address(byte: u8) -> IpAddr {
    let low = byte & 0x1f;
    match byte >> 5 {
        0 => Ipv4Addr::new(127, 0, 0, low).into(),
        1 => Ipv4Addr::new(10, 0, 0, low).into(),
        2 => Ipv6Addr::LOCALHOST.into(),
        3 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low.into()).into(),
        4 => Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, low.into()).into(),
        _ => Ipv4Addr::new(8, 8, byte >> 5, low).into(),
    }
}

/// How the peer is contacted.
fn contact(from: u8, port: u8, operation: u8) -> Contact {
    if operation & 0x80 == 0 {
        return Contact::Port(1 + u16::from(port));
    }
    let mut name = [0; 16];
    (name[0], name[15]) = (from, port);
    Contact::Web(WebPeer(name))
}

fn change(operation: u8) -> Option<PeerChange> {
    let present = |role, completed| Some(PeerChange::Present { role, completed });
    match operation & 7 {
        0 => present(Role::Leecher, false),
        1 => present(Role::Seeder, false),
        2 => present(Role::Seeder, true),
        3 => present(Role::Paused, false),
        4 => Some(PeerChange::Stopped),
        _ => None,
    }
}

/// The change that another node sends, if the operation is one.
fn delta(visit: &PeerAnnounce<'_>, operation: u8) -> Option<PeerDelta> {
    let Contact::Port(port) = visit.contact else { return None };
    if operation & 8 == 0 {
        return None;
    }
    let state = PeerState::new(port.to_be_bytes()[1] % PeerState::STATES)?;
    let change = match visit.change {
        PeerChange::Stopped => DeltaChange::Left,
        _ => DeltaChange::Present { state, completed: operation & 0x10 != 0 },
    };
    let (info_hash, address, is_exempt) = (*visit.info_hash, visit.address, !visit.capped);
    Some(PeerDelta { info_hash, address, port, change, is_exempt })
}

/// Most seconds without a sweep. Stamps wrap after nine hours, and the server sweeps every minute.
const SWEEP_S: u64 = 3 * 3600;

/// The store and the model at one moment.
struct Pair {
    store: Store,
    model: Model,
    now: Now,
    swept: Now,
}

impl Pair {
    fn sweep(&mut self) {
        Sweeper::new(&self.store, 0, 1).pass(&self.store, self.now, LIMITS);
        self.model.expire(&self.store, self.now);
        self.swept = self.now;
        assert_eq!(self.store.totals(), self.model.totals());
    }

    fn pass_time(&mut self, seconds: u64) {
        self.now = self.now.plus_s(seconds);
        if self.now.seconds() - self.swept.seconds() > SWEEP_S {
            self.sweep();
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let store = Store::new(Options { shards: 2, seed: Some(1) });
    let now = Now::from_s(1_800_000_000);
    let mut pair = Pair { store, model: Model::default(), now, swept: now };
    let mut random = Rng::with_seed(1);
    for &[torrent, from, port, operation] in input.as_chunks::<4>().0 {
        let info_hash = InfoHash([torrent & 3; 20]);
        match (change(operation), operation & 7) {
            (Some(change), _) => {
                let contact = contact(from, port, operation);
                let (info_hash, address) = (&info_hash, address(from));
                let capped = operation & 0x40 != 0;
                let visit = PeerAnnounce { info_hash, address, contact, change, capped };
                let Pair { store, model, now, .. } = &mut pair;
                match delta(&visit, operation) {
                    Some(delta) => merge_both(store, model, *now, &delta, &mut random),
                    None => announce_both(store, model, *now, &visit, &mut random),
                }
            }
            (None, 5) => pair.pass_time(u64::from(port) * 16),
            (None, 6) => {
                if operation & 0x40 != 0 {
                    let bytes_max = u64::from(port) * 1024;
                    pair.store.allow(Budget { bytes_max, ..Budget::default() });
                }
                pair.sweep();
            }
            (None, _) => {
                let counts = pair.model.torrents.get(&info_hash).map(Torrent::counts);
                assert_eq!(pair.store.scrape(&info_hash), counts.unwrap_or_default());
                compare_lists(&pair.store, &pair.model, pair.now, &mut random);
            }
        }
    }
});
