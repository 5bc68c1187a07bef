//! WebTorrent without sockets: conversations through the front ends of two workers, their mail
//! carried by hand. Conversations whose every byte matters are files in `tests/data/webtorrent`:
//!
//! ```text
//! socket a 198.51.100.1     opens a socket of that client
//! a > {"action":…           what its client says
//! = announce                what that was counted as
//! a < {"action":…           exactly the next message for its client
//! close a                   # a comment
//! ```
//!
//! Nothing may be left unread when the next thing is said, nor at the end.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use arc_swap::ArcSwap;
use proptest::prelude::*;
use skep::frontend::http::Outcome;
use skep::frontend::ws::{
    MESSAGE_BYTES_MAX, OFFER_AGE_S_MAX, Options, Outbox, SocketRoute, SocketSession, WsFrontend,
};
use skep::store::Budget;
use skep::tracker::Tracker;
use skep::types::{Action, InfoHash, Refusal, Rejected};

use crate::support::webtorrent_workers::{
    Hive, OTHER_TORRENT, TORRENT, announce, answer, id, label, offer, scrape,
};

const RELAYED: Outcome = Outcome::Answered(Action::Answer);
const IGNORED: Outcome = Outcome::Rejected(Rejected::BadMessage);
/// After how many seconds of silence the tracker forgets a peer.
const AGE_S: u64 = 3900;

#[test]
fn conversations_go_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/webtorrent");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the conversations were found");
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        converse(&name, &fs::read_to_string(file).unwrap());
    }
}

fn converse(name: &str, text: &str) {
    let mut hive = Hive::new(Options::default());
    let mut outcome = None;
    for (at, line) in (1..).zip(text.lines().map(str::trim_end)) {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (second, third) = rest.split_once(' ').unwrap_or((rest, ""));
        match (first, second) {
            ("" | "#", _) => {}
            ("socket", socket) => hive.open(socket, third),
            ("close", socket) => hive.close(socket),
            ("=", expected) => assert_eq!(outcome.map(label), Some(expected), "{name}:{at}"),
            (socket, ">") => {
                hive.assert_silence(&format!("{name}:{at}"));
                outcome = Some(hive.say(socket, third));
            }
            (socket, "<") => {
                assert_eq!(hive.next(socket).as_deref(), Some(third), "{name}:{at}");
            }
            _ => panic!("{name}:{at}: what is `{line}`?"),
        }
    }
    hive.assert_silence(name);
}

