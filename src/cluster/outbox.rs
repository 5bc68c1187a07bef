//! Messages to be published, before they are sealed: the clock in a frame is that of the moment in
//! which it is published.

use std::collections::VecDeque;

use super::frame::FrameKind;
use super::message::{Body, Envelope};

/// The most messages that wait, some 8 MiB of blocks. While there are so many, no export goes on
/// and no frames are sent again.
const WAITING_MAX: usize = 128;

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// This node's deltas, which all receive.
    Deltas,
    /// This node's state, which all receive.
    Hello,
    /// Requests that all receive.
    All,
    /// One node.
    Node(String),
}

/// A message that is not sealed.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) to: Address,
    pub(super) kind: FrameKind,
    pub(super) flags: u16,
    pub(super) records: u32,
    pub(super) sequence: u64,
    pub(super) payload: Vec<u8>,
}

/// Messages to be published.
#[derive(Debug)]
pub(super) struct Outbox {
    from: String,
    waiting: VecDeque<Outgoing>,
}

impl Outbox {
    /// The messages of a node.
    pub(super) fn new(from: &str) -> Self {
        Self { from: from.to_owned(), waiting: VecDeque::new() }
    }

    /// Whether there is room for more than a few messages.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Adds a message.
    pub(super) fn push(&mut self, message: Outgoing) {
        // Others cause these messages: beyond the bound they are dropped, and requested again.
        if self.waiting.len() < 2 * WAITING_MAX {
            self.waiting.push_back(message);
        }
    }

    /// Adds a message to a node, or to all.
    pub(super) fn tell(&mut self, to: Option<&str>, body: Body) {
        let from = self.from.clone();
        let to_node = to.map(str::to_owned);
        let address = to_node.clone().map_or(Address::All, Address::Node);
        let envelope = Envelope { from, to: to_node, body };
        let Ok(payload) = serde_json::to_vec(&envelope) else { return };
        let (kind, flags, records, sequence) = (FrameKind::Message, 0, 0, 0);
        self.push(Outgoing { to: address, kind, flags, records, sequence, payload });
    }

    /// Whether the next message is a block.
    pub(super) fn is_block_next(&self) -> bool {
        self.waiting.front().is_some_and(|it| it.kind == FrameKind::Block)
    }

    /// The next message.
    pub(super) fn pop(&mut self) -> Option<Outgoing> {
        self.waiting.pop_front()
    }

    /// Removes all messages: the broker is gone, and those who wait for them will ask again.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}
