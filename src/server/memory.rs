//! How the process keeps to its cap on memory. The cap is divided between the process's fixed part,
//! connections, the sessions of passkeys, and the store. The store's budget follows measurements.
//!
//! The cap is on resident memory, while the store counts the bytes that it allocates. The ratio
//! between the two depends on what was stored before: an allocator's pages are not all full.
//! Resident memory is therefore measured repeatedly, and the store may use a part of what is left:
//! the closer to the cap, the less may be added between two measurements. Public for the test that
//! fills a store in a process of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::access::sessions::SessionBytes;
use crate::store::{Budget, MemoryUsage, Store};
use crate::sys::allocator;
use crate::sys::memory;
use crate::worker::stream;

/// Bytes of the process before it holds a torrent or a connection: program, stacks, buffers of some
/// workers, the limiter's tables, the store's locks. An idle process has 27 MiB, eleven of them the
/// program itself.
const FIXED_BYTES: u64 = 32 << 20;

/// Least bytes for connections, however low the cap.
const CONNECTION_BYTES_MIN: u64 = 4 << 20;

/// Least bytes for sessions of passkeys: those of some thousand clients.
const SESSION_BYTES_MIN: u64 = 1 << 20;

/// Least bytes for the store, however low the cap.
const STORE_BYTES_MIN: u64 = 8 << 20;

/// The parts of a cap, in resident bytes, besides the store's. The store has what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    /// For all TCP connections: buffers, messages, TLS sessions.
    pub(super) connections: u64,
    /// For the sessions of passkeys, in a private tracker.
    pub(super) sessions: u64,
}

impl Division {
    /// The parts of a cap of `cap` bytes; `None` without a cap (0).
    pub(super) fn of(cap: u64) -> Option<Self> {
        if cap == 0 {
            return None;
        }
        let left = cap.saturating_sub(FIXED_BYTES);
        let connections = (left / 4).max(CONNECTION_BYTES_MIN);
        Some(Self { connections, sessions: (left / 8).max(SESSION_BYTES_MIN) })
    }
}

/// The settings of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Most resident bytes of the process; 0: no cap.
    pub cap: u64,
    /// Most peers of one torrent; 0: no bound.
    pub peers_per_torrent_max: u32,
}

/// Measurements, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// Resident memory of the process.
    pub(super) resident: u64,
    /// What its control group may still allocate, if it has a limit.
    pub(super) group_room: Option<u64>,
    /// Bytes that the store has allocated.
    pub(super) store: u64,
    /// Bytes that the store has reserved, which is a little more.
    pub(super) reserved: u64,
    /// Bytes that connections use of their part.
    pub(super) connections: u64,
    /// Bytes that sessions of passkeys use of their part; `None` if there are no sessions.
    pub(super) sessions: Option<u64>,
}

/// The part of the cap that is reserved for memory that is not counted, and for growth between two
/// measurements: a sixteenth, but at least what a worker can allocate in a tenth of a second.
fn reserve(cap: u64) -> u64 {
    (cap / 16).clamp(6 << 20, 64 << 20)
}

/// The bytes that the store may add for each three that could become resident until the next
/// measurement. While blocks of one size replace those of another, three bytes become resident for
/// one; the reserve covers that.
const STORED_PER_3_RESIDENT: u64 = 2;

/// Bytes that may become resident for the store; negative if too many are resident already.
fn room(cap: u64, measured: &Measured) -> i64 {
    // Memory that they use is resident already.
    let kept = Division::of(cap).map_or(0, |parts| {
        let sessions = measured.sessions.map_or(0, |used| parts.sessions.saturating_sub(used));
        parts.connections.saturating_sub(measured.connections) + sessions
    });
    let room = signed(cap) - signed(measured.resident + kept + reserve(cap));
    measured.group_room.map_or(room, |group| room.min(signed(group) - signed(reserve(cap))))
}

