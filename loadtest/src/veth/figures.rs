//! Figures of a phase, and their medians over rounds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::phase::{Measured, elapsed_ns};
use super::programs::Reply;
use super::sample::Sampled;
use crate::numbers::{NS_PER_S, median, per, real};

/// What one phase of one round has shown. An answer is a response to a connect or an announce of an
/// honest client; an error is not.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PhaseFigures {
    /// Length of what is measured.
    pub(crate) seconds: f64,
    /// Answers a second.
    pub(crate) answers_per_s: f64,
    /// Of them, those to announces.
    pub(crate) announces_per_s: f64,
    /// CPU of the server's side for each: all of it.
    pub(crate) cpu_ns_per_answer: f64,
    /// CPU of the tracker's process for each.
    pub(crate) process_ns_per_answer: f64,
    /// CPU of the kernel's receiving thread (NAPI, XDP) for each.
    pub(crate) napi_ns_per_answer: f64,
    /// CPU of the softirq daemon for each.
    pub(crate) softirq_ns_per_answer: f64,
    /// CPU of the server's side for each second.
    pub(crate) server_cores: f64,
    /// CPU of other programs on the server's CPU for each second.
    pub(crate) other_cores: f64,
    /// Share of the honest connects that were answered, from the phase's first to its last.
    pub(crate) connects_answered_share: f64,
    /// Share of the honest announces that were answered.
    pub(crate) announces_answered_share: f64,
    /// Share of both.
    pub(crate) answered_share: f64,
    /// Bytes of the datagram that answers an announce.
    pub(crate) bytes_per_announce: f64,
    /// Announces with random ids that were sent a second.
    pub(crate) forged_per_s: f64,
    /// Responses that they had, errors included.
    pub(crate) forged_answered: u64,
    /// Errors that honest clients had.
    pub(crate) errors: u64,
    /// Responses with a length, action, transaction id or address that cannot be: all are checked.
    pub(crate) invalid: u64,
    /// The sample of responses of which everything was checked.
    pub(crate) sampled: Sampled,
}

impl PhaseFigures {
    pub(crate) fn of(measured: &Measured) -> Self {
        let Measured { window: [begin, finish], end, sampled } = measured;
        let ns = elapsed_ns(&measured.window);
        let grown = |which: Reply| finish.replies.of(which) - begin.replies.of(which);
        let (connects, announces) = (grown(Reply::Connects), grown(Reply::Announces));
        let answers = connects + announces;
        let rate = |count: u64| real(count) / ns * real(NS_PER_S);
        let cpu = finish.cpu.since(begin.cpu);
        let each = |cpu_ns: u64| if answers == 0 { f64::NAN } else { per(cpu_ns, answers) };
        let share =
            |answered: u64, sent: u64| if sent == 0 { f64::NAN } else { per(answered, sent) };
        let of = |which: Reply| end.replies.of(which);
        let (all_connects, all_announces) = (of(Reply::Connects), of(Reply::Announces));
        let server_cores = real(cpu.total_ns()) / ns;
        let idle = real(finish.idle_ns.saturating_sub(begin.idle_ns)) / ns;
        Self {
            seconds: ns / real(NS_PER_S),
            answers_per_s: rate(answers),
            announces_per_s: rate(announces),
            cpu_ns_per_answer: each(cpu.total_ns()),
            process_ns_per_answer: each(cpu.process_ns),
            napi_ns_per_answer: each(cpu.napi_ns),
            softirq_ns_per_answer: each(cpu.softirq_ns),
            server_cores,
            other_cores: (1.0 - idle - server_cores).max(0.0),
            connects_answered_share: share(all_connects, end.sent.connects),
            announces_answered_share: share(all_announces, end.sent.announces),
            answered_share: share(
                all_connects + all_announces,
                end.sent.connects + end.sent.announces,
            ),
            bytes_per_announce: per(grown(Reply::AnnounceBytes), announces),
            forged_per_s: rate(finish.sent.forged - begin.sent.forged),
            forged_answered: of(Reply::Forged),
            errors: of(Reply::Errors),
            invalid: of(Reply::Invalid),
            sampled: sampled.clone(),
        }
    }

    /// Medians, each figure by itself; sums of counts of what is wrong.
    pub(crate) fn medians(rounds: &[Self]) -> Self {
        let over = |value: fn(&Self) -> f64| median(rounds.iter().map(value));
        let sum = |value: fn(&Self) -> u64| rounds.iter().map(value).sum();
        let mut invalid = BTreeMap::new();
        for (label, count) in rounds.iter().flat_map(|it| &it.sampled.invalid) {
            *invalid.entry(*label).or_default() += count;
        }
        Self {
            seconds: over(|it| it.seconds),
            answers_per_s: over(|it| it.answers_per_s),
            announces_per_s: over(|it| it.announces_per_s),
            cpu_ns_per_answer: over(|it| it.cpu_ns_per_answer),
            process_ns_per_answer: over(|it| it.process_ns_per_answer),
            napi_ns_per_answer: over(|it| it.napi_ns_per_answer),
            softirq_ns_per_answer: over(|it| it.softirq_ns_per_answer),
            server_cores: over(|it| it.server_cores),
            other_cores: over(|it| it.other_cores),
            connects_answered_share: over(|it| it.connects_answered_share),
            announces_answered_share: over(|it| it.announces_answered_share),
            answered_share: over(|it| it.answered_share),
            bytes_per_announce: over(|it| it.bytes_per_announce),
            forged_per_s: over(|it| it.forged_per_s),
            forged_answered: sum(|it| it.forged_answered),
            errors: sum(|it| it.errors),
            invalid: sum(|it| it.invalid),
            sampled: Sampled { checked: sum(|it| it.sampled.checked), invalid },
        }
    }
}
