//! Making an io_uring, and taking from it all that is not needed.

use std::io;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, Submitter, opcode};

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingOptions {
    /// Receive buffers, a power of two: one arm can fill hundreds before we see the first.
    pub(crate) buffers: u16,
    /// Submission entries, and so the most replies of one turn: a batch and the arms must fit.
    pub(crate) submissions: u32,
    /// Completion entries: every buffer may be full at once, and as many sends have failed.
    pub(crate) completions: u32,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { buffers: 1024, submissions: 512, completions: 4096 }
    }
}

/// The kernel's ring. It outlives the `Ring` that drives it.
pub(crate) struct RingHost(pub(super) IoUring);

impl RingHost {
    /// Makes a ring that is still disabled, stepping down where the kernel knows a flag not yet.
    pub(crate) fn new(options: &RingOptions) -> io::Result<Self> {
        let mut result = Err(io::ErrorKind::InvalidInput.into());
        for flags in [since_6_6, since_6_1, since_6_0] {
            let mut builder = IoUring::builder();
            builder.setup_r_disabled().setup_single_issuer().setup_submit_all();
            builder.setup_taskrun_flag().setup_cqsize(options.completions);
            flags(&mut builder);
            result = builder.build(options.submissions);
            match &result {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                _ => break,
            }
        }
        result.map(Self)
    }
}

fn since_6_6(builder: &mut io_uring::Builder) {
    builder.setup_defer_taskrun().setup_no_sqarray();
}

fn since_6_1(builder: &mut io_uring::Builder) {
    builder.setup_defer_taskrun();
}

fn since_6_0(builder: &mut io_uring::Builder) {
    builder.setup_coop_taskrun();
}

/// Allows what the loop below uses and nothing else: an attacker who takes over the process finds
/// a ring that can send, receive and cancel on these sockets only. (A seccomp filter sees nothing
/// of what goes through a ring.)
pub(super) fn restrict(submitter: &Submitter<'_>) -> io::Result<()> {
    // From linux/io_uring.h; the crate keeps its names to itself.
    const UNREGISTER_FILES: u8 = 3;
    const UNREGISTER_RING_FDS: u8 = 21;
    let flags = Flags::FIXED_FILE | Flags::BUFFER_SELECT | Flags::SKIP_SUCCESS;
    // On registered files alone: an entry without the flag could name any descriptor.
    let required = Flags::FIXED_FILE;
    submitter.register_restrictions(&mut [
        Restriction::sqe_op(opcode::RecvMsgMulti::CODE),
        Restriction::sqe_op(opcode::Send::CODE),
        Restriction::sqe_op(opcode::SendMsg::CODE),
        Restriction::sqe_op(opcode::AsyncCancel2::CODE),
        Restriction::sqe_flags_allowed(flags.bits()),
        Restriction::sqe_flags_required(required.bits()),
        Restriction::register_op(UNREGISTER_FILES),
        Restriction::register_op(UNREGISTER_RING_FDS),
    ])
}
