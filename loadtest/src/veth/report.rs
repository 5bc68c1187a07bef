//! The result of a comparison over a veth pair, as tables and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::figures::PhaseFigures;
use super::options::VethPlan;
use super::phase::Load;
use crate::machine::Machine;
use crate::numbers::grouped;
use crate::report::rate;

/// The contestant to which others are compared.
pub(crate) const BASELINE: &str = "skep";
/// Other programs on the server's CPU for more than this share of the time make a result doubtful.
/// Below it lies what waking up an idle CPU takes, which is in no thread's time.
const OTHERS_MAX: f64 = 0.10;

/// One contestant's results.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The contestant's name.
    pub(crate) name: String,
    /// The command that started it.
    pub(crate) command: String,
    /// Each phase.
    pub(crate) phases: Vec<PhaseRow>,
}

/// One phase of one contestant.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PhaseRow {
    /// What was sent.
    pub(crate) load: Load,
    /// Medians over the rounds.
    pub(crate) median: PhaseFigures,
    /// All rounds, in order.
    pub(crate) rounds: Vec<PhaseFigures>,
}

/// All data of a result file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    machine: Machine,
    /// CPU of the tracker and of the kernel's receiving thread, and CPU of the generator.
    cpus: [usize; 2],
    plan: VethPlan,
    rounds: usize,
    rows: Vec<Row>,
    warnings: Vec<String>,
}

impl Comparison {
    pub(crate) fn new(
        machine: Machine,
        cpus: [usize; 2],
        plan: VethPlan,
        rounds: usize,
        rows: Vec<Row>,
    ) -> Self {
        let warnings = warnings(&rows, cpus, &plan);
        Self { machine, cpus, plan, rounds, rows, warnings }
    }

    /// The tables in Markdown, for a result file.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let plan = &self.plan;
        writeln!(out, "machine: {}", self.machine.line())?;
        writeln!(
            out,
            "load: IPv4 over a veth pair, from {} addresses, in bursts of 32; {} torrents, {} \
             peers, numwant {}, seed {}",
            grouped(plan.clients.into()),
            grouped(plan.torrents.into()),
            grouped(plan.peers()),
            plan.numwant,
            plan.seed
        )?;
        writeln!(
            out,
            "medians of {} interleaved rounds of {} s for each load; tracker and receiving thread \
             on CPU {}, generator and sink on {}",
            self.rounds, plan.duration_s, self.cpus[0], self.cpus[1]
        )?;
        for (at, load) in Load::ALL.into_iter().enumerate() {
            writeln!(out, "\n## {}\n", load.text(plan))?;
            match load {
                Load::Flood => self.write_flood(out, at)?,
                _ => self.write_load(out, at)?,
            }
        }
        writeln!(out, "\ncommands:")?;
        for row in &self.rows {
            writeln!(out, "- {}: `{}`", row.name, row.command)?;
        }
        self.warnings.iter().try_for_each(|it| writeln!(out, "\nwarning: {it}"))
    }

    fn write_load(&self, out: &mut String, at: usize) -> std::fmt::Result {
        writeln!(
            out,
            "| tracker | answers/s | server CPU ns/answer | ÷ {BASELINE} | process | NAPI thread \
             | softirq daemon | server cores | answered % | bytes/announce | errors | invalid \
             | checked in full | invalid of those |"
        )?;
        writeln!(out, "|---|{}", "---:|".repeat(13))?;
        for (name, median) in self.medians(at) {
            writeln!(
                out,
                "| {name} | {} | {} | {} | {} | {} | {} | {:.2} | {:.2} | {:.0} | {} | {} | {} \
                 | {} |",
                rate(median.answers_per_s),
                rate(median.cpu_ns_per_answer),
                self.ratio(at, median),
                rate(median.process_ns_per_answer),
                rate(median.napi_ns_per_answer),
                rate(median.softirq_ns_per_answer),
                median.server_cores,
                median.answered_share * 100.0,
                median.bytes_per_announce,
                median.errors,
                median.invalid,
                median.sampled.checked,
                median.sampled.invalid.values().sum::<u64>()
            )?;
        }
        Ok(())
    }

    fn write_flood(&self, out: &mut String, at: usize) -> std::fmt::Result {
        writeln!(
            out,
            "| tracker | forged ids sent/s | honest answered % | of connects % | of announces % \
             | answers/s | responses to forged ids | server cores | errors | invalid |"
        )?;
        writeln!(out, "|---|{}", "---:|".repeat(9))?;
        for (name, median) in self.medians(at) {
            writeln!(
                out,
                "| {name} | {} | {:.2} | {:.2} | {:.2} | {} | {} | {:.2} | {} | {} |",
                rate(median.forged_per_s),
                median.answered_share * 100.0,
                median.connects_answered_share * 100.0,
                median.announces_answered_share * 100.0,
                rate(median.answers_per_s),
                grouped(median.forged_answered),
                median.server_cores,
                median.errors,
                median.invalid
            )?;
        }
        Ok(())
    }

    fn medians(&self, at: usize) -> impl Iterator<Item = (&str, &PhaseFigures)> {
        self.rows.iter().filter_map(move |it| Some((&*it.name, &it.phases.get(at)?.median)))
    }

    /// The CPU for an answer, compared with skep's on sockets.
    fn ratio(&self, at: usize, median: &PhaseFigures) -> String {
        let baseline = self.medians(at).find(|(name, _)| *name == BASELINE);
        baseline.map_or_else(
            || "–".to_owned(),
            |(_, it)| format!("{:.2}", median.cpu_ns_per_answer / it.cpu_ns_per_answer),
        )
    }
}

/// Reasons to doubt the results.
fn warnings(rows: &[Row], [server, generator]: [usize; 2], plan: &VethPlan) -> Vec<String> {
    let mut warnings = Vec::new();
    if server == generator {
        warnings.push("tracker and generator share the one CPU there is".to_owned());
    }
    for row in rows {
        for PhaseRow { load, rounds, .. } in &row.phases {
            for (index, round) in rounds.iter().enumerate() {
                let mut warn = |text: String| {
                    let (name, of) = (&row.name, rounds.len());
                    let load = load.text(plan);
                    warnings.push(format!("{name}, {load}, round {} of {of}: {text}", index + 1));
                };
                doubts(round).into_iter().for_each(&mut warn);
            }
        }
    }
    warnings
}

fn doubts(round: &PhaseFigures) -> Vec<String> {
    let mut doubts = Vec::new();
    if round.other_cores > OTHERS_MAX {
        let share = round.other_cores * 100.0;
        doubts.push(format!("other programs had {share:.0} % of the tracker's CPU"));
    }
    for (label, count) in &round.sampled.invalid {
        doubts.push(format!("invalid in the sample: {label} × {}", grouped(*count)));
    }
    if round.invalid > 0 {
        doubts.push(format!("{} responses are invalid", grouped(round.invalid)));
    }
    if round.errors > 0 {
        doubts.push(format!("{} responses are errors", grouped(round.errors)));
    }
    doubts
}
