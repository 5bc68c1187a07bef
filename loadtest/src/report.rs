//! The figures of a run: computed once, printed for people or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::check::Invalid;
use crate::numbers::{grouped, per, real, seconds};
use crate::plan::{Plan, Protocol};
use crate::run::Outcome;
use crate::slots::Kind;
use crate::tally::StreamCounts;

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    /// Half of the responses took at most this long.
    pub(crate) p50_us: f64,
    /// 90 % took at most this long.
    pub(crate) p90_us: f64,
    /// 99 % took at most this long.
    pub(crate) p99_us: f64,
    /// 99.9 % took at most this long.
    pub(crate) p999_us: f64,
    /// The longest.
    pub(crate) max_us: f64,
}

impl Latency {
    /// Reads a histogram of nanoseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| real(histogram.value_at_quantile(quantile)) / 1000.0;
        Self {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: real(histogram.max()) / 1000.0,
        }
    }
}

/// Resources that the tracker's process used in the measured phase.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ServerFigures {
    /// CPU time per good response, in nanoseconds.
    pub(crate) cpu_ns_per_response: f64,
    /// CPU time per elapsed time: 1 is one whole core.
    pub(crate) cores: f64,
    /// Share of time in which threads waited for a CPU that another program had.
    pub(crate) wait_share: f64,
    /// Resident memory at the end, in bytes.
    pub(crate) rss_bytes: u64,
    /// Highest resident memory, in bytes.
    pub(crate) rss_peak_bytes: u64,
    /// Resident memory before the first request, with connections already open, in bytes.
    pub(crate) rss_start_bytes: u64,
    /// Growth per resident peer, in bytes, if the peers were filled in.
    pub(crate) bytes_per_peer: Option<f64>,
}

/// Results of the fill.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct FillFigures {
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Peers whose announce was answered.
    pub(crate) resident: u64,
    /// Peers in the tracker's own scrape counts.
    pub(crate) scraped: Option<u64>,
    /// Error responses.
    pub(crate) errors: u64,
}

impl FillFigures {
    /// Reasons to doubt a fill with so many peers.
    fn doubts(&self, peers: u64) -> Vec<String> {
        let scraped = self.scraped.unwrap_or(0);
        let [resident, wanted, counted] = [self.resident, peers, scraped].map(grouped);
        let doubts = [
            (
                self.resident < peers,
                format!("only {resident} of {wanted} peers could be filled in"),
            ),
            (
                // A tracker that stores nothing, like the limit responder, reports counts of 0.
                scraped > 0 && peers.saturating_sub(scraped) > peers / 1000,
                format!(
                    "the tracker counts {counted} of {wanted} peers: it has lost or refused the \
                     others"
                ),
            ),
            (
                self.has_former_peers(),
                format!(
                    "the tracker counts {counted} peers in these torrents, this run has \
                     {resident}: the others are of former runs, and memory per peer is not \
                     measured; restart the tracker, or choose another --seed"
                ),
            ),
        ];
        doubts.into_iter().filter_map(|(applies, text)| applies.then_some(text)).collect()
    }

    /// Whether the tracker had peers in these torrents before.
    fn has_former_peers(&self) -> bool {
        self.scraped.is_some_and(|it| it > self.resident + self.resident / 1000)
    }
}

