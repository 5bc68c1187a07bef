//! The subcommands that ask a running tracker, with a real skep: torrents, passkeys, lists, status;
//! and what each of them prints where there is no token, no tracker, or another program.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::support::tcp_clients::Certificate;
use crate::support::{
    Client, Skep, assert_bad_usage, command, eventually, http_get, leecher, run, seeder, texts,
};

const PRIVATE: (&str, &str) = ("SKEP__ACCESS__MODE", "private");
pub(crate) const REGISTERED: (&str, &str) = ("SKEP__ACCESS__MODE", "registered");

pub(crate) fn start(variables: &[(&str, &str)]) -> Skep {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).envs(variables.iter().copied());
    Skep::spawn(command)
}

/// Runs a subcommand with the token of this tracker: exit code, standard output and error.
pub(crate) fn ask(skep: &Skep, subcommand: &str, rest: &[&str]) -> (Option<i32>, String, String) {
    outcome(&ask_with_input(skep, subcommand, rest, ""))
}

/// A subcommand that asks this tracker, with pipes.
fn asking_command(skep: &Skep, subcommand: &str, rest: &[&str]) -> Command {
    let mut command = command();
    command.args(subcommand.split(' ')).args(["--admin", &skep.admin.to_string()]);
    command.args(["--retries", "0"]).args(rest).env("STATE_DIRECTORY", skep.folder());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ask_with_input(skep: &Skep, subcommand: &str, rest: &[&str], input: &str) -> Output {
    let mut child = asking_command(skep, subcommand, rest).spawn().unwrap();
    // A command that reads nothing closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn outcome(output: &Output) -> (Option<i32>, String, String) {
    let (stdout, stderr) = texts(output);
    (output.status.code(), stdout, stderr)
}

/// As [`ask`], with a standard output that nobody reads: exit code and standard error.
fn ask_unread(skep: &Skep, subcommand: &str, rest: &[&str], input: &str) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = asking_command(skep, subcommand, rest);
    let mut child = command.stdout(writer).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let (code, _, stderr) = outcome(&child.wait_with_output().unwrap());
    (code, stderr)
}

/// The objects that a command prints, one per line.
pub(crate) fn objects(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|it| serde_json::from_str(it).unwrap()).collect()
}

/// A `.torrent` file of this name; returns its path and its info-hash.
pub(crate) fn torrent_file(folder: &Path, name: &str) -> (String, String) {
    use sha1::Digest as _;
    let info = format!(
        "d6:lengthi5e4:name{}:{name}12:piece lengthi16384e6:pieces20:01234567890123456789e",
        name.len()
    );
    let path = folder.join(format!("{name}.torrent"));
    fs::write(&path, format!("d4:info{info}e")).unwrap();
    let hash = sha1::Sha1::digest(&info).iter().map(|it| format!("{it:02x}")).collect();
    (path.to_str().unwrap().to_owned(), hash)
}

