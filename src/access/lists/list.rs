//! One list: its values with their reasons, with fast lookups at any length.

use std::collections::HashMap;
use std::net::IpAddr;

use ahash::RandomState;

use super::value::{self, ListKind, ListValue, PeerIdPrefix};
use crate::networks::NetworkSet;
use crate::types::{InfoHash, PeerId};

/// The longest reason, in bytes: a client shows it in one line.
pub const REASON_BYTES_MAX: usize = 200;

/// The longest line, in bytes: a magnet link with a few dozen trackers.
const LINE_BYTES_MAX: usize = 8192;

/// Maximum number of entries of one list: 2 Mi torrents take about 100 MB.
pub const ENTRIES_MAX: usize = 2 << 20;

/// Index of a value's reason among the reasons, from 1; 0: no reason.
type ReasonAt = u32;

/// A line that cannot be read, and what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListLineError {
    /// The line's number, from 1.
    pub line: usize,
    /// What is expected, in words.
    pub problem: &'static str,
}

/// A parsed line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Nothing, or a comment.
    Blank,
    /// One or two values, and an optional reason.
    Entry(ListValue, Option<ListValue>, Option<&'a str>),
}

/// Values of one kind, each with or without a reason.
#[derive(Clone, Debug)]
pub struct AccessList {
    kind: ListKind,
    table: ValueTable,
    /// The reasons in use, each once.
    reasons: Vec<Box<str>>,
}

#[derive(Clone, Debug)]
enum ValueTable {
    /// Hundreds of thousands of values: only a hash table.
    Torrents(HashMap<InfoHash, ReasonAt, RandomState>),
    /// Hundreds or thousands of values: sorted, with an index for lookups.
    Others(Vec<(ListValue, ReasonAt)>, Index),
}

#[derive(Clone, Debug)]
enum Index {
    Networks(NetworkSet),
    /// For each length in use, longest first, the prefixes of that length.
    Clients(Vec<(usize, HashMap<PeerIdPrefix, ReasonAt, RandomState>)>),
    /// An entry for each port: 0 if it is not listed, else the index of its reason + 1.
    Ports(Vec<u32>),
}

impl AccessList {
    /// An empty list.
    pub fn empty(kind: ListKind) -> Self {
        Self::new(kind, HashMap::default(), Vec::new())
    }

    /// Parses a list: one value per line, then optionally blanks and a reason. If a value occurs
    /// twice, its last reason counts.
    ///
    /// # Errors
    /// [`ListLineError`] with the first line that cannot be read.
    pub fn parse(kind: ListKind, text: &[u8]) -> Result<Self, ListLineError> {
        let mut values = HashMap::default();
        let mut reasons = Reasons::default();
        for (line, bytes) in (1..).zip(text.split(|it| *it == b'\n')) {
            let error = |problem| ListLineError { line, problem };
            let Line::Entry(value, second, reason) = self::line(kind, bytes).map_err(error)? else {
                continue;
            };
            let reason = reasons.place(reason);
            for value in [Some(value), second].into_iter().flatten() {
                values.insert(value, reason);
            }
            if values.len() > ENTRIES_MAX {
                return Err(error("a list of at most 2097152 entries"));
            }
        }
        Ok(Self::new(kind, values, reasons.texts))
    }

    fn new(
        kind: ListKind,
        values: HashMap<ListValue, ReasonAt, RandomState>,
        reasons: Vec<Box<str>>,
    ) -> Self {
        let table = if kind == ListKind::Torrents {
            let torrent = |(value, reason): (ListValue, ReasonAt)| match value {
                ListValue::Torrent(info_hash) => Some((info_hash, reason)),
                _ => None,
            };
            ValueTable::Torrents(values.into_iter().filter_map(torrent).collect())
        } else {
            let mut values: Vec<_> = values.into_iter().collect();
            values.sort_unstable();
            let index = Index::new(kind, &values);
            ValueTable::Others(values, index)
        };
        Self { kind, table, reasons }
    }

