//! Lists of who and what is served: immutable, replaced as a whole, read by every worker without a
//! lock.
//!
//! A value on a deny list is refused. If an allow list is in force, a value that is not on it is
//! refused, and so is a value on both lists. Each kind has its own list, so that a program that
//! writes one needs nothing from the others.

mod list;
mod value;

use std::net::IpAddr;
use std::sync::Arc;

pub use list::{AccessList, ENTRIES_MAX, Line, ListLineError, REASON_BYTES_MAX, line, reason};
pub use value::{ListKind, ListValue, PeerIdPrefix, Values, parse as parse_value};

use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::types::{InfoHash, PeerId, Refusal};

/// The name of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ListName {
    /// Torrents that are served; no others.
    TorrentsAllow,
    /// Torrents that are not served.
    TorrentsDeny,
    /// Networks that are served; no others.
    NetworksAllow,
    /// Networks that are not served.
    NetworksDeny,
    /// Clients that are served; no others.
    ClientsAllow,
    /// Clients that are not served.
    ClientsDeny,
    /// Ports that no peer may listen on.
    PortsDeny,
}

impl ListName {
    /// Every list, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The kind of its values.
    pub const fn kind(self) -> ListKind {
        match self {
            Self::TorrentsAllow | Self::TorrentsDeny => ListKind::Torrents,
            Self::NetworksAllow | Self::NetworksDeny => ListKind::Networks,
            Self::ClientsAllow | Self::ClientsDeny => ListKind::Clients,
            Self::PortsDeny => ListKind::Ports,
        }
    }

    /// Whether a value that is not on it is refused.
    pub const fn allows(self) -> bool {
        matches!(self, Self::TorrentsAllow | Self::NetworksAllow | Self::ClientsAllow)
    }

    /// The setting's name, and the label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// The fields of an announce or a scrape that lists are checked for. A scrape has neither peer id
/// nor port.
#[derive(Clone, Copy, Debug)]
pub struct AccessQuery<'a> {
    /// The torrent.
    pub info_hash: &'a InfoHash,
    /// The source address; IPv4 is never mapped to IPv6.
    pub source: IpAddr,
    /// The peer id.
    pub peer_id: Option<&'a PeerId>,
    /// The port that the peer listens on, if any.
    pub port: Option<u16>,
}

/// All lists as they are at one moment.
#[derive(Clone, Debug)]
pub struct Lists {
    lists: [Arc<AccessList>; ListName::ALL.len()],
    in_force: [bool; ListName::ALL.len()],
    any: bool,
}

impl Default for Lists {
    fn default() -> Self {
        let lists = ListName::ALL.map(|it| Arc::new(AccessList::empty(it.kind())));
        Self { lists, in_force: [false; ListName::ALL.len()], any: false }
    }
}

impl Lists {
    /// These lists with one replaced. `required`: an allow list is in force even while it is empty,
    /// so that one without entries allows nothing instead of everything.
    #[must_use]
    pub fn with(mut self, name: ListName, list: Arc<AccessList>, required: bool) -> Self {
        debug_assert_eq!(list.kind(), name.kind(), "a list of the right kind");
        self.in_force[name as usize] = !list.is_empty() || (required && name.allows());
        self.lists[name as usize] = list;
        self.any = self.in_force.contains(&true);
        self
    }

    /// One list.
    pub fn get(&self, name: ListName) -> &Arc<AccessList> {
        &self.lists[name as usize]
    }

    /// Whether a list refuses anything.
    pub fn is_in_force(&self, name: ListName) -> bool {
        self.in_force[name as usize]
    }

    /// Whether any list refuses anything.
    #[inline]
    pub fn any_in_force(&self) -> bool {
        self.any
    }

    /// The refusal of a request, if any. One branch if no list is in force.
    #[inline]
    pub fn check(&self, question: &AccessQuery<'_>) -> Option<Refusal> {
        if !self.any {
            return None;
        }
        self.check_source(question.source)
            .or_else(|| self.check_port(question.port))
            .or_else(|| self.check_client(question.peer_id))
            .or_else(|| self.check_torrent(question.info_hash))
    }

    /// The refusal of a source for all its requests, if any.
    #[inline]
    pub fn check_source(&self, source: IpAddr) -> Option<Refusal> {
        let listed = |it: &AccessList| it.address(source).is_some();
        let refused = self.refuses(ListName::NetworksDeny, ListName::NetworksAllow, listed);
        refused.then_some(Refusal::NetworkDenied)
    }

    /// The refusal of a torrent for all clients, if any.
    #[inline]
    pub fn check_torrent(&self, info_hash: &InfoHash) -> Option<Refusal> {
        let listed = |it: &AccessList| it.torrent(info_hash).is_some();
        let refused = self.refuses(ListName::TorrentsDeny, ListName::TorrentsAllow, listed);
        refused.then_some(Refusal::TorrentDenied)
    }

    /// The operator's reason for a refusal, for protocols that have room for it.
    pub fn reason(&self, refusal: Refusal, question: &AccessQuery<'_>) -> Option<&str> {
        let list = |name: ListName| &*self.lists[name as usize];
        match refusal {
            Refusal::TorrentDenied => list(ListName::TorrentsDeny).torrent(question.info_hash),
            Refusal::NetworkDenied => list(ListName::NetworksDeny).address(question.source),
            Refusal::ClientDenied => list(ListName::ClientsDeny).peer_id(question.peer_id?),
            Refusal::PortDenied => list(ListName::PortsDeny).port(question.port?),
            _ => None,
        }
        .flatten()
    }

