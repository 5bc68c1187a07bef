//! Rights that the process drops once every socket is bound: those of root, and the rights to run
//! programs and to write outside its own folders. Files in the state directory are opened without
//! the rights of root from the start.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus,
    path_beneath_rules,
};
use tracing::{info, warn};

use crate::config::Config;
use crate::server::StartError;
use crate::server::log::OPERATOR;
use crate::sys::identity::{ActingUser, UnixUser};

/// The version of the rules. An older kernel applies those that it supports.
const RULES: ABI = ABI::V5;

/// The folders that this process may write to.
#[derive(Clone, Debug, Default)]
pub(super) struct Confinement {
    /// These folders and everything below them; `None`: no restriction.
    folders: Option<Vec<PathBuf>>,
}

impl Confinement {
    /// The folders of lists in `config` that cannot be written to. The rules of the start can only
    /// become stricter, so a folder that a reload names first is not writable until a restart.
    pub(super) fn closed_to(&self, config: &Config) -> Vec<PathBuf> {
        let Some(open) = &self.folders else { return Vec::new() };
        let is_open = |path: &PathBuf| {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            open.iter().any(|open| real.starts_with(open))
        };
        let mut closed = folders_of(config.access.files().into_iter().flatten());
        closed.retain(|it| !is_open(it));
        closed
    }
}

/// Drops rights that are not needed. Every thread that starts later is restricted as well.
///
/// # Errors
/// [`StartError`] if the settings name a user that this process cannot change to: it must not
/// continue as root then.
pub(super) fn confine(config: &Config, state: Option<&Path>) -> Result<Confinement, StartError> {
    drop_root(config)?;
    if !config.server.confine {
        return Ok(Confinement::default());
    }
    Ok(restrict(&writable(config, state)))
}

/// The user to change to, if the settings name one and this process is root.
///
/// # Errors
/// [`StartError`] if there is no such user.
pub(super) fn user_of(config: &Config) -> Result<Option<UnixUser>, StartError> {
    let name = &config.server.user;
    if name.is_empty() || !UnixUser::can_change() {
        return Ok(None);
    }
    UnixUser::find(name).map(Some).map_err(|error| cannot_become(name, &error))
}

/// Acts as the user to change to, if there is one, while the returned value lives: the user's files
/// are accessed with the user's rights. A link in them cannot lead to a file that the user could
/// not access.
///
/// # Errors
/// [`StartError`] if this process cannot change its user.
pub(super) fn act_as(user: Option<&UnixUser>) -> Result<Option<ActingUser>, StartError> {
    let Some(user) = user else { return Ok(None) };
    let acting = user.act().map(Some);
    acting.map_err(|error| cannot_become(&user.user().to_string(), &error))
}

/// Makes sure that the user to change to has the state directory. A failure is not reported here:
/// the code that uses the directory finds it and logs the consequences.
pub(super) fn create_state_directory(user: Option<&UnixUser>, state: Option<&Path>) {
    let (Some(user), Some(state)) = (user, state) else { return };
    if let Err(error) = user.create_directory(state) {
        let path = state.display();
        info!(
            target: OPERATOR,
            %path, %error,
            "state directory not created, or its owner not changed to server.user"
        );
    }
}

fn drop_root(config: &Config) -> Result<(), StartError> {
    let user = &config.server.user;
    let Some(identity) = user_of(config)? else {
        if UnixUser::can_change() {
            let remedy = "set server.user, or let the service manager set one";
            info!(remedy, "running as root, which skep does not need");
        } else if !user.is_empty() {
            info!("server.user ignored: skep was not started as root");
        }
        return Ok(());
    };
    identity.assume().map_err(|error| cannot_become(user, &error))?;
    info!(target: OPERATOR, user, "user changed");
    Ok(())
}

fn cannot_become(user: &str, error: &std::io::Error) -> StartError {
    StartError::Failed(format!(
        "cannot change to user {user} (server.user): {error}; remedy: name an existing user and \
         start skep as root, or leave server.user empty"
    ))
}

