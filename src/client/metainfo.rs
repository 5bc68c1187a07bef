//! Parses `.torrent` files (BEP 3, 52): the hashes under which a torrent is announced, and its
//! description. Borrows, does not recurse, and is bounded by the file.
//!
//! The info-hash is a hash of the bytes in the file. So the info dictionary is not decoded and
//! encoded again: its span is found, and hashed as it is. A deserializer shows no span, so this
//! module uses `client::bencode`.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::client::bencode::{BencodeError, BencodeReader};
use crate::types::InfoHash;

/// The deepest folder in a v2 torrent.
const DEPTH_MAX: usize = 100;

/// The contents of a `.torrent` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo<'a> {
    /// SHA-1 of the info dictionary, if the torrent has v1 pieces.
    pub v1: Option<InfoHash>,
    /// SHA-256 of it, if the torrent has a v2 file tree.
    pub v2: Option<[u8; 32]>,
    /// The torrent's name; usually UTF-8.
    pub name: &'a [u8],
    /// Bytes of all its files.
    pub size: u64,
    /// Bytes of a piece.
    pub piece_length: u64,
    /// The maker's comment.
    pub comment: Option<&'a [u8]>,
    /// The program that made it.
    pub created_by: Option<&'a [u8]>,
    /// When it was made, in seconds since the Unix epoch.
    pub created_s: Option<u64>,
}

/// Why a file is not a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// It is something else: a page, an archive, a magnet link.
    #[error("it does not begin as a bencoded dictionary does, with a d")]
    NotDictionary,
    /// It begins as a bencoded dictionary, and is truncated or damaged.
    #[error("truncated or damaged")]
    NotBencode,
    /// A dictionary, followed by other bytes.
    #[error("there are other bytes behind the dictionary")]
    Trailing,
    /// It has no info dictionary, or two.
    #[error("no info dictionary, or more than one")]
    Info,
    /// The info dictionary has neither v1 pieces nor a v2 file tree.
    #[error("neither v1 pieces nor a v2 file tree")]
    NeitherVersion,
    /// The info dictionary has no name or piece length, or files without a length.
    #[error("no name, no piece length, or files without a length")]
    Incomplete,
    /// Folders that are nested too deeply.
    #[error("more than 100 folders within each other")]
    TooDeep,
}

impl From<BencodeError> for MetainfoError {
    fn from(_: BencodeError) -> Self {
        Self::NotBencode
    }
}

impl<'a> Metainfo<'a> {
    /// Parses a whole file.
    ///
    /// # Errors
    /// [`MetainfoError`], with the first thing that is wrong.
    pub fn parse(file: &'a [u8]) -> Result<Self, MetainfoError> {
        let (mut info, mut comment, mut created_by, mut created_s) = (None, None, None, None);
        let mut reader = BencodeReader::new(file);
        if file.is_empty() {
            return Err(MetainfoError::Empty);
        }
        enter(&mut reader).map_err(|_| MetainfoError::NotDictionary)?;
        while !reader.take(b'e') {
            match reader.string()? {
                b"info" if info.is_some() => return Err(MetainfoError::Info),
                b"info" => info = Some(span(&mut reader)?),
                b"comment" => comment = text(&mut reader)?,
                b"created by" => created_by = text(&mut reader)?,
                b"creation date" => created_s = number(&mut reader)?,
                _ => reader.skip()?,
            }
        }
        if !reader.rest().trim_ascii().is_empty() {
            return Err(MetainfoError::Trailing);
        }
        let info = info.ok_or(MetainfoError::Info)?;
        let Info { name, piece_length, v1_size, v2_size } = Info::parse(info)?;
        let v1 = v1_size.map(|_| InfoHash(Sha1::digest(info).into()));
        let v2 = v2_size.map(|_| Sha256::digest(info).into());
        let size = v2_size.or(v1_size).ok_or(MetainfoError::NeitherVersion)?;
        Ok(Self { v1, v2, name, size, piece_length, comment, created_by, created_s })
    }

    /// The hash under which the torrent is announced: for a hybrid, the v1 hash.
    pub fn info_hash(&self) -> Option<InfoHash> {
        self.v1.or_else(|| self.v2_cut())
    }

    /// The v2 hash as it is announced: its first 20 bytes.
    pub fn v2_cut(&self) -> Option<InfoHash> {
        self.v2?.first_chunk().copied().map(InfoHash)
    }
}

