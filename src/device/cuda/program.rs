//! Whole steps as one CUDA graph: launches bound to memory, captured once, launched for many batches.
#![allow(unsafe_code)]

mod timing;

pub(super) use timing::{HeadStart, trivial};

use super::Cuda;
use super::context::Function;
use super::feed::{Feed, KEPT};
use super::launch::{Argument, Kernel, Launches, Place, Task, Tiles};
use super::memory::{Buffer, Pinned};
use crate::device::Control;
use crate::error::{Error, Result};
use crate::tensor::DType;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// Steps of the graphs that there may be, largest first: each is captured when it is first wanted.
const GRAPHS: [usize; 3] = [16, 4, 1];

/// Bytes of pinned memory by way of which results are read.
const RESULTS: usize = 64 << 10;

/// A range of one of a program's blocks of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Number of the block.
    pub block: usize,
    /// First byte.
    pub offset: usize,
    /// How many bytes.
    pub bytes: usize,
}

/// A node's launches with its memory.
#[derive(Clone, Debug)]
pub struct Bound {
    /// For errors: scope and operation, and the types of inputs and outputs.
    pub label: String,
    /// What runs.
    pub launches: Launches,
    /// Its inputs.
    pub inputs: Vec<Range>,
    /// Its outputs; `None` for one that nobody reads.
    pub outputs: Vec<Option<Range>>,
    /// As many bytes as its launches ask for.
    pub scratch: Range,
    /// Numbers of the nodes that have to be done before it begins.
    pub after: Vec<usize>,
}

/// A float that a step keeps for the host ([`Feed`]).
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Where it lies after a step.
    pub range: Range,
    /// Whether the steps that are given to the device with it stop where it is not finite.
    pub stops: bool,
}

/// Something to give to the stream, with all addresses in it.
enum Step {
    Kernel { function: Function, kernel: Kernel, arguments: Vec<Vec<u64>> },
    Copy { from: u64, to: u64, bytes: usize },
}

/// A node with all its addresses.
struct Node {
    label: String,
    steps: Vec<Step>,
    after: Vec<usize>,
}

/// What runs before, between and after the steps of a graph: `kernels/turn.cu`.
struct Turns {
    first: Step,
    between: Step,
    last: Step,
}

/// Nodes bound to memory, as graphs of one step and of many.
pub struct Program {
    device: Arc<Cuda>,
    nodes: Vec<Node>,
    turns: Turns,
    /// For each of [`GRAPHS`].
    graphs: [Option<Graph>; GRAPHS.len()],
    /// Constants of the launches.
    _tables: Vec<Buffer>,
    results: Mutex<Pinned>,
}

/// A graph that can be launched.
pub(super) struct Graph {
    device: Arc<Cuda>,
    executable: sys::CUgraphExec,
}

