//! Raises the limit on descriptors.

use rlimit::Resource;

/// Descriptors that this program needs besides connections.
const OTHERS: u64 = 100;

/// Raises this process's limit so that it can open that many connections.
///
/// # Errors
/// If the hard limit prevents it, with the remedy.
pub(crate) fn raise(connections: u64) -> Result<(), String> {
    let wanted = connections + OTHERS;
    let failed = |error: std::io::Error| format!("cannot read the limit of descriptors: {error}");
    let (soft, hard) = Resource::NOFILE.get().map_err(failed)?;
    if soft >= wanted {
        return Ok(());
    }
    // Only a privileged process can exceed the hard limit.
    let raised = Resource::NOFILE.set(wanted, hard.max(wanted));
    raised.map_err(|_| {
        format!(
            "{connections} connections need {wanted} descriptors, the hard limit is {hard}: raise \
             it (as root: ulimit -Hn {wanted}; systemd: LimitNOFILE={wanted}), for the tracker, too"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_granted_and_the_impossible_is_explained() {
        raise(10).unwrap();
        let error = raise(1 << 40).unwrap_err();
        assert!(error.contains("LimitNOFILE="), "{error}");
    }
}
