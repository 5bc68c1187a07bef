//! `skep passkey import`: many passkeys from a file or standard input. The whole input is checked
//! before the first request, so that a bad line changes nothing.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::{NewPasskeyArguments, NewPasskeyBody, PASSKEYS};
use crate::access::passkey::{NAME_BYTES_MAX, digest_of};
use crate::cli::admin::{self, ChangeOutput, CommandError};
use crate::cli::json;
use crate::cli::table::{Table, TableCell};
use crate::cli::text::count;
use crate::sys::regular_file;

const EXAMPLES: &str = "\
Examples:
  skep passkey import users.txt              a passkey and a name in each line
  skep passkey import --issue names.txt > new.txt    a name in each line, each gets a new passkey
  mysql -BN -e 'select passkey, username from users' site | skep passkey import -

Without --issue, a line is a passkey of 32 hexadecimal digits and, behind blanks, a tab or a comma,
the holder's name. Empty lines and those that begin with # are ignored. If a line is wrong, nothing
is imported. A passkey that is valid already stays as it is, so an import can be repeated.

Each line of output has status (imported, issued or known), id, passkey (only a new one) and name.";

/// The longest input, in bytes: as many passkeys as a tracker may have.
const INPUT_BYTES_MAX: u64 = 256 << 20;

/// Passkeys in one request: the most that the API accepts.
const REQUEST_MAX: usize = 1000;

/// Faults that are printed; of further ones the number is.
const FAULTS_MAX: usize = 20;

/// Arguments of `import`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(EXAMPLES, "a line is wrong, or the tracker refuses"))]
pub(in crate::cli) struct Options {
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Issue a new passkey for each line, which is a name
    #[arg(long)]
    issue: bool,
    #[command(flatten)]
    new: NewPasskeyArguments,
}

/// A line of the input.
#[derive(Debug, PartialEq, Eq)]
struct ImportLine<'a> {
    passkey: Option<&'a str>,
    name: &'a str,
}

/// Imports passkeys.
pub(super) fn run(options: &Options) -> Result<ExitCode, CommandError> {
    let shown = match options.file == Path::new("-") {
        true => "standard input".into(),
        false => options.file.display().to_string(),
    };
    let text = read(&options.file)
        .map_err(|error| CommandError::Failed(format!("cannot read {shown}: {error}")))?;
    let entries = parse(&text, options.issue).map_err(|faults| {
        let more = faults.len().saturating_sub(FAULTS_MAX);
        let first: String =
            faults.iter().take(FAULTS_MAX).map(|it| format!("{shown}:{it}; ")).collect();
        let more = if more > 0 { format!("and {more} more; ") } else { String::new() };
        CommandError::Failed(format!("{first}{more}nothing is imported"))
    })?;
    let mut output = ChangeOutput::default();
    let imported = import(options, &entries, &mut output);
    output.end(imported)
}

/// Imports all entries. New passkeys are shown only now: if they cannot be printed, no further ones
/// are issued.
fn import(
    options: &Options,
    entries: &[ImportLine<'_>],
    output: &mut ChangeOutput,
) -> Result<ExitCode, CommandError> {
    let NewPasskeyArguments { json: as_json, limits, admin } = &options.new;
    let mut client = admin.client()?;
    let target = format!("{PASSKEYS}/import");
    let mut table = Table::new(["STATUS", "ID", "PASSKEY", "NAME"]);
    let (mut done, mut known) = (0, 0);
    for some in entries.chunks(REQUEST_MAX) {
        let body = |entry: &ImportLine<'_>| {
            let ImportLine { passkey, name } = *entry;
            json!(NewPasskeyBody { name, passkey, limits })
        };
        let body = json!({ "passkeys": some.iter().map(body).collect::<Vec<_>>() });
        let body = body.to_string().into_bytes();
        // Only passkeys that clients have can be imported twice without effect.
        let response = match options.issue {
            true => client.request_once(Method::POST, &target, body),
            false => client.request(Method::POST, &target, body),
        };
        let response = response.map_err(|error| {
            let rest = entries.len() - done;
            CommandError::Failed(format!("{error}; {} not imported", count(rest as u64, "line")))
        })?;
        let results = response.body["passkeys"].as_array().cloned().unwrap_or_default();
        done += results.len();
        known += results.iter().filter(|it| it["status"] == "known").count();
        if *as_json {
            output.print(&json::lines(&results));
        } else {
            output.keep(|| table.print(&results.iter().map(row).collect::<Vec<_>>()));
        }
        if options.issue
            && let Some(error) = output.take_error()
        {
            return Err(lost(&error, &results, entries.len() - done));
        }
    }
    let added = count((done - known) as u64, "passkey");
    crate::cli::complain(&format!("{added} added, {known} known"));
    Ok(ExitCode::SUCCESS)
}

