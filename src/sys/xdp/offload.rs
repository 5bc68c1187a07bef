//! The offload: an XDP program that answers connects and drops forged ids of the UDP protocol (BEP
//! 15), so that they never reach a socket. Everything that it does not understand passes.
//!
//! ```text
//! frame ─▶ Ethernet, one VLAN tag ─▶ IPv4 | IPv6 ─▶ UDP ─▶ one of our addresses? ─no─▶ pass
//!                                                                │
//!            denied network ─▶ drop ◀────────────────────────────┤
//!            16 bytes, magic ─▶ limits ─▶ connection id ─▶ transmit
//!            announce, scrape ─▶ connection id ─▶ genuine: pass │ forged, expired: drop
//!            anything else ─▶ pass
//! ```
//!
//! The program keeps no state of clients but the loads of its rate limit. It reads the settings in
//! force from a map with two places, of which a second map names one: they are replaced as a whole.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::kernel::{LoadError, Map, MapKind, MapShape, XdpProgram};
use super::program::{self, ProgramMaps};

/// Addresses and ports that are served.
pub const TARGETS_MAX: u32 = 1024;
/// Networks that are denied or exempt.
pub const NETWORKS_MAX: u32 = 65_536;
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
    /// An announce or scrape with a genuine id: for the sockets.
    PassedGenuine,
    /// Anything else: for the sockets.
    PassedOther,
}

impl OffloadVerdict {
    /// All of them.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;
}

/// Keys of connection ids: the first 16 bytes of each.
#[derive(Clone, Copy)]
pub struct OffloadKeys {
    /// The key of new ids.
    pub active: [u8; 16],
    /// A second key whose ids are accepted.
    pub staging: Option<[u8; 16]>,
}

/// What the program follows. Replaced as a whole.
#[derive(Clone, Copy)]
pub struct OffloadSettings {
    /// Keys of connection ids.
    pub keys: OffloadKeys,
    /// What is added to the kernel's monotonic clock to get nanoseconds since the Unix epoch.
    pub clock_offset_ns: u64,
    /// Responses per second to an unverified address, and at once; `None`: no limit.
    pub limit: Option<(u32, u32)>,
    /// Seed of the hash by which sources share loads: random, and secret.
    pub seed: [u64; 2],
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
    Seed,
    SeedEnd,
    /// Nanoseconds that a response adds to a load; 0: no limit.
    Interval,
    /// Nanoseconds by which a load may be ahead of the clock.
    Burst,
}

const SETTINGS_BYTES: u32 = (Field::Burst as u32 + 1) * 8;
const VERDICTS: u32 = OffloadVerdict::PassedOther as u32 + 1;

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
        let [staging, staging_end] = halves(self.keys.staging.unwrap_or(self.keys.active));
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
            self.seed[0],
            self.seed[1],
            interval,
            burst,
        ];
        let mut bytes = [0; SETTINGS_BYTES as usize];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}

/// The program, with the maps through which it is set and read.
#[derive(Debug)]
pub struct Offload {
    program: XdpProgram,
    targets: Map,
    denied: Map,
    exempt: Map,
    settings: Map,
    current: Map,
    counters: Map,
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
fn network_key(network: IpAddr, prefix_bits: u8) -> [u8; 20] {
    let mapped_bits = if network.is_ipv4() { 96 } else { 0 };
    let mut key = [0; 20];
    key[..4].copy_from_slice(&(mapped_bits + u32::from(prefix_bits)).to_ne_bytes());
    key[4..].copy_from_slice(&mapped(network));
    key
}

impl Offload {
    /// Makes the maps, and has the kernel verify the program. Nothing is served before
    /// [`Self::set`] and [`Self::add_target`].
    ///
    /// # Errors
    /// [`LoadError`]: without `CAP_BPF` and `CAP_NET_ADMIN`, or if the kernel is too old.
    pub fn load() -> Result<Self, LoadError> {
        let map = |kind, key_bytes, value_bytes, entries_max| {
            Map::create(MapShape { kind, key_bytes, value_bytes, entries_max })
        };
        let array = |value_bytes, entries| map(MapKind::Array, 4, value_bytes, entries);
        let targets = map(MapKind::Hash, 20, 4, TARGETS_MAX)?;
        let denied = map(MapKind::Prefixes, 20, 4, NETWORKS_MAX)?;
        let exempt = map(MapKind::Prefixes, 20, 4, NETWORKS_MAX)?;
        let settings = array(SETTINGS_BYTES, 2)?;
        let current = array(4, 1)?;
        // The program alone uses these two: it keeps them.
        let loads = array(8, 1 << LOAD_BITS)?;
        let slips = array(8, 1 << SLIP_BITS)?;
        let counters = map(MapKind::PerCpuArray, 4, 8, VERDICTS)?;
        let maps = ProgramMaps {
            targets: targets.descriptor(),
            denied: denied.descriptor(),
            exempt: exempt.descriptor(),
            settings: settings.descriptor(),
            current: current.descriptor(),
            loads: loads.descriptor(),
            slips: slips.descriptor(),
            counters: counters.descriptor(),
        };
        let program = XdpProgram::load(&program::assemble(maps))?;
        Ok(Self { program, targets, denied, exempt, settings, current, counters })
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

    /// Serves an address of this host, with its port. One that is unspecified matches no frame.
    ///
    /// # Errors
    /// `E2BIG` from [`TARGETS_MAX`] on.
    pub fn add_target(&self, target: SocketAddr) -> io::Result<()> {
        self.targets.set(&target_key(target), &[0; 4])
    }

    /// No longer serves an address.
    ///
    /// # Errors
    /// `ENOENT` if the address was not served.
    pub fn remove_target(&self, target: SocketAddr) -> io::Result<()> {
        self.targets.remove(&target_key(target))
    }

    /// Drops what comes from a network.
    ///
    /// # Errors
    /// `ENOSPC` from [`NETWORKS_MAX`] on, `EINVAL` for a prefix that is too long.
    pub fn deny(&self, network: IpAddr, prefix_bits: u8) -> io::Result<()> {
        self.denied.set(&network_key(network, prefix_bits), &[0; 4])
    }

    /// Puts a network under no limit.
    ///
    /// # Errors
    /// As [`Self::deny`].
    pub fn exempt(&self, network: IpAddr, prefix_bits: u8) -> io::Result<()> {
        self.exempt.set(&network_key(network, prefix_bits), &[0; 4])
    }

    /// How many datagrams had a verdict since the program was loaded.
    ///
    /// # Errors
    /// Errors of the system call.
    pub fn count(&self, verdict: OffloadVerdict) -> io::Result<u64> {
        let counts = self.counters.get(&(verdict as u32).to_ne_bytes())?;
        let counts = counts.chunks_exact(8).filter_map(|it| it.try_into().ok());
        Ok(counts.map(u64::from_ne_bytes).sum())
    }

    /// The program.
    pub fn program(&self) -> &XdpProgram {
        &self.program
    }
}
