//! Golden requests and responses over HTTP: conversations as text, one file a case, replayed
//! through the front end that every worker runs. What a file says is what clients see, byte for
//! byte; the file's name is the case.
//!
//! ```text
//! option full_scrape          a setting that differs; also public_stats, warning TEXT,
//!                             without_announces, without_websockets,
//!                             trusted NETWORK, header NAME, full_scrape_interval_s N
//! from 198.51.100.1           the socket's address; `from unix`: a Unix socket
//! > GET / HTTP/1.1            a line of a request: CRLF is added
//! >+ GE                       a piece of a request, nothing added
//! < HTTP/1.1 200 OK           exactly this line of the response
//! <+ d8:completei1e…          exactly this piece of the response, nothing added
//! ! announce keep             how the request ended (below), and `keep` or `close`
//! source 198.51.100.1         who was taken to have asked; `source none`
//! body x=y&                   a piece of a request that is repeated: `repeat 100 x=y&`
//! wait 128                    seconds that pass
//! # …                         a comment, at the start of a line
//! ```
//!
//! In pieces and lines `\r`, `\n`, `\\` and `\xNN` stand for bytes. `!` names, in order, how every
//! request of what was sent ended: what was answered (announce, scrape, page), refused or rejected
//! (by the label of its metric), `upgraded`, `full_scrape CODING chunked|closed`, or `more`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bt_bencode::Value;
use skep::frontend::http::{Encoding, HttpFrontend, Options, Outcome, ReceiveOutcome};
use skep::frontend::origin::{HopField, Origin};
use skep::frontend::stats::Pages;
use skep::protocol::http::QueryError;
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};
use skep::types::{Action, Refusal, Rejected};

/// When every conversation starts.
const START: Now = Now::from_s(1_800_000_000);

/// A conversation at one point.
struct Conversation {
    frontend: HttpFrontend,
    options: Arc<ArcSwap<Options>>,
    rules: Arc<ArcSwap<tracker::Options>>,
    tracker: Tracker,
    now: Now,
    origin: Origin,
    request: Vec<u8>,
    response: Vec<u8>,
    /// How many bytes of the response the case has shown.
    shown: usize,
    /// How each request ended that the case has not told of.
    ends: Vec<String>,
    source: Option<IpAddr>,
    open: bool,
}

impl Conversation {
    fn new() -> Self {
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
        let rules = tracker::Options { interval_jitter_s: 0, ..Default::default() };
        let rules = Arc::new(ArcSwap::from_pointee(rules));
        let tracker = Tracker::without_upkeep(store, rules.clone(), 1);
        let options = Arc::new(ArcSwap::from_pointee(Options::default()));
        let pages = Pages {
            html: "<p>seven bees\n".into(),
            json: "{\"bees\":7}".into(),
            badge: "<svg>7</svg>".into(),
        };
        let frontend = HttpFrontend::new(options.clone(), Arc::new(ArcSwap::from_pointee(pages)));
        Self {
            frontend,
            options,
            rules,
            tracker,
            now: START,
            origin: Origin::Address("198.51.100.254".parse().unwrap()),
            request: Vec::new(),
            response: Vec::new(),
            shown: 0,
            ends: Vec::new(),
            source: None,
            open: true,
        }
    }

    fn set(&self, setting: &str) {
        let (name, value) = setting.split_once(' ').unwrap_or((setting, ""));
        let mut options = (**self.options.load()).clone();
        match name {
            "full_scrape" => options.full_scrape = true,
            "full_scrape_interval_s" => options.full_scrape_interval_s = value.parse().unwrap(),
            "public_stats" => options.public_stats = true,
            "without_announces" => options.without_announces = true,
            "without_websockets" => options.without_websockets = true,
            "warning" => options.warning = value.into(),
            "tracker_id" => options.tracker_id = value.into(),
            "header" => {
                let named = [
                    ("forwarded", HopField::Forwarded),
                    ("x-forwarded-for", HopField::XForwardedFor),
                    ("x-real-ip", HopField::XRealIp),
                ];
                let (_, field) = named.into_iter().find(|it| it.0 == value).unwrap();
                options.source_header = Some(field);
            }
            "ip_override_from" => {
                let mut rules = (**self.rules.load()).clone();
                rules.ip_override_from.push(value.parse().unwrap());
                self.rules.store(Arc::new(rules));
            }
            "trusted" => options.trusted_proxies.push(value.parse().unwrap()),
            _ => panic!("what is `{name}`?"),
        }
        self.options.store(Arc::new(options));
    }

