//! Gets the swarms of another node: at the start, and where frames of deltas were lost for good.
//!
//! ```text
//! asking ─▶ fetching ─▶ done        asking: nodes that are ready offer their swarms.
//!    ▲          │                   fetching: blocks in order, each confirmed; those that do not
//!    └──────────┘ no blocks         come are requested again, then from another node.
//! ```

use fastrand::Rng;

use super::donor::CREDIT;
use super::message::Body;
use super::outbox::Outbox;
use crate::time::Now;

/// How long to wait for the first offer.
const OFFER_NS_MAX: u64 = 2_000_000_000;

/// How long to wait for other offers after the first.
const OFFERS_NS_MAX: u64 = 300_000_000;

/// How long to wait for a block before it is requested again.
const BLOCK_NS_MAX: u64 = 1_000_000_000;

/// How long to wait for a block before the node that sends them is given up.
const SILENT_NS_MAX: u64 = 5_000_000_000;

/// How long after a join all nodes have what was published during it.
const SETTLED_NS: u64 = 2_000_000_000;

/// Blocks are confirmed when so many of them have arrived.
const CONFIRM_EVERY: u64 = CREDIT as u64 / 4;

/// The most offers, and the most nodes to catch up with.
const NODES_MAX: usize = 64;

/// How joins ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct JoinCounts {
    /// At the start, with the swarms of another node.
    pub joined: u64,
    /// At the start, without any: no other node is ready.
    pub alone: u64,
    /// At the start, when the time was over.
    pub timed_out: u64,
    /// Later, after deltas were lost.
    pub caught_up: u64,
    /// Later, without success.
    pub failed: u64,
}

/// A join that is under way.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct JoinProgress {
    /// The node that sends its swarms; none while one is looked for.
    pub from: Option<String>,
    /// Whether this is the join at the start.
    pub is_first: bool,
    /// Blocks so far.
    pub blocks: u64,
    /// Peers so far.
    pub peers: u64,
    /// Seconds so far.
    pub seconds: u64,
}

/// The joins of a node.
pub(super) struct Joiner {
    job: Option<Job>,
    /// What to get after this.
    later: Vec<Later>,
    counts: JoinCounts,
    random: Rng,
}

/// A join to come.
struct Later {
    from: String,
    /// Peers that have announced since; all, if `None`.
    since: Option<Now>,
    due: Now,
}

struct Job {
    is_first: bool,
    since: Option<Now>,
    begun: Now,
    deadline: Option<Now>,
    peers: u64,
    blocks: u64,
    phase: Phase,
}

enum Phase {
    /// The broker is not there.
    Disconnected,
    Asking {
        nonce: u64,
        since: Now,
        first_offer: Option<Now>,
        offers: Vec<(String, u64)>,
    },
    Fetching {
        nonce: u64,
        from: String,
        /// Other nodes that have offered theirs.
        others: Vec<(String, u64)>,
        /// The next block.
        next: u64,
        /// Blocks before this are confirmed.
        confirmed: u64,
        progress: Now,
        requested: Now,
    },
}

/// What to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockTurn {
    /// Apply it.
    Apply,
    /// Apply it; it is the last one.
    ApplyLast,
    /// It belongs to no join, or came before, or too early.
    Ignore,
}

impl Joiner {
    /// No join; `seed` is for their numbers.
    pub(super) fn new(seed: u64) -> Self {
        let counts = JoinCounts::default();
        Self { job: None, later: Vec::new(), counts, random: Rng::with_seed(seed) }
    }

    /// Begins the join at the start; it ends by the deadline.
    pub(super) fn begin(&mut self, now: Now, deadline: Now) {
        self.job = Some(Job {
            is_first: true,
            since: None,
            begun: now,
            deadline: Some(deadline),
            peers: 0,
            blocks: 0,
            phase: Phase::Disconnected,
        });
    }

