//! What connections hold and the work they cause, on real sockets and both backends: an account of
//! memory that is kept to, and work that is charged to its source.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use skep::counters::{CloseReason, Transport};
use skep::limiter;
use tungstenite::Message;

use crate::stream_server::{
    self, Plan, Server, announce_path, ask, connect_from, eventually, for_each_backend, request,
    secure, text, upgrade,
};

/// Under limits, which hold for this host's own addresses as well.
fn limited() -> Plan {
    let limits = limiter::Options { rate: 100, exempt: vec![], ..Default::default() };
    Plan { limits: Some(limits), ..Plan::default() }
}

/// With so many bytes for connections, counted by their addresses.
fn small(memory_max_bytes: u64) -> Plan {
    let mut plan = Plan::default();
    plan.options.memory_max_bytes = memory_max_bytes;
    plan.options.exempt = vec![];
    plan.options.head_timeout_s = 60;
    plan
}

/// A scrape of a torrent over HTTP.
const SCRAPE_PATH: &str = "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa";

/// A scrape of a torrent over a WebSocket.
const SCRAPE: &str = r#"{"action":"scrape","info_hash":"aaaaaaaaaaaaaaaaaaaa"}"#;

/// A masked frame, as clients send them; under a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    match payload.len() {
        0..126 => [&[first, 0x80 | length[1], 0, 0, 0, 0], payload].concat(),
        _ => [&[first, 0xfe, length[0], length[1], 0, 0, 0, 0], payload].concat(),
    }
}

/// Writes the same again and again until the other end has had enough.
fn flood(stream: &mut TcpStream, bytes: &[u8]) {
    stream.set_nonblocking(true).unwrap();
    let (bytes, mut sent) = (bytes.repeat(4096 / bytes.len() + 1), 0_u64);
    let mut out = [0; 64 * 1024];
    eventually("the flood ends", || {
        for _ in 0..64 {
            match stream.write(&bytes) {
                Ok(count) => sent += count as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return true,
            }
            match stream.read(&mut out) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return true,
            }
        }
        false
    });
    assert!(sent > 0);
}

// ---- memory ----

#[test]
fn a_frame_that_only_says_it_is_long_takes_no_memory() {
    for_each_backend(|backend| {
        let server = Server::start(backend, Plan::default());
        let mut sockets: Vec<_> = (0..20).map(|_| server.web_socket(0)).collect();
        let idle = server.shared.held_bytes();
        let received = server.sum(|it| it.received_bytes(Transport::Ws).get());
        let head = [0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4];
        for socket in &mut sockets {
            socket.get_mut().write_all(&head).unwrap();
            socket.get_mut().write_all(&[b'a'; 100]).unwrap();
        }
        let all = received + 20 * (head.len() as u64 + 100);
        eventually("all have come", || {
            server.sum(|it| it.received_bytes(Transport::Ws).get()) == all
        });
        let held = server.shared.held_bytes();
        assert!(held < idle + 20 * 2048, "{held} after {idle}");
        drop(sockets);
        server.finish();
    });
}

#[test]
fn sources_that_hold_most_lose_connections_to_new_ones() {
    for_each_backend(|backend| {
        // 192 places.
        let server = Server::start(backend, small(1 << 20));
        let open = |source: u8| connect_from(server.plain[0], [127, 0, source, 1].into()).unwrap();
        let mut quiet = stream_server::Client::new(open(1));
        assert_eq!(quiet.get(&announce_path("a", 1)).status, 200);
        let crowd: Vec<_> = (2..12).flat_map(|source| [source; 32]).map(open).collect();
        eventually("all are served or closed", || server.sum(|it| it.accepted.get()) == 321);
        for source in 100..130 {
            let mut newcomer = stream_server::Client::new(open(source));
            assert_eq!(newcomer.get(&announce_path("a", 2)).status, 200, "{source}");
        }
        assert_eq!(quiet.get(&announce_path("a", 1)).status, 200, "and who was here stays");
        assert!(server.closed(CloseReason::Memory) > 100);
        assert!(server.shared.held_bytes() <= 1 << 20);
        drop(crowd);
        server.finish();
    });
}

