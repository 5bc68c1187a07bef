//! Findings on connection tracking: whether it tracks the tracker's datagrams, and how full it is.

use super::HostReport;
use super::finding::{Check, Finding};
use super::host::{Host, HostReadError};

const TRACKED: Check = Check::new(
    "conntrack.tracked",
    "Every client is a new \"connection\" that takes an entry for half a minute or more, and each \
     datagram a look-up. A UDP tracker gains nothing from it.",
);
const FILL: Check = Check::new(
    "conntrack.fill",
    "When the table is full, the kernel drops what comes from new clients, and no counter of skep \
     shows that.",
);
const TIMEOUTS: Check = Check::new(
    "conntrack.timeouts",
    "Entries times timeout is how many new clients a second the table holds: 262 144 entries of 30 \
     s are full at 8 700 a second.",
);
const DROPS: Check = Check::new(
    "conntrack.drops",
    "Packets that connection tracking has dropped, and entries it evicted early: the table was \
     full then.",
);

const SYSCTLS: &str = "/proc/sys/net/netfilter";

/// Entries of the connection tracking table.
struct Use {
    count: u64,
    max: u64,
}

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    let used = match used(&report.host) {
        Ok(used) => used,
        Err(unread) => {
            return [TRACKED, FILL, TIMEOUTS, DROPS].iter().map(|it| it.unread(&unread)).collect();
        }
    };
    let Some(used) = used else { return vec![TRACKED.ok("connection tracking is not loaded")] };
    if used.count == 0 {
        return vec![TRACKED.ok("connection tracking is loaded, and tracks nothing")];
    }
    vec![tracked(report), fill(&used), timeouts(report, &used), drops(report)]
}

/// The entries of the table; `None` if there is no connection tracking.
fn used(host: &Host) -> Result<Option<Use>, HostReadError> {
    let read = |name: &str| host.number(&format!("{SYSCTLS}/nf_conntrack_{name}"));
    match (read("count"), read("max")) {
        (Ok(count), Ok(max)) => Ok(Some(Use { count, max })),
        (Err(unread), _) | (_, Err(unread)) => {
            // If other network sysctls exist, connection tracking is absent, and not just hidden.
            let is_absent = unread.is_missing && host.has("/proc/sys/net/core");
            if is_absent { Ok(None) } else { Err(unread) }
        }
    }
}

fn tracked(report: &HostReport) -> Finding {
    let ports = ports(report);
    let list = match report.host.text("/proc/net/nf_conntrack") {
        Ok(list) => list,
        Err(unread) => {
            return TRACKED
                .info(format!("in use; unknown whether for the tracker's port: {unread}"))
                .remedied(format!("if it is (first command)\n{}", {
                    let port = ports.first().copied().unwrap_or_default();
                    format!("$ conntrack -L -p udp | grep -c port={port}\n{}", rules(&ports))
                }));
        }
    };
    let is_ours = |line: &&str| {
        let names = |field: &str| {
            let port = field.strip_prefix("dport=").or_else(|| field.strip_prefix("sport="));
            port.and_then(|it| it.parse().ok()).is_some_and(|it: u16| ports.contains(&it))
        };
        line.contains(" udp ") && line.split_whitespace().any(names)
    };
    match list.lines().filter(is_ours).count() {
        0 => TRACKED.ok(format!("in use, with no entry of UDP port {}", joined(&ports))),
        count => TRACKED.warning(
            format!("{count} entries of UDP port {}", joined(&ports)),
            format!("deploy/systemd/skep.nft, or\n{}", rules(&ports)),
        ),
    }
}

fn fill(used: &Use) -> Finding {
    let Use { count, max } = *used;
    let percent = count.saturating_mul(100) / max.max(1);
    let fact = format!("{count} of {max} entries, {percent} %");
    let remedy = format!(
        "leave UDP untracked (conntrack.tracked); at once:\n\
         $ sysctl -w net.netfilter.nf_conntrack_max={}",
        max.saturating_mul(4).max(1 << 20)
    );
    match percent {
        0..70 => FILL.ok(fact),
        70..95 => FILL.warning(fact, remedy),
        _ => FILL.problem(fact, remedy),
    }
}

