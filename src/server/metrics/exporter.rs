//! Metrics for Prometheus: values are put into `metrics` handles, and written as text.

use std::fmt::Write as _;

use metrics::{Label, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::series::{Durations, Reading, Series, SeriesReader};
use super::table::SERIES;

/// Puts values into handles and writes them out.
pub(super) struct Exporter {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
}

impl Exporter {
    /// Describes every series of the table, and the process's own metrics.
    pub(super) fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&recorder, || {
            process.describe();
            for series in SERIES {
                match series.read {
                    SeriesReader::Counter(_) => describe_counter!(series.name, series.help()),
                    SeriesReader::Gauge(_) => describe_gauge!(series.name, series.help()),
                    SeriesReader::Histogram(_) => {}
                }
            }
        });
        Self { recorder, handle, process }
    }

    /// A reading as text, with the process's own metrics, always in the same order.
    pub(super) fn render(&self, reading: &Reading) -> String {
        self.update(reading);
        let mut text = ordered(&self.handle.render());
        // The library's own histograms keep every sample until upkeep. The workers have sorted
        // theirs into buckets already.
        for (series, durations) in &reading.durations {
            write_histogram(&mut text, series, durations);
        }
        text
    }

    fn update(&self, reading: &Reading) {
        metrics::with_local_recorder(&self.recorder, || {
            for value in &reading.values {
                let labels: Vec<_> = value.labels().map(|it| Label::new(it.0, it.1)).collect();
                let (name, number) = (value.series.name, value.number);
                match value.series.read {
                    SeriesReader::Counter(_) => counter!(name, labels).absolute(number.whole()),
                    SeriesReader::Gauge(_) | SeriesReader::Histogram(_) => {
                        gauge!(name, labels).set(number.real());
                    }
                }
            }
            self.process.collect();
        });
    }
}

fn write_histogram(text: &mut String, series: &Series, durations: &Durations) {
    let (name, help) = (series.name, series.help());
    let Durations { below, count, sum_s } = durations;
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (bound_s, count) in below {
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound_s}\"}} {count}");
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum {sum_s}\n{name}_count {count}");
}

/// The library keeps families and series in hash maps, and writes them in their order. This sorts
/// families by name, and series by labels, so that two scrapes can be compared line by line. A
/// family is its comments and its series, a line each, up to an empty line (line breaks within
/// labels and help are escaped).
fn ordered(text: &str) -> String {
    let families = text.split("\n\n").filter(|it| !it.is_empty());
    let mut families: Vec<Vec<&str>> = families.map(|it| it.lines().collect()).collect();
    for lines in &mut families {
        // `# HELP` sorts before `# TYPE`, and a number sign before every letter.
        lines.sort_unstable();
    }
    // The name is the third word of both comments.
    families.sort_by_key(|lines| lines[0].split(' ').nth(2));
    let mut ordered = String::with_capacity(text.len() + families.len());
    for line in families.iter().flat_map(|lines| lines.iter().chain([&""])) {
        ordered.push_str(line);
        ordered.push('\n');
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::super::sources::MetricInputs;
    use super::*;
    use crate::store::StoreTotals;
    use crate::time::Now;
    use crate::types::{Action, DatagramResponse, Dropped, Family};

    /// The text of the second scrape.
    fn scraped(sources: &MetricInputs) -> String {
        let exporter = Exporter::new();
        exporter.render(&Reading::of(SERIES, sources));
        exporter.render(&Reading::of(SERIES, sources))
    }

    fn value(text: &str, series: &str) -> f64 {
        let line = text.lines().find_map(|it| it.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    #[test]
    fn blocks_of_all_workers_are_summed() {
        let mut sources = MetricInputs::of_a_test(3, 0, Vec::new());
        for (n, worker) in (1..).zip(&sources.workers) {
            for _ in 0..n {
                let answered = DatagramResponse::served(Action::Announce, 20);
                worker.count(Family::V6, 98, Ok(answered));
                worker.count(Family::V6, 3, Err(Dropped::TooShort));
            }
            worker.handling.record(2000);
        }
        sources.totals = StoreTotals { torrents: 7, completed: 2, ..StoreTotals::default() };
        let text = scraped(&sources);
        let udp6 = "transport=\"udp\",family=\"ipv6\"";
        assert_eq!(value(&text, &format!("skep_requests_total{{{udp6}}}")), 12.0);
        let announces = format!("skep_responses_total{{{udp6},action=\"announce\"}}");
        assert_eq!(value(&text, &announces), 6.0);
        let short = format!("skep_dropped_total{{{udp6},reason=\"too_short\"}}");
        assert_eq!(value(&text, &short), 6.0);
        assert_eq!(value(&text, &format!("skep_receive_bytes_total{{{udp6}}}")), 606.0);
        assert_eq!(value(&text, &format!("skep_transmit_bytes_total{{{udp6}}}")), 120.0);
        assert_eq!(
            (value(&text, "skep_torrents"), value(&text, "skep_completed_total")),
            (7.0, 2.0)
        );
        let handling = "skep_handling_duration_seconds";
        assert_eq!(value(&text, &format!("{handling}_bucket{{le=\"0.000001024\"}}")), 0.0);
        assert_eq!(value(&text, &format!("{handling}_bucket{{le=\"0.000002048\"}}")), 3.0);
        assert_eq!(value(&text, &format!("{handling}_bucket{{le=\"+Inf\"}}")), 3.0);
        assert_eq!(value(&text, &format!("{handling}_sum")), 0.000_006);
        assert_eq!(value(&text, &format!("{handling}_count")), 3.0);
    }

    #[test]
    fn families_and_series_are_in_order_and_complete() {
        let names = |text: &str| -> Vec<String> {
            text.lines().map(|it| it.rsplit_once(' ').map_or("", |it| it.0).to_owned()).collect()
        };
        let mut sources = MetricInputs::of_a_test(3, 0, Vec::new());
        sources.use_xdp();
        sources.use_cluster();
        let first = Exporter::new();
        let text = first.render(&Reading::of(SERIES, &sources));
        // Hash maps of two exporters, and those of two renderings, have different orders.
        assert_eq!(names(&text), names(&scraped(&sources)));
        assert_eq!(names(&text), names(&first.render(&Reading::of(SERIES, &sources))));
        let types = |page: &str| {
            let types = page.lines().filter_map(|it| it.strip_prefix("# TYPE "));
            types.map(str::to_owned).collect::<Vec<_>>()
        };
        for series in SERIES.iter().filter(|it| it.labels != ["worker", "family"]) {
            let line = format!("{} {}", series.name, series.kind());
            assert!(types(&text).contains(&line), "{line} in\n{text}");
            assert!(text.contains(&format!("# HELP {} {}\n", series.name, series.help())));
        }
        assert!(types(&ordered(&first.handle.render())).is_sorted(), "{text}");
        let lines = |page: &str| {
            let mut lines = names(page);
            lines.sort();
            lines
        };
        let unordered = first.handle.render();
        assert_eq!(lines(&ordered(&unordered)), lines(&unordered), "nothing is lost");
        assert_eq!(ordered(""), "");
    }

    #[test]
    fn series_stay_bounded_on_the_largest_hosts() {
        let mut sources = MetricInputs::of_a_test(200, 200, (0..200).collect());
        for second in 1..=2 {
            sources.tick(Now::from_s(second));
        }
        sources.use_xdp();
        sources.use_cluster();
        let text = scraped(&sources);
        let series = text.lines().filter(|it| !it.starts_with('#') && !it.is_empty()).count();
        assert!((200..=500).contains(&series), "{series}");
    }
}
