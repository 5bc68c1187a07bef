//! `docs/ten-minutes.md`, typed again: every command is run, on a host that is booted for it, and
//! its output is compared with the page. Where no host can be booted, which takes root, a skep of
//! this test stands in for the unit, and the page begins behind the installation.
//!
//! What differs from run to run (times, hashes, ports) is masked on both sides. On the page `…`
//! stands for text or lines that are left out. With `SKEP_WRITE=1` what differs is written to it.
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::booted::Booted;
use super::programs::present;
use super::support::{DEADLINE, Skep, command, has_io_uring};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ten-minutes.md");
/// Where the clients of the page have their files.
const PAGE_FOLDER: &str = concat!("/t", "mp/");
/// What is above this heading describes the host that the page was written on.
const FIRST_HEADING: &str = "## Install";
/// What is above this one needs root and systemd.
const FIRST_HEADING_WITHOUT_SYSTEMD: &str = "## Test it";
/// What is not the same twice, for sed. The total of `ls` is that of the host's file system.
const MASKS: [&str; 16] = [
    r"s/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.…]+Z/TIME/g",
    r"s/[A-Z][a-z]{2} [ 0-9]{2} [0-9]{2}:[0-9]{2}/DATE/g",
    r"s/[0-9]{2}\/[0-9]{2} [0-9:]{8}/TIME/g",
    r"s/\b[0-9a-f]{32}([0-9a-f]{8})?\b/HASH/g",
    r"s/[0-9]+\.[0-9]+ ms/N ms/g",
    r"s/\b(ms|age_s)=[0-9]+/\1=N/g",
    r"s/interval (1[0-9]{3}|[0-9]{3}) s/interval N s/g",
    r"s/(udp|tcp|admin)=[^ ]+( (udp|tcp)=[^ ]+)*/\1=ADDRESSES/g",
    r"s/\b[0-9]+ s( since|$)/N s\1/",
    r"s/^(-rw[^ ]* 1) [a-z]+ [a-z]+ +[0-9]+ DATE/\1 OWNER N DATE/; s/^total .*/total N/",
    r"s/\b(GID|UID|Main PID:) [0-9]+/\1 N/g; s/\bpid=[0-9]+/pid=N/; s/└─[0-9]+/└─N/",
    r"s/\b[0-9]+ms( ago)?$/Nms\1/; s/(skep\.toml):[0-9]+:/\1:N:/",
    r"s/since [A-Z][a-z]{2} [0-9-]+ [0-9:]+ [A-Z]+;/since TIME;/",
    r"s/^( +Status: .*workers=)[0-9]+/\1N/",
    // Dots are a client's progress, and a download of a moment is not announced as completed.
    r#"s/\.+ done!/. done!/; s/("completed":|completed  +|ever counted, )[01]\b/\1N/g"#,
    r#"s/"(HASH|1\.3[0-9])"/"N"/g; s/(http.*"announce"}) [0-9]+/\1 N/"#,
];

/// A command of the page.
struct Typed {
    /// The lines of the page that its output is.
    lines: std::ops::Range<usize>,
    text: String,
    expected: String,
    exit_code: i32,
}

/// What is typed in blocks of the page behind a heading, in order.
fn typed(page: &str, heading: &str) -> Vec<Typed> {
    let (mut all, mut is_block, mut is_past) = (Vec::<Typed>::new(), false, false);
    for (number, line) in page.lines().enumerate() {
        is_past |= line == heading;
        if line.starts_with("```") {
            is_block = !is_block;
        } else if let Some(text) = line.strip_prefix("$ ").filter(|_| is_block && is_past) {
            let (text, expected) = (text.to_owned(), String::new());
            all.push(Typed { lines: number + 1..number + 1, text, expected, exit_code: 0 });
        } else if let Some(last) = all.last_mut().filter(|_| is_block && is_past) {
            if let Some(taken) = line.strip_prefix("   [") {
                let code = taken.split_once("exit code ").and_then(|(_, it)| it.strip_suffix(']'));
                last.exit_code = code.map_or(0, |it| it.parse().unwrap());
            } else {
                last.expected += &format!("{line}\n");
                last.lines.end = number + 1;
            }
        }
    }
    assert!(all.len() > 20, "{}", all.len());
    all
}

