//! Which peer of a full swarm a newcomer replaces: one of a network that has too much of the swarm,
//! if one does.
//!
//! The owner of an IPv6 /48 can announce a quarter of a million peers. If the longest silent peer
//! were always the one replaced, an attacker that refreshes its peers would replace all others by
//! its own. So up to [`DRAWN_MAX`] peers of the whole swarm are drawn, of every kind and scope.
//! Where [`NETWORK_MIN`] of them or more are of one network, a peer of that network is replaced:
//! the newcomer's own network first, else the one with most. Where no network has so many,
//! [`LARGE_NETWORK_MIN`] of one IPv6 /32 or IPv4 /16 are looked for, for owners of many /48s.
//! Otherwise it is as in any swarm: the longest silent of some of the newcomer's own kind is
//! replaced, so that no family displaces another.
//!
//! What that means, where a network holds the share s of a full swarm: its next newcomer replaces a
//! peer of another network only if fewer than [`NETWORK_MIN`] of those drawn are its own. That is
//! certain while s is small, 2 % at 1/16, below 1 in 20 000 at 1/8, and below 10^-30 at 1/2. So
//! no network comes much above 1/8, and one that holds more by having filled an empty swarm
//! replaces its own. Networks that hold a hundredth of a swarm or less are found rarely (4 %), and
//! those with a thousandth next to never (1 in 100 000).
//!
//! Local peers, which are of no network, do not count. Nothing is counted per peer, and swarms that
//! are not full do not come here.

use fastrand::Rng;

use super::peer::PeerNetwork;

/// How many peers are drawn at most: four times as many as to find one that has been silent long.
const DRAWN_MAX: usize = 128;
/// So many of those drawn are too much of one network: a thirty-second part where all are drawn.
const NETWORK_MIN: usize = 4;
/// So many of those drawn are too much of an IPv6 /32 or IPv4 /16: a quarter. Large providers may
/// well have as much.
const LARGE_NETWORK_MIN: usize = 32;

/// A peer that was drawn.
#[derive(Clone, Copy, Debug, Default)]
struct DrawnPeer {
    network: PeerNetwork,
    /// Its number among all peers of the swarm.
    number: usize,
    age_s: u32,
}

/// The number of the peer to replace, if a network has too much of a swarm of `len` peers. `look`
/// returns the network of a peer, by its number, and the seconds of its silence; `None` for one
/// that does not count. `newcomer` is the network of the newcomer, if its part is capped.
pub(super) fn overrepresented(
    len: usize,
    newcomer: Option<PeerNetwork>,
    random: &mut Rng,
    look: impl Fn(usize) -> Option<(PeerNetwork, u32)>,
) -> Option<usize> {
    let mut drawn = [DrawnPeer::default(); DRAWN_MAX];
    let mut count = 0;
    let parts = len.min(DRAWN_MAX);
    for part in 0..parts {
        // One of each part of the swarm, so that no peer is drawn twice.
        let number = random.usize(part * len / parts..(part + 1) * len / parts);
        if let Some((network, age_s)) = look(number) {
            drawn[count] = DrawnPeer { network, number, age_s };
            count += 1;
        }
    }
    let drawn = &mut drawn[..count];
    drawn.sort_unstable_by_key(|it| it.network);
    let same = |a: &DrawnPeer, b: &DrawnPeer| a.network == b.network;
    let of_newcomer = |it: &[DrawnPeer]| newcomer == Some(it[0].network);
    let networks = || drawn.chunk_by(same).filter(|it| it.len() >= NETWORK_MIN);
    let near = |a: &DrawnPeer, b: &DrawnPeer| a.network.above() == b.network.above();
    let large_networks = || drawn.chunk_by(near).filter(|it| it.len() >= LARGE_NETWORK_MIN);
    let peers = networks()
        .max_by_key(|it| (of_newcomer(it), it.len()))
        .or_else(|| large_networks().max_by_key(|it| it.len()))?;
    peers.iter().max_by_key(|it| it.age_s).map(|it| it.number)
}

#[cfg(test)]
mod tests {
    use super::super::peer::Endpoint;
    use super::*;

    /// The network of an IPv4 address.
    fn network(address: u32) -> PeerNetwork {
        Endpoint::<4>::new(address.to_be_bytes(), 1).network_of_kind()
    }

