//! `layer_norm_backward` and `rms_norm_backward` on a GPU: `kernels/common/norm_backward.cuh`. A block
//! takes some rows, one after another, with their column sums in registers; a second kernel adds
//! the blocks' sums in order.

use crate::device::cuda::{Argument, Kernel, Launches, Place};
use crate::ops::Site;
use crate::ops::softmax::cuda::{Form, form};

const FORMS: [Form; 6] = [
    form(256, "256", 128, 4),
    form(512, "512", 128, 4),
    form(1024, "1024", 128, 1),
    form(2048, "2048", 256, 1),
    form(4096, "4096", 512, 1),
    form(8192, "8192", 512, 1),
];
/// Blocks that rows are shared out to: three on each multiprocessor of a large GPU. More would fill it
/// better, but each writes column sums, which are read again.
const BLOCKS: usize = 396;

/// Inputs `dy, x, gamma, [mean,] rstd`, outputs `dx, dgamma[, dbeta]`; those in brackets where `centred`.
pub(in crate::ops) fn launch(site: &Site<'_>, op: &'static str, centred: bool) -> Option<Launches> {
    let shape = &site.inputs[1].shape;
    let (rows, columns) = (shape.rows(), shape.columns());
    let outputs = if centred { 2 } else { 1 };
    let wants_sums = site.used[1..].contains(&true);
    let form = FORMS.iter().find(|form| columns <= form.length);
    let at_once = form.map_or(8, |form| form.rows);
    let per_block = rows.div_ceil(BLOCKS).next_multiple_of(at_once).max(at_once);
    let blocks = rows.div_ceil(per_block);
    let mut launches = Launches::new();
    let partials = match wants_sums {
        true => launches.scratch(outputs * blocks * columns),
        false => Place::Null,
    };
    let number = |count: usize| u32::try_from(count).ok();
    let (means, rstds) = match centred {
        true => (Place::Input(3), Place::Input(4)),
        false => (Place::Null, Place::Input(3)),
    };
    let mut members: Vec<Argument> = Vec::new();
    for place in [Place::Input(0), Place::Input(1), Place::Input(2), means, rstds] {
        members.push(place.into());
    }
    members.extend([Place::Output(0).into(), partials.into()]);
    for extent in [rows, columns, per_block, 0] {
        members.push(number(extent)?.into());
    }
    let kernel = |name: &str| {
        Kernel::new(op, format!("{op}_{name}_f32")).with(Argument::Struct(members.clone()))
    };
    match form {
        Some(form) => {
            launches.kernel(kernel(form.name).grid([blocks, 1, 1]).block(form.block));
        }
        None => {
            // The sums first: dx may lie over what they read.
            if wants_sums {
                launches.kernel(kernel("columns").grid([blocks, columns.div_ceil(32), 1]));
            }
            if site.used[0] {
                launches.kernel(kernel("row").grid([rows, 1, 1]).block(512));
            }
        }
    }
    if wants_sums {
        let dbeta = if centred { Place::Output(2) } else { Place::Null };
        launches.kernel(
            Kernel::new(op, format!("{op}_sum_f32"))
                .grid([columns.div_ceil(32), outputs, 1])
                .with(partials)
                .with(Place::Output(1))
                .with(dbeta)
                .with(number(blocks)?)
                .with(number(columns)?),
        );
    }
    Some(launches)
}
