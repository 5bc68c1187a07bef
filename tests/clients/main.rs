//! Real clients and browsers through a running skep: BitTorrent clients of Debian, WebTorrent in
//! Node and Chromium, and the statistics page.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod authority;
#[path = "../support/booted.rs"]
mod booted;
mod browser;
mod downloads;
mod meeting;
mod page;
mod programs;
mod real_clients;
mod stats_page;
mod stats_page_browser;
#[path = "../support/mod.rs"]
mod support;
mod transcript;
mod webtorrent;
mod webtorrent_clients;
