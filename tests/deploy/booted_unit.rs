//! The shipped unit under a booted systemd: installed, on port 443, killed and stopped, by the
//! commands of docs/operating.md. Needs root.

use crate::booted::Booted;
use crate::support::eventually;
use crate::tools::{blocks, have, text_of};

/// Where certbot keeps the certificate of the page.
const LINEAGE: &str = "/etc/letsencrypt/live/tracker.example.org";

/// The only block of a language in the page that an operator follows that has this text.
fn block(language: &str, text: &str) -> String {
    block_of("docs/operating.md", language, text)
}

/// The only block of a language in a page that has this text.
fn block_of(page: &str, language: &str, text: &str) -> String {
    let all: Vec<_> =
        blocks(&text_of(page), language).into_iter().filter(|it| it.contains(text)).collect();
    assert_eq!(all.len(), 1, "{text}: {all:?}");
    all.into_iter().next().unwrap()
}

/// A host on which the unit was installed, and runs. `None`: none can be booted here.
fn installed() -> Option<Booted> {
    let host = Booted::boot()?;
    for line in block("sh", "systemctl enable --now skep\n").lines() {
        // In namespaces some of the kernel's settings cannot be set.
        let may_fail = line == "sysctl --system";
        let (code, text) = host.run(line);
        assert!(code == 0 || may_fail, "$ {line}\n{text}");
    }
    assert_eq!(host.succeed("systemctl is-active skep").trim(), "active");
    Some(host)
}

/// The process that systemd calls the main one of the unit.
fn main_process(host: &Booted) -> String {
    host.succeed("systemctl show --property MainPID --value skep").trim().to_owned()
}

/// The UDP sockets of port 6969, by inode.
fn sockets(host: &Booted) -> String {
    host.succeed("awk '$2 ~ /:1B39$/ { print $10 }' /proc/net/udp /proc/net/udp6 | sort")
}

/// Waits until the journal of skep's own lines has a text; returns all of them.
fn journal_with(host: &Booted, text: &str) -> String {
    let mut journal = String::new();
    eventually(text, || {
        journal = host.succeed("journalctl -t skep -o cat --no-pager");
        journal.contains(text)
    });
    journal
}

