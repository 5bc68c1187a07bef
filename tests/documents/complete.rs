//! Nothing of the program is left out of the documents, and they name nothing that it lacks:
//! commands, metrics, findings of `skep doctor`, routes of the admin listener.
//!
//! What is compared comes from the program or its source, so that a new part fails here until a
//! page has it. Settings and the page on metrics are in `contents.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::contents::{ROOT, calls, documents, rust_files};
use crate::support::{run, texts};

const FINDINGS: &str = "docs/findings.md";
const ROUTES: &str = "docs/admin.md";
/// Behind this heading of the page are the routes, to its end.
const ROUTES_HEADING: &str = "## Every route\n";

/// Every command as it is typed behind `skep`, such as `snapshot inspect`, with the groups of them.
fn commands() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut groups = vec![String::new()];
    while let Some(group) = groups.pop() {
        let words: Vec<_> = group.split_whitespace().chain(["--help"]).collect();
        let (help, _) = texts(&run(&words));
        let listed = help.split_once("\nCommands:\n").map_or("", |(_, behind)| behind);
        let lines = listed.lines().take_while(|line| line.starts_with("  "));
        let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        for name in names.filter(|name| !name.is_empty() && *name != "help") {
            let command = format!("{group} {name}").trim().to_owned();
            groups.push(command.clone());
            found.insert(command);
        }
    }
    found
}

/// What braces stand for, as in a shell: `a {b,c}` is `a b` and `a c`.
fn expanded(text: &str) -> Vec<String> {
    let Some((start, rest)) = text.split_once('{') else { return vec![text.to_owned()] };
    let (choices, end) = rest.split_once('}').unwrap();
    let each = |choice: &str| expanded(&format!("{start}{choice}{end}"));
    choices.split(',').flat_map(each).collect()
}

#[test]
fn every_command_has_a_row_on_its_page() {
    let page = read("docs/command-line.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `skep")?.split(" | ").next());
    let spans = rows.flat_map(|cell| cell.split('`').step_by(2));
    let listed = spans.flat_map(|span| expanded(span.trim_start_matches("skep").trim()));
    let is_name = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    let name = |text: String| text.split(' ').take_while(is_name).collect::<Vec<_>>().join(" ");
    let listed: BTreeSet<_> = listed.map(name).filter(|name| !name.is_empty()).collect();
    let commands = commands();
    assert!(commands.len() >= 9 && commands.contains("snapshot verify"), "{commands:?}");
    let is_group =
        |command: &&String| commands.iter().any(|other| other.starts_with(&format!("{command} ")));
    let single: BTreeSet<_> = commands.iter().filter(|it| !is_group(it)).cloned().collect();
    let differences: Vec<_> = single.symmetric_difference(&listed).collect();
    assert!(differences.is_empty(), "docs/command-line.md, first table: {differences:?}");
    assert_eq!(expanded("a {b,c} {d,e}"), ["a b d", "a b e", "a c d", "a c e"]);
}

