//! Host memory for arenas and persistent regions: zeroed, aligned to a cache line.

use crate::tensor::Element;
use rayon::prelude::*;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every region and of every buffer in an arena, in bytes.
pub const ALIGNMENT: usize = 64;

/// Alignment of large regions, and what their size is rounded up to: a huge page. Of 4 KB pages a
/// pass over some tens of MB needs more than an address cache holds, and the hardware does not
/// prefetch across them.
const HUGE_PAGE: usize = 2 << 20;

/// A zero-initialised, aligned block of bytes; or another one's, to read.
pub struct Memory {
    /// The first byte that is aligned.
    start: NonNull<u8>,
    bytes: usize,
    block: Block,
}

/// Whose the bytes are.
enum Block {
    /// What was allocated, with room to align in.
    Own { whole: NonNull<u8>, layout: Layout },
    /// Those of another one, which lives as long.
    Shared { _owner: Arc<Memory> },
}

// SAFETY: `Memory` owns its block like a `Vec<u8>` does, or shares it like an `Arc<[u8]>`, which is only read
// (`bytes_mut` asserts it); no interior mutability is offered here.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads, see above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A block of that many zero bytes. Large ones that are new are not written here: the system hands
    /// out cleared pages, and clears each when it is touched first, on the thread that does.
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
        Memory { start, bytes, block: Block::Own { whole, layout } }
    }

    /// The same bytes, to read where they lie.
    pub fn shared(of: &Arc<Memory>) -> Memory {
        let block = Block::Shared { _owner: Arc::clone(of) };
        Memory { start: of.start, bytes: of.bytes, block }
    }

    /// Whether the bytes are another one's: nobody may write them.
    pub fn is_shared(&self) -> bool {
        matches!(self.block, Block::Shared { .. })
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
    ///
    /// # Panics
    /// If it is shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(!self.is_shared(), "shared memory is only read");
        // SAFETY: as in `bytes`; `self` is borrowed exclusively, and owns them: checked above.
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

    /// The first byte, for programs. They only read what is shared: no tape is compiled that writes it.
    pub(super) fn start(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Writes to each page of new memory, on all threads: so each page is cleared by one thread, and is as
/// large as it can be. (A page that is read first is one of zeros that all share, and on some systems
/// is made anew in small pages when it is written.) What the bytes held is lost.
pub fn touch(bytes: &mut [u8]) {
    const PAGE: usize = 4096;
    let touch = |part: &mut [u8]| part.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0);
    match bytes.len() {
        ..=HUGE_PAGE => touch(bytes),
        _ => bytes.par_chunks_mut(HUGE_PAGE).for_each(touch),
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
        if let Block::Own { whole, layout } = self.block {
            // SAFETY: `whole` came from `alloc_zeroed` with this layout and is freed once, by its owner.
            unsafe { dealloc(whole.as_ptr(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_read_in_place_and_outlives_its_owner() {
        let mut owner = Memory::zeroed(100);
        owner.bytes_mut()[99] = 7;
        let owner = Arc::new(owner);
        let mut shared = Memory::shared(&owner);
        assert!(shared.is_shared() && !owner.is_shared());
        assert_eq!(shared.bytes().as_ptr(), owner.bytes().as_ptr());
        drop(owner);
        assert_eq!((shared.len(), shared.bytes()[99]), (100, 7));
        let write = std::panic::AssertUnwindSafe(|| shared.bytes_mut()[0] = 1);
        assert!(std::panic::catch_unwind(write).is_err(), "shared memory was written");
        assert_eq!(shared.bytes()[0], 0);
    }

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
