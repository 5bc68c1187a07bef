//! Which WebRTC offers a socket is handed: a quota for each of its torrents, shared by networks,
//! with chance above it. Two workers without threads or sockets; time is passed in.

use std::collections::BTreeMap;

use proptest::prelude::*;
use skep::frontend::http::Outcome;
use skep::frontend::ws::{OFFER_AGE_S_MAX, Options};
use skep::limiter;
use skep::types::Action;

use crate::support::webtorrent_workers::{Hive, TORRENT, announce, answer, id, offer};

const QUOTA: usize = 60;

/// A torrent's name.
fn torrent(number: usize) -> String {
    id(&format!("torrent {number}"))
}

/// An address in a /16 of its own.
fn far(number: usize) -> String {
    format!("{}.{}.1.1", 20 + number / 256, number % 256)
}

fn with_quota(offers_per_minute_max: usize) -> Hive {
    let offers_per_minute_max = offers_per_minute_max.try_into().unwrap();
    Hive::new(Options { offers_per_minute_max, ..Options::default() })
}

/// Announces with so many offers, of numbers from `number` on.
fn offer_some(hive: &mut Hive, name: &str, torrent: &str, number: usize, count: usize) {
    let offers: Vec<String> = (number..number + count).map(|it| offer(&it.to_string())).collect();
    hive.say(name, &announce(torrent, name, &offers.join(","), ""));
}

