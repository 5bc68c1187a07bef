//! Full scrapes: the body in every coding and framing, decoded by independent decoders; the limits.

use std::io::Read;

use bt_bencode::Value;

use super::*;
use crate::types::ScrapeEntry;

const NOW: Now = Now::from_s(1_800_000_000);

/// `count` torrents in ascending order.
fn torrents(count: u32) -> Vec<ListedTorrent> {
    let torrent = |at: u32| {
        let mut hash = [0xa5; 20];
        hash[..4].copy_from_slice(&at.to_be_bytes());
        let counts = ScrapeEntry { seeders: at, completed: 7, leechers: 2, downloaders: 1 };
        ListedTorrent { info_hash: InfoHash(hash), counts }
    };
    (0..count).map(torrent).collect()
}

fn scrape(count: u32, encoding: Encoding, chunked: bool) -> FullScrape {
    let all = torrents(count);
    let source = move |after: Option<&InfoHash>, count| {
        let from = after.map_or(0, |after| all.partition_point(|it| it.info_hash <= *after));
        all[from..].iter().take(count).copied().collect()
    };
    FullScrape::new(Arc::default(), Box::new(source), encoding, chunked).unwrap()
}

/// The whole body and its number of pieces.
fn body(count: u32, encoding: Encoding) -> (Vec<u8>, usize) {
    let mut scrape = scrape(count, encoding, false);
    let (mut whole, mut pieces) = (Vec::new(), 0);
    loop {
        let before = whole.len();
        let more = scrape.write_piece(&mut whole).unwrap();
        pieces += 1;
        assert!((1..=PIECE_BYTES_MAX).contains(&(whole.len() - before)));
        if !more {
            return (whole, pieces);
        }
    }
}

#[test]
fn every_torrent_is_there_in_every_coding() {
    // The last count is more than one page and not a multiple of the page size.
    for count in [0, 1, 200, 70_001] {
        let (plain, pieces) = body(count, Encoding::Identity);
        assert_eq!(pieces, plain.len().div_ceil(PIECE_BYTES_MAX));
        let Value::Dict(response) = bt_bencode::from_slice(&plain).unwrap() else { panic!() };
        let Value::Dict(files) = response.values().next().unwrap() else { panic!() };
        assert_eq!((response.len(), files.len()), (1, count as usize));
        for (torrent, (hash, counts)) in torrents(count).iter().zip(files) {
            assert_eq!(hash.as_slice(), torrent.info_hash.0);
            let expected = format!(
                "d8:completei{}e10:downloadedi7e11:downloadersi1e10:incompletei2ee",
                torrent.counts.seeders
            );
            assert_eq!(bt_bencode::to_vec(counts).unwrap(), expected.as_bytes());
        }
        let mut unzipped = Vec::new();
        let (gzip, _) = body(count, Encoding::Gzip);
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut unzipped).unwrap();
        assert!(unzipped == plain, "gzip of {count}");
        let (zstd, _) = body(count, Encoding::Zstd);
        assert!(zstd::decode_all(&zstd[..]).unwrap() == plain, "zstd of {count}");
    }
}

#[test]
fn chunks_join_to_the_same_body() {
    let mut scrape = scrape(5000, Encoding::Identity, true);
    let mut framed = Vec::new();
    while scrape.write_piece(&mut framed).unwrap() {}
    let (mut joined, mut rest) = (Vec::new(), &framed[..]);
    loop {
        let httparse::Status::Complete((head, length)) = httparse::parse_chunk_size(rest).unwrap()
        else {
            panic!("half a chunk");
        };
        let length = usize::try_from(length).unwrap();
        joined.extend_from_slice(&rest[head..head + length]);
        assert!(rest[head + length..].starts_with(b"\r\n"));
        rest = &rest[head + length + 2..];
        if length == 0 {
            break;
        }
    }
    assert!(rest.is_empty());
    assert!(joined == body(5000, Encoding::Identity).0);
}

#[test]
fn a_scrape_runs_alone_until_it_is_dropped() {
    let limits = Arc::new(FullScrapeLimits::default());
    let [a, b] = ["198.51.100.1", "198.51.100.2"].map(|it| it.parse().unwrap());
    limits.start(NOW, a, 300).unwrap();
    assert_eq!(limits.start(NOW, b, 300), Err(BUSY_S));
    let source = |_: Option<&InfoHash>, _| Vec::new();
    let running =
        FullScrape::new(limits.clone(), Box::new(source), Encoding::Identity, false).unwrap();
    assert_eq!(limits.start(NOW, b, 300), Err(BUSY_S));
    drop(running);
    assert_eq!(limits.start(NOW, b, 300), Ok(()));
}

#[test]
fn a_source_waits_and_has_all_of_its_prefix() {
    let limits = FullScrapeLimits::default();
    let start = |now, source: &str| {
        let started = limits.start(now, source.parse().unwrap(), 300);
        limits.end();
        started
    };
    assert_eq!(start(NOW, "198.51.100.1"), Ok(()));
    assert_eq!(start(NOW.plus_s(100), "198.51.100.1"), Err(200));
    assert_eq!(start(NOW.plus_s(100), "198.51.100.2"), Ok(()));
    assert_eq!(start(NOW.plus_s(300), "198.51.100.1"), Ok(()));
    assert_eq!(start(NOW, "2001:db8::1"), Ok(()));
    assert_eq!(start(NOW, "2001:db8::ffff:1"), Err(300));
    assert_eq!(start(NOW, "2001:db8:0:1::1"), Ok(()));
}

#[test]
fn the_table_of_sources_is_bounded_and_forgets() {
    let limits = FullScrapeLimits::default();
    let start = |now, at: u32| {
        let started = limits.start(now, IpAddr::from(at.to_be_bytes()), 300);
        limits.end();
        started
    };
    let count = u32::try_from(SOURCES_MAX).unwrap();
    (0..count).for_each(|at| assert_eq!(start(NOW, at), Ok(())));
    assert_eq!(start(NOW.plus_s(1), count), Err(300));
    assert_eq!(limits.lock().next_s.len(), SOURCES_MAX);
    assert_eq!(start(NOW.plus_s(300), count), Ok(()));
    assert_eq!(limits.lock().next_s.len(), 1);
}

#[test]
fn the_coding_is_the_one_that_the_client_likes_best() {
    for (accepted, expected) in [
        (&[][..], Encoding::Identity),
        (&[""], Encoding::Identity),
        (&["gzip"], Encoding::Gzip),
        (&["deflate, br"], Encoding::Identity),
        (&["*"], Encoding::Identity),
        (&["gzip, deflate, br, zstd"], Encoding::Zstd),
        (&["GZIP;q=1.0, zstd;q=0.5"], Encoding::Gzip),
        (&["gzip;q=0, zstd; q=0.0"], Encoding::Identity),
        (&["gzip;q=0.5, identity"], Encoding::Identity),
        (&["zstd;q=nonsense, gzip;q=0.001"], Encoding::Gzip),
        (&["deflate", "x-gzip"], Encoding::Gzip),
        (&["zstd;q=NaN"], Encoding::Identity),
        (&["zstd;q=2, gzip;q=-1"], Encoding::Identity),
    ] {
        assert_eq!(encoding_of(accepted.iter().map(|it| it.as_bytes())), expected, "{accepted:?}");
    }
}
