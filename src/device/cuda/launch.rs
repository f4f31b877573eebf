//! What an operation gives to run on a GPU: kernels of `kernels/`, with their geometry and arguments,
//! one after another. Plain data: addresses are put in when the whole tape is laid out.

use crate::device::{F32Slot, Target, U64Slot};
use crate::tensor::DType;
use std::fmt;

/// Blocks of a cluster that every device with clusters can run.
const CLUSTER: usize = 8;

/// A place in device memory, as a node names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No memory: a null pointer, as kernels take it for what nobody wants.
    Null,
    /// The node's input of that number.
    Input(usize),
    /// The node's output of that number; null where nobody reads it.
    Output(usize),
    /// The node's input of the first number, from that byte on.
    InputFrom(usize, usize),
    /// The node's output of the first number, from that byte on; null where nobody reads it.
    OutputFrom(usize, usize),
    /// The node's scratch memory from that byte on.
    Scratch(usize),
    /// A table that was given to [`Launches::table`].
    Table(usize),
    /// The control block.
    Control,
}

/// A tensor that kernels copy in tiles whose rows are 128 bytes long: `TensorMap` of `kernels/common/hopper.cuh`. Axes are
/// in order from the innermost one; there are two for bf16, three for f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// The first element. Where that is no multiple of 16 bytes, or null, the kernel gets zeros and may not use the map.
    pub tensor: Place,
    /// `Bf16` or `F32`.
    pub dtype: DType,
    /// Elements along each axis.
    pub extents: Vec<usize>,
    /// Elements from one to the next along each axis but the first: multiples of 16 bytes.
    pub strides: Vec<usize>,
    /// Rows of a tile.
    pub rows: u32,
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// `u32`
    U32(u32),
    /// `u64`
    U64(u64),
    /// `float`
    F32(f32),
    /// `u32`: the number of a slot of the control block, which has to be one of the tape's store.
    Slot(usize),
    /// A pointer.
    Address(Place),
    /// A struct by value of these members in order, as C lays them out.
    Struct(Vec<Argument>),
    /// A tensor map, which is an argument of its own and no member.
    Tiles(Tiles),
}

impl From<u32> for Argument {
    fn from(value: u32) -> Argument {
        Argument::U32(value)
    }
}
impl From<u64> for Argument {
    fn from(value: u64) -> Argument {
        Argument::U64(value)
    }
}
impl From<f32> for Argument {
    fn from(value: f32) -> Argument {
        Argument::F32(value)
    }
}
impl From<F32Slot> for Argument {
    fn from(slot: F32Slot) -> Argument {
        Argument::Slot(slot.index())
    }
}
impl From<U64Slot> for Argument {
    fn from(slot: U64Slot) -> Argument {
        Argument::Slot(slot.index())
    }
}
impl From<Place> for Argument {
    fn from(place: Place) -> Argument {
        Argument::Address(place)
    }
}

impl Argument {
    /// Alignment of its type in bytes.
    fn alignment(&self) -> usize {
        match self {
            Argument::U32(_) | Argument::F32(_) | Argument::Slot(_) => 4,
            Argument::U64(_) | Argument::Address(_) => 8,
            Argument::Struct(members) => members.iter().map(Argument::alignment).max().unwrap_or(1),
            Argument::Tiles(_) => 64,
        }
    }

    /// Appends its bytes, with the padding that its alignment asks for before them.
    fn append(&self, bytes: &mut Vec<u8>, address: &impl Fn(Place) -> u64) {
        let pad = |bytes: &mut Vec<u8>| {
            bytes.resize(bytes.len().next_multiple_of(self.alignment()), 0);
        };
        pad(bytes);
        match self {
            Argument::U32(value) => bytes.extend(value.to_ne_bytes()),
            Argument::U64(value) => bytes.extend(value.to_ne_bytes()),
            Argument::F32(value) => bytes.extend(value.to_ne_bytes()),
            // `unknown_slot` is asked first: there are not so many.
            Argument::Slot(slot) => bytes.extend((*slot as u32).to_ne_bytes()),
            Argument::Address(place) => bytes.extend(address(*place).to_ne_bytes()),
            Argument::Struct(members) => {
                members.iter().for_each(|member| member.append(bytes, address));
                pad(bytes);
            }
            Argument::Tiles(_) => {
                unreachable!("the driver encodes it: it is no member of a struct")
            }
        }
    }

