//! What changes at one node is known at the others, through each broker that is supported.

use skep::types::InfoHash;

use crate::nodes::{Shared, all_say, client, completed, ready, scrape, set, stopped};
use crate::support::nats::{Nats, RawClient, broker_program, broker_programs};
use crate::support::{Skep, eventually, http_get, leecher, seeder};

#[test]
fn an_announce_at_one_node_is_seen_at_all_and_so_is_its_stop() {
    for program in broker_programs() {
        let broker = Nats::start(program);
        let shared = Shared::of(&broker);
        let nodes = ["a", "b", "c"].map(|it| shared.node(it));
        let [a, b, c] = &nodes;
        client(a).announce(&seeder(1, 1001));
        all_say(&[a, b, c], 1, (1, 0, 0));
        // Peers of other nodes are handed out like those of this one.
        let (response, peers) = client(b).announce(&leecher(1, 1002));
        assert_eq!((response.seeders, response.leechers), (1, 1));
        assert_eq!(peers, [127, 0, 0, 1, 0x03, 0xe9]);
        all_say(&[a, b, c], 1, (1, 1, 0));
        let (_, mut peers) = client(c).announce(&leecher(1, 1003));
        peers.sort_unstable();
        let mut expected = [127, 0, 0, 1, 0x03, 0xe9, 127, 0, 0, 1, 0x03, 0xea];
        expected.sort_unstable();
        assert_eq!(peers, expected);
        all_say(&[a, b, c], 1, (1, 2, 0));
        client(a).announce(&stopped(seeder(1, 1001)));
        // It left at another node than the one that it had announced to.
        client(a).announce(&stopped(leecher(1, 1002)));
        all_say(&[a, b, c], 1, (0, 1, 0));
    }
}

#[test]
fn a_download_is_counted_once_whichever_nodes_the_client_asks() {
    for program in broker_programs() {
        let broker = Nats::start(program);
        let shared = Shared::of(&broker);
        let [a, b] = ["a", "b"].map(|it| shared.node(it));
        client(&a).announce(&leecher(2, 1001));
        all_say(&[&a, &b], 2, (0, 1, 0));
        client(&a).announce(&completed(leecher(2, 1001)));
        all_say(&[&a, &b], 2, (1, 0, 1));
        client(&b).announce(&completed(leecher(2, 1001)));
        client(&b).announce(&seeder(2, 1001));
        // What b has sent meanwhile comes before this.
        client(&b).announce(&seeder(2, 1002));
        all_say(&[&a, &b], 2, (2, 0, 1));
    }
}

#[test]
fn changes_made_while_the_broker_was_gone_are_exchanged_when_it_is_back() {
    for program in broker_programs() {
        let mut broker = Nats::start(program);
        let shared = Shared::of(&broker);
        let [a, b] = ["a", "b"].map(|it| shared.node(it));
        client(&a).announce(&seeder(3, 1001));
        all_say(&[&a, &b], 3, (1, 0, 0));
        broker.kill();
        a.log_with("cluster disconnected");
        b.log_with("cluster disconnected");
        // Each node serves what it knows.
        client(&a).announce(&stopped(seeder(3, 1001)));
        client(&a).announce(&seeder(3, 1002));
        client(&b).announce(&leecher(3, 1003));
        client(&b).announce(&seeder(4, 1004));
        all_say(&[&a], 3, (1, 0, 0));
        all_say(&[&b], 3, (1, 1, 0));
        assert_eq!((a.get("/readyz").0, b.get("/readyz").0), (200, 200));
        broker.restart();
        all_say(&[&a, &b], 3, (1, 1, 0));
        all_say(&[&a, &b], 4, (1, 0, 0));
        let log = a.log();
        assert_eq!(log.matches("cluster disconnected").count(), 1, "{log}");
    }
}

#[test]
fn a_node_that_starts_later_has_all_swarms_before_it_is_ready() {
    for program in broker_programs() {
        let broker = Nats::start(program);
        let shared = Shared::of(&broker);
        let a = shared.node("a");
        let mut announcing = client(&a);
        for port in 1001..=1500 {
            announcing.announce(&seeder((port % 5) as u8, port));
        }
        let b = shared.node("b");
        for torrent in 0..5 {
            let entry = scrape(&b, torrent);
            assert_eq!(entry.seeders, 100, "{torrent}");
        }
        drop(a);
        // It has them from b alone.
        let c = shared.node("c");
        assert_eq!(scrape(&c, 0).seeders, 100);
    }
}

#[test]
fn a_node_that_restarts_gets_what_it_has_missed() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let [a, mut b] = ["a", "b"].map(|it| shared.node(it));
    client(&a).announce(&completed(leecher(5, 1001)));
    client(&b).announce(&seeder(5, 1002));
    all_say(&[&a, &b], 5, (2, 0, 0));
    b.signal("TERM");
    assert!(b.wait().success());
    a.log_with("cluster node appeared");
    client(&a).announce(&seeder(5, 1003));
    let state = b.state.take().unwrap();
    let mut command = shared.command("b");
    command.env("STATE_DIRECTORY", state.path());
    let b = ready(Skep::spawn(command));
    assert_eq!(scrape(&b, 5).seeders, 3);
    // And a takes what the new process sends.
    client(&b).announce(&leecher(5, 1004));
    all_say(&[&a, &b], 5, (3, 1, 0));
}

