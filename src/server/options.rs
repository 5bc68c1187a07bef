//! Turns settings into the options of each module. No other code does that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tracing::level_filters::LevelFilter;

use crate::access::mode::Mode;
use crate::access_store as access;
use crate::admin::Token;
use crate::cluster::Fingerprint;
use crate::config::{
    AccessMode, Bytes, Config, ConnectionIdMac, LogFormat, LogLevel, MemoryCap, SnapshotMode,
    SourceHeader, XdpMode, XdpNeighbours,
};
use crate::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use crate::frontend::origin::HopField;
use crate::frontend::{http, ws};
use crate::limiter;
use crate::server::StartError;
use crate::server::cluster::ClusterOptions;
use crate::server::history::HistoryFile;
use crate::server::live_options::LiveOptions;
use crate::server::memory;
use crate::server::snapshots::Snapshots;
use crate::server::sockets::handover;
use crate::server::state_directory::{
    self, Environment, KeyError, LoadedKeys, StateDirectoryError,
};
use crate::server::xdp::XdpOptions;
use crate::server::{certificate, confine, log};
use crate::store;
use crate::sys::identity::UnixUser;
use crate::sys::memory::usable_bytes;
use crate::sys::xdp::kernel::AttachMode;
use crate::sys::xdp::offload::OffloadKeys;
use crate::tracker;
use crate::worker::request_log::RequestLog;
use crate::worker::stream;

/// Every option that a reload can change, for a start and for a reload, with the keys and the token
/// in force from then on.
pub(super) fn live(config: &Config, keys: &LoadedKeys, token: Token) -> LiveOptions {
    let request_log = request_log(config);
    LiveOptions {
        tracker: Arc::new(tracker(config)),
        connection_ids: Arc::new(connection_ids(config, keys)),
        limits: Arc::new(limits(config)),
        http: Arc::new(http(config)),
        websocket: Arc::new(ws(config)),
        streams: Arc::new(stream::Options { request_log: request_log.clone(), ..stream(config) }),
        request_log,
        memory: memory(config),
        snapshot_interval_s: config.snapshot.interval_s,
        drain_s: config.server.drain_s,
        token,
        xdp: Arc::new(xdp(config, keys)),
    }
}

/// What the XDP program follows.
fn xdp(config: &Config, keys: &LoadedKeys) -> XdpOptions {
    let (udp, limits) = (&config.udp, &config.limits);
    // SipHash uses the first half of a key.
    let half = |key: [u8; KEY_BYTES]| *key.first_chunk().unwrap_or(&[0; 16]);
    XdpOptions {
        xdp: udp.xdp,
        interfaces: udp.xdp_interfaces.0.clone(),
        mode: match udp.xdp_mode {
            XdpMode::Auto => None,
            XdpMode::Native => Some(AttachMode::Native),
            XdpMode::Generic => Some(AttachMode::Generic),
        },
        asks_routes: udp.xdp_neighbours == XdpNeighbours::Fib,
        keys: OffloadKeys { active: half(keys.active), staging: keys.staging.map(half) },
        limit: (limits.enabled && !limits.dry_run)
            .then_some((limits.unverified_rate, limits.unverified_burst)),
        exempt: limits.exempt.0.clone(),
    }
}

fn tracker(config: &Config) -> tracker::Options {
    let section = &config.tracker;
    tracker::Options {
        interval_s: section.interval_s,
        interval_s_max: match section.interval_s_max {
            0 => {
                let room_s = section.peer_age_s_max.saturating_sub(section.interval_jitter_s + 1);
                room_s.min(section.interval_s.saturating_mul(2))
            }
            longest_s => longest_s,
        },
        interval_by_swarm: section.interval_by_swarm,
        interval_jitter_s: section.interval_jitter_s,
        min_interval_s: section.min_interval_s,
        numwant_default: section.numwant_default,
        numwant_max: section.numwant_max,
        peer_age_s_max: section.peer_age_s_max,
        empty_torrent_age_s_max: section.empty_torrent_age_s_max,
        ip_override_from: section.ip_override_from.0.clone(),
    }
}

/// The limits of sources.
fn limits(config: &Config) -> limiter::Options {
    let section = &config.limits;
    limiter::Options {
        enabled: section.enabled,
        dry_run: section.dry_run,
        rate: section.rate,
        burst: section.burst,
        unverified_rate: section.unverified_rate,
        unverified_burst: section.unverified_burst,
        new_torrent_rate: section.new_torrent_rate,
        new_torrent_burst: section.new_torrent_burst,
        kernel_deny_rate: section.kernel_deny_rate,
        exempt: section.exempt.0.clone(),
    }
}

