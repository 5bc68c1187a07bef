//! Restart without loss: the running tracker's sockets are handed over to its successor.
//!
//! ```text
//! successor (skep run --take-over)            predecessor
//! reads settings, keys, probes io_uring
//! Ask ───────────────────────────────────────▶ same user? same protocol?
//! takes them                                 ◀─ Lock, Sockets; closes the database
//! opens the database, starts all workers,       continues as before
//! checks its resources; UDP serves
//! Serving ───────────────────────────────────▶ pauses: takes nothing from its sockets, keeps all
//! takes the right to serve, accepts          ◀─ Left; releases the right to serve
//! Accepting ─────────────────────────────────▶ ends
//! restores the saved state                   ◀─ Saved
//! serves alone                                  closes WebSockets over server.drain_s; exit 0
//! ```
//!
//! UDP has no gap: until the predecessor pauses, both receive from the same sockets. Each datagram
//! goes to one of them, and both respond with the same key.
//!
//! At each moment one of the two serves. Before a successor sends Serving it has everything that it
//! needs, so that only a flag changes afterwards. Until it has sent Accepting its predecessor is
//! only paused, and continues if the successor ends or sends nothing. The serving lock
//! (`sys::serving_lock`), which only one process can hold, ensures that both never serve. A
//! successor that was rejected, or whose predecessor is stopped and may continue at any time, does
//! not get the lock and ends. A predecessor that was stopped continues only if it gets the lock
//! back. A holder that dies loses it.
//!
//! Connections wait in the listeners' queues while the predecessor pauses its workers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::Socket;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use crate::access_store::AccessManager;
use crate::server::StartError;
use crate::server::log::OPERATOR;
use crate::server::sockets::inherited::{
    InheritedSockets, OwnedSockets, SOCKETS_MAX, SocketDescription,
};
use crate::server::sockets::socket_file::SocketFile;
use crate::sys::descriptors::{self, DESCRIPTORS_MAX};
use crate::sys::identity::UnixUser;
use crate::sys::serving_lock::ServingLock;

/// Version of the protocol, which must be the same on both sides. Fields may be added without a new
/// version.
const PROTOCOL: u32 = 2;

/// Most bytes of a message.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most sockets in one message, whose text has to stay below that, too.
const SOCKETS_PER_MESSAGE: usize = DESCRIPTORS_MAX;

/// How long to wait for a message that the other side can send at once.
const PROMPT: Duration = Duration::from_secs(5);

/// How long a successor may take from the sockets to its first turns. A database of ten million
/// registered torrents takes part of it.
const START_MAX: Duration = Duration::from_secs(120);

/// How long a predecessor may take from there to its last snapshot.
const SAVE_MAX: Duration = Duration::from_secs(600);

/// How long to wait for the database if a successor that failed still has it open.
const TAKE_BACK_MAX: Duration = Duration::from_secs(5);

/// How often to try to open the database afterwards.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(1);

/// How long a successor that could serve waits for its predecessor to leave: longer than the
/// workers need to pause.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// The shortest timeout for a message: zero would mean no limit.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// How long a paused predecessor waits for its successor to accept, before it serves again.
const ACCEPT_MAX: Duration = Duration::from_secs(5);

/// How often a paused predecessor checks whether the right to serve is free, while a successor that
/// has it sends nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often to try to get the right to serve from a process that has ended: for a second in all.
const LOCK_TRIES: u32 = 200;

/// The messages, one JSON text each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Message {
    /// The successor's first message.
    Ask { protocol: u32, version: String },
    /// A refusal, with its reason.
    Refused { reason: String },
    /// The descriptor of the serving lock.
    Lock,
    /// Some of the sockets, in the order of the descriptors; more follow unless `last`.
    Sockets { sockets: Vec<SocketDescription>, last: bool },
    /// The successor receives datagrams, and could accept.
    Serving,
    /// The predecessor takes nothing any more, has responded to everything it took, and has
    /// released the right to serve.
    Left,
    /// The successor has the right to serve, and accepts.
    Accepting,
    /// The predecessor has saved its state.
    Saved,
}

