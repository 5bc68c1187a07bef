//! Warns of reverse proxies that `http.trusted_proxies` does not list, with the setting that lists
//! them: once an hour, whatever arrives.
//!
//! One request from a loopback or private address is enough. From public addresses forwarding
//! headers also come with clients' own proxies, and strangers may forge them: there a warning takes
//! most of the requests over HTTP, and names the doubt.

use std::collections::VecDeque;
use std::net::IpAddr;

use ipnet::IpNet;
use tracing::warn;

use crate::frontend::unlisted_proxies::{ProxySource, UnlistedProxies, UnlistedProxy};
use crate::server::log::OPERATOR;
use crate::time::Now;

/// Seconds between two warnings about one kind of source.
const WARNING_EVERY_S: u64 = 3600;

/// The least seconds and requests over HTTP that a share is computed from.
const WINDOW_S: u64 = 60;
const WINDOW_REQUESTS_MIN: u64 = 100;

/// The share of the last hour moves on once a minute.
const MINUTE_S: u64 = 60;
const MINUTES: usize = 60;

/// Most networks of the setting that a warning repeats.
const NETWORKS_SHOWN_MAX: usize = 8;

/// Decides when to warn.
#[derive(Debug, Default)]
pub(super) struct ProxyWatch {
    /// When the last warning about each kind of source was logged.
    warned: [Option<Now>; ProxySource::ALL.len()],
    /// The proxies that were listed at the last look.
    listed: Vec<IpNet>,
    window: Option<ShareWindow>,
    /// Whether most requests over HTTP of the last window were forwarded from public addresses.
    is_mostly_public: bool,
    hour: HourCounts,
}

/// The counts of the last hour.
#[derive(Debug, Default)]
struct HourCounts {
    /// At its beginning.
    first: TotalCounts,
    /// At each minute since then.
    minutes: VecDeque<(Now, TotalCounts)>,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default)]
struct TotalCounts {
    /// Requests through proxies that are not listed, by their source.
    forwarded: [u64; ProxySource::ALL.len()],
    /// Requests over HTTP.
    requests: u64,
}

impl TotalCounts {
    fn of(seen: &UnlistedProxies, requests: u64) -> Self {
        Self { forwarded: ProxySource::ALL.map(|it| seen.requests(it)), requests }
    }
}

impl HourCounts {
    /// The share of each source in the requests of the last hour. Call it once a second.
    fn ratios(&mut self, now: Now, counts: TotalCounts) -> [f64; ProxySource::ALL.len()] {
        if self.minutes.back().is_none_or(|(at, _)| now >= at.plus_s(MINUTE_S)) {
            self.minutes.push_back((now, counts));
        }
        if self.minutes.len() > MINUTES
            && let Some((_, oldest)) = self.minutes.pop_front()
        {
            self.first = oldest;
        }
        let requests = counts.requests.saturating_sub(self.first.requests);
        ProxySource::ALL.map(|source| {
            let at = source as usize;
            let forwarded = counts.forwarded[at].saturating_sub(self.first.forwarded[at]);
            // A connection with a PROXY header may have no request.
            ratio(forwarded, requests.max(forwarded))
        })
    }
}

/// The share of some in all; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "a share is shown with one decimal")]
fn ratio(some: u64, all: u64) -> f64 {
    some as f64 / all.max(1) as f64
}

/// Counts at the start of a window.
#[derive(Clone, Copy, Debug)]
struct ShareWindow {
    begun: Now,
    forwarded: u64,
    requests: u64,
}

impl ProxyWatch {
    /// A watch that has seen nothing; these proxies are listed.
    pub(super) fn new(listed: &[IpNet]) -> Self {
        Self { listed: listed.to_vec(), ..Self::default() }
    }

    /// Called once a second, with the number of requests over HTTP since the start.
    pub(super) fn tick(
        &mut self,
        now: Now,
        seen: &UnlistedProxies,
        requests: u64,
        listed: &[IpNet],
    ) {
        for (source, proxy) in self.due(now, seen, requests, listed) {
            let (address, header) = (proxy.address, proxy.header.name());
            let remedy = remedy(address, listed);
            match source {
                ProxySource::Private => warn!(
                    target: OPERATOR,
                    %address, header,
                    remedy = format!(
                        "if a reverse proxy of yours runs there, {remedy}; {NOT_A_PROXY}"
                    ),
                    "reverse proxy not listed, all its clients have its address"
                ),
                ProxySource::Public => warn!(
                    target: OPERATOR,
                    %address, header,
                    remedy = format!("if this is a proxy of yours, {remedy}"),
                    "most HTTP requests forwarded by proxies that are not listed"
                ),
            }
        }
    }

