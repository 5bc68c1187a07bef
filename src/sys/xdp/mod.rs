//! XDP: programs that judge frames before the kernel's network stack does.

pub mod assembler;
pub mod attached;
pub mod checksum;
pub mod frame;
pub mod kernel;
pub mod offload;
mod program;
mod rings;
mod siphash;
pub mod socket;
mod umem;
