//! Snapshots: a versioned, checksummed file of the store, so that a tracker comes back with its
//! swarms.
//!
//! `format` says what lies where in the file; `writer` turns what the store exports into blocks,
//! `reader` judges a whole file before it shows the first torrent; `folder` is the state directory,
//! in which files are committed, found again, and set aside where they are of no use; `restore`
//! brings a file back into a store that serves meanwhile. No clock is read here and no lock held
//! across a write: moments come in, and whoever runs a save decides how it is paced.

mod disk;
mod folder;
mod format;
mod reader;
mod restore;
mod writer;

pub use disk::{Disk, OsDisk};
pub use folder::{
    CURRENT, FoundSnapshots, PREVIOUS, SaveError, SaveStep, Saved, SnapshotFolder, TEMPORARY,
    UnusableFile,
};
pub use format::{BLOCK_BYTES_MAX, Header, SnapshotCounts, TrackerId, VERSION};
pub use reader::{Block, Snapshot, SnapshotError, read_header};
pub use restore::Restore;
pub use writer::Writer;
