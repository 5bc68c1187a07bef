//! Findings on addresses: which can be bound, whether IPv6 works, and whether clients' own
//! addresses reach the tracker.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::HostReport;
use super::finding::{Check, Finding};
use super::host::{Host, HostReadError};
use super::tracker::{value, without_tracker};
use crate::admin::live::PROXY_SEEN_S;
use crate::config::Config;
use crate::frontend::figures::percent;

const BIND: Check = Check::new(
    "addresses.bind",
    "skep does not start unless it can listen on every address (an IPv6 wildcard is left out where \
     there is no IPv6).",
);
const IPV6: Check = Check::new(
    "addresses.ipv6",
    "Clients on IPv6 alone, and IPv6 peers of the others, are found over IPv6 only. That takes a \
     global address and a default route.",
);
const SCOPE: Check = Check::new(
    "addresses.scope",
    "The source address is the peer. Behind a translator of addresses (a container bridge, \
     externalTrafficPolicy: Cluster, an unlisted proxy) every peer that is handed out is useless.",
);

const PROXIES: Check = Check::new(
    "addresses.proxies",
    "A reverse proxy that http.trusted_proxies does not list hides its clients: all of them have \
     the proxy's address, and every peer that is handed out is useless.",
);

/// The share of the requests over HTTP from which on those through a proxy that is not listed are
/// those of a proxy in front, and not of clients' own proxies: as in the alert SkepProxyUnlisted.
const SHARE_HIGH: f64 = 0.5;

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    vec![bind(report), ipv6(report), scope(report), proxies(report)]
}

fn bind(report: &HostReport) -> Finding {
    // `ipv6` covers a wildcard address on a host without IPv6.
    let matters = |it: &&(SocketAddr, String)| !(it.0.is_ipv6() && it.0.ip().is_unspecified());
    let refused: Vec<_> = report.facts.unbindable.iter().filter(matters).collect();
    if refused.is_empty() {
        return BIND.ok("every address of the settings is this host's");
    }
    let texts: Vec<_> = refused.iter().map(|(at, why)| format!("{at}: {why}")).collect();
    BIND.problem(
        texts.join("; "),
        "set server.listen (udp.listen, http.listen, tls.listen, admin.listen) to addresses that \
         this host has, or allow others with net.ipv4.ip_nonlocal_bind and its like of IPv6\n\
         $ ip -brief address",
    )
}

fn ipv6(report: &HostReport) -> Finding {
    let all = report.served();
    let outward = |it: &&SocketAddr| it.is_ipv6() && !it.ip().is_loopback();
    let listens = all.iter().find(outward);
    let addresses = global_addresses(&report.host);
    let routed = has_default_route(&report.host);
    let (Some(at), addresses) = (listens, addresses) else {
        return IPV6
            .info("no setting has an outward IPv6 address: IPv6 is not served")
            .remedied("server.listen = [\"0.0.0.0:6969\", \"[::]:6969\"]");
    };
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(unread) if unread.is_missing && report.host.has("/proc/net/dev") => {
            return lacking(
                report,
                format!("{at} cannot be served: this host has no IPv6"),
                "have the provider route IPv6 and enable it, or listen on IPv4 alone\n\
                 $ sysctl -w net.ipv6.conf.all.disable_ipv6=0",
            );
        }
        Err(unread) => return IPV6.unread(&unread),
    };
    let Some(first) = addresses.first() else {
        return lacking(
            report,
            format!("{at} is served, but this host has no IPv6 address that the Internet reaches"),
            "have the provider route IPv6, and give this host an address of it (2000::/3; fc00::/7 \
             is private)\n\
             $ ip -6 address show scope global",
        );
    };
    match routed {
        Ok(true) => IPV6.ok(format!("{first} is this host's, and there is a default route")),
        Ok(false) => lacking(
            report,
            format!("{first} is this host's, but IPv6 has no default route"),
            "add the router's address\n$ ip -6 route add default via ROUTER dev INTERFACE",
        ),
        Err(unread) => IPV6.unread(&unread),
    }
}

