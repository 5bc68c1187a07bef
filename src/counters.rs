//! The counters: a closed list, one block per worker.
//!
//! A worker writes its own block only, so counting is a plain load and store: no locked
//! instruction, no lookup, no cache line that another worker writes. Readers sum the blocks: a
//! scrape of `/metrics`, and the control thread once a second for the statistics pages (both in
//! `server::metrics`).
//!
//! Each family's sums are consistent: datagrams received = answered + refused + dropped, requests
//! received = answered + refused + rejected.

use std::sync::atomic::{AtomicU64, Ordering};

use strum::{EnumCount, IntoStaticStr, VariantArray};

pub use crate::types::Transport;
use crate::types::{Action, DatagramResponse, Dropped, Family, NotStored, Refusal, Rejected};

/// A counter with one writer and any number of readers.
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

/// Announces of one worker that got a response although their peers were not stored, by reason.
/// Each also counts as `answered`.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct NotStoredCounters([Counter; NotStored::ALL.len()]);

impl NotStoredCounters {
    /// The number of such announces with this reason.
    pub fn of(&self, reason: NotStored) -> &Counter {
        &self.0[reason as usize]
    }
}

/// Recoverable events of socket I/O.
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
    /// The send failed otherwise, e.g. its source address was removed (EINVAL, EADDRNOTAVAIL).
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

/// Frames of AF_XDP sockets. Each that was received is also a datagram, unless its checksum was bad
/// or it was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum FrameEvent {
    /// Taken from the receive ring.
    Received,
    /// Put into the send ring.
    Sent,
    /// Received with a wrong checksum, or without one over IPv6: dropped.
    BadChecksum,
    /// Received, and not a plain UDP datagram: dropped.
    NotUnderstood,
    /// Dropped by the kernel because the receive ring was full.
    RingFull,
    /// Dropped by the kernel for another reason: it had no frame to receive into, or too short a
    /// one.
    Dropped,
    /// Times that the kernel had no frame to receive into.
    FillEmpty,
}

impl FrameEvent {
    /// Every event, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// One family's datagrams of one worker.
#[derive(Debug, Default)]
pub struct DatagramCounters {
    /// Datagrams taken from the sockets, those of AF_XDP among them.
    pub received: Counter,
    /// Their payload bytes.
    pub received_bytes: Counter,
    /// Payload bytes of the responses.
    pub sent_bytes: Counter,
    /// Successful responses, by [`Action`].
    pub answered: [Counter; Action::ALL.len()],
    /// Error responses, by [`Refusal`].
    pub refused: [Counter; Refusal::ALL.len()],
    /// Datagrams without a response, by [`Dropped`].
    pub dropped: [Counter; Dropped::ALL.len()],
}

/// A histogram of durations by powers of two: cheap to record, and quantiles are exact to a factor
/// of two.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [Counter; Self::BUCKETS],
    /// The sum of all durations in nanoseconds.
    pub sum_ns: Counter,
}

impl DurationHistogram {
    /// The number of buckets; the last bucket holds all durations from 2^30 ns (1.07 s) on.
    pub const BUCKETS: usize = 32;

    /// Counts one duration.
    #[inline]
    pub fn record(&self, ns: u64) {
        let bits = (u64::BITS - ns.leading_zeros()) as usize;
        self.buckets[bits.min(Self::BUCKETS - 1)].add(1);
        self.sum_ns.add(ns);
    }

    /// The number of durations of at least 2^(index - 1) ns (0 for the first) and below 2^index ns.
    pub fn bucket(&self, index: usize) -> &Counter {
        &self.buckets[index]
    }
}

/// All counters of one datagram worker. Written by that worker alone.
///
/// Aligned to two cache lines, because the prefetcher fetches lines in pairs: adjacent blocks of
/// two workers never share a line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    datagrams: [DatagramCounters; Family::ALL.len()],
    io_events: [Counter; IoEvent::ALL.len()],
    frames: [Counter; FrameEvent::ALL.len()],
    /// Iterations of the worker's loop.
    pub turns: Counter,
    /// Nanoseconds of CPU time of the worker, system time included.
    pub busy_ns: Counter,
    /// Durations of one loop iteration in 64, from the clock reading until all responses were
    /// queued: an upper bound on the time that a datagram of the iteration spent in the worker.
    pub handling: DurationHistogram,
    /// Nanoseconds since start at the latest iteration: the worker's heartbeat.
    pub elapsed_ns: Counter,
}

impl WorkerCounters {
    /// The counters of one family.
    pub fn datagrams(&self, family: Family) -> &DatagramCounters {
        &self.datagrams[family as usize]
    }

    /// The number of these events.
    pub fn io_event(&self, event: IoEvent) -> &Counter {
        &self.io_events[event as usize]
    }

    /// The number of frames of AF_XDP sockets to which this happened.
    pub fn frames(&self, event: FrameEvent) -> &Counter {
        &self.frames[event as usize]
    }

