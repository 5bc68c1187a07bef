//! The admin API on registered torrents and passkeys: names beside hashes, imports, and errors that
//! name the field. The router is served by the process of `admin`, which only seems to be one.

use serde_json::{Value, json};
use skep::access::mode::Mode;
use skep::admin::Process as _;

use crate::admin::{AUTHORIZED, Fake, HERE, IMPORT, LOCALHOST, NOW, ask_with, get, serve};

#[test]
fn a_body_that_cannot_be_used_is_explained() {
    let process = Fake::new();
    process.set_office(Mode::Private);
    let address = serve(&process, HERE);
    let post = |target: &str, body: &str| {
        ask_with(address, ("POST", target), &[LOCALHOST, AUTHORIZED], body)
    };
    let long = "x".repeat(65);
    for (target, body, field, message) in [
        ("/add_torrent_info", r#"{"info_hash":"HASH","creation_date":7}"#, "creation_date", "size"),
        ("/api/v1/passkeys", r#"{"nme":"ann"}"#, "nme", "allowed: name, announces_per_minute"),
        (IMPORT, r#"{"passkeys":[{"key":"x"}]}"#, "key", "allowed: name"),
        ("/api/v1/access/ports/deny", r#"{"add":[{"value":"25","why":"x"}]}"#, "why", "reason"),
        ("/api/v1/passkeys", &format!(r#"{{"{long}":1}}"#), &long[..64], "no such field"),
    ] {
        let response = post(target, &body.replace("HASH", &"19".repeat(20)));
        let expected = (400, "bad_body".to_owned(), Some(field.to_owned()));
        assert_eq!(response.error(), expected, "{body}");
        assert!(response.body.contains(message), "{}", response.body);
    }
    for (body, message) in [("[]", "another JSON value"), ("{\"a\"", "line 1 column"), ("x", "1")] {
        let response = post("/api/v1/passkeys", body);
        assert_eq!(response.error(), (400, "bad_body".to_owned(), None), "{body}");
        assert!(response.body.contains(message), "{}", response.body);
    }
}

#[test]
fn registered_torrents_have_names_wherever_they_are_listed() {
    let process = Fake::new();
    process.set_office(Mode::Registered);
    let address = serve(&process, HERE);
    // The second is a hybrid that nobody has announced.
    let hashes = ["19", "aa", "bb"].map(|it| it.repeat(20));
    for body in [
        json!({ "info_hash": hashes[0], "name": "first", "size": 7 }),
        json!({ "info_hash": hashes[1], "info_hash_v2": hashes[2], "name": "second" }),
    ] {
        let request = ("POST", "/api/v1/torrents");
        let response = ask_with(address, request, &[LOCALHOST, AUTHORIZED], &body.to_string());
        assert_eq!(response.status, 201);
    }
    let now_s = NOW.plus_s(100).seconds();
    let first = get(address, "/api/v1/torrents?registered=true&limit=1").json();
    let expected = json!({ "info_hash": hashes[0], "name": "first", "size": 7,
        "registered_s": now_s, "seeders": 1, "leechers": 26, "downloaders": 25, "completed": 0 });
    assert_eq!((&first["torrents"], &first["next"]), (&json!([expected]), &json!(hashes[0])));
    let target = format!("/api/v1/torrents?registered=true&limit=1&after={}", hashes[0]);
    let second = get(address, &target).json();
    let expected = json!({ "info_hash": hashes[1], "name": "second", "size": null,
        "registered_s": now_s, "seeders": 0, "leechers": 0, "downloaders": 0, "completed": 0 });
    assert_eq!((&second["torrents"], &second["next"]), (&json!([expected]), &Value::Null));
    for target in ["?sort=peers&limit=2", "?limit=1000"] {
        let announced = get(address, &format!("/api/v1/torrents{target}")).json();
        let name = |info_hash: &str| {
            let mut all = announced["torrents"].as_array().unwrap().iter();
            all.find(|it| it["info_hash"] == info_hash).unwrap()["name"].clone()
        };
        assert_eq!((name(&hashes[0]), name(&"18".repeat(20))), (json!("first"), Value::Null));
    }
    for hash in &hashes[1..] {
        let torrent = get(address, &format!("/api/v1/torrents/{hash}"));
        assert_eq!((torrent.status, &torrent.json()["name"]), (200, &json!("second")));
        assert_eq!(torrent.json()["info_hash"], json!(hashes[1]));
        assert_eq!((&torrent.json()["peers"], &torrent.json()["next"]), (&json!([]), &Value::Null));
    }
    let named = get(address, &format!("/api/v1/torrents/{}", hashes[0])).json();
    assert_eq!((&named["name"], &named["seeders"]), (&json!("first"), &json!(1)));
}

#[test]
fn passkeys_of_another_tracker_are_imported_all_or_none() {
    let process = Fake::new();
    process.set_office(Mode::Private);
    let address = serve(&process, HERE);
    let import = |body: &Value| {
        ask_with(address, ("POST", IMPORT), &[LOCALHOST, AUTHORIZED], &body.to_string())
    };
    let [ann, bob] = ["0a", "0B"].map(|it| it.repeat(16));
    let body = json!({ "passkeys": [{ "passkey": ann, "name": "ann", "peers": 3 },
        { "passkey": bob, "name": "bob" }, { "passkey": bob, "name": "rob" }, { "name": "new" }] });
    let response = import(&body).json();
    let results = response["passkeys"].as_array().unwrap();
    let of = |key: &str| results.iter().map(|it| it[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("status"), ["imported", "imported", "known", "issued"]);
    assert_eq!(of("name"), ["ann", "bob", "rob", "new"]);
    assert_eq!(of("passkey")[..3], [Value::Null, Value::Null, Value::Null]);
    let table = process.access_manager();
    let table = table.access().passkeys();
    let of_digits = |digits: &str| table.check(digits.as_bytes()).unwrap();
    assert_eq!(of_digits(&ann).record().limits.peers, 3);
    assert_eq!(of_digits(&bob.to_lowercase()).name(), "bob");
    assert_eq!(of_digits(of("passkey")[3].as_str().unwrap()).name(), "new");
    let again = import(&body).json();
    assert_eq!(again["passkeys"][0]["status"], "known");
    assert_eq!(table.len(), 4, "three, and one more that is issued");
    let named = get(address, "/api/v1/passkeys?name=new").json();
    assert_eq!(named["passkeys"].as_array().unwrap().len(), 2);
    let half = json!({ "passkeys": [{ "passkey": "0c".repeat(16) }, { "passkey": "0c" }] });
    assert_eq!(import(&half).error(), (400, "bad_parameter".into(), Some("passkey".into())));
    let many = json!({ "passkeys": vec![json!({}); 1001] });
    assert_eq!(import(&many).error(), (400, "bad_parameter".into(), Some("passkeys".into())));
    assert_eq!(table.len(), 4);
}

#[test]
fn lists_and_similar_hashes_have_the_names_of_registered_torrents() {
    let process = Fake::new();
    process.set_office(Mode::Registered);
    let address = serve(&process, HERE);
    let send = |method: &str, target: &str, body: Value| {
        ask_with(address, (method, target), &[LOCALHOST, AUTHORIZED], &body.to_string())
    };
    // A hybrid, a torrent without a name, and one that is not registered.
    let [v1, v2, nameless, unknown] = ["aa", "bb", "cc", "dd"].map(|it| it.repeat(20));
    for body in [
        json!({ "info_hash": v1, "info_hash_v2": v2, "name": "first" }),
        json!({ "info_hash": nameless }),
    ] {
        assert_eq!(send("POST", "/api/v1/torrents", body).status, 201);
    }
    let deny = "/api/v1/access/torrents/deny";
    let values = json!({ "add": [v1, v2, { "value": nameless, "reason": "r" }, unknown] });
    assert_eq!(send("POST", deny, values).status, 200);
    let entries = get(address, deny).json()["entries"].clone();
    let expected = json!([
        { "value": v1, "reason": null, "name": "first" },
        { "value": v2, "reason": null, "name": "first" },
        { "value": nameless, "reason": "r" },
        { "value": unknown, "reason": null },
    ]);
    assert_eq!(entries, expected);
    assert_eq!(get(address, &format!("{deny}/{v2}")).json(), expected[1]);
    // A page can be sent to another list as it is.
    let copied = send("POST", "/api/v1/access/torrents/allow", json!({ "add": entries }));
    assert_eq!((copied.status, &copied.json()["added"]), (200, &json!(4)));
    assert_eq!(send("PUT", "/api/v1/access/networks/deny/192.0.2.0%2F24", json!({})).status, 200);
    let networks = get(address, "/api/v1/access/networks/deny").json();
    assert_eq!(networks["entries"], json!([{ "value": "192.0.2.0/24", "reason": null }]));
    // The same first ten and last five digits.
    let resembling = format!("{}{}{}", &v1[..10], "0".repeat(25), &v1[35..]);
    let similar = |hash: &str| get(address, &format!("/api/v1/torrents/{hash}/similar")).json();
    let found = similar(&resembling);
    assert_eq!(
        (&found["resembles"], &found["names"]),
        (&json!([v1]), &json!({ v1.clone(): "first" }))
    );
    assert_eq!(similar(&v2)["names"], json!({ v2.clone(): "first" }));
    assert_eq!(similar(&nameless)["names"], json!({}));
}
