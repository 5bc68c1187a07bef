//! `skep probe` over HTTP, TLS and WebSocket, against skep itself and against servers that err.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tungstenite::Message;

use skep::client::metainfo::Metainfo;

use crate::support::{DEADLINE, Skep, command, run, texts};

/// Announces to a tracker that answers at once need no patience.
const ONCE: [&str; 4] = ["--timeout", "1", "--tries", "1"];

/// A body that grants an announce.
const ANNOUNCED: &[u8] = b"d8:completei0e10:incompletei1e8:intervali1800e5:peers0:e";

/// Serves connections, one after the other.
fn serve<T: Send + 'static>(
    connections: usize,
    mut conversation: impl FnMut(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<Vec<T>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let accepted = (0..connections).map(|_| {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            conversation(stream)
        });
        accepted.collect()
    });
    (address, serving)
}

/// Reads the head of a request; empty where the client has closed.
fn read_request(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn write_response(stream: &mut impl Write, status: &str, body: &[u8]) {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    stream.flush().unwrap();
}

/// The body that answers a request of a probe.
fn tracked(request: &str) -> Vec<u8> {
    if request.starts_with("GET /announce") {
        return ANNOUNCED.to_vec();
    }
    let escaped = request.split_once("info_hash=").unwrap().1.split_once(" HTTP").unwrap().0;
    let mut hash = Vec::new();
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            hash.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            hash.push(byte);
        }
    }
    let mut body = b"d5:filesd20:".to_vec();
    body.extend(hash);
    body.extend(b"d8:completei3e10:downloadedi4e10:incompletei5eeee");
    body
}

/// A probe that has to fail; what it says.
fn failed(arguments: &[&str]) -> String {
    let output = run(&[&["probe"], &ONCE[..], arguments].concat());
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    stdout
}

/// A probe that has to succeed; its verdicts.
fn succeeded(arguments: &[&str]) -> Vec<Value> {
    let output = run(&[&["probe", "--json"], arguments].concat());
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let mut report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["ok"], true);
    report["results"].as_array_mut().unwrap().drain(..).collect()
}

#[test]
fn skep_is_probed_by_every_protocol() {
    let skep = Skep::start(&[]);
    let tcp = skep.ready_value("tcp");
    let [udp, http, ws] = ["udp", "http", "ws"].map(|scheme| format!("{scheme}://{tcp}/announce"));
    for verdict in succeeded(&[&udp, &http, &ws]) {
        assert_eq!(verdict["announce"]["leechers"], 1, "{verdict}");
        assert_eq!(verdict["scrape"]["leechers"], 1, "{verdict}");
        assert!(verdict["connect"]["duration_ms"].as_f64().unwrap() > 0.0, "{verdict}");
    }
}

/// A skep with one worker and these variables.
fn start(variables: &[(&str, &str)]) -> Skep {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).envs(variables.iter().copied());
    Skep::spawn(command)
}

/// The URLs of skep for every protocol.
fn urls(skep: &Skep) -> [String; 3] {
    ["udp", "http", "ws"].map(|scheme| format!("{scheme}://{}/announce", skep.tcp[0]))
}

/// Holds that `skep health` finds this skep well.
fn assert_well(skep: &Skep) {
    let output = run(&["health", "--admin", &skep.admin.to_string()]);
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), &*stderr), (Some(0), ""));
    assert_eq!(stdout, format!("skep at {} is well\n", skep.admin));
}

