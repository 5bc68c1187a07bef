//! `skep deny` and `skep allow`: edit the access lists of a running tracker, through its API, which
//! writes the lists' files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::admin::{self, AdminArguments, AdminClient, ChangeOutput, CommandError, PagedList};
use super::info_hash::{FileError, all_of_file, torrent_files};
use super::json;
use super::table::TableCell;
use super::text::{count, escaped};
use crate::access::lists::{ListKind, ListName, parse_value, reason};

const DENY_EXAMPLES: &str = "\
Examples:
  skep deny networks add 192.0.2.0/24 --reason \"flood\"   clients over TCP are shown the reason
  skep deny torrents add magnet:?xt=urn:btih:5e41ab0866b04ad5a1a1b6d5d6bb5bc1e0d28a51
  skep deny torrents add a.torrent           both hashes of a hybrid torrent
  skep deny clients add -- -XL               -- comes before a value with a dash
  skep deny ports add 25 6881-6889
  skep deny networks list --json | jq -r .value
  skep deny networks remove 192.0.2.0/24

A value on a deny list is refused, even if it is on an allow list. A change is in force at once, and
written to the list's file.";

const ALLOW_EXAMPLES: &str = "\
Examples:
  skep allow networks add 10.0.0.0/8 2001:db8::/32
  skep allow torrents add /srv/torrents      every .torrent file in this folder and those below
  skep allow torrents list
  skep allow clients remove -- -qB           -- comes before a value with a dash

While an allow list has an entry, or a setting names its file, what is not on it is refused: from
the first entry on, only what is in the list is served. With the last removal nothing is restricted
by the list any more, or where a setting names its file, nothing is served. A change is in force at
once, and written to the list's file.";

/// Values in one request: with reasons they fit into a body of 2 MB.
const VALUES_MAX: usize = 1000;

/// The deny lists.
#[derive(Debug, Subcommand)]
pub(super) enum DenyCommand {
    /// Info-hashes (40 or 64 hexadecimal digits), magnet links, .torrent files or folders of them
    #[command(subcommand)]
    Torrents(DenyAction),
    /// Networks or addresses of clients: 192.0.2.0/24, 2001:db8::/32, 192.0.2.7
    #[command(subcommand)]
    Networks(DenyAction),
    /// First bytes of peer ids: -XL, -XL0123-; bytes outside ASCII as %1f
    #[command(subcommand)]
    Clients(DenyAction),
    /// Ports that peers listen on: 25, 6881-6889
    #[command(subcommand)]
    Ports(DenyAction),
}

/// The allow lists.
#[derive(Debug, Subcommand)]
pub(super) enum AllowCommand {
    /// Info-hashes (40 or 64 hexadecimal digits), magnet links, .torrent files or folders of them
    #[command(subcommand)]
    Torrents(AllowAction),
    /// Networks or addresses of clients: 192.0.2.0/24, 2001:db8::/32, 192.0.2.7
    #[command(subcommand)]
    Networks(AllowAction),
    /// First bytes of peer ids: -XL, -XL0123-; bytes outside ASCII as %1f
    #[command(subcommand)]
    Clients(AllowAction),
}

/// What to do with a deny list.
#[derive(Debug, Subcommand)]
pub(super) enum DenyAction {
    /// Refuse values from now on
    #[command(after_help = admin::help(DENY_EXAMPLES, "nothing is changed"))]
    Add(AddValuesOptions),
    /// Take values off the list
    #[command(after_help = admin::help(DENY_EXAMPLES, "at least one value is not removed"))]
    Remove(RemoveValuesOptions),
    /// Print the list
    #[command(after_help = admin::help(DENY_EXAMPLES, "the tracker does not respond"))]
    List(ListValuesOptions),
}

