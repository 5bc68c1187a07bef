//! A host for tests: files below a temporary folder, and results of system calls on a good host.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::{
    Denial, EarlierCounters, Finding, Host, HostFacts, HostReport, Severity, StateHome, WallClock,
};
use crate::config::Config;
use crate::sys::clock::Synchronisation;
use crate::sys::interfaces::HostInterfaces;

/// The time of a test host's system clock, in seconds since the Unix epoch.
pub(super) const NOW_S: u64 = 1_800_000_000;

/// A test host: no files until they are added, and good results of system calls.
pub(super) struct Fake {
    root: TempDir,
    pub(super) report: HostReport,
}

impl Fake {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let state = StateHome {
            path: "/var/lib/skep".into(),
            mode: Some(0o700),
            writable: Ok(()),
            free: Ok((100 << 30, 1_000_000)),
            snapshots: Vec::new(),
        };
        let synchronisation =
            Ok(Synchronisation { is_synchronised: true, error_us: 300, error_us_max: 12_000 });
        let facts = HostFacts {
            io_uring: Ok(()),
            receive_buffer: Ok(8 << 20),
            deny_filter: Ok(()),
            unbindable: Vec::new(),
            unavailable: Vec::new(),
            admin: Config::default().admin.listen,
            open_files: Ok(1 << 20),
            locked_memory: Ok(8 << 20),
            cores: Ok(2),
            memory: Ok(16 << 30),
            metrics: Err("Connection refused".into()),
            other_tracker: None,
            state: Ok(state),
            in_kubernetes: false,
            has_key_variable: false,
            host_interfaces: Ok(HostInterfaces::default()),
            interfaces: Vec::new(),
            xdp_program: None,
            clock: WallClock { synchronisation, now_s: NOW_S, set_ns: 0 },
        };
        let host = Host::at(root.path());
        let (config, configuration) = (Config::default(), Vec::new());
        let earlier = EarlierCounters::default();
        let report = HostReport { host, earlier, facts, config, configuration, certificate: None };
        Self { root, report }
    }

    /// A host that fails most checks.
    pub(super) fn ill() -> Self {
        let mut fake = Self::new()
            .configured(
                "[server]\nio = \"uring\"\nworkers = 8\n[limits]\nkernel_deny_rate = 9\n[udp]\n\
                         xdp = \"full\"\nxdp_interfaces = [\"eth0\", \"lo\"]\n\
                         xdp_neighbours = \"fib\"",
            )
            .with("/proc/sys/kernel/osrelease", "5.4.0\n")
            .with("/proc/sys/kernel/io_uring_disabled", "2\n")
            .with("/proc/self/status", "Seccomp:\t2\n")
            .with("/proc/self/cgroup", "0::/docker/a\n")
            .with("/sys/fs/cgroup/docker/a/cpu.max", "50000 100000\n")
            .with("/sys/fs/cgroup/docker/a/memory.max", "100000000\n")
            .with("/proc/sys/net/netfilter/nf_conntrack_count", "100\n")
            .with("/proc/sys/net/netfilter/nf_conntrack_max", "100\n");
        fake.deny_io_uring();
        fake.report.facts.xdp_program = Some(Err("Operation not permitted (os error 1)".into()));
        fake.report.facts.receive_buffer = Ok(1 << 17);
        fake.report.facts.deny_filter = Err("Cannot allocate memory".into());
        fake.report.facts.open_files = Ok(10);
        fake.report.facts.state = Err("HOME is not set".into());
        fake.report.facts.has_key_variable = true;
        fake.report.facts.clock.set_ns = -3_600_000_000_000;
        fake.report.facts.clock.synchronisation =
            Ok(Synchronisation { is_synchronised: false, error_us: 0, error_us_max: 16_000_000 });
        fake
    }

    /// Adds a file.
    pub(super) fn with(self, path: &str, text: &str) -> Self {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Sets a file of counters as it was earlier.
    pub(super) fn earlier(mut self, path: &'static str, text: &str) -> Self {
        self.report.earlier.set(path, text);
        self
    }

    /// Adds a symbolic link.
    pub(super) fn linked(self, path: &str, target: &str) -> Self {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    /// Sets the configuration.
    pub(super) fn configured(mut self, toml: &str) -> Self {
        self.report.config = Config::from_toml(toml).unwrap();
        self
    }

    /// Denies io_uring, as a container runtime does.
    pub(super) fn deny_io_uring(&mut self) {
        self.report.facts.io_uring = Err(Denial {
            problem: "io_uring is not usable: a seccomp profile denies it".into(),
            remedy: "allow io_uring_setup in the profile".into(),
        });
    }
}

/// The finding with this id: its severity, and its fact and remedy in one text.
pub(super) fn found(findings: &[Finding], id: &str) -> (Severity, String) {
    let finding = findings.iter().find(|it| it.id == id).unwrap();
    (
        finding.severity,
        format!("{}\n{}", finding.fact, finding.remedy.as_deref().unwrap_or_default()),
    )
}
