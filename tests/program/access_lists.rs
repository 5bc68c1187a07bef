//! `skep deny` and `skep allow` with torrents: by hash, by link, by file; their names; long lists.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use serde_json::json;

use crate::subcommands::{REGISTERED, ask, objects, start, torrent_file};
use crate::support::{assert_bad_usage, command, texts};

/// A `.torrent` file of a hybrid torrent: its path and both hashes, as they are announced.
fn hybrid_file(folder: &std::path::Path, name: &str) -> (String, [String; 2]) {
    use sha2::Digest as _;
    let tree = "9:file treed1:ad0:d6:lengthi5e11:pieces root32:0123456789abcdef0123456789abcdefeee";
    let info = format!(
        "d{tree}6:lengthi5e12:meta versioni2e4:name{}:{name}12:piece lengthi16384e\
         6:pieces20:01234567890123456789e",
        name.len()
    );
    let path = folder.join(format!("{name}.torrent"));
    fs::write(&path, format!("d4:info{info}e")).unwrap();
    let hex = |bytes: &[u8]| bytes[..20].iter().map(|it| format!("{it:02x}")).collect();
    let hashes = [hex(&sha1::Sha1::digest(&info)), hex(&sha2::Sha256::digest(&info))];
    (path.to_str().unwrap().to_owned(), hashes)
}

#[test]
fn listed_torrents_are_named_by_their_files_and_have_their_names() {
    let skep = start(&[REGISTERED]);
    let folder = tempfile::tempdir().unwrap();
    let (file, hash) = torrent_file(folder.path(), "one");
    let below = folder.path().join("below");
    fs::create_dir(&below).unwrap();
    let (hybrid, hashes) = hybrid_file(&below, "two");
    assert_eq!(ask(&skep, "torrent add", &[&file]).0, Some(0));
    let path = folder.path().to_str().unwrap();
    let (code, stdout, stderr) = ask(&skep, "deny torrents add", &["--reason", "r", path]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout, "torrents_deny: 3 added, 3 values in the list\n");
    let mut expected = [
        format!("{hash}\tr\tone\n"),
        format!("{}\tr\t-\n", hashes[0]),
        format!("{}\tr\t-\n", hashes[1]),
    ];
    expected.sort_unstable();
    assert_eq!(ask(&skep, "deny torrents list", &[]).1, expected.concat());
    let listed = objects(&ask(&skep, "deny torrents list", &["--json"]).1);
    let named: Vec<_> = listed.iter().filter(|it| it["name"] == "one").collect();
    assert_eq!(named, [&json!({ "value": hash, "reason": "r", "name": "one" })]);
    let removed = objects(&ask(&skep, "deny torrents remove", &["--json", &hybrid]).1);
    let of_file = |hash| json!({ "value": hash, "status": "removed", "file": hybrid.as_str() });
    assert_eq!(removed, hashes.each_ref().map(of_file), "a line for each hash");
    assert_eq!(ask(&skep, "deny torrents add", &["--reason", "r", &hybrid]).0, Some(0));
    let (code, stdout, _) = ask(&skep, "deny torrents remove", &[&hybrid, &hybrid]);
    assert_eq!(code, Some(1));
    let expected = format!("removed {hybrid}\nfailed  {hybrid}: not in torrents_deny\n");
    assert_eq!(stdout, expected, "both hashes at once");
    assert_eq!(ask(&skep, "deny torrents list", &[]).1, format!("{hash}\tr\tone\n"));
}

#[test]
fn a_hash_is_not_a_file_to_register_and_the_way_to_register_it_is_named() {
    let mut adding = command();
    let output = adding.args(["torrent", "add", "--admin", "127.0.0.1:1", &"ab".repeat(20)]);
    let output = output.output().unwrap();
    let (stdout, _) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(
        stdout.contains("No such file") && stdout.contains("POST /api/v1/torrents"),
        "{stdout}"
    );
}

