//! The next request of one socket's peers, independent of the protocol.

use std::ops::Range;

use skep::types::Event;

use crate::phase::Task;
use crate::plan::Plan;
use crate::population::Peer;
use crate::slots::Kind;

/// A request before it is encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Kind of the request.
    pub(crate) kind: Kind,
    /// The announcing peer, by its index among the socket's; or the first torrent of a scrape.
    pub(crate) item: u32,
    /// Number of peers wanted, or of info-hashes.
    pub(crate) count: u16,
    /// The port announced.
    pub(crate) port: u16,
    /// The event of the peer.
    pub(crate) event: Event,
    /// The announcing peer, as it is at that moment.
    pub(crate) peer: Option<Peer>,
}

impl Request {
    /// A request for a connection id.
    pub(crate) const CONNECT: Self =
        Self { kind: Kind::Connect, item: 0, count: 0, port: 0, event: Event::None, peer: None };

    /// A scrape of consecutive torrents.
    fn scrape(first: u32, count: usize) -> Self {
        let count = u16::try_from(count).unwrap_or(1);
        Self { kind: Kind::Scrape, item: first, count, ..Self::CONNECT }
    }

    /// An announce. A peer that stops wants no peers.
    fn announce(index: u32, peer: Peer, event: Event, plan: &Plan) -> Self {
        let count = if event == Event::Stopped { 0 } else { plan.numwant };
        let port = peer.port();
        Self { kind: Kind::Announce, item: index, count, port, event, peer: Some(peer) }
    }
}

/// The peers that announce through one socket.
pub(crate) struct Members {
    /// All of them.
    pub(crate) peers: Vec<Peer>,
    /// Index of the next peer to fill.
    cursor: usize,
    /// Peers whose announce was lost while filling.
    retry: Vec<u32>,
}

impl Members {
    /// Peers that have not announced yet.
    pub(crate) fn new(peers: Vec<Peer>) -> Self {
        Self { peers, cursor: 0, retry: Vec::new() }
    }

    /// Starts a phase.
    pub(crate) fn restart(&mut self) {
        self.cursor = 0;
        self.retry.clear();
    }

    /// Whether a filling phase has sent announces for all of them.
    pub(crate) fn are_filled(&self) -> bool {
        self.cursor == self.peers.len() && self.retry.is_empty()
    }

    /// Peers that were announced to the tracker and have not left.
    pub(crate) fn resident(&self) -> u64 {
        self.peers.iter().filter(|it| it.is_present()).count() as u64
    }

    /// Records that the announce of a peer was answered while filling.
    pub(crate) fn filled(&mut self, item: u32) {
        if let Some(peer) = self.peers.get_mut(item as usize) {
            peer.live(Event::Started);
        }
    }

    /// Records that the tracker has no entries of them any more.
    pub(crate) fn forget(&mut self) {
        self.peers.iter_mut().for_each(Peer::forget);
    }

    /// Records that the announce of a peer was lost.
    pub(crate) fn lost(&mut self, item: u32) {
        if self.peers.get(item as usize).is_some_and(|it| !it.is_present()) {
            self.retry.push(item);
        }
    }

    /// The next request of a task; `None` if there is none to send now.
    pub(crate) fn next(
        &mut self,
        task: Task,
        plan: &Plan,
        random: &mut fastrand::Rng,
        verify: &mut Range<u32>,
    ) -> Option<Request> {
        match task {
            Task::Connect | Task::Rest { .. } => None,
            Task::Fill => self.next_to_fill(plan),
            Task::Verify => {
                let count = verify.len().min(plan.scrape_hashes.into());
                let first = verify.next()?;
                verify.start = first + u32::try_from(count).unwrap_or(1);
                Some(Request::scrape(first, count))
            }
            Task::Load { .. } => Some(self.draw(plan, random)),
        }
    }

    fn next_to_fill(&mut self, plan: &Plan) -> Option<Request> {
        let index = self.retry.pop().map_or_else(
            || {
                let left = self.peers.get(self.cursor..)?;
                let skipped = left.iter().position(|it| !it.is_present());
                self.cursor += skipped.unwrap_or(left.len());
                skipped?;
                self.cursor += 1;
                u32::try_from(self.cursor - 1).ok()
            },
            Some,
        )?;
        let peer = self.peers[index as usize];
        Some(Request::announce(index, peer, Event::Started, plan))
    }

    /// A request of the plan's mix. The peer is updated as if its announce had arrived.
    fn draw(&mut self, plan: &Plan, random: &mut fastrand::Rng) -> Request {
        let mix = plan.mix;
        let drawn = random.u32(0..mix.connect + mix.announce + mix.scrape);
        if drawn < mix.connect || self.peers.is_empty() {
            return Request::CONNECT;
        }
        let index = random.usize(0..self.peers.len());
        let peer = &mut self.peers[index];
        if drawn >= mix.connect + mix.announce {
            let count = u32::from(plan.scrape_hashes).min(plan.torrents);
            let first = peer.torrent.min(plan.torrents - count);
            return Request::scrape(first, count as usize);
        }
        let event = peer.next_event(plan.churn, random.f64());
        let before = *peer;
        peer.live(event);
        // It announces with what it has left now, but with its previous port: a stop replaces the
        // peer.
        let announced = if event == Event::Stopped { before } else { *peer };
        Request::announce(u32::try_from(index).unwrap_or(0), announced, event, plan)
    }
}
