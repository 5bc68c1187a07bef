//! One peer in memory: its endpoint in the form of responses, and two bytes of meta data.
//!
//! ```text
//! IPv4   address (4)  | port (2) | meta (2)   =  8 bytes, the first 6 copied into responses
//! IPv6   address (16) | port (2) | meta (2)   = 20 bytes, the first 18 copied into responses
//! WebRTC hash (14 + 2)           | meta (2)   = 18 bytes, the first 16 name the peer's socket
//!
//! meta   15..4 tick of the latest announce | 3 on probation | 2..0 state
//! state  0 leecher   2 paused   4 seeder that was a leecher   6 seeder from the start
//!        1, 3, 5     the same, its download counted
//! ```
//!
//! A tick is 8 seconds; tick numbers wrap after 4096 ticks (9 hours), so only a lower age is
//! unambiguous: [`PEER_AGE_S_LIMIT`] leaves the sweeper three hours to remove a peer.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::merge::PeerState;
use crate::time::Now;
use crate::types::{PeerKind, Scope, WebPeer};

/// Seconds in a tick: the resolution of ages.
pub const TICK_S: u32 = 8;
/// Ticks after which meta data wraps.
const TICKS: u16 = 1 << 12;
/// Ticks by which meta data may be ahead of the reading worker's clock: four minutes, while workers
/// differ only by the length of a loop iteration.
const TICKS_AHEAD: u16 = 32;
/// The longest configurable peer lifetime in seconds, which meta data can represent without
/// wrapping.
pub const PEER_AGE_S_LIMIT: u32 = 6 * 3600;

const _: () = assert!((PEER_AGE_S_LIMIT as u64) < (TICKS as u64 * TICK_S as u64) * 2 / 3);

/// Address and port, in network byte order: a peer's identity, and its compact form in responses.
/// A WebRTC peer has neither; the 16 bytes of its [`WebPeer`] are split the same way.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub(super) struct Endpoint<const ADDRESS: usize> {
    address: [u8; ADDRESS],
    port: [u8; 2],
}

impl<const ADDRESS: usize> Hash for Endpoint<ADDRESS> {
    /// One integer for IPv4 and WebRTC, two for IPv6: the derived slice hash costs several times
    /// more.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut wide = [0; 16];
        wide[..ADDRESS].copy_from_slice(&self.address);
        let port = u16::from_ne_bytes(self.port);
        if ADDRESS == 4 {
            let [a, b, c, d, ..] = wide;
            state.write_u64(u64::from(u32::from_ne_bytes([a, b, c, d])) << 16 | u64::from(port));
        } else if ADDRESS == 14 {
            [wide[14], wide[15]] = self.port;
            state.write_u128(u128::from_ne_bytes(wide));
        } else {
            state.write_u128(u128::from_ne_bytes(wide));
            state.write_u16(port);
        }
    }
}

/// A peer: its endpoint and its meta data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub(super) struct PeerRecord<const ADDRESS: usize> {
    /// Who.
    pub(super) endpoint: Endpoint<ADDRESS>,
    meta: [u8; 2],
}

/// An IPv4 peer.
pub(super) type PeerRecordV4 = PeerRecord<4>;
/// An IPv6 peer.
pub(super) type PeerRecordV6 = PeerRecord<16>;
/// A WebRTC peer.
pub(super) type PeerRecordWeb = PeerRecord<14>;

const _: () = assert!(size_of::<PeerRecordV4>() == 8 && size_of::<PeerRecordV6>() == 20);
const _: () = assert!(size_of::<PeerRecordWeb>() == 18);

impl<const ADDRESS: usize> Endpoint<ADDRESS> {
    /// An endpoint.
    pub(super) fn new(address: [u8; ADDRESS], port: u16) -> Self {
        Self { address, port: port.to_be_bytes() }
    }

    /// The kind of every such peer.
    pub(super) const KIND: PeerKind = match ADDRESS {
        4 => PeerKind::V4,
        16 => PeerKind::V6,
        _ => PeerKind::Web,
    };

    /// Whether the address has prefixes of host and network: not for WebRTC peers.
    pub(super) const HAS_PREFIX: bool = ADDRESS != 14;

    /// The most ports of one host that a large swarm keeps: many users share an IPv4 address, while
    /// an IPv6 /64 is at most a household.
    pub(super) const STORED_PER_HOST_MAX: usize = if ADDRESS == 4 { 16 } else { 4 };

