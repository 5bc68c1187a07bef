//! What all subcommands that ask a running tracker share: the flags that name its admin listener
//! and its token, requests with tries, and errors with remedies.

mod address;
mod output;
mod pages;

use std::fs;
use std::io;
use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use serde_json::Value;

use super::admin_client::{AdminRequestError, RequestLimits, Server, exchange_with, reachable};
use crate::client::tls::{TlsConfigError, Trust};
use crate::config::{Config, ConfigError, SettingsSource};
use crate::server::{self, ServingListener};
use crate::sys::holder::listening_users;
pub(super) use address::AdminAddress;
pub(super) use output::ChangeOutput;
pub(super) use pages::PagedList;

/// The wait between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Limits of a request. A walk over the store waits for others; a page of torrents with long names
/// takes some megabytes.
const LIMITS: RequestLimits = RequestLimits { step: Duration::from_secs(30), body_bytes: 16 << 20 };

/// How listener and token are found, for the help of each subcommand.
const TOKEN_HELP: &str = "\
The tracker is the one that serves with the state directory (server.state_dir of the file of
--config and of SKEP__SERVER__STATE_DIR, STATE_DIRECTORY or XDG's rules, else /var/lib/skep): it
keeps the address of its admin listener there. Without such a file it is the one at admin.listen of
the file of --config and of SKEP__ADMIN__LISTEN, by default 127.0.0.1:6970. Another address there
than the default, with a port other than 0, comes before the file of the state directory.

The token is that of the setting admin.token. Without --token and --token-file, skep uses
SKEP__ADMIN__TOKEN or that setting in the file of --config, else, for a tracker on this host, the
file admin.token in the state directory or, if that token is missing or refused, in /var/lib/skep.";

/// The help behind a subcommand's flags: its examples, the token, and exit codes.
pub(super) fn help(examples: &str, failed: &str) -> String {
    format!("{examples}\n\n{TOKEN_HELP}\n\nExit codes: 0 done, 1 {failed}, 2 invalid usage.")
}

/// The flags of every subcommand that asks a running tracker.
#[derive(Debug, Args)]
#[command(next_help_heading = "The tracker")]
pub(super) struct AdminArguments {
    /// Admin listener [default: that of the tracker which serves]
    #[arg(long, value_name = "ADDRESS:PORT|URL")]
    admin: Option<AdminAddress>,
    /// Read server.state_dir and the admin settings from this TOML file
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    config: Option<PathBuf>,
    /// Read the token from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The token; visible to other users of this host in the process list
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Further tries without a response, 2 s apart
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(..=1000))]
    retries: u32,
    /// Trust only the certificates in this PEM file (https)
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Accept any certificate (https)
    #[arg(long)]
    insecure: bool,
}

/// Why flags do not name an admin listener and a token.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminArgumentError {
    #[error("--token-file: cannot read {}: {_1}", .0.display())]
    TokenFile(PathBuf, io::Error),
    #[error("--token-file: the first line of {} is empty", .0.display())]
    EmptyTokenFile(PathBuf),
    #[error("the token has characters that an HTTP header cannot contain")]
    Token,
    /// The environment may name the listener, the token, and where tokens are kept.
    #[error(
        "the settings of the environment are invalid; remedy: correct them, or name the listener \
         with --admin and the token with --token-file\n{0}"
    )]
    Environment(#[from] ConfigError),
    /// A file of settings was named, which may be overridden by the environment.
    #[error("the settings are invalid; remedy: correct them\n{0}")]
    Settings(ConfigError),
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
}

