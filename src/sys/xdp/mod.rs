//! XDP: programs that judge frames before the kernel's network stack does.

pub mod assembler;
pub mod attached;
pub mod kernel;
pub mod offload;
mod program;
mod siphash;
