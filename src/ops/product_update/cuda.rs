//! `product_update` on a GPU: the product into scratch memory, and the update from there. The gradient
//! goes to memory and back, of which a GPU has enough at once; the bits are those of the two operations.

use super::{ProductUpdate, SHIFT};
use crate::device::cuda::{Launches, Place};
use crate::ops::Site;
use crate::ops::matmul::Products;
use crate::ops::matmul::cuda::{Epilogue, product};
use crate::ops::update::cuda::{Places, launch as update};

pub(super) fn launch(op: &ProductUpdate, site: &Site<'_>) -> Option<Launches> {
    let spec = op.spec(site.inputs);
    let mut launches = Launches::new();
    let gradient = launches.scratch(spec.m * spec.n);
    let operands = [Place::Input(0), Place::Input(1)];
    let products = Products { batches: 1, spec };
    product(&mut launches, site.target, products, operands, &Epilogue::to(gradient))?;
    // Inputs after dz are W, moments and guard; outputs W and moments, then the sums.
    let count = op.update.rule.moments();
    let moment = |i: usize| if i < count { Place::Output(1 + i) } else { Place::Null };
    let statistics = op.update.statistics_output();
    let places = Places {
        weights: Place::Output(0),
        gradients: gradient,
        moments: [moment(0), moment(1)],
        guard: match op.update.has_guard {
            true => Place::Input(op.update.scalars().start + SHIFT),
            false => Place::Null,
        },
        factor: Place::Null,
        statistics: if site.used[statistics] { Place::Output(statistics) } else { Place::Null },
    };
    update(&mut launches, &op.update, places)?;
    Some(launches)
}
