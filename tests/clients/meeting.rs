//! A file, a torrent of it for each side, and a tracker for both.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use sha1::{Digest, Sha1};
use skep::types::{Family, InfoHash, ScrapeEntry};
use tempfile::TempDir;

use super::authority::Authority;
use super::page::PageServer;
use super::programs::{Party, present};
use crate::support::{self, Skep};

/// Longest wait for one condition. A transfer takes a second, or 15 with Transmission, which looks
/// for whom to serve every 10 seconds; a busy host takes longer, where a WebRTC connection may need
/// a second try.
const PATIENCE_S: u64 = 180;
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Looks at a client that was asked to end, before it is killed.
const FAREWELL_POLLS_MAX: u32 = 60;
/// Variables, also in capitals, that would lead a client past loopback.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "ftp_proxy"];
/// Bytes of the file that is handed over: some pieces and a ragged one.
const PAYLOAD_BYTES: usize = 4_000_001;
/// Bytes of a piece.
pub(super) const PIECE_BYTES: usize = 1 << 16;
/// The file's name, in the torrent and on disk.
pub(super) const PAYLOAD_NAME: &str = "payload.bin";

/// How a client speaks to the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// BEP 15.
    Udp,
    /// BEP 3.
    Http,
    /// The same within TLS.
    Https,
    /// WebTorrent.
    Ws,
    /// The same within TLS.
    Wss,
    /// Two trackers in one torrent, UDP and WebTorrent: a client that bridges both worlds.
    UdpAndWs,
}

impl Via {
    fn needs_tls(self) -> bool {
        matches!(self, Self::Https | Self::Wss)
    }
}

/// What a client does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Has the file.
    Seeder,
    /// Wants it.
    Leecher,
    /// Wants it too, from the seeder, and is the only one that the leecher can reach.
    Bridge,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Seeder => "seeder",
            Self::Leecher => "leecher",
            Self::Bridge => "bridge",
        }
    }
}

/// A file, torrents of it, and a tracker for it.
pub(crate) struct Meeting {
    family: Family,
    parties: Vec<(Role, Party)>,
    info_hash: InfoHash,
    payload: Vec<u8>,
    authority: Option<Authority>,
    skep: Skep,
    /// Where the clients listen.
    client_ip: IpAddr,
    folder: TempDir,
}

impl Meeting {
    /// A running tracker and a fresh torrent that names it; none where a program is not installed.
    /// Everyone comes over one family.
    pub(crate) fn of(family: Family, seeder: Party, leecher: Party) -> Option<Self> {
        Self::between(family, vec![(Role::Seeder, seeder), (Role::Leecher, leecher)])
    }

    /// The same through a tracker that runs already, for clients at this address, without TLS.
    pub(crate) fn through(
        skep: Skep,
        client_ip: IpAddr,
        seeder: Party,
        leecher: Party,
    ) -> Option<Self> {
        let parties = vec![(Role::Seeder, seeder), (Role::Leecher, leecher)];
        let is_there = parties.iter().all(|(_, it)| present(it.program.needs));
        is_there.then(|| Self::with(TempDir::new().unwrap(), None, skep, client_ip, parties))
    }

    /// The same for three, who come over IPv4.
    pub(crate) fn bridged(seeder: Party, bridge: Party, leecher: Party) -> Option<Self> {
        let parties =
            vec![(Role::Seeder, seeder), (Role::Bridge, bridge), (Role::Leecher, leecher)];
        Self::between(Family::V4, parties)
    }

    fn between(family: Family, parties: Vec<(Role, Party)>) -> Option<Self> {
        if !parties.iter().all(|(_, it)| present(it.program.needs)) {
            return None;
        }
        let folder = TempDir::new().unwrap();
        let tls = parties.iter().any(|(_, it)| it.via.needs_tls());
        let authority = tls.then(|| Authority::found(folder.path()));
        let skep = start_skep(folder.path(), authority.as_ref());
        let client_ip = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        Some(Self::with(folder, authority, skep, client_ip, parties))
    }

