//! Stores of known contents, and snapshots of them in memory: for the tests of the format, of the
//! folder, and of restoring.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use skep::snapshot::{Header, Restore, Snapshot, TrackerId, VERSION, Writer};
use skep::store::{
    ExportBatch, ListedPeer, Options, PeerAnnounce, PeerBuffers, PeerChange, RestoreCounts, Role,
    SavedPeerV4, SavedPeerV6, Store, StoreExport,
};
use skep::time::Now;
use skep::types::{Contact, InfoHash, ScrapeEntry};

/// When tests begin.
pub(crate) const START: Now = Now::from_s(1_800_000_000);

/// Who writes snapshots in tests.
pub(crate) const TRACKER: TrackerId = *b"sixteen bytes us";

/// A peer's life in tests, in seconds.
pub(crate) const AGE_S_MAX: u32 = 3900;

pub(crate) fn empty_store(seed: u64) -> Store {
    Store::new(Options { shards: 4, seed: Some(seed) })
}

pub(crate) fn hash(number: u32) -> InfoHash {
    let mut info_hash = [7; 20];
    info_hash[..4].copy_from_slice(&number.to_be_bytes());
    InfoHash(info_hash)
}

/// An announce, as far as tests of snapshots care.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) torrent: u32,
    pub(crate) address: IpAddr,
    pub(crate) contact: Contact,
    pub(crate) change: PeerChange,
}

pub(crate) fn announce(store: &Store, now: Now, said: Said) {
    let Said { torrent, address, contact, change } = said;
    let info_hash = hash(torrent);
    let visit = PeerAnnounce { info_hash: &info_hash, address, contact, change, capped: false };
    store.announce(now, &visit, &mut PeerBuffers::default(), &mut Rng::with_seed(1));
}

/// A peer joins.
pub(crate) fn join(store: &Store, now: Now, torrent: u32, address: IpAddr, role: Role) {
    let change = PeerChange::Present { role, completed: false };
    announce(store, now, Said { torrent, address, contact: Contact::Port(6881), change });
}

/// The `number`th of many public IPv4 addresses.
pub(crate) fn v4(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0800_0000 + number).into()
}

/// The `number`th of many public IPv6 addresses.
pub(crate) fn v6(number: u32) -> IpAddr {
    Ipv6Addr::from((0x2600_u128 << 112) + (u128::from(number) << 64) + 1).into()
}

/// Any announce: of few torrents and addresses, so that they meet.
pub(crate) fn any_announce(random: &mut Rng, torrents: u32, addresses: u32) -> Said {
    let number = random.u32(..addresses);
    let address = match random.u8(..16) {
        0 => Ipv4Addr::new(10, 0, 0, 1).into(),
        1 => Ipv6Addr::LOCALHOST.into(),
        2..=5 => v6(number),
        _ => v4(number),
    };
    let change = match random.u8(..10) {
        0 | 1 => PeerChange::Stopped,
        2 | 3 => PeerChange::Present { role: Role::Seeder, completed: true },
        4 => PeerChange::Present { role: Role::Paused, completed: false },
        5 => PeerChange::Present { role: Role::Seeder, completed: false },
        _ => PeerChange::Present { role: Role::Leecher, completed: false },
    };
    let torrent = random.u32(..torrents).min(random.u32(..torrents));
    Said { torrent, address, contact: Contact::Port(2 + random.u16(..4)), change }
}

/// Many such announces over two hours; says when the last was.
pub(crate) fn fill(store: &Store, random: &mut Rng, announces: u32, torrents: u32) -> Now {
    let mut now = START;
    for _ in 0..announces {
        if random.u32(..announces) < 400 {
            now = now.plus_s(random.u64(..18));
        }
        announce(store, now, any_announce(random, torrents, announces / 8 + 1));
    }
    now
}

/// A snapshot's bytes.
pub(crate) fn snapshot_of(store: &Store, at: Now) -> Vec<u8> {
    snapshot_with(store, at, TRACKER, VERSION)
}

/// A snapshot's bytes, with another header.
pub(crate) fn snapshot_with(store: &Store, at: Now, tracker: TrackerId, version: u32) -> Vec<u8> {
    let header = Header { version, at_s: at.seconds(), tracker, build: "1.2.3".into() };
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    let (mut export, mut batch) = (StoreExport::new(at), ExportBatch::default());
    while store.export(&mut export, &mut batch) {
        writer.add(&batch).unwrap();
    }
    writer.finish(store.totals().completed).unwrap().0
}

/// Restores all of a snapshot.
pub(crate) fn restore(bytes: &[u8], store: &Store, now: Now) -> RestoreCounts {
    let snapshot = Snapshot::open(Cursor::new(bytes)).unwrap();
    let mut restore = Restore::new(snapshot, AGE_S_MAX);
    while restore.step(store, now).unwrap() {}
    *restore.restored()
}

/// A torrent as a snapshot has it: completed, seconds without peers, peers in order.
pub(crate) type Whole = (u32, u32, Vec<SavedPeerV4>, Vec<SavedPeerV6>);

/// All that a store exports, its torrents put together again.
pub(crate) fn exported(store: &Store, at: Now) -> BTreeMap<InfoHash, Whole> {
    let mut all = BTreeMap::<InfoHash, Whole>::new();
    let (mut export, mut batch) = (StoreExport::new(at), ExportBatch::default());
    while store.export(&mut export, &mut batch) {
        let (mut v4, mut v6) = (batch.v4.iter().copied(), batch.v6.iter().copied());
        for torrent in &batch.torrents {
            let (completed, empty_s, its_v4, its_v6) = all.entry(torrent.info_hash).or_default();
            *completed += torrent.completed;
            *empty_s += torrent.empty_s;
            its_v4.extend(v4.by_ref().take(torrent.v4));
            its_v6.extend(v6.by_ref().take(torrent.v6));
        }
        assert!(v4.next().is_none() && v6.next().is_none(), "every peer is somebody's");
    }
    for (_, _, v4, v6) in all.values_mut() {
        v4.sort_unstable();
        v6.sort_unstable();
    }
    all
}

/// What operators see of a store: counts and peers of each torrent.
pub(crate) fn shown(store: &Store, now: Now) -> Vec<(InfoHash, ScrapeEntry, Vec<ListedPeer>)> {
    let all = store.torrents_after(None, usize::MAX / 4, |_| true).into_iter();
    all.map(|listed| {
        let (_, mut peers) = store.torrent(&listed.info_hash, now, 0, usize::MAX / 4).unwrap();
        peers.sort_unstable_by_key(|it| it.address);
        (listed.info_hash, listed.counts, peers)
    })
    .collect()
}
