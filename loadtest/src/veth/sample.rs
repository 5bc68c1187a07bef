//! The sample of responses that the sink passes on: every one is decoded and checked as those of
//! other runs are, peers included.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Serialize;
use skep::sys::clock::Clock;
use socket2::{Domain, Protocol, Socket, Type};

use super::frames::{CLIENT_PORT, IP, PAYLOAD, UDP};
use crate::check::check;
use crate::interrupt;
use crate::numbers::NS_PER_S;
use crate::slots::{Kind, Pending};

/// What the sampled responses were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Sampled {
    /// Responses that were checked.
    pub(crate) checked: u64,
    /// Those that were invalid, by why.
    pub(crate) invalid: BTreeMap<&'static str, u64>,
}

/// Reads the sample.
pub(crate) struct Sampler {
    socket: Socket,
    port: u16,
    numwant: u16,
    sampled: Sampled,
}

/// How often a wait looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// IPv4 in Ethernet.
const ETHERTYPE: u16 = 0x0800;

impl Sampler {
    /// Opens a socket that sees every frame which is passed on in the calling thread's namespace;
    /// responses are those from this port.
    ///
    /// # Errors
    /// Errors of the system calls: `EPERM` without `CAP_NET_RAW`.
    pub(crate) fn open(port: u16, numwant: u16) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(ETHERTYPE.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Self { socket, port, numwant, sampled: Sampled::default() })
    }

    /// Checks what comes until a moment of the clock, or until `is_over`, or a signal.
    ///
    /// # Errors
    /// Errors of the system call.
    pub(crate) fn take_until(
        &mut self,
        clock: &Clock,
        end_ns: u64,
        is_over: impl Fn() -> bool,
    ) -> io::Result<()> {
        let mut frame = [0; 2048];
        while clock.elapsed_ns_at(clock.now()) < end_ns && !is_over() && !interrupt::is_requested()
        {
            match self.socket.read(&mut frame) {
                Ok(bytes) => self.judge(&frame[..bytes]),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What was sampled since the last call.
    pub(crate) fn take(&mut self) -> Sampled {
        std::mem::take(&mut self.sampled)
    }

    fn judge(&mut self, frame: &[u8]) {
        if let Some(verdict) = judge(frame, self.port, self.numwant) {
            self.sampled.checked += 1;
            if let Err(label) = verdict {
                *self.sampled.invalid.entry(label).or_default() += 1;
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// Whether the response in a frame is valid; `None` if it is not one of the tracker's.
fn judge(frame: &[u8], port: u16, numwant: u16) -> Option<Result<(), &'static str>> {
    let bytes_at = |at: i16, bytes: usize| {
        let at = usize::try_from(at).ok()?;
        frame.get(at..at + bytes)
    };
    let half = |at: i16| Some(u16::from_be_bytes(bytes_at(at, 2)?.try_into().ok()?));
    if half(UDP)? != port {
        return None;
    }
    let own: [u8; 4] = bytes_at(IP + 16, 4)?.try_into().ok()?;
    let payload = bytes_at(PAYLOAD, usize::from(half(UDP + 4)?).checked_sub(8)?)?;
    let kind = match payload.get(..4)? {
        [0, 0, 0, 0] => Kind::Connect,
        _ => Kind::Announce,
    };
    let pending = Pending {
        intended_ns: 0,
        sent_ns: 0,
        item: 0,
        client: 0,
        kind,
        count: numwant,
        port: CLIENT_PORT,
    };
    Some(match check(payload, &pending, IpAddr::V4(Ipv4Addr::from(own)), true) {
        Ok((_, None)) => Ok(()),
        Ok((_, Some(flaw))) | Err(flaw) => Err(flaw.label()),
    })
}

/// A moment so many seconds ahead.
pub(crate) fn ahead_ns(clock: &Clock, seconds: f64) -> u64 {
    clock.elapsed_ns_at(clock.now())
        + crate::numbers::whole(seconds * crate::numbers::real(NS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 14];
        frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 20, 0, 1, 1]);
        let bytes = u16::try_from(8 + payload.len()).unwrap();
        frame.extend([6969, CLIENT_PORT, bytes, 0].map(u16::to_be_bytes).concat());
        frame.extend(payload);
        frame
    }

    #[test]
    fn what_a_response_contains_is_checked() {
        let announced = |peers: &[u8]| {
            judge(&frame(&[&[0, 0, 0, 1], &[9; 16][..], peers].concat()), 6969, 2).unwrap()
        };
        assert_eq!(announced(&[20, 0, 2, 1, 0x1a, 0xe1]), Ok(()));
        assert_eq!(announced(&[20, 0, 1, 1, 0x1a, 0xe1]), Err("client handed to itself"));
        assert_eq!(announced(&[20, 0, 2, 1, 0, 0]), Err("peer with port 0"));
        assert_eq!(judge(&frame(&[0; 16]), 6969, 2), Some(Ok(())));
        assert_eq!(judge(&frame(&[0; 16]), 6970, 2), None);
        assert_eq!(judge(&frame(&[0; 16])[..40], 6969, 2), None);
    }
}
