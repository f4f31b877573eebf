//! Memory that outlives a recording: parameters, gradients, optimizer state, data sets; and the
//! control block.

use super::series::Series;
use crate::device::cpu::{Memory, touch};
#[cfg(feature = "cuda")]
use crate::device::cuda::{Buffer, Feed};
use crate::device::{Control, Device};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Arc;
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
    memory: Held,
}

/// Values in the memory of the host that regions of several stores can be ([`Store::share`]).
pub struct SharedValues<T> {
    memory: Arc<Memory>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> SharedValues<T> {
    /// A copy of `values`.
    pub fn new(values: &[T]) -> SharedValues<T> {
        let mut memory = Memory::zeroed(size_of_val(values));
        copy(memory.elements_mut(0, values.len()), values);
        SharedValues { memory: Arc::new(memory), len: values.len(), element: PhantomData }
    }

    /// The values.
    pub fn values(&self) -> &[T] {
        self.memory.elements(0, self.len)
    }
}

/// The memory of a region.
enum Held {
    Host(Memory),
    #[cfg(feature = "cuda")]
    Cuda(Buffer),
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
    /// Why a region is not there: the device had no memory for it.
    failed: Option<String>,
    pub(super) series: Series,
    /// The control block on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) feed: Option<Feed>,
}

impl Store {
    /// An empty store on that device.
    pub fn new(device: &Device) -> Store {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        #[allow(unused_mut)]
        let mut store = Store {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            regions: Vec::new(),
            derived: Vec::new(),
            control: Control::new(),
            failed: None,
            series: Series::default(),
            #[cfg(feature = "cuda")]
            feed: None,
        };
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            match Feed::new(cuda) {
                Ok(feed) => store.feed = Some(feed),
                Err(error) => store.failed = Some(problem_of(error)),
            }
        }
        store
    }

    /// The name of a region that is derived from one of these, and not one of these.
    #[cfg(feature = "cuda")]
    pub(super) fn left_behind(&self, written: &[usize]) -> Option<&str> {
        let left = |derived: &&Derived| {
            written.contains(&derived.source) && !written.contains(&derived.target)
        };
        self.derived.iter().find(left).map(|derived| &*self.regions[derived.target].name)
    }

    /// What a GPU is told of steps, with what it is told.
    #[cfg(feature = "cuda")]
    pub(super) fn feed_parts(&mut self) -> Result<(&mut Feed, &mut Control, &mut Series)> {
        match &mut self.feed {
            Some(feed) => Ok((feed, &mut self.control, &mut self.series)),
            None => {
                let problem = self.failed.as_deref().unwrap_or("the store is not one of a GPU");
                Err(Error::device(self.device.name(), problem))
            }
        }
    }

