//! The table of metrics: name with its unit, help, labels and how it is read, each defined once.
//!
//! Labels have closed lists of values, so the number of series is bounded.

use std::sync::atomic::{AtomicU64, Ordering};

use super::series::{Durations, Series, SeriesReader, SeriesWriter, labels, read, seconds, series};
use super::sources::MetricInputs;
use crate::access::lists::ListName;
use crate::cluster::{ClusterView, NodeView, Readiness};
use crate::counters::{
    CloseReason, DeliveryFailure, DurationHistogram, FrameEvent, Handshake, IoEvent,
    RequestCounters,
};
use crate::frontend::unlisted_proxies::ProxySource;
use crate::limiter::{LimitAction, LimitTable};
use crate::server::log;
use crate::server::snapshots::figures::{Figures, RestoreOutcome};
use crate::snapshot::SaveStep;
use crate::sys::xdp::kernel::AttachMode;
use crate::sys::xdp::offload::OffloadVerdict;
use crate::sys::xdp::socket::XskMode;
use crate::tracker::SourceAnomaly;
use crate::types::{
    Action, Dropped, Family, NETWORK_DENIED, NotStored, PeerKind, Refusal, Rejected, Transport,
};

series! {
    "Requests" {
        /// Requests answered, by an XDP program as well. `action`: connect, announce, scrape,
        /// answer (WebRTC) or page.
        counter skep_responses_total{transport, family, action} = responses;
        /// Well-formed requests answered with an error.
        counter skep_refused_total{transport, family, reason} = refused;
        /// Datagrams without a response: too short, wrong magic, forged or expired connection id,
        /// over a limit, shed under load. What an XDP program has dropped counts as well; such a
        /// program alone drops for `network_denied`.
        counter skep_dropped_total{transport, family, reason} = |from, to| {
            for family in Family::ALL {
                for reason in Dropped::ALL {
                    let count = from.datagrams(family, |it| it.dropped[reason as usize].get());
                    let count = count + from.dropped_by_xdp(family, reason).datagrams;
                    to.put(["udp", family.label(), reason.label()], count);
                }
                let denied = from.denied_by_xdp(family).datagrams;
                to.put(["udp", family.label(), NETWORK_DENIED], denied);
            }
        };
        /// Requests over TCP that were not well-formed.
        counter skep_rejected_total{transport, family, reason} = |from, to| {
            for reason in Rejected::ALL {
                let transport = reason.transport();
                for family in Family::ALL {
                    let of = |it: &RequestCounters| it.rejected[reason as usize].get();
                    let count = from.requests((transport, family), of);
                    to.put([transport.label(), family.label(), reason.label()], count);
                }
            }
        };
        /// Requests received. Over UDP this is exactly `skep_responses_total` +
        /// `skep_refused_total` + `skep_dropped_total`; over TCP `skep_rejected_total` takes the
        /// place of `skep_dropped_total`.
        counter skep_requests_total{transport, family} = requests;
        /// Payload bytes of datagrams received.
        counter skep_receive_bytes_total{transport, family} = |from, to| {
            for family in Family::ALL {
                let count = from.datagrams(family, |it| it.received_bytes.get());
                let count = count + from.finished_by_xdp(family).bytes;
                to.put(["udp", family.label()], count);
            }
        };
        /// Payload bytes of datagrams sent.
        counter skep_transmit_bytes_total{transport, family} = |from, to| {
            for family in Family::ALL {
                let count = from.datagrams(family, |it| it.sent_bytes.get());
                // A connect that a program answers has as many bytes as its response.
                let count = count + from.answered_by_xdp(family).bytes;
                to.put(["udp", family.label()], count);
            }
        };
        /// Datagrams that the kernel dropped before skep received them, because a receive queue was
        /// full or their source is denied.
        counter skep_udp_socket_drops_total{worker, family} = |from, to| {
            from.sockets.iter().for_each(|group| to.put(group.labels(), group.drops));
        };
        /// Bytes that wait in receive queues, with overhead.
        gauge skep_udp_socket_queue_bytes{worker, family} = |from, to| {
            from.sockets.iter().for_each(|group| to.put(group.labels(), group.queue_bytes));
        };
        /// Bytes that receive queues may hold, with overhead.
        gauge skep_udp_socket_buffer_bytes{worker, family} = |from, to| {
            from.sockets.iter().for_each(|group| to.put(group.labels(), group.buffer_bytes));
        };
        /// Datagrams for this tracker that the XDP program of an interface has judged. Those that
        /// passed were received by a socket, those that were redirected by an AF_XDP socket; the
        /// others count in `skep_responses_total` and `skep_dropped_total` as well.
        counter skep_xdp_packets_total{interface, verdict} = |from, to| {
            for interface in &from.xdp.interfaces {
                for verdict in OffloadVerdict::ALL {
                    let of = |it: &Family| interface.counts.of(*verdict, *it).datagrams;
                    let count = Family::ALL.iter().map(of).sum::<u64>();
                    to.put([interface.name.clone(), verdict.label().to_owned()], count);
                }
            }
        };
        /// 1 for an interface that has the XDP program, 0 for one that is to have the program and
        /// has not: its datagrams are served through the sockets, and the log has the cause.
        gauge skep_xdp_attached{interface} = |from, to| {
            for interface in from.xdp.interfaces.iter().filter(|it| it.is_wanted) {
                to.put([interface.name.clone()], u64::from(interface.mode.is_some()));
            }
        };
        /// Receive queues of an interface that are to have an AF_XDP socket and have none: their
        /// datagrams are served through the ordinary sockets, and the log has the cause.
        gauge skep_xdp_queues_lacking{interface} = |from, to| {
            for interface in from.xdp.interfaces.iter().filter(|it| it.is_wanted) {
                to.put([interface.name.clone()], interface.queues_lacking);
            }
        };
        /// Frames of AF_XDP sockets: received and sent by a worker, received and not served
        /// (bad_checksum, not_understood), dropped by the kernel (ring_full, dropped); and how
        /// often the kernel had no frame to receive into (fill_empty).
        counter skep_xdp_frames_total{event in FrameEvent} =
            |from, event| from.worker_sum(|worker| worker.frames(event).get());
        /// Failures of system calls that the workers survived.
        counter skep_io_events_total{event in IoEvent} =
            |from, event| from.worker_sum(|worker| worker.io_event(event).get());
        /// Handling time of a batch of datagrams, from the reading of the clock until all responses
        /// were queued, sampled from one turn in 64.
        histogram skep_handling_duration_seconds = handling;
    }

    "Swarms and memory" {
        /// Torrents in the store, those with only a completed count included.
        gauge skep_torrents = |from| from.totals.torrents;
        /// Torrents that have peers.
        gauge skep_active_torrents = |from| from.totals.active_torrents;
        /// Peers in the store. `family`: ipv4, ipv6, or webrtc for browsers. `state`: seeder or
        /// leecher; a seeder lacks nothing of its torrent.
        gauge skep_peers{family, state} = |from, to| {
            for kind in PeerKind::ALL {
                to.put([kind.label(), "seeder"], from.totals.seeders[kind as usize]);
                to.put([kind.label(), "leecher"], from.totals.leechers[kind as usize]);
            }
        };
        /// Completed downloads, each address and port counted once.
        counter skep_completed_total = |from| from.totals.completed;
        /// Announces answered though their peer was not stored: no memory, too many peers of one
        /// host, too many new torrents, overload.
        counter skep_announces_not_stored_total{reason in NotStored} =
            |from, reason| from.tally_sum(|tallies| tallies.not_stored.of(reason).get());
        /// Torrents without peers or on probation that were removed to make room.
        counter skep_torrents_evicted_total = |from| from.usage.evicted;
        /// Bytes that torrents and peers take, as requested from the allocator.
        gauge skep_store_used_bytes = |from| from.usage.bytes;
        /// Bytes that torrents and peers may take, by the latest measurement. 0: no limit.
        gauge skep_store_limit_bytes = |from| from.usage.bytes_max;
        /// Resident memory by the latest measurement; the store's limit follows it.
        gauge skep_memory_resident_bytes = |from| from.context.memory.resident_bytes();
        /// Cap on resident memory. 0: no cap.
        gauge skep_memory_cap_bytes = |from| from.context.memory.cap();
    }

    "Limits and load" {
        /// Requests at the limits of their source: passed, limited, slipped (over the limit, and
        /// answered all the same), exempt. In a dry run all of them are served.
        counter skep_limited_total{table in LimitTable, action in LimitAction} =
            |from, table, action| from.tally_sum(|tallies| tallies.limits.of(table, action).get());
        /// Sources whose datagrams the filter on the sockets drops at present, see
        /// `limits.kernel_deny_rate`; what it drops counts in `skep_udp_socket_drops_total`.
        gauge skep_kernel_denied_sources = |from| from.denied;
        /// Load of the busiest worker, as the announce interval follows it: 0 is the usual
        /// interval, 1 the longest.
        gauge skep_load_ratio = |from| from.context.load.ratio();
        /// Announce interval that clients of small swarms are sent, on average.
        gauge skep_announce_interval_seconds = |from| {
            let options = &from.context.options.load().tracker;
            let more_s = options.interval_s_max.saturating_sub(options.interval_s);
            f64::from(options.interval_s) + f64::from(more_s) * from.context.load.ratio()
        };
        /// Share of the announces that come from one address, or from unroutable ones, where it is
        /// more than half: something hides the clients' addresses. Else 0.
        gauge skep_odd_sources_ratio{kind} = |from, to| {
            let (one_address, unroutable) = match from.context.source_monitor.anomaly(from.now) {
                None => (0.0, 0.0),
                Some(SourceAnomaly::SingleAddress(_, share)) => (share, 0.0),
                Some(SourceAnomaly::Unroutable(share)) => (0.0, share),
            };
            to.put(["one_address"], one_address);
            to.put(["unroutable"], unroutable);
        };
        /// HTTP requests and connections with a forwarding header (`Forwarded`, `X-Forwarded-For`,
        /// `X-Real-IP`, PROXY) from a source that `http.trusted_proxies` does not list, so that the
        /// header is ignored. `private`: from a loopback or private address, the sign of a reverse
        /// proxy that is not listed. `public`: clients with proxies of their own send it too.
        counter skep_unlisted_proxy_requests_total{source in ProxySource} =
            |from, source| from.context.unlisted_proxies.requests(source);
        /// Time of the latest of them since the start, or since `http.trusted_proxies` has
        /// changed. 0: none.
        gauge skep_unlisted_proxy_latest_timestamp_seconds{source in ProxySource} =
            |from, source| from.context.unlisted_proxies.latest_s(source);
        /// Share of them in the requests over HTTP of the last hour, or since
        /// `http.trusted_proxies` has changed.
        gauge skep_unlisted_proxy_ratio{source in ProxySource} =
            |from, source| from.context.unlisted_proxies.ratio(source);
        /// Share of the last second for which a worker used its CPU.
        gauge skep_worker_busy_ratio{worker} = |from, to| {
            from.busy.iter().for_each(|busy| to.put([busy.label.clone()], busy.ratio));
        };
        /// Age of the oldest last turn of a worker; `/livez` fails above 5 s.
        gauge skep_worker_last_turn_age_seconds{transport} = |from, to| {
            to.put(["udp"], from.age_s(from.workers.iter().map(|it| it.elapsed_ns.get())));
            to.put(["tcp"], from.age_s(from.streams.iter().map(|it| it.elapsed_ns.get())));
        };
        /// Always 1. The labels name the I/O backend, and why that one. `xdp_offload` is there as
        /// well while an interface has the program, with where the program runs: native or
        /// generic; `xdp_full` while it has AF_XDP sockets, with how frames reach them: zero_copy
        /// or copy.
        gauge skep_io_backend_info{backend, reason} = |from, to| {
            to.put([from.info.backend, from.info.reason], 1_u64);
            let interfaces = &from.xdp.interfaces;
            for mode in [AttachMode::Native, AttachMode::Generic] {
                if interfaces.iter().any(|it| it.mode == Some(mode)) {
                    to.put(["xdp_offload", mode.label()], 1_u64);
                }
            }
            for mode in [XskMode::ZeroCopy, XskMode::Copy] {
                if interfaces.iter().any(|it| it.sockets == Some(mode)) {
                    to.put(["xdp_full", mode.label()], 1_u64);
                }
            }
        };
    }

    "Connections" {
        /// Open TCP connections. `ws`: WebSockets.
        gauge skep_connections{kind in Transport} =
            |from, kind| from.stream_sum(|worker| worker.open(kind).get());
        /// Open connections over TLS.
        gauge skep_tls_connections = |from| from.stream_sum(|worker| worker.open_tls.get());
        /// Connections accepted.
        counter skep_connections_accepted_total =
            |from| from.stream_sum(|worker| worker.accepted.get());
        /// Failures to accept a connection, most often because the process has no descriptor left.
        counter skep_accept_failed_total =
            |from| from.stream_sum(|worker| worker.accept_errors.get());
        /// Connections that ended. `memory` and `limited`: their source held too much memory or
        /// sent too many requests.
        counter skep_connections_closed_total{reason in CloseReason} =
            |from, reason| from.stream_sum(|worker| worker.closed(reason).get());
        /// Memory that connections hold.
        gauge skep_connections_used_bytes = |from| from.context.memory.connection_bytes();
        /// Memory that connections may hold.
        gauge skep_connections_limit_bytes =
            |from| from.context.options.load().streams.memory_max_bytes;
        /// Bytes read from connections, without what TLS adds.
        counter skep_stream_receive_bytes_total{transport in Transport} =
            |from, transport| from.stream_sum(|worker| worker.received_bytes(transport).get());
        /// Bytes written to connections, without what TLS adds.
        counter skep_stream_transmit_bytes_total{transport in Transport} =
            |from, transport| from.stream_sum(|worker| worker.sent_bytes(transport).get());
        /// TLS handshakes: full, resumed, failed.
        counter skep_tls_handshakes_total{kind in Handshake} =
            |from, kind| from.stream_sum(|worker| worker.handshakes(kind).get());
        /// Time at which the TLS certificate in force, or one of its chain, expires. 0: TLS is not
        /// served.
        gauge skep_tls_certificate_not_after_timestamp_seconds =
            |from| from.context.certificate.not_after_s();
        /// Attempts to load a changed certificate that failed; the one in force stays. Files that
        /// cannot be used are tried again once a minute.
        counter skep_tls_reload_failures_total =
            |from| from.context.certificate.reload_failures();
        /// 1 while the files of the certificate cannot be used: the last attempt to load them
        /// failed. Else 0.
        gauge skep_tls_reload_failing =
            |from| u64::from(from.context.certificate.is_failing());
        /// Connections that became WebSockets.
        counter skep_websocket_upgrades_total =
            |from| from.stream_sum(|worker| worker.upgrades.get());
        /// WebRTC offers and answers that were not delivered: unusable, receiver gone, over its
        /// quota, its queue or its worker's inbox full.
        counter skep_webtorrent_messages_lost_total{reason in DeliveryFailure} =
            |from, reason| from.stream_sum(|worker| worker.messages_lost(reason).get());
        /// Open statistics pages that are kept up to date, 16 at most.
        gauge skep_stats_viewers = |from| from.board.viewers();
        /// Statistics pages that were not kept up to date because too many were open.
        counter skep_stats_viewers_refused_total = |from| from.board.refused();
        /// Connections to the admin listener closed or refused because the connection limit was
        /// reached.
        counter skep_admin_connections_closed_total = |from| from.admin_connections.closed();
    }

    "Cluster" {
        /// Whether a broker of the cluster is connected. This and the other metrics of the cluster
        /// are there only where `cluster.servers` is set.
        gauge skep_cluster_connected{cluster} = |from, to| {
            of_cluster(from, to, |view| u64::from(view.is_connected));
        };
        /// Whether this node can serve clients like the others: not while it gets their swarms, and
        /// not while another node has its name.
        gauge skep_cluster_ready{cluster} = |from, to| {
            of_cluster(from, to, |view| u64::from(view.readiness == Readiness::Ready));
        };
        /// Other nodes that are there: seen within 15 seconds.
        gauge skep_cluster_nodes{cluster} = |from, to| {
            of_cluster(from, to, |view| view.others() as u64);
        };
        /// Changes to peers that were published.
        counter skep_cluster_sent_records_total{cluster} = |from, to| {
            of_cluster(from, to, |view| view.sent_records);
        };
        /// Changes to peers that came from other nodes: applied, or not_stored because memory was
        /// short, a cap was reached or the address is local.
        counter skep_cluster_received_records_total{cluster, result} = |from, to| {
            of_cluster_by(from, to, "applied", |view| view.received.applied);
            of_cluster_by(from, to, "not_stored", |view| view.received.not_stored);
        };
        /// Frames of other nodes that were not applied: forged (no valid MAC of this cluster),
        /// stale (sent more than two minutes before or after now, or by a process that has ended),
        /// version (unknown), foreign (more than 64 nodes, or a name that does not fit) or
        /// repeated.
        counter skep_cluster_refused_frames_total{cluster, reason} = |from, to| {
            of_cluster_by(from, to, "forged", |view| view.received.forged);
            of_cluster_by(from, to, "stale", |view| view.received.stale);
            of_cluster_by(from, to, "version", |view| view.received.version);
            of_cluster_by(from, to, "foreign", |view| view.received.foreign);
            of_cluster_by(from, to, "repeated", |view| view.received.repeated);
        };
        /// Changes to peers that other nodes do not get: made faster than they were taken over
        /// (ring), or the broker was away for longer than `cluster.queue` lasts (queue). Nodes that
        /// lack them get the peers as for a join.
        counter skep_cluster_lost_records_total{cluster, where} = |from, to| {
            of_cluster_by(from, to, "ring", |view| view.lost.ring);
            of_cluster_by(from, to, "queue", |view| view.lost.queue);
        };
        /// Frames of other nodes that were missed and no longer kept; the peers came as for a join,
        /// but those that had left stay until they expire.
        counter skep_cluster_gap_frames_total{cluster} = |from, to| {
            of_cluster(from, to, |view| view.lost.gap_frames);
        };
        /// Of the nodes the greatest 99th percentile of the time from publication to arrival of
        /// changes, without the difference between clocks, over two minutes; a power of two.
        gauge skep_cluster_lag_seconds{cluster} = |from, to| {
            if let Some(view) = &from.cluster {
                to.put([view.cluster.clone()], of_ms(view.lag_p99_ms_max()));
            }
        };
        /// The greatest difference between the clock of a node and this one's.
        gauge skep_cluster_clock_offset_seconds{cluster} = |from, to| {
            if let Some(view) = &from.cluster {
                to.put([view.cluster.clone()], of_ms(view.clock_offset_ms_max()));
            }
        };
        /// Changes that wait to be published.
        gauge skep_cluster_queue_bytes{cluster} = |from, to| {
            of_cluster(from, to, |view| view.queue_bytes);
        };
        /// Joins that have ended: at the start joined, alone (no other node was ready) or
        /// timed_out; later caught_up or failed, after changes of another node were lost.
        counter skep_cluster_joins_total{cluster, outcome} = |from, to| {
            of_cluster_by(from, to, "joined", |view| view.joins.joined);
            of_cluster_by(from, to, "alone", |view| view.joins.alone);
            of_cluster_by(from, to, "timed_out", |view| view.joins.timed_out);
            of_cluster_by(from, to, "caught_up", |view| view.joins.caught_up);
            of_cluster_by(from, to, "failed", |view| view.joins.failed);
        };
        /// Other nodes with settings that have to be the same everywhere and are not: the
        /// connection-id key and its MAC, interval, peer age.
        gauge skep_cluster_config_mismatch{cluster} = |from, to| {
            of_cluster(from, to, |view| {
                let differs = |it: &&NodeView| !it.is_gone && !it.differences.is_empty();
                view.nodes.iter().filter(differs).count() as u64
            });
        };
    }
    "Access, snapshots, process" {
        /// Entries of each access list.
        gauge skep_access_entries{list in ListName} =
            |from, list| from.context.access_manager.access().lists().get(list).len();
        /// Access lists that could not be reloaded, and stayed as they were.
        counter skep_access_reload_failures_total =
            |from| from.context.access_manager.reload_failures();
        /// Access lists whose latest reload failed, so that the ones before it are in force.
        gauge skep_access_reload_failing =
            |from| from.context.access_manager.failing_lists().len();
        /// 1 while the latest reload of the settings failed, so that those before it are in force.
        /// Else 0.
        gauge skep_reload_failing = |from| u64::from(from.context.reloads.has_failed());
        /// Settings that the latest successful reload read, and that come into force only with a
        /// restart.
        gauge skep_settings_awaiting_restart = |from| from.context.reloads.awaiting_restart();
        /// Registered info-hashes; a hybrid torrent has two.
        gauge skep_registered_torrents =
            |from| from.context.access_manager.access().registry().len();
        /// Valid passkeys.
        gauge skep_passkeys = |from| from.context.access_manager.access().passkeys().len();
        /// Time of the latest snapshot; until there is one, of the snapshot that was restored. 0:
        /// none.
        gauge skep_snapshot_last_success_timestamp_seconds =
            |from| snapshots(from, |figures| &figures.last_success_s);
        /// Time that the latest snapshot took, the disk included.
        gauge skep_snapshot_duration_seconds =
            |from| seconds(snapshots(from, |figures| &figures.duration_us) * 1000);
        /// Size of the latest snapshot.
        gauge skep_snapshot_bytes = |from| snapshots(from, |figures| &figures.bytes);
        /// Torrents, and parts of large ones, in the latest snapshot.
        gauge skep_snapshot_torrents = |from| snapshots(from, |figures| &figures.torrents);
        /// Peers in the latest snapshot.
        gauge skep_snapshot_peers = |from| snapshots(from, |figures| &figures.peers);
        /// Snapshots that failed, by step: create, write, sync, commit. Earlier ones stay as they
        /// were.
        counter skep_snapshot_errors_total{reason in SaveStep} =
            |from, step| snapshots(from, |figures| &figures.errors[step as usize]);
        /// 1 for the outcome of the restore at start: off, unusable (the state directory cannot be
        /// used, so no snapshots are kept), waiting (for another process that keeps snapshots
        /// there), running, restored, empty (there was no snapshot), lost (there was no usable
        /// one), broken_off.
        gauge skep_restore_outcome{outcome in RestoreOutcome} =
            |from, outcome| u64::from(from.context.snapshots.figures.outcome() == outcome);
        /// Time that the restore took.
        gauge skep_restore_duration_seconds =
            |from| seconds(snapshots(from, |figures| &figures.restore_duration_us) * 1000);
        /// Torrents, and parts of large ones, that were restored.
        gauge skep_restore_torrents =
            |from| snapshots(from, |figures| &figures.restored_torrents);
        /// Peers that were restored.
        gauge skep_restore_peers = |from| snapshots(from, |figures| &figures.restored_peers);
        /// Peers that were too old to be restored.
        gauge skep_restore_expired_peers = |from| snapshots(from, |figures| &figures.expired_peers);
        /// Peers that were not restored because memory was short, or their torrent had all the
        /// peers it may have.
        gauge skep_restore_refused_peers = |from| snapshots(from, |figures| &figures.refused_peers);
        /// Files that were damaged or not a snapshot of this tracker, and were renamed.
        counter skep_restore_set_aside_total = |from| snapshots(from, |figures| &figures.set_aside);
        /// Log lines lost because standard error was not read; up to 8192 lines wait.
        counter skep_log_lines_lost_total = |_| log::lost();
        /// Always 1. The label is the version.
        gauge skep_build_info{version} = |_, to| to.put([env!("CARGO_PKG_VERSION")], 1_u64);
    }
}

