//! Caps on the share of one network in a response, if the swarm has peers of other networks.
//!
//! The owner of one address can announce sixty thousand ports of it. So a response carries at most
//! two peers of one IPv4 address and one of an IPv6 /64, and at most an eighth of it (or as many as
//! of one host) from one /24 or /48. Public addresses only: in a local network many peers share
//! one. The store does not remember which peers were exempt from limits. This never reduces the
//! number of peers in a response, because without other peers it is filled with peers above the
//! cap.
//!
//! Responses are short and nearly always within the caps, so that case is cheap to detect: a table
//! of small counts, shared by many networks, and an exact check only of peers with a suspicious
//! count.

use fastrand::Rng;

use super::peer::Endpoint;
use super::sampling::CHOICE_MAX;

/// The most peers in a response of the same host or network.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetworkCaps {
    /// From one IPv4 address or IPv6 /64.
    host: usize,
    /// From one /24 or /48.
    network: usize,
    /// Whether some of the candidates are not public, and so under no cap.
    mixed: bool,
}

impl NetworkCaps {
    /// The caps of a response of `count` peers; `None` where nothing can exceed them.
    #[inline]
    pub(super) fn of<const ADDRESS: usize>(count: usize, mixed: bool) -> Option<Self> {
        let host = if ADDRESS == 4 { 2 } else { 1 };
        let capped = Endpoint::<ADDRESS>::HAS_PREFIX && count > host;
        capped.then(|| Self { host, network: host.max(count / 8), mixed })
    }

    /// Whether an endpoint is under no cap.
    #[inline]
    fn passes<const ADDRESS: usize>(self, endpoint: &Endpoint<ADDRESS>) -> bool {
        self.mixed && !endpoint.is_public()
    }

    /// Whether `places` keep the caps. Rarely returns false although they do.
    #[inline]
    pub(super) fn hold<const ADDRESS: usize>(self, places: &[Endpoint<ADDRESS>]) -> bool {
        // At 30 peers, a collision in the small table leads to an exact check in one response of
        // sixteen.
        if ADDRESS == 4 && places.len() <= 32 {
            self.hold_by::<ADDRESS, 256>(places)
        } else {
            self.hold_by::<ADDRESS, 2048>(places)
        }
    }

    #[inline]
    fn hold_by<const ADDRESS: usize, const BINS: usize>(
        self,
        places: &[Endpoint<ADDRESS>],
    ) -> bool {
        let mut counts = [0_u8; BINS];
        let mut looks = LOOKS_MAX;
        for (at, place) in places.iter().enumerate() {
            if self.passes(place) {
                continue;
            }
            let count = &mut counts[slot(place.network(), SPREADING, BINS)];
            *count += 1; // the loop ends long before it overflows
            if usize::from(*count) > self.host {
                if looks == 0 || !self.admits_after(&places[..at], place) {
                    return false;
                }
                looks -= 1;
            }
        }
        true
    }

    /// Whether `place` keeps the caps together with those before it.
    #[cold]
    fn admits_after<const ADDRESS: usize>(
        self,
        before: &[Endpoint<ADDRESS>],
        place: &Endpoint<ADDRESS>,
    ) -> bool {
        let of_host = before.iter().filter(|it| it.host() == place.host()).count();
        let of_network = before.iter().filter(|it| it.network() == place.network()).count();
        of_host < self.host && of_network < self.network
    }

