//! Permits of connections to the admin listener, and which connection is closed if there are not
//! enough.
//!
//! | kind | which connections | permits | of one source |
//! |---|---|---|---|
//! | newcomer | has sent no complete head | 64 | 32 |
//! | probe | last request was for /livez, /readyz or /startupz | 16 | 16 |
//! | other | last request was for another path | 64 | 32 |
//!
//! No connection waits for a permit: it is accepted at once. If its kind or its source has no
//! permit left, the connection among them whose client has kept skep waiting longest (for a head, a
//! body, or to receive a response) is closed. A connection whose request is being handled is not
//! closed; if there are only such, the new request is refused. A flood of silent connections, of
//! requests without their bodies, or of whole requests therefore only affects connections of its
//! own kind and up to half of the permits for its own source. A supervisor's probe always gets a
//! permit.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The kind of a connection, by its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PermitKind {
    /// It has sent no request yet.
    Newcomer,
    /// A probe of a supervisor.
    Probe,
    /// Any other request.
    Other,
}

impl PermitKind {
    /// The kind of a request for this path.
    pub(crate) fn of(path: &str) -> Self {
        let is_probe = ["/livez", "/readyz", "/startupz"].contains(&path);
        if is_probe { Self::Probe } else { Self::Other }
    }

    /// Most connections of this kind: in all, and of one source.
    fn permits_max(self) -> (usize, usize) {
        match self {
            Self::Newcomer | Self::Other => (64, 32),
            Self::Probe => (16, 16),
        }
    }
}

/// All connections.
#[derive(Default)]
pub(crate) struct AdminConnections {
    table: Mutex<PermitTable>,
    closed: AtomicU64,
}

#[derive(Default)]
struct PermitTable {
    entries: HashMap<u64, PermitEntry>,
    /// Counts events, to order them.
    moment: u64,
}

struct PermitEntry {
    kind: PermitKind,
    source: IpAddr,
    /// Since when skep waits for the client; `None` while a request is being handled.
    waited_for: Option<u64>,
    leave: Arc<Notify>,
}

impl AdminConnections {
    /// A permit for a connection that was just accepted.
    pub(crate) fn enter(self: &Arc<Self>, from: SocketAddr) -> ConnectionPermit {
        let source = source_of(from.ip());
        let mut table = self.table();
        // There is always one to close: skep waits for every newcomer.
        self.make_room(&mut table, PermitKind::Newcomer, source);
        let id = table.next_moment();
        let leave = Arc::new(Notify::new());
        let entry = PermitEntry {
            kind: PermitKind::Newcomer,
            source,
            waited_for: Some(id),
            leave: leave.clone(),
        };
        table.entries.insert(id, entry);
        drop(table);
        ConnectionPermit { connections: self.clone(), id, leave }
    }

    /// Number of connections that were closed for others, and of requests that were refused, so
    /// far.
    pub(crate) fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    /// Makes room for one more connection of a kind and source. False if that is not possible.
    fn make_room(&self, table: &mut PermitTable, kind: PermitKind, source: IpAddr) -> bool {
        let (permits_max, of_source) = kind.permits_max();
        let is_alike = |it: &PermitEntry| it.kind == kind;
        let alike = table.entries.values().filter(|it| is_alike(it)).count();
        let of_this = table.entries.values().filter(|it| is_alike(it) && it.source == source);
        let is_greedy = of_this.count() >= of_source;
        if alike < permits_max && !is_greedy {
            return true;
        }
        self.closed.fetch_add(1, Ordering::Relaxed);
        let may_go = |it: &PermitEntry| is_alike(it) && (!is_greedy || it.source == source);
        let waited_for = table.entries.iter().filter(|(_, it)| may_go(it));
        let waited_for = waited_for.filter_map(|(id, it)| Some((it.waited_for?, *id)));
        let Some((_, longest)) = waited_for.min() else { return false };
        if let Some(entry) = table.entries.remove(&longest) {
            entry.leave.notify_one();
        }
        true
    }

    /// Number of open connections.
    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.table().entries.len()
    }

    fn table(&self) -> MutexGuard<'_, PermitTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PermitTable {
    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
}

/// A connection's permit, free again when dropped.
pub(crate) struct ConnectionPermit {
    connections: Arc<AdminConnections>,
    id: u64,
    leave: Arc<Notify>,
}

