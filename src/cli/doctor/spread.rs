//! Findings on how network processing is spread over cores: softirqs, queues, RPS.

use super::HostReport;
use super::finding::{Check, Finding};
use super::host::{Host, HostReadError};

const SOFTIRQ: Check = Check::new(
    "network.softirq",
    "The kernel's part of receiving costs more than skep's. Where one core does it all, that core \
     is the host's limit, and the others wait.",
);
const QUEUES: Check = Check::new(
    "network.queues",
    "A network card raises one interrupt for each queue, and one core serves it. With as many \
     queues as workers, each core receives its own datagrams (RSS).",
);
const RPS: Check = Check::new(
    "network.rps",
    "Where a card has too few queues, the kernel can hand packets on to other cores (RPS). It \
     costs an interrupt between cores, so it only pays where queues are too few.",
);

/// Fewer packets in a second than this are too few to judge the spread.
const PACKETS_MIN: u64 = 10_000;

/// The share of one core, in percent, from which on the spread is uneven.
const SHARE_UNEVEN: u64 = 80;

const SOFTIRQS: &str = "/proc/softirqs";

/// A network card.
struct Card {
    name: String,
    queues: usize,
    /// Number of cores over which RPS spreads a queue; the minimum of all queues.
    rps_cores: u32,
}

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    if report.is_on_loopback_alone() {
        return [SOFTIRQ, QUEUES, RPS].iter().map(|it| it.ok(LOOPBACK)).collect();
    }
    let cards = cards(&report.host);
    vec![softirq(report), queues(report, &cards), rps(report, &cards)]
}

/// What is judged if clients cannot come from outside.
const LOOPBACK: &str = "not needed: these settings serve loopback addresses only";

/// Packets that each core received in the last second.
fn received(report: &HostReport) -> Result<Vec<u64>, HostReadError> {
    let counts = |text: &str| -> Option<Vec<u64>> {
        let line = text.lines().find_map(|it| it.trim_start().strip_prefix("NET_RX:"))?;
        Some(line.split_whitespace().map(|it| it.parse().unwrap_or(0)).collect())
    };
    let odd = || HostReadError::odd(SOFTIRQS, "has no NET_RX");
    let now = counts(&report.host.text(SOFTIRQS)?).ok_or_else(odd)?;
    let earlier = counts(report.earlier.text(SOFTIRQS)).unwrap_or_else(|| now.clone());
    Ok(now.iter().zip(earlier).map(|(now, earlier)| now.saturating_sub(earlier)).collect())
}

/// The core that received most in the last second, in percent of all; `None` if all received too
/// little to judge.
fn busiest_share(by_core: &[u64]) -> Option<u64> {
    let total: u64 = by_core.iter().sum();
    let most = by_core.iter().max().copied().unwrap_or(0);
    (total >= PACKETS_MIN).then(|| most.saturating_mul(100) / total)
}

fn softirq(report: &HostReport) -> Finding {
    let by_core = match received(report) {
        Ok(by_core) => by_core,
        Err(unread) => return SOFTIRQ.unread(&unread),
    };
    let Some(share) = busiest_share(&by_core) else {
        return SOFTIRQ.ok("too few packets in the last second to judge");
    };
    let total: u64 = by_core.iter().sum();
    let cores = by_core.iter().filter(|it| **it > total / 100).count();
    let fact = format!("{cores} of {} cores receive, the busiest {share} %", by_core.len());
    let is_uneven = by_core.len() > 1 && share > SHARE_UNEVEN && report.workers() > 1;
    if is_uneven {
        return SOFTIRQ.warning(
            fact,
            "see network.queues and network.rps; and assign each interrupt to its own core, with \
             irqbalance or the script of the card's vendor\n\
             $ grep . /proc/irq/*/smp_affinity_list",
        );
    }
    SOFTIRQ.ok(fact)
}

/// The network cards that are not down, without virtual devices.
fn cards(host: &Host) -> Result<Vec<Card>, HostReadError> {
    const FOLDER: &str = "/sys/class/net";
    let card = |name: String| {
        let folder = format!("{FOLDER}/{name}");
        let is_down = host.text(&format!("{folder}/operstate")).is_ok_and(|it| it == "down");
        if is_down || !host.has(&format!("{folder}/device")) {
            return None;
        }
        let mut queues = host.names(&format!("{folder}/queues")).ok()?;
        queues.retain(|it| it.starts_with("rx-"));
        let mask = |queue: &String| host.text(&format!("{folder}/queues/{queue}/rps_cpus")).ok();
        let rps_cores = queues.iter().filter_map(mask).map(|it| cores_in(&it)).min().unwrap_or(0);
        Some(Card { name, queues: queues.len(), rps_cores })
    };
    Ok(host.names(FOLDER)?.into_iter().filter_map(card).collect())
}

