//! Who the process acts as: giving up the rights of root for good.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::unistd::{
    Gid, Uid, User, geteuid, getresgid, getresuid, initgroups, setgid, setgroups, setuid,
};

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    name: String,
    uid: Uid,
    gid: Gid,
    /// Whether the user database knows it, and with that its further groups.
    is_known: bool,
}

/// How deep a directory is given away: the state directory's lists lie one folder down.
const DEPTH_MAX: u32 = 2;

impl Identity {
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
            (Some(it), _) => Ok(Self { name: it.name, uid: it.uid, gid: it.gid, is_known: true }),
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

    /// Gives a directory, and what root owns in it, to this user. Links are not followed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn own(&self, directory: &Path) -> io::Result<()> {
        self.own_to(directory, DEPTH_MAX)
    }

    /// By descriptors, not by names: whoever the directory belongs to may put a link in the
    /// place of a file between two looks at it. Sockets stay root's, and files with other names
    /// elsewhere.
    fn own_to(&self, path: &Path, depth: u32) -> io::Result<()> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Err(error) if is_no_file(&error) => return Ok(()),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if metadata.uid() == 0 && (metadata.is_dir() || metadata.nlink() == 1) {
            fchown(&file, Some(self.uid.as_raw()), Some(self.gid.as_raw()))?;
        }
        if metadata.is_dir() && depth > 0 {
            // The directory that is open, wherever its name leads by now.
            let opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            for entry in std::fs::read_dir(&opened)? {
                self.own_to(&opened.join(entry?.file_name()), depth - 1)?;
            }
        }
        Ok(())
    }

    /// Makes this process, all its threads included, act as the user from now on, with no way back,
    /// and sees that it is so.
    ///
    /// # Errors
    /// Where the process is not root, or something of root is left.
    pub fn assume(&self) -> io::Result<()> {
        let groups = if self.is_known {
            initgroups(&CString::new(self.name.as_str())?, self.gid)
        } else {
            setgroups(&[self.gid])
        };
        groups?;
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
}

/// Whether there is a link or a socket, or nothing any more.
fn is_no_file(error: &io::Error) -> bool {
    [libc::ELOOP, libc::ENXIO, libc::ENOENT].map(Some).contains(&error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = Identity::find("root").unwrap();
        assert_eq!(root, Identity::find("0").unwrap());
        assert!(root.is_known);
        let nobody_knows = Identity::find("3999999999").unwrap();
        assert_eq!(nobody_knows.uid.as_raw(), nobody_knows.gid.as_raw());
        let error = Identity::find("no-such-user").unwrap_err().to_string();
        assert_eq!(error, "there is no user no-such-user");
        assert!(Identity::find("a\0b").is_err());
    }

    #[test]
    fn a_directory_is_given_away_with_what_is_in_it_and_links_are_not_followed() {
        use std::os::unix::fs::{MetadataExt as _, symlink};
        if !Identity::can_change() {
            return eprintln!("skipped: this is not root");
        }
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir_all(state.join("access")).unwrap();
        let (list, other) = (state.join("access/a.list"), folder.path().join("other"));
        std::fs::write(&list, "").unwrap();
        std::fs::write(&other, "").unwrap();
        symlink(&other, state.join("link")).unwrap();
        Identity::find("65534").unwrap().own(&state).unwrap();
        let owner = |path: &Path| path.symlink_metadata().unwrap().uid();
        assert_eq!([&state, &list].map(|it| owner(it)), [65534; 2]);
        assert_eq!([&other, &state.join("link")].map(|it| owner(it)), [0; 2]);
    }
}
