//! Findings on limits of the process: open files, locked memory.

use super::finding::{Check, Finding};
use super::{HostReport, kernel, size};

const OPEN_FILES: Check = Check::new(
    "limits.open_files",
    "Each connection over TCP and each worker's socket takes one; nine tenths are for connections. \
     skep raises its soft limit to the hard one by itself.",
);
const LOCKED_MEMORY: Check = Check::new(
    "limits.locked_memory",
    "Before Linux 5.12 the rings of io_uring and their buffers count as locked memory; later \
     kernels count the rings alone, less than 1 MiB for each worker.",
);

/// Descriptors besides sockets: rings, logs, lists, the database.
const OTHER_FILES: u64 = 64;

/// A limit from this value on is good, whatever the number of connections.
const OPEN_FILES_GOOD: u64 = 65_536;

/// Memory that the rings may need, in bytes.
const LOCKED_MEMORY_MIN: u64 = 64 << 20;

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    vec![open_files(report), locked_memory(report)]
}

fn open_files(report: &HostReport) -> Finding {
    let limit = match &report.facts.open_files {
        Ok(limit) => *limit,
        Err(error) => return OPEN_FILES.info(format!("unknown: {error}")),
    };
    let config = &report.config;
    let addresses =
        config.udp_listen().len() + config.http_listen().len() + config.tls_listen().len();
    let sockets = (addresses * report.workers()) as u64 + OTHER_FILES;
    let wanted = sockets + u64::from(config.http.connections_max);
    let remedy = "LimitNOFILE=1048576 in the unit, --ulimit nofile=1048576 for Docker, or\n\
                  $ ulimit -Hn 1048576";
    if limit < sockets {
        let fact = format!("at most {limit}, and the sockets of all workers take {sockets}");
        return OPEN_FILES.problem(fact, remedy);
    }
    if limit < wanted {
        let wanted_by = format!("http.connections_max = {}", config.http.connections_max);
        return OPEN_FILES.warning(format!("at most {limit}, with {wanted_by}"), remedy);
    }
    let fact = format!("at most {limit}");
    if limit < OPEN_FILES_GOOD && config.http.connections_max == 0 {
        return OPEN_FILES
            .info(format!("{fact}, so {} connections", limit / 10 * 9))
            .remedied(remedy);
    }
    OPEN_FILES.ok(fact)
}

fn locked_memory(report: &HostReport) -> Finding {
    match (kernel::release(&report.host), &report.facts.locked_memory) {
        (Ok(release), _) if release >= (5, 12) => LOCKED_MEMORY.ok("not limited by this kernel"),
        (_, Ok(limit)) if *limit >= LOCKED_MEMORY_MIN => LOCKED_MEMORY.ok("enough for rings"),
        (Ok(_), Ok(limit)) => LOCKED_MEMORY
            .warning(size(*limit), "LimitMEMLOCK=64M in the unit, or\n$ ulimit -l 65536"),
        (Err(unread), _) => LOCKED_MEMORY.unread(&unread),
        (_, Err(error)) => LOCKED_MEMORY.info(format!("unknown: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    #[test]
    fn open_files_have_to_do_for_sockets_and_connections() {
        let judge = |limit, settings: &str| {
            let mut fake = Fake::new().configured(settings);
            fake.report.facts.open_files = Ok(limit);
            found(&examine(&fake.report), "limits.open_files")
        };
        assert_eq!(judge(1 << 20, "").0, Severity::Ok);
        let (severity, text) = judge(1024, "");
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("918 connections"), "{text}");
        assert_eq!(judge(1024, "[http]\nconnections_max = 5000").0, Severity::Warning);
        assert_eq!(judge(10_000, "[http]\nconnections_max = 5000").0, Severity::Ok);
        let (severity, text) = judge(128, "[server]\nworkers = 64");
        assert_eq!(severity, Severity::Problem);
        assert!(text.contains("take 320") && text.contains("LimitNOFILE="), "{text}");
    }

    #[test]
    fn locked_memory_matters_to_old_kernels_alone() {
        let judge = |release, limit| {
            let mut fake = Fake::new().with("/proc/sys/kernel/osrelease", release);
            fake.report.facts.locked_memory = Ok(limit);
            found(&examine(&fake.report), "limits.locked_memory").0
        };
        assert_eq!(judge("6.1.0", 65_536), Severity::Ok);
        assert_eq!(judge("5.12.0", 65_536), Severity::Ok);
        assert_eq!(judge("5.10.0", 65_536), Severity::Warning);
        assert_eq!(judge("5.10.0", 64 << 20), Severity::Ok);
        let mut fake = Fake::new();
        fake.report.facts.locked_memory = Ok(0);
        assert_eq!(found(&examine(&fake.report), "limits.locked_memory").0, Severity::Info);
    }
}
