//! A tape compiled for a GPU: a graph in which nodes wait for those that they need, and for no others.

use super::plan::{self, Block, Life, Order, Place, Reuse, Work};
use super::recording::{ARENA, Engine, NodeReport, NotFinite, Recording, STORE};
use super::{KEPT, Origin, Store, Tape};
use crate::device::Control;
use crate::device::cpu::Isa;
use crate::device::cpu::program::Span;
use crate::device::cuda::{self, Bound, Buffer, Cuda, Kept, Launches, Program, Range};
use crate::error::{Error, Result};
use crate::ops::Var;
use crate::tensor::{DType, TensorType};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const _: () = assert!(KEPT == cuda::KEPT, "the device keeps as much as a recording");

/// A recording's program and memory on a GPU.
pub(super) struct OnCuda {
    // Before the memory that it works in: fields are dropped in order.
    program: Program,
    arena: Buffer,
    constants: Buffer,
    /// Outputs of each node that somebody reads.
    outputs: Vec<Vec<Span>>,
    stages: usize,
}

impl Tape {
    /// Compiles what is recorded for a GPU. Nodes that do not need each other may run at the same time, so
    /// tensors share memory only where all who touch the one are done before others touch the other.
    pub(super) fn compile_for_cuda(&self, device: &Arc<Cuda>, store: &Store) -> Result<Recording> {
        let (needed, used) = self.live();
        let (constants, values) = self.constants(&used);
        let mut constant_memory = Buffer::zeroed(device, "constants", values.len())?;
        constant_memory.write(0, values.bytes())?;

        // Kernels.
        struct Lowered<'t> {
            node: &'t super::Node,
            label: String,
            launches: Launches,
        }
        let mut lowered: Vec<Lowered<'_>> = Vec::new();
        let (mut work, mut candidates) = (Vec::new(), Vec::new());
        let mut reports = Vec::new();
        for seen in self.to_lower(&needed, &used) {
            // The instruction set is of no concern to its kernels.
            let (node, site) = (seen.node, seen.site(Isa::Portable, device.target()));
            let listed = |types: &[TensorType]| {
                types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            let (inputs, outputs) = (listed(&seen.inputs), listed(&seen.outputs));
            let label = format!("{} ({inputs} to {outputs})", seen.label);
            let Some(launches) = node.op.cuda(&site) else {
                let problem = format!(
                    "{label}: the operation '{}' has no kernel for GPUs, or none for these shapes and \
                     this precision",
                    node.op.name()
                );
                return Err(Error::device(device.name(), problem));
            };
            reports.push(NodeReport {
                label: seen.label.clone(),
                op: node.op.name(),
                kernel: launches.name(),
                cost: node.op.cost(&site),
                chunks: vec![1; launches.tasks().len()],
                outputs: seen.outputs.clone(),
            });
            candidates.extend(self.reuses(node, lowered.len(), &used));
            let accesses = self.accesses(node, &used, &constants);
            let chunks = vec![1; launches.tasks().len()];
            work.push(Work { accesses, chunks, nanoseconds: 0.0 });
            lowered.push(Lowered { node, label, launches });
        }
        let last = lowered.len().saturating_sub(1);
        let order = Order::new(&work);

        // Outputs that take the memory of an input: its tensor stands for both.
        let candidates: Vec<Reuse> = candidates.into_iter().map(|(_, reuse)| reuse).collect();
        let mut stands_for: HashMap<u32, u32> = HashMap::new();
        for Reuse { output, input, .. } in
            plan::reuse(&work, |a, b| order.precedes(a, b), &candidates)
        {
            let root = stands_for.get(&input).copied().unwrap_or(input);
            stands_for.insert(output, root);
        }
        let memory_of = |root: u32| stands_for.get(&root).copied().unwrap_or(root);

        // Memory: roots in the arena with those who touch them, then scratch of each node.
        let mut numbers: HashMap<u32, usize> = HashMap::new();
        let mut blocks: Vec<Block> = Vec::new();
        let mut lives: Vec<Life> = Vec::new();
        let mut written = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            if matches!(tensor.origin, Origin::Input) {
                numbers.insert(index as u32, blocks.len());
                let bytes = tensor.tensor_type.bytes();
                blocks.push(Block { bytes, alive: (0, last) });
                lives.push(Life { users: Vec::new(), beyond: true });
            }
        }
        for (number, this) in work.iter().enumerate() {
            for access in &this.accesses {
                match access.place {
                    Place::Arena(root) => {
                        let root = memory_of(root);
                        let block = *numbers.entry(root).or_insert_with(|| {
                            let bytes = self.tensors[root as usize].tensor_type.bytes();
                            blocks.push(Block { bytes, alive: (number, number) });
                            lives.push(Life::default());
                            blocks.len() - 1
                        });
                        let alive = &mut blocks[block].alive;
                        alive.1 = alive.1.max(number);
                        lives[block].users.push(number);
                    }
                    Place::Region(region) if access.write => {
                        written.extend(region.checked_sub(STORE));
                    }
                    Place::Region(_) => {}
                }
            }
        }
        written.sort_unstable();
        written.dedup();
        for (index, _) in self.tensors.iter().enumerate().filter(|(_, t)| t.is_output) {
            let var = Var { index: index as u32, tape: self.id };
            if let (Place::Arena(root), _) = self.place_of(var, &constants)
                && let Some(&block) = numbers.get(&memory_of(root))
            {
                blocks[block].alive.1 = last;
                lives[block].beyond = true;
            }
        }
        let first_scratch = blocks.len();
        for (number, Lowered { launches, .. }) in lowered.iter().enumerate() {
            blocks.push(Block { bytes: launches.scratch_bytes(), alive: (number, number) });
            lives.push(Life { users: vec![number], beyond: false });
        }
        let (offsets, mut memory) =
            plan::lay_out_apart(&blocks, |i, j| lives[i].apart(&lives[j], &order));
        memory.constant_bytes = values.len();
        let arena = Buffer::zeroed(device, "a recording", memory.arena_bytes)?;

