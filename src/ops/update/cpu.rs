//! `update` on the CPU: each chunk takes some pieces of segments through all of the step.
//!
//! A piece lies in one segment; a chunk is about [`chunk_elements`] elements of neighbouring pieces, so that
//! many small segments cost few claims. Sums are kept for each piece in f64 and combined in order.
#![allow(unsafe_code)]

use super::{Coefficients, Decay, Rule, Segment, Step, Update};
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Chunk, Isa, Launch};
use crate::gemm::{PackedWeight, PackedWeights, WEIGHT_BAND};
use crate::ops::Site;
use crate::tensor::DType;
use std::ops::Range;

/// Elements of a chunk: at most some microseconds at memory speed, and whole cache lines; fewer of a
/// small net, since what passes between the caches of cores is then what takes the time.
fn chunk_elements(all: usize) -> usize {
    (all / 16).next_multiple_of(1024).clamp(2 * 1024, 16 * 1024)
}

/// What a piece costs beyond its elements, in elements.
const PIECE: usize = 64;

/// Vectors that are summed in f32.
const BLOCK: usize = 64;

/// Sums of a piece: g.g, w.w, g.w.
pub(in crate::ops) type Sums = [f64; 3];

/// A part of one segment.
pub(in crate::ops) struct Piece {
    pub(in crate::ops) segment: usize,
    pub(in crate::ops) elements: Range<usize>,
    /// Where the segment is a weight with packed copies: its number and the rows of this part.
    packed: Option<(usize, Range<usize>)>,
}

/// How the flat regions are cut. A function of shapes alone.
pub(in crate::ops) struct Cut {
    pub(in crate::ops) pieces: Vec<Piece>,
    /// Pieces of each chunk.
    pub(in crate::ops) chunks: Vec<Range<usize>>,
    /// Pieces of each segment.
    pub(in crate::ops) segments: Vec<Range<usize>>,
}

impl Cut {
    pub(in crate::ops) fn new(segments: &[Segment], packed: &[PackedWeight]) -> Cut {
        let most = chunk_elements(segments.iter().map(|segment| segment.len).sum());
        let (mut pieces, mut of_segments) = (Vec::new(), Vec::new());
        for (number, segment) in segments.iter().enumerate() {
            let (first, end) = (pieces.len(), segment.offset + segment.len);
            // Segments without elements share their place with the next one.
            let place = (segment.offset, segment.len);
            let own = |weight: &PackedWeight| {
                segment.len > 0 && (weight.offset, weight.inputs * weight.outputs) == place
            };
            let weight = packed.iter().position(own);
            let step = weight.map_or(most, |weight| {
                let band = WEIGHT_BAND * packed[weight].outputs;
                band * (most / band).max(1)
            });
            for start in (segment.offset..end).step_by(step) {
                let elements = start..(start + step).min(end);
                let packed = weight.map(|weight| {
                    let row = |at: usize| (at - segment.offset) / packed[weight].outputs;
                    (weight, row(elements.start)..row(elements.end))
                });
                pieces.push(Piece { segment: number, elements, packed });
            }
            of_segments.push(first..pieces.len());
        }

        // At least one chunk.
        let (mut chunks, mut first, mut filled) = (Vec::new(), 0, 0);
        for (number, piece) in pieces.iter().enumerate() {
            let size = piece.elements.len() + PIECE;
            if number > first && filled + size > most + most / 4 {
                chunks.push(first..number);
                (first, filled) = (number, 0);
            }
            filled += size;
        }
        chunks.push(first..pieces.len());
        // Neighbouring chunks run on the same core, which computed the gradients of the same part of
        // each weight: first the beginnings of all segments, then what follows.
        let place = |chunk: &Range<usize>| {
            pieces.get(chunk.start).map_or(0.0, |piece: &Piece| {
                let segment = &segments[piece.segment];
                (piece.elements.start - segment.offset) as f64 / segment.len.max(1) as f64
            })
        };
        chunks.sort_by(|a, b| place(a).total_cmp(&place(b)));
        Cut { pieces, chunks, segments: of_segments }
    }
}

