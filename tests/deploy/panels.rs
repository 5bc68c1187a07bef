//! The dashboard as a table: what each of its panels shows of a skep that is watched.

use std::fmt::Write as _;

use serde_json::Value;

use crate::prometheus::Prometheus;
use crate::tools::{list, text, text_of};

/// Series of a query that are written out; the rest is counted.
const SERIES_MAX: usize = 3;

/// A query of the dashboard.
#[derive(Debug)]
pub(crate) struct Query {
    /// The row that its panel is in.
    pub(crate) row: String,
    /// The title of its panel.
    pub(crate) panel: String,
    /// The unit in which the panel shows it, as Grafana calls it.
    pub(crate) unit: String,
    /// What the panel calls its series, with labels to be filled in; empty: their labels.
    pub(crate) legend: String,
    /// The query itself.
    pub(crate) expression: String,
}

/// Every query of the dashboard, from top to bottom.
pub(crate) fn queries() -> Vec<Query> {
    let dashboard: Value = serde_json::from_str(&text_of("deploy/grafana/skep.json")).unwrap();
    let (mut queries, mut row) = (Vec::new(), String::new());
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]).to_owned();
        if panel["type"] == "row" {
            row = title;
            continue;
        }
        for target in list(&panel["targets"]) {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{target}");
            queries.push(Query {
                row: row.clone(),
                panel: title.clone(),
                unit: unit_of(panel, target).to_owned(),
                legend: target["legendFormat"].as_str().unwrap_or_default().to_owned(),
                expression: text(&target["expr"]).to_owned(),
            });
        }
    }
    assert!(queries.len() > 30, "{}", queries.len());
    queries
}

/// Every panel with thresholds: its title, its description, and the values above its base.
pub(crate) fn thresholds() -> Vec<(String, String, Vec<f64>)> {
    let dashboard: Value = serde_json::from_str(&text_of("deploy/grafana/skep.json")).unwrap();
    let of_panel = |panel: &Value| {
        let steps = list(&panel["fieldConfig"]["defaults"]["thresholds"]["steps"]);
        let values: Vec<_> = steps.iter().filter_map(|step| step["value"].as_f64()).collect();
        let text = |key: &str| panel[key].as_str().unwrap_or_default().to_owned();
        (!values.is_empty()).then(|| (text("title"), text("description"), values))
    };
    list(&dashboard["panels"]).iter().filter_map(of_panel).collect()
}

/// The unit of a query: the panel's, unless it is overridden; a heat map has that of its axis.
fn unit_of<'a>(panel: &'a Value, target: &Value) -> &'a str {
    let fields = &panel["fieldConfig"];
    let is_of_target = |value: &&Value| {
        value["matcher"]["id"] == "byFrameRefID" && value["matcher"]["options"] == target["refId"]
    };
    let overridden = list(&fields["overrides"]).iter().filter(is_of_target);
    let mut properties = overridden.flat_map(|it| list(&it["properties"]));
    let unit = properties.find(|it| it["id"] == "unit").map(|it| &it["value"]);
    let own = unit.unwrap_or_else(|| &fields["defaults"]["unit"]).as_str();
    own.or_else(|| panel["options"]["yAxis"]["unit"].as_str()).unwrap_or_default()
}

/// What every panel shows at this moment, as a page.
pub(crate) fn page(prometheus: &Prometheus, queries: &[Query]) -> String {
    let version = prometheus.get("status/buildinfo")["data"]["version"].clone();
    let mut page = format!("{HEAD}\nScraped by Prometheus {}.\n", text(&version));
    let (mut row, mut panel) = ("", "");
    for query in queries {
        if query.row != row {
            let _ = write!(page, "\n## {}\n\n| panel | series | last value |\n", query.row);
            page += "|---|---|---|\n";
        }
        let is_same = query.row == row && query.panel == panel;
        (row, panel) = (&query.row, &query.panel);
        let mut title = if is_same { "" } else { panel };
        let mut found = prometheus.query(&query.expression);
        // What is shown is the most there is; what is equal keeps the order of its name.
        found.sort_by_key(|(labels, _)| series(query, labels));
        found.sort_by(|one, other| other.1.total_cmp(&one.1));
        for (labels, value) in found.iter().take(SERIES_MAX) {
            let (series, value) = (series(query, labels), shown(*value, &query.unit));
            let _ = writeln!(page, "| {title} | {} | {value} |", series.replace('|', "\\|"));
            title = "";
        }
        if let Some(more) = found.len().checked_sub(SERIES_MAX).filter(|it| *it > 0) {
            let _ = writeln!(page, "| | and {more} more | |");
        }
    }
    page
}

