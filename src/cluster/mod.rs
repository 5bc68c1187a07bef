//! A node of a cluster: several trackers that answer from their own memory, and tell each other
//! what changed.
//!
//! ```text
//! change made here ─▶ log ─▶ frames ─▶ broker ─▶ order ─▶ Store::merge     at every other node
//!                      ▲                            │
//!                      └── request of what is missing
//! a new node ─▶ join ─▶ ask, offer, start ─▶ donor ─▶ blocks ─▶ Store::restore
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `node` | all of it, as a function of what arrives and when |
//! | `frame`, `record`, `message` | what is sent: authenticated frames, changes, requests |
//! | `log` | frames of this node: to be published, and kept for those that missed them |
//! | `order` | frames of another node: in order, each once; what is missing is requested |
//! | `join`, `leaves` | gets the swarms of another node; peers that left meanwhile |
//! | `donor` | sends swarms to another node |
//! | `remote`, `view` | what is known of other nodes; values for people and metrics |
//! | `outbox` | messages that are not sealed yet |
//!
//! Records are applied in the order in which the node that made them has sent them, each once. A
//! frame that comes too early waits, and missing ones are requested from the node that made them,
//! which keeps the latest. Where they are no longer kept, the peers that have announced since are
//! sent as for a join. Changes of different nodes are not ordered: of two to one
//! peer, the one that arrives later counts, at each node.

mod donor;
mod frame;
mod join;
mod leaves;
mod log;
mod message;
mod node;
mod order;
mod outbox;
mod record;
mod remote;
#[cfg(test)]
mod tests;
mod view;

pub use frame::{ClusterSecret, FrameError, FrameHead, FrameKey, FrameKind, node_hash};
pub use join::{JoinCounts, JoinProgress};
pub use message::{Fingerprint, NodeState};
pub use node::{Node, NodeOptions};
pub use view::{ClusterView, LostCounts, NodeView, Readiness, ReceivedCounts};

use crate::time::Now;

/// The time, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The process's clock, which never jumps.
    pub now: Now,
    /// The wall clock: milliseconds since the Unix epoch.
    pub wall_ms: u64,
}

/// A message to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub subject: String,
    /// What: a sealed frame.
    pub payload: Vec<u8>,
}
