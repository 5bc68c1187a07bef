//! The BEP 15 codec's two sides against each other: what one writes the other reads, of every
//! truncation no more than what is there, and of arbitrary bytes nothing but a verdict.

use proptest::collection::vec;
use proptest::prelude::*;
use skep::protocol::udp::client::{self, Announcement, Response, ResponseDecodeError};
use skep::protocol::udp::{
    self, ANNOUNCE_BYTES, ANNOUNCED_BYTES, HEAD_BYTES, REQUEST_BYTES_MAX, RESPONSE_HEAD_BYTES,
    Request, SCRAPE_HASHES_MAX, TransactionId, peer_stride,
};
use skep::types::{
    AnnounceResponse, Dropped, Event, Family, InfoHash, PeerId, Refusal, ScrapeEntry,
};

const EVENTS: [Event; 5] =
    [Event::None, Event::Completed, Event::Started, Event::Stopped, Event::Paused];

fn transaction() -> impl Strategy<Value = TransactionId> {
    any::<[u8; 4]>().prop_map(TransactionId)
}

fn info_hash() -> impl Strategy<Value = InfoHash> {
    any::<[u8; 20]>().prop_map(InfoHash)
}

fn family() -> impl Strategy<Value = Family> {
    prop::sample::select(&Family::ALL[..])
}

prop_compose! {
    fn announcement()(
        info_hash in info_hash(),
        peer_id in any::<[u8; 20]>().prop_map(PeerId),
        (downloaded, left, uploaded) in any::<(u64, u64, u64)>(),
        event in prop::sample::select(&EVENTS[..]),
        (numwant, port, key) in any::<(i32, u16, [u8; 4])>(),
    ) -> Announcement {
        Announcement {
            info_hash, peer_id, downloaded, left, uploaded, event, numwant, port, key,
        }
    }
}

prop_compose! {
    fn entry()((seeders, completed, leechers) in any::<(u32, u32, u32)>()) -> ScrapeEntry {
        ScrapeEntry { seeders, completed, leechers, downloaders: leechers }
    }
}

/// One BEP 41 option as it is sent: its kind, then for all but end and nop its length and value.
fn option_bytes(kind: u8, value: &[u8]) -> Vec<u8> {
    match kind {
        0 | 1 => vec![kind],
        _ => [&[kind, u8::try_from(value.len()).unwrap()], value].concat(),
    }
}

fn connect(transaction: TransactionId) -> Vec<u8> {
    let mut out = [0; HEAD_BYTES];
    let bytes = client::encode_connect(transaction, &mut out);
    out[..bytes].to_vec()
}

fn announce(id: u64, transaction: TransactionId, announcement: &Announcement) -> Vec<u8> {
    let mut out = [0; ANNOUNCE_BYTES];
    let bytes = client::encode_announce(id, transaction, announcement, &mut out);
    out[..bytes].to_vec()
}

fn scrape(id: u64, transaction: TransactionId, hashes: &[InfoHash]) -> Vec<u8> {
    let mut out = [0; REQUEST_BYTES_MAX];
    let bytes = client::encode_scrape(id, transaction, hashes, &mut out);
    out[..bytes].to_vec()
}

