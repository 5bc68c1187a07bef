//! The WebTorrent front end: a text message of a WebSocket in, messages for it and for others out.
//! Sans-I/O; frames, queues and threads are the stream worker's.
//!
//! ```text
//! announce ─▶ tracker ─▶ reply, and a few WebRTC peers ─▶ directory ─▶ one offer each, as mail
//! mail     ─▶ the receiver's session remembers the offer ─▶ its client
//! answer   ─▶ the session finds that offer ─▶ directory ─▶ mail to whoever made it
//! ```
//!
//! Nobody is found by a peer id that a client names: offers go to peers that the store chose from
//! their swarm, answers to where a remembered offer came from. So nothing gets into another swarm.

mod directory;
mod handed;
mod session;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use directory::{Directory, Route};
pub use handed::OFFER_AGE_S_MAX;
pub use session::Session;

use crate::frontend::http::Outcome;
use crate::metrics::MailLost;
use crate::protocol::passkey::Passkey;
use crate::protocol::webtorrent::{
    self, AnnounceRequest, AnswerRequest, Method, Request, Unusable,
};
use crate::time::Now;
use crate::tracker::{Admission, Announced, PeerBuffers, Shown, Tracker, Work};
use crate::types::{
    Action, Announce, AnnounceReply, Contact, Event, InfoHash, Refusal, Rejected, WebPeer,
};
use directory::{Networks, OfferKey};
use handed::{Lots, Quota};
use session::Peer;

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

/// What one socket sends to another.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The peer that it is for: it may have left while the mail was on its way.
    to: WebPeer,
    /// Of an offer: what its receiver remembers.
    offer: Option<Offer>,
    /// The message for the client.
    text: Vec<u8>,
}

/// An offer on its way.
#[derive(Clone, Copy, Debug)]
struct Offer {
    /// How its answer will name it.
    key: OfferKey,
    /// The peer that made it.
    offerer: WebPeer,
    /// Where it comes from.
    networks: Networks,
    /// Whether that is under no limit.
    is_exempt: bool,
}

impl Mail {
    /// The length of the message for the client, in bytes.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// What a message led to.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Text messages for the socket itself, in order.
    pub replies: Vec<Vec<u8>>,
    /// What goes to other sockets, and maybe to this one under another of its peer ids.
    pub mail: Vec<(Route, Mail)>,
    /// How many offers and answers did not become mail, and why.
    pub lost: Vec<(MailLost, usize)>,
}

/// One worker's WebTorrent front end.
pub struct WsFrontend {
    directory: Arc<Directory>,
    options: arc_swap::Cache<Arc<ArcSwap<Options>>, Arc<Options>>,
    lots: Lots,
}

impl WsFrontend {
    /// A front end; what `options` holds may be replaced at any time.
    pub fn new(directory: Arc<Directory>, options: Arc<ArcSwap<Options>>) -> Self {
        let lots = Lots::new(directory.key_of_lots());
        Self { directory, options: arc_swap::Cache::new(options), lots }
    }

    /// A new socket at `route`, of a client at `source`.
    pub fn open(&mut self, route: Route, source: IpAddr) -> Session {
        Session::new(route, source)
    }

    /// The same, of a client that showed a passkey in the path of its upgrade.
    pub fn open_with(
        &mut self,
        route: Route,
        source: IpAddr,
        passkey: Option<Box<Passkey>>,
    ) -> Session {
        let mut session = Session::new(route, source);
        session.passkey = passkey;
        session
    }

    /// Handles one message of at most [`MESSAGE_BYTES_MAX`] bytes; appends to `outbox`.
    ///
    /// There is one reply to every message but an answer, which gets none: also not where it
    /// answers nothing that was offered, for clients race with each other and with time. That is
    /// counted as [`Rejected::BadMessage`].
    pub fn handle(
        &mut self,
        tracker: &mut Tracker,
        now: Now,
        session: &mut Session,
        message: &[u8],
        outbox: &mut Outbox,
    ) -> Outcome {
        let (directory, options) = (&*self.directory, &**self.options.load());
        Turn { directory, options, tracker, now, session, outbox }.answer(message)
    }

