//! A node of a cluster as a function of what arrives and when: no socket, no clock, no thread.

use std::sync::Arc;

use fastrand::Rng;

use super::donor::{Donor, NONCE_BYTES};
use super::frame::{
    ClusterSecret, FLAG_LAST, FrameError, FrameHead, FrameKey, FrameKind, node_hash,
};
use super::join::{BlockTurn, Joiner};
use super::leaves::Leaves;
use super::log::DeltaLog;
use super::message::{Body, Envelope, Fingerprint, Hello, NodeState};
use super::order::{FRAMES_PER_REQUEST, FrameOrder, GapAction, Turn};
use super::outbox::{Address, Outbox, Outgoing};
use super::record;
use super::remote::{GONE_NS, Remote};
use super::view::{ClusterView, LostCounts, Readiness, ReceivedCounts};
use super::{Message, Moment};
use crate::snapshot::parse_torrent;
use crate::store::{
    CompletedMerge, MergeResult, PeerDelta, RestoreCounts, RestoreOptions, Store, TorrentPart,
};
use crate::time::Now;
use crate::types::{Scope, is_cluster_name};

/// How often a node publishes its state.
const HELLO_NS: u64 = 5_000_000_000;

/// The most other nodes that are known.
const NODES_MAX: usize = 64;

/// Options of a node.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The cluster's name: a part of subjects.
    pub cluster: String,
    /// This node's name, different from all others: a part of subjects.
    pub node: String,
    /// The version of skep.
    pub version: String,
    /// What all nodes share.
    pub secret: ClusterSecret,
    /// Settings that must be the same everywhere.
    pub fingerprint: Fingerprint,
    /// The most bytes of deltas that are kept, to be published and to be sent again.
    pub queue_bytes_max: usize,
    /// The most bytes a second that are sent to nodes that join.
    pub join_bytes_s_max: u64,
    /// The longest time in which this node is not ready because it joins.
    pub join_timeout_s: u32,
    /// Seconds after which a peer that has not announced is removed.
    pub peer_age_s_max: u32,
    /// Whether swarms of another node are wanted at the start: not if a predecessor's are there.
    pub joins: bool,
    /// Whether peers with private and loopback addresses are exchanged.
    pub replicates_private: bool,
}

/// A node.
pub struct Node {
    options: NodeOptions,
    hash: u64,
    /// When this process was started, by the wall clock: nanoseconds since the Unix epoch.
    epoch: u64,
    key: FrameKey,
    store: Arc<Store>,
    random: Rng,
    is_connected: bool,
    is_draining: bool,
    log: DeltaLog,
    outbox: Outbox,
    joiner: Joiner,
    donor: Donor,
    leaves: Leaves,
    remotes: Vec<Remote>,
    /// When the join at the start ended, by the wall clock in nanoseconds.
    complete: Option<u64>,
    /// Another process with this name, when it was seen first and last.
    namesake: Option<(Now, Now)>,
    next_hello: Now,
    hellos: u64,
    sent_records: u64,
    sent_frames: u64,
    received: ReceivedCounts,
    ring_lost: u64,
    gap_frames: u64,
}

impl Node {
    /// A node that is not connected. `seed` is for the numbers of joins, and for choosing peers to
    /// replace.
    pub fn new(options: NodeOptions, store: Arc<Store>, at: Moment, seed: u64) -> Self {
        let key = FrameKey::new(&options.secret, &options.cluster);
        let mut joiner = Joiner::new(seed);
        if options.joins {
            joiner.begin(at.now, at.now.plus_s(options.join_timeout_s.into()));
        }
        Self {
            hash: node_hash(&options.node),
            epoch: at.wall_ms.saturating_mul(1_000_000).saturating_add(at.now.ns() % 1_000_000),
            key,
            store,
            random: Rng::with_seed(seed),
            is_connected: false,
            is_draining: false,
            log: DeltaLog::new(options.queue_bytes_max),
            outbox: Outbox::new(&options.node),
            donor: Donor::new(options.join_bytes_s_max, at.now),
            leaves: Leaves::default(),
            remotes: Vec::new(),
            complete: (!options.joins).then(|| at.wall_ms.saturating_mul(1_000_000)),
            joiner,
            namesake: None,
            next_hello: at.now,
            hellos: 0,
            sent_records: 0,
            sent_frames: 0,
            received: ReceivedCounts::default(),
            ring_lost: 0,
            gap_frames: 0,
            options,
        }
    }