    /// The host: an IPv4 address, an IPv6 /64.
    #[inline]
    pub(super) fn host(&self) -> u64 {
        let mut wide = [0; 8];
        let bytes = if ADDRESS < 8 { ADDRESS } else { 8 };
        wide[..bytes].copy_from_slice(&self.address[..bytes]);
        u64::from_be_bytes(wide)
    }

    /// The network: an IPv4 /24, an IPv6 /48.
    #[inline]
    pub(super) fn network(&self) -> u64 {
        let bits = if ADDRESS == 4 { 24 } else { 48 };
        self.host() & (u64::MAX << (u64::BITS - bits))
    }

    /// Its network, distinguishable from those of other kinds.
    pub(super) fn network_of_kind(&self) -> PeerNetwork {
        let network = if ADDRESS == 14 { self.host() & WEB_NETWORK } else { self.network() };
        PeerNetwork(Self::KIND as u8, network)
    }

    /// The network among peers of a scope, as a number: in a local network each host is a network,
    /// and on this host each port.
    pub(super) fn network_in(&self, scope: Scope) -> u128 {
        let port = u128::from(u16::from_be_bytes(self.port));
        match scope {
            Scope::Public => self.network_of_kind().1.into(),
            Scope::Private => self.host().into(),
            Scope::Loopback => u128::from(self.host()) << 16 | port,
        }
    }

    /// The scope in which the peer may be handed out: always public for WebRTC, because browsers
    /// find a path to each other themselves (ICE, RFC 8445).
    #[inline]
    pub(super) fn scope(&self) -> Scope {
        let mut wide = [0; 16];
        wide[..ADDRESS].copy_from_slice(&self.address);
        let [a, b, c, d, ..] = wide;
        match Self::KIND {
            PeerKind::V4 => Scope::of_v4(Ipv4Addr::new(a, b, c, d)),
            PeerKind::V6 => Scope::of_v6(Ipv6Addr::from(wide)),
            PeerKind::Web => Scope::Public,
        }
    }

    /// Whether the peer may be handed out to every client.
    #[inline]
    pub(super) fn is_public(&self) -> bool {
        self.scope() == Scope::Public
    }

    /// The peer's address and port; `None` for a WebRTC peer.
    pub(super) fn socket_address(&self) -> Option<SocketAddr> {
        let mut wide = [0; 16];
        wide[..ADDRESS].copy_from_slice(&self.address);
        let [a, b, c, d, ..] = wide;
        let address: IpAddr = match Self::KIND {
            PeerKind::V4 => Ipv4Addr::new(a, b, c, d).into(),
            PeerKind::V6 => Ipv6Addr::from(wide).into(),
            PeerKind::Web => return None,
        };
        Some((address, u16::from_be_bytes(self.port)).into())
    }
}

/// The part of a WebRTC peer's name that identifies its network: see [`WebPeer`].
const WEB_NETWORK: u64 = u64::MAX << (u64::BITS - 8 * WebPeer::NETWORK_BYTES);

/// A network of one kind of peers: an IPv4 /24, an IPv6 /48, or the network part of a WebRTC peer's
/// name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerNetwork(u8, u64);

impl PeerNetwork {
    /// The larger network around it: an IPv4 /16, an IPv6 /32. WebRTC peers have no larger network.
    pub(super) fn above(self) -> Self {
        let bits = if self.0 == PeerKind::V6 as u8 { 32 } else { 16 };
        Self(self.0, self.1 & (u64::MAX << (u64::BITS - bits)))
    }
}

impl Endpoint<14> {
    /// The endpoint of a WebRTC peer: its name, and nothing else.
    pub(super) fn of_web(WebPeer([address @ .., high, low]): WebPeer) -> Self {
        Self { address, port: [high, low] }
    }
}

impl<const ADDRESS: usize> PeerRecord<ADDRESS> {
    /// A peer that has just announced.
    #[inline]
    pub(super) fn new(endpoint: Endpoint<ADDRESS>, meta: PeerMeta) -> Self {
        Self { endpoint, meta: meta.0.to_ne_bytes() }
    }

    /// The peer's meta data.
    #[inline]
    pub(super) fn meta(&self) -> PeerMeta {
        PeerMeta(u16::from_ne_bytes(self.meta))
    }
}

