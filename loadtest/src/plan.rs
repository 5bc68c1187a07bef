//! The definition of a run: size and shape of the workload, how it is sent, and for how long.
//!
//! A [`Plan`] is plain data. It is printed with every result, so that a measurement can be
//! repeated: the same plan and seed make the same torrents, peers and choices.

use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

use crate::numbers::grouped;
use crate::sources::SourceRange;

/// How peers are spread over torrents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Distribution {
    /// Every torrent has one peer (given at least as many peers as torrents); what is left is
    /// spread by rank^-0.9: most swarms are tiny, a few huge, none empty.
    Tail,
    /// The skew of aquatic_udp_load_test: each peer joins a random torrent, torrent i of N with
    /// weight 0.5 + exp(6.5 - 500 i/N). More than half of the
    /// torrents get no peer.
    Aquatic,
    /// The same number of peers in every torrent, give or take one.
    Flat,
}

/// The requests to send, by weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mix {
    /// Weight of connects in addition to those that renew connection ids.
    pub(crate) connect: u32,
    /// Weight of announces.
    pub(crate) announce: u32,
    /// Weight of scrapes.
    pub(crate) scrape: u32,
}

/// A text that is not three weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected: CONNECT:ANNOUNCE:SCRAPE, three whole weights, as 10:100:1")]
pub(crate) struct MixError;

impl FromStr for Mix {
    type Err = MixError;

    fn from_str(text: &str) -> Result<Self, MixError> {
        let weights: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
        match weights.as_deref() {
            Ok(&[connect, announce, scrape]) if connect + announce + scrape > 0 => {
                Ok(Self { connect, announce, scrape })
            }
            _ => Err(MixError),
        }
    }
}

/// Which families the load comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both: every other socket is IPv6.
    Both,
}

/// What carries the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// BEP 15.
    Udp,
    /// BEP 3 and its extensions.
    Http,
    /// WebTorrent over WebSocket.
    Ws,
}

/// How the load is transported. Values of other protocols have no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Transport {
    /// The protocol.
    pub(crate) protocol: Protocol,
    /// Whether TLS is used.
    pub(crate) tls: bool,
    /// Whether TLS sessions are resumed if the tracker allows it.
    pub(crate) resumption: bool,
    /// HTTP: whether each request has its own connection.
    pub(crate) one_shot: bool,
    /// WebTorrent: number of offers in an announce.
    pub(crate) offers: u16,
}

impl Transport {
    /// UDP datagrams.
    pub(crate) const UDP: Self =
        Self { protocol: Protocol::Udp, tls: false, resumption: true, one_shot: false, offers: 5 };

    /// A description for results.
    pub(crate) fn text(&self) -> String {
        let tls = match (self.tls, self.resumption) {
            (false, _) => "",
            (true, true) => " over TLS",
            (true, false) => " over TLS without resumption",
        };
        match self.protocol {
            Protocol::Udp => "UDP".to_owned(),
            Protocol::Http if self.one_shot => format!("HTTP{tls}, a connection a request"),
            Protocol::Http => format!("HTTP{tls}, keep-alive"),
            Protocol::Ws => format!("WebTorrent{tls}, {} offers an announce", self.offers),
        }
    }
}

/// A named starting point; single options override its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Profile {
    /// 1 M torrents, 2 M peers, all resident before anything is measured; announces, some
    /// connects and scrapes, a little churn. What results are compared by.
    Canonical,
    /// As close to aquatic's bencher as a realistic load can be: its sizes, skew, 30 peers
    /// requested, 3 of 4 peers are seeders, announces and 1 % scrapes, no churn.
    Aquatic,
    /// As on public trackers: a connect for each announce, more churn, both families.
    Public,
    /// Small and short: does everything work?
    Smoke,
    /// Steady load at half the peak, for long: does memory grow, do descriptors leak, does latency
    /// drift? Takes --for and --expect-....
    Soak,
    /// Attack: a thousand addresses with valid connection ids announce without end, as monitors of
    /// rights holders do; beside them many honest clients. Shows the share of honest requests
    /// answered.
    Flood,
    /// Attack: connects, and announces with made-up connection ids, in the name of a victim, as
    /// spoofed traffic does. Shows whether the victim gets an id and is served, and how many bytes
    /// it is sent for each forged one.
    Forged,
    /// Attack: random info-hashes from many addresses, to fill the tracker's memory. Shows the
    /// share of the earlier peers that are still stored, and the memory used.
    RandomHashes,
    /// Attack: one address with tens of thousands of ports in one swarm, to displace all others.
    /// Shows how often it is in the responses to others.
    Sybil,
    /// Attack: scrapes of 74 info-hashes from a few addresses, the most expensive request; beside
    /// them many honest clients. Shows the share of honest requests answered.
    ScrapeStorm,
    /// Attack: three times as many requests as are answered at best, as after an outage. Shows what
    /// is answered meanwhile, and in the second after it.
    Overload,
}