/// Offers one connection to whoever else is there, and leaves: whether it was handed to `to`.
fn offer_alone(hive: &mut Hive, name: &str, number: usize, to: &str) -> bool {
    offer_some(hive, name, TORRENT, number, 1);
    hive.next(name).unwrap();
    hive.say(name, &announce(TORRENT, name, "", r#","event":"stopped""#));
    hive.next(name).unwrap();
    hive.next(to).is_some()
}

/// What the socket was told since, and how much of it were offers of each peer.
fn offers_of(hive: &mut Hive, name: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    while let Some(text) = hive.next(name) {
        let message: serde_json::Value = serde_json::from_str(&text).unwrap();
        if message["offer"].is_object() {
            let from = message["peer_id"].as_str().unwrap().trim_end_matches('-').to_owned();
            *found.entry(from).or_default() += 1;
        }
    }
    found
}

/// Receivers that `flooders` have offered all they may, who go on while a newcomer makes 50 offers;
/// how many of these arrived, and the most that any receiver was handed.
fn fifty_offers_beside(flooders: &[String], newcomer: &str) -> (usize, usize) {
    let mut hive = with_quota(QUOTA);
    let receivers: Vec<String> = (0..20).map(|it| format!("receiver{it}")).collect();
    for (at, name) in receivers.iter().enumerate() {
        hive.open(name, &far(1000 + at));
        hive.join(name, TORRENT);
    }
    let names: Vec<String> = (0..flooders.len()).map(|it| format!("flooder{it}")).collect();
    for (name, address) in names.iter().zip(flooders) {
        hive.open(name, address);
    }
    hive.open("newcomer", newcomer);
    let mut number = 0;
    let mut flood = |hive: &mut Hive| {
        for name in &names {
            offer_some(hive, name, TORRENT, number, 10);
            number += 10;
        }
    };
    // Until there is hardly anything that gets through.
    loop {
        let before = hive.undelivered;
        flood(&mut hive);
        if hive.undelivered - before >= 9 * names.len() {
            break;
        }
    }
    for round in 0..5 {
        offer_some(&mut hive, "newcomer", TORRENT, 1_000_000 + 10 * round, 10);
        flood(&mut hive);
        hive.now = hive.now.plus_s(8);
    }
    let mut arrived = 0;
    let mut most = 0;
    for name in receivers.iter().chain(&names) {
        let found = offers_of(&mut hive, name);
        arrived += found.get("newcomer").unwrap_or(&0);
        if name.starts_with("receiver") {
            most = most.max(found.values().sum());
        }
    }
    (arrived, most)
}

#[test]
fn a_flood_from_a_few_networks_silences_no_newcomer() {
    let four = ["198.51.100.1", "203.0.113.1", "192.0.2.1", "2001:db8::1"].map(String::from);
    let (arrived, _) = fifty_offers_beside(&four, "100.64.0.1");
    assert_eq!(arrived, 50, "beside four sources");
    let (arrived, _) = fifty_offers_beside(&four, "2001:db9::1");
    assert_eq!(arrived, 50, "beside four sources, over IPv6");
    let site: Vec<String> = (0..40).map(|it| format!("2001:db8:0:{it:x}::1")).collect();
    let (arrived, _) = fifty_offers_beside(&site, "2001:db9::1");
    assert_eq!(arrived, 50, "beside 40 networks of a /48");
    let provider: Vec<String> = (0..40).map(|it| format!("2001:db8:{it:x}::1")).collect();
    let (arrived, _) = fifty_offers_beside(&provider, "2001:db9::1");
    assert_eq!(arrived, 50, "beside 40 networks of a /32");
    let (arrived, _) = fifty_offers_beside(&provider, "2001:db8:1000::1");
    assert!(arrived >= 10, "{arrived} of 50 from the same /32, which has eight shares");
    let neighbours: Vec<String> = (0..40).map(|it| format!("198.51.100.{it}")).collect();
    let (arrived, _) = fifty_offers_beside(&neighbours, "203.0.113.1");
    assert_eq!(arrived, 50, "beside 40 addresses of a /24");
}

#[test]
fn a_flood_from_many_networks_leaves_chances_and_stays_bounded() {
    let many: Vec<String> = (0..100).map(far).collect();
    let (arrived, most) = fifty_offers_beside(&many, "100.64.0.1");
    // Of 101 networks with the same right 60 are heard: 30 of 50, give or take.
    assert!(arrived >= 18, "{arrived} of 50");
    // 60 × (1 + ln(offers / 60)), and what is displaced until all have the same.
    assert!(most <= 5 * QUOTA, "{most} offers in a minute");
}

#[test]
fn a_seeder_of_eighty_torrents_on_one_socket_is_offered_all() {
    let mut hive = Hive::new(Options::default());
    hive.open("seeder", "9.9.9.80"); // a public one, whose network is part of its name
    for at in 0..80 {
        hive.say("seeder", &announce(&torrent(at), "seeder", "", r#","left":0"#));
        hive.next("seeder").unwrap();
    }
    // One leecher for each, all of one network.
    for at in 0..80 {
        let name = format!("leecher{at}");
        hive.open(&name, &format!("127.0.1.{}", at + 1));
        offer_some(&mut hive, &name, &torrent(at), at, 1);
    }
    assert_eq!(offers_of(&mut hive, "seeder").len(), 80);
    // One leecher for half of them, twice, within a minute or a minute later.
    hive.open("collector", "198.51.100.7");
    for round in 0..3 {
        for at in 0..40 {
            offer_some(&mut hive, "collector", &torrent(at), 100 * round + at, 1);
        }
        let from_collector = offers_of(&mut hive, "seeder")["collector"];
        let others: usize = (0..40)
            .map(|at| offers_of(&mut hive, &format!("leecher{at}")).values().sum::<usize>())
            .sum();
        assert_eq!(from_collector + others, 40, "round {round}");
        hive.now = hive.now.plus_s(31 * round as u64);
    }
    assert_eq!(hive.lost, BTreeMap::new());
}

#[test]
fn one_source_may_use_the_quota_until_others_come() {
    let mut hive = with_quota(8);
    hive.join("bob", TORRENT);
    let handed = |hive: &mut Hive, name: &str, from: usize, times: usize| {
        (from..from + times).filter(|it| offer_alone(hive, name, *it, "bob")).count()
    };
    hive.open("alice", "198.51.100.77");
    let of_alice = handed(&mut hive, "alice", 0, 8);
    assert_eq!(of_alice, 8, "who is alone may use it up: many users may share an address");
    hive.open("carol", "203.0.113.1");
    // Both may have half. Alice's first were displaced, and can still be answered.
    assert_eq!(handed(&mut hive, "carol", 100, 4), 4, "all that is carol's share");
    for number in 0..8 {
        let answer = answer(TORRENT, "bob", "alice", &number.to_string());
        assert_eq!(hive.say("bob", &answer), Outcome::Answered(Action::Answer), "{number}");
    }
}

#[test]
fn above_the_quota_chance_decides_and_not_the_order_of_arrival() {
    let (sources, minutes) = (20, 40);
    let mut hive = with_quota(6);
    hive.join("bob", TORRENT);
    let names: Vec<String> = (0..sources).map(|it| format!("alice{it}")).collect();
    for (at, name) in names.iter().enumerate() {
        hive.open(name, &far(at));
    }
    let mut handed = vec![0; sources];
    for minute in 0..minutes {
        let start = hive.now;
        for (at, name) in names.iter().enumerate() {
            handed[at] += usize::from(offer_alone(&mut hive, name, minute * 100 + at, "bob"));
            hive.now = hive.now.plus_s(1);
        }
        hive.now = start.plus_s(OFFER_AGE_S_MAX);
    }
    // The last of 20 has a chance of 6 in 20.
    assert!(handed.iter().all(|it| *it >= minutes / 10), "{handed:?}");
    let all: usize = handed.iter().sum();
    // 6 × (1 + ln(20 / 6)) = 13.2
    assert!((minutes * 10..=minutes * 16).contains(&all), "{all} offers: {handed:?}");
    assert_eq!(hive.lost, BTreeMap::from([("over_quota", sources * minutes - all)]));
}

#[test]
fn however_many_take_turns_a_socket_is_handed_four_times_the_quota_at_most() {
    let mut hive = with_quota(QUOTA);
    hive.join("bob", TORRENT);
    // The worst order: each uses up what it may before the next begins.
    let mut handed = 0;
    for source in 0..QUOTA {
        let name = format!("alice{source}");
        hive.open(&name, &far(source));
        let most = QUOTA / (source + 1) + 1;
        handed += (0..most).filter(|it| offer_alone(&mut hive, &name, *it, "bob")).count();
    }
    assert!((2 * QUOTA..=5 * QUOTA).contains(&handed), "{handed}");
}

#[test]
fn zero_lifts_the_quota_and_memory_stays_bounded() {
    let mut hive = with_quota(0);
    hive.join("bob", TORRENT);
    hive.open("alice", "198.51.100.77");
    for number in 0..6000 {
        assert!(offer_alone(&mut hive, "alice", number, "bob"), "{number}");
    }
    assert_eq!(hive.lost, BTreeMap::new());
    let bytes = hive.session("bob").held_bytes();
    assert!(bytes <= (224 << 10) + 188, "{bytes} bytes");
    hive.say("alice", &announce(TORRENT, "alice", "", ""));
    hive.next("alice").unwrap();
    let latest = answer(TORRENT, "bob", "alice", "5999");
    assert_eq!(hive.say("bob", &latest), Outcome::Answered(Action::Answer));
}

#[test]
fn sources_in_exempt_networks_are_under_no_quota_and_use_up_none() {
    let mut hive = with_quota(5);
    hive.limit(limiter::Options { rate: 10_000, burst: 10_000, ..limiter::Options::default() });
    hive.open("tester", "127.0.0.1");
    hive.open("alice", "198.51.100.77");
    hive.join("bob", TORRENT);
    for number in 0..3000 {
        assert!(offer_alone(&mut hive, "tester", number, "bob"), "{number}");
    }
    for number in 5000..5005 {
        assert!(offer_alone(&mut hive, "alice", number, "bob"), "{number}: none is used up");
    }
    let bytes = hive.session("bob").held_bytes();
    assert!(bytes <= (56 << 10) + 188, "{bytes} bytes");
    let disabled = limiter::Options { enabled: false, ..limiter::Options::default() };
    hive.limit(disabled);
    let more = (0..50).filter(|it| offer_alone(&mut hive, "alice", 6000 + it, "bob")).count();
    assert!(more < 25, "{more}: limits of requests are others");
}

#[test]
fn a_socket_in_many_torrents_holds_a_bounded_number_of_offers() {
    let mut hive = with_quota(QUOTA);
    let torrents = 40;
    hive.open("seeder", "9.9.9.80"); // a public one, whose network is part of its name
    for at in 0..torrents {
        hive.say("seeder", &announce(&torrent(at), "seeder", "", r#","left":0"#));
        hive.next("seeder").unwrap();
    }
    let flood = |hive: &mut Hive, name: &str, from: usize| {
        for round in 0..60 {
            for at in 0..torrents {
                offer_some(hive, name, &torrent(at), from + round, 1);
                hive.next(name).unwrap();
                hive.say(name, &announce(&torrent(at), name, "", r#","event":"stopped""#));
                hive.next(name).unwrap();
            }
        }
    };
    hive.open("flooder", "198.51.100.7");
    flood(&mut hive, "flooder", 0);
    let of_flooder = offers_of(&mut hive, "seeder")["flooder"];
    assert!((1024..5 * 1024).contains(&of_flooder), "{of_flooder} for all torrents");
    let bytes = hive.session("seeder").held_bytes();
    assert!(bytes <= (56 << 10) + 188 * torrents, "{bytes} bytes");
    // Another network gets half of the socket's offers if it wants them.
    hive.open("leecher", "203.0.113.1");
    for at in 0..torrents {
        for number in 0..12 {
            offer_some(&mut hive, "leecher", &torrent(at), 1000 + number, 1);
            hive.next("leecher").unwrap();
        }
    }
    assert_eq!(offers_of(&mut hive, "seeder")["leecher"], 12 * torrents);
    hive.now = hive.now.plus_s(OFFER_AGE_S_MAX);
    let _ = hive.say("seeder", &answer(&torrent(0), "seeder", "leecher", "1000"));
    let bytes = hive.session("seeder").held_bytes();
    assert!(bytes <= 188 * torrents + 1024, "{bytes} bytes: a minute later they are forgotten");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whoever asks in whatever order: nothing is refused below the quota, memory is bounded, and a
    /// network that was handed nothing is handed an offer as long as others have more than one.
    #[test]
    fn quotas_hold(
        quota in 1_usize..20,
        asks in prop::collection::vec((0_usize..12, 0_u64..4), 0..200),
    ) {
        let mut hive = with_quota(quota);
        hive.join("bob", TORRENT);
        let mut live: Vec<(u64, usize)> = Vec::new();
        let start = hive.now;
        for (number, (source, wait_s)) in asks.into_iter().enumerate() {
            hive.now = hive.now.plus_s(wait_s);
            let now_s = hive.now.seconds() - start.seconds();
            live.retain(|it| it.0 + OFFER_AGE_S_MAX > now_s);
            let name = format!("alice{source}");
            if !hive.is_open(&name) {
                hive.open(&name, &far(source));
            }
            let handed = offer_alone(&mut hive, &name, number, "bob");
            let of = |it: usize| live.iter().filter(|live| live.1 == it).count();
            prop_assert!(handed || live.len() >= quota, "there was room: {:?}", live);
            if of(source) == 0 && !handed {
                // Among so many others there are some of which one offer counts at most.
                let others = live.iter().map(|it| it.1).collect::<std::collections::BTreeSet<_>>();
                prop_assert!(others.len() >= quota, "{:?}", live);
            }
            if handed {
                live.push((now_s, source));
            }
            prop_assert!(hive.session("bob").held_bytes() <= (56 << 10) + 188);
        }
    }
}
