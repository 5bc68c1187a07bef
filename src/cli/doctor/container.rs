//! Findings on the container or control group that skep runs in: runtime, cores, memory.

use super::control_group::ControlGroup;
use super::finding::{Check, Finding};
use super::{HostReport, size};
use crate::config::MemoryCap;

const RUNTIME: Check = Check::new(
    "container.runtime",
    "A bridge in front of a container costs connection tracking for every datagram and may hide \
     clients' addresses; the default seccomp profiles deny io_uring.",
);
const CPU: Check = Check::new(
    "container.cpu",
    "A quota stops all workers for the rest of each tenth of a second in which it is used up, and \
     what comes meanwhile waits or is lost.",
);
const MEMORY: Check = Check::new(
    "container.memory",
    "Where the process takes more than its limit, the kernel ends it. It should have a quarter \
     more than memory.max_memory.",
);

/// Version 1 reports the absence of a limit as a value close to 2^63.
const NO_LIMIT: u64 = 1 << 62;

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    vec![runtime(report), cpu(report), memory(report)]
}

fn runtime(report: &HostReport) -> Finding {
    let Some(name) = runtime_name(report) else { return RUNTIME.ok("not in a container") };
    RUNTIME.info(format!("in a container ({name})")).remedied(
        "give it the host's network (--network host, hostNetwork: true) and the seccomp profile \
         with io_uring (deploy/kubernetes/components/io-uring-seccomp), if it lacks them",
    )
}

/// The runtime of the container that this process is in, if any.
pub(super) fn runtime_name(report: &HostReport) -> Option<&'static str> {
    let host = &report.host;
    let groups = host.text("/proc/self/cgroup").unwrap_or_default();
    let grouped = |names: &[&str]| names.iter().any(|it| groups.contains(it));
    if report.facts.in_kubernetes || grouped(&["kubepods"]) {
        Some("Kubernetes")
    } else if host.has("/run/.containerenv") || grouped(&["libpod"]) {
        Some("Podman")
    } else if host.has("/.dockerenv") || grouped(&["/docker"]) {
        Some("Docker")
    } else if host.has("/run/systemd/container") || grouped(&["/lxc", "containerd"]) {
        Some("another runtime")
    } else {
        None
    }
}

fn cpu(report: &HostReport) -> Finding {
    let group = match ControlGroup::of(&report.host) {
        Ok(group) => group,
        Err(unread) => return CPU.unread(&unread),
    };
    let throttled = |text: &String| {
        text.lines().find_map(|it| it.strip_prefix("nr_throttled ")?.parse::<u64>().ok())
    };
    let stats = [group.texts("cpu.stat"), group.old_texts("cpu", "cpu.stat")].concat();
    let throttled = stats.iter().filter_map(throttled).max().unwrap_or(0);
    let Some(tenths) = quota_tenths(&group) else { return CPU.ok("no quota") };
    let workers = report.workers();
    let fact = format!(
        "{}.{} cores for {workers} workers, used up {throttled} times so far",
        tenths / 10,
        tenths % 10
    );
    let remedy = "no quota: CPUQuota= out of the unit, no --cpus, no resources.limits.cpu \
                  (requests are enough); or fewer workers (server.workers), and cores of their own \
                  (AllowedCPUs=, --cpuset-cpus, the static CPU manager)";
    if workers as u64 * 10 > tenths || throttled > 0 {
        CPU.warning(fact, remedy)
    } else {
        CPU.info(fact).remedied(remedy)
    }
}

/// The lowest quota, in tenths of a core.
fn quota_tenths(group: &ControlGroup<'_>) -> Option<u64> {
    let tenths = |quota: &str, period: &str| {
        let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
        quota.saturating_mul(10).checked_div(period)
    };
    let new = group.texts("cpu.max");
    let new = new.iter().filter_map(|it| it.split_once(' ').and_then(|(a, b)| tenths(a, b)));
    let quotas = group.old_texts("cpu", "cpu.cfs_quota_us"); // -1: none
    let periods = group.old_texts("cpu", "cpu.cfs_period_us");
    let old = quotas.iter().zip(&periods).filter_map(|(quota, period)| tenths(quota, period));
    new.chain(old).min()
}

