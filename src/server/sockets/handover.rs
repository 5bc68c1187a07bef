//! Restart without a lost packet: the running tracker's sockets, handed to its successor.
//!
//! ```text
//! successor (skep run --take-over)            predecessor
//! reads settings, keys, probes io_uring
//! Ask ───────────────────────────────────────▶ same user? same protocol?
//! takes them                                 ◀─ Lock, Sockets; lets go of the database
//! opens the database, starts all workers,       goes on as before
//! looks for what it will need; UDP serves
//! Serving ───────────────────────────────────▶ rests: takes nothing from its sockets, keeps all
//! takes the right to serve, accepts          ◀─ Left; gives up the right to serve
//! Accepting ─────────────────────────────────▶ ends
//! knows all that the other knew              ◀─ Saved
//! serves alone                                  WebSockets go over server.drain_s; exit 0
//! ```
//!
//! For UDP there is no gap at all: until it rests, the predecessor receives from the same sockets
//! as the successor, each datagram goes to one of them, and both answer under the same key.
//!
//! At each moment one of the two serves. Before a successor says Serving it has all it needs, so
//! that a flag is all that changes afterwards; and until it has said Accepting its predecessor only
//! rests, and goes on if the other ends or says nothing. That never both serve is up to the serving
//! lock (`sys::serving_lock`), which only one process can have: a successor that was given up, or
//! whose predecessor stands still and may go on at any time, does not get it and ends; a
//! predecessor that has stood still goes on only if it gets it back. Who has it and dies loses it.
//!
//! Connections wait in the listeners' queues while the predecessor comes to rest.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
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

/// What both sides have to speak alike. Fields may be added without another number.
const PROTOCOL: u32 = 2;

/// The longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Sockets in one message, as its text has to stay below that, too.
const SOCKETS_PER_MESSAGE: usize = DESCRIPTORS_MAX;

/// How long to wait for a message that the other side has at hand.
const PROMPT: Duration = Duration::from_secs(5);

/// How long a successor has from the sockets to its first turns. A database of ten million
/// registered torrents takes some of it.
const START_MAX: Duration = Duration::from_secs(120);

/// How long a predecessor has from there to its last snapshot.
const SAVE_MAX: Duration = Duration::from_secs(600);

/// How long the database of a successor that has failed may be busy.
const TAKE_BACK_MAX: Duration = Duration::from_secs(5);

/// How often it is tried to open the database afterwards.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(1);

/// How long a successor that serves waits for its predecessor to leave: longer than that needs to
/// come to rest.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// The shortest time to wait for a message: none at all would be no limit.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// How long a predecessor that rests waits for its successor to accept, before it serves again.
const ACCEPT_MAX: Duration = Duration::from_secs(5);

/// How often a predecessor that rests looks whether the right to serve has become free, while a
/// successor that has it says nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often to try for the right to serve of one that has gone: for a second in all.
const LOCK_TRIES: u32 = 200;

/// What is said, as JSON, one to a message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Message {
    /// The successor's first word.
    Ask { protocol: u32, version: String },
    /// No, and why.
    Refused { reason: String },
    /// The one descriptor of the right to serve.
    Lock,
    /// Some of the sockets, in the order of the descriptors; more follow unless `last`.
    Sockets { sockets: Vec<SocketDescription>, last: bool },
    /// The successor receives, and could accept.
    Serving,
    /// The predecessor takes nothing any more, has answered all it took, and has given up the right
    /// to serve.
    Left,
    /// The successor has the right to serve, and accepts.
    Accepting,
    /// The predecessor has written down all it knows.
    Saved,
}

