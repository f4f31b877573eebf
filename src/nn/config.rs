//! Models as a list of layers in a configuration.

use super::{
    Activate, Dropout, Embedding, Flatten, Forward, Initial, LayerNorm, Linear, Module, Parameters,
    RmsNorm,
};
use crate::error::{Error, Result};
use crate::ops::{Activation, Var};
use serde::{Deserialize, Serialize};

/// One layer of a model, as a configuration writes it: `{ kind = "linear", outputs = 512 }`.
///
/// Every layer may have a `name`; without one it is called by its kind and place, `linear0`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerConfig {
    /// A linear map with bias and fused activation.
    Linear {
        /// Name of the layer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Width of the input; may be left out, and is checked where it is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inputs: Option<usize>,
        /// Width of the output.
        outputs: usize,
        /// `none`, `relu`, `gelu`, `tanh` or `silu`.
        #[serde(default)]
        activation: ActivationName,
        /// Whether there is a bias.
        #[serde(default = "yes")]
        bias: bool,
        /// Start of the weights; by default He's rule before ReLU, GELU and SiLU, else Glorot's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initial: Option<Initial>,
        /// Factor of the weight decay, 1 where it is not given; 0 with `polar_decay`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decay_factor: Option<f32>,
        /// Factor of the decay along the polar factor of the weight, every `optimizer.polar_every` steps:
        /// for layers whose outputs are normalised.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        polar_decay: Option<f32>,
    },
    /// An activation of its own.
    Activation {
        /// `relu`, `gelu`, `tanh` or `silu`.
        function: ActivationName,
    },
    /// Random zeros while training.
    Dropout {
        /// Probability of a zero, in [0, 1).
        p: f32,
    },
    /// Mean 0 and variance 1 along the last axis, then gain and bias.
    LayerNorm {
        /// Name of the layer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Added to the variance.
        #[serde(default = "layer_norm_epsilon")]
        epsilon: f32,
    },
    /// Root mean square 1 along the last axis, then gain.
    RmsNorm {
        /// Name of the layer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Added to the mean square.
        #[serde(default = "rms_norm_epsilon")]
        epsilon: f32,
    },
    /// A learned vector for each whole number of the input: [batch, n] to [batch, n, width].
    Embedding {
        /// Name of the layer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Numbers from 0 up to here.
        entries: usize,
        /// Width of a vector.
        width: usize,
        /// Factor of the weight decay, 1 where it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decay_factor: Option<f32>,
    },
    /// [batch, a, b, ..] to [batch, a * b * ..].
    Flatten,
}

/// An activation by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationName {
    /// The identity.
    #[default]
    None,
    /// max(x, 0).
    Relu,
    /// x Φ(x), by the error function.
    Gelu,
    /// Hyperbolic tangent.
    Tanh,
    /// x / (1 + exp(-x)).
    Silu,
}

impl From<ActivationName> for Activation {
    fn from(name: ActivationName) -> Activation {
        match name {
            ActivationName::None => Activation::None,
            ActivationName::Relu => Activation::Relu,
            ActivationName::Gelu => Activation::Gelu,
            ActivationName::Tanh => Activation::Tanh,
            ActivationName::Silu => Activation::Silu,
        }
    }
}

fn yes() -> bool {
    true
}
fn layer_norm_epsilon() -> f32 {
    1e-5
}
fn rms_norm_epsilon() -> f32 {
    1e-6
}

impl LayerConfig {
    fn kind(&self) -> &'static str {
        match self {
            LayerConfig::Linear { .. } => "linear",
            LayerConfig::Activation { .. } => "activation",
            LayerConfig::Dropout { .. } => "dropout",
            LayerConfig::LayerNorm { .. } => "layer_norm",
            LayerConfig::RmsNorm { .. } => "rms_norm",
            LayerConfig::Embedding { .. } => "embedding",
            LayerConfig::Flatten => "flatten",
        }
    }

    /// Factors of decays that are given, by their keys.
    pub fn decay_factors(&self) -> impl Iterator<Item = (&'static str, f32)> + use<> {
        let (plain, polar) = match *self {
            LayerConfig::Linear { decay_factor, polar_decay, .. } => (decay_factor, polar_decay),
            LayerConfig::Embedding { decay_factor, .. } => (decay_factor, None),
            _ => (None, None),
        };
        let given = [("decay_factor", plain), ("polar_decay", polar)];
        given.into_iter().filter_map(|(key, factor)| Some((key, factor?)))
    }

    fn name(&self, number: usize) -> String {
        match self {
            LayerConfig::Linear { name: Some(name), .. }
            | LayerConfig::LayerNorm { name: Some(name), .. }
            | LayerConfig::RmsNorm { name: Some(name), .. }
            | LayerConfig::Embedding { name: Some(name), .. } => name.clone(),
            _ => format!("{}{number}", self.kind()),
        }
    }
}

