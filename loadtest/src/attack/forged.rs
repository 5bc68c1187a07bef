//! Forged sources: connects, and announces with made-up connection ids, in the name of victims.
//! Meanwhile the victims themselves obtain an id as in BEP 15, and announce.
//!
//! On loopback any address can be a source, so the forger uses the victims' addresses with a port
//! of its own. Responses of the tracker therefore arrive at the forger and are counted.

use crate::interrupt;
use crate::numbers::{per, real};
use crate::slots::{Kind, SlotTable};
use crate::sources::peer_port;

use super::crowd::{Ask, Crowd, Pacing, Work};
use super::figures::{Figures, Measure, too_slow};
use super::works::Honest;
use super::{Arena, AttackError};

/// Connect requests in a row before a victim stops: BEP 15 clients try at least as often.
const TRIES_MAX: u8 = 4;

/// Runs the attack.
///
/// # Errors
/// One sentence with the cause.
pub(crate) fn run(arena: &Arena<'_>) -> Result<Figures, AttackError> {
    let (plan, attack) = (arena.plan, arena.attack);
    let timeout_s = f64::from(plan.timeout_ms) / 1000.0;
    let victims = arena.addresses(0..attack.honest.into())?;
    let visits = f64::from(attack.honest) / attack.honest_interval_s;
    let mut honest = Crowd::open(arena, &victims, SlotTable::capacity_for(visits, timeout_s))?;
    // There is no attack yet: this only shows that the tracker responds.
    honest.connect()?;
    interrupt::check("connecting")?;
    honest.tries_max = TRIES_MAX;
    honest.forgetful = true;
    let rate = f64::from(attack.attack_rate);
    let mut forger = Crowd::open(arena, &victims, SlotTable::capacity_for(rate, timeout_s))?;
    let (served, forged) = std::thread::scope(|scope| {
        let forging = scope.spawn(|| {
            let mut work = Forging { seed: plan.seed, torrents: plan.torrents, asked: 0 };
            forger.run(&mut work, Pacing::Open { rate, duration_s: plan.duration_s })
        });
        let mut work = Honest { seed: plan.seed, torrents: plan.torrents, numwant: plan.numwant };
        let pacing = Pacing::Open { rate: visits, duration_s: plan.duration_s };
        (honest.run(&mut work, pacing), forging.join())
    });
    let forged = forged.map_err(|_| AttackError::ThreadEnded("forging"))?;
    let announces = served.sent.of(Kind::Announce);
    let verified_share = per(served.answered.of(Kind::Announce), announces);
    Ok(Figures {
        measures: vec![
            Measure::new(
                "honest_share",
                verified_share,
                "share of the victims' announces answered, once they had an id",
            ),
            Measure::new(
                "id_share",
                per(announces, announces + served.gave_up),
                "share of visits in which a victim got an id within 4 tries",
            ),
            Measure::new(
                "tries_mean",
                per(served.sent.of(Kind::Connect), announces + served.gave_up),
                "connects of a victim per visit",
            ),
            Measure::new(
                "forged_share",
                forged.answered_share(),
                "share of forged requests answered",
            ),
            Measure::new(
                "reflected_bytes",
                real(forged.received_bytes) / real(forged.sent_bytes.max(1)),
                "bytes the victims' addresses were sent for each forged byte",
            ),
            Measure::new("attack_per_s", forged.offered_per_s(), "forged requests a second"),
        ],
        warnings: too_slow(&forged, attack.attack_rate.into()).into_iter().collect(),
        honest: Some(served),
        attack: Some(forged),
        ..Figures::default()
    })
}

/// Alternates connects, whose responses are ignored, and announces with made-up ids.
struct Forging {
    seed: u64,
    torrents: u32,
    asked: u32,
}

impl Work for Forging {
    fn next(&mut self, turn: u16) -> Option<Ask> {
        self.asked = self.asked.wrapping_add(1);
        let torrent = self.asked % self.torrents;
        let kind = if self.asked.is_multiple_of(2) { Kind::Connect } else { Kind::Announce };
        Some(Ask {
            kind,
            torrent: (self.seed, torrent),
            count: 50,
            port: peer_port(torrent, self.asked),
            forged: true,
            ..Ask::connect(turn)
        })
    }
}
