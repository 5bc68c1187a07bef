//! SIGHUP: reads the settings again, applies those that can change while serving, and logs those
//! that cannot.
//!
//! Files are read on a thread of their own: lists may be large and disks may hang, while the
//! control thread responds to probes and resets the watchdog.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tracing::{error, info, warn};

use crate::access::lists::ListName;
use crate::access_store::Actor;
use crate::config::{Config, ConfigError, Difference, LogFormat, SettingsSource};
use crate::server::confine::Confinement;
use crate::server::context::AppContext;
use crate::server::log::{LevelHandle, OPERATOR};
use crate::server::options;
use crate::server::state_directory::{KeyError, KeyWarning, LoadedKeys};
use crate::server::tls::Tls;

/// What a reload needs, and the settings in force.
pub(crate) struct Reloader {
    pub(crate) source: SettingsSource,
    pub(crate) config: Config,
    pub(crate) keys: LoadedKeys,
    pub(crate) level: LevelHandle,
    pub(crate) context: AppContext,
    pub(crate) tls: Option<Tls>,
    pub(crate) confinement: Confinement,
}

/// What became of the latest reload, for metrics.
#[derive(Debug, Default)]
pub(crate) struct ReloadFigures {
    has_failed: AtomicBool,
    awaiting_restart: AtomicU64,
}

impl ReloadFigures {
    /// Whether the latest reload failed, so that the settings before it are in force.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Number of settings that the latest successful reload read and that need a restart.
    pub(crate) fn awaiting_restart(&self) -> u64 {
        self.awaiting_restart.load(Ordering::Relaxed)
    }

    fn succeeded(&self, awaiting_restart: usize) {
        self.awaiting_restart.store(awaiting_restart as u64, Ordering::Relaxed);
        self.has_failed.store(false, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }
}

/// A job of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReloadJob {
    /// Reads everything again.
    Reload,
    /// Follows what changes by itself: the certificate's file, and the interfaces of this host.
    Follow,
}

/// The thread that reloads. It does one job at a time, and no other can be requested before its
/// end.
pub(crate) struct ReloadQueue {
    jobs: Sender<ReloadJob>,
    finished: UnboundedReceiver<ReloadJob>,
    is_idle: bool,
}

impl ReloadQueue {
    /// Starts the thread.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(mut reloader: Reloader) -> io::Result<Self> {
        let (jobs, asked) = channel();
        let (finish, finished) = unbounded_channel();
        thread::Builder::new().name("reload".into()).spawn(move || {
            for job in asked {
                reloader.run(job);
                if finish.send(job).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, finished, is_idle: true })
    }

    /// Whether no job is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// Starts a job, unless one is under way.
    pub(crate) fn begin(&mut self, job: ReloadJob) {
        if self.is_idle {
            self.is_idle = self.jobs.send(job).is_err();
        }
    }

    /// Waits for the end of a job and returns the job. Never returns if there is none. Nothing is
    /// lost if the wait is cancelled.
    pub(crate) async fn finished(&mut self) -> ReloadJob {
        let Some(job) = self.finished.recv().await else { return pending().await };
        self.is_idle = true;
        job
    }
}

impl Reloader {
    fn run(&mut self, job: ReloadJob) {
        match job {
            ReloadJob::Reload => self.reload(),
            ReloadJob::Follow => self.tls.iter_mut().for_each(Tls::follow),
        }
        self.context.follow_xdp();
    }

    /// Reloads. On an error everything stays as it was.
    fn reload(&mut self) {
        let new = match self.source.load_again() {
            Ok(new) => new,
            Err(ConfigError { faults }) => {
                for error in faults {
                    error!(target: OPERATOR, %error, "not reloaded, all settings unchanged");
                }
                self.context.reloads.failed();
                return;
            }
        };
        // A setting that needs a restart must not apply before: another state directory would mean
        // another key.
        let live_config = self.config.reloaded(&new);
        let keys = match self.keys(&live_config) {
            Ok(keys) => keys,
            Err(error) => {
                error!(target: OPERATOR, %error, "not reloaded, all settings unchanged");
                self.context.reloads.failed();
                return;
            }
        };
        let (live, fixed): (Vec<_>, Vec<_>) =
            self.config.differences(&new).into_iter().partition(|it| it.is_live);
        let keys_changed = self.renew_keys(keys);
        let token = self.context.options.load().token.clone();
        let token = options::admin_token(&live_config, self.keys.made_up, Some(&token));
        self.context.apply(options::live(&live_config, &self.keys, token));
        // At once, as files may take seconds: workers issue ids under the new keys by now.
        self.context.follow_xdp();
        if let Some(tls) = &mut self.tls {
            tls.renew();
        }
        self.level.set(options::log(&new).level);
        let lists_changed = self.renew_lists(&live_config);
        let closed_before = self.confinement.closed_to(&self.config);
        self.config = live_config;
        let mut applied: Vec<_> = live.iter().map(changed_setting).collect();
        applied.extend(keys_changed.then(|| "the connection-id keys".to_owned()));
        applied.extend(lists_changed.then(|| "access lists".to_owned()));
        let fixed: Vec<_> = fixed.iter().map(changed_setting).collect();
        self.context.reloads.succeeded(fixed.len());
        let failing = self.context.access_manager.failing_lists();
        if !applied.is_empty() || !fixed.is_empty() || failing.is_empty() {
            log_changes(&applied, &fixed, self.config.log.format == LogFormat::Json);
        }
        self.log_closed_lists(&closed_before);
        if !failing.is_empty() {
            // The last line, because whoever reloads looks there.
            let lists = failing.into_iter().map(ListName::label).collect::<Vec<_>>().join(", ");
            warn!(target: OPERATOR, lists, "access lists not reloaded, the previous ones stay");
        }
    }

