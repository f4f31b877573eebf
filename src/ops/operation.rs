//! The contract of an operation, for the crate's own and for those of its users.

use crate::device::cpu::{Isa, Launch};
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::device::{Control, Target};
use crate::error::{Error, Result};
use crate::tensor::{Shape, TensorType};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A tensor on a tape: the name of a buffer, not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var {
    pub(crate) index: u32,
    pub(crate) tape: u32,
}

/// Something that operations can be recorded on: the tape.
///
/// Operations know only this, so that they stay below the tape: they record themselves with
/// [`Recorder::push`], and their gradients as further operations.
pub trait Recorder {
    /// Appends a node and returns its outputs.
    ///
    /// # Errors
    /// The operation refuses the inputs' types, or an input is of another tape.
    fn push(&mut self, op: Arc<dyn Operation>, inputs: &[Var]) -> Result<Vec<Var>>;

    /// Shape and element type of a tensor.
    ///
    /// # Panics
    /// If the tensor is of another tape.
    fn tensor_type(&self, var: Var) -> &TensorType;

    /// An f32 tensor of that shape with every element `value`, baked into the recording.
    fn fill(&mut self, shape: Shape, value: f32) -> Var;

    /// The operation that computes a tensor as its only output, and its inputs; `None` where somebody
    /// wants the tensor itself to be kept, or the recorder does not say. So an operation can be recorded
    /// together with the one before it, which is dropped if nobody else reads its output: else it is
    /// computed twice.
    fn computed_by(&self, var: Var) -> Option<(Arc<dyn Operation>, Vec<Var>)> {
        let _ = var;
        None
    }

    /// Whether the tensor was made by [`Recorder::fill`] with that value: a gradient rule need not
    /// multiply by an upstream gradient of ones.
    fn is_fill(&self, var: Var, value: f32) -> bool;
}

/// Records an operation that has one output.
///
/// # Errors
/// As [`Recorder::push`].
pub fn push_one(tape: &mut dyn Recorder, op: impl Operation, inputs: &[Var]) -> Result<Var> {
    let outputs = tape.push(Arc::new(op), inputs)?;
    assert_eq!(outputs.len(), 1, "push_one is for operations of one output");
    Ok(outputs[0])
}

/// Types of a node's tensors, and the instruction set or GPU: what a kernel is chosen by.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// Types of the inputs.
    pub inputs: &'a [TensorType],
    /// Types of the outputs.
    pub outputs: &'a [TensorType],
    /// Which outputs anybody reads; a kernel need not compute the others, and
    /// [`crate::device::cpu::Chunk::output`] gives an empty slice for them.
    pub used: &'a [bool],
    /// Instruction set of the CPU's kernels.
    pub isa: Isa,
    /// The GPU that kernels of [`Operation::cuda`] are for.
    pub target: Target,
}

/// Work that an operation cannot avoid.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations, a fused multiply-add counted as two.
    pub flops: f64,
    /// Fewest bytes moved between the kernel and memory: every input read and every output
    /// written once.
    pub bytes: f64,
}

impl Cost {
    /// That many FLOPs, and every input and used output moved once.
    pub fn of(flops: f64, site: &Site<'_>) -> Cost {
        let inputs: usize = site.inputs.iter().map(TensorType::bytes).sum();
        let used = site.outputs.iter().zip(site.used).filter(|(_, used)| **used);
        let outputs: usize = used.map(|(output, _)| output.bytes()).sum();
        Cost { flops, bytes: (inputs + outputs) as f64 }
    }
}

/// A tensor of the oracle: values in f64 whatever the element type is.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Shape and element type.
    pub tensor_type: TensorType,
    /// Row-major elements.
    pub data: Vec<f64>,
}

impl Values {
    /// Zeros of that type.
    pub fn zeros(tensor_type: TensorType) -> Values {
        let data = vec![0.0; tensor_type.elements()];
        Values { tensor_type, data }
    }

    /// Extent of the last axis.
    pub fn columns(&self) -> usize {
        self.tensor_type.shape.columns()
    }

    /// Number of vectors along the last axis.
    pub fn rows(&self) -> usize {
        self.tensor_type.shape.rows()
    }

    /// Vector `row` along the last axis.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.columns()..][..self.columns()]
    }

    /// Vector `row` along the last axis, to write.
    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        let columns = self.columns();
        &mut self.data[row * columns..][..columns]
    }
}

/// One operation, with everything that the crate needs to know of it.
///
/// # Gradients
/// [`Operation::gradient`] records operations. Each input that needs a gradient must be given one
/// by [`Rule::give`]; one that is not is an error that names it, never a zero.
pub trait Operation: Any + fmt::Debug + Send + Sync {
    /// Name: of the folder, of the benchmark row, in errors and profiles.
    fn name(&self) -> &'static str;

