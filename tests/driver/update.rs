//! The update against its equations in f64, step by step.

use crate::common::{Random, assert_close};
use crate::elementwise::assert_close_bf16;
use crate::gpu::{Gpu, NULL, at, digest, launch};
use crate::on_stand_in;
use twoclocks::ops::Tolerance;

/// As `Update` in kernels/common/update.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Arguments {
    pub weights: u64,
    pub gradients: u64,
    pub first: u64,
    pub second: u64,
    pub copy: u64,
    pub guard: u64,
    pub factor: u64,
    pub pieces: u64,
    pub segments: u64,
    pub partials: u64,
    pub control: u64,
    pub slots: [u32; 6],
    pub decay_kind: u32,
    pub second_share: f32,
    pub epsilon: f32,
    pub nesterov: u32,
    /// For kernels that are not one rule's alone.
    pub rule: u32,
}
// SAFETY: numbers alone, as the kernel declares them.
unsafe impl cudarc::driver::DeviceRepr for Arguments {}

const DECOUPLED: u32 = 0;
const COUPLED: u32 = 1;
const NONE: u32 = 2;
const CAUTIOUS: u32 = 3;

/// Lengths of segments, with three elements of nobody after each.
const LENS: [usize; 5] = [5000, 7, 0, 1, 130];
const GAP: usize = 3;
const RATE: f64 = 0.125;
const DECAY: f64 = 0.25;
const SCALE: f64 = 0.5;
const FACTOR: f64 = 0.75;
const CORRECTIONS: [f64; 2] = [3.6875, 18.25];

/// Weights, gradients, moments.
type State = [Vec<f64>; 4];

/// One step in f64; the statistics of each segment.
fn step(rule: &str, decay_kind: u32, state: &mut State, nesterov: bool) -> Vec<f64> {
    let mut statistics = Vec::new();
    let mut offset = 0;
    for (s, len) in LENS.into_iter().enumerate() {
        let (rate, decay) = (RATE * [1.0, 0.5][s % 2], DECAY * [1.0, 0.0, 2.0][s % 3]);
        let mut sums = [0.0; 3];
        for i in offset..offset + len {
            let [weights, gradients, first, second] = &mut *state;
            let (w, g) = (weights[i], gradients[i] * SCALE);
            sums = [sums[0] + g * g, sums[1] + w * w, sums[2] + g * w];
            let g = g * FACTOR + if decay_kind == COUPLED { decay * w } else { 0.0 };
            let (m, v) = (&mut first[i], &mut second[i]);
            let direction = match rule {
                "sgd" => g,
                "momentum" => {
                    *m = 0.9 * *m + g;
                    if nesterov { g + 0.9 * *m } else { *m }
                }
                "adamw" => {
                    *m += 0.1 * (g - *m);
                    *v += 0.001 * (g * g - *v);
                    CORRECTIONS[0] * *m / (v.sqrt() * CORRECTIONS[1] + 1e-8)
                }
                _ => {
                    let c = *m + 0.1 * (g - *m);
                    *m += 0.01 * (g - *m);
                    if c == 0.0 { 0.0 } else { c.signum() }
                }
            };
            let shrinks = match decay_kind {
                DECOUPLED => true,
                CAUTIOUS => direction * w >= 0.0,
                _ => false,
            };
            let shrink = if shrinks { rate * decay } else { 0.0 };
            weights[i] = w - (shrink * w + rate * direction);
        }
        statistics.extend(sums);
        offset += len + GAP;
    }
    statistics
}