/// The bytes that the store may use until the next measurement; at least 1, as 0 means no bound. If
/// half of the reserve is used up, removed torrents are not replaced for a while, because torrents
/// that replace each other leave holes in pages. The budget shrinks slowly, because removed
/// torrents are not freed at once.
fn store_bytes_max(cap: u64, measured: &Measured) -> u64 {
    if cap == 0 {
        return 0;
    }
    let room = room(cap, measured);
    let (lacking, half) = (-room, signed(reserve(cap)) / 2);
    let more = if room > 0 {
        room / 3 * signed(STORED_PER_3_RESIDENT)
    } else if lacking < half {
        0
    } else if lacking < half + half / 2 {
        -signed(measured.reserved / 128)
    } else {
        -signed(measured.reserved / 8)
    };
    measured.reserved.saturating_add_signed(more).max(1)
}

/// No memory is larger than an i64 can count.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

/// The time until the next measurement. Much room is not filled within a second. With little room,
/// new torrents that replace others leave holes in pages.
fn pause(cap: u64, measured: &Measured) -> Duration {
    let room = room(cap, measured);
    if cap == 0 || room > signed((cap / 2).max(SECONDS_GROWTH_MAX)) {
        Duration::from_secs(1)
    } else if room > signed(cap / 16) {
        Duration::from_millis(100)
    } else {
        Duration::from_millis(25)
    }
}

/// Largest growth of a store in a second, in bytes. None that was measured exceeded it.
const SECONDS_GROWTH_MAX: u64 = 512 << 20;

/// Decides when to request that threads collect freed blocks, which are resident but unused.
#[derive(Debug)]
struct Reclaim {
    /// Resident bytes of the process without torrents and connections.
    idle: u64,
    /// How many requests in a row had no effect. Each doubles the wait for the next one.
    vain: u32,
    waited: Duration,
    /// Unused resident bytes at the last request.
    waste: u64,
}

/// Expected resident bytes of a store that has allocated `store` bytes.
fn resident_of(store: u64) -> u64 {
    store + store / 8
}

/// Unused resident bytes below which no request is made.
const WASTE_BYTES_MIN: u64 = 8 << 20;

/// The longest wait after requests without effect, as a power of two: a minute, or less than half a
/// second if memory is short.
const VAIN_MAX: u32 = 6;
const VAIN_MAX_PRESSING: u32 = 2;

impl Reclaim {
    /// Starts with the measurements at that moment.
    fn new(measured: &Measured) -> Self {
        let idle = measured.resident.saturating_sub(resident_of(measured.store));
        Self { idle, vain: 0, waited: Duration::ZERO, waste: 0 }
    }

    /// Whether a request is due, `waited` after the last measurement.
    fn is_due(&mut self, cap: u64, measured: &Measured, waited: Duration) -> bool {
        self.waited += waited;
        let is_pressing = cap > 0 && room(cap, measured) <= 0;
        let waste_max =
            if is_pressing { WASTE_BYTES_MIN / 4 } else { (cap / 32).max(WASTE_BYTES_MIN) };
        let counted = measured.connections + measured.sessions.unwrap_or(0);
        let needed = self.idle + counted + resident_of(measured.store);
        let waste = measured.resident.saturating_sub(needed);
        if waste > self.waste + WASTE_BYTES_MIN {
            self.vain = 0;
        }
        let (least, vain_max) = match is_pressing {
            true => (SOON, VAIN_MAX_PRESSING),
            false => (Duration::from_secs(1), VAIN_MAX),
        };
        if waste <= waste_max || self.waited < least * 2_u32.pow(self.vain.min(vain_max)) {
            return false;
        }
        let has_helped = waste + WASTE_BYTES_MIN / 8 < self.waste;
        let is_more = waste > self.waste + WASTE_BYTES_MIN;
        self.vain = if has_helped || is_more { 0 } else { (self.vain + 1).min(VAIN_MAX) };
        (self.waited, self.waste) = (Duration::ZERO, waste);
        true
    }
}

