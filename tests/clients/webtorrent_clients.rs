//! WebTorrent in Node and in pages of headless Chromium: they find each other through a running
//! skep's WebSocket, over WebRTC a file arrives whole, and both worlds meet in a client of both.
//!
//! Where Node, npm, Chromium or npm's registry is not to be had: `skipped: … not found`; with
//! `SKEP_REQUIRE_EXTERNAL=1`, a failure.
#![cfg(target_os = "linux")]

use std::time::Duration;

use skep::types::Family::V4;

use crate::downloads::{leecher_calls, seeder_calls};
use crate::meeting::Via::{Http, Https, Udp, UdpAndWs, Ws, Wss};
use crate::meeting::{Meeting, Role};
use crate::page::{Loading, start_browser};
use crate::programs::LIBTORRENT;
use crate::webtorrent::{NODE, PAGE, scrapes};

#[test]
fn a_browser_that_does_not_load_its_page_is_started_once_more() {
    for loads_at in 1..=3 {
        let page = Loading::default();
        let start = |attempt| {
            if attempt == loads_at {
                page.begin();
            }
            attempt
        };
        let attempts = start_browser(&page, Duration::from_millis(10), start);
        assert_eq!(attempts, loads_at.min(2));
    }
}

#[test]
fn page_finds_node() {
    leecher_calls(V4, NODE.via(Ws), PAGE.via(Ws));
}

#[test]
fn node_finds_page() {
    leecher_calls(V4, PAGE.via(Ws), NODE.via(Ws));
}

#[test]
fn page_within_tls_is_found_by_page() {
    seeder_calls(V4, PAGE.via(Ws), PAGE.via(Wss));
}

#[test]
fn node_within_tls_is_found_by_node() {
    seeder_calls(V4, NODE.via(Wss), NODE.via(Ws));
}

/// One swarm for all: libtorrent and the page speak no common protocol, but both find the client
/// that speaks both of theirs.
#[test]
fn page_is_served_from_libtorrent_by_a_bridge() {
    let parties = (LIBTORRENT.via(Udp), NODE.via(UdpAndWs), PAGE.via(Ws));
    let Some(meeting) = Meeting::bridged(parties.0, parties.1, parties.2) else { return };
    let _libtorrent = meeting.start(Role::Seeder);
    meeting.wait_for(1, 0);
    let _bridge = meeting.start(Role::Bridge);
    let _page = meeting.start(Role::Leecher);
    meeting.wait_for_file(Role::Leecher);
    meeting.wait_for_file(Role::Bridge);
}

/// bittorrent-tracker's client, which all of WebTorrent is built on, over all that it speaks.
#[test]
fn every_transport_tells_the_same_counts() {
    let Some(meeting) = Meeting::of(V4, NODE.via(Wss), LIBTORRENT.via(Udp)) else { return };
    let _seeder = meeting.start(Role::Seeder);
    meeting.wait_for(1, 0);
    let _leecher = meeting.start(Role::Leecher);
    meeting.wait_for(1, 1); // they have no transport in common, so nothing moves
    assert_eq!(scrapes(&meeting, &[Udp, Http, Https, Ws, Wss]), ["1 1 0"; 5]);
}
