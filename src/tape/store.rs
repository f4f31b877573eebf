//! Memory that outlives a recording: parameters, gradients, optimizer state, data sets; and the
//! control block.

use crate::device::cpu::Memory;
use crate::device::{Control, Device};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element};
use rayon::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that one thread copies at a time: a huge page, which the thread that touches it first also
/// clears.
const COPIED: usize = 2 << 20;

/// Copies `from` to `to`, which is as long.
fn copy<T: Element>(to: &mut [T], from: &[T]) {
    let part = COPIED / size_of::<T>();
    match from.len() <= part {
        true => to.copy_from_slice(from),
        false => to
            .par_chunks_mut(part)
            .zip(from.par_chunks(part))
            .for_each(|(to, from)| to.copy_from_slice(from)),
    }
}

/// A persistent region of a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    pub(super) store: u64,
    pub(super) index: usize,
}

struct Allocation {
    name: String,
    dtype: DType,
    len: usize,
    memory: Memory,
}

/// Makes the bytes of a derived region from those of its source.
type Refresh = Box<dyn Fn(&[u8], &mut [u8]) + Send>;

/// A region that holds the values of another one in another form.
struct Derived {
    source: usize,
    target: usize,
    refresh: Refresh,
    /// Whether the source changed and the target did not follow.
    stale: bool,
}

/// Named regions of device memory that recordings read and write, and the values that change from
/// step to step. All recordings of one training run share one store.
pub struct Store {
    id: u64,
    device: Device,
    regions: Vec<Allocation>,
    derived: Vec<Derived>,
    control: Control,
}

impl Store {
    /// An empty store on that device.
    pub fn new(device: &Device) -> Store {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Store {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            regions: Vec::new(),
            derived: Vec::new(),
            control: Control::new(),
        }
    }