/// The error where new passkeys were issued and could not be printed.
fn lost(error: &io::Error, issued: &[Value], rest: usize) -> CommandError {
    let (number, rest) = (count(issued.len() as u64, "passkey"), count(rest as u64, "line"));
    let ids: Vec<_> = issued.iter().filter_map(|it| it["id"].as_str()).collect();
    CommandError::Failed(format!(
        "cannot write to standard output: {error}; issued, and some or all of them not shown: \
         {number}; not imported: {rest}; remedy: revoke those that are lost, skep passkey revoke \
         {}",
        ids.join(" ")
    ))
}

fn row(result: &Value) -> [TableCell; 4] {
    let text = |key: &str| TableCell::Text(result[key].as_str().unwrap_or("-").to_owned());
    [text("status"), text("id"), text("passkey"), text("name")]
}

/// Reads a file, or standard input.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_string(&mut text)?
    } else {
        regular_file::open(path)?.take(INPUT_BYTES_MAX + 1).read_to_string(&mut text)?
    };
    if read as u64 > INPUT_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {INPUT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Parses all lines, or returns every fault with its line's number.
fn parse(text: &str, issue: bool) -> Result<Vec<ImportLine<'_>>, Vec<String>> {
    let (mut entries, mut faults) = (Vec::new(), Vec::new());
    let mut first_lines = HashMap::new();
    for (line, at) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = if issue { ImportLine { passkey: None, name: line } } else { split(line) };
        let before = entry.passkey.map(str::to_ascii_lowercase);
        let before = before.and_then(|it| first_lines.insert(it, at));
        match (fault(&entry), before) {
            (Some(fault), _) => faults.push(format!("{at}: {fault}")),
            (None, Some(first)) => {
                faults.push(format!("{at}: the passkey is that of line {first}"));
            }
            (None, None) => entries.push(entry),
        }
    }
    if entries.is_empty() && faults.is_empty() {
        faults.push("1: no line has a passkey".into());
    }
    if faults.is_empty() { Ok(entries) } else { Err(faults) }
}

/// Splits a line into a passkey and a name.
fn split(line: &str) -> ImportLine<'_> {
    let (passkey, name) = line.split_once(is_separator).unwrap_or((line, ""));
    ImportLine { passkey: Some(passkey), name: name.trim_matches(is_separator) }
}

/// Whether a character is between a passkey and a name.
fn is_separator(character: char) -> bool {
    character.is_whitespace() || character == ','
}

/// What is wrong with a line. A passkey is not repeated: it may be another's, misplaced.
fn fault(entry: &ImportLine<'_>) -> Option<&'static str> {
    let is_passkey = |it: &str| digest_of(it).is_some();
    if !entry.passkey.is_none_or(is_passkey) {
        return Some("a line must begin with a passkey of 32 hexadecimal digits (see --issue)");
    }
    // As a name, the passkey would be kept, logged and listed.
    let first = entry.name.split(is_separator).next().unwrap_or_default();
    if entry.passkey.is_none() && is_passkey(first) {
        return Some("the line begins with a passkey; with --issue a line is a name alone");
    }
    let is_name = entry.name.len() <= NAME_BYTES_MAX && !entry.name.chars().any(char::is_control);
    (!is_name).then_some("a name has at most 100 bytes, and no control characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_passkeys_with_names() {
        let keys = ["0a", "0B", "0c", "0d"].map(|it| it.repeat(16));
        let [a, b, c, d] = &keys;
        let text = format!("# users\n\n{a} ann lee\r\n{b}\tbob\n{c},\"x\", y\n  {d}\n");
        let found = parse(&text, false).unwrap();
        let entry = |passkey, name| ImportLine { passkey: Some(passkey), name };
        let expected = [entry(a, "ann lee"), entry(b, "bob"), entry(c, "\"x\", y"), entry(d, "")];
        assert_eq!(found, expected);
        let names = parse("ann lee\n# x\nbob\n", true).unwrap();
        let entry = |name| ImportLine { passkey: None, name };
        assert_eq!(names, [entry("ann lee"), entry("bob")]);
    }

    #[test]
    fn every_fault_has_its_line() {
        let key = "0a".repeat(16);
        let long = "x".repeat(101);
        let text =
            format!("ann\n{key} ann\n{} bob\nabc\n{key}0 x\n{key} {long}", key.to_uppercase());
        let faults = parse(&text, false).unwrap_err();
        let lines: Vec<_> = faults.iter().map(|it| it.split_once(": ").unwrap()).collect();
        assert_eq!(lines.iter().map(|it| it.0).collect::<Vec<_>>(), ["1", "3", "4", "5", "6"]);
        assert_eq!(lines[1].1, "the passkey is that of line 2");
        assert!(lines[0].1.contains("32 hexadecimal") && lines[4].1.contains("100 bytes"));
        assert!(!faults.concat().contains(&key));
        assert!(parse("# nothing\n", false).unwrap_err()[0].contains("no line"));
        assert_eq!(parse(&long, true).unwrap_err().len(), 1);
        for line in [&key, &format!("{key},ann")] {
            let faults = parse(line, true).unwrap_err();
            assert!(faults[0].contains("begins with a passkey") && !faults[0].contains(&key));
        }
    }
}
