//! The measured phases, and how one is run: frames by a mix and a pace, counters before and after.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use skep::sys::clock::Clock;

use super::VethError;
use super::cpu::{Meter, ServerCpu, idle_ns};
use super::figures::PhaseFigures;
use super::generator::{SENDERS, send};
use super::network::Network;
use super::options::VethPlan;
use super::programs::{BATCH, Control, Mix, Programs, Replies, Reply, Sent};
use super::sample::{Sampled, Sampler, ahead_ns};
use crate::interrupt;
use crate::numbers::{NS_PER_S, grouped, real, whole};

/// What is sent in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Load {
    /// Announces at a set rate.
    Announces,
    /// Announces as fast as they are answered.
    AnnouncesSaturated,
    /// A connect for each announce, at a set rate.
    Pairs,
    /// A connect for each announce, as fast as they are answered.
    PairsSaturated,
    /// Announces with random ids, beside a connect for each announce of honest clients.
    Flood,
}

impl Load {
    /// All of them, in the order in which they are run.
    pub(crate) const ALL: [Self; 5] =
        [Self::Announces, Self::AnnouncesSaturated, Self::Pairs, Self::PairsSaturated, Self::Flood];

    /// The name in reports.
    pub(crate) fn text(self, plan: &VethPlan) -> String {
        let paced = format!("at {} requests/s", grouped(plan.rate));
        let saturated = format!("at saturation, {} in flight", plan.in_flight);
        match self {
            Self::Announces => format!("announces only, {paced}"),
            Self::AnnouncesSaturated => format!("announces only, {saturated}"),
            Self::Pairs => format!("one connect per announce, {paced}"),
            Self::PairsSaturated => format!("one connect per announce, {saturated}"),
            Self::Flood => format!(
                "one connect per announce, at {} requests/s, beside {} forged ids/s",
                grouped(plan.honest_rate),
                grouped(plan.forged_rate)
            ),
        }
    }

    fn settings(self, plan: &VethPlan) -> Vec<(Control, u64)> {
        let paced = |rate: u64| (Control::IntervalNs, u64::from(BATCH) * NS_PER_S / rate.max(1));
        let mix = |mix: Mix| (Control::Mix, mix as u64);
        match self {
            Self::Announces => vec![mix(Mix::Announces), paced(plan.rate)],
            Self::AnnouncesSaturated => closed(Mix::Announces, plan),
            Self::Pairs => vec![mix(Mix::Pairs), paced(plan.rate)],
            Self::PairsSaturated => closed(Mix::Pairs, plan),
            Self::Flood => {
                let all = plan.honest_rate + plan.forged_rate;
                let every = (all / plan.honest_rate.max(1)).max(1);
                vec![mix(Mix::Flood), paced(all), (Control::HonestEvery, every)]
            }
        }
    }
}

/// As fast as requests are answered.
fn closed(mix: Mix, plan: &VethPlan) -> Vec<(Control, u64)> {
    let in_flight = u64::from(plan.in_flight);
    vec![(Control::Mix, mix as u64), (Control::InFlight, in_flight), (Control::StallNs, STALL_NS)]
}

/// A tracker under test, with all that is needed to load it.
pub(crate) struct Bench<'a> {
    pub(crate) network: &'a Network,
    pub(crate) programs: &'a Programs,
    pub(crate) plan: &'a VethPlan,
    pub(crate) meter: Meter,
    pub(crate) sampler: Sampler,
    pub(crate) clock: Clock,
    /// CPU of the tracker, and of the generator.
    pub(crate) cpus: [usize; 2],
}

/// What is read at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) at_ns: u64,
    pub(crate) sent: Sent,
    pub(crate) replies: Replies,
    pub(crate) cpu: ServerCpu,
    pub(crate) idle_ns: u64,
}

/// A phase as it was measured.
pub(crate) struct Measured {
    /// At the beginning and at the end of what is measured, under load.
    pub(crate) window: [Reading; 2],
    /// After the last response.
    pub(crate) end: Reading,
    pub(crate) sampled: Sampled,
}

/// After so long without a response, what is in flight is given up.
const STALL_NS: u64 = 20_000_000;
/// How long clients may take to get their ids, or to be stored.
const PREPARE_S: f64 = 30.0;
/// Nothing is under way any more once so long no response came.
const QUIET_S: f64 = 0.05;