#[test]
fn registered_torrents_are_listed_by_name_shown_and_removed() {
    let skep = start(&[REGISTERED]);
    let folder = tempfile::tempdir().unwrap();
    let torrents = ["one", "two"].map(|it| torrent_file(folder.path(), it));
    let (code, stdout, stderr) = ask(&skep, "torrent list", &[]);
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
    assert!(stderr.contains("no torrent is registered"), "{stderr}");
    let added = ask(&skep, "torrent add", &[&torrents[0].0, &torrents[1].0]);
    assert_eq!(added.0, Some(0), "{added:?}");
    let hash = skep::types::InfoHash::from_hex(&torrents[0].1).unwrap();
    let mut client = Client::connect(skep.udp[0]);
    for announcement in [leecher(1, 6881), seeder(1, 6882)] {
        client.announce(&skep::protocol::udp::client::Announcement {
            info_hash: hash,
            ..announcement
        });
    }
    let (code, stdout, _) = ask(&skep, "torrent list", &[]);
    assert_eq!(code, Some(0));
    let find = |name: &str| stdout.lines().find(|it| it.ends_with(&format!("\t{name}"))).unwrap();
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    assert!(find("one").starts_with(&format!("{}\t1\t1\t0\t5\t2", torrents[0].1)), "{stdout}");
    assert!(find("two").starts_with(&format!("{}\t0\t0\t0\t5\t2", torrents[1].1)), "{stdout}");
    assert_eq!(ask(&skep, "torrent list", &["--limit", "1"]).1.lines().count(), 1);
    let listed = objects(&ask(&skep, "torrent list", &["--json", "--swarms"]).1);
    assert_eq!((listed.len(), &listed[0]["name"]), (1, &json!("one")));
    for named in [&torrents[0].0, &torrents[0].1, &torrents[0].1.to_uppercase()] {
        let (code, stdout, stderr) = ask(&skep, "torrent show", &[named, "--peers"]);
        assert_eq!(code, Some(0), "{stderr}");
        for part in [&torrents[0].1, "name        one", "seeders     1", "127.0.0.1:6881"] {
            assert!(stdout.contains(part), "{part} is not in {stdout}");
        }
    }
    let shown = ask(&skep, "torrent show", &["--json", "--peers", &torrents[0].1]).1;
    let shown = &objects(&shown)[0];
    assert_eq!(shown["registration"]["piece_length"], json!(16384));
    assert_eq!(shown["peers"].as_array().unwrap().len(), 2);
    let (code, stdout, _) = ask(&skep, "torrent remove", &[&torrents[0].0, &"aa".repeat(20)]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains(&format!("removed {}  ", torrents[0].1)), "{stdout}");
    assert!(stdout.contains("failed  aaaa") && stdout.contains("not registered"), "{stdout}");
    let left = objects(&ask(&skep, "torrent list", &["--json"]).1);
    assert_eq!((left.len(), &left[0]["name"]), (1, &json!("two")));
    let (code, _, stderr) = ask(&skep, "torrent show", &[&"aa".repeat(20)]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no peer has announced this torrent"), "{stderr}");
}

#[test]
fn a_tracker_that_registers_nothing_names_the_remedy() {
    let skep = start(&[]);
    Client::connect(skep.udp[0]).announce(&leecher(7, 6881));
    for (subcommand, rest, mode) in [
        ("torrent list", &[][..], "registered"),
        ("torrent remove", &["aa".repeat(20).as_str()][..], "registered"),
        ("passkey add", &["ann"][..], "private"),
        ("passkey list", &[][..], "private"),
    ] {
        let (code, stdout, stderr) = ask(&skep, subcommand, rest);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{subcommand}");
        let remedy = "remedy: set access.mode to \"";
        assert!(stderr.contains(remedy) && stderr.contains(mode), "{stderr}");
    }
    let (_, _, stderr) = ask(&skep, "torrent list", &[]);
    assert!(stderr.ends_with("; --swarms lists announced torrents\n"), "{stderr}");
    let (code, stdout, _) = ask(&skep, "torrent list", &["--swarms"]);
    assert_eq!((code, stdout), (Some(0), format!("{}\t0\t1\t0\t-\t-\t-\n", "07".repeat(20))));
}

#[test]
fn passkeys_are_issued_listed_and_revoked() {
    let skep = start(&[PRIVATE]);
    let (code, stdout, stderr) = ask(&skep, "passkey add", &["ann", "--peers", "20"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let value = |stdout: &str, key: &str| {
        let line = stdout.lines().find_map(|it| it.strip_prefix(key)).unwrap();
        line.trim().to_owned()
    };
    let (passkey, id) = (value(&stdout, "passkey"), value(&stdout, "id"));
    assert_eq!(value(&stdout, "path"), format!("/announce/{passkey}"));
    let (code, stdout, stderr) = ask(&skep, "passkey add", &["--json", "bob"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let bob = &objects(&stdout)[0];
    let (code, stdout, stderr) = ask(&skep, "passkey add", &["ann"]);
    assert_eq!(code, Some(0));
    assert!(stderr.contains("also that of 1 other passkey"), "{stderr}");
    let other = value(&stdout, "id");
    let (_, stdout, _) = ask(&skep, "passkey list", &["--name", "ann"]);
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    let line = stdout.lines().find(|it| it.starts_with(&id)).unwrap();
    assert!(
        line.starts_with(&format!("{id}\t0\t0\t0\t0\t0\t2")) && line.ends_with("\tann"),
        "{line}"
    );
    let listed = objects(&ask(&skep, "passkey list", &["--json"]).1);
    assert_eq!(listed.len(), 3);
    let ann = listed.iter().find(|it| it["id"] == id.as_str()).unwrap();
    assert_eq!(ann["limits"]["peers"], json!(20));
    let (code, stdout, _) = ask(&skep, "passkey revoke", &["ann", "nobody", "0123456789abcdef"]);
    assert_eq!(code, Some(1), "{stdout}");
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[0].contains("2 passkeys have this name; remedy: "), "{stdout}");
    assert!(lines[1].contains("there is no passkey with this name"), "{stdout}");
    assert!(lines[2].contains("there is no passkey with this id"), "{stdout}");
    // By itself, by its id, and by a name that is now the only one.
    let (code, stdout, _) = ask(&skep, "passkey revoke", &[&passkey, bob["id"].as_str().unwrap()]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains(&format!("revoked {id}")) && !stdout.contains(&passkey), "{stdout}");
    let revoked = objects(&ask(&skep, "passkey revoke", &["--json", "ann"]).1);
    assert_eq!(revoked, [json!({ "id": other, "status": "revoked", "error": null })]);
    assert_eq!(ask(&skep, "passkey list", &[]).1, "");
}

#[test]
fn changes_go_on_where_nobody_reads_their_output() {
    let skep = start(&[PRIVATE]);
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two", "three"] {
        torrent_file(folder.path(), name);
    }
    let unprinted = |subcommand: &str, rest: &[&str], input: &str| {
        let (code, stderr) = ask_unread(&skep, subcommand, rest, input);
        assert_eq!(code, Some(1), "{subcommand}: {stderr}");
        let texts = ["cannot write to standard output", "the changes were made all the same"];
        assert!(texts.iter().all(|it| stderr.contains(it)), "{subcommand}: {stderr}");
    };
    let lines = |subcommand: &str| -> Vec<String> {
        ask(&skep, subcommand, &[]).1.lines().map(str::to_owned).collect()
    };
    unprinted("torrent add", &[folder.path().to_str().unwrap()], "");
    let torrents = lines("torrent list");
    assert_eq!(torrents.len(), 3, "{torrents:?}");
    assert_eq!(ask_unread(&skep, "torrent list", &[], "").0, Some(0), "a list is cut, not failed");
    let hashes: Vec<_> = torrents.iter().map(|it| it.split('\t').next().unwrap()).collect();
    unprinted("torrent remove", &hashes, "");
    assert!(lines("torrent list").is_empty());
    // More than one request has.
    let passkeys: String = (0..1001).map(|it| format!("{it:032x} ann\n")).collect();
    unprinted("passkey import", &["-"], &passkeys);
    let passkeys = lines("passkey list");
    assert_eq!(passkeys.len(), 1001);
    let ids: Vec<_> = passkeys[..6].iter().map(|it| it.split('\t').next().unwrap()).collect();
    unprinted("passkey revoke", &ids, "");
    assert_eq!(lines("passkey list").len(), 1001 - 6);
    unprinted("deny ports add", &["25", "26"], "");
    unprinted("deny ports remove", &["--json", "25", "26"], "");
    assert!(lines("deny ports list").is_empty());
}

#[test]
fn a_passkey_that_is_issued_and_not_shown_is_named_for_its_revocation() {
    let skep = start(&[PRIVATE]);
    let ids_after = |stderr: &str| -> Vec<String> {
        let (_, ids) = stderr.trim_end().split_once("skep passkey revoke ").unwrap();
        ids.split(' ').map(str::to_owned).collect()
    };
    let mut expected = 0;
    for (rest, name) in [(&["ann"][..], "ann"), (&["bob", "--json"], "bob")] {
        let (code, stderr) = ask_unread(&skep, "passkey add", rest, "");
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("a passkey was issued and is lost"), "{stderr}");
        let listed = ask(&skep, "passkey list", &["--name", name]).1;
        assert_eq!(ids_after(&stderr), [listed.split('\t').next().unwrap()]);
        expected += 1;
    }
    let names: String = (0..1002).map(|it| format!("eve {it}\n")).collect();
    let (code, stderr) = ask_unread(&skep, "passkey import", &["-", "--issue"], &names);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("1,000 passkeys; not imported: 2 lines; remedy: "), "{stderr}");
    let ids = ids_after(&stderr);
    let listed = ask(&skep, "passkey list", &[]).1;
    assert_eq!((ids.len(), listed.lines().count()), (1000, 1000 + expected));
    assert!(listed.contains(&ids[0]) && listed.contains(&ids[999]), "{}", ids[0]);
}

/// Whether an announce with this passkey is served.
fn is_served(skep: &Skep, passkey: &str) -> bool {
    let target = format!(
        "/announce/{passkey}?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-XX0000-000000000001&port=1001\
         &uploaded=0&downloaded=0&left=1"
    );
    let (status, body) = http_get(skep.tcp[0], &target);
    assert_eq!(status, 200);
    !body.contains("passkey")
}

#[test]
fn passkeys_of_another_tracker_are_imported_from_a_file_or_standard_input() {
    let skep = start(&[PRIVATE]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.txt");
    let [ann, bob, eve] = ["0a", "0B", "0c"].map(|it| it.repeat(16));
    fs::write(&file, format!("{ann} ann\nnot a passkey\n{ann}\n")).unwrap();
    let path = file.to_str().unwrap();
    let (code, stdout, stderr) = ask(&skep, "passkey import", &[path]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    for part in ["users.txt:2: a line must begin", "users.txt:3: the passkey is that of line 1"] {
        assert!(stderr.contains(part) && stderr.contains("nothing is imported"), "{stderr}");
    }
    assert_eq!(ask(&skep, "passkey list", &[]).1, "");
    assert!(!is_served(&skep, &ann));
    fs::write(&file, format!("# name behind passkey\n{ann} ann lee\n{bob},bob\n")).unwrap();
    let (code, stdout, stderr) = ask(&skep, "passkey import", &["--torrents", "7", path]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("2 passkeys added, 0 known"), "{stderr}");
    assert_eq!(stdout.lines().filter(|it| it.starts_with("imported\t")).count(), 2, "{stdout}");
    let body = json!({ "info_hash": "61".repeat(20) }).to_string();
    assert_eq!(skep.ask(("POST", "/api/v1/torrents"), &body).0, 201);
    assert!(is_served(&skep, &ann) && is_served(&skep, &bob) && !is_served(&skep, &eve));
    let listed = objects(&ask(&skep, "passkey list", &["--json", "--name", "ann lee"]).1);
    assert_eq!(listed[0]["limits"]["torrents"], json!(7));
    let input = format!("{ann} renamed\n{eve}\teve");
    let output = ask_with_input(&skep, "passkey import", &["-", "--json"], &input);
    let (code, stdout, stderr) = outcome(&output);
    assert_eq!(code, Some(0), "{stderr}");
    let statuses = objects(&stdout).iter().map(|it| it["status"].clone()).collect::<Vec<_>>();
    assert_eq!(statuses, ["known", "imported"]);
    assert!(is_served(&skep, &eve));
    let output = ask_with_input(&skep, "passkey import", &["--issue", "-"], "dan\neve\n");
    let (code, stdout, _) = outcome(&output);
    let rows: Vec<Vec<_>> = stdout.lines().map(|it| it.split('\t').collect()).collect();
    assert_eq!((code, rows.len(), rows[0][0], rows[0][3]), (Some(0), 2, "issued", "dan"));
    assert!(is_served(&skep, rows[0][2]) && is_served(&skep, rows[1][2]));
    // A file of passkeys is not one of names: as names they would be kept and logged.
    let input = format!("{eve} eve\n");
    let (code, _, stderr) =
        outcome(&ask_with_input(&skep, "passkey import", &["-", "--issue"], &input));
    let fault = "standard input:1: the line begins with a passkey; with --issue a line is a name";
    assert!(code == Some(1) && stderr.contains(fault) && !stderr.contains(&eve), "{stderr}");
    let (code, _, stderr) = ask(&skep, "passkey import", &["/nowhere"]);
    assert!(code == Some(1) && stderr.contains("cannot read /nowhere"), "{stderr}");
}

#[test]
fn lists_are_edited_in_force_at_once_and_in_their_file() {
    let skep = start(&[]);
    let networks = ["203.0.113.0/24", "2001:db8::/32"];
    let (code, stdout, stderr) =
        ask(&skep, "deny networks add", &["--reason", "a flood", networks[0], networks[1]]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout, "networks_deny: 2 added, 2 values in the list\n");
    let file = fs::read_to_string(skep.folder().join("access/networks_deny.list")).unwrap();
    assert_eq!(file, "203.0.113.0/24 a flood\n2001:db8::/32 a flood\n");
    let (_, stdout, _) = ask(&skep, "deny networks list", &[]);
    assert_eq!(stdout, "203.0.113.0/24\ta flood\n2001:db8::/32\ta flood\n");
    let added = objects(&ask(&skep, "deny ports add", &["--json", "6882"]).1);
    let change = json!({ "list": "ports_deny", "added": 1, "changed": 0, "entries": 1 });
    assert_eq!(added, [change]);
    let refused = Client::connect(skep.udp[0]).announce_refused(&leecher(1, 6882));
    assert!(refused.contains("port"), "{refused}");
    let (_, stdout, _) = ask(&skep, "deny networks add", &["--reason", "another", networks[1]]);
    assert_eq!(stdout, "networks_deny: 1 changed, 2 values in the list\n");
    let networks_file = skep.folder().join("access/networks_deny.list");
    fs::write(networks_file, format!("{} a flood\n{} a flood\n", networks[0], networks[1]))
        .unwrap();
    skep.signal("HUP");
    skep.log_with("added=0 removed=0 changed=1 entries=2 by=reload");
    let (code, stdout, _) = ask(&skep, "deny networks remove", &[networks[0], "10.0.0.0/8"]);
    assert_eq!(code, Some(1));
    assert_eq!(stdout, "removed 203.0.113.0/24\nfailed  10.0.0.0/8: not in networks_deny\n");
    let entries = objects(&ask(&skep, "deny networks list", &["--json"]).1);
    assert_eq!(entries, [json!({ "value": networks[1], "reason": "a flood" })]);
    // Behind dashes, as it begins with one; the page behind it is asked for with its own `%`.
    assert_eq!(ask(&skep, "deny clients add", &["--", "-XL", "%1f"]).0, Some(0));
    assert_eq!(ask(&skep, "deny clients list", &[]).1, "%1f\t\n-XL\t\n");
    let hash = "0b".repeat(20);
    let magnet = format!("magnet:?xt=urn:btih:{hash}");
    let (code, _, stderr) = ask(&skep, "allow torrents add", &[&magnet]);
    let note = "torrents_allow was empty; from now on only what is in the list is served";
    assert_eq!((code, stderr), (Some(0), format!("skep: note: {note}\n")));
    assert_eq!(ask(&skep, "allow torrents add", &[&magnet]).2, "", "it is on the list");
    assert_eq!(ask(&skep, "allow torrents list", &[]).1, format!("{hash}\t\t-\n"));
    let refused = Client::connect(skep.udp[0]).announce_refused(&leecher(1, 6881));
    assert!(refused.contains("torrent"), "{refused}");
    let (code, _, stderr) = ask(&skep, "allow torrents remove", &[&hash]);
    let note = "torrents_allow is empty: nothing is restricted by it any more";
    assert_eq!((code, stderr), (Some(0), format!("skep: note: {note}\n")));
    Client::connect(skep.udp[0]).announce(&leecher(1, 6881));
    let (code, stdout, stderr) = ask(&skep, "allow networks list", &[]);
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
    assert!(stderr.contains("networks_allow is empty"), "{stderr}");
}

#[test]
fn an_emptied_allow_list_that_a_setting_names_is_noted_to_serve_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients");
    fs::write(&path, "-XL\n").unwrap();
    let skep = start(&[("SKEP__ACCESS__CLIENTS_ALLOW", path.to_str().unwrap())]);
    let (code, _, stderr) = ask(&skep, "allow clients remove", &["--", "-XL"]);
    let note = "clients_allow is empty, and a setting names its file: nothing is served any more";
    assert_eq!((code, stderr), (Some(0), format!("skep: note: {note}\n")));
    Client::connect(skep.udp[0]).announce_refused(&leecher(1, 6881));
}

#[test]
fn every_subcommand_finds_the_tracker_of_a_settings_file() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("skep.toml");
    let write = |rest: &str| {
        let state = folder.path().join("state");
        let listen = "[admin]\nlisten = \"127.0.0.1:0\"\n";
        fs::write(&settings, format!("[server]\nstate_dir = {state:?}\n{listen}{rest}")).unwrap();
    };
    let (file, _) = torrent_file(folder.path(), "one");
    for token in ["", "token = \"open sesame, please\"\n"] {
        write(&format!("{token}[access]\nmode = \"private\"\n"));
        let mut tracker = command();
        tracker.args(["--listen", "127.0.0.1:0", "--workers", "1", "--config"]).arg(&settings);
        let skep = Skep::spawn(tracker);
        for words in asking(&file) {
            let mut command = command();
            command.args(&words).args(["--retries", "0", "--config"]).arg(&settings);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let _ = child.stdin.take().unwrap().write_all(b"ann\n");
            let (_, _, stderr) = outcome(&child.wait_with_output().unwrap());
            for problem in ["cannot reach", "token", "admin listener"] {
                assert!(!stderr.contains(problem), "{words:?} {stderr}");
            }
        }
        drop(skep);
    }
    write("nothing = 1\n");
    let words = ["status", "--config", settings.to_str().unwrap()];
    let (code, _, stderr) = outcome(&command().args(words).output().unwrap());
    assert!(code == Some(2) && stderr.contains("admin.nothing"), "{stderr}");
}

#[test]
fn the_status_of_a_tracker_fits_on_a_screen() {
    let skep = start(&[PRIVATE]);
    assert_eq!(ask(&skep, "passkey add", &["ann"]).0, Some(0));
    // Figures are those of the latest second.
    let mut screen = String::new();
    eventually("the passkey is counted", || {
        screen = ask(&skep, "status", &[]).1;
        screen.contains("access     private; registered info-hashes 0, passkeys 1\n")
    });
    let version = format!("skep {} at http://{}\n", env!("CARGO_PKG_VERSION"), skep.admin);
    for part in [&version, "state      serving, up ", "peers      0: 0 seeders, 0 leechers\n"] {
        assert!(screen.contains(part), "{part} is not in {screen}");
    }
    for line in ["memory     ", "limits     ", "load       ", "warnings   "] {
        assert!(screen.contains(line), "{line} is not in {screen}");
    }
    let status = &objects(&ask(&skep, "status", &["--json"]).1)[0];
    assert_eq!((&status["access_mode"], &status["state"]), (&json!("private"), &json!("serving")));
    assert_eq!(status["torrents"]["passkeys"], json!(1));
}

/// Every subcommand that asks a tracker, with arguments that it accepts.
fn asking(file: &str) -> Vec<Vec<&str>> {
    let all = [
        "status",
        "torrent list",
        "torrent show HASH",
        "torrent remove HASH",
        "torrent add FILE",
        "passkey add ann",
        "passkey list",
        "passkey revoke ann",
        "passkey import - --issue",
        "deny networks add 10.0.0.0/8",
        "deny ports remove 25",
        "deny torrents list",
        "allow clients list",
    ];
    let hash = "0123456789012345678901234567890123456789";
    let word = |word: &'static str| match word {
        "HASH" => hash,
        "FILE" => file,
        _ => word,
    };
    all.map(|it| it.split(' ').map(word).collect()).to_vec()
}

