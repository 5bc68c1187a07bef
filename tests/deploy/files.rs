//! The files of `deploy/`, each before the program that will read it in earnest.
//!
//! Needs kubectl, systemd, nftables and python3-seccomp of Debian, and Python's validators
//! (`.ci/run`). What is missing is said; with `SKEP_REQUIRE_EXTERNAL=1`, a failure.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use skep::sys::identity::UnixUser;

use crate::support::namespaces::{SERVER_V4, ServerNamespace, in_a_namespace};
use crate::support::tcp_clients::Certificate;
use crate::support::{Client, Skep, command, has_io_uring, seeder};
use crate::tools::{
    self, agrees, blocks, deployed, deployed_files, document, documents, have, have_yaml,
    kustomized, lacks, list, rendered, said, text, text_of, verdict,
};

/// The oldest Kubernetes the manifests are for, and the newest that the validator knows.
const KUBERNETES: [&str; 2] = ["1.27", "1.37"];
/// Most exposure of the unit that `systemd-analyze security` may find, in tenths.
const EXPOSURE_TENTHS_MAX: u32 = 15;
/// Debian's Python, the one that python3-seccomp belongs to.
const PYTHON: &str = "/usr/bin/python3";
const PROFILE: &str = "kubernetes/components/io-uring-seccomp/skep-io-uring.json";
const XDP_PROFILE: &str = "kubernetes/components/xdp/skep-xdp.json";
/// The overlay whose pod loads XDP programs.
const XDP: &str = "xdp";
/// Capabilities of its container: two for programs, two to become another user.
const XDP_RIGHTS: [&str; 4] = ["BPF", "NET_ADMIN", "SETGID", "SETUID"];
/// The page with a kustomization for `udp.xdp = "full"`.
const XDP_PAGE: &str = "docs/xdp.md";
/// What that adds to the container.
const XDP_FULL_RIGHTS: [&str; 6] = ["BPF", "IPC_LOCK", "NET_ADMIN", "NET_RAW", "SETGID", "SETUID"];

#[test]
fn yaml_is_tidy() {
    if have(&["yamllint"]) {
        agrees("yamllint", &["--strict", "-c", "deploy/.yamllint", "deploy"]);
    }
}

/// Unknown keys are refused with all else: `skep check` is what a start would do.
#[test]
fn every_configuration_is_accepted() {
    for path in deployed_files(".toml") {
        let output = command().arg("check").arg("--config").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}: {}", path.display(), said(&output).1);
    }
    for page in ["docs/operating.md", "docs/kubernetes.md", XDP_PAGE] {
        for block in blocks(&text_of(page), "toml") {
            let folder = tempfile::tempdir().unwrap();
            let certificate = Certificate::write(folder.path());
            let block = block
                .replace("/etc/skep/tls/fullchain.pem", certificate.certificate.to_str().unwrap())
                .replace("/etc/skep/tls/privkey.pem", certificate.key.to_str().unwrap());
            let path = folder.path().join("skep.toml");
            fs::write(&path, &block).unwrap();
            let output = command().arg("check").arg("--config").arg(&path).output().unwrap();
            assert!(output.status.success(), "{page}: {block}\n{}", said(&output).1);
        }
    }
}

#[test]
fn every_overlay_is_valid_kubernetes() {
    if !have(&["kubectl", "kubernetes-validate"]) || !have_yaml() {
        return;
    }
    for (overlay, rendered) in overlays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("all.yaml").display().to_string();
        fs::write(&file, &rendered).unwrap();
        for version in KUBERNETES {
            let text = agrees("kubernetes-validate", &["--strict", "-k", version, &file]);
            // Schemas of the Prometheus operator are nowhere in the package.
            let warned = text.lines().filter(|it| !it.starts_with("INFO"));
            let odd: Vec<_> = warned.filter(|it| !it.contains("monitoring.coreos.com")).collect();
            assert!(odd.is_empty(), "{overlay}: {odd:?}");
        }
        // The validator has to be one that finds something.
        fs::write(&file, rendered.replacen("livenessProbe", "livenessProbee", 1)).unwrap();
        assert!(!verdict("kubernetes-validate", &["--strict", &file]).0, "{overlay}");
    }
}

