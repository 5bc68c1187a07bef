//! Accepts connections, within the limits on their number.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::task::spawn_local;

use super::charges;
use super::connection::{self, Connection, Start};
use super::slots::Deadlines;
use super::thread::{HELD_TICK, TaskContext};
use crate::counters::{CloseReason, Transport};
use crate::frontend::ConnectionWork;
use crate::frontend::origin::Origin;
use crate::sys::stream::{Acceptor, Network, Socket};
use crate::types::unmap;

/// How long nothing is accepted after the process ran out of descriptors, or the host out of
/// memory: an immediate attempt would fail again.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Most connections accepted in a row, before open connections have a turn again.
const ACCEPTED_MAX: usize = 16;

/// What a listener's connections start with.
#[derive(Clone)]
pub(super) enum Security {
    /// HTTP.
    Plain,
    /// A TLS handshake.
    Tls(Arc<ArcSwap<ServerConfig>>),
}

/// Accepts from one listener until the worker stops or leaves.
pub(super) async fn serve<N: Network>(
    worker: Rc<TaskContext<N>>,
    acceptor: Rc<Acceptor<N>>,
    security: Security,
) {
    let is_over = || worker.is_stopping() || worker.is_leaving();
    while !worker.is_leaving() {
        let ready = acceptor.ready().await;
        worker.wait_for_room().await;
        while worker.is_held() && !is_over() {
            tokio::time::sleep(HELD_TICK).await;
        }
        if worker.is_leaving() {
            return;
        }
        match ready.and_then(|()| accept(&worker, &acceptor, &security)) {
            Ok(()) => {}
            Err(_) if is_over() => return,
            Err(error) => {
                worker.counters.accept_errors.add(1);
                if !is_of_the_connection(&error) {
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }
}

/// Accepts the connections that wait. Does not await, so that the thread cannot be paused in
/// between.
fn accept<N: Network>(
    worker: &Rc<TaskContext<N>>,
    acceptor: &Acceptor<N>,
    security: &Security,
) -> io::Result<()> {
    for _ in 0..ACCEPTED_MAX {
        match acceptor.accept() {
            Ok((socket, source)) => admit(worker, socket, source, security),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether an accept failed because of the new connection itself, so that the next accept may
/// succeed: accept(2) on Linux returns errors that are pending on the new socket.
fn is_of_the_connection(error: &io::Error) -> bool {
    use libc::{
        ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENOPROTOOPT,
        EOPNOTSUPP, EPERM, EPROTO,
    };
    let codes = [
        ECONNABORTED,
        EHOSTDOWN,
        EHOSTUNREACH,
        EINTR,
        ENETDOWN,
        ENETUNREACH,
        ENOPROTOOPT,
        EOPNOTSUPP,
        EPERM,
        EPROTO,
    ];
    error.raw_os_error().is_some_and(|it| codes.contains(&it))
}

/// Starts the task of a connection, or closes the connection at once.
fn admit<N: Network>(
    worker: &Rc<TaskContext<N>>,
    socket: Socket<N>,
    source: Option<SocketAddr>,
    security: &Security,
) {
    let counters = &worker.counters;
    counters.accepted.add(1);
    if worker.is_stopping() {
        counters.closed(CloseReason::Stopped).add(1);
        return;
    }
    worker.begin_turn();
    let address = source.map(|it| unmap(it).ip());
    let (limit, is_trusted, head_timeout_s) = worker.with_options(|options| {
        let counted = address.filter(|address| options.counts(*address));
        let limit = counted.map(|address| (address, options.connections_per_source_max));
        let is_trusted = address.is_none_or(|address| options.is_trusted_proxy(address));
        (limit, is_trusted, u64::from(options.head_timeout_s))
    });
    // Charged first, so that a source over its limit costs no more than an accept.
    let paid = if is_trusted || matches!(security, Security::Plain) {
        Ok(())
    } else {
        let tracker = &mut worker.front_ends.borrow_mut().tracker;
        charges::charge(tracker, worker.now(), address, ConnectionWork::Handshake)
    };
    let admission = match paid.and_then(|()| worker.admit(limit)) {
        Ok(admission) => admission,
        Err(reason) => {
            counters.closed(reason).add(1);
            return;
        }
    };
    counters.open(Transport::Http).rise();
    let start = Start {
        reads_proxy_header: is_trusted,
        tls: match security {
            Security::Plain => None,
            Security::Tls(config) => Some(config.load_full()),
        },
    };
    let head_by = worker.now().plus_s(head_timeout_s);
    let deadlines = Deadlines::until(head_by, CloseReason::HeadTimeout);
    let connection = worker.slots.borrow_mut().insert(deadlines, |place| {
        let origin = address.map_or(Origin::Local, Origin::Address);
        Connection::new(worker.clone(), place, socket, origin, admission)
    });
    spawn_local(connection::run(connection, start));
}
