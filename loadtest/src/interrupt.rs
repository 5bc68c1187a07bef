//! Ctrl-C and SIGTERM: a run stops sending, and reports what it has measured so far.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Whether signals are watched.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Whether one has arrived.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends the run instead of the process.
///
/// # Errors
/// If this host has no descriptors or threads left.
pub(crate) fn watch() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot watch for signals: {error}");
    let runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        let _within = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        (interrupt, signal(SignalKind::terminate()).map_err(failed)?)
    };
    let wait = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        REQUESTED.store(true, Ordering::Relaxed);
        // The handlers stay for the process, so that a second signal does not cut the report.
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(move || runtime.block_on(wait)).map_err(failed)?;
    WATCHED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether a signal ends the run instead of the process.
pub(crate) fn is_watched() -> bool {
    WATCHED.load(Ordering::Relaxed)
}

/// Whether the run has to end.
#[inline]
pub(crate) fn is_requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error if the run has to end before anything was measured.
///
/// # Errors
/// If a signal has arrived.
pub(crate) fn check(phase: &str) -> Result<(), String> {
    match is_requested() {
        true => Err(format!("interrupted while {phase}: nothing was measured")),
        false => Ok(()),
    }
}
