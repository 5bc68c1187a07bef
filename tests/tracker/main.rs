//! The tracker in memory: bytes in, bytes out, and a clock of the tests' own. Codecs, golden
//! conversations, lists, limits, WebRTC offers, and whole trackers in virtual time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod amplification;
mod client_requests;
mod conformance;
mod flood;
mod gatekeeping;
mod golden;
mod golden_http;
mod limiter;
mod offers;
mod protocol;
mod responses;
mod rush;
mod sim;
mod simulation;
mod spelling;
#[path = "../support/mod.rs"]
mod support;
mod webtorrent;
mod world;