impl Bench<'_> {
    fn read(&self) -> Result<Reading, VethError> {
        Ok(Reading {
            at_ns: self.clock.elapsed_ns_at(self.clock.now()),
            sent: self.programs.sent().map_err(VethError::Map)?,
            replies: self.programs.replies().map_err(VethError::Map)?,
            cpu: self.meter.read().ok_or(VethError::Ended)?,
            idle_ns: idle_ns(self.cpus[0]).unwrap_or(0),
        })
    }

    /// Sends while `watch` runs, and until nothing is under way any more.
    fn under_load<T>(
        &mut self,
        settings: &[(Control, u64)],
        watch: impl FnOnce(&mut Self, &dyn Fn() -> bool) -> Result<T, VethError>,
    ) -> Result<T, VethError> {
        self.programs.begin(settings).map_err(VethError::Map)?;
        let stop = AtomicBool::new(false);
        let panicked = |_| Err(VethError::Generate(std::io::Error::other("a thread panicked")));
        let (network, generator, cpu) = (self.network, &self.programs.generator, self.cpus[1]);
        let (watched, sent) = std::thread::scope(|scope| {
            let send =
                || network.at_client(|_| send(generator, cpu, &stop).map_err(VethError::Generate));
            let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
            let watched = watch(self, &|| senders.iter().any(|it| it.is_finished()));
            stop.store(true, Ordering::Relaxed);
            let ended = senders.into_iter().map(|it| it.join().unwrap_or_else(panicked));
            (watched, ended.collect::<Result<(), VethError>>())
        });
        sent?;
        let watched = watched?;
        self.settle()?;
        Ok(watched)
    }

    /// Waits for the last response.
    fn settle(&mut self) -> Result<(), VethError> {
        loop {
            let seen = |this: &Self| this.programs.replies().map_err(VethError::Map);
            let before = seen(self)?.of(Reply::Seen);
            let end_ns = ahead_ns(&self.clock, QUIET_S);
            self.sampler.take_until(&self.clock, end_ns, || false).map_err(VethError::Sample)?;
            if seen(self)?.of(Reply::Seen) == before || interrupt::is_requested() {
                return Ok(());
            }
        }
    }

    /// Sends until a counter has reached a number.
    fn prepare(&mut self, mix: Mix, counter: Reply, wanted: u64) -> Result<(), VethError> {
        let reached = self.under_load(&closed(mix, self.plan), |this, has_ended| {
            let end_ns = ahead_ns(&this.clock, PREPARE_S);
            let programs = this.programs;
            let reached = || programs.replies().map_or(0, |it| it.of(counter));
            let is_over = || has_ended() || reached() >= wanted;
            let taken = this.sampler.take_until(&this.clock, end_ns, is_over);
            taken.map_err(VethError::Sample)?;
            Ok(reached())
        })?;
        interrupt::check("preparing clients")?;
        match reached >= wanted {
            true => Ok(()),
            false => Err(VethError::Unprepared {
                what: if mix == Mix::Connects { "ids for clients" } else { "announces" },
                reached,
                wanted,
                seconds: whole(PREPARE_S),
            }),
        }
    }

    /// Gets a connection id for every client.
    ///
    /// # Errors
    /// If the tracker answers too few connects.
    pub(crate) fn connect_all(&mut self) -> Result<(), VethError> {
        self.programs.forget_ids(self.plan.client_bits()).map_err(VethError::Map)?;
        self.prepare(Mix::Connects, Reply::Known, u64::from(self.plan.clients))
    }

    /// Has every peer announce once.
    ///
    /// # Errors
    /// If the tracker answers too few announces.
    pub(crate) fn announce_all(&mut self) -> Result<(), VethError> {
        self.prepare(Mix::Announces, Reply::Announces, self.plan.peers())
    }

    /// Runs one phase; `None` if a signal came.
    ///
    /// # Errors
    /// If frames cannot be sent, or the tracker has ended.
    pub(crate) fn measure(&mut self, load: Load) -> Result<Option<PhaseFigures>, VethError> {
        self.connect_all()?;
        self.sampler.take();
        let settings = load.settings(self.plan);
        let window = self.under_load(&settings, |this, has_ended| {
            let [warmup_s, duration_s] = [this.plan.warmup_s, this.plan.duration_s];
            let mut wait = |seconds: f64| {
                let end_ns = ahead_ns(&this.clock, seconds);
                let taken = this.sampler.take_until(&this.clock, end_ns, has_ended);
                taken.map_err(VethError::Sample)?;
                this.read()
            };
            Ok([wait(warmup_s)?, wait(duration_s)?])
        })?;
        if interrupt::is_requested() {
            return Ok(None);
        }
        let measured = Measured { window, end: self.read()?, sampled: self.sampler.take() };
        Ok(Some(PhaseFigures::of(&measured)))
    }
}

/// Nanoseconds between two readings.
pub(crate) fn elapsed_ns(window: &[Reading; 2]) -> f64 {
    real(window[1].at_ns.saturating_sub(window[0].at_ns).max(1))
}
