//! The public statistics: `/stats` for people, `/stats.json` for tools, `/badge.svg` for other
//! pages.
//!
//! The JSON has the keys that tools for other trackers read, and additional ones:
//!
//! | key | meaning |
//! |---|---|
//! | `torrents`, `activeTorrents` | known torrents; torrents with peers |
//! | `peersAll` | peers, a client once for each of its torrents |
//! | `peersSeederOnly`, `peersLeecherOnly` | complete peers; incomplete ones |
//! | `peersSeederAndLeecher` | always 0: a peer of one torrent is either a seeder or a leecher |
//! | `peersIPv4`, `peersIPv6`, `peersWebRTC` | peers by transport |
//! | `completed` | downloads that ended since start; a client of both families is two peers |
//! | `clients` | name → version → peers, estimated from recent announces, each peer counted once |
//!
//! The page needs no script and no external resource: [`HTML_POLICY`] forbids both. Its line and
//! its bar are drawn by `drawing`.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use askama::Template;
use serde::Serialize;

use super::drawing::{BarPart, DAY_MINUTES, DayLine, badge, client_bar};
use super::figures::{duration, grouped, share};
use crate::types::PeerKind;

/// Figures of the whole store, at most one second old.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Known torrents, including those with only a completed count.
    pub torrents: u64,
    /// Torrents with peers.
    pub active_torrents: u64,
    /// Complete peers by [`crate::types::PeerKind`].
    pub seeders: [u64; 3],
    /// Incomplete peers by [`crate::types::PeerKind`].
    pub leechers: [u64; 3],
    /// Downloads completed since start.
    pub completed: u64,
    /// Client name, version, peers: an estimate from the announces of the last intervals.
    pub clients: Vec<(String, String, u64)>,
}

/// What the page for people shows of the tracker itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicHead {
    /// The name that the operator has given it; empty: none. The name of the host is not shown: it
    /// may be one that only the operator's network knows.
    pub name: String,
    /// Seconds since its start.
    pub uptime_s: u64,
}

/// The public pages, written once a second at most and served by every worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// `/stats`.
    pub html: String,
    /// `/stats.json`.
    pub json: String,
    /// `/badge.svg`.
    pub badge: String,
}

/// The `Content-Security-Policy` of the page: an inline style sheet and the icon in the page only.
pub const HTML_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
                               base-uri 'none'; frame-ancestors 'none'";

/// The `Content-Security-Policy` of the badge, which a browser may open as a document.
pub const BADGE_POLICY: &str = "default-src 'none'";

/// The most rows of clients and versions on the page; the JSON has all.
const CLIENT_ROWS_MAX: usize = 40;

impl Pages {
    /// Writes all pages; `day` is the line of peers over the last 24 hours.
    pub fn of(head: &PublicHead, stats: &Stats, day: DayLine) -> Self {
        let html = StatsPage::of(head, stats, day).render().unwrap_or_default();
        Self { html, json: json(stats), badge: badge(stats.peers()) }
    }
}

/// `/stats.json`.
pub fn json(stats: &Stats) -> String {
    // Serialization cannot fail: keys and values are strings and numbers.
    serde_json::to_string(&Json::of(stats)).unwrap_or_default()
}

/// The JSON page's keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    torrents: u64,
    active_torrents: u64,
    peers_all: u64,
    peers_seeder_only: u64,
    peers_leecher_only: u64,
    peers_seeder_and_leecher: u64,
    #[serde(rename = "peersIPv4")]
    peers_ipv4: u64,
    #[serde(rename = "peersIPv6")]
    peers_ipv6: u64,
    #[serde(rename = "peersWebRTC")]
    peers_webrtc: u64,
    completed: u64,
    clients: BTreeMap<&'a str, BTreeMap<&'a str, u64>>,
}

impl<'a> Json<'a> {
    fn of(stats: &'a Stats) -> Self {
        let mut clients: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
        for (name, version, peers) in &stats.clients {
            *clients.entry(name).or_default().entry(version).or_default() += peers;
        }
        Self {
            torrents: stats.torrents,
            active_torrents: stats.active_torrents,
            peers_all: stats.peers(),
            peers_seeder_only: stats.seeders.iter().sum(),
            peers_leecher_only: stats.leechers.iter().sum(),
            peers_seeder_and_leecher: 0,
            peers_ipv4: stats.peers_of(PeerKind::V4),
            peers_ipv6: stats.peers_of(PeerKind::V6),
            peers_webrtc: stats.peers_of(PeerKind::Web),
            completed: stats.completed,
            clients,
        }
    }
}

