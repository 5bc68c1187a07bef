//! What the rules count, as Prometheus reads it: limits of sources, and peers that were not stored.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::limiter::{LimitAction, LimitTable};
use crate::server::workers::Tallies;
use crate::types::NotStored;

/// Series over the rules of all workers.
pub(super) struct LimitSeries {
    tallies: Vec<Tallies>,
    limited: Vec<(LimitTable, LimitAction, Counter)>,
    not_stored: [Counter; NotStored::ALL.len()],
    denied: Gauge,
}

impl LimitSeries {
    pub(super) fn new(tallies: Vec<Tallies>) -> Self {
        describe_counter!(
            "skep_limited_total",
            "What came of requests at the limits of their source: passed, limited, slipped (over \
             the limit, and answered all the same), exempt. In a dry run all passed."
        );
        describe_counter!(
            "skep_announces_not_stored_total",
            "Announces that were answered though their peer was not stored."
        );
        let all = LimitTable::ALL.into_iter();
        let all = all.flat_map(|table| LimitAction::ALL.map(|action| (table, action)));
        let limited = all.map(|(table, action)| {
            let labels = [("table", table.label()), ("action", action.label())];
            (table, action, counter!("skep_limited_total", &labels))
        });
        let not_stored =
            |it: NotStored| counter!("skep_announces_not_stored_total", "reason" => it.label());
        describe_gauge!(
            "skep_kernel_denied_sources",
            "Sources whose datagrams the kernel drops, see limits.kernel_deny_rate. What it drops \
             counts in skep_udp_socket_drops_total."
        );
        Self {
            tallies,
            limited: limited.collect(),
            not_stored: NotStored::ALL.map(not_stored),
            denied: gauge!("skep_kernel_denied_sources"),
        }
    }

    pub(super) fn update_denied(&self, sources: usize) {
        self.denied.set(u32::try_from(sources).unwrap_or(u32::MAX));
    }

    pub(super) fn update(&self) {
        for (table, action, counter) in &self.limited {
            let sum = self.tallies.iter().map(|it| it.limits.of(*table, *action).get()).sum();
            counter.absolute(sum);
        }
        for (reason, counter) in NotStored::ALL.into_iter().zip(&self.not_stored) {
            counter.absolute(self.tallies.iter().map(|it| it.not_stored.of(reason).get()).sum());
        }
    }
}
