//! The results of an attack: the traffic of each party, measures with names that expectations refer
//! to, and the resources that the tracker's process used.

use serde::{Serialize, Serializer};

use crate::numbers::{grouped, per, real, seconds};
use crate::process::Usage;
use crate::report::mib;

use super::options::Bound;
use super::traffic::Traffic;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    /// Its name in JSON.
    pub(crate) name: &'static str,
    /// The value; `None` if it cannot be determined.
    pub(crate) value: Option<f64>,
    /// What it means.
    pub(crate) meaning: &'static str,
}

impl Measure {
    /// A measurement; `None` if it cannot be determined.
    pub(crate) fn new(
        name: &'static str,
        value: impl Into<Option<f64>>,
        meaning: &'static str,
    ) -> Self {
        Self { name, value: value.into(), meaning }
    }
}

/// Resources that the tracker's process used from the first request to the last.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ServerUse {
    /// CPU time per elapsed time: 1 is one whole core.
    pub(crate) cores: f64,
    /// Resident memory before, in bytes.
    pub(crate) rss_start_bytes: u64,
    /// Resident memory after, in bytes.
    pub(crate) rss_bytes: u64,
    /// Highest resident memory since the start of the process, in bytes.
    pub(crate) rss_peak_bytes: u64,
}

impl ServerUse {
    /// The use between two readings that are `elapsed_ns` apart.
    pub(crate) fn between(before: &Usage, after: &Usage, elapsed_ns: u64) -> Self {
        Self {
            cores: per(after.cpu_ns.saturating_sub(before.cpu_ns), elapsed_ns),
            rss_start_bytes: before.rss_bytes,
            rss_bytes: after.rss_bytes,
            rss_peak_bytes: after.rss_peak_bytes,
        }
    }
}

/// All results.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Seconds from the first request to the last.
    pub(crate) seconds: f64,
    /// Traffic of the honest clients, or victims, during the attack.
    pub(crate) honest: Option<Traffic>,
    /// Traffic of the attackers.
    pub(crate) attack: Option<Traffic>,
    /// The measures that the profile is made for.
    #[serde(serialize_with = "by_name")]
    pub(crate) measures: Vec<Measure>,
    /// The tracker's process; absent if it does not run on this host.
    pub(crate) server: Option<ServerUse>,
    /// Whether a signal ended the run: measures of what it did not reach are not known.
    pub(crate) is_partial: bool,
    /// Reasons to doubt these results.
    pub(crate) warnings: Vec<String>,
    /// Expectations that were not met.
    pub(crate) missed: Vec<String>,
}

fn by_name<S: Serializer>(measures: &[Measure], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(measures.iter().map(|it| (it.name, it.value)))
}

impl Figures {
    /// Adds the use of the process, if it can be read.
    pub(crate) fn used(&mut self, before: Option<Usage>, after: Option<Usage>, elapsed_ns: u64) {
        self.seconds = seconds(elapsed_ns);
        let both = before.zip(after);
        self.server = both.map(|(before, after)| ServerUse::between(&before, &after, elapsed_ns));
    }

    /// Marks the results of a run that a signal has ended. Call it after [`Self::used`].
    pub(crate) fn interrupted(&mut self) {
        self.is_partial = true;
        let text = format!(
            "interrupted after {:.1} s: measures of what was not reached are not known",
            self.seconds
        );
        self.warnings.insert(0, text);
    }

    /// Records which expectations were missed.
    pub(crate) fn judge(&mut self, expected: &[(&'static str, Bound)]) {
        for (name, bound) in expected {
            let measure = self.measures.iter().find(|it| it.name == *name);
            let value = measure.and_then(|it| it.value);
            let (met, wanted) = match bound {
                Bound::AtLeast(least) => {
                    (value.is_some_and(|it| it >= *least), format!("at least {least}"))
                }
                Bound::AtMost(most) => {
                    (value.is_some_and(|it| it <= *most), format!("at most {most}"))
                }
            };
            if !met {
                let value = value.map_or_else(|| "not known".to_owned(), |it| format!("{it:.4}"));
                self.missed.push(format!("{name} is {value}, expected {wanted}"));
            }
        }
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for (name, traffic) in [("honest", &self.honest), ("attack", &self.attack)] {
            out.extend(traffic.as_ref().map(|it| it.text(name)));
        }
        for measure in &self.measures {
            let value = measure.value.map_or_else(|| "not known".to_owned(), short);
            out.push_str(&format!("{:<24} {value:>12}  {}\n", measure.name, measure.meaning));
        }
        match &self.server {
            Some(server_use) => out.push_str(&format!(
                "server      {:.2} cores; RSS {:.1} MiB before, {:.1} MiB after, peak {:.1} MiB\n",
                server_use.cores,
                mib(server_use.rss_start_bytes),
                mib(server_use.rss_bytes),
                mib(server_use.rss_peak_bytes)
            )),
            None => out.push_str("server      not a process of this host: no CPU, no memory\n"),
        }
        out.extend(self.warnings.iter().map(|it| format!("warning: {it}\n")));
        out
    }
}

/// A value with a suitable number of digits.
fn short(value: f64) -> String {
    if value >= 1000.0 {
        grouped(crate::numbers::whole(value.round()))
    } else {
        format!("{value:.4}")
    }
}

/// A warning if the attackers sent less than configured.
pub(crate) fn too_slow(attack: &Traffic, wanted_per_s: u64) -> Option<String> {
    let offered = attack.offered_per_s();
    (offered < 0.9 * real(wanted_per_s)).then(|| {
        format!(
            "this host sent {} of {} attacking requests a second: raise --threads, or lower \
             --attack-rate",
            short(offered),
            grouped(wanted_per_s)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_that_are_missed_are_named() {
        let mut figures = Figures::default();
        figures.measures.push(Measure::new(
            "honest_share",
            0.9,
            "share of honest requests answered",
        ));
        figures.measures.push(Measure { name: "rss_of_cap", value: None, meaning: "memory" });
        figures
            .judge(&[("honest_share", Bound::AtLeast(0.9)), ("honest_share", Bound::AtMost(1.0))]);
        assert_eq!(figures.missed, [""; 0]);
        figures
            .judge(&[("honest_share", Bound::AtLeast(0.95)), ("rss_of_cap", Bound::AtMost(1.05))]);
        let wanted = [
            "honest_share is 0.9000, expected at least 0.95",
            "rss_of_cap is not known, expected at most 1.05",
        ];
        assert_eq!(figures.missed, wanted);
        figures.seconds = 1.25;
        figures.interrupted();
        assert!(figures.text().contains("warning: interrupted after 1.2 s: "), "{figures:?}");
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json["is_partial"], true);
        assert_eq!(json["measures"], serde_json::json!({"honest_share": 0.9, "rss_of_cap": null}));
        assert!(figures.text().contains("honest_share") && figures.text().contains("not known"));
    }
}
