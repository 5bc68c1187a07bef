//! The ring on the real kernel, and on a double with failures that the real kernel cannot be made
//! to produce.

use super::double::{Double, Faults, SEND_ERRORS};
use super::*;
use crate::sys::socket::{UdpOptions, bind_udp};
use std::net::{SocketAddr, UdpSocket};

/// Sends `count` numbered datagrams to a ring of the given sizes before it receives any. Returns
/// those that arrived, and the events. `None` without io_uring.
fn flood(options: RingOptions, count: u16) -> Option<(Vec<u16>, Vec<RingEvent>)> {
    crate::sys::probe::probe().ok()?;
    let sockets = [bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()];
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..count {
        client.send_to(&number.to_be_bytes(), sockets[0].address()).unwrap();
    }
    let mut host = RingHost::new(&options).unwrap();
    let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
    let (mut numbers, mut events) = (Vec::new(), Vec::new());
    while numbers.len() < count.into() {
        let before = numbers.len();
        // A datagram that has not arrived after two waits is lost.
        for _ in 0..2 {
            for index in 0..ring.turn(Duration::from_secs(1), |it| events.push(it)).unwrap() {
                numbers.push(u16::from_be_bytes(ring.payload(index).try_into().unwrap()));
            }
        }
        assert!(numbers.len() > before, "stalled after {before}: {events:?}");
    }
    Some((numbers, events))
}

#[test]
fn running_out_of_buffers_loses_nothing() {
    let options = RingOptions { buffers: 4, submissions: 8, completions: 32 };
    let Some((numbers, events)) = flood(options, 100) else {
        return eprintln!("skipped: no io_uring");
    };
    assert!(numbers.into_iter().eq(0..100));
    assert!(events.contains(&RingEvent::ReceiveFailed(libc::ENOBUFS)));
    assert!(events.contains(&RingEvent::ReceiveEnded));
}

#[test]
fn an_overflowing_completion_queue_loses_nothing() {
    let options = RingOptions { buffers: 256, submissions: 4, completions: 8 };
    let Some((numbers, events)) = flood(options, 100) else {
        return eprintln!("skipped: no io_uring");
    };
    assert!(numbers.into_iter().eq(0..100));
    assert!(events.contains(&RingEvent::ReceiveEnded), "{events:?}");
    assert!(events.contains(&RingEvent::CompletionOverflow), "{events:?}");
}

#[test]
fn a_flooded_socket_leaves_buffers_to_the_others() {
    let options = RingOptions { buffers: 4, submissions: 8, completions: 32 };
    if crate::sys::probe::probe().is_err() {
        return eprintln!("skipped: no io_uring");
    }
    let sockets =
        [(); 2].map(|()| bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap());
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..100 {
        for (place, udp) in (0_u8..).zip(&sockets) {
            client.send_to(&[place], udp.address()).unwrap();
        }
    }
    let mut host = RingHost::new(&options).unwrap();
    let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
    let mut received = [0_u32; 2];
    const TURNS: u32 = 12;
    for _ in 0..TURNS {
        for index in 0..ring.turn(Duration::from_secs(1), |_| ()).unwrap() {
            received[usize::from(ring.payload(index)[0])] += 1;
        }
    }
    assert!(received[0] < 100, "it was to be a flood: {received:?}");
    assert!(received[0].abs_diff(received[1]) <= 4, "{received:?}");
}

#[test]
fn a_ring_full_of_responses_refuses_more_and_goes_on() {
    let options = RingOptions { buffers: 16, submissions: 4, completions: 64 };
    if crate::sys::probe::probe().is_err() {
        return eprintln!("skipped: no io_uring");
    }
    let sockets = [bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()];
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut host = RingHost::new(&options).unwrap();
    let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
    for _ in 0..3 {
        client.send_to(b"many", sockets[0].address()).unwrap();
        while ring.turn(Duration::from_secs(1), |it| panic!("{it:?}")).unwrap() == 0 {}
        let queued = (0..10).filter(|_| {
            ring.datagram(0).out[..2].copy_from_slice(b"ok");
            ring.respond(0, 2)
        });
        assert_eq!(queued.count(), 4);
    }
    ring.turn(Duration::ZERO, |it| panic!("{it:?}")).unwrap();
    client.set_nonblocking(true).unwrap();
    let answers = std::iter::from_fn(|| client.recv(&mut [0; 8]).ok());
    assert_eq!(answers.count(), 12);
}

