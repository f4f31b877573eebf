//! Series: replays that are given to the device together, as they differ by the control block alone.

use super::recording::{Engine, Recording};
use super::store::Store;
use crate::error::{Error, Result};

/// Floats that each replay of a series keeps at most.
pub const KEPT: usize = 8;

/// What the replays of a series kept so far.
#[derive(Default)]
pub(super) struct Series {
    /// Whether one was begun and not collected.
    pub(super) open: bool,
    /// Whether a value that is to stop it was not finite; on a GPU the device knows.
    halted: bool,
    kept: Vec<[f32; KEPT]>,
    /// Control blocks of replays, one after another.
    #[cfg(feature = "cuda")]
    pub(super) rows: Vec<u64>,
}

impl Recording {
    /// Replays `steps` times, with what `set` writes into the control block before each, whose number it is
    /// told. What the recording keeps ([`Tape::keep`](super::Tape::keep)) of each is given by
    /// [`Store::collect`], and no later replay runs before that, but for others of the same series: several
    /// recordings may take part.
    ///
    /// A GPU is given all of them at once, as few graphs of several steps each, with one copy to it and no
    /// wait. So nothing but the control block can change between them, and where something else would have
    /// to, that is an error.
    ///
    /// # Errors
    /// As [`Recording::replay`]. With more than one step: the recording reads an input, which would have
    /// the same value in all of them; on a GPU it writes a region that another one is derived from and
    /// not that one, so that the host would have to make it anew between them.
    pub fn enqueue(
        &mut self,
        store: &mut Store,
        steps: usize,
        mut set: impl FnMut(usize, &mut crate::device::Control),
    ) -> Result<()> {
        if let (Some(name), true) = (self.inputs.first(), steps > 1) {
            let problem = format!(
                "the host writes the input '{name}', which would be the same in all of {steps} steps: \
                 what changes is read from the control block, or from a region at a place that it says"
            );
            return Err(Error::operation("series", problem));
        }
        self.check_store(store)?;
        match &mut self.engine {
            Engine::Cpu(_) => {
                for step in 0..steps {
                    set(step, store.control_mut());
                    self.step_on_cpu(store)?;
                }
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => {
                if let (Some(name), true) = (store.left_behind(&self.written), steps > 1) {
                    let problem = format!(
                        "region '{name}' is derived from one that each of {steps} steps writes, and the \
                         host would have to make it anew between them"
                    );
                    return Err(Error::operation("series", problem));
                }
                self.begin(store)?;
                let Engine::Cuda(cuda) = &mut self.engine else { unreachable!("just matched") };
                cuda.enqueue(store, steps, &mut set)?;
            }
        }
        store.series.open |= steps > 0;
        Ok(())
    }

    fn step_on_cpu(&mut self, store: &mut Store) -> Result<()> {
        if store.series.halted {
            store.series.kept.push([f32::NAN; KEPT]);
            return Ok(());
        }
        self.begin(store)?;
        let Engine::Cpu(cpu) = &mut self.engine else { unreachable!("the caller matched") };
        cpu.replay(store);
        let (mut row, mut count) = ([0f32; KEPT], 0);
        for &(span, stops) in &self.kept {
            let values = cpu.elements::<f32>(span);
            store.series.halted |= stops && values.iter().any(|value| !value.is_finite());
            row[count..count + values.len()].copy_from_slice(values);
            count += values.len();
        }
        store.series.kept.push(row);
        Ok(())
    }
}

impl Store {
    /// Ends a series: waits until its replays are done, and writes over `kept` what each of them kept, in
    /// their order.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn collect(&mut self, kept: &mut Vec<[f32; KEPT]>) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.fetch_kept()?;
        kept.clear();
        std::mem::swap(kept, &mut self.series.kept);
        (self.series.open, self.series.halted) = (false, false);
        Ok(())
    }

    /// Brings what replays kept from the device to the host. The series goes on.
    #[cfg(feature = "cuda")]
    pub(super) fn fetch_kept(&mut self) -> Result<()> {
        match &mut self.feed {
            Some(feed) if feed.pending() > 0 => feed.fetch(&mut self.series.kept),
            _ => Ok(()),
        }
    }
}
