//! What the rows of `twoclocks bench` run: recordings of one operation or one update, for any device.

use super::sizes;
use std::sync::Arc;
use twoclocks::gemm::{Precision, Spec};
use twoclocks::ops::layer_norm::LayerNorm;
use twoclocks::ops::layer_norm_backward::LayerNormBackward;
use twoclocks::ops::softmax::Softmax;
use twoclocks::ops::softmax_backward::SoftmaxBackward;
use twoclocks::ops::{self, Operation, Recorder, Var};
use twoclocks::optim::{Optimizer, OptimizerConfig, Segment};
use twoclocks::runs::Environment;
use twoclocks::tape::{Recording, Region, Store};
use twoclocks::{Device, Error, Result, Tape};

/// A row's work, ready to be replayed.
pub(super) struct Recorded {
    /// The row's name.
    pub(super) work: String,
    /// Rows, or items, of one replay.
    pub(super) batch: usize,
    pub(super) recording: Recording,
    pub(super) store: Store,
}

/// Refuses sizes whose matrices of f32 do not fit into memory.
pub(super) fn require(size: &str, matrices: &[[usize; 2]]) -> Result<()> {
    let elements: f64 = matrices.iter().map(|&[rows, columns]| rows as f64 * columns as f64).sum();
    // An operand is made on the host before it is copied to its place.
    let bytes = 2.0 * elements * size_of::<f32>() as f64;
    Environment::require_memory(&format!("'{size}'"), bytes)
}

/// Small reproducible values; they repeat after four millions.
pub(super) fn values(len: usize) -> Vec<f32> {
    const PERIOD: usize = 4 << 20;
    let mut random = twoclocks::random::Random::new(1, len as u64);
    let mut values = Vec::with_capacity(len);
    values.extend((0..len.min(PERIOD)).map(|_| random.uniform(-1.0, 1.0) as f32));
    while values.len() < len {
        values.extend_from_within(..PERIOD.min(len - values.len()));
    }
    values
}

/// A region of [`values`].
pub(super) fn region(store: &mut Store, len: usize) -> Region {
    store.upload("values", &values(len))
}

/// Where the gradient goes.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Gradient {
    /// To memory of its own: the logits stay as they are.
    Apart,
    /// Over the logits, which a node computed, as in a training step.
    OverLogits,
}

/// Mean cross-entropy of the softmax, with its gradient and statistics.
pub(super) fn cross_entropy(device: &Device, size: &str, gradient: Gradient) -> Result<Recorded> {
    let [rows, classes] = sizes(size, "ROWSxCLASSES")?;
    require(size, &[[rows, classes], [rows, classes]])?;
    let mut store = Store::new(device);
    let logits = region(&mut store, rows * classes);
    let labels: Vec<u32> = (0..rows).map(|row| (row * 7919 % classes) as u32).collect();
    let labels = store.upload("labels", &labels);
    let mut tape = Tape::new(&store);
    let mut logits = tape.persistent("logits", logits, 0, [rows, classes])?;
    let labels = tape.persistent("labels", labels, 0, [rows])?;
    if gradient == Gradient::OverLogits {
        logits = ops::copy(&mut tape, logits)?;
    }
    let loss = ops::softmax_cross_entropy(&mut tape, logits, labels, 0.0)?;
    tape.output(loss.loss)?;
    tape.output(loss.dlogits)?;
    tape.output(loss.statistics)?;
    let work = match gradient {
        Gradient::Apart => format!("ce_{rows}x{classes}"),
        Gradient::OverLogits => format!("ce_{rows}x{classes}_in_place"),
    };
    Ok(Recorded { work, batch: rows, recording: tape.compile(&store)?, store })
}

/// The AdamW update of that many parameters, with the optimizer that sets its slots, and its rate.
pub(super) fn adamw(device: &Device, size: &str) -> Result<(Recorded, Optimizer, f64)> {
    let [parameters, tensors] = sizes(size, "PARAMETERSxTENSORS")?;
    if tensors > parameters {
        return Err(Error::config("sizes", format!("'{size}' has more tensors than parameters")));
    }
    // Weights, gradients, two moments.
    require(size, &[[parameters, 4]])?;
    let mut store = Store::new(device);
    let (weights, gradients) = (region(&mut store, parameters), region(&mut store, parameters));
    let bound = |i: usize| (i as u128 * parameters as u128 / tensors as u128) as usize;
    let segments = (0..tensors)
        .map(|i| Segment {
            offset: bound(i),
            len: bound(i + 1) - bound(i),
            rate_factor: 1.0,
            decay_factor: 1.0,
        })
        .collect();
    let config = OptimizerConfig::default();
    let optimizer = Optimizer::new(&config, segments, parameters, &mut store)?;
    let mut tape = Tape::new(&store);
    optimizer.record(&mut tape, weights, gradients, None)?;
    let work = format!("adamw_{parameters}x{tensors}");
    let recording = tape.compile(&store)?;
    Ok((Recorded { work, batch: 1, recording, store }, optimizer, config.rate))
}

