//! The whole program over TCP: HTTP, HTTPS, WebSockets and the Unix socket beside UDP, on either
//! backend; and what operators see of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use bt_bencode::Value as Bencoded;
use bt_bencode::value::Number;
use serde_json::{Value, json};
use skep::types::InfoHash;

use crate::support::seccomp::without_io_uring;
use crate::support::tcp_clients::{
    Browser, Certificate, Response, announce, ask, ask_with, connect, exchange, read_response,
    web_announce,
};
use crate::support::{
    Client, DEADLINE, Skep, backends, command, eventually, has_ipv6, leecher, seeder,
};

/// EPERM: what container runtimes' filters answer.
const EPERM: i32 = 1;

/// A skep that serves TLS as well, and its certificate in a folder that goes with it.
fn with_tls(io: &str) -> (Skep, Certificate, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::write(folder.path());
    let text = format!(
        "[tls]\nlisten = [\"127.0.0.1:0\"]\ncertificate = {:?}\nkey = {:?}\n",
        certificate.certificate, certificate.key
    );
    let skep = with_config(folder.path(), &text, &["--io", io]);
    (skep, certificate, folder)
}

/// A skep with a configuration of this text.
fn with_config(folder: &Path, text: &str, arguments: &[&str]) -> Skep {
    let path = folder.join("skep.toml");
    std::fs::write(&path, text).unwrap();
    let config = ["--config", path.to_str().unwrap()];
    Skep::start(&[&config[..], arguments].concat())
}

