//! What the documents state about settings, flags and files, checked against the program.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use skep::config::{Config, Setting, settings};

use crate::support::{run, texts};

pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A document: its path below the root, and its text.
pub(crate) struct Document {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// README.md, the pages of docs/ and the decisions.
pub(crate) fn documents() -> Vec<Document> {
    let mut paths = vec![PathBuf::from("README.md")];
    for folder in ["docs", "docs/decisions"] {
        let pages = fs::read_dir(Path::new(ROOT).join(folder)).unwrap();
        let pages = pages.map(|page| Path::new(folder).join(page.unwrap().file_name()));
        paths.extend(pages.filter(|page| page.extension().is_some_and(|end| end == "md")));
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(Path::new(ROOT).join(&path)).unwrap();
        Document { path: path.display().to_string(), text }
    };
    paths.into_iter().map(read).collect()
}

impl Document {
    /// Lines of blocks between fences, each with its block's language.
    pub(crate) fn block_lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut language = None;
        self.text.lines().filter_map(move |line| {
            match (line.trim_start().strip_prefix("```"), language) {
                (Some(opened), None) => {
                    language = Some(opened);
                    None
                }
                (Some(_), Some(_)) => {
                    language = None;
                    None
                }
                (None, inside) => Some((inside?, line)),
            }
        })
    }

    /// What stands between backticks, outside blocks.
    pub(crate) fn spans(&self) -> Vec<&str> {
        let mut is_block = false;
        let mut found = Vec::new();
        for line in self.text.lines() {
            if line.trim_start().starts_with("```") {
                is_block = !is_block;
            } else if !is_block {
                found.extend(self.ours(line).split('`').skip(1).step_by(2));
            }
        }
        found
    }

    /// A line, less the first cell of a table in which other trackers' options stand.
    fn ours<'a>(&self, line: &'a str) -> &'a str {
        let is_foreign = self.path.ends_with("migration.md") && line.starts_with('|');
        let behind = line.splitn(3, '|').nth(2).filter(|_| is_foreign);
        behind.unwrap_or(line)
    }

    /// Targets of links.
    pub(crate) fn links(&self) -> Vec<&str> {
        let ends = self.text.split("](").skip(1);
        ends.filter_map(|it| it.split_once(')')).map(|(target, _)| target).collect()
    }

    /// What links within the page can name, as sites derive it from headings.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let heading = |line: &str| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let is_kept = |it: &char| it.is_alphanumeric() || "-_ ".contains(*it);
            text.chars().filter(is_kept).collect::<String>().replace(' ', "-")
        };
        self.text.lines().filter(|it| it.starts_with('#')).map(heading).collect()
    }
}

#[test]
fn the_page_on_configuration_is_what_is_printed() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/configuration.md"));
    let (printed, _) = texts(&run(&["config", "--format", "markdown"]));
    assert!(printed == Config::to_markdown() && printed.len() > 10_000);
    assert!(
        page.unwrap_or_default() == printed,
        "run: cargo run -- config --format markdown > docs/configuration.md"
    );
}

#[test]
fn the_page_on_metrics_is_what_is_printed() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/metrics.md"));
    let (printed, _) = texts(&run(&["metrics"]));
    assert!(printed == skep::server::metrics_page() && printed.len() > 5000);
    assert!(page.unwrap_or_default() == printed, "run: cargo run -- metrics > docs/metrics.md");
}

/// Whether this is written like a setting, in a section that exists: its section and key.
fn as_setting(word: &str) -> Option<(&str, &str)> {
    let (section, key) = word.split_once('.')?;
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|it| it.is_ascii_lowercase() || it == '_' || it == '*')
    };
    let is_file = ["id", "md", "rs", "json", "toml", "service", "socket"].contains(&key);
    let has_section = settings().iter().any(|it| it.section == section);
    (has_section && is_name(key) && !is_file).then_some((section, key))
}

/// Whether a key is meant; a star stands for the rest of its name.
fn is_key(setting: &Setting, key: &str) -> bool {
    key.strip_suffix('*').map_or(setting.key == key, |start| setting.key.starts_with(start))
}

#[test]
fn every_setting_in_the_documents_exists() {
    let mut seen = 0;
    // Findings have names of the same form.
    for document in documents().into_iter().filter(|it| it.path != "docs/findings.md") {
        for span in document.spans() {
            for word in span.split([' ', ',', '=', '(', ')']) {
                let Some((section, key)) = as_setting(word) else { continue };
                let exists = settings().iter().any(|it| it.section == section && is_key(it, key));
                assert!(exists, "{}: `{word}` is not a setting", document.path);
                seen += 1;
            }
        }
    }
    assert!(seen > 120, "{seen}");
    assert!(as_setting("tracker.intervall_s").is_some() && as_setting("swarms.snapshot").is_none());
}

#[test]
fn every_variable_in_the_documents_names_a_setting() {
    let names = settings().into_iter().map(|it| format!("SKEP__{}__{}", it.section, it.key));
    let names: BTreeSet<_> = names.map(|it| it.to_uppercase()).collect();
    for document in documents() {
        for rest in document.text.split("SKEP__").skip(1) {
            let is_part = |it: char| it.is_ascii_uppercase() || it == '_';
            let name = &rest[..rest.find(|it| !is_part(it)).unwrap_or(rest.len())];
            let name = format!("SKEP__{name}");
            assert!(names.contains(&name) || name == "SKEP__SECTION__KEY", "{name}");
        }
    }
}

