//! The HTTP front end: request bytes in, response bytes out. Sans-I/O: the stream worker reads,
//! writes and enforces the deadlines.
//!
//! ```text
//! announce   / /announce /announce/PASSKEY /PASSKEY/announce      with info_hash
//! scrape     /scrape /scrape/PASSKEY /PASSKEY/scrape
//! pages      / without info_hash, /stats, /stats.json, /badge.svg
//! WebSocket  an upgrade on any path
//! ```
//!
//! A passkey is ignored where none is required, so that announce URLs of other trackers continue to
//! work. A request that names an info-hash gets a bencoded response with status 200 even if it is
//! refused, on the wrong path, or invalid HTTP, because clients show `failure reason` and discard
//! the body of an HTTP error. A response never contains bytes from the client.

mod announce;
mod request;
mod scrape;
mod scrape_all;
mod upgrade;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::frontend::drawing::BADGE_AGE_S_MAX;
use crate::frontend::origin::{HopField, Origin, proxy};
use crate::frontend::stats::{BADGE_POLICY, HTML_POLICY, Pages};
use crate::frontend::unlisted_proxies::{ForwardingHeader, UnlistedProxies};
use crate::protocol::http::{self, Headers, Method, QueryError, RequestHead};
use crate::protocol::passkey::{self, Passkey};
use crate::time::Now;
use crate::tracker::{Listing, Tracker};
pub use crate::types::Outcome;
use crate::types::{Action, Event, InfoHash, Refusal, Rejected};
use request::{HttpRequest, RequestError};
pub use scrape_all::{FullScrape, FullScrapeLimits, PIECE_BYTES_MAX};

pub use crate::protocol::http::HEAD_BYTES_MAX;

/// The operator's settings, replaced as a whole on reload.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Proxies whose source headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The only trusted source header; `None`: all supported ones.
    pub source_header: Option<HopField>,
    /// Whether a scrape without an info-hash returns all torrents.
    pub full_scrape: bool,
    /// Least seconds between two full scrapes of a source.
    pub full_scrape_interval_s: u32,
    /// Whether the statistics pages are public.
    pub public_stats: bool,
    /// The name of the tracker on the public page; empty: none.
    pub public_name: String,
    /// Whether announces and scrapes are refused: only WebSockets are served.
    pub without_announces: bool,
    /// Whether WebSockets are refused.
    pub without_websockets: bool,
    /// `warning message` of every announce response; empty: none.
    pub warning: String,
    /// `tracker id` of every announce response; empty: none.
    pub tracker_id: String,
}

/// One worker's HTTP front end.
pub struct HttpFrontend {
    options: arc_swap::Cache<Arc<ArcSwap<Options>>, Arc<Options>>,
    pages: Arc<ArcSwap<Pages>>,
    full_scrapes: Arc<FullScrapeLimits>,
    unlisted_proxies: Arc<UnlistedProxies>,
    scratch: Scratch,
}

/// Buffers that are reused by every request.
#[derive(Default)]
struct Scratch {
    /// The body of the response, built first because its length precedes it.
    body: Vec<u8>,
    /// The chosen peers.
    peers: announce::Peers,
    /// The info-hashes of a scrape.
    info_hashes: Vec<InfoHash>,
}

/// The result of handling the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveOutcome {
    /// The head is not complete: more bytes are needed. Never returned for [`HEAD_BYTES_MAX`] bytes
    /// or more.
    More,
    /// `consumed` bytes were a request, and its response was appended to the output.
    Responded {
        /// Bytes to remove from the front of the input.
        consumed: usize,
        /// Whether the connection may be used again.
        keep_alive: bool,
        /// The source of the request, if known.
        source: Option<IpAddr>,
        /// The outcome, for the counters.
        outcome: Outcome,
    },
    /// The connection is now a WebSocket: the 101 response was appended to the output. The bytes
    /// after `consumed` belong to the first frame.
    Upgraded {
        /// Bytes to remove from the front of the input.
        consumed: usize,
        /// The source of the request.
        source: IpAddr,
        /// The passkey from the path.
        passkey: Option<Passkey>,
    },
    /// The response is too long to be held in memory: its head was appended to the output, and the
    /// caller must call [`HttpFrontend::full_scrape`] for the body.
    FullScrape {
        /// Bytes to remove from the front of the input.
        consumed: usize,
        /// Whether the connection may be used again.
        keep_alive: bool,
        /// The source of the request.
        source: IpAddr,
        /// The content coding of the body.
        encoding: Encoding,
        /// Whether the body is to be sent in chunks (HTTP/1.1), or ended by closing (HTTP/1.0).
        chunked: bool,
    },
}

