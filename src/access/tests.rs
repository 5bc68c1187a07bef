//! The gate as workers use it, in every mode.

use std::sync::Arc;

use super::lists::{AccessList, ListName};
use super::passkey::{Limits, Record, Totals, generate};
use super::*;
use crate::types::{Event, PeerId};

const NOW: Now = Now::from_s(1_800_000_000);
const KNOWN: InfoHash = InfoHash([1; 20]);
const SECOND: InfoHash = InfoHash([2; 20]);
const STRANGE: InfoHash = InfoHash([3; 20]);

fn announce(info_hash: InfoHash) -> Announce {
    Announce {
        info_hash,
        source: "192.0.2.1".parse().unwrap(),
        address_override: None,
        contact: Contact::Port(6881),
        peer_id: PeerId(*b"-XL0012-abcdefghijkl"),
        left: 7,
        event: Event::Started,
        numwant: None,
    }
}

fn access(mode: Mode) -> Arc<Access> {
    let access = Access::new(mode, Lists::default());
    access.registry().insert(KNOWN, KNOWN);
    access.registry().insert(SECOND, KNOWN);
    Arc::new(access)
}

fn record(limits: Limits) -> Record {
    Record { name: "ann".into(), limits, issued_s: 0, totals: Totals::default() }
}

fn enter(gate: &mut Gate, hash: InfoHash, passkey: Option<&str>) -> Result<InfoHash, Refusal> {
    let passkey = passkey.map(str::as_bytes);
    let credentials = Credentials { passkey, uploaded: 3, downloaded: 4 };
    let announced = gate.announce(NOW, &announce(hash), || credentials);
    let source = "192.0.2.1".parse().unwrap();
    assert_eq!(gate.scrape(NOW, source, &hash, passkey), announced, "scrapes are no way in");
    announced
}

#[test]
fn an_open_tracker_serves_what_it_is_asked_for() {
    let mut gate = Gate::new(Arc::default());
    assert_eq!(enter(&mut gate, STRANGE, None), Ok(STRANGE));
    assert_eq!(enter(&mut Gate::new(access(Mode::Open)), SECOND, None), Ok(SECOND));
}

#[test]
fn lists_take_effect_while_serving() {
    let access = access(Mode::Open);
    let mut gate = Gate::new(access.clone());
    assert_eq!(enter(&mut gate, KNOWN, None), Ok(KNOWN));
    let list =
        AccessList::parse(lists::ListKind::Torrents, format!("{KNOWN} taken down").as_bytes());
    let denied = Lists::default().with(ListName::TorrentsDeny, Arc::new(list.unwrap()), false);
    access.set_lists(denied);
    assert_eq!(enter(&mut gate, KNOWN, None), Err(Refusal::TorrentDenied));
    assert_eq!(gate.reason(Refusal::TorrentDenied, &announce(KNOWN)), Some("taken down"));
    access.set_lists(Lists::default());
    assert_eq!(enter(&mut gate, KNOWN, None), Ok(KNOWN));
}

#[test]
fn registered_torrents_alone_are_served_where_that_is_the_mode() {
    let mut gate = Gate::new(access(Mode::Registered));
    assert_eq!(enter(&mut gate, KNOWN, None), Ok(KNOWN));
    assert_eq!(enter(&mut gate, SECOND, None), Ok(KNOWN), "a hybrid has one swarm");
    assert_eq!(enter(&mut gate, STRANGE, None), Err(Refusal::Unregistered));
    let mut similar = KNOWN;
    similar.0[10] = 7;
    assert_eq!(enter(&mut gate, similar, None), Err(Refusal::SimilarTorrent));
}

#[test]
fn a_private_tracker_wants_a_passkey_and_a_registered_torrent() {
    let access = access(Mode::Private);
    let (digits, digest) = generate();
    let key = access.passkeys().insert(digest, &record(Limits::default()));
    let mut gate = Gate::new(access.clone());
    let right = Some(digits.as_str());
    assert_eq!(enter(&mut gate, KNOWN, None), Err(Refusal::UnknownPasskey));
    assert_eq!(enter(&mut gate, KNOWN, Some("0")), Err(Refusal::UnknownPasskey));
    assert_eq!(enter(&mut gate, STRANGE, None), Err(Refusal::UnknownPasskey), "tells nothing");
    assert_eq!(enter(&mut gate, SECOND, right), Ok(KNOWN));
    assert_eq!(enter(&mut gate, STRANGE, right), Err(Refusal::Unregistered));
    let totals = key.record().totals;
    assert_eq!((totals.announces, totals.uploaded, totals.downloaded), (1, 0, 0));
    access.passkeys().remove(&digest);
    assert_eq!(enter(&mut gate, KNOWN, right), Err(Refusal::UnknownPasskey));
}

#[test]
fn a_key_over_its_limit_is_told_so() {
    let access = access(Mode::Private);
    let (digits, digest) = generate();
    access.passkeys().insert(digest, &record(Limits { peers: 0, ..Limits::default() }));
    let credentials = Credentials { passkey: Some(digits.as_bytes()), ..Credentials::default() };
    let refused = Gate::new(access).announce(NOW, &announce(KNOWN), || credentials);
    assert_eq!(refused, Err(Refusal::PasskeyLimit));
}
