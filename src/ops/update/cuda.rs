//! The update on a GPU: `kernels/update.cu`, one launch over all segments, cut into pieces, and one
//! that adds the pieces' sums.

use super::{Decay, Rule, Segment, Update};
use crate::device::cuda::{Argument, Kernel, Launches, Place};

/// Elements of a piece, which one block takes.
const PIECE: usize = 4096;

/// Where everything lies.
pub(in crate::ops) struct Places {
    pub(in crate::ops) weights: Place,
    pub(in crate::ops) gradients: Place,
    /// Null where the rule has none.
    pub(in crate::ops) moments: [Place; 2],
    pub(in crate::ops) guard: Place,
    pub(in crate::ops) factor: Place,
    /// Null where nobody reads them.
    pub(in crate::ops) statistics: Place,
}

/// Memory of the kernels' own.
pub(in crate::ops) struct Tables {
    /// Which elements each block takes; null where these follow from something else.
    pieces: Place,
    segments: Place,
    /// Three sums of each block, where somebody reads the statistics.
    partials: Place,
}

impl Tables {
    /// For so many blocks.
    pub(in crate::ops) fn new(
        launches: &mut Launches,
        update: &Update,
        pieces: Place,
        places: &Places,
        blocks: usize,
    ) -> Tables {
        let factors: Vec<[f32; 2]> =
            update.segments.iter().map(|s| [s.rate_factor, s.decay_factor]).collect();
        let segments = launches.table(&factors);
        let partials = match places.statistics {
            Place::Null => Place::Null,
            _ => launches.scratch(3 * blocks),
        };
        Tables { pieces, segments, partials }
    }
}

/// Appends the update. Nothing where copies of the weights are to be packed: those are for the CPU.
pub(in crate::ops) fn launch(
    launches: &mut Launches,
    update: &Update,
    places: Places,
) -> Option<()> {
    let (pieces, first_piece) = pieces(&update.segments)?;
    let table = launches.table(&pieces);
    let tables = Tables::new(launches, update, table, &places, pieces.len());
    launches.kernel(
        Kernel::new("update", format!("update_{}", rule(update.rule).name))
            .grid([pieces.len(), 1, 1])
            .with(argument(update, &places, &tables)?),
    );
    add_statistics(launches, &places, &tables, &first_piece)
}

/// Pieces of one segment each: segment, elements, and the first one in two halves, as kernels have it. And
/// the first piece of each segment, with the end.
pub(in crate::ops) fn pieces(segments: &[Segment]) -> Option<(Vec<[u32; 4]>, Vec<u32>)> {
    let (mut pieces, mut first_piece) = (Vec::new(), vec![0u32]);
    for (i, segment) in segments.iter().enumerate() {
        for start in (0..segment.len).step_by(PIECE) {
            let count = PIECE.min(segment.len - start);
            let start = (segment.offset + start) as u64;
            pieces.push([number(i)?, count as u32, start as u32, (start >> 32) as u32]);
        }
        first_piece.push(number(pieces.len())?);
    }
    Some((pieces, first_piece))
}

/// Appends the sum of what the blocks `first[i] .. first[i + 1]` of each segment `i` left, where somebody
/// reads it.
pub(in crate::ops) fn add_statistics(
    launches: &mut Launches,
    places: &Places,
    tables: &Tables,
    first: &[u32],
) -> Option<()> {
    if places.statistics == Place::Null {
        return Some(());
    }
    let (segments, first) = (first.len() - 1, launches.table(first));
    launches.kernel(
        Kernel::new("update", "update_statistics")
            .grid([segments.div_ceil(8), 1, 1])
            .with(tables.partials)
            .with(first)
            .with(places.statistics)
            .with(number(segments)?),
    );
    Some(())
}

pub(in crate::ops) fn number(count: usize) -> Option<u32> {
    u32::try_from(count).ok()
}

/// A rule as kernels have it.
struct RuleOfKernels {
    name: &'static str,
    /// Of `Rule` in `kernels/common/update.cuh`.
    number: u32,
    /// 1 - beta2, epsilon.
    numbers: [f32; 2],
    nesterov: bool,
}

fn rule(rule: Rule) -> RuleOfKernels {
    let share = |beta: f64| (1.0 - beta) as f32;
    let (name, number, numbers, nesterov) = match rule {
        Rule::Sgd { momentum: 0.0, .. } => ("sgd", 0, [0.0; 2], false),
        Rule::Sgd { nesterov, .. } => ("momentum", 1, [0.0; 2], nesterov),
        Rule::AdamW { beta2, epsilon, .. } => ("adamw", 2, [share(beta2), epsilon as f32], false),
        Rule::Lion { beta2, .. } => ("lion", 3, [share(beta2), 0.0], false),
    };
    RuleOfKernels { name, number, numbers, nesterov }
}

/// As `Update` of `kernels/common/update.cuh`. Nothing where copies of the weights are to be packed.
pub(in crate::ops) fn argument(update: &Update, places: &Places, tables: &Tables) -> Option<Argument> {
    if update.packed.is_some() {
        return None;
    }
    let slots = &update.slots;
    let slots = [
        slots.rate,
        slots.decay,
        slots.first_correction,
        slots.second_correction,
        slots.gradient_scale,
        slots.momentum,
    ];
    let decay: u32 = match update.decay {
        Decay::Decoupled => 0,
        Decay::Coupled => 1,
        Decay::None => 2,
        Decay::Cautious => 3,
    };
    let mut members: Vec<Argument> = vec![
        places.weights.into(),
        places.gradients.into(),
        places.moments[0].into(),
        places.moments[1].into(),
        Place::Null.into(),
        places.guard.into(),
        places.factor.into(),
        tables.pieces.into(),
        tables.segments.into(),
        tables.partials.into(),
        Place::Control.into(),
    ];
    for slot in slots {
        members.push(slot.into());
    }
    let rule = rule(update.rule);
    members.push(decay.into());
    members.extend(rule.numbers.map(Argument::F32));
    members.push(u32::from(rule.nesterov).into());
    members.push(rule.number.into());
    Some(Argument::Struct(members))
}
