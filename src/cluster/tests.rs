//! Nodes on a bus that loses, repeats and reorders messages, with clocks that differ. Time passes
//! in steps; nothing depends on the time that the test takes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use fastrand::Rng;

use super::{ClusterSecret, Fingerprint, Message, Moment, Node, NodeOptions, Readiness};
use crate::store::{
    DeltaChange, ExportBatch, MergeResult, Options, PeerDelta, PeerState, Store, StoreExport,
};
use crate::time::Now;
use crate::types::InfoHash;

/// Torrents of random changes.
const TORRENTS: u8 = 50;

/// A step of time.
const STEP_MS: u64 = 10;

/// How often to look whether something holds.
const LOOK_MS: u64 = 100;

/// What the bus does to a message on its way to one node.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Messages of a thousand that are lost.
    lost: u32,
    /// Messages of a thousand that come twice.
    repeated: u32,
    /// The longest way, in milliseconds: messages overtake each other.
    delay_ms: u64,
}

struct Member {
    node: Node,
    store: Arc<Store>,
    name: String,
    /// Its wall clock minus the true one.
    skew_ms: i64,
    is_connected: bool,
    /// Whether it runs.
    is_up: bool,
}

struct Delivery {
    at_ms: u64,
    number: u64,
    to: usize,
    message: Message,
}

struct Simulation {
    members: Vec<Member>,
    bus: Vec<Delivery>,
    deliveries: u64,
    ms: u64,
    random: Rng,
    faults: Faults,
    /// Pairs of members between which nothing gets through.
    cut: BTreeSet<(usize, usize)>,
    /// Everything that was published.
    recorded: Vec<Message>,
    records: bool,
}

fn options(name: &str) -> NodeOptions {
    NodeOptions {
        cluster: "test".into(),
        node: name.into(),
        version: "1".into(),
        secret: ClusterSecret::new(&[5; 32]).unwrap(),
        fingerprint: Fingerprint::default(),
        queue_bytes_max: 16 << 20,
        join_bytes_s_max: 100 << 20,
        join_timeout_s: 60,
        peer_age_s_max: 3900,
        joins: true,
        replicates_private: false,
    }
}

impl Simulation {
    fn new(seed: u64) -> Self {
        Self {
            members: Vec::new(),
            bus: Vec::new(),
            deliveries: 0,
            ms: 1_800_000_000_000,
            random: Rng::with_seed(seed),
            faults: Faults::default(),
            cut: BTreeSet::new(),
            recorded: Vec::new(),
            records: false,
        }
    }

    /// With so many nodes that have all joined.
    fn of_nodes(seed: u64, nodes: usize) -> Self {
        let mut simulation = Self::new(seed);
        for number in 0..nodes {
            simulation.start(options(&format!("node-{number}")), 0);
        }
        simulation.run_ms(4000);
        assert!((0..nodes).all(|it| simulation.readiness(it) == Readiness::Ready));
        // Peers of two networks in each torrent: a count of downloads that one network made ends
        // with the last peer, and that depends on what has arrived from others.
        for (torrent, client) in (0..TORRENTS).flat_map(|it| [(it, 70_000), (it, 80_000)]) {
            simulation.change(0, &delta(torrent, client, present(4, false)));
        }
        simulation.run_ms(100);
        simulation
    }

    fn start(&mut self, options: NodeOptions, skew_ms: i64) -> usize {
        let store = Arc::new(Store::new(Options { shards: 4, seed: Some(9) }));
        let name = options.node.clone();
        let at = self.moment_of(skew_ms);
        let seed = self.random.u64(..);
        let node = Node::new(options, store.clone(), at, seed);
        let (is_connected, is_up) = (false, true);
        self.members.push(Member { node, store, name, skew_ms, is_connected, is_up });
        let member = self.members.len() - 1;
        self.connect(member, true);
        member
    }

    fn moment_of(&self, skew_ms: i64) -> Moment {
        let wall_ms = self.ms.checked_add_signed(skew_ms).unwrap();
        Moment { now: Now::from_ns(wall_ms * 1_000_000), wall_ms }
    }

