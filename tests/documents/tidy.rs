//! Style as a test: what rustc and clippy cannot see. Who may import whom, how long functions,
//! lines and files may be, where `unsafe` may stand, what must never be merged.
//!
//! Each rule is a function from a file to complaints, and is shown a snippet that breaks it: a
//! checker that cannot fail checks nothing. Rules about code look at [`Source::code`], in which
//! comments and the contents of strings are blanks.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;

/// Everything below these folders is checked.
const ROOTS: [&str; 5] = ["src", "benches", "tests", "loadtest", "fuzz"];

/// Who may import whom: a module of `src/`, then the others it may name. ARCHITECTURE.md shows the
/// same table. `lib` declares modules and `main` starts the program: both are exempt.
const MAY_NAME: [(&str, &[&str]); 22] = [
    ("types", &[]),
    ("time", &[]),
    ("random", &[]),
    ("networks", &[]),
    ("counters", &["types"]),
    ("sys", &["types", "time"]),
    ("protocol", &["types"]),
    ("access", &["types", "time", "random", "networks"]),
    ("access_store", &["types", "time", "access"]),
    ("store", &["types", "time", "random"]),
    ("limiter", &["types", "time", "random", "counters", "networks"]),
    ("tracker", &["types", "time", "random", "counters", "store", "limiter", "access"]),
    ("snapshot", &["types", "time", "store", "access"]),
    ("cluster", &["types", "time", "store", "snapshot"]),
    ("frontend", &["types", "time", "random", "counters", "protocol", "access", "tracker"]),
    ("admin", &["types", "time", "access", "access_store", "tracker", "frontend"]),
    ("worker", &["types", "time", "random", "counters", "limiter", "frontend", "cluster", "sys"]),
    ("client", &["types", "protocol"]),
    ("config", &["types", "networks"]),
    ("server", &ALL),
    ("cli", &ALL),
    ("main", &ALL),
];

/// Every module that can be named.
const ALL: [&str; 21] = [
    "networks",
    "limiter",
    "types",
    "time",
    "random",
    "counters",
    "sys",
    "protocol",
    "access",
    "store",
    "tracker",
    "snapshot",
    "cluster",
    "frontend",
    "worker",
    "config",
    "server",
    "cli",
    "client",
    "access_store",
    "admin",
];

/// Modules that do no I/O and are handed the time: design invariant 5.
const PURE: [&str; 13] = [
    "types", "time", "random", "counters", "networks", "protocol", "access", "store", "limiter",
    "tracker", "frontend", "snapshot", "cluster",
];

/// The one file of them that does: the disk that snapshots are given.
const DISKS: [&str; 1] = ["src/snapshot/disk.rs"];

/// What no pure module may name, wherever it comes from, and why.
const IMPURE_WORDS: [(&str, &str); 19] = [
    ("Instant", "reads a clock"),
    ("SystemTime", "reads a clock"),
    ("UNIX_EPOCH", "reads a clock"),
    ("File", "touches a file"),
    ("OpenOptions", "touches a file"),
    ("spawn", "starts a thread or a task"),
    ("spawn_blocking", "starts a thread or a task"),
    ("spawn_local", "starts a thread or a task"),
    ("UdpSocket", "opens a socket"),
    ("TcpListener", "opens a socket"),
    ("TcpStream", "opens a socket"),
    ("UnixListener", "opens a socket"),
    ("UnixStream", "opens a socket"),
    ("UnixDatagram", "opens a socket"),
    ("socket2", "opens a socket"),
    ("mio", "waits for sockets"),
    ("tokio", "runs tasks"),
    ("tokio_uring", "runs tasks"),
    ("axum", "runs tasks"),
];

/// Modules of the standard library that no pure module may name, and why.
const IMPURE_MODULES: [(&str, &str); 4] = [
    ("fs", "touches a file"),
    ("thread", "starts or stops a thread"),
    ("env", "looks at the process"),
    ("os", "talks to the operating system"),
];

/// Where `unsafe` may stand.
const UNSAFE_HOMES: [&str; 3] = ["src/sys/", "src/sys.rs", "src/store/raw/"];

type Rule = fn(&Source) -> Vec<Complaint>;

