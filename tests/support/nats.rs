//! Real brokers (NATS) on ports of the kernel's choice: Debian's and the latest one.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{DEADLINE, eventually};

/// Where `.ci/run` puts the latest broker: a package of PyPI has it.
const LATEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/deploy-tools/bin/nats-server");

/// Where Debian has its own.
const DEBIAN: &str = "/usr/sbin/nats-server";

/// The programs of the brokers that tests are to run with: the oldest and the newest one. Says
/// which is missing; where CI asks for everything, fails.
pub(crate) fn broker_programs() -> Vec<&'static Path> {
    let required = std::env::var_os("SKEP_REQUIRE_EXTERNAL").is_some_and(|it| it == "1");
    let is_here = |path: &&Path| {
        let is_file = path.is_file();
        if !is_file {
            println!("skipped: {} not found (see .ci/run)", path.display());
            assert!(!required, "{}: SKEP_REQUIRE_EXTERNAL=1 asks for it", path.display());
        }
        is_file
    };
    [DEBIAN, LATEST].map(Path::new).into_iter().filter(is_here).collect()
}

/// The first broker that is here, for what does not depend on its version.
pub(crate) fn broker_program() -> Option<&'static Path> {
    broker_programs().pop()
}

/// A running broker; killed when dropped.
pub(crate) struct Nats {
    program: PathBuf,
    folder: tempfile::TempDir,
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Nats {
    /// A broker that everybody may use.
    pub(crate) fn start(program: &Path) -> Self {
        Self::with_config(program, "")
    }

    /// A broker with settings in its own syntax.
    pub(crate) fn with_config(program: &Path, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("nats.conf"), config).unwrap();
        let (child, address) = spawn(program, folder.path(), "-1");
        Self { program: program.to_owned(), folder, child, address }
    }

    /// The URL of the broker, without TLS.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Kills it, as a power cut would.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let port = self.address.port().to_string();
        (self.child, self.address) = spawn(&self.program, self.folder.path(), &port);
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("/bin/sh").args(["-c", &command]).status().unwrap().success());
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- {}\n{log}", self.program.display());
        }
    }
}

/// Starts a broker and waits until it says where it listens.
fn spawn(program: &Path, folder: &Path, port: &str) -> (Child, SocketAddr) {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    let child = Command::new(program)
        .args(["-a", "127.0.0.1", "-p", port, "--ports_file_dir"])
        .arg(folder)
        .arg("-c")
        .arg(folder.join("nats.conf"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let ports = folder.join(format!("nats-server_{}.ports", child.id()));
    let mut address = None;
    eventually("the broker listens", || {
        let text = fs::read_to_string(&ports).unwrap_or_default();
        let json: Option<Value> = serde_json::from_str(&text).ok();
        let url = json.and_then(|it| it["nats"][0].as_str().map(str::to_owned));
        address = url.and_then(|it| it.split_once("://").and_then(|it| it.1.parse().ok()));
        address.is_some()
    });
    (child, address.unwrap())
}

/// A client of a broker that is not skep: reads and forges what nodes send.
pub(crate) struct RawClient {
    runtime: tokio::runtime::Runtime,
    client: async_nats::Client,
    subscriber: async_nats::Subscriber,
}

impl RawClient {
    /// A client that gets everything.
    pub(crate) fn connect(broker: &Nats) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (client, subscriber) = runtime.block_on(async {
            let client = async_nats::connect(broker.url()).await.unwrap();
            let subscriber = client.subscribe(">").await.unwrap();
            client.flush().await.unwrap();
            (client, subscriber)
        });
        Self { runtime, client, subscriber }
    }

    /// The next message that fits: its subject and its bytes.
    pub(crate) fn message_with(
        &mut self,
        is_fit: impl Fn(&str, &[u8]) -> bool,
    ) -> (String, Vec<u8>) {
        let Self { runtime, subscriber, .. } = self;
        runtime.block_on(async {
            let next = async {
                loop {
                    let message = futures_util::StreamExt::next(subscriber).await.unwrap();
                    if is_fit(&message.subject, &message.payload) {
                        return (message.subject.to_string(), message.payload.to_vec());
                    }
                }
            };
            tokio::time::timeout(DEADLINE, next).await.expect("a message that fits")
        })
    }

    /// Publishes a message, and waits until the broker has it.
    pub(crate) fn publish(&self, subject: &str, payload: &[u8]) {
        self.runtime.block_on(async {
            self.client.publish(subject.to_owned(), payload.to_vec().into()).await.unwrap();
            self.client.flush().await.unwrap();
        });
    }
}
