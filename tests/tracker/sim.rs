//! Whole trackers in virtual time, hundreds of them, against a naive model of what they should do:
//! `SEED=7 cargo test --test tracker sim` runs one again, `SEEDS=10000` as many as that.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::simulation::{Invariant, Sabotage, run};

/// How many are run where nobody says otherwise.
const SEEDS: u64 = 300;

/// Seeds that have found something once: they run first.
const FOUND_SOMETHING: [u64; 0] = [];

/// How often each kind of thing happened.
type Seen = BTreeMap<&'static str, u64>;

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|it| it.parse().unwrap())
}

#[test]
fn hundreds_of_seeds_break_no_invariant() {
    if let Some(seed) = given("SEED") {
        let tally = run(seed, None).unwrap_or_else(|it| panic!("SEED={seed}: {it:?}"));
        println!("SEED={seed}: {tally:#?}");
        return;
    }
    let count = given("SEEDS").unwrap_or(SEEDS);
    let seeds: Vec<u64> = FOUND_SOMETHING.into_iter().chain(0..count).collect();
    let (next, broken, seen) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run_one(*seed, &broken, &seen);
                }
            });
        }
    });
    let mut broken = broken.into_inner().unwrap();
    broken.sort();
    if let Some((seed, what)) = broken.first() {
        let count = broken.len();
        panic!(
            "{count} of {} seeds; SEED={seed} cargo test --test tracker sim: {what}",
            seeds.len()
        );
    }
    every_kind_was_seen(&seen.into_inner().unwrap());
}

/// Runs a seed, and notes what came of it.
fn run_one(seed: u64, broken: &Mutex<Vec<(u64, String)>>, seen: &Mutex<Seen>) {
    match catch_unwind(|| run(seed, None)) {
        Ok(Ok(tally)) => {
            let mut seen = seen.lock().unwrap();
            for (what, count) in tally.events {
                *seen.entry(what).or_default() += count;
            }
        }
        Ok(Err(violation)) => broken.lock().unwrap().push((seed, format!("{violation:?}"))),
        Err(_) => broken.lock().unwrap().push((seed, "it panicked, see above".to_owned())),
    }
}

/// A simulation in which something never happens says nothing about it.
fn every_kind_was_seen(seen: &Seen) {
    for what in [
        "announces by UDP",
        "announces by HTTP",
        "announces by WebSocket",
        "scrapes by UDP",
        "scrapes by HTTP",
        "scrapes by WebSocket",
        "WebRTC answers",
        "answers delivered",
        "announces of port 0 or 1",
        "too_short",
        "bad_magic",
        "unknown_action",
        "forged_id",
        "expired_id",
        "limited",
        "calmed",
        "forgotten",
        "snapshots",
        "damaged snapshots",
        "peers restored",
        "peers merged",
        "peers too old to restore",
        "clean restarts",
        "crashes",
        "pauses",
        "clock steps",
        "key rollovers",
    ] {
        assert!(seen.get(what).is_some_and(|it| *it > 0), "{what} never happened: {seen:#?}");
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [3, 4] {
        assert_eq!(run(seed, None).unwrap(), run(seed, None).unwrap());
    }
    assert_ne!(run(3, None).unwrap().trace, run(4, None).unwrap().trace);
}

#[test]
fn what_is_broken_on_purpose_is_noticed() {
    use Invariant as I;
    for (sabotage, expected) in [
        (Sabotage::NoUpkeep, I::SilentAreForgotten),
        (Sabotage::FreshKeys, I::IdsStayValid),
        (Sabotage::OldSnapshot, I::NobodyIsLost),
        (Sabotage::LongResponses, I::NoAmplification),
        (Sabotage::StopsUnheard, I::Counts),
        (Sabotage::PeersTwice, I::Distinct),
        (Sabotage::PeersLeftOut, I::HowMany),
        (Sabotage::AskerHanded, I::NeverTheAsker),
        (Sabotage::PrivateHanded, I::RightScope),
        (Sabotage::StrangerHanded, I::OnlyMembers),
        (Sabotage::NoiseAnswered, I::Silence),
        (Sabotage::DropsUncounted, I::CountsAddUp),
    ] {
        let found: Vec<_> =
            (0..12).filter_map(|it| run(it, Some(sabotage)).err()).map(|it| it.invariant).collect();
        assert!(found.contains(&expected), "{sabotage:?} breaks {expected:?}, not {found:?}");
    }
}
