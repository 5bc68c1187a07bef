//! What is counted: a closed list, one block of counts per worker.
//!
//! A worker writes its own block only, so a count is a plain load and store: no locked
//! instruction, no lookup, no cache line that another worker writes. Readers sum the blocks: a
//! scrape of `/metrics`, and the control thread once a second for the statistics pages (both in
//! `server::metrics`).
//!
//! The sums add up: datagrams received = answered + refused + dropped, requests received =
//! answered + refused + rejected, for each family.

use std::sync::atomic::{AtomicU64, Ordering};

use strum::{EnumCount, IntoStaticStr, VariantArray};

pub use crate::types::Transport;
use crate::types::{Action, DatagramResponse, Dropped, Family, NotStored, Refusal, Rejected};

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

/// Announces of one worker that were answered though their peers were not stored, by reason. Each
/// is among the answered as well.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct NotStoredCounters([Counter; NotStored::ALL.len()]);

impl NotStoredCounters {
    /// How often for this reason.
    pub fn of(&self, reason: NotStored) -> &Counter {
        &self.0[reason as usize]
    }
}

/// What can happen at the kernel's edge and is survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum IoEvent {
    /// A multishot receive ended and was armed again.
    ReceiveRearmed,
    /// The provided buffers ran out (ENOBUFS).
    BuffersExhausted,
    /// The completion queue overflowed.
    CompletionOverflow,
    /// A receive failed.
    ReceiveFailed,
    /// The send queue was full (EAGAIN, ENOBUFS): the response is lost.
    SendQueueFull,
    /// The host's firewall or policy refused the response (EPERM, EACCES).
    SendRefused,
    /// No route to the client (ENETUNREACH, EHOSTUNREACH).
    SendUnreachable,
    /// The response failed otherwise, e.g. its source address has gone (EINVAL, EADDRNOTAVAIL).
    SendFailed,
}

