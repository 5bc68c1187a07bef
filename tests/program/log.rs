//! The log as operators read it: its first lines, its fields in JSON, on a terminal, and why a
//! request was not served or a peer does not appear.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};

use serde_json::Value;
use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{Announcement, encode_announce};
use skep::types::Event;
use tungstenite::Message;

use crate::support::tcp_clients::{Browser, announce, ask, web_announce};
use crate::support::{Client, DEADLINE, Skep, command, eventually, leecher, run, texts};

/// A skep with one worker and these variables.
fn start(variables: &[(&str, &str)]) -> Skep {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).envs(variables.iter().copied());
    Skep::spawn(command)
}

/// The lines of a log in JSON.
fn objects(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line with this message.
fn line<'a>(lines: &'a [Value], message: &str) -> &'a Value {
    lines.iter().find(|line| line["message"] == message).unwrap()
}

#[test]
fn the_first_line_names_version_process_and_settings_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skep.toml");
    fs::write(&file, "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n").unwrap();
    let mut command = command();
    command.arg("--config").arg(&file);
    let mut skep = Skep::spawn(command);
    skep.log_with("no snapshot yet, starting with empty swarms path=");
    skep.signal("TERM");
    assert!(skep.wait().success());
    let (log, version) = (skep.log(), env!("CARGO_PKG_VERSION"));
    let first = log.lines().next().unwrap();
    let wanted = format!(
        " INFO skep starting version={version} pid={} config={}",
        skep.id(),
        file.display()
    );
    assert!(first.ends_with(&wanted), "{first}");
    assert!(!log.contains('\u{1b}'), "colours are for terminals: {log}");
    assert!(log.contains(&format!(" INFO {}", skep.ready)), "{log}");
}

#[test]
fn json_has_fields_for_what_programs_read() {
    let mut skep = start(&[("SKEP__LOG__FORMAT", "json")]);
    skep.signal("TERM");
    assert!(skep.wait().success());
    let lines = objects(&skep.log());
    let first = &lines[0];
    assert_eq!((&first["message"], &first["pid"]), (&"skep starting".into(), &skep.id().into()));
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert!(first.get("config").is_none(), "there is no file: {first}");
    let ready = line(&lines, "ready");
    for (key, value) in [("udp", skep.udp[0]), ("tcp", skep.tcp[0]), ("admin", skep.admin)] {
        assert_eq!(ready[key], value.to_string(), "{ready}");
    }
    assert_eq!((&ready["workers"], ready.get("tls")), (&1.into(), None), "{ready}");
    assert_eq!(line(&lines, "last snapshot saved")["peers"], 0);
}

#[test]
fn json_has_the_reloaded_settings_in_a_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skep.toml");
    let settings = |interval_s: u32, io: &str| {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\nio = \"{io}\"\n\
             [tracker]\ninterval_s = {interval_s}\n[log]\nformat = \"json\"\n"
        );
        fs::write(&file, text).unwrap();
    };
    settings(1000, "mmsg");
    let mut command = command();
    command.arg("--config").arg(&file);
    let mut skep = Skep::spawn(command);
    settings(1100, "auto");
    skep.signal("HUP");
    skep.log_with("needs a restart");
    skep.signal("TERM");
    assert!(skep.wait().success());
    let lines = objects(&skep.log());
    let changed = |message: &str| line(&lines, message)["settings"].as_str().unwrap();
    assert_eq!(changed("reloaded"), "tracker.interval_s = 1100 (was 1000)");
    assert!(changed("not reloaded, needs a restart").starts_with("server.io = "));
}

