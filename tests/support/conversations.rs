//! Golden bytes: conversations as text, one file a case, replayed through the front end that every
//! worker runs, and over the network. What a file says is what clients see, byte for byte; the
//! file's name is the case.
//!
//! ```text
//! from 198.51.100.1:6881      who sends what follows
//! > 0000041727101980 …        a request, in hex; `{id}` is a connection id of the sender's address
//! < 00000000 …                exactly this response; `{id}` takes any, and remembers it
//! ! too_short                 silence, counted as this
//! url /announce               what the request's BEP 41 options join to
//! wait 128                    seconds that pass
//! # …                         a comment, also behind hex; two blanks go on with the hex above
//! ```

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};

/// When every conversation starts: the pinned connection ids hold for this moment.
pub(crate) const START: Now = Now::from_s(1_800_000_000);

#[derive(Debug)]
pub(crate) enum Step {
    From(SocketAddr),
    Request(String),
    Response(String),
    Silence(String),
    Url(String),
    Wait(u64),
}

/// A file's steps, each with the line it stands in.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) steps: Vec<(usize, Step)>,
}

pub(crate) fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/udp");
    let files = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|it| it.extension().is_some_and(|it| it == "hex")).collect();
    files.sort();
    assert!(files.len() > 40, "the cases were found");
    let read = |file: &std::path::PathBuf| {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let steps = parse(&name, &fs::read_to_string(file).unwrap());
        Case { name, steps }
    };
    files.iter().map(read).collect()
}

fn parse(name: &str, text: &str) -> Vec<(usize, Step)> {
    let mut steps: Vec<(usize, Step)> = Vec::new();
    for (at, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap().trim_end();
        if let Some(more) = line.strip_prefix("  ") {
            match steps.last_mut() {
                Some((_, Step::Request(hex) | Step::Response(hex))) => hex.push_str(more),
                _ => panic!("{name}:{at}: nothing goes on here"),
            }
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let step = match word {
            "" => continue,
            "from" => Step::From(rest.parse().unwrap()),
            ">" => Step::Request(rest.to_owned()),
            "<" => Step::Response(rest.to_owned()),
            "!" => Step::Silence(rest.to_owned()),
            "url" => Step::Url(rest.to_owned()),
            "wait" => Step::Wait(rest.parse().unwrap()),
            _ => panic!("{name}:{at}: what is `{word}`?"),
        };
        steps.push((at, step));
    }
    steps
}

/// Bytes of hex in which blanks do not count.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|it| !it.is_whitespace()).collect();
    let pair = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

pub(crate) fn frontend() -> UdpFrontend {
    let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
    let options = tracker::Options { interval_s: 1800, interval_jitter_s: 0, ..Default::default() };
    let tracker = Tracker::new(store, Arc::new(ArcSwap::from_pointee(options)), 1, 0, 1);
    let (active, algorithm) = (key(), Algorithm::SipHash);
    let ids = ConnectionIds::new(&KeyPair { active, staging: None, algorithm });
    UdpFrontend::new(tracker, Arc::new(ArcSwap::from_pointee(ids)))
}

pub(crate) fn with_id(hex: &str, id: impl FnOnce() -> u64) -> Vec<u8> {
    match hex.contains("{id}") {
        true => bytes(&hex.replace("{id}", &format!("{:016x}", id()))),
        false => bytes(hex),
    }
}

/// Hex in words of four bytes, which is how the protocol is laid out.
pub(crate) fn text(bytes: &[u8]) -> String {
    let word = |it: &[u8]| it.iter().map(|it| format!("{it:02x}")).collect::<String>();
    bytes.chunks(4).map(word).collect::<Vec<_>>().join(" ")
}

/// The key of the pinned connection ids.
pub(crate) fn key() -> [u8; 32] {
    std::array::from_fn(|at| u8::try_from(at).unwrap())
}
