//! Softmax cross-entropy of a linear map: loss and gradients, without all logits ever being in memory.
//!
//! For `x` \[.., in\] of `rows` vectors, `W` \[in, classes\] and `b` \[classes\] (f32), and labels
//! u32 \[rows\]:
//!
//! ```text
//! z    = x W + b                              [rows, classes], in blocks only
//! loss = mean over rows of -sum t log p       p = softmax(z); t, the label with smoothing: see
//!                                             softmax_cross_entropy
//! g    = (p - t) / rows                       in blocks only
//! dx   = g W^T      dW = x^T g      db = sum over rows of g
//! ```
//!
//! It is `linear` and then [`mod@super::softmax_cross_entropy`], whose stable forms, statistics and
//! edges are those here: no rows or no classes is an error at recording; a label that is not below
//! `classes`, or a logit that is NaN or positive infinity, makes the loss, that row of `dx`, and `dW`
//! and `db` NaN. `in` may be 0.
//!
//! **Gradient.** `dx`, `dW` and `db` are outputs, made in the same pass, and those that nobody reads
//! are not computed: an evaluation computes the loss alone. The gradient rule multiplies them by
//! that of the loss; where this is 1, nothing is computed. The row losses, the statistics and the gradients have no
//! gradient rule in turn: there, record `linear` and `softmax_cross_entropy`.
//!
//! **Memory.** Blocks of logits lie in scratch of at most 16 MiB with all that the products ask for, whatever the number
//! of rows. (An `in` of tens of thousands can ask for more: then blocks are as small as they get.) For 4096 x 50257 the logits
//! would take 823 MB, and their gradient, where it does not take their place, as much again.
//! On a GPU the blocks are rows with all their classes, of 256 MiB, and nothing is computed twice.
//! What it costs on a CPU: with more rows than fit beside all their classes, logits are computed a second
//! time for the gradient, so 4 products instead of 3. At 2048 x 256 x 50257 a step takes 1.1 to 1.2 times as long as
//! unfused (AVX-512, one thread), with 16 MiB in place of 823 MB. A small number of classes gains nothing.
//!
//! **Error.** Each logit is a sum of `in` products, the rest as in `softmax_cross_entropy`; `dx` is a sum
//! of `classes` products, `dW` and `db` of `rows`. Blocks follow from shapes and instruction set, so the bits do
//! not depend on threads.
//!
//! Sources: softmax over blocks, M. Milakov and N. Gimelshein, arXiv:1805.02867; a loss that computes
//! its logits twice instead of keeping them, E. Wijmans et al., "Cut your losses", arXiv:2411.09009.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::softmax_cross_entropy::{SoftmaxCrossEntropy, Targets, times};
use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorType};
use std::sync::Arc;

/// Numbers of the outputs.
const LOSS: usize = 0;
const STATISTICS: usize = 1;
const PER_ROW: usize = 2;
const DX: usize = 3;
const DW: usize = 4;
const DB: usize = 5;

/// Elements of scratch memory: 16 MiB.
const BUDGET: usize = 4 << 20;
/// The same of a GPU: 256 MiB. There each block of rows reads all weights anew, so it is larger.
#[cfg(feature = "cuda")]
const CUDA_BUDGET: usize = 64 << 20;

/// The operation `linear_cross_entropy`: outputs loss, statistics, per_row, dx, dW and, with a bias, db.
#[derive(Clone, Copy, Debug)]
pub struct LinearCrossEntropy {
    smoothing: f32,
    /// Elements of scratch memory.
    budget: usize,
}

/// Outputs of [`linear_cross_entropy`]; those that nobody reads are not computed.
#[derive(Clone, Copy, Debug)]
pub struct LinearLoss {
    /// The mean over the rows, shape `[]`.
    pub loss: Var,
    /// The numbers of [`super::CrossEntropy::statistics`], shape `[5]`.
    pub statistics: Var,
    /// Loss of each row, `[rows]`: not divided by the number of rows.
    pub per_row: Var,
}

