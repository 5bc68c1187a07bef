//! The files of lists: read as a whole, edited line by line, replaced atomically.
//!
//! An edit keeps everything else, comments included, so that people and programs can share a file.
//! It applies to the file's current contents, not to those that were loaded: after an edit, the
//! list in force is that of the file.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ahash::RandomState;

use crate::access::lists::{AccessList, Line, ListKind, ListLineError, ListName, ListValue, line};

/// The largest file that is read, in bytes: every entry a list may have, with a reason or a link.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Mode of files that skep creates.
const MODE: u32 = 0o600;

/// Mode of the folder that skep creates for them.
const FOLDER_MODE: u32 = 0o700;

/// The file of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListFile {
    pub(super) path: PathBuf,
    /// Whether a setting names it. Then it must exist; skep's own file is created when needed.
    pub(super) configured: bool,
}

/// Why a list's file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListFileError {
    /// The file cannot be read.
    #[error(
        "cannot read the access list {}: {reason}; remedy: create the file, let skep's user read \
         it, or correct its setting in [access]", path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {reason}; remedy: let skep's user write the folder", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A line has no value of the list's kind.
    #[error("{}:{line}: {}", path.display(), self.problem())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// The beginning of the line.
        word: String,
        /// What a line of this list must be.
        expected: String,
    },
}

impl ListFileError {
    /// The file and the line, from 1, if one line is wrong.
    pub fn place(&self) -> Option<(PathBuf, usize)> {
        match self {
            Self::Line { path, line, .. } => Some((path.clone(), *line)),
            _ => None,
        }
    }

    /// The beginning of the line, if one line is wrong.
    pub fn word(&self) -> Option<String> {
        match self {
            Self::Line { word, .. } => Some(word.clone()),
            _ => None,
        }
    }

    /// What is wrong, without the place if it is one line.
    pub fn problem(&self) -> String {
        match self {
            // The reason why a word is not a network quotes it already.
            Self::Line { word, expected, .. } if expected.starts_with(&format!("{word:?}")) => {
                format!("invalid line: {expected}")
            }
            Self::Line { word, expected, .. } => {
                format!("invalid line {word:?}; expected: {expected}")
            }
            other => other.to_string(),
        }
    }
}

/// Most bad lines of a file that [`ListFile::faults`] names.
pub(super) const FAULTS_MAX: usize = 20;

/// Most characters of a line that an error quotes.
const WORD_CHARACTERS_MAX: usize = 60;

/// A change of a list. A value both to remove and to add is added.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// Values to add, each with an optional reason.
    pub add: Vec<(ListValue, Option<String>)>,
    /// Values to remove.
    pub remove: Vec<ListValue>,
}

impl ListFile {
    /// Reads the list.
    ///
    /// # Errors
    /// The file, the line if there is one, the cause and the remedy.
    pub(super) fn load(&self, name: ListName) -> Result<AccessList, ListFileError> {
        let text = self.text().map_err(|error| self.unreadable(&error))?;
        AccessList::parse(name.kind(), &text).map_err(|error| self.bad_line(name, &text, error))
    }

    /// Everything that is wrong with the file: that it cannot be read, or its bad lines, at most
    /// [`FAULTS_MAX`] of them.
    pub(super) fn faults(&self, name: ListName) -> Vec<ListFileError> {
        let text = match self.text() {
            Ok(text) => text,
            Err(error) => return vec![self.unreadable(&error)],
        };
        let lines = (1..).zip(text.split(|it| *it == b'\n'));
        let bad = lines.filter_map(|(number, bytes)| {
            let problem = line(name.kind(), bytes).err()?;
            Some(self.bad_line(name, &text, ListLineError { line: number, problem }))
        });
        let bad: Vec<_> = bad.take(FAULTS_MAX).collect();
        if bad.is_empty() { self.load(name).err().into_iter().collect() } else { bad }
    }

