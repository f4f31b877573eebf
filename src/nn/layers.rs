//! Layers: each declares its parameters and records one fused operation.

use super::{Forward, Initial, LayerKind, Mode, Module, Parameter, Parameters, Role};
use crate::error::{Error, Result};
use crate::ops::{self, Activation, LinearLoss, Recorder, Var};
use crate::tensor::{DType, Shape};

/// `y = act(x W + b)`: x [batch, inputs], W [inputs, outputs], b `[outputs]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Parameter,
    bias: Option<Parameter>,
    activation: Activation,
}

impl Linear {
    /// Declares `name.weight` and `name.bias`. Weights start by He's rule before ReLU and its
    /// smooth relatives, by Glorot's otherwise; biases at zero. [`Linear::with_initial`] chooses.
    ///
    /// # Errors
    /// The name is taken.
    pub fn new(
        parameters: &mut Parameters,
        name: &str,
        inputs: usize,
        outputs: usize,
        activation: Activation,
    ) -> Result<Linear> {
        let initial = match activation {
            Activation::Relu | Activation::Gelu | Activation::Silu => Initial::KaimingNormal,
            Activation::None | Activation::Tanh => Initial::XavierUniform,
        };
        let zeros = Some(Initial::Zeros);
        Linear::with_initial(parameters, name, [inputs, outputs], activation, initial, zeros)
    }

    /// Declares `name.weight` of shape [inputs, outputs] and, unless `bias` is `None`, `name.bias`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn with_initial(
        parameters: &mut Parameters,
        name: &str,
        [inputs, outputs]: [usize; 2],
        activation: Activation,
        weight: Initial,
        bias: Option<Initial>,
    ) -> Result<Linear> {
        let weight = parameters.declare(
            format!("{name}.weight"),
            [inputs, outputs],
            Role::Weight,
            weight,
        )?;
        parameters.info_mut(weight).multiplied = true;
        let bias = bias
            .map(|start| parameters.declare(format!("{name}.bias"), [outputs], Role::Bias, start))
            .transpose()?;
        Ok(Linear { weight, bias, activation })
    }

    /// The weight [inputs, outputs].
    pub fn weight(&self) -> Parameter {
        self.weight
    }

    /// The bias `[outputs]`.
    pub fn bias(&self) -> Option<Parameter> {
        self.bias
    }

    /// Records the mean cross-entropy of `labels` (u32 \[rows\]) and this layer's outputs as logits,
    /// which are never all in memory: for a last layer with many outputs, in place of
    /// [`Module::forward`] and [`ops::softmax_cross_entropy()`]. See [`ops::linear_cross_entropy()`].
    /// In f32, whatever the precision of the model.
    ///
    /// # Errors
    /// The layer has an activation, or as [`ops::linear_cross_entropy()`].
    pub fn cross_entropy(
        &self,
        pass: &mut Forward<'_>,
        x: Var,
        labels: Var,
        label_smoothing: f32,
    ) -> Result<LinearLoss> {
        if self.activation != Activation::None {
            let problem =
                format!("logits have no activation, and this layer has {}", self.activation);
            return Err(Error::operation("linear_cross_entropy", problem));
        }
        let weight = pass.parameter(self.weight)?;
        let bias = self.bias.map(|bias| pass.parameter(bias)).transpose()?;
        ops::linear_cross_entropy(pass.tape, x, weight, bias, labels, label_smoothing)
    }
}

impl Module for Linear {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let (weight, precision) = (pass.weight(self.weight)?, pass.precision());
        let bias = self.bias.map(|bias| pass.parameter(bias)).transpose()?;
        let y = ops::linear_in(pass.tape, precision, x, weight, bias, self.activation)?;
        pass.note(LayerKind::Linear { weight: self.weight, activation: self.activation }, x, y);
        Ok(y)
    }
}

/// An activation of its own, where it does not directly follow a [`Linear`].
#[derive(Clone, Copy, Debug)]
pub struct Activate(pub Activation);

impl Module for Activate {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let y = match self.0 {
            Activation::None => return Ok(x),
            Activation::Relu => ops::relu(pass.tape, x),
            Activation::Gelu => ops::gelu(pass.tape, x),
            Activation::Tanh => ops::tanh(pass.tape, x),
            Activation::Silu => ops::silu(pass.tape, x),
        }?;
        pass.note(LayerKind::Activation(self.0), x, y);
        Ok(y)
    }
}