/// Whether there is a metric of this name with these labels, possibly among others.
pub(super) fn has<'a>(name: &str, mut labels: impl Iterator<Item = &'a str>) -> bool {
    let series = SERIES.iter().find(|series| series.name == name);
    series.is_some_and(|series| labels.all(|label| series.labels.contains(&label)))
}

/// Milliseconds in seconds.
fn of_ms(ms: u64) -> f64 {
    seconds(ms.saturating_mul(1_000_000))
}

/// A number of the cluster; nothing while this node is alone.
fn of_cluster(
    from: &MetricInputs,
    to: &mut SeriesWriter<'_>,
    number: impl Fn(&ClusterView) -> u64,
) {
    if let Some(view) = &from.cluster {
        to.put([view.cluster.clone()], number(view));
    }
}

/// As [`of_cluster`], with another label.
fn of_cluster_by(
    from: &MetricInputs,
    to: &mut SeriesWriter<'_>,
    label: &'static str,
    number: impl Fn(&ClusterView) -> u64,
) {
    if let Some(view) = &from.cluster {
        to.put([view.cluster.clone(), label.to_owned()], number(view));
    }
}

/// The actions of each transport.
const UDP_ACTIONS: [Action; 3] = [Action::Connect, Action::Announce, Action::Scrape];
const HTTP_ACTIONS: [Action; 3] = [Action::Announce, Action::Scrape, Action::Page];
const WS_ACTIONS: [Action; 3] = [Action::Announce, Action::Scrape, Action::Answer];

