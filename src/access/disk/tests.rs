//! The office on a folder of its own: loading, reloading, editing.

use std::fs;
use std::path::Path;

use super::*;
use crate::access::Gate;
use crate::access::lists::{Question, parse_value};
use crate::types::{InfoHash, Refusal};

fn options(folder: &Path) -> Options {
    let mut files = [const { None }; Name::ALL.len()];
    files[Name::NetworksDeny as usize] = Some(folder.join("networks"));
    Options { files, state: Ok(folder.join("state")) }
}

fn edit(name: Name, add: &[&str], remove: &[&str]) -> Edit {
    let value = |text: &&str| parse_value(name.kind(), text).unwrap().0;
    Edit {
        add: add.iter().map(|it| (value(it), None)).collect(),
        remove: remove.iter().map(value).collect(),
    }
}

fn verdict(office: &Office, source: &str) -> Result<(), Refusal> {
    let (info_hash, source) = (&InfoHash([1; 20]), source.parse().unwrap());
    let question = Question { info_hash, source, peer_id: None, port: None };
    Gate::new(office.access().clone()).admit(&question)
}

#[test]
fn a_bad_line_keeps_the_list_that_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("networks");
    fs::write(&file, "192.0.2.0/24\n").unwrap();
    let office = Office::open(&options(folder.path())).unwrap();
    assert_eq!(verdict(&office, "192.0.2.1"), Err(Refusal::NetworkDenied));
    fs::write(&file, "198.51.100.0/24\n192.0.2.0/240\n").unwrap();
    let troubles = office.reload(Who::Reload).unwrap_err();
    assert!(troubles[0].to_string().contains("networks:2: "), "{troubles:?}");
    assert_eq!(office.reload_failures(), 1);
    assert_eq!(verdict(&office, "192.0.2.1"), Err(Refusal::NetworkDenied));
    assert_eq!(verdict(&office, "198.51.100.1"), Ok(()));
    fs::write(&file, "198.51.100.0/24\n").unwrap();
    let changes = office.reload(Who::Reload).unwrap();
    let change = changes.iter().find(|it| it.name == Name::NetworksDeny).unwrap();
    assert_eq!((change.added, change.removed, change.entries), (1, 1, 1));
    assert_eq!(verdict(&office, "192.0.2.1"), Ok(()));
    assert!(Office::open(&options(folder.path())).is_ok());
    fs::write(&file, "x\n").unwrap();
    let trouble = Office::open(&options(folder.path())).err().unwrap();
    assert!(trouble.to_string().contains("networks:1: "), "{trouble}");
}

#[test]
fn edits_outlive_the_office() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("networks"), "# by hand\n").unwrap();
    let office = Office::open(&options(folder.path())).unwrap();
    assert_eq!(verdict(&office, "::1"), Ok(()));
    let change = office.edit(
        Name::NetworksDeny,
        &edit(Name::NetworksDeny, &["::/64", "10.0.0.0/8"], &[]),
        Who::Api(None),
    );
    assert_eq!(change.unwrap().added, 2);
    let allow = edit(Name::NetworksAllow, &["192.0.2.0/24"], &[]);
    office.edit(Name::NetworksAllow, &allow, Who::Api(None)).unwrap();
    let again = Office::open(&options(folder.path())).unwrap();
    for office in [&office, &again] {
        assert_eq!(verdict(office, "::1"), Err(Refusal::NetworkDenied));
        assert_eq!(verdict(office, "192.0.2.1"), Ok(()));
        assert_eq!(verdict(office, "192.0.3.1"), Err(Refusal::NetworkDenied));
    }
    let text = fs::read_to_string(folder.path().join("networks")).unwrap();
    assert_eq!(text, "# by hand\n::/64\n10.0.0.0/8\n");
    let empty = edit(Name::NetworksAllow, &[], &["192.0.2.0/24"]);
    assert_eq!(again.edit(Name::NetworksAllow, &empty, Who::Api(None)).unwrap().removed, 1);
    assert_eq!(verdict(&again, "192.0.3.1"), Ok(()), "an allow list of ours ends with its entries");
}

#[test]
fn an_allow_list_that_a_setting_names_allows_nothing_while_it_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("allowed");
    fs::write(&file, "").unwrap();
    let mut options = options(folder.path());
    options.files = [const { None }; Name::ALL.len()];
    options.files[Name::NetworksAllow as usize] = Some(file);
    let office = Office::open(&options).unwrap();
    assert_eq!(verdict(&office, "192.0.2.1"), Err(Refusal::NetworkDenied));
}

#[test]
fn without_a_state_directory_nothing_is_edited() {
    let options = Options { state: Err("it is read-only".into()), ..options(Path::new("/")) };
    let options = Options { files: [const { None }; Name::ALL.len()], ..options };
    let office = Office::open(&options).unwrap();
    let added = edit(Name::PortsDeny, &["25"], &[]);
    let trouble = office.edit(Name::PortsDeny, &added, Who::Api(None)).unwrap_err();
    assert!(trouble.to_string().contains("it is read-only"), "{trouble}");
    assert!(trouble.to_string().contains("server.state_dir"), "{trouble}");
}