/// All figures of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// Seconds in which requests were sent.
    pub(crate) seconds: f64,
    /// Good responses per second, of all kinds.
    pub(crate) answered_per_s: f64,
    /// Requests sent, by kind.
    pub(crate) sent: BTreeMap<&'static str, u64>,
    /// Good responses, by kind.
    pub(crate) answered: BTreeMap<&'static str, u64>,
    /// Requests without a response.
    pub(crate) lost: u64,
    /// `lost` as a share of the requests sent.
    pub(crate) lost_share: f64,
    /// From the moment a request was due to its response.
    pub(crate) latency: Latency,
    /// From the moment a request was due to the moment it was sent (open loop).
    pub(crate) lag: Latency,
    /// Peers per response to an announce that wanted some.
    pub(crate) peers_per_response: f64,
    /// Payload bytes per good response.
    pub(crate) bytes_per_response: f64,
    /// Error responses.
    pub(crate) errors: u64,
    /// Text of the first error.
    pub(crate) error_text: Option<String>,
    /// Invalid responses, by fault.
    pub(crate) invalid: BTreeMap<&'static str, u64>,
    /// Responses after their timeout.
    pub(crate) late: u64,
    /// Requests that this host could not send.
    pub(crate) unsent: u64,
    /// Requests that were due but found no room (open loop).
    pub(crate) held_back: u64,
    /// Share of time in which the generator had nothing to do.
    pub(crate) generator_idle_share: f64,
    /// Share of time in which the generator's threads waited for a CPU that another program had.
    pub(crate) generator_wait_share: f64,
    /// Peers resident at the end, by the generator's count.
    pub(crate) resident: u64,
    /// The fill.
    pub(crate) fill: Option<FillFigures>,
    /// Counts of connections; absent over UDP.
    pub(crate) stream: Option<StreamCounts>,
    /// The tracker's process.
    pub(crate) server: Option<ServerFigures>,
    /// Its id, if it was a process of this host at the start.
    pub(crate) pid: Option<u32>,
    /// Whether a signal ended the run early.
    pub(crate) is_partial: bool,
    /// Reasons to doubt these results.
    pub(crate) warnings: Vec<String>,
}