/// The parameters of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    /// The profile that it is based on.
    pub(crate) profile: Profile,
    /// The transport.
    pub(crate) transport: Transport,
    /// Torrents, each with its own info-hash.
    pub(crate) torrents: u32,
    /// Peers over all torrents.
    pub(crate) peers: u32,
    /// The distribution of peers over torrents.
    pub(crate) distribution: Distribution,
    /// The share of peers that start as seeders, 0 to 1.
    pub(crate) seeders: f64,
    /// The share of announces by which a peer completes or leaves. A peer that left is replaced.
    pub(crate) churn: f64,
    /// The mix of requests.
    pub(crate) mix: Mix,
    /// Peers wanted per announce.
    pub(crate) numwant: u16,
    /// Info-hashes per scrape.
    pub(crate) scrape_hashes: u16,
    /// The seed of all random choices.
    pub(crate) seed: u64,
    /// The families.
    pub(crate) families: Families,
    /// Number of sockets, or connections, over all threads. Each has its own source address if
    /// there are enough.
    pub(crate) sources: u16,
    /// Ranges of source addresses; if empty, the target determines them.
    pub(crate) source: Vec<SourceRange>,
    /// Most unanswered requests per socket in a closed loop.
    pub(crate) in_flight: u16,
    /// Milliseconds after which a request counts as lost.
    pub(crate) timeout_ms: u32,
    /// Generator threads.
    pub(crate) threads: u16,
    /// Whether announces are sent as segments of one packet if the kernel supports that. It is
    /// cheaper for the generator, and the tracker receives the same datagrams.
    pub(crate) gso: bool,
    /// Whether every peer announces once before the measurement.
    pub(crate) fill: bool,
    /// Seconds of load before the measurement.
    pub(crate) warmup_s: f64,
    /// Seconds of load that are measured.
    pub(crate) duration_s: f64,
    /// Requests per second over all threads (open loop); `None`: as fast as responses arrive.
    pub(crate) rate: Option<u64>,
}

impl Profile {
    /// The plan of this profile.
    pub(crate) fn plan(self) -> Plan {
        let canonical = Plan {
            profile: self,
            transport: Transport::UDP,
            torrents: 1_000_000,
            peers: 2_000_000,
            distribution: Distribution::Tail,
            seeders: 0.6,
            churn: 0.02,
            mix: Mix { connect: 10, announce: 100, scrape: 1 },
            numwant: 30,
            scrape_hashes: 10,
            seed: 1,
            families: Families::V4,
            sources: 8,
            source: Vec::new(),
            in_flight: 16,
            timeout_ms: 1000,
            threads: 1,
            gso: true,
            fill: true,
            warmup_s: 1.0,
            duration_s: 10.0,
            rate: None,
        };
        match self {
            Self::Canonical => canonical,
            Self::Aquatic => Plan {
                distribution: Distribution::Aquatic,
                seeders: 0.75,
                churn: 0.0,
                mix: Mix { connect: 0, announce: 100, scrape: 1 },
                ..canonical
            },
            Self::Public => Plan {
                churn: 0.1,
                mix: Mix { connect: 50, announce: 50, scrape: 2 },
                families: Families::Both,
                sources: 64,
                in_flight: 4,
                ..canonical
            },
            Self::Smoke => Plan {
                torrents: 500,
                peers: 2_000,
                mix: Mix { connect: 10, announce: 80, scrape: 10 },
                churn: 0.1,
                warmup_s: 0.1,
                duration_s: 1.0,
                ..canonical
            },
            Self::Soak => Plan {
                torrents: 50_000,
                peers: 100_000,
                churn: 0.1,
                warmup_s: 60.0,
                duration_s: 3600.0,
                ..canonical
            },
            Self::RandomHashes => Plan { torrents: 50_000, peers: 100_000, ..canonical },
            Self::Flood | Self::Forged | Self::Sybil | Self::ScrapeStorm | Self::Overload => {
                Plan { torrents: 10_000, peers: 20_000, numwant: 50, ..canonical }
            }
        }
    }