#[test]
fn pods_are_as_the_program_needs_them() {
    if !have(&["kubectl"]) || !have_yaml() {
        return;
    }
    for (overlay, rendered) in overlays() {
        let all = documents(&rendered);
        let of_kind = |kind: &'static str| all.iter().filter(move |it| it["kind"] == kind);
        let is_ours = |it: &&Value| it["metadata"]["name"] == "skep";
        let mut pods = of_kind("Deployment").chain(of_kind("DaemonSet")).filter(is_ours);
        let pod = &pods.next().unwrap()["spec"]["template"];
        assert!(pods.next().is_none(), "{overlay}");
        let settings = of_kind("ConfigMap").find_map(|it| it["data"]["skep.toml"].as_str());
        obeys(&overlay, pod, settings.unwrap());
        for service in of_kind("Service") {
            assert_eq!(service["spec"]["externalTrafficPolicy"], "Local", "{service}");
        }
        // A ConfigMap, a Secret or an account of another namespace would not be found.
        let own = if overlay == "own namespace" { "trackers" } else { "skep" };
        for value in all.iter().filter(|it| it["kind"] != "Namespace") {
            assert_eq!(value["metadata"]["namespace"], own, "{overlay}: {value}");
        }
        let mut namespaces = of_kind("Namespace");
        assert_eq!(namespaces.next().unwrap()["metadata"]["name"], own, "{overlay}");
        assert!(namespaces.next().is_none(), "{overlay}");
        outlives_its_pod(&overlay, &pod["spec"], &all);
    }
}

/// The state is on a volume that is there for the next pod, and skep's user may write to it.
fn outlives_its_pod(overlay: &str, pod: &Value, all: &[Value]) {
    let volumes = list(&pod["volumes"]);
    let state = volumes.iter().find(|volume| volume["name"] == "state").unwrap();
    assert_eq!(state.as_object().unwrap().len(), 2, "{overlay}: one source and a name: {state}");
    if pod["hostNetwork"] == true {
        assert_eq!(state["hostPath"]["type"], "DirectoryOrCreate", "{overlay}: {state}");
        let script = text(&pod["initContainers"][0]["command"][2]);
        let user = &pod["securityContext"]["runAsUser"];
        assert!(script.contains(&format!("chown {user}:{user} /var/lib/skep/state")), "{script}");
        return;
    }
    let claim = text(&state["persistentVolumeClaim"]["claimName"]);
    let mut claims = all.iter().filter(|value| value["kind"] == "PersistentVolumeClaim");
    assert!(claims.any(|value| value["metadata"]["name"] == claim), "{overlay}: {claim}");
    let fs_group = &pod["securityContext"]["fsGroup"];
    assert_eq!(*fs_group, pod["securityContext"]["runAsGroup"], "{overlay}");
}

/// A page's examples are what somebody copies.
#[test]
fn every_example_of_a_kustomization_renders() {
    if !have(&["kubectl"]) || !have_yaml() {
        return;
    }
    let pages = ["docs/kubernetes.md", XDP_PAGE];
    let blocks: Vec<_> = pages.iter().flat_map(|page| blocks(&text_of(page), "yaml")).collect();
    assert!(blocks.len() >= 6, "{blocks:?}");
    for block in blocks {
        let text = kustomized(&block.replace("../skep/deploy/kubernetes", "DEPLOYED"));
        let all = documents(&text);
        // A patch without a target that exists is passed over in silence.
        for patch in documents(&block).iter().flat_map(|value| list(&value["patches"])) {
            for value in values_of(patch) {
                assert!(text.contains(value), "{value} is not in\n{text}");
            }
        }
        if block.contains("monitoring.coreos.com") {
            let is_watched = |value: &&Value| value["apiVersion"] == "monitoring.coreos.com/v1";
            let watched: Vec<_> = all.iter().filter(is_watched).collect();
            assert_eq!(watched.len(), 2);
            for value in watched {
                assert_eq!(value["metadata"]["labels"]["release"], "kube-prometheus-stack");
            }
        }
    }
}

