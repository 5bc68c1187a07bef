//! The log of requests that were not served, and of announces whose peer is not handed out, in
//! which the reason why a client does not appear can be found: one line with reason, transport,
//! torrent and software, at level debug only.
//!
//! Anybody can send requests that are refused. The lines are therefore sampled: of each reason a
//! few in a second, whatever the number of workers, and the next line counts those that were left
//! out. They have no address, unless the operator wants it. While the log is off, a request that
//! is not served costs one test of an option, and one that is served costs nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::frontend::request_summary::RequestSummary;
use crate::time::Now;
use crate::types::{DatagramResponse, Dropped, NotApplied, Outcome, Refusal, Rejected, Transport};

/// The target of these lines. The log suppresses none of them, because they are sampled here.
pub const TARGET: &str = "skep::requests";

/// Most lines of a reason in a second: enough to recognize a client among others, and together at
/// most 205 lines for all reasons.
const LINES_PER_SECOND_MAX: u64 = 5;

/// The number of reasons.
const REASONS: usize = FIRST_NOT_APPLIED + NotApplied::COUNT;

/// The places of the reasons of each kind follow those of the kind before.
const FIRST_REFUSED: usize = Dropped::ALL.len();
const FIRST_REJECTED: usize = FIRST_REFUSED + Refusal::ALL.len();
const FIRST_NOT_APPLIED: usize = FIRST_REJECTED + Rejected::ALL.len();

/// Why a request was not served in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// A datagram that gets no response.
    Dropped(Dropped),
    /// A failure that the client can read.
    Refused(Refusal),
    /// An HTTP error, an error message, or a closed connection.
    Rejected(Rejected),
    /// A response to an announce whose peer is not handed out.
    NotApplied(NotApplied),
}

impl Unserved {
    /// Of the verdict on a datagram.
    pub(crate) fn of_datagram(verdict: &Result<DatagramResponse, Dropped>) -> Option<Self> {
        match verdict {
            Ok(response) => {
                let not_applied = response.not_applied.map(Self::NotApplied);
                response.refusal.map(Self::Refused).or(not_applied)
            }
            Err(dropped) => Some(Self::Dropped(*dropped)),
        }
    }

    /// Of the outcome of a request over TCP.
    pub(crate) fn of_outcome(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Answered(_) => None,
            Outcome::NotApplied(reason) => Some(Self::NotApplied(reason)),
            Outcome::Refused(refusal) => Some(Self::Refused(refusal)),
            Outcome::Rejected(rejected) => Some(Self::Rejected(rejected)),
        }
    }

    fn event(self) -> &'static str {
        match self {
            Self::Dropped(_) => "request dropped",
            Self::Refused(_) => "request refused",
            Self::Rejected(_) => "request rejected",
            Self::NotApplied(_) => "announce not applied",
        }
    }

    /// The label that metrics have.
    fn reason(self) -> &'static str {
        match self {
            Self::Dropped(dropped) => dropped.label(),
            Self::Refused(refusal) => refusal.label(),
            Self::Rejected(rejected) => rejected.label(),
            Self::NotApplied(reason) => reason.label(),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Dropped(dropped) => dropped as usize,
            Self::Refused(refusal) => FIRST_REFUSED + refusal as usize,
            Self::Rejected(rejected) => FIRST_REJECTED + rejected as usize,
            Self::NotApplied(reason) => FIRST_NOT_APPLIED + reason.index(),
        }
    }
}

/// The log, which all workers share.
#[derive(Debug)]
pub struct RequestLog {
    shows_addresses: bool,
    samplers: [Sampler; REASONS],
}

/// What was logged of one reason in the latest second, and since its last line.
#[derive(Debug, Default)]
struct Sampler {
    /// The second, times [`Sampler::LINES`], plus its lines.
    window: AtomicU64,
    held_back: AtomicU64,
}

impl Sampler {
    /// More than the lines of a second.
    const LINES: u64 = 16;

    /// Whether a line may be written now: the number of lines since the previous one that were not
    /// written, or `None`. Of workers that race with each other, one writes.
    fn admit(&self, now: Now) -> Option<u64> {
        let window = self.window.load(Ordering::Relaxed);
        let (second, lines) = (window / Self::LINES, window % Self::LINES);
        let next = match lines {
            // A worker whose turn began earlier counts in the latest second.
            _ if now.seconds() > second => now.seconds() * Self::LINES + 1,
            LINES_PER_SECOND_MAX.. => return self.hold_back(),
            _ => window + 1,
        };
        let (ours, other) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.window.compare_exchange(window, next, ours, other) {
            Ok(_) => Some(self.held_back.swap(0, Ordering::Relaxed)),
            Err(_) => self.hold_back(),
        }
    }

