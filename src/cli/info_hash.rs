//! Info-hashes on the command line: digits, or a `.torrent` file that has them.

use std::io::Read as _;
use std::path::Path;

use crate::client::metainfo::Metainfo;
use crate::sys::regular_file;
use crate::types::InfoHash;

/// The largest `.torrent` file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Digits of a v1 info-hash.
const V1_DIGITS: usize = 40;

/// Digits of a v2 info-hash, whose first 40 are announced (BEP 52).
const V2_DIGITS: usize = 64;

/// The info-hash of an argument: 40 or 64 hexadecimal digits, else the path of a `.torrent` file.
///
/// # Errors
/// Why there is none, for the user.
pub(super) fn of_argument(text: &str) -> Result<InfoHash, String> {
    let is_hash = [V1_DIGITS, V2_DIGITS].contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash && let Some(hash) = InfoHash::from_hex(&text[..V1_DIGITS]) {
        return Ok(hash);
    }
    let file = read(Path::new(text)).map_err(|error| {
        format!("neither 40 or 64 hexadecimal digits nor a readable .torrent file: {error}")
    })?;
    let torrent = Metainfo::parse(&file).map_err(|error| format!("not a torrent: {error}"))?;
    torrent.info_hash().ok_or_else(|| "the torrent has no info-hash".to_owned())
}

/// Reads a whole `.torrent` file.
pub(super) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = regular_file::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        let problem = format!("the file is longer than {FILE_BYTES_MAX} bytes");
        return Err(std::io::Error::other(problem));
    }
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_digits_or_in_a_file() {
        let digits = "00ff".repeat(10);
        let hash = InfoHash::from_hex(&digits).unwrap();
        assert_eq!(of_argument(&digits), Ok(hash));
        assert_eq!(of_argument(&(digits.to_uppercase() + &"a".repeat(24))), Ok(hash));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let info = b"d6:lengthi1e4:name1:x12:piece lengthi1e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        std::fs::write(path, [b"d4:info", &info[..], b"e"].concat()).unwrap();
        let expected = Metainfo::parse(&std::fs::read(path).unwrap()).unwrap().info_hash().unwrap();
        assert_eq!(of_argument(path), Ok(expected));
        std::fs::write(path, b"hello").unwrap();
        assert!(of_argument(path).unwrap_err().starts_with("not a torrent: "));
        assert!(of_argument(&digits[1..]).unwrap_err().contains("40 or 64"));
    }
}
