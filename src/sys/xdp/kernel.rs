//! Maps and programs of BPF: the commands of bpf(2) that skep uses.
#![expect(unsafe_code, reason = "a system call that takes a structure for each command")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::assembler::Instruction;

// linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const ATTACH_TO_XDP: u32 = 37;
const PROG_TYPE_XDP: u32 = 6;
const NO_PREALLOC: u32 = 1;
const TEST_LIVE_FRAMES: u32 = 1 << 1;
/// The kernel's routes (`bpf_fib_lookup`) are open to programs that may be had under the GPL. The
/// code here is under the MIT licence, which permits that: programs are offered under both.
const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";
/// Most bytes of the verifier's reason that are kept.
const LOG_BYTES: usize = 256 << 10;

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Values by key.
    Hash = 1,
    /// A fixed number of values, which begin as zeros.
    Array = 2,
    /// An array for each CPU.
    PerCpuArray = 6,
    /// Values by prefix: a key is its length in bits (4 bytes), then the bits.
    Prefixes = 11,
    /// AF_XDP sockets by receive queue. Their descriptors are written, and cannot be read.
    XdpSockets = 17,
}

/// Sizes of a map.
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    /// What the map is.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Most entries.
    pub entries_max: u32,
}

/// A map. The kernel keeps it while a program that is loaded uses it.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    shape: MapShape,
    /// Bytes of a value as the kernel copies them to and from a process.
    copied_bytes: usize,
}

/// What an XDP program decides of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpVerdict {
    /// The program ended with an error.
    Aborted = 0,
    /// The frame is dropped.
    Drop = 1,
    /// The frame goes on to the kernel.
    Pass = 2,
    /// The frame, as the program left it, goes back out of the interface.
    Transmit = 3,
    /// The frame, as the program left it, goes where the program said: to an AF_XDP socket, or out
    /// of an interface.
    Redirect = 4,
}

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum AttachMode {
    /// In the interface's driver, before the kernel makes a packet of a frame.
    Native,
    /// Behind the driver. Every interface can do that.
    Generic,
}

impl AttachMode {
    /// The label used in metrics, logs and the ready line.
    pub fn label(self) -> &'static str {
        self.into()
    }

    /// linux/if_link.h: `XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE`.
    fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

/// Why the kernel took no program.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The verifier's reason; empty if the kernel refused the call itself.
    #[error("the kernel refused the XDP program: {error}{}", tail(log))]
    Refused {
        /// Error of the system call.
        error: io::Error,
        /// The verifier's text.
        log: String,
    },
    /// A map could not be made.
    #[error("the kernel refused a map of the XDP program: {0}")]
    Map(#[from] io::Error),
}