on_stand_in! {
    fn update() {
        let gpu = Gpu::new();
        let total: usize = LENS.iter().map(|len| len + GAP).sum();
        // Pieces of at most 4096 elements, and where those of each segment begin.
        let (mut pieces, mut first_piece, mut offset) = (Vec::<[u32; 4]>::new(), vec![0u32], 0);
        for (s, len) in LENS.into_iter().enumerate() {
            for start in (0..len).step_by(4096) {
                let count = (len - start).min(4096) as u32;
                // The start is 64 bits wide; its upper half is zero here.
                pieces.push([s as u32, count, (offset + start) as u32, 0]);
            }
            first_piece.push(pieces.len() as u32);
            offset += len + GAP;
        }
        let flat: Vec<u32> = pieces.iter().flatten().copied().collect();
        let factors: Vec<f32> =
            (0..LENS.len()).flat_map(|s| [[1.0, 0.5][s % 2], [1.0, 0.0, 2.0][s % 3]]).collect();
        let (pieces_at, segments) = (gpu.upload(&flat), gpu.upload(&factors));
        let first_piece = gpu.upload(&first_piece);
        // The slots lie anywhere in the block, between others.
        let slots = [6u32, 1, 4, 9, 2, 7];
        let mut control = vec![u64::MAX; 10];
        let values = [RATE, DECAY, CORRECTIONS[0], CORRECTIONS[1], SCALE];
        for (slot, value) in slots.into_iter().zip(values) {
            control[slot as usize] = u64::from((value as f32).to_bits());
        }
        let factor = gpu.upload(&[FACTOR as f32]);
        for rule in ["sgd", "momentum", "nesterov", "adamw", "lion"] {
            // Momentum, or 1 - beta1.
            let momentum = if matches!(rule, "adamw" | "lion") { 0.1f32 } else { 0.9 };
            control[slots[5] as usize] = u64::from(momentum.to_bits());
            let control = gpu.upload(&control);
            for decay_kind in [DECOUPLED, COUPLED, NONE, CAUTIOUS] {
                let what = format!("{rule}, decay {decay_kind}");
                let mut random = Random(7);
                let mut make = |low: f64| -> Vec<f32> {
                    (0..total).map(|_| (low + (1.0 - low) * random.unit()) as f32).collect()
                };
                let start = [make(-1.0), make(-1.0), make(-1.0), make(0.0)];
                let name = if rule == "nesterov" { "momentum" } else { rule };
                let kernel = gpu.kernel("update", &format!("update_{name}"));
                let moments = match name { "sgd" => 0, "adamw" => 2, _ => 1 };
                let go = |guard: f32, factor: u64| {
                    let arrays: Vec<_> = start.iter().map(|x| gpu.upload(x)).collect();
                    let (guard, copy) = (gpu.upload(&[guard]), gpu.unset::<u16>(total));
                    let partials = gpu.unset::<f32>(pieces.len() * 3);
                    let statistics = gpu.unset::<f32>(LENS.len() * 3);
                    let moment = |i: usize| if i < moments { at(&arrays[2 + i]) } else { NULL };
                    let arguments = Arguments {
                        weights: at(&arrays[0]),
                        gradients: at(&arrays[1]),
                        first: moment(0),
                        second: moment(1),
                        copy: at(&copy),
                        guard: at(&guard),
                        factor,
                        pieces: at(&pieces_at),
                        segments: at(&segments),
                        partials: at(&partials),
                        control: at(&control),
                        slots,
                        decay_kind,
                        second_share: if rule == "lion" { 0.01 } else { 0.001 },
                        epsilon: 1e-8,
                        nesterov: u32::from(rule == "nesterov"),
                        rule: 0,
                    };
                    launch!(gpu, kernel, pieces.len() as u32, 256, 0, arguments).expect("it runs");
                    let add = gpu.kernel("update", "update_statistics");
                    let count = LENS.len() as u32;
                    launch!(gpu, add, count.div_ceil(8), 256, 0, at(&partials), at(&first_piece), at(&statistics), count)
                        .expect("it runs");
                    let results: Vec<Vec<f32>> = arrays.iter().map(|x| gpu.download(x)).collect();
                    (results, gpu.download(&copy), gpu.download(&statistics))
                };
                let (got, copy, statistics) = go(1.0, at(&factor));
                let mut want: State = start.clone().map(|x| x.into_iter().map(f64::from).collect());
                let sums = step(name, decay_kind, &mut want, rule == "nesterov");
                for i in [0, 2, 3] {
                    digest(&what, &got[i]);
                    // Some ten roundings, and the hyperparameters themselves are rounded.
                    assert_close(&format!("{what}, array {i}"), &got[i], &want[i], Tolerance::Rounding(24.0));
                }
                digest(&what, &statistics);
                assert_close(&format!("{what}, statistics"), &statistics, &sums, Tolerance::Rounding(24.0));
                let mut offset = 0;
                for len in LENS {
                    let range = offset..offset + len;
                    assert_close_bf16(&what, &copy[range.clone()], &want[0][range.clone()], 1.01);
                    let between = range.end..range.end + GAP;
                    assert_eq!(got[0][between.clone()], start[0][between.clone()], "{what}: between segments");
                    assert!(copy[between].iter().all(|&x| x == u16::MAX), "{what}: copies between segments");
                    offset += len + GAP;
                }
                // The guard and the clipping factor keep every bit; statistics are written all the same.
                let bad = gpu.upload(&[f32::INFINITY]);
                for (guard, factor) in [(f32::NAN, at(&factor)), (1.0, at(&bad))] {
                    let (kept, _, again) = go(guard, factor);
                    for i in [0, 2, 3] {
                        assert_eq!(kept[i], start[i], "{what}: kept");
                    }
                    assert_eq!(again, statistics, "{what}: statistics");
                }
            }
        }
    }
}

