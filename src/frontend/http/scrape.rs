//! A scrape of some torrents (BEP 48, and `downloaders` of BEP 21).

use std::net::IpAddr;

use crate::protocol::bencode::Dict;
use crate::time::Now;
use crate::tracker::{PREFETCH_STAGES, Tracker};
use crate::types::{InfoHash, Refusal, ScrapeEntry};

/// Who asks, and when.
pub(super) struct Who<'a> {
    pub(super) now: Now,
    pub(super) source: IpAddr,
    pub(super) passkey: Option<&'a [u8]>,
}

/// Writes the counts of `info_hashes`, which ascend, each once. An unknown torrent has zeros:
/// clients take a torrent that is missing for an error. So has one that may not be scraped, unless
/// none of them may.
pub(super) fn write(
    tracker: &mut Tracker,
    who: &Who<'_>,
    info_hashes: &[InfoHash],
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    for stage in 0..PREFETCH_STAGES {
        info_hashes.iter().for_each(|it| tracker.prefetch(stage, it));
    }
    let mut reply = Dict::new(out);
    let mut files = reply.dict(b"files");
    let (mut refusal, mut served) = (None, false);
    for info_hash in info_hashes {
        let counts = tracker.scrape_for(who.now, who.source, info_hash, who.passkey);
        served |= counts.is_ok();
        write_counts(counts.unwrap_or_default(), files.dict(&info_hash.0));
        refusal = counts.err().or(refusal);
    }
    refusal.filter(|_| !served).map_or(Ok(()), Err)
}

/// Writes one torrent's counts.
pub(super) fn write_counts(counts: ScrapeEntry, mut file: Dict<'_>) {
    file.integer(b"complete", counts.seeders.into());
    file.integer(b"downloaded", counts.completed.into());
    file.integer(b"downloaders", counts.downloaders.into());
    file.integer(b"incomplete", counts.leechers.into());
}