    /// The warnings to log now.
    fn due(
        &mut self,
        now: Now,
        seen: &UnlistedProxies,
        requests: u64,
        listed: &[IpNet],
    ) -> Vec<(ProxySource, UnlistedProxy)> {
        if self.listed != listed {
            // What was seen before may be listed now, and what is seen next is news.
            seen.forget();
            *self = Self::new(listed);
            self.hour.first = TotalCounts::of(seen, requests);
        }
        let ratios = self.hour.ratios(now, TotalCounts::of(seen, requests));
        ProxySource::ALL.iter().zip(ratios).for_each(|(it, ratio)| seen.set_ratio(*it, ratio));
        self.measure(now, seen.requests(ProxySource::Public), requests);
        let mut due = Vec::new();
        for source in ProxySource::ALL {
            let warned = &mut self.warned[source as usize];
            let is_silent = warned.is_some_and(|it| now < it.plus_s(WARNING_EVERY_S));
            let is_doubtful = source == ProxySource::Public && !self.is_mostly_public;
            // Taken in any case, so that a warning names a proxy that forwards now.
            let proxy = seen.take(source);
            if let Some(proxy) = proxy.filter(|_| !is_silent && !is_doubtful) {
                *warned = Some(now);
                due.push((source, proxy));
            }
        }
        due
    }

    /// Computes the share of forwarded requests at the end of a window.
    fn measure(&mut self, now: Now, forwarded: u64, requests: u64) {
        let next = ShareWindow { begun: now, forwarded, requests };
        let window = *self.window.get_or_insert(next);
        let came = requests.saturating_sub(window.requests);
        if now >= window.begun.plus_s(WINDOW_S) && came >= WINDOW_REQUESTS_MIN {
            self.is_mostly_public = forwarded.saturating_sub(window.forwarded) * 2 > came;
            self.window = Some(next);
        }
    }
}

/// An address that is rewritten, by Docker's bridge or a node of Kubernetes for instance, is not
/// that of a proxy: behind it strangers send such headers, and would be believed.
const NOT_A_PROXY: &str = "if it is a bridge, a node or a NAT that hides its clients, do not list \
                           it, but let their addresses through (see SkepSourcesHidden)";