/// The fields of an info dictionary that are used.
struct Info<'a> {
    name: &'a [u8],
    piece_length: u64,
    /// Bytes of all files, where there are v1 pieces.
    v1_size: Option<u64>,
    /// The same, where there is a v2 file tree.
    v2_size: Option<u64>,
}

impl<'a> Info<'a> {
    fn parse(info: &'a [u8]) -> Result<Self, MetainfoError> {
        let (mut name, mut utf8_name, mut piece_length) = (None, None, None);
        let (mut length, mut files, mut tree) = (None, None, None);
        let (mut has_pieces, mut version) = (false, None);
        let mut reader = BencodeReader::new(info);
        enter(&mut reader)?;
        while !reader.take(b'e') {
            match reader.string()? {
                b"name" => name = text(&mut reader)?,
                b"name.utf-8" => utf8_name = text(&mut reader)?,
                b"piece length" => piece_length = number(&mut reader)?,
                b"pieces" => has_pieces = text(&mut reader)?.is_some(),
                b"length" => length = number(&mut reader)?,
                b"files" => files = Some(span(&mut reader)?),
                b"file tree" => tree = Some(span(&mut reader)?),
                b"meta version" => version = number(&mut reader)?,
                _ => reader.skip()?,
            }
        }
        let v2_size = tree.filter(|_| version == Some(2)).map(size_of_tree).transpose()?;
        let v1_size = match (has_pieces, length, files) {
            (false, ..) => None,
            (true, Some(length), _) => Some(length),
            (true, None, Some(files)) => Some(size_of_files(files)?),
            (true, None, None) => return Err(MetainfoError::Incomplete),
        };
        Ok(Self {
            name: utf8_name.or(name).ok_or(MetainfoError::Incomplete)?,
            piece_length: piece_length.filter(|it| *it > 0).ok_or(MetainfoError::Incomplete)?,
            v1_size,
            v2_size,
        })
    }
}

/// The sum of `length` over a list of dictionaries.
fn size_of_files(files: &[u8]) -> Result<u64, MetainfoError> {
    let mut reader = BencodeReader::new(files);
    if !reader.take(b'l') {
        return Err(MetainfoError::Incomplete);
    }
    let mut size: u64 = 0;
    while !reader.take(b'e') {
        enter(&mut reader)?;
        let mut length = None;
        while !reader.take(b'e') {
            match reader.string()? {
                b"length" => length = number(&mut reader)?,
                _ => reader.skip()?,
            }
        }
        size = size.saturating_add(length.ok_or(MetainfoError::Incomplete)?);
    }
    Ok(size)
}

/// The sum of `length` over the leaves of a file tree. A name leads to a dictionary: of further
/// names, or of one empty name, whose dictionary describes a file.
fn size_of_tree(tree: &[u8]) -> Result<u64, MetainfoError> {
    let mut reader = BencodeReader::new(tree);
    let (mut depth, mut size) = (0, 0_u64);
    enter(&mut reader)?;
    loop {
        if reader.take(b'e') {
            if depth == 0 {
                return Ok(size);
            }
            depth -= 1;
            continue;
        }
        let name = reader.string()?;
        enter(&mut reader)?;
        if !name.is_empty() {
            depth += 1;
            if depth > DEPTH_MAX {
                return Err(MetainfoError::TooDeep);
            }
            continue;
        }
        let mut length = None;
        while !reader.take(b'e') {
            match reader.string()? {
                b"length" => length = number(&mut reader)?,
                _ => reader.skip()?,
            }
        }
        size = size.saturating_add(length.ok_or(MetainfoError::Incomplete)?);
    }
}

/// Enters a dictionary.
fn enter(reader: &mut BencodeReader<'_>) -> Result<(), MetainfoError> {
    if reader.take(b'd') { Ok(()) } else { Err(MetainfoError::NotBencode) }
}

/// The bytes of the next value.
fn span<'a>(reader: &mut BencodeReader<'a>) -> Result<&'a [u8], MetainfoError> {
    let from = reader.rest();
    reader.skip()?;
    Ok(&from[..from.len() - reader.rest().len()])
}

/// The next value, if it is a string.
fn text<'a>(reader: &mut BencodeReader<'a>) -> Result<Option<&'a [u8]>, MetainfoError> {
    if reader.peek().is_some_and(|it| it.is_ascii_digit()) {
        return Ok(Some(reader.string()?));
    }
    reader.skip()?;
    Ok(None)
}