/// Where the page is typed.
enum Host {
    Booted(Booted),
    Substitute(Box<Substitute>),
}

impl Host {
    fn new() -> Self {
        let Some(booted) = Booted::boot() else {
            return Self::Substitute(Box::new(Substitute::new()));
        };
        booted.succeed(&format!("mkdir {PAGE_FOLDER}a {PAGE_FOLDER}b"));
        Self::Booted(booted)
    }

    /// The heading that the page is typed from.
    fn first_heading(&self) -> &'static str {
        match self {
            Self::Booted(_) => FIRST_HEADING,
            Self::Substitute(_) => FIRST_HEADING_WITHOUT_SYSTEMD,
        }
    }

    /// Runs a line: exit code and output.
    fn run(&mut self, line: &str) -> (i32, String) {
        match self {
            Self::Booted(host) => host.run(line),
            Self::Substitute(host) => host.run(line),
        }
    }
}

/// What stands in for the host of the page: its folders, its unit, its clients.
struct Substitute {
    folder: TempDir,
    skep: Option<Skep>,
    /// The log of all processes that have ended.
    log: String,
    /// Clients that were started as daemons.
    clients: Vec<Child>,
}

impl Substitute {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["etc", "state", "files", "files/a", "files/b", "bin"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let program = env!("CARGO_BIN_EXE_skep");
        std::os::unix::fs::symlink(program, folder.path().join("bin/skep")).unwrap();
        let settings = command().arg("config").output().unwrap().stdout;
        fs::write(folder.path().join("etc/skep.toml"), settings).unwrap();
        let mut host = Self { folder, skep: None, log: String::new(), clients: Vec::new() };
        host.start();
        host
    }

    fn start(&mut self) {
        let mut command = command();
        command
            .arg("--config")
            .arg(self.folder.path().join("etc/skep.toml"))
            .env("STATE_DIRECTORY", self.folder.path().join("state"))
            .env("SKEP__SERVER__LISTEN", "127.0.0.1:0");
        self.skep = Some(Skep::spawn(command));
    }

    fn stop(&mut self) {
        let mut skep = self.skep.take().unwrap();
        skep.signal("TERM");
        assert!(skep.wait().success());
        self.log += &skep.log();
    }

    /// The page's names with this host's in their place, and back.
    fn names(&self) -> Vec<(String, String)> {
        let folder = self.folder.path().display();
        // The folder of this test may itself be below the first.
        let mut names = vec![
            (PAGE_FOLDER.to_owned(), format!("{folder}/files/")),
            ("/etc/skep/".to_owned(), format!("{folder}/etc/")),
            ("/var/lib/skep".to_owned(), format!("{folder}/state")),
        ];
        if let Some(skep) = &self.skep {
            assert_eq!(skep.udp[0], skep.tcp[0]);
            names.push(("127.0.0.1:6969".to_owned(), skep.tcp[0].to_string()));
            names.push(("127.0.0.1:6970".to_owned(), skep.admin.to_string()));
        }
        names
    }

    /// Runs a line: exit code and output.
    fn run(&mut self, line: &str) -> (i32, String) {
        // Only calls of the service manager stand beside others, and they have no quotes.
        let steps: Vec<_> = match line.contains("systemctl ") {
            true => line.split_inclusive(" && ").flat_map(|it| it.split_inclusive("; ")).collect(),
            false => vec![line],
        };
        let mut output = String::new();
        for step in steps {
            let (code, text) = self.step(step.trim_end_matches(" && ").trim_end_matches("; "));
            output += &text;
            if code != 0 {
                return (code, output);
            }
        }
        (0, output)
    }

