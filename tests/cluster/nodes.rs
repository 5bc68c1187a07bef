//! Nodes of a cluster: real processes that share a broker and a secret.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use skep::protocol::udp::client::Announcement;
use skep::types::{Event, InfoHash, ScrapeEntry};

use crate::support::nats::Nats;
use crate::support::{Client, Skep, command, eventually};

/// What all nodes of a cluster share.
pub(crate) struct Shared {
    folder: tempfile::TempDir,
    servers: String,
}

impl Shared {
    /// A cluster that exchanges changes through this broker.
    pub(crate) fn of(broker: &Nats) -> Self {
        Self::at(&broker.url())
    }

    /// A cluster that exchanges changes through brokers at these URLs.
    pub(crate) fn at(servers: &str) -> Self {
        let shared = Self { folder: tempfile::tempdir().unwrap(), servers: servers.to_owned() };
        shared.file("secret", &"5e".repeat(32));
        shared
    }

    /// A file that only its owner can read.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The command of a node with this name. Its peers are on the loopback interface, and are
    /// exchanged nevertheless.
    pub(crate) fn command(&self, node: &str) -> Command {
        self.command_of(node, &["run"])
    }

    /// The same, with other words before the arguments.
    pub(crate) fn command_of(&self, node: &str, words: &[&str]) -> Command {
        let mut command = command();
        command.args(words);
        let secret = self.folder.path().join("secret");
        let settings = [
            ("SERVERS", self.servers.as_str()),
            ("NODE", node),
            ("SECRET_FILE", secret.to_str().unwrap()),
            ("REPLICATE_PRIVATE", "true"),
        ];
        for (key, value) in settings {
            set(&mut command, key, value);
        }
        command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
        command
    }

    /// A node that has started, which may be joining yet.
    pub(crate) fn started(&self, node: &str) -> Skep {
        Skep::spawn(self.command(node))
    }

    /// A node that is ready.
    pub(crate) fn node(&self, node: &str) -> Skep {
        ready(self.started(node))
    }
}

/// Sets a setting of the cluster for a node.
pub(crate) fn set(command: &mut Command, key: &str, value: &str) {
    command.env(format!("SKEP__CLUSTER__{key}"), value);
}

/// The same, to a path.
pub(crate) fn set_path(command: &mut Command, key: &str, value: &Path) {
    set(command, key, value.to_str().unwrap());
}

/// Waits until a node is ready.
pub(crate) fn ready(node: Skep) -> Skep {
    eventually("the node is ready", || node.get("/readyz").0 == 200);
    node
}

/// A client of a node.
pub(crate) fn client(node: &Skep) -> Client {
    Client::connect(node.udp[0])
}

/// What a node says about a torrent.
pub(crate) fn scrape(node: &Skep, torrent: u8) -> ScrapeEntry {
    client(node).scrape(&[InfoHash([torrent; 20])])[0]
}

/// Waits until all nodes say this about a torrent: seeders, leechers, completed downloads.
#[track_caller]
pub(crate) fn all_say(nodes: &[&Skep], torrent: u8, expected: (u32, u32, u32)) {
    for (at, node) in nodes.iter().enumerate() {
        let mut client = client(node);
        let mut said = (0, 0, 0);
        let is_said = || {
            let entry = client.scrape(&[InfoHash([torrent; 20])])[0];
            said = (entry.seeders, entry.leechers, entry.completed);
            said == expected
        };
        let what = format!("node {at} says {expected:?} of torrent {torrent}");
        eventually(&what, is_said);
    }
}

/// The same announce, of a client that leaves.
pub(crate) fn stopped(announcement: Announcement) -> Announcement {
    Announcement { event: Event::Stopped, ..announcement }
}

/// The same announce, of a client whose download has ended just now.
pub(crate) fn completed(announcement: Announcement) -> Announcement {
    Announcement { event: Event::Completed, left: 0, ..announcement }
}
