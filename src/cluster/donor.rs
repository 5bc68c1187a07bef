//! Sends this node's swarms to nodes that join: an export as for a snapshot, in blocks, under
//! credit.
//!
//! At most [`CREDIT`] blocks are under way to a node, so that neither a slow node nor a slow broker
//! gets more than it can hold. They are kept until they have arrived.

use std::collections::VecDeque;

use super::frame::{FLAG_LAST, FrameKind};
use super::message::Body;
use super::outbox::{Address, Outbox, Outgoing};
use crate::snapshot::{SwarmPayload, torrents_of};
use crate::store::{ExportBatch, Store, StoreExport, TorrentPart};
use crate::time::Now;

/// The most blocks that are sent before any of them has arrived: 4 MiB.
pub(super) const CREDIT: usize = 64;

/// Bytes of the join's number in front of a block.
pub(super) const NONCE_BYTES: usize = 8;

/// The most nodes that are sent swarms at once.
const JOBS_MAX: usize = 2;

/// The most joins whose numbers are remembered, so that a recorded request starts no other export.
const NUMBERS_MAX: usize = 256;

/// How long a node may take to confirm a block, before it is given up.
const SILENT_NS_MAX: u64 = 30_000_000_000;

/// Blocks that a slice of an export may fill.
const BLOCKS_PER_SLICE: usize = 4;

/// The swarms that are sent to others.
pub(super) struct Donor {
    jobs: Vec<Job>,
    numbers: VecDeque<u64>,
    /// Bytes that may be sent now.
    allowance: u64,
    bytes_s_max: u64,
    last: Now,
}

/// The swarms that are sent to one node.
struct Job {
    to: String,
    nonce: u64,
    since_s: Option<u32>,
    export: StoreExport,
    batch: ExportBatch,
    payload: SwarmPayload,
    is_exported: bool,
    /// Blocks that have not arrived, the first of them `arrived`.
    blocks: VecDeque<Block>,
    arrived: u64,
    progress: Now,
}

struct Block {
    payload: Vec<u8>,
    torrents: u32,
    is_last: bool,
}

impl Donor {
    /// Sends at most `bytes_s_max` bytes a second.
    pub(super) fn new(bytes_s_max: u64, now: Now) -> Self {
        let (jobs, numbers) = (Vec::new(), VecDeque::new());
        Self { jobs, numbers, allowance: 0, bytes_s_max, last: now }
    }

    /// Begins to send swarms to a node: all peers, or those that have announced since.
    pub(super) fn start(
        &mut self,
        now: Now,
        to: &str,
        (nonce, since_s): (u64, Option<u32>),
        out: &mut Outbox,
    ) {
        if self.numbers.contains(&nonce) {
            return;
        }
        // A node that starts another join has given up the one before.
        self.jobs.retain(|job| job.to != to);
        if self.jobs.len() == JOBS_MAX {
            out.tell(Some(to), Body::Busy { nonce });
            return;
        }
        if self.numbers.len() == NUMBERS_MAX {
            self.numbers.pop_front();
        }
        self.numbers.push_back(nonce);
        self.jobs.push(Job {
            to: to.to_owned(),
            nonce,
            since_s,
            export: StoreExport::new(now),
            batch: ExportBatch::default(),
            payload: SwarmPayload::default(),
            is_exported: false,
            blocks: VecDeque::new(),
            arrived: 0,
            progress: now,
        });
    }

    /// A node has all blocks before `next`; if `again`, it lacks the next ones.
    pub(super) fn blocks(
        &mut self,
        now: Now,
        from: &str,
        (nonce, next, again): (u64, u64, bool),
        out: &mut Outbox,
    ) {
        let Some(job) = self.jobs.iter_mut().find(|it| it.nonce == nonce && it.to == from) else {
            return;
        };
        let arrived = next.saturating_sub(job.arrived).min(job.blocks.len() as u64);
        for _ in 0..arrived {
            job.blocks.pop_front();
            job.arrived += 1;
            job.progress = now;
        }
        if again {
            (0..job.blocks.len()).for_each(|at| job.send(at, out));
        }
        self.jobs.retain(|job| !job.is_exported || !job.blocks.is_empty());
    }

