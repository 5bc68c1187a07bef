//! The counters of the kernel and of the running tracker at an earlier moment: findings on losses
//! judge what happens while `skep doctor` runs, not one burst long ago.

use std::collections::BTreeMap;

use super::host::Host;

/// Files of counters that findings compare.
const FILES: [&str; 5] = [
    "/proc/net/snmp",
    "/proc/net/snmp6",
    "/proc/net/softnet_stat",
    "/proc/net/stat/nf_conntrack",
    "/proc/softirqs",
];

/// Counters as they were some time before the findings.
#[derive(Clone, Debug, Default)]
pub struct EarlierCounters {
    texts: BTreeMap<&'static str, String>,
    metrics: Option<String>,
}

impl EarlierCounters {
    /// Reads the counters of a host. A file that cannot be read is left out. `metrics` are those of
    /// the running tracker at this moment, if there is one.
    pub fn read(host: &Host, metrics: Option<String>) -> Self {
        let read = |path: &'static str| Some((path, host.text(path).ok()?));
        Self { texts: FILES.into_iter().filter_map(read).collect(), metrics }
    }

    /// The tracker's metrics at that time.
    pub(super) fn metrics(&self) -> Option<&str> {
        self.metrics.as_deref()
    }

    /// A file's text at that time; empty if it was not read.
    pub(super) fn text(&self, path: &str) -> &str {
        self.texts.get(path).map_or("", String::as_str)
    }

    /// Whether a file was read.
    pub(super) fn has(&self, path: &str) -> bool {
        self.texts.contains_key(path)
    }

    /// Sets a file's text.
    #[cfg(test)]
    pub(super) fn set(&mut self, path: &'static str, text: &str) {
        self.texts.insert(path, text.trim().to_owned());
    }

    /// Sets the tracker's metrics.
    #[cfg(test)]
    pub(super) fn set_metrics(&mut self, text: &str) {
        self.metrics = Some(text.to_owned());
    }
}
