//! Access control as operators meet it: lists in files and through the API, registered torrents,
//! passkeys, `skep torrent add`; with a real skep.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::support::{Skep, command, eventually, http_get, run, texts};

/// A skep with these variables, whose state outlives it.
fn start(state: &Path, variables: &[(&str, &str)]) -> Skep {
    let mut command = prepared(state, variables);
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    Skep::spawn(command)
}

fn prepared(state: &Path, variables: &[(&str, &str)]) -> Command {
    let mut command = command();
    command.env("STATE_DIRECTORY", state).envs(variables.iter().copied());
    command
}

/// Runs a skep that refuses to start.
fn refused(state: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = prepared(state, variables);
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).output().unwrap()
}

/// Asks the admin listener; a status and what the body says.
fn ask(skep: &Skep, method: &str, target: &str, body: &str) -> (u16, Value) {
    let (status, body) = skep.ask((method, target), body);
    (status, serde_json::from_str(&body).unwrap())
}

/// What is on a list.
fn values(skep: &Skep, list: &str) -> Vec<String> {
    let (status, page) = ask(skep, "GET", &format!("/api/v1/access/{list}"), "");
    assert_eq!((status, &page["next"]), (200, &Value::Null), "{page}");
    let entries = page["entries"].as_array().unwrap().iter();
    entries.map(|it| it["value"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn edits_through_the_api_are_in_force_in_the_file_and_in_the_log() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("networks");
    fs::write(&file, "# by hand\n192.0.2.0/24 a flood\n").unwrap();
    let networks = [("SKEP__ACCESS__NETWORKS_DENY", file.to_str().unwrap())];
    let skep = start(state.path(), &networks);
    let entry = "/api/v1/access/networks/deny/10.0.0.0%2F8";
    let (status, change) = ask(&skep, "PUT", entry, r#"{"reason":" not ours "}"#);
    assert_eq!((status, &change["added"], &change["entries"]), (200, &json!(1), &json!(2)));
    let (_, found) = ask(&skep, "GET", entry, "");
    assert_eq!(found, json!({ "value": "10.0.0.0/8", "reason": "not ours" }));
    skep.log_with(
        "list changed list=\"networks_deny\" added=1 removed=0 entries=2 by=api:127.0.0.1:",
    );
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "# by hand\n192.0.2.0/24 a flood\n10.0.0.0/8 not ours\n"
    );
    let other = "/api/v1/access/networks/deny/192.0.2.0%2F24";
    assert_eq!(ask(&skep, "DELETE", other, "").0, 200);
    assert_eq!(ask(&skep, "DELETE", other, "").1["error"]["code"], "not_listed");
    assert_eq!(fs::read_to_string(&file).unwrap(), "# by hand\n10.0.0.0/8 not ours\n");
    let hash = "0b".repeat(20);
    let magnet = format!(r#"{{"add":["magnet:?xt=urn:btih:{hash}"]}}"#);
    assert_eq!(ask(&skep, "POST", "/api/v1/access/torrents/deny", &magnet).0, 200);
    let log =
        skep.log_with("list changed list=\"torrents_deny\" added=1 removed=0 entries=1 by=api:");
    assert!(!log.contains("added=0 removed=0"), "nothing changed: {log}");
    let metrics = skep.metrics();
    assert_eq!(metrics.value("skep_access_entries{list=\"networks_deny\"}"), 1.0);
    assert_eq!(metrics.value("skep_access_entries{list=\"torrents_deny\"}"), 1.0);
    drop(skep);
    let again = start(state.path(), &networks);
    assert_eq!(values(&again, "networks/deny"), ["10.0.0.0/8"]);
    assert_eq!(values(&again, "torrents/deny"), [hash], "kept in the state directory");
}

#[test]
fn a_bad_line_keeps_the_list_in_force_on_reload_and_stops_a_start() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("clients");
    fs::write(&file, "-XL\n").unwrap();
    let clients = [("SKEP__ACCESS__CLIENTS_DENY", file.to_str().unwrap())];
    let skep = start(state.path(), &clients);
    fs::write(&file, "-XM\n-XN\n%\n").unwrap();
    let (status, response) = ask(&skep, "POST", "/api/v1/access/reload", "");
    assert_eq!((status, &response["error"]["code"]), (409, &json!("bad_list")));
    let message = response["error"]["message"].as_str().unwrap();
    assert!(message.contains("clients:3: "), "{message}");
    assert_eq!(values(&skep, "clients/deny"), ["-XL"]);
    skep.signal("HUP");
    skep.log_with(
        "list not reloaded, the previous one stays list=\"clients_deny\" by=reload error=",
    );
    let failures = || skep.metrics().value("skep_access_reload_failures_total");
    eventually("both failures are counted", || failures() == 2.0);
    let log = skep.log_with("WARN access lists not reloaded, the previous ones stay");
    let last = log.lines().last().unwrap();
    assert!(last.contains("WARN access lists not reloaded") && last.contains("clients_deny"));
    assert!(!log.contains("nothing has changed"), "{log}");
    let is_warned_of = || {
        let status = ask(&skep, "GET", "/api/v1/status", "").1;
        let mut warnings = status["warnings"].as_array().into_iter().flatten();
        warnings.any(|it| it["id"] == "access_reload_failures")
    };
    eventually("the failure is warned of", is_warned_of);
    assert_eq!(values(&skep, "clients/deny"), ["-XL"]);
    let (status, response) = ask(&skep, "PUT", "/api/v1/access/clients/deny/-XO", "");
    assert_eq!((status, &response["error"]["code"]), (409, &json!("bad_list")));
    assert_eq!(fs::read_to_string(&file).unwrap(), "-XM\n-XN\n%\n", "left alone");
    let check = prepared(state.path(), &clients).arg("check").output().unwrap();
    for output in [refused(state.path(), &clients), check] {
        let (_, said) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("clients:3: "), "{said}");
    }
    fs::write(&file, "-XM\n-XN\n").unwrap();
    skep.signal("HUP");
    eventually("the mended list is in force", || values(&skep, "clients/deny") == ["-XM", "-XN"]);
    skep.log_with("list changed list=\"clients_deny\" added=2 removed=1 entries=2 by=reload");
    eventually("the warning is gone", || !is_warned_of());
    assert_eq!(failures(), 2.0, "those since the start are still counted");
}

/// An announce over HTTP: bytes uploaded and downloaded, and bytes that are missing.
fn announce(skep: &Skep, passkey: &str, who: u16, event: &str, [up, down, left]: [u64; 3]) {
    let target = format!(
        "/announce/{passkey}?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-XX0000-{who:012}&port={who}\
         &uploaded={up}&downloaded={down}&left={left}&event={event}&compact=0"
    );
    let (status, response) = http_get(skep.tcp[0], &target);
    assert!(status == 200 && response.contains("interval"), "{response}");
}

/// A seeder and a leecher, with a restart between what they announce.
fn bytes_moved_over(restart: impl FnOnce(Skep, &Path) -> Skep) {
    const ALL: u64 = 3_146_505;
    let state = tempfile::tempdir().unwrap();
    let skep = start(state.path(), &[PRIVATE]);
    let torrent = json!({ "info_hash": "61".repeat(20) }).to_string();
    assert_eq!(ask(&skep, "POST", "/api/v1/torrents", &torrent).0, 201);
    let [seeder, leecher] = ["seeder", "leecher"].map(|name| {
        let (status, told) =
            ask(&skep, "POST", "/api/v1/passkeys", &json!({ "name": name }).to_string());
        assert_eq!(status, 201, "{told}");
        ["passkey", "id"].map(|it| told[it].as_str().unwrap().to_owned())
    });
    announce(&skep, &seeder[0], 1001, "started", [0, 0, 0]);
    announce(&skep, &leecher[0], 1002, "started", [0, 0, ALL]);
    announce(&skep, &leecher[0], 1002, "", [0, 1_000_000, ALL - 1_000_000]);
    assert_eq!(ask(&skep, "POST", "/api/v1/save", "").0, 200);
    announce(&skep, &leecher[0], 1002, "", [0, 2_000_000, ALL - 2_000_000]);
    let skep = restart(skep, state.path());
    // It may restore still.
    announce(&skep, &leecher[0], 1002, "completed", [0, ALL - 5, 0]);
    announce(&skep, &seeder[0], 1001, "stopped", [ALL, 0, 0]);
    eventually("all is restored", || skep.get("/readyz").0 == 200);
    announce(&skep, &leecher[0], 1002, "stopped", [0, ALL, 0]);
    for ([_, id], key, other) in
        [(&seeder, "uploaded", "downloaded"), (&leecher, "downloaded", "uploaded")]
    {
        let (_, told) = ask(&skep, "GET", &format!("/api/v1/passkeys/{id}"), "");
        assert_eq!((&told[key], &told[other]), (&json!(ALL), &json!(0)), "{told}");
        assert_eq!(told["peers"], json!(0), "{told}");
    }
}

const PRIVATE: (&str, &str) = ("SKEP__ACCESS__MODE", "private");

#[test]
fn a_clean_restart_costs_no_passkey_a_byte() {
    bytes_moved_over(|mut skep, state| {
        skep.signal("TERM");
        assert!(skep.wait().success());
        start(state, &[PRIVATE])
    });
}

#[test]
fn a_take_over_costs_no_passkey_a_byte() {
    bytes_moved_over(|mut skep, state| {
        let mut command = prepared(state, &[PRIVATE]);
        command.args(["run", "--take-over", "--listen", "127.0.0.1:0", "--workers", "1"]);
        let successor = Skep::spawn(command);
        assert!(skep.wait().success());
        successor
    });
}

#[test]
fn a_crash_costs_no_passkey_a_byte_of_sessions_that_go_on() {
    bytes_moved_over(|mut skep, state| {
        skep.signal("KILL");
        skep.wait();
        start(state, &[PRIVATE])
    });
}

#[test]
fn registered_torrents_outlive_a_restart_until_they_are_unregistered() {
    let state = tempfile::tempdir().unwrap();
    let mode = [("SKEP__ACCESS__MODE", "registered"), ("SKEP__ACCESS__SIMILAR_DIGITS_MAX", "2")];
    let mut skep = start(state.path(), &mode);
    let (v1, v2) = ("0a".repeat(20), "0b".repeat(32));
    let body = json!({ "info_hash": v1, "info_hash_v2": v2, "name": "one", "size": 7 });
    let (status, told) = ask(&skep, "POST", "/api/v1/torrents", &body.to_string());
    assert_eq!((status, &told["info_hash_v2"]), (201, &json!(v2[..40])));
    assert_eq!(ask(&skep, "POST", "/add_torrent_info", &body.to_string()).0, 200);
    let taken = json!({ "info_hash": v2 }).to_string();
    let (status, response) = ask(&skep, "POST", "/api/v1/torrents", &taken);
    assert_eq!((status, &response["error"]["code"]), (409, &json!("hash_taken")));
    let stranger = format!("1b{}", &v1[2..]);
    let similar = format!("/api/v1/torrents/{stranger}/similar");
    let (_, response) = ask(&skep, "GET", &similar, "");
    assert_eq!((&response["registered"], &response["resembles"]), (&json!(false), &json!([v1])));
    assert_eq!(skep.metrics().value("skep_registered_torrents"), 2.0);
    skep.signal("TERM");
    assert!(skep.wait().success());
    let skep = start(state.path(), &mode);
    let registration = format!("/api/v1/torrents/{}/registration", &v2[..40]);
    let (status, again) = ask(&skep, "GET", &registration, "");
    assert_eq!((status, &again["name"], &again["info_hash"]), (200, &json!("one"), &json!(v1)));
    let torrent = format!("/api/v1/torrents/{v1}");
    assert_eq!(ask(&skep, "DELETE", &torrent, "").1, json!({ "status": "unregistered" }));
    assert_eq!(ask(&skep, "GET", &registration, "").1["error"]["code"], "unregistered");
    assert_eq!(ask(&skep, "DELETE", &torrent, "").0, 404);
    let log = skep.log_with(&format!("torrent unregistered info_hash={v1} by=api:127.0.0.1:"));
    let line = log.lines().find(|it| it.contains("torrent unregistered")).unwrap();
    assert!(line.ends_with(r#"name="one""#), "{line}");
}

#[test]
fn a_damaged_database_never_opens_the_tracker() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("access.redb");
    fs::write(&file, "no database").unwrap();
    for mode in ["registered", "private"] {
        let output = refused(state.path(), &[("SKEP__ACCESS__MODE", mode)]);
        let (stdout, said) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{said}");
        assert!(said.contains("access.redb") && said.contains("remedy: "), "{said}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "no database", "left alone");
    let nowhere = state.path().join("access.redb/state");
    let output = refused(&nowhere, &[("SKEP__ACCESS__MODE", "registered")]);
    let (_, said) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("server.state_dir"), "{said}");
}

#[test]
fn an_open_tracker_says_that_it_registers_nothing() {
    let state = tempfile::tempdir().unwrap();
    let skep = start(state.path(), &[]);
    let body = json!({ "info_hash": "0a".repeat(20) }).to_string();
    let (status, response) = ask(&skep, "POST", "/api/v1/torrents", &body);
    assert_eq!((status, &response["error"]["code"]), (409, &json!("wrong_mode")));
    assert_eq!(ask(&skep, "POST", "/api/v1/passkeys", "").0, 409);
    assert!(!state.path().join("access.redb").exists());
}

#[test]
fn passkeys_are_told_once_and_outlive_a_restart_until_they_are_revoked() {
    let state = tempfile::tempdir().unwrap();
    let mode = [("SKEP__ACCESS__MODE", "private")];
    let mut skep = start(state.path(), &mode);
    let body = json!({ "name": "ann", "torrents": 3 }).to_string();
    let (status, new) = ask(&skep, "POST", "/api/v1/passkeys", &body);
    let (passkey, id) = (new["passkey"].as_str().unwrap(), new["id"].as_str().unwrap());
    assert_eq!((status, passkey.len(), &new["limits"]["torrents"]), (201, 32, &json!(3)));
    assert_eq!(ask(&skep, "POST", "/api/v1/passkeys", "").0, 201);
    let odd = json!({ "name": "a \"quoted\" \u{202e}name" }).to_string();
    let (_, other) = ask(&skep, "POST", "/api/v1/passkeys", &odd);
    let other = format!("/api/v1/passkeys/{}", other["id"].as_str().unwrap());
    assert_eq!(ask(&skep, "DELETE", &other, "").0, 200);
    skep.signal("TERM");
    assert!(skep.wait().success());
    let log = skep.log();
    assert!(!log.contains(passkey));
    assert!(log.contains(&format!(r#"passkey issued id="{id}" name="ann" by=api:"#)), "{log}");
    let escaped = r#"name="a \"quoted\" \u{202e}name" by=api:"#;
    assert_eq!(log.matches(escaped).count(), 2, "issued and revoked: {log}");
    let skep = start(state.path(), &mode);
    let (_, page) = ask(&skep, "GET", "/api/v1/passkeys?limit=1", "");
    let after = page["next"].as_str().unwrap();
    let (_, rest) = ask(&skep, "GET", &format!("/api/v1/passkeys?after={after}"), "");
    let mut names = [&page, &rest].map(|it| it["passkeys"][0]["name"].as_str().unwrap());
    names.sort_unstable();
    assert_eq!((names, &rest["next"]), (["", "ann"], &Value::Null));
    let target = format!("/api/v1/passkeys/{id}");
    let (_, found) = ask(&skep, "GET", &target, "");
    assert_eq!((&found["name"], &found["uploaded"]), (&json!("ann"), &json!(0)));
    assert!(!found.to_string().contains(passkey));
    assert_eq!(ask(&skep, "DELETE", &target, "").1, json!({ "status": "revoked" }));
    assert_eq!(ask(&skep, "DELETE", &target, "").1["error"]["code"], "unknown_passkey");
    assert_eq!(skep.metrics().value("skep_passkeys"), 1.0);
}

/// A torrent's info dictionary: v1, v2 or both.
fn info(name: &str, v1: bool, v2: bool) -> String {
    let tree = "9:file treed1:ad0:d6:lengthi5e11:pieces root32:0123456789abcdef0123456789abcdefeee";
    let mut info = "d".to_owned();
    if v2 {
        info += tree;
    }
    if v1 {
        info += "6:lengthi5e";
    }
    if v2 {
        info += "12:meta versioni2e";
    }
    info += &format!("4:name{}:{name}12:piece lengthi16384e", name.len());
    if v1 {
        info += "6:pieces20:01234567890123456789";
    }
    info + "e"
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

/// Runs `skep torrent add`; its exit code, and its lines.
fn add(skep: &Skep, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = command();
    let admin = format!("http://{}", skep.admin);
    command.args(["torrent", "add", "--admin", &admin, "--retries", "0"]).args(arguments);
    let output = command.env("STATE_DIRECTORY", skep.folder()).output().unwrap();
    let (stdout, stderr) = texts(&output);
    (output.status.code(), stdout + &stderr)
}

#[test]
fn torrent_files_of_every_version_are_registered_and_others_reported() {
    let state = tempfile::tempdir().unwrap();
    let skep = start(state.path(), &[("SKEP__ACCESS__MODE", "registered")]);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, info: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("d7:comment2:hi4:info{info}e")).unwrap();
    };
    let infos = [info("one", true, false), info("two", false, true), info("three", true, true)];
    write("a.torrent", &infos[0]);
    write("below/b.TORRENT", &infos[1]);
    write("below/c.torrent", &infos[2]);
    write("note.txt", "no torrent");
    let v1 = |at: usize| hex(&Sha1::digest(&infos[at]));
    let v2 = |at: usize| hex(&Sha256::digest(&infos[at]));
    let path = folder.path().to_str().unwrap();
    let (code, said) = add(&skep, &[path]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("registered {}  ", v1(0))), "{said}");
    assert!(said.ends_with("3 registered, 0 known, 0 failed\n"), "{said}");
    let second = v2(2)[..40].to_owned();
    for (hash, expected, size) in [
        (v1(0), v1(0), 5),
        (v2(1)[..40].to_owned(), v2(1)[..40].to_owned(), 5),
        (v1(2), v1(2), 5),
        (second, v1(2), 5),
    ] {
        let (_, value) = ask(&skep, "GET", &format!("/api/v1/torrents/{hash}/registration"), "");
        assert_eq!(
            (&value["info_hash"], &value["size"]),
            (&json!(expected), &json!(size)),
            "{value}"
        );
        assert_eq!(value["comment"], "hi");
    }
    fs::write(folder.path().join("d.torrent"), "d4:infod").unwrap();
    fs::write(folder.path().join("e.torrent"), "").unwrap();
    fs::write(folder.path().join("f.torrent"), "<html>").unwrap();
    let missing = folder.path().join("missing.torrent");
    let (code, said) = add(&skep, &["--json", path, missing.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{said}");
    let lines: Vec<Value> = said.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let statuses: Vec<_> = lines.iter().map(|it| it["status"].as_str().unwrap()).collect();
    assert_eq!(
        statuses,
        ["known", "known", "known", "failed", "failed", "failed", "failed"],
        "{said}"
    );
    assert_eq!(lines[2]["info_hash_v2"], json!(v2(2)));
    let error = |at: usize| lines[at]["error"].as_str().unwrap();
    assert_eq!(error(3), "is not a torrent: truncated or damaged");
    assert_eq!(error(4), "is not a torrent: the file is empty");
    assert!(error(5).contains("does not begin as a bencoded dictionary"), "{said}");
}

#[test]
fn torrent_add_says_what_keeps_it_from_registering() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("a.torrent");
    fs::write(&file, format!("d4:info{}e", info("one", true, false))).unwrap();
    let file = file.to_str().unwrap();
    let token =
        [("SKEP__ADMIN__TOKEN", "open sesame, please"), ("SKEP__ACCESS__MODE", "registered")];
    let mut skep = start(state.path(), &token);
    let (code, said) = add(&skep, &[file]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("admin.token") && said.contains("--token-file"), "{said}");
    let secret = state.path().join("token");
    fs::write(&secret, "open sesame, please\n").unwrap();
    let (code, said) = add(&skep, &["--token-file", secret.to_str().unwrap(), file]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(add(&skep, &["--token", "open sesame, please", file]).0, Some(0));
    skep.signal("TERM");
    assert!(skep.wait().success());
    let (code, said) = add(&skep, &[file, file]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("cannot reach http://127.0.0.1:") && said.contains("start skep"),
        "{said}"
    );
    let open = start(&state.path().join("other"), &[]);
    let (code, said) = add(&open, &[file]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("access.mode is open"), "{said}");
    assert!(said.contains("remedy: set access.mode to \"registered\""), "{said}");
    let usage = run(&["torrent", "add", "--admin", "udp://127.0.0.1:1", file]);
    assert_eq!(usage.status.code(), Some(2));
}
