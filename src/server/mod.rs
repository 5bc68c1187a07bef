//! The server: builds everything, runs until it has to stop, and hands over.
//!
//! | module | what it does |
//! |---|---|
//! | `startup` | builds all of it, in the order in which it can fail |
//! | `options`, `live_options` | from settings to each module's options; what a reload can change |
//! | `context` | state that all parts share |
//! | `sockets` | binds, inherits and hands over |
//! | `workers` | the threads that serve |
//! | `cluster` | the thread that exchanges changes with other nodes |
//! | `control` | the thread for signals, reloads, admin pages, the orderly end |
//! | `metrics` | values for Prometheus and the statistics page |
//! | `snapshots` | saves and restores |
//! | `history` | keeps the statistics page's last 24 hours |
//! | `memory` | keeps the process to its cap |
//! | `check` | judges settings and what they name before a start |
//! | `confine`, `state_directory` | rights that are dropped; keys, token and id that are kept |
//! | `admin_address` | the address of the admin listener, for subcommands |
//! | `certificate`, `tls` | the files of the certificate; the one in force |
//! | `log` | log lines |

mod admin_address;
mod certificate;
mod check;
mod cluster;
mod confine;
mod context;
mod control;
mod error;
mod history;
mod live_options;
mod log;
#[doc(hidden)]
pub mod memory;
mod metrics;
mod options;
mod snapshots;
mod sockets;
mod startup;
mod state_directory;
mod tls;
mod workers;
mod xdp;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::config::{Config, SettingsSource};
use crate::sys::stream::uring;

pub(crate) use admin_address::ServingListener;
pub use certificate::Validity;
pub(crate) use certificate::day;
pub use check::CheckReport;
pub use error::StartError;
pub(crate) use error::in_use;
pub use metrics::metrics_page;
pub(crate) use snapshots::SNAPSHOT_LOCK;
pub(crate) use sockets::trial::try_addresses;
pub use sockets::trial::{AddressTrial, BindDenial, UnavailableAddress};
pub(crate) use state_directory::{KEY_VARIABLE, StateDirectoryError, writable};
pub(crate) use xdp::interfaces::chosen as xdp_interfaces;
pub(crate) use xdp::{QUEUES_MAX as XDP_QUEUES_MAX, RINGS_BYTES as XDP_RINGS_BYTES};

/// Serves until SIGTERM or SIGINT, or until a successor has taken over. Blocks. With `take_over` it
/// receives the sockets of the tracker that runs with the same state directory.
///
/// # Errors
/// [`StartError`] if the configuration is invalid, the host does not permit it, there is no process
/// to take over from, or a worker fails later.
pub fn run(source: SettingsSource, take_over: bool) -> Result<(), StartError> {
    let outcome = startup::serve(source, take_over);
    log::finish();
    outcome
}

/// Makes the checks of a start without binding or creating anything: settings, the key of the
/// environment or of the settings, lists, certificate, user, Unix sockets and state directory.
/// Returns all faults and warnings, the settings, and the dates of the certificate.
pub fn check(source: &SettingsSource) -> CheckReport {
    check::check(source)
}

/// The API tokens that a tracker with these settings may have created, each with the user that its
/// file belongs to, the most likely first, as far as this user may read them. A tracker that was
/// started in another way may have another token.
pub(crate) fn kept_tokens(config: &Config) -> Vec<(String, u32)> {
    let usual = || Ok(PathBuf::from(USUAL_STATE_DIRECTORY));
    let places = [options::state_home(config), usual()];
    let mut all: Vec<_> =
        places.into_iter().flatten().filter_map(|it| state_directory::kept_token(&it)).collect();
    all.dedup();
    all
}

/// The admin listener of a tracker on this host that serves: of the one with the state directory of
/// these settings, else, if the settings have the default listener, of the one with the usual state
/// directory. `None` if the settings name another listener with its port: that one is meant.
pub(crate) fn serving_listener(config: &Config) -> Option<ServingListener> {
    let is_default = config.admin.listen == Config::default().admin.listen;
    if !is_default && config.admin.listen.port() != 0 {
        return None;
    }
    let own = options::state_home(config).ok().and_then(|it| admin_address::serving(&it));
    let usual = || admin_address::serving(Path::new(USUAL_STATE_DIRECTORY));
    own.or_else(|| usual().filter(|_| is_default))
}

/// The file with the address of a tracker's admin listener that this user may not read, of those
/// that [`serving_listener`] looks for. The file may not exist where its directory is closed.
pub(crate) fn unreadable_address(config: &Config) -> Option<PathBuf> {
    let own = options::state_path(config);
    let is_default = config.admin.listen == Config::default().admin.listen;
    let usual = Some(PathBuf::from(USUAL_STATE_DIRECTORY)).filter(|_| is_default);
    own.into_iter().chain(usual).find_map(|it| admin_address::unreadable(&it))
}

/// The state directory of the systemd unit in `deploy/`.
const USUAL_STATE_DIRECTORY: &str = "/var/lib/skep";

/// The state directory that a start would use, which may not exist yet, or why there is none.
pub(crate) fn state_directory(config: &Config) -> Result<PathBuf, StateDirectoryError> {
    options::state_home(config)
}

/// From now on a panic on any thread ends the process, with every build profile.
#[doc(hidden)]
pub fn end_with_any_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::finish();
        print(panic);
        if let Some(remedy) = panic.location().and_then(|it| uring::remedy(it.file())) {
            let _ = writeln!(std::io::stderr(), "skep: {remedy}");
        }
        std::process::abort();
    }));
}
