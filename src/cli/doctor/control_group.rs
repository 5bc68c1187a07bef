//! The control groups of this process, versions 1 and 2, from its own group up to the root.

use super::host::{Host, HostReadError};

/// A control group and its ancestors.
pub(super) struct ControlGroup<'a> {
    host: &'a Host,
    /// The text of /proc/self/cgroup.
    groups: String,
}

impl<'a> ControlGroup<'a> {
    pub(super) fn of(host: &'a Host) -> Result<Self, HostReadError> {
        Ok(Self { host, groups: host.text("/proc/self/cgroup")? })
    }

    /// The contents of a file in the group and its ancestors, version 2.
    pub(super) fn texts(&self, file: &str) -> Vec<String> {
        let path = self.groups.lines().find_map(|line| line.strip_prefix("0::"));
        // In a hybrid setup version 2 has its own mount point.
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(str::to_owned);
        path.map(|path| self.read(&mounts, path, file)).unwrap_or_default()
    }

    /// The same in version 1, for one of its controllers.
    pub(super) fn old_texts(&self, controller: &str, file: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for line in self.groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
            if names.split(',').any(|it| it == controller) {
                let mounts = [names, controller].map(|it| format!("/sys/fs/cgroup/{it}"));
                texts.extend(self.read(&mounts, path, file));
            }
        }
        texts
    }

    fn read(&self, mounts: &[String], path: &str, file: &str) -> Vec<String> {
        let mut folders = mounts.to_vec();
        for mount in mounts {
            let mut folder = mount.clone();
            // In a control group namespace the path may lead outside of the mount, with `..`.
            for name in path.split('/').filter(|it| !it.is_empty() && *it != "..") {
                folder = format!("{folder}/{name}");
                folders.push(folder.clone());
            }
        }
        folders.sort();
        folders.dedup();
        folders.iter().filter_map(|it| self.host.text(&format!("{it}/{file}")).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn files_of_both_versions_are_found_on_the_way_up() {
        let fake = Fake::new()
            .with("/proc/self/cgroup", "3:cpu,cpuacct:/a\n2:memory:/../a/b\n0::/x/y\n")
            .with("/sys/fs/cgroup/x/memory.max", "1\n")
            .with("/sys/fs/cgroup/x/y/memory.max", "2\n")
            .with("/sys/fs/cgroup/unified/x/memory.max", "3\n")
            .with("/sys/fs/cgroup/other/memory.max", "4\n")
            .with("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "5\n")
            .with("/sys/fs/cgroup/memory/memory.limit_in_bytes", "6\n")
            .with("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "7\n");
        let group = ControlGroup::of(&fake.report.host).unwrap();
        assert_eq!(group.texts("memory.max"), ["3", "1", "2"]);
        assert_eq!(group.old_texts("cpu", "cpu.cfs_quota_us"), ["5"]);
        assert_eq!(group.old_texts("memory", "memory.limit_in_bytes"), ["6", "7"]);
        assert!(group.texts("cpu.max").is_empty());
        assert!(ControlGroup::of(&Fake::new().report.host).is_err());
    }
}
