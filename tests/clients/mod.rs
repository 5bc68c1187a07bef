//! What it takes to let real BitTorrent clients meet through a running skep: a torrent, and one
//! function per client. Everything lives on loopback and in one temporary folder.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use sha1::{Digest, Sha1};
use skep::types::{Family, InfoHash, ScrapeEntry};
use tempfile::TempDir;

use crate::common::{self, Skep};

/// Longest wait for one condition. A transfer takes a second, or 15 with Transmission, which looks
/// for whom to serve every 10 seconds; a busy host takes longer.
const PATIENCE_S: u64 = 60;
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Bytes of the file that is handed over: some pieces and a ragged one.
const PAYLOAD_BYTES: usize = 4_000_001;
/// Bytes of a piece.
const PIECE_BYTES: usize = 1 << 16;
/// The file's name, in the torrent and on disk.
const PAYLOAD_NAME: &str = "payload.bin";

/// Whether every program is here. Says which one is not; where CI asks for them, fails instead.
pub(crate) fn present(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| match **program {
        LIBTORRENT => !succeeds(Command::new(PYTHON).args(["-c", "import libtorrent"])),
        _ => !in_path(program),
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

/// Looks at a condition until it holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let polls_max = PATIENCE_S * 1000 / 50;
    for _ in 0..polls_max {
        if holds() {
            return;
        }
        thread::sleep(POLL); // between two looks, never instead of one
    }
    panic!("waited {PATIENCE_S} s in vain: {what}");
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file, a torrent of it, and a tracker for it, over one family.
pub(crate) struct Meeting {
    family: Family,
    tracker: SocketAddr,
    info_hash: InfoHash,
    payload: Vec<u8>,
    folder: TempDir,
    _skep: Skep,
}

impl Meeting {
    /// A running tracker and a fresh torrent that names it.
    pub(crate) fn over(family: Family) -> Self {
        let folder = TempDir::new().unwrap();
        let skep = Skep::start(&[]);
        let tracker = *skep.udp.iter().find(|it| Family::of(it.ip()) == family).unwrap();
        let mut payload = vec![0; PAYLOAD_BYTES];
        fastrand::Rng::with_seed(u64::from(tracker.port())).fill(&mut payload);
        let info = info(&payload);
        let info_hash = InfoHash(Sha1::digest(&info).into());
        let torrent = metainfo(&format!("udp://{tracker}/announce"), &info);
        fs::write(folder.path().join("a.torrent"), torrent).unwrap();
        for role in [Role::Seeder, Role::Leecher] {
            fs::create_dir(folder.path().join(role.folder())).unwrap();
        }
        fs::write(folder.path().join(Role::Seeder.folder()).join(PAYLOAD_NAME), &payload).unwrap();
        Self { family, tracker, info_hash, payload, folder, _skep: skep }
    }

    fn torrent(&self) -> PathBuf {
        self.folder.path().join("a.torrent")
    }

    fn downloads(&self, role: Role) -> PathBuf {
        self.folder.path().join(role.folder())
    }

    /// What the tracker says of the torrent.
    fn scrape(&self) -> ScrapeEntry {
        common::Client::connect(self.tracker).scrape(&[self.info_hash])[0]
    }

    /// Waits until the tracker has heard of a client.
    pub(crate) fn wait_for(&self, seeders: u32, leechers: u32) {
        wait_until(&format!("{seeders} seeders and {leechers} leechers are known"), || {
            let counts = self.scrape();
            (counts.seeders, counts.leechers) == (seeders, leechers)
        });
    }

    /// Waits until the leecher has told the tracker that it is done, and its file is the seeder's.
    pub(crate) fn wait_for_transfer(&self) {
        wait_until("the tracker counts a completed download and two seeders", || {
            let done = ScrapeEntry { seeders: 2, completed: 1, leechers: 0 };
            self.scrape() == done
        });
        let file = self.downloads(Role::Leecher).join(PAYLOAD_NAME);
        let checksum = Sha1::digest(&self.payload);
        wait_until("the file has arrived", || {
            fs::read(&file).is_ok_and(|it| Sha1::digest(it) == checksum)
        });
    }

    /// Everything that was logged, for a test that fails.
    fn logs(&self) -> String {
        let files = fs::read_dir(self.folder.path()).unwrap().map(|it| it.unwrap().path());
        let logs = files.filter(|it| it.extension().is_some_and(|it| it == "log"));
        logs.map(|it| format!("== {}\n{}\n", it.display(), lossy(&it))).collect()
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}", self.logs());
        }
    }
}

