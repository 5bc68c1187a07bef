//! SIGHUP: reads the settings again, applies what can change while serving, and says what cannot.
//!
//! Files are read on a thread of their own: lists may be large and disks may hang, while the
//! control thread answers probes and feeds the watchdog.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, info, warn};

use crate::access::disk::Who;
use crate::access::lists::Name;
use crate::config::{Config, Difference, Source};
use crate::frontend::admin::Token;
use crate::server::confine::Confinement;
use crate::server::control::State;
use crate::server::log::{LevelHandle, OPERATOR};
use crate::server::options;
use crate::server::state::{KeyError, Loaded};
use crate::server::tls::Tls;
use crate::server::workers::Shared;

/// What is needed to reload, and what is in force.
pub(super) struct Reloader {
    pub(super) source: Source,
    pub(super) config: Config,
    pub(super) keys: Loaded,
    pub(super) level: LevelHandle,
    pub(super) shared: Shared,
    pub(super) tls: Option<Tls>,
    pub(super) confinement: Confinement,
    /// What the API asks for.
    pub(super) token: Token,
}

/// What a reloader is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// To read everything again.
    Reload,
    /// To read the certificate again if it has changed.
    FollowCertificate,
}

/// A reloader that is either here or on one errand.
pub(super) struct Reloads {
    here: Option<Reloader>,
    away: Option<(Errand, JoinHandle<Reloader>)>,
    state: Arc<State>,
}

impl Reloads {
    /// A reloader that is here.
    pub(super) fn new(reloader: Reloader, state: Arc<State>) -> Self {
        Self { here: Some(reloader), away: None, state }
    }

    /// Whether it is here: one errand ends before the next one begins.
    pub(super) fn are_over(&self) -> bool {
        self.here.is_some()
    }

    /// Sends the reloader, if it is here and there is something to do.
    pub(super) fn begin(&mut self, errand: Errand) {
        let has_work = |it: &mut Reloader| errand == Errand::Reload || it.tls.is_some();
        let Some(mut reloader) = self.here.take_if(has_work) else { return };
        let state = self.state.clone();
        let work = move || {
            match (errand, &mut reloader.tls) {
                (Errand::Reload, _) => reloader.reload(&state),
                (Errand::FollowCertificate, tls) => tls.iter_mut().for_each(Tls::follow),
            }
            reloader
        };
        self.away = Some((errand, spawn_blocking(work)));
    }

    /// Waits for the end of an errand, for ever if there is none; may be given up at any time. Says
    /// which it was.
    pub(super) async fn over(&mut self) -> Errand {
        let Some((errand, work)) = &mut self.away else { return pending().await };
        let errand = *errand;
        let Ok(reloader) = work.await else { return pending().await }; // a panic ends the process
        (self.here, self.away) = (Some(reloader), None);
        errand
    }
}

impl Reloader {
    /// Reloads. What is wrong now leaves everything as it was.
    fn reload(&mut self, state: &State) {
        let new = match self.source.load_again() {
            Ok(new) => new,
            Err(error) => {
                error!(target: OPERATOR, "not reloaded, nothing has changed: {error}");
                return;
            }
        };
        // What takes a restart must not act before: another state directory would bring another
        // key.
        let live_config = self.config.reloaded(&new);
        let keys = match self.keys(&live_config) {
            Ok(keys) => keys,
            Err(error) => {
                error!(target: OPERATOR, "not reloaded, nothing has changed: {error}");
                return;
            }
        };
        let (live, fixed): (Vec<_>, Vec<_>) =
            self.config.differences(&new).into_iter().partition(|it| it.is_live);
        self.shared.tracker.store(Arc::new(options::tracker(&live_config)));
        self.shared.limits.store(Arc::new(options::limits(&live_config)));
        self.shared.http.store(Arc::new(options::http(&live_config)));
        self.shared.ws.store(Arc::new(options::ws(&live_config)));
        self.shared.stream.store(Arc::new(options::stream(&live_config)));
        self.shared.memory.set(options::memory(&live_config));
        self.shared.snapshots.set_interval(live_config.snapshot.interval_s);
        if let Some(tls) = &mut self.tls {
            tls.renew();
        }
        self.level.set(options::log(&new).level);
        let changed = self.renew_keys(keys);
        let lists_changed = self.renew_lists(&live_config);
        let closed_before = self.confinement.closed_to(&self.config);
        self.config = live_config;
        self.token = options::admin_token(&self.config, self.keys.made_up, Some(&self.token));
        state.apply(&self.config, self.token.clone());
        let mut applied: Vec<_> = live.iter().map(told).collect();
        applied.extend(changed.then(|| "the connection-id keys".to_owned()));
        applied.extend(lists_changed.then(|| "access lists".to_owned()));
        match applied.as_slice() {
            [] => info!(target: OPERATOR, "reloaded: nothing has changed"),
            applied => info!(target: OPERATOR, "reloaded: {}", applied.join(", ")),
        }
        if !fixed.is_empty() {
            let fixed: Vec<_> = fixed.iter().map(told).collect();
            warn!(target: OPERATOR, "takes effect with a restart only: {}", fixed.join(", "));
        }
        self.tell_closed(&closed_before);
    }

    /// Says which lists cannot be edited from now on, unless that was so `before`.
    fn tell_closed(&self, before: &[PathBuf]) {
        let mut closed = self.confinement.closed_to(&self.config);
        closed.retain(|it| !before.contains(it));
        for folder in closed {
            let folder = folder.display();
            warn!(
                target: OPERATOR,
                "lists in {folder} are read, but cannot be edited through the API before a \
                 restart: server.confine allows writing only where the settings at the start said"
            );
        }
    }

    /// The keys by these settings. Those in force stay where the user that this process has become
    /// may not read them any more: that is no reason to leave all else as it was.
    fn keys(&self, config: &Config) -> Result<Loaded, KeyError> {
        match options::keys(config) {
            Err(error) if error.is_denied() => {
                warn!(target: OPERATOR, "the connection-id keys stay as they were: {error}");
                Ok(Loaded { warning: None, ..self.keys.clone() })
            }
            loaded => loaded,
        }
    }

    /// Reads the access lists again; says whether any has changed. One that cannot be read stays as
    /// it was, which the office says in the log.
    fn renew_lists(&self, config: &Config) -> bool {
        let office = &self.shared.office;
        office.set_options(&options::access(config));
        let before = office.access().lists();
        let _ = office.reload(Who::Reload);
        let after = office.access().lists();
        Name::ALL.iter().any(|it| !after.get(*it).is_same(before.get(*it)))
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

/// A difference as the log tells it: of a secret, only that there is one.
fn told(it: &Difference) -> String {
    if it.setting == "admin.token" { format!("{} (not shown)", it.setting) } else { it.to_string() }
}
