//! A host for tests of the shipped unit: this one's systemd, booted in namespaces of its own over a
//! copy-on-write view of this one's files, with a network that has only loopback.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use super::support::eventually;

/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The namespaces that `boot.sh` makes, as nsenter(1) takes them.
const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--net", "--uts", "--ipc"];

/// A booted host. It ends with this value.
pub(crate) struct Booted {
    folder: TempDir,
    boot: Child,
    /// Its process 1, in the numbers of this host.
    systemd: String,
}

impl Booted {
    /// Boots, with a checkout in `skep` of its root's home that has the program of this test as
    /// `target/release/skep`. `None`, and says why: this host or this user cannot.
    pub(crate) fn boot() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["root", "checkout/target/release"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let checkout = folder.path().join("checkout");
        let parts = ["deploy", "docs"].map(|name| Path::new(ROOT).join(name));
        let copied = Command::new("cp").arg("-r").args(parts).arg(&checkout).status().unwrap();
        assert!(copied.success());
        fs::copy(env!("CARGO_BIN_EXE_skep"), checkout.join("target/release/skep")).unwrap();
        let mut boot = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "sh"])
            .arg(Path::new(ROOT).join("tests/support/boot.sh"))
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = folder.path().join("pid");
        let mut ended = false;
        eventually("the boot begins or fails", || {
            ended = boot.try_wait().unwrap().is_some();
            ended || fs::read_to_string(&pid).is_ok_and(|it| it.ends_with('\n'))
        });
        let systemd = fs::read_to_string(&pid).unwrap_or_default().trim().to_owned();
        let mut booted = Self { folder, boot, systemd };
        let mut state = String::new();
        eventually("systemd has booted, or cannot", || {
            ended = ended || booted.boot.try_wait().unwrap().is_some();
            if !ended {
                state = booted.run("systemctl is-system-running").1;
            }
            ended || ["running", "degraded"].contains(&state.trim())
        });
        if !ended {
            let failed = || booted.run("systemctl list-units --failed").1;
            assert_eq!(state.trim(), "running", "{}", failed());
            return Some(booted);
        }
        let mut text = String::new();
        let stderr = booted.boot.stderr.as_mut().unwrap();
        std::io::Read::read_to_string(stderr, &mut text).unwrap();
        println!("skipped: systemd cannot be booted here: {}", text.trim());
        None
    }

    /// Runs a line of bash as its root, in the checkout: the exit code, and all that was written.
    pub(crate) fn run(&self, line: &str) -> (i32, String) {
        let Output { status, stdout, .. } = Command::new("nsenter")
            .args(["--target", &self.systemd])
            .args(NAMESPACES)
            .args(["--", "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"])
            .args(["bash", "-c", &format!("cd ~root/skep && {{ {line}\n}} 2>&1")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        (code.unwrap(), String::from_utf8_lossy(&stdout).into_owned())
    }

    /// The same, of a line that has to succeed: what was written.
    #[track_caller]
    pub(crate) fn succeed(&self, line: &str) -> String {
        let (code, text) = self.run(line);
        assert_eq!(code, 0, "$ {line}\n{text}");
        text
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // All processes of a PID namespace end with its first.
        if matches!(self.boot.try_wait(), Ok(None)) {
            let _ = Command::new("kill").args(["-KILL", &self.systemd]).status();
        }
        let _ = self.boot.wait();
    }
}
