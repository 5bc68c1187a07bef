//! Pure codecs: from bytes to borrowed requests, and from responses to bytes. No I/O, no clock, no
//! state.

pub mod bencode;
pub mod http;
pub mod passkey;
pub mod proxy;
pub mod udp;
pub mod webtorrent;

/// Most torrents in one scrape, over any protocol. BEP 15 allows "up to about 74", a request of
/// 1496 bytes; HTTP clients send as many.
pub const SCRAPE_HASHES_MAX: usize = 74;
