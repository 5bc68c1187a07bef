//! Which skep responds at the admin listener: the tracker of these settings, or another one, by
//! whose metrics nothing may be judged.

use std::path::{Path, PathBuf};

use crate::server::{AddressTrial, SNAPSHOT_LOCK};
use crate::sys::holder::{identity, open_file};

/// Why the skep that responds is not the tracker of these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OtherTrackerError {
    /// No single process has all the ports.
    #[error("the one there does not have every port of these settings")]
    Ports,
    /// It has the ports, but another state directory.
    #[error("the one there has the state directory {}", .0.display())]
    StateDirectory(PathBuf),
}

/// Compares the skep that responds with the settings: one process has all their ports, and keeps
/// snapshots in their state directory, if it keeps any. What is not visible is not a difference.
pub(super) fn compare(trial: &AddressTrial, state: Option<&Path>) -> Result<(), OtherTrackerError> {
    if trial.has_unheld || trial.processes.len() > 1 {
        return Err(OtherTrackerError::Ports);
    }
    let process = trial.processes.first();
    let Some(lock) = process.and_then(|id| open_file(*id, SNAPSHOT_LOCK)) else { return Ok(()) };
    match state.and_then(|it| identity(&it.join(SNAPSHOT_LOCK))) {
        Some(own) if own == lock.identity => Ok(()),
        _ => Err(OtherTrackerError::StateDirectory(lock.folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn trial(processes: &[u32], has_unheld: bool) -> AddressTrial {
        let processes = processes.iter().copied().collect();
        AddressTrial { processes, has_unheld, ..AddressTrial::default() }
    }

    #[test]
    fn one_process_has_every_port_of_its_settings() {
        let compare = |processes: &[u32], has_unheld| compare(&trial(processes, has_unheld), None);
        let nobody = u32::MAX;
        assert_eq!(compare(&[nobody], false), Ok(()));
        assert_eq!(compare(&[nobody], true), Err(OtherTrackerError::Ports));
        assert_eq!(compare(&[1, nobody], false), Err(OtherTrackerError::Ports));
        assert_eq!(compare(&[], false), Ok(()), "processes that are not visible");
        assert_eq!(compare(&[], true), Err(OtherTrackerError::Ports));
    }

    #[test]
    fn the_process_keeps_snapshots_in_the_state_directory_of_its_settings() {
        let state = tempfile::tempdir().unwrap();
        let own = trial(&[std::process::id()], false);
        let _lock = File::create(state.path().join(SNAPSHOT_LOCK)).unwrap();
        assert_eq!(compare(&own, Some(state.path())), Ok(()));
        let other = tempfile::tempdir().unwrap();
        let error = OtherTrackerError::StateDirectory(state.path().canonicalize().unwrap());
        for state in [None, Some(other.path())] {
            assert_eq!(compare(&own, state), Err(error.clone()));
        }
    }
}
