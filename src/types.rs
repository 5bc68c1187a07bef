//! The types that every module shares: peers, requests, responses and their results.
//!
//! They have no behaviour beyond invariants, and no protocol's byte layout.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use strum::{EnumCount, IntoStaticStr, VariantArray};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The longest name of a cluster or of one of its nodes, in bytes.
pub const CLUSTER_NAME_BYTES_MAX: usize = 32;

/// Whether a text can be the name of a cluster or of one of its nodes: it is a part of subjects at
/// the broker.
pub fn is_cluster_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=CLUSTER_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// The 20 bytes that name a torrent: SHA-1 of its info dictionary (BEP 3), or the first 20 bytes of
/// the SHA-256 for v2 torrents (BEP 52). The two are not distinguished.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct InfoHash(pub [u8; 20]);

impl InfoHash {
    /// The info-hash that 40 hexadecimal digits, of either case, stand for.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        let mut hash = [0; 20];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return None;
        }
        let nibble = |digit: u8| u8::try_from(char::from(digit).to_digit(16)?).ok();
        for (byte, &[high, low]) in hash.iter_mut().zip(pairs) {
            *byte = nibble(high)? << 4 | nibble(low)?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for InfoHash {
    /// 40 hexadecimal digits, lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Hash for InfoHash {
    /// Feeds all 20 bytes as two integers: six times faster than the derived slice hash, and an
    /// attacker who chooses hashes gains nothing, because every byte still meets the key.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a @ .., _, _, _, _] = self.0;
        let [.., b0, b1, b2, b3] = self.0;
        state.write_u128(u128::from_ne_bytes(a));
        state.write_u32(u32::from_ne_bytes([b0, b1, b2, b3]));
    }
}

/// The 20 bytes by which a client names itself (BEP 20). The tracker does not use it as an
/// identity.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct PeerId(pub [u8; 20]);

impl Hash for PeerId {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        InfoHash(self.0).hash(state);
    }
}

/// IPv4 or IPv6: the family of a datagram's socket, and of the addresses in its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumCount, VariantArray)]
pub enum Family {
    /// IPv4, v4-mapped IPv6 included.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The family of a source address that has already been unmapped.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Converts `::ffff:a.b.c.d` to the IPv4 address, for storage, responses, connection ids and
/// limits.
#[inline]
pub fn unmap(source: SocketAddr) -> SocketAddr {
    SocketAddr::new(source.ip().to_canonical(), source.port())
}

/// The scope in which an address may be handed out. Clients on public addresses get only public
/// addresses; a client on a private or loopback address also gets addresses of its own scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Reachable from the Internet.
    Public,
    /// Private, shared, link-local, test and documentation networks: reachable at most locally.
    Private,
    /// This host.
    Loopback,
}

impl Scope {
    /// The scope of an unmapped address (RFC 6890 and its registry).
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(ipv4) => Self::of_v4(ipv4),
            IpAddr::V6(ipv6) => Self::of_v6(ipv6),
        }
    }

    /// The scope of an IPv4 address. Multicast, 0/8 and 240/4 count as private: they cannot be a
    /// verified source on the Internet, so they are not handed out to public clients.
    #[inline]
    pub fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [127, ..] => Self::Loopback,
            [0 | 10 | 224..=255, ..]
            | [100, 64..=127, ..]
            | [169, 254, ..]
            | [172, 16..=31, ..]
            | [192, 168, ..]
            | [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18..=19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _] => Self::Private,
            _ => Self::Public,
        }
    }

    /// The scope of an IPv6 address: only 2000::/3 without its special blocks is public; a 6to4
    /// address has the scope of the IPv4 address it embeds.
    #[inline]
    pub fn of_v6(address: Ipv6Addr) -> Self {
        if address.is_loopback() {
            return Self::Loopback;
        }
        let segments = address.segments();
        match segments {
            [0x2001, 0 | 0xdb8, ..] | [0x2001, 2, 0, ..] => Self::Private,
            [0x2001, 0x10..=0x2f, ..] => Self::Private,
            [0x3fff, 0..=0xfff, ..] => Self::Private,
            [0x2002, high, low, ..] => {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                match Self::of_v4(Ipv4Addr::new(a, b, c, d)) {
                    Self::Public => Self::Public,
                    _ => Self::Private,
                }
            }
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Private,
        }
    }
}

