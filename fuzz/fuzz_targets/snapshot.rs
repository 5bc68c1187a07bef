//! Arbitrary bytes as a snapshot.
//!
//! The checksums of the input are corrected first, as far as its lengths allow, so that the code
//! behind them is reached. Invariants checked: nothing panics; a file that counts as complete
//! yields all its torrents and passkeys; restored swarms are saved again as a complete snapshot.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use skep::access::passkey::{Limits, PasskeyTable, Record};
use skep::access::sessions::SavedKey;
use skep::snapshot::{Block, Restore, Snapshot, VERSION, Writer};
use skep::store::{ExportBatch, Options, Store, StoreExport};
use skep::time::Now;

/// Bytes of the header.
const HEADER: usize = 64;
/// Bytes of a block's head.
const HEAD: usize = 16;

fn put(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes) as usize
}

/// Corrects the checksums, and sets table and footer to match the blocks.
fn mend(input: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = input.to_vec();
    (bytes.len() >= HEADER).then_some(())?;
    let crc = crc32c::crc32c(&bytes[..HEADER - 4]);
    put(&mut bytes, HEADER - 4, crc);
    let (mut at, mut table, mut blocks) = (HEADER, Vec::new(), 0_u64);
    let (mut torrents, mut peers) = (0_u64, 0_u64);
    while bytes.len() - at >= HEAD {
        let length = u32_at(&bytes, at + 4);
        if length > bytes.len() - at - HEAD {
            break;
        }
        let payload = &bytes[at + HEAD..at + HEAD + length];
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[at..at + HEAD - 4]), payload);
        if u32_at(&bytes, at) == 1 {
            torrents += u32_at(&bytes, at + 8) as u64;
            peers += count_peers(payload);
        }
        put(&mut bytes, at + HEAD - 4, crc);
        table.extend_from_slice(&(at as u64).to_le_bytes());
        table.extend_from_slice(&bytes[at + 4..at + 8]);
        table.extend_from_slice(&crc.to_le_bytes());
        (at, blocks) = (at + HEAD + length, blocks + 1);
    }
    bytes.truncate(at);
    let mut footer = Vec::new();
    for number in [at as u64, blocks, torrents, peers, 3] {
        footer.extend_from_slice(&number.to_le_bytes());
    }
    footer.extend_from_slice(&crc32c::crc32c(&table).to_le_bytes());
    let crc = crc32c::crc32c(&footer);
    footer.extend_from_slice(&crc.to_le_bytes());
    footer.extend_from_slice(b"skepends");
    bytes.extend_from_slice(&table);
    bytes.extend_from_slice(&footer);
    Some(bytes)
}

/// How many peers the heads of a payload's torrents name.
fn count_peers(mut payload: &[u8]) -> u64 {
    let mut peers = 0;
    while payload.len() >= 28 {
        let count = |at: usize| u16::from_le_bytes([payload[at], payload[at + 1]]) as usize;
        let (v4, v6) = (count(24), count(26));
        let length = 28 + if v4 + v6 == 0 { 4 } else { v4 * 9 + v6 * 21 };
        let Some(rest) = payload.get(length..) else { break };
        peers += (v4 + v6) as u64;
        payload = rest;
    }
    peers
}

fn judge(bytes: &[u8]) {
    let Ok(mut snapshot) = Snapshot::open(Cursor::new(bytes)) else { return };
    let contents = *snapshot.contents();
    let (mut block, mut peers, keys) = (Block::default(), 0, PasskeyTable::default());
    while snapshot.next(&mut block).expect("it was read before") {
        for torrent in block.torrents() {
            let torrent = torrent.expect("it was read before");
            peers += (torrent.v4.len() + torrent.v6.len()) as u64;
        }
        for key in block.passkeys() {
            let key = key.expect("it was read before");
            let (name, limits, totals) = (String::new(), Limits::default(), key.totals);
            keys.insert(key.digest, &Record { name, limits, issued_s: 0, totals });
        }
    }
    assert_eq!(peers, contents.peers);
    let header = snapshot.header().clone();
    assert_eq!(header.version, VERSION);
    snapshot.rewind().expect("it is memory");
    let store = Store::new(Options { shards: 2, seed: Some(1) });
    let now = Now::from_s(header.at_s.min(4_000_000_000).saturating_add(60));
    keys.await_sessions();
    let mut restore = Restore::new(snapshot, 3900);
    while restore.step(&store, now).expect("it was read before") {
        restore.restore_sessions(&keys, now).expect("it was read before");
    }
    keys.end_restoring();
    let restored = restore.restored();
    let all = restored.peers + restored.known + restored.expired + restored.refused;
    assert_eq!(all, contents.peers);
    let totals = store.totals();
    let held: u64 = totals.seeders.iter().chain(&totals.leechers).sum();
    assert_eq!(held, restored.peers);

    let mut writer = Writer::new(Vec::new(), &header).expect("it is memory");
    let (mut export, mut batch) = (StoreExport::new(now), ExportBatch::default());
    while store.export(&mut export, &mut batch) {
        writer.add(&batch).expect("it is memory");
    }
    let mut sessions = Vec::new();
    for key in keys.all() {
        let totals = key.save(now, &mut sessions).expect("it was restored");
        let saved = SavedKey { digest: *key.digest(), totals, sessions: &sessions };
        writer.add_key(&saved).expect("it is memory");
    }
    let (bytes, written) = writer.finish(1).expect("it is memory");
    assert_eq!(written.peers, held);
    assert!(Snapshot::open(Cursor::new(bytes)).is_ok());
}

fuzz_target!(|input: &[u8]| {
    judge(input);
    mend(input).iter().for_each(|it| judge(it));
});
