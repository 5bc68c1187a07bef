//! Findings on time: the cost of reading the clock, whether a service synchronises it, and whether
//! it jumps.

use super::HostReport;
use super::finding::{Check, Finding};
use crate::sys::clock::Synchronisation;

const SOURCE: Check = Check::new(
    "time.clock_source",
    "Every turn of every worker reads the clock. From these sources that takes some 20 ns without \
     a system call; from hpet or acpi_pm a microsecond or more.",
);
const SYNCHRONISED: Check = Check::new(
    "time.synchronised",
    "skep reads the system clock once at start and runs on the monotonic clock. Nodes that share a \
     connection-id key refuse each other's ids once they are a minute apart; snapshots, \
     certificates and the log use the system clock.",
);
const JUMPS: Check = Check::new(
    "time.jumps",
    "A running tracker keeps its own time, which then differs from the system clock: its nodes may \
     refuse each other's ids, and after a restart peers of a snapshot from the future do not age \
     by the time that passed.",
);

const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";

/// Sources that are read without a system call.
const FAST: [&str; 5] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "riscv_clocksource"];

/// Seconds by which a date may be ahead: dates are whole seconds, read one after another.
const AHEAD_S_MAX: u64 = 2;

/// The smallest jump that is reported, in nanoseconds: a busy host delays a reading by less.
const SET_NS_MIN: u64 = 100_000_000;

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    vec![source(report), synchronised(report), jumps(report)]
}

fn source(report: &HostReport) -> Finding {
    let current = match report.host.text(&format!("{FOLDER}/current_clocksource")) {
        Ok(current) => current,
        Err(unread) => return SOURCE.unread(&unread),
    };
    if FAST.contains(&current.as_str()) {
        return SOURCE.ok(current);
    }
    let available =
        report.host.text(&format!("{FOLDER}/available_clocksource")).unwrap_or_default();
    let better = available.split_whitespace().find(|it| FAST.contains(it));
    SOURCE.warning(
        &current,
        match better {
            Some(better) => format!(
                "$ echo {better} > {FOLDER}/current_clocksource\nand clocksource={better} on the \
                 kernel's command line"
            ),
            None => "see why the kernel dropped the fast one; a virtual machine needs a host \
                     that offers it\n$ dmesg | grep -i -e tsc -e clocksource"
                .into(),
        },
    )
}

fn synchronised(report: &HostReport) -> Finding {
    const REMEDY: &str = "let chrony or systemd-timesyncd synchronise it (for a container: on its \
                          host)\n$ apt-get install chrony\n$ chronyc tracking";
    match &report.facts.clock.synchronisation {
        Ok(told) if told.is_synchronised => {
            SYNCHRONISED.ok(format!("synchronised according to the kernel; {}", errors(told)))
        }
        Ok(told) => {
            let fact = format!(
                "not synchronised according to the kernel (STA_UNSYNC); {}; no service \
                 synchronises the clock",
                errors(told)
            );
            let is_shared = report.facts.has_key_variable || !report.config.udp.key_file.is_empty();
            if is_shared {
                let fact = format!("{fact}, and this node's connection-id key may be shared");
                SYNCHRONISED.warning(fact, REMEDY)
            } else {
                SYNCHRONISED.info(fact).remedied(REMEDY)
            }
        }
        // systemd-timesyncd creates this file when it has set the clock; it is gone after a reboot.
        Err(_) if report.host.has("/run/systemd/timesync/synchronized") => {
            SYNCHRONISED.ok("systemd-timesyncd has set the clock since boot")
        }
        Err(error) => SYNCHRONISED
            .info(format!("unknown: the kernel refuses the call (adjtimex: {error})"))
            .remedied(
                "run `skep doctor` outside of the container or sandbox, or run this there\n\
                 $ timedatectl show -p NTPSynchronized",
            ),
    }
}

/// The largest error that the kernel reports, in microseconds.
const ERROR_US_CEILING: u64 = 16_000_000;

fn errors(state: &Synchronisation) -> String {
    // The error grows while no service reports, up to this ceiling of the kernel (NTP_PHASE_LIMIT).
    if state.error_us_max >= ERROR_US_CEILING {
        return "error unknown, because no service has reported one for long".into();
    }
    let [probable, most] = [state.error_us, state.error_us_max].map(|us| {
        let tenths = us / 100; // of a millisecond
        format!("{}.{} ms", tenths / 10, tenths % 10)
    });
    format!("estimated error {probable}, at most {most}")
}

