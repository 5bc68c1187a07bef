//! Whose files, whose sockets, whose word: what a start as root does not touch, what is kept from
//! others on this host, and who may change something.
#![allow(clippy::disallowed_methods, reason = "how long something took is what is tested")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use skep::sys::identity::UnixUser;
use socket2::{Domain, Socket, Type};

use crate::support::{self, Client, Skep, command, eventually, http_get, leecher, texts};

/// The user that skep becomes where it is started as root: nobody.
const USER: u32 = 65534;

/// Whether this is root; says so where it is not.
fn is_root() -> bool {
    let is_root = UnixUser::can_change();
    if !is_root {
        eprintln!("skipped: this is not root");
    }
    is_root
}

/// A skep that may not say ready: whether it does, and its log once it has been told to end.
fn try_start(state: &Path, settings: &[(&str, &str)]) -> (bool, String) {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"]);
    command.env("STATE_DIRECTORY", state).env("SKEP__SERVER__USER", USER.to_string());
    command.envs(settings.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = child.id();
    let _ = Command::new("/bin/sh").args(["-c", &format!("kill -TERM {pid} 2>&-")]).status();
    let output = child.wait_with_output().unwrap();
    (line.starts_with("ready "), texts(&output).1)
}

/// What is in a folder: names, what is in the files, whose they are.
fn contents(folder: &Path) -> BTreeMap<String, (Vec<u8>, u32, u32)> {
    let all = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    all.map(|path| {
        let metadata = path.symlink_metadata().unwrap();
        let bytes = fs::read(&path).unwrap_or_default();
        (path.display().to_string(), (bytes, metadata.mode(), metadata.uid()))
    })
    .collect()
}

fn give(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
}

#[test]
fn links_that_the_user_has_planted_lead_root_nowhere() {
    if !is_root() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
    let roots = top.path().join("roots");
    fs::create_dir(&roots).unwrap();
    fs::write(roots.join("there"), "root's own").unwrap();
    fs::set_permissions(roots.join("there"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&roots, Permissions::from_mode(0o755)).unwrap();
    let before = contents(&roots);
    let names = [
        "connection_id.key",
        "tracker.id",
        "admin.token",
        "access.redb",
        "access.unfinished",
        "swarms.snapshot",
        "swarms.snapshot.previous",
        "swarms.snapshot.tmp",
        "swarms.snapshot.lock",
        "stats.history",
        "stats.history.new",
        "handover.sock",
        "http.sock",
        "access/ports_deny.list",
        "access",
    ];
    for name in names {
        for target in ["there", "absent"] {
            let state = top.path().join("state");
            fs::create_dir(&state).unwrap();
            give(&state, 0o700);
            if let Some((folder, _)) = name.split_once('/') {
                fs::create_dir(state.join(folder)).unwrap();
                give(&state.join(folder), 0o700);
            }
            symlink(roots.join(target), state.join(name)).unwrap();
            let socket = state.join("http.sock").display().to_string();
            let settings =
                [("SKEP__ACCESS__MODE", "private"), ("SKEP__HTTP__UNIX_SOCKET", &socket)];
            let (_, log) = try_start(&state, &settings);
            assert_eq!(contents(&roots), before, "{name} to {target}\n{log}");
            assert!(!log.contains("root's own"), "{log}");
            fs::remove_dir_all(&state).unwrap();
        }
    }
}

#[test]
fn what_root_starts_belongs_to_the_user_that_it_becomes() {
    if !is_root() {
        return;
    }
    // A folder of the user's, one of root's in which sockets go, and none yet for the state.
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
    let users = top.path().join("users");
    fs::create_dir(&users).unwrap();
    give(&users, 0o750);
    let state = top.path().join("a/state");
    for socket in [users.join("http.sock"), top.path().join("http.sock")] {
        let mut command = command();
        command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).env("STATE_DIRECTORY", &state);
        command.env("SKEP__SERVER__USER", USER.to_string());
        command.env("SKEP__HTTP__UNIX_SOCKET", &socket).env("SKEP__ACCESS__MODE", "registered");
        let mut skep = Skep::spawn(command);
        let metadata = socket.metadata().unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o777),
            (USER, USER, 0o660),
            "{socket:?}"
        );
        assert!(UnixStream::connect(&socket).is_ok());
        let (status, said) = skep.ask(("POST", "/api/v1/save"), "");
        assert_eq!(status, 200, "{said}");
        skep.signal("TERM");
        assert_eq!(skep.wait().code(), Some(0), "{}", skep.log());
        for name in [
            "admin.token",
            "access.redb",
            "swarms.snapshot",
            "swarms.snapshot.lock",
            "stats.history",
        ] {
            let file = state.join(name).metadata().unwrap();
            assert_eq!(
                (file.uid(), file.gid(), file.mode() & 0o777),
                (USER, USER, 0o600),
                "{name}"
            );
        }
    }
}

