//! How much memory this process may use: the host's, or less where a control group says so.
#![expect(unsafe_code, reason = "one system call that no safe crate in use offers")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// Bytes this process may use: all the host has, unless its control group (version 2) or one above
/// it has a lower limit.
///
/// # Errors
/// Where the kernel does not tell how much memory there is.
pub fn usable_bytes() -> io::Result<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok();
    // systemd's ProcSubset=pid hides the file. It comes first, as containers may have their own.
    let total = told.and_then(|text| total_bytes(&text)).map_or_else(host_bytes, Ok)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(group_limit(Path::new("/sys/fs/cgroup"), &groups).map_or(total, |limit| limit.min(total)))
}

/// All the host's memory, as sysinfo(2) has it.
fn host_bytes() -> io::Result<u64> {
    let mut host = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the pointer is to a structure of ours, which the kernel only writes to.
    if unsafe { libc::sysinfo(host.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeros are valid in all its fields, which are integers, and so is what was written.
    let host = unsafe { host.assume_init() };
    host.totalram
        .checked_mul(u64::from(host.mem_unit))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "sysinfo(2) tells too much"))
}

/// The total that the text of /proc/meminfo tells.
fn total_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest limit of a process's group and those above it, below the folder that groups are
/// mounted on; `groups` is the text of its /proc/PID/cgroup.
fn group_limit(mounted: &Path, groups: &str) -> Option<u64> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // In a namespace of its own, a group may be told as outside of what is mounted.
    let inside = path.split('/').filter(|name| !name.is_empty() && *name != "..");
    let mut folder = PathBuf::from(mounted);
    let mut folders = vec![folder.clone()];
    for name in inside {
        folder.push(name);
        folders.push(folder.clone());
    }
    let limit = |folder: &PathBuf| fs::read_to_string(folder.join("memory.max")).ok();
    let limits = folders.iter().filter_map(limit);
    limits.filter_map(|text| text.trim().parse::<u64>().ok()).min() // "max" is none
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read() {
        assert_eq!(
            total_bytes("MemFree: 1 kB\nMemTotal:       24684084 kB\n"),
            Some(25_276_502_016)
        );
        for text in ["", "MemTotal: kB", "MemTotal: 1 MB", "MemTotal: -1 kB"] {
            assert_eq!(total_bytes(text), None, "{text}");
        }
        assert!(usable_bytes().unwrap() > 1 << 20);
        let told = total_bytes(&fs::read_to_string("/proc/meminfo").unwrap()).unwrap();
        assert_eq!(host_bytes().unwrap() / 1024, told / 1024, "both ask the kernel");
    }

    #[test]
    fn the_lowest_limit_on_the_way_to_the_group_holds() {
        let mounted = tempfile::tempdir().unwrap();
        let group = mounted.path().join("a/b");
        fs::create_dir_all(&group).unwrap();
        let limit = |groups| group_limit(mounted.path(), groups);
        assert_eq!(limit("0::/a/b\n"), None, "nobody says anything");
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit("0::/a/b\n"), None);
        fs::write(mounted.path().join("a/memory.max"), "1000000\n").unwrap();
        assert_eq!(limit("1:name=x:/\n0::/a/b\n"), Some(1_000_000));
        fs::write(group.join("memory.max"), "2000000\n").unwrap();
        assert_eq!(limit("0::/a/b\n"), Some(1_000_000));
        assert_eq!(limit("0::/../a/b\n"), Some(1_000_000));
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("4:memory:/a/b\n"), None);
    }
}
