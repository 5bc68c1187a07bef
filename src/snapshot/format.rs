//! The layout of a snapshot. All numbers are little-endian; addresses and ports are as in
//! responses.
//!
//! ```text
//! file      header | block … | table | footer
//!
//! header    "skepsnap" | version (4) | 0 (4) | moment (8) | tracker (16) | build (20) | crc (4)
//! block     kind (4) | bytes (4) | torrents (4) | crc (4) | payload (bytes ≤ 64 KiB)
//! table     { offset of a block (8) | its bytes (4) | its crc (4) } for each block, in order
//! footer    offset of the table (8) | blocks (8) | torrents (8) | peers (8) | completed (8)
//!           | crc of the table (4) | crc (4) | "skepends"
//!
//! payload of kind 1, swarms:
//! torrent   info-hash (20) | completed (4) | IPv4 peers (2) | IPv6 peers (2)
//!           | seconds since the last peer left (4), only where there are no peers
//!           | IPv4 peer … | IPv6 peer …
//! peer      address (4 or 16) | port (2) | state (1) | seconds since its latest announce (2)
//!
//! payload of kind 2, passkeys and their sessions (private trackers):
//! key       SHA-256 of it (32) | uploaded (8) | downloaded (8) | announces (8) | sessions (4)
//!           | session …
//! session   info-hash (20) | peer id (20) | uploaded (8) | downloaded (8) | left (8)
//!           | seconds since its latest announce (4)
//! ```
//!
//! The moment is in seconds since the Unix epoch; all ages are relative to it. `tracker` names the
//! tracker that wrote the file, `build` its version in ASCII, padded with zeros. A crc is CRC-32C
//! (RFC 3720, appendix B.4) of the bytes before it in the same part; that of a block also covers
//! the payload. `completed` in the footer is the sum of all downloads the tracker ever counted. A
//! torrent whose peers do not fit a block continues in the next block, with the same info-hash and
//! no completed downloads. A key whose sessions do not fit continues in the next block as well,
//! with the same sums, which are those of all its sessions.
//!
//! So checksums cover every byte, and a truncated file has no footer. A block of an unknown kind is
//! skipped. The header has this form in every version, so a reader can always determine the
//! version. A reader accepts [`VERSION`] and the version before it (there is none before 1).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::InfoHash;

/// The version that is written.
pub const VERSION: u32 = 1;

/// The oldest version that is read.
pub(super) const VERSION_MIN: u32 = 1;

const _: () = assert!(VERSION_MIN == if VERSION == 1 { 1 } else { VERSION - 1 });

/// The longest payload of a block, in bytes. A longer one is refused before memory for it is
/// allocated.
pub const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Blocks of swarms.
pub(super) const KIND_SWARMS: u32 = 1;

/// Blocks of passkeys' sessions. Readers older than this kind skip them.
pub(super) const KIND_SESSIONS: u32 = 2;

/// The file's first bytes.
pub(super) const MAGIC: [u8; 8] = *b"skepsnap";

/// The file's last bytes.
pub(super) const END: [u8; 8] = *b"skepends";

/// The identity of a tracker: 16 random bytes that it stores beside its snapshots.
pub type TrackerId = [u8; 16];

/// The header of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format's version.
    pub version: u32,
    /// When it was taken, in seconds since the Unix epoch.
    pub at_s: u64,
    /// The tracker that wrote it.
    pub tracker: TrackerId,
    /// The version of skep that wrote it; printable ASCII.
    pub build: String,
}

/// The sizes and counts of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounts {
    /// Bytes of the file.
    pub bytes: u64,
    /// Blocks of all kinds.
    pub blocks: u64,
    /// Torrents, and parts of torrents.
    pub torrents: u64,
    /// Peers of both families.
    pub peers: u64,
    /// All downloads that the tracker has counted.
    pub completed: u64,
}

/// The header's bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    pub(super) zero: U32,
    pub(super) at_s: U64,
    pub(super) tracker: TrackerId,
    pub(super) build: [u8; 20],
    pub(super) crc: U32,
}

/// A block's head.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct BlockHead {
    pub(super) kind: U32,
    pub(super) bytes: U32,
    pub(super) torrents: U32,
    pub(super) crc: U32,
}

/// A block in the table.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct TableEntry {
    pub(super) offset: U64,
    pub(super) bytes: U32,
    pub(super) crc: U32,
}

/// The footer's bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Footer {
    pub(super) table: U64,
    pub(super) blocks: U64,
    pub(super) torrents: U64,
    pub(super) peers: U64,
    pub(super) completed: U64,
    pub(super) table_crc: U32,
    pub(super) crc: U32,
    pub(super) end: [u8; 8],
}

/// A torrent's head.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct TorrentHead {
    pub(super) info_hash: InfoHash,
    pub(super) completed: U32,
    pub(super) v4: U16,
    pub(super) v6: U16,
}

/// A key's head.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct KeyHead {
    pub(super) digest: [u8; 32],
    pub(super) uploaded: U64,
    pub(super) downloaded: U64,
    pub(super) announces: U64,
    pub(super) sessions: U32,
}

pub(super) const KEY_BYTES: usize = size_of::<KeyHead>();
pub(super) const HEADER_BYTES: usize = size_of::<RawHeader>();
pub(super) const HEAD_BYTES: usize = size_of::<BlockHead>();
pub(super) const ENTRY_BYTES: usize = size_of::<TableEntry>();
pub(super) const FOOTER_BYTES: usize = size_of::<Footer>();
pub(super) const TORRENT_BYTES: usize = size_of::<TorrentHead>();

/// Bytes of the age of a torrent without peers.
pub(super) const EMPTY_BYTES: usize = size_of::<U32>();

const _: () = assert!(HEADER_BYTES == 64 && HEAD_BYTES == 16 && ENTRY_BYTES == 16);
const _: () = assert!(FOOTER_BYTES == 56 && TORRENT_BYTES == 28 && KEY_BYTES == 60);

/// The offset of the crc in the header.
const HEADER_CRC_AT: usize = HEADER_BYTES - 4;
/// The offset of the crc in a block's head.
const BLOCK_CRC_AT: usize = HEAD_BYTES - 4;
/// The offset of the crc in the footer.
const FOOTER_CRC_AT: usize = FOOTER_BYTES - 12;

impl RawHeader {
    pub(super) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..HEADER_CRC_AT])
    }
}

impl BlockHead {
    pub(super) fn checksum(&self, payload: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.as_bytes()[..BLOCK_CRC_AT]), payload)
    }
}

impl Footer {
    pub(super) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..FOOTER_CRC_AT])
    }
}