    fn with(
        folder: TempDir,
        authority: Option<Authority>,
        skep: Skep,
        client_ip: IpAddr,
        parties: Vec<(Role, Party)>,
    ) -> Self {
        let family = Family::of(client_ip);
        let mut payload = vec![0; PAYLOAD_BYTES];
        fastrand::Rng::with_seed(u64::from(skep.admin.port())).fill(&mut payload);
        let info = info(&payload);
        let info_hash = InfoHash(Sha1::digest(&info).into());
        let meeting =
            Self { family, parties, info_hash, payload, authority, skep, client_ip, folder };
        for (role, party) in &meeting.parties {
            fs::create_dir(meeting.downloads(*role)).unwrap();
            fs::write(meeting.torrent(*role), metainfo(&meeting.urls(party.via), &info)).unwrap();
        }
        fs::write(meeting.downloads(Role::Seeder).join(PAYLOAD_NAME), &meeting.payload).unwrap();
        meeting
    }

    /// The tracker.
    pub(crate) fn skep(&self) -> &Skep {
        &self.skep
    }

    /// Lets a client begin. It ends with what is returned.
    pub(crate) fn start(&self, role: Role) -> Client {
        let (_, party) = self.parties.iter().find(|(it, _)| *it == role).unwrap();
        (party.program.start)(self, role, party.via)
    }

    /// Where the clients listen.
    pub(super) fn client_ip(&self) -> IpAddr {
        self.client_ip
    }

    /// The tracker's announce URLs.
    pub(super) fn urls(&self, via: Via) -> Vec<String> {
        let url = |scheme, addresses: &[SocketAddr]| {
            let of_family = |it: &&SocketAddr| Family::of(it.ip()) == self.family;
            format!("{scheme}://{}/announce", addresses.iter().find(of_family).unwrap())
        };
        let (udp, tcp, tls) = (&self.skep.udp, &self.skep.tcp, &self.skep.tls);
        match via {
            Via::Udp => vec![url("udp", udp)],
            Via::Http => vec![url("http", tcp)],
            Via::Https => vec![url("https", tls)],
            Via::Ws => vec![url("ws", tcp)],
            Via::Wss => vec![url("wss", tls)],
            Via::UdpAndWs => vec![url("udp", udp), url("ws", tcp)],
        }
    }

    /// The torrent's name.
    pub(super) fn info_hash_in_hex(&self) -> String {
        self.info_hash.0.iter().map(|it| format!("{it:02x}")).collect()
    }

    /// What clients have to trust. Without TLS there is none.
    pub(super) fn root_certificate(&self) -> Option<&Path> {
        self.authority.as_ref().map(|it| it.root.as_path())
    }

    /// A client's torrent.
    pub(super) fn torrent(&self, role: Role) -> PathBuf {
        self.file(role, "torrent")
    }

    /// The folder a client's file is in.
    pub(super) fn downloads(&self, role: Role) -> PathBuf {
        self.folder.path().join(role.name())
    }

    /// A file of a client's own.
    pub(super) fn file(&self, role: Role, extension: &str) -> PathBuf {
        self.downloads(role).with_extension(extension)
    }

    /// What the tracker says of the torrent.
    fn scrape(&self) -> ScrapeEntry {
        let udp = self.skep.udp.iter().find(|it| Family::of(it.ip()) == self.family).unwrap();
        support::Client::connect(*udp).scrape(&[self.info_hash])[0]
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
            let counts = self.scrape();
            (counts.seeders, counts.completed, counts.leechers) == (2, 1, 0)
        });
        self.wait_for_file(Role::Leecher);
    }

    /// Waits until a client's file is the seeder's.
    pub(crate) fn wait_for_file(&self, role: Role) {
        let file = self.downloads(role).join(PAYLOAD_NAME);
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
            println!("{:?}\n{}", self.parties, self.logs());
        }
    }
}

