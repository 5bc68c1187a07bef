//! The XDP offload of the real program, on a veth pair between two network namespaces.
//!
//! Needs root, `ip`, `ethtool`, `unshare`, `setpriv` and `prlimit`, and is skipped where programs
//! cannot be loaded; with `SKEP_REQUIRE_EXTERNAL=1` that is a failure.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use skep::types::InfoHash;

use crate::support::namespaces::{
    SERVER_V4, SERVER_V6, ServerNamespace, await_af_xdp_sockets, in_a_namespace, ip,
};
use crate::support::udp_load::Steady;
use crate::support::{Client, Skep, backends, command, eventually, leecher, seeder};

/// Announces a second.
const RATE: u32 = 4_000;

/// A tracker in the namespace, with `settings` as variables.
fn start(namespace: &ServerNamespace, arguments: &[&str], settings: &[(&str, &str)]) -> Skep {
    Skep::spawn(skep_command(namespace, arguments, settings))
}

fn skep_command(
    namespace: &ServerNamespace,
    arguments: &[&str],
    settings: &[(&str, &str)],
) -> Command {
    let mut skep = command();
    skep.args(arguments).args(["--workers", "2", "--admin", &format!("{SERVER_V4}:0")]);
    if !arguments.contains(&"--listen") {
        skep.args(["--listen", &format!("{SERVER_V4}:0"), "--listen", &format!("[{SERVER_V6}]:0")]);
    }
    // A steady load from one address is far over its limit; on loopback there is none.
    skep.env("SKEP__LIMITS__EXEMPT", "10.9.0.0/24,fd00:9::/64");
    skep.envs(settings.iter().copied());
    namespace.within(&skep)
}

/// What the interface's program has counted.
fn counted(skep: &Skep, verdict: &str) -> f64 {
    let series = format!("skep_xdp_packets_total{{interface=\"s0\",verdict=\"{verdict}\"}}");
    skep.metrics().value(&series)
}

fn is_attached(skep: &Skep) -> bool {
    skep.metrics().value("skep_xdp_attached{interface=\"s0\"}") == 1.0
}

/// Whether the interface has a program, as the kernel says.
fn has_program(namespace: &ServerNamespace) -> bool {
    namespace.ip("-details link show dev s0").contains("prog/xdp")
}

/// The torrents of conversations: each has its own, and none of those that a steady load has.
static TORRENTS: AtomicU8 = AtomicU8::new(100);

/// Connects, announces as two peers, scrapes.
fn converse(address: SocketAddr) {
    let torrent = TORRENTS.fetch_add(1, Ordering::Relaxed);
    let mut client = Client::connect(address);
    client.announce(&seeder(torrent, 1001));
    let (response, _) = client.announce(&leecher(torrent, 1002));
    assert_eq!((response.seeders, response.leechers), (1, 1));
    let [entry] = client.scrape(&[InfoHash([torrent; 20])])[..] else { panic!("one torrent") };
    assert_eq!((entry.seeders, entry.leechers), (1, 1));
}

