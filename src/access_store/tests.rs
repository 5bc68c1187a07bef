//! The access manager with a folder of its own: loading, reloading, editing.

use std::fs;
use std::path::Path;

use super::*;
use crate::access::Gate;
use crate::access::lists::parse_value;
use crate::access::passkey::{Limits, SessionReport};
use crate::time::Now;
use crate::types::{Event, InfoHash, PeerId, Refusal};

fn options(folder: &Path) -> Options {
    let mut files = [const { None }; ListName::ALL.len()];
    files[ListName::NetworksDeny as usize] = Some(folder.join("networks"));
    let state = Ok(folder.join("state"));
    Options { mode: Mode::Open, similar_digits_max: 0, files, state }
}

fn edit(name: ListName, add: &[&str], remove: &[&str]) -> Edit {
    let value = |text: &&str| parse_value(name.kind(), text).unwrap().0;
    Edit {
        add: add.iter().map(|it| (value(it), None)).collect(),
        remove: remove.iter().map(value).collect(),
    }
}

fn verdict(access_manager: &AccessManager, source: &str) -> Result<(), Refusal> {
    let (info_hash, source) = (&InfoHash([1; 20]), source.parse().unwrap());
    let now = Now::from_s(1_800_000_000);
    Gate::new(access_manager.access().clone()).scrape(now, source, info_hash, None).map(|_| ())
}

#[test]
fn a_bad_line_keeps_the_list_that_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("networks");
    fs::write(&file, "192.0.2.0/24\n").unwrap();
    let access_manager = AccessManager::open(&options(folder.path())).unwrap();
    assert_eq!(verdict(&access_manager, "192.0.2.1"), Err(Refusal::NetworkDenied));
    fs::write(&file, "198.51.100.0/24\n192.0.2.0/240\n").unwrap();
    let errors = access_manager.reload(Actor::Reload).unwrap_err();
    assert!(errors[0].to_string().contains("networks:2: "), "{errors:?}");
    assert_eq!(access_manager.reload_failures(), 1);
    assert_eq!(verdict(&access_manager, "192.0.2.1"), Err(Refusal::NetworkDenied));
    assert_eq!(verdict(&access_manager, "198.51.100.1"), Ok(()));
    fs::write(&file, "198.51.100.0/24\n").unwrap();
    let changes = access_manager.reload(Actor::Reload).unwrap();
    let change = changes.iter().find(|it| it.name == ListName::NetworksDeny).unwrap();
    assert_eq!((change.added, change.removed, change.entries), (1, 1, 1));
    assert_eq!(verdict(&access_manager, "192.0.2.1"), Ok(()));
    assert!(AccessManager::open(&options(folder.path())).is_ok());
    fs::write(&file, "x\n").unwrap();
    let trouble = AccessManager::open(&options(folder.path())).err().unwrap();
    assert!(trouble.to_string().contains("networks:1: "), "{trouble}");
}

#[test]
fn edits_outlive_the_office() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("networks"), "# by hand\n").unwrap();
    let access_manager = AccessManager::open(&options(folder.path())).unwrap();
    assert_eq!(verdict(&access_manager, "::1"), Ok(()));
    let change = access_manager.edit(
        ListName::NetworksDeny,
        &edit(ListName::NetworksDeny, &["::/64", "10.0.0.0/8"], &[]),
        Actor::Api(None),
    );
    assert_eq!(change.unwrap().added, 2);
    let allow = edit(ListName::NetworksAllow, &["192.0.2.0/24"], &[]);
    access_manager.edit(ListName::NetworksAllow, &allow, Actor::Api(None)).unwrap();
    let again = AccessManager::open(&options(folder.path())).unwrap();
    for access_manager in [&access_manager, &again] {
        assert_eq!(verdict(access_manager, "::1"), Err(Refusal::NetworkDenied));
        assert_eq!(verdict(access_manager, "192.0.2.1"), Ok(()));
        assert_eq!(verdict(access_manager, "192.0.3.1"), Err(Refusal::NetworkDenied));
    }
    let text = fs::read_to_string(folder.path().join("networks")).unwrap();
    assert_eq!(text, "# by hand\n::/64\n10.0.0.0/8\n");
    let empty = edit(ListName::NetworksAllow, &[], &["192.0.2.0/24"]);
    assert_eq!(again.edit(ListName::NetworksAllow, &empty, Actor::Api(None)).unwrap().removed, 1);
    assert_eq!(verdict(&again, "192.0.3.1"), Ok(()), "an allow list of ours ends with its entries");
}

