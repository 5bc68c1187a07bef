//! What judges the files of `deploy/`: programs of Debian, and Python's below target/deploy-tools.
#![allow(dead_code, reason = "each test program uses a part")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The repository.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Where `.ci/run` puts what requirements.txt lists.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/deploy-tools/bin");

/// A file or folder of `deploy/`.
pub(crate) fn deployed(path: &str) -> PathBuf {
    Path::new(ROOT).join("deploy").join(path)
}

/// The text of a file of the repository.
pub(crate) fn text_of(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|it| panic!("{path}: {it}"))
}

/// The fenced blocks of a page that are in this language.
pub(crate) fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let inside = page.split(&fence).skip(1);
    inside.map(|it| it.split("```").next().unwrap().to_owned()).collect()
}

/// All files of `deploy/` whose names end like this.
pub(crate) fn deployed_files(end: &str) -> Vec<PathBuf> {
    let mut folders = vec![deployed("")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {end} in deploy/");
    found
}

/// Whether all these programs are here. Says which is not; where CI asks for them, fails instead.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|it| path_of(it).is_none());
    missing.is_none_or(|it| lacks(it))
}

/// Says that something is not here; where CI asks for everything, fails.
pub(crate) fn lacks(what: &str) -> bool {
    println!("skipped: {what} not found");
    let required = std::env::var_os("SKEP_REQUIRE_EXTERNAL").is_some_and(|it| it == "1");
    assert!(!required, "{what} not found, and SKEP_REQUIRE_EXTERNAL=1 asks for it");
    false
}

/// Where a program is: among the tools, else in the PATH, else where Debian has root's.
fn path_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).map(|it| it.into_os_string());
    let folders = [TOOLS.into()].into_iter().chain(folders).chain(["/usr/sbin".into()]);
    folders.map(|it| Path::new(&it).join(program)).find(|it| it.is_file())
}

/// A program that [`have`] has found.
pub(crate) fn program(name: &str) -> Command {
    Command::new(path_of(name).unwrap())
}

/// Runs a program; what it wrote, standard error behind the rest, and whether it was content.
pub(crate) fn verdict<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> (bool, String) {
    said(&program(name).args(arguments).current_dir(ROOT).output().unwrap())
}

/// What a program wrote, and whether it was content.
pub(crate) fn said(output: &Output) -> (bool, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// Runs a program that has to be content, and returns what it wrote.
#[track_caller]
pub(crate) fn agrees<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> String {
    let (content, text) = verdict(name, arguments);
    let arguments: Vec<_> = arguments.iter().map(|it| it.as_ref().to_string_lossy()).collect();
    assert!(content, "{name} {}:\n{text}", arguments.join(" "));
    text
}

/// Whether YAML can be read.
pub(crate) fn have_yaml() -> bool {
    Path::new(TOOLS).join("python").is_file() || lacks("target/deploy-tools (see .ci/run)")
}

/// The documents of a YAML text.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    const SCRIPT: &str = "import json, sys, yaml\n\
                          json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let mut python = Command::new(Path::new(TOOLS).join("python"))
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "no YAML:\n{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The only document of a YAML file of the repository.
pub(crate) fn document(path: &str) -> Value {
    let mut all = documents(&text_of(path));
    assert_eq!(all.len(), 1, "{path}");
    all.remove(0)
}

/// What an overlay of `deploy/kubernetes` renders to.
pub(crate) fn rendered(overlay: &str) -> String {
    let path = deployed("kubernetes/overlays").join(overlay);
    agrees("kubectl", &["kustomize".as_ref(), path.as_os_str()])
}

/// What a kustomization of somebody's own renders to, in which `DEPLOYED` is `deploy/kubernetes`.
pub(crate) fn kustomized(text: &str) -> String {
    let own = tempfile::tempdir().unwrap();
    // kustomize wants paths that are relative to its own folder.
    let up = "../".repeat(own.path().canonicalize().unwrap().components().count() - 1);
    let ours = format!("{up}{}", deployed("kubernetes").display()).replace("//", "/");
    fs::write(own.path().join("kustomization.yaml"), text.replace("DEPLOYED", &ours)).unwrap();
    agrees("kubectl", &["kustomize".as_ref(), own.path().as_os_str()])
}

/// The elements of a list; none where there is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text.
#[track_caller]
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}
