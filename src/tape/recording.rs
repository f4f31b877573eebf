//! A compiled tape: a program with its memory, replayed for every batch.

use super::plan::{Access, MemoryPlan, Place, Reuse};
use super::{Origin, Region, Store, Tape};
use crate::device::cpu::program::Span;
use crate::device::cpu::trace::UnitTime;
use crate::device::cpu::{Isa, Memory, Trial};
use crate::device::{Device, Target};
use crate::error::{Error, Result};
use crate::ops::{Cost, Site, Var};
use crate::tensor::{Element, TensorType};
use std::collections::HashMap;
use std::sync::Arc;

/// Region numbers within a program: the arena, the constants, then those of the store.
pub(super) const ARENA: usize = 0;
pub(super) const CONSTANTS: usize = 1;
pub(super) const STORE: usize = 2;

/// The place of a region of the store.
pub(super) fn region_place(region: Region) -> Place {
    Place::Region(STORE + region.index)
}

/// A node of a recording, for profiles.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Scope and operation: `fc1/linear`.
    pub label: String,
    /// Name of the operation.
    pub op: &'static str,
    /// Kernel that runs it; `naive` where the operation has none for this device.
    pub kernel: &'static str,
    /// FLOPs and fewest bytes.
    pub cost: Cost,
    /// Chunks of each phase.
    pub chunks: Vec<usize>,
    /// Types of the outputs.
    pub outputs: Vec<TensorType>,
}

/// Where a replay first met a value that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// Scope and operation, or name of the tensor.
    pub place: String,
    /// Index of the element, row-major.
    pub index: usize,
    /// The value.
    pub value: f32,
}

/// A tensor that the host may write or read.
pub(super) struct Port {
    pub(super) span: Span,
    pub(super) is_input: bool,
    pub(super) name: String,
}

/// A node that a program runs, with what its operation sees of it.
pub(super) struct Seen<'t> {
    pub(super) node: &'t super::Node,
    pub(super) label: String,
    pub(super) inputs: Vec<TensorType>,
    pub(super) outputs: Vec<TensorType>,
    /// Whether anybody reads each output.
    used: Vec<bool>,
}

impl Seen<'_> {
    pub(super) fn site(&self, isa: Isa, target: Target) -> Site<'_> {
        Site { inputs: &self.inputs, outputs: &self.outputs, used: &self.used, isa, target }
    }
}

/// What a recording needs to run, by device.
pub(super) enum Engine {
    Cpu(Box<super::cpu::OnCpu>),
    #[cfg(feature = "cuda")]
    Cuda(Box<super::cuda::OnCuda>),
}

/// A recorded step, compiled for a device: replaying it allocates nothing.
pub struct Recording {
    pub(super) store: u64,
    pub(super) engine: Engine,
    pub(super) ports: HashMap<Var, Port>,
    pub(super) reports: Vec<NodeReport>,
    pub(super) memory: MemoryPlan,
    /// Regions of the store that a replay writes.
    pub(super) written: Vec<usize>,
    /// Inputs that nodes read, by name: the host writes them.
    pub(super) inputs: Vec<String>,
    /// What each replay of a series keeps, and whether one that is not finite stops the series.
    pub(super) kept: Vec<(Span, bool)>,
}

