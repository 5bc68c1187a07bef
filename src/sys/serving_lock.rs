//! The right to serve, of which there is one among processes that hand sockets on.
//!
//! It is a lock on a file in memory that all of them have a descriptor of (fcntl(2), `F_SETLK`).
//! The kernel decides who has it, and frees it when its holder ends, however that comes about: so
//! who finds it free knows that the one before has given it up or has ended, and who finds it taken
//! knows that somebody lives who may serve, even if that one stands still at the moment.
//!
//! The lock belongs to the process: within one, taking it a second time succeeds, and closing any
//! descriptor of the file frees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FlockOperation, MemfdFlags, fcntl_lock, memfd_create};
use rustix::io::Errno;

/// How often to look whether it is free.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The right to serve, or the possibility to ask for it.
#[derive(Debug)]
pub struct ServingLock(OwnedFd);

impl ServingLock {
    /// A new one, which this process has.
    ///
    /// # Errors
    /// Where there is no descriptor or memory left, or a filter denies it.
    pub fn new() -> io::Result<Self> {
        let create = |flags| memfd_create("skep-right-to-serve", MemfdFlags::CLOEXEC | flags);
        // Where vm.memfd_noexec is 2 the kernel refuses one that could become executable; before
        // Linux 6.3 it does not know the flag.
        let created = match create(MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => create(MemfdFlags::empty()),
            created => created,
        };
        let lock = Self(created?);
        lock.take()?;
        Ok(lock)
    }

    /// One that came from another process.
    #[must_use]
    pub fn received(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Takes it, unless another process has it: whether this one has it now.
    ///
    /// # Errors
    /// The kernel's, such as where this is not a file that can be locked.
    pub fn take(&self) -> io::Result<bool> {
        match fcntl_lock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Self::take`], for as long as a process takes that is just ending: it closes its
    /// descriptors one after the other. What cannot be taken counts as another's.
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

    /// Gives it up.
    ///
    /// # Errors
    /// The kernel's; it has no reason to.
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
