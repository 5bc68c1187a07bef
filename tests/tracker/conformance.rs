//! One tracker behind three protocols: each scenario below is played over UDP, over HTTP and over
//! WebSocket, over each family and over both at once, and with its peers on different protocols.
//! What it says holds each time: the counts always, and the peers handed out as far as their kinds
//! can meet, and over UDP, whose responses hold one family, as far as it is the asker's.
//!
//! ```text
//! PEER EVENT LEFT [numwant=N] = SEEDERS/LEECHERS [PEER… | any N]   an announce, what it is told
//! scrape = SEEDERS/COMPLETED/LEECHERS
//! wait SECONDS                                                     silent peers are forgotten
//! ```

use std::collections::BTreeSet;

use skep::types::{Event, Family};

use crate::world::{Ask, FamilyOf, Protocol, World};

/// Name, steps.
const SCENARIOS: [(&str, &str); 14] = [
    (
        "a lone peer is handed nobody, least of all itself",
        "1 started 100 = 0/1
         1 none 50 = 0/1
         1 none 0 = 1/0
         scrape = 1/0/0",
    ),
    (
        "peers meet",
        "1 started 100 = 0/1
         2 started 100 = 0/2 1
         3 started 100 = 0/3 1 2
         1 none 100 = 0/3 2 3
         scrape = 0/0/3",
    ),
    (
        "what is left decides who seeds",
        "1 started 0 = 1/0
         2 started 1 = 1/1 1
         3 started unknown = 1/2 1 2
         4 started 4294967296 = 1/3 1 2 3",
    ),
    (
        "seeders are handed no seeders",
        "1 started 0 = 1/0
         2 started 0 = 2/0
         3 started 9 = 2/1 1 2
         1 none 0 = 2/1 3
         2 none 0 = 2/1 3",
    ),
    (
        "a download completes, and counts once",
        "1 started 100 = 0/1
         2 started 100 = 0/2 1
         1 completed 0 = 1/1 2
         scrape = 1/1/1
         1 completed 0 = 1/1 2
         1 none 0 = 1/1 2
         scrape = 1/1/1
         2 completed 0 = 2/0
         scrape = 2/2/0",
    ),
    (
        "completed makes a seeder, whatever is said to be left",
        "1 started 100 = 0/1
         1 completed 100 = 1/0
         scrape = 1/1/0",
    ),
    (
        "a seeder that lost its data is a leecher again",
        "1 started 0 = 1/0
         2 started 0 = 2/0
         1 none 100 = 1/1 2
         scrape = 1/0/1",
    ),
    (
        "who stops is gone, and is handed nobody",
        "1 started 100 = 0/1
         2 started 0 = 1/1 1
         3 started 100 = 1/2 1 2
         2 stopped 0 = 0/2
         1 none 100 = 0/2 3
         1 stopped 100 = 0/1
         1 stopped 100 = 0/1
         3 stopped 100 = 0/0
         scrape = 0/0/0",
    ),
    (
        "a stop tells by what the peer was, not by what it says",
        "1 started 100 = 0/1
         2 started 0 = 1/1 1
         1 stopped 0 = 1/0
         2 stopped 100 = 0/0",
    ),
    (
        "a stranger that stops was never there",
        "1 stopped 0 = 0/0
         scrape = 0/0/0
         2 started 100 = 0/1
         1 stopped 100 = 0/1
         scrape = 0/0/1",
    ),
    (
        "a partial seed is incomplete and wants nothing",
        "1 started 100 = 0/1
         2 started 100 = 0/2 1
         1 paused 100 = 0/2 2
         3 started 0 = 1/2 2
         2 none 100 = 1/2 1 3
         1 paused 100 = 1/2 2
         1 none 100 = 1/2 2 3
         1 paused 0 = 2/1 2
         scrape = 2/0/1",
    ),
    (
        "no more than wanted, and 0 leaves it to the tracker",
        "1 started 9 = 0/1
         2 started 9 = 0/2 1
         3 started 9 = 0/3 1 2
         4 started 9 = 0/4 1 2 3
         5 started 9 numwant=1 = 0/5 any 1
         5 none 9 numwant=3 = 0/5 any 3
         5 none 9 numwant=4 = 0/5 1 2 3 4
         5 none 9 numwant=5 = 0/5 1 2 3 4
         5 none 9 numwant=0 = 0/5 1 2 3 4
         5 none 9 numwant=200 = 0/5 1 2 3 4
         5 completed 0 numwant=2 = 1/4 any 2",
    ),
    (
        // Whether a count outlives the last peer depends on the networks: see the store's tests.
        "the silent are forgotten, and what was completed is not while anybody is there",
        "1 started 9 = 0/1
         2 started 9 = 0/2 1
         2 completed 0 = 1/1 1
         wait 3000
         2 none 0 = 1/1 1
         wait 3000
         scrape = 1/1/0
         3 started 9 = 1/1 2
         wait 3000
         scrape = 0/1/1",
    ),
    (
        "a peer that comes back is one peer",
        "1 started 9 = 0/1
         1 started 9 = 0/1
         2 started 9 = 0/2 1
         1 started 0 = 1/1 2
         1 stopped 0 = 0/1
         1 started 9 = 0/2 2
         scrape = 0/0/2",
    ),
];