const RULES: [(&str, Rule); 11] = [
    ("imports point one way", imports),
    ("functions are short", function_length),
    ("lines are short", line_width),
    ("files are short", file_length),
    ("unsafe stays at home", unsafe_home),
    ("every file says why it is there", head),
    ("nothing unfinished is merged", unfinished),
    ("no test is ignored", ignored_tests),
    ("the core is pure", purity),
    ("no path of somebody's machine", machine_paths),
    ("errors are types", text_errors),
];

/// What is wrong, and in which line (from 1).
#[derive(Debug, PartialEq, Eq)]
struct Complaint {
    line: usize,
    text: String,
}

fn complaint(line: usize, text: impl Into<String>) -> Complaint {
    Complaint { line, text: text.into() }
}

/// A file to be judged.
struct Source {
    /// Relative to the repository, with forward slashes.
    path: String,
    text: String,
    /// `text` with blanks for comments and for the contents of strings; same lines, same columns.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    /// The top-level module of `src/` this file belongs to.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let end = inside.find('/').or_else(|| inside.find('.'))?;
        Some(&inside[..end])
    }
}

#[test]
fn the_tree_is_tidy() {
    let mut report = String::new();
    let sources = sources();
    assert!(sources.len() > 10, "the tree was found");
    for source in &sources {
        for (name, rule) in RULES {
            for Complaint { line, text } in rule(source) {
                writeln!(report, "{}:{line}: {text} ({name})", source.path).unwrap();
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ROOTS {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let read = |file: &PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        Source::new(&path, &fs::read_to_string(file).unwrap())
    };
    files.iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let built = path.file_name().is_some_and(|it| it == "target");
        if path.is_dir() && !built {
            collect(&path, files);
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
}

// ---- rules ----

fn imports(source: &Source) -> Vec<Complaint> {
    let Some(module) = source.module().filter(|it| *it != "lib") else { return Vec::new() };
    let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
        return vec![complaint(1, format!("`{module}` is not in the table of modules"))];
    };
    let forbidden = |name: &&(usize, String)| {
        let name = name.1.as_str();
        name != module && !allowed.contains(&name) && ALL.contains(&name)
    };
    let named = named_modules(&source.code);
    named
        .iter()
        .filter(forbidden)
        .map(|(line, name)| complaint(*line, format!("`{module}` may not name `{name}`")))
        .collect()
}

/// Top-level modules named by `crate::x`, `skep::x`, `super::x`, also as `crate::{x, y::z}`. A
/// `super::x` within one module is harmless: only names of other modules are complained about.
fn named_modules(code: &str) -> Vec<(usize, String)> {
    ["crate", "skep", "super"].iter().flat_map(|root| names_below(code, root)).collect()
}

/// The names that follow `root::`, with the line of each `root`.
fn names_below(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    for at in words(code, root) {
        let Some(rest) = code[at + root.len()..].trim_start().strip_prefix("::") else {
            continue;
        };
        let line = line_of(code, at);
        named.extend(first_names(rest).into_iter().map(|name| (line, name)));
    }
    named
}

/// The first name of each branch of a use tree: `x::y` gives x, `{x, y::{z}}` gives x and y.
fn first_names(tree: &str) -> Vec<String> {
    let tree = tree.trim_start();
    let Some(group) = tree.strip_prefix('{') else { return vec![identifier(tree)] };
    let mut names = vec![identifier(group)];
    let mut depth = 1;
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 1 => names.push(identifier(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|it| is_word(*it)).collect()
}

fn function_length(source: &Source) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for at in words(&source.code, "fn") {
        let Some(end) = body_end(&source.code[at..]) else { continue };
        let first = line_of(&source.code, at);
        let lines = line_of(&source.code, at + end) - first + 1;
        if lines > FUNCTION_LINES_MAX {
            let name = identifier(&source.code[at + "fn".len()..]);
            complaints.push(complaint(first, format!("`{name}` is {lines} lines long")));
        }
    }
    complaints
}

/// Where the body of the function whose `fn` starts the text ends; `None` where there is no body.
fn body_end(code: &str) -> Option<usize> {
    let mut brackets = 0_i32;
    let mut braces = 0_i32;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b';' | b',' | b'=' if brackets <= 0 && braces == 0 && !in_arrow_or_bounds(code, at) => {
                return None; // a declaration, or a function pointer's type
            }
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces <= 0 {
                    return (braces == 0).then_some(at);
                }
            }
            _ => {}
        }
        if brackets < 0 {
            return None; // a function pointer's type among arguments
        }
    }
    None
}

