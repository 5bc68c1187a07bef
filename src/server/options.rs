//! The one place that turns settings into the options of each module.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::level_filters::LevelFilter;

use crate::access::mode::Mode;
use crate::access_store as access;
use crate::admin::Token;
use crate::config::{
    AccessMode, Bytes, Config, ConnectionIdMac, LogFormat, LogLevel, MemoryCap, SnapshotMode,
    SourceHeader,
};
use crate::frontend::connection_id::{Algorithm, ConnectionIds, KeyPair};
use crate::frontend::origin::HopField;
use crate::frontend::{http, ws};
use crate::limiter;
use crate::server::StartError;
use crate::server::live_options::LiveOptions;
use crate::server::memory;
use crate::server::snapshots::Snapshots;
use crate::server::sockets::handover;
use crate::server::state_directory::{self, Environment, KeyError, LoadedKeys};
use crate::server::tls;
use crate::server::{confine, log};
use crate::store;
use crate::sys::identity::UnixUser;
use crate::sys::memory::usable_bytes;
use crate::tracker;
use crate::worker::stream;

/// Everything that a reload can change, at a start as at a reload: with the keys and the token that
/// are in force from then on.
pub(super) fn live(config: &Config, keys: &LoadedKeys, token: Token) -> LiveOptions {
    LiveOptions {
        tracker: Arc::new(tracker(config)),
        connection_ids: Arc::new(connection_ids(config, keys)),
        limits: Arc::new(limits(config)),
        http: Arc::new(http(config)),
        websocket: Arc::new(ws(config)),
        streams: Arc::new(stream(config)),
        memory: memory(config),
        snapshot_interval_s: config.snapshot.interval_s,
        drain_s: config.server.drain_s,
        token,
    }
}

/// The tracker's options.
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

/// Access control's options for a look at the lists that settings name, and nothing else.
pub(super) fn lists(config: &Config) -> access::Options {
    let mut open = config.clone();
    open.access.mode = AccessMode::Open;
    access(&open)
}

/// Access control's options. Where torrents are registered, makes the state directory.
pub(super) fn access(config: &Config) -> access::Options {
    let section = &config.access;
    let mode = match section.mode {
        AccessMode::Open => Mode::Open,
        AccessMode::Registered => Mode::Registered,
        AccessMode::Private => Mode::Private,
    };
    // In the order of `Name::ALL`, as the compiler cannot see.
    let files = section.files().map(|it| it.map(Path::to_owned));
    let state = state_directory::home(&state_options(config), mode.needs_registration());
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
    }
}

/// Where the certificate is, if TLS is served.
pub(super) fn tls(config: &Config) -> Option<tls::Files> {
    let section = &config.tls;
    let path = |text: &str| PathBuf::from(text);
    (!section.listen.is_empty())
        .then(|| tls::Files { certificate: path(&section.certificate), key: path(&section.key) })
}

/// Bytes that the whole process is to keep to; 0: no cap.
fn memory_cap(config: &Config) -> u64 {
    match config.memory.max_memory {
        MemoryCap::Bytes(Bytes(bytes)) => bytes,
        MemoryCap::Auto => usable_bytes().map(|bytes| bytes / 4 * 3).unwrap_or_else(|error| {
            tracing::warn!(%error, "no cap on memory: memory.max_memory = \"auto\" failed");
            0
        }),
    }
}

/// What connections may hold, in bytes.
fn connection_bytes(config: &Config) -> u64 {
    memory::Division::of(memory_cap(config)).map_or(CONNECTION_BYTES_UNCAPPED, |it| it.connections)
}

/// What connections may hold where the process has no cap: a quarter of a million idle ones do.
/// Without a bound, strangers could fill the host with unfinished messages.
const CONNECTION_BYTES_UNCAPPED: u64 = 1 << 30;

/// What the process and its largest torrent are to keep to.
fn memory(config: &Config) -> memory::Options {
    let peers_per_torrent_max = config.memory.max_peers_per_torrent;
    memory::Options { cap: memory_cap(config), peers_per_torrent_max }
}

/// The store's options. A table that doubles is there twice for a moment: the more shards, the less
/// that is; but each shard holds back a little, and has pages that are not full.
pub(super) fn store(config: &Config) -> store::Options {
    let few = (1..MANY_SHARDS_FROM).contains(&memory_cap(config));
    let shards = if few { SHARDS_MIN } else { store::Options::default().shards };
    store::Options { shards, ..store::Options::default() }
}

/// The cap from which on the store has all its shards.
const MANY_SHARDS_FROM: u64 = 256 << 20;

/// Shards of a small store.
const SHARDS_MIN: usize = 256;

/// How to log.
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

/// The connection-id keys at a start: a file that the settings name is the operator's, and read as
/// who starts this process; one in the state directory is the user's to become.
pub(super) fn keys_as(user: Option<&UnixUser>, config: &Config) -> Result<LoadedKeys, StartError> {
    let user = user.filter(|_| config.udp.key_file.is_empty());
    let _acting = confine::act_as(user)?;
    Ok(keys(config)?)
}

/// The connection-id keys: read, or created.
pub(super) fn keys(config: &Config) -> Result<LoadedKeys, KeyError> {
    state_directory::connection_id_keys(&state_options(config))
}

/// Where snapshots are kept, if they are; makes the state directory. What goes wrong ends the start
/// only if the settings ask for snapshots by name; else there is one warning, unless the operator
/// `was_warned` of the state directory before.
pub(super) fn snapshots(config: &Config, was_warned: &mut bool) -> Result<Snapshots, StartError> {
    let section = &config.snapshot;
    let kept = match section.mode {
        SnapshotMode::Off => return Ok(Snapshots::off()),
        SnapshotMode::Auto | SnapshotMode::On => {
            state_directory::tracker_id(&state_options(config))
        }
    };
    match kept.and_then(|(directory, tracker)| Snapshots::kept_in(directory, tracker)) {
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
            Ok(Snapshots::off())
        }
    }
}

/// Where state may live.
fn state_options(config: &Config) -> state_directory::Options {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    state_directory::Options {
        directory: path(&config.server.state_dir),
        key_file: path(&config.udp.key_file),
        environment: Environment::of_process(),
    }
}

/// The state directory, which may not be there yet, or why there is none.
pub(super) fn state_home(config: &Config) -> Result<PathBuf, String> {
    state_directory::home(&state_options(config), false)
}

/// Where this tracker can be taken over, or why it cannot.
pub(super) fn handover_path(config: &Config) -> Result<PathBuf, String> {
    handover::path(&config.server.handover_socket, state_home(config))
}

/// What the API asks for. Where the settings name no token, the one in the state directory, which
/// is made when absent. One that is `in_force` stays so where it cannot be read any more. Where
/// there is none, a warning says why, unless the operator `was_warned` of the state directory
/// before.
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

/// Connection ids under these keys.
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
