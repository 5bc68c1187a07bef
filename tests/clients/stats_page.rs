//! The operators' statistics page of a running skep: figures in tables, what is sent once a second,
//! who may read it, what is kept of it, how it ends. `stats_page_browser` looks at it.
#![cfg(target_os = "linux")]

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use skep::admin::live::{DAY_BYTES_MAX, DayHistory};
use skep::protocol::udp::client::Announcement;
use skep::types::PeerId;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::{HandshakeError, Message, WebSocket};

use crate::support::{self, Client, DEADLINE, Skep, deny_port, eventually, leecher, seeder};

/// As many as may look at once.
const VIEWERS_MAX: usize = skep::admin::live::VIEWERS_MAX;

/// Someone who looks.
struct Viewer {
    socket: WebSocket<TcpStream>,
    /// The time of the newest row it got.
    newest_s: f64,
}

impl Viewer {
    fn open(address: SocketAddr) -> Self {
        Self::try_open(address, &[]).unwrap()
    }

    /// Opens the socket with further headers; gives status and body where that is refused.
    fn try_open(
        address: SocketAddr,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, (u16, String)> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut request = format!("ws://{address}/stats/live").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(Self { socket, newest_s: 0.0 }),
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), String::from_utf8(body).unwrap()))
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// The next message, or the status with which the socket was closed.
    fn read(&mut self) -> Result<Value, Option<u16>> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let message = serde_json::from_str(text.as_str()).unwrap();
                    let newest = rows(&message).last().map(|it| it[0].as_f64().unwrap());
                    self.newest_s = newest.unwrap_or(self.newest_s);
                    return Ok(message);
                }
                Ok(Message::Close(close)) => return Err(close.map(|it| it.code.into())),
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next message of this type.
    fn next(&mut self, kind: &str) -> Value {
        loop {
            let message = self.read().unwrap();
            if message["type"] == kind {
                return message;
            }
        }
    }
}

/// A number in a row by its column's name.
fn of_row(columns: &Value, row: &Value, name: &str) -> f64 {
    let at = columns.as_array().unwrap().iter().position(|it| it == name);
    row[at.unwrap_or_else(|| panic!("no {name}"))].as_f64().unwrap()
}

/// The rows of a message: one of a sample, all of a history.
fn rows(message: &Value) -> Vec<Value> {
    match message["type"].as_str() {
        Some("sample") => vec![message["row"].clone()],
        Some("history") => message["rows"].as_array().unwrap().clone(),
        _ => Vec::new(),
    }
}

#[test]
fn the_page_has_the_figures_in_tables() {
    let skep = Skep::start(&[]);
    deny_port(&skep, 25);
    let mut client = Client::connect(skep.udp[0]);
    client.announce(&seeder(1, 1001));
    client.announce(&leecher(1, 1002));
    client.announce(&leecher(2, 1003));
    client.scrape(&[leecher(1, 6881).info_hash]);
    client.announce_refused(&leecher(1, 25));
    let lacks = |page: &str| {
        let udp = "UDP</th><td class=\"n\">";
        let parts = [
            "IPv4</th><td class=\"n\">1</td><td class=\"n\">2</td><td class=\"n\">3</td>",
            "<b id=\"peers-now\">3</b>",
            "<dd id=\"figure-torrents\">2</dd>",
            "<li id=\"state\" data-state=\"serving\">serving</li>",
            "Refused</th><td>port denied</td>",
            "udp-1</th>",
            "tcp-0</th>",
            &"01".repeat(20),
            udp,
        ];
        let missing = parts.iter().find(|it| !page.contains(**it)).map(|it| (*it).to_owned());
        missing.or_else(|| {
            let row = page.split(udp).nth(1)?.split("</tr>").next()?;
            (!row.ends_with("<td class=\"n\">5</td>")).then(|| row.to_owned())
        })
    };
    let mut page = String::new();
    eventually("a sample has it all", || {
        page = skep.get("/stats").1;
        lacks(&page).is_none()
    });
    assert!(page.contains("other</th>"), "what nobody knows: {page}");
}