impl ConnectionPermit {
    /// Gets a permit for a request of this kind, whose handling begins. False if there is none.
    pub(crate) fn take(&self, kind: PermitKind) -> bool {
        let mut table = self.connections.table();
        // Closed already: the connection ends at its next check.
        let Some(mut entry) = table.entries.remove(&self.id) else { return false };
        let has_room =
            entry.kind == kind || self.connections.make_room(&mut table, kind, entry.source);
        if has_room {
            (entry.kind, entry.waited_for) = (kind, None);
        }
        table.entries.insert(self.id, entry);
        has_room
    }

    /// From now on skep waits for the client.
    pub(crate) fn wait(&self) {
        let mut table = self.connections.table();
        let now = table.next_moment();
        if let Some(entry) = table.entries.get_mut(&self.id) {
            entry.waited_for = Some(now);
        }
    }

    /// From now on the client waits for skep.
    pub(crate) fn work(&self) {
        if let Some(entry) = self.connections.table().entries.get_mut(&self.id) {
            entry.waited_for = None;
        }
    }

    /// Returns when the connection has to be closed for another.
    pub(crate) async fn lost(&self) {
        self.leave.notified().await;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.table().entries.remove(&self.id);
    }
}

/// The source that an address counts as: the IPv4 address, or the IPv6 /64.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(source: u8) -> SocketAddr {
        ([192, 0, 2, source], 1000).into()
    }

    fn has_lost(permit: &ConnectionPermit) -> bool {
        !permit.connections.table().entries.contains_key(&permit.id)
    }

    #[test]
    fn a_source_that_floods_loses_its_own_connections_first() {
        let connections = Arc::new(AdminConnections::default());
        let other = connections.enter(from(2));
        let flood: Vec<_> = (0..100).map(|_| connections.enter(from(1))).collect();
        assert!(!has_lost(&other));
        let left: Vec<_> = flood.iter().filter(|it| !has_lost(it)).collect();
        assert_eq!((left.len(), connections.closed()), (32, 68));
        assert!(std::ptr::eq(left[0], &raw const flood[68]), "the latest ones stay");
    }

    #[test]
    fn of_many_sources_the_one_that_is_silent_for_longest_goes() {
        let connections = Arc::new(AdminConnections::default());
        let all: Vec<_> = (0..64).map(|it| connections.enter(from(it))).collect();
        assert!(all.iter().all(|it| !has_lost(it)));
        let _newcomer = connections.enter(from(99));
        assert!(has_lost(&all[0]) && all[1..].iter().all(|it| !has_lost(it)));
        drop(all);
        assert_eq!(connections.table().entries.len(), 1);
    }

    #[test]
    fn whoever_is_worked_for_stays_and_the_next_is_turned_away_but_no_probe() {
        let connections = Arc::new(AdminConnections::default());
        let others: Vec<_> = (0..32).map(|_| connections.enter(from(1))).collect();
        assert!(others.iter().all(|it| it.take(PermitKind::Other)));
        let (late, probe) = (connections.enter(from(1)), connections.enter(from(1)));
        assert!(!late.take(PermitKind::Other) && probe.take(PermitKind::Probe));
        assert!(others.iter().all(|it| !has_lost(it)) && !has_lost(&late));
        assert!(
            connections.enter(from(2)).take(PermitKind::Other),
            "another source has the other half"
        );
        others[7].wait();
        others[3].wait();
        others[9].wait();
        others[7].work();
        assert!(late.take(PermitKind::Other));
        assert!(has_lost(&others[3]) && !has_lost(&others[9]) && !has_lost(&others[7]));
        assert!(!others[3].take(PermitKind::Other), "it is closed");
    }

    #[test]
    fn probes_have_permits_of_their_own_and_close_each_other() {
        let connections = Arc::new(AdminConnections::default());
        let idle: Vec<_> = (0..16).map(|_| connections.enter(from(1))).collect();
        for permit in &idle {
            assert!(permit.take(PermitKind::Probe));
            permit.wait();
        }
        assert!(connections.enter(from(1)).take(PermitKind::Probe));
        assert!(has_lost(&idle[0]) && idle[1..].iter().all(|it| !has_lost(it)));
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let parse = |it: &str| source_of(it.parse().unwrap());
        assert_eq!(parse("2001:db8::1"), parse("2001:db8::2:0:0:1"));
        assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
        assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
    }

    #[test]
    fn kinds_are_by_path() {
        for path in ["/livez", "/readyz", "/startupz"] {
            assert_eq!(PermitKind::of(path), PermitKind::Probe);
        }
        assert_eq!(
            (PermitKind::of("/metrics"), PermitKind::of("/livez/")),
            (PermitKind::Other, PermitKind::Other)
        );
    }
}
