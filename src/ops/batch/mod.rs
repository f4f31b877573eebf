//! A batch, gathered and normalised inside the step:
//! `inputs[r, c] = values[n, c] * scale[c] + shift[c]` and `labels[r] = labels[n]` with
//! `n = order[offset + r]`.
//!
//! - `values`: u8 or f32 `[N, F]`, the data set; `labels`: u32 `[N]`; `order`: u32 `[M]`, as a rule a
//!   permutation of `0..N`; `scale` and `shift`: f32 `[F]`. All row-major.
//! - `inputs`: f32 `[size, F]`; `labels`: u32 `[size]`.
//! - `offset` is read from the control block at every replay, in rows of `order`.
//!
//! So no loader thread is needed, and the data path is part of what is replayed.
//!
//! A row whose place `offset + r` is past the end of `order`, or whose entry there is `N` or more,
//! reads nothing: its inputs are NaN and its label is `u32::MAX`, so that the step diverges
//! instead of going on with a wrong number. NaN in `values` stays NaN. Error: one rounding, and one
//! more of the product on the portable instruction set. There is no gradient: the data set is not
//! learned.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod naive;

use super::{Case, Cost, Fill, Operation, Recorder, Rule, Site, Tolerance, Values, Var};
use crate::device::cpu::Launch;
#[cfg(feature = "cuda")]
use crate::device::cuda::Launches;
use crate::device::{Control, U64Slot};
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorType};
use std::sync::Arc;

/// The operation `batch`: `size` rows from the place in the order that the slot holds.
#[derive(Clone, Copy, Debug)]
pub struct GatherBatch {
    /// Rows of the batch.
    pub size: usize,
    /// First row, counted in the order.
    pub offset: U64Slot,
}

/// What [`batch`] records.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Normalised rows: f32 `[size, F]`.
    pub inputs: Var,
    /// Their labels: u32 `[size]`.
    pub labels: Var,
}

/// Records the gathering of `size` rows: `values` `[N, F]` (u8 or f32), `labels` u32 `[N]`, `order`
/// u32 `[M]`, `scale` and `shift` f32 `[F]`. Rows `order[offset..offset + size]` are taken; the
/// offset is read at every replay.
///
/// # Errors
/// The shapes or element types do not fit, or `size` is more than `M`. At replay, a row that lies
/// outside the order or the data set becomes NaN, with the label `u32::MAX`.
#[allow(clippy::too_many_arguments)]
pub fn batch(
    tape: &mut dyn Recorder,
    values: Var,
    labels: Var,
    order: Var,
    scale: Var,
    shift: Var,
    size: usize,
    offset: U64Slot,
) -> Result<Batch> {
    let op = Arc::new(GatherBatch { size, offset });
    let outputs = tape.push(op, &[values, labels, order, scale, shift])?;
    Ok(Batch { inputs: outputs[0], labels: outputs[1] })
}

impl Operation for GatherBatch {
    fn name(&self) -> &'static str {
        "batch"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let values = match inputs.first() {
            Some(values) if values.dtype == DType::U8 => DType::U8,
            _ => DType::F32,
        };
        let wanted = [values, DType::U32, DType::U32, DType::F32, DType::F32];
        super::expect_types(self.name(), inputs, &wanted)?;
        let refuse = |problem: String| Err(Error::operation(self.name(), problem));
        let &[rows, features] = inputs[0].shape.extents() else {
            return refuse(format!("the values must be [rows, features], not {}", inputs[0]));
        };
        if inputs[1].shape.extents() != [rows] {
            return refuse(format!("labels {} for values {}", inputs[1], inputs[0]));
        }
        if inputs[3].shape.extents() != [features] || inputs[4].shape.extents() != [features] {
            let problem = format!("scale {} and shift {}", inputs[3], inputs[4]);
            return refuse(format!("{problem} for {features} features"));
        }
        match inputs[2].shape.extents() {
            &[len] if self.size <= len => {}
            _ => return refuse(format!("{} rows from the order {}", self.size, inputs[2])),
        }
        Ok(vec![TensorType::f32([self.size, features]), TensorType::u32([self.size])])
    }

    fn naive(&self, inputs: &[Values], outputs: &mut [Values], control: &Control) {
        naive::batch(inputs, outputs, control.u64(self.offset));
    }

    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        Some(cpu::launch(site, self.offset))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, site: &Site<'_>) -> Option<Launches> {
        cuda::launch(site, self.offset)
    }

    fn gradient(&self, _rule: &mut Rule<'_>) -> Result<()> {
        Err(Error::gradient(self.name(), "the data set is not differentiated"))
    }

    /// Of the data set, its labels and its order only the rows of the batch are read.
    fn cost(&self, site: &Site<'_>) -> Cost {
        let features = site.inputs[0].shape.columns();
        let mut bytes = self.size * size_of::<u32>();
        if site.used[0] {
            let row = features * (site.inputs[0].dtype.size() + size_of::<f32>());
            bytes += self.size * row + 2 * features * size_of::<f32>();
        }
        if site.used[1] {
            bytes += 2 * self.size * size_of::<u32>();
        }
        let flops = if site.used[0] { 2 * self.size * features } else { 0 };
        Cost { flops: flops as f64, bytes: bytes as f64 }
    }
}

