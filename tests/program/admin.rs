//! The operators' listener: every documented response, who is let in, what is listed. The router is
//! served by a process that only seems to be one; the last test asks a real one.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use axum::extract::connect_info::MockConnectInfo;
use serde_json::{Value, json};
use skep::access::lists::ListName;
use skep::access::mode::Mode;
use skep::access_store::{self, AccessError, AccessManager};
use skep::admin::live::{Sample, StatsHub};
use skep::admin::{Process, Token, router};
use skep::frontend::stats::Stats;
use skep::store::{Options, PeerAnnounce, PeerBuffers, PeerChange, Role, Store};
use skep::time::Now;
use skep::tracker::Listing;
use skep::types::{Contact, InfoHash, WebPeer};

use crate::openapi::Description;
use crate::support;

pub(crate) const NOW: Now = Now::from_s(1_800_000_000);
pub(crate) const HERE: &str = "127.0.0.1:50000";
const ELSEWHERE: &str = "192.0.2.7:50000";
const TOKEN: &str = "open sesame, please";
pub(crate) const AUTHORIZED: &str = "Authorization: Bearer open sesame, please";

/// A process that says what it is told to say.
pub(crate) struct Fake {
    store: Arc<Store>,
    well: AtomicBool,
    broken: AtomicBool,
    stopping: AtomicBool,
    token: Mutex<Token>,
    access_manager: Mutex<Arc<AccessManager>>,
    folder: tempfile::TempDir,
    board: Arc<StatsHub>,
}

/// An access manager that keeps everything in a folder.
fn access_manager(folder: &Path, mode: Mode) -> Arc<AccessManager> {
    let files = [const { None }; ListName::ALL.len()];
    let state = Ok(folder.to_owned());
    let options = access_store::Options { mode, similar_digits_max: 0, files, state };
    Arc::new(AccessManager::open(&options).unwrap())
}

impl Fake {
    /// With 25 torrents: number n has n leechers, and the last one more of each kind.
    pub(crate) fn new() -> Arc<Self> {
        let store = Arc::new(Store::new(Options { shards: 4, seed: Some(1) }));
        let announce = |torrent: u8, address: IpAddr, contact, role| {
            let change = PeerChange::Present { role, completed: false };
            let visit = PeerAnnounce {
                info_hash: &InfoHash([torrent; 20]),
                address,
                contact,
                change,
                capped: false,
            };
            store.announce(NOW, &visit, &mut PeerBuffers::default(), &mut fastrand::Rng::new());
        };
        let v4 = Ipv4Addr::new(8, 8, 8, 8).into();
        let v6 = Ipv6Addr::new(0x2001, 0x4860, 0, 0, 0, 0, 0, 1).into();
        for torrent in 1..=25 {
            for port in 1..=torrent {
                announce(torrent, v4, Contact::Port(port.into()), Role::Leecher);
            }
        }
        announce(25, v6, Contact::Port(6881), Role::Seeder);
        announce(25, v4, Contact::Web(WebPeer([1; 16])), Role::Paused);
        let [well, broken, stopping] = [true, false, false].map(AtomicBool::new);
        let folder = tempfile::tempdir().unwrap();
        let access_manager = Mutex::new(access_manager(folder.path(), Mode::Open));
        let (token, board) = (Mutex::new(Token::Kept(TOKEN.into())), Arc::default());
        Arc::new(Self { store, well, broken, stopping, token, access_manager, folder, board })
    }

    /// Opens an access manager in another mode.
    pub(crate) fn set_office(&self, mode: Mode) {
        *self.access_manager.lock().unwrap() = access_manager(self.folder.path(), mode);
    }

    /// Puts a bad line into every list.
    fn damage_lists(&self) {
        for name in ListName::ALL {
            let path = self.access_manager().path(name).unwrap();
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "no such thing here\n").unwrap();
        }
    }

    /// Has it ask for another token.
    fn set_token(&self, token: Token) {
        *self.token.lock().unwrap() = token;
    }

    fn verdict(&self) -> Result<(), String> {
        if self.well.load(Ordering::Relaxed) { Ok(()) } else { Err("a worker is stuck".into()) }
    }
}

impl Process for Fake {
    fn metrics(&self) -> String {
        "skep_torrents 25\n".into()
    }

    fn live(&self) -> Result<(), String> {
        self.verdict()
    }

    fn ready(&self) -> Result<(), String> {
        self.verdict()
    }

    fn started(&self) -> Result<(), String> {
        self.verdict()
    }