// SAFETY: a handle of the driver, which may be used from any thread, by one at a time: it is launched
// through `&mut Program` only.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Program {
    /// Binds `nodes` to the blocks of memory and to the control block of `feed`, and captures all they
    /// run as a graph of one step, in which nodes wait for those that they come `after` and for no others. The
    /// blocks and the feed must stay where they are as long as the program is replayed.
    ///
    /// # Errors
    /// A kernel does not load or cannot be launched (the error names node, kernel and geometry), it reads
    /// a control slot that `control` does not have, or the device is out of memory.
    pub fn new(
        device: &Arc<Cuda>,
        nodes: Vec<Bound>,
        blocks: &[&Buffer],
        kept: &[Kept],
        feed: &Feed,
        control: &Control,
    ) -> Result<Program> {
        let mut tables = Vec::new();
        let mut bound = Vec::new();
        let block = feed.addresses().block;
        let slots = control.values().len();
        for (number, node) in nodes.into_iter().enumerate() {
            assert!(node.after.iter().all(|&other| other < number), "{}: the order", node.label);
            let steps = bind(device, &node, blocks, (block, slots), &mut tables)?;
            bound.push(Node { label: node.label, steps, after: node.after });
        }
        let turn = |save, load| turn(device, feed, blocks, kept, save, load);
        let turns = Turns {
            first: turn(false, true)?,
            between: turn(true, true)?,
            last: turn(true, false)?,
        };
        // Tables and cleared memory are there before the first replay.
        device.synchronize()?;
        let mut program = Program {
            device: Arc::clone(device),
            nodes: bound,
            turns,
            graphs: [const { None }; GRAPHS.len()],
            _tables: tables,
            results: Mutex::new(Pinned::new(device, RESULTS)?),
        };
        program.graph(GRAPHS.len() - 1)?;
        Ok(program)
    }

    /// A graph, captured if it was not wanted before.
    fn graph(&mut self, number: usize) -> Result<sys::CUgraphExec> {
        if let Some(graph) = &self.graphs[number] {
            return Ok(graph.executable);
        }
        let graph = capture(&self.device, &self.nodes, &self.turns, GRAPHS[number])?;
        Ok(self.graphs[number].insert(graph).executable)
    }

    /// Gives as many steps to the device as there are rows in what the feed uploaded last, and does not
    /// wait for them.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn launch(&mut self, mut steps: usize) -> Result<()> {
        for (number, size) in GRAPHS.into_iter().enumerate() {
            while steps >= size {
                let executable = self.graph(number)?;
                self.device.enter()?;
                // SAFETY: the graph's memory is there, as `new` asks for.
                let launched = unsafe { sys::cuGraphLaunch(executable, self.device.stream()) };
                self.device.check("a replay", launched)?;
                steps -= size;
            }
        }
        Ok(())
    }

    /// Runs one step, node after node, of which the feed has uploaded the row, and waits for each node. `each`
    /// is called with the number of each.
    ///
    /// # Errors
    /// The device failed; the error names the node.
    pub fn replay_by_node(
        &mut self,
        mut each: impl FnMut(usize, std::time::Duration) -> Result<()>,
    ) -> Result<()> {
        let stream = self.device.stream();
        self.device.enter()?;
        self.turns.first.give(&self.device, stream, "a step")?;
        self.device.synchronize()?;
        for (number, Node { label, steps, .. }) in self.nodes.iter().enumerate() {
            let start = std::time::Instant::now();
            steps.iter().try_for_each(|step| step.give(&self.device, stream, label))?;
            let in_node = |error| match error {
                Error::Device { device, problem } => {
                    Error::device(device, format!("{label}: {problem}"))
                }
                other => other,
            };
            self.device.synchronize().map_err(in_node)?;
            each(number, start.elapsed())?;
        }
        Ok(())
    }

    /// Copies device memory to the host, once all replays are done.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn read(&self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<()> {
        // What lies there is written before it is read.
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, part) in to.chunks_mut(RESULTS).enumerate() {
            results.fetch(from, offset + number * RESULTS, part)?;
        }
        Ok(())
    }
}

/// The steps of a node; its tables are copied to the device.
fn bind(
    device: &Arc<Cuda>,
    node: &Bound,
    blocks: &[&Buffer],
    (control, slots): (u64, usize),
    tables: &mut Vec<Buffer>,
) -> Result<Vec<Step>> {
    let first_table = tables.len();
    for table in node.launches.tables() {
        let mut buffer = Buffer::zeroed(device, &node.label, table.len())?;
        buffer.write(0, table)?;
        tables.push(buffer);
    }
    assert!(node.scratch.bytes >= node.launches.scratch_bytes(), "{}: scratch memory", node.label);
    let start = |range: &Range| {
        let block = blocks[range.block];
        assert!(range.offset + range.bytes <= block.len(), "{}: past its block", node.label);
        block.address(range.offset)
    };
    let within = |range: &Range, byte: usize| {
        assert!(byte <= range.bytes, "{}: past its tensor", node.label);
        start(range) + byte as u64
    };
    let address = |place| match place {
        Place::Null => 0,
        Place::Input(i) => start(&node.inputs[i]),
        Place::Output(i) => node.outputs[i].as_ref().map_or(0, start),
        Place::InputFrom(i, byte) => within(&node.inputs[i], byte),
        Place::OutputFrom(i, byte) => {
            node.outputs[i].as_ref().map_or(0, |range| within(range, byte))
        }
        Place::Scratch(byte) => start(&node.scratch) + byte as u64,
        Place::Table(i) => tables[first_table + i].address(0),
        Place::Control => control,
    };
    let mut steps = Vec::new();
    for task in node.launches.tasks() {
        steps.push(match task {
            Task::Kernel(kernel) => {
                if let Some(problem) = kernel.problem(device.shared_limit(), device.target()) {
                    let problem = format!("{}: {kernel}: {problem}", node.label);
                    return Err(Error::device(device.name(), problem));
                }
                let unknown = kernel.arguments.iter().find_map(|one| one.unknown_slot(slots));
                if let Some(slot) = unknown {
                    let problem = format!(
                        "{}: {kernel}: it reads slot {slot} of the control block, and the store's has \
                         {slots}: the slot is one of another store, and its value would never change",
                        node.label
                    );
                    return Err(Error::device(device.name(), problem));
                }
                let function = device.function(kernel.module, &kernel.name, kernel.shared)?;
                let words = |argument: &Argument| match argument {
                    Argument::Tiles(tiles) => {
                        let what = || format!("{}: {kernel}: {tiles:?}", node.label);
                        encode(device, tiles, address(tiles.tensor), what)
                    }
                    argument => Ok(argument.words(&address)),
                };
                let arguments = kernel.arguments.iter().map(words).collect::<Result<_>>()?;
                Step::Kernel { function, kernel: kernel.clone(), arguments }
            }
            &Task::Copy { from, to, bytes } => {
                Step::Copy { from: address(from), to: address(to), bytes }
            }
        });
    }
    Ok(steps)
}

