//! Lists of torrents, networks, clients and ports, as arbitrary bytes.
//!
//! ```text
//! input   the kind of list (1) | the file's bytes
//! ```
//!
//! Invariants checked: nothing panics; an error names an existing line; every value that was read
//! is found in the list, is refused as a denied one, and survives writing and reading.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use skep::access::lists::{AccessList, AccessQuery, ListName, ListValue, Lists, parse_value};
use skep::types::{InfoHash, PeerId};

const NAMES: [ListName; 4] =
    [ListName::TorrentsDeny, ListName::NetworksDeny, ListName::ClientsDeny, ListName::PortsDeny];

/// Whether a request that matches the value is refused.
fn is_refused(lists: &Lists, value: &ListValue) -> bool {
    let (other, source) = (InfoHash([0; 20]), std::net::Ipv4Addr::UNSPECIFIED.into());
    let asked = AccessQuery { info_hash: &other, source, peer_id: None, port: None };
    match value {
        ListValue::Torrent(torrent) => lists.check(&AccessQuery { info_hash: torrent, ..asked }),
        ListValue::Network(network) => {
            lists.check(&AccessQuery { source: network.network(), ..asked })
        }
        ListValue::Client(client) => {
            let mut id = PeerId([0; 20]);
            id.0[..client.length()].copy_from_slice(client.bytes());
            return lists.check(&AccessQuery { peer_id: Some(&id), ..asked }).is_some();
        }
        ListValue::Ports(_, last) => lists.check(&AccessQuery { port: Some(*last), ..asked }),
    }
    .is_some()
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, text)) = input.split_first() else { return };
    let name = NAMES[usize::from(*kind) % NAMES.len()];
    let list = match AccessList::parse(name.kind(), text) {
        Ok(list) => Arc::new(list),
        Err(error) => {
            assert!((1..=text.split(|it| *it == b'\n').count()).contains(&error.line));
            return;
        }
    };
    let lists = Lists::default().with(name, list.clone(), false);
    let page = list.page(None, 100);
    assert_eq!(page.len(), list.len().min(100));
    assert!(page.is_sorted_by(|a, b| a.0 < b.0));
    for (value, reason) in page {
        assert_eq!(list.get(&value), Some(reason));
        assert_eq!(parse_value(name.kind(), &value.to_string()), Some((value, None)));
        assert!(is_refused(&lists, &value), "{value}");
    }
    assert_eq!(list.count_not_in(&list), 0);
});