fn queues(report: &HostReport, cards: &Result<Vec<Card>, HostReadError>) -> Finding {
    let cards = match cards {
        Ok(cards) if cards.is_empty() => return QUEUES.ok(NO_CARD),
        Ok(cards) => cards,
        Err(unread) => return QUEUES.unread(unread),
    };
    let workers = report.workers();
    let list: Vec<_> = cards.iter().map(|it| format!("{} has {}", it.name, it.queues)).collect();
    let fact = format!("{}, for {workers} workers", list.join(", "));
    let Some(poor) = cards.iter().find(|it| it.queues < workers) else { return QUEUES.ok(fact) };
    QUEUES.info(fact).remedied(format!(
        "if the card can have more (first command), give it as many as workers; else see \
         network.rps\n$ ethtool -l {0}\n$ ethtool -L {0} combined {workers}",
        poor.name
    ))
}

fn rps(report: &HostReport, cards: &Result<Vec<Card>, HostReadError>) -> Finding {
    let cards = match cards {
        Ok(cards) if cards.is_empty() => return RPS.ok(NO_CARD),
        Ok(cards) => cards,
        Err(unread) => return RPS.unread(unread),
    };
    let workers = report.workers();
    let is_short = |it: &&Card| it.queues < workers && it.rps_cores < 2;
    if let Some(Card { name, queues, .. }) = cards.iter().find(is_short) {
        let fact =
            format!("off on {name}, which has fewer queues ({queues}) than workers ({workers})");
        let remedy = format!(
            "$ for q in /sys/class/net/{name}/queues/rx-*; do echo {} > $q/rps_cpus; done\nas a \
             unit or a udev rule, to have it after a restart",
            mask_of(report.cores())
        );
        // It only matters once one core cannot receive everything.
        let share = received(report).ok().and_then(|it| busiest_share(&it));
        return match share.filter(|it| *it > SHARE_UNEVEN) {
            Some(share) => RPS.warning(
                format!("{fact}; one core received {share} % of the last second's packets"),
                remedy,
            ),
            None => RPS
                .info(format!("{fact}; there are too few packets for that to matter now"))
                .remedied(remedy),
        };
    }
    let is_idle = |it: &&Card| it.queues >= workers && it.rps_cores > 1;
    if let Some(Card { name, queues, .. }) = cards.iter().find(is_idle) {
        return RPS
            .info(format!("on for {name}, which has {queues} queues for {workers} workers"))
            .remedied(format!(
                "switch it off, and compare CPU and skep_udp_socket_drops_total\n\
                 $ for q in /sys/class/net/{name}/queues/rx-*; do echo 0 > $q/rps_cpus; done"
            ));
    }
    let list: Vec<_> = cards.iter().map(|it| it.rps_text()).collect();
    RPS.ok(list.join(", "))
}

const NO_CARD: &str = "no network card is visible: a container's own network, or a loopback host";

impl Card {
    fn rps_text(&self) -> String {
        match self.rps_cores {
            0 => format!("{}: off, queues suffice", self.name),
            cores => format!("{}: over {cores} cores", self.name),
        }
    }
}

/// Number of cores in a mask such as `00000000,0000000f`.
fn cores_in(mask: &str) -> u32 {
    mask.chars().filter_map(|it| it.to_digit(16)).map(u32::count_ones).sum()
}

