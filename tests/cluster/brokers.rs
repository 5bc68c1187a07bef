//! Brokers that ask for credentials or TLS, refuse, stop, or are not there.

use std::fs;

use crate::nodes::{Shared, all_say, client, ready, set, set_path};
use crate::support::nats::{Nats, broker_program, broker_programs};
use crate::support::{Skep, eventually, leecher, seeder, texts};

#[test]
fn without_a_broker_a_node_is_ready_after_a_while_and_says_why_it_is_alone() {
    let shared = Shared::at("nats://127.0.0.1:9");
    let mut command = shared.command("a");
    set(&mut command, "JOIN_TIMEOUT_S", "1");
    let a = ready(Skep::spawn(command));
    let (response, _) = client(&a).announce(&seeder(1, 1001));
    assert_eq!(response.seeders, 1);
    let log = a.log_with("cluster not connected");
    assert!(log.contains("nats://127.0.0.1:9") && log.contains("remedy="), "{log}");
}

#[test]
fn users_have_the_permissions_that_they_need_and_no_others() {
    for program in broker_programs() {
        let user = |name: &str| {
            format!(
                "{{ user: {name}, password: pw-{name}, permissions: {{\n\
                 publish: [\"skep.skep.delta.{name}\", \"skep.skep.hello.{name}\", \
                 \"skep.skep.join\", \"skep.skep.to.*\"]\n\
                 subscribe: [\"skep.skep.delta.*\", \"skep.skep.hello.*\", \"skep.skep.join\", \
                 \"skep.skep.to.{name}\"] }} }}"
            )
        };
        let users = format!("authorization {{ users: [\n{},\n{}\n] }}\n", user("a"), user("b"));
        let broker = Nats::with_config(program, &users);
        let shared = Shared::of(&broker);
        let command = |node: &str, user: &str, password: &str| {
            let mut command = shared.command(node);
            let file = shared.file(&format!("{node}-{user}-{password}"), password);
            set(&mut command, "USER", user);
            set_path(&mut command, "PASSWORD_FILE", &file);
            command
        };
        let [a, b] = ["a", "b"].map(|it| Skep::spawn(command(it, it, &format!("pw-{it}"))));
        let [a, b] = [ready(a), ready(b)];
        client(&a).announce(&seeder(1, 1001));
        client(&b).announce(&leecher(1, 1002));
        all_say(&[&a, &b], 1, (1, 1, 0));
        assert!(!a.log().contains("refused by the broker"), "{}", a.log());
        let wrong = Skep::spawn(command("c", "a", "guessed"));
        let log = wrong.log_with("cluster not connected");
        assert!(log.contains("correct cluster.user and the password"), "{log}");
        assert!(!log.contains("guessed"), "{log}");
        let other_name = Skep::spawn(command("d", "a", "pw-a"));
        let log = other_name.log_with("cluster refused by the broker");
        assert!(log.to_lowercase().contains("permissions violation"), "{log}");
    }
}

#[test]
fn brokers_are_reached_over_tls_with_certificates_of_both_sides() {
    for program in broker_programs() {
        let files = Shared::at("");
        let broker_pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let node_pair = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
        let file = |name: &str, text: &str| files.file(name, text);
        let certificate = file("broker.pem", &broker_pair.cert.pem());
        let key = file("broker.key", &broker_pair.signing_key.serialize_pem());
        let node_certificate = file("node.pem", &node_pair.cert.pem());
        let node_key = file("node.key", &node_pair.signing_key.serialize_pem());
        let config = format!(
            "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {node_certificate:?}, \
             verify: true }}\n"
        );
        let broker = Nats::with_config(program, &config);
        let port = broker.address.port();
        let shared = Shared::at(&format!("tls://localhost:{port}"));
        let command = |node: &str| {
            let mut command = shared.command(node);
            set_path(&mut command, "CA", &certificate);
            set_path(&mut command, "CERTIFICATE", &node_certificate);
            set_path(&mut command, "KEY", &node_key);
            command
        };
        let [a, b] = ["a", "b"].map(|it| ready(Skep::spawn(command(it))));
        client(&a).announce(&seeder(1, 1001));
        all_say(&[&a, &b], 1, (1, 0, 0));
        let mut distrusting = command("c");
        set_path(&mut distrusting, "CA", &node_certificate);
        let log = Skep::spawn(distrusting).log_with("cluster not connected");
        assert!(log.contains("TLS: ") && log.contains("set cluster.ca to"), "{log}");
    }
}

#[test]
fn a_broker_that_stops_delays_no_response_and_nothing_is_lost() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let [a, b] = ["a", "b"].map(|it| shared.node(it));
    broker.signal("STOP");
    let mut announcing = client(&a);
    for port in 2001..=4000 {
        announcing.announce(&seeder(1, port));
    }
    all_say(&[&a], 1, (2000, 0, 0));
    all_say(&[&b], 1, (0, 0, 0));
    broker.signal("CONT");
    all_say(&[&a, &b], 1, (2000, 0, 0));
}

#[test]
fn the_last_changes_before_a_stop_are_sent() {
    let Some(program) = broker_program() else { return };
    let broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let [mut a, b] = ["a", "b"].map(|it| shared.node(it));
    let mut announcing = client(&a);
    for port in 2001..=2100 {
        announcing.announce(&seeder(1, port));
    }
    a.signal("TERM");
    assert!(a.wait().success());
    all_say(&[&b], 1, (100, 0, 0));
}

#[test]
fn what_the_settings_name_is_judged_before_a_start() {
    let shared = Shared::at("nats://127.0.0.1:9");
    let check = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        let (stdout, stderr) = texts(&output);
        (output.status.code(), stdout + &stderr)
    };
    let checked = |key: &str, value: &str| {
        let mut command = crate::support::command();
        command.arg("check");
        let node = shared.command("a");
        for (name, value) in node.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        set(&mut command, key, value);
        check(&mut command)
    };
    let (code, text) = checked("NAME", "skep");
    assert_eq!(code, Some(0), "{text}");
    let short = shared.file("short", "too short");
    for (key, value, said) in [
        ("SECRET_FILE", short.to_str().unwrap(), "short has 9 bytes without blanks at its ends"),
        ("SECRET_FILE", "/nope", "openssl rand -hex 32 > /nope"),
        ("NKEY_FILE", "/nope", "cluster.nkey_file: cannot read"),
        ("CA", "/nope", "cluster.ca: "),
    ] {
        let (code, text) = checked(key, value);
        assert!(code == Some(2) && text.contains(said), "{key}={value}: {code:?} {text}");
    }
    let mut command = shared.command("a");
    set(&mut command, "SECRET_FILE", short.to_str().unwrap());
    let (code, text) = check(&mut command);
    assert!(code == Some(2) && text.contains("short has 9 bytes"), "{code:?} {text}");
    fs::remove_file(short).unwrap();
}

#[test]
fn a_node_joins_again_after_its_broker_was_stopped_for_long() {
    let Some(program) = broker_program() else { return };
    let mut broker = Nats::start(program);
    let shared = Shared::of(&broker);
    let [a, b] = ["a", "b"].map(|it| shared.node(it));
    broker.signal("STOP");
    a.log_with("cluster disconnected");
    client(&a).announce(&seeder(1, 1001));
    broker.restart();
    eventually("it is connected again", || a.log().matches("cluster connected").count() == 2);
    all_say(&[&a, &b], 1, (1, 0, 0));
}
