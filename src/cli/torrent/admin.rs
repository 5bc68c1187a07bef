//! Registers torrents at a tracker's admin listener, with retries.

use std::time::Duration;

use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::Value;

use crate::cli::admin_client::{AdminRequestError, RequestLimits, exchange};
use crate::client::url::Url;

/// Retries of a request without a response, or with a response that permits a retry.
const RETRIES: u32 = 3;

/// The wait before the first retry; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(250);

/// Limits of a request: far more than the tracker needs.
const LIMITS: RequestLimits =
    RequestLimits { step: Duration::from_secs(10), body_bytes: 64 * 1024 };

/// The result of a successful registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegisterResult {
    /// The torrent was not registered before.
    Created,
    /// The torrent was registered before.
    Known,
}

/// A tracker's admin listener.
pub(super) struct AdminClient {
    url: Url,
    /// The first token is sent; a refused token is removed while there is another.
    tokens: Vec<String>,
    /// The error that every further request would meet: further files fail with it at once.
    broken: Option<RegisterError>,
}

/// Why one request failed: the tracker's reason, or that there is no tracker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RegisterError {
    /// A retry may succeed.
    #[error("{0}")]
    Temporary(String),
    /// A retry fails again, and so does a request for any other file.
    #[error("{0}")]
    Permanent(String),
    /// The token was refused; another token may be accepted.
    #[error("{0}")]
    Unauthorized(String),
    /// This file was refused; other files may be accepted.
    #[error("{0}")]
    Refused(String),
}

impl AdminClient {
    pub(super) fn new(url: Url, tokens: Vec<String>) -> Self {
        Self { url, tokens, broken: None }
    }

    /// Registers the torrent that a JSON body describes.
    ///
    /// # Errors
    /// What the tracker refused, or why there was no response after all retries.
    pub(super) fn register(&mut self, body: &[u8]) -> Result<RegisterResult, RegisterError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let mut pause = PAUSE;
        let mut retries = 0;
        let error = loop {
            match self.request_with_any_token(body) {
                Ok(result) => return Ok(result),
                Err(refused @ RegisterError::Refused(_)) => return Err(refused),
                Err(RegisterError::Temporary(_)) if retries < RETRIES => retries += 1,
                Err(error) => break error,
            }
            std::thread::sleep(pause);
            pause *= 2;
        };
        self.broken = Some(error.clone());
        Err(error)
    }

    fn request_with_any_token(&mut self, body: &[u8]) -> Result<RegisterResult, RegisterError> {
        loop {
            match self.request(body) {
                Err(RegisterError::Unauthorized(_)) if self.tokens.len() > 1 => {
                    self.tokens.remove(0);
                }
                result => return result,
            }
        }
    }

    fn request(&self, body: &[u8]) -> Result<RegisterResult, RegisterError> {
        let url = &self.url;
        let no_http = || RegisterError::Permanent(format!("the program at {url} is not a tracker"));
        let request = Request::post("/api/v1/torrents").header(CONTENT_TYPE, "application/json");
        let request = match self.tokens.first() {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        let response = exchange(&url.authority(), request, body.to_vec(), LIMITS);
        let response = response.map_err(|error| match error {
            AdminRequestError::NotHttp => no_http(),
            AdminRequestError::Connection(error) => RegisterError::Temporary(format!(
                "cannot reach {url}: {error}; remedy: start skep, or name its admin listener with \
                 --admin"
            )),
        })?;
        let response_body: Value =
            serde_json::from_slice(response.body()).map_err(|_| no_http())?;
        let code = response_body["error"]["code"].as_str().unwrap_or_default();
        let message = || {
            let field = response_body["error"]["field"].as_str().map(|it| format!("{it}: "));
            let message = response_body["error"]["message"].as_str().unwrap_or("no reason");
            field.unwrap_or_default() + message
        };
        match (response.status().as_u16(), code) {
            (201, _) => Ok(RegisterResult::Created),
            (200, _) => Ok(RegisterResult::Known),
            (401, _) => Err(RegisterError::Unauthorized(message())),
            (403, _) => Err(RegisterError::Permanent(message())),
            (404, _) => Err(no_http()),
            (409, "wrong_mode" | "full") => Err(RegisterError::Permanent(message())),
            (500..=599 | 429, _) => Err(RegisterError::Temporary(message())),
            _ => Err(RegisterError::Refused(message())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    /// Responds to this many requests, with 201 if they have this token and else with 401. Returns
    /// the tokens that were sent.
    fn response(listener: &TcpListener, token: &str, requests: usize) -> Vec<String> {
        let response = |_| {
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
        (0..requests).map(response).collect()
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
        let thread = std::thread::spawn(move || response(&listener, "new", 5));
        assert_eq!(fitting.register(b""), Ok(RegisterResult::Created));
        assert_eq!(fitting.register(b""), Ok(RegisterResult::Created), "and is shown from now on");
        assert!(none.register(b"").is_err());
        assert_eq!(thread.join().unwrap(), ["old", "new", "new", "old", "older"]);
    }
}