fn case(
    control: &mut Control,
    [rows, features, size, offset]: [usize; 4],
    values: DType,
    order: Fill,
) -> Case {
    let slot = control.u64_slot(&format!("batch.offset.{offset}"), offset as u64);
    let name = format!("{size}x{features}_of_{rows}_from_{offset}_{values}");
    let fill = if values == DType::U8 { Fill::Indices(256) } else { Fill::Uniform(-2.0, 2.0) };
    // Products are up to 4 and their sum near 1: a rounding of the product counts for 4.
    Case::new(name, GatherBatch { size, offset: slot }, Tolerance::Rounding(6.0))
        .fixed(&[rows, features], values, fill)
        .fixed(&[rows], DType::U32, Fill::Indices(10))
        .fixed(&[rows], DType::U32, order)
        .fixed(&[features], DType::F32, Fill::Uniform(-0.02, 0.02))
        .fixed(&[features], DType::F32, Fill::Uniform(-1.0, 1.0))
        .without_gradient()
}

/// Test cases.
pub fn cases(control: &mut Control) -> Vec<Case> {
    let mut all = Vec::new();
    for values in [DType::U8, DType::F32] {
        for features in [0, 1, 7, 15, 16, 17, 33, 784] {
            all.push(case(control, [11, features, 5, 3], values, Fill::Permutation));
        }
        all.push(case(control, [0, 4, 0, 0], values, Fill::Permutation));
        all.push(case(control, [5, 8, 0, 5], values, Fill::Permutation));
        all.push(case(control, [5, 8, 5, 0], values, Fill::Permutation));
        all.push(case(control, [211, 67, 157, 54], values, Fill::Indices(211)));
    }
    all
}

/// Benchmark cases.
pub fn benches(control: &mut Control) -> Vec<Case> {
    vec![case(control, [60_000, 784, 128, 1024], DType::U8, Fill::Permutation)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let op = GatherBatch { size: 4, offset: Control::new().u64_slot("offset", 0) };
        let infer = |values: TensorType, labels: usize, order: usize, shift: usize| {
            op.infer(&[
                values,
                TensorType::u32([labels]),
                TensorType::u32([order]),
                TensorType::f32([3]),
                TensorType::f32([shift]),
            ])
        };
        let u8s = |shape: &[usize]| TensorType::new(shape, DType::U8);
        let good = infer(u8s(&[9, 3]), 9, 9, 3).expect("they fit");
        assert_eq!(good, [TensorType::f32([4, 3]), TensorType::u32([4])]);
        for (bad, names) in [
            (infer(u8s(&[9, 3]), 8, 9, 3), "labels u32[8]"),
            (infer(u8s(&[9, 3]), 9, 3, 3), "4 rows from the order u32[3]"),
            (infer(u8s(&[9, 3]), 9, 9, 2), "shift f32[2]"),
            (infer(u8s(&[9, 3, 1]), 9, 9, 3), "u8[9, 3, 1]"),
            (infer(TensorType::u32([9, 3]), 9, 9, 3), "input 0 is u32[9, 3], not f32"),
        ] {
            let error = bad.expect_err(names).to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
