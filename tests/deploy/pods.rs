//! The pods of `deploy/kubernetes` as containers: podman tries what the manifests state. It reads
//! the YAML that a kubelet reads, with an image made of the program under test.
//!
//! This is not a cluster. `docs/kubernetes.md` lists what it cannot show, and what it needs. A host
//! on which no container runs, itself a container perhaps, is the only one that skips these tests
//! even where every program is asked for.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Client, Metrics, eventually, has_io_uring, http_ask, http_get, leecher, seeder,
};
use crate::tools::{agrees, documents, have, have_yaml, lacks, program, rendered, said, text};

/// The user that the manifests name.
const USER: u32 = 65532;
/// Seconds that a pod gets to end: its `terminationGracePeriodSeconds`.
const GRACE_S: i64 = 30;
/// Programs that the scripts of init containers call.
const APPLETS: [&str; 6] = ["chown", "cp", "mkdir", "mv", "sh", "sleep"];
/// What keeps a pod's namespaces open, and ends when it is asked to.
const PAUSE: &str = "trap 'exit 0' TERM INT; while :; do sleep 1000 & wait $!; done";

/// podman with images, containers and settings of its own, below one folder.
struct Podman {
    folder: TempDir,
}

impl Podman {
    /// Fails with what podman or its runtime finds amiss on this host.
    fn prepare() -> Result<Self, String> {
        let podman = Self { folder: tempfile::tempdir().unwrap() };
        // Debian's crun refuses hosts with control groups of both versions; runc does not. Limits
        // below this user's, which podman would otherwise raise.
        let settings = "[containers]\ndefault_ulimits = ['nofile=1024:1024', 'nproc=4096:4096']\n\
                        [engine]\ncgroup_manager = 'cgroupfs'\nevents_logger = 'none'\n\
                        infra_image = 'docker.io/library/busybox:1.37'\nruntime = 'runc'\n";
        fs::write(podman.path("containers.conf"), settings).unwrap();
        podman.import("busybox", busybox(), &["ENV PATH=/bin", "CMD [\"/bin/pause\"]"])?;
        podman.import("skep", skep(), &["ENTRYPOINT [\"/skep\"]", "USER 65532:65532"])?;
        let tried = ["run", "--rm", "--network=host", "localhost/skep:0.1.0", "--version"];
        podman.tries(&tried)?;
        Ok(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path = |name: &str| self.path(name).display().to_string();
        program("podman")
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .args(["--root", &path("images"), "--runroot", &path("run"), "--tmpdir", &path("tmp")])
            .args(["--storage-driver", "vfs"])
            .args(arguments)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn agrees(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "podman {arguments:?}:\n{}", said(&output).1);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Fails with what podman wrote.
    fn tries(&self, arguments: &[&str]) -> Result<(), String> {
        let (works, text) = said(&self.run(arguments));
        if works { Ok(()) } else { Err(text) }
    }

    /// Makes an image of a folder.
    fn import(&self, name: &str, root: TempDir, changes: &[&str]) -> Result<(), String> {
        let archive = self.path("image.tar").display().to_string();
        let folder = root.path().display().to_string();
        let packed = Command::new("tar").args(["-C", &folder, "-cf", &archive, "."]).status();
        assert!(packed.unwrap().success());
        let image = match name {
            "busybox" => "docker.io/library/busybox:1.37".to_owned(),
            _ => format!("localhost/{name}:0.1.0"),
        };
        let changes: Vec<_> = changes.iter().flat_map(|change| ["--change", change]).collect();
        self.tries(&[&["import"], &changes[..], &[&archive, &image]].concat())
    }

    /// Ends pods as a kubelet does: SIGTERM, and time to end. `play --replace` kills them.
    fn stop_all(&self) {
        let grace_s = GRACE_S.to_string();
        self.agrees(&["pod", "stop", "--all", "--time", &grace_s]);
        self.agrees(&["pod", "rm", "--all"]);
    }

    /// Plays documents; flags are those of `podman play kube`.
    fn play(&self, documents: &[Value], flags: &[&str]) {
        let file = self.path("play.yaml");
        let text: Vec<_> = documents.iter().map(Value::to_string).collect();
        fs::write(&file, text.join("\n---\n")).unwrap();
        let profiles = self.path("profiles").display().to_string();
        let file = file.display().to_string();
        let play = ["play", "kube", "--seccomp-profile-root", &profiles];
        self.agrees(&[&play, flags, &[&file]].concat());
    }

    fn inspect(&self, container: &str, format: &str) -> String {
        self.agrees(&["inspect", container, "--format", format]).trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["pod", "rm", "--all", "--force", "--time=0"]);
    }
}

/// A program and the libraries that it was linked with, in an empty root.
fn root_with(file: &Path, name: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let inside = |path: &Path| root.path().join(path.strip_prefix("/").unwrap_or(path));
    let copied = |from: &Path, to: PathBuf| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    copied(file, inside(Path::new(name)));
    // A static program has none, and ldd fails.
    let output = Command::new("ldd").arg(file).output().unwrap();
    for word in said(&output).1.split_whitespace().filter(|word| word.starts_with('/')) {
        let library = Path::new(word.trim_end_matches(':'));
        if output.status.success() {
            copied(library, inside(library));
        }
    }
    root
}

/// As deploy/container/Dockerfile makes it.
pub(crate) fn skep() -> TempDir {
    let root = root_with(Path::new(env!("CARGO_BIN_EXE_skep")), "/skep");
    let state = root.path().join("var/lib/skep");
    fs::create_dir_all(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    chown(state, Some(USER), Some(USER)).unwrap();
    root
}

/// What the image of that name has of use here.
fn busybox() -> TempDir {
    let root = root_with(Path::new(program("busybox").get_program()), "/bin/busybox");
    for applet in APPLETS {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    let pause = root.path().join("bin/pause");
    fs::write(&pause, format!("#!/bin/sh\n{PAUSE}\n")).unwrap();
    fs::set_permissions(pause, fs::Permissions::from_mode(0o755)).unwrap();
    root
}

/// A DaemonSet as a Pod, which is what its controller makes of it, on this host's folders. podman
/// restarts init containers under a pod's usual policy, and knows no `status.podIP`.
fn pod_of(daemon_set: &Value, podman: &Podman) -> Value {
    let template = &daemon_set["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": daemon_set["metadata"]["name"], "annotations": {} },
        "spec": template["spec"],
    });
    pod["spec"]["restartPolicy"] = "OnFailure".into();
    for volume in pod["spec"]["volumes"].as_array_mut().unwrap() {
        let Some(path) = volume["hostPath"]["path"].as_str() else { continue };
        let name = if path.starts_with("/var/lib/kubelet") { "profiles" } else { "state" };
        volume["hostPath"]["path"] = podman.path(name).display().to_string().into();
    }
    pod
}

/// The pod of skep, with these variables set.
fn skep_pod(workload: &Value, podman: &Podman, set: &[(&str, &str)]) -> Value {
    let mut pod = pod_of(workload, podman);
    let profile = &pod["spec"]["securityContext"]["seccompProfile"]["localhostProfile"];
    if let Some(profile) = profile.as_str() {
        let profile = format!("localhost/{}", profile.strip_prefix("profiles/").unwrap());
        let annotation = "container.seccomp.security.alpha.kubernetes.io/skep";
        pod["metadata"]["annotations"][annotation] = profile.into();
    }
    let container = pod["spec"]["containers"][0].as_object_mut().unwrap();
    container.insert("image".to_owned(), "localhost/skep:0.1.0".into());
    // podman turns probes into programs of the container, which has none, and ports into mappings.
    for key in ["ports", "startupProbe", "livenessProbe", "readinessProbe"] {
        assert!(container.remove(key).is_some(), "{key}");
    }
    let variables = container["env"].as_array_mut().unwrap();
    let always = [("POD_IP", "127.0.0.1"), ("SKEP__SERVER__DRAIN_S", "0")];
    for (name, value) in always.iter().chain(set) {
        variables.retain(|variable| variable["name"] != *name);
        variables.push(json!({ "name": name, "value": value }));
    }
    pod
}

/// What the ready line of the pod names: the address of UDP and of the admin listener.
fn ready(podman: &Podman) -> (SocketAddr, SocketAddr, String) {
    let mut line = String::new();
    eventually("skep's pod is ready", || {
        let log = podman.agrees(&["logs", "skep-skep"]);
        line = log.lines().find(|line| line.starts_with("ready ")).unwrap_or_default().to_owned();
        !line.is_empty()
    });
    let value = |key: &str| {
        line.split(' ').find_map(|word| word.strip_prefix(key)).unwrap().parse().unwrap()
    };
    (value("udp="), value("admin="), line)
}

/// User, rights and file system of the process in the container.
fn is_confined(podman: &Podman) {
    let id = podman.inspect("skep-skep", "{{.State.Pid}}");
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(":\t").unwrap().1.to_owned()
    };
    // Real, effective, saved, and of the file system.
    assert_eq!(field("Uid"), [USER.to_string().as_str(); 4].join("\t"));
    assert_eq!(u64::from_str_radix(&field("CapEff"), 16).unwrap(), 0);
    assert_eq!(u64::from_str_radix(&field("CapBnd"), 16).unwrap(), 0);
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    assert_eq!(podman.inspect("skep-skep", "{{.HostConfig.ReadonlyRootfs}}"), "true");
}