/// Why there is no result. The text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AdminError {
    /// No connection, or no response, after all tries.
    #[error(
        "cannot reach {at}: {problem}; remedy: start skep, or name its settings file with --config \
         FILE or its admin listener with --admin"
    )]
    Unreachable {
        /// The listener.
        at: String,
        /// Why.
        problem: String,
    },
    /// The same, and a tracker may have left another address in a file that was not read.
    #[error(
        "cannot reach {at}: {problem}; the tracker's address may be in {}, which this user may not \
         read; remedy: start skep, run this as a user who may read that file, or name the admin \
         listener with --admin", path.display()
    )]
    UnreadableAddress {
        /// The listener.
        at: String,
        /// Why.
        problem: String,
        /// The file.
        path: PathBuf,
    },
    /// The request was sent, and the response is missing. It is not sent again.
    #[error("no response from {at}: {problem}; the change may have been made all the same")]
    Lost {
        /// The listener.
        at: String,
        /// Why.
        problem: String,
    },
    /// A proxy in front of the listener wants a login of its own, in the token's header.
    #[error(
        "a proxy at {0} asks for a login, which is not the token; remedy: have it forward /api/ \
         with the header Authorization and without a login, as docs/reverse-proxies.md shows"
    )]
    ProxyLogin(String),
    /// The response is not that of an admin listener.
    #[error(
        "the program at {0} is not skep's admin listener, or one of an older version; remedy: \
         name skep's admin listener with --admin"
    )]
    NotSkep(String),
    /// Another user's program listens where skep is expected.
    #[error(
        "the program at {at} belongs to user {user}, who is neither root nor the owner of the \
         token that was found, so the token is not sent; remedy: name the tracker's settings file \
         with --config FILE or its admin listener with --admin, or if that program is trusted, the \
         token with --token-file"
    )]
    OtherUser {
        /// The listener.
        at: String,
        /// The user's id.
        user: u32,
    },
    /// No token was found, and one is needed.
    #[error(
        "token missing: it is that of the setting admin.token, or where that is empty, of the file \
         admin.token in the tracker's state directory; remedy: --token-file FILE, or run this as a \
         user who may read that file"
    )]
    NoToken,
    /// The token is not that of this tracker.
    #[error(
        "token wrong: it is that of the setting admin.token, or where that is empty, of the file \
         admin.token in the tracker's state directory; remedy: --token-file FILE"
    )]
    WrongToken,
    /// The tracker cannot do it: no change, or no response, of this kind now.
    #[error("{0}")]
    Failed(String),
    /// The tracker cannot do it in its `access.mode`.
    #[error("{0}")]
    WrongMode(String),
    /// The tracker refuses this request; others may be accepted.
    #[error("{0}")]
    Refused(String),
}

impl AdminError {
    /// Whether every further request would fail as well.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// A successful response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AdminResponse {
    /// Whether something was created: status 201.
    pub(super) is_created: bool,
    /// The body.
    pub(super) body: Value,
}

/// A tracker's admin listener.
pub(super) struct AdminClient {
    address: AdminAddress,
    server: Server,
    /// The first token is sent; a refused token is removed while there is another.
    tokens: Vec<FoundToken>,
    /// A file that may have another address, and that this user may not read.
    unreadable: Option<PathBuf>,
    retries: u32,
    /// The wait between two tries.
    pause: Duration,
}

/// A token, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FoundToken {
    text: String,
    /// The owner of the file in which it was found unasked. It is sent to programs of this user and
    /// of root alone: while skep is not running, every user of this host may listen on its port.
    owner: Option<u32>,
}

impl FoundToken {
    /// A token that was named.
    fn named(text: impl Into<String>) -> Self {
        Self { text: text.into(), owner: None }
    }
}

/// The result of one try.
enum TryError {
    /// A further try may succeed.
    Temporary(AdminError),
    /// The token was refused; another one may be accepted.
    Token,
    /// A further try fails again.
    Final(AdminError),
}

