//! A real skep on ports of the kernel's choice, and the clients that talk to it.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

pub(crate) mod conversations;
pub(crate) mod namespaces;
#[cfg(feature = "cluster")]
pub(crate) mod nats;
pub(crate) mod seccomp;
pub(crate) mod tcp_clients;
pub(crate) mod udp_load;
pub(crate) mod webtorrent_workers;

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{
    Announcement, Response, decode, encode_announce, encode_connect, encode_scrape,
};
use skep::types::{AnnounceResponse, Event, Family, InfoHash, PeerId, ScrapeEntry};

/// How long anything may take before a test gives up on it: far longer than on the busiest host.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Says that something was not tested, or fails where CI asks for everything.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let required = std::env::var("SKEP_REQUIRE_EXTERNAL").is_ok_and(|it| it == "1");
    assert!(!required, "{why}, and SKEP_REQUIRE_EXTERNAL=1 asks for it");
    eprintln!("skipped: {why}");
}

/// Whether io_uring works here; says so where it does not.
pub(crate) fn has_io_uring() -> bool {
    match skep::sys::probe::probe() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// Whether IPv6 works here; says so where it does not.
pub(crate) fn has_ipv6() -> bool {
    let has = UdpSocket::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("skipped: IPv6 loopback");
    }
    has
}

/// Whether strace is here and may trace; says so where not. Where CI asks for it, a strace that is
/// missing is a failure; one that may not trace is not.
pub(crate) fn has_strace() -> bool {
    let tried = Command::new("strace").args(["-D", "-e", "trace=none", "/bin/true"]).status();
    if let Err(error) = &tried {
        let required = std::env::var("SKEP_REQUIRE_EXTERNAL").is_ok_and(|it| it == "1");
        assert!(!required, "strace: {error}, and SKEP_REQUIRE_EXTERNAL=1 asks for it");
    }
    let works = tried.is_ok_and(|it| it.success());
    if !works {
        eprintln!("skipped: no strace here, or it may not trace");
    }
    works
}

/// The backends that work here.
pub(crate) fn backends() -> Vec<&'static str> {
    if has_io_uring() { vec!["mmsg", "uring"] } else { vec!["mmsg"] }
}

/// The program with the environment cleaned of all that it reads.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SKEP_") && name != "SKEP_REQUIRE_EXTERNAL" {
            command.env_remove(name);
        }
    }
    let unset = [
        "STATE_DIRECTORY",
        "XDG_STATE_HOME",
        "HOME",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
    ];
    unset.iter().for_each(|text| {
        command.env_remove(text);
    });
    command
}

/// One test of this program alone, in a process of its own: `module` is the test's
/// `module_path!()`. A child that ran no test at all ends well too, so the caller must look for
/// what only the test prints, or use [`assert_passed`].
pub(crate) fn child_test(module: &str, test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(child_arguments(module, test));
    command
}

/// The arguments by which this program runs one test alone.
pub(crate) fn child_arguments(module: &str, test: &str) -> [String; 3] {
    let name = match module.split_once("::") {
        Some((_program, inner)) => format!("{inner}::{test}"),
        None => test.to_owned(),
    };
    ["--exact".to_owned(), name, "--nocapture".to_owned()]
}

