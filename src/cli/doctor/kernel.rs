//! Findings on the kernel: its version, and whether io_uring works or why it does not.

use super::HostReport;
use super::finding::{Check, Finding};
use super::host::{Host, HostReadError};
use crate::config::Io;

const VERSION: Check = Check::new(
    "kernel.version",
    "io_uring as skep uses it (multishot receives into rings of buffers) came with Linux 6.1. On \
     older kernels skep moves datagrams with recvmmsg.",
);
const IO_URING: Check = Check::new(
    "kernel.io_uring",
    "Without it skep serves through recvmmsg and epoll, which its log and its metrics show \
     (skep_io_backend_info); with server.io = \"uring\" it does not start.",
);
const SYSCTL: Check = Check::new(
    "kernel.io_uring_sysctl",
    "kernel.io_uring_disabled (Linux 6.6): 0 allows io_uring to all, 1 to privileged processes and \
     the group kernel.io_uring_group, 2 to no process.",
);
const SECCOMP: Check = Check::new(
    "kernel.seccomp",
    "Container runtimes deny io_uring by a seccomp filter: Docker from 25.0 on, containerd from \
     2.0 on, Podman.",
);

/// The first version with all features that skep uses.
const RELEASE_MIN: (u32, u32) = (6, 1);

const RELEASE_PATH: &str = "/proc/sys/kernel/osrelease";

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    vec![version(report), io_uring(report), sysctl(report), seccomp(report)]
}

/// The kernel's version: major, minor.
pub(super) fn release(host: &Host) -> Result<(u32, u32), HostReadError> {
    let text = host.text(RELEASE_PATH)?;
    let mut numbers = text.split(|it: char| !it.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(HostReadError::odd(RELEASE_PATH, "holds no version")),
    }
}

fn version(report: &HostReport) -> Finding {
    match release(&report.host) {
        Err(unread) => VERSION.unread(&unread),
        Ok(release) => {
            let fact = format!("Linux {}.{}", release.0, release.1);
            if release >= RELEASE_MIN {
                VERSION.ok(fact)
            } else {
                let remedy = "run a kernel from 6.1 on (Debian 12, Ubuntu 24.04, RHEL 10)";
                VERSION.warning(fact, remedy)
            }
        }
    }
}

fn io_uring(report: &HostReport) -> Finding {
    const WORKS: &str = "a datagram was sent and received through a ring";
    match (&report.facts.io_uring, report.config.server.io) {
        (Ok(()), Io::Mmsg) => IO_URING.ok("works, but is not used, because server.io = \"mmsg\""),
        (Ok(()), Io::Uring) => IO_URING.ok(WORKS),
        (Ok(()), Io::Auto) => match fallback(report) {
            None => IO_URING.ok(WORKS),
            Some(reason) => IO_URING.warning(
                format!("works here, but the running tracker does not use it ({reason})"),
                "see the line \"io_uring is not usable\" in the tracker's log: it names the remedy",
            ),
        },
        (Err(denial), Io::Mmsg) => {
            IO_URING.ok(format!("{}; not needed, because server.io = \"mmsg\"", denial.problem))
        }
        (Err(denial), Io::Auto) => IO_URING.warning(
            &denial.problem,
            format!("{}; or set server.io = \"mmsg\" to accept this", denial.remedy),
        ),
        (Err(denial), Io::Uring) => IO_URING.problem(
            format!("{}, and server.io = \"uring\" requires io_uring", denial.problem),
            format!("{}; or set server.io = \"auto\"", denial.remedy),
        ),
    }
}

/// Why the running tracker, if any, does not use io_uring. The same cause may not affect this
/// process.
fn fallback(report: &HostReport) -> Option<&str> {
    const SERIES: &str = "skep_io_backend_info{backend=\"mmsg\",reason=\"";
    let metrics = report.facts.metrics.as_ref().ok()?;
    let reason = metrics.lines().find_map(|it| it.strip_prefix(SERIES))?.strip_suffix("\"} 1")?;
    (reason != "configured").then_some(reason)
}

fn sysctl(report: &HostReport) -> Finding {
    let works = report.facts.io_uring.is_ok();
    match report.host.number("/proc/sys/kernel/io_uring_disabled") {
        Ok(0) => SYSCTL.ok("kernel.io_uring_disabled = 0"),
        Ok(value) if works => SYSCTL
            .info(format!("kernel.io_uring_disabled = {value}, but this user may use io_uring"))
            .remedied("check that the tracker's user may as well: runuser -u USER -- skep doctor"),
        Ok(value) => SYSCTL.warning(
            format!("kernel.io_uring_disabled = {value}"),
            "$ sysctl -w kernel.io_uring_disabled=0\nand the same in /etc/sysctl.d/99-skep.conf",
        ),
        Err(unread) if unread.is_missing && report.host.has("/proc/sys/kernel") => {
            SYSCTL.ok("the kernel does not have this sysctl")
        }
        Err(unread) => SYSCTL.unread(&unread),
    }
}

