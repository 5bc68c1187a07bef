//! Torrents without peers, kept for their counts alone, go before anybody is refused.

use super::*;

/// Fills a store with torrents that nobody is in, until memory is short; says how many.
fn fill_with_peerless(store: &Store) -> u32 {
    let mut peerless = 0;
    while !store.is_short_of_memory() {
        complete_by_two_networks(store, peerless);
        peerless += 1;
    }
    let before = store.totals();
    assert_eq!((before.torrents, before.active_torrents), (u64::from(peerless), 0));
    assert!(peerless > 10_000, "{peerless}");
    peerless
}

#[test]
fn what_has_no_peers_goes_before_anybody_is_refused() {
    const BUDGET: u64 = 2 << 20;
    let store = store(BUDGET, 0);
    let peerless = fill_with_peerless(&store);
    let honest = peerless / 4 * 3;
    for number in 0..honest {
        // All of different networks, as they come.
        let result = join(&store, 1 << 29 | number, 0x6000_0000 + (number << 8));
        assert_eq!(result.stored, Stored::Yes, "{number} of {honest}");
    }
    for number in 0..honest {
        assert_eq!(store.scrape(&numbered(1 << 29 | number)).leechers, 1, "{number}");
    }
    let (totals, usage) = (store.totals(), store.usage());
    assert_eq!(totals.active_torrents, u64::from(honest));
    assert_eq!(totals.torrents + usage.evicted, u64::from(peerless + honest));
    assert!(usage.evicted > u64::from(honest / 10) && usage.bytes <= BUDGET, "{usage:?}");
}

/// Peers of each torrent; of how many torrents that fit without peers one such comes; its peers, by
/// the numbers of torrent and peer.
type Shape<'a> = (u32, u32, &'a dyn Fn(u32, u32) -> (IpAddr, Contact));

/// Peers of which some take bytes beside a bucket: of IPv6, and the second one of a torrent, of
/// IPv4 and of WebRTC. (A new torrent of WebRTC is not stored at all while memory is short.)
#[test]
fn what_has_no_peers_goes_before_anybody_is_refused_who_takes_more_than_a_bucket() {
    const BUDGET: u64 = 2 << 20;
    let v4 = |number: u32, second: u32| {
        (v4(0x6000_0000 + (number << 9) + (second << 8)), Contact::Port(1))
    };
    let v6 = |number: u32, _: u32| (v6_of(number << 8, 1, 1), Contact::Port(1));
    let web = |number: u32, second: u32| {
        let name = Contact::Web(WebPeer(named(number)));
        (v4(number, 0).0, if second == 1 { name } else { Contact::Port(1) })
    };
    let shapes: [Shape<'_>; 3] = [(2, 4, &v4), (1, 4, &v6), (2, 8, &web)];
    for (at, (peers, part, peer)) in shapes.into_iter().enumerate() {
        let store = store(BUDGET, 0);
        let peerless = fill_with_peerless(&store);
        let mut random = Rng::with_seed(1);
        let honest = peerless / part;
        for (number, second) in (0..honest).flat_map(|it| (0..peers).map(move |peer| (it, peer))) {
            let (address, contact) = peer(number, second);
            let info_hash = &numbered(1 << 29 | number);
            let visit = PeerAnnounce { info_hash, address, contact, change: JOIN, capped: true };
            let result = store.announce(NOW, &visit, &mut PeerBuffers::default(), &mut random);
            assert_eq!(result.stored, Stored::Yes, "{at}: {number} of {honest}");
        }
        for number in 0..honest {
            assert_eq!(store.scrape(&numbered(1 << 29 | number)).leechers, peers, "{number}");
        }
        let (totals, usage) = (store.totals(), store.usage());
        assert!(totals.torrents > totals.active_torrents, "{at}: no more go than have to");
        assert!(usage.evicted > 0 && usage.bytes <= BUDGET, "{usage:?}");
    }
}

/// A WebRTC peer's name, of a network of its own.
fn named(number: u32) -> [u8; 16] {
    let mut name = [7; 16];
    name[..4].copy_from_slice(&number.to_be_bytes());
    name
}

#[test]
fn what_has_had_no_peers_for_longest_goes_first_for_bytes() {
    let store = store(2 << 20, 0);
    let later = NOW.plus_s(3600);
    let peerless = fill_with_peerless(&store);
    let recent: Vec<u32> = (0..200).map(|it| peerless + it).collect();
    store.allow(Budget::default()); // so that they are not on probation
    for number in &recent {
        for change in [JOIN, COMPLETE, LEAVE] {
            for network in [0x0701_0101, 0x0702_0101] {
                announce(&store, later, &numbered(*number), (v4(network), 1), change);
            }
        }
    }
    store.allow(Budget { bytes_max: 2 << 20, ..Budget::default() });
    let are_counted = |store: &Store| {
        recent.iter().filter(|it| store.scrape(&numbered(**it)).completed == 2).count()
    };
    assert_eq!(are_counted(&store), recent.len());
    let mut numbers = 0..peerless;
    while store.usage().evicted < u64::from(peerless / 3) {
        let number = numbers.next().unwrap();
        let peer = (v6_of(number << 8, 1, 1), 1);
        announce(&store, later, &numbered(1 << 29 | number), peer, JOIN);
    }
    // For a bucket, the oldest of a few goes.
    let left = are_counted(&store);
    assert!(left >= recent.len() / 5 * 4, "{left} of {}", recent.len());
}
