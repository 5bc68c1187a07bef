//! Memory of connections: one account for the process, bounded by a part of the memory that the
//! process may use.
//!
//! ```text
//! connection ─▶ account of its worker ─▶ account of all workers     in chunks of 16 KiB
//!            └▶ bytes held by its source (admission)                decide which is closed first
//! ```
//!
//! If the account is full, connections of the source that holds most are closed. If connections
//! were compared one by one, thousands of connections that hold little each would keep out every
//! client that sends a message. Within a source, the connection that holds most is closed first; of
//! equal ones, the youngest.
//!
//! Each worker has a part of the account. It closes its own connections if they hold more than that
//! part and the account is full. It may be busy at that moment: the other workers continue
//! meanwhile, but receive nothing while the account is an eighth over its bound
//! ([`MemoryWaiters`]).

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Resident bytes of an idle connection: its task, its slot, its buffer of 1 KiB, the counts of its
/// source. Measured with 3 000 connections, over HTTP and as WebSockets, in a development build: 3
/// 475 to 3 497 bytes each on io_uring, 2 798 to 3 495 with epoll.
pub(super) const IDLE_BYTES: u64 = 4096;

/// What TLS adds: measured in the same way, 8 376 to 8 413 bytes.
pub(super) const TLS_BYTES: usize = 9 * 1024;

/// What a new connection is expected to hold. A source loses connections to a newcomer only if it
/// holds more than twice as much as the newcomer's source with its new connection; otherwise
/// connections would replace each other without end. An idle connection with TLS is below that
/// bound too. With a higher bound, hundreds of sources just below it could keep all others out.
const NEWCOMER_BYTES: u64 = 8 * 1024;

/// Largest difference between a worker's account and what it has published.
const CHUNK_BYTES: u64 = 16 * 1024;

/// How often a waiting task checks for room: what connections hold also shrinks without a notice.
const ROOM_TICK: Duration = Duration::from_millis(100);

/// Bytes held by all connections of the process, and by messages between their workers.
#[derive(Debug, Default)]
pub(super) struct Account(AtomicU64);

impl Account {
    /// Bytes held, accurate to a chunk for each worker.
    pub(super) fn held(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Records that something that took `before` bytes now takes `after`.
    pub(super) fn change(&self, before: u64, after: u64) {
        self.0.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }
}

/// What the connections of one worker hold.
#[derive(Debug, Default)]
pub(super) struct WorkerAccount {
    held: Cell<u64>,
    /// The part that is on the account of all workers.
    published: Cell<u64>,
}

impl WorkerAccount {
    /// Bytes held.
    pub(super) fn held(&self) -> u64 {
        self.held.get()
    }

    /// Records that a connection that held `before` bytes now holds `after`.
    pub(super) fn change(&self, account: &Account, before: u64, after: u64) {
        let held = self.held.get() + after - before;
        self.held.set(held);
        if held.abs_diff(self.published.get()) >= CHUNK_BYTES || held == 0 {
            account.change(self.published.replace(held), held);
        }
    }
}

/// What a connection holds in addition to an idle one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BufferKind {
    /// Received, but not yet a whole request or frame.
    Input,
    /// Fragments of a WebSocket message.
    Message,
    /// Response bytes that are being written.
    Output,
    /// Bytes that wait to be written to a WebSocket.
    Queue,
    /// A TLS session, with what it has received or not sent.
    Tls,
    /// The torrents and offers of a WebSocket.
    Session,
}

impl BufferKind {
    /// Resident bytes of `bytes` requested ones. A growing buffer is allocated anew and leaves
    /// pages that are partly free: with every buffer full, 8.4 MB of requests took 15.4 MB.
    fn resident(self, bytes: usize) -> u32 {
        let bytes = match self {
            Self::Input | Self::Message | Self::Output | Self::Queue => bytes + bytes / 2,
            Self::Tls | Self::Session => bytes,
        };
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

const PARTS: usize = BufferKind::Session as usize + 1;

/// What one connection holds, by kind.
#[derive(Debug, Default)]
pub(super) struct ConnectionMemory([Cell<u32>; PARTS]);

impl ConnectionMemory {
    /// Sets one kind; returns the total before and after.
    pub(super) fn set(&self, part: BufferKind, bytes: usize) -> (u64, u64) {
        let before = self.total();
        self.0[part as usize].set(part.resident(bytes));
        (before, self.total())
    }

    /// Whether a kind already has this size.
    pub(super) fn is(&self, part: BufferKind, bytes: usize) -> bool {
        self.0[part as usize].get() == part.resident(bytes)
    }

    /// Bytes held in all.
    pub(super) fn total(&self) -> u64 {
        IDLE_BYTES + self.0.iter().map(|it| u64::from(it.get())).sum::<u64>()
    }
}

/// What connections may hold, for one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryAllowance {
    /// Bytes that all connections may hold.
    pub(super) all_max: u64,
    /// Bytes that this worker's connections may hold, however much those of others hold.
    pub(super) part: u64,
}

impl MemoryAllowance {
    /// Divides `all_max` bytes among the workers.
    pub(super) fn new(all_max: u64, workers: usize) -> Self {
        Self { all_max, part: all_max / (workers as u64).max(1) }
    }

