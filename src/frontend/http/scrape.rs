//! A scrape of some torrents (BEP 48, and `downloaders` of BEP 21).

use std::net::IpAddr;

use crate::protocol::bencode::Dict;
use crate::time::Now;
use crate::tracker::{AdmitError, Tracker};
use crate::types::{InfoHash, ScrapeEntry};

/// Writes the counts of `info_hashes`, which are sorted and unique. Unknown torrents get zeros:
/// clients treat a missing torrent as an error.
pub(super) fn write(
    tracker: &mut Tracker,
    now: Now,
    source: IpAddr,
    info_hashes: &[InfoHash],
    passkey: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), AdmitError> {
    let mut response = Dict::new(out);
    let mut files = response.dict(b"files");
    tracker.scrape(now, source, info_hashes, passkey, |info_hash, counts| {
        write_counts(counts, files.dict(&info_hash.0));
    })
}

/// Writes one torrent's counts.
pub(super) fn write_counts(counts: ScrapeEntry, mut file: Dict<'_>) {
    file.integer(b"complete", counts.seeders.into());
    file.integer(b"downloaded", counts.completed.into());
    file.integer(b"downloaders", counts.downloaders.into());
    file.integer(b"incomplete", counts.leechers.into());
}
