//! The signals that mean something to the process.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are listened for.
pub(crate) struct Signals {
    pub(crate) reload: Signal,
    pub(crate) terminate: Signal,
    pub(crate) interrupt: Signal,
}

impl Signals {
    /// Starts to listen. Needs the runtime around it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one that asks the process to stop.
    pub(crate) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
