//! What a device is told of the steps to come, and what it keeps of those that are over.
//!
//! A row for each step holds its control block; a launch uploads the rows of all its steps in one copy, and
//! `kernels/turn.cu`, between two steps, moves the next row to where kernels read it. So a graph of many steps
//! has nothing in it that changes from step to step. What steps are asked to keep, such as their losses, stays
//! on the device until it is fetched, in one copy as well.

use super::Cuda;
use super::memory::{Buffer, Pinned};
use crate::device::Control;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Floats that a step keeps at most. As in `kernels/turn.cu`.
pub const KEPT: usize = 8;

/// Words of 64 bits before the first row. As in `kernels/turn.cu`.
const HEADER: usize = 8;

/// Slots that a control block may have.
const SLOTS: usize = 1024;

/// Words of an upload: rows of the largest control block for thirty steps, and of common ones for far more.
const WORDS: usize = 32 << 10;

/// Uploads of that size that may be on their way before the next one waits.
const UPLOADS: usize = 4;

/// Steps whose results the device holds.
const RESULTS: usize = 256;

/// The control block of a store on its device, the rows of the steps to come, and kept results.
pub struct Feed {
    device: Arc<Cuda>,
    block: Buffer,
    rows: Buffer,
    halted: Buffer,
    results: Buffer,
    staging: Pinned,
    /// Words of the staging memory that may be on their way.
    staged: usize,
    fetched: Pinned,
    /// Steps whose results are on the device only.
    pending: usize,
}

/// Where the parts of a feed lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) block: u64,
    pub(super) rows: u64,
    pub(super) halted: u64,
    pub(super) results: u64,
}

impl Feed {
    /// A feed without rows.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(device: &Arc<Cuda>) -> Result<Feed> {
        let buffer = |what, bytes| Buffer::zeroed(device, what, bytes);
        Ok(Feed {
            device: Arc::clone(device),
            block: buffer("the control block", SLOTS * 8)?,
            rows: buffer("the control blocks of steps to come", WORDS * 8)?,
            halted: buffer("a flag", 4)?,
            results: buffer("results of steps", RESULTS * KEPT * 4)?,
            staging: Pinned::new(device, UPLOADS * WORDS * 8)?,
            staged: 0,
            fetched: Pinned::new(device, RESULTS * KEPT * 4)?,
            pending: 0,
        })
    }

    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            block: self.block.address(0),
            rows: self.rows.address(0),
            halted: self.halted.address(0),
            results: self.results.address(0),
        }
    }

    /// Steps that can be uploaded next: 0 where results have to be fetched first.
    pub fn room(&self, control: &Control) -> usize {
        let row = control.values().len().max(1);
        ((WORDS - HEADER) / row).saturating_sub(1).min(RESULTS - self.pending)
    }

    /// Copies the control blocks of the next steps to the device, after all that was given to it before:
    /// `count` of them in `rows`, one after another. Those of a series are `fresh` at its beginning: a step of an
    /// earlier one that was not finite does not stop them. What is kept of them is fetched later with
    /// `keep`, and else written over by what comes next.
    ///
    /// # Errors
    /// There are more slots than a device is told of, or it failed.
    ///
    /// # Panics
    /// If there are more rows than there is [`Feed::room`] for.
    pub fn upload(
        &mut self,
        control: &Control,
        count: usize,
        rows: &[u64],
        fresh: bool,
        keep: bool,
    ) -> Result<()> {
        let slots = control.values().len();
        if slots > SLOTS {
            let problem = format!(
                "the control block has {slots} slots, of which a GPU is told {SLOTS}: not '{}'",
                control.name(SLOTS)
            );
            return Err(Error::device(self.device.name(), problem));
        }
        assert!(rows.len() == count * slots && count <= self.room(control), "{count} rows");
        let header = [slots, count, self.pending, usize::from(fresh), 0, 0, 0, 0];
        let words = HEADER + slots + rows.len();
        if self.staged + words > UPLOADS * WORDS {
            self.device.synchronize()?;
            self.staged = 0;
        }
        let start = self.staged * 8;
        let staging = &mut self.staging.bytes_mut()[start..start + words * 8];
        let (head, rest) = staging.split_at_mut(HEADER * 8);
        let (halted, rest) = rest.split_at_mut(slots * 8);
        head.copy_from_slice(bytemuck::cast_slice(&header.map(|word| word as u64)));
        halted.copy_from_slice(bytemuck::cast_slice(&control.halted_values()));
        rest.copy_from_slice(bytemuck::cast_slice(rows));
        self.staged += words;
        if keep {
            self.pending += count;
        }
        self.rows.copy_from(&self.staging, start, words * 8)
    }

    /// Steps whose results are not fetched yet.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Appends what each step since the last time kept, once all that was given to the device is done.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn fetch(&mut self, into: &mut Vec<[f32; KEPT]>) -> Result<()> {
        let first = into.len();
        into.resize(first + self.pending, [0.0; KEPT]);
        self.fetched.fetch(&self.results, 0, bytemuck::cast_slice_mut(&mut into[first..]))?;
        self.pending = 0;
        // All uploads are over.
        self.staged = 0;
        Ok(())
    }
}
