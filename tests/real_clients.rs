//! Real clients from Debian find each other through a running skep, and a file arrives whole. DHT,
//! local discovery and peer exchange are off, so the tracker is the only way to meet.
//!
//! A client that is not installed: `skipped: PROGRAM not found`; with `SKEP_REQUIRE_EXTERNAL=1`, a
//! failure. aria2 and Transmission 3 speak to UDP trackers over IPv4 only, so IPv6 is libtorrent's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod clients;
mod common;

use clients::{
    LIBTORRENT, Meeting, Role, Start, aria2, libtorrent, present, transmission_cli,
    transmission_daemon,
};
use skep::types::Family;

/// The seeder is known to the tracker before the leecher asks.
fn leecher_calls(programs: &[&str], family: Family, seeder: Start, leecher: Start) {
    if !present(programs) {
        return;
    }
    let meeting = Meeting::over(family);
    let _seeder = seeder(&meeting, Role::Seeder);
    meeting.wait_for(1, 0);
    let _leecher = leecher(&meeting, Role::Leecher);
    meeting.wait_for_transfer();
}

/// The leecher is known to the tracker before the seeder asks.
fn seeder_calls(programs: &[&str], family: Family, seeder: Start, leecher: Start) {
    if !present(programs) {
        return;
    }
    let meeting = Meeting::over(family);
    let _leecher = leecher(&meeting, Role::Leecher);
    meeting.wait_for(0, 1);
    let _seeder = seeder(&meeting, Role::Seeder);
    meeting.wait_for_transfer();
}

#[test]
fn aria2_finds_aria2() {
    leecher_calls(&["aria2c"], Family::V4, aria2, aria2);
}

#[test]
fn aria2_finds_transmission_daemon() {
    let programs = ["aria2c", "transmission-daemon"];
    leecher_calls(&programs, Family::V4, transmission_daemon, aria2);
}

#[test]
fn libtorrent_finds_aria2() {
    leecher_calls(&["aria2c", LIBTORRENT], Family::V4, aria2, libtorrent);
}

#[test]
fn libtorrent_finds_transmission_cli() {
    let programs = ["transmission-cli", LIBTORRENT];
    leecher_calls(&programs, Family::V4, transmission_cli, libtorrent);
}

#[test]
fn libtorrent_seeds_to_transmission_cli() {
    let programs = ["transmission-cli", LIBTORRENT];
    seeder_calls(&programs, Family::V4, libtorrent, transmission_cli);
}

#[test]
fn libtorrent_seeds_to_transmission_daemon() {
    let programs = ["transmission-daemon", LIBTORRENT];
    seeder_calls(&programs, Family::V4, libtorrent, transmission_daemon);
}

#[test]
fn libtorrent_finds_libtorrent() {
    leecher_calls(&[LIBTORRENT], Family::V4, libtorrent, libtorrent);
}

#[test]
fn libtorrent_finds_libtorrent_over_ipv6() {
    leecher_calls(&[LIBTORRENT], Family::V6, libtorrent, libtorrent);
}

#[test]
fn libtorrent_seeds_to_libtorrent_over_ipv6() {
    seeder_calls(&[LIBTORRENT], Family::V6, libtorrent, libtorrent);
}
