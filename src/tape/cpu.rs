//! A tape compiled for the CPU: stages of chunks, and the memory that they work in.

use super::naive::naive_launch;
use super::plan::{self, Block, Place, Reuse, Work};
use super::recording::{ARENA, Engine, NodeReport, Recording, STORE};
use super::{Origin, Store, Tape};
use crate::device::Target;
use crate::device::cpu::launch::Launch;
use crate::device::cpu::program::{Bound, Item, Program, Span, Task};
use crate::device::cpu::{Cpu, Memory};
use crate::error::Result;
use crate::ops::Var;
use crate::tensor::{DType, Element, TensorType};
use std::collections::HashMap;
use std::sync::Arc;

/// A recording's program and memory on the CPU.
pub(super) struct OnCpu {
    pub(super) device: Arc<Cpu>,
    pub(super) program: Program,
    pub(super) arena: Memory,
    pub(super) constants: Memory,
}

impl OnCpu {
    pub(super) fn replay(&mut self, store: &mut Store) {
        let (regions, control) = store.parts();
        let own = [&mut self.arena, &mut self.constants];
        self.program.replay(self.device.team(), own.into_iter().chain(regions), control);
    }

    /// The elements of a tensor that does not lie in the store.
    pub(super) fn elements<T: Element>(&self, span: Span) -> &[T] {
        let memory = if span.region == ARENA { &self.arena } else { &self.constants };
        memory.elements(span.offset, span.len)
    }
}

impl Tape {
    /// Compiles what is recorded for the CPU: stages of chunks, with a barrier between two of them.
    pub(super) fn compile_for_cpu(&self, cpu: Arc<Cpu>) -> Result<Recording> {
        let (needed, used) = self.live();
        let (constants, constant_memory) = self.constants(&used);
        let constant_bytes = constant_memory.len();

        // Kernels.
        struct Lowered<'t> {
            node: &'t super::Node,
            launch: Launch,
            report: NodeReport,
            /// Outputs that lie where an input lay.
            reused: Vec<(usize, usize)>,
        }
        let mut lowered: Vec<Lowered<'_>> = Vec::new();
        let mut work = Vec::new();
        let mut candidates = Vec::new();
        for seen in self.to_lower(&needed, &used) {
            let (node, site) = (seen.node, seen.site(cpu.isa(), Target::default()));
            let cost = node.op.cost(&site);
            let kernel = node.op.cpu(&site);
            if kernel.is_some() {
                candidates.extend(self.reuses(node, lowered.len(), &used));
            }
            let launch = kernel.unwrap_or_else(|| naive_launch(Arc::clone(&node.op), &site));
            let accesses = self.accesses(node, &used, &constants);
            let chunks: Vec<usize> = launch.chunks().collect();
            // Of the order of what one thread does; only used to tell small nodes from large ones.
            let nanoseconds = (cost.flops / 40.0).max(cost.bytes / 20.0);
            work.push(Work { accesses, chunks: chunks.clone(), nanoseconds });
            let kernel = launch.kernel();
            let (op, outputs) = (node.op.name(), seen.outputs);
            let report = NodeReport { label: seen.label, op, kernel, cost, chunks, outputs };
            lowered.push(Lowered { node, launch, report, reused: Vec::new() });
        }
        let mut written: Vec<usize> = work
            .iter()
            .flat_map(|work: &Work| &work.accesses)
            .filter(|access| access.write)
            .filter_map(|access| match access.place {
                Place::Region(region) => region.checked_sub(STORE),
                Place::Arena(_) => None,
            })
            .collect();
        written.sort_unstable();
        written.dedup();
        let schedule = plan::schedule(&work);
        let last_stage = schedule.stages.len().saturating_sub(1);

        // Outputs that take the memory of an input: its tensor stands for both.
        let (pairs, candidates): (Vec<_>, Vec<Reuse>) = candidates.into_iter().unzip();
        let taken = plan::reuse(&work, |a, b| schedule.precedes(a, b), &candidates);
        let mut stands_for: HashMap<u32, u32> = HashMap::new();
        for (pair, candidate) in pairs.into_iter().zip(&candidates) {
            if taken.contains(candidate) {
                let root = stands_for.get(&candidate.input).copied().unwrap_or(candidate.input);
                stands_for.insert(candidate.output, root);
                lowered[candidate.node].reused.push(pair);
            }
        }
        let memory_of = |root: u32| stands_for.get(&root).copied().unwrap_or(root);