#[test]
fn a_viewer_gets_the_last_minutes_and_then_rates_that_add_up_to_what_was_sent() {
    const ANNOUNCES: u32 = 300;
    let skep = Skep::start(&[]);
    let mut viewer = Viewer::open(skep.admin);
    let history = viewer.read().unwrap();
    assert_eq!((&history["type"], &history["every_s"]), (&"history".into(), &1.into()));
    let columns = &history["columns"];
    let first = viewer.next("sample"); // from here on there is a sample before
    let mut client = Client::connect(skep.udp[0]);
    for number in 0..ANNOUNCES {
        client.announce(&leecher(7, u16::try_from(2000 + number).unwrap()));
    }
    client.scrape(&[leecher(7, 6881).info_hash]);
    let (mut announces, mut connects, mut scrapes) = (0.0, 0.0, 0.0);
    let mut at_s = of_row(columns, &first["row"], "at_s");
    while announces < f64::from(ANNOUNCES) - 0.05 || scrapes < 0.95 {
        for row in rows(&viewer.read().unwrap()) {
            let of = |name| of_row(columns, &row, name);
            let span_s = of("span_s");
            if of("at_s") <= at_s {
                continue; // of a history, sent to one that was too slow for a sample
            }
            assert!((of("at_s") - at_s - span_s).abs() < 0.01, "each follows the one before");
            at_s = of("at_s");
            announces += of("announces_per_s") * span_s;
            connects += of("connects_per_s") * span_s;
            scrapes += of("scrapes_per_s") * span_s;
        }
    }
    let close_to = |found: f64, sent: u32| (found - f64::from(sent)).abs() < 0.05;
    assert!(close_to(announces, ANNOUNCES) && close_to(scrapes, 1), "{announces} {scrapes}");
    assert!(connects < 1.05, "{connects}"); // maybe before the first sample
    let sample = viewer.next("sample");
    let leechers = of_row(columns, &sample["row"], "leechers");
    assert!(close_to(leechers, ANNOUNCES), "{leechers}");
    assert_eq!(sample["tables"]["peers"][0][3], ANNOUNCES.to_string());
    let total = u64::from(ANNOUNCES) + 2;
    assert_eq!(sample["tables"]["requests"][0][4], total.to_string());
    let mut late = Viewer::open(skep.admin);
    let rows = late.read().unwrap()["rows"].as_array().unwrap().len();
    assert!((2..=300).contains(&rows), "{rows} of the last minutes");
}

#[test]
fn clients_are_told_by_name_and_torrents_by_size() {
    let skep = Skep::start(&[]);
    let mut client = Client::connect(skep.udp[0]);
    for (torrent, port) in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)] {
        let peer_id = PeerId(*b"-qB5010-abcdefghijkl");
        client.announce(&Announcement { peer_id, ..leecher(torrent, port + 2000) });
    }
    let mut viewer = Viewer::open(skep.admin);
    let (mut clients, mut top) = (Value::Null, Value::Null);
    // Clients are estimated only while somebody looks, so maybe not yet for the first sample.
    while clients[0].is_null() || top.is_null() {
        let message = viewer.read().unwrap();
        match message["type"].as_str() {
            Some("sample") => clients = message["tables"]["clients"].clone(),
            Some("top") => top = message["rows"].clone(),
            _ => {}
        }
    }
    assert_eq!(clients, json!([["qBittorrent", "5.0.1", "6", "100.0 %"]]));
    let largest = json!({ "hash": "03".repeat(20), "name": "", "counts": ["0", "3", "0"] });
    assert_eq!(top[0], largest);
    let page = skep.get("/stats").1;
    let at = |torrent: u8| page.find(&format!("{torrent:02x}").repeat(20)).unwrap();
    assert!(at(3) < at(2) && at(2) < at(1), "{page}");
}

#[test]
fn pages_from_elsewhere_may_not_read_it() {
    let skep = Skep::start(&[]);
    let own = format!("http://{}", skep.admin);
    assert!(Viewer::try_open(skep.admin, &[("origin", &own)]).is_ok());
    for origin in ["http://evil.example", "http://127.0.0.1:1", "null"] {
        let (status, body) = Viewer::try_open(skep.admin, &[("origin", origin)]).err().unwrap();
        assert!(status == 403 && body.contains("foreign_page"), "{origin}: {status} {body}");
    }
    let (status, body) = skep.get("/stats/live");
    assert!(status == 426 && body.contains("no_socket"), "{body}");
    eventually("nobody looks any more", || skep.metrics().value("skep_stats_viewers") == 0.0);
}

