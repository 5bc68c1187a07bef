//! Stream workers on real sockets, on both backends: connections, deadlines and limits, TLS, PROXY
//! headers, WebSockets on different workers, and the end.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bt_bencode::Value;
use skep::counters::{CloseReason, DeliveryFailure, Handshake, Transport};
use skep::frontend::http as http_frontend;
use skep::types::{Refusal, Rejected};
use skep::worker::stream::{Options, StreamBackend};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Error, Message};

use crate::stream_server::{
    Client, Plan, Server, announce_path, ask, connect, connect_from, eventually, for_each_backend,
    is_refused, request, secure, text, upgrade,
};
use crate::support::webtorrent_workers::{TORRENT, announce, answer, id, offer, scrape};

/// With deadlines that a test can wait for.
fn quick(change: impl FnOnce(&mut Options)) -> Plan {
    let mut plan = Plan::default();
    plan.options.head_timeout_s = 1;
    plan.options.idle_timeout_s = 1;
    change(&mut plan.options);
    plan
}

fn patient(backend: StreamBackend) -> Server {
    Server::start(backend, Plan::default())
}

// ---- HTTP ----

#[test]
fn a_connection_is_used_again_and_pipelined_requests_are_answered_in_order() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(client.get(&announce_path("a", 6881)).status, 200);
        }
        let paths =
            [announce_path("b", 7), "/nowhere".into(), announce_path("c", 0), "/announce".into()];
        client.send(paths.map(|it| request(&it)).concat().as_bytes());
        assert_eq!(client.read_response().status, 200);
        assert_eq!(client.read_response().status, 404);
        assert_eq!(client.read_response().status, 200);
        let refused = client.read_response();
        assert!(String::from_utf8_lossy(&refused.body).contains("info_hash is missing"));
        assert_eq!(client.get(&announce_path("a", 6882)).status, 200, "still open");
        assert_eq!(server.received(Transport::Http), 8);
        assert_eq!(server.sum(|it| it.accepted.get()), 1);
        drop(client);
        server.expect_closed(CloseReason::ByClient, 1);
        server.finish();
    });
}

#[test]
fn many_pipelined_requests_are_answered_before_more_is_read() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut client = server.connect();
        let mut sender = client.stream.try_clone().unwrap();
        let requests = request(&announce_path("a", 6881)).repeat(5_000);
        let sending = std::thread::spawn(move || sender.write_all(requests.as_bytes()).unwrap());
        assert!((0..5_000).all(|_| client.read_response().status == 200));
        sending.join().unwrap();
        server.finish();
    });
}

#[test]
fn connections_that_are_not_to_be_kept_end_after_the_response() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let path = announce_path("a", 6881);
        for head in [
            format!("GET {path} HTTP/1.0\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        ] {
            let mut client = server.connect();
            client.send(head.as_bytes());
            assert_eq!(client.read_response().status, 200);
            client.expect_end();
        }
        server.expect_closed(CloseReason::Done, 2);
        server.finish();
    });
}

#[test]
fn a_request_may_come_byte_by_byte() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut client = server.connect();
        let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(6_000));
        long.as_bytes().chunks(97).for_each(|it| client.send(it));
        assert_eq!(client.read_response().status, 200);
        for byte in request(&announce_path("a", 6881)).as_bytes() {
            client.send(&[*byte]);
        }
        assert_eq!(client.read_response().status, 200);
        server.finish();
    });
}

#[test]
fn a_head_that_is_too_long_is_told_so_while_it_is_still_being_sent() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut client = server.connect();
        let mut sender = client.stream.try_clone().unwrap();
        // The server may have closed before all was sent.
        let endless = format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(100_000));
        let sending = std::thread::spawn(move || sender.write_all(endless.as_bytes()));
        assert_eq!(client.read_response().status, 431);
        let _ = client.stream.shutdown(Shutdown::Both);
        let _ = sending.join().unwrap();
        server.expect_closed(CloseReason::Done, 1);
        assert_eq!(server.rejected(Transport::Http, Rejected::LongHead), 1);
        server.finish();
    });
}

