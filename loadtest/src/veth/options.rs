//! What `--help` of compare lists under "Over a veth pair", and the plan that it makes.

use std::path::PathBuf;

use serde::Serialize;
use strum::IntoStaticStr;

use super::frames::{CLIENT_BITS_MAX, SWARM_BITS};
use super::programs::BATCH;
use crate::limit::PEERS_MAX;
use crate::plan::{Distribution, Families, Plan, PlanError, Profile};

/// What skep does with frames, as its setting `udp.xdp` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Xdp {
    /// Nothing: sockets alone.
    Off,
    /// Connects and forged ids are dealt with by an XDP program.
    Offload,
    /// Announces as well.
    Full,
}

impl Xdp {
    /// The value of the setting.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// Options of a comparison over a veth pair.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Over a veth pair")]
pub(crate) struct VethArguments {
    /// Values of udp.xdp with which skep takes part.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["off", "offload"])]
    pub(crate) xdp: Vec<Xdp>,
    /// Source addresses: a power of 2. Fewer than 8192 reach skep's limits of one address.
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    clients: u32,
    /// Announces with forged ids a second, in the phase with a flood.
    #[arg(long, value_name = "PER_S", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    forged_rate: u64,
    /// Requests of honest clients a second beside them.
    #[arg(long, value_name = "PER_S", default_value_t = 20_000,
          value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    honest_rate: u64,
    /// Of the responses, one of so many is checked in full: a power of 2.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    sample_every: u32,
    /// Write the result as JSON into this file, beside the tables that are printed.
    #[arg(long, value_name = "FILE")]
    pub(crate) json_file: Option<PathBuf>,
}

/// The options of a comparison's workload that count over a veth pair.
#[derive(Clone, Debug, Default)]
pub(crate) struct VethWorkload {
    pub(crate) torrents: Option<u32>,
    pub(crate) numwant: Option<u16>,
    pub(crate) seed: Option<u64>,
    pub(crate) in_flight: Option<u16>,
    pub(crate) rate: Option<u64>,
    pub(crate) warmup_s: Option<f64>,
    pub(crate) duration_s: Option<f64>,
}

/// The parameters of a comparison over a veth pair.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VethPlan {
    /// Source addresses of honest clients.
    pub(crate) clients: u32,
    /// Torrents.
    pub(crate) torrents: u32,
    /// Peers wanted per announce.
    pub(crate) numwant: u16,
    /// The seed of the info-hashes.
    pub(crate) seed: u64,
    /// Most unanswered requests at saturation.
    pub(crate) in_flight: u16,
    /// Requests a second at the set rate.
    pub(crate) rate: u64,
    /// Honest requests a second beside a flood.
    pub(crate) honest_rate: u64,
    /// Forged requests a second.
    pub(crate) forged_rate: u64,
    /// One of so many responses is checked in full.
    pub(crate) sample_every: u32,
    /// Seconds of load before each measurement.
    pub(crate) warmup_s: f64,
    /// Seconds that each phase is measured.
    pub(crate) duration_s: f64,
}

impl VethArguments {
    /// The plan.
    ///
    /// # Errors
    /// One sentence that names the option to change.
    pub(crate) fn plan(&self, workload: &VethWorkload) -> Result<VethPlan, PlanError> {
        let plan = VethPlan {
            clients: self.clients,
            torrents: workload.torrents.unwrap_or(16_384),
            numwant: workload.numwant.unwrap_or(30),
            seed: workload.seed.unwrap_or(1),
            in_flight: workload.in_flight.unwrap_or(128),
            rate: workload.rate.unwrap_or(100_000),
            honest_rate: self.honest_rate,
            forged_rate: self.forged_rate,
            sample_every: self.sample_every,
            warmup_s: workload.warmup_s.unwrap_or(0.5),
            duration_s: workload.duration_s.unwrap_or(3.0),
        };
        plan.check()?;
        Ok(plan)
    }
}

impl VethPlan {
    fn check(&self) -> Result<(), PlanError> {
        let clients_max = 1 << CLIENT_BITS_MAX;
        let in_flight_min = u16::try_from(BATCH).unwrap_or(u16::MAX);
        let is_power = |value: u32, max: u32| value.is_power_of_two() && value <= max;
        let rules = [
            (
                self.clients >= BATCH && is_power(self.clients, clients_max),
                "--clients is a power of 2 from 32 to 1048576",
            ),
            (is_power(self.torrents, 1 << 22), "--torrents is a power of 2, at most 4194304"),
            (is_power(self.sample_every, 1 << 24), "--sample-every is a power of 2"),
            ((1..=200).contains(&self.numwant), "--numwant is 1 to 200"),
            ((in_flight_min..=256).contains(&self.in_flight), "--in-flight is 32 to 256"),
            ((1..=10_000_000).contains(&self.rate), "--rate is 1 to 10000000"),
            ((0.0..=3_600.0).contains(&self.warmup_s), "--warmup is 0 to 3600 seconds"),
            ((0.01..=3_600.0).contains(&self.duration_s), "--duration is 0.01 to 3600 seconds"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, remedy)) => Err(PlanError::OutOfBounds(remedy)),
            None => Ok(()),
        }
    }

    /// The binary logarithm of the clients.
    pub(crate) fn client_bits(&self) -> u32 {
        self.clients.ilog2()
    }

    /// Peers in all: those of a client that announces in several torrents count in each.
    pub(crate) fn peers(&self) -> u64 {
        (u64::from(self.torrents) << SWARM_BITS).max(self.clients.into())
    }

    /// Peers that a tracker sends in a response.
    pub(crate) fn limit_peers(&self) -> u16 {
        let others = self.peers() / u64::from(self.torrents) - 1;
        u16::try_from(others).unwrap_or(u16::MAX).min(self.numwant).min(PEERS_MAX)
    }

    /// As far as a contestant's start needs it.
    pub(crate) fn as_plan(&self) -> Plan {
        Plan {
            torrents: self.torrents,
            peers: u32::try_from(self.peers()).unwrap_or(u32::MAX),
            distribution: Distribution::Flat,
            numwant: self.numwant,
            seed: self.seed,
            families: Families::V4,
            ..Profile::Canonical.plan()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(clients: u32, torrents: u32) -> Result<VethPlan, PlanError> {
        let arguments = VethArguments {
            xdp: Vec::new(),
            clients,
            forged_rate: 1,
            honest_rate: 1,
            sample_every: 1,
            json_file: None,
        };
        arguments.plan(&VethWorkload { torrents: Some(torrents), ..Default::default() })
    }

    #[test]
    fn swarms_have_eight_peers_or_all_clients_in_turn() {
        let plan = |clients, torrents| plan(clients, torrents).unwrap();
        assert_eq!((plan(64, 1024).peers(), plan(64, 1024).limit_peers()), (8192, 7));
        assert_eq!((plan(64, 4).peers(), plan(64, 4).limit_peers()), (64, 15));
    }

    #[test]
    fn what_cannot_be_run_names_its_option() {
        for (clients, torrents, named) in
            [(16, 4, "--clients"), (100, 4, "--clients"), (64, 3, "--torrents")]
        {
            assert!(plan(clients, torrents).unwrap_err().to_string().starts_with(named));
        }
    }
}