/// The document of a kind and name; a name that ends in a dash has a hash behind it.
fn found<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_found = |value: &&Value| {
        let own = text(&value["metadata"]["name"]);
        let is_named = own == name || name.ends_with('-') && own.starts_with(name);
        value["kind"] == kind && is_named
    };
    all.iter().find(is_found).unwrap()
}

/// podman, where it can run a container; else why not is printed. Only that is a property of the
/// host which nothing installs, so only that does not fail where everything is asked for.
fn podman() -> Option<Podman> {
    if !have(&["kubectl", "podman", "runc", "busybox", "curl", "nsenter"]) || !have_yaml() {
        return None;
    }
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        lacks("root, which gives a folder to another user,");
        return None;
    }
    let prepared = Podman::prepare();
    let skipped = "skipped: podman cannot run a container on this host, so no pod is tried";
    // What the macros print is hidden where a test passes; this is not.
    let warn = |why: &String| {
        io::stderr().write_all(format!("\n{skipped}: {why}\n").as_bytes()).unwrap();
    };
    prepared.inspect_err(warn).ok()
}

#[test]
fn pods_run_and_a_rollout_keeps_their_state() {
    let Some(podman) = podman() else { return };
    let all = documents(&rendered("io-uring-seccomp"));
    let installer = found(&all, "DaemonSet", "skep-seccomp");
    let profile = found(&all, "ConfigMap", "skep-seccomp-");
    let mut settings = found(&all, "ConfigMap", "skep-config-").clone();
    // Ports of the kernel's choice: those that are taken on this host are not this test's.
    let set = [
        ("SKEP__ADMIN__LISTEN", "127.0.0.1:0"),
        ("SKEP__SERVER__LISTEN", "127.0.0.1:0"),
        ("SKEP__ACCESS__MODE", "registered"),
    ];
    let pod = skep_pod(found(&all, "DaemonSet", "skep"), &podman, &set);
    let probes = &found(&all, "DaemonSet", "skep")["spec"]["template"]["spec"]["containers"][0];

    let mut installer = pod_of(installer, &podman);
    // Its second container does nothing, by an image that is not here.
    installer["spec"]["containers"][0]["image"] = "docker.io/library/busybox:1.37".into();
    podman.play(&[profile.clone(), installer], &[]);
    assert!(podman.path("profiles/skep-io-uring.json").is_file());
    podman.stop_all();

    podman.play(&[settings.clone(), pod.clone()], &[]);
    let (udp, admin, line) = ready(&podman);
    let io = if has_io_uring() { "uring" } else { "mmsg" };
    assert!(line.ends_with(&format!(" io={io} workers=2")), "{line}");
    is_confined(&podman);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(http_get(admin, text(&probes[probe]["httpGet"]["path"])).0, 200, "{probe}");
    }
    let state = podman.path("state/state");
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
    let token = fs::read_to_string(state.join("admin.token")).unwrap();
    let torrent = json!({ "info_hash": "07".repeat(20), "name": "kept" }).to_string();
    let target = ("POST", "/api/v1/torrents");
    assert_eq!(http_ask(admin, token.trim(), target, &torrent).0, 201);
    Client::connect(udp).announce(&seeder(7, 4001));

    // Another setting makes another ConfigMap, and that another pod.
    let text = text(&settings["data"]["skep.toml"]).to_owned();
    settings["data"]["skep.toml"] = (text + "\n[tracker]\ninterval_s = 900\n").into();
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], GRACE_S);
    podman.stop_all();
    podman.play(&[settings, pod], &[]);
    let (udp, admin, _) = ready(&podman);
    let metrics = || Metrics { text: http_get(admin, "/metrics").1 };
    eventually("the swarm is restored", || {
        metrics().value("skep_peers{family=\"ipv4\",state=\"seeder\"}") == 1.0
    });
    assert_eq!(metrics().value("skep_registered_torrents"), 1.0);
    let (response, peers) = Client::connect(udp).announce(&leecher(7, 4002));
    assert!(response.interval_s < 1400 && peers.len() == 6, "{response:?} {peers:?}");
    assert_eq!(fs::read_to_string(state.join("admin.token")).unwrap(), token);
}

