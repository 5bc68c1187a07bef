//! The blocks of docs/reverse-proxies.md in the real proxies, in front of a real skep.
//!
//! Each block is used as it is on the page, less what belongs to a host: addresses, ports, paths
//! and passwords. Needs nginx, caddy and haproxy of Debian. What is missing is named; with
//! `SKEP_REQUIRE_EXTERNAL=1`, a failure.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use crate::support::tcp_clients::{Response, announce, exchange, web_announce};
use crate::support::{DEADLINE, Skep, command, eventually, texts};
use crate::tools::{blocks, have, program, text_of};

const TRACKER: &str = "tracker.example.org";
const STATS: &str = "stats.example.org";

/// A further name of the admin page, which leads here: the real one does not.
const STATS_HERE: &str = "localhost";

/// The client's address: another one than the proxy's, which is 127.0.0.1.
const CLIENT: [u8; 4] = [127, 9, 8, 7];

/// The login `operator:sunny-day-17` in base64, and the hashes of its password.
const LOGIN: &str = "Authorization: Basic b3BlcmF0b3I6c3VubnktZGF5LTE3\r\n";
const CRYPT: &str = "$5$skepskep$26TVWRY68rj1y6ROv6QlxCwuWk8SYgBSOdvts8UJiA0";
const BCRYPT: &str = "$2a$14$NWN4p8iUoxDl24DpUdPFl.xwXuu6JQufXkJXWU6s9LCvqiy.Dzd.K";

type Secure = StreamOwned<ClientConnection, TcpStream>;

/// A proxy in front of a skep; killed when dropped.
struct Proxy {
    child: Child,
    address: SocketAddr,
    client: Arc<ClientConfig>,
    /// The file of the certificate to trust.
    authority: PathBuf,
    log: PathBuf,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- proxy\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// The only block of the page in this language.
fn block(language: &str) -> String {
    let mut all = blocks(&text_of("docs/reverse-proxies.md"), language);
    assert_eq!(all.len(), 1, "{language}");
    all.remove(0)
}

/// Replaces something that the page has, wherever it has it.
#[track_caller]
fn with(text: &str, here: &str, there: impl std::fmt::Display) -> String {
    assert!(text.contains(here), "{here} is not in\n{text}");
    text.replace(here, &there.to_string())
}

/// A skep with the settings of the page, on ports of the kernel's choice.
fn skep(folder: &Path) -> Skep {
    let mut text = block("toml");
    for (here, there) in [("0.0.0.0:6969", "127.0.0.1:0"), ("127.0.0.1:6969", "127.0.0.1:0")] {
        text = with(&text, here, there);
    }
    let text = with(&text, ", \"[::]:6969\"", "");
    let path = folder.join("skep.toml");
    fs::write(&path, text).unwrap();
    let mut command = command();
    command.args(["--workers", "1", "--config"]).arg(path);
    Skep::spawn(command)
}

/// An address that nothing listens on. The proxies cannot be given port 0.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Writes a certificate for both names, and its key.
fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let names = [TRACKER, STATS, STATS_HERE].map(str::to_owned);
    let pair = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    fs::write(&certificate, pair.cert.pem()).unwrap();
    fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    (certificate, key)
}

/// A client that trusts an authority.
fn client(authority: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

impl Proxy {
    /// Starts a proxy, and waits until it accepts connections and `authority` exists.
    fn start(mut command: Command, folder: &Path, address: SocketAddr, authority: &Path) -> Self {
        let log = folder.join("proxy.log");
        let output = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut child = command.spawn().unwrap();
        eventually("the proxy listens", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(&log).unwrap());
            authority.exists() && TcpStream::connect(address).is_ok()
        });
        let (client, authority) = (client(authority), authority.to_owned());
        let proxy = Self { child, address, client, authority, log };
        // Caddy makes certificates once it listens.
        eventually("the proxy has certificates", || {
            [TRACKER, STATS, STATS_HERE].iter().all(|host| proxy.connect(host).flush().is_ok())
        });
        proxy
    }

    /// Connects from the client's address.
    fn connect(&self, host: &str) -> Secure {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((CLIENT, 0)).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        StreamOwned::new(ClientConnection::new(self.client.clone(), name).unwrap(), stream)
    }

    /// One request to a host on a connection of its own; each of `fields` ends with CRLF.
    fn ask(&self, host: &str, request: &str, fields: &str) -> Response {
        let head = format!("{request} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
        exchange(&mut self.connect(host), &head)
    }

    /// Opens a WebSocket as a page of the host does.
    fn open(&self, host: &str, path: &str, login: bool) -> WebSocket<Secure> {
        let mut request = format!("wss://{host}{path}").into_client_request().unwrap();
        let fields = request.headers_mut();
        fields.insert("origin", format!("https://{host}").parse().unwrap());
        if login {
            let value = LOGIN.trim_end().split_once(": ").unwrap().1;
            fields.insert("authorization", value.parse().unwrap());
        }
        let opened = tungstenite::client(request, self.connect(host));
        opened.map_err(|error| error.to_string()).unwrap().0
    }
}

