//! The user that the process acts as: drops the rights of root, for a while or for good.

use std::ffi::{CString, OsString};
use std::fs::{DirBuilder, Metadata, OpenOptions, Permissions, set_permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    PermissionsExt as _,
};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{
    Gid, Uid, User, getegid, geteuid, getgroups, getresgid, getresuid, initgroups, setegid,
    seteuid, setgid, setgroups, setuid,
};
use rustix::fs::{AtFlags, Mode, chownat};

/// A user to change to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixUser {
    name: String,
    uid: Uid,
    gid: Gid,
    /// Whether the user is in the user database, which also has the supplementary groups.
    is_known: bool,
}

/// How deep the owner of a directory's contents is changed: the lists are one folder below the
/// state directory.
const DEPTH_MAX: u32 = 2;

/// From now on, only the user of this process has access to files that it creates, whatever mode
/// the creating code requests.
pub fn keep_files_private() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// The process, all its threads included, acts as another user until this value is dropped.
#[derive(Debug)]
#[must_use]
pub struct ActingUser {
    gid: Gid,
    groups: Vec<Gid>,
}

impl Drop for ActingUser {
    /// If a step fails, the process has fewer rights than before, not more. [`UnixUser::assume`]
    /// reports it.
    fn drop(&mut self) {
        let _ = seteuid(Uid::from_raw(0));
        let _ = setegid(self.gid);
        let _ = setgroups(&self.groups);
    }
}

impl UnixUser {
    /// Looks a user up by name or number. A number that is not in the user database is its own
    /// group.
    ///
    /// # Errors
    /// If there is no such user, or the database cannot be read.
    pub fn find(name: &str) -> io::Result<Self> {
        let number = name.parse::<u32>().ok();
        let found = match number {
            Some(number) => User::from_uid(Uid::from_raw(number)),
            None => User::from_name(name),
        };
        // That there is no database, as in an empty image, is an error to glibc.
        let found = match found {
            Err(Errno::ENOENT | Errno::ESRCH) => None,
            found => found?,
        };
        let name = name.to_owned();
        match (found, number) {
            (Some(user), _) => {
                Ok(Self { name: user.name, uid: user.uid, gid: user.gid, is_known: true })
            }
            (None, Some(number)) => {
                let (uid, gid) = (Uid::from_raw(number), Gid::from_raw(number));
                Ok(Self { name, uid, gid, is_known: false })
            }
            (None, None) => Err(io::Error::other(format!("there is no user {name}"))),
        }
    }

    /// The user that this process acts as; `None` if the user database cannot be read.
    pub fn of_process() -> Option<Self> {
        Self::find(&geteuid().to_string()).ok()
    }