/// The refusals over UDP.
const UDP_REFUSALS: [Refusal; 9] = [
    Refusal::LowPort,
    Refusal::TorrentDenied,
    Refusal::NetworkDenied,
    Refusal::ClientDenied,
    Refusal::PortDenied,
    Refusal::Unregistered,
    Refusal::SimilarTorrent,
    Refusal::UnknownPasskey,
    Refusal::PasskeyLimit,
];

fn responses(from: &MetricInputs, to: &mut SeriesWriter<'_>) {
    for family in Family::ALL {
        for action in UDP_ACTIONS {
            let count = from.datagrams(family, |it| it.answered[action as usize].get());
            let by_xdp = from.answered_by_xdp(family).datagrams;
            let count = count + if action == Action::Connect { by_xdp } else { 0 };
            to.put(["udp", family.label(), action.label()], count);
        }
        for (transport, actions) in [(Transport::Http, HTTP_ACTIONS), (Transport::Ws, WS_ACTIONS)] {
            for action in actions {
                let of = |it: &RequestCounters| it.answered[action as usize].get();
                let count = from.requests((transport, family), of);
                to.put([transport.label(), family.label(), action.label()], count);
            }
        }
    }
}

fn refused(from: &MetricInputs, to: &mut SeriesWriter<'_>) {
    for family in Family::ALL {
        for reason in UDP_REFUSALS {
            let count = from.datagrams(family, |it| it.refused[reason as usize].get());
            to.put(["udp", family.label(), reason.label()], count);
        }
        for transport in Transport::ALL {
            for reason in Refusal::ALL {
                let of = |it: &RequestCounters| it.refused[reason as usize].get();
                let count = from.requests((transport, family), of);
                to.put([transport.label(), family.label(), reason.label()], count);
            }
        }
    }
}

