//! The host on which a result was measured: a result is only meaningful with it.

use std::fs;

use serde::Serialize;
use skep::sys::affinity::usable_cpus;

/// The host, as it describes itself.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// The CPU's model.
    pub(crate) cpu: String,
    /// Number of CPUs that this process may use.
    pub(crate) cpus: usize,
    /// Whether it reports that it is a virtual machine.
    pub(crate) is_virtual: bool,
    /// Main memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The distribution.
    pub(crate) system: String,
    /// The load tester's version, and how it was built.
    pub(crate) loadtest: String,
}

impl Machine {
    /// Reads the description of this host.
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |text: &str, name: &str, by: char| {
            let line = text.lines().find(|it| it.starts_with(name))?;
            Some(line.split_once(by)?.1.trim().trim_matches('"').to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal", ':').unwrap_or_default();
        let memory_kib = memory.split(' ').next().and_then(|it| it.parse::<u64>().ok());
        let built = if cfg!(debug_assertions) { "debug" } else { "release" };
        Self {
            cpu: field(&cpuinfo, "model name", ':').unwrap_or_else(|| "unknown".to_owned()),
            cpus: usable_cpus().map_or(1, |it| it.len()),
            is_virtual: field(&cpuinfo, "flags", ':')
                .is_some_and(|it| it.split(' ').any(|flag| flag == "hypervisor")),
            memory_bytes: memory_kib.unwrap_or(0) << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: field(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_default(),
            loadtest: format!("{} ({built} build)", env!("CARGO_PKG_VERSION")),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let virtual_machine = if self.is_virtual { ", virtual machine" } else { "" };
        format!(
            "{} × {}{virtual_machine}, {} MiB, Linux {}, {}, loadtest {}",
            self.cpus,
            self.cpu,
            self.memory_bytes >> 20,
            self.kernel,
            self.system,
            self.loadtest
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_kernel_and_a_cpu() {
        let machine = Machine::look();
        assert!(machine.cpus >= 1 && machine.kernel.contains('.') && machine.memory_bytes > 0);
        assert!(machine.line().contains(&machine.kernel));
    }
}
