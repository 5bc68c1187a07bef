//! Findings on the state directory: write access, permissions and free space.

use super::facts::StateHome;
use super::finding::{Check, Finding};
use super::{HostReport, size};
use crate::config::{AccessMode, ConfigFinding, ConfigTopic};

const DIRECTORY: Check = Check::new(
    "state.directory",
    "The connection-id key, registered torrents and passkeys are kept there. Without it skep \
     serves, but clients must connect anew after each restart; modes that register torrents do not \
     start.",
);
const PERMISSIONS: Check = Check::new(
    "state.permissions",
    "A user who can read the connection-id key can forge connection ids and have responses sent to \
     victims.",
);
const SPACE: Check =
    Check::new("state.space", "State that cannot be written is lost at the next restart.");

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Less free space than this is a problem, in bytes.
const SPACE_MIN: u64 = 64 << 20;

/// Twice the state of a large tracker, in bytes.
const SPACE_GOOD: u64 = 1 << 30;

/// Fewer free inodes than this are a problem.
const FILES_MIN: u64 = 100;

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    let is_needed = report.config.access.mode != AccessMode::Open;
    match &report.facts.state {
        Ok(home) => {
            let directory = of_check(report).unwrap_or_else(|| directory(home, is_needed));
            vec![directory, permissions(home), space(home)]
        }
        Err(reason) => vec![missing(format!("there is none: {reason}"), is_needed)],
    }
}

/// What `skep check` finds in the state directory, in one finding; `None` if that is nothing.
fn of_check(report: &HostReport) -> Option<Finding> {
    let is_it = |it: &&ConfigFinding| it.topic == ConfigTopic::StateDirectory;
    let found: Vec<_> = report.configuration.iter().filter(is_it).collect();
    let facts: Vec<_> = found.iter().map(|it| it.message.as_str()).collect();
    let as_command = |remedy: String| match remedy.split(' ').next() {
        Some("chown" | "chmod") => format!("$ {remedy}"),
        _ => remedy,
    };
    let mut remedies: Vec<_> =
        found.iter().filter_map(|it| it.remedy.clone()).map(as_command).collect();
    remedies.sort();
    remedies.dedup();
    let (fact, remedy) = (facts.join("\n"), remedies.join("\n"));
    match found.iter().any(|it| it.is_fault()) {
        _ if found.is_empty() => None,
        true => Some(DIRECTORY.problem(fact, remedy)),
        false => Some(DIRECTORY.warning(fact, remedy)),
    }
}

fn directory(home: &StateHome, is_needed: bool) -> Finding {
    let path = home.path.display();
    match (&home.writable, home.mode) {
        (Ok(()), Some(_)) => DIRECTORY.ok(format!("{path} can be written by this user")),
        (Ok(()), None) => DIRECTORY.ok(format!("{path} is not there yet, and can be made")),
        (Err(reason), Some(_)) => missing(format!("{path} cannot be written: {reason}"), is_needed),
        (Err(reason), None) => missing(format!("{path} cannot be made: {reason}"), is_needed),
    }
}

fn missing(fact: String, is_needed: bool) -> Finding {
    let remedy = "server.state_dir = a directory that the tracker's user may write, or \
                  StateDirectory=skep in the unit\n\
                  $ install -d -m 0700 -o skep /var/lib/skep";
    if is_needed { DIRECTORY.problem(fact, remedy) } else { DIRECTORY.warning(fact, remedy) }
}

fn permissions(home: &StateHome) -> Finding {
    let path = home.path.display();
    match home.mode {
        None => PERMISSIONS.ok("it would be made with mode 0700"),
        Some(mode) if mode & OTHERS == 0 => PERMISSIONS.ok(format!("mode {mode:04o}")),
        Some(mode) => PERMISSIONS.warning(
            format!("{path} is open to others (mode {mode:04o})"),
            format!("$ chmod 700 {path}"),
        ),
    }
}

