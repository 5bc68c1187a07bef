//! Hosts and interfaces, and what the group finds of them.

use super::super::facts::InterfaceFacts;
use super::super::fake::{Fake, found};
use super::*;
use crate::sys::ethtool::Channels;
use crate::sys::interfaces::{HostInterfaces, InterfaceAddress};
use crate::sys::xdp::attached::AttachedXdp;
use crate::sys::xdp::kernel::AttachMode;

/// A host with a default route through `eth0`, whose driver this is, and with another interface.
fn with_driver(driver: &str) -> Fake {
    let mut fake = Fake::new()
        .with("/proc/sys/kernel/osrelease", "6.12.0\n")
        .with("/sys/class/net/eth0/operstate", "up\n")
        .with("/sys/class/net/eth0/mtu", "1500\n")
        .with("/sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n")
        .with("/sys/class/net/eth0/queues/rx-1/rps_cpus", "0\n")
        .with("/sys/class/net/eth0/queues/tx-0/xps_cpus", "0\n");
    let driver = (!driver.is_empty()).then(|| driver.to_owned());
    let eth0 = InterfaceFacts { name: "eth0".into(), driver, ..InterfaceFacts::default() };
    let eth1 = InterfaceFacts { name: "eth1".into(), ..InterfaceFacts::default() };
    let lo = InterfaceFacts { name: "lo".into(), ..InterfaceFacts::default() };
    fake.report.facts.interfaces = vec![eth0, eth1, lo];
    let address = InterfaceAddress {
        interface: "eth1".into(),
        address: "192.0.2.1".parse().unwrap(),
        is_loopback: false,
    };
    fake.report.facts.host_interfaces = Ok(HostInterfaces {
        addresses: vec![address],
        default_v4: ["eth0".to_owned()].into(),
        default_v6: Default::default(),
    });
    fake.report.facts.xdp_program = Some(Ok(()));
    fake
}

/// The same with the offload on, and more lines in the section `udp`.
fn with_offload(driver: &str, settings: &str) -> Fake {
    with_driver(driver).configured(&format!("[udp]\nxdp = \"offload\"\n{settings}"))
}

fn judge(fake: &Fake, id: &str) -> (Severity, String) {
    found(&examine(&fake.report), id)
}

fn eth0(fake: &mut Fake) -> &mut InterfaceFacts {
    &mut fake.report.facts.interfaces[0]
}

#[test]
fn where_it_is_off_there_is_one_finding_and_an_offer_only_for_drivers_that_can() {
    let judge = |driver: &str| {
        let findings = examine(&with_driver(driver).report);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        found(&findings, "xdp.offload")
    };
    let (severity, text) = judge("mlx5_core");
    assert_eq!(severity, Severity::Info);
    assert!(text.starts_with("off; eth0 (mlx5_core) could run it"), "{text}");
    assert!(text.contains("udp.xdp = \"offload\""), "{text}");
    for driver in ["iwlwifi", "veth", "bridge", "of_tomorrow", ""] {
        assert_eq!(judge(driver).0, Severity::Ok, "{driver}");
    }
    let loopback = with_driver("mlx5_core").configured("[server]\nlisten = [\"127.0.0.1:1\"]");
    let (severity, text) = found(&examine(&loopback.report), "xdp.offload");
    assert!(severity == Severity::Ok && text.contains("loopback addresses only"), "{text}");
}

#[test]
fn the_offer_has_the_share_of_the_last_second_that_would_not_reach_a_socket() {
    let metrics = |requests: u32, connects: u32, forged: u32| {
        format!(
            "skep_requests_total{{transport=\"udp\",family=\"ipv4\"}} {requests}\n\
             skep_responses_total{{transport=\"udp\",family=\"ipv4\",action=\"connect\"}} \
             {connects}\n\
             skep_dropped_total{{transport=\"udp\",family=\"ipv4\",reason=\"forged_id\"}} \
             {forged}\n"
        )
    };
    let judge = |now: &str| {
        let mut fake = with_driver("i40e");
        fake.report.facts.metrics = Ok(now.to_owned());
        fake.report.earlier.set_metrics(&metrics(1000, 1000, 1000));
        judge(&fake, "xdp.offload")
    };
    let (severity, text) = judge(&metrics(101_000, 31_000, 21_000));
    assert_eq!(severity, Severity::Info);
    assert!(text.contains("50.0 % of the last second's 100000 datagrams"), "{text}");
    let (severity, text) = judge(&metrics(2000, 2000, 1000));
    assert_eq!(severity, Severity::Ok, "too few to gain anything");
    assert!(text.contains("off; 1000 datagrams in the last second"), "{text}");
}