fn jumps(report: &HostReport) -> Finding {
    let mut signs = ahead(report);
    let set_ns = report.facts.clock.set_ns;
    if set_ns.unsigned_abs() >= SET_NS_MIN {
        let (tenths, way) =
            (set_ns.unsigned_abs() / 100_000_000, if set_ns < 0 { "back" } else { "forward" });
        signs.push(format!(
            "the clock was set {way} by {}.{} s during the check",
            tenths / 10,
            tenths % 10
        ));
    }
    if !signs.is_empty() {
        return JUMPS.warning(
            signs.join("; "),
            "set the clock before skep starts (After=time-sync.target, with chrony-wait or \
             systemd-time-wait-sync), and afterwards only slew it (chrony: makestep 1 3); then \
             restart the tracker, which reads the clock at start\n\
             $ systemctl restart skep",
        );
    }
    let snapshots = report.facts.state.iter().flat_map(|it| &it.snapshots);
    let unread = snapshots.filter_map(|(name, at_s)| Some((name, at_s.as_ref().err()?)));
    match unread.into_iter().next() {
        Some((name, reason)) => JUMPS.info(format!("unknown time of {name}: {reason}")).remedied(
            "look again as the tracker's user, or as root\n$ runuser -u skep -- skep doctor",
        ),
        None => JUMPS.ok("not set during the check, and no snapshot is dated in the future"),
    }
}

/// The snapshots with a date in the future: the clock was ahead when they were written.
fn ahead(report: &HostReport) -> Vec<String> {
    let by = |at_s: u64| {
        let ahead_s = at_s.saturating_sub(report.facts.clock.now_s);
        (ahead_s > AHEAD_S_MAX).then(|| format!("is dated {ahead_s} s in the future"))
    };
    let snapshots = report.facts.state.iter().flat_map(|it| &it.snapshots);
    let dated = |snapshot: &(&str, Result<u64, String>)| {
        Some(format!("{} {}", snapshot.0, by(snapshot.1.as_ref().ok().copied()?)?))
    };
    let mut signs: Vec<_> = snapshots.filter_map(dated).collect();
    let latest = last_success_s(report).and_then(by);
    signs.extend(latest.map(|it| format!("the running tracker's latest snapshot {it}")));
    signs
}

