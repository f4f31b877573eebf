//! The tape: record a step once, differentiate it, plan its memory, replay it for every batch.
//!
//! ```
//! use twoclocks::{Device, Store, Tape, ops};
//! # fn main() -> twoclocks::Result<()> {
//! let mut store = Store::new(&Device::cpu(1)?);
//! let mut tape = Tape::new(&store);
//! let x = tape.input("x", [3])?;
//! let square = ops::mul(&mut tape, x, x)?;
//! let loss = ops::sum(&mut tape, square, &[0], false)?;
//! let dx = tape.backward(loss, &[x])?[0];
//! tape.output(loss)?;
//! tape.output(dx)?;
//! let mut step = tape.compile(&store)?;
//! step.write(x, &[1.0, 2.0, 3.0])?;
//! step.replay(&mut store)?;
//! assert_eq!(step.read(loss)?, [14.0]);
//! assert_eq!(step.read(dx)?, [2.0, 4.0, 6.0]);
//! # Ok(())
//! # }
//! ```

mod backward;
mod cache;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;
mod oracle;
mod plan;
mod recording;
mod series;
mod store;

pub use cache::Cache;
pub use plan::MemoryPlan;
pub use recording::{NodeReport, NotFinite, Recording};
pub use series::KEPT;
pub use store::{Region, SharedValues, Store};

use crate::error::{Error, Result};
use crate::ops::{Operation, Recorder, Var};
use crate::tensor::{DType, Shape, TensorType};
use plan::Place;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a tensor on the tape is.
#[derive(Clone, Debug)]
enum Origin {
    /// Written by the host before a replay.
    Input,
    /// A part of a persistent region, from this byte on.
    Persistent { region: Region, offset: usize },
    /// One value, everywhere.
    Fill(f32),
    /// Output of a node.
    Node(usize),
}

#[derive(Clone, Debug)]
struct Tensor {
    tensor_type: TensorType,
    origin: Origin,
    name: String,
    /// The tensor whose memory this one is, and this one's first byte in it: for views and for
    /// outputs updated in place.
    alias: Option<(Var, usize)>,
    /// Where a node's output is written instead of the arena.
    placed: Option<(Region, usize)>,
    /// A later node updates this memory in place, or is placed there: the name may not be read any
    /// more.
    overwritten: bool,
    /// No gradient flows through this tensor, by the user's word.
    detached: bool,
    is_output: bool,
}

#[derive(Clone, Debug)]
struct Node {
    op: Arc<dyn Operation>,
    inputs: Vec<Var>,
    outputs: Vec<Var>,
    /// Scopes open at recording, joined by `/`.
    scope: String,
}

/// A flat list of recorded operations and their tensors.
#[derive(Debug)]
pub struct Tape {
    id: u32,
    store: u64,
    region_bytes: Vec<(usize, DType)>,
    tensors: Vec<Tensor>,
    nodes: Vec<Node>,
    scopes: Vec<String>,
    /// Tensors that steps keep, and whether one that is not finite stops those that follow.
    kept: Vec<(Var, bool)>,
}

impl Tape {
    /// An empty tape whose persistent tensors are in `store`.
    pub fn new(store: &Store) -> Tape {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Tape {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            store: store.id(),
            region_bytes: store.region_sizes(),
            tensors: Vec::new(),
            nodes: Vec::new(),
            scopes: Vec::new(),
            kept: Vec::new(),
        }
    }

    fn add(&mut self, tensor_type: TensorType, origin: Origin, name: String) -> Var {
        let var = Var { index: self.tensors.len() as u32, tape: self.id };
        self.tensors.push(Tensor {
            tensor_type,
            origin,
            name,
            alias: None,
            placed: None,
            overwritten: false,
            detached: false,
            is_output: false,
        });
        var
    }

    fn tensor(&self, var: Var) -> &Tensor {
        assert_eq!(var.tape, self.id, "a tensor of another tape");
        &self.tensors[var.index as usize]
    }

    fn tensor_mut(&mut self, var: Var) -> &mut Tensor {
        assert_eq!(var.tape, self.id, "a tensor of another tape");
        &mut self.tensors[var.index as usize]
    }