#[test]
fn every_command_in_the_documents_exists() {
    let commands = commands();
    let is_group = |name: &str| commands.iter().any(|it| it.starts_with(&format!("{name} ")));
    let is_name = |word: &&&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    let mut seen = 0;
    for document in documents() {
        let lines = document.block_lines().filter(|(language, _)| ["", "sh"].contains(language));
        let lines = lines.map(|(_, line)| line).chain(document.spans());
        for call in lines.flat_map(calls) {
            let Some(name) = call.first().filter(is_name) else { continue };
            assert!(commands.contains(*name), "{}: skep {call:?}", document.path);
            let second = call.get(1).filter(is_name).filter(|_| is_group(name));
            let exists = second.is_none_or(|it| commands.contains(&format!("{name} {it}")));
            assert!(exists, "{}: skep {call:?}", document.path);
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}

#[test]
fn every_metric_in_the_documents_exists() {
    let (page, _) = texts(&run(&["metrics"]));
    let named = |text: &str| -> Vec<String> {
        // `$skep_…` is a variable in another program's configuration.
        let starts = text.match_indices("skep_").filter(|(at, _)| !text[..*at].ends_with('$'));
        let starts = starts.map(|(at, _)| &text[at..]);
        let is_part = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
        let names = starts.map(|rest| rest.split(|it| !is_part(it)).next().unwrap().to_owned());
        names.filter(|name| name != "skep_").collect()
    };
    let exported: BTreeSet<_> = named(&page).into_iter().collect();
    assert!(exported.len() > 50, "{exported:?}");
    let mut seen = 0;
    for document in documents().into_iter().filter(|it| it.path != "docs/metrics.md") {
        // What a command searches for may be the start of a name.
        for line in document.text.lines().filter(|line| !line.contains("grep ")) {
            for name in named(line) {
                let parts = ["_bucket", "_sum", "_count"];
                let whole = parts.iter().find_map(|part| name.strip_suffix(part));
                let exists =
                    exported.contains(&name) || whole.is_some_and(|it| exported.contains(it));
                assert!(exists, "{}: {name} is not a metric", document.path);
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

/// The first text between quotes in Rust source, and what is behind it.
fn literal(source: &str) -> (String, &str) {
    let (_, inside) = source.split_once('"').unwrap();
    let (mut text, mut rest) = (String::new(), inside);
    loop {
        let at = rest.find(['"', '\\']).unwrap();
        text += &rest[..at];
        let is_end = rest[at..].starts_with('"');
        rest = &rest[at + 1..];
        if is_end {
            return (text, rest);
        }
        // A backslash continues the text on the next line, or is before a quote.
        match rest.strip_prefix('\n') {
            Some(next) => rest = next.trim_start(),
            None => {
                text += &rest[..1];
                rest = &rest[1..];
            }
        }
    }
}

/// Checks of `skep doctor` in the source: the name of each finding, and why it matters.
fn checks() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for file in rust_files(&Path::new(ROOT).join("src/cli/doctor")) {
        let text = fs::read_to_string(file).unwrap();
        for declared in text.split("Check::new(").skip(1) {
            let (name, rest) = literal(declared);
            found.insert(name, literal(rest).0);
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

#[test]
fn every_finding_of_the_doctor_is_on_its_page() {
    let checks = checks();
    let (printed, _) = texts(&run(&["doctor", "--json"]));
    let here: Vec<Value> = serde_json::from_str(&printed).unwrap();
    for finding in &here {
        let name = finding["id"].as_str().unwrap();
        let why = checks.get(name).unwrap_or_else(|| panic!("{name} was not found in the source"));
        assert_eq!(finding["why"], why.as_str(), "{name}");
    }
    let mut page = read(FINDINGS).split("\n| finding |").next().unwrap().to_owned();
    page += "\n| finding | why it matters |\n|---|---|\n";
    for (name, why) in &checks {
        page += &format!("| `{name}` | {} |\n", why.replace('|', "\\|"));
    }
    is_written(FINDINGS, &page);
}

#[test]
fn every_route_is_on_the_page_on_the_admin_listener() {
    let mut table = "\n| route | |\n|---|---|\n".to_owned();
    for (path, methods) in routes().as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let summary = operation["summary"].as_str().unwrap();
            table += &format!("| `{} {path}` | {summary} |\n", method.to_uppercase());
        }
    }
    let page = read(ROUTES);
    let before = page.split(ROUTES_HEADING).next().unwrap().to_owned();
    is_written(ROUTES, &(before + ROUTES_HEADING + &table));
}

/// What the program's own description has: every path with its methods.
fn routes() -> Value {
    let described: Value = serde_json::from_str(&read("src/admin/openapi.json")).unwrap();
    described["paths"].clone()
}

#[test]
fn every_route_in_the_documents_exists() {
    let routes = routes();
    let fits = |path: &str| {
        let is_of = |route: &String| {
            let (route, path): (Vec<_>, Vec<_>) =
                (route.split('/').collect(), path.split('/').collect());
            let fit = |(part, word): (&&str, &&str)| part.starts_with('{') || part == word;
            route.len() == path.len() && route.iter().zip(&path).all(fit)
        };
        routes.as_object().unwrap().keys().any(is_of)
    };
    let mut seen = 0;
    for document in documents() {
        for start in ["/api/v1/", "$A/"] {
            for rest in document.text.split(start).skip(1) {
                let is_end = |it: char| it.is_whitespace() || "`\"'?)|…,;".contains(it);
                let path = rest.split(is_end).next().unwrap().trim_end_matches('.');
                if !path.is_empty() {
                    assert!(fits(&format!("/api/v1/{path}")), "{}: {start}{path}", document.path);
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_default()
}

/// Holds that a page is as it has to be; with `SKEP_WRITE=1`, makes it so.
fn is_written(path: &str, text: &str) {
    if std::env::var_os("SKEP_WRITE").is_some_and(|value| value == "1") {
        fs::write(Path::new(ROOT).join(path), text).unwrap();
    }
    assert!(read(path) == text, "{path}: run SKEP_WRITE=1 cargo test --test documents complete");
}