    /// The error of the first region for which the device had no memory.
    pub(super) fn check(&self) -> Result<()> {
        match &self.failed {
            Some(problem) => Err(Error::device(self.device.name(), problem)),
            None => Ok(()),
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

    /// A new region of `len` zeros. Where a GPU has no memory left for it, whatever is done with the
    /// store next is an error that says so; [`Store::try_allocate`] says it at once.
    ///
    /// # Panics
    /// If that is more than the address space holds.
    pub fn allocate(&mut self, name: &str, dtype: DType, len: usize) -> Region {
        let bytes = len.checked_mul(dtype.size());
        let bytes = bytes.unwrap_or_else(|| panic!("region '{name}' of {len} {dtype}: too large"));
        let memory = match self.device {
            Device::Cpu(_) => Held::Host(Memory::zeroed(bytes)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ref cuda) => {
                let what = format!("region '{name}' of {len} {dtype}");
                Held::Cuda(Buffer::zeroed(cuda, &what, bytes).unwrap_or_else(|error| {
                    self.failed.get_or_insert(problem_of(error));
                    Buffer::empty(cuda)
                }))
            }
        };
        self.regions.push(Allocation { name: name.to_owned(), dtype, len, memory });
        Region { store: self.id, index: self.regions.len() - 1 }
    }

    /// A new region of `len` zeros.
    ///
    /// # Errors
    /// The device has no memory left for it, which says how many bytes, or for a region before it.
    ///
    /// # Panics
    /// If that is more than the address space holds.
    pub fn try_allocate(&mut self, name: &str, dtype: DType, len: usize) -> Result<Region> {
        let region = self.allocate(name, dtype, len);
        self.check()?;
        Ok(region)
    }

    /// Touches the pages of a new region, which holds zeros, so that a processor's first step need not.
    /// A GPU has cleared its memory itself.
    ///
    /// # Errors
    /// The region is one of another store, or there was no memory for it.
    pub(crate) fn touch(&mut self, region: Region) -> Result<()> {
        if region.store != self.id {
            return Err(Error::operation("store", "the region is one of another store"));
        }
        self.check()?;
        match &mut self.regions[region.index].memory {
            Held::Host(memory) => touch(memory.bytes_mut()),
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => {}
        }
        Ok(())
    }

    /// A new region that holds `values`.
    pub fn upload<T: Element>(&mut self, name: &str, values: &[T]) -> Region {
        let region = self.allocate(name, T::DTYPE, values.len());
        match &mut self.regions[region.index].memory {
            Held::Host(memory) => copy(memory.elements_mut(0, values.len()), values),
            #[cfg(feature = "cuda")]
            Held::Cuda(buffer) if self.failed.is_none() => {
                if let Err(error) = buffer.write(0, bytemuck::cast_slice(values)) {
                    self.failed = Some(problem_of(error));
                }
            }
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => {}
        }
        region
    }

    /// A new region that holds what `values` does. A processor reads it where it lies, and nobody can write it: so stores
    /// of runs side by side need one copy. A GPU gets a copy of its own.
    pub fn share<T: Element>(&mut self, name: &str, values: &SharedValues<T>) -> Region {
        match self.device {
            Device::Cpu(_) => {
                let memory = Held::Host(Memory::shared(&values.memory));
                let (name, len) = (name.to_owned(), values.len);
                self.regions.push(Allocation { name, dtype: T::DTYPE, len, memory });
                Region { store: self.id, index: self.regions.len() - 1 }
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => self.upload(name, values.values()),
        }
    }

    /// Refuses to write regions that are shared.
    ///
    /// # Errors
    /// One is, by its name.
    pub(super) fn check_written(&self, regions: &[usize]) -> Result<()> {
        let shared = |region: &Allocation| match &region.memory {
            Held::Host(memory) => memory.is_shared(),
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => false,
        };
        match regions.iter().map(|&index| &self.regions[index]).find(|region| shared(region)) {
            Some(region) => {
                let place = format!("region '{}'", region.name);
                Err(Error::operation(place, "it is shared with other stores: it is only read"))
            }
            None => Ok(()),
        }
    }

    fn checked<T: Element>(&self, region: Region, offset: usize, len: usize) -> Result<()> {
        if region.store != self.id {
            return Err(Error::operation("store", "the region is one of another store"));
        }
        self.check()?;
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

    /// Element type of a region.
    ///
    /// # Panics
    /// If the region is one of another store.
    pub fn dtype(&self, region: Region) -> DType {
        assert_eq!(region.store, self.id, "the region is one of another store");
        self.regions[region.index].dtype
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
        let start = offset * size_of::<T>();
        match &self.regions[region.index].memory {
            Held::Host(memory) => values.copy_from_slice(memory.elements(start, values.len())),
            #[cfg(feature = "cuda")]
            Held::Cuda(buffer) => buffer.read(start, bytemuck::cast_slice_mut(values))?,
        }
        Ok(())
    }

    /// Copies `values` from the host to the region, from element `offset` on.
    ///
    /// # Errors
    /// Another element type, past the end, or a region of another store.
    pub fn write<T: Element>(&mut self, region: Region, offset: usize, values: &[T]) -> Result<()> {
        self.checked::<T>(region, offset, values.len())?;
        self.check_written(&[region.index])?;
        let start = offset * size_of::<T>();
        match &mut self.regions[region.index].memory {
            Held::Host(memory) => copy(memory.elements_mut(start, values.len()), values),
            #[cfg(feature = "cuda")]
            Held::Cuda(buffer) => buffer.write(start, bytemuck::cast_slice(values))?,
        }
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
        self.check_written(&[region.index])?;
        let Allocation { memory, len, .. } = &mut self.regions[region.index];
        match memory {
            Held::Host(memory) => write(memory.elements_mut(0, *len)),
            #[cfg(feature = "cuda")]
            Held::Cuda(buffer) => {
                let mut values = vec![T::zeroed(); *len];
                buffer.read(0, bytemuck::cast_slice_mut(&mut values))?;
                write(&mut values);
                buffer.write(0, bytemuck::cast_slice(&values))?;
            }
        }
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
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn refresh(&mut self) -> Result<()> {
        for derived in self.derived.iter_mut().filter(|derived| derived.stale) {
            let pair = self.regions.get_disjoint_mut([derived.source, derived.target]);
            let Ok([source, target]) = pair else { unreachable!("`derive` checked them") };
            match (&source.memory, &mut target.memory) {
                (Held::Host(source), Held::Host(target)) => {
                    (derived.refresh)(source.bytes(), target.bytes_mut());
                }
                #[cfg(feature = "cuda")]
                (Held::Cuda(source), Held::Cuda(target)) => {
                    let [mut from, mut to] = [source.len(), target.len()].map(|len| vec![0; len]);
                    source.read(0, &mut from)?;
                    (derived.refresh)(&from, &mut to);
                    target.write(0, &to)?;
                }
                #[cfg(feature = "cuda")]
                _ => unreachable!("all regions of a store are of one device"),
            }
            derived.stale = false;
        }
        Ok(())
    }

    /// The memory of all regions, for a store of the CPU.
    pub(super) fn parts(&mut self) -> (impl Iterator<Item = &mut Memory>, &Control) {
        let memories = self.regions.iter_mut().map(|region| match &mut region.memory {
            Held::Host(memory) => memory,
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => unreachable!("a program of the CPU has a store of the CPU"),
        });
        (memories, &self.control)
    }

    /// The memory of all regions, for a store of a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn buffers(&self) -> Vec<&Buffer> {
        let buffers = self.regions.iter().map(|region| match &region.memory {
            Held::Cuda(buffer) => buffer,
            Held::Host(_) => unreachable!("a program of a GPU has a store of that"),
        });
        buffers.collect()
    }
}

/// What is wrong, without the device's name.
#[cfg(feature = "cuda")]
fn problem_of(error: Error) -> String {
    match error {
        Error::Device { problem, .. } => problem,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;

    #[test]
    fn regions_hold_what_was_written() {
        let device = Device::cpu(2).expect("a CPU");
        let mut store = Store::new(&device);
        let values: Vec<u32> = (0..(2 * COPIED / 4 + 77) as u32).collect();
        let region = store.upload("values", &values);
        let copy = store.allocate("copy", DType::U32, values.len());
        store.derive(region, copy, |from, to| to.copy_from_slice(from));
        store.refresh().expect("a CPU");
        let read = |store: &Store, region| {
            let mut read = vec![0u32; values.len()];
            store.read(region, 0, &mut read).expect("the region is as long");
            read
        };
        assert!(read(&store, region) == values && read(&store, copy) == values);
        store
            .write_with(region, |all: &mut [u32]| all.iter_mut().for_each(|x| *x += 1))
            .expect("its type");
        store.refresh().expect("a CPU");
        assert!(read(&store, copy).iter().zip(&values).all(|(found, before)| *found == before + 1));
        assert!(store.write_with(region, |_: &mut [f32]| ()).is_err());
        let other = Store::new(&device).upload("other", &[0u32]);
        assert!(store.write_with(other, |_: &mut [u32]| ()).is_err());
    }

    #[test]
    fn shared_regions_are_read_in_place_and_never_written() {
        let device = Device::cpu(1).expect("a CPU");
        let shared = SharedValues::new(&[1f32, 2.0, 3.0]);
        let mut stores = [Store::new(&device), Store::new(&device)];
        for store in &mut stores {
            let region = store.share("values", &shared);
            let mut read = [0f32; 2];
            store.read(region, 1, &mut read).expect("its values");
            assert_eq!(read, [2.0, 3.0]);
            for refused in [
                store.write(region, 0, &[4f32]),
                store.write_with(region, |values: &mut [f32]| values.fill(4.0)),
            ] {
                let error = refused.expect_err("written").to_string();
                assert!(error.contains("'values'") && error.contains("only read"), "{error}");
            }
            // Nor by a recording: a sum that is placed there.
            let mut tape = Tape::new(store);
            let own = tape.persistent("own", region, 0, [3]).expect("the whole of it");
            let twice = crate::ops::add(&mut tape, own, own).expect("of one shape");
            tape.place(twice, region, 0).expect("as long");
            let error = tape.compile(store).err().expect("it writes").to_string();
            assert!(error.contains("'values'") && error.contains("only read"), "{error}");
        }
        assert_eq!(shared.values(), [1.0, 2.0, 3.0]);
    }
}
