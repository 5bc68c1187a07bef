//! A scrape of all torrents: its body is made piece by piece, on a separate thread, in memory that
//! does not grow with the store; and the limits on how often a full scrape may start.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::Encoding;
use super::scrape::write_counts;
use crate::protocol::bencode::{self, Dict};
use crate::protocol::http::tokens;
use crate::time::Now;
use crate::tracker::ListedTorrent;
use crate::types::InfoHash;

/// The longest piece, without the frame of its chunk.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Torrents read from the store at a time. Each read walks the whole store and needs memory for up
/// to twice as many entries of 36 bytes.
const PAGE_TORRENTS: usize = 512 * 1024;

/// Approximate bytes of bencode passed to the encoder at a time.
const STEP_BYTES: usize = 16 * 1024;

/// Sources remembered; while all of them must wait, every other source must wait, too.
const SOURCES_MAX: usize = 4096;

/// The wait that a response names while another full scrape runs.
const BUSY_S: u32 = 10;

/// zstd's own default: a third of gzip's time for less output.
const ZSTD_LEVEL: i32 = 3;

/// Limits on full scrapes: one runs at a time, and a source (an IPv4 address, an IPv6 /64) must
/// wait between two. Shared by all workers.
#[derive(Debug, Default)]
pub struct FullScrapeLimits {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: bool,
    /// When each source may start the next one, in seconds since the Unix epoch.
    next_s: HashMap<IpAddr, u64>,
}

impl FullScrapeLimits {
    /// Starts a full scrape, which must be ended.
    ///
    /// # Errors
    /// The seconds to wait.
    pub(super) fn start(&self, now: Now, source: IpAddr, interval_s: u32) -> Result<(), u32> {
        let mut state = self.lock();
        if state.running {
            return Err(BUSY_S);
        }
        let (source, now_s) = (prefix_of(source), now.seconds());
        if let Some(next_s) = state.next_s.get(&source).filter(|it| **it > now_s) {
            // A reload may have shortened the interval since.
            return Err(u32::try_from(next_s - now_s).unwrap_or(u32::MAX).min(interval_s.max(1)));
        }
        if state.next_s.len() >= SOURCES_MAX {
            state.next_s.retain(|_, next_s| *next_s > now_s);
            if state.next_s.len() >= SOURCES_MAX {
                return Err(interval_s.max(1));
            }
        }
        state.next_s.insert(source, now_s + u64::from(interval_s));
        state.running = true;
        Ok(())
    }