/// Holds that a child of [`child_test`] ran its test, and that the test passed.
pub(crate) fn assert_passed(output: &Output) {
    let (stdout, stderr) = texts(output);
    let has_run = stdout.contains("1 passed");
    assert!(output.status.success() && has_run, "{}\n{stdout}\n{stderr}", output.status);
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

/// Holds that the program ends at once with 2 for each of these arguments, and says why.
pub(crate) fn assert_bad_usage(cases: &[(&[&str], &str)]) {
    for (arguments, said) in cases {
        let output = run(arguments);
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {stderr}");
        assert!(stdout.is_empty() && stderr.contains(said), "{arguments:?}\n{stderr}");
    }
}

/// Standard output and error as text.
pub(crate) fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// A running skep; killed when dropped.
pub(crate) struct Skep {
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: Arc<Log>,
    /// Fills the log.
    reader: JoinHandle<()>,
    /// The ready line.
    pub(crate) ready: String,
    /// UDP addresses, in order.
    pub(crate) udp: Vec<SocketAddr>,
    /// Addresses of HTTP and WebSocket, in order.
    pub(crate) tcp: Vec<SocketAddr>,
    /// Addresses of HTTPS and wss, in order.
    pub(crate) tls: Vec<SocketAddr>,
    /// The admin address.
    pub(crate) admin: SocketAddr,
    /// Its state directory, gone with it.
    pub(crate) state: Option<tempfile::TempDir>,
    /// Where the token of its API is, unless a variable names one.
    token: PathBuf,
    /// What it was at the start.
    token_at_start: String,
}

/// What it has written to standard error so far.
#[derive(Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

impl Skep {
    /// Starts on 127.0.0.1 and, where the host has it, [::1], with two workers, and further
    /// arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = command();
        command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
        if has_ipv6() {
            command.args(["--listen", "[::1]:0"]);
        }
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts a prepared command, unless it says otherwise with the admin listener on a port of the
    /// kernel's choice and a state directory of its own.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let state = tempfile::tempdir().unwrap();
        let named = command.get_envs().find(|it| it.0 == "STATE_DIRECTORY").and_then(|it| it.1);
        let token = named.map_or_else(|| state.path(), Path::new).join("admin.token");
        let set = command.get_envs().find(|it| it.0 == "SKEP__ADMIN__TOKEN").and_then(|it| it.1);
        let set = set.map(|it| it.to_str().unwrap().to_owned());
        if named.is_none() {
            command.env("STATE_DIRECTORY", state.path());
        }
        if command.get_args().all(|it| it != "--admin") {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let (stderr, shared) = (child.stderr.take().unwrap(), log.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = writeln!(shared.text.lock().unwrap(), "{line}");
                shared.grown.notify_all();
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        if !ready.starts_with("ready ") {
            let _ = child.kill();
            let _ = reader.join();
            panic!("{ready:?}\n{}", log.text.lock().unwrap());
        }
        let values = |key| ready.split_whitespace().filter_map(move |it| it.strip_prefix(key));
        let addresses = |key| values(key).map(|it| it.parse().unwrap()).collect();
        let [udp, tcp, tls] = ["udp=", "tcp=", "tls="].map(addresses);
        let admin = values("admin=").next().unwrap().parse().unwrap();
        let state = Some(state);
        let kept = || std::fs::read_to_string(&token).unwrap_or_default().trim().to_owned();
        let token_at_start = set.unwrap_or_else(kept);
        Self {
            child,
            stdout,
            log,
            reader,
            udp,
            tcp,
            tls,
            admin,
            state,
            token,
            token_at_start,
            ready,
        }
    }

    /// Asks its API for something, showing the token: status and body.
    pub(crate) fn ask(&self, request: (&str, &str), body: &str) -> (u16, String) {
        http_ask(self.admin, &self.token(), request, body)
    }

    /// Its state directory.
    pub(crate) fn folder(&self) -> &Path {
        self.token.parent().unwrap()
    }

    /// The token that it has made, or that a variable named.
    pub(crate) fn token(&self) -> String {
        let kept = std::fs::read_to_string(&self.token);
        kept.map_or_else(|_| self.token_at_start.clone(), |it| it.trim().to_owned())
    }

    /// A value of the ready line.
    pub(crate) fn ready_value(&self, key: &str) -> &str {
        let mut words = self.ready.split_whitespace();
        words.find_map(|it| it.strip_prefix(key)?.strip_prefix('=')).unwrap()
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let done = Command::new("/bin/sh").args(["-c", &format!("kill -{name} {pid}")]).status();
        assert!(done.unwrap().success());
    }

    /// Whether its process has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, and for the end of its log.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        eventually("the log ends", || self.reader.is_finished());
        status.unwrap()
    }

    /// What it wrote to standard output behind the ready line. Call after its end.
    pub(crate) fn rest_of_stdout(&mut self) -> String {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Waits until the log holds `needle`, and returns all of the log.
    pub(crate) fn log_with(&self, needle: &str) -> String {
        let text = self.log.text.lock().unwrap();
        let lacks = |text: &mut String| !text.contains(needle);
        let (text, timeout) = self.log.grown.wait_timeout_while(text, DEADLINE, lacks).unwrap();
        assert!(!timeout.timed_out(), "no {needle:?} in\n{text}");
        text.clone()
    }

    /// The log so far: all of it after [`Skep::wait`]; else what has just been written may lack.
    pub(crate) fn log(&self) -> String {
        self.log.text.lock().unwrap().clone()
    }

    /// A page of the admin listener: status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        http_get(self.admin, path)
    }

    /// The metrics, read and checked by line.
    pub(crate) fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        Metrics { text }
    }
}

