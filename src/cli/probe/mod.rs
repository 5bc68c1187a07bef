//! `skep probe`: sends trackers a client's requests, at every address of their host names.
//!
//! The torrent is random unless one is named, and the probe leaves it again, so that it leaves no
//! peer behind.

mod hints;
mod http;
mod stream;
mod udp;
mod websocket;

use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::ClientConfig;
use serde::Serialize;

use crate::client::tls::{self, TlsConfigError, Trust};
use crate::client::url::{Scheme, Url};
use crate::protocol::passkey::{self, PASSKEY_BYTES_MAX};
use crate::sys::clock::Clock;
use crate::types::{InfoHash, PeerId, ScrapeEntry};

use super::{complain, info_hash, print};
use hints::ProbeRequest;
use stream::ConnectRoute;

const EXAMPLES: &str = "\
Examples:
  skep probe udp://127.0.0.1:6969            the tracker on this host
  skep probe --json udp://[::1]:6969/x?key=1 for scripts; the path is sent as a BEP 41 option
  skep probe -4 udp://a.example:6969 udp://b.example:6969
  skep probe http://127.0.0.1:6969/announce  over HTTP: announce, scrape, leave
  skep probe --ca ca.pem https://tracker.example/announce
  skep probe --info-hash a.torrent --passkey KEY udp://127.0.0.1:6969
  skep probe ws://127.0.0.1:6969             as a WebTorrent browser, without offers
  skep probe --insecure wss://[::1]:6443     accept any certificate

What each step means:
  connect   UDP: a connection id. TCP: connecting, the TLS handshake, the WebSocket upgrade.
  announce  joins a random torrent without peers, or that of --info-hash, as a leecher.
  scrape    gets its counts. Over HTTP only if the last part of the path begins with \"announce\";
            over UDP it carries no passkey, and may be refused if one is given.
  leave     sends a stop, also after a lost response, so that no peer remains.

A tracker of registered torrents refuses a random one: name one of its torrents with --info-hash.
A refusal shows that the tracker is alive; to find out whether skep is well, use skep health.

Exit codes: 0 every address responded correctly to every request, 1 at least one did not, 2 invalid
usage.";

/// Arguments of `probe`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// URLs of trackers, with the scheme udp, http, https, ws or wss
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Url>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Probe IPv4 addresses only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Probe IPv6 addresses only
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Announce this torrent, in place of a random one
    #[arg(long, value_name = "HASH|FILE.torrent", value_parser = info_hash::of_argument)]
    info_hash: Option<InfoHash>,
    /// Append this passkey to the path of every URL: /announce/KEY
    #[arg(long, value_name = "KEY", value_parser = passkey_of_argument)]
    passkey: Option<String>,
    /// Trust only the certificates in this PEM file (https, wss)
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Accept any certificate (https, wss)
    #[arg(long)]
    insecure: bool,
    /// Seconds to wait for the first response; twice as long with each try
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=3840))]
    timeout: u64,
    /// How often to send a request without a response
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=9))]
    tries: u32,
}

/// The whole report.
#[derive(Debug, Serialize)]
struct ProbeReport {
    ok: bool,
    results: Vec<AddressReport>,
}

/// The report on one address. A step that was not reached is null.
#[derive(Debug, Default, Serialize)]
struct AddressReport {
    url: String,
    address: Option<SocketAddr>,
    ok: bool,
    /// Whether a tracker responded, be it with a refusal.
    alive: bool,
    connect: Option<Connect>,
    announce: Option<AnnounceReport>,
    scrape: Option<Scrape>,
    error: Option<StepFailure>,
}

/// The result of a connect.
#[derive(Debug, Serialize)]
struct Connect {
    duration_ms: f64,
}

/// The result of an announce.
#[derive(Debug, Serialize)]
struct AnnounceReport {
    duration_ms: f64,
    interval_s: u32,
    seeders: u32,
    leechers: u32,
    /// Peers in the response; `None` for WebTorrent, whose peers come later, as offers and answers.
    peers: Option<usize>,
}

/// The result of a scrape.
#[derive(Debug, Serialize)]
struct Scrape {
    duration_ms: f64,
    seeders: u32,
    leechers: u32,
    completed: u32,
}

impl Scrape {
    fn of(duration_ms: f64, entry: ScrapeEntry) -> Self {
        let ScrapeEntry { seeders, leechers, completed, .. } = entry;
        Self { duration_ms, seeders, leechers, completed }
    }
}

/// The step that failed, and why.
#[derive(Debug, Serialize)]
struct StepFailure {
    /// `resolve`, `socket`, `tls`, `connect`, `announce`, `scrape` or `leave`.
    step: &'static str,
    /// The cause. Text of the tracker is escaped.
    problem: String,
    /// The tracker's reason, escaped, if the cause is its refusal.
    refusal: Option<String>,
}