impl Figures {
    /// Computes the figures.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        let (plan, tally) = (&outcome.plan, &outcome.tally);
        let answered = tally.answered_all();
        let sent: u64 = tally.sent.iter().sum();
        let by_kind =
            |counts: &[u64; 3]| Kind::ALL.into_iter().map(|it| it.label()).zip(*counts).collect();
        let mut figures = Self {
            seconds: seconds(tally.elapsed_ns),
            answered_per_s: real(tally.answered_in_time) / seconds(tally.elapsed_ns).max(1e-9),
            sent: by_kind(&tally.sent),
            answered: by_kind(&tally.answered),
            lost: tally.lost_all(),
            lost_share: per(tally.lost_all(), sent),
            latency: Latency::of(&tally.latency),
            lag: Latency::of(&tally.lag),
            peers_per_response: per(tally.peers, tally.peer_responses),
            bytes_per_response: per(tally.received_bytes, answered),
            errors: tally.errors,
            error_text: tally.error_text.clone(),
            invalid: Invalid::ALL
                .into_iter()
                .filter(|it| tally.invalid[*it as usize] > 0)
                .map(|it| (it.label(), tally.invalid[it as usize]))
                .collect(),
            late: tally.late,
            unsent: tally.unsent,
            held_back: tally.held_back,
            generator_idle_share: per(tally.idle_ns, tally.busy_and_idle_ns),
            generator_wait_share: {
                let [before, after] = outcome.own_usage;
                per(after.wait_ns.saturating_sub(before.wait_ns), tally.busy_and_idle_ns)
            },
            resident: outcome.resident,
            fill: outcome.filled.as_ref().map(|filled| FillFigures {
                seconds: filled.seconds,
                resident: filled.resident,
                scraped: filled.scraped,
                errors: filled.tally.errors,
            }),
            stream: (plan.transport.protocol != Protocol::Udp).then_some(tally.stream),
            server: server(outcome),
            pid: outcome.pid,
            is_partial: outcome.is_partial,
            warnings: Vec::new(),
        };
        if figures.fill.is_some_and(|fill| fill.has_former_peers())
            && let Some(server) = &mut figures.server
        {
            server.bytes_per_peer = None;
        }
        figures.warnings = figures.doubts(plan);
        figures
    }

    /// Reasons to doubt the results.
    fn doubts(&self, plan: &Plan) -> Vec<String> {
        let mut doubts = Vec::new();
        let mut doubt = |applies: bool, text: String| {
            if applies {
                doubts.push(text);
            }
        };
        doubt(
            self.is_partial,
            format!("interrupted after {:.1} of {:.1} s", self.seconds, plan.duration_s),
        );
        doubt(
            cfg!(debug_assertions),
            "debug build: the generator is slow; use cargo run --release".to_owned(),
        );
        let waited = self.server.map_or(0.0, |it| it.wait_share);
        let disturbed = waited > DISTURBED || self.generator_wait_share > DISTURBED;
        doubt(
            disturbed,
            format!(
                "other programs took CPU: the tracker waited {:.0} % of the time, the generator \
                 {:.0} %",
                waited * 100.0,
                self.generator_wait_share * 100.0
            ),
        );
        if let Some(rate) = plan.rate {
            let sent = real(self.sent.values().sum()) / self.seconds.max(1e-9);
            doubt(
                sent < 0.99 * real(rate) || self.lag.p99_us > 1000.0,
                format!(
                    "the generator fell behind: {sent:.0} of {rate} requests/s left, p99 lag \
                     {:.0} us; lower --rate or raise --threads",
                    self.lag.p99_us
                ),
            );
        } else if let Some(server) = self.server {
            doubt(
                server.cores < 0.9 && !disturbed,
                format!(
                    "the generator was the bottleneck: the tracker used only {:.0} % of a core, \
                     so its rate is a lower bound; raise --threads, --in-flight or \
                     --connections",
                    server.cores * 100.0
                ),
            );
        }
        doubt(self.unsent > 0, format!("{} requests could not be sent by this host", self.unsent));
        let text = self.error_text.as_deref().unwrap_or_default();
        doubt(self.errors > 0, format!("{} error responses, the first: {text:?}", self.errors));
        let invalid: u64 = self.invalid.values().sum();
        doubt(invalid > 0, format!("{invalid} responses are invalid"));
        if let Some(fill) = self.fill {
            doubts.extend(fill.doubts(plan.peers.into()));
        }
        doubts
    }

    /// What was run and what was lost, for the head of a plot.
    pub(crate) fn in_short(&self, plan: &Plan) -> String {
        let partial = if self.is_partial { ", interrupted" } else { "" };
        format!(
            "{:?} profile over {}, {}: {}/s answered, {:.4} % lost{partial}",
            plan.profile,
            plan.transport.text(),
            plan.pace(),
            rate(self.answered_per_s),
            self.lost_share * 100.0
        )
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "answered    {:>12} /s over {:.1} s",
            rate(self.answered_per_s),
            self.seconds
        )?;
        for (kind, answered) in &self.answered {
            let sent = self.sent.get(kind).copied().unwrap_or(0);
            if sent == 0 {
                continue;
            }
            let per_s = rate(real(*answered) / self.seconds.max(1e-9));
            writeln!(
                out,
                "  {kind:<9} {per_s:>12} /s ({} of {} sent)",
                grouped(*answered),
                grouped(sent)
            )?;
        }
        writeln!(
            out,
            "lost        {:>12} ({:.4} %), {} came late",
            grouped(self.lost),
            self.lost_share * 100.0,
            self.late
        )?;
        let latency = &self.latency;
        writeln!(
            out,
            "latency us  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            latency.p50_us, latency.p90_us, latency.p99_us, latency.p999_us, latency.max_us
        )?;
        if self.lag.max_us > 0.0 {
            let lag = &self.lag;
            writeln!(
                out,
                "sender lag  p50 {:.1}  p99 {:.1}  max {:.1}",
                lag.p50_us, lag.p99_us, lag.max_us
            )?;
        }
        writeln!(
            out,
            "responses     {:.2} peers each, {:.1} bytes, {} errors, {} invalid",
            self.peers_per_response,
            self.bytes_per_response,
            grouped(self.errors),
            grouped(self.invalid.values().sum())
        )?;
        for (what, count) in &self.invalid {
            writeln!(out, "  invalid: {what} × {}", grouped(*count))?;
        }
        self.write_stream(out)?;
        self.write_server(out)?;
        writeln!(out, "generator   idle {:.0} % of the time", self.generator_idle_share * 100.0)?;
        self.warnings.iter().try_for_each(|it| writeln!(out, "warning: {it}"))
    }

    /// The part about connections.
    fn write_stream(&self, out: &mut String) -> std::fmt::Result {
        let Some(stream) = &self.stream else { return Ok(()) };
        writeln!(
            out,
            "connections {:>12} opened, {} WebSockets closed by the tracker",
            grouped(stream.connections),
            grouped(stream.closed_by_tracker)
        )?;
        if stream.offers_sent > 0 {
            writeln!(
                out,
                "WebRTC      {:>12} offers relayed of {} sent, {} answers of {}, {} too late",
                grouped(stream.offers_relayed),
                grouped(stream.offers_sent),
                grouped(stream.answers_relayed),
                grouped(stream.answers_sent),
                grouped(stream.answers_refused)
            )?;
        }
        Ok(())
    }

    /// The part about the tracker: what it holds, and what that costs.
    fn write_server(&self, out: &mut String) -> std::fmt::Result {
        if let Some(fill) = &self.fill {
            let scraped = fill.scraped.map_or_else(|| "not scraped".to_owned(), grouped);
            writeln!(
                out,
                "resident    {:>12} peers after {:.1} s of filling; scrapes count {scraped}; \
                 {} at the end",
                grouped(fill.resident),
                fill.seconds,
                grouped(self.resident)
            )?;
        }
        match &self.server {
            Some(server) => {
                writeln!(
                    out,
                    "server CPU  {:>12} ns per response, {:.2} cores",
                    rate(server.cpu_ns_per_response),
                    server.cores
                )?;
                let per_peer = server
                    .bytes_per_peer
                    .map_or(String::new(), |it| format!(", {it:.1} bytes per resident peer"));
                writeln!(
                    out,
                    "server RSS  {:>8.1} MiB, peak {:.1} MiB, {:.1} MiB at start{per_peer}",
                    mib(server.rss_bytes),
                    mib(server.rss_peak_bytes),
                    mib(server.rss_start_bytes)
                )?;
            }
            None => match self.pid {
                Some(pid) => writeln!(
                    out,
                    "server      process {pid} has ended or been replaced: no CPU, no memory"
                )?,
                None => writeln!(out, "server      not a process of this host: no CPU, no memory")?,
            },
        }
        Ok(())
    }
}

