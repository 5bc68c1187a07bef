//! One request and the kinds of responses to it.

use std::borrow::Cow;
use std::net::IpAddr;

use super::scrape_all::encoding_of;
use super::{Encoding, Options, Outcome, ReceiveOutcome};
use crate::frontend::origin::Origin;
use crate::protocol::bencode::Dict;
use crate::protocol::http::{
    self, HeaderFields, HttpResponseHead, Method, QueryError, RequestHead,
};
use crate::types::{Action, Refusal, Rejected};

/// A request whose head was parsed.
pub(super) struct HttpRequest<'a> {
    /// The head.
    pub(super) head: RequestHead<'a>,
    /// The values of its header fields.
    pub(super) fields: HeaderFields<'a>,
    /// The source address; `None` if a trusted proxy does not name it.
    pub(super) source: Option<IpAddr>,
    /// Whether the client wants to reuse the connection (RFC 9112, 9.3).
    pub(super) keep_alive: bool,
}

/// A response of a known length.
#[derive(Clone, Copy)]
struct HttpResponse<'a> {
    status: &'static str,
    content_type: &'static str,
    fields: &'a str,
    body: &'a [u8],
    outcome: Outcome,
}

impl<'a> HttpRequest<'a> {
    pub(super) fn new(head: RequestHead<'a>, origin: Origin, options: &Options) -> Self {
        let fields = HeaderFields::of(head.headers);
        let keep_alive = !fields.close && (head.http_1_1 || fields.keep_alive);
        let source = origin.source(head.headers, &options.trusted_proxies, options.source_header);
        Self { head, fields, source, keep_alive }
    }

    /// Only HTTP/1.1 can be upgraded (RFC 9110, 7.8), and only by a GET (RFC 6455, 4.2.1).
    pub(super) fn wants_websocket(&self) -> bool {
        self.fields.websocket && self.head.http_1_1 && self.head.method == Method::Get
    }

    /// Responds with a page for people or their tools; `fields` are additional header fields, each
    /// with its line end.
    pub(super) fn page(
        &self,
        content_type: &'static str,
        fields: &str,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        let outcome = Outcome::Answered(Action::Page);
        let response = HttpResponse { status: "200 OK", content_type, fields, body, outcome };
        self.write_response(&response, self.keep_alive, out)
    }

    /// Responds with the bencoded result of an announce or scrape.
    pub(super) fn bencoded(
        &self,
        outcome: Outcome,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        self.write_response(&ok(body, outcome), self.keep_alive, out)
    }

    /// Responds with a `failure reason` and the time of a useful retry. `body` is a buffer for the
    /// body.
    pub(super) fn fail(
        &self,
        failure: &RequestError,
        body: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        body.clear();
        let otherwise = retry_in(failure.refusal);
        write_failure(failure.text.as_bytes(), failure.after_s, otherwise, body);
        self.write_response(&ok(body, Outcome::Refused(failure.refusal)), self.keep_alive, out)
    }

    /// Responds with an HTTP error after which the connection can be reused.
    pub(super) fn reject(&self, rejected: Rejected, out: &mut Vec<u8>) -> ReceiveOutcome {
        self.reject_with(&HttpResponse::of(rejected), self.keep_alive, out)
    }

    /// Responds to what the operator has disabled.
    pub(super) fn reject_disabled(&self, text: &'static str, out: &mut Vec<u8>) -> ReceiveOutcome {
        let response =
            HttpResponse { body: text.as_bytes(), ..HttpResponse::of(Rejected::NotFound) };
        self.reject_with(&response, self.keep_alive, out)
    }

    /// Responds with an HTTP error; the request may succeed after `wait_s` seconds.
    pub(super) fn reject_for(
        &self,
        rejected: Rejected,
        wait_s: u32,
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        let fields = format!("Retry-After: {wait_s}\r\n");
        let response = HttpResponse { fields: &fields, ..HttpResponse::of(rejected) };
        self.write_response(&response, self.keep_alive, out)
    }

    /// Responds with an HTTP error and closes, because the start of the next request is uncertain.
    pub(super) fn reject_and_close(&self, rejected: Rejected, out: &mut Vec<u8>) -> ReceiveOutcome {
        self.reject_with(&HttpResponse::of(rejected), false, out)
    }

    /// Responds to invalid HTTP with a text that names the reason; the connection closes.
    pub(super) fn reject_because(&self, text: &'static str, out: &mut Vec<u8>) -> ReceiveOutcome {
        let response =
            HttpResponse { body: text.as_bytes(), ..HttpResponse::of(Rejected::BadRequest) };
        self.reject_with(&response, false, out)
    }