/// Access control's options to check the lists that settings name, and nothing else.
pub(super) fn lists(config: &Config) -> access::Options {
    let mut open = config.clone();
    open.access.mode = AccessMode::Open;
    access(&open)
}

/// Access control's options. Creates the state directory if torrents have to be registered.
pub(super) fn access(config: &Config) -> access::Options {
    let section = &config.access;
    let mode = match section.mode {
        AccessMode::Open => Mode::Open,
        AccessMode::Registered => Mode::Registered,
        AccessMode::Private => Mode::Private,
    };
    // In the order of `ListName::ALL`, which the compiler cannot check.
    let files = section.files().map(|it| it.map(Path::to_owned));
    let state = state_directory::home(&state_options(config), mode.needs_registration());
    let state = state.map_err(|error| error.to_string());
    access::Options { mode, similar_digits_max: section.similar_digits_max, files, state }
}

/// The HTTP front end's options.
fn http(config: &Config) -> http::Options {
    let section = &config.http;
    http::Options {
        trusted_proxies: section.trusted_proxies.0.clone(),
        source_header: match section.source_header {
            SourceHeader::Any => None,
            SourceHeader::Forwarded => Some(HopField::Forwarded),
            SourceHeader::XForwardedFor => Some(HopField::XForwardedFor),
            SourceHeader::XRealIp => Some(HopField::XRealIp),
        },
        full_scrape: section.full_scrape,
        full_scrape_interval_s: section.full_scrape_interval_s,
        public_stats: section.public_stats,
        public_name: section.public_name.clone(),
        without_announces: !section.enabled,
        without_websockets: !config.websocket.enabled,
        warning: section.warning.clone(),
        tracker_id: section.tracker_id.clone(),
    }
}

/// The WebTorrent front end's options.
fn ws(config: &Config) -> ws::Options {
    let websocket = &config.websocket;
    ws::Options {
        interval_s: websocket.interval_s,
        offers_max: websocket.offers_max,
        offers_per_minute_max: websocket.offers_per_minute_max,
        torrents_max: websocket.torrents_max,
    }
}

/// The stream workers' options.
fn stream(config: &Config) -> stream::Options {
    let http = &config.http;
    stream::Options {
        head_timeout_s: http.head_timeout_s,
        idle_timeout_s: http.idle_timeout_s,
        ping_interval_s: config.websocket.ping_interval_s,
        connections_per_source_max: http.connections_per_source_max,
        memory_max_bytes: connection_bytes(config),
        exempt: config.limits.exempt.0.clone(),
        trusted_proxies: http.trusted_proxies.0.clone(),
        request_log: None,
    }
}

/// The log of requests that are not served: at level debug and below.
fn request_log(config: &Config) -> Option<Arc<RequestLog>> {
    let is_on = log(config).level >= LevelFilter::DEBUG;
    is_on.then(|| Arc::new(RequestLog::new(config.log.addresses)))
}

/// The files of the certificate, if TLS is served.
pub(super) fn tls(config: &Config) -> Option<certificate::Files> {
    let section = &config.tls;
    let path = |text: &str| PathBuf::from(text);
    (!config.tls_listen().is_empty()).then(|| certificate::Files {
        certificate: path(&section.certificate),
        key: path(&section.key),
    })
}

/// Most resident bytes of the process; 0: no cap.
fn memory_cap(config: &Config) -> u64 {
    match config.memory.max_memory {
        MemoryCap::Bytes(Bytes(bytes)) => bytes,
        MemoryCap::Auto => usable_bytes().map(|bytes| bytes / 4 * 3).unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                remedy = "set memory.max_memory to a size",
                "memory not capped: the available memory cannot be determined"
            );
            0
        }),
    }
}

/// Most bytes of connections.
fn connection_bytes(config: &Config) -> u64 {
    memory::Division::of(memory_cap(config)).map_or(CONNECTION_BYTES_UNCAPPED, |it| it.connections)
}

/// Most bytes of connections if the process has no cap: enough for a quarter of a million idle
/// ones. Without a bound, clients could fill the host's memory with unfinished messages.
const CONNECTION_BYTES_UNCAPPED: u64 = 1 << 30;

/// The cap on memory, and the bound on the largest torrent.
fn memory(config: &Config) -> memory::Options {
    let peers_per_torrent_max = config.memory.max_peers_per_torrent;
    memory::Options { cap: memory_cap(config), peers_per_torrent_max }
}