/// Peers of a compact response as (last byte of the address, port).
fn peers(response: &Response) -> Vec<(u8, u16)> {
    let response = response.bencoded();
    let bytes = |key: &str, stride: usize| match &response[key.as_bytes()] {
        Bencoded::ByteStr(string) => string
            .chunks(stride)
            .map(|it| (it[stride - 3], u16::from_be_bytes([it[stride - 2], it[stride - 1]])))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    [bytes("peers", 6), bytes("peers6", 18)].concat()
}

fn integer(response: &Response, key: &str) -> u64 {
    match &response.bencoded()[key.as_bytes()] {
        Bencoded::Int(Number::Unsigned(value)) => *value,
        Bencoded::Int(Number::Signed(number)) => u64::try_from(*number).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tcp_has_the_ports_of_udp_and_the_ready_line_tells() {
    for io in backends() {
        let (skep, _, _folder) = with_tls(io);
        assert_eq!(skep.tcp, skep.udp);
        assert_eq!(skep.tcp.len(), if has_ipv6() { 2 } else { 1 });
        let words: Vec<_> = skep.ready.split_whitespace().collect();
        let keys: Vec<_> = words.iter().map(|it| it.split('=').next().unwrap()).collect();
        let mut expected = vec!["ready"];
        expected.extend(skep.udp.iter().map(|_| "udp"));
        expected.extend(skep.tcp.iter().map(|_| "tcp"));
        expected.extend(["tls", "admin", "io", "workers"]);
        assert_eq!(keys, expected);
        assert_ne!(skep.tls[0].port(), 0);
    }
}

#[test]
fn peers_of_udp_and_http_find_each_other() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        for &address in &skep.tcp {
            let mut udp = Client::connect(address);
            udp.announce(&leecher(1, 1001));
            let response = ask(address, &announce(1, 1002, "&left=0"));
            assert!(peers(&response).iter().any(|it| it.1 == 1001), "{response:?}");
            let (counts, handed) = udp.announce(&leecher(1, 1001));
            assert!(counts.seeders >= 1);
            assert!(handed.ends_with(&1002_u16.to_be_bytes()), "{handed:?}");
        }
        // HTTP hands out both families, whichever one asks.
        let response = ask(skep.tcp[0], &announce(1, 1003, "&left=1"));
        assert_eq!(peers(&response).len(), 2 * skep.tcp.len());
        assert_eq!(integer(&response, "complete"), skep.tcp.len() as u64);
    }
}

#[test]
fn a_client_of_both_families_is_not_handed_its_own_other_address() {
    let skep = Skep::start(&[]);
    let ports = |response: &Response| peers(response).iter().map(|it| it.1).collect::<Vec<_>>();
    for _ in 0..3 {
        for &address in &skep.tcp {
            assert_eq!(ports(&ask(address, &announce(1, 1001, "&left=1"))), Vec::<u16>::new());
        }
    }
    let both = vec![1001; skep.tcp.len()];
    assert_eq!(ports(&ask(skep.tcp[0], &announce(1, 1002, "&left=1"))), both, "others are");
    for &address in &skep.tcp {
        assert_eq!(ports(&ask(address, &announce(1, 1001, "&left=1"))), [1002]);
    }
}

#[test]
fn what_real_clients_send_is_counted_under_their_names() {
    let skep = Skep::start(&[]);
    let lines: Vec<&str> = include_str!("../data/clients/http.txt").lines().collect();
    let wanted = "| /announce | v4 | started | leecher";
    let requests = lines.windows(2).filter(|it| it[0].ends_with(wanted)).map(|it| it[1]);
    for request in requests {
        let mut stream = connect(skep.tcp[0], None);
        let response = exchange(&mut *stream, &request.replace("\\r\\n", "\r\n"));
        assert_eq!(integer(&response, "incomplete"), 1, "{request}");
    }
    let expected = json!({
        "Deluge": {"2.0.3": 1},
        "Enhanced CTorrent": {"3.3": 1},
        "KTorrent": {"22.12.3": 1},
        "libTorrent (rTorrent)": {"0.13.8": 1},
    });
    let clients = || -> Value {
        serde_json::from_str::<Value>(&skep.get("/stats.json").1).unwrap()["clients"].take()
    };
    eventually("all are counted", || clients() == expected);
}

#[test]
fn browsers_find_each_other_and_share_the_counts() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        Client::connect(skep.udp[0]).announce(&seeder(1, 1001));
        // More sockets than workers: some pair meets across two of them.
        let mut waiting: Vec<_> = (0..8).map(|_| Browser::open(skep.tcp[0], None)).collect();
        for (peer, browser) in (10..).zip(&mut waiting) {
            let response = browser.ask(&web_announce(1, peer, 1, 0));
            assert_eq!(response["complete"], json!(1), "{response}");
            assert_eq!(response["incomplete"], json!(peer - 9), "{response}");
        }
        let mut asking = Browser::open(skep.tcp[0], None);
        let response = asking.ask(&web_announce(1, 99, 1, 8));
        assert_eq!(response["incomplete"], json!(9), "{response}");
        let mut seen = Vec::new();
        for (peer, browser) in (10_u8..).zip(&mut waiting) {
            let offer = browser.receive();
            assert_eq!(offer["peer_id"], json!("c".repeat(20)), "{offer}");
            seen.push(offer["offer"]["sdp"].as_str().unwrap().to_owned());
            let own = String::from_utf8(vec![peer; 20]).unwrap();
            browser.send(&json!({
                "action": "announce", "info_hash": offer["info_hash"], "peer_id": own,
                "to_peer_id": offer["peer_id"], "offer_id": offer["offer_id"],
                "answer": {"type": "answer", "sdp": format!("v=0 from {peer}")},
            }));
            let answer = asking.receive();
            assert_eq!(answer["answer"]["sdp"], json!(format!("v=0 from {peer}")), "{answer}");
            assert_eq!(answer["offer_id"], offer["offer_id"]);
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 8, "each offer reached one peer");
        // Nobody else is handed a browser.
        let response = ask(skep.tcp[0], &announce(1, 1002, "&left=1"));
        assert_eq!(peers(&response), [(1, 1001)]);
        drop((asking, waiting));
        let gone = || integer(&ask(skep.tcp[0], &announce(1, 1002, "&left=1")), "incomplete") == 1;
        eventually("everything of a closed socket is removed", gone);
    }
}