    fn hold_back(&self) -> Option<u64> {
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl RequestLog {
    /// A log that has no lines yet. `shows_addresses`: lines name the source of the request.
    pub fn new(shows_addresses: bool) -> Self {
        Self { shows_addresses, samplers: std::array::from_fn(|_| Sampler::default()) }
    }

    /// Logs a datagram.
    #[cold]
    pub(crate) fn datagram(
        &self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        unserved: Unserved,
    ) {
        let Some(held_back) = self.samplers[unserved.index()].admit(now) else { return };
        let summary = RequestSummary::of_datagram(datagram);
        self.write(unserved, "udp", &summary, Some(source.ip()), held_back);
    }

    /// Logs a request over TCP. `source`: the client, as far as it is known.
    #[cold]
    pub(crate) fn request(
        &self,
        now: Now,
        transport: Transport,
        source: Option<IpAddr>,
        unserved: Unserved,
        summary: impl FnOnce() -> RequestSummary,
    ) {
        let Some(held_back) = self.samplers[unserved.index()].admit(now) else { return };
        self.write(unserved, transport.label(), &summary(), source, held_back);
    }

    fn write(
        &self,
        unserved: Unserved,
        transport: &str,
        summary: &RequestSummary,
        source: Option<IpAddr>,
        held_back: u64,
    ) {
        let client = summary.client();
        tracing::debug!(
            target: TARGET,
            reason = unserved.reason(),
            transport,
            action = summary.action.map(|action| action.label()),
            info_hash = summary.info_hash.map(tracing::field::display),
            client = client.as_deref(),
            address = source.filter(|_| self.shows_addresses).map(tracing::field::display),
            held_back = (held_back > 0).then_some(held_back),
            "{}",
            unserved.event()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Action, NotStored};

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        let dropped = Dropped::ALL.map(Unserved::Dropped);
        let refused = Refusal::ALL.map(Unserved::Refused);
        let rejected = Rejected::ALL.map(Unserved::Rejected);
        let not_applied = [NotApplied::NoPort, NotApplied::Slipped].into_iter();
        let not_applied = not_applied.chain(NotStored::ALL.map(NotApplied::NotStored));
        let all = dropped.into_iter().chain(refused).chain(rejected);
        let all: Vec<_> = all.chain(not_applied.map(Unserved::NotApplied)).collect();
        assert!(all.iter().map(|reason| reason.index()).eq(0..REASONS));
        assert!(all.len() as u64 * LINES_PER_SECOND_MAX <= 205);
    }

    #[test]
    fn a_second_has_few_lines_and_the_next_one_counts_the_rest() {
        let sampler = Sampler::default();
        let at = |seconds| sampler.admit(Now::from_s(seconds));
        let first: Vec<_> = (0..8).map(|_| at(1000)).collect();
        assert_eq!(first, [Some(0), Some(0), Some(0), Some(0), Some(0), None, None, None]);
        assert_eq!((at(1001), at(1001)), (Some(3), Some(0)));
        let late: Vec<_> = (0..4).flat_map(|_| [at(1000), at(1001)]).flatten().collect();
        assert_eq!(late.len(), 3, "workers whose clocks differ have one second together");
        const { assert!(LINES_PER_SECOND_MAX < Sampler::LINES) };
    }

    #[test]
    fn workers_together_write_no_more() {
        let sampler = Sampler::default();
        let written: usize = std::thread::scope(|scope| {
            let admit = || (0..1000).filter(|_| sampler.admit(Now::from_s(7)).is_some()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(admit)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(written as u64, LINES_PER_SECOND_MAX);
        assert_eq!(sampler.admit(Now::from_s(8)), Some(4000 - LINES_PER_SECOND_MAX));
    }

    #[test]
    fn what_is_served_is_not_logged() {
        let served = DatagramResponse::served(Action::Announce, 20);
        assert_eq!(Unserved::of_datagram(&Ok(served)), None);
        let refused = DatagramResponse { refusal: Some(Refusal::Unregistered), ..served };
        let unserved = Unserved::of_datagram(&Ok(refused)).unwrap();
        assert_eq!((unserved.event(), unserved.reason()), ("request refused", "unregistered"));
        assert_eq!(Unserved::of_outcome(Outcome::Answered(served.action)), None);
    }

    #[test]
    fn an_answered_announce_whose_peer_is_not_handed_out_is_logged() {
        let served = DatagramResponse::served(Action::Announce, 20);
        for (reason, label) in [
            (NotApplied::NoPort, "no_port"),
            (NotApplied::Slipped, "slipped"),
            (NotApplied::NotStored(NotStored::HostFull), "host_full"),
        ] {
            let response = DatagramResponse { not_applied: Some(reason), ..served };
            let of_datagram = Unserved::of_datagram(&Ok(response)).unwrap();
            assert_eq!(
                (of_datagram.event(), of_datagram.reason()),
                ("announce not applied", label)
            );
            let outcome = Outcome::NotApplied(reason);
            assert_eq!(Unserved::of_outcome(outcome), Some(of_datagram));
            assert_eq!(outcome.answered(), Some(Action::Announce));
        }
    }
}
