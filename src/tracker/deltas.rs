//! The changes to peers that announces make at this node, for the thread that tells other nodes.
//!
//! ```text
//! worker: Tracker ─▶ DeltaSender ─▶ ring of fixed size ─▶ DeltaReceiver ─▶ one reading thread
//! ```
//!
//! Each tracker has a ring of its own ([`delta_ring`], [`Tracker::with_deltas`]). A worker never
//! waits: what does not fit is lost and counted, and the other nodes get the peer with one of its
//! next announces.
//!
//! [`Tracker::with_deltas`]: super::Tracker::with_deltas

use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

use crate::counters::Counter;
use crate::store::{AnnounceResult, DeltaChange, PeerAnnounce, PeerChange, PeerDelta};
use crate::time::Now;
use crate::types::{Contact, Scope};

/// The periods in each of which a peer that announces without a change is sent once, in seconds:
/// not longer than the usual interval between announces, so that the copies at other nodes stay as
/// young as the peer.
const RENEWAL_PERIOD_S: u64 = 600;

const _: () = assert!(size_of::<PeerDelta>() <= 44);

/// Makes a ring that holds at most `records_max` changes (44 bytes each at most, allocated here):
/// one end is for a tracker, the other for the thread that reads the rings of all trackers.
pub fn delta_ring(records_max: usize) -> (DeltaSender, DeltaReceiver) {
    let (ring, reading_end) = RingBuffer::new(records_max);
    let lost = Arc::<Counter>::default();
    let sender = DeltaSender { ring, lost: lost.clone(), replicates_private: false };
    (sender, DeltaReceiver { ring: reading_end, lost })
}

/// A tracker's end of a ring of changes.
///
/// Sent are: a peer that joined, left or changed its role; a download that was counted; and a peer
/// that announces without a change, once in each period of 600 s of the clock. Not sent are: peers
/// that were not stored; WebRTC peers, whose sockets are of this node; peers of private networks
/// and of this host, see [`Self::with_private_peers`]; peers that were replaced, evicted or removed
/// after their last announce, as every node does that with its own copy.
pub struct DeltaSender {
    ring: Producer<PeerDelta>,
    lost: Arc<Counter>,
    replicates_private: bool,
}

impl DeltaSender {
    /// Also sends peers with addresses of private networks and of this host, if `is_sent`: only for
    /// nodes that are in the same network as all of their clients.
    #[must_use]
    pub fn with_private_peers(self, is_sent: bool) -> Self {
        Self { replicates_private: is_sent, ..self }
    }

    /// Sends what an announce has changed, if other nodes need it. Never blocks.
    #[inline]
    pub(super) fn note(&mut self, now: Now, announce: &PeerAnnounce<'_>, result: &AnnounceResult) {
        // An announce that was not stored has changed nothing, and has no earlier one.
        let period = |seconds: u64| seconds / RENEWAL_PERIOD_S;
        let is_renewal = |before_s: u64| period(before_s) != period(now.seconds());
        if result.is_changed || result.announced_s.is_some_and(is_renewal) {
            self.send(announce, result);
        }
    }

    fn send(&mut self, announce: &PeerAnnounce<'_>, result: &AnnounceResult) {
        let Contact::Port(port) = announce.contact else { return };
        if !self.replicates_private && Scope::of(announce.address) != Scope::Public {
            return;
        }
        let change = match announce.change {
            PeerChange::Stopped => DeltaChange::Left,
            PeerChange::Present { .. } => {
                DeltaChange::Present { state: result.state, completed: result.is_completed }
            }
        };
        let delta = PeerDelta {
            info_hash: *announce.info_hash,
            address: announce.address,
            port,
            change,
            is_exempt: !announce.capped,
        };
        if self.ring.push(delta).is_err() {
            self.lost.add(1);
        }
    }
}

/// The reading end of a ring of changes, for a thread that reads several times a second.
pub struct DeltaReceiver {
    ring: Consumer<PeerDelta>,
    lost: Arc<Counter>,
}

impl DeltaReceiver {
    /// Takes at most `records_max` changes, the oldest first, and calls `receive` with each.
    /// Returns their number: less than `records_max` if the ring is empty now. Never blocks.
    pub fn drain(&mut self, records_max: usize, mut receive: impl FnMut(&PeerDelta)) -> usize {
        let records = self.ring.slots().min(records_max);
        let Ok(chunk) = self.ring.read_chunk(records) else { return 0 };
        let (first, second) = chunk.as_slices();
        first.iter().chain(second).for_each(&mut receive);
        chunk.commit_all();
        records
    }

