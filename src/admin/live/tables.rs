//! A sample as people read it: figures, and tables of text.
//!
//! The page is written from them and a script only puts newer text in the same places, so what is
//! seen with and without scripts is the same.

use std::collections::BTreeMap;

use serde::Serialize;

use super::sample::{Cause, Flow, Protocol, Sample, float};
use super::status::warnings;
use super::top::TopTorrent;
use crate::frontend::figures::{bytes, count, duration, grouped, percent, rate, rounded};
use crate::frontend::stats::client_rows;
use crate::types::{Action, NotStored, PeerKind, Refusal, Rejected};

/// Rows of clients with a name; the rest is summed up.
const CLIENT_ROWS_MAX: usize = 15;

/// Workers with a row; the rest is left out, the busiest come first.
const WORKER_ROWS_MAX: usize = 32;

/// What a table is called, and what stands above its columns.
pub(super) struct Layout {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// What one has to know to read it.
    pub(super) note: &'static str,
    /// The first names the row, the others say something of it.
    pub(super) columns: &'static [Column],
    /// The text where there is no row.
    pub(super) empty: &'static str,
    /// How many of six columns of the page the table takes on a wide screen: 2, 3 or 6.
    pub(super) span: u8,
}

/// A column's head.
pub(super) enum Column {
    /// With text.
    Text(&'static str),
    /// With numbers.
    Number(&'static str),
}

impl Layout {
    /// Whether the table has pairs of a name and a value.
    pub(super) fn is_pairs(&self) -> bool {
        self.columns.len() == 2
    }
}

impl Column {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Text(name) | Self::Number(name) => name,
        }
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Number(_))
    }
}

use Column::{Number, Text};

/// Rows of text.
pub(super) type Rows = Vec<Vec<String>>;

/// Every table, in the order of the page: what went wrong comes first.
pub(super) static LAYOUTS: [Layout; 12] = [
    Layout {
        id: WARNINGS,
        title: "Warnings",
        note: "",
        columns: &[Text("Warning"), Text("Remedy")],
        empty: "No warning is in force.",
        span: 6,
    },
    Layout {
        id: "errors",
        title: "Refused",
        note: "Requests that got an error, and announces whose peer was not stored.",
        columns: &[Text("What"), Text("Reason"), PER_S, SINCE_START],
        empty: "Nothing was refused since the start.",
        span: 3,
    },
    Layout {
        id: "drops",
        title: "Dropped",
        note: "Datagrams that got no response.",
        columns: &[Text("Cause"), Text("Reason"), PER_S, SINCE_START],
        empty: "Nothing was dropped since the start.",
        span: 3,
    },
    Layout {
        id: "requests",
        title: "Responses",
        note: "Each per second. What was sent since the start includes WebRTC answers and pages.",
        columns: &[
            Text("Protocol"),
            Number("Connects"),
            Number("Announces"),
            Number("Scrapes"),
            SINCE_START,
        ],
        empty: "",
        span: 3,
    },
    Layout {
        id: "peers",
        title: "Peers",
        note: "A client counts once for each torrent it is in.",
        columns: &[Text("Reached by"), Number("Seeders"), Number("Leechers"), Number("Peers")],
        empty: "",
        span: 3,
    },
    Layout {
        id: TOP,
        title: "Largest torrents",
        note: "Renewed every 10 s while this page is open. A click on a hash copies it.",
        columns: &[Text("Torrent"), Number("Seeders"), Number("Leechers"), Number("Completed")],
        empty: "No torrent has peers.",
        span: 3,
    },
    Layout {
        id: CLIENTS,
        title: "Clients",
        note: "Estimated from the announces of the last interval.",
        columns: &[Text("Client"), Text("Version"), Number("Peers"), Number("Share")],
        empty: "No client has announced yet.",
        span: 3,
    },
    Layout {
        id: "limits",
        title: "Rate limits",
        note: "Without a response, except in rows that name one, and in a dry run.",
        columns: &[Text("Over the limit"), PER_S, SINCE_START],
        empty: "No request was over a limit since the start.",
        span: 3,
    },
    Layout {
        id: "workers",
        title: "Workers",
        note: "",
        columns: &[
            Text("Worker"),
            Number("Busy"),
            Number("Requests per second"),
            Number("Latest turn"),
        ],
        empty: "",
        span: 3,
    },
    Layout {
        id: "memory",
        title: "Memory",
        note: "",
        columns: &[Text("Memory"), Number("Now")],
        empty: "",
        span: 2,
    },
    Layout {
        id: "traffic",
        title: "Traffic",
        note: "",
        columns: &[Text("Traffic"), Number("Now")],
        empty: "",
        span: 2,
    },
    Layout {
        id: "tracker",
        title: "Tracker",
        note: "",
        columns: &[Text("Tracker"), Number("Now")],
        empty: "",
        span: 2,
    },
];

