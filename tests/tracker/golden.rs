//! Golden bytes: conversations as text, one file a case, replayed through the front end that every
//! worker runs. What a file says is what clients see, byte for byte; the file's name is the case.
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

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::protocol::udp::client::{self, Response};
use skep::protocol::udp::{self, Request, TransactionId};
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};
use skep::types::{Dropped, Family};

/// When every conversation starts: the pinned connection ids hold for this moment.
const START: Now = Now::from_s(1_800_000_000);

#[derive(Debug)]
enum Step {
    From(SocketAddr),
    Request(String),
    Response(String),
    Silence(String),
    Url(String),
    Wait(u64),
}

/// A file's steps, each with the line it stands in.
struct Case {
    name: String,
    steps: Vec<(usize, Step)>,
}

fn cases() -> Vec<Case> {
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
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|it| !it.is_whitespace()).collect();
    let pair = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn frontend() -> UdpFrontend {
    let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
    let options = tracker::Options { interval_s: 1800, interval_jitter_s: 0, ..Default::default() };
    let tracker = Tracker::new(store, Arc::new(ArcSwap::from_pointee(options)), 1, 0, 1);
    let active = std::array::from_fn(|at| u8::try_from(at).unwrap());
    let ids = ConnectionIds::new(&KeyPair { active, staging: None, algorithm: Algorithm::SipHash });
    UdpFrontend::new(tracker, Arc::new(ArcSwap::from_pointee(ids)))
}

/// A conversation at one point.
struct Conversation {
    frontend: UdpFrontend,
    now: Now,
    source: SocketAddr,
    ids: HashMap<IpAddr, u64>,
    response: Result<Vec<u8>, Dropped>,
}

impl Conversation {
    fn new() -> Self {
        let source = SocketAddr::from(([198, 51, 100, 254], 1));
        let response = Ok(Vec::new());
        Self { frontend: frontend(), now: START, source, ids: HashMap::new(), response }
    }

    fn send(&mut self, request: &[u8]) {
        let mut out = [0; RESPONSE_BYTES_MAX];
        for stage in 0..UdpFrontend::PREFETCH_STAGES {
            self.frontend.prefetch(stage, request);
        }
        let response = self.frontend.handle(self.now, self.source, request, &mut out);
        self.response = response.map(|answered| {
            let response = &out[..answered.bytes];
            let is_error = response.starts_with(&[0, 0, 0, 3]);
            assert_eq!(answered.refusal.is_some(), is_error, "what is counted is what is sent");
            assert!(!is_error || response.len() <= request.len(), "an error never outgrows");
            response.to_vec()
        });
    }

    /// The sender's id; connects first where it has none.
    fn id(&mut self) -> u64 {
        if !self.ids.contains_key(&self.source.ip()) {
            self.send(&bytes("0000041727101980 00000000 00000000"));
            self.remember_id();
        }
        self.ids[&self.source.ip()]
    }

    fn remember_id(&mut self) {
        let response = self.response.as_ref().unwrap();
        let (_, Response::Connected(id)) = client::decode(response, Family::V4).unwrap() else {
            panic!("not a connect reply: {response:02x?}");
        };
        self.ids.insert(self.source.ip(), id);
    }

    fn step(&mut self, at: &str, step: &Step) {
        match step {
            Step::From(source) => self.source = *source,
            Step::Wait(seconds) => self.now = self.now.plus_s(*seconds),
            Step::Url(_) => {}
            Step::Request(hex) => {
                let request = with_id(hex, || self.id());
                self.send(&request);
            }
            Step::Response(hex) => {
                if hex.contains("{id}") {
                    self.remember_id();
                }
                let expected = with_id(hex, || self.id());
                let response = self.response.as_ref().unwrap_or_else(|it| panic!("{at}: {it:?}"));
                assert_eq!(text(response), text(&expected), "{at}");
            }
            Step::Silence(reason) => match &self.response {
                Err(dropped) => assert_eq!(dropped.label(), reason, "{at}"),
                Ok(response) => panic!("{at}: answered {}", text(response)),
            },
        }
    }
}

fn with_id(hex: &str, id: impl FnOnce() -> u64) -> Vec<u8> {
    match hex.contains("{id}") {
        true => bytes(&hex.replace("{id}", &format!("{:016x}", id()))),
        false => bytes(hex),
    }
}

/// Hex in words of four bytes, which is how the protocol is laid out.
fn text(bytes: &[u8]) -> String {
    let word = |it: &[u8]| it.iter().map(|it| format!("{it:02x}")).collect::<String>();
    bytes.chunks(4).map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_conversation_is_as_written() {
    for case in cases() {
        let mut conversation = Conversation::new();
        for (line, step) in &case.steps {
            conversation.step(&format!("{}.hex:{line}", case.name), step);
        }
    }
}

#[test]
fn every_request_decodes_as_written() {
    for case in cases() {
        let steps = case.steps.iter().map(|(_, step)| step);
        let mut last = Vec::new();
        for step in steps {
            match step {
                Step::Request(hex) => last = with_id(hex, || 1),
                Step::Silence(reason) => match udp::decode(&last) {
                    Err(dropped) => assert_eq!(dropped.label(), reason, "{}", case.name),
                    Ok(_) => assert!(reason.ends_with("_id"), "{}: {reason}", case.name),
                },
                Step::Response(_) => assert!(udp::decode(&last).is_ok(), "{}", case.name),
                Step::Url(url) => {
                    let Ok(Request::Announce(_, options)) = udp::decode(&last) else {
                        panic!("{}: no announce", case.name);
                    };
                    assert_eq!(options.url_data().as_ref(), url.as_bytes(), "{}", case.name);
                }
                Step::From(_) | Step::Wait(_) => {}
            }
        }
    }
}

#[test]
fn every_response_satisfies_the_strictest_client() {
    for case in cases() {
        let mut family = Family::V4;
        let mut transaction = TransactionId([0; 4]);
        for (line, step) in &case.steps {
            match step {
                Step::From(source) => family = Family::of(source.ip()),
                Step::Request(hex) => {
                    let request = with_id(hex, || 1);
                    transaction = TransactionId(
                        request.get(12..16).map_or([0; 4], |it| it.try_into().unwrap()),
                    );
                }
                Step::Response(hex) => {
                    let response = client::decode(&with_id(hex, || 1), family).map(|it| it.0);
                    assert_eq!(response, Ok(transaction), "{}.hex:{line}", case.name);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_reason_to_drop_has_a_case() {
    // These two are judged by the worker, which knows the port and the size of its buffers.
    let mut missing: BTreeSet<&str> = Dropped::ALL.iter().map(|it| it.label()).collect();
    missing.remove(Dropped::SourcePortZero.label());
    missing.remove(Dropped::Oversized.label());
    // These depend on how much is asked: tests/tracker/flood.rs and tests/tracker/responses.rs.
    for load in
        [Dropped::Limited, Dropped::LimitedConnect, Dropped::ShedScrape, Dropped::ShedConnect]
    {
        missing.remove(load.label());
    }
    for (_, step) in cases().iter().flat_map(|it| &it.steps) {
        if let Step::Silence(reason) = step {
            missing.remove(reason.as_str());
        }
    }
    assert!(missing.is_empty(), "no case for {missing:?}");
}