    /// Goes on, as far as credit and the allowed rate permit. `is_draining`: this node is about to
    /// end, so nothing is begun.
    pub(super) fn tick(&mut self, now: Now, store: &Store, out: &mut Outbox) {
        let passed_ns = now.ns_since(self.last).min(1_000_000_000);
        self.last = now;
        let earned = u128::from(self.bytes_s_max) * u128::from(passed_ns) / 1_000_000_000;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        let most = (self.bytes_s_max / 4).max(1); // what was not used for a quarter of a second
        self.allowance = self.allowance.saturating_add(earned).min(most);
        self.jobs.retain(|job| now.ns_since(job.progress) < SILENT_NS_MAX);
        loop {
            let mut went_on = false;
            for job in &mut self.jobs {
                if self.allowance == 0 || !out.has_room() || !job.has_credit() {
                    continue;
                }
                let bytes = job.go_on(now, store, out);
                self.allowance = self.allowance.saturating_sub(bytes);
                went_on = true;
            }
            if !went_on {
                return;
            }
        }
    }

    /// The number of nodes that are sent swarms.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.len()
    }
}

impl Job {
    fn has_credit(&self) -> bool {
        !self.is_exported && self.blocks.len() + BLOCKS_PER_SLICE <= CREDIT
    }

    /// Exports one slice, and sends the blocks that it fills; returns their bytes.
    fn go_on(&mut self, now: Now, store: &Store, out: &mut Outbox) -> u64 {
        let first = self.blocks.len();
        if store.export(&mut self.export, &mut self.batch) {
            let mut batch = std::mem::take(&mut self.batch);
            if let Some(since_s) = self.since_s {
                keep_recent(&mut batch, since_s);
            }
            for torrent in torrents_of(&batch) {
                self.add(torrent);
            }
            self.batch = batch;
        } else {
            self.is_exported = true;
            self.end_block(true);
        }
        if first == 0 {
            self.progress = now; // from here on it waits for the node
        }
        let mut bytes = 1; // a slice without a block is not free
        for at in first..self.blocks.len() {
            bytes += self.blocks[at].payload.len() as u64;
            self.send(at, out);
        }
        bytes
    }

    fn add(&mut self, torrent: TorrentPart<'_>) {
        let mut rest = Some(torrent);
        while let Some(part) = rest {
            rest = self.payload.add(part);
            if rest.is_some() {
                self.end_block(false);
            }
        }
    }

    fn end_block(&mut self, is_last: bool) {
        let mut payload = Vec::with_capacity(NONCE_BYTES + self.payload.bytes().len());
        payload.extend_from_slice(&self.nonce.to_le_bytes());
        payload.extend_from_slice(self.payload.bytes());
        let torrents = self.payload.torrents();
        self.blocks.push_back(Block { payload, torrents, is_last });
        self.payload.clear();
    }

    fn send(&self, at: usize, out: &mut Outbox) {
        let Some(block) = self.blocks.get(at) else { return };
        out.push(Outgoing {
            to: Address::Node(self.to.clone()),
            kind: FrameKind::Block,
            flags: if block.is_last { FLAG_LAST } else { 0 },
            records: block.torrents,
            sequence: self.arrived + at as u64,
            payload: block.payload.clone(),
        });
    }
}

/// Removes the peers of a batch that have not announced for more than `since_s` seconds, and
/// torrents that have none of the others: their counts cannot have changed.
fn keep_recent(batch: &mut ExportBatch, since_s: u32) {
    let ExportBatch { torrents, v4, v6 } = batch;
    let is_recent = |age_s: u16| u32::from(age_s) <= since_s;
    let (mut at4, mut at6) = (0, 0);
    for torrent in torrents.iter_mut() {
        let (end4, end6) = (at4 + torrent.v4, at6 + torrent.v6);
        torrent.v4 = v4[at4..end4].iter().filter(|it| is_recent(it.age_s())).count();
        torrent.v6 = v6[at6..end6].iter().filter(|it| is_recent(it.age_s())).count();
        (at4, at6) = (end4, end6);
    }
    v4.retain(|it| is_recent(it.age_s()));
    v6.retain(|it| is_recent(it.age_s()));
    torrents.retain(|it| it.v4 + it.v6 > 0);
}
