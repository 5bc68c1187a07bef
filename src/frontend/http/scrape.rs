//! A scrape of some torrents (BEP 48, and `downloaders` of BEP 21).

use crate::protocol::bencode::Dict;
use crate::tracker::{PREFETCH_STAGES, Tracker};
use crate::types::{InfoHash, ScrapeEntry};

/// Writes the counts of `info_hashes`, which ascend, each once. An unknown torrent has zeros:
/// clients take a torrent that is missing for an error.
pub(super) fn write(tracker: &Tracker, info_hashes: &[InfoHash], out: &mut Vec<u8>) {
    for stage in 0..PREFETCH_STAGES {
        info_hashes.iter().for_each(|it| tracker.prefetch(stage, it));
    }
    let mut reply = Dict::new(out);
    let mut files = reply.dict(b"files");
    for info_hash in info_hashes {
        write_counts(tracker.scrape(info_hash), files.dict(&info_hash.0));
    }
}

/// Writes one torrent's counts.
pub(super) fn write_counts(counts: ScrapeEntry, mut file: Dict<'_>) {
    file.integer(b"complete", counts.seeders.into());
    file.integer(b"downloaded", counts.completed.into());
    file.integer(b"downloaders", counts.downloaders.into());
    file.integer(b"incomplete", counts.leechers.into());
}
