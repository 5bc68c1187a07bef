//! What a node knows about the cluster and itself, as plain values: for metrics, pages and `skep
//! cluster status`.

use serde::Serialize;

use super::join::{JoinCounts, JoinProgress};
use super::message::NodeState;

/// Whether a node can serve clients like the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// It gets the swarms of another node.
    #[default]
    Joining,
    /// It has what the others have, or is alone.
    Ready,
    /// Another process has the same name.
    NameConflict,
}

/// Frames and records from other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReceivedCounts {
    /// Records that were applied.
    pub applied: u64,
    /// Records of peers that were not stored: no memory, a cap, a local address.
    pub not_stored: u64,
    /// Frames that were applied before.
    pub repeated: u64,
    /// Frames that came before others were there that precede them.
    pub early: u64,
    /// Frames of another time, or of a process that has ended.
    pub stale: u64,
    /// Frames without a valid MAC of this cluster.
    pub forged: u64,
    /// Frames of a version or with contents that this program does not know.
    pub version: u64,
    /// Frames of more nodes than there may be.
    pub foreign: u64,
}

/// Records that did not reach other nodes, or frames that did not reach this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LostCounts {
    /// Records: a worker made changes faster than they were taken over.
    pub ring: u64,
    /// Records: the broker was away for longer than the queue lasts.
    pub queue: u64,
    /// Frames of others that could not be got again; followed by a join.
    pub gap_frames: u64,
    /// Leaves that were not remembered during a join.
    pub leaves: u64,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its version of skep.
    pub version: String,
    /// What it does; none before its first message.
    pub state: Option<NodeState>,
    /// Whether it has been silent for 15 seconds.
    pub is_gone: bool,
    /// Seconds since its latest message.
    pub silent_s: u64,
    /// Its torrents.
    pub torrents: u64,
    /// Its peers.
    pub peers: u64,
    /// This node's clock minus its clock, in milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// Whether deltas of it are missing, and requested.
    pub has_gap: bool,
    /// An upper bound of the 99th percentile of the time from publication to arrival of its deltas
    /// within the last two minutes, in milliseconds.
    pub lag_p99_ms: Option<u64>,
    /// Settings that differ from this node's.
    pub differences: Vec<&'static str>,
    /// Whether two processes have its name.
    pub has_name_conflict: bool,
}

/// The cluster, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClusterView {
    /// The name of the cluster.
    pub cluster: String,
    /// This node's name.
    pub node: String,
    /// Whether the broker is connected.
    pub is_connected: bool,
    /// Whether this node can serve like the others.
    pub readiness: Readiness,
    /// The others.
    pub nodes: Vec<NodeView>,
    /// Records that were published.
    pub sent_records: u64,
    /// Frames of deltas that were published.
    pub sent_frames: u64,
    /// What came from others.
    pub received: ReceivedCounts,
    /// What was lost.
    pub lost: LostCounts,
    /// Bytes that wait to be published.
    pub queue_bytes: u64,
    /// How joins ended.
    pub joins: JoinCounts,
    /// The join that is under way.
    pub join: Option<JoinProgress>,
    /// Nodes that get swarms from this one.
    pub donations: u64,
}

impl ClusterView {
    /// Other nodes that are there.
    pub fn others(&self) -> usize {
        self.nodes.iter().filter(|it| !it.is_gone).count()
    }

    /// The greatest difference between clocks, in milliseconds.
    pub fn clock_offset_ms_max(&self) -> u64 {
        let offset = |node: &NodeView| node.clock_offset_ms.map(i64::unsigned_abs);
        self.nodes.iter().filter(|it| !it.is_gone).filter_map(offset).max().unwrap_or(0)
    }

    /// The greatest lag of a node, in milliseconds.
    pub fn lag_p99_ms_max(&self) -> u64 {
        let present = self.nodes.iter().filter(|it| !it.is_gone);
        present.filter_map(|it| it.lag_p99_ms).max().unwrap_or(0)
    }
}

/// A histogram of lags of the last minute or two: 16 buckets, from 1 ms up by powers of two.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lag {
    current: [u32; 16],
    before: [u32; 16],
    minute: u64,
}

impl Lag {
    /// Notes a lag; `seconds` is the time.
    pub(super) fn note(&mut self, seconds: u64, lag_ms: u64) {
        self.turn(seconds);
        let bits = u64::BITS - lag_ms.leading_zeros();
        let bucket = &mut self.current[(bits as usize).min(15)];
        *bucket = bucket.saturating_add(1);
    }

    /// Forgets what is older.
    pub(super) fn turn(&mut self, seconds: u64) {
        let minute = seconds / 60;
        match minute.checked_sub(self.minute) {
            None | Some(0) => {}
            Some(1) => (self.before, self.current) = (self.current, [0; 16]),
            Some(_) => (self.before, self.current) = ([0; 16], [0; 16]),
        }
        self.minute = minute;
    }

    /// An upper bound of the 99th percentile, in milliseconds; `None` without any.
    pub(super) fn p99_ms(&self) -> Option<u64> {
        let both = self.current.iter().zip(&self.before);
        let counts: Vec<u64> = both.map(|(a, b)| u64::from(*a) + u64::from(*b)).collect();
        let all: u64 = counts.iter().sum();
        let mut above = all;
        let bucket = counts.iter().position(|count| {
            above -= count;
            above * 100 <= all
        });
        bucket.filter(|_| all > 0).map(|it| 1 << it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_that_of_the_last_two_minutes() {
        let mut lag = Lag::default();
        assert_eq!(lag.p99_ms(), None);
        for _ in 0..990 {
            lag.note(60, 3);
        }
        (0..10).for_each(|_| lag.note(60, 900));
        assert_eq!(lag.p99_ms(), Some(4));
        (0..5).for_each(|_| lag.note(61, 900));
        assert_eq!(lag.p99_ms(), Some(1024));
        lag.turn(121);
        assert_eq!(lag.p99_ms(), Some(1024));
        lag.turn(181);
        assert_eq!(lag.p99_ms(), None);
        lag.note(181, u64::MAX);
        assert_eq!(lag.p99_ms(), Some(1 << 15));
    }
}
