//! The one place that turns settings into the options of each module.

use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use crate::config::{Config, ConnectionIdMac, LogFormat, LogLevel};
use crate::frontend::connection_id::{Algorithm, ConnectionIds, Keys};
use crate::server::log;
use crate::server::state::{self, Environment, KeyError, Loaded};
use crate::tracker;

/// The tracker's options.
pub(super) fn tracker(config: &Config) -> tracker::Options {
    let it = &config.tracker;
    tracker::Options {
        interval_s: it.interval_s,
        interval_jitter_s: it.interval_jitter_s,
        numwant_default: it.numwant_default,
        numwant_max: it.numwant_max,
        peer_age_s_max: it.peer_age_s_max,
        empty_torrent_age_s_max: it.empty_torrent_age_s_max,
    }
}

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

/// The connection-id keys: read, or created.
pub(super) fn keys(config: &Config) -> Result<Loaded, KeyError> {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    state::connection_id_keys(&state::Options {
        directory: path(&config.server.state_dir),
        key_file: path(&config.udp.key_file),
        environment: Environment::of_process(),
    })
}

/// Connection ids under these keys.
pub(super) fn connection_ids(config: &Config, keys: &Loaded) -> ConnectionIds {
    let algorithm = match config.udp.connection_id {
        ConnectionIdMac::Siphash => Algorithm::SipHash,
        ConnectionIdMac::HmacSha256 => Algorithm::HmacSha256,
    };
    ConnectionIds::new(&Keys { active: keys.active, staging: keys.staging, algorithm })
}