/// The store's options. A table that doubles exists twice for a moment: with more shards, that is
/// less memory; but each shard reserves a little, and has pages that are not full.
pub(super) fn store(config: &Config) -> store::Options {
    let few = (1..MANY_SHARDS_FROM).contains(&memory_cap(config));
    let shards = if few { SHARDS_MIN } else { store::Options::default().shards };
    store::Options { shards, ..store::Options::default() }
}

/// Least cap, in bytes, for which the store has all its shards.
const MANY_SHARDS_FROM: u64 = 256 << 20;

/// Shards of a small store.
const SHARDS_MIN: usize = 256;

/// The options of the log.
pub(super) fn log(config: &Config) -> log::Options {
    let level = match config.log.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    log::Options { level, json: config.log.format == LogFormat::Json }
}

/// The connection-id keys at a start. A file that the settings name belongs to the operator, and is
/// read as the user who starts this process. A file in the state directory belongs to the user to
/// change to.
pub(super) fn keys_as(
    user: Option<&UnixUser>,
    config: &Config,
    cluster: Option<&ClusterOptions>,
) -> Result<LoadedKeys, StartError> {
    let user = user.filter(|_| config.udp.key_file.is_empty());
    let _acting = confine::act_as(user)?;
    Ok(keys(config, cluster)?)
}

/// The connection-id keys, read or created. In a cluster they come from its secret if nothing names
/// them.
pub(super) fn keys(
    config: &Config,
    cluster: Option<&ClusterOptions>,
) -> Result<LoadedKeys, KeyError> {
    let options = state_options(config);
    match cluster.filter(|_| options.key_file.is_none() && options.environment.key.is_none()) {
        Some(cluster) => Ok(LoadedKeys::of_cluster(cluster.connection_id_key())),
        None => state_directory::connection_id_keys(&options),
    }
}

/// What the nodes of a cluster must have in common.
pub(super) fn fingerprint(config: &Config, keys: &LoadedKeys) -> Fingerprint {
    let digest = Sha256::new().chain_update(b"skep fingerprint 1").chain_update(keys.active);
    let digest = digest.finalize();
    Fingerprint {
        connection_id_key: digest[..8].iter().map(|it| format!("{it:02x}")).collect(),
        connection_id_mac: match config.udp.connection_id {
            ConnectionIdMac::Siphash => "siphash".into(),
            ConnectionIdMac::HmacSha256 => "hmac-sha256".into(),
        },
        interval_s: config.tracker.interval_s,
        peer_age_s_max: config.tracker.peer_age_s_max,
    }
}

/// Options of snapshots; creates the state directory. An error ends the start only if the settings
/// require snapshots. Otherwise one warning is logged, unless the operator `was_warned` about the
/// state directory before.
pub(super) fn snapshots(config: &Config, was_warned: &mut bool) -> Result<Snapshots, StartError> {
    let section = &config.snapshot;
    let kept = match section.mode {
        SnapshotMode::Off => return Ok(Snapshots::off()),
        SnapshotMode::Auto | SnapshotMode::On => {
            state_directory::tracker_id(&state_options(config))
        }
    };
    let is_named = !matches!(kept, Err(StateDirectoryError::NotNamed));
    let kept = kept.map_err(|error| error.to_string()).and_then(|(directory, tracker)| {
        Snapshots::kept_in(directory, tracker).map_err(|error| error.to_string())
    });
    match kept {
        Ok(snapshots) => Ok(snapshots),
        Err(reason) if section.mode == SnapshotMode::On => Err(StartError::Failed(format!(
            "snapshot.mode is \"on\", and snapshots cannot be kept: {reason}; remedy: set \
             server.state_dir to a directory that this user may write, or snapshot.mode to \"auto\""
        ))),
        Err(reason) => {
            if !std::mem::replace(was_warned, true) {
                tracing::warn!(
                    error = %reason,
                    remedy = "set server.state_dir to a directory that this user may write, or \
                              snapshot.mode = \"off\"",
                    "snapshots disabled, swarms are empty after a restart"
                );
            }
            // That no directory is named is a choice, as `snapshot.mode = "off"` is.
            Ok(if is_named { Snapshots::unusable() } else { Snapshots::off() })
        }
    }
}

/// Where the state directory may be.
fn state_options(config: &Config) -> state_directory::Options {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    state_directory::Options {
        directory: path(&config.server.state_dir),
        key_file: path(&config.udp.key_file),
        environment: Environment::of_process(),
    }
}

