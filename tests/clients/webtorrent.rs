//! WebTorrent in Node and in a page of headless Chromium. Its packages come from npm, as the lock
//! file says, once for all tests; no script of theirs is run, so nothing else is fetched.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::meeting::{Client, Meeting, PIECE_BYTES, Role, Via};
use super::page::{LOADING_TIMEOUT, PageServer, Parts, start_browser};
use super::programs::Program;

/// WebTorrent in Node, which also speaks to trackers over UDP and HTTP, and to peers over TCP.
pub(crate) const NODE: Program = Program { needs: &["node", "npm", PACKAGES], start: node };
/// WebTorrent in a page, which speaks WebSocket and WebRTC only.
pub(crate) const PAGE: Program =
    Program { needs: &["chromium", "node", "npm", PACKAGES], start: page };

/// How `present` is asked for the npm packages.
pub(super) const PACKAGES: &str = "webtorrent from npm";

/// Our files for it.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/webtorrent");
/// Which of them npm and Node need next to the packages.
const COPIED: [&str; 6] = [
    "package.json",
    "package-lock.json",
    "peer.mjs",
    "scrape.mjs",
    "webrtc/package.json",
    "webrtc/index.js",
];
/// Where the packages go.
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/webtorrent");

/// The folder with the packages; none, and said why, where they cannot be had.
pub(super) fn packages() -> Option<&'static Path> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    INSTALLED.get_or_init(install).then_some(Path::new(FOLDER))
}

/// Installs what is not installed yet. Other test programs wait meanwhile.
fn install() -> bool {
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let guard = File::create(concat!(env!("CARGO_TARGET_TMPDIR"), "/webtorrent.lock")).unwrap();
    guard.lock().unwrap();
    copy_sources().unwrap();
    let folder = Path::new(FOLDER);
    let wanted = fs::read(folder.join("package-lock.json")).unwrap();
    let stamp = folder.join("installed"); // written last
    if fs::read(&stamp).is_ok_and(|it| it == wanted) {
        return true;
    }
    let output = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(npm) if npm.status.success() => fs::write(&stamp, wanted).is_ok(),
        Ok(npm) => {
            println!("npm ci: {}\n{}", npm.status, String::from_utf8_lossy(&npm.stderr));
            false
        }
        Err(error) => {
            println!("npm ci: {error}");
            false
        }
    }
}

fn copy_sources() -> io::Result<()> {
    let (from, to) = (Path::new(SOURCES), Path::new(FOLDER));
    fs::create_dir_all(to.join("webrtc"))?;
    for name in COPIED {
        fs::write(to.join(name), fs::read(from.join(name))?)?;
    }
    Ok(())
}

fn node(meeting: &Meeting, role: Role, _: Via) -> Client {
    let mut command = Command::new("node");
    command.arg(packages().unwrap().join("peer.mjs"));
    command.arg(meeting.torrent(role)).arg(meeting.downloads(role));
    if let Some(root) = meeting.root_certificate() {
        command.env("NODE_EXTRA_CA_CERTS", root);
    }
    Client::spawn_polite(meeting, role, &mut command)
}

/// What bittorrent-tracker's client is told of the torrent over each transport: seeders, leechers,
/// completed downloads.
pub(crate) fn scrapes(meeting: &Meeting, vias: &[Via]) -> Vec<String> {
    let mut command = Command::new("node");
    command.arg(packages().unwrap().join("scrape.mjs")).arg(meeting.info_hash_in_hex());
    command.args(vias.iter().flat_map(|it| meeting.urls(*it)));
    if let Some(root) = meeting.root_certificate() {
        command.env("NODE_EXTRA_CA_CERTS", root);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A page in a browser of its own. With `--remote-debugging-pipe`, Chromium ends when its third
/// descriptor does, which is made the standard input that the test holds open.
fn page(meeting: &Meeting, role: Role, via: Via) -> Client {
    let server = PageServer::start(Parts {
        page: PathBuf::from(SOURCES).join("page.html"),
        bundle: packages().unwrap().join("node_modules/webtorrent/dist/webtorrent.min.js"),
        torrent: meeting.torrent(role),
        downloads: meeting.downloads(role),
        log: meeting.file(role, "page.log"),
    });
    let announce = &meeting.urls(via)[0];
    let url = format!("{}?announce={announce}&piece={PIECE_BYTES}", server.url());
    let start = |attempt| {
        let mut command = chromium(meeting, &meeting.file(role, &format!("profile{attempt}")));
        Client::spawn_polite(meeting, role, command.arg(&url))
    };
    start_browser(&server.loading, LOADING_TIMEOUT, start).with_page(server)
}

/// Headless, with its profile in this folder.
fn chromium(meeting: &Meeting, profile: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec chromium \"$@\" 3<&0 4>/dev/null", "chromium"])
        .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
        .args(["--disable-dev-shm-usage", "--no-first-run", "--disable-default-apps"])
        // Nobody but this host is asked for anything, and WebRTC names its addresses.
        .args(["--disable-background-networking", "--disable-component-update"])
        .args(["--disable-sync", "--disable-domain-reliability", "--no-pings"])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .args(["--disable-features=WebRtcHideLocalIpsWithMdns,MediaRouter,OptimizationHints"])
        .arg("--allow-loopback-in-peer-connection")
        .arg(format!("--user-data-dir={}", profile.display()));
    if meeting.root_certificate().is_some() {
        command.arg("--ignore-certificate-errors");
    }
    command
}
