//! Layers and models: their parameters, their initialisation, and what they record.
//!
//! A model is a plain struct of layers that implements [`Module`], or a list of layers from a
//! configuration ([`Sequential`]).

mod config;
mod initial;
mod layers;
mod parameters;

pub use config::{ActivationName, LayerConfig, Sequential};
pub use initial::Initial;
pub use layers::{Activate, Dropout, Embedding, Flatten, LayerNorm, Linear, RmsNorm};
pub use parameters::{Bound, Parameter, ParameterInfo, Parameters, Role};

use crate::error::Result;
use crate::gemm::{PackedWeight, Precision};
use crate::ops::{Activation, Var, Weight};
use crate::tape::Tape;

/// What a recording is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Training: dropout is on.
    Train,
    /// Review and prediction.
    Eval,
}

/// What a layer does, as far as measurements of a model go by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LayerKind {
    /// `act(x W + b)`.
    Linear {
        /// W.
        weight: Parameter,
        /// What follows in the same operation.
        activation: Activation,
    },
    /// An activation of its own.
    Activation(Activation),
    /// Brings vectors to a common size: by their deviation, or their root mean square.
    Norm,
}

/// A layer in a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    /// Its name: that of the scope in which it was recorded, of its parameters where there is none.
    pub name: String,
    /// What it does.
    pub kind: LayerKind,
    /// What it reads.
    pub input: Var,
    /// What it gives.
    pub output: Var,
}

/// The recording of one pass through a model.
pub struct Forward<'a> {
    /// Where the operations go.
    pub tape: &'a mut Tape,
    /// What the recording is for.
    pub mode: Mode,
    parameters: &'a Bound,
    vars: Vec<Option<Var>>,
    scope: String,
    noted: Vec<Noted>,
}

impl<'a> Forward<'a> {
    /// A pass that reads its parameters from `parameters`.
    pub fn new(tape: &'a mut Tape, mode: Mode, parameters: &'a Bound) -> Self {
        let vars = vec![None; parameters.infos().len()];
        Forward { tape, mode, parameters, vars, scope: String::new(), noted: Vec::new() }
    }

    /// The tensor of a parameter on this tape; the same one at every call.
    ///
    /// # Errors
    /// The tape was made before the parameters were allocated.
    pub fn parameter(&mut self, parameter: Parameter) -> Result<Var> {
        if let Some(var) = self.vars[parameter.index()] {
            return Ok(var);
        }
        let info = &self.parameters.infos()[parameter.index()];
        let region = self.parameters.weights();
        let var = self.tape.persistent(&info.name, region, info.offset, &info.shape)?;
        self.vars[parameter.index()] = Some(var);
        Ok(var)
    }

    /// A weight of a product: its tensor, and its packed copies where it has them.
    ///
    /// # Errors
    /// As [`Forward::parameter`].
    pub fn weight(&mut self, parameter: Parameter) -> Result<Weight> {
        let values = self.parameter(parameter)?;
        let Some((packed, region)) = self.parameters.packed() else {
            return Ok(Weight { values, packed: None });
        };
        let info = &self.parameters.infos()[parameter.index()];
        // Parameters without elements share their place with the next one.
        let own = (info.offset, info.shape.rows(), info.shape.columns());
        let same = |weight: &&PackedWeight| (weight.offset, weight.inputs, weight.outputs) == own;
        let Some(weight) = packed.weights().iter().find(same) else {
            return Ok(Weight { values, packed: None });
        };
        let mut copy = |number: usize, what: &str| {
            let (name, len) = (format!("{}.{what}", info.name), weight.layouts[number].len());
            self.tape.persistent(&name, region, weight.places[number], [len])
        };
        Ok(Weight { values, packed: Some([copy(0, "packed")?, copy(1, "packed transposed")?]) })
    }

    /// How products are computed.
    pub fn precision(&self) -> Precision {
        self.parameters.precision()
    }

    /// Where the random masks of a training pass come from: the seed that is baked in, and the
    /// slot of the counter that changes from step to step.
    pub fn randomness(&self) -> (u64, crate::device::U64Slot) {
        self.parameters.randomness()
    }

    /// Runs `body` inside a scope of the tape: its nodes carry the name.
    pub fn scoped<R>(&mut self, name: &str, body: impl FnOnce(&mut Forward<'_>) -> R) -> R {
        let (mode, parameters) = (self.mode, self.parameters);
        let (vars, noted) = (&mut self.vars, &mut self.noted);
        let scope = match self.scope.is_empty() {
            true => name.to_owned(),
            false => format!("{}/{name}", self.scope),
        };
        self.tape.scoped(name, |tape| {
            let (taken, before) = (std::mem::take(vars), std::mem::take(noted));
            let mut inner = Forward { tape, mode, parameters, vars: taken, scope, noted: before };
            let result = body(&mut inner);
            (*vars, *noted) = (inner.vars, inner.noted);
            result
        })
    }

    /// Notes what a layer did, for those who measure the model. The layers of this module do so; one that
    /// does not is not measured.
    pub fn note(&mut self, kind: LayerKind, input: Var, output: Var) {
        let name = match kind {
            LayerKind::Linear { weight, .. } if self.scope.is_empty() => {
                self.parameters.infos()[weight.index()].layer().to_owned()
            }
            _ => self.scope.clone(),
        };
        self.noted.push(Noted { name, kind, input, output });
    }

    /// The layers so far, in the order of the pass.
    pub fn noted(&self) -> &[Noted] {
        &self.noted
    }

    /// The parameters that were read, with their tensors, in the order of their declaration.
    pub fn into_read(self) -> Vec<(Parameter, Var)> {
        let read = self.vars.iter().enumerate();
        read.filter_map(|(i, var)| var.map(|var| (Parameter::at(i), var))).collect()
    }
}

/// A layer or model.
pub trait Module: Send {
    /// Records the pass of `x` through the module. The first axis of `x` is the batch.
    ///
    /// # Errors
    /// The shape of `x` does not fit.
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var>;
}