/// The mask of the first `cores` cores.
fn mask_of(cores: usize) -> String {
    let mut words: Vec<String> = vec!["ffffffff".into(); cores / 32];
    if !cores.is_multiple_of(32) {
        words.insert(0, format!("{:x}", (1_u64 << (cores % 32)) - 1));
    }
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    fn with_card(workers: usize, masks: &[&str]) -> Fake {
        let mut fake = Fake::new()
            .with("/sys/class/net/eth0/device/vendor", "x")
            .with("/sys/class/net/eth0/operstate", "up\n")
            .with("/sys/class/net/eth0/queues/tx-0/xps_cpus", "0\n")
            .with("/sys/class/net/lo/queues/rx-0/rps_cpus", "0\n")
            .with("/sys/class/net/eth1/device/vendor", "x")
            .with("/sys/class/net/eth1/operstate", "down\n");
        for (at, mask) in masks.iter().enumerate() {
            fake = fake.with(&format!("/sys/class/net/eth0/queues/rx-{at}/rps_cpus"), mask);
        }
        fake.report.facts.cores = Ok(workers);
        fake
    }

    #[test]
    fn masks_are_read_and_written() {
        assert_eq!(["0", "f\n", "00000001,ffffffff", "00,00"].map(cores_in), [0, 4, 33, 0]);
        assert_eq!(
            [1, 4, 32, 33, 64].map(mask_of),
            ["1", "f", "ffffffff", "1,ffffffff", "ffffffff,ffffffff"]
        );
    }

    /// A file of softirqs.
    fn softirqs(line: &str) -> String {
        format!("     CPU0 CPU1\n  TIMER: 1 2\n NET_RX: {line}\n")
    }

    #[test]
    fn one_core_that_receives_everything_is_warned_of() {
        let judge = |line: &str, workers| {
            let mut fake = Fake::new()
                .with(SOFTIRQS, &softirqs(line))
                .earlier(SOFTIRQS, &softirqs("1000000 0"));
            fake.report.facts.cores = Ok(workers);
            found(&examine(&fake.report), "network.softirq")
        };
        assert_eq!(judge("1020000 20000", 2).0, Severity::Ok);
        let (severity, text) = judge("1099000 100", 2);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("1 of 2 cores receive, the busiest 99 %"), "{text}");
        assert_eq!(judge("1099000 100", 1).0, Severity::Ok, "one worker has nobody to share with");
        assert_eq!(judge("1009900 0", 2).0, Severity::Ok, "too few to judge, whatever was before");
        assert_eq!(judge("1099000", 4).0, Severity::Ok, "there is but one core");
        let fake = Fake::new().with(SOFTIRQS, "CPU0\n");
        assert_eq!(found(&examine(&fake.report), "network.softirq").0, Severity::Info);
    }

    #[test]
    fn few_queues_want_rps_once_one_core_receives_everything() {
        let quiet = with_card(4, &["00000000"]);
        let findings = examine(&quiet.report);
        let (severity, text) = found(&findings, "network.rps");
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("eth0") && text.contains("echo f > $q/rps_cpus"), "{text}");
        let (severity, text) = found(&findings, "network.queues");
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("eth0 has 1, for 4 workers"), "{text}");
        assert!(text.contains("$ ethtool -L eth0 combined 4"), "{text}");
        assert!(!text.contains("eth1") && !text.contains("lo has"), "{text}");
        let busy = quiet.with(SOFTIRQS, &softirqs("100000 10")).earlier(SOFTIRQS, &softirqs("0 0"));
        let (severity, text) = found(&examine(&busy.report), "network.rps");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("one core received 99 % of the last second's packets"), "{text}");
        let spread = found(&examine(&with_card(4, &["f"]).report), "network.rps");
        assert_eq!(spread.0, Severity::Ok);
    }

    #[test]
    fn cards_do_not_matter_on_loopback() {
        let settings = "[server]\nlisten = [\"127.0.0.1:6969\", \"[::1]:6969\"]";
        let fake = with_card(4, &["00000000"]).configured(settings);
        let fake = fake.with(SOFTIRQS, &softirqs("900000 0")).earlier(SOFTIRQS, &softirqs("0 0"));
        let findings = examine(&fake.report);
        for id in ["network.softirq", "network.queues", "network.rps"] {
            let (severity, text) = found(&findings, id);
            assert!(severity == Severity::Ok && text.contains("loopback"), "{id}: {text}");
        }
    }

    #[test]
    fn enough_queues_want_no_rps() {
        let findings = examine(&with_card(2, &["0", "0"]).report);
        assert_eq!(found(&findings, "network.rps").0, Severity::Ok);
        assert_eq!(found(&findings, "network.queues").0, Severity::Ok);
        let findings = examine(&with_card(2, &["3", "3"]).report);
        assert_eq!(found(&findings, "network.rps").0, Severity::Info);
    }

    #[test]
    fn a_host_without_a_card_is_no_worse() {
        let fake = Fake::new().with("/sys/class/net/lo/queues/rx-0/rps_cpus", "0\n");
        assert_eq!(found(&examine(&fake.report), "network.queues").0, Severity::Ok);
        assert_eq!(found(&examine(&Fake::new().report), "network.queues").0, Severity::Info);
    }
}
