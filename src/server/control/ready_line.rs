//! The line that shows that every socket is served: on standard output for programs, and logged.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;

use tracing::info;

use crate::server::log::OPERATOR;

/// What is served.
#[derive(Clone, Debug)]
pub(crate) struct ReadyLine {
    pub(crate) udp: Vec<SocketAddr>,
    pub(crate) tcp: Vec<SocketAddr>,
    pub(crate) tls: Vec<SocketAddr>,
    pub(crate) admin: SocketAddr,
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
        write!(f, " admin={} io={} workers={}", self.admin, self.io, self.workers)
    }
}

impl ReadyLine {
    /// Writes the line to standard output, and to the log: as text, or with fields as JSON. A
    /// terminal that shows both gets it once. If standard output is closed, the error is ignored.
    pub(crate) fn print(&self, is_json: bool) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{self}");
        let _ = out.flush();
        if is_json {
            self.log_fields();
        } else if !(out.is_terminal() && io::stderr().is_terminal()) {
            info!(target: OPERATOR, "{self}");
        }
    }

    /// Addresses of one kind are separated by commas, as in variables of the environment.
    fn log_fields(&self) {
        let list = |addresses: &[SocketAddr]| {
            let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            (!texts.is_empty()).then(|| texts.join(","))
        };
        let (udp, tcp, tls) = (list(&self.udp), list(&self.tcp), list(&self.tls));
        info!(
            target: OPERATOR,
            udp = udp.as_deref(),
            tcp = tcp.as_deref(),
            tls = tls.as_deref(),
            admin = %self.admin,
            io = self.io,
            workers = self.workers,
            "ready"
        );
    }
}