/// What to do with an allow list.
#[derive(Debug, Subcommand)]
pub(super) enum AllowAction {
    /// Serve values; what is not on the list is refused from then on
    #[command(after_help = admin::help(ALLOW_EXAMPLES, "nothing is changed"))]
    Add(AddValuesOptions),
    /// Take values off the list
    #[command(after_help = admin::help(ALLOW_EXAMPLES, "at least one value is not removed"))]
    Remove(RemoveValuesOptions),
    /// Print the list
    #[command(after_help = admin::help(ALLOW_EXAMPLES, "the tracker does not respond"))]
    List(ListValuesOptions),
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub(super) struct AddValuesOptions {
    /// Values to add; if one is invalid, none is added
    #[arg(required = true, value_name = "VALUE")]
    values: Vec<String>,
    /// Why, for clients and for those who read the list
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub(super) struct RemoveValuesOptions {
    /// Values to remove, as the list has them; torrents also by their files
    #[arg(required = true, value_name = "VALUE")]
    values: Vec<String>,
    /// Print a JSON object for each value; of a torrent, for each of its hashes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(super) struct ListValuesOptions {
    /// Print a JSON object for each entry
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs `skep deny` and returns its exit code.
pub(super) fn deny(command: DenyCommand) -> ExitCode {
    let (name, action) = match command {
        DenyCommand::Torrents(action) => (ListName::TorrentsDeny, action),
        DenyCommand::Networks(action) => (ListName::NetworksDeny, action),
        DenyCommand::Clients(action) => (ListName::ClientsDeny, action),
        DenyCommand::Ports(action) => (ListName::PortsDeny, action),
    };
    admin::conclude(match action {
        DenyAction::Add(options) => add(name, &options),
        DenyAction::Remove(options) => remove(name, &options),
        DenyAction::List(options) => list(name, &options),
    })
}

/// Runs `skep allow` and returns its exit code.
pub(super) fn allow(command: AllowCommand) -> ExitCode {
    let (name, action) = match command {
        AllowCommand::Torrents(action) => (ListName::TorrentsAllow, action),
        AllowCommand::Networks(action) => (ListName::NetworksAllow, action),
        AllowCommand::Clients(action) => (ListName::ClientsAllow, action),
    };
    admin::conclude(match action {
        AllowAction::Add(options) => add(name, &options),
        AllowAction::Remove(options) => remove(name, &options),
        AllowAction::List(options) => list(name, &options),
    })
}

/// The path of a list.
fn path(name: ListName) -> String {
    format!("/api/v1/access/{}", name.label().replacen('_', "/", 1))
}

/// A value of the command line.
#[derive(Debug, PartialEq, Eq)]
struct NamedValue {
    /// How it is shown: the argument, or the path of a file.
    text: String,
    /// The values that are sent: of a hybrid torrent, both hashes.
    values: Vec<String>,
    /// Whether it is a file.
    is_file: bool,
}

/// The values that arguments name, read before the first request, so that an error names the
/// argument and changes nothing.
fn named(kind: ListKind, arguments: &[String]) -> Result<Vec<NamedValue>, CommandError> {
    let mut all = Vec::new();
    for argument in arguments {
        let path = Path::new(argument);
        if let Some((first, second)) = parse_value(kind, argument) {
            let values = match kind {
                // A link is sent as the list has it.
                ListKind::Torrents => {
                    [Some(first), second].iter().flatten().map(ToString::to_string).collect()
                }
                _ => vec![argument.clone()],
            };
            all.push(NamedValue { text: argument.clone(), values, is_file: false });
        } else if kind == ListKind::Torrents && path.exists() {
            for file in torrent_files(path) {
                all.push(of_file(file).map_err(|error| unchanged(&error))?);
            }
        } else {
            return Err(CommandError::Usage(unfit(kind, argument)));
        }
    }
    Ok(all)
}

/// A file that is none of a torrent is found before anything is sent.
fn unchanged(error: &FileError) -> CommandError {
    CommandError::Usage(format!("{error}; the list was not changed"))
}

/// The values of a `.torrent` file.
fn of_file(file: Result<PathBuf, FileError>) -> Result<NamedValue, FileError> {
    let path = file?;
    let text = path.display().to_string();
    let hashes = all_of_file(&path).map_err(|problem| FileError { path, problem })?;
    let values = hashes.iter().map(ToString::to_string).collect();
    Ok(NamedValue { text, values, is_file: true })
}

/// What is wrong with an argument that is not a value.
fn unfit(kind: ListKind, argument: &str) -> String {
    match kind {
        ListKind::Networks => kind.expected_instead_of(argument),
        ListKind::Torrents => format!(
            "{argument:?} must be {}, or an existing .torrent file or folder of such files",
            kind.allowed()
        ),
        ListKind::Clients | ListKind::Ports => format!("{argument:?} must be {}", kind.allowed()),
    }
}

/// Adds values.
fn add(name: ListName, options: &AddValuesOptions) -> Result<ExitCode, CommandError> {
    reason(options.reason.as_deref().unwrap_or_default().trim())
        .map_err(|allowed| CommandError::Usage(format!("--reason: must be {allowed}")))?;
    let named = named(name.kind(), &options.values)?;
    let all: Vec<_> = named.iter().flat_map(|value| &value.values).collect();
    let mut client = options.admin.client()?;
    let (mut added, mut changed, mut entries) = (0, 0, 0);
    for values in all.chunks(VALUES_MAX) {
        let value = |value: &&String| json!({ "value": value, "reason": options.reason });
        let body = json!({ "add": values.iter().map(value).collect::<Vec<_>>() });
        let change = edit(&mut client, name, &body)?;
        added += change["added"].as_u64().unwrap_or_default();
        // Absent in the response of an earlier version.
        changed += change["changed"].as_u64().unwrap_or_default();
        entries = change["entries"].as_u64().unwrap_or_default();
    }
    let line = if options.json {
        let label = name.label();
        json::line(&json!({
            "list": label, "added": added, "changed": changed, "entries": entries
        }))
    } else {
        let entries = count(entries, "value");
        let edited = match (added, changed) {
            (_, 0) => format!("{added} added"),
            (0, _) => format!("{changed} changed"),
            _ => format!("{added} added, {changed} changed"),
        };
        format!("{}: {edited}, {entries} in the list\n", name.label())
    };
    let mut output = ChangeOutput::default();
    output.print(&line);
    if name.allows() && added > 0 && added == entries {
        let label = name.label();
        super::complain(&format!(
            "note: {label} was empty; from now on only what is in the list is served"
        ));
    }
    output.end(Ok(ExitCode::SUCCESS))
}

/// Changes a list.
fn edit(client: &mut AdminClient, name: ListName, body: &Value) -> Result<Value, CommandError> {
    Ok(client.request(Method::POST, &path(name), body.to_string().into_bytes())?.body)
}

/// Removes values.
fn remove(name: ListName, options: &RemoveValuesOptions) -> Result<ExitCode, CommandError> {
    let values = named(name.kind(), &options.values)?;
    let mut output = ChangeOutput::default();
    let removed = remove_all(name, &values, options, &mut output);
    output.end(removed)
}

fn remove_all(
    name: ListName,
    values: &[NamedValue],
    options: &RemoveValuesOptions,
    output: &mut ChangeOutput,
) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let (mut are_removed, mut is_emptied) = (true, false);
    for NamedValue { text, values, is_file } in values {
        // In JSON each hash of a torrent has a line, and so its own request.
        let count = if options.json { 1 } else { values.len().max(1) };
        let mut is_one_removed = false;
        for values in values.chunks(count) {
            let change = edit(&mut client, name, &json!({ "remove": values }))?;
            let is_removed = change["removed"].as_u64().is_some_and(|it| it > 0);
            is_one_removed |= is_removed;
            is_emptied |= is_removed && change["entries"] == 0;
            let line = match (options.json, is_removed) {
                (true, _) => {
                    let status = if is_removed { "removed" } else { "not_listed" };
                    let mut line = json!({ "value": values[0], "status": status });
                    if *is_file {
                        line["file"] = text.as_str().into();
                    }
                    json::line(&line)
                }
                (false, true) => format!("removed {}\n", escaped(text)),
                (false, false) => format!("failed  {}: not in {}\n", escaped(text), name.label()),
            };
            output.print(&line);
        }
        are_removed &= is_one_removed;
    }
    if name.allows() && is_emptied {
        super::complain(&emptied(&mut client, name)?);
    }
    Ok(ExitCode::from(u8::from(!are_removed)))
}

/// What an allow list without an entry means from now on.
fn emptied(client: &mut AdminClient, name: ListName) -> Result<String, CommandError> {
    let access = client.get("/api/v1/access")?;
    let mut lists = access["lists"].as_array().into_iter().flatten();
    let is_in_force = lists.any(|it| it["list"] == name.label() && it["in_force"] == true);
    let label = name.label();
    Ok(if is_in_force {
        format!("note: {label} is empty, and a setting names its file: nothing is served any more")
    } else {
        format!("note: {label} is empty: nothing is restricted by it any more")
    })
}

/// Prints a list.
fn list(name: ListName, options: &ListValuesOptions) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    match name.kind() {
        ListKind::Torrents => {
            print_list(&mut client, name, options.json, ["VALUE", "REASON", "NAME"], torrent_row)
        }
        _ => print_list(&mut client, name, options.json, ["VALUE", "REASON"], row),
    }
}

fn print_list<const COLUMNS: usize>(
    client: &mut AdminClient,
    name: ListName,
    as_json: bool,
    heads: [&'static str; COLUMNS],
    row: fn(&Value) -> [TableCell; COLUMNS],
) -> Result<ExitCode, CommandError> {
    let list = PagedList {
        path: &path(name),
        parameters: Vec::new(),
        field: "entries",
        entries_max: usize::MAX,
        heads,
        row,
        if_empty: &format!("{} is empty", name.label()),
    };
    list.print(client, as_json)
}

fn row(entry: &Value) -> [TableCell; 2] {
    let text = |key: &str| TableCell::Text(entry[key].as_str().unwrap_or_default().to_owned());
    [text("value"), text("reason")]
}

fn torrent_row(entry: &Value) -> [TableCell; 3] {
    let [value, reason] = row(entry);
    [value, reason, TableCell::Text(entry["name"].as_str().unwrap_or("-").to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_its_path() {
        let paths = [ListName::TorrentsAllow, ListName::PortsDeny].map(path);
        assert_eq!(paths, ["/api/v1/access/torrents/allow", "/api/v1/access/ports/deny"]);
    }

    #[test]
    fn the_value_that_is_wrong_is_named() {
        let values = |them: &[&str]| them.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        assert!(named(ListKind::Networks, &values(&["10.0.0.0/8", "::1"])).is_ok());
        let error = named(ListKind::Networks, &values(&["10.0.0.0/8", "10.0.0.0/33"]));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("\"10.0.0.0/33\" is not a network"), "{error}");
        let host = named(ListKind::Networks, &values(&["10.0.0.1/24"])).unwrap_err().to_string();
        assert!(host.contains("write 10.0.0.0/24"), "{host}");
    }
}