#[test]
fn an_allow_list_that_a_setting_names_allows_nothing_while_it_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("allowed");
    fs::write(&file, "").unwrap();
    let mut options = options(folder.path());
    options.files = [const { None }; ListName::ALL.len()];
    options.files[ListName::NetworksAllow as usize] = Some(file);
    let access_manager = AccessManager::open(&options).unwrap();
    assert_eq!(verdict(&access_manager, "192.0.2.1"), Err(Refusal::NetworkDenied));
}

#[test]
fn without_a_state_directory_nothing_is_edited() {
    let options = Options { state: Err("it is read-only".into()), ..options(Path::new("/")) };
    let options = Options { files: [const { None }; ListName::ALL.len()], ..options };
    let access_manager = AccessManager::open(&options).unwrap();
    let added = edit(ListName::PortsDeny, &["25"], &[]);
    let trouble = access_manager.edit(ListName::PortsDeny, &added, Actor::Api(None)).unwrap_err();
    assert!(trouble.to_string().contains("it is read-only"), "{trouble}");
    assert!(trouble.to_string().contains("server.state_dir"), "{trouble}");
}

const NOW: Now = Now::from_s(1_800_000_000);

fn access_manager(folder: &Path, mode: Mode) -> Result<AccessManager, AccessError> {
    let files = [const { None }; ListName::ALL.len()];
    AccessManager::open(&Options {
        mode,
        similar_digits_max: 0,
        files,
        state: Ok(folder.to_owned()),
    })
}

fn torrent(number: u8, second: Option<u8>) -> RegisteredTorrent {
    let hash = |it| InfoHash([it; 20]);
    RegisteredTorrent {
        info_hash: hash(number),
        info_hash_v2: second.map(hash),
        name: Some(format!("torrent {number}")),
        ..RegisteredTorrent::default()
    }
}

#[test]
fn registrations_outlive_the_office() {
    let folder = tempfile::tempdir().unwrap();
    let first = access_manager(folder.path(), Mode::Registered).unwrap();
    let created =
        |it: RegisteredTorrent| first.register(it, NOW, Actor::Api(None)).map(|it| it.created);
    assert_eq!(created(torrent(1, Some(2))), Ok(true));
    assert_eq!(created(torrent(3, None)), Ok(true));
    assert_eq!(created(torrent(3, Some(4))), Ok(false), "it turns out to be a hybrid");
    assert_eq!(created(torrent(2, None)), Err(AccessError::Taken));
    assert_eq!(created(torrent(5, Some(1))), Err(AccessError::Taken));
    drop(first);
    let again = access_manager(folder.path(), Mode::Registered).unwrap();
    let canonical = |it: u8| again.access().registry().canonical(&InfoHash([it; 20]));
    for (hash, swarm) in [(1, 1), (2, 1), (3, 3), (4, 3)] {
        assert_eq!(canonical(hash), Some(InfoHash([swarm; 20])), "{hash}");
    }
    let told = again.registered(&InfoHash([2; 20])).unwrap();
    assert_eq!((told.name.as_deref(), told.registered_s), (Some("torrent 1"), NOW.seconds()));
    again.unregister(&InfoHash([2; 20]), Actor::Api(None)).unwrap();
    assert_eq!((canonical(1), canonical(2)), (None, None));
    assert_eq!(again.unregister(&InfoHash([1; 20]), Actor::Api(None)), Err(AccessError::Unknown));
    drop(again);
    let last = access_manager(folder.path(), Mode::Registered).unwrap();
    assert_eq!(last.access().registry().len(), 2);
    let plain = last.register(torrent(3, None), NOW.plus_s(9), Actor::Api(None)).unwrap();
    assert_eq!(plain.torrent.registered_s, NOW.seconds(), "since the first time");
    assert_eq!(last.access().registry().len(), 1, "it is no hybrid after all");
}