#[test]
fn torrents_are_shown_to_those_whom_the_api_serves() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("skep.toml");
    std::fs::write(&config, "[admin]\ntoken = \"open sesame, please\"\n").unwrap();
    let skep = Skep::start(&["--config", config.to_str().unwrap()]);
    Client::connect(skep.udp[0]).announce(&leecher(9, 1001));
    let page = skep.get("/stats").1;
    assert!(page.contains("requests that the API accepts") && !page.contains(&"09".repeat(20)));
    let token = ("authorization", "Bearer open sesame, please");
    let mut knowing = Viewer::try_open(skep.admin, &[token]).unwrap();
    assert_eq!(knowing.next("top")["rows"][0]["hash"], "09".repeat(20));
    let mut other = Viewer::open(skep.admin);
    let mut samples = 0;
    while samples < 2 {
        let message = other.read().unwrap();
        assert_ne!(message["type"], "top", "{message}");
        samples += u32::from(message["type"] == "sample");
    }
}

#[test]
fn a_token_that_is_set_later_ends_the_list_on_open_pages() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("skep.toml");
    std::fs::write(&config, "").unwrap();
    let skep = Skep::start(&["--config", config.to_str().unwrap()]);
    let mut before = Viewer::open(skep.admin);
    before.next("top");
    std::fs::write(&config, "[admin]\ntoken = \"open sesame, please\"\n").unwrap();
    skep.signal("HUP");
    eventually("the token is in force", || skep.get("/api/v1/torrents").0 == 401);
    // Lists follow each other with ten seconds or so between them. One that was on its way when
    // the token came may still arrive; of two that another viewer gets later, none does.
    let token = ("authorization", "Bearer open sesame, please");
    let mut knowing = Viewer::try_open(skep.admin, &[token]).unwrap();
    knowing.next("top");
    let known_s = knowing.newest_s;
    knowing.next("top");
    while before.newest_s <= knowing.newest_s {
        let message = before.read().unwrap();
        let is_late = message["type"] == "top" && before.newest_s > known_s;
        assert!(!is_late, "{message}");
    }
}

#[test]
fn only_so_many_may_look_and_others_are_told_so() {
    let skep = Skep::start(&[]);
    let mut viewers: Vec<_> = (0..VIEWERS_MAX).map(|_| Viewer::open(skep.admin)).collect();
    let (status, body) = Viewer::try_open(skep.admin, &[]).err().unwrap();
    assert!(status == 503 && body.contains("too_many_viewers"), "{status} {body}");
    let metrics = skep.metrics();
    assert_eq!(metrics.value("skep_stats_viewers"), 16.0);
    assert_eq!(metrics.value("skep_stats_viewers_refused_total"), 1.0);
    assert_eq!(skep.get("/stats").0, 200, "the page itself has room");
    viewers.pop();
    eventually("there is a seat again", || Viewer::try_open(skep.admin, &[]).is_ok());
    let mut talker = viewers.pop().unwrap();
    talker.socket.send(Message::text("let me tell you")).unwrap();
    let closed = std::iter::from_fn(|| Some(talker.read())).find_map(Result::err).unwrap();
    assert_eq!(closed, Some(1008), "viewers have nothing to say");
}

#[test]
fn open_pages_do_not_delay_the_end_and_are_told_of_it() {
    let mut skep = Skep::start(&[]);
    let mut viewer = Viewer::open(skep.admin);
    let deaf: Vec<_> = (0..3).map(|_| Viewer::open(skep.admin)).collect();
    viewer.next("sample");
    skep.signal("TERM");
    let closed = std::iter::from_fn(|| Some(viewer.read())).find_map(Result::err).unwrap();
    assert_eq!(closed, Some(1001));
    assert!(skep.wait().success());
    // It has not waited for the others, which have read nothing so far and confirm nothing; that it
    // never waits as long as for a write is an assertion of `admin_listener`. They find its end.
    for mut viewer in deaf {
        let mut received = Vec::new();
        viewer.socket.get_mut().read_to_end(&mut received).unwrap();
        let [one, nine] = 1001_u16.to_be_bytes();
        assert!(received.ends_with(&[0x88, 2, one, nine]), "a close frame is the last");
    }
}

