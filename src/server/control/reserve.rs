//! Resources that a tracker needs later: checked before it reports that it serves, because in a
//! take-over its predecessor no longer serves from then on.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{Builder, JoinHandle};

use crate::server::StartError;

/// Descriptors that must be free: a connection for each listener and some more, the snapshot's
/// files, the socket for a successor and the connection to it.
const DESCRIPTORS: usize = 24;

/// Threads that may be started at the same time later: for a successor, a snapshot, blocking work.
/// Each has 2 MiB of stack.
const THREADS: usize = 3;

/// Bytes that each of these threads and the calling one must be able to allocate, besides the
/// stacks: buffers and pages of the first connections, blocks of a snapshot.
const BYTES: usize = 8 << 20;

/// Size of one allocation, in bytes. Larger ones are rare.
const BLOCK_BYTES: usize = 64 << 10;

/// Checks whether this process could get the resources that it needs later. All of them are
/// released, and memory is not written to.
///
/// # Errors
/// [`StartError`] that names what is missing, and a remedy.
pub(crate) fn check() -> Result<(), StartError> {
    let stderr = io::stderr();
    let spare: io::Result<Vec<_>> =
        (0..DESCRIPTORS).map(|_| stderr.as_fd().try_clone_to_owned()).collect();
    spare.map_err(|error| {
        StartError::lacking(&format!("fewer than {DESCRIPTORS} open files are left"), &error)
    })?;
    let lacking = |error| StartError::lacking("not enough resources are left to serve", &error);
    let (mut holding, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..THREADS {
        let (hold, held) = channel();
        holding.push(hold);
        threads.push(thread(held).map_err(lacking)?);
    }
    allocate().map_err(lacking)?;
    drop(holding);
    for thread in threads {
        // A panic would have ended the process.
        thread.join().unwrap_or(Ok(())).map_err(lacking)?;
    }
    Ok(())
}

/// A thread that allocates memory, and runs until `held` ends, so that all threads exist at the
/// same time.
fn thread(held: Receiver<()>) -> io::Result<JoinHandle<io::Result<()>>> {
    Builder::new().name("reserve".into()).spawn(move || {
        let allocated = allocate();
        let _ = held.recv();
        allocated
    })
}

fn allocate() -> io::Result<()> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    for _ in 0..BYTES / BLOCK_BYTES {
        let mut block = Vec::new();
        block
            .try_reserve_exact(BLOCK_BYTES)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        blocks.push(block);
    }
    std::hint::black_box(&blocks);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_room_lacks_nothing() {
        check().map_err(|it| it.to_string()).unwrap();
    }
}