/// Content codings of a full scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// No coding.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl HttpFrontend {
    /// Makes a front end; the contents of `options` and `pages` may be replaced at any time.
    pub fn new(options: Arc<ArcSwap<Options>>, pages: Arc<ArcSwap<Pages>>) -> Self {
        let options = arc_swap::Cache::new(options);
        let (full_scrapes, unlisted_proxies, scratch) = Default::default();
        Self { options, pages, full_scrapes, unlisted_proxies, scratch }
    }

    /// Applies `limits` on full scrapes, which all workers share.
    #[must_use]
    pub fn with_full_scrapes(mut self, limits: Arc<FullScrapeLimits>) -> Self {
        self.full_scrapes = limits;
        self
    }

    /// Records proxies that are not listed in `seen`, which all workers share.
    #[must_use]
    pub fn with_unlisted_proxies(mut self, seen: Arc<UnlistedProxies>) -> Self {
        self.unlisted_proxies = seen;
        self
    }

    /// Records a PROXY header at the front of bytes from an origin that may not send one.
    pub fn note_proxy_header(&mut self, now: Now, origin: Origin, bytes: &[u8]) {
        if proxy::is_header(bytes)
            && let Some(address) = origin.unlisted(&self.options.load().trusted_proxies)
        {
            self.unlisted_proxies.note(now, address, ForwardingHeader::ProxyProtocol);
        }
    }

    /// Handles the first request in `bytes`, which came from `origin`; appends to `out`.
    pub fn handle(
        &mut self,
        tracker: &mut Tracker,
        now: Now,
        origin: Origin,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        let mut headers = Headers::default();
        let head = match RequestHead::parse(bytes, &mut headers) {
            Ok(Some(head)) => head,
            Ok(None) => return ReceiveOutcome::More,
            Err(rejected) => {
                self.note_proxy_header(now, origin, bytes);
                return request::reject_and_close(rejected, bytes, out);
            }
        };
        let options = self.options.load();
        let request = HttpRequest::new(head, origin, options);
        if let Some(field) = request.fields.hops
            && let Some(address) = origin.unlisted(&options.trusted_proxies)
        {
            self.unlisted_proxies.note(now, address, field.into());
        }
        let mut handler = RequestHandler {
            options,
            pages: &self.pages,
            full_scrapes: &self.full_scrapes,
            scratch: &mut self.scratch,
            tracker,
            now,
        };
        handler.respond(&request, out)
    }

    /// Returns the body of a [`ReceiveOutcome::FullScrape`] with this encoding and framing, to be
    /// written on a separate thread. No other full scrape starts until it is dropped.
    ///
    /// # Errors
    /// If memory for the encoder is missing: the caller must close the connection.
    pub fn full_scrape(
        &self,
        listing: Listing,
        encoding: Encoding,
        chunked: bool,
    ) -> io::Result<FullScrape> {
        let pages = move |after: Option<&InfoHash>, count| listing.torrents_after(after, count);
        FullScrape::new(self.full_scrapes.clone(), Box::new(pages), encoding, chunked)
    }
}

/// The context of one request.
struct RequestHandler<'a> {
    options: &'a Options,
    pages: &'a ArcSwap<Pages>,
    full_scrapes: &'a FullScrapeLimits,
    scratch: &'a mut Scratch,
    tracker: &'a mut Tracker,
    now: Now,
}

/// The target of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Announce,
    Scrape,
    /// A short text for browsers.
    Front,
    StatsPage,
    StatsJson,
    Badge,
    Nowhere,
}

