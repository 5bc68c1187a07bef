//! Judges all that a start depends on, without binding or creating anything: the settings, and then
//! what they name: lists, certificate, keys, user, sockets and state directory. `skep check` prints
//! it, and `skep doctor` begins with it. A start logs its warnings; one that fails prints its
//! faults, so that all of them are known after one run.

mod state_files;

use std::path::Path;

use crate::access_store::AccessManager;
use crate::config::{
    AccessMode, ConfigError, ConfigFinding, ConfigPlace, ConfigReport, ConfigTopic, SettingsSource,
    SnapshotMode,
};
use crate::server::cluster::ClusterOptions;
use crate::server::sockets::listeners;
use crate::server::state_directory;
use crate::server::{StartError, Validity, confine, options};
use crate::sys::clock::Clock;
use crate::sys::identity::{self, UnixUser};

/// What a start would find.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The settings, with everything that is wrong with them, or with what they name.
    pub configuration: ConfigReport,
    /// When the certificate that would be served is valid; `None` if TLS is not served, or with a
    /// certificate that cannot be.
    pub certificate: Option<Validity>,
}

/// Reads the settings and judges everything.
pub(super) fn check(source: &SettingsSource) -> CheckReport {
    let mut configuration = source.judge();
    let certificate = judge_what_is_named(&mut configuration);
    CheckReport { configuration, certificate }
}

/// The warnings of [`check`], for a start: of the settings, and of what they name. What has faults
/// alone is left out, because a start reads it itself: keys, lists, state directory, database.
pub(super) fn warnings(report: &ConfigReport) -> Vec<ConfigFinding> {
    let mut report = report.clone();
    let user = user(&mut report);
    certificate(&mut report, user.as_ref());
    unix_sockets(&mut report, user.as_ref());
    ClusterOptions::warnings(&report.config).into_iter().for_each(|it| report.add(it));
    report.findings.retain(|it| !it.is_fault());
    report.findings
}

/// The error of a start that failed, or, if the settings and what they name have faults, all of
/// those. The exit code stays the same, except that a fault of the state directory counts as
/// configuration: another start does not correct it either.
pub(super) fn with_all_faults(error: StartError, mut report: ConfigReport) -> StartError {
    judge_what_is_named(&mut report);
    match (error, report.into_config()) {
        (error, Ok(_)) => error,
        (StartError::Config(_), Err(faults)) => StartError::Config(faults),
        (_, Err(error))
            if error.faults.iter().any(|it| it.topic == ConfigTopic::StateDirectory) =>
        {
            StartError::Config(error)
        }
        (StartError::Failed(_) | StartError::Host(_), Err(faults)) => StartError::Host(faults),
    }
}

/// Judges what the settings name. A setting that has a fault already is left out. Returns when the
/// certificate is valid.
fn judge_what_is_named(report: &mut ConfigReport) -> Option<Validity> {
    let user = user(report);
    key(report);
    cluster(report);
    {
        // Lists and the state directory are accessed as the user to change to.
        let _acting = confine::act_as(user.as_ref());
        lists(report);
    }
    let validity = certificate(report, user.as_ref());
    unix_sockets(report, user.as_ref());
    state_home(report, user.as_ref());
    validity
}

/// The user to change to. Without the rights of root there is no change, and a missing user is only
/// a warning.
fn user(report: &mut ConfigReport) -> Option<UnixUser> {
    const KEY: &str = "server.user";
    let name = &report.config.server.user;
    if name.is_empty() || report.is_faulty(KEY) {
        return None;
    }
    match UnixUser::find(name) {
        Ok(user) => Some(user).filter(|_| UnixUser::can_change()),
        Err(error) if UnixUser::can_change() => {
            let fault = format!("{error}; remedy: name an existing user, or leave it empty");
            report.add(ConfigFinding::fault(fault).about(KEY));
            None
        }
        Err(error) => {
            let warning = format!(
                "{error}, so skep does not start as root; remedy: name an existing user, or leave \
                 it empty"
            );
            report.add(ConfigFinding::warning(warning).about(KEY));
            None
        }
    }
}