/// Where the statistics page's history is kept: nowhere if the operator `was_warned` that the state
/// directory is of no use.
pub(super) fn history(config: &Config, was_warned: bool) -> HistoryFile {
    let directory = if was_warned { None } else { state_home(config).ok() };
    HistoryFile::kept_in(directory)
}

/// The state directory, which may not exist yet, or why there is none.
pub(super) fn state_home(config: &Config) -> Result<PathBuf, StateDirectoryError> {
    state_directory::home(&state_options(config), false)
}

/// The path of the state directory, which may not exist or not be usable; `None` if there is none.
pub(super) fn state_path(config: &Config) -> Option<PathBuf> {
    state_directory::path(&state_options(config))
}

/// The path of the hand-over socket, or why there is none.
pub(super) fn handover_path(config: &Config) -> Result<PathBuf, StateDirectoryError> {
    match config.server.handover_socket.as_str() {
        "" => Ok(state_home(config)?.join(handover::SOCKET_NAME)),
        configured => Ok(configured.into()),
    }
}

/// The token of the API. If the settings have none, it is the one in the state directory, which is
/// created if absent. A token `in_force` stays if it cannot be read any more. If there is none, a
/// warning has the reason, unless the operator `was_warned` about the state directory before.
pub(super) fn admin_token(config: &Config, was_warned: bool, in_force: Option<&Token>) -> Token {
    if !config.admin.token.is_empty() {
        return Token::Configured(config.admin.token.as_str().into());
    }
    match state_directory::admin_token(&state_options(config)) {
        Ok(token) => Token::Kept(token.into()),
        Err(reason) => {
            let kept = in_force.filter(|it| !reason.is_refused && matches!(it, Token::Kept(_)));
            if let Some(kept) = kept {
                tracing::warn!(target: log::OPERATOR, error = %reason, "API token not reloaded");
                return kept.clone();
            }
            if !was_warned {
                tracing::warn!(
                    error = %reason,
                    remedy = "set admin.token, or server.state_dir to a directory that this user \
                              may write",
                    "API token not available, the API is read-only"
                );
            }
            Token::Absent
        }
    }
}

/// Connection ids with these keys.
fn connection_ids(config: &Config, keys: &LoadedKeys) -> ConnectionIds {
    let algorithm = match config.udp.connection_id {
        ConnectionIdMac::Siphash => Algorithm::SipHash,
        ConnectionIdMac::HmacSha256 => Algorithm::HmacSha256,
    };
    ConnectionIds::new(&KeyPair { active: keys.active, staging: keys.staging, algorithm })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::lists::ListName;

    #[test]
    fn every_list_is_kept_in_the_file_that_its_setting_names() {
        let mut config = Config::default();
        let section = &mut config.access;
        let settings = [
            (ListName::TorrentsAllow, &mut section.torrents_allow),
            (ListName::TorrentsDeny, &mut section.torrents_deny),
            (ListName::NetworksAllow, &mut section.networks_allow),
            (ListName::NetworksDeny, &mut section.networks_deny),
            (ListName::ClientsAllow, &mut section.clients_allow),
            (ListName::ClientsDeny, &mut section.clients_deny),
            (ListName::PortsDeny, &mut section.ports_deny),
        ];
        settings.into_iter().for_each(|(name, file)| *file = name.label().to_owned());
        let files = access(&config).files;
        for name in ListName::ALL {
            assert_eq!(files[name as usize].as_deref(), Some(Path::new(name.label())));
        }
    }

    fn cap_of(max_memory: MemoryCap) -> u64 {
        let mut config = Config::default();
        config.memory.max_memory = max_memory;
        memory(&config).cap
    }

    #[test]
    fn the_cap_is_what_is_set_or_three_quarters_of_what_may_be_used() {
        assert_eq!(cap_of(MemoryCap::Bytes(Bytes(0))), 0);
        assert_eq!(cap_of(MemoryCap::Bytes(Bytes(1 << 30))), 1 << 30);
        assert_eq!(cap_of(MemoryCap::Auto), usable_bytes().unwrap() / 4 * 3);
    }

    #[test]
    fn a_small_store_has_fewer_shards() {
        let shards = |max_memory| {
            let mut config = Config::default();
            config.memory.max_memory = MemoryCap::Bytes(Bytes(max_memory));
            store(&config).shards
        };
        assert_eq!([0, 64 << 20, 1 << 30].map(shards), [1024, SHARDS_MIN, 1024]);
    }
}