/// A WebRTC peer's name inside skep: a keyed hash of torrent, peer id and source address. It is
/// never sent to a client; the directory of WebTorrent sockets maps it to its socket. Its first
/// bytes are a keyed hash of the source's network alone, so that peers of one network can be
/// recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WebPeer(pub [u8; 16]);

impl WebPeer {
    /// Bytes that identify the network: two networks share them with a probability of 1 in 65 536.
    pub const NETWORK_BYTES: u32 = 2;
}

/// The transport of a peer. WebRTC peers are handed out to WebRTC peers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumCount, VariantArray)]
pub enum PeerKind {
    /// TCP or uTP over IPv4.
    V4,
    /// TCP or uTP over IPv6.
    V6,
    /// WebRTC, signalled through its WebTorrent socket.
    Web,
}

impl PeerKind {
    /// Every kind, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// Bytes of one peer in a response: address and port in compact form (BEP 23, BEP 7), or the
    /// name of a WebRTC peer.
    pub const fn bytes(self) -> usize {
        match self {
            Self::V4 => 6,
            Self::V6 => 18,
            Self::Web => size_of::<WebPeer>(),
        }
    }

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
            Self::Web => "webrtc",
        }
    }
}

/// Where an announcing peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// At its source address and this port; not reachable if the port is 0 or 1.
    Port(u16),
    /// Through its WebTorrent socket.
    Web(WebPeer),
}

impl Contact {
    /// Whether the peer accepts connections, according to its announce. Clients without a listening
    /// socket announce port 0, or port 1 (libtorrent since 1.2.5). Such a client connects to
    /// others, and is not handed out.
    #[inline]
    pub const fn accepts_connections(self) -> bool {
        match self {
            Self::Port(port) => port > 1,
            Self::Web(_) => true,
        }
    }
}

/// The event that a client reports in an announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A regular announce; also every unknown event number.
    None,
    /// The download has just finished.
    Completed,
    /// The client has just joined.
    Started,
    /// The client is leaving.
    Stopped,
    /// A partial seed: incomplete, and wants nothing more (BEP 21).
    Paused,
}

/// One announce of any protocol. Totals (uploaded, downloaded) are not kept.
#[derive(Clone, Copy, Debug)]
pub struct Announce {
    /// The torrent.
    pub info_hash: InfoHash,
    /// The source address of the announce, unmapped.
    pub source: IpAddr,
    /// The peer's address, where it differs from the source of the announce and is trusted.
    pub address_override: Option<IpAddr>,
    /// Where the peer is reached: together with the address, its identity.
    pub contact: Contact,
    /// The client's peer id. Used only to count its software.
    pub peer_id: PeerId,
    /// Bytes the client still lacks. Unsigned: 2^64-1 means "unknown", and is a leecher.
    pub left: u64,
    /// What happened.
    pub event: Event,
    /// The number of peers that the client wants; `None` for the tracker's default.
    pub numwant: Option<u32>,
}

/// The response to an announce, without the peers, which are written to the caller's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceResponse {
    /// Seconds until the next announce.
    pub interval_s: u32,
    /// The least seconds between two announces of a client; never above `interval_s`.
    pub min_interval_s: u32,
    /// Incomplete peers of the whole swarm, partial seeds included.
    pub leechers: u32,
    /// Complete peers of the whole swarm.
    pub seeders: u32,
}

/// One torrent's counts (BEP 48), all zero for an unknown torrent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrapeEntry {
    /// Complete peers.
    pub seeders: u32,
    /// Completed downloads, each peer counted once.
    pub completed: u32,
    /// Incomplete peers.
    pub leechers: u32,
    /// Incomplete peers that want data: leechers without partial seeds (BEP 21 `downloaders`).
    pub downloaders: u32,
}

