//! A sample as people read it: figures, and tables of text.
//!
//! The page is written from them and a script only puts newer text in the same places, so what is
//! seen with and without scripts is the same.

use std::collections::BTreeMap;

use serde::Serialize;

use super::board::VERSION;
use super::sample::{Cause, Flow, Protocol, Sample, float};
use crate::frontend::stats::{client_rows, grouped};
use crate::tracker::ListedTorrent;
use crate::types::{Action, Dropped, NotStored, PeerKind, Refusal, Rejected};

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
    /// What to say where there is no row.
    pub(super) empty: &'static str,
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

/// Every table, in the order of the page.
pub(super) static LAYOUTS: [Layout; 10] = [
    Layout {
        id: "requests",
        title: "Responses",
        note: "Per second. The total includes relayed WebRTC answers and pages.",
        columns: &[
            Text("Protocol"),
            Number("Connects"),
            Number("Announces"),
            Number("Scrapes"),
            Number("Total"),
        ],
        empty: "",
    },
    Layout {
        id: "peers",
        title: "Peers",
        note: "Counted once for each torrent they are in.",
        columns: &[Text("Reached by"), Number("Seeders"), Number("Leechers"), Number("Peers")],
        empty: "",
    },
    Layout {
        id: "top",
        title: "Largest torrents",
        note: "Updated every 10 s while this page is open.",
        columns: &[Text("Info-hash"), Number("Seeders"), Number("Leechers"), Number("Completed")],
        empty: "There is no torrent.",
    },
    Layout {
        id: "clients",
        title: "Clients",
        note: "Estimated from the announces of the last interval.",
        columns: &[Text("Client"), Text("Version"), Number("Peers"), Number("Share")],
        empty: "No client has announced yet.",
    },
    Layout {
        id: "drops",
        title: "Dropped",
        note: "Datagrams that got no response.",
        columns: &[Text("Cause"), Text("Reason"), Number("Per second"), Number("Total")],
        empty: "Nothing was dropped.",
    },
    Layout {
        id: "errors",
        title: "Refused",
        note: "Requests with an error as the response, and announces whose peer was not stored.",
        columns: &[Text("What"), Text("Reason"), Number("Per second"), Number("Total")],
        empty: "Nothing was refused.",
    },
    Layout {
        id: "limits",
        title: "Limits",
        note: "",
        columns: &[Text("Limit"), Number("Now")],
        empty: "",
    },
    Layout {
        id: "memory",
        title: "Memory",
        note: "",
        columns: &[Text("Memory"), Number("Now")],
        empty: "",
    },
    Layout {
        id: "workers",
        title: "Workers",
        note: "",
        columns: &[
            Text("Worker"),
            Number("Busy"),
            Number("Requests per second"),
            Number("Last turn"),
        ],
        empty: "",
    },
    Layout {
        id: "tracker",
        title: "Tracker",
        note: "",
        columns: &[Text("Tracker"), Number("Now")],
        empty: "",
    },
];

/// A figure that most people come for.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Figure {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    pub(super) value: String,
}

/// The figures at the top of the page.
pub(super) fn figures(sample: &Sample) -> Vec<Figure> {
    let store = &sample.store;
    let figure = |id, name, value| Figure { id, name, value };
    let peers = store.seeders.iter().chain(&store.leechers).sum();
    let dropped: Flow = Cause::ALL.into_iter().map(|it| sample.silenced(it)).sum();
    vec![
        figure("announces", "Announces per second", rate(sample.answered(Action::Announce).per_s)),
        figure("scrapes", "Scrapes per second", rate(sample.answered(Action::Scrape).per_s)),
        figure("dropped", "Dropped per second", rate(dropped.per_s)),
        figure("peers", "Peers", grouped(peers)),
        figure("torrents", "Torrents", grouped(store.torrents)),
        figure("memory", "Memory of the store", bytes(sample.value("skep_store_used_bytes"))),
    ]
}

/// The rows of every table but the largest torrents', by the table's id.
pub(super) fn tables(sample: &Sample) -> BTreeMap<&'static str, Rows> {
    BTreeMap::from([
        ("requests", requests(sample)),
        ("peers", peers(sample)),
        ("clients", clients(sample)),
        ("drops", drops(sample)),
        ("errors", errors(sample)),
        ("limits", limits(sample)),
        ("memory", memory(sample)),
        ("workers", workers(sample)),
        ("tracker", tracker(sample)),
    ])
}

