//! Chooses the peer of a full swarm that a new peer replaces: a peer of an overrepresented network,
//! if there is one.
//!
//! The owner of an IPv6 /48 can announce a quarter of a million peers. If the longest silent peer
//! were always replaced, an attacker that refreshes its peers would replace all others by its own.
//! So up to [`DRAWN_MAX`] peers of the whole swarm are drawn at random, of every kind and scope. If
//! [`NETWORK_MIN`] or more of them are of one network, a peer of that network is replaced: of the
//! new peer's own network first, else of the network with most. If no network has that many, the
//! same holds for [`LARGE_NETWORK_MIN`] of one IPv6 /32 or IPv4 /16, against owners of many /48s.
//! Otherwise the longest silent of some peers of the new peer's kind is replaced, as in any swarm,
//! so that no family displaces another.
//!
//! The effect for a network with the share s of a full swarm: its next new peer replaces a peer of
//! another network only if fewer than [`NETWORK_MIN`] of the drawn peers are its own. The
//! probability is almost 1 while s is small, 2 % at 1/16, below 1 in 20 000 at 1/8, and below
//! 10^-30 at 1/2. So no network gets much above 1/8, and a network that holds more, because it
//! filled an empty swarm, replaces its own peers. Networks with a hundredth of a swarm or less are
//! rarely found (4 %), and those with a thousandth almost never (1 in 100 000).
//!
//! Local peers have no network and do not count. No state is kept per peer, and this code runs only
//! for full swarms.

use fastrand::Rng;

use super::peer::PeerNetwork;

/// The most peers drawn: four times as many as to find a long silent peer.
const DRAWN_MAX: usize = 128;
/// The number of drawn peers from which on a network is overrepresented: 1/32 if [`DRAWN_MAX`] are
/// drawn.
const NETWORK_MIN: usize = 4;
/// The number of drawn peers from which on an IPv6 /32 or IPv4 /16 is overrepresented: a quarter.
/// Large providers may legitimately have almost as many.
const LARGE_NETWORK_MIN: usize = 32;

/// A peer that was drawn.
#[derive(Clone, Copy, Debug, Default)]
struct DrawnPeer {
    network: PeerNetwork,
    /// Its index among all peers of the swarm.
    number: usize,
    age_s: u32,
}

/// The index of the peer to replace, if a network is overrepresented in a swarm of `len` peers.
/// `look` returns, for the index of a peer, its network and the seconds since its latest announce;
/// `None` for a peer that does not count. `newcomer` is the network of the new peer, if caps apply
/// to it.
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
        // One peer of each part of the swarm, so that no peer is drawn twice.
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

    /// The `number`th of many networks that share no /16.
    fn other(number: usize) -> PeerNetwork {
        network(0x2000_0000 + (u32::try_from(number).unwrap() << 16))
    }

    /// The probability that fewer than [`NETWORK_MIN`] of the drawn peers are of a network with
    /// this share.
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
