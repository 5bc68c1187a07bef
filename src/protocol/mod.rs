//! Pure codecs: bytes to borrowed requests, replies to bytes. No I/O, no clock, no state.

pub mod bencode;
pub mod http;
pub mod passkey;
pub mod proxy;
pub mod udp;
pub mod webtorrent;

/// Torrents answered for in one scrape, by whatever protocol. BEP 15 says "up to about 74", which
/// is a request of 1496 bytes, and clients ask for as many over HTTP.
pub const SCRAPE_HASHES_MAX: usize = 74;
