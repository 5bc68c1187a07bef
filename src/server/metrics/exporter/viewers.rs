//! Who has the statistics page open, who could not, and who lost a seat at the admin listener.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::admin::live::{Board, VIEWERS_MAX};

/// The series.
pub(super) struct ViewerSeries {
    open: Gauge,
    refused: Counter,
    closed: Counter,
}

impl ViewerSeries {
    pub(super) fn new() -> Self {
        describe_gauge!(
            "skep_stats_viewers",
            "Statistics pages that are open and kept up to date."
        );
        describe_counter!(
            "skep_stats_viewers_refused_total",
            "Statistics pages that could not be kept up to date because too many were open."
        );
        describe_counter!(
            "skep_admin_connections_closed_total",
            "Connections to the admin listener that were closed or turned away for want of seats."
        );
        Self {
            open: gauge!("skep_stats_viewers"),
            refused: counter!("skep_stats_viewers_refused_total"),
            closed: counter!("skep_admin_connections_closed_total"),
        }
    }

    pub(super) fn update(&self, board: &Board, closed: u64) {
        self.closed.absolute(closed);
        let open = u32::try_from(board.viewers().min(VIEWERS_MAX)).unwrap_or(u32::MAX);
        self.open.set(open);
        self.refused.absolute(board.refused());
    }
}
