//! `dropout` on the CPU: the mask is made in registers, four vectors from one call of Philox.

use super::Dropout;
use crate::device::cpu::simd::philox::{BLOCK, philox4x32_lanes, uniform};
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Launch, rows_per_chunk};
use crate::ops::Site;

/// Ten rounds of Philox for 4 elements, 16 lanes at once, and 8 bytes moved.
const NANOSECONDS: f64 = 1.0;
/// Counters of a block: each gives 4 words.
const COUNTERS: usize = BLOCK / 4;

pub(super) fn launch(site: &Site<'_>, op: Dropout) -> Launch {
    let (isa, elements) = (site.isa, site.inputs[0].elements());
    // Chunks start at whole blocks of counters.
    let per_chunk = rows_per_chunk(NANOSECONDS).next_multiple_of(BLOCK);
    Launch::new(isa.name()).rows(elements, per_chunk, move |chunk| {
        let mask = Mask {
            x: chunk.input_rows(0),
            y: chunk.output(0),
            key: op.key(),
            stream: chunk.control().u64(op.counter),
            first: chunk.row_range().start,
            p: op.p,
        };
        dispatch(isa, mask);
    })
}

struct Mask<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    key: [u32; 2],
    stream: u64,
    /// Index of the first element in the whole tensor, a multiple of [`BLOCK`].
    first: usize,
    p: f32,
}

impl Kernel for Mask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.x.len(), self.y.len());
        assert!(self.first.is_multiple_of(BLOCK));
        // In f64: in f32, 1 - p would be rounded before the division.
        let scale = s.splat((1.0 / (1.0 - f64::from(self.p))) as f32);
        let p = s.splat(self.p);
        let stream = [self.stream as u32 as i32, (self.stream >> 32) as i32].map(|x| s.splat_i32(x));
        let blocks = (self.first / BLOCK) as u64..;
        for ((block, x), y) in blocks.zip(self.x.chunks(BLOCK)).zip(self.y.chunks_mut(BLOCK)) {
            let mut lane = 0;
            while lane < COUNTERS {
                // A block starts at a multiple of 16 counters, so the low word does not carry.
                let counter = block * COUNTERS as u64 + lane as u64;
                let low = s.add_i32(s.splat_i32(counter as u32 as i32), s.iota_i32());
                let high = s.splat_i32((counter >> 32) as i32);
                let words = philox4x32_lanes(s, self.key, [low, high, stream[0], stream[1]]);
                for (word, bits) in words.into_iter().enumerate() {
                    let start = word * COUNTERS + lane;
                    if start < x.len() {
                        // A product, not a choice: NaN in x stays seen.
                        let keep = s.ge(uniform(s, bits), p);
                        let multiplier = s.select(keep, scale, s.zero());
                        s.store_slice(&mut y[start..], s.mul(s.load_slice(&x[start..]), multiplier));
                    }
                }
                lane += S::LANES;
            }
        }
    }
}
