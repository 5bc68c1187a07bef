//! Error responses of the API:
//! `{"error":{"code":"…","message":"…","field":"…"}}`.
//!
//! The code never changes, for programs; the message gives the remedy, for people. The only text of
//! the request in them is the name of a field that cannot be used, shortened.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::JSON;
use super::json::shortened;
use super::live::VIEWERS_MAX;
use crate::access_store::AccessError;

/// An error response.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    error: Error,
}

#[derive(Debug, Serialize)]
struct Error {
    code: &'static str,
    message: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<Cow<'static, str>>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, error: Error { code, message: message.into(), field: None } }
    }

    /// A parameter that cannot be used: 400. `message` states what it must be.
    pub(super) fn bad_parameter(
        field: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_parameter", message).about(field)
    }

    /// The same error, about this field.
    fn about(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.error.field = Some(field.into());
        self
    }

    /// An unknown parameter, or a query that cannot be parsed: 400.
    pub(super) fn bad_query() -> Self {
        let message =
            "the query cannot be parsed, or has a parameter that this path does not accept";
        Self::new(StatusCode::BAD_REQUEST, "bad_query", message)
    }

    /// A body that is not a JSON object, or has a field twice: 400.
    pub(super) fn bad_body(problem: &str) -> Self {
        let message = format!(
            "the body must be a JSON object, each field once: {problem}; /api/v1/openapi.json \
             describes it"
        );
        Self::new(StatusCode::BAD_REQUEST, "bad_body", message)
    }

    /// A field of a body that the path does not accept: 400. `known` are those that it accepts.
    pub(super) fn unknown_field(name: &str, known: &[&'static str]) -> Self {
        let name = shortened(name).to_owned();
        let message = format!("no such field; allowed: {}", known.join(", "));
        Self::new(StatusCode::BAD_REQUEST, "bad_body", message).about(name)
    }

    /// A body of more than 2 MB: 413.
    pub(super) fn long_body() -> Self {
        let message = "the body is longer than 2 MB; remedy: send less at once";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "long_body", message)
    }

    /// No token, or a wrong one: 401.
    pub(super) fn no_token() -> Self {
        let message = "token missing or wrong; remedy: send the header `Authorization: Bearer` \
                       with the token of the setting admin.token, or where that is empty, of the \
                       file admin.token in the state directory";
        Self::new(StatusCode::UNAUTHORIZED, "no_token", message)
    }

    /// A change while there is no token: 403.
    pub(super) fn token_absent() -> Self {
        let message = "nothing can be changed without a token: none is configured, and there is \
                       no state directory to keep one in; remedy: set admin.token, or \
                       server.state_dir to a directory that skep's user may write";
        Self::new(StatusCode::FORBIDDEN, "token_absent", message)
    }

    /// A request from another host without the token: 403.
    pub(super) fn only_local() -> Self {
        let message = "only this host may read without the token; remedy: send the header \
                       `Authorization: Bearer` with the token of the setting admin.token or of \
                       the file admin.token in the state directory";
        Self::new(StatusCode::FORBIDDEN, "only_local", message)
    }

    /// A request through a reverse proxy without the token: 403.
    pub(super) fn forwarded() -> Self {
        let message = "a reverse proxy seems to have forwarded this request (a header of its \
                       kind, or HTTP/1.0), so its origin is unknown; remedy: send the header \
                       `Authorization: Bearer` with the token of the setting admin.token or of \
                       the file admin.token in the state directory";
        Self::new(StatusCode::FORBIDDEN, "forwarded", message)
    }

    /// A request without the token, to a name that DNS rebinding may have pointed here: 403.
    pub(super) fn bad_host() -> Self {
        let message = "without a token, the header Host must name a loopback address or \
                       localhost; remedy: use such an address, or send the token (admin.token)";
        Self::new(StatusCode::FORBIDDEN, "bad_host", message)
    }

    /// A change, with a Host header that is not a usable host: 403.
    pub(super) fn odd_host() -> Self {
        let message = "no changes through the addresses 0.0.0.0, [::], an address in another \
                       spelling or a host with a user before it (header Host); remedy: send \
                       it to an address of this host";
        Self::new(StatusCode::FORBIDDEN, "odd_host", message)
    }

    /// A change that a page in a browser requests: 403.
    pub(super) fn from_browser() -> Self {
        let message = "requests from a browser page cannot change anything (headers Origin, \
                       Referer, Sec-Fetch-Site); remedy: use curl or a script";
        Self::new(StatusCode::FORBIDDEN, "from_browser", message)
    }

    /// Not the opening handshake of a WebSocket: 426.
    pub(super) fn no_socket() -> Self {
        let message = "this is a WebSocket (RFC 6455, version 13), which the page /stats opens";
        Self::new(StatusCode::UPGRADE_REQUIRED, "no_socket", message)
    }

    /// A page of another host or port requests figures: 403.
    pub(super) fn foreign_page() -> Self {
        let message = "only a page from this host and port may read this; remedy: behind a \
                       reverse proxy, forward the header Host";
        Self::new(StatusCode::FORBIDDEN, "foreign_page", message)
    }

    /// The maximum number of statistics pages is open already: 503.
    pub(super) fn too_many_viewers() -> Self {
        let message =
            format!("the maximum of {VIEWERS_MAX} statistics pages is open; remedy: close one");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_viewers", message)
    }

    /// The tracker stops, so there are no more figures: 503.
    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the tracker is stopping")
    }

    /// The process has begun within this second, and there are no figures yet: 503.
    pub(super) fn no_figures() -> Self {
        let message = "the tracker has just started: there are no figures yet";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "starting", message)
    }

    /// An unknown page: 404.
    pub(super) fn no_such_page() -> Self {
        let message = "no such path; /api/v1/openapi.json lists all paths";
        Self::new(StatusCode::NOT_FOUND, "no_such_page", message)
    }

    /// A torrent that no client has announced and nobody has registered: 404.
    pub(super) fn unknown_torrent() -> Self {
        let message = "no peer has announced this torrent, and it is not registered";
        Self::new(StatusCode::NOT_FOUND, "unknown_torrent", message)
    }

    /// An unknown or revoked passkey: 404.
    pub(super) fn unknown_passkey() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_passkey", "there is no passkey with this id")
    }

    /// An unknown list: 404.
    pub(super) fn no_such_list() -> Self {
        let message = "the lists are torrents, networks and clients, each with allow and deny, and \
                       ports with deny";
        Self::new(StatusCode::NOT_FOUND, "no_such_list", message)
    }

    /// A value that is not on the list: 404.
    pub(super) fn not_listed() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_listed", "the list has no such entry")
    }

    /// A method that the page does not have: 405. The header Allow lists those it has.
    pub(super) fn bad_method() -> Self {
        let message =
            "this path does not accept this method; the header Allow lists those it accepts";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "bad_method", message)
    }

    /// An internal task failed: 500.
    pub(super) fn broken() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "broken", "internal error; see the log")
    }
}