    fn moment(&self, member: usize) -> Moment {
        self.moment_of(self.members[member].skew_ms)
    }

    fn connect(&mut self, member: usize, is_connected: bool) {
        let at = self.moment(member);
        let own = &mut self.members[member];
        own.is_connected = is_connected;
        if is_connected { own.node.connected(at) } else { own.node.disconnected(at) }
    }

    fn readiness(&self, member: usize) -> Readiness {
        self.members[member].node.readiness(self.moment(member))
    }

    fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.step();
        }
    }

    /// Runs until this is so; fails after `ms`.
    fn run_until(&mut self, ms: u64, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..=ms / LOOK_MS {
            if holds(self) {
                return;
            }
            self.run_ms(LOOK_MS);
        }
        let views: Vec<_> =
            (0..self.members.len()).map(|it| self.members[it].node.view(self.moment(it))).collect();
        let first = self.swarms(0);
        let others = (1..self.members.len()).map(|it| self.swarms(it).differences(&first));
        let differences: Vec<_> = others.collect();
        panic!("not within {ms} ms: {what}: {differences:?} {views:#?}");
    }

    fn step(&mut self) {
        self.ms += STEP_MS;
        let mut due: Vec<_> = self.bus.extract_if(.., |it| it.at_ms <= self.ms).collect();
        due.sort_by_key(|it| (it.at_ms, it.number));
        for Delivery { to, message, .. } in due {
            let at = self.moment(to);
            let member = &mut self.members[to];
            if member.is_up && member.is_connected {
                member.node.receive(at, &message.subject, &message.payload);
            }
        }
        for number in 0..self.members.len() {
            let at = self.moment(number);
            let member = &mut self.members[number];
            if !member.is_up {
                continue;
            }
            member.node.flush();
            member.node.tick(at);
            let mut messages = Vec::new();
            while member.is_connected
                && let Some(message) = member.node.next_message(at)
            {
                messages.push(message);
            }
            messages.into_iter().for_each(|message| self.publish(number, message));
        }
    }

    fn publish(&mut self, from: usize, message: Message) {
        for to in 0..self.members.len() {
            let is_cut = self.cut.contains(&(from.min(to), from.max(to)));
            if to == from || is_cut || !is_subscribed(&self.members[to].node, &message.subject) {
                continue;
            }
            if self.random.u32(..1000) < self.faults.lost {
                continue;
            }
            let copies = 1 + usize::from(self.random.u32(..1000) < self.faults.repeated);
            for _ in 0..copies {
                let at_ms = self.ms + self.random.u64(..=self.faults.delay_ms);
                self.deliveries += 1;
                let number = self.deliveries;
                self.bus.push(Delivery { at_ms, number, to, message: message.clone() });
            }
        }
        if self.records {
            self.recorded.push(message);
        }
    }

    /// A change of a client of this member.
    fn change(&mut self, member: usize, delta: &PeerDelta) {
        let now = self.moment(member).now;
        let member = &mut self.members[member];
        assert_eq!(member.store.merge(now, delta, &mut self.random), MergeResult::Applied);
        member.node.local(delta);
    }

    /// Random changes of clients of all members, `per_step` in each step.
    fn run_with_changes(&mut self, ms: u64, per_step: usize) {
        for _ in 0..ms / STEP_MS {
            for _ in 0..per_step {
                let member = self.random.usize(..self.members.len());
                if self.members[member].is_up {
                    let delta = self.random_delta(member);
                    self.change(member, &delta);
                }
            }
            self.step();
        }
    }

    /// A change of one of 2000 peers that are clients of this member.
    fn random_delta(&mut self, member: usize) -> PeerDelta {
        let peer = self.random.u32(..2000);
        let client = peer * 16 + u32::try_from(member).unwrap();
        let change = match self.random.u8(..10) {
            0..3 => DeltaChange::Left,
            3..7 => present(0, false),
            7 => present(2, false),
            8 => present(6, false),
            _ => present(5, true),
        };
        delta(u8::try_from(peer % u32::from(TORRENTS)).unwrap(), client, change)
    }

    fn swarms(&self, member: usize) -> Swarms {
        Swarms::of(&self.members[member].store, self.moment(member).now)
    }

    fn are_equal(&self) -> bool {
        let first = self.swarms(0);
        (1..self.members.len()).all(|it| self.swarms(it) == first)
    }
}