#[test]
fn connects_are_answered_and_forged_ids_dropped_before_a_socket() {
    const NAME: &str = "connects_are_answered_and_forged_ids_dropped_before_a_socket";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    for (backend, mode) in
        backends().into_iter().flat_map(|backend| ["native", "generic"].map(|mode| (backend, mode)))
    {
        let settings = [("SKEP__UDP__XDP", "offload"), ("SKEP__UDP__XDP_MODE", mode)];
        let mut skep = start(&namespace, &["--io", backend], &settings);
        assert!(skep.ready.contains(&format!(" xdp=s0:offload:{mode}")), "{}", skep.ready);
        for address in skep.udp.clone() {
            converse(address);
            // Nothing answers this, so the next answer is to what follows.
            let mut client = Client::connect(address);
            client.connection_id ^= 1 << 40;
            let genuine = client.connection_id ^ 1 << 40;
            client.send(&forged_announce(client.connection_id));
            client.connection_id = genuine;
            client.scrape(&[InfoHash([1; 20])]);
        }
        let metrics = skep.metrics();
        let counts = ["answered", "forged_id", "passed_genuine"].map(|it| counted(&skep, it));
        assert_eq!(counts, [4.0, 2.0, 8.0], "{backend} {mode}");
        let udp = |name: &str, label: &str| {
            let lines = metrics.text.lines().filter(|it| it.contains("transport=\"udp\""));
            let of = lines.filter(|it| it.starts_with(&format!("{name}{{")) && it.contains(label));
            of.map(|it| it.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
        };
        assert_eq!(udp("skep_responses_total", "action=\"connect\""), 4.0);
        assert_eq!(udp("skep_dropped_total", "reason=\"forged_id\""), 2.0);
        let outcomes = ["skep_responses_total", "skep_refused_total", "skep_dropped_total"];
        let sum: f64 = outcomes.iter().map(|it| udp(it, "")).sum();
        assert_eq!((udp("skep_requests_total", ""), sum), (14.0, 14.0));
        // Four connects, six announces, two of them forged, four scrapes of one torrent.
        let received = 4.0 * 16.0 + 6.0 * 98.0 + 4.0 * 36.0;
        assert_eq!(udp("skep_receive_bytes_total", ""), received);
        let info = format!("skep_io_backend_info{{backend=\"xdp_offload\",reason=\"{mode}\"}}");
        assert_eq!(metrics.value(&info), 1.0);
        skep.signal("TERM");
        assert_eq!(skep.wait().code(), Some(0));
        assert!(!has_program(&namespace));
    }
}

/// An announce with an id that was not issued.
fn forged_announce(id: u64) -> Vec<u8> {
    use skep::protocol::udp::TransactionId;
    let mut out = vec![0; 98];
    skep::protocol::udp::client::encode_announce(
        id,
        TransactionId([9; 4]),
        &leecher(1, 1),
        &mut out,
    );
    out
}

/// A settings file that a reload reads again.
struct Settings(tempfile::TempDir);

impl Settings {
    fn new(text: &str) -> Self {
        let settings = Self(tempfile::tempdir().unwrap());
        settings.write(text);
        settings
    }

    fn path(&self) -> String {
        self.0.path().join("skep.toml").to_str().unwrap().to_owned()
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    /// Writes the file and has the tracker read it.
    fn reload(&self, skep: &Skep, text: &str) {
        self.write(text);
        skep.signal("HUP");
    }
}

#[test]
fn announces_and_scrapes_are_answered_through_af_xdp_sockets() {
    const NAME: &str = "announces_and_scrapes_are_answered_through_af_xdp_sockets";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let modes = ["native", "generic"];
    for (backend, mode) in backends().into_iter().flat_map(|it| modes.map(|mode| (it, mode))) {
        let settings = [("SKEP__UDP__XDP", "full"), ("SKEP__UDP__XDP_MODE", mode)];
        let mut skep = start(&namespace, &["--io", backend], &settings);
        // The kernel frees the queue of the tracker before some time after its end.
        await_af_xdp_sockets(&skep);
        let before = skep.metrics();
        skep.udp.iter().copied().for_each(converse);
        let metrics = skep.metrics();
        let more = |name: &str, label: &str| {
            let label = format!("\"{label}\"");
            metrics.sum(name, &label) - before.sum(name, &label)
        };
        let verdicts = ["answered", "redirected", "passed_genuine"];
        let verdicts = verdicts.map(|it| more("skep_xdp_packets_total", it));
        assert_eq!(verdicts, [2.0, 6.0, 0.0], "{backend} {mode}");
        let frames = ["received", "sent"].map(|it| more("skep_xdp_frames_total", it));
        assert_eq!(frames, [6.0, 6.0]);
        for lost in ["bad_checksum", "not_understood", "ring_full", "dropped", "fill_empty"] {
            assert_eq!(metrics.sum("skep_xdp_frames_total", lost), 0.0, "{lost}");
        }
        let answered = ["connect", "announce", "scrape"];
        let answered = answered.map(|it| more("skep_responses_total", it));
        assert_eq!(answered, [2.0, 4.0, 2.0]);
        // A datagram that the program does not understand reaches an ordinary socket.
        skep.udp.iter().for_each(|it| Client::unconnected(*it).send(&[7; 40]));
        eventually("the sockets get the rest", || {
            skep.metrics().sum("skep_dropped_total", "reason=\"unknown_action\"") == 2.0
        });
        skep.signal("TERM");
        assert_eq!(skep.wait().code(), Some(0));
        assert!(!has_program(&namespace));
    }
}

#[test]
fn the_offload_is_switched_on_and_off_without_a_lost_datagram() {
    const NAME: &str = "the_offload_is_switched_on_and_off_without_a_lost_datagram";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let settings = Settings::new("");
    let skep = start(&namespace, &["--config", &settings.path()], &[]);
    assert!(!skep.ready.contains("xdp="));
    let address = skep.udp[0];
    let load = Steady::start(address, RATE);
    for (mode, label) in [("native", "native"), ("generic", "generic"), ("auto", "generic")] {
        let text = format!("udp.xdp = \"offload\"\nudp.xdp_mode = \"{mode}\"");
        settings.reload(&skep, &text);
        let info = format!("skep_io_backend_info{{backend=\"xdp_offload\",reason=\"{label}\"}}");
        eventually("the program is attached", || skep.metrics().value(&info) == 1.0);
        let before = counted(&skep, "answered");
        Client::connect(address);
        assert_eq!(counted(&skep, "answered") - before, 1.0);
        load.wait_for(1_000);
    }
    for _ in 0..2 {
        settings.reload(&skep, "udp.xdp = \"full\"\nudp.xdp_mode = \"native\"");
        await_af_xdp_sockets(&skep);
        load.wait_for(1_000);
        settings.reload(&skep, "udp.xdp = \"offload\"\nudp.xdp_mode = \"native\"");
        let passed = counted(&skep, "passed_genuine");
        eventually("sockets get announces", || counted(&skep, "passed_genuine") > passed + 100.0);
    }
    settings.reload(&skep, "udp.xdp = \"full\"\nudp.xdp_mode = \"native\"");
    await_af_xdp_sockets(&skep);
    let before = counted(&skep, "answered");
    settings.reload(&skep, "udp.xdp = \"off\"");
    eventually("the program is detached", || !has_program(&namespace));
    Client::connect(address);
    load.wait_for(1_000);
    assert_eq!(counted(&skep, "answered"), before, "what was counted is kept");
    let (sent, lost) = load.finish();
    assert_eq!(lost, 0, "of {sent}\n{}", skep.log());
}

#[test]
fn a_rollover_of_keys_reaches_the_program() {
    const NAME: &str = "a_rollover_of_keys_reaches_the_program";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let keys = Settings::new("");
    let [old, new] = ["1".repeat(64), "2".repeat(64)];
    keys.write(&old);
    let variables = [("SKEP__UDP__XDP", "offload"), ("SKEP__UDP__KEY_FILE", &*keys.path())];
    let skep = start(&namespace, &[], &variables);
    let mut first = Client::connect(skep.udp[0]);
    keys.reload(&skep, &format!("{new}\n{old}"));
    skep.log_with("the connection-id keys");
    // A reload is over when the program has the keys as well: until then an answer has an old id.
    let mut second = Client::connect(skep.udp[0]);
    first.announce(&leecher(1, 1));
    second.announce(&leecher(1, 2));
    keys.reload(&skep, &new);
    eventually("the old key is gone", || {
        first.send(&forged_announce(first.connection_id));
        counted(&skep, "forged_id") > 0.0
    });
    let mut third = Client::connect(skep.udp[0]);
    third.announce(&leecher(1, 3));
}

#[test]
fn denied_networks_are_dropped_in_the_kernel_until_they_are_allowed_again() {
    const NAME: &str = "denied_networks_are_dropped_in_the_kernel_until_they_are_allowed_again";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let skep = start(&namespace, &[], &[("SKEP__UDP__XDP", "offload")]);
    let client = Client::connect(skep.udp[0]);
    let put = skep.ask(("PUT", "/api/v1/access/networks/deny/10.9.0.2%2F32"), "");
    assert_eq!(put.0, 200, "{put:?}");
    eventually("the network is denied", || {
        client.send(&[7; 16]);
        counted(&skep, "network_denied") > 0.0
    });
    let reason = "reason=\"network_denied\"";
    assert!(skep.metrics().sum("skep_dropped_total", reason) > 0.0);
    let deleted = skep.ask(("DELETE", "/api/v1/access/networks/deny/10.9.0.2%2F32"), "");
    assert_eq!(deleted.0, 200, "{deleted:?}");
    let passed = counted(&skep, "passed_other");
    eventually("the network is allowed again", || {
        client.send(&[7; 16]);
        counted(&skep, "passed_other") > passed
    });
    converse(skep.udp[0]);
}

#[test]
fn a_take_over_under_load_moves_the_program_and_loses_nothing() {
    const NAME: &str = "a_take_over_under_load_moves_the_program_and_loses_nothing";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    for (xdp, mode) in [("offload", "generic"), ("full", "generic"), ("full", "native")] {
        let variables = [("SKEP__UDP__XDP", xdp), ("SKEP__UDP__XDP_MODE", mode)];
        let mut first = start(&namespace, &[], &variables);
        let state = first.state.take().unwrap();
        if xdp == "full" {
            await_af_xdp_sockets(&first);
        }
        let load = Steady::start(first.udp[0], RATE);
        load.wait_for(1_000);
        let state = state.path().to_str().unwrap();
        let variables = [variables[0], variables[1], ("STATE_DIRECTORY", state)];
        let second = start(&namespace, &["run", "--take-over"], &variables);
        assert!(second.ready.contains(" xdp=s0:"), "{}", second.ready);
        assert_eq!(first.wait().code(), Some(0), "{}", first.log());
        if xdp == "full" {
            await_af_xdp_sockets(&second);
        }
        converse(second.udp[0]);
        assert!(counted(&second, "answered") > 0.0);
        load.wait_for(1_000);
        let (sent, lost) = load.finish();
        assert_eq!(lost, 0, "of {sent}, {xdp} {mode}\n{}", second.log());
        assert!(!second.log().contains("XDP not in use"), "{}", second.log());
    }
}

#[test]
fn nothing_is_left_of_a_process_that_is_killed() {
    const NAME: &str = "nothing_is_left_of_a_process_that_is_killed";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    for _ in 0..2 {
        // The second gets the queue that the first had.
        let mut skep = start(&namespace, &[], &[("SKEP__UDP__XDP", "full")]);
        await_af_xdp_sockets(&skep);
        assert!(has_program(&namespace));
        skep.signal("KILL");
        skep.wait();
        eventually("the kernel removes the program", || !has_program(&namespace));
    }
}

#[test]
fn queues_that_an_interface_gets_later_get_sockets_as_well() {
    const NAME: &str = "queues_that_an_interface_gets_later_get_sockets_as_well";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    ip("link del c0");
    namespace.join_with(2);
    let set_queues = |count: u32| {
        let count = count.to_string();
        let mut ethtool = Command::new("ethtool");
        namespace.within(ethtool.args(["-L", "s0", "rx", &count, "tx", &count]))
    };
    assert!(set_queues(1).status().unwrap().success());
    let variables = [("SKEP__UDP__XDP", "full"), ("SKEP__UDP__XDP_MODE", "generic")];
    let skep = start(&namespace, &[], &variables);
    await_af_xdp_sockets(&skep);
    assert!(set_queues(2).status().unwrap().success());
    skep.log_with("queue=1");
    // The kernel takes no queue away that has a socket.
    assert!(!set_queues(1).status().unwrap().success());
    // Clients at other ports reach other queues: in the end none of a dozen passes.
    eventually("both queues redirect", || {
        let passed = || skep.metrics().sum("skep_xdp_packets_total", "passed_genuine");
        let before = passed();
        for _ in 0..12 {
            Client::connect(skep.udp[0]).scrape(&[InfoHash([99; 20])]);
        }
        passed() == before
    });
    assert_eq!(skep.metrics().value("skep_xdp_queues_lacking{interface=\"s0\"}"), 0.0);
}

#[test]
fn an_interface_that_another_program_has_is_served_through_sockets_until_that_ends() {
    const NAME: &str =
        "an_interface_that_another_program_has_is_served_through_sockets_until_that_ends";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let other = start(&namespace, &[], &[("SKEP__UDP__XDP", "offload")]);
    let skep = start(&namespace, &[], &[("SKEP__UDP__XDP", "offload")]);
    let log = skep.log_with("XDP not in use, served over sockets");
    assert!(log.contains("another XDP program is attached to s0 (number "), "{log}");
    assert!(!skep.ready.contains("xdp=") && !is_attached(&skep));
    converse(skep.udp[0]);
    assert_eq!(counted(&skep, "answered"), 0.0);
    let (status, text) = skep.ask(("GET", "/api/v1/status"), "");
    assert!(status == 200 && text.contains("xdp_not_attached"), "{text}");
    drop(other);
    eventually("the program is attached after all", || is_attached(&skep));
    converse(skep.udp[0]);
    assert_eq!(counted(&skep, "answered"), 1.0);
    assert_eq!(skep.log().matches("XDP not in use").count(), 1, "{}", skep.log());
}

#[test]
fn an_interface_may_go_down_or_away_and_come_back() {
    const NAME: &str = "an_interface_may_go_down_or_away_and_come_back";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    // The wildcard address stays bound when the interface goes; the admin listener is elsewhere.
    let mut skep = command();
    skep.args(["--listen", "0.0.0.0:0", "--workers", "2", "--admin", "127.0.0.1:0"]);
    skep.envs([("SKEP__UDP__XDP", "full"), ("SKEP__UDP__XDP_INTERFACES", "s0")]);
    let skep = Skep::spawn(namespace.within(&skep));
    let address = SocketAddr::new(SERVER_V4.parse().unwrap(), skep.udp[0].port());
    let converse = || {
        let mut client = Client::connect(address);
        client.scrape(&[InfoHash([99; 20])]);
    };
    converse();
    namespace.ip("link set s0 down");
    namespace.ip("link set s0 up");
    converse();
    assert!(has_program(&namespace), "a link stays while an interface is down");
    ip("link del c0");
    skep.log_with("XDP program gone with its interface");
    namespace.join();
    eventually("the program is back", || has_program(&namespace));
    converse();
    skep.log_with("AF_XDP socket bound");
    eventually("the sockets are back", || skep.log().matches("AF_XDP socket bound").count() == 2);
    converse();
    let attached = skep.log().matches("XDP program attached").count();
    assert_eq!(attached, 2, "{}", skep.log());
}

#[test]
fn responses_follow_the_routes_or_go_through_the_sockets() {
    const NAME: &str = "responses_follow_the_routes_or_go_through_the_sockets";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let variables = [("SKEP__UDP__XDP", "offload"), ("SKEP__UDP__XDP_NEIGHBOURS", "fib")];
    let skep = start(&namespace, &[], &variables);
    // The kernel answers questions about routes only where it forwards.
    let set_forwarding = |value| {
        for family in ["ipv4", "ipv6"] {
            namespace.set(&format!("net/{family}/conf/s0/forwarding"), value);
        }
    };
    set_forwarding("0");
    skep.udp.iter().copied().for_each(converse);
    assert_eq!((counted(&skep, "answered"), counted(&skep, "passed_no_route")), (0.0, 2.0));
    set_forwarding("1");
    for address in &skep.udp {
        Client::connect(*address);
    }
    assert_eq!((counted(&skep, "answered"), counted(&skep, "passed_no_route")), (2.0, 2.0));
}

#[test]
fn a_process_without_privileges_keeps_what_it_loaded_and_says_what_it_lacks() {
    const NAME: &str = "a_process_without_privileges_keeps_what_it_loaded_and_says_what_it_lacks";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    let settings = Settings::new("");
    fs::set_permissions(settings.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let user = [("SKEP__SERVER__USER", "nobody")];
    let arguments = ["--config", &settings.path()];
    // Loaded as root: the interface's sockets are bound as nobody.
    settings.write("udp.xdp = \"full\"");
    let skep = start(&namespace, &arguments, &user);
    await_af_xdp_sockets(&skep);
    converse(skep.udp[0]);
    drop(skep);
    // Loaded as root: off and on again as nobody.
    settings.write("udp.xdp = \"offload\"");
    let skep = start(&namespace, &arguments, &user);
    assert!(is_attached(&skep));
    settings.reload(&skep, "udp.xdp = \"off\"");
    eventually("the program is detached", || !has_program(&namespace));
    settings.reload(&skep, "udp.xdp = \"offload\"");
    eventually("the program is attached again", || has_program(&namespace));
    converse(skep.udp[0]);
    // Another interface cannot get one any more. That does not concern the first.
    let both = "udp.xdp = \"offload\"\nudp.xdp_interfaces = [\"lo\", \"s0\"]";
    settings.reload(&skep, both);
    skep.log_with("XDP not in use, served over sockets");
    settings.reload(&skep, &format!("{both}\nudp.xdp_mode = \"native\""));
    let info = "skep_io_backend_info{backend=\"xdp_offload\",reason=\"native\"}";
    eventually("the first follows its settings", || skep.metrics().value(info) == 1.0);
    converse(skep.udp[0]);
    drop(skep);
    // Not loaded as root: nobody may not.
    settings.write("");
    let skep = start(&namespace, &arguments, &user);
    settings.reload(&skep, "udp.xdp = \"offload\"");
    let log = skep.log_with("XDP not in use, served over sockets");
    assert!(log.contains("CAP_BPF") && log.contains("a restart is needed"), "{log}");
    converse(skep.udp[0]);
}

#[test]
fn sockets_leave_locked_memory_to_the_rings_of_workers() {
    const NAME: &str = "sockets_leave_locked_memory_to_the_rings_of_workers";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    for (limit_mib, has_sockets) in [(8, false), (11, true)] {
        if rlimit::Resource::MEMLOCK.get_hard().unwrap() < limit_mib << 20 {
            // Also in CI: a container's limit cannot be raised from inside.
            eprintln!("skipped: {limit_mib} MiB of locked memory are more than this host allows");
            continue;
        }
        let skep = skep_command(&namespace, &[], &[("SKEP__UDP__XDP", "full")]);
        let mut limited = Command::new("setpriv");
        limited.args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "prlimit"]);
        limited.arg(format!("--memlock={}", limit_mib << 20)).arg(skep.get_program());
        limited.args(skep.get_args());
        for (name, value) in skep.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        let skep = Skep::spawn(limited);
        if has_sockets {
            await_af_xdp_sockets(&skep);
        } else {
            let log = skep.log_with("AF_XDP not in use for some queues");
            assert_eq!(skep.metrics().value("skep_xdp_queues_lacking{interface=\"s0\"}"), 1.0);
            assert!(log.contains("LimitMEMLOCK"), "{log}");
            assert!(skep.ready.contains(" xdp=s0:offload:generic"), "{}", skep.ready);
        }
        converse(skep.udp[0]);
    }
}

#[test]
fn interfaces_without_a_driver_of_their_own_are_served_behind_it() {
    const NAME: &str = "interfaces_without_a_driver_of_their_own_are_served_behind_it";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let namespace = ServerNamespace::new();
    // A bridge cannot run programs in native mode.
    namespace.ip("link add br0 type bridge");
    namespace.ip("addr flush dev s0");
    namespace.ip("link set s0 master br0");
    namespace.ip(&format!("addr add {SERVER_V4}/24 dev br0"));
    namespace.ip("link set br0 up");
    let listen = format!("{SERVER_V4}:0");
    let skep = start(&namespace, &["--listen", &listen], &[("SKEP__UDP__XDP", "offload")]);
    assert!(skep.ready.contains(" xdp=br0:offload:generic"), "{}", skep.ready);
    skep.log_with("XDP not native: the driver cannot run programs");
    converse(skep.udp[0]);
    let answered = "skep_xdp_packets_total{interface=\"br0\",verdict=\"answered\"}";
    assert_eq!(skep.metrics().value(answered), 1.0);
}
