//! Pure codecs: bytes to borrowed requests, replies to bytes. No I/O, no clock, no state.

pub mod udp;
