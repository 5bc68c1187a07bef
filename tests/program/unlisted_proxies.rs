//! A reverse proxy that the settings do not list is noticed at its first request, and no longer
//! once it is listed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::tcp_clients::{Browser, Certificate, announce, ask, ask_with};
use crate::support::{DEADLINE, Skep, command, eventually, texts};

const REQUESTS: &str = "skep_unlisted_proxy_requests_total{source=\"private\"}";
const RATIO: &str = "skep_unlisted_proxy_ratio{source=\"private\"}";
const LATEST: &str = "skep_unlisted_proxy_latest_timestamp_seconds{source=\"private\"}";

/// Sends bytes, and waits until the far end has closed.
fn send(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(bytes).unwrap();
    // Possibly a reset: what was sent may not have been read.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// What `skep doctor` finds about proxies in a running tracker.
fn doctor(skep: &Skep) -> Value {
    let admin = skep.admin.to_string();
    let mut doctor = command();
    doctor.env("STATE_DIRECTORY", skep.folder());
    let its_own = ["--listen", "127.0.0.1:0", "--admin", &admin];
    let output = doctor.args(["doctor", "--json"]).args(its_own).output().unwrap();
    let findings: Vec<Value> = serde_json::from_str(&texts(&output).0).unwrap();
    findings.into_iter().find(|it| it["id"] == "addresses.proxies").unwrap()
}

#[test]
fn a_proxy_that_is_not_listed_is_named_at_its_first_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("skep.toml");
    let certificate = Certificate::write(folder.path());
    let text = format!(
        "[tls]\nlisten = [\"127.0.0.1:0\"]\ncertificate = {:?}\nkey = {:?}\n[http]\n",
        certificate.certificate, certificate.key
    );
    fs::write(&path, &text).unwrap();
    let skep = Skep::start(&["--config", path.to_str().unwrap()]);
    ask(skep.tcp[0], &announce(1, 1001, ""));
    drop(Browser::open(skep.tcp[0], None));
    assert_eq!(skep.metrics().value(REQUESTS), 0.0, "clients without a proxy");
    assert_eq!(doctor(&skep)["severity"], "ok");

    ask_with(skep.tcp[0], None, &announce(1, 1002, ""), "X-Forwarded-For: 198.51.100.7\r\n");
    let log = skep.log_with("reverse proxy not listed");
    let line = log.lines().find(|line| line.contains("reverse proxy not listed")).unwrap();
    for part in [
        " WARN ",
        "address=127.0.0.1 ",
        "header=\"x-forwarded-for\"",
        "http.trusted_proxies = [\\\"127.0.0.1/32\\\"]",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let finding = doctor(&skep);
    assert_eq!(finding["severity"], "warning", "one of three: {finding}");
    let share = "33.3 % of the last hour's requests over HTTP came through a proxy of this host";
    assert!(finding["fact"].as_str().unwrap().starts_with(share), "{finding}");
    for field in ["Forwarded: for=198.51.100.7", "x-real-ip: 198.51.100.7"] {
        ask_with(skep.tcp[0], None, &announce(1, 1003, ""), &format!("{field}\r\n"));
    }
    let header = b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 80\r\nGET / HTTP/1.1\r\n\r\n";
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\xc0\0\x02\x01\x12\x67\0\x50";
    for address in [skep.tcp[0], skep.tls[0]] {
        send(address, header);
        send(address, binary);
    }
    eventually("every header is counted", || skep.metrics().value(REQUESTS) == 7.0);
    eventually("the share is computed", || skep.metrics().value(RATIO) > 0.5);
    let finding = doctor(&skep);
    assert_eq!(finding["severity"], "problem", "{finding}");
    assert!(finding["fact"].as_str().unwrap().contains(" % of the last hour's"), "{finding}");

    fs::write(&path, format!("{text}trusted_proxies = [\"127.0.0.1/32\"]\n")).unwrap();
    skep.signal("HUP");
    skep.log_with("reloaded: http.trusted_proxies");
    eventually("what was seen before is forgotten", || skep.metrics().value(LATEST) == 0.0);
    assert_eq!(skep.metrics().value(RATIO), 0.0);
    ask_with(skep.tcp[0], None, &announce(1, 1004, ""), "X-Forwarded-For: 198.51.100.7\r\n");
    assert_eq!(skep.metrics().value(REQUESTS), 7.0, "it is listed");
    assert_eq!(doctor(&skep)["severity"], "ok");
    let warnings = skep.log().matches("reverse proxy not listed").count();
    assert_eq!(warnings, 1, "{}", skep.log());
}