#[test]
fn nothing_that_it_makes_is_open_to_others() {
    let state = tempfile::tempdir().unwrap();
    let skep = command();
    // Whatever the tests are run with: as a shell would have it.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "umask 022; exec \"$0\" \"$@\""]).arg(skep.get_program());
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    command.env("STATE_DIRECTORY", state.path()).env("SKEP__ACCESS__MODE", "private");
    let mut skep = Skep::spawn(command);
    assert_eq!(skep.ask(("PUT", "/api/v1/access/ports/deny/25"), "").0, 200);
    assert_eq!(skep.ask(("POST", "/api/v1/save"), "").0, 200);
    let mut looked_at = 0;
    let mut look = |folder: &Path| {
        for result in fs::read_dir(folder).unwrap() {
            let path = result.unwrap().path();
            let mode = path.symlink_metadata().unwrap().mode();
            assert_eq!(mode & 0o077, 0, "{} {mode:o}", path.display());
            looked_at += 1;
        }
    };
    look(state.path());
    look(&state.path().join("access"));
    assert!(looked_at >= 8, "{looked_at}");
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0));
}

/// Whether the API lets somebody change something who shows this: the status.
fn deny_with(skep: &Skep, token: &str) -> u16 {
    support::http_ask(skep.admin, token, ("PUT", "/api/v1/access/ports/deny/25"), "").0
}

#[test]
fn its_token_is_kept_by_a_successor_and_another_once_the_file_is_removed() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    let state = tempfile::tempdir().unwrap();
    let start = |take_over: &[&str]| {
        let mut command = command();
        command.arg("run").args(take_over).args(["--listen", "127.0.0.1:0", "--workers", "1"]);
        command.arg("--config").arg(settings.path()).env("STATE_DIRECTORY", state.path());
        Skep::spawn(command)
    };
    let mut first = start(&[]);
    let token = first.token();
    assert_eq!((deny_with(&first, &token), deny_with(&first, "another")), (200, 401));
    assert_eq!(first.get("/api/v1/torrents").0, 200, "this host may look");
    assert!(!first.log().contains(&token));
    let second = start(&["--take-over"]);
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    assert_eq!((second.token(), deny_with(&second, &token)), (token.clone(), 200));
    // One that the settings name takes its place, and the other is back without it.
    fs::write(settings.path(), "[admin]\ntoken = \"of sixteen bytes\"\n").unwrap();
    second.signal("HUP");
    eventually("the setting's is in force", || deny_with(&second, "of sixteen bytes") == 200);
    assert_eq!((deny_with(&second, &token), second.get("/api/v1/torrents").0), (401, 401));
    fs::write(settings.path(), "").unwrap();
    fs::remove_file(state.path().join("admin.token")).unwrap();
    second.signal("HUP");
    eventually("a new one is made", || second.get("/api/v1/torrents").0 == 200);
    assert_eq!((deny_with(&second, &token), deny_with(&second, &second.token())), (401, 200));
    assert_ne!(second.token(), token);
}