        let span_of = |var: Var| -> Span {
            let (place, start) = self.place_of(var, &constants);
            let TensorType { shape, dtype } = &self.tensor(var).tensor_type;
            let (region, offset) = match place {
                Place::Arena(root) => {
                    let block = numbers.get(&memory_of(root));
                    (ARENA, block.map_or(0, |&block| offsets[block]) + start)
                }
                Place::Region(region) => (region, start),
            };
            Span { region, offset, len: shape.elements(), dtype: *dtype, in_place: false }
        };
        let range_of = |var: Var| -> Range {
            let span = span_of(var);
            let bytes = span.len * span.dtype.size();
            Range { block: span.region, offset: span.offset, bytes }
        };
        let mut bound = Vec::new();
        let mut outputs = Vec::new();
        for (number, Lowered { node, label, launches }) in lowered.into_iter().enumerate() {
            let read = |var: &Var| used[var.index as usize];
            outputs
                .push(node.outputs.iter().filter(|var| read(var)).map(|&v| span_of(v)).collect());
            let scratch = Range {
                block: ARENA,
                offset: offsets[first_scratch + number],
                bytes: launches.scratch_bytes(),
            };
            bound.push(Bound {
                label,
                launches,
                inputs: node.inputs.iter().map(|&var| range_of(var)).collect(),
                outputs: node.outputs.iter().map(|var| read(var).then(|| range_of(*var))).collect(),
                scratch,
                after: order.after[number].clone(),
            });
        }
        let kept = self.kept_spans(span_of)?;
        let floats = kept.iter().flat_map(|&(span, stops)| {
            (0..span.len).map(move |i| {
                let offset = span.offset + i * 4;
                Kept { range: Range { block: span.region, offset, bytes: 4 }, stops }
            })
        });
        let floats: Vec<Kept> = floats.collect();
        let ports = self.ports(span_of);
        let buffers: Vec<&Buffer> =
            [&arena, &constant_memory].into_iter().chain(store.buffers()).collect();
        let Some(feed) = &store.feed else { unreachable!("a store of a GPU that has not failed") };
        let program = Program::new(device, bound, &buffers, &floats, feed, store.control())?;
        let stages = order.longest();
        let engine = OnCuda { program, arena, constants: constant_memory, outputs, stages };
        Ok(Recording {
            store: self.store,
            engine: Engine::Cuda(Box::new(engine)),
            ports,
            reports,
            memory,
            written,
            inputs: self.live_inputs(&used),
            kept,
        })
    }
}