/// A product of f32 matrices, as steps record it; `MxNxK`, and `:nt` or `:tn` where B or A lies
/// transposed, as in the gradients of a layer.
pub(super) fn product(
    device: &Device,
    size: &str,
    precision: Precision,
) -> Result<(Recorded, Spec)> {
    let (extents, layout) = size.split_once(':').unwrap_or((size, "nn"));
    let [m, n, k] = sizes(extents, "MxNxK")?;
    require(size, &[[m, k], [k, n], [m, n]])?;
    let spec = Spec::new(m, n, k).in_precision(precision);
    let (spec, a_shape, b_shape) = match layout {
        "nn" => (spec, [m, k], [k, n]),
        "nt" => (spec.b_transposed(), [m, k], [n, k]),
        "tn" => (spec.a_transposed(), [k, m], [k, n]),
        other => return Err(Error::config("sizes", format!("'{other}' is not nn, nt or tn"))),
    };
    let mut store = Store::new(device);
    let (a, b) = (region(&mut store, m * k), region(&mut store, k * n));
    let mut tape = Tape::new(&store);
    let (a, b) = (tape.persistent("a", a, 0, a_shape)?, tape.persistent("b", b, 0, b_shape)?);
    let c = ops::matmul_in(&mut tape, precision, a, b, layout == "tn", layout == "nt")?;
    tape.output(c)?;
    Ok((
        Recorded { work: product_name(size), batch: m, recording: tape.compile(&store)?, store },
        spec,
    ))
}

/// `gemm_512x10x128_tn`
pub(super) fn product_name(size: &str) -> String {
    format!("gemm_{}", size.replace(':', "_"))
}

/// Sums of a matrix along an axis.
pub(super) fn sum(device: &Device, size: &str, axis: usize) -> Result<Recorded> {
    let [rows, columns] = sizes(size, "ROWSxCOLUMNS")?;
    require(size, &[[rows, columns]])?;
    let mut store = Store::new(device);
    let x = region(&mut store, rows * columns);
    let mut tape = Tape::new(&store);
    let x = tape.persistent("x", x, 0, [rows, columns])?;
    let y = ops::sum(&mut tape, x, &[axis], false)?;
    tape.output(y)?;
    let what = if axis == 0 { "columns" } else { "rows" };
    let work = format!("sum_of_{what}_{rows}x{columns}");
    Ok(Recorded { work, batch: rows, recording: tape.compile(&store)?, store })
}

/// Rows over `[rows, columns]` of one operation and of its gradient.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    LayerNorm,
    LayerNormBackward,
    Softmax,
    SoftmaxBackward,
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Pass::LayerNorm => "layer_norm",
            Pass::LayerNormBackward => "layer_norm_backward",
            Pass::Softmax => "softmax",
            Pass::SoftmaxBackward => "softmax_backward",
        }
    }

    pub(super) fn record(self, device: &Device, size: &str) -> Result<Recorded> {
        let [rows, columns] = sizes(size, "ROWSxCOLUMNS")?;
        require(size, &[[rows, columns]; 3])?;
        let mut store = Store::new(device);
        let matrices = [0, 1].map(|_| region(&mut store, rows * columns));
        let ends = [0, 1].map(|_| region(&mut store, rows));
        let vectors = [0, 1].map(|_| region(&mut store, columns));
        let mut tape = Tape::new(&store);
        let [x, dy] = [("x", matrices[0]), ("dy", matrices[1])]
            .map(|(name, region)| tape.persistent(name, region, 0, [rows, columns]));
        let [mean, rstd] = [("mean", ends[0]), ("rstd", ends[1])]
            .map(|(name, region)| tape.persistent(name, region, 0, [rows]));
        let [gamma, beta] = [("gamma", vectors[0]), ("beta", vectors[1])]
            .map(|(name, region)| tape.persistent(name, region, 0, [columns]));
        let (op, inputs): (Arc<dyn Operation>, Vec<Var>) = match self {
            Pass::LayerNorm => (Arc::new(LayerNorm { eps: 1e-5 }), vec![x?, gamma?, beta?]),
            Pass::LayerNormBackward => {
                (Arc::new(LayerNormBackward), vec![dy?, x?, gamma?, mean?, rstd?])
            }
            Pass::Softmax => (Arc::new(Softmax), vec![x?]),
            Pass::SoftmaxBackward => (Arc::new(SoftmaxBackward), vec![x?, dy?]),
        };
        for output in tape.push(op, &inputs)? {
            tape.output(output)?;
        }
        let work = format!("{}_{rows}x{columns}", self.name());
        Ok(Recorded { work, batch: rows, recording: tape.compile(&store)?, store })
    }
}
