//! The clock at the edge: everything further in is told the time.
#![expect(unsafe_code, reason = "one system call that no safe crate in use offers")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::time::Now;

/// Wall-clock time at start, carried on by the monotonic clock: it never jumps, so nothing that
/// was timed can suddenly be too old or lie in the future.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_ns: u64,
}

impl Clock {
    /// Reads both clocks. One value is made at start and copied to every thread.
    #[expect(clippy::disallowed_methods, reason = "this is the edge")]
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX / 2);
        Self { start: Instant::now(), start_ns }
    }

    /// The moment. Not free, though no system call: workers ask once a turn.
    #[inline]
    pub fn now(&self) -> Now {
        let elapsed = self.start.elapsed();
        // As one product and sum: cheaper than by way of u128.
        let elapsed_ns = elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos());
        Now::from_ns(self.start_ns + elapsed_ns)
    }

    /// Nanoseconds from the start to a moment this clock gave.
    #[inline]
    pub fn elapsed_ns_at(&self, moment: Now) -> u64 {
        moment.ns().saturating_sub(self.start_ns)
    }
}

/// CPU time this thread has used, in nanoseconds, the kernel's work on its behalf included. A
/// system call: sample it.
pub fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the value lives during the call, which fills it in.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let [seconds, ns] = [time.tv_sec, time.tv_nsec].map(|it| u64::try_from(it).unwrap_or(0));
    seconds * 1_000_000_000 + ns
}

/// Microseconds of the monotonic clock, as the service manager counts them.
pub fn monotonic_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let [seconds, ns] = [time.tv_sec, time.tv_nsec].map(|it| u64::try_from(it).unwrap_or(0));
    seconds * 1_000_000 + ns / 1000
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
    fn cpu_time_grows_with_work() {
        let before = thread_cpu_ns();
        while thread_cpu_ns() == before {}
        assert!(thread_cpu_ns() > before);
    }
}
