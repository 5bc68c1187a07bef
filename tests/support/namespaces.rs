//! A tracker in a network namespace of its own, and a client in another, with a veth pair between
//! them: what XDP needs. Both end with the test.
#![allow(dead_code, reason = "each test program uses a part")]

use std::cell::RefCell;
use std::process::{Child, Command, Stdio};

use skep::sys::interfaces::index_of;
use skep::sys::xdp::assembler::{Assembler, Register};
use skep::sys::xdp::kernel::{AttachMode, XdpLink, XdpProgram, XdpVerdict};
use skep::types::InfoHash;

use super::{Client, Skep, assert_passed, child_test, eventually, skip};

/// Set in the process of a test that is in its own namespace.
const CHILD: &str = "SKEP_TEST_CHILD";

/// The server's and the client's addresses.
pub(crate) const SERVER_V4: &str = "10.9.0.1";
pub(crate) const SERVER_V6: &str = "fd00:9::1";
pub(crate) const CLIENT_V4: &str = "10.9.0.2";

/// Runs a test again in a process that is in a new network namespace, the client's: true in that
/// process. Says why where that is not possible, or fails where CI asks for all. `module` is the
/// test's `module_path!()`.
pub(crate) fn in_a_namespace(module: &str, test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut tried = Command::new("unshare");
    let why = match tried.args(["--net", "ip", "link", "add", "type", "veth"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    };
    let why = why.or_else(|| {
        let error = skep::sys::xdp::offload::Offload::create().err()?;
        Some(error.to_string())
    });
    if let Some(why) = why {
        skip(&format!("a program for XDP in a namespace of its own: {why}"));
        return false;
    }
    let mut command = Command::new("unshare");
    let child = child_test(module, test);
    command.arg("--net").arg(child.get_program()).args(child.get_args()).env(CHILD, "1");
    assert_passed(&command.output().unwrap());
    false
}

/// A process that does nothing in a new network namespace, and ends with this one: its input is a
/// pipe.
pub(crate) fn new_namespace() -> Child {
    let mut holder = Command::new("unshare");
    holder.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let holder = holder.spawn().unwrap();
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let [own, id] = ["self".to_owned(), holder.id().to_string()];
    eventually("the namespace", || of(&id).is_some() && of(&id) != of(&own));
    holder
}

/// Puts a program that passes everything on an end of a veth pair: without one, what a native
/// program on the other end sends is lost.
pub(crate) fn pass_all(interface: &str) -> XdpLink {
    let mut pass = Assembler::new();
    pass.set(Register::R0, XdpVerdict::Pass as i32);
    pass.exit();
    let pass = XdpProgram::load(&pass.finish()).unwrap();
    pass.attach(index_of(interface).unwrap(), AttachMode::Native).unwrap()
}

/// The server's namespace, joined to that of this process by a veth pair: `s0` there, `c0` here.
pub(crate) struct ServerNamespace {
    /// A process that does nothing in it, and ends with this one: its input is a pipe.
    holder: Child,
    /// A program on `c0`: without one, what a native program on `s0` sends is lost.
    peer: RefCell<Option<XdpLink>>,
}

impl ServerNamespace {
    /// Makes the namespace and the pair. The client computes checksums itself, as a network card
    /// would.
    pub(crate) fn new() -> Self {
        let namespace = Self { holder: new_namespace(), peer: RefCell::default() };
        namespace.ip("link set lo up");
        ip("link set lo up");
        namespace.join();
        namespace
    }

    /// Makes the pair.
    pub(crate) fn join(&self) {
        self.join_with(1);
    }

    /// Makes the pair, whose ends have so many queues.
    pub(crate) fn join_with(&self, queues: u32) {
        let sizes = format!("numtxqueues {queues} numrxqueues {queues}");
        let holder = self.holder.id();
        ip(&format!("link add c0 {sizes} type veth peer name s0 {sizes} netns {holder}"));
        self.ip(&format!("addr add {SERVER_V4}/24 dev s0"));
        self.ip(&format!("addr add {SERVER_V6}/64 dev s0 nodad"));
        self.ip("link set s0 up");
        ip(&format!("addr add {CLIENT_V4}/24 dev c0"));
        ip("addr add fd00:9::2/64 dev c0 nodad");
        ip("link set c0 up");
        succeed(Command::new("ethtool").args(["-K", "c0", "tx", "off"]));
        *self.peer.borrow_mut() = Some(pass_all("c0"));
    }

    /// A command in the namespace instead of this process's.
    pub(crate) fn within(&self, command: &Command) -> Command {
        let mut within = Command::new("nsenter");
        within.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        within.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => within.env(name, value),
                None => within.env_remove(name),
            };
        }
        within
    }

    /// Runs `ip` in it; returns the output.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        succeed(&mut self.within(Command::new("ip").args(arguments.split_whitespace())))
    }

    /// Sets a parameter of the kernel in it.
    pub(crate) fn set(&self, parameter: &str, value: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("echo {value} >/proc/sys/{parameter}")]);
        succeed(&mut self.within(&shell));
    }
}

impl Drop for ServerNamespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Waits until announces go to AF_XDP sockets, through the program of `s0`.
#[track_caller]
pub(crate) fn await_af_xdp_sockets(skep: &Skep) {
    let redirected = "skep_xdp_packets_total{interface=\"s0\",verdict=\"redirected\"}";
    eventually("workers have AF_XDP sockets", || {
        let before = skep.metrics().value(redirected);
        let mut client = Client::connect(skep.udp[0]);
        client.scrape(&[InfoHash([99; 20])]);
        skep.metrics().value(redirected) > before
    });
}

/// Runs `ip` in this process's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    succeed(Command::new("ip").args(arguments.split_whitespace()))
}

/// Runs a command that has to succeed; returns its output.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
