//! `product_update` on a GPU: the tiles of the product end in the update, so that the gradient never goes to
//! memory; where the sum is split, the pass that adds its parts does. Hopper's own product has no such end: it goes by
//! way of scratch memory. The bits are those of the two operations.

use super::{ProductUpdate, SHIFT};
use crate::device::cuda::{Launches, Place};
use crate::ops::Site;
use crate::ops::matmul::Products;
use crate::ops::matmul::cuda::{Epilogue, blocks_of_update, product, product_with_update};
use crate::ops::update::cuda::{self, Places, Tables, add_statistics, argument};

pub(super) fn launch(op: &ProductUpdate, site: &Site<'_>) -> Option<Launches> {
    let spec = op.spec(site.inputs);
    let mut launches = Launches::new();
    // Inputs after dz are W, moments and guard; outputs W and moments, then the sums.
    let count = op.update.rule.moments();
    let moment = |i: usize| if i < count { Place::Output(1 + i) } else { Place::Null };
    let statistics = op.update.statistics_output();
    let mut places = Places {
        weights: Place::Output(0),
        // It comes from the product.
        gradients: Place::Null,
        moments: [moment(0), moment(1)],
        guard: match op.update.has_guard {
            true => Place::Input(op.update.scalars().start + SHIFT),
            false => Place::Null,
        },
        factor: Place::Null,
        statistics: if site.used[statistics] { Place::Output(statistics) } else { Place::Null },
    };
    let operands = [Place::Input(0), Place::Input(1)];
    let Some(blocks) = blocks_of_update(site.target, spec) else {
        places.gradients = launches.scratch(spec.m * spec.n);
        let (products, end) = (Products { batches: 1, spec }, Epilogue::to(places.gradients));
        product(&mut launches, site.target, products, operands, &end)?;
        cuda::launch(&mut launches, &op.update, places)?;
        return Some(launches);
    };
    let tables = Tables::new(&mut launches, &op.update, Place::Null, &places, blocks);
    let update = argument(&op.update, &places, &tables)?;
    product_with_update(&mut launches, site.target, spec, operands, update)?;
    add_statistics(&mut launches, &places, &tables, &[0, u32::try_from(blocks).ok()?])?;
    Some(launches)
}
