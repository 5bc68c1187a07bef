//! What nodes tell each other beside deltas: their state, and requests for what they lack. JSON in
//! an authenticated frame, so that a newer node can add fields.

use serde::{Deserialize, Serialize};

/// What a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It gets the swarms of another node.
    #[default]
    Joining,
    /// It has what the others have.
    Ready,
    /// It is about to end.
    Draining,
}

/// Settings that all nodes must have in common. Secrets are hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fingerprint {
    /// A hash of the connection-id key: clients are sent from node to node by DNS and anycast.
    pub connection_id_key: String,
    /// The MAC of connection ids.
    pub connection_id_mac: String,
    /// The usual interval.
    pub interval_s: u32,
    /// Seconds after which a peer that has not announced is removed.
    pub peer_age_s_max: u32,
}

impl Fingerprint {
    /// The settings that differ.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let pairs = [
            ("udp.key_file", self.connection_id_key != other.connection_id_key),
            ("udp.connection_id", self.connection_id_mac != other.connection_id_mac),
            ("tracker.interval_s", self.interval_s != other.interval_s),
            ("tracker.peer_age_s_max", self.peer_age_s_max != other.peer_age_s_max),
        ];
        pairs.into_iter().filter(|(_, differs)| *differs).map(|(setting, _)| setting).collect()
    }
}

/// A node's state, published every five seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Hello {
    pub(super) version: String,
    pub(super) state: NodeState,
    pub(super) torrents: u64,
    pub(super) peers: u64,
    /// The number of the next frame of deltas: all before it were published.
    pub(super) next_deltas: u64,
    pub(super) fingerprint: Fingerprint,
}

/// A message to one node, or to all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Envelope {
    /// The name of the node that sends.
    pub(super) from: String,
    /// The name of the node that is meant; none: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<String>,
    pub(super) body: Body,
}

/// What a message is about. `nonce` is the number of a join, which the joining node draws.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Body {
    /// To all: a request for offers of swarms.
    Ask { nonce: u64 },
    /// This node can.
    Offer { nonce: u64, torrents: u64 },
    /// Send them: all peers, or only those that have announced within `since_s` seconds.
    Start { nonce: u64, since_s: Option<u32> },
    /// This node sends swarms to too many others already.
    Busy { nonce: u64 },
    /// All blocks before `next` have arrived; if `again`, those from there on are to be sent again.
    Blocks { nonce: u64, next: u64, again: bool },
    /// Send the frames of deltas again from this number on.
    Repeat { from: u64 },
    /// The frames of deltas before this number are no longer kept.
    NotKept { first: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_nodes_additional_fields_are_ignored_and_missing_ones_have_defaults() {
        let hello: Hello =
            serde_json::from_str(r#"{"state":"ready","peers":7,"colour":"blue"}"#).unwrap();
        assert_eq!((hello.state, hello.peers, hello.torrents), (NodeState::Ready, 7, 0));
        let json = r#"{"from":"a","body":{"type":"ask","nonce":1,"colour":2},"colour":3}"#;
        let envelope: Envelope = serde_json::from_str(json).unwrap();
        assert_eq!((envelope.to, envelope.body), (None, Body::Ask { nonce: 1 }));
    }

    #[test]
    fn each_setting_that_differs_is_named() {
        let own = Fingerprint { interval_s: 1800, ..Fingerprint::default() };
        assert_eq!(own.differences(&own), [""; 0]);
        let other = Fingerprint { connection_id_key: "x".into(), interval_s: 900, ..own.clone() };
        assert_eq!(own.differences(&other), ["udp.key_file", "tracker.interval_s"]);
    }
}
