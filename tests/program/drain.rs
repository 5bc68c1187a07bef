//! The end of a tracker that others depend on: told first, served meanwhile, nothing lost.
#![allow(clippy::disallowed_methods, reason = "how long something took is what is tested")]

use std::time::Instant;

use crate::support::tcp_clients::{self, Browser, announce};
use crate::support::udp_load::Steady;
use crate::support::{Client, Skep, backends, command, eventually};

fn draining(io: &str, drain_s: u32) -> Skep {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "2", "--io", io]);
    command.env("SKEP__SERVER__DRAIN_S", drain_s.to_string());
    Skep::spawn(command)
}

#[test]
fn nothing_is_lost_in_the_drain() {
    for io in backends() {
        let mut skep = draining(io, 3600);
        let load = Steady::start(skep.udp[0], 8_000);
        load.wait_for(1_000);
        assert_eq!(skep.get("/readyz").0, 200);
        skep.signal("TERM");
        eventually("it says that it stops", || skep.get("/readyz").0 == 503);
        // Old and new clients are served, over both transports.
        for _ in 0..10 {
            load.wait_for(1_000);
            Client::connect(skep.udp[0]);
            assert_eq!(tcp_clients::ask(skep.tcp[0], &announce(1, 1, "")).status, 200);
            assert_eq!(skep.get("/livez").0, 200);
        }
        let (sent, lost) = load.finish();
        assert_eq!(lost, 0, "of {sent} with {io}\n{}", skep.log());
        skep.signal("TERM");
        assert_eq!(skep.wait().code(), Some(0));
    }
}

#[test]
fn web_sockets_are_told_to_reconnect_one_after_the_other() {
    for io in backends() {
        let mut skep = draining(io, 4);
        let browsers: Vec<_> = (0..20).map(|_| Browser::open(skep.tcp[0], None)).collect();
        let told = Instant::now();
        skep.signal("TERM");
        let wait = |mut browser: Browser| {
            std::thread::spawn(move || (browser.closed_with(), told.elapsed()))
        };
        let waiting: Vec<_> = browsers.into_iter().map(wait).collect();
        let ends: Vec<_> = waiting.into_iter().map(|it| it.join().unwrap()).collect();
        assert!(ends.iter().all(|it| it.0 == Some(1001)), "{ends:?}");
        let first = ends.iter().map(|it| it.1).min().unwrap();
        let last = ends.iter().map(|it| it.1).max().unwrap();
        let spread = (last - first).as_secs_f64();
        assert!(spread > 1.0, "{io}: {ends:?}");
        assert_eq!(skep.wait().code(), Some(0));
    }
}

#[test]
fn a_second_signal_ends_the_drain_and_without_one_there_is_none() {
    for second in ["TERM", "INT"] {
        let mut skep = draining("auto", 3600);
        skep.signal("TERM");
        skep.log_with("drain_s=3600");
        assert_eq!(skep.get("/readyz"), (503, "stopping\n".into()));
        skep.signal(second);
        assert_eq!(skep.wait().code(), Some(0));
        skep.log_with("second signal received, stopping now");
    }
    let mut skep = draining("auto", 0);
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0));
    assert!(!skep.log().contains("draining"));
}

#[test]
fn the_drain_can_be_changed_while_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skep.toml");
    std::fs::write(&file, "[server]\ndrain_s = 3600\n").unwrap();
    let mut skep = Skep::start(&["--config", file.to_str().unwrap()]);
    std::fs::write(&file, "[server]\ndrain_s = 0\n").unwrap();
    skep.signal("HUP");
    skep.log_with("server.drain_s = 0");
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0));
}
