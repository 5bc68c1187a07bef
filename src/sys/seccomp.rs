//! Denying io_uring and the clock to ourselves, so that tests meet what container runtimes and
//! sandboxes do to users.
#![expect(unsafe_code, reason = "two system calls, and hooks between fork and exec")]

use std::io;
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// io_uring_setup, io_uring_enter and io_uring_register: 425 to 427 on every architecture.
const IO_URING_CALLS: RangeInclusive<u32> = 425..=427;

/// The two calls that tell of the system clock, one of which a C library makes.
#[expect(clippy::cast_possible_truncation, reason = "numbers of system calls are small")]
const CLOCK_CALLS: [u32; 2] = [libc::SYS_adjtimex as u32, libc::SYS_clock_adjtime as u32];

/// Makes the io_uring system calls of the calling thread, and of all it starts from now on, fail
/// with `errno`. There is no way back.
///
/// # Errors
/// Where the kernel has no seccomp filters.
#[doc(hidden)]
pub fn deny_io_uring(errno: i32) -> io::Result<()> {
    deny(IO_URING_CALLS, errno)
}

/// Makes system calls of the calling thread, and of all it starts from now on, fail with `errno`.
fn deny(calls: RangeInclusive<u32>, errno: i32) -> io::Result<()> {
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    };
    let verdict = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
    let mut filter = [
        // The system call's number stands at the front of what a filter sees.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, *calls.start(), 0, 2),
        op(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, *calls.end(), 1, 0),
        op(libc::BPF_RET | libc::BPF_K, verdict, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: 5, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let (option, mode) = (libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER);
    // SAFETY: the program lives during the call, which copies it, and says its true length.
    check(unsafe { libc::prctl(option, mode, &raw const program) })
}

/// Lets a child process start without io_uring, as under a container runtime's filter: its calls
/// fail with `errno` (Docker and containerd: EPERM, Podman: ENOSYS).
#[doc(hidden)]
pub fn command_without_io_uring(command: &mut Command, errno: i32) -> &mut Command {
    // SAFETY: the hook makes two system calls and allocates nothing, as is required after fork.
    unsafe { command.pre_exec(move || deny_io_uring(errno)) }
}

/// Lets a child process start without a word of the kernel's on the system clock, as in a sandbox
/// that keeps it from being set (`SystemCallFilter=~@clock`): its calls fail with `errno`.
#[doc(hidden)]
pub fn command_without_clock(command: &mut Command, errno: i32) -> &mut Command {
    let deny_both = move || CLOCK_CALLS.iter().try_for_each(|it| deny(*it..=*it, errno));
    // SAFETY: the hook makes four system calls and allocates nothing, as is required after fork.
    unsafe { command.pre_exec(deny_both) }
}

fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
