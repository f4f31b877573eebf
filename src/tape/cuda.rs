//! A tape compiled for a GPU: nodes in recorded order on one stream, as one graph.

use super::plan::{self, Block, Place};
use super::recording::{ARENA, Engine, NodeReport, NotFinite, Recording, STORE};
use super::{Origin, Store, Tape};
use crate::device::Control;
use crate::device::cpu::Isa;
use crate::device::cpu::program::Span;
use crate::device::cuda::{Bound, Buffer, Cuda, Launches, Program, Range};
use crate::error::{Error, Result};
use crate::ops::{Site, Var};
use crate::tensor::{DType, TensorType};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A recording's program and memory on a GPU.
pub(super) struct OnCuda {
    // Before the memory that it works in: fields are dropped in order.
    program: Program,
    arena: Buffer,
    constants: Buffer,
    /// Outputs of each node that somebody reads.
    outputs: Vec<Vec<Span>>,
}

impl Tape {
    /// Compiles what is recorded for a GPU. Each node is a stage of its own, as far as memory is
    /// concerned.
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
        let mut reports = Vec::new();
        for (index, node) in self.nodes.iter().enumerate().filter(|&(index, _)| needed[index]) {
            let types = |vars: &[Var]| -> Vec<TensorType> {
                vars.iter().map(|&var| self.tensor(var).tensor_type.clone()).collect()
            };
            let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
            if node.op.view(&inputs).is_some() {
                continue;
            }
            let output_used: Vec<bool> =
                node.outputs.iter().map(|output| used[output.index as usize]).collect();
            // The instruction set is of no concern to its kernels.
            let isa = Isa::Portable;
            let site = Site { inputs: &inputs, outputs: &outputs, used: &output_used, isa };
            let listed = |types: &[TensorType]| {
                types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            let name = self.label(index);
            let label = format!("{name} ({} to {})", listed(&inputs), listed(&outputs));
            let Some(launches) = node.op.cuda(&site) else {
                let problem = format!(
                    "{label}: the operation '{}' has no kernel for GPUs, or none for these shapes and \
                     this precision",
                    node.op.name()
                );
                return Err(Error::device(device.name(), problem));
            };
            reports.push(NodeReport {
                label: name,
                op: node.op.name(),
                kernel: launches.name(),
                cost: node.op.cost(&site),
                chunks: vec![1; launches.tasks().len()],
                outputs,
            });
            lowered.push(Lowered { node, label, launches });
        }
        let last = lowered.len().saturating_sub(1);

        // Memory: roots in the arena with their lives in nodes, then scratch of each node.
        let mut numbers: HashMap<u32, usize> = HashMap::new();
        let mut blocks: Vec<Block> = Vec::new();
        let mut written = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            if matches!(tensor.origin, Origin::Input) {
                numbers.insert(index as u32, blocks.len());
                let bytes = tensor.tensor_type.bytes();
                blocks.push(Block { bytes, alive: (0, last) });
            }
        }
        for (number, Lowered { node, .. }) in lowered.iter().enumerate() {
            let inputs = node.inputs.iter().map(|&var| (var, false));
            let outputs = node.outputs.iter().map(|&var| (var, true));
            for (var, write) in inputs.chain(outputs) {
                if write && !used[var.index as usize] {
                    continue;
                }
                match self.place_of(var, &constants).0 {
                    Place::Arena(root) => {
                        let block = *numbers.entry(root).or_insert_with(|| {
                            let bytes = self.tensors[root as usize].tensor_type.bytes();
                            blocks.push(Block { bytes, alive: (number, number) });
                            blocks.len() - 1
                        });
                        let alive = &mut blocks[block].alive;
                        alive.1 = alive.1.max(number);
                    }
                    Place::Region(region) if write => written.extend(region.checked_sub(STORE)),
                    Place::Region(_) => {}
                }
            }
        }
        written.sort_unstable();
        written.dedup();
        for (index, _) in self.tensors.iter().enumerate().filter(|(_, t)| t.is_output) {
            let var = Var { index: index as u32, tape: self.id };
            if let (Place::Arena(root), _) = self.place_of(var, &constants)
                && let Some(&block) = numbers.get(&root)
            {
                blocks[block].alive.1 = last;
            }
        }
        let first_scratch = blocks.len();
        for (number, Lowered { launches, .. }) in lowered.iter().enumerate() {
            blocks.push(Block { bytes: launches.scratch_bytes(), alive: (number, number) });
        }
        let (offsets, mut memory) = plan::lay_out(&blocks);
        memory.constant_bytes = values.len();
        let arena = Buffer::zeroed(device, "a recording", memory.arena_bytes)?;

        let span_of = |var: Var| -> Span {
            let (place, start) = self.place_of(var, &constants);
            let TensorType { shape, dtype } = &self.tensor(var).tensor_type;
            let (region, offset) = match place {
                Place::Arena(root) => {
                    (ARENA, numbers.get(&root).map_or(0, |&block| offsets[block]) + start)
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
            });
        }
        let ports = self.ports(span_of);
        let buffers: Vec<&Buffer> =
            [&arena, &constant_memory].into_iter().chain(store.buffers()).collect();
        let program = Program::new(device, bound, &buffers, store.control())?;
        let engine = OnCuda { program, arena, constants: constant_memory, outputs };
        Ok(Recording {
            store: self.store,
            engine: Engine::Cuda(Box::new(engine)),
            ports,
            reports,
            memory,
            written,
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

    pub(super) fn replay(&mut self, control: &Control) -> Result<()> {
        self.program.replay(control)
    }

    /// Node after node, with the nanoseconds of each by the device's clock.
    pub(super) fn replay_timed(
        &mut self,
        control: &Control,
        mut each: impl FnMut(usize, u64),
    ) -> Result<()> {
        let seconds = self.program.node_seconds(control)?;
        seconds.into_iter().enumerate().for_each(|(node, s)| each(node, (s * 1e9) as u64));
        Ok(())
    }

    /// Node after node, with the first result that is not finite.
    pub(super) fn replay_checked(
        &mut self,
        store: &Store,
        reports: &[NodeReport],
    ) -> Result<Option<NotFinite>> {
        let OnCuda { program, arena, constants, outputs } = self;
        let buffers: Vec<&Buffer> =
            [&*arena, &*constants].into_iter().chain(store.buffers()).collect();
        let mut first = None;
        program.replay_by_node(store.control(), |node, _| {
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
            Engine::Cuda(cuda) => cuda.program.device_seconds(store.control(), budget, least),
            Engine::Cpu(_) => {
                Err(Error::device(store.device().name(), "only GPUs have a clock of their own"))
            }
        }
    }
}