/// Keeps the store's budget in line with measurements. Shared by reloads, metrics, and the thread
/// that measures.
pub struct MemoryMonitor {
    store: Arc<Store>,
    /// The stream workers, after their start.
    streams: OnceLock<Arc<stream::StreamContext>>,
    /// Bytes of the sessions of passkeys, in a private tracker.
    sessions: OnceLock<Arc<SessionBytes>>,
    resident: Mutex<Option<memory::Resident>>,
    cap: AtomicU64,
    peers_per_torrent_max: AtomicU64,
    /// The last measurement.
    resident_bytes: AtomicU64,
}

impl MemoryMonitor {
    /// A monitor for a store. Sets the store's budget.
    pub fn new(store: Arc<Store>, options: Options) -> Arc<Self> {
        let resident = memory::Resident::open().inspect_err(|error| {
            tracing::warn!(%error, "resident memory not measured, memory.max_memory is estimated");
        });
        let monitor = Self {
            store,
            streams: OnceLock::new(),
            sessions: OnceLock::new(),
            resident: Mutex::new(resident.ok()),
            cap: AtomicU64::new(0),
            peers_per_torrent_max: AtomicU64::new(0),
            resident_bytes: AtomicU64::new(0),
        };
        monitor.set(options);
        Arc::new(monitor)
    }

    /// Applies settings.
    pub(super) fn set(&self, options: Options) {
        self.cap.store(options.cap, Ordering::Relaxed);
        self.peers_per_torrent_max.store(options.peers_per_torrent_max.into(), Ordering::Relaxed);
        self.measure();
    }

    /// Gives the sessions of a private tracker's passkeys their part of the cap.
    pub fn count_sessions(&self, sessions: Arc<SessionBytes>) {
        // Set once: they stay the same while the process runs.
        let _ = self.sessions.set(sessions);
        self.measure();
    }

    /// Counts the memory of these workers' connections.
    pub(super) fn count_connections(&self, streams: Arc<stream::StreamContext>) {
        // Set once: the workers are started once.
        let _ = self.streams.set(streams);
    }

    /// The cap in force; 0: no cap.
    pub(super) fn cap(&self) -> u64 {
        self.cap.load(Ordering::Relaxed)
    }

    /// Resident bytes as last measured.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that connections hold; 0 before their workers have started.
    pub(super) fn connection_bytes(&self) -> u64 {
        self.streams.get().map_or(0, |streams| streams.held_bytes())
    }

    /// Measures, and sets the store's budget.
    pub(super) fn measure(&self) -> Measured {
        let cap = self.cap();
        let MemoryUsage { bytes: store, reserved, .. } = self.store.usage();
        let mut resident = self.resident.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = resident.as_mut().and_then(|it| it.read().ok());
        drop(resident);
        let measured = Measured {
            resident: bytes.unwrap_or(FIXED_BYTES + store + store / 2),
            group_room: if cap > 0 { memory::group_room() } else { None },
            store,
            reserved,
            connections: self.connection_bytes(),
            sessions: self.sessions.get().map(|it| it.used()),
        };
        if let Some(sessions) = self.sessions.get() {
            sessions.allow(Division::of(cap).map_or(u64::MAX, |parts| parts.sessions));
        }
        self.resident_bytes.store(measured.resident, Ordering::Relaxed);
        let peers = self.peers_per_torrent_max.load(Ordering::Relaxed);
        self.store.allow(Budget {
            bytes_max: store_bytes_max(cap, &measured),
            peers_per_torrent_max: u32::try_from(peers).unwrap_or(u32::MAX),
        });
        measured
    }