#[test]
fn offers_reach_distinct_peers_on_both_workers_and_answers_come_back() {
    let mut hive = Hive::new(Options::default());
    let others: Vec<String> = (0..6).map(|it| format!("peer{it}")).collect();
    for name in &others {
        hive.join(name, TORRENT);
    }
    hive.open("asker", "198.51.100.77");
    let offers: Vec<String> = (0..4).map(|it| offer(&it.to_string())).collect();
    hive.say("asker", &announce(TORRENT, "asker", &offers.join(","), ""));
    let response = hive.next("asker").unwrap();
    assert!(response.contains(r#""complete":0,"incomplete":7"#), "{response}");
    let asked: Vec<(&String, String)> =
        others.iter().filter_map(|it| Some((it, hive.next(it)?))).collect();
    assert_eq!(asked.len(), 4, "each offer went to a peer of its own");
    for (receiver, text) in &asked {
        assert!(text.contains(&format!(r#""peer_id":"{}""#, id("asker"))), "{text}");
        let number = (0..4).find(|it| text.contains(&id(&it.to_string()))).unwrap().to_string();
        let outcome = hive.say(receiver, &answer(TORRENT, receiver, "asker", &number));
        assert_eq!(outcome, RELAYED);
        let text = hive.next("asker").unwrap();
        assert!(text.contains(&format!(r#""peer_id":"{}""#, id(receiver))), "{text}");
        assert!(!text.contains("to_peer_id"), "{text}");
    }
    hive.assert_silence("nobody else was told anything");
}

#[test]
fn offers_are_no_more_than_wanted_taken_or_possible() {
    for (offers, numwant, offers_max, handed) in
        [(5, "", 10, 5), (5, r#","numwant":3"#, 10, 3), (5, "", 2, 2), (5, "", 0, 0)]
            .into_iter()
            .chain([(20, "", 50, 8), (5, r#","numwant":0"#, 10, 5), (0, r#","numwant":9"#, 10, 0)])
    {
        let mut hive = Hive::new(Options { offers_max, ..Options::default() });
        let others: Vec<String> = (0..8).map(|it| format!("peer{it}")).collect();
        others.iter().for_each(|it| hive.join(it, TORRENT));
        hive.open("asker", "198.51.100.77");
        let list: Vec<String> = (0..offers).map(|it| offer(&it.to_string())).collect();
        hive.say("asker", &announce(TORRENT, "asker", &list.join(","), numwant));
        let told = others.iter().filter(|it| hive.next(it).is_some()).count();
        assert_eq!(told, handed, "{offers} offers, {numwant}, at most {offers_max}");
    }
}

#[test]
fn an_answer_counts_once_for_its_offer_only_and_only_from_its_swarm() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.join("carol", TORRENT);
    hive.join("carol", OTHER_TORRENT);
    hive.join_with("alice", TORRENT, &[offer("1"), offer("2")].join(","));
    let bobs = if hive.next("bob").unwrap().contains(&id("1")) { "1" } else { "2" };
    let carols = if bobs == "1" { "2" } else { "1" };
    assert!(hive.next("carol").unwrap().contains(&id(carols)));
    for (why, wrong) in [
        ("carol's offer", answer(TORRENT, "bob", "alice", carols)),
        ("an offer nobody made", answer(TORRENT, "bob", "alice", "3")),
        ("another offerer", answer(TORRENT, "bob", "carol", bobs)),
        ("another torrent", answer(OTHER_TORRENT, "bob", "alice", bobs)),
        ("under a peer id that is not in the swarm", answer(TORRENT, "bobby", "alice", bobs)),
    ] {
        assert_eq!(hive.say("bob", &wrong), IGNORED, "{why}");
        hive.assert_silence(why);
    }
    assert_eq!(hive.say("carol", &answer(OTHER_TORRENT, "carol", "alice", carols)), IGNORED);
    assert_eq!(hive.say("bob", &answer(TORRENT, "bob", "alice", bobs)), RELAYED);
    assert!(hive.next("alice").is_some());
    assert_eq!(hive.say("bob", &answer(TORRENT, "bob", "alice", bobs)), IGNORED, "once");
    hive.say("carol", &announce(TORRENT, "carol", "", r#","event":"stopped""#));
    hive.next("carol").unwrap();
    let late = answer(TORRENT, "carol", "alice", carols);
    assert_eq!(hive.say("carol", &late), IGNORED, "who has left answers nothing");
    hive.assert_silence("all else was dropped");
}

#[test]
fn nobody_is_offered_anything_of_another_swarm() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", OTHER_TORRENT);
    hive.join_with("alice", TORRENT, &offer("1"));
    hive.assert_silence("the only other peer is elsewhere");
}

#[test]
fn seeders_are_not_offered_to_seeders() {
    let mut hive = Hive::new(Options::default());
    for name in ["bob", "carol"] {
        hive.open(name, "198.51.100.2");
        hive.say(name, &announce(TORRENT, name, &offer("1"), r#","left":0"#));
        hive.next(name).unwrap();
    }
    hive.assert_silence("two seeders have nothing to say to each other");
    hive.join_with("alice", TORRENT, &[offer("1"), offer("2")].join(","));
    assert!(hive.next("bob").is_some() && hive.next("carol").is_some());
    hive.say("bob", &announce(TORRENT, "bob", &offer("2"), r#","left":0"#));
    assert!(hive.next("bob").is_some() && hive.next("alice").is_some());
    assert_eq!(hive.next("carol"), None);
}

#[test]
fn one_socket_speaks_for_many_torrents_and_peers() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.join("bob", OTHER_TORRENT);
    for name in ["second", "third"] {
        hive.say("bob", &announce(TORRENT, name, "", ""));
        hive.next("bob").unwrap();
    }
    assert_eq!(hive.session("bob").torrents(), 4);
    let offers = [offer("1"), offer("2"), offer("3")].join(",");
    hive.join_with("alice", TORRENT, &offers);
    let told = [hive.next("bob"), hive.next("bob"), hive.next("bob")];
    assert!(told.iter().all(Option::is_some), "all three are offered something: {told:?}");
    assert_eq!(hive.say("bob", &answer(TORRENT, "third", "alice", "2")), RELAYED);
    assert!(hive.next("alice").unwrap().contains(&id("third")));
    hive.say("bob", &announce(TORRENT, "second", &offer("4"), r#","numwant":1"#));
    hive.next("bob").unwrap();
    let (alice, bob) = (hive.next("alice"), hive.next("bob"));
    assert!(alice.is_some() != bob.is_some(), "also to a neighbour on the same socket");
    assert!(alice.or(bob).unwrap().contains(&id("second")));
}

#[test]
fn a_socket_is_in_no_more_torrents_than_allowed_and_stays() {
    let mut hive = Hive::new(Options { torrents_max: 2, ..Options::default() });
    let third = "Torrent 3 — no bytes".replace('—', "-");
    hive.join("bob", TORRENT);
    hive.join("bob", OTHER_TORRENT);
    let refused = Outcome::Refused(Refusal::TooManyTorrents);
    assert_eq!(hive.say("bob", &announce(&third, "bob", "", "")), refused);
    let expected = format!(
        r#"{{"action":"announce","failure reason":"too many torrents","info_hash":"{third}"}}"#
    );
    assert_eq!(hive.next("bob"), Some(expected));
    assert_eq!(hive.counts(&third), (0, 0), "it was not let in");
    hive.join("bob", TORRENT);
    hive.say("bob", &announce(TORRENT, "bob", "", r#","event":"stopped""#));
    hive.next("bob").unwrap();
    hive.join("bob", &third);
    assert_eq!(hive.counts(&third), (0, 1), "there is room again");
}

#[test]
fn peers_that_went_silent_are_no_longer_the_sockets() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.now = hive.now.plus_s(AGE_S - 100);
    hive.tend("bob");
    hive.join("bob", OTHER_TORRENT);
    hive.now = hive.now.plus_s(99);
    hive.tend("bob");
    assert_eq!((hive.session("bob").torrents(), hive.directory.peers()), (2, 2), "not yet");
    hive.now = hive.now.plus_s(1);
    hive.tend("bob");
    assert_eq!((hive.session("bob").torrents(), hive.directory.peers()), (1, 1));
    assert_eq!((hive.counts(TORRENT), hive.counts(OTHER_TORRENT)), ((0, 0), (0, 1)));
    hive.now = hive.now.plus_s(AGE_S - 101);
    hive.join("bob", OTHER_TORRENT); // is still there, and says so
    hive.now = hive.now.plus_s(AGE_S - 1);
    hive.tend("bob");
    assert_eq!(hive.directory.peers(), 1, "its latest announce counts");
    hive.now = hive.now.plus_s(1);
    hive.tend("bob");
    assert_eq!((hive.session("bob").torrents(), hive.directory.peers()), (0, 0));
    hive.join("bob", TORRENT);
    assert_eq!(hive.counts(TORRENT), (0, 1), "it may come back");
}

#[test]
fn a_full_socket_gives_the_places_of_silent_peers_to_others() {
    let mut hive = Hive::new(Options { torrents_max: 3, ..Options::default() });
    let names: Vec<String> = (0..9).map(|it| format!("peer {it}")).collect();
    let announce_as = |hive: &mut Hive, name: &str| {
        let outcome = hive.say("bob", &announce(TORRENT, name, "", ""));
        hive.next("bob").unwrap();
        outcome
    };
    hive.open("bob", "198.51.100.2");
    let (joined, refused) =
        (Outcome::Answered(Action::Announce), Outcome::Refused(Refusal::TooManyTorrents));
    for name in &names[..3] {
        assert_eq!(announce_as(&mut hive, name), joined, "{name}");
        hive.now = hive.now.plus_s(10);
    }
    assert_eq!(announce_as(&mut hive, &names[3]), refused);
    hive.now = hive.now.plus_s(AGE_S - 31);
    assert_eq!(announce_as(&mut hive, &names[3]), refused);
    for name in &names[3..6] {
        hive.now = hive.now.plus_s(10);
        assert_eq!(announce_as(&mut hive, name), joined, "{name}: the oldest has made room");
        assert_eq!(announce_as(&mut hive, &names[7]), refused, "and only the oldest");
    }
    assert_eq!((hive.session("bob").torrents(), hive.directory.peers()), (3, 3));
    assert_eq!(hive.counts(TORRENT), (0, 3));
}

#[test]
fn a_peer_that_went_silent_on_an_old_socket_stays_on_its_new_one() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.now = hive.now.plus_s(100);
    hive.open("new bob", "198.51.100.2");
    hive.say("new bob", &announce(TORRENT, "bob", "", ""));
    hive.next("new bob").unwrap();
    hive.now = hive.now.plus_s(AGE_S - 100);
    hive.tend("bob");
    hive.tend("new bob");
    assert_eq!((hive.session("bob").torrents(), hive.session("new bob").torrents()), (0, 1));
    assert_eq!((hive.counts(TORRENT), hive.directory.peers()), ((0, 1), 1));
}

#[test]
fn a_peer_that_comes_back_is_moved_and_the_old_sockets_end_changes_nothing() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.open("new bob", "198.51.100.2");
    hive.say("new bob", &announce(TORRENT, "bob", "", ""));
    hive.next("new bob").unwrap();
    assert_eq!(hive.counts(TORRENT), (0, 1), "one peer, on two sockets");
    hive.close("bob");
    assert_eq!(hive.counts(TORRENT), (0, 1), "the newer socket holds it");
    assert_eq!(hive.directory.peers(), 1);
    hive.join_with("alice", TORRENT, &offer("1"));
    assert!(hive.next("new bob").unwrap().contains(&id("1")));
    hive.close("new bob");
    assert_eq!(hive.counts(TORRENT), (0, 1), "only alice is left");
}

/// An old socket closes on one thread while its peers announce on a new one on another, over and
/// over. There are many peers, so that the two threads meet at some of them.
#[test]
fn peers_that_come_back_stay_however_the_workers_race() {
    const PEERS: u32 = 100;
    let hive = Hive::new(Options::default());
    // The parts that threads share.
    let Hive { now, store, directory, .. } = &hive;
    let info_hash = InfoHash(TORRENT.as_bytes().try_into().unwrap());
    let options = Arc::new(ArcSwap::from_pointee(Options::default()));
    let messages: Vec<String> =
        (0..PEERS).map(|it| announce(TORRENT, &it.to_string(), "", "")).collect();
    let (steps, lost) = ([Barrier::new(2), Barrier::new(2)], AtomicU32::new(0));
    let run = |worker: u16| {
        let mut frontend = WsFrontend::new(directory.clone(), options.clone());
        let mut tracker = Tracker::without_upkeep(store.clone(), Arc::default(), 1);
        let mut old: Option<SocketSession> = None;
        for round in 0..2000 {
            steps[0].wait();
            if let Some(session) = old.take() {
                frontend.close(&mut tracker, *now, session);
            } else if round > 0 || worker == 0 {
                let route = SocketRoute { worker, slot: 0, generation: round };
                let mut new = frontend.open(route, "198.51.100.2".parse().unwrap());
                for text in &messages {
                    let (text, mut outbox) = (text.as_bytes(), Outbox::default());
                    frontend.handle(&mut tracker, *now, &mut new, text, &mut outbox);
                }
                old = Some(new);
            }
            steps[1].wait();
            let peers = store.scrape(&info_hash).leechers;
            lost.fetch_max(PEERS.abs_diff(peers), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run(0));
        scope.spawn(|| run(1));
    });
    assert_eq!(lost.into_inner(), 0, "peers that were gone after a round");
    assert_eq!(hive.directory.peers(), PEERS as usize);
}

#[test]
fn an_answer_finds_an_offerer_that_has_moved_and_none_that_has_left() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.join("carol", TORRENT);
    hive.join_with("alice", TORRENT, &[offer("1"), offer("2")].join(","));
    let bobs = if hive.next("bob").unwrap().contains(&id("1")) { "1" } else { "2" };
    let carols = if bobs == "1" { "2" } else { "1" };
    hive.next("carol").unwrap();
    hive.open("new alice", "198.51.100.2");
    hive.say("new alice", &announce(TORRENT, "alice", "", ""));
    hive.next("new alice").unwrap();
    hive.close("alice");
    assert_eq!(hive.say("bob", &answer(TORRENT, "bob", "alice", bobs)), RELAYED);
    assert!(hive.next("new alice").is_some());
    hive.close("new alice");
    assert_eq!(hive.say("carol", &answer(TORRENT, "carol", "alice", carols)), RELAYED);
    hive.assert_silence("there is nobody to tell");
}

#[test]
fn the_same_peer_id_from_another_address_is_another_peer() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.open("mallory", "203.0.113.66");
    hive.say("mallory", &announce(TORRENT, "bob", "", ""));
    hive.next("mallory").unwrap();
    assert_eq!(hive.counts(TORRENT), (0, 2));
    hive.say("mallory", &announce(TORRENT, "bob", "", r#","event":"stopped""#));
    hive.next("mallory").unwrap();
    hive.close("mallory");
    assert_eq!(hive.counts(TORRENT), (0, 1), "bob cannot be stopped by others");
    hive.join_with("alice", TORRENT, &offer("1"));
    assert!(hive.next("bob").is_some());
}

#[test]
fn closing_and_stopping_leave_nothing_behind() {
    let mut hive = Hive::new(Options::default());
    for name in ["bob", "carol"] {
        for torrent in [TORRENT, OTHER_TORRENT] {
            hive.join(name, torrent);
        }
    }
    assert_eq!(hive.directory.peers(), 4);
    hive.say("bob", &announce(TORRENT, "bob", "", r#","event":"stopped""#));
    assert!(hive.next("bob").unwrap().contains(r#""incomplete":1"#));
    assert_eq!((hive.directory.peers(), hive.session("bob").torrents()), (3, 1));
    hive.close("carol");
    assert_eq!((hive.counts(TORRENT), hive.counts(OTHER_TORRENT)), ((0, 0), (0, 1)));
    hive.close("bob");
    assert_eq!((hive.counts(OTHER_TORRENT), hive.directory.peers()), ((0, 0), 0));
}

#[test]
fn a_peer_that_is_not_stored_holds_nothing_and_comes_back_late() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.store.allow(Budget { bytes_max: 1, peers_per_torrent_max: 0 });
    hive.open("carol", "198.51.100.9");
    hive.say("carol", &announce(OTHER_TORRENT, "carol", &offer("1"), ""));
    let response = hive.next("carol").unwrap();
    assert!(response.contains(r#""interval":240"#), "{response}");
    assert_eq!((hive.directory.peers(), hive.session("carol").torrents()), (1, 0));
    hive.say("bob", &announce(TORRENT, "bob", "", ""));
    let response = hive.next("bob").unwrap();
    assert!(response.contains(r#""interval":120"#), "who is there stays there: {response}");
    assert_eq!((hive.directory.peers(), hive.session("bob").torrents()), (1, 1));
}

#[test]
fn mail_that_comes_too_late_reaches_nobody() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.open("alice", "198.51.100.77");
    hive.say_undelivered("alice", &announce(TORRENT, "alice", &offer("1"), ""));
    hive.say_undelivered("bob", &announce(TORRENT, "bob", "", r#","event":"stopped""#));
    hive.next("bob").unwrap();
    hive.deliver();
    hive.next("alice").unwrap();
    hive.assert_silence("bob has left in between");
}

#[test]
fn an_offer_can_be_answered_for_a_minute() {
    for (wait, outcome) in [(OFFER_AGE_S_MAX - 1, RELAYED), (OFFER_AGE_S_MAX, IGNORED)] {
        let mut hive = Hive::new(Options::default());
        hive.join("bob", TORRENT);
        hive.join_with("alice", TORRENT, &offer("1"));
        hive.next("bob").unwrap();
        hive.now = hive.now.plus_s(wait);
        assert_eq!(hive.say("bob", &answer(TORRENT, "bob", "alice", "1")), outcome, "{wait} s");
    }
}

#[test]
fn descriptions_may_be_long_but_not_longer_than_clients_can_read() {
    let of = |bytes: usize| {
        let text = format!(r#"{{"sdp":"{}"}}"#, "x".repeat(bytes - 10));
        format!(r#"{{"offer":{text},"offer_id":"{}"}}"#, id("1"))
    };
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    hive.join_with("alice", TORRENT, &of(16 * 1024));
    assert!(hive.next("bob").unwrap().len() > 16 * 1024);
    let outcome = hive.say("alice", &announce(TORRENT, "alice", &of(16 * 1024 + 1), ""));
    assert_eq!(outcome, Outcome::Answered(Action::Announce));
    assert!(hive.next("alice").unwrap().contains("offer is not an object with a text sdp"));
    assert_eq!(hive.lost["unusable"], 1);
    hive.assert_silence("the long one went nowhere");
}

#[test]
fn a_scrape_answers_for_74_torrents_and_more_are_an_error() {
    let mut hive = Hive::new(Options::default());
    hive.open("bob", "198.51.100.2");
    let names: Vec<String> = (100..175).map(|it| id(&it.to_string())).collect();
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(hive.say("bob", &scrape(&refs)), Outcome::Rejected(Rejected::BadMessage));
    assert!(hive.next("bob").unwrap().contains("too many torrents: a scrape names at most 74"));
    assert_eq!(hive.say("bob", &scrape(&refs[..74])), Outcome::Answered(Action::Scrape));
    let response: serde_json::Value = serde_json::from_str(&hive.next("bob").unwrap()).unwrap();
    let files = response["files"].as_object().unwrap();
    assert_eq!(files.len(), 74);
    assert!(names[..74].iter().all(|it| files.contains_key(it)));
}

#[test]
fn web_peers_share_counts_with_others_but_are_never_handed_to_them() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    let told = hive.announce_port(TORRENT, "198.51.100.9".parse().unwrap(), 6881, 0);
    assert_eq!(told, (1, 1, 0), "a seeder over UDP sees one leecher, and is given nobody");
    let told = hive.announce_port(TORRENT, "198.51.100.10".parse().unwrap(), 6881, 5);
    assert_eq!(told, (1, 2, 6), "a leecher over UDP is given the seeder alone");
    hive.join_with("alice", TORRENT, &[offer("1"), offer("2"), offer("3")].join(","));
    assert!(hive.next("bob").is_some());
    hive.assert_silence("of four peers only one can be offered a connection");
    assert_eq!(hive.counts(TORRENT), (1, 3));
}

#[test]
fn a_refused_message_costs_the_other_torrents_nothing() {
    let mut hive = Hive::new(Options::default());
    hive.join("bob", TORRENT);
    for bad in ["", "\u{0}", "[", r#"{"action":"announce"}"#, &"[".repeat(MESSAGE_BYTES_MAX)] {
        assert_eq!(hive.say("bob", bad), IGNORED);
        assert!(hive.next("bob").unwrap().contains("failure reason"));
    }
    assert_eq!(hive.say_bytes("bob", b"{\"action\":\"announce\",\"info_hash\":\"\xff\""), IGNORED);
    assert!(hive.next("bob").unwrap().contains("message is not a JSON object"));
    hive.join_with("alice", TORRENT, &offer("1"));
    assert!(hive.next("bob").is_some(), "still there");
}

/// Text that is often nearly a message.
fn near_messages() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "null",
        "7",
        "-1e5",
        "true",
        "\\u00e9",
        "\\ud800",
        "\"action\":\"announce\",",
        "\"action\":\"scrape\",",
        "\"info_hash\":",
        "\"peer_id\":",
        "\"offers\":[",
        "\"offer\":{\"sdp\":\"x\"},",
        "\"answer\":{\"sdp\":\"x\"},",
        "\"offer_id\":",
        "\"to_peer_id\":",
        "\"20 bytes, 20 bytes, \",",
        "\"é0 bytes, 20 bytes, \"",
        "\"left\":0,",
        "\"event\":\"stopped\",",
        "\"numwant\":9,",
    ]);
    let words = prop::collection::vec(word, 0..24).prop_map(|it| it.concat());
    prop_oneof![words.clone(), words.prop_map(|it| format!("{{{it}\"z\":0}}")), ".{0,80}"]
}

/// A name of any bytes as JSON text, some of them escaped without need.
fn written(name: [u8; 20], escape: [bool; 20]) -> String {
    let character = |(byte, escape): (u8, bool)| {
        if escape || byte < b' ' || matches!(byte, b'"' | b'\\') {
            format!("\\u{byte:04x}")
        } else {
            char::from(byte).to_string()
        }
    };
    name.into_iter().zip(escape).map(character).collect()
}

fn bobs_responses(hive: &mut Hive) -> Vec<String> {
    std::iter::from_fn(|| hive.next("bob")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text_gets_one_valid_response_or_is_an_answer(text in near_messages()) {
        let mut hive = Hive::new(Options::default());
        hive.join("bob", TORRENT);
        let outcome = hive.say("bob", &text);
        let responses = bobs_responses(&mut hive);
        let is_answer = outcome == IGNORED && text.contains("answer");
        let is_one = responses.len() == 1;
        prop_assert!(is_one || responses.is_empty() && is_answer, "{}: {:?}", text, responses);
        for response in responses {
            let parsed = serde_json::from_str::<serde_json::Value>(&response);
            prop_assert!(parsed.is_ok(), "{}", response);
        }
        hive.say("bob", &scrape(&[TORRENT]));
        prop_assert_eq!(bobs_responses(&mut hive).len(), 1, "the socket goes on");
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut hive = Hive::new(Options::default());
        hive.open("bob", "198.51.100.2");
        hive.say_bytes("bob", &bytes);
        prop_assert_eq!(bobs_responses(&mut hive).len(), 1);
    }

    #[test]
    fn names_of_any_bytes_come_back(name in any::<[u8; 20]>(), escape in any::<[bool; 20]>()) {
        let mut hive = Hive::new(Options::default());
        hive.open("bob", "198.51.100.2");
        hive.say("bob", &announce(&written(name, escape), "bob", "", ""));
        let response: serde_json::Value = serde_json::from_str(&hive.next("bob").unwrap()).unwrap();
        let back: Vec<char> = response["info_hash"].as_str().unwrap().chars().collect();
        prop_assert_eq!(back, name.map(char::from).to_vec());
    }
}