#[test]
fn a_network_of_many_that_hold_little_keeps_no_newcomer_out() {
    for_each_backend(|backend| {
        // 192 places, all of them taken by one network whose sources have one each.
        let server = Server::start(backend, small(1 << 20));
        let open = |source: [u8; 4]| connect_from(server.plain[0], source.into()).unwrap();
        let crowd: Vec<_> = (1..=192).map(|last| open([127, 0, 200, last])).collect();
        eventually("all are there", || server.shared.connections_open() == 192);
        for last in 1..=20 {
            let mut newcomer = stream_server::Client::new(open([127, 1, 1, last]));
            assert_eq!(newcomer.get(&announce_path("a", 2)).status, 200, "{last}");
        }
        drop(crowd);
        server.finish();
    });
}

#[test]
fn where_there_are_as_many_as_may_be_a_crowd_makes_place() {
    for_each_backend(|backend| {
        let mut plan = small(1 << 30);
        plan.connections_max = 200;
        let server = Server::start(backend, plan);
        let open = |source: [u8; 4]| connect_from(server.plain[0], source.into()).unwrap();
        let crowd: Vec<_> = (0..200).map(|_| open([127, 0, 200, 1])).collect();
        eventually("all are there", || server.shared.connections_open() == 200);
        let held: Vec<_> = (1..=100)
            .map(|last| {
                let mut newcomer = stream_server::Client::new(open([127, 1, last, 1]));
                assert_eq!(newcomer.get(&announce_path("a", 2)).status, 200, "{last}");
                newcomer
            })
            .collect();
        drop((crowd, held));
        server.finish();
    });
}

#[test]
fn offers_that_others_hand_over_are_on_the_account_at_once() {
    for_each_backend(|backend| {
        let server = Server::start(backend, Plan::default());
        let announce = |peer: u32, offers: &[String]| {
            format!(
                r#"{{"action":"announce","info_hash":"{:a>20}","peer_id":"{peer:020}",
                "event":"started","left":1,"numwant":10,"offers":[{}]}}"#,
                "",
                offers.join(",")
            )
        };
        let mut silent = server.web_socket(0);
        ask(&mut silent, &announce(0, &[]));
        let before = server.shared.held_bytes();
        let offers: Vec<_> = (0..10)
            .map(|it| format!(r#"{{"offer_id":"{it:020}","offer":{{"type":"offer","sdp":"x"}}}}"#))
            .collect();
        // One offer of each goes to the one that says nothing.
        for peer in 1..=50 {
            let mut other = server.web_socket(0);
            ask(&mut other, &announce(peer, &offers));
            other.close(None).unwrap();
        }
        eventually("the others have gone", || server.shared.connections_open() == 1);
        let mut taken = 0;
        while taken < 50 && text(&mut silent).contains("offer_id") {
            taken += 1;
        }
        let held = server.shared.held_bytes() - before;
        assert!(held >= 50 * 56, "{held} bytes for 50 offers");
        drop(silent);
        server.finish();
    });
}

#[test]
fn unfinished_messages_keep_to_the_bound_and_honest_ones_get_through() {
    for_each_backend(|backend| {
        let server = Server::start(backend, small(2 << 20));
        let socket = |source: u8| {
            upgrade(connect_from(server.plain[0], [127, 0, source, 1].into()).unwrap())
        };
        let mut honest = socket(1);
        let mut held: Vec<_> = (0..100).map(|at| socket(2 + at % 10)).collect();
        for (at, web_socket) in held.iter_mut().enumerate() {
            // Some of them are closed meanwhile.
            let stream = web_socket.get_mut();
            let _ = stream.write_all(&[0x01, 0xff, 0, 0, 0, 0, 0, 0, 0xea, 0x60, 0, 0, 0, 0]);
            let _ = stream.write_all(&vec![b'a'; 60_000 - 1]);
            let bytes = server.shared.held_bytes();
            assert!(bytes <= (2 << 20) + (128 << 10), "{bytes} at {at}");
        }
        eventually("somebody has to go", || server.closed(CloseReason::Memory) > 40);
        let message =
            format!("{},\"x\":\"{}\"}}", SCRAPE.trim_end_matches('}'), "y".repeat(20_000));
        assert!(ask(&mut honest, &message).contains("files"));
        drop(held);
        drop(honest);
        server.finish();
    });
}