impl AdminArguments {
    /// The client of the tracker that the flags name.
    ///
    /// # Errors
    /// [`AdminArgumentError`] for a token, certificates or an environment that cannot be used.
    pub(super) fn client(&self) -> Result<AdminClient, AdminArgumentError> {
        let named = self.named_token()?;
        let mut unreadable = None;
        let (address, mut tokens) = match (self.admin.clone(), named) {
            (Some(address), Some(token)) => (address, vec![token]),
            (address, token) => {
                let config = self.settings()?;
                let is_set = self.config.is_some() && !config.admin.token.is_empty();
                let token =
                    token.or_else(|| is_set.then(|| FoundToken::named(&config.admin.token)));
                let serving = match address {
                    Some(_) => None,
                    None => server::serving_listener(&config),
                };
                if address.is_none() && serving.is_none() {
                    unreadable = server::unreadable_address(&config);
                }
                let serving = serving.filter(|it| token.is_none() || is_own(it));
                let listen = serving.map_or(config.admin.listen, |it| it.address);
                let address = address.unwrap_or_else(|| reachable(listen).into());
                let kept = || kept_tokens(&address, &config, serving);
                let tokens = token.map_or_else(kept, |token| vec![token]);
                (address, tokens)
            }
        };
        tokens.retain(|it| !it.text.is_empty());
        if tokens.iter().any(|it| it.text.bytes().any(|byte| !(0x20..0x7f).contains(&byte))) {
            return Err(AdminArgumentError::Token);
        }
        if !address.has_tls && !address.is_this_host() && !tokens.is_empty() {
            super::complain(&format!(
                "note: the token is sent without TLS to {address}; remedy: name an https URL of a \
                 proxy in front of that listener with --admin, or use a tunnel, such as ssh -L"
            ));
        }
        let server = address.server(Trust::of(self.ca.as_deref(), self.insecure))?;
        let (retries, pause) = (self.retries, PAUSE);
        Ok(AdminClient { address, server, tokens, unreadable, retries, pause })
    }

    /// The settings of the file and of the environment. If one is wrong, no default takes its
    /// place: the default listener may be another program, which would be sent the token.
    fn settings(&self) -> Result<Config, AdminArgumentError> {
        let environment = super::environment()?;
        let file = self.config.clone();
        let settings = SettingsSource { file, environment, ..SettingsSource::default() }.load();
        settings.map_err(match self.config {
            None => AdminArgumentError::Environment,
            Some(_) => AdminArgumentError::Settings,
        })
    }

    /// The token of the flags, or of the environment.
    fn named_token(&self) -> Result<Option<FoundToken>, AdminArgumentError> {
        if let Some(token) = &self.token {
            return Ok(Some(FoundToken::named(token)));
        }
        if let Some(path) = &self.token_file {
            let text = fs::read_to_string(path)
                .map_err(|error| AdminArgumentError::TokenFile(path.clone(), error))?;
            let first = text.lines().next().map(str::trim).filter(|it| !it.is_empty());
            let first = first.ok_or_else(|| AdminArgumentError::EmptyTokenFile(path.clone()))?;
            return Ok(Some(FoundToken::named(first)));
        }
        let set = std::env::var("SKEP__ADMIN__TOKEN").ok().filter(|it| !it.is_empty());
        Ok(set.map(FoundToken::named))
    }
}

/// Whether this user or root wrote the address of a listener. Another user may have written one of
/// its own there, to be sent a token that was named for another tracker.
fn is_own(serving: &ServingListener) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&serving.owner)
}

/// The tokens that trackers on this host generated. They are never sent to another host. To a
/// listener whose address another user wrote, only that user's own are sent.
fn kept_tokens(
    address: &AdminAddress,
    config: &Config,
    serving: Option<ServingListener>,
) -> Vec<FoundToken> {
    let config = Some(config).filter(|_| address.is_this_host());
    let mut found = config.map(server::kept_tokens).unwrap_or_default();
    if let Some(serving) = serving.filter(|it| !is_own(it)) {
        found.retain(|(_, owner)| *owner == serving.owner);
    }
    found.into_iter().map(|(text, owner)| FoundToken { text, owner: Some(owner) }).collect()
}

impl AdminClient {
    /// The listener, as it is shown.
    pub(super) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Reads a path of the API.
    ///
    /// # Errors
    /// [`AdminError`] if the tracker refuses, or there is no response after all tries.
    pub(super) fn get(&mut self, target: &str) -> Result<Value, AdminError> {
        Ok(self.request(Method::GET, target, Vec::new())?.body)
    }