impl OnCuda {
    /// Writes bytes of the arena.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.arena.write(offset, bytes)
    }

    /// Reads a tensor that does not lie in the store.
    pub(super) fn read(&self, span: Span, bytes: &mut [u8]) -> Result<()> {
        let memory = if span.region == ARENA { &self.arena } else { &self.constants };
        self.program.read(memory, span.offset, bytes)
    }

    pub(super) fn replay(&mut self, store: &mut Store) -> Result<()> {
        upload_one(store)?;
        self.program.launch(1)
    }

    /// Gives steps to the device, as many at a time as it can be told of.
    pub(super) fn enqueue(
        &mut self,
        store: &mut Store,
        steps: usize,
        set: &mut dyn FnMut(usize, &mut Control),
    ) -> Result<()> {
        let mut done = 0;
        while done < steps {
            let (feed, control, _) = store.feed_parts()?;
            if feed.room(control) == 0 && feed.pending() > 0 {
                store.fetch_kept()?;
            }
            let (feed, control, series) = store.feed_parts()?;
            // At least one: with too many slots for that, the upload says so.
            let count = (steps - done).min(feed.room(control).max(1));
            series.rows.clear();
            for step in done..done + count {
                set(step, control);
                series.rows.extend(control.values());
            }
            feed.upload(control, count, &series.rows, !series.open, true)?;
            series.open = true;
            self.program.launch(count)?;
            done += count;
        }
        Ok(())
    }

    /// Nodes of the longest chain.
    pub(super) fn stages(&self) -> usize {
        self.stages
    }

    /// Node after node, with the nanoseconds of each by the device's clock.
    pub(super) fn replay_timed(
        &mut self,
        store: &mut Store,
        mut each: impl FnMut(usize, u64),
    ) -> Result<()> {
        upload_one(store)?;
        let seconds = self.program.node_seconds()?;
        seconds.into_iter().enumerate().for_each(|(node, s)| each(node, (s * 1e9) as u64));
        Ok(())
    }

    /// Node after node, with the first result that is not finite.
    pub(super) fn replay_checked(
        &mut self,
        store: &mut Store,
        reports: &[NodeReport],
    ) -> Result<Option<NotFinite>> {
        upload_one(store)?;
        let OnCuda { program, arena, constants, outputs, .. } = self;
        let buffers: Vec<&Buffer> =
            [&*arena, &*constants].into_iter().chain(store.buffers()).collect();
        let mut first = None;
        program.replay_by_node(|node, _| {
            for span in outputs[node].iter().filter(|span| span.dtype == DType::F32) {
                if first.is_some() {
                    return Ok(());
                }
                let mut values = vec![0f32; span.len];
                buffers[span.region].read(span.offset, bytemuck::cast_slice_mut(&mut values))?;
                let bad = values.iter().enumerate().find(|(_, value)| !value.is_finite());
                first = bad.map(|(index, &value)| NotFinite {
                    place: reports[node].label.clone(),
                    index,
                    value,
                });
            }
            Ok(())
        })?;
        Ok(first)
    }
}

/// Tells the device of one step, of which nothing is kept.
fn upload_one(store: &mut Store) -> Result<()> {
    let (feed, control, _) = store.feed_parts()?;
    feed.upload(control, 1, control.values(), true, false)
}

impl Recording {
    /// Seconds of one replay by a GPU's own clock, one value a sample: a graph of as many replays, one after
    /// another, as take 2 ms, so that launches do not count. Measures for `budget`, and for at least
    /// `least` samples.
    ///
    /// # Errors
    /// As [`Recording::replay`]; or the device is the CPU, which has no such clock.
    pub fn device_seconds(
        &mut self,
        store: &mut Store,
        budget: Duration,
        least: usize,
    ) -> Result<Vec<f64>> {
        self.begin(store)?;
        match &mut self.engine {
            Engine::Cuda(cuda) => {
                // The control block of the times to come.
                cuda.replay(store)?;
                cuda.program.device_seconds(budget, least)
            }
            Engine::Cpu(_) => {
                Err(Error::device(store.device().name(), "only GPUs have a clock of their own"))
            }
        }
    }
}
