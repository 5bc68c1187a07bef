//! Reads a snapshot: the whole file is verified before the first torrent is returned, in two passes
//! over the input with one block in memory. No value of a file is used before its checksum is
//! verified, and no length causes an allocation beyond [`BLOCK_BYTES_MAX`].

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use zerocopy::{FromBytes, FromZeros as _, IntoBytes};

use super::format::{
    BLOCK_BYTES_MAX, BlockHead, END, ENTRY_BYTES, FOOTER_BYTES, Footer, HEAD_BYTES, HEADER_BYTES,
    Header, KIND_SESSIONS, KIND_SWARMS, KeyHead, MAGIC, RawHeader, SnapshotCounts, TableEntry,
    VERSION, VERSION_MIN,
};
use super::payload::parse_torrent;
use crate::access::passkey::Totals;
use crate::access::sessions::{SavedKey, SavedSession};
use crate::store::TorrentPart;

/// Why a file is unusable.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// It looks complete, but has a version that this skep does not support.
    #[error(
        "version {number} is not supported{}; supported: {VERSION_MIN} to {VERSION}",
        newer(*.0), number = .0
    )]
    Version(u32),
    /// It is not a snapshot, or it is damaged.
    #[error("{what} (at byte {offset})")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// The offset in the file.
        offset: u64,
    },
}

fn newer(version: u32) -> &'static str {
    if version > VERSION { " (newer than this skep's)" } else { "" }
}

impl SnapshotError {
    /// The reason in one word, for the name under which the file is kept.
    pub fn kind(&self) -> String {
        match self {
            Self::Io(_) => "unreadable".into(),
            Self::Version(value) => format!("unknown-version-{value}"),
            Self::Damaged { .. } => "damaged".into(),
        }
    }
}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged(what: &'static str, offset: u64) -> SnapshotError {
    SnapshotError::Damaged { what, offset }
}

/// A verified snapshot.
#[derive(Debug)]
pub struct Snapshot<R> {
    input: R,
    header: Header,
    contents: SnapshotCounts,
    /// The offset of the next block.
    offset: u64,
    /// The offset of the end of the blocks.
    table: u64,
}

/// A block of a snapshot.
#[derive(Debug, Default)]
pub struct Block {
    kind: u32,
    torrents: u32,
    crc: u32,
    offset: u64,
    payload: Vec<u8>,
}

impl<R: Read + Seek> Snapshot<R> {
    /// Reads and verifies a snapshot from its first byte to its last.
    ///
    /// # Errors
    /// [`SnapshotError`] for the first fault.
    pub fn open(input: R) -> Result<Self, SnapshotError> {
        Self::open_with_progress(input, &mut || {})
    }

    /// As [`Self::open`]; calls `progress` after each block.
    ///
    /// # Errors
    /// Above.
    pub fn open_with_progress(
        mut input: R,
        progress: &mut dyn FnMut(),
    ) -> Result<Self, SnapshotError> {
        let bytes = input.seek(SeekFrom::End(0))?;
        if bytes < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            return Err(damaged("too short for a snapshot", bytes));
        }
        input.rewind()?;
        let header = read_header(&mut input)?;
        let offset = bytes - FOOTER_BYTES as u64;
        input.seek(SeekFrom::Start(offset))?;
        let footer = read_footer(&mut input, offset)?;
        let contents = SnapshotCounts {
            bytes,
            blocks: footer.blocks.get(),
            torrents: footer.torrents.get(),
            peers: footer.peers.get(),
            completed: footer.completed.get(),
        };
        let table = footer.table.get();
        let mut snapshot = Self { input, header, contents, offset: 0, table };
        snapshot.verify(&footer, progress)?;
        snapshot.rewind()?;
        Ok(snapshot)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The sizes and counts.
    pub fn contents(&self) -> &SnapshotCounts {
        &self.contents
    }

    /// Goes back to the first block.
    ///
    /// # Errors
    /// Those of the input.
    pub fn rewind(&mut self) -> Result<(), SnapshotError> {
        self.offset = HEADER_BYTES as u64;
        self.input.seek(SeekFrom::Start(self.offset))?;
        Ok(())
    }

