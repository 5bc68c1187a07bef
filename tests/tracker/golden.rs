//! Golden bytes, replayed through the front end that every worker runs, and through the codec.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::protocol::udp::client::{self, Response};
use skep::protocol::udp::{self, Request, TransactionId};
use skep::time::Now;
use skep::types::{Dropped, Family};

use crate::support::conversations::{START, Step, bytes, cases, frontend, text, with_id};

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