/// Which protocol a peer speaks.
type Cast = fn(u8) -> Protocol;

const CASTS: [(&str, Cast); 7] = [
    ("UDP", |_| Protocol::Udp),
    ("HTTP", |_| Protocol::Http),
    ("WebSocket", |_| Protocol::WebSocket),
    ("odd ones UDP, even ones HTTP", |peer| [Protocol::Http, Protocol::Udp][in_turn(peer, 2)]),
    ("odd ones HTTP, even ones UDP", |peer| [Protocol::Udp, Protocol::Http][in_turn(peer, 2)]),
    ("all three in turn", |peer| Protocol::ALL[in_turn(peer, 3)]),
    ("odd ones WebSocket, even ones UDP", |peer| {
        [Protocol::Udp, Protocol::WebSocket][in_turn(peer, 2)]
    }),
];

fn in_turn(peer: u8, protocols: u8) -> usize {
    usize::from(peer % protocols)
}

/// Which family a peer has an address of.
const FAMILIES: [(&str, FamilyOf); 4] = [
    ("IPv4", |_| Family::V4),
    ("IPv6", |_| Family::V6),
    ("odd ones IPv4, even ones IPv6", |peer| [Family::V6, Family::V4][in_turn(peer, 2)]),
    // Whatever turns the protocols take, they meet both families.
    ("1 IPv6, 2 and 3 IPv4, 4 and 5 IPv6", |peer| [Family::V6, Family::V4][in_turn(peer / 2, 2)]),
];

#[test]
fn every_protocol_tells_the_same() {
    for (name, steps) in SCENARIOS {
        for (families, family_of) in FAMILIES {
            for (cast, protocol_of) in CASTS {
                let place = format!("{name}: {cast}, {families}");
                play(&Play { protocol_of, family_of, place: &place }, steps);
            }
        }
    }
}

/// How, who, event, what is left; seeders and leechers, and who is handed out.
type Told = (Protocol, u8, Event, u64, &'static str, &'static [u8]);

