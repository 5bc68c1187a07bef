//! Who may use the API.
//!
//! | token configured | asked from | needs |
//! |---|---|---|
//! | yes | anywhere | the token |
//! | no | this host | a Host header that is an IP address or localhost, if there is one |
//! | no | this host, by a proxy that says so | refused |
//! | no | elsewhere | refused |
//!
//! A page in a browser of this host can send requests here too. Three things keep it out: what
//! changes anything is refused if it comes with an Origin header, which browsers always add; a
//! token is nothing that a browser adds by itself; and without one, a name that a stranger pointed
//! at this host (DNS rebinding) is no name to ask under.

use std::net::{IpAddr, SocketAddr};

use axum::extract::rejection::ExtensionRejection;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use super::{Admin, Process};

/// Lets a request through to the API, or says why not.
pub(super) async fn guard<P: Process>(
    State(admin): State<Admin<P>>,
    from: Result<ConnectInfo<SocketAddr>, ExtensionRejection>,
    request: Request,
    next: Next,
) -> Response {
    match judge(&admin, from.ok(), &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Whether the API would serve whoever sends this: for pages that show part of what it tells.
pub(super) fn admits<P: Process>(
    admin: &Admin<P>,
    from: Option<ConnectInfo<SocketAddr>>,
    request: &Request,
) -> bool {
    judge(admin, from, request).is_ok()
}

fn judge<P: Process>(
    admin: &Admin<P>,
    from: Option<ConnectInfo<SocketAddr>>,
    request: &Request,
) -> Result<(), Problem> {
    // Where nobody says whence a request comes, it comes from elsewhere.
    let is_local = from.is_some_and(|ConnectInfo(it)| it.ip().to_canonical().is_loopback());
    check(is_local, admin.process.token().as_deref(), request)
}

fn check(is_local: bool, token: Option<&str>, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    match token {
        Some(token) if !has_token(headers, token) => return Err(Problem::no_token()),
        Some(_) => {}
        None if !is_local => return Err(Problem::only_local()),
        None if is_forwarded(headers) => return Err(Problem::forwarded()),
        None if !names_an_address(request) => return Err(Problem::bad_host()),
        None => {}
    }
    if !request.method().is_safe() && headers.contains_key(header::ORIGIN) {
        return Err(Problem::from_browser());
    }
    Ok(())
}

/// Whether the request shows the token (RFC 6750), compared in constant time: how long a wrong one
/// takes tells nothing about the right one but its length.
fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let shown = headers.get(header::AUTHORIZATION).map(|it| it.as_bytes());
    let Some((scheme, shown)) = shown.and_then(|it| it.split_at_checked(b"Bearer ".len())) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(shown.ct_eq(token.as_bytes()))
}

/// Whether a reverse proxy passed the request on: it comes from this host, its sender may not.
fn is_forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|it| headers.contains_key(*it))
}

/// Whether the request is to an address or to localhost. A request without any host is of no
/// browser.
fn names_an_address(request: &Request) -> bool {
    let in_target = request.uri().authority().cloned();
    let in_header = request.headers().get_all(header::HOST);
    let in_header = in_header.iter().map(|it| Authority::try_from(it.as_bytes()).ok());
    in_target.map(Some).into_iter().chain(in_header).all(|it| {
        it.is_some_and(|it| {
            let host = it.host().trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
        })
    })
}