    /// Reads the next block into `block`, replacing its contents; returns false after the last
    /// block.
    ///
    /// # Errors
    /// [`SnapshotError`] if the input has changed since it was verified.
    pub fn next(&mut self, block: &mut Block) -> Result<bool, SnapshotError> {
        let left = self.table.saturating_sub(self.offset);
        if left == 0 {
            return Ok(false);
        }
        if left < HEAD_BYTES as u64 {
            return Err(damaged("a block's head is cut off", self.offset));
        }
        let mut head = BlockHead::new_zeroed();
        read(&mut self.input, head.as_mut_bytes(), self.offset)?;
        let bytes = head.bytes.get() as usize;
        if bytes > BLOCK_BYTES_MAX || (HEAD_BYTES + bytes) as u64 > left {
            return Err(damaged("a block is longer than it may be", self.offset));
        }
        block.payload.resize(bytes, 0);
        read(&mut self.input, &mut block.payload, self.offset)?;
        if head.checksum(&block.payload) != head.crc.get() {
            return Err(damaged("a block's checksum is wrong", self.offset));
        }
        (block.kind, block.torrents) = (head.kind.get(), head.torrents.get());
        (block.crc, block.offset) = (head.crc.get(), self.offset);
        self.offset += (HEAD_BYTES + bytes) as u64;
        Ok(true)
    }

    /// Checks blocks, table and footer against each other.
    fn verify(&mut self, footer: &Footer, progress: &mut dyn FnMut()) -> Result<(), SnapshotError> {
        let blocks = self.contents.blocks;
        let table_bytes = blocks.checked_mul(ENTRY_BYTES as u64);
        let ends = [HEADER_BYTES as u64 + FOOTER_BYTES as u64, self.table];
        let whole = table_bytes.and_then(|it| it.checked_add(self.table)?.checked_add(ends[0]));
        let whole = whole.map(|it| it - HEADER_BYTES as u64);
        if whole != Some(self.contents.bytes) || ends[1] < HEADER_BYTES as u64 {
            return Err(damaged("its parts do not add up to its length", self.contents.bytes));
        }
        self.rewind()?;
        let (mut block, mut expected) = (Block::default(), 0);
        let mut found = SnapshotCounts { bytes: self.contents.bytes, ..SnapshotCounts::default() };
        while self.next(&mut block)? {
            let (torrents, peers) = block.count()?;
            found.blocks += 1;
            found.torrents += torrents;
            found.peers += peers;
            progress();
            expected = crc32c::crc32c_append(expected, block.entry().as_bytes());
        }
        found.completed = self.contents.completed;
        if found != self.contents {
            return Err(damaged("its footer is incomplete", self.table));
        }
        let actual = self.table_checksum()?;
        if actual != expected || actual != footer.table_crc.get() {
            return Err(damaged("its table of blocks is wrong", self.table));
        }
        Ok(())
    }

    /// The checksum of the table, which begins at the input's position.
    fn table_checksum(&mut self) -> Result<u32, SnapshotError> {
        let mut checksum = 0;
        for at in 0..self.contents.blocks {
            let mut entry = TableEntry::new_zeroed();
            let offset = self.table + at * ENTRY_BYTES as u64;
            read(&mut self.input, entry.as_mut_bytes(), offset)?;
            checksum = crc32c::crc32c_append(checksum, entry.as_bytes());
        }
        Ok(checksum)
    }
}

/// Reads only the header of a snapshot, and does not check the rest.
///
/// # Errors
/// [`SnapshotError`] if the input does not start with a valid header.
pub fn read_header(input: &mut impl Read) -> Result<Header, SnapshotError> {
    let mut raw = RawHeader::new_zeroed();
    read(input, raw.as_mut_bytes(), 0)?;
    if raw.magic != MAGIC {
        return Err(damaged("not a snapshot: wrong first bytes", 0));
    }
    if raw.checksum() != raw.crc.get() {
        return Err(damaged("its header's checksum is wrong", 0));
    }
    let version = raw.version.get();
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Err(SnapshotError::Version(version));
    }
    let build = raw.build.iter().copied().take_while(u8::is_ascii_graphic);
    let build = build.map(char::from).collect();
    Ok(Header { version, at_s: raw.at_s.get(), tracker: raw.tracker, build })
}

fn read_footer(input: &mut impl Read, offset: u64) -> Result<Footer, SnapshotError> {
    let mut footer = Footer::new_zeroed();
    read(input, footer.as_mut_bytes(), offset)?;
    if footer.end != END {
        return Err(damaged("truncated: the footer is missing", offset));
    }
    if footer.checksum() != footer.crc.get() {
        return Err(damaged("its footer's checksum is wrong", offset));
    }
    Ok(footer)
}

/// Fills `bytes` from an input whose length was checked before.
fn read(input: &mut impl Read, bytes: &mut [u8], offset: u64) -> Result<(), SnapshotError> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => damaged("truncated", offset),
        _ => SnapshotError::Io(error),
    })
}

