//! `/api/v1/status`: the latest sample for `skep status` and other programs, with what an operator
//! should know of it.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

use super::board::VERSION;
use super::sample::{Cause, Flow, Sample};
use crate::access_store::AccessManager;
use crate::admin::api::work;
use crate::admin::problem::ApiError;
use crate::admin::{Admin, NOT_KEPT, Process};
use crate::frontend::figures::rounded;
use crate::types::Action;

/// The metrics that are read besides those of the page. The process has all of them.
pub const STATUS_METRICS: [&str; 15] = [
    "skep_accept_failed_total",
    "skep_access_reload_failing",
    "skep_log_lines_lost_total",
    "skep_memory_cap_bytes",
    "skep_odd_sources_ratio",
    "skep_passkeys",
    "skep_registered_torrents",
    "skep_reload_failing",
    "skep_restore_outcome",
    "skep_settings_awaiting_restart",
    "skep_snapshot_errors_total",
    "skep_tls_certificate_not_after_timestamp_seconds",
    "skep_tls_reload_failing",
    "skep_unlisted_proxy_latest_timestamp_seconds",
    "skep_xdp_attached",
];

/// Seconds before the end of a certificate from which on it is warned of: certbot renews 30 days
/// before, so by then several attempts have failed.
pub(crate) const EXPIRY_NEAR_S: u32 = 14 * 24 * 60 * 60;

/// Seconds for which a request through a proxy that is not listed counts as present.
pub(crate) const PROXY_SEEN_S: f64 = 3600.0;

/// The share of its memory from which the store counts as full: it makes room soon.
const MEMORY_FULL: f64 = 0.95;

/// The load from which clients wait far longer than usual between announces.
const LOAD_HIGH: f64 = 0.9;

/// The response, for `skep status` as well. Fields that a reader does not know are ignored.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StatusResponse {
    pub(crate) version: Cow<'static, str>,
    pub(crate) state: String,
    pub(crate) uptime_s: u64,
    pub(crate) backend: Cow<'static, str>,
    pub(crate) access_mode: Cow<'static, str>,
    pub(crate) rates: StatusRates,
    pub(crate) peers: StatusPeers,
    pub(crate) torrents: StatusTorrents,
    pub(crate) limits: StatusLimits,
    pub(crate) memory: StatusMemory,
    /// Seconds since the Unix epoch; 0: there is none.
    pub(crate) snapshot_at_s: u64,
    pub(crate) warnings: Vec<StatusWarning>,
}