    /// Lets the front end have everything that was sent, as a worker does.
    fn deliver(&mut self) {
        while !self.request.is_empty() && self.open {
            let (request, response) = (&self.request, &mut self.response);
            let flow =
                self.frontend.handle(&mut self.tracker, self.now, self.origin, request, response);
            let consumed = self.note(flow);
            if consumed == 0 {
                self.ends.push("more".into());
                return;
            }
            self.request.drain(..consumed);
        }
        if !self.open {
            self.request.clear(); // nobody reads on
        }
    }

    /// Notes how a request ended; says how many bytes it took.
    fn note(&mut self, flow: ReceiveOutcome) -> usize {
        let (consumed, keep_alive, end) = match flow {
            ReceiveOutcome::More => return 0,
            ReceiveOutcome::Responded { consumed, keep_alive, source, outcome } => {
                self.source = source;
                (consumed, keep_alive, label(outcome).to_owned())
            }
            ReceiveOutcome::Upgraded { consumed, source, .. } => {
                self.source = Some(source);
                self.open = false;
                self.ends.push("upgraded".into());
                return consumed;
            }
            ReceiveOutcome::FullScrape { consumed, keep_alive, source, encoding, chunked } => {
                self.source = Some(source);
                let coding = self.write_full_scrape(encoding, chunked);
                let framing = if chunked { "chunked" } else { "closed" };
                (consumed, keep_alive, format!("full_scrape {coding} {framing}"))
            }
        };
        self.open = keep_alive;
        self.ends.push(format!("{end} {}", if keep_alive { "keep" } else { "close" }));
        consumed
    }

    /// Appends the body of a full scrape, decoded, so that cases can show it.
    fn write_full_scrape(&mut self, encoding: Encoding, chunked: bool) -> &'static str {
        let listing = self.tracker.listing();
        let mut scrape = self.frontend.full_scrape(listing, encoding, chunked).unwrap();
        let mut body = Vec::new();
        while scrape.write_piece(&mut body).unwrap() {}
        match encoding {
            Encoding::Identity => {
                self.response.extend(body);
                "identity"
            }
            Encoding::Gzip => "gzip",
            Encoding::Zstd => "zstd",
        }
    }

    fn step(&mut self, at: &str, word: &str, rest: &str) {
        if matches!(word, "<" | "<+" | "!" | "source") && !self.request.is_empty() {
            assert!(self.open, "{at}: the connection was closed");
            self.deliver();
        }
        match word {
            "option" => self.set(rest),
            "from" => self.connect(at, rest),
            "wait" => self.now = self.now.plus_s(rest.parse().unwrap()),
            ">" => self.request.extend([&bytes(rest)[..], b"\r\n"].concat()),
            ">+" => self.request.extend(bytes(rest)),
            "repeat" => {
                let (times, piece) = rest.split_once(' ').unwrap();
                self.request.extend(bytes(piece).repeat(times.parse().unwrap()));
            }
            "<" => self.expect(at, &[&bytes(rest)[..], b"\r\n"].concat()),
            "<+" => self.expect(at, &bytes(rest)),
            "!" => {
                assert_eq!(self.ends.join(", "), rest, "{at}");
                self.ends.clear();
                self.close(at);
            }
            "source" => {
                let source = self.source.map_or_else(|| "none".into(), |it| it.to_string());
                assert_eq!(source, rest, "{at}");
            }
            _ => panic!("{at}: what is `{word}`?"),
        }
    }

    /// A new connection. What the case does not show of an announce's response does not matter to
    /// it.
    fn connect(&mut self, at: &str, origin: &str) {
        self.deliver();
        self.close(at);
        self.ends.clear();
        self.open = true;
        self.request.clear();
        self.origin = match origin {
            "unix" => Origin::Local,
            address => Origin::Address(address.parse().unwrap()),
        };
    }

    fn expect(&mut self, at: &str, expected: &[u8]) {
        let rest = &self.response[self.shown..];
        let got = &rest[..rest.len().min(expected.len())];
        assert_eq!(text(got), text(expected), "{at}, and then {}", text(rest));
        self.shown += expected.len();
    }

    /// The response is over: either all of it was shown or nothing.
    fn close(&mut self, at: &str) {
        let rest = &self.response[self.shown..];
        assert!(self.shown == 0 || rest.is_empty(), "{at}: not shown: {}", text(rest));
        judge(at, &self.response);
        self.response.clear();
        self.shown = 0;
    }
}

fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered(action) => action.label(),
        Outcome::NotApplied(_) => Action::Announce.label(),
        Outcome::Refused(refusal) => refusal.label(),
        Outcome::Rejected(rejected) => rejected.label(),
    }
}

/// Everything that every response has to be, whatever the case shows of it.
fn judge(at: &str, response: &[u8]) {
    let mut rest = response;
    while !rest.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut headers);
        let length = head.parse(rest).unwrap_or_else(|it| panic!("{at}: {it}")).unwrap();
        let value = |name: &str| {
            let header = head.headers.iter().find(|it| it.name == name)?;
            Some(std::str::from_utf8(header.value).unwrap())
        };
        let Some(bytes) = value("Content-Length").map(|it| it.parse::<usize>().unwrap()) else {
            return; // an upgrade, or a stream
        };
        let end = length + bytes;
        if rest.len() < end || rest[length..].starts_with(b"HTTP/1.1 ") {
            rest = &rest[length..]; // the answer to a HEAD
            continue;
        }
        let body = &rest[length..end];
        if head.code == Some(200) && body.starts_with(b"d") {
            let value: Value = bt_bencode::from_slice(body).unwrap();
            assert_eq!(bt_bencode::to_vec(&value).unwrap(), body, "{at}: keys ascend");
        }
        rest = &rest[end..];
    }
}

/// Bytes of a line of a case.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let (byte, used) = match rest[0] {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b'\\' => (b'\\', 1),
            b'x' => {
                let digits = std::str::from_utf8(&rest[1..3]).unwrap();
                (u8::from_str_radix(digits, 16).unwrap(), 3)
            }
            other => panic!("what is `\\{}`?", char::from(other)),
        };
        out.push(byte);
        rest = &rest[used..];
    }
    out
}

/// Bytes as a line of a case.
fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").unwrap(),
        }
    }
    text
}

/// The cases: name and text.
fn cases() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/http");
    let files = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|it| it.extension().is_some_and(|it| it == "txt")).collect();
    files.sort();
    assert!(files.len() > 60, "the cases were found");
    let name = |file: &Path| file.file_stem().unwrap().to_str().unwrap().to_owned();
    files.iter().map(|it| (name(it), fs::read_to_string(it).unwrap())).collect()
}

/// The steps of a case: where they stand, their word, and the rest of the line.
fn steps(case: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let lines = (1..).zip(case.lines()).filter(|(_, it)| !it.is_empty() && !it.starts_with('#'));
    lines.map(|(at, line)| {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        (at, word, rest)
    })
}

