//! Why the program ends without success, and its exit code.

use std::io;
use std::process::ExitCode;

use skep::client::tls::TlsConfigError;

use crate::attack::AttackError;
use crate::contestant::ContestantStartError;
use crate::endpoint::{ResolveError, TargetError};
use crate::hold::HoldError;
use crate::interrupt::{TooEarlyError, WatchError};
use crate::limit::ServeError;
use crate::memory::MemoryError;
use crate::plan::PlanError;
use crate::plot::PlotError;
use crate::run::RunError;
use crate::veth::VethError;

/// Why the program ends without success: one sentence with the cause.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadtestError {
    /// The arguments make no sense.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A target has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// There are no TLS settings for the target.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    /// Signals cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The CPUs that this process may use are not known.
    #[error("cannot read the usable CPUs: {0}")]
    Cpus(io::Error),
    /// A tracker cannot be started.
    #[error(transparent)]
    Start(#[from] ContestantStartError),
    /// No skep could be started, not even within this program.
    #[error("no skep could be started")]
    NoSkep,
    /// A run failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A run of a comparison failed.
    #[error("{name}: {error} {words}")]
    Compared {
        /// The tracker.
        name: String,
        /// Why.
        error: Box<RunError>,
        /// The tracker's last output.
        words: String,
    },
    /// A comparison over a veth pair failed.
    #[error(transparent)]
    Veth(#[from] VethError),
    /// An attack failed.
    #[error(transparent)]
    Attack(#[from] AttackError),
    /// Connections could not be held.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// Memory could not be measured.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Nothing is served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The plot could not be drawn or written.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// A result cannot be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Expectations were missed.
    #[error("{}", .0.join("; "))]
    Missed(Vec<String>),
    /// A signal came before anything was measured.
    #[error(transparent)]
    TooEarly(#[from] TooEarlyError),
    /// A signal ended the run, after a report on what was measured until then.
    #[error("interrupted")]
    Interrupted,
}

/// Arguments that make no sense: the sentence names the option to change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    /// The workload.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The targets.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Options of an attack, without one.
    #[error("options of the attack profiles have no effect on this --profile")]
    NoAttack,
    /// An attack on no tracker, or on several.
    #[error(
        "an attack profile needs the tracker to attack as its one --target; a skep limits sources \
         on loopback only with an empty exempt list in [limits]"
    )]
    AttackTarget,
    /// An attack over another protocol.
    #[error("attack profiles use UDP: set --target HOST:PORT")]
    AttackProtocol,
    /// Connections that are not WebSockets.
    #[error("hold needs a ws or wss URL")]
    HoldUrl,
    /// A comparison by a profile that has none.
    #[error("this profile is a single run: leave out compare")]
    CompareProfile,
    /// A comparison over a veth pair by another protocol.
    #[error("--network veth is for UDP: leave out --protocol")]
    VethProtocol,
    /// A comparison over both families.
    #[error("compare one IP version at a time: --families v4 or v6")]
    CompareFamilies,
}

impl LoadtestError {
    /// Success, unless expectations were missed.
    pub(crate) fn of_missed(missed: Vec<String>) -> Result<(), Self> {
        if missed.is_empty() { Ok(()) } else { Err(Self::Missed(missed)) }
    }

    /// 2 for invalid usage, as clap has it, else 1.
    pub(crate) fn exit_code(&self) -> ExitCode {
        const USAGE: u8 = 2;
        match self {
            Self::Usage(_) => ExitCode::from(USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}