#[test]
fn a_seeder_of_eighty_torrents_on_one_socket_is_offered_all() {
    for io in backends() {
        let folder = tempfile::tempdir().unwrap();
        let skep = with_config(folder.path(), "[limits]\nexempt = []\n", &["--io", io]);
        let lost = |reason| format!("skep_webtorrent_messages_lost_total{{reason=\"{reason}\"}}");
        let mut seeder = Browser::open_from(skep.tcp[0], [127, 0, 2, 1]);
        for torrent in 1..=80 {
            seeder.ask(&web_announce(torrent, 100, 0, 0));
        }
        let leechers: Vec<_> = (1..=80)
            .map(|byte| {
                let mut leecher = Browser::open_from(skep.tcp[0], [127, 0, 1, byte]);
                leecher.ask(&web_announce(byte, byte, 1, 1));
                leecher
            })
            .collect();
        let mut offered: Vec<_> = (1..=80).map(|_| seeder.receive()["peer_id"].clone()).collect();
        offered.sort_by_key(Value::to_string);
        offered.dedup();
        assert_eq!(offered.len(), 80, "one of each leecher");
        drop(leechers);
        let sockets = "skep_connections{kind=\"ws\"}";
        eventually("they have left", || (skep.metrics().value(sockets) - 1.0).abs() < 0.5);
        // One leecher that takes part in half of them, and announces again.
        let mut collector = Browser::open_from(skep.tcp[0], [127, 0, 3, 1]);
        for _ in 0..2 {
            for torrent in 1..=40 {
                let response = collector.ask(&web_announce(torrent, 101, 1, 1));
                assert_eq!(response["incomplete"], json!(1), "{response}");
                let offer = seeder.receive();
                assert_eq!(offer["info_hash"], response["info_hash"], "{offer}");
            }
        }
        // Offers that nobody can use cost no announce, and are told of once.
        let mut unusable = web_announce(1, 101, 1, 0);
        unusable["offers"] = json!([{"offer": {"sdp": "x"}}, 7]);
        let warning = "offers were dropped: offer_id is not 20 bytes as latin-1 text";
        for told in [json!(warning), Value::Null] {
            let response = collector.ask(&unusable);
            assert_eq!((&response["warning message"], &response["incomplete"]), (&told, &json!(1)));
        }
        eventually("they are counted", || skep.metrics().value(&lost("unusable")) >= 3.5);
        let metrics = skep.metrics();
        assert_eq!(metrics.value(&lost("over_quota")).to_bits(), 0.0_f64.to_bits());
    }
}

#[test]
fn tls_carries_both_and_sessions_resume() {
    for io in backends() {
        let (skep, certificate, _folder) = with_tls(io);
        let client = certificate.client();
        Client::connect(skep.udp[0]).announce(&leecher(1, 1001));
        for _ in 0..4 {
            let response = ask_with(skep.tls[0], Some(&client), &announce(1, 1002, "&left=1"), "");
            assert_eq!(peers(&response), [(1, 1001)]);
        }
        let mut browser = Browser::open(skep.tls[0], Some(&client));
        let response = browser.ask(&web_announce(1, 7, 1, 0));
        assert_eq!(response["incomplete"], json!(3), "{response}");
        eventually("handshakes are counted", || {
            let metrics = skep.metrics();
            let count =
                |kind| metrics.value(&format!("skep_tls_handshakes_total{{kind=\"{kind}\"}}"));
            count("full") >= 1.0 && count("resumed") >= 3.0
        });
    }
}

#[test]
fn a_new_certificate_is_taken_without_a_restart() {
    let (skep, before, folder) = with_tls("mmsg");
    ask_with(skep.tls[0], Some(&before.client()), "/", "");
    let after = Certificate::write(folder.path());
    skep.log_with("TLS certificate reloaded");
    let response = ask_with(skep.tls[0], Some(&after.client()), &announce(1, 1001, "&left=1"), "");
    assert_eq!(integer(&response, "incomplete"), 1);
    std::fs::write(&after.key, "broken").unwrap();
    skep.log_with("TLS certificate not reloaded");
    ask_with(skep.tls[0], Some(&after.client()), "/", "");
}