#[test]
fn a_tracker_of_registered_torrents_is_probed_with_one_of_them() {
    let skep = start(&[("SKEP__ACCESS__MODE", "registered")]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.torrent");
    let info = b"d6:lengthi1e4:name1:x12:piece lengthi1e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
    fs::write(&file, [b"d4:info", &info[..], b"e"].concat()).unwrap();
    let file = file.to_str().unwrap();
    for url in urls(&skep) {
        let said = failed(&[&url]);
        let wanted = "failed at announce: the tracker is alive and refuses: \"torrent not \
                      registered\"; remedy: name a torrent that it serves, with --info-hash";
        assert!(said.contains(wanted), "{said}");
        let report = run(&["probe", "--json", &url]);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        let verdict = &report["results"][0];
        assert_eq!((&verdict["ok"], &verdict["alive"]), (&false.into(), &true.into()));
        assert_eq!(verdict["error"]["refusal"], "torrent not registered");
        let said = failed(&["--info-hash", file, &url]);
        assert!(said.contains("remedy: register this torrent"), "{said}");
    }
    let hash = Metainfo::parse(&fs::read(file).unwrap()).unwrap().info_hash().unwrap();
    let body = json!({ "info_hash": hash.to_string(), "name": "x" });
    assert_eq!(skep.ask(("POST", "/api/v1/torrents"), &body.to_string()).0, 201);
    for named in [file, &hash.to_string()] {
        for verdict in succeeded(
            &[&["--info-hash", named][..], &urls(&skep).each_ref().map(|it| &**it)].concat(),
        ) {
            assert_eq!(
                (&verdict["alive"], &verdict["announce"]["leechers"]),
                (&true.into(), &1.into())
            );
        }
    }
    assert_well(&skep);
}

#[test]
fn a_private_tracker_is_probed_with_a_passkey() {
    let skep = start(&[("SKEP__ACCESS__MODE", "private")]);
    let hash = "ab".repeat(20);
    let body = json!({ "info_hash": hash, "name": "x" }).to_string();
    assert_eq!(skep.ask(("POST", "/api/v1/torrents"), &body).0, 201);
    let (status, made) = skep.ask(("POST", "/api/v1/passkeys"), r#"{"name":"ann"}"#);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(status, 201, "{made}");
    let passkey = made["passkey"].as_str().unwrap();
    for url in urls(&skep) {
        let said = failed(&["--info-hash", &hash, &url]);
        assert!(
            said.contains("refuses: \"unknown passkey\"; remedy: name a passkey with"),
            "{said}"
        );
        assert!(said.contains("failed at announce: passkey missing; the tracker is"), "{said}");
        let said = failed(&[&url]);
        assert!(said.contains("--passkey KEY, and a torrent that the tracker serves with --info"));
        let said = failed(&["--info-hash", &hash, "--passkey", "0", &url]);
        assert!(said.contains("use a passkey that is issued and not revoked"), "{said}");
        assert!(!said.contains("missing"), "{said}");
        let verdicts = succeeded(&["--info-hash", &hash, "--passkey", passkey, &url]);
        assert!(!verdicts[0].to_string().contains(passkey), "{verdicts:?}");
    }
    assert_well(&skep);
}

#[test]
fn a_listener_behind_proxies_is_named_as_such_and_is_well() {
    let skep = start(&[("SKEP__HTTP__TRUSTED_PROXIES", "127.0.0.0/8")]);
    let [_, http, ws] = urls(&skep);
    for (url, step) in [(http, "announce"), (ws, "connect")] {
        let said = failed(&[&url]);
        let wanted = format!(
            "failed at {step}: the tracker is alive and refuses: \"client address missing\"; \
             remedy: http.trusted_proxies lists this host"
        );
        assert!(said.contains(&wanted), "{said}");
    }
    assert_well(&skep);
}

#[test]
fn several_addresses_have_a_total() {
    let skep = start(&[]);
    let [udp, http, _] = urls(&skep);
    let output = run(&["probe", &udp, &http]);
    let (stdout, _) = texts(&output);
    assert_eq!(stdout.lines().last(), Some("2 of 2 addresses responded correctly"), "{stdout}");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = failed(&[&udp, &format!("http://{free}/announce")]);
    assert_eq!(said.lines().last(), Some("1 of 2 addresses responded correctly"), "{said}");
    let (stdout, _) = texts(&run(&["probe", &udp]));
    assert_eq!(stdout.lines().last(), Some("  ok"), "{stdout}");
}

#[test]
fn health_finds_the_listener_in_the_settings_and_fails_without_one() {
    let skep = start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skep.toml");
    fs::write(&file, format!("[admin]\nlisten = \"{}\"\n", skep.admin)).unwrap();
    let by_file = run(&["health", "--config", file.to_str().unwrap()]);
    let mut by_variable = command();
    by_variable.arg("health").env("SKEP__ADMIN__LISTEN", skep.admin.to_string());
    for output in [by_file, by_variable.output().unwrap()] {
        assert_eq!(output.status.code(), Some(0), "{}", texts(&output).1);
    }
    let (admin, tracker) = (skep.admin.to_string(), skep.tcp[0].to_string());
    let output = run(&["health", "--admin", &tracker]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).1.contains("is not skep's admin listener"), "{output:?}");
    drop(skep);
    let output = run(&["health", "--admin", &admin]);
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), &*stdout), (Some(1), ""));
    assert!(stderr.contains("no skep responds at ") && stderr.contains("--admin"), "{stderr}");
    let chosen =
        command().arg("health").env("SKEP__ADMIN__LISTEN", "127.0.0.1:0").output().unwrap();
    assert_eq!(chosen.status.code(), Some(1));
    assert!(texts(&chosen).1.contains("name it with --admin"), "{chosen:?}");
}