    /// Responds with an HTTP error or, if the request names a torrent, with a failure that the
    /// client can show.
    fn reject_with(
        &self,
        error: &HttpResponse<'_>,
        keep_alive: bool,
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        if !self.asks_for_torrent() {
            return self.write_response(error, keep_alive, out);
        }
        let body = error.as_failure();
        self.write_response(&ok(&body, error.outcome), keep_alive, out)
    }

    /// Whether the request comes from a BitTorrent client: browsers send no info-hash.
    pub(super) fn asks_for_torrent(&self) -> bool {
        !self.fields.websocket && http::has(self.head.query, b"info_hash")
    }

    /// Refuses an upgrade whose source is unknown, without bencode, which a WebSocket client cannot
    /// read.
    pub(super) fn refuse_upgrade(&self, refusal: Refusal, out: &mut Vec<u8>) -> ReceiveOutcome {
        let outcome = Outcome::Refused(refusal);
        let body = refusal.text().as_bytes();
        let response = HttpResponse { body, outcome, ..HttpResponse::of(Rejected::BadRequest) };
        self.write_response(&response, false, out)
    }

    fn write_response(
        &self,
        response: &HttpResponse<'_>,
        keep_alive: bool,
        out: &mut Vec<u8>,
    ) -> ReceiveOutcome {
        response.write_head(self.connection(keep_alive), out);
        if self.head.method != Method::Head {
            out.extend_from_slice(response.body);
        }
        self.responded(keep_alive, response.outcome)
    }

    /// The outcome of a request whose response was written.
    pub(super) fn responded(&self, keep_alive: bool, outcome: Outcome) -> ReceiveOutcome {
        ReceiveOutcome::Responded {
            consumed: self.head.bytes,
            keep_alive,
            source: self.source,
            outcome,
        }
    }

    /// Writes the head of a full scrape; the stream worker writes the body.
    pub(super) fn full_scrape(&self, source: IpAddr, out: &mut Vec<u8>) -> ReceiveOutcome {
        self.write_full_scrape_head(out);
        ReceiveOutcome::FullScrape {
            consumed: self.head.bytes,
            keep_alive: self.keeps_alive_after_stream(),
            source,
            encoding: self.encoding(),
            chunked: self.head.http_1_1,
        }
    }

    /// Writes the head of a full scrape.
    pub(super) fn write_full_scrape_head(&self, out: &mut Vec<u8>) {
        let coding = match self.encoding() {
            Encoding::Identity => "",
            Encoding::Gzip => "Content-Encoding: gzip\r\n",
            Encoding::Zstd => "Content-Encoding: zstd\r\n",
        };
        let chunks = if self.head.http_1_1 { "Transfer-Encoding: chunked\r\n" } else { "" };
        let head = HttpResponseHead {
            status: "200 OK",
            content_type: "text/plain",
            fields: &[coding, "Vary: Accept-Encoding\r\n", chunks].concat(),
            body_bytes: None,
            connection: self.connection(self.keeps_alive_after_stream()),
        };
        head.write(out);
    }

    /// HTTP/1.0 has no chunked coding: the end of the connection is the end of the body.
    fn keeps_alive_after_stream(&self) -> bool {
        self.keep_alive && self.head.http_1_1
    }

    fn encoding(&self) -> Encoding {
        encoding_of(self.head.values("accept-encoding"))
    }

    fn connection(&self, keep_alive: bool) -> &'static str {
        match (keep_alive, self.head.http_1_1) {
            (true, true) => "",
            (true, false) => "keep-alive",
            (false, _) => "close",
        }
    }
}

/// Responds to bytes that are not a request; the connection cannot continue.
pub(super) fn reject_and_close(
    rejected: Rejected,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> ReceiveOutcome {
    let error = HttpResponse::of(rejected);
    let failure = http::begins_with_torrent(bytes).then(|| error.as_failure());
    let response = failure.as_ref().map_or(error, |body| ok(body, error.outcome));
    response.write_head("close", out);
    out.extend_from_slice(response.body);
    let outcome = response.outcome;
    ReceiveOutcome::Responded { consumed: bytes.len(), keep_alive: false, source: None, outcome }
}

fn ok(body: &[u8], outcome: Outcome) -> HttpResponse<'_> {
    HttpResponse { status: "200 OK", content_type: "text/plain", fields: "", body, outcome }
}

