//! The clock of the process. All other code receives the time as an argument.
#![expect(unsafe_code, reason = "two system calls that no safe crate in use offers")]

use std::io;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::time::Now;

/// Wall-clock time at start, advanced by the monotonic clock. It never jumps, so no recorded moment
/// suddenly expires or lies in the future.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_ns: u64,
}

impl Clock {
    /// Reads both clocks. The process makes one value at start and copies it to every thread.
    #[expect(clippy::disallowed_methods, reason = "this is the edge")]
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX / 2);
        Self { start: Instant::now(), start_ns }
    }

    /// The current moment. No system call, but not free: workers read it once per turn.
    #[inline]
    pub fn now(&self) -> Now {
        let elapsed = self.start.elapsed();
        // One product and one sum: cheaper than through u128.
        let elapsed_ns = elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos());
        Now::from_ns(self.start_ns + elapsed_ns)
    }

    /// Nanoseconds from the start to a moment that this clock returned.
    #[inline]
    pub fn elapsed_ns_at(&self, moment: Now) -> u64 {
        moment.ns().saturating_sub(self.start_ns)
    }
}

/// CPU time that this thread has used, in nanoseconds, the kernel's work for it included. A system
/// call: sample it.
pub fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the value lives during the call, which fills it in.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let [seconds, ns] = [time.tv_sec, time.tv_nsec].map(|it| u64::try_from(it).unwrap_or(0));
    seconds * 1_000_000_000 + ns
}

/// The kernel's record of how well the system clock is synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synchronisation {
    /// Whether a service synchronises it: neither STA_UNSYNC nor TIME_ERROR.
    pub is_synchronised: bool,
    /// Estimated error, in microseconds.
    pub error_us: u64,
    /// Maximum error, in microseconds. From 16 s on, the kernel counts the clock as unsynchronised.
    pub error_us_max: u64,
}

/// Reads whether the system clock is synchronised: adjtimex(2), without setting anything.
///
/// # Errors
/// Errors of the system call: sandboxes deny it together with the setting of clocks.
pub fn synchronisation() -> io::Result<Synchronisation> {
    // SAFETY: only integers, for each of which zero is a value. `modes` of zero sets nothing.
    let mut told: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: no other reference to the value exists, and it lives during the call, which fills it
    // in.
    let state = unsafe { libc::adjtimex(&raw mut told) };
    if state == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(Synchronisation {
        is_synchronised: state != libc::TIME_ERROR && told.status & libc::STA_UNSYNC == 0,
        error_us: u64::try_from(told.esterror).unwrap_or(0),
        error_us_max: u64::try_from(told.maxerror).unwrap_or(0),
    })
}

/// Detects that the system clock is set. It compares the clock with one that no process can set,
/// and that continues while the host sleeps.
#[derive(Clone, Copy, Debug)]
pub struct ClockWatch {
    lead_ns: i64,
}

impl ClockWatch {
    /// Starts the comparison.
    pub fn start() -> Self {
        Self { lead_ns: lead_ns() }
    }

    /// Nanoseconds by which the system clock was set forward since the start; negative if it was
    /// set back. A change of speed affects both clocks equally, so it does not count.
    pub fn set_ns(&self) -> i64 {
        lead_ns() - self.lead_ns
    }
}

/// How far the system clock is ahead of the clock since boot, in nanoseconds.
fn lead_ns() -> i64 {
    // Another thread may run between two readings: the closest pair is used.
    const TRIES: usize = 8;
    let read_ns = |id| {
        let time = clock_gettime(id);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    };
    let pair = || {
        let before_ns = read_ns(ClockId::Boottime);
        let wall_ns = read_ns(ClockId::Realtime);
        let passed_ns = read_ns(ClockId::Boottime) - before_ns;
        (passed_ns, wall_ns - before_ns)
    };
    std::iter::repeat_with(pair).take(TRIES).min().map_or(0, |it| it.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_starts_at_the_wall_clock_and_goes_on() {
        let clock = Clock::start();
        let first = clock.now();
        let wall = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(first.seconds().abs_diff(wall) <= 1);
        while clock.now() == first {}
        assert!(clock.now() > first);
    }

    #[test]
    fn the_kernel_tells_of_the_clock_or_why_it_does_not() {
        match synchronisation() {
            // If no service synchronises the clock, the kernel lets the error grow up to 16 s.
            Ok(state) => {
                assert!(!state.is_synchronised || state.error_us_max < 16_000_000, "{state:?}");
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    #[test]
    fn a_clock_that_nobody_sets_is_not_seen_to_be_set() {
        let watch = ClockWatch::start();
        let until_ns = thread_cpu_ns() + 20_000_000;
        while thread_cpu_ns() < until_ns {}
        assert!(watch.set_ns().abs() < 10_000_000, "{}", watch.set_ns());
        let since_epoch = Clock::start().now().ns();
        let earlier = ClockWatch { lead_ns: watch.lead_ns - 3_600_000_000_000 };
        assert!(earlier.set_ns() > 3_599_000_000_000, "an hour forward");
        assert!(watch.lead_ns > 0 && watch.lead_ns.unsigned_abs() < since_epoch);
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let before = thread_cpu_ns();
        while thread_cpu_ns() == before {}
        assert!(thread_cpu_ns() > before);
    }
}