impl Drop for Skep {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}{}", self.ready, self.log());
        }
    }
}

/// A scrape of /metrics.
pub(crate) struct Metrics {
    /// As it came.
    pub(crate) text: String,
}

impl Metrics {
    /// The value of one series, written as Prometheus writes it; 0 where it is absent.
    pub(crate) fn value(&self, series: &str) -> f64 {
        let line = self.text.lines().find_map(|it| it.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |it| it.parse().unwrap())
    }

    /// The sum of all series of a name whose labels hold `label`.
    pub(crate) fn sum(&self, name: &str, label: &str) -> f64 {
        let of_name = |line: &&str| {
            line.strip_prefix(name).is_some_and(|text| text.starts_with('{'))
                && line.contains(label)
        };
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        self.text.lines().filter(of_name).map(value).sum()
    }

    /// How many series there are.
    pub(crate) fn series(&self) -> usize {
        self.text.lines().filter(|it| !it.starts_with('#') && !it.is_empty()).count()
    }
}

/// Fetches a page over plain HTTP/1.1.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if is_chunked { unchunked(body) } else { body.to_owned() };
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

/// What came in chunks (RFC 9112, 7.1).
fn unchunked(mut text: &str) -> String {
    let mut body = String::new();
    loop {
        let (length, rest) = text.split_once("\r\n").unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        body += &rest[..length];
        if length == 0 {
            return body;
        }
        text = &rest[length + 2..];
    }
}

/// Asks an admin listener for something with a token and a body: status and body of the response.
pub(crate) fn http_ask(
    address: SocketAddr,
    token: &str,
    (method, target): (&str, &str),
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Sockets of both transports on one port of 127.0.0.1. One that is free for one of them may be in
/// use by the other: then another is tried.
pub(crate) fn udp_and_tcp() -> (UdpSocket, TcpListener) {
    let tried = std::iter::repeat_with(|| {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind(udp.local_addr().unwrap());
        tcp.map(|tcp| (udp, tcp))
    });
    tried.take(100).find_map(Result::ok).expect("a port that both may have")
}

/// Waits until something holds, without pausing longer than it takes others to run.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Whether a process takes SIGTERM itself by now, as it does from early in its start.
pub(crate) fn takes_sigterm(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|it| it.strip_prefix("SigCgt:\t")).unwrap_or("0");
    u64::from_str_radix(caught, 16).unwrap() >> (libc::SIGTERM - 1) & 1 == 1
}

/// A client of one address, as BEP 15 has it.
pub(crate) struct Client {
    /// Its socket, connected.
    pub(crate) socket: UdpSocket,
    /// What connect returned.
    pub(crate) connection_id: u64,
    family: Family,
    transactions: u32,
}