    fn stats(&self) -> Stats {
        let clients = vec![("Transmission".into(), "4.0.6".into(), 9)];
        Stats { torrents: 25, active_torrents: 25, clients, ..Stats::default() }
    }

    fn board(&self) -> Arc<StatsHub> {
        self.board.clone()
    }

    fn listing(&self) -> Listing {
        assert!(!self.broken.load(Ordering::Relaxed), "as the test wants it");
        Listing::new(self.store.clone())
    }

    fn access_manager(&self) -> Arc<AccessManager> {
        assert!(!self.broken.load(Ordering::Relaxed), "as the test wants it");
        self.access_manager.lock().unwrap().clone()
    }

    fn now(&self) -> Now {
        NOW.plus_s(100)
    }

    fn token(&self) -> Token {
        self.token.lock().unwrap().clone()
    }

    fn save(&self) -> Result<(), AccessError> {
        self.access_manager().flush(NOW, 3900)
    }

    fn shut_down(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// Serves a process to which everyone seems to come from `from`, until the test ends.
pub(crate) fn serve(process: &Arc<Fake>, from: &str) -> SocketAddr {
    let from: SocketAddr = from.parse().unwrap();
    let pages = router(process.clone()).layer(MockConnectInfo(from));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, pages).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}

/// A response.
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// An error's code and field.
    pub(crate) fn error(&self) -> (u16, String, Option<String>) {
        let error = &self.json()["error"];
        let field = error["field"].as_str().map(str::to_owned);
        (self.status, error["code"].as_str().unwrap().to_owned(), field)
    }
}

/// Asks; `headers` are lines without their ends.
fn ask(address: SocketAddr, method: &str, target: &str, headers: &[&str]) -> Response {
    ask_with(address, (method, target), headers, "")
}

