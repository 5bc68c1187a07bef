//! The WebTorrent front end: a text message of a WebSocket in, messages for this and other sockets
//! out. Sans-I/O: frames, queues and threads belong to the stream worker.
//!
//! ```text
//! announce ─▶ tracker ─▶ response, and a few WebRTC peers ─▶ directory ─▶ one offer to each
//! offer    ─▶ the receiver's session remembers it ─▶ its client
//! answer   ─▶ the session finds that offer ─▶ directory ─▶ the socket of the peer that made it
//! ```
//!
//! No peer is looked up by a peer id from a client: offers go to peers that the store chose from
//! their swarm, answers to the peer that made the remembered offer. So no message crosses from one
//! swarm to another.

mod directory;
mod handed;
mod session;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use directory::{Directory, SocketRoute};
pub use handed::OFFER_AGE_S_MAX;
pub use session::SocketSession;

use crate::counters::DeliveryFailure;
use crate::frontend::http::Outcome;
use crate::protocol::passkey::Passkey;
use crate::protocol::webtorrent::{
    self, AnnounceMessage, AnswerRequest, MessageMethod, Unusable, WebTorrentMessage,
};
use crate::time::Now;
use crate::tracker::{AdmitError, AnnounceDetails, Announced, Credentials, PeerBuffers, Tracker};
use crate::types::{
    Action, Announce, AnnounceResponse, Contact, Event, InfoHash, Refusal, Rejected, WebPeer,
};
use directory::{OfferKey, OfferNetworks};
use handed::{NetworkLots, Quota};
use session::SocketPeer;

/// The longest message accepted from a client, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The upper bound of [`Options::offers_max`].
pub const OFFERS_LIMIT: usize = 64;

const WEB_PEER_BYTES: usize = size_of::<WebPeer>();

/// The operator's settings, replaced as a whole on reload.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds until the next announce.
    pub interval_s: u32,
    /// The most offers used of one announce.
    pub offers_max: u32,
    /// The most offers handed to one socket in a minute, for each of its torrents; 0: no limit.
    /// Offers from exempt networks are not limited.
    pub offers_per_minute_max: u32,
    /// The most swarms of one socket.
    pub torrents_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { interval_s: 120, offers_max: 10, offers_per_minute_max: 60, torrents_max: 1000 }
    }
}

/// An offer or answer from one socket to another.
#[derive(Clone, Debug)]
pub struct PeerMessage {
    /// The receiving peer: it may leave while the message is in transit.
    to: WebPeer,
    /// For an offer: the data that its receiver remembers.
    offer: Option<PendingOffer>,
    /// The message for the client.
    text: Vec<u8>,
}

/// An offer in transit.
#[derive(Clone, Copy, Debug)]
struct PendingOffer {
    /// The key by which its answer finds it.
    key: OfferKey,
    /// The peer that made it.
    offerer: WebPeer,
    /// The networks of its source.
    networks: OfferNetworks,
    /// Whether its source is exempt from limits.
    is_exempt: bool,
}

impl PeerMessage {
    /// The length of the message for the client, in bytes.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// The result of handling a message.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Text messages for the socket itself, in order.
    pub responses: Vec<Vec<u8>>,
    /// Messages for other sockets, and for this socket where another of its peers is the receiver.
    pub messages: Vec<(SocketRoute, PeerMessage)>,
    /// The number of offers and answers that were not delivered, by reason.
    pub lost: Vec<(DeliveryFailure, usize)>,
}

/// One worker's WebTorrent front end.
pub struct WsFrontend {
    directory: Arc<Directory>,
    options: arc_swap::Cache<Arc<ArcSwap<Options>>, Arc<Options>>,
    lots: NetworkLots,
}

impl WsFrontend {
    /// Makes a front end; the contents of `options` may be replaced at any time.
    pub fn new(directory: Arc<Directory>, options: Arc<ArcSwap<Options>>) -> Self {
        let lots = NetworkLots::new(directory.key_by_lot());
        Self { directory, options: arc_swap::Cache::new(options), lots }
    }