    /// Sends a request that can be sent again: made twice, it changes nothing more.
    ///
    /// # Errors
    /// As [`AdminClient::get`].
    pub(super) fn request(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<AdminResponse, AdminError> {
        self.with_tries(&method, target, &body, true)
    }

    /// Sends a request that must not be made twice: it is not sent again once it may have arrived.
    ///
    /// # Errors
    /// As [`AdminClient::get`]; [`AdminError::Lost`] if only the response is missing.
    pub(super) fn request_once(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<AdminResponse, AdminError> {
        self.with_tries(&method, target, &body, false)
    }

    fn with_tries(
        &mut self,
        method: &Method,
        target: &str,
        body: &[u8],
        repeats: bool,
    ) -> Result<AdminResponse, AdminError> {
        let mut retries = 0;
        loop {
            match self.one_try(method, target, body, repeats) {
                Ok(response) => return Ok(response),
                Err(TryError::Final(error)) => return Err(error),
                Err(TryError::Token) if self.tokens.len() > 1 => {
                    self.tokens.remove(0);
                }
                Err(TryError::Token) if self.tokens.is_empty() => return Err(AdminError::NoToken),
                Err(TryError::Token) => return Err(AdminError::WrongToken),
                Err(TryError::Temporary(_)) if retries < self.retries => {
                    retries += 1;
                    std::thread::sleep(self.pause);
                }
                Err(TryError::Temporary(error)) => return Err(error),
            }
        }
    }

    /// A user who listens at the address, if neither the owner of a token nor root.
    fn other_user(&self, owner: u32) -> Option<u32> {
        let addresses = self.address.authority.to_socket_addrs().ok()?;
        let mut users = addresses.flat_map(listening_users);
        users.find(|user| *user != owner && *user != 0)
    }

    fn one_try(
        &self,
        method: &Method,
        target: &str,
        body: &[u8],
        repeats: bool,
    ) -> Result<AdminResponse, TryError> {
        let mut request = Request::builder().method(method).uri(target);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let at = || self.address.to_string();
        let mut withheld_from = None;
        if let Some(FoundToken { text, owner }) = self.tokens.first() {
            withheld_from = owner.and_then(|owner| self.other_user(owner));
            match withheld_from {
                None => request = request.header(AUTHORIZATION, format!("Bearer {text}")),
                // Most trackers let this host read without a token.
                Some(_) if method == Method::GET => {}
                Some(user) => {
                    return Err(TryError::Final(AdminError::OtherUser { at: at(), user }));
                }
            }
        }
        let response = exchange_with(&self.server, request, body.to_vec(), LIMITS);
        let response = response.map_err(|error| match error.error {
            AdminRequestError::NotHttp => TryError::Final(AdminError::NotSkep(at())),
            AdminRequestError::Connection(problem) if error.is_sent && !repeats => {
                TryError::Final(AdminError::Lost { at: at(), problem: problem.to_string() })
            }
            AdminRequestError::Connection(problem) => {
                TryError::Temporary(self.unreachable(problem.to_string()))
            }
        })?;
        let status = response.status().as_u16();
        let body: Option<Value> = serde_json::from_slice(response.body()).ok();
        let body = body.ok_or_else(|| not_of_skep(&response, at(), repeats))?;
        match status {
            200..=299 => Ok(AdminResponse { is_created: status == 201, body }),
            _ => Err(match (failure(status, &body, at), withheld_from) {
                (TryError::Token, Some(user)) => {
                    TryError::Final(AdminError::OtherUser { at: at(), user })
                }
                (error, _) => error,
            }),
        }
    }

    /// There is no connection, or no response.
    fn unreachable(&self, problem: String) -> AdminError {
        let at = self.address.to_string();
        match self.unreadable.clone() {
            None => AdminError::Unreachable { at, problem },
            Some(path) => AdminError::UnreadableAddress { at, problem, path },
        }
    }
}

/// What a response without JSON means, which skep did not write. A proxy may have forwarded the
/// request before it failed, so one that does not repeat is not sent again.
fn not_of_skep<T>(response: &Response<T>, at: String, repeats: bool) -> TryError {
    let schemes = response.headers().get_all(WWW_AUTHENTICATE).iter();
    let mut schemes =
        schemes.filter_map(|value| value.as_bytes().split(u8::is_ascii_whitespace).next());
    match response.status() {
        StatusCode::UNAUTHORIZED if schemes.any(|scheme| scheme.eq_ignore_ascii_case(b"Basic")) => {
            TryError::Final(AdminError::ProxyLogin(at))
        }
        status @ (StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT) => {
            let what = match status {
                StatusCode::GATEWAY_TIMEOUT => "got no response from it in time",
                _ => "cannot reach it",
            };
            let problem = format!("a proxy there {what} (HTTP status {})", status.as_u16());
            match repeats {
                true => TryError::Temporary(AdminError::Unreachable { at, problem }),
                false => TryError::Final(AdminError::Lost { at, problem }),
            }
        }
        _ => TryError::Final(AdminError::NotSkep(at)),
    }
}

/// What an error response means.
fn failure(status: u16, body: &Value, at: impl Fn() -> String) -> TryError {
    let text = |key: &str| body["error"][key].as_str().unwrap_or_default().to_owned();
    let (code, field, mut message) = (text("code"), text("field"), text("message"));
    if code.is_empty() {
        return TryError::Final(AdminError::NotSkep(at()));
    }
    if !field.is_empty() {
        message = format!("{field}: {message}");
    }
    match (status, code.as_str()) {
        (401, _) | (403, "only_local" | "forwarded" | "bad_host") => TryError::Token,
        (404 | 405, "no_such_page" | "bad_method") => TryError::Final(AdminError::NotSkep(at())),
        (409, "wrong_mode") => TryError::Final(AdminError::WrongMode(message)),
        (403, _) | (409, "full" | "no_state") => TryError::Final(AdminError::Failed(message)),
        (500..=599 | 429, _) => TryError::Temporary(AdminError::Failed(message)),
        _ => TryError::Final(AdminError::Refused(message)),
    }
}

/// Why a subcommand ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Arguments(#[from] AdminArgumentError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A list, or what else changes nothing, is not printed.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    /// Changes are not printed.
    #[error(
        "cannot write to standard output: {0}; the changes were made all the same, except those \
         that the tracker refused"
    )]
    Unprinted(io::Error),
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Usage(String),
}