    fn step(&mut self, step: &str) -> (i32, String) {
        let words: Vec<_> = step.split(' ').collect();
        match words[..] {
            ["systemctl", "reload", "skep"] => self.skep.as_ref().unwrap().signal("HUP"),
            ["systemctl", "restart", "skep"] => {
                self.stop();
                self.start();
            }
            ["systemctl", "stop", "skep"] => self.stop(),
            ["journalctl", .., "-n", count] => return (0, self.journal(count.parse().unwrap())),
            ["aria2c", "--daemon", ..] => {
                let line = step.replace("--daemon ", "");
                let mut client = self.shell(&format!("exec {line}"));
                client.stdout(Stdio::null()).stderr(Stdio::null());
                self.clients.push(client.spawn().unwrap());
            }
            _ => {
                let output = self.shell(&format!("{{ {step}\n}} 2>&1")).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                return (output.status.code().unwrap(), self.on_the_page(text));
            }
        }
        (0, String::new())
    }

    /// The last lines of the log of all processes.
    fn journal(&self, count: usize) -> String {
        let log = self.log.clone() + &self.skep.as_ref().map_or_else(String::new, Skep::log);
        // In a journal this line is the one of standard output.
        let line =
            |text| str::split_once(text, "  INFO ready ").map(|(_, it)| format!("ready {it}"));
        let lines = log.lines().map(|text| line(text).unwrap_or_else(|| text.to_owned()));
        let lines: Vec<_> = lines.collect();
        let last = &lines[lines.len().saturating_sub(count)..];
        self.on_the_page(last.iter().map(|line| format!("{line}\n")).collect())
    }

    fn on_the_page(&self, text: String) -> String {
        self.names().into_iter().fold(text, |text, (page, here)| text.replace(&here, &page))
    }

    /// A line of the page, for the shell of this host.
    fn shell(&self, line: &str) -> Command {
        let line = line.replace("runuser -u skep -- ", "");
        let line = self.names().into_iter().fold(line, |it, (page, here)| it.replace(&page, &here));
        let line = ["6881", "6882"].iter().fold(line, |line, port| {
            line.replace(&format!("--listen-port={port}"), "--listen-port=20000-29999")
        });
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("bash");
        shell
            .args(["-c", &line])
            .stdin(Stdio::null())
            .env("PATH", format!("{}/bin:{path}", self.folder.path().display()))
            .env("HOME", self.folder.path());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SKEP_") {
                shell.env_remove(name);
            }
        }
        shell
    }
}

