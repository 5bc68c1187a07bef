//! Who may use the API.
//!
//! | token | asked from | to look | to change |
//! |---|---|---|---|
//! | configured | anywhere | the token | the token |
//! | made by this tracker | this host | nothing, or the token | the token |
//! | made by this tracker | elsewhere, or by a proxy | the token | the token |
//! | absent | this host | nothing | refused |
//! | absent | elsewhere, or by a proxy | refused | refused |
//!
//! Where nothing is needed, the Host header has to be a loopback address or localhost, if there is
//! one: under another address, what asks from this host passes something on. A request that shows
//! traces of a proxy may come from anywhere. HTTP/1.0 is such a trace: it is what nginx speaks
//! to what is behind it unless told otherwise, with a Host of its own making.
//!
//! A page in a browser of this host can send requests here too. These things keep it out: a token
//! is nothing that a browser adds by itself; what has an effect is refused if it comes with an
//! Origin, the Referer of another host, or a Sec-Fetch-Site by which it is a page's and not a
//! person's, and if Host is one by which a browser takes a site's page to this host (0.0.0.0, in
//! whatever spelling); and without a token, a name that a stranger pointed at this host
//! (DNS rebinding) is not a name to ask under.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::rejection::ExtensionRejection;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::problem::ApiError;
use super::{Admin, Process};

/// What the API asks for.
#[derive(Clone, Default)]
pub enum Token {
    /// There is none, so nobody can change anything.
    #[default]
    Absent,
    /// This tracker made it: whatever changes something needs it.
    Kept(Arc<str>),
    /// The settings name it: everything needs it.
    Configured(Arc<str>),
}

impl fmt::Debug for Token {
    /// Never prints one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "Absent",
            Self::Kept(_) => "Kept(…)",
            Self::Configured(_) => "Configured(…)",
        })
    }
}

/// Paths at which looking has an effect, for what can only fetch.
pub(super) const FETCHED_EFFECTS: [&str; 1] = ["/save_state"];

/// Lets a request through to the API, or says why not.
pub(super) async fn guard<P: Process>(
    State(admin): State<Admin<P>>,
    from: Result<ConnectInfo<SocketAddr>, ExtensionRejection>,
    request: Request,
    next: Next,
) -> Response {
    let (sender, token) = (RequestSender::of(from.ok(), &request), admin.process.token());
    let verdict = if has_effect(&request) {
        no_page(&request).and_then(|()| sender.may_change(&token))
    } else {
        sender.may_read(&token)
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn has_effect(request: &Request) -> bool {
    !request.method().is_safe() || FETCHED_EFFECTS.contains(&request.uri().path())
}

/// Refuses what a page in a browser may have sent.
fn no_page(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let refers_elsewhere = headers.get_all(header::REFERER).iter().any(|value| {
        let from = value.to_str().ok().and_then(|it| it.parse::<Uri>().ok());
        let from = from.and_then(|it| it.into_parts().authority);
        from.is_none() || from != hosts(request).next().flatten()
    });
    // What a person has typed is of no site.
    let is_of_site = headers.get_all("sec-fetch-site").iter().any(|it| it.as_bytes() != b"none");
    if headers.contains_key(header::ORIGIN) || refers_elsewhere || is_of_site {
        return Err(ApiError::from_browser());
    }
    if hosts(request).any(|it| it.is_none_or(|it| is_nobodys(&it))) {
        return Err(ApiError::odd_host());
    }
    Ok(())
}

/// What a request says of its sender: for pages that show part of what the API tells, and for
/// those on which the right to it has to be judged again later.
#[derive(Debug)]
pub(super) struct RequestSender {
    is_local: bool,
    is_forwarded: bool,
    names_this_host: bool,
    /// The token that it shows.
    shown: Option<Box<[u8]>>,
}

impl RequestSender {
    pub(super) fn of(from: Option<ConnectInfo<SocketAddr>>, request: &Request) -> Self {
        Self {
            // Where nobody says whence a request comes, it comes from elsewhere.
            is_local: from
                .is_some_and(|ConnectInfo(address)| address.ip().to_canonical().is_loopback()),
            is_forwarded: is_forwarded(request),
            names_this_host: hosts(request).all(|it| it.is_some_and(|it| is_this_host(&it))),
            shown: bearer_token(request.headers()).map(Into::into),
        }
    }

    /// Whether the API would serve the sender now: the token may have changed since it asked.
    pub(super) fn is_served<P: Process>(&self, admin: &Admin<P>) -> bool {
        self.may_read(&admin.process.token()).is_ok()
    }

    fn may_read(&self, token: &Token) -> Result<(), ApiError> {
        match token {
            Token::Configured(token) | Token::Kept(token) if self.has(token) => Ok(()),
            Token::Configured(_) => Err(ApiError::no_token()),
            _ if !self.is_local => Err(ApiError::only_local()),
            _ if self.is_forwarded => Err(ApiError::forwarded()),
            _ if !self.names_this_host => Err(ApiError::bad_host()),
            _ => Ok(()),
        }
    }

    fn may_change(&self, token: &Token) -> Result<(), ApiError> {
        match token {
            Token::Configured(token) | Token::Kept(token) if self.has(token) => Ok(()),
            Token::Absent => Err(ApiError::token_absent()),
            _ => Err(ApiError::no_token()),
        }
    }

    /// Whether it shows the token, compared in constant time: how long a wrong one takes tells
    /// nothing about the right one but its length.
    fn has(&self, token: &str) -> bool {
        self.shown.as_deref().is_some_and(|it| it.ct_eq(token.as_bytes()).into())
    }
}

/// The token that a request shows (RFC 6750).
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let field = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = field.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// Whether a reverse proxy may have passed the request on: it comes from this host then, and its
/// sender from anywhere.
fn is_forwarded(request: &Request) -> bool {
    let is_trace = |name: &HeaderName| {
        let text = name.as_str();
        text.starts_with("x-forwarded") || TRACES.contains(&text)
    };
    request.version() < Version::HTTP_11 || request.headers().keys().any(is_trace)
}

/// What proxies and what delivers contents for others add besides X-Forwarded-….
const TRACES: [&str; 17] = [
    "cdn-loop",
    "cf-connecting-ip",
    "cf-ray",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-original-forwarded-for",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-remote-addr",
];

/// The hosts that a request names, in its target and its header: `None` for what names none. A
/// request without any is of no browser.
fn hosts(request: &Request) -> impl Iterator<Item = Option<Authority>> {
    let in_target = request.uri().authority().cloned();
    let in_header = request.headers().get_all(header::HOST);
    let in_header = in_header.iter().map(|it| Authority::try_from(it.as_bytes()).ok());
    in_target.map(Some).into_iter().chain(in_header)
}

/// An authority's host, if that is an address.
fn address(authority: &Authority) -> Option<IpAddr> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().ok().map(|it| it.to_canonical())
}

/// Whether this is no name of any host: it has a user before it, or is the address of nobody, which
/// leads to this host, and which browsers do not take for it; or an address in a spelling of old
/// (`0`, `0x7f.1`), which may be that of nobody.
fn is_nobodys(authority: &Authority) -> bool {
    authority.as_str().contains('@')
        || address(authority)
            .map_or_else(|| ends_in_a_number(authority.host()), |it| it.is_unspecified())
}

/// Whether this is no domain, but an IPv4 address in some spelling, as browsers judge that.
fn ends_in_a_number(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|it| it.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|it| it.is_ascii_digit()),
    }
}

