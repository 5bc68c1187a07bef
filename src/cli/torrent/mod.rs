//! `skep torrent add`: registers `.torrent` files, or folders of them, with a running tracker.
//!
//! Every file has its own line of output. An error in one file is reported, and the others are
//! still registered. A request without a response is repeated, because the tracker may be
//! restarting.

mod admin;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::client::metainfo::Metainfo;
use crate::client::url::{Scheme, Url};
use crate::config::SettingsSource;
use crate::server;
use crate::sys::regular_file;
use admin::{AdminClient, RegisterResult};

const EXAMPLES: &str = "\
Examples:
  skep torrent add ubuntu.torrent            with the tracker on this host
  skep torrent add /srv/torrents             every .torrent file in this folder and those below
  skep torrent add --admin http://10.0.0.1:6970 --token-file token FILE
  skep torrent add --json DIR                for scripts: one object per line

The tracker has to run with access.mode = \"registered\" or \"private\". The token is that of the
setting admin.token. Without --token and --token-file, skep uses SKEP__ADMIN__TOKEN, else, for a
tracker on this host, the file admin.token in the state directory (that of SKEP__SERVER__STATE_DIR,
STATE_DIRECTORY or XDG's rules) or, if that token is missing or refused, in /var/lib/skep. Both
hashes of a hybrid torrent lead to one swarm. A torrent that was registered before is listed as
known.

Exit codes: 0 every file is registered, 1 at least one is not, 2 invalid usage.";

/// The largest `.torrent` file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The deepest folder that is searched.
const DEPTH_MAX: usize = 32;

/// Subcommands of `skep torrent`.
#[derive(Debug, Subcommand)]
pub(super) enum TorrentCommand {
    /// Register .torrent files, or folders of them
    Add(Options),
}

/// Arguments of `add`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// .torrent files, or folders that contain them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The tracker's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:6970")]
    admin: Url,
    /// Read the token from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The token; visible to other users of this host in the process list
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Print a JSON object for each file instead of text
    #[arg(long)]
    json: bool,
}

/// The result of one file.
#[derive(Debug, Serialize)]
struct FileResult {
    file: String,
    status: Status,
    info_hash: Option<String>,
    info_hash_v2: Option<String>,
    name: Option<String>,
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// The torrent is newly registered.
    Registered,
    /// The torrent was registered before.
    Known,
    /// The torrent could not be registered.
    Failed,
}

/// The body of a request that registers a torrent.
#[derive(Debug, Serialize)]
struct RegistrationBody<'a> {
    info_hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    info_hash_v2: Option<&'a str>,
    name: &'a str,
    size: u64,
    piece_length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_s: Option<u64>,
}

/// Runs the command and returns its exit code.
pub(super) fn run(command: TorrentCommand) -> ExitCode {
    let TorrentCommand::Add(options) = command;
    let mut admin = match connect(&options) {
        Ok(admin) => admin,
        Err(error) => {
            super::complain(&error.to_string());
            return ExitCode::from(2);
        }
    };
    let mut files = Vec::new();
    for path in &options.paths {
        collect(path, 0, &mut files);
    }
    let mut progress = Progress::new(files.len(), options.json);
    let mut counts = [0_usize; 3];
    for found in files {
        let verdict = match found {
            Ok(path) => add(&mut admin, &path),
            Err((path, problem)) => FileResult::failed(&path, problem),
        };
        counts[verdict.status as usize] += 1;
        progress.print_result(&verdict);
    }
    progress.end(&counts);
    ExitCode::from(u8::from(counts[Status::Failed as usize] > 0))
}

/// Why the options do not name a tracker's admin listener and a token.
#[derive(Debug, thiserror::Error)]
enum AdminOptionError {
    #[error("--admin: allowed: http://HOST:PORT")]
    Url,
    #[error("cannot read {}: {_1}", .0.display())]
    TokenFile(PathBuf, io::Error),
    #[error("the token has characters that a header cannot carry")]
    Token,
}

