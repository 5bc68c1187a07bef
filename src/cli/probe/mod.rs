//! `skep probe`: asks trackers as a client would, over every address their names resolve to.
//!
//! The torrent is made up and left again, so a probe leaves nothing behind but an empty swarm.

mod http;
mod stream;
mod udp;
mod websocket;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::ClientConfig;
use serde::Serialize;

use crate::client::tls::{self, Trust};
use crate::client::url::{Scheme, Url};
use crate::sys::clock::Clock;
use crate::types::{InfoHash, PeerId, ScrapeEntry};

use stream::ConnectRoute;

const EXAMPLES: &str = "\
Examples:
  skep probe udp://127.0.0.1:6969            the tracker on this host
  skep probe --json udp://[::1]:6969/x?key=1 for scripts; the path goes along as BEP 41 has it
  skep probe -4 udp://a.example:6969 udp://b.example:6969
  skep probe http://127.0.0.1:6969/announce  over HTTP: announce, scrape, leave
  skep probe --ca ca.pem https://tracker.example/announce
  skep probe ws://127.0.0.1:6969             as a WebTorrent browser, without offers
  skep probe --insecure wss://[::1]:6443     whatever its certificate says

What each step means:
  connect   UDP: a connection id. TCP: connecting, the TLS handshake, the WebSocket upgrade.
  announce  joins a torrent that nobody has, as a leecher.
  scrape    its counts. HTTP has one only where the path's last part begins with \"announce\".
  leave     says so, even if a reply before got lost, so that no peer is left behind.

Exit codes: 0 every address answered everything, 1 one did not, 2 bad usage.";

/// What to ask, and how patiently.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// Trackers, as udp://HOST:PORT, https://HOST/announce or wss://HOST; all six schemes will do
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Url>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Ask IPv4 addresses alone
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Ask IPv6 addresses alone
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Trust the authorities in this PEM file, and no others (https, wss)
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Trust any certificate (https, wss)
    #[arg(long)]
    insecure: bool,
    /// Seconds to wait for the first answer; every further try waits twice as long (BEP 15)
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=3840))]
    timeout: u64,
    /// How often to send a request
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=9))]
    tries: u32,
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct ProbeReport {
    ok: bool,
    results: Vec<AddressReport>,
}

/// What one address answered. What was not reached is null.
#[derive(Debug, Default, Serialize)]
struct AddressReport {
    url: String,
    address: Option<SocketAddr>,
    ok: bool,
    connect: Option<Connect>,
    announce: Option<AnnounceReport>,
    scrape: Option<Scrape>,
    error: Option<StepFailure>,
}

/// A connect's answer.
#[derive(Debug, Serialize)]
struct Connect {
    duration_ms: f64,
}

/// An announce's answer.
#[derive(Debug, Serialize)]
struct AnnounceReport {
    duration_ms: f64,
    interval_s: u32,
    seeders: u32,
    leechers: u32,
    /// How many came along; WebTorrent's come later, as offers and answers.
    peers: Option<usize>,
}

/// A scrape's answer.
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

/// What went wrong, and where.
#[derive(Debug, Serialize)]
struct StepFailure {
    /// `resolve`, `socket`, `tls`, `connect`, `announce`, `scrape` or `leave`.
    step: &'static str,
    /// What went wrong; holds no unescaped byte of the tracker's.
    problem: String,
}

/// How long to wait and how often to try.
#[derive(Clone, Copy, Debug)]
struct ProbeTimeouts {
    /// How long to wait for an answer at first; doubled with every further try.
    first_try: Duration,
    /// How often to send a request.
    tries: u32,
}

/// Who asks, about what.
#[derive(Clone, Copy)]
struct ProbeIdentity {
    info_hash: InfoHash,
    peer_id: PeerId,
    /// Where it claims to listen.
    port: u16,
}

impl ProbeIdentity {
    /// A torrent and a peer that nobody has met before.
    fn new() -> Self {
        let mut peer_id = *b"-SK0001-000000000000";
        // Letters and digits, as browsers make them: their trackers take nothing else for granted.
        peer_id[8..].fill_with(|| fastrand::alphanumeric() as u8);
        let mut info_hash = [0; 20];
        fastrand::fill(&mut info_hash);
        let port = fastrand::u16(1024..);
        Self { info_hash: InfoHash(info_hash), peer_id: PeerId(peer_id), port }
    }
}

/// A client of one address, by whatever protocol.
trait Conversation {
    /// Gets as far as a first request can be sent. Returns the milliseconds that took.
    fn connect(&mut self) -> Result<f64, StepFailure>;
    /// Joins the made-up torrent as a leecher.
    fn announce(&mut self) -> Result<AnnounceReport, StepFailure>;
    /// Asks for its counts; `None` where this URL has no scrape.
    fn scrape(&mut self) -> Result<Option<Scrape>, StepFailure>;
    /// Leaves it again.
    fn leave(&mut self) -> Result<(), StepFailure>;
    /// From now on, one try has to do.
    fn hurry(&mut self);
}