/// One side of the connection.
struct Channel(Socket);

impl Channel {
    fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, &[])
    }

    fn send_with(
        &self,
        message: &Message,
        sockets: &[std::os::fd::BorrowedFd<'_>],
    ) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MESSAGE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        descriptors::send(&self.0, &text, sockets)
    }

    /// The next message, which has to arrive within `wait`.
    #[expect(clippy::disallowed_methods, reason = "this is the edge")]
    fn receive(&self, wait: Duration) -> io::Result<(Message, Vec<std::os::fd::OwnedFd>)> {
        descriptors::set_timeouts(&self.0, wait)?;
        let mut text = vec![0; MESSAGE_BYTES_MAX];
        let until = Instant::now() + wait;
        let received = loop {
            match descriptors::receive(&self.0, &mut text) {
                // A process that was stopped and continued: the kernel does not resume a wait with
                // a timeout.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    let left = until.saturating_duration_since(Instant::now());
                    self.0.set_read_timeout(Some(left.max(WAIT_MIN)))?;
                }
                received => break received,
            }
        };
        match received {
            Ok((0, _)) => Err(io::Error::other("the other process has ended")),
            Ok((bytes, sockets)) => Ok((serde_json::from_slice(&text[..bytes])?, sockets)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("no message for {} s", wait.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the other side has not closed the connection.
    fn is_open(&self) -> bool {
        let peeked = self
            .0
            .recv_with_flags(&mut [MaybeUninit::uninit()], libc::MSG_PEEK | libc::MSG_DONTWAIT);
        peeked.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |bytes| bytes > 0)
    }
}

/// The running tracker, for its successor.
pub(crate) struct Predecessor {
    peer: Channel,
    lock: Arc<ServingLock>,
}

/// Why a predecessor has not left regularly.
#[derive(Debug)]
pub(crate) enum TakeoverError {
    /// It has ended, or will never serve again. This process has the right to serve.
    Gone(io::Error),
    /// The predecessor or another process has the right to serve.
    GoesOn(io::Error),
}

impl TakeoverError {
    /// The error that ends a successor whose predecessor continues.
    pub(crate) fn into_start_error(error: &io::Error) -> StartError {
        StartError::Failed(format!(
            "not taken over: the running tracker continues ({error}); remedy: try --take-over \
             again; both logs show what took long; if the running tracker does not respond, kill \
             it (kill -9) and start without --take-over"
        ))
    }
}

impl Predecessor {
    /// Requests the sockets of the process that listens at `path`, provided that its user is one of
    /// `users`: a process of another user could send sockets of its own in place of the tracker's.
    ///
    /// # Errors
    /// [`StartError`] with a remedy: no process listens, it belongs to another user, or it refuses.
    pub(crate) fn ask(path: &Path, users: &[u32]) -> Result<(Self, InheritedSockets), StartError> {
        let failed = |error: &dyn std::fmt::Display, remedy: &str| {
            let path = path.display();
            StartError::Failed(format!("cannot take over through {path}: {error}; {remedy}"))
        };
        let connected = descriptors::connect(path).map_err(|it| failed(&it, remedy_of(&it)))?;
        let peer = Channel(connected);
        is_of(&peer, users).map_err(|reason| {
            let remedy = "remedy: name another server.handover_socket in a folder that only the \
                          tracker's user may write to, or set server.user to that user";
            failed(&reason, remedy)
        })?;
        let asked = peer.receive_sockets().map_err(|it| failed(&it, remedy_of(&it)))?;
        Ok((Self { peer, lock: Arc::new(asked.0) }, asked.1))
    }

    /// The serving lock that all processes with these sockets share.
    pub(crate) fn lock(&self) -> Arc<ServingLock> {
        self.lock.clone()
    }

    /// Reports that this process could serve, waits until the predecessor is paused, and takes the
    /// right to serve.
    ///
    /// # Errors
    /// [`TakeoverError`] if the predecessor has not confirmed that: which process has the right to
    /// serve.
    pub(crate) fn take_over(&self) -> Result<(), TakeoverError> {
        let said = self.peer.send(&Message::Serving).and_then(|()| self.peer.receive(LEAVE_MAX));
        let error = match said {
            Ok((Message::Left, _)) => None,
            Ok(_) => Some(unexpected_message()),
            Err(error) => Some(error),
        };
        // The lock decides, whatever message was received.
        match (self.lock.take_within(LOCK_TRIES), error) {
            (true, None) => Ok(()),
            (true, Some(error)) => Err(TakeoverError::Gone(error)),
            (false, error) => Err(TakeoverError::GoesOn(
                error.unwrap_or_else(|| io::Error::other("another process already serves")),
            )),
        }
    }

    /// Reports that this process accepts. An error means that the predecessor has ended, and is
    /// ignored.
    pub(crate) fn send_accepting(&self) {
        let _ = self.peer.send(&Message::Accepting);
    }

    /// Waits until the predecessor has saved its state.
    ///
    /// # Errors
    /// If it has ended without that.
    pub(crate) fn wait_until_saved(self) -> io::Result<()> {
        match self.peer.receive(SAVE_MAX)?.0 {
            Message::Saved => Ok(()),
            _ => Err(unexpected_message()),
        }
    }
}

impl Channel {
    fn receive_sockets(&self) -> io::Result<(ServingLock, InheritedSockets)> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.send(&Message::Ask { protocol: PROTOCOL, version })?;
        let (mut lock, mut given) = (None, InheritedSockets::default());
        let mut count = 0;
        loop {
            let (message, mut descriptors) = self.receive(PROMPT)?;
            let (sockets, last) = match message {
                Message::Sockets { sockets, last } => (sockets, last),
                Message::Lock if lock.is_none() => {
                    lock = descriptors.pop().map(ServingLock::received);
                    continue;
                }
                Message::Refused { reason } => {
                    return Err(io::Error::other(format!("the running tracker refuses: {reason}")));
                }
                _ => return Err(unexpected_message()),
            };
            count += sockets.len();
            if sockets.len() != descriptors.len() || count > SOCKETS_MAX {
                return Err(unexpected_message());
            }
            sockets.into_iter().zip(descriptors).for_each(|(it, fd)| given.receive(it, fd));
            if last {
                return Ok((lock.ok_or_else(unexpected_message)?, given));
            }
        }
    }
}

