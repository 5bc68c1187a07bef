//! The cluster: this node's connection to the others, over NATS.

mod options;

pub(crate) use options::ClusterOptions;