pub(super) fn launch(op: &Update, site: &Site<'_>) -> Launch {
    let (op, isa) = (op.clone(), site.isa);
    let elements = site.inputs[0].elements();
    let weights = op.packed.as_deref().map_or(&[][..], PackedWeights::weights);
    let cut = Cut::new(&op.segments, weights);
    let segments = cut.segments.clone();
    let statistics = site.used[op.statistics_output()];
    let scratch = if statistics { cut.pieces.len() * size_of::<Sums>() / size_of::<f32>() } else { 0 };
    let (output, scale) = (op.statistics_output(), op.slots.gradient_scale);
    let launch = Launch::new(isa.name())
        .scratch(scratch)
        .tiles(cut.chunks.len(), move |chunk| run_chunk(&op, &cut, isa, elements, chunk));
    if !statistics {
        return launch;
    }
    launch.serial(move |chunk| {
        let scale = f64::from(chunk.control().f32(scale));
        let sums: &[Sums] = bytemuck::cast_slice(&chunk.all_partials()[..scratch]);
        let statistics = chunk.output::<f32>(output);
        for (pieces, row) in segments.iter().zip(statistics.chunks_mut(3)) {
            let mut total = [0.0; 3];
            for piece in &sums[pieces.clone()] {
                for (total, piece) in total.iter_mut().zip(piece) {
                    *total += piece;
                }
            }
            let scales = [scale * scale, 1.0, scale];
            for ((out, total), scale) in row.iter_mut().zip(total).zip(scales) {
                *out = (total * scale) as f32;
            }
        }
    })
}

fn run_chunk(op: &Update, cut: &Cut, isa: Isa, elements: usize, chunk: &Chunk<'_>) {
    let step = op.step(chunk.control(), |input| f64::from(chunk.input::<f32>(input)[0]));
    let statistics = chunk.output_len(op.statistics_output()) > 0;
    let gradients = chunk.input::<f32>(1);
    let all = Flat {
        elements,
        weights: chunk.output_ptr(0),
        moments: [0, 1].map(|i| match i < op.rule.moments() {
            true => chunk.output_ptr(1 + i),
            false => std::ptr::null_mut(),
        }),
    };
    let pieces = &cut.pieces[cut.chunks[chunk.index()].clone()];
    let sums: &mut [Sums] = if statistics {
        // SAFETY: `launch` made the scratch large enough for the sums of all pieces; it is 64-byte
        // aligned; chunks have disjoint ranges of pieces, and this is the only place that writes it.
        unsafe {
            let first = chunk.scratch_ptr().cast::<Sums>().add(cut.chunks[chunk.index()].start);
            std::slice::from_raw_parts_mut(first, pieces.len())
        }
    } else {
        &mut []
    };
    // SAFETY: the outputs have `elements` elements each, by `Update::infer`; pieces of different
    // chunks are disjoint, since segments do not overlap (`Update::check_segments`).
    let parts = unsafe { all.pieces(pieces, gradients) };
    dispatch(isa, Pass { op, step, pieces: parts, sums });
    if let Some(packed) = &op.packed {
        pack_pieces(packed, pieces, chunk, 0, op.packed_output());
    }
}

/// Writes the packed copies, output number `copies`, of the pieces of a chunk of a [`Cut`] for them: of the
/// weights in the flat output number `weights`, which this chunk has updated.
pub(in crate::ops) fn pack_pieces(
    packed: &PackedWeights,
    pieces: &[Piece],
    chunk: &Chunk<'_>,
    weights: usize,
    copies: usize,
) {
    let copies = match packed.element() {
        DType::Bf16 => chunk.output_ptr::<half::bf16>(copies).cast::<u8>(),
        _ => chunk.output_ptr::<f32>(copies).cast::<u8>(),
    };
    if chunk.index() == 0 {
        for gap in packed.gaps() {
            let size = packed.element().size();
            // SAFETY: gaps lie within the copies, and only this chunk writes them.
            unsafe { copies.add(gap.start * size).write_bytes(0, gap.len() * size) };
        }
    }
    for piece in pieces {
        if let Some((weight, rows)) = &piece.packed {
            // SAFETY: the piece is these rows of the weights, which this chunk has updated and
            // nobody else touches; bands of different chunks have other places in the copies,
            // which are as long as `infer` of the operation said.
            unsafe {
                let rows_start = chunk.output_ptr::<f32>(weights).add(piece.elements.start);
                packed.pack_band(*weight, rows.clone(), rows_start, copies);
            }
        }
    }
}