    /// One of many networks that share no /16.
    fn other(number: usize) -> PeerNetwork {
        network(0x2000_0000 + (u32::try_from(number).unwrap() << 16))
    }

    /// The chance that fewer than [`NETWORK_MIN`] of those drawn are of a network with this share.
    fn overlooked(share: f64) -> f64 {
        let mut chance = (1.0 - share).powi(128);
        let mut sum = 0.0;
        for drawn in 0..4 {
            sum += chance;
            chance *= share / (1.0 - share) * f64::from(128 - drawn) / f64::from(drawn + 1);
        }
        sum
    }

    #[test]
    fn the_chances_are_as_promised() {
        assert_eq!((DRAWN_MAX, NETWORK_MIN), (128, 4));
        assert!(overlooked(1.0 / 16.0) < 0.04);
        assert!(overlooked(1.0 / 8.0) < 1.0 / 20_000.0);
        assert!(overlooked(1.0 / 2.0) < 1e-30);
        assert!(1.0 - overlooked(0.01) < 0.041);
        assert!(1.0 - overlooked(0.001) < 1e-5);
    }

    #[test]
    fn draws_keep_to_the_chances() {
        let mut random = Rng::with_seed(1);
        let rounds = 20_000;
        let look = |number: usize| {
            Some((if number.is_multiple_of(16) { network(1) } else { other(number % 4000) }, 0))
        };
        // Of 64 000 peers a sixteenth is of one network; all others have a few thousandths of 1 %.
        let found = (0..rounds).filter(|_| {
            let gone = overrepresented(64_000, None, &mut random, look);
            assert!(gone.is_none_or(|it| it.is_multiple_of(16)));
            gone.is_some()
        });
        let missed = rounds - found.count();
        assert!((600..900).contains(&missed), "{missed}: 760 are expected");
    }

    #[test]
    fn who_has_most_goes_and_of_those_the_longest_silent_but_first_the_newcomers_own() {
        let mut random = Rng::with_seed(1);
        // Five eighths are of one network, a quarter of another, the rest of many.
        let look = |number: usize| match number % 8 {
            0..=4 => Some((network(1 << 24), 5)),
            5 | 6 => Some((network(2 << 24), 9)),
            _ => Some((other(number / 8), u32::MAX)),
        };
        for _ in 0..1000 {
            let mut gone =
                |newcomer| overrepresented(2000, newcomer, &mut random, look).unwrap() % 8;
            assert!(gone(None) < 5);
            assert!(gone(Some(other(1))) < 5);
            assert!([5, 6].contains(&gone(Some(network(2 << 24)))));
        }
        let ages = |number: usize| Some((network(1), u32::try_from(number % 100).unwrap()));
        assert_eq!(
            overrepresented(100, None, &mut random, ages),
            Some(99),
            "all of a hundred are seen"
        );
    }

    #[test]
    fn no_crowd_is_made_by_few_by_many_or_by_local_peers() {
        let mut random = Rng::with_seed(1);
        for len in [1, 3, 100, 128, 129, 4000] {
            let apart = |number: usize| Some((other(number), 1));
            assert_eq!(overrepresented(len, None, &mut random, apart), None);
            assert_eq!(overrepresented(len, None, &mut random, |_| None), None);
        }
        assert_eq!(overrepresented(3, None, &mut random, |_| Some((network(1), 1))), None);
    }

    #[test]
    fn who_has_very_many_networks_goes_by_what_stands_above_them() {
        let mut random = Rng::with_seed(1);
        let v6 = |high: u16, number: usize| {
            let mut address = [0x26; 16];
            address[2..4].copy_from_slice(&high.to_be_bytes());
            address[4..6].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
            Endpoint::<16>::new(address, 1).network_of_kind()
        };
        let look = |number: usize| {
            let one = v6(9, number % 60_000);
            Some((
                if number.is_multiple_of(2) { one } else { v6(u16::try_from(number).unwrap(), 1) },
                1,
            ))
        };
        for _ in 0..1000 {
            let gone = overrepresented(60_000, None, &mut random, look).unwrap();
            assert!(gone.is_multiple_of(2) || gone == 9, "{gone}");
        }
    }
}
