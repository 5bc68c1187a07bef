//! The `skep` program: everything is in the library, see [`skep::cli`].

use std::process::ExitCode;

use skep::sys::allocator::Allocator;

/// The store allocates many small arrays of a few sizes, which mimalloc packs well, and large
/// tables, which are mapped.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    skep::cli::main()
}
