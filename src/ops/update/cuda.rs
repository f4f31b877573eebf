//! The update on a GPU: `kernels/update.cu`, one launch over all segments, cut into pieces, and one
//! that adds the pieces' sums.

use super::{Decay, Rule, Update};
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

/// Appends the update. Nothing where copies of the weights are to be packed: those are for the CPU.
pub(in crate::ops) fn launch(
    launches: &mut Launches,
    update: &Update,
    places: Places,
) -> Option<()> {
    if update.packed.is_some() {
        return None;
    }
    let number = |count: usize| u32::try_from(count).ok();
    // Segment, elements, and the first one in two halves, as the kernel has it.
    let mut pieces: Vec<[u32; 4]> = Vec::new();
    let mut first_piece = vec![0u32];
    for (i, segment) in update.segments.iter().enumerate() {
        for start in (0..segment.len).step_by(PIECE) {
            let count = PIECE.min(segment.len - start);
            let start = (segment.offset + start) as u64;
            pieces.push([number(i)?, count as u32, start as u32, (start >> 32) as u32]);
        }
        first_piece.push(number(pieces.len())?);
    }
    let factors: Vec<[f32; 2]> =
        update.segments.iter().map(|s| [s.rate_factor, s.decay_factor]).collect();
    let (piece_table, segments) = (launches.table(&pieces), launches.table(&factors));
    let partials = match places.statistics {
        Place::Null => Place::Null,
        _ => launches.scratch(3 * pieces.len()),
    };
    let share = |beta: f64| (1.0 - beta) as f32;
    let (name, first, second, epsilon, momentum, nesterov) = match update.rule {
        Rule::Sgd { momentum: 0.0, .. } => ("sgd", 0.0, 0.0, 0.0, 0.0, false),
        Rule::Sgd { momentum, nesterov } => ("momentum", 0.0, 0.0, 0.0, momentum as f32, nesterov),
        Rule::AdamW { beta1, beta2, epsilon } => {
            ("adamw", share(beta1), share(beta2), epsilon as f32, 0.0, false)
        }
        Rule::Lion { beta1, beta2 } => ("lion", share(beta1), share(beta2), 0.0, 0.0, false),
    };
    let slots = &update.slots;
    let slots =
        [slots.rate, slots.decay, slots.first_correction, slots.second_correction, slots.gradient_scale];
    let decay: u32 = match update.decay {
        Decay::Decoupled => 0,
        Decay::Coupled => 1,
        Decay::None => 2,
    };
    let mut members: Vec<Argument> = vec![
        places.weights.into(),
        places.gradients.into(),
        places.moments[0].into(),
        places.moments[1].into(),
        Place::Null.into(),
        places.guard.into(),
        places.factor.into(),
        piece_table.into(),
        segments.into(),
        partials.into(),
        Place::Control.into(),
    ];
    for slot in slots {
        members.push(slot.into());
    }
    members.push(decay.into());
    members.extend([first, second, epsilon, momentum].map(Argument::F32));
    members.push(u32::from(nesterov).into());
    launches.kernel(
        Kernel::new("update", format!("update_{name}"))
            .grid([pieces.len(), 1, 1])
            .with(Argument::Struct(members)),
    );
    if places.statistics != Place::Null {
        let first_piece = launches.table(&first_piece);
        let count = update.segments.len();
        launches.kernel(
            Kernel::new("update", "update_statistics")
                .grid([count.div_ceil(8), 1, 1])
                .with(partials)
                .with(first_piece)
                .with(places.statistics)
                .with(number(count)?),
        );
    }
    Some(())
}
