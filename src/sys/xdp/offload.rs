//! The offload: an XDP program that answers connects and drops forged ids of the UDP protocol (BEP
//! 15), so that they never reach a socket. Everything that it does not understand passes.
//!
//! ```text
//! frame ─▶ Ethernet, one VLAN tag ─▶ IPv4 | IPv6 ─▶ UDP ─▶ one of our addresses? ─no─▶ pass
//!                                                                │
//!            denied network ─▶ drop ◀────────────────────────────┤
//!            16 bytes, magic ─▶ limits ─▶ connection id ─▶ transmit
//!            announce, scrape ─▶ connection id ─▶ forged, expired: drop
//!                                             └▶ genuine: AF_XDP socket, or pass
//!            anything else ─▶ pass
//! ```
//!
//! The program keeps no state of clients but the loads of its rate limit. It reads the settings in
//! force from a map with two places, of which a second map names one: they are replaced as a whole.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::kernel::{AttachMode, LoadError, Map, MapKind, MapShape, XdpLink, XdpProgram};
use super::program::{self, ProgramMaps};
use super::socket::XskMap;
use crate::types::Family;

/// Most addresses, each with its port, that are served.
pub const TARGETS_MAX: usize = 1024;
/// Most networks that are denied, and most that are exempt: 5 MiB of the kernel's memory each.
pub const NETWORKS_MAX: usize = 65_536;
/// Bits of the number of loads: 2 MiB. A source shares its load with those that have the same hash:
/// at a million forged sources a second, each load gets 15 charges a second, of 1000 that the usual
/// limit allows.
pub(super) const LOAD_BITS: i32 = 18;
/// Bits of the number of counts of connects over the limit, by source and port.
pub(super) const SLIP_BITS: i32 = 16;

/// What becomes of a datagram to one of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::VariantArray, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum OffloadVerdict {
    /// A connect that was answered.
    Answered,
    /// A connect over the limit that was answered nevertheless.
    AnsweredOverLimit,
    /// A connect over the limit, dropped.
    LimitedConnect,
    /// An announce or scrape with an id that was never issued, dropped.
    ForgedId,
    /// An announce or scrape with an id that has expired, dropped.
    ExpiredId,
    /// A datagram of a denied network, dropped.
    NetworkDenied,
    /// An announce or scrape with a genuine id, for the AF_XDP socket of its receive queue.
    Redirected,
    /// An announce or scrape with a genuine id: for the sockets.
    PassedGenuine,
    /// A connect, or a datagram for an AF_XDP socket, whose response would leave by another
    /// interface, or to a station that is not known yet: for the sockets.
    PassedNoRoute,
    /// Anything else: for the sockets.
    PassedOther,
}

impl OffloadVerdict {
    /// All of them.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Keys of connection ids: the first 16 bytes of each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OffloadKeys {
    /// The key of new ids.
    pub active: [u8; 16],
    /// A second key whose ids are accepted.
    pub staging: Option<[u8; 16]>,
}

/// What the program follows. Replaced as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OffloadSettings {
    /// Keys of connection ids.
    pub keys: OffloadKeys,
    /// What is added to the kernel's monotonic clock to get nanoseconds since the Unix epoch.
    pub clock_offset_ns: u64,
    /// Responses per second to an unverified address, and at once; `None`: no limit.
    pub limit: Option<(u32, u32)>,
    /// Seed of the hash by which sources share loads: random, and secret.
    pub seed: [u64; 2],
    /// Whether responses go where the kernel's routes say, instead of back to the station from
    /// which the request came.
    pub asks_routes: bool,
}

/// The settings as the program reads them. All are 8 bytes in the host's order.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Field {
    ClockOffset,
    Active,
    ActiveEnd,
    Staging,
    StagingEnd,
    /// 1 if there is a staging key: a forged id costs a second MAC then.
    HasStaging,
    Seed,
    SeedEnd,
    /// Nanoseconds that a response adds to a load; 0: no limit.
    Interval,
    /// Nanoseconds by which a load may be ahead of the clock.
    Burst,
    /// 1 if the kernel's routes are asked.
    AsksRoutes,
}

const SETTINGS_BYTES: u32 = (Field::AsksRoutes as u32 + 1) * 8;
const VERDICTS: u32 = OffloadVerdict::PassedOther as u32 + 1;
/// Bytes of a counter: datagrams, and bytes of their payload.
const COUNTER_BYTES: u32 = 16;

impl Field {
    /// Where the field is.
    pub(super) const fn offset(self) -> i16 {
        self as i16 * 8
    }
}

