//! Divides the number of peers wanted between the two families of one response.

use std::net::IpAddr;

use fastrand::Rng;

use crate::store::{AnnounceResult, PeerBuffers};
use crate::types::{Family, PeerKind};

/// Removes peers from `room` at random until both IP families together have at most `wanted`. Each
/// family gets its share of the swarm, so that every peer is handed out about equally often. But
/// the client's own family, which is certainly reachable for it, gets at least a quarter of
/// `wanted` and the other at least an eighth, if they have that many: a large family does not crowd
/// out a small one.
#[inline]
pub(super) fn fit(
    room: &mut PeerBuffers<'_>,
    result: &mut AnnounceResult,
    wanted: usize,
    client: IpAddr,
    random: &mut Rng,
) {
    let AnnounceResult { bytes, available, .. } = result;
    let chosen = |kind: PeerKind| bytes[kind as usize] / kind.bytes();
    let (v4, v6) = (chosen(PeerKind::V4), chosen(PeerKind::V6));
    if v4 == 0 || v6 == 0 || v4 + v6 <= wanted {
        return; // always true over UDP, where one family is requested
    }
    let as_v4 = FamilyPeers { chosen: v4, of: available[PeerKind::V4 as usize] };
    let as_v6 = FamilyPeers { chosen: v6, of: available[PeerKind::V6 as usize] };
    let keep_v4 = match Family::of(client) {
        Family::V4 => share(as_v4, as_v6, wanted),
        Family::V6 => wanted - share(as_v6, as_v4, wanted),
    };
    let keep_v6 = wanted - keep_v4;
    bytes[PeerKind::V4 as usize] = thin::<{ PeerKind::V4.bytes() }>(room.v4, v4, keep_v4, random);
    bytes[PeerKind::V6 as usize] = thin::<{ PeerKind::V6.bytes() }>(room.v6, v6, keep_v6, random);
}

/// One family's peers.
#[derive(Clone, Copy)]
struct FamilyPeers {
    /// Peers chosen, at most as many as wanted.
    chosen: usize,
    /// The number of candidates in the swarm.
    of: usize,
}

/// The part of `wanted` for the client's own family, where more peers were chosen in total.
fn share(own: FamilyPeers, other: FamilyPeers, wanted: usize) -> usize {
    let least = own.chosen.min(wanted / 4).max(wanted.saturating_sub(other.chosen));
    let most = own.chosen.min(wanted - other.chosen.min(wanted / 8));
    (wanted * own.of).div_ceil(own.of + other.of).clamp(least, most)
}

