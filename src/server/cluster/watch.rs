//! Log lines about the cluster: each change once, with what to do about it.

use std::collections::BTreeSet;

use tracing::{info, warn};

use crate::cluster::{ClusterView, NodeView, Readiness};
use crate::server::log::OPERATOR;

/// Milliseconds between clocks from which on connection ids of one node are refused by another one.
const CLOCK_OFFSET_MS_MAX: u64 = 30_000;

/// Most different lines that are remembered.
const LINES_MAX: usize = 1024;

/// What was logged.
#[derive(Default)]
pub(super) struct ClusterWatch {
    readiness: Option<Readiness>,
    /// Nodes that are there.
    present: BTreeSet<String>,
    /// Names of nodes with what is wrong with them.
    faults: BTreeSet<(String, &'static str)>,
    forged: u64,
    lost: u64,
}

impl ClusterWatch {
    /// Logs what has changed.
    pub(super) fn note(&mut self, view: &ClusterView) {
        if self.readiness != Some(view.readiness) {
            self.readiness = Some(view.readiness);
            note_readiness(view);
        }
        let present = view.nodes.iter().filter(|it| !it.is_gone);
        let present: BTreeSet<_> = present.map(|it| it.name.clone()).collect();
        for node in present.difference(&self.present) {
            info!(target: OPERATOR, node, "cluster node appeared");
        }
        for node in self.present.difference(&present) {
            warn!(target: OPERATOR, node, "cluster node gone: nothing received for 15 s");
        }
        self.present = present;
        for node in &view.nodes {
            self.note_faults(node);
        }
        self.note_counts(view);
    }

    fn note_faults(&mut self, node: &NodeView) {
        for setting in &node.differences {
            if self.is_new(&node.name, setting) {
                let (node, remedy) = (&node.name, "give all nodes the same value");
                warn!(target: OPERATOR, node, setting, remedy, "cluster setting differs");
            }
        }
        let offset_ms = node.clock_offset_ms.unwrap_or(0);
        if offset_ms.unsigned_abs() > CLOCK_OFFSET_MS_MAX && self.is_new(&node.name, "clock") {
            let (node, remedy) = (&node.name, "synchronise both hosts' clocks (NTP)");
            warn!(target: OPERATOR, node, offset_ms, remedy, "cluster clocks differ");
        }
        if node.has_name_conflict && self.is_new(&node.name, "name") {
            let (node, remedy) = (&node.name, "give each node a cluster.node of its own");
            warn!(target: OPERATOR, node, remedy, "two cluster nodes have the same name");
        }
    }

    /// Whether something was not logged yet.
    fn is_new(&mut self, node: &str, what: &'static str) -> bool {
        self.faults.len() < LINES_MAX && self.faults.insert((node.to_owned(), what))
    }

    fn note_counts(&mut self, view: &ClusterView) {
        let forged = view.received.forged;
        if forged > 0 && self.forged == 0 {
            let remedy = "give every node of this cluster the same cluster.secret_file, and other \
                          clusters at this broker another cluster.name";
            warn!(target: OPERATOR, forged, remedy, "cluster messages refused: forged");
        }
        self.forged = forged;
        let lost = view.lost.ring + view.lost.queue;
        if lost > 0 && self.lost == 0 {
            let remedy = "raise cluster.queue, or see why brokers are slow or gone";
            warn!(target: OPERATOR, lost, remedy, "cluster changes lost, others ask for them");
        }
        self.lost = lost;
    }
}

fn note_readiness(view: &ClusterView) {
    let (node, nodes) = (&view.node, view.others());
    match view.readiness {
        Readiness::Joining => info!(target: OPERATOR, node, "cluster joining"),
        Readiness::Ready => info!(target: OPERATOR, node, others = nodes, "cluster ready"),
        Readiness::NameConflict => {
            let remedy = "set cluster.node to a name that no other node has";
            warn!(target: OPERATOR, node, remedy, "cluster name in use by another node");
        }
    }
}