#[test]
fn the_unit_gets_port_443_and_renewed_certificates_by_the_commands_of_the_page() {
    if !have(&["openssl"]) {
        return;
    }
    let Some(host) = installed() else { return };
    let certificate = |serial: u32| {
        let subject =
            "-subj /CN=tracker.example.org -addext subjectAltName=DNS:tracker.example.org";
        host.succeed(&format!(
            "mkdir -p {LINEAGE} && chmod 0700 /etc/letsencrypt/live && umask 077 && openssl req \
             -x509 -newkey rsa:2048 -nodes -days 90 -set_serial {serial} {subject} \
             -keyout {LINEAGE}/privkey.pem -out {LINEAGE}/fullchain.pem 2>/dev/null"
        ));
    };
    certificate(1);
    host.succeed("echo 127.0.0.1 tracker.example.org > /etc/hosts");
    for line in block("sh", "certbot certonly").lines().filter(|it| !it.starts_with("certbot ")) {
        host.succeed(line);
    }
    let settings = block("toml", "[tls]\n");
    // The page has three settings of a section that the installed file has already.
    for line in settings.lines().filter(|it| it.contains(" = ")) {
        let (key, _) = line.split_once(" = ").unwrap();
        let edit = format!("sed -i '/^\\[tls\\]/,/^\\[/s|^{key} = .*|{line}|' /etc/skep/skep.toml");
        host.succeed(&edit);
        host.succeed(&format!("grep -Fx '{line}' /etc/skep/skep.toml"));
    }
    for line in block("sh", "skep probe https://").lines() {
        let line = line.replace("skep probe", &format!("skep probe --ca {LINEAGE}/fullchain.pem"));
        host.succeed(&line);
    }
    let owner = "stat -c '%U %G %a' /etc/skep/tls/fullchain.pem /etc/skep/tls/privkey.pem";
    assert_eq!(host.succeed(owner), "root skep 640\nroot skep 640\n");
    certificate(2);
    host.succeed(&format!("RENEWED_LINEAGE={LINEAGE} /etc/letsencrypt/renewal-hooks/deploy/skep"));
    let journal = journal_with(&host, "TLS certificate reloaded");
    assert!(!journal.contains("not reloaded"), "{journal}");
    let served = "openssl s_client -connect 127.0.0.1:443 -servername tracker.example.org \
                  < /dev/null 2>/dev/null | openssl x509 -noout -serial";
    assert_eq!(host.succeed(served).trim(), "serial=02");
    // What the unit may do beyond its sandbox is that alone.
    let capabilities = host.succeed(&format!("grep Cap /proc/{}/status", main_process(&host)));
    let effective = capabilities.lines().find_map(|it| it.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(u64::from_str_radix(effective, 16).unwrap(), 1 << 10, "CAP_NET_BIND_SERVICE");
}

#[test]
fn the_unit_outlives_a_kill_keeps_its_swarms_and_stops_at_a_signal() {
    let Some(host) = installed() else { return };
    let probe = "skep probe udp://127.0.0.1:6969 http://127.0.0.1:6969/announce";
    host.succeed(probe);
    host.succeed("systemctl reload skep");
    journal_with(&host, "reloaded");
    let (first, kept) = (main_process(&host), sockets(&host));
    assert!(!kept.is_empty());
    host.succeed("systemctl kill --signal KILL skep");
    eventually("another process has taken its place", || {
        let next = main_process(&host);
        next != first && next != "0" && host.run("systemctl is-active skep").0 == 0
    });
    host.succeed(probe);
    assert_eq!(host.succeed("systemctl show --property NRestarts --value skep").trim(), "1");
    assert_eq!(sockets(&host), kept, "systemd kept the sockets, and no others were bound");
    host.succeed("systemctl stop skep");
    assert!(journal_with(&host, "last snapshot saved").contains("stopping: SIGTERM received"));
    assert_eq!(host.succeed("systemctl show --property Result --value skep").trim(), "success");
    // A fault of the settings ends the unit with its text in the log, and is not tried again.
    host.succeed("sed -i 's/^interval_s = .*/interval_s = 0/' /etc/skep/skep.toml");
    assert_ne!(host.run("systemctl start skep").0, 0);
    journal_with(&host, "tracker.interval_s: 0 is out of bounds");
    assert_eq!(host.run("systemctl is-failed skep").1.trim(), "failed");
    assert_eq!(host.succeed("systemctl show --property ExecMainStatus --value skep").trim(), "2");
}

/// A network of the booted host with another one at its other end, over a pair of virtual cards.
/// They have one queue: the limit on locked memory that this process has may be that of one socket.
const NETWORK: &str = "ip link add skep0 numrxqueues 1 numtxqueues 1 type veth peer name client0 \
                       numrxqueues 1 numtxqueues 1 && ip netns add client && \
                       ip link set client0 netns client && \
                       ip address add 192.0.2.1/24 dev skep0 && ip link set skep0 up && \
                       ip route add default via 192.0.2.2 && \
                       ip -n client address add 192.0.2.2/24 dev client0 && \
                       ip -n client link set client0 up && \
                       ip netns exec client ethtool -K client0 tx off";

#[test]
fn the_unit_with_its_drop_in_answers_connects_in_the_kernel_and_keeps_to_its_rights() {
    if !have(&["ip", "ethtool"]) {
        return;
    }
    let Some(host) = installed() else { return };
    host.succeed(NETWORK);
    for (key, value) in [("xdp", "offload"), ("xdp_mode", "generic")] {
        let edit = format!("s|^{key} = .*|{key} = \"{value}\"|");
        host.succeed(&format!("sed -i '{edit}' /etc/skep/skep.toml"));
    }
    host.succeed("systemctl restart skep");
    let journal = journal_with(&host, "XDP not in use");
    assert!(journal.contains("deploy/systemd/xdp.conf"), "{journal}");
    let commands = block_of("docs/xdp.md", "sh", "systemd/xdp.conf");
    let (doctor, changes): (Vec<_>, Vec<_>) =
        commands.lines().partition(|line| line.contains(" skep doctor "));
    for line in changes {
        host.succeed(line);
    }
    journal_with(&host, "xdp=skep0:offload:generic");
    host.succeed("ip netns exec client skep probe udp://192.0.2.1:6969");
    let metrics = host.succeed("curl -s http://127.0.0.1:6970/metrics");
    let has = |series: &str| metrics.lines().any(|line| line == series);
    assert!(has("skep_xdp_attached{interface=\"skep0\"} 1"), "{metrics}");
    let answered = "skep_xdp_packets_total{interface=\"skep0\",verdict=\"answered\"} 1";
    assert!(has(answered), "{metrics}");
    let capabilities = host.succeed(&format!("grep Cap /proc/{}/status", main_process(&host)));
    let effective = capabilities.lines().find_map(|it| it.strip_prefix("CapEff:\t")).unwrap();
    let expected = 1 << 39 | 1 << 12;
    assert_eq!(u64::from_str_radix(effective, 16).unwrap(), expected, "CAP_BPF, CAP_NET_ADMIN");
    let found = host.run(doctor[0]).1;
    assert!(found.contains("the running tracker has it on skep0"), "{found}");
    host.succeed("systemctl kill --signal KILL skep");
    eventually("the program is gone with its process, and attached by the next", || {
        let journal = host.succeed("journalctl -t skep -o cat --no-pager");
        journal.matches("xdp=skep0:offload:generic").count() == 2
    });
    host.succeed("ip netns exec client skep probe udp://192.0.2.1:6969");
    has_af_xdp_sockets_by_the_other_drop_in(&host);
}

fn has_af_xdp_sockets_by_the_other_drop_in(host: &Booted) {
    // Rings of io_uring would count against the limit on locked memory as well.
    for (key, value) in [("xdp", "full"), ("io", "mmsg")] {
        host.succeed(&format!("sed -i 's|^{key} = .*|{key} = \"{value}\"|' /etc/skep/skep.toml"));
    }
    for line in block_of("docs/xdp.md", "sh", "systemd/xdp-full.conf").lines() {
        host.succeed(line);
    }
    eventually("announces are redirected to a socket", || {
        host.run("ip netns exec client skep probe udp://192.0.2.1:6969");
        let metrics = host.run("curl -s http://127.0.0.1:6970/metrics").1;
        let redirected = "skep_xdp_packets_total{interface=\"skep0\",verdict=\"redirected\"} ";
        let counted = metrics.lines().find_map(|line| line.strip_prefix(redirected));
        counted.is_some_and(|it| it != "0")
    });
    let capabilities = host.succeed(&format!("grep CapEff /proc/{}/status", main_process(host)));
    let effective = capabilities.trim().trim_start_matches("CapEff:\t");
    let expected = 1 << 39 | 1 << 13 | 1 << 12;
    assert_eq!(u64::from_str_radix(effective, 16).unwrap(), expected, "CAP_NET_RAW as well");
}