    /// The number of changes lost since the ring was made, because it was full.
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::limiter::{self, Limiter, Sizes};
    use crate::store::{Budget, Options, PeerBuffers, PeerState, Store};
    use crate::tracker::Tracker;
    use crate::types::{Announce, Event, InfoHash, PeerId, WebPeer};

    /// The first second of a period.
    const NOW: Now = Now::from_s(1_800_000_000);
    const _: () = assert!(NOW.seconds().is_multiple_of(RENEWAL_PERIOD_S));
    const PUBLIC: &str = "8.8.8.8";

    struct Pair {
        store: Arc<Store>,
        tracker: Tracker,
        receiver: DeltaReceiver,
    }

    impl Pair {
        fn new() -> Self {
            Self::of(delta_ring(64))
        }

        fn of((sender, receiver): (DeltaSender, DeltaReceiver)) -> Self {
            let store = Arc::new(Store::new(Options { shards: 2, seed: Some(1) }));
            let tracker = Tracker::without_upkeep(store.clone(), Arc::default(), 1);
            Self { store, tracker: tracker.with_deltas(sender), receiver }
        }

        /// Announces at `NOW` plus `age_s`; returns what was sent.
        fn announce(&mut self, age_s: u64, announce: Announce) -> Vec<PeerDelta> {
            let mut announce = announce;
            let (now, room) = (NOW.plus_s(age_s), PeerBuffers::default());
            self.tracker.announce(now, &mut announce, &mut (), room).unwrap();
            self.sent()
        }

        /// As [`Self::announce`], only the changes.
        fn changes(&mut self, age_s: u64, announce: Announce) -> Vec<DeltaChange> {
            self.announce(age_s, announce).iter().map(|it| it.change).collect()
        }

        fn sent(&mut self) -> Vec<PeerDelta> {
            let mut sent = Vec::new();
            self.receiver.drain(usize::MAX, |delta| sent.push(*delta));
            sent
        }
    }

    fn visit(source: &str, left: u64, event: Event) -> Announce {
        Announce {
            info_hash: InfoHash([7; 20]),
            source: source.parse().unwrap(),
            address_override: None,
            contact: Contact::Port(6881),
            peer_id: PeerId([1; 20]),
            left,
            event,
            numwant: Some(0),
        }
    }

    fn present(state: u8, completed: bool) -> DeltaChange {
        DeltaChange::Present { state: PeerState::new(state).unwrap(), completed }
    }

    #[test]
    fn joining_another_role_a_completed_download_and_leaving_are_sent() {
        for source in [PUBLIC, "2001:4860::1"] {
            let mut pair = Pair::new();
            let joined = pair.announce(0, visit(source, 1, Event::Started));
            let expected = PeerDelta {
                info_hash: InfoHash([7; 20]),
                address: source.parse().unwrap(),
                port: 6881,
                change: present(0, false),
                is_exempt: true, // there is no limiter
            };
            assert_eq!(joined, [expected]);
            let steps = [
                (visit(source, 1, Event::Paused), vec![present(2, false)]),
                (visit(source, 0, Event::Completed), vec![present(5, true)]),
                (visit(source, 0, Event::Completed), vec![]),
                (visit(source, 1, Event::None), vec![present(1, false)]),
                (visit(source, 1, Event::Stopped), vec![DeltaChange::Left]),
                (visit(source, 1, Event::Stopped), vec![]),
                (visit(source, 0, Event::None), vec![present(6, false)]),
            ];
            for (announce, expected) in steps {
                assert_eq!(pair.changes(1, announce), expected, "{announce:?}");
            }
        }
    }

    #[test]
    fn a_peer_without_a_change_is_sent_once_in_each_period() {
        let mut pair = Pair::new();
        let renewal = || visit(PUBLIC, 1, Event::None);
        assert_eq!(pair.changes(592, renewal()), [present(0, false)]);
        assert_eq!(pair.changes(599, renewal()), []);
        assert_eq!(pair.changes(600, renewal()), [present(0, false)]);
        assert_eq!(pair.changes(608, renewal()), []);
        assert_eq!(pair.changes(1199, renewal()), []);
        assert_eq!(pair.changes(3000, renewal()), [present(0, false)]);
    }

    #[test]
    fn peers_that_are_not_stored_are_not_sent() {
        let mut pair = Pair::new();
        // A client that accepts no connections.
        let closed = Announce { contact: Contact::Port(1), ..visit(PUBLIC, 1, Event::Started) };
        assert_eq!(pair.announce(0, closed), []);
        // No memory.
        pair.store.allow(Budget { bytes_max: 1, ..Budget::default() });
        assert_eq!(pair.announce(0, visit(PUBLIC, 1, Event::Started)), []);
        assert_eq!(pair.store.scrape(&InfoHash([7; 20])).leechers, 0);
    }