#[test]
fn interfaces_are_those_named_else_those_of_the_addresses_and_default_routes() {
    let judge = |settings: &str| judge(&with_offload("ice", settings), "xdp.interfaces");
    assert_eq!(judge(""), (Severity::Ok, "eth0\n".into()));
    let (_, text) = judge("listen = [\"192.0.2.1:6969\"]");
    assert_eq!(text, "eth1\n", "the one that carries it");
    let (_, text) = judge("listen = [\"192.0.2.1:6969\", \"0.0.0.0:7000\"]");
    assert_eq!(text, "eth0; eth1\n");
    let (severity, text) = judge("listen = [\"192.0.2.77:6969\"]");
    assert_eq!(severity, Severity::Warning);
    assert!(text.contains("$ ip -brief address"), "{text}");
    let (severity, text) = judge("xdp_interfaces = [\"eth9\", \"eth1\"]");
    assert_eq!(severity, Severity::Warning);
    assert!(text.starts_with("eth1; eth9 does not exist"), "{text}");
    let down = with_offload("ice", "").with("/sys/class/net/eth0/operstate", "down\n");
    let (severity, text) = found(&examine(&down.report), "xdp.interfaces");
    assert!(severity == Severity::Warning && text.contains("ip link set dev eth0 up"), "{text}");
}

#[test]
fn a_sandbox_that_hides_the_interfaces_is_named() {
    let mut fake = with_offload("ice", "");
    fake.report.facts.host_interfaces = Err("Address family not supported".into());
    let (severity, text) = judge(&fake, "xdp.offload");
    assert!(severity == Severity::Info && text.contains("Address family not supported"), "{text}");
    assert_eq!(judge(&fake, "xdp.load").0, Severity::Ok);
}

#[test]
fn named_interfaces_are_judged_while_it_is_off() {
    let settings = "[udp]\nxdp_interfaces = [\"eth0\"]\nxdp_mode = \"native\"";
    let fake = with_driver("veth").configured(settings);
    let findings = examine(&fake.report);
    assert_eq!(found(&findings, "xdp.driver").0, Severity::Problem);
    let ids: Vec<_> = findings.iter().map(|it| it.id).collect();
    assert!(!ids.contains(&"xdp.load") && !ids.contains(&"xdp.offload"), "{ids:?}");
}

#[test]
fn drivers_are_judged_by_where_their_program_runs() {
    let place = |driver: &str, mode: &str| {
        judge(&with_offload(driver, &format!("xdp_mode = \"{mode}\"")), "xdp.driver")
    };
    for (driver, mode, expected) in [
        ("mlx5_core", "auto", Severity::Ok),
        ("mlx5_core", "generic", Severity::Info),
        ("veth", "native", Severity::Problem),
        ("veth", "auto", Severity::Ok),
        ("veth", "generic", Severity::Ok),
        ("r8169", "auto", Severity::Info),
        ("r8169", "native", Severity::Warning),
        ("bridge", "auto", Severity::Warning),
        ("of_tomorrow", "auto", Severity::Info),
        ("", "native", Severity::Info),
    ] {
        let (severity, text) = place(driver, mode);
        assert_eq!(severity, expected, "{driver} {mode}: {text}");
        assert!(text.starts_with("eth0") && text.contains(driver), "{text}");
    }
    let lo = |mode: &str| {
        let settings = format!("xdp_interfaces = [\"lo\"]\nxdp_mode = \"{mode}\"");
        judge(&with_offload("ice", &settings), "xdp.driver").0
    };
    assert_eq!([lo("auto"), lo("native")], [Severity::Ok, Severity::Warning]);
}