/// The sums of the outcomes above as they were just read, so that every scrape adds up although the
/// workers continue to count.
fn requests(_: &MetricInputs, to: &mut SeriesWriter<'_>) {
    for transport in ["udp", "http", "ws"] {
        let ends = match transport {
            "udp" => ["skep_responses_total", "skep_refused_total", "skep_dropped_total"],
            _ => ["skep_responses_total", "skep_refused_total", "skep_rejected_total"],
        };
        for family in Family::ALL.map(Family::label) {
            let labels = [("transport", transport), ("family", family)];
            let sum = ends.map(|name| to.sum(name, &labels)).iter().sum::<u64>();
            to.put([transport, family], sum);
        }
    }
}

/// The histogram's bounds, as powers of two in nanoseconds: 1 us to 134 ms.
const HANDLING_BOUNDS: std::ops::RangeInclusive<usize> = 10..=27;

fn handling(from: &MetricInputs) -> Durations {
    let bucket = |index| from.worker_sum(|worker| worker.handling.bucket(index).get());
    let mut count = (0..*HANDLING_BOUNDS.start()).map(bucket).sum::<u64>();
    let mut below = Vec::new();
    for index in HANDLING_BOUNDS {
        count += bucket(index);
        below.push((seconds(1 << index), count));
    }
    count += (HANDLING_BOUNDS.end() + 1..DurationHistogram::BUCKETS).map(bucket).sum::<u64>();
    let sum_s = seconds(from.worker_sum(|worker| worker.handling.sum_ns.get()));
    Durations { below, count, sum_s }
}

