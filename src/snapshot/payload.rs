//! The payload of a block of swarms: written until a block is full, and read torrent by torrent. It
//! is also what nodes of a cluster send each other.

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::format::{BLOCK_BYTES_MAX, EMPTY_BYTES, TORRENT_BYTES, TorrentHead};
use crate::store::{ExportBatch, SavedPeer, SavedPeerV4, SavedPeerV6, TorrentPart};

/// The most peers of one family that a torrent's head can count.
const PEERS_MAX: usize = u16::MAX as usize;

/// A payload that is being filled.
#[derive(Debug, Default)]
pub struct SwarmPayload {
    bytes: Vec<u8>,
    torrents: u32,
    peers: u64,
}

impl SwarmPayload {
    /// Adds a torrent as far as there is room in a block; returns what is left for the next block.
    pub fn add<'a>(&mut self, part: TorrentPart<'a>) -> Option<TorrentPart<'a>> {
        let room = BLOCK_BYTES_MAX - self.bytes.len();
        if part.v4.is_empty() && part.v6.is_empty() {
            if room < TORRENT_BYTES + EMPTY_BYTES {
                return Some(part);
            }
            self.add_head(&part, 0, 0);
            self.bytes.extend_from_slice(&part.empty_s.to_le_bytes());
            return None;
        }
        // Room for at least one peer, so that every part makes progress.
        if room < TORRENT_BYTES + size_of::<SavedPeerV6>() {
            return Some(part);
        }
        let room = room - TORRENT_BYTES;
        let (now4, later4) = part.v4.split_at(fitting::<SavedPeerV4>(room, part.v4.len()));
        let room = room - size_of_val(now4);
        let (now6, later6) = part.v6.split_at(fitting::<SavedPeerV6>(room, part.v6.len()));
        self.add_head(&part, now4.len(), now6.len());
        self.bytes.extend_from_slice(now4.as_bytes());
        self.bytes.extend_from_slice(now6.as_bytes());
        let rest = TorrentPart { completed: 0, v4: later4, v6: later6, ..part };
        (!later4.is_empty() || !later6.is_empty()).then_some(rest)
    }

    fn add_head(&mut self, part: &TorrentPart<'_>, v4: usize, v6: usize) {
        let count = |peers: usize| u16::try_from(peers).unwrap_or(u16::MAX); // they fit a block
        let head = TorrentHead {
            info_hash: part.info_hash,
            completed: part.completed.into(),
            v4: count(v4).into(),
            v6: count(v6).into(),
        };
        self.bytes.extend_from_slice(head.as_bytes());
        self.torrents += 1;
        self.peers += (v4 + v6) as u64;
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Torrents, and parts of torrents, in it.
    pub fn torrents(&self) -> u32 {
        self.torrents
    }

    /// Peers in it.
    pub fn peers(&self) -> u64 {
        self.peers
    }

    /// Removes everything; the memory stays.
    pub fn clear(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        *self = Self { bytes, ..Self::default() };
    }
}

/// The torrents of a slice of an export.
pub fn torrents_of(batch: &ExportBatch) -> impl Iterator<Item = TorrentPart<'_>> {
    let (mut v4, mut v6) = (&batch.v4[..], &batch.v6[..]);
    batch.torrents.iter().map(move |torrent| {
        let (its_v4, behind_v4) = v4.split_at(torrent.v4.min(v4.len()));
        let (its_v6, behind_v6) = v6.split_at(torrent.v6.min(v6.len()));
        (v4, v6) = (behind_v4, behind_v6);
        TorrentPart {
            info_hash: torrent.info_hash,
            completed: torrent.completed,
            empty_s: torrent.empty_s,
            v4: its_v4,
            v6: its_v6,
        }
    })
}

/// The number of `len` peers that fit into `room` bytes.
fn fitting<T>(room: usize, len: usize) -> usize {
    (room / size_of::<T>()).min(len).min(PEERS_MAX)
}

/// Parses a torrent from the front of a payload; returns it and the remaining bytes. `None` if
/// there is none, or one with a state that there is not.
pub fn parse_torrent(bytes: &[u8]) -> Option<(TorrentPart<'_>, &[u8])> {
    let (head, mut rest) = TorrentHead::ref_from_prefix(bytes).ok()?;
    let (v4, v6) = (usize::from(head.v4.get()), usize::from(head.v6.get()));
    let mut empty_s = 0;
    if v4 + v6 == 0 {
        let (seconds, behind) = U32::read_from_prefix(rest).ok()?;
        (empty_s, rest) = (seconds.get(), behind);
    }
    let (v4, rest) = <[SavedPeerV4]>::ref_from_prefix_with_elems(rest, v4).ok()?;
    let (v6, rest) = <[SavedPeerV6]>::ref_from_prefix_with_elems(rest, v6).ok()?;
    let sound = v4.iter().all(is_sound) && v6.iter().all(is_sound);
    let (info_hash, completed) = (head.info_hash, head.completed.get());
    sound.then_some((TorrentPart { info_hash, completed, empty_s, v4, v6 }, rest))
}

fn is_sound<const ENDPOINT: usize>(peer: &SavedPeer<ENDPOINT>) -> bool {
    peer.state < SavedPeer::<ENDPOINT>::STATES
}
