//! `skep torrent list`, `show` and `remove`: what a running tracker knows of torrents.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::NamedTorrent;
use crate::cli::admin::{self, AdminArguments, AdminError, ChangeOutput, CommandError, PagedList};
use crate::cli::doctor::size;
use crate::cli::json;
use crate::cli::table::{Table, TableCell};
use crate::cli::text::{date, escaped};
use crate::frontend::figures::grouped;

const LIST_EXAMPLES: &str = "\
Examples:
  skep torrent list                          every registered torrent
  skep torrent list --swarms                 the 20 largest swarms, registered or not
  skep torrent list --swarms --sort completed --limit 100
  skep torrent list --json | jq -r .name     for programs: one object per line

Where standard output is not a terminal, columns are separated by tabs, without heads: info-hash,
seeders, leechers, completed, bytes, registered, name. A - stands for what is unknown.";

const SHOW_EXAMPLES: &str = "\
Examples:
  skep torrent show 5e41ab0866b04ad5a1a1b6d5d6bb5bc1e0d28a51
  skep torrent show ubuntu.torrent           by its file
  skep torrent show --peers HASH             with every peer
  skep torrent show --json --peers HASH";

const REMOVE_EXAMPLES: &str = "\
Examples:
  skep torrent remove 5e41ab0866b04ad5a1a1b6d5d6bb5bc1e0d28a51
  skep torrent remove old/*.torrent          by their files

Any hash of a hybrid torrent removes it. Its peers are refused at their next announce.";

/// Torrents in a list of swarms, by default.
const SWARMS_DEFAULT: usize = 20;

/// Torrents in a list of swarms, at most: the API has no further pages of it.
const SWARMS_MAX: usize = 1000;

/// Peers in one response.
const PEERS_PAGE: usize = 1000;

/// Arguments of `list`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(LIST_EXAMPLES, "the tracker refuses or does not respond"))]
pub(in crate::cli) struct ListTorrentsOptions {
    /// List announced torrents, the largest first, instead of registered ones
    #[arg(long)]
    swarms: bool,
    /// Sort swarms by
    #[arg(long, value_name = "BY", default_value = "peers", requires = "swarms",
          value_parser = ["peers", "seeders", "completed"])]
    sort: String,
    /// List at most N torrents [default: 20 swarms, all registered torrents]
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,
    /// Print a JSON object for each torrent
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Parses a number of entries.
fn positive(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|number| *number > 0).ok_or("allowed: a whole number, 1 or more")
}

/// Arguments of `show`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(SHOW_EXAMPLES, "the torrent is unknown, or no response"))]
pub(in crate::cli) struct ShowTorrentOptions {
    /// An info-hash, a magnet link, or a .torrent file
    #[arg(value_name = "HASH|FILE")]
    torrent: NamedTorrent,
    /// List every peer
    #[arg(long)]
    peers: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Arguments of `remove`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(REMOVE_EXAMPLES, "at least one torrent is not removed"))]
pub(in crate::cli) struct RemoveTorrentsOptions {
    /// Info-hashes, magnet links, or .torrent files
    #[arg(required = true, value_name = "HASH|FILE")]
    torrents: Vec<NamedTorrent>,
    /// Print a JSON object for each torrent
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Lists torrents.
pub(super) fn list(options: &ListTorrentsOptions) -> Result<ExitCode, CommandError> {
    let (selection, entries_max) = match (options.swarms, options.limit) {
        (true, Some(limit)) if limit > SWARMS_MAX => {
            let problem = format!("--limit: at most {SWARMS_MAX} with --swarms");
            return Err(CommandError::Usage(problem));
        }
        (true, limit) => (("sort", &*options.sort), limit.unwrap_or(SWARMS_DEFAULT)),
        (false, limit) => (("registered", "true"), limit.unwrap_or(usize::MAX)),
    };
    let mut client = options.admin.client()?;
    let list = PagedList {
        path: "/api/v1/torrents",
        parameters: vec![selection],
        field: "torrents",
        entries_max,
        heads: ["INFO-HASH", "SEEDERS", "LEECHERS", "COMPLETED", "SIZE", "REGISTERED", "NAME"],
        row,
        if_empty: if options.swarms {
            "no torrent has been announced"
        } else {
            "no torrent is registered"
        },
    };
    list.print(&mut client, options.json).map_err(|error| match error {
        // Of a tracker that registers nothing, most likely the swarms are wanted.
        CommandError::Admin(AdminError::WrongMode(message)) if !options.swarms => {
            CommandError::Failed(format!("{message}; --swarms lists announced torrents"))
        }
        other => other,
    })
}

fn row(torrent: &Value) -> [TableCell; 7] {
    let count = |key: &str| TableCell::Number(torrent[key].as_u64().unwrap_or_default());
    [
        TableCell::Text(torrent["info_hash"].as_str().unwrap_or_default().to_owned()),
        count("seeders"),
        count("leechers"),
        count("completed"),
        TableCell::Bytes(torrent["size"].as_u64()),
        TableCell::Date(torrent["registered_s"].as_u64()),
        TableCell::Text(torrent["name"].as_str().unwrap_or("-").to_owned()),
    ]
}

/// Prints JSON, one value per line.
fn print_lines(values: &[Value]) -> io::Result<()> {
    io::stdout().lock().write_all(json::lines(values).as_bytes())
}

/// Shows one torrent.
pub(super) fn show(options: &ShowTorrentOptions) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let path = format!("/api/v1/torrents/{}", options.torrent.info_hash);
    let mut torrent = client.get(&format!("{path}?limit={PEERS_PAGE}"))?;
    let registration = match torrent["registered_s"].is_null() {
        true => Value::Null,
        false => client.get(&format!("{path}/registration"))?,
    };
    let mut peers = torrent["peers"].take().as_array().cloned().unwrap_or_default();
    let mut next = torrent["next"].take().as_u64().filter(|_| options.peers);
    while let Some(skip) = next {
        let page = client.get(&format!("{path}?limit={PEERS_PAGE}&skip={skip}"))?;
        peers.extend(page["peers"].as_array().cloned().unwrap_or_default());
        next = page["next"].as_u64();
    }
    if options.json {
        print_lines(&[as_json(&torrent, registration, options.peers.then_some(peers))])?;
        return Ok(ExitCode::SUCCESS);
    }
    io::stdout().lock().write_all(as_text(&torrent, &registration).as_bytes())?;
    if options.peers {
        let mut table = Table::new(["AGE_S", "ROLE", "KIND", "ADDRESS"]);
        table.print(&peers.iter().map(peer_row).collect::<Vec<_>>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The counts of a torrent with its registration, and its peers if they are wanted.
fn as_json(torrent: &Value, registration: Value, peers: Option<Vec<Value>>) -> Value {
    let mut value = json!({ "info_hash": torrent["info_hash"], "name": torrent["name"] });
    for key in ["seeders", "leechers", "downloaders", "completed"] {
        value[key] = torrent[key].clone();
    }
    value["registration"] = registration;
    if let Some(peers) = peers {
        value["peers"] = peers.into();
    }
    value
}

fn as_text(torrent: &Value, registration: &Value) -> String {
    let text = |value: &Value| value.as_str().map(escaped);
    let number = |value: &Value| value.as_u64();
    let count = |key: &str| number(&torrent[key]).map(grouped);
    let registered = number(&torrent["registered_s"]).map_or_else(|| "no".to_owned(), date);
    let lines = [
        ("info-hash", text(&torrent["info_hash"])),
        ("v2 hash", text(&registration["info_hash_v2"])),
        ("name", text(&torrent["name"])),
        ("size", number(&registration["size"]).map(size)),
        ("piece", number(&registration["piece_length"]).map(size)),
        ("comment", text(&registration["comment"])),
        ("created by", text(&registration["created_by"])),
        ("created", number(&registration["created_s"]).map(date)),
        ("registered", Some(registered)),
        ("seeders", count("seeders")),
        ("leechers", count("leechers")),
        ("completed", count("completed")),
    ];
    let lines = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    lines.map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

fn peer_row(peer: &Value) -> [TableCell; 4] {
    let text = |key: &str| TableCell::Text(peer[key].as_str().unwrap_or("-").to_owned());
    let age_s = TableCell::Number(peer["age_s"].as_u64().unwrap_or_default());
    [age_s, text("role"), text("kind"), text("address")]
}

/// Unregisters torrents.
pub(super) fn remove(options: &RemoveTorrentsOptions) -> Result<ExitCode, CommandError> {
    let mut output = ChangeOutput::default();
    let removed = remove_all(options, &mut output);
    output.end(removed)
}

fn remove_all(
    options: &RemoveTorrentsOptions,
    output: &mut ChangeOutput,
) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let mut are_removed = true;
    for torrent in &options.torrents {
        let target = format!("/api/v1/torrents/{}", torrent.info_hash);
        let error = match client.request(Method::DELETE, &target, Vec::new()) {
            Ok(_) => None,
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => Some(error.to_string()),
        };
        are_removed &= error.is_none();
        let line = if options.json {
            let status = if error.is_none() { "removed" } else { "failed" };
            let info_hash = torrent.info_hash.to_string();
            json::line(&json!({ "torrent": torrent.text, "info_hash": info_hash, "status": status,
                "error": error }))
        } else {
            let (info_hash, text) = (torrent.info_hash.to_string(), escaped(&torrent.text));
            // What was named by its hash is not named twice.
            let named = match text.eq_ignore_ascii_case(&info_hash) {
                true => info_hash,
                false => format!("{info_hash}  {text}"),
            };
            match error {
                None => format!("removed {named}\n"),
                Some(error) => format!("failed  {named}: {}\n", escaped(&error)),
            }
        };
        output.print(&line);
    }
    Ok(ExitCode::from(u8::from(!are_removed)))
}