    /// The subjects to subscribe to.
    pub fn subscriptions(&self) -> [String; 4] {
        let NodeOptions { cluster, node, .. } = &self.options;
        [
            format!("skep.{cluster}.delta.*"),
            format!("skep.{cluster}.hello.*"),
            format!("skep.{cluster}.join"),
            format!("skep.{cluster}.to.{node}"),
        ]
    }

    fn subject(&self, address: &Address) -> String {
        let NodeOptions { cluster, node, .. } = &self.options;
        match address {
            Address::Deltas => format!("skep.{cluster}.delta.{node}"),
            Address::Hello => format!("skep.{cluster}.hello.{node}"),
            Address::All => format!("skep.{cluster}.join"),
            Address::Node(name) => format!("skep.{cluster}.to.{name}"),
        }
    }

    /// The broker is connected, and the subscriptions are in force.
    pub fn connected(&mut self, at: Moment) {
        self.is_connected = true;
        self.next_hello = at.now;
        self.joiner.connected(at.now, true, &mut self.outbox);
    }

    /// The broker is gone.
    pub fn disconnected(&mut self, at: Moment) {
        self.is_connected = false;
        self.outbox.clear();
        self.joiner.connected(at.now, false, &mut self.outbox);
    }

    /// A change that was made at this node.
    pub fn local(&mut self, delta: &PeerDelta) {
        if self.joiner.is_active() {
            self.leaves.note(delta);
        }
        self.log.add(delta);
    }

    /// Ends the frame that is being filled with changes.
    pub fn flush(&mut self) {
        self.log.end_frame();
    }

    /// A worker made so many changes so fast that they were not taken over.
    pub fn note_ring_lost(&mut self, records: u64) {
        self.ring_lost += records;
    }

    /// This process is about to end: no node may begin a join from it.
    pub fn begin_drain(&mut self, at: Moment) {
        self.is_draining = true;
        self.log.end_frame();
        self.next_hello = at.now;
    }

    /// The next message to publish, sealed with the clock of this moment. Only to be called while
    /// the broker is connected.
    pub fn next_message(&mut self, at: Moment) -> Option<Message> {
        // A block holds what the deltas before it say. If it came first, they would count a
        // download again whose peer has left.
        let is_deltas_turn = self.outbox.is_block_next() && self.log.unsent() > 0;
        if !is_deltas_turn && let Some(outgoing) = self.outbox.pop() {
            return Some(self.sealed(at, &outgoing));
        }
        let (sequence, frame) = self.log.publish()?;
        let records = frame.records;
        let head = FrameHead {
            kind: FrameKind::Deltas,
            flags: 0,
            records,
            node: self.hash,
            epoch: self.epoch,
            sequence,
            sent_ms: at.wall_ms,
        };
        let payload = self.key.seal(&head, &frame.payload);
        self.sent_records += u64::from(records);
        self.sent_frames += 1;
        Some(Message { subject: self.subject(&Address::Deltas), payload })
    }

    fn sealed(&self, at: Moment, outgoing: &Outgoing) -> Message {
        let &Outgoing { kind, flags, records, sequence, .. } = outgoing;
        let (node, epoch, sent_ms) = (self.hash, self.epoch, at.wall_ms);
        let head = FrameHead { kind, flags, records, node, epoch, sequence, sent_ms };
        let payload = self.key.seal(&head, &outgoing.payload);
        Message { subject: self.subject(&outgoing.to), payload }
    }

    /// Does what is due: to be called every 10 to 50 milliseconds.
    pub fn tick(&mut self, at: Moment) {
        let now = at.now;
        if self.is_connected && now >= self.next_hello {
            self.next_hello = Now::from_ns(now.ns() + HELLO_NS);
            self.publish_state();
        }
        if self.is_connected {
            self.request_missing(now);
        }
        if self.joiner.tick(now, self.is_connected, &mut self.outbox) {
            self.complete_join(at);
        }
        if self.is_connected && self.donor.jobs() > 0 {
            self.log.end_frame();
            self.donor.tick(now, &self.store, &mut self.outbox);
        }
        for remote in &mut self.remotes {
            remote.lag.turn(now.seconds());
        }
    }

    fn state(&self) -> NodeState {
        match (self.is_draining, self.joiner.is_first()) {
            (true, _) => NodeState::Draining,
            (false, true) => NodeState::Joining,
            (false, false) => NodeState::Ready,
        }
    }

