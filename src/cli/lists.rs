//! `skep deny` and `skep allow`: edit the access lists of a running tracker, through its API, which
//! writes the lists' files.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::admin::{self, AdminArguments, AdminClient, ChangeOutput, CommandError};
use super::table::{Cell, Table};
use super::text::{count, escaped};
use crate::access::lists::{ListKind, ListName, parse_value};

const DENY_EXAMPLES: &str = "\
Examples:
  skep deny networks add 192.0.2.0/24 --reason \"flood\"   clients over TCP are shown the reason
  skep deny torrents add magnet:?xt=urn:btih:5e41ab0866b04ad5a1a1b6d5d6bb5bc1e0d28a51
  skep deny clients add -- -XL               behind -- because of its dash
  skep deny ports add 25 6881-6889
  skep deny networks list --json | jq -r .value
  skep deny networks remove 192.0.2.0/24

What is on a deny list is refused, whatever allows it. The change is in force at once, and written
to the list's file.";

const ALLOW_EXAMPLES: &str = "\
Examples:
  skep allow networks add 10.0.0.0/8 2001:db8::/32
  skep allow torrents list
  skep allow clients remove -- -qB           behind -- because of its dash

While an allow list has an entry, or a setting names its file, what is not on it is refused. The
change is in force at once, and written to the list's file.";

/// Values in one request: with reasons they fit into a body of 2 MB.
const VALUES_MAX: usize = 1000;

/// Entries in one response.
const PAGE: &str = "1000";

/// The deny lists.
#[derive(Debug, Subcommand)]
pub(super) enum DenyCommand {
    /// Info-hashes (40 or 64 hexadecimal digits) or magnet links
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
    /// Info-hashes (40 or 64 hexadecimal digits) or magnet links
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
    Add(AddOptions),
    /// Take values off the list
    #[command(after_help = admin::help(DENY_EXAMPLES, "at least one value is not removed"))]
    Remove(RemoveOptions),
    /// Print the list
    #[command(after_help = admin::help(DENY_EXAMPLES, "the tracker does not respond"))]
    List(ListOptions),
}

/// What to do with an allow list.
#[derive(Debug, Subcommand)]
pub(super) enum AllowAction {
    /// Serve values
    #[command(after_help = admin::help(ALLOW_EXAMPLES, "nothing is changed"))]
    Add(AddOptions),
    /// Take values off the list
    #[command(after_help = admin::help(ALLOW_EXAMPLES, "at least one value is not removed"))]
    Remove(RemoveOptions),
    /// Print the list
    #[command(after_help = admin::help(ALLOW_EXAMPLES, "the tracker does not respond"))]
    List(ListOptions),
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub(super) struct AddOptions {
    /// Values to add; all of them, or none
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
pub(super) struct RemoveOptions {
    /// Values to remove, as the list has them
    #[arg(required = true, value_name = "VALUE")]
    values: Vec<String>,
    /// Print a JSON object for each value
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(super) struct ListOptions {
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

/// Checks values before a request, so that an error names the value.
fn check(kind: ListKind, values: &[String]) -> Result<(), CommandError> {
    match values.iter().find(|it| parse_value(kind, it).is_none()) {
        None => Ok(()),
        Some(value) if kind == ListKind::Networks => {
            Err(CommandError::Usage(kind.expected_instead_of(value)))
        }
        Some(value) => Err(CommandError::Usage(format!("{value:?} must be {}", kind.allowed()))),
    }
}

/// Adds values.
fn add(name: ListName, options: &AddOptions) -> Result<ExitCode, CommandError> {
    check(name.kind(), &options.values)?;
    let mut client = options.admin.client()?;
    let (mut added, mut entries) = (0, 0);
    for values in options.values.chunks(VALUES_MAX) {
        let value = |value: &String| json!({ "value": value, "reason": options.reason });
        let body = json!({ "add": values.iter().map(value).collect::<Vec<_>>() });
        let change = edit(&mut client, name, &body)?;
        added += change["added"].as_u64().unwrap_or_default();
        entries = change["entries"].as_u64().unwrap_or_default();
    }
    let line = if options.json {
        json!({ "list": name.label(), "added": added, "entries": entries }).to_string()
    } else {
        let entries = count(entries, "value");
        format!("{}: {added} added, {entries} in the list", name.label())
    };
    let mut output = ChangeOutput::default();
    output.print(&(line + "\n"));
    output.end(Ok(ExitCode::SUCCESS))
}

/// Changes a list.
fn edit(client: &mut AdminClient, name: ListName, body: &Value) -> Result<Value, CommandError> {
    Ok(client.request(Method::POST, &path(name), body.to_string().into_bytes())?.body)
}

/// Removes values.
fn remove(name: ListName, options: &RemoveOptions) -> Result<ExitCode, CommandError> {
    check(name.kind(), &options.values)?;
    let mut output = ChangeOutput::default();
    let removed = remove_all(name, options, &mut output);
    output.end(removed)
}

fn remove_all(
    name: ListName,
    options: &RemoveOptions,
    output: &mut ChangeOutput,
) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let mut are_removed = true;
    for value in &options.values {
        let change = edit(&mut client, name, &json!({ "remove": [value] }))?;
        let is_removed = change["removed"].as_u64().is_some_and(|it| it > 0);
        are_removed &= is_removed;
        let line = match (options.json, is_removed) {
            (true, _) => {
                let status = if is_removed { "removed" } else { "not_listed" };
                json!({ "value": value, "status": status }).to_string()
            }
            (false, true) => format!("removed {}", escaped(value)),
            (false, false) => format!("failed  {}: not in {}", escaped(value), name.label()),
        };
        output.print(&(line + "\n"));
    }
    Ok(ExitCode::from(u8::from(!are_removed)))
}

/// Prints a list.
fn list(name: ListName, options: &ListOptions) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let mut table = Table::new(["VALUE", "REASON"]);
    let (mut after, mut has_any) = (None::<String>, false);
    loop {
        let mut parameters = vec![("limit", PAGE)];
        parameters.extend(after.as_deref().map(|it| ("after", it)));
        let page = client.get(&format!("{}{}", path(name), admin::query(&parameters)))?;
        let entries = page["entries"].as_array().map_or(&[][..], Vec::as_slice);
        has_any |= !entries.is_empty();
        if options.json {
            let lines: String = entries.iter().map(|it| format!("{it}\n")).collect();
            io::stdout().lock().write_all(lines.as_bytes())?;
        } else {
            table.print(&entries.iter().map(row).collect::<Vec<_>>())?;
        }
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    if !has_any && !options.json {
        super::complain(&format!("{} is empty", name.label()));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(entry: &Value) -> [Cell; 2] {
    let text = |key: &str| Cell::Text(entry[key].as_str().unwrap_or_default().to_owned());
    [text("value"), text("reason")]
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
        assert!(check(ListKind::Networks, &values(&["10.0.0.0/8", "::1"])).is_ok());
        let error = check(ListKind::Networks, &values(&["10.0.0.0/8", "10.0.0.0/33"]));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("\"10.0.0.0/33\" is not a network"), "{error}");
        let host = check(ListKind::Networks, &values(&["10.0.0.1/24"])).unwrap_err().to_string();
        assert!(host.contains("write 10.0.0.0/24"), "{host}");
    }
}