fn memory(report: &HostReport) -> Finding {
    let group = match ControlGroup::of(&report.host) {
        Ok(group) => group,
        Err(unread) => return MEMORY.unread(&unread),
    };
    let texts =
        [group.texts("memory.max"), group.old_texts("memory", "memory.limit_in_bytes")].concat();
    let limits = texts.iter().filter_map(|it| it.parse::<u64>().ok());
    let limit = limits.filter(|it| *it < NO_LIMIT).min();
    let usable = report.facts.memory.as_ref().ok().copied();
    let Some((room, whose)) =
        limit.map(|it| (it, "limit")).or_else(|| usable.map(|it| (it, "host's")))
    else {
        return MEMORY.info("unknown amount of memory");
    };
    let (cap, setting) = match report.config.memory.max_memory {
        MemoryCap::Bytes(bytes) => (bytes.0, bytes.to_string()),
        // As the server computes it: from groups of version 2, or the host's memory.
        MemoryCap::Auto => (usable.unwrap_or(room) / 4 * 3, "auto".to_owned()),
    };
    let room_text = format!("{} ({whose})", size(room));
    let enough = size(room / 5 * 4);
    if cap == 0 {
        return MEMORY.warning(
            format!("memory.max_memory = 0 sets no cap, with {room_text} of memory"),
            format!("memory.max_memory = \"auto\", or at most {enough}"),
        );
    }
    let fact = format!("memory.max_memory = \"{setting}\", {}, of {room_text}", size(cap));
    let remedy = format!(
        "memory.max_memory at most {enough}, or a limit of at least {} (MemoryMax=, --memory, \
         resources.limits.memory)",
        size(cap.saturating_add(cap / 4))
    );
    if cap > room {
        MEMORY.problem(fact, remedy)
    } else if cap > room / 5 * 4 {
        MEMORY.warning(fact, remedy)
    } else {
        MEMORY.ok(fact)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    const GROUPS: &str = "/proc/self/cgroup";

    fn judge(fake: &Fake, id: &str) -> (Severity, String) {
        found(&examine(&fake.report), id)
    }

    #[test]
    fn runtimes_are_known_by_their_marks() {
        let runtime = |fake: &Fake| judge(fake, "container.runtime");
        assert_eq!(runtime(&Fake::new()).0, Severity::Ok);
        let marks = [
            ("/.dockerenv", "", "Docker"),
            ("/run/.containerenv", "", "Podman"),
            ("/run/systemd/container", "lxc", "another runtime"),
            (GROUPS, "0::/kubepods.slice/pod1\n", "Kubernetes"),
            (GROUPS, "0::/system.slice/skep.service\n", ""),
        ];
        for (path, text, name) in marks {
            let (severity, said) = runtime(&Fake::new().with(path, text));
            assert_eq!(severity, if name.is_empty() { Severity::Ok } else { Severity::Info });
            assert!(said.contains(name), "{said}");
        }
        let mut fake = Fake::new();
        fake.report.facts.in_kubernetes = true;
        assert!(runtime(&fake).1.contains("Kubernetes"));
    }

    #[test]
    fn a_quota_below_the_workers_is_warned_of() {
        let quota = |text: &str, workers, throttled: &str| {
            let mut fake = Fake::new()
                .with(GROUPS, "0::/a\n")
                .with("/sys/fs/cgroup/a/cpu.max", text)
                .with("/sys/fs/cgroup/a/cpu.stat", throttled);
            fake.report.facts.cores = Ok(workers);
            judge(&fake, "container.cpu")
        };
        assert_eq!(quota("max 100000\n", 4, "").0, Severity::Ok);
        let (severity, text) = quota("150000 100000\n", 4, "usage_usec 1\nnr_throttled 7\n");
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("1.5 cores for 4 workers, used up 7 times"), "{text}");
        assert_eq!(quota("400000 100000\n", 4, "nr_throttled 0\n").0, Severity::Info);
        assert_eq!(quota("400000 100000\n", 4, "nr_throttled 1\n").0, Severity::Warning);
        assert_eq!(quota("1 0\n", 4, "").0, Severity::Ok, "nonsense is no quota");
        assert_eq!(judge(&Fake::new(), "container.cpu").0, Severity::Info);
    }

    #[test]
    fn quotas_of_version_1_are_seen() {
        let quota = |text: &str| {
            let mut fake = Fake::new()
                .with(GROUPS, "3:cpu,cpuacct:/a\n0::/\n")
                .with("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", text)
                .with("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
            fake.report.facts.cores = Ok(4);
            judge(&fake, "container.cpu").0
        };
        assert_eq!(quota("-1\n"), Severity::Ok);
        assert_eq!(quota("200000\n"), Severity::Warning);
    }

    #[test]
    fn a_cap_has_to_fit_into_the_limit() {
        let memory = |setting: &str, limit: &str| {
            let fake = Fake::new()
                .configured(&format!("[memory]\nmax_memory = {setting}"))
                .with(GROUPS, "0::/a\n")
                .with("/sys/fs/cgroup/a/memory.max", limit);
            judge(&fake, "container.memory")
        };
        assert_eq!(memory("\"1GiB\"", "2147483648\n").0, Severity::Ok);
        assert_eq!(memory("\"1GiB\"", "1200000000\n").0, Severity::Warning);
        let (severity, text) = memory("\"4GiB\"", "2147483648\n");
        assert_eq!(severity, Severity::Problem);
        assert!(text.contains("4 GiB, of 2 GiB (limit)") && text.contains("at least 5 GiB"));
        assert_eq!(memory("0", "2147483648\n").0, Severity::Warning);
        // The host of these tests has 16 GiB.
        assert_eq!(memory("\"auto\"", "max\n").0, Severity::Ok);
        assert_eq!(memory("\"15GiB\"", "max\n").0, Severity::Warning);
        assert_eq!(judge(&Fake::new(), "container.memory").0, Severity::Info);
    }

    #[test]
    fn a_limit_of_version_1_that_auto_does_not_know_is_a_problem() {
        let fake = Fake::new()
            .with(GROUPS, "4:memory:/a\n0::/\n")
            .with("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
            .with("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2147483648\n");
        let (severity, text) = judge(&fake, "container.memory");
        assert_eq!(severity, Severity::Problem);
        assert!(text.contains("\"auto\", 12 GiB, of 2 GiB (limit)"), "{text}");
    }
}