#[test]
fn drivers_that_need_spare_queues_get_them_by_a_command() {
    let judge = |driver: &str, count, max| {
        let mut fake = with_offload(driver, "");
        eth0(&mut fake).channels = Some(Channels { count, max });
        judge(&fake, "xdp.driver")
    };
    let (severity, text) = judge("ena", 8, 8);
    assert_eq!(severity, Severity::Warning);
    assert!(text.contains("takes programs with at most 4"), "{text}");
    assert!(text.contains("$ ethtool -L eth0 combined 4"), "{text}");
    assert_eq!(judge("ena", 4, 8).0, Severity::Ok);
    let (severity, text) = judge("virtio_net", 2, 2);
    assert!(severity == Severity::Info && text.contains("under a lock"), "{text}");
    assert_eq!(judge("virtio_net", 2, 4).0, Severity::Ok);
    assert_eq!(judge("mlx5_core", 8, 8).0, Severity::Ok);
}

#[test]
fn queues_are_as_many_as_workers_and_chosen_by_ports() {
    let judge = |workers, hashes| {
        let mut fake = with_offload("ice", "");
        fake.report.facts.cores = Ok(workers);
        eth0(&mut fake).hashes_ports = hashes;
        judge(&fake, "xdp.queues")
    };
    assert_eq!(judge(2, None).0, Severity::Ok);
    assert_eq!(judge(2, Some([true, true])).0, Severity::Ok);
    let (severity, text) = judge(4, Some([true, true]));
    assert_eq!(severity, Severity::Info);
    assert!(text.contains("2 receive queues for 4 workers"), "{text}");
    let (severity, text) = judge(2, Some([true, false]));
    assert_eq!(severity, Severity::Info);
    assert!(text.contains("$ ethtool -N eth0 rx-flow-hash udp6 sdfn"), "{text}");
    assert!(!text.contains("udp4"), "{text}");
}

#[test]
fn frames_that_fit_no_page_are_warned_of_where_the_program_is_in_the_driver() {
    let judge = |mtu: &str, mode: &str, merges_frames| {
        let mut fake = with_offload("ice", &format!("xdp_mode = \"{mode}\""))
            .with("/sys/class/net/eth0/mtu", mtu);
        eth0(&mut fake).merges_frames = merges_frames;
        examine(&fake.report).into_iter().find(|it| it.id == "xdp.frames")
    };
    assert_eq!(judge("1500\n", "auto", false).unwrap().severity, Severity::Ok);
    let long = judge("9000\n", "auto", false).unwrap();
    assert_eq!((long.severity, long.commands().len()), (Severity::Warning, 1));
    let merged = judge("1500\n", "native", true).unwrap();
    assert_eq!(merged.commands(), ["ethtool -K eth0 lro off"]);
    assert_eq!(judge("9000\n", "generic", true), None);
}

#[test]
fn a_program_of_another_process_is_named_with_the_ways_out() {
    let mut fake = with_offload("ice", "");
    assert_eq!(judge(&fake, "xdp.occupied").0, Severity::Ok);
    let mode = Some(AttachMode::Native);
    eth0(&mut fake).program = Some(AttachedXdp { program: 17, mode });
    let (severity, text) = judge(&fake, "xdp.occupied");
    assert_eq!(severity, Severity::Warning);
    assert!(text.starts_with("eth0 has the program 17 (native)"), "{text}");
    for command in ["$ bpftool link show", "$ ip link set dev eth0 xdp off"] {
        assert!(text.contains(command), "{text}");
    }
    fake.report.facts.metrics = Ok("skep_xdp_attached{interface=\"eth0\"} 1\n".into());
    let (severity, text) = judge(&fake, "xdp.occupied");
    assert!(severity == Severity::Ok && text.contains("of the running tracker"), "{text}");
    fake.report.facts.metrics = Ok("skep_xdp_attached{interface=\"eth0\"} 0\n".into());
    assert_eq!(judge(&fake, "xdp.occupied").0, Severity::Warning);
}