/// The setting that lists one more address.
fn remedy(address: IpAddr, listed: &[IpNet]) -> String {
    let added = format!("\"{}\"", IpNet::from(address));
    if listed.len() > NETWORKS_SHOWN_MAX {
        return format!("add {added} to http.trusted_proxies and reload (SIGHUP)");
    }
    let listed = listed.iter().map(|network| format!("\"{network}\""));
    let networks: Vec<_> = listed.chain([added]).collect();
    format!("set http.trusted_proxies = [{}] and reload (SIGHUP)", networks.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::origin::HopField;

    const START: Now = Now::from_s(1_800_000_000);

    /// A watch, and what it watches.
    #[derive(Default)]
    struct Fake {
        watch: ProxyWatch,
        seen: UnlistedProxies,
        requests: u64,
        listed: Vec<IpNet>,
    }

    impl Fake {
        /// Requests over HTTP in this second, from an address whose proxy is not listed.
        fn forward(&mut self, second: u64, count: u64, address: &str) {
            let address = address.parse().unwrap();
            self.requests += count;
            for _ in 0..count {
                self.seen.note(START.plus_s(second), address, HopField::XForwardedFor.into());
            }
        }

        /// The addresses that are warned of in this second.
        fn warned(&mut self, second: u64) -> Vec<String> {
            let now = START.plus_s(second);
            let due = self.watch.due(now, &self.seen, self.requests, &self.listed);
            due.into_iter().map(|it| it.1.address.to_string()).collect()
        }
    }

    #[test]
    fn one_request_from_a_private_address_is_enough_and_one_warning_an_hour() {
        let mut fake = Fake::default();
        assert!(fake.warned(0).is_empty());
        fake.forward(1, 1, "127.0.0.1");
        assert_eq!(fake.warned(1), ["127.0.0.1"]);
        for second in 2..3601 {
            fake.forward(second, 1, "10.0.0.1");
            assert!(fake.warned(second).is_empty(), "{second}");
        }
        fake.forward(3601, 1, "10.0.0.2");
        assert_eq!(fake.warned(3601), ["10.0.0.2"], "one that forwards now");
        assert!(fake.warned(9000).is_empty(), "none since");
    }

    #[test]
    fn from_public_addresses_it_takes_most_requests() {
        let mut fake = Fake::default();
        for second in 0..=300 {
            fake.requests += 3;
            fake.forward(second, 3, "9.9.9.9");
            assert!(fake.warned(second).is_empty(), "half is not most");
        }
        for second in 301..=420 {
            fake.requests += 2;
            fake.forward(second, 3, "9.9.9.9");
            let warned = fake.warned(second);
            assert!(warned.is_empty() || warned == ["9.9.9.9"]);
        }
        assert!(fake.watch.warned[ProxySource::Public as usize].is_some());
    }

    #[test]
    fn the_share_is_that_of_the_last_hour_however_few_requests_there_are() {
        let mut fake = Fake::default();
        let ratio = |fake: &mut Fake, second: u64| {
            fake.warned(second);
            fake.seen.ratio(ProxySource::Private)
        };
        assert_eq!(ratio(&mut fake, 0), 0.0);
        fake.requests += 1_000_000;
        assert_eq!(ratio(&mut fake, 1), 0.0);
        for second in 2..=3720 {
            ratio(&mut fake, second);
        }
        fake.forward(3721, 3, "10.0.0.1");
        fake.requests += 1;
        assert_eq!(ratio(&mut fake, 3721), 0.75, "the million was more than an hour ago");
        assert_eq!(fake.seen.ratio(ProxySource::Public), 0.0);
        for second in 3722..=7260 {
            assert_eq!(ratio(&mut fake, second), 0.75, "{second}");
        }
        let last = (7261..=7500).map(|second| ratio(&mut fake, second)).last();
        assert_eq!(last, Some(0.0), "none since");
        fake.forward(7501, 2, "10.0.0.1");
        assert_eq!(ratio(&mut fake, 7501), 1.0);
        fake.listed.push("10.0.0.1/32".parse().unwrap());
        assert_eq!(ratio(&mut fake, 7502), 0.0, "it is listed");
        fake.forward(7503, 1, "10.0.0.2");
        fake.requests += 1;
        assert_eq!(ratio(&mut fake, 7503), 0.5);
    }

    #[test]
    fn few_requests_from_strangers_are_not_most() {
        let mut fake = Fake::default();
        for second in 0..99 {
            fake.forward(second, 1, "9.9.9.9");
            assert!(fake.warned(second).is_empty());
        }
        assert!(fake.warned(10_000).is_empty());
    }

    #[test]
    fn what_arrives_before_the_first_look_is_not_forgotten() {
        let listed: Vec<IpNet> = vec!["10.0.0.0/24".parse().unwrap()];
        let mut fake = Fake { watch: ProxyWatch::new(&listed), listed, ..Fake::default() };
        fake.forward(0, 1, "127.0.0.1");
        assert_eq!(fake.warned(0), ["127.0.0.1"]);
    }

    #[test]
    fn once_another_proxy_is_listed_the_next_one_is_news() {
        let mut fake = Fake::default();
        fake.forward(0, 1, "127.0.0.1");
        assert_eq!(fake.warned(0), ["127.0.0.1"]);
        fake.forward(1, 1, "127.0.0.1");
        fake.listed.push("127.0.0.1/32".parse().unwrap());
        assert!(fake.warned(2).is_empty(), "it is listed now");
        assert_eq!(fake.seen.latest_s(ProxySource::Private), 0);
        fake.forward(3, 1, "10.0.0.1");
        assert_eq!(fake.warned(3), ["10.0.0.1"]);
    }

    #[test]
    fn the_remedy_is_the_line_of_the_settings() {
        let listed: Vec<IpNet> = vec!["10.0.0.0/24".parse().unwrap()];
        let address = "127.0.0.1".parse().unwrap();
        let line = "set http.trusted_proxies = [\"10.0.0.0/24\", \"127.0.0.1/32\"] and reload";
        assert!(remedy(address, &listed).starts_with(line), "{}", remedy(address, &listed));
        let many = [listed[0]; NETWORKS_SHOWN_MAX + 1];
        let line = "add \"fd00::1/128\" to http.trusted_proxies and reload (SIGHUP)";
        assert_eq!(remedy("fd00::1".parse().unwrap(), &many), line);
    }
}