/// A tensor map, as the driver makes it.
fn encode(
    device: &Cuda,
    tiles: &Tiles,
    address: u64,
    what: impl Fn() -> String,
) -> Result<Vec<u64>> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    if address == 0 || !address.is_multiple_of(16) {
        return Ok(map.opaque.to_vec());
    }
    let Tiles { dtype, extents, strides, rows, .. } = tiles;
    let size = dtype.size();
    let rank = extents.len();
    let dtype = match dtype {
        DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        _ => return Err(Error::device(device.name(), format!("{}: no such tiles", what()))),
    };
    assert!((2..=3).contains(&rank) && strides.len() == rank - 1, "{}", what());
    let extents: Vec<u64> = extents.iter().map(|&extent| extent as u64).collect();
    let strides: Vec<u64> = strides.iter().map(|&stride| (stride * size) as u64).collect();
    let tile = [128 / size as u32, *rows, 1];
    device.enter()?;
    // SAFETY: all arrays are as long as the rank; the map is aligned by its type; the driver keeps the address, and reads
    // nothing there.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            dtype,
            rank as u32,
            std::ptr::without_provenance_mut(address as usize),
            extents.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            [1; 3].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    if result != sys::CUresult::CUDA_SUCCESS {
        device.check(&what(), result)?;
    }
    Ok(map.opaque.to_vec())
}

impl Step {
    /// Gives it to a stream of the device.
    fn give(&self, device: &Cuda, stream: sys::CUstream, label: &str) -> Result<()> {
        match self {
            Step::Kernel { function, kernel, arguments } => {
                let mut addresses: Vec<*mut c_void> =
                    arguments.iter().map(|words| words.as_ptr().cast_mut().cast()).collect();
                let [x, y, z] = kernel.grid.map(|extent| extent as u32);
                if kernel.has_clusters() {
                    let result = launch_clusters(*function, kernel, stream, &mut addresses);
                    return device.check(&format!("{label}: {kernel}"), result);
                }
                // SAFETY: the operation states arguments of the types that the kernel's source has, and
                // each lies in memory as large and as aligned; the driver copies them before it returns.
                let result = unsafe {
                    sys::cuLaunchKernel(
                        function.0,
                        x,
                        y,
                        z,
                        kernel.block,
                        1,
                        1,
                        kernel.shared,
                        stream,
                        addresses.as_mut_ptr(),
                        std::ptr::null_mut(),
                    )
                };
                device.check(&format!("{label}: {kernel}"), result)
            }
            &Step::Copy { from, to, bytes } => {
                // SAFETY: `bind` found both within blocks of this device.
                let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) };
                device.check(&format!("{label}: a copy of {bytes} bytes"), result)
            }
        }
    }
}

