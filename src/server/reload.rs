//! SIGHUP: reads the settings again, applies what can change while serving, and says what cannot.

use std::sync::Arc;

use tracing::{error, info, warn};

use crate::config::{Config, Source};
use crate::server::log::{LevelHandle, OPERATOR};
use crate::server::options;
use crate::server::state::Loaded;
use crate::server::workers::Shared;

/// Sections and settings that can change while serving.
const LIVE: [&str; 3] = ["tracker.", "log.level", "udp.key_file"];

/// What is needed to reload, and what is in force.
pub(super) struct Reloader {
    pub(super) source: Source,
    pub(super) config: Config,
    pub(super) keys: Loaded,
    pub(super) level: LevelHandle,
    pub(super) shared: Shared,
}

impl Reloader {
    /// Reloads. What is wrong now leaves everything as it was.
    pub(super) fn reload(&mut self) {
        let new = match self.source.load() {
            Ok(new) => new,
            Err(error) => {
                error!(target: OPERATOR, "not reloaded, nothing has changed: {error}");
                return;
            }
        };
        let live_config = self.with_live_settings_of(&new);
        let keys = match options::keys(&live_config) {
            Ok(keys) => keys,
            Err(error) => {
                error!(target: OPERATOR, "not reloaded, nothing has changed: {error}");
                return;
            }
        };
        let (live, fixed): (Vec<_>, Vec<_>) = self
            .config
            .differences(&new)
            .into_iter()
            .partition(|it| LIVE.iter().any(|live| it.setting.starts_with(live)));
        self.shared.tracker.store(Arc::new(options::tracker(&new)));
        self.level.set(options::log(&new).level);
        let changed = self.renew_keys(keys);
        self.config = live_config;
        let mut applied: Vec<_> = live.iter().map(ToString::to_string).collect();
        applied.extend(changed.then(|| "the connection-id keys".to_owned()));
        match applied.as_slice() {
            [] => info!(target: OPERATOR, "reloaded: nothing has changed"),
            applied => info!(target: OPERATOR, "reloaded: {}", applied.join(", ")),
        }
        if !fixed.is_empty() {
            let fixed: Vec<_> = fixed.iter().map(ToString::to_string).collect();
            warn!(target: OPERATOR, "takes effect with a restart only: {}", fixed.join(", "));
        }
    }

    /// The settings in force, with those of `new` that can change while serving. What takes a
    /// restart must not act before: another state directory would bring another key.
    fn with_live_settings_of(&self, new: &Config) -> Config {
        let mut live = self.config.clone();
        live.tracker = new.tracker.clone();
        live.log.level = new.log.level;
        live.udp.key_file.clone_from(&new.udp.key_file);
        live
    }

    /// Puts new keys in force; says whether they are new. Keys that are made up now never replace
    /// others: they would only turn clients away.
    fn renew_keys(&mut self, keys: Loaded) -> bool {
        if let Some(warning) = keys.warning.as_ref().filter(|_| !keys.made_up) {
            warn!(target: OPERATOR, "{warning}");
        }
        let same = (keys.active, keys.staging) == (self.keys.active, self.keys.staging);
        if keys.made_up && !self.keys.made_up {
            let reason = keys.warning.unwrap_or_default();
            warn!(target: OPERATOR, "the connection-id keys stay as they were: {reason}");
            return false;
        }
        if same || keys.made_up {
            return false;
        }
        self.shared.ids.store(Arc::new(options::connection_ids(&self.config, &keys)));
        self.keys = keys;
        true
    }
}
