//! A headless Chromium that a test steers: what a page shows, says and looks like.
//!
//! By the DevTools protocol over the WebSocket that Chromium opens on a port of the kernel's
//! choice. Where there is no Chromium: `skipped: chromium not found`; with
//! `SKEP_REQUIRE_EXTERNAL=1`, a failure.
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

/// How long Chromium may take to start.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long anything on a page may take to come about. A page that was disconnected may pause for
/// a good half minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether Chromium is here. Says that it is not; where CI asks for it, fails instead.
pub(crate) fn has_chromium() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join("chromium").is_file()) {
        return true;
    }
    println!("skipped: chromium not found");
    let required = std::env::var_os("SKEP_REQUIRE_EXTERNAL").is_some_and(|it| it == "1");
    assert!(!required, "chromium not found, and SKEP_REQUIRE_EXTERNAL=1 asks for it");
    false
}

/// How a page is looked at.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) scheme: &'static str,
    pub(crate) scripts: bool,
}

/// A browser with one page; ended when dropped.
pub(crate) struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    session: Value,
    calls: u64,
    /// What went wrong on the page, as the browser says it.
    pub(crate) complaints: Vec<String>,
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    /// Starts it, if need be twice: about one Chromium in a hundred never gets going.
    pub(crate) fn start() -> Self {
        Self::try_start().or_else(Self::try_start).expect("a Chromium that starts")
    }

    fn try_start() -> Option<Self> {
        let profile = tempfile::tempdir().unwrap();
        let mut process = chromium(profile.path()).spawn().unwrap();
        let Some((address, path)) = devtools(profile.path()) else {
            let _ = process.kill();
            let _ = process.wait();
            return None;
        };
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://{address}{path}");
        let (socket, _) = tungstenite::client(url, stream).map_err(|it| it.to_string()).unwrap();
        let (session, complaints) = (Value::Null, Vec::new());
        let mut browser =
            Self { process, socket, session, calls: 0, complaints, _profile: profile };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        browser.session = browser.call("Target.attachToTarget", &target)["sessionId"].clone();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, &json!({}));
        }
        Some(browser)
    }

    /// Opens a page.
    pub(crate) fn open(&mut self, url: &str, view: View) {
        let View { width, height, scheme, scripts } = view;
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
        self.call("Emulation.setScriptExecutionDisabled", &json!({ "value": !scripts }));
        let opened = self.call("Page.navigate", &json!({ "url": url }));
        assert!(opened["errorText"].is_null(), "{opened}");
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'");
    }

    /// Runs a script in every page that is opened from now on, before the page's own.
    pub(crate) fn prepare(&mut self, script: &str) {
        self.call("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": script }));
    }

    /// The value of an expression on the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        self.try_value(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// The same. An error where the page goes elsewhere just then.
    fn try_value(&mut self, expression: &str) -> Result<Value, Value> {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let answer = self.try_call("Runtime.evaluate", &asked)?;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        Ok(answer["result"]["value"].clone())
    }

    /// What is to be read in an element.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({selector:?}).innerText"));
        text.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, expression: &str) {
        let start = Instant::now();
        while self.try_value(expression) != Ok(Value::Bool(true)) {
            if start.elapsed() > PATIENCE {
                let page = self.value("document.documentElement.innerText");
                panic!("never: {expression}\n{:?}\n{page}", self.complaints);
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// The whole page as a PNG.
    pub(crate) fn picture(&mut self) -> Vec<u8> {
        let asked = json!({ "format": "png", "captureBeyondViewport": true });
        let answer = self.call("Page.captureScreenshot", &asked);
        STANDARD.decode(answer["data"].as_str().unwrap()).unwrap()
    }

    /// Calls a method and waits for its answer; notes what is complained about meanwhile.
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The same, or what is wrong.
    fn try_call(&mut self, method: &str, parameters: &Value) -> Result<Value, Value> {
        self.calls += 1;
        let mut call = json!({ "id": self.calls, "method": method, "params": parameters });
        if !self.session.is_null() {
            call["sessionId"] = self.session.clone();
        }
        self.socket.send(Message::text(call.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().unwrap() else { continue };
            let mut message: Value = serde_json::from_str(text.as_str()).unwrap();
            if message["id"] == self.calls {
                let error = message["error"].take();
                return if error.is_null() { Ok(message["result"].take()) } else { Err(error) };
            }
            let kinds = ["Runtime.exceptionThrown", "Log.entryAdded"];
            if kinds.iter().any(|it| message["method"] == *it) {
                self.complaints.push(message["params"].to_string());
            }
        }
    }
}

/// Headless, with its profile in this folder, asking nobody but this host for anything.
fn chromium(profile: &Path) -> Command {
    let mut command = Command::new("chromium");
    command
        .args(["--headless=new", "--remote-debugging-port=0", "--no-sandbox", "--disable-gpu"])
        .args(["--disable-dev-shm-usage", "--no-first-run", "--disable-default-apps"])
        .args(["--disable-background-networking", "--disable-component-update"])
        .args(["--disable-sync", "--disable-domain-reliability", "--no-pings", "--hide-scrollbars"])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .arg(format!("--user-data-dir={}", profile.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Where Chromium listens, once it does: address and path.
fn devtools(profile: &Path) -> Option<(String, String)> {
    let start = Instant::now();
    while start.elapsed() < START_PATIENCE {
        let said = std::fs::read_to_string(profile.join("DevToolsActivePort")).unwrap_or_default();
        if let Some((port, path)) = said.split_once('\n').filter(|it| it.1.starts_with('/')) {
            return Some((format!("127.0.0.1:{port}"), path.trim_end().to_owned()));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    None
}