/// What `skep health` prints with this state directory.
fn health_with(state: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut health = command();
    health.arg("health").args(arguments).env("STATE_DIRECTORY", state);
    // A listener that the tracker does not have.
    let output = health.env("SKEP__ADMIN__LISTEN", "127.0.0.1:0").output().unwrap();
    let (stdout, stderr) = texts(&output);
    (output.status.code(), stdout + &stderr)
}

#[test]
fn health_finds_a_listener_that_a_flag_or_the_kernel_has_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut tracker = command();
    tracker.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    let mut skep = Skep::spawn({
        tracker.env("STATE_DIRECTORY", state.path());
        tracker
    });
    let expected = (Some(0), format!("skep at {} is well\n", skep.admin));
    assert_eq!(health_with(state.path(), &[]), expected);
    let file = folder.path().join("skep.toml");
    fs::write(&file, format!("[server]\nstate_dir = {:?}\n", state.path())).unwrap();
    let by_file = health_with(folder.path(), &["--config", file.to_str().unwrap()]);
    assert_eq!(by_file, expected);
    assert!(health_with(folder.path(), &[]).1.contains("name it with --admin"));
    // A listener that the settings name is meant, whoever serves with the state directory.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    fs::write(&file, format!("[admin]\nlisten = {closed:?}\n")).unwrap();
    let by_file = ["health", "--config", file.to_str().unwrap()];
    for (words, variable) in [(&by_file[..], None), (&["health"], Some(&closed))] {
        let mut health = command();
        health.args(words).env("STATE_DIRECTORY", state.path());
        health.envs(variable.map(|it| ("SKEP__ADMIN__LISTEN", it)));
        let output = health.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(texts(&output).1.contains(&format!("no skep responds at {closed}: ")));
    }
    skep.signal("TERM");
    assert!(skep.wait().success());
    assert!(!state.path().join("admin-address").exists(), "removed in order");
    assert_eq!(health_with(state.path(), &[]).0, Some(1));
}

#[test]
fn what_a_killed_tracker_left_is_not_asked() {
    let state = tempfile::tempdir().unwrap();
    let start = || {
        let mut tracker = command();
        tracker.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
        tracker.env("STATE_DIRECTORY", state.path());
        Skep::spawn(tracker)
    };
    drop(start()); // by SIGKILL
    let kept = fs::read_to_string(state.path().join("admin-address")).unwrap();
    // Another program, which has the port by now.
    let _other = TcpListener::bind(kept.trim().split_once("admin=").unwrap().1).unwrap();
    let (code, text) = health_with(state.path(), &[]);
    assert!(code == Some(1) && text.contains("name it with --admin"), "{text}");
    let skep = start();
    let expected = (Some(0), format!("skep at {} is well\n", skep.admin));
    assert_eq!(health_with(state.path(), &[]), expected);
}

#[test]
fn the_images_healthcheck_finds_a_tracker_well_in_every_access_mode() {
    let image = include_str!("../../deploy/container/Dockerfile");
    let check = image.lines().skip_while(|line| !line.starts_with("HEALTHCHECK ")).nth(1).unwrap();
    let words: Vec<String> =
        serde_json::from_str(check.trim().strip_prefix("CMD ").unwrap()).unwrap();
    assert_eq!(words[0], "/skep");
    for mode in ["open", "registered", "private"] {
        let skep = start(&[("SKEP__ACCESS__MODE", mode)]);
        let mut check = command();
        check.args(&words[1..]).env("SKEP__ADMIN__LISTEN", skep.admin.to_string());
        let output = check.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{mode}: {}", texts(&output).1);
    }
}

