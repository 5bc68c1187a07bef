//! What access control holds. What it refuses is counted where it is refused.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use super::float;
use crate::access::lists::ListName;
use crate::access_store::AccessManager;

/// The series.
pub(super) struct AccessSeries {
    entries: [Gauge; ListName::ALL.len()],
    reload_failures: Counter,
    torrents: Gauge,
    passkeys: Gauge,
}

impl AccessSeries {
    pub(super) fn new() -> Self {
        describe_gauge!("skep_access_entries", "Entries of each access list.");
        describe_gauge!(
            "skep_registered_torrents",
            "Info-hashes that are registered; a hybrid torrent has two."
        );
        describe_gauge!("skep_passkeys", "Passkeys that are valid.");
        describe_counter!(
            "skep_access_reload_failures_total",
            "Access lists that could not be read again, and stayed as they were."
        );
        Self {
            entries: ListName::ALL.map(|it| gauge!("skep_access_entries", "list" => it.label())),
            reload_failures: counter!("skep_access_reload_failures_total"),
            torrents: gauge!("skep_registered_torrents"),
            passkeys: gauge!("skep_passkeys"),
        }
    }

    pub(super) fn update(&self, access_manager: &AccessManager) {
        let access = access_manager.access();
        let lists = access.lists();
        let count = |it: usize| float(u64::try_from(it).unwrap_or(u64::MAX));
        for (name, gauge) in ListName::ALL.into_iter().zip(&self.entries) {
            gauge.set(count(lists.get(name).len()));
        }
        self.reload_failures.absolute(access_manager.reload_failures());
        self.torrents.set(count(access.registry().len()));
        self.passkeys.set(count(access.keys().len()));
    }
}
