//! Metrics. One table defines every series. Prometheus, the statistics pages and `docs/metrics.md`
//! are generated from it.
//!
//! ```text
//! workers' blocks, store, … ─▶ MetricInputs ─▶ table ─▶ Reading ─┬▶ exporter    Prometheus
//!                                                           └▶ statistics  /stats, /stats.json
//! ```

mod exporter;
mod page;
pub(crate) mod series;
pub(crate) mod sources;
pub(crate) mod statistics;
mod table;

pub use page::metrics_page;

use crate::time::Now;
use exporter::Exporter;
use series::Reading;
use sources::MetricInputs;
use statistics::Statistics;

/// Reads all series, and keeps the state that is needed between two readings.
pub(crate) struct Metrics {
    pub(crate) sources: MetricInputs,
    exporter: Exporter,
    statistics: Statistics,
}

impl Metrics {
    pub(crate) fn new(sources: MetricInputs) -> Self {
        Self { sources, exporter: Exporter::new(), statistics: Statistics::of_host() }
    }

    /// Reads all series now.
    pub(crate) fn read(&mut self, now: Now) -> Reading {
        self.sources.measure(now);
        Reading::of(table::SERIES, &self.sources)
    }

    /// Reads all series now, in Prometheus's text format.
    pub(crate) fn render(&mut self, now: Now) -> String {
        let reading = self.read(now);
        self.exporter.render(&reading)
    }

    /// Called once a second: measures what needs a period. Returns the seconds since the last call,
    /// and the busy ratio of the busiest worker in them.
    pub(crate) fn tick(&mut self, now: Now) -> Option<(f64, f64)> {
        self.sources.tick(now)
    }

    /// Publishes a reading on the statistics page, once a second, with the state of the process and
    /// the estimated clients: name, version, peers.
    pub(crate) fn show(
        &mut self,
        reading: Reading,
        state: String,
        clients: Vec<(String, String, u64)>,
    ) {
        let sample = self.statistics.sample(&self.sources, reading, state, clients);
        self.sources.board.show(sample);
    }
}