/// The connection-id keys of the environment or of a file that the settings name.
fn key(report: &mut ConfigReport) {
    let in_environment = state_directory::Environment::of_process().key.is_some();
    let is_named = !report.config.udp.key_file.is_empty() && !report.is_faulty("udp.key_file");
    if !in_environment && !is_named {
        return;
    }
    if let Err(error) = options::keys(&report.config, None) {
        let fault = ConfigFinding::fault(error.to_string());
        // The variable overrides the file, and the text names it.
        report.add(if in_environment { fault } else { fault.about("udp.key_file") });
    }
}

/// The files of the cluster. Without a fault in the list of brokers, they are needed.
fn cluster(report: &mut ConfigReport) {
    for finding in ClusterOptions::findings(&report.config) {
        if !finding.key.as_deref().is_some_and(|it| report.is_faulty(it)) {
            report.add(finding);
        }
    }
}

/// The access lists, each with all its bad lines.
fn lists(report: &mut ConfigReport) {
    for (name, error) in AccessManager::check(&options::lists(&report.config)) {
        let finding = ConfigFinding::fault(error.to_string());
        let finding = match error.place() {
            Some((path, line)) => {
                let place = ConfigPlace::File { path, line, column: 0 };
                ConfigFinding { message: error.problem(), value: error.word(), ..finding }.at(place)
            }
            None => finding,
        };
        report.add(finding.about(format!("access.{}", name.label())));
    }
}

/// The certificate and its key, now and at a renewal. Returns when the certificate is valid.
fn certificate(report: &mut ConfigReport, user: Option<&UnixUser>) -> Option<Validity> {
    if report.is_faulty("tls.listen") {
        return None;
    }
    let files = options::tls(&report.config)?;
    let is_usable = |name, path: &Path| !report.is_faulty(name) && !path.as_os_str().is_empty();
    let usable =
        [is_usable("tls.certificate", &files.certificate), is_usable("tls.key", &files.key)];
    if usable != [true; 2] {
        // The other one has a fault already.
        files.faults_of(usable).into_iter().for_each(|it| report.add(it));
        return None;
    }
    let (findings, validity) = match files.read() {
        Err(ConfigError { faults }) => (faults, None),
        Ok(certificate) => {
            let now_s = i64::try_from(Clock::start().now().seconds()).unwrap_or(i64::MAX);
            let validity = certificate.validity;
            (files.warnings(validity, user, now_s), Some(validity))
        }
    };
    findings.into_iter().for_each(|it| report.add(it));
    validity
}

/// The paths of Unix sockets. Without the one for hand-overs skep starts, but cannot be replaced
/// while it serves.
fn unix_sockets(report: &mut ConfigReport, user: Option<&UnixUser>) {
    let http = report.config.unix_socket().to_owned();
    let handover = report.config.server.handover_socket.clone();
    for (key, path) in [("http.unix_socket", http), ("server.handover_socket", handover)] {
        if path.is_empty() || report.is_faulty(key) {
            continue;
        }
        let path = Path::new(&path);
        let checked = listeners::check_unix_path(path).and_then(|()| creatable(path, user));
        if let Err(problem) = checked {
            let finding = match key {
                "http.unix_socket" => ConfigFinding::fault(problem),
                _ => ConfigFinding::warning(problem),
            };
            report.add(finding.about(key));
        }
    }
}

/// Whether a socket can be created at a path. One that is there may be the service manager's, or
/// the running tracker's.
fn creatable(path: &Path, user: Option<&UnixUser>) -> Result<(), String> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    if path.exists() {
        return Ok(());
    }
    usable_by(folder.unwrap_or_else(|| Path::new(".")), user).map_err(|problem| {
        format!(
            "{} cannot be created: {problem}; remedy: choose a path in a folder that skep's user \
             may write",
            path.display()
        )
    })
}