/// A tracker on loopback, with TLS if there is a certificate. It pings WebSockets that are
/// silent for a moment: long enough for a busy host, short enough that clients see it. WebTorrent
/// clients announce again soon, because they offer a connection anew only then.
fn start_skep(folder: &Path, authority: Option<&Authority>) -> Skep {
    let mut config = String::from("[websocket]\nping_interval_s = 3\ninterval_s = 10\n");
    if let Some(Authority { certificate, key, .. }) = authority {
        let files = format!("certificate = {certificate:?}\nkey = {key:?}\n");
        config += &format!("[tls]\nlisten = [\"127.0.0.1:0\"]\n{files}");
    }
    let file = folder.join("skep.toml");
    fs::write(&file, config).unwrap();
    Skep::start(&["--config", file.to_str().unwrap()])
}

fn lossy(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
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

/// The info dictionary of a torrent with one file. `private` keeps the clients from asking anybody
/// but the tracker (BEP 27), whatever their options say.
fn info(payload: &[u8]) -> Vec<u8> {
    let pieces: Vec<u8> = payload.chunks(PIECE_BYTES).flat_map(Sha1::digest).collect();
    let mut info = Vec::new();
    let name = PAYLOAD_NAME;
    let sizes = (payload.len(), name.len(), PIECE_BYTES, pieces.len());
    write!(
        info,
        "d6:lengthi{}e4:name{}:{name}12:piece lengthi{}e6:pieces{}:",
        sizes.0, sizes.1, sizes.2, sizes.3
    )
    .unwrap();
    info.extend_from_slice(&pieces);
    info.extend_from_slice(b"7:privatei1ee");
    info
}

/// A torrent file. Each tracker is a tier of its own (BEP 12), so that clients ask all of them.
fn metainfo(urls: &[String], info: &[u8]) -> Vec<u8> {
    let text = |it: &String| format!("{}:{it}", it.len());
    let first = text(&urls[0]);
    let tiers: String = urls.iter().map(|it| format!("l{}e", text(it))).collect();
    let head = format!("d8:announce{first}13:announce-listl{tiers}e4:info");
    [head.as_bytes(), info, b"e"].concat()
}

/// A client at work; it ends with this value.
pub(crate) struct Client {
    process: Child,
    /// It ends by itself when its standard input does, and all it has started is in its group.
    ends_with_input: bool,
    page: Option<PageServer>,
}

impl Client {
    /// Starts a program in the meeting's folder. Its standard input stays open.
    pub(super) fn spawn(meeting: &Meeting, role: Role, command: &mut Command) -> Self {
        // What an attempt before this one has said stays.
        let log = meeting.file(role, "log");
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        for proxy in PROXY_VARIABLES {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        let process = command
            .current_dir(meeting.folder.path())
            .env("HOME", meeting.folder.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { process, ends_with_input: false, page: None }
    }

    /// The same for one that ends when its standard input does.
    pub(super) fn spawn_polite(meeting: &Meeting, role: Role, command: &mut Command) -> Self {
        let mut client = Self::spawn(meeting, role, command.process_group(0));
        client.ends_with_input = true;
        client
    }

    /// Keeps what serves its page as long as itself.
    pub(super) fn with_page(mut self, page: PageServer) -> Self {
        self.page = Some(page);
        self
    }

    /// Lets it put its things away, then kills what is left of it.
    fn dismiss(&mut self) {
        drop(self.process.stdin.take());
        for _ in 0..FAREWELL_POLLS_MAX {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                break;
            }
            thread::sleep(POLL); // between two looks
        }
        let kill = format!("kill -KILL -{} 2>/dev/null", self.process.id());
        let _ = Command::new("/bin/sh").args(["-c", &kill]).status();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.ends_with_input {
            self.dismiss();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
