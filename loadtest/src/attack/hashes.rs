//! Random info-hashes: after a population has announced, many sources announce torrents that no
//! client will request again, to fill the tracker's memory. Measures what is left of the
//! population, and how much memory was used.

use crate::interrupt;
use crate::numbers::{mix, per, real};
use crate::process::Usage;
use crate::report::Latency;
use crate::slots::Kind;
use crate::sources::peer_port;

use super::crowd::{Ask, Crowd, Pacing, Work};
use super::figures::{Figures, Measure};
use super::traffic::Traffic;
use super::works::{Counting, Filling};
use super::{Arena, AttackError};

/// Most unanswered requests: well below what overflows a socket's queue.
const WINDOW: usize = 4096;

/// A day: such runs end when all requests are sent.
const LONGEST_S: f64 = 86_400.0;

/// What was measured, in the order of the phases; `None`: a signal came before their end.
struct Measured {
    calm: Traffic,
    before: Option<Counting>,
    attacked: Option<Traffic>,
    after: Option<(Counting, Traffic)>,
}

/// Runs the attack.
///
/// # Errors
/// One sentence with the cause, e.g. a tracker that counts nothing.
pub(crate) fn run(arena: &Arena<'_>) -> Result<Figures, AttackError> {
    let (plan, attack) = (arena.plan, arena.attack);
    let (honest_count, attackers) = (u32::from(attack.honest), u32::from(attack.attackers));
    let addresses = arena.addresses(0..honest_count + attackers)?;
    let (honest_addresses, attacking_addresses) = addresses.split_at(honest_count as usize);
    let mut honest = Crowd::open(arena, honest_addresses, WINDOW * 2)?;
    honest.connect()?;
    interrupt::check("connecting")?;
    let closed = Pacing::Closed { window: 512, most_s: LONGEST_S };
    let mut filling = Filling::new(plan, attack.honest);
    let calm = honest.run(&mut filling, closed);
    let mut measured = Measured { calm, before: None, attacked: None, after: None };
    let mut before = Counting::new(plan);
    honest.run(&mut before, closed);
    if interrupt::is_requested() {
        return Ok(measured.figures(arena));
    }
    if before.peers == 0 {
        let (tracker, answered) = (arena.target, filling.answered);
        return Err(AttackError::NothingCounted { tracker, answered });
    }
    measured.before = Some(before);

    let capacity = if attack.attack_rate == 0 { WINDOW * 2 } else { usize::MAX };
    let mut crowd = Crowd::open(arena, attacking_addresses, capacity)?;
    crowd.connect()?;
    if interrupt::is_requested() {
        return Ok(measured.figures(arena));
    }
    let mut fresh = Fresh { seed: mix(plan.seed ^ 1), left: attack.requests, next: 0 };
    let pacing = if attack.attack_rate == 0 {
        Pacing::Closed { window: WINDOW, most_s: LONGEST_S }
    } else {
        let rate = f64::from(attackers) * f64::from(attack.attack_rate);
        Pacing::Open { rate, duration_s: f64::from(attack.requests) / rate }
    };
    measured.attacked = Some(crowd.run(&mut fresh, pacing));

    let mut after = Counting::new(plan);
    let asking = honest.run(&mut after, closed);
    if !interrupt::is_requested() {
        measured.after = Some((after, asking));
    }
    Ok(measured.figures(arena))
}

impl Measured {
    fn figures(self, arena: &Arena<'_>) -> Figures {
        let (before, after) = (self.before.as_ref(), self.after.as_ref().map(|it| &it.0));
        let usage = arena.usage().filter(|_| self.attacked.is_some());
        let rss_of_cap = arena.attack.memory_cap_bytes.zip(usage);
        let rss_of_cap = rss_of_cap.map(|(cap, it): (u64, Usage)| per(it.rss_bytes, cap));
        let p99_us = |it: &Traffic| Latency::of(&it.latency).p99_us;
        let peers = |it: &Counting| real(it.peers);
        let kept_share = before.zip(after).map(|(before, after)| peers(after) / peers(before));
        let attacked = self.attacked.as_ref();
        let measures = vec![
            Measure::new(
                "kept_share",
                // More peers than before would be peers that no client announced.
                kept_share,
                "share of the earlier peers that are still stored, by scrapes",
            ),
            Measure::new("peers_before", before.map(peers), "peers by scrapes before the attack"),
            Measure::new("peers_after", after.map(peers), "and after it"),
            Measure::new(
                "rss_of_cap",
                rss_of_cap,
                "resident memory after it, as a share of --memory-cap",
            ),
            Measure::new("p99_us_before", p99_us(&self.calm), "latency of announces before"),
            Measure::new("p99_us_attack", attacked.map(p99_us), "and of those with random hashes"),
            Measure::new(
                "attack_per_s",
                attacked.map(Traffic::offered_per_s),
                "random hashes a second",
            ),
        ];
        let torrents = u64::from(arena.plan.torrents);
        let warning = before.zip(after).and_then(|(before, after)| {
            let all = before.torrents_seen >= torrents && after.torrents_seen >= torrents;
            (!all).then(|| {
                format!(
                    "of {torrents} torrents {} could be scraped before, {} after",
                    before.torrents_seen, after.torrents_seen
                )
            })
        });
        Figures {
            measures,
            warnings: warning.into_iter().collect(),
            honest: self.after.map(|it| it.1),
            attack: self.attacked,
            ..Figures::default()
        }
    }
}

/// Announces, each for a new torrent.
struct Fresh {
    seed: u64,
    left: u32,
    next: u32,
}

impl Work for Fresh {
    fn next(&mut self, turn: u16) -> Option<Ask> {
        self.left = self.left.checked_sub(1)?;
        self.next += 1;
        Some(Ask {
            kind: Kind::Announce,
            torrent: (self.seed, self.next),
            count: 30,
            port: peer_port(self.next, 0),
            ..Ask::connect(turn)
        })
    }
}
