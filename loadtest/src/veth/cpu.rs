//! CPU time of the server's side: the tracker's threads, the kernel's thread that receives for its
//! interface, and the softirq daemon of its CPU, each to the nanosecond from the scheduler.
//!
//! A softirq that interrupts one of these threads is in that thread's time; what sends a response
//! through the network stack is in the time of the thread that called send.

use std::fs;

use serde::Serialize;

use crate::process::usage;

/// Nanoseconds of CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ServerCpu {
    /// The tracker's process.
    pub(crate) process_ns: u64,
    /// The kernel's thread that receives for the interface (NAPI), XDP programs included.
    pub(crate) napi_ns: u64,
    /// The softirq daemon of the server's CPU.
    pub(crate) softirq_ns: u64,
}

impl ServerCpu {
    /// All of it.
    pub(crate) fn total_ns(self) -> u64 {
        self.process_ns + self.napi_ns + self.softirq_ns
    }

    /// What was used since an earlier reading.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            process_ns: self.process_ns.saturating_sub(earlier.process_ns),
            napi_ns: self.napi_ns.saturating_sub(earlier.napi_ns),
            softirq_ns: self.softirq_ns.saturating_sub(earlier.softirq_ns),
        }
    }
}

/// Where the CPU time of a server's side is read.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    process: u32,
    napi: Vec<u32>,
    softirq: Vec<u32>,
}

impl Meter {
    /// Of a tracker's process, the receiving threads of an interface, and a CPU.
    pub(crate) fn new(process: u32, interface: &str, cpu: usize) -> Self {
        let daemon = format!("ksoftirqd/{cpu}");
        Self { process, napi: napi_threads(interface), softirq: threads(|name| name == daemon) }
    }

    /// Reads all of them; `None` once the tracker has ended.
    pub(crate) fn read(&self) -> Option<ServerCpu> {
        let sum = |threads: &[u32]| threads.iter().filter_map(|it| kernel_thread_ns(*it)).sum();
        Some(ServerCpu {
            process_ns: usage(self.process)?.cpu_ns,
            napi_ns: sum(&self.napi),
            softirq_ns: sum(&self.softirq),
        })
    }
}

/// Nanoseconds that a CPU has been idle, from /proc/stat; `None` if it is not there.
pub(crate) fn idle_ns(cpu: usize) -> Option<u64> {
    idle_in(&fs::read_to_string("/proc/stat").ok()?, cpu)
}

/// User, nice, system, idle and waiting for disks are the first numbers of a CPU's line, in
/// hundredths of a second.
fn idle_in(stat: &str, cpu: usize) -> Option<u64> {
    const TICK_NS: u64 = 10_000_000;
    let line = stat.lines().find_map(|it| it.strip_prefix(&format!("cpu{cpu} ")))?;
    let mut ticks = line.split_whitespace().skip(3).map_while(|it| it.parse::<u64>().ok());
    Some((ticks.next()? + ticks.next()?) * TICK_NS)
}

fn kernel_thread_ns(thread: u32) -> Option<u64> {
    run_ns(&fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?)
}

/// The first number of a schedstat file: nanoseconds on a CPU.
fn run_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// The kernel's receiving threads of an interface.
pub(crate) fn napi_threads(interface: &str) -> Vec<u32> {
    threads(|name| receives_for(name, interface))
}

/// Whether a thread has this name: `napi/INTERFACE-NUMBER`, cut after 15 bytes by older kernels.
fn receives_for(name: &str, interface: &str) -> bool {
    let rest = name.strip_prefix("napi/").and_then(|it| it.strip_prefix(interface));
    rest.is_some_and(|it| it.starts_with('-'))
}

/// The threads of a process.
pub(crate) fn threads_of(process: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    entries.filter_map(|it| it.file_name().to_str()?.parse().ok()).collect()
}

/// Processes, as which the kernel's threads appear, by name.
fn threads(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    let is_wanted = |number: &u32| {
        let name = fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default();
        wanted(name.trim_end())
    };
    numbers.filter(is_wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receiving_threads_are_known_by_their_interface() {
        assert!(receives_for("napi/s1234-8193", "s1234"));
        assert!(receives_for("napi/s1234567-", "s1234567"));
        for name in ["napi/s12345-8193", "napi/c1234-8193", "s1234-8193", "napi/s1234", ""] {
            assert!(!receives_for(name, "s1234"), "{name}");
        }
    }

    #[test]
    fn time_on_a_cpu_is_the_first_number() {
        assert_eq!(run_ns("81234567 1000 17\n"), Some(81_234_567));
        assert_eq!(run_ns(""), None);
        assert_eq!(run_ns("x 1 2"), None);
    }

    #[test]
    fn a_cpu_is_idle_when_nothing_runs_or_waits_for_disks() {
        let stat = "cpu  9 9 9 9 9\ncpu0 1 2 3 400 50 6 7 8\ncpu1 1 2 3 7 1 6\ncpu10 0 0 0 1 0\n";
        assert_eq!(idle_in(stat, 0), Some(4_500_000_000));
        assert_eq!(idle_in(stat, 1), Some(80_000_000));
        assert_eq!(idle_in(stat, 2), None);
        assert!(idle_ns(0).is_some());
    }

    #[test]
    fn parts_are_read_and_subtracted_each_by_itself() {
        let meter = Meter::new(std::process::id(), "no-such-interface", 0);
        let before = meter.read().unwrap();
        assert!(before.process_ns > 0 && before.napi_ns == 0);
        let spent = |cpu: ServerCpu| cpu.since(before).process_ns > 0;
        while !spent(meter.read().unwrap()) {}
        let later = ServerCpu { napi_ns: 5, ..before };
        let expected = ServerCpu { process_ns: 0, napi_ns: 5, softirq_ns: 0 };
        assert_eq!((later.since(before), expected.total_ns()), (expected, 5));
    }
}
