//! The clients that Debian has, and how each is told to meet others through the tracker alone.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::meeting::{Client, Meeting, Role, Via};
use super::webtorrent;

/// A client program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// What has to be installed for it.
    pub(super) needs: &'static [&'static str],
    /// Starts it.
    pub(super) start: fn(&Meeting, Role, Via) -> Client,
}

/// A program, and how it speaks to the tracker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Party {
    pub(super) program: Program,
    pub(super) via: Via,
}

impl Program {
    /// Speaks like this to the tracker.
    pub(crate) const fn via(self, via: Via) -> Party {
        Party { program: self, via }
    }
}

/// aria2.
pub(crate) const ARIA2: Program = Program { needs: &["aria2c"], start: aria2 };
/// libtorrent, which most clients in use are built on.
pub(crate) const LIBTORRENT: Program = Program { needs: &[PYTHON_LIBTORRENT], start: libtorrent };
/// Transmission's one-torrent client. Refuses to call peers on 127.0.0.1 but takes their calls: as
/// a leecher it has to be there before the seeder.
pub(crate) const TRANSMISSION_CLI: Program =
    Program { needs: &["transmission-cli"], start: transmission_cli };
/// Transmission's daemon, which is as shy.
pub(crate) const TRANSMISSION_DAEMON: Program =
    Program { needs: &["transmission-daemon"], start: transmission_daemon };

/// Debian's Python, the one that python3-libtorrent belongs to.
const PYTHON: &str = "/usr/bin/python3";
/// How [`present`] is asked for libtorrent.
const PYTHON_LIBTORRENT: &str = "python3-libtorrent";

/// Whether everything is here. Says what is not; where CI asks for it, fails instead.
pub(super) fn present(needs: &[&str]) -> bool {
    let missing = needs.iter().find(|text| match **text {
        PYTHON_LIBTORRENT => !succeeds(Command::new(PYTHON).args(["-c", "import libtorrent"])),
        webtorrent::PACKAGES => webtorrent::packages().is_none(),
        program => !in_path(program),
    });
    let Some(missing) = missing else { return true };
    println!("skipped: {missing} not found");
    let required = std::env::var_os("SKEP_REQUIRE_EXTERNAL").is_some_and(|it| it == "1");
    assert!(!required, "{missing} not found, and SKEP_REQUIRE_EXTERNAL=1 asks for it");
    false
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|it| it.success())
}

/// aria2. Its UDP tracker client shares the DHT's socket and does not exist without it, so DHT is
/// on, but knows no node, has no entry point, and must not be asked about a private torrent.
fn aria2(meeting: &Meeting, role: Role, via: Via) -> Client {
    let mut command = Command::new("aria2c");
    command
        .args(["--no-conf", "--enable-dht6=false"])
        .arg(format!("--enable-dht={}", via == Via::Udp))
        .args(["--bt-enable-lpd=false", "--enable-peer-exchange=false", "--follow-torrent=mem"])
        .args(["--async-dns=false", "--disable-ipv6=true"])
        .arg(format!("--interface={}", meeting.client_ip()))
        .args(["--listen-port=20000-29999", "--dht-listen-port=20000-29999"])
        .args(["--file-allocation=none", "--seed-ratio=0", "--bt-seed-unverified=true"])
        .args(["--summary-interval=0", "--console-log-level=notice"])
        .arg(format!("--stop-with-process={}", std::process::id()))
        .arg(format!("--dht-file-path={}", meeting.file(role, "dht").display()))
        .arg(format!("--dir={}", meeting.downloads(role).display()));
    if let Some(root) = meeting.root_certificate() {
        command.arg(format!("--ca-certificate={}", root.display()));
    }
    command.arg(meeting.torrent(role));
    Client::spawn(meeting, role, &mut command)
}

/// A port for a client that takes one number and does not try a second (Transmission does not
/// start listening at all where its port is taken). It is below the range the kernel gives out
/// (`ip_local_port_range`), so no passing connection can hold it; two clients of this process
/// never get the same one, and those of another process begin elsewhere.
fn peer_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 10_000; // aria2's begin behind them
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(257); // far from the next process's
    let free = (0..COUNT).find_map(|_| {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + u16::try_from(begin.wrapping_add(taken) % COUNT).unwrap();
        let address = (Ipv4Addr::LOCALHOST, port);
        let free = TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        free.then_some(port)
    });
    free.expect("a free port below the kernel's range")
}

/// Writes the settings Transmission starts with; says in which folder.
fn transmission_settings(meeting: &Meeting, role: Role) -> PathBuf {
    let folder = meeting.file(role, "settings");
    fs::create_dir(&folder).unwrap();
    let settings = serde_json::json!({
        "bind-address-ipv4": "127.0.0.1",
        "bind-address-ipv6": "::1",
        "blocklist-enabled": false,
        "dht-enabled": false,
        "lpd-enabled": false,
        "pex-enabled": false,
        "utp-enabled": false,
        "port-forwarding-enabled": false,
        "peer-port": peer_port(),
        "rpc-enabled": false,
    });
    fs::write(folder.join("settings.json"), settings.to_string()).unwrap();
    folder
}

/// Transmission leaves certificates to curl.
fn transmission(program: &str, meeting: &Meeting, role: Role) -> Command {
    let mut command = Command::new(program);
    command.arg("--config-dir").arg(transmission_settings(meeting, role));
    command.arg("--download-dir").arg(meeting.downloads(role));
    if let Some(root) = meeting.root_certificate() {
        command.env("CURL_CA_BUNDLE", root);
    }
    command
}

fn transmission_cli(meeting: &Meeting, role: Role, _: Via) -> Client {
    let mut command = transmission("transmission-cli", meeting, role);
    command.arg("--no-portmap").arg(meeting.torrent(role));
    Client::spawn(meeting, role, &mut command)
}

/// The daemon is given the torrent by its watched folder.
fn transmission_daemon(meeting: &Meeting, role: Role, _: Via) -> Client {
    let watched = meeting.file(role, "watched");
    fs::create_dir(&watched).unwrap();
    fs::copy(meeting.torrent(role), watched.join("a.torrent")).unwrap();
    let mut command = transmission("transmission-daemon", meeting, role);
    command.args(["--foreground", "--log-info"]).arg("--watch-dir").arg(watched);
    Client::spawn(meeting, role, &mut command)
}

/// A session of many torrents, to be told its tracker and how many; `None` if it is not here.
pub(crate) fn libtorrent_rush() -> Option<Command> {
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/libtorrent_rush.py");
    let mut command = Command::new(PYTHON);
    command.args([helper, "127.0.0.1:0"]).stdin(Stdio::piped());
    present(&[PYTHON_LIBTORRENT]).then_some(command)
}

fn libtorrent(meeting: &Meeting, role: Role, _: Via) -> Client {
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/libtorrent_client.py");
    let interface = SocketAddr::new(meeting.client_ip(), 0).to_string();
    let mut command = Command::new(PYTHON);
    command.args([helper, &interface]).arg(meeting.torrent(role)).arg(meeting.downloads(role));
    if let Some(root) = meeting.root_certificate() {
        command.env("SSL_CERT_FILE", root);
    }
    Client::spawn(meeting, role, &mut command)
}
