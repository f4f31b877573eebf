//! `linear` on the CPU: bias and activation are applied to each block of the product while it is in
//! cache.
#![allow(unsafe_code)]

use super::Activation;
use crate::device::cpu::Launch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, math, update_many, update1, update2};
use crate::gemm::Block;
use crate::ops::Site;
use crate::ops::matmul::Products;
use crate::ops::matmul::cpu::{self, Around, Finish};
use std::sync::Arc;

pub(super) fn launch(site: &Site<'_>, products: Products, activation: Activation) -> Launch {
    // Where only z is read, the product is z.
    let (c, activation) = if site.used[0] { (0, activation) } else { (1, Activation::None) };
    let (isa, n) = (site.isa, products.spec.n);
    let plain = activation == Activation::None && site.inputs.len() == 2;
    let finish = (!plain).then(|| -> Finish {
        Arc::new(move |around, block| dispatch(isa, Finishing { around, block, n, activation }))
    });
    cpu::launch(site, products, c, finish)
}

/// `z = c + bias; c = act(z)` for one block of C.
struct Finishing<'a> {
    around: &'a Around<'a>,
    block: Block,
    n: usize,
    activation: Activation,
}

impl Kernel for Finishing<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::None => rows(s, self, #[inline(always)] |_, z| z),
            Activation::Relu => rows(s, self, #[inline(always)] |s, z| math::relu(s, z)),
            Activation::Gelu => rows(s, self, #[inline(always)] |s, z| math::gelu(s, z)),
            Activation::Tanh => rows(s, self, #[inline(always)] |s, z| math::tanh(s, z)),
            Activation::Silu => rows(s, self, #[inline(always)] |s, z| math::silu(s, z)),
        }
    }
}

#[inline(always)]
fn rows<S: Simd>(s: S, this: Finishing<'_>, f: impl Fn(S, S::F32) -> S::F32) {
    let Finishing { around, block, n, .. } = this;
    let bias = around.bias.map(|bias| &bias[block.col..][..block.cols]);
    for i in 0..block.rows {
        // SAFETY: the plan calls this as its epilogue, and no other row is borrowed.
        let y = unsafe { block.row_mut(i) };
        if around.second.is_null() {
            match bias {
                None => update1(s, y, #[inline(always)] |s, z| f(s, z)),
                Some(bias) => {
                    update2(s, y, bias, #[inline(always)] |s, z, b| f(s, s.add(z, b)));
                }
            }
        } else {
            // SAFETY: the second output is as long as C (`Job::finishing` asserts it), whose rows
            // have n elements; blocks do not overlap, so no other chunk has these elements.
            let z = unsafe {
                let start = around.second.add((block.row + i) * n + block.col);
                std::slice::from_raw_parts_mut(start, block.cols)
            };
            match bias {
                None => {
                    update_many(s, [y, z], [], #[inline(always)] |s, [z, _], []| [f(s, z), z]);
                }
                Some(bias) => update_many(
                    s,
                    [y, z],
                    [bias],
                    #[inline(always)]
                    |s, [z, _], [b]| {
                        let z = s.add(z, b);
                        [f(s, z), z]
                    },
                ),
            }
        }
    }
}