/// The table of warnings, which is hidden while there is none.
pub(super) const WARNINGS: &str = "warnings";

/// The table of the largest torrents, whose rows are not text alone.
pub(super) const TOP: &str = "top";

/// The table of clients, which has a bar.
pub(super) const CLIENTS: &str = "clients";

const PER_S: Column = Number("Per second");

const SINCE_START: Column = Number("Since start");

/// What the head of the page names.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct PageHead {
    /// Its host; `skep` if that is unknown.
    pub(super) host: String,
    /// Its state.
    pub(super) state: String,
    /// How long it has been running.
    pub(super) uptime: String,
    /// The I/O backend.
    pub(super) backend: &'static str,
    /// All peers.
    pub(super) peers: String,
    /// Seeders and leechers.
    pub(super) parts: String,
}

/// The head of the page.
pub(super) fn head(sample: &Sample) -> PageHead {
    let store = &sample.store;
    let [seeders, leechers] = [&store.seeders, &store.leechers].map(|it| it.iter().sum::<u64>());
    PageHead {
        host: if sample.host.is_empty() { "skep".into() } else { sample.host.to_string() },
        state: if sample.state.is_empty() { "starting".into() } else { sample.state.clone() },
        uptime: duration(sample.uptime_s),
        backend: match sample.backend {
            "uring" => "io_uring",
            "mmsg" => "recvmmsg",
            other => other,
        },
        peers: grouped(store.peers()),
        parts: format!("{} seeders, {} leechers", grouped(seeders), grouped(leechers)),
    }
}

/// A figure that most people come for.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Figure {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    pub(super) value: String,
}

/// The figures beside the number of peers.
pub(super) fn figures(sample: &Sample) -> Vec<Figure> {
    let figure = |id, name, value| Figure { id, name, value };
    let dropped: Flow = Cause::ALL.into_iter().map(|it| sample.silenced(it)).sum();
    vec![
        figure("announces", "Announces per second", rate(sample.answered(Action::Announce).per_s)),
        figure("scrapes", "Scrapes per second", rate(sample.answered(Action::Scrape).per_s)),
        figure("torrents", "Torrents", grouped(sample.store.torrents)),
        figure("errors", "Refused per second", rate(sample.errors().per_s)),
        figure("dropped", "Dropped per second", rate(dropped.per_s)),
        figure("memory", "Memory for peers", bytes(sample.value("skep_store_used_bytes"))),
    ]
}

/// The rows of every table but the largest torrents', by the table's id.
pub(super) fn tables(sample: &Sample) -> BTreeMap<&'static str, Rows> {
    let warning_rows =
        warnings(sample).into_iter().map(|it| vec![it.message, it.remedy.into_owned()]);
    BTreeMap::from([
        (WARNINGS, warning_rows.collect()),
        ("requests", requests(sample)),
        ("peers", peers(sample)),
        ("clients", clients(sample)),
        ("drops", drops(sample)),
        ("errors", errors(sample)),
        ("limits", limits(sample)),
        ("workers", workers(sample)),
        ("memory", memory(sample)),
        ("traffic", traffic(sample)),
        ("tracker", tracker(sample)),
    ])
}

/// A row of the largest torrents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct TopRow {
    /// The info-hash: 40 digits.
    pub(super) hash: String,
    /// The name under which it is registered; empty if there is none.
    pub(super) name: String,
    /// Seeders, leechers, completed downloads.
    pub(super) counts: [String; 3],
}

impl TopRow {
    /// The hash in three parts, of which the page hides the second.
    pub(super) fn hash_parts(&self) -> [&str; 3] {
        let (head, rest) = self.hash.split_at_checked(8).unwrap_or((&self.hash, ""));
        let (middle, tail) =
            rest.split_at_checked(rest.len().saturating_sub(4)).unwrap_or((rest, ""));
        [head, middle, tail]
    }
}