    /// The device that holds the memory.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The values that change from step to step.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The values that change from step to step, to set them or to make slots.
    pub fn control_mut(&mut self) -> &mut Control {
        &mut self.control
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn region_sizes(&self) -> Vec<(usize, DType)> {
        self.regions.iter().map(|r| (r.len * r.dtype.size(), r.dtype)).collect()
    }

    /// A new region of `len` zeros.
    ///
    /// # Panics
    /// If that is more than the address space holds.
    pub fn allocate(&mut self, name: &str, dtype: DType, len: usize) -> Region {
        let bytes = len.checked_mul(dtype.size());
        let bytes = bytes.unwrap_or_else(|| panic!("region '{name}' of {len} {dtype}: too large"));
        let memory = match self.device {
            Device::Cpu(_) => Memory::zeroed(bytes),
        };
        self.regions.push(Allocation { name: name.to_owned(), dtype, len, memory });
        Region { store: self.id, index: self.regions.len() - 1 }
    }

    /// A new region that holds `values`.
    pub fn upload<T: Element>(&mut self, name: &str, values: &[T]) -> Region {
        let region = self.allocate(name, T::DTYPE, values.len());
        let memory = &mut self.regions[region.index].memory;
        copy(memory.elements_mut(0, values.len()), values);
        region
    }

    fn checked<T: Element>(&self, region: Region, offset: usize, len: usize) -> Result<()> {
        if region.store != self.id {
            return Err(Error::operation("store", "the region is one of another store"));
        }
        let found = &self.regions[region.index];
        let fits = offset.checked_add(len).is_some_and(|end| end <= found.len);
        if found.dtype != T::DTYPE || !fits {
            let problem = format!(
                "{len} elements of {} from element {offset} on asked for, it has {} of {}",
                T::DTYPE,
                found.len,
                found.dtype
            );
            return Err(Error::operation(format!("region '{}'", found.name), problem));
        }
        Ok(())
    }

    /// Number of elements of a region.
    ///
    /// # Panics
    /// If the region is one of another store.
    pub fn len(&self, region: Region) -> usize {
        assert_eq!(region.store, self.id, "the region is one of another store");
        self.regions[region.index].len
    }

    /// Bytes of all regions.
    pub fn bytes(&self) -> usize {
        self.regions.iter().map(|r| r.len * r.dtype.size()).sum()
    }

    /// Copies `values.len()` elements from `offset` on to the host.
    ///
    /// # Errors
    /// Another element type, past the end, or a region of another store.
    pub fn read<T: Element>(&self, region: Region, offset: usize, values: &mut [T]) -> Result<()> {
        self.checked::<T>(region, offset, values.len())?;
        let memory = &self.regions[region.index].memory;
        values.copy_from_slice(memory.elements(offset * size_of::<T>(), values.len()));
        Ok(())
    }

    /// Copies `values` from the host to the region, from element `offset` on.
    ///
    /// # Errors
    /// Another element type, past the end, or a region of another store.
    pub fn write<T: Element>(&mut self, region: Region, offset: usize, values: &[T]) -> Result<()> {
        self.checked::<T>(region, offset, values.len())?;
        let memory = &mut self.regions[region.index].memory;
        copy(memory.elements_mut(offset * size_of::<T>(), values.len()), values);
        self.note_written(&[region.index]);
        Ok(())
    }

    /// Lets `write` set all elements of a region in place, on the host.
    ///
    /// # Errors
    /// Another element type, or a region of another store.
    pub fn write_with<T: Element>(
        &mut self,
        region: Region,
        write: impl FnOnce(&mut [T]),
    ) -> Result<()> {
        self.checked::<T>(region, 0, 0)?;
        let Allocation { memory, len, .. } = &mut self.regions[region.index];
        write(memory.elements_mut(0, *len));
        self.note_written(&[region.index]);
        Ok(())
    }

    /// States that `target` holds the values of `source` in another form, such as weights packed
    /// for products. `refresh` makes the bytes of the one from those of the other: before the next
    /// replay after the host, or a recording that does not write `target` too, wrote `source`. Within
    /// one replay nothing is made anew: a recording that writes `source` and goes on to read `target`
    /// must write that too.
    ///
    /// # Panics
    /// If a region is one of another store, both are the same, or one is derived and the other's
    /// source.
    pub fn derive(
        &mut self,
        source: Region,
        target: Region,
        refresh: impl Fn(&[u8], &mut [u8]) + Send + 'static,
    ) {
        for region in [source, target] {
            assert_eq!(region.store, self.id, "the region is one of another store");
        }
        assert_ne!(source.index, target.index, "a region cannot be derived from itself");
        let chained = self
            .derived
            .iter()
            .any(|other| other.target == source.index || other.source == target.index);
        assert!(!chained, "a derived region cannot be the source of another one");
        let (source, target, refresh) = (source.index, target.index, Box::new(refresh));
        self.derived.push(Derived { source, target, refresh, stale: true });
    }

    /// Regions of these numbers were written.
    pub(super) fn note_written(&mut self, regions: &[usize]) {
        for derived in &mut self.derived {
            if regions.contains(&derived.source) && !regions.contains(&derived.target) {
                derived.stale = true;
            }
        }
    }

    /// Brings derived regions up to date.
    pub(super) fn refresh(&mut self) {
        for derived in self.derived.iter_mut().filter(|derived| derived.stale) {
            let pair = self.regions.get_disjoint_mut([derived.source, derived.target]);
            let Ok([source, target]) = pair else { unreachable!("`derive` checked them") };
            (derived.refresh)(source.memory.bytes(), target.memory.bytes_mut());
            derived.stale = false;
        }
    }

    pub(super) fn parts(&mut self) -> (impl Iterator<Item = &mut Memory>, &Control) {
        (self.regions.iter_mut().map(|region| &mut region.memory), &self.control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_hold_what_was_written() {
        let device = Device::cpu(2).expect("a CPU");
        let mut store = Store::new(&device);
        let values: Vec<u32> = (0..(2 * COPIED / 4 + 77) as u32).collect();
        let region = store.upload("values", &values);
        let copy = store.allocate("copy", DType::U32, values.len());
        store.derive(region, copy, |from, to| to.copy_from_slice(from));
        store.refresh();
        let read = |store: &Store, region| {
            let mut read = vec![0u32; values.len()];
            store.read(region, 0, &mut read).expect("the region is as long");
            read
        };
        assert!(read(&store, region) == values && read(&store, copy) == values);
        store
            .write_with(region, |all: &mut [u32]| all.iter_mut().for_each(|x| *x += 1))
            .expect("its type");
        store.refresh();
        assert!(read(&store, copy).iter().zip(&values).all(|(found, before)| *found == before + 1));
        assert!(store.write_with(region, |_: &mut [f32]| ()).is_err());
        let other = Store::new(&device).upload("other", &[0u32]);
        assert!(store.write_with(other, |_: &mut [u32]| ()).is_err());
    }
}