/// Whether the error means that no process listens. An error about permissions or descriptors does
/// not show that.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What to do if there is no process to take over from.
fn remedy_of(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_nobody(error) => {
            "remedy: no tracker runs there: start without --take-over, or set server.state_dir or \
             server.handover_socket as in the running tracker"
        }
        io::ErrorKind::PermissionDenied => {
            "remedy: run as the user that the running tracker runs as"
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "remedy: another successor may be starting: try again; if the tracker there does not \
             respond, stop it, then start without --take-over"
        }
        // Also the refusal that the other process sent.
        io::ErrorKind::Other => "remedy: see the log of the running tracker, which continues",
        _ => "remedy: check that server.handover_socket names the running tracker's socket",
    }
}

/// Whether the process at the other end belongs to one of `users`; otherwise why not.
fn is_of(peer: &Channel, users: &[u32]) -> io::Result<()> {
    let user = descriptors::peer_user(peer.0.as_fd())?;
    if users.contains(&user) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the socket belongs to user {user}: expected root, this process's user or server.user"
    )))
}

/// The users from which a successor accepts sockets: root, its own, and the user that it will
/// change to.
pub(crate) fn trusted_users(configured: &str) -> Vec<u32> {
    let configured = (!configured.is_empty()).then(|| UnixUser::find(configured).ok()).flatten();
    [0, descriptors::own_user()].into_iter().chain(configured.map(|it| it.user())).collect()
}

