//! Queries of announces and scrapes, passed directly to their decoder.
//!
//! ```text
//! input  a query; its first 20 bytes are also tried as an info-hash in percent coding
//! ```
//!
//! Invariants checked: nothing panics; 20 bytes survive percent coding; unknown parameters at the
//! end do not change the result; a scrape never has too many torrents, and has them in order; if a
//! query is a valid announce, a scrape of it has the same torrent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep::protocol::http::{self, SCRAPE_HASHES_MAX};
use skep::types::InfoHash;

/// Percent coding in all its variants: either case of digits, plain bytes, a plus for a blank. The
/// byte itself selects the variant.
fn coded(bytes: &[u8; 20]) -> Vec<u8> {
    let code = |byte: &u8| match byte {
        b'a'..=b'z' | b'0'..=b'9' => vec![*byte],
        b' ' => vec![b'+'],
        other if other % 2 == 0 => format!("%{other:02x}").into_bytes(),
        other => format!("%{other:02X}").into_bytes(),
    };
    bytes.iter().flat_map(code).collect()
}

fuzz_target!(|query: &[u8]| {
    let mut all = Vec::new();
    let scraped = http::scrape(query, &mut all);
    assert!(all.len() <= SCRAPE_HASHES_MAX);
    assert!(scraped.is_err() || all.windows(2).all(|it| it[0] < it[1]), "ascending, distinct");
    let announced = http::announce(query);
    if let Ok(announce) = announced {
        assert_eq!(scraped, Ok(()));
        assert_eq!(all, [announce.info_hash]);
        let more = [query, b"&ipv4=None&key=%zz&&=&corrupt=0"].concat();
        assert_eq!(http::announce(&more), Ok(announce));
    }
    if let Some(bytes) = query.first_chunk::<20>() {
        assert_eq!(http::decode_20(&coded(bytes)), Ok(*bytes));
        let query = [b"info_hash=", &coded(bytes)[..]].concat();
        assert_eq!(http::scrape(&query, &mut all), Ok(()));
        assert_eq!(all, [InfoHash(*bytes)]);
    }
});
