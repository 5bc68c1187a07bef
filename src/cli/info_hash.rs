//! Torrents on the command line: hexadecimal digits, a magnet link, a `.torrent` file, or a folder
//! of such files.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::access::lists::{ListKind, ListValue, parse_value};
use crate::client::metainfo::{Metainfo, MetainfoError};
use crate::sys::regular_file;
use crate::types::InfoHash;

/// The largest `.torrent` file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The deepest folder that is searched.
const DEPTH_MAX: usize = 32;

/// The info-hash of an argument: 40 or 64 hexadecimal digits, a magnet link, else the path of a
/// `.torrent` file. Of a hybrid torrent, the v1 hash.
///
/// # Errors
/// Why there is none, for the user.
pub(super) fn of_argument(text: &str) -> Result<InfoHash, String> {
    if let Some((ListValue::Torrent(info_hash), _)) = parse_value(ListKind::Torrents, text) {
        return Ok(info_hash);
    }
    let file = read(Path::new(text)).map_err(|error| {
        format!(
            "neither 40 or 64 hexadecimal digits, nor a magnet link, nor a readable .torrent file: \
             {error}"
        )
    })?;
    let torrent = Metainfo::parse(&file).map_err(|error| not_a_torrent(&error))?;
    torrent.info_hash().ok_or_else(|| "the torrent has no info-hash".to_owned())
}

/// Every info-hash of a `.torrent` file: two of a hybrid, v1 first.
///
/// # Errors
/// Why there is none, for the user.
pub(super) fn all_of_file(path: &Path) -> Result<Vec<InfoHash>, String> {
    let file = read(path).map_err(|error| error.to_string())?;
    let torrent = Metainfo::parse(&file).map_err(|error| not_a_torrent(&error))?;
    Ok([torrent.v1, torrent.v2_cut()].into_iter().flatten().collect())
}

/// The error for a file that is not a torrent.
pub(super) fn not_a_torrent(error: &MetainfoError) -> String {
    format!("is not a torrent: {error}")
}

/// Reads a whole `.torrent` file.
///
/// # Errors
/// If it is not a regular file, longer than [`FILE_BYTES_MAX`], or cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = regular_file::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        let problem = format!("the file is longer than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::other(problem));
    }
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A path that leads to no `.torrent` file, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub(super) struct FileError {
    pub(super) path: PathBuf,
    pub(super) problem: String,
}

/// A path as a file, or the `.torrent` files of a folder and of those below in sorted order. A file
/// that is named here needs no `.torrent` extension. Links to folders are followed only here. Never
/// empty: a folder without such a file is an error.
pub(super) fn torrent_files(path: &Path) -> Vec<Result<PathBuf, FileError>> {
    let mut files = Vec::new();
    collect(path, 0, &mut files);
    if files.is_empty() {
        let problem = "no .torrent file in this folder, nor in those below".to_owned();
        files.push(Err(FileError { path: path.to_owned(), problem }));
    }
    files
}

fn collect(path: &Path, depth: usize, files: &mut Vec<Result<PathBuf, FileError>>) {
    let failed = |problem: String| Err(FileError { path: path.to_owned(), problem });
    let is_folder = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() && depth == 0 => path.is_dir(),
        Ok(metadata) => metadata.is_dir(),
        Err(error) => return files.push(failed(error.to_string())),
    };
    if !is_folder {
        if depth == 0 || path.extension().is_some_and(|it| it.eq_ignore_ascii_case("torrent")) {
            files.push(Ok(path.to_owned()));
        }
        return;
    }
    if depth > DEPTH_MAX {
        return files.push(failed(format!("folders are nested more than {DEPTH_MAX} deep")));
    }
    let entries = fs::read_dir(path).and_then(|entries| {
        let paths = entries.map(|entry| Ok(entry?.path()));
        paths.collect::<io::Result<Vec<_>>>()
    });
    match entries {
        Err(error) => files.push(failed(error.to_string())),
        Ok(mut paths) => {
            paths.sort();
            paths.iter().for_each(|path| collect(path, depth + 1, files));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "d6:lengthi1e4:name1:x12:piece lengthi1e6:pieces20:aaaaaaaaaaaaaaaaaaaae";

    #[test]
    fn hashes_are_digits_or_in_a_link_or_in_a_file() {
        let digits = "00ff".repeat(10);
        let hash = InfoHash::from_hex(&digits).unwrap();
        assert_eq!(of_argument(&digits), Ok(hash));
        assert_eq!(of_argument(&(digits.to_uppercase() + &"a".repeat(24))), Ok(hash));
        assert_eq!(of_argument(&format!("magnet:?xt=urn:btih:{digits}&dn=x")), Ok(hash));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        fs::write(path, format!("d4:info{INFO}e")).unwrap();
        let expected = Metainfo::parse(&fs::read(path).unwrap()).unwrap().info_hash().unwrap();
        assert_eq!(of_argument(path), Ok(expected));
        assert_eq!(all_of_file(file.path()), Ok(vec![expected]));
        fs::write(path, b"hello").unwrap();
        for problem in [of_argument(path).unwrap_err(), all_of_file(file.path()).unwrap_err()] {
            assert!(problem.starts_with("is not a torrent: "), "{problem}");
        }
        assert!(of_argument(&digits[1..]).unwrap_err().contains("40 or 64"));
    }

    #[test]
    fn a_folder_has_its_files_in_order_and_one_without_them_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("below/empty")).unwrap();
        for name in ["b.torrent", "a.txt", "below/a.TORRENT"] {
            fs::write(at(name), "").unwrap();
        }
        let found = |path: &str| -> Vec<_> {
            torrent_files(&at(path)).into_iter().map(|file| file.map_err(|it| it.problem)).collect()
        };
        assert_eq!(found(""), [Ok(at("b.torrent")), Ok(at("below/a.TORRENT"))]);
        assert_eq!(found("a.txt"), [Ok(at("a.txt"))]);
        let problem = found("below/empty").pop().unwrap().unwrap_err();
        assert!(problem.starts_with("no .torrent file in this folder"), "{problem}");
        assert!(found("nowhere")[0].as_ref().unwrap_err().contains("No such file"));
    }
}