/// Creates the client of the tracker that the options name.
fn connect(options: &Options) -> Result<AdminClient, AdminOptionError> {
    if options.admin.scheme != Scheme::Http || !["", "/"].contains(&options.admin.path.as_str()) {
        return Err(AdminOptionError::Url);
    }
    let mut tokens = match (&options.token, &options.token_file) {
        (Some(token), _) => vec![token.clone()],
        (None, Some(path)) => {
            let text = fs::read_to_string(path)
                .map_err(|error| AdminOptionError::TokenFile(path.clone(), error))?;
            text.lines().next().map(|it| it.trim().to_owned()).into_iter().collect()
        }
        (None, None) => {
            let set = std::env::var("SKEP__ADMIN__TOKEN").ok().filter(|it| !it.is_empty());
            set.map_or_else(|| kept_tokens(&options.admin), |it| vec![it])
        }
    };
    tokens.retain(|it| !it.is_empty());
    if tokens.iter().any(|it| it.bytes().any(|byte| !(0x20..0x7f).contains(&byte))) {
        return Err(AdminOptionError::Token);
    }
    Ok(AdminClient::new(options.admin.clone(), tokens))
}

/// The tokens that trackers on this host generated. They are never sent to another host.
fn kept_tokens(admin: &Url) -> Vec<String> {
    if !is_this_host(admin) {
        return Vec::new();
    }
    let config = super::environment().ok().and_then(|environment| {
        SettingsSource { environment, ..SettingsSource::default() }.load().ok()
    });
    config.map(|it| server::kept_tokens(&it)).unwrap_or_default()
}

/// Whether requests to this listener do not leave this host.
fn is_this_host(admin: &Url) -> bool {
    let is_loopback = admin.host.parse::<IpAddr>().is_ok_and(|it| it.to_canonical().is_loopback());
    is_loopback || admin.host == "localhost"
}

/// A file to register, or a path that cannot be read and why.
type FoundFile = Result<PathBuf, (PathBuf, String)>;

/// Adds a file, or the `.torrent` files of a folder in sorted order. A file named on the command
/// line needs no `.torrent` extension. Links to folders are followed only there.
fn collect(path: &Path, depth: usize, files: &mut Vec<FoundFile>) {
    let failed = |problem: String| Err((path.to_owned(), problem));
    let is_folder = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() && depth == 0 => path.is_dir(),
        Ok(metadata) => metadata.is_dir(),
        Err(error) => return files.push(failed(error.to_string())),
    };
    if !is_folder {
        if depth == 0 || path.extension().is_some_and(|it| it.eq_ignore_ascii_case("torrent")) {
            files.push(Ok(path.to_owned()));
        }
        return;
    }
    if depth > DEPTH_MAX {
        return files.push(failed(format!("more than {DEPTH_MAX} folders within each other")));
    }
    let entries = fs::read_dir(path).and_then(|them| {
        let paths = them.map(|it| Ok(it?.path()));
        paths.collect::<io::Result<Vec<_>>>()
    });
    match entries {
        Err(error) => files.push(failed(error.to_string())),
        Ok(mut paths) => {
            paths.sort();
            paths.iter().for_each(|it| collect(it, depth + 1, files));
        }
    }
}