/// Why a well-formed request is refused. The text is sent to the client and does not depend on
/// input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Refusal {
    /// A parameter that an announce or scrape needs is missing or makes no sense (HTTP).
    Malformed,
    /// A trusted proxy does not name its client (HTTP).
    NoSource,
    /// A scrape of everything, which the operator has not allowed (HTTP).
    NoFullScrape,
    /// A socket that has reached its limit of swarms (WebTorrent).
    TooManyTorrents,
    /// A peer at a trusted address other than the source of its announce, at a port below 1024.
    LowPort,
    /// A source over its rate limit (HTTP, WebTorrent; over UDP it gets no response).
    Limited,
    /// A torrent that is denied, or not among those allowed.
    TorrentDenied,
    /// A source whose network is denied, or not among those allowed.
    NetworkDenied,
    /// A peer id whose prefix is denied, or not among those allowed.
    ClientDenied,
    /// A peer that listens on a port that is denied.
    PortDenied,
    /// An unregistered torrent, where only registered torrents are served.
    Unregistered,
    /// The same, of a torrent whose info-hash resembles a registered one.
    SimilarTorrent,
    /// No passkey, or one that was never issued or is revoked.
    UnknownPasskey,
    /// A passkey over its limit of announces, torrents or peers.
    PasskeyLimit,
}

impl Refusal {
    /// Every reason, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The text for the client: at most [`REFUSAL_BYTES_MAX`] bytes, so that the error is never
    /// larger than the announce or scrape that caused it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Malformed => "malformed request",
            Self::NoSource => "client address missing",
            Self::NoFullScrape => "full scrape is off",
            Self::TooManyTorrents => "too many torrents",
            Self::LowPort => "port must be above 1023",
            Self::Limited => "too many requests",
            Self::TorrentDenied => "torrent is not allowed",
            Self::NetworkDenied => "network is not allowed",
            Self::ClientDenied => "client is not allowed",
            Self::PortDenied => "port is not allowed",
            Self::Unregistered => "torrent not registered",
            Self::SimilarTorrent => "similar to known torrent",
            Self::UnknownPasskey => "unknown passkey",
            Self::PasskeyLimit => "passkey limit reached",
        }
    }

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// The longest text of a refusal: with the response's head of 8 bytes it stays below the 36 bytes
/// of the shortest request that can be refused, a scrape of one torrent.
pub const REFUSAL_BYTES_MAX: usize = 24;

const _: () = {
    let mut at = 0;
    while at < Refusal::ALL.len() {
        assert!(Refusal::ALL[at].text().len() <= REFUSAL_BYTES_MAX);
        at += 1;
    }
};

/// Why a datagram gets no response. Every received datagram is counted as `answered`, `refused`, or
/// one of these, so that received = answered + refused + dropped, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Dropped {
    /// Fewer than 16 bytes, or fewer than its action needs.
    TooShort,
    /// A connect without the BEP 15 magic.
    BadMagic,
    /// An action that is not a request to a tracker.
    UnknownAction,
    /// A connection id that was not issued to this address.
    ForgedId,
    /// A genuine connection id that is too old.
    ExpiredId,
    /// A source port of 0: no response can reach it.
    SourcePortZero,
    /// More bytes than the receive buffer holds.
    Oversized,
    /// A connect from an unverified source over its limit.
    LimitedConnect,
    /// A verified source over its limit.
    Limited,
    /// A scrape that arrived while the worker was overloaded.
    ShedScrape,
    /// A connect that arrived while the worker was overloaded.
    ShedConnect,
}

