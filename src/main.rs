//! The `skep` program: everything is in the library, see [`skep::cli`].

use std::process::ExitCode;

use skep::sys::allocator::Allocator;

/// Swarms are many small arrays of a few sizes, which mimalloc packs well, and tables that are
/// better mapped.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    skep::cli::main()
}