fn present(state: u8, completed: bool) -> DeltaChange {
    DeltaChange::Present { state: PeerState::new(state).unwrap(), completed }
}

fn delta(torrent: u8, client: u32, change: DeltaChange) -> PeerDelta {
    PeerDelta {
        info_hash: InfoHash([torrent; 20]),
        address: IpAddr::V4(Ipv4Addr::from(0x0800_0000 | client)),
        port: 6881,
        change,
        is_exempt: true,
    }
}

fn is_subscribed(node: &Node, subject: &str) -> bool {
    node.subscriptions().iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => subject.strip_prefix(prefix).is_some_and(|it| !it.contains('.')),
        None => pattern == subject,
    })
}

/// Peers with their state, and downloads, of every torrent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Swarms {
    peers: BTreeMap<([u8; 20], [u8; 6]), u8>,
    completed: BTreeMap<[u8; 20], u32>,
}

impl Swarms {
    fn of(store: &Store, now: Now) -> Self {
        let (mut export, mut batch) = (StoreExport::new(now), ExportBatch::default());
        let mut swarms = Self::default();
        while store.export(&mut export, &mut batch) {
            let mut peers = batch.v4.iter();
            for torrent in &batch.torrents {
                let InfoHash(hash) = torrent.info_hash;
                for peer in peers.by_ref().take(torrent.v4) {
                    swarms.peers.insert((hash, peer.endpoint), peer.state & 0b110);
                }
                *swarms.completed.entry(hash).or_default() += torrent.completed;
            }
        }
        swarms.completed.retain(|_, completed| *completed > 0);
        swarms
    }

    /// What is only here, or different here.
    fn differences(&self, other: &Self) -> Self {
        let (mut peers, mut completed) = (self.peers.clone(), self.completed.clone());
        peers.retain(|peer, state| other.peers.get(peer) != Some(state));
        completed.retain(|hash, count| other.completed.get(hash) != Some(count));
        Self { peers, completed }
    }
}

#[test]
fn changes_at_any_node_are_seen_at_every_node() {
    let mut simulation = Simulation::of_nodes(1, 3);
    simulation.run_with_changes(2000, 20);
    simulation.run_ms(50);
    assert!(simulation.are_equal());
    for member in 0..3 {
        let view = simulation.members[member].node.view(simulation.moment(member));
        assert_eq!((view.others(), view.received.forged, view.received.early), (2, 0, 0));
        assert!(view.received.applied > 2000 && view.sent_records > 1000);
        assert_eq!(view.lost, super::LostCounts::default());
    }
}

#[test]
fn nodes_are_equal_although_the_bus_loses_repeats_and_reorders() {
    for seed in 0..8 {
        let mut simulation = Simulation::of_nodes(seed, 4);
        simulation.faults = Faults { lost: 50, repeated: 100, delay_ms: 80 };
        simulation.run_with_changes(5000, 10);
        simulation.run_until(30_000, "equal", Simulation::are_equal);
        let view = simulation.members[0].node.view(simulation.moment(0));
        assert!(view.received.early > 0 && view.received.repeated > 0, "{view:?}");
        assert_eq!(view.lost.gap_frames, 0);
    }
}

#[test]
fn clocks_that_differ_change_nothing_and_are_seen() {
    let mut simulation = Simulation::new(3);
    simulation.faults.delay_ms = 20;
    for (number, skew_ms) in [0, 60_000, -55_000].into_iter().enumerate() {
        simulation.start(options(&format!("node-{number}")), skew_ms);
    }
    simulation.run_ms(4000);
    simulation.run_with_changes(2000, 10);
    simulation.run_ms(7000);
    assert!(simulation.are_equal());
    let view = simulation.members[1].node.view(simulation.moment(1));
    let offsets: Vec<_> = view.nodes.iter().map(|it| it.clock_offset_ms.unwrap()).collect();
    assert!((60_000..60_030).contains(&offsets[0]), "{offsets:?}");
    assert!((115_000..115_030).contains(&offsets[1]), "{offsets:?}");
    assert!(view.lag_p99_ms_max() <= 64, "the lag is without the difference: {view:?}");
}