/// Registers one file.
fn add(admin: &mut AdminClient, path: &Path) -> FileResult {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return FileResult::failed(path, error.to_string()),
    };
    let torrent = match Metainfo::parse(&bytes) {
        Ok(torrent) => torrent,
        Err(error) => return FileResult::failed(path, format!("is not a torrent: {error}")),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let info_hash = torrent.info_hash().map(|it| it.to_string());
    let second = torrent.v2.filter(|_| torrent.v1.is_some());
    let second: Option<String> =
        second.map(|it| it.iter().map(|byte| format!("{byte:02x}")).collect());
    let name = text(torrent.name);
    let body = RegistrationBody {
        info_hash: info_hash.as_deref().unwrap_or_default(),
        info_hash_v2: second.as_deref(),
        name: &cut(name.clone(), 1024),
        size: torrent.size,
        piece_length: torrent.piece_length,
        comment: torrent.comment.map(|it| cut(text(it), 4096)),
        created_by: torrent.created_by.map(|it| cut(text(it), 4096)),
        created_s: torrent.created_s,
    };
    let body = match serde_json::to_vec(&body) {
        Ok(body) => body,
        Err(error) => return FileResult::failed(path, error.to_string()),
    };
    let (status, error) = match admin.register(&body) {
        Ok(RegisterResult::Created) => (Status::Registered, None),
        Ok(RegisterResult::Known) => (Status::Known, None),
        Err(error) => (Status::Failed, Some(error.to_string())),
    };
    let file = path.display().to_string();
    FileResult { file, status, info_hash, info_hash_v2: second, name: Some(name), error }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = regular_file::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("is longer than {FILE_BYTES_MAX} bytes")));
    }
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Truncates a text to at most `bytes_max` bytes, at a character boundary.
fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

impl FileResult {
    fn failed(path: &Path, problem: String) -> Self {
        Self {
            file: path.display().to_string(),
            status: Status::Failed,
            info_hash: None,
            info_hash_v2: None,
            name: None,
            error: Some(problem),
        }
    }

    /// The result as a line of text. Names come from untrusted files: their control characters are
    /// escaped, so that they cannot move a terminal's cursor.
    fn line(&self) -> String {
        let safe = |text: &str| text.escape_debug().to_string().replace("\\'", "'");
        let mut line = match self.status {
            Status::Registered => "registered ".to_owned(),
            Status::Known => "known      ".to_owned(),
            Status::Failed => "failed     ".to_owned(),
        };
        if let Some(hash) = &self.info_hash {
            let _ = write!(line, "{hash}  ");
        }
        let _ = write!(line, "{}", safe(&self.file));
        if let Some(error) = &self.error {
            let _ = write!(line, ": {}", safe(error));
        }
        line
    }
}

/// Prints the result of each file, and a count of files done.
struct Progress {
    total: usize,
    done: usize,
    json: bool,
    /// Whether standard error is a terminal, which shows the count.
    shown: bool,
}

impl Progress {
    fn new(total: usize, json: bool) -> Self {
        Self { total, done: 0, json, shown: io::stderr().is_terminal() }
    }

    fn print_result(&mut self, verdict: &FileResult) {
        self.done += 1;
        let line = if self.json {
            serde_json::to_string(verdict).unwrap_or_default()
        } else {
            verdict.line()
        };
        self.wipe();
        let _ = writeln!(io::stdout().lock(), "{line}");
        if self.shown && self.done < self.total {
            let _ = write!(io::stderr().lock(), "{} of {}", self.done, self.total);
        }
    }

    /// Erases the count from its line.
    fn wipe(&self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }

    fn end(&self, counts: &[usize; 3]) {
        self.wipe();
        let [registered, known, failed] = counts;
        let sum = format!("{registered} registered, {known} known, {failed} failed");
        if self.total == 0 {
            super::complain("no .torrent file found");
        }
        if !self.json {
            let _ = writeln!(io::stdout().lock(), "{sum}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_token_is_shown_to_loopback_addresses_alone() {
        let is_this_host = |url: &str| is_this_host(&url.parse().unwrap());
        for here in ["localhost", "127.0.0.1", "127.9.8.7", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(is_this_host(&format!("http://{here}:6970")), "{here}");
        }
        for elsewhere in ["10.0.0.1", "0.0.0.0", "[::]", "[2001:db8::1]", "localhost.example"] {
            let url = format!("http://{elsewhere}:6970");
            assert!(!is_this_host(&url), "{elsewhere}");
            assert!(kept_tokens(&url.parse().unwrap()).is_empty(), "{elsewhere}");
        }
    }
}