/// Prints the error of a subcommand, and returns its exit code.
pub(super) fn conclude(result: Result<ExitCode, CommandError>) -> ExitCode {
    match result {
        Ok(code) => code,
        // A closed pipe is not an error of a list: `head`, for instance, stops early.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let lines = error.to_string();
            super::complain(&match error {
                // Lines without control characters, one for each fault.
                CommandError::Arguments(
                    AdminArgumentError::Environment(_) | AdminArgumentError::Settings(_),
                ) => lines,
                _ => super::text::escaped(&lines),
            });
            match error {
                CommandError::Arguments(_) | CommandError::Usage(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// A query of these parameters, percent-encoded, with its question mark.
pub(super) fn query(parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::for_suffix("?".to_owned(), 1);
    query.extend_pairs(parameters).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    /// Responds to each request with one of these responses. Returns the tokens that were sent.
    fn serve(listener: &TcpListener, responses: &[&str]) -> Vec<String> {
        let respond = |response: &&str| {
            let mut stream = listener.accept().unwrap().0;
            let head = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<_> = head.take_while(|it| !it.is_empty()).collect();
            let shown = head.iter().find_map(|it| it.strip_prefix("authorization: Bearer "));
            let shown = shown.unwrap_or_default().to_owned();
            stream.write_all(response.as_bytes()).unwrap();
            shown
        };
        responses.iter().map(respond).collect()
    }

    fn client(listener: &TcpListener, tokens: &[&str], retries: u32) -> AdminClient {
        let address: AdminAddress = listener.local_addr().unwrap().into();
        let server = Server { authority: address.authority.clone(), tls: None };
        let tokens = tokens.iter().map(|it| FoundToken::named(*it)).collect();
        AdminClient { address, server, tokens, unreadable: None, retries, pause: Duration::ZERO }
    }

    const CREATED: &str = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
    const WRONG: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 29\r\n\r\n\
                         {\"error\":{\"code\":\"no_token\"}}";

    #[test]
    fn a_token_that_is_refused_makes_room_for_the_next_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut fitting = client(&listener, &["old", "new", "other"], 0);
        let mut none = client(&listener, &["old", "older"], 0);
        let responses = [WRONG, CREATED, CREATED, WRONG, WRONG];
        let thread = std::thread::spawn(move || serve(&listener, &responses));
        let created = |it: &mut AdminClient| {
            it.request(Method::POST, "/", Vec::new()).map(|it| it.is_created)
        };
        assert_eq!((created(&mut fitting), created(&mut fitting)), (Ok(true), Ok(true)));
        assert_eq!(created(&mut none), Err(AdminError::WrongToken));
        assert_eq!(thread.join().unwrap(), ["old", "new", "new", "old", "older"]);
    }

    #[test]
    fn a_token_that_was_found_is_not_sent_to_another_user() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let user = rustix::process::getuid().as_raw();
        let client = client(&listener, &[], 0);
        assert_eq!(client.other_user(user), None);
        // Root may be trusted; tests also run as root.
        let other = (user != 0).then_some(user);
        assert_eq!(client.other_user(user.wrapping_add(1)), other);
    }

    #[test]
    fn only_what_may_be_made_twice_is_sent_again_once_it_may_have_arrived() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = client(&listener, &[], 1);
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}";
        let late = "HTTP/1.1 504 Late\r\nContent-Length: 0\r\n\r\n";
        let responses = [cut, CREATED, cut, "", CREATED, "", late, CREATED, late];
        let thread = std::thread::spawn(move || serve(&listener, &responses));
        for _ in 0..3 {
            let again = client.request(Method::POST, "/", Vec::new());
            assert!(again.is_ok_and(|it| it.is_created));
            let once = client.request_once(Method::POST, "/", Vec::new());
            assert!(matches!(once, Err(AdminError::Lost { .. })), "{once:?}");
        }
        thread.join().unwrap();
    }

    #[test]
    fn an_error_is_final_or_worth_another_try() {
        let kind = |status, code: &str| {
            let body =
                serde_json::json!({ "error": { "code": code, "message": "m", "field": "f" } });
            match failure(status, &body, || "x".into()) {
                TryError::Temporary(error) => format!("again: {error}"),
                TryError::Token => "token".into(),
                TryError::Final(error) => format!("{}: {error}", error.is_final()),
            }
        };
        assert_eq!(
            (kind(401, "no_token"), kind(403, "only_local")),
            ("token".into(), "token".into())
        );
        assert_eq!(kind(503, "starting"), "again: f: m");
        assert_eq!(kind(409, "wrong_mode"), "true: f: m");
        assert_eq!(kind(404, "unknown_passkey"), "false: f: m");
        assert!(kind(404, "no_such_page").contains("older version"));
        assert!(kind(404, "").contains("not skep"));
    }

    #[test]
    fn what_a_proxy_responds_is_not_taken_for_another_program() {
        let judge = |status: u16, scheme: &str, repeats: bool| {
            let response = Response::builder().status(status).header("WWW-Authenticate", scheme);
            match not_of_skep(&response.body(()).unwrap(), "https://x".into(), repeats) {
                TryError::Temporary(error) => format!("again: {error}"),
                TryError::Token => "token".into(),
                TryError::Final(error) => error.to_string(),
            }
        };
        let error = |status: u16, scheme: &str| judge(status, scheme, true);
        for scheme in ["Basic realm=\"skep\"", "basic"] {
            assert!(error(401, scheme).starts_with("a proxy at https://x asks for a login"));
        }
        assert!(error(401, "Bearer").contains("is not skep"));
        for status in [502, 503, 504] {
            let text = error(status, "");
            assert!(text.starts_with("again: cannot reach https://x: a proxy there"), "{text}");
            let text = judge(status, "", false);
            assert!(text.starts_with("no response from https://x: a proxy there"), "{text}");
        }
        let late = "a proxy there got no response from it in time (HTTP status 504)";
        assert!(error(504, "").contains(late));
        assert!(error(500, "").contains("is not skep"));
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(
            query(&[("after", "10.0.0.0/8"), ("x", "%1f&")]),
            "?after=10.0.0.0%2F8&x=%251f%26"
        );
    }
}