/// Runs skep on a terminal, until it has written its ready line, then stops it: what the terminal
/// shows; `None`, with a line about it, if there is no script program.
fn on_a_terminal(variables: &[(&str, &str)]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let skep = env!("CARGO_BIN_EXE_skep");
    let serve = format!("exec {skep} --listen 127.0.0.1:0 --admin 127.0.0.1:0 --workers 1");
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &serve, "/dev/null"]).env_clear();
    terminal.env("PATH", std::env::var_os("PATH")?).env("TERM", "xterm");
    terminal.env("STATE_DIRECTORY", folder.path()).envs(variables.iter().copied());
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = match terminal.spawn() {
        Ok(child) => child,
        Err(error) => {
            let required = std::env::var("SKEP_REQUIRE_EXTERNAL").is_ok_and(|it| it == "1");
            assert!(!required, "script: {error}, and SKEP_REQUIRE_EXTERNAL=1 asks for it");
            eprintln!("skipped: script not found");
            return None;
        }
    };
    let mut shown = Vec::new();
    let mut out = child.stdout.take().unwrap();
    let mut chunk = [0; 4096];
    let mut is_stopped = false;
    loop {
        let count = out.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        shown.extend_from_slice(&chunk[..count]);
        // The line about the snapshot may follow the ready line, or precede it.
        let text = String::from_utf8_lossy(&shown);
        if !is_stopped && text.contains("ready udp=") && text.contains("no snapshot yet") {
            is_stopped = true;
            // Ctrl-C, as the terminal sends it.
            child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        }
    }
    assert!(child.wait().unwrap().success());
    Some(String::from_utf8(shown).unwrap())
}

#[test]
fn a_terminal_has_colours_and_one_ready_line() {
    let Some(shown) = on_a_terminal(&[]) else { return };
    assert_eq!(shown.matches("ready udp=").count(), 1, "{shown}");
    assert!(shown.contains("\x1b[32m INFO\x1b[0m skep starting version="), "{shown}");
    let Some(plain) = on_a_terminal(&[("NO_COLOR", "1")]) else { return };
    assert!(!plain.contains('\x1b') && plain.contains(" INFO skep starting"), "{plain}");
}

/// The query of an announce.
const QUERY: &str = "info_hash=hhhhhhhhhhhhhhhhhhhh&peer_id=-qB5010-bbbbbbbbbbbb&port=6881&left=1\
                     &uploaded=0&downloaded=0";

/// The info-hash of [`QUERY`], as the log has it.
const HASH: &str = "6868686868686868686868686868686868686868";

/// Requests an announce over HTTP.
fn announce_over_http(skep: &Skep) {
    let mut stream = TcpStream::connect(skep.tcp[0]).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET /announce/secret?{QUERY} HTTP/1.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.contains("torrent not registered"), "{response}");
}

/// Requests an announce over a WebSocket.
fn announce_over_ws(skep: &Skep) {
    let stream = TcpStream::connect(skep.tcp[0]).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut socket, _) = tungstenite::client("ws://tracker/", stream).unwrap();
    let message = r#"{"action":"announce","info_hash":"hhhhhhhhhhhhhhhhhhhh",
        "peer_id":"-WW0102-bbbbbbbbbbbb","event":"started","left":1,"numwant":0,"offers":[]}"#;
    socket.send(Message::text(message)).unwrap();
    assert!(socket.read().unwrap().into_text().unwrap().contains("torrent not registered"));
}

/// Requests an announce over UDP, and sends a datagram with a forged connection id.
fn announce_over_udp(skep: &Skep) {
    let url = format!("udp://{}", skep.udp[0]);
    let output = run(&["probe", "--info-hash", HASH, "--timeout", "60", "--tries", "1", &url]);
    assert!(texts(&output).0.contains("torrent not registered"), "{output:?}");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut forged = [0; 98];
    forged[11] = 1;
    forged[16..36].copy_from_slice(b"ffffffffffffffffffff");
    forged[36..56].copy_from_slice(b"-ZZ\x1b\n\"\xff-aaaaaaaaaaaa");
    socket.send_to(&forged, skep.udp[0]).unwrap();
}

const REGISTERED: (&str, &str) = ("SKEP__ACCESS__MODE", "registered");
const DEBUG: (&str, &str) = ("SKEP__LOG__LEVEL", "debug");

