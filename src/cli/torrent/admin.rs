//! Asks a tracker's admin listener to register a torrent, again where it does not answer.

use std::time::Duration;

use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::Value;

use crate::cli::admin_client::{AdminRequestError, RequestLimits, exchange};
use crate::client::url::Url;

/// How often a request is sent again where there is no answer, or one that says to.
const RETRIES: u32 = 3;

/// How long to wait before the first of those; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(250);

/// What a request may take: far more than the tracker does.
const LIMITS: RequestLimits =
    RequestLimits { step: Duration::from_secs(10), body_bytes: 64 * 1024 };

/// What the tracker says of a torrent that it now serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegisterResult {
    /// It is new to it.
    Created,
    /// It was registered before.
    Known,
}

/// A tracker's admin listener.
pub(super) struct AdminClient {
    url: Url,
    /// The first one is shown; one that is refused makes room for the next.
    tokens: Vec<String>,
    /// Why it cannot be used, once that is known: further files need not wait for the same.
    broken: Option<String>,
}

/// What went wrong with one request.
enum RegisterError {
    /// It may go better next time.
    Passing(String),
    /// It will not; the same is true of every other file.
    Lasting(String),
    /// It will not with this token.
    Unauthorized(String),
    /// It will not, because of this file.
    Refused(String),
}

impl AdminClient {
    pub(super) fn new(url: Url, tokens: Vec<String>) -> Self {
        Self { url, tokens, broken: None }
    }

    /// Registers what a JSON body describes.
    pub(super) fn register(&mut self, body: &[u8]) -> Result<RegisterResult, String> {
        if let Some(problem) = &self.broken {
            return Err(problem.clone());
        }
        let mut pause = PAUSE;
        for retry in 0..=RETRIES {
            let (problem, is_last) = match self.ask_with_any_token(body) {
                Ok(reply) => return Ok(reply),
                Err(RegisterError::Refused(problem)) => return Err(problem),
                Err(RegisterError::Lasting(problem) | RegisterError::Unauthorized(problem)) => {
                    (problem, true)
                }
                Err(RegisterError::Passing(problem)) => (problem, retry == RETRIES),
            };
            if is_last {
                self.broken = Some(problem.clone());
                return Err(problem);
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    fn ask_with_any_token(&mut self, body: &[u8]) -> Result<RegisterResult, RegisterError> {
        loop {
            match self.ask(body) {
                Err(RegisterError::Unauthorized(_)) if self.tokens.len() > 1 => {
                    self.tokens.remove(0);
                }
                asked => return asked,
            }
        }
    }

    fn ask(&self, body: &[u8]) -> Result<RegisterResult, RegisterError> {
        let url = &self.url;
        let no_http = || RegisterError::Lasting(format!("the program at {url} is not a tracker"));
        let request = Request::post("/api/v1/torrents").header(CONTENT_TYPE, "application/json");
        let request = match self.tokens.first() {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        let reply = exchange(&url.authority(), request, body.to_vec(), LIMITS);
        let reply = reply.map_err(|error| match error {
            AdminRequestError::NotHttp => no_http(),
            AdminRequestError::Connection(error) => RegisterError::Passing(format!(
                "cannot ask {url}: {error}; remedy: start skep, or name its admin listener with \
                 --admin"
            )),
        })?;
        let said: Value = serde_json::from_slice(reply.body()).map_err(|_| no_http())?;
        let code = said["error"]["code"].as_str().unwrap_or_default();
        let message = || {
            let field = said["error"]["field"].as_str().map(|it| format!("{it}: "));
            let message = said["error"]["message"].as_str().unwrap_or("no reason");
            field.unwrap_or_default() + message
        };
        match (reply.status().as_u16(), code) {
            (201, _) => Ok(RegisterResult::Created),
            (200, _) => Ok(RegisterResult::Known),
            (401, _) => Err(RegisterError::Unauthorized(message())),
            (403, _) => Err(RegisterError::Lasting(message())),
            (404, _) => Err(no_http()),
            (409, "wrong_mode" | "full") => Err(RegisterError::Lasting(message())),
            (500..=599 | 429, _) => Err(RegisterError::Passing(message())),
            _ => Err(RegisterError::Refused(message())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    /// Answers so many requests, each with 201 if it shows this token and else with 401: the tokens
    /// that were shown.
    fn answer(listener: &TcpListener, token: &str, requests: usize) -> Vec<String> {
        let answer = |_| {
            let mut stream = listener.accept().unwrap().0;
            let head = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<_> = head.take_while(|it| !it.is_empty()).collect();
            let shown = head.iter().find_map(|it| it.strip_prefix("authorization: Bearer "));
            let shown = shown.unwrap_or_default().to_owned();
            let status = if shown == token { "201 Created" } else { "401 Unauthorized" };
            let said = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
            stream.write_all(said.as_bytes()).unwrap();
            shown
        };
        (0..requests).map(answer).collect()
    }

    #[test]
    fn a_token_that_is_refused_makes_room_for_the_next_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let admin = |tokens: &[&str]| {
            AdminClient::new(
                url.parse().unwrap(),
                tokens.iter().map(|it| (*it).to_owned()).collect(),
            )
        };
        let (mut fitting, mut none) = (admin(&["old", "new", "other"]), admin(&["old", "older"]));
        let thread = std::thread::spawn(move || answer(&listener, "new", 5));
        assert_eq!(fitting.register(b""), Ok(RegisterResult::Created));
        assert_eq!(fitting.register(b""), Ok(RegisterResult::Created), "and is shown from now on");
        assert!(none.register(b"").is_err());
        assert_eq!(thread.join().unwrap(), ["old", "new", "new", "old", "older"]);
    }
}