impl OffloadSettings {
    fn to_bytes(self) -> [u8; SETTINGS_BYTES as usize] {
        let halves = |key: [u8; 16]| {
            let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| key[at + i]));
            [half(0), half(8)]
        };
        let [active, active_end] = halves(self.keys.active);
        let [staging, staging_end] = halves(self.keys.staging.unwrap_or_default());
        let (interval, burst) = self.limit.map_or((0, 0), |(rate, burst)| {
            let interval = 1_000_000_000 / u64::from(rate.max(1));
            (interval, interval * u64::from(burst.max(1)))
        });
        let fields = [
            self.clock_offset_ns,
            active,
            active_end,
            staging,
            staging_end,
            u64::from(self.keys.staging.is_some()),
            self.seed[0],
            self.seed[1],
            interval,
            burst,
            u64::from(self.asks_routes),
        ];
        let mut bytes = [0; SETTINGS_BYTES as usize];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}

/// The maps that the programs of all interfaces share.
#[derive(Debug)]
pub struct Offload {
    targets: Keys,
    denied: Keys,
    exempt: Keys,
    settings: Map,
    current: Map,
    loads: Map,
    slips: Map,
}

/// The program of one interface, with its counters.
#[derive(Debug)]
pub struct OffloadProgram {
    program: XdpProgram,
    counters: Map,
}

/// Datagrams with one verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadCount {
    /// How many.
    pub datagrams: u64,
    /// Bytes of their payload as they arrived.
    pub bytes: u64,
}

impl std::iter::Sum for OffloadCount {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            datagrams: sum.datagrams + count.datagrams,
            bytes: sum.bytes + count.bytes,
        })
    }
}

/// Datagrams since a program was loaded, by verdict and family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadCounts([[OffloadCount; 2]; VERDICTS as usize]);

impl OffloadCounts {
    /// Those of one verdict and family.
    pub fn of(&self, verdict: OffloadVerdict, family: Family) -> OffloadCount {
        self.0[verdict as usize][usize::from(family == Family::V4)]
    }

    /// Adds those of another program.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            sum.datagrams += more.datagrams;
            sum.bytes += more.bytes;
        }
    }
}

/// A map of which the keys alone matter, and what it holds.
#[derive(Debug)]
struct Keys {
    map: Map,
    present: HashSet<[u8; 20]>,
    entries_max: usize,
}

impl Keys {
    fn create(kind: MapKind, entries_max: usize) -> io::Result<Self> {
        let count = u32::try_from(entries_max).unwrap_or(u32::MAX);
        let shape = MapShape { kind, key_bytes: 20, value_bytes: 4, entries_max: count };
        Ok(Self { map: Map::create(shape)?, present: HashSet::new(), entries_max })
    }

    /// Has exactly these keys, or the first of them if they are too many. Returns how many were
    /// left out. What is there before and after stays there all the time.
    fn replace(&mut self, keys: impl IntoIterator<Item = [u8; 20]>) -> io::Result<usize> {
        let (mut wanted, mut left_out) = (HashSet::new(), 0);
        for key in keys {
            if wanted.len() < self.entries_max || wanted.contains(&key) {
                wanted.insert(key);
            } else {
                left_out += 1;
            }
        }
        for key in self.present.difference(&wanted).copied().collect::<Vec<_>>() {
            self.map.remove(&key)?;
            self.present.remove(&key);
        }
        for key in wanted.difference(&self.present).copied().collect::<Vec<_>>() {
            self.map.set(&key, &[0; 4])?;
            self.present.insert(key);
        }
        Ok(left_out)
    }
}

/// An address as the program compares it: 16 bytes, an IPv4 address mapped.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn target_key(target: SocketAddr) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&mapped(target.ip()));
    key[16..18].copy_from_slice(&target.port().to_be_bytes());
    key
}

/// The key of a network: bits that count, then the bits.
fn network_key((network, prefix_bits): (IpAddr, u8)) -> [u8; 20] {
    let mapped_bits = if network.is_ipv4() { 96 } else { 0 };
    let mut key = [0; 20];
    key[..4].copy_from_slice(&(mapped_bits + u32::from(prefix_bits)).to_ne_bytes());
    key[4..].copy_from_slice(&mapped(network));
    key
}

impl Offload {
    /// Makes the maps.
    ///
    /// # Errors
    /// [`LoadError`]: without `CAP_BPF`, or if the kernel is too old.
    pub fn create() -> Result<Self, LoadError> {
        let array = |value_bytes, entries_max| {
            Map::create(MapShape { kind: MapKind::Array, key_bytes: 4, value_bytes, entries_max })
        };
        Ok(Self {
            targets: Keys::create(MapKind::Hash, TARGETS_MAX)?,
            denied: Keys::create(MapKind::Prefixes, NETWORKS_MAX)?,
            exempt: Keys::create(MapKind::Prefixes, NETWORKS_MAX)?,
            settings: array(SETTINGS_BYTES, 2)?,
            current: array(4, 1)?,
            loads: array(8, 1 << LOAD_BITS)?,
            slips: array(8, 1 << SLIP_BITS)?,
        })
    }

