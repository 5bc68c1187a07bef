//! Totals across restarts, with random announces to both processes in random order.

use fastrand::Rng;

use super::*;

const NOW: Now = Now::from_s(1_800_000_000);
const LIMITS: Limits = Limits { announces_per_minute: 1 << 20, torrents: 100, peers: 100 };

/// A client's view of its session.
#[derive(Clone, Copy, Default)]
struct Client {
    moved: Moved,
    has_stopped: bool,
}

fn announce(sessions: &mut Sessions, client: usize, moved: Moved, event: Event) {
    let [uploaded, downloaded] = moved;
    let (info_hash, peer_id) = (&InfoHash([client as u8 % 3; 20]), &PeerId([client as u8; 20]));
    let report = SessionReport { info_hash, peer_id, event, uploaded, downloaded, left: 7 };
    sessions.count(NOW, &report, &LIMITS).unwrap();
}

/// Restores in a process what another one saved.
fn restore(from: (&Totals, &[SavedSession]), to: &mut Sessions, after_s: u64) {
    let saved = SavedKey { digest: [1; 32], totals: *from.0, sessions: from.1 };
    let terms = RestoreTimes { at: NOW, now: NOW.plus_s(after_s), peer_age_s_max: 3900 };
    to.restore(&saved, &terms, &LIMITS);
}

fn saved(sessions: &Sessions) -> (Totals, Vec<SavedSession>) {
    let mut copied = Vec::new();
    (sessions.save(NOW, &mut copied), copied)
}

/// The sum of the bytes that clients have moved.
fn sum(clients: &[Client]) -> Moved {
    let sum = |at: usize| clients.iter().map(|it| it.moved[at]).sum();
    [sum(0), sum(1)]
}

fn moved(sessions: &Sessions) -> Moved {
    let Totals { uploaded, downloaded, .. } = sessions.totals();
    [uploaded, downloaded]
}

/// A client moves some bytes and announces them.
fn go_on(client: &mut Client, number: usize, to: &mut Sessions, event: Event, random: &mut Rng) {
    client.moved = client.moved.map(|it| it + random.u64(..1000));
    client.has_stopped = event == Event::Stopped;
    announce(to, number, client.moved, event);
}

#[test]
fn over_a_take_over_sums_are_exact_whoever_hears_what() {
    for seed in 0..2000 {
        let random = &mut Rng::with_seed(seed);
        let mut clients = [Client::default(); 6];
        let mut old = Sessions::new(Totals::default(), false, Arc::default());
        (0..6).for_each(|it| announce(&mut old, it, [0; 2], Event::Started));
        for _ in 0..random.usize(..20) {
            let number = random.usize(..6);
            go_on(&mut clients[number], number, &mut old, Event::None, random);
        }
        let mut new = Sessions::new(old.totals(), true, Arc::default());
        for _ in 0..random.usize(..30) {
            let number = random.usize(..6);
            if clients[number].has_stopped {
                continue;
            }
            let (to, event) = match random.u8(..10) {
                0 => (&mut new, Event::Stopped),
                1..=4 => (&mut new, Event::None),
                _ => (&mut old, Event::None),
            };
            go_on(&mut clients[number], number, to, event, random);
        }
        let (totals, sessions) = saved(&old);
        restore((&totals, &sessions), &mut new, 0);
        new.end_restoring();
        let alive = clients.iter().filter(|it| !it.has_stopped).count();
        assert_eq!(new.usage().1 as usize, alive, "seed {seed}");
        for (number, client) in clients.iter_mut().enumerate().filter(|it| !it.1.has_stopped) {
            let event = if number % 2 == 0 { Event::Stopped } else { Event::None };
            go_on(client, number, &mut new, event, random);
        }
        assert_eq!(moved(&new), sum(&clients), "seed {seed}");
    }
}

#[test]
fn after_a_crash_sums_are_exact_once_sessions_have_gone_on_and_never_fall() {
    for seed in 0..2000 {
        let random = &mut Rng::with_seed(seed);
        let mut clients = [Client::default(); 6];
        let mut old = Sessions::new(Totals::default(), false, Arc::default());
        (0..6).for_each(|it| announce(&mut old, it, [0; 2], Event::Started));
        let (mut written, mut snapshot) = (old.totals(), saved(&old));
        for _ in 0..random.usize(..30) {
            match random.u8(..8) {
                0 => written = old.totals(),
                1 => snapshot = saved(&old),
                _ => {
                    let number = random.usize(..6);
                    go_on(&mut clients[number], number, &mut old, Event::None, random);
                }
            }
        }
        let mut new = Sessions::new(written, true, Arc::default());
        let early = random.usize(..6); // these announce before all is restored
        for (number, client) in clients.iter_mut().enumerate().take(early) {
            go_on(client, number, &mut new, Event::None, random);
        }
        let before = new.totals();
        assert_eq!(before.uploaded, written.uploaded, "sessions that nobody knows add nothing");
        restore((&snapshot.0, &snapshot.1), &mut new, 60);
        new.end_restoring();
        assert!(new.totals().uploaded >= before.uploaded && new.usage().1 == 6);
        for (number, client) in clients.iter_mut().enumerate() {
            go_on(client, number, &mut new, Event::None, random);
        }
        assert_eq!(moved(&new), sum(&clients), "seed {seed}");
        // Once more, with a snapshot whose totals are above or below those shown.
        let (totals, sessions) = saved(&new);
        let mut third = Sessions::new(new.totals(), true, Arc::default());
        restore((&totals, &sessions), &mut third, 60);
        go_on(&mut clients[0], 0, &mut third, Event::Stopped, random);
        assert_eq!(moved(&third), sum(&clients), "seed {seed}");
    }
}

