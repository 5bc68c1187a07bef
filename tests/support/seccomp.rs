//! Denying io_uring and the clock to what a test runs, as container runtimes and sandboxes do.
//!
//! A filter belongs to the thread that applies it, and to all threads and processes it starts. So
//! a thread of its own applies it and runs what the test gives it; nothing has to happen between
//! fork and exec.

use std::ops::RangeInclusive;

use libc::c_long;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// io_uring_setup, io_uring_enter and io_uring_register: 425 to 427 on every architecture.
const IO_URING_CALLS: RangeInclusive<c_long> = 425..=427;

/// The two calls that read the state of the system clock, one of which a C library makes.
const CLOCK_CALLS: [c_long; 2] = [libc::SYS_adjtimex, libc::SYS_clock_adjtime];

/// Runs `action` where io_uring's system calls fail with `errno` (Docker and containerd: EPERM,
/// Podman: ENOSYS).
pub(crate) fn without_io_uring<T: Send>(errno: i32, action: impl FnOnce() -> T + Send) -> T {
    without(IO_URING_CALLS, errno, action)
}

/// Runs `action` where the system clock's calls fail with `errno`, as in a sandbox that keeps it
/// from being set (`SystemCallFilter=~@clock`).
pub(crate) fn without_clock<T: Send>(errno: i32, action: impl FnOnce() -> T + Send) -> T {
    without(CLOCK_CALLS, errno, action)
}

fn without<T: Send>(
    calls: impl IntoIterator<Item = c_long> + Send,
    errno: i32,
    action: impl FnOnce() -> T + Send,
) -> T {
    let filtered = move || {
        let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
        let denied = SeccompAction::Errno(errno.unsigned_abs());
        let target = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, target).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        action()
    };
    std::thread::scope(|scope| scope.spawn(filtered).join().unwrap())
}