/// What a peer does in its swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Incomplete, and wants data.
    Leecher,
    /// Incomplete, and wants no more data (BEP 21): counted as a leecher, served like a seeder.
    Paused,
    /// Complete.
    Seeder,
}

impl Role {
    /// Whether the peer is useful to a peer that only uploads.
    #[inline]
    pub fn wants_data(self) -> bool {
        self == Self::Leecher
    }
}

/// The tick of a peer's latest announce, its role, whether its download was counted, and whether it
/// is on probation because it joined while memory was short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerMeta(u16);

const COUNTED: u16 = 1;
/// For a peer that is not a seeder: it is paused. For a seeder: it never was a leecher.
const PAUSED_OR_BORN: u16 = 1 << 1;
const SEEDER: u16 = 1 << 2;
const PROBATION: u16 = 1 << 3;
const TICK_SHIFT: u32 = 4;
/// All bits that are not the tick.
const STATE: u16 = (1 << TICK_SHIFT) - 1;

impl PeerMeta {
    /// The meta data of a new peer that announces now.
    #[inline]
    pub(super) fn new(now: Now, role: Role) -> Self {
        let state = match role {
            Role::Leecher => 0,
            Role::Paused => PAUSED_OR_BORN,
            Role::Seeder => SEEDER | PAUSED_OR_BORN,
        };
        Self((tick(now) << TICK_SHIFT) | state)
    }

    /// The same, on probation if `on_probation`.
    #[inline]
    pub(super) fn with_probation(self, on_probation: bool) -> Self {
        Self(self.0 & !PROBATION | if on_probation { PROBATION } else { 0 })
    }

    /// Whether the peer is on probation.
    #[inline]
    pub(super) fn is_on_probation(self) -> bool {
        self.0 & PROBATION != 0
    }

    /// The meta data after another announce, and whether that one completes a download to be
    /// counted: once per peer, and only for a peer that was a leecher before. Probation continues.
    #[inline]
    pub(super) fn renewed(self, now: Now, role: Role, completed: bool) -> (Self, bool) {
        let born = SEEDER | PAUSED_OR_BORN;
        let was_leecher = self.0 & born != born;
        let counts = completed && was_leecher && self.0 & COUNTED == 0;
        let kept = self.0 & (COUNTED | PROBATION) | if counts { COUNTED } else { 0 };
        let fresh = Self::new(now, role).0;
        let fresh =
            if role == Role::Seeder && was_leecher { fresh & !PAUSED_OR_BORN } else { fresh };
        (Self(fresh | kept), counts)
    }

    /// Merges the meta data of two copies of a peer: that of the later announce, plus what the
    /// other copy holds about its download.
    pub(super) fn merged(self, other: Self, now: Now) -> Self {
        let is_fresher = self.ticks_since(now) <= other.ticks_since(now);
        let (fresher, older) = if is_fresher { (self, other) } else { (other, self) };
        let born = SEEDER | PAUSED_OR_BORN;
        let counted = fresher.0 | older.0 & COUNTED;
        let was_leecher = older.0 & born != born;
        if fresher.role() == Role::Seeder && was_leecher {
            return Self(counted & !PAUSED_OR_BORN);
        }
        Self(counted)
    }

    /// The meta data of a state below 8 as in a snapshot, of a peer that announces now.
    pub(super) fn of_state(state: u8, now: Now) -> Self {
        Self(tick(now) << TICK_SHIFT | u16::from(state) & STATE & !PROBATION)
    }

    /// The state without probation, as in a snapshot.
    #[inline]
    pub(super) fn state(self) -> PeerState {
        PeerState::of_meta(self.0 & STATE & !PROBATION)
    }

    /// The same, its download counted if `counted`, or if it already was.
    pub(super) fn with_count(self, counted: bool) -> Self {
        Self(self.0 | if counted { COUNTED } else { 0 })
    }

    /// The meta data of a known peer after `other`, its copy from another node, which has arrived
    /// later, and whether its download is to be counted: if it was there, and not here.
    pub(super) fn replaced_by(self, other: Self) -> (Self, bool) {
        let counts = other.0 & COUNTED != 0 && self.0 & COUNTED == 0;
        let born = SEEDER | PAUSED_OR_BORN;
        let was_leecher = self.0 & born != born;
        let other_state = if other.role() == Role::Seeder && was_leecher {
            other.0 & !PAUSED_OR_BORN
        } else {
            other.0
        };
        (Self(other_state | self.0 & (COUNTED | PROBATION)), counts)
    }