impl Tape {
    /// Compiles what is recorded for the store's device. Nodes whose results nobody asked for
    /// (by [`Tape::output`], [`Tape::place`] or an update in place) are left out.
    ///
    /// # Errors
    /// The store is not the one that the tape was made for. On a GPU: an operation has no kernel there,
    /// one does not load or cannot be launched, or the device is out of memory.
    pub fn compile(&self, store: &Store) -> Result<Recording> {
        if store.id() != self.store {
            return Err(Error::operation("compile", "the tape was made for another store"));
        }
        store.check()?;
        match store.device() {
            Device::Cpu(cpu) => {
                let recording = self.compile_for_cpu(Arc::clone(cpu))?;
                store.check_written(&recording.written)?;
                Ok(recording)
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => self.compile_for_cuda(cuda, store),
        }
    }

    /// Marks the nodes that are needed, and for each tensor whether anybody reads it.
    pub(super) fn live(&self) -> (Vec<bool>, Vec<bool>) {
        let mut needed = vec![false; self.nodes.len()];
        let mut used = vec![false; self.tensors.len()];
        for (tensor, used) in self.tensors.iter().zip(&mut used) {
            *used = tensor.is_output || tensor.placed.is_some();
        }
        for (index, node) in self.nodes.iter().enumerate().rev() {
            let in_place = node.op.in_place();
            let updates_persistent = in_place.iter().any(|&(output, _)| {
                let (root, _) = self.root(node.outputs[output]);
                let root = self.tensor(root);
                matches!(root.origin, Origin::Persistent { .. }) || root.placed.is_some()
            });
            let read = node.outputs.iter().any(|output| used[output.index as usize]);
            if read || updates_persistent {
                needed[index] = true;
                for input in &node.inputs {
                    used[input.index as usize] = true;
                }
                for (output, _) in in_place {
                    used[node.outputs[output].index as usize] = true;
                }
            }
        }
        (needed, used)
    }

    /// The nodes that a program runs, in recorded order: those that are needed and are no views.
    pub(super) fn to_lower<'t>(
        &'t self,
        needed: &'t [bool],
        used: &'t [bool],
    ) -> impl Iterator<Item = Seen<'t>> {
        let types = |vars: &[Var]| -> Vec<TensorType> {
            vars.iter().map(|&var| self.tensor(var).tensor_type.clone()).collect()
        };
        let needed = self.nodes.iter().enumerate().filter(|&(index, _)| needed[index]);
        needed.filter_map(move |(index, node)| {
            let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
            let used = node.outputs.iter().map(|output| used[output.index as usize]).collect();
            let seen = Seen { node, label: self.label(index), inputs, outputs, used };
            seen.node.op.view(&seen.inputs).is_none().then_some(seen)
        })
    }

    /// Where a tensor lies: its memory and its first byte there.
    pub(super) fn place_of(&self, var: Var, constants: &HashMap<Var, usize>) -> (Place, usize) {
        let (root, offset) = self.root(var);
        let tensor = self.tensor(root);
        match (&tensor.origin, tensor.placed) {
            (_, Some((region, start))) => (region_place(region), start + offset),
            (Origin::Persistent { region, offset: start }, None) => {
                (region_place(*region), start + offset)
            }
            (Origin::Fill(_), None) => {
                (Place::Region(CONSTANTS), constants.get(&root).copied().unwrap_or(0) + offset)
            }
            (Origin::Input | Origin::Node(_), None) => (Place::Arena(root.index), offset),
        }
    }

    /// The tensors of the arena that `output` and `input` are, if the one may take the other's
    /// memory as far as the two are concerned: `input` is all that its node computes there, and the
    /// host does not read it.
    fn reusable(&self, output: Var, input: Var, used: &[bool]) -> Option<(u32, u32)> {
        let (root, _) = self.root(input);
        let (out, tensor) = (self.tensor(output), self.tensor(root));
        let marked = |index: usize| {
            let var = Var { index: index as u32, tape: self.id };
            self.tensors[index].is_output && self.root(var).0 == root
        };
        let own = |tensor: &super::Tensor| {
            matches!(tensor.origin, Origin::Node(_)) && tensor.placed.is_none()
        };
        let fits = used[output.index as usize]
            && own(out)
            && out.alias.is_none()
            && own(tensor)
            && out.tensor_type.dtype == tensor.tensor_type.dtype
            && out.tensor_type.bytes() == tensor.tensor_type.bytes()
            && self.tensor(input).tensor_type.bytes() == tensor.tensor_type.bytes()
            && !(0..self.tensors.len()).any(marked);
        fits.then_some((output.index, root.index))
    }

    /// The first byte of each constant that is read, and all of them.
    pub(super) fn constants(&self, used: &[bool]) -> (HashMap<Var, usize>, Memory) {
        let mut constants = HashMap::new();
        let mut bytes = 0;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let var = Var { index: index as u32, tape: self.id };
            if matches!(tensor.origin, Origin::Fill(_)) && used[index] {
                constants.insert(var, bytes);
                bytes += tensor.tensor_type.bytes().next_multiple_of(64);
            }
        }
        let mut memory = Memory::zeroed(bytes);
        for (&var, &offset) in &constants {
            let tensor = self.tensor(var);
            if let Origin::Fill(value) = tensor.origin {
                memory.elements_mut(offset, tensor.tensor_type.elements()).fill(value);
            }
        }
        (constants, memory)
    }

    /// What a node reads and writes.
    pub(super) fn accesses(
        &self,
        node: &super::Node,
        used: &[bool],
        constants: &HashMap<Var, usize>,
    ) -> Vec<Access> {
        let inputs = node.inputs.iter().map(|&var| (var, false));
        let outputs = node.outputs.iter().map(|&var| (var, true));
        let touched =
            inputs.chain(outputs).filter(|&(var, write)| !write || used[var.index as usize]);
        touched
            .map(|(var, write)| {
                let (place, start) = self.place_of(var, constants);
                let end = start + self.tensor(var).tensor_type.bytes();
                Access { place, start, end, write }
            })
            .collect()
    }

    /// The reuses of memory that a node offers and that its tensors allow: pairs of output and input.
    pub(super) fn reuses(
        &self,
        node: &super::Node,
        number: usize,
        used: &[bool],
    ) -> Vec<((usize, usize), Reuse)> {
        let pairs = node.op.may_reuse().into_iter().filter_map(|(output, input)| {
            let (output_root, input_root) =
                self.reusable(node.outputs[output], node.inputs[input], used)?;
            Some(((output, input), Reuse { node: number, output: output_root, input: input_root }))
        });
        pairs.collect()
    }

    /// Names of the inputs that nodes read.
    pub(super) fn live_inputs(&self, used: &[bool]) -> Vec<String> {
        let live = self.tensors.iter().zip(used);
        live.filter(|(tensor, used)| **used && matches!(tensor.origin, Origin::Input))
            .map(|(tensor, _)| tensor.name.clone())
            .collect()
    }

    /// What each replay of a series keeps.
    pub(super) fn kept_spans(&self, span_of: impl Fn(Var) -> Span) -> Result<Vec<(Span, bool)>> {
        let kept = self.kept.iter().map(|&(var, stops)| {
            let span = span_of(var);
            if span.region >= STORE {
                let problem = "lies in a region of the store: read it there";
                return Err(Error::operation(format!("'{}'", self.name(var)), problem));
            }
            Ok((span, stops))
        });
        kept.collect()
    }

    /// What the host may write or read, and where it lies.
    pub(super) fn ports(&self, span_of: impl Fn(Var) -> Span) -> HashMap<Var, Port> {
        let mut ports = HashMap::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            let var = Var { index: index as u32, tape: self.id };
            let is_input = matches!(tensor.origin, Origin::Input);
            if is_input || tensor.is_output {
                let name = self.name(var);
                ports.insert(var, Port { span: span_of(var), is_input, name });
            }
        }
        ports
    }
}

