//! The configuration as operators meet it: printed, read back, overridden, refused.

use std::fs;
use std::path::Path;

use skep::config::{Assignment, Bytes, Config, SettingsSource, settings};

/// A source with nothing but this file.
fn file(directory: &Path, text: &str) -> SettingsSource {
    let path = directory.join("skep.toml");
    fs::write(&path, text).unwrap();
    SettingsSource { file: Some(path), ..SettingsSource::default() }
}

/// A source with nothing but this variable.
fn variable(name: &str, text: &str) -> SettingsSource {
    SettingsSource { environment: vec![(name.into(), text.into())], ..SettingsSource::default() }
}

/// 129 bytes.
const LONG_TRACKER_ID: &str = concat!(
    "[http]\ntracker_id = \"",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "\"\n"
);

/// 258 bytes.
const LONG_PUBLIC_NAME: &str = concat!(
    "[http]\npublic_name = \"",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "\"\n"
);

/// 108 bytes.
const LONG_UNIX_SOCKET: &str = concat!(
    "[http]\nunix_socket = \"/",
    "0123456789012345678901234567890123456789012",
    "0123456789012345678901234567890123456789012",
    "012345678901234567890\"\n"
);

#[test]
fn what_is_printed_is_what_is_deployed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/skep.toml");
    let deployed = fs::read_to_string(&path).unwrap_or_default();
    let printed = Config::default().to_commented_toml();
    assert!(deployed == printed, "run: cargo run -- config > deploy/skep.toml");
}

#[test]
fn what_is_printed_reads_back_as_it_was() {
    let temporary = tempfile::tempdir().unwrap();
    let printed = Config::default().to_commented_toml();
    assert_eq!(file(temporary.path(), &printed).load().unwrap(), Config::default());

    let mut config = Config::default();
    config.server.listen = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:7".parse().unwrap()];
    config.server.state_dir = "/a \"b\" \\ c".into();
    config.udp.receive_buffer = Bytes(100_000);
    config.tracker.interval_s = 900;
    let read = file(temporary.path(), &config.to_commented_toml()).load().unwrap();
    assert_eq!(read, config);
}

#[test]
fn every_setting_is_printed_with_help_and_bounds() {
    let printed = Config::default().to_commented_toml();
    for setting in settings() {
        assert!(!setting.help.is_empty() && !setting.allowed.is_empty(), "{setting:?}");
        assert!(printed.contains(&format!("\n{} = ", setting.key)), "{setting:?}");
        assert!(
            printed.contains(&format!("# Allowed: {}\n{} = ", setting.allowed, setting.key)),
            "{setting:?}"
        );
    }
    assert!(printed.lines().all(|it| it.chars().count() <= 100));
}

#[test]
fn nothing_needs_to_be_said() {
    let temporary = tempfile::tempdir().unwrap();
    assert_eq!(SettingsSource::default().load().unwrap(), Config::default());
    assert_eq!(file(temporary.path(), "").load().unwrap(), Config::default());
    let config = Config::default();
    assert!(config.http.idle_timeout_s > 60, "longer than nginx and AWS's balancer keep one");
    assert_eq!(config.udp_listen(), &config.server.listen[..]);
}

