//! Findings on time: what it costs to read the clock, and whether somebody sets it.

use super::Patient;
use super::finding::{Check, Finding};

const SOURCE: Check = Check::new(
    "time.clock_source",
    "Every turn of every worker reads the clock. From these sources that takes some 20 ns without \
     a system call; from hpet or acpi_pm a microsecond or more.",
);
const SYNCHRONISED: Check = Check::new(
    "time.synchronised",
    "skep's own time never jumps: it starts with the system clock and goes on by itself. But nodes \
     that share a connection-id key, certificates and the log need the true time.",
);

const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";

/// Sources that are read without a system call.
const FAST: [&str; 5] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "riscv_clocksource"];

pub(super) fn examine(it: &Patient) -> Vec<Finding> {
    vec![source(it), synchronised(it)]
}

fn source(it: &Patient) -> Finding {
    let current = match it.host.text(&format!("{FOLDER}/current_clocksource")) {
        Ok(current) => current,
        Err(unread) => return SOURCE.unread(&unread),
    };
    if FAST.contains(&current.as_str()) {
        return SOURCE.ok(current);
    }
    let available = it.host.text(&format!("{FOLDER}/available_clocksource")).unwrap_or_default();
    let better = available.split_whitespace().find(|it| FAST.contains(it));
    SOURCE.warning(
        &current,
        match better {
            Some(better) => format!(
                "$ echo {better} > {FOLDER}/current_clocksource\nand clocksource={better} on the \
                 kernel's command line"
            ),
            None => "see why the kernel has given up a fast one; a virtual machine needs a host \
                     that offers it\n$ dmesg | grep -i -e tsc -e clocksource"
                .into(),
        },
    )
}

/// The kernel tells by adjtimex(2) alone, which no safe crate in use offers; systemd-timesyncd
/// leaves a file.
fn synchronised(it: &Patient) -> Finding {
    if it.host.has("/run/systemd/timesync/synchronized") {
        return SYNCHRONISED.ok("systemd-timesyncd has set the clock since boot");
    }
    SYNCHRONISED.info("systemd-timesyncd has not set the clock; another service may have").remedied(
        "see that this says yes, else install chrony\n$ timedatectl show -p NTPSynchronized",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    fn judge(current: &str, available: &str) -> (Severity, String) {
        let fake = Fake::new()
            .with(&format!("{FOLDER}/current_clocksource"), current)
            .with(&format!("{FOLDER}/available_clocksource"), available);
        found(&examine(&fake.it), "time.clock_source")
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
        let unread = found(&examine(&Fake::new().it), "time.clock_source");
        assert_eq!(unread.0, Severity::Info);
    }

    #[test]
    fn a_clock_that_timesyncd_has_set_is_well() {
        let id = "time.synchronised";
        let fake = Fake::new().with("/run/systemd/timesync/synchronized", "");
        assert_eq!(found(&examine(&fake.it), id).0, Severity::Ok);
        assert_eq!(found(&examine(&Fake::new().it), id).0, Severity::Info);
    }
}