/// The values of a patch, less comments and what names a place.
fn values_of(patch: &Value) -> Vec<&str> {
    let lines = text(&patch["patch"]).lines().filter(|line| {
        !line.contains("op: ") && !line.contains("path: /spec") && !line.contains("path: /meta")
    });
    let lines = lines.map(|line| line.split(" #").next().unwrap());
    let values = lines.filter_map(|line| line.split_whitespace().last());
    values.filter(|value| !value.ends_with(':')).collect()
}

/// Memory, drain, probes and rights of a pod, and what its variables set.
fn obeys(overlay: &str, pod: &Value, settings: &str) {
    let container = &pod["spec"]["containers"][0];
    let settings: toml::Table = settings.parse().unwrap();
    let max_memory = settings["memory"]["max_memory"].as_str().unwrap();
    let limit = text(&container["resources"]["limits"]["memory"]);
    let mebibytes = |text: &str, unit: &str| text.strip_suffix(unit)?.parse::<u64>().ok();
    let (limit, most) = (mebibytes(limit, "Mi"), mebibytes(max_memory, "GiB"));
    assert_eq!(limit.unwrap() * 4, most.unwrap() * 1024 * 5, "{overlay}: 1.25 × max_memory");
    assert!(container["resources"]["limits"]["cpu"].is_null(), "{overlay}: throttles");
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap();
    let drain = settings["server"]["drain_s"].as_integer().unwrap();
    assert!(grace >= drain + 10, "{overlay}: killed while it drains, or writes");
    for (probe, page) in
        [("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    {
        assert_eq!(container[probe]["httpGet"]["path"], page, "{overlay}");
        assert_eq!(container[probe]["httpGet"]["port"], "admin", "{overlay}");
        let failures = container[probe]["failureThreshold"].as_u64().unwrap();
        assert!(failures >= 3, "{overlay}: {probe}: one late response is not an outage");
    }
    is_out_of_reach(overlay, &pod["spec"]);
    let (outer, inner) = (&pod["spec"]["securityContext"], &container["securityContext"]);
    assert_eq!(outer["runAsNonRoot"], true, "{overlay}");
    assert_ne!(outer["seccompProfile"]["type"], "Unconfined", "{overlay}");
    assert_eq!(inner["readOnlyRootFilesystem"], true, "{overlay}");
    assert_eq!(inner["allowPrivilegeEscalation"], false, "{overlay}");
    assert_eq!(inner["capabilities"]["drop"][0], "ALL", "{overlay}");
    has_no_more_rights(overlay, container);
    let variables = list(&container["env"]).iter().map(|json| {
        let value = match text_or_field(json, container) {
            Some(value) => value.replace("$(POD_IP)", "192.0.2.1"),
            None => "made-up-for-this-test".to_owned(),
        };
        (text(&json["name"]), value)
    });
    accepts(variables.filter(|(name, _)| name.starts_with("SKEP__")));
    let workers = list(&container["env"]).iter().find(|it| it["name"] == "SKEP__SERVER__WORKERS");
    let cores = &container["resources"]["requests"]["cpu"];
    assert_eq!(text_or_field(workers.unwrap(), container).unwrap(), text(cores), "{overlay}");
}

/// Capabilities of the container: none, or those that XDP programs take, and that the process drops
/// when it becomes the pod's own user.
fn has_no_more_rights(overlay: &str, container: &Value) {
    let inner = &container["securityContext"];
    let variable = |name: &str| {
        let found = list(&container["env"]).iter().find(|variable| variable["name"] == name);
        found.map(|variable| text(&variable["value"]))
    };
    let Some(xdp) = variable("SKEP__UDP__XDP") else {
        assert!(inner["capabilities"]["add"].is_null(), "{overlay}: {inner}");
        assert!(inner["runAsUser"].is_null(), "{overlay}: {inner}");
        return;
    };
    let (expected, rights) = match overlay {
        XDP | "own namespace" => ("offload", &XDP_RIGHTS[..]),
        "full" => ("full", &XDP_FULL_RIGHTS[..]),
        _ => panic!("{overlay}: {xdp}"),
    };
    assert_eq!(xdp, expected, "{overlay}");
    let added: Vec<_> = list(&inner["capabilities"]["add"]).iter().map(text).collect();
    assert_eq!(added, rights, "{overlay}");
    assert_eq!((&inner["runAsUser"], variable("SKEP__SERVER__USER")), (&0.into(), Some("65532")));
}

/// The value of a variable, where the manifest or the container's resources have it.
fn text_or_field(variable: &Value, container: &Value) -> Option<String> {
    let field = &variable["valueFrom"]["resourceFieldRef"];
    let Some((kind, resource)) = field["resource"].as_str().and_then(|it| it.split_once('.'))
    else {
        return variable["value"].as_str().map(str::to_owned);
    };
    assert_eq!(field["divisor"], "1", "{field}");
    Some(text(&container["resources"][kind][resource]).to_owned())
}

/// On the host's network, where no network policy applies, the admin listener is on loopback unless
/// the component for that is asked for; probes ask where it is, and a variable is made of those
/// before it.
fn is_out_of_reach(overlay: &str, pod: &Value) {
    let container = &pod["containers"][0];
    let variables = list(&container["env"]);
    let at = |name: &str| variables.iter().position(|it| it["name"] == name).unwrap();
    let listen = text(&variables[at("SKEP__ADMIN__LISTEN")]["value"]);
    let is_local = pod["hostNetwork"] == true && overlay != "monitoring";
    assert_eq!(listen, if is_local { "127.0.0.1:6970" } else { "$(POD_IP):6970" }, "{overlay}");
    assert!(is_local || at("POD_IP") < at("SKEP__ADMIN__LISTEN"), "{overlay}: {variables:?}");
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let host = container[probe]["httpGet"]["host"].as_str();
        assert_eq!(host, is_local.then_some("127.0.0.1"), "{overlay} {probe}");
    }
}