/// The next value, if it is a number from 0 on.
fn number(reader: &mut BencodeReader<'_>) -> Result<Option<u64>, MetainfoError> {
    if reader.peek() == Some(b'i') {
        return Ok(u64::try_from(reader.integer()?).ok());
    }
    reader.skip()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "d6:lengthi7e4:name1:a12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
    const TREE: &str =
        "9:file treed1:ad0:d6:lengthi5e11:pieces root4:rootee1:bd1:cd0:d6:lengthi2eeeee";

    fn file(info: &str) -> String {
        format!("d8:announce3:x:y7:comment2:hi10:created by4:skep13:creation datei9e4:info{info}e")
    }

    fn v2_info(pieces: &str) -> String {
        format!("d{TREE}12:meta versioni2e4:name1:a12:piece lengthi16384e{pieces}e")
    }

    fn parse(text: &str) -> Result<Metainfo<'_>, MetainfoError> {
        Metainfo::parse(text.as_bytes())
    }

    #[test]
    fn a_v1_torrent_is_hashed_as_it_stands() {
        let file = file(V1);
        let metainfo = parse(&file).unwrap();
        assert_eq!(metainfo.v1, Some(InfoHash(Sha1::digest(V1).into())));
        assert_eq!((metainfo.v2, metainfo.info_hash()), (None, metainfo.v1));
        assert_eq!((metainfo.name, metainfo.size, metainfo.piece_length), (&b"a"[..], 7, 16384));
        assert_eq!((metainfo.comment, metainfo.created_by), (Some(&b"hi"[..]), Some(&b"skep"[..])));
        assert_eq!(metainfo.created_s, Some(9));
    }

    #[test]
    fn a_v2_torrent_has_the_sum_of_its_tree() {
        let (info, file) = (v2_info(""), file(&v2_info("")));
        let metainfo = parse(&file).unwrap();
        let whole: [u8; 32] = Sha256::digest(&info).into();
        assert_eq!((metainfo.v1, metainfo.v2, metainfo.size), (None, Some(whole), 7));
        assert_eq!(metainfo.info_hash().unwrap().0, whole[..20]);
    }

    #[test]
    fn a_hybrid_has_both_hashes() {
        let info = v2_info("6:pieces0:").replace("4:name", "6:lengthi7e4:name");
        let file = file(&info);
        let metainfo = parse(&file).unwrap();
        assert_eq!(metainfo.v1, Some(InfoHash(Sha1::digest(&info).into())));
        assert!(
            metainfo.v2.is_some()
                && metainfo.info_hash() == metainfo.v1
                && metainfo.v2_cut() != metainfo.v1
        );
    }

    #[test]
    fn files_are_summed_up() {
        let several = "d5:filesld6:lengthi1e4:pathl1:aeed4:pathl1:be6:lengthi2eee4:name1:x\
                       12:piece lengthi1e6:pieces0:e";
        assert_eq!(parse(&file(several)).unwrap().size, 3);
    }

    #[test]
    fn what_is_no_torrent_is_refused() {
        let deep = format!("d9:file tree{}de{}", "d1:a".repeat(101), "e".repeat(101));
        let deep = deep + "12:meta versioni2e";
        for (text, expected) in [
            (String::new(), MetainfoError::Empty),
            ("<html>".into(), MetainfoError::NotDictionary),
            ("de".into(), MetainfoError::Info),
            (file(V1)[..90].to_owned(), MetainfoError::NotBencode),
            (file(V1) + "x", MetainfoError::Trailing),
            (format!("d4:info{V1}4:info{V1}e"), MetainfoError::Info),
            ("d4:info3:abce".into(), MetainfoError::NotBencode),
            (file(&V1.replace("6:pieces", "6:piecez")), MetainfoError::NeitherVersion),
            (file(&V1.replace("4:name", "4:nama")), MetainfoError::Incomplete),
            (file(&V1.replace("i16384e", "i0e")), MetainfoError::Incomplete),
            (file(&V1.replace("6:length", "6:lengtg")), MetainfoError::Incomplete),
            (file(&v2_info("").replace("versioni2e", "versioni3e")), MetainfoError::NeitherVersion),
            (file(&format!("{deep}4:name1:a12:piece lengthi1ee")), MetainfoError::TooDeep),
        ] {
            assert_eq!(parse(&text), Err(expected), "{text}");
        }
        assert_eq!(parse(&(file(V1) + "\r\n")).map(|it| it.size), Ok(7), "a line end is no harm");
    }
}