#[test]
fn its_token_stays_in_force_without_the_state_directory() {
    let top = tempfile::tempdir().unwrap();
    let state = top.path().join("state");
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).env("STATE_DIRECTORY", &state);
    let skep = Skep::spawn(command);
    let token = skep.token();
    assert_eq!(deny_with(&skep, &token), 200);
    fs::remove_dir_all(&state).unwrap();
    fs::write(&state, "nothing can be made below a file").unwrap();
    skep.signal("HUP");
    skep.log_with("API token not reloaded");
    skep.log_with("reloaded: ");
    let status = deny_with(&skep, &token);
    assert!(![401, 403].contains(&status), "{status}");
    assert_eq!(deny_with(&skep, "another"), 401);
}

#[test]
fn settings_that_came_through_a_pipe_stay_in_force() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"[admin]\ntoken = \"of sixteen bytes\"\n").unwrap();
    drop(writer);
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--config", "/dev/stdin"]);
    command.stdin(reader);
    let skep = Skep::spawn(command);
    assert_eq!((deny_with(&skep, "of sixteen bytes"), deny_with(&skep, "another")), (200, 401));
    skep.signal("HUP");
    let log = skep.log_with("not reloaded, all settings unchanged");
    assert!(log.contains("not a regular file and can be read only once"), "{log}");
    assert_eq!((deny_with(&skep, "of sixteen bytes"), deny_with(&skep, "another")), (200, 401));
}

#[test]
fn without_a_state_directory_nothing_can_be_changed_unless_a_token_is_configured() {
    let start = |token: &[(&str, &str)]| {
        let mut command = command();
        command.args(["--listen", "127.0.0.1:0"]).env("STATE_DIRECTORY", "/proc/nowhere");
        command.envs(token.iter().copied());
        Skep::spawn(command)
    };
    let skep = start(&[]);
    let (status, said) =
        support::http_ask(skep.admin, "any", ("PUT", "/api/v1/access/ports/deny/25"), "");
    assert_eq!(status, 403);
    assert!(said.contains("token_absent") && said.contains("server.state_dir"), "{said}");
    assert_eq!(skep.get("/api/v1/torrents").0, 200);
    let log = skep.log_with("ready");
    assert_eq!(log.matches("the API is read-only").count(), 1, "{log}");
    let configured = start(&[("SKEP__ADMIN__TOKEN", "of sixteen bytes")]);
    assert_eq!(deny_with(&configured, "of sixteen bytes"), 409, "there is nowhere to write it");
    assert_eq!(deny_with(&configured, "of other bytes.."), 401);
}

#[test]
fn a_token_that_could_be_found_by_trying_is_refused() {
    for (token, is_allowed) in [
        ("fifteen bytes..", false),
        ("of sixteen bytes", true),
        ("tab\tof sixteen bytes", false),
        ("täken of sixteen bytes", false),
        (&"x".repeat(513), false),
    ] {
        let output = command().arg("check").env("SKEP__ADMIN__TOKEN", token).output().unwrap();
        let said = texts(&output).1;
        assert_eq!(output.status.success(), is_allowed, "{token}: {said}");
        assert!(is_allowed || said.contains("admin.token") && said.contains("16 to 512"), "{said}");
        assert!(is_allowed || !said.contains(token), "it is not shown: {said}");
    }
}