#[test]
fn the_running_tracker_is_asked_where_it_has_the_program() {
    let judge = |metrics: Result<&str, &str>| {
        let mut fake = with_offload("ice", "");
        fake.report.facts.metrics = metrics.map(str::to_owned).map_err(str::to_owned);
        judge(&fake, "xdp.offload")
    };
    assert_eq!(judge(Ok("skep_xdp_attached{interface=\"eth0\"} 1\n")).0, Severity::Ok);
    for metrics in ["skep_xdp_attached{interface=\"eth0\"} 0\n", "skep_torrents 0\n"] {
        let (severity, text) = judge(Ok(metrics));
        assert!(severity == Severity::Warning && text.contains("have it on eth0"), "{text}");
    }
    assert_eq!(judge(Err("Connection refused")).0, Severity::Info);
}

#[test]
fn a_program_that_the_kernel_refuses_is_explained_by_what_proc_shows() {
    let denied = || {
        let mut fake = with_offload("ice", "");
        fake.report.facts.xdp_program = Some(Err("Operation not permitted".into()));
        fake
    };
    let judge = |fake: Fake| judge(&fake, "xdp.load");
    assert_eq!(judge(with_offload("ice", "")).0, Severity::Ok);
    const STATUS: &str = "/proc/self/status";
    let (severity, text) = judge(denied().with(STATUS, "CapEff:\t0000000000001000\n"));
    assert_eq!(severity, Severity::Warning);
    assert!(text.contains("lacks CAP_BPF\n") && text.contains("xdp.conf"), "{text}");
    let both = "CapEff:\t0000008000001000\n";
    let namespace = "         0       1000          1\n";
    let (_, text) = judge(denied().with(STATUS, both).with("/proc/self/uid_map", namespace));
    assert!(text.contains("in a user namespace only"), "{text}");
    let without = with_offload("ice", "").with(STATUS, both);
    let (severity, text) = judge(without);
    assert!(severity == Severity::Info && text.contains("CAP_PERFMON"), "{text}");
    let whole = "         0          0 4294967295\n";
    let (_, text) = judge(denied().with(STATUS, both).with("/proc/self/uid_map", whole));
    assert!(text.contains("seccomp profile"), "{text}");
    let mut served = denied();
    served.report.facts.metrics = Ok("skep_xdp_attached{interface=\"eth0\"} 1\n".into());
    assert_eq!(judge(served).0, Severity::Ok, "its tracker has more rights than this shell");
    let (severity, text) = judge(denied().with("/proc/sys/kernel/osrelease", "5.15.0\n"));
    assert!(severity == Severity::Warning && text.contains("needs 5.19"), "{text}");
    let interpreted = with_offload("ice", "").with("/proc/sys/net/core/bpf_jit_enable", "0\n");
    let (severity, text) = judge(interpreted);
    assert!(severity == Severity::Warning && text.contains("bpf_jit_enable=1"), "{text}");
}

#[test]
fn the_kernels_routes_are_asked_on_interfaces_that_forward() {
    const FORWARDING: &str = "/proc/sys/net/ipv4/conf/eth0/forwarding";
    let fib = "xdp_neighbours = \"fib\"\nlisten = [\"0.0.0.0:6969\"]";
    assert_eq!(judge(&with_offload("ice", ""), "xdp.routes").0, Severity::Ok);
    let (severity, text) = judge(&with_offload("ice", fib).with(FORWARDING, "0\n"), "xdp.routes");
    assert_eq!(severity, Severity::Warning);
    assert!(text.contains("$ sysctl -w net.ipv4.conf.eth0.forwarding=1"), "{text}");
    assert!(!text.contains("ipv6"), "not served: {text}");
    let forwards = with_offload("ice", fib).with(FORWARDING, "1\n");
    assert_eq!(judge(&forwards, "xdp.routes").0, Severity::Ok);
}

#[test]
fn loopback_needs_responses_that_are_not_martians() {
    let lo = || with_offload("ice", "xdp_interfaces = [\"lo\"]");
    let (severity, text) = judge(&lo(), "xdp.routes");
    assert_eq!(severity, Severity::Problem);
    assert!(text.contains("$ sysctl -w net.ipv4.conf.lo.route_localnet=1"), "{text}");
    let local = lo().with("/proc/sys/net/ipv4/conf/lo/route_localnet", "1\n");
    assert_eq!(judge(&local, "xdp.routes").0, Severity::Ok);
}

