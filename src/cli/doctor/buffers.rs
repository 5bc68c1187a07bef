//! Findings on socket buffers, and on datagrams that were lost because they did not fit.

use super::finding::{Check, Finding};
use super::host::HostReadError;
use super::tracker::{LossesUnknown, TrackerLosses};
use super::{HostReport, container, size};

const RECEIVE: Check = Check::new(
    "network.receive_buffer",
    "A burst that does not fit is lost. The usual 208 KiB hold 512 announces: 5 ms at 100 000 a \
     second. Asking for more than net.core.rmem_max takes CAP_NET_ADMIN.",
);
const SEND: Check = Check::new(
    "network.send_buffer",
    "Responses wait there while the network card is busy. skep leaves the size to the kernel \
     (net.core.wmem_default).",
);
const ERRORS: Check = Check::new(
    "network.udp_errors",
    "Datagrams that the kernel could not queue, of all programs in this network namespace. \
     skep_udp_socket_drops_total counts those of the tracker: while the tracker runs, its own \
     losses are judged.",
);
const FILTER: Check = Check::new(
    "network.optmem",
    "limits.kernel_deny_rate attaches a filter to each socket, whose memory counts against \
     net.core.optmem_max (20 KiB on older hosts). If it does not fit, no source is denied.",
);
const BACKLOG: Check = Check::new(
    "network.backlog",
    "Packets wait there between network card and socket, where they are passed from core to core; \
     packets beyond net.core.netdev_max_backlog are lost, and skep cannot count them.",
);

/// The kernel's default, in bytes. A smaller value was set by an administrator.
const SEND_BUFFER_USUAL: u64 = 212_992;

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    vec![receive(report), send(report), errors(report), backlog(report), filter(report)]
}

fn receive(report: &HostReport) -> Finding {
    let asked = report.config.udp.receive_buffer.0;
    let given = match &report.facts.receive_buffer {
        Ok(given) => *given as u64,
        Err(error) => {
            return RECEIVE.info(format!("unknown: no socket could be created: {error}"));
        }
    };
    let remedy = format!(
        "$ sysctl -w net.core.rmem_max={asked}\nand the same in /etc/sysctl.d \
         (deploy/systemd/99-skep.conf), then restart skep"
    );
    let max = report.host.number("/proc/sys/net/core/rmem_max");
    let told = match &max {
        Ok(max) => format!("net.core.rmem_max is {}", size(*max)),
        Err(unread) => format!("net.core.rmem_max is unknown ({unread})"),
    };
    let fact = format!("{} of the requested {}; {told}", size(given), size(asked));
    match max {
        _ if given < asked => RECEIVE.warning(fact, remedy),
        Ok(max) if max < asked => RECEIVE
            .info(format!(
                "{fact}; this user exceeds that limit by CAP_NET_ADMIN, which a service of \
                 another user lacks unless its unit grants it"
            ))
            .remedied(remedy),
        _ => RECEIVE.ok(fact),
    }
}

fn send(report: &HostReport) -> Finding {
    let read = |name: &str| report.host.number(&format!("/proc/sys/net/core/wmem_{name}"));
    let (given, max) = match (read("default"), read("max")) {
        (Ok(given), Ok(max)) => (given, max),
        (Err(unread), _) | (_, Err(unread)) => return SEND.unread(&unread),
    };
    let fact = format!("{} (net.core.wmem_default), at most {}", size(given), size(max));
    if given < SEND_BUFFER_USUAL {
        let remedy = format!("$ sysctl -w net.core.wmem_default={SEND_BUFFER_USUAL}");
        return SEND.warning(fact, remedy);
    }
    SEND.ok(fact)
}

/// Datagrams received and lost, over both families.
#[derive(Clone, Copy, Default)]
struct DatagramCounts {
    taken: u64,
    receive_full: u64,
    send_full: u64,
    no_memory: u64,
}

const SNMP: &str = "/proc/net/snmp";
const SNMP6: &str = "/proc/net/snmp6";