/// Launches a kernel whose blocks form clusters, with the addresses of its arguments.
fn launch_clusters(
    function: Function,
    kernel: &Kernel,
    stream: sys::CUstream,
    arguments: &mut [*mut c_void],
) -> sys::CUresult {
    let [x, y, z] = kernel.cluster.map(|extent| extent as u32);
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
        },
    };
    let [x, y, z] = kernel.grid.map(|extent| extent as u32);
    let configuration = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: kernel.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: kernel.shared,
        hStream: stream,
        attrs: &mut attribute,
        numAttrs: 1,
    };
    // SAFETY: as for a launch without clusters; configuration and attribute outlive the call.
    unsafe {
        let (arguments, extra) = (arguments.as_mut_ptr(), std::ptr::null_mut());
        sys::cuLaunchKernelEx(&configuration, function.0, arguments, extra)
    }
}

/// The kernel that keeps what a step leaves and loads the next one's control block.
fn turn(
    device: &Cuda,
    feed: &Feed,
    blocks: &[&Buffer],
    kept: &[Kept],
    save: bool,
    load: bool,
) -> Result<Step> {
    assert!(kept.len() <= KEPT, "{} kept floats", kept.len());
    let at = feed.addresses();
    let mut members = vec![Argument::U64(0); KEPT];
    for (member, Kept { range, .. }) in members.iter_mut().zip(kept) {
        *member = Argument::U64(blocks[range.block].address(range.offset));
    }
    let stops = kept.iter().enumerate().filter(|(_, kept)| kept.stops);
    members.push(Argument::U32(kept.len() as u32));
    members.push(Argument::U32(stops.map(|(bit, _)| 1 << bit).sum()));
    let kernel = Kernel::new("turn", "turn")
        .with(at.rows)
        .with(at.halted)
        .with(at.block)
        .with(at.results)
        .with(Argument::Struct(members))
        .with(u32::from(save))
        .with(u32::from(load));
    let function = device.function(kernel.module, &kernel.name, kernel.shared)?;
    let nowhere = |_| unreachable!("it has no places of a node");
    let arguments = kernel.arguments.iter().map(|argument| argument.words(&nowhere)).collect();
    Ok(Step::Kernel { function, kernel, arguments })
}

/// So many steps in a row as a graph.
fn capture(device: &Arc<Cuda>, nodes: &[Node], turns: &Turns, steps: usize) -> Result<Graph> {
    let what = format!("the graph of {steps} steps of {} nodes", nodes.len());
    record(device, &what, |stream| give_steps(device, stream, nodes, Some(turns), steps))
}

