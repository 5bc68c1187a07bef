//! Peers that left while this node joins: the swarms that it is sent were copied before, in part,
//! and would bring them back.

use std::collections::HashSet;
use std::net::IpAddr;

use ahash::RandomState;

use crate::store::{DeltaChange, PeerDelta};
use crate::types::InfoHash;

/// The most leaves that are remembered, some 50 MB. Peers that leave after that stay in their
/// swarms until they expire.
const LEAVES_MAX: usize = 900_000;

/// Torrent, address and port.
type Key<const ADDRESS: usize> = ([u8; 20], [u8; ADDRESS], [u8; 2]);

/// Peers that left.
#[derive(Default)]
pub(super) struct Leaves {
    v4: HashSet<Key<4>, RandomState>,
    v6: HashSet<Key<16>, RandomState>,
    forgotten: u64,
}

impl Leaves {
    /// Notes a change: a peer that left, or one that is back.
    pub(super) fn note(&mut self, delta: &PeerDelta) {
        let has_left = delta.change == DeltaChange::Left;
        if has_left && self.v4.len() + self.v6.len() >= LEAVES_MAX {
            self.forgotten += 1;
            return;
        }
        let (InfoHash(hash), port) = (delta.info_hash, delta.port.to_be_bytes());
        match delta.address {
            IpAddr::V4(address) => set(&mut self.v4, (hash, address.octets(), port), has_left),
            IpAddr::V6(address) => set(&mut self.v6, (hash, address.octets(), port), has_left),
        }
    }

    /// All of them; none are remembered after that.
    pub(super) fn take(&mut self) -> impl Iterator<Item = PeerDelta> + use<> {
        let Self { v4, v6, .. } = std::mem::take(self);
        let v4 = v4.into_iter().map(|(hash, address, port)| left(hash, address.into(), port));
        v4.chain(v6.into_iter().map(|(hash, address, port)| left(hash, address.into(), port)))
    }

    /// Leaves that were not remembered.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

fn set<const ADDRESS: usize>(
    set: &mut HashSet<Key<ADDRESS>, RandomState>,
    key: Key<ADDRESS>,
    has_left: bool,
) {
    if has_left {
        set.insert(key);
    } else if !set.is_empty() {
        set.remove(&key);
    }
}

fn left(hash: [u8; 20], address: IpAddr, port: [u8; 2]) -> PeerDelta {
    PeerDelta {
        info_hash: InfoHash(hash),
        address,
        port: u16::from_be_bytes(port),
        change: DeltaChange::Left,
        is_exempt: true,
    }
}
