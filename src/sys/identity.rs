//! Who the process acts as: the rights of root, put aside for a while or given up for good.

use std::ffi::{CString, OsString};
use std::fs::{DirBuilder, Metadata, OpenOptions, Permissions, set_permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    PermissionsExt as _,
};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{
    Gid, Uid, User, getegid, geteuid, getgroups, getresgid, getresuid, initgroups, setegid,
    seteuid, setgid, setgroups, setuid,
};
use rustix::fs::{AtFlags, Mode, chownat};

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixUser {
    name: String,
    uid: Uid,
    gid: Gid,
    /// Whether the user database knows it, and with that its further groups.
    is_known: bool,
}

/// How deep a directory is given away: the state directory's lists lie one folder down.
const DEPTH_MAX: u32 = 2;

/// Files that this process makes from now on are its user's alone, whatever mode the code that
/// makes them asks for.
pub fn keep_files_private() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// The rights of root, put aside: this process, all its threads included, acts as a user until this
/// is dropped.
#[derive(Debug)]
#[must_use]
pub struct ActingUser {
    gid: Gid,
    groups: Vec<Gid>,
}

impl Drop for ActingUser {
    /// Where a step fails, less is allowed than before, not more; [`UnixUser::assume`] sees it.
    fn drop(&mut self) {
        let _ = seteuid(Uid::from_raw(0));
        let _ = setegid(self.gid);
        let _ = setgroups(&self.groups);
    }
}

