//! Front ends: bytes in, bytes out. They read no clock and open no socket.

pub mod connection_id;
pub mod drawing;
pub(crate) mod figures;
pub mod http;
pub mod origin;
pub mod request_summary;
pub mod stats;
pub mod udp;
pub mod unlisted_proxies;
pub mod ws;

use std::net::SocketAddr;

pub use crate::protocol::passkey::Passkey;
use crate::time::Now;
pub use crate::tracker::{ConnectionWork, Tracker};
use crate::types::{DatagramResponse, Dropped};

/// The front ends of a stream worker, and the tracker they share.
pub struct FrontEnds {
    /// The tracker rules.
    pub tracker: Tracker,
    /// HTTP.
    pub http: http::HttpFrontend,
    /// WebTorrent.
    pub ws: ws::WsFrontend,
}

/// What a datagram worker serves: the tracker's UDP front end, or the load tester's responder
/// without tracking. Sans-I/O: it reads no clock and opens no socket.
pub trait Responder {
    /// Called once per iteration of the worker's loop, before its batch is handled: reloaded
    /// settings take effect here and stay fixed until the next iteration.
    fn begin_turn(&mut self) {}

    /// Called for each datagram of a batch before any of them is handled, once per stage in order
    /// (0, 1, …, [`Self::PREFETCH_STAGES`] - 1), to prefetch memory that handling will need. The
    /// datagram is unverified, so this must change nothing.
    fn prefetch(&mut self, stage: usize, datagram: &[u8]);

    /// The number of passes of [`Self::prefetch`] over each batch.
    const PREFETCH_STAGES: usize;

    /// One datagram in, at most one out, written to the front of `out` (at least
    /// [`RESPONSE_BYTES_MAX`] long). `source` is unmapped.
    ///
    /// # Errors
    /// [`Dropped`] where the datagram gets no response.
    fn handle(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped>;

    /// Called with each datagram that was not served in full, and why: one that was dropped, before
    /// or by [`Self::handle`], or refused, or an announce whose peer is not handed out. For the
    /// log.
    fn unserved(
        &mut self,
        _now: Now,
        _source: SocketAddr,
        _datagram: &[u8],
        _verdict: &Result<DatagramResponse, Dropped>,
    ) {
    }

    /// Does one bounded slice of upkeep; called once per iteration of the worker's loop.
    fn upkeep(&mut self, now: Now);

    /// Sets the fill level of the worker's fullest receive queue, in thousandths, about a hundred
    /// times a second: load shedding depends on it.
    fn set_queue(&mut self, queue_permille: u32);
}

/// The longest response in bytes: the payload of an IPv6 packet that is never fragmented (RFC 8200:
/// 1280 - 48).
pub const RESPONSE_BYTES_MAX: usize = 1232;
