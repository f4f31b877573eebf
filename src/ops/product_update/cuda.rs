//! `product_update` on a GPU: the tiles of the product end in the update, so that the gradient never goes to
//! memory; where the sum is split, the pass that adds its parts does. The bits are those of the two operations.

use super::{ProductUpdate, SHIFT};
use crate::device::cuda::{Launches, Place};
use crate::ops::Site;
use crate::ops::matmul::cuda::{blocks_of_update, product_with_update};
use crate::ops::update::cuda::{Places, Tables, add_statistics, argument};

pub(super) fn launch(op: &ProductUpdate, site: &Site<'_>) -> Option<Launches> {
    let spec = op.spec(site.inputs);
    let mut launches = Launches::new();
    // Inputs after dz are W, moments and guard; outputs W and moments, then the sums.
    let count = op.update.rule.moments();
    let moment = |i: usize| if i < count { Place::Output(1 + i) } else { Place::Null };
    let statistics = op.update.statistics_output();
    let places = Places {
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
    let blocks = blocks_of_update(spec);
    let tables = Tables::new(&mut launches, &op.update, Place::Null, &places, blocks);
    let update = argument(&op.update, &places, &tables)?;
    product_with_update(&mut launches, spec, [Place::Input(0), Place::Input(1)], update)?;
    add_statistics(&mut launches, &places, &tables, &[0, u32::try_from(blocks).ok()?])?;
    Some(launches)
}