/// The next text of a WebSocket.
fn text(socket: &mut WebSocket<Secure>) -> Value {
    loop {
        if let Message::Text(text) = socket.read().unwrap() {
            return serde_json::from_str(text.as_str()).unwrap();
        }
    }
}

/// Holds what the page promises of each block.
fn holds(skep: &Skep, proxy: &Proxy) {
    announces_have_the_clients_address(skep, proxy);
    let mut browser = proxy.open(TRACKER, "/announce", false);
    browser.send(Message::text(web_announce(1, 7, 1, 0).to_string())).unwrap();
    let response = text(&mut browser);
    assert_eq!(response["incomplete"], 2, "the browser and the client: {response}");
    assert_eq!(skep.metrics().value("skep_connections{kind=\"ws\"}"), 1.0);
    the_admin_page_takes_a_login_and_changes_take_the_token(skep, proxy);
    subcommands_take_the_token(skep, proxy);
    let metrics = skep.metrics();
    for source in ["private", "public"] {
        let name = format!("skep_unlisted_proxy_requests_total{{source=\"{source}\"}}");
        assert_eq!(metrics.value(&name), 0.0, "{name}");
    }
    assert!(!skep.log().contains("not listed"), "{}", skep.log());
}

fn announces_have_the_clients_address(skep: &Skep, proxy: &Proxy) {
    let request = format!("GET {}", announce(1, 1001, "&left=1"));
    let forged = "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n";
    for fields in ["", forged] {
        let response = proxy.ask(TRACKER, &request, fields).bencoded();
        let address = match &response[&b"external ip"[..]] {
            bt_bencode::Value::ByteStr(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        };
        assert_eq!(address, CLIENT, "{fields:?}");
    }
    assert_eq!(skep.metrics().value("skep_torrents"), 1.0);
    let scrape = request.replace("/announce", "/scrape");
    assert!(proxy.ask(TRACKER, &scrape, "").bencoded().contains_key(&b"files"[..]));
}

fn the_admin_page_takes_a_login_and_changes_take_the_token(skep: &Skep, proxy: &Proxy) {
    let deny = "/api/v1/access/networks/deny/198.51.100.0%2F24";
    assert_eq!(proxy.ask(STATS, "GET /stats", "").status, 401);
    let page = proxy.ask(STATS, "GET /stats", LOGIN);
    assert!(page.status == 200 && page.text().contains("</html>"), "{page:?}");
    let sample = text(&mut proxy.open(STATS, "/stats/live", true));
    assert!(sample.is_object(), "{sample}");
    let body = "Content-Length: 0\r\n";
    for (fields, expected) in [(String::new(), 401), (format!("{LOGIN}{body}"), 401)] {
        let response = proxy.ask(STATS, &format!("PUT {deny}"), &fields);
        assert_eq!(response.status, expected, "{fields}: {response:?}");
    }
    for request in ["GET /save_state", "POST /api/v1/shutdown", "GET /api/v1/torrents"] {
        let response = proxy.ask(STATS, request, &format!("{LOGIN}{body}"));
        assert!([401, 403].contains(&response.status), "{request}: {response:?}");
    }
    let (status, list) = skep.get("/api/v1/access/networks/deny");
    assert!(status == 200 && !list.contains("198.51.100"), "{list}");
    // The public name does not lead there.
    assert_eq!(proxy.ask(TRACKER, "GET /metrics", LOGIN).status, 404);
}

/// Runs a subcommand through the proxy: exit code, standard output and error.
fn ask_through(proxy: &Proxy, words: &[&str], rest: &[&str]) -> (Option<i32>, String, String) {
    let url = format!("https://{STATS_HERE}:{}", proxy.address.port());
    let mut command = command();
    command.args(words).args(["--admin", &url, "--retries", "0", "--ca"]).arg(&proxy.authority);
    let output = command.args(rest).output().unwrap();
    let (stdout, stderr) = texts(&output);
    (output.status.code(), stdout, stderr)
}

fn subcommands_take_the_token(skep: &Skep, proxy: &Proxy) {
    let token = skep.folder().join("admin.token");
    let token = ["--token-file", token.to_str().unwrap()];
    let (code, stdout, stderr) = ask_through(proxy, &["status"], &token);
    assert!(code == Some(0) && stdout.contains("state      serving"), "{stdout}{stderr}");
    let (code, stdout, stderr) = ask_through(proxy, &["deny", "ports", "add", "25"], &token);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    for (rest, fault) in [(&[][..], "token missing"), (&["--token", "wrong"], "token wrong")] {
        let (code, _, stderr) = ask_through(proxy, &["status"], rest);
        assert!(code == Some(1) && stderr.contains(fault), "{stderr}");
    }
    // Without a login nothing but the API is open, and nothing of it without the token.
    let bearer = format!("Authorization: Bearer {}\r\n", skep.token());
    for target in ["/", "/stats", "/metrics", "/stats.json", "/save_state"] {
        let response = proxy.ask(STATS, &format!("GET {target}"), &bearer);
        assert_eq!(response.status, 401, "{target}: {response:?}");
    }
    for target in ["/api/v1/status", "/api/v1/openapi.json", "/api/../metrics", "/api//metrics"] {
        let response = proxy.ask(STATS, &format!("GET {target}"), "");
        assert!((401..=404).contains(&response.status), "{target}: {response:?}");
    }
}

/// A proxy that asks everybody for a login, programs included.
#[test]
fn a_login_in_front_of_the_api_is_named_as_such() {
    if !have(&["nginx"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (skep, address) = (skep(folder.path()), free_address());
    let (certificate, key) = certificate(folder.path());
    let users = folder.path().join("users");
    fs::write(&users, format!("operator:{CRYPT}\n")).unwrap();
    let lines = format!(
        "server {{ listen {address} ssl; ssl_certificate {}; ssl_certificate_key {};\n\
         auth_basic skep; auth_basic_user_file {};\n\
         location / {{ proxy_pass http://{}; }}\n\
         location /api/v1/passkeys {{ auth_basic off; proxy_pass http://127.0.0.1:1; }} }}\n",
        certificate.display(),
        key.display(),
        users.display(),
        skep.admin
    );
    let path = folder.path().join("nginx.conf");
    fs::write(&path, of_nginx(folder.path(), &lines)).unwrap();
    let proxy = Proxy::start(nginx(&path), folder.path(), address, &certificate);
    let token = skep.token();
    let (code, _, stderr) = ask_through(&proxy, &["status"], &["--token", &token]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("asks for a login, which is not the token"), "{stderr}");
    let (code, _, stderr) = ask_through(&proxy, &["passkey", "list"], &["--token", &token]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("a proxy there cannot reach it (HTTP status 502)"), "{stderr}");
}

#[test]
fn nginx_forwards_as_on_the_page() {
    if !have(&["nginx"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (skep, address) = (skep(folder.path()), free_address());
    let (certificate, key) = certificate(folder.path());
    let users = folder.path().join("users");
    fs::write(&users, format!("operator:{CRYPT}\n")).unwrap();
    let page = with(&block("nginx"), "    listen [::]:443 ssl;\n", "");
    let page =
        with(&page, &format!("server_name {STATS}"), format!("server_name {STATS} {STATS_HERE}"));
    let page = with(&page, "listen 443 ssl", format!("listen {address} ssl"));
    let page = with(&page, "127.0.0.1:6969", skep.tcp[0]);
    let page = with(&page, "127.0.0.1:6970", skep.admin);
    let page = with(&page, "/etc/nginx/skep.users", users.display());
    let live = format!("/etc/letsencrypt/live/{TRACKER}");
    let page = with(&page, &format!("{live}/fullchain.pem"), certificate.display());
    let page = with(&page, &format!("{live}/privkey.pem"), key.display());
    let path = folder.path().join("nginx.conf");
    fs::write(&path, of_nginx(folder.path(), &page)).unwrap();
    let proxy = Proxy::start(nginx(&path), folder.path(), address, &certificate);
    holds(&skep, &proxy);
}

/// A configuration of nginx that uses nothing outside of a folder, with these lines for HTTP.
fn of_nginx(folder: &Path, lines: &str) -> String {
    let here = folder.display();
    let mut text = format!(
        "daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\naccess_log off;\n"
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        text += &format!("{kind}_temp_path {here}/{kind};\n");
    }
    format!("{text}{lines}}}\n")
}

/// nginx in the foreground.
fn nginx(config: &Path) -> Command {
    let mut command = program("nginx");
    command.arg("-p").arg(config.parent().unwrap()).arg("-c").arg(config).args(["-e", "stderr"]);
    command
}

/// Nothing in a request shows a proxy that writes no header of its own, so it reads what this host
/// may read; the token is what it lacks.
#[test]
fn a_proxy_that_shows_nothing_of_itself_changes_nothing() {
    if !have(&["nginx"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (skep, address) = (skep(folder.path()), free_address());
    let (certificate, key) = certificate(folder.path());
    let lines = format!(
        "server {{ listen {address} ssl; ssl_certificate {}; ssl_certificate_key {};\n\
         location / {{ proxy_pass http://{}; proxy_http_version 1.1; }} }}\n",
        certificate.display(),
        key.display(),
        skep.admin
    );
    let path = folder.path().join("nginx.conf");
    fs::write(&path, of_nginx(folder.path(), &lines)).unwrap();
    let proxy = Proxy::start(nginx(&path), folder.path(), address, &certificate);
    assert_eq!(proxy.ask(STATS, "GET /stats", "").status, 200);
    let body = "Content-Length: 0\r\n";
    for request in
        ["PUT /api/v1/access/ports/deny/1234", "POST /api/v1/shutdown", "GET /save_state"]
    {
        let response = proxy.ask(STATS, request, body);
        assert_eq!(response.status, 401, "{request}: {response:?}");
    }
    let token = format!("Authorization: Bearer {}\r\n{body}", skep.token());
    let response = proxy.ask(STATS, "PUT /api/v1/access/ports/deny/1234", &token);
    assert_eq!(response.status, 200, "{response:?}");
}

#[test]
fn caddy_forwards_as_on_the_page() {
    if !have(&["caddy"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (skep, address) = (skep(folder.path()), free_address());
    let page = with(&block("caddy"), "127.0.0.1:6969", skep.tcp[0]);
    let page = with(&page, "127.0.0.1:6970", skep.admin);
    let page = with(&page, "HASH", BCRYPT);
    let page = with(&page, &format!("{STATS} {{"), format!("{STATS}, {STATS_HERE} {{"));
    // An authority of its own in place of Let's Encrypt, and nothing outside of the folder.
    let (ip, port) = (address.ip(), address.port());
    let options = format!(
        "{{\n\tadmin off\n\tdefault_bind {ip}\n\thttps_port {port}\n\
         \tauto_https disable_redirects\n\tlocal_certs\n\tskip_install_trust\n}}\n"
    );
    let path = folder.path().join("Caddyfile");
    fs::write(&path, options + &page).unwrap();
    let mut command = program("caddy");
    command.arg("run").arg("--adapter").arg("caddyfile").arg("--config").arg(path);
    command.env("XDG_DATA_HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
    command.env("HOME", folder.path());
    let root = folder.path().join("caddy/pki/authorities/local/root.crt");
    let proxy = Proxy::start(command, folder.path(), address, &root);
    holds(&skep, &proxy);
}

#[test]
fn haproxy_forwards_as_on_the_page() {
    if !have(&["haproxy"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (skep, address) = (skep(folder.path()), free_address());
    let (certificate, key) = certificate(folder.path());
    let both = folder.path().join("both.pem");
    let mut file = File::create(&both).unwrap();
    for part in [&certificate, &key] {
        file.write_all(&fs::read(part).unwrap()).unwrap();
    }
    let v6 = "    bind :::443 v6only ssl crt /etc/haproxy/skep.pem alpn http/1.1\n";
    let page = with(&block("haproxy"), v6, "");
    let page = with(&page, "bind :443", format!("bind {address}"));
    let page = with(&page, "/etc/haproxy/skep.pem", both.display());
    let page = with(&page, "127.0.0.1:6969", skep.tcp[0]);
    let page = with(&page, "127.0.0.1:6970", skep.admin);
    let page = with(&page, "password HASH", format!("password {CRYPT}"));
    let page = with(&page, &format!("-i {STATS}"), format!("-i {STATS} {STATS_HERE}"));
    let path = folder.path().join("haproxy.cfg");
    fs::write(&path, page).unwrap();
    let mut command = program("haproxy");
    command.arg("-db").arg("-f").arg(path);
    let proxy = Proxy::start(command, folder.path(), address, &certificate);
    holds(&skep, &proxy);
}