const HEAD: &str = "\
# What the dashboard shows

Each query of each panel of `deploy/grafana/skep.json`, answered by a Prometheus that scrapes a
busy skep five times a second: the last value of every series, in the panel's unit; of more than
three series the highest three. The page is written by a test:

```sh
SKEP_PANELS=docs/dashboard.md cargo test --test deploy every_query
```

The load is the test's own, from clients on the same host: on each UDP address bursts of 32
torrents, each with a leecher that completes, a connect, a scrape, a forged connection id and a
datagram that is too short, as fast as they are answered; beside them one `skep probe` after the
other over UDP, HTTP, HTTPS and ws, and requests for a page that does not exist. Limits bind
clients on IPv4 and not those on IPv6; snapshots are taken once a second; there are two workers.

It is one moment, some seconds from the start, with rates over 3 s (those of the reasons for no
response over 5 minutes, of which there were some seconds). It shows that every panel has something
to show, and in which unit; it is not a benchmark.
";

/// What a panel calls a series.
fn series(query: &Query, labels: &Value) -> String {
    let labels = labels.as_object().unwrap();
    if query.legend.is_empty() {
        let pairs: Vec<_> =
            labels.iter().map(|(name, it)| format!("{name}={}", text(it))).collect();
        return pairs.join(" ");
    }
    let mut legend = query.legend.clone();
    for (name, value) in labels {
        legend = legend.replace(&format!("{{{{{name}}}}}"), text(value));
    }
    legend.trim().to_owned()
}

/// A value as a panel shows it.
fn shown(value: f64, unit: &str) -> String {
    let (decimal, binary) = ([1e9, 1e6, 1e3], [1_073_741_824.0, 1_048_576.0, 1024.0]);
    let scaled = |steps: [f64; 3], names: [&str; 4], behind: &str| {
        let step = steps.iter().zip(names).find(|it| value.abs() >= *it.0);
        let (scale, name) = step.map_or((1.0, names[3]), |it| (*it.0, it.1));
        format!("{} {name}{behind}", digits(value / scale)).trim_end().to_owned()
    };
    let thousands = |behind: &str| scaled(decimal, ["G", "M", "k", ""], behind);
    match unit {
        "short" | "" => thousands(""),
        "reqps" => thousands("req/s"),
        "pps" => thousands("packets/s"),
        "ops" => thousands("ops/s"),
        "cps" => thousands("/s"),
        "percentunit" => format!("{} %", digits(value * 100.0)),
        "bytes" => scaled(binary, ["GiB", "MiB", "KiB", "B"], ""),
        "Bps" => scaled(binary, ["GiB", "MiB", "KiB", "B"], "/s"),
        "s" if value != 0.0 && value.abs() < 1e-3 => format!("{} µs", digits(value * 1e6)),
        "s" if value != 0.0 && value.abs() < 1.0 => format!("{} ms", digits(value * 1e3)),
        "s" => format!("{} s", digits(value)),
        other => panic!("a unit that is not known here: {other}"),
    }
}

/// Three digits that count, or all before the point.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        ..1e-9 => 0,
        ..10.0 if value.fract() != 0.0 => 2,
        ..100.0 if value.fract() != 0.0 => 1,
        _ => 0,
    };
    format!("{value:.places$}")
}

/// What the numbers of the table are held against.
pub(crate) fn assert_units() {
    for (value, unit, said) in [
        (0.0, "reqps", "0 req/s"),
        (12_345.0, "reqps", "12.3 kreq/s"),
        (7.0, "short", "7"),
        (2_500_000.0, "short", "2.50 M"),
        (0.123, "percentunit", "12.3 %"),
        (1.0, "percentunit", "100 %"),
        (1536.0, "bytes", "1.50 KiB"),
        (3_145_728.0, "Bps", "3 MiB/s"),
        (0.000_042_4, "s", "42.4 µs"),
        (0.25, "s", "250 ms"),
        (3600.0, "s", "3600 s"),
        (0.5, "cps", "0.50 /s"),
    ] {
        assert_eq!(shown(value, unit), said, "{value} {unit}");
    }
}