/// The rows of the largest torrents' table.
pub(super) fn top(listed: &[TopTorrent]) -> Vec<TopRow> {
    let row = |TopTorrent { torrent, name }: &TopTorrent| {
        let counts = [torrent.counts.seeders, torrent.counts.leechers, torrent.counts.completed];
        let counts = counts.map(|it| grouped(it.into()));
        TopRow { hash: torrent.info_hash.to_string(), name: name.clone(), counts }
    };
    listed.iter().map(row).collect()
}

fn requests(sample: &Sample) -> Rows {
    let row = |name: &str, protocol: Option<Protocol>| {
        let of = |action: Option<Action>| {
            let transport = protocol.map(|it| ("transport", it.label()));
            let action = action.map(|it| ("action", it.label()));
            let labels: Vec<_> = transport.into_iter().chain(action).collect();
            sample.sum("skep_responses_total", &labels)
        };
        let rates = [Action::Connect, Action::Announce, Action::Scrape];
        let rates = rates.map(|it| rate(of(Some(it)).per_s));
        [vec![name.to_owned()], rates.into(), vec![count(of(None).total)]].concat()
    };
    let each = Protocol::ALL.into_iter().map(|it| row(it.name(), Some(it)));
    each.chain([row("All", None)]).collect()
}

fn peers(sample: &Sample) -> Rows {
    let (seeders, leechers) = (&sample.store.seeders, &sample.store.leechers);
    let row = |name: &str, seeders: u64, leechers: u64| {
        [vec![name.to_owned()], [seeders, leechers, seeders + leechers].map(grouped).into()]
            .concat()
    };
    let of = |kind: PeerKind, name| row(name, seeders[kind as usize], leechers[kind as usize]);
    vec![
        of(PeerKind::V4, "IPv4"),
        of(PeerKind::V6, "IPv6"),
        of(PeerKind::Web, "WebRTC"),
        row("All", seeders.iter().sum(), leechers.iter().sum()),
    ]
}

fn clients(sample: &Sample) -> Rows {
    let clients = &sample.store.clients;
    let all = clients.iter().map(|client| client.2).sum();
    let rows = client_rows(clients, CLIENT_ROWS_MAX, all);
    rows.into_iter()
        .map(|row| vec![row.name.into(), row.version.into(), row.peers, row.share])
        .collect()
}

/// Each reason that there was, by cause.
fn drops(sample: &Sample) -> Rows {
    let mut rows = Rows::new();
    let mut add = |cause: Cause, reason: &str, flow: Flow| {
        rows.extend((flow.total > 0.0).then(|| counted(cause.name(), reason, flow)));
    };
    for cause in Cause::ALL {
        if cause == Cause::Queue {
            add(cause, "too few workers, or a small buffer", sample.silenced(cause));
        }
        for reason in cause.reasons() {
            add(cause, reason, sample.dropped(reason));
        }
    }
    rows
}

/// Each reason that there was.
fn errors(sample: &Sample) -> Rows {
    let refused = Refusal::ALL.map(|it| ("Refused", "skep_refused_total", it.label()));
    let rejected = Rejected::ALL.map(|it| ("Error over TCP", "skep_rejected_total", it.label()));
    let not_stored = "skep_announces_not_stored_total";
    let not_stored = NotStored::ALL.map(|it| ("Not stored", not_stored, it.label()));
    let all = refused.into_iter().chain(rejected).chain(not_stored);
    let all =
        all.map(|(what, metric, reason)| (what, reason, sample.sum(metric, &[("reason", reason)])));
    let happened = all.filter(|it| it.2.total > 0.0);
    happened.map(|(what, reason, flow)| counted(what, reason, flow)).collect()
}

fn counted(what: &str, reason: &str, flow: Flow) -> Vec<String> {
    vec![what.to_owned(), reason.replace('_', " "), rate(flow.per_s), count(flow.total)]
}

/// What was over a limit, without what never was.
fn limits(sample: &Sample) -> Rows {
    let mut rows = Rows::new();
    let now = |name: &str, count: u64| vec![name.to_owned(), grouped(count), "–".to_owned()];
    let sources = [
        ("Sources over their limit now, at least", sample.limited_sources),
        ("Sources denied in the kernel now", rounded(sample.value("skep_kernel_denied_sources"))),
    ];
    rows.extend(sources.into_iter().filter(|it| it.1 > 0).map(|it| now(it.0, it.1)));
    for metric in sample.of("skep_limited_total").filter(|it| it.flow.total > 0.0) {
        let what = match metric.label("table") {
            "verified" => "Announces and scrapes",
            "unverified" => "Connects",
            "new_torrent" => "New torrents",
            "stop" => "Stops",
            "connection" => "Connections and other requests over TCP",
            _ => continue,
        };
        let outcome = match metric.label("action") {
            "limited" => "",
            "slipped" => ", with a response",
            _ => continue,
        };
        let Flow { total, per_s } = metric.flow;
        rows.push(vec![format!("{what}{outcome}"), rate(per_s), count(total)]);
    }
    rows
}