    /// Makes the session of a new socket at `route`, of a client at `source`.
    pub fn open(&mut self, route: SocketRoute, source: IpAddr) -> SocketSession {
        SocketSession::new(route, source)
    }

    /// As [`Self::open`], with the passkey from the path of the upgrade.
    pub fn open_with(
        &mut self,
        route: SocketRoute,
        source: IpAddr,
        passkey: Option<Box<Passkey>>,
    ) -> SocketSession {
        let mut session = SocketSession::new(route, source);
        session.passkey = passkey;
        session
    }

    /// Handles one message of at most [`MESSAGE_BYTES_MAX`] bytes; appends to `outbox`.
    ///
    /// Every message gets one response, except an answer, which gets none, even if it matches no
    /// remembered offer: the offer may have been answered or have expired meanwhile. That case is
    /// counted as [`Rejected::BadMessage`].
    pub fn handle(
        &mut self,
        tracker: &mut Tracker,
        now: Now,
        session: &mut SocketSession,
        message: &[u8],
        outbox: &mut Outbox,
    ) -> Outcome {
        let (directory, options) = (&*self.directory, &**self.options.load());
        MessageHandler { directory, options, tracker, now, session, outbox }.respond(message)
    }

    /// Takes a message from another socket; appends the message for the client to `outbox`.
    ///
    /// # Errors
    /// Why the client gets no message: the peer may have left, or the quota of offers is used up.
    pub fn receive(
        &mut self,
        now: Now,
        session: &mut SocketSession,
        message: PeerMessage,
        outbox: &mut Outbox,
    ) -> Result<(), DeliveryFailure> {
        let quota = Quota { per_minute_max: self.options.load().offers_per_minute_max };
        let PeerMessage { to, offer, text } = message;
        if !session.speaks_for(&to) {
            return Err(DeliveryFailure::ReceiverGone);
        }
        if let Some(offer) = offer
            && !session.offers.take(now, &offer, &to, quota, &mut self.lots)
        {
            return Err(DeliveryFailure::OverQuota);
        }
        outbox.responses.push(text);
        Ok(())
    }

    /// Periodic upkeep of a socket, whatever its client sends. Peers that have not announced for
    /// too long leave, as in the store; otherwise a client that no longer announces them would
    /// occupy their places until its socket closes. Peers that may no longer be served leave as
    /// well; otherwise they would receive offers until they announce.
    pub fn tend(&mut self, tracker: &mut Tracker, now: Now, session: &mut SocketSession) {
        drop_silent(&self.directory, tracker, now, session);
        let SocketSession { source, route, .. } = *session;
        let passkey = session.passkey.take();
        let shown = passkey.as_deref().map(Passkey::as_bytes);
        session.drop_peers(|peer| {
            let may_stay = tracker.may_stay(now, source, &peer.info_hash, shown);
            if !may_stay {
                leave(&self.directory, tracker, now, route, source, peer);
            }
            !may_stay
        });
        session.passkey = passkey;
    }

    /// Handles the end of a socket: its peers leave.
    pub fn close(&mut self, tracker: &mut Tracker, now: Now, session: SocketSession) {
        for peer in session.peers() {
            let passkey = session.passkey.as_deref().map(Passkey::as_bytes);
            tracker.release(passkey, &peer.info_hash, &peer.peer_id);
            leave(&self.directory, tracker, now, session.route, session.source, peer);
        }
    }
}

/// The context of one message.
struct MessageHandler<'a> {
    directory: &'a Directory,
    options: &'a Options,
    tracker: &'a mut Tracker,
    now: Now,
    session: &'a mut SocketSession,
    outbox: &'a mut Outbox,
}

