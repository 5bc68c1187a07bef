//! Stream workers where descriptors are what there is too little of: thousands of connections that
//! say nothing, and a process that has no descriptor left. The
//! limit on open files is the process's, so each of them has a process of its own.
#![expect(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::env;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Instant;

use skep::counters::CloseReason;
use skep::worker::stream::StreamBackend;

use crate::stream_server::{
    Client, Plan, Server, announce_path, connect, connect_from, eventually, for_each_backend,
};
use crate::support::{assert_passed, child_test};

/// Half-open heads, as many as `reliability` asks for.
const HEADS: u16 = 10_000;

/// In the environment of a child: where it has to connect to.
const ADDRESS: &str = "SKEP_TEST_HALF_OPEN_AT";

/// In the environment of a child: that it is the one whose descriptors run out.
const EXHAUSTED: &str = "SKEP_TEST_EXHAUSTED";

/// The same test again, in a process of its own.
fn child(test: &str, variable: &str, value: &str) -> Child {
    child_test(module_path!(), test)
        .env(variable, value)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn ten_thousand_half_open_heads_keep_nobody_out_and_end_at_their_deadline() {
    if let Ok(address) = env::var(ADDRESS) {
        return hold_half_open_heads(address.parse().unwrap());
    }
    for_each_backend(|backend| {
        let mut plan = Plan::default();
        plan.options.head_timeout_s = 16; // all of them have to be there at once
        plan.options.idle_timeout_s = 60;
        let server = Server::start(backend, plan);
        let mut kept = server.connect();
        assert_eq!(kept.get("/").status, 200);
        let name = "ten_thousand_half_open_heads_keep_nobody_out_and_end_at_their_deadline";
        let mut child = child(name, ADDRESS, &server.plain[0].to_string());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|it| it.unwrap().ends_with("holding")));
        // They are connected; the last of them may wait to be accepted still, and on a busy host
        // the first may have reached their deadline before.
        let late = || server.closed(CloseReason::HeadTimeout);
        let open = || u64::from(server.shared.connections_open());
        eventually("all were open", || late() + open() > u64::from(HEADS));
        let mut served = 0;
        for port in 1..=500 {
            served += u32::from(kept.get(&announce_path("a", port)).status == 200);
            served += u32::from(server.connect().get(&announce_path("a", port)).status == 200);
        }
        assert!(served >= 990, "{served} of 1000 were served");
        server.expect_closed(CloseReason::HeadTimeout, HEADS.into());
        eventually("all have left", || server.shared.connections_open() == 1);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert_eq!(kept.get("/").status, 200);
        server.finish();
    });
}

/// The attacker's side.
fn hold_half_open_heads(address: SocketAddr) {
    let mut held = Vec::with_capacity(HEADS.into());
    for number in 0..HEADS {
        let [high, low] = number.to_be_bytes();
        let mut stream = connect_from(address, Ipv4Addr::new(127, 1, high, low.max(1))).unwrap();
        stream.write_all(b"GET /announce?info_hash=").unwrap();
        held.push(stream);
    }
    println!("holding");
    let _ = std::io::stdin().read(&mut [0]).unwrap();
    for mut stream in held {
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "the server has closed it");
    }
}

#[test]
fn a_process_without_descriptors_serves_who_is_there_and_recovers() {
    match env::var(EXHAUSTED).as_deref() {
        Ok("uring") => return run_out_of_descriptors(StreamBackend::Uring),
        Ok(_) => return run_out_of_descriptors(StreamBackend::Tokio),
        Err(_) => {}
    }
    for_each_backend(|backend| {
        let name = "a_process_without_descriptors_serves_who_is_there_and_recovers";
        let child = child(name, EXHAUSTED, backend.label());
        assert_passed(&child.wait_with_output().unwrap());
    });
}

fn run_out_of_descriptors(backend: StreamBackend) {
    let server = Server::start(backend, Plan::default());
    let mut kept = server.connect();
    assert_eq!(kept.get("/").status, 200);
    let address = server.plain[0];
    let mut spare: Vec<TcpStream> = Vec::new();
    rlimit::setrlimit(rlimit::Resource::NOFILE, 256, 256).unwrap();
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    // The client takes the last one; there is none for the server's side.
    files.pop();
    spare.push(connect(address));
    let errors = || server.counters[0].accept_errors.get();
    eventually("an accept fails", || errors() > 0);
    let (start, before) = (Instant::now(), errors());
    assert!((0..100).all(|_| kept.get("/").status == 200), "who is there is served");
    eventually("more accepts fail", || errors() >= before + 5);
    let elapsed_ms = start.elapsed().as_millis();
    assert!(u128::from(errors() - before) <= elapsed_ms / 100 + 3, "it does not spin");
    files.clear();
    let mut waiting = Client::new(spare.pop().unwrap());
    assert_eq!(waiting.get("/").status, 200, "who waited is served");
    assert_eq!(server.connect().get("/").status, 200);
    server.finish();
}
