//! The other trackers that a comparison over TCP starts if they are installed, with settings that
//! make it fair: one worker, keep-alive as in the row, peers that are not removed.

use std::path::{Path, PathBuf};

use crate::contestant::Contestant;

/// aquatic_http, once with keep-alive and once without: it ignores the `Connection` header of
/// requests.
pub(crate) fn aquatic_http(given: Option<&Path>, one_shot: bool) -> Vec<Contestant> {
    let (name, config) = if one_shot {
        ("aquatic_http, one-shot", include_str!("../trackers/aquatic_http_one_shot.toml"))
    } else {
        ("aquatic_http", include_str!("../trackers/aquatic_http.toml"))
    };
    start(name, "aquatic_http", given, "--aquatic-http", &["-c", "{config}"], config)
}

/// aquatic_ws.
pub(crate) fn aquatic_ws(given: Option<&Path>) -> Vec<Contestant> {
    let config = include_str!("../trackers/aquatic_ws.toml");
    start("aquatic_ws", "aquatic_ws", given, "--aquatic-ws", &["-c", "{config}"], config)
}

/// opentracker, which closes every connection. Debian's build requires a list of the torrents that
/// it may track; a test over UDP shows when it has read the list.
pub(crate) fn opentracker(given: Option<&Path>) -> Vec<Contestant> {
    let arguments = ["-i", "{ip}", "-p", "{port}", "-P", "{port}", "-w", "{hashes}", "-d", "/"];
    start("opentracker, one-shot", "opentracker", given, "--opentracker", &arguments, "")
}

/// A contestant, or none, with a message, if the program is not found.
fn start(
    name: &str,
    program: &str,
    given: Option<&Path>,
    option: &str,
    arguments: &[&str],
    config: &'static str,
) -> Vec<Contestant> {
    let Some(path) = given.map(Path::to_owned).or_else(|| on_path(program)) else {
        eprintln!(
            "loadtest: without {name}: {program} is not on PATH (set its path with {option})"
        );
        return Vec::new();
    };
    vec![Contestant { config, ..Contestant::own(name, &path, arguments) }]
}

/// The path of a program, if it is on PATH.
fn on_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|it| it.join(program)).find(|it| it.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name() {
        assert!(on_path("sh").is_some_and(|it| it.is_absolute()));
        assert_eq!(on_path("no-such-tracker"), None);
    }
}