#[test]
fn a_clock_that_is_two_minutes_off_takes_part_in_nothing() {
    let mut simulation = Simulation::of_nodes(3, 1);
    let late = simulation.start(options("late"), -121_000);
    simulation.run_with_changes(8000, 1);
    let view = simulation.members[0].node.view(simulation.moment(0));
    assert!(view.received.stale > 0 && view.nodes.is_empty(), "{view:?}");
    assert_eq!(simulation.readiness(late), Readiness::Ready, "it serves alone");
}

#[test]
fn a_node_without_a_broker_serves_and_has_everything_soon_after() {
    let mut simulation = Simulation::of_nodes(4, 3);
    simulation.connect(1, false);
    simulation.run_with_changes(60_000, 1);
    let view = simulation.members[1].node.view(simulation.moment(1));
    assert!(!view.is_connected && view.queue_bytes > 0);
    assert_eq!(simulation.readiness(1), Readiness::Ready);
    assert!(!simulation.are_equal());
    simulation.connect(1, true);
    simulation.run_until(5000, "equal", Simulation::are_equal);
    let view = simulation.members[1].node.view(simulation.moment(1));
    assert_eq!(view.lost, super::LostCounts::default());
}

#[test]
fn a_cut_between_two_parts_heals() {
    let mut simulation = Simulation::of_nodes(5, 4);
    simulation.cut = [(0, 2), (0, 3), (1, 2), (1, 3)].into();
    simulation.run_with_changes(60_000, 1);
    assert!(!simulation.are_equal());
    let view = simulation.members[0].node.view(simulation.moment(0));
    assert_eq!(view.others(), 1, "the others are gone");
    simulation.cut.clear();
    simulation.run_until(10_000, "equal", Simulation::are_equal);
}

#[test]
fn two_parts_that_were_never_joined_meet() {
    let mut simulation = Simulation::new(6);
    simulation.cut = [(0, 1)].into();
    simulation.start(options("node-0"), 0);
    simulation.start(options("node-1"), 0);
    simulation.run_ms(4000);
    for client in 0..3000 {
        let member = usize::from(client % 2 == 0);
        let change = present(0, false);
        simulation.change(member, &delta(1, client, change));
    }
    simulation.run_ms(4000);
    simulation.cut.clear();
    simulation.run_until(12_000, "equal", Simulation::are_equal);
    assert_eq!(simulation.swarms(0).peers.len(), 3000);
}

#[test]
fn what_is_no_longer_kept_comes_as_a_join() {
    let mut simulation = Simulation::new(7);
    for number in 0..2 {
        let queue_bytes_max = 10_000;
        simulation.start(NodeOptions { queue_bytes_max, ..options(&format!("node-{number}")) }, 0);
    }
    simulation.run_ms(4000);
    simulation.cut = [(0, 1)].into();
    let here = present(0, false);
    for client in 0..2000 {
        simulation.change(0, &delta(1, client, here));
        if client % 10 == 0 {
            simulation.step();
        }
    }
    simulation.cut.clear();
    simulation.run_until(20_000, "equal", Simulation::are_equal);
    let view = simulation.members[1].node.view(simulation.moment(1));
    assert!(view.lost.gap_frames > 0 && view.joins.caught_up > 0, "{view:?}");
}