#[test]
fn every_example_of_a_configuration_is_one() {
    let mut seen = 0;
    for document in documents() {
        let lines = document.block_lines().filter(|(language, _)| *language == "toml");
        let text: String = lines.map(|(_, line)| format!("{line}\n")).collect();
        // A page may show a section twice.
        for part in text.split("\n[").map(|it| format!("[{}", it.trim_start_matches('['))) {
            if part.len() > 1 {
                Config::from_toml(&part).unwrap_or_else(|it| panic!("{}: {it}", document.path));
                seen += 1;
            }
        }
    }
    assert!(seen > 8, "{seen}");
}

/// Calls of skep in a line for the shell: the words behind its name, of each.
pub(crate) fn calls(text: &str) -> Vec<Vec<&str>> {
    let text = text.trim_start().trim_start_matches(['$', '#', '(']);
    let words: Vec<_> = text.split_whitespace().take_while(|it| *it != "#").collect();
    let ends = ["|", "||", "&&", ";", ">"];
    let commands = words.split(|it| ends.contains(it) || it.ends_with(';'));
    commands.filter_map(call).collect()
}

/// The words behind skep's name, where this is a command that calls it.
fn call<'a>(command: &[&'a str]) -> Option<Vec<&'a str>> {
    if let Some(at) = command.windows(2).position(|it| it == ["--release", "--"]) {
        return Some(command[at + 2..].to_vec());
    }
    let mut rest = command;
    if let ["runuser", "-u", _, "--", behind @ ..] = rest {
        rest = behind;
    }
    let is_setting = |it: &str| it == "env" || it.contains('=');
    while let Some((_, behind)) = rest.split_first().filter(|(it, _)| is_setting(it)) {
        rest = behind;
    }
    let (program, arguments) = rest.split_first()?;
    (*program == "skep" || program.ends_with("/skep")).then(|| arguments.to_vec())
}

/// The help that a call's flags have to stand in.
fn help_of(call: &[&str]) -> String {
    let is_command = |it: &&&str| it.bytes().all(|it| it.is_ascii_lowercase());
    let mut commands: Vec<_> = call.iter().take_while(is_command).copied().collect();
    loop {
        let output = run(&[&commands[..], &["--help"]].concat());
        if output.status.success() {
            return texts(&output).0;
        }
        commands.pop().unwrap();
    }
}

/// Flags of a call: what begins with two dashes.
fn flags<'a>(call: &[&'a str]) -> Vec<&'a str> {
    let is_end = |it: char| !it.is_ascii_lowercase() && it != '-';
    let flag = |text: &&'a str| {
        let word = text.trim_start_matches('[');
        word.starts_with("--").then(|| word.split(is_end).next().unwrap_or(word))
    };
    call.iter().filter_map(flag).collect()
}

#[test]
fn every_flag_in_the_documents_exists() {
    let mut seen = 0;
    for document in documents() {
        let lines = document.block_lines().map(|(_, line)| line);
        for call in lines.chain(document.spans()).flat_map(calls) {
            let flags = flags(&call);
            if flags.is_empty() {
                continue;
            }
            let help = help_of(&call);
            let words: BTreeSet<_> = help.split([' ', ',', '\n']).collect();
            for flag in flags {
                assert!(words.contains(flag), "{}: {flag} in {call:?}", document.path);
                seen += 1;
            }
        }
    }
    assert!(seen >= 15, "{seen}");
}

#[test]
fn calls_are_found_and_other_commands_are_not() {
    let found =
        calls("$ runuser -u skep -- env A=b skep snapshot export --jsn=a F > x --y; skep check");
    assert_eq!(found, [vec!["snapshot", "export", "--jsn=a", "F"], vec!["check"]]);
    assert_eq!(flags(&found[0]), ["--jsn"]);
    assert!(help_of(&found[0]).contains("--json"));
    assert!(calls("journalctl -u skep --no-pager && systemctl enable --now skep").is_empty());
    assert_eq!(calls("cargo run --release -- probe --json"), [vec!["probe", "--json"]]);
}

#[test]
fn every_test_that_the_page_on_faults_names_exists() {
    let page = documents().into_iter().find(|it| it.path == "docs/faults.md").unwrap();
    let mut texts = Vec::new();
    for folder in ["tests", "src"] {
        let files = rust_files(&Path::new(ROOT).join(folder));
        texts.extend(files.into_iter().map(|it| fs::read_to_string(it).unwrap()));
    }
    // Tests are named in sentences; paths and metrics stand in backticks, too.
    let is_test = |span: &&str| {
        let is_other = span.contains(['/', '.', '=']) || span.starts_with("skep_");
        span.matches('_').count() >= 3 && !is_other
    };
    let named: BTreeSet<_> = page.spans().into_iter().filter(is_test).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        let heads = ["", "    "].map(|indent| format!("#[test]\n{indent}fn {name}()"));
        let has = |text: &String| heads.iter().any(|it| text.contains(it));
        assert!(texts.iter().any(has), "no test {name}");
    }
}

/// The Rust files below a folder.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found
}
