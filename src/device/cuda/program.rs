//! A whole step as one CUDA graph: launches bound to memory, captured once, launched for every batch.
#![allow(unsafe_code)]

mod timing;

use super::Cuda;
use super::context::Function;
use super::launch::{Argument, Kernel, Launches, Place, Task};
use super::memory::{Buffer, Pinned};
use crate::device::Control;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// Replays that may be under way before the next one waits for them: each has its own copy of the
/// control block in pinned memory.
const UNDER_WAY: usize = 8;

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
}

/// Something to give to the stream, with all addresses in it.
enum Step {
    Kernel { function: Function, kernel: Kernel, arguments: Vec<Vec<u64>> },
    Copy { from: u64, to: u64, bytes: usize },
}

/// Nodes bound to memory, as one graph.
pub struct Program {
    device: Arc<Cuda>,
    /// Label and steps of each node.
    nodes: Vec<(String, Vec<Step>)>,
    graph: Graph,
    control: Buffer,
    /// Constants of the launches.
    _tables: Vec<Buffer>,
    staging: Pinned,
    under_way: usize,
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
    /// Binds `nodes` to the blocks of memory, and captures all they run, in order, as a graph. The
    /// blocks must stay where they are as long as the program is replayed. Control slots that are
    /// made later are not seen.
    ///
    /// # Errors
    /// A kernel does not load or cannot be launched (the error names node, kernel and geometry), or
    /// the device is out of memory.
    pub fn new(
        device: &Arc<Cuda>,
        nodes: Vec<Bound>,
        blocks: &[&Buffer],
        control: &Control,
    ) -> Result<Program> {
        let bytes = control.values().len() * 8;
        let block = Buffer::zeroed(device, "the control block", bytes)?;
        let mut tables = Vec::new();
        let mut bound = Vec::new();
        for node in nodes {
            let steps = bind(device, &node, blocks, block.address(0), &mut tables)?;
            bound.push((node.label, steps));
        }
        // Tables and cleared memory are there before the first replay.
        device.synchronize()?;
        let graph = capture(device, bound.iter())?;
        Ok(Program {
            device: Arc::clone(device),
            nodes: bound,
            graph,
            control: block,
            _tables: tables,
            staging: Pinned::new(device, (UNDER_WAY * bytes).max(1))?,
            under_way: 0,
            results: Mutex::new(Pinned::new(device, RESULTS)?),
        })
    }

    /// Copies the control block to the device, after all that was given to it before.
    fn upload(&mut self, control: &Control) -> Result<()> {
        if self.control.is_empty() {
            return self.device.enter();
        }
        if self.under_way == UNDER_WAY {
            self.device.synchronize()?;
            self.under_way = 0;
        }
        let bytes = self.control.len();
        let start = self.under_way * bytes;
        let values: &[u8] = bytemuck::cast_slice(&control.values()[..bytes / 8]);
        self.staging.bytes_mut()[start..start + bytes].copy_from_slice(values);
        self.under_way += 1;
        self.device.enter()?;
        // SAFETY: both are as long, and this part of the pinned block is not written again before
        // the device was waited for.
        let copied = unsafe {
            let from = self.staging.address().add(start).cast();
            sys::cuMemcpyHtoDAsync_v2(self.control.address(0), from, bytes, self.device.stream())
        };
        self.device.check("the control block", copied)
    }

    /// Gives one replay to the device, and does not wait for it.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn replay(&mut self, control: &Control) -> Result<()> {
        self.upload(control)?;
        if self.graph.executable.is_null() {
            return Ok(());
        }
        // SAFETY: the graph's memory is there, as `new` asks for.
        let launched = unsafe { sys::cuGraphLaunch(self.graph.executable, self.device.stream()) };
        self.device.check("a replay", launched)
    }

    /// Replays node after node, and waits for each. `each` is called with the number of each node.
    ///
    /// # Errors
    /// The device failed; the error names the node.
    pub fn replay_by_node(
        &mut self,
        control: &Control,
        mut each: impl FnMut(usize, std::time::Duration) -> Result<()>,
    ) -> Result<()> {
        self.upload(control)?;
        self.device.synchronize()?;
        for (number, (label, steps)) in self.nodes.iter().enumerate() {
            let start = std::time::Instant::now();
            let stream = self.device.stream();
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
    control: u64,
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
    let address = |place| match place {
        Place::Null => 0,
        Place::Input(i) => start(&node.inputs[i]),
        Place::Output(i) => node.outputs[i].as_ref().map_or(0, start),
        Place::Scratch(byte) => start(&node.scratch) + byte as u64,
        Place::Table(i) => tables[first_table + i].address(0),
        Place::Control => control,
    };
    let mut steps = Vec::new();
    for task in node.launches.tasks() {
        steps.push(match task {
            Task::Kernel(kernel) => {
                if let Some(problem) = kernel.problem(device.shared_limit()) {
                    let problem = format!("{}: {kernel}: {problem}", node.label);
                    return Err(Error::device(device.name(), problem));
                }
                let function = device.function(kernel.module, &kernel.name, kernel.shared)?;
                let words = |argument: &Argument| argument.words(&address);
                let arguments = kernel.arguments.iter().map(words).collect();
                Step::Kernel { function, kernel: kernel.clone(), arguments }
            }
            &Task::Copy { from, to, bytes } => {
                Step::Copy { from: address(from), to: address(to), bytes }
            }
        });
    }
    Ok(steps)
}

impl Step {
    /// Gives it to a stream of the device.
    fn give(&self, device: &Cuda, stream: sys::CUstream, label: &str) -> Result<()> {
        match self {
            Step::Kernel { function, kernel, arguments } => {
                let mut addresses: Vec<*mut c_void> =
                    arguments.iter().map(|words| words.as_ptr().cast_mut().cast()).collect();
                let [x, y, z] = kernel.grid.map(|extent| extent as u32);
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

/// All steps as a graph; a null one where there are none.
fn capture<'n>(
    device: &Arc<Cuda>,
    nodes: impl Iterator<Item = &'n (String, Vec<Step>)> + Clone,
) -> Result<Graph> {
    if nodes.clone().all(|(_, steps)| steps.is_empty()) {
        return Ok(Graph { device: Arc::clone(device), executable: std::ptr::null_mut() });
    }
    let mut what = String::from("the graph of a step of ");
    let _ = write!(what, "{} nodes", nodes.clone().count());
    record(device, &what, |stream| {
        nodes.clone().try_for_each(|(label, steps)| {
            steps.iter().try_for_each(|step| step.give(device, stream, label))
        })
    })
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
    given?;
    device.check("the capture of a step", ended)?;
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