/// Runs a subcommand at an address: exit code, standard output and error.
fn ask_at(words: &[&str], admin: &str, rest: &[&str]) -> (Option<i32>, String, String) {
    let mut command = command();
    command.args(words).args(["--admin", admin]).args(rest);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(b"ann\n");
    outcome(&child.wait_with_output().unwrap())
}

#[test]
fn every_subcommand_names_the_flag_for_a_missing_or_wrong_token() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = torrent_file(folder.path(), "one");
    let skep = start(&[PRIVATE, ("SKEP__ADMIN__TOKEN", "open sesame, please")]);
    let admin = skep.admin.to_string();
    let secret = folder.path().join("token");
    fs::write(&secret, "open sesame, please\nnote\n").unwrap();
    let right = ["--token-file", secret.to_str().unwrap()];
    for words in asking(&file) {
        for (rest, fault) in [(&[][..], "token missing"), (&["--token", "wrong"], "token wrong")] {
            let (code, stdout, stderr) = ask_at(&words, &admin, rest);
            assert_eq!(code, Some(1), "{words:?} {stdout}");
            assert!(stderr.contains(fault), "{words:?} {stderr}");
            assert!(stderr.contains("remedy: --token-file FILE"), "{words:?} {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
        let (_, _, stderr) = ask_at(&words, &admin, &right);
        assert!(!stderr.contains("token"), "{words:?} {stderr}");
    }
    fs::write(&secret, "\n").unwrap();
    let (code, _, stderr) = ask_at(&["status"], &admin, &right);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--token-file: the first line of"), "{stderr}");
    let (code, _, stderr) = ask_at(&["status"], &admin, &["--token-file", "/nowhere"]);
    assert!(code == Some(2) && stderr.contains("--token-file: cannot read /nowhere"), "{stderr}");
}

#[test]
fn every_subcommand_stops_at_once_where_no_tracker_responds() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = torrent_file(folder.path(), "one");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for words in asking(&file) {
        let (code, _, stderr) = ask_at(&words, &closed, &["--retries", "0"]);
        assert_eq!(code, Some(1), "{words:?}");
        let said = format!("skep: cannot reach http://{closed}: ");
        assert!(stderr.contains(&said) && stderr.contains("remedy: start skep"), "{stderr}");
        assert!(stderr.contains("--config FILE"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let words = ["torrent", "add", &file, &file, &file];
    let (code, stdout, stderr) = ask_at(&words, &closed, &["--retries", "0"]);
    assert_eq!(code, Some(1));
    assert_eq!(stdout, "0 registered, 0 known, 0 failed, 3 not tried\n");
    assert_eq!(stderr.matches("cannot reach").count(), 1, "{stderr}");
}

#[test]
fn a_wrong_variable_ends_a_subcommand_that_needs_the_environment() {
    let skep = start(&[("SKEP__ADMIN__TOKEN", "open sesame, please")]);
    let admin = skep.admin.to_string();
    let ask = |words: &[&str], wrong: &[(&str, &str)]| {
        let mut command = command();
        command.args(words).env("SKEP__ADMIN__LISTEN", &admin);
        command.env("SKEP__ADMIN__TOKEN", "open sesame, please").envs(wrong.iter().copied());
        outcome(&command.output().unwrap())
    };
    assert_eq!(ask(&["status"], &[]).0, Some(0));
    let wrong = [("SKEP__TRACKER__INTERVAL_S", "soon"), ("SKEP__ADMIN__LISTN", "x")];
    for words in [&["status"][..], &["deny", "ports", "add", "25"], &["health"]] {
        let (code, stdout, stderr) = ask(words, &wrong);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{words:?} {stderr}");
        for (name, _) in wrong {
            let is_named = stderr.lines().any(|it| it.contains(name) && it.starts_with("skep: "));
            assert!(is_named, "{words:?}: {name} is not in {stderr}");
        }
    }
    let named = ["status", "--admin", &admin];
    let with_token = [&named[..], &["--token", "open sesame, please"]].concat();
    for words in [&named[..], &with_token, &["health", "--admin", &admin]] {
        let (code, _, stderr) = ask(words, &wrong);
        assert_eq!(code, Some(0), "the environment is not needed: {words:?} {stderr}");
    }
    let (code, _, stderr) = ask(&named, &[wrong[0], ("SKEP__ADMIN__TOKEN", "")]);
    assert_eq!(code, Some(2), "the state directory with the token is unknown: {stderr}");
}

#[test]
fn what_a_terminal_obeys_in_a_name_is_escaped_in_json() {
    let skep = start(&[REGISTERED]);
    let folder = tempfile::tempdir().unwrap();
    let name = "a\u{9b}2J\u{202e}b\u{2066}c\u{7f}";
    let (path, hash) = torrent_file(folder.path(), name);
    for (subcommand, argument) in [
        ("torrent add", Some(&path)),
        ("torrent list", None),
        ("torrent show", Some(&hash)),
        ("torrent remove", Some(&path)),
    ] {
        let rest: Vec<_> = argument.map(String::as_str).into_iter().chain(["--json"]).collect();
        let (code, stdout, stderr) = ask(&skep, subcommand, &rest);
        assert_eq!(code, Some(0), "{stderr}");
        let escaped = r"a\u009b2J\u202eb\u2066c\u007f";
        assert!(stdout.contains(escaped) && !stdout.contains('\u{9b}'), "{stdout:?}");
        assert_eq!(stdout.matches('\u{202e}').count(), 0, "{stdout:?}");
        objects(&stdout);
    }
}

#[test]
fn a_token_that_leaves_this_host_without_tls_is_noted() {
    // The kernel refuses a connect to the broadcast address: nothing leaves this host.
    for (admin, rest, is_noted) in [
        ("255.255.255.255:6970", &["--token", "x"][..], true),
        ("255.255.255.255:6970", &[][..], false),
        ("https://255.255.255.255:6970", &["--token", "x", "--insecure"], false),
        ("127.0.0.1:1", &["--token", "x"], false),
    ] {
        let rest = [rest, &["--retries", "0"]].concat();
        let (code, _, stderr) = ask_at(&["status"], admin, &rest);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("cannot reach"), "{admin}: {stderr}");
        let note = format!("skep: note: the token is sent without TLS to http://{admin}; remedy: ");
        assert_eq!(stderr.starts_with(&note), is_noted, "{admin} {rest:?}: {stderr}");
    }
}

/// Responds to each connection with the next of these responses.
fn respond(listener: TcpListener, responses: &'static [&'static str]) {
    for response in responses {
        let mut stream = listener.accept().unwrap().0;
        let lines = BufReader::new(&stream).lines().map_while(Result::ok);
        lines.take_while(|it| !it.is_empty()).for_each(drop);
        stream.write_all(response.as_bytes()).unwrap();
    }
}

#[test]
fn a_tracker_that_is_busy_is_asked_again_and_another_program_is_not() {
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n\
                        {\"error\":{\"code\":\"starting\",\"message\":\"not yet\"}}";
    const EMPTY: &str = "HTTP/1.1 200 OK\r\n\r\n{\"torrents\":[],\"next\":null}";
    const PAGE: &str = "HTTP/1.1 200 OK\r\n\r\n<html>";
    let serve = |responses| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (address, std::thread::spawn(move || respond(listener, responses)))
    };
    let (address, thread) = serve(&[BUSY, EMPTY]);
    let (code, _, stderr) = ask_at(&["torrent", "list"], &address, &["--retries", "1"]);
    assert_eq!(code, Some(0), "{stderr}");
    thread.join().unwrap();
    let (address, thread) = serve(&[BUSY]);
    let (code, _, stderr) = ask_at(&["torrent", "list"], &address, &["--retries", "0"]);
    assert!(code == Some(1) && stderr.contains("not yet"), "{stderr}");
    thread.join().unwrap();
    let (address, thread) = serve(&[PAGE]);
    let (code, _, stderr) = ask_at(&["status"], &address, &[]);
    assert!(code == Some(1) && stderr.contains("is not skep"), "{stderr}");
    thread.join().unwrap();
}

#[test]
fn bad_arguments_end_with_2_and_name_what_is_allowed() {
    assert_bad_usage(&[
        (&["status", "--admin", "127.0.0.1"], "the port is missing; remedy: 127.0.0.1:6970"),
        (&["status", "--admin", "udp://127.0.0.1:6970"], "allowed: ADDRESS:PORT"),
        (&["passkey", "list", "--admin", "http://a:1/stats"], "a path is not allowed"),
        (&["torrent", "show", "12"], "40 or 64 hexadecimal digits"),
        (&["torrent", "remove", &"g".repeat(40)], "40 or 64 hexadecimal digits"),
        (&["torrent", "list", "--sort", "size"], "peers, seeders, completed"),
        (&["deny", "networks", "add", "10.0.0.0/33"], "\"10.0.0.0/33\" is not a network"),
        (&["deny", "ports", "remove", "0x19"], "\"0x19\" must be a port"),
        (&["allow", "ports", "list"], "ports"),
        (&["passkey", "add"], "NAME"),
        (&["passkey", "add", ""], "control characters, and not only spaces"),
        (&["passkey", "add", &"x".repeat(101)], "a text of 1 to 100 bytes"),
        (&["passkey", "revoke", ""], "a value is required"),
        (&["deny", "ports", "add", "25", "--reason", "a\nb"], "--reason: must be a reason without"),
        (
            &["status", "--admin", "https://a:1", "--ca", "/no"],
            "/no: certificates cannot be read: No",
        ),
        (&["torrent", "list", "--retries", "x"], "--retries"),
    ]);
    for words in asking("x") {
        let help = run(&[&words[..], &["--help"]].concat());
        let (stdout, _) = texts(&help);
        assert_eq!(help.status.code(), Some(0), "{words:?}");
        for part in ["Examples:\n", "--token-file", "--retries", "Exit codes: 0 done"] {
            assert!(stdout.contains(part), "{words:?}: {part} is not in\n{stdout}");
        }
        assert!(stdout.lines().all(|it| it.chars().count() <= 100), "{stdout}");
    }
}

/// Passes one request on to an admin listener, and the response back, as a proxy with TLS does.
fn pass_on(listener: &TcpListener, config: Arc<ServerConfig>, admin: SocketAddr) {
    let stream = listener.accept().unwrap().0;
    let mut client = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        // A client that does not trust the certificate ends here.
        if client.read(&mut byte).is_ok_and(|it| it == 1) { head.push(byte[0]) } else { return }
    }
    let mut tracker = TcpStream::connect(admin).unwrap();
    tracker.write_all(&head).unwrap();
    let mut response = Vec::new();
    tracker.read_to_end(&mut response).unwrap();
    client.write_all(&response).unwrap();
    client.conn.send_close_notify();
    client.flush().unwrap();
}