    /// Number of recorded nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing is recorded yet.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// An f32 tensor that the host writes before a replay ([`Recording::write`]).
    ///
    /// # Errors
    /// The name is taken by another input.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>) -> Result<Var> {
        self.input_of(name, TensorType::f32(shape))
    }

    /// A tensor of any type that the host writes before a replay.
    ///
    /// # Errors
    /// The name is taken by another input.
    pub fn input_of(&mut self, name: &str, tensor_type: TensorType) -> Result<Var> {
        let taken = |t: &Tensor| matches!(t.origin, Origin::Input) && t.name == name;
        if self.tensors.iter().any(taken) {
            return Err(Error::operation("input", format!("the name '{name}' is taken")));
        }
        if !tensor_type.is_possible() {
            let problem = format!("'{name}' {tensor_type} is larger than the address space");
            return Err(Error::operation("input", problem));
        }
        Ok(self.add(tensor_type, Origin::Input, name.to_owned()))
    }

    /// A tensor that lives in a persistent region, from element `offset` on: a parameter, a
    /// gradient, an optimizer's moment, the data set.
    ///
    /// # Errors
    /// The region has another element type or is too small.
    pub fn persistent(
        &mut self,
        name: &str,
        region: Region,
        offset: usize,
        shape: impl Into<Shape>,
    ) -> Result<Var> {
        let (bytes, dtype) = self.region(region)?;
        let tensor_type = TensorType::new(shape, dtype);
        let Some(start) = start_within(&tensor_type, offset, bytes) else {
            let problem = format!(
                "'{name}' {tensor_type} from element {offset} on does not fit into {bytes} bytes"
            );
            return Err(Error::operation("persistent", problem));
        };
        let origin = Origin::Persistent { region, offset: start };
        Ok(self.add(tensor_type, origin, name.to_owned()))
    }

    fn region(&self, region: Region) -> Result<(usize, DType)> {
        if region.store != self.store {
            return Err(Error::operation("persistent", "the region is one of another store"));
        }
        self.region_bytes.get(region.index).copied().ok_or_else(|| {
            Error::operation("persistent", "the region was allocated after this tape was made")
        })
    }

    /// Names what is recorded inside `body`: a layer. Scopes nest, and show in profiles and errors.
    pub fn scoped<R>(&mut self, name: &str, body: impl FnOnce(&mut Tape) -> R) -> R {
        self.scopes.push(name.to_owned());
        let result = body(self);
        self.scopes.pop();
        result
    }

    /// Keeps the tensor's value after a replay, for [`Recording::read`].
    ///
    /// # Errors
    /// The tensor is overwritten in place by a recorded node.
    pub fn output(&mut self, var: Var) -> Result<()> {
        self.readable(var, "output")?;
        self.tensor_mut(var).is_output = true;
        Ok(())
    }

    /// Keeps the value of every replay of a series ([`Recording::enqueue`]) for [`Store::collect`]: up to
    /// [`KEPT`] f32 in all, which come in the order of these calls.
    ///
    /// # Errors
    /// As [`Tape::output`]; or it is not f32, or more than fits.
    pub fn keep(&mut self, var: Var) -> Result<()> {
        self.keep_as(var, false)
    }

    /// As [`Tape::keep`], and where the value is not finite, the replays of the series that follow are not
    /// run, or change nothing that outlives them ([`Control::set_u64_halted`](crate::device::Control));
    /// what they keep is NaN.
    ///
    /// # Errors
    /// As [`Tape::keep`].
    pub fn stop_on(&mut self, var: Var) -> Result<()> {
        self.keep_as(var, true)
    }

    fn keep_as(&mut self, var: Var, stops: bool) -> Result<()> {
        self.output(var)?;
        let elements = |var: Var| self.tensor(var).tensor_type.elements();
        let count: usize = self.kept.iter().map(|&(var, _)| elements(var)).sum();
        let found = &self.tensor(var).tensor_type;
        if found.dtype != DType::F32 || count + elements(var) > KEPT {
            let problem = format!(
                "'{}' {found} cannot be kept of every step: {KEPT} f32 can, {count} are",
                self.name(var)
            );
            return Err(Error::operation("keep", problem));
        }
        self.kept.push((var, stops));
        Ok(())
    }

    fn readable(&self, var: Var, op: &str) -> Result<()> {
        if var.tape != self.id {
            return Err(Error::operation(op, "an operand is a tensor of another tape"));
        }
        if self.tensor(var).overwritten {
            let problem = format!("'{}' was updated in place: use the new tensor", self.name(var));
            return Err(Error::operation(op, problem));
        }
        Ok(())
    }

    /// Lets the node that computes `var` write it into a persistent region, from element `offset`
    /// on, instead of the arena; records a copy where that is not possible, and where the tape has
    /// tensors in that place already, so that nodes recorded so far see what was there. Those
    /// tensors may not be read any more. Returns the tensor that lies there.
    ///
    /// # Errors
    /// The region has another element type or is too small, or `var` itself lies across the place.
    pub fn place(&mut self, var: Var, region: Region, offset: usize) -> Result<Var> {
        self.readable(var, "place")?;
        let (bytes, dtype) = self.region(region)?;
        let tensor = self.tensor(var);
        let fits = start_within(&tensor.tensor_type, offset, bytes);
        let Some(start) = fits.filter(|_| tensor.tensor_type.dtype == dtype) else {
            let problem = format!(
                "{} from element {offset} on does not fit into {bytes} bytes of {dtype}",
                tensor.tensor_type
            );
            return Err(Error::operation("place", problem));
        };
        let target = (recording::region_place(region), start, start + tensor.tensor_type.bytes());
        let own = self.extent(var);
        if own == target {
            return Ok(var);
        }
        if overlap(own, target) {
            let problem = format!("'{}' lies across the place where it should go", self.name(var));
            return Err(Error::operation("place", problem));
        }
        let there = self.sharing(target);
        let direct = matches!(tensor.origin, Origin::Node(_))
            && tensor.alias.is_none()
            && tensor.placed.is_none()
            && there.is_empty();
        let var = if direct { var } else { crate::ops::copy(self, var)? };
        self.tensor_mut(var).placed = Some((region, start));
        for other in there {
            self.tensor_mut(other).overwritten = true;
        }
        Ok(var)
    }

    /// The bytes of a tensor: where, first and end. Constants do not count, nothing writes them.
    fn extent(&self, var: Var) -> Extent {
        let (place, start) = self.place_of(var, &HashMap::new());
        (place, start, start + self.tensor(var).tensor_type.bytes())
    }

    /// The tensors so far that have a byte of `extent`.
    fn sharing(&self, extent: Extent) -> Vec<Var> {
        (0..self.tensors.len() as u32)
            .map(|index| Var { index, tape: self.id })
            .filter(|&var| overlap(self.extent(var), extent))
            .collect()
    }

    /// Checks that a node may update `inputs[updated]` in place, and gives the tensors whose memory
    /// changes by it.
    fn overwrites(&self, op: &str, inputs: &[Var], updated: usize) -> Result<Vec<Var>> {
        let var = inputs[updated];
        if matches!(self.tensor(self.root(var).0).origin, Origin::Fill(_)) {
            return Err(Error::operation(op, "a constant cannot be updated in place"));
        }
        let extent = self.extent(var);
        for (i, &input) in inputs.iter().enumerate() {
            if i != updated && overlap(self.extent(input), extent) {
                let problem = format!(
                    "input {i} shares memory with input {updated}, which is updated in place"
                );
                return Err(Error::operation(op, problem));
            }
        }
        let sharing = self.sharing(extent);
        let output = sharing.iter().find(|&&other| self.tensor(other).is_output);
        if let (Some(&output), Place::Arena(_)) = (output, extent.0) {
            let problem = format!("'{}' is an output: its value must last", self.name(output));
            return Err(Error::operation(op, problem));
        }
        Ok(sharing)
    }

    /// Records in the scope in which a tensor was computed.
    pub(crate) fn scoped_as<R>(&mut self, var: Var, body: impl FnOnce(&mut Tape) -> R) -> R {
        let scope = match self.tensor(var).origin {
            Origin::Node(node) => self.nodes[node].scope.clone(),
            _ => String::new(),
        };
        let outer = std::mem::replace(&mut self.scopes, vec![scope]);
        let result = body(self);
        self.scopes = outer;
        result
    }

    /// Declares that no gradient flows through `var`: [`Tape::backward`] takes it as a constant,
    /// and gives zeros instead of an error when asked for its gradient.
    pub fn detach(&mut self, var: Var) {
        self.tensor_mut(var).detached = true;
    }

    /// Name of a tensor: its own, or that of the node that computes it.
    pub fn name(&self, var: Var) -> String {
        let tensor = self.tensor(var);
        match tensor.origin {
            Origin::Node(node) => {
                let number = self.nodes[node].outputs.iter().position(|&output| output == var);
                match number {
                    Some(0) | None => self.label(node),
                    Some(number) => format!("{} output {number}", self.label(node)),
                }
            }
            _ => tensor.name.clone(),
        }
    }

    /// Scope and operation of a node.
    fn label(&self, node: usize) -> String {
        let Node { op, scope, .. } = &self.nodes[node];
        if scope.is_empty() { op.name().to_owned() } else { format!("{scope}/{}", op.name()) }
    }

    /// The tensor whose memory `var` is, and `var`'s first byte in it.
    fn root(&self, var: Var) -> (Var, usize) {
        let (mut root, mut offset) = (var, 0);
        while let Some((base, start)) = self.tensor(root).alias {
            root = base;
            offset += start;
        }
        (root, offset)
    }
}

