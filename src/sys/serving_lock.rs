//! The right to serve. One process at a time has it, among processes that hand sockets over.
//!
//! It is a lock on a file in memory of which all of them have a descriptor (fcntl(2), `F_SETLK`).
//! The kernel grants it to one process, and frees it when its holder ends, for whatever reason. If
//! the lock is free, its last holder has released it or has ended. If it is taken, its holder is
//! alive and may serve, even if it is stopped at the moment.
//!
//! The lock belongs to the process: within the same process, taking it a second time succeeds, and
//! closing any descriptor of the file frees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FlockOperation, MemfdFlags, fcntl_lock, memfd_create};
use rustix::io::Errno;

/// How often a wait checks whether the lock is free.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A handle to the lock.
#[derive(Debug)]
pub struct ServingLock(OwnedFd);

impl ServingLock {
    /// A new lock, which this process holds.
    ///
    /// # Errors
    /// If no descriptor or memory is left, or a filter denies the call.
    pub fn new() -> io::Result<Self> {
        let create = |flags| memfd_create("skep-right-to-serve", MemfdFlags::CLOEXEC | flags);
        // If vm.memfd_noexec is 2, the kernel refuses a file that could become executable. Before
        // Linux 6.3 it does not support the flag.
        let created = match create(MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => create(MemfdFlags::empty()),
            created => created,
        };
        let lock = Self(created?);
        lock.take()?;
        Ok(lock)
    }

    /// A lock whose descriptor came from another process.
    #[must_use]
    pub fn received(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Takes the lock, unless another process has it. True if this process has it now.
    ///
    /// # Errors
    /// Errors of the system call, e.g. if the file cannot be locked.
    pub fn take(&self) -> io::Result<bool> {
        match fcntl_lock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Self::take`], repeated while the holder may be ending: a process closes its descriptors
    /// one after the other. A lock that cannot be taken counts as another process's.
    #[must_use]
    pub fn take_within(&self, tries: u32) -> bool {
        for _ in 1..tries {
            if matches!(self.take(), Ok(true)) {
                return true;
            }
            sleep(LOOK_EVERY);
        }
        matches!(self.take(), Ok(true))
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// Errors of the system call; none is expected.
    pub fn release(&self) -> io::Result<()> {
        Ok(fcntl_lock(&self.0, FlockOperation::NonBlockingUnlock)?)
    }
}

impl AsFd for ServingLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_process_it_can_be_taken_and_given_up_at_will() {
        let lock = ServingLock::new().unwrap();
        assert!(lock.take().unwrap());
        lock.release().unwrap();
        assert!(lock.take_within(1));
        let unwritable = std::fs::File::open("/dev/null").unwrap();
        let wrong = ServingLock::received(unwritable.into());
        assert!(!wrong.take_within(2), "such a descriptor cannot be locked for writing");
    }
}
