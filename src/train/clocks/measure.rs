//! What is measured of a run for its two clocks: plain figures, which [`Trainer`](crate::train::Trainer) fills and the run's watch reads.

use crate::clocks::Collapse;

/// Figures of the steps since they were last taken; those of training rows are as the steps saw them, dropout included.
#[derive(Clone, Debug, PartialEq)]
pub struct StepFigures {
    /// Updates.
    pub steps: u64,
    /// Training rows.
    pub rows: u64,
    /// Share of the rows that were classified right, 0 to 1.
    pub accuracy: f64,
    /// Mean over the rows of the right class's logit minus the largest of the others.
    pub margin: f64,
    /// The smallest of these.
    pub least_margin: f64,
    /// Root mean square of the logits.
    pub logit_rms: f64,
    /// Share of the rows whose gradient a plain softmax would have rounded to zero.
    pub saturated: f64,
    /// Sums of each parameter, in the order of `Parameters::infos`.
    pub parameters: Vec<ParameterSums>,
}

/// Sums over the elements of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSums {
    /// Its name.
    pub name: String,
    /// Mean over the steps of `g.g`, the batch's gradient: noise included.
    pub gradient2: f64,
    /// `w.w` before the last update.
    pub weight2: f64,
    /// Mean over the steps of `g.w`.
    pub gradient_weight: f64,
    /// Factor of the decay.
    pub decay_factor: f64,
}

/// What a pass over the fixed probe batch, and a look at the weights, found.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeFigures {
    /// The weight matrices, from the first layer on.
    pub weights: Vec<WeightFigures>,
    /// `|W^T W - V V^T| / (|W^T W| + |V V^T|)` of layers in a row, with nothing but an activation between them, by
    /// "first-second". Of wide layers an estimate, by the same random vectors each time: within some 10 %.
    pub balance: Vec<(String, f64)>,
    /// Share of the gates (ReLU active or not, on the probe batch) that changed since the last probe, by layer; empty for
    /// the first probe.
    pub flips: Vec<(String, f64)>,
    /// Neural collapse of the last layer's inputs on the probe batch; `None` where a class has no row there, there are
    /// more than 64 classes, or the logits do not come from a linear layer.
    pub collapse: Option<Collapse>,
    /// Schatten quasi-norm of the end-to-end map, to the power 2/depth; `None` unless all layers are linear, without biases.
    pub schatten: Option<f64>,
}

/// A weight matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightFigures {
    /// Name of its layer.
    pub name: String,
    /// Inputs and outputs.
    pub shape: [usize; 2],
    /// Frobenius norm.
    pub norm: f64,
    /// `|W|_F^2 / |W|_2^2`; too large, if anything: by up to 2 % where singular values lie side by side.
    pub stable_rank: f64,
    /// `exp` of the entropy of the singular values as shares of their sum; exact for small matrices, else within 2 % as a rule.
    /// `None` where it was not looked for.
    pub effective_rank: Option<f64>,
    /// Whether a normalising layer reads its outputs as they are: then decay changes its effective rate, not the function.
    pub normalised: bool,
}