impl UnixUser {
    /// Looks a user up by name or number. A number that the user database does not know is its own
    /// group.
    ///
    /// # Errors
    /// Where there is no such user, or the database cannot be read.
    pub fn find(name: &str) -> io::Result<Self> {
        let number = name.parse::<u32>().ok();
        let found = match number {
            Some(number) => User::from_uid(Uid::from_raw(number))?,
            None => User::from_name(name)?,
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

    /// The user's number.
    pub fn user(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Whether this process is root, and so can become anybody.
    pub fn can_change() -> bool {
        geteuid().is_root()
    }

    /// Acts as this user until the returned value is dropped: whatever is opened, made or removed
    /// meanwhile is so with the user's rights, wherever names lead.
    ///
    /// # Errors
    /// Where the process is not root.
    pub fn act(&self) -> io::Result<ActingUser> {
        let before = ActingUser { gid: getegid(), groups: getgroups()? };
        self.set_groups()?;
        setegid(self.gid)?;
        seteuid(self.uid)?;
        Ok(before)
    }

    /// Sees that the user has this directory: as the user, or where the user may not make or enter
    /// it, as root, provided that nobody but root has a say in where its name leads. Then it is
    /// given to the user with what root owns in it, unless it is somebody else's. No file in it is
    /// opened.
    ///
    /// # Errors
    /// The kernel's; `PermissionDenied` where the name leads through what is not root's.
    pub fn create_directory(&self, directory: &Path) -> io::Result<()> {
        let may_enter = {
            let _acting = self.act()?;
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.and_then(|()| std::fs::metadata(directory.join(".")))
        };
        match may_enter {
            // Whoever it belongs to could have put links there.
            Ok(it) if it.uid() != 0 => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
        let real = self.make(directory)?;
        self.own_to(&inspect(&real)?, DEPTH_MAX)
    }

    /// Makes what is missing of a directory as root, for the user; where it is, without links.
    fn make(&self, directory: &Path) -> io::Result<PathBuf> {
        let directory = std::path::absolute(directory)?;
        let is_missing = |it: &&Path| it.symlink_metadata().is_err();
        let missing: Vec<_> = directory.ancestors().take_while(is_missing).collect();
        let there = directory.ancestors().nth(missing.len()).unwrap_or_else(|| Path::new("/"));
        let mut made = vec![roots_own(there)?];
        for path in missing.iter().rev() {
            // `..` behind a folder that is missing leads nowhere.
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let next = made[made.len() - 1].join(name);
            DirBuilder::new().mode(0o700).create(&next)?;
            made.push(next);
        }
        // From the deepest one up: until all are given away, only root can put a link on the way.
        for path in made.iter().skip(1).rev() {
            self.take(&inspect(path)?)?;
        }
        made.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// By descriptors, not by names: whoever the directory belongs to may put a link in the place
    /// of a file between two looks at it. Sockets stay root's, and files with other names
    /// elsewhere.
    fn own_to(&self, descriptor: &OwnedFd, depth: u32) -> io::Result<()> {
        // What is open, wherever its name leads by now.
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
                    Ok(it) => self.own_to(&it, depth - 1)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Gives what a descriptor stands for to this user.
    fn take(&self, descriptor: &OwnedFd) -> io::Result<()> {
        let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        Ok(chownat(descriptor.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    /// Gives a socket's file that root has bound to this user and its group, with this mode.
    ///
    /// # Errors
    /// The kernel's; `AlreadyExists` where something else is there by now.
    pub fn own_socket(&self, path: &Path, mode: u32) -> io::Result<()> {
        let descriptor = inspect(path)?;
        let metadata = std::fs::metadata(path_of(&descriptor))?;
        if !metadata.file_type().is_socket() || metadata.uid() != 0 || metadata.nlink() != 1 {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        set_permissions(path_of(&descriptor), Permissions::from_mode(mode))?;
        self.take(&descriptor)
    }

    /// Makes this process, all its threads included, act as the user from now on, with no way back,
    /// and sees that it is so.
    ///
    /// # Errors
    /// Where the process is not root, or something of root is left.
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

/// What a name stands for, links themselves included: for looks at it and changes of its owner. Not
/// opened: nobody waits for a pipe, and no device learns of it.
fn inspect(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?.into())
}

/// A name of what is open, which nobody can lead elsewhere.
fn path_of(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// Links on the way to a path, as many as the kernel follows.
const LINKS_MAX: u32 = 40;

/// The bits of a mode by which others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;

/// Where a path leads, provided that nobody but root has a say in that, or in what is in the folder
/// there: every folder on the way and every link is root's, and only root may write to them. On the
/// way others may write to a folder with the sticky bit, in which they cannot replace what is
/// root's.
///
/// # Errors
/// `PermissionDenied` with the part that is not so; the kernel's.
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
    // Once more, as links and `..` may have led to a folder that was on the way before.
    may_only_be_changed_by_root(&real, true)?;
    Ok(real)
}

/// The names of a path, the last one first, with `..` as it stands there.
fn parts(path: &Path) -> Vec<OsString> {
    let is_name = |it: &Component<'_>| matches!(it, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_name).map(|it| it.as_os_str().to_owned()).rev().collect()
}

/// Sees that a part of a path is root's and changed by nobody else.
fn may_only_be_changed_by_root(part: &Path, is_last: bool) -> io::Result<Metadata> {
    let metadata = part.symlink_metadata()?;
    let is_shared = !metadata.is_symlink() && metadata.mode() & OTHERS_WRITE != 0;
    let is_sticky = metadata.is_dir() && metadata.mode() & libc::S_ISVTX != 0;
    let fault = if metadata.uid() != 0 {
        "is not root's"
    } else if is_shared && (is_last || !is_sticky) {
        "can be written to by others than root"
    } else {
        return Ok(metadata);
    };
    let text = format!("{} {fault}: root makes and gives away nothing below it", part.display());
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

    /// A folder that others may enter; `None`, with a sentence, where this is not root.
    fn folder() -> Option<tempfile::TempDir> {
        if !UnixUser::can_change() {
            eprintln!("skipped: this is not root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Some(folder)
    }

    /// In a process of its own, as rights are the process's: this test program once more.
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
            // It is the user's from now on: what root has there by chance stays root's.
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
            // The user has put a link to a folder of root's on the way.
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
            assert!(error.to_string().contains("others than root"), "{error}");
        };
        assert_eq!(real("roots/in").unwrap(), top.join("roots/in"));
        assert_eq!(real("sticky/in").unwrap(), top.join("sticky/in"));
        ["shared", "shared/in", "sticky"].into_iter().for_each(is_denied);
        // Links to links: what is between counts as well.
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
        assert!(error.contains("by-shared is not root's"), "{error}");
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