/// A process with these capabilities, as bits, that is to have AF_XDP sockets.
fn with_sockets(capabilities: u64) -> Fake {
    let status = format!("CapEff:\t{capabilities:016x}\n");
    with_driver("ice").configured("[udp]\nxdp = \"full\"").with("/proc/self/status", &status).with(
        "/proc/net/protocols",
        "protocol  size\nXDP       1088      0\nUDP       1472      1\n",
    )
}

/// CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW.
const OF_SOCKETS: u64 = 1 << 39 | 1 << 12 | 1 << 13;

#[test]
fn af_xdp_sockets_take_a_capability_and_a_kernel_that_has_them() {
    let judge = |fake: &Fake| judge(fake, "xdp.sockets");
    let (severity, text) = judge(&with_sockets(OF_SOCKETS & !(1 << 13)));
    assert_eq!(severity, Severity::Warning);
    assert!(text.contains("lacks CAP_NET_RAW\n") && text.contains("xdp-full.conf"), "{text}");
    let mut refused = with_sockets(1 << 39);
    refused.report.facts.xdp_program = Some(Err("Operation not permitted".into()));
    let (_, text) = found(&examine(&refused.report), "xdp.load");
    assert!(text.contains("lacks CAP_NET_ADMIN and CAP_NET_RAW\n"), "{text}");
    let without = with_sockets(OF_SOCKETS).with("/proc/net/protocols", "protocol  size\nUDP 1\n");
    let (severity, text) = judge(&without);
    assert_eq!(severity, Severity::Warning);
    assert!(text.contains("CONFIG_XDP_SOCKETS"), "{text}");
    let offload = examine(&with_offload("ice", "").report);
    assert!(offload.iter().all(|it| it.id != "xdp.sockets"), "{offload:#?}");
}

#[test]
fn the_queues_sockets_have_to_fit_into_locked_memory() {
    const MIB: u64 = 1 << 20;
    let judge = |queues, limit, capabilities| {
        let mut fake = with_sockets(capabilities);
        fake.report.facts.locked_memory = Ok(limit);
        eth0(&mut fake).channels = Some(Channels { count: queues, max: queues });
        judge(&fake, "xdp.sockets")
    };
    // 32 MiB for the sockets, and 1 MiB for each of two workers.
    let (severity, text) = judge(4, 33 * MIB, OF_SOCKETS);
    assert_eq!(severity, Severity::Warning);
    assert!(text.starts_with("eth0: 4 queues with one; 34 MiB"), "{text}");
    assert!(
        text.contains("the limit is 33 MiB") && text.contains("$ ulimit -l unlimited"),
        "{text}"
    );
    let (severity, text) = judge(4, 34 * MIB, OF_SOCKETS);
    assert!(severity == Severity::Info && text.contains("twice in a take-over"), "{text}");
    assert_eq!(judge(4, 68 * MIB, OF_SOCKETS).0, Severity::Ok);
    assert_eq!(judge(4, 0, OF_SOCKETS | 1 << 14).0, Severity::Ok, "CAP_IPC_LOCK");
    let (severity, text) = judge(100, u64::MAX, OF_SOCKETS);
    assert_eq!(severity, Severity::Ok);
    assert!(text.starts_with("eth0: 64 queues with one, 36 without; 514 MiB"), "{text}");
}

#[test]
fn the_running_tracker_is_asked_whether_it_has_af_xdp_sockets() {
    const INFO: &str = "skep_io_backend_info{backend=\"xdp_full\",reason=\"zero_copy\"} 1\n";
    const ATTACHED: &str = "skep_xdp_attached{interface=\"eth0\"} 1\n";
    let judge = |metrics: String, capabilities| {
        let mut fake = with_sockets(capabilities);
        fake.report.facts.metrics = Ok(metrics);
        judge(&fake, "xdp.sockets")
    };
    let (severity, text) = judge(format!("{ATTACHED}{INFO}"), 0);
    assert_eq!(severity, Severity::Ok, "it has more rights than this shell");
    assert!(text.contains("(zero_copy)"), "{text}");
    let (severity, text) = judge(ATTACHED.to_owned(), OF_SOCKETS | 1 << 14);
    assert!(severity == Severity::Warning && text.contains("has none"), "{text}");
}
