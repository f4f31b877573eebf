//! Memory of the device, and pages of the host that it reads and writes itself.
#![allow(unsafe_code)]

use super::Cuda;
use crate::error::Result;
use cudarc::driver::sys;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of staging memory for one part of a copy: some 0.3 ms of a PCIe link.
const PART: usize = 4 << 20;

/// Fewest bytes of a block of pinned pages, so that there are few sizes to be used again.
const SMALLEST: usize = 64 << 10;

/// A block of device memory, aligned to 256 bytes.
pub struct Buffer {
    device: Arc<Cuda>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// A block of that many zero bytes.
    ///
    /// # Errors
    /// The device does not have so much memory left; `what` says what for.
    pub fn zeroed(device: &Arc<Cuda>, what: &str, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer { device: Arc::clone(device), address: 0, bytes };
        if bytes == 0 {
            return Ok(buffer);
        }
        device.enter()?;
        let what = format!("{bytes} bytes for {what}");
        // SAFETY: writes the address; freed in `drop`.
        device.check(&what, unsafe { sys::cuMemAlloc_v2(&mut buffer.address, bytes) })?;
        // SAFETY: the block is as long, and of this device.
        let cleared = unsafe { sys::cuMemsetD8Async(buffer.address, 0, bytes, device.stream()) };
        device.check(&what, cleared)?;
        Ok(buffer)
    }

    /// A block without bytes.
    pub fn empty(device: &Arc<Cuda>) -> Buffer {
        Buffer { device: Arc::clone(device), address: 0, bytes: 0 }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the block has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The device's address of a byte; it may be the one past the end.
    pub(super) fn address(&self, offset: usize) -> u64 {
        assert!(offset <= self.bytes, "byte {offset} of {}", self.bytes);
        self.address + offset as u64
    }

    /// Copies `from` to the block from byte `offset` on, by way of pinned pages.
    ///
    /// # Errors
    /// The device failed, here or before.
    ///
    /// # Panics
    /// If that is past the end.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        self.check_range(offset, from.len());
        if from.is_empty() {
            return Ok(());
        }
        let mut parts = [self.staging(from.len())?, self.staging(from.len().saturating_sub(PART))?];
        for (number, part) in from.chunks(PART).enumerate() {
            // The one is filled while the other is on its way.
            let staging = &mut parts[number % 2];
            staging.bytes_mut()[..part.len()].copy_from_slice(part);
            self.device.synchronize()?;
            let to = self.address(offset + number * PART);
            // SAFETY: both blocks are as long, and the next use of this staging memory waits.
            let copied = unsafe {
                let from = staging.start.as_ptr().cast();
                sys::cuMemcpyHtoDAsync_v2(to, from, part.len(), self.device.stream())
            };
            self.device.check("a copy to the device", copied)?;
        }
        // The staging memory is given back.
        self.device.synchronize()
    }

    /// Copies so many bytes of pinned memory from byte `start` on to the beginning of the block, after all
    /// that was given to the device before, and does not wait for it: until then nobody may write them.
    pub(super) fn copy_from(&mut self, from: &Pinned, start: usize, bytes: usize) -> Result<()> {
        self.check_range(0, bytes);
        assert!(start + bytes <= from.bytes, "{bytes} bytes from {start} on of {}", from.bytes);
        self.device.enter()?;
        // SAFETY: both are as long, as was just checked. The pinned pages outlive the copy, as dropping them
        // waits for the device.
        let copied = unsafe {
            let from = from.start.as_ptr().add(start).cast();
            sys::cuMemcpyHtoDAsync_v2(self.address(0), from, bytes, self.device.stream())
        };
        self.device.check("a copy to the device", copied)
    }

    /// Copies the block's bytes from `offset` on to the host, once all that was given to the device
    /// before is done.
    ///
    /// # Errors
    /// The device failed, here or before.
    ///
    /// # Panics
    /// If that is past the end.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.check_range(offset, to.len());
        if to.is_empty() {
            return self.device.synchronize();
        }
        let mut staging = self.staging(to.len())?;
        for (number, part) in to.chunks_mut(PART).enumerate() {
            staging.fetch(self, offset + number * PART, part)?;
        }
        Ok(())
    }

    fn check_range(&self, offset: usize, len: usize) {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{len} bytes from {offset} on of a block of {}", self.bytes);
    }

    /// Staging memory for a copy of that many bytes.
    fn staging(&self, bytes: usize) -> Result<Pinned> {
        Pinned::new(&self.device, bytes.clamp(1, PART))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.bytes, self.device.name())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What fails here has failed before, and was said then.
        if self.address != 0 && self.device.synchronize().is_ok() {
            // SAFETY: from `cuMemAlloc`, freed once, and nothing that was given to the device is left.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Pages of the host that stay where they are, so that the device copies from and to them itself.
pub(super) struct Pinned {
    device: Arc<Cuda>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: owns its pages as a `Vec<u8>` does; the device touches them only within the methods here,
// and those of `Program`, which wait for it.
unsafe impl Send for Pinned {}
// SAFETY: what is behind the address changes through `&mut self` only.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// So many bytes, at least one. Blocks that were given back are used again: the driver takes long
    /// to pin pages, and stops the device for it.
    pub(super) fn new(device: &Arc<Cuda>, bytes: usize) -> Result<Pinned> {
        let bytes = bytes.next_power_of_two().max(SMALLEST);
        if let Some((start, bytes)) = device.unused_pages(bytes) {
            return Ok(Pinned { device: Arc::clone(device), start, bytes });
        }
        device.enter()?;
        let mut start = std::ptr::null_mut();
        // SAFETY: writes the address; freed when the device is closed. Without flags: the host reads it too.
        let result = unsafe { sys::cuMemHostAlloc(&mut start, bytes, 0) };
        let what = format!("{bytes} bytes of pinned host memory");
        device.check(&what, result)?;
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(crate::Error::device(device.name(), what));
        };
        // SAFETY: the block is as long and nobody else has it.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { device: Arc::clone(device), start, bytes })
    }

    /// The whole block, to write.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: owns as many initialised bytes, and is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Copies from device memory to `to`, which is no longer than this, and waits for it.
    pub(super) fn fetch(&mut self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<()> {
        from.check_range(offset, to.len());
        assert!(to.len() <= self.bytes, "{} bytes by way of {}", to.len(), self.bytes);
        self.device.enter()?;
        // SAFETY: both blocks are as long as that, and it is waited for.
        let copied = unsafe {
            let (to, len) = (self.start.as_ptr().cast(), to.len());
            sys::cuMemcpyDtoHAsync_v2(to, from.address(offset), len, self.device.stream())
        };
        self.device.check("a copy from the device", copied)?;
        self.device.synchronize()?;
        // SAFETY: as many initialised bytes, which the device has written.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), to.len()) });
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What fails here has failed before, and was said then; the pages stay.
        if self.device.synchronize().is_ok() {
            self.device.give_back_pages(self.start, self.bytes);
        }
    }
}
