//! Snapshots: a versioned, checksummed file of the store, so that a restarted tracker keeps its
//! swarms.
//!
//! `format` is the layout of the file, `payload` that of the swarms in a block. `writer` encodes
//! the store's export into blocks. `reader` verifies a whole file before it returns the first
//! torrent. `folder` is the state directory, in which files are committed, found and, if unusable,
//! set aside. `restore` loads a file into a store that serves meanwhile. This module reads no
//! clock and holds no lock across a write: time is passed in, and the caller of a save controls
//! its pace.

mod disk;
mod folder;
mod format;
mod payload;
mod reader;
mod restore;
mod writer;

pub use disk::{Disk, OsDisk};
pub use folder::{
    CURRENT, FoundSnapshots, PREVIOUS, SaveError, SaveStep, Saved, SnapshotFolder, TEMPORARY,
    UnusableFile,
};
pub use format::{BLOCK_BYTES_MAX, Header, SnapshotCounts, TrackerId, VERSION};
pub use payload::{SwarmPayload, parse_torrent, torrents_of};
pub use reader::{Block, Snapshot, SnapshotError, read_header};
pub use restore::Restore;
pub use writer::Writer;