    fn check_client(&self, peer_id: Option<&PeerId>) -> Option<Refusal> {
        let peer_id = peer_id?;
        let listed = |it: &AccessList| it.peer_id(peer_id).is_some();
        let refused = self.refuses(ListName::ClientsDeny, ListName::ClientsAllow, listed);
        refused.then_some(Refusal::ClientDenied)
    }

    fn check_port(&self, port: Option<u16>) -> Option<Refusal> {
        let denied = self.is_in_force(ListName::PortsDeny)
            && self.get(ListName::PortsDeny).port(port?).is_some();
        denied.then_some(Refusal::PortDenied)
    }

    #[inline]
    fn refuses(
        &self,
        deny: ListName,
        allow: ListName,
        listed: impl Fn(&AccessList) -> bool,
    ) -> bool {
        (self.in_force[deny as usize] && listed(&self.lists[deny as usize]))
            || (self.in_force[allow as usize] && !listed(&self.lists[allow as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: InfoHash = InfoHash([7; 20]);
    const PEER: PeerId = PeerId(*b"-XL0012-abcdefghijkl");

    fn lists(texts: &[(ListName, &str, bool)]) -> Lists {
        texts.iter().fold(Lists::default(), |lists, (name, text, required)| {
            let list = AccessList::parse(name.kind(), text.as_bytes()).unwrap();
            lists.with(*name, Arc::new(list), *required)
        })
    }

    fn question(source: &str) -> AccessQuery<'static> {
        let peer_id = Some(&PEER);
        AccessQuery { info_hash: &HASH, source: source.parse().unwrap(), peer_id, port: Some(6881) }
    }

    #[test]
    fn nothing_is_refused_where_no_list_says_so() {
        assert_eq!(Lists::default().check(&question("192.0.2.1")), None);
        assert!(!Lists::default().any_in_force());
        let other = lists(&[
            (ListName::TorrentsDeny, &"08".repeat(20), true),
            (ListName::PortsDeny, "6880", false),
            (ListName::NetworksDeny, "", true),
        ]);
        assert_eq!(other.check(&question("192.0.2.1")), None);
        assert!(
            !other.is_in_force(ListName::NetworksDeny),
            "a deny list without entries does nothing"
        );
    }

    #[test]
    fn each_list_refuses_what_it_is_for() {
        let hash = "07".repeat(20);
        for (name, text, refusal) in [
            (ListName::TorrentsDeny, hash.as_str(), Refusal::TorrentDenied),
            (ListName::NetworksDeny, "192.0.2.0/24", Refusal::NetworkDenied),
            (ListName::ClientsDeny, "-XL", Refusal::ClientDenied),
            (ListName::PortsDeny, "6881-6889", Refusal::PortDenied),
            (ListName::TorrentsAllow, &"08".repeat(20), Refusal::TorrentDenied),
            (ListName::NetworksAllow, "192.0.3.0/24", Refusal::NetworkDenied),
            (ListName::ClientsAllow, "-XM", Refusal::ClientDenied),
        ] {
            let access_lists = lists(&[(name, &format!("{text} because"), false)]);
            let asked = question("192.0.2.1");
            assert_eq!(access_lists.check(&asked), Some(refusal), "{name:?}");
            let reason = (!name.allows()).then_some("because");
            assert_eq!(access_lists.reason(refusal, &asked), reason, "{name:?}");
        }
    }

    #[test]
    fn what_is_on_both_lists_is_refused() {
        let access_lists = lists(&[
            (ListName::NetworksAllow, "192.0.2.0/24", false),
            (ListName::NetworksDeny, "192.0.2.128/25", false),
        ]);
        assert_eq!(access_lists.check(&question("192.0.2.1")), None);
        assert_eq!(access_lists.check(&question("192.0.2.129")), Some(Refusal::NetworkDenied));
        assert_eq!(access_lists.check(&question("192.0.3.1")), Some(Refusal::NetworkDenied));
    }

    #[test]
    fn a_required_allow_list_without_entries_allows_nothing() {
        let required = lists(&[(ListName::TorrentsAllow, "# none yet", true)]);
        assert_eq!(required.check(&question("192.0.2.1")), Some(Refusal::TorrentDenied));
        let optional = lists(&[(ListName::TorrentsAllow, "", false)]);
        assert_eq!(optional.check(&question("192.0.2.1")), None);
    }

    #[test]
    fn a_scrape_is_judged_by_source_and_torrent_alone() {
        let access_lists =
            lists(&[(ListName::ClientsAllow, "-XM", false), (ListName::PortsDeny, "6881", false)]);
        let scrape = AccessQuery { peer_id: None, port: None, ..question("192.0.2.1") };
        assert_eq!(access_lists.check(&scrape), None);
        let denied = lists(&[(ListName::TorrentsDeny, &"07".repeat(20), false)]);
        assert_eq!(denied.check(&scrape), Some(Refusal::TorrentDenied));
    }
}
