//! TLS as docs/operating.md has it: the certbot hook, the settings, the unit's right to port 443.
//!
//! Needs root, setpriv and unshare (util-linux), and ip (iproute2). What is missing is named; with
//! `SKEP_REQUIRE_EXTERNAL=1`, a missing program is a failure.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use skep::sys::identity::UnixUser;

use crate::support::Skep;
use crate::support::tcp_clients::Certificate;
use crate::tools::{agrees, blocks, deployed, have, program, text_of};

/// User and group of the tracker: nobody and nogroup.
const USER: u32 = 65534;

/// Writes a certificate as certbot keeps it, for root alone, and has the hook copy it.
fn renew(lineage: &Path, folder: &Path) {
    let certificate = Certificate::write(lineage);
    fs::rename(certificate.certificate, lineage.join("fullchain.pem")).unwrap();
    fs::rename(certificate.key, lineage.join("privkey.pem")).unwrap();
    fs::set_permissions(lineage, fs::Permissions::from_mode(0o700)).unwrap();
    let mut hook = Command::new(deployed("certbot/skep"));
    hook.env("RENEWED_LINEAGE", lineage).env("SKEP_TLS_FOLDER", folder);
    let status = hook.env("SKEP_TLS_GROUP", USER.to_string()).status();
    assert!(status.unwrap().success());
}

/// The settings of the page, with another folder.
fn settings(folder: &Path) -> String {
    let page = text_of("docs/operating.md");
    let block = blocks(&page, "toml").into_iter().find(|it| it.contains("[tls]")).unwrap();
    assert!(block.contains("0.0.0.0:443"), "{block}");
    block.replace("/etc/skep/tls", folder.to_str().unwrap())
}

/// What low-ports.conf lets the unit do, as setpriv writes it.
fn capability() -> String {
    let unit = text_of("deploy/systemd/low-ports.conf");
    let of = |key: &str| {
        let value = unit.lines().find_map(|it| it.strip_prefix(key)).unwrap();
        value.strip_prefix("CAP_").unwrap().to_lowercase()
    };
    let capability = of("AmbientCapabilities=");
    assert_eq!(capability, of("CapabilityBoundingSet="));
    format!("+{capability}")
}

#[test]
fn the_hook_leaves_other_certificates_alone_and_needs_certbots_variable() {
    let folder = tempfile::tempdir().unwrap();
    let hook = |lineage: Option<&str>| {
        let mut hook = Command::new(deployed("certbot/skep"));
        hook.env("SKEP_TLS_FOLDER", folder.path().join("tls")).env("SKEP_TLS_NAME", "tracker");
        lineage.map(|it| hook.env("RENEWED_LINEAGE", it));
        hook.status().unwrap().success()
    };
    assert!(!hook(None));
    assert!(hook(Some("/etc/letsencrypt/live/mail")));
    assert!(!folder.path().join("tls").exists());
    assert!(!hook(Some("/nowhere/tracker")), "there is nothing to copy");
}

/// A process without root that may bind low ports and nothing else, as the unit's is, in a network
/// of its own where port 443 is free.
#[test]
fn the_recipe_serves_port_443_and_takes_renewed_certificates() {
    if !have(&["setpriv", "unshare", "ip"]) {
        return;
    }
    if !UnixUser::can_change() {
        return eprintln!("skipped: this is not root");
    }
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (lineage, folder) = (top.path().join("live"), top.path().join("tls"));
    let (state, skep) = (top.path().join("state"), top.path().join("skep"));
    [&lineage, &state].iter().for_each(|it| fs::create_dir(it).unwrap());
    std::os::unix::fs::chown(&state, Some(USER), Some(USER)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_skep"), &skep).unwrap();
    renew(&lineage, &folder);
    for (path, mode) in [(folder.clone(), 0o750), (folder.join("privkey.pem"), 0o640)] {
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (mode, 0, USER));
    }
    let config = top.path().join("skep.toml");
    fs::write(&config, settings(&folder)).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    let (user, capability) = (USER.to_string(), capability());
    let mut command = program("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh", "setpriv"]);
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"]);
    command.args(["--inh-caps", &format!("-all,{capability}")]);
    command.args(["--ambient-caps", &format!("-all,{capability}")]);
    command.args(["--bounding-set", &format!("-all,{capability}")]);
    command.arg(&skep).arg("--config").arg(&config).args(["--workers", "1"]);
    command.args(["--listen", "127.0.0.1:0"]).env("STATE_DIRECTORY", &state);
    let skep = Skep::spawn(command);
    assert!(skep.tls.iter().all(|it| it.port() == 443) && !skep.tls.is_empty(), "{}", skep.ready);
    renew(&lineage, &folder);
    let log = skep.log_with("TLS certificate reloaded");
    assert!(!log.contains("not reloaded"), "{log}");
}

#[test]
fn the_hook_is_a_shell_script_that_a_package_may_install() {
    let hook = deployed("certbot/skep");
    assert_eq!(hook.metadata().unwrap().mode() & 0o111, 0o111);
    agrees("sh", &["-n", hook.to_str().unwrap()]);
}