fn memory(sample: &Sample) -> Rows {
    let (used, cap) =
        (sample.value("skep_store_used_bytes"), sample.value("skep_store_limit_bytes"));
    let (cap, share) = match cap > 0.0 {
        true => (bytes(cap), percent(used / cap)),
        false => ("none".to_owned(), "–".to_owned()),
    };
    let peers = sample.store.peers();
    let of_each = if peers > 0 { bytes((used / float(peers)).floor()) } else { "–".to_owned() };
    vec![
        row("Used by torrents and peers", bytes(used)),
        row("Cap", cap),
        row("Used of the cap", share),
        row("Used per peer", of_each),
        row("Whole process", bytes(sample.value("skep_memory_resident_bytes"))),
        row("Evicted torrents, since start", count(sample.value("skep_torrents_evicted_total"))),
    ]
}

fn workers(sample: &Sample) -> Rows {
    let mut workers: Vec<_> = sample.workers.iter().collect();
    if workers.len() > WORKER_ROWS_MAX {
        workers.sort_by(|a, b| b.busy_ratio.total_cmp(&a.busy_ratio));
    }
    let row = |worker: &&super::WorkerLoad| {
        let silent = format!("{:.0} ms ago", worker.silent_s * 1000.0);
        vec![worker.name.clone(), percent(worker.busy_ratio), rate(worker.requests_per_s), silent]
    };
    workers.iter().take(WORKER_ROWS_MAX).map(row).collect()
}

fn traffic(sample: &Sample) -> Rows {
    let traffic = |metrics: [&str; 2]| {
        let flow: Flow = metrics.into_iter().map(|it| sample.sum(it, &[])).sum();
        format!("{}/s", bytes(flow.per_s.round()))
    };
    let open = |kind| count(sample.sum("skep_connections", &[("kind", kind)]).total);
    let mut rows = vec![
        row("Received", traffic(["skep_receive_bytes_total", "skep_stream_receive_bytes_total"])),
        row("Sent", traffic(["skep_transmit_bytes_total", "skep_stream_transmit_bytes_total"])),
        row("Open HTTP connections", open("http")),
        row("Open WebSockets", open("ws")),
        row("Open statistics pages", count(sample.value("skep_stats_viewers"))),
    ];
    if let Some([finished, all]) = sample.judged_by_xdp() {
        let share = if all.per_s > 0.0 { finished.per_s / all.per_s } else { 0.0 };
        let value = format!("{}/s, {}", rate(finished.per_s), percent(share));
        rows.push(row("Answered or dropped by XDP", value));
    }
    rows
}

