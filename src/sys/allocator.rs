//! The program's allocator: small things come from mimalloc, large ones are mappings of their own.
//!
//! Tables of the store double and halve. In pages that hold things of one size, what is freed stays
//! resident until all around it is freed, and nothing else has a table's size. A mapping is exact
//! to the page and goes back to the kernel at once. Nothing is mapped but what was asked for, so
//! the kernel can put huge pages only where memory is in use.
#![expect(unsafe_code, reason = "memory from the kernel, and mimalloc's own upkeep")]

use std::alloc::{GlobalAlloc, Layout};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use mimalloc::MiMalloc;

/// mimalloc, and mappings.
#[derive(Debug)]
pub struct Allocator;

/// What is larger and aligned like a table is mapped: pages of 4 KiB waste little of it.
const SHARED_TABLE_BYTES_MAX: usize = 4 << 10;

/// What is larger is mapped, however aligned. The usual buffers of I/O are not: they come and go
/// too often for a system call each.
const SHARED_BYTES_MAX: usize = 16 << 10;

/// What hashbrown aligns tables to; hardly anything else asks for as much.
const TABLE_ALIGN: usize = 16;

/// The page that all this is for. Where pages are larger, too much of each would be wasted, and
/// everything is mimalloc's.
const PAGE_BYTES: usize = 4096;

/// How far behind the begin of a page memory starts that is mimalloc's, as there were too many
/// mappings already. What is mapped starts with its page.
const UNMAPPED_OFFSET: usize = 64;

#[inline]
fn is_mapped(layout: Layout) -> bool {
    let shared_max =
        if layout.align() >= TABLE_ALIGN { SHARED_TABLE_BYTES_MAX } else { SHARED_BYTES_MAX };
    layout.size() > shared_max && layout.align() <= UNMAPPED_OFFSET && has_small_pages()
}

/// Whether the kernel's pages are of the size that mappings are for.
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
    // SAFETY: a new private mapping, where the kernel chooses, touches nothing that is there.
    let memory = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    if memory == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    // SAFETY: the range was just mapped. The advice changes no contents, and may be declined.
    unsafe { libc::madvise(memory, bytes, libc::MADV_HUGEPAGE) };
    memory.cast()
}

/// What is asked of mimalloc where the kernel has no mapping left.
fn unmapped(layout: Layout) -> Option<Layout> {
    let bytes = layout.size().checked_add(UNMAPPED_OFFSET)?;
    Layout::from_size_align(bytes, PAGE_BYTES).ok()
}

/// Mappings of this module that there are.
static MAPPED: CachePadded<AtomicUsize> = CachePadded::new(AtomicUsize::new(0));

/// Most of them: half of what the kernel lets a process have by default (vm.max_map_count). Stacks,
/// libraries and mimalloc's own memory have the other half, for a process that finds none ends.
const MAPPED_MAX: usize = 32_000;

/// Zeroed memory for what is mapped, or null.
#[cold]
fn allocate(layout: Layout) -> *mut u8 {
    allocate_within(layout, MAPPED_MAX)
}

/// The same, where so many mappings may be there; beyond them memory is mimalloc's.
fn allocate_within(layout: Layout, mapped_max: usize) -> *mut u8 {
    let has_room = MAPPED.load(Ordering::Relaxed) < mapped_max;
    let memory = if has_room { map(layout.size()) } else { ptr::null_mut() };
    MAPPED.fetch_add(usize::from(!memory.is_null()), Ordering::Relaxed);
    let Some(other) = unmapped(layout).filter(|_| memory.is_null()) else { return memory };
    // SAFETY: the layout is not of size zero.
    let memory = unsafe { MiMalloc.alloc_zeroed(other) };
    // In bounds where it is not null: the layout has as many bytes more.
    if memory.is_null() { memory } else { memory.wrapping_add(UNMAPPED_OFFSET) }
}

/// Whether memory of a layout that [`is_mapped`] was mapped.
fn was_mapped(memory: *mut u8) -> bool {
    memory.addr().is_multiple_of(PAGE_BYTES)
}

/// Gives back what [`allocate`] gave.
///
/// # Safety
/// The memory came from it for this layout, and is not used after.
#[cold]
unsafe fn free(memory: *mut u8, layout: Layout) {
    if was_mapped(memory) {
        // SAFETY: the range is a mapping of ours, which the caller gives up.
        let done = unsafe { libc::munmap(memory.cast(), layout.size()) };
        if done == 0 {
            MAPPED.fetch_sub(1, Ordering::Relaxed);
        } else {
            // No mapping left for the two sides of a hole: the pages go, the addresses stay.
            // SAFETY: as above.
            unsafe { libc::madvise(memory.cast(), layout.size(), libc::MADV_DONTNEED) };
        }
    } else if let Some(other) = unmapped(layout) {
        // SAFETY: it was so many bytes further that this was handed out.
        unsafe { MiMalloc.dealloc(memory.wrapping_sub(UNMAPPED_OFFSET), other) };
    }
}

/// Lets a mapping grow or shrink without a copy, if it can be; null if not.
///
/// # Safety
/// As for [`free`], unless null comes back.
unsafe fn remap(memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
    // SAFETY: the range is a mapping of ours, which the caller gives up for what comes back.
    let other = unsafe { libc::mremap(memory.cast(), layout.size(), bytes, libc::MREMAP_MAYMOVE) };
    if other == libc::MAP_FAILED { ptr::null_mut() } else { other.cast() }
}