/// The head of a request, which every response answers.
fn head(transaction: TransactionId) -> udp::Head {
    let datagram = connect(transaction);
    match udp::decode(&datagram).unwrap() {
        Request::Connect(head) => *head,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn a_connect_is_read_as_written(transaction in transaction()) {
        let datagram = connect(transaction);
        prop_assert_eq!(datagram.len(), 16);
        let Ok(Request::Connect(head)) = udp::decode(&datagram) else {
            panic!("no connect");
        };
        prop_assert_eq!(head.transaction_id, transaction);
    }

    #[test]
    fn an_announce_is_read_as_written(
        id in any::<u64>(),
        transaction in transaction(),
        sent in announcement(),
    ) {
        let datagram = announce(id, transaction, &sent);
        prop_assert_eq!(datagram.len(), 98);
        prop_assert_eq!(udp::peek_info_hash(&datagram), Some(&sent.info_hash));
        let Ok(Request::Announce(read, options)) = udp::decode(&datagram) else {
            panic!("no announce");
        };
        prop_assert_eq!(read.head.connection_id.get(), id);
        prop_assert_eq!(read.head.transaction_id, transaction);
        prop_assert_eq!((read.info_hash, read.peer_id), (sent.info_hash, sent.peer_id));
        prop_assert_eq!(read.downloaded.get(), sent.downloaded);
        prop_assert_eq!((read.left.get(), read.uploaded.get()), (sent.left, sent.uploaded));
        prop_assert_eq!((read.event(), read.port.get()), (sent.event, sent.port));
        prop_assert_eq!((read.claimed_address(), read.key), (None, sent.key));
        let numwant = u32::try_from(sent.numwant).ok().filter(|&it| it > 0);
        prop_assert_eq!(read.numwant(), numwant);
        prop_assert!(options.url_data().is_empty());
    }

    #[test]
    fn a_scrape_is_read_as_written(
        id in any::<u64>(),
        transaction in transaction(),
        hashes in vec(info_hash(), 0..=SCRAPE_HASHES_MAX + 10),
    ) {
        let datagram = scrape(id, transaction, &hashes);
        let Ok(Request::Scrape(head, read)) = udp::decode(&datagram) else {
            panic!("no scrape");
        };
        prop_assert_eq!((head.connection_id.get(), head.transaction_id), (id, transaction));
        prop_assert_eq!(read, &hashes[..hashes.len().min(SCRAPE_HASHES_MAX)]);
    }

    #[test]
    fn url_data_is_joined_whatever_stands_between(
        sent in announcement(),
        options in vec((1_u8..6, vec(any::<u8>(), 0..40)), 0..10),
        garbage in vec(any::<u8>(), 0..20),
    ) {
        let mut datagram = announce(1, TransactionId([0; 4]), &sent);
        let options = options.iter();
        datagram.extend(options.clone().flat_map(|(kind, it)| option_bytes(*kind, it)));
        datagram.push(0); // the end: what follows is nothing
        datagram.extend(garbage);
        let joined: Vec<u8> =
            options.filter(|it| it.0 == 2).flat_map(|it| it.1.iter().copied()).collect();
        let Ok(Request::Announce(_, options)) = udp::decode(&datagram) else {
            panic!("no announce");
        };
        let url_data = options.url_data();
        prop_assert_eq!(url_data.as_ref(), &joined[..]);
    }

    #[test]
    fn every_truncation_of_an_announce_is_too_short(sent in announcement()) {
        let datagram = announce(1, TransactionId([7; 4]), &sent);
        for bytes in 0..datagram.len() {
            let verdict = udp::decode(&datagram[..bytes]);
            prop_assert_eq!(verdict.err(), Some(Dropped::TooShort));
        }
    }

    #[test]
    fn every_truncation_of_the_options_is_still_the_announce(
        sent in announcement(),
        options in vec((1_u8..6, vec(any::<u8>(), 0..40)), 0..6),
    ) {
        let mut datagram = announce(1, TransactionId([7; 4]), &sent);
        datagram.extend(options.iter().flat_map(|(kind, it)| option_bytes(*kind, it)));
        let whole = options.iter().filter(|it| it.0 == 2).flat_map(|it| it.1.iter().copied());
        let whole: Vec<u8> = whole.collect();
        for bytes in ANNOUNCE_BYTES..=datagram.len() {
            let Ok(Request::Announce(read, options)) = udp::decode(&datagram[..bytes]) else {
                panic!("no announce");
            };
            prop_assert_eq!(read.info_hash, sent.info_hash);
            prop_assert!(whole.starts_with(&options.url_data()));
        }
    }

    #[test]
    fn every_truncation_of_a_scrape_holds_its_whole_hashes(hashes in vec(info_hash(), 0..6)) {
        let datagram = scrape(1, TransactionId([7; 4]), &hashes);
        for bytes in 0..datagram.len() {
            match udp::decode(&datagram[..bytes]) {
                Ok(Request::Scrape(_, read)) => {
                    prop_assert_eq!(read, &hashes[..(bytes - HEAD_BYTES) / 20]);
                }
                Ok(other) => panic!("{other:?}"),
                Err(dropped) => {
                    prop_assert_eq!((dropped, bytes < HEAD_BYTES), (Dropped::TooShort, true));
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_get_a_verdict(datagram in vec(any::<u8>(), 0..REQUEST_BYTES_MAX)) {
        if let Ok(Request::Announce(_, options)) = udp::decode(&datagram) {
            prop_assert!(options.url_data().len() <= datagram.len());
        }
        for family in Family::ALL {
            let _ = client::decode(&datagram, family);
        }
    }

    #[test]
    fn responses_are_read_as_written(
        transaction in transaction(),
        family in family(),
        id in any::<u64>(),
        (interval_s, leechers, seeders) in any::<(u32, u32, u32)>(),
        peers in vec(any::<u8>(), 0..1000),
        entries in vec(entry(), 0..=SCRAPE_HASHES_MAX),
    ) {
        let request = head(transaction);
        let mut out = [0; 1232];

        let bytes = udp::encode_connected(&request, id, &mut out);
        prop_assert_eq!(bytes, HEAD_BYTES);
        let connected = Response::Connected(id);
        prop_assert_eq!(client::decode(&out[..bytes], family), Ok((transaction, connected)));

        let peers = &peers[..peers.len() - peers.len() % peer_stride(family)];
        udp::peers_of(&mut out)[..peers.len()].copy_from_slice(peers);
        let response = AnnounceResponse { interval_s, min_interval_s: 0, leechers, seeders };
        let bytes = udp::encode_announced(&request, &response, peers.len(), &mut out);
        prop_assert_eq!(bytes, ANNOUNCED_BYTES + peers.len());
        let announced = Response::Announced(response, peers);
        prop_assert_eq!(client::decode(&out[..bytes], family), Ok((transaction, announced)));

        let bytes = udp::encode_scraped(&request, entries.iter().copied(), &mut out);
        prop_assert_eq!(bytes, RESPONSE_HEAD_BYTES + 12 * entries.len());
        let Ok((_, Response::Scraped(read))) = client::decode(&out[..bytes], family) else {
            panic!("no scrape reply");
        };
        prop_assert_eq!(read.count(), entries.len());
        prop_assert_eq!(read.iter().collect::<Vec<_>>(), entries);
    }

    #[test]
    fn truncated_responses_are_refused_or_whole(family in family(), peers in 0_usize..5) {
        let mut out = [0; 1232];
        let request = head(TransactionId([7; 4]));
        let stride = peer_stride(family);
        let response =
            AnnounceResponse { interval_s: 1, min_interval_s: 0, leechers: 2, seeders: 3 };
        let whole = udp::encode_announced(&request, &response, peers * stride, &mut out);
        for bytes in 0..whole {
            match client::decode(&out[..bytes], family) {
                Ok((_, Response::Announced(_, peers))) => prop_assert_eq!(peers.len() % stride, 0),
                Ok((_, other)) => panic!("{other:?}"),
                Err(error) if bytes < ANNOUNCED_BYTES => {
                    prop_assert_eq!(error, ResponseDecodeError::TooShort);
                }
                Err(error) => prop_assert_eq!(error, ResponseDecodeError::RaggedTail),
            }
        }
    }
}

#[test]
fn errors_say_why_and_stay_below_the_shortest_announce() {
    for refusal in Refusal::ALL {
        let mut out = [0; 64];
        let transaction = TransactionId(*b"tid!");
        let bytes = udp::encode_error(&head(transaction), refusal, &mut out);
        let error = Response::Error(refusal.text().as_bytes());
        assert_eq!(client::decode(&out[..bytes], Family::V4), Ok((transaction, error)));
        assert!(bytes <= 32, "{refusal:?} takes {bytes} bytes");
    }
}
