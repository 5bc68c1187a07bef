//! Resident bytes per peer, by swarm size and family. For each cell a new process is filled by real
//! announces over UDP, and its memory is read before and after.

use serde::Serialize;
use skep::sys::affinity::usable_cpus;
use skep::sys::clock::Clock;

use crate::cli::MemoryArguments;
use crate::contestant::{Contestant, ContestantStartError, sibling_skep};
use crate::error::LoadtestError;
use crate::interrupt;
use crate::machine::Machine;
use crate::numbers::{grouped, per};
use crate::plan::{Distribution, Families, Mix, Plan, Profile};
use crate::process::usage;
use crate::run::{RunError, Session, Site};

/// One cell of the table.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cell {
    /// Peers in each torrent.
    per_torrent: u32,
    /// `v4` or `v6`.
    families: Families,
    /// Number of resident peers.
    resident: u64,
    /// Resident memory before the first announce, in bytes.
    rss_before_bytes: u64,
    /// Resident memory with all peers, in bytes.
    rss_after_bytes: u64,
    /// Growth per peer.
    bytes_per_peer: f64,
}

/// Why memory cannot be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// No tracker is here or was given.
    #[error("nothing to measure: build skep beside loadtest, or give --tracker")]
    NoTracker,
    /// This one gave no cell.
    #[error("{0} could not be measured at all")]
    NoCell(String),
    /// It cannot be started.
    #[error(transparent)]
    Start(#[from] ContestantStartError),
    /// It cannot be filled.
    #[error("{name}: {error}")]
    Run {
        /// Its name.
        name: String,
        /// Why not.
        error: RunError,
    },
    /// Its process ended.
    #[error("{name} ended: {words}")]
    Ended {
        /// Its name.
        name: String,
        /// Its last output.
        words: String,
    },
}

/// One tracker's cells.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    command: String,
    cells: Vec<Cell>,
}

/// The whole table.
#[derive(Clone, Debug, Serialize)]
struct Table {
    machine: Machine,
    peers: u32,
    /// Whether a signal ended it: some cells, or rows, are missing.
    is_partial: bool,
    rows: Vec<Row>,
}

/// Measures the table and prints it; after a signal the cells that were complete.
///
/// # Errors
/// One sentence with the cause, e.g. a tracker that does not start.
pub(crate) fn memory(arguments: &MemoryArguments) -> Result<(), LoadtestError> {
    let skep = sibling_skep().filter(|_| !arguments.no_skep).map(|program| {
        let arguments = ["run", "--listen", "{addr}", "--admin", "127.0.0.1:0", "--workers", "1"];
        Contestant::own("skep", &program, &arguments)
    });
    let contestants: Vec<_> = skep.into_iter().chain(arguments.tracker.iter().cloned()).collect();
    if contestants.is_empty() {
        return Err(MemoryError::NoTracker.into());
    }
    interrupt::watch()?;
    let mut rows = Vec::new();
    for contestant in &contestants {
        let cells = cells(contestant, arguments);
        let is_partial = interrupt::is_requested();
        if !cells.is_empty() {
            rows.push(Row { name: contestant.name.clone(), command: contestant.command(), cells });
        } else if !is_partial {
            return Err(MemoryError::NoCell(contestant.name.clone()).into());
        }
        if is_partial {
            break;
        }
    }
    if rows.is_empty() {
        interrupt::check("filling")?;
    }
    let is_partial = interrupt::is_requested();
    let table = Table { machine: Machine::look(), peers: arguments.peers, is_partial, rows };
    if arguments.json {
        crate::print_json(&table)?;
    } else {
        table.print(&arguments.per_torrent);
    }
    if is_partial { Err(LoadtestError::Interrupted) } else { Ok(()) }
}

/// A tracker's cells: all that can be measured, or those until a signal.
fn cells(contestant: &Contestant, arguments: &MemoryArguments) -> Vec<Cell> {
    let mut cells = Vec::new();
    for families in [Families::V4, Families::V6] {
        for per_torrent in &arguments.per_torrent {
            let measured = cell(contestant, arguments.peers, *per_torrent, families);
            if interrupt::is_requested() {
                // A swarm that is filled in part has other bytes a peer.
                return cells;
            }
            match measured {
                Ok(cell) => {
                    eprintln!(
                        "{}, {families:?}, {per_torrent} a torrent: {:.1} bytes a peer",
                        contestant.name, cell.bytes_per_peer
                    );
                    cells.push(cell);
                }
                // Not every tracker supports both families.
                Err(error) => eprintln!("warning: {error}"),
            }
        }
    }
    cells
}

