//! The `skep` program: everything is in the library, see [`skep::cli`].

use std::process::ExitCode;

/// Swarms are many small arrays of a few sizes, which this allocator packs well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    skep::cli::main()
}