impl MessageHandler<'_> {
    fn respond(&mut self, message: &[u8]) -> Outcome {
        let offers_max = (self.options.offers_max as usize).min(OFFERS_LIMIT);
        match webtorrent::decode(message, offers_max) {
            Ok(WebTorrentMessage::Announce(announce_message))
                if announce_message.event == Event::Stopped =>
            {
                self.stop(&announce_message)
            }
            Ok(WebTorrentMessage::Announce(request)) => self.announce(&request),
            Ok(WebTorrentMessage::Answer(request)) => self.relay(&request),
            Ok(WebTorrentMessage::Scrape(hashes)) => self.scrape(&hashes),
            Err(invalid) => {
                self.outbox.respond(|out| webtorrent::encode_invalid(&invalid, out));
                Outcome::Rejected(Rejected::BadMessage)
            }
        }
    }

    fn announce(&mut self, request: &AnnounceMessage<'_>) -> Outcome {
        let (announce, name) = self.announce_of(request);
        if !self.has_room_for(&name) {
            let (source, event) = (announce.source, announce.event);
            let charged = self.tracker.charge_announce(self.now, source, event);
            let error = charged.err().unwrap_or(AdmitError::Refused(Refusal::TooManyTorrents));
            return self.refuse(&announce, error);
        }
        let mut room = [0; OFFERS_LIMIT * WEB_PEER_BYTES];
        let offers = request.offers.len().min(OFFERS_LIMIT);
        let web = &mut room[..offers * WEB_PEER_BYTES];
        let announced =
            match self.submit(request, announce, PeerBuffers { web, ..PeerBuffers::default() }) {
                Ok(announced) => announced,
                Err(error) => {
                    self.remove_denied_peer(&name, error);
                    return self.refuse(&announce, error);
                }
            };
        let Announce { info_hash, peer_id, .. } = announce;
        self.announced(&info_hash, &announced, request.unusable);
        if let Some(reason) = announced.not_applied {
            // The session drops it, too, because memory is short.
            self.session.leave(&name);
            self.directory.leave(&name, self.session.route, || {});
            return Outcome::NotApplied(reason);
        }
        self.session.join(SocketPeer { name, info_hash, peer_id, latest: self.now });
        let chosen = &room[..announced.bytes.iter().sum()];
        self.hand_offers(request, name, chosen);
        Outcome::Answered(Action::Announce)
    }

    /// Whether the socket may join one more swarm, or is already in that of this peer.
    fn has_room_for(&mut self, name: &WebPeer) -> bool {
        let torrents_max = self.options.torrents_max as usize;
        let is_full = |session: &SocketSession| session.torrents() >= torrents_max;
        if self.session.speaks_for(name) || !is_full(self.session) {
            return true;
        }
        drop_silent(self.directory, self.tracker, self.now, self.session);
        !is_full(self.session)
    }

    /// Passes an announce to the tracker.
    fn submit(
        &mut self,
        request: &AnnounceMessage<'_>,
        mut announce: Announce,
        room: PeerBuffers<'_>,
    ) -> Result<Announced, AdmitError> {
        let as_sent = announce;
        let mut details = SocketDetails {
            uploaded: request.uploaded,
            downloaded: request.downloaded,
            announce: &as_sent,
            interval_s: self.options.interval_s,
            directory: self.directory,
            session: self.session,
        };
        self.tracker.announce(self.now, &mut announce, &mut details, room)
    }

    fn scrape(&mut self, hashes: &[InfoHash]) -> Outcome {
        let SocketSession { source, passkey, .. } = &*self.session;
        let passkey = passkey.as_deref().map(Passkey::as_bytes);
        let mut entries = Vec::with_capacity(hashes.len());
        let scraped = self.tracker.scrape(self.now, *source, hashes, passkey, |hash, counts| {
            entries.push((*hash, counts));
        });
        if let Err(error) = scraped {
            let (method, refusal) = (Some(MessageMethod::Scrape), error.refusal());
            self.outbox
                .respond(|out| webtorrent::encode_failure(method, None, refusal.text(), out));
            return Outcome::Refused(refusal);
        }
        self.outbox.respond(|out| webtorrent::encode_scraped(entries.into_iter(), out));
        Outcome::Answered(Action::Scrape)
    }

    /// Refuses an announce, with the operator's reason if there is one.
    fn refuse(&mut self, announce: &Announce, error: AdmitError) -> Outcome {
        let refusal = error.refusal();
        let reason = self.tracker.reason(refusal, announce).unwrap_or_else(|| refusal.text());
        let (method, hash) = (Some(MessageMethod::Announce), Some(&announce.info_hash));
        self.outbox.respond(|out| webtorrent::encode_failure(method, hash, reason, out));
        Outcome::Refused(refusal)
    }

    /// Hands one offer to each chosen peer. A peer whose socket has just closed is skipped: its
    /// offer gets no answer, which is normal for clients.
    fn hand_offers(&mut self, request: &AnnounceMessage<'_>, offerer: WebPeer, chosen: &[u8]) {
        let (chosen, []) = chosen.as_chunks::<WEB_PEER_BYTES>() else {
            unreachable!("only WebRTC peers were asked for");
        };
        let AnnounceMessage { info_hash, peer_id, offers, .. } = request;
        if chosen.is_empty() {
            return;
        }
        let networks = self.directory.networks(self.session.source);
        let is_exempt = self.tracker.is_exempt(self.session.source);
        for (offer, to) in offers.iter().zip(chosen.iter().map(|it| WebPeer(*it))) {
            let Some(route) = self.directory.route(&to) else {
                self.outbox.lost.push((DeliveryFailure::ReceiverGone, 1));
                continue;
            };
            let mut text = Vec::with_capacity(offer.text.len() + 256);
            webtorrent::encode_offer(info_hash, peer_id, offer, &mut text);
            let key = self.directory.offer_key(info_hash, &offer.id, peer_id);
            let offer = Some(PendingOffer { key, offerer, networks, is_exempt });
            self.outbox.messages.push((route, PeerMessage { to, offer, text }));
        }
    }

    /// Removes a peer at its own request, also from another socket, and whatever the response: the
    /// tracker applies every stop.
    fn stop(&mut self, request: &AnnounceMessage<'_>) -> Outcome {
        let (announce, name) = self.announce_of(request);
        let stopped = self.submit(request, announce, PeerBuffers::default());
        self.session.leave(&name);
        self.directory.leave(&name, self.session.route, || {});
        match stopped {
            Ok(announced) => {
                self.announced(&request.info_hash, &announced, None);
                Outcome::Answered(Action::Announce)
            }
            Err(error) => self.refuse(&announce, error),
        }
    }

    /// Removes a peer that may no longer be served from its swarm, but not one that is only over a
    /// limit.
    fn remove_denied_peer(&mut self, name: &WebPeer, error: AdmitError) {
        if matches!(error.refusal(), Refusal::Limited | Refusal::PasskeyLimit) {
            return;
        }
        let SocketSession { route, source, .. } = *self.session;
        if let Some(peer) = self.session.leave(name) {
            leave(self.directory, self.tracker, self.now, route, source, &peer);
        }
    }

    /// Relays an answer to the peer that made the offer.
    fn relay(&mut self, request: &AnswerRequest<'_>) -> Outcome {
        let AnswerRequest { info_hash, peer_id, to_peer_id, offer_id, .. } = request;
        let own = self.directory.web_peer(info_hash, peer_id, self.session.source);
        if !self.session.speaks_for(&own) {
            return Outcome::Rejected(Rejected::BadMessage);
        }
        let key = self.directory.offer_key(info_hash, offer_id, to_peer_id);
        let Some(to) = self.session.offers.answer(self.now, key) else {
            return Outcome::Rejected(Rejected::BadMessage);
        };
        // The offerer may be on a newer socket by now, or have left.
        if let Some(route) = self.directory.route(&to) {
            let mut text = Vec::with_capacity(request.text.len() + 256);
            webtorrent::encode_answer(request, &mut text);
            self.outbox.messages.push((route, PeerMessage { to, offer: None, text }));
        } else {
            self.outbox.lost.push((DeliveryFailure::ReceiverGone, 1));
        }
        Outcome::Answered(Action::Answer)
    }

    fn announce_of(&self, request: &AnnounceMessage<'_>) -> (Announce, WebPeer) {
        let AnnounceMessage { info_hash, peer_id, .. } = *request;
        let name = self.directory.web_peer(&info_hash, &peer_id, self.session.source);
        let announce = Announce {
            info_hash,
            source: self.session.source,
            address_override: None,
            contact: Contact::Web(name),
            peer_id,
            left: request.left,
            event: request.event,
            numwant: request.numwant,
        };
        (announce, name)
    }

    /// Responds to an announce. A client whose offers cannot be used gets one warning with the
    /// error of the first offer: the announce is valid, and most clients stop after a failure.
    fn announced(
        &mut self,
        info_hash: &InfoHash,
        announced: &Announced,
        unusable: Option<Unusable>,
    ) {
        let AnnounceResponse { interval_s, seeders, leechers, .. } = announced.response;
        let warning = unusable.filter(|_| !self.session.is_warned).map(|it| it.fault);
        if let Some(Unusable { count, .. }) = unusable {
            self.session.is_warned = true;
            self.outbox.lost.push((DeliveryFailure::Unusable, count));
        }
        let counts = (seeders, leechers);
        self.outbox.respond(|out| {
            webtorrent::encode_announced(info_hash, interval_s, counts, warning, out);
        });
    }
}