impl StepFailure {
    fn new(step: &'static str, problem: impl Into<String>) -> Self {
        Self { step, problem: problem.into(), refusal: None }
    }

    /// A tracker's refusal with this reason, which is escaped already.
    fn refused(step: &'static str, reason: String) -> Self {
        let problem = format!("the tracker is alive and refuses: \"{reason}\"");
        Self { step, problem, refusal: Some(reason) }
    }
}

/// How long to wait for a response, and how often to send a request.
#[derive(Clone, Copy, Debug)]
struct ProbeTimeouts {
    /// Wait for a response to the first try; doubled with every further try.
    first_try: Duration,
    /// How often to send a request.
    tries: u32,
}

/// The torrent and the peer of a probe.
#[derive(Clone, Copy)]
struct ProbeIdentity {
    info_hash: InfoHash,
    peer_id: PeerId,
    /// The port that the peer announces.
    port: u16,
}

impl ProbeIdentity {
    /// A random peer, of this torrent or else a random one.
    fn new(torrent: Option<InfoHash>) -> Self {
        let mut peer_id = *b"-SK0001-000000000000";
        // Letters and digits, as in browsers: their trackers may not accept anything else.
        peer_id[8..].fill_with(|| fastrand::alphanumeric() as u8);
        let mut random = [0; 20];
        fastrand::fill(&mut random);
        let info_hash = torrent.unwrap_or(InfoHash(random));
        let port = fastrand::u16(1024..);
        Self { info_hash, peer_id: PeerId(peer_id), port }
    }
}

/// A client of one address, for one protocol.
trait Conversation {
    /// Connects, so that the first announce can be sent. Returns the duration in milliseconds.
    fn connect(&mut self) -> Result<f64, StepFailure>;
    /// Joins the torrent as a leecher.
    fn announce(&mut self) -> Result<AnnounceReport, StepFailure>;
    /// Scrapes the torrent; `None` if this URL has no scrape.
    fn scrape(&mut self) -> Result<Option<Scrape>, StepFailure>;
    /// Leaves the torrent.
    fn leave(&mut self) -> Result<(), StepFailure>;
    /// Sends every further request only once.
    fn hurry(&mut self);
}

/// Probes all addresses and prints the report.
pub(super) fn run(options: &Options) -> ExitCode {
    let results: Vec<_> = options.urls.iter().flat_map(|url| probe_url(options, url)).collect();
    let report = ProbeReport { ok: results.iter().all(|it| it.ok), results };
    let text = if options.json {
        super::json::pretty(&report)
    } else {
        report.results.iter().map(to_text).collect::<String>() + &total(&report.results)
    };
    match print(&text) {
        Ok(()) if report.ok => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Probes every address of a URL.
fn probe_url(options: &Options, url: &Url) -> Vec<AddressReport> {
    let failed = |step, problem: String| {
        let error = Some(StepFailure::new(step, problem));
        vec![AddressReport { url: url.text.clone(), error, ..AddressReport::default() }]
    };
    let mut addresses: Vec<_> = match (&*url.host, url.port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return failed("resolve", hints::unresolved(&error, &url.host)),
    };
    addresses.retain(|it| !(options.ipv4 && it.is_ipv6() || options.ipv6 && it.is_ipv4()));
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return failed("resolve", "the name has no address of the requested IP version".into());
    }
    let tls = match trust(options, url) {
        Ok(tls) => tls,
        Err(error) => return failed("tls", error.to_string()),
    };
    let tls = tls.as_ref();
    addresses.into_iter().map(|it| probe_address(options, url, it, tls.cloned())).collect()
}

/// Checks the argument of `--passkey`: it becomes a part of a path.
fn passkey_of_argument(text: &str) -> Result<String, &'static str> {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
    match text.len() {
        1..=PASSKEY_BYTES_MAX if text.bytes().all(is_unreserved) => Ok(text.to_owned()),
        _ => Err("1 to 64 letters, digits, and -._~; escape others as %XX"),
    }
}

/// TLS settings, if the URL's scheme needs them.
fn trust(options: &Options, url: &Url) -> Result<Option<Arc<ClientConfig>>, TlsConfigError> {
    if !url.scheme.has_tls() {
        return Ok(None);
    }
    tls::config(Trust::of(options.ca.as_deref(), options.insecure), true).map(Some)
}