/// The state directory and the files in it. If nothing needs them that a start does not do without,
/// what is wrong with the directory is a warning.
fn state_home(report: &mut ConfigReport, user: Option<&UnixUser>) {
    let config = &report.config;
    let need = if config.access.mode != AccessMode::Open {
        Some(("access.mode", "registered torrents and passkeys are kept there"))
    } else if config.snapshot.mode == SnapshotMode::On {
        Some(("snapshot.mode", "snapshots are kept there"))
    } else {
        None
    };
    let is_configured = !config.server.state_dir.is_empty();
    let key = if is_configured { Some("server.state_dir") } else { need.map(|(key, _)| key) };
    let path = options::state_path(config);
    let problem = match &path {
        Some(path) => usable_by(path, user).err().map(|problem| {
            format!("the state directory {} cannot be written: {problem}", path.display())
        }),
        // Without a need, that none is named is not a mistake.
        None => need.map(|_| state_directory::StateDirectoryError::NotNamed.to_string()),
    };
    let is_usable = problem.is_none();
    if let Some(problem) = problem {
        let remedy = "set server.state_dir to a directory that skep's user may write";
        let finding = match need {
            Some((_, why)) => ConfigFinding::fault(format!("{problem}, and {why}")),
            None => ConfigFinding::warning(format!(
                "{problem}, so swarms and connection ids may not survive a restart"
            )),
        };
        let finding = ConfigFinding { remedy: Some(remedy.into()), ..finding };
        add_about(report, key, finding.on(ConfigTopic::StateDirectory));
    }
    let Some(path) = path else { return };
    state_files::judge(report, &path, user, key);
    if let Some((setting, _)) = need.filter(|_| is_usable)
        && report.config.access.mode != AccessMode::Open
    {
        state_files::database(report, &path, user, key.unwrap_or(setting));
    }
}

/// Adds a finding about a setting, if it concerns one.
fn add_about(report: &mut ConfigReport, key: Option<&str>, finding: ConfigFinding) {
    report.add(match key {
        Some(key) => finding.about(key),
        None => finding,
    });
}

