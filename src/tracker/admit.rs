//! Who is served at all: the limits of a source, what a worker sheds that cannot keep up, and what
//! the operator's lists, registrations and passkeys allow.
//!
//! ```text
//! connect           shedding ─▶ replies to unverified sources ─▶ one in four all the same
//! announce, scrape  (verified) shedding ─▶ work of a source ─▶ one announce in 16 is calmed
//!                                                           ─▶ access: lists, registry, passkey
//! stop              (verified) free and always applied, but not answered over UDP, and told to
//!                              stay away otherwise, where the source has stopped thousands of
//!                              peers that were not there
//! ```
//!
//! Who begins or completes a download is never calmed: a client takes that for an answer, and would
//! be in no swarm, or not counted as a seeder, until the long interval is over. Silence it takes
//! for a loss, and tries again soon.
//!
//! Nothing that a forged datagram brings is charged to a source: unverified requests touch a table
//! of their own, which limits replies and nothing else.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::{PeerBuffers, Shedding, Tracker};
use crate::access::{self, Shown};
use crate::limiter::{Gate, Price, Verdict};
use crate::time::Now;
use crate::types::{
    Announce, AnnounceReply, Dropped, Event, InfoHash, PeerId, Refusal, ScrapeEntry,
};

/// Work that a verified source asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// An announce with this event.
    Announce(Event),
    /// A scrape of so many torrents.
    Scrape(usize),
}

/// Work over TCP that is not an announce or scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionWork {
    /// A TLS handshake.
    Handshake,
    /// A request that is no announce or scrape, or not a right one; an upgrade; a message that
    /// cannot be read.
    Request,
}

/// How a request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// As it asks.
    Served,
    /// An announce over the limit: told [`Tracker::calm`], and nothing else is done for it.
    Calmed,
    /// A stop over the limit: the peer leaves, but its source is not told what it asked for.
    Muted,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// Its source, or the network around it, asks for too much.
    Limited,
    /// The worker cannot keep up.
    Shed,
}

impl Tracker {
    /// This tracker, with sources limited by `gate`. Without one, nobody is.
    #[must_use]
    pub fn behind(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// This tracker, for those alone whom `access` lets in. Without it, that is everybody.
    #[must_use]
    pub fn admitting(self, access: access::Gate) -> Self {
        Self { access: Some(access), ..self }
    }

    /// Whether an announce is allowed, and which swarm it is for: not always that of the hash it
    /// names, for a torrent may have two. `shown` is asked only where something can be refused.
    ///
    /// # Errors
    /// Why it is refused.
    #[inline]
    pub fn enter<'a>(
        &mut self,
        now: Now,
        announce: &Announce,
        shown: impl FnOnce() -> Shown<'a>,
    ) -> Result<InfoHash, Refusal> {
        let Some(access) = &mut self.access else { return Ok(announce.info_hash) };
        let entered = access.announce(now, announce, shown);
        if entered.is_err() && announce.event == Event::Stopped {
            // Who may not be served may leave: nobody else should be sent there.
            let info_hash = access.swarm_of(&announce.info_hash);
            let leaving = Announce { info_hash, ..*announce };
            self.announce(now, &leaving, PeerBuffers::default());
        }
        entered
    }

    /// One torrent's counts for whoever may know them; zeros if it is unknown.
    ///
    /// # Errors
    /// Why it is refused.
    #[inline]
    pub fn scrape_for(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hash: &InfoHash,
        passkey: Option<&[u8]>,
    ) -> Result<ScrapeEntry, Refusal> {
        let swarm = match &mut self.access {
            None => *info_hash,
            Some(access) => access.scrape(now, source, info_hash, passkey)?,
        };
        Ok(self.scrape(&swarm))
    }

    /// Whether a peer that is in a swarm may still be there: its network, torrent and passkey may
    /// have been denied since.
    pub fn may_stay(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hash: &InfoHash,
        passkey: Option<&[u8]>,
    ) -> bool {
        let access = self.access.as_mut();
        access.is_none_or(|it| it.scrape(now, source, info_hash, passkey).is_ok())
    }

    /// Whether everybody may be told of all torrents.
    ///
    /// # Errors
    /// Why this one may not.
    pub fn enter_list(&mut self, source: IpAddr, passkey: Option<&[u8]>) -> Result<(), Refusal> {
        self.access.as_mut().map_or(Ok(()), |it| it.list(source, passkey))
    }

    /// Frees what a passkey held for a peer whose connection is gone.
    pub fn release(&self, passkey: Option<&[u8]>, info_hash: &InfoHash, peer_id: &PeerId) {
        if let Some(access) = &self.access {
            access.release(passkey, info_hash, peer_id);
        }
    }