    /// Takes mail from another socket; appends what the client is to be told to `outbox`.
    ///
    /// # Errors
    /// Why it is told nothing: the peer may have left, or have been offered enough.
    pub fn receive(
        &mut self,
        now: Now,
        session: &mut Session,
        mail: Mail,
        outbox: &mut Outbox,
    ) -> Result<(), MailLost> {
        let quota = Quota { per_minute_max: self.options.load().offers_per_minute_max };
        let Mail { to, offer, text } = mail;
        if !session.speaks_for(&to) {
            return Err(MailLost::ReceiverGone);
        }
        if let Some(offer) = offer
            && !session.offers.take(now, &offer, &to, quota, &mut self.lots)
        {
            return Err(MailLost::OverQuota);
        }
        outbox.replies.push(text);
        Ok(())
    }

    /// What a socket needs now and then, whatever its client says: peers that the tracker forgets,
    /// because they have not announced for too long, leave. A client that has lost count of its
    /// torrents would else hold their places until its socket closes. So do peers that may not be
    /// served any more: offers would go on reaching them until they announce.
    pub fn tend(&mut self, tracker: &mut Tracker, now: Now, session: &mut Session) {
        drop_silent(&self.directory, tracker, now, session);
        let Session { source, route, .. } = *session;
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
    pub fn close(&mut self, tracker: &mut Tracker, now: Now, session: Session) {
        for peer in session.peers() {
            let passkey = session.passkey.as_deref().map(Passkey::as_bytes);
            tracker.release(passkey, &peer.info_hash, &peer.peer_id);
            leave(&self.directory, tracker, now, session.route, session.source, peer);
        }
    }
}

/// What a message is answered with.
struct Turn<'a> {
    directory: &'a Directory,
    options: &'a Options,
    tracker: &'a mut Tracker,
    now: Now,
    session: &'a mut Session,
    outbox: &'a mut Outbox,
}

