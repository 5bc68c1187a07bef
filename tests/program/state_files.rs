//! Files of the state directory that the tracker's user may not use: `skep check`, `skep doctor`,
//! the start and what it shows afterwards agree on them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use skep::sys::identity::UnixUser;

use crate::support::{Skep, command, eventually, texts};

/// The user that skep becomes: nobody.
const USER: &str = "65534";

/// Whether this is root; says so where it is not.
fn is_root() -> bool {
    let is_root = UnixUser::can_change();
    if !is_root {
        eprintln!("skipped: this is not root");
    }
    is_root
}

/// A subcommand for a tracker that becomes `USER`, with this state directory.
fn on(state: &Path, subcommand: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = command();
    command.args(subcommand).env("STATE_DIRECTORY", state).env("SKEP__SERVER__USER", USER);
    command.envs(settings.iter().copied());
    command
}

/// A start that is to fail: exit code and standard error.
fn refused(state: &Path, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let arguments = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
    let output = on(state, &arguments, settings).output().unwrap();
    (output.status.code(), texts(&output).1)
}

/// What `skep check` finds: its exit code, and each finding's severity, message and remedy.
fn checked(state: &Path, settings: &[(&str, &str)]) -> (Option<i32>, Vec<[String; 3]>) {
    let output = on(state, &["check", "--json"], settings).output().unwrap();
    let found: Vec<Value> = serde_json::from_str(&texts(&output).0).unwrap();
    let text = |it: &Value, name| it[name].as_str().unwrap_or_default().to_owned();
    let all = found.iter().map(|it| ["severity", "message", "remedy"].map(|name| text(it, name)));
    (output.status.code(), all.collect())
}

/// The finding of `skep doctor` on the state directory.
fn examined(state: &Path, settings: &[(&str, &str)]) -> Value {
    let output = on(state, &["doctor", "--json"], settings).output().unwrap();
    let found: Vec<Value> = serde_json::from_str(&texts(&output).0).unwrap();
    found.into_iter().find(|it| it["id"] == "state.directory").unwrap()
}

/// A state directory of `USER` with all that a tracker has left in it, below a folder that others
/// may enter.
fn left_state(settings: &[(&str, &str)]) -> tempfile::TempDir {
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
    let state = top.path().join("state");
    let arguments = ["--listen", "127.0.0.1:0", "--workers", "1"];
    let mut skep = Skep::spawn(on(&state, &arguments, settings));
    eventually("it is ready", || skep.get("/readyz").0 == 200);
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0), "{}", skep.log());
    top
}

/// Gives a file back to root, which alone may then read it.
fn give_to_root(state: &Path, name: &str) {
    chown(state.join(name), Some(0), Some(0)).unwrap();
}

#[test]
fn files_that_are_still_roots_are_named_by_check_and_doctor_as_the_start_meets_them() {
    if !is_root() {
        return;
    }
    let top = left_state(&[]);
    let state = top.path().join("state");
    assert_eq!(checked(&state, &[]), (Some(0), vec![]));
    assert_eq!(examined(&state, &[])["severity"], "ok");
    let names =
        ["tracker.id", "swarms.snapshot.lock", "admin.token", "stats.history", "swarms.snapshot"];
    names.iter().for_each(|name| give_to_root(&state, name));
    let (code, found) = checked(&state, &[]);
    assert_eq!((code, found.len()), (Some(0), names.len()), "{found:#?}");
    let remedy = format!("chown -R nobody {}", state.display());
    let user = UnixUser::find(USER).unwrap();
    let remedy = remedy.replace("nobody", user.name());
    for (name, [severity, message, advice]) in names.iter().zip(&found) {
        let path = state.join(name).display().to_string();
        assert_eq!((severity.as_str(), advice), ("warning", &remedy), "{message}");
        assert!(message.contains(&format!("{path}: Permission denied")), "{message}");
    }
    let finding = examined(&state, &[]);
    assert_eq!(finding["severity"], "warning", "{finding}");
    let fact = finding["fact"].as_str().unwrap();
    assert!(names.iter().all(|it| fact.contains(it)), "{finding}");
    assert_eq!(finding["commands"], serde_json::json!([remedy]), "{finding}");

    // The start goes on, and shows it wherever an operator looks.
    let arguments = ["--listen", "127.0.0.1:0", "--workers", "1"];
    let settings = [("SKEP__ADMIN__TOKEN", "of sixteen bytes")];
    let skep = Skep::spawn(on(&state, &arguments, &settings));
    skep.log_with("snapshots disabled, swarms are empty after a restart");
    assert_eq!(skep.metrics().value("skep_restore_outcome{outcome=\"unusable\"}"), 1.0);
    assert_eq!(skep.metrics().value("skep_restore_outcome{outcome=\"off\"}"), 0.0);
    let mut status = on(&state, &["status", "--admin"], &settings);
    let output = status.arg(format!("http://{}", skep.admin)).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(stdout.contains("no snapshots are kept: the state directory"), "{stdout}{stderr}");
}

