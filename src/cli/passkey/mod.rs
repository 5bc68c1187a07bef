//! `skep passkey`: issues, lists, revokes and imports passkeys of a running private tracker.

mod import;

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};

use super::admin::{
    self, AdminArguments, AdminClient, AdminError, ChangeOutput, CommandError, PagedList,
};
use super::json;
use super::table::TableCell;
use super::text::{count, escaped};
use crate::access::passkey::{NAME_BYTES_MAX, digest_of, id_of};

const ADD_EXAMPLES: &str = "\
Examples:
  skep passkey add ann                       print a new passkey; it is shown only now
  skep passkey add ann --torrents 20 --peers 40
  skep passkey add --json ann | jq -r .passkey

The passkey is the last part of the announce URL: http://HOST:6969/announce/PASSKEY. A name is for
people: several passkeys may have it, for instance while one replaces another.";

const LIST_EXAMPLES: &str = "\
Examples:
  skep passkey list                          what each passkey has moved
  skep passkey list --name ann
  skep passkey list --json | jq -r 'select(.uploaded < .downloaded) | .name'

Where standard output is not a terminal, columns are separated by tabs, without heads: id, torrents,
peers, bytes uploaded, bytes downloaded, announces, issued, name.";

const REVOKE_EXAMPLES: &str = "\
Examples:
  skep passkey revoke ann                    by its name, if only one passkey has it
  skep passkey revoke e4147ab02c6f19d8       by its id, as in `skep passkey list`
  skep passkey revoke 0123456789abcdef0123456789abcdef    a leaked passkey itself

A revoked passkey is invalid from the next announce on, and its totals are gone.";

/// The path of the passkeys.
const PASSKEYS: &str = "/api/v1/passkeys";

/// Subcommands of `skep passkey`.
#[derive(Debug, Subcommand)]
pub(super) enum PasskeyCommand {
    /// Issue a passkey
    Add(IssuePasskeyOptions),
    /// List passkeys with their totals
    List(ListPasskeysOptions),
    /// Revoke passkeys
    Revoke(RevokePasskeysOptions),
    /// Add many passkeys: those that clients have from another tracker, or new ones
    Import(import::Options),
}

/// Arguments of `add`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(ADD_EXAMPLES, "no passkey has been issued"))]
pub(super) struct IssuePasskeyOptions {
    /// The holder's name
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    #[command(flatten)]
    new: NewPasskeyArguments,
}

/// The arguments of both subcommands that add passkeys.
#[derive(Debug, Args)]
struct NewPasskeyArguments {
    /// Print a JSON object for each passkey
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Limits of new passkeys, as in the API.
#[derive(Clone, Debug, Args, Serialize)]
#[command(next_help_heading = "Limits")]
struct LimitArguments {
    /// Torrents at once [default: 5000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    torrents: Option<u32>,
    /// Peers at once [default: twice the torrents, at least 10000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<u32>,
    /// Announces per minute [default: as many as torrents, at least 600]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    announces_per_minute: Option<u32>,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(LIST_EXAMPLES, "the tracker refuses or does not respond"))]
pub(super) struct ListPasskeysOptions {
    /// Only passkeys with exactly this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print a JSON object for each passkey
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Arguments of `revoke`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(REVOKE_EXAMPLES, "at least one passkey is not revoked"))]
pub(super) struct RevokePasskeysOptions {
    /// Ids, names, or passkeys themselves
    #[arg(required = true, value_name = "ID|NAME|PASSKEY",
          value_parser = NonEmptyStringValueParser::new())]
    passkeys: Vec<String>,
    /// Print a JSON object for each passkey
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Parses a name: not blank, so that somebody can find the passkey later.
fn name(text: &str) -> Result<String, &'static str> {
    let is_sound = !text.trim().is_empty()
        && text.len() <= NAME_BYTES_MAX
        && !text.chars().any(char::is_control);
    match is_sound {
        true => Ok(text.to_owned()),
        false => {
            Err("allowed: a text of 1 to 100 bytes without control characters, and not only spaces")
        }
    }
}

/// Runs the command and returns its exit code.
pub(super) fn run(command: PasskeyCommand) -> ExitCode {
    admin::conclude(match command {
        PasskeyCommand::Add(options) => add(&options),
        PasskeyCommand::List(options) => list(&options),
        PasskeyCommand::Revoke(options) => revoke(&options),
        PasskeyCommand::Import(options) => import::run(&options),
    })
}

/// The fields of a new passkey in a request.
#[derive(Serialize)]
struct NewPasskeyBody<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    passkey: Option<&'a str>,
    #[serde(flatten)]
    limits: &'a LimitArguments,
}