#[test]
fn at_debug_the_log_has_why_a_client_does_not_appear() {
    let skep = start(&[REGISTERED, DEBUG]);
    announce_over_udp(&skep);
    announce_over_http(&skep);
    announce_over_ws(&skep);
    let refused = "DEBUG request refused reason=\"unregistered\" transport=";
    for (transport, client) in [
        ("udp", r#""-SK0001-""#),
        ("http", r#""qBittorrent 5.0.1""#),
        ("ws", r#""WebTorrent 1.2""#),
    ] {
        let wanted = format!(
            "{refused}\"{transport}\" action=\"announce\" info_hash={HASH} client={client}\n"
        );
        skep.log_with(&wanted);
    }
    let dropped = format!(
        "DEBUG request dropped reason=\"forged_id\" transport=\"udp\" action=\"announce\" \
         info_hash={} client=\"-ZZ\\\\x1b\\\\n\\\\\\\"\\\\xff-\"\n",
        "66".repeat(20)
    );
    let log = skep.log_with(&dropped);
    assert!(!log.contains("secret"), "{log}");
    assert!(!log.contains("address=") && !log.contains("client=127."), "{log}");
}

#[test]
fn addresses_are_named_on_request_and_json_has_fields() {
    let addresses = ("SKEP__LOG__ADDRESSES", "true");
    let mut skep = start(&[REGISTERED, DEBUG, addresses, ("SKEP__LOG__FORMAT", "json")]);
    announce_over_http(&skep);
    skep.log_with("request refused");
    skep.signal("TERM");
    assert!(skep.wait().success());
    let lines = objects(&skep.log());
    let refused = line(&lines, "request refused");
    for (key, value) in [
        ("reason", "unregistered"),
        ("transport", "http"),
        ("action", "announce"),
        ("info_hash", HASH),
        ("client", "qBittorrent 5.0.1"),
        ("address", "127.0.0.1"),
    ] {
        assert_eq!(refused[key], value, "{refused}");
    }
}

#[test]
fn requests_are_logged_from_the_reload_on_that_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skep.toml");
    let settings = |level: &str| {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[access]\nmode = \"registered\"\n\
             [log]\nlevel = \"{level}\"\n"
        );
        fs::write(&file, text).unwrap();
    };
    settings("info");
    let mut command = command();
    command.arg("--config").arg(&file);
    let skep = Skep::spawn(command);
    announce_over_http(&skep);
    let refused = || skep.metrics().sum("skep_refused_total", "unregistered");
    eventually("the refusal is counted", || refused() == 1.0);
    settings("debug");
    skep.signal("HUP");
    let log = skep.log_with("reloaded: log.level");
    assert!(!log.contains("request refused"), "{log}");
    eventually("a refusal is logged", || {
        announce_over_http(&skep);
        skep.log().contains("request refused reason=\"unregistered\" transport=\"http\"")
    });
}

#[test]
fn a_flood_of_refusals_writes_few_lines() {
    const REQUESTS: usize = 2000;
    let mut skep = start(&[REGISTERED, DEBUG]);
    let mut stream = TcpStream::connect(skep.tcp[0]).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET /announce?{QUERY} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut writing = stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..REQUESTS {
            writing.write_all(request.as_bytes()).unwrap();
        }
    });
    let mut responses = Vec::new();
    let reason = b"torrent not registered";
    let count = |bytes: &[u8]| bytes.windows(reason.len()).filter(|it| *it == reason).count();
    let mut chunk = [0; 65536];
    while count(&responses) < REQUESTS {
        let received = stream.read(&mut chunk).unwrap();
        assert!(received > 0);
        responses.extend_from_slice(&chunk[..received]);
    }
    thread.join().unwrap();
    skep.signal("TERM");
    assert!(skep.wait().success());
    let log = skep.log();
    let lines = log.lines().filter(|line| line.contains("request refused")).count();
    // Five in a second; the flood may take a few seconds on a busy host.
    assert!((1..REQUESTS / 4).contains(&lines), "{lines} lines");
}

