//! Which XDP program an interface has: a question to rtnetlink(7), which needs no privilege.
//!
//! ```text
//! request  nlmsghdr(16) ifinfomsg(16): family(1) pad(1) type(2) index(4) flags(4) change(4)
//! response nlmsghdr(16) ifinfomsg(16) attributes: length(2) type(2) payload, padded to 4
//!          IFLA_XDP is a list of attributes itself
//! ```

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::kernel::AttachMode;

// linux/netlink.h, linux/rtnetlink.h.
const HEADER_BYTES: usize = 16;
const INTERFACE_BYTES: usize = 16;
const GET_LINK: u16 = 18;
const NEW_LINK: u16 = 16;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const TYPE_MASK: u16 = 0x3fff;
// linux/if_link.h.
const IFLA_XDP: u16 = 43;
const XDP_ATTACHED: u16 = 2;
const XDP_PROGRAM: u16 = 4;
const XDP_NATIVE_PROGRAM: u16 = 5;
const XDP_GENERIC_PROGRAM: u16 = 6;
/// Bytes of a response: an interface's description has some KiB.
const RESPONSE_BYTES: usize = 32 << 10;

/// An XDP program that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// The kernel's number of the program.
    pub program: u32,
    /// Where it runs; `None`: in the card itself, or in several places.
    pub mode: Option<AttachMode>,
}

impl AttachedXdp {
    /// The program of the interface with this index, if it has one.
    ///
    /// # Errors
    /// Errors of the system calls: `ENODEV` if there is no such interface.
    pub fn of(interface: u32) -> io::Result<Option<Self>> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // Number 0: NETLINK_ROUTE.
            None,
        )?;
        send(&socket, &request(interface), SendFlags::empty())?;
        let mut response = vec![0; RESPONSE_BYTES];
        let (_, bytes) = recv(&socket, &mut response[..], RecvFlags::empty())?;
        Self::read(response.get(..bytes).unwrap_or(&response))
    }

    fn read(response: &[u8]) -> io::Result<Option<Self>> {
        let cut_short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        match half(response, 4).ok_or_else(cut_short)? {
            ERROR => {
                let number = word(response, HEADER_BYTES).ok_or_else(cut_short)?;
                Err(io::Error::from_raw_os_error(number.cast_signed().wrapping_neg()))
            }
            NEW_LINK => {
                let attributes = response.get(HEADER_BYTES + INTERFACE_BYTES..);
                let attributes = attributes.ok_or_else(cut_short)?;
                Ok(found(attributes, IFLA_XDP).and_then(Self::described))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The program that the attribute `IFLA_XDP` describes.
    fn described(attributes: &[u8]) -> Option<Self> {
        let mode = match found(attributes, XDP_ATTACHED)?.first()? {
            0 => return None,
            1 => Some(AttachMode::Native),
            2 => Some(AttachMode::Generic),
            _ => None,
        };
        let numbers = [XDP_PROGRAM, XDP_NATIVE_PROGRAM, XDP_GENERIC_PROGRAM];
        let program = numbers.iter().find_map(|name| word(found(attributes, *name)?, 0))?;
        Some(Self { program, mode })
    }
}

fn request(interface: u32) -> Vec<u8> {
    const BYTES: u32 = 32;
    let mut request = Vec::with_capacity(BYTES as usize);
    request.extend(BYTES.to_ne_bytes());
    request.extend(GET_LINK.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    // Number and sender of the request, which nothing compares; family and type of any kind.
    request.extend([0; 12]);
    request.extend(interface.to_ne_bytes());
    request.extend([0; 8]);
    request
}

/// The payload of the first attribute with this name.
fn found(mut attributes: &[u8], name: u16) -> Option<&[u8]> {
    loop {
        let bytes = usize::from(half(attributes, 0)?);
        let payload = attributes.get(4..bytes)?;
        if half(attributes, 2)? & TYPE_MASK == name {
            return Some(payload);
        }
        attributes = attributes.get(bytes.next_multiple_of(4)..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + payload.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &name.to_ne_bytes(), payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A response about an interface with these attributes of XDP.
    fn response(xdp: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = [&0_u32.to_ne_bytes()[..], &NEW_LINK.to_ne_bytes(), &[0; 26]].concat();
        bytes.extend(attribute(3, b"eth0\0"));
        // The kernel marks lists of attributes.
        bytes.extend(attribute(IFLA_XDP | 1 << 15, &xdp.concat()));
        bytes
    }

    #[test]
    fn a_program_is_read_with_the_place_where_it_runs() {
        let read = |xdp: &[Vec<u8>]| AttachedXdp::read(&response(xdp)).unwrap();
        assert_eq!(read(&[attribute(XDP_ATTACHED, &[0])]), None);
        let id = 7_u32.to_ne_bytes();
        for (mode, expected) in
            [(1, Some(AttachMode::Native)), (2, Some(AttachMode::Generic)), (3, None)]
        {
            let found = read(&[attribute(XDP_ATTACHED, &[mode]), attribute(XDP_PROGRAM, &id)]);
            assert_eq!(found, Some(AttachedXdp { program: 7, mode: expected }));
        }
        let several = [attribute(XDP_ATTACHED, &[4]), attribute(XDP_GENERIC_PROGRAM, &id)];
        assert_eq!(read(&several), Some(AttachedXdp { program: 7, mode: None }));
    }

    #[test]
    fn responses_that_are_cut_short_end_the_reading() {
        let whole =
            response(&[attribute(XDP_ATTACHED, &[1]), attribute(XDP_PROGRAM, &[7, 0, 0, 0])]);
        for bytes in 0..whole.len() {
            assert!(!matches!(AttachedXdp::read(&whole[..bytes]), Ok(Some(_))), "{bytes}");
        }
        assert!(found(&[0; 8], 1).is_none(), "an attribute of no length");
    }

    #[test]
    fn loopback_has_no_program_here_and_an_unknown_interface_is_an_error() {
        assert_eq!(AttachedXdp::of(1).unwrap(), None);
        let missing = AttachedXdp::of(u32::MAX >> 1).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
    }
}
