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

/// Fewer packets than this are too few to judge the spread.
const PACKETS_MIN: u64 = 1_000_000;

/// A network card.
struct Card {
    name: String,
    queues: usize,
    /// Number of cores over which RPS spreads a queue; the minimum of all queues.
    rps_cores: u32,
}

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    let cards = cards(&report.host);
    vec![softirq(report), queues(report, &cards), rps(report, &cards)]
}

fn softirq(report: &HostReport) -> Finding {
    const PATH: &str = "/proc/softirqs";
    let text = match report.host.text(PATH) {
        Ok(text) => text,
        Err(unread) => return SOFTIRQ.unread(&unread),
    };
    let line = text.lines().find_map(|it| it.trim_start().strip_prefix("NET_RX:"));
    let Some(line) = line else {
        return SOFTIRQ.unread(&HostReadError::odd(PATH, "has no NET_RX"));
    };
    let by_core: Vec<u64> = line.split_whitespace().map(|it| it.parse().unwrap_or(0)).collect();
    let total: u64 = by_core.iter().sum();
    let most = by_core.iter().max().copied().unwrap_or(0);
    let share = most.saturating_mul(100) / total.max(1);
    let cores = by_core.iter().filter(|it| **it > total / 100).count();
    if total < PACKETS_MIN {
        return SOFTIRQ.ok("too few packets since boot");
    }
    let fact = format!("{cores} of {} cores receive, the busiest {share} %", by_core.len());
    let is_uneven = by_core.len() > 1 && share > 80 && report.workers() > 1;
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
        return RPS.warning(
            format!("off on {name}, which has fewer queues ({queues}) than workers ({workers})"),
            format!(
                "$ for q in /sys/class/net/{name}/queues/rx-*; do echo {} > $q/rps_cpus; done\nas \
                 a unit or a udev rule, to have it after a restart",
                mask_of(report.cores())
            ),
        );
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

    #[test]
    fn one_core_that_receives_everything_is_warned_of() {
        let judge = |line: &str, workers| {
            let text = format!("     CPU0 CPU1\n  TIMER: 1 2\n NET_RX: {line}\n");
            let mut fake = Fake::new().with("/proc/softirqs", &text);
            fake.report.facts.cores = Ok(workers);
            found(&examine(&fake.report), "network.softirq")
        };
        assert_eq!(judge("2000000 2000000", 2).0, Severity::Ok);
        let (severity, text) = judge("9900000 100", 2);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("1 of 2 cores receive, the busiest 99 %"), "{text}");
        assert_eq!(judge("9900000 100", 1).0, Severity::Ok, "one worker has nobody to share with");
        assert_eq!(judge("9900 100", 2).0, Severity::Ok, "too few to tell");
        assert_eq!(judge("9900000", 4).0, Severity::Ok, "there is but one core");
        let fake = Fake::new().with("/proc/softirqs", "CPU0\n");
        assert_eq!(found(&examine(&fake.report), "network.softirq").0, Severity::Info);
    }

    #[test]
    fn few_queues_want_rps() {
        let fake = with_card(4, &["00000000"]);
        let findings = examine(&fake.report);
        let (severity, text) = found(&findings, "network.rps");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("eth0") && text.contains("echo f > $q/rps_cpus"), "{text}");
        let (severity, text) = found(&findings, "network.queues");
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("eth0 has 1, for 4 workers"), "{text}");
        assert!(text.contains("$ ethtool -L eth0 combined 4"), "{text}");
        assert!(!text.contains("eth1") && !text.contains("lo has"), "{text}");
        let spread = found(&examine(&with_card(4, &["f"]).report), "network.rps");
        assert_eq!(spread.0, Severity::Ok);
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
