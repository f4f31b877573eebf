//! A product of matrices in memory as a launch of its own, for measurements: the operations have
//! their products inside larger launches, and take f32.

use super::{ALIGNMENT, Address, Operands, PackedLayout, Plan, Precision, Spec};
use crate::device::cpu::{Chunk, Launch};
use crate::tensor::DType;
use half::bf16;
use std::sync::Arc;

/// The phases of `plan` as a launch. Inputs: A and B, dense; of type `element`, or packed as the plan
/// says. Output: C, f32 \[m, n\], which nothing else writes.
///
/// # Panics
/// When `element` is neither f32 nor, in [`Precision::Bf16`], bf16. In a chunk when an input or the
/// output has another type than that or too few elements.
pub fn launch(plan: Plan, element: DType) -> Launch {
    let bf16 = element == DType::Bf16 && plan.spec.precision == Precision::Bf16;
    assert!(element == DType::F32 || bf16, "{element:?} in {}", plan.spec.precision);
    let (packs, tiles, reduces) = (plan.pack_chunks(), plan.tiles(), plan.reduce_chunks());
    let launch = Launch::new(plan.engine()).scratch(plan.scratch_len().next_multiple_of(ALIGNMENT));
    let pack = Arc::new(plan);
    let (tile, reduce) = (Arc::clone(&pack), Arc::clone(&pack));
    let mut launch = match packs {
        0 => launch,
        _ => launch.tiles(packs, move |chunk| {
            // SAFETY: `operands` says why the addresses hold. A launch runs its phases in order with
            // a barrier between them and each chunk of a phase once; nobody else touches C and the
            // scratch meanwhile, which are this node's.
            unsafe { pack.pack(chunk.index(), &operands(&pack, element, chunk)) }
        }),
    };
    launch = launch.tiles(tiles, move |chunk| {
        // SAFETY: as for the first phase.
        unsafe { tile.tile(chunk.index(), &operands(&tile, element, chunk), None) }
    });
    match reduces {
        0 => launch,
        _ => launch.tiles(reduces, move |chunk| {
            // SAFETY: as for the first phase.
            unsafe { reduce.reduce(chunk.index(), &operands(&reduce, element, chunk), None) }
        }),
    }
}

/// The addresses of the product. Slices and assertions make sure that there is as much memory as the
/// plan says; `launch` asked for the scratch.
fn operands(plan: &Plan, element: DType, chunk: &Chunk<'_>) -> Operands {
    let Spec { m, n, .. } = plan.spec;
    let stored = |(rows, columns): (usize, usize)| (rows * columns, element);
    let packed = |layout: PackedLayout| (layout.len(), layout.element);
    let of_a = if plan.packed_a { packed(plan.packed_a()) } else { stored(plan.spec.a_shape()) };
    let of_b = if plan.packed_b { packed(plan.packed_b()) } else { stored(plan.spec.b_shape()) };
    let address = |input: usize, (len, element): (usize, DType)| match element {
        DType::Bf16 => Address::Bf16(chunk.input::<bf16>(input)[..len].as_ptr()),
        _ => Address::F32(chunk.input::<f32>(input)[..len].as_ptr()),
    };
    assert!(m * n <= chunk.output_len(0), "C is too short");
    Operands {
        a: address(0, of_a),
        lda: plan.spec.a_shape().1,
        b: address(1, of_b),
        ldb: plan.spec.b_shape().1,
        c: chunk.output_ptr(0),
        ldc: n,
        scratch: chunk.scratch_ptr(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Control;
    use crate::device::cpu::program::{Bound, Span, Task};
    use crate::device::cpu::{Isa, Memory, Program, Team};
    use crate::gemm::{View, ViewMut, gemm};

    /// C of the launch with `threads` threads. `values`: A and B.
    fn product(plan: Plan, element: DType, values: [&[f32]; 2], threads: usize) -> Vec<f32> {
        let Spec { m, n, .. } = plan.spec;
        let launch = launch(plan, element);
        let lens = [values[0].len(), values[1].len(), m * n, launch.scratch_elements()];
        let types = [element, element, DType::F32, DType::F32];
        let mut memory: Vec<Memory> =
            lens.iter().zip(types).map(|(len, dtype)| Memory::zeroed(len * dtype.size())).collect();
        for (memory, values) in memory.iter_mut().zip(values) {
            match element {
                DType::Bf16 => {
                    let to = memory.elements_mut::<bf16>(0, values.len());
                    to.iter_mut().zip(values).for_each(|(to, &x)| *to = bf16::from_f32(x));
                }
                _ => memory.elements_mut(0, values.len()).copy_from_slice(values),
            }
        }
        let span = |region: usize| {
            let (len, dtype) = (lens[region], types[region]);
            Span { region, offset: 0, len, dtype, in_place: false }
        };
        let stages: Vec<_> =
            (0..launch.chunks().count()).map(|phase| vec![vec![Task { node: 0, phase }]]).collect();
        let (inputs, outputs, scratch) = (vec![span(0), span(1)], vec![span(2)], span(3));
        let bound = vec![Bound { launch, inputs, outputs, scratch }];
        let mut program = Program::new(bound, &stages, 4, threads);
        program.always_help();
        let team = Team::new(threads).expect("threads");
        program.replay(&team, memory.iter_mut(), &Control::new());
        memory[2].elements(0, m * n).to_vec()
    }

    #[test]
    fn bf16_in_memory_gives_the_bits_of_the_same_values_in_f32() {
        // One tile, several tiles that pack, and K in parts.
        for (m, n, k) in [(1, 1, 1), (33, 17, 65), (300, 257, 190), (64, 40, 9000)] {
            let spec = Spec::new(m, n, k).in_precision(Precision::Bf16);
            let mut random = crate::random::Random::new(7, (m * n * k) as u64);
            let mut values = |len| -> Vec<f32> {
                (0..len).map(|_| bf16::from_f64(random.uniform(-1.0, 1.0)).to_f32()).collect()
            };
            let (a, b, mut wanted) = (values(m * k), values(k * n), vec![0.0; m * n]);
            for isa in Isa::available() {
                let view = |data, stride| View { data, stride };
                let c = ViewMut { data: &mut wanted, stride: n };
                gemm(isa, spec, view(&a, k), view(&b, n), c, None);
                assert!(wanted.iter().any(|&x| x != 0.0));
                for (element, threads) in [(DType::F32, 1), (DType::Bf16, 1), (DType::Bf16, 2)] {
                    let plan = Plan::new(isa, spec, false, false);
                    let found = product(plan, element, [&a, &b], threads);
                    assert_eq!(found, wanted, "{isa} {m} x {n} x {k} {element:?} {threads}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "Bf16 in f32")]
    fn bf16_is_refused_in_f32() {
        launch(Plan::new(Isa::Portable, Spec::new(2, 2, 2), false, false), DType::Bf16);
    }
}