    /// The meta data in a snapshot as of `at`: the state, and the age at that moment, whole ticks
    /// in seconds.
    pub(super) fn saved(self, at: Now) -> (u8, u16) {
        let [_, state] = (self.0 & STATE).to_be_bytes();
        // A save may take minutes: a peer that announced meanwhile is ahead of `at`, and gets age
        // 0.
        let ticks = self.ticks_since(at);
        let age_s = if ticks < TICKS / 4 * 3 { u32::from(ticks) * TICK_S } else { 0 };
        (state, u16::try_from(age_s).unwrap_or(u16::MAX))
    }

    /// The role of a peer with this saved state.
    pub(super) fn role_of_saved(state: u8) -> Role {
        Self(state.into()).role()
    }

    /// The meta data of a saved state and age; `None` if the age exceeds the range of meta data. If
    /// the clock was set back meanwhile, no time has passed.
    pub(super) fn of_saved((state, age_s): (u8, u16), at: Now, now: Now) -> Option<Self> {
        let tick_s = u64::from(TICK_S);
        let passed = (now.seconds() / tick_s).saturating_sub(at.seconds() / tick_s);
        let ticks = passed.saturating_add(u64::from(age_s) / tick_s);
        let ticks = u16::try_from(ticks).ok().filter(|it| *it < TICKS - TICKS_AHEAD)?;
        let tick = tick(now).wrapping_sub(ticks) & (TICKS - 1);
        Some(Self(tick << TICK_SHIFT | u16::from(state) & STATE))
    }

    /// The peer's role.
    #[inline]
    pub(super) fn role(self) -> Role {
        match (self.0 & SEEDER != 0, self.0 & PAUSED_OR_BORN != 0) {
            (true, _) => Role::Seeder,
            (false, true) => Role::Paused,
            (false, false) => Role::Leecher,
        }
    }

    /// A lower bound of the seconds since the latest announce, too low by up to two ticks. Meta
    /// data slightly ahead of `now` (another worker has read its clock later) has age 0.
    #[inline]
    pub(super) fn age_s(self, now: Now) -> u32 {
        u32::from(self.ticks_since(now)).saturating_sub(1) * TICK_S
    }

    /// The first second of the tick of the latest announce, since the Unix epoch.
    #[inline]
    pub(super) fn announced_s(self, now: Now) -> u64 {
        let ticks = now.seconds() / u64::from(TICK_S);
        ticks.saturating_sub(self.ticks_since(now).into()) * u64::from(TICK_S)
    }

    /// Ticks from the latest announce to this moment.
    #[inline]
    fn ticks_since(self, now: Now) -> u16 {
        let ticks = tick(now).wrapping_sub(self.0 >> TICK_SHIFT) & (TICKS - 1);
        if ticks >= TICKS - TICKS_AHEAD { 0 } else { ticks }
    }
}