    /// Types of the outputs for inputs of these types.
    ///
    /// # Errors
    /// The shapes or element types do not fit; the error names them.
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>>;

    /// The obvious computation with f64 accumulators: the oracle of every test, and the fallback
    /// where [`Operation::cpu`] has nothing. `outputs` are zeros, or the input's values where an
    /// output is updated in place.
    fn naive(&self, inputs: &[Values], outputs: &mut [Values], control: &Control);

    /// The SIMD kernel for a site; `None` lets [`Operation::naive`] serve.
    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        let _ = site;
        None
    }

    /// The kernels of the GPU for a site; with `None` the tape cannot be compiled for one, and the
    /// error names the operation.
    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        let _ = site;
        None
    }

    /// Records the gradients of the inputs.
    ///
    /// # Errors
    /// There is no rule, or recording fails.
    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let _ = rule;
        Err(Error::gradient(self.name(), "this operation has no gradient rule"))
    }

    /// FLOPs and fewest bytes.
    fn cost(&self, site: &Site<'_>) -> Cost;

    /// Pairs (output, input) of tensors that are one and the same memory, updated in place.
    fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Pairs (output, input) where the kernel is right too when the output takes the input's memory,
    /// whose values are then lost. The tape decides: it does so where nothing else reads the input
    /// afterwards. [`crate::device::cpu::Chunk::in_place`] tells the kernel, which then finds the
    /// input's values in the output.
    ///
    /// Both are of one type, and nothing reads an element of the input after anything else than
    /// its own chunk may have written the same element of the output.
    fn may_reuse(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// For an operation without a kernel, whose one output is its first input's memory seen
    /// otherwise: the output's first element, counted in the input.
    fn view(&self, inputs: &[TensorType]) -> Option<usize> {
        let _ = inputs;
        None
    }
}

/// The recording of one node's gradient.
pub struct Rule<'a> {
    /// Where the gradient's operations are recorded.
    pub tape: &'a mut dyn Recorder,
    /// The node's inputs.
    pub inputs: &'a [Var],
    /// The node's outputs.
    pub outputs: &'a [Var],
    upstream: &'a [Option<Var>],
    owned: Vec<bool>,
    needs: &'a [bool],
    given: Vec<Option<Var>>,
    name: &'static str,
}

impl<'a> Rule<'a> {
    pub(crate) fn new(
        tape: &'a mut dyn Recorder,
        name: &'static str,
        inputs: &'a [Var],
        outputs: &'a [Var],
        upstream: &'a [Option<Var>],
        needs: &'a [bool],
    ) -> Self {
        let given = vec![None; inputs.len()];
        let owned = vec![false; outputs.len()];
        Rule { tape, inputs, outputs, upstream, owned, needs, given, name }
    }

    /// The same where these upstream gradients are this node's alone.
    pub(crate) fn owning(self, owned: Vec<bool>) -> Self {
        Rule { owned, ..self }
    }

    /// Whether the gradient with respect to output `i` was recorded by this reverse walk and for this
    /// output alone: then nobody misses it if it is not computed apart.
    pub fn owns_upstream(&self, i: usize) -> bool {
        self.owned[i]
    }

    /// Gradient of the loss with respect to output `i`; `None` if the loss does not depend on it.
    pub fn upstream(&self, i: usize) -> Option<Var> {
        self.upstream[i]
    }

    /// Gradient with respect to the only output.
    ///
    /// # Errors
    /// The loss depends on another output, which this rule does not cover.
    pub fn only_upstream(&self) -> Result<Var> {
        match self.upstream {
            [Some(dy)] => Ok(*dy),
            [Some(dy), rest @ ..] if rest.iter().all(Option::is_none) => Ok(*dy),
            _ => Err(Error::gradient(
                self.name,
                "only its first output has a gradient rule, and the loss depends on another one",
            )),
        }
    }

    /// Whether input `i` needs a gradient.
    pub fn needs(&self, i: usize) -> bool {
        self.needs[i]
    }

    /// States the gradient of input `i`.
    ///
    /// # Errors
    /// Its shape is not the input's.
    pub fn give(&mut self, i: usize, gradient: Var) -> Result<()> {
        let wanted = &self.tape.tensor_type(self.inputs[i]).shape;
        let found = &self.tape.tensor_type(gradient).shape;
        if wanted != found {
            let problem = format!("input {i} has shape {wanted}, its gradient {found}");
            return Err(Error::gradient(self.name, problem));
        }
        self.given[i] = Some(gradient);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Vec<Option<Var>>> {
        for (i, (needs, given)) in self.needs.iter().zip(&self.given).enumerate() {
            if *needs && given.is_none() {
                let problem = format!("input {i} needs a gradient and the rule gives none");
                return Err(Error::gradient(self.name, problem));
            }
        }
        Ok(self.given)
    }
}