#[test]
fn what_is_forged_or_of_another_cluster_is_not_applied() {
    for program in broker_programs() {
        let broker = Nats::start(program);
        let shared = Shared::of(&broker);
        let [a, b] = ["a", "b"].map(|it| shared.node(it));
        let mut raw = RawClient::connect(&broker);
        client(&a).announce(&seeder(6, 1001));
        let is_it = |_: &str, payload: &[u8]| payload.windows(20).any(|it| it == [6; 20]);
        let (subject, frame) = raw.message_with(is_it);
        assert_eq!(subject, "skep.skep.delta.a");
        all_say(&[&b], 6, (1, 0, 0));
        // Another torrent in an authentic frame, one cut, one with bits of its own, and none.
        let at = frame.windows(20).position(|it| it == [6; 20]).unwrap();
        let mut changed = frame.clone();
        changed[at..at + 20].copy_from_slice(&[7; 20]);
        raw.publish(&subject, &changed);
        raw.publish(&subject, &changed[..at + 20]);
        raw.publish(&subject, &[0; 200]);
        raw.publish(&subject, b"");
        raw.publish("skep.skep.join", &changed);
        raw.publish("skep.skep.to.b", &changed);
        // An authentic one that is repeated under another name changes nothing.
        raw.publish("skep.skep.delta.x", &frame);
        client(&a).announce(&seeder(6, 1002));
        all_say(&[&b], 6, (2, 0, 0));
        assert_eq!(scrape(&b, 7).seeders, 0);
        let log = b.log_with("cluster messages refused: forged");
        assert!(log.contains("remedy="), "{log}");
    }
}

#[test]
fn nodes_with_another_secret_or_another_cluster_exchange_nothing() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let a = shared.node("a");
    let stranger = Shared::of(&broker);
    stranger.file("secret", &"aa".repeat(32));
    let b = stranger.node("b");
    let mut command = shared.command("c");
    set(&mut command, "NAME", "other");
    let c = ready(Skep::spawn(command));
    for (node, torrent) in [(&a, 10), (&b, 11), (&c, 12)] {
        client(node).announce(&seeder(torrent, 1001));
    }
    a.log_with("cluster messages refused: forged");
    b.log_with("cluster messages refused: forged");
    for (node, own) in [(&a, 10), (&b, 11), (&c, 12)] {
        for torrent in [10, 11, 12] {
            assert_eq!(scrape(node, torrent).seeders, u32::from(torrent == own));
        }
    }
    assert!(!c.log().contains("forged"), "other clusters' subjects are others");
}

#[test]
fn two_nodes_with_one_name_are_named() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let [one, other] = [shared.node("a"), shared.started("a")];
    eventually("/readyz names the conflict", || {
        [&one, &other].iter().any(|it| {
            let (status, text) = it.get("/readyz");
            status == 503 && text.contains("another node has the name a: set cluster.node")
        })
    });
    let logs = || one.log() + &other.log();
    eventually("the log names it", || logs().contains("cluster name in use by another node"));
}

#[test]
fn the_connection_ids_of_one_node_are_valid_at_another() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let [a, b] = ["a", "b"].map(|it| shared.node(it));
    let mut at_a = client(&a);
    let mut at_b = crate::support::Client::over(at_a.socket.try_clone().unwrap());
    at_b.socket.connect(b.udp[0]).unwrap();
    at_b.connection_id = at_a.connection_id;
    assert_eq!(at_b.scrape(&[InfoHash([1; 20])]).len(), 1);
    at_a.socket.connect(a.udp[0]).unwrap();
    assert_eq!(at_a.scrape(&[InfoHash([1; 20])]).len(), 1);
    assert!(!a.log().contains("cluster setting differs"), "{}", a.log());
}

#[test]
fn an_announce_over_http_is_seen_at_other_nodes_as_well() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let [a, b] = ["a", "b"].map(|it| shared.node(it));
    let announce = |event: &str| {
        let path = format!(
            "/announce?info_hash={}&peer_id=-XX0001-abcdefghijkl&port=1001&left=0&uploaded=0\
             &downloaded=0&event={event}",
            "%0D".repeat(20)
        );
        let (status, body) = http_get(a.tcp[0], &path);
        assert_eq!(status, 200, "{body}");
    };
    announce("started");
    all_say(&[&a, &b], 13, (1, 0, 0));
    announce("stopped");
    all_say(&[&a, &b], 13, (0, 0, 0));
}

#[test]
fn a_successor_takes_the_place_of_its_predecessor_in_the_cluster() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let state = tempfile::tempdir().unwrap();
    let start = |words: &[&str]| {
        let mut command = shared.command_of("a", words);
        command.env("STATE_DIRECTORY", state.path());
        Skep::spawn(command)
    };
    let b = shared.node("b");
    let mut first = ready(start(&["run"]));
    client(&first).announce(&seeder(14, 1001));
    all_say(&[&first, &b], 14, (1, 0, 0));
    let next = start(&["run", "--take-over"]);
    assert!(first.wait().success());
    let next = ready(next);
    client(&next).announce(&seeder(14, 1002));
    client(&b).announce(&leecher(14, 1003));
    all_say(&[&next, &b], 14, (2, 1, 0));
    for log in [next.log(), b.log()] {
        assert!(!log.contains("name in use") && !log.contains("same name"), "{log}");
    }
}
