//! Overload: the peak is measured in a closed loop. Then three times as many requests are sent in
//! an open loop, and directly afterwards half as many as the peak. Measures how many are answered
//! in time during the overload, and in the second after it.
//!
//! That second is not measured in a closed loop: if its first requests were lost, it would only
//! measure their timeout.

use std::time::Duration;

use crate::numbers::{per, real, seconds, whole};
use crate::plan::Plan;
use crate::run::{Session, Site};
use crate::tally::Tally;

use super::Arena;
use super::figures::{Figures, Measure};

/// Overload, as a multiple of the peak.
const TIMES: f64 = 3.0;

/// Rate of requests after it, as a multiple of the peak.
const TIMES_AFTER: f64 = 0.5;

/// How long the time after it is measured.
const AFTER_S: f64 = 1.0;

/// Runs the attack.
///
/// # Errors
/// One sentence with the cause, e.g. a tracker that stops responding.
pub(crate) fn run(arena: &Arena<'_>) -> Result<Figures, String> {
    let plan = arena.plan;
    let (targets, pid, clock) = (arena.targets(), arena.pid, arena.clock);
    let site = Site { targets, endpoint: None, pid, cpus: Vec::new(), clock };
    let mut calm = Session::open(plan, &site)?;
    calm.fill()?;
    calm.load("warming up", plan.warmup_s)?;
    let peak = goodput(&calm.load("measuring the peak", plan.duration_s)?);
    let at = |times: f64| {
        let rate = Some(whole(peak * times).max(1));
        Session::open(&Plan { rate, ..plan.clone() }, &site)
    };
    let (mut storm, mut lull) = (at(TIMES)?, at(TIMES_AFTER)?);
    let (during, after) = std::thread::scope(|scope| {
        let overloading = scope.spawn(|| storm.load("overloading", plan.duration_s));
        std::thread::sleep(Duration::from_secs_f64(plan.duration_s));
        let after = lull.load("recovering", AFTER_S);
        let during = overloading.join();
        (during.unwrap_or_else(|_| Err("the overloading thread ended".to_owned())), after)
    });
    let (during, after) = (during?, after?);
    let [sent, sent_after] = [&during, &after].map(|it| it.sent.iter().sum::<u64>());
    let offered = real(sent.saturating_sub(during.unsent)) / seconds(during.elapsed_ns).max(1e-9);
    let times = offered / peak.max(1e-9);
    let warnings = (times < 0.9 * TIMES).then(|| {
        format!("this host offered only {times:.2} times the peak: raise --threads or --in-flight")
    });
    Ok(Figures {
        measures: vec![
            Measure::new(
                "goodput_share",
                goodput(&during) / peak.max(1e-9),
                "responses a second during the overload, as a share of the peak",
            ),
            Measure::new(
                "recovery_share",
                per(after.answered_all(), sent_after),
                "share of requests answered in the second after it, at half the peak",
            ),
            Measure::new("peak_per_s", peak, "responses a second in a closed loop before"),
            Measure::new("offered_per_s", offered, "requests a second that left during it"),
            Measure::new("offered_times", times, "the same as a multiple of the peak"),
            Measure::new("goodput_per_s", goodput(&during), "responses a second during it"),
            Measure::new("recovery_per_s", goodput(&after), "responses a second after it"),
            Measure::new("sent", real(sent), "requests during it"),
            Measure::new("answered", real(during.answered_all()), "answered in the end"),
            Measure::new(
                "unanswered",
                real(during.lost.iter().sum()),
                "without a response, those that this host could not send included",
            ),
            Measure::new("refused", real(during.errors), "answered with an error"),
        ],
        warnings: warnings.into_iter().collect(),
        ..Figures::default()
    })
}

/// Good responses per second, of those that arrived while requests were being sent.
fn goodput(tally: &Tally) -> f64 {
    real(tally.answered_in_time) / seconds(tally.elapsed_ns).max(1e-9)
}
