//! What `--help` lists under "Attack profiles", with the defaults of each profile.

use std::num::ParseIntError;

use serde::Serialize;

use crate::plan::{PlanError, Profile};

/// Options of the attack profiles. One that has no effect on the profile is refused.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Attack profiles")]
pub(crate) struct AttackArguments {
    /// Attacking source addresses. [default: flood 1000, random-hashes 10000, scrape-storm 10]
    #[arg(long, value_name = "N")]
    attackers: Option<u16>,
    /// Requests a second of each of them, as far as this host can send them; 0 for random-hashes:
    /// as fast as responses arrive. [default: flood 1000, forged 100000, scrape-storm 2000,
    /// random-hashes 0]
    #[arg(long, value_name = "PER_S")]
    attack_rate: Option<u32>,
    /// Honest source addresses beside the attack; victims of forged; peers in the swarm of sybil.
    /// [default: 10000; forged 1, sybil 1000]
    #[arg(long, value_name = "N")]
    honest: Option<u16>,
    /// Seconds between the announces of each. [default: 5; forged 0.1]
    #[arg(long, value_name = "S")]
    honest_interval: Option<f64>,
    /// random-hashes: announces, each with an info-hash of its own; 50000000 in a full run.
    /// [default: 1000000]
    #[arg(long, value_name = "N")]
    requests: Option<u32>,
    /// sybil: ports of the one address. [default: 60000]
    #[arg(long, value_name = "N")]
    ports: Option<u16>,
    /// random-hashes: memory the tracker may use, e.g. 1GiB; the run fails if resident memory is
    /// more than 5 % above it.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory_cap: Option<u64>,
    /// flood, scrape-storm, forged: the least share of honest requests answered, 0 to 1.
    #[arg(long, value_name = "SHARE")]
    expect_honest: Option<f64>,
    /// random-hashes: the least share of the earlier peers that are still stored.
    #[arg(long, value_name = "SHARE")]
    expect_kept: Option<f64>,
    /// sybil: the most peers of the one address in any response.
    #[arg(long, value_name = "N")]
    expect_per_response: Option<u16>,
    /// overload: the least goodput as a share of the peak, while it lasts.
    #[arg(long, value_name = "SHARE")]
    expect_goodput: Option<f64>,
    /// overload: the least share of requests answered in the second after it.
    #[arg(long, value_name = "SHARE")]
    expect_recovery: Option<f64>,
}

/// The parameters of an attack. Those of other profiles have no effect.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Attack {
    /// Number of attacking sources.
    pub(crate) attackers: u16,
    /// Requests per second of each attacking source.
    pub(crate) attack_rate: u32,
    /// Number of honest sources.
    pub(crate) honest: u16,
    /// Seconds between announces of each honest source.
    pub(crate) honest_interval_s: f64,
    /// Number of requests in all.
    pub(crate) requests: u32,
    /// Number of ports of the one address.
    pub(crate) ports: u16,
    /// Most memory of the tracker, in bytes.
    pub(crate) memory_cap_bytes: Option<u64>,
}

/// A bound that a measure must keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// The least value.
    AtLeast(f64),
    /// The greatest value.
    AtMost(f64),
}

impl AttackArguments {
    /// Whether any option was given.
    pub(crate) fn are_given(&self) -> bool {
        self.given().iter().any(|(_, given, _)| *given)
    }