impl Dropped {
    /// Every reason, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// The label of the reason for which an XDP program alone drops: a denied network, or one of the
/// worst heavy hitters. A socket's front end refuses announces of denied networks, with a message.
pub const NETWORK_DENIED: &str = "network_denied";

/// Why a request over TCP gets an HTTP error or an error message, or its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Rejected {
    /// Not an HTTP request: 400.
    BadRequest,
    /// No such page: 404.
    NotFound,
    /// A method other than GET and HEAD: 405.
    BadMethod,
    /// A request target of more than 2 KiB: 414.
    LongTarget,
    /// A head of more than 8 KiB or 64 headers: 431.
    LongHead,
    /// A full scrape too soon after another: 429.
    TooSoon,
    /// A WebSocket upgrade to an unsupported version: 426.
    BadUpgrade,
    /// An invalid PROXY header, or no TLS where TLS is expected.
    BadPreamble,
    /// A WebSocket frame that breaks RFC 6455.
    BadFrame,
    /// An invalid WebTorrent message: the client gets an error, and the socket stays open.
    BadMessage,
}

impl Rejected {
    /// Every reason, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The transport on which it can occur.
    pub fn transport(self) -> Transport {
        match self {
            Self::BadFrame | Self::BadMessage => Transport::Ws,
            _ => Transport::Http,
        }
    }

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// BEP 15 connect.
    Connect,
    /// An announce.
    Announce,
    /// A scrape.
    Scrape,
    /// A WebRTC answer to be relayed (WebTorrent).
    Answer,
    /// A page for people or their tools: statistics.
    Page,
}

impl Action {
    /// Every action, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Why a peer whose announce got a response is not in its swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum NotStored {
    /// The memory budget is exhausted, and no torrent to evict was found.
    Memory,
    /// Its host has reached the cap on peers in the swarm.
    HostFull,
    /// The torrent is new, and its source is over the limit of new torrents.
    NewTorrentLimit,
    /// The torrent is new, and the worker is overloaded.
    Shed,
}

impl NotStored {
    /// Every reason, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Why an announce got a response and changed nothing in its swarm. Not stops: their peer is to
/// leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotApplied {
    /// It accepts no connections: it announced port 0 or 1.
    NoPort,
    /// Its source is over its limit. One such announce in sixteen gets a response over UDP. A peer
    /// that was stored before stays as it was.
    Slipped,
    /// It was to be stored.
    NotStored(NotStored),
}

impl NotApplied {
    /// The number of reasons.
    pub const COUNT: usize = 2 + NotStored::COUNT;

    /// The place of the reason among all of them, below [`Self::COUNT`].
    pub const fn index(self) -> usize {
        match self {
            Self::NoPort => 0,
            Self::Slipped => 1,
            Self::NotStored(reason) => 2 + reason as usize,
        }
    }

    /// The label, as in metrics where they count it.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoPort => "no_port",
            Self::Slipped => "slipped",
            Self::NotStored(reason) => reason.label(),
        }
    }
}

/// How a request over TCP ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request was served.
    Answered(Action),
    /// An announce was answered as any other, but its peer is not handed out.
    NotApplied(NotApplied),
    /// A failure that the client can read.
    Refused(Refusal),
    /// An HTTP error, an error message, or a closed connection.
    Rejected(Rejected),
}

impl Outcome {
    /// The kind of a request that was answered: neither refused nor rejected.
    pub const fn answered(self) -> Option<Action> {
        match self {
            Self::Answered(action) => Some(action),
            Self::NotApplied(_) => Some(Action::Announce),
            Self::Refused(_) | Self::Rejected(_) => None,
        }
    }
}

/// The protocols over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Transport {
    /// HTTP, with or without TLS.
    Http,
    /// WebTorrent, with or without TLS.
    Ws,
}

impl Transport {
    /// Both, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// A response in the send buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramResponse {
    /// The kind of the request.
    pub action: Action,
    /// The length of the response in bytes.
    pub bytes: usize,
    /// Set if the response is an error.
    pub refusal: Option<Refusal>,
    /// Set if the response is that to an announce that changed nothing.
    pub not_applied: Option<NotApplied>,
}

impl DatagramResponse {
    /// A response of `bytes` bytes to a request that was served.
    #[inline]
    pub const fn served(action: Action, bytes: usize) -> Self {
        Self { action, bytes, refusal: None, not_applied: None }
    }
}
