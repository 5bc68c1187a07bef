//! What watches skep, against a skep that is watched: alerts, dashboard, and the metrics they name.
//!
//! Needs promtool and prometheus (Debian's package prometheus), and Python's YAML (`.ci/run`). What
//! is missing is said; with `SKEP_REQUIRE_EXTERNAL=1`, a failure. With `SKEP_PANELS=FILE` what the
//! dashboard's panels show is written to that file, below the repository.
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::panels::{self, queries};
use crate::prometheus::Prometheus;
use crate::support::tcp_clients::{Certificate, announce, connect, exchange};
use crate::support::{DEADLINE, Skep, command, has_ipv6};
use crate::tools::{ROOT, agrees, deployed, document, have, have_yaml, list, text, text_of};
use crate::traffic::Traffic;

/// Alerts whose instance, if any, is not a tracker that could show its runbook.
const OF_NO_TRACKER: [&str; 2] = ["SkepAbsent", "SkepConntrackNear"];

/// Metrics of others that we name: Prometheus' own, and node_exporter's.
const OF_OTHERS: [&str; 3] = ["up", "node_nf_conntrack_entries", "node_nf_conntrack_entries_limit"];

/// Metrics that are there with `udp.xdp` alone, which needs an interface.
const OF_XDP: [&str; 2] = ["skep_xdp_attached", "skep_xdp_packets_total"];

/// Metrics of a tracker that is a node of a cluster.
const OF_CLUSTER: [&str; 2] = ["skep_cluster_connected", "skep_cluster_lost_records_total"];

/// What may stay zero while all is well, and what the test cannot or should not bring about. Every
/// other query has to find something above zero.
const QUIET: [&str; 9] = [
    "skep_accept_failed_total",
    "skep_announces_not_stored_total",
    "skep_io_events_total",
    "skep_snapshot_errors_total",
    "skep_torrents_evicted_total",
    "skep_udp_socket_drops_total",
    "skep_udp_socket_queue_bytes",
    "skep_webtorrent_messages_lost_total",
    "skep_xdp_packets_total",
];

#[test]
fn alerts_fire_and_keep_silent() {
    if !have(&["promtool"]) {
        return;
    }
    let file = |name: &str| deployed("prometheus").join(name).display().to_string();
    agrees("promtool", &["check", "rules", &file("rules.yml")]);
    agrees("promtool", &["check", "config", &file("prometheus.yml")]);
    agrees("promtool", &["test", "rules", &file("rules.test.yml")]);
}

