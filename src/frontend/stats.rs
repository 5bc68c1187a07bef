//! What the tracker tells everyone about itself: `/stats` for people, `/stats.json` for tools.
//!
//! The JSON has the keys that tools for other trackers read, and ours beside them:
//!
//! | key | says |
//! |---|---|
//! | `torrents`, `activeTorrents` | torrents known; those that have peers |
//! | `peersAll` | peers, a client once for each of its torrents |
//! | `peersSeederOnly`, `peersLeecherOnly` | complete peers; incomplete ones |
//! | `peersSeederAndLeecher` | always 0: a peer of one torrent is one or the other |
//! | `peersIPv4`, `peersIPv6`, `peersWebRTC` | peers by how they are reached |
//! | `completed` | downloads that ended since start; a client of both families is two peers |
//! | `clients` | name → version → peers, estimated from who announced lately, once each |
//!
//! The page needs no script and nothing from elsewhere: [`HTML_POLICY`] forbids both.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::types::PeerKind;

/// Figures over the whole store, as of a second ago at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Torrents known, those with only a completed count included.
    pub torrents: u64,
    /// Torrents with peers.
    pub active_torrents: u64,
    /// Complete peers by [`crate::types::PeerKind`].
    pub seeders: [u64; 3],
    /// Incomplete peers by [`crate::types::PeerKind`].
    pub leechers: [u64; 3],
    /// Downloads completed since start.
    pub completed: u64,
    /// Client name, version, peers: an estimate from who announced in the last intervals.
    pub clients: Vec<(String, String, u64)>,
}

/// The two public pages, written once a second at most and served by every worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// `/stats`.
    pub html: String,
    /// `/stats.json`.
    pub json: String,
}

/// What to send as `Content-Security-Policy` with the page: it has a style sheet of its own, and
/// nothing else.
pub const HTML_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

/// Clients and versions with a row of their own on the page; the JSON has all.
const CLIENT_ROWS_MAX: usize = 40;

impl Pages {
    /// Writes both pages.
    pub fn of(stats: &Stats) -> Self {
        // A string always takes what is written to it, and the keys are strings.
        let json = serde_json::to_string(&Json::of(stats)).unwrap_or_default();
        Self { html: html(stats), json }
    }
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
    fn peers(&self) -> u64 {
        PeerKind::ALL.into_iter().map(|kind| self.peers_of(kind)).sum()
    }

    fn peers_of(&self, kind: PeerKind) -> u64 {
        self.seeders[kind as usize] + self.leechers[kind as usize]
    }
}

/// The page for people.
fn html(stats: &Stats) -> String {
    let mut page = String::with_capacity(8 * 1024);
    page += HEAD;
    figures(&mut page, stats);
    page += "<section aria-labelledby=\"by-kind\"><h2 id=\"by-kind\">Peers</h2>";
    peers_table(&mut page, stats);
    page += "</section>\n<section aria-labelledby=\"by-client\"><h2 id=\"by-client\">Clients</h2>";
    clients_table(&mut page, stats);
    page += "</section>\n";
    page += FOOT;
    page
}

/// The figures that most people come for.
fn figures(page: &mut String, stats: &Stats) {
    *page += "<dl class=\"figures\">";
    for (name, count) in [
        ("Peers", stats.peers()),
        ("Seeders", stats.seeders.iter().sum()),
        ("Leechers", stats.leechers.iter().sum()),
        ("Torrents", stats.torrents),
        ("Active torrents", stats.active_torrents),
        ("Downloads completed", stats.completed),
    ] {
        let _ = write!(page, "<div><dt>{name}</dt><dd>{}</dd></div>", grouped(count));
    }
    *page += "</dl>\n";
}

fn peers_table(page: &mut String, stats: &Stats) {
    *page += "<table><thead><tr><th scope=\"col\">Reached by</th>\
        <th scope=\"col\" class=\"n\">Seeders</th><th scope=\"col\" class=\"n\">Leechers</th>\
        <th scope=\"col\" class=\"n\">Peers</th></tr></thead><tbody>";
    for (kind, name) in [(PeerKind::V4, "IPv4"), (PeerKind::V6, "IPv6"), (PeerKind::Web, "WebRTC")]
    {
        let at = kind as usize;
        let [seeders, leechers, all] =
            [stats.seeders[at], stats.leechers[at], stats.peers_of(kind)].map(grouped);
        let _ = write!(
            page,
            "<tr><th scope=\"row\">{name}</th><td class=\"n\">{seeders}</td>\
             <td class=\"n\">{leechers}</td><td class=\"n\">{all}</td></tr>"
        );
    }
    *page += "</tbody></table>";
}

fn clients_table(page: &mut String, stats: &Stats) {
    if stats.clients.is_empty() {
        *page += "<p>No client has announced yet.</p>";
        return;
    }
    *page += "<p>Estimated from the announces of the last interval.</p>\
        <table><thead><tr><th scope=\"col\">Client</th><th scope=\"col\">Version</th>\
        <th scope=\"col\" class=\"n\">Peers</th><th scope=\"col\" class=\"n\">Share</th></tr>\
        </thead><tbody>";
    let mut clients: Vec<_> = stats.clients.iter().collect();
    clients.sort_by_key(|(name, version, peers)| (Reverse(*peers), name, version));
    let all = stats.peers();
    let (shown, rest) = clients.split_at(clients.len().min(CLIENT_ROWS_MAX));
    for (name, version, peers) in shown {
        client_row(page, &escaped(name), &escaped(version), *peers, all);
    }
    if !rest.is_empty() {
        let peers = rest.iter().map(|it| it.2).sum();
        let versions = format!("{} more versions", grouped(rest.len() as u64));
        client_row(page, "All others", &versions, peers, all);
    }
    *page += "</tbody></table>";
}

