//! How the cap on the process's memory is divided: what it takes anyway, connections, the store.

/// What the process takes before it holds a torrent or a connection: program, stacks, buffers of
/// some workers, the limiter's tables, the store's locks. An idle one has 29 MiB.
const FIXED_BYTES: u64 = 32 << 20;

/// The least that connections are given, however low the cap.
const CONNECTION_BYTES_MIN: u64 = 4 << 20;

/// The least that the store is given, however low the cap.
const STORE_BYTES_MIN: u64 = 8 << 20;

/// The parts of a cap, in resident bytes. Nobody lends what another has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    /// The process without torrents and connections.
    pub(super) fixed: u64,
    /// What all TCP connections hold: buffers, messages, TLS sessions.
    pub(super) connections: u64,
    /// Torrents and peers.
    pub(super) store: u64,
}

impl Division {
    /// The parts of a cap of so many bytes; `None` without one (0).
    pub(super) fn of(cap: u64) -> Option<Self> {
        if cap == 0 {
            return None;
        }
        let left = cap.saturating_sub(FIXED_BYTES);
        let connections = (left / 4).max(CONNECTION_BYTES_MIN);
        let store = left.saturating_sub(connections).max(STORE_BYTES_MIN);
        Some(Self { fixed: FIXED_BYTES, connections, store })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_cap_are_the_cap() {
        assert_eq!(Division::of(0), None);
        for cap in [64, 128, 256, 1024, 65_536].map(|it| it << 20) {
            let it = Division::of(cap).unwrap();
            assert_eq!(it.fixed + it.connections + it.store, cap);
            assert!(it.connections >= CONNECTION_BYTES_MIN && it.store >= 2 * it.connections);
        }
        let least = Division::of(1).unwrap();
        assert_eq!((least.connections, least.store), (CONNECTION_BYTES_MIN, STORE_BYTES_MIN));
    }
}