/// Whether this process, or the user that it changes to, can write to a directory or create it.
fn usable_by(path: &Path, user: Option<&UnixUser>) -> Result<(), String> {
    let Some(user) = user else { return state_directory::writable(path) };
    let acting = user.act().map_err(|error| error.to_string())?;
    let writable = state_directory::writable(path);
    drop(acting);
    // The start creates it as root, or changes its owner, where only root can change the path.
    let there = path.ancestors().find(|it| it.exists()).unwrap_or_else(|| Path::new("/"));
    writable.or_else(|problem| identity::roots_own(there).map(drop).map_err(|_| problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn faults(text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("skep.toml");
        fs::write(&path, text).unwrap();
        let source = SettingsSource { file: Some(path), ..SettingsSource::default() };
        let report = check(&source).configuration;
        let faults = report.findings.iter().filter(|it| it.is_fault());
        let prefix = format!("{}/", folder.path().display());
        faults.map(|it| it.to_string().replace(&prefix, "")).collect()
    }

    #[test]
    fn everything_that_is_named_is_judged_in_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("networks");
        fs::write(&list, "10.0.0.0/8\n10.0.0.5/24 why\nnowhere\n").unwrap();
        let list = list.display();
        let found = faults(&format!(
            "[udp]\nkey_file = \"/nope/key\"\n[http]\nunix_socket = \"/nope/socket\"\n\
             [tls]\nlisten = [\"127.0.0.1:0\"]\ncertificate = \"/nope/a.pem\"\nkey = \"/nope/b\"\n\
             [access]\nports_deny = \"/nope/ports\"\nnetworks_deny = \"{list}\"\n\
             [tracker]\ninterval_s = \"30m\"\n"
        ));
        for (place, said) in [
            ("skep.toml:13:14: tracker.interval_s: ", "\"30m\" is not a whole number"),
            ("skep.toml:2:1: udp.key_file: ", "cannot read the connection-id key in /nope/key"),
            ("skep.toml:4:1: http.unix_socket: ", "/nope does not exist"),
            ("skep.toml:7:1: tls.certificate: ", "cannot read /nope/a.pem"),
            ("skep.toml:8:1: tls.key: ", "cannot read /nope/b"),
            ("skep.toml:10:1: access.ports_deny: ", "cannot read the access list /nope/ports"),
            (":2: access.networks_deny: ", "write 10.0.0.0/24 for the whole network"),
            (":3: access.networks_deny: ", "\"nowhere\" is not a network"),
        ] {
            let is_it = |it: &&String| it.contains(place) && it.contains(said);
            assert!(found.iter().any(|it| is_it(&it)), "{place}{said} is not in {found:#?}");
        }
        assert_eq!(found.len(), 8, "{found:#?}");
    }

    #[test]
    fn a_certificate_that_is_absent_is_named_besides_a_key_that_is_not_set() {
        let tls = "[tls]\nlisten = [\"127.0.0.1:0\"]\n";
        for (set, place, unset) in [
            ("certificate", "skep.toml:3:1: tls.certificate: cannot read /nope", "tls.key: "),
            ("key", "skep.toml:3:1: tls.key: cannot read /nope", "tls.certificate: "),
        ] {
            let found = faults(&format!("{tls}{set} = \"/nope\"\n"));
            assert_eq!(found.len(), 2, "{found:#?}");
            assert!(found.iter().any(|it| it.starts_with(place)), "{found:#?}");
            let is_unset = |it: &String| it.contains(unset) && it.contains("is empty");
            assert!(found.iter().any(is_unset), "{found:#?}");
        }
    }

    #[test]
    fn a_state_directory_has_to_be_writable_where_something_is_kept_there() {
        let settings = |access: &str, snapshot: &str| {
            faults(&format!(
                "[server]\nstate_dir = \"/proc/version/state\"\n[access]\nmode = \"{access}\"\n\
                 [snapshot]\nmode = \"{snapshot}\"\n"
            ))
        };
        assert_eq!(settings("open", "auto"), [""; 0]);
        for (access, snapshot) in [("registered", "auto"), ("private", "auto"), ("open", "on")] {
            let found = settings(access, snapshot);
            assert_eq!(found.len(), 1, "{found:?}");
            let place = "skep.toml:2:1: server.state_dir: ";
            assert!(found[0].starts_with(place), "{found:?}");
            assert!(found[0].contains("remedy: set server.state_dir to a directory"), "{found:?}");
        }
    }

    #[test]
    fn what_is_kept_in_the_state_directory_is_judged_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        fs::create_dir(state.join("access")).unwrap();
        fs::write(state.join("access/ports_deny.list"), "25\nhttp\n").unwrap();
        fs::write(state.join("access.redb"), "not a database").unwrap();
        let settings = |mode: &str| {
            let state = state.display();
            faults(&format!("[server]\nstate_dir = \"{state}\"\n[access]\nmode = \"{mode}\"\n"))
        };
        let found = settings("open");
        assert_eq!(found.len(), 1, "{found:#?}");
        let line = "access/ports_deny.list:2: access.ports_deny: invalid line \"http\"";
        assert!(found[0].contains(line), "{found:#?}");
        let found = settings("private");
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[1].contains("skep.toml:2:1: server.state_dir: cannot use "), "{found:#?}");
        assert!(found[1].contains("access.redb, which holds registered"), "{found:#?}");
        fs::remove_file(state.join("access.redb")).unwrap();
        assert_eq!(settings("private").len(), 1);
        assert!(!state.join("access.redb").exists(), "nothing is created");
    }

    #[test]
    fn an_error_of_a_start_is_replaced_by_faults_that_explain_it() {
        let failed = || StartError::Failed("no memory".into());
        let report = || SettingsSource::default().judge();
        assert_eq!(with_all_faults(failed(), report()).to_string(), "no memory");
        let mut faulty = report();
        faulty.config.access.ports_deny = "/nope".into();
        let error = with_all_faults(failed(), faulty);
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().starts_with("access.ports_deny: cannot read"), "{error}");
    }
}
