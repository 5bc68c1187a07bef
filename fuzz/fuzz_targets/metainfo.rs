//! Arbitrary bytes as a `.torrent` file.
//!
//! Invariants checked: nothing panics; a torrent has a hash, a piece length, and texts that occur
//! in the file; if an independent reader reads the file as a dictionary, it finds an info
//! dictionary in it.
#![no_main]

use bt_bencode::Value;
use libfuzzer_sys::fuzz_target;
use skep::client::metainfo::Metainfo;

fuzz_target!(|input: &[u8]| {
    let Ok(torrent) = Metainfo::parse(input) else { return };
    assert!(torrent.info_hash().is_some() && torrent.piece_length > 0);
    assert!(torrent.v1.is_some() || torrent.v2_cut() == torrent.info_hash());
    let stands = |text: &[u8]| text.is_empty() || input.windows(text.len()).any(|it| it == text);
    assert!(stands(torrent.name) && torrent.comment.is_none_or(stands));
    if let Ok(Value::Dict(read)) = bt_bencode::from_slice::<Value>(input.trim_ascii_end()) {
        assert!(read.keys().any(|it| it.as_slice() == b"info"));
    }
});