    /// The parameters of a profile, with the given options.
    ///
    /// # Errors
    /// One sentence that names the option to change.
    pub(crate) fn attack(&self, profile: Profile) -> Result<Attack, PlanError> {
        for (option, given, profiles) in self.given() {
            if given && !profiles.contains(&profile) {
                return Err(PlanError::WithoutEffect(option));
            }
        }
        let (attackers, attack_rate, honest, honest_interval_s) = match profile {
            Profile::Forged => (1, 100_000, 1, 0.1),
            Profile::Sybil => (1, 0, 1000, 5.0),
            Profile::ScrapeStorm => (10, 2000, 10_000, 5.0),
            Profile::RandomHashes => (10_000, 0, 10_000, 5.0),
            _ => (1000, 1000, 10_000, 5.0),
        };
        let attack = Attack {
            attackers: self.attackers.unwrap_or(attackers),
            attack_rate: self.attack_rate.unwrap_or(attack_rate),
            honest: self.honest.unwrap_or(honest),
            honest_interval_s: self.honest_interval.unwrap_or(honest_interval_s),
            requests: self.requests.unwrap_or(1_000_000),
            ports: self.ports.unwrap_or(60_000),
            memory_cap_bytes: self.memory_cap,
        };
        let shares =
            [self.expect_honest, self.expect_kept, self.expect_goodput, self.expect_recovery];
        let rules = [
            (attack.attackers > 0, "--attackers must be at least 1"),
            (attack.honest > 0, "--honest must be at least 1"),
            (attack.attack_rate > 0 || attack_rate == 0, "--attack-rate must be at least 1"),
            (attack.honest_interval_s >= 0.001, "--honest-interval must be at least 0.001"),
            (attack.requests > 0, "--requests must be at least 1"),
            (attack.ports > 0, "--ports must be at least 1"),
            (
                shares.iter().flatten().all(|it| (0.0..=1.0).contains(it)),
                "--expect-... is a share from 0 to 1",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, remedy)) => Err(PlanError::OutOfBounds(remedy)),
            None => Ok(attack),
        }
    }

    /// The expectations, by the names of the measures.
    pub(crate) fn expected(&self) -> Vec<(&'static str, Bound)> {
        let at_least = [
            ("honest_share", self.expect_honest),
            ("kept_share", self.expect_kept),
            ("goodput_share", self.expect_goodput),
            ("recovery_share", self.expect_recovery),
        ];
        let at_most = [
            ("per_response_max", self.expect_per_response.map(f64::from)),
            ("rss_of_cap", self.memory_cap.map(|_| 1.05)),
        ];
        let at_least = at_least.iter().map(|(name, it)| (*name, it.map(Bound::AtLeast)));
        let at_most = at_most.iter().map(|(name, it)| (*name, it.map(Bound::AtMost)));
        at_least.chain(at_most).filter_map(|(name, it)| Some((name, it?))).collect()
    }

    /// Every option: whether it was given, and the profiles that use it.
    fn given(&self) -> [(&'static str, bool, &'static [Profile]); 12] {
        use Profile::{Flood, Forged, Overload, RandomHashes, ScrapeStorm, Sybil};
        [
            ("--attackers", self.attackers.is_some(), &[Flood, RandomHashes, ScrapeStorm]),
            (
                "--attack-rate",
                self.attack_rate.is_some(),
                &[Flood, Forged, RandomHashes, ScrapeStorm],
            ),
            ("--honest", self.honest.is_some(), &[Flood, Forged, RandomHashes, ScrapeStorm, Sybil]),
            ("--honest-interval", self.honest_interval.is_some(), &[Flood, Forged, ScrapeStorm]),
            ("--requests", self.requests.is_some(), &[RandomHashes]),
            ("--ports", self.ports.is_some(), &[Sybil]),
            ("--memory-cap", self.memory_cap.is_some(), &[RandomHashes]),
            ("--expect-honest", self.expect_honest.is_some(), &[Flood, Forged, ScrapeStorm]),
            ("--expect-kept", self.expect_kept.is_some(), &[RandomHashes]),
            ("--expect-per-response", self.expect_per_response.is_some(), &[Sybil]),
            ("--expect-goodput", self.expect_goodput.is_some(), &[Overload]),
            ("--expect-recovery", self.expect_recovery.is_some(), &[Overload]),
        ]
    }
}

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum SizeError {
    /// Another unit.
    #[error("expected: a number of bytes, or one of KiB, MiB or GiB, e.g. 1GiB")]
    Unit,
    /// What precedes the unit is not a number.
    #[error("{digits:?}: {error}")]
    Number {
        /// The text before the unit.
        digits: String,
        /// What is wrong with it.
        error: ParseIntError,
    },
    /// 0, or more than can be counted.
    #[error("must be above 0")]
    OutOfBounds,
}

/// Parses a size: bytes, or a number with one of the units KiB, MiB and GiB.
fn bytes(text: &str) -> Result<u64, SizeError> {
    let digits = text.trim_end_matches(|it: char| !it.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(SizeError::Unit),
    };
    let count: u64 =
        digits.parse().map_err(|error| SizeError::Number { digits: digits.to_owned(), error })?;
    let most = u64::MAX >> shift;
    if count == 0 || count > most { Err(SizeError::OutOfBounds) } else { Ok(count << shift) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let sizes = ["7", "2KiB", "512MiB", "1 GiB"].map(bytes);
        assert_eq!(sizes, [Ok(7), Ok(2048), Ok(512 << 20), Ok(1 << 30)]);
        for text in ["", "MiB", "0", "-1", "1GB", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_of_other_profiles_are_refused() {
        let arguments = AttackArguments { ports: Some(7), ..AttackArguments::default() };
        assert!(arguments.are_given());
        assert_eq!(arguments.attack(Profile::Sybil).unwrap().ports, 7);
        let refused = arguments.attack(Profile::Flood).unwrap_err();
        assert_eq!(refused, PlanError::WithoutEffect("--ports"));
        let attack_arguments =
            AttackArguments { expect_honest: Some(1.5), ..AttackArguments::default() };
        let refused = attack_arguments.attack(Profile::Flood).unwrap_err();
        assert!(refused.to_string().contains("--expect"), "{refused}");
    }

    #[test]
    fn expectations_are_bounds_of_measures() {
        let arguments = AttackArguments {
            expect_kept: Some(0.99),
            memory_cap: Some(1 << 30),
            ..AttackArguments::default()
        };
        let wanted = [("kept_share", Bound::AtLeast(0.99)), ("rss_of_cap", Bound::AtMost(1.05))];
        assert_eq!(arguments.expected(), wanted);
    }
}
