//! `y[i_p0, i_p1, ...] = x[i_0, i_1, ...]`: axes in another order. Any element type.
//!
//! Shapes: axis `j` of `y` is axis `perm[j]` of `x`. Exact to the bit; empty tensors are allowed.
//! Axes of extent 1 are left out and axes that stay neighbours are taken as one. If that leaves
//! nothing to move, `y` is a view of `x`'s memory; if the last axis stays last, runs are copied;
//! otherwise planes of the last axes of `x` and `y` are turned in blocks that fit into L1.
//! The gradient is `dy` with the axes put back.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var, push_one};
use crate::device::Control;
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, TensorType};

/// The operation `transpose`.
#[derive(Clone, Debug)]
pub struct Transpose {
    perm: Box<[usize]>,
}

/// Records `x` with its axes in the order `perm`: axis `j` of the result is axis `perm[j]` of `x`.
/// `x` itself if the order stays.
///
/// # Errors
/// `perm` is not a permutation of `x`'s axes.
pub fn transpose(tape: &mut dyn Recorder, x: Var, perm: &[usize]) -> Result<Var> {
    if perm.iter().copied().eq(0..tape.tensor_type(x).shape.rank()) {
        return Ok(x);
    }
    push_one(tape, Transpose { perm: perm.into() }, &[x])
}

/// One axis of the output: its extent and the distances between neighbours in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    extent: usize,
    input_stride: usize,
    output_stride: usize,
}

/// The axes of the output without those of extent 1, and with those joined that are neighbours in
/// the input and the output.
fn axes(input: &Shape, perm: &[usize]) -> Vec<Axis> {
    let strides = input.strides();
    let mut axes: Vec<Axis> = Vec::new();
    let mut output_stride = 1;
    for &axis in perm.iter().rev() {
        let (extent, input_stride) = (input.extents()[axis], strides[axis]);
        match axes.last_mut() {
            _ if extent == 1 => {}
            Some(last) if input_stride == last.extent * last.input_stride => last.extent *= extent,
            _ => axes.push(Axis { extent, input_stride, output_stride }),
        }
        output_stride *= extent;
    }
    axes.reverse();
    axes
}

impl Operation for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x] = super::expect_count(self.name(), inputs)?;
        let mut sorted = self.perm.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..x.shape.rank()) {
            let problem = format!("{:?} is not an order of the axes of {x}", self.perm);
            return Err(Error::operation(self.name(), problem));
        }
        let extents: Vec<usize> = self.perm.iter().map(|&axis| x.shape.extents()[axis]).collect();
        Ok(vec![TensorType::new(extents, x.dtype)])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        naive::transpose(&self.perm, &inputs[0], &mut outputs[0].data);
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, axes(&site.inputs[0].shape, &self.perm)))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, axes(&site.inputs[0].shape, &self.perm))
    }

    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let mut inverse = vec![0; self.perm.len()];
        for (to, &from) in self.perm.iter().enumerate() {
            inverse[from] = to;
        }
        let dx = transpose(rule.tape, dy, &inverse)?;
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(0.0, site)
    }

    fn view(&self, inputs: &[TensorType]) -> Option<usize> {
        let empty = inputs[0].elements() == 0;
        (empty || axes(&inputs[0].shape, &self.perm).len() <= 1).then_some(0)
    }
}

fn case(shape: &[usize], perm: &[usize]) -> Case {
    let op = Transpose { perm: perm.into() };
    Case::new(format!("{shape:?}_by_{perm:?}"), op, Tolerance::Exact)
}

/// Test cases.
pub fn cases(_control: &mut Control) -> Vec<Case> {
    let list: [(&[usize], &[usize]); 15] = [
        (&[], &[]),
        (&[0, 3], &[1, 0]),
        (&[1, 5], &[1, 0]),
        (&[3, 1, 5], &[1, 0, 2]),
        (&[2, 2], &[1, 0]),
        (&[16, 17], &[1, 0]),
        (&[15, 33], &[1, 0]),
        (&[131, 67], &[1, 0]),
        (&[3, 19, 18], &[0, 2, 1]),
        (&[300, 5, 3], &[0, 2, 1]),
        (&[5, 7, 3, 4], &[0, 2, 1, 3]),
        (&[61, 7, 9, 16], &[0, 2, 1, 3]),
        (&[7, 5, 3], &[2, 1, 0]),
        (&[2, 5, 3, 4], &[3, 0, 2, 1]),
        (&[19, 3, 17, 11], &[0, 2, 3, 1]),
    ];
    let mut cases: Vec<Case> = list
        .map(|(shape, perm)| case(shape, perm).input(shape, Fill::Uniform(-1.0, 1.0)))
        .into();
    for (dtype, bound) in [(DType::U8, 256), (DType::U32, 1 << 20), (DType::Bf16, 200)] {
        let case = case(&[3, 37, 18], &[2, 0, 1]).without_gradient();
        cases.push(case.fixed(&[3, 37, 18], dtype, Fill::Indices(bound)));
    }
    cases
}

/// Benchmark cases.
pub fn benches(_control: &mut Control) -> Vec<Case> {
    let list: [(&[usize], &[usize]); 3] = [
        (&[1024, 1024], &[1, 0]),
        (&[128, 28, 28, 32], &[0, 3, 1, 2]),
        (&[16, 256, 12, 64], &[0, 2, 1, 3]),
    ];
    list.map(|(shape, perm)| case(shape, perm).input(shape, Fill::Uniform(-1.0, 1.0))).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Store, Tape};

    #[test]
    fn the_order_names_every_axis_once() {
        let mut tape = Tape::new(&Store::new(&Device::cpu(1).expect("cpu")));
        let x = tape.input("x", [2, 3]).expect("input");
        assert_eq!(transpose(&mut tape, x, &[0, 1]).expect("nothing moves"), x);
        for perm in [&[0][..], &[1, 1], &[0, 2], &[0, 1, 2]] {
            let error = transpose(&mut tape, x, perm).expect_err("not an order").to_string();
            assert!(error.contains("[2, 3]"), "{error}");
        }
    }

    #[test]
    fn neighbours_are_one_axis() {
        let nhwc = Shape::from([4, 5, 1, 6, 7]);
        let axis = |extent, input_stride, output_stride| Axis { extent, input_stride, output_stride };
        let merged = axes(&nhwc, &[0, 4, 1, 2, 3]);
        assert_eq!(merged, [axis(4, 210, 210), axis(7, 1, 30), axis(30, 7, 1)]);
        assert_eq!(axes(&nhwc, &[0, 1, 2, 3, 4]), [axis(840, 1, 1)]);
    }
}