#[test]
fn each_front_end_can_be_served_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let load = |text: &str| file(temporary.path(), text).load().unwrap();
    let own: std::net::SocketAddr = "127.0.0.1:7".parse().unwrap();
    let config = load("[server]\nlisten = []\n[http]\nlisten = [\"127.0.0.1:7\"]\n");
    assert_eq!((config.udp_listen(), config.http_listen()), (&[][..], &[own][..]));
    let config = load("[server]\nlisten = []\n[udp]\nlisten = [\"127.0.0.1:7\"]\n");
    assert_eq!((config.udp_listen(), config.http_listen()), (&[own][..], &[][..]));
    let usual = Config::default().server.listen;
    let config = load("[udp]\nenabled = false\n");
    assert_eq!((config.udp_listen(), config.http_listen()), (&[][..], &usual[..]));
    assert!(!config.shares_addresses());
    let config = load("[http]\nenabled = false\n");
    assert_eq!(config.http_listen(), &usual[..], "WebSockets are served there");
    let text = "[http]\nenabled = false\nunix_socket = \"/x\"\n[websocket]\nenabled = false\n\
                [tls]\nlisten = [\"127.0.0.1:7\"]\n";
    let report = file(temporary.path(), text).judge();
    let found: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    assert!(found.len() == 1 && found[0].contains("but nothing is served there"), "{found:?}");
    let config = report.into_config().unwrap();
    assert_eq!((config.http_listen(), config.tls_listen()), (&[][..], &[][..]));
    assert_eq!((config.udp_listen(), config.unix_socket()), (&usual[..], ""));
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let temporary = tempfile::tempdir().unwrap();
    let text = "[tracker]\ninterval_s = 600\ninterval_jitter_s = 10\nnumwant_max = 100\n";
    let mut source = file(temporary.path(), text);
    source.environment = vec![
        ("SKEP__TRACKER__INTERVAL_S".into(), "700".into()),
        ("SKEP__SERVER__LISTEN".into(), "127.0.0.1:1, [::1]:2".into()),
        ("SKEP_CONNECTION_ID_KEY".into(), "not a setting".into()),
        ("PATH".into(), "/bin".into()),
    ];
    let flag = |section: &str, key: &str, text: &str| Assignment {
        place: "--flag".into(),
        section: section.into(),
        key: key.into(),
        text: text.into(),
    };
    source.flags = vec![flag("server", "listen", "127.0.0.1:3"), flag("server", "io", "mmsg")];
    let config = source.load().unwrap();
    assert_eq!(config.tracker.numwant_max, 100);
    assert_eq!(config.tracker.interval_s, 700);
    assert_eq!(config.server.listen, ["127.0.0.1:3".parse().unwrap()]);
}