    /// Gets what a node has that has announced since: all, if `None`.
    pub(super) fn catch_up(&mut self, from: &str, since: Option<Now>, due: Now) {
        if let Some(later) = self.later.iter_mut().find(|it| it.from == from) {
            later.since = later.since.and_then(|it| Some(it.min(since?)));
        } else if self.later.len() < NODES_MAX {
            self.later.push(Later { from: from.to_owned(), since, due });
        }
    }

    /// Whether a join is under way.
    pub(super) fn is_active(&self) -> bool {
        self.job.is_some()
    }

    /// Whether the join at the start is under way.
    pub(super) fn is_first(&self) -> bool {
        self.job.as_ref().is_some_and(|it| it.is_first)
    }

    /// How joins have ended.
    pub(super) fn counts(&self) -> JoinCounts {
        self.counts
    }

    /// The join that is under way.
    pub(super) fn progress(&self, now: Now) -> Option<JoinProgress> {
        let job = self.job.as_ref()?;
        let from = match &job.phase {
            Phase::Fetching { from, .. } => Some(from.clone()),
            _ => None,
        };
        let seconds = now.ns_since(job.begun) / 1_000_000_000;
        let &Job { is_first, blocks, peers, .. } = job;
        Some(JoinProgress { from, is_first, blocks, peers, seconds })
    }

    /// The broker is there, or gone.
    pub(super) fn connected(&mut self, now: Now, is_connected: bool, out: &mut Outbox) {
        let Some(job) = &mut self.job else { return };
        if is_connected {
            job.phase = ask(now, &mut self.random, out);
        } else {
            job.phase = Phase::Disconnected;
        }
    }

    /// A node offers its swarms.
    pub(super) fn offer(&mut self, now: Now, from: &str, nonce: u64, torrents: u64) {
        if let Some(Job { phase: Phase::Asking { nonce: own, first_offer, offers, .. }, .. }) =
            &mut self.job
            && *own == nonce
            && offers.len() < NODES_MAX
            && !offers.iter().any(|it| it.0 == from)
        {
            first_offer.get_or_insert(now);
            offers.push((from.to_owned(), torrents));
        }
    }

    /// The node that was asked sends to others already.
    pub(super) fn busy(&mut self, now: Now, from: &str, nonce: u64) {
        if let Some(Job { phase: Phase::Fetching { nonce: own, from: node, progress, .. }, .. }) =
            &mut self.job
            && *own == nonce
            && node == from
        {
            // As if it had not answered for long.
            *progress = Now::from_ns(now.ns().saturating_sub(SILENT_NS_MAX));
        }
    }

    /// A block has arrived.
    pub(super) fn block(
        &mut self,
        now: Now,
        (nonce, index, is_last): (u64, u64, bool),
        out: &mut Outbox,
    ) -> BlockTurn {
        let Some(job) = &mut self.job else { return BlockTurn::Ignore };
        let Phase::Fetching { nonce: own, from, next, confirmed, progress, requested, .. } =
            &mut job.phase
        else {
            return BlockTurn::Ignore;
        };
        if *own != nonce || index < *next {
            return BlockTurn::Ignore;
        }
        if index > *next {
            // A block before it was lost.
            if now.ns_since(*requested) >= BLOCK_NS_MAX {
                *requested = now;
                out.tell(Some(from), Body::Blocks { nonce, next: *next, again: true });
            }
            return BlockTurn::Ignore;
        }
        *next += 1;
        *progress = now;
        *requested = now;
        job.blocks += 1;
        if is_last || *next - *confirmed >= CONFIRM_EVERY {
            *confirmed = *next;
            out.tell(Some(from), Body::Blocks { nonce, next: *next, again: false });
        }
        if is_last { BlockTurn::ApplyLast } else { BlockTurn::Apply }
    }

    /// Counts the peers of a block that was applied.
    pub(super) fn note_peers(&mut self, peers: u64) {
        if let Some(job) = &mut self.job {
            job.peers += peers;
        }
    }

