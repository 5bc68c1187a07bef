//! The program's allocator: small blocks come from mimalloc, large ones are mappings of their own.
//!
//! Tables of the store double and halve. In pages for blocks of one size, a freed block stays
//! resident until all others of its page are freed, and nothing else has a table's size. A mapping
//! is exact to the page and goes back to the kernel at once. Only what was requested is mapped, so
//! the kernel can use huge pages only where memory is in use.
#![expect(unsafe_code, reason = "memory from the kernel, and mimalloc's own upkeep")]

use std::alloc::{GlobalAlloc, Layout};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use mimalloc::MiMalloc;

/// mimalloc for small blocks, mappings for large ones.
#[derive(Debug)]
pub struct Allocator;

/// A larger block that is aligned like a table is mapped: pages of 4 KiB waste little of it.
const SHARED_TABLE_BYTES_MAX: usize = 4 << 10;

/// A larger block is mapped, whatever its alignment. The usual I/O buffers are smaller: they are
/// allocated too often for a system call each.
const SHARED_BYTES_MAX: usize = 16 << 10;

/// The alignment of hashbrown's tables. Hardly anything else requests as much.
const TABLE_ALIGN: usize = 16;

/// The page size that mappings are for. Larger pages would waste too much, so everything is
/// mimalloc's there.
const PAGE_BYTES: usize = 4096;

/// Offset from the start of a page of memory that came from mimalloc because there were too many
/// mappings. Mapped memory starts at a page.
const UNMAPPED_OFFSET: usize = 64;

#[inline]
fn is_mapped(layout: Layout) -> bool {
    let shared_max =
        if layout.align() >= TABLE_ALIGN { SHARED_TABLE_BYTES_MAX } else { SHARED_BYTES_MAX };
    layout.size() > shared_max && layout.align() <= UNMAPPED_OFFSET && has_small_pages()
}

/// Whether the kernel's pages have the size that mappings are for.
fn has_small_pages() -> bool {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    let mut bytes = PAGE.load(Ordering::Relaxed);
    if bytes == 0 {
        // SAFETY: it reads a constant of the system.
        let asked = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        bytes = usize::try_from(asked).unwrap_or(usize::MAX);
        PAGE.store(bytes, Ordering::Relaxed);
    }
    bytes == PAGE_BYTES
}

/// Zeroed memory from the kernel, or null.
fn map(bytes: usize) -> *mut u8 {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new private mapping at an address that the kernel chooses touches nothing that
    // exists.
    let memory = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    if memory == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    // SAFETY: the range was just mapped. The advice changes no contents, and may be refused.
    unsafe { libc::madvise(memory, bytes, libc::MADV_HUGEPAGE) };
    memory.cast()
}

/// The layout to request from mimalloc if the kernel allows no more mappings.
fn unmapped(layout: Layout) -> Option<Layout> {
    let bytes = layout.size().checked_add(UNMAPPED_OFFSET)?;
    Layout::from_size_align(bytes, PAGE_BYTES).ok()
}

/// Number of mappings that this module has.
static MAPPED: CachePadded<AtomicUsize> = CachePadded::new(AtomicUsize::new(0));

/// Most mappings: half of what the kernel allows a process by default (vm.max_map_count). Stacks,
/// libraries and mimalloc's own memory need the other half: a process that gets no mapping for them
/// ends.
const MAPPED_MAX: usize = 32_000;

/// Zeroed memory for a layout that is mapped, or null.
#[cold]
fn allocate(layout: Layout) -> *mut u8 {
    allocate_within(layout, MAPPED_MAX)
}

/// As [`allocate`], with a limit on the number of mappings. Beyond it, memory comes from mimalloc.
fn allocate_within(layout: Layout, mapped_max: usize) -> *mut u8 {
    let has_room = MAPPED.load(Ordering::Relaxed) < mapped_max;
    let memory = if has_room { map(layout.size()) } else { ptr::null_mut() };
    MAPPED.fetch_add(usize::from(!memory.is_null()), Ordering::Relaxed);
    let Some(other) = unmapped(layout).filter(|_| memory.is_null()) else { return memory };
    // SAFETY: the layout is not of size zero.
    let memory = unsafe { MiMalloc.alloc_zeroed(other) };
    // In bounds unless null: the layout is larger by the offset.
    if memory.is_null() { memory } else { memory.wrapping_add(UNMAPPED_OFFSET) }
}

/// Whether memory of a layout that [`is_mapped`] was mapped.
fn was_mapped(memory: *mut u8) -> bool {
    memory.addr().is_multiple_of(PAGE_BYTES)
}

