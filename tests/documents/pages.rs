//! The pages themselves: every link leads somewhere, indexes are complete, the front pages stay
//! short, and the path of a datagram names functions that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::contents::{Document, ROOT};

const README_WORDS_MAX: usize = 900;
const README_LINES_MAX: usize = 140;
/// Of a line of prose, as style.md has it.
const COLUMNS_MAX: usize = 120;
const ARCHITECTURE_WORDS_MAX: usize = 1500;

/// Folders below the root with pages or room for them.
const FOLDERS: [&str; 6] = ["benches", "deploy", "docs", "loadtest", "src", "tests"];

/// Paths of all pages in a folder; with those below it, where `deep`.
fn pages_in(folder: &Path, deep: bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && deep {
            pages_in(&path, deep, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// A page by its path below the root.
fn page(path: &str) -> Document {
    let text = fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
    Document { path: path.to_owned(), text }
}

/// Names of the pages in a folder, its index excepted.
fn names_in(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".md") && name != "README.md").collect()
}

/// Why a link of a page leads nowhere, if it does.
fn broken(page: &Path, document: &Document, link: &str) -> Option<&'static str> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { page.to_owned() } else { page.parent()?.join(file) };
    if !target.exists() {
        return Some("no such file");
    }
    if anchor.is_empty() {
        return None;
    }
    let other = (target != page).then(|| fs::read_to_string(&target).unwrap_or_default());
    let text = other.unwrap_or_else(|| document.text.clone());
    let target = Document { path: link.to_owned(), text };
    (!target.anchors().contains(anchor)).then_some("no such heading")
}

#[test]
fn every_link_of_every_page_leads_to_a_file_or_heading() {
    let mut pages = Vec::new();
    pages_in(Path::new(ROOT), false, &mut pages);
    for folder in FOLDERS {
        pages_in(&Path::new(ROOT).join(folder), true, &mut pages);
    }
    let mut seen = 0;
    for path in pages {
        let text = fs::read_to_string(&path).unwrap();
        let document = Document { path: path.display().to_string(), text };
        for link in document.links().into_iter().filter(|link| !link.contains("://")) {
            let fault = broken(&path, &document, link);
            assert!(fault.is_none(), "{}: {link}: {}", document.path, fault.unwrap_or_default());
            seen += 1;
        }
    }
    assert!(seen > 150, "{seen}");
}

#[test]
fn broken_links_are_found() {
    let path = Path::new(ROOT).join("README.md");
    let document = page("README.md");
    assert_eq!(broken(&path, &document, "docs/README.md"), None);
    assert_eq!(broken(&path, &document, "#performance"), None);
    assert_eq!(broken(&path, &document, "docs/limits.md#memory"), None);
    assert_eq!(broken(&path, &document, "docs/missing.md"), Some("no such file"));
    assert_eq!(broken(&path, &document, "#missing"), Some("no such heading"));
    assert_eq!(broken(&path, &document, "docs/limits.md#missing"), Some("no such heading"));
}

#[test]
fn the_front_pages_are_short() {
    let readme = page("README.md").text;
    let words = |text: &str| text.split_whitespace().count();
    assert!(words(&readme) <= README_WORDS_MAX, "README.md: {} words", words(&readme));
    assert!(readme.lines().count() <= README_LINES_MAX, "README.md: {}", readme.lines().count());
    let architecture = words(&page("ARCHITECTURE.md").text);
    assert!(architecture <= ARCHITECTURE_WORDS_MAX, "ARCHITECTURE.md: {architecture} words");
}

/// Numbers of the lines of prose that are too long. Rows of tables cannot be broken, and what is
/// typed or printed stays as it is.
fn long_lines(text: &str) -> Vec<usize> {
    let mut is_block = false;
    let is_prose = |line: &str| {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        !is_block && !is_fence && !line.trim_start().starts_with('|')
    };
    let prose: Vec<_> = text.lines().map(is_prose).collect();
    let lines = (1..).zip(text.lines()).zip(prose).filter(|(_, is_prose)| *is_prose);
    let long = lines.filter(|((_, line), _)| line.chars().count() > COLUMNS_MAX);
    long.map(|((number, _), _)| number).collect()
}

#[test]
fn lines_of_prose_are_short() {
    let mut pages = Vec::new();
    pages_in(Path::new(ROOT), false, &mut pages);
    pages_in(&Path::new(ROOT).join("docs"), true, &mut pages);
    // Its texts are those of the settings, which are lines of their own in the program.
    pages.retain(|path| !path.ends_with("docs/configuration.md"));
    assert!(pages.len() > 60, "{}", pages.len());
    for path in pages {
        let long = long_lines(&fs::read_to_string(&path).unwrap());
        let path = path.display();
        assert!(long.is_empty(), "{path}: lines {long:?} have more than {COLUMNS_MAX} columns");
    }
    let (fits, long) = ("é".repeat(COLUMNS_MAX), "é".repeat(COLUMNS_MAX + 1));
    assert_eq!(
        long_lines(&format!("{fits}\n{long}\n| {long} |\n```\n{long}\n```\n{long}")),
        [2, 7]
    );
}

#[test]
fn the_two_commands_come_first() {
    let readme = page("README.md");
    let commands: Vec<_> =
        readme.block_lines().filter(|(language, _)| *language == "sh").take(2).collect();
    let words = commands.iter().map(|(_, line)| line.split('#').next().unwrap().trim());
    let wanted = ["cargo run --release", "cargo test --workspace --no-fail-fast"];
    assert_eq!(words.collect::<Vec<_>>(), wanted);
}

#[test]
fn indexes_list_every_page() {
    for folder in ["docs", "docs/decisions"] {
        let index = page(&format!("{folder}/README.md"));
        let listed: BTreeSet<_> = index.links().into_iter().map(str::to_owned).collect();
        let missing: Vec<_> = names_in(folder).difference(&listed).cloned().collect();
        assert!(missing.is_empty(), "{folder}/README.md lacks {missing:?}");
    }
}

#[test]
fn every_decision_has_a_number_a_context_a_decision_and_a_figure() {
    let names = names_in("docs/decisions");
    for (number, name) in (1..).zip(&names) {
        assert!(name.starts_with(&format!("{number:04}-")), "{name} is number {number}");
        let text = page(&format!("docs/decisions/{name}")).text;
        let headings: Vec<_> = text.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, ["## Context", "## Decision", "## Figure"], "{name}");
    }
    assert!(names.len() >= 45, "{}", names.len());
}

#[test]
fn the_path_of_a_datagram_names_functions_that_exist() {
    let architecture = page("ARCHITECTURE.md").text;
    let mut stops = 0;
    for row in architecture.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, stop, file, function, ..] = cells[..] else { continue };
        if !file.starts_with("src/") {
            continue;
        }
        let source = fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_default();
        let has = ["(", "<"].iter().any(|end| source.contains(&format!("fn {function}{end}")));
        assert!(has, "{stop}: no function {function} in {file}");
        stops += 1;
    }
    assert!(stops >= 12, "{stops}");
}