/// Whether this is localhost or a loopback address: nobody can point it elsewhere.
fn is_this_host(authority: &Authority) -> bool {
    let is_loopback = address(authority).is_some_and(|it| it.is_loopback());
    !is_nobodys(authority) && (is_loopback || authority.host().eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn sender(from: [u8; 4], fields: &[(&str, &str)]) -> RequestSender {
        let mut request = Request::builder().uri("/stats/live");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let from = ConnectInfo(SocketAddr::from((from, 50_000)));
        RequestSender::of(Some(from), &request.body(Body::empty()).unwrap())
    }

    #[test]
    fn what_an_asker_may_changes_with_the_token() {
        let configured = |it: &str| Token::Configured(it.into());
        let kept = Token::Kept("open sesame".into());
        let here = sender([127, 0, 0, 1], &[("host", "127.0.0.1:6970")]);
        assert!(here.may_read(&Token::Absent).is_ok() && here.may_read(&kept).is_ok());
        assert!(here.may_read(&configured("open sesame")).is_err(), "set since it asked");
        let knowing = sender([192, 0, 2, 7], &[("authorization", "bearer open sesame")]);
        for token in [&configured("open sesame"), &kept] {
            assert!(knowing.may_read(token).is_ok() && knowing.may_change(token).is_ok());
            assert!(here.may_change(token).is_err());
        }
        assert!(knowing.may_read(&configured("open barley")).is_err(), "another since it asked");
        assert!(knowing.may_read(&Token::Absent).is_err(), "none since it asked, from elsewhere");
        assert!(knowing.may_change(&Token::Absent).is_err());
        assert_eq!(format!("{kept:?}"), "Kept(…)");
    }

    #[test]
    fn a_proxys_traces_are_known() {
        let is_forwarded = |fields: &[(&str, &str)]| sender([127, 0, 0, 1], fields).is_forwarded;
        assert!(!is_forwarded(&[("host", "127.0.0.1"), ("user-agent", "curl"), ("x-request", "")]));
        let names = ["X-Forwarded-Host", "X-Forwarded-Proto", "x-forwarded", "Via", "CF-Ray"];
        for name in names.iter().chain(&TRACES) {
            assert!(is_forwarded(&[(*name, "x")]), "{name}");
        }
        let request = Request::builder().version(Version::HTTP_10).body(Body::empty()).unwrap();
        assert!(RequestSender::of(None, &request).is_forwarded);
    }
}