#[test]
fn a_proxy_names_the_client_only_where_it_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("skep.sock");
    let text = format!("[http]\nunix_socket = {socket:?}\n");
    let skep = with_config(folder.path(), &text, &["--io", "mmsg"]);
    let forged = "X-Forwarded-For: 198.51.100.7\r\n";
    ask_with(skep.tcp[0], None, &announce(1, 1001, "&left=1"), forged);
    let response = ask(skep.tcp[0], &announce(1, 1002, "&left=1"));
    assert_eq!(peers(&response), [(1, 1001)], "the socket's address");
    let mut local = UnixStream::connect(&socket).unwrap();
    let request = |headers: &str| {
        let target = announce(1, 1003, "&left=1");
        format!("GET {target} HTTP/1.1\r\nHost: skep\r\n{headers}\r\n")
    };
    let response = exchange(&mut local, &request("X-Forwarded-For: 127.0.0.9\r\n"));
    assert_eq!(peers(&response).len(), 2);
    let response = exchange(&mut local, &request(""));
    assert!(response.bencoded().contains_key(&b"failure reason"[..]), "{response:?}");
    // The network of a proxy can be named while serving.
    let trusted = format!("{text}trusted_proxies = [\"127.0.0.1\"]\n")
        .replace("127.0.0.1\"", "127.0.0.1/32\"");
    std::fs::write(folder.path().join("skep.toml"), &trusted).unwrap();
    skep.signal("HUP");
    skep.log_with("reloaded: http.trusted_proxies");
    let headers = "X-Forwarded-For: 10.0.0.1, 127.0.0.8\r\n";
    ask_with(skep.tcp[0], None, &announce(1, 1004, "&left=1"), headers);
    let response =
        ask_with(skep.tcp[0], None, &announce(1, 1005, "&left=1"), "X-Real-IP: 127.0.0.7\r\n");
    assert!(peers(&response).contains(&(8, 1004)), "{response:?}");
    // And so can be the header that it writes: what it passes on of others does not count then.
    let named = format!("{trusted}source_header = \"x-real-ip\"\n");
    std::fs::write(folder.path().join("skep.toml"), named).unwrap();
    skep.signal("HUP");
    skep.log_with("reloaded: http.source_header");
    let headers = "X-Real-IP: 127.0.0.7\r\nForwarded: for=127.0.0.6\r\n";
    let response = ask_with(skep.tcp[0], None, &announce(1, 1006, "&left=1"), headers);
    assert!(peers(&response).contains(&(7, 1005)), "{response:?}");
    let headers = "X-Forwarded-For: 127.0.0.7\r\n";
    let response = ask_with(skep.tcp[0], None, &announce(1, 1007, "&left=1"), headers);
    assert!(response.bencoded().contains_key(&b"failure reason"[..]), "{response:?}");
}

#[test]
fn where_io_uring_is_denied_tcp_is_served_all_the_same() {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
    let skep = without_io_uring(EPERM, || Skep::spawn(command));
    assert_eq!(skep.ready_value("io"), "mmsg");
    assert_eq!(integer(&ask(skep.tcp[0], &announce(1, 1001, "&left=1")), "incomplete"), 1);
    let response = Browser::open(skep.tcp[0], None).ask(&web_announce(1, 7, 1, 0));
    assert_eq!(response["incomplete"], json!(2));
}

#[test]
fn what_is_counted_adds_up() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        let address = skep.tcp[0];
        let mut stream = connect(address, None);
        let request = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: skep\r\n\r\n");
        exchange(&mut *stream, &request(&announce(1, 1001, "&left=1")));
        exchange(&mut *stream, &request("/announce?info_hash=short"));
        exchange(&mut *stream, &request("/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa"));
        exchange(&mut *stream, &request("/nothing"));
        let mut browser = Browser::open(address, None);
        browser.ask(&web_announce(1, 7, 1, 0));
        browser.ask(&json!("nonsense"));
        eventually("all are counted", || {
            let metrics = skep.metrics();
            [("http", 4.0), ("ws", 2.0)].iter().all(|(transport, sent)| {
                let label = format!("transport=\"{transport}\"");
                let requests = metrics.sum("skep_requests_total", &label);
                let outcomes: f64 = ["responses", "refused", "rejected"]
                    .iter()
                    .map(|it| metrics.sum(&format!("skep_{it}_total"), &label))
                    .sum();
                (requests - outcomes).abs() < f64::EPSILON && requests >= *sent
            })
        });
        let metrics = skep.metrics();
        assert!(metrics.series() <= 500, "{}", metrics.series());
        let open = |kind| metrics.value(&format!("skep_connections{{kind=\"{kind}\"}}"));
        assert!(open("ws") >= 1.0 && open("http") >= 1.0, "{}", metrics.text);
    }
}