#[test]
fn a_key_that_is_still_roots_is_a_fault_of_check_and_doctor_as_of_the_start() {
    if !is_root() {
        return;
    }
    let top = left_state(&[]);
    let state = top.path().join("state");
    give_to_root(&state, "connection_id.key");
    let (code, found) = checked(&state, &[]);
    assert_eq!((code, found.len()), (Some(2), 1), "{found:#?}");
    let [severity, message, remedy] = &found[0];
    assert!(severity == "fault" && message.contains("connection_id.key: Permission"), "{message}");
    assert!(remedy.starts_with("chown -R "), "{remedy}");
    assert_eq!(examined(&state, &[])["severity"], "problem");
    let (code, said) = refused(&state, &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(message) && said.contains(remedy), "{said}");
}

#[test]
fn a_database_that_is_still_roots_is_a_fault_and_ends_the_start_with_2() {
    if !is_root() {
        return;
    }
    let private = [("SKEP__ACCESS__MODE", "private")];
    let top = left_state(&private);
    let state = top.path().join("state");
    give_to_root(&state, "access.redb");
    assert_eq!(checked(&state, &[]), (Some(0), vec![]), "an open tracker does not read it");
    let (code, found) = checked(&state, &private);
    assert_eq!((code, found.len()), (Some(2), 1), "{found:#?}");
    assert!(found[0][1].contains("access.redb: Permission denied"), "{found:#?}");
    let (code, said) = refused(&state, &private);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&found[0][1]), "{said}");
}

#[test]
fn files_that_the_start_gives_to_its_user_are_not_found_fault_with() {
    if !is_root() {
        return;
    }
    let top = left_state(&[]);
    let state = top.path().join("state");
    for entry in fs::read_dir(&state).unwrap() {
        chown(entry.unwrap().path(), Some(0), Some(0)).unwrap();
    }
    chown(&state, Some(0), Some(0)).unwrap();
    assert_eq!(checked(&state, &[]), (Some(0), vec![]));
    let skep = Skep::spawn(on(&state, &["--listen", "127.0.0.1:0", "--workers", "1"], &[]));
    eventually("it is ready", || skep.get("/readyz").0 == 200);
    assert_eq!(skep.metrics().value("skep_restore_outcome{outcome=\"unusable\"}"), 0.0);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_warned_of_or_refused_with_2() {
    let nowhere = Path::new("/proc/version/state");
    let run = |subcommand: &[&str], settings: &[(&str, &str)]| {
        let mut command = command();
        command.args(subcommand).env("STATE_DIRECTORY", nowhere);
        let output = command.envs(settings.iter().copied()).output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    let start = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
    let (code, said) = run(&["check"], &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warning: the state directory /proc/version/state cannot be"), "{said}");
    for settings in [("SKEP__ACCESS__MODE", "private"), ("SKEP__SNAPSHOT__MODE", "on")] {
        for arguments in [&["check"][..], &start] {
            let (code, said) = run(arguments, &[settings]);
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains("the state directory /proc/version/state cannot be"), "{said}");
        }
    }
}
