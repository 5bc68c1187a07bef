//! Weights of the threads of a comparison over a veth pair, by which the scheduler divides a CPU.
//!
//! The tracker and the kernel's thread that receives for it share one CPU, and neither may have
//! more of it than the other. The kernel may schedule processes in groups (autogroups of sessions,
//! control groups), each with the weight of one thread: then the receiving thread, which is in no
//! group, gets the weight of the tracker's group. Within the group the tracker outweighs the
//! generator, as a group's weight is divided among CPUs.

use std::fs;
use std::io;

use nix::errno::Errno;
use skep::sys::affinity::set_nice;

use super::VethError;
use super::cpu::threads_of;

/// How long the kernel's receiving threads run before others: not long, so that they begin soon
/// after a frame has come, as an interrupt would.
pub(crate) const RECEIVER_SLICE_NS: u64 = 100_000;
/// The tracker's threads.
const TRACKER_NICE: i8 = -10;
/// The generator's threads.
pub(crate) const GENERATOR_NICE: i8 = 0;
/// The thread that takes responses, which has room for 256.
pub(crate) const SINK_NICE: i8 = -20;

/// Sets the weight of a tracker's threads.
///
/// # Errors
/// Without `CAP_SYS_NICE`.
pub(crate) fn weigh_tracker(process: u32) -> Result<(), VethError> {
    for thread in threads_of(process) {
        match set_nice(thread, TRACKER_NICE) {
            // It has ended.
            Err(error) if is_missing(&error) => {}
            done => done.map_err(VethError::Cpu)?,
        }
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// The weight of the thread that receives for the tracker.
pub(crate) fn receiver_nice() -> i8 {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    weight_of_group(
        &read("/proc/self/cgroup"),
        &read("/proc/sys/kernel/sched_autogroup_enabled"),
        &read("/proc/self/autogroup"),
    )
}

/// The weight of the group in which processes of this one are scheduled; that of the tracker alone
/// if there is none.
fn weight_of_group(control_groups: &str, autogroup_enabled: &str, autogroup: &str) -> i8 {
    let is_grouped = control_groups.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or("/"));
        let has_cpu = controllers.is_empty() || controllers.split(',').any(|it| it == "cpu");
        has_cpu && path != "/"
    });
    let session = || autogroup.trim_end().rsplit_once("nice ")?.1.parse().ok();
    match (is_grouped, autogroup_enabled.trim_end()) {
        (true, _) => 0,
        (false, "1") => session().unwrap_or(TRACKER_NICE),
        _ => TRACKER_NICE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiving_thread_weighs_as_much_as_the_trackers_group() {
        let roots = "9:name=systemd:/x\n4:memory:/a\n1:cpu,cpuacct:/\n0::/\n";
        assert_eq!(weight_of_group(roots, "1\n", "/autogroup-7 nice -5\n"), -5);
        assert_eq!(weight_of_group(roots, "0\n", "/autogroup-7 nice -5\n"), TRACKER_NICE);
        assert_eq!(weight_of_group("", "", ""), TRACKER_NICE);
        assert_eq!(weight_of_group("0::/user.slice\n", "1\n", "/autogroup-7 nice -5\n"), 0);
        assert_eq!(weight_of_group("1:cpu,cpuacct:/a\n", "0\n", ""), 0);
    }
}