impl DatagramCounts {
    /// The counts in the files of both families. A host without IPv6 has only the first.
    fn parse(v4: &str, v6: &str) -> Option<Self> {
        let mut lines = v4.lines().filter_map(|it| it.strip_prefix("Udp:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let mut pairs: Vec<(&str, &str)> =
            names.split_whitespace().zip(values.split_whitespace()).collect();
        let of_v6 =
            v6.lines().filter_map(|it| it.strip_prefix("Udp6")?.split_once(char::is_whitespace));
        pairs.extend(of_v6);
        let mut datagrams = Self::default();
        for (name, value) in pairs {
            let value = value.trim().parse().unwrap_or(0);
            match name {
                "InDatagrams" => datagrams.taken += value,
                "RcvbufErrors" => datagrams.receive_full += value,
                "SndbufErrors" => datagrams.send_full += value,
                "MemErrors" => datagrams.no_memory += value,
                _ => {}
            }
        }
        Some(datagrams)
    }

    /// What was counted since `earlier`.
    fn since(self, earlier: Self) -> Self {
        Self {
            taken: self.taken.saturating_sub(earlier.taken),
            receive_full: self.receive_full.saturating_sub(earlier.receive_full),
            send_full: self.send_full.saturating_sub(earlier.send_full),
            no_memory: self.no_memory.saturating_sub(earlier.no_memory),
        }
    }

    fn lost(self) -> u64 {
        self.receive_full + self.send_full + self.no_memory
    }

    /// Whether more than one in a thousand is lost.
    fn are_many_lost(self) -> bool {
        are_many(self.lost(), self.taken)
    }

    /// What was lost, in words.
    fn losses(self) -> String {
        let Self { taken, receive_full, send_full, no_memory } = self;
        format!(
            "of {} incoming datagrams {receive_full} were lost to full receive buffers and \
             {no_memory} to lack of memory; {send_full} outgoing ones were lost to full send \
             buffers",
            taken + receive_full + no_memory
        )
    }
}

/// Whether more than one in a thousand is lost: the threshold of the alert.
fn are_many(lost: u64, taken: u64) -> bool {
    lost > (taken + lost) / 1000
}

/// Judges the last second. What was lost before may have been a burst of any program.
fn errors(report: &HostReport) -> Finding {
    let v4 = match report.host.text(SNMP) {
        Ok(text) => text,
        Err(unread) => return ERRORS.unread(&unread),
    };
    let v6 = report.host.text(SNMP6).unwrap_or_default();
    let Some(all) = DatagramCounts::parse(&v4, &v6) else {
        return ERRORS.unread(&HostReadError::odd(SNMP, "holds no counts of UDP"));
    };
    let earlier = (report.earlier.text(SNMP), report.earlier.text(SNMP6));
    let now = all.since(DatagramCounts::parse(earlier.0, earlier.1).unwrap_or(all));
    let remedy = "more workers or cores, larger buffers (network.receive_buffer), datagrams spread \
                  over cores (network.rps); without memory: net.ipv4.udp_mem\n\
                  $ nstat -az | grep -E 'Udp6?(Rcvbuf|Sndbuf|Mem)Errors'";
    match (now.lost(), all.lost()) {
        (0, 0) => ERRORS.ok(format!("none of {} datagrams was lost since boot", all.taken)),
        (0, _) => {
            let fact = format!("none was lost in the last second; since boot {}", all.losses());
            if all.are_many_lost() { ERRORS.info(fact) } else { ERRORS.ok(fact) }
                .remedied(format!("if it grows while skep serves: {remedy}"))
        }
        _ => lost_lately(now, TrackerLosses::of(report), remedy),
    }
}

/// Judges what was lost in the last second: by what the tracker's sockets lost of it, if that is
/// known, else by what all programs did. Only the former have counts of full receive buffers.
fn lost_lately(
    lost: DatagramCounts,
    tracker: Result<TrackerLosses, LossesUnknown>,
    remedy: &str,
) -> Finding {
    let fact = format!("in the last second {}", lost.losses());
    let (fact, are_many) = match tracker {
        Err(LossesUnknown::NoMetrics) => (fact, lost.are_many_lost()),
        Err(LossesUnknown::Filtered) => (
            format!(
                "{fact}; those of the tracker are not known, as its sockets drop datagrams of \
                 denied sources (limits.kernel_deny_rate)"
            ),
            lost.are_many_lost(),
        ),
        Ok(TrackerLosses { dropped, received }) => {
            // The two are not read at the same instant.
            let dropped = dropped.min(lost.receive_full);
            let whose = match dropped {
                0 => "none at the sockets of the running tracker".to_owned(),
                _ => format!("{dropped} at full receive buffers of the running tracker"),
            };
            let others = lost.send_full + lost.no_memory;
            let are_many = are_many(dropped, received) || are_many(others, lost.taken);
            (format!("{fact}; {whose}"), are_many)
        }
    };
    if are_many { ERRORS.warning(fact, remedy) } else { ERRORS.info(fact).remedied(remedy) }
}

const SOFTNET: &str = "/proc/net/softnet_stat";

/// The second column: packets dropped by each core, in hexadecimal.
fn packets_dropped(text: &str) -> u64 {
    let of_core = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(of_core).sum()
}

/// Judges the last second, as [`errors`] does.
fn backlog(report: &HostReport) -> Finding {
    let text = match report.host.text(SOFTNET) {
        Ok(text) => text,
        Err(unread) => return BACKLOG.unread(&unread),
    };
    let dropped = packets_dropped(&text);
    let is_known = report.earlier.has(SOFTNET);
    let earlier = if is_known { packets_dropped(report.earlier.text(SOFTNET)) } else { dropped };
    let lately = dropped.saturating_sub(earlier);
    let elsewhere = elsewhere(report);
    // The file counts for the whole host; the sysctl exists only in the host's own namespace.
    let (whose, at) = match &elsewhere {
        Some(place) => (format!(" on the whole host, not only in this {place}"), "on the host: "),
        None => (String::new(), ""),
    };
    let remedy = format!(
        "{at}make the queue longer, now and in /etc/sysctl.d (deploy/systemd/99-skep.conf)\n\
         $ sysctl -w net.core.netdev_max_backlog=40000"
    );
    match (lately, dropped) {
        (_, 0) => BACKLOG.ok(format!("no packet was dropped{whose}")),
        (0, _) => BACKLOG
            .info(format!("no packet was dropped in the last second, {dropped} since boot{whose}"))
            .remedied(format!("if it grows while skep serves: {remedy}")),
        _ => BACKLOG
            .warning(format!("{lately} packets were dropped in the last second{whose}"), remedy),
    }
}

/// The container or the network namespace of this process; `None` if it seems to be the host's.
fn elsewhere(report: &HostReport) -> Option<String> {
    let network = |process: &str| report.host.link(&format!("/proc/{process}/ns/net")).ok();
    if let Some(name) = container::runtime_name(report) {
        return Some(format!("container ({name})"));
    }
    let (ours, first) = (network("self")?, network("1")?);
    (ours != first).then(|| format!("network namespace ({})", ours.display()))
}

fn filter(report: &HostReport) -> Finding {
    let max = report.host.number("/proc/sys/net/core/optmem_max");
    let told = max.map_or_else(|it| it.to_string(), |it| format!("{it} bytes"));
    let is_wanted = report.config.limits.kernel_deny_rate > 0;
    match &report.facts.deny_filter {
        Ok(()) => FILTER.ok(format!("the largest filter fits (net.core.optmem_max: {told})")),
        Err(_) if !is_wanted => FILTER.ok("not needed: limits.kernel_deny_rate is 0"),
        Err(error) => FILTER.warning(
            format!("no filter can be attached: {error} (net.core.optmem_max: {told})"),
            "$ sysctl -w net.core.optmem_max=131072\nor set limits.kernel_deny_rate = 0",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    #[test]
    fn small_receive_buffers_are_warned_of_with_the_command() {
        let judge = |given, max: &str| {
            let mut fake = Fake::new().with("/proc/sys/net/core/rmem_max", max);
            fake.report.facts.receive_buffer = Ok(given);
            found(&examine(&fake.report), "network.receive_buffer")
        };
        assert_eq!(judge(8 << 20, "16777216\n").0, Severity::Ok);
        let (severity, text) = judge(212_992, "212992\n");
        assert_eq!(severity, Severity::Warning);
        assert!(
            text.contains("208 KiB of the requested 8 MiB") && text.contains("rmem_max=8388608")
        );
        let (severity, text) = judge(8 << 20, "212992\n");
        assert_eq!(severity, Severity::Info, "CAP_NET_ADMIN");
        assert!(text.contains("this user exceeds that limit by CAP_NET_ADMIN"), "{text}");
        let mut fake = Fake::new();
        fake.report.facts.receive_buffer = Ok(8 << 20);
        assert_eq!(found(&examine(&fake.report), "network.receive_buffer").0, Severity::Ok);
        fake.report.facts.receive_buffer = Err("Too many open files".into());
        assert_eq!(found(&examine(&fake.report), "network.receive_buffer").0, Severity::Info);
    }

    #[test]
    fn a_send_buffer_smaller_than_usual_is_warned_of() {
        let judge = |given: &str| {
            let fake = Fake::new()
                .with("/proc/sys/net/core/wmem_default", given)
                .with("/proc/sys/net/core/wmem_max", "4194304\n");
            found(&examine(&fake.report), "network.send_buffer").0
        };
        assert_eq!(judge("212992\n"), Severity::Ok);
        assert_eq!(judge("4096\n"), Severity::Warning);
        assert_eq!(judge("many\n"), Severity::Info);
    }

    fn snmp(values: &str) -> String {
        let names = "Udp: InDatagrams NoPorts InErrors RcvbufErrors SndbufErrors MemErrors";
        format!("Ip: Forwarding\nIp: 1\n{names}\nUdp: {values}\nUdpLite: RcvbufErrors\n")
    }

    #[test]
    fn lost_datagrams_of_both_families_are_counted() {
        let judge = |v4: &str, v6: &str| {
            let fake = Fake::new()
                .with(SNMP, &snmp(v4))
                .with(SNMP6, v6)
                .earlier(SNMP, &snmp("0 0 0 0 0 0"));
            found(&examine(&fake.report), "network.udp_errors")
        };
        assert_eq!(judge("1000000 5 0 0 0 0", "Udp6RcvbufErrors \t0\n").0, Severity::Ok);
        let (severity, text) = judge("1000000 5 9 9 0 0", "");
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("of 1000009 incoming datagrams 9 were lost"), "{text}");
        let (severity, text) =
            judge("1000000 5 0 0 0 0", "Udp6InDatagrams 1000\nUdp6RcvbufErrors  5000\n");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("5000 were lost to full receive buffers"), "{text}");
        let fake = Fake::new().with(SNMP, "Ip: 1\n");
        let (severity, text) = found(&examine(&fake.report), "network.udp_errors");
        assert!(severity == Severity::Info && text.contains("no counts of UDP"), "{text}");
    }

    #[test]
    fn one_burst_long_ago_is_no_warning() {
        let judge = |now: &str, earlier: &str| {
            let fake = Fake::new().with(SNMP, &snmp(now)).earlier(SNMP, &snmp(earlier));
            found(&examine(&fake.report), "network.udp_errors")
        };
        let (severity, text) = judge("1005000 5 0 9000 0 0", "1000000 5 0 9000 0 0");
        assert_eq!(severity, Severity::Info);
        assert!(text.starts_with("none was lost in the last second; since boot of 1"), "{text}");
        assert_eq!(judge("1005000 5 0 9 0 0", "1000000 5 0 9 0 0").0, Severity::Ok);
        let (severity, text) = judge("1005000 5 0 9100 0 0", "1000000 5 0 9000 0 0");
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("in the last second of 5100 incoming datagrams 100"), "{text}");
    }

    #[test]
    fn what_other_programs_lose_is_told_from_what_the_running_tracker_loses() {
        let judge = |now: &str, drops: u32, denied: u32| {
            let mut fake =
                Fake::new().with(SNMP, &snmp(now)).earlier(SNMP, &snmp("1000000 5 0 9000 0 0"));
            let metrics = |drops: u32, received: u32| {
                format!(
                    "skep_udp_socket_drops_total{{worker=\"0\",family=\"ipv4\"}} {drops}\n\
                     skep_requests_total{{transport=\"udp\",family=\"ipv4\"}} {received}\n\
                     skep_kernel_denied_sources {denied}\n"
                )
            };
            // What the tracker has lost since its start is more than the last second's.
            fake.report.earlier.set_metrics(&metrics(8000, 70_000));
            fake.report.facts.metrics = Ok(metrics(8000 + drops, 71_000));
            found(&examine(&fake.report), "network.udp_errors")
        };
        let (severity, text) = judge("1005000 5 0 9100 0 0", 0, 0);
        assert_eq!(severity, Severity::Info, "other programs lose them");
        assert!(text.contains("; none at the sockets of the running tracker\n"), "{text}");
        let (severity, text) = judge("1005000 5 0 9100 0 0", 60, 0);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("receive buffers and 0 to lack"), "{text}");
        assert!(text.contains("; 60 at full receive buffers of the running tracker\n"), "{text}");
        let (severity, text) = judge("1005000 5 0 9100 0 0", 1, 0);
        assert_eq!(severity, Severity::Info, "{text}");
        let (_, text) = judge("1005000 5 0 9100 0 0", 101, 0);
        assert!(text.contains("; 100 at full receive buffers"), "never more than all: {text}");
        assert_eq!(judge("1005000 5 0 9000 0 90", 0, 0).0, Severity::Warning, "{text}");
        let (severity, text) = judge("1005000 5 0 9100 0 0", 60, 1);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("those of the tracker are not known"), "{text}");
    }

    #[test]
    fn packets_dropped_before_the_sockets_are_warned_of() {
        let judge = |text: &str, earlier: &str| {
            let fake = Fake::new().with(SOFTNET, text).earlier(SOFTNET, earlier);
            found(&examine(&fake.report), "network.backlog")
        };
        let none = "00ff 00000000 00000001\n00ff 00000000 00000001\n";
        let some = "00ff 00000010 00000001\n00ff 00000001 00000001\n";
        assert_eq!(judge(none, none).0, Severity::Ok);
        let (severity, text) = judge(some, none);
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("17 packets were dropped in the last second\n"), "{text}");
        let (severity, text) = judge(some, some);
        assert_eq!(severity, Severity::Info);
        assert!(text.starts_with("no packet was dropped in the last second, 17 since"), "{text}");
    }

    #[test]
    fn drops_of_the_whole_host_are_called_that_where_it_is_not_all_ours() {
        let judge = |fake: Fake, drops: &str| {
            let fake = fake
                .with(SOFTNET, &format!("00ff {drops} 00000001\n"))
                .earlier(SOFTNET, "00ff 00000000 00000001\n");
            found(&examine(&fake.report), "network.backlog")
        };
        let spaces = |first: &str| {
            Fake::new().linked("/proc/self/ns/net", "net:[2]").linked("/proc/1/ns/net", first)
        };
        let (severity, text) = judge(spaces("net:[1]"), "00000003");
        assert_eq!(severity, Severity::Warning);
        let whose = "on the whole host, not only in this network namespace (net:[2])";
        assert!(text.contains(whose) && text.contains("on the host: "), "{text}");
        let (severity, text) = judge(Fake::new().with("/.dockerenv", ""), "00000000");
        assert_eq!(severity, Severity::Ok);
        assert!(text.contains("whole host, not only in this container (Docker)"), "{text}");
        let own = [spaces("net:[2]"), Fake::new().linked("/proc/self/ns/net", "net:[2]")];
        for fake in own {
            assert!(!judge(fake, "00000003").1.contains("whole host"));
        }
    }

    #[test]
    fn a_filter_that_does_not_fit_matters_where_one_is_wanted() {
        let judge = |settings: &str, fits| {
            let mut fake =
                Fake::new().configured(settings).with("/proc/sys/net/core/optmem_max", "20480\n");
            fake.report.facts.deny_filter = fits;
            found(&examine(&fake.report), "network.optmem")
        };
        let denied = || Err("Cannot allocate memory".to_owned());
        assert_eq!(judge("[limits]\nkernel_deny_rate = 1000", Ok(())).0, Severity::Ok);
        assert_eq!(judge("", denied()).0, Severity::Ok);
        let (severity, text) = judge("[limits]\nkernel_deny_rate = 1000", denied());
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("20480 bytes") && text.contains("optmem_max=131072"), "{text}");
    }
}