#[test]
fn every_conversation_is_as_written() {
    for (name, case) in cases() {
        let mut conversation = Conversation::new();
        let mut judged = false;
        for (line, word, rest) in steps(&case) {
            conversation.step(&format!("{name}.txt:{line}"), word, rest);
            judged |= word == "!";
        }
        assert!(judged, "{name}.txt says how nothing ended");
        assert!(conversation.request.is_empty(), "{name}.txt: unread");
    }
}

#[test]
fn a_conversation_may_come_byte_by_byte() {
    for (name, case) in cases() {
        let mut whole = Conversation::new();
        for (line, word, rest) in steps(&case) {
            let at = format!("{name}.txt:{line}");
            let before = whole.request.len();
            if matches!(word, ">" | ">+" | "repeat") {
                whole.step(&at, word, rest);
                let sent = whole.request.split_off(before);
                trickle(&mut whole, &sent);
            } else {
                let told = std::mem::take(&mut whole.ends);
                whole.ends = told.into_iter().filter(|it| it != "more").collect();
                if word != "!" || !rest.contains("more") {
                    whole.step(&at, word, rest);
                }
            }
        }
    }
}

/// Delivers bytes one by one.
fn trickle(conversation: &mut Conversation, sent: &[u8]) {
    for byte in sent {
        if conversation.open {
            conversation.request.push(*byte);
            conversation.deliver();
            conversation.ends.retain(|it| it != "more");
        }
    }
}

#[test]
fn families_share_the_peers_wanted() {
    let mut conversation = Conversation::new();
    let query = "info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-AA0000-aaaaaaaaaaaa&left=1";
    let mut announce = |source: &str, port: u16, numwant: u32| {
        conversation.connect("announce", source);
        let line = format!("GET /announce?{query}&port={port}&numwant={numwant} HTTP/1.1\r\n\r\n");
        conversation.request.extend(line.bytes());
        conversation.deliver();
        let start = conversation.response.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        let body: Value = bt_bencode::from_slice(&conversation.response[start..]).unwrap();
        ["peers", "peers6"].map(|key| body[key].as_byte_str().unwrap().len())
    };
    for port in 6881..=6900 {
        announce("198.51.100.1", port, 1);
        announce("2001:db8::1", port, 1);
    }
    assert_eq!(announce("198.51.100.2", 6881, 10), [5 * 6, 5 * 18]);
    assert_eq!(announce("198.51.100.2", 6881, 1), [6, 0]);
    assert_eq!(announce("2001:db8::2", 6881, 1), [0, 18]);
    assert_eq!(announce("2001:db8::2", 6881, 200), [21 * 6, 20 * 18]);
}

#[test]
fn every_reason_to_refuse_or_reject_has_a_case() {
    let mut missing: BTreeSet<&str> = Refusal::ALL.iter().map(|it| it.label()).collect();
    missing.extend(Rejected::ALL.iter().map(|it| it.label()));
    // These are the WebTorrent front end's and the stream worker's, and those of flood.rs and
    // gatekeeping.rs.
    let elsewhere = [
        ["too_many_torrents", "bad_preamble", "bad_frame", "bad_message"],
        ["limited", "torrent_denied", "network_denied", "client_denied"],
        ["port_denied", "unregistered", "similar_torrent", "unknown_passkey"],
        ["passkey_limit"; 4],
    ];
    let elsewhere: BTreeSet<&str> = elsewhere.into_iter().flatten().collect();
    for elsewhere in elsewhere {
        assert!(missing.remove(elsewhere));
    }
    let mut texts: BTreeSet<&str> = QueryError::ALL.iter().map(|it| it.text()).collect();
    for (_, case) in cases() {
        for (_, word, rest) in steps(&case) {
            if word == "!" {
                rest.split([' ', ',']).for_each(|it| _ = missing.remove(it));
            }
            if word == "<+" {
                texts.retain(|it| !rest.contains(it));
            }
        }
    }
    assert!(missing.is_empty() && texts.is_empty(), "no case for {missing:?} {texts:?}");
}