#[test]
fn what_is_not_allowed_is_denied() {
    let options = RingOptions { buffers: 4, submissions: 4, completions: 16 };
    if crate::sys::probe::probe().is_err() {
        return eprintln!("skipped: no io_uring");
    }
    let sockets = [bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()];
    let mut host = RingHost::new(&options).unwrap();
    let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
    let (queued, registration) = ring.kernel.does_what_it_may_not();
    assert!(queued);
    assert_eq!(registration, Some(libc::EACCES));
    let mut events = Vec::new();
    ring.turn(Duration::from_secs(1), |it| events.push(it)).unwrap();
    assert_eq!(events, [RingEvent::SendFailed(libc::EACCES); 2]);
}

/// All faults, with this probability in thousandths.
fn all(permille: u32) -> Faults {
    Faults {
        ends_permille: permille,
        cancelled_permille: permille,
        receive_fails_permille: permille,
        enter_fails_permille: permille,
        takes_part_permille: permille,
        send_fails_permille: permille,
    }
}

/// A ring on a double that echoes numbered datagrams, and records of what happened.
struct Echo {
    ring: Ring<Double>,
    delivered: u32,
    /// Numbers received, by socket.
    received: Vec<Vec<u32>>,
    /// Responses that found no room.
    refused: usize,
    events: Vec<RingEvent>,
    /// Per socket: turns in which a datagram waited and none was received.
    stalled_turns: [u32; 3],
}

impl Echo {
    const SOCKETS: u16 = 3;
    const OPTIONS: RingOptions = RingOptions { buffers: 32, submissions: 16, completions: 24 };

    fn new(seed: u64, faults: Faults) -> Self {
        let sockets = usize::from(Self::SOCKETS);
        let double = Double::new(seed, sockets, &Self::OPTIONS, faults);
        Self {
            ring: Ring::on(double, [false, true, false].into_iter(), Self::OPTIONS.buffers),
            delivered: 0,
            received: vec![Vec::new(); sockets],
            refused: 0,
            events: Vec::new(),
            stalled_turns: [0; 3],
        }
    }

    fn source(number: u32) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 1000 + (number % 50_000) as u16))
    }

    fn deliver(&mut self, count: u32) {
        for number in self.delivered..self.delivered + count {
            let payload = number.to_be_bytes().to_vec();
            let socket = (number % u32::from(Self::SOCKETS)) as usize;
            self.ring.kernel.deliver(socket, Self::source(number), payload);
        }
        self.delivered += count;
    }

    /// A turn, whose datagrams are echoed.
    fn turn(&mut self) -> usize {
        let before: Vec<_> = self.received.iter().map(Vec::len).collect();
        let count = self.ring.turn(Duration::ZERO, |it| self.events.push(it)).unwrap();
        assert_eq!(self.ring.kernel.kept_by_ring(), count, "every other buffer is given back");
        for index in 0..count {
            let exchange = self.ring.datagram(index);
            let number = u32::from_be_bytes(exchange.payload.try_into().unwrap());
            assert_eq!(exchange.source.to_socket_addr(), Some(Self::source(number)));
            exchange.out[..4].copy_from_slice(&number.to_be_bytes());
            let socket = usize::from(self.ring.arrivals[index].socket);
            self.received[socket].push(number);
            self.refused += usize::from(!self.ring.respond(index, 4));
        }
        for (socket, turns) in self.stalled_turns.iter_mut().enumerate() {
            let came = self.received[socket].len() > before[socket];
            let waits = self.ring.kernel.queued_in(socket) > 0;
            *turns = if waits && !came { *turns + 1 } else { 0 };
        }
        count
    }

    /// Whether no datagram waits, every receive is under way, and the turn had no events.
    fn is_at_rest(&mut self) -> bool {
        let before = self.events.len();
        self.turn();
        let kernel = self.ring.kernel();
        kernel.queued() == 0
            && kernel.receiving() == usize::from(Self::SOCKETS)
            && !kernel.has_completions()
            && self.events.len() == before
    }

    fn turn_until(&mut self, is_over: impl Fn(&mut Self) -> bool) {
        for _ in 0..100_000 {
            self.turn();
            if is_over(self) {
                return;
            }
        }
        panic!("stalled: {} wait, {:?} last", self.ring.kernel.queued(), self.events.last());
    }

    /// Asserts that every datagram was handed out once, in the order of its socket, and that every
    /// response was sent, reported as failed, or refused.
    fn assert_complete(&mut self) {
        for (socket, numbers) in (0..u32::from(Self::SOCKETS)).zip(&self.received) {
            let expected = (0..self.delivered).filter(|it| it % u32::from(Self::SOCKETS) == socket);
            assert!(numbers.iter().copied().eq(expected), "of socket {socket}");
        }
        let kernel = &self.ring.kernel;
        for (socket, target, payload) in &kernel.sent {
            let number = u32::from_be_bytes(payload[..].try_into().unwrap());
            assert_eq!(u32::from(*socket), number % u32::from(Self::SOCKETS));
            assert_eq!(*target, Self::source(number));
        }
        let told = SEND_ERRORS.map(|errno| {
            self.events.iter().filter(|it| **it == RingEvent::SendFailed(errno)).count() as u64
        });
        assert_eq!(told, kernel.send_failures);
        let failed = usize::try_from(told.iter().sum::<u64>()).unwrap();
        assert_eq!(kernel.sent.len() + failed + self.refused, self.delivered as usize);
    }
}