    /// What the operator says about a refusal of this announce, where the client can be told.
    pub fn reason(&mut self, refusal: Refusal, announce: &Announce) -> Option<&str> {
        self.access.as_mut()?.reason(refusal, announce)
    }

    /// Takes into account how full the worker's receive queue is, in thousandths.
    pub fn set_queue(&mut self, queue_permille: u32) {
        self.shedding = self.shedding.next(queue_permille);
    }

    /// Whether a connect is to be answered, from wherever it really came.
    ///
    /// # Errors
    /// What it is dropped as.
    #[inline]
    pub fn admit_connect(&mut self, now: Now, source: SocketAddr) -> Result<(), Dropped> {
        // Clients try again, and who got through once needs no other for minutes.
        let (turns, mut is_turn) = (&mut self.turns, None);
        let mut is_turn = || *is_turn.get_or_insert_with(|| turns.comes(source));
        if self.shedding >= Shedding::Connects && !is_turn() {
            return Err(Dropped::ShedConnect);
        }
        let gate = self.gate.as_mut();
        let admitted = gate.is_none_or(|it| it.admit_reply(now, source.ip(), is_turn));
        if admitted { Ok(()) } else { Err(Dropped::LimitedConnect) }
    }

    /// Whether, and how, work for a source that has proved its address is to be done. Where it is,
    /// it has been paid for. A stop always is: a peer that stays without being there harms others.
    ///
    /// # Errors
    /// Why it is not to be done.
    #[inline]
    pub fn admit(&mut self, now: Now, source: IpAddr, work: Work) -> Result<Admission, Withheld> {
        self.was_asked = true;
        let price = match work {
            Work::Scrape(_) if self.shedding >= Shedding::Scrapes => return Err(Withheld::Shed),
            Work::Scrape(torrents) => Price::scrape(torrents),
            Work::Announce(_) => Price::ANNOUNCE,
        };
        let Some(gate) = &mut self.gate else { return Ok(Admission::Served) };
        let is_admitted = match work {
            Work::Announce(Event::None | Event::Paused) => match gate.admit(now, source, price) {
                Verdict::Pass => true,
                Verdict::Calm => return Ok(Admission::Calmed),
                Verdict::Drop => false,
            },
            Work::Announce(Event::Stopped) if !gate.admit_stop(now, source) => {
                return Ok(Admission::Muted);
            }
            Work::Announce(Event::Stopped) => true,
            Work::Announce(_) | Work::Scrape(_) => gate.admit_strictly(now, source, price),
        };
        if is_admitted { Ok(Admission::Served) } else { Err(Withheld::Limited) }
    }

    /// Seconds after which a request that was over a limit may be tried again. Those that were
    /// refused together do not come back together.
    #[cold]
    pub fn retry_s(&mut self) -> u32 {
        self.random.u32(RETRY_S)
    }

    /// Whether a source is in a network under no limit, as of the latest request.
    pub fn is_exempt(&self, source: IpAddr) -> bool {
        self.gate.as_ref().is_some_and(|it| it.is_in_exempt_network(source))
    }

    /// Whether [`Tracker::admit`] was called since this was called last: if not, what was done
    /// meanwhile has not been charged.
    pub fn take_asked(&mut self) -> bool {
        std::mem::take(&mut self.was_asked)
    }

    /// Whether work of a source's connection is to be done. Where it is, it has been charged.
    pub fn admit_connection_work(
        &mut self,
        now: Now,
        source: IpAddr,
        work: ConnectionWork,
    ) -> bool {
        let price = match work {
            ConnectionWork::Handshake => Price::HANDSHAKE,
            ConnectionWork::Request => Price::ANNOUNCE,
        };
        self.gate.as_mut().is_none_or(|it| it.admit_connection_work(now, source, price))
    }

    /// What an announce over the limit is told: to come back as late as anybody is told to. It is
    /// not looked up: the counts are zeros.
    #[cold]
    pub fn calm(&mut self) -> AnnounceReply {
        let options = self.options.load();
        let interval_s = options.interval_s.max(options.interval_s_max);
        AnnounceReply { interval_s, min_interval_s: interval_s, leechers: 0, seeders: 0 }
    }
}

/// Seconds after which what was over a limit may be tried again. In a minute, the load of a source
/// has fallen by some thousand announces, and a passkey's minute is over.
const RETRY_S: RangeInclusive<u32> = 30..=90;

impl From<Withheld> for Dropped {
    fn from(withheld: Withheld) -> Self {
        match withheld {
            Withheld::Limited => Self::Limited,
            Withheld::Shed => Self::ShedScrape,
        }
    }
}
