//! Findings on XDP: whether a program in the kernel would pay here, and what on the interfaces that
//! get it is in its way.

mod drivers;
mod interfaces;
mod sockets;
#[cfg(test)]
mod tests;

use super::finding::{Check, Finding};
use super::tracker::{before_sockets, value, without_tracker};
use super::{HostReport, Severity, kernel};
use crate::config::{Xdp, XdpMode, XdpNeighbours};
use crate::frontend::figures::share;
use drivers::{Driver, Place, lacking, row};
use interfaces::{Chosen, LOOPBACK, chosen};
use sockets::{CAP_NET_RAW, sockets};

const OFFLOAD: Check = Check::new(
    "xdp.offload",
    "With udp.xdp = \"offload\" or \"full\" a program in the kernel answers connects and drops \
     forged ids. Both cost less than through a socket: docs/performance.md has what was measured \
     on veth. Host firewalls do not see what it answers (docs/xdp.md).",
);
const LOAD: Check = Check::new(
    "xdp.load",
    "Loading the program takes CAP_BPF and CAP_NET_ADMIN in the host's user namespace, bpf(2), and \
     Linux 5.19. Without them the sockets serve alone.",
);
const INTERFACES: Check = Check::new(
    "xdp.interfaces",
    "The program is attached to udp.xdp_interfaces, else to the interfaces that carry the \
     addresses of listen, and for a wildcard address to those of the default routes.",
);
const DRIVER: Check = Check::new(
    "xdp.driver",
    "In the driver (native) the program runs before the kernel makes a packet of a frame. Behind \
     it (generic), which every interface can do, a datagram costs about a third more.",
);
const QUEUES: Check = Check::new(
    "xdp.queues",
    "The program runs on the core that serves the receive queue. The card spreads datagrams over \
     queues by their addresses, and by their ports where it is set to.",
);
const FRAMES: Check = Check::new(
    "xdp.frames",
    "A native program needs each frame in one page: drivers refuse programs where frames are \
     longer, or merged (LRO).",
);
const OCCUPIED: Check = Check::new(
    "xdp.occupied",
    "An interface has one XDP program. While another one is attached, the kernel refuses skep's \
     (EBUSY), and the sockets serve alone.",
);
const ROUTES: Check = Check::new(
    "xdp.routes",
    "udp.xdp_neighbours = \"swap\" sends a response back to the station from which the request \
     came; \"fib\" asks the kernel's routes, which it refuses on interfaces that do not forward.",
);

/// The first version with links that need no capability to attach a loaded program.
const RELEASE_MIN: (u32, u32) = (5, 19);
/// Fewer datagrams in a second cost so little that no program pays.
const DATAGRAMS_MIN: u64 = 50_000;
/// Bytes of a frame that every driver takes with a program: the strictest stop at 3 050.
const MTU_MAX: u64 = 3_000;

/// Bits of capabilities in /proc (linux/capability.h).
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", CAP_NET_RAW), ("CAP_BPF", 39)];
const CAP_PERFMON: u32 = 38;

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    let is_on = report.config.udp.xdp != Xdp::Off;
    let chosen = match chosen(report) {
        Ok(chosen) => chosen,
        Err(error) => return unknown(report, is_on, error),
    };
    if !is_on && report.config.udp.xdp_interfaces.0.is_empty() {
        return vec![offer(report, &chosen)];
    }
    let mut findings =
        if is_on { vec![offload(report, &chosen), load(report)] } else { Vec::new() };
    findings.push(existence(report, &chosen));
    if has_sockets(report) {
        findings.push(sockets(report, &chosen));
    }
    let judges: [(&Check, Judge); 5] = [
        (&DRIVER, driver),
        (&QUEUES, queues),
        (&FRAMES, frames),
        (&OCCUPIED, occupied),
        (&ROUTES, routes),
    ];
    for (check, judge) in judges {
        let judged: Vec<_> = chosen.iter().filter_map(|it| judge(report, it)).collect();
        if !judged.is_empty() {
            findings.push(joined(check, judged));
        }
    }
    findings
}

/// Whether announces and scrapes are to reach AF_XDP sockets.
fn has_sockets(report: &HostReport) -> bool {
    report.config.udp.xdp == Xdp::Full
}

