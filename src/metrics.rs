//! What is counted: a closed list, one block per worker, summed by the control thread.
//!
//! A worker writes its own block only, so a count is a plain load and store: no locked
//! instruction, no lookup, no cache line that another worker writes. The control thread sums all
//! blocks about once a second into the exporter's handles.
//!
//! The sums add up: received = answered + refused + dropped, for each family.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::{Action, Answered, Dropped, Family, Refusal};

/// A count with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What can happen at the kernel's edge and is survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEvent {
    /// A multishot receive ended and was armed again.
    ReceiveRearmed,
    /// The provided buffers ran out (ENOBUFS).
    BuffersExhausted,
    /// The completion queue overflowed.
    CompletionOverflow,
    /// A receive failed.
    ReceiveFailed,
    /// The send queue was full (EAGAIN, ENOBUFS): the reply is lost.
    SendQueueFull,
    /// The host's firewall or policy refused the reply (EPERM, EACCES).
    SendRefused,
    /// No route to the client (ENETUNREACH, EHOSTUNREACH).
    SendUnreachable,
    /// The reply failed otherwise, e.g. its source address has gone (EINVAL, EADDRNOTAVAIL).
    SendFailed,
}

impl IoEvent {
    /// Every event, in index order.
    pub const ALL: [Self; 8] = [
        Self::ReceiveRearmed,
        Self::BuffersExhausted,
        Self::CompletionOverflow,
        Self::ReceiveFailed,
        Self::SendQueueFull,
        Self::SendRefused,
        Self::SendUnreachable,
        Self::SendFailed,
    ];

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ReceiveRearmed => "receive_rearmed",
            Self::BuffersExhausted => "buffers_exhausted",
            Self::CompletionOverflow => "completion_overflow",
            Self::ReceiveFailed => "receive_failed",
            Self::SendQueueFull => "send_queue_full",
            Self::SendRefused => "send_refused",
            Self::SendUnreachable => "send_unreachable",
            Self::SendFailed => "send_failed",
        }
    }
}

/// One family's datagrams as one worker saw them.
#[derive(Debug, Default)]
pub struct DatagramCounters {
    /// Datagrams taken from the sockets.
    pub received: Counter,
    /// Their payload bytes.
    pub received_bytes: Counter,
    /// Payload bytes of the replies.
    pub sent_bytes: Counter,
    /// Replies that are no error, by [`Action`].
    pub answered: [Counter; Action::ALL.len()],
    /// Error replies, by [`Refusal`].
    pub refused: [Counter; Refusal::ALL.len()],
    /// Silences, by [`Dropped`].
    pub dropped: [Counter; Dropped::ALL.len()],
}

/// Durations counted by powers of two: cheap to record, and quantiles within a factor of two.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [Counter; Self::BUCKETS],
    /// Nanoseconds of all durations together.
    pub sum_ns: Counter,
}

impl DurationHistogram {
    /// How many buckets there are; the last one holds everything from 2^30 ns (1.07 s) on.
    pub const BUCKETS: usize = 32;

    /// Counts one duration.
    #[inline]
    pub fn record(&self, ns: u64) {
        let bits = (u64::BITS - ns.leading_zeros()) as usize;
        self.buckets[bits.min(Self::BUCKETS - 1)].add(1);
        self.sum_ns.add(ns);
    }

    /// How many durations were at least 2^(index - 1) ns (0 for the first) and below 2^index ns.
    pub fn bucket(&self, index: usize) -> &Counter {
        &self.buckets[index]
    }
}

/// Everything one worker counts. Written by that worker alone.
///
/// Aligned to two cache lines, as the prefetcher fetches them in pairs: where several of these lie
/// side by side, no worker's counting takes a line from another's CPU.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    datagrams: [DatagramCounters; Family::ALL.len()],
    io_events: [Counter; IoEvent::ALL.len()],
    /// Turns of the worker's loop.
    pub turns: Counter,
    /// Nanoseconds of CPU time the worker has used, the kernel's work for it included.
    pub busy_ns: Counter,
    /// How long turns took from the reading of the clock until all replies were queued, of one
    /// turn in 64: no datagram of such a turn waited longer inside the worker.
    pub handling: DurationHistogram,
    /// Nanoseconds since start at the latest turn: the worker's heartbeat.
    pub elapsed_ns: Counter,
}

impl WorkerCounters {
    /// One family's part.
    pub fn datagrams(&self, family: Family) -> &DatagramCounters {
        &self.datagrams[family as usize]
    }

    /// How often an event happened.
    pub fn io_event(&self, event: IoEvent) -> &Counter {
        &self.io_events[event as usize]
    }

    /// Counts one handled datagram: the single place where verdicts become counts.
    #[inline]
    pub fn count(&self, family: Family, bytes: usize, verdict: Result<Answered, Dropped>) {
        let it = self.datagrams(family);
        it.received.add(1);
        it.received_bytes.add(bytes as u64);
        match verdict {
            Ok(Answered { action, bytes, refusal: None }) => {
                it.answered[action as usize].add(1);
                it.sent_bytes.add(bytes as u64);
            }
            Ok(Answered { bytes, refusal: Some(refusal), .. }) => {
                it.refused[refusal as usize].add(1);
                it.sent_bytes.add(bytes as u64);
            }
            Err(dropped) => it.dropped[dropped as usize].add(1),
        }
    }
}
