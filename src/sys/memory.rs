//! How much memory this process may use (the host's, or the limit of a control group), and how much
//! it uses.
#![expect(unsafe_code, reason = "one system call that no safe crate in use offers")]

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes that this process may use: all memory of the host, unless its control group (version 2) or
/// a parent of it has a lower limit.
///
/// # Errors
/// If the size of the host's memory cannot be read.
pub fn usable_bytes() -> io::Result<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok();
    // The file comes first, as containers may have their own. systemd's ProcSubset=pid hides it.
    let total = told.and_then(|text| total_bytes(&text)).map_or_else(host_bytes, Ok)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(group_limit(Path::new(GROUPS), &groups).map_or(total, |limit| limit.min(total)))
}

/// All memory of the host, from sysinfo(2).
fn host_bytes() -> io::Result<u64> {
    let mut host = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the pointer is to a structure of this function, which the kernel only writes to.
    if unsafe { libc::sysinfo(host.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeros are valid in all its fields, which are integers, and so is what was written.
    let host = unsafe { host.assume_init() };
    let too_large = || io::Error::new(io::ErrorKind::InvalidData, "sysinfo(2): too large a number");
    host.totalram.checked_mul(u64::from(host.mem_unit)).ok_or_else(too_large)
}

/// The total in the text of /proc/meminfo.
fn total_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// Reads how much memory of the process is resident.
#[derive(Debug)]
pub struct Resident {
    statm: File,
    page_bytes: u64,
}

impl Resident {
    /// Opens the file for this process.
    ///
    /// # Errors
    /// If there is no /proc, or the figure is missing there.
    pub fn open() -> io::Result<Self> {
        let resident = Self { statm: File::open("/proc/self/statm")?, page_bytes: page_bytes()? };
        resident.read()?;
        Ok(resident)
    }

    /// Resident bytes: a system call, without an allocation. The kernel counts a page when it is
    /// first touched, with a delay of some tens of pages per CPU.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn read(&self) -> io::Result<u64> {
        let mut text = [0; 128];
        let length = self.statm.read_at(&mut text, 0)?;
        let text = text.get(..length).and_then(|it| std::str::from_utf8(it).ok());
        // Pages: total, resident, and others.
        let pages: Option<u64> = text.and_then(|it| it.split(' ').nth(1)?.parse().ok());
        let bytes = pages.and_then(|it| it.checked_mul(self.page_bytes));
        bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "statm has no number"))
    }
}

/// Bytes of a page.
fn page_bytes() -> io::Result<u64> {
    // SAFETY: the call reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).map_err(|_| io::Error::last_os_error())
}

/// Where control groups (version 2) are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// Bytes that this process's control group may still allocate, reclaimable memory included; the
/// least of its own and those of its parents. `None` if none has a limit.
pub fn group_room() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    folders(Path::new(GROUPS), &groups)?.iter().filter_map(|it| room_in(it)).min()
}

/// Bytes that one group may still allocate.
fn room_in(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?; // "max" is none
    let taken: u64 = read("memory.current")?.trim().parse().ok()?;
    Some(limit.saturating_sub(taken.saturating_sub(reclaimable(&read("memory.stat")?))))
}

/// Bytes that the kernel reclaims before it kills a process: pages of files, and its own caches.
/// Memory without a file behind it (shmem) counts as file pages, but cannot be reclaimed.
fn reclaimable(stat: &str) -> u64 {
    let value = |name: &str| -> u64 {
        let mut words = stat.lines().map(|line| line.split_once(' ').unwrap_or((line, "")));
        words.find_map(|(key, value)| (key == name).then(|| value.parse().ok())?).unwrap_or(0)
    };
    value("file").saturating_sub(value("shmem")) + value("slab_reclaimable")
}

/// The folders of a process's group and its parents, below the mount point of control groups.
/// `groups` is the text of the process's /proc/PID/cgroup.
fn folders(mounted: &Path, groups: &str) -> Option<Vec<PathBuf>> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // In a namespace of its own, a group's path may lead outside of what is mounted.
    let inside = path.split('/').filter(|name| !name.is_empty() && *name != "..");
    let mut folder = PathBuf::from(mounted);
    let mut folders = vec![folder.clone()];
    for name in inside {
        folder.push(name);
        folders.push(folder.clone());
    }
    Some(folders)
}

/// The lowest limit of a process's group and its parents.
fn group_limit(mounted: &Path, groups: &str) -> Option<u64> {
    let limit = |folder: &PathBuf| fs::read_to_string(folder.join("memory.max")).ok();
    let folders = folders(mounted, groups)?;
    let limits = folders.iter().filter_map(limit);
    limits.filter_map(|text| text.trim().parse::<u64>().ok()).min() // "max": no limit
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

    /// Set in the process that runs this one test.
    const ALONE: &str = "SKEP_TEST_ALONE";

    /// In a process of its own: beside other tests, what they free counts as well.
    #[test]
    fn what_is_resident_is_what_was_written() {
        if std::env::var_os(ALONE).is_none() {
            let name = "sys::memory::tests::what_is_resident_is_what_was_written";
            let mut program = std::process::Command::new(std::env::current_exe().unwrap());
            let output = program.args(["--exact", name]).env(ALONE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let resident = Resident::open().unwrap();
        let before = resident.read().unwrap();
        let memory = vec![1_u8; 64 << 20];
        let after = resident.read().unwrap();
        assert!(std::hint::black_box(&memory)[4096] == 1);
        assert!(before > 1 << 20 && after > before + (32 << 20), "{before} {after}");
    }

    #[test]
    fn the_room_of_a_group_counts_what_the_kernel_could_give_up() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        let room = || room_in(group.path());
        assert_eq!(room(), None, "no group");
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 400\nfile 200\nshmem 50\nslab_reclaimable 30\nslab 99\n");
        assert_eq!(room(), Some(480));
        write("memory.current", "1300\n");
        assert_eq!(room(), Some(0));
        write("memory.max", "max\n");
        assert_eq!(room(), None);
        let _ = group_room();
    }
}