fn lossy(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

/// The info dictionary of a torrent with one file. `private` keeps the clients from asking anybody
/// but the tracker (BEP 27), whatever their options say.
fn info(payload: &[u8]) -> Vec<u8> {
    let pieces: Vec<u8> = payload.chunks(PIECE_BYTES).flat_map(Sha1::digest).collect();
    let mut info = Vec::new();
    let name = PAYLOAD_NAME;
    let sizes = (payload.len(), name.len(), PIECE_BYTES, pieces.len());
    let head = format!(
        "d6:lengthi{}e4:name{}:{name}12:piece lengthi{}e6:pieces{}:",
        sizes.0, sizes.1, sizes.2, sizes.3
    );
    info.extend_from_slice(head.as_bytes());
    info.extend_from_slice(&pieces);
    info.extend_from_slice(b"7:privatei1ee");
    info
}

fn metainfo(announce: &str, info: &[u8]) -> Vec<u8> {
    let head = format!("d8:announce{}:{announce}4:info", announce.len());
    [head.as_bytes(), info, b"e"].concat()
}

/// What a client does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Has the file.
    Seeder,
    /// Wants it.
    Leecher,
}

impl Role {
    fn folder(self) -> &'static str {
        match self {
            Self::Seeder => "seeder",
            Self::Leecher => "leecher",
        }
    }
}

/// Debian's Python, the one that python3-libtorrent belongs to.
const PYTHON: &str = "/usr/bin/python3";
/// How [`present`] is asked for libtorrent.
pub(crate) const LIBTORRENT: &str = "python3-libtorrent";

/// A client at work; it ends with this value.
pub(crate) struct Client {
    _process: Running,
}

/// A way to start a client in a role.
pub(crate) type Start = fn(&Meeting, Role) -> Client;

fn spawn(meeting: &Meeting, role: Role, command: &mut Command) -> Client {
    let log = meeting.folder.path().join(format!("{}.log", role.folder()));
    let log = File::create(log).unwrap();
    let child = command
        .current_dir(meeting.folder.path())
        .env("HOME", meeting.folder.path())
        .stdin(Stdio::piped()) // held open by `Client`: libtorrent's helper ends with it
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Client { _process: Running(child) }
}

/// aria2. Its UDP tracker client shares the DHT's socket and does not exist without it, so DHT is
/// on, but knows no node, has no entry point, and must not be asked about a private torrent.
pub(crate) fn aria2(meeting: &Meeting, role: Role) -> Client {
    let role_folder = meeting.downloads(role);
    let mut command = Command::new("aria2c");
    command
        .args(["--no-conf", "--enable-dht=true", "--enable-dht6=false"])
        .args(["--bt-enable-lpd=false", "--enable-peer-exchange=false", "--follow-torrent=mem"])
        .args(["--async-dns=false", "--disable-ipv6=true", "--interface=127.0.0.1"])
        .args(["--listen-port=20000-29999", "--dht-listen-port=20000-29999"])
        .args(["--file-allocation=none", "--seed-ratio=0", "--bt-seed-unverified=true"])
        .args(["--summary-interval=0", "--console-log-level=notice"])
        .arg(format!("--stop-with-process={}", std::process::id()))
        .arg(format!("--dht-file-path={}", role_folder.with_extension("dht").display()))
        .arg(format!("--dir={}", role_folder.display()))
        .arg(meeting.torrent());
    spawn(meeting, role, &mut command)
}

/// Writes the settings Transmission starts with; says in which folder.
fn transmission_settings(meeting: &Meeting, role: Role) -> PathBuf {
    let folder = meeting.downloads(role).with_extension("settings");
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
        "peer-port-random-on-start": true,
        "rpc-enabled": false,
    });
    fs::write(folder.join("settings.json"), settings.to_string()).unwrap();
    folder
}

/// Transmission's one-torrent client. Refuses to call peers on 127.0.0.1 but takes their calls: as
/// a leecher it has to be there before the seeder.
pub(crate) fn transmission_cli(meeting: &Meeting, role: Role) -> Client {
    let settings = transmission_settings(meeting, role);
    let mut command = Command::new("transmission-cli");
    command.arg("--config-dir").arg(settings).arg("--no-portmap");
    command.arg("--download-dir").arg(meeting.downloads(role)).arg(meeting.torrent());
    spawn(meeting, role, &mut command)
}

/// Transmission's daemon, given the torrent by its watched folder.
pub(crate) fn transmission_daemon(meeting: &Meeting, role: Role) -> Client {
    let settings = transmission_settings(meeting, role);
    let watched = meeting.downloads(role).with_extension("watched");
    fs::create_dir(&watched).unwrap();
    fs::copy(meeting.torrent(), watched.join("a.torrent")).unwrap();
    let mut command = Command::new("transmission-daemon");
    command.args(["--foreground", "--log-info"]).arg("--config-dir").arg(settings);
    command.arg("--watch-dir").arg(watched).arg("--download-dir").arg(meeting.downloads(role));
    spawn(meeting, role, &mut command)
}

/// libtorrent, which most clients in use are built on.
pub(crate) fn libtorrent(meeting: &Meeting, role: Role) -> Client {
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/libtorrent_client.py");
    let interface = match meeting.family {
        Family::V4 => "127.0.0.1:0",
        Family::V6 => "[::1]:0",
    };
    let mut command = Command::new(PYTHON);
    command.args([helper, interface]).arg(meeting.torrent()).arg(meeting.downloads(role));
    spawn(meeting, role, &mut command)
}