#[test]
fn the_command_line_finds_the_token_by_itself_and_shows_it_to_this_host_alone() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("a.torrent");
    let pieces = "x".repeat(20);
    let info = format!("d6:lengthi1e4:name1:a12:piece lengthi16384e6:pieces20:{pieces}e");
    fs::write(&file, format!("d4:info{info}e")).unwrap();
    let mut tracker = command();
    tracker.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    tracker.env("STATE_DIRECTORY", state.path()).env("SKEP__ACCESS__MODE", "registered");
    let skep = Skep::spawn(tracker);
    let add = |admin: &str, state: &Path| {
        let mut command = command();
        command.args(["torrent", "add", "--admin", admin]).arg(&file);
        let output = command.env("STATE_DIRECTORY", state).output().unwrap();
        (output.status.code(), format!("{}{}", texts(&output).0, texts(&output).1))
    };
    let here = format!("http://{}", skep.admin);
    let elsewhere = tempfile::tempdir().unwrap();
    let (code, said) = add(&here, elsewhere.path());
    assert!(code == Some(1) && said.contains("admin.token"), "{said}");
    let (code, said) = add(&here, state.path());
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn the_command_line_finds_the_listener_as_well() {
    let state = tempfile::tempdir().unwrap();
    let mut tracker = command();
    tracker.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    let skep = Skep::spawn({
        tracker.env("STATE_DIRECTORY", state.path());
        tracker
    });
    for words in [&["status"][..], &["deny", "ports", "add", "25"]] {
        let mut command = command();
        command.args(words).args(["--retries", "0"]).env("STATE_DIRECTORY", state.path());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?} {}", texts(&output).1);
    }
    skep.log_with("list changed list=\"ports_deny\" added=1");
}

#[test]
fn a_token_is_not_sent_to_an_address_that_another_user_has_written() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    fs::set_permissions(state.path(), Permissions::from_mode(0o700)).unwrap();
    // As another user would: a file with a lock on it, and the address of a listener.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let path = state.path().join("admin-address");
    fs::write(&path, format!("pid=1 admin={}\n", listener.local_addr().unwrap())).unwrap();
    give(&path, 0o600);
    let locked = fs::File::open(&path).unwrap();
    locked.lock().unwrap();
    let token = state.path().join("admin.token");
    fs::write(&token, "a token of root's tracker").unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let ask = |listen: &str, token: &[(&str, &str)]| {
        let mut command = command();
        command.args(["status", "--retries", "0"]).env("STATE_DIRECTORY", state.path());
        command.env("SKEP__ADMIN__LISTEN", listen).envs(token.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut request = String::new();
        eventually("it ends", || {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                let head = BufReader::new(stream).lines().map_while(Result::ok);
                head.take_while(|it| !it.is_empty()).for_each(|it| request += &(it + "\n"));
            }
            child.try_wait().unwrap().is_some()
        });
        (request, texts(&child.wait_with_output().unwrap()).1)
    };
    // With a listener that the settings name, the file is not read at all.
    let named = [("SKEP__ADMIN__TOKEN", "open sesame, please")];
    for (listen, token) in [("127.0.0.1:0", &named[..]), (&closed, &named), (&closed, &[])] {
        let (request, stderr) = ask(listen, token);
        assert_eq!(request, "", "{stderr}");
        assert!(stderr.contains(&format!("cannot reach http://{listen}: ")), "{stderr}");
    }
    // A token that was found in a file of root is not sent either.
    let (request, stderr) = ask("127.0.0.1:0", &[]);
    assert!(request.starts_with("GET /api/v1/status "), "{request} {stderr}");
    assert!(!request.to_lowercase().contains("authorization"), "{request}");
}

/// A skep that the user starts, copied to a folder: the user may not enter that of the build.
fn command_of_user(folder: &Path) -> Command {
    let program = folder.join("skep");
    // Another process copies it: a child that another thread starts would keep a descriptor of this
    // one that writes to the file, and the kernel executes none of those ("Text file busy").
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_skep")).arg(&program).status();
    assert!(copied.unwrap().success());
    give(&program, 0o700);
    give(folder, 0o700);
    let mut command = Command::new(program);
    command.env_clear().uid(USER).gid(USER);
    command
}