/// Sets a share of the values to zero while training and scales the others up; nothing in review.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    probability: f32,
    stream: u64,
}

impl Dropout {
    /// Drops each value with that probability. Layers with different `stream` numbers draw
    /// independent masks.
    ///
    /// # Errors
    /// The probability is not in [0, 1).
    pub fn new(probability: f32, stream: u64) -> Result<Dropout> {
        if !(0.0..1.0).contains(&probability) {
            return Err(Error::config("dropout", format!("p = {probability} is not in [0, 1)")));
        }
        Ok(Dropout { probability, stream })
    }
}

impl Module for Dropout {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        if pass.mode == Mode::Eval || self.probability == 0.0 {
            return Ok(x);
        }
        let (seed, counter) = pass.randomness();
        let seed = crate::random::Random::new(seed, self.stream).bits();
        ops::dropout(pass.tape, x, self.probability, seed, counter)
    }
}

/// Normalises vectors along the last axis to mean 0 and variance 1, then scales and shifts.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    gain: Parameter,
    bias: Parameter,
    epsilon: f32,
}

impl LayerNorm {
    /// Declares `name.gain` (ones) and `name.bias` (zeros) of that width.
    ///
    /// # Errors
    /// The name is taken.
    pub fn new(
        parameters: &mut Parameters,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<LayerNorm> {
        let gain =
            parameters.declare(format!("{name}.gain"), [width], Role::Gain, Initial::Ones)?;
        let bias =
            parameters.declare(format!("{name}.bias"), [width], Role::Bias, Initial::Zeros)?;
        Ok(LayerNorm { gain, bias, epsilon })
    }
}

impl Module for LayerNorm {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let (gain, bias) = (pass.parameter(self.gain)?, pass.parameter(self.bias)?);
        let y = ops::layer_norm(pass.tape, x, gain, bias, self.epsilon)?;
        pass.note(LayerKind::Norm, x, y);
        Ok(y)
    }
}

/// Divides vectors along the last axis by their root mean square, then scales.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    gain: Parameter,
    epsilon: f32,
}

impl RmsNorm {
    /// Declares `name.gain` (ones) of that width.
    ///
    /// # Errors
    /// The name is taken.
    pub fn new(
        parameters: &mut Parameters,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<RmsNorm> {
        let gain =
            parameters.declare(format!("{name}.gain"), [width], Role::Gain, Initial::Ones)?;
        Ok(RmsNorm { gain, epsilon })
    }
}

impl Module for RmsNorm {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let gain = pass.parameter(self.gain)?;
        let y = ops::rms_norm(pass.tape, x, gain, self.epsilon)?;
        pass.note(LayerKind::Norm, x, y);
        Ok(y)
    }
}

/// A learned vector for each of `entries` numbers: u32 [..] (or f32 whole numbers) to f32
/// [.., width].
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Parameter,
}

impl Embedding {
    /// Declares `name.table` [entries, width], starting normal with deviation 0.02. It decays like
    /// a weight unless its factor is set otherwise.
    ///
    /// # Errors
    /// The name is taken.
    pub fn new(
        parameters: &mut Parameters,
        name: &str,
        entries: usize,
        width: usize,
    ) -> Result<Embedding> {
        let initial = Initial::Normal(0.02);
        let table =
            parameters.declare(format!("{name}.table"), [entries, width], Role::Weight, initial)?;
        Ok(Embedding { table })
    }

    /// The table [entries, width].
    pub fn table(&self) -> Parameter {
        self.table
    }
}

impl Module for Embedding {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let table = pass.parameter(self.table)?;
        let numbers = match pass.tape.tensor_type(x).dtype {
            DType::F32 => ops::indices(pass.tape, x)?,
            _ => x,
        };
        ops::embedding(pass.tape, table, numbers)
    }
}

/// Joins all axes after the first: [batch, a, b, ..] to [batch, a * b * ..].
#[derive(Clone, Copy, Debug)]
pub struct Flatten;

impl Module for Flatten {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let shape = &pass.tape.tensor_type(x).shape;
        let batch = shape.extents().first().copied().unwrap_or(1);
        let rest = shape.extents().iter().skip(1).product();
        ops::reshape(pass.tape, x, Shape::from([batch, rest]))
    }
}