    /// Warns if the process itself leaves the store hardly anything of the cap. Call it when all
    /// workers have started, and the store is still empty.
    fn warn_of_a_low_cap(&self) {
        let (cap, measured) = (self.cap(), self.measure());
        let lacking = signed(STORE_BYTES_MIN) - room(cap, &measured) - signed(measured.store);
        if cap > 0 && lacking > 0 {
            let (has_mib, least_mib) = (measured.resident >> 20, (signed(cap) + lacking) >> 20);
            let remedy = format!(
                "set memory.max_memory to {}MiB or more, or lower server.workers",
                least_mib + 1
            );
            tracing::warn!(
                process_mib = has_mib,
                remedy,
                "memory.max_memory leaves almost no memory for torrents"
            );
        }
    }

    /// Measures repeatedly, on a thread of its own: the control thread may be busy for long, and
    /// freeing pages there delays no other work.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(self: &Arc<Self>) -> std::io::Result<MonitorThread> {
        self.warn_of_a_low_cap();
        let (monitor, stop) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let work = move || {
            let (mut reclaim, mut waited) = (Reclaim::new(&monitor.measure()), Duration::ZERO);
            let mut asked = false;
            while !stopped.load(Ordering::Relaxed) {
                if asked {
                    allocator::release_unused();
                }
                let measured = monitor.measure();
                asked = reclaim.is_due(monitor.cap(), &measured, waited);
                if asked {
                    allocator::ask_to_collect();
                }
                waited = if asked { SOON } else { pause(monitor.cap(), &measured) };
                thread::park_timeout(waited);
            }
        };
        let thread = thread::Builder::new().name("memory".into()).spawn(work)?;
        Ok(MonitorThread { thread: Some(thread), stop })
    }
}

/// How long threads may take to collect freed blocks. Each checks for a request within a tenth of a
/// second.
const SOON: Duration = Duration::from_millis(100);

/// The thread that measures. Ends when dropped.
pub struct MonitorThread {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Drop for MonitorThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic would have ended the process.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_parts_of_a_cap_leave_most_of_it() {
        assert_eq!(Division::of(0), None);
        for cap in [64, 128, 256, 1024, 65_536].map(|it| it << 20) {
            let division = Division::of(cap).unwrap();
            let left = cap - FIXED_BYTES - division.connections - division.sessions;
            assert!(
                division.connections >= CONNECTION_BYTES_MIN && left >= 2 * division.connections
            );
            assert!(division.sessions >= SESSION_BYTES_MIN && left >= 4 * division.sessions);
        }
        let least = Division { connections: CONNECTION_BYTES_MIN, sessions: SESSION_BYTES_MIN };
        assert_eq!(Division::of(1), Some(least));
    }

    fn measured(resident: u64, store: u64) -> Measured {
        let [resident, store] = [resident, store].map(|it| it * MIB);
        Measured { resident, store, reserved: store, ..Measured::default() }
    }

    #[test]
    fn the_store_may_take_less_the_closer_the_cap_is() {
        let cap = 256 * MIB;
        // 16 MiB are the reserve, 56 are for connections.
        assert_eq!(room(cap, &measured(30, 0)), signed(154 * MIB));
        let bytes = |resident, store| store_bytes_max(cap, &measured(resident, store));
        assert!((102..104).contains(&(bytes(30, 0) / MIB)), "{}", bytes(30, 0));
        assert_eq!(bytes(184, 100), 100 * MIB, "nothing is left");
        assert_eq!(bytes(190, 128), 128 * MIB, "a little too much is there");
        assert_eq!(bytes(193, 128), 127 * MIB);
        assert_eq!(bytes(197, 128), 112 * MIB, "the reserve is nearly used up");
        assert_eq!(bytes(1000, 0), 1, "0 would be no bound");
        assert_eq!(store_bytes_max(0, &measured(1000, 100)), 0);
    }

