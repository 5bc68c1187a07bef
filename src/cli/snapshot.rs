//! `skep snapshot`: inspects or verifies a snapshot, or exports it as JSON.
//!
//! Every command verifies the whole file first: data of a damaged file is never printed.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::text::{count, date};
use crate::frontend::figures::grouped;
use crate::snapshot::{Block, Snapshot, SnapshotError};
use crate::store::{Role, SavedPeer, TorrentPart};
use crate::sys::regular_file;

const EXAMPLES: &str = "\
Examples:
  skep snapshot inspect swarms.snapshot          when and by what it was written, its contents
  skep snapshot verify /backup/swarms.snapshot   exit code 0 if it is intact
  skep snapshot export swarms.snapshot | head -1
  skep snapshot export swarms.snapshot | jq -c 'select(.completed > 1000)'

A large torrent takes several lines of an export: add up their download counts.

Snapshots are in server.state_dir: swarms.snapshot is the latest, swarms.snapshot.previous the one
before it. After POST /api/v1/save on its admin listener, a running tracker writes one at once.

Exit codes: 0 done, 1 the file is damaged or cannot be read, 2 invalid usage.";

/// Subcommands of `skep snapshot`.
#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Print when and by which version a snapshot was written, and its contents
    #[command(after_help = EXAMPLES)]
    Inspect(Named),
    /// Verify all checksums and lengths of a snapshot
    #[command(after_help = EXAMPLES)]
    Verify(Named),
    /// Print every torrent with its peers as JSON, one object per line
    #[command(after_help = EXAMPLES)]
    Export(Export),
}

/// Arguments of `inspect` and `verify`.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// The snapshot
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// One JSON object per line: the only format, so this flag may be omitted
    #[arg(long)]
    json: bool,
    /// The snapshot
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum SnapshotCommandError {
    #[error(transparent)]
    File(#[from] SnapshotError),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command and returns its exit code.
pub(super) fn run(command: SnapshotCommand) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let (file, done) = match &command {
        SnapshotCommand::Inspect(options) => (&options.file, inspect(&options.file, &mut out)),
        SnapshotCommand::Verify(options) => (&options.file, verify(&options.file, &mut out)),
        SnapshotCommand::Export(options) => (&options.file, export(&options.file, &mut out)),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // A closed pipe is not an error: `head`, for instance, stops early.
        Err(SnapshotCommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            super::complain(&format!("{}: {failure}", file.display()));
            ExitCode::FAILURE
        }
    }
}

fn open(path: &Path) -> Result<Snapshot<BufReader<File>>, SnapshotError> {
    Snapshot::open(BufReader::with_capacity(1 << 18, regular_file::open(path)?))
}

fn inspect(path: &Path, out: &mut impl Write) -> Result<(), SnapshotCommandError> {
    let mut snapshot = open(path)?;
    let header = snapshot.header().clone();
    let contents = *snapshot.contents();
    let mut sums = Sums::default();
    let mut block = Block::default();
    while snapshot.next(&mut block)? {
        for torrent in block.torrents() {
            sums.add(&torrent?);
        }
    }
    let tracker: String = header.tracker.iter().map(|it| format!("{it:02x}")).collect();
    let lines = [
        ("version", header.version.to_string()),
        ("written by", format!("skep {}", header.build)),
        ("tracker", tracker),
        ("written at", date(header.at_s)),
        ("size", format!("{}, {}", count(contents.bytes, "byte"), blocks(contents.blocks))),
        ("torrents", format!("{}, {} with peers", grouped(sums.torrents), grouped(sums.active))),
        ("peers", format!("{} over IPv4, {} over IPv6", grouped(sums.v4), grouped(sums.v6))),
        ("seeders", format!("{} of them", grouped(sums.seeders))),
        ("oldest peer", format!("{} s", grouped(sums.oldest_s.into()))),
        (
            "completed",
            format!(
                "{} ever counted, {} in these torrents",
                grouped(contents.completed),
                grouped(sums.completed)
            ),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<12} {value}")?;
    }
    Ok(())
}

/// The sums that `inspect` prints.
#[derive(Default)]
struct Sums {
    latest: Option<[u8; 20]>,
    torrents: u64,
    active: u64,
    v4: u64,
    v6: u64,
    seeders: u64,
    oldest_s: u16,
    completed: u64,
}

impl Sums {
    fn add(&mut self, part: &TorrentPart<'_>) {
        // The parts of a large torrent follow each other.
        if self.latest.replace(part.info_hash.0) != Some(part.info_hash.0) {
            self.torrents += 1;
            self.active += u64::from(!part.v4.is_empty() || !part.v6.is_empty());
        }
        self.completed += u64::from(part.completed);
        self.v4 += part.v4.len() as u64;
        self.v6 += part.v6.len() as u64;
        part.v4.iter().for_each(|peer| self.add_peer(peer));
        part.v6.iter().for_each(|peer| self.add_peer(peer));
    }

    fn add_peer<const ENDPOINT: usize>(&mut self, peer: &SavedPeer<ENDPOINT>) {
        self.seeders += u64::from(role(peer) == "seeder");
        self.oldest_s = self.oldest_s.max(peer.age_s());
    }
}

fn verify(path: &Path, out: &mut impl Write) -> Result<(), SnapshotCommandError> {
    let snapshot = open(path)?;
    let totals = snapshot.contents();
    let (blocks, peers) = (blocks(totals.blocks), count(totals.peers, "peer"));
    writeln!(out, "{}: complete, {blocks}, {peers}", path.display())?;
    Ok(())
}

fn blocks(number: u64) -> String {
    count(number, "block")
}

/// One line of JSON: a torrent, or a part of one.
#[derive(Serialize)]
struct TorrentLine {
    info_hash: String,
    completed: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    empty_s: Option<u32>,
    peers: Vec<PeerLine>,
}

#[derive(Serialize)]
struct PeerLine {
    address: SocketAddr,
    role: &'static str,
    age_s: u16,
}

fn export(path: &Path, out: &mut impl Write) -> Result<(), SnapshotCommandError> {
    let mut snapshot = open(path)?;
    let mut block = Block::default();
    while snapshot.next(&mut block)? {
        for torrent in block.torrents() {
            serde_json::to_writer(&mut *out, &TorrentLine::of(&torrent?))
                .map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

impl TorrentLine {
    fn of(part: &TorrentPart<'_>) -> Self {
        let v4 = part.v4.iter().map(|peer| {
            let [a, b, c, d, high, low] = peer.endpoint;
            PeerLine::of(peer, (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])).into())
        });
        let v6 = part.v6.iter().map(|peer| {
            let [octets @ .., high, low] = peer.endpoint;
            PeerLine::of(peer, (Ipv6Addr::from(octets), u16::from_be_bytes([high, low])).into())
        });
        let peers: Vec<_> = v4.chain(v6).collect();
        let empty_s = peers.is_empty().then_some(part.empty_s);
        Self { info_hash: part.info_hash.to_string(), completed: part.completed, empty_s, peers }
    }
}

impl PeerLine {
    fn of<const ENDPOINT: usize>(peer: &SavedPeer<ENDPOINT>, address: SocketAddr) -> Self {
        Self { address, role: role(peer), age_s: peer.age_s() }
    }
}

/// A peer's role, named as in the admin API.
fn role<const ENDPOINT: usize>(peer: &SavedPeer<ENDPOINT>) -> &'static str {
    match peer.role() {
        Role::Leecher => "leecher",
        Role::Paused => "paused",
        Role::Seeder => "seeder",
    }
}
