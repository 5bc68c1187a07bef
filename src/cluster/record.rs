//! The records of a frame of deltas: one change to one peer each.
//!
//! ```text
//! record  what (1) | info-hash (20) | address (4 or 16) | port (2)          27 or 39 bytes
//! what    bits 0 to 2 the state as in a snapshot | 4 IPv6 | 5 left | 6 completed now
//!         | 7 exempt from caps per host
//! ```
//!
//! Address and port are as in responses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::store::{DeltaChange, PeerDelta, PeerState};
use crate::types::InfoHash;

/// Bytes of a record of an IPv6 peer, the longest one.
pub(super) const RECORD_BYTES_MAX: usize = 39;

/// The state: role, and whether the download was counted.
const STATE: u8 = 0b111;

const _: () = assert!(STATE + 1 == PeerState::STATES);

const IPV6: u8 = 1 << 4;
const LEFT: u8 = 1 << 5;
const COMPLETED: u8 = 1 << 6;
const EXEMPT: u8 = 1 << 7;

/// Appends a record.
pub(super) fn encode(delta: &PeerDelta, to: &mut Vec<u8>) {
    let change = match delta.change {
        DeltaChange::Present { state, completed } => {
            state.number() | if completed { COMPLETED } else { 0 }
        }
        DeltaChange::Left => LEFT,
    };
    let family = if delta.address.is_ipv6() { IPV6 } else { 0 };
    to.push(change | family | if delta.is_exempt { EXEMPT } else { 0 });
    to.extend_from_slice(&delta.info_hash.0);
    match delta.address {
        IpAddr::V4(address) => to.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => to.extend_from_slice(&address.octets()),
    }
    to.extend_from_slice(&delta.port.to_be_bytes());
}

/// The records of a payload. Ends early, with an error, where the rest is not a record.
pub(super) fn decode(payload: &[u8]) -> Records<'_> {
    Records { rest: payload }
}

/// A payload that ends within a record, or a record that contradicts itself: a frame of a program
/// with another idea of records, as frames are authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frame has a record that cannot be read")]
pub(super) struct RecordError;

/// The records of a payload.
pub(super) struct Records<'a> {
    rest: &'a [u8],
}

impl Iterator for Records<'_> {
    type Item = Result<PeerDelta, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = record(self.rest);
        self.rest = read.as_ref().map_or(&[], |(_, rest)| rest);
        Some(read.map(|(delta, _)| delta).ok_or(RecordError))
    }
}

fn record(bytes: &[u8]) -> Option<(PeerDelta, &[u8])> {
    let (&[what], rest) = bytes.split_first_chunk::<1>()?;
    let (&info_hash, rest) = rest.split_first_chunk::<20>()?;
    let (address, rest): (IpAddr, _) = if what & IPV6 == 0 {
        let (&octets, rest) = rest.split_first_chunk::<4>()?;
        (Ipv4Addr::from(octets).into(), rest)
    } else {
        let (&octets, rest) = rest.split_first_chunk::<16>()?;
        (Ipv6Addr::from(octets).into(), rest)
    };
    let (&port, rest) = rest.split_first_chunk::<2>()?;
    let change = match (what & LEFT != 0, what & COMPLETED != 0) {
        (false, completed) => {
            DeltaChange::Present { state: PeerState::new(what & STATE)?, completed }
        }
        (true, false) if what & STATE == 0 => DeltaChange::Left,
        (true, _) => return None,
    };
    let delta = PeerDelta {
        info_hash: InfoHash(info_hash),
        address,
        port: u16::from_be_bytes(port),
        change,
        is_exempt: what & EXEMPT != 0,
    };
    Some((delta, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of a record of an IPv4 peer, the shortest one.
    const RECORD_BYTES_MIN: usize = 27;

    fn any_delta() -> impl Strategy<Value = PeerDelta> {
        let change = prop_oneof![
            Just(DeltaChange::Left),
            (0..PeerState::STATES, any::<bool>()).prop_map(|(state, completed)| {
                DeltaChange::Present { state: PeerState::new(state).unwrap(), completed }
            }),
        ];
        let parts = (any::<[u8; 20]>(), any::<IpAddr>(), any::<u16>(), change, any::<bool>());
        parts.prop_map(|(info_hash, address, port, change, is_exempt)| PeerDelta {
            info_hash: InfoHash(info_hash),
            address,
            port,
            change,
            is_exempt,
        })
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were(deltas in prop::collection::vec(any_delta(), 0..20)) {
            let mut bytes = Vec::new();
            for delta in &deltas {
                let before = bytes.len();
                encode(delta, &mut bytes);
                let is_short = delta.address.is_ipv4();
                let length = if is_short { RECORD_BYTES_MIN } else { RECORD_BYTES_MAX };
                prop_assert_eq!(bytes.len() - before, length);
            }
            let read: Result<Vec<_>, _> = decode(&bytes).collect();
            prop_assert_eq!(read, Ok(deltas));
        }

        #[test]
        fn any_bytes_end_in_records_or_one_error(
            bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let read: Vec<_> = decode(&bytes).collect();
            prop_assert!(read.len() <= bytes.len() / RECORD_BYTES_MIN + 1);
            let errors = read.iter().filter(|it| it.is_err()).count();
            prop_assert!(errors == 0 || errors == 1 && read.last().is_some_and(Result::is_err));
        }
    }

    #[test]
    fn a_record_that_is_cut_off_or_contradicts_itself_is_an_error() {
        let mut bytes = Vec::new();
        let delta = PeerDelta {
            info_hash: InfoHash([7; 20]),
            address: [8, 8, 8, 8].into(),
            port: 6881,
            change: DeltaChange::Left,
            is_exempt: true,
        };
        encode(&delta, &mut bytes);
        for end in 1..bytes.len() {
            assert_eq!(decode(&bytes[..end]).next(), Some(Err(RecordError)), "{end} bytes");
        }
        for nonsense in [COMPLETED, 1] {
            let mut changed = bytes.clone();
            changed[0] |= nonsense;
            assert_eq!(decode(&changed).next(), Some(Err(RecordError)));
        }
    }
}