    /// The last block was applied.
    pub(super) fn end(&mut self, now: Now) {
        let Some(job) = self.job.take() else { return };
        if !job.is_first {
            self.counts.caught_up += 1;
            return;
        }
        self.counts.joined += 1;
        // A download that a third node reported to this one before the node that sent its swarms is
        // not in the count that came with them. A little later that node has it.
        if let Phase::Fetching { from, .. } = &job.phase {
            self.catch_up(from, Some(job.begun), Now::from_ns(now.ns() + SETTLED_NS));
        }
    }

    /// Goes on where time has passed. Returns true if a join has ended without all swarms of
    /// another node.
    pub(super) fn tick(&mut self, now: Now, is_connected: bool, out: &mut Outbox) -> bool {
        let Some(job) = &mut self.job else {
            if is_connected {
                self.begin_later(now, out);
            }
            return false;
        };
        if job.deadline.is_some_and(|it| now >= it) {
            self.counts.timed_out += 1;
            self.job = None;
            return true;
        }
        match &mut job.phase {
            Phase::Disconnected => false,
            Phase::Asking { since, first_offer, offers, .. } => {
                let waited_ns = now.ns_since(*since);
                let is_over = match first_offer {
                    None => waited_ns >= OFFER_NS_MAX,
                    Some(first) => now.ns_since(*first) >= OFFERS_NS_MAX,
                };
                if !is_over {
                    return false;
                }
                let mut offers = std::mem::take(offers);
                offers.sort_by_key(|it| it.1);
                if let Some((from, _)) = offers.pop() {
                    job.fetch(now, from, offers, &mut self.random, out);
                    return false;
                }
                self.end_without_offer()
            }
            Phase::Fetching { nonce, from, others, next, progress, requested, .. } => {
                if now.ns_since(*progress) >= SILENT_NS_MAX {
                    let mut others = std::mem::take(others);
                    match others.pop() {
                        Some((from, _)) => job.fetch(now, from, others, &mut self.random, out),
                        None if job.is_first => job.phase = ask(now, &mut self.random, out),
                        None => return self.end_without_offer(),
                    }
                } else if now.ns_since(*requested) >= BLOCK_NS_MAX {
                    *requested = now;
                    let body = Body::Blocks { nonce: *nonce, next: *next, again: true };
                    out.tell(Some(from), body);
                }
                false
            }
        }
    }

    /// No node is ready, or none goes on: the join has ended.
    fn end_without_offer(&mut self) -> bool {
        let count = if self.is_first() { &mut self.counts.alone } else { &mut self.counts.failed };
        *count += 1;
        self.job = None;
        true
    }

    fn begin_later(&mut self, now: Now, out: &mut Outbox) {
        let Some(at) = self.later.iter().position(|it| now >= it.due) else { return };
        let Later { from, since, .. } = self.later.swap_remove(at);
        let mut job = Job {
            is_first: false,
            since,
            begun: now,
            deadline: None,
            peers: 0,
            blocks: 0,
            phase: Phase::Disconnected,
        };
        job.fetch(now, from, Vec::new(), &mut self.random, out);
        self.job = Some(job);
    }
}

impl Job {
    fn fetch(
        &mut self,
        now: Now,
        from: String,
        others: Vec<(String, u64)>,
        random: &mut Rng,
        out: &mut Outbox,
    ) {
        let nonce = random.u64(..);
        // Ages are whole ticks, and the node's clock may run a little behind.
        let passed_s = |since: Now| now.ns_since(since) / 1_000_000_000 + MARGIN_S;
        let since_s = self.since.map(|it| u32::try_from(passed_s(it)).unwrap_or(u32::MAX));
        out.tell(Some(&from), Body::Start { nonce, since_s });
        self.phase = Phase::Fetching {
            nonce,
            from,
            others,
            next: 0,
            confirmed: 0,
            progress: now,
            requested: now,
        };
    }
}

/// Added to the age of peers that are to be sent.
const MARGIN_S: u64 = 16;

fn ask(now: Now, random: &mut Rng, out: &mut Outbox) -> Phase {
    let nonce = random.u64(..);
    out.tell(None, Body::Ask { nonce });
    Phase::Asking { nonce, since: now, first_offer: None, offers: Vec::new() }
}
