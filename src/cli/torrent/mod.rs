//! `skep torrent`: registers torrents with a running tracker, lists, shows and removes them.

mod add;
mod browse;

use std::process::ExitCode;
use std::str::FromStr;

use clap::Subcommand;

use super::{admin, info_hash};
use crate::types::InfoHash;

/// Subcommands of `skep torrent`.
#[derive(Debug, Subcommand)]
pub(super) enum TorrentCommand {
    /// Register .torrent files, or folders of them
    Add(add::AddTorrentsOptions),
    /// List registered torrents, or the largest announced ones
    List(browse::ListTorrentsOptions),
    /// Show one torrent: its registration, its counts, its peers
    Show(browse::ShowTorrentOptions),
    /// Unregister torrents
    Remove(browse::RemoveTorrentsOptions),
}

/// Runs the command and returns its exit code.
pub(super) fn run(command: TorrentCommand) -> ExitCode {
    let done = match command {
        TorrentCommand::Add(options) => add::run(&options),
        TorrentCommand::List(options) => browse::list(&options),
        TorrentCommand::Show(options) => browse::show(&options),
        TorrentCommand::Remove(options) => browse::remove(&options),
    };
    admin::conclude(done)
}

/// A torrent that an argument names: by a hash, a magnet link, or a `.torrent` file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedTorrent {
    /// The argument.
    text: String,
    /// The hash of its swarm; of a hybrid, the v1 hash.
    info_hash: InfoHash,
}

impl FromStr for NamedTorrent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self { text: text.to_owned(), info_hash: info_hash::of_argument(text)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_torrent_is_named_by_hash_link_or_file() {
        let hash = |text: &str| text.parse::<NamedTorrent>().map(|it| it.info_hash);
        let (v1, v2) = ("0A".repeat(20), "0b".repeat(32));
        assert_eq!(hash(&v1), Ok(InfoHash([10; 20])));
        assert_eq!(hash(&v2), Ok(InfoHash([11; 20])));
        assert_eq!(hash(&format!("magnet:?xt=urn:btih:{v1}")), Ok(InfoHash([10; 20])));
        assert!(hash("12").unwrap_err().contains("40 or 64"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.torrent");
        fs::write(&file, "").unwrap();
        assert!(hash(file.to_str().unwrap()).unwrap_err().contains("the file is empty"));
        assert!(hash(folder.path().to_str().unwrap()).unwrap_err().contains("not a regular file"));
        let info = "d6:lengthi7e4:name1:a12:piece lengthi16384e6:pieces0:e";
        fs::write(&file, format!("d4:info{info}e")).unwrap();
        assert!(hash(file.to_str().unwrap()).is_ok());
    }
}