/// Layers one after another, each in a scope of its name.
pub struct Sequential {
    layers: Vec<(String, Box<dyn Module>)>,
    output: Vec<usize>,
}

impl Sequential {
    /// Builds the layers for rows of shape `input` (without the batch), and declares their
    /// parameters.
    ///
    /// # Errors
    /// A layer does not fit what comes before it; the error names the layer and both shapes.
    pub fn new(
        configs: &[LayerConfig],
        input: &[usize],
        parameters: &mut Parameters,
    ) -> Result<Sequential> {
        let mut layers: Vec<(String, Box<dyn Module>)> = Vec::new();
        let mut shape = input.to_vec();
        if configs.is_empty() {
            return Err(Error::config("model.layers", "there are no layers"));
        }
        for (number, config) in configs.iter().enumerate() {
            let name = config.name(number);
            let place = || format!("model.layers[{number}] ({} '{name}')", config.kind());
            let refuse = |problem: String| Err(Error::config(place(), problem));
            let width = shape.last().copied().unwrap_or(1);
            let layer: Box<dyn Module> = match *config {
                LayerConfig::Linear {
                    inputs,
                    outputs,
                    activation,
                    bias,
                    initial,
                    decay_factor,
                    polar_decay,
                    ..
                } => {
                    if inputs.is_some_and(|inputs| inputs != width) {
                        let found = inputs.unwrap_or(0);
                        return refuse(format!(
                            "takes {found} inputs, but the layer before it gives {width} \
                             (a row of shape {shape:?})"
                        ));
                    }
                    if outputs == 0 || width == 0 {
                        return refuse(format!("{width} inputs and {outputs} outputs"));
                    }
                    shape.pop();
                    shape.push(outputs);
                    let activation = activation.into();
                    let size = [width, outputs];
                    let layer = match (initial, bias) {
                        (None, true) => Linear::new(parameters, &name, width, outputs, activation)?,
                        (initial, bias) => {
                            let initial = initial.unwrap_or(match activation {
                                Activation::None | Activation::Tanh => Initial::XavierUniform,
                                _ => Initial::KaimingNormal,
                            });
                            // PyTorch's rule covers biases too; every other one leaves them zero.
                            let start = match initial {
                                Initial::FanIn => Initial::Normal(0.0),
                                _ => Initial::Zeros,
                            };
                            let bias = bias.then_some(start);
                            Linear::with_initial(
                                parameters, &name, size, activation, initial, bias,
                            )?
                        }
                    };
                    let keys = [("decay_factor", decay_factor), ("polar_decay", polar_decay)];
                    for (key, value) in keys {
                        if let Some(value) = value.filter(|v| !(v.is_finite() && *v >= 0.0)) {
                            return refuse(format!("{key} = {value} is not 0 or more"));
                        }
                    }
                    let info = parameters.info_mut(layer.weight());
                    info.polar_factor = polar_decay.unwrap_or(0.0);
                    let plain = if info.polar_factor > 0.0 { 0.0 } else { 1.0 };
                    info.decay_factor = decay_factor.unwrap_or(plain);
                    Box::new(layer)
                }
                LayerConfig::Activation { function } => Box::new(Activate(function.into())),
                LayerConfig::Dropout { p } => match Dropout::new(p, 1000 + number as u64) {
                    Ok(layer) => Box::new(layer),
                    Err(_) => return refuse(format!("p = {p} is not in [0, 1)")),
                },
                LayerConfig::LayerNorm { epsilon, .. } => {
                    Box::new(LayerNorm::new(parameters, &name, width, epsilon)?)
                }
                LayerConfig::RmsNorm { epsilon, .. } => {
                    Box::new(RmsNorm::new(parameters, &name, width, epsilon)?)
                }
                LayerConfig::Embedding { entries, width, decay_factor, .. } => {
                    if number > 0 {
                        return refuse("must be the first layer: it takes whole numbers".into());
                    }
                    if entries == 0 || width == 0 {
                        return refuse(format!("{entries} entries of width {width}"));
                    }
                    shape.push(width);
                    let layer = Embedding::new(parameters, &name, entries, width)?;
                    if let Some(factor) = decay_factor {
                        if !(factor.is_finite() && factor >= 0.0) {
                            return refuse(format!("decay_factor = {factor} is not 0 or more"));
                        }
                        parameters.info_mut(layer.table()).decay_factor = factor;
                    }
                    Box::new(layer)
                }
                LayerConfig::Flatten => {
                    shape = vec![shape.iter().product()];
                    Box::new(Flatten)
                }
            };
            layers.push((name, layer));
        }
        Ok(Sequential { layers, output: shape })
    }

    /// Shape of one row of the output, without the batch.
    pub fn output(&self) -> &[usize] {
        &self.output
    }
}

impl Module for Sequential {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let mut x = x;
        for (name, layer) in &self.layers {
            x = pass.scoped(name, |pass| layer.forward(pass, x))?;
        }
        Ok(x)
    }
}
