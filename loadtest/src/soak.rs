//! Soak: steady load for a long time, and slow changes meanwhile: resident memory, open
//! descriptors, p99, loss.
//!
//! The load is an open loop at a rate that the tracker can handle, divided into windows of a minute
//! (an eighth of a short run). The process is inspected at the end of each window. The report has
//! the slope of its memory over all windows, by least squares, and compares the last quarter with
//! the first.

use serde::Serialize;

use crate::attack::{Bound, Figures, Measure};
use crate::cli::RunArguments;
use crate::error::LoadtestError;
use crate::interrupt;
use crate::machine::Machine;
use crate::numbers::{grouped, per, real, seconds, whole};
use crate::plan::{Plan, PlanError, Profile};
use crate::process::{Usage, descriptors, usage};
use crate::report::mib;
use crate::run::{RunError, Session, Site};
use crate::tally::Tally;

/// Most seconds of a window.
const WINDOW_S_MAX: f64 = 60.0;
/// Least number of windows: a quarter has two of them.
const WINDOWS_MIN: f64 = 8.0;
/// Most seconds in which the peak is measured.
const PEAK_S_MAX: f64 = 5.0;
/// The rate of the load, as a part of the peak.
const PART: f64 = 0.5;
/// Seconds below which a slope per hour depends more on the start than on the run.
const TELLING_S: f64 = 1800.0;
const HOUR_S: f64 = 3600.0;

/// Options of the soak profile.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Soak profile")]
pub(crate) struct SoakArguments {
    /// How long: 90s, 30m, 1h. [default: 1h]
    #[arg(long = "for", value_name = "TIME", value_parser = span_s)]
    span_s: Option<f64>,
    /// The most by which resident memory may grow, in MiB an hour.
    #[arg(long, value_name = "MIB_PER_H")]
    expect_slope: Option<f64>,
    /// The most descriptors that may be open at the end beyond those at the start.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    expect_descriptors: Option<f64>,
    /// The highest p99 of the last quarter, as a multiple of that of the first quarter.
    #[arg(long, value_name = "RATIO")]
    expect_p99_drift: Option<f64>,
    /// The most requests that may be lost, as a share.
    #[arg(long, value_name = "SHARE")]
    expect_loss: Option<f64>,
}

/// The results of a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Window {
    /// Seconds from the start of the soak to the end of the window.
    at_s: f64,
    answered_per_s: f64,
    lost: u64,
    p99_us: f64,
    rss_bytes: Option<u64>,
    descriptors: Option<u64>,
}

/// The JSON output.
#[derive(Serialize)]
struct Printed<'a> {
    machine: Machine,
    tracker: &'a str,
    plan: &'a Plan,
    windows: &'a [Window],
    figures: &'a Figures,
}

impl SoakArguments {
    /// A plan with the given options.
    ///
    /// # Errors
    /// One sentence that names the option to change.
    pub(crate) fn plan(&self, plan: Plan) -> Result<Plan, PlanError> {
        let bounds = [
            ("--expect-slope", self.expect_slope),
            ("--expect-descriptors", self.expect_descriptors),
            ("--expect-p99-drift", self.expect_p99_drift),
            ("--expect-loss", self.expect_loss),
        ];
        let mut all = bounds.into_iter().chain([("--for", self.span_s)]);
        if plan.profile != Profile::Soak
            && let Some((option, _)) = all.find(|it| it.1.is_some())
        {
            return Err(PlanError::WithoutEffect(option));
        }
        if let Some((option, _)) = bounds.iter().find(|it| it.1.is_some_and(|it| !it.is_finite())) {
            return Err(PlanError::NotFinite(option));
        }
        let Some(span_s) = self.span_s else { return Ok(plan) };
        let warmup_s = plan.warmup_s.min(span_s / 10.0);
        let plan = Plan { duration_s: span_s, warmup_s, ..plan };
        plan.check()?;
        Ok(plan)
    }