/// Limits that a test exceeds, for this host as well.
const LIMITED: [(&str, &str); 6] = [
    ("SKEP__LIMITS__EXEMPT", "::1/128"),
    ("SKEP__LIMITS__RATE", "1"),
    ("SKEP__LIMITS__BURST", "16"),
    ("SKEP__LIMITS__NEW_TORRENT_RATE", "1"),
    ("SKEP__LIMITS__NEW_TORRENT_BURST", "16"),
    DEBUG,
];

#[test]
fn an_answered_announce_whose_peer_accepts_no_connections_is_logged_as_such() {
    let mut skep = start(&[DEBUG]);
    let mut client = Client::connect(skep.udp[0]);
    let (answered, _) = client.announce(&leecher(7, 1));
    assert_eq!((answered.seeders, answered.leechers), (0, 0), "it is not stored");
    let head = "DEBUG announce not applied reason=\"no_port\" transport=";
    let hash = "07".repeat(20);
    skep.log_with(&format!(
        "{head}\"udp\" action=\"announce\" info_hash={hash} client=\"-XX0001-\"\n"
    ));
    assert_eq!(ask(skep.tcp[0], &announce(8, 0, "&left=1")).status, 200);
    let hash = "08".repeat(20);
    let log = skep.log_with(&format!("{head}\"http\" action=\"announce\" info_hash={hash} "));
    assert!(!log.contains("address="), "{log}");
    // A peer that is stored has no line, and one that leaves has none either.
    client.announce(&leecher(9, 6881));
    client.announce(&Announcement { event: Event::Stopped, ..leecher(9, 1) });
    skep.signal("TERM");
    assert!(skep.wait().success());
    let log = skep.log();
    assert!(!log.contains(&"09".repeat(20)), "{log}");
}

#[test]
fn an_announce_over_the_limit_that_gets_a_response_is_logged_apart_from_those_without() {
    let skep = start(&LIMITED);
    let client = Client::connect(skep.udp[0]);
    let announcement = Announcement { event: Event::None, ..leecher(7, 6881) };
    let mut datagram = [0; 256];
    let (id, transaction) = (client.connection_id, TransactionId([1; 4]));
    let bytes = encode_announce(id, transaction, &announcement, &mut datagram);
    let line = |event: &str, reason: &str| {
        let hash = "07".repeat(20);
        format!(
            "DEBUG {event} reason=\"{reason}\" transport=\"udp\" action=\"announce\" \
             info_hash={hash} client=\"-XX0001-\""
        )
    };
    let (slipped, dropped) =
        (line("announce not applied", "slipped"), line("request dropped", "limited"));
    eventually("both are logged", || {
        client.send(&datagram[..bytes]);
        let log = skep.log();
        log.contains(&slipped) && log.contains(&dropped)
    });
}

#[test]
fn an_answered_announce_that_is_not_stored_is_logged_with_the_reason() {
    let skep = start(&LIMITED[3..].iter().chain(&LIMITED[..1]).copied().collect::<Vec<_>>());
    let mut browser = Browser::open(skep.tcp[0], None);
    // More torrents than the burst of new ones and the seconds of this test allow.
    let last = (b'!'..=b'~').find(|torrent| {
        browser.ask(&web_announce(*torrent, b'p', 1, 0));
        skep.metrics().sum("skep_announces_not_stored_total", "new_torrent_limit") > 0.0
    });
    let hash = format!("{:02x}", last.expect("the limit is reached")).repeat(20);
    skep.log_with(&format!(
        "DEBUG announce not applied reason=\"new_torrent_limit\" transport=\"ws\" \
         action=\"announce\" info_hash={hash} client="
    ));
}

#[test]
fn an_upgrade_over_the_limit_is_logged() {
    let skep = start(&LIMITED);
    let request = "GET /announce HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    eventually("the refusal is logged", || {
        let mut stream = TcpStream::connect(skep.tcp[0]).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let line = "request refused reason=\"limited\" transport=\"http\" action=\"announce\"";
        skep.log().contains(line)
    });
}
