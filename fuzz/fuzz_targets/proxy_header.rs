//! The first bytes of a connection, passed to the PROXY protocol's decoder, and hop fields, passed
//! to theirs.
//!
//! Invariants checked: nothing panics; a header is not longer than the input, nor than the limit; a
//! decision on part of the input does not change when the rest arrives; sources are unmapped, and a
//! hop field never makes the proxy itself the source.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use skep::frontend::origin::Origin;
use skep::protocol::proxy::{self, HEADER_BYTES_MAX, Preamble};

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn check_preamble(input: &[u8]) {
    let whole = proxy::parse(input);
    if let Ok(Preamble::Header { bytes, source }) = whole {
        assert!((1..=input.len().min(HEADER_BYTES_MAX)).contains(&bytes));
        assert!(source.is_none_or(|it| it.ip() == it.ip().to_canonical()));
        assert_eq!(proxy::parse(&input[..bytes]), whole);
    }
    if whole == Ok(Preamble::More) {
        assert!(input.len() < HEADER_BYTES_MAX);
    }
    for end in 0..input.len().min(HEADER_BYTES_MAX) {
        let part = proxy::parse(&input[..end]);
        assert!(part == whole || part == Ok(Preamble::More), "{end}");
    }
}

fn check_hops(input: &[u8]) {
    for name in ["Forwarded", "X-Forwarded-For", "X-Real-IP"] {
        let headers = [httparse::Header { name, value: input }];
        let named = Origin::Address(PROXY).source(&headers, &[PROXY.into()], None);
        assert!(named.is_none_or(|it| it == it.to_canonical()));
        let says_so = input.windows(8).any(|it| it == b"10.0.0.1")
            || input.iter().filter(|it| **it == b':').count() >= 2;
        assert!(says_so || named != Some(PROXY), "the proxy did not name itself");
    }
}

fuzz_target!(|input: &[u8]| {
    check_preamble(input);
    check_hops(input);
});
