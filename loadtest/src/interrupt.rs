//! Ctrl-C and SIGTERM: a run stops sending, waits for responses under way, and reports what it has
//! measured so far. A second signal is for those who do not want to wait: the process ends at once,
//! and so do the trackers that it started, which no signal of the terminal reaches.

use std::io;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code of a run that was interrupted.
const INTERRUPTED: i32 = 1;

/// Whether signals are watched.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Whether one has arrived.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Trackers that were started here, and perhaps some that have ended since.
static STARTED: Mutex<Vec<Weak<Mutex<Child>>>> = Mutex::new(Vec::new());

/// Signals cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch for signals: {0}")]
pub(crate) struct WatchError(#[from] io::Error);

/// A signal has arrived before anything was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted while {phase}: nothing was measured")]
pub(crate) struct TooEarlyError {
    /// What was being done.
    pub(crate) phase: &'static str,
}

/// From now on a signal ends the run instead of the process, and a second one the process.
///
/// # Errors
/// If this host has no descriptors or threads left.
pub(crate) fn watch() -> Result<(), WatchError> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _within = runtime.enter();
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]
    };
    let wait = async move {
        either(&mut signals).await;
        REQUESTED.store(true, Ordering::Relaxed);
        either(&mut signals).await;
        kill(&STARTED.lock().unwrap_or_else(PoisonError::into_inner));
        eprintln!("loadtest: interrupted twice: ended without a report");
        std::process::exit(INTERRUPTED);
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(move || runtime.block_on(wait))?;
    WATCHED.store(true, Ordering::Relaxed);
    Ok(())
}

async fn either([interrupt, terminate]: &mut [Signal; 2]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Registers a process that must not outlive this one.
pub(crate) fn kill_at_end(child: &Arc<Mutex<Child>>) {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    started.retain(|entry| entry.strong_count() > 0);
    started.push(Arc::downgrade(child));
}

fn kill(started: &[Weak<Mutex<Child>>]) {
    for child in started.iter().filter_map(Weak::upgrade) {
        // Fails only if it has ended already.
        let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
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
pub(crate) fn check(phase: &'static str) -> Result<(), TooEarlyError> {
    match is_requested() {
        true => Err(TooEarlyError { phase }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_was_started_is_killed_unless_it_was_dropped() {
        const SIGKILL: i32 = 9;
        let start = || Arc::new(Mutex::new(Command::new("sleep").arg("600").spawn().unwrap()));
        let (running, ended) = (start(), start());
        let started = [&running, &ended].map(Arc::downgrade);
        let mut ended = Arc::into_inner(ended).unwrap().into_inner().unwrap();
        kill(&started);
        let status = running.lock().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(SIGKILL));
        assert!(ended.try_wait().unwrap().is_none());
        ended.kill().unwrap();
        ended.wait().unwrap();
    }
}