/// A comma or an equals sign that does not end a signature: within `<…>` or a `where` clause.
fn in_arrow_or_bounds(code: &str, at: usize) -> bool {
    let before = &code[..at];
    let open = before.matches('<').count();
    let close = before.matches('>').count() - before.matches("->").count();
    !code[at..].starts_with(';') && (open > close || !words(before, "where").is_empty())
}

fn line_width(source: &Source) -> Vec<Complaint> {
    let lines = (1..).zip(source.text.lines());
    let wide = lines.filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    wide.map(|(at, line)| complaint(at, format!("{} columns", line.chars().count()))).collect()
}

fn file_length(source: &Source) -> Vec<Complaint> {
    let lines = source.text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![complaint(lines, format!("{lines} lines"))]
}

fn unsafe_home(source: &Source) -> Vec<Complaint> {
    if UNSAFE_HOMES.iter().any(|home| source.path.starts_with(home)) {
        return Vec::new();
    }
    at_words(&source.code, "unsafe", "`unsafe` away from its homes")
}

fn head(source: &Source) -> Vec<Complaint> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![complaint(1, "the file does not open with `//! `")]
}

fn unfinished(source: &Source) -> Vec<Complaint> {
    // Written apart, so that this file does not complain about itself.
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let macros = [concat!("to", "do"), concat!("d", "bg"), concat!("un", "implemented")];
    let noted = notes.iter().flat_map(|it| at_words(&source.text, it, "an unfinished note"));
    let called = macros.iter().flat_map(|name| {
        let calls = words(&source.code, name).into_iter();
        let calls = calls.filter(|at| source.code[at + name.len()..].starts_with('!'));
        calls.map(move |at| complaint(line_of(&source.code, at), format!("`{name}!`")))
    });
    noted.chain(called).collect()
}

fn ignored_tests(source: &Source) -> Vec<Complaint> {
    let ignored = words(&source.code, "ignore").into_iter();
    let ignored = ignored.filter(|at| source.code[..*at].trim_end().ends_with("#["));
    ignored.map(|at| complaint(line_of(&source.code, at), "an ignored test")).collect()
}

/// A `Result` of the load tester whose error is a text.
fn text_errors(source: &Source) -> Vec<Complaint> {
    if !source.path.starts_with("loadtest/src/") {
        return Vec::new();
    }
    let error_of = |at: &usize| {
        let inside = source.code[at + "Result".len()..].strip_prefix('<')?;
        let (mut depth, mut start) = (0, None);
        for (place, character) in inside.char_indices() {
            match character {
                '<' | '(' | '[' => depth += 1,
                // An alias, such as `io::Result<String>`, has no error of its own.
                '>' if depth == 0 => return start.map(|start| inside[start..place].trim()),
                '>' | ')' | ']' => depth -= 1,
                ',' if depth == 0 => start = Some(place + 1),
                _ => {}
            }
        }
        None
    };
    let results = words(&source.code, "Result").into_iter();
    let texts = results.filter(|at| error_of(at).is_some_and(|it| it.ends_with("String")));
    let aliases = words(&source.code, "type Err = String").into_iter();
    let all = texts.chain(aliases);
    all.map(|at| complaint(line_of(&source.code, at), "an error that is a text")).collect()
}

fn purity(source: &Source) -> Vec<Complaint> {
    let is_pure = source.module().is_some_and(|module| PURE.contains(&module));
    let is_exempt = DISKS.contains(&source.path.as_str()) || source.path.ends_with("/tests.rs");
    if !is_pure || is_exempt {
        return Vec::new();
    }
    let code = without_tests(&source.code);
    let words = IMPURE_WORDS.iter().flat_map(|(word, what)| at_words(&code, word, what));
    let named = names_below(&code, "std").into_iter().filter_map(|(line, name)| {
        let (_, what) = IMPURE_MODULES.iter().find(|(module, _)| *module == name)?;
        Some(complaint(line, format!("`std::{name}`: {what}")))
    });
    words.chain(named).collect()
}