#[test]
fn a_token_that_is_withheld_keeps_nobody_from_reading() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    give(state.path(), 0o700);
    let programs = tempfile::tempdir().unwrap();
    let mut tracker = command_of_user(programs.path());
    tracker.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    tracker.env("STATE_DIRECTORY", state.path());
    let skep = Skep::spawn(tracker);
    let left_over = tempfile::tempdir().unwrap();
    fs::write(left_over.path().join("admin.token"), "a token of root's tracker").unwrap();
    fs::set_permissions(left_over.path().join("admin.token"), Permissions::from_mode(0o600))
        .unwrap();
    let ask = |words: &[&str]| {
        let mut command = command();
        command.args(words).args(["--retries", "0", "--admin", &skep.admin.to_string()]);
        let output = command.env("STATE_DIRECTORY", left_over.path()).output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    assert_eq!(ask(&["status"]), (Some(0), String::new()));
    let (code, stderr) = ask(&["deny", "ports", "add", "25"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&format!("belongs to user {USER}")), "{stderr}");
    assert!(!stderr.contains("start skep"), "{stderr}");
}

#[test]
fn an_address_file_that_may_not_be_read_is_named() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    fs::set_permissions(state.path(), Permissions::from_mode(0o700)).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let programs = tempfile::tempdir().unwrap();
    let mut command = command_of_user(programs.path());
    command.args(["status", "--retries", "0"]).env("SKEP__ADMIN__LISTEN", &closed);
    let output = command.env("STATE_DIRECTORY", state.path()).output().unwrap();
    let stderr = texts(&output).1;
    let path = state.path().join("admin-address");
    let said = format!("may be in {}, which this user may not read", path.display());
    assert!(stderr.contains(&said), "{stderr}");
}

#[test]
fn a_pipe_in_a_snapshots_place_holds_up_neither_the_start_nor_the_end() {
    let state = tempfile::tempdir().unwrap();
    for name in ["swarms.snapshot", "swarms.snapshot.previous"] {
        let made = Command::new("mkfifo").arg(state.path().join(name)).status();
        assert!(made.unwrap().success());
    }
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0"]).env("STATE_DIRECTORY", state.path());
    let mut skep = Skep::spawn(command);
    eventually("it is ready", || skep.get("/readyz").0 == 200);
    skep.log_with("no usable snapshot, starting with empty swarms");
    Client::connect(skep.udp[0]).announce(&leecher(1, 1));
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0));
    let written = state.path().join("swarms.snapshot").metadata().unwrap();
    assert!(written.is_file(), "{}", skep.log());
}

/// How long a supervisor waits for a probe's answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Holds several hundred connections to `to` from eight addresses, 50 new ones in a burst for each
/// round; of each ten, one sends a head without its body.
fn flood(to: SocketAddr, head: &str, rounds: &Receiver<()>) {
    let mut held = Vec::new();
    for () in rounds {
        for number in 0..50 {
            let from = SocketAddr::from(([127, 0, 0, 2 + number % 8], 0));
            let stream = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            if stream.bind(&from.into()).and_then(|()| stream.connect(&to.into())).is_err() {
                continue;
            }
            if number % 10 == 0 {
                let _ = stream.send(head.as_bytes());
            }
            held.push(stream);
        }
        if held.len() > 500 {
            held.drain(..50);
        }
    }
}

#[test]
fn probes_are_answered_beside_silent_connections_and_requests_whose_bodies_never_come() {
    let skep = Skep::start(&[]);
    let (admin, token) = (skep.admin, skep.token());
    let head = format!(
        "POST /api/v1/access/ports/deny HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 9\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        let (next, begun) = sync_channel(1);
        scope.spawn(move || flood(admin, &head, &begun));
        for round in 0..60 {
            next.send(()).unwrap();
            let begun = Instant::now();
            let path = ["/livez", "/readyz", "/startupz"][round % 3];
            let (status, said) = http_get(admin, path);
            assert_eq!(status, 200, "{path} {said}");
            slowest = slowest.max(begun.elapsed());
        }
    });
    assert!(slowest < PROBE_TIMEOUT, "{slowest:?}");
    assert!(skep.metrics().value("skep_admin_connections_closed_total") > 0.0);
}