    /// The number of a slot in it that a control block of `slots` does not have.
    pub(super) fn unknown_slot(&self, slots: usize) -> Option<usize> {
        match self {
            Argument::Slot(slot) => (*slot >= slots).then_some(*slot),
            Argument::Struct(members) => members.iter().find_map(|one| one.unknown_slot(slots)),
            _ => None,
        }
    }

    /// Its bytes, in words so that they are aligned for all that they may hold.
    pub(super) fn words(&self, address: &impl Fn(Place) -> u64) -> Vec<u64> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, address);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        bytes.chunks_exact(8).map(word).collect()
    }
}

/// A launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// File of `kernels/` that it is in, without the ending.
    pub module: &'static str,
    /// Its name there.
    pub name: String,
    /// Blocks along x, y and z.
    pub grid: [usize; 3],
    /// Blocks of a cluster along x, y and z: those run at the same time, and reach each other's shared memory.
    pub cluster: [usize; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Its arguments in order.
    pub arguments: Vec<Argument>,
}

impl Kernel {
    /// A launch of one block of 256 threads, without arguments.
    pub fn new(module: &'static str, name: impl Into<String>) -> Kernel {
        let (grid, cluster) = ([1; 3], [1; 3]);
        let (name, arguments) = (name.into(), vec![]);
        Kernel { module, name, grid, cluster, block: 256, shared: 0, arguments }
    }

    /// With so many blocks along x, y and z.
    #[must_use]
    pub fn grid(self, grid: [usize; 3]) -> Kernel {
        Kernel { grid, ..self }
    }

    /// With so many blocks to a cluster, at most 8, which divide the grid. Needs compute capability 9.0.
    #[must_use]
    pub fn cluster(self, cluster: [usize; 3]) -> Kernel {
        Kernel { cluster, ..self }
    }

    /// Whether its blocks form clusters of more than one.
    pub(super) fn has_clusters(&self) -> bool {
        self.cluster != [1; 3]
    }

    /// With blocks of so many threads.
    #[must_use]
    pub fn block(self, block: u32) -> Kernel {
        Kernel { block, ..self }
    }

    /// With so many bytes of dynamic shared memory.
    #[must_use]
    pub fn shared(self, shared: u32) -> Kernel {
        Kernel { shared, ..self }
    }

    /// With one more argument.
    #[must_use]
    pub fn with(mut self, argument: impl Into<Argument>) -> Kernel {
        self.arguments.push(argument.into());
        self
    }

    /// What no device of CUDA launches, or not this one, if it is so.
    pub(super) fn problem(&self, shared_limit: u32, target: Target) -> Option<String> {
        if self.has_clusters() {
            if target.capability < (9, 0) {
                return Some("clusters need compute capability 9.0".to_owned());
            }
            let divides =
                (0..3).all(|a| self.cluster[a] > 0 && self.grid[a].is_multiple_of(self.cluster[a]));
            if !divides {
                return Some("the cluster's blocks divide the grid".to_owned());
            }
            if self.cluster.iter().product::<usize>() > CLUSTER {
                return Some(format!("at most {CLUSTER} blocks in a cluster"));
            }
        }
        let limits = [(1 << 31) - 1, 65_535, 65_535];
        let axis = (0..3).find(|&axis| self.grid[axis] > limits[axis]);
        match axis {
            Some(axis) => Some(format!("at most {} blocks along axis {axis}", limits[axis])),
            None if self.block > 1024 => Some("at most 1024 threads in a block".to_owned()),
            None if self.shared > shared_limit => {
                Some(format!("at most {shared_limit} bytes of shared memory on this device"))
            }
            None => None,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kernel { name, grid, cluster, block, shared, .. } = self;
        write!(f, "kernel {name}, grid {grid:?}, ")?;
        if self.has_clusters() {
            write!(f, "clusters {cluster:?}, ")?;
        }
        write!(f, "block {block}, {shared} bytes of shared memory")
    }
}

/// What runs in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// A kernel.
    Kernel(Kernel),
    /// A copy within the device's memory.
    Copy {
        /// First byte read.
        from: Place,
        /// First byte written.
        to: Place,
        /// How many.
        bytes: usize,
    },
}

/// What a node runs on a GPU, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launches {
    tasks: Vec<Task>,
    /// Bytes in use, and how many there were at most.
    in_use: usize,
    scratch: usize,
    tables: Vec<Vec<u8>>,
}

impl Launches {
    /// Nothing yet.
    pub fn new() -> Launches {
        Launches::default()
    }