/// Memory, first byte and end.
type Extent = (Place, usize, usize);

fn overlap(a: Extent, b: Extent) -> bool {
    a.0 == b.0 && a.1 < a.2 && b.1 < b.2 && a.1 < b.2 && b.1 < a.2
}

/// First byte of a tensor from element `offset` of a region on, if the region's bytes hold it.
fn start_within(tensor_type: &TensorType, offset: usize, bytes: usize) -> Option<usize> {
    let start = offset.checked_mul(tensor_type.dtype.size())?;
    let fits = tensor_type.is_possible() && start.checked_add(tensor_type.bytes())? <= bytes;
    fits.then_some(start)
}

impl Recorder for Tape {
    fn push(&mut self, op: Arc<dyn Operation>, inputs: &[Var]) -> Result<Vec<Var>> {
        for &input in inputs {
            self.readable(input, op.name())?;
        }
        let types: Vec<TensorType> =
            inputs.iter().map(|&input| self.tensor_type(input).clone()).collect();
        let scope = self.scopes.join("/");
        let in_scope = |error: Error| match error {
            Error::Operation { op, problem } if !scope.is_empty() => {
                Error::Operation { op: format!("{scope}/{op}"), problem }
            }
            other => other,
        };
        let outputs = op.infer(&types).map_err(in_scope)?;
        if let Some(large) = outputs.iter().find(|output| !output.is_possible()) {
            let problem = format!("the result {large} is larger than the address space");
            return Err(in_scope(Error::operation(op.name(), problem)));
        }
        let mut overwritten = Vec::new();
        for (_, input) in op.in_place() {
            overwritten.extend(self.overwrites(op.name(), inputs, input).map_err(in_scope)?);
        }
        let node = self.nodes.len();
        let vars: Vec<Var> = outputs
            .into_iter()
            .map(|output| self.add(output, Origin::Node(node), String::new()))
            .collect();
        if let Some(first) = op.view(&types) {
            assert_eq!(vars.len(), 1, "a view has one output");
            let view = self.tensor_type(vars[0]);
            let end = first.checked_add(view.elements());
            let fits = end.is_some_and(|end| end <= types[0].elements());
            assert!(fits && view.dtype == types[0].dtype, "a view lies within its input");
            let start = first * types[0].dtype.size();
            self.tensor_mut(vars[0]).alias = Some((inputs[0], start));
        }
        for (output, input) in op.in_place() {
            let var = inputs[input];
            assert_eq!(
                self.tensor_type(vars[output]),
                self.tensor_type(var),
                "a tensor updated in place keeps its type"
            );
            self.tensor_mut(var).overwritten = true;
            self.tensor_mut(vars[output]).alias = Some((var, 0));
        }
        for var in overwritten {
            self.tensor_mut(var).overwritten = true;
        }
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: vars.clone(), scope });
        Ok(vars)
    }

    fn tensor_type(&self, var: Var) -> &TensorType {
        &self.tensor(var).tensor_type
    }

    fn fill(&mut self, shape: Shape, value: f32) -> Var {
        self.add(TensorType::f32(shape), Origin::Fill(value), format!("constant {value}"))
    }

    fn computed_by(&self, var: Var) -> Option<(Arc<dyn Operation>, Vec<Var>)> {
        if var.tape != self.id {
            return None;
        }
        let tensor = self.tensor(var);
        let Origin::Node(node) = tensor.origin else { return None };
        let Node { op, inputs, outputs, .. } = &self.nodes[node];
        let free = tensor.alias.is_none()
            && tensor.placed.is_none()
            && !tensor.overwritten
            && !tensor.detached
            && !tensor.is_output
            && inputs.iter().all(|&input| !self.tensor(input).overwritten);
        (free && outputs.len() == 1).then(|| (Arc::clone(op), inputs.clone()))
    }

    fn is_fill(&self, var: Var, value: f32) -> bool {
        matches!(self.tensor(var).origin, Origin::Fill(found) if found == value)
    }
}
