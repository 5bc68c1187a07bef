//! Flood and scrape storm: attackers with valid connection ids send at the configured rate, while
//! many honest clients announce at intervals. Measures which share of the honest requests is still
//! answered.

use std::net::IpAddr;

use crate::interrupt;
use crate::numbers::real;
use crate::plan::{Plan, Profile};
use crate::slots::{Kind, SlotTable};

use super::crowd::{Crowd, Pacing};
use super::figures::{Figures, Measure, too_slow};
use super::traffic::Traffic;
use super::works::{Attacking, Honest};
use super::{Arena, AttackError};

/// Runs the attack.
///
/// # Errors
/// One sentence with the cause, e.g. a tracker that does not respond.
pub(crate) fn run(arena: &Arena<'_>) -> Result<Figures, AttackError> {
    let (plan, attack) = (arena.plan, arena.attack);
    let (honest_count, attackers) = (u32::from(attack.honest), u32::from(attack.attackers));
    let honest_rate = f64::from(honest_count) / attack.honest_interval_s;
    let addresses = arena.addresses(0..honest_count + attackers)?;
    let (honest_addresses, attacking_addresses) = addresses.split_at(honest_count as usize);
    let capacity = SlotTable::capacity_for(honest_rate, timeout_s(arena));
    let mut honest = Crowd::open(arena, honest_addresses, capacity)?;
    let honest_connected = honest.connect()?;
    interrupt::check("connecting")?;
    let mut announcing = Honest { seed: plan.seed, torrents: plan.torrents, numwant: plan.numwant };
    let pacing = |duration_s| Pacing::Open { rate: honest_rate, duration_s };
    let calm = honest.run(&mut announcing, pacing(plan.warmup_s));
    let (mut crowds, connected) = attackers_of(arena, attacking_addresses)?;
    if interrupt::is_requested() {
        return Ok(Figures { measures: measures(&calm, None, None), ..Figures::default() });
    }
    let (served, attacked) = std::thread::scope(|scope| {
        let attack = |crowd| move || one_attack(arena, crowd);
        let threads: Vec<_> = crowds.iter_mut().map(|it| scope.spawn(attack(it))).collect();
        let served = honest.run(&mut announcing, pacing(plan.duration_s));
        let mut attacked = Traffic::new(0);
        threads.into_iter().filter_map(|it| it.join().ok()).for_each(|it| attacked.merge(&it));
        (served, attacked)
    });
    let wanted = u64::from(attackers) * u64::from(attack.attack_rate);
    let mut warnings: Vec<String> = too_slow(&attacked, wanted).into_iter().collect();
    if honest_connected < honest_addresses.len() || connected < attacking_addresses.len() {
        warnings.push(format!(
            "only {honest_connected} honest and {connected} attacking sources had a connection id \
             at the start"
        ));
    }
    Ok(Figures {
        measures: measures(&calm, Some(&served), Some(&attacked)),
        honest: Some(served),
        attack: Some(attacked),
        warnings,
        ..Figures::default()
    })
}

/// The attackers by thread, and how many of them have a connection id.
fn attackers_of(
    arena: &Arena<'_>,
    addresses: &[IpAddr],
) -> Result<(Vec<Crowd>, usize), AttackError> {
    let part = addresses.len().div_ceil(arena.plan.threads.into());
    let rate = f64::from(arena.attack.attack_rate) * real(part as u64);
    let capacity = SlotTable::capacity_for(rate, timeout_s(arena));
    let mut crowds = Vec::new();
    let mut connected = 0;
    for addresses in addresses.chunks(part) {
        let mut crowd = Crowd::open(arena, addresses, capacity)?;
        connected += crowd.connect()?;
        crowds.push(crowd);
    }
    Ok((crowds, connected))
}

/// The requests of one thread's attackers.
fn one_attack(arena: &Arena<'_>, crowd: &mut Crowd) -> Traffic {
    let Plan { seed, torrents, numwant, duration_s, .. } = *arena.plan;
    let flood = arena.plan.profile == Profile::Flood;
    let kind = if flood { Kind::Announce } else { Kind::Scrape };
    let rate = f64::from(arena.attack.attack_rate) * real(crowd.len() as u64);
    let mut work = Attacking { kind, seed, torrents, numwant, asked: 0 };
    crowd.run(&mut work, Pacing::Open { rate, duration_s })
}

/// `served` and `attacked`: `None` if there was no attack yet.
fn measures(calm: &Traffic, served: Option<&Traffic>, attacked: Option<&Traffic>) -> Vec<Measure> {
    vec![
        Measure::new(
            "honest_share",
            served.map(Traffic::answered_share),
            "share of honest requests answered during the attack",
        ),
        Measure::new("honest_share_before", calm.answered_share(), "the same before the attack"),
        Measure::new(
            "attack_share",
            attacked.map(Traffic::answered_share),
            "share of attacking requests answered",
        ),
        Measure::new(
            "attack_per_s",
            attacked.map(Traffic::offered_per_s),
            "attacking requests that left, a second",
        ),
    ]
}

fn timeout_s(arena: &Arena<'_>) -> f64 {
    f64::from(arena.plan.timeout_ms) / 1000.0
}
