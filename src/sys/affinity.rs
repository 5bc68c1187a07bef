//! CPUs of this process: which it may use, pinning to one, and the weights of threads.
#![expect(unsafe_code, reason = "a few system calls and the macros for a bit set")]

use std::io;
use std::mem::size_of;
use std::thread::available_parallelism;

/// The CPUs that a worker may be pinned to, in ascending order, never empty: those that this thread
/// may run on (`taskset`, cpusets), and at most as many as the cgroup's quota allows.
///
/// # Errors
/// Errors of the system call, e.g. on a machine with more than 1024 CPUs.
pub fn usable_cpus() -> io::Result<Vec<usize>> {
    let mut set = empty_set();
    // SAFETY: the set lives during the call, which fills in at most its size.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    let allowed = |cpu: &usize| {
        // SAFETY: the range below ends with the set's last bit.
        unsafe { libc::CPU_ISSET(*cpu, &set) }
    };
    let mut cpus: Vec<usize> = (0..8 * size_of::<libc::cpu_set_t>()).filter(allowed).collect();
    // The standard library reads the quotas of both cgroup versions, parents included.
    cpus.truncate(available_parallelism()?.get());
    Ok(cpus)
}

/// Pins the calling thread to one CPU.
///
/// # Errors
/// `InvalidInput` if this process may not use that CPU.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = empty_set();
    if cpu >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the bit has just been checked to be inside the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives during the call, which only reads it.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lowers the priority of the calling thread for its whole life: it gets the weight of nice 19
/// (sched(7)), about 1.5 % of a CPU that one other busy thread uses. SCHED_IDLE would leave a fifth
/// of that, too little for a thread that sometimes holds a lock.
///
/// # Errors
/// If a filter denies the call.
pub fn lower_priority() -> io::Result<()> {
    // On Linux 0 is the calling thread, not its process.
    set_nice(0, 19)
}

/// Sets the weight of a thread of this host, by its number; 0 is the calling one. From -20, which
/// has priority over all others, to 19.
///
/// # Errors
/// `EACCES` or `EPERM` without `CAP_SYS_NICE`, `ESRCH` if there is no such thread.
pub fn set_nice(thread: u32, nice: i8) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice.into()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The beginning of `struct sched_attr` (sched_setattr(2)).
#[repr(C)]
#[derive(Default)]
struct Scheduling {
    bytes: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    slice_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Like [`set_nice`], and sets for how long the thread runs before another may: 100 µs to 100 ms. A
/// thread with a shorter slice gets its share sooner after it wakes up, and not more of it. Kernels
/// before 6.12 leave the slice as it is.
///
/// # Errors
/// As [`set_nice`].
pub fn set_slice(thread: u32, nice: i8, slice_ns: u64) -> io::Result<()> {
    let mut scheduling = Scheduling { nice: nice.into(), slice_ns, ..Scheduling::default() };
    scheduling.bytes = u32::try_from(size_of::<Scheduling>()).unwrap_or(0);
    // SAFETY: the structure begins with its size, lives during the call, and is only read.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const scheduling, 0_u32) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: a bit set of plain integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_use_its_cpu_alone() {
        let cpus = usable_cpus().unwrap();
        let last = *cpus.last().unwrap();
        let seen = std::thread::spawn(move || pin(last).and_then(|()| usable_cpus()));
        assert_eq!(seen.join().unwrap().unwrap(), [last]);
        assert!(pin(1 << 20).is_err());
    }

    #[test]
    fn a_thread_that_gives_way_does_so_alone() {
        // SAFETY: a system call without memory; 0 is the calling thread.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        let seen = std::thread::spawn(move || lower_priority().map(|()| nice()));
        assert_eq!(seen.join().unwrap().unwrap(), 19);
        assert_eq!(nice(), before);
        let error = set_nice(u32::MAX >> 1, 19).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        let seen = std::thread::spawn(move || set_slice(0, 7, 100_000).map(|()| nice()));
        assert_eq!(seen.join().unwrap().unwrap(), 7);
    }
}
