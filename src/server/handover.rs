//! Restart without a lost packet: the running tracker's sockets, handed to its successor.
//!
//! ```text
//! successor (skep run --take-over)            predecessor
//! reads settings, keys, probes io_uring
//! Ask ───────────────────────────────────────▶ same user? same protocol?
//! takes them                                 ◀─ Sockets, with descriptors; lets go of the database
//! opens the database, starts UDP workers        goes on as before
//! Serving ───────────────────────────────────▶ stops receiving and accepting, answers what it took
//! accepts connections                        ◀─ Left
//! knows all that the other knew              ◀─ Saved
//! serves alone                                  WebSockets go over server.drain_s; exit 0
//! ```
//!
//! For UDP there is no gap at all: until it has left, the predecessor receives from the same
//! sockets as the successor, each datagram goes to one of them, and both answer under the same key.
//! A successor that fails before it says Serving, or falls silent, costs nothing: the predecessor
//! has never stopped. One that was too slow finds the predecessor still there to be taken over, or
//! another successor in its place, and ends: two that serve would not know of each other's peers.
//! Between the two nobody listens for a moment, so it looks for three seconds before it takes the
//! place for deserted. What remains is one that comes too late just while another needs longer than
//! that from Serving to its own offer.
//!
//! Connections wait in the listeners' queues meanwhile, because the two backends want listeners in
//! different modes, and the mode is the socket's, not the process's.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::Socket;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use crate::access::disk::Office;
use crate::server::StartError;
use crate::server::inheritance::{Description, Estate, Inheritance, SOCKETS_MAX};
use crate::server::log::OPERATOR;
use crate::server::socket_file::SocketFile;
use crate::sys::descriptors::{self, DESCRIPTORS_MAX};
use crate::sys::identity::Identity;

/// What both sides have to speak alike. Fields may be added without another number.
const PROTOCOL: u32 = 1;

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

/// How often a successor that its predecessor did not answer asks whether anybody listens: over
/// three seconds, longer than it takes to leave, after which the next one listens.
const DESERTED_ASKS: u32 = 60;

/// How long it waits in between.
const DESERTED_EVERY: Duration = Duration::from_millis(50);

/// What is said, as JSON, one to a message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Message {
    /// The successor's first word.
    Ask { protocol: u32, version: String },
    /// No, and why.
    Refused { reason: String },
    /// Some of the sockets, in the order of the descriptors; more follow unless `last`.
    Sockets { sockets: Vec<Description>, last: bool },
    /// The successor receives.
    Serving,
    /// The predecessor does not any more, and has answered all it took.
    Left,
    /// The predecessor has written down all it knows.
    Saved,
}

/// One side of the conversation.
struct Line(Socket);

impl Line {
    fn say(&self, message: &Message) -> io::Result<()> {
        self.say_with(message, &[])
    }