/// Checks that variables name settings, and with values they can have.
fn accepts<'a>(variables: impl Iterator<Item = (&'a str, String)>) {
    let variables: Vec<_> = variables.collect();
    assert!(!variables.is_empty());
    let output = command().arg("check").envs(variables.clone()).output().unwrap();
    assert!(output.status.success(), "{variables:?}: {}", said(&output).1);
}

fn have_seccomp() -> bool {
    let has_library = Command::new(PYTHON).args(["-c", "import seccomp"]).output();
    has_library.is_ok_and(|it| it.status.success()) || lacks("python3-seccomp")
}

#[test]
fn the_seccomp_profile_allows_rings_and_little_else() {
    if !have_seccomp() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let mut command = under_profile(&["io_uring_setup"]);
    command.env("STATE_DIRECTORY", state.path());
    let without_rings = Skep::spawn(command);
    assert_eq!(without_rings.ready_value("io"), "mmsg");
    // It can be taken over, which takes a file in memory.
    assert!(state.path().join("handover.sock").exists(), "{}", without_rings.log());
    let log = without_rings.log_with("WARN io_uring not used, serving with recvmmsg");
    assert!(log.contains("error=io_uring is not usable: a seccomp profile denies it"), "{log}");
    let info = "skep_io_backend_info{backend=\"mmsg\",reason=\"seccomp\"}";
    assert_eq!(without_rings.metrics().value(info), 1.0, "{}", without_rings.metrics().text);
    if has_io_uring() {
        assert_eq!(Skep::spawn(under_profile(&[])).ready_value("io"), "uring");
    }
    assert!(filtered(PROFILE, &[]).args(["/usr/bin/env", "true"]).status().unwrap().success());
    for space in ["--user", "--net", "--mount"] {
        let tried =
            filtered(PROFILE, &[]).args(["/usr/bin/env", "unshare", space, "true"]).output();
        assert!(!tried.unwrap().status.success(), "{space}");
    }
}

