//! What the generated frames contain, and who sends them.
//!
//! ```text
//! client i of 2^b   20.0.0.1 + (i << 24 - b), port 6881: networks of their own, as far as possible
//! forger            21.x.y.z, random
//! transaction id    the source address ^ TRANSACTION_MASK: a response is checked without a table
//! announce n        client n mod 2^b, torrent n / 8 mod 2^t: 8 peers in each
//! ```

#[cfg(test)]
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;

use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{Announcement, encode_announce, encode_connect};
use skep::types::{Event, InfoHash, PeerId};

use super::network::{CLIENT_MAC, SERVER_MAC};

/// The network of honest clients, as its highest byte.
pub(crate) const CLIENTS: u32 = 20 << 24;
/// The network of forged sources.
pub(crate) const FORGERS: u32 = 21 << 24;
/// Most clients: 2 to this power.
pub(crate) const CLIENT_BITS_MAX: u32 = 20;
/// Clients that announce in the same torrent, one after the other: 2 to this power.
pub(crate) const SWARM_BITS: u32 = 3;
/// The port of every client, which it also announces.
pub(crate) const CLIENT_PORT: u16 = 6881;
/// What a transaction id is the source address with.
pub(crate) const TRANSACTION_MASK: u32 = 0x5ec7_0a1d;

/// Where the parts of a frame are: Ethernet, IPv4 without options, UDP, BEP 15.
pub(crate) const IP: i16 = 14;
pub(crate) const IP_SOURCE: i16 = IP + 12;
pub(crate) const UDP: i16 = IP + 20;
pub(crate) const PAYLOAD: i16 = UDP + 8;
pub(crate) const CONNECT_FRAME: i16 = PAYLOAD + 16;
pub(crate) const ANNOUNCE_FRAME: i16 = PAYLOAD + 98;
/// Parts of requests.
pub(crate) const CONNECTION_ID: i16 = PAYLOAD;
pub(crate) const TRANSACTION_ID: i16 = PAYLOAD + 12;
pub(crate) const INFO_HASH: i16 = PAYLOAD + 16;
pub(crate) const PEER_ADDRESS: i16 = PAYLOAD + 36 + 16;

/// The address of a client of 2^`bits`: what the programs compute.
#[cfg(test)]
pub(crate) fn client(index: u32, bits: u32) -> Ipv4Addr {
    Ipv4Addr::from(CLIENTS | 1 | index << (24 - bits))
}

/// A frame around a request, with zeros for checksums and what depends on the client.
fn frame(server: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut frame = [SERVER_MAC, CLIENT_MAC].concat();
    let bytes = |header: usize| u16::try_from(header + payload.len()).unwrap_or(u16::MAX);
    frame.extend(0x0800_u16.to_be_bytes());
    frame.extend([0x45, 0]);
    frame.extend(bytes(28).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0]);
    frame.extend(server.ip().octets());
    frame.extend([CLIENT_PORT, server.port(), bytes(8), 0].map(u16::to_be_bytes).concat());
    frame.extend(payload);
    frame
}

/// A connect.
pub(crate) fn connect(server: SocketAddrV4) -> Vec<u8> {
    let mut payload = [0; 16];
    encode_connect(TransactionId([0; 4]), &mut payload);
    frame(server, &payload)
}

/// An announce without event of a peer that has not completed.
pub(crate) fn announce(server: SocketAddrV4, numwant: u16) -> Vec<u8> {
    let announcement = Announcement {
        info_hash: InfoHash([0; 20]),
        peer_id: PeerId(*b"-SL0100-loadtest\0\0\0\0"),
        downloaded: 0,
        left: 1,
        uploaded: 0,
        event: Event::None,
        numwant: numwant.into(),
        port: CLIENT_PORT,
        key: [7; 4],
    };
    let mut payload = [0; 98];
    encode_announce(0, TransactionId([0; 4]), &announcement, &mut payload);
    frame(server, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_lengths_that_the_programs_count_on() {
        let server = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), 7);
        assert_eq!(connect(server).len(), usize::try_from(CONNECT_FRAME).unwrap());
        assert_eq!(announce(server, 30).len(), usize::try_from(ANNOUNCE_FRAME).unwrap());
    }

    #[test]
    fn clients_are_far_apart() {
        assert_eq!(client(0, 16), Ipv4Addr::new(20, 0, 0, 1));
        assert_eq!(client(1, 16), Ipv4Addr::new(20, 0, 1, 1));
        assert_eq!(client(0xffff, 16), Ipv4Addr::new(20, 255, 255, 1));
        assert_eq!(client(1, 1), Ipv4Addr::new(20, 128, 0, 1));
    }
}
