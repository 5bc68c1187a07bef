//! Findings on the AF_XDP sockets of `udp.xdp = "full"`: the kernel, rights, locked memory.

use super::super::finding::{Check, Finding};
use super::super::{HostReport, size};
use super::interfaces::Chosen;
use super::lacks_capability;
use crate::config::Io;
use crate::server::{XDP_QUEUES_MAX, XDP_RINGS_BYTES};
use crate::sys::xdp::socket::UMEM_BYTES;

const SOCKETS: Check = Check::new(
    "xdp.sockets",
    "With udp.xdp = \"full\" announces and scrapes reach the workers through an AF_XDP socket for \
     each receive queue. To open one takes CAP_NET_RAW and 8 MiB of locked memory, beside 1 MiB \
     for the rings of each worker. Without them the ordinary sockets get announces and scrapes, \
     as with \"offload\".",
);

/// Bits of capabilities in /proc (linux/capability.h).
pub(super) const CAP_NET_RAW: u32 = 13;
const CAP_IPC_LOCK: u32 = 14;

/// How frames reach the running tracker's AF_XDP sockets, if it has any.
fn mode(metrics: &str) -> Option<&str> {
    const START: &str = "skep_io_backend_info{backend=\"xdp_full\",reason=\"";
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(START));
    lines.find_map(|line| line.strip_suffix("\"} 1"))
}

/// Whether there can be a socket for each receive queue of the interfaces.
pub(super) fn sockets(report: &HostReport, chosen: &[Chosen<'_>]) -> Finding {
    let metrics = report.facts.metrics.as_deref();
    if let Some(mode) = metrics.ok().and_then(mode) {
        let is_lacking =
            |line: &str| line.starts_with("skep_xdp_queues_lacking{") && !line.ends_with(" 0");
        if metrics.is_ok_and(|it| it.lines().any(is_lacking)) {
            return SOCKETS.warning(
                format!("the running tracker has them ({mode}), but not for each queue"),
                "see the tracker's log\n$ journalctl -u skep | grep -i xdp",
            );
        }
        return SOCKETS.ok(format!("the running tracker has them ({mode})"));
    }
    let protocols = report.host.text("/proc/net/protocols");
    if protocols.is_ok_and(|it| !it.lines().any(|line| line.starts_with("XDP "))) {
        return SOCKETS.warning(
            "this kernel has none (CONFIG_XDP_SOCKETS)",
            "run a kernel that has them, or set udp.xdp = \"offload\"",
        );
    }
    if lacks_capability(report, CAP_NET_RAW) {
        return SOCKETS.warning(
            "this process lacks CAP_NET_RAW",
            "systemd: the drop-in deploy/systemd/xdp-full.conf beside xdp.conf; Kubernetes and \
             Docker: docs/xdp.md; if the tracker's unit has it, there is nothing to do: these are \
             the shell's",
        );
    }
    let counts: Vec<_> = chosen.iter().filter_map(queues).collect();
    let wanted = counts.iter().map(|it| it.1.min(XDP_QUEUES_MAX)).sum::<usize>();
    let rings_bytes = match report.config.server.io {
        Io::Mmsg => 0,
        Io::Auto | Io::Uring => XDP_RINGS_BYTES * report.workers() as u64,
    };
    let bytes = (wanted * UMEM_BYTES) as u64 + rings_bytes;
    let each = counts.iter().map(|(name, queues)| {
        let without = queues.saturating_sub(XDP_QUEUES_MAX);
        let rest = if without > 0 { format!(", {without} without") } else { String::new() };
        let with = queues - without;
        let plural = if with == 1 { "" } else { "s" };
        format!("{name}: {with} queue{plural} with one{rest}")
    });
    let fact = format!("{}; {} of locked memory", each.collect::<Vec<_>>().join("; "), size(bytes));
    let remedy = "LimitMEMLOCK=infinity in the unit (deploy/systemd/xdp-full.conf), CAP_IPC_LOCK \
                  in a container, or\n$ ulimit -l unlimited";
    match &report.facts.locked_memory {
        Ok(limit) if lacks_capability(report, CAP_IPC_LOCK) && *limit < bytes => {
            SOCKETS.warning(format!("{fact}, and the limit is {}", size(*limit)), remedy)
        }
        // The limit is one of the user: both processes of a take-over count, and io_uring's rings.
        Ok(limit) if lacks_capability(report, CAP_IPC_LOCK) && *limit < 2 * bytes => SOCKETS
            .info(format!("{fact}, twice in a take-over, and the limit is {}", size(*limit)))
            .remedied(remedy),
        _ if metrics.is_ok_and(|it| it.contains("skep_xdp_attached{")) => SOCKETS.warning(
            "the running tracker has none: ordinary sockets get announces and scrapes",
            "see the tracker's log\n$ journalctl -u skep | grep -i xdp",
        ),
        _ => SOCKETS.ok(fact),
    }
}

/// An interface's name and receive queues, as the tracker counts them.
fn queues<'a>(chosen: &'a Chosen<'_>) -> Option<(&'a str, usize)> {
    let channels = chosen.facts?.channels;
    let count = channels.map_or(1, |it| usize::try_from(it.count).unwrap_or(1));
    Some((&chosen.name, count.max(1)))
}
