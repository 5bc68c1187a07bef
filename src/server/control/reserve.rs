//! What a tracker needs besides what it has when everything is set up: looked for before it says
//! that it serves, for from then on nobody else does.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{Builder, JoinHandle};

use crate::server::StartError;

/// Descriptors that have to be left: a connection for each listener and some more, the snapshot's
/// files, the offer to a successor and the line to it.
const DESCRIPTORS: usize = 24;

/// Threads that are started later at the same time: for a successor, a snapshot, what blocks. Each
/// has 2 MiB of stack.
const THREADS: usize = 3;

/// Memory that each of them and the one that asks have to get, in bytes, beside the stacks: the
/// first connections' buffers and pages, a snapshot's blocks.
const BYTES: usize = 8 << 20;

/// In pieces of this size, in bytes: whatever is larger is asked for rarely.
const BLOCK_BYTES: usize = 64 << 10;

/// Looks whether this process could have what it will need. Nothing of it is kept, nor is memory
/// written to.
///
/// # Errors
/// [`StartError`] with what is lacking, and a remedy.
pub(crate) fn check() -> Result<(), StartError> {
    let stderr = io::stderr();
    let spare: io::Result<Vec<_>> =
        (0..DESCRIPTORS).map(|_| stderr.as_fd().try_clone_to_owned()).collect();
    spare.map_err(|error| {
        StartError::lacking(&format!("fewer than {DESCRIPTORS} open files are left"), &error)
    })?;
    let lacking = |error| StartError::lacking("too little is left to serve with", &error);
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

/// A thread that needs memory, and stays until `held` ends, so that all are there at once.
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
