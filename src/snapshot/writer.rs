//! Encodes the store's export into the bytes of a snapshot: one block at a time, written as soon as
//! it is full.

use std::io::{self, Write};

use zerocopy::IntoBytes as _;

use super::format::{
    BLOCK_BYTES_MAX, BlockHead, EMPTY_BYTES, END, FOOTER_BYTES, Footer, HEAD_BYTES, HEADER_BYTES,
    Header, KEY_BYTES, KIND_SESSIONS, KIND_SWARMS, KeyHead, MAGIC, RawHeader, SnapshotCounts,
    TORRENT_BYTES, TableEntry,
};
use crate::access::sessions::{SavedKey, SavedSession};
use crate::store::{ExportBatch, SavedPeerV4, SavedPeerV6, SavedTorrent};

/// The most peers of one family that a torrent's head can count.
const PEERS_MAX: usize = u16::MAX as usize;

/// Writes a snapshot.
pub struct Writer<W> {
    output: W,
    /// The payload of the block that is being filled.
    payload: Vec<u8>,
    /// The kind of this block.
    kind: u32,
    /// Torrents in it.
    torrents: u32,
    table: Vec<TableEntry>,
    contents: SnapshotCounts,
}

impl<W: Write> Writer<W> {
    /// Begins a snapshot in the format of [`super::VERSION`], whatever version is in `header`.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(mut output: W, header: &Header) -> io::Result<Self> {
        let mut build = [0; 20];
        for (to, from) in build.iter_mut().zip(header.build.bytes()) {
            *to = from;
        }
        let mut raw = RawHeader {
            magic: MAGIC,
            version: header.version.into(),
            zero: 0.into(),
            at_s: header.at_s.into(),
            tracker: header.tracker,
            build,
            crc: 0.into(),
        };
        raw.crc = raw.checksum().into();
        output.write_all(raw.as_bytes())?;
        let contents = SnapshotCounts { bytes: HEADER_BYTES as u64, ..SnapshotCounts::default() };
        let payload = Vec::with_capacity(BLOCK_BYTES_MAX);
        let (kind, torrents, table) = (KIND_SWARMS, 0, Vec::new());
        Ok(Self { output, payload, kind, torrents, table, contents })
    }

    /// Adds one slice of an export.
    ///
    /// # Errors
    /// Those of the output. The snapshot is lost with any.
    pub fn add(&mut self, batch: &ExportBatch) -> io::Result<()> {
        self.begin_kind(KIND_SWARMS)?;
        let (mut v4, mut v6) = (&batch.v4[..], &batch.v6[..]);
        for torrent in &batch.torrents {
            let (its_v4, behind_v4) = v4.split_at(torrent.v4.min(v4.len()));
            let (its_v6, behind_v6) = v6.split_at(torrent.v6.min(v6.len()));
            self.add_torrent(torrent, its_v4, its_v6)?;
            (v4, v6) = (behind_v4, behind_v6);
        }
        Ok(())
    }

    /// Adds a passkey's sessions, in as many blocks as necessary.
    ///
    /// # Errors
    /// Those of the output. The snapshot is lost with any.
    pub fn add_key(&mut self, key: &SavedKey<'_>) -> io::Result<()> {
        self.begin_kind(KIND_SESSIONS)?;
        let mut rest = key.sessions;
        loop {
            self.make_room(KEY_BYTES + size_of::<SavedSession>())?;
            let room = BLOCK_BYTES_MAX - self.payload.len() - KEY_BYTES;
            let (now, later) = rest.split_at(fitting::<SavedSession>(room, rest.len()));
            let head = KeyHead {
                digest: key.digest,
                uploaded: key.totals.uploaded.into(),
                downloaded: key.totals.downloaded.into(),
                announces: key.totals.announces.into(),
                sessions: u32::try_from(now.len()).unwrap_or(u32::MAX).into(), // they fit a block
            };
            self.payload.extend_from_slice(head.as_bytes());
            self.payload.extend_from_slice(now.as_bytes());
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Ends the block if it is of another kind.
    fn begin_kind(&mut self, kind: u32) -> io::Result<()> {
        if self.kind != kind {
            self.end_block()?;
            self.kind = kind;
        }
        Ok(())
    }

    /// Adds a torrent, in as many blocks as necessary.
    fn add_torrent(
        &mut self,
        torrent: &SavedTorrent,
        mut v4: &[SavedPeerV4],
        mut v6: &[SavedPeerV6],
    ) -> io::Result<()> {
        if v4.is_empty() && v6.is_empty() {
            self.make_room(TORRENT_BYTES + EMPTY_BYTES)?;
            self.add_head(torrent, torrent.completed, 0, 0);
            self.payload.extend_from_slice(&torrent.empty_s.to_le_bytes());
            return Ok(());
        }
        let mut completed = torrent.completed;
        while !v4.is_empty() || !v6.is_empty() {
            // Room for at least one peer, so that every part makes progress.
            self.make_room(TORRENT_BYTES + size_of::<SavedPeerV6>())?;
            let room = BLOCK_BYTES_MAX - self.payload.len() - TORRENT_BYTES;
            let (now4, later4) = v4.split_at(fitting::<SavedPeerV4>(room, v4.len()));
            let room = room - size_of_val(now4);
            let (now6, later6) = v6.split_at(fitting::<SavedPeerV6>(room, v6.len()));
            self.add_head(torrent, completed, now4.len(), now6.len());
            self.payload.extend_from_slice(now4.as_bytes());
            self.payload.extend_from_slice(now6.as_bytes());
            (v4, v6, completed) = (later4, later6, 0);
        }
        Ok(())
    }

    fn add_head(&mut self, torrent: &SavedTorrent, completed: u32, v4: usize, v6: usize) {
        let count = |it: usize| u16::try_from(it).unwrap_or(u16::MAX); // they fit a block
        self.payload.extend_from_slice(torrent.info_hash.as_bytes());
        self.payload.extend_from_slice(&completed.to_le_bytes());
        self.payload.extend_from_slice(&count(v4).to_le_bytes());
        self.payload.extend_from_slice(&count(v6).to_le_bytes());
        self.torrents += 1;
        self.contents.torrents += 1;
        self.contents.peers += (v4 + v6) as u64;
    }

    /// Ends the block if it has no room for `bytes` more bytes.
    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        if self.payload.len() + bytes > BLOCK_BYTES_MAX { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.payload.is_empty() {
            return Ok(());
        }
        self.write_block(self.kind)
    }

    fn write_block(&mut self, kind: u32) -> io::Result<()> {
        let bytes = u32::try_from(self.payload.len()).unwrap_or(u32::MAX); // at most 64 KiB
        let torrents = self.torrents.into();
        let mut head =
            BlockHead { kind: kind.into(), bytes: bytes.into(), torrents, crc: 0.into() };
        head.crc = head.checksum(&self.payload).into();
        self.output.write_all(head.as_bytes())?;
        self.output.write_all(&self.payload)?;
        let offset = self.contents.bytes.into();
        self.table.push(TableEntry { offset, bytes: bytes.into(), crc: head.crc });
        self.contents.bytes += HEAD_BYTES as u64 + u64::from(bytes);
        self.contents.blocks += 1;
        self.payload.clear();
        self.torrents = 0;
        Ok(())
    }

    /// Ends the snapshot of a tracker that has counted `completed` downloads; returns the output
    /// and the counts of the snapshot.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self, completed: u64) -> io::Result<(W, SnapshotCounts)> {
        self.end_block()?;
        let table = self.table.as_bytes();
        let mut footer = Footer {
            table: self.contents.bytes.into(),
            blocks: self.contents.blocks.into(),
            torrents: self.contents.torrents.into(),
            peers: self.contents.peers.into(),
            completed: completed.into(),
            table_crc: crc32c::crc32c(table).into(),
            crc: 0.into(),
            end: END,
        };
        footer.crc = footer.checksum().into();
        self.output.write_all(table)?;
        self.output.write_all(footer.as_bytes())?;
        self.output.flush()?;
        let bytes = self.contents.bytes + table.len() as u64 + FOOTER_BYTES as u64;
        Ok((self.output, SnapshotCounts { bytes, completed, ..self.contents }))
    }
}

/// The number of `len` peers that fit into `room` bytes.
fn fitting<T>(room: usize, len: usize) -> usize {
    (room / size_of::<T>()).min(len).min(PEERS_MAX)
}

#[cfg(test)]
impl<W: Write> Writer<W> {
    /// Writes a block of another kind.
    pub(super) fn add_block_of(&mut self, kind: u32, payload: &[u8]) -> io::Result<()> {
        self.end_block()?;
        self.payload.extend_from_slice(payload);
        self.write_block(kind)
    }

    /// Writes a block whose head claims `torrents` torrents.
    pub(super) fn add_torrents_of(&mut self, payload: &[u8], torrents: u32) -> io::Result<()> {
        self.end_block()?;
        self.torrents = torrents;
        self.contents.torrents += u64::from(torrents);
        self.add_block_of(KIND_SWARMS, payload)
    }
}
