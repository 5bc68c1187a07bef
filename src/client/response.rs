//! Parses trackers' HTTP responses as strictly as the strictest clients do.

use crate::client::bencode::{BencodeError, BencodeReader};
use crate::types::ScrapeEntry;

/// What is wrong with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// Not a bencoded dictionary.
    NotBencode,
    /// Bytes after the dictionary, other than white space, which clients ignore.
    TrailingBytes,
    /// Keys that are not sorted bytewise, or occur twice.
    UnsortedKeys,
    /// An announce response without `interval`, or with an invalid one.
    NoInterval,
    /// Neither `peers` nor `peers6`.
    NoPeers,
    /// Compact peers whose length is not a multiple of 6, or of 18 for IPv6.
    RaggedPeers,
    /// A count that is negative or beyond 32 bits.
    BadCount,
    /// A scrape response without `files`, or with a key in it that is not an info-hash.
    NoFiles,
}

impl ResponseError {
    /// The error in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::NotBencode => "not a bencoded dictionary",
            Self::TrailingBytes => "bytes after the dictionary",
            Self::UnsortedKeys => "keys not sorted",
            Self::NoInterval => "no interval",
            Self::NoPeers => "neither peers nor peers6",
            Self::RaggedPeers => "compact peers of a wrong length",
            Self::BadCount => "a count out of bounds",
            Self::NoFiles => "no files",
        }
    }
}

impl From<BencodeError> for ResponseError {
    fn from(_: BencodeError) -> Self {
        Self::NotBencode
    }
}

/// A valid response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackerResponse<'a, T> {
    /// The requested data.
    Granted(T),
    /// The `failure reason`.
    Failure(&'a [u8]),
}

/// A parsed announce response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParsedAnnounce<'a> {
    /// Seconds until the next announce.
    pub interval_s: u32,
    /// Seeders, if the response has them.
    pub complete: Option<u32>,
    /// Leechers, if the response has them.
    pub incomplete: Option<u32>,
    /// IPv4 peers of 6 bytes each.
    pub peers: &'a [u8],
    /// IPv6 peers of 18 bytes each.
    pub peers6: &'a [u8],
    /// Peers in a list of dictionaries, which only `compact=0` requests.
    pub listed: usize,
}

impl ParsedAnnounce<'_> {
    /// Number of all peers.
    pub fn peer_count(&self) -> usize {
        self.peers.len() / 6 + self.peers6.len() / 18 + self.listed
    }
}

