//! Host memory for arenas and persistent regions: zeroed, aligned to a cache line.

use crate::tensor::Element;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of every region and of every buffer in an arena, in bytes.
pub const ALIGNMENT: usize = 64;

/// Alignment of large regions: a huge page, so that the kernel may back them with one.
const HUGE_PAGE: usize = 2 << 20;

/// An owned, zero-initialised, aligned block of bytes.
pub struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: `Memory` owns its block like a `Vec<u8>` does; no interior mutability is offered here.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads, see above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A block of that many zero bytes.
    pub fn zeroed(bytes: usize) -> Memory {
        let alignment = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
        let layout = Layout::from_size_align(bytes.max(1), alignment)
            .unwrap_or_else(|_| panic!("{bytes} bytes are more than the address space holds"));
        // SAFETY: the size is at least 1.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Memory { start, layout, bytes }
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

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