/// Frees memory of [`allocate`].
///
/// # Safety
/// The memory came from [`allocate`] for this layout, and is not used afterwards.
#[cold]
unsafe fn free(memory: *mut u8, layout: Layout) {
    if was_mapped(memory) {
        // SAFETY: the range is a mapping of this module, which the caller does not use any more.
        let done = unsafe { libc::munmap(memory.cast(), layout.size()) };
        if done == 0 {
            MAPPED.fetch_sub(1, Ordering::Relaxed);
        } else {
            // At the limit of mappings the kernel cannot split one: the pages are freed, and the
            // addresses stay.
            // SAFETY: as above.
            unsafe { libc::madvise(memory.cast(), layout.size(), libc::MADV_DONTNEED) };
        }
    } else if let Some(other) = unmapped(layout) {
        // SAFETY: [`allocate`] handed this memory out with that offset.
        unsafe { MiMalloc.dealloc(memory.wrapping_sub(UNMAPPED_OFFSET), other) };
    }
}

/// Grows or shrinks a mapping without a copy. Null if that is not possible.
///
/// # Safety
/// As for [`free`], unless null is returned.
unsafe fn remap(memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
    // SAFETY: the range is a mapping of this module, which the caller gives up for the returned
    // one.
    let other = unsafe { libc::mremap(memory.cast(), layout.size(), bytes, libc::MREMAP_MAYMOVE) };
    if other == libc::MAP_FAILED { ptr::null_mut() } else { other.cast() }
}

// SAFETY: each layout leads to one of two allocators, always to the same one; both return memory of
// at least its size and alignment that no other owner has.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            return allocate(layout);
        }
        // SAFETY: the caller's guarantees are those that mimalloc requires.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            return allocate(layout);
        }
        // SAFETY: the caller's guarantees are those that mimalloc requires.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_mapped(layout) {
            // SAFETY: a layout that is mapped was allocated as a mapping, and the caller gives the
            // memory up.
            return unsafe { free(memory, layout) };
        }
        // SAFETY: the layout led to mimalloc when the memory was allocated, too.
        unsafe { MiMalloc.dealloc(memory, layout) };
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(bytes, layout.align()) else {
            return ptr::null_mut();
        };
        match (is_mapped(layout), is_mapped(new)) {
            (false, false) => {
                // SAFETY: both layouts lead to mimalloc, and the caller's guarantees are those it
                // requires.
                return unsafe { MiMalloc.realloc(memory, layout, bytes) };
            }
            (true, true) if was_mapped(memory) => {
                // SAFETY: the memory was mapped, and the caller gives it up unless null is
                // returned.
                let other = unsafe { remap(memory, layout, bytes) };
                if !other.is_null() {
                    return other;
                }
            }
            _ => {}
        }
        // SAFETY: the caller guarantees that the new size is not zero.
        let other = unsafe { self.alloc(new) };
        if !other.is_null() {
            let kept = layout.size().min(bytes);
            // SAFETY: both blocks have at least `kept` bytes, and the new one overlaps nothing.
            unsafe { ptr::copy_nonoverlapping(memory, other, kept) };
            // SAFETY: the caller gives the old memory up.
            unsafe { self.dealloc(memory, layout) };
        }
        other
    }
}

// SAFETY: the signature is that of mimalloc.h, and the crate links the library.
unsafe extern "C" {
    /// Collects blocks of the calling thread that other threads freed, and frees empty pages. With
    /// `force`, unused pages go to the kernel at once.
    safe fn mi_collect(force: bool);
}

/// How many times a collection was requested.
static ASKED: CachePadded<AtomicU64> = CachePadded::new(AtomicU64::new(0));

/// Requests that every thread with a [`Collector`] collects blocks of its own that other threads
/// freed. Otherwise they stay resident in a thread that no longer allocates blocks of that size.
pub fn ask_to_collect() {
    ASKED.fetch_add(1, Ordering::Relaxed);
}

/// Collects freed blocks of a thread on request.
#[derive(Debug, Default)]
pub struct Collector {
    answered: u64,
}

impl Collector {
    /// Collects if that was requested since the last call: some microseconds, and a millisecond for
    /// every ten thousand blocks that other threads freed. True if it collected.
    #[inline]
    pub fn collect_if_requested(&mut self) -> bool {
        let asked = ASKED.load(Ordering::Relaxed);
        let is_asked = asked != self.answered;
        if is_asked {
            self.answered = asked;
            mi_collect(false);
        }
        is_asked
    }
}

/// Returns unused pages to the kernel, on the calling thread.
pub fn release_unused() {
    mi_collect(true);
}