#[test]
fn an_admin_listener_behind_https_is_asked_once_its_certificate_is_trusted() {
    let skep = start(&[("SKEP__ADMIN__TOKEN", "open sesame, please")]);
    let folder = tempfile::tempdir().unwrap();
    let files = Certificate::write(folder.path());
    let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![certificate], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let admin = skep.admin;
    let thread = std::thread::spawn(move || {
        (0..6).for_each(|_| pass_on(&listener, config.clone(), admin));
    });
    let token = ["--token", "open sesame, please", "--retries", "0"];
    let ask =
        |rest: &[&str]| ask_at(&["torrent", "list", "--swarms"], &url, &[&token, rest].concat());
    let (code, _, stderr) = ask(&[]);
    assert!(code == Some(1) && stderr.contains(&format!("cannot reach {url}: ")), "{stderr}");
    assert_eq!(ask(&["--ca", files.certificate.to_str().unwrap()]).0, Some(0));
    assert_eq!(ask(&["--insecure"]).0, Some(0));
    let (code, _, stderr) = ask_at(&["health"], &url, &[]);
    assert!(code == Some(1) && stderr.contains("no skep responds at localhost:"), "{stderr}");
    for trust in [&["--ca", files.certificate.to_str().unwrap()][..], &["--insecure"]] {
        let (code, stdout, stderr) = ask_at(&["health"], &url, trust);
        assert!(code == Some(0) && stdout.ends_with(" is well\n"), "{stdout}{stderr}");
    }
    let (code, _, stderr) = ask_at(&["health"], &url, &["--ca", "/nowhere"]);
    assert!(code == Some(2) && stderr.contains("/nowhere"), "{stderr}");
    thread.join().unwrap();
}