/// Keeps `keep` of the `count` peers, all equally likely, at the front; returns their bytes.
fn thin<const STRIDE: usize>(
    peers: &mut [u8],
    count: usize,
    keep: usize,
    random: &mut Rng,
) -> usize {
    for last in (keep..count).rev() {
        let gone = random.usize(..=last);
        peers.copy_within(last * STRIDE..(last + 1) * STRIDE, gone * STRIDE);
    }
    keep * STRIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENTS: [IpAddr; 2] =
        [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];

    /// The peers left of `v4` and `v6` peers, each marked by its first byte, in a swarm without
    /// others.
    fn left(v4: usize, v6: usize, wanted: usize, client: IpAddr, seed: u64) -> [Vec<u8>; 2] {
        left_of([v4, v6], [v4, v6], wanted, client, seed)
    }

    /// The peers left of `[v4, v6]` peers that were chosen from a given number of candidates.
    fn left_of(
        [v4, v6]: [usize; 2],
        available: [usize; 2],
        wanted: usize,
        client: IpAddr,
        seed: u64,
    ) -> [Vec<u8>; 2] {
        let mark = |at: usize| u8::try_from(at).unwrap();
        let mut room_v4: Vec<u8> = (0..v4).flat_map(|at| [mark(at); 6]).collect();
        let mut room_v6: Vec<u8> = (0..v6).flat_map(|at| [mark(at); 18]).collect();
        let mut result = AnnounceResult {
            bytes: [room_v4.len(), room_v6.len(), 0],
            available: [available[0], available[1], 0],
            ..AnnounceResult::default()
        };
        let mut room = PeerBuffers { v4: &mut room_v4, v6: &mut room_v6, web: &mut [] };
        fit(&mut room, &mut result, wanted, client, &mut Rng::with_seed(seed));
        let bytes = result.bytes;
        let firsts = |peers: &[u8], stride| {
            assert!(peers.chunks_exact(stride).all(|it| it.iter().all(|byte| *byte == it[0])));
            peers.iter().step_by(stride).copied().collect()
        };
        [firsts(&room_v4[..bytes[0]], 6), firsts(&room_v6[..bytes[1]], 18)]
    }

    #[test]
    fn no_family_starves_and_nothing_wanted_is_withheld() {
        for client in CLIENTS {
            for wanted in 1..40 {
                for (v4, v6) in (0..=wanted).flat_map(|v4| (0..=wanted).map(move |v6| (v4, v6))) {
                    let [mut kept_v4, mut kept_v6] = left(v4, v6, wanted, client, 3);
                    let total = kept_v4.len() + kept_v6.len();
                    assert_eq!(total, wanted.min(v4 + v6), "{v4} {v6} {wanted}");
                    let [least_v4, least_v6] = match Family::of(client) {
                        Family::V4 => [wanted / 4, wanted / 8],
                        Family::V6 => [wanted / 8, wanted / 4],
                    };
                    assert!(kept_v4.len() >= v4.min(least_v4), "{v4} {v6} {wanted}");
                    assert!(kept_v6.len() >= v6.min(least_v6), "{v4} {v6} {wanted}");
                    kept_v4.sort_unstable();
                    kept_v4.dedup();
                    kept_v6.sort_unstable();
                    kept_v6.dedup();
                    assert_eq!(kept_v4.len() + kept_v6.len(), total, "distinct");
                }
            }
        }
    }

    #[test]
    fn families_of_one_size_share_evenly_and_the_askers_own_takes_the_odd_peer() {
        let lengths = |client, wanted| left(wanted, wanted, wanted, client, 1).map(|it| it.len());
        assert_eq!(lengths(CLIENTS[0], 50), [25, 25]);
        assert_eq!(lengths(CLIENTS[0], 1), [1, 0]);
        assert_eq!(lengths(CLIENTS[1], 1), [0, 1]);
        assert_eq!(lengths(CLIENTS[0], 5), [3, 2]);
        assert_eq!(left(50, 4, 50, CLIENTS[0], 1).map(|it| it.len()), [46, 4]);
    }

    #[test]
    fn families_far_above_what_is_wanted_share_by_their_sizes() {
        for (available, client, expected) in [
            ([10_000, 60], CLIENTS[0], [44, 6]),
            ([10_000, 60], CLIENTS[1], [38, 12]),
            ([60, 10_000], CLIENTS[0], [12, 38]),
            ([6_000, 4_000], CLIENTS[0], [30, 20]),
            ([6_000, 4_000], CLIENTS[1], [30, 20]),
            ([10_000, 3], CLIENTS[0], [47, 3]),
        ] {
            let chosen = available.map(|it: usize| it.min(50));
            let kept = left_of(chosen, available, 50, client, 1).map(|it| it.len());
            assert_eq!(kept, expected, "{available:?} {client}");
        }
    }

    #[test]
    fn every_peer_is_as_likely_to_stay_as_any_other() {
        let mut hits = [0_u32; 20];
        for seed in 0..20_000 {
            let [v4, _] = left(20, 20, 20, CLIENTS[0], seed);
            v4.iter().for_each(|it| hits[usize::from(*it)] += 1);
        }
        // 20 000 rounds of 10 out of 20: mean 10 000, deviation 71; six of them never happen.
        assert!(hits.iter().all(|it| it.abs_diff(10_000) < 430), "{hits:?}");
    }
}