/// The code with blanks for modules that are compiled for tests alone: those may use threads.
fn without_tests(code: &str) -> String {
    let mut kept = code.to_owned();
    for attribute in ["#[cfg(test)]", "#[cfg(all(test"] {
        for (at, _) in code.match_indices(attribute) {
            let end = at + code[at..].find('\n').unwrap_or(0);
            if !code[end..].trim_start().starts_with("mod ") {
                continue;
            }
            let end = body_end(&code[end..]).map_or(end, |length| end + length + 1);
            let blanks = code[at..end].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' });
            kept.replace_range(at..end, &blanks.collect::<String>());
        }
    }
    kept
}

fn machine_paths(source: &Source) -> Vec<Complaint> {
    let roots = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/tm", "p/"),
        concat!("/Us", "ers/"),
    ];
    let found = roots.iter().flat_map(|root| source.text.match_indices(root));
    let starts =
        found.filter(|(at, _)| !source.text[..*at].ends_with(|it| is_word(it) || it == '.'));
    starts.map(|(at, it)| complaint(line_of(&source.text, at), format!("`{it}`"))).collect()
}

// ---- reading Rust ----

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Where a whole word stands.
fn words(text: &str, word: &str) -> Vec<usize> {
    let whole = |at: &usize| {
        let before = text[..*at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    };
    text.match_indices(word).map(|(at, _)| at).filter(whole).collect()
}

fn at_words(text: &str, word: &str, what: &str) -> Vec<Complaint> {
    let found = words(text, word).into_iter();
    found.map(|at| complaint(line_of(text, at), format!("`{word}`: {what}"))).collect()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Blanks out comments and the contents of strings and characters. Every byte of them becomes a
/// space, so places stay the same.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (hidden, length) = match hidden_length(rest, code.chars().next_back()) {
            Some(length) => (true, length),
            None => (false, first.len_utf8()),
        };
        let (piece, tail) = rest.split_at(length);
        if hidden {
            code.extend(piece.bytes().map(|it| if it == b'\n' { '\n' } else { ' ' }));
        } else {
            code.push_str(piece);
        }
        rest = tail;
    }
    code
}

/// How long the comment, string or character literal is that starts the text, if one does.
fn hidden_length(text: &str, before: Option<char>) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(block_comment_length(text));
    }
    if text.starts_with('"') {
        return Some(quoted_length(text, '"'));
    }
    if text.starts_with('\'') {
        return character_length(text);
    }
    let raw = text.strip_prefix('r').filter(|_| !before.is_some_and(|it| is_word(it) && it != 'b'));
    let hashes = raw?.len() - raw?.trim_start_matches('#').len();
    raw?[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = 1 + hashes + 1;
    Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()))
}