/// The rows of the largest torrents' table.
pub(super) fn top(listed: &[ListedTorrent]) -> Rows {
    let row = |torrent: &ListedTorrent| {
        let counts = [torrent.counts.seeders, torrent.counts.leechers, torrent.counts.completed];
        let counts = counts.map(|it| grouped(it.into()));
        [vec![torrent.info_hash.to_string()], counts.into()].concat()
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

/// Sums by cause, and each reason that there was.
fn drops(sample: &Sample) -> Rows {
    let mut rows = Rows::new();
    for cause in Cause::ALL {
        rows.push(counted(cause.name(), "all", sample.silenced(cause)));
        for reason in Dropped::ALL.into_iter().filter(|it| super::sample::cause_of(*it) == cause) {
            let flow = sample.dropped(reason);
            rows.extend((flow.total > 0.0).then(|| counted(cause.name(), reason.label(), flow)));
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

fn limits(sample: &Sample) -> Rows {
    let mut rows = vec![
        row("Sources are limited", sample.limits.to_owned()),
        row("Sources over their limit", at_least(sample.limited_sources)),
        row("Sources denied in the kernel", count(sample.value("skep_kernel_denied_sources"))),
    ];
    for metric in sample.of("skep_limited_total") {
        let what = match metric.label("action") {
            "limited" => "limited",
            "slipped" => "slipped (got a response)",
            _ => continue,
        };
        let table = metric.label("table").replace('_', " ");
        rows.push(row(&format!("Over the limit, {table}: {what}"), count(metric.flow.total)));
    }
    rows
}

fn memory(sample: &Sample) -> Rows {
    let (used, max) =
        (sample.value("skep_store_used_bytes"), sample.value("skep_store_limit_bytes"));
    let peers: u64 = sample.store.seeders.iter().chain(&sample.store.leechers).sum();
    let (limit, share) = match max > 0.0 {
        true => (bytes(max), percent(used / max)),
        false => ("none".to_owned(), "–".to_owned()),
    };
    let of_each = if peers > 0 { bytes((used / float(peers)).floor()) } else { "–".to_owned() };
    vec![
        row("Torrents and peers", bytes(used)),
        row("Limit", limit),
        row("Share of the limit", share),
        row("Per peer", of_each),
        row("Resident memory of the process", bytes(sample.value("skep_memory_resident_bytes"))),
        row("Torrents evicted", count(sample.value("skep_torrents_evicted_total"))),
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

fn tracker(sample: &Sample) -> Rows {
    const LOAD: &str = "Load (0 %: usual interval, 100 %: longest)";
    let store = &sample.store;
    let traffic = |metrics: [&str; 2]| {
        let flow: Flow = metrics.into_iter().map(|it| sample.sum(it, &[])).sum();
        format!("{}/s", bytes(flow.per_s.round()))
    };
    let open = |kind| count(sample.sum("skep_connections", &[("kind", kind)]).total);
    let snapshot_s = sample.value("skep_snapshot_last_success_timestamp_seconds");
    let snapshot = match snapshot_s > 0.0 {
        true => duration(rounded((sample.at_s.floor() - snapshot_s).max(0.0))) + " ago",
        false => "none".to_owned(),
    };
    vec![
        row("State", sample.state.clone()),
        row("Version", VERSION.to_owned()),
        row("I/O backend", sample.backend.to_owned()),
        row("Running for", duration(sample.uptime_s)),
        row("Serves", sample.access.to_owned()),
        row("Announce interval", duration(rounded(sample.value("skep_announce_interval_seconds")))),
        row(LOAD, percent(sample.value("skep_load_ratio"))),
        row("Active torrents", grouped(store.active_torrents)),
        row("Downloads completed", grouped(store.completed)),
        row("Received", traffic(["skep_receive_bytes_total", "skep_stream_receive_bytes_total"])),
        row("Sent", traffic(["skep_transmit_bytes_total", "skep_stream_transmit_bytes_total"])),
        row("HTTP connections", open("http")),
        row("WebSockets", open("ws")),
        row("Latest snapshot", snapshot),
        row("Open statistics pages", count(sample.value("skep_stats_viewers"))),
    ]
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

/// How many there are at least: more are not counted.
fn at_least(count: u64) -> String {
    if count > 0 { format!("{} or more", grouped(count)) } else { "0".into() }
}

/// A rate: tenths where they say something.
fn rate(per_s: f64) -> String {
    if per_s > 0.0 && per_s < 100.0 { format!("{per_s:.1}") } else { grouped(rounded(per_s)) }
}

/// The nearest whole number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats stay in range, and nothing negative is shown"
)]
fn rounded(number: f64) -> u64 {
    number.round() as u64
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// A count as people write it.
fn count(number: f64) -> String {
    grouped(rounded(number))
}

/// A number of bytes in the unit that suits it.
fn bytes(mut amount: f64) -> String {
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{amount} B") } else { format!("{amount:.1} {unit}") }
}

/// Seconds as people say them: the two largest units.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min {} s", seconds % 60),
        () => format!("{seconds} s"),
    }
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
        for layout in LAYOUTS.iter().filter(|it| it.id != "top") {
            let rows = &tables[layout.id];
            let width = layout.columns.len();
            assert!(!rows.is_empty() && rows.iter().all(|it| it.len() == width), "{}", layout.id);
        }
        assert_eq!(tables.len(), LAYOUTS.len() - 1);
        assert_eq!(tables["workers"].len(), WORKER_ROWS_MAX);
        assert_eq!(tables["clients"].len(), CLIENT_ROWS_MAX + 1);
        assert_eq!(tables["errors"], [["Refused", "low port", "0.5", "3"]]);
        assert!(
            tables["drops"]
                .contains(&["Not valid", "bad magic", "0.5", "3"].map(str::to_owned).into())
        );
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(
            [0.0, 0.04, 12.34, 99.99, 100.2, 1_234_567.8].map(rate),
            ["0", "0.0", "12.3", "100.0", "100", "1,234,568"]
        );
        assert_eq!(
            [0.0, 1023.0, 1536.0, 5.0 * 1024.0 * 1024.0 * 1024.0].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
        assert_eq!(
            [59, 61, 7260, 90_000].map(duration),
            ["59 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]
        );
        assert_eq!(percent(0.123_45), "12.3 %");
    }
}