/// A block of the one segment of an update that is a matrix.
pub(in crate::ops) struct Matrix<'a> {
    pub rows: usize,
    pub cols: usize,
    /// Distance between rows of weights and moments.
    pub stride: usize,
    /// First element of the block; that of a moment is null where the rule has no such one.
    pub weights: *mut f32,
    pub moments: [*mut f32; 2],
    /// Its gradients, rows x cols without gaps.
    pub gradients: &'a [f32],
    /// One for each row, or none if nobody reads the statistics.
    pub sums: &'a mut [Sums],
}

/// Takes a block of weights through the step; its rows' sums are to be added up.
///
/// # Safety
/// Weights and moments have `rows` rows of `cols` elements at that stride, and nobody else touches
/// them meanwhile.
pub(in crate::ops) unsafe fn update_matrix(
    op: &Update,
    isa: Isa,
    step: Option<Step>,
    matrix: Matrix<'_>,
) {
    let Matrix { rows, cols, stride, weights, moments, gradients, sums } = matrix;
    assert_eq!(gradients.len(), rows * cols);
    assert!(sums.is_empty() || sums.len() == rows);
    // Rows without gaps are one.
    let (rows, cols) = if cols == stride { (rows.min(1), rows * cols) } else { (rows, cols) };
    let sums = if sums.is_empty() {
        sums
    } else {
        sums.fill([0.0; 3]);
        &mut sums[..rows]
    };
    let parts = (0..rows).map(move |row| {
        let part = |start: *mut f32| match start.is_null() {
            true => &mut [][..],
            // SAFETY: the caller's word; rows do not overlap, as `stride` is not below `cols`.
            false => unsafe { std::slice::from_raw_parts_mut(start.add(row * stride), cols) },
        };
        Part {
            segment: 0,
            gradients: &gradients[row * cols..][..cols],
            weights: part(weights),
            moments: moments.map(part),
        }
    });
    dispatch(isa, Pass { op, step, pieces: parts, sums });
}

/// Starts of the flat tensors that the pass writes; null for those that are not there.
#[derive(Clone, Copy)]
struct Flat {
    elements: usize,
    weights: *mut f32,
    moments: [*mut f32; 2],
}

/// A piece's memory.
struct Part<'a> {
    segment: usize,
    gradients: &'a [f32],
    weights: &'a mut [f32],
    /// Empty where the rule has no such moment.
    moments: [&'a mut [f32]; 2],
}

impl Flat {
    /// The memory of some pieces, piece by piece.
    ///
    /// # Safety
    /// Every pointer that is not null has `elements` elements, and nobody else touches those of the
    /// pieces while the iterator and what it gave are alive. Pieces do not overlap.
    unsafe fn pieces<'a>(
        self,
        pieces: &'a [Piece],
        gradients: &'a [f32],
    ) -> impl Iterator<Item = Part<'a>> {
        assert_eq!(gradients.len(), self.elements);
        pieces.iter().map(move |piece| {
            let Range { start, end } = piece.elements;
            assert!(start <= end && end <= self.elements);
            let len = end - start;
            let part = |p: *mut f32| match p.is_null() {
                true => &mut [][..],
                // SAFETY: the range is within the tensor (asserted above), the rest is the caller's
                // word.
                false => unsafe { std::slice::from_raw_parts_mut(p.add(start), len) },
            };
            Part {
                segment: piece.segment,
                gradients: &gradients[start..end],
                weights: part(self.weights),
                moments: self.moments.map(part),
            }
        })
    }
}