fn space(home: &StateHome) -> Finding {
    let (bytes, files) = match &home.free {
        Ok(free) => *free,
        Err(error) => return SPACE.info(format!("unknown: {error}")),
    };
    let remedy = format!(
        "free some, or set server.state_dir elsewhere\n$ df -hi {0}\n$ df -h {0}",
        home.path.display()
    );
    if files < FILES_MIN {
        return SPACE.problem(format!("only {files} inodes are free"), remedy);
    }
    let fact = format!("{} are free", size(bytes));
    match bytes {
        ..SPACE_MIN => SPACE.problem(fact, remedy),
        SPACE_MIN..SPACE_GOOD => SPACE.warning(fact, remedy),
        _ => SPACE.ok(fact),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;
    use crate::snapshot::{CURRENT, Header, PREVIOUS, VERSION, Writer};

    fn judge(state: Result<StateHome, String>, settings: &str, id: &str) -> (Severity, String) {
        let mut fake = Fake::new().configured(settings);
        fake.report.facts.state = state;
        found(&examine(&fake.report), id)
    }

    fn home() -> StateHome {
        Fake::new().report.facts.state.unwrap()
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_as_bad_as_the_mode_makes_it() {
        let id = "state.directory";
        assert_eq!(judge(Ok(home()), "", id).0, Severity::Ok);
        let denied = || Ok(StateHome { writable: Err("Permission denied".into()), ..home() });
        let (severity, text) = judge(denied(), "", id);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("cannot be written: Permission denied"), "{text}");
        assert_eq!(judge(denied(), "[access]\nmode = \"private\"", id).0, Severity::Problem);
        let (severity, text) = judge(Err("HOME is not set".into()), "", id);
        assert!(severity == Severity::Warning && text.contains("HOME is not set"), "{text}");
        let new = StateHome { mode: None, ..home() };
        assert_eq!(judge(Ok(new), "", id).0, Severity::Ok);
    }

    #[test]
    fn what_check_finds_in_the_state_directory_is_one_finding_with_each_remedy_once() {
        let mut fake = Fake::new();
        let unread = |name: &str| {
            let text = format!("cannot read /s/{name}; remedy: chown -R skep /s");
            ConfigFinding::warning(text).on(ConfigTopic::StateDirectory)
        };
        fake.report.configuration = ["tracker.id", "stats.history"].map(unread).into();
        let id = "state.directory";
        let (severity, text) = found(&examine(&fake.report), id);
        assert_eq!(severity, Severity::Warning);
        let all = "cannot read /s/tracker.id\ncannot read /s/stats.history\n$ chown -R skep /s";
        assert_eq!(text, all);
        let fault = ConfigFinding::fault("cannot read /s/key; remedy: remove it");
        fake.report.configuration.push(fault.on(ConfigTopic::StateDirectory));
        let (severity, text) = found(&examine(&fake.report), id);
        assert!(severity == Severity::Problem && text.contains("remove it"), "{text}");
    }

    #[test]
    fn a_directory_open_to_others_is_warned_of() {
        let id = "state.permissions";
        assert_eq!(judge(Ok(home()), "", id).0, Severity::Ok);
        let open = StateHome { mode: Some(0o755), ..home() };
        let (severity, text) = judge(Ok(open), "", id);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("mode 0755") && text.contains("$ chmod 700 /var/lib/skep"));
    }

    #[test]
    fn a_full_disk_is_a_problem() {
        let space = |free| judge(Ok(StateHome { free, ..home() }), "", "state.space");
        assert_eq!(space(Ok((2 << 30, 1000))).0, Severity::Ok);
        assert_eq!(space(Ok((500 << 20, 1000))).0, Severity::Warning);
        let (severity, text) = space(Ok((1 << 20, 1000)));
        assert!(severity == Severity::Problem && text.contains("1 MiB are free"), "{text}");
        assert_eq!(space(Ok((2 << 30, 9))).0, Severity::Problem);
        assert_eq!(space(Err("no such device".into())).0, Severity::Info);
    }

    #[test]
    fn a_directory_is_looked_at_and_not_made() {
        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let home = StateHome::inspect(temporary.path().to_owned());
        assert_eq!((home.mode, home.writable), (Some(0o750), Ok(())));
        assert!(home.free.unwrap().0 > 0);
        let absent = temporary.path().join("a/b");
        let state_home = StateHome::inspect(absent.clone());
        assert_eq!((state_home.mode, state_home.writable), (None, Ok(())));
        assert!(!absent.exists() && !temporary.path().join("a").exists());
        let file = temporary.path().join("file");
        fs::write(&file, "").unwrap();
        let blocked = StateHome::inspect(file.join("skep"));
        assert!(blocked.snapshots.is_empty());
        assert!(blocked.writable.unwrap_err().ends_with("is not a directory"));
    }

    #[test]
    fn snapshots_are_looked_at_for_their_dates_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let look = || StateHome::inspect(temporary.path().to_owned()).snapshots;
        assert!(look().is_empty());
        let header = Header { version: VERSION, at_s: 77, tracker: [1; 16], build: "1".into() };
        let (mut bytes, _) = Writer::new(Vec::new(), &header).unwrap().finish(0).unwrap();
        // Only the header is read, so a truncated file has a date too.
        bytes.truncate(bytes.len() - 1);
        fs::write(temporary.path().join(PREVIOUS), bytes).unwrap();
        assert_eq!(look(), [(PREVIOUS, Ok(77))]);
        fs::write(temporary.path().join(CURRENT), [0; 200]).unwrap();
        let snapshots = look();
        assert_eq!((snapshots.len(), snapshots[0].0), (2, CURRENT));
        let reason = snapshots[0].1.as_ref().unwrap_err();
        assert!(reason.contains("not a snapshot: wrong first bytes"), "{reason}");
    }
}
