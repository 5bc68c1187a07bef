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
    let verdict = match Asker::of(from.ok(), &request).check(admin.process.token().as_deref()) {
        Ok(()) if changes_for_a_page(&request) => Err(Problem::from_browser()),
        verdict => verdict,
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// What a request says of its sender: for pages that show part of what the API tells, and for
/// those on which the right to it has to be judged again later.
#[derive(Debug)]
pub(super) struct Asker {
    is_local: bool,
    is_forwarded: bool,
    names_an_address: bool,
    /// The token that it shows.
    shown: Option<Box<[u8]>>,
}

impl Asker {
    pub(super) fn of(from: Option<ConnectInfo<SocketAddr>>, request: &Request) -> Self {
        Self {
            // Where nobody says whence a request comes, it comes from elsewhere.
            is_local: from.is_some_and(|ConnectInfo(it)| it.ip().to_canonical().is_loopback()),
            is_forwarded: is_forwarded(request.headers()),
            names_an_address: names_an_address(request),
            shown: shown(request.headers()).map(Into::into),
        }
    }

    /// Whether the API would serve the sender now: the token may have changed since it asked.
    pub(super) fn is_served<P: Process>(&self, admin: &Admin<P>) -> bool {
        self.check(admin.process.token().as_deref()).is_ok()
    }

    fn check(&self, token: Option<&str>) -> Result<(), Problem> {
        match token {
            Some(token) if self.has(token) => Ok(()),
            Some(_) => Err(Problem::no_token()),
            None if !self.is_local => Err(Problem::only_local()),
            None if self.is_forwarded => Err(Problem::forwarded()),
            None if !self.names_an_address => Err(Problem::bad_host()),
            None => Ok(()),
        }
    }

    /// Whether it shows the token, compared in constant time: how long a wrong one takes tells
    /// nothing about the right one but its length.
    fn has(&self, token: &str) -> bool {
        self.shown.as_deref().is_some_and(|it| it.ct_eq(token.as_bytes()).into())
    }
}

/// Whether a page in a browser wants to change something.
fn changes_for_a_page(request: &Request) -> bool {
    !request.method().is_safe() && request.headers().contains_key(header::ORIGIN)
}

/// The token that a request shows (RFC 6750).
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let field = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = field.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
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

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn asker(from: [u8; 4], fields: &[(&str, &str)]) -> Asker {
        let mut request = Request::builder().uri("/stats/live");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let from = ConnectInfo(SocketAddr::from((from, 50_000)));
        Asker::of(Some(from), &request.body(Body::empty()).unwrap())
    }

    #[test]
    fn what_an_asker_may_changes_with_the_token() {
        let here = asker([127, 0, 0, 1], &[("host", "127.0.0.1:6970")]);
        assert!(here.check(None).is_ok());
        assert!(here.check(Some("open sesame")).is_err(), "set since it asked");
        let knowing = asker([192, 0, 2, 7], &[("authorization", "bearer open sesame")]);
        assert!(knowing.check(Some("open sesame")).is_ok());
        assert!(knowing.check(Some("open barley")).is_err(), "another since it asked");
        assert!(knowing.check(None).is_err(), "none since it asked, from elsewhere");
    }
}