    /// Counts one handled datagram: the only place where results become counts.
    #[inline]
    pub fn count(&self, family: Family, bytes: usize, verdict: Result<DatagramResponse, Dropped>) {
        let datagrams = self.datagrams(family);
        datagrams.received.add(1);
        datagrams.received_bytes.add(bytes as u64);
        match verdict {
            Ok(DatagramResponse { action, bytes, refusal: None, .. }) => {
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

/// A gauge with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds 1. Only the owning worker may call this.
    #[inline]
    pub fn rise(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    /// Subtracts 1. Only the owning worker may call this.
    #[inline]
    pub fn fall(&self) {
        debug_assert!(self.get() > 0, "what falls rose before");
        self.0.store(self.get().wrapping_sub(1), Ordering::Relaxed);
    }

    /// Sets the value. Only the owning worker may call this.
    #[inline]
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The current value.
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
    /// The response was sent, and the connection was not to be kept open.
    Done,
    /// The head of a request, or the PROXY header or TLS handshake before it, did not arrive in
    /// time.
    HeadTimeout,
    /// No request arrived within the timeout; for a WebSocket: no pong, or an incomplete message.
    IdleTimeout,
    /// The client did not read the response in time.
    WriteStalled,
    /// The send queue of a WebSocket exceeded its limit.
    SendQueueFull,
    /// Its source has reached the limit on connections per source.
    PerSourceCap,
    /// The global limit on connections is reached.
    GlobalCap,
    /// The memory limit for connections is reached and its source holds most of that memory; or the
    /// connection is new and no source holds far more than its own.
    Memory,
    /// Its source exceeded the rate limit with work that is not an announce or scrape.
    Limited,
    /// The PROXY header is invalid, or TLS was expected and not used.
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
    /// A full handshake with certificate and key exchange.
    Full,
    /// An earlier session was resumed.
    Resumed,
    /// The handshake failed.
    Failed,
}

impl Handshake {
    /// Every result, in index order.
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
    /// The offer cannot be used by any client.
    Unusable,
    /// The receiving peer has left, or its socket has closed.
    ReceiverGone,
    /// The receiver has reached its quota of offers per minute for the torrent, and the new offer
    /// does not displace another.
    OverQuota,
    /// The send queue of the receiver's socket is full.
    QueueFull,
    /// The inbox of the receiver's worker is full.
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

/// One family's requests over one transport of one worker: HTTP requests, or WebSocket messages.
#[derive(Debug, Default)]
pub struct RequestCounters {
    /// Requests that were complete or definitely invalid.
    pub received: Counter,
    /// Successful requests, by [`Action`].
    pub answered: [Counter; Action::ALL.len()],
    /// Requests refused with a text for the client, by [`Refusal`].
    pub refused: [Counter; Refusal::ALL.len()],
    /// Requests rejected with an HTTP error, an error message or a closed connection, by
    /// [`Rejected`].
    pub rejected: [Counter; Rejected::ALL.len()],
}

/// All counters of one stream worker. Written by that worker alone; aligned as [`WorkerCounters`].
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
    /// Accepted connections. Each is counted in `open` while it lives and in `closed` afterwards.
    pub accepted: Counter,
    /// Failed accepts: most often because the process has no file descriptor left.
    pub accept_errors: Counter,
    /// Open connections over TLS.
    pub open_tls: Gauge,
    /// Connections that became WebSockets.
    pub upgrades: Counter,
    /// Offers and answers handed from one WebSocket to another.
    pub messages_delivered: Counter,
    /// Nanoseconds of CPU time of the worker, system time included.
    pub busy_ns: Counter,
    /// Nanoseconds since start at the latest clock reading (ten a second): the heartbeat.
    pub elapsed_ns: Counter,
}

impl StreamCounters {
    /// One family's requests over one transport.
    pub fn requests(&self, transport: Transport, family: Family) -> &RequestCounters {
        &self.requests[transport as usize][family as usize]
    }

    /// Open connections of a transport. A connection counts as HTTP until it is upgraded.
    pub fn open(&self, transport: Transport) -> &Gauge {
        &self.open[transport as usize]
    }

    /// Bytes read from connections, without TLS overhead.
    pub fn received_bytes(&self, transport: Transport) -> &Counter {
        &self.received_bytes[transport as usize]
    }

    /// Bytes written to connections, without TLS overhead.
    pub fn sent_bytes(&self, transport: Transport) -> &Counter {
        &self.sent_bytes[transport as usize]
    }

    /// The number of connections that ended for this reason.
    pub fn closed(&self, reason: CloseReason) -> &Counter {
        &self.closed[reason as usize]
    }

    /// The number of offers and answers lost for this reason.
    pub fn messages_lost(&self, reason: DeliveryFailure) -> &Counter {
        &self.messages_lost[reason as usize]
    }

    /// The number of TLS handshakes with this result.
    pub fn handshakes(&self, how: Handshake) -> &Counter {
        &self.handshakes[how as usize]
    }
}
