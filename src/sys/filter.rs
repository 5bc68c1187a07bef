//! Drops datagrams of some sources before they are queued: a classic BPF program on a UDP socket.
//!
//! A denied datagram costs the worker nothing, and the kernel a search of a few comparisons. The
//! program is a binary search for the source address or, for IPv6, for the first 32 bits of the
//! /64, then a comparison with those that share them. It is assembled here because libraries
//! compile filter expressions (libpcap) or filters for system calls (seccompiler), and neither
//! produces a search tree.

use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use socket2::{SockFilter, SockRef};

use crate::types::Family;

/// Most sources that one program denies. Each takes 5 instructions. The kernel accepts 4096, and
/// counts their memory against `net.core.optmem_max` (20 KiB on older hosts).
pub const SOURCES_MAX: usize = 128;

/// Offset at which the kernel's loads start at the network header (`SKF_NET_OFF`).
const NETWORK_HEADER: u32 = 0xfff0_0000;

// Classic BPF, linux/bpf_common.h.
const LOAD_WORD_AT: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const TAKE: u32 = u32::MAX;
const DROP: u32 = 0;

/// Denies the first [`SOURCES_MAX`] of these sources, an IPv6 source with its whole /64. They
/// replace the sources denied before; if none is of the socket's family, no source is denied.
///
/// # Errors
/// Errors of the system call: `ENOMEM` if `net.core.optmem_max` is too small.
pub fn deny(socket: &UdpSocket, family: Family, sources: &[IpAddr]) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let mut words: Vec<[u32; 2]> =
        sources.iter().filter_map(|it| words_of(family, *it)).take(SOURCES_MAX).collect();
    words.sort_unstable();
    words.dedup();
    if words.is_empty() {
        return match socket.detach_filter() {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        };
    }
    let program = Program::denying(family, &words).0;
    let program: Vec<_> =
        program.iter().map(|it| SockFilter::new(it.code, it.then, it.or, it.value)).collect();
    socket.attach_filter(&program)
}

/// The words that are searched for: an IPv4 address, or the halves of an IPv6 /64's prefix.
fn words_of(family: Family, source: IpAddr) -> Option<[u32; 2]> {
    match (family, source) {
        (Family::V4, IpAddr::V4(address)) => Some([address.to_bits(), 0]),
        (Family::V6, IpAddr::V6(address)) => Some(halves(address)),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "32 bits each")]
fn halves(address: Ipv6Addr) -> [u32; 2] {
    let bits = address.to_bits();
    [(bits >> 96) as u32, (bits >> 64) as u32]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    /// Instructions to skip if the comparison holds, and if not.
    then: u8,
    or: u8,
    value: u32,
}

struct Program(Vec<Instruction>);

impl Program {
    fn denying(family: Family, sources: &[[u32; 2]]) -> Self {
        let (first, second) = match family {
            Family::V4 => (12, None),
            Family::V6 => (8, Some(12)),
        };
        let mut program = Self(Vec::new());
        program.load(first);
        let groups: Vec<_> = sources.chunk_by(|a, b| a[0] == b[0]).collect();
        program.search(&groups, second);
        program
    }

    fn search(&mut self, groups: &[&[[u32; 2]]], second: Option<u32>) {
        if let [group] = groups {
            self.judge(group, second);
            return;
        }
        let (low, high) = groups.split_at(groups.len() / 2);
        self.compare(JUMP_IF_AT_LEAST, high[0][0][0], 0, 1);
        let over = self.0.len();
        self.push(JUMP, 0); // jumps over the lower half, whose length is set below
        self.search(low, second);
        self.0[over].value = u32::try_from(self.0.len() - over - 1).unwrap_or(0);
        self.search(high, second);
    }

    /// The end of a search: compares the second word with the sources that share the first.
    fn judge(&mut self, group: &[[u32; 2]], second: Option<u32>) {
        self.compare(JUMP_IF_EQUAL, group[0][0], 1, 0);
        self.push(RETURN, TAKE);
        if let Some(second) = second {
            self.load(second);
            for [_, word] in group {
                self.compare(JUMP_IF_EQUAL, *word, 0, 1);
                self.push(RETURN, DROP);
            }
            self.push(RETURN, TAKE);
        } else {
            self.push(RETURN, DROP);
        }
    }

