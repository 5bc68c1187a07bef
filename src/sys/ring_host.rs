//! Creates an io_uring, and restricts it to what is needed.

use std::io;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, Submitter, opcode};

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingOptions {
    /// Receive buffers, a power of two. One armed receive can fill hundreds before the first is
    /// handled.
    pub(crate) buffers: u16,
    /// Submission entries. Bounds the responses of one turn: a batch and the receives to arm must
    /// fit.
    pub(crate) submissions: u32,
    /// Completion entries. Every buffer may be full at once, and as many sends may have failed.
    pub(crate) completions: u32,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { buffers: 1024, submissions: 512, completions: 4096 }
    }
}

/// The kernel's ring. It outlives the `Ring` that uses it.
pub(crate) struct RingHost(pub(super) IoUring);

impl RingHost {
    /// Creates a ring that is still disabled. Leaves out flags that the kernel does not support.
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

/// Allows the operations of the ring's loop and nothing else: an attacker who controls the process
/// can only send, receive and cancel on these sockets. (A seccomp filter does not see the
/// operations of a ring.)
pub(super) fn restrict(submitter: &Submitter<'_>) -> io::Result<()> {
    // From linux/io_uring.h. The crate does not export them.
    const UNREGISTER_FILES: u8 = 3;
    const UNREGISTER_RING_FDS: u8 = 21;
    let flags = Flags::FIXED_FILE | Flags::BUFFER_SELECT | Flags::SKIP_SUCCESS;
    // Only on registered files: an entry without the flag could name any descriptor.
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