/// Records the mean cross-entropy of the logits `x w + bias` and `labels`: `x` is f32 \[.., in\], of
/// `rows` vectors, `w` \[in, classes\], `bias` \[classes\], `labels` u32 \[rows\].
///
/// A label that is not below `classes` makes the loss NaN.
///
/// # Errors
/// The shapes do not fit, there are no rows or no classes, or `label_smoothing` is not in 0..=1.
pub fn linear_cross_entropy(
    tape: &mut dyn Recorder,
    x: Var,
    w: Var,
    bias: Option<Var>,
    labels: Var,
    label_smoothing: f32,
) -> Result<LinearLoss> {
    let inputs: Vec<Var> = [x, w, labels].into_iter().chain(bias).collect();
    let op = LinearCrossEntropy { smoothing: label_smoothing, budget: BUDGET };
    let outputs = tape.push(Arc::new(op), &inputs)?;
    Ok(LinearLoss { loss: outputs[LOSS], statistics: outputs[STATISTICS], per_row: outputs[PER_ROW] })
}

impl Operation for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        const TYPES: [DType; 4] = [DType::F32, DType::F32, DType::U32, DType::F32];
        super::expect_types(self.name(), inputs, &TYPES[..inputs.len().clamp(3, 4)])?;
        let (x, w) = (&inputs[0].shape, &inputs[1].shape);
        let bias_fits = inputs.get(3).is_none_or(|bias| bias.shape.extents() == [w.columns()]);
        if x.rank() == 0 || w.rank() != 2 || x.columns() != w.rows() || !bias_fits {
            let bias = inputs.get(3).map_or(String::new(), |bias| format!(" + {}", bias.shape));
            let problem = format!("{x} times {w}{bias} does not fit: it takes [.., in], [in, classes] and [classes]");
            return Err(Error::operation(self.name(), problem));
        }
        let logits = TensorType::f32([x.rows(), w.columns()]);
        let loss = SoftmaxCrossEntropy { targets: Targets::Labels { smoothing: self.smoothing } };
        let [of_loss, _, statistics, per_row] =
            &loss.infer_for(self.name(), &[logits, inputs[2].clone()])?[..]
        else {
            unreachable!("infer gives four outputs");
        };
        let mut outputs = vec![of_loss.clone(), statistics.clone(), per_row.clone()];
        outputs.extend([inputs[0].clone(), inputs[1].clone()]);
        outputs.extend(inputs.get(3).cloned());
        Ok(outputs)
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::linear_cross_entropy(self.smoothing, inputs, outputs);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.smoothing, self.budget))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        // Test cases ask for less than either.
        let budget = if self.budget == BUDGET { CUDA_BUDGET } else { self.budget };
        cuda::launch(site, self.smoothing, budget)
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dloss = rule.only_upstream()?;
        // The labels, input 2, have no gradient.
        for (input, output) in [(0, DX), (1, DW), (3, DB)] {
            if input < rule.inputs.len() && rule.needs(input) {
                let gradient = times(rule.tape, rule.outputs[output], dloss)?;
                rule.give(input, gradient)?;
            }
        }
        Ok(())
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        let (rows, classes) = (site.inputs[0].shape.rows(), site.inputs[1].shape.columns());
        let logits = rows as f64 * classes as f64;
        let product = 2.0 * logits * site.inputs[1].shape.rows() as f64;
        let products = 1 + usize::from(site.used[DX]) + usize::from(site.used[DW]);
        let db = site.used.get(DB) == Some(&true);
        let bias = (site.inputs.len() - 3 + usize::from(db)) as f64;
        // Those of softmax_cross_entropy for each logit.
        Cost::of(products as f64 * product + (5.0 + bias) * logits, site)
    }
}