on_stand_in! {
    fn global_norm() {
        let gpu = Gpu::new();
        let squares = gpu.kernel("global_norm", "global_norm_squares");
        let finish = gpu.kernel("global_norm", "global_norm_finish");
        let slots = |max_norm: f32, scale: f32| {
            gpu.upload(&[u64::MAX, u64::from(scale.to_bits()), u64::from(max_norm.to_bits())])
        };
        for (n, first) in [(1usize, 0usize), (1000, 0), (4096, 1), (20_003, 3)] {
            let mut random = Random(n as u64);
            let all: Vec<f32> = (0..n + first).map(|_| (random.unit() * 2.0 - 1.0) as f32).collect();
            let want: f64 = all[first..].iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
            let run = |all: &[f32], max_norm: f32, scale: f32| {
                let (g, control) = (gpu.upload(all), slots(max_norm, scale));
                let per_part = 4096u32;
                let parts = (n as u32).div_ceil(per_part);
                let partials = gpu.unset::<f32>(parts as usize);
                let (norm, factor) = (gpu.unset::<f32>(1), gpu.unset::<f32>(1));
                let from = at(&g) + 4 * first as u64;
                launch!(gpu, squares, parts, 256, 0, from, at(&partials), n as u64, per_part).expect("it runs");
                launch!(gpu, finish, 1, 256, 0, at(&partials), at(&norm), at(&factor), parts, at(&control), 2u32, 1u32)
                    .expect("it runs");
                (gpu.download(&norm)[0], gpu.download(&factor)[0])
            };
            let (norm, factor) = run(&all, 0.25, -0.5);
            digest("norm", &[norm, factor]);
            let rounding = Tolerance::Rounding(16.0);
            assert_close("norm", &[norm], &[want * 0.5], rounding);
            assert_close("factor", &[factor], &[(0.25 / (want * 0.5 + 1e-6)).min(1.0)], rounding);
            assert_eq!(run(&all, f32::INFINITY, 1.0).1, 1.0, "an infinite bound clips nothing");
            let mut bad = all;
            bad[first + n / 2] = f32::NAN;
            let (norm, factor) = run(&bad, 0.25, 1.0);
            assert!(norm.is_nan() && factor.is_nan(), "{norm} and {factor}");
            bad[first + n / 2] = 1e30;
            let (norm, factor) = run(&bad, 0.25, 1.0);
            assert!(norm.is_infinite() && factor.is_nan(), "{norm} and {factor}");
        }
    }
}