    /// Has the kernel verify a program for one interface, which redirects announces and scrapes
    /// with a genuine id to the AF_XDP sockets in `sockets`; those of queues without a socket pass.
    /// Datagrams are neither answered nor dropped before [`Self::set`] and [`Self::set_targets`].
    ///
    /// # Errors
    /// [`LoadError`]: without `CAP_BPF` and `CAP_NET_ADMIN`, or if the kernel is too old.
    pub fn load(&self, sockets: &XskMap) -> Result<OffloadProgram, LoadError> {
        let counters = Map::create(MapShape {
            kind: MapKind::PerCpuArray,
            key_bytes: 4,
            value_bytes: COUNTER_BYTES,
            entries_max: 2 * VERDICTS,
        })?;
        let maps = ProgramMaps {
            targets: self.targets.map.descriptor(),
            denied: self.denied.map.descriptor(),
            exempt: self.exempt.map.descriptor(),
            settings: self.settings.descriptor(),
            current: self.current.descriptor(),
            loads: self.loads.descriptor(),
            slips: self.slips.descriptor(),
            counters: counters.descriptor(),
            sockets: sockets.descriptor(),
        };
        Ok(OffloadProgram { program: XdpProgram::load(&program::assemble(maps))?, counters })
    }

    /// Replaces the settings. Frames that are being judged follow the former ones.
    ///
    /// # Errors
    /// Errors of the system call.
    pub fn set(&self, settings: OffloadSettings) -> io::Result<()> {
        let zero = 0_u32.to_ne_bytes();
        let current = self.current.get(&zero)?;
        let other: u32 = if current[..] == zero { 1 } else { 0 };
        self.settings.set(&other.to_ne_bytes(), &settings.to_bytes())?;
        self.current.set(&zero, &other.to_ne_bytes())
    }

    /// Serves these addresses of this host, each with its port, and no others. One that is
    /// unspecified matches no frame. Returns how many were too many, see [`TARGETS_MAX`].
    ///
    /// # Errors
    /// Errors of the system call.
    pub fn set_targets(
        &mut self,
        targets: impl IntoIterator<Item = SocketAddr>,
    ) -> io::Result<usize> {
        self.targets.replace(targets.into_iter().map(target_key))
    }

    /// Drops what comes from these networks, each with the bits of its prefix, and from no others.
    /// Returns how many were too many, see [`NETWORKS_MAX`].
    ///
    /// # Errors
    /// Errors of the system call, `EINVAL` for a prefix that is too long.
    pub fn set_denied(
        &mut self,
        networks: impl IntoIterator<Item = (IpAddr, u8)>,
    ) -> io::Result<usize> {
        self.denied.replace(networks.into_iter().map(network_key))
    }

    /// Puts these networks under no limit, and no others. Returns how many were too many.
    ///
    /// # Errors
    /// As [`Self::set_denied`].
    pub fn set_exempt(
        &mut self,
        networks: impl IntoIterator<Item = (IpAddr, u8)>,
    ) -> io::Result<usize> {
        self.exempt.replace(networks.into_iter().map(network_key))
    }
}

impl OffloadProgram {
    /// Datagrams since the program was loaded.
    ///
    /// # Errors
    /// Errors of the system call.
    pub fn counts(&self) -> io::Result<OffloadCounts> {
        let mut counts = OffloadCounts::default();
        for (index, count) in (0_u32..).zip(counts.0.iter_mut().flatten()) {
            let of_all_cpus = self.counters.get(&index.to_ne_bytes())?;
            for of_a_cpu in of_all_cpus.chunks_exact(COUNTER_BYTES as usize) {
                let number = |at| u64::from_ne_bytes(std::array::from_fn(|i| of_a_cpu[at + i]));
                count.datagrams += number(0);
                count.bytes += number(8);
            }
        }
        Ok(counts)
    }

    /// Attaches the program to an interface, see [`XdpProgram::attach`].
    ///
    /// # Errors
    /// As [`XdpProgram::attach`].
    pub fn attach(&self, interface: u32, mode: AttachMode) -> io::Result<XdpLink> {
        self.program.attach(interface, mode)
    }

    /// The program.
    pub fn program(&self) -> &XdpProgram {
        &self.program
    }
}
