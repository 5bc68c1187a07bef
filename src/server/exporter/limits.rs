//! What the limiter counts, as Prometheus reads it.

use std::sync::Arc;

use metrics::{Counter, counter, describe_counter};

use crate::limiter::{LimitAction, LimitCounters, LimitTable};

/// Series over the gates of all workers.
pub(super) struct LimitSeries {
    gates: Vec<Arc<LimitCounters>>,
    series: Vec<(LimitTable, LimitAction, Counter)>,
}

impl LimitSeries {
    pub(super) fn new(gates: Vec<Arc<LimitCounters>>) -> Self {
        describe_counter!(
            "skep_limited_total",
            "What came of requests at the limits of their source: passed, limited, slipped (over \
             the limit, and answered all the same), exempt. In a dry run all passed."
        );
        let all = LimitTable::ALL.into_iter();
        let all = all.flat_map(|table| LimitAction::ALL.map(|action| (table, action)));
        let series = all.map(|(table, action)| {
            let labels = [("table", table.label()), ("action", action.label())];
            (table, action, counter!("skep_limited_total", &labels))
        });
        Self { gates, series: series.collect() }
    }

    pub(super) fn update(&self) {
        for (table, action, counter) in &self.series {
            counter.absolute(self.gates.iter().map(|it| it.of(*table, *action).get()).sum());
        }
    }
}
