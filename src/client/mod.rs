//! What clients of trackers need: URLs, HTTP requests and replies, bencode, what `.torrent` files
//! say, and TLS that trusts who it is told to. `skep probe`, `skep torrent` and the load tester
//! share it.
//!
//! Replies are strangers' input: readers borrow, are bounded by what they are given, and judge as
//! the strictest clients do. No connection is opened here.

pub mod bencode;
pub mod http;
pub mod metainfo;
pub mod reply;
pub mod tls;
pub mod url;