    fn load(&mut self, offset: u32) {
        self.push(LOAD_WORD_AT, NETWORK_HEADER + offset);
    }

    fn push(&mut self, code: u16, value: u32) {
        self.0.push(Instruction { code, then: 0, or: 0, value });
    }

    fn compare(&mut self, code: u16, value: u32, then: u8, or: u8) {
        self.0.push(Instruction { code, then, or, value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether a program accepts a packet of this source: an interpreter for the five instructions.
    fn takes(program: &Program, family: Family, source: IpAddr) -> bool {
        let header: Vec<u8> = match source {
            IpAddr::V4(address) => [vec![0; 12], address.octets().to_vec()].concat(),
            IpAddr::V6(address) => [vec![0; 8], address.octets().to_vec()].concat(),
        };
        assert_eq!(Family::of(source), family);
        let (mut at, mut loaded) = (0, 0);
        loop {
            let Instruction { code, then, or, value } = program.0[at];
            at += 1;
            match code {
                LOAD_WORD_AT => {
                    let offset = (value - NETWORK_HEADER) as usize;
                    loaded = u32::from_be_bytes(header[offset..offset + 4].try_into().unwrap());
                }
                JUMP => at += value as usize,
                JUMP_IF_EQUAL => at += usize::from(if loaded == value { then } else { or }),
                JUMP_IF_AT_LEAST => at += usize::from(if loaded >= value { then } else { or }),
                RETURN => return value == TAKE,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    fn address(family: Family, low: u32) -> IpAddr {
        match family {
            Family::V4 => std::net::Ipv4Addr::from(0x0a00_0000 + low).into(),
            // Few first words, so that many share one.
            Family::V6 => {
                let prefix = u128::from(0x2001_0000 + low % 5) << 96 | u128::from(low / 5) << 64;
                Ipv6Addr::from(prefix | 7).into()
            }
        }
    }

    proptest! {
        #[test]
        fn exactly_those_listed_are_denied(
            listed in prop::collection::vec(0_u32..200, 1..SOURCES_MAX),
            source in 0_u32..200,
            v6: bool,
        ) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let mut words: Vec<_> =
                listed.iter().filter_map(|it| words_of(family, address(family, *it))).collect();
            words.sort_unstable();
            words.dedup();
            let program = Program::denying(family, &words);
            let taken = takes(&program, family, address(family, source));
            prop_assert_eq!(taken, !listed.contains(&source));
            prop_assert!(program.0.len() <= 4096);
        }
    }

    #[test]
    fn the_kernel_drops_what_is_denied_until_it_is_no_more() {
        let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
        deaf.set_nonblocking(true).unwrap();
        let to = deaf.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.2:0").unwrap();
        let other = UdpSocket::bind("127.0.0.3:0").unwrap();
        let hear = || {
            sender.send_to(b"denied?", to).unwrap();
            other.send_to(b"other", to).unwrap();
            let mut heard = Vec::new();
            let mut datagram = [0; 16];
            // Loopback delivers before `send_to` returns.
            while let Ok((_, source)) = deaf.recv_from(&mut datagram) {
                heard.push(source.ip().to_string());
            }
            heard
        };
        assert_eq!(hear(), ["127.0.0.2", "127.0.0.3"]);
        let many = (0..200).map(|it| IpAddr::from([127, 0, 1, it]));
        let denied: Vec<IpAddr> = std::iter::once([127, 0, 0, 2].into()).chain(many).collect();
        deny(&deaf, Family::V4, &denied).unwrap();
        assert_eq!(hear(), ["127.0.0.3"]);
        deny(&deaf, Family::V4, &["::1".parse().unwrap()]).unwrap();
        assert_eq!(hear(), ["127.0.0.2", "127.0.0.3"], "nobody of its family is denied");
        deny(&deaf, Family::V4, &[]).unwrap();
    }
}