#[test]
fn http_is_asked_over_one_connection_and_left() {
    let (address, serving) = serve(1, |mut stream| {
        let requests: Vec<_> = (0..3)
            .map(|_| {
                let request = read_request(&mut stream);
                write_response(&mut stream, "200 OK", &tracked(&request));
                request
            })
            .collect();
        requests
    });
    let verdicts = succeeded(&[&format!("http://{address}/announce?key=1")]);
    let requests = serving.join().unwrap().concat();
    assert!(requests[0].starts_with("GET /announce?key=1&info_hash="), "{requests:?}");
    assert!(requests[0].contains("&event=started") && requests[0].contains("&compact=1"));
    assert!(requests[0].contains(&format!("\r\nHost: {address}\r\n")));
    assert!(requests[1].starts_with("GET /scrape?key=1&info_hash="), "{requests:?}");
    assert!(requests[2].contains("&event=stopped"), "{requests:?}");
    assert_eq!(verdicts[0]["announce"]["interval_s"], 1800);
    assert_eq!(verdicts[0]["scrape"]["completed"], 4);
}

#[test]
fn a_tracker_that_closes_after_each_response_is_asked_again() {
    let (address, serving) = serve(3, |mut stream| {
        let request = read_request(&mut stream);
        write_response(&mut stream, "200 OK", &tracked(&request));
        request
    });
    succeeded(&[&format!("http://{address}/announce")]);
    assert!(serving.join().unwrap()[2].contains("&event=stopped"));
}

#[test]
fn a_path_without_announce_has_no_scrape() {
    let (address, serving) = serve(1, |mut stream| {
        [(); 2].map(|()| {
            let request = read_request(&mut stream);
            write_response(&mut stream, "200 OK", ANNOUNCED);
            request
        })
    });
    let verdicts = succeeded(&[&format!("http://{address}/")]);
    assert_eq!(verdicts[0]["scrape"], Value::Null);
    assert!(serving.join().unwrap()[0][1].contains("&event=stopped"));
}

#[test]
fn a_probe_leaves_although_its_announce_was_never_answered() {
    let (address, serving) = serve(2, |mut stream| {
        let request = read_request(&mut stream);
        if request.contains("&event=stopped") {
            write_response(&mut stream, "200 OK", ANNOUNCED);
        } else {
            // Says nothing for as long as the client waits.
            assert_eq!(read_request(&mut stream), "");
        }
        request
    });
    let said = failed(&[&format!("http://{address}/announce")]);
    assert!(said.contains("failed at announce: no response within 1 s\n"), "{said}");
    let requests = serving.join().unwrap();
    assert!(requests[0].contains("&event=started") && requests[1].contains("&event=stopped"));
}

