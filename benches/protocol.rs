//! The cost of decoding and encoding: an announce, a scrape of 74 torrents, BEP 41 options,
//! connection ids.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::protocol::udp::{self, Request, TransactionId, client};
use skep::time::Now;
use skep::types::{Event, InfoHash, PeerId, ScrapeEntry};

fn announce() -> Vec<u8> {
    let announcement = client::Announcement {
        info_hash: InfoHash([1; 20]),
        peer_id: PeerId([2; 20]),
        downloaded: 0,
        left: 1,
        uploaded: 0,
        event: Event::Started,
        numwant: 30,
        port: 6881,
        key: [0; 4],
    };
    let mut out = vec![0; udp::ANNOUNCE_BYTES];
    client::encode_announce(7, TransactionId([1; 4]), &announcement, &mut out);
    out.extend_from_slice(b"\x02\x09/announce");
    out
}

fn decode(criterion: &mut Criterion) {
    let datagram = announce();
    criterion.bench_function("decode/announce", |bencher| {
        bencher.iter(|| udp::decode(black_box(&datagram)).is_ok());
    });
    criterion.bench_function("decode/options", |bencher| {
        bencher.iter(|| match udp::decode(black_box(&datagram)) {
            Ok(Request::Announce(_, options)) => options.url_data().len(),
            _ => 0,
        });
    });
    let mut scrape = vec![0; udp::REQUEST_BYTES_MAX];
    let hashes = [InfoHash([3; 20]); udp::SCRAPE_HASHES_MAX];
    let bytes = client::encode_scrape(7, TransactionId([1; 4]), &hashes, &mut scrape);
    let mut out = [0; 1232];
    criterion.bench_function("scrape/74", |bencher| {
        bencher.iter(|| match udp::decode(black_box(&scrape[..bytes])) {
            Ok(Request::Scrape(head, hashes)) => {
                let entries = hashes.iter().map(|_| ScrapeEntry::default());
                udp::encode_scraped(head, entries, &mut out)
            }
            _ => 0,
        });
    });
}

fn connection_ids(criterion: &mut Criterion) {
    let now = Now::from_s(1_800_000_000);
    let source = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    for (name, algorithm) in
        [("siphash", Algorithm::SipHash), ("hmac-sha256", Algorithm::HmacSha256)]
    {
        let ids = ConnectionIds::new(&KeyPair { active: [1; KEY_BYTES], staging: None, algorithm });
        let id = ids.issue(now, source);
        criterion.bench_function(&format!("connection_id/{name}"), |bencher| {
            bencher.iter(|| ids.check(black_box(now), black_box(source), black_box(id)).is_ok());
        });
    }
}

criterion_group!(benches, decode, connection_ids);
criterion_main!(benches);
