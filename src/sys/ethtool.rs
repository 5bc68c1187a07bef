//! What a network interface's driver is and does: the questions of ethtool(8), which need no
//! privilege, and one setting, which does. Layouts and numbers are those of linux/ethtool.h.
#![expect(unsafe_code, reason = "an ioctl that takes a structure for each question")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

// linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const GET_DRIVER: u32 = 0x03;
const GET_FLAGS: u32 = 0x25;
const SET_GRO: u32 = 0x2c;
const GET_FLOW_HASH: u32 = 0x29;
const GET_CHANNELS: u32 = 0x3c;
/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;
/// `UDP_V4_FLOW`, `UDP_V6_FLOW`.
const UDP_FLOWS: [u32; 2] = [0x02, 0x06];
/// `RXH_L4_B_0_1` and `RXH_L4_B_2_3`: both ports.
const HASH_PORTS: u64 = 1 << 6 | 1 << 7;

/// Bytes of an interface's name, with the zero behind it.
const NAME_BYTES: usize = 16;
/// Bytes of a driver's name.
const DRIVER_BYTES: usize = 32;

/// Receive queues of an interface: combined ones, and those that receive alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// In use.
    pub count: u32,
    /// As many as there can be.
    pub max: u32,
}

/// A socket through which interfaces are asked.
#[derive(Debug)]
pub struct Ethtool(OwnedFd);

/// `struct ifreq`, as long as its longest form.
#[repr(C)]
struct Question {
    name: [u8; NAME_BYTES],
    data: *mut c_void,
    rest: [u8; 16],
}

#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; DRIVER_BYTES],
    rest: [u8; 160],
}

#[repr(C)]
struct Value {
    command: u32,
    value: u32,
}

#[repr(C)]
struct FlowHash {
    command: u32,
    flow: u32,
    fields: u64,
}

#[repr(C)]
#[derive(Default)]
struct ChannelCounts {
    command: u32,
    receive_max: u32,
    transmit_max: u32,
    other_max: u32,
    combined_max: u32,
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

impl Ethtool {
    /// Opens the socket.
    ///
    /// # Errors
    /// Errors of the system call.
    pub fn open() -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// The name of an interface's driver, such as `mlx5_core` or `veth`.
    ///
    /// # Errors
    /// Errors of the system call: `ENODEV`, `EOPNOTSUPP` if the driver has no name.
    pub fn driver(&self, interface: &str) -> io::Result<String> {
        let mut info =
            DriverInfo { command: GET_DRIVER, driver: [0; DRIVER_BYTES], rest: [0; 160] };
        self.ask(interface, &mut info)?;
        let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(DRIVER_BYTES);
        Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
    }

    /// The pairs of queues of an interface.
    ///
    /// # Errors
    /// Errors of the system call: `EOPNOTSUPP` if their number cannot change.
    pub fn channels(&self, interface: &str) -> io::Result<Channels> {
        let mut counts = ChannelCounts { command: GET_CHANNELS, ..ChannelCounts::default() };
        self.ask(interface, &mut counts)?;
        // A card may have queues of both kinds.
        let count = counts.combined.saturating_add(counts.receive);
        Ok(Channels { count, max: counts.combined_max.max(counts.receive_max).max(count) })
    }

    /// Whether the ports of UDP decide which queue gets a datagram, for IPv4 and IPv6.
    ///
    /// # Errors
    /// Errors of the system call: `EOPNOTSUPP` if the driver has no such setting.
    pub fn hashes_udp_ports(&self, interface: &str) -> io::Result<[bool; 2]> {
        let mut hashes = [false; 2];
        for (hashes, flow) in hashes.iter_mut().zip(UDP_FLOWS) {
            let mut hash = FlowHash { command: GET_FLOW_HASH, flow, fields: 0 };
            self.ask(interface, &mut hash)?;
            *hashes = hash.fields & HASH_PORTS == HASH_PORTS;
        }
        Ok(hashes)
    }

    /// Whether the interface merges frames of a flow (LRO), which no XDP program can read.
    ///
    /// # Errors
    /// Errors of the system call.
    pub fn merges_frames(&self, interface: &str) -> io::Result<bool> {
        let mut flags = Value { command: GET_FLAGS, value: 0 };
        self.ask(interface, &mut flags)?;
        Ok(flags.value & FLAG_LRO != 0)
    }

    /// Sets whether an interface merges the segments of a flow that it receives (GRO). A veth
    /// receives by NAPI, as a network card does, only if it does.
    ///
    /// # Errors
    /// Errors of the system call: `EPERM` without `CAP_NET_ADMIN`, `ENODEV`.
    pub fn set_gro(&self, interface: &str, is_on: bool) -> io::Result<()> {
        self.ask(interface, &mut Value { command: SET_GRO, value: u32::from(is_on) })
    }

    /// Has the kernel fill in or apply a structure, whose first field is the question's number.
    fn ask<T>(&self, interface: &str, data: &mut T) -> io::Result<()> {
        let mut name = [0; NAME_BYTES];
        let bytes = interface.as_bytes();
        if bytes.len() >= NAME_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        name[..bytes.len()].copy_from_slice(bytes);
        let data = std::ptr::from_mut(data).cast();
        let mut question = Question { name, data, rest: [0; 16] };
        // SAFETY: `T` is the structure of the question that is its first field, so the kernel
        // writes no byte behind it; it and the question live during the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCETHTOOL, &raw mut question) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<ChannelCounts>(), 36);
        assert_eq!(size_of::<FlowHash>(), 16);
    }

    #[test]
    fn loopback_is_asked_and_an_interface_that_is_not_there_is_an_error() {
        let ethtool = Ethtool::open().unwrap();
        assert!(!ethtool.merges_frames("lo").unwrap());
        let no_queues = ethtool.channels("lo").unwrap_err().raw_os_error();
        assert_eq!(no_queues, Some(libc::EOPNOTSUPP));
        let missing = ethtool.driver("skep-none").unwrap_err().raw_os_error();
        assert_eq!(missing, Some(libc::ENODEV));
        let missing = ethtool.set_gro("skep-none", true).unwrap_err().raw_os_error();
        assert!(matches!(missing, Some(libc::ENODEV | libc::EPERM)), "{missing:?}");
        let long = ethtool.driver("a-name-of-sixteen").unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidInput);
    }
}