fn case(rows: &[usize], [inner, classes]: [usize; 2], bias: bool, smoothing: f32, budget: usize) -> Case {
    let rows_name: String = rows.iter().map(|extent| format!("{extent}x")).collect();
    let bias_name = if bias { "_bias" } else { "" };
    let name = format!("{rows_name}{inner}x{classes}{bias_name}_smoothing{smoothing}_scratch{budget}");
    let count = rows.iter().product();
    let op = LinearCrossEntropy { smoothing, budget };
    let terms = inner.max(classes).max(count);
    let case = Case::new(name, op, Tolerance::Accumulation(16 + terms))
        .input(&[rows, &[inner]].concat(), Fill::Uniform(-1.0, 1.0))
        .input(&[inner, classes], Fill::Uniform(-1.0, 1.0))
        .fixed(&[count], DType::U32, Fill::Indices(classes as u32));
    if bias { case.input(&[classes], Fill::Uniform(-1.0, 1.0)) } else { case }
}

/// Test cases: all logits at once; several blocks of rows; several of rows and classes.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let mut cases = Vec::new();
    for smoothing in [0.0, 0.1, 1.0] {
        for (rows, sizes) in
            [(&[1][..], [1, 1]), (&[3], [5, 2]), (&[2, 7], [5, 17]), (&[5], [0, 9]), (&[67], [9, 131])]
        {
            cases.push(case(rows, sizes, true, smoothing, BUDGET));
        }
        cases.push(case(&[300], [6, 37], true, smoothing, 9000));
        cases.push(case(&[200], [9, 131], true, smoothing, 1500));
    }
    cases.push(case(&[], [3, 5], false, 0.0, BUDGET));
    cases.push(case(&[33], [17, 1], true, 0.1, 100));
    cases.push(case(&[31], [16, 257], false, 0.0, 1500));
    cases.push(case(&[131], [70, 149], true, 0.0, BUDGET));
    let large = case(&[260], [65, 2100], true, 0.0, 200_000);
    cases.push(large.without_gradient());
    cases
}