fn unexpected_message() -> io::Error {
    io::Error::other("unexpected message")
}

/// A successor that could serve: this process has to pause, then to leave.
pub(crate) struct Successor {
    peer: Channel,
    lock: Arc<ServingLock>,
    /// Sends the error if this process continues to serve; dropped if it leaves.
    refused: Sender<io::Error>,
}

/// A successor that serves: this process has to end.
pub(crate) struct ServingSuccessor(Channel);

impl Successor {
    /// Releases the right to serve, reports that, and waits until the successor accepts. This
    /// process must be paused meanwhile.
    ///
    /// `None` if this process has the right again, because the successor has ended or will never
    /// serve. The hand-over thread logs why.
    pub(crate) fn hand_over(self) -> Option<ServingSuccessor> {
        match self.is_followed() {
            Ok(()) => Some(ServingSuccessor(self.peer)),
            Err(error) => {
                self.refuse(error);
                None
            }
        }
    }

    /// Rejects the successor, before anything was handed over.
    pub(crate) fn refuse(self, error: io::Error) {
        let Self { peer, refused, .. } = self;
        drop(peer);
        let _ = refused.send(error); // the hand-over thread waits for it
    }

    fn is_followed(&self) -> io::Result<()> {
        self.lock.release()?;
        let sent = self.peer.send(&Message::Left);
        let Err(error) = sent.and_then(|()| self.accepts(ACCEPT_MAX)) else { return Ok(()) };
        if self.lock.take_within(LOCK_TRIES) {
            return Err(error);
        }
        // A live process has the right to serve, most likely the successor, which is stopped. If it
        // ends before it accepts, this process is the only one left to serve.
        warn!(
            target: OPERATOR,
            %error,
            remedy = "kill -9 the successor, then this tracker continues",
            "successor has the right to serve but does not respond, waiting for it"
        );
        loop {
            let Err(error) = self.accepts(LOOK_EVERY) else { return Ok(()) };
            if !self.peer.is_open() {
                // If the right cannot be taken now, it has been passed on.
                let is_free = self.lock.take_within(LOCK_TRIES);
                return if is_free { Err(error) } else { Ok(()) };
            }
            if matches!(self.lock.take(), Ok(true)) {
                return Err(error);
            }
        }
    }

    /// Waits until the successor reports that it accepts, and checks that it still runs.
    fn accepts(&self, wait: Duration) -> io::Result<()> {
        match self.peer.receive(wait)?.0 {
            Message::Accepting if self.peer.is_open() => Ok(()),
            Message::Accepting => Err(io::Error::other("the other process has ended")),
            _ => Err(unexpected_message()),
        }
    }

    /// Releases the right to serve for good, because this process ends and serves no client any
    /// more.
    pub(crate) fn leave(self) -> ServingSuccessor {
        let left = self.lock.release().and_then(|()| self.peer.send(&Message::Left));
        if let Err(error) = left {
            warn!(target: OPERATOR, %error, "successor ended");
        }
        ServingSuccessor(self.peer)
    }
}

impl ServingSuccessor {
    /// Reports that the state is saved.
    pub(crate) fn send_saved(&self) {
        if let Err(error) = self.0.send(&Message::Saved) {
            warn!(target: OPERATOR, %error, "successor ended");
        }
    }
}

/// The offer to be taken over, from the start to the end.
pub(crate) struct TakeoverOffer {
    /// The socket's file, removed at the end unless a successor has created its own there.
    _file: SocketFile,
}

impl TakeoverOffer {
    /// Listens at `path` for a successor, on a thread of its own.
    ///
    /// # Errors
    /// If that fails. Nothing else depends on it.
    pub(crate) fn make(
        path: &Path,
        own: HandoverContext,
        has_predecessor: bool,
    ) -> io::Result<Self> {
        let listen = if has_predecessor { SocketFile::replace } else { SocketFile::listen };
        let (file, listener) = listen(path)?;
        let server = HandoverServer { listener, own };
        std::thread::Builder::new().name("handover".into()).spawn(move || server.serve())?;
        Ok(Self { _file: file })
    }
}