    #[test]
    fn webrtc_peers_are_not_sent() {
        let mut pair = Pair::of({
            let (sender, receiver) = delta_ring(64);
            (sender.with_private_peers(true), receiver)
        });
        let contact = Contact::Web(WebPeer([1; 16]));
        for event in [Event::Started, Event::Completed, Event::Stopped] {
            assert_eq!(pair.announce(0, Announce { contact, ..visit(PUBLIC, 1, event) }), []);
        }
    }

    #[test]
    fn private_and_loopback_peers_are_sent_only_if_asked_for() {
        for source in ["10.0.0.1", "127.0.0.1", "fd00::1", "::1"] {
            for is_sent in [false, true] {
                let (sender, receiver) = delta_ring(64);
                let mut pair = Pair::of((sender.with_private_peers(is_sent), receiver));
                for event in [Event::Started, Event::Stopped] {
                    let sent = pair.announce(0, visit(source, 1, event));
                    assert_eq!(sent.len(), usize::from(is_sent), "{source} {event:?}");
                }
            }
        }
    }

    #[test]
    fn the_address_that_was_stored_is_sent() {
        let (sender, mut receiver) = delta_ring(64);
        let options = super::super::Options {
            ip_override_from: vec!["10.0.0.0/8".parse().unwrap()],
            ..super::super::Options::default()
        };
        let store = Arc::new(Store::new(Options { shards: 2, seed: Some(1) }));
        let options = Arc::new(ArcSwap::from_pointee(options));
        let mut tracker = Tracker::without_upkeep(store, options, 1).with_deltas(sender);
        struct Claims;
        impl super::super::AnnounceDetails for Claims {
            fn claimed_address(&mut self) -> Option<IpAddr> {
                Some(PUBLIC.parse().unwrap())
            }
        }
        let mut announce = visit("10.0.0.1", 1, Event::Started);
        tracker.announce(NOW, &mut announce, &mut Claims, PeerBuffers::default()).unwrap();
        let mut sent = Vec::new();
        receiver.drain(9, |delta| sent.push(delta.address.to_string()));
        assert_eq!(sent, [PUBLIC]);
    }

    #[test]
    fn sources_that_are_exempt_from_limits_are_sent_as_exempt() {
        let mut pair = Pair::new();
        let options = limiter::Options {
            exempt: vec!["8.8.8.0/24".parse().unwrap()],
            ..limiter::Options::default()
        };
        let options = Arc::new(ArcSwap::from_pointee(options));
        let limiter = Arc::new(Limiter::new(Sizes::default(), Some(1)));
        let handle = limiter::Handle::new(limiter, options, Arc::default(), 1);
        pair.tracker = pair.tracker.with_limiter(handle);
        for (source, expected) in [(PUBLIC, true), ("9.9.9.9", false)] {
            let sent = pair.announce(0, visit(source, 1, Event::Started));
            assert_eq!(sent.iter().map(|it| it.is_exempt).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn what_a_full_ring_cannot_hold_is_lost_and_counted() {
        let mut pair = Pair::of(delta_ring(2));
        for port in 1001..=1005 {
            let contact = Contact::Port(port);
            let mut announce = Announce { contact, ..visit(PUBLIC, 1, Event::Started) };
            let room = PeerBuffers::default();
            pair.tracker.announce(NOW, &mut announce, &mut (), room).unwrap();
        }
        assert_eq!(pair.receiver.lost(), 3);
        // The oldest are kept; they are read in order, no more than asked for.
        let mut ports = Vec::new();
        assert_eq!(pair.receiver.drain(0, |delta| ports.push(delta.port)), 0);
        assert_eq!(pair.receiver.drain(1, |delta| ports.push(delta.port)), 1);
        assert_eq!(pair.receiver.drain(9, |delta| ports.push(delta.port)), 1);
        assert_eq!(pair.receiver.drain(9, |delta| ports.push(delta.port)), 0);
        assert_eq!((ports, pair.receiver.lost()), (vec![1001, 1002], 3));
        // There is room again.
        assert_eq!(pair.announce(600, visit(PUBLIC, 1, Event::Started)).len(), 1);
    }

    #[test]
    fn a_closed_connection_is_sent_as_a_leave() {
        let mut pair = Pair::new();
        pair.announce(0, visit(PUBLIC, 1, Event::Started));
        pair.tracker.leave(NOW, &visit(PUBLIC, 1, Event::Stopped));
        let sent = pair.sent();
        assert_eq!(sent.iter().map(|it| it.change).collect::<Vec<_>>(), [DeltaChange::Left]);
    }
}