/// What is known where the interfaces are not.
fn unknown(report: &HostReport, is_on: bool, error: &str) -> Vec<Finding> {
    let unlisted = format!("unknown: the interfaces cannot be listed: {error}");
    let remedy = "let this user open sockets of AF_NETLINK, or run `skep doctor` as root, outside \
                  of a sandbox";
    let mut findings = vec![OFFLOAD.info(unlisted).remedied(remedy)];
    if is_on {
        findings.push(load(report));
    }
    findings
}

/// Judges one interface; `None`: the check does not concern it.
type Judge = fn(&HostReport, &Chosen<'_>) -> Option<Judged>;

/// What a check finds of one interface.
struct Judged {
    severity: Severity,
    fact: String,
    /// Empty: there is nothing to do.
    remedy: String,
}

impl Judged {
    fn new(severity: Severity, fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity, fact: fact.into(), remedy: remedy.into() }
    }

    fn ok(fact: impl Into<String>) -> Self {
        Self::new(Severity::Ok, fact, "")
    }
}

/// One finding of a check for all interfaces: as bad as the worst.
fn joined(check: &Check, judged: Vec<Judged>) -> Finding {
    let severity = judged.iter().map(|it| it.severity).max().unwrap_or(Severity::Ok);
    let facts: Vec<_> = judged.iter().map(|it| it.fact.as_str()).collect();
    let mut remedies: Vec<_> =
        judged.iter().map(|it| it.remedy.as_str()).filter(|it| !it.is_empty()).collect();
    remedies.dedup();
    let finding = check.found(severity, facts.join("; "));
    if remedies.is_empty() { finding } else { finding.remedied(remedies.join("\n")) }
}

/// What an interface could do, where the program is off.
fn offer(report: &HostReport, chosen: &[Chosen<'_>]) -> Finding {
    if report.config.udp_listen().is_empty() {
        return OFFLOAD.ok("off; UDP is not served");
    }
    if report.is_on_loopback_alone() {
        return OFFLOAD.ok("off; these settings serve loopback addresses only");
    }
    let is_native = |it: &&Chosen<'_>| {
        let driver = driver_of(report, it);
        driver.is_some_and(|(_, row)| row.place == Place::Native)
    };
    let named = |it: &Chosen<'_>| match it.facts.and_then(|facts| facts.driver.as_ref()) {
        Some(driver) => format!("{} ({driver})", it.name),
        None => it.name.clone(),
    };
    let native: Vec<_> = chosen.iter().filter(is_native).map(named).collect();
    if native.is_empty() {
        let all: Vec<_> = chosen.iter().map(named).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        return OFFLOAD.ok(format!("off; no interface is known to run it in its driver: {all}"));
    }
    let native = format!("off; {} could run it in the driver", native.join(", "));
    let remedy = "read docs/xdp.md, then set udp.xdp = \"offload\"";
    match before_sockets(report) {
        Some((all, _)) if all < DATAGRAMS_MIN => OFFLOAD.ok(format!(
            "off; {all} datagrams in the last second: it would pay from {DATAGRAMS_MIN} on, or in \
             a flood"
        )),
        Some((all, early)) => {
            let share = share(early, all);
            let fact = format!("{native}, and take {share} of the last second's {all} datagrams");
            OFFLOAD.info(fact).remedied(remedy)
        }
        None => OFFLOAD
            .info(format!("{native}; it pays from some {DATAGRAMS_MIN} datagrams a second on"))
            .remedied(remedy),
    }
}

/// Whether the running tracker has the program on an interface.
fn is_attached(report: &HostReport, name: &str) -> Option<bool> {
    let metrics = report.facts.metrics.as_ref().ok()?;
    let series = format!("skep_xdp_attached{{interface=\"{name}\"}}");
    Some(value(metrics, &series).is_some_and(|it| it > 0.0))
}