/// The tick of a moment, below [`TICKS`].
#[inline]
fn tick(now: Now) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below 2^12")]
    let tick = (now.seconds() / u64::from(TICK_S) % u64::from(TICKS)) as u16;
    tick
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_right_across_the_wrap() {
        let wrap_s = u64::from(TICKS) * u64::from(TICK_S);
        for start_s in [0, 7, 8, wrap_s - 8, wrap_s - 1, wrap_s, 1_800_000_000] {
            let meta = PeerMeta::new(Now::from_s(start_s), Role::Leecher);
            for age_s in [0, 8, 80, 3900, u64::from(PEER_AGE_S_LIMIT), wrap_s - 264] {
                let found = u64::from(meta.age_s(Now::from_s(start_s + age_s)));
                assert!(found <= age_s && age_s - found < 16, "{start_s} + {age_s}: {found}");
            }
        }
    }

    #[test]
    fn a_stamp_from_another_workers_later_clock_is_new() {
        for now_s in [7, 8, 1_800_000_000] {
            let meta = PeerMeta::new(Now::from_s(now_s + 8), Role::Leecher);
            assert_eq!(meta.age_s(Now::from_s(now_s)), 0);
        }
    }

    #[test]
    fn completion_counts_once_and_only_after_leeching() {
        let now = Now::from_s(1000);
        let seeder = PeerMeta::new(now, Role::Seeder);
        assert!(!seeder.renewed(now, Role::Seeder, true).1, "never seen as a leecher");
        let leecher = PeerMeta::new(now, Role::Leecher);
        let (seeder, counted) = leecher.renewed(now, Role::Seeder, true);
        assert!(counted && seeder.role() == Role::Seeder);
        let (again, counted) = seeder.renewed(now, Role::Seeder, true);
        assert!(!counted, "a retransmitted announce");
        let (back, _) = again.renewed(now, Role::Leecher, false);
        assert_eq!(back.role(), Role::Leecher);
        assert!(!back.renewed(now, Role::Seeder, true).1, "a second completion after a recheck");
    }

    #[test]
    fn probation_changes_nothing_else_and_lasts_until_it_is_lifted() {
        let now = Now::from_s(1000);
        let later = now.plus_s(80);
        for role in [Role::Leecher, Role::Paused, Role::Seeder] {
            let mut meta = PeerMeta::new(now, role);
            for next in [Role::Seeder, Role::Leecher, Role::Paused, Role::Seeder, Role::Seeder] {
                let with_probation = meta.with_probation(true);
                assert!(with_probation.is_on_probation() && !meta.is_on_probation());
                assert_eq!(
                    (with_probation.role(), with_probation.age_s(later)),
                    (meta.role(), meta.age_s(later))
                );
                let completed = next == Role::Seeder;
                let (renewed, counts) = meta.renewed(later, next, completed);
                assert_eq!(
                    with_probation.renewed(later, next, completed),
                    (renewed.with_probation(true), counts)
                );
                assert_eq!(renewed.role(), next);
                meta = renewed;
            }
        }
    }

    #[test]
    fn what_is_saved_comes_back_with_the_same_tick_or_older_by_the_time_between() {
        let role = |state: u8| PeerMeta(u16::from(state)).role();
        for saved_s in [8_u64, 1_800_000_000, 1_800_000_007] {
            let at = Now::from_s(saved_s + 30_000);
            for (state, age_s) in [(0, 0), (5, 8), (6, 3904), (15, 21_600)] {
                let meta = PeerMeta::of_saved((state, age_s), at, at).unwrap();
                assert_eq!((meta.saved(at), meta.role()), ((state, age_s), role(state)));
                let later = at.plus_s(800);
                let meta = PeerMeta::of_saved((state, age_s), at, later).unwrap();
                assert_eq!(meta.saved(later), (state, age_s + 800));
                let set_back = Now::from_s(saved_s);
                let meta = PeerMeta::of_saved((state, age_s), at, set_back).unwrap();
                assert_eq!(meta.saved(set_back), (state, age_s));
            }
            assert_eq!(PeerMeta::of_saved((0, 8), at, at.plus_s(32_768)), None);
            assert_eq!(PeerMeta::of_saved((0, u16::MAX), at, at), None);
        }
    }

    #[test]
    fn of_two_copies_the_fresher_counts_and_what_the_other_remembers() {
        let (before, now) = (Now::from_s(1000), Now::from_s(1800));
        let leecher = PeerMeta::new(before, Role::Leecher);
        let (counted, _) = leecher.renewed(before, Role::Seeder, true);
        let born = PeerMeta::new(now, Role::Seeder);
        for merged in [born.merged(leecher, now), leecher.merged(born, now)] {
            assert_eq!((merged.role(), merged.age_s(now)), (Role::Seeder, 0));
            assert!(merged.renewed(now, Role::Seeder, true).1, "it was a leecher once");
        }
        let again = PeerMeta::new(now, Role::Leecher).merged(counted, now);
        assert_eq!(again.role(), Role::Leecher);
        assert!(!again.renewed(now, Role::Seeder, true).1, "its download was counted");
        let paused = PeerMeta::new(now, Role::Paused).merged(leecher, now);
        assert_eq!(paused.role(), Role::Paused);
    }

    #[test]
    fn a_paused_leecher_still_completes() {
        let now = Now::from_s(1000);
        let (paused, _) = PeerMeta::new(now, Role::Leecher).renewed(now, Role::Paused, false);
        assert_eq!(paused.role(), Role::Paused);
        assert!(paused.renewed(now, Role::Seeder, true).1);
    }
}
