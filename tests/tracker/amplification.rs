//! A million datagrams from senders that never proved their address: none gets more bytes than it
//! brought, and what is not a well-formed request gets nothing at all (design, invariant 1).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use fastrand::Rng;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::protocol::udp::MAGIC;
use skep::store::{Options, Store, StoreTotals};
use skep::time::Now;
use skep::tracker::{self, Tracker};
use skep::types::{Action, Dropped};

/// Random bytes; most of them dressed up as a request, none with an id of ours.
fn datagram(random: &mut Rng, bytes: &mut [u8; 2048]) -> usize {
    random.fill(bytes);
    if random.bool() {
        bytes[..8].copy_from_slice(&MAGIC.to_be_bytes());
    }
    if random.u8(..4) > 0 {
        bytes[8..12].copy_from_slice(&random.u32(..4).to_be_bytes());
    }
    match random.u8(..4) {
        0 => random.usize(..=20),
        1 => random.usize(90..120),
        2 => 16 + 20 * random.usize(..=80) + random.usize(..2),
        _ => random.usize(..=2048),
    }
    .min(2048)
}

#[test]
fn a_million_unverified_datagrams_never_gain_a_byte() {
    for algorithm in [Algorithm::SipHash, Algorithm::HmacSha256] {
        let store = Arc::new(Store::new(Options { shards: 8, seed: Some(1) }));
        let options = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
        let keys = KeyPair { active: [7; KEY_BYTES], staging: Some([8; KEY_BYTES]), algorithm };
        let ids = Arc::new(ArcSwap::from_pointee(ConnectionIds::new(&keys)));
        let tracker = Tracker::new(Arc::clone(&store), options, 1, 0, 1);
        let mut frontend = UdpFrontend::new(tracker, ids);
        let mut random = Rng::with_seed(2026);
        let (mut bytes, mut out) = ([0; 2048], [0; RESPONSE_BYTES_MAX]);
        let mut connected = 0;
        for step in 0..500_000u64 {
            let length = datagram(&mut random, &mut bytes);
            let address = if random.bool() {
                Ipv4Addr::from(random.u32(..)).into()
            } else {
                Ipv6Addr::from(random.u128(..)).into()
            };
            let source = SocketAddr::new(address, random.u16(1..));
            let now = Now::from_s(1_800_000_000 + step / 1000);
            let datagram = &bytes[..length];
            (0..UdpFrontend::PREFETCH_STAGES).for_each(|stage| frontend.prefetch(stage, datagram));
            let verdict = frontend.handle(now, source, datagram, &mut out);
            let magic = length >= 16 && datagram[..8] == MAGIC.to_be_bytes();
            let connect = magic && datagram[8..12] == [0; 4];
            match verdict {
                Ok(answered) => {
                    assert!(connect, "only a connect is answered: {datagram:02x?}");
                    assert_eq!((answered.action, answered.bytes), (Action::Connect, 16));
                    assert!(answered.bytes <= length);
                    connected += 1;
                }
                Err(dropped) if length < 16 => assert_eq!(dropped, Dropped::TooShort),
                Err(_) => assert!(!connect, "every connect is answered"),
            }
        }
        assert!(connected > 30_000, "connects were among them");
        assert_eq!(store.totals(), StoreTotals::default(), "nothing was stored");
    }
}