    /// The expectations, by the names of the measures.
    fn expected(&self) -> Vec<(&'static str, Bound)> {
        let bounds = [
            ("rss_slope_mib_per_h", self.expect_slope),
            ("descriptors_growth", self.expect_descriptors),
            ("p99_drift", self.expect_p99_drift),
            ("lost_share", self.expect_loss),
        ];
        bounds.into_iter().filter_map(|(name, it)| Some((name, Bound::AtMost(it?)))).collect()
    }
}

/// Runs the soak, and prints the results.
///
/// # Errors
/// One sentence with the cause, or with the expectations that were missed.
pub(crate) fn soak(
    arguments: &RunArguments,
    tracker: &str,
    plan: &Plan,
    site: &Site,
) -> Result<(), LoadtestError> {
    let rate = match plan.rate {
        Some(value) => value,
        None => whole(peak(plan, site)? * PART).max(1),
    };
    let plan = &Plan { rate: Some(rate), ..plan.clone() };
    let mut session = Session::open(plan, site)?;
    if plan.fill {
        session.fill()?;
    }
    if plan.warmup_s > 0.0 {
        session.load("warming up", plan.warmup_s)?;
    }
    interrupt::check("warming up")?;
    let looks = || (site.pid.and_then(usage), site.pid.and_then(descriptors));
    let before = looks();
    let (mut windows, mut tallies) = (Vec::new(), Vec::new());
    let start_ns = site.clock.elapsed_ns_at(site.clock.now());
    let window_s = (plan.duration_s / WINDOWS_MIN).min(WINDOW_S_MAX);
    while real(windows.len() as u64) * window_s < plan.duration_s - window_s / 2.0 {
        let tally = session.load("soaking", window_s)?;
        let at_s = seconds(site.clock.elapsed_ns_at(site.clock.now()) - start_ns);
        let (used, descriptors) = looks();
        let window = Window::of(&tally, at_s, used, descriptors);
        if !arguments.json {
            println!("{}", window.text());
        }
        windows.push(window);
        tallies.push(tally);
        if interrupt::is_requested() {
            break;
        }
    }
    let mut figures = figures(plan, before.1, &windows, &tallies);
    let elapsed_ns = site.clock.elapsed_ns_at(site.clock.now()) - start_ns;
    figures.used(before.0, looks().0, elapsed_ns);
    let is_partial = interrupt::is_requested();
    figures.is_partial = is_partial;
    figures.judge(&arguments.soak.expected());
    print(arguments, tracker, plan, &windows, &figures)?;
    if is_partial {
        return Err(LoadtestError::Interrupted);
    }
    LoadtestError::of_missed(figures.missed)
}

/// Responses per second in a closed loop.
fn peak(plan: &Plan, site: &Site) -> Result<f64, RunError> {
    let mut session = Session::open(plan, site)?;
    if plan.fill {
        session.fill()?;
    }
    let tally = session.load("measuring the peak", (plan.duration_s / 10.0).min(PEAK_S_MAX))?;
    interrupt::check("measuring the peak")?;
    Ok(real(tally.answered_in_time) / seconds(tally.elapsed_ns).max(1e-9))
}

fn p99_us(tally: &Tally) -> f64 {
    real(tally.latency.value_at_quantile(0.99)) / 1000.0
}

impl Window {
    fn of(tally: &Tally, at_s: f64, used: Option<Usage>, descriptors: Option<u64>) -> Self {
        Self {
            at_s,
            answered_per_s: real(tally.answered_in_time) / seconds(tally.elapsed_ns).max(1e-9),
            lost: tally.lost_all(),
            p99_us: p99_us(tally),
            rss_bytes: used.map(|it| it.rss_bytes),
            descriptors,
        }
    }

    /// One line for people.
    fn text(&self) -> String {
        let known = |it: Option<String>| it.unwrap_or_else(|| "not known".to_owned());
        format!(
            "{:>7.1} s   {:>9}/s answered   {} lost   p99 {:.0} us   RSS {} MiB   {} descriptors",
            self.at_s,
            grouped(whole(self.answered_per_s)),
            self.lost,
            self.p99_us,
            known(self.rss_bytes.map(|it| format!("{:.2}", mib(it)))),
            known(self.descriptors.map(|it| it.to_string())),
        )
    }
}