impl Client {
    /// A client that has connected.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let mut client = Self::unconnected(address);
        client.connection_id = client.ask_connection_id();
        client
    }

    /// A client that has sent nothing.
    pub(crate) fn unconnected(address: SocketAddr) -> Self {
        let local = match (address.is_ipv4(), address.ip().is_loopback()) {
            (true, true) => "127.0.0.1:0",
            (true, false) => "0.0.0.0:0",
            (false, true) => "[::1]:0",
            (false, false) => "[::]:0",
        };
        let socket = UdpSocket::bind(local).unwrap();
        socket.connect(address).unwrap();
        Self::over(socket)
    }

    /// A client that has sent nothing, on a connected socket.
    pub(crate) fn over(socket: UdpSocket) -> Self {
        let family = Family::of(socket.peer_addr().unwrap().ip());
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, connection_id: 0, family, transactions: 0 }
    }

    /// Asks for a connection id.
    pub(crate) fn ask_connection_id(&mut self) -> u64 {
        let response = self.ask(encode_connect);
        let Response::Connected(id) = self.read(&response) else { panic!("{response:?}") };
        id
    }

    /// Announces; returns the answer and the compact peers.
    pub(crate) fn announce(&mut self, announcement: &Announcement) -> (AnnounceResponse, Vec<u8>) {
        let id = self.connection_id;
        let response =
            self.ask(|transaction, out| encode_announce(id, transaction, announcement, out));
        match self.read(&response) {
            Response::Announced(response, peers) => (response, peers.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    /// Announces what is refused; returns the text.
    pub(crate) fn announce_refused(&mut self, announcement: &Announcement) -> String {
        let id = self.connection_id;
        let response =
            self.ask(|transaction, out| encode_announce(id, transaction, announcement, out));
        match self.read(&response) {
            Response::Error(text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Scrapes.
    pub(crate) fn scrape(&mut self, torrents: &[InfoHash]) -> Vec<ScrapeEntry> {
        let id = self.connection_id;
        let response = self.ask(|transaction, out| encode_scrape(id, transaction, torrents, out));
        match self.read(&response) {
            Response::Scraped(entries) => entries.iter().collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Sends bytes and waits for nothing.
    pub(crate) fn send(&self, datagram: &[u8]) {
        self.socket.send(datagram).unwrap();
    }

    fn ask(&mut self, encode: impl FnOnce(TransactionId, &mut [u8]) -> usize) -> Vec<u8> {
        self.transactions += 1;
        let transaction = TransactionId(self.transactions.to_be_bytes());
        let mut buffer = vec![0; 2048];
        let bytes = encode(transaction, &mut buffer);
        self.send(&buffer[..bytes]);
        let bytes = self.socket.recv(&mut buffer).expect("an answer");
        buffer.truncate(bytes);
        assert_eq!(buffer[4..8], transaction.0);
        buffer
    }

    fn read<'a>(&self, response: &'a [u8]) -> Response<'a> {
        decode(response, self.family).unwrap().1
    }
}

/// An announce of a newcomer that still lacks everything.
pub(crate) fn leecher(torrent: u8, port: u16) -> Announcement {
    Announcement {
        info_hash: InfoHash([torrent; 20]),
        peer_id: PeerId(*b"-XX0001-abcdefghijkl"),
        downloaded: 0,
        left: 1000,
        uploaded: 0,
        event: Event::Started,
        numwant: -1,
        port,
        key: [0; 4],
    }
}

/// The same, of one that lacks nothing.
pub(crate) fn seeder(torrent: u8, port: u16) -> Announcement {
    Announcement { left: 0, ..leecher(torrent, port) }
}

/// Denies a port, so that announces of it are refused.
pub(crate) fn deny_port(skep: &Skep, port: u16) {
    let target = format!("/api/v1/access/ports/deny/{port}");
    let answered = skep.ask(("PUT", &target), "");
    assert_eq!(answered.0, 200, "{answered:?}");
}
