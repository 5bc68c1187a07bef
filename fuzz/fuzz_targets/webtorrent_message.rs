//! Messages from several sockets to the WebTorrent front ends of two workers.
//!
//! ```text
//! input  lines: SOCKET (1) message      SOCKET's low two bits select the socket
//!        '+' at the front: half a minute passes; a line of SOCKET alone: that client reconnects
//! ```
//!
//! Invariants checked: nothing panics; a message gets one response, an answer none; every sent text
//! is JSON in which names have 20 bytes; the directory holds only peers of open sockets; when all
//! sockets are closed, the directory and the store are empty.
#![no_main]

#[path = "../../tests/support/webtorrent_workers.rs"]
mod hive;

use hive::Hive;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use skep::frontend::http::Outcome;
use skep::frontend::ws::Options;
use skep::types::{Action, Rejected};

/// Two of them share an address.
const SOCKETS: [(&str, &str); 4] =
    [("a", "198.51.100.1"), ("b", "198.51.100.1"), ("c", "8.8.4.4"), ("d", "2600::2")];

fn check(text: &str) {
    let message: Value = serde_json::from_str(text).expect("JSON");
    for name in ["info_hash", "peer_id", "offer_id"] {
        let Some(name) = message.get(name) else { continue };
        let name: Vec<char> = name.as_str().expect("a name is text").chars().collect();
        assert!(name.len() == 20 && name.iter().all(|it| *it <= '\u{ff}'), "{text}");
    }
    for description in ["offer", "answer"] {
        let Some(description) = message.get(description) else { continue };
        assert!(description["sdp"].is_string(), "{text}");
    }
}

fn say(hive: &mut Hive, name: &str, message: &[u8]) {
    let outcome = hive.say_undelivered_bytes(name, message);
    let responses = std::iter::from_fn(|| hive.next(name)).inspect(|it| check(it)).count();
    match outcome {
        Outcome::Answered(Action::Answer) => assert_eq!(responses, 0),
        Outcome::Rejected(Rejected::BadMessage) => assert!(responses <= 1),
        _ => assert_eq!(responses, 1),
    }
    hive.deliver();
    for (name, _) in SOCKETS {
        std::iter::from_fn(|| hive.next(name)).for_each(|it| check(&it));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut hive = Hive::new(Options { torrents_max: 3, ..Options::default() });
    SOCKETS.iter().for_each(|(name, source)| hive.open(name, source));
    for line in input.split(|it| *it == b'\n') {
        let line = line.strip_prefix(b"+").map_or(line, |rest| {
            hive.now = hive.now.plus_s(30);
            rest
        });
        let Some((&who, message)) = line.split_first() else { continue };
        let (name, source) = SOCKETS[usize::from(who & 3)];
        if message.is_empty() {
            hive.close(name);
            hive.open(name, source);
        } else {
            say(&mut hive, name, message);
        }
        let spoken_for: usize = SOCKETS.iter().map(|it| hive.session(it.0).torrents()).sum();
        assert!(hive.directory.peers() <= spoken_for);
    }
    SOCKETS.iter().for_each(|(name, _)| hive.close(name));
    assert_eq!(hive.directory.peers(), 0);
    let totals = hive.store.totals();
    assert_eq!((totals.seeders, totals.leechers), Default::default(), "nobody is left");
});