/// The profile for XDP is the other one with what XDP takes, which takes capabilities besides.
#[test]
fn the_seccomp_profile_for_xdp_has_bpf_rtnetlink_and_af_xdp_besides() {
    let read = |path: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(deployed(path)).unwrap()).unwrap()
    };
    let (own, mut other) = (read(XDP_PROFILE), read(PROFILE));
    let (calls, shared) = (list(&own["syscalls"]), list(&other["syscalls"]).len());
    let (_, more) = calls.split_at(shared);
    let names: Vec<_> = more.iter().map(|entry| text(&entry["names"][0])).collect();
    assert_eq!(names, [&["socket"; 2][..], &["bpf"; 7]].concat());
    let families: Vec<_> = more[..2].iter().map(|it| &it["args"][0]["value"]).collect();
    assert_eq!(families, [libc::AF_NETLINK, libc::AF_XDP]);
    for entry in more {
        assert_eq!(entry["args"][0]["op"], "SCMP_CMP_EQ", "one command of a call: {entry}");
    }
    other["syscalls"].as_array_mut().unwrap().extend_from_slice(more);
    assert_eq!(own, other);
}

/// Root with the capabilities of the container and no others, under its profile.
#[test]
fn the_container_for_xdp_loads_programs_and_becomes_the_user_of_the_pod() {
    const NAME: &str = "the_container_for_xdp_loads_programs_and_becomes_the_user_of_the_pod";
    if !have(&["setpriv", "unshare", "ip", "ethtool"]) || !have_seccomp() {
        return;
    }
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    // Nobody has had the queue before: the kernel frees one some time after its socket is closed.
    let namespace = ServerNamespace::new();
    tries_the_container(&namespace, "full", &XDP_FULL_RIGHTS);
    tries_the_container(&namespace, "offload", &XDP_RIGHTS);
}

fn tries_the_container(namespace: &ServerNamespace, xdp: &str, rights: &[&str]) {
    const USER: u32 = 65532;
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
    let state = top.path().join("state");
    DirBuilder::new().mode(0o700).create(&state).unwrap();
    chown(&state, Some(USER), Some(USER)).unwrap();
    let rights: Vec<_> = rights.iter().map(|name| format!("+{}", name.to_lowercase())).collect();
    let rights = rights.join(",");
    let filtered = filtered(XDP_PROFILE, &[]);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", &format!("-all,{rights}")]).arg(filtered.get_program());
    command.args(filtered.get_args()).arg(env!("CARGO_BIN_EXE_skep")).args(["--workers", "1"]);
    command.args(["--listen", &format!("{SERVER_V4}:0"), "--admin", &format!("{SERVER_V4}:0")]);
    command.env("STATE_DIRECTORY", &state).env("SKEP__UDP__XDP", xdp);
    command.env("SKEP__SERVER__USER", USER.to_string());
    let skep = Skep::spawn(namespace.within(&command));
    let attached = format!(" xdp=s0:{xdp}:generic");
    assert!(skep.ready.contains(&attached), "{}\n{}", skep.ready, skep.log());
    Client::connect(skep.udp[0]).announce(&seeder(1, 4001));
    let answered = "skep_xdp_packets_total{interface=\"s0\",verdict=\"answered\"}";
    assert_eq!(skep.metrics().value(answered), 1.0);
    let status = fs::read_to_string(format!("/proc/{}/status", skep.id())).unwrap();
    let has = |line: &str| status.lines().any(|it| it == line);
    assert!(has(&format!("Uid:\t{}", [USER.to_string().as_str(); 4].join("\t"))), "{status}");
    assert!(has("CapEff:\t0000000000000000") && has("Seccomp:\t2"), "{status}");
    assert!(state.join("handover.sock").exists(), "{}", skep.log());
}

/// The image is empty: what it would change to is a number, and no file says whose.
#[test]
fn a_user_is_a_number_in_an_image_without_users() {
    if !UnixUser::can_change() {
        return eprintln!("skipped: this is not root");
    }
    let image = crate::pods::skep();
    let check = |user: &str| {
        let mut check = Command::new("chroot");
        check.arg(image.path()).args(["/skep", "check"]).env("SKEP__SERVER__USER", user);
        said(&check.output().unwrap())
    };
    let (is_valid, text) = check("65532");
    assert!(is_valid, "{text}");
    let (is_valid, text) = check("nobody");
    assert!(!is_valid && text.contains("there is no user nobody"), "{text}");
}