impl Drop for Substitute {
    fn drop(&mut self) {
        for client in &mut self.clients {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// A text without what is not the same twice.
fn masked(text: &str) -> String {
    let mut sed = Command::new("sed")
        .args(["-E", &MASKS.join("; ")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sed.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = sed.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of an output; one that the page has, but for what is masked, as the page has it.
fn kept_where_the_same(page: &[String], output: &str) -> Vec<String> {
    let mut page: Vec<_> = page.iter().map(|line| (masked(line), line)).collect();
    let kept = |line: &str| {
        let same = page.iter().position(|(text, _)| *text == masked(line));
        let line = same.map_or_else(|| line.to_owned(), |at| page.remove(at).1.clone());
        line.replace(" 1 root root ", " 1 skep skep ")
    };
    output.lines().map(kept).collect()
}

/// Whether lines are as on the page, where `…` alone stands for lines, and within one for text.
fn fits(page: &[&str], lines: &[&str]) -> bool {
    match (page, lines) {
        ([], _) => lines.is_empty(),
        (["…", rest @ ..], _) => (0..=lines.len()).any(|skipped| fits(rest, &lines[skipped..])),
        ([first, page @ ..], [line, lines @ ..]) => line_fits(first, line) && fits(page, lines),
        _ => false,
    }
}

fn line_fits(page: &str, line: &str) -> bool {
    let Some((start, behind)) = page.split_once('…') else { return page == line };
    let Some(rest) = line.strip_prefix(start) else { return false };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.into_iter().any(|at| line_fits(behind, &rest[at..]))
}

/// Findings of the doctor are those of each host: that they are named is all that holds everywhere.
fn doctor_fits(page: &str, output: &str) -> bool {
    let is_finding = |word: &&str| {
        let name = |text: &str| text.bytes().all(|it| it.is_ascii_lowercase() || it == b'_');
        word.split_once('.')
            .is_some_and(|(group, rest)| !rest.is_empty() && name(group) && name(rest))
    };
    let names = page.lines().filter_map(|line| line.split_whitespace().nth(1)).filter(is_finding);
    let names: Vec<_> = names.collect();
    names.len() > 3 && names.iter().all(|name| output.contains(name))
}

#[test]
fn the_ten_minutes_pass_as_on_their_page() {
    if !present(&["aria2c", "transmission-create", "jq", "curl"]) || !has_io_uring() {
        return;
    }
    let page = fs::read_to_string(PAGE).unwrap();
    let mut lines: Vec<_> = page.lines().map(str::to_owned).collect();
    let mut host = Host::new();
    let mut differences = Vec::new();
    // From the last to the first, so that earlier ranges stay valid while lines are replaced.
    let mut replaced = Vec::new();
    for typed in typed(&page, host.first_heading()) {
        let expected = masked(&typed.expected);
        let (mut code, mut output) = host.run(&typed.text);
        let is_same = |code: i32, output: &str| {
            let output = masked(output);
            let [mut page, mut here]: [Vec<_>; 2] =
                [&expected, &output].map(|it| it.lines().collect());
            if typed.text.contains("journalctl ") && !page.contains(&"…") {
                // Threads that start write their lines in any order.
                [&mut page, &mut here].into_iter().for_each(|lines: &mut Vec<_>| lines.sort());
            }
            let is_doctor = typed.text.contains("skep doctor");
            let fits = if is_doctor { doctor_fits(&expected, &output) } else { fits(&page, &here) };
            // Nor can every host's kernel settings be set.
            let is_any_code = is_doctor || typed.text.starts_with("sysctl ");
            fits && (is_any_code || code == typed.exit_code)
        };
        // What only looks may look again, until what it looks at has happened.
        let looks = typed.text.starts_with("curl ") || typed.text.contains("journalctl ");
        let again = typed.text.rsplit("; ").next().unwrap().to_owned();
        let begun = Instant::now();
        while looks && !is_same(code, &output) && begun.elapsed() < DEADLINE / 6 {
            (code, output) = host.run(&again);
        }
        if !is_same(code, &output) {
            let expected = &typed.expected;
            let text = &typed.text;
            differences.push(format!("$ {text}\n--- page\n{expected}--- here ({code})\n{output}"));
            replaced.push((typed.lines, output));
        }
    }
    if std::env::var_os("SKEP_WRITE").is_some_and(|value| value == "1") {
        for (range, output) in replaced.into_iter().rev() {
            let kept = kept_where_the_same(&lines[range.clone()], &output);
            lines.splice(range, kept);
        }
        fs::write(Path::new(PAGE), lines.join("\n") + "\n").unwrap();
        differences.clear();
    }
    assert!(
        differences.is_empty(),
        "docs/ten-minutes.md differs; SKEP_WRITE=1 cargo test --test clients ten_minutes writes \
         what is here:\n{}",
        differences.join("\n")
    );
}

#[test]
fn pages_are_compared_by_what_stays_the_same() {
    assert!(fits(&["a", "…", "c"], &["a", "b", "b", "c"]) && fits(&["…"], &[]));
    assert!(!fits(&["a", "…", "c"], &["a", "b"]) && !fits(&["a"], &["a", "a"]));
    assert!(line_fits("a…c", "abbc") && line_fits("a…", "a") && !line_fits("a…c", "abb"));
    let line = "2026-11-21T23:20:09.161584Z  INFO snapshot restored age_s=1 peers=1 ms=0";
    assert_eq!(masked(line), "TIME  INFO snapshot restored age_s=N peers=1 ms=N");
}