#[test]
fn whatever_fails_in_the_kernel_nothing_that_came_is_lost() {
    for (seed, permille) in (0..40).zip([0, 1, 20, 200].into_iter().cycle()) {
        let mut echo = Echo::new(seed, all(permille));
        let mut longest_stall = 0;
        for burst in [1, 7, 40, 0, 3].into_iter().cycle().take(1_000) {
            echo.deliver(burst);
            echo.turn();
            longest_stall = echo.stalled_turns.into_iter().fold(longest_stall, u32::max);
        }
        echo.turn_until(Echo::is_at_rest);
        echo.ring.stop_receiving();
        echo.turn_until(|it| it.ring.is_quiet());
        assert_eq!(echo.ring.kernel.receiving(), 0);
        echo.assert_complete();
        let has = |event| echo.events.contains(&event);
        assert!(permille < 20 || has(RingEvent::ReceiveFailed(libc::ENOMEM)));
        assert!(permille > 20 || has(RingEvent::CompletionOverflow));
        assert!(permille > 20 || longest_stall <= 12, "{permille}: {longest_stall} turns");
    }
}

#[test]
fn each_fault_by_itself_is_survived() {
    let none = Faults::default();
    let often = 300;
    for faults in [
        Faults { ends_permille: often, ..none },
        Faults { cancelled_permille: often, ..none },
        Faults { receive_fails_permille: often, ..none },
        Faults { enter_fails_permille: often, ..none },
        Faults { takes_part_permille: often, ..none },
        Faults { send_fails_permille: often, ..none },
    ] {
        let mut echo = Echo::new(7, faults);
        for _ in 0..500 {
            echo.deliver(9);
            echo.turn();
        }
        echo.ring.kernel.faults = none;
        echo.turn_until(Echo::is_at_rest);
        // After the faults, everything works as before: nothing is refused, nothing fails.
        let (refused, events) = (echo.refused, echo.events.len());
        for _ in 0..50 {
            echo.deliver(9);
            echo.turn_until(|it| it.ring.kernel.queued() == 0);
        }
        assert_eq!((echo.refused, echo.events.len()), (refused, events), "{faults:?}");
        echo.ring.stop_receiving();
        echo.turn_until(|it| it.ring.is_quiet());
        echo.assert_complete();
    }
}

#[test]
fn a_ring_that_is_broken_says_so_and_ends() {
    let mut echo = Echo::new(1, Faults::default());
    echo.deliver(3);
    echo.turn_until(|it| it.ring.kernel.queued() == 0);
    for errno in [libc::EBADF, libc::EFAULT, libc::EINVAL, libc::EBADFD, libc::EOWNERDEAD] {
        echo.ring.kernel.breaks_with = Some(errno);
        let error = echo.ring.turn(Duration::ZERO, |_| ()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno));
    }
    drop(echo);
}
