//! Real clients from Debian find each other through a running skep, and a file arrives whole. DHT,
//! local discovery and peer exchange are off, so the tracker is the only way to meet.
//!
//! A client that is not installed: `skipped: PROGRAM not found`; with `SKEP_REQUIRE_EXTERNAL=1`, a
//! failure. aria2 and Transmission 3 speak to UDP trackers over IPv4 only, so IPv6 is libtorrent's.
#![cfg(target_os = "linux")]

use std::io::Write as _;

use skep::types::Family::{V4, V6};

use crate::downloads::{leecher_calls, seeder_calls};
use crate::meeting::Via::{Http, Https, Udp};
use crate::meeting::{Meeting, Role};
use crate::programs::{ARIA2, LIBTORRENT, TRANSMISSION_CLI, TRANSMISSION_DAEMON, libtorrent_rush};
use crate::support;
use crate::support::namespaces::{
    CLIENT_V4, SERVER_V4, ServerNamespace, await_af_xdp_sockets, in_a_namespace,
};
use crate::support::tcp_clients;

// ---- over UDP ----

#[test]
fn aria2_finds_aria2() {
    leecher_calls(V4, ARIA2.via(Udp), ARIA2.via(Udp));
}

#[test]
fn aria2_finds_transmission_daemon() {
    leecher_calls(V4, TRANSMISSION_DAEMON.via(Udp), ARIA2.via(Udp));
}

#[test]
fn libtorrent_finds_aria2() {
    leecher_calls(V4, ARIA2.via(Udp), LIBTORRENT.via(Udp));
}

#[test]
fn libtorrent_finds_transmission_cli() {
    leecher_calls(V4, TRANSMISSION_CLI.via(Udp), LIBTORRENT.via(Udp));
}

#[test]
fn libtorrent_seeds_to_transmission_cli() {
    seeder_calls(V4, LIBTORRENT.via(Udp), TRANSMISSION_CLI.via(Udp));
}

#[test]
fn libtorrent_seeds_to_transmission_daemon() {
    seeder_calls(V4, LIBTORRENT.via(Udp), TRANSMISSION_DAEMON.via(Udp));
}

#[test]
fn libtorrent_finds_libtorrent() {
    leecher_calls(V4, LIBTORRENT.via(Udp), LIBTORRENT.via(Udp));
}

#[test]
fn libtorrent_finds_libtorrent_over_ipv6() {
    leecher_calls(V6, LIBTORRENT.via(Udp), LIBTORRENT.via(Udp));
}

#[test]
fn libtorrent_seeds_to_libtorrent_over_ipv6() {
    seeder_calls(V6, LIBTORRENT.via(Udp), LIBTORRENT.via(Udp));
}

/// A tracker in one network namespace, clients in another: the program answers their connects, and
/// their announces reach a worker through an AF_XDP socket.
#[test]
fn aria2_and_libtorrent_exchange_a_file_through_xdp() {
    const NAME: &str = "aria2_and_libtorrent_exchange_a_file_through_xdp";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let mut skep = support::command();
    skep.args(["--workers", "2", "--admin", &format!("{SERVER_V4}:0")]);
    skep.args(["--listen", &format!("{SERVER_V4}:0")]);
    skep.envs([("SKEP__UDP__XDP", "full"), ("SKEP__UDP__XDP_MODE", "native")]);
    let skep = support::Skep::spawn(namespace.within(&skep));
    let (seeder, leecher) = (ARIA2.via(Udp), LIBTORRENT.via(Udp));
    let client_ip = CLIENT_V4.parse().unwrap();
    let Some(meeting) = Meeting::through(skep, client_ip, seeder, leecher) else { return };
    await_af_xdp_sockets(meeting.skep());
    let before = meeting.skep().metrics();
    let _seeder = meeting.start(Role::Seeder);
    meeting.wait_for(1, 0);
    let _leecher = meeting.start(Role::Leecher);
    meeting.wait_for_transfer();
    let metrics = meeting.skep().metrics();
    let judged = |verdict| {
        let label = format!("verdict=\"{verdict}\"");
        let of = |it: &support::Metrics| it.sum("skep_xdp_packets_total", &label);
        of(&metrics) - of(&before)
    };
    assert!(judged("answered") >= 2.0 && judged("redirected") >= 2.0, "{}", metrics.text);
    assert_eq!(judged("forged_id") + judged("expired_id") + judged("limited_connect"), 0.0);
}

