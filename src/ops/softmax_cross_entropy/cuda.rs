//! Softmax and cross-entropy on a GPU: `kernels/softmax_cross_entropy.cu` and its kin, a row in the
//! registers of some lanes of a warp, of a block or of a cluster; and one block that adds the rows' results.

use super::{STATISTICS, Targets};
use crate::device::Target;
use crate::device::cuda::{Kernel, Launches, Place};
use crate::ops::Site;
use crate::ops::softmax::cuda::{Form, form, pick};

/// Forms for labels: those of at most `FEW` classes are in a module of their own.
const LABELS: [Form; 6] = [
    form(16, "16", 128, 32),
    form(256, "256", 128, 4),
    form(1024, "1024", 128, 1),
    form(4096, "4096", 256, 1),
    form(6144, "6144", 512, 1),
    form(usize::MAX, "long", 1024, 1),
];
const FEW: usize = 256;
/// Classes that one block has in its registers. More are in the shared memory of a cluster, on devices with
/// clusters and 227 KiB a block: later ones of that kind (12.0) have less.
const ONE: usize = 12_288;
const CLUSTERS: [u32; 2] = [9, 10];
/// Threads of a block of a cluster. Each holds four classes at a time: a group.
const CLUSTER_BLOCK: usize = 512;
/// Groups, of 8192 bytes, of which two blocks fit into a multiprocessor; and those of one block.
const GROUPS: usize = 13;
const MOST_GROUPS: usize = 27;
const DISTRIBUTIONS: [Form; 3] =
    [form(16, "16", 128, 32), form(256, "256", 128, 4), form(usize::MAX, "long", 512, 1)];

/// Rows, and where they are: `[rows, classes]` but for `per_row`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Rows {
    pub(in crate::ops) logits: Place,
    /// Labels or distributions.
    pub(in crate::ops) given: Place,
    /// May be `logits`.
    pub(in crate::ops) dlogits: Place,
    pub(in crate::ops) per_row: Place,
    /// Four numbers a row, for [`finish`].
    pub(in crate::ops) results: Place,
    pub(in crate::ops) rows: usize,
    /// What the mean is over: these rows may be a part of them.
    pub(in crate::ops) total_rows: usize,
    pub(in crate::ops) classes: usize,
}

/// Appends the kernel of some rows.
pub(in crate::ops) fn rows(
    launches: &mut Launches,
    target: Target,
    targets: Targets,
    of: &Rows,
) -> Option<()> {
    let (forms, kind, smoothing): (&[Form], _, _) = match targets {
        Targets::Labels { smoothing } => (&LABELS, "labels", smoothing),
        Targets::Distributions => (&DISTRIBUTIONS, "distributions", 0.0),
    };
    let form = pick(forms, of.classes);
    let clusters = CLUSTERS.contains(&target.capability.0) && targets != Targets::Distributions;
    let groups = |blocks: usize| of.classes.div_ceil(4 * CLUSTER_BLOCK * blocks);
    let cluster = [1, 2, 4, 8].into_iter().find(|&blocks| groups(blocks) <= GROUPS);
    let cluster = cluster.or((groups(8) <= MOST_GROUPS).then_some(8));
    let cluster = cluster.filter(|_| clusters && of.classes > ONE);
    let kernel = match cluster {
        Some(blocks) => {
            let shared = groups(blocks) * CLUSTER_BLOCK * 16;
            let name = format!("softmax_cross_entropy_f32_{kind}_cluster_{blocks}");
            Kernel::new("softmax_cross_entropy_cluster", name)
                .grid([of.rows * blocks, 1, 1])
                .cluster([blocks, 1, 1])
                .block(CLUSTER_BLOCK as u32)
                .shared(u32::try_from(shared).ok()?)
        }
        None => {
            let module = match targets {
                Targets::Labels { .. } if of.classes <= FEW => "softmax_cross_entropy",
                Targets::Labels { .. } => "softmax_cross_entropy_many",
                Targets::Distributions => "softmax_cross_entropy_soft",
            };
            Kernel::new(module, format!("softmax_cross_entropy_f32_{kind}_{}", form.name))
                .grid([of.rows.div_ceil(form.rows), 1, 1])
                .block(form.block)
        }
    };
    let number = |count: usize| u32::try_from(count).ok();
    launches.kernel(
        kernel
            .with(of.logits)
            .with(of.given)
            .with(smoothing)
            .with(of.dlogits)
            .with(of.per_row)
            .with(of.results)
            .with(number(of.rows)?)
            .with(number(of.total_rows)?)
            .with(number(of.classes)?),
    );
    Some(())
}

/// Appends the sum over all rows: the loss and the statistics, of which `used` says who is read.
pub(in crate::ops) fn finish(
    launches: &mut Launches,
    results: Place,
    [rows, classes]: [usize; 2],
    outputs: [usize; 2],
    used: &[bool],
) -> Option<()> {
    if outputs.iter().all(|&output| !used[output]) {
        return Some(());
    }
    // The kernel writes both.
    let mut place = |output: usize, count: usize| match used[output] {
        true => Place::Output(output),
        false => launches.scratch(count),
    };
    let (loss, statistics) = (place(outputs[0], 1), place(outputs[1], STATISTICS));
    let number = |count: usize| u32::try_from(count).ok();
    launches.kernel(
        Kernel::new("softmax_cross_entropy", "softmax_cross_entropy_finish")
            .block(1024)
            .with(results)
            .with(loss)
            .with(statistics)
            .with(number(rows)?)
            .with(number(classes)?),
    );
    Some(())
}

pub(super) fn launch(site: &Site<'_>, targets: Targets) -> Option<Launches> {
    let shape = &site.inputs[0].shape;
    let (count, classes) = (shape.rows(), shape.columns());
    let mut launches = Launches::new();
    let results = launches.scratch(4 * count);
    let of = Rows {
        logits: Place::Input(0),
        given: Place::Input(1),
        dlogits: Place::Output(1),
        per_row: Place::Output(3),
        results,
        rows: count,
        total_rows: count,
        classes,
    };
    rows(&mut launches, site.target, targets, &of)?;
    finish(&mut launches, results, [count, classes], [0, 2], site.used)?;
    Some(launches)
}
