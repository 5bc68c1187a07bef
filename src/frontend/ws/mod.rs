//! The WebTorrent front end: a text message of a WebSocket in, messages for it and for others out.
//! Sans-I/O; frames, queues and threads are the stream worker's.
//!
//! ```text
//! announce ─▶ tracker ─▶ response, and a few WebRTC peers ─▶ directory ─▶ one offer to each
//! offer    ─▶ the receiver's session remembers it ─▶ its client
//! answer   ─▶ the session finds that offer ─▶ directory ─▶ the socket of the peer that made it
//! ```
//!
//! No peer is found by a peer id that a client names: offers go to peers that the store chose from
//! their swarm, answers to where a remembered offer came from. So nothing gets into another swarm.

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

/// The longest message taken from a client, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most offers of one announce that are handed on, whatever the options say.
pub const OFFERS_LIMIT: usize = 64;

const WEB_PEER_BYTES: usize = size_of::<WebPeer>();

/// What the operator may set; swapped whole on reload.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds until the next announce.
    pub interval_s: u32,
    /// Most offers taken from one announce.
    pub offers_max: u32,
    /// Most offers handed to one socket in a minute, for each of its torrents; 0: any number. For
    /// offers from networks under no limit there is no such limit either.
    pub offers_per_minute_max: u32,
    /// Most swarms that one socket may be in.
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
    /// The peer that it is for: it may have left while the message was on its way.
    to: WebPeer,
    /// Of an offer: what its receiver remembers.
    offer: Option<PendingOffer>,
    /// The message for the client.
    text: Vec<u8>,
}

/// An offer on its way.
#[derive(Clone, Copy, Debug)]
struct PendingOffer {
    /// How its answer will name it.
    key: OfferKey,
    /// The peer that made it.
    offerer: WebPeer,
    /// Where it comes from.
    networks: OfferNetworks,
    /// Whether that is under no limit.
    is_exempt: bool,
}

impl PeerMessage {
    /// The length of the message for the client, in bytes.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// What a message led to.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Text messages for the socket itself, in order.
    pub responses: Vec<Vec<u8>>,
    /// Messages for other sockets, and maybe for this one under another of its peer ids.
    pub messages: Vec<(SocketRoute, PeerMessage)>,
    /// How many offers and answers did not become messages, and why.
    pub lost: Vec<(DeliveryFailure, usize)>,
}

/// One worker's WebTorrent front end.
pub struct WsFrontend {
    directory: Arc<Directory>,
    options: arc_swap::Cache<Arc<ArcSwap<Options>>, Arc<Options>>,
    lots: NetworkLots,
}

impl WsFrontend {
    /// A front end; what `options` holds may be replaced at any time.
    pub fn new(directory: Arc<Directory>, options: Arc<ArcSwap<Options>>) -> Self {
        let lots = NetworkLots::new(directory.key_by_lot());
        Self { directory, options: arc_swap::Cache::new(options), lots }
    }

    /// A new socket at `route`, of a client at `source`.
    pub fn open(&mut self, route: SocketRoute, source: IpAddr) -> SocketSession {
        SocketSession::new(route, source)
    }

    /// The same, of a client that showed a passkey in the path of its upgrade.
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
    /// There is one response to every message but an answer, which gets none: also not where it
    /// answers nothing that was offered, for clients race with each other and with time. That is
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

    /// Takes a message from another socket; appends what its client gets to `outbox`.
    ///
    /// # Errors
    /// Why it gets nothing: the peer may have left, or have been offered enough.
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

    /// What a socket needs now and then, whatever its client sends: peers that the tracker forgets,
    /// because they have not announced for too long, leave. A client that has lost count of its
    /// torrents would else hold their places until its socket closes. So do peers that may not be
    /// served any more: offers would go on reaching them until they announce.
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

    /// The socket has closed: its peers leave.
    pub fn close(&mut self, tracker: &mut Tracker, now: Now, session: SocketSession) {
        for peer in session.peers() {
            let passkey = session.passkey.as_deref().map(Passkey::as_bytes);
            tracker.release(passkey, &peer.info_hash, &peer.peer_id);
            leave(&self.directory, tracker, now, session.route, session.source, peer);
        }
    }
}

/// What handling one message needs.
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
        if announced.is_stored {
            self.session.join(SocketPeer { name, info_hash, peer_id, latest: self.now });
            let chosen = &room[..announced.bytes.iter().sum()];
            self.hand_offers(request, name, chosen);
        } else {
            // Nor is it anywhere else: memory is short here as well.
            self.session.leave(&name);
            self.directory.leave(&name, self.session.route, || {});
        }
        Outcome::Answered(Action::Announce)
    }

    /// Whether the socket may be in the swarm of one more peer, or is in that already.
    fn has_room_for(&mut self, name: &WebPeer) -> bool {
        let torrents_max = self.options.torrents_max as usize;
        let is_full = |session: &SocketSession| session.torrents() >= torrents_max;
        if self.session.speaks_for(name) || !is_full(self.session) {
            return true;
        }
        drop_silent(self.directory, self.tracker, self.now, self.session);
        !is_full(self.session)
    }

    /// Hands an announce to the tracker.
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

    /// Hands one offer to each peer that was chosen. A peer whose socket has just gone is passed
    /// over: its offer will not be answered, as clients expect of most.
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

    /// A peer leaves at its own request, which counts also where its socket is another one, and
    /// whatever the response: the tracker applies every stop.
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

    /// A peer that may not be served any more leaves its swarm; not one that only asks too often.
    fn remove_denied_peer(&mut self, name: &WebPeer, error: AdmitError) {
        if matches!(error.refusal(), Refusal::Limited | Refusal::PasskeyLimit) {
            return;
        }
        let SocketSession { route, source, .. } = *self.session;
        if let Some(peer) = self.session.leave(name) {
            leave(self.directory, self.tracker, self.now, route, source, &peer);
        }
    }

    /// Hands an answer to who made the offer.
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
        // Where the offerer is now, which may be a newer socket; nowhere, if it left.
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

    /// Responds to an announce. A client whose offers cannot be used gets one warning, with what is
    /// wrong with the first: the announce counts, and a failure would end it for most clients.
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

    /// The directory comes before the swarm: see there.
    fn before_apply(&mut self) {
        if let Contact::Web(name) = self.announce.contact
            && self.announce.event != Event::Stopped
        {
            self.directory.enter(name, self.session.route);
        }
    }
}

/// Lets a socket's peers leave that the tracker forgets.
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

/// A peer leaves, unless it is on another socket by now.
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