impl Recording {
    fn port(&self, var: Var) -> Result<&Port> {
        self.ports.get(&var).ok_or_else(|| {
            Error::operation("recording", "this tensor is neither an input nor a marked output")
        })
    }

    fn checked_port<T: Element>(&self, var: Var, len: usize) -> Result<Span> {
        let port = self.port(var)?;
        if port.span.dtype != T::DTYPE || port.span.len != len {
            let problem = format!(
                "has {} elements of {}, not {len} of {}",
                port.span.len,
                port.span.dtype,
                T::DTYPE
            );
            return Err(Error::operation(format!("'{}'", port.name), problem));
        }
        Ok(port.span)
    }

    /// Writes an input for the replays to come.
    ///
    /// # Errors
    /// Not an input of this recording, or another element type or length.
    pub fn write<T: Element>(&mut self, var: Var, values: &[T]) -> Result<()> {
        let span = self.checked_port::<T>(var, values.len())?;
        if !self.port(var)?.is_input {
            return Err(Error::operation("write", "this tensor is not an input"));
        }
        match &mut self.engine {
            Engine::Cpu(cpu) => {
                cpu.arena.elements_mut(span.offset, span.len).copy_from_slice(values);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.write(span.offset, bytemuck::cast_slice(values)),
        }
    }

    /// Copies an output of the last replay into `values`. Not for tensors in a region of the
    /// store: read those by [`Store::read`].
    ///
    /// # Errors
    /// Not an input or marked output of this recording, or another element type or length.
    pub fn read_into<T: Element>(&self, var: Var, values: &mut [T]) -> Result<()> {
        let span = self.checked_port::<T>(var, values.len())?;
        if span.region >= STORE {
            let problem = "lies in a region of the store: read it there";
            return Err(Error::operation(format!("'{}'", self.port(var)?.name), problem));
        }
        match &self.engine {
            Engine::Cpu(cpu) => {
                values.copy_from_slice(cpu.elements(span));
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.read(span, bytemuck::cast_slice_mut(values)),
        }
    }

    /// An f32 output of the last replay.
    ///
    /// # Errors
    /// As [`Recording::read_into`].
    pub fn read(&self, var: Var) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.port(var)?.span.len];
        self.read_into(var, &mut values)?;
        Ok(values)
    }

    /// Before every kind of replay: derived regions are brought up to date, and those that this
    /// recording leaves behind are noted.
    pub(super) fn begin(&self, store: &mut Store) -> Result<()> {
        self.check_store(store)?;
        store.check()?;
        store.refresh()?;
        store.note_written(&self.written);
        Ok(())
    }

    pub(super) fn check_store(&self, store: &Store) -> Result<()> {
        if store.id() != self.store {
            return Err(Error::operation("replay", "the recording was made for another store"));
        }
        Ok(())
    }