#[test]
fn an_open_page_stays_live_while_the_tracker_drains() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("skep.toml");
    std::fs::write(&config, "[server]\ndrain_s = 600\n").unwrap();
    let mut skep = Skep::start(&["--config", config.to_str().unwrap()]);
    let mut viewer = Viewer::open(skep.admin);
    viewer.next("sample");
    skep.signal("TERM");
    for _ in 0..2 {
        while viewer.next("sample")["head"]["state"] != "stopping" {}
    }
    skep.signal("TERM");
    let closed = std::iter::from_fn(|| Some(viewer.read())).find_map(Result::err).unwrap();
    assert_eq!(closed, Some(1001));
    assert!(skep.wait().success());
}

/// A tracker whose state is in this folder, with further arguments.
fn start_in(folder: &Path, arguments: &[&str]) -> Skep {
    let mut command = support::command();
    command.arg("run").args(["--listen", "127.0.0.1:0", "--workers", "1"]).args(arguments);
    command.env("STATE_DIRECTORY", folder);
    Skep::spawn(command)
}

/// Waits until a sample has a seeder, which is then part of the minute that is kept.
fn await_seeder(skep: &Skep) {
    Client::connect(skep.udp[0]).announce(&seeder(1, 1001));
    let mut viewer = Viewer::open(skep.admin);
    let columns = viewer.next("history")["columns"].clone();
    // The first sample has no rates, and is no part of a minute.
    let is_kept = |row: &Value| {
        of_row(&columns, row, "seeders") > 0.0 && of_row(&columns, row, "span_s") > 0.0
    };
    while !is_kept(&viewer.next("sample")["row"]) {}
}

/// Waits until a viewer gets a minute with a seeder from before the start.
fn await_kept_minute(skep: &Skep) {
    eventually("a viewer gets the minute of the first run", || {
        // A predecessor that ends may have accepted the connection.
        let Ok(mut viewer) = Viewer::try_open(skep.admin, &[]) else { return false };
        let minutes = viewer.next("minutes");
        let rows = minutes["rows"].as_array().unwrap();
        rows.first().is_some_and(|row| of_row(&minutes["columns"], row, "seeders") > 0.0)
    });
}

#[test]
fn a_successor_goes_on_with_the_last_24_hours() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = start_in(folder.path(), &[]);
    await_seeder(&first);
    let second = start_in(folder.path(), &["--take-over"]);
    await_kept_minute(&second);
    assert!(first.wait().success(), "{}", first.log());
}

#[test]
fn the_last_24_hours_outlive_a_restart_but_not_damage() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stats.history");
    let mut first = start_in(folder.path(), &[]);
    await_seeder(&first);
    first.signal("TERM");
    assert!(first.wait().success());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let kept = std::fs::read(&file).unwrap();
    let day = DayHistory::decode(&kept).unwrap();
    assert!(kept.len() <= DAY_BYTES_MAX && day != DayHistory::default());

    let mut second = start_in(folder.path(), &[]);
    await_kept_minute(&second);
    // The page is made anew at most once a second.
    eventually("the page has the line of the first run", || {
        second.get("/stats").1.contains("<path class=\"line\" d=\"M")
    });
    second.signal("TERM");
    assert!(second.wait().success());
    assert!(!second.log().contains("history of the statistics page"), "{}", second.log());

    std::fs::write(&file, &kept[..kept.len() / 2]).unwrap();
    let mut third = start_in(folder.path(), &[]);
    third.log_with("history of the statistics page not usable");
    third.signal("TERM");
    assert!(third.wait().success());
    let lines = third.log();
    assert_eq!(lines.matches("history of the statistics page").count(), 1, "{lines}");
    assert!(lines.contains("error=the file is damaged"), "{lines}");
}
