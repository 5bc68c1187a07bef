//! The frames of deltas that a node has made: those to be published, and behind them the latest
//! that were, from which others can get what they have missed.
//!
//! ```text
//! first          next_unsent             end
//! | published …  | to be published …     | being filled
//! ```
//!
//! The bytes of both parts together are bounded, with what small frames cost besides their records.
//! When there are too many, the oldest frame is removed: one that was published is no longer there
//! for others; one that was not is lost, and others find a gap in the numbers.

use std::collections::VecDeque;

use super::record::{self, RECORD_BYTES_MAX};
use crate::store::PeerDelta;

/// The longest payload of a frame of deltas, in bytes.
pub(super) const DELTAS_BYTES_MAX: usize = 32 << 10;

/// Bytes that a frame takes besides its records: its place in the log, and its allocation's share.
const FRAME_BYTES: usize = size_of::<DeltaFrame>() + 32;

/// A frame of deltas before it is sealed.
#[derive(Debug, Default)]
pub(super) struct DeltaFrame {
    /// The records.
    pub(super) payload: Vec<u8>,
    /// Their number.
    pub(super) records: u32,
}

impl DeltaFrame {
    fn bytes(&self) -> usize {
        FRAME_BYTES + self.payload.len()
    }
}

/// The frames of deltas of one node.
#[derive(Debug)]
pub(super) struct DeltaLog {
    frames: VecDeque<DeltaFrame>,
    /// The number of the first frame; frames are numbered from 1.
    first: u64,
    /// The number of the next frame to be published.
    next_unsent: u64,
    /// Bytes of all frames.
    bytes: usize,
    /// Bytes of those to be published.
    unsent_bytes: usize,
    bytes_max: usize,
    /// The frame that is being filled.
    open: DeltaFrame,
    /// Records of frames that were removed before they were published.
    lost: u64,
}

impl DeltaLog {
    /// An empty log of at most `bytes_max` bytes, and one frame.
    pub(super) fn new(bytes_max: usize) -> Self {
        let (frames, open) = (VecDeque::new(), DeltaFrame::default());
        let (bytes, unsent_bytes) = (0, 0);
        Self { frames, first: 1, next_unsent: 1, bytes, unsent_bytes, bytes_max, open, lost: 0 }
    }

    /// Adds a change.
    pub(super) fn add(&mut self, delta: &PeerDelta) {
        if self.open.payload.capacity() == 0 {
            self.open.payload.reserve_exact(DELTAS_BYTES_MAX);
        }
        record::encode(delta, &mut self.open.payload);
        self.open.records += 1;
        if self.open.payload.len() + RECORD_BYTES_MAX > DELTAS_BYTES_MAX {
            self.end_frame();
        }
    }

    /// Ends the frame that is being filled, if there is anything in it.
    pub(super) fn end_frame(&mut self) {
        if self.open.records == 0 {
            return;
        }
        let mut frame = std::mem::take(&mut self.open);
        frame.payload.shrink_to_fit();
        self.bytes += frame.bytes();
        self.unsent_bytes += frame.bytes();
        self.frames.push_back(frame);
        while self.bytes > self.bytes_max && self.frames.len() > 1 {
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        let Some(frame) = self.frames.pop_front() else { return };
        self.bytes -= frame.bytes();
        if self.next_unsent == self.first {
            self.unsent_bytes -= frame.bytes();
            self.lost += u64::from(frame.records);
            self.next_unsent += 1;
        }
        self.first += 1;
    }

    /// The next frame to be published, with its number; it counts as published.
    pub(super) fn publish(&mut self) -> Option<(u64, &DeltaFrame)> {
        let number = self.next_unsent;
        let at = usize::try_from(number - self.first).ok()?;
        let frame = self.frames.get(at)?;
        self.next_unsent += 1;
        self.unsent_bytes -= frame.bytes();
        Some((number, frame))
    }

    /// A frame that was published, if it is still there.
    pub(super) fn published(&self, number: u64) -> Option<&DeltaFrame> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.frames.get(at).filter(|_| number < self.next_unsent)
    }

    /// The number of the oldest frame that is still there.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The number of the next frame to be published: all before it were.
    pub(super) fn next_unsent(&self) -> u64 {
        self.next_unsent
    }

    /// Frames to be published.
    pub(super) fn unsent(&self) -> usize {
        self.frames.len() - usize::try_from(self.next_unsent - self.first).unwrap_or_default()
    }

    /// Bytes to be published.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Records that were never published.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::store::DeltaChange;
    use crate::types::InfoHash;

    fn delta(number: u32) -> PeerDelta {
        PeerDelta {
            info_hash: InfoHash([1; 20]),
            address: IpAddr::V4(Ipv4Addr::from(number)),
            port: 6881,
            change: DeltaChange::Left,
            is_exempt: false,
        }
    }

    fn add_frame(log: &mut DeltaLog, records: u32) {
        (0..records).for_each(|number| log.add(&delta(number)));
        log.end_frame();
    }

    #[test]
    fn frames_are_published_once_and_in_order_and_stay_for_others() {
        let mut log = DeltaLog::new(1 << 20);
        assert!(log.publish().is_none());
        log.end_frame();
        assert!(log.publish().is_none(), "an empty frame");
        (1..=3).for_each(|records| add_frame(&mut log, records));
        for number in 1..=3 {
            assert!(log.published(number).is_none());
            let (published, frame) = log.publish().unwrap();
            assert_eq!((published, u64::from(frame.records)), (number, number));
            assert_eq!(u64::from(log.published(number).unwrap().records), number);
        }
        assert!(log.publish().is_none() && log.published(0).is_none());
        assert_eq!((log.unsent(), log.unsent_bytes(), log.lost()), (0, 0, 0));
    }

    #[test]
    fn a_full_frame_ends_by_itself() {
        let mut log = DeltaLog::new(1 << 20);
        for number in 0..3000 {
            log.add(&delta(number));
        }
        let (_, frame) = log.publish().unwrap();
        assert!(frame.payload.len() <= DELTAS_BYTES_MAX);
        assert!(frame.payload.len() + RECORD_BYTES_MAX > DELTAS_BYTES_MAX);
    }

    #[test]
    fn the_oldest_frames_are_removed_and_those_not_published_are_lost() {
        let mut log = DeltaLog::new(100 * 27 + 4 * FRAME_BYTES);
        (0..4).for_each(|_| add_frame(&mut log, 25));
        assert_eq!(log.publish().unwrap().0, 1);
        add_frame(&mut log, 25);
        assert_eq!((log.first(), log.lost(), log.next_unsent()), (2, 0, 2), "it was published");
        add_frame(&mut log, 50);
        assert_eq!((log.first(), log.lost(), log.next_unsent()), (4, 50, 4));
        assert_eq!(log.publish().unwrap().0, 4);
        assert!(log.published(3).is_none() && log.published(4).is_some());
        add_frame(&mut log, 200);
        assert_eq!((log.unsent(), log.lost()), (1, 125), "one frame may be over the bound");
    }
}