/// The parts of a tracker that a hand-over needs.
pub(crate) struct HandoverContext {
    /// All sockets.
    pub(crate) owned: Arc<OwnedSockets>,
    /// The right to serve, which this process has.
    pub(crate) lock: Arc<ServingLock>,
    /// Registrations, whose database only one process may have open.
    pub(crate) access_manager: Arc<AccessManager>,
    /// Saves what the database has to contain before it is lent, and makes sure that listeners are
    /// kept; or returns why nothing can be handed over now.
    pub(crate) prepare: Box<dyn Fn() -> io::Result<()> + Send>,
    /// Receives the successor.
    pub(crate) successors: UnboundedSender<Successor>,
}

/// The name of the hand-over socket in the state directory.
pub(crate) const SOCKET_NAME: &str = "handover.sock";

/// Handles successors, one after the other.
struct HandoverServer {
    listener: Socket,
    own: HandoverContext,
}

impl HandoverServer {
    /// Runs until a successor has taken over, or the process ends.
    fn serve(self) {
        let mut is_lent = false;
        loop {
            let peer = match self.next(is_lent) {
                Ok(socket) => Channel(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    is_lent = is_lent && self.own.access_manager.reopen_database().is_err();
                    continue;
                }
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(100)); // no descriptor is left
                    continue;
                }
            };
            if let Err(error) = check_successor(&peer).and_then(|()| (self.own.prepare)()) {
                let reason = error.to_string();
                warn!(target: OPERATOR, %reason, "take-over refused");
                let _ = peer.send(&Message::Refused { reason });
                continue;
            }
            info!(target: OPERATOR, "take-over requested by a successor");
            let error = match self.prepare_successor(&peer) {
                Ok(()) => {
                    let (refused, refusals) = channel();
                    let lock = self.own.lock.clone();
                    let successor = Successor { peer, lock, refused };
                    // Both fail only if this process ends anyway.
                    let Ok(()) = self.own.successors.send(successor) else { return };
                    let Ok(error) = refusals.recv() else { return };
                    error
                }
                Err(error) => {
                    drop(peer);
                    error
                }
            };
            warn!(target: OPERATOR, %error, "take-over failed, this tracker continues");
            is_lent = !self.take_back();
        }
    }

    /// The next successor that connects. While the database is lent, it returns `WouldBlock` from
    /// time to time: a successor that was rejected may keep the database open longer than any wait
    /// here.
    fn next(&self, is_lent: bool) -> io::Result<Socket> {
        self.listener.set_read_timeout(is_lent.then_some(TAKE_BACK_EVERY))?;
        Ok(self.listener.accept()?.0)
    }

    /// Sends copies of all sockets, and waits until the successor could serve with them.
    fn prepare_successor(&self, peer: &Channel) -> io::Result<()> {
        self.own.access_manager.lend_database();
        peer.send_with(&Message::Lock, &[self.own.lock.as_fd()])?;
        let all: Vec<_> = self.own.owned.all().collect();
        let count = all.len().div_ceil(SOCKETS_PER_MESSAGE);
        for (number, part) in (1..).zip(all.chunks(SOCKETS_PER_MESSAGE)) {
            let sockets = part.iter().map(|it| it.0.clone()).collect();
            let descriptors: Vec<_> = part.iter().map(|it| it.1).collect();
            peer.send_with(&Message::Sockets { sockets, last: number == count }, &descriptors)?;
        }
        match peer.receive(START_MAX)?.0 {
            // The message may have waited here after its sender ended.
            Message::Serving if peer.is_open() => Ok(()),
            Message::Serving => Err(io::Error::other("the other process has ended")),
            _ => Err(unexpected_message()),
        }
    }

    /// Opens the database again. The end of the successor may take a moment to free it. True if the
    /// database is open.
    #[expect(clippy::disallowed_methods, reason = "this is the edge")]
    fn take_back(&self) -> bool {
        let begun = Instant::now();
        loop {
            match self.own.access_manager.reopen_database() {
                Ok(()) => return true,
                Err(trouble) if begun.elapsed() > TAKE_BACK_MAX => {
                    warn!(target: OPERATOR, error = %trouble, "registrations are read-only");
                    return false;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Whether the process at the other end may have the sockets; otherwise why not.
fn check_successor(peer: &Channel) -> io::Result<()> {
    let user = descriptors::peer_user(peer.0.as_fd())?;
    if user != 0 && user != descriptors::own_user() {
        let reason = format!("user {user} is neither this tracker's nor root");
        return Err(io::Error::other(reason));
    }
    descriptors::set_timeouts(&peer.0, PROMPT)?;
    match peer.receive(PROMPT)?.0 {
        Message::Ask { protocol: PROTOCOL, .. } => Ok(()),
        Message::Ask { protocol, version } => Err(io::Error::other(format!(
            "skep {version} uses hand-over protocol {protocol}, the running tracker uses \
             {PROTOCOL}: stop the running tracker, then start the new one"
        ))),
        _ => Err(unexpected_message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::sockets::inherited::{BindPlace, SocketKind};
    use std::net::UdpSocket;

    fn us() -> Vec<u32> {
        trusted_users("")
    }

    /// An offer of `count` sockets on one address, and the receiver of its successors.
    fn offer(
        path: &Path,
        count: usize,
    ) -> (TakeoverOffer, tokio::sync::mpsc::UnboundedReceiver<Successor>) {
        let options = crate::access_store::Options {
            mode: crate::access::mode::Mode::Open,
            similar_digits_max: 0,
            files: Default::default(),
            state: Err("none".into()),
        };
        let access_manager = Arc::new(AccessManager::open(&options).unwrap());
        let mut owned = OwnedSockets::default();
        let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let place = BindPlace::At("127.0.0.1:7".parse().unwrap());
        owned.add(SocketKind::Udp, &place, &sockets).unwrap();
        let (successors, heard) = tokio::sync::mpsc::unbounded_channel();
        let (owned, prepare) = (Arc::new(owned), Box::new(|| Ok(())));
        let lock = Arc::new(ServingLock::new().unwrap());
        let own = HandoverContext { owned, lock, access_manager, prepare, successors };
        (TakeoverOffer::make(path, own, false).unwrap(), heard)
    }

    #[test]
    fn all_sockets_go_over_and_both_sides_know_when() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let (offer, mut heard) = offer(&path, 2 * DESCRIPTORS_MAX + 1);
        let (predecessor, mut given) =
            Predecessor::ask(&path, &us()).map_err(|it| it.to_string()).unwrap();
        let taken = given.take(SocketKind::Udp, "127.0.0.1:7".parse().unwrap());
        assert_eq!(taken.len(), 2 * DESCRIPTORS_MAX + 1);
        let thread = std::thread::spawn(move || {
            predecessor.take_over().unwrap();
            predecessor.send_accepting();
            predecessor.wait_until_saved().unwrap();
        });
        let successor = heard.blocking_recv().unwrap().hand_over().unwrap();
        successor.send_saved();
        thread.join().unwrap();
        drop(offer);
        assert!(!path.exists());
    }

    #[test]
    fn a_successor_that_fails_changes_nothing_and_the_next_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let (_offer, mut heard) = offer(&path, 1);
        let failing = Predecessor::ask(&path, &us()).map_err(|it| it.to_string()).unwrap();
        drop(failing);
        for text in ["", "no message", "{\"say\":\"serving\"}"] {
            let stranger = descriptors::connect(&path).unwrap();
            descriptors::send(&stranger, text.as_bytes(), &[]).unwrap();
        }
        let (predecessor, _given) =
            Predecessor::ask(&path, &us()).map_err(|it| it.to_string()).unwrap();
        assert!(heard.try_recv().is_err());
        // This thread ends once the other side has left.
        let thread = std::thread::spawn(move || predecessor.take_over());
        assert!(heard.blocking_recv().unwrap().hand_over().is_none());
        thread.join().unwrap().unwrap();
        let (predecessor, _given) =
            Predecessor::ask(&path, &us()).map_err(|it| it.to_string()).unwrap();
        let thread = std::thread::spawn(move || {
            predecessor.take_over().unwrap();
            predecessor.send_accepting();
            predecessor
        });
        assert!(heard.blocking_recv().unwrap().hand_over().is_some());
        drop(thread.join().unwrap());
    }

    #[test]
    fn who_may_not_look_has_not_learned_that_nobody_listens() {
        let is_nobody = |number| is_nobody(&io::Error::from_raw_os_error(number));
        assert!([libc::ENOENT, libc::ECONNREFUSED].into_iter().all(is_nobody));
        let others = [libc::EACCES, libc::EPERM, libc::EMFILE, libc::ENFILE, libc::EAGAIN];
        assert!(!others.into_iter().any(is_nobody));
    }

    #[test]
    fn sockets_are_taken_from_trusted_users_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let (_offer, _heard) = offer(&path, 1);
        let strangers = [descriptors::own_user() + 1];
        let text = Predecessor::ask(&path, &strangers).err().unwrap().to_string();
        let user = format!("the socket belongs to user {}:", descriptors::own_user());
        assert!(text.contains(&user) && text.contains("remedy: name another"), "{text}");
        assert!(Predecessor::ask(&path, &us()).is_ok());
        assert_eq!(trusted_users(""), us());
        assert_eq!(trusted_users("4711"), [us(), vec![4711]].concat());
        assert_eq!(trusted_users("no-such-user"), us());
    }

    #[test]
    fn another_protocol_is_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let (_offer, _heard) = offer(&path, 1);
        let peer = Channel(descriptors::connect(&path).unwrap());
        peer.send(&Message::Ask { protocol: PROTOCOL + 1, version: "9.0.0".into() }).unwrap();
        let (response, _) = peer.receive(PROMPT).unwrap();
        let Message::Refused { reason } = response else { panic!("{response:?}") };
        assert!(reason.contains("skep 9.0.0") && reason.contains("uses 2"), "{reason}");
    }

    #[test]
    fn where_nobody_is_or_somebody_else_the_remedy_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let error = Predecessor::ask(&path, &us()).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("handover.sock") && text.contains("remedy: no tracker"), "{text}");
        assert_eq!(error.exit_code(), 1);
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let text = Predecessor::ask(&path, &us()).err().unwrap().to_string();
        assert!(text.contains("remedy: check that server.handover_socket names"), "{text}");
    }

    #[test]
    fn what_the_dead_have_said_is_heard_but_they_are_known_to_have_gone() {
        let (here, there) = Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)
            .map(|(here, there)| (Channel(here), Channel(there)))
            .unwrap();
        assert!(here.is_open(), "nothing was said yet");
        there.send(&Message::Serving).unwrap();
        there.send(&Message::Saved).unwrap();
        assert!(here.is_open(), "and nothing of it is taken by asking");
        assert!(matches!(here.receive(PROMPT).unwrap().0, Message::Serving));
        assert!(matches!(here.receive(PROMPT).unwrap().0, Message::Saved));
        assert!(here.is_open());
        there.send(&Message::Serving).unwrap();
        drop(there);
        assert!(matches!(here.receive(PROMPT).unwrap().0, Message::Serving));
        assert!(!here.is_open());
    }

    #[test]
    fn silence_has_a_remedy_of_its_own() {
        let (here, _there) = Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)
            .map(|(here, there)| (Channel(here), there))
            .unwrap();
        let error = here.receive(Duration::from_millis(1)).unwrap_err();
        assert!(remedy_of(&error).contains("if the tracker there does not respond"), "{error}");
    }
}
