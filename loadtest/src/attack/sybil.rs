//! One address that pretends to be many peers: it announces to a swarm with tens of thousands of
//! ports. Then every honest peer of the swarm announces. Measures how often the address is in their
//! responses.

use std::net::IpAddr;

use skep::protocol::udp::client::Response;

use crate::interrupt;
use crate::numbers::{per, real};
use crate::plan::Plan;
use crate::slots::{Kind, Pending};
use crate::sources::peer_port;

use super::crowd::{Ask, Crowd, Pacing, Work};
use super::figures::{Figures, Measure};
use super::works::Filling;
use super::{Arena, AttackError};

/// Runs the attack.
///
/// # Errors
/// One sentence with the cause.
pub(crate) fn run(arena: &Arena<'_>) -> Result<Figures, AttackError> {
    let attack = arena.attack;
    let honest_count = u32::from(attack.honest);
    let plan = Plan { torrents: 1, peers: honest_count, ..arena.plan.clone() };
    let addresses = arena.addresses(0..honest_count + 1)?;
    let (honest_addresses, sybil_address) = addresses.split_at(honest_count as usize);
    let mut honest = Crowd::open(arena, honest_addresses, 4096)?;
    honest.connect()?;
    interrupt::check("connecting")?;
    let closed = |window| Pacing::Closed { window, most_s: 3600.0 };
    let mut filling = Filling::new(&plan, attack.honest);
    honest.run(&mut filling, closed(512));

    let mut sybil = Crowd::open(arena, sybil_address, 4096)?;
    sybil.connect()?;
    let mut pretending = Pretending { seed: plan.seed, left: attack.ports };
    let attacked = sybil.run(&mut pretending, closed(512));

    let mut asking = Asking::new(&plan, sybil_address[0], attack.honest);
    let served = honest.run(&mut asking, closed(64));
    if asking.responses == 0 && !interrupt::is_requested() {
        return Err(AttackError::NoneAnswered(arena.target));
    }
    let asked = (asking.responses > 0).then_some(&asking);
    Ok(Figures {
        measures: vec![
            Measure::new(
                "per_response_max",
                asked.map(|it| real(it.most)),
                "the most peers of the one address in any response",
            ),
            Measure::new(
                "per_response_mean",
                asked.map(|it| per(it.found, it.responses)),
                "their mean",
            ),
            Measure::new(
                "peers_per_response",
                asked.map(|it| per(it.peers, it.responses)),
                "of all addresses",
            ),
            Measure::new("swarm_honest", real(filling.answered), "honest peers announced"),
            Measure::new(
                "swarm_sybil",
                real(attacked.answered.of(Kind::Announce)),
                "ports of the one address announced with success",
            ),
        ],
        honest: Some(served),
        attack: Some(attacked),
        ..Figures::default()
    })
}

/// Announces one port after the other in the only torrent.
struct Pretending {
    seed: u64,
    left: u16,
}

impl Work for Pretending {
    fn next(&mut self, turn: u16) -> Option<Ask> {
        let port = self.left;
        self.left = self.left.checked_sub(1)?;
        Some(Ask {
            kind: Kind::Announce,
            torrent: (self.seed, 0),
            count: 1,
            port,
            ..Ask::connect(turn)
        })
    }
}

/// Every honest peer announces once more, and counts one address in its response.
struct Asking {
    seed: u64,
    numwant: u16,
    next: u16,
    peers_left: u16,
    wanted: [u8; 4],
    responses: u64,
    peers: u64,
    found: u64,
    most: u64,
}

impl Asking {
    fn new(plan: &Plan, wanted: IpAddr, honest: u16) -> Self {
        let wanted = match wanted {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let (seed, numwant) = (plan.seed, plan.numwant);
        let (responses, peers, found, most) = (0, 0, 0, 0);
        Self { seed, numwant, next: 0, peers_left: honest, wanted, responses, peers, found, most }
    }
}

impl Work for Asking {
    fn next(&mut self, _turn: u16) -> Option<Ask> {
        self.peers_left = self.peers_left.checked_sub(1)?;
        let source = self.next;
        self.next += 1;
        Some(Ask {
            kind: Kind::Announce,
            torrent: (self.seed, 0),
            count: self.numwant,
            port: peer_port(0, source.into()),
            ..Ask::connect(source)
        })
    }

    fn answered(&mut self, _asked: &Pending, response: &Response<'_>) {
        let Response::Announced(_, peers) = response else { return };
        let found = peers.chunks_exact(6).filter(|it| it.starts_with(&self.wanted)).count() as u64;
        self.responses += 1;
        self.peers += (peers.len() / 6) as u64;
        self.found += found;
        self.most = self.most.max(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;
    use skep::types::AnnounceResponse;

    #[test]
    fn addresses_in_responses_are_counted() {
        let plan = Profile::Smoke.plan();
        let mut asking = Asking::new(&plan, [127, 0, 0, 9].into(), 2);
        let pending = Pending {
            intended_ns: 0,
            sent_ns: 0,
            item: 0,
            client: 0,
            kind: Kind::Announce,
            count: 30,
            port: 1,
        };
        let head = AnnounceResponse { interval_s: 1, min_interval_s: 1, leechers: 1, seeders: 1 };
        let (sybil, other) = ([127, 0, 0, 9, 0, 1], [127, 0, 9, 9, 0, 1]);
        asking.answered(&pending, &Response::Announced(head, &[sybil, other, sybil].concat()));
        asking.answered(&pending, &Response::Announced(head, &other));
        assert_eq!((asking.responses, asking.peers, asking.found, asking.most), (2, 4, 2, 2));
        assert_eq!(std::iter::from_fn(|| asking.next(0)).count(), 2);
    }
}