#[test]
fn a_new_node_joins_from_one_that_is_ready_under_changes() {
    for seed in 0..4 {
        let mut simulation = Simulation::of_nodes(seed, 2);
        simulation.run_with_changes(3000, 30);
        let new = simulation.start(options("new"), 0);
        assert_eq!(simulation.readiness(new), Readiness::Joining);
        // Changes go on, leaves among them, of clients of the others.
        for _ in 0..100 {
            for _ in 0..10 {
                let member = simulation.random.usize(..2);
                let delta = simulation.random_delta(member);
                simulation.change(member, &delta);
            }
            simulation.step();
        }
        simulation.run_until(5000, "ready", |it| it.readiness(new) == Readiness::Ready);
        simulation.run_until(5000, "equal", Simulation::are_equal);
        let view = simulation.members[new].node.view(simulation.moment(new));
        assert_eq!((view.joins.joined, view.joins.alone), (1, 0));
    }
}

#[test]
fn a_large_join_survives_lost_blocks_and_the_end_of_the_node_that_sends_them() {
    let mut simulation = Simulation::of_nodes(8, 3);
    let here = present(4, false);
    for client in 0..100_000 {
        simulation.change(0, &delta(u8::try_from(client % 200).unwrap(), client, here));
    }
    simulation.run_ms(3000);
    assert!(simulation.are_equal());
    simulation.faults.lost = 20;
    let slow = NodeOptions { join_timeout_s: 600, ..options("new") };
    let new = simulation.start(slow, 0);
    simulation.run_until(5000, "a node sends", |it| {
        it.members[..3].iter().any(|member| member.node.view(it.moment(0)).donations > 0)
    });
    let sends =
        |it: &Member| it.node.view(Moment { now: Now::from_s(1), wall_ms: 0 }).donations > 0;
    let donor = simulation.members.iter().position(sends).unwrap();
    simulation.members[donor].is_up = false;
    simulation.run_until(60_000, "ready", |it| it.readiness(new) == Readiness::Ready);
    let other = (donor + 1) % 3;
    let are_equal = |it: &Simulation| it.swarms(new) == it.swarms(other);
    simulation.run_until(10_000, "equal", are_equal);
    let view = simulation.members[new].node.view(simulation.moment(new));
    assert_eq!((view.joins.joined, view.joins.timed_out), (1, 0));
}

#[test]
fn credit_bounds_what_is_under_way_to_a_node_that_confirms_nothing() {
    let mut simulation = Simulation::of_nodes(9, 1);
    let here = present(4, false);
    for client in 0..550_000 {
        simulation.change(0, &delta(u8::try_from(client % 200).unwrap(), client, here));
    }
    simulation.run_ms(1000);
    simulation.records = true;
    let new = simulation.start(options("new"), 0);
    let is_sending = |it: &Simulation| it.members[0].node.view(it.moment(0)).donations > 0;
    for _ in 0..500 {
        if is_sending(&simulation) {
            break;
        }
        simulation.step();
    }
    assert!(is_sending(&simulation));
    simulation.members[new].is_up = false;
    simulation.run_ms(10_000);
    let own = format!(".to.{}", simulation.members[new].name);
    let blocks = simulation.recorded.iter().filter(|it| it.subject.ends_with(&own)).count();
    assert!((50..70).contains(&blocks), "{blocks}: offer, and the credit");
    simulation.run_ms(40_000);
    assert_eq!(simulation.members[0].node.view(simulation.moment(0)).donations, 0, "given up");
}

#[test]
fn recorded_and_forged_frames_change_nothing() {
    let mut simulation = Simulation::of_nodes(10, 2);
    simulation.records = true;
    simulation.run_with_changes(3000, 5);
    simulation.run_ms(1000);
    let (before, recorded) = (simulation.swarms(1), std::mem::take(&mut simulation.recorded));
    let applied = |it: &Simulation| it.members[1].node.view(it.moment(1)).received.applied;
    let count = applied(&simulation);
    for message in &recorded {
        let at = simulation.moment(1);
        let node = &mut simulation.members[1].node;
        node.receive(at, &message.subject, &message.payload);
        let mut forged = message.payload.clone();
        *forged.last_mut().unwrap() ^= 1;
        node.receive(at, &message.subject, &forged);
    }
    simulation.run_ms(5000);
    assert_eq!(applied(&simulation), count);
    assert_eq!(simulation.swarms(1), before);
    let view = simulation.members[1].node.view(simulation.moment(1));
    assert_eq!(view.received.forged, recorded.len() as u64);
    assert!(view.received.repeated > 0);
}