// ---- work ----

#[test]
fn floods_of_minor_work_are_closed_and_others_are_served() {
    for_each_backend(|backend| {
        let server = Server::start(backend, limited());
        let mut beside = upgrade(connect_from(server.plain[0], [127, 0, 0, 9].into()).unwrap());
        let id = "a".repeat(20);
        let answer = format!(
            r#"{{"action":"announce","info_hash":"{id}","peer_id":"{id}","to_peer_id":"{id}",
            "offer_id":"{id}","answer":{{"type":"answer","sdp":"x"}}}}"#
        );
        let kinds: [(&str, Vec<u8>); 5] = [
            ("pings", frame(0x89, b"x")),
            ("pongs", frame(0x8a, b"")),
            ("empty fragments", frame(0x00, b"")),
            ("messages that cannot be read", frame(0x81, b"{}")),
            ("answers to nothing", frame(0x81, answer.as_bytes())),
        ];
        for (at, (name, bytes)) in kinds.iter().enumerate() {
            let source = [127, 0, 1, u8::try_from(at).unwrap() + 1];
            let mut socket = upgrade(connect_from(server.plain[0], source.into()).unwrap());
            if *name == "empty fragments" {
                socket.get_mut().write_all(&frame(0x01, b"")).unwrap();
            }
            flood(socket.get_mut(), bytes);
            server.expect_closed(CloseReason::Limited, at as u64 + 1);
        }
        assert!(ask(&mut beside, SCRAPE).contains("files"));
        drop(beside);
        server.finish();
    });
}

#[test]
fn errors_are_no_longer_than_the_messages_they_answer() {
    for_each_backend(|backend| {
        let server = Server::start(backend, Plan::default());
        let mut socket = server.web_socket(0);
        let before = server.sum(|it| it.sent_bytes(Transport::Ws).get());
        assert!(ask(&mut socket, "{}").contains("failure reason"), "some are told");
        let stream = socket.get_mut();
        stream.write_all(&frame(0x81, b"{}").repeat(20_000)).unwrap();
        eventually("all are counted", || server.received(Transport::Ws) == 20_001);
        assert!(ask(&mut socket, SCRAPE).len() > 2);
        let sent = server.sum(|it| it.sent_bytes(Transport::Ws).get()) - before;
        let received = server.sum(|it| it.received_bytes(Transport::Ws).get());
        assert!(sent <= received, "{sent} bytes for {received}");
        drop(socket);
        server.finish();
    });
}

#[test]
fn requests_that_are_not_announces_are_charged() {
    for_each_backend(|backend| {
        let server = Server::start(backend, limited());
        for (at, path) in ["/nowhere", "/", "/scrape?info_hash=bad"].iter().enumerate() {
            let source = [127, 0, 2, u8::try_from(at).unwrap() + 1];
            let mut stream = connect_from(server.plain[0], source.into()).unwrap();
            flood(&mut stream, request(path).as_bytes());
            server.expect_closed(CloseReason::Limited, at as u64 + 1);
        }
        let answered = server.received(Transport::Http);
        assert!(
            (3_000..6_000).contains(&answered),
            "{answered}: the burst of three, and some rate"
        );
        server.finish();
    });
}

