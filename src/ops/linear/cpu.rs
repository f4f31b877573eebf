//! `linear` on the CPU: bias and activation are applied to each block of the product while it is in
//! cache.
#![allow(unsafe_code)]

use super::Activation;
use crate::device::cpu::{Isa, Launch};
use crate::device::cpu::simd::{Kernel, Simd, dispatch, math};
use crate::gemm::Block;
use crate::ops::Site;
use crate::ops::matmul::Products;
use crate::ops::matmul::cpu::{self, Around, Finish, Others};
use std::sync::Arc;

pub(super) fn launch(
    site: &Site<'_>,
    products: Products,
    activation: Activation,
    others: Others,
) -> Launch {
    // Where only z is read, the product is z.
    let (c, activation) = if site.used[0] { (0, activation) } else { (1, Activation::None) };
    let (isa, n) = (site.isa, products.spec.n);
    let plain = activation == Activation::None && others.bias.is_none();
    let finish = (!plain).then(|| -> Finish {
        Arc::new(move |around, block| dispatch(isa, Finishing { around, block, n, activation }))
    });
    cpu::launch(site, products, c, others, finish)
}

/// Adds a bias, one value a column, to a block that an epilogue sees.
pub(in crate::ops) fn add_bias(isa: Isa, bias: &[f32], block: Block) {
    let around = Around { bias: Some(bias), saved: None, second: std::ptr::null_mut() };
    let activation = Activation::None;
    dispatch(isa, Finishing { around: &around, block, n: bias.len(), activation });
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

/// Vector by vector of the columns, so that each vector of the bias is loaded once; the rows of a
/// block are few.
#[inline(always)]
fn rows<S: Simd>(s: S, this: Finishing<'_>, f: impl Fn(S, S::F32) -> S::F32) {
    let Finishing { around, block, n, .. } = this;
    let bias = around.bias.map(|bias| &bias[block.col..][..block.cols]);
    for j in (0..block.cols).step_by(S::LANES) {
        let width = S::LANES.min(block.cols - j);
        let b = bias.map_or(s.zero(), |bias| s.load_slice(&bias[j..]));
        for i in 0..block.rows {
            // SAFETY: the plan calls this as its epilogue: the block is ours to read and write,
            // i < rows and j + width <= cols. The second output is null, or as long as C
            // (`Job::finishing` asserts it), whose rows have n elements; blocks do not overlap, so
            // no other chunk touches these elements of it.
            unsafe {
                let y = block.c.add(i * block.ldc + j);
                let z = match around.second {
                    second if second.is_null() => None,
                    second => Some(second.add((block.row + i) * n + block.col + j)),
                };
                if width == S::LANES {
                    let value = s.add(s.load(y), b);
                    s.store(y, f(s, value));
                    if let Some(z) = z {
                        s.store(z, value);
                    }
                } else {
                    let value = s.add(s.load_partial(y, width, 0.0), b);
                    s.store_partial(y, width, f(s, value));
                    if let Some(z) = z {
                        s.store_partial(z, width, value);
                    }
                }
            }
        }
    }
}
