//! Parts that clients of trackers need: URLs, HTTP requests and responses, bencode, `.torrent`
//! files, and TLS with a choice of trusted authorities. `skep probe`, `skep torrent` and the load
//! tester share them.
//!
//! Responses are untrusted input: readers borrow, are bounded by their input, and judge as the
//! strictest clients do. No connection is opened here.

pub mod bencode;
pub mod http;
pub mod metainfo;
pub mod response;
pub mod tls;
pub mod url;