impl Block {
    /// Its torrents and parts of torrents, in written order; empty for a block of an unknown kind.
    pub fn torrents(&self) -> Torrents<'_> {
        let is_known = self.kind == KIND_SWARMS;
        Torrents { rest: if is_known { &self.payload } else { &[] }, block: self }
    }

    /// Its passkeys and parts of passkeys, likewise.
    pub fn passkeys(&self) -> PasskeyRecords<'_> {
        let is_known = self.kind == KIND_SESSIONS;
        PasskeyRecords { rest: if is_known { &self.payload } else { &[] }, block: self }
    }

    /// The numbers of torrents and peers, if the whole payload can be parsed.
    fn count(&self) -> Result<(u64, u64), SnapshotError> {
        self.passkeys().try_for_each(|it| it.map(drop))?;
        let (mut torrents, mut peers) = (0, 0);
        for torrent in self.torrents() {
            let torrent = torrent?;
            torrents += 1;
            peers += (torrent.v4.len() + torrent.v6.len()) as u64;
        }
        if self.kind == KIND_SWARMS && torrents != u64::from(self.torrents) {
            return Err(damaged(
                "a block holds more or fewer torrents than it states",
                self.offset,
            ));
        }
        Ok((torrents, peers))
    }

    fn entry(&self) -> TableEntry {
        let bytes = u32::try_from(self.payload.len()).unwrap_or(u32::MAX); // at most 64 KiB
        TableEntry { offset: self.offset.into(), bytes: bytes.into(), crc: self.crc.into() }
    }
}

/// The torrents of a block.
#[derive(Debug)]
pub struct Torrents<'a> {
    rest: &'a [u8],
    block: &'a Block,
}

impl<'a> Iterator for Torrents<'a> {
    type Item = Result<TorrentPart<'a>, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = parse_torrent(self.rest);
        self.rest = read.as_ref().map_or(&[], |(_, rest)| rest);
        let fault = || damaged("a torrent cannot be read", self.block.offset);
        Some(read.map(|(torrent, _)| torrent).ok_or_else(fault))
    }
}

/// The passkeys of a block.
#[derive(Debug)]
pub struct PasskeyRecords<'a> {
    rest: &'a [u8],
    block: &'a Block,
}

impl<'a> Iterator for PasskeyRecords<'a> {
    type Item = Result<SavedKey<'a>, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = key(self.rest);
        self.rest = read.as_ref().map_or(&[], |(_, rest)| rest);
        let fault = || damaged("a passkey's sessions cannot be read", self.block.offset);
        Some(read.map(|(key, _)| key).ok_or_else(fault))
    }
}