fn seccomp(report: &HostReport) -> Finding {
    const PATH: &str = "/proc/self/status";
    let status = match report.host.text(PATH) {
        Ok(status) => status,
        Err(unread) => return SECCOMP.unread(&unread),
    };
    let mode = status.lines().find_map(|it| it.strip_prefix("Seccomp:")).map(str::trim);
    match (mode, report.facts.io_uring.is_ok()) {
        (Some("0"), _) => SECCOMP.ok("no filter is in force"),
        (Some("1" | "2"), true) => SECCOMP.ok("a filter is in force, and lets io_uring through"),
        (Some("1" | "2"), false) => SECCOMP.warning(
            "a filter is in force, and io_uring does not work",
            "allow io_uring_setup, io_uring_enter and io_uring_register in the profile: for \
             Kubernetes deploy/kubernetes/components/io-uring-seccomp, for Docker \
             --security-opt seccomp=skep-io-uring.json from the same folder",
        ),
        _ => SECCOMP.ok("the kernel has no seccomp"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    fn judge(fake: &Fake, id: &str) -> (Severity, String) {
        found(&examine(&fake.report), id)
    }

    #[test]
    fn kernels_from_6_1_on_are_well() {
        let version = |text| {
            let fake = Fake::new().with(RELEASE_PATH, text);
            judge(&fake, "kernel.version").0
        };
        assert_eq!(version("6.18.44-fc\n"), Severity::Ok);
        assert_eq!(version("6.1.0-13-amd64\n"), Severity::Ok);
        assert_eq!(version("5.15.0\n"), Severity::Warning);
        assert_eq!(version("10.0-rc1\n"), Severity::Ok);
        assert_eq!(version("plan 9\n"), Severity::Info);
    }

    #[test]
    fn denied_io_uring_is_as_bad_as_the_settings_make_it() {
        let judge = |settings: &str| {
            let mut fake = Fake::new().configured(settings);
            fake.deny_io_uring();
            judge(&fake, "kernel.io_uring")
        };
        let (severity, text) = judge("");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("seccomp profile denies") && text.contains("server.io = \"mmsg\""));
        let (severity, text) = judge("[server]\nio = \"uring\"");
        assert_eq!(severity, Severity::Problem);
        assert!(text.contains("allow io_uring_setup"), "{text}");
        assert_eq!(judge("[server]\nio = \"mmsg\"").0, Severity::Ok);
        assert_eq!(found(&examine(&Fake::new().report), "kernel.io_uring").0, Severity::Ok);
    }

    #[test]
    fn a_running_tracker_that_was_denied_io_uring_is_told() {
        let judge = |backend: &str, reason: &str, settings: &str| {
            let mut fake = Fake::new().configured(settings);
            let labels = format!("backend=\"{backend}\",reason=\"{reason}\"");
            fake.report.facts.metrics =
                Ok(format!("a 1\nskep_io_backend_info{{{labels}}} 1\nb 2\n"));
            judge(&fake, "kernel.io_uring")
        };
        let (severity, text) = judge("mmsg", "seccomp", "");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("the running tracker does not use it (seccomp)"), "{text}");
        assert_eq!(judge("uring", "probed", "").0, Severity::Ok);
        assert_eq!(judge("mmsg", "configured", "").0, Severity::Ok);
        assert_eq!(judge("mmsg", "seccomp", "[server]\nio = \"mmsg\"").0, Severity::Ok);
    }

    #[test]
    fn the_sysctl_is_judged_by_what_it_does() {
        const PATH: &str = "/proc/sys/kernel/io_uring_disabled";
        let id = "kernel.io_uring_sysctl";
        assert_eq!(judge(&Fake::new().with(PATH, "0\n"), id).0, Severity::Ok);
        let mut fake = Fake::new().with(PATH, "2\n");
        assert_eq!(judge(&fake, id).0, Severity::Info, "a privileged user may");
        fake.deny_io_uring();
        let (severity, text) = judge(&fake, id);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("$ sysctl -w kernel.io_uring_disabled=0"), "{text}");
        assert_eq!(judge(&Fake::new().with(RELEASE_PATH, "6.1"), id).0, Severity::Ok);
        assert_eq!(judge(&Fake::new(), id).0, Severity::Info);
    }

    #[test]
    fn a_filter_is_told_where_io_uring_does_not_work() {
        const PATH: &str = "/proc/self/status";
        let id = "kernel.seccomp";
        assert_eq!(judge(&Fake::new().with(PATH, "Seccomp:\t0\n"), id).0, Severity::Ok);
        let mut fake = Fake::new().with(PATH, "Name:\tskep\nSeccomp:\t2\n");
        assert_eq!(judge(&fake, id).0, Severity::Ok);
        fake.deny_io_uring();
        let (severity, text) = judge(&fake, id);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("io_uring_setup"), "{text}");
        assert_eq!(judge(&Fake::new(), id).0, Severity::Info);
    }
}