    fn publish_state(&mut self) {
        let totals = self.store.totals();
        let peers: u64 = totals.seeders.iter().chain(&totals.leechers).sum();
        let hello = Hello {
            version: self.options.version.clone(),
            state: self.state(),
            torrents: totals.torrents,
            peers,
            next_deltas: self.log.next_unsent(),
            fingerprint: self.options.fingerprint.clone(),
        };
        let Ok(payload) = serde_json::to_vec(&hello) else { return };
        self.hellos += 1;
        let (kind, sequence) = (FrameKind::Hello, self.hellos);
        let (to, flags, records) = (Address::Hello, 0, 0);
        self.outbox.push(Outgoing { to, kind, flags, records, sequence, payload });
    }

    /// Requests frames of deltas that are missing, and gives up those that do not come.
    fn request_missing(&mut self, now: Now) {
        for remote in &mut self.remotes {
            let Some(order) = remote.order.as_mut().filter(|_| now.ns_since(remote.seen) < GONE_NS)
            else {
                continue;
            };
            match order.act(now) {
                Some(GapAction::Request(from)) => {
                    self.outbox.tell(Some(&remote.name), Body::Repeat { from });
                }
                Some(GapAction::GiveUp(frames, since)) => {
                    self.gap_frames += frames;
                    self.joiner.catch_up(&remote.name, Some(since), now);
                }
                None => {}
            }
        }
    }

    /// A message of the broker has arrived.
    pub fn receive(&mut self, at: Moment, subject: &str, payload: &[u8]) {
        let opened = self.key.open(payload, at.wall_ms);
        let (head, payload) = match opened {
            Ok(opened) => opened,
            Err(FrameError::Forged) => return self.received.forged += 1,
            Err(FrameError::Version) => return self.received.version += 1,
            Err(FrameError::Stale) => return self.received.stale += 1,
        };
        if head.node == self.hash {
            if head.epoch == self.epoch {
                return; // its own
            }
            self.note_namesake(at.now, head, payload);
        }
        let name = subject.rsplit('.').next().unwrap_or_default();
        match head.kind {
            FrameKind::Deltas => self.receive_deltas(at, name, head, payload),
            FrameKind::Hello => self.receive_hello(at, name, head, payload),
            FrameKind::Message => self.receive_message(at, head, payload),
            FrameKind::Block => self.receive_block(at, head, payload),
        }
    }

    /// Another process has this node's name. Around a take-over or a quick restart that is usual.
    fn note_namesake(&mut self, now: Now, head: FrameHead, payload: &[u8]) {
        if head.kind != FrameKind::Hello {
            return;
        }
        let hello: Hello = serde_json::from_slice(payload).unwrap_or_default();
        if hello.state == NodeState::Draining {
            return;
        }
        self.namesake = Some(match self.namesake {
            Some((first, last)) if now.ns_since(last) < GONE_NS => (first, now),
            _ => (now, now),
        });
    }

    /// The node that a frame comes from; `None` if the frame is of a process that has ended.
    fn remote(&mut self, at: Moment, name: &str, head: FrameHead) -> Option<&mut Remote> {
        let known = self.remotes.iter().position(|it| it.hash == head.node);
        let Some(known) = known else { return self.add_remote(at, name, head) };
        let (complete, remote) = (self.complete, &mut self.remotes[known]);
        if head.epoch < remote.epoch {
            remote.note_other_epoch(at.now);
            self.received.stale += 1;
            return None;
        }
        if head.epoch > remote.epoch {
            // All of its frames are wanted, unless a join brings what they say.
            let order = complete.map(|_| FrameOrder::new(1, at.now));
            remote.restarted(head.epoch, order, at.now);
        }
        remote.note_frame(at.now, at.wall_ms, head.sent_ms);
        Some(remote)
    }

    fn add_remote(&mut self, at: Moment, name: &str, head: FrameHead) -> Option<&mut Remote> {
        if !is_cluster_name(name) || node_hash(name) != head.node {
            self.received.foreign += 1;
            return None;
        }
        if self.remotes.len() == NODES_MAX {
            // The longest silent one makes room, if it is gone.
            let oldest = (0..NODES_MAX).min_by_key(|it| self.remotes[*it].seen)?;
            if !self.remotes[oldest].is_gone(at.now) {
                self.received.foreign += 1;
                return None;
            }
            self.remotes.swap_remove(oldest);
        }
        let mut remote = Remote::new(name, head.node, head.epoch, at.now);
        match self.complete {
            // It was started after this node had joined: all of its frames are wanted.
            Some(complete) if head.epoch > complete => {
                remote.order = Some(FrameOrder::new(1, at.now));
            }
            // Two parts of the cluster have met: what it had before is not known here.
            Some(_) => self.joiner.catch_up(name, None, at.now),
            None => {}
        }
        remote.note_frame(at.now, at.wall_ms, head.sent_ms);
        self.remotes.push(remote);
        self.remotes.last_mut()
    }