#[test]
fn every_alert_is_tried_both_ways_and_explained() {
    if !have_yaml() {
        return;
    }
    let tests = document("deploy/prometheus/rules.test.yml");
    let cases = list(&tests["tests"]).iter().flat_map(|it| list(&it["alert_rule_test"]));
    let tried = |alert: &str, fires: bool| {
        cases
            .clone()
            .any(|it| it["alertname"] == alert && list(&it["exp_alerts"]).is_empty() != fires)
    };
    let page = text_of("docs/operating.md");
    let explained: BTreeSet<_> = page
        .lines()
        .filter_map(|it| it.strip_prefix("### "))
        .filter(|it| it.starts_with("Skep"))
        .collect();
    for rule in rules() {
        let alert = text(&rule["alert"]);
        assert!(tried(alert, true) && tried(alert, false), "{alert}: rules.test.yml");
        assert!(explained.contains(alert), "{alert}: docs/operating.md");
        // No URL: it is not published anywhere that could be named here.
        let place = format!("docs/operating.md#{} in skep's repository", alert.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"], place);
        let link = format!("http://{{{{ $labels.instance }}}}/runbook/{alert}");
        let link = (!OF_NO_TRACKER.contains(&alert)).then_some(link);
        assert_eq!(rule["annotations"]["runbook_url"].as_str(), link.as_deref(), "{alert}");
        let severity = text(&rule["labels"]["severity"]);
        assert!(["critical", "warning", "info"].contains(&severity), "{alert}: {severity}");
    }
    let rules = rules();
    // An alert may have a rule for each severity.
    let alerts: BTreeSet<_> = rules.iter().map(|it| text(&it["alert"])).collect();
    assert_eq!(explained, alerts, "every alert that is explained exists");
}

#[test]
fn the_prometheus_operator_gets_the_same_rules() {
    if !have_yaml() {
        return;
    }
    let path = "deploy/kubernetes/components/monitoring/prometheusrule.yaml";
    let ours = document("deploy/prometheus/rules.yml");
    assert!(
        document(path)["spec"]["groups"] == ours["groups"],
        "behind `spec:` in {path} belongs: \
         sed -n '/^groups:/,$p' deploy/prometheus/rules.yml | sed 's/^./  &/'"
    );
}

#[test]
fn every_metric_that_is_named_is_exported() {
    if !have_yaml() {
        return;
    }
    let skep = Skep::start(&[]);
    let metrics = skep.metrics().text;
    let exported: BTreeSet<_> = metrics
        .lines()
        .filter(|it| !it.starts_with('#'))
        .filter_map(|it| it.split(['{', ' ']).next())
        .chain(OF_OTHERS.into_iter().chain(OF_XDP).chain(OF_CLUSTER))
        .collect();
    let page = skep::server::metrics_page();
    let mut special = OF_XDP.iter().chain(&OF_CLUSTER);
    assert!(special.all(|name| page.contains(&format!("`{name}{{"))), "{page}");
    let mut expressions: Vec<String> =
        rules().iter().map(|it| text(&it["expr"]).to_owned()).collect();
    expressions.extend(queries().into_iter().map(|it| it.expression));
    let mut named = BTreeSet::new();
    for expression in &expressions {
        named.extend(metrics_in(expression));
    }
    assert!(named.len() > 30, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|it| !exported.contains(it.as_str())).collect();
    assert!(missing.is_empty(), "named but not exported: {missing:?}");
}

#[test]
fn metrics_are_found_in_expressions() {
    let found = metrics_in(
        "sum by (job, skep_by) (rate(skep_a_total{reason=~\"skep_no|up\"}[5m])) / on (instance) \
         (process_b > 0) and up{job=\"skep\"} == 1 or node_c",
    );
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    assert_eq!(found, ["node_c", "process_b", "skep_a_total", "skep_by", "up"]);
}

#[test]
fn values_of_panels_are_written_in_their_units() {
    panels::assert_units();
    let units: BTreeSet<_> = queries().into_iter().map(|it| (it.panel, it.unit)).collect();
    let has = |panel: &str, unit: &str| units.contains(&(panel.into(), unit.into()));
    let expected = [("Age of the last snapshot", "s"), ("Snapshot errors", "short")];
    assert!(expected.into_iter().all(|(panel, unit)| has(panel, unit)), "{units:?}");
}

/// Several trackers, or jobs, share a Prometheus.
#[test]
fn every_query_is_of_the_chosen_job_and_instance() {
    let chosen = "job=~\"$job\", instance=~\"$instance\"";
    for query in queries() {
        let selectors = query.expression.matches("instance=~").count();
        assert!(selectors > 0, "{query:?}");
        assert_eq!(query.expression.matches(chosen).count(), selectors, "{query:?}");
    }
}

#[test]
fn a_line_in_a_panel_is_where_the_alert_that_it_names_fires() {
    if !have_yaml() {
        return;
    }
    let rules = rules();
    let mut seen = 0;
    for (panel, description, thresholds) in panels::thresholds() {
        for alert in description.split([' ', '.', ',']).filter(|word| word.starts_with("Skep")) {
            let rule = rules.iter().find(|rule| rule["alert"] == alert);
            let rule = rule.unwrap_or_else(|| panic!("{panel}: {alert} is not an alert"));
            let expression = text(&rule["expr"]);
            let fires_at = |value: &f64| expression.contains(&format!("> {value}"));
            assert!(thresholds.iter().any(fires_at), "{panel}: {thresholds:?}: {expression}");
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn every_query_of_the_dashboard_finds_something() {
    if !have(&["prometheus"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::write(folder.path());
    let skep = watched(&certificate);
    let prometheus = Prometheus::start(skep.admin);
    let traffic = Traffic::start(&skep, &certificate.certificate);
    let mut secure = connect(skep.tls[0], Some(&certificate.client()));
    let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", announce(1, 1, ""));
    assert_eq!(exchange(&mut *secure, &request).status, 200);
    let queries = queries();
    let mut empty: Vec<_> = queries.iter().collect();
    let finds = |expression: &str| {
        let is_quiet = QUIET.iter().any(|it| expression.contains(it));
        let found = prometheus.query(expression);
        found.iter().any(|(_, value)| value.is_finite() && (*value > 0.0 || is_quiet))
    };
    let begun = Instant::now();
    while !empty.is_empty() {
        assert!(begun.elapsed() < DEADLINE, "nothing is found by {empty:#?}");
        empty.retain(|it| !finds(&it.expression));
    }
    let page = panels::page(&prometheus, &queries);
    for query in &queries {
        assert!(
            page.contains(&format!("| {} |", query.panel)),
            "{} is not in\n{page}",
            query.panel
        );
    }
    if let Some(file) = std::env::var_os("SKEP_PANELS") {
        fs::write(Path::new(ROOT).join(file), page).unwrap();
    }
    drop((traffic, secure));
    healthy(&prometheus);
}

/// A skep that traffic brings to use all it has: TLS, limits, snapshots.
fn watched(certificate: &Certificate) -> Skep {
    let mut command = command();
    command
        .args(["--workers", "2", "--listen", "127.0.0.1:0"])
        .env("SKEP__TLS__LISTEN", "127.0.0.1:0")
        .env("SKEP__TLS__CERTIFICATE", &certificate.certificate)
        .env("SKEP__TLS__KEY", &certificate.key)
        // IPv4 meets its limits, and IPv6 does not.
        .env("SKEP__LIMITS__EXEMPT", "::1/128")
        .env("SKEP__LIMITS__BURST", "400")
        .env("SKEP__LIMITS__UNVERIFIED_BURST", "1000")
        .env("SKEP__SNAPSHOT__INTERVAL_S", "1");
    if has_ipv6() {
        command.args(["--listen", "[::1]:0"]);
    }
    Skep::spawn(command)
}

/// Every rule can be evaluated, and none finds fault with a skep that is merely busy.
fn healthy(prometheus: &Prometheus) {
    let response = prometheus.get("rules");
    let groups = list(&response["data"]["groups"]);
    let rules: Vec<_> = groups.iter().flat_map(|it| list(&it["rules"])).collect();
    assert_eq!(rules.len(), rules_count());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
    }
}

/// How many alerts rules.yml has, counted without reading YAML.
fn rules_count() -> usize {
    text_of("deploy/prometheus/rules.yml").matches("- alert: ").count()
}

fn rules() -> Vec<Value> {
    let page = document("deploy/prometheus/rules.yml");
    let groups = list(&page["groups"]);
    let rules: Vec<_> = groups.iter().flat_map(|it| list(&it["rules"])).cloned().collect();
    assert_eq!(rules.len(), rules_count());
    rules
}

/// The words of an expression that can only be metrics: outside of quotes, and named like ours, a
/// process's or a node's.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let outside = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let is_word = |it: char| it.is_ascii_alphanumeric() || it == '_';
    let is_metric = |word: &&str| {
        *word == "up" || ["skep_", "process_", "node_"].iter().any(|start| word.starts_with(start))
    };
    outside.split(|it| !is_word(it)).filter(is_metric).map(str::to_owned).collect()
}
