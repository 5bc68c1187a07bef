//! A real Prometheus that scrapes a skep, and answers queries as Grafana would send them.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::support::{DEADLINE, eventually, http_get};
use crate::tools::{deployed, program};

/// How often it scrapes. Often, as the test waits for some of it.
const INTERVAL: &str = "200ms";
/// What Grafana puts in place of its variable: some scrapes.
const RATE_INTERVAL: &str = "3s";

/// A running Prometheus, killed when dropped.
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `target` and evaluates our rules.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "global:\n  scrape_interval: {INTERVAL}\n  evaluation_interval: {INTERVAL}\n\
             rule_files: [{}]\n\
             scrape_configs:\n  - job_name: skep\n    static_configs:\n\
             \x20     - targets: [\"{target}\"]\n",
            deployed("prometheus/rules.yml").display(),
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let mut child = program("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, address) = mpsc::channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            let mut log = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log = log + &line + "\n";
                if let Some(address) = listening(&line) {
                    let _ = told.send(address);
                }
            }
            eprintln!("--- Prometheus\n{log}");
        });
        let address = address.recv_timeout(DEADLINE).expect("Prometheus listens");
        eventually("Prometheus is ready", || http_get(address, "/-/ready").0 == 200);
        Self { child, address, _folder: folder }
    }

    /// What an instant query finds: each series' labels and value.
    pub(crate) fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let variables = [("$__rate_interval", RATE_INTERVAL), ("$instance", ".+"), ("$job", ".+")];
        let replace = |text: String, (name, value): (&str, &str)| text.replace(name, value);
        let expression = variables.into_iter().fold(expression.to_owned(), replace);
        let response = self.get(&format!("query?query={}", escaped(&expression)));
        assert_eq!(response["status"], "success", "{expression}: {response}");
        let series = response["data"]["result"].as_array().unwrap();
        let value = |it: &Value| it["value"][1].as_str().unwrap().parse().unwrap();
        series.iter().map(|it| (it["metric"].clone(), value(it))).collect()
    }

    /// A page of its API.
    pub(crate) fn get(&self, path: &str) -> Value {
        let (_, body) = http_get(self.address, &format!("/api/v1/{path}"));
        serde_json::from_str(&body).unwrap_or_else(|it| panic!("{path}: {it}\n{body}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in the line of the log that tells it.
fn listening(line: &str) -> Option<SocketAddr> {
    let rest = line.split_once("Listening on")?.1.split_once("address=")?.1;
    rest.split_whitespace().next()?.parse().ok()
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