/// Probes one address.
fn probe_address(
    options: &Options,
    url: &Url,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
) -> AddressReport {
    let timeouts =
        ProbeTimeouts { first_try: Duration::from_secs(options.timeout), tries: options.tries };
    let mut verdict =
        AddressReport { url: url.text.clone(), address: Some(address), ..AddressReport::default() };
    let asked = match &options.passkey {
        Some(passkey) => &url.clone().with_passkey(passkey),
        None => url,
    };
    let done = client(asked, address, tls, timeouts, ProbeIdentity::new(options.info_hash))
        .and_then(|mut client| converse(&mut verdict, client.as_mut()));
    if let Err(mut failure) = done {
        let request = ProbeRequest {
            names_torrent: options.info_hash.is_some(),
            names_passkey: passkey::of_path(asked.path.as_bytes()).is_some(),
        };
        if let Some(reason) = &failure.refusal {
            failure.problem = request.explained(reason, &failure.problem);
        }
        verdict.error = Some(failure);
    }
    verdict.ok = verdict.error.is_none();
    let is_refused = verdict.error.as_ref().is_some_and(|error| error.refusal.is_some());
    verdict.alive = verdict.announce.is_some() || is_refused;
    verdict
}

/// The client for the URL's scheme.
fn client(
    url: &Url,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    timeouts: ProbeTimeouts,
    identity: ProbeIdentity,
) -> Result<Box<dyn Conversation>, StepFailure> {
    let route = ConnectRoute { address, host: url.host.clone(), tls, clock: Clock::start() };
    Ok(match url.scheme {
        Scheme::Udp => Box::new(udp::UdpProbe::new(address, &url.path, timeouts, identity)?),
        Scheme::Http | Scheme::Https => {
            Box::new(http::HttpProbe::new(url, route, timeouts, identity))
        }
        Scheme::Ws | Scheme::Wss => {
            Box::new(websocket::WebSocketProbe::new(url, route, timeouts, identity))
        }
    })
}

/// Runs all steps, and adds each result to the report.
fn converse(verdict: &mut AddressReport, client: &mut dyn Conversation) -> Result<(), StepFailure> {
    let duration_ms = client.connect()?;
    verdict.connect = Some(Connect { duration_ms });
    match client.announce() {
        Ok(announce) => verdict.announce = Some(announce),
        Err(failure) => {
            // The tracker may have received the announce although its response did not arrive.
            client.hurry();
            let _ = client.leave();
            return Err(failure);
        }
    }
    let scraped = client.scrape();
    // Also after a failed scrape: a successful announce must not leave a peer behind.
    let left = client.leave();
    verdict.scrape = scraped?;
    left
}

/// The failure of a step without a response.
fn no_response(step: &'static str, timeouts: ProbeTimeouts) -> StepFailure {
    let ProbeTimeouts { first_try, tries } = timeouts;
    let waits = (0..tries).map(|retry| format!("{} s", first_try.as_secs() << retry));
    let waits = waits.collect::<Vec<_>>().join(", then ");
    StepFailure::new(step, format!("no response within {waits}"))
}

#[expect(clippy::cast_precision_loss, reason = "a duration of minutes")]
fn milliseconds(ns: u64) -> f64 {
    const NS_PER_MS: f64 = 1e6;
    ns as f64 / NS_PER_MS
}

/// The last line of a report on several addresses.
fn total(results: &[AddressReport]) -> String {
    let well = results.iter().filter(|it| it.ok).count();
    match results.len() {
        0 | 1 => String::new(),
        count => format!("{well} of {count} addresses responded correctly\n"),
    }
}

/// The report as text.
fn to_text(report: &AddressReport) -> String {
    let mut text = report.url.clone();
    if let Some(address) = report.address {
        let _ = write!(text, " at {address}");
    }
    text.push('\n');
    if let Some(connect) = &report.connect {
        let _ = writeln!(text, "  connect   {:.3} ms", connect.duration_ms);
    }
    if let Some(announce_report) = &report.announce {
        let AnnounceReport { duration_ms, interval_s, seeders, leechers, peers } = announce_report;
        let _ = write!(
            text,
            "  announce  {duration_ms:.3} ms: interval {interval_s} s, seeders {seeders}, \
             leechers {leechers}"
        );
        let _ = match peers {
            Some(peers) => writeln!(text, ", peers {peers}"),
            None => writeln!(text),
        };
    }
    if let Some(scrape) = &report.scrape {
        let Scrape { duration_ms, seeders, leechers, completed } = scrape;
        let _ = writeln!(
            text,
            "  scrape    {duration_ms:.3} ms: seeders {seeders}, leechers {leechers}, \
             completed {completed}"
        );
    }
    let _ = match &report.error {
        None => writeln!(text, "  ok"),
        Some(error) => writeln!(text, "  failed at {}: {}", error.step, error.problem),
    };
    text
}
