//! Ignores signals that would end the process without a reason.
#![expect(unsafe_code, reason = "how a signal is treated is set by a call of C")]

use std::io;

/// Ignored from now on, also by programs that this process runs:
///
/// - SIGXFSZ, by which the kernel ends a process that writes beyond the limit on a file's size
///   (RLIMIT_FSIZE). When ignored, the write fails with EFBIG, which is reported like any other
///   failed write.
/// - SIGUSR1 and SIGUSR2, which make other daemons rotate their logs or report figures. Operators
///   and scripts that send them do not intend to end the process.
const IGNORED: [libc::c_int; 3] = [libc::SIGXFSZ, libc::SIGUSR1, libc::SIGUSR2];

/// Makes the kernel discard signals that have no use here and would end this process.
///
/// # Errors
/// Errors of the system call; none is expected.
pub fn ignore_meaningless() -> io::Result<()> {
    IGNORED.into_iter().try_for_each(|signal| {
        // SAFETY: SIG_IGN is not a handler: no code of this process runs in the context of a
        // signal, and nothing is owned by the previous setting.
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