    fn say_with(
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
    fn hear(&self, wait: Duration) -> io::Result<(Message, Vec<std::os::fd::OwnedFd>)> {
        descriptors::be_impatient(&self.0, wait)?;
        let mut text = vec![0; MESSAGE_BYTES_MAX];
        match descriptors::receive(&self.0, &mut text) {
            Ok((0, _)) => Err(io::Error::other("it has gone")),
            Ok((bytes, sockets)) => Ok((serde_json::from_slice(&text[..bytes])?, sockets)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("it said nothing for {} s", wait.as_secs());
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
pub(super) struct Predecessor {
    line: Line,
    path: PathBuf,
}

/// Why a predecessor has not said that it leaves.
#[derive(Debug)]
pub(super) enum Unrelieved {
    /// It has ended: this process serves alone.
    Gone(io::Error),
    /// It serves on, and can be taken over still.
    GoesOn(io::Error),
}

impl Unrelieved {
    /// What ends a successor whose predecessor goes on.
    pub(super) fn into_start_error(error: &io::Error) -> StartError {
        StartError::Failed(format!(
            "not taken over: the running tracker goes on, as this one was not ready within {} s \
             or the two did not understand each other ({error}); remedy: start it again with \
             --take-over; see both logs for what took so long",
            START_MAX.as_secs()
        ))
    }
}

impl Predecessor {
    /// Asks whoever listens at `path` for its sockets, provided that it is one of `users`: others
    /// could pass sockets of their own for the tracker's.
    ///
    /// # Errors
    /// [`StartError`] with a remedy: nobody is there, it is somebody else's, or it says no.
    pub(super) fn ask(path: &Path, users: &[u32]) -> Result<(Self, Inheritance), StartError> {
        let failed = |error: &dyn std::fmt::Display, remedy: &str| {
            let path = path.display();
            StartError::Failed(format!("cannot take over by way of {path}: {error}; {remedy}"))
        };
        let connected = descriptors::connect(path).map_err(|it| failed(&it, remedy_of(&it)))?;
        let line = Line(connected);
        is_of(&line, users).map_err(|reason| {
            let remedy = "remedy: name another server.handover_socket in a folder that only the \
                          tracker's user may write to, or set server.user to that user";
            failed(&reason, remedy)
        })?;
        let asked = line.receive_sockets().map_err(|it| failed(&it, remedy_of(&it)))?;
        Ok((Self { line, path: path.to_owned() }, asked))
    }

    /// Says that this process receives, and waits until the other does so no more.
    ///
    /// # Errors
    /// [`Unrelieved`]: where the other one has not said so, whether it is there still.
    pub(super) fn relieve(&self) -> Result<(), Unrelieved> {
        let said = self.line.say(&Message::Serving).and_then(|()| self.line.hear(START_MAX));
        let error = match said {
            Ok((Message::Left, _)) => return Ok(()),
            Ok(_) => out_of_turn(),
            Err(error) => error,
        };
        if is_deserted(&self.path, || std::thread::sleep(DESERTED_EVERY)) {
            return Err(Unrelieved::Gone(error));
        }
        Err(Unrelieved::GoesOn(error))
    }

    /// Waits until the other has written down all it knows.
    ///
    /// # Errors
    /// Where it has gone without doing so.
    pub(super) fn wait_until_saved(self) -> io::Result<()> {
        match self.line.hear(SAVE_MAX)?.0 {
            Message::Saved => Ok(()),
            _ => Err(out_of_turn()),
        }
    }
}

impl Line {
    fn receive_sockets(&self) -> io::Result<Inheritance> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.say(&Message::Ask { protocol: PROTOCOL, version })?;
        let mut given = Inheritance::default();
        let mut count = 0;
        loop {
            let (message, descriptors) = self.hear(PROMPT)?;
            let (sockets, last) = match message {
                Message::Sockets { sockets, last } => (sockets, last),
                Message::Refused { reason } => {
                    return Err(io::Error::other(format!("the running tracker says: {reason}")));
                }
                _ => return Err(out_of_turn()),
            };
            count += sockets.len();
            if sockets.len() != descriptors.len() || count > SOCKETS_MAX {
                return Err(out_of_turn());
            }
            sockets.into_iter().zip(descriptors).for_each(|(it, fd)| given.receive(it, fd));
            if last {
                return Ok(given);
            }
        }
    }
}

/// Whether nobody listens there for a successor: neither the predecessor, which has ended, nor one
/// that it leaves to, which listens soon. `wait` is called between two looks.
fn is_deserted(path: &Path, mut wait: impl FnMut()) -> bool {
    for _ in 0..DESERTED_ASKS {
        match descriptors::connect(path) {
            Err(error) if is_nobody(&error) => wait(),
            _ => return false,
        }
    }
    true
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
        io::ErrorKind::Other => "remedy: the tracker there goes on; see its log",
        _ => "remedy: see that server.handover_socket names the running tracker's socket",
    }
}

/// Whether the one that listens at the other end is one of `users`; otherwise why not.
fn is_of(line: &Line, users: &[u32]) -> Result<(), String> {
    let user = descriptors::peer_user(line.0.as_fd()).map_err(|error| error.to_string())?;
    if users.contains(&user) {
        return Ok(());
    }
    Err(format!("it is user {user}'s, who is neither root, this process's user nor server.user"))
}

/// Whom a successor trusts with sockets: root, itself, and the user that it will become.
pub(super) fn trusted_users(configured: &str) -> Vec<u32> {
    let configured = (!configured.is_empty()).then(|| Identity::find(configured).ok()).flatten();
    [0, descriptors::own_user()].into_iter().chain(configured.map(|it| it.user())).collect()
}

fn out_of_turn() -> io::Error {
    io::Error::other("it said what nobody had asked")
}

/// A successor that serves: this process is to leave.
pub(super) struct Successor(Line);

impl Successor {
    /// Says that this process neither receives nor accepts any more.
    pub(super) fn tell_left(&self) {
        self.tell(&Message::Left);
    }

    /// Says that everything is written down.
    pub(super) fn tell_saved(&self) {
        self.tell(&Message::Saved);
    }

    fn tell(&self, message: &Message) {
        if let Err(error) = self.0.say(message) {
            warn!(target: OPERATOR, "the successor has gone: {error}");
        }
    }
}

/// The offer to be taken over, which stands from the start to the end.
pub(super) struct Offer {
    /// The socket's file, removed at the end unless a successor has put its own there.
    _file: SocketFile,
}

impl Offer {
    /// Listens at `path` for a successor, on a thread of its own.
    ///
    /// # Errors
    /// Where that cannot be done. Nothing else depends on it.
    pub(super) fn make(path: &Path, own: Own, has_predecessor: bool) -> io::Result<Self> {
        let listen = if has_predecessor { SocketFile::replace } else { SocketFile::listen };
        let (file, listener) = listen(path)?;
        let clerk = Clerk { listener, own };
        std::thread::Builder::new().name("handover".into()).spawn(move || clerk.serve())?;
        Ok(Self { _file: file })
    }
}

/// What a tracker has that concerns a successor.
pub(super) struct Own {
    /// All sockets.
    pub(super) estate: Arc<Estate>,
    /// Registrations, whose database only one process may have open.
    pub(super) office: Arc<Office>,
    /// Writes down what the database is to hold before it is lent, and sees that listeners are
    /// kept; or says why nothing is handed over now.
    pub(super) prepare: Box<dyn Fn() -> Result<(), String> + Send>,
    /// Hears of the one that takes over.
    pub(super) successors: UnboundedSender<Successor>,
}

/// Where a tracker offers itself: as configured, or in the state directory.
pub(super) fn path(configured: &str, state: Result<PathBuf, String>) -> Result<PathBuf, String> {
    if configured.is_empty() { Ok(state?.join("handover.sock")) } else { Ok(configured.into()) }
}

/// Deals with those who ask, one after the other.
struct Clerk {
    listener: Socket,
    own: Own,
}

impl Clerk {
    /// Until a successor has taken over, or the process ends.
    fn serve(self) {
        let mut is_lent = false;
        loop {
            let line = match self.next(is_lent) {
                Ok(socket) => Line(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    is_lent = is_lent && self.own.office.take_back().is_err();
                    continue;
                }
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(100)); // no descriptor is left
                    continue;
                }
            };
            if let Err(reason) = may_ask(&line).and_then(|()| (self.own.prepare)()) {
                warn!(target: OPERATOR, "not taken over: {reason}");
                let _ = line.say(&Message::Refused { reason });
                continue;
            }
            info!(target: OPERATOR, "a successor has asked for the sockets");
            match self.hand_over(&line) {
                Ok(()) => {
                    let Self { listener, own } = self;
                    drop(listener); // first: whoever can connect has nobody to take over from
                    let _ = own.successors.send(Successor(line));
                    return;
                }
                Err(error) => {
                    warn!(target: OPERATOR, "not taken over, this tracker goes on: {error}");
                    drop(line);
                    is_lent = !self.take_back();
                }
            }
        }
    }

    /// The next one that asks. As long as the database is lent, `WouldBlock` now and then: a
    /// successor that was given up may hold it for longer than anybody waits.
    fn next(&self, is_lent: bool) -> io::Result<Socket> {
        self.listener.set_read_timeout(is_lent.then_some(TAKE_BACK_EVERY))?;
        Ok(self.listener.accept()?.0)
    }

    /// Gives copies of all sockets, and waits until the successor serves with them.
    fn hand_over(&self, line: &Line) -> io::Result<()> {
        self.own.office.lend();
        let all: Vec<_> = self.own.estate.all().collect();
        let count = all.len().div_ceil(SOCKETS_PER_MESSAGE);
        for (number, part) in (1..).zip(all.chunks(SOCKETS_PER_MESSAGE)) {
            let sockets = part.iter().map(|it| it.0.clone()).collect();
            let descriptors: Vec<_> = part.iter().map(|it| it.1).collect();
            line.say_with(&Message::Sockets { sockets, last: number == count }, &descriptors)?;
        }
        match line.hear(START_MAX)?.0 {
            // What was said may have waited here for longer than who said it.
            Message::Serving if line.is_open() => Ok(()),
            Message::Serving => Err(io::Error::other("it has gone")),
            _ => Err(out_of_turn()),
        }
    }

    /// Opens the database again; the successor's end may take a moment to free it. Says whether it
    /// is open.
    #[expect(clippy::disallowed_methods, reason = "this is the edge")]
    fn take_back(&self) -> bool {
        let begun = Instant::now();
        loop {
            match self.own.office.take_back() {
                Ok(()) => return true,
                Err(trouble) if begun.elapsed() > TAKE_BACK_MAX => {
                    warn!(target: OPERATOR, "registrations cannot be changed for now: {trouble}");
                    return false;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Whether the one at the other end may have the sockets; otherwise why not.
fn may_ask(line: &Line) -> Result<(), String> {
    let user = descriptors::peer_user(line.0.as_fd()).map_err(|error| error.to_string())?;
    if user != 0 && user != descriptors::own_user() {
        return Err(format!("user {user} is neither this tracker's nor root"));
    }
    descriptors::be_impatient(&line.0, PROMPT).map_err(|error| error.to_string())?;
    match line.hear(PROMPT) {
        Ok((Message::Ask { protocol: PROTOCOL, .. }, _)) => Ok(()),
        Ok((Message::Ask { protocol, version }, _)) => Err(format!(
            "skep {version} hands over by protocol {protocol}, this one by {PROTOCOL}: stop this \
             one, then start the other"
        )),
        Ok(_) => Err(out_of_turn().to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::inheritance::{Kind, Place};
    use std::net::UdpSocket;

    fn us() -> Vec<u32> {
        trusted_users("")
    }

    /// An offer of `count` sockets on one address, and who hears of successors.
    fn offer(
        path: &Path,
        count: usize,
    ) -> (Offer, tokio::sync::mpsc::UnboundedReceiver<Successor>) {
        let options = crate::access::disk::Options {
            mode: crate::access::mode::Mode::Open,
            similar_digits_max: 0,
            files: Default::default(),
            state: Err("none".into()),
        };
        let office = Arc::new(Office::open(&options).unwrap());
        let mut estate = Estate::default();
        let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let place = Place::At("127.0.0.1:7".parse().unwrap());
        estate.add(Kind::Udp, &place, &sockets).unwrap();
        let (successors, heard) = tokio::sync::mpsc::unbounded_channel();
        let (estate, prepare) = (Arc::new(estate), Box::new(|| Ok(())));
        let own = Own { estate, office, prepare, successors };
        (Offer::make(path, own, false).unwrap(), heard)
    }

    #[test]
    fn all_sockets_go_over_and_both_sides_know_when() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let (offer, mut heard) = offer(&path, 2 * DESCRIPTORS_MAX + 1);
        let (predecessor, mut given) =
            Predecessor::ask(&path, &us()).map_err(|it| it.to_string()).unwrap();
        let taken = given.take(Kind::Udp, "127.0.0.1:7".parse().unwrap());
        assert_eq!(taken.len(), 2 * DESCRIPTORS_MAX + 1);
        let thread = std::thread::spawn(move || {
            predecessor.relieve().unwrap();
            predecessor.wait_until_saved().unwrap();
        });
        let successor = heard.blocking_recv().unwrap();
        successor.tell_left();
        successor.tell_saved();
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
        let thread = std::thread::spawn(move || predecessor.relieve());
        heard.blocking_recv().unwrap().tell_left();
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_predecessor_that_has_given_up_waiting_goes_on_and_one_that_has_ended_does_not() {
        let folder = tempfile::tempdir().unwrap();
        for goes_on in [true, false] {
            let path = folder.path().join("handover.sock");
            let listener = descriptors::listen(&path).unwrap();
            let other = std::thread::spawn(move || {
                let line = Line(listener.accept().unwrap().0);
                line.hear(PROMPT).unwrap();
                line.say(&Message::Sockets { sockets: Vec::new(), last: true }).unwrap();
                let listener = goes_on.then_some(listener);
                drop(line);
                listener
            });
            let (predecessor, _) =
                Predecessor::ask(&path, &us()).map_err(|it| it.to_string()).unwrap();
            let listener = other.join().unwrap();
            match predecessor.relieve().unwrap_err() {
                Unrelieved::GoesOn(error) => {
                    assert!(goes_on);
                    let text = Unrelieved::into_start_error(&error).to_string();
                    assert!(text.contains("goes on") && text.contains("remedy"), "{text}");
                }
                Unrelieved::Gone(_) => assert!(!goes_on),
            }
            drop(listener);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_place_where_it_cannot_be_found_out_who_listens_is_not_deserted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let mut waits = 0;
        assert!(is_deserted(&path, || waits += 1));
        assert_eq!(waits, DESERTED_ASKS);
        std::os::unix::fs::symlink(&path, &path).unwrap(); // ELOOP
        assert!(!is_deserted(&path, || unreachable!()));
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap(); // EPROTOTYPE
        assert!(!is_deserted(&path, || unreachable!()));
        let is_nobody = |number| is_nobody(&io::Error::from_raw_os_error(number));
        assert!([libc::ENOENT, libc::ECONNREFUSED].into_iter().all(is_nobody));
        let others = [libc::EACCES, libc::EPERM, libc::EMFILE, libc::ENFILE, libc::EAGAIN];
        assert!(!others.into_iter().any(is_nobody));
    }

    #[test]
    fn a_place_to_which_the_next_one_comes_is_not_deserted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        drop(descriptors::listen(&path).unwrap());
        let (mut waits, mut next) = (0, None);
        let is_deserted = is_deserted(&path, || {
            waits += 1;
            if waits == 3 {
                next = Some(SocketFile::replace(&path).unwrap());
            }
        });
        assert!(!is_deserted && next.is_some());
    }

    #[test]
    fn sockets_are_taken_from_trusted_users_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let (_offer, _heard) = offer(&path, 1);
        let strangers = [descriptors::own_user() + 1];
        let text = Predecessor::ask(&path, &strangers).err().unwrap().to_string();
        let user = format!("it is user {}'s", descriptors::own_user());
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
        let line = Line(descriptors::connect(&path).unwrap());
        line.say(&Message::Ask { protocol: PROTOCOL + 1, version: "9.0.0".into() }).unwrap();
        let (answer, _) = line.hear(PROMPT).unwrap();
        let Message::Refused { reason } = answer else { panic!("{answer:?}") };
        assert!(reason.contains("skep 9.0.0") && reason.contains("by 1"), "{reason}");
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
            .map(|(here, there)| (Line(here), Line(there)))
            .unwrap();
        assert!(here.is_open(), "nothing was said yet");
        there.say(&Message::Serving).unwrap();
        there.say(&Message::Saved).unwrap();
        assert!(here.is_open(), "and nothing of it is taken by asking");
        assert!(matches!(here.hear(PROMPT).unwrap().0, Message::Serving));
        assert!(matches!(here.hear(PROMPT).unwrap().0, Message::Saved));
        assert!(here.is_open());
        there.say(&Message::Serving).unwrap();
        drop(there);
        assert!(matches!(here.hear(PROMPT).unwrap().0, Message::Serving));
        assert!(!here.is_open());
    }

    #[test]
    fn silence_has_a_remedy_of_its_own() {
        let (here, _there) = Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)
            .map(|(here, there)| (Line(here), there))
            .unwrap();
        let error = here.hear(Duration::from_millis(1)).unwrap_err();
        assert!(remedy_of(&error).contains("if the tracker there hangs"), "{error}");
    }
}