    /// Changes the file, and returns the new list.
    ///
    /// # Errors
    /// As [`ListFile::load`]; or why the file cannot be written.
    pub(super) fn edit(&self, name: ListName, edit: &Edit) -> Result<AccessList, ListFileError> {
        let before = self.text().map_err(|error| self.unreadable(&error))?;
        let after = edited(name.kind(), &before, edit)
            .map_err(|error| self.bad_line(name, &before, error))?;
        let list = AccessList::parse(name.kind(), &after)
            .map_err(|error| self.bad_line(name, &after, error))?;
        if after != before {
            self.replace(&after).map_err(|error| ListFileError::Write {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
        }
        Ok(list)
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        // A setting may name a link. skep itself never creates one, so one in its folder is
        // refused.
        let flags = if self.configured { 0 } else { libc::O_NOFOLLOW };
        let flags = flags | libc::O_NONBLOCK; // never waits for a pipe
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.configured => {
                return Ok(Vec::new());
            }
            file => file?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            let problem = format!("not a regular file, or longer than {FILE_BYTES_MAX} bytes");
            return Err(io::Error::other(problem));
        }
        let mut text = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Writes a new file beside the old one and renames it: a reader sees either the old or the new
    /// contents as a whole, also after a power cut.
    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let real =
            Some(&self.path).filter(|_| self.configured).and_then(|it| it.canonicalize().ok());
        let real = real.unwrap_or_else(|| self.path.clone());
        let mode = fs::metadata(&real).map_or(MODE, |it| it.permissions().mode() & 0o777);
        let folder = real.parent().filter(|it| !it.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let unfinished = real.with_extension(format!("{:016x}", u64::from_ne_bytes(random)));
        let written = write_new(&unfinished, mode, text).and_then(|()| {
            fs::rename(&unfinished, &real)?;
            File::open(folder)?.sync_all()
        });
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    fn unreadable(&self, error: &io::Error) -> ListFileError {
        ListFileError::Read { path: self.path.clone(), reason: error.to_string() }
    }

    /// An error with the beginning of the line.
    fn bad_line(&self, name: ListName, text: &[u8], error: ListLineError) -> ListFileError {
        let ListLineError { line, problem } = error;
        let bytes = text.split(|it| *it == b'\n').nth(line - 1).unwrap_or_default();
        let whole = String::from_utf8_lossy(bytes);
        let word = whole.split_whitespace().next().unwrap_or_default();
        let kind = name.kind();
        let is_value = problem == kind.allowed();
        let expected = if is_value { kind.expected_instead_of(word) } else { problem.to_owned() };
        let word = word.chars().take(WORD_CHARACTERS_MAX).collect();
        ListFileError::Line { path: self.path.clone(), line, word, expected }
    }
}

fn write_new(path: &Path, mode: u32, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?; // whatever the umask is
    file.write_all(text)?;
    file.sync_all()
}

/// A list's text after an edit.
fn edited(kind: ListKind, text: &[u8], edit: &Edit) -> Result<Vec<u8>, ListLineError> {
    let mut touched: HashMap<ListValue, (), RandomState> = HashMap::default();
    let values = edit.remove.iter().chain(edit.add.iter().map(|it| &it.0));
    touched.extend(values.map(|it| (*it, ())));
    let mut out = Vec::with_capacity(text.len());
    for (number, bytes) in (1..).zip(text.split_inclusive(|it| *it == b'\n')) {
        let parsed =
            line(kind, bytes).map_err(|problem| ListLineError { line: number, problem })?;
        let Line::Entry(first, second, reason) = parsed else {
            out.extend_from_slice(bytes);
            continue;
        };
        let kept = [Some(first), second].map(|it| it.filter(|it| !touched.contains_key(it)));
        if kept == [Some(first), second] {
            out.extend_from_slice(bytes);
            continue;
        }
        // Of a hybrid's magnet link, one of two values may stay.
        kept.into_iter().flatten().for_each(|it| push(&mut out, &it, reason));
    }
    if out.last().is_some_and(|it| *it != b'\n') {
        out.push(b'\n');
    }
    for (value, reason) in &edit.add {
        push(&mut out, value, reason.as_deref());
    }
    Ok(out)
}

fn push(out: &mut Vec<u8>, value: &ListValue, reason: Option<&str>) {
    out.extend_from_slice(value.to_string().as_bytes());
    if let Some(reason) = reason {
        out.push(b' ');
        out.extend_from_slice(reason.as_bytes());
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::lists::parse_value;

    fn value(kind: ListKind, text: &str) -> ListValue {
        parse_value(kind, text).unwrap().0
    }

    fn file(folder: &Path) -> ListFile {
        ListFile { path: folder.join("a/ports_deny.list"), configured: false }
    }

    #[test]
    fn an_edit_keeps_everything_it_is_not_about() {
        let text = b"# ours\r\n25 mail\n\n  6881-6889  worn out\n# end";
        let edit = Edit {
            add: vec![
                (value(ListKind::Ports, "25"), None),
                (value(ListKind::Ports, "80"), Some("w b".into())),
            ],
            remove: vec![value(ListKind::Ports, "443")],
        };
        let after = edited(ListKind::Ports, text, &edit).unwrap();
        let expected = "# ours\r\n\n  6881-6889  worn out\n# end\n25\n80 w b\n";
        assert_eq!(String::from_utf8(after).unwrap(), expected);
        let nothing = edited(ListKind::Ports, text, &Edit::default()).unwrap();
        assert_eq!(nothing, [&text[..], b"\n"].concat());
    }

    #[test]
    fn half_a_hybrid_stays_when_the_other_half_goes() {
        let (v1, v2) = ("11".repeat(20), "22".repeat(32));
        let text = format!("magnet:?xt=urn:btih:{v1}&xt=urn:btmh:1220{v2} why\n");
        let remove = vec![value(ListKind::Torrents, &v1)];
        let edit = Edit { add: Vec::new(), remove };
        let after = edited(ListKind::Torrents, text.as_bytes(), &edit).unwrap();
        assert_eq!(String::from_utf8(after).unwrap(), format!("{} why\n", &v2[..40]));
    }

    #[test]
    fn a_file_of_ours_is_made_when_needed_and_changes_keep_mode_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let list_file = file(folder.path());
        assert!(list_file.load(ListName::PortsDeny).unwrap().is_empty());
        let add = vec![(value(ListKind::Ports, "25"), Some("mail".to_owned()))];
        let list = list_file.edit(ListName::PortsDeny, &Edit { add, remove: Vec::new() }).unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(fs::read_to_string(&list_file.path).unwrap(), "25 mail\n");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&list_file.path), MODE);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&list_file.path, &link).unwrap();
        fs::set_permissions(&list_file.path, fs::Permissions::from_mode(0o640)).unwrap();
        let linked = ListFile { path: link.clone(), configured: true };
        let remove = vec![value(ListKind::Ports, "25")];
        linked.edit(ListName::PortsDeny, &Edit { add: Vec::new(), remove }).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((fs::read(&list_file.path).unwrap().len(), mode(&list_file.path)), (0, 0o640));
        assert_eq!(
            fs::read_dir(list_file.path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left"
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = ListFile { path: folder.path().join("list"), configured: true };
        let error = file.load(ListName::PortsDeny).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("/list: "), "{error}");
        fs::write(&file.path, "25\nhttp\n").unwrap();
        let error = file.load(ListName::PortsDeny).unwrap_err().to_string();
        assert!(error.contains("/list:2: ") && error.contains("6881-6889"), "{error}");
        let add = vec![(value(ListKind::Ports, "80"), None)];
        let error = file
            .edit(ListName::PortsDeny, &Edit { add, remove: Vec::new() })
            .unwrap_err()
            .to_string();
        assert!(error.contains("/list:2: "), "{error}");
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "25\nhttp\n", "nothing is lost");
        let list = folder.path().join("list");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&list, &link).unwrap();
        assert!(ListFile { path: link, configured: false }.text().is_err(), "nobody made it");
        let folder = ListFile { path: folder.path().to_owned(), configured: true };
        assert!(folder.load(ListName::PortsDeny).is_err());
    }
}