#[test]
fn each_front_end_can_be_disabled() {
    let folder = tempfile::tempdir().unwrap();
    for io in backends() {
        let with = |text: &str| with_config(folder.path(), text, &["--io", io]);
        let skep = with("[udp]\nenabled = false\n");
        assert!(skep.udp.is_empty() && !skep.ready.contains("udp="), "{}", skep.ready);
        assert_eq!(ask(skep.tcp[0], &announce(1, 1001, "&left=0")).status, 200);
        assert_eq!(skep.get("/readyz").0, 200);

        let skep = with("[http]\nenabled = false\n[websocket]\nenabled = false\n");
        assert!(skep.tcp.is_empty() && !skep.ready.contains("tcp="), "{}", skep.ready);
        Client::connect(skep.udp[0]).announce(&seeder(1, 1001));

        let skep = with("[http]\nenabled = false\n");
        let refused = ask(skep.tcp[0], &announce(1, 1001, "&left=0")).text();
        assert!(refused.contains("HTTP is disabled on this tracker"), "{refused}");
        Browser::open(skep.tcp[0], None).ask(&web_announce(2, 7, 1, 0));
        Client::connect(skep.udp[0]).announce(&seeder(1, 1001));

        let skep = with("[websocket]\nenabled = false\n");
        assert_eq!(ask(skep.tcp[0], &announce(1, 1001, "&left=0")).status, 200);
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        assert_eq!(ask_with(skep.tcp[0], None, "/", upgrade).status, 404);
    }
}

#[test]
fn statistics_are_for_operators_until_they_are_public() {
    let folder = tempfile::tempdir().unwrap();
    let skep = with_config(folder.path(), "[http]\npublic_stats = true\n", &[]);
    Client::connect(skep.udp[0]).announce(&seeder(1, 1001));
    ask(skep.tcp[0], &announce(1, 1002, "&left=1"));
    let mut browser = Browser::open(skep.tcp[0], None);
    browser.ask(&web_announce(2, 7, 1, 0));
    let stats = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    eventually("the public page follows within a second or two", || {
        let value = stats(&ask(skep.tcp[0], "/stats.json").text());
        value["torrents"] == 2 && value["peersIPv4"] == 2
    });
    let (status, text) = skep.get("/stats.json");
    let statistics = stats(&text);
    assert_eq!((status, &statistics["peersSeederOnly"]), (200, &json!(1)), "{text}");
    let (status, page) = skep.get("/stats");
    assert!(status == 200 && page.contains("<html"), "{page}");
    assert!(ask(skep.tcp[0], "/stats").text().contains("<html"));
    assert!(ask(skep.tcp[0], "/badge.svg").text().contains("peers: 3"));
    eventually("a sample has all peers", || skep.get("/badge.svg").1.contains("peers: 3"));
    let head = "<h1>Tracker statistics</h1><ul class=\"about\"><li>up ";
    let page = ask(skep.tcp[0], "/stats").text();
    assert!(page.contains(head), "no name of this host: {page}");
    let private = Skep::start(&[]);
    assert_eq!(ask(private.tcp[0], "/stats.json").status, 404);
    assert_eq!(ask(private.tcp[0], "/badge.svg").status, 404);
    assert_eq!(private.get("/stats.json").0, 200);
}