#[test]
fn half_a_head_ends_at_its_deadline_however_it_trickles() {
    for_each_backend(|backend| {
        let server = Server::start(backend, quick(|it| it.idle_timeout_s = 60));
        let mut silent = server.connect();
        let mut trickling = server.connect();
        let mut sender = trickling.stream.try_clone().unwrap();
        let trickle = std::thread::spawn(move || {
            sender.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            while sender.write_all(b"A").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let mut used = server.connect();
        assert_eq!(used.get("/").status, 200);
        used.send(b"GET / HT");
        silent.expect_end();
        trickling.expect_end();
        used.expect_end();
        trickle.join().unwrap();
        server.expect_closed(CloseReason::HeadTimeout, 3);
        server.finish();
    });
}

#[test]
fn a_connection_without_requests_ends_at_its_deadline() {
    for_each_backend(|backend| {
        let server = Server::start(backend, quick(|it| it.head_timeout_s = 60));
        let mut client = server.connect();
        assert_eq!(client.get("/").status, 200);
        client.expect_end();
        server.expect_closed(CloseReason::IdleTimeout, 1);
        server.finish();
    });
}

#[test]
fn who_does_not_take_responses_is_not_read_from_and_ends_at_the_deadline() {
    for_each_backend(|backend| {
        let server = Server::start(backend, quick(|it| it.head_timeout_s = 60));
        let mut client = server.connect();
        let requests = request("/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa").repeat(1_000);
        // Until the buffers of both ends are full; then until the server gives up.
        while client.stream.write_all(requests.as_bytes()).is_ok() {}
        server.expect_closed(CloseReason::WriteStalled, 1);
        server.finish();
    });
}

#[test]
fn all_torrents_are_streamed_while_others_are_served() {
    for_each_backend(|backend| {
        let http = http_frontend::Options {
            full_scrape: true,
            full_scrape_interval_s: 300,
            ..Default::default()
        };
        let server = Server::start(backend, Plan { http, ..Plan::default() });
        let mut client = Client::new(secure(server.trust(), connect(server.tls[0])));
        let torrents = 30_000;
        for batch in 0..torrents / 100 {
            let paths = (0..100).map(|it| request(&announce_path(&format!("{batch}x{it}y"), 6881)));
            client.send(paths.collect::<String>().as_bytes());
            assert!((0..100).all(|_| client.read_response().status == 200));
        }
        client.send(request("/scrape").as_bytes());
        let mut other = server.connect();
        assert_eq!(other.get(&announce_path("a", 6881)).status, 200);
        let response = client.read_response();
        let value: Value = bt_bencode::from_slice(&response.body).unwrap();
        let files = value.as_dict().unwrap().get(&b"files"[..]).unwrap().as_dict().unwrap();
        assert!((torrents..=torrents + 1).contains(&files.len()), "{}", files.len());
        assert_eq!(client.get("/").status, 200, "still open");
        assert_eq!(other.get("/scrape").status, 429);
        server.finish();
    });
}

// ---- limits ----

#[test]
fn a_source_has_so_many_connections_unless_it_is_exempt_or_a_proxy() {
    for_each_backend(|backend| {
        let server = Server::start(
            backend,
            quick(|options| {
                options.head_timeout_s = 60;
                options.exempt = vec!["127.0.0.8/32".parse().unwrap()];
                options.trusted_proxies = vec!["127.0.0.9/32".parse().unwrap()];
                options.connections_per_source_max = 3;
            }),
        );
        let mut held: Vec<_> = (0..3).map(|_| server.connect_from([127, 0, 0, 2])).collect();
        server.connect_from([127, 0, 0, 2]).expect_end();
        server.expect_closed(CloseReason::PerSourceCap, 1);
        for source in [3, 8, 8, 8, 8, 9, 9, 9, 9] {
            let mut client = server.connect_from([127, 0, 0, source]);
            assert_eq!(client.get(&announce_path("a", 6881)).status, 200);
            held.push(client);
        }
        held.remove(0);
        server.expect_closed(CloseReason::ByClient, 1);
        assert_eq!(server.connect_from([127, 0, 0, 2]).get("/").status, 200, "one had left");
        server.finish();
    });
}

#[test]
fn there_are_so_many_connections_in_all() {
    for_each_backend(|backend| {
        let server = Server::start(backend, Plan { connections_max: 2, ..Plan::default() });
        let mut held = [server.connect(), server.connect()];
        assert!(held.iter_mut().all(|it| it.get("/").status == 200));
        server.connect().expect_end();
        server.expect_closed(CloseReason::GlobalCap, 1);
        assert_eq!(server.shared.connections_open(), 2);
        drop(held);
        eventually("room", || server.shared.connections_open() == 0);
        assert_eq!(server.connect().get("/").status, 200);
        server.finish();
    });
}

// ---- where a connection comes from ----

#[test]
fn a_trusted_proxys_header_names_the_source_and_a_strangers_does_not() {
    for_each_backend(|backend| {
        let server = Server::start(
            backend,
            quick(|options| {
                options.trusted_proxies = vec!["127.0.0.9/32".parse().unwrap()];
            }),
        );
        let header =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x03\x7f\0\0\x01\x12\x34\x19\x64";
        let path = announce_path("a", 6881);
        for end in [header.len(), 5] {
            let mut client = server.connect_from([127, 0, 0, 9]);
            client.send(&header[..end]);
            client.send(&header[end..]);
            let response = client.get(&path);
            let external = b"external ip4:\x0a\x01\x02\x03";
            assert!(response.body.windows(external.len()).any(|it| it == external), "{response:?}");
            assert_eq!(client.get(&path).status, 200, "only the first bytes are a header");
        }
        let mut secure = secure(server.trust(), {
            let mut stream = connect_from(server.tls[0], [127, 0, 0, 9].into()).unwrap();
            stream.write_all(header).unwrap();
            stream
        });
        secure.write_all(request(&path).as_bytes()).unwrap();
        assert_eq!(Client::new(secure).read_response().status, 200);
        let mut stranger = server.connect();
        stranger.send(header);
        assert_eq!(stranger.read_response().status, 400);
        let mut broken = server.connect_from([127, 0, 0, 9]);
        broken.send(b"\r\n\r\n\0\r\nQUIT\n\x99\x11\0\x0c");
        broken.expect_end();
        server.expect_closed(CloseReason::BadPreamble, 1);
        assert_eq!(server.rejected(Transport::Http, Rejected::BadPreamble), 1);
        server.finish();
    });
}

#[test]
fn a_proxy_on_a_unix_socket_names_its_clients() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut client = Client::new(UnixStream::connect(&server.unix).unwrap());
        let path = announce_path("a", 6881);
        client.send(format!("GET {path} HTTP/1.1\r\nX-Forwarded-For: 10.1.2.3\r\n\r\n").as_bytes());
        let response = client.read_response();
        assert!(response.body.starts_with(b"d8:completei0e11:external ip4:\x0a\x01\x02\x03"));
        assert!(is_refused(&client.get(&path), Refusal::NoSource));
        drop(client);
        server.expect_closed(CloseReason::ByClient, 1);
        server.finish();
    });
}