/// The same as every scenario over both families, with each response spelled out.
#[test]
fn one_swarm_holds_both_families() {
    use Protocol::{Http, Udp};
    // Odd ones are IPv4, even ones IPv6.
    let mut world = World::new(FAMILIES[2].1);
    let steps: [Told; 10] = [
        (Udp, 1, Event::Started, 9, "0/1", &[]),
        (Udp, 2, Event::Started, 9, "0/2", &[]),
        (Udp, 3, Event::Started, 9, "0/3", &[1]),
        (Http, 4, Event::Started, 9, "0/4", &[1, 2, 3]),
        (Http, 5, Event::Started, 0, "1/4", &[1, 2, 3, 4]),
        (Udp, 1, Event::None, 9, "1/4", &[3, 5]),
        (Udp, 2, Event::None, 9, "1/4", &[4]),
        (Udp, 3, Event::Stopped, 9, "1/3", &[]),
        (Http, 4, Event::Completed, 0, "2/2", &[1, 2]),
        (Http, 2, Event::None, 9, "2/2", &[1, 4, 5]),
    ];
    for (protocol, peer, event, left, counts, handed) in steps {
        let ask = Ask { peer, event, left, numwant: None };
        let told = world.announce(protocol, &ask, |_| Http);
        assert_eq!(format!("{}/{}", told.seeders, told.leechers), counts, "{protocol:?} {ask:?}");
        assert!(told.peers.iter().eq(handed), "{protocol:?} {ask:?}: {:?}", told.peers);
    }
    assert_eq!(Protocol::ALL.map(|it| world.scrape(it)), [(2, 1, 2); 3]);
}

/// How a scenario is played.
struct Play<'a> {
    protocol_of: Cast,
    family_of: FamilyOf,
    place: &'a str,
}

impl Play<'_> {
    /// Whether a peer can be handed to another.
    fn can_meet(&self, asker: u8, peer: u8) -> bool {
        let protocol = (self.protocol_of)(asker);
        let same_family = (self.family_of)(asker) == (self.family_of)(peer);
        (self.protocol_of)(peer).meets(protocol) && (protocol != Protocol::Udp || same_family)
    }
}

fn play(how: &Play<'_>, steps: &str) {
    let mut world = World::new(how.family_of);
    for step in steps.lines().map(str::trim) {
        let place = format!("{}: {step}", how.place);
        let (question, answer) = step.split_once(" = ").unwrap_or((step, ""));
        match question.split_whitespace().collect::<Vec<_>>()[..] {
            ["wait", seconds] => world.wait(seconds.parse().unwrap()),
            ["scrape"] => {
                for protocol in Protocol::ALL {
                    let (seeders, completed, leechers) = world.scrape(protocol);
                    let told = format!("{seeders}/{completed}/{leechers}");
                    assert_eq!(told, answer, "{place}, by {protocol:?}");
                }
            }
            [peer, event, left, ref numwant @ ..] => {
                let ask = ask(peer, event, left, numwant);
                check(&mut world, &ask, answer, how, &place);
            }
            _ => panic!("{place}?"),
        }
    }
}

fn ask(peer: &str, event: &str, left: &str, numwant: &[&str]) -> Ask {
    let numwant = numwant.first().map(|it| it.strip_prefix("numwant=").unwrap().parse().unwrap());
    let event = match event {
        "none" => Event::None,
        "started" => Event::Started,
        "completed" => Event::Completed,
        "stopped" => Event::Stopped,
        "paused" => Event::Paused,
        other => panic!("what is {other}?"),
    };
    let left = if left == "unknown" { u64::MAX } else { left.parse().unwrap() };
    Ask { peer: peer.parse().unwrap(), event, left, numwant }
}

fn check(world: &mut World, ask: &Ask, answer: &str, how: &Play<'_>, place: &str) {
    let told = world.announce((how.protocol_of)(ask.peer), ask, how.protocol_of);
    let mut words = answer.split_whitespace();
    let counts = format!("{}/{}", told.seeders, told.leechers);
    assert_eq!(Some(counts.as_str()), words.next(), "{place}");
    let expected: Vec<&str> = words.collect();
    let can_meet = |peer: &u8| how.can_meet(ask.peer, *peer);
    if let ["any", count] = expected[..] {
        let others: BTreeSet<u8> = (1..ask.peer).filter(can_meet).collect();
        let count = count.parse::<usize>().unwrap().min(others.len());
        assert_eq!(told.peers.len(), count, "{place}: {:?}", told.peers);
        assert!(told.peers.is_subset(&others), "{place}: {:?}", told.peers);
    } else {
        let expected = expected.iter().map(|it| it.parse().unwrap()).filter(can_meet).collect();
        assert_eq!(told.peers, expected, "{place}");
    }
}