#[test]
fn a_restarted_node_goes_on_and_two_processes_with_one_name_are_named() {
    let mut simulation = Simulation::of_nodes(11, 2);
    simulation.run_with_changes(1000, 5);
    simulation.members[1].is_up = false;
    simulation.run_ms(1000);
    let again = simulation.start(options("node-1"), 0);
    simulation.run_until(5000, "ready", |it| it.readiness(again) == Readiness::Ready);
    let are_equal = |it: &Simulation| it.swarms(again) == it.swarms(0);
    simulation.run_until(5000, "equal", are_equal);
    let here = present(0, false);
    simulation.change(again, &delta(1, 77_777, here));
    simulation.run_until(1000, "equal", are_equal);
    let view = simulation.members[0].node.view(simulation.moment(0));
    assert!(view.nodes.len() == 1 && !view.nodes[0].has_name_conflict, "{view:?}");
    // The process that had ended runs on, with the same name.
    simulation.members[1].is_up = true;
    simulation
        .run_until(60_000, "seen by itself", |it| it.readiness(again) == Readiness::NameConflict);
    simulation.run_until(60_000, "seen by another", |it| {
        it.members[0].node.view(it.moment(0)).nodes[0].has_name_conflict
    });
    simulation.members[1].is_up = false;
    simulation.run_until(30_000, "ready", |it| it.readiness(again) == Readiness::Ready);
}

#[test]
fn a_node_that_is_draining_sends_its_changes_and_nobody_joins_from_it() {
    let mut simulation = Simulation::of_nodes(12, 1);
    let here = present(0, false);
    simulation.change(0, &delta(1, 1, here));
    let at = simulation.moment(0);
    simulation.members[0].node.begin_drain(at);
    let new = simulation.start(options("new"), 0);
    simulation.run_until(5000, "ready", |it| it.readiness(new) == Readiness::Ready);
    let view = simulation.members[new].node.view(simulation.moment(new));
    assert_eq!((view.joins.alone, view.joins.joined), (1, 0));
}

#[test]
fn local_addresses_of_others_are_not_stored_unless_wanted() {
    for wanted in [false, true] {
        let mut simulation = Simulation::new(13);
        for number in 0..2 {
            let own = options(&format!("node-{number}"));
            simulation.start(NodeOptions { replicates_private: wanted, ..own }, 0);
        }
        simulation.run_ms(4000);
        let here = present(0, false);
        let local = PeerDelta { address: [10, 0, 0, 5].into(), ..delta(1, 1, here) };
        simulation.change(0, &local);
        simulation.run_ms(100);
        let view = simulation.members[1].node.view(simulation.moment(1));
        assert_eq!(simulation.swarms(1).peers.len(), usize::from(wanted));
        assert_eq!(view.received.not_stored, u64::from(!wanted));
    }
}

#[test]
fn a_peer_that_left_during_a_join_that_failed_is_not_removed_by_a_later_one() {
    let mut simulation = Simulation::new(14);
    simulation.cut = [(0, 1), (0, 2), (1, 2)].into();
    for number in 0..3 {
        simulation.start(options(&format!("node-{number}")), 0);
    }
    simulation.run_ms(4000);
    let view = |it: &Simulation| it.members[1].node.view(it.moment(1));
    simulation.cut.remove(&(0, 1));
    let mut steps = 0;
    while view(&simulation).join.is_none() {
        simulation.step();
        steps += 1;
        assert!(steps < 1000, "a join from node-0");
    }
    simulation.members[0].is_up = false;
    let peer = |change| delta(1, 1, change);
    simulation.change(1, &peer(present(0, false)));
    simulation.change(1, &peer(DeltaChange::Left));
    simulation.run_until(10_000, "given up", |it| view(it).joins.failed == 1);
    simulation.change(1, &peer(present(0, false)));
    simulation.cut.remove(&(1, 2));
    simulation.run_until(15_000, "caught up", |it| view(it).joins.caught_up == 1);
    assert_eq!(simulation.swarms(1).peers.len(), 1);
}