/// The slope of the regression line through some points; `None` if there is no such line.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = real(points.len() as u64);
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|it| it.0), mean(|it| it.1));
    let spread: f64 = points.iter().map(|it| (it.0 - x).powi(2)).sum();
    let both: f64 = points.iter().map(|it| (it.0 - x) * (it.1 - y)).sum();
    (points.len() > 1 && spread > 0.0).then(|| both / spread)
}

/// p99 over several windows together.
fn p99_of(tallies: &[Tally]) -> Option<f64> {
    let (first, others) = tallies.split_first()?;
    let mut sum = first.clone();
    others.iter().for_each(|it| sum.merge(it));
    Some(p99_us(&sum)).filter(|it| *it > 0.0)
}

fn figures(
    plan: &Plan,
    descriptors_before: Option<u64>,
    windows: &[Window],
    tallies: &[Tally],
) -> Figures {
    let memory: Option<Vec<_>> =
        windows.iter().map(|it| Some((it.at_s / HOUR_S, mib(it.rss_bytes?)))).collect();
    let open: Option<Vec<u64>> = windows.iter().map(|it| it.descriptors).collect();
    let last = open.as_ref().and_then(|it| it.last()).copied();
    let growth = descriptors_before.zip(last).map(|(before, after)| real(after) - real(before));
    let quarter = (tallies.len() / 4).max(1).min(tallies.len());
    let first_us = p99_of(&tallies[..quarter]);
    let last_us = p99_of(&tallies[tallies.len() - quarter..]);
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (sent, lost) = (sum(|it| it.sent.iter().sum()), sum(Tally::lost_all));
    let answered_per_s = windows.iter().map(|it| it.answered_per_s).sum::<f64>();
    let of = |name, value, meaning| Measure { name, value, meaning };
    let measures = vec![
        of(
            "rss_slope_mib_per_h",
            memory.and_then(|it| slope(&it)),
            "resident memory, MiB an hour, least squares",
        ),
        of("descriptors_growth", growth, "open descriptors at the end beyond those before"),
        of("descriptors_max", open.and_then(|it| it.into_iter().max()).map(real), "at most"),
        of("p99_first_us", first_us, "p99 of the first quarter, microseconds"),
        of("p99_last_us", last_us, "of the last quarter"),
        of("p99_drift", first_us.zip(last_us).map(|it| it.1 / it.0), "the last over the first"),
        Measure::new("lost_share", per(lost, sent), "requests without a response"),
        Measure::new("lost", real(lost), "how many"),
        Measure::new("refused", real(sum(|it| it.errors)), "answered with an error"),
        Measure::new("sent", real(sent), "requests"),
        Measure::new("rate_per_s", real(plan.rate.unwrap_or(0)), "requests a second that were due"),
        Measure::new(
            "answered_per_s",
            answered_per_s / real(windows.len() as u64).max(1.0),
            "good responses a second",
        ),
    ];
    let mut warnings = Vec::new();
    if interrupt::is_requested() {
        let passed_s = windows.last().map_or(0.0, |window| window.at_s);
        warnings.push(format!("interrupted after {passed_s:.0} of {:.0} s", plan.duration_s));
    }
    if plan.duration_s < TELLING_S {
        let minutes = plan.duration_s / 60.0;
        warnings.push(format!("{minutes:.1} minutes: slow growth shows only in hours"));
    }
    let unsent = sum(|it| it.unsent);
    if unsent > 0 {
        warnings.push(format!("this host could not send {} requests", grouped(unsent)));
    }
    Figures { measures, warnings, ..Figures::default() }
}

