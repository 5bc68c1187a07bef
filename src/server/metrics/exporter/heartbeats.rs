//! How long ago workers went round: tells that one is stuck before /livez does, which names it.
//!
//! One series for all workers of a kind, as the number of series is bounded.

use std::sync::Arc;

use metrics::{Gauge, describe_gauge, gauge};

use super::seconds;
use crate::metrics::{StreamCounters, WorkerCounters};

/// The gauge's name.
const AGE: &str = "skep_worker_last_turn_age_seconds";

/// The series of both kinds of worker.
pub(super) struct HeartbeatSeries {
    datagram: Gauge,
    stream: Gauge,
}

impl HeartbeatSeries {
    pub(super) fn new() -> Self {
        describe_gauge!(AGE, "Seconds since a worker went round, of the one that is longest ago.");
        Self {
            datagram: gauge!(AGE, "transport" => "udp"),
            stream: gauge!(AGE, "transport" => "tcp"),
        }
    }

    /// Brings the ages up to date, in nanoseconds from the start of the process.
    pub(super) fn update(
        &self,
        datagram: &[Arc<WorkerCounters>],
        stream: &[Arc<StreamCounters>],
        now_ns: u64,
    ) {
        let age = |oldest_ns: Option<u64>| {
            oldest_ns.map_or(0.0, |at_ns| seconds(now_ns.saturating_sub(at_ns)))
        };
        self.datagram.set(age(datagram.iter().map(|it| it.elapsed_ns.get()).min()));
        self.stream.set(age(stream.iter().map(|it| it.elapsed_ns.get()).min()));
    }
}