/// The folders that may have to be written to. Not single files, because they are replaced by new
/// ones of the same name. Of lists only the folders that are named at the start.
fn writable(config: &Config, state: Option<&Path>) -> Vec<PathBuf> {
    let sockets = [&config.http.unix_socket, &config.server.handover_socket];
    let sockets = sockets.into_iter().filter(|it| !it.is_empty()).map(Path::new);
    let mut all = folders_of(config.access.files().into_iter().flatten().chain(sockets));
    all.extend(state.map(Path::to_owned));
    all.sort();
    all.dedup();
    all
}

/// The folders of these files, each once.
fn folders_of<'a>(files: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let folder_of = |file: &Path| {
        let folder = file.parent()?;
        Some(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.to_owned())
    };
    let mut all: Vec<_> = files.filter_map(folder_of).collect();
    all.sort();
    all.dedup();
    all
}

/// Allows writing only in these folders, and running no programs. Reading is not restricted:
/// settings, certificates and lists may be anywhere, and may move.
fn restrict(writable: &[PathBuf]) -> Confinement {
    let writing = AccessFs::from_write(RULES);
    // A rule cannot be made for a folder that does not exist.
    let open = writable.iter().filter_map(|it| it.canonicalize().ok()).collect();
    let restricted = Ruleset::default()
        .handle_access(writing | AccessFs::Execute)
        .and_then(Ruleset::create)
        .and_then(|it| it.add_rules(path_beneath_rules(writable, writing)))
        .and_then(landlock::RulesetCreated::restrict_self);
    let folders: Vec<_> = writable.iter().map(|it| it.display().to_string()).collect();
    let folders = folders.join(", ");
    match restricted.map(|it| it.ruleset) {
        Ok(RulesetStatus::FullyEnforced) => {
            info!(
                writable = folders,
                "process confined: it may write only in these folders and run no program"
            );
            return Confinement { folders: Some(open) };
        }
        Ok(RulesetStatus::PartiallyEnforced) => {
            info!(
                writable = folders,
                "process confined in part: this kernel has an older Landlock"
            );
            return Confinement { folders: Some(open) };
        }
        Ok(RulesetStatus::NotEnforced) => {
            info!("process not confined: this kernel has no Landlock");
        }
        Err(error) => warn!(%error, remedy = "set server.confine = false", "process not confined"),
    }
    Confinement::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_all_that_is_written_are_writable() {
        let mut config = Config::default();
        assert!(writable(&config, None).is_empty());
        config.access.ports_deny = "/etc/skep/ports".into();
        config.access.networks_deny = "/etc/skep/networks".into();
        config.http.unix_socket = "http.sock".into();
        let all = writable(&config, Some(Path::new("/var/lib/skep")));
        let all: Vec<_> = all.iter().map(|it| it.to_str().unwrap()).collect();
        assert_eq!(all, ["/etc/skep", "/var/lib/skep", "."]);
    }

    #[test]
    fn folders_that_were_not_named_at_the_start_are_closed() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().canonicalize().unwrap();
        let mut config = Config::default();
        config.access.ports_deny = open.join("deeper/ports").display().to_string();
        config.access.networks_deny = "/etc/skep/networks".into();
        let confinement = Confinement { folders: Some(vec![open.clone()]) };
        std::fs::create_dir(open.join("deeper")).unwrap();
        assert_eq!(confinement.closed_to(&config), [Path::new("/etc/skep")]);
        assert!(Confinement::default().closed_to(&config).is_empty());
    }

    #[test]
    fn what_is_confined_writes_where_it_may_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("text"), "text").unwrap();
        // Restricts only this thread, not other tests.
        let thread = std::thread::spawn(move || {
            restrict(std::slice::from_ref(&inside));
            let written = [&inside, &outside].map(|it| std::fs::write(it.join("new"), "").is_ok());
            let renamed = std::fs::rename(inside.join("new"), inside.join("newer")).is_ok();
            let read = std::fs::read(outside.join("text")).is_ok();
            let ran = std::process::Command::new("/bin/true").status().is_ok();
            (written, renamed, read, ran)
        });
        let (written, renamed, read, ran) = thread.join().unwrap();
        assert!(written[0] && renamed && read);
        if written[1] && ran {
            return eprintln!("skipped: this kernel has no Landlock");
        }
        assert!(!written[1] && !ran);
    }
}