#[test]
fn what_no_tracker_says_is_named_and_escaped() {
    for (status, body, wanted) in [
        ("200 OK", &b"<html>\x1b[2J"[..], r#"not a bencoded dictionary, but "<html>\x1b[2J""#),
        ("200 OK", b"d14:failure reason4:\x1b[2Je", r#"alive and refuses: "\x1b[2J""#),
        ("200 OK", b"d8:intervali1ee", "malformed: neither peers nor peers6"),
        ("404 Not Found", b"", "HTTP status 404: no tracker at /announce of this host and port"),
        ("301 Moved", b"", "HTTP status 301: a redirect"),
    ] {
        // The second request is the leave.
        let (address, serving) = serve(2, move |mut stream| {
            while !read_request(&mut stream).is_empty() {
                write_response(&mut stream, status, body);
            }
            stream.shutdown(std::net::Shutdown::Both).ok();
        });
        let said = failed(&[&format!("http://{address}/announce")]);
        assert!(said.contains(wanted), "{said}");
        // Nobody may have come a second time: the server's thread ends with the program.
        drop(serving);
    }
    let (address, _serving) = serve(9, |mut stream| stream.write_all(b"220 mail\x07\r\n").ok());
    let said = failed(&[&format!("http://{address}/")]);
    assert!(said.contains(r#"not an HTTP response, but "220 mail\x07"#), "{said}");
}

#[test]
fn a_response_without_end_is_cut() {
    let (address, _serving) = serve(2, |mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let said = failed(&[&format!("http://{address}/announce")]);
    assert!(said.contains("response longer than 1048576 bytes"), "{said}");
}

#[test]
fn nobody_listening_has_a_remedy_by_every_protocol() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for scheme in ["udp", "http", "ws", "wss", "https"] {
        let said = failed(&["--insecure", &format!("{scheme}://{free}/announce")]);
        assert!(said.contains("is the tracker running, is the port right?"), "{said}");
        assert!(said.contains("failed at connect: nothing listens there"), "{said}");
    }
}

/// An HTTPS tracker; its certificate, which vouches for itself, goes to a file.
fn serve_tls(names: &[&str], file: &Path) -> (SocketAddr, JoinHandle<Vec<()>>) {
    let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
    serve_certificate(rcgen::CertificateParams::new(names).unwrap(), file)
}

/// An HTTPS tracker with this self-signed certificate, which goes to a file.
fn serve_certificate(
    made: rcgen::CertificateParams,
    file: &Path,
) -> (SocketAddr, JoinHandle<Vec<()>>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = made.self_signed(&key).unwrap();
    fs::write(file, certificate.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    serve(9, move |stream| {
        let session = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = StreamOwned::new(session, stream);
        loop {
            let request = read_request(&mut stream);
            if request.is_empty() {
                break;
            }
            write_response(&mut stream, "200 OK", &tracked(&request));
        }
    })
}

#[test]
fn certificates_are_believed_as_told() {
    let temporary = tempfile::tempdir().unwrap();
    let (ca, other) = (temporary.path().join("ca.pem"), temporary.path().join("other.pem"));
    let (address, _serving) = serve_tls(&["127.0.0.1"], &ca);
    let url = format!("https://{address}/announce");
    succeeded(&["--ca", ca.to_str().unwrap(), &url]);
    succeeded(&["--insecure", &url]);
    let said = failed(&[&url]);
    assert!(said.contains("failed at ") && said.contains("--ca"), "{said}");
    let (elsewhere, _serving) = serve_tls(&["tracker.example"], &other);
    let said = failed(&["--ca", other.to_str().unwrap(), &format!("https://{elsewhere}/")]);
    assert!(said.contains("the certificate is not for 127.0.0.1"), "{said}");
    let said = failed(&["--ca", "/absent.pem", &url]);
    assert!(said.contains("failed at tls: /absent.pem: "), "{said}");
}

/// A certificate for 127.0.0.1 as `openssl req -x509` makes it: marked as an authority's.
fn own_authority() -> rcgen::CertificateParams {
    let mut made = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    made.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    made
}

#[test]
fn a_self_signed_certificate_is_trusted_by_its_own_file_as_curl_does() {
    let temporary = tempfile::tempdir().unwrap();
    let file = |name: &str| temporary.path().join(name);
    let (own, other) = (file("own.pem"), file("other.pem"));
    let (address, _serving) = serve_certificate(own_authority(), &own);
    let url = format!("https://{address}/announce");
    succeeded(&["--ca", own.to_str().unwrap(), &url]);
    let (elsewhere, _serving) = serve_certificate(own_authority(), &other);
    let said = failed(&["--ca", own.to_str().unwrap(), &format!("https://{elsewhere}/")]);
    assert!(said.contains("name its file with --ca FILE, or skip"), "{said}");
    let mut named = own_authority();
    named.subject_alt_names =
        vec![rcgen::SanType::DnsName("tracker.example".to_owned().try_into().unwrap())];
    let (address, _serving) = serve_certificate(named, &other);
    let said = failed(&["--ca", other.to_str().unwrap(), &format!("https://{address}/")]);
    assert!(said.contains("the certificate is not for 127.0.0.1"), "{said}");
    let mut expired = own_authority();
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let (address, _serving) = serve_certificate(expired, &other);
    let said = failed(&["--ca", other.to_str().unwrap(), &format!("https://{address}/")]);
    assert!(said.contains("the certificate has expired"), "{said}");
}

#[test]
fn tls_and_plain_text_are_not_mixed_up() {
    let temporary = tempfile::tempdir().unwrap();
    let (address, _serving) = serve_tls(&["127.0.0.1"], &temporary.path().join("ca.pem"));
    let said = failed(&[&format!("http://{address}/announce")]);
    assert!(said.contains("https://"), "{said}");
    // A TLS port may also close without an alert, as skep's does.
    for (scheme, path) in [("http", "/announce"), ("ws", "/")] {
        let (address, _serving) = serve(2, |mut stream| read_request(&mut stream));
        let said = failed(&[&format!("{scheme}://{address}{path}")]);
        assert!(said.contains("closed without a response: a TLS port (try https://"), "{said}");
    }
    let (address, _serving) = serve(2, |mut stream| {
        let _ = stream.read(&mut [0; 9]);
        write_response(&mut stream, "400 Bad Request", b"");
    });
    let said = failed(&["--insecure", &format!("https://{address}/announce")]);
    assert!(said.contains("the response is not TLS"), "{said}");
}

/// A WebTorrent tracker that answers what `answer` says; returns what it was asked.
fn serve_websocket(
    mut answer: impl FnMut(&Value) -> Vec<Value> + Send + 'static,
) -> (SocketAddr, JoinHandle<Vec<Vec<Value>>>) {
    serve(1, move |stream| {
        let mut socket = tungstenite::accept(stream).unwrap();
        let mut asked = Vec::new();
        while let Ok(message) = socket.read() {
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            for response in answer(&message) {
                socket.send(Message::text(response.to_string())).unwrap();
            }
            asked.push(message);
        }
        asked
    })
}

#[test]
fn a_websocket_announces_scrapes_and_leaves() {
    let (address, serving) = serve_websocket(|message| {
        let hash = message["info_hash"].as_str().unwrap();
        if message["action"] == "scrape" {
            let entry = json!({ "complete": 1, "incomplete": 2, "downloaded": 3 });
            return vec![json!({ "action": "scrape", "files": { hash: entry } })];
        }
        let offer =
            json!({ "action": "announce", "info_hash": hash, "offer": {}, "offer_id": "x" });
        let counts = json!({ "action": "announce", "info_hash": hash, "interval": 120,
                             "complete": 4, "incomplete": 5 });
        vec![offer, counts]
    });
    let verdicts = succeeded(&[&format!("ws://{address}/")]);
    let asked = serving.join().unwrap().concat();
    let events: Vec<_> = asked.iter().map(|it| it["event"].as_str()).collect();
    assert_eq!(events, [Some("started"), None, Some("stopped")]);
    assert_eq!(asked[0]["info_hash"].as_str().unwrap().chars().count(), 20);
    assert_eq!(verdicts[0]["announce"]["interval_s"], 120);
    assert_eq!(verdicts[0]["announce"]["peers"], Value::Null);
    assert_eq!(verdicts[0]["scrape"]["completed"], 3);
}

#[test]
fn a_websocket_that_refuses_is_escaped_and_left() {
    let (address, serving) = serve_websocket(|message| {
        let hash = &message["info_hash"];
        let reason = "no\u{1b}[2J";
        vec![json!({ "action": "announce", "info_hash": hash, "failure reason": reason })]
    });
    let said = failed(&[&format!("ws://{address}/")]);
    let wanted = r#"failed at announce: the tracker is alive and refuses: "no\u{1b}[2J""#;
    assert!(said.contains(wanted), "{said}");
    serving.join().unwrap();
    let (address, _serving) = serve(1, |mut stream| {
        read_request(&mut stream);
        write_response(&mut stream, "404 Not Found", b"");
    });
    let said = failed(&[&format!("ws://{address}/")]);
    assert!(said.contains("HTTP status 404: no WebTorrent tracker at /"), "{said}");
}

#[test]
fn the_path_of_scrapes_is_named_as_such() {
    let skep = start(&[]);
    let said = failed(&[&format!("http://{}/scrape", skep.tcp[0])]);
    assert!(said.contains("that is the path of scrapes, try /announce"), "{said}");
    assert_well(&skep);
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_and_one_that_is_cut_is_not() {
    let skep = start(&[]);
    let url = format!("udp://{}", skep.udp[0]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command().args(["probe", &url]).stdout(full).output().unwrap();
    let stderr = texts(&output).1;
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write to standard output"), "{stderr}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command().args(["probe", &url]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), texts(&output).1.as_str()), (Some(0), ""));
}

#[test]
fn a_websocket_to_the_admin_listener_leads_to_its_page() {
    let skep = start(&[]);
    let said = failed(&[&format!("ws://{}", skep.admin)]);
    assert!(said.contains("HTTP status 307: a redirect to \"stats\", which"), "{said}");
}