/// The share of time that may be lost to other programs before results are doubtful.
const DISTURBED: f64 = 0.03;

/// A rate without decimals, with its thousands separated.
pub(crate) fn rate(value: f64) -> String {
    grouped(crate::numbers::whole(value.round()))
}

/// Bytes as MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    real(bytes) / real(1 << 20)
}

fn server(outcome: &Outcome) -> Option<ServerFigures> {
    let [start, before, after] = outcome.usage?;
    let tally = &outcome.tally;
    let cpu_ns = after.cpu_ns.saturating_sub(before.cpu_ns);
    let filled = outcome.filled.as_ref().map_or(0, |it| it.resident);
    let grown = before.rss_bytes.saturating_sub(start.rss_bytes);
    Some(ServerFigures {
        cpu_ns_per_response: per(cpu_ns, tally.answered_all()),
        cores: per(cpu_ns, tally.elapsed_ns),
        wait_share: per(after.wait_ns.saturating_sub(before.wait_ns), tally.elapsed_ns),
        rss_bytes: after.rss_bytes,
        rss_peak_bytes: after.rss_peak_bytes,
        rss_start_bytes: start.rss_bytes,
        bytes_per_peer: (filled > 0).then(|| per(grown, filled)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;
    use crate::process::Usage;
    use crate::run::Filled;
    use crate::tally::Tally;

    fn outcome() -> Outcome {
        let mut tally = Tally::new(1_000_000, 4);
        for micros in 1..=1000 {
            tally.answered(Kind::Announce, micros, micros * 1000);
        }
        tally.sent = [0, 1001, 0];
        tally.lost = [0, 1, 0];
        tally.answered_in_time = 1000;
        tally.elapsed_ns = 500_000_000;
        (tally.peers, tally.peer_responses) = (12_000, 1000);
        let at =
            |cpu_ns, rss_bytes| Usage { cpu_ns, wait_ns: 0, rss_bytes, rss_peak_bytes: rss_bytes };
        let usage = Some([at(0, 1 << 20), at(10, 2 << 20), at(2_000_010, 2 << 20)]);
        let own_usage = [at(0, 0); 2];
        let plan = Profile::Smoke.plan();
        let (pid, is_partial) = (Some(4711), false);
        Outcome { plan, filled: None, tally, resident: 7, usage, own_usage, pid, is_partial }
    }

    #[test]
    fn figures_follow_from_counts() {
        let figures = Figures::of(&outcome());
        assert!((figures.answered_per_s - 2000.0).abs() < 1e-6);
        assert_eq!(figures.lost, 1);
        assert!((figures.peers_per_response - 12.0).abs() < 1e-9);
        // The histogram has a precision of three digits.
        let near = |value: f64, wanted: f64| (value - wanted).abs() < wanted / 500.0;
        assert!(near(figures.latency.p50_us, 500.0) && near(figures.latency.p99_us, 990.0));
        assert!(near(figures.latency.p999_us, 999.0) && near(figures.latency.max_us, 1000.0));
        let server = figures.server.unwrap();
        assert!((server.cpu_ns_per_response - 2000.0).abs() < 1e-9);
    }

    #[test]
    fn an_idle_tracker_makes_the_figures_doubtful() {
        let figures = Figures::of(&outcome());
        assert!(
            figures.warnings.iter().any(|it| it.contains("bottleneck")),
            "{:?}",
            figures.warnings
        );
        assert!(figures.text().contains("warning: "));
    }

    /// The figures of a fill of 2000 peers of which the tracker counts so many.
    fn filled(scraped: u64) -> Figures {
        let tally = Tally::new(1, 0);
        let filled = Filled { seconds: 1.0, resident: 2000, scraped: Some(scraped), tally };
        Figures::of(&Outcome { filled: Some(filled), ..outcome() })
    }

    #[test]
    fn peers_of_former_runs_are_named_as_such() {
        let warns =
            |figures: &Figures, text: &str| figures.warnings.iter().any(|it| it.contains(text));
        let former = filled(23_204);
        let text = "the tracker counts 23 204 peers in these torrents, this run has 2 000: the \
                    others are of former runs";
        assert!(warns(&former, text), "{:?}", former.warnings);
        assert_eq!(former.server.unwrap().bytes_per_peer, None);
        let lost = filled(1500);
        assert!(warns(&lost, "the tracker counts 1 500 of 2 000 peers"), "{:?}", lost.warnings);
        assert!(filled(2000).server.unwrap().bytes_per_peer.is_some());
        assert!(!warns(&filled(2001), "the tracker counts"));
    }

    #[test]
    fn what_has_ended_and_what_was_interrupted_is_named() {
        let replaced = Figures::of(&Outcome { usage: None, ..outcome() }).text();
        assert!(replaced.contains("process 4711 has ended or been replaced"), "{replaced}");
        let elsewhere = Figures::of(&Outcome { usage: None, pid: None, ..outcome() }).text();
        assert!(elsewhere.contains("not a process of this host"), "{elsewhere}");
        let partial = Figures::of(&Outcome { is_partial: true, ..outcome() });
        assert!(
            partial.text().contains("warning: interrupted after 0.5 of "),
            "{}",
            partial.text()
        );
        assert!(partial.in_short(&outcome().plan).ends_with("% lost, interrupted"));
    }

    #[test]
    fn json_names_every_figure() {
        let figures = Figures::of(&outcome());
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json["answered"]["announce"], 1000);
        assert!(json["latency"]["p999_us"].as_f64().unwrap() > 990.0);
    }
}