/// Per second, over all protocols.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StatusRates {
    pub(crate) announces: f64,
    pub(crate) scrapes: f64,
    pub(crate) connects: f64,
    /// Datagrams without a response.
    pub(crate) dropped: f64,
    /// Errors as responses.
    pub(crate) refused: f64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StatusPeers {
    pub(crate) all: u64,
    pub(crate) seeders: u64,
    pub(crate) leechers: u64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StatusTorrents {
    pub(crate) all: u64,
    pub(crate) active: u64,
    /// Registered info-hashes; a hybrid torrent has two.
    pub(crate) registered: u64,
    pub(crate) passkeys: u64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StatusLimits {
    /// Whether sources are limited, as on the page.
    pub(crate) sources: Cow<'static, str>,
    pub(crate) sources_over: u64,
    pub(crate) sources_denied: u64,
    pub(crate) interval_s: f64,
    /// 0: the usual interval; 1: the longest.
    pub(crate) load: f64,
    pub(crate) busiest_worker: f64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StatusMemory {
    pub(crate) resident_bytes: u64,
    /// 0: no cap.
    pub(crate) cap_bytes: u64,
    pub(crate) store_bytes: u64,
    /// 0: no limit.
    pub(crate) store_limit_bytes: u64,
}

/// What an operator should know, with its remedy.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct StatusWarning {
    /// Never changes, for programs.
    pub(crate) id: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) remedy: Cow<'static, str>,
}

/// Serves the latest figures.
pub(in crate::admin) async fn status<P: Process>(
    State(admin): State<Admin<P>>,
) -> Result<impl IntoResponse, ApiError> {
    let sample = admin.process.board().latest().ok_or_else(ApiError::no_figures)?;
    let mode = |access_manager: &AccessManager| Ok(access_manager.access().mode().label());
    let access_mode = work(&admin, move |access_manager, _| mode(access_manager)).await?;
    Ok(([NOT_KEPT], Json(StatusResponse::of(&sample, access_mode))))
}

impl StatusResponse {
    fn of(sample: &Sample, access_mode: &'static str) -> Self {
        let dropped: Flow = Cause::ALL.into_iter().map(|it| sample.silenced(it)).sum();
        let store = &sample.store;
        let (seeders, leechers) = (store.seeders.iter().sum(), store.leechers.iter().sum());
        let whole = |name| rounded(value(sample, name));
        Self {
            version: VERSION.into(),
            state: sample.state.clone(),
            uptime_s: sample.uptime_s,
            backend: sample.backend.into(),
            access_mode: access_mode.into(),
            rates: StatusRates {
                announces: sample.answered(Action::Announce).per_s,
                scrapes: sample.answered(Action::Scrape).per_s,
                connects: sample.answered(Action::Connect).per_s,
                dropped: dropped.per_s,
                refused: sample.errors().per_s,
            },
            peers: StatusPeers { all: seeders + leechers, seeders, leechers },
            torrents: StatusTorrents {
                all: store.torrents,
                active: store.active_torrents,
                registered: whole("skep_registered_torrents"),
                passkeys: whole("skep_passkeys"),
            },
            limits: StatusLimits {
                sources: sample.limits.into(),
                sources_over: sample.limited_sources,
                sources_denied: whole("skep_kernel_denied_sources"),
                interval_s: value(sample, "skep_announce_interval_seconds"),
                load: value(sample, "skep_load_ratio"),
                busiest_worker: sample.busiest_ratio(),
            },
            memory: StatusMemory {
                resident_bytes: whole("skep_memory_resident_bytes"),
                cap_bytes: whole("skep_memory_cap_bytes"),
                store_bytes: whole("skep_store_used_bytes"),
                store_limit_bytes: whole("skep_store_limit_bytes"),
            },
            snapshot_at_s: whole("skep_snapshot_last_success_timestamp_seconds"),
            warnings: warnings(sample),
        }
    }
}

/// The sum of a metric's values.
fn value(sample: &Sample, name: &str) -> f64 {
    sample.of(name).map(|it| it.flow.total).sum()
}

/// The growth of a metric's values per second.
fn per_s(sample: &Sample, name: &str) -> f64 {
    sample.of(name).map(|it| it.flow.per_s).sum()
}

/// A metric's value with this label.
fn labelled(sample: &Sample, name: &str, label: (&str, &str)) -> f64 {
    let has_label = |it: &&super::MetricFlow| it.label(label.0) == label.1;
    sample.of(name).filter(has_label).map(|it| it.flow.total).sum()
}

/// Everything that is wrong, the worst first.
pub(super) fn warnings(sample: &Sample) -> Vec<StatusWarning> {
    let all = [
        of_sources(sample),
        of_load(sample),
        of_certificate(sample),
        of_reload(sample),
        of_state(sample),
    ];
    all.into_iter().flatten().collect()
}

/// Adds a warning if there is reason for one.
fn warn(
    found: &mut Vec<StatusWarning>,
    is_due: bool,
    id: &'static str,
    message: impl FnOnce() -> String,
    remedy: &'static str,
) {
    if is_due {
        found.push(StatusWarning { id: id.into(), message: message(), remedy: remedy.into() });
    }
}

/// Of the addresses of clients.
fn of_sources(sample: &Sample) -> Vec<StatusWarning> {
    let remedy = "let clients' addresses through: the host's network instead of a bridge, \
                  externalTrafficPolicy: Local, or http.trusted_proxies for the reverse proxy in \
                  front";
    let mut found = Vec::new();
    let share = |kind| labelled(sample, "skep_odd_sources_ratio", ("kind", kind)) * 100.0;
    let (one, unroutable) = (share("one_address"), share("unroutable"));
    let message = || format!("{one:.0} % of the announces come from one address");
    warn(&mut found, one > 0.0, "one_address", message, remedy);
    let message = || format!("{unroutable:.0} % of the announces come from private addresses");
    warn(&mut found, unroutable > 0.0, "unroutable_addresses", message, remedy);
    let name = "skep_unlisted_proxy_latest_timestamp_seconds";
    let latest_s = labelled(sample, name, ("source", "private"));
    let is_recent = latest_s > 0.0 && sample.at_s - latest_s < PROXY_SEEN_S;
    let message = || "a reverse proxy that is not listed names clients in vain".to_owned();
    let remedy = "the log has its address: add it to http.trusted_proxies if a reverse proxy of \
                  yours runs there, but not if it is a bridge or NAT that hides clients";
    warn(&mut found, is_recent, "unlisted_proxy", message, remedy);
    found
}

/// Of what is short at this moment.
fn of_load(sample: &Sample) -> Vec<StatusWarning> {
    let mut found = Vec::new();
    let drops = per_s(sample, "skep_udp_socket_drops_total");
    // The kernel counts datagrams of denied sources as well.
    let is_full = drops > 0.0 && value(sample, "skep_kernel_denied_sources") == 0.0;
    let message = || format!("{drops:.0} datagrams a second are dropped: receive queues are full");
    let remedy = "raise server.workers (with more cores) or udp.receive_buffer";
    warn(&mut found, is_full, "receive_queue_full", message, remedy);
    let refused = per_s(sample, "skep_accept_failed_total");
    let message = || format!("{refused:.0} connections a second cannot be accepted");
    let remedy = "raise the limit on open files: LimitNOFILE in the unit, `ulimit -n`";
    warn(&mut found, refused > 0.0, "connections_not_accepted", message, remedy);
    let load = value(sample, "skep_load_ratio");
    let message = || format!("load {:.0} %: announce intervals are near the longest", load * 100.0);
    let remedy = "raise server.workers (with more cores), or tracker.interval_s";
    warn(&mut found, load >= LOAD_HIGH, "load", message, remedy);
    let without = sample.of("skep_xdp_attached").filter(|it| it.flow.total == 0.0);
    let without: Vec<_> = without.map(|it| it.label("interface")).collect();
    let message = || format!("{} without the XDP program: served over sockets", without.join(", "));
    let remedy = "see the log for cause and remedy; skep tries again by itself";
    warn(&mut found, !without.is_empty(), "xdp_not_attached", message, remedy);
    let (used, limit) =
        (value(sample, "skep_store_used_bytes"), value(sample, "skep_store_limit_bytes"));
    let is_full = limit > 0.0 && used >= limit * MEMORY_FULL;
    let message = || {
        let share = used / limit * 100.0;
        format!("torrents and peers take {share:.0} % of the memory that they may take")
    };
    let remedy = "raise memory.max_memory if the host has memory";
    warn(&mut found, is_full, "memory_full", message, remedy);
    found
}

/// Of the TLS certificate.
fn of_certificate(sample: &Sample) -> Vec<StatusWarning> {
    let mut found = Vec::new();
    let end_s = value(sample, "skep_tls_certificate_not_after_timestamp_seconds");
    let left_s = end_s - sample.at_s;
    let message = || match left_s > 0.0 {
        true => format!("the TLS certificate expires in {:.0} hours", (left_s / 3600.0).floor()),
        false => "the TLS certificate has expired".to_owned(),
    };
    let renew = "renew it; skep loads the new one by itself if it may read the files";
    warn(
        &mut found,
        end_s > 0.0 && left_s < f64::from(EXPIRY_NEAR_S),
        "certificate",
        message,
        renew,
    );
    let message = || "the files of the TLS certificate cannot be loaded".to_owned();
    let is_failing = value(sample, "skep_tls_reload_failing") > 0.0;
    let remedy = "see the log for the cause; skep tries again once a minute";
    warn(&mut found, is_failing, "certificate_reload_failures", message, remedy);
    found
}

/// Of what a reload did not put in force.
fn of_reload(sample: &Sample) -> Vec<StatusWarning> {
    let mut found = Vec::new();
    let message = || "the last reload failed; the settings before it are in force".to_owned();
    let remedy = "see the log for the cause, correct the settings, and reload";
    let is_failing = value(sample, "skep_reload_failing") > 0.0;
    warn(&mut found, is_failing, "reload_failing", message, remedy);
    let message = |number: u64, one: &str, several: &str| match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {several}"),
    };
    let waiting = rounded(value(sample, "skep_settings_awaiting_restart"));
    let text = || message(waiting, "setting waits for a restart", "settings wait for a restart");
    let remedy = "restart skep; the log names them";
    warn(&mut found, waiting > 0, "restart_needed", text, remedy);
    let lists = rounded(value(sample, "skep_access_reload_failing"));
    let one = "access list could not be reloaded; the one before is in force";
    let several = "access lists could not be reloaded; the ones before are in force";
    let text = || message(lists, one, several);
    let remedy = "see the log for file and line, correct the file, and reload";
    warn(&mut found, lists > 0, "access_reload_failures", text, remedy);
    found
}

