//! Metrics. One table has every series: Prometheus, the statistics pages and `docs/metrics.md` come
//! from it.
//!
//! ```text
//! workers' blocks, store, … ─▶ Sources ─▶ table ─▶ Reading ─┬▶ exporter    Prometheus
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
use sources::Sources;
use statistics::Statistics;

/// Reads all series, and keeps them for those who show them.
pub(crate) struct Metrics {
    pub(crate) sources: Sources,
    exporter: Exporter,
    statistics: Statistics,
}

impl Metrics {
    pub(crate) fn new(sources: Sources) -> Self {
        Self { sources, exporter: Exporter::new(), statistics: Statistics::default() }
    }

    /// All series at this moment.
    pub(crate) fn read(&mut self, now: Now) -> Reading {
        self.sources.measure(now);
        Reading::of(table::SERIES, &self.sources)
    }

    /// All series at this moment, as Prometheus scrapes them.
    pub(crate) fn render(&mut self, now: Now) -> String {
        let reading = self.read(now);
        self.exporter.render(&reading)
    }

    /// Once a second: what only makes sense over a stretch of time. Returns how many seconds have
    /// passed since, and the busy ratio of the busiest worker in them.
    pub(crate) fn tick(&mut self, now: Now) -> Option<(f64, f64)> {
        self.sources.tick(now)
    }

    /// Publishes a reading on the statistics page, once a second, with the state of the process
    /// and the known clients: name, version, peers.
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