#[test]
fn a_file_that_is_not_a_torrent_adds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = torrent_file(folder.path(), "one");
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("bad.torrent"), "<html>").unwrap();
    fs::create_dir(at("empty")).unwrap();
    // Nothing listens there: the files are read first.
    let bad = at("bad.torrent");
    let add = |value: &str| {
        let mut adding = command();
        adding.args(["deny", "torrents", "add", "--admin", "127.0.0.1:1", &file, value]);
        let output = adding.output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    for (value, problem) in [
        (bad.clone(), format!("{bad}: is not a torrent: it does not begin as")),
        (at("."), format!("{}: is not a torrent: ", at("./bad.torrent"))),
        (at("empty"), format!("{}: no .torrent file in this folder", at("empty"))),
        (at("nowhere"), "must be an info-hash (40 or 64 hexadecimal digits) or a magnet".into()),
    ] {
        let (code, stderr) = add(&value);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(&problem), "{problem} is not in {stderr}");
        assert_eq!(stderr.contains("the list was not changed"), value != at("nowhere"), "{stderr}");
    }
    assert_bad_usage(&[(
        &["deny", "torrents", "add", "no.torrent"],
        "or an existing .torrent file or folder of such files",
    )]);
}

#[test]
fn what_was_named_by_its_hash_is_printed_once_where_it_is_removed() {
    let skep = start(&[REGISTERED]);
    let folder = tempfile::tempdir().unwrap();
    let (file, hash) = torrent_file(folder.path(), "one");
    for (named, expected) in
        [(&hash, format!("removed {hash}\n")), (&file, format!("removed {hash}  {file}\n"))]
    {
        assert_eq!(ask(&skep, "torrent add", &[&file]).0, Some(0));
        assert_eq!(ask(&skep, "torrent remove", &[named]).1, expected);
    }
    let failed = ask(&skep, "torrent remove", &[&hash.to_uppercase()]).1;
    assert_eq!(failed, format!("failed  {hash}: this torrent is not registered\n"));
}

#[test]
fn a_folder_without_torrent_files_is_not_added() {
    let skep = start(&[REGISTERED]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let (code, stdout, _) = ask(&skep, "torrent add", &[path]);
    assert_eq!(code, Some(1));
    let line = format!("failed     {path}: no .torrent file in this folder, nor in those below\n");
    assert_eq!(stdout, line + "0 registered, 0 known, 1 failed\n");
    let results = objects(&ask(&skep, "torrent add", &["--json", path]).1);
    assert_eq!((results.len(), &results[0]["status"]), (1, &json!("failed")));
}

#[test]
fn a_list_of_several_pages_is_printed_to_its_end_or_to_its_limit() {
    let skep = start(&[]);
    let ports: Vec<_> = (1..=1001).map(|it| it.to_string()).collect();
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    assert_eq!(ask(&skep, "deny ports add", &ports).0, Some(0));
    for rest in [&[][..], &["--json"]] {
        assert_eq!(ask(&skep, "deny ports list", rest).1.lines().count(), 1001);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    let tracker = std::thread::spawn(move || {
        let page = |_| {
            let mut stream = listener.accept().unwrap().0;
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<_> = lines.take_while(|it| !it.is_empty()).collect();
            let torrents = json!({ "torrents": vec![json!({ "info_hash": "x" }); 1000],
                "next": "a b" });
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n{torrents}").unwrap();
            head[0].clone()
        };
        [0; 2].map(page)
    });
    let list = ["torrent", "list", "--admin", &admin, "--retries", "0", "--limit", "1001"];
    let output = command().args(list).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", texts(&output).1);
    let target = "/api/v1/torrents?registered=true&limit=";
    let expected =
        [format!("GET {target}1000 HTTP/1.1"), format!("GET {target}1&after=a+b HTTP/1.1")];
    assert_eq!(tracker.join().unwrap(), expected);
    assert_bad_usage(&[
        (&["torrent", "list", "--limit", "0"], "allowed: a whole number, 1 or more"),
        (&["torrent", "list", "--swarms", "--limit", "1001"], "at most 1000 with --swarms"),
    ]);
}
