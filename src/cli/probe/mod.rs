//! `skep probe`: asks trackers as a client would, over every address their names resolve to.
//!
//! The torrent is made up and left again, so a probe leaves nothing behind but an empty swarm.

mod client;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use client::{Client, Failure, Patience};

const EXAMPLES: &str = "\
Examples:
  skep probe udp://127.0.0.1:6969            the tracker on this host
  skep probe --json udp://[::1]:6969/x?key=1 for scripts; the path goes along as BEP 41 has it
  skep probe -4 udp://a.example:6969 udp://b.example:6969

Exit codes: 0 every address answered everything, 1 one did not, 2 bad usage.";

/// What to ask, and how patiently.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// Trackers, as udp://HOST:PORT[/PATH]
    #[arg(required = true, value_name = "URL", value_parser = parse)]
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
    /// Seconds to wait for the first answer; every further try waits twice as long (BEP 15)
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=3840))]
    timeout: u64,
    /// How often to send a request
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=9))]
    tries: u32,
}

/// A tracker's URL.
#[derive(Clone, Debug)]
struct Url {
    text: String,
    /// Host and port.
    authority: String,
    /// Path and query; often empty.
    path: String,
}

/// The longest path that is sent, in bytes, so that the request stays one packet.
const PATH_BYTES_MAX: usize = 1024;

/// Reads a URL.
fn parse(text: &str) -> Result<Url, String> {
    let wrong = || "allowed: udp://HOST:PORT[/PATH]".to_owned();
    let rest = text.strip_prefix("udp://").ok_or_else(wrong)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    let port: Result<u16, _> = port.parse();
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("a path of more than {PATH_BYTES_MAX} bytes"));
    }
    if host.is_empty() || port.unwrap_or(0) == 0 {
        return Err(wrong());
    }
    Ok(Url { text: text.to_owned(), authority: authority.to_owned(), path: path.to_owned() })
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    results: Vec<Verdict>,
}

/// What one address answered. What was not reached is null.
#[derive(Debug, Default, Serialize)]
struct Verdict {
    url: String,
    address: Option<SocketAddr>,
    ok: bool,
    connect: Option<Connect>,
    announce: Option<Announce>,
    scrape: Option<Scrape>,
    error: Option<Failure>,
}

/// A connect's answer.
#[derive(Debug, Serialize)]
struct Connect {
    duration_ms: f64,
}

/// An announce's answer.
#[derive(Debug, Serialize)]
struct Announce {
    duration_ms: f64,
    interval_s: u32,
    seeders: u32,
    leechers: u32,
    peers: usize,
}

/// A scrape's answer.
#[derive(Debug, Serialize)]
struct Scrape {
    duration_ms: f64,
    seeders: u32,
    leechers: u32,
    completed: u32,
}

/// Asks them all and prints what they answer.
pub(super) fn run(options: &Options) -> ExitCode {
    let results: Vec<_> = options.urls.iter().flat_map(|url| probe_url(options, url)).collect();
    let report = Report { ok: results.iter().all(|it| it.ok), results };
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
fn probe_url(options: &Options, url: &Url) -> Vec<Verdict> {
    let unresolved = |problem: String| {
        let error = Some(Failure { step: "resolve", problem });
        vec![Verdict { url: url.text.clone(), error, ..Verdict::default() }]
    };
    let mut addresses: Vec<_> = match url.authority.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return unresolved(error.to_string()),
    };
    addresses.retain(|it| !(options.ipv4 && it.is_ipv6() || options.ipv6 && it.is_ipv4()));
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return unresolved("no address of the family asked for".into());
    }
    addresses.into_iter().map(|it| probe_address(options, url, it)).collect()
}

/// Asks one address.
fn probe_address(options: &Options, url: &Url, address: SocketAddr) -> Verdict {
    let patience =
        Patience { first_try: Duration::from_secs(options.timeout), tries: options.tries };
    let mut verdict =
        Verdict { url: url.text.clone(), address: Some(address), ..Verdict::default() };
    match converse(&mut verdict, url, address, patience) {
        Ok(()) => verdict.ok = true,
        Err(failure) => verdict.error = Some(failure),
    }
    verdict
}

/// The conversation, noted as it goes.
fn converse(
    verdict: &mut Verdict,
    url: &Url,
    address: SocketAddr,
    patience: Patience,
) -> Result<(), Failure> {
    let mut client = Client::new(address, &url.path, patience)?;
    let duration_ms = client.connect()?;
    verdict.connect = Some(Connect { duration_ms });
    let (duration_ms, reply, peers) = client.announce()?;
    let client::Announced { interval_s, seeders, leechers } = reply;
    verdict.announce = Some(Announce { duration_ms, interval_s, seeders, leechers, peers });
    let scraped = client.scrape();
    // Whatever the scrape brought: an announce that succeeded must not leave a peer behind.
    let left = client.leave();
    let (duration_ms, it) = scraped?;
    verdict.scrape = Some(Scrape {
        duration_ms,
        seeders: it.seeders,
        leechers: it.leechers,
        completed: it.completed,
    });
    left
}

/// A verdict for people.
fn to_text(it: &Verdict) -> String {
    let mut text = it.url.clone();
    if let Some(address) = it.address {
        let _ = write!(text, " at {address}");
    }
    text.push('\n');
    if let Some(it) = &it.connect {
        let _ = writeln!(text, "  connect   {:.3} ms", it.duration_ms);
    }
    if let Some(it) = &it.announce {
        let Announce { duration_ms, interval_s, seeders, leechers, peers } = it;
        let _ = writeln!(
            text,
            "  announce  {duration_ms:.3} ms: interval {interval_s} s, seeders {seeders}, \
             leechers {leechers}, peers {peers}"
        );
    }
    if let Some(it) = &it.scrape {
        let Scrape { duration_ms, seeders, leechers, completed } = it;
        let _ = writeln!(
            text,
            "  scrape    {duration_ms:.3} ms: seeders {seeders}, leechers {leechers}, \
             completed {completed}"
        );
    }
    let _ = match &it.error {
        None => writeln!(text, "  ok"),
        Some(error) => writeln!(text, "  failed at {}: {}", error.step, error.problem),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart() {
        let it = parse("udp://tracker.example:6969/announce?key=1").unwrap();
        assert_eq!((&*it.authority, &*it.path), ("tracker.example:6969", "/announce?key=1"));
        let it = parse("udp://[::1]:6969").unwrap();
        assert_eq!((&*it.authority, &*it.path), ("[::1]:6969", ""));
        for bad in ["127.0.0.1:1", "http://a:1", "udp://a", "udp://a:0", "udp://:1", "udp://a:x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