#[test]
fn a_damaged_database_opens_no_tracker() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("access.redb"), "no database").unwrap();
    for mode in [Mode::Registered, Mode::Private] {
        let trouble = access_manager(folder.path(), mode).err().unwrap().to_string();
        assert!(trouble.contains("access.redb") && trouble.contains("remedy"), "{trouble}");
    }
    assert!(access_manager(folder.path(), Mode::Open).is_ok(), "which needs none");
    let state = Err("it is read-only".to_owned());
    let files = [const { None }; ListName::ALL.len()];
    let nowhere = Options { mode: Mode::Private, similar_digits_max: 0, files, state };
    let trouble = AccessManager::open(&nowhere).err().unwrap().to_string();
    assert!(trouble.contains("server.state_dir"), "{trouble}");
}

#[test]
fn an_open_tracker_registers_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let access_manager = access_manager(folder.path(), Mode::Open).unwrap();
    assert_eq!(
        access_manager.register(torrent(1, None), NOW, Actor::Api(None)),
        Err(AccessError::Open)
    );
    let issued = access_manager.issue("ann", Limits::default(), NOW, Actor::Api(None));
    assert_eq!(issued.err(), Some(AccessError::NotPrivate));
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "and makes no database");
}

#[test]
fn passkeys_and_their_totals_outlive_the_office_and_are_kept_hashed() {
    let folder = tempfile::tempdir().unwrap();
    let first = access_manager(folder.path(), Mode::Private).unwrap();
    let limits = Limits { peers: 5, ..Limits::default() };
    let issued = first.issue("ann", limits, NOW, Actor::Api(None)).unwrap();
    let other = first.issue("bob", limits, NOW, Actor::Api(None)).unwrap();
    let digits = issued.passkey.as_bytes();
    let key = first.access().passkeys().check(digits).unwrap();
    for uploaded in [0, 700] {
        let report = SessionReport {
            info_hash: &InfoHash([1; 20]),
            peer_id: &PeerId([1; 20]),
            event: Event::None,
            uploaded,
            downloaded: 0,
            left: 0,
        };
        key.count(NOW, &report).unwrap();
    }
    first.flush(NOW, 3600).unwrap();
    first.revoke(&other.id, Actor::Api(None)).unwrap();
    assert_eq!(first.revoke(&other.id, Actor::Api(None)), Err(AccessError::Unknown));
    drop(first);
    let again = access_manager(folder.path(), Mode::Private).unwrap();
    let key = again.access().passkeys().check(digits).unwrap();
    let record = key.record();
    assert_eq!((record.name.as_str(), record.limits), ("ann", limits));
    assert_eq!((record.totals.uploaded, record.totals.announces), (700, 2));
    assert!(again.access().passkeys().check(other.passkey.as_bytes()).is_none());
    let file = fs::read(folder.path().join("access.redb")).unwrap();
    let holds = |needle: &[u8]| file.windows(needle.len()).any(|it| it == needle);
    assert!(!holds(digits) && holds(b"ann"), "the key itself is nowhere");
}

#[test]
fn keys_that_were_issued_with_the_former_default_have_that_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let first = access_manager(folder.path(), Mode::Private).unwrap();
    let former = Limits { announces_per_minute: 600, torrents: 5000, peers: 10_000 };
    let chosen = Limits { announces_per_minute: 601, ..former };
    let issue = |limits| first.issue("ann", limits, NOW, Actor::Api(None)).unwrap().passkey;
    let passkeys = [former, chosen].map(issue);
    drop(first);
    let again = access_manager(folder.path(), Mode::Private).unwrap();
    let limits =
        passkeys.map(|it| again.access().passkeys().check(it.as_bytes()).unwrap().record());
    assert_eq!(limits.map(|it| it.limits), [Limits::default(), chosen]);
    assert_ne!(former, Limits::default());
}