    /// Replaces peers above the caps by `replacements`. If there are too few, the caps of networks
    /// are exceeded before those of hosts.
    #[cold]
    pub(super) fn enforce<const ADDRESS: usize>(
        self,
        places: &mut [Endpoint<ADDRESS>],
        random: &mut Rng,
        mut replacements: impl Replacements,
        candidate: impl Fn(usize) -> Endpoint<ADDRESS>,
    ) {
        let mut counts = ResponseCounts::new(self, random);
        let mut kept = partition(places, |it| counts.admits(it));
        // Candidates whose network is at its cap, but not their host: they fill the remaining
        // places.
        let (mut spares, mut spare) = ([0; CHOICE_MAX], 0);
        while kept < places.len() {
            let Some(number) = replacements.next(random) else { break };
            let endpoint = candidate(number as usize);
            if counts.admits(&endpoint) {
                replacements.take(number);
                places[kept] = endpoint;
                kept += 1;
            } else if spare < places.len() - kept
                && !spares[..spare].contains(&number)
                && counts.admits_host(&endpoint)
            {
                spares[spare] = number;
                spare += 1;
            }
        }
        kept += partition(&mut places[kept..], |it| counts.admits_host(it));
        for (place, number) in places[kept..].iter_mut().zip(&spares[..spare]) {
            *place = candidate(*number as usize);
        }
    }
}

/// Moves the elements that pass to the front; returns their number.
fn partition<T>(all: &mut [T], mut passes: impl FnMut(&T) -> bool) -> usize {
    let mut front = 0;
    for at in 0..all.len() {
        if passes(&all[at]) {
            all.swap(front, at);
            front += 1;
        }
    }
    front
}

/// The numbers of peers of each host and network in a response.
struct ResponseCounts {
    caps: NetworkCaps,
    hosts: PrefixCounts,
    networks: PrefixCounts,
}

impl ResponseCounts {
    fn new(caps: NetworkCaps, random: &mut Rng) -> Self {
        let key = random.u64(..) | 1;
        let [hosts, networks] = [(); 2].map(|()| PrefixCounts::new(key));
        Self { caps, hosts, networks }
    }

    /// Counts one more peer, if both caps allow it; returns whether they do.
    fn admits<const ADDRESS: usize>(&mut self, endpoint: &Endpoint<ADDRESS>) -> bool {
        if self.caps.passes(endpoint) {
            return true;
        }
        let admitted = usize::from(*self.networks.of(endpoint.network())) < self.caps.network
            && self.admits_host(endpoint);
        *self.networks.of(endpoint.network()) += u16::from(admitted);
        admitted
    }

    /// Counts one more peer, if the cap of its host allows it; returns whether it does.
    fn admits_host<const ADDRESS: usize>(&mut self, endpoint: &Endpoint<ADDRESS>) -> bool {
        let host = self.hosts.of(endpoint.host());
        let admitted = usize::from(*host) < self.caps.host;
        *host += u16::from(admitted);
        admitted
    }
}

/// Candidates besides those that were chosen.
pub(super) trait Replacements {
    /// The number of another candidate, which is not in the response.
    fn next(&mut self, random: &mut Rng) -> Option<u32>;
    /// Records that the candidate is in the response now.
    fn take(&mut self, number: u32);
}

/// The most suspicious counts checked one by one: with more of them, counting exactly is cheaper.
const LOOKS_MAX: u32 = 4;

/// The multiplier of Knuth's multiplicative hash: the fraction of the golden ratio.
const SPREADING: u64 = 0x9e37_79b9_7f4a_7c15;

/// One of `slots` slots, a power of two, for a prefix.
#[inline]
fn slot(prefix: u64, key: u64, slots: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the slot has as many bits as there are")]
    let slot = (prefix.wrapping_mul(key) >> (u64::BITS - slots.ilog2())) as usize;
    slot
}

/// Twice as many as there can be prefixes: those of a response, and of as many that replace them.
const COUNTED_SLOTS: usize = CHOICE_MAX * 4;

/// How often each prefix is in the response: an open-addressed table. Every call has its own key,
/// so addresses that collide in it cannot be chosen.
struct PrefixCounts {
    key: u64,
    prefixes: [u64; COUNTED_SLOTS],
    counts: [u16; COUNTED_SLOTS],
}

impl PrefixCounts {
    fn new(key: u64) -> Self {
        Self { key, prefixes: [0; COUNTED_SLOTS], counts: [0; COUNTED_SLOTS] }
    }

