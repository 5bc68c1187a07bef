//! Findings on the ports: whether another program has one of them.

use super::HostReport;
use super::finding::{Check, Finding};
use super::running::OtherTrackerError;
use crate::server::{BindDenial, UnavailableAddress, in_use};
use crate::sys::holder::AddressHolder;

const PORTS: Check = Check::new(
    "addresses.ports",
    "skep does not start while another program, or another skep, has one of its addresses.",
);

/// The service manager, which may hold sockets for skep (skep.socket).
const SERVICE_MANAGER: &str = "systemd";

/// The name of skep's program.
const NAME: &str = env!("CARGO_PKG_NAME");

/// How an address that cannot be bound is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PortVerdict {
    /// The tracker that runs with these settings has it.
    OwnTracker,
    /// The service manager holds it for skep, or whoever has it is not visible.
    Unclear,
    /// skep does not start.
    Taken,
}

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    // An address of another host is a finding of its own.
    let denied: Vec<_> = report
        .facts
        .unavailable
        .iter()
        .filter(|it| !matches!(it.reason, BindDenial::Other(_)))
        .collect();
    // There are no metrics of another tracker, whichever program has its ports.
    let is_running = report.facts.metrics.is_ok();
    let Some(worst) = denied.iter().map(|it| verdict(&it.reason, is_running)).max() else {
        return vec![PORTS.ok("every port of the settings is free")];
    };
    let worst_ones = denied.iter().filter(|it| verdict(&it.reason, is_running) == worst);
    let (mut facts, mut remedies): (Vec<_>, Vec<_>) = worst_ones.map(|it| explained(it)).unzip();
    if let Some(OtherTrackerError::StateDirectory(path)) = &report.facts.other_tracker {
        let path = path.display();
        facts.push(format!("that {NAME} has another state directory, {path}"));
        remedies.push(format!(
            "if that tracker is meant, run `skep doctor` with STATE_DIRECTORY={path}"
        ));
    }
    let fact = facts.join("\n");
    remedies.dedup();
    let remedy = format!("{}\n$ ss -lnp", remedies.join("; "));
    vec![match worst {
        PortVerdict::OwnTracker => {
            PORTS.ok("the tracker that runs has the ports of these settings")
        }
        PortVerdict::Unclear if is_running => PORTS
            .info(format!("{fact}\nskep responds at {}", report.facts.admin))
            .remedied("if that is not this tracker, run `skep doctor` as root\n$ ss -lnp"),
        PortVerdict::Unclear => PORTS.info(fact).remedied(
            "nothing, if skep.socket holds them for skep\n$ systemctl status skep.socket",
        ),
        PortVerdict::Taken => PORTS.problem(fact, remedy),
    }]
}

fn verdict(reason: &BindDenial, is_running: bool) -> PortVerdict {
    match reason {
        BindDenial::InUse(AddressHolder::Process { program, .. }) => match program.as_str() {
            SERVICE_MANAGER if is_running => PortVerdict::OwnTracker,
            SERVICE_MANAGER => PortVerdict::Unclear,
            NAME if is_running => PortVerdict::OwnTracker,
            _ => PortVerdict::Taken,
        },
        BindDenial::InUse(AddressHolder::User(_) | AddressHolder::Nobody) if is_running => {
            PortVerdict::Unclear
        }
        _ => PortVerdict::Taken,
    }
}

/// What is wrong with an address, and what to do.
fn explained(address: &UnavailableAddress) -> (String, String) {
    let listener = &address.listener;
    match &address.reason {
        BindDenial::InUse(holder) => {
            let (who, remedy) = in_use(holder);
            (format!("{listener}: {who}"), remedy)
        }
        BindDenial::NotAllowed => (
            format!("{listener}: this user may not bind ports below 1024"),
            "run `skep doctor` as the user that starts skep; if that one may not either, grant \
             CAP_NET_BIND_SERVICE (deploy/systemd/low-ports.conf), or choose a port above 1023"
                .into(),
        ),
        BindDenial::Other(error) => {
            (format!("{listener}: {error}"), "choose another address".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    fn judge(reasons: Vec<BindDenial>, is_running: bool) -> (Severity, String) {
        let mut fake = Fake::new();
        let unavailable =
            |(port, reason)| UnavailableAddress { listener: format!("udp 0.0.0.0:{port}"), reason };
        fake.report.facts.unavailable = (6969..).zip(reasons).map(unavailable).collect();
        if is_running {
            fake.report.facts.metrics = Ok("skep_x 1".into());
        }
        found(&examine(&fake.report), "addresses.ports")
    }

    fn process(program: &str) -> BindDenial {
        BindDenial::InUse(AddressHolder::Process { id: 4711, program: program.into() })
    }

    #[test]
    fn a_port_of_another_program_is_a_problem_whoever_runs() {
        assert_eq!(judge(Vec::new(), false).0, Severity::Ok);
        for is_running in [false, true] {
            let (severity, text) = judge(vec![process("opentracker")], is_running);
            assert_eq!(severity, Severity::Problem);
            let who = "udp 0.0.0.0:6969: it is in use by process 4711 (opentracker)";
            assert!(text.starts_with(who) && text.contains("$ ss -lnp"), "{text}");
        }
    }

    #[test]
    fn another_skep_is_a_problem_and_the_one_of_these_settings_is_not() {
        let (severity, text) = judge(vec![process("skep")], false);
        assert_eq!(severity, Severity::Problem);
        assert!(text.contains("process 4711, another skep") && text.contains("--take-over"));
        assert_eq!(judge(vec![process("skep")], true).0, Severity::Ok);
        let (severity, text) = judge(vec![process("skep"), process("nginx")], true);
        assert_eq!(severity, Severity::Problem);
        assert!(text.starts_with("udp 0.0.0.0:6970: "), "only what is wrong: {text}");
    }

    #[test]
    fn a_tracker_with_another_state_directory_is_a_problem_that_names_it() {
        let mut fake = Fake::new();
        let listener = "udp 0.0.0.0:6969".to_owned();
        fake.report.facts.unavailable =
            vec![UnavailableAddress { listener, reason: process("skep") }];
        let state = OtherTrackerError::StateDirectory("/var/lib/other".into());
        fake.report.facts.other_tracker = Some(state);
        let (severity, text) = found(&examine(&fake.report), "addresses.ports");
        assert_eq!(severity, Severity::Problem);
        assert!(text.contains("process 4711, another skep\n"), "{text}");
        assert!(text.contains("state directory, /var/lib/other\n"), "{text}");
        assert!(text.contains("STATE_DIRECTORY=/var/lib/other"), "{text}");
    }

    #[test]
    fn what_the_service_manager_holds_or_nobody_can_see_is_not_judged() {
        assert_eq!(judge(vec![process("systemd")], false).0, Severity::Info);
        assert_eq!(judge(vec![process("systemd")], true).0, Severity::Ok);
        let unseen = || BindDenial::InUse(AddressHolder::User(33));
        assert_eq!(judge(vec![unseen()], true).0, Severity::Info);
        let (severity, text) = judge(vec![unseen()], false);
        assert!(severity == Severity::Problem && text.contains("user 33"), "{text}");
    }

    #[test]
    fn low_ports_need_a_right() {
        let (severity, text) = judge(vec![BindDenial::NotAllowed], false);
        assert!(severity == Severity::Problem && text.contains("CAP_NET_BIND_SERVICE"), "{text}");
    }
}
