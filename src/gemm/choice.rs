//! Which precision multiplies faster on this machine, by measurement; and how fast at most.

use super::{
    ALIGNMENT, Address, Engine, Operands, PackedLayout, PackedWeights, Plan, Precision, Spec,
    driver::Kernel, with_kernel,
};
use crate::device::cpu::{Isa, Memory};
use crate::tensor::DType;
use half::bf16;
use std::time::{Duration, Instant};

/// What [`choose`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The precision to take.
    pub precision: Precision,
    /// Time of the products in f32 over that in bf16; 1 where there are no bf16 instructions, and
    /// nothing was measured.
    pub gain: f64,
}

/// By how much bf16 must be faster to be chosen: its rounding is not for nothing, and a choice near
/// the bound would differ from run to run.
const LEAST_GAIN: f64 = 1.3;
/// Extents are measured up to here: beyond it rates hardly change, and the first step waits.
const MOST: usize = 256;
/// FLOPs that are timed at least.
const LEAST_FLOPS: u64 = 1 << 20;
/// Products that are timed together at most.
const MOST_REPEATS: u64 = 100;
/// Repetitions, of which the fastest counts.
const TIMES: usize = 3;

/// Chooses between f32 and bf16 for a model whose weights \[inputs, outputs\] meet batches of `rows`:
/// by the time that forward product and gradients take on one thread, packing counted. Takes few
/// milliseconds; without bf16 instructions the choice is f32 and nothing is measured.
///
/// # Panics
/// When this machine lacks the instruction set.
pub fn choose(isa: Isa, rows: usize, weights: &[[usize; 2]]) -> Choice {
    let own = Engine::new(isa, Precision::Bf16).is_native_bf16();
    let mut shapes: Vec<[usize; 2]> =
        weights.iter().map(|weight| weight.map(|extent| extent.clamp(1, MOST))).collect();
    shapes.sort_unstable();
    let rows = rows.clamp(1, MOST);
    let (mut f32_time, mut bf16_time) = (Duration::ZERO, Duration::ZERO);
    if own {
        for group in shapes.chunk_by(|a, b| a == b) {
            let count = group.len() as u32;
            f32_time += count * seconds(isa, Precision::F32, rows, group[0]);
            bf16_time += count * seconds(isa, Precision::Bf16, rows, group[0]);
        }
    }
    if bf16_time.is_zero() {
        return Choice { precision: Precision::F32, gain: 1.0 };
    }
    let gain = f32_time.as_secs_f64() / bf16_time.as_secs_f64();
    let precision = if gain >= LEAST_GAIN { Precision::Bf16 } else { Precision::F32 };
    Choice { precision, gain }
}

/// FLOPs a second of one thread's microkernel on panels that are packed and in its caches: the
/// ceiling of products in that precision. The best of some shapes: in a small one starting a product
/// counts, in a large one panels leave L1. Takes some milliseconds with SIMD.
///
/// # Panics
/// When this machine lacks the instruction set.
pub fn ceiling(isa: Isa, precision: Precision) -> f64 {
    let engine = Engine::new(isa, precision);
    let (rows, cols, depth) =
        with_kernel!(engine, K => (K::ROWS, 2 * K::LANES, 128), else (64, 64, 256));
    let packs = engine != Engine::MatrixMultiply;
    let rate = |(panels, depths)| {
        let spec = Spec::new(panels * rows, cols, depths * depth).in_precision(precision);
        let plan = Plan::single(isa, spec, packs, packs);
        let best = (0..10).map(|_| fastest(&plan)).min().unwrap_or_default();
        spec.flops() as f64 / best.as_secs_f64().max(1e-9)
    };
    let shapes: &[(usize, usize)] =
        if packs { &[(1, 1), (1, 2), (4, 1), (4, 2), (8, 2)] } else { &[(1, 1)] };
    shapes.iter().map(|&shape| rate(shape)).fold(0.0, f64::max)
}

/// Time of `x W`, `dy W^T` and `x^T dy`.
fn seconds(isa: Isa, precision: Precision, rows: usize, weight: [usize; 2]) -> Duration {
    let [inputs, outputs] = weight;
    let packed = PackedWeights::new(isa, precision, [(0, weight)]).is_some();
    let spec = |m, n, k| Spec::new(m, n, k).in_precision(precision);
    let products = [
        (spec(rows, outputs, inputs), packed),
        (spec(rows, inputs, outputs).b_transposed(), packed),
        (spec(inputs, outputs, rows).a_transposed(), false),
    ];
    products.into_iter().map(|(spec, packed)| fastest(&Plan::new(isa, spec, false, packed))).sum()
}

/// Least time of some runs of a plan on operands of zeros.
fn fastest(plan: &Plan) -> Duration {
    let Spec { m, n, k, .. } = *plan.spec();
    let memory = |elements: usize| Memory::zeroed((elements + ALIGNMENT) * size_of::<f32>());
    let (layout_a, layout_b) = (plan.packed_a(), plan.packed_b());
    let (a, b) = (memory((m * k).max(layout_a.len())), memory((k * n).max(layout_b.len())));
    let (mut c, mut scratch) = (memory(m * n), memory(plan.scratch_len()));
    let address = |memory: &Memory, packed: bool, layout: PackedLayout| match layout.element {
        DType::Bf16 if packed => Address::Bf16(memory.bytes().as_ptr().cast::<bf16>()),
        _ => Address::F32(memory.bytes().as_ptr().cast()),
    };
    let operands = Operands {
        a: address(&a, plan.packed_a, layout_a),
        lda: plan.spec().a_shape().1,
        b: address(&b, plan.packed_b, layout_b),
        ldb: plan.spec().b_shape().1,
        c: c.bytes_mut().as_mut_ptr().cast(),
        ldc: n,
        scratch: scratch.bytes_mut().as_mut_ptr().cast(),
    };
    // Short products are repeated until the clock can tell.
    let repeats = (LEAST_FLOPS / plan.spec().flops().max(1)).clamp(1, MOST_REPEATS) as u32;
    let run = |_| {
        let start = Instant::now();
        for _ in 0..repeats {
            // SAFETY: the operands are dense, as long as their shapes and the plan's layouts say,
            // and nobody else uses them.
            unsafe { plan.run(&operands, None) };
        }
        start.elapsed() / repeats
    };
    (0..TIMES).map(run).min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_those_of_a_computer() {
        for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Amx) {
            for precision in [Precision::F32, Precision::Bf16] {
                let rate = ceiling(isa, precision);
                assert!(rate > 1e8 && rate < 1e13, "{isa} {precision}: {rate}");
            }
        }
    }

    #[test]
    fn without_bf16_instructions_the_choice_is_f32() {
        for isa in Isa::available() {
            let choice = choose(isa, 128, &[[784, 512], [512, 512], [512, 10]]);
            assert!(choice.gain > 0.0 && choice.gain.is_finite(), "{choice:?}");
            if !Engine::new(isa, Precision::Bf16).is_native_bf16() {
                assert_eq!(choice, Choice { precision: Precision::F32, gain: 1.0 }, "{isa}");
            }
        }
        assert_eq!(choose(Isa::Portable, 128, &[]).precision, Precision::F32);
    }
}