/// The pass over the pieces of a chunk.
struct Pass<'a, P> {
    op: &'a Update,
    /// `None`: nothing changes.
    step: Option<Step>,
    pieces: P,
    /// Sums of each piece; empty if nobody reads the statistics.
    sums: &'a mut [Sums],
}

impl<'a, P: Iterator<Item = Part<'a>>> Kernel for Pass<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pass { op, step, pieces, sums } = self;
        let Some(step) = step else {
            return each(s, pieces, sums, #[inline(always)] |_| Keep);
        };
        let of = |segment: usize| op.coefficients(&step, &op.segments[segment]);
        let cautious = op.decay == Decay::Cautious;
        match op.rule {
            Rule::Sgd { momentum: 0.0, .. } => {
                each(s, pieces, sums, #[inline(always)] |segment| Descent {
                    common: Common::new(s, of(segment), cautious),
                });
            }
            Rule::Sgd { nesterov, .. } => {
                each(s, pieces, sums, #[inline(always)] |segment| Momentum {
                    common: Common::new(s, of(segment), cautious),
                    momentum: splat(s, step.momentum),
                    ahead: nesterov,
                });
            }
            Rule::AdamW { beta2, epsilon, .. } => {
                each(s, pieces, sums, #[inline(always)] |segment| {
                    let mut of = of(segment);
                    of.rate *= step.first_correction;
                    AdamW {
                        common: Common::new(s, of, cautious),
                        new1: splat(s, step.momentum),
                        new2: splat(s, 1.0 - beta2),
                        second_correction: splat(s, step.second_correction),
                        epsilon: splat(s, epsilon),
                    }
                });
            }
            Rule::Lion { beta2, .. } => {
                each(s, pieces, sums, #[inline(always)] |segment| Lion {
                    common: Common::new(s, of(segment), cautious),
                    new1: splat(s, step.momentum),
                    new2: splat(s, 1.0 - beta2),
                });
            }
        }
    }
}

/// Runs the rule of each piece's segment over the piece.
#[inline(always)]
fn each<'a, S: Simd, R: VectorRule<S>>(
    s: S,
    pieces: impl Iterator<Item = Part<'a>>,
    sums: &mut [Sums],
    rule: impl Fn(usize) -> R,
) {
    // Loops, not `for_each`: a closure that the library calls may stay outside of the instruction set.
    if sums.is_empty() {
        for part in pieces {
            over::<S, R, false>(s, rule(part.segment), part);
        }
    } else {
        for (part, sums) in pieces.zip(sums) {
            *sums = over::<S, R, true>(s, rule(part.segment), part);
        }
    }
}

