//! Host memory for arenas and persistent regions: zeroed, aligned to a cache line.

use crate::tensor::Element;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of every region and of every buffer in an arena, in bytes.
pub const ALIGNMENT: usize = 64;

/// Alignment of large regions, and what their size is rounded up to: a huge page. Of 4 KB pages a
/// pass over some tens of MB needs more than an address cache holds, and the hardware does not
/// prefetch across them.
const HUGE_PAGE: usize = 2 << 20;

/// An owned, zero-initialised, aligned block of bytes.
pub struct Memory {
    /// The first byte that is aligned.
    start: NonNull<u8>,
    /// What was allocated, with room to align in.
    whole: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: `Memory` owns its block like a `Vec<u8>` does; no interior mutability is offered here.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads, see above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A block of that many zero bytes. Large ones are not written here: the system hands out
    /// cleared pages, and clears each when it is touched first, on the thread that does.
    pub fn zeroed(bytes: usize) -> Memory {
        let large = bytes >= HUGE_PAGE;
        let alignment = if large { HUGE_PAGE } else { ALIGNMENT };
        // Asked for without alignment: an allocator that is asked for both writes the zeros.
        let size = bytes
            .checked_next_multiple_of(if large { HUGE_PAGE } else { 1 })
            .and_then(|size| size.checked_add(alignment));
        let layout = size
            .and_then(|size| Layout::from_size_align(size, 1).ok())
            .unwrap_or_else(|| panic!("{bytes} bytes are more than the address space holds"));
        // SAFETY: the size is at least the alignment.
        let whole = unsafe { alloc_zeroed(layout) };
        let Some(whole) = NonNull::new(whole) else { handle_alloc_error(layout) };
        let gap = whole.addr().get().wrapping_neg() % alignment;
        // SAFETY: the gap is less than the alignment, by which the block is larger than asked for.
        let start = unsafe { whole.add(gap) };
        if large {
            ask_for_huge_pages(start, layout.size() - alignment);
        }
        Memory { start, whole, layout, bytes }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the block has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The whole block.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` owns `bytes` initialised bytes for the life of `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The whole block, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// `len` elements from byte `offset` on.
    pub fn elements<T: Element>(&self, offset: usize, len: usize) -> &[T] {
        bytemuck::cast_slice(&self.bytes()[offset..offset + len * size_of::<T>()])
    }

    /// `len` elements from byte `offset` on, to write.
    pub fn elements_mut<T: Element>(&mut self, offset: usize, len: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.bytes_mut()[offset..offset + len * size_of::<T>()])
    }

    pub(super) fn start(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Asks the system to back a block of whole huge pages with such. What it answers is no matter: the
/// block holds the same either way.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: NonNull<u8>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    // Of the C library, which the standard library links.
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    // SAFETY: the caller owns the block; this advice changes neither what it holds nor whether it
    // may be touched.
    unsafe { madvise(start.as_ptr().cast(), bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_start: NonNull<u8>, _bytes: usize) {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `whole` came from `alloc_zeroed` with this layout and is freed once.
        unsafe { dealloc(self.whole.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_as_long_as_asked() {
        for bytes in [0, 1, 63, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 5, 3 * HUGE_PAGE] {
            // Twice: the second block may be the first one's memory.
            for _ in 0..2 {
                let mut memory = Memory::zeroed(bytes);
                assert_eq!(memory.len(), bytes);
                let alignment = if bytes < HUGE_PAGE { ALIGNMENT } else { HUGE_PAGE };
                assert_eq!(memory.bytes().as_ptr() as usize % alignment, 0);
                assert!(memory.bytes().iter().all(|&byte| byte == 0));
                memory.bytes_mut().fill(0xff);
            }
        }
    }
}