impl RequestHandler<'_> {
    fn respond(&mut self, request: &HttpRequest<'_>, out: &mut Vec<u8>) -> ReceiveOutcome {
        let head = &request.head;
        if head.method == Method::Other {
            return request.reject_and_close(Rejected::BadMethod, out);
        }
        if request.fields.body {
            return request.reject_because("A request to a tracker has no body.\n", out);
        }
        let route = route(head.path, head.query);
        if head.has_controls {
            return match route {
                Route::Announce | Route::Scrape if !request.wants_websocket() => {
                    self.fail_malformed(request, QueryError::Controls, out)
                }
                _ => request.reject_and_close(Rejected::BadRequest, out),
            };
        }
        if request.wants_websocket() {
            if self.options.without_websockets {
                return request.reject_disabled("WebSocket is disabled on this tracker\n", out);
            }
            return upgrade::respond(request, out);
        }
        match route {
            Route::Announce | Route::Scrape if self.options.without_announces => {
                request.reject_disabled("HTTP is disabled on this tracker\n", out)
            }
            Route::Announce => self.announce(request, out),
            Route::Scrape => self.scrape(request, out),
            Route::Front => request.page("text/plain", "", FRONT_PAGE.as_bytes(), out),
            Route::StatsPage if self.options.public_stats => {
                let fields = format!("Content-Security-Policy: {HTML_POLICY}\r\n{NOT_GUESSED}");
                let page = &self.pages.load().html;
                request.page("text/html; charset=utf-8", &fields, page.as_bytes(), out)
            }
            Route::StatsJson if self.options.public_stats => {
                let page = &self.pages.load().json;
                request.page("application/json", NOT_GUESSED, page.as_bytes(), out)
            }
            Route::Badge if self.options.public_stats => {
                let fields = format!(
                    "Cache-Control: public, max-age={BADGE_AGE_S_MAX}\r\n\
                     Content-Security-Policy: {BADGE_POLICY}\r\n{NOT_GUESSED}"
                );
                let badge = &self.pages.load().badge;
                request.page("image/svg+xml", &fields, badge.as_bytes(), out)
            }
            Route::StatsPage | Route::StatsJson | Route::Badge | Route::Nowhere => {
                request.reject(Rejected::NotFound, out)
            }
        }
    }

    /// Refuses the request, with the seconds after which the client may retry.
    fn fail(
        &mut self,
        request: &HttpRequest<'_>,
        failure: RequestError,
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        // The raw query value identifies the torrent: a client always encodes it in the same way.
        let torrent = || {
            let mut named = http::pairs(request.head.query).filter(|it| it.0 == b"info_hash");
            named.next().map_or(&[][..], |it| it.1)
        };
        let source = request.source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let failure = match self.tracker.retry_s(self.now, source, failure.refusal(), torrent) {
            Some(retry_s) => failure.after(retry_s),
            None => failure,
        };
        request.fail(&failure, &mut self.scratch.body, out)
    }

    /// Refuses a malformed request, which costs as much as an announce if its source is known.
    fn fail_malformed(
        &mut self,
        request: &HttpRequest<'_>,
        malformed: QueryError,
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        let charge = |source| self.tracker.charge_announce(self.now, source, Event::None);
        let failure = match request.source.map_or(Ok(()), charge) {
            Ok(()) => malformed.into(),
            Err(error) => error.refusal().into(),
        };
        self.fail(request, failure, out)
    }

    fn announce(&mut self, request: &HttpRequest<'_>, out: &mut Vec<u8>) -> ReceiveOutcome {
        let query = match http::announce(request.head.query) {
            Ok(query) => query,
            Err(malformed) => return self.fail_malformed(request, malformed, out),
        };
        let Some(source) = request.source else {
            return self.fail(request, Refusal::NoSource.into(), out);
        };
        let announce = announce::of_query(source, &query);
        let mut details = announce::HttpDetails { head: &request.head, query: &query };
        let Scratch { body, peers, .. } = &mut *self.scratch;
        body.clear();
        match peers.announce(self.tracker, self.now, announce, &mut details) {
            Ok(response) => {
                announce::write(&announce, &response, query.compact, self.options, body);
                let answered = Outcome::Answered(Action::Announce);
                let outcome = response.not_applied.map_or(answered, Outcome::NotApplied);
                request.bencoded(outcome, body, out)
            }
            Err(error) => {
                let refusal = error.refusal();
                let failure = match self.tracker.reason(refusal, &announce) {
                    Some(reason) => RequestError::because(refusal, reason),
                    None => refusal.into(),
                };
                self.fail(request, failure, out)
            }
        }
    }

    fn scrape(&mut self, request: &HttpRequest<'_>, out: &mut Vec<u8>) -> ReceiveOutcome {
        let Scratch { body, info_hashes, .. } = &mut *self.scratch;
        body.clear();
        match http::scrape(request.head.query, info_hashes) {
            // Charged by the worker, as everything is that the tracker has not charged.
            Err(malformed) => self.fail(request, malformed.into(), out),
            Ok(()) if info_hashes.is_empty() => self.scrape_all(request, out),
            Ok(()) => {
                let Some(source) = request.source else {
                    return self.fail(request, Refusal::NoSource.into(), out);
                };
                let passkey = passkey::of_path(request.head.path);
                match scrape::write(self.tracker, self.now, source, info_hashes, passkey, body) {
                    Ok(()) => request.bencoded(Outcome::Answered(Action::Scrape), body, out),
                    Err(error) => self.fail(request, error.refusal().into(), out),
                }
            }
        }
    }

    fn scrape_all(&mut self, request: &HttpRequest<'_>, out: &mut Vec<u8>) -> ReceiveOutcome {
        if !self.options.full_scrape {
            return self.fail(request, Refusal::NoFullScrape.into(), out);
        }
        let Some(source) = request.source else {
            return self.fail(request, Refusal::NoSource.into(), out);
        };
        let passkey = passkey::of_path(request.head.path);
        if let Err(error) = self.tracker.admit_full_scrape(self.now, source, passkey) {
            return self.fail(request, error.refusal().into(), out);
        }
        if request.head.method == Method::Head {
            request.write_full_scrape_head(out);
            return request.responded(request.keep_alive, Outcome::Answered(Action::Scrape));
        }
        let interval_s = self.options.full_scrape_interval_s;
        match self.full_scrapes.start(self.now, source, interval_s) {
            Ok(()) => request.full_scrape(source, out),
            Err(wait_s) => request.reject_for(Rejected::TooSoon, wait_s, out),
        }
    }
}