// ---- over HTTP ----

#[test]
fn http_libtorrent_finds_aria2() {
    leecher_calls(V4, ARIA2.via(Http), LIBTORRENT.via(Http));
}

#[test]
fn http_libtorrent_seeds_to_transmission_cli() {
    seeder_calls(V4, LIBTORRENT.via(Http), TRANSMISSION_CLI.via(Http));
}

#[test]
fn http_libtorrent_finds_libtorrent_over_ipv6() {
    leecher_calls(V6, LIBTORRENT.via(Http), LIBTORRENT.via(Http));
}

// ---- over HTTPS ----

#[test]
fn https_libtorrent_finds_transmission_daemon() {
    leecher_calls(V4, TRANSMISSION_DAEMON.via(Https), LIBTORRENT.via(Https));
}

#[test]
fn https_aria2_finds_libtorrent() {
    leecher_calls(V4, LIBTORRENT.via(Https), ARIA2.via(Https));
}

// ---- over one and another ----

#[test]
fn libtorrent_over_http_finds_aria2_over_udp() {
    leecher_calls(V4, ARIA2.via(Udp), LIBTORRENT.via(Http));
}

#[test]
fn aria2_over_udp_finds_transmission_over_https() {
    leecher_calls(V4, TRANSMISSION_CLI.via(Https), ARIA2.via(Udp));
}

#[test]
fn libtorrent_over_https_finds_libtorrent_over_http() {
    leecher_calls(V4, LIBTORRENT.via(Http), LIBTORRENT.via(Https));
}

// ---- many torrents at once ----

/// Under the default limits, which hold for 127.0.0.1 here: it starts and ends with all of them.
#[test]
fn hundreds_of_torrents_of_libtorrent_are_in_at_once_and_out_at_its_end() {
    const TORRENTS: u32 = 300;
    let mut command = support::command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
    command.env("SKEP__LIMITS__EXEMPT", "::1/128");
    let skep = support::Skep::spawn(command);
    let peers = || skep.metrics().sum("skep_peers", "");
    let urls = [("udp", skep.udp[0]), ("http", skep.tcp[0])];
    for url in urls.map(|(scheme, address)| format!("{scheme}://{address}/announce")) {
        let Some(mut libtorrent) = libtorrent_rush() else { return };
        let mut child = libtorrent.args([url, TORRENTS.to_string()]).spawn().unwrap();
        support::eventually("all are in", || peers() == f64::from(TORRENTS));
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        support::eventually("all are out", || peers() == 0.0);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    let limited = skep.metrics().sum("skep_limited_total", "action=\"limited\"");
    assert_eq!(limited, 0.0);
}

// ---- the test of the public lists ----

/// What newTrackon asks of a tracker before and while it lists it: a random torrent, an address it
/// does not know written as `None`, and a response that says 200, `peers`, and made-up peers of
/// none.
#[test]
fn newtrackon_lists_it() {
    let skep = support::Skep::start(&[]);
    let hash: String = (0..20).map(|_| format!("%{:02X}", fastrand::u8(..))).collect();
    let target = format!(
        "/announce?info_hash={hash}&peer_id=-qB5230-abcdefghijkl&port=6881&uploaded=0\
         &downloaded=0&left=0&compact=1&ipv6=None&ipv4=None"
    );
    let headers = "User-Agent: qBittorrent/4.3.9\r\nAccept-Encoding: gzip\r\nConnection: close\r\n";
    let response = tcp_clients::ask_with(skep.tcp[0], None, &target, headers);
    assert_eq!(response.status, 200, "{response:?}");
    let answer = response.bencoded();
    let number = |key: &str| answer[key.as_bytes()].as_u64().unwrap();
    assert!(!answer.contains_key(b"failure reason".as_slice()), "{answer:?}");
    assert!(answer[b"peers".as_slice()].as_byte_str().unwrap().is_empty(), "{answer:?}");
    assert!(number("interval") > 0);
    assert_eq!((number("complete"), number("incomplete")), (1, 0));
}
