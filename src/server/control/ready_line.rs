//! The line that shows that every socket is served: on standard output for programs, and logged.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::fs::MetadataExt as _;

use tracing::info;

use crate::server::log::OPERATOR;

/// What is served.
#[derive(Clone, Debug)]
pub(crate) struct ReadyLine {
    pub(crate) udp: Vec<SocketAddr>,
    pub(crate) tcp: Vec<SocketAddr>,
    pub(crate) tls: Vec<SocketAddr>,
    pub(crate) admin: SocketAddr,
    /// Interfaces with an XDP program: name, what the program does, where it runs.
    pub(crate) xdp: Vec<[String; 3]>,
    /// The backend of datagrams.
    pub(crate) io: &'static str,
    pub(crate) workers: usize,
}

impl fmt::Display for ReadyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ready")?;
        for (kind, addresses) in [("udp", &self.udp), ("tcp", &self.tcp), ("tls", &self.tls)] {
            addresses.iter().try_for_each(|address| write!(f, " {kind}={address}"))?;
        }
        write!(f, " admin={} io={} workers={}", self.admin, self.io, self.workers)?;
        self.xdp.iter().try_for_each(|attached| write!(f, " xdp={}", attached.join(":")))
    }
}

impl ReadyLine {
    /// Writes the line to standard output, and to the log: as text, or with fields as JSON. A
    /// terminal or a journal that shows both gets it once. If standard output is closed, the error
    /// is ignored.
    pub(crate) fn print(&self, is_json: bool) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{self}");
        let _ = out.flush();
        if is_json {
            self.log_fields();
        } else if !are_shown_together(out.as_fd(), io::stderr().as_fd()) {
            info!(target: OPERATOR, "{self}");
        }
    }

    /// Addresses of one kind are separated by commas, as in variables of the environment.
    fn log_fields(&self) {
        let join = |texts: Vec<String>| (!texts.is_empty()).then(|| texts.join(","));
        let list =
            |addresses: &[SocketAddr]| join(addresses.iter().map(ToString::to_string).collect());
        let (udp, tcp, tls) = (list(&self.udp), list(&self.tcp), list(&self.tls));
        let xdp = join(self.xdp.iter().map(|it| it.join(":")).collect());
        info!(
            target: OPERATOR,
            udp = udp.as_deref(),
            tcp = tcp.as_deref(),
            tls = tls.as_deref(),
            admin = %self.admin,
            io = self.io,
            workers = self.workers,
            xdp = xdp.as_deref(),
            "ready"
        );
    }
}

/// Whether standard output and standard error are a terminal, or one stream of systemd's journal,
/// which `JOURNAL_STREAM` names by device and inode (systemd.exec(5)).
fn are_shown_together(output: BorrowedFd<'_>, error: BorrowedFd<'_>) -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let is_journal = |descriptor: BorrowedFd<'_>| {
        let file = descriptor.try_clone_to_owned().map(std::fs::File::from);
        let metadata = file.and_then(|it| it.metadata());
        metadata.is_ok_and(|it| format!("{}:{}", it.st_dev(), it.st_ino()) == stream)
    };
    (output.is_terminal() && error.is_terminal()) || (is_journal(output) && is_journal(error))
}