    fn receive_hello(&mut self, at: Moment, name: &str, head: FrameHead, payload: &[u8]) {
        let Ok(hello) = serde_json::from_slice::<Hello>(payload) else {
            self.received.version += 1;
            return;
        };
        let Some(remote) = self.remote(at, name, head) else { return };
        if head.sequence <= remote.hello_sequence {
            self.received.repeated += 1;
            return;
        }
        remote.hello_sequence = head.sequence;
        let next = hello.next_deltas;
        remote.order.get_or_insert_with(|| FrameOrder::new(next, at.now)).exists(next, at.now);
        remote.hello = hello;
    }

    fn receive_deltas(&mut self, at: Moment, name: &str, head: FrameHead, payload: &[u8]) {
        let Some(remote) = self.remote(at, name, head) else { return };
        let sequence = head.sequence;
        let order = remote.order.get_or_insert_with(|| FrameOrder::new(sequence, at.now));
        match order.frame(sequence, at.now) {
            Turn::Apply => {}
            Turn::Repeated => return self.received.repeated += 1,
            Turn::Early => {
                order.keep(sequence, payload);
                return self.received.early += 1;
            }
        }
        let lag_ms = remote.lag_ms(at.wall_ms, head.sent_ms);
        remote.lag.note(at.now.seconds(), lag_ms);
        self.apply_all(at.now, payload);
        // Those that waited for this one.
        let order = |node: &mut Self| {
            let remote = node.remotes.iter_mut().find(|it| it.hash == head.node)?;
            remote.order.as_mut()?.take_next(at.now)
        };
        while let Some(payload) = order(self) {
            self.apply_all(at.now, &payload);
        }
    }

    /// Applies the records of a frame.
    fn apply_all(&mut self, now: Now, payload: &[u8]) {
        for delta in record::decode(payload) {
            match delta {
                Ok(delta) => self.apply(now, &delta),
                Err(_) => self.received.version += 1,
            }
        }
    }

    /// Applies a change that was made at another node.
    fn apply(&mut self, now: Now, delta: &PeerDelta) {
        let is_local = Scope::of(delta.address) != Scope::Public;
        if is_local && !self.options.replicates_private {
            self.received.not_stored += 1;
            return;
        }
        if self.joiner.is_active() {
            self.leaves.note(delta);
        }
        match self.store.merge(now, delta, &mut self.random) {
            MergeResult::Applied => self.received.applied += 1,
            MergeResult::NotStored => self.received.not_stored += 1,
        }
    }

    fn receive_message(&mut self, at: Moment, head: FrameHead, payload: &[u8]) {
        let Ok(envelope) = serde_json::from_slice::<Envelope>(payload) else {
            self.received.version += 1;
            return;
        };
        let Envelope { from, to, body } = envelope;
        let is_for_this = to.is_none_or(|it| it == self.options.node);
        if !is_for_this || !is_cluster_name(&from) || node_hash(&from) != head.node {
            self.received.foreign += 1;
            return;
        }
        if head.node == self.hash {
            return; // another process with this name gets nothing from this one
        }
        let (now, out) = (at.now, &mut self.outbox);
        match body {
            Body::Ask { nonce } => {
                // So that it knows the number of the next frame before it has the swarms.
                self.next_hello = now;
                if self.state() == NodeState::Ready {
                    let torrents = self.store.totals().torrents;
                    self.outbox.tell(Some(&from), Body::Offer { nonce, torrents });
                }
            }
            Body::Offer { nonce, torrents } => self.joiner.offer(now, &from, nonce, torrents),
            Body::Start { nonce, since_s } => self.donor.start(now, &from, (nonce, since_s), out),
            Body::Busy { nonce } => self.joiner.busy(now, &from, nonce),
            Body::Blocks { nonce, next, again } => {
                self.donor.blocks(now, &from, (nonce, next, again), out);
            }
            Body::Repeat { from: first } => self.repeat(&from, first),
            Body::NotKept { first } => self.skip(now, head.node, head.epoch, first),
        }
    }