/// A value about snapshots.
fn snapshots(from: &MetricInputs, of: impl Fn(&Figures) -> &AtomicU64) -> u64 {
    of(&from.context.snapshots.figures).load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::super::series::{Reading, SeriesValue};
    use super::*;
    use crate::admin::live::{METRICS, STATUS_METRICS};

    #[test]
    fn every_metric_stands_once_with_a_name_and_help_as_they_should_be() {
        for (at, series) in SERIES.iter().enumerate() {
            let (name, help) = (series.name, series.help());
            assert!(SERIES[..at].iter().all(|other| other.name != name), "{name} twice");
            let is_counter = matches!(series.read, SeriesReader::Counter(_));
            assert_eq!(name.ends_with("_total"), is_counter, "{name}");
            assert!(name.starts_with("skep_"), "{name}");
            assert!(help.ends_with('.') && !help.contains(['|', '\n', '\\']), "{name}: {help}");
        }
        assert!(SERIES.len() > 50);
    }

    #[test]
    fn every_metric_that_the_statistics_page_shows_exists() {
        for (name, labels) in METRICS {
            assert!(has(name, labels.iter().copied()), "{name}{labels:?}");
        }
        for name in STATUS_METRICS {
            assert!(has(name, std::iter::empty()), "{name}");
        }
    }

    #[test]
    fn two_readings_have_the_same_series_in_the_same_order() {
        let mut sources = MetricInputs::of_a_test(30, 2, vec![0, 1]);
        let names = |sources: &MetricInputs| -> Vec<_> {
            let of = |it: &SeriesValue| (it.series.name, it.labels().collect::<Vec<_>>());
            Reading::of(SERIES, sources).values.iter().map(of).collect()
        };
        let first = names(&sources);
        sources.measure(sources.now.plus_s(1));
        sources.tick(sources.now);
        assert_eq!(names(&sources), first);
        let distinct: std::collections::BTreeSet<_> = first.iter().collect();
        assert_eq!(distinct.len(), first.len(), "no series twice");
    }

    #[test]
    fn requests_are_the_sum_of_their_outcomes() {
        let sources = MetricInputs::of_a_test(1, 1, Vec::new());
        sources.workers[0].count(Family::V4, 3, Err(Dropped::TooShort));
        let http = sources.streams[0].requests(Transport::Http, Family::V4);
        http.answered[Action::Page as usize].add(1);
        http.refused[Refusal::Malformed as usize].add(20);
        http.rejected[Rejected::NotFound as usize].add(300);
        http.received.add(7000); // later readings may be higher
        let reading = Reading::of(SERIES, &sources);
        let of = |transport| reading.sum("skep_requests_total", &[("transport", transport)]);
        assert_eq!(["udp", "http", "ws"].map(of), [1, 321, 0]);
    }
}