#[test]
fn requests_over_the_limit_are_refused_thousands_of_times_and_then_closed() {
    for_each_backend(|backend| {
        let mut plan = limited();
        let limits = plan.limits.as_mut().unwrap();
        (limits.rate, limits.burst) = (10, 100);
        let server = Server::start(backend, plan);
        let paths = ["/announce".to_owned(), announce_path("a", 1), SCRAPE_PATH.to_owned()];
        for (at, path) in paths.iter().enumerate() {
            let source = [127, 0, 6, u8::try_from(at).unwrap() + 1];
            let mut stream = connect_from(server.plain[0], source.into()).unwrap();
            flood(&mut stream, request(path).as_bytes());
            server.expect_closed(CloseReason::Limited, at as u64 + 1);
        }
        let answered = server.received(Transport::Http);
        // Of each a hundred, and eight for each of 100 units.
        assert!((2_300..7_000).contains(&answered), "{answered}");
        let mut socket = upgrade(connect_from(server.plain[0], [127, 0, 6, 9].into()).unwrap());
        flood(socket.get_mut(), &frame(0x81, SCRAPE.as_bytes()));
        server.expect_closed(CloseReason::Limited, 4);
        server.finish();
    });
}

#[test]
fn handshakes_and_upgrades_are_charged_to_their_source_alone() {
    for_each_backend(|backend| {
        let mut plan = limited();
        plan.limits.as_mut().unwrap().rate = 10;
        let server = Server::start(backend, plan);
        let from = |address, source: [u8; 4]| connect_from(address, source.into()).unwrap();
        let shaken = |source| {
            let mut owned = secure(server.trust(), from(server.tls[0], source));
            owned.write_all(request("/").as_bytes()).is_ok()
                && owned.read(&mut [0; 16]).is_ok_and(|it| it > 0)
        };
        // A burst of 100 units: a handshake costs four, and the page one.
        let count = (0..60).filter(|_| shaken([127, 0, 3, 1])).count();
        assert!((16..=40).contains(&count), "{count}");
        assert!(shaken([127, 0, 3, 2]));
        let handshake = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let upgraded = |source| {
            let mut stream = from(server.plain[0], source);
            stream.write_all(handshake.as_bytes()).unwrap();
            stream.read(&mut [0; 512]).is_ok_and(|it| it > 100)
        };
        let count = (0..200).filter(|_| upgraded([127, 0, 3, 3])).count();
        assert!((95..=160).contains(&count), "{count}");
        assert!(upgraded([127, 0, 3, 4]));
        server.finish();
    });
}

#[test]
fn short_reads_are_charged() {
    for_each_backend(|backend| {
        let mut plan = limited();
        plan.limits.as_mut().unwrap().rate = 1;
        let server = Server::start(backend, plan);
        let mut stream = connect_from(server.plain[0], [127, 0, 4, 1].into()).unwrap();
        let requests = request(&announce_path("a", 1));
        let mut bytes = requests.bytes().cycle();
        eventually("the end", || {
            bytes.by_ref().take(1_000).any(|it| stream.write_all(&[it]).is_err())
        });
        server.expect_closed(CloseReason::Limited, 1);
        server.finish();
    });
}

#[test]
fn a_quiet_socket_stays_though_its_source_is_over_the_limit() {
    for_each_backend(|backend| {
        let mut plan = limited();
        plan.limits.as_mut().unwrap().rate = 1;
        let server = Server::start(backend, plan);
        let from = || connect_from(server.plain[0], [127, 0, 5, 1].into()).unwrap();
        let mut quiet = upgrade(from());
        flood(&mut from(), request("/nowhere").as_bytes());
        server.expect_closed(CloseReason::Limited, 1);
        for _ in 0..6 {
            quiet.send(Message::Pong("".into())).unwrap();
            quiet.send(Message::Ping("x".into())).unwrap();
            assert!(matches!(quiet.read().unwrap(), Message::Pong(_)));
        }
        quiet.send(Message::text(SCRAPE)).unwrap();
        assert!(!text(&mut quiet).is_empty());
        drop(quiet);
        server.finish();
    });
}

#[test]
fn exempt_sources_are_not_charged() {
    for_each_backend(|backend| {
        let mut plan = limited();
        plan.limits.as_mut().unwrap().exempt = vec!["127.0.0.0/8".parse().unwrap()];
        let server = Server::start(backend, plan);
        let mut client = server.connect();
        client.send(request("/nowhere").repeat(2_000).as_bytes());
        assert!((0..2_000).all(|_| client.read_response().status == 404));
        drop(client);
        server.finish();
    });
}