#[test]
fn sessions_that_were_silent_for_too_long_stay_away() {
    let mut old = Sessions::new(Totals::default(), false, Arc::default());
    announce(&mut old, 1, [0, 0], Event::Started);
    announce(&mut old, 1, [100, 10], Event::None);
    let (totals, sessions) = saved(&old);
    let mut new = Sessions::new(Totals { uploaded: 150, ..totals }, true, Arc::default());
    restore((&totals, &sessions), &mut new, 3901);
    assert!(new.is_empty());
    // Totals saved later than the snapshot stay, and other sessions add to them.
    announce(&mut new, 2, [0, 0], Event::Started);
    announce(&mut new, 2, [7, 0], Event::None);
    assert_eq!(moved(&new), [157, 10]);
}

#[test]
fn no_more_sessions_are_restored_than_a_key_may_have_nor_after_the_end() {
    let mut old = Sessions::new(Totals::default(), false, Arc::default());
    (0..50).for_each(|it| announce(&mut old, it, [1, 1], Event::Started));
    let (totals, sessions) = saved(&old);
    let saved = SavedKey { digest: [1; 32], totals, sessions: &sessions };
    let terms = RestoreTimes { at: NOW, now: NOW, peer_age_s_max: 3900 };
    for (limits, expected) in
        [(Limits { peers: 20, ..LIMITS }, 20), (Limits { torrents: 0, ..LIMITS }, 0), (LIMITS, 50)]
    {
        let mut new = Sessions::new(Totals::default(), true, Arc::default());
        new.restore(&saved, &terms, &limits);
        assert_eq!(new.usage().1, expected);
    }
    let mut late = Sessions::new(Totals::default(), true, Arc::default());
    late.end_restoring();
    late.restore(&saved, &terms, &LIMITS);
    assert!(late.is_empty());
}

#[test]
fn a_client_that_begins_anew_is_another_session() {
    let mut old = Sessions::new(Totals::default(), false, Arc::default());
    announce(&mut old, 1, [0, 0], Event::Started);
    announce(&mut old, 1, [100, 10], Event::None);
    let (totals, sessions) = saved(&old);
    let mut new = Sessions::new(totals, true, Arc::default());
    announce(&mut new, 1, [0, 0], Event::Started);
    announce(&mut new, 1, [30, 3], Event::None);
    restore((&totals, &sessions), &mut new, 1);
    announce(&mut new, 1, [31, 3], Event::None);
    assert_eq!(moved(&new), [131, 13]);
}

#[test]
fn without_memory_no_session_begins_and_those_that_are_there_go_on() {
    let of_all = Arc::new(SessionBytes::default());
    let new = || Sessions::new(Totals::default(), false, of_all.clone());
    let (mut one, mut other) = (new(), new());
    assert_eq!(of_all.used(), 0);
    (0..10).for_each(|it| announce(&mut one, it, [0; 2], Event::Started));
    let ten = of_all.used();
    assert_eq!(ten, FIRST_BYTES + 10 * SESSION_BYTES);
    of_all.allow(ten + SESSION_BYTES);
    (10..20).for_each(|it| announce(&mut one, it, [0; 2], Event::Started));
    announce(&mut other, 1, [0; 2], Event::Started);
    assert_eq!((one.usage().1, other.usage().1), (11, 0));
    (0..20).for_each(|it| announce(&mut one, it, [7, 1], Event::None));
    assert_eq!(moved(&one), [11 * 7, 11], "the others add nothing");
    assert_eq!(one.totals().announces, 40, "but their announces count");
    (0..11).for_each(|it| announce(&mut one, it, [8, 1], Event::Stopped));
    assert_eq!((of_all.used(), one.usage().0), (0, 0));
    announce(&mut other, 1, [0; 2], Event::Started);
    assert_eq!((other.usage().1, of_all.used()), (1, FIRST_BYTES + SESSION_BYTES));
    let (totals, sessions) = saved(&other);
    let mut third = Sessions::new(totals, true, of_all.clone());
    of_all.allow(0);
    restore((&totals, &sessions), &mut third, 1);
    assert!(third.is_empty(), "nor is one restored");
    drop(other);
    assert_eq!(of_all.used(), 0, "a key that is revoked frees what it had");
}

#[test]
fn torrents_are_counted_once_whoever_comes_goes_and_falls_silent() {
    let random = &mut Rng::with_seed(1);
    let mut sessions = Sessions::new(Totals::default(), false, Arc::default());
    for round in 0..2000 {
        let event = if random.bool() { Event::Stopped } else { Event::None };
        announce(&mut sessions, random.usize(..100), [0; 2], event);
        if round % 500 == 0 {
            sessions.sweep(NOW.plus_s(if round == 1000 { 100 } else { 1 }), 60);
        }
        let torrents: std::collections::HashSet<_> = sessions.all.keys().map(|it| it.0.0).collect();
        assert_eq!(sessions.torrents as usize, torrents.len());
    }
}