/// Parts of an announce that the tracker rarely reads.
struct SocketDetails<'a> {
    uploaded: u64,
    downloaded: u64,
    announce: &'a Announce,
    interval_s: u32,
    directory: &'a Directory,
    session: &'a SocketSession,
}

impl AnnounceDetails for SocketDetails<'_> {
    fn credentials(&mut self) -> Credentials<'_> {
        let passkey = self.session.passkey.as_deref().map(Passkey::as_bytes);
        Credentials { passkey, uploaded: self.uploaded, downloaded: self.downloaded }
    }

    fn interval_s(&self) -> Option<u32> {
        Some(self.interval_s)
    }

    /// The directory is updated before the swarm: see `directory`.
    fn before_apply(&mut self) {
        if let Contact::Web(name) = self.announce.contact
            && self.announce.event != Event::Stopped
        {
            self.directory.enter(name, self.session.route);
        }
    }
}

/// Removes the peers of a socket that have not announced for too long.
fn drop_silent(
    directory: &Directory,
    tracker: &mut Tracker,
    now: Now,
    session: &mut SocketSession,
) {
    let age_s = u64::from(tracker.peer_age_s_max());
    let (route, source) = (session.route, session.source);
    session.drop_silent(now, age_s, |it| leave(directory, tracker, now, route, source, it));
}

/// Removes a peer from its swarm, unless it is on another socket by now.
fn leave(
    directory: &Directory,
    tracker: &mut Tracker,
    now: Now,
    route: SocketRoute,
    source: IpAddr,
    peer: &SocketPeer,
) {
    directory.leave(&peer.name, route, || {
        let announce = Announce {
            info_hash: peer.info_hash,
            source,
            address_override: None,
            contact: Contact::Web(peer.name),
            peer_id: peer.peer_id,
            left: u64::MAX,
            event: Event::Stopped,
            numwant: None,
        };
        tracker.leave(now, &announce);
    });
}

impl Outbox {
    fn respond(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::with_capacity(160);
        encode(&mut text);
        self.responses.push(text);
    }
}