impl Stats {
    /// All peers.
    pub fn peers(&self) -> u64 {
        PeerKind::ALL.into_iter().map(|kind| self.peers_of(kind)).sum()
    }

    fn peers_of(&self, kind: PeerKind) -> u64 {
        self.seeders[kind as usize] + self.leechers[kind as usize]
    }
}

/// The page for people.
#[derive(Template)]
#[template(path = "frontend/stats.html")]
struct StatsPage<'a> {
    /// The name of the tracker, if it has one.
    name: Option<&'a str>,
    uptime: String,
    peers: String,
    /// Peers over the last 24 hours.
    day: DayLine,
    /// The other main figures.
    figures: [(&'static str, String); 5],
    /// Seeders, leechers and their sum, by peer kind.
    kinds: [(&'static str, [String; 3]); PeerKind::ALL.len()],
    /// Clients as a bar.
    clients: Vec<BarPart>,
    client_rows: Vec<ClientRow<'a>>,
}

/// A version of a client.
pub(crate) struct ClientRow<'a> {
    /// The client.
    pub(crate) name: &'a str,
    /// Its version, or the number of versions summed up.
    pub(crate) version: Cow<'a, str>,
    /// Its peers.
    pub(crate) peers: String,
    /// Their share.
    pub(crate) share: String,
}

impl<'a> StatsPage<'a> {
    fn of(head: &'a PublicHead, stats: &'a Stats, day: DayLine) -> Self {
        let figures = [
            ("Seeders", stats.seeders.iter().sum()),
            ("Leechers", stats.leechers.iter().sum()),
            ("Torrents", stats.torrents),
            ("Torrents with peers", stats.active_torrents),
            ("Downloads since start", stats.completed),
        ];
        let of_kind = |(kind, name): (PeerKind, _)| {
            let at = kind as usize;
            (name, [stats.seeders[at], stats.leechers[at], stats.peers_of(kind)].map(grouped))
        };
        let kinds = [(PeerKind::V4, "IPv4"), (PeerKind::V6, "IPv6"), (PeerKind::Web, "WebRTC")];
        Self {
            name: Some(&*head.name).filter(|name| !name.is_empty()),
            uptime: duration(head.uptime_s),
            peers: grouped(stats.peers()),
            day,
            figures: figures.map(|(name, count)| (name, grouped(count))),
            kinds: kinds.map(of_kind),
            clients: client_bar(&stats.clients),
            client_rows: client_rows(&stats.clients, CLIENT_ROWS_MAX, stats.peers()),
        }
    }
}

/// The rows of clients, those with the most peers first: at most `rows_max`, and one for all
/// others. Shares are of `all` peers.
pub(crate) fn client_rows(
    clients: &[(String, String, u64)],
    rows_max: usize,
    all: u64,
) -> Vec<ClientRow<'_>> {
    let mut clients: Vec<_> = clients.iter().collect();
    clients.sort_by_key(|(name, version, peers)| (Reverse(*peers), name, version));
    let (shown, rest) = clients.split_at(clients.len().min(rows_max));
    let row = |name, version, peers: u64| ClientRow {
        name,
        version,
        peers: grouped(peers),
        share: share(peers, all),
    };
    let mut rows: Vec<_> = shown
        .iter()
        .map(|(name, version, peers)| row(name.as_str(), version.as_str().into(), *peers))
        .collect();
    if !rest.is_empty() {
        let peers = rest.iter().map(|client| client.2).sum();
        let versions = format!("{} more versions", grouped(rest.len() as u64));
        rows.push(row("All others", versions.into(), peers));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> Stats {
        let client = |name: &str, version: &str, peers| (name.into(), version.into(), peers);
        Stats {
            torrents: 1_234_567,
            active_torrents: 1_000_001,
            seeders: [100, 20, 3],
            leechers: [4000, 500, 60],
            completed: 42,
            clients: vec![
                client("qBittorrent", "5.0.1", 4000),
                client("qBittorrent", "4.6.4", 600),
                client("µTorrent", "3.5.5W", 83),
            ],
        }
    }

    /// A tracker with a name, 12 days after its start.
    fn head() -> PublicHead {
        PublicHead { name: "tracker.example.org".into(), uptime_s: 12 * 86_400 + 3600 }
    }

    /// A whole day.
    fn day() -> DayLine {
        DayLine::of((0..DAY_MINUTES).map(|it| (it, f64::from(it % 777))), DAY_MINUTES - 1)
    }

    #[test]
    fn the_json_has_the_keys_that_tools_read() {
        let found: serde_json::Value = serde_json::from_str(&json(&stats())).unwrap();
        let expected = serde_json::json!({
            "torrents": 1_234_567,
            "activeTorrents": 1_000_001,
            "peersAll": 4683,
            "peersSeederOnly": 123,
            "peersLeecherOnly": 4560,
            "peersSeederAndLeecher": 0,
            "peersIPv4": 4100,
            "peersIPv6": 520,
            "peersWebRTC": 63,
            "completed": 42,
            "clients": {
                "qBittorrent": { "5.0.1": 4000, "4.6.4": 600 },
                "µTorrent": { "3.5.5W": 83 },
            },
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn the_page_shows_every_figure_and_escapes_every_name() {
        let mut stats = stats();
        stats.clients.push(("<b>\"'&".into(), "<script>".into(), 1));
        let page = Pages::of(&head(), &stats, day()).html;
        let rows = [
            "<b>4,683</b>",
            "<path class=\"line\" d=\"M2 ",
            "<rect class=\"f0\" x=\"0\" width=\"982\" height=\"20\"/>",
            "<dt>Torrents</dt><dd>1,234,567</dd>",
            "<dt>Torrents with peers</dt><dd>1,000,001</dd>",
            "<dt>Downloads since start</dt><dd>42</dd>",
            "IPv4</th><td class=\"n\">100</td><td class=\"n\">4,000</td><td class=\"n\">4,100</td>",
            "WebRTC</th><td class=\"n\">3</td><td class=\"n\">60</td><td class=\"n\">63</td>",
            "qBittorrent</th><td>5.0.1</td><td class=\"n\">4,000</td><td class=\"n\">85.4 %</td>",
            "&#60;b&#62;&#34;&#39;&#38;</th><td>&#60;script&#62;</td><td class=\"n\">1</td>",
        ];
        for row in rows {
            assert!(page.contains(row), "no {row} in\n{page}");
        }
        assert!(!page.contains("<script") && !page.contains("<b>\""));
    }

    #[test]
    fn the_head_has_the_name_that_was_given_and_the_uptime() {
        let of = |head: &PublicHead| Pages::of(head, &stats(), day()).html;
        let named = of(&head());
        for part in [
            "<title>tracker.example.org: tracker statistics</title>",
            "<h1>tracker.example.org</h1>",
            "<li>Tracker statistics</li><li>up 12 d 1 h</li>",
        ] {
            assert!(named.contains(part), "no {part} in\n{named}");
        }
        let nameless = of(&PublicHead { uptime_s: 59, ..PublicHead::default() });
        for part in [
            "<title>Tracker statistics</title>",
            "<h1>Tracker statistics</h1>",
            "<ul class=\"about\"><li>up 59 s</li></ul>",
        ] {
            assert!(nameless.contains(part), "no {part} in\n{nameless}");
        }
        let odd = of(&PublicHead { name: "<b>".into(), uptime_s: 0 });
        assert!(odd.contains("<h1>&#60;b&#62;</h1>"), "{odd}");
    }

    #[test]
    fn every_element_of_the_page_is_closed() {
        let page = Pages::of(&head(), &stats(), day()).html;
        let mut open = Vec::new();
        for tag in page.split('<').skip(1).filter_map(|it| it.split('>').next()) {
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{page}"),
                None if ["!doctype", "meta", "link"].contains(&name) || tag.ends_with('/') => {}
                None => open.push(name),
            }
        }
        assert_eq!(open, Vec::<&str>::new());
    }

    #[test]
    fn a_page_stays_short_however_many_versions_there_are() {
        let mut stats = stats();
        let version = |n| ("Transmission".into(), format!("4.0.{n}"), 7);
        stats.clients = (0..5000).map(version).collect();
        let pages = Pages::of(&head(), &stats, day());
        assert!(pages.html.len() < 24 * 1024, "{}", pages.html.len());
        assert!(pages.html.contains("All others</th><td>4,960 more versions</td>"));
        assert!(pages.json.contains("\"4.0.4999\":7"));
        assert!(
            Pages::of(&PublicHead::default(), &Stats::default(), DayLine::default())
                .html
                .contains("No client has announced yet.")
        );
    }
}
