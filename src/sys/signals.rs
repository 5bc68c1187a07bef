//! Signals that would end the process and mean nothing here.
#![expect(unsafe_code, reason = "how a signal is treated is set by a call of C")]

use std::io;

/// Ignored from now on, by programs that this process may run as well:
///
/// - SIGXFSZ, by which the kernel ends who writes beyond the limit on a file's size (RLIMIT_FSIZE):
///   without it the write fails with EFBIG, which is reported like any other failure to write;
/// - SIGUSR1 and SIGUSR2, by which other daemons rotate their logs or report figures: whoever sends
///   them out of habit does not want the end of the process.
const IGNORED: [libc::c_int; 3] = [libc::SIGXFSZ, libc::SIGUSR1, libc::SIGUSR2];

/// Has the kernel discard the signals that would end this process and mean nothing here.
///
/// # Errors
/// The kernel's; it has no reason to.
pub fn ignore_meaningless() -> io::Result<()> {
    IGNORED.into_iter().try_for_each(|signal| {
        // SAFETY: SIG_IGN is no handler: nothing of ours is run in the context of a signal, and
        // nothing is owned by whatever was set before.
        let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
        if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_beyond_the_limit_is_an_error_and_not_the_end() {
        ignore_meaningless().unwrap();
        let mine = std::process::id();
        let status = std::fs::read_to_string(format!("/proc/{mine}/status")).unwrap();
        let ignored = status.lines().find_map(|it| it.strip_prefix("SigIgn:\t")).unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        for signal in IGNORED {
            assert_ne!(ignored >> (signal - 1) & 1, 0, "{signal}");
        }
    }
}