    /// Whether it is an attack, which only a single run supports.
    pub(crate) fn is_attack(self) -> bool {
        !matches!(self, Self::Canonical | Self::Aquatic | Self::Public | Self::Smoke | Self::Soak)
    }
}

/// Options with which no plan can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// A value is out of its bounds, which the text names with the option.
    #[error("{0}")]
    OutOfBounds(&'static str),
    /// The profile does not use this option.
    #[error("{0} has no effect on this --profile")]
    WithoutEffect(&'static str),
    /// A comparison over a veth pair does not use this option.
    #[error("{0} has no effect over a veth pair")]
    WithoutEffectOnVeth(&'static str),
    /// The value of this option is not a number to compare with.
    #[error("{0} must be a finite number")]
    NotFinite(&'static str),
}

impl Plan {
    /// Checks whether the plan can be run.
    ///
    /// # Errors
    /// [`PlanError::OutOfBounds`], which names the option to change.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        let rules = [
            (self.torrents > 0, "--torrents must be at least 1"),
            (self.peers > 0, "--peers must be at least 1"),
            ((0.0..=1.0).contains(&self.seeders), "--seeders is a share from 0 to 1"),
            ((0.0..=1.0).contains(&self.churn), "--churn is a share from 0 to 1"),
            ((1..=74).contains(&self.scrape_hashes), "--scrape-hashes must be 1 to 74"),
            (self.numwant > 0, "--numwant must be at least 1"),
            (self.sources > 0 && self.threads > 0, "--sources and --threads must be at least 1"),
            (
                self.sources <= 4096 || self.transport.protocol != Protocol::Udp,
                "--sources can be 4096 at most",
            ),
            (self.transport.offers <= 50, "--offers can be 50 at most"),
            (self.threads <= self.sources, "--threads must not exceed --sources or --connections"),
            (self.families != Families::Both || self.sources >= 2, "two families need two sources"),
            ((1..=4096).contains(&self.in_flight), "--in-flight must be 1 to 4096"),
            ((10..=60_000).contains(&self.timeout_ms), "--timeout-ms must be 10 to 60000"),
            (self.rate != Some(0), "--rate must be at least 1"),
            ((0.0..=86_400.0).contains(&self.duration_s), "--duration is 0 to 86400 seconds"),
            ((0.0..=3_600.0).contains(&self.warmup_s), "--warmup is 0 to 3600 seconds"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, remedy)) => Err(PlanError::OutOfBounds(remedy)),
            None => Ok(()),
        }
    }

    /// How requests are paced, in words.
    pub(crate) fn pace(&self) -> String {
        match self.rate {
            None => "closed loop".to_owned(),
            Some(rate) => format!("open loop at {}/s", grouped(rate)),
        }
    }

    /// Whether the socket with this index is an IPv6 socket.
    pub(crate) fn is_v6(&self, socket: u16) -> bool {
        match self.families {
            Families::V4 => false,
            Families::V6 => true,
            Families::Both => socket % 2 == 1,
        }
    }

    /// The given ranges of one family.
    pub(crate) fn ranges(&self, v6: bool) -> impl Iterator<Item = &SourceRange> {
        self.source.iter().filter(move |it| matches!(it.first, IpAddr::V6(_)) == v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_can_be_run() {
        for profile in <Profile as clap::ValueEnum>::value_variants() {
            profile.plan().check().unwrap();
        }
    }

    #[test]
    fn mixes_are_three_weights() {
        assert_eq!("1:2:3".parse(), Ok(Mix { connect: 1, announce: 2, scrape: 3 }));
        for text in ["", "1:2", "1:2:3:4", "0:0:0", "a:b:c", "-1:2:3"] {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_run_names_its_option() {
        let plan = Plan { churn: 1.5, ..Profile::Smoke.plan() };
        assert!(plan.check().unwrap_err().to_string().contains("--churn"));
        let plan = Plan { threads: 9, ..Profile::Smoke.plan() };
        assert!(plan.check().unwrap_err().to_string().contains("--threads"));
    }
}
