//! One line about the phase under way, on a terminal: of a period, how much has passed; else, how
//! many requests were answered. Both with the rate of responses.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::numbers::{grouped, real, whole};
use crate::phase::Task;

/// The line. Draws nothing if standard error is not a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Responses so far.
    answered: Arc<AtomicU64>,
    /// Set if the phase lasts a period.
    period: Option<Duration>,
}

impl Progress {
    /// The line of a phase that begins now. `expected`: its requests, if their number is known.
    pub(crate) fn new(
        name: &'static str,
        task: Task,
        expected: Option<u64>,
        answered: Arc<AtomicU64>,
    ) -> Self {
        let period = match task {
            Task::Load { duration_ns, .. } | Task::Rest { duration_ns } => {
                Some(Duration::from_nanos(duration_ns))
            }
            Task::Connect | Task::Fill | Task::Verify => None,
        };
        let (length, template) = match (period, expected) {
            (Some(period), _) => {
                (Some(milliseconds(period)), "{msg:>10} [{bar:40}] {period}  {rate}")
            }
            (None, Some(count)) => (Some(count), "{msg:>10} [{bar:40}] {count}  {rate}  {eta}"),
            (None, None) => (None, "{msg:>10} {count}  {rate}  {elapsed}"),
        };
        let of_rate = answered.clone();
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style
            .with_key("period", move |state: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&passed(state.elapsed(), period.unwrap_or_default()));
            })
            .with_key("count", |state: &ProgressState, out: &mut dyn Write| {
                let of =
                    state.len().map_or(String::new(), |count| format!(" of {}", grouped(count)));
                let _ = write!(out, "{}{of}", grouped(state.pos()));
            })
            .with_key("rate", move |state: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&rate(of_rate.load(Ordering::Relaxed), state.elapsed()));
            });
        let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        Self { bar: bar.with_style(style).with_message(name), answered, period }
    }

    /// Draws the present state.
    pub(crate) fn update(&self) {
        self.bar.set_position(match self.period {
            Some(period) => milliseconds(self.bar.elapsed().min(period)),
            None => self.answered.load(Ordering::Relaxed),
        });
    }

    /// Removes the line.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn milliseconds(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds of a period that have passed: `3 of 5 s`; with a decimal if the period is short.
fn passed(elapsed: Duration, period: Duration) -> String {
    let elapsed = elapsed.min(period);
    match period.subsec_millis() {
        0 => format!("{} of {} s", elapsed.as_secs(), period.as_secs()),
        _ => format!("{:.1} of {:.1} s", elapsed.as_secs_f64(), period.as_secs_f64()),
    }
}

/// Responses per second: a whole number.
fn rate(answered: u64, elapsed: Duration) -> String {
    let per_s = real(answered) / elapsed.as_secs_f64().max(1e-3);
    format!("{}/s", grouped(whole(per_s.round())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_shows_how_much_has_passed_and_whole_rates() {
        let of = |elapsed_ms, period_ms| {
            passed(Duration::from_millis(elapsed_ms), Duration::from_millis(period_ms))
        };
        assert_eq!(of(3_900, 5_000), "3 of 5 s");
        assert_eq!(of(9_000, 5_000), "5 of 5 s");
        assert_eq!(of(250, 400), "0.2 of 0.4 s");
        assert_eq!(rate(151_090, Duration::from_secs(3)), "50 363/s");
        assert_eq!(rate(0, Duration::ZERO), "0/s");
    }
}