    /// The bound for new connections: a quarter is reserved for what open connections receive and
    /// send.
    pub(super) fn for_new(self) -> Self {
        Self { all_max: self.all_max / 4 * 3, part: self.part / 4 * 3 }
    }

    /// Whether a worker waits until others have freed memory, because its own connections are
    /// within its part.
    pub(super) fn is_waiting(self, all: u64, own: u64) -> bool {
        all > self.all_max + self.all_max / 8 && own <= self.part
    }

    /// Bytes to free if all workers together hold `all` and this one `own`: an eighth of the
    /// worker's part more than needed, so that the next search is not due at once.
    pub(super) fn excess(self, all: u64, own: u64) -> u64 {
        if all <= self.all_max || own <= self.part {
            return 0;
        }
        (own - self.part).min(all - self.all_max) + self.part / 8
    }
}

/// How workers wait for room on the account.
#[derive(Debug)]
pub(super) struct MemoryWaiters {
    /// For each worker: signals that others wait for it to free memory.
    asked: Vec<Notify>,
    /// Signals that memory was freed.
    made: Notify,
}

impl MemoryWaiters {
    pub(super) fn new(workers: usize) -> Self {
        Self { asked: (0..workers).map(|_| Notify::new()).collect(), made: Notify::new() }
    }

