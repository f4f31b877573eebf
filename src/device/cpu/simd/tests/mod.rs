//! Every primitive, driver and function on every instruction set of this machine, against plain
//! scalar code.

use super::{Kernel, Simd, dispatch};
use crate::device::cpu::Isa;

mod math;
mod philox;
mod primitives;
mod slices;

/// A plain multiplicative generator, so that the tests need no other.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(super) fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Uniform in -4..4.
    pub(super) fn value(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 21) as f32 - 4.0
    }

    pub(super) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// Values at which something changes.
pub(super) const SPECIAL: [f32; 30] = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    1.0,
    -1.0,
    0.499_999_97,
    8_388_607.5,
    -8_388_607.5,
    4_194_303.5,
    4_194_304.5,
    8_388_609.0,
    16_777_217.0,
    2_147_483_500.0,
    2_147_483_648.0,
    -2_147_483_648.0,
    -2_147_483_900.0,
    1e-45,
    -1e-45,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::EPSILON,
];

/// Lengths around the edges of vectors and of the unrolled loops of both widths.
pub(super) const LENGTHS: [usize; 18] =
    [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 211];

/// The instruction sets of this machine that have vectors of their own.
pub(super) fn vector_sets() -> impl Iterator<Item = Isa> {
    Isa::available().into_iter().filter(|&isa| isa <= Isa::Avx512)
}

/// Bit-for-bit equal, any NaN being equal to any other.
pub(super) fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// The token says which instruction set really runs.
#[test]
fn dispatch_runs_what_is_asked() {
    struct Which;
    impl Kernel for Which {
        type Output = (Isa, usize);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> (Isa, usize) {
            // The vector has as many lanes as it says, each of its own.
            let lanes = s.bits(s.gt_i32(s.iota_i32(), s.splat_i32(-1))).count_ones();
            (S::ISA, lanes as usize)
        }
    }
    for isa in Isa::available() {
        // What comes above AVX-512 has its vectors.
        let vectors = isa.min(Isa::Avx512);
        let lanes = if vectors == Isa::Avx512 { 16 } else { 8 };
        assert_eq!(dispatch(isa, Which), (vectors, lanes));
    }
}