fn timeouts(report: &HostReport, used: &Use) -> Finding {
    let read =
        |name: &str| report.host.number(&format!("{SYSCTLS}/nf_conntrack_udp_timeout{name}"));
    let (one_way, both_ways) = match (read(""), read("_stream")) {
        (Ok(one_way), Ok(both_ways)) => (one_way, both_ways),
        (Err(unread), _) | (_, Err(unread)) => return TIMEOUTS.unread(&unread),
    };
    let rate = used.max / one_way.max(both_ways).max(1);
    let fact = format!(
        "UDP entries live {one_way} s, those with a response {both_ways} s: full at {rate} new \
         clients a second"
    );
    if rate >= RATE_GOOD {
        return TIMEOUTS.ok(fact);
    }
    TIMEOUTS.info(fact).remedied(
        "where UDP has to be tracked\n$ sysctl -w net.netfilter.nf_conntrack_udp_timeout=10\n\
         $ sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream=15",
    )
}

/// New clients per second of a large public tracker.
const RATE_GOOD: u64 = 10_000;

const STATISTICS: &str = "/proc/net/stat/nf_conntrack";

/// Columns of the statistics that count losses.
const LOSSES: [&str; 3] = ["drop", "early_drop", "insert_failed"];

/// The sums of [`LOSSES`] over all cores; `None` if the file has no such columns.
fn losses(text: &str) -> Option<[u64; 3]> {
    let mut lines = text.lines();
    let names: Vec<_> = lines.next()?.split_whitespace().collect();
    if !names.contains(&LOSSES[0]) {
        return None;
    }
    let mut sums = [0; 3];
    for line in lines {
        for (name, value) in names.iter().zip(line.split_whitespace()) {
            let value = u64::from_str_radix(value, 16).unwrap_or(0);
            let named = LOSSES.iter().position(|it| it == name);
            named.into_iter().for_each(|at| sums[at] += value);
        }
    }
    Some(sums)
}

/// Judges the last second: the table may have been full long ago.
fn drops(report: &HostReport) -> Finding {
    let all = match report.host.text(STATISTICS) {
        Ok(text) => losses(&text),
        Err(unread) => return DROPS.unread(&unread),
    };
    let Some(all) = all else {
        return DROPS.unread(&HostReadError::odd(STATISTICS, "names no column `drop`"));
    };
    let earlier = losses(report.earlier.text(STATISTICS)).unwrap_or(all);
    let has_grown = all.iter().zip(earlier).any(|(now, earlier)| *now > earlier);
    let list: Vec<_> =
        LOSSES.iter().zip(all).map(|(name, count)| format!("{name} {count}")).collect();
    let list = list.join(", ");
    let remedy =
        "leave UDP untracked (conntrack.tracked), or make the table larger (conntrack.fill)";
    if all == [0; 3] {
        DROPS.ok("none")
    } else if has_grown {
        DROPS.warning(format!("{list} since boot, and more in the last second"), remedy)
    } else {
        DROPS.info(format!("{list} since boot, none in the last second")).remedied(remedy)
    }
}