        // Memory: roots in the arena, then scratch of each node.
        let mut numbers: HashMap<u32, usize> = HashMap::new();
        let mut blocks: Vec<Block> = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            if matches!(tensor.origin, Origin::Input) {
                numbers.insert(index as u32, blocks.len());
                let bytes = tensor.tensor_type.bytes();
                blocks.push(Block { bytes, alive: (0, last_stage) });
            }
        }
        for (this, span) in work.iter().zip(&schedule.spans) {
            for access in &this.accesses {
                if let Place::Arena(root) = access.place {
                    let root = memory_of(root);
                    let number = *numbers.entry(root).or_insert_with(|| {
                        let bytes = self.tensors[root as usize].tensor_type.bytes();
                        blocks.push(Block { bytes, alive: *span });
                        blocks.len() - 1
                    });
                    let alive = &mut blocks[number].alive;
                    *alive = (alive.0.min(span.0), alive.1.max(span.1));
                }
            }
        }
        for (index, tensor) in self.tensors.iter().enumerate() {
            if tensor.is_output {
                let var = Var { index: index as u32, tape: self.id };
                if let (Place::Arena(root), _) = self.place_of(var, &constants)
                    && let Some(&number) = numbers.get(&memory_of(root))
                {
                    blocks[number].alive.1 = last_stage;
                }
            }
        }
        let first_scratch = blocks.len();
        for (node, span) in lowered.iter().zip(&schedule.spans) {
            blocks.push(Block { bytes: node.launch.scratch_elements() * 4, alive: *span });
        }
        let (offsets, mut memory) = plan::lay_out(&blocks);
        memory.constant_bytes = constant_bytes;

        let span_of = |var: Var, in_place: bool| -> Span {
            let (place, start) = self.place_of(var, &constants);
            let TensorType { shape, dtype } = &self.tensor(var).tensor_type;
            let (region, offset) = match place {
                Place::Arena(root) => {
                    let number = numbers.get(&memory_of(root));
                    (ARENA, number.map_or(0, |&number| offsets[number]) + start)
                }
                Place::Region(region) => (region, start),
            };
            Span { region, offset, len: shape.elements(), dtype: *dtype, in_place }
        };
        let mut nodes = Vec::new();
        let mut reports = Vec::new();
        for (number, Lowered { node, launch, report, reused }) in lowered.into_iter().enumerate() {
            let pairs = node.op.in_place().into_iter().chain(reused);
            let updated: Vec<usize> = pairs.map(|(_, input)| input).collect();
            let inputs = node
                .inputs
                .iter()
                .enumerate()
                .map(|(i, &var)| span_of(var, updated.contains(&i)))
                .collect();
            let outputs = node
                .outputs
                .iter()
                .map(|&var| match used[var.index as usize] {
                    true => span_of(var, false),
                    false => Span { len: 0, region: ARENA, offset: 0, ..span_of(var, false) },
                })
                .collect();
            let scratch = Span {
                region: ARENA,
                offset: offsets[first_scratch + number],
                len: launch.scratch_elements(),
                dtype: DType::F32,
                in_place: false,
            };
            nodes.push(Bound { launch, inputs, outputs, scratch });
            reports.push(report);
        }
        let stages: Vec<Vec<Item>> = schedule
            .stages
            .iter()
            .map(|stage| {
                stage
                    .iter()
                    .map(|item| {
                        item.iter().map(|s| Task { node: s.node, phase: s.phase }).collect()
                    })
                    .collect()
            })
            .collect();
        let ports = self.ports(|var| span_of(var, false));
        let kept = self.kept_spans(|var| span_of(var, false))?;
        let regions = STORE + self.region_bytes.len();
        let program = Program::new(nodes, &stages, regions, cpu.threads());
        let arena = Memory::zeroed(memory.arena_bytes);
        Ok(Recording {
            store: self.store,
            engine: Engine::Cpu(Box::new(OnCpu {
                device: cpu,
                program,
                arena,
                constants: constant_memory,
            })),
            ports,
            reports,
            memory,
            written,
            inputs: self.live_inputs(&used),
            kept,
        })
    }
}
