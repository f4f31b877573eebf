//! bf16 products on instruction sets that have none: operands are rounded to bf16 while they are
//! packed, and stay f32. A product of two such values is exact in f32.

use super::driver::{Kernel, Micro, Packing, Panels};
use super::layout::Weave;
use super::{Address, Spec};
use half::bf16;
use std::marker::PhantomData;

/// The f32 kernel `K` on operands rounded to bf16.
pub(super) struct Rounded<K>(PhantomData<K>);

impl<K: Kernel<Element = f32>> Kernel for Rounded<K> {
    type Element = f32;
    type Session = K::Session;
    const NAME: &'static str = K::NAME;
    const SPEED: u64 = 1;
    const ROWS: usize = K::ROWS;
    const LANES: usize = K::LANES;
    const DEPTH: usize = K::DEPTH;

    fn session() -> K::Session {
        K::session()
    }

    fn panels(spec: &Spec, packed_a: bool, packed_b: bool, _single: bool) -> Panels {
        let rows = spec.m.max(1).div_ceil(spec.m.max(1).div_ceil(K::ROWS));
        let weave_b = K::weave_b(spec.n);
        let tile = (rows, weave_b.width);
        Panels::packed(tile, (Weave::f32(rows), weave_b), spec, packed_a, packed_b)
    }

    fn weave_b(n: usize) -> Weave {
        K::weave_b(n)
    }

    unsafe fn multiply(micro: &Micro) {
        // SAFETY: the caller's contract.
        unsafe { K::multiply(micro) }
    }

    unsafe fn pack(packing: &Packing) {
        let Packing { stride, along_depth, count, width, depth, panel, .. } = *packing;
        match packing.source {
            Address::F32(_) => {
                // SAFETY: the caller's contract; `K` writes width x depth elements of the panel.
                let packed = unsafe {
                    K::pack(packing);
                    std::slice::from_raw_parts_mut(panel, width * depth)
                };
                for value in packed {
                    *value = bf16::from_f32(*value).to_f32();
                }
            }
            Address::Bf16(source) => {
                let (along, across) = if along_depth { (1, stride) } else { (stride, 1) };
                for p in 0..depth {
                    for i in 0..width {
                        // SAFETY: (i, p) lies inside the source where i < count, and inside the
                        // panel (contract).
                        unsafe {
                            *panel.add(p * width + i) = match i < count {
                                true => (*source.add(p * along + i * across)).to_f32(),
                                false => 0.0,
                            };
                        }
                    }
                }
            }
        }
    }
}