/// One side of the conversation.
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

    /// The next message, which has to come within `wait`.
    #[expect(clippy::disallowed_methods, reason = "this is the edge")]
    fn receive(&self, wait: Duration) -> io::Result<(Message, Vec<std::os::fd::OwnedFd>)> {
        descriptors::set_timeouts(&self.0, wait)?;
        let mut text = vec![0; MESSAGE_BYTES_MAX];
        let until = Instant::now() + wait;
        let received = loop {
            match descriptors::receive(&self.0, &mut text) {
                // A process that was stopped and continued: the kernel takes up no wait that has a
                // limit.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    let left = until.saturating_duration_since(Instant::now());
                    self.0.set_read_timeout(Some(left.max(WAIT_MIN)))?;
                }
                received => break received,
            }
        };
        match received {
            Ok((0, _)) => Err(io::Error::other("it has gone")),
            Ok((bytes, sockets)) => Ok((serde_json::from_slice(&text[..bytes])?, sockets)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("no message for {} s", wait.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the other side has not gone.
    fn is_open(&self) -> bool {
        let peeked = self
            .0
            .recv_with_flags(&mut [MaybeUninit::uninit()], libc::MSG_PEEK | libc::MSG_DONTWAIT);
        peeked.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |bytes| bytes > 0)
    }
}

/// The running tracker, as its successor sees it.
pub(crate) struct Predecessor {
    peer: Channel,
    lock: Arc<ServingLock>,
}

/// Why a predecessor has not left in turn.
#[derive(Debug)]
pub(crate) enum TakeoverError {
    /// It has ended, or will never serve again: this process has the right to.
    Gone(io::Error),
    /// It has the right to serve, or somebody else has.
    GoesOn(io::Error),
}

impl TakeoverError {
    /// What ends a successor whose predecessor goes on.
    pub(crate) fn into_start_error(error: &io::Error) -> StartError {
        StartError::Failed(format!(
            "not taken over: the running tracker continues ({error}); remedy: start it again with \
             --take-over; see both logs for what took so long; if the running one hangs, end it \
             (kill -9), then start without --take-over"
        ))
    }
}

impl Predecessor {
    /// Asks whoever listens at `path` for its sockets, provided that it is one of `users`: others
    /// could pass sockets of their own for the tracker's.
    ///
    /// # Errors
    /// [`StartError`] with a remedy: nobody is there, it is somebody else's, or it says no.
    pub(crate) fn ask(path: &Path, users: &[u32]) -> Result<(Self, InheritedSockets), StartError> {
        let failed = |error: &dyn std::fmt::Display, remedy: &str| {
            let path = path.display();
            StartError::Failed(format!("cannot take over by way of {path}: {error}; {remedy}"))
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

    /// What there is one of among all that hand on these sockets.
    pub(crate) fn lock(&self) -> Arc<ServingLock> {
        self.lock.clone()
    }

    /// Says that this process could serve, waits until the other rests, and takes the right to
    /// serve.
    ///
    /// # Errors
    /// [`TakeoverError`]: where the other one has not said so, who has the right to serve.
    pub(crate) fn take_over(&self) -> Result<(), TakeoverError> {
        let said = self.peer.send(&Message::Serving).and_then(|()| self.peer.receive(LEAVE_MAX));
        let error = match said {
            Ok((Message::Left, _)) => None,
            Ok(_) => Some(unexpected_message()),
            Err(error) => Some(error),
        };
        // Whatever was said, or not: this decides.
        match (self.lock.take_within(LOCK_TRIES), error) {
            (true, None) => Ok(()),
            (true, Some(error)) => Err(TakeoverError::Gone(error)),
            (false, error) => Err(TakeoverError::GoesOn(
                error.unwrap_or_else(|| io::Error::other("another one serves by now")),
            )),
        }
    }

    /// Says that this process accepts. Whoever has gone need not know.
    pub(crate) fn send_accepting(&self) {
        let _ = self.peer.send(&Message::Accepting);
    }

    /// Waits until the other has written down all it knows.
    ///
    /// # Errors
    /// Where it has gone without doing so.
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

/// Whether this says that nobody listens. Whoever may not connect, or has no descriptor to do it
/// with, has not learned that.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What to do where nobody can be taken over from.
fn remedy_of(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_nobody(error) => {
            "remedy: no tracker runs there: start without --take-over, or name the running one's \
             server.state_dir or server.handover_socket"
        }
        io::ErrorKind::PermissionDenied => {
            "remedy: run as the user that the running tracker runs as"
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "remedy: another successor may be starting: try again; if the tracker there hangs, \
             stop it, then start without --take-over"
        }
        // The other one's own words, among others.
        io::ErrorKind::Other => "remedy: see the log of the running tracker, which continues",
        _ => "remedy: see that server.handover_socket names the running tracker's socket",
    }
}

/// Whether the one that listens at the other end is one of `users`; otherwise why not.
fn is_of(peer: &Channel, users: &[u32]) -> Result<(), String> {
    let user = descriptors::peer_user(peer.0.as_fd()).map_err(|error| error.to_string())?;
    if users.contains(&user) {
        return Ok(());
    }
    Err(format!(
        "it belongs to user {user}, who is neither root, this process's user nor server.user"
    ))
}

/// Whom a successor trusts with sockets: root, itself, and the user that it will become.
pub(crate) fn trusted_users(configured: &str) -> Vec<u32> {
    let configured = (!configured.is_empty()).then(|| UnixUser::find(configured).ok()).flatten();
    [0, descriptors::own_user()].into_iter().chain(configured.map(|it| it.user())).collect()
}

fn unexpected_message() -> io::Error {
    io::Error::other("unexpected message")
}

/// A successor that could serve: this process is to rest, then to leave.
pub(crate) struct Successor {
    peer: Channel,
    lock: Arc<ServingLock>,
    /// Says that this process goes on; dropped where it leaves.
    goes_on: Sender<io::Error>,
}

/// A successor that serves: this process is to end.
pub(crate) struct ServingSuccessor(Channel);

impl Successor {
    /// Gives up the right to serve, says so, and waits until the other one accepts. This process
    /// must rest meanwhile.
    ///
    /// # Errors
    /// Why this process has the right again: the other one has ended, or will never serve.
    pub(crate) fn hand_over(self) -> Result<ServingSuccessor, String> {
        match self.is_followed() {
            Ok(()) => Ok(ServingSuccessor(self.peer)),
            Err(error) => Err(self.refuse(error)),
        }
    }

    /// Gives the other one up, before anything was handed over.
    pub(crate) fn refuse(self, error: io::Error) -> String {
        let Self { peer, goes_on, .. } = self;
        drop(peer);
        let told = error.to_string();
        let _ = goes_on.send(error); // the hand-over thread waits for it
        told
    }

    fn is_followed(&self) -> io::Result<()> {
        self.lock.release()?;
        let said = self.peer.send(&Message::Left);
        let Err(error) = said.and_then(|()| self.accepts(ACCEPT_MAX)) else { return Ok(()) };
        if self.lock.take_within(LOCK_TRIES) {
            return Err(error);
        }
        // Somebody has the right and lives, most likely the one at the other end, standing still.
        // If it ends before it accepts, nobody else is left to serve.
        warn!(
            target: OPERATOR,
            %error,
            remedy = "kill -9 the successor, then this tracker continues",
            "successor has the right to serve but does not respond, waiting for it"
        );
        loop {
            let Err(error) = self.accepts(LOOK_EVERY) else { return Ok(()) };
            if !self.peer.is_open() {
                // Where the right is not to be had now, it has been passed on.
                let is_free = self.lock.take_within(LOCK_TRIES);
                return if is_free { Err(error) } else { Ok(()) };
            }
            if matches!(self.lock.take(), Ok(true)) {
                return Err(error);
            }
        }
    }

    /// Waits until the other one says that it accepts, and has not gone since.
    fn accepts(&self, wait: Duration) -> io::Result<()> {
        match self.peer.receive(wait)?.0 {
            Message::Accepting if self.peer.is_open() => Ok(()),
            Message::Accepting => Err(io::Error::other("it has gone")),
            _ => Err(unexpected_message()),
        }
    }

    /// Gives up the right to serve for good, where this process ends and serves nobody any more.
    pub(crate) fn leave(self) -> ServingSuccessor {
        let left = self.lock.release().and_then(|()| self.peer.send(&Message::Left));
        if let Err(error) = left {
            warn!(target: OPERATOR, %error, "successor ended");
        }
        ServingSuccessor(self.peer)
    }
}

impl ServingSuccessor {
    /// Says that everything is written down.
    pub(crate) fn send_saved(&self) {
        if let Err(error) = self.0.send(&Message::Saved) {
            warn!(target: OPERATOR, %error, "successor ended");
        }
    }
}

/// The offer to be taken over, which stands from the start to the end.
pub(crate) struct TakeoverOffer {
    /// The socket's file, removed at the end unless a successor has put its own there.
    _file: SocketFile,
}

impl TakeoverOffer {
    /// Listens at `path` for a successor, on a thread of its own.
    ///
    /// # Errors
    /// Where that cannot be done. Nothing else depends on it.
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

/// What a tracker has that concerns a successor.
pub(crate) struct HandoverContext {
    /// All sockets.
    pub(crate) owned: Arc<OwnedSockets>,
    /// The right to serve, which this process has.
    pub(crate) lock: Arc<ServingLock>,
    /// Registrations, whose database only one process may have open.
    pub(crate) access_manager: Arc<AccessManager>,
    /// Writes down what the database is to hold before it is lent, and sees that listeners are
    /// kept; or says why nothing is handed over now.
    pub(crate) prepare: Box<dyn Fn() -> Result<(), String> + Send>,
    /// Hears of the one that takes over.
    pub(crate) successors: UnboundedSender<Successor>,
}

/// Where a tracker offers itself: as configured, or in the state directory.
pub(crate) fn path(configured: &str, state: Result<PathBuf, String>) -> Result<PathBuf, String> {
    if configured.is_empty() { Ok(state?.join("handover.sock")) } else { Ok(configured.into()) }
}

/// Deals with those who ask, one after the other.
struct HandoverServer {
    listener: Socket,
    own: HandoverContext,
}

impl HandoverServer {
    /// Until a successor has taken over, or the process ends.
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
            if let Err(reason) = check_successor(&peer).and_then(|()| (self.own.prepare)()) {
                warn!(target: OPERATOR, %reason, "take-over refused");
                let _ = peer.send(&Message::Refused { reason });
                continue;
            }
            info!(target: OPERATOR, "take-over requested by a successor");
            let error = match self.prepare_successor(&peer) {
                Ok(()) => {
                    let (goes_on, told) = channel();
                    let lock = self.own.lock.clone();
                    let successor = Successor { peer, lock, goes_on };
                    // Neither where this process ends anyway.
                    let Ok(()) = self.own.successors.send(successor) else { return };
                    let Ok(error) = told.recv() else { return };
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

    /// The next one that asks. As long as the database is lent, `WouldBlock` now and then: a
    /// successor that was given up may hold it for longer than anybody waits.
    fn next(&self, is_lent: bool) -> io::Result<Socket> {
        self.listener.set_read_timeout(is_lent.then_some(TAKE_BACK_EVERY))?;
        Ok(self.listener.accept()?.0)
    }

    /// Gives copies of all sockets, and waits until the successor could serve with them.
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
            // What was said may have waited here for longer than who said it.
            Message::Serving if peer.is_open() => Ok(()),
            Message::Serving => Err(io::Error::other("it has gone")),
            _ => Err(unexpected_message()),
        }
    }

    /// Opens the database again; the successor's end may take a moment to free it. Says whether it
    /// is open.
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

/// Whether the one at the other end may have the sockets; otherwise why not.
fn check_successor(peer: &Channel) -> Result<(), String> {
    let user = descriptors::peer_user(peer.0.as_fd()).map_err(|error| error.to_string())?;
    if user != 0 && user != descriptors::own_user() {
        return Err(format!("user {user} is neither this tracker's nor root"));
    }
    descriptors::set_timeouts(&peer.0, PROMPT).map_err(|error| error.to_string())?;
    match peer.receive(PROMPT) {
        Ok((Message::Ask { protocol: PROTOCOL, .. }, _)) => Ok(()),
        Ok((Message::Ask { protocol, version }, _)) => Err(format!(
            "skep {version} hands over by protocol {protocol}, this one by {PROTOCOL}: stop this \
             one, then start the other"
        )),
        Ok(_) => Err(unexpected_message().to_string()),
        Err(error) => Err(error.to_string()),
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

    /// An offer of `count` sockets on one address, and who hears of successors.
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
        let successor = heard.blocking_recv().unwrap().hand_over().map_err(|_| ()).unwrap();
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
        // This one ends once the other has left.
        let thread = std::thread::spawn(move || predecessor.take_over());
        assert!(heard.blocking_recv().unwrap().hand_over().is_err());
        thread.join().unwrap().unwrap();
        let (predecessor, _given) =
            Predecessor::ask(&path, &us()).map_err(|it| it.to_string()).unwrap();
        let thread = std::thread::spawn(move || {
            predecessor.take_over().unwrap();
            predecessor.send_accepting();
            predecessor
        });
        assert!(heard.blocking_recv().unwrap().hand_over().is_ok());
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
        let user = format!("it belongs to user {},", descriptors::own_user());
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
        let (answer, _) = peer.receive(PROMPT).unwrap();
        let Message::Refused { reason } = answer else { panic!("{answer:?}") };
        assert!(reason.contains("skep 9.0.0") && reason.contains("by 2"), "{reason}");
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
        assert!(text.contains("remedy: see that server.handover_socket names"), "{text}");
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
        assert!(remedy_of(&error).contains("if the tracker there hangs"), "{error}");
    }
}