/// Parses a passkey from the front of `bytes`; returns it and the remaining bytes.
fn key(bytes: &[u8]) -> Option<(SavedKey<'_>, &[u8])> {
    let (head, rest) = KeyHead::ref_from_prefix(bytes).ok()?;
    let sessions = head.sessions.get() as usize;
    let (sessions, rest) = <[SavedSession]>::ref_from_prefix_with_elems(rest, sessions).ok()?;
    let totals = Totals {
        uploaded: head.uploaded.get(),
        downloaded: head.downloaded.get(),
        announces: head.announces.get(),
    };
    Some((SavedKey { digest: head.digest, totals, sessions }, rest))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::Writer;
    use super::*;
    use crate::store::{ExportBatch, SavedPeerV4, SavedTorrent};
    use crate::types::InfoHash;

    const HEADER: Header =
        Header { version: VERSION, at_s: 1_800_000_000, tracker: [1; 16], build: String::new() };

    fn one_torrent() -> ExportBatch {
        let info_hash = InfoHash([3; 20]);
        let torrent = SavedTorrent { info_hash, completed: 5, empty_s: 0, v4: 1, v6: 0 };
        let v4 = vec![SavedPeerV4::new([8, 8, 8, 8, 0, 1], 4, 16)];
        ExportBatch { torrents: vec![torrent], v4, v6: Vec::new() }
    }

    fn open(bytes: &[u8]) -> Result<Snapshot<Cursor<&[u8]>>, SnapshotError> {
        Snapshot::open(Cursor::new(bytes))
    }

    #[test]
    fn blocks_of_unknown_kinds_are_skipped() {
        let mut writer = Writer::new(Vec::new(), &HEADER).unwrap();
        writer.add_block_of(7, b"something newer").unwrap();
        writer.add(&one_torrent()).unwrap();
        writer.add_block_of(u32::MAX, &[0xff; BLOCK_BYTES_MAX]).unwrap();
        let bytes = writer.finish(9).unwrap().0;
        let mut snapshot = open(&bytes).unwrap();
        let contents = snapshot.contents();
        assert_eq!((contents.blocks, contents.torrents, contents.peers), (3, 1, 1));
        let (mut block, mut torrents) = (Block::default(), 0);
        while snapshot.next(&mut block).unwrap() {
            for torrent in block.torrents().map(Result::unwrap) {
                torrents += 1;
                assert_eq!((torrent.completed, torrent.v4[0].age_s()), (5, 16));
            }
        }
        assert_eq!(torrents, 1);
    }

    #[test]
    fn an_empty_snapshot_is_one() {
        let (bytes, contents) = Writer::new(Vec::new(), &HEADER).unwrap().finish(4).unwrap();
        let mut snapshot = open(&bytes).unwrap();
        assert_eq!(*snapshot.contents(), contents);
        assert_eq!((contents.bytes as usize, contents.completed), (bytes.len(), 4));
        assert!(!snapshot.next(&mut Block::default()).unwrap());
    }

    #[test]
    fn sessions_come_back_however_many_a_key_has() {
        let session = |number: u64| SavedSession {
            info_hash: InfoHash([1; 20]),
            peer_id: crate::types::PeerId([2; 20]),
            uploaded: number.into(),
            downloaded: (number * 2).into(),
            left: u64::MAX.into(),
            age_s: 7.into(),
        };
        let totals = Totals { uploaded: 1 << 40, downloaded: 2, announces: 3 };
        let keys = [(1, 3), (2, 0), (3, 2500)].map(|(number, sessions)| {
            ([number; 32], (0..sessions).map(session).collect::<Vec<_>>())
        });
        let mut writer = Writer::new(Vec::new(), &HEADER).unwrap();
        writer.add(&one_torrent()).unwrap();
        for (digest, sessions) in &keys {
            writer.add_key(&SavedKey { digest: *digest, totals, sessions }).unwrap();
        }
        writer.add(&one_torrent()).unwrap();
        let (bytes, contents) = writer.finish(0).unwrap();
        assert_eq!((contents.torrents, contents.peers), (2, 2));
        let (mut snapshot, mut block) = (open(&bytes).unwrap(), Block::default());
        let mut found: Vec<([u8; 32], Vec<SavedSession>)> = Vec::new();
        while snapshot.next(&mut block).unwrap() {
            for key in block.passkeys().map(Result::unwrap) {
                assert_eq!(key.totals, totals);
                match found.last_mut().filter(|it| it.0 == key.digest) {
                    Some(last) => last.1.extend_from_slice(key.sessions),
                    None => found.push((key.digest, key.sessions.to_vec())),
                }
            }
        }
        assert_eq!(found, keys);
    }

    /// Values with valid checksums are still bounded.
    #[test]
    fn lengths_and_counts_are_not_believed() {
        for (payload, torrents) in [
            (&[0xff; 28][..], 1), // 65,535 peers of each family in no bytes
            (&[0; 27], 1),        // a head that is cut off
            (&[0; 28], 1),        // no peers, and no age either
            (&[0; 32], 2),        // one torrent for two
        ] {
            let mut writer = Writer::new(Vec::new(), &HEADER).unwrap();
            writer.add_torrents_of(payload, torrents).unwrap();
            let bytes = writer.finish(0).unwrap().0;
            let fault = open(&bytes).unwrap_err();
            assert!(matches!(fault, SnapshotError::Damaged { offset: 64, .. }), "{fault}");
        }
        for payload in [&[0xff; 60][..], &[0; 59]] {
            let mut writer = Writer::new(Vec::new(), &HEADER).unwrap();
            writer.add_block_of(KIND_SESSIONS, payload).unwrap();
            let bytes = writer.finish(0).unwrap().0;
            assert!(open(&bytes).is_err(), "sessions that are not there");
        }
        let mut batch = one_torrent();
        batch.v4[0].state = 16;
        let mut writer = Writer::new(Vec::new(), &HEADER).unwrap();
        writer.add(&batch).unwrap();
        let bytes = writer.finish(0).unwrap().0;
        assert!(open(&bytes).is_err(), "a state that there is not");

        let mut writer = Writer::new(Vec::new(), &HEADER).unwrap();
        writer.add_block_of(7, &[0; BLOCK_BYTES_MAX + 1]).unwrap();
        let bytes = writer.finish(0).unwrap().0;
        let said = open(&bytes).unwrap_err().to_string();
        assert!(said.contains("longer than it may be"), "{said}");
    }
}