/// The last line of a verifier's text, which has the reason.
fn tail(log: &str) -> String {
    let lines = log.lines().rev().filter(|line| !line.starts_with("processed "));
    lines.map(|line| format!(" ({line})")).next().unwrap_or_default()
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the structure has the size that is passed, lives during the call, and holds pointers
    // to memory that lives as long, whose lengths are in it or in the shape of its map.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn descriptor_of<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: these commands return a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A pointer as the kernel takes it: 64 bits everywhere.
fn pointer<T>(memory: *const T) -> u64 {
    memory.addr() as u64
}

#[repr(C)]
struct CreateMap {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries_max: u32,
    flags: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Map {
    /// Makes a map.
    ///
    /// # Errors
    /// Errors of the system call: `EPERM` without `CAP_BPF`, `ENOMEM`. For a map for each CPU also
    /// if the host does not show how many there can be.
    pub fn create(shape: MapShape) -> io::Result<Self> {
        let MapShape { kind, key_bytes, value_bytes, entries_max } = shape;
        let copied_bytes = match kind {
            MapKind::PerCpuArray => (value_bytes as usize).next_multiple_of(8) * possible_cpus()?,
            _ => value_bytes as usize,
        };
        let flags = if kind == MapKind::Prefixes { NO_PREALLOC } else { 0 };
        let mut attributes =
            CreateMap { kind: kind as u32, key_bytes, value_bytes, entries_max, flags };
        let descriptor = descriptor_of(MAP_CREATE, &mut attributes)?;
        Ok(Self { descriptor, shape, copied_bytes })
    }

    /// The number by which a program names the map.
    pub fn descriptor(&self) -> i32 {
        self.descriptor.as_raw_fd()
    }

    fn element(&self, key: &[u8], value: u64) -> Element {
        assert_eq!(key.len(), self.shape.key_bytes as usize, "bytes of a key");
        let map = self.descriptor().cast_unsigned();
        Element { map, padding: 0, key: pointer(key.as_ptr()), value, flags: 0 }
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// Errors of the system call: `E2BIG` if the map is full.
    ///
    /// # Panics
    /// If key or value have another size than the map's.
    pub fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.copied_bytes, "bytes of a value");
        bpf(MAP_UPDATE_ELEM, &mut self.element(key, pointer(value.as_ptr()))).map(drop)
    }

    /// The value of a key; of a map for each CPU, those of all, one behind the other.
    ///
    /// # Errors
    /// Errors of the system call: `ENOENT` if the key has no value.
    ///
    /// # Panics
    /// If the key has another size than the map's.
    pub fn get(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.copied_bytes];
        bpf(MAP_LOOKUP_ELEM, &mut self.element(key, pointer(value.as_mut_ptr())))?;
        Ok(value)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// Errors of the system call: `ENOENT` if the key has no value.
    ///
    /// # Panics
    /// If the key has another size than the map's.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        bpf(MAP_DELETE_ELEM, &mut self.element(key, 0)).map(drop)
    }
}

/// CPUs that the host may ever have: the kernel copies a value for each. A guess would be a buffer
/// that is too short.
fn possible_cpus() -> io::Result<usize> {
    const PATH: &str = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(PATH)
        .map_err(|error| io::Error::new(error.kind(), format!("{PATH}: {error}")))?;
    let last = text.trim().rsplit(['-', ',']).next().and_then(|it| it.parse::<usize>().ok());
    last.map(|it| it + 1)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{PATH}: {text:?}")))
}

