//! Overload: the peak is measured in a closed loop. Then three times as many requests are sent in
//! an open loop, and directly afterwards half as many as the peak. Measures how many are answered
//! in time during the overload, and in the second after it.
//!
//! That second is not measured in a closed loop: if its first requests were lost, it would only
//! measure their timeout.

use std::time::Duration;

use crate::interrupt;
use crate::numbers::{ns, per, real, seconds, whole};
use crate::plan::Plan;
use crate::run::{Session, Site};
use crate::tally::Tally;

use super::figures::{Figures, Measure};
use super::{Arena, AttackError};

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
pub(crate) fn run(arena: &Arena<'_>) -> Result<Figures, AttackError> {
    let plan = arena.plan;
    let (targets, pid, clock) = (arena.targets(), arena.pid, arena.clock);
    let site = Site { targets, endpoint: None, pid, cpus: Vec::new(), clock };
    let mut calm = Session::open(plan, &site)?;
    calm.fill()?;
    interrupt::check("filling")?;
    calm.load("warming up", plan.warmup_s)?;
    interrupt::check("warming up")?;
    let peak = goodput(&calm.load("measuring the peak", plan.duration_s)?);
    let at = |times: f64| {
        let rate = Some(whole(peak * times).max(1));
        Session::open(&Plan { rate, ..plan.clone() }, &site)
    };
    let opened = at(TIMES).and_then(|storm| Ok((storm, at(TIMES_AFTER)?)));
    if interrupt::is_requested() {
        // Whatever could not be opened: the peak was measured.
        return Ok(figures(peak, None, None));
    }
    let (mut storm, mut lull) = opened?;
    let (during, after) = std::thread::scope(|scope| {
        let overloading = scope.spawn(|| storm.load("overloading", plan.duration_s));
        wait(arena, plan.duration_s);
        let after = (!interrupt::is_requested()).then(|| lull.load("recovering", AFTER_S));
        let during = overloading.join();
        (during.map_err(|_| AttackError::ThreadEnded("overloading")), after)
    });
    let (during, after) = (during??, after.transpose()?);
    // The time after a part of the overload is not the time after all of it.
    let after = after.filter(|_| !interrupt::is_requested());
    Ok(figures(peak, Some(&during), after.as_ref()))
}

/// Waits for some seconds, or until a signal.
fn wait(arena: &Arena<'_>, duration_s: f64) {
    const LOOK: Duration = Duration::from_millis(10);
    let until_ns = arena.now_ns() + ns(duration_s);
    while !interrupt::is_requested() {
        let left = Duration::from_nanos(until_ns.saturating_sub(arena.now_ns()));
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(LOOK));
    }
}

/// The figures of the phases that were run.
fn figures(peak: f64, during: Option<&Tally>, after: Option<&Tally>) -> Figures {
    let sent = |it: &Tally| it.sent.iter().sum::<u64>();
    let offered = during
        .map(|it| real(sent(it).saturating_sub(it.unsent)) / seconds(it.elapsed_ns).max(1e-9));
    let times = offered.map(|offered| offered / peak.max(1e-9));
    let slow = times.filter(|times| *times < 0.9 * TIMES);
    let warning = slow.map(|times| {
        format!("this host offered only {times:.2} times the peak: raise --threads or --in-flight")
    });
    let measures = vec![
        Measure::new(
            "goodput_share",
            during.map(|it| goodput(it) / peak.max(1e-9)),
            "responses a second during the overload, as a share of the peak",
        ),
        Measure::new(
            "recovery_share",
            after.map(|it| per(it.answered_all(), sent(it))),
            "share of requests answered in the second after it, at half the peak",
        ),
        Measure::new("peak_per_s", peak, "responses a second in a closed loop before"),
        Measure::new("offered_per_s", offered, "requests a second that left during it"),
        Measure::new("offered_times", times, "the same as a multiple of the peak"),
        Measure::new("goodput_per_s", during.map(goodput), "responses a second during it"),
        Measure::new("recovery_per_s", after.map(goodput), "responses a second after it"),
        Measure::new("sent", during.map(|it| real(sent(it))), "requests during it"),
        Measure::new("answered", during.map(|it| real(it.answered_all())), "answered in the end"),
        Measure::new(
            "unanswered",
            during.map(|it| real(it.lost.iter().sum())),
            "without a response, those that this host could not send included",
        ),
        Measure::new("refused", during.map(|it| real(it.errors)), "answered with an error"),
    ];
    Figures { measures, warnings: warning.into_iter().collect(), ..Figures::default() }
}

/// Good responses per second, of those that arrived while requests were being sent.
fn goodput(tally: &Tally) -> f64 {
    real(tally.answered_in_time) / seconds(tally.elapsed_ns).max(1e-9)
}