    /// Logs the lists that cannot be edited from now on, unless that was so `before`.
    fn log_closed_lists(&self, before: &[PathBuf]) {
        let mut closed = self.confinement.closed_to(&self.config);
        closed.retain(|it| !before.contains(it));
        for folder in closed {
            let remedy = "restart skep: server.confine allows writing only in the folders that \
                          were configured at start";
            let path = folder.display();
            warn!(target: OPERATOR, %path, remedy, "lists cannot be edited through the API");
        }
    }

    /// The keys for these settings. If the user that this process has changed to may not read them
    /// any more, the keys in force stay, and the rest of the reload is still applied.
    fn keys(&self, config: &Config) -> Result<LoadedKeys, KeyError> {
        match options::keys(config, self.context.cluster.options()) {
            Err(error) if error.is_denied() => {
                warn!(target: OPERATOR, %error, "connection-id keys not reloaded");
                Ok(LoadedKeys { warning: None, ..self.keys.clone() })
            }
            loaded => loaded,
        }
    }

    /// Reads the access lists again; true if any has changed. A list that cannot be read stays as
    /// it was, which the access manager logs.
    fn renew_lists(&self, config: &Config) -> bool {
        let access_manager = &self.context.access_manager;
        access_manager.set_options(&options::access(config));
        let before = access_manager.access().lists();
        let _ = access_manager.reload(Actor::Reload);
        let after = access_manager.access().lists();
        ListName::ALL.iter().any(|it| !after.get(*it).is_same(before.get(*it)))
    }

    /// Takes new keys; true if they differ from those in force. Keys that were only made up for
    /// this process never replace others: all connection ids would become invalid.
    fn renew_keys(&mut self, keys: LoadedKeys) -> bool {
        keys.warning.iter().filter(|_| !keys.made_up).for_each(KeyWarning::log);
        let same = (keys.active, keys.staging) == (self.keys.active, self.keys.staging);
        if keys.made_up && !self.keys.made_up {
            if let Some(warning @ KeyWarning::NoDirectory(error)) = &keys.warning {
                let remedy = warning.remedy();
                warn!(target: OPERATOR, %error, remedy, "connection-id keys not reloaded");
            }
            return false;
        }
        if same || keys.made_up {
            return false;
        }
        self.keys = keys;
        true
    }
}

/// Logs which settings are in force from now on, and which need a restart: for programs in a field.
fn log_changes(applied: &[String], fixed: &[String], is_json: bool) {
    let [applied, fixed] = [applied, fixed].map(|settings| settings.join(", "));
    match (applied.as_str(), is_json) {
        ("", _) if fixed.is_empty() => info!(target: OPERATOR, "reloaded: nothing has changed"),
        ("", _) => {}
        (settings, true) => info!(target: OPERATOR, settings, "reloaded"),
        (settings, false) => info!(target: OPERATOR, "reloaded: {settings}"),
    }
    match (fixed.as_str(), is_json) {
        ("", _) => {}
        (settings, true) => {
            warn!(target: OPERATOR, settings, "not reloaded, needs a restart");
        }
        (settings, false) => {
            warn!(target: OPERATOR, "not reloaded, needs a restart: {settings}");
        }
    }
}

/// A difference as it is logged. The values of a secret are left out.
fn changed_setting(difference: &Difference) -> String {
    if difference.setting == "admin.token" {
        format!("{} (not shown)", difference.setting)
    } else {
        difference.to_string()
    }
}