fn tracker(sample: &Sample) -> Rows {
    let store = &sample.store;
    let snapshot_s = sample.value("skep_snapshot_last_success_timestamp_seconds");
    let snapshot = match snapshot_s > 0.0 {
        true => duration(rounded((sample.at_s.floor() - snapshot_s).max(0.0))) + " ago",
        false => "none".to_owned(),
    };
    let load = sample.value("skep_load_ratio");
    vec![
        row("Serves", sample.access.to_owned()),
        row("Sources are limited", sample.limits.to_owned()),
        row("Announce interval", duration(rounded(sample.value("skep_announce_interval_seconds")))),
        row("Load (0 %: usual interval, 100 %: longest)", percent(load)),
        row("Torrents with peers", grouped(store.active_torrents)),
        row("Downloads, since start", grouped(store.completed)),
        row("Latest snapshot", snapshot),
    ]
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::live::MetricFlow;
    use crate::frontend::stats::Stats;

    #[test]
    fn every_table_has_rows_as_wide_as_its_columns() {
        let metric = |name, labels: &[(&'static str, &'static str)]| MetricFlow {
            name,
            labels: labels.iter().map(|it| (it.0, it.1.into())).collect(),
            flow: Flow { total: 3.0, per_s: 0.5 },
        };
        let flows = vec![
            metric("skep_dropped_total", &[("reason", "bad_magic")]),
            metric("skep_refused_total", &[("reason", "low_port")]),
            metric("skep_snapshot_errors_total", &[]),
            metric("skep_limited_total", &[("table", "verified"), ("action", "limited")]),
            metric("skep_limited_total", &[("table", "new_torrent"), ("action", "slipped")]),
            metric("skep_limited_total", &[("table", "stop"), ("action", "passed")]),
        ];
        let sample = Sample {
            flows,
            workers: vec![super::super::WorkerLoad::default(); 99],
            store: Stats {
                clients: (0..40).map(|it| ("x".into(), it.to_string(), it)).collect(),
                ..Stats::default()
            },
            ..Sample::default()
        };
        let tables = tables(&sample);
        for layout in LAYOUTS.iter().filter(|it| it.id != TOP) {
            let rows = &tables[layout.id];
            let width = layout.columns.len();
            assert!(!rows.is_empty() && rows.iter().all(|it| it.len() == width), "{}", layout.id);
        }
        assert_eq!(tables.len(), LAYOUTS.len() - 1);
        let warning = ["3 failed snapshots since the start", "see the log for the cause"];
        assert_eq!(tables[WARNINGS], [warning]);
        assert_eq!(tables["workers"].len(), WORKER_ROWS_MAX);
        assert_eq!(tables["clients"].len(), CLIENT_ROWS_MAX + 1);
        assert_eq!(tables["errors"], [["Refused", "low port", "0.5", "3"]]);
        assert_eq!(tables["drops"], [["Not valid", "bad magic", "0.5", "3"]]);
        assert_eq!(
            tables["limits"],
            [["Announces and scrapes", "0.5", "3"], ["New torrents, with a response", "0.5", "3"],]
        );
        assert_eq!(tables["workers"][0].len(), 4);
    }

    #[test]
    fn what_no_socket_received_is_shown_where_xdp_is_in_use() {
        let judged = |verdict: &'static str, per_s| MetricFlow {
            name: "skep_xdp_packets_total",
            labels: vec![("verdict", verdict.into())],
            flow: Flow { total: 9.0, per_s },
        };
        let verdicts = [
            ("answered", 50.0),
            ("forged_id", 30.0),
            ("passed_genuine", 80.0),
            ("redirected", 40.0),
        ];
        let flows = verdicts.map(|(verdict, per_s)| judged(verdict, per_s)).into();
        let traffic = traffic(&Sample { flows, ..Sample::default() });
        assert_eq!(traffic.last().unwrap()[..], ["Answered or dropped by XDP", "80/s, 40.0 %"]);
        assert!(!tables(&Sample::default())["traffic"].iter().any(|it| it[0].contains("XDP")));
    }

    #[test]
    fn the_head_names_host_state_and_backend() {
        let sample = Sample {
            host: "tracker.example.org".into(),
            state: "serving".into(),
            backend: "uring",
            uptime_s: 1_036_800,
            store: Stats { seeders: [1000, 20, 3], leechers: [4, 0, 0], ..Stats::default() },
            ..Sample::default()
        };
        let found = head(&sample);
        assert_eq!((&*found.host, &*found.state), ("tracker.example.org", "serving"));
        assert_eq!((found.backend, &*found.uptime), ("io_uring", "12 d"));
        assert_eq!((&*found.peers, &*found.parts), ("1,027", "1,023 seeders, 4 leechers"));
        let unknown = head(&Sample::default());
        assert_eq!((&*unknown.host, &*unknown.state), ("skep", "starting"));
    }

    #[test]
    fn what_never_happened_has_no_row() {
        let tables = tables(&Sample::default());
        for id in [WARNINGS, "errors", "drops", "limits", "clients"] {
            assert_eq!(tables[id], Rows::new(), "{id}");
        }
    }

    #[test]
    fn a_hash_is_whole_in_its_three_parts() {
        let top_row = |hash: &str| TopRow {
            hash: hash.into(),
            name: String::new(),
            counts: Default::default(),
        };
        let hash = "5e41ab08".to_owned() + &"9".repeat(28) + "8a51";
        let row = top_row(&hash);
        assert_eq!(row.hash_parts(), ["5e41ab08", &"9".repeat(28), "8a51"]);
        assert_eq!(top_row("short").hash_parts().concat(), "short");
    }
}