fn client_row(page: &mut String, name: &str, version: &str, peers: u64, all: u64) {
    let per_mille = u128::from(peers) * 1000 / u128::from(all.max(1));
    let (percent, tenth) = (per_mille / 10, per_mille % 10);
    let _ = write!(
        page,
        "<tr><th scope=\"row\">{name}</th><td>{version}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{percent}.{tenth} %</td></tr>",
        grouped(peers)
    );
}

/// A number with commas between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text as HTML shows it, in elements and attributes alike.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            it => out.push(it),
        }
    }
    out
}

/// All that stands before the figures.
const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Tracker statistics</title>
<style>
:root{color-scheme:light dark;--page:#faf8f3;--card:#fff;--text:#25211a;--soft:#655d4e;
--line:#e4ddcf;--accent:#8a5a00}
@media (prefers-color-scheme:dark){:root{--page:#17150f;--card:#211e17;--text:#efeadf;
--soft:#b5ab98;--line:#39342a;--accent:#f0b94a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:60rem;margin:0 auto;padding:0 1.25rem}
h1{margin:2rem 0 .25rem;font-size:1.75rem;line-height:1.2}
h2{margin:2.25rem 0 .75rem;font-size:1.2rem}
p,footer{color:var(--soft)}
p{margin:.25rem 0 1rem}
footer{padding-top:2rem;padding-bottom:2rem;font-size:.9rem}
a{color:var(--accent)}
.figures{display:grid;grid-template-columns:repeat(2,1fr);gap:.75rem;
margin:1.5rem 0 0}
.figures div{padding:.8rem 1rem;background:var(--card);border:1px solid var(--line);
border-radius:.6rem}
dt{color:var(--soft);font-size:.9rem}
dd{margin:0;font-size:1.5rem;font-weight:650;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
section{overflow-x:auto}
table{width:100%;border-collapse:collapse;background:var(--card);
border:1px solid var(--line);border-radius:.6rem}
th,td{padding:.5rem 1rem;text-align:left;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:500;font-size:.9rem}
tbody th{font-weight:600}
@media (min-width:42rem){.figures{grid-template-columns:repeat(3,1fr)}}
@media (max-width:30rem){th,td{padding:.5rem .6rem}dd{font-size:1.25rem}}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
</style></head><body>
<header><h1>Tracker statistics</h1>
<p>Peers are counted once for each torrent they are in.</p></header>
<main>
"#;

/// All that stands behind the tables.
const FOOT: &str = "</main>\n<footer>The same for programs: <a href=\"/stats.json\">/stats.json\
    </a>. Served by skep.</footer>\n</body></html>\n";

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

    #[test]
    fn the_json_has_the_keys_that_tools_read() {
        let found: serde_json::Value = serde_json::from_str(&Pages::of(&stats()).json).unwrap();
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
        let page = Pages::of(&stats).html;
        let rows = [
            "<dt>Peers</dt><dd>4,683</dd>",
            "<dt>Torrents</dt><dd>1,234,567</dd>",
            "<dt>Active torrents</dt><dd>1,000,001</dd>",
            "<dt>Downloads completed</dt><dd>42</dd>",
            "IPv4</th><td class=\"n\">100</td><td class=\"n\">4,000</td><td class=\"n\">4,100</td>",
            "WebRTC</th><td class=\"n\">3</td><td class=\"n\">60</td><td class=\"n\">63</td>",
            "qBittorrent</th><td>5.0.1</td><td class=\"n\">4,000</td><td class=\"n\">85.4 %</td>",
            "&lt;b&gt;&quot;&#39;&amp;</th><td>&lt;script&gt;</td><td class=\"n\">1</td>",
        ];
        for row in rows {
            assert!(page.contains(row), "no {row} in\n{page}");
        }
        assert!(!page.contains("<script") && !page.contains("<b>"));
    }

    #[test]
    fn every_element_of_the_page_is_closed() {
        let page = Pages::of(&stats()).html;
        let mut open = Vec::new();
        for tag in page.split('<').skip(1).filter_map(|it| it.split('>').next()) {
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{page}"),
                None if ["!doctype", "meta"].contains(&name) => {}
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
        let pages = Pages::of(&stats);
        assert!(pages.html.len() < 16 * 1024, "{}", pages.html.len());
        assert!(pages.html.contains("All others</th><td>4,960 more versions</td>"));
        assert!(pages.json.contains("\"4.0.4999\":7"));
        assert!(Pages::of(&Stats::default()).html.contains("No client has announced yet."));
    }

    #[test]
    fn thousands_are_separated() {
        let found = [0, 999, 1000, 12_345, 1_000_000, u64::MAX].map(grouped);
        let expected = ["0", "999", "1,000", "12,345", "1,000,000", "18,446,744,073,709,551,615"];
        assert_eq!(found, expected);
    }
}