#[repr(C)]
struct LoadProgram {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct TestRun {
    program: u32,
    verdict: u32,
    bytes_in: u32,
    bytes_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
}

/// [`TestRun`] with what a run of live frames needs besides.
#[repr(C)]
struct LiveRun {
    run: TestRun,
    context_bytes: [u32; 2],
    contexts: [u64; 2],
    flags: u32,
    cpu: u32,
    batch_frames: u32,
    padding: u32,
}

/// A program that the kernel has verified.
#[derive(Debug)]
pub struct XdpProgram(OwnedFd);

impl XdpProgram {
    /// Has the kernel verify a program.
    ///
    /// # Errors
    /// [`LoadError`], with the verifier's reason.
    pub fn load(code: &[Instruction]) -> Result<Self, LoadError> {
        let mut log = vec![0_u8; LOG_BYTES];
        let mut attributes = LoadProgram {
            kind: PROG_TYPE_XDP,
            instructions: u32::try_from(code.len()).unwrap_or(u32::MAX),
            code: pointer(code.as_ptr()),
            license: pointer(LICENSE.as_ptr()),
            log_level: 0,
            log_bytes: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"skep\0\0\0\0\0\0\0\0\0\0\0\0",
        };
        if let Ok(program) = descriptor_of(PROG_LOAD, &mut attributes) {
            return Ok(Self(program));
        }
        // Again for the reason: the text costs time, and its own errors.
        attributes.log_level = 1;
        attributes.log_bytes = u32::try_from(log.len()).unwrap_or(u32::MAX);
        attributes.log = pointer(log.as_mut_ptr());
        descriptor_of(PROG_LOAD, &mut attributes).map(Self).map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            LoadError::Refused { error, log: String::from_utf8_lossy(&log[..end]).into_owned() }
        })
    }

    /// What is asked for a run on a frame whose result is not wanted.
    fn run_of(&self, frame: &[u8], repeat: u32) -> TestRun {
        TestRun {
            program: self.0.as_raw_fd().cast_unsigned(),
            verdict: 0,
            bytes_in: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            bytes_out: 0,
            data_in: pointer(frame.as_ptr()),
            data_out: 0,
            repeat,
            duration_ns: 0,
        }
    }

    /// Runs the program on a frame, without an interface: the verdict, and the frame as the program
    /// left it.
    ///
    /// # Errors
    /// Errors of the system call: `EINVAL` if the frame is shorter than an Ethernet header.
    pub fn test(&self, frame: &[u8]) -> io::Result<(XdpVerdict, Vec<u8>)> {
        // Programs may lengthen a frame; skep's do not.
        let mut out = vec![0_u8; frame.len() + 256];
        let mut attributes = TestRun {
            bytes_out: u32::try_from(out.len()).unwrap_or(u32::MAX),
            data_out: pointer(out.as_mut_ptr()),
            ..self.run_of(frame, 1)
        };
        bpf(PROG_TEST_RUN, &mut attributes)?;
        out.truncate(attributes.bytes_out as usize);
        let verdict = match attributes.verdict {
            1 => XdpVerdict::Drop,
            2 => XdpVerdict::Pass,
            3 => XdpVerdict::Transmit,
            4 => XdpVerdict::Redirect,
            _ => XdpVerdict::Aborted,
        };
        Ok((verdict, out))
    }

    /// Runs the program `repeat` times on copies of a frame, in batches of at most 256, and does
    /// with each what the program decides: frames that it redirects leave, as if a network card
    /// had received them. A copy may be one that was used before, with what the program or a
    /// receiver wrote into it; its length is the original one again. Interfaces are those of the
    /// calling thread's network namespace.
    ///
    /// # Errors
    /// Errors of the system call: `EINVAL` before Linux 5.18, `EPERM` without `CAP_NET_ADMIN`,
    /// `EINTR` if a signal came.
    pub fn run_live(&self, frame: &[u8], repeat: u32, batch_frames: u32) -> io::Result<()> {
        let mut attributes = LiveRun {
            run: self.run_of(frame, repeat),
            context_bytes: [0; 2],
            contexts: [0; 2],
            flags: TEST_LIVE_FRAMES,
            cpu: 0,
            batch_frames,
            padding: 0,
        };
        bpf(PROG_TEST_RUN, &mut attributes).map(drop)
    }

    /// Attaches the program to the interface with this index, until the result goes out of scope or
    /// the process ends, however that is. Needs no capability from Linux 5.19 on: that a process
    /// has the program is enough.
    ///
    /// # Errors
    /// Errors of the system call: `EBUSY` if another program is attached to the interface,
    /// `EOPNOTSUPP` if its driver cannot run programs, `ENODEV` if there is no such interface.
    pub fn attach(&self, interface: u32, mode: AttachMode) -> io::Result<XdpLink> {
        let mut attributes = CreateLink {
            program: self.0.as_raw_fd().cast_unsigned(),
            interface,
            kind: ATTACH_TO_XDP,
            flags: mode.flags(),
        };
        Ok(XdpLink(descriptor_of(LINK_CREATE, &mut attributes)?))
    }
}

#[repr(C)]
struct CreateLink {
    program: u32,
    interface: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct GetInfo {
    descriptor: u32,
    bytes: u32,
    info: u64,
}

/// The beginning of the kernel's description of a link to an interface.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    end: u32,
}

/// A program that is attached to an interface. Detaches the program when it goes out of scope.
#[derive(Debug)]
pub struct XdpLink(OwnedFd);

impl XdpLink {
    /// Whether the interface still exists: one that is removed takes its program along.
    ///
    /// # Errors
    /// Errors of the system call.
    pub fn is_attached(&self) -> io::Result<bool> {
        let mut info = LinkInfo::default();
        let mut attributes = GetInfo {
            descriptor: self.0.as_raw_fd().cast_unsigned(),
            bytes: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
            info: pointer(std::ptr::from_mut(&mut info)),
        };
        bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
        Ok(info.interface != 0)
    }
}