/// skep under the profile, less some calls.
fn under_profile(without: &[&str]) -> Command {
    let mut command = filtered(PROFILE, without);
    command.args([env!("CARGO_BIN_EXE_skep"), "--listen", "127.0.0.1:0", "--workers", "2"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SKEP_") {
            command.env_remove(name);
        }
    }
    command
}

/// The start of a command that runs a program under a profile, less some calls.
fn filtered(profile: &str, without: &[&str]) -> Command {
    let mut command = Command::new(PYTHON);
    command.arg(Path::new(tools::ROOT).join("tests/deploy/under_seccomp.py"));
    for name in without {
        command.args(["--without", name]);
    }
    command.arg(deployed(profile));
    command
}

#[test]
fn the_image_and_its_company_are_well_described() {
    if have(&["hadolint"]) {
        agrees("hadolint", &["deploy/container/Dockerfile"]);
    }
    if !have(&["check-jsonschema"]) || !have_yaml() {
        return;
    }
    let file = "deploy/container/compose.yaml";
    agrees("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", file]);
    let compose = document(file);
    let skep = &compose["services"]["skep"];
    assert_eq!(skep["network_mode"], "host");
    assert_eq!(skep["read_only"], true);
    assert_eq!(skep["mem_limit"], "1280M");
    let environment = skep["environment"].as_object().unwrap();
    assert_eq!(environment["SKEP__MEMORY__MAX_MEMORY"], "1GiB", "the limit is 1.25 times that");
    accepts(environment.iter().map(|(name, value)| (name.as_str(), text(value).to_owned())));
    for service in compose["services"].as_object().unwrap().values() {
        for volume in list(&service["volumes"]).iter().map(text).filter(|it| it.starts_with("..")) {
            let (here, _) = volume.split_once(':').unwrap();
            assert!(deployed("container").join(here).exists(), "{volume}");
        }
    }
}

/// A build that lacks a file at the root fails in the image only, which few build by hand.
#[test]
fn the_image_is_built_with_every_file_that_a_build_reads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sent = fs::read_to_string(root.join("deploy/container/Dockerfile.dockerignore")).unwrap();
    let names = ["Cargo.toml", "Cargo.lock", "askama.toml", "src", "loadtest", "docs/operating.md"];
    for name in names {
        assert!(root.join(name).exists(), "{name}");
        assert!(sent.lines().any(|line| line == format!("!{name}")), "{name} is not sent");
    }
}

#[test]
fn systemd_takes_the_units_and_trusts_them() {
    if !have(&["systemd-analyze", "systemd-sysusers", "systemd-tmpfiles"]) {
        return;
    }
    let unit = deployed("systemd/skep.service").display().to_string();
    let threshold = format!("--threshold={EXPOSURE_TENTHS_MAX}");
    agrees("systemd-analyze", &["security", "--offline=true", &threshold, &unit]);
    for drop_ins in [
        &[][..],
        &["shared-key.conf"],
        &["low-ports.conf"],
        &["xdp.conf"],
        &["xdp.conf", "xdp-full.conf"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let installed = text_of("deploy/systemd/skep.service")
            .replace("/usr/local/bin/skep", env!("CARGO_BIN_EXE_skep"));
        fs::write(folder.path().join("skep.service"), installed).unwrap();
        let socket = folder.path().join("skep.socket");
        fs::copy(deployed("systemd/skep.socket"), socket).unwrap();
        let beside = folder.path().join("skep.service.d");
        fs::create_dir(&beside).unwrap();
        for name in drop_ins {
            fs::copy(deployed("systemd").join(name), beside.join(name)).unwrap();
        }
        let file = |name: &str| folder.path().join(name).display().to_string();
        let text =
            agrees("systemd-analyze", &["verify", &file("skep.service"), &file("skep.socket")]);
        assert_eq!(text, "", "{drop_ins:?}");
    }
    an_account_and_a_folder_come_of_it();
}

fn an_account_and_a_folder_come_of_it() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let inside = format!("--root={}", root.path().display());
    let file = |name: &str| deployed("systemd").join(name).display().to_string();
    if !fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0) {
        return; // only root can give a folder to an account
    }
    agrees("systemd-sysusers", &[&inside, &file("skep.sysusers")]);
    agrees("systemd-tmpfiles", &[&inside, "--create", &file("skep.tmpfiles")]);
    let accounts = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(accounts.starts_with("skep:x:") && accounts.contains("nologin"), "{accounts}");
    assert!(root.path().join("etc/skep").is_dir());
}