/// A warning that IPv6 is not served as configured. If its addresses are the defaults, nobody asked
/// for IPv6, and many hosts have none.
fn lacking(report: &HostReport, fact: String, remedy: &str) -> Finding {
    let (config, usual) = (&report.config, Config::default());
    let is_usual = config.udp_listen() == usual.udp_listen()
        && config.http_listen() == usual.http_listen()
        && !config.tls_listen().iter().any(SocketAddr::is_ipv6);
    if is_usual {
        return IPV6.info(fact).remedied(remedy);
    }
    IPV6.warning(fact, remedy)
}

/// This host's addresses that the IPv6 Internet can route to (2000::/3, RFC 4291).
fn global_addresses(host: &Host) -> Result<Vec<IpAddr>, HostReadError> {
    let text = host.text("/proc/net/if_inet6")?;
    let addresses = text.lines().filter_map(|line| {
        let bits = u128::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
        (bits >> 125 == 0b001).then(|| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    });
    Ok(addresses.collect())
}

/// Whether IPv6 has a usable default route.
fn has_default_route(host: &Host) -> Result<bool, HostReadError> {
    const REJECT: u32 = 0x200; // RTF_REJECT
    let text = host.text("/proc/net/ipv6_route")?;
    // Destination, its prefix, source, its prefix, next hop, metric, references, use, flags, name.
    let leads = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [destination, prefix, .., flags, device] = fields[..] else { return false };
        let flags = u32::from_str_radix(flags, 16).unwrap_or(REJECT);
        let is_default = prefix == "00" && destination.bytes().all(|it| it == b'0');
        is_default && device != "lo" && flags & REJECT == 0
    };
    Ok(text.lines().any(leads))
}

fn scope(report: &HostReport) -> Finding {
    let admin = report.facts.admin;
    let metrics = match &report.facts.metrics {
        Ok(metrics) => metrics,
        Err(error) => return without_tracker(&SCOPE, admin, error),
    };
    let ratio = |kind| value(metrics, &format!("skep_odd_sources_ratio{{kind=\"{kind}\"}}"));
    let (Some(one), Some(unroutable)) = (ratio("one_address"), ratio("unroutable")) else {
        return SCOPE.info(format!("what responds at {admin} has no such metric"));
    };
    let remedy = "let clients' addresses through: the host's network instead of a bridge, \
                  externalTrafficPolicy: Local, or http.trusted_proxies for the reverse proxy in \
                  front";
    if one > 0.0 {
        let fact = format!("{:.0} % of the announces come from one address", one * 100.0);
        SCOPE.problem(fact, remedy)
    } else if unroutable > 0.0 {
        let fact =
            format!("{:.0} % of the announces come from private addresses", unroutable * 100.0);
        SCOPE.warning(fact, format!("{remedy}; on a private network it is as it should be"))
    } else {
        SCOPE.ok("neither one address nor private addresses send most of the announces")
    }
}