    /// Returns once another worker waits for this one to free memory.
    pub(super) async fn wait_for_request(&self, worker: u16) {
        match self.asked.get(usize::from(worker)) {
            Some(notify) => notify.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Wakes all waiting tasks.
    pub(super) fn note_made(&self) {
        self.made.notify_waiters();
    }

    /// Requests that all other workers free memory, and waits while there is no room.
    pub(super) async fn wait(&self, worker: u16, is_waiting: impl Fn() -> bool) {
        loop {
            let made = self.made.notified(); // before the check, or the notice might be missed
            if !is_waiting() {
                return;
            }
            let others = (0..).zip(&self.asked).filter(|(other, _)| *other != worker);
            others.for_each(|(_, it)| it.notify_one());
            let _ = tokio::time::timeout(ROOM_TICK, made).await;
        }
    }
}

/// Bytes above which a source may lose a connection to a new one whose source holds `source_bytes`.
pub(super) fn evicted_above(source_bytes: u64) -> u64 {
    (source_bytes + NEWCOMER_BYTES) * 2
}

/// A connection that may be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClosableConnection {
    /// Its source, as a number.
    pub(super) source: usize,
    /// Bytes that the connection holds.
    pub(super) bytes: u64,
    /// How many connections the worker had before it.
    pub(super) opened: u64,
    /// Bytes that all connections of its source hold, those of other workers included.
    pub(super) source_bytes: u64,
    /// Its index in the caller's list.
    pub(super) at: usize,
}

/// Chooses connections to close until they hold `needed` bytes, among sources that hold more than
/// `above`: always from the source that holds most at that step.
pub(super) fn choose(mut holders: Vec<ClosableConnection>, needed: u64, above: u64) -> Vec<usize> {
    // Within a source, those to close first are at the end.
    holders.sort_unstable();
    let mut sources: Vec<&[ClosableConnection]> =
        holders.chunk_by(|one, other| one.source == other.source).collect();
    let key =
        |left: u64, of: &[ClosableConnection]| (left, of.last().map(|it| (it.bytes, it.opened)));
    let mut heap: BinaryHeap<_> = (0..sources.len())
        .map(|at| {
            let total = sources[at].iter().map(|it| it.source_bytes).max().unwrap_or(0);
            (key(total, sources[at]), Reverse(at))
        })
        .collect();
    let (mut chosen, mut freed) = (Vec::new(), 0);
    while freed < needed
        && let Some(((left, _), Reverse(at))) = heap.pop()
        && left > above
    {
        let Some((last, rest)) = sources[at].split_last() else { continue };
        chosen.push(last.at);
        freed += last.bytes;
        sources[at] = rest;
        if !rest.is_empty() {
            heap.push((key(left.saturating_sub(last.bytes), rest), Reverse(at)));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_follows_workers_within_a_chunk_and_ends_at_nothing() {
        let (account, workers) = (Account::default(), [(); 3].map(|()| WorkerAccount::default()));
        let mut random = fastrand::Rng::with_seed(1);
        let mut held = [[0_u64; 10]; 3];
        for _ in 0..20_000 {
            let (worker, connection) = (random.usize(..3), random.usize(..10));
            let after = random.u64(..100_000);
            workers[worker].change(&account, held[worker][connection], after);
            held[worker][connection] = after;
            let all: u64 = held.iter().flatten().sum();
            assert!(account.held().abs_diff(all) < 3 * CHUNK_BYTES);
            assert_eq!(workers[worker].held(), held[worker].iter().sum::<u64>());
        }
        for (worker, held) in workers.iter().zip(held) {
            held.iter().for_each(|it| worker.change(&account, *it, 0));
        }
        assert_eq!(account.held(), 0);
    }

    #[test]
    fn what_is_held_is_the_sum_of_its_parts() {
        let held = ConnectionMemory::default();
        assert_eq!(held.set(BufferKind::Input, 10), (IDLE_BYTES, IDLE_BYTES + 15));
        assert_eq!(held.set(BufferKind::Session, 5), (IDLE_BYTES + 15, IDLE_BYTES + 20));
        assert!(held.is(BufferKind::Session, 5) && !held.is(BufferKind::Input, 5));
        assert_eq!(held.set(BufferKind::Input, 0).1, IDLE_BYTES + 5);
    }

    #[test]
    fn a_worker_gives_back_only_what_is_beyond_its_part_and_only_if_all_is_taken() {
        let bound = MemoryAllowance::new(8_000, 2);
        assert_eq!((bound.excess(8_000, 6_000), bound.excess(9_000, 4_000)), (0, 0));
        assert_eq!(bound.excess(9_000, 7_000), 1_000 + 500);
        assert_eq!(bound.excess(12_000, 4_100), 100 + 500);
        assert_eq!(bound.for_new(), MemoryAllowance { all_max: 6_000, part: 3_000 });
    }

    #[test]
    fn a_worker_within_its_part_waits_while_the_account_is_an_eighth_over() {
        let bound = MemoryAllowance::new(8_000, 2);
        assert!(bound.is_waiting(9_001, 4_000) && bound.is_waiting(9_001, 0));
        assert!(!bound.is_waiting(9_000, 4_000) && !bound.is_waiting(9_001, 4_001));
    }

    #[tokio::test]
    async fn who_waits_for_room_asks_the_others_and_goes_on_once_there_is_some() {
        let (room, is_full) = (MemoryWaiters::new(3), Cell::new(true));
        let give_back = async {
            tokio::join!(room.wait_for_request(0), room.wait_for_request(2));
            is_full.set(false);
            room.note_made();
        };
        tokio::join!(room.wait(1, || is_full.get()), give_back);
        let asked_itself = tokio::time::timeout(Duration::ZERO, room.wait_for_request(1)).await;
        assert!(asked_itself.is_err());
    }

    fn holder(at: usize, source: usize, bytes: u64, source_bytes: u64) -> ClosableConnection {
        ClosableConnection { source, bytes, opened: at as u64, source_bytes, at }
    }

    #[test]
    fn the_source_that_holds_most_loses_its_largest_connection_first() {
        let holders = vec![
            holder(0, 7, 50, 50),
            holder(1, 8, 30, 100),
            holder(2, 8, 40, 100),
            holder(3, 8, 30, 100),
            holder(4, 9, 60, 60),
        ];
        // First the source with 100 bytes loses its connection of 40. Then both sources hold 60,
        // and the only connection of the other one is larger.
        assert_eq!(choose(holders.clone(), 101, 0), [2, 4, 3]);
        assert_eq!(choose(holders.clone(), 1, 0), [2]);
        assert_eq!(choose(holders.clone(), u64::MAX, 60), [2]);
        assert!(choose(holders, u64::MAX, 100).is_empty());
    }

    #[test]
    fn of_equal_ones_the_youngest_is_closed_first() {
        let holders: Vec<_> = (0..5).map(|it| holder(it, it, 10, 10)).collect();
        assert_eq!(choose(holders, 25, 0), [4, 3, 2]);
    }

    #[test]
    fn choosing_among_very_many_of_one_source_is_quick() {
        let holders: Vec<_> = (0..100_000).map(|it| holder(it, it % 2, 10, 500_000)).collect();
        assert_eq!(choose(holders, 500_000, 0).len(), 50_000);
    }
}
