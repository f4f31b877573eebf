//! Decay along the polar factor: `W -= k lr decay U V^T`, for `W = U S V^T`, after every k-th step.
//!
//! All singular values shrink by the same amount, as if their sum (the nuclear norm) were penalised; plain
//! decay shrinks each by a share of itself. So it still simplifies a layer whose outputs are normalised, where
//! plain decay changes only the length of W, which the function does not see.
//!
//! `U V^T` comes from products alone: `X = W / |W|_F`, then `X = a X + (b A + c A^2) X` with `A = X X^T`
//! (or from the right with `X^T X`, whichever is smaller), with [`COEFFICIENTS`] that are best for singular
//! values of at least 1e-3: these come out within 1.2e-3 of 1, and smaller ones below 1.12, growing from 0. So
//! directions in which W is next to nothing are left. In f32, whatever the model's precision. It costs 6
//! iterations of `4 m n^2 + 2 n^3` FLOPs for n the smaller side: as much as a step of `4 n` rows or so. The state
//! is W alone: the factor is made anew each time, and the rate is that of the last step, times k. So a run that
//! goes on from a checkpoint has the same bits.
//!
//! Sources: Li, arXiv 2606.04405 (decay of normalised layers); Amsel, Persson, Musco, Gower, "The Polar
//! Express", 2025 (arXiv 2505.16932) for the coefficients; splitting a step is Lie and Trotter's.

use super::{Decay, Rule, Segment};
use crate::error::{Error, Result};
use crate::ops::update::UpdateSlots;
use crate::ops::{Recorder, Var, add, div, matmul, mul, offset, scale, sqrt, sum_all, update};
use crate::tape::{Region, Tape};

/// `a`, `b` and `c` of each iteration.
pub const COEFFICIENTS: [[f32; 3]; 6] = [
    [8.287_212, -23.595_887, 17.300_388],
    [4.107_059, -2.947_85, 0.544_843_1],
    [3.948_691, -2.908_903, 0.551_819_1],
    [3.318_419_7, -2.488_488, 0.510_049],
    [2.300_652, -1.668_904, 0.418_807_3],
    [1.891_301_4, -1.267_995_8, 0.376_804_1],
];

/// The rule of the update that takes the factor as its gradient.
pub(super) const RULE: Rule = Rule::Sgd { momentum: 0.0, nesterov: false };

/// A weight that decays along its polar factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolarWeight {
    /// First element in the flat region.
    pub offset: usize,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Factor of learning rate and decay together.
    pub factor: f32,
}

/// Which weights decay so, and how often.
#[derive(Clone, Debug)]
pub(super) struct Polar {
    pub(super) every: u64,
    pub(super) weights: Vec<PolarWeight>,
    pub(super) slots: UpdateSlots,
}

impl Polar {
    pub(super) fn record(
        &self,
        tape: &mut Tape,
        weights: Region,
        gradients: Region,
        flat_len: usize,
    ) -> Result<()> {
        let mut segments = Vec::new();
        for weight in &self.weights {
            let &PolarWeight { offset, shape, factor } = weight;
            let len = shape[0] * shape[1];
            segments.push(Segment { offset, len, rate_factor: factor, decay_factor: 0.0 });
            if len > 0 {
                let weight = tape.persistent("weight", weights, offset, shape)?;
                let factor = polar_factor(tape, weight)?;
                tape.place(factor, gradients, offset)?;
            }
        }
        let flat = tape.persistent("weights", weights, 0, [flat_len])?;
        let gradients = tape.persistent("polar factors", gradients, 0, [flat_len])?;
        let operands = update::Operands {
            weights: flat,
            gradients,
            moments: &[],
            guard: None,
            factor: None,
            packed: None,
        };
        update(tape, RULE, Decay::None, &segments, self.slots, operands)?;
        Ok(())
    }
}

/// Records the polar factor `U V^T` of a matrix `U S V^T`, as the module says; a matrix of zeros gives zeros.
///
/// # Errors
/// `matrix` is not f32 of two axes.
pub fn polar_factor(tape: &mut dyn Recorder, matrix: Var) -> Result<Var> {
    let &[rows, columns] = tape.tensor_type(matrix).shape.extents() else {
        let problem = format!("takes a matrix, not {}", tape.tensor_type(matrix));
        return Err(Error::operation("polar", problem));
    };
    let squares = mul(tape, matrix, matrix)?;
    let squares = sum_all(tape, squares)?;
    // Far below the square of any weight that is not zero.
    let squares = offset(tape, squares, f32::MIN_POSITIVE)?;
    let norm = sqrt(tape, squares)?;
    let mut x = div(tape, matrix, norm)?;
    for [a, b, c] in COEFFICIENTS {
        let wide = rows <= columns;
        let gram = matmul(tape, x, x, !wide, wide)?;
        let square = matmul(tape, gram, gram, false, false)?;
        let (gram, square) = (scale(tape, gram, b)?, scale(tape, square, c)?);
        let both = add(tape, gram, square)?;
        let product = match wide {
            true => matmul(tape, both, x, false, false)?,
            false => matmul(tape, x, both, false, false)?,
        };
        let straight = scale(tape, x, a)?;
        x = add(tape, straight, product)?;
    }
    Ok(x)
}