#[test]
fn the_public_page_has_the_name_that_the_operator_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = "[http]\npublic_stats = true\npublic_name = \"tracker.example.org\"\n";
    let skep = with_config(folder.path(), settings, &[]);
    let head = "<h1>tracker.example.org</h1><ul class=\"about\"><li>Tracker statistics</li><li>up ";
    // Whatever name the request has.
    let page = ask_with(skep.tcp[0], None, "/stats", "X-Forwarded-Host: other.example\r\n").text();
    assert!(page.contains(head) && !page.contains("other.example"), "{page}");
    std::fs::write(folder.path().join("skep.toml"), settings.replace("tracker.", "udp.")).unwrap();
    skep.signal("HUP");
    eventually("the page has the new name", || {
        ask(skep.tcp[0], "/stats").text().contains("<h1>udp.example.org</h1>")
    });
}

#[test]
fn operators_see_and_stop_it_through_the_api() {
    let folder = tempfile::tempdir().unwrap();
    let mut skep = with_config(folder.path(), "[admin]\ntoken = \"open sesame, please\"\n", &[]);
    Client::connect(skep.udp[0]).announce(&seeder(1, 1001));
    let hash = "01".repeat(20);
    let refused = skep.get("/api/v1/torrents");
    assert_eq!(refused.0, 401, "{}", refused.1);
    let token = "Authorization: Bearer open sesame, please\r\nConnection: close\r\n";
    let response = ask_with(skep.admin, None, &format!("/api/v1/torrents/{hash}"), token);
    let value: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(value["peers"][0]["address"], json!("127.0.0.1:1001"), "{value}");
    let mut stream = connect(skep.admin, None);
    let request = format!(
        "POST /api/v1/shutdown HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n{token}\r\n",
        skep.admin
    );
    let response = exchange(&mut *stream, &request);
    assert!(matches!(response.status, 200 | 202), "{response:?}");
    assert!(skep.wait().success());
}

#[test]
fn a_stop_waits_for_no_idle_connection() {
    for io in backends() {
        let mut skep = Skep::start(&["--io", io]);
        let mut idle = connect(skep.tcp[0], None);
        exchange(&mut *idle, "GET / HTTP/1.1\r\nHost: skep\r\n\r\n");
        let mut browser = Browser::open(skep.tcp[0], None);
        browser.ask(&web_announce(1, 7, 1, 0));
        skep.signal("TERM");
        assert!(skep.wait().success());
        assert!(browser.is_closed());
        assert_eq!(idle.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}

#[test]
fn half_a_request_is_cut_off_and_counted() {
    for io in backends() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[http]\nhead_timeout_s = 1\nidle_timeout_s = 1\n";
        let skep = with_config(folder.path(), text, &["--io", io]);
        let mut half = TcpStream::connect(skep.tcp[0]).unwrap();
        half.set_read_timeout(Some(DEADLINE)).unwrap();
        half.write_all(b"GET /announce HTT").unwrap();
        assert_eq!(half.read(&mut [0; 1]).unwrap_or(0), 0, "closed");
        let mut idle = connect(skep.tcp[0], None);
        exchange(&mut *idle, "GET / HTTP/1.1\r\nHost: skep\r\n\r\n");
        assert_eq!(idle.read(&mut [0; 1]).unwrap_or(0), 0, "closed");
        eventually("both are counted", || {
            let metrics = skep.metrics();
            let closed =
                |why| metrics.value(&format!("skep_connections_closed_total{{reason=\"{why}\"}}"));
            closed("head_timeout") >= 1.0 && closed("idle_timeout") >= 1.0
        });
    }
}

#[test]
fn many_requests_in_one_write_are_answered_in_order() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        let mut stream = connect(skep.tcp[0], None);
        let request =
            |port| format!("GET {} HTTP/1.1\r\nHost: skep\r\n\r\n", announce(1, port, "&left=1"));
        let all: String = (1001..=1050).map(request).collect();
        stream.write_all(all.as_bytes()).unwrap();
        for number in 1..=50 {
            assert_eq!(integer(&read_response(&mut *stream), "incomplete"), number);
        }
        let mut udp = Client::connect(skep.udp[0]);
        assert_eq!(udp.scrape(&[InfoHash([1; 20])])[0].leechers, 50);
    }
}