    #[test]
    fn what_connections_hold_is_not_kept_for_them_twice() {
        let cap = 256 * MIB;
        let none = measured(100, 60);
        let full = Measured { connections: 56 * MIB, resident: 156 * MIB, ..none };
        assert_eq!(room(cap, &none), room(cap, &full));
        // A private tracker reserves 28 MiB for sessions. Existing sessions count as part of them.
        let begun = Measured { sessions: Some(0), ..none };
        assert_eq!(room(cap, &begun), room(cap, &none) - signed(28 * MIB));
        let some = Measured { sessions: Some(20 * MIB), resident: 120 * MIB, ..none };
        assert_eq!(room(cap, &begun), room(cap, &some));
        let more = Measured { sessions: Some(30 * MIB), resident: 130 * MIB, ..none };
        assert_eq!(room(cap, &more), room(cap, &begun) - signed(2 * MIB));
    }

    #[test]
    fn sessions_may_take_their_part_of_the_cap() {
        let store = Arc::new(Store::new(crate::store::Options { shards: 2, seed: Some(1) }));
        let options = Options { cap: 256 * MIB, peers_per_torrent_max: 0 };
        let (monitor, sessions) =
            (MemoryMonitor::new(store, options), Arc::new(SessionBytes::default()));
        monitor.count_sessions(sessions.clone());
        assert_eq!(sessions.max(), 28 * MIB);
        monitor.set(Options { cap: 0, ..options });
        assert_eq!(sessions.max(), u64::MAX);
    }

    #[test]
    fn a_control_group_with_less_room_decides() {
        let cap = 1024 * MIB;
        let measured = Measured { group_room: Some(100 * MIB), ..measured(100, 60) };
        assert_eq!(room(cap, &measured), signed(36 * MIB));
        assert_eq!(pause(cap, &measured), Duration::from_millis(25));
        assert_eq!(store_bytes_max(cap, &measured), 84 * MIB);
    }

    /// A store that uses all it may between two measurements, with different resident bytes per
    /// hundred allocated: resident memory stays below the cap, and comes close to it.
    #[test]
    fn resident_memory_converges_below_the_cap() {
        for cap in [64, 128, 256, 1024].map(|it| it * MIB) {
            for per_100 in [100, 120, 150] {
                let mut memory = measured(20, 0);
                for _ in 0..40 {
                    let more = store_bytes_max(cap, &memory).saturating_sub(memory.store);
                    memory.store += more;
                    memory.reserved = memory.store;
                    memory.resident += more * per_100 / 100;
                    assert!(memory.resident <= cap - reserve(cap), "{cap} {per_100}");
                }
                assert!(room(cap, &memory) < signed(MIB / 2), "{cap} {per_100}: {memory:?}");
            }
        }
    }

    /// Three resident bytes per allocated one, as fast as a worker can cause that.
    #[test]
    fn the_reserve_covers_what_comes_between_two_looks_at_worst() {
        let cap = 64 * MIB;
        let mut memory = measured(20, 0);
        for _ in 0..200 {
            let most = store_bytes_max(cap, &memory).saturating_sub(memory.store);
            let more = most.min(1_000_000 * 16 / 10); // a million announces a second, 16 bytes each
            memory.store += more;
            memory.reserved = memory.store;
            memory.resident += more * 3;
            assert!(memory.resident <= cap, "{memory:?}");
        }
    }

    #[test]
    fn what_does_not_help_is_done_less_often() {
        let second = Duration::from_secs(1);
        let mut reclaim = Reclaim::new(&measured(30, 0));
        let mut due = |memory: &Measured, looks: u32| {
            (0..looks).filter(|_| reclaim.is_due(256 * MIB, memory, second)).count()
        };
        assert_eq!(due(&measured(110, 70), 10), 0, "little is wasted");
        assert_eq!(due(&measured(150, 70), 63), 6, "after 1, 2, 4, 8, 16 and 32 seconds");
        assert_eq!(due(&measured(130, 70), 8), 4, "it has helped: after 32, 1, 2 and 4");
        assert_eq!(due(&measured(150, 50), 2), 2, "there is much more of it");
        assert_eq!(due(&measured(33, 0), 100), 0, "it has helped");
    }
}
