//! What is counted, as others read it. One table has every series: Prometheus, the statistics pages
//! and `docs/metrics.md` come from it.
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

    /// All series at this moment. [`Metrics::render`] writes them from now on.
    pub(crate) fn read(&mut self, now: Now) -> Reading {
        self.sources.look(now);
        let reading = Reading::of(table::SERIES, &self.sources);
        self.exporter.update(&reading);
        reading
    }

    /// The latest reading as Prometheus scrapes it.
    pub(crate) fn render(&self) -> String {
        self.exporter.render()
    }

    /// Once a second: what only makes sense over a stretch of time. Returns how many seconds have
    /// passed since, and the busy ratio of the busiest worker in them.
    pub(crate) fn tick(&mut self, now: Now) -> Option<(f64, f64)> {
        self.exporter.keep_up();
        self.sources.tick(now)
    }

    /// Puts a reading up on the statistics page, once a second, with what the process is doing and
    /// the clients that are known: name, version, peers.
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