/// The load of one cell: only announces, swarms of one size, as many sources as needed.
fn plan(peers: u32, per_torrent: u32, families: Families) -> Plan {
    Plan {
        torrents: (peers / per_torrent.max(1)).max(1),
        peers,
        distribution: Distribution::Flat,
        mix: Mix { connect: 0, announce: 1, scrape: 0 },
        families,
        // A source has at most 32 767 peers per torrent.
        sources: u16::try_from(per_torrent.div_ceil(32_000)).unwrap_or(4096).clamp(8, 4096),
        ..Profile::Canonical.plan()
    }
}

fn cell(
    contestant: &Contestant,
    peers: u32,
    per_torrent: u32,
    families: Families,
) -> Result<Cell, MemoryError> {
    let plan = plan(peers, per_torrent, families);
    let cpus = usable_cpus().unwrap_or_default();
    let clock = Clock::start();
    let started = contestant.start(&plan, cpus.first().copied(), &clock)?;
    let pid = started.server.pid();
    let generator_cpus = cpus.iter().skip(1).rev().copied().collect();
    let (targets, endpoint) = (started.targets, None);
    let site = Site { targets, endpoint, pid: Some(pid), cpus: generator_cpus, clock };
    let name = &contestant.name;
    let failed = |error| MemoryError::Run { name: name.clone(), error };
    let mut session = Session::open(&plan, &site).map_err(failed)?;
    let ended = || MemoryError::Ended { name: name.clone(), words: started.server.last_words() };
    let before = usage(pid).ok_or_else(ended)?;
    let filled = session.fill().map_err(failed)?;
    let after = usage(pid).ok_or_else(ended)?;
    if filled.resident < u64::from(peers) {
        let text = filled.tally.error_text.unwrap_or_default();
        eprintln!("warning: {name} took {} of {peers} peers in {text:?}", filled.resident);
    }
    let grown = after.rss_bytes.saturating_sub(before.rss_bytes);
    Ok(Cell {
        per_torrent,
        families,
        resident: filled.resident,
        rss_before_bytes: before.rss_bytes,
        rss_after_bytes: after.rss_bytes,
        bytes_per_peer: per(grown, filled.resident),
    })
}

impl Table {
    fn print(&self, per_torrent: &[u32]) {
        println!("machine: {}", self.machine.line());
        println!(
            "resident bytes per peer with {} peers, by peers a torrent\n",
            grouped(self.peers.into())
        );
        let sizes: Vec<String> = per_torrent.iter().map(|it| grouped((*it).into())).collect();
        println!("| tracker | family | {} |", sizes.join(" | "));
        println!("|---|---|{}", "---:|".repeat(sizes.len()));
        for row in &self.rows {
            for families in [Families::V4, Families::V6] {
                let bytes = per_torrent.iter().map(|size| {
                    let wanted = |it: &&Cell| it.families == families && it.per_torrent == *size;
                    let cell = row.cells.iter().find(wanted);
                    cell.map_or_else(|| "–".to_owned(), |it| format!("{:.1}", it.bytes_per_peer))
                });
                let bytes: Vec<String> = bytes.collect();
                println!("| {} | {families:?} | {} |", row.name, bytes.join(" | "));
            }
        }
        if self.is_partial {
            println!("\nwarning: interrupted: cells that are missing were not measured");
        }
        println!("\ncommands:");
        self.rows.iter().for_each(|it| println!("- {}: `{}`", it.name, it.command));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_of_all_cells_can_be_run() {
        for per_torrent in [1, 2, 10, 100, 10_000] {
            let plan = plan(1_000_000, per_torrent, Families::V6);
            plan.check().unwrap();
            assert_eq!(plan.torrents * per_torrent, 1_000_000);
        }
        assert_eq!(plan(5, 10, Families::V4).torrents, 1);
    }
}
