//! Packed swarms: the swarm of a map entry in three words.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use super::peer_block::PeerBlock;
use crate::store::large_swarm::LargeSwarm;
use crate::store::swarm::{CompletedCount, Swarm};
use crate::types::InfoHash;

/// A large swarm on the heap, behind a pointer through which several threads may read at once while
/// the shard is locked for reading. (A `Box` may not be used for that: it asserts unique access to
/// its target.)
pub(in crate::store) struct LargeSwarmPtr(NonNull<LargeSwarm>);

impl LargeSwarmPtr {
    /// Moves a swarm to the heap.
    pub(in crate::store) fn new(large: LargeSwarm) -> Self {
        Self(NonNull::from(Box::leak(Box::new(large))))
    }
}

impl Deref for LargeSwarmPtr {
    type Target = LargeSwarm;

    #[inline]
    fn deref(&self) -> &LargeSwarm {
        // SAFETY: the swarm lives until its owner is dropped, and changes only through `&mut self`.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for LargeSwarmPtr {
    #[inline]
    fn deref_mut(&mut self) -> &mut LargeSwarm {
        // SAFETY: as for `deref`; `&mut self` makes the borrow unique.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for LargeSwarmPtr {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak`, and is not used after its owner is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: the pointer owns the swarm, and the swarm itself is `Send`.
unsafe impl Send for LargeSwarmPtr where LargeSwarm: Send {}
// SAFETY: a shared owner gives access only to a shared swarm, which is `Sync`.
unsafe impl Sync for LargeSwarmPtr where LargeSwarm: Sync {}

/// Packed swarms are plain numbers to the compiler: the types that they represent must be `Send`
/// and `Sync` as well.
const _: () = {
    const fn fit_for_threads<T: Send + Sync>() {}
    fit_for_threads::<Swarm>();
};

const TAG_EMPTY: u32 = 0;
const TAG_INLINE: u32 = 1;
const TAG_SMALL_V4: u32 = 2;
const TAG_SMALL_V6: u32 = 3;
const TAG_LARGE: u32 = 4;

/// A packed [`Swarm`]: 12 bytes of alignment 4, so that a map entry is half a cache line.
pub(in crate::store) struct PackedSwarm {
    words: [u32; 3],
}

const _: () = assert!(size_of::<(InfoHash, PackedSwarm)>() == 32);

impl PackedSwarm {
    /// A swarm without peers and without a count.
    pub(super) const VACANT: Self = Self { words: [TAG_EMPTY, 0, 0] };

    fn pack(swarm: Swarm) -> Self {
        let pointer = |tag: u32, address: usize| {
            let address = address as u64;
            #[expect(clippy::cast_possible_truncation, reason = "split into its two halves")]
            let halves = [address as u32, (address >> 32) as u32];
            Self { words: [tag, halves[0], halves[1]] }
        };
        match swarm {
            Swarm::Empty { completed, since_s } => {
                Self { words: [TAG_EMPTY, completed.word(), since_s] }
            }
            Swarm::Inline(record, completed) => {
                debug_assert!(completed.fits_beside_peer());
                let [low, high] = zerocopy::transmute!(record);
                Self { words: [TAG_INLINE | (completed.word() << 8), low, high] }
            }
            Swarm::SmallV4(block) => {
                pointer(TAG_SMALL_V4 | (block.lines() << 8), block.into_address())
            }
            Swarm::SmallV6(block) => {
                pointer(TAG_SMALL_V6 | (block.lines() << 8), block.into_address())
            }
            Swarm::Large(large) => {
                let large = ManuallyDrop::new(large);
                pointer(TAG_LARGE | (1 << 8), large.0.as_ptr().expose_provenance())
            }
        }
    }

    #[inline]
    fn address(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "a usize was split, 64-bit only")]
        let address = (u64::from(self.words[2]) << 32 | u64::from(self.words[1])) as usize;
        address
    }

    #[inline]
    fn block<const ADDRESS: usize>(&self) -> PeerBlock<ADDRESS> {
        // SAFETY: only called for the tag under which such a block was packed.
        unsafe { PeerBlock::at(self.address()) }
    }

    /// A second handle on the contents of the packed swarm. Wrapped in `ManuallyDrop`, so that it
    /// is never dropped itself.
    #[inline]
    fn unpack(&self) -> ManuallyDrop<Swarm> {
        ManuallyDrop::new(match self.words[0] & 0xff {
            TAG_INLINE => {
                let record = zerocopy::transmute!([self.words[1], self.words[2]]);
                Swarm::Inline(record, CompletedCount::from_word(self.words[0] >> 8))
            }
            TAG_SMALL_V4 => Swarm::SmallV4(self.block()),
            TAG_SMALL_V6 => Swarm::SmallV6(self.block()),
            TAG_LARGE => {
                let large = ptr::with_exposed_provenance_mut(self.address());
                let large = NonNull::new(large).expect("packed from a non-null pointer");
                Swarm::Large(LargeSwarmPtr(large))
            }
            _ => {
                let completed = CompletedCount::from_word(self.words[1]);
                Swarm::Empty { completed, since_s: self.words[2] }
            }
        })
    }

    /// Unpacks the swarm, which the packed swarm no longer owns.
    pub(super) fn into_swarm(self) -> Swarm {
        let swarm = self.unpack();
        std::mem::forget(self); // or both would own them
        ManuallyDrop::into_inner(swarm)
    }

    /// Replaces the swarm by the result of `change`. The packed swarm's memory is written only if
    /// it differs: most announces update a record in a block, and a clean cache line of the map
    /// need not be written back to memory.
    #[inline]
    pub(super) fn change<T>(&mut self, change: impl FnOnce(Swarm) -> (Swarm, T)) -> T {
        // Until the new swarm is back, both this and the closure own the old one.
        let guard = AbortOnUnwind;
        let (swarm, result) = change(ManuallyDrop::into_inner(self.unpack()));
        let packed = ManuallyDrop::new(Self::pack(swarm));
        if packed.words != self.words {
            self.words = packed.words;
        }
        std::mem::forget(guard);
        result
    }

    /// Calls `look` with the contents.
    #[inline]
    pub(in crate::store) fn peek<T>(&self, look: impl FnOnce(&Swarm) -> T) -> T {
        look(&self.unpack())
    }

    /// Whether there is neither peer nor count: the entry may be removed.
    #[inline]
    pub(super) fn is_vacant(&self) -> bool {
        self.words[0] & 0xff == TAG_EMPTY && self.words[1] == 0
    }

    /// Whether the swarm has peers: a layout that can hold peers always holds one.
    #[inline]
    fn has_peers(&self) -> bool {
        self.words[0] & 0xff != TAG_EMPTY
    }

    /// The second since the Unix epoch when the last peer left; `None` if there are peers.
    #[inline]
    pub(in crate::store) fn empty_since_s(&self) -> Option<u32> {
        (!self.has_peers()).then_some(self.words[2])
    }

    /// The cache lines worth prefetching, if the contents live elsewhere.
    #[inline]
    pub(super) fn lines(&self) -> impl Iterator<Item = *const u8> {
        let elsewhere = self.words[0] & 0xff >= TAG_SMALL_V4;
        let lines = if elsewhere { self.words[0] >> 8 } else { 0 };
        let first: *const u8 = ptr::with_exposed_provenance(self.address());
        (0..lines as usize).map(move |line| first.wrapping_add(line * 64))
    }
}

impl Drop for PackedSwarm {
    #[inline]
    fn drop(&mut self) {
        if self.words[0] & 0xff >= TAG_SMALL_V4 {
            drop(ManuallyDrop::into_inner(self.unpack()));
        }
    }
}

/// Aborts the process when dropped, which happens only on unwinding.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}