/// Runs a rule over a piece and gives its sums.
#[inline(always)]
fn over<S: Simd, R: VectorRule<S>, const STATISTICS: bool>(s: S, rule: R, part: Part<'_>) -> Sums {
    let Part { gradients, weights, moments: [first, second], .. } = part;
    let len = weights.len();
    assert_eq!(gradients.len(), len);
    assert!(R::MOMENTS < 1 || first.len() == len);
    assert!(R::MOMENTS < 2 || second.len() == len);
    let (g, w) = (gradients.as_ptr(), weights.as_mut_ptr());
    let moments = [first.as_mut_ptr(), second.as_mut_ptr()];
    let mut sums = [0.0; 3];
    let mut i = 0;
    while i < len {
        let mut block = [s.zero(); 3];
        let end = (i + BLOCK * S::LANES).min(len);
        while i + S::LANES <= end {
            // SAFETY: i + LANES <= end <= len, the length of each slice that is there (asserted
            // above); a moment is touched only if the rule has it.
            unsafe {
                let (gradient, old) = (s.load(g.add(i)), s.load(w.add(i)));
                let mut state = [s.zero(); 2];
                for (state, moment) in state.iter_mut().zip(&moments).take(R::MOMENTS) {
                    *state = s.load(moment.add(i));
                }
                let new = rule.step(s, old, gradient, &mut state);
                s.store(w.add(i), new);
                for (state, moment) in state.iter().zip(&moments).take(R::MOMENTS) {
                    s.store(moment.add(i), *state);
                }
                if STATISTICS {
                    add_products(s, &mut block, gradient, old);
                }
            }
            i += S::LANES;
        }
        let rest = end - i;
        if rest > 0 {
            // SAFETY: rest < LANES, and i + rest = end <= len, as above.
            unsafe {
                let gradient = s.load_partial(g.add(i), rest, 0.0);
                let old = s.load_partial(w.add(i), rest, 0.0);
                let mut state = [s.zero(); 2];
                for (state, moment) in state.iter_mut().zip(&moments).take(R::MOMENTS) {
                    *state = s.load_partial(moment.add(i), rest, 0.0);
                }
                let new = rule.step(s, old, gradient, &mut state);
                s.store_partial(w.add(i), rest, new);
                for (state, moment) in state.iter().zip(&moments).take(R::MOMENTS) {
                    s.store_partial(moment.add(i), rest, *state);
                }
                if STATISTICS {
                    add_products(s, &mut block, gradient, old);
                }
            }
            i = end;
        }
        if STATISTICS {
            for (sum, block) in sums.iter_mut().zip(block) {
                *sum += f64::from(s.reduce_add(block));
            }
        }
    }
    sums
}

#[inline(always)]
fn add_products<S: Simd>(s: S, sums: &mut [S::F32; 3], g: S::F32, w: S::F32) {
    sums[0] = s.mul_add(g, g, sums[0]);
    sums[1] = s.mul_add(w, w, sums[1]);
    sums[2] = s.mul_add(g, w, sums[2]);
}

/// A rule with the coefficients of one segment, for a vector of elements.
trait VectorRule<S: Simd> {
    const MOMENTS: usize;
    /// The new weights; updates the first [`VectorRule::MOMENTS`] of `state`.
    fn step(&self, s: S, w: S::F32, gradient: S::F32, state: &mut [S::F32; 2]) -> S::F32;
}

/// What all rules have.
struct Common<S: Simd> {
    scale: S::F32,
    coupled: S::F32,
    shrink: S::F32,
    rate: S::F32,
    /// Whether a weight shrinks only where its step has not the opposite sign.
    cautious: bool,
}

impl<S: Simd> Common<S> {
    #[inline(always)]
    fn new(s: S, of: Coefficients, cautious: bool) -> Self {
        let Coefficients { scale, coupled, shrink, rate } = of;
        Common {
            scale: splat(s, scale),
            coupled: splat(s, coupled),
            shrink: splat(s, shrink),
            rate: splat(s, rate),
            cautious,
        }
    }

    /// `scale * gradient + coupled * w`
    #[inline(always)]
    fn gradient(&self, s: S, w: S::F32, gradient: S::F32) -> S::F32 {
        s.mul_add(self.coupled, w, s.mul(self.scale, gradient))
    }

    /// `w - (shrink * w + rate * direction)`
    #[inline(always)]
    fn weights(&self, s: S, w: S::F32, direction: S::F32) -> S::F32 {
        let shrink = match self.cautious {
            true => {
                let against = s.lt(s.mul(direction, w), s.zero());
                s.select(against, s.zero(), self.shrink)
            }
            false => self.shrink,
        };
        s.sub(w, s.mul_add(shrink, w, s.mul(self.rate, direction)))
    }
}

#[inline(always)]
fn splat<S: Simd>(s: S, x: f64) -> S::F32 {
    s.splat(x as f32)
}

/// `x + new (y - x)`
#[inline(always)]
fn toward<S: Simd>(s: S, x: S::F32, y: S::F32, new: S::F32) -> S::F32 {
    s.mul_add(new, s.sub(y, x), x)
}