/// Of what failed since the start.
fn of_state(sample: &Sample) -> Vec<StatusWarning> {
    let mut found = Vec::new();
    let log = "see the log for the cause";
    let failed = |name, what: &str| {
        let number = rounded(value(sample, name));
        let plural = if number == 1 { "" } else { "s" };
        (number > 0, format!("{number} {what}{plural} since the start"))
    };
    let lost = labelled(sample, "skep_restore_outcome", ("outcome", "lost")) > 0.0;
    let message = || "the start found no usable snapshot: swarms began empty".to_owned();
    warn(&mut found, lost, "snapshot_lost", message, log);
    let unusable = labelled(sample, "skep_restore_outcome", ("outcome", "unusable")) > 0.0;
    let message = || {
        "no snapshots are kept: the state directory cannot be used, and swarms are empty after a \
         restart"
            .to_owned()
    };
    let remedy = "see the log for the cause, correct what `skep check` finds, and restart";
    warn(&mut found, unusable, "snapshots_unusable", message, remedy);
    for (id, name, what, remedy) in [
        ("snapshot_errors", "skep_snapshot_errors_total", "failed snapshot", log),
        (
            "log_lines_lost",
            "skep_log_lines_lost_total",
            "lost log line",
            "let the reader of standard error read faster",
        ),
    ] {
        let (is_due, message) = failed(name, what);
        warn(&mut found, is_due, id, || message, remedy);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::MetricFlow;
    use super::*;

    fn flow(name: &'static str, label: (&'static str, &'static str), flow: Flow) -> MetricFlow {
        MetricFlow { name, labels: vec![(label.0, label.1.into())], flow }
    }

    const NOW_S: f64 = 1.8e9;

    fn ids(flows: Vec<MetricFlow>) -> Vec<Cow<'static, str>> {
        let sample = Sample { flows, at_s: NOW_S, ..Sample::default() };
        warnings(&sample).into_iter().map(|it| it.id).collect()
    }

    #[test]
    fn every_warning_has_its_cause() {
        let total = |total| Flow { total, per_s: 0.0 };
        let none = ("", "");
        for (flows, id) in [
            (
                vec![flow("skep_odd_sources_ratio", ("kind", "one_address"), total(0.9))],
                "one_address",
            ),
            (
                vec![flow("skep_odd_sources_ratio", ("kind", "unroutable"), total(0.9))],
                "unroutable_addresses",
            ),
            (
                vec![flow("skep_udp_socket_drops_total", none, Flow { total: 9.0, per_s: 1.0 })],
                "receive_queue_full",
            ),
            (
                vec![flow("skep_accept_failed_total", none, Flow { total: 9.0, per_s: 1.0 })],
                "connections_not_accepted",
            ),
            (vec![flow("skep_load_ratio", none, total(0.9))], "load"),
            (
                vec![
                    flow("skep_xdp_attached", ("interface", "eth0"), total(1.0)),
                    flow("skep_xdp_attached", ("interface", "eth1"), total(0.0)),
                ],
                "xdp_not_attached",
            ),
            (
                vec![
                    flow("skep_store_used_bytes", none, total(96.0)),
                    flow("skep_store_limit_bytes", none, total(100.0)),
                ],
                "memory_full",
            ),
            (vec![flow("skep_restore_outcome", ("outcome", "lost"), total(1.0))], "snapshot_lost"),
            (
                vec![flow("skep_restore_outcome", ("outcome", "unusable"), total(1.0))],
                "snapshots_unusable",
            ),
            (vec![flow("skep_snapshot_errors_total", none, total(1.0))], "snapshot_errors"),
            (vec![flow("skep_access_reload_failing", none, total(2.0))], "access_reload_failures"),
            (vec![flow("skep_reload_failing", none, total(1.0))], "reload_failing"),
            (vec![flow("skep_settings_awaiting_restart", none, total(2.0))], "restart_needed"),
            (vec![flow("skep_log_lines_lost_total", none, total(1.0))], "log_lines_lost"),
            (
                vec![flow("skep_tls_reload_failing", none, total(1.0))],
                "certificate_reload_failures",
            ),
            (
                vec![flow(
                    "skep_unlisted_proxy_latest_timestamp_seconds",
                    ("source", "private"),
                    total(NOW_S - PROXY_SEEN_S + 1.0),
                )],
                "unlisted_proxy",
            ),
            (
                vec![flow(
                    "skep_tls_certificate_not_after_timestamp_seconds",
                    none,
                    total(NOW_S + f64::from(EXPIRY_NEAR_S) - 1.0),
                )],
                "certificate",
            ),
        ] {
            assert_eq!(ids(flows), [id]);
        }
    }

    #[test]
    fn nothing_comes_without_its_cause() {
        let total = |total| Flow { total, per_s: 0.0 };
        let none = ("", "");
        assert!(ids(Vec::new()).is_empty());
        let past = flow("skep_udp_socket_drops_total", none, total(9.0));
        let denied = flow("skep_kernel_denied_sources", none, total(1.0));
        let denied_drops =
            flow("skep_udp_socket_drops_total", none, Flow { total: 9.0, per_s: 1.0 });
        assert!(ids(vec![past, flow("skep_load_ratio", none, total(0.5))]).is_empty());
        assert!(ids(vec![denied, denied_drops]).is_empty(), "they are dropped on purpose");
        let failures = flow("skep_tls_reload_failures_total", none, total(9.0));
        let failing = flow("skep_tls_reload_failing", none, total(0.0));
        assert!(ids(vec![failures, failing]).is_empty(), "it was loaded since");
        let at = |name, label, at_s| ids(vec![flow(name, label, total(at_s))]);
        let proxy = "skep_unlisted_proxy_latest_timestamp_seconds";
        assert!(at(proxy, ("source", "public"), NOW_S).is_empty(), "a client's own proxy");
        assert!(at(proxy, ("source", "private"), NOW_S - PROXY_SEEN_S).is_empty(), "long ago");
        let end = "skep_tls_certificate_not_after_timestamp_seconds";
        assert!(at(end, none, NOW_S + f64::from(EXPIRY_NEAR_S)).is_empty());
    }
}
