//! `skep torrent add`: registers `.torrent` files, or folders of them, with a running tracker.
//!
//! Every file has its own line of output. An error in one file is reported, and the others are
//! still registered. A request without a response is repeated, because the tracker may be
//! restarting.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde::Serialize;

use crate::access::lists::{ListKind, parse_value};
use crate::cli::admin::{
    self, AdminArguments, AdminClient, AdminError, ChangeOutput, CommandError,
};
use crate::cli::info_hash::{FileError, not_a_torrent, read, torrent_files};
use crate::cli::json;
use crate::cli::text::escaped;
use crate::client::metainfo::Metainfo;

const EXAMPLES: &str = "\
Examples:
  skep torrent add ubuntu.torrent            with the tracker on this host
  skep torrent add /srv/torrents             every .torrent file in this folder and those below
  skep torrent add --admin 10.0.0.1:6970 --token-file token FILE
  skep torrent add --json DIR                for scripts: one object per line

The tracker has to run with access.mode = \"registered\" or \"private\". Both hashes of a hybrid
torrent lead to one swarm. A torrent that was registered before is listed as known. If the tracker
does not respond, or refuses every request, skep stops at the first file and counts the others as
not tried.";

/// Arguments of `add`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(EXAMPLES, "at least one file is not registered"))]
pub(in crate::cli) struct AddTorrentsOptions {
    /// .torrent files, or folders that contain them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print a JSON object for each file instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// The result of one file.
#[derive(Debug, Serialize)]
struct FileResult {
    file: String,
    status: FileStatus,
    info_hash: Option<String>,
    info_hash_v2: Option<String>,
    name: Option<String>,
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum FileStatus {
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

/// Why a path leads to no file. One that is an info-hash or a magnet link is known as such.
fn problem_of(error: &FileError) -> String {
    let value = error.path.to_str().and_then(|it| parse_value(ListKind::Torrents, it));
    let hint = value.map_or("", |_| {
        "; without its .torrent file a torrent is registered by its hash with POST /api/v1/torrents"
    });
    format!("{}{hint}", error.problem)
}

/// Registers all files.
pub(super) fn run(options: &AddTorrentsOptions) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let files: Vec<_> = options.paths.iter().flat_map(|path| torrent_files(path)).collect();
    let mut progress = Progress::new(files.len(), options.json);
    for found in files {
        let result = match found {
            Ok(path) => add(&mut client, &path),
            Err(error) => Ok(FileResult::failed(&error.path, problem_of(&error))),
        };
        match result {
            Ok(result) => progress.print_result(&result),
            Err(error) => return progress.end(Some(error)),
        }
    }
    progress.end(None)
}

/// Registers one file.
///
/// # Errors
/// [`AdminError`] if every further file would fail in the same way.
fn add(client: &mut AdminClient, path: &Path) -> Result<FileResult, AdminError> {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Ok(FileResult::failed(path, error.to_string())),
    };
    let torrent = match Metainfo::parse(&bytes) {
        Ok(torrent) => torrent,
        Err(error) => return Ok(FileResult::failed(path, not_a_torrent(&error))),
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
        Err(error) => return Ok(FileResult::failed(path, error.to_string())),
    };
    let (status, error) = match client.request(Method::POST, "/api/v1/torrents", body) {
        Ok(response) if response.is_created => (FileStatus::Registered, None),
        Ok(_) => (FileStatus::Known, None),
        Err(error) if error.is_final() => return Err(error),
        Err(error) => (FileStatus::Failed, Some(error.to_string())),
    };
    let file = path.display().to_string();
    Ok(FileResult { file, status, info_hash, info_hash_v2: second, name: Some(name), error })
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
            status: FileStatus::Failed,
            info_hash: None,
            info_hash_v2: None,
            name: None,
            error: Some(problem),
        }
    }

    /// The result as a line of text. Names come from untrusted files.
    fn line(&self) -> String {
        let mut line = match self.status {
            FileStatus::Registered => "registered ".to_owned(),
            FileStatus::Known => "known      ".to_owned(),
            FileStatus::Failed => "failed     ".to_owned(),
        };
        if let Some(hash) = &self.info_hash {
            let _ = write!(line, "{hash}  ");
        }
        let _ = write!(line, "{}", escaped(&self.file));
        if let Some(error) = &self.error {
            let _ = write!(line, ": {}", escaped(error));
        }
        line
    }
}

/// Prints the result of each file, and a count of files done.
struct Progress {
    total: usize,
    /// Files by [`FileStatus`].
    counts: [usize; 3],
    json: bool,
    /// Whether standard error is a terminal, which shows the count.
    shown: bool,
    output: ChangeOutput,
}

impl Progress {
    fn new(total: usize, json: bool) -> Self {
        let (shown, output) = (io::stderr().is_terminal(), ChangeOutput::default());
        Self { total, counts: [0; 3], json, shown, output }
    }

    fn done(&self) -> usize {
        self.counts.iter().sum()
    }

    fn print_result(&mut self, result: &FileResult) {
        self.counts[result.status as usize] += 1;
        let line = if self.json { json::line(result) } else { result.line() + "\n" };
        self.wipe();
        self.output.print(&line);
        if self.shown && self.done() < self.total {
            let _ = write!(io::stderr().lock(), "{} of {}", self.done(), self.total);
        }
    }

    /// Erases the count from its line.
    fn wipe(&self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }

    /// Prints the sums, and returns the result of the subcommand; with the error that ended it.
    fn end(mut self, error: Option<AdminError>) -> Result<ExitCode, CommandError> {
        self.wipe();
        let [registered, known, failed] = self.counts;
        let mut sum = format!("{registered} registered, {known} known, {failed} failed");
        if self.done() < self.total {
            let _ = write!(sum, ", {} not tried", self.total - self.done());
        }
        if !self.json {
            self.output.print(&(sum + "\n"));
        }
        let code = ExitCode::from(u8::from(failed > 0));
        self.output.end(error.map_or(Ok(code), |error| Err(error.into())))
    }
}