/// Files with one fault: the place, and a part of what is printed.
const BAD_FILES: &[(&str, &str, &str)] = &[
    ("[tracker]\nintervall_s = 900\n", "2:1", "tracker.intervall_s: no such setting"),
    ("[tracker]\nintervall_s = 900\n", "2:1", "did you mean interval_s?"),
    ("[tracker]\nburst = 900\n", "2:1", "did you mean burst below [limits]?"),
    ("[trackr]\n", "1:2", "trackr: no such section; did you mean [tracker]?"),
    ("bare = 1\n", "1:1", "bare: is outside of a section"),
    ("burst = 1\n", "1:1", "did you mean burst below [limits]?"),
    ("tracker = 1\n", "1:1", "write [tracker] on a line of its own"),
    ("[server]\nlisten = [\"::1\"]\n", "2:11", "server.listen: \"::1\" has no port"),
    ("[server]\nlisten = [\"::1\"]\n", "2:11", "did you mean \"[::1]:6969\"?"),
    ("[server]\nlisten = [\"::1\"]\n", "2:11", "allowed: a list of addresses"),
    ("[server]\nlisten = \"0.0.0.0:1\"\n", "2:10", "did you mean [\"0.0.0.0:1\"]?"),
    ("[server]\nlisten = []\n", "2:1", "there is no address to serve on"),
    ("[udp]\nlisten = [\"[::]:1\", \"[::]:1\"]\n", "2:1", "udp.listen: [::]:1 is listed twice"),
    ("[server]\n\n  io = \"epoll\"\n", "3:8", "allowed: \"auto\", \"uring\", \"mmsg\""),
    ("[server]\n\n  io = \"urng\"\n", "3:8", "did you mean \"uring\"?"),
    ("[server]\nworkers = -1\n", "2:11", "-1 is out of bounds; allowed: 0 to 1024"),
    ("[server]\nworkers = 1025\n", "2:11", "1025 is out of bounds; allowed: 0 to 1024"),
    ("[server]\nworkers = \"2\"\n", "2:11", "\"2\" is not a whole number; allowed: 0 to 1024"),
    ("[server]\nworkers = \"2\"\n", "2:11", "did you mean 2, without quotes?"),
    ("[server]\nstate_dir = 7\n", "2:13", "is not a text in quotes; did you mean \"7\"?"),
    ("[tracker]\ninterval_s = \"30m\"\n", "2:14", "number of seconds, such as 1800; allowed"),
    ("[tracker]\ninterval_s = \"30m\"\n", "2:14", "did you mean 1800, without quotes?"),
    ("[http]\npublic_stats = \"yes\"\n", "2:16", "\"yes\" is neither true nor false"),
    ("[http]\npublic_stats = \"yes\"\n", "2:16", "did you mean true, without quotes?"),
    ("[udp]\nreceive_buffer = \"8 mb\"\n", "2:18", "\"64KiB\" to \"512MiB\""),
    ("[udp]\nreceive_buffer = \"8 mb\"\n", "2:18", "did you mean \"8MiB\"?"),
    ("[udp]\nreceive_buffer = 1\n", "2:18", "1 is out of bounds; allowed: \"64KiB\" to"),
    ("[memory]\nmax_memory = \"63MiB\"\n", "2:14", "is too little: the least is 64MiB"),
    ("[memory]\nmax_memory = \"half\"\n", "2:14", "allowed: \"auto\", \"64MiB\" or more, 0"),
    ("[memory]\nmax_memory = [1]\n", "2:14", "[1] is not a size: sizes are in KiB, MiB or"),
    ("[memory]\nmax_memory = \"4GB\"\n", "2:14", "sizes are in KiB, MiB or GiB; allowed:"),
    ("[memory]\nmax_memory = \"4GB\"\n", "2:14", "did you mean \"4GiB\"?"),
    ("[udp]\nconnection_id = \"md5\"\n", "2:17", "allowed: \"siphash\", \"hmac-sha256\""),
    ("[access]\nmode = \"whitelist\"\n", "2:8", "\"whitelist\" is not an allowed value"),
    ("[access]\nmode = \"registred\"\n", "2:8", "did you mean \"registered\"?"),
    ("[tracker]\ninterval_s = 0\n", "2:14", "allowed: 1 to 7200"),
    ("[tracker]\npeer_age_s_max = 21601\n", "2:18", "allowed: 2 to 21600"),
    ("[tracker]\npeer_age_s_max = 1920\n", "2:1", "1920 must exceed the larger of interval_s"),
    ("[tracker]\ninterval_s_max = 3780\n", "2:1", "tracker.peer_age_s_max: 3900 must exceed"),
    (LONG_PUBLIC_NAME, "2:1", "http.public_name: has 258 bytes; it may have 253"),
    ("[http]\npublic_name = \"a\\u0007b\"\n", "2:1", "http.public_name: has control characters"),
    (LONG_TRACKER_ID, "2:1", "http.tracker_id: has 129 bytes; it may have 128"),
    ("[websocket]\ninterval_s = 3900\n", "2:1", "3900 must exceed websocket.interval_s"),
    ("[tracker]\ninterval_s = 100\n", "2:1", "_jitter_s: 120 must be below interval_s"),
    ("[tracker]\nnumwant_max = 10\n", "2:1", "numwant_default: 50 must not exceed numwant"),
    ("[udp]\nlisten = [\"239.0.0.1:7\"]\n", "2:1", "udp.listen: 239.0.0.1:7 is a multicast"),
    ("[tls]\nlisten = [\"[ff02::1]:7\"]\ncertificate = \"c\"\nkey = \"k\"\n", "2:1", "multicast"),
    (
        "[tls]\nlisten = [\"127.0.0.1:6969\"]\ncertificate = \"c\"\nkey = \"k\"\n",
        "2:1",
        "127.0.0.1:6969 is in use: 0.0.0.0:6969 is served without TLS; allowed: a list of",
    ),
    (
        "[udp]\nenabled = false\n[http]\nenabled = false\n[websocket]\nenabled = false\n",
        "2:1",
        "udp.enabled: is false, and so are http.enabled and websocket.enabled: nothing is",
    ),
    ("[http]\nlisten = [\"255.255.255.255:7\"]\n", "2:1", "or broadcast address"),
    ("[admin]\nlisten = \"127.0.0.1:6969\"\n", "2:1", "are served on 0.0.0.0:6969 over TCP"),
    ("[admin]\nlisten = \"[::]:6969\"\n", "2:1", "are served on [::]:6969 over TCP"),
    ("[admin]\nlisten = \"6971\"\n", "2:10", "did you mean \"127.0.0.1:6971\"?"),
    ("[admin]\ntoken = \"short-secret\"\n", "2:1", "admin.token: needs 16 to 512 printable"),
    ("[http]\nlisten = [\"127.0.0.1:6970\"]\n", "2:1", "admin.listen: 127.0.0.1:6970 is in"),
    (LONG_UNIX_SOCKET, "2:1", "http.unix_socket: has 108 bytes; a socket's path may have 107"),
    ("[http]\nsource_header = \"via\"\n", "2:17", "\"x-real-ip\""),
    ("[cluster]\nservers = [\"a\"]\n", "2:12", "did you mean \"tls://a:4222\"?"),
    ("[cluster]\nservers = \"nats://me:short-secret@a:1\"\n", "2:11", "@a:1\" has credentials in"),
    (
        "[cluster]\nservers = [\"nats://me:short-secret@a:1\"]\n",
        "2:12",
        "@a:1\" has credentials in",
    ),
    ("[cluster]\nservers = [\"tls://a:1\"]\n", "2:1", "secret_file: is empty, but cluster.servers"),
    ("[cluster]\nservers = [\"tls://a:1\"]\n", "2:1", "remedy: make one (openssl rand -hex 32 >"),
    (
        "[cluster]\nservers = [\"nats://a:1\"]\nsecret_file = \"/s\"\n",
        "2:1",
        "nats://a:1 is reached over a network without encryption",
    ),
    (
        "[cluster]\nservers = [\"tls://a:1\", \"tls://a:1\"]\nsecret_file = \"/s\"\n",
        "2:1",
        "tls://a:1 is listed twice",
    ),
    ("[cluster]\nname = \"a.b\"\n", "2:1", "\"a.b\" is not a name of 1 to 32 characters"),
    ("[cluster]\nnode = \"Node\"\n", "2:1", "cluster.node: \"Node\" is not a name of 1 to 32"),
    ("[cluster]\nname = \"\"\n", "2:1", "cluster.name: \"\" is not a name of 1 to 32"),
    ("[cluster]\nuser = \"me\"\n", "2:1", "password_file: is empty, but cluster.user is set"),
    ("[cluster]\npassword_file = \"/p\"\n", "2:1", "user: is empty, but cluster.password_file is"),
    ("[cluster]\ncertificate = \"/c\"\n", "2:1", "cluster.key: is empty, but cluster.certificate"),
    ("[cluster]\nkey = \"/k\"\n", "2:1", "cluster.certificate: is empty, but cluster.key is set"),
    (
        "[cluster]\ncredentials_file = \"/c\"\nuser = \"me\"\npassword_file = \"/p\"\n",
        "3:1",
        "cluster.user: is set, and so is cluster.credentials_file: a broker takes",
    ),
    ("[cluster]\nnkey_file = \"/n\"\ncredentials_file = \"/c\"\n", "2:1", "nkey_file: is set, and"),
    ("[cluster]\nflush_ms = 0\n", "2:12", "0 is out of bounds; allowed: 1 to 1000"),
    ("[cluster]\nqueue = \"1KiB\"\n", "2:9", "allowed: \"64KiB\" to \"1GiB\""),
    ("[log]\nlevel = \"loud\"\n", "2:9", "\"warn\""),
    ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "3:1", "duplicate key"),
    ("[log\n", "1:5", "unclosed table"),
    ("# é\n[log]\nformat = \"é\" x\n", "3:14", ""),
];

