//! Prints the findings as text for people and as JSON for programs.

use std::fmt::Write as _;

use super::finding::{COMMAND, Finding, Severity};

/// Maximum number of columns of a line. Commands are never wrapped.
const COLUMNS_MAX: usize = 96;

/// The column at which further lines of facts, reasons and remedies begin.
const INDENT: usize = 20;

/// An array with an object for each finding, in the order of examination.
pub(super) fn json(findings: &[Finding]) -> String {
    crate::cli::json::pretty(findings)
}

/// Group by group, the worst last, so that it is next to the prompt.
pub(super) fn text(findings: &[Finding]) -> String {
    let mut groups: Vec<&str> = Vec::new();
    for finding in findings {
        if !groups.contains(&finding.group()) {
            groups.push(finding.group());
        }
    }
    let of_group = |group: &str| {
        let mut found: Vec<_> = findings.iter().filter(|it| it.group() == group).collect();
        found.sort_by_key(|it| it.severity);
        found
    };
    groups.sort_by_key(|it| of_group(it).last().map(|it| it.severity));
    let mut out = String::new();
    for group in groups {
        out += group;
        out.push('\n');
        of_group(group).into_iter().for_each(|it| push(&mut out, it));
        out.push('\n');
    }
    out + &summary(findings)
}

fn push(out: &mut String, finding: &Finding) {
    let mut head = format!("  {:<9} {:<23} ", finding.severity.label(), finding.id);
    for line in finding.fact.lines() {
        push_wrapped(out, &head, line);
        head = " ".repeat(INDENT);
    }
    if finding.severity == Severity::Ok {
        return;
    }
    push_wrapped(out, "            why     ", finding.why);
    for (at, line) in finding.remedy.iter().flat_map(|it| it.lines()).enumerate() {
        let head = if at == 0 { "            remedy  " } else { "                    " };
        if line.starts_with(COMMAND) {
            let _ = writeln!(out, "{head}{}", printable(line));
        } else {
            push_wrapped(out, head, line);
        }
    }
}

/// Appends a text, wrapped between words, with further lines indented.
fn push_wrapped(out: &mut String, head: &str, text: &str) {
    out.push_str(head);
    let mut column = head.chars().count();
    // The summary has no head, so its further lines are not indented.
    let indent = if head.is_empty() { 0 } else { INDENT };
    for (at, word) in printable(text).split_whitespace().enumerate() {
        let width = word.chars().count();
        if at > 0 && column + 1 + width > COLUMNS_MAX {
            let _ = write!(out, "\n{:indent$}", "");
            column = indent;
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out.push('\n');
}

/// Escapes control characters: text from files must not control a terminal.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

fn summary(findings: &[Finding]) -> String {
    let of = |severity| findings.iter().filter(move |it| it.severity == severity);
    let counts: Vec<_> =
        Severity::ALL.iter().map(|it| format!("{} {}", of(*it).count(), it.label())).collect();
    let problems: Vec<_> = of(Severity::Problem).map(|it| it.id).collect();
    let mut out = String::new();
    push_wrapped(
        &mut out,
        "",
        &match problems.as_slice() {
            [] => format!("{}: no problem prevents skep from serving", counts.join(", ")),
            _ => format!("{}: see {}", counts.join(", "), problems.join(", ")),
        },
    );
    out
}

#[cfg(test)]
mod tests {
    use super::super::examine;
    use super::super::fake::Fake;
    use super::*;

    fn finding(id: &'static str, severity: Severity) -> Finding {
        let fact = format!("{id} is {}", severity.label());
        let remedy = (severity != Severity::Ok).then(|| "do this\n$ with  that".to_owned());
        Finding { id, severity, fact, why: "it matters", remedy }
    }

    #[test]
    fn the_worst_stands_last() {
        let findings = [
            finding("a.worst", Severity::Problem),
            finding("a.good", Severity::Ok),
            finding("b.good", Severity::Ok),
            finding("c.fair", Severity::Warning),
        ];
        let text = text(&findings);
        let place = |of: &str| text.find(of).unwrap_or_else(|| panic!("{of} is not in\n{text}"));
        let order = ["b\n  ok", "c\n  warning", "a\n  ok", "problem   a.worst", "2 ok, 0 info"];
        assert!(order.is_sorted_by_key(|it| place(it)), "{text}");
        assert!(text.ends_with("2 ok, 0 info, 1 warning, 1 problem: see a.worst\n"), "{text}");
        assert_eq!(text.matches("it matters").count(), 2, "what is ok needs no reason:\n{text}");
        assert!(text.contains("remedy  do this\n                    $ with  that\n"), "{text}");
    }

    #[test]
    fn lines_are_short_and_commands_whole() {
        let text = text(&examine(&Fake::ill().report));
        let wide = |it: &&str| it.chars().count() > COLUMNS_MAX && !it.contains("$ ");
        assert_eq!(text.lines().find(wide), None, "{text}");
        assert!(text.contains("$ ulimit -Hn 1048576\n"), "{text}");
        assert!(!text.contains(" \n"), "{text}");
    }

    #[test]
    fn nothing_from_files_reaches_the_terminal_unescaped() {
        let fact = "\u{1b}[31mred\r".to_owned();
        let remedy = Some("$ rm \u{7}".to_owned());
        let finding = Finding { fact, remedy, ..finding("a.b", Severity::Info) };
        let text = text(&[finding]);
        assert!(text.contains(r"\u{1b}[31mred\r") && text.contains(r"$ rm \u{7}"), "{text}");
    }

    #[test]
    fn programs_get_an_array_of_objects() {
        let text = json(&[finding("a.b", Severity::Warning), finding("a.c", Severity::Ok)]);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            parsed,
            serde_json::json!([
                { "id": "a.b", "severity": "warning", "fact": "a.b is warning",
                  "why": "it matters", "remedy": "do this", "commands": ["with  that"] },
                { "id": "a.c", "severity": "ok", "fact": "a.c is ok",
                  "why": "it matters", "remedy": null, "commands": [] },
            ])
        );
    }
}