// ---- TLS ----

#[test]
fn https_keeps_connections_and_resumes_sessions() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let config = server.trust();
        for _ in 0..3 {
            let mut client = Client::new(secure(config.clone(), connect(server.tls[0])));
            for port in 1..4 {
                assert_eq!(client.get(&announce_path("a", port)).status, 200);
            }
            client.send(b"GET / HTTP/1.0\r\n\r\n");
            assert_eq!(client.read_response().status, 200);
            client.expect_end();
        }
        let handshakes = |how| server.sum(|it| it.handshakes(how).get());
        assert_eq!(Handshake::ALL.map(handshakes), [1, 2, 0]);
        server.expect_closed(CloseReason::Done, 3);
        server.finish();
    });
}

#[test]
fn what_is_no_tls_or_bad_tls_is_closed_and_counted() {
    for_each_backend(|backend| {
        let server = Server::start(backend, quick(|_| ()));
        let mut plain = Client::new(connect(server.tls[0]));
        plain.send(request("/").as_bytes());
        plain.expect_end();
        server.expect_closed(CloseReason::BadPreamble, 1);
        assert_eq!(server.rejected(Transport::Http, Rejected::BadPreamble), 1);
        let mut broken = connect(server.tls[0]);
        broken.write_all(b"\x16\x03\x01\0\x06\x01\0\0\x02\xff\xff").unwrap();
        let mut alert = Vec::new();
        let _ = broken.read_to_end(&mut alert);
        assert_eq!(alert.first(), Some(&21), "an alert: {alert:?}");
        server.expect_closed(CloseReason::TlsFailed, 1);
        let mut half = Client::new(connect(server.tls[0]));
        half.send(b"\x16\x03\x01");
        half.expect_end();
        server.expect_closed(CloseReason::HeadTimeout, 1);
        assert_eq!(server.sum(|it| it.handshakes(Handshake::Failed).get()), 2);
        server.finish();
    });
}

