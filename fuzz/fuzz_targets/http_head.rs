//! Connections to the HTTP front end, whole and in pieces, from clients and from proxies.
//!
//! ```text
//! input   options (1) | where the input is cut (1) | bytes of a connection
//! options 0 a trusted proxy | 1 a Unix socket | 2 full scrapes on | 3 statistics on
//! ```
//!
//! Invariants checked: nothing panics; a request consumes at least one byte and at most the input;
//! 8 KiB are always enough to decide; every response is HTTP with the length that it declares; a
//! decision on part of the input does not change when the rest arrives; every bencoded body is
//! complete.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use libfuzzer_sys::fuzz_target;
use skep::frontend::http::{HEAD_BYTES_MAX, HttpFrontend, Options, ReceiveOutcome};
use skep::frontend::origin::Origin;
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};

const NOW: Now = Now::from_s(1_800_000_000);
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

fn tracker() -> Tracker {
    let store = Arc::new(Store::new(store::Options { shards: 2, seed: Some(1) }));
    let rules = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
    Tracker::without_upkeep(store, rules, 1)
}

fn frontend(options: u8) -> (HttpFrontend, Origin) {
    let origin = match options & 3 {
        0 => Origin::Address(STRANGER),
        1 => Origin::Address(PROXY),
        _ => Origin::Local,
    };
    let options = Options {
        trusted_proxies: vec![PROXY.into()],
        full_scrape: options & 4 != 0,
        public_stats: options & 8 != 0,
        ..Options::default()
    };
    let options = Arc::new(ArcSwap::from_pointee(options));
    (HttpFrontend::new(options, Arc::default()), origin)
}

/// Handles one request of the input; returns the outcome and the response.
fn step(options: u8, input: &[u8]) -> (ReceiveOutcome, Vec<u8>) {
    let (mut frontend, origin) = frontend(options);
    let mut tracker = tracker();
    let mut out = Vec::new();
    let flow = frontend.handle(&mut tracker, NOW, origin, input, &mut out);
    if let ReceiveOutcome::FullScrape { encoding, chunked, .. } = flow {
        let mut scrape = frontend
            .full_scrape(tracker.listing(), encoding, chunked)
            .expect("memory for an encoder");
        while scrape.write_piece(&mut out).expect("memory for a piece") {}
    }
    (flow, out)
}

fn check(input: &[u8], flow: ReceiveOutcome, response: &[u8]) -> usize {
    let consumed = match flow {
        ReceiveOutcome::More => {
            assert!(input.len() < HEAD_BYTES_MAX, "8 KiB are a head or none");
            assert!(response.is_empty());
            return 0;
        }
        ReceiveOutcome::Responded { consumed, .. }
        | ReceiveOutcome::Upgraded { consumed, .. }
        | ReceiveOutcome::FullScrape { consumed, .. } => consumed,
    };
    assert!((1..=input.len()).contains(&consumed));
    assert!(response.starts_with(b"HTTP/1.1 "));
    let head = response.windows(4).position(|it| it == b"\r\n\r\n").expect("a whole head") + 4;
    let head_text = std::str::from_utf8(&response[..head]).expect("a head of ASCII");
    if let Some((_, rest)) = head_text.split_once("Content-Length: ") {
        let length: usize = rest.split("\r\n").next().and_then(|it| it.parse().ok()).expect("n");
        let body = &response[head..];
        assert!(body.is_empty() || body.len() == length, "as long as it says, or a HEAD");
        assert!(!body.starts_with(b"d") || body.ends_with(b"e"), "bencode that ends");
    }
    consumed
}

fuzz_target!(|input: &[u8]| {
    let [options, cut, input @ ..] = input else { return };
    let mut rest = input;
    // Four requests are enough: no state is kept between them.
    for _ in 0..4 {
        let (flow, response) = step(*options, rest);
        let part = &rest[..rest.len() * usize::from(*cut) / 256];
        let (early, early_response) = step(*options, part);
        check(part, early, &early_response);
        if early != ReceiveOutcome::More && part.len() < HEAD_BYTES_MAX {
            assert_eq!(early_response, response, "the rest changes nothing");
        }
        match check(rest, flow, &response) {
            0 => return,
            consumed => rest = &rest[consumed..],
        }
    }
});