/// Asks with a body.
pub(crate) fn ask_with(
    address: SocketAddr,
    (method, target): (&str, &str),
    headers: &[&str],
    body: &str,
) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    let headers: String = headers.iter().map(|it| format!("{it}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\n{headers}Content-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| line.split_once(": ").map(|it| (it.0.into(), it.1.into()));
    let headers = lines.filter_map(header).collect();
    Response { status, headers, body: body.to_owned() }
}

pub(crate) const LOCALHOST: &str = "Host: localhost:6970";

pub(crate) fn get(address: SocketAddr, target: &str) -> Response {
    ask(address, "GET", target, &[LOCALHOST])
}

/// The API's description, as it is served.
fn description(address: SocketAddr) -> Description {
    Description(get(address, "/api/v1/openapi.json").json())
}

/// A target that a described path stands for.
fn target_of(path: &str) -> String {
    let places = [("{kind}", "ports"), ("{side}", "deny"), ("{value}", "25"), ("{id}", "00")];
    let path = path.replace("{info_hash}", &"19".repeat(20)).replace("{alert}", "SkepDown");
    places.iter().fold(path, |path, (place, value)| path.replace(place, value))
}

/// A body that suits a described request.
fn body_of(path: &str, method: &str) -> String {
    match (path, method) {
        ("/api/v1/torrents" | "/add_torrent_info", "POST") => {
            format!(r#"{{"info_hash":"{}"}}"#, "19".repeat(20))
        }
        ("/api/v1/access/{kind}/{side}", "POST") => r#"{"add":["25"]}"#.to_owned(),
        (IMPORT, "POST") => r#"{"passkeys":[{"name":"ann"}]}"#.to_owned(),
        _ => String::new(),
    }
}

/// Asks for every described path by every method, in a situation that `seen` hears of.
fn ask_everything(
    address: SocketAddr,
    described: &Description,
    headers: &[&str],
    seen: &mut BTreeSet<(String, String, u16)>,
) {
    for path in described.0["paths"].as_object().unwrap().keys() {
        let methods = described.methods(path);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let request = (method, &*target_of(path));
            let response = ask_with(address, request, headers, &body_of(path, method));
            if methods.iter().any(|it| it == method) {
                described.check((path, method, response.status), &response.headers, &response.body);
                seen.insert((path.clone(), method.to_owned(), response.status));
            } else if response.status == 405 {
                for method in &methods {
                    described.check((path, method, 405), &response.headers, &response.body);
                    seen.insert((path.clone(), method.clone(), 405));
                }
            } else {
                assert!(
                    [401, 403].contains(&response.status),
                    "{method} {path}: {}",
                    response.status
                );
            }
        }
    }
}

/// Requests about alerts and lists: the described path and method, the target, the body.
const LISTS: &[(&str, &str, &str, &str)] = &[
    ("/runbook/{alert}", "GET", "/runbook/SkepNothing", ""),
    ("/api/v1/access", "GET", "/api/v1/access?x=1", ""),
    ("/api/v1/torrents", "GET", "/api/v1/torrents?registered=true", ""),
    (LIST, "GET", "/api/v1/access/ports/deny?limit=1", ""),
    (LIST, "GET", "/api/v1/access/ports/deny?limit=0", ""),
    (LIST, "GET", "/api/v1/access/ports/allow", ""),
    (LIST, "POST", "/api/v1/access/networks/deny", r#"{"add":["10.0.0.0/8",{"value":"::1"}]}"#),
    (LIST, "POST", "/api/v1/access/networks/deny", r#"{"add":["10.0.0.1/8"]}"#),
    (LIST, "POST", "/api/v1/access/networks/refuse", "{}"),
    (LIST, "POST", "/api/v1/access/networks/deny", "LONG{}"),
    (ENTRY, "PUT", "/api/v1/access/networks/deny/192.0.2.0%2F24", r#"{"reason":"a flood"}"#),
    (ENTRY, "PUT", "/api/v1/access/networks/deny/192.0.2.0%2F24", "LONG{}"),
    (ENTRY, "PUT", "/api/v1/access/networks/deny/192.0.2.0%2F33", ""),
    (ENTRY, "PUT", "/api/v1/access/ports/allow/25", ""),
    (ENTRY, "GET", "/api/v1/access/networks/deny/192.0.2.0%2F24", ""),
    (ENTRY, "GET", "/api/v1/access/networks/deny/192.0.3.0%2F24", ""),
    (ENTRY, "GET", "/api/v1/access/networks/deny/%ff", ""),
    (ENTRY, "GET", "/api/v1/access/networks/deny/x", ""),
    (ENTRY, "DELETE", "/api/v1/access/networks/deny/192.0.2.0%2F24", ""),
    (ENTRY, "DELETE", "/api/v1/access/networks/deny/192.0.2.0%2F24", ""),
    (ENTRY, "DELETE", "/api/v1/access/networks/deny/x", ""),
];

const LIST: &str = "/api/v1/access/{kind}/{side}";
const ENTRY: &str = "/api/v1/access/{kind}/{side}/{value}";

/// The same, about registered torrents and passkeys.
const REGISTERED: &[(&str, &str, &str, &str)] = &[
    ("/api/v1/torrents", "POST", "/api/v1/torrents", r#"{"info_hash":"HASH"}"#),
    ("/api/v1/torrents", "POST", "/api/v1/torrents", r#"{"info_hash":"HASH","size":7}"#),
    ("/api/v1/torrents", "POST", "/api/v1/torrents", "{}"),
    ("/api/v1/torrents", "POST", "/api/v1/torrents", "LONG{}"),
    (REGISTRATION, "GET", "/api/v1/torrents/HASH/registration", ""),
    (REGISTRATION, "GET", "/api/v1/torrents/HASHx/registration", ""),
    ("/api/v1/torrents/{info_hash}/similar", "GET", "/api/v1/torrents/HASH/similar", ""),
    ("/api/v1/torrents/{info_hash}/similar", "GET", "/api/v1/torrents/x/similar", ""),
    (TORRENT, "DELETE", "/api/v1/torrents/HASH", ""),
    (TORRENT, "DELETE", "/api/v1/torrents/HASH", ""),
    (TORRENT, "DELETE", "/api/v1/torrents/x", ""),
    (REGISTRATION, "GET", "/api/v1/torrents/HASH/registration", ""),
    (ADD, "POST", "/add_torrent_info", r#"{"info_hash":"HASH","info_hash_v2":"HYBRID"}"#),
    (ADD, "POST", "/add_torrent_info", r#"{"info_hash":"HASH","name":"x"}"#),
    (ADD, "POST", "/add_torrent_info", r#"{"info_hash":"HASH","name":7}"#),
    (ADD, "POST", "/add_torrent_info", "LONG{}"),
    ("/api/v1/passkeys", "POST", "/api/v1/passkeys", r#"{"name":"ann","peers":3}"#),
    ("/api/v1/passkeys", "POST", "/api/v1/passkeys", r#"{"peers":"3"}"#),
    ("/api/v1/passkeys", "POST", "/api/v1/passkeys", "LONG{}"),
    ("/api/v1/passkeys", "GET", "/api/v1/passkeys?limit=5", ""),
    ("/api/v1/passkeys", "GET", "/api/v1/passkeys?limit=x", ""),
    (IMPORT, "POST", IMPORT, r#"{"passkeys":[{"passkey":"KEY","name":"x"},{"passkey":"KEY"},{}]}"#),
    (IMPORT, "POST", IMPORT, r#"{"passkeys":[{"passkey":"KEYx"}]}"#),
    (IMPORT, "POST", IMPORT, "LONG{}"),
    ("/api/v1/torrents", "GET", "/api/v1/torrents?registered=true", ""),
    ("/api/v1/passkeys/{id}", "GET", "/api/v1/passkeys/0011", ""),
    ("/api/v1/passkeys/{id}", "DELETE", "/api/v1/passkeys/0011", ""),
];

const TORRENT: &str = "/api/v1/torrents/{info_hash}";
const REGISTRATION: &str = "/api/v1/torrents/{info_hash}/registration";
const ADD: &str = "/add_torrent_info";
pub(crate) const IMPORT: &str = "/api/v1/passkeys/import";

#[test]
fn every_described_response_comes_as_described() {
    let process = Fake::new();
    let (here, elsewhere) = (serve(&process, HERE), serve(&process, ELSEWHERE));
    let (described, mut seen) = (description(here), BTreeSet::new());
    let authorized = [LOCALHOST, AUTHORIZED];
    ask_everything(here, &described, &authorized, &mut seen);
    assert!(process.stopping.load(Ordering::Relaxed));
    ask_everything(elsewhere, &described, &[LOCALHOST], &mut seen);
    process.board.show(Sample { state: "serving".into(), ..Sample::default() });
    process.well.store(false, Ordering::Relaxed);
    process.broken.store(true, Ordering::Relaxed);
    ask_everything(here, &described, &authorized, &mut seen);
    process.broken.store(false, Ordering::Relaxed);
    process.set_token(Token::Configured(TOKEN.into()));
    ask_everything(here, &described, &[LOCALHOST], &mut seen);
    process.set_token(Token::Absent);
    ask_everything(elsewhere, &described, &[LOCALHOST], &mut seen);
    process.set_token(Token::Kept(TOKEN.into()));
    let mut look = |path: &str, target: &str| {
        let response = get(here, target);
        described.check((path, "GET", response.status), &response.headers, &response.body);
        seen.insert((path.to_owned(), "GET".to_owned(), response.status));
    };
    look("/api/v1/torrents", "/api/v1/torrents?limit=7");
    look("/api/v1/torrents", "/api/v1/torrents?sort=seeders&limit=2");
    look("/api/v1/torrents", "/api/v1/torrents?limit=none");
    look("/api/v1/torrents/{info_hash}", "/api/v1/torrents/xyz");
    look("/api/v1/torrents/{info_hash}", &format!("/api/v1/torrents/{}", "ff".repeat(20)));
    look(TORRENT, &format!("{}?limit=5", target_of(TORRENT)));
    for (mode, requests) in [(Mode::Open, LISTS), (Mode::Private, REGISTERED)] {
        process.set_office(mode);
        for (path, method, target, body) in requests {
            let target = target.replace("HASH", &"19".repeat(20));
            let body = body.replace("HASH", &"19".repeat(20)).replace("LONG", &" ".repeat(2 << 20));
            let body = body.replace("HYBRID", &"33".repeat(32)).replace("KEY", &"0f".repeat(16));
            let response = ask_with(here, (method, &target), &authorized, &body);
            described.check((path, method, response.status), &response.headers, &response.body);
            seen.insert(((*path).to_owned(), (*method).to_owned(), response.status));
        }
    }
    let id = process.access_manager().access().passkeys().all()[0].id();
    for method in ["GET", "DELETE"] {
        let path = "/api/v1/passkeys/{id}";
        let response = ask(here, method, &path.replace("{id}", &id), &authorized);
        described.check((path, method, response.status), &response.headers, &response.body);
        seen.insert((path.to_owned(), method.to_owned(), response.status));
    }
    process.damage_lists();
    process.board.close(); // whoever wants to see live figures is told so
    let handshake = [
        LOCALHOST,
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Origin: http://localhost:6970",
    ];
    let foreign = [&handshake[..5], &["Origin: http://tracker.example"]].concat();
    for (headers, status) in [(&handshake[..], 503), (&foreign, 403)] {
        let response = ask(here, "GET", "/stats/live", headers);
        described.check(("/stats/live", "GET", status), &response.headers, &response.body);
        seen.insert(("/stats/live".to_owned(), "GET".to_owned(), response.status));
    }
    ask_everything(here, &described, &authorized, &mut seen);
    let all: BTreeSet<_> = described.responses().into_iter().collect();
    let missing: Vec<_> = all.difference(&seen).collect();
    assert!(missing.is_empty(), "described, but never seen: {missing:?}");
}

#[test]
fn pages_outside_the_api_need_no_token() {
    let process = Fake::new();
    process.set_token(Token::Configured(TOKEN.into()));
    let address = serve(&process, ELSEWHERE);
    for page in
        ["/metrics", "/livez", "/readyz", "/startupz", "/stats", "/stats.json", "/badge.svg"]
    {
        let response = ask(address, "GET", page, &["Host: tracker.example"]);
        assert_eq!(response.status, 200, "{page}");
    }
    let page = get(address, "/stats");
    let policy = page.headers.iter().find(|it| it.0 == "content-security-policy").unwrap();
    assert!(policy.1.starts_with("default-src 'none'"));
    assert!(page.body.contains("Transmission"));
    assert!(
        page.body.contains("requests that the API accepts") && !page.body.contains("1919191919")
    );
    let token = "Authorization: Bearer open sesame, please";
    let page = ask(address, "GET", "/stats", &["Host: tracker.example", token]).body;
    assert!(!page.contains("requests that the API accepts") && page.contains(&"19".repeat(20)));
    let root = get(address, "/");
    let location = root.headers.iter().find(|it| it.0 == "location").unwrap();
    assert_eq!((root.status, &*location.1), (307, "stats"), "below a proxy's path too");
    assert_eq!(get(address, "/api/v1/nothing").error().1, "no_such_page");
}

#[test]
fn a_token_is_needed_where_there_is_one() {
    let process = Fake::new();
    process.set_token(Token::Configured(TOKEN.into()));
    for from in [HERE, ELSEWHERE, "[::1]:50000", "[::ffff:127.0.0.1]:50000"] {
        let address = serve(&process, from);
        let with = |headers: &[&str]| ask(address, "GET", "/api/v1/torrents", headers).status;
        assert_eq!(with(&[LOCALHOST]), 401);
        for wrong in
            ["Bearer open sesam", "Bearer open sesame, please!", "Bearer ", "Bearer", "Basic x"]
        {
            assert_eq!(with(&[LOCALHOST, &format!("Authorization: {wrong}")]), 401, "{wrong}");
        }
        for right in ["Bearer open sesame, please", "bearer open sesame, please"] {
            let right = format!("Authorization: {right}");
            assert_eq!(with(&["Host: tracker.example", &right]), 200);
        }
    }
}

/// Requests that change something, one of them by being fetched.
const EFFECTS: [(&str, &str); 6] = [
    ("POST", "/api/v1/save"),
    ("GET", "/save_state"),
    ("HEAD", "/save_state"),
    ("PUT", "/api/v1/access/ports/deny/25"),
    ("DELETE", "/api/v1/access/ports/deny/25"),
    ("POST", "/api/v1/shutdown"),
];

#[test]
fn without_the_token_only_this_host_may_look_and_nobody_change_anything() {
    let process = Fake::new();
    for (from, expected) in [
        (HERE, 200),
        ("127.8.8.8:1", 200),
        ("[::1]:1", 200),
        ("[::ffff:127.0.0.1]:1", 200),
        (ELSEWHERE, 403),
        ("10.0.0.1:1", 403),
        ("[2001:db8::1]:1", 403),
    ] {
        let address = serve(&process, from);
        for token in [Token::Absent, Token::Kept(TOKEN.into())] {
            let is_absent = matches!(token, Token::Absent);
            process.set_token(token);
            let response = get(address, "/api/v1/torrents");
            assert_eq!(response.status, expected, "{from}");
            if expected == 403 {
                assert_eq!(response.error().1, "only_local");
                assert!(response.body.contains("admin.token"), "{}", response.body);
            }
            for (method, target) in EFFECTS {
                let response = ask(address, method, target, &[LOCALHOST]);
                assert_eq!(response.status, if is_absent { 403 } else { 401 }, "{method} {target}");
                if method != "HEAD" {
                    let code = if is_absent { "token_absent" } else { "no_token" };
                    assert_eq!(response.error().1, code, "{method} {target} from {from}");
                    assert!(response.body.contains("admin.token"), "{}", response.body);
                }
            }
        }
        let with = |method, target| ask(address, method, target, &[LOCALHOST, AUTHORIZED]).status;
        assert_eq!(with("GET", "/api/v1/torrents"), 200, "{from}");
        assert_eq!(with("POST", "/api/v1/save"), 200, "{from}");
    }
    assert!(!process.stopping.load(Ordering::Relaxed));
}

#[test]
fn without_the_token_what_a_proxy_may_have_passed_on_is_refused() {
    let process = Fake::new();
    let address = serve(&process, HERE);
    let target = "/api/v1/torrents";
    for field in [
        "Forwarded: for=x",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: tracker.example",
        "x-forwarded-proto: https",
        "X-Forwarded-Prefix: /",
        "X-Real-IP: ::1",
        "Via: 1.1 x",
        "X-Envoy-External-Address: 192.0.2.7",
        "Fastly-Client-IP: 192.0.2.7",
        "CF-Ray: x",
        "CDN-Loop: x",
        "Client-IP: 192.0.2.7",
    ] {
        for token in [Token::Absent, Token::Kept(TOKEN.into())] {
            process.set_token(token);
            let response = ask(address, "GET", target, &[LOCALHOST, field]);
            assert_eq!(
                (response.status, response.error().1.as_str()),
                (403, "forwarded"),
                "{field}"
            );
            assert!(response.body.contains("admin.token"), "{}", response.body);
        }
        assert_eq!(ask(address, "GET", target, &[LOCALHOST, field, AUTHORIZED]).status, 200);
        process.set_token(Token::Configured(TOKEN.into()));
        assert_eq!(ask(address, "GET", target, &[LOCALHOST, field, AUTHORIZED]).status, 200);
    }
    // What nginx sends to what is behind it unless it is told otherwise.
    process.set_token(Token::Kept(TOKEN.into()));
    for (target, expected) in [("/api/v1/torrents", " 403 "), ("/livez", " 200 ")] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
        let request = format!("GET {target} HTTP/1.0\r\nHost: 127.0.0.1:6970\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.lines().next().unwrap().contains(expected), "{target}: {response}");
    }
}

#[test]
fn another_name_for_this_host_is_refused() {
    let address = serve(&Fake::new(), HERE);
    for (host, expected) in [
        ("localhost", 200),
        ("LOCALHOST:6970", 200),
        ("127.0.0.1:6970", 200),
        ("[::1]:6970", 200),
        ("[::ffff:127.0.0.1]:6970", 200),
        ("127.8.8.8", 200),
        ("10.1.2.3", 403),
        ("192.0.2.7:6970", 403),
        ("[2001:db8::1]:6970", 403),
        ("0", 403),
        ("00.0.0.0:6970", 403),
        ("0x7f.1", 403),
        ("0x7f000001:6970", 403),
        ("127.0.0.1.", 403),
        ("attacker.example", 403),
        ("localhost.attacker.example", 403),
        ("127.0.0.1.attacker.example:6970", 403),
        ("evil@localhost", 403),
        ("0.0.0.0:6970", 403),
        ("[::]:6970", 403),
        ("[::ffff:0.0.0.0]", 403),
        ("", 403),
    ] {
        let response = ask(address, "GET", "/api/v1/torrents", &[&format!("Host: {host}")]);
        assert_eq!(response.status, expected, "{host}: {}", response.body);
    }
    let target = "http://attacker.example/api/v1/torrents";
    assert_eq!(ask(address, "GET", target, &[LOCALHOST]).error().1, "bad_host");
}

#[test]
fn a_page_in_a_browser_changes_nothing() {
    let process = Fake::new();
    let address = serve(&process, HERE);
    let refused = |headers: &[&str]| {
        for (method, target) in EFFECTS {
            for token in [Token::Configured(TOKEN.into()), Token::Kept(TOKEN.into())] {
                process.set_token(token);
                let headers = [headers, &[AUTHORIZED]].concat();
                let response = ask(address, method, target, &headers);
                assert_eq!(response.status, 403, "{method} {target} {headers:?}");
            }
        }
    };
    refused(&[LOCALHOST, "Origin: http://localhost:6970"]);
    refused(&[LOCALHOST, "Origin: null"]);
    for page in ["http://evil.example/", "http://localhost/", "about:blank", "x", ""] {
        refused(&[LOCALHOST, &format!("Referer: {page}")]);
    }
    refused(&["Host: localhost:6970", "Referer: http://evil.example/localhost:6970"]);
    for host in ["0.0.0.0:6970", "[::]:6970", "[::ffff:0.0.0.0]:6970", "evil@localhost", "a b"] {
        refused(&[&format!("Host: {host}")]);
    }
    for host in ["0", "00.0.0.0:6970", "0x0:6970", "0x7f.1", "0.0.0.0."] {
        refused(&[&format!("Host: {host}")]);
    }
    for site in ["cross-site", "same-site", "same-origin"] {
        refused(&[LOCALHOST, &format!("Sec-Fetch-Site: {site}")]);
    }
    assert!(!process.stopping.load(Ordering::Relaxed));
    let origin = "Origin: http://localhost:6970";
    let look = ask(address, "GET", "/api/v1/torrents", &[LOCALHOST, origin, AUTHORIZED]);
    assert_eq!(look.status, 200, "looking changes nothing");
    let stop = |headers: &[&str]| ask(address, "POST", "/api/v1/shutdown", headers);
    let own = "Referer: http://localhost:6970/stats";
    assert_eq!(stop(&[LOCALHOST, own, AUTHORIZED]).json(), json!({ "status": "stopping" }));
    assert!(process.stopping.load(Ordering::Relaxed));
}

#[test]
fn a_wrong_parameter_is_named() {
    let address = serve(&Fake::new(), HERE);
    let hash = "19".repeat(20);
    for (query, field) in [
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=-1", "limit"),
        ("?limit=5&limit=6", "limit"),
        ("?sort=size", "sort"),
        ("?after=12", "after"),
        (&format!("?after={}", "zz".repeat(20)), "after"),
        (&format!("?after={hash}00"), "after"),
        (&format!("?sort=peers&after={hash}"), "after"),
        ("?registered=yes", "registered"),
        ("?registered=true&sort=peers", "registered"),
        (&format!("/{}", "%ff".repeat(20)), "info_hash"),
        (&format!("/{hash}?skip=x"), "skip"),
        (&format!("/{hash}?skip=99999999999999999999"), "skip"),
    ] {
        let response = get(address, &format!("/api/v1/torrents{query}"));
        let expected = (400, "bad_parameter".to_owned(), Some(field.to_owned()));
        assert_eq!(response.error(), expected, "{query}");
    }
    for query in ["?order=peers", "?skip=1", "?%3Cscript%3E", "?limit=5&x"] {
        let response = get(address, &format!("/api/v1/torrents{query}"));
        assert_eq!(response.error(), (400, "bad_query".to_owned(), None), "{query}");
        assert!(!response.body.contains("script"));
    }
    let unknown = get(address, &format!("/api/v1/torrents/{}", "AB".repeat(20)));
    assert_eq!(unknown.error(), (404, "unknown_torrent".to_owned(), None));
}

#[test]
fn a_field_that_is_given_twice_is_refused_wherever_it_stands() {
    let process = Fake::new();
    let address = serve(&process, HERE);
    let edit = |body: &str| {
        let request = ("POST", "/api/v1/access/ports/deny");
        ask_with(address, request, &[LOCALHOST, AUTHORIZED], body)
    };
    for body in [r#"{"add":["25"],"add":["80"]}"#, r#"{"add":[{"value":"25","value":"80"}]}"#] {
        let response = edit(body);
        assert_eq!(response.error(), (400, "bad_body".to_owned(), None), "{body}");
        let field = if body.contains("value") { "value" } else { "add" };
        let message = format!(r#"the field \"{field}\" is given twice"#);
        assert!(response.body.contains(&message), "{}", response.body);
    }
    assert_eq!(edit(r#"{"add":["25"],"remove":["80"]}"#).status, 200);
}

#[test]
fn pages_show_every_torrent_and_every_peer_once() {
    let address = serve(&Fake::new(), HERE);
    let hash = |it: &Value| it["info_hash"].as_str().unwrap().to_owned();
    let mut found = Vec::new();
    let mut next = Some(String::new());
    while let Some(query) = next {
        let page = get(address, &format!("/api/v1/torrents?limit=7{query}")).json();
        found.extend(page["torrents"].as_array().unwrap().iter().map(hash));
        next = page["next"].as_str().map(|it| format!("&after={it}"));
    }
    let expected: Vec<_> = (1..=25).map(|it: u8| format!("{it:02x}").repeat(20)).collect();
    assert_eq!(found, expected);
    let exactly = get(address, "/api/v1/torrents?limit=25").json();
    assert_eq!(
        (exactly["torrents"].as_array().unwrap().len(), &exactly["next"]),
        (25, &Value::Null)
    );

    let (mut peers, mut skip) = (Vec::new(), Some(0));
    while let Some(from) = skip {
        let page = get(address, &format!("/api/v1/torrents/{}?limit=9&skip={from}", expected[24]));
        let page = page.json();
        assert_eq!((&page["seeders"], &page["leechers"]), (&json!(1), &json!(26)));
        assert_eq!(page["downloaders"], 25);
        peers.extend(page["peers"].as_array().unwrap().clone());
        skip = page["next"].as_u64();
    }
    assert_eq!(peers.len(), 27);
    let distinct: BTreeSet<_> = peers.iter().map(ToString::to_string).collect();
    assert_eq!(distinct.len(), 27);
    for (address, kind, role) in [
        (json!("8.8.8.8:7"), "ipv4", "leecher"),
        (json!("[2001:4860::1]:6881"), "ipv6", "seeder"),
        (Value::Null, "webrtc", "paused"),
    ] {
        // The age is up to two ticks of 8 seconds less than 100.
        let peer = json!({ "address": address, "kind": kind, "role": role, "age_s": 88 });
        assert!(peers.contains(&peer), "{peer} is not in {peers:?}");
    }
    let past_all = get(address, &format!("/api/v1/torrents/{}?skip=1000000", expected[24])).json();
    assert_eq!((&past_all["peers"], &past_all["next"]), (&json!([]), &Value::Null));
}

#[test]
fn the_largest_come_first() {
    let address = serve(&Fake::new(), HERE);
    let largest = get(address, "/api/v1/torrents?sort=peers&limit=3").json();
    let peers = |it: &Value| it["seeders"].as_u64().unwrap() + it["leechers"].as_u64().unwrap();
    let found: Vec<_> = largest["torrents"].as_array().unwrap().iter().map(peers).collect();
    assert_eq!((found, &largest["next"]), (vec![27, 24, 23], &Value::Null));
    let seeded = get(address, "/api/v1/torrents?sort=seeders&limit=2").json();
    let hashes: Vec<_> =
        seeded["torrents"].as_array().unwrap().iter().map(|it| &it["info_hash"]).collect();
    assert_eq!(hashes, [&json!("19".repeat(20)), &json!("01".repeat(20))], "then by info-hash");
}

#[test]
fn a_real_process_lists_what_was_announced_and_stops_when_told() {
    let mut command = support::command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).env("SKEP__ADMIN__TOKEN", TOKEN);
    let mut skep = support::Skep::spawn(command);
    let mut client = support::Client::connect(skep.udp[0]);
    client.announce(&support::leecher(7, 6881));
    client.announce(&support::seeder(7, 6882));
    let token = format!("Authorization: Bearer {TOKEN}");
    let headers = [LOCALHOST, token.as_str()];
    let hash = "07".repeat(20);
    let target = format!("/api/v1/torrents/{hash}");
    assert_eq!(get(skep.admin, &target).error().1, "no_token");
    let torrent = ask(skep.admin, "GET", &target, &headers).json();
    assert_eq!((&torrent["seeders"], &torrent["leechers"]), (&json!(1), &json!(1)));
    let address = |at: usize| torrent["peers"][at]["address"].as_str().unwrap().to_owned();
    let addresses: BTreeSet<_> = [address(0), address(1)].into();
    assert_eq!(addresses, ["127.0.0.1:6881", "127.0.0.1:6882"].map(str::to_owned).into());
    let stats = get(skep.admin, "/stats.json").json();
    assert_eq!((&stats["peersAll"], &stats["activeTorrents"]), (&json!(2), &json!(1)));
    assert_eq!(stats["clients"], json!({ "other": { "other": 2 } }), "-XX is nobody's code");
    assert_eq!(ask(skep.admin, "POST", "/api/v1/shutdown", &[LOCALHOST]).status, 401);
    assert_eq!(ask(skep.admin, "POST", "/api/v1/shutdown", &headers).status, 202);
    assert!(skep.wait().success());
    assert!(!skep.log().contains(TOKEN));
}

#[test]
fn a_new_token_takes_effect_with_a_reload_and_is_shown_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("skep.toml");
    let set = |token: &str| std::fs::write(&file, format!("[admin]\ntoken = \"{token}\"\n"));
    set("the first secret").unwrap();
    let mut command = support::command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--config"]).arg(&file);
    let skep = support::Skep::spawn(command);
    let status = |token: &str| {
        let token = format!("Authorization: Bearer {token}");
        ask(skep.admin, "GET", "/api/v1/torrents", &[LOCALHOST, &token]).status
    };
    assert_eq!((status("the first secret"), status("the second secret")), (200, 401));
    set("the second secret").unwrap();
    skep.signal("HUP");
    let log = skep.log_with("reloaded: admin.token");
    support::eventually("the new token is in force", || status("the second secret") == 200);
    assert_eq!(status("the first secret"), 401);
    assert!(!log.contains("secret"), "{log}");
}