    fn end(&self) {
        self.lock().running = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The prefix that counts as one source: a site with one IPv6 address usually has 2^64.
fn prefix_of(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Ends a full scrape when it is dropped.
struct Permit(Arc<FullScrapeLimits>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The source of torrents: returns up to a number of torrents above an info-hash, in ascending
/// order.
pub(super) type TorrentSource =
    Box<dyn FnMut(Option<&InfoHash>, usize) -> Vec<ListedTorrent> + Send>;

/// The body of a running full scrape.
pub struct FullScrape {
    _permit: Permit,
    source: TorrentSource,
    page: vec::IntoIter<ListedTorrent>,
    latest: Option<InfoHash>,
    step: Vec<u8>,
    progress: ScrapeProgress,
    encoder: Encoder,
    chunked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ScrapeProgress {
    /// Nothing was written.
    New,
    /// Torrents are being written.
    Torrents,
    /// All torrents were passed to the encoder.
    Done,
}

impl FullScrape {
    /// Makes a body in `encoding`, for a full scrape that `limits` has permitted.
    pub(super) fn new(
        limits: Arc<FullScrapeLimits>,
        source: TorrentSource,
        encoding: Encoding,
        chunked: bool,
    ) -> io::Result<Self> {
        let permit = Permit(limits);
        Ok(Self {
            _permit: permit,
            source,
            page: Vec::new().into_iter(),
            latest: None,
            step: Vec::new(),
            progress: ScrapeProgress::New,
            encoder: Encoder::new(encoding)?,
            chunked,
        })
    }

    /// Appends the next piece to `out`: at most [`PIECE_BYTES_MAX`] bytes, framed as a chunk (RFC
    /// 9112, 7.1) if the body is chunked. Returns whether there are more pieces.
    ///
    /// # Errors
    /// If the encoder runs out of memory: the caller must close the connection.
    pub fn write_piece(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        while self.progress != ScrapeProgress::Done && self.encoder.ready().len() < PIECE_BYTES_MAX
        {
            self.make_step();
            self.encoder.write(&self.step)?;
            if self.progress == ScrapeProgress::Done {
                self.encoder.finish()?;
            }
        }
        let ready = self.encoder.ready();
        let piece = ready.drain(..ready.len().min(PIECE_BYTES_MAX));
        if self.chunked {
            write!(out, "{:x}\r\n", piece.len())?;
            out.extend(piece);
            out.extend_from_slice(b"\r\n");
        } else {
            out.extend(piece);
        }
        let more = self.progress != ScrapeProgress::Done || !self.encoder.ready().is_empty();
        if !more && self.chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(more)
    }

    /// Writes the next part of the bencode to `step`.
    fn make_step(&mut self) {
        self.step.clear();
        if self.progress == ScrapeProgress::New {
            self.step.extend_from_slice(b"d5:filesd");
            self.progress = ScrapeProgress::Torrents;
        }
        while self.step.len() < STEP_BYTES {
            let Some(torrent) = self.next_torrent() else {
                self.step.extend_from_slice(b"ee");
                self.progress = ScrapeProgress::Done;
                return;
            };
            bencode::bytes(&mut self.step, &torrent.info_hash.0);
            write_counts(torrent.counts, Dict::new(&mut self.step));
        }
    }

    fn next_torrent(&mut self) -> Option<ListedTorrent> {
        if self.page.as_slice().is_empty() {
            self.page = (self.source)(self.latest.as_ref(), PAGE_TORRENTS).into_iter();
        }
        let torrent = self.page.next()?;
        debug_assert!(self.latest.is_none_or(|it| it < torrent.info_hash), "torrents ascend");
        self.latest = Some(torrent.info_hash);
        Some(torrent)
    }
}

/// An encoder of a content coding.
enum Encoder {
    Identity(Vec<u8>),
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(encoding: Encoding) -> io::Result<Self> {
        Ok(match encoding {
            Encoding::Identity => Self::Identity(Vec::new()),
            Encoding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            Encoding::Zstd => Self::Zstd(zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Identity(buffer) => buffer.write_all(bytes),
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Identity(_) => Ok(()),
            Self::Gzip(encoder) => encoder.try_finish(),
            Self::Zstd(encoder) => encoder.do_finish(),
        }
    }

    /// Output that was not taken yet.
    fn ready(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Identity(bytes) => bytes,
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }
}

/// The supported coding with the client's highest weight (RFC 9110, 12.5.3); among equal weights,
/// the cheapest coding.
pub(super) fn encoding_of<'a>(accepted: impl Iterator<Item = &'a [u8]>) -> Encoding {
    let mut best = (0.0, 0, Encoding::Identity);
    for element in accepted.flat_map(tokens) {
        let mut parts = element.split(|it| *it == b';').map(<[u8]>::trim_ascii);
        let (cheapness, encoding) = match parts.next().map(<[u8]>::to_ascii_lowercase).as_deref() {
            Some(b"zstd") => (3, Encoding::Zstd),
            Some(b"gzip" | b"x-gzip") => (2, Encoding::Gzip),
            Some(b"identity") => (1, Encoding::Identity),
            _ => continue,
        };
        let weight = parts.find_map(|it| it.strip_prefix(b"q=")).map_or(1.0, weight_of);
        if weight > best.0 || (weight == best.0 && weight > 0.0 && cheapness > best.1) {
            best = (weight, cheapness, encoding);
        }
    }
    best.2
}

/// A weight (qvalue); an invalid weight counts as 0.
fn weight_of(text: &[u8]) -> f32 {
    let weight = std::str::from_utf8(text).ok().and_then(|it| it.parse::<f32>().ok());
    weight.filter(|it| (0.0..=1.0).contains(it)).unwrap_or(0.0)
}

#[cfg(test)]
mod tests;