/// The last segment takes precedence over the first: clients make a scrape URL by replacing the
/// last `announce` by `scrape` (BEP 48). Empty segments are ignored: some clients send
/// `//announce`.
fn route(path: &[u8], query: &[u8]) -> Route {
    let mut segments = path.split(|it| *it == b'/').filter(|it| !it.is_empty());
    let (first, second) = (segments.next(), segments.next());
    if segments.next().is_some() {
        return Route::Nowhere;
    }
    let Some(first) = first else {
        return if http::has(query, b"info_hash") { Route::Announce } else { Route::Front };
    };
    match (first, second.unwrap_or(first)) {
        (_, b"announce") => Route::Announce,
        (_, b"scrape") => Route::Scrape,
        (b"announce", _) => Route::Announce,
        (b"scrape", _) => Route::Scrape,
        _ if http::has(query, b"info_hash") => Route::Nowhere,
        (b"stats", _) if second.is_none() => Route::StatsPage,
        (b"stats.json", _) if second.is_none() => Route::StatsJson,
        (b"badge.svg", _) if second.is_none() => Route::Badge,
        _ => Route::Nowhere,
    }
}

/// Prevents browsers from guessing a content type other than the declared one.
const NOT_GUESSED: &str = "X-Content-Type-Options: nosniff\r\n";

/// The page at `/`.
const FRONT_PAGE: &str = "\
This is a BitTorrent tracker. To use it, put its address with /announce behind it into a torrent's
list of trackers.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_clients_expect() {
        for (path, expected) in [
            ("/announce", Route::Announce),
            ("//announce", Route::Announce),
            ("/announce/", Route::Announce),
            ("/announce/0123456789abcdef", Route::Announce),
            ("/0123456789abcdef/announce", Route::Announce),
            ("/scrape/announce", Route::Announce),
            ("/scrape", Route::Scrape),
            ("/scrape/0123456789abcdef", Route::Scrape),
            ("/0123456789abcdef/scrape", Route::Scrape),
            ("/announce/scrape", Route::Scrape),
            ("/stats", Route::StatsPage),
            ("/stats.json", Route::StatsJson),
            ("/badge.svg", Route::Badge),
            ("/stats/x", Route::Nowhere),
            ("/x/stats", Route::Nowhere),
            ("/a/b/announce", Route::Nowhere),
            ("/announce.php", Route::Nowhere),
            ("/Announce", Route::Nowhere),
            ("/favicon.ico", Route::Nowhere),
            ("/", Route::Front),
            ("", Route::Front),
        ] {
            assert_eq!(route(path.as_bytes(), b"x=1"), expected, "{path}");
        }
        assert_eq!(route(b"/", b"a=b&info_hash=x"), Route::Announce);
        assert_eq!(route(b"/scrape", b""), Route::Scrape);
        assert_eq!(route(b"/stats", b"info_hash=x"), Route::Nowhere, "a client, not a reader");
    }
}