impl Turn<'_> {
    fn answer(&mut self, message: &[u8]) -> Outcome {
        let offers_max = (self.options.offers_max as usize).min(OFFERS_LIMIT);
        let request = webtorrent::decode(message, offers_max);
        if let Ok(request) = &request
            && let Some(outcome) = self.refuse_if_over_limit(request)
        {
            return outcome;
        }
        match request {
            Ok(Request::Announce(it)) if it.event == Event::Stopped => self.stop(&it),
            Ok(Request::Announce(it)) => self.announce(&it),
            Ok(Request::Answer(it)) => self.relay(&it),
            Ok(Request::Scrape(hashes)) => self.scrape(&hashes),
            Err(invalid) => {
                self.outbox.reply(|out| webtorrent::encode_invalid(&invalid, out));
                Outcome::Rejected(Rejected::BadMessage)
            }
        }
    }

    /// Lets the source pay for what it asks. Answers are free: offers bound them.
    fn refuse_if_over_limit(&mut self, request: &Request<'_>) -> Option<Outcome> {
        let (work, method, info_hash) = match request {
            Request::Announce(it) => {
                (Work::Announce(it.event), Method::Announce, Some(it.info_hash))
            }
            Request::Scrape(hashes) => (Work::Scrape(hashes.len()), Method::Scrape, None),
            Request::Answer(_) => return None,
        };
        match self.tracker.admit(self.now, self.session.source, work) {
            Ok(Admission::Served) => return None,
            Ok(Admission::Muted) => {
                if let Request::Announce(it) = request {
                    let _ = self.leave_swarm(it); // the answer is the same, whatever comes of it
                }
            }
            _ => {}
        }
        let (method, reason) = (Some(method), Refusal::Limited.text());
        let info_hash = info_hash.as_ref();
        self.outbox.reply(|out| webtorrent::encode_failure(method, info_hash, reason, out));
        Some(Outcome::Refused(Refusal::Limited))
    }

    fn announce(&mut self, request: &AnnounceRequest<'_>) -> Outcome {
        let (announce, name) = self.announce_of(request);
        let is_new = !self.session.speaks_for(&name);
        let torrents_max = self.options.torrents_max as usize;
        if is_new && self.session.torrents() >= torrents_max {
            drop_silent(self.directory, self.tracker, self.now, self.session);
        }
        if is_new && self.session.torrents() >= torrents_max {
            return self.refuse(&request.info_hash, Refusal::TooManyTorrents);
        }
        if let Err(refusal) = self.enter(&announce, request) {
            self.part(&name, refusal);
            return self.refuse_for(&announce, refusal);
        }
        let mut room = [0; OFFERS_LIMIT * WEB_PEER_BYTES];
        let offers = request.offers.len().min(OFFERS_LIMIT);
        let web = &mut room[..offers * WEB_PEER_BYTES];
        self.directory.enter(name, self.session.route); // before the peer joins: see there
        let room_for_offers = PeerBuffers { web, ..PeerBuffers::default() };
        let told = self.tracker.announce(self.now, &announce, room_for_offers);
        let Announce { info_hash, peer_id, .. } = announce;
        self.announced(&info_hash, &told, request.unusable);
        if told.is_stored {
            self.session.join(Peer { name, info_hash, peer_id, latest: self.now });
            let chosen = &room[..told.bytes.iter().sum()];
            self.hand_offers(request, name, chosen);
        } else {
            // Nor is it anywhere else: memory is short here as well.
            self.session.leave(&name);
            self.directory.leave(&name, self.session.route, || {});
        }
        Outcome::Answered(Action::Announce)
    }

    /// Whether the announce is allowed. A torrent's second hash leads to no other swarm here: the
    /// messages between its peers name the hash they know.
    fn enter(&mut self, announce: &Announce, request: &AnnounceRequest<'_>) -> Result<(), Refusal> {
        let passkey = self.session.passkey.as_deref().map(Passkey::as_bytes);
        let (uploaded, downloaded) = (request.uploaded, request.downloaded);
        let shown = || Shown { passkey, uploaded, downloaded };
        self.tracker.enter(self.now, announce, shown).map(drop)
    }

    /// Zeros stand for torrents that may not be scraped, unless none of them may.
    fn scrape(&mut self, hashes: &[InfoHash]) -> Outcome {
        let Session { source, passkey, .. } = &*self.session;
        let passkey = passkey.as_deref().map(Passkey::as_bytes);
        let (mut refusal, mut served) = (None, hashes.is_empty());
        let mut entries = Vec::with_capacity(hashes.len());
        for info_hash in hashes {
            let counts = self.tracker.scrape_for(self.now, *source, info_hash, passkey);
            served |= counts.is_ok();
            entries.push((*info_hash, counts.unwrap_or_default()));
            refusal = counts.err().or(refusal);
        }
        if let Some(refusal) = refusal.filter(|_| !served) {
            let (method, reason) = (Some(Method::Scrape), refusal.text());
            self.outbox.reply(|out| webtorrent::encode_failure(method, None, reason, out));
            return Outcome::Refused(refusal);
        }
        self.outbox.reply(|out| webtorrent::encode_scraped(entries.into_iter(), out));
        Outcome::Answered(Action::Scrape)
    }

    /// Refuses with what the operator says about it, if anything.
    fn refuse_for(&mut self, announce: &Announce, refusal: Refusal) -> Outcome {
        let reason = self.tracker.reason(refusal, announce).unwrap_or_else(|| refusal.text());
        let (method, hash) = (Some(Method::Announce), Some(&announce.info_hash));
        self.outbox.reply(|out| webtorrent::encode_failure(method, hash, reason, out));
        Outcome::Refused(refusal)
    }

    /// Hands one offer to each peer that was chosen. A peer whose socket has just gone is passed
    /// over: its offer will not be answered, as clients expect of most.
    fn hand_offers(&mut self, request: &AnnounceRequest<'_>, offerer: WebPeer, chosen: &[u8]) {
        let (chosen, []) = chosen.as_chunks::<WEB_PEER_BYTES>() else {
            unreachable!("only WebRTC peers were asked for");
        };
        let AnnounceRequest { info_hash, peer_id, offers, .. } = request;
        if chosen.is_empty() {
            return;
        }
        let networks = self.directory.networks(self.session.source);
        let is_exempt = self.tracker.is_exempt(self.session.source);
        for (offer, to) in offers.iter().zip(chosen.iter().map(|it| WebPeer(*it))) {
            let Some(route) = self.directory.route(&to) else {
                self.outbox.lost.push((MailLost::ReceiverGone, 1));
                continue;
            };
            let mut text = Vec::with_capacity(offer.text.len() + 256);
            webtorrent::encode_offer(info_hash, peer_id, offer, &mut text);
            let key = self.directory.offer_key(info_hash, &offer.id, peer_id);
            let offer = Some(Offer { key, offerer, networks, is_exempt });
            self.outbox.mail.push((route, Mail { to, offer, text }));
        }
    }

    /// A peer leaves on its own word, which counts also where its socket is another one.
    fn stop(&mut self, request: &AnnounceRequest<'_>) -> Outcome {
        match self.leave_swarm(request) {
            Ok(told) => {
                self.announced(&request.info_hash, &told, None);
                Outcome::Answered(Action::Announce)
            }
            Err((announce, refusal)) => self.refuse_for(&announce, refusal),
        }
    }

    /// Applies a stop.
    fn leave_swarm(
        &mut self,
        request: &AnnounceRequest<'_>,
    ) -> Result<Announced, (Announce, Refusal)> {
        let (announce, name) = self.announce_of(request);
        if let Err(refusal) = self.enter(&announce, request) {
            self.part(&name, refusal);
            return Err((announce, refusal));
        }
        let told = self.tracker.announce(self.now, &announce, PeerBuffers::default());
        self.session.leave(&name);
        self.directory.leave(&name, self.session.route, || {});
        Ok(told)
    }

    /// A peer that may not be served any more leaves its swarm; not one that only asks too often.
    fn part(&mut self, name: &WebPeer, refusal: Refusal) {
        if refusal == Refusal::PasskeyLimit {
            return;
        }
        let Session { route, source, .. } = *self.session;
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
            self.outbox.mail.push((route, Mail { to, offer: None, text }));
        } else {
            self.outbox.lost.push((MailLost::ReceiverGone, 1));
        }
        Outcome::Answered(Action::Answer)
    }

    fn announce_of(&self, request: &AnnounceRequest<'_>) -> (Announce, WebPeer) {
        let AnnounceRequest { info_hash, peer_id, .. } = *request;
        let name = self.directory.web_peer(&info_hash, &peer_id, self.session.source);
        let announce = Announce {
            info_hash,
            source: self.session.source,
            elsewhere: None,
            contact: Contact::Web(name),
            peer_id,
            left: request.left,
            event: request.event,
            numwant: request.numwant,
        };
        (announce, name)
    }

    /// Replies to an announce. Of offers that nobody can use its client is told once, with what is
    /// wrong with the first: the announce counts, and a failure would end it for most clients.
    fn announced(&mut self, info_hash: &InfoHash, told: &Announced, unusable: Option<Unusable>) {
        let AnnounceReply { seeders, leechers, .. } = told.reply;
        let times = if told.is_stored { 1 } else { 2 };
        let interval_s = self.tracker.stretched(self.options.interval_s).saturating_mul(times);
        let warning = unusable.filter(|_| !self.session.is_warned).map(|it| it.fault);
        if let Some(Unusable { count, .. }) = unusable {
            self.session.is_warned = true;
            self.outbox.lost.push((MailLost::Unusable, count));
        }
        let counts = (seeders, leechers);
        self.outbox.reply(|out| {
            webtorrent::encode_announced(info_hash, interval_s, counts, warning, out);
        });
    }

    fn refuse(&mut self, info_hash: &InfoHash, refusal: Refusal) -> Outcome {
        let (method, reason) = (Some(Method::Announce), refusal.text());
        let hash = Some(info_hash);
        self.outbox.reply(|out| webtorrent::encode_failure(method, hash, reason, out));
        Outcome::Refused(refusal)
    }
}

/// Lets a socket's peers leave that the tracker forgets.
fn drop_silent(directory: &Directory, tracker: &mut Tracker, now: Now, session: &mut Session) {
    let age_s = u64::from(tracker.peer_age_s_max());
    let (route, source) = (session.route, session.source);
    session.drop_silent(now, age_s, |it| leave(directory, tracker, now, route, source, it));
}

/// A peer leaves, unless it is on another socket by now.
fn leave(
    directory: &Directory,
    tracker: &mut Tracker,
    now: Now,
    route: Route,
    source: IpAddr,
    peer: &Peer,
) {
    directory.leave(&peer.name, route, || {
        let announce = Announce {
            info_hash: peer.info_hash,
            source,
            elsewhere: None,
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
    fn reply(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::with_capacity(160);
        encode(&mut text);
        self.replies.push(text);
    }
}