/// Prevents huge pages except where they were advised: a page of 2 MiB for a few small blocks would
/// be resident as a whole. Since Linux 6.18 the kernel distinguishes the two. On older kernels,
/// mappings lose their huge pages as well; this is done only if the host has them everywhere
/// ("always").
pub fn restrain_huge_pages() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) || disable_huge_pages(PR_THP_DISABLE_EXCEPT_ADVISED) {
        return;
    }
    let mode = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if mode.is_ok_and(|it| it.contains("[always]")) && !disable_huge_pages(0) {
        tracing::debug!(error = %io::Error::last_os_error(), "huge pages not restricted");
    }
}

/// prctl(2), Linux 6.18.
const PR_THP_DISABLE_EXCEPT_ADVISED: libc::c_ulong = 1 << 1;

fn disable_huge_pages(how: libc::c_ulong) -> bool {
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: the call takes only numbers, and changes how the kernel chooses pages from now on.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, how, none, none) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bytes: usize, align: usize) -> Layout {
        Layout::from_size_align(bytes, align).unwrap()
    }

    /// Fills memory with a pattern.
    fn write(memory: *mut u8, bytes: usize) {
        // SAFETY: the caller has just allocated so many bytes.
        unsafe { ptr::write_bytes(memory, 0x5a, bytes) };
    }

    fn holds(memory: *mut u8, bytes: usize, value: u8) -> bool {
        // SAFETY: the caller has allocated so many bytes, and all were written or zeroed.
        let all = unsafe { std::slice::from_raw_parts(memory, bytes) };
        all.iter().all(|it| *it == value)
    }

    #[test]
    fn tables_and_large_arrays_are_mapped_and_buffers_are_not() {
        let mapped = [(8_464, 16), (135_184, 16), (1 << 20, 1), ((16 << 10) + 1, 8)];
        let shared = [(4_096, 16), (16 << 10, 1), (20 << 10, 128), (1, 1)];
        assert!(!has_small_pages() || mapped.iter().all(|it| is_mapped(layout(it.0, it.1))));
        assert!(shared.iter().all(|it| !is_mapped(layout(it.0, it.1))));
    }

    #[test]
    fn what_grows_and_shrinks_over_both_keeps_its_contents() {
        let sizes = [100, 20_000, 300_000, 17_000, 5_000, 1 << 20, 64];
        // SAFETY: the size is not zero.
        let mut memory = unsafe { Allocator.alloc_zeroed(layout(10, 1)) };
        assert!(holds(memory, 10, 0));
        write(memory, 10);
        let mut before = 10;
        for bytes in sizes {
            // SAFETY: it was allocated with this layout, and is replaced by the returned memory.
            memory = unsafe { Allocator.realloc(memory, layout(before, 1), bytes) };
            assert!(holds(memory, before.min(bytes), 0x5a), "{before} to {bytes}");
            write(memory, bytes);
            before = bytes;
        }
        // SAFETY: it was allocated with this layout, and is not used afterwards.
        unsafe { Allocator.dealloc(memory, layout(before, 1)) };
    }

    #[test]
    fn what_could_not_be_mapped_is_told_from_what_was() {
        let table = layout(33_808, 16);
        let other = unmapped(table).unwrap();
        // SAFETY: the size is not zero.
        let memory = unsafe { MiMalloc.alloc_zeroed(other) }.wrapping_add(UNMAPPED_OFFSET);
        assert!(!was_mapped(memory) && holds(memory, table.size(), 0));
        assert!(memory.addr().is_multiple_of(table.align()));
        write(memory, table.size());
        // SAFETY: this is what `allocate` returns without a mapping, and it is not used afterwards.
        unsafe { free(memory, table) };
        let mapped = allocate(table);
        assert!(was_mapped(mapped) && holds(mapped, table.size(), 0));
        // SAFETY: it was allocated for this layout, and is not used afterwards.
        unsafe { free(mapped, table) };
    }

    #[test]
    fn beyond_the_most_mappings_memory_is_mimallocs_and_grows_and_goes_as_such() {
        let table = layout(33_808, 16);
        let memory = allocate_within(table, 0);
        assert!(!was_mapped(memory) && holds(memory, table.size(), 0));
        write(memory, table.size());
        // SAFETY: it was allocated for this layout, and is replaced by the returned memory.
        let memory = unsafe { Allocator.realloc(memory, table, 2 * table.size()) };
        assert!(holds(memory, table.size(), 0x5a));
        // SAFETY: it was allocated for this layout, and is not used afterwards.
        unsafe { Allocator.dealloc(memory, layout(2 * table.size(), 16)) };
    }

    #[test]
    fn a_thread_collects_once_each_time_it_is_asked() {
        let mut collector = Collector::default();
        assert!(!collector.collect_if_requested());
        for _ in 0..2 {
            ask_to_collect();
            assert!(collector.collect_if_requested());
            assert!(!collector.collect_if_requested());
        }
        release_unused();
    }
}
