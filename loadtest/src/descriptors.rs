//! Raises the limit on descriptors.

use std::io;

use rlimit::Resource;

/// Descriptors that this program needs besides connections.
const OTHERS: u64 = 100;

/// Why there are not enough descriptors.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorsError {
    /// The limit cannot be read.
    #[error("cannot read the limit of descriptors: {0}")]
    Unreadable(io::Error),
    /// The hard limit is too low.
    #[error(
        "{connections} connections need {wanted} descriptors, the hard limit is {hard}: raise it \
         (as root: ulimit -Hn {wanted}; systemd: LimitNOFILE={wanted}), for the tracker, too"
    )]
    HardLimit {
        /// Connections to open.
        connections: u64,
        /// Descriptors for them and for the rest.
        wanted: u64,
        /// The hard limit.
        hard: u64,
    },
}

/// Raises this process's limit so that it can open that many connections.
///
/// # Errors
/// If the hard limit prevents it, with the remedy.
pub(crate) fn raise(connections: u64) -> Result<(), DescriptorsError> {
    let wanted = connections + OTHERS;
    let (soft, hard) = Resource::NOFILE.get().map_err(DescriptorsError::Unreadable)?;
    if soft >= wanted {
        return Ok(());
    }
    // Only a privileged process can exceed the hard limit.
    let raised = Resource::NOFILE.set(wanted, hard.max(wanted));
    raised.map_err(|_| DescriptorsError::HardLimit { connections, wanted, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_granted_and_the_impossible_is_explained() {
        raise(10).unwrap();
        let error = raise(1 << 40).unwrap_err().to_string();
        assert!(error.contains("LimitNOFILE="), "{error}");
    }
}