/// Issues a passkey.
fn add(options: &IssuePasskeyOptions) -> Result<ExitCode, CommandError> {
    let NewPasskeyArguments { json: as_json, limits, admin } = &options.new;
    let mut client = admin.client()?;
    let body = NewPasskeyBody { name: &options.name, passkey: None, limits };
    let body = json!(body).to_string().into_bytes();
    let new = client.request_once(Method::POST, PASSKEYS, body)?.body;
    let text = |key: &str| escaped(new[key].as_str().unwrap_or_default());
    let (passkey, id, name) = (text("passkey"), text("id"), text("name"));
    let lines = match as_json {
        true => json::line(&new),
        false => format!(
            "passkey  {passkey}\nid       {id}\nname     {name}\npath     /announce/{passkey}\n"
        ),
    };
    let mut output = ChangeOutput::default();
    output.print(&lines);
    if let Some(error) = output.take_error() {
        return Err(CommandError::Failed(format!(
            "cannot write to standard output: {error}; a passkey was issued and is lost, because \
             it is shown only once; remedy: revoke it, skep passkey revoke {id}"
        )));
    }
    if *as_json {
        return Ok(ExitCode::SUCCESS);
    }
    // The passkey is issued, whatever becomes of this question.
    let others = named(&mut client, &options.name).unwrap_or_default().len().saturating_sub(1);
    if others > 0 {
        let others = count(others as u64, "other passkey");
        super::complain(&format!(
            "note: the name is also that of {others}; `skep passkey list --name` shows them"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The passkeys with this name; at most 1000.
fn named(client: &mut AdminClient, name: &str) -> Result<Vec<Value>, AdminError> {
    let query = admin::query(&[("limit", "1000"), ("name", name)]);
    let page = client.get(&format!("{PASSKEYS}{query}"))?;
    Ok(page["passkeys"].as_array().cloned().unwrap_or_default())
}

/// Lists passkeys.
fn list(options: &ListPasskeysOptions) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let list = PagedList {
        path: PASSKEYS,
        parameters: options.name.as_deref().map(|name| ("name", name)).into_iter().collect(),
        field: "passkeys",
        entries_max: usize::MAX,
        heads: ["ID", "TORRENTS", "PEERS", "UP", "DOWN", "ANNOUNCES", "ISSUED", "NAME"],
        row,
        if_empty: match options.name {
            Some(_) => "no passkey has this name",
            None => "no passkey has been issued",
        },
    };
    list.print(&mut client, options.json)
}

fn row(passkey: &Value) -> [TableCell; 8] {
    let text = |key: &str| TableCell::Text(passkey[key].as_str().unwrap_or_default().to_owned());
    let number = |key: &str| TableCell::Number(passkey[key].as_u64().unwrap_or_default());
    [
        text("id"),
        number("torrents"),
        number("peers"),
        TableCell::Bytes(passkey["uploaded"].as_u64()),
        TableCell::Bytes(passkey["downloaded"].as_u64()),
        number("announces"),
        TableCell::Date(passkey["issued_s"].as_u64()),
        text("name"),
    ]
}

/// Revokes passkeys.
fn revoke(options: &RevokePasskeysOptions) -> Result<ExitCode, CommandError> {
    let mut output = ChangeOutput::default();
    let revoked = revoke_all(options, &mut output);
    output.end(revoked)
}

fn revoke_all(
    options: &RevokePasskeysOptions,
    output: &mut ChangeOutput,
) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let mut are_revoked = true;
    for text in &options.passkeys {
        let done = match revoke_one(&mut client, text) {
            Err(CommandError::Admin(error)) if error.is_final() => return Err(error.into()),
            done => done,
        };
        are_revoked &= done.is_ok();
        // A passkey is not repeated on a screen or in a log.
        let shown = if digest_of(text).is_some() { "a passkey" } else { text.as_str() };
        let line = match (options.json, done) {
            (true, Ok(id)) => json::line(&json!({ "id": id, "status": "revoked", "error": null })),
            (true, Err(error)) => {
                let error = error.to_string();
                json::line(&json!({ "id": null, "status": "failed", "error": error }))
            }
            (false, Ok(id)) => format!("revoked {id}  {}\n", escaped(shown)),
            (false, Err(error)) => {
                format!("failed  {}: {}\n", escaped(shown), escaped(&error.to_string()))
            }
        };
        output.print(&line);
    }
    Ok(ExitCode::from(u8::from(!are_revoked)))
}

/// Revokes the passkey that a text names; returns its id.
fn revoke_one(client: &mut AdminClient, text: &str) -> Result<String, CommandError> {
    let is_id = text.len() == 16 && text.bytes().all(|it| it.is_ascii_hexdigit());
    let id = match digest_of(text) {
        Some(digest) => id_of(&digest),
        None if is_id => text.to_ascii_lowercase(),
        None => id_of_name(client, text)?,
    };
    client.request(Method::DELETE, &format!("{PASSKEYS}/{id}"), Vec::new())?;
    Ok(id)
}

/// The id of the one passkey with this name.
fn id_of_name(client: &mut AdminClient, name: &str) -> Result<String, CommandError> {
    let found = named(client, name)?;
    let mut ids = found.iter().filter_map(|it| it["id"].as_str());
    match (ids.next(), ids.next()) {
        (Some(id), None) => Ok(id.to_owned()),
        (None, _) => Err(CommandError::Failed("there is no passkey with this name or id".into())),
        _ => Err(CommandError::Failed(format!(
            "{} have this name; remedy: name one by its id, see `skep passkey list --name NAME`",
            count(found.len() as u64, "passkey")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_found_again() {
        assert_eq!(name("ann b"), Ok("ann b".into()));
        assert!(["", " ", "a\nb", &"x".repeat(101)].iter().all(|it| name(it).is_err()));
    }

    #[test]
    fn limits_that_are_not_given_are_left_to_the_tracker() {
        let limits = LimitArguments { torrents: None, peers: Some(3), announces_per_minute: None };
        let body = NewPasskeyBody { name: "ann", passkey: None, limits: &limits };
        assert_eq!(json!(body), json!({ "name": "ann", "peers": 3 }));
    }
}