/// Asks them all and prints what they answer.
pub(super) fn run(options: &Options) -> ExitCode {
    let results: Vec<_> = options.urls.iter().flat_map(|url| probe_url(options, url)).collect();
    let report = ProbeReport { ok: results.iter().all(|it| it.ok), results };
    let text = if options.json {
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    } else {
        report.results.iter().map(to_text).collect()
    };
    // A reader that has had enough is no failure.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Asks every address of a URL.
fn probe_url(options: &Options, url: &Url) -> Vec<AddressReport> {
    let unresolved = |problem: String| {
        let error = Some(StepFailure { step: "resolve", problem });
        vec![AddressReport { url: url.text.clone(), error, ..AddressReport::default() }]
    };
    let mut addresses: Vec<_> = match (&*url.host, url.port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return unresolved(error.to_string()),
    };
    addresses.retain(|it| !(options.ipv4 && it.is_ipv6() || options.ipv6 && it.is_ipv4()));
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return unresolved("no address of the family asked for".into());
    }
    let tls = match trust(options, url) {
        Ok(tls) => tls,
        Err(problem) => {
            let error = Some(StepFailure { step: "tls", problem });
            return vec![AddressReport {
                url: url.text.clone(),
                error,
                ..AddressReport::default()
            }];
        }
    };
    let tls = tls.as_ref();
    addresses.into_iter().map(|it| probe_address(options, url, it, tls.cloned())).collect()
}

/// TLS settings, where the URL wants them.
fn trust(options: &Options, url: &Url) -> Result<Option<Arc<ClientConfig>>, String> {
    if !url.scheme.has_tls() {
        return Ok(None);
    }
    tls::config(Trust::of(options.ca.as_deref(), options.insecure), true).map(Some)
}

/// Asks one address.
fn probe_address(
    options: &Options,
    url: &Url,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
) -> AddressReport {
    let patience =
        ProbeTimeouts { first_try: Duration::from_secs(options.timeout), tries: options.tries };
    let mut verdict =
        AddressReport { url: url.text.clone(), address: Some(address), ..AddressReport::default() };
    let done = client(url, address, tls, patience)
        .and_then(|mut client| converse(&mut verdict, client.as_mut()));
    match done {
        Ok(()) => verdict.ok = true,
        Err(failure) => verdict.error = Some(failure),
    }
    verdict
}

/// A client that speaks what the URL names.
fn client(
    url: &Url,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    patience: ProbeTimeouts,
) -> Result<Box<dyn Conversation>, StepFailure> {
    let identity = ProbeIdentity::new();
    let route = ConnectRoute { address, host: url.host.clone(), tls, clock: Clock::start() };
    Ok(match url.scheme {
        Scheme::Udp => Box::new(udp::UdpProbe::new(address, &url.path, patience, identity)?),
        Scheme::Http | Scheme::Https => {
            Box::new(http::HttpProbe::new(url, route, patience, identity))
        }
        Scheme::Ws | Scheme::Wss => {
            Box::new(websocket::WebSocketProbe::new(url, route, patience, identity))
        }
    })
}

/// The conversation, noted as it goes.
fn converse(verdict: &mut AddressReport, client: &mut dyn Conversation) -> Result<(), StepFailure> {
    let duration_ms = client.connect()?;
    verdict.connect = Some(Connect { duration_ms });
    match client.announce() {
        Ok(announce) => verdict.announce = Some(announce),
        Err(failure) => {
            // The tracker may have heard of the peer although we did not hear from the tracker.
            client.hurry();
            let _ = client.leave();
            return Err(failure);
        }
    }
    let scraped = client.scrape();
    // Whatever the scrape brought: an announce that succeeded must not leave a peer behind.
    let left = client.leave();
    verdict.scrape = scraped?;
    left
}

/// What silence is called.
fn no_answer(step: &'static str, patience: ProbeTimeouts) -> StepFailure {
    let ProbeTimeouts { first_try, tries } = patience;
    let seconds = first_try.as_secs();
    let problem = match tries {
        1 => format!("no answer within {seconds} s, tried once"),
        _ => format!("no answer, tried {tries} times from {seconds} s on"),
    };
    StepFailure { step, problem }
}

#[expect(clippy::cast_precision_loss, reason = "a duration of minutes")]
fn milliseconds(ns: u64) -> f64 {
    const NS_PER_MS: f64 = 1e6;
    ns as f64 / NS_PER_MS
}

/// A verdict for people.
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
    if let Some(it) = &report.scrape {
        let Scrape { duration_ms, seeders, leechers, completed } = it;
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
