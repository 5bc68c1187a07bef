//! Pure codecs: bytes to borrowed requests, replies to bytes. No I/O, no clock, no state.

pub mod bencode;
pub mod http;
pub mod passkey;
pub mod proxy;
pub mod udp;
pub mod webtorrent;
