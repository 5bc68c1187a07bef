//! The table of metrics as a page of documentation: `docs/metrics.md`.

use std::fmt::Write as _;

use super::table::SERIES;

/// The head of the page.
const HEAD: &str = "\
# Metrics

<!-- Printed by `skep metrics`: change the help texts in src/server/metrics/table.rs. -->

`/metrics` on the [admin listener](admin.md) is for Prometheus. Names begin with `skep_`, units are
base units, counters end in `_total`, and labels come from closed lists: at most 500 series.
`deploy/prometheus` has alerts ([what to do about each](operating.md#alerts)), `deploy/grafana` a
dashboard ([what it shows](dashboard.md)).
";

/// All metrics as a page in Markdown.
pub fn metrics_page() -> String {
    let mut out = String::from(HEAD);
    let mut topic = "";
    for series in SERIES {
        if series.topic != topic {
            topic = series.topic;
            let _ = writeln!(out, "\n## {topic}\n\n| metric | type | |\n|---|---|---|");
        }
        let labels = match series.labels {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        let unit = series.unit().map_or_else(String::new, |unit| format!(", {unit}"));
        let (name, kind, help) = (series.name, series.kind(), series.help());
        let _ = writeln!(out, "| `{name}{labels}` | {kind}{unit} | {help} |");
    }
    out
}