/// What `give` gives to a stream, as a graph.
pub(super) fn record(
    device: &Arc<Cuda>,
    what: &str,
    give: impl FnOnce(sys::CUstream) -> Result<()>,
) -> Result<Graph> {
    let mut graph = Graph { device: Arc::clone(device), executable: std::ptr::null_mut() };
    device.enter()?;
    // On a stream of its own: what other threads give to the device's is not captured.
    let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
    let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes the handle; destroyed below.
    device.check("a stream", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
    // SAFETY: the stream was made for this.
    let begun = unsafe { sys::cuStreamBeginCapture_v2(stream, mode) };
    let begun = device.check("the capture of a step", begun);
    let given = begun.and_then(|()| give(stream));
    let mut captured = std::ptr::null_mut();
    // SAFETY: ends the capture, also where a step failed; nothing is left on the stream.
    let ended = unsafe {
        let ended = sys::cuStreamEndCapture(stream, &mut captured);
        let _ = sys::cuStreamDestroy_v2(stream);
        ended
    };
    let given = given.and_then(|()| device.check("the capture of a step", ended));
    if let Err(error) = given {
        if !captured.is_null() {
            // SAFETY: the graph was captured just now, and nobody else has it.
            let _ = unsafe { sys::cuGraphDestroy(captured) };
        }
        return Err(error);
    }
    // SAFETY: the graph was captured just now, and is destroyed once it is instantiated.
    let (made, destroyed) = unsafe {
        let made = sys::cuGraphInstantiateWithFlags(&mut graph.executable, captured, 0);
        (made, sys::cuGraphDestroy(captured))
    };
    device.check(what, made)?;
    device.check(what, destroyed)?;
    // SAFETY: instantiated just now. So the first launch takes no longer than others.
    let uploaded = unsafe { sys::cuGraphUpload(graph.executable, device.stream()) };
    device.check(what, uploaded)?;
    Ok(graph)
}

/// Gives steps to a stream that is captured; each node of the graph comes after those that it needs. Without
/// `turns` all steps have the control block that is there, and begin when the one before is over.
fn give_steps(
    device: &Cuda,
    stream: sys::CUstream,
    nodes: &[Node],
    turns: Option<&Turns>,
    steps: usize,
) -> Result<()> {
    let mut begin = Vec::new();
    if let Some(turns) = turns {
        turns.first.give(device, stream, "a step")?;
        begin = last_given(device, stream)?;
    }
    // Nobody needs these: the step is over when they are.
    let mut ends = vec![true; nodes.len()];
    nodes.iter().flat_map(|node| &node.after).for_each(|&needed| ends[needed] = false);
    for step in 0..steps {
        // What those that come after a node have to wait for.
        let mut done: Vec<Vec<sys::CUgraphNode>> = Vec::with_capacity(nodes.len());
        for Node { label, steps, after } in nodes {
            let mut wanted: Vec<_> = after.iter().flat_map(|&node| &done[node]).copied().collect();
            if wanted.is_empty() {
                wanted.clone_from(&begin);
            }
            if !steps.is_empty() {
                come_after(device, stream, &mut wanted)?;
                steps.iter().try_for_each(|step| step.give(device, stream, label))?;
                wanted = last_given(device, stream)?;
            }
            done.push(wanted);
        }
        let last = done.iter().zip(&ends).filter(|(_, end)| **end);
        let mut last: Vec<_> = last.flat_map(|(handles, _)| handles).copied().collect();
        if last.is_empty() {
            last.clone_from(&begin);
        }
        begin = last;
        if let Some(turns) = turns {
            come_after(device, stream, &mut begin)?;
            let turn = if step + 1 < steps { &turns.between } else { &turns.last };
            turn.give(device, stream, "a step")?;
            begin = last_given(device, stream)?;
        }
    }
    Ok(())
}

/// The nodes that the next one given to a captured stream comes after: the last one given.
fn last_given(device: &Cuda, stream: sys::CUstream) -> Result<Vec<sys::CUgraphNode>> {
    let mut status = sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
    let (mut id, mut graph, mut count) = (0, std::ptr::null_mut(), 0);
    let mut handles: *const sys::CUgraphNode = std::ptr::null();
    // SAFETY: writes one value of each; the handles are read before the next call for this stream.
    let found = unsafe {
        sys::cuStreamGetCaptureInfo_v2(
            stream,
            &mut status,
            &mut id,
            &mut graph,
            &mut handles,
            &mut count,
        )
    };
    device.check("the capture of a step", found)?;
    if status != sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_ACTIVE || count == 0 {
        return Err(Error::device(device.name(), "the capture of a step was given up"));
    }
    // SAFETY: the driver wrote where so many of them are.
    Ok(unsafe { std::slice::from_raw_parts(handles, count) }.to_vec())
}

/// Lets the next node that is given to a captured stream come after these, and no others.
fn come_after(
    device: &Cuda,
    stream: sys::CUstream,
    nodes: &mut Vec<sys::CUgraphNode>,
) -> Result<()> {
    nodes.sort_unstable();
    nodes.dedup();
    let set = sys::CUstreamUpdateCaptureDependencies_flags_enum::CU_STREAM_SET_CAPTURE_DEPENDENCIES
        as u32;
    // SAFETY: handles of nodes of this capture, so many of them.
    let updated = unsafe {
        sys::cuStreamUpdateCaptureDependencies(stream, nodes.as_mut_ptr(), nodes.len(), set)
    };
    device.check("the capture of a step", updated)
}

impl Graph {
    /// Gives it to the device's stream.
    pub(super) fn launch(&self) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the memory that it names is there as long as whoever made it keeps that.
        let launched = unsafe { sys::cuGraphLaunch(self.executable, self.device.stream()) };
        self.device.check("a graph", launched)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.executable.is_null() && self.device.synchronize().is_ok() {
            // SAFETY: instantiated once, destroyed once, and no launch of it is under way.
            let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}
