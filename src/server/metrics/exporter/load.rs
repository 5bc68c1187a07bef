//! Figures about the process under load: how long clients are told to stay away, and whether
//! something stands in front of the tracker.

use metrics::{Gauge, describe_gauge, gauge};

use crate::tracker::{Options, SourceAnomaly};

/// The series.
pub(super) struct LoadSeries {
    ratio: Gauge,
    interval_s: Gauge,
    one_source: Gauge,
    unroutable: Gauge,
}

impl LoadSeries {
    pub(super) fn new() -> Self {
        describe_gauge!(
            "skep_load_ratio",
            "How far the announce interval is on its way from the usual to the longest."
        );
        describe_gauge!(
            "skep_announce_interval_seconds",
            "What clients of small swarms are told, on average."
        );
        describe_gauge!(
            "skep_odd_sources_ratio",
            "Share of the announces that come from one address, or from unroutable ones, where it \
             is more than half: something hides the clients' addresses. Else 0."
        );
        Self {
            ratio: gauge!("skep_load_ratio"),
            interval_s: gauge!("skep_announce_interval_seconds"),
            one_source: gauge!("skep_odd_sources_ratio", "kind" => "one_address"),
            unroutable: gauge!("skep_odd_sources_ratio", "kind" => "unroutable"),
        }
    }

    pub(super) fn update(
        &self,
        load_ratio: f64,
        options: &Options,
        anomaly: Option<SourceAnomaly>,
    ) {
        let more_s = options.interval_s_max.saturating_sub(options.interval_s);
        self.ratio.set(load_ratio);
        self.interval_s.set(f64::from(options.interval_s) + f64::from(more_s) * load_ratio);
        let (one_source, unroutable) = match anomaly {
            None => (0.0, 0.0),
            Some(SourceAnomaly::SingleAddress(_, share)) => (share, 0.0),
            Some(SourceAnomaly::Unroutable(share)) => (0.0, share),
        };
        self.one_source.set(one_source);
        self.unroutable.set(unroutable);
    }
}