impl HttpResponse<'static> {
    /// An HTTP error with a short text.
    fn of(rejected: Rejected) -> Self {
        let (status, fields, body) = match rejected {
            Rejected::NotFound => {
                ("404 Not Found", "", "not found: announce URLs end in /announce\n")
            }
            Rejected::BadMethod => (
                "405 Method Not Allowed",
                "Allow: GET, HEAD\r\n",
                "method not allowed: use GET or HEAD\n",
            ),
            Rejected::LongTarget => ("414 URI Too Long", "", "request target too long\n"),
            Rejected::LongHead => {
                ("431 Request Header Fields Too Large", "", "request head too long\n")
            }
            Rejected::TooSoon => ("429 Too Many Requests", "", "full scrape too soon\n"),
            Rejected::BadUpgrade => (
                "426 Upgrade Required",
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
                "WebSocket version 13 required\n",
            ),
            Rejected::BadRequest
            | Rejected::BadPreamble
            | Rejected::BadFrame
            | Rejected::BadMessage => ("400 Bad Request", "", "not an HTTP request\n"),
        };
        let outcome = Outcome::Rejected(rejected);
        Self { status, content_type: "text/plain", fields, body: body.as_bytes(), outcome }
    }
}

impl HttpResponse<'_> {
    /// The error as a `failure reason`: for a status other than 200, clients show the number at
    /// best (libtorrent), or report that the body is not bencoded (rTorrent).
    fn as_failure(&self) -> Vec<u8> {
        // The operator of a proxy or tracker may correct a path; a malformed request stays
        // malformed.
        let is_path = self.outcome == Outcome::Rejected(Rejected::NotFound);
        let mut body = Vec::new();
        let text = self.body.strip_suffix(b"\n").unwrap_or(self.body);
        write_failure(text, is_path.then_some(PATH_RETRY_S), b"never", &mut body);
        body
    }

    fn write_head(&self, connection: &'static str, out: &mut Vec<u8>) {
        let head = HttpResponseHead {
            status: self.status,
            content_type: self.content_type,
            fields: self.fields,
            body_bytes: Some(self.body.len()),
            connection,
        };
        head.write(out);
    }
}

/// Appends a `failure reason` and the time of a useful retry: `retry in` (BEP 31), in minutes, and
/// the same time as `interval`, the only key that libtorrent reads in a failure (without it, it
/// waits 30 minutes). Without `after_s`, `retry in` is `otherwise`.
fn write_failure(text: &[u8], after_s: Option<u32>, otherwise: &[u8], body: &mut Vec<u8>) {
    let mut dict = Dict::new(body);
    dict.bytes(b"failure reason", text);
    if let Some(after_s) = after_s {
        dict.integer(b"interval", after_s.into());
        dict.integer(b"min interval", after_s.into());
        dict.bytes(b"retry in", after_s.div_ceil(60).to_string().as_bytes());
    } else {
        dict.bytes(b"retry in", otherwise);
    }
}

/// Seconds after which an unknown path may be requested again.
const PATH_RETRY_S: u32 = 1800;

/// Why a request fails, with a text that names the reason.
#[derive(Clone, Debug)]
pub(super) struct RequestError {
    refusal: Refusal,
    text: Cow<'static, str>,
    /// Seconds after which the client may retry, where more exact than [`retry_in`].
    after_s: Option<u32>,
}

impl RequestError {
    /// A refusal with the operator's reason.
    pub(super) fn because(refusal: Refusal, text: &str) -> Self {
        Self { text: Cow::Owned(text.to_owned()), ..refusal.into() }
    }

    /// Why.
    pub(super) fn refusal(&self) -> Refusal {
        self.refusal
    }

    /// Sets the seconds after which the client may retry.
    pub(super) fn after(self, after_s: u32) -> Self {
        Self { after_s: Some(after_s), ..self }
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, text: Cow::Borrowed(refusal.text()), after_s: None }
    }
}

impl From<QueryError> for RequestError {
    fn from(malformed: QueryError) -> Self {
        Self { text: Cow::Borrowed(malformed.text()), ..Refusal::Malformed.into() }
    }
}

/// Minutes after which a client may retry, as text (BEP 31). An operator may correct a proxy's
/// configuration; the same malformed request never becomes valid, and the same software is never
/// allowed.
fn retry_in(refusal: Refusal) -> &'static [u8] {
    match refusal {
        Refusal::NoSource | Refusal::Limited | Refusal::PasskeyLimit => b"30",
        _ => b"never",
    }
}