#[test]
fn a_bad_file_is_refused_with_place_setting_and_what_is_allowed() {
    let temporary = tempfile::tempdir().unwrap();
    for (text, place, said) in BAD_FILES {
        let error = file(temporary.path(), text).load().unwrap_err().to_string();
        let place = format!("skep.toml:{place}: ");
        assert!(error.contains(&place) && error.contains(said), "{text}\n{error}");
        assert!(!error.contains("short-secret"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn all_faults_of_all_sources_are_found_in_one_run() {
    let temporary = tempfile::tempdir().unwrap();
    let text = "[tracker]\ninterval_s = \"30m\"\nnumwant_max = 10\nspeed = 7\n\n[trackr]\n\
                [http]\ntrusted_proxies = [\"10.0.300.0/8\", \"::1\", \"10.0.0.1/24\"]\n";
    let mut source = file(temporary.path(), text);
    source.environment = vec![
        ("SKEP__MEMORY__MAX_MEMORY".into(), "4GB".into()),
        ("SKEP__LOG__LEVLE".into(), "info".into()),
        ("SKEP_HTTP_LISTEN".into(), "127.0.0.1:1".into()),
    ];
    let report = source.judge();
    let found: Vec<_> = report.findings.iter().map(|it| (it.is_fault(), it.to_string())).collect();
    for (is_fault, place, said) in [
        (true, "toml:2:14: tracker.interval_s: ", "\"30m\" is not a whole number of seconds"),
        (true, "toml:3:1: tracker.numwant_default: ", "50 must not exceed numwant_max"),
        (true, "toml:4:1: tracker.speed: ", "no such setting"),
        (true, "toml:6:2: trackr: ", "no such section"),
        (true, "toml:8:20: http.trusted_proxies: ", "\"10.0.300.0/8\" is not a network"),
        (true, "toml:8:43: http.trusted_proxies: ", "write 10.0.0.0/24 for the whole network"),
        (true, "SKEP__MEMORY__MAX_MEMORY: memory.max_memory: ", "did you mean 4GiB?"),
        (true, "SKEP__LOG__LEVLE: ", "did you mean SKEP__LOG__LEVEL?"),
        (false, "variable ignored: SKEP_HTTP_LISTEN", "rename it to SKEP__HTTP__LISTEN"),
    ] {
        let is_it = |it: &&(bool, String)| it.0 == is_fault && it.1.contains(said);
        let one = found.iter().find(|it| is_it(it) && it.1.contains(place));
        assert!(one.is_some(), "{place}{said} is not in {found:#?}");
    }
    assert_eq!(found.len(), 9, "{found:#?}");
    let of_file = |it: &&(bool, String)| it.1.contains(" is not a") || it.1.contains("no such se");
    let in_order: Vec<_> = found.iter().filter(of_file).map(|it| &it.1).collect();
    assert!(in_order[0].contains(":2:14: ") && in_order[1].contains(":4:1: "), "{found:#?}");
    let error = report.into_config().unwrap_err();
    assert_eq!((error.faults.len(), error.to_string().lines().count()), (8, 8));
}

#[test]
fn a_line_that_is_not_toml_hides_no_other_fault() {
    let temporary = tempfile::tempdir().unwrap();
    let text = "[tracker]\ninterval_s = 900s\nnumwant_max = 0\n[log]\nlevel = info\n";
    let report = file(temporary.path(), text).judge();
    let lines: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    for place in [":2:", ":3:15: tracker.numwant_max: 0 is out of bounds", ":5:"] {
        assert!(lines.iter().any(|it| it.contains(place)), "{place}: {lines:#?}");
    }
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

#[test]
fn a_bad_variable_is_refused_by_name() {
    let cases = [
        ("SKEP__TRACKER__INTERVALL_S", "900", "did you mean SKEP__TRACKER__INTERVAL_S?"),
        ("SKEP__TRACKER", "900", "no such setting"),
        ("SKEP__TRACKER_INTERVAL_S", "900", "did you mean SKEP__TRACKER__INTERVAL_S?"),
        ("SKEP__", "", "no such setting"),
        ("SKEP__TRACKER__INTERVAL_S", "soon", "\"soon\" is not a whole number of seconds, such as"),
        ("SKEP__TRACKER__INTERVAL_S", "30m", "allowed: 1 to 7200; did you mean 1800?"),
        ("SKEP__TRACKER__INTERVAL_S", "0", "interval_s: 0 is out of bounds; allowed: 1 to 7200"),
        ("SKEP__TRACKER__INTERVAL_S", "-5", "tracker.interval_s: -5 is out of bounds"),
        ("SKEP__SERVER__LISTEN", "127.0.0.1", "such as [\"0.0.0.0:6969\", \"[::]:6969\"]"),
        ("SKEP__SERVER__LISTEN", "127.0.0.1", "did you mean 127.0.0.1:6969?"),
        ("SKEP__SERVER__LISTEN", "", "no address to serve on"),
        ("SKEP__SERVER__IO", "epoll", "allowed: \"auto\", \"uring\", \"mmsg\""),
        ("SKEP__HTTP__SOURCE_HEADER", "via", "allowed: \"\", \"forwarded\", \"x-forwarded-for\""),
        (
            "SKEP__HTTP__PUBLIC_STATS",
            "yes",
            "neither true nor false; allowed: true, false; did you",
        ),
        ("SKEP__LOG__LEVEL", "in\nfo\u{1b}[1m", "\"in\\nfo\\u{1b}[1m\" is not"),
        ("SKEP__LOG__FORMAT", "xml", "allowed: \"text\", \"json\""),
        (
            "SKEP__TRACKER__INTERVAL_S",
            "4000",
            "tracker.peer_age_s_max: 3900 must exceed the larger",
        ),
        ("SKEP__TRACKER__NUMWANT_MAX", "10", "tracker.numwant_default: 50 must not exceed"),
        ("SKEP__ADMIN__LISTEN", "6970", "\"127.0.0.1:6970\""),
    ];
    for (name, text, said) in cases {
        let error = variable(name, text).load().unwrap_err().to_string();
        assert!(error.starts_with(name) && error.contains(said), "{name}={text}\n{error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn networks_are_written_with_or_without_a_prefix_length() {
    let networks = |text: &str| variable("SKEP__HTTP__TRUSTED_PROXIES", text).load();
    let read = |text: &str| {
        let list = networks(text).unwrap().http.trusted_proxies.0;
        list.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(read("10.0.0.1, 192.0.2.0/24"), ["10.0.0.1/32", "192.0.2.0/24"]);
    assert_eq!(read("2001:db8::1"), ["2001:db8::1/128"]);
    assert_eq!(read("::ffff:10.0.0.0/104"), ["10.0.0.0/8"]);
    assert_eq!(read("[\"10.0.0.1\", \"::1\"]"), ["10.0.0.1/32", "::1/128"]);
    for empty in ["", "[]", " [ ] ", ","] {
        assert_eq!(read(empty), [""; 0], "{empty:?}");
    }
    let error = networks("10.0.0.5/24").unwrap_err().to_string();
    assert!(error.contains("write 10.0.0.0/24 for the whole network"), "{error}");
    let temporary = tempfile::tempdir().unwrap();
    for setting in ["http.trusted_proxies", "limits.exempt", "tracker.ip_override_from"] {
        let (section, key) = setting.split_once('.').unwrap();
        let text = format!("[{section}]\n{key} = [\"10.0.0.1\", \"::ffff:192.0.2.0/120\"]\n");
        let printed = file(temporary.path(), &text).load().unwrap().to_commented_toml();
        assert!(printed.contains(&format!("{key} = [\"10.0.0.1/32\", \"192.0.2.0/24\"]")));
        let text = format!("[{section}]\n{key} = [\"10.0.0.1\", \"10.0.0.5/24\"]\n");
        let error = file(temporary.path(), &text).load().unwrap_err().to_string();
        assert!(error.contains(&format!(": {setting}: \"10.0.0.5/24\" has bits")), "{error}");
    }
}

#[test]
fn brokers_are_a_list_of_urls() {
    let with = |pairs: &[(&str, &str)]| {
        let name = |key: &str| format!("SKEP__CLUSTER__{key}");
        let environment = pairs.iter().map(|it| (name(it.0), it.1.into())).collect();
        SettingsSource { environment, ..SettingsSource::default() }
    };
    let secret = ("SECRET_FILE", "/s");
    let servers = |text: &str| with(&[("SERVERS", text), secret]).load().unwrap().cluster.servers;
    let read: Vec<_> = servers("nats://127.0.0.1:1, tls://[2001:DB8::1]:2")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(read, ["nats://127.0.0.1:1", "tls://[2001:db8::1]:2"]);
    assert_eq!(servers("[\"nats://localhost:1\"]").len(), 1);
    let open = [("SERVERS", "nats://nats:4222"), secret];
    let error = with(&open).load().unwrap_err().to_string();
    assert!(error.starts_with("SKEP__CLUSTER__SERVERS: cluster.servers: nats://nats"), "{error}");
    let allowed = [open[0], secret, ("INSECURE", "true")];
    assert!(with(&allowed).load().is_ok());
    let unused = [("SERVERS", "nats://127.0.0.1:1"), secret, ("CA", "/ca.pem")];
    let findings = with(&unused).judge().findings;
    assert!(findings.len() == 1 && !findings[0].is_fault(), "{findings:?}");
    assert!(findings[0].to_string().contains("begins with nats://; remedy: write tls://"));
    // The first that is wrong with a server says so alone, not what else is unused.
    let faulty = [("SERVERS", "nats:127.0.0.1"), secret];
    assert_eq!(with(&faulty).judge().findings.len(), 1);
}

#[test]
fn an_ipv4_address_in_the_form_of_ipv6_is_one_of_ipv4() {
    let listen = |text: &str| variable("SKEP__SERVER__LISTEN", text).load();
    let read = listen("[::ffff:127.0.0.1]:7,[::ffff:0.0.0.0]:8,[::1]:9").unwrap();
    let expected = ["127.0.0.1:7", "0.0.0.0:8", "[::1]:9"].map(|it| it.parse().unwrap());
    assert_eq!(read.server.listen, expected);
    let error = listen("[::ffff:127.0.0.1]:7,127.0.0.1:7").unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:7 is listed twice"), "{error}");
    let admin = variable("SKEP__ADMIN__LISTEN", "[::ffff:127.0.0.1]:7").load().unwrap();
    assert_eq!(admin.admin.listen, "127.0.0.1:7".parse().unwrap());
}

#[test]
fn names_are_read_in_any_case() {
    for (name, text) in [
        ("SKEP__HTTP__SOURCE_HEADER", "X-Forwarded-For"),
        ("SKEP__LOG__LEVEL", "DEBUG"),
        ("SKEP__LOG__FORMAT", "Json"),
        ("SKEP__SERVER__IO", "MMSG"),
        ("SKEP__UDP__CONNECTION_ID", "HMAC-SHA256"),
        ("SKEP__ACCESS__MODE", "Open"),
        ("SKEP__SNAPSHOT__MODE", "Off"),
    ] {
        let printed = variable(name, text).load().unwrap().to_commented_toml();
        let lower = format!("= {:?}", text.to_ascii_lowercase());
        assert!(printed.contains(&lower), "{name}={text}");
    }
    for text in ["TRUE", "True", "true"] {
        let config = variable("SKEP__HTTP__PUBLIC_STATS", text).load().unwrap();
        assert!(config.http.public_stats, "{text}");
    }
}

#[test]
fn what_may_have_been_meant_otherwise_is_warned_of() {
    let warnings = |source: &SettingsSource| {
        let report = source.judge();
        assert!(!report.findings.iter().any(|it| it.is_fault()), "{report:?}");
        report.findings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(warnings(&SettingsSource::default()), [""; 0]);
    for (name, text, said) in [
        ("SKEP_TRACKER_INTERVAL_S", "1", "remedy: rename it to SKEP__TRACKER__INTERVAL_S"),
        ("SKEP_TRACKER_INTERVAL_S", "1", "variable ignored: SKEP_TRACKER_INTERVAL_S;"),
        ("SKEP_TRACKER__INTERVAL_S", "1", "remedy: rename it to SKEP__TRACKER__INTERVAL_S"),
        ("SKEP__TLS__CERTIFICATE", "/x.pem", "TLS is not served: tls.listen is empty; remedy:"),
        ("SKEP__TLS__KEY", "/x.pem", "TLS is not served: tls.listen is empty; remedy:"),
        ("SKEP__UDP__LISTEN", "[::]:7", "UDP is served over IPv6 alone: [::]:7 does not include"),
        ("SKEP__UDP__LISTEN", "[::]:7", "remedy: listen on \"0.0.0.0:7\" as well"),
        ("SKEP__HTTP__LISTEN", "[::]:7,[::1]:7", "HTTP is served over IPv6 alone: [::]:7 does"),
        ("SKEP__HTTP__TRUSTED_PROXIES", "10.0.0.1,0.0.0.0/0", "lists every address: every client"),
        ("SKEP__TRACKER__IP_OVERRIDE_FROM", "::/0", "remedy: list your own addresses alone"),
        ("SKEP__CLUSTER__SECRET_FILE", "/x", "in no cluster: cluster.servers is empty; remedy:"),
        ("SKEP__ADMIN__LISTEN", "0.0.0.0:7", "0.0.0.0:7 is every address of this host: whoever"),
    ] {
        let all = warnings(&variable(name, text));
        assert!(all.len() == 1 && all[0].contains(said), "{name}={text}: {all:?}");
    }
    let faulty = [("LISTEN", "nonsense"), ("CERTIFICATE", "/x.pem")];
    let environment = faulty.map(|(key, text)| (format!("SKEP__TLS__{key}"), text.into())).into();
    let findings = SettingsSource { environment, ..SettingsSource::default() }.judge().findings;
    assert!(findings.len() == 1 && findings[0].is_fault(), "only the fault: {findings:?}");
    for (name, text) in [
        ("SKEP_PORT", "tcp://10.0.0.1:6969"),
        ("SKEP_SERVICE_HOST", "10.0.0.1"),
        ("SKEP_CONNECTION_ID_KEY", "x"),
        ("SKEP__UDP__LISTEN", "[::1]:7"),
        ("SKEP__ADMIN__LISTEN", "10.0.0.1:7"),
        ("SKEP__HTTP__TRUSTED_PROXIES", "10.0.0.0/8"),
        ("SKEP__SERVER__LISTEN", "[::]:7,192.0.2.1:7"),
    ] {
        assert_eq!(warnings(&variable(name, text)), [""; 0], "{name}={text}");
    }
}

#[test]
fn a_relative_path_in_a_file_is_warned_of_with_the_path_that_it_means() {
    let directory = tempfile::tempdir().unwrap();
    let text = "[udp]\nkey_file = \"/etc/key\"\n[access]\nports_deny = \"lists/ports\"\n\
                networks_deny = \"\"\n";
    let source = file(directory.path(), text);
    let findings = source.judge().findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    let said = findings[0].to_string();
    let meant = std::env::current_dir().unwrap().join("lists/ports");
    assert!(!findings[0].is_fault() && said.contains(":4:1: access.ports_deny: "), "{said}");
    assert!(said.contains(&format!("here it means {meant:?}")), "{said}");
    let named = variable("SKEP__ACCESS__PORTS_DENY", "lists/ports").judge().findings;
    assert!(named.is_empty(), "{named:?}");
}

#[test]
fn on_reload_a_pipe_is_refused_and_not_waited_for() {
    let temporary = tempfile::tempdir().unwrap();
    let source = file(temporary.path(), "[tracker]\ninterval_s = 900\n");
    assert_eq!(source.load_again().unwrap(), source.load().unwrap());
    let path = source.file.clone().unwrap();
    fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let error = source.load_again().unwrap_err().to_string();
    assert!(error.contains("not a regular file and can be read only once"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let source =
        SettingsSource { file: Some("/absent/skep.toml".into()), ..SettingsSource::default() };
    let error = source.load().unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration file /absent/skep.toml: "), "{error}");
}