/// Parses the body of an announce response.
///
/// # Errors
/// Why clients would reject it.
#[inline]
pub fn announced(body: &[u8]) -> Result<TrackerResponse<'_, ParsedAnnounce<'_>>, ResponseError> {
    let mut announce = ParsedAnnounce::default();
    let (mut interval, mut has_peers, mut failure) = (None, false, None);
    let rest = dictionary(BencodeReader::new(body), |key, reader| {
        match key {
            b"complete" => announce.complete = Some(count(reader)?),
            b"incomplete" => announce.incomplete = Some(count(reader)?),
            b"interval" => interval = Some(reader.integer()?),
            b"failure reason" => failure = Some(reader.string()?),
            b"peers" => {
                has_peers = true;
                if reader.peek() == Some(b'l') {
                    announce.listed = list(reader)?;
                } else {
                    announce.peers = strides(reader.string()?, 6)?;
                }
            }
            b"peers6" => {
                has_peers = true;
                announce.peers6 = strides(reader.string()?, 18)?;
            }
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    if !rest.trim_ascii().is_empty() {
        return Err(ResponseError::TrailingBytes);
    }
    if let Some(reason) = failure {
        return Ok(TrackerResponse::Failure(reason));
    }
    announce.interval_s =
        interval.and_then(|it| u32::try_from(it).ok()).ok_or(ResponseError::NoInterval)?;
    if has_peers { Ok(TrackerResponse::Granted(announce)) } else { Err(ResponseError::NoPeers) }
}

/// Parses the body of a scrape response; calls `entry` for every torrent. Returns their number.
///
/// # Errors
/// Why clients would reject it.
pub fn scraped(
    body: &[u8],
    mut entry: impl FnMut([u8; 20], ScrapeEntry),
) -> Result<TrackerResponse<'_, usize>, ResponseError> {
    let (mut files, mut failure) = (None, None);
    let rest = dictionary(BencodeReader::new(body), |key, reader| {
        match key {
            b"failure reason" => failure = Some(reader.string()?),
            b"files" => {
                let mut torrents = 0;
                let rest = dictionary(*reader, |key, reader| {
                    let info_hash = key.try_into().map_err(|_| ResponseError::NoFiles)?;
                    torrents += 1;
                    entry(info_hash, counts(reader)?);
                    Ok(())
                })?;
                *reader = BencodeReader::new(rest);
                files = Some(torrents);
            }
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    match (failure, files) {
        _ if !rest.trim_ascii().is_empty() => Err(ResponseError::TrailingBytes),
        (Some(reason), _) => Ok(TrackerResponse::Failure(reason)),
        (None, Some(torrents)) => Ok(TrackerResponse::Granted(torrents)),
        (None, None) => Err(ResponseError::NoFiles),
    }
}

/// Parses one torrent's counts.
fn counts(reader: &mut BencodeReader<'_>) -> Result<ScrapeEntry, ResponseError> {
    let mut entry = ScrapeEntry::default();
    let rest = dictionary(*reader, |key, reader| {
        match key {
            b"complete" => entry.seeders = count(reader)?,
            b"downloaded" => entry.completed = count(reader)?,
            b"downloaders" => entry.downloaders = count(reader)?,
            b"incomplete" => entry.leechers = count(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    *reader = BencodeReader::new(rest);
    Ok(entry)
}

/// Reads a dictionary; `value` reads the value of each key. Returns the bytes that follow.
fn dictionary<'a>(
    mut reader: BencodeReader<'a>,
    mut value: impl FnMut(&'a [u8], &mut BencodeReader<'a>) -> Result<(), ResponseError>,
) -> Result<&'a [u8], ResponseError> {
    if !reader.take(b'd') {
        return Err(ResponseError::NotBencode);
    }
    let mut before: Option<&[u8]> = None;
    while !reader.take(b'e') {
        let key = reader.string()?;
        if before.is_some_and(|before| before >= key) {
            return Err(ResponseError::UnsortedKeys);
        }
        before = Some(key);
        value(key, &mut reader)?;
    }
    Ok(reader.rest())
}

/// Number of values in a list.
fn list(reader: &mut BencodeReader<'_>) -> Result<usize, ResponseError> {
    let mut values = 0;
    reader.take(b'l');
    while !reader.take(b'e') {
        reader.skip()?;
        values += 1;
    }
    Ok(values)
}

fn count(reader: &mut BencodeReader<'_>) -> Result<u32, ResponseError> {
    u32::try_from(reader.integer()?).map_err(|_| ResponseError::BadCount)
}

fn strides(peers: &[u8], stride: usize) -> Result<&[u8], ResponseError> {
    if peers.len().is_multiple_of(stride) { Ok(peers) } else { Err(ResponseError::RaggedPeers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announces_are_read() {
        let body = b"d8:completei1e10:incompletei2e8:intervali1800e5:peers6:abcdef6:peers60:e\r\n";
        let Ok(TrackerResponse::Granted(announce)) = announced(body) else { panic!() };
        assert_eq!(
            (announce.interval_s, announce.complete, announce.incomplete),
            (1800, Some(1), Some(2))
        );
        assert_eq!((announce.peers, announce.peer_count()), (&b"abcdef"[..], 1));
        let listed = b"d8:intervali9e5:peersld2:ip9:127.0.0.14:porti1eed2:ip3:::14:porti2eeee";
        let Ok(TrackerResponse::Granted(parsed_announce)) = announced(listed) else { panic!() };
        assert_eq!(parsed_announce.peer_count(), 2);
        assert_eq!(announced(b"d14:failure reason2:noe"), Ok(TrackerResponse::Failure(b"no")));
    }

    #[test]
    fn what_clients_would_not_take_is_told_apart() {
        for (body, flaw) in [
            (&b"<html>"[..], ResponseError::NotBencode),
            (b"d8:intervali1e5:peers0:", ResponseError::NotBencode),
            (b"d8:intervali1e5:peers0:ex", ResponseError::TrailingBytes),
            (b"d5:peers0:8:intervali1ee", ResponseError::UnsortedKeys),
            (b"d8:intervali1e8:intervali1e5:peers0:e", ResponseError::UnsortedKeys),
            (b"d5:peers0:e", ResponseError::NoInterval),
            (b"d8:intervali-1e5:peers0:e", ResponseError::NoInterval),
            (b"d8:intervali1ee", ResponseError::NoPeers),
            (b"d8:intervali1e5:peers5:abcdee", ResponseError::RaggedPeers),
            (b"d8:intervali1e5:peers0:6:peers66:abcdefe", ResponseError::RaggedPeers),
            (b"d8:completei-1e8:intervali1e5:peers0:e", ResponseError::BadCount),
        ] {
            assert_eq!(announced(body), Err(flaw), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn scrapes_are_read() {
        let mut body = b"d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei1e10:downloadedi2e".to_vec();
        body.extend(b"10:incompletei3eeee");
        let mut entries = Vec::new();
        let count = scraped(&body, |hash, entry| entries.push((hash, entry)));
        let wanted = ScrapeEntry { seeders: 1, completed: 2, leechers: 3, downloaders: 0 };
        assert_eq!((count, entries), (Ok(TrackerResponse::Granted(1)), vec![([b'a'; 20], wanted)]));
        assert_eq!(scraped(b"d5:filesdee", |_, _| {}), Ok(TrackerResponse::Granted(0)));
        assert_eq!(scraped(b"de", |_, _| {}), Err(ResponseError::NoFiles));
        assert_eq!(scraped(b"d5:filesd1:adeee", |_, _| {}), Err(ResponseError::NoFiles));
    }
}