/// The pod of the other overlay, on its own ports in a network that has nothing but loopback.
#[test]
fn a_claim_keeps_the_state_of_the_pod_behind_a_balancer() {
    let Some(podman) = podman() else { return };
    let all = documents(&rendered("loadbalancer"));
    let claim = found(&all, "PersistentVolumeClaim", "skep-state").clone();
    let settings = found(&all, "ConfigMap", "skep-config-").clone();
    let set = [("SKEP__ADMIN__LISTEN", "127.0.0.1:6970")];
    let pod = skep_pod(found(&all, "Deployment", "skep"), &podman, &set);
    let in_the_pod = |url: &str| {
        let id = podman.inspect("skep-skep", "{{.State.Pid}}");
        agrees("nsenter", &["--target", &id, "--net", "curl", "--silent", "--fail", url])
    };
    podman.play(&[claim, settings.clone(), pod.clone()], &["--network", "none"]);
    let (_, _, line) = ready(&podman);
    assert!(line.contains(" tcp=0.0.0.0:6969 ") && line.ends_with(" workers=2"), "{line}");
    is_confined(&podman);
    podman.agrees(&["exec", "skep-skep", "/skep", "probe", "udp://127.0.0.1:6969"]);
    let hash = "a".repeat(20);
    let announce = format!("announce?info_hash={hash}&peer_id={hash}&port=6881&left=0");
    assert!(in_the_pod(&format!("http://127.0.0.1:6969/{announce}")).starts_with("d8:complete"));

    podman.stop_all();
    podman.play(&[settings, pod], &["--network", "none"]);
    ready(&podman);
    let seeders = "skep_peers{family=\"ipv4\",state=\"seeder\"} 1\n";
    eventually("the swarm is restored", || {
        in_the_pod("http://127.0.0.1:6970/metrics").contains(seeders)
    });
}