    /// Sends frames of deltas to a node again.
    fn repeat(&mut self, to: &str, from: u64) {
        if from < self.log.first() {
            let first = self.log.first();
            self.outbox.tell(Some(to), Body::NotKept { first });
            return;
        }
        for sequence in (from..from.saturating_add(FRAMES_PER_REQUEST)).filter(|it| *it > 0) {
            let Some(frame) = self.log.published(sequence).filter(|_| self.outbox.has_room())
            else {
                return;
            };
            self.outbox.push(Outgoing {
                to: Address::Node(to.to_owned()),
                kind: FrameKind::Deltas,
                flags: 0,
                records: frame.records,
                sequence,
                payload: frame.payload.clone(),
            });
        }
    }

    /// A node no longer keeps frames that are missing here.
    fn skip(&mut self, now: Now, hash: u64, epoch: u64, first: u64) {
        let remote = self.remotes.iter_mut().find(|it| it.hash == hash && it.epoch == epoch);
        let Some(remote) = remote else { return };
        let skipped = remote.order.as_mut().and_then(|it| it.skip_to(first, now));
        if let Some(GapAction::GiveUp(frames, since)) = skipped {
            self.gap_frames += frames;
            self.joiner.catch_up(&remote.name, Some(since), now);
        }
    }

    fn receive_block(&mut self, at: Moment, head: FrameHead, payload: &[u8]) {
        let Some((nonce, mut rest)) = payload.split_first_chunk::<NONCE_BYTES>() else {
            self.received.version += 1;
            return;
        };
        let block = (u64::from_le_bytes(*nonce), head.sequence, head.flags & FLAG_LAST != 0);
        let turn = self.joiner.block(at.now, block, &mut self.outbox);
        if turn == BlockTurn::Ignore {
            return;
        }
        let mut counts = RestoreCounts::default();
        while !rest.is_empty() {
            let Some((torrent, behind)) = parse_torrent(rest) else {
                self.received.version += 1;
                break;
            };
            self.restore(at.now, &torrent, &mut counts);
            rest = behind;
        }
        self.joiner.note_peers(counts.peers + counts.known);
        if turn == BlockTurn::ApplyLast {
            self.complete_join(at);
            self.joiner.end(at.now);
        }
    }

    /// Merges a torrent of another node.
    fn restore(&mut self, now: Now, torrent: &TorrentPart<'_>, counts: &mut RestoreCounts) {
        let terms = RestoreOptions {
            at: now,
            now,
            peer_age_s_max: self.options.peer_age_s_max,
            completed: CompletedMerge::Max,
        };
        self.store.restore(terms, torrent, &mut self.random, counts);
    }

    /// A join has ended, however: peers that left meanwhile leave again, and are forgotten. After a
    /// later join they may be back.
    fn complete_join(&mut self, at: Moment) {
        let leaves: Vec<PeerDelta> = self.leaves.take().collect();
        for delta in leaves {
            self.store.merge(at.now, &delta, &mut self.random);
        }
        let _ = self.complete.get_or_insert_with(|| at.wall_ms.saturating_mul(1_000_000));
        self.next_hello = at.now;
    }

    /// Whether this node can serve clients like the others.
    pub fn readiness(&self, at: Moment) -> Readiness {
        let conflict = self.namesake.is_some_and(|(first, last)| {
            at.now.ns_since(last) < GONE_NS && last.ns_since(first) >= GONE_NS * 2 / 3
        });
        match (conflict, self.joiner.is_first()) {
            (true, _) => Readiness::NameConflict,
            (false, true) => Readiness::Joining,
            (false, false) => Readiness::Ready,
        }
    }

    /// Everything that can be shown.
    pub fn view(&self, at: Moment) -> ClusterView {
        let own = &self.options.fingerprint;
        let mut nodes: Vec<_> = self.remotes.iter().map(|it| it.view(at.now, own)).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        ClusterView {
            cluster: self.options.cluster.clone(),
            node: self.options.node.clone(),
            is_connected: self.is_connected,
            readiness: self.readiness(at),
            nodes,
            sent_records: self.sent_records,
            sent_frames: self.sent_frames,
            received: self.received,
            lost: LostCounts {
                ring: self.ring_lost,
                queue: self.log.lost(),
                gap_frames: self.gap_frames,
                leaves: self.leaves.forgotten(),
            },
            queue_bytes: self.log.unsent_bytes() as u64,
            joins: self.joiner.counts(),
            join: self.joiner.progress(at.now),
            donations: self.donor.jobs() as u64,
        }
    }
}