    /// Scratch memory for `count` numbers of four bytes, which are not cleared.
    pub fn scratch(&mut self, count: usize) -> Place {
        let place = Place::Scratch(self.in_use);
        self.in_use += (count * 4).next_multiple_of(256);
        self.scratch = self.scratch.max(self.in_use);
        place
    }

    /// Bytes of scratch memory that were taken and not given back.
    pub fn scratch_in_use(&self) -> usize {
        self.in_use
    }

    /// Gives back the scratch memory after the first `bytes`: kernels that are appended later may use
    /// it again, as they run after those of now.
    pub fn release_scratch(&mut self, bytes: usize) {
        self.in_use = self.in_use.min(bytes);
    }

    /// A table of constants, which is copied to the device once.
    pub fn table<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Place {
        self.tables.push(bytemuck::cast_slice(values).to_vec());
        Place::Table(self.tables.len() - 1)
    }

    /// Appends a kernel; one without blocks is nothing to run.
    pub fn kernel(&mut self, kernel: Kernel) {
        if kernel.grid.iter().all(|&extent| extent > 0) {
            self.tasks.push(Task::Kernel(kernel));
        }
    }

    /// Appends a copy.
    pub fn copy(&mut self, from: Place, to: Place, bytes: usize) {
        if bytes > 0 {
            self.tasks.push(Task::Copy { from, to, bytes });
        }
    }

    /// What runs, in order.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Bytes of scratch memory.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    /// The tables, in the order of their numbers.
    pub fn tables(&self) -> &[Vec<u8>] {
        &self.tables
    }

    /// What profiles show: the module of its first kernel.
    pub fn name(&self) -> &'static str {
        let module = self.tasks.iter().find_map(|task| match task {
            Task::Kernel(kernel) => Some(kernel.module),
            Task::Copy { .. } => None,
        });
        module.unwrap_or("copy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_laid_out_as_in_c() {
        let inner = Argument::Struct(vec![Place::Output(0).into(), 7u32.into()]);
        let outer = Argument::Struct(vec![1u32.into(), inner, 2.0f32.into()]);
        let words = outer.words(&|place| if place == Place::Output(0) { 0xabcd } else { 0 });
        // u32, padding; pointer; u32, padding of the inner one; f32, padding of the outer one.
        assert_eq!(words, [1, 0xabcd, 7, u64::from(2f32.to_bits())]);
        assert_eq!(Argument::F32(1.0).words(&|_| 0), [u64::from(1f32.to_bits())]);
    }

    #[test]
    fn scratch_that_is_given_back_is_used_again() {
        let mut launches = Launches::new();
        launches.scratch(10);
        let kept = launches.scratch_in_use();
        assert_eq!(launches.scratch(1000), Place::Scratch(256));
        launches.release_scratch(kept);
        assert_eq!(launches.scratch(10), Place::Scratch(256));
        assert_eq!((launches.scratch_in_use(), launches.scratch_bytes()), (512, 256 + 4096));
    }

    #[test]
    fn what_cannot_be_launched_is_named() {
        let kernel = |grid| Kernel::new("unary", "unary_neg_f32").grid(grid);
        let target = |major| Target { capability: (major, 0), multiprocessors: 132 };
        assert_eq!(kernel([1 << 20, 65_535, 1]).problem(1 << 16, target(8)), None);
        let problem = kernel([1, 70_000, 1]).problem(1 << 16, target(8)).expect("too many blocks");
        assert!(problem.contains("65535") && problem.contains("axis 1"), "{problem}");
        let problem =
            kernel([1; 3]).shared(1 << 17).problem(1 << 16, target(8)).expect("too much memory");
        assert!(problem.contains("65536 bytes"), "{problem}");
        let cluster = |cluster| kernel([4, 2, 1]).cluster(cluster);
        assert_eq!(cluster([4, 2, 1]).problem(1 << 16, target(9)), None);
        let cases = [([2, 1, 1], 8, "9.0"), ([3, 1, 1], 9, "divide"), ([0, 1, 1], 9, "divide")];
        for (extents, major, word) in cases {
            let problem = cluster(extents).problem(1 << 16, target(major)).expect(word);
            assert!(problem.contains(word), "{problem}");
        }
        let large = kernel([16, 1, 1]).cluster([16, 1, 1]);
        let problem = large.problem(1 << 16, target(9)).expect("too large");
        assert!(problem.contains("at most 8"), "{problem}");
        assert!(large.to_string().contains("clusters [16, 1, 1]"), "{large}");
        let mut launches = Launches::new();
        launches.kernel(kernel([4, 0, 1]));
        assert!(launches.tasks().is_empty(), "a launch without blocks");
    }
}