impl IoEvent {
    /// Every event, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// One family's datagrams as one worker saw them.
#[derive(Debug, Default)]
pub struct DatagramCounters {
    /// Datagrams taken from the sockets.
    pub received: Counter,
    /// Their payload bytes.
    pub received_bytes: Counter,
    /// Payload bytes of the responses.
    pub sent_bytes: Counter,
    /// Responses that are no error, by [`Action`].
    pub answered: [Counter; Action::ALL.len()],
    /// Error responses, by [`Refusal`].
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
    /// How long turns took from the reading of the clock until all responses were queued, of one
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
    pub fn count(&self, family: Family, bytes: usize, verdict: Result<DatagramResponse, Dropped>) {
        let datagrams = self.datagrams(family);
        datagrams.received.add(1);
        datagrams.received_bytes.add(bytes as u64);
        match verdict {
            Ok(DatagramResponse { action, bytes, refusal: None }) => {
                datagrams.answered[action as usize].add(1);
                datagrams.sent_bytes.add(bytes as u64);
            }
            Ok(DatagramResponse { bytes, refusal: Some(refusal), .. }) => {
                datagrams.refused[refusal as usize].add(1);
                datagrams.sent_bytes.add(bytes as u64);
            }
            Err(dropped) => datagrams.dropped[dropped as usize].add(1),
        }
    }
}

/// A number that rises and falls, with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more. Only the owning worker may call this.
    #[inline]
    pub fn rise(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    /// One less. Only the owning worker may call this.
    #[inline]
    pub fn fall(&self) {
        debug_assert!(self.get() > 0, "what falls rose before");
        self.0.store(self.get().wrapping_sub(1), Ordering::Relaxed);
    }

    /// Another number. Only the owning worker may call this.
    #[inline]
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The number now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a connection ended. Each accepted connection ends for exactly one of these reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum CloseReason {
    /// The client closed it.
    ByClient,
    /// It was answered, and was not to be kept open.
    Done,
    /// The head of a request did not arrive in time, or a PROXY header or TLS handshake before it.
    HeadTimeout,
    /// No request came for too long; of a WebSocket: no pong, or half a message.
    IdleTimeout,
    /// The client did not take what was written to it.
    WriteStalled,
    /// More waited to be sent to a WebSocket than may wait.
    SendQueueFull,
    /// Its source has as many connections as it may have.
    PerSourceCap,
    /// There are as many connections as there may be.
    GlobalCap,
    /// Connections hold as much memory as they may, and its source most of it; or it is new, and
    /// no source holds far more than its own.
    Memory,
    /// Its source is over its limit, and the work was not an announce or scrape.
    Limited,
    /// A PROXY header that cannot be read, or no TLS where it is expected.
    BadPreamble,
    /// A WebSocket frame that breaks RFC 6455.
    BadFrame,
    /// The TLS handshake, or a TLS record, failed.
    TlsFailed,
    /// The kernel reported an error, most often a reset by the client.
    IoError,
    /// The tracker stopped.
    Stopped,
}

impl CloseReason {
    /// Every reason, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Handshake {
    /// With the whole exchange of keys and certificates.
    Full,
    /// By resuming an earlier session.
    Resumed,
    /// Not at all.
    Failed,
}

impl Handshake {
    /// Every way, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Why an offer or an answer did not reach another WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum DeliveryFailure {
    /// An offer that no client could take up.
    Unusable,
    /// The peer it was for has left, or its socket has closed.
    ReceiverGone,
    /// The receiver was handed as many offers of that torrent in a minute as it may be, by networks
    /// that have at least as much right.
    OverQuota,
    /// Too much waits for the receiver's socket to take it.
    QueueFull,
    /// Too much waits for the receiver's worker.
    InboxFull,
}

impl DeliveryFailure {
    /// Every reason, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// One family's requests over one transport as one worker saw them: HTTP requests, or the messages
/// of WebSockets.
#[derive(Debug, Default)]
pub struct RequestCounters {
    /// Requests that were complete, or wrong for certain.
    pub received: Counter,
    /// Those given what they asked for, by [`Action`].
    pub answered: [Counter; Action::ALL.len()],
    /// Those refused in words that the client can read, by [`Refusal`].
    pub refused: [Counter; Refusal::ALL.len()],
    /// Those met with an HTTP error, an error message or an end, by [`Rejected`].
    pub rejected: [Counter; Rejected::ALL.len()],
}

/// Everything one stream worker counts. Written by that worker alone; aligned as
/// [`WorkerCounters`].
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct StreamCounters {
    requests: [[RequestCounters; Family::ALL.len()]; Transport::ALL.len()],
    open: [Gauge; Transport::ALL.len()],
    received_bytes: [Counter; Transport::ALL.len()],
    sent_bytes: [Counter; Transport::ALL.len()],
    closed: [Counter; CloseReason::ALL.len()],
    handshakes: [Counter; Handshake::ALL.len()],
    messages_lost: [Counter; DeliveryFailure::ALL.len()],
    /// Connections accepted. Those that still live are `open`, the others `closed`.
    pub accepted: Counter,
    /// Accepts that failed: most often because the process has no descriptor left.
    pub accept_errors: Counter,
    /// Of the open connections, those over TLS.
    pub open_tls: Gauge,
    /// Connections that became WebSockets.
    pub upgrades: Counter,
    /// Offers and answers handed from one WebSocket to another.
    pub messages_delivered: Counter,
    /// Nanoseconds of CPU time the worker has used, the kernel's work for it included.
    pub busy_ns: Counter,
    /// Nanoseconds since start at the latest look at the clock, ten a second: the heartbeat.
    pub elapsed_ns: Counter,
}

impl StreamCounters {
    /// One family's requests over one transport.
    pub fn requests(&self, transport: Transport, family: Family) -> &RequestCounters {
        &self.requests[transport as usize][family as usize]
    }

    /// Connections that are open, by what is spoken on them. A connection is HTTP until it is
    /// upgraded.
    pub fn open(&self, transport: Transport) -> &Gauge {
        &self.open[transport as usize]
    }

    /// Bytes read from connections, without what TLS adds.
    pub fn received_bytes(&self, transport: Transport) -> &Counter {
        &self.received_bytes[transport as usize]
    }

    /// Bytes written to connections, without what TLS adds.
    pub fn sent_bytes(&self, transport: Transport) -> &Counter {
        &self.sent_bytes[transport as usize]
    }

    /// How many connections ended for this reason.
    pub fn closed(&self, reason: CloseReason) -> &Counter {
        &self.closed[reason as usize]
    }

    /// How many offers and answers were lost for this reason.
    pub fn messages_lost(&self, reason: DeliveryFailure) -> &Counter {
        &self.messages_lost[reason as usize]
    }

    /// How many TLS handshakes ended so.
    pub fn handshakes(&self, how: Handshake) -> &Counter {
        &self.handshakes[how as usize]
    }
}
