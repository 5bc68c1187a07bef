//! `skep torrent list`, `show` and `remove`: what a running tracker knows of torrents.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::NamedTorrent;
use crate::cli::admin::{
    self, AdminArguments, AdminClient, AdminError, ChangeOutput, CommandError,
};
use crate::cli::doctor::size;
use crate::cli::table::{Cell, Table};
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

Any hash of a hybrid torrent removes it. Its swarm ends as its peers announce next.";

/// Torrents in a list of swarms, by default.
const SWARMS_DEFAULT: usize = 20;

/// Entries in one response.
const PAGE: usize = 1000;

/// Arguments of `list`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(LIST_EXAMPLES, "the tracker refuses or does not respond"))]
pub(in crate::cli) struct ListOptions {
    /// List announced torrents, the largest first, instead of registered ones
    #[arg(long)]
    swarms: bool,
    /// Largest by
    #[arg(long, value_name = "BY", default_value = "peers", requires = "swarms",
          value_parser = ["peers", "seeders", "completed"])]
    sort: String,
    /// List at most N torrents [default: 20 swarms, all registered torrents]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print a JSON object for each torrent
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(SHOW_EXAMPLES, "the torrent is unknown, or no response"))]
pub(in crate::cli) struct ShowOptions {
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
pub(in crate::cli) struct RemoveOptions {
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
pub(super) fn list(options: &ListOptions) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let heads = ["INFO-HASH", "SEEDERS", "LEECHERS", "COMPLETED", "SIZE", "REGISTERED", "NAME"];
    let mut table = Table::new(heads);
    let mut left = options.limit.unwrap_or(usize::MAX);
    let (mut after, mut listed) = (None, 0);
    while left > 0 {
        let limit = left.min(PAGE);
        let page = match options.swarms {
            true => swarms(&mut client, options)?,
            false => registered(&mut client, after.as_deref(), limit)?,
        };
        let torrents = page["torrents"].as_array().map_or(&[][..], Vec::as_slice);
        listed += torrents.len();
        left -= torrents.len().min(left);
        if options.json {
            print_lines(torrents)?;
        } else {
            table.print(&torrents.iter().map(row).collect::<Vec<_>>())?;
        }
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    if listed == 0 && !options.json {
        let what = if options.swarms { "announced" } else { "registered" };
        crate::cli::complain(&format!("no torrent is {what}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The largest swarms, in one response.
fn swarms(client: &mut AdminClient, options: &ListOptions) -> Result<Value, AdminError> {
    let limit = options.limit.unwrap_or(SWARMS_DEFAULT).to_string();
    let parameters = [("sort", options.sort.as_str()), ("limit", &limit)];
    client.get(&format!("/api/v1/torrents{}", admin::query(&parameters)))
}

/// A page of registered torrents.
fn registered(
    client: &mut AdminClient,
    after: Option<&str>,
    limit: usize,
) -> Result<Value, AdminError> {
    let limit = limit.to_string();
    let mut parameters = vec![("registered", "true"), ("limit", &*limit)];
    parameters.extend(after.map(|it| ("after", it)));
    client.get(&format!("/api/v1/torrents{}", admin::query(&parameters)))
}

fn row(torrent: &Value) -> [Cell; 7] {
    let count = |key: &str| Cell::Number(torrent[key].as_u64().unwrap_or_default());
    [
        Cell::Text(torrent["info_hash"].as_str().unwrap_or_default().to_owned()),
        count("seeders"),
        count("leechers"),
        count("completed"),
        Cell::Bytes(torrent["size"].as_u64()),
        Cell::Date(torrent["registered_s"].as_u64()),
        Cell::Text(torrent["name"].as_str().unwrap_or("-").to_owned()),
    ]
}

/// Prints JSON, one value per line.
fn print_lines(values: &[Value]) -> io::Result<()> {
    let lines: String = values.iter().map(|it| format!("{it}\n")).collect();
    io::stdout().lock().write_all(lines.as_bytes())
}

/// Shows one torrent.
pub(super) fn show(options: &ShowOptions) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let path = format!("/api/v1/torrents/{}", options.torrent.info_hash);
    let mut torrent = client.get(&format!("{path}?limit=1000"))?;
    let registration = match torrent["registered_s"].is_null() {
        true => Value::Null,
        false => client.get(&format!("{path}/registration"))?,
    };
    let mut peers = torrent["peers"].take().as_array().cloned().unwrap_or_default();
    let mut next = torrent["next"].take().as_u64().filter(|_| options.peers);
    while let Some(skip) = next {
        let page = client.get(&format!("{path}?limit={PAGE}&skip={skip}"))?;
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

fn peer_row(peer: &Value) -> [Cell; 4] {
    let text = |key: &str| Cell::Text(peer[key].as_str().unwrap_or("-").to_owned());
    let age_s = Cell::Number(peer["age_s"].as_u64().unwrap_or_default());
    [age_s, text("role"), text("kind"), text("address")]
}

/// Unregisters torrents.
pub(super) fn remove(options: &RemoveOptions) -> Result<ExitCode, CommandError> {
    let mut output = ChangeOutput::default();
    let removed = remove_all(options, &mut output);
    output.end(removed)
}

fn remove_all(
    options: &RemoveOptions,
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
            json!({ "torrent": torrent.text, "info_hash": info_hash, "status": status,
                "error": error })
            .to_string()
        } else {
            let (info_hash, text) = (torrent.info_hash, escaped(&torrent.text));
            match error {
                None => format!("removed {info_hash}  {text}"),
                Some(error) => format!("failed  {info_hash}  {text}: {}", escaped(&error)),
            }
        };
        output.print(&(line + "\n"));
    }
    Ok(ExitCode::from(u8::from(!are_removed)))
}
