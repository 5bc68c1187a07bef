//! Random info-hashes: after a population has announced, many sources announce torrents that no
//! client will request again, to fill the tracker's memory. Measures what is left of the
//! population, and how much memory was used.

use crate::numbers::{mix, per, real};
use crate::process::Usage;
use crate::report::Latency;
use crate::slots::Kind;
use crate::sources::peer_port;

use super::Arena;
use super::crowd::{Ask, Crowd, Pacing, Work};
use super::figures::{Figures, Measure};
use super::works::{Counting, Filling};

/// Most unanswered requests: well below what overflows a socket's queue.
const WINDOW: usize = 4096;

/// A day: such runs end when all requests are sent.
const LONGEST_S: f64 = 86_400.0;

/// Runs the attack.
///
/// # Errors
/// One sentence with the cause, e.g. a tracker that counts nothing.
pub(crate) fn run(arena: &Arena<'_>) -> Result<Figures, String> {
    let (plan, attack) = (arena.plan, arena.attack);
    let (honest_count, attackers) = (u32::from(attack.honest), u32::from(attack.attackers));
    let addresses = arena.addresses(0..honest_count + attackers)?;
    let (honest_addresses, attacking_addresses) = addresses.split_at(honest_count as usize);
    let mut honest = Crowd::open(arena, honest_addresses, WINDOW * 2)?;
    honest.connect()?;
    let closed = Pacing::Closed { window: 512, most_s: LONGEST_S };
    let mut filling = Filling::new(plan, attack.honest);
    let calm = honest.run(&mut filling, closed);
    let mut before = Counting::new(plan);
    honest.run(&mut before, closed);
    if before.peers == 0 {
        return Err(format!(
            "{}: {} announces were answered, but scrapes count no peers: no loss can be measured",
            arena.target, filling.answered
        ));
    }

    let capacity = if attack.attack_rate == 0 { WINDOW * 2 } else { usize::MAX };
    let mut crowd = Crowd::open(arena, attacking_addresses, capacity)?;
    crowd.connect()?;
    let mut fresh = Fresh { seed: mix(plan.seed ^ 1), left: attack.requests, next: 0 };
    let pacing = if attack.attack_rate == 0 {
        Pacing::Closed { window: WINDOW, most_s: LONGEST_S }
    } else {
        let rate = f64::from(attackers) * f64::from(attack.attack_rate);
        Pacing::Open { rate, duration_s: f64::from(attack.requests) / rate }
    };
    let attacked = crowd.run(&mut fresh, pacing);

    let mut after = Counting::new(plan);
    let asking = honest.run(&mut after, closed);
    let usage = arena.usage();
    let rss_of_cap = attack.memory_cap_bytes.zip(usage);
    let rss_of_cap = rss_of_cap.map(|(cap, it): (u64, Usage)| per(it.rss_bytes, cap));
    let p99_us = |it: &super::traffic::Traffic| Latency::of(&it.latency).p99_us;
    let mut warnings = Vec::new();
    let torrents = u64::from(plan.torrents);
    if before.torrents_seen < torrents || after.torrents_seen < torrents {
        warnings.push(format!(
            "of {torrents} torrents {} could be scraped before, {} after",
            before.torrents_seen, after.torrents_seen
        ));
    }
    Ok(Figures {
        measures: vec![
            Measure::new(
                "kept_share",
                // More peers than before would be peers that no client announced.
                real(after.peers) / real(before.peers),
                "share of the earlier peers that are still stored, by scrapes",
            ),
            Measure::new("peers_before", real(before.peers), "peers by scrapes before the attack"),
            Measure::new("peers_after", real(after.peers), "and after it"),
            Measure {
                name: "rss_of_cap",
                value: rss_of_cap,
                meaning: "resident memory after it, as a share of --memory-cap",
            },
            Measure::new("p99_us_before", p99_us(&calm), "latency of announces before"),
            Measure::new("p99_us_attack", p99_us(&attacked), "and of those with random hashes"),
            Measure::new("attack_per_s", attacked.offered_per_s(), "random hashes a second"),
        ],
        honest: Some(asking),
        attack: Some(attacked),
        warnings,
        ..Figures::default()
    })
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