fn print(
    arguments: &RunArguments,
    tracker: &str,
    plan: &Plan,
    windows: &[Window],
    figures: &Figures,
) -> Result<(), LoadtestError> {
    let machine = Machine::look();
    if arguments.json {
        return crate::print_json(&Printed { machine, tracker, plan, windows, figures });
    }
    println!("machine     {}", machine.line());
    println!(
        "soak        {:.0} s on {tracker} over {}: {} torrents, {} peers, {}, seed {}",
        plan.duration_s,
        plan.transport.text(),
        grouped(plan.torrents.into()),
        grouped(plan.peers.into()),
        plan.pace(),
        plan.seed
    );
    print!("{}", figures.text());
    Ok(())
}

/// A text that is not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum SpanError {
    /// No number with a unit.
    #[error("expected: a time with its unit, e.g. 90s, 30m or 1h")]
    NotATime,
    /// Too short or too long.
    #[error("must be from 1s to 24h")]
    OutOfBounds,
}

/// Parses a time: a number with one of the units s, m and h.
fn span_s(text: &str) -> Result<f64, SpanError> {
    let unit = text.chars().next_back().ok_or(SpanError::NotATime)?;
    let each_s = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => HOUR_S,
        _ => return Err(SpanError::NotATime),
    };
    let count: f64 = text[..text.len() - 1].parse().map_err(|_| SpanError::NotATime)?;
    let span_s = count * each_s;
    let allowed = span_s.is_finite() && (1.0..=86_400.0).contains(&span_s);
    if allowed { Ok(span_s) } else { Err(SpanError::OutOfBounds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let spans = ["3s", "2m", "1h", "1.5h"].map(span_s);
        assert_eq!(spans, [Ok(3.0), Ok(120.0), Ok(3600.0), Ok(5400.0)]);
        for text in ["", "3", "h", "-1s", "0s", "25h", "3 d", "nans", "1é"] {
            assert!(span_s(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_slope_is_that_of_the_nearest_line() {
        assert_eq!(slope(&[(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]), Some(2.0));
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 4.0), (2.0, 1.0)]), Some(0.0));
        assert_eq!(slope(&[(1.0, 1.0)]), None);
        assert_eq!(slope(&[(1.0, 1.0), (1.0, 2.0)]), None);
    }

    #[test]
    fn a_drift_is_the_last_quarter_over_the_first() {
        let plan = Profile::Soak.plan();
        let tallies: Vec<Tally> = (0..8_u64)
            .map(|at| {
                let mut tally = Tally::new(1, 0);
                tally.sent[1] = 10;
                tally.lost[1] = u64::from(at == 7);
                let _ = tally.latency.record(if at < 6 { 100_000 } else { 300_000 });
                tally
            })
            .collect();
        let used = |mib: u64| Some(Usage { rss_bytes: mib << 20, ..Usage::default() });
        let windows: Vec<Window> = (0..8_u32)
            .zip(&tallies)
            .map(|(at, tally)| {
                Window::of(tally, 900.0 * f64::from(at), used(40 + u64::from(at)), Some(9))
            })
            .collect();
        let figures = figures(&plan, Some(7), &windows, &tallies);
        let of = |name: &str| figures.measures.iter().find(|it| it.name == name).unwrap().value;
        assert!((of("p99_drift").unwrap() - 3.0).abs() < 0.02);
        assert!((of("rss_slope_mib_per_h").unwrap() - 4.0).abs() < 1e-9);
        assert_eq!((of("descriptors_growth"), of("lost_share")), (Some(2.0), Some(1.0 / 80.0)));
    }

    #[test]
    fn its_options_mean_nothing_to_others() {
        let arguments = SoakArguments { span_s: Some(3.0), ..SoakArguments::default() };
        let refused = arguments.plan(Profile::Smoke.plan()).unwrap_err();
        assert_eq!(refused, PlanError::WithoutEffect("--for"));
        let plan = arguments.plan(Profile::Soak.plan()).unwrap();
        assert_eq!((plan.duration_s, plan.warmup_s), (3.0, 0.3));
    }
}