/// When the running tracker, if any, last wrote a snapshot, in seconds since the Unix epoch.
fn last_success_s(report: &HostReport) -> Option<u64> {
    const SERIES: &str = "skep_snapshot_last_success_timestamp_seconds ";
    let metrics = report.facts.metrics.as_ref().ok()?;
    let value = metrics.lines().find_map(|it| it.strip_prefix(SERIES))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, NOW_S, found};
    use super::*;

    fn judge(current: &str, available: &str) -> (Severity, String) {
        let fake = Fake::new()
            .with(&format!("{FOLDER}/current_clocksource"), current)
            .with(&format!("{FOLDER}/available_clocksource"), available);
        found(&examine(&fake.report), "time.clock_source")
    }

    #[test]
    fn slow_clock_sources_are_warned_of() {
        assert_eq!(judge("tsc\n", "tsc hpet\n").0, Severity::Ok);
        assert_eq!(judge("kvm-clock\n", "kvm-clock\n").0, Severity::Ok);
        let (severity, text) = judge("hpet\n", "tsc hpet acpi_pm\n");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("$ echo tsc > /sys/devices/system/clocksource"), "{text}");
        let (severity, text) = judge("acpi_pm\n", "acpi_pm\n");
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("dmesg"), "{text}");
        let unread = found(&examine(&Fake::new().report), "time.clock_source");
        assert_eq!(unread.0, Severity::Info);
    }

    fn told(is_synchronised: bool, error_us_max: u64) -> Synchronisation {
        Synchronisation { is_synchronised, error_us: 1_250, error_us_max }
    }

    #[test]
    fn a_clock_that_nobody_keeps_right_matters_most_where_nodes_share_a_key() {
        let judge = |it: &Fake| found(&examine(&it.report), "time.synchronised");
        let mut fake = Fake::new();
        fake.report.facts.clock.synchronisation = Ok(told(true, 12_000));
        let (severity, text) = judge(&fake);
        assert_eq!(severity, Severity::Ok);
        assert!(text.contains("estimated error 1.2 ms, at most 12.0 ms"), "{text}");
        fake.report.facts.clock.synchronisation = Ok(told(false, 16_000_000));
        let (severity, text) = judge(&fake);
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("STA_UNSYNC") && text.contains("$ apt-get install chrony"), "{text}");
        let shared = fake.configured("[udp]\nkey_file = \"/etc/skep/connection_id.key\"");
        let (severity, text) = judge(&shared);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("key may be shared"), "{text}");
        let mut variable = shared.configured("");
        assert_eq!(judge(&variable).0, Severity::Info);
        variable.report.facts.has_key_variable = true;
        assert_eq!(judge(&variable).0, Severity::Warning);
    }

    #[test]
    fn where_the_kernel_is_not_to_be_asked_the_file_of_timesyncd_is_looked_for() {
        let judge = |mut fake: Fake| {
            fake.report.facts.clock.synchronisation = Err("Operation not permitted".into());
            found(&examine(&fake.report), "time.synchronised")
        };
        let (severity, text) = judge(Fake::new());
        assert_eq!(severity, Severity::Info);
        assert!(text.contains("unknown: ") && text.contains("adjtimex: Operation not"), "{text}");
        let (severity, text) = judge(Fake::new().with("/run/systemd/timesync/synchronized", ""));
        assert!(severity == Severity::Ok && text.contains("timesyncd"), "{text}");
    }

    fn jumps_of(change: impl FnOnce(&mut Fake)) -> (Severity, String) {
        let mut fake = Fake::new();
        change(&mut fake);
        found(&examine(&fake.report), "time.jumps")
    }

    #[test]
    fn snapshots_of_the_future_tell_that_the_clock_was_set_back() {
        let judge = |dates: Vec<(&'static str, Result<u64, String>)>| {
            jumps_of(|it| it.report.facts.state.as_mut().unwrap().snapshots = dates)
        };
        assert_eq!(judge(Vec::new()).0, Severity::Ok);
        assert_eq!(judge(vec![("a", Ok(NOW_S + 2)), ("b", Ok(0))]).0, Severity::Ok);
        let (severity, text) = judge(vec![("a", Ok(NOW_S + 3600)), ("b", Ok(NOW_S + 3000))]);
        assert_eq!(severity, Severity::Warning);
        assert!(
            text.starts_with("a is dated 3600 s in the future; b is dated 3000 s in"),
            "{text}"
        );
        assert!(text.contains("time-sync.target"), "{text}");
        let unread = || ("b", Err("Permission denied".to_owned()));
        let (severity, text) = judge(vec![("a", Ok(NOW_S)), unread()]);
        assert_eq!(severity, Severity::Info);
        assert!(text.starts_with("unknown time of b: Permission denied"), "{text}");
        assert_eq!(judge(vec![unread(), ("a", Ok(NOW_S + 9))]).0, Severity::Warning);
        assert_eq!(jumps_of(|it| it.report.facts.state = Err(String::new())).0, Severity::Ok);
    }

    #[test]
    fn the_running_tracker_may_be_ahead_of_the_clock() {
        let judge = |at_s: &str| {
            let text = format!("# HELP x\nskep_snapshot_last_success_timestamp_seconds {at_s}\n");
            jumps_of(|it| it.report.facts.metrics = Ok(text))
        };
        for at_s in ["0", "1800000000", "1800000002", "NaN"] {
            assert_eq!(judge(at_s).0, Severity::Ok, "{at_s}");
        }
        let (severity, text) = judge("1800000090");
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("the running tracker's latest snapshot is dated 90 s"), "{text}");
    }

    #[test]
    fn a_clock_that_is_set_meanwhile_is_seen() {
        let judge = |set_ns| jumps_of(|it| it.report.facts.clock.set_ns = set_ns);
        assert_eq!([99_999_999, -99_999_999].map(|it| judge(it).0), [Severity::Ok; 2]);
        let (severity, text) = judge(-3_600_000_000_000);
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("the clock was set back by 3600.0 s during"), "{text}");
        assert!(judge(100_000_000).1.starts_with("the clock was set forward by 0.1 s"));
    }
}