impl From<AccessError> for ApiError {
    fn from(trouble: AccessError) -> Self {
        let conflict = |code, trouble: &AccessError| {
            Self::new(StatusCode::CONFLICT, code, trouble.to_string())
        };
        match &trouble {
            AccessError::List(_) => conflict("bad_list", &trouble),
            AccessError::NoState(_) => conflict("no_state", &trouble),
            AccessError::Open | AccessError::NotPrivate => conflict("wrong_mode", &trouble),
            AccessError::Taken => conflict("hash_taken", &trouble),
            AccessError::Full => conflict("full", &trouble),
            AccessError::Unknown => {
                let message = "this torrent is not registered";
                Self::new(StatusCode::NOT_FOUND, "unregistered", message)
            }
            AccessError::Database(error) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "database", error.to_string())
            }
            AccessError::Snapshot(text) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "snapshot", text.clone())
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: Error,
        }
        let status = self.status;
        // The body consists of strings, which always serialize.
        let body = serde_json::to_string(&Body { error: self.error }).unwrap_or_default();
        let mut response = (status, JSON, body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            let wanted = [
                (header::UPGRADE, "websocket"),
                (header::CONNECTION, "Upgrade"), // required beside Upgrade (RFC 9110, 7.8)
                (header::SEC_WEBSOCKET_VERSION, "13"),
            ];
            let wanted = wanted.map(|(name, value)| (name, HeaderValue::from_static(value)));
            response.headers_mut().extend(wanted);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_upgrade_is_told_to_what() {
        let response = ApiError::no_socket().into_response();
        assert_eq!(response.status(), StatusCode::UPGRADE_REQUIRED);
        for (name, value) in [
            (header::UPGRADE, "websocket"),
            (header::CONNECTION, "Upgrade"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
        ] {
            assert_eq!(response.headers()[&name], value, "{name}");
        }
    }
}