// SAFETY: each layout leads to one of two allocators, the same one whenever it comes; both return
// memory of at least its size and alignment that nobody else has.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            return allocate(layout);
        }
        // SAFETY: the caller's promises are those that mimalloc wants.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            return allocate(layout);
        }
        // SAFETY: the caller's promises are those that mimalloc wants.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_mapped(layout) {
            // SAFETY: a layout that is mapped was allocated as such, and the caller gives it up.
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
                // SAFETY: both layouts lead to mimalloc, and the caller's promises are its own.
                return unsafe { MiMalloc.realloc(memory, layout, bytes) };
            }
            (true, true) if was_mapped(memory) => {
                // SAFETY: it was mapped, and the caller gives it up unless null comes back.
                let other = unsafe { remap(memory, layout, bytes) };
                if !other.is_null() {
                    return other;
                }
            }
            _ => {}
        }
        // SAFETY: the caller promises that the new size is not zero.
        let other = unsafe { self.alloc(new) };
        if !other.is_null() {
            let kept = layout.size().min(bytes);
            // SAFETY: both have at least so many bytes, and the other one is new.
            unsafe { ptr::copy_nonoverlapping(memory, other, kept) };
            // SAFETY: the caller gives it up.
            unsafe { self.dealloc(memory, layout) };
        }
        other
    }
}

// SAFETY: the signature is that of mimalloc.h, and the crate links the library.
unsafe extern "C" {
    /// Takes back what other threads freed of the calling thread's memory, and gives empty pages
    /// away. With `force`, pages that nobody uses go to the kernel at once.
    safe fn mi_collect(force: bool);
}

/// How often all threads were asked to collect.
static ASKED: CachePadded<AtomicU64> = CachePadded::new(AtomicU64::new(0));

/// Asks all threads that have a [`Collector`] to take back what others freed of their memory. In a
/// thread that no longer allocates things of a size it stays resident otherwise.
pub fn ask_to_collect() {
    ASKED.fetch_add(1, Ordering::Relaxed);
}

/// What a thread collects with when it is asked to.
#[derive(Debug, Default)]
pub struct Collector {
    answered: u64,
}

impl Collector {
    /// Collects if it was asked for since the last time: some microseconds, and a millisecond for
    /// each ten thousand things that others have freed. Says whether it did.
    #[inline]
    pub fn collect_if_asked(&mut self) -> bool {
        let asked = ASKED.load(Ordering::Relaxed);
        let is_asked = asked != self.answered;
        if is_asked {
            self.answered = asked;
            mi_collect(false);
        }
        is_asked
    }
}

/// Gives pages that nobody uses back to the kernel, on this thread's time.
pub fn release_unused() {
    mi_collect(true);
}

/// Keeps the kernel from putting huge pages where it was not advised to: a page of 2 MiB for a few
/// small things would be resident as a whole. Linux 6.18 can tell the two apart; before, mappings
/// forgo huge pages as well, but only where the host has them everywhere ("always").
pub fn restrain_huge_pages() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) || disable_huge_pages(PR_THP_DISABLE_EXCEPT_ADVISED) {
        return;
    }
    let mode = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if mode.is_ok_and(|it| it.contains("[always]")) && !disable_huge_pages(0) {
        tracing::debug!(error = %io::Error::last_os_error(), "huge pages not restrained");
    }
}

/// prctl(2), Linux 6.18.
const PR_THP_DISABLE_EXCEPT_ADVISED: libc::c_ulong = 1 << 1;

fn disable_huge_pages(how: libc::c_ulong) -> bool {
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: it takes numbers only, and changes how the kernel chooses pages from now on.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, how, none, none) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bytes: usize, align: usize) -> Layout {
        Layout::from_size_align(bytes, align).unwrap()
    }

    /// Fills memory, and looks whether it is what was written.
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
            // SAFETY: it was allocated with this layout, and is replaced by what comes back.
            memory = unsafe { Allocator.realloc(memory, layout(before, 1), bytes) };
            assert!(holds(memory, before.min(bytes), 0x5a), "{before} to {bytes}");
            write(memory, bytes);
            before = bytes;
        }
        // SAFETY: it was allocated with this layout, and is not used after.
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
        // SAFETY: this is what `allocate` returns without a mapping, and it is not used after.
        unsafe { free(memory, table) };
        let mapped = allocate(table);
        assert!(was_mapped(mapped) && holds(mapped, table.size(), 0));
        // SAFETY: it was allocated for this layout, and is not used after.
        unsafe { free(mapped, table) };
    }

    #[test]
    fn beyond_the_most_mappings_memory_is_mimallocs_and_grows_and_goes_as_such() {
        let table = layout(33_808, 16);
        let memory = allocate_within(table, 0);
        assert!(!was_mapped(memory) && holds(memory, table.size(), 0));
        write(memory, table.size());
        // SAFETY: it was allocated for this layout, and is replaced by what comes back.
        let memory = unsafe { Allocator.realloc(memory, table, 2 * table.size()) };
        assert!(holds(memory, table.size(), 0x5a));
        // SAFETY: it was allocated for this layout, and is not used after.
        unsafe { Allocator.dealloc(memory, layout(2 * table.size(), 16)) };
    }

    #[test]
    fn a_thread_collects_once_each_time_it_is_asked() {
        let mut collector = Collector::default();
        assert!(!collector.collect_if_asked());
        for _ in 0..2 {
            ask_to_collect();
            assert!(collector.collect_if_asked());
            assert!(!collector.collect_if_asked());
        }
        release_unused();
    }
}