/// Nothing changes.
struct Keep;

impl<S: Simd> VectorRule<S> for Keep {
    const MOMENTS: usize = 0;

    #[inline(always)]
    fn step(&self, _s: S, w: S::F32, _gradient: S::F32, _state: &mut [S::F32; 2]) -> S::F32 {
        w
    }
}

struct Descent<S: Simd> {
    common: Common<S>,
}

impl<S: Simd> VectorRule<S> for Descent<S> {
    const MOMENTS: usize = 0;

    #[inline(always)]
    fn step(&self, s: S, w: S::F32, gradient: S::F32, _state: &mut [S::F32; 2]) -> S::F32 {
        self.common.weights(s, w, self.common.gradient(s, w, gradient))
    }
}

struct Momentum<S: Simd> {
    common: Common<S>,
    momentum: S::F32,
    ahead: bool,
}

impl<S: Simd> VectorRule<S> for Momentum<S> {
    const MOMENTS: usize = 1;

    #[inline(always)]
    fn step(&self, s: S, w: S::F32, gradient: S::F32, state: &mut [S::F32; 2]) -> S::F32 {
        let g = self.common.gradient(s, w, gradient);
        let b = s.mul_add(self.momentum, state[0], g);
        state[0] = b;
        self.common.weights(s, w, if self.ahead { s.mul_add(self.momentum, b, g) } else { b })
    }
}

/// Adam; the rate of `common` has the first bias correction in it.
struct AdamW<S: Simd> {
    common: Common<S>,
    /// `1 - beta1` and `1 - beta2`, of which f32 keeps more digits than of the betas.
    new1: S::F32,
    new2: S::F32,
    second_correction: S::F32,
    epsilon: S::F32,
}

impl<S: Simd> VectorRule<S> for AdamW<S> {
    const MOMENTS: usize = 2;

    #[inline(always)]
    fn step(&self, s: S, w: S::F32, gradient: S::F32, state: &mut [S::F32; 2]) -> S::F32 {
        let g = self.common.gradient(s, w, gradient);
        let m = toward(s, state[0], g, self.new1);
        let v = toward(s, state[1], s.mul(g, g), self.new2);
        *state = [m, v];
        let root = s.mul_add(s.sqrt(v), self.second_correction, self.epsilon);
        self.common.weights(s, w, s.div(m, root))
    }
}

struct Lion<S: Simd> {
    common: Common<S>,
    new1: S::F32,
    new2: S::F32,
}

impl<S: Simd> VectorRule<S> for Lion<S> {
    const MOMENTS: usize = 1;

    #[inline(always)]
    fn step(&self, s: S, w: S::F32, gradient: S::F32, state: &mut [S::F32; 2]) -> S::F32 {
        let g = self.common.gradient(s, w, gradient);
        let c = toward(s, state[0], g, self.new1);
        state[0] = toward(s, state[0], g, self.new2);
        let (one, zero) = (s.splat(1.0), s.zero());
        let down = s.select(s.lt(c, zero), s.splat(-1.0), zero);
        self.common.weights(s, w, s.select(s.gt(c, zero), one, down))
    }
}

/// What tests ask about a cut.
#[cfg(test)]
pub(super) struct CutSizes {
    pub chunks: usize,
    pub pieces: usize,
    /// Elements in pieces.
    pub covered: usize,
    pub largest_chunk: usize,
}

#[cfg(test)]
pub(super) fn cut_sizes(segments: &[Segment]) -> CutSizes {
    let cut = Cut::new(segments, &[]);
    let sizes: Vec<usize> = cut.pieces.iter().map(|piece| piece.elements.len()).collect();
    let chunk = |chunk: &Range<usize>| sizes[chunk.clone()].iter().sum();
    CutSizes {
        chunks: cut.chunks.len(),
        pieces: cut.pieces.len(),
        covered: sizes.iter().sum(),
        largest_chunk: cut.chunks.iter().map(chunk).max().unwrap_or(0),
    }
}