    /// The user's name, or its number if it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user's number.
    pub fn user(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Whether this process is root, and so can change to any user.
    pub fn can_change() -> bool {
        geteuid().is_root()
    }

    /// Acts as this user until the returned value is dropped. Everything is opened, created or
    /// removed with the user's rights meanwhile, wherever links lead.
    ///
    /// # Errors
    /// If the process is not root.
    pub fn act(&self) -> io::Result<ActingUser> {
        let before = ActingUser { gid: getegid(), groups: getgroups()? };
        self.set_groups()?;
        setegid(self.gid)?;
        seteuid(self.uid)?;
        Ok(before)
    }

    /// Makes sure that the user has this directory. It is created as the user. If the user may not
    /// create or enter it, it is created as root, provided that only root can change where its path
    /// leads; the user then becomes the owner of the directory and of what root owns in it. A
    /// directory of another user stays as it is. No file in it is opened.
    ///
    /// # Errors
    /// Errors of the system calls; `PermissionDenied` if a part of the path does not belong to
    /// root.
    pub fn create_directory(&self, directory: &Path) -> io::Result<()> {
        let may_enter = {
            let _acting = self.act()?;
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.and_then(|()| std::fs::metadata(directory.join(".")))
        };
        match may_enter {
            // Its owner could have created links in it.
            Ok(metadata) if metadata.uid() != 0 => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
        let real = self.make(directory)?;
        self.own_to(&inspect(&real)?, DEPTH_MAX)
    }

    /// Creates the missing parts of a directory as root, for the user. Returns its path without
    /// links.
    fn make(&self, directory: &Path) -> io::Result<PathBuf> {
        let directory = std::path::absolute(directory)?;
        let is_missing = |it: &&Path| it.symlink_metadata().is_err();
        let missing: Vec<_> = directory.ancestors().take_while(is_missing).collect();
        let there = directory.ancestors().nth(missing.len()).unwrap_or_else(|| Path::new("/"));
        let mut made = vec![roots_own(there)?];
        for path in missing.iter().rev() {
            // `..` behind a missing folder leads nowhere.
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let next = made[made.len() - 1].join(name);
            DirBuilder::new().mode(0o700).create(&next)?;
            made.push(next);
        }
        // The deepest first: until all owners are changed, only root can create a link on the path.
        for path in made.iter().skip(1).rev() {
            self.take(&inspect(path)?)?;
        }
        made.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Uses descriptors, not names: the owner of the directory could replace a file by a link
    /// between two accesses. Sockets, and files with hard links elsewhere, stay with root.
    fn own_to(&self, descriptor: &OwnedFd, depth: u32) -> io::Result<()> {
        // The open file itself, wherever its name leads now.
        let opened = path_of(descriptor);
        let metadata = std::fs::metadata(&opened)?;
        let is_lone_file = metadata.is_file() && metadata.nlink() == 1;
        if metadata.uid() != 0 || !(metadata.is_dir() || is_lone_file) {
            return Ok(());
        }
        self.take(descriptor)?;
        if metadata.is_dir() && depth > 0 {
            for entry in std::fs::read_dir(&opened)? {
                match inspect(&opened.join(entry?.file_name())) {
                    Ok(child) => self.own_to(&child, depth - 1)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Makes this user the owner of what a descriptor refers to.
    fn take(&self, descriptor: &OwnedFd) -> io::Result<()> {
        let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        Ok(chownat(descriptor.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    /// Makes this user and its group the owners of a socket file that root has bound, and sets its
    /// mode.
    ///
    /// # Errors
    /// Errors of the system call; `AlreadyExists` if the path is something else by now.
    pub fn own_socket(&self, path: &Path, mode: u32) -> io::Result<()> {
        let descriptor = inspect(path)?;
        let metadata = std::fs::metadata(path_of(&descriptor))?;
        if !metadata.file_type().is_socket() || metadata.uid() != 0 || metadata.nlink() != 1 {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        set_permissions(path_of(&descriptor), Permissions::from_mode(mode))?;
        self.take(&descriptor)
    }

    /// Changes this process, all its threads included, to the user for good, and verifies it.
    ///
    /// # Errors
    /// If the process is not root, or keeps a right of root.
    pub fn assume(&self) -> io::Result<()> {
        self.set_groups()?;
        setgid(self.gid)?;
        setuid(self.uid)?;
        let (users, groups) = (getresuid()?, getresgid()?);
        let are_users = [users.real, users.effective, users.saved].iter().all(|it| *it == self.uid);
        let are_groups =
            [groups.real, groups.effective, groups.saved].iter().all(|it| *it == self.gid);
        let is_for_good = self.uid.is_root() || setuid(Uid::from_raw(0)).is_err();
        if are_users && are_groups && is_for_good {
            Ok(())
        } else {
            Err(io::Error::other("some right of root is left"))
        }
    }

    fn set_groups(&self) -> io::Result<()> {
        if self.is_known {
            initgroups(&CString::new(self.name.as_str())?, self.gid)?;
        } else {
            setgroups(&[self.gid])?;
        }
        Ok(())
    }
}

/// Refers to what is at a path, without following a link in its last part, to inspect it or to
/// change its owner. Does not open it: a pipe would block, and a device could react.
fn inspect(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?.into())
}

/// A path to an open file that no process can redirect.
fn path_of(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// Most links in a path: as many as the kernel follows.
const LINKS_MAX: u32 = 40;

/// The bits of a mode that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// Where a path leads, provided that only root can change that, or the contents of the folder
/// there: every folder and link on the path belongs to root, and only root may write to them.
/// Exception: others may write to a folder on the path that has the sticky bit, because they cannot
/// replace root's files in it.
///
/// # Errors
/// `PermissionDenied` with the part that violates this; errors of the system calls.
pub fn roots_own(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut ahead = parts(&path);
    let (mut real, mut links) = (PathBuf::from("/"), 0);
    may_only_be_changed_by_root(&real, ahead.is_empty())?;
    while let Some(part) = ahead.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        let next = real.join(part);
        if may_only_be_changed_by_root(&next, ahead.is_empty())?.is_symlink() {
            links += 1;
            if links > LINKS_MAX {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = std::fs::read_link(&next)?;
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            ahead.extend(parts(&target));
        } else {
            real = next;
        }
    }
    // Checked once more, as links and `..` may have led to a folder that was on the path before.
    may_only_be_changed_by_root(&real, true)?;
    Ok(real)
}

/// The names of a path, the last first. `..` is kept.
fn parts(path: &Path) -> Vec<OsString> {
    let is_name = |it: &Component<'_>| matches!(it, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_name).map(|it| it.as_os_str().to_owned()).rev().collect()
}

/// Checks that a part of a path belongs to root and that only root can change it.
fn may_only_be_changed_by_root(part: &Path, is_last: bool) -> io::Result<Metadata> {
    let metadata = part.symlink_metadata()?;
    let is_shared = !metadata.is_symlink() && metadata.mode() & OTHERS_WRITE != 0;
    let is_sticky = metadata.is_dir() && metadata.mode() & libc::S_ISVTX != 0;
    let fault = if metadata.uid() != 0 {
        "does not belong to root"
    } else if is_shared && (is_last || !is_sticky) {
        "can be written to by other users than root"
    } else {
        return Ok(metadata);
    };
    let text = format!("{} {fault}: skep creates nothing below it as root", part.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = UnixUser::find("root").unwrap();
        assert_eq!(root, UnixUser::find("0").unwrap());
        assert!(root.is_known);
        let nobody_knows = UnixUser::find("3999999999").unwrap();
        assert_eq!(nobody_knows.uid.as_raw(), nobody_knows.gid.as_raw());
        let error = UnixUser::find("no-such-user").unwrap_err().to_string();
        assert_eq!(error, "there is no user no-such-user");
        assert!(UnixUser::find("a\0b").is_err());
    }

    fn owner(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().uid()
    }

    fn nobody() -> UnixUser {
        UnixUser::find("65534").unwrap()
    }

    /// A folder that others may enter; `None`, with a printed message, if this process is not root.
    fn folder() -> Option<tempfile::TempDir> {
        if !UnixUser::can_change() {
            eprintln!("skipped: this is not root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Some(folder)
    }

    /// Runs a test in a process of its own, as rights belong to the process: starts this test
    /// program again.
    fn alone(test: &str, act: impl FnOnce()) {
        if std::env::var_os("SKEP_TEST_ALONE").is_some() {
            return act();
        }
        let name = format!("sys::identity::tests::{test}");
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &name, "--test-threads=1"]).env("SKEP_TEST_ALONE", "1");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn a_directory_is_given_away_with_what_is_in_it_and_links_are_not_followed() {
        let Some(folder) = folder() else { return };
        alone("a_directory_is_given_away_with_what_is_in_it_and_links_are_not_followed", || {
            use std::os::unix::fs::symlink;
            let state = folder.path().join("state");
            std::fs::create_dir_all(state.join("access")).unwrap();
            set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
            let (list, other) = (state.join("access/a.list"), folder.path().join("other"));
            std::fs::write(&list, "").unwrap();
            std::fs::write(&other, "").unwrap();
            symlink(&other, state.join("link")).unwrap();
            std::fs::hard_link(&other, state.join("twin")).unwrap();
            let mut mkfifo = std::process::Command::new("mkfifo");
            assert!(mkfifo.arg(state.join("pipe")).status().unwrap().success());
            nobody().create_directory(&state).unwrap();
            assert_eq!([&state, &list].map(|it| owner(it)), [65534; 2]);
            let left = ["link", "twin", "pipe"].map(|it| owner(&state.join(it)));
            assert_eq!((owner(&other), left), (0, [0; 3]));
            // The directory belongs to the user from now on: what root has in it stays root's.
            std::fs::write(state.join("later"), "").unwrap();
            nobody().create_directory(&state).unwrap();
            assert_eq!(owner(&state.join("later")), 0);
        });
    }

    #[test]
    fn a_directory_is_made_for_the_user_unless_the_way_there_is_not_roots() {
        let Some(folder) = folder() else { return };
        alone("a_directory_is_made_for_the_user_unless_the_way_there_is_not_roots", || {
            let deep = folder.path().join("a/b/skep");
            nobody().create_directory(&deep).unwrap();
            assert_eq!([&deep, &folder.path().join("a")].map(|it| owner(it)), [65534; 2]);
            assert_eq!(deep.metadata().unwrap().mode() & 0o777, 0o700);
            // The user has created a link to a folder of root on the path.
            let roots = folder.path().join("roots");
            std::fs::create_dir_all(roots.join("skep")).unwrap();
            set_permissions(&roots, Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::symlink(&roots, folder.path().join("a/link")).unwrap();
            for name in ["skep", "new"] {
                let error = nobody()
                    .create_directory(&folder.path().join("a/link").join(name))
                    .unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            }
            assert_eq!(owner(&roots.join("skep")), 0);
            assert!(!roots.join("new").exists());
        });
    }

    #[test]
    fn what_others_than_root_can_change_is_no_way_to_a_folder_of_roots() {
        let Some(folder) = folder() else { return };
        let top = folder.path();
        let make = |name: &str, mode: u32| {
            std::fs::create_dir(top.join(name)).unwrap();
            set_permissions(top.join(name), Permissions::from_mode(mode)).unwrap();
        };
        make("roots", 0o755);
        make("roots/in", 0o700);
        make("shared", 0o2775);
        make("shared/in", 0o755);
        make("sticky", 0o1777);
        make("sticky/in", 0o755);
        let real = |name: &str| roots_own(&top.join(name));
        let is_denied = |name: &str| {
            let error = real(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}");
            assert!(error.to_string().contains("other users than root"), "{error}");
        };
        assert_eq!(real("roots/in").unwrap(), top.join("roots/in"));
        assert_eq!(real("sticky/in").unwrap(), top.join("sticky/in"));
        ["shared", "shared/in", "sticky"].into_iter().for_each(is_denied);
        // Links to links: those in between count as well.
        use std::os::unix::fs::symlink;
        symlink("../roots/in", top.join("sticky/direct")).unwrap();
        symlink(top.join("roots"), top.join("shared/link")).unwrap();
        symlink("shared/link/in", top.join("by-shared")).unwrap();
        symlink("roots/../sticky", top.join("to-sticky")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        assert_eq!(real("sticky/direct").unwrap(), top.join("roots/in"));
        assert_eq!(real("to-sticky/in/../in").unwrap(), top.join("sticky/in"));
        ["shared/link", "by-shared", "to-sticky", "sticky/in/.."].into_iter().for_each(is_denied);
        assert_eq!(real("loop").unwrap_err().raw_os_error(), Some(libc::ELOOP));
        std::os::unix::fs::lchown(top.join("by-shared"), Some(65534), None).unwrap();
        let error = real("by-shared").unwrap_err().to_string();
        assert!(error.contains("by-shared does not belong to root"), "{error}");
        for name in ["shared", "shared/new"] {
            let error = nobody().make(&top.join(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}");
        }
        assert_eq!((owner(&top.join("shared")), top.join("shared/new").exists()), (0, false));
    }

    #[test]
    fn what_is_done_as_a_user_is_done_with_its_rights_and_root_is_back_afterwards() {
        let Some(folder) = folder() else { return };
        alone("what_is_done_as_a_user_is_done_with_its_rights_and_root_is_back_afterwards", || {
            let secret = folder.path().join("secret");
            std::fs::write(&secret, "root's").unwrap();
            set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
            let acting = nobody().act().unwrap();
            assert!(std::fs::read(&secret).is_err());
            assert!(std::fs::write(folder.path().join("new"), "").is_err());
            assert_eq!(getgroups().unwrap(), [Gid::from_raw(65534)]);
            let elsewhere = std::thread::spawn(|| geteuid().as_raw());
            assert_eq!(elsewhere.join().unwrap(), 65534);
            drop(acting);
            assert!(std::fs::read(&secret).is_ok() && geteuid().is_root());
            assert!(getegid().as_raw() == 0);
        });
    }
}