fn proxies(report: &HostReport) -> Finding {
    let admin = report.facts.admin;
    let metrics = match &report.facts.metrics {
        Ok(metrics) => metrics,
        Err(error) => return without_tracker(&PROXIES, admin, error),
    };
    let of = |name: &str, source: &str| {
        value(metrics, &format!("skep_unlisted_proxy_{name}{{source=\"{source}\"}}"))
    };
    let names = ["ratio", "latest_timestamp_seconds"];
    let [(Some(private), Some(private_s)), (Some(public), Some(public_s))] =
        ["private", "public"].map(|source| (of(names[0], source), of(names[1], source)))
    else {
        return PROXIES.info(format!("what responds at {admin} has no such metric"));
    };
    let now_s = u32::try_from(report.facts.clock.now_s).map_or(f64::MAX, f64::from);
    let is_recent = |latest_s: f64| latest_s > 0.0 && now_s - latest_s < PROXY_SEEN_S;
    let remedy = "if a reverse proxy of yours runs at that address, list it in \
                  http.trusted_proxies and reload; if it is a bridge, a node or a NAT that hides \
                  clients, let their addresses through instead (addresses.scope); a line \
                  `not listed` of the log, once an hour, has the address and the setting\n\
                  $ journalctl -u skep | grep 'not listed'";
    let fact = |ratio: f64, place: &str| {
        format!(
            "{} of the last hour's requests over HTTP came through a proxy {place} that \
             http.trusted_proxies does not list",
            if ratio < 0.001 { "less than 0.1 %".to_owned() } else { percent(ratio) }
        )
    };
    if is_recent(private_s) {
        let fact = fact(private, "of this host or its network");
        return if private > SHARE_HIGH {
            PROXIES.problem(fact, remedy)
        } else {
            PROXIES.warning(fact, format!("unless it is a client's own, {remedy}"))
        };
    }
    if is_recent(public_s) && public > SHARE_HIGH {
        let fact = fact(public, "on a public address");
        return PROXIES.warning(fact, format!("if it is yours (a CDN), {remedy}"));
    }
    PROXIES.ok("no reverse proxy forwards requests that http.trusted_proxies does not list")
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, NOW_S, found};
    use super::*;

    const GLOBAL: &str = "20010db8000000000000000000000002 02 40 00 80     eth0\n";
    const LOCAL: &str = "00000000000000000000000000000001 01 80 10 80       lo\n\
                         fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
                         fd000000000000000000000000000002 04 40 00 82     eth0\n";

    /// Settings that ask for IPv6.
    const ASKED: &str = "[server]\nlisten = [\"0.0.0.0:7000\", \"[::]:7000\"]";

    fn route(prefix: &str, flags: &str, device: &str) -> String {
        let zeros = "0".repeat(32);
        format!("{zeros} {prefix} {zeros} 00 {zeros} 00000400 00000003 00000000 {flags} {device}\n")
    }

    fn judge(fake: &Fake, id: &str) -> (Severity, String) {
        found(&examine(&fake.report), id)
    }

    #[test]
    fn addresses_of_other_hosts_keep_skep_from_starting() {
        let mut fake = Fake::new();
        assert_eq!(judge(&fake, "addresses.bind").0, Severity::Ok);
        let wildcard = "[::]:6969".parse().unwrap();
        fake.report.facts.unbindable = vec![(wildcard, "no IPv6".into())];
        assert_eq!(judge(&fake, "addresses.bind").0, Severity::Ok, "it is left out");
        let other = "203.0.113.7:6969".parse().unwrap();
        fake.report.facts.unbindable.push((other, "Cannot assign requested address".into()));
        let (severity, text) = judge(&fake, "addresses.bind");
        assert_eq!(severity, Severity::Problem);
        assert!(text.starts_with("203.0.113.7:6969: Cannot assign"), "{text}");
    }

    #[test]
    fn ipv6_takes_a_global_address_and_a_route() {
        let judge_with = |settings: &str, addresses: &str, routes: &str| {
            let fake = Fake::new()
                .configured(settings)
                .with("/proc/net/if_inet6", addresses)
                .with("/proc/net/ipv6_route", routes);
            judge(&fake, "addresses.ipv6")
        };
        let judge = |addresses: &str, routes: &str| judge_with(ASKED, addresses, routes);
        let default = route("00", "00000003", "eth0");
        let (severity, text) = judge(&format!("{LOCAL}{GLOBAL}"), &default);
        assert_eq!(severity, Severity::Ok);
        assert!(text.starts_with("2001:db8::2 "), "{text}");
        let (severity, text) = judge(LOCAL, &default);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("no IPv6 address that the Internet reaches"), "{text}");
        assert_eq!(judge_with("", LOCAL, &default).0, Severity::Info, "nobody asked for it");
        let rejected = route("00", "00200200", "lo") + &route("40", "00000001", "eth0");
        let (severity, text) = judge(&format!("{LOCAL}{GLOBAL}"), &rejected);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("no default route"), "{text}");
        assert_eq!(judge(GLOBAL, &route("00", "00000203", "eth0")).0, Severity::Warning);
        assert_eq!(judge_with("", GLOBAL, &rejected).0, Severity::Info);
    }

    #[test]
    fn a_host_without_ipv6_is_told_from_one_that_hides_it() {
        let without = Fake::new().configured(ASKED).with("/proc/net/dev", "");
        let (severity, text) = judge(&without, "addresses.ipv6");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("[::]:7000 cannot be served"), "{text}");
        assert_eq!(judge(&Fake::new(), "addresses.ipv6").0, Severity::Info);
        let hidden = Fake::new().with("/proc/net/if_inet6", GLOBAL);
        assert_eq!(judge(&hidden, "addresses.ipv6").0, Severity::Info, "its routes are");
        let loopback = Fake::new().configured("[server]\nlisten = [\"0.0.0.0:1\", \"[::1]:1\"]");
        let (severity, text) = judge(&loopback, "addresses.ipv6");
        assert!(severity == Severity::Info && text.contains("not served"), "{text}");
    }

    #[test]
    fn the_running_tracker_is_asked_where_announces_come_from() {
        let judge = |metrics: Result<&str, &str>| {
            let mut fake = Fake::new();
            fake.report.facts.metrics = metrics.map(str::to_owned).map_err(str::to_owned);
            judge(&fake, "addresses.scope")
        };
        let metrics = |one, unroutable| {
            format!(
                "# TYPE skep_odd_sources_ratio gauge\n\
                 skep_odd_sources_ratio{{kind=\"one_address\"}} {one}\n\
                 skep_odd_sources_ratio{{kind=\"unroutable\"}} {unroutable}\n"
            )
        };
        assert_eq!(judge(Ok(&metrics("0", "0"))).0, Severity::Ok);
        let (severity, text) = judge(Ok(&metrics("0.97", "0")));
        assert!(severity == Severity::Problem && text.starts_with("97 %"), "{text}");
        let (severity, text) = judge(Ok(&metrics("0", "0.8")));
        assert!(severity == Severity::Warning && text.contains("private addresses"), "{text}");
        assert_eq!(judge(Ok(&metrics("NaN", "0"))).0, Severity::Info);
        assert_eq!(judge(Ok("")).0, Severity::Info);
        let (severity, text) = judge(Err("Connection refused"));
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("127.0.0.1:6970 (Connection refused)"), "{text}");
    }

    #[test]
    fn proxies_that_are_not_listed_are_found_while_they_forward() {
        let found = |private: (f64, u64), public: (f64, u64)| {
            let mut fake = Fake::new();
            let mut metrics = String::new();
            for (source, (ratio, ago_s)) in [("private", private), ("public", public)] {
                let series = |name, value: &str| {
                    format!("skep_unlisted_proxy_{name}{{source=\"{source}\"}} {value}\n")
                };
                let latest_s = if ago_s == NEVER { 0 } else { NOW_S - ago_s };
                metrics += &series("ratio", &ratio.to_string());
                metrics += &series("latest_timestamp_seconds", &latest_s.to_string());
            }
            fake.report.facts.metrics = Ok(metrics);
            judge(&fake, "addresses.proxies")
        };
        const NEVER: u64 = u64::MAX;
        let none = (0.0, NEVER);
        assert_eq!(found(none, none).0, Severity::Ok);
        let (severity, text) = found((0.501, 60), none);
        assert_eq!(severity, Severity::Problem);
        let share = "50.1 % of the last hour's requests over HTTP";
        assert!(text.starts_with(share) && text.contains("grep 'not listed'"), "{text}");
        let (severity, text) = found((0.001, 60), none);
        assert_eq!(severity, Severity::Warning, "a client's own proxy, perhaps");
        assert!(text.starts_with("0.1 % of the last"), "{text}");
        let (_, text) = found((0.0009, 60), none);
        assert!(text.starts_with("less than 0.1 % of the last"), "{text}");
        assert_eq!(found((0.5, 60), none).0, Severity::Warning);
        assert_eq!(found((1.0, 7200), none).0, Severity::Ok, "it was listed, or ended");
        assert_eq!(found(none, (0.4, 60)).0, Severity::Ok, "clients' own proxies");
        let (severity, text) = found(none, (0.6, 60));
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("60.0 %") && text.contains("if it is yours"), "{text}");
        let mut fake = Fake::new();
        assert_eq!(judge(&fake, "addresses.proxies").0, Severity::Info);
        fake.report.facts.metrics = Ok("skep_torrents 0\n".into());
        assert_eq!(judge(&fake, "addresses.proxies").0, Severity::Info);
    }
}