/// The settings of drop-ins are settings, too.
#[test]
fn drop_ins_set_what_there_is() {
    let credential = tempfile::NamedTempFile::new().unwrap();
    fs::write(credential.path(), "ab".repeat(32)).unwrap();
    let mut variables = Vec::new();
    for path in deployed_files(".conf") {
        let text = fs::read_to_string(path).unwrap();
        for line in text.lines().filter_map(|it| it.strip_prefix("Environment=")) {
            let (name, _) = line.split_once('=').unwrap();
            variables.push((name.to_owned(), credential.path().display().to_string()));
        }
    }
    accepts(variables.iter().map(|(name, value)| (name.as_str(), value.clone())));
}

#[test]
fn kernel_settings_exist() {
    let text = text_of("deploy/systemd/99-skep.conf");
    let settings: Vec<_> =
        text.lines().filter(|it| !it.is_empty() && !it.starts_with('#')).collect();
    assert!(settings.len() >= 4, "{settings:?}");
    for setting in settings {
        let (name, value) = setting.split_once(" = ").unwrap();
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        let now: u64 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let wanted: u64 = value.parse().unwrap();
        assert!(wanted > 0 && now > 0, "{setting}");
    }
}

/// In a network namespace of its own: it is loaded twice, and nothing of it reaches this host.
#[test]
fn nftables_takes_the_rules_twice() {
    if !have(&["nft", "unshare"]) {
        return;
    }
    let rules = deployed("systemd/skep.nft").display().to_string();
    let twice = format!("{NFT} -f {rules} && {NFT} -f {rules} && {NFT} list ruleset");
    let isolated = ["--map-root-user", "--net", "sh", "-c", &twice];
    let (content, text) = verdict("unshare", &isolated);
    assert!(content, "{text}");
    assert_eq!(text.matches("notrack").count(), 2, "{text}");
}

/// Where Debian has it; not in everybody's PATH.
const NFT: &str = "/usr/sbin/nft";

/// What each overlay renders to; the first with the monitoring, which is a component; and the one
/// with most parts in a namespace of its own.
fn overlays() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for folder in ["hostnetwork-daemonset", "loadbalancer", "io-uring-seccomp", XDP] {
        all.push((folder.to_owned(), rendered(folder)));
    }
    let count = fs::read_dir(deployed("kubernetes/overlays")).unwrap().count();
    assert_eq!(count, all.len(), "an overlay is not tried");
    let text = kustomized(
        "resources: [DEPLOYED/overlays/hostnetwork-daemonset]\n\
         components: [DEPLOYED/components/monitoring, DEPLOYED/components/hostnetwork-metrics]\n",
    );
    for kind in ["PodMonitor", "PrometheusRule", "ConfigMap"] {
        assert!(text.contains(&format!("kind: {kind}\n")), "{kind}");
    }
    all.push(("monitoring".to_owned(), text));
    let own = "namespace: trackers\nresources: [DEPLOYED/overlays/xdp]\n";
    all.push(("own namespace".to_owned(), kustomized(own)));
    let full = &blocks(&text_of(XDP_PAGE), "yaml")[0];
    let full = kustomized(&full.replace("../skep/deploy/kubernetes", "DEPLOYED"));
    all.push(("full".to_owned(), full));
    let balanced = "resources: [DEPLOYED/overlays/loadbalancer]\n\
                    components: [DEPLOYED/components/io-uring-seccomp]\n";
    all.push(("loadbalancer with io_uring".to_owned(), kustomized(balanced)));
    all
}