/// Benchmark cases: vocabularies.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    [(64, [512, 50257]), (512, [256, 50257]), (1024, [256, 8192])]
        .map(|(rows, sizes)| {
            let mut case = case(&[rows], sizes, true, 0.0, BUDGET);
            case.name = format!("{rows}x{}x{}", sizes[0], sizes[1]);
            case
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Store, Tape};

    fn problem(types: &[TensorType], smoothing: f32) -> String {
        let op = LinearCrossEntropy { smoothing, budget: BUDGET };
        op.infer(types).expect_err("does not fit").to_string()
    }

    #[test]
    fn what_does_not_fit_is_refused_by_shape() {
        let (x, w, labels) = (TensorType::f32([4, 3]), TensorType::f32([3, 2]), TensorType::u32([4]));
        let refused = |types: &[&TensorType], smoothing, said: &str| {
            let types: Vec<TensorType> = types.iter().map(|&t| t.clone()).collect();
            let found = problem(&types, smoothing);
            assert!(found.contains("linear_cross_entropy") && found.contains(said), "{found}");
        };
        refused(&[&w, &x, &labels], 0.0, "[3, 2] times [4, 3] does not fit");
        refused(&[&x, &w, &labels, &TensorType::f32([3])], 0.0, "[4, 3] times [3, 2] + [3]");
        refused(&[&TensorType::f32([]), &w, &labels], 0.0, "does not fit");
        refused(&[&x, &w], 0.0, "takes 3 inputs, not 2");
        refused(&[&x, &w, &TensorType::f32([4])], 0.0, "input 2 is f32[4], not u32");
        refused(&[&x, &w, &TensorType::u32([3])], 0.0, "are [4], not u32[3]");
        refused(&[&TensorType::f32([0, 3]), &w, &TensorType::u32([0])], 0.0, "no mean");
        refused(&[&x, &TensorType::f32([3, 0]), &labels], 0.0, "no mean");
        refused(&[&x, &w, &labels], 1.5, "from 0 to 1");
        refused(&[&x, &w, &labels], f32::NAN, "from 0 to 1");
    }

    /// Scratch and plan at a vocabulary stay within what the module's documentation says, and the
    /// logits are in neither.
    #[test]
    fn the_logits_of_a_vocabulary_are_never_in_memory() {
        const MOST: usize = 16 << 20;
        let (rows, inner, classes) = (4096, 64, 50_257);
        let store = Store::new(&Device::cpu(1).expect("cpu"));
        let bytes = |backward: bool| {
            let mut tape = Tape::new(&store);
            let x = tape.input("x", [rows, inner]).expect("input");
            let w = tape.input("w", [inner, classes]).expect("input");
            let b = tape.input("b", [classes]).expect("input");
            let labels = tape.input_of("labels", TensorType::u32([rows])).expect("input");
            let loss = linear_cross_entropy(&mut tape, x, w, Some(b), labels, 0.1).expect("loss");
            tape.output(loss.loss).expect("output");
            if backward {
                for gradient in tape.backward(loss.loss, &[x, w, b]).expect("gradients") {
                    tape.output(gradient).expect("output");
                }
            }
            tape.compile(&store).expect("compile").memory().arena_bytes
        };
        let parameters = 4 * (rows * inner + inner * classes + classes);
        let labels = 4 * rows;
        // Alignment of the tensors.
        let rest = labels + 1024;
        assert!(bytes(false) <= MOST + parameters + rest, "{}", bytes(false));
        assert!(bytes(true) <= MOST + 2 * parameters + rest, "{}", bytes(true));

        let types = [
            TensorType::f32([rows, inner]),
            TensorType::f32([inner, classes]),
            TensorType::u32([rows]),
        ];
        let op = LinearCrossEntropy { smoothing: 0.0, budget: BUDGET };
        let outputs = op.infer(&types).expect("fits");
        for isa in crate::device::cpu::Isa::available() {
            let target = crate::device::Target::default();
            let site = Site { inputs: &types, outputs: &outputs, used: &[true; 5], isa, target };
            let launch = op.cpu(&site).expect("a kernel");
            assert!(launch.scratch_elements() * 4 <= MOST, "{isa}");
            // Of a GPU: blocks of logits, and what their products take.
            #[cfg(feature = "cuda")]
            {
                let bytes = op.cuda(&site).expect("kernels").scratch_bytes();
                assert!(bytes <= 4 * CUDA_BUDGET + MOST, "{bytes} bytes");
            }
        }
    }

    #[test]
    fn gradients_that_nobody_reads_are_not_computed() {
        let store = Store::new(&Device::cpu(1).expect("cpu"));
        let flops = |wrt: usize| {
            let mut tape = Tape::new(&store);
            let x = tape.input("x", [40, 30]).expect("input");
            let w = tape.input("w", [30, 50]).expect("input");
            let labels = tape.input_of("labels", TensorType::u32([40])).expect("input");
            let loss = linear_cross_entropy(&mut tape, x, w, None, labels, 0.0).expect("loss");
            tape.output(loss.loss).expect("output");
            if wrt > 0 {
                for gradient in tape.backward(loss.loss, &[w, x][..wrt]).expect("gradients") {
                    tape.output(gradient).expect("output");
                }
            }
            let recording = tape.compile(&store).expect("compile");
            assert_eq!(recording.nodes().len(), 1, "an upstream of one needs no work");
            let node = &recording.nodes()[0];
            (node.cost.flops, node.chunks.len())
        };
        let product = 2.0 * 40.0 * 30.0 * 50.0;
        let (evaluation, phases) = flops(0);
        assert_eq!(flops(1).0 - evaluation, product);
        assert_eq!(flops(2).0 - evaluation, 2.0 * product);
        assert!(flops(1).1 > phases);
    }

    #[test]
    fn row_losses_have_no_gradient() {
        let store = Store::new(&Device::cpu(1).expect("cpu"));
        let mut tape = Tape::new(&store);
        let x = tape.input("x", [4, 3]).expect("input");
        let w = tape.input("w", [3, 5]).expect("input");
        let labels = tape.input_of("labels", TensorType::u32([4])).expect("input");
        let loss = linear_cross_entropy(&mut tape, x, w, None, labels, 0.0).expect("loss");
        let upstream = tape.input("v", [4]).expect("input");
        let error =
            tape.vector_jacobian(&[(loss.per_row, upstream)], &[w]).expect_err("there is no rule");
        assert!(error.to_string().contains("linear_cross_entropy"), "{error}");
    }
}