    /// Runs the recorded step once. Allocates nothing after the first call.
    ///
    /// # Errors
    /// The store is not the one that the recording was made for, or a series was begun
    /// ([`Recording::enqueue`]) and not collected.
    pub fn replay(&mut self, store: &mut Store) -> Result<()> {
        self.begin_alone(store)?;
        match &mut self.engine {
            Engine::Cpu(cpu) => cpu.replay(store),
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => return cuda.replay(store),
        }
        Ok(())
    }

    /// Before a replay that is not one of a series.
    fn begin_alone(&self, store: &mut Store) -> Result<()> {
        self.begin(store)?;
        match store.series.open {
            true => Err(Error::operation("replay", "a series was begun and not collected")),
            false => Ok(()),
        }
    }

    /// As [`Recording::replay`], and says when and where each unit of work ran, with the
    /// nanoseconds of the whole replay.
    ///
    /// # Errors
    /// As [`Recording::replay`]; or the device is a GPU, which says nothing of the kind.
    pub fn replay_traced(&mut self, store: &mut Store) -> Result<(Vec<UnitTime>, u64)> {
        self.begin_alone(store)?;
        match &mut self.engine {
            Engine::Cpu(cpu) => {
                let (regions, control) = store.parts();
                let own = [&mut cpu.arena, &mut cpu.constants];
                let regions = own.into_iter().chain(regions);
                Ok(cpu.program.replay_traced(cpu.device.team(), regions, control))
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => {
                Err(Error::device(store.device().name(), "replays are traced on the CPU only"))
            }
        }
    }

    /// Runs the recorded step once, node after node, and gives each node's time in nanoseconds: on a GPU by
    /// its own clock.
    ///
    /// # Errors
    /// As [`Recording::replay`].
    pub fn replay_timed(
        &mut self,
        store: &mut Store,
        mut each: impl FnMut(usize, u64),
    ) -> Result<()> {
        self.begin_alone(store)?;
        match &mut self.engine {
            Engine::Cpu(cpu) => {
                let (regions, control) = store.parts();
                let own = [&mut cpu.arena, &mut cpu.constants];
                let regions = own.into_iter().chain(regions);
                let team = cpu.device.team();
                cpu.program.replay_by_node(team, regions, control, |node, time, _, _| {
                    each(node, time);
                });
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.replay_timed(store, each),
        }
    }

    /// Runs the recorded step once, node after node, and reports the first result that is not
    /// finite. As slow as a debugger: for finding out where a run diverged.
    ///
    /// # Errors
    /// As [`Recording::replay`].
    pub fn replay_checked(&mut self, store: &mut Store) -> Result<Option<NotFinite>> {
        self.begin_alone(store)?;
        let reports = &self.reports;
        match &mut self.engine {
            Engine::Cpu(cpu) => {
                let (regions, control) = store.parts();
                let own = [&mut cpu.arena, &mut cpu.constants];
                let regions = own.into_iter().chain(regions);
                let team = cpu.device.team();
                let mut first = None;
                cpu.program.replay_by_node(team, regions, control, |node, _, spans, read| {
                    for span in spans {
                        if first.is_none()
                            && let Some((index, &value)) =
                                read(span).iter().enumerate().find(|(_, value)| !value.is_finite())
                        {
                            let place = reports[node].label.clone();
                            first = Some(NotFinite { place, index, value });
                        }
                    }
                });
                Ok(first)
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.replay_checked(store, reports),
        }
    }

    /// The nodes in the order in which they were recorded.
    pub fn nodes(&self) -> &[NodeReport] {
        &self.reports
    }

    /// FLOPs and fewest bytes of one replay: the sums over all nodes.
    pub fn cost(&self) -> Cost {
        self.reports.iter().fold(Cost::default(), |sum, report| Cost {
            flops: sum.flops + report.cost.flops,
            bytes: sum.bytes + report.cost.bytes,
        })
    }

    /// How much memory the recording takes.
    pub fn memory(&self) -> MemoryPlan {
        self.memory
    }

    /// How long replays took with the help of other threads and without, when that was last tried:
    /// short ones are given help only where they gain by it.
    pub fn trial(&self) -> Option<Trial> {
        match &self.engine {
            Engine::Cpu(cpu) => cpu.program.trial(),
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => None,
        }
    }

    /// Stages of a replay: one more than its barriers. On a GPU nodes of the longest chain in which each
    /// waits for the one before.
    pub fn stages(&self) -> usize {
        match &self.engine {
            Engine::Cpu(cpu) => cpu.program.stages(),
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.stages(),
        }
    }
}