    /// The kind of its values.
    pub fn kind(&self) -> ListKind {
        self.kind
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.table {
            ValueTable::Torrents(them) => them.len(),
            ValueTable::Others(them, _) => them.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether exactly this value is listed, and its reason.
    pub fn get(&self, value: &ListValue) -> Option<Option<&str>> {
        let at = match (&self.table, value) {
            (ValueTable::Torrents(them), ListValue::Torrent(info_hash)) => *them.get(info_hash)?,
            (ValueTable::Others(them, _), _) => {
                them[them.binary_search_by_key(value, |it| it.0).ok()?].1
            }
            _ => return None,
        };
        Some(self.reason(at))
    }

    /// At most `limit` entries after `after`, in order.
    pub fn page(&self, after: Option<&ListValue>, limit: usize) -> Vec<(ListValue, Option<&str>)> {
        let behind = |it: &ListValue| after.is_none_or(|after| it > after);
        let mut page: Vec<_> = match &self.table {
            ValueTable::Torrents(them) => {
                let mut all: Vec<_> = them
                    .iter()
                    .map(|(hash, at)| (ListValue::Torrent(*hash), *at))
                    .filter(|it| behind(&it.0))
                    .collect();
                if limit < all.len() {
                    all.select_nth_unstable(limit);
                    all.truncate(limit);
                }
                all
            }
            ValueTable::Others(them, _) => {
                let start = them.partition_point(|it| !behind(&it.0));
                them[start..].iter().take(limit).copied().collect()
            }
        };
        page.sort_unstable();
        page.into_iter().map(|(value, at)| (value, self.reason(at))).collect()
    }

    /// Whether both lists have the same values.
    pub fn is_same(&self, other: &Self) -> bool {
        self.len() == other.len() && self.count_not_in(other) == 0
    }

    /// Number of values of this list that are not on `other`.
    pub fn count_not_in(&self, other: &Self) -> usize {
        let is_new = |it: ListValue| other.get(&it).is_none();
        match &self.table {
            ValueTable::Torrents(them) => {
                them.keys().filter(|it| is_new(ListValue::Torrent(**it))).count()
            }
            ValueTable::Others(them, _) => them.iter().filter(|it| is_new(it.0)).count(),
        }
    }

    /// Number of values that are on `other` as well, with another reason.
    pub fn count_with_other_reason(&self, other: &Self) -> usize {
        let differs = |value: ListValue, at: ReasonAt| {
            other.get(&value).is_some_and(|reason| reason != self.reason(at))
        };
        match &self.table {
            ValueTable::Torrents(them) => {
                them.iter().filter(|it| differs(ListValue::Torrent(*it.0), *it.1)).count()
            }
            ValueTable::Others(them, _) => them.iter().filter(|it| differs(it.0, it.1)).count(),
        }
    }

    /// Whether a torrent is listed, and its reason.
    #[inline]
    pub(super) fn torrent(&self, info_hash: &InfoHash) -> Option<Option<&str>> {
        match &self.table {
            ValueTable::Torrents(them) => them.get(info_hash).map(|it| self.reason(*it)),
            ValueTable::Others(..) => None,
        }
    }

    /// Whether a network with this address is listed, and its reason.
    #[inline]
    pub(super) fn address(&self, address: IpAddr) -> Option<Option<&str>> {
        match &self.table {
            ValueTable::Others(_, Index::Networks(them)) => {
                them.find(address).map(|it| self.reason(it))
            }
            _ => None,
        }
    }

    /// Whether a prefix of this peer id is listed, and the reason of the longest one.
    #[inline]
    pub(super) fn peer_id(&self, peer_id: &PeerId) -> Option<Option<&str>> {
        let ValueTable::Others(_, Index::Clients(by_length)) = &self.table else { return None };
        let find = |(length, them): &(usize, HashMap<PeerIdPrefix, _, _>)| {
            them.get(&PeerIdPrefix::of(&peer_id.0, *length)).copied()
        };
        by_length.iter().find_map(find).map(|it| self.reason(it))
    }

    /// Whether a port is listed, and its reason.
    #[inline]
    pub(super) fn port(&self, port: u16) -> Option<Option<&str>> {
        let ValueTable::Others(_, Index::Ports(them)) = &self.table else { return None };
        let at = them.get(usize::from(port)).copied().unwrap_or(0);
        at.checked_sub(1).map(|it| self.reason(it))
    }

    fn reason(&self, at: ReasonAt) -> Option<&str> {
        let index = usize::try_from(at.checked_sub(1)?).ok()?;
        self.reasons.get(index).map(|it| &**it)
    }
}

impl Index {
    fn new(kind: ListKind, values: &[(ListValue, ReasonAt)]) -> Self {
        match kind {
            ListKind::Clients => Self::clients(values),
            ListKind::Ports => Self::ports(values),
            ListKind::Networks | ListKind::Torrents => {
                let network = |(value, at): &(ListValue, ReasonAt)| match value {
                    ListValue::Network(net) => Some((*net, *at)),
                    _ => None,
                };
                Self::Networks(NetworkSet::new(values.iter().filter_map(network)))
            }
        }
    }

    fn clients(values: &[(ListValue, ReasonAt)]) -> Self {
        let mut by_length: Vec<(usize, HashMap<_, _, _>)> = Vec::new();
        for (value, at) in values {
            let ListValue::Client(prefix) = value else { continue };
            let length = prefix.length();
            let place = by_length.iter().position(|it| it.0 == length).unwrap_or_else(|| {
                by_length.push((length, HashMap::default()));
                by_length.len() - 1
            });
            by_length[place].1.insert(*prefix, *at);
        }
        by_length.sort_unstable_by_key(|it| std::cmp::Reverse(it.0));
        Self::Clients(by_length)
    }

    fn ports(values: &[(ListValue, ReasonAt)]) -> Self {
        if values.is_empty() {
            return Self::Ports(Vec::new());
        }
        let mut all = vec![0; usize::from(u16::MAX) + 1];
        for (value, at) in values {
            let ListValue::Ports(first, last) = value else { continue };
            all[usize::from(*first)..=usize::from(*last)].fill(at + 1);
        }
        Self::Ports(all)
    }
}

/// Parses one line, with or without its end.
///
/// # Errors
/// What is expected instead, in words.
pub fn line(kind: ListKind, bytes: &[u8]) -> Result<Line<'_>, &'static str> {
    if bytes.len() > LINE_BYTES_MAX {
        return Err("a line of at most 8192 bytes");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "text in UTF-8")?.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(Line::Blank);
    }
    let (word, reason) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let (value, second) = value::parse(kind, word).ok_or_else(|| kind.allowed())?;
    let reason = self::reason(reason.trim_start())?;
    Ok(Line::Entry(value, second, reason))
}

/// Checks a reason; `None` if it is empty.
///
/// # Errors
/// What is expected instead, in words.
pub fn reason(text: &str) -> Result<Option<&str>, &'static str> {
    if text.len() > REASON_BYTES_MAX {
        return Err("a reason of at most 200 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("a reason without control characters");
    }
    Ok(Some(text).filter(|it| !it.is_empty()))
}

/// Reasons, each stored once for all entries that share it.
#[derive(Default)]
struct Reasons {
    texts: Vec<Box<str>>,
    places: HashMap<Box<str>, ReasonAt, RandomState>,
}

impl Reasons {
    fn place(&mut self, reason: Option<&str>) -> ReasonAt {
        let Some(text) = reason else { return 0 };
        if let Some(at) = self.places.get(text) {
            return *at;
        }
        self.texts.push(text.into());
        let at = ReasonAt::try_from(self.texts.len()).unwrap_or(0);
        self.places.insert(text.into(), at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(kind: ListKind, text: &str) -> AccessList {
        AccessList::parse(kind, text.as_bytes()).unwrap()
    }

    #[test]
    fn lines_hold_a_value_and_a_reason() {
        let text = "# whom we know\n\n10.0.0.0/8\r\n  192.0.2.0/24\t a flood, see #12  \n::1";
        let access_list = list(ListKind::Networks, text);
        assert_eq!(access_list.len(), 3);
        assert_eq!(access_list.address("10.1.2.3".parse().unwrap()), Some(None));
        let reason = "a flood, see #12";
        assert_eq!(access_list.address("192.0.2.9".parse().unwrap()), Some(Some(reason)));
        assert_eq!(access_list.address("192.0.3.0".parse().unwrap()), None);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = |text: &[u8]| AccessList::parse(ListKind::Ports, text).unwrap_err();
        let fault = error(b"1\n# x\nhttp\n2");
        assert_eq!((fault.line, fault.problem), (3, ListKind::Ports.allowed()));
        assert_eq!(error(b"1 \xff").line, 1);
        assert_eq!(error(format!("\n1 {}", "x".repeat(201)).as_bytes()).line, 2);
        assert_eq!(error(b"1 a\x1bb").problem, "a reason without control characters");
        assert_eq!(error(b"\xff").problem, "text in UTF-8");
        assert_eq!(error(&vec![b' '; LINE_BYTES_MAX + 1]).line, 1);
    }

    #[test]
    fn the_longest_prefix_of_a_peer_id_counts() {
        let access_list = list(ListKind::Clients, "-XL wastes\n-XL0012-\n%00%01 broken");
        let find = |id: &[u8; 20]| access_list.peer_id(&PeerId(*id));
        assert_eq!(find(b"-XL0012-abcdefghijkl"), Some(None));
        assert_eq!(find(b"-XL0013-abcdefghijkl"), Some(Some("wastes")));
        assert_eq!(find(b"\x00\x01-----------------@"), Some(Some("broken")));
        assert_eq!(find(b"-XM0012-abcdefghijkl"), None);
    }

    #[test]
    fn ports_are_found_in_ranges() {
        let access_list = list(ListKind::Ports, "6881-6889 worn out\n25\n65535");
        assert_eq!(access_list.port(6881), Some(Some("worn out")));
        assert_eq!(
            (access_list.port(25), access_list.port(65535), access_list.port(6890)),
            (Some(None), Some(None), None)
        );
        assert_eq!(list(ListKind::Ports, "").port(0), None);
    }

    #[test]
    fn pages_are_in_order_and_differences_are_counted() {
        let hash = |it: u8| format!("{it:02x}").repeat(20);
        let lines: String = (0..9).rev().map(|it| hash(it) + " r\n").collect();
        let access_list = list(ListKind::Torrents, &lines);
        let page = access_list.page(None, 4);
        assert_eq!(page.len(), 4);
        assert_eq!((page[0].0.to_string(), page[3].0.to_string()), (hash(0), hash(3)));
        let rest = access_list.page(Some(&page[3].0), 100);
        assert_eq!((rest.len(), rest[0].0.to_string(), rest[0].1), (5, hash(4), Some("r")));
        let other = list(ListKind::Torrents, &format!("{}\n{}", hash(8), hash(200)));
        assert_eq!((access_list.count_not_in(&other), other.count_not_in(&access_list)), (8, 1));
        let ports = list(ListKind::Ports, "1\n2\n3-9");
        let texts: Vec<_> = ports.page(None, 2).iter().map(|it| it.0.to_string()).collect();
        assert_eq!(texts, ["1", "2"]);
        assert_eq!(ports.page(Some(&ListValue::Ports(2, 2)), 9).len(), 1);
    }

    #[test]
    fn the_last_reason_of_a_value_counts() {
        let access_list = list(ListKind::Ports, "1 a\n1 b");
        assert_eq!((access_list.len(), access_list.port(1)), (1, Some(Some("b"))));
    }
}