/// The ports that serve UDP.
fn ports(report: &HostReport) -> Vec<u16> {
    let mut ports: Vec<_> = report.config.udp_listen().iter().map(|it| it.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.retain(|it| *it != 0);
    ports
}

fn joined(ports: &[u16]) -> String {
    let texts: Vec<_> = ports.iter().map(u16::to_string).collect();
    texts.join(", ")
}

/// Commands that leave these ports untracked.
fn rules(ports: &[u16]) -> String {
    let ports = joined(ports);
    format!(
        "$ nft add table inet skep\n\
         $ nft 'add chain inet skep pre {{ type filter hook prerouting priority raw; }}'\n\
         $ nft 'add chain inet skep out {{ type filter hook output priority raw; }}'\n\
         $ nft 'add rule inet skep pre udp dport {{ {ports} }} notrack'\n\
         $ nft 'add rule inet skep out udp sport {{ {ports} }} notrack'"
    )
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    const OTHERS: &str = "ipv4 2 tcp 6 431999 ESTABLISHED src=192.0.2.1 dst=192.0.2.2 sport=6969 \
                          dport=22 src=192.0.2.2 dst=192.0.2.1 sport=22 dport=6969 [ASSURED]\n";
    const OURS: &str = "ipv4 2 udp 17 29 src=192.0.2.1 dst=192.0.2.2 sport=4000 dport=6969 \
                        src=192.0.2.2 dst=192.0.2.1 sport=6969 dport=4000 mark=0 use=1\n";

    fn with_table(count: &str, max: &str) -> Fake {
        Fake::new()
            .with("/proc/sys/net/netfilter/nf_conntrack_count", count)
            .with("/proc/sys/net/netfilter/nf_conntrack_max", max)
    }

    fn judge(fake: &Fake, id: &str) -> (Severity, String) {
        found(&examine(&fake.report), id)
    }

    #[test]
    fn no_connection_tracking_is_best() {
        let absent = Fake::new().with("/proc/sys/net/core/rmem_max", "1\n");
        assert_eq!(judge(&absent, "conntrack.tracked").0, Severity::Ok);
        assert_eq!(judge(&with_table("0\n", "262144\n"), "conntrack.tracked").0, Severity::Ok);
        assert_eq!(judge(&Fake::new(), "conntrack.tracked").0, Severity::Info);
        assert_eq!(judge(&Fake::new(), "conntrack.fill").0, Severity::Info);
    }

    #[test]
    fn tracked_datagrams_of_the_port_are_warned_of_with_rules() {
        const PATH: &str = "/proc/net/nf_conntrack";
        let fake = with_table("5\n", "262144\n").with(PATH, OTHERS);
        assert_eq!(judge(&fake, "conntrack.tracked").0, Severity::Ok, "TCP is none of ours");
        let fake = fake.with(PATH, &format!("{OTHERS}{OURS}{OURS}"));
        let (severity, text) = judge(&fake, "conntrack.tracked");
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("2 entries of UDP port 6969"), "{text}");
        assert!(text.contains("pre udp dport { 6969 } notrack'"), "{text}");
        let elsewhere = fake.configured("[server]\nlisten = [\"0.0.0.0:7000\", \"0.0.0.0:80\"]");
        let (severity, text) = judge(&elsewhere, "conntrack.tracked");
        assert!(severity == Severity::Ok && text.contains("80, 7000"), "{text}");
        let (severity, text) = judge(&with_table("5\n", "262144\n"), "conntrack.tracked");
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("unknown whether") && text.contains("conntrack -L"), "{text}");
    }

    #[test]
    fn a_table_is_judged_by_how_full_it_is() {
        let fill = |count: &str| judge(&with_table(count, "1000\n"), "conntrack.fill");
        assert_eq!(fill("699").0, Severity::Ok);
        assert_eq!(fill("700").0, Severity::Warning);
        let (severity, text) = fill("1000");
        assert_eq!(severity, Severity::Problem);
        assert!(text.contains("100 %") && text.contains("nf_conntrack_max=1048576"), "{text}");
    }

    #[test]
    fn long_timeouts_are_told() {
        let judge = |one_way: &str, both_ways: &str| {
            let fake = with_table("5\n", "262144\n")
                .with("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", one_way)
                .with("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", both_ways);
            judge(&fake, "conntrack.timeouts")
        };
        assert_eq!(judge("10\n", "15\n").0, Severity::Ok);
        let (severity, text) = judge("30\n", "120\n");
        assert!(severity == Severity::Info && text.contains("full at 2184"), "{text}");
        assert_eq!(judge("30\n", "soon\n").0, Severity::Info);
    }

    #[test]
    fn drops_of_all_cores_are_summed() {
        let head = "entries  found insert_failed drop early_drop icmp_error\n";
        let judge = |text: &str, earlier: &str| {
            let fake = with_table("5\n", "262144\n").with(STATISTICS, text);
            judge(&fake.earlier(STATISTICS, &format!("{head}{earlier}")), "conntrack.drops")
        };
        assert_eq!(judge(&format!("{head}05 ff 00 00 00 07\n"), "").0, Severity::Ok);
        let text = format!("{head}05 ff 00 0a 01 00\n05 ff 00 10 00 00\n");
        let (severity, said) = judge(&text, "05 ff 00 0a 01 00\n05 ff 00 0f 00 00\n");
        assert_eq!(severity, Severity::Warning);
        assert!(said.starts_with("drop 26, early_drop 1, insert_failed 0 since boot, and"));
        let (severity, said) = judge(&text, "05 ff 00 0a 01 00\n05 ff 00 10 00 00\n");
        assert_eq!(severity, Severity::Info, "long ago");
        assert!(said.contains("none in the last second"), "{said}");
        assert_eq!(judge("nothing\n", "").0, Severity::Info);
    }
}
