//! The signals that the process handles.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) struct Signals {
    pub(crate) reload: Signal,
    pub(crate) terminate: Signal,
    pub(crate) interrupt: Signal,
}

impl Signals {
    /// Starts to receive signals. Must be called inside the runtime.
    ///
    /// # Errors
    /// Errors of the system call.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for a signal that requests a stop.
    pub(crate) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
