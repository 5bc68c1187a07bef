//! Chooses the I/O backend for datagrams: the configured one, or the better one that works on this
//! host.

use crate::config::Io;
use crate::server::StartError;
use crate::server::metrics::sources::BackendInfo;
use crate::sys::probe;
use crate::worker::datagram::DatagramBackend;

/// The backend, and why it was chosen.
pub(crate) struct Choice {
    /// The backend of the workers.
    pub(crate) backend: DatagramBackend,
    /// The labels for the metrics.
    pub(crate) info: BackendInfo,
}

/// Chooses the backend. `auto` falls back with one warning; `uring` does not.
pub(crate) fn choose(io: Io) -> Result<Choice, StartError> {
    let choice = |backend: DatagramBackend, reason| Choice {
        backend,
        info: BackendInfo { backend: backend.label(), reason },
    };
    match io {
        Io::Mmsg => Ok(choice(DatagramBackend::Mmsg, "configured")),
        Io::Uring => match probe::probe() {
            Ok(()) => Ok(choice(DatagramBackend::Uring, "configured")),
            Err(error) => Err(StartError::Failed(format!("{error}, or choose --io auto"))),
        },
        Io::Auto => Ok(match probe::probe() {
            Ok(()) => choice(DatagramBackend::Uring, "probed"),
            Err(error) => {
                tracing::warn!(%error, "io_uring not used, serving with recvmmsg at a higher cost");
                choice(DatagramBackend::Mmsg, error.cause().label())
            }
        }),
    }
}