/// What the running tracker has attached.
fn offload(report: &HostReport, chosen: &[Chosen<'_>]) -> Finding {
    if let Err(error) = &report.facts.metrics {
        return without_tracker(&OFFLOAD, report.facts.admin, error);
    }
    let (attached, missing): (Vec<_>, Vec<_>) =
        chosen.iter().partition(|it| is_attached(report, &it.name) == Some(true));
    let names =
        |all: &[&Chosen<'_>]| all.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ");
    if missing.is_empty() && !attached.is_empty() {
        return OFFLOAD.ok(format!("the running tracker has it on {}", names(&attached)));
    }
    let missing = if missing.is_empty() { "any interface".to_owned() } else { names(&missing) };
    OFFLOAD.warning(
        format!("the running tracker does not have it on {missing}: sockets serve there"),
        "see the other findings of this group, and the tracker's log\n\
         $ journalctl -u skep | grep -i xdp",
    )
}

/// Whether the kernel takes the program, and if not, why.
fn load(report: &HostReport) -> Finding {
    let release = kernel::release(&report.host);
    if let Ok(release) = release
        && release < RELEASE_MIN
    {
        let fact = format!("Linux {}.{}, and the program needs 5.19", release.0, release.1);
        return LOAD.warning(fact, "run a newer kernel, or set udp.xdp = \"off\"");
    }
    match &report.facts.xdp_program {
        None => LOAD.info("not tried"),
        Some(Ok(())) => match report.host.number("/proc/sys/net/core/bpf_jit_enable") {
            Ok(0) => LOAD.warning(
                "the kernel takes the program, but interprets it (net.core.bpf_jit_enable = 0)",
                "$ sysctl -w net.core.bpf_jit_enable=1",
            ),
            _ if lacks_capability(report, CAP_PERFMON) => LOAD
                .info("the kernel takes the program, with barriers that double its time")
                .remedied(
                    "where floods are expected, CAP_PERFMON as well (deploy/systemd/xdp.conf); it \
                     lets the process watch all others",
                ),
            _ => LOAD.ok("the kernel takes the program"),
        },
        Some(Err(error)) => {
            let is_served = report.facts.metrics.as_ref().is_ok_and(|metrics| {
                metrics.lines().any(|it| it.starts_with("skep_xdp_attached{") && it.ends_with(" 1"))
            });
            if is_served {
                return LOAD.ok("not from this shell, but the running tracker has loaded it");
            }
            let (cause, remedy) = refusal(report);
            LOAD.warning(format!("{error}{cause}"), remedy)
        }
    }
}

/// The capabilities of this process as bits; `None` if /proc does not show them.
fn capabilities(report: &HostReport) -> Option<u64> {
    let status = report.host.text("/proc/self/status").ok()?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

fn lacks_capability(report: &HostReport, bit: u32) -> bool {
    capabilities(report).is_some_and(|bits| bits >> bit & 1 == 0)
}

/// Why the kernel refuses the program, as far as /proc shows it, and what to do.
fn refusal(report: &HostReport) -> (String, &'static str) {
    const EVERY_USER: u64 = u32::MAX as u64;
    let missing = capabilities(report).map(|_| {
        let is_missing = |(_, bit): &&(&str, u32)| {
            (*bit != CAP_NET_RAW || has_sockets(report)) && lacks_capability(report, *bit)
        };
        CAPABILITIES.iter().filter(is_missing).map(|it| it.0).collect::<Vec<_>>()
    });
    let is_whole = report.host.text("/proc/self/uid_map").ok().is_none_or(|map| {
        map.split_whitespace().last().and_then(|it| it.parse().ok()) == Some(EVERY_USER)
    });
    match missing {
        Some(missing) if !missing.is_empty() => (
            format!(": this process lacks {}", missing.join(" and ")),
            "systemd: the drop-in deploy/systemd/xdp.conf; Kubernetes and Docker: docs/xdp.md; if \
             the tracker's unit has them, there is nothing to do: these are the shell's",
        ),
        Some(_) if !is_whole => (
            ": this process has the capabilities in a user namespace only, where they do not \
             count"
                .into(),
            "PrivateUsers=no in the unit, as in deploy/systemd/xdp.conf; no rootless container",
        ),
        _ => (
            String::new(),
            "if a seccomp profile or a security module denies bpf(2), allow it: \
             deploy/systemd/xdp.conf, or the Kubernetes component xdp",
        ),
    }
}

/// Whether the interfaces are there and up.
fn existence(report: &HostReport, chosen: &[Chosen<'_>]) -> Finding {
    if chosen.is_empty() {
        return INTERFACES.warning(
            "no interface carries the addresses of listen, or has a default route",
            "name them in udp.xdp_interfaces\n$ ip -brief address",
        );
    }
    let judge = |it: &Chosen<'_>| {
        let name = &it.name;
        if it.facts.is_none() {
            let remedy = "udp.xdp_interfaces has to name interfaces of this host\n$ ip -brief link";
            return Judged::new(Severity::Warning, format!("{name} does not exist"), remedy);
        }
        match report.host.text(&it.file("operstate")) {
            Ok(state) if state == "down" => Judged::new(
                Severity::Warning,
                format!("{name} is down"),
                format!("$ ip link set dev {name} up"),
            ),
            _ => Judged::ok(name.clone()),
        }
    };
    joined(&INTERFACES, chosen.iter().map(judge).collect())
}

/// The driver of an interface, with its row.
fn driver_of<'a>(report: &HostReport, chosen: &Chosen<'a>) -> Option<(&'a str, Driver)> {
    let name = chosen.facts?.driver.as_deref()?;
    Some((name, row(name, kernel::release(&report.host).ok())))
}

fn driver(report: &HostReport, chosen: &Chosen<'_>) -> Option<Judged> {
    const GENERIC: &str = "udp.xdp_mode = \"generic\"";
    const AUTO: &str = "udp.xdp_mode = \"auto\"";
    let (name, mode) = (&chosen.name, report.config.udp.xdp_mode);
    if name == LOOPBACK {
        let fact = format!("{name}: generic, as it has no driver");
        let is_refused = mode == XdpMode::Native;
        return Some(if is_refused {
            Judged::new(Severity::Warning, fact, AUTO)
        } else {
            Judged::ok(fact)
        });
    }
    chosen.facts?;
    let Some((driver, row)) = driver_of(report, chosen).filter(|it| it.1.place != Place::Unknown)
    else {
        let driver = chosen.facts?.driver.as_deref().unwrap_or("of no name");
        let fact = format!("{name}: its driver ({driver}) is not in this table");
        let remedy = "see the ready line (xdp=) of the tracker for the mode that it got";
        return Some(Judged::new(Severity::Info, fact, remedy));
    };
    let fact = |mode: &str| {
        let note = if row.note.is_empty() { String::new() } else { format!(": {}", row.note) };
        format!("{name} ({driver}): {mode}{note}")
    };
    Some(match (row.place, mode) {
        (Place::Below, _) => Judged::new(Severity::Warning, fact("the wrong interface"), ""),
        (Place::NativeAtALoss, XdpMode::Native) => {
            Judged::new(Severity::Problem, fact("native"), GENERIC)
        }
        (Place::NativeAtALoss, _) => Judged::ok(format!("{name} ({driver}): generic")),
        (Place::Generic, XdpMode::Native) => {
            Judged::new(Severity::Warning, fact("native is asked for"), AUTO)
        }
        (Place::Generic, _) => Judged::new(Severity::Info, fact("generic"), ""),
        (_, XdpMode::Generic) => {
            let fact = format!("{name} ({driver}): generic, though its driver has native XDP");
            Judged::new(Severity::Info, fact, AUTO)
        }
        _ => native(report, chosen, &row).unwrap_or_else(|| Judged::ok(fact("native"))),
    })
}

/// What keeps the driver from running the program well.
fn native(report: &HostReport, chosen: &Chosen<'_>, row: &Driver) -> Option<Judged> {
    let (name, channels) = (&chosen.name, chosen.facts?.channels?);
    let fits = lacking(row.spare, channels, report.cores())?;
    let (count, max) = (channels.count, channels.max);
    let note = row.note;
    Some(if fits == 0 {
        let fact = format!(
            "{name}: all {max} pairs of queues are in use, so responses share queues under a \
             lock; {note}"
        );
        let remedy =
            format!("more pairs than cores of the guest (multiqueue)\n$ ethtool -l {name}");
        Judged::new(Severity::Info, fact, remedy)
    } else {
        let fact = format!(
            "{name}: {count} of {max} pairs of queues are in use, and its driver takes programs \
             with at most {fits}; {note}"
        );
        Judged::new(Severity::Warning, fact, format!("$ ethtool -L {name} combined {fits}"))
    })
}

fn queues(report: &HostReport, chosen: &Chosen<'_>) -> Option<Judged> {
    let (name, facts) = (&chosen.name, chosen.facts?);
    let queues = report.host.names(&chosen.file("queues")).ok()?;
    let count = queues.iter().filter(|it| it.starts_with("rx-")).count();
    let workers = report.workers();
    let plural = if count == 1 { "" } else { "s" };
    let fact = format!("{name} has {count} receive queue{plural} for {workers} workers");
    if count < workers && name != LOOPBACK {
        let remedy = format!(
            "if the card can have more (first command), give it as many as workers\n\
             $ ethtool -l {name}\n$ ethtool -L {name} combined {workers}"
        );
        return Some(Judged::new(Severity::Info, fact, remedy));
    }
    let unhashed: Vec<_> = facts
        .hashes_ports
        .into_iter()
        .flat_map(|it| it.into_iter().zip(["udp4", "udp6"]))
        .filter_map(|(is_hashed, flow)| (!is_hashed).then_some(flow))
        .collect();
    if count < 2 || unhashed.is_empty() {
        return Some(Judged::ok(fact));
    }
    let command = |flow: &&str| format!("$ ethtool -N {name} rx-flow-hash {flow} sdfn");
    let commands: Vec<_> = unhashed.iter().map(command).collect();
    let fact = format!("{fact}, and all datagrams of one address arrive at one of them");
    Some(Judged::new(Severity::Info, fact, commands.join("\n")))
}

fn frames(report: &HostReport, chosen: &Chosen<'_>) -> Option<Judged> {
    let (name, facts) = (&chosen.name, chosen.facts?);
    if report.config.udp.xdp_mode == XdpMode::Generic || name == LOOPBACK {
        return None;
    }
    let mtu = report.host.number(&chosen.file("mtu")).ok()?;
    Some(if facts.merges_frames {
        let fact = format!("{name} merges frames (LRO)");
        Judged::new(Severity::Warning, fact, format!("$ ethtool -K {name} lro off"))
    } else if mtu > MTU_MAX {
        let fact = format!("{name} has an MTU of {mtu} bytes, with which drivers refuse programs");
        let remedy = format!("$ ip link set dev {name} mtu 1500\nor udp.xdp_mode = \"generic\"");
        Judged::new(Severity::Warning, fact, remedy)
    } else {
        Judged::ok(format!("{name} has an MTU of {mtu} bytes"))
    })
}

fn occupied(report: &HostReport, chosen: &Chosen<'_>) -> Option<Judged> {
    let (name, facts) = (&chosen.name, chosen.facts?);
    let Some(attached) = facts.program else { return Some(Judged::ok(format!("{name} is free"))) };
    let mode = attached.mode.map_or("in the card", |it| it.label());
    let fact = format!("{name} has the program {} ({mode})", attached.program);
    if is_attached(report, name) == Some(true) {
        return Some(Judged::ok(format!("{fact} of the running tracker")));
    }
    let remedy = format!(
        "see whose it is (first two commands; skep's is called skep); if a process holds it by a \
         link, end that process; if ip(8) has attached it, detach it (third command)\n\
         $ bpftool prog show id {}\n$ bpftool link show\n$ ip link set dev {name} xdp off",
        attached.program
    );
    Some(Judged::new(Severity::Warning, fact, remedy))
}

fn routes(report: &HostReport, chosen: &Chosen<'_>) -> Option<Judged> {
    let name = &chosen.name;
    chosen.facts?;
    let is_on = |file: &str, interface: &str| {
        report.host.number(&format!("/proc/sys/net/{file}").replace("IF", interface)) == Ok(1)
    };
    if name == LOOPBACK {
        let is_local = ["lo", "all"].iter().any(|it| is_on("ipv4/conf/IF/route_localnet", it));
        return Some(if is_local {
            Judged::ok("lo accepts responses to 127.0.0.0/8")
        } else {
            Judged::new(
                Severity::Problem,
                "lo drops responses to 127.0.0.0/8 as martians: clients of this host get none",
                "take lo out of udp.xdp_interfaces, or\n\
                 $ sysctl -w net.ipv4.conf.lo.route_localnet=1",
            )
        });
    }
    if report.config.udp.xdp_neighbours == XdpNeighbours::Swap {
        return Some(Judged::ok(format!("{name}: back to the station that asks")));
    }
    let families = [("ipv4", true), ("ipv6", false)];
    let served = report.config.udp_listen();
    let closed: Vec<_> = families
        .into_iter()
        .filter(|(_, is_ipv4)| served.iter().any(|it| it.is_ipv4() == *is_ipv4))
        .filter(|(family, _)| !is_on(&format!("{family}/conf/IF/forwarding"), name))
        .map(|(family, _)| format!("$ sysctl -w net.{family}.conf.{name}.forwarding=1"))
        .collect();
    if closed.is_empty() {
        return Some(Judged::ok(format!("{name}: by the kernel's routes")));
    }
    let remedy = format!(
        "udp.xdp_neighbours = \"swap\", or let it forward, which makes this host a router: have \
         the firewall drop what it would forward\n{}",
        closed.join("\n")
    );
    let fact = format!("{name} does not forward, so every connect passes to the sockets");
    Some(Judged::new(Severity::Warning, fact, remedy))
}