#[test]
fn long_messages_cross_tls_both_ways() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let config = server.trust();
        let mut sockets = [0, 1].map(|_| upgrade(secure(config.clone(), connect(server.tls[0]))));
        let [first, second] = &mut sockets;
        ask(first, &announce(TORRENT, "first", "", ""));
        let long = "x".repeat(15_000);
        for round in 0..20 {
            let offers = [0, 1, 2]
                .map(|it| offer(&it.to_string()).replace("v=0", &format!("round {round} {long}")));
            ask(second, &announce(TORRENT, "second", &offers.join(","), ""));
            let offered = text(first);
            assert!(offered.contains(&format!("round {round} {long}")), "{}", offered.len());
        }
        drop(sockets);
        server.finish();
    });
}

// ---- WebSocket ----

#[test]
fn sockets_on_different_workers_reach_each_other() {
    for_each_backend(|backend| {
        let server = Server::start(backend, Plan { workers: 2, ..Plan::default() });
        let mut sockets = [0, 1, 0].map(|worker| server.web_socket(worker));
        let [first, second, third] = &mut sockets;
        ask(first, &announce(TORRENT, "first", "", ""));
        for (other, name) in [(second, "second"), (third, "third")] {
            let response =
                ask(other, &announce(TORRENT, name, &[offer("1"), offer("2")].join(","), ""));
            assert!(response.contains(r#""interval":"#), "{response}");
            let offered = text(first);
            assert!(offered.contains(r#""offer":"#) && offered.contains(&id(name)), "{offered}");
            let number = if offered.contains(&id("1")) { "1" } else { "2" };
            first.send(Message::text(answer(TORRENT, "first", name, number))).unwrap();
            let answered = text(other);
            assert!(answered.contains(r#""answer":"#), "{answered}");
            other
                .send(Message::text(announce(TORRENT, name, "", r#","event":"stopped""#)))
                .unwrap();
            text(other);
        }
        assert_eq!(server.sum(|it| it.messages_delivered.get()), 4);
        for reason in DeliveryFailure::ALL {
            assert_eq!(server.sum(|it| it.messages_lost(reason).get()), 0, "{reason:?}");
        }
        assert_eq!(server.sum(|it| it.upgrades.get()), 3);
        drop(sockets);
        server.finish();
    });
}

#[test]
fn a_closed_socket_takes_its_peers_along() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let peers = || server.peers();
        let [mut polite, mut rude] = [0, 0].map(|worker| server.web_socket(worker));
        ask(&mut polite, &announce(TORRENT, "polite", "", ""));
        ask(&mut rude, &announce(TORRENT, "rude", "", ""));
        assert_eq!(peers(), 2);
        drop(rude);
        eventually("the rude one has left", || peers() == 1);
        polite.close(None).unwrap();
        while polite.read().is_ok() {}
        eventually("the polite one has left", || peers() == 0);
        server.expect_closed(CloseReason::ByClient, 2);
        server.finish();
    });
}

#[test]
fn peers_that_went_silent_leave_while_their_socket_stays() {
    for_each_backend(|backend| {
        let mut plan = quick(|it| it.ping_interval_s = 1);
        plan.rules.peer_age_s_max = 1;
        let server = Server::start(backend, plan);
        let mut socket = server.web_socket(0);
        ask(&mut socket, &announce(TORRENT, "bob", "", ""));
        let mut pings = 0;
        while server.web_peers.peers() > 0 {
            assert!(matches!(socket.read(), Ok(Message::Ping(_)))); // to which there is a pong
            socket.flush().unwrap();
            pings += 1;
            assert!(pings < 10, "it has not left");
        }
        assert_eq!(server.peers(), 0);
        let response = ask(&mut socket, &announce(TORRENT, "bob", "", ""));
        assert!(response.contains(r#""incomplete":1"#), "{response}");
        drop(socket);
        server.expect_closed(CloseReason::ByClient, 1);
        server.finish();
    });
}

#[test]
fn bad_messages_are_told_and_the_socket_stays() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut socket = server.web_socket(0);
        for bad in ["", "nonsense", "{}"] {
            assert!(ask(&mut socket, bad).contains("failure reason"));
        }
        socket.send(Message::binary(scrape(&[TORRENT]).into_bytes())).unwrap();
        assert!(text(&mut socket).contains(r#""files""#), "binary frames are taken alike");
        assert_eq!(server.rejected(Transport::Ws, Rejected::BadMessage), 3);
        drop(socket);
        server.finish();
    });
}

#[test]
fn messages_may_come_in_fragments_and_pings_between_them() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut socket = server.web_socket(0);
        let message = scrape(&[TORRENT]);
        let (head, tail) = message.split_at(9);
        let fragment = |data, text: &str, is_final| {
            Message::Frame(Frame::message(text.as_bytes().to_vec(), OpCode::Data(data), is_final))
        };
        socket.send(fragment(Data::Text, head, false)).unwrap();
        socket.send(Message::Ping(b"alive?".to_vec().into())).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Pong(b"alive?".to_vec().into()));
        socket.send(fragment(Data::Continue, tail, true)).unwrap();
        assert!(text(&mut socket).contains(r#""files""#));
        drop(socket);
        server.finish();
    });
}

#[test]
fn bad_frames_close_the_socket_with_a_status() {
    for_each_backend(|backend| {
        let server = patient(backend);
        for (frame, status) in [
            (&b"\x81\x01a"[..], 1002),               // not masked
            (b"\x83\x80\0\0\0\0", 1002),             // no such kind
            (b"\x81\xff\0\0\0\0\0\x01\0\x01", 1009), // 65537 bytes
        ] {
            let mut socket = server.web_socket(0);
            ask(&mut socket, &announce(TORRENT, "a", "", ""));
            let stream = socket.get_mut();
            stream.write_all(frame).unwrap();
            stream.write_all(&[0; 100]).unwrap();
            let close = match socket.read().unwrap() {
                Message::Close(close) => close.unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!(u16::from(close.code), status);
            while socket.read().is_ok() {}
        }
        assert_eq!(server.rejected(Transport::Ws, Rejected::BadFrame), 3);
        server.expect_closed(CloseReason::BadFrame, 3);
        assert_eq!(server.peers(), 0);
        server.finish();
    });
}

#[test]
fn who_answers_pings_stays_and_who_does_not_is_closed() {
    for_each_backend(|backend| {
        let server = Server::start(backend, quick(|it| it.ping_interval_s = 1));
        let mut alive = server.web_socket(0);
        let mut silent = Client::new(server.web_socket(0).into_inner());
        for _ in 0..3 {
            assert!(matches!(alive.read().unwrap(), Message::Ping(_)));
            alive.flush().unwrap();
        }
        let mut pings = Vec::new();
        silent.stream.read_to_end(&mut pings).unwrap();
        assert!(pings.chunks(2).all(|it| it == b"\x89\0"), "{pings:?}");
        server.expect_closed(CloseReason::IdleTimeout, 1);
        assert!(ask(&mut alive, &announce(TORRENT, "a", "", "")).contains("interval"));
        drop(alive);
        server.finish();
    });
}

#[test]
fn half_a_message_ends_at_its_deadline_whatever_pongs_come() {
    for_each_backend(|backend| {
        let server = Server::start(backend, quick(|it| it.ping_interval_s = 60));
        for half in [&b"\x81\xfe\xff\xff\0\0\0\0half"[..], b"\x01\x84\0\0\0\0half"] {
            let before = server.closed(CloseReason::IdleTimeout);
            let mut stream = server.web_socket(0).into_inner();
            stream.write_all(half).unwrap();
            while server.closed(CloseReason::IdleTimeout) == before {
                // Between fragments, pongs may come.
                if half[0] == 1 && stream.write_all(b"\x8a\x80\0\0\0\0").is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            server.expect_closed(CloseReason::IdleTimeout, before + 1);
        }
        server.finish();
    });
}

#[test]
fn mail_for_who_does_not_read_is_lost_and_the_deadline_ends_it() {
    for_each_backend(|backend| {
        let server = Server::start(backend, Plan { workers: 2, ..quick(|_| {}) });
        let mut stalled = server.web_socket(0);
        ask(&mut stalled, &announce(TORRENT, "stalled", "", ""));
        let mut sender = server.web_socket(1);
        let offer = offer("1").replace("v=0", &"x".repeat(15_000));
        let message = announce(TORRENT, "sender", &offer, "");
        // The kernel's buffers take what the queue could not for a while.
        eventually("it is stalled", || {
            ask(&mut sender, &message);
            server.closed(CloseReason::WriteStalled) > 0
        });
        assert!(server.sum(|it| it.messages_lost(DeliveryFailure::QueueFull).get()) > 0);
        assert_eq!(server.closed(CloseReason::SendQueueFull), 0, "others cannot fill its queue");
        eventually("it has left", || server.peers() == 1);
        assert!(ask(&mut sender, &announce(TORRENT, "sender", "", "")).contains("interval"));
        drop((stalled, sender));
        server.finish();
    });
}

// ---- the end ----

#[test]
fn a_worker_that_stops_closes_who_waits_and_finishes_who_is_being_served() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut idle = server.connect();
        assert_eq!(idle.get("/").status, 200);
        let mut socket = server.web_socket(0);
        ask(&mut socket, &announce(TORRENT, "a", "", ""));
        let mut half = server.connect();
        let request = request(&announce_path("a", 6881));
        let (head, tail) = request.as_bytes().split_at(20);
        let before = server.sum(|it| it.received_bytes(Transport::Http).get());
        half.send(head);
        eventually("half is there", || {
            server.sum(|it| it.received_bytes(Transport::Http).get()) == before + 20
        });
        server.begin_stop();
        idle.expect_end();
        match socket.read() {
            Ok(Message::Close(Some(close))) => assert_eq!(u16::from(close.code), 1001),
            other => panic!("{other:?}"),
        }
        assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
        drop(socket);
        half.send(tail);
        assert_eq!(half.read_response().status, 200);
        half.expect_end();
        assert!(TcpStream::connect(server.plain[0]).is_err(), "nothing listens");
        assert_eq!(server.peers(), 1, "the one that came by HTTP");
        server.finish();
    });
}

#[test]
fn a_worker_that_stops_cuts_off_who_dawdles() {
    for_each_backend(|backend| {
        let server = patient(backend);
        let mut dawdling = server.connect();
        dawdling.send(b"GET / HT");
        eventually("it is there", || server.sum(|it| it.received_bytes(Transport::Http).get()) > 0);
        let counters = server.counters[0].clone();
        let elapsed = server.finish();
        assert!(elapsed >= Duration::from_millis(1_500), "{elapsed:?}");
        assert_eq!(counters.closed(CloseReason::Stopped).get(), 1);
        dawdling.expect_end();
    });
}