fn block_comment_length(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let step = if rest.starts_with(b"/*") {
            depth += 1;
            2
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            2
        } else {
            1
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + character.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// A character literal, not a lifetime: `'a'` and `'\n'`, but neither `'a` nor `'static`.
fn character_length(text: &str) -> Option<usize> {
    let mut inside = text.chars().skip(1);
    let escaped = inside.next()? == '\\';
    (escaped || inside.next()? == '\'').then(|| quoted_length(text, '\''))
}

// ---- the checker can fail ----

fn lines(rule: Rule, path: &str, text: &str) -> Vec<usize> {
    rule(&Source::new(path, text)).iter().map(|it| it.line).collect()
}

#[test]
fn imports_against_the_direction_are_seen() {
    let lines = |path, text| lines(imports, path, text);
    assert_eq!(lines("src/store/swarm.rs", "use std::io;\nuse crate::tracker::Tracker;"), [2]);
    assert_eq!(lines("src/store/mod.rs", "use crate::{types::Peer, protocol::{udp, x}};"), [1]);
    assert_eq!(lines("src/store/mod.rs", "fn f() { crate::frontend::udp::go() }"), [1]);
    assert_eq!(lines("src/tracker.rs", "use super::worker;"), [1]);
    assert_eq!(lines("src/sys/ring.rs", "use crate::counters::Counter;"), [1]);
    assert_eq!(lines("src/worker/udp.rs", "use crate::config::Config;"), [1]);
    assert_eq!(lines("src/types.rs", "use crate :: time :: Now;"), [1]);
    assert_eq!(lines("src/novelty.rs", ""), [1]);
}

#[test]
fn imports_along_the_direction_are_fine() {
    let lines = |path, text| lines(imports, path, text);
    assert!(lines("src/store/mod.rs", "use crate::{types, time::Now};").is_empty());
    assert!(lines("src/store/mod.rs", "//! [`crate::tracker`]\nmod a;").is_empty());
    assert!(lines("src/store/mod.rs", "const A: &str = \"crate::tracker\";").is_empty());
    assert!(lines("src/store/swarm.rs", "use super::table::Cell;").is_empty());
    assert!(lines("src/main.rs", "use skep::config::Config;").is_empty());
    assert!(lines("tests/any.rs", "use skep::config::Config;").is_empty());
}

#[test]
fn long_functions_are_seen() {
    let body = |lines| format!("\nfn long(a: [u8; 2]) -> [u8; 2] {{\n{}}}\n", "\n".repeat(lines));
    assert_eq!(lines(function_length, "src/a.rs", &body(69)), [2]);
    assert!(lines(function_length, "src/a.rs", &body(68)).is_empty());
    let generic =
        "fn long<A: Into<B>, B>(a: A) -> Result<A, B>\nwhere\n    A: X,\n    B: Y<Z = A>,\n{";
    let generic = format!("{generic}{}}}", "\n".repeat(80));
    assert_eq!(lines(function_length, "src/a.rs", &generic), [1]);
    let declared = format!("trait A {{ fn short(&self); {} }}", "\n".repeat(99));
    assert!(lines(function_length, "src/a.rs", &declared).is_empty());
    let pointer = format!("const A: [fn(u8) -> u8; 1] = [a]; mod b {{ {} }}", "\n".repeat(99));
    assert!(lines(function_length, "src/a.rs", &pointer).is_empty());
}

#[test]
fn wide_lines_and_long_files_are_seen() {
    assert_eq!(lines(line_width, "src/a.rs", &format!("\n{}", "é".repeat(101))), [2]);
    assert!(lines(line_width, "src/a.rs", &"é".repeat(100)).is_empty());
    assert_eq!(lines(file_length, "src/a.rs", &"\n".repeat(801)), [801]);
    assert!(lines(file_length, "src/a.rs", &"\n".repeat(800)).is_empty());
}

#[test]
fn stray_unsafe_is_seen() {
    let text = "#![deny(unsafe_code)]\n// unsafe\nlet a = \"unsafe\";\nunsafe { b() }";
    assert_eq!(lines(unsafe_home, "src/store/mod.rs", text), [4]);
    assert_eq!(lines(unsafe_home, "loadtest/src/main.rs", text), [4]);
    assert!(lines(unsafe_home, "src/sys/ring.rs", text).is_empty());
    assert!(lines(unsafe_home, "src/store/raw/table.rs", text).is_empty());
}

#[test]
fn missing_heads_and_leftovers_are_seen() {
    assert_eq!(lines(head, "src/a.rs", "use std::io;"), [1]);
    assert!(lines(head, "src/a.rs", "//! Why.").is_empty());
    assert_eq!(lines(unfinished, "src/a.rs", concat!("\n// TO", "DO: later")), [2]);
    assert_eq!(lines(unfinished, "src/a.rs", concat!("// FIX", "ME")), [1]);
    assert_eq!(lines(unfinished, "src/a.rs", concat!("fn a() { to", "do!() }")), [1]);
    assert_eq!(lines(unfinished, "src/a.rs", concat!("d", "bg!(1)")), [1]);
    assert!(lines(unfinished, "src/a.rs", "let todo = 1; // mkstemp XXXXXX").is_empty());
    assert_eq!(lines(ignored_tests, "tests/a.rs", "#[test]\n#[ignore]\nfn a() {}"), [2]);
    assert_eq!(lines(ignored_tests, "tests/a.rs", "#[ignore = \"slow\"]"), [1]);
    assert!(lines(ignored_tests, "tests/a.rs", "let ignore = 1; // #[ignore]").is_empty());
}

#[test]
fn errors_that_are_texts_are_seen() {
    let lines = |text| lines(text_errors, "loadtest/src/a.rs", text);
    assert_eq!(lines("fn a() -> Result<(), String> {}"), [1]);
    assert_eq!(lines("\nfn a() -> Result<Vec<(A, B)>, std::string::String> {}"), [2]);
    assert_eq!(lines("type Err = String;"), [1]);
    assert!(lines("fn a() -> Result<String, AError> {}").is_empty());
    assert!(lines("fn a() -> io::Result<String> {}").is_empty());
    assert!(lines("fn a() -> Result<BTreeMap<u8, String>, AError> {}").is_empty());
    assert!(lines("/// Result<(), String>\nfn a() -> Option<String> {}").is_empty());
}

#[test]
fn whatever_is_impure_is_seen() {
    let lines = |path: &str, text: &str| lines(purity, path, text);
    let text = "use std::time::Instant;\nlet a = std::time::Instant::now();";
    assert_eq!(lines("src/tracker/mod.rs", text), [1, 2]);
    assert_eq!(lines("src/frontend/udp.rs", "SystemTime::now()"), [1]);
    for (word, _) in IMPURE_WORDS {
        assert_eq!(lines("src/protocol/udp.rs", &format!("\nuse a::{word};")), [2], "{word}");
    }
    for (module, _) in IMPURE_MODULES {
        assert_eq!(lines("src/store/mod.rs", &format!("use std::{module}::a;")), [1], "{module}");
        let group = format!("use std::{{io, {module}::{{self, b}}}};");
        assert_eq!(lines("src/limiter/mod.rs", &group), [1], "{module}");
        assert_eq!(lines("src/access/mod.rs", &format!("std::{module}::a()")), [1], "{module}");
    }
    let after_tests = "#[cfg(test)]\nmod tests {\n    use std::thread;\n}\nuse std::fs;";
    assert_eq!(lines("src/snapshot/folder.rs", after_tests), [5]);
}

#[test]
fn what_is_pure_is_fine_and_so_is_the_rest_elsewhere() {
    let lines = |path: &str, text: &str| lines(purity, path, text);
    let pure = "use std::net::{IpAddr, SocketAddr};\nuse std::time::Duration;\nlet spawned = 1;";
    assert!(lines("src/frontend/origin.rs", pure).is_empty());
    let tests = "#[cfg(all(test, not(loom)))]\nmod tests {\n    use std::thread;\n}";
    assert!(lines("src/limiter/line.rs", tests).is_empty());
    assert!(lines("src/access/tests.rs", "use std::fs;").is_empty());
    assert!(lines("src/snapshot/disk.rs", "use std::fs::File;").is_empty());
    assert!(lines("src/sys/clock.rs", "std::time::Instant::now()").is_empty());
    assert!(lines("src/admin/live/socket.rs", "tokio::spawn(a)").is_empty());
}

#[test]
fn machine_paths_are_seen() {
    let text = concat!("\nlet a = \"/ho", "me/me/a\";");
    assert_eq!(lines(machine_paths, "tests/a.rs", text), [2]);
    assert!(lines(machine_paths, "tests/a.rs", "folder.join(\"state/tmp/a\")").is_empty());
}

#[test]
fn comments_and_strings_are_blanked_out() {
    let blanked = |text| code_of(text).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(blanked("a /* b /* c */ d */ e // f\ng"), "a e g");
    assert_eq!(blanked(r#"a("b\"c", 'd', '\'', b'"') e"#), "a( , , , b ) e");
    assert_eq!(blanked("f(r#\"a\"b\"#) br\"c\" d"), "f( ) b d");
    assert_eq!(
        blanked("fn a<'b>(c: &'b str, d: &'static str)"),
        "fn a<'b>(c: &'b str, d: &'static str)"
    );
    assert_eq!(code_of("\"é\n\"").len(), "\"é\n\"".len());
}