    /// The count of a prefix. A slot is occupied once its count is above 0.
    fn of(&mut self, prefix: u64) -> &mut u16 {
        let mut at = slot(prefix, self.key, COUNTED_SLOTS);
        while self.counts[at] != 0 && self.prefixes[at] != prefix {
            at = (at + 1) % COUNTED_SLOTS;
        }
        self.prefixes[at] = prefix;
        &mut self.counts[at]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::peer::{PeerMeta, PeerRecord, Role};
    use super::super::sampling::{CandidatePool, CapScope, write_sample};
    use super::*;
    use crate::time::Now;

    fn record<const ADDRESS: usize>(address: [u8; ADDRESS], port: u16) -> PeerRecord<ADDRESS> {
        PeerRecord::new(Endpoint::new(address, port), PeerMeta::new(Now::from_s(0), Role::Leecher))
    }

    /// The responses of `rounds` choices of `want` peers from the pool.
    fn responses<const ADDRESS: usize>(
        runs: [&[PeerRecord<ADDRESS>]; 2],
        capped: CapScope,
        want: usize,
        rounds: u64,
    ) -> Vec<Vec<Endpoint<ADDRESS>>> {
        let response = |seed| {
            let mut out = vec![0; want * (ADDRESS + 2)];
            let pool = CandidatePool { runs, own: None, capped };
            let written = write_sample(&pool, &mut Rng::with_seed(seed), &mut out);
            let peers = out[..written].chunks_exact(ADDRESS + 2).map(|peer| {
                let (address, port) = peer.split_at(ADDRESS);
                Endpoint::new(address.try_into().unwrap(), u16::from_be_bytes([port[0], port[1]]))
            });
            peers.collect()
        };
        (0..rounds).map(response).collect()
    }

    /// The most peers of one host, and of one network, in a response.
    fn most<const ADDRESS: usize>(response: &[Endpoint<ADDRESS>]) -> [usize; 2] {
        let [mut hosts, mut networks] = [(); 2].map(|()| BTreeMap::<u64, usize>::new());
        for peer in response.iter().filter(|peer| peer.is_public()) {
            *hosts.entry(peer.host()).or_default() += 1;
            *networks.entry(peer.network()).or_default() += 1;
        }
        [hosts, networks].map(|it| it.into_values().max().unwrap_or(0))
    }

    /// Every response is full, of distinct peers, and has at most so many of one host and network.
    fn check<const ADDRESS: usize>(
        responses: &[Vec<Endpoint<ADDRESS>>],
        want: usize,
        caps: [usize; 2],
    ) {
        for response in responses {
            let bytes = |it: &Endpoint<ADDRESS>| zerocopy::IntoBytes::as_bytes(it).to_vec();
            let distinct: BTreeSet<_> = response.iter().map(bytes).collect();
            assert_eq!([response.len(), distinct.len()], [want; 2]);
            let [host, network] = most(response);
            assert!(host <= caps[0] && network <= caps[1], "{host} {network}");
        }
    }

    #[test]
    fn one_address_with_many_ports_gets_two_places() {
        let mut all: Vec<_> = (0..900).map(|port| record([20, 0, 0, 1], port + 1)).collect();
        all.extend((0..60).map(|at| record([30, 0, at, 1], 1)));
        check(&responses([&all, &[]], CapScope::All, 30, 200), 30, [2, 3]);
        check(&responses([&all, &[]], CapScope::All, 50, 200), 50, [2, 6]);
        check(&responses([&all, &[]], CapScope::All, 3, 200), 3, [2, 2]);
        // In a large swarm not every candidate is tried; here a third are other hosts.
        let mut all: Vec<_> = (0..20_000).map(|port| record([20, 0, 0, 1], port + 1)).collect();
        all.extend((0..10_000_u16).map(|at| record([30, (at >> 8) as u8, at as u8, 1], 1)));
        check(&responses([&all, &[]], CapScope::All, 50, 200), 50, [2, 6]);
        check(&responses([&all, &[]], CapScope::All, 200, 50), 200, [2, 25]);
    }

    #[test]
    fn one_network_with_many_hosts_gets_an_eighth() {
        let mut all: Vec<_> = (0..=255).map(|host| record([20, 0, 0, host], 1)).collect();
        all.extend((0..100).map(|at| record([30, 0, at, 1], 1)));
        check(&responses([&all, &[]], CapScope::All, 50, 200), 50, [1, 6]);
        let other = |at: u8| {
            let mut address = [0x20; 16];
            address[5] = at;
            record(address, 1)
        };
        let host = |at: u8| {
            let mut address = [0x21; 16];
            (address[7], address[15]) = (at / 8, at); // 8 addresses in each /64 of a /48
            record(address, 1)
        };
        let all: Vec<_> = (0..240).map(host).chain((0..80).map(other)).collect();
        check(&responses([&all, &[]], CapScope::All, 40, 200), 40, [1, 5]);
        check(&responses([&all, &[]], CapScope::All, 7, 200), 7, [1, 1]);
    }

    #[test]
    fn where_all_are_of_few_networks_no_host_gets_more_for_it() {
        let honest = |at: u16| record([20, 0, (at >> 8) as u8, at as u8], 1);
        let mut all: Vec<_> = (0..1000).map(honest).collect();
        all.extend((0..600).map(|port| record([20, 0, 0, 7], port + 2)));
        check(&responses([&all, &[]], CapScope::All, 50, 200), 50, [2, 50]);
        check(&responses([&all, &[]], CapScope::All, 200, 50), 200, [2, 200]);
        check(&responses([&all[..200], &all[1000..1100]], CapScope::All, 50, 200), 50, [2, 50]);
    }

    #[test]
    fn where_there_are_no_others_responses_are_full_all_the_same() {
        let all: Vec<_> = (0..1000).map(|port| record([20, 0, 0, 1], port + 1)).collect();
        check(&responses([&all, &[]], CapScope::All, 50, 100), 50, [50, 50]);
        let some = [record([30, 0, 0, 1], 1), record([40, 0, 0, 1], 1)];
        for response in responses([&all, &some], CapScope::All, 50, 100) {
            let others = response.iter().filter(|it| it.host() >> 56 != 20).count();
            assert_eq!((response.len(), others), (50, 2), "whoever else there is comes in");
        }
    }

    #[test]
    fn local_peers_are_under_no_cap() {
        let local: Vec<_> = (0..900).map(|port| record([10, 0, 0, 1], port + 1)).collect();
        let public: Vec<_> = (0..900).map(|port| record([20, 0, 0, 1], port + 1)).collect();
        let alone = responses([&local, &[]], CapScope::None, 30, 10);
        assert!(alone.iter().all(|it| it.len() == 30));
        check(&responses([&local, &public], CapScope::Public, 30, 100), 30, [2, 2]);
    }

    #[test]
    fn whatever_breaks_a_cap_is_seen() {
        let mut random = Rng::with_seed(1);
        let mut seen = [0; 2];
        for round in 0..20_000 {
            let count = random.usize(3..=CHOICE_MAX);
            let shift = random.u8(3..14);
            let peer = |_| {
                let network = random.u16(..) >> shift;
                Endpoint::new([20, (network >> 8) as u8, network as u8, random.u8(..4)], 1)
            };
            let response: Vec<Endpoint<4>> = (0..count).map(peer).collect();
            let [host, network] = most(&response);
            let keeps = host <= 2 && network <= 2.max(count / 8);
            let holds = NetworkCaps::of::<4>(count, round % 2 == 0).unwrap().hold(&response);
            assert!(keeps || !holds, "{host} {network} of {count}");
            seen[usize::from(keeps)] += 1;
        }
        assert!(seen[0] > 1000 && seen[1] > 1000, "{seen:?}");
    }
}
