//! Encodes the store's export into the bytes of a snapshot: one block at a time, written as soon as
//! it is full.

use std::io::{self, Write};

use zerocopy::IntoBytes as _;

use super::format::{
    BLOCK_BYTES_MAX, BlockHead, END, FOOTER_BYTES, Footer, HEAD_BYTES, HEADER_BYTES, Header,
    KEY_BYTES, KIND_SESSIONS, KIND_SWARMS, KeyHead, MAGIC, RawHeader, SnapshotCounts, TableEntry,
};
use super::payload::{SwarmPayload, torrents_of};
use crate::access::sessions::{SavedKey, SavedSession};
use crate::store::ExportBatch;

/// Writes a snapshot.
pub struct Writer<W> {
    output: W,
    /// The block of swarms that is being filled.
    swarms: SwarmPayload,
    /// The block of sessions that is being filled. Only one of the two is not empty.
    sessions: Vec<u8>,
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
        let (swarms, sessions, table) = (SwarmPayload::default(), Vec::new(), Vec::new());
        Ok(Self { output, swarms, sessions, table, contents })
    }

    /// Adds one slice of an export.
    ///
    /// # Errors
    /// Those of the output. The snapshot is lost with any.
    pub fn add(&mut self, batch: &ExportBatch) -> io::Result<()> {
        self.end_sessions()?;
        for torrent in torrents_of(batch) {
            let mut rest = Some(torrent);
            while let Some(part) = rest {
                rest = self.swarms.add(part);
                if rest.is_some() {
                    self.end_swarms()?;
                }
            }
        }
        Ok(())
    }

    /// Adds a passkey's sessions, in as many blocks as necessary.
    ///
    /// # Errors
    /// Those of the output. The snapshot is lost with any.
    pub fn add_key(&mut self, key: &SavedKey<'_>) -> io::Result<()> {
        self.end_swarms()?;
        let mut rest = key.sessions;
        loop {
            if self.sessions.len() + KEY_BYTES + size_of::<SavedSession>() > BLOCK_BYTES_MAX {
                self.end_sessions()?;
            }
            let room = BLOCK_BYTES_MAX - self.sessions.len() - KEY_BYTES;
            let fitting = (room / size_of::<SavedSession>()).min(rest.len());
            let (now, later) = rest.split_at(fitting);
            let head = KeyHead {
                digest: key.digest,
                uploaded: key.totals.uploaded.into(),
                downloaded: key.totals.downloaded.into(),
                announces: key.totals.announces.into(),
                sessions: u32::try_from(now.len()).unwrap_or(u32::MAX).into(), // they fit a block
            };
            self.sessions.extend_from_slice(head.as_bytes());
            self.sessions.extend_from_slice(now.as_bytes());
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Ends the block of swarms that is being filled, if there is one.
    fn end_swarms(&mut self) -> io::Result<()> {
        let mut swarms = std::mem::take(&mut self.swarms);
        self.write_block(KIND_SWARMS, swarms.torrents(), swarms.bytes())?;
        self.contents.torrents += u64::from(swarms.torrents());
        self.contents.peers += swarms.peers();
        swarms.clear();
        self.swarms = swarms;
        Ok(())
    }

    /// Ends the block of sessions that is being filled, if there is one.
    fn end_sessions(&mut self) -> io::Result<()> {
        let mut sessions = std::mem::take(&mut self.sessions);
        self.write_block(KIND_SESSIONS, 0, &sessions)?;
        sessions.clear();
        self.sessions = sessions;
        Ok(())
    }

    /// Writes a block, unless it is empty.
    fn write_block(&mut self, kind: u32, torrents: u32, payload: &[u8]) -> io::Result<()> {
        if payload.is_empty() {
            return Ok(());
        }
        let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX); // at most 64 KiB
        let mut head = BlockHead {
            kind: kind.into(),
            bytes: bytes.into(),
            torrents: torrents.into(),
            crc: 0.into(),
        };
        head.crc = head.checksum(payload).into();
        self.output.write_all(head.as_bytes())?;
        self.output.write_all(payload)?;
        let offset = self.contents.bytes.into();
        self.table.push(TableEntry { offset, bytes: bytes.into(), crc: head.crc });
        self.contents.bytes += HEAD_BYTES as u64 + u64::from(bytes);
        self.contents.blocks += 1;
        Ok(())
    }

    /// Ends the snapshot of a tracker that has counted `completed` downloads; returns the output
    /// and the counts of the snapshot.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self, completed: u64) -> io::Result<(W, SnapshotCounts)> {
        self.end_swarms()?;
        self.end_sessions()?;
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

#[cfg(test)]
impl<W: Write> Writer<W> {
    /// Writes a block of another kind.
    pub(super) fn add_block_of(&mut self, kind: u32, payload: &[u8]) -> io::Result<()> {
        self.end_swarms()?;
        self.end_sessions()?;
        self.write_block(kind, 0, payload)
    }

    /// Writes a block whose head claims `torrents` torrents.
    pub(super) fn add_torrents_of(&mut self, payload: &[u8], torrents: u32) -> io::Result<()> {
        self.contents.torrents += u64::from(torrents);
        self.write_block(KIND_SWARMS, torrents, payload)
    }
}
