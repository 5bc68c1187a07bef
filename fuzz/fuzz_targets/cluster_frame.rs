//! Arbitrary frames of a cluster, as the broker may deliver them.
//!
//! Half of the frames get a valid MAC first, so that the code behind it is reached. Invariants
//! checked: nothing panics; without a valid MAC nothing is applied; what a node keeps, and what it
//! publishes for one frame, stays bounded.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use skep::cluster::{
    ClusterSecret, Fingerprint, FrameHead, FrameKey, FrameKind, Moment, Node, NodeOptions,
    node_hash,
};
use skep::store::{Options, Store};
use skep::time::Now;

const WALL_MS: u64 = 1_800_000_000_000;

/// Messages that may be published for one frame: those of one request, and the node's state.
const MESSAGES_MAX: usize = 300;

fn node(secret: &ClusterSecret) -> (Node, Arc<Store>) {
    let store = Arc::new(Store::new(Options { shards: 2, seed: Some(1) }));
    let options = NodeOptions {
        cluster: "skep".into(),
        node: "own".into(),
        version: "1".into(),
        secret: secret.clone(),
        fingerprint: Fingerprint::default(),
        queue_bytes_max: 1 << 16,
        join_bytes_s_max: 1 << 20,
        join_timeout_s: 5,
        peer_age_s_max: 3900,
        joins: true,
        replicates_private: true,
    };
    let at = Moment { now: Now::from_ns(WALL_MS * 1_000_000), wall_ms: WALL_MS };
    (Node::new(options, store.clone(), at, 1), store)
}

/// The next part of the input: a length, and so many bytes.
fn part<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    let (part, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    *input = rest;
    Some(part)
}

fuzz_target!(|input: &[u8]| {
    let secret = ClusterSecret::new(&[1; 32]).unwrap();
    let key = FrameKey::new(&secret, "skep");
    let (mut node, store) = node(&secret);
    let (mut rest, mut ms, mut sealed_frames) = (input, WALL_MS, 0_u32);
    let moment = |ms: u64| Moment { now: Now::from_ns(ms * 1_000_000), wall_ms: ms };
    node.connected(moment(ms));
    while let Some(bytes) = part(&mut rest) {
        let Some((&[how, kind, sender, number, flags], payload)) = bytes.split_first_chunk() else {
            continue;
        };
        ms += u64::from(how >> 1);
        let name = format!("n{}", sender % 80);
        let kinds = [
            ("delta", FrameKind::Deltas),
            ("hello", FrameKind::Hello),
            ("join", FrameKind::Message),
            ("to", FrameKind::Block),
        ];
        let (subject, kind) = kinds[usize::from(kind) % kinds.len()];
        let head = FrameHead {
            kind,
            flags: flags.into(),
            records: number.into(),
            node: node_hash(&name),
            epoch: (WALL_MS + u64::from(sender >> 6)) * 1_000_000,
            sequence: number.into(),
            sent_ms: ms,
        };
        let mut sealed = key.seal(&head, payload);
        if how & 1 == 0 {
            sealed = payload.to_vec();
        } else {
            sealed_frames += 1;
        }
        node.receive(moment(ms), &format!("skep.skep.{subject}.{name}"), &sealed);
        node.flush();
        node.tick(moment(ms));
        let published = std::iter::from_fn(|| node.next_message(moment(ms))).count();
        assert!(published <= MESSAGES_MAX, "{published} messages for one frame");
    }
    let view = node.view(moment(ms));
    assert!(view.nodes.len() <= 64);
    let totals = store.totals();
    if sealed_frames == 0 {
        assert_eq!((view.received.applied, totals.torrents), (0, 0));
    }
});
