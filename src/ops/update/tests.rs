use super::*;
use crate::device::cpu::{Cpu, Isa};
use crate::gemm::Precision;
use crate::tape::Region;
use crate::{Device, Store, Tape};

fn op(rule: Rule, segments: &[(usize, usize)]) -> Update {
    let segments = segments.iter().map(|&(offset, len)| Segment {
        offset,
        len,
        rate_factor: 1.0,
        decay_factor: 1.0,
    });
    Update {
        rule,
        decay: Decay::None,
        segments: segments.collect(),
        slots: UpdateSlots::register(&mut Control::new(), "slots", rule),
        has_guard: false,
        has_factor: false,
        packed: None,
    }
}

#[test]
fn operands_that_do_not_fit_are_refused_with_their_shapes() {
    let flat = |n: usize| TensorType::f32([n]);
    let refused = |op: &Update, inputs: &[TensorType], words: &str| {
        let error = op.infer(inputs).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let good = op(ADAMW, &[(0, 3), (4, 4)]);
    let outputs = good.infer(&vec![flat(8); 4]).unwrap();
    assert_eq!(outputs[3], TensorType::f32([2, 3]));
    assert_eq!(outputs.len(), 4);
    refused(&good, &vec![flat(8); 3], "takes 4 inputs, not 3");
    refused(&good, &[flat(8), flat(9), flat(8), flat(8)], "input 1 is f32[9]");
    refused(&good, &vec![TensorType::f32([2, 4]); 4], "flat weights [P], not f32[2, 4]");
    refused(&good, &vec![flat(7); 4], "segment 1 has elements 4 to 4 + 4");
    refused(&op(LION, &[(0, 3), (2, 4)]), &vec![flat(8); 3], "segment 1 has elements 2");
    refused(&op(LION, &[(usize::MAX, 3)]), &vec![flat(8); 3], "segment 0");
    let wild = Rule::AdamW { beta1: 0.9, beta2: 1.0, epsilon: 1e-8 };
    refused(&op(wild, &[]), &vec![flat(8); 4], "betas: 1 is not in [0, 1)");
    let ahead = Rule::Sgd { momentum: 0.0, nesterov: true };
    refused(&op(ahead, &[]), &vec![flat(8); 2], "nesterov");
    let guarded = Update { has_guard: true, ..op(SGD, &[]) };
    refused(&guarded, &[flat(8), flat(8), flat(2)], "input 2 is f32[2]");
}

/// Tiny segments share a chunk, large ones are cut, and every element is in one piece.
#[test]
fn neighbouring_small_segments_share_a_chunk() {
    let mut segments: Vec<(usize, usize)> = (0..50).map(|i| (i * 16, 10)).collect();
    segments.push((800, 100_003));
    let cut = cpu::cut_sizes(&op(SGD, &segments).segments);
    // One chunk takes the tiny ones; the large one is cut into pieces of 7 Ki, the last one shorter.
    assert_eq!(cut.chunks, 1 + 14);
    assert_eq!(cut.pieces, 50 + 14);
    assert_eq!(cut.covered, 50 * 10 + 100_003);
    assert!(cut.largest_chunk <= 9 * 1024);
}

/// No statistics are asked for: one phase, no scratch memory, the same weights.
#[test]
fn outputs_that_nobody_reads_are_not_computed() {
    let run = |read: bool| -> (Vec<f32>, Vec<usize>) {
        let mut store = Store::new(&Device::cpu(2).unwrap());
        let w: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let g: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.11).cos()).collect();
        let regions = [&w, &g, &w].map(|values| store.upload("flat", values));
        let slots = UpdateSlots::register(store.control_mut(), "slots", MOMENTUM);
        store.control_mut().set_f32(slots.rate, 0.1);
        let mut tape = Tape::new(&store);
        let vars = regions.map(|r| tape.persistent("flat", r, 0, [40_000]).unwrap());
        let [weights, gradients, moment] = vars;
        let moments = &[moment];
        let (guard, factor, packed) = (None, None, None);
        let operands = Operands { weights, gradients, moments, guard, factor, packed };
        let segments = op(MOMENTUM, &[(0, 30_000), (30_000, 10_000)]).segments;
        let updated =
            update(&mut tape, MOMENTUM, Decay::None, &segments, slots, operands).unwrap();
        if read {
            tape.output(updated.statistics).unwrap();
        }
        let mut recording = tape.compile(&store).unwrap();
        recording.replay(&mut store).unwrap();
        let mut new = vec![0.0; 40_000];
        store.read(regions[0], 0, &mut new).unwrap();
        (new, recording.nodes()[0].chunks.clone())
    };
    let ((with, phases), (without, one_phase)) = (run(true), run(false));
    assert_eq!((phases.len(), one_phase.len()), (2, 1));
    assert_eq!(with, without);
}

/// Asserts that `copies` hold the packed copies of these weights.
pub(in crate::ops) fn assert_packed(
    packed: &PackedWeights,
    weights: &[f32],
    store: &Store,
    copies: Region,
    isa: Isa,
) {
    let bytes = packed.len() * packed.element().size();
    let mut expected = vec![0f32; bytes.div_ceil(4)];
    packed.pack_all(weights, bytemuck::cast_slice_mut(&mut expected));
    let expected = &bytemuck::cast_slice::<f32, u8>(&expected)[..bytes];
    let found: Vec<u8> = match packed.element() {
        DType::Bf16 => {
            let mut found = vec![half::bf16::ZERO; packed.len()];
            store.read(copies, 0, &mut found).unwrap();
            bytemuck::cast_slice(&found).to_vec()
        }
        _ => {
            let mut found = vec![0f32; packed.len()];
            store.read(copies, 0, &mut found).unwrap();
            bytemuck::cast_slice(&found).to_vec()
        }
    };
    assert!(found == expected, "{isa}");
}

/// The packed copies are those of the new weights, on every instruction set; where the guard stops
/// the update, those of the old ones.
#[test]
fn packed_copies_follow_the_weights() {
    let shapes = [(16, [70, 33]), (16 + 2320, [784, 40]), (34_000, [3, 5])];
    let len = 34_100;
    for isa in Isa::available() {
        for loss in [1.0f32, f32::NAN] {
            let packed = PackedWeights::new(isa, Precision::Bf16, shapes).expect("packed in bf16");
            let packed = Arc::new(packed);
            let cpu = Cpu::with_isa(2, isa).unwrap();
            let mut store = Store::new(&Device::Cpu(Arc::new(cpu)));
            let w: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let regions = [&w, &w, &w].map(|values| store.upload("flat", values));
            let copies = store.allocate("copies", packed.element(), packed.len());
            let slots = UpdateSlots::register(store.control_mut(), "slots", MOMENTUM);
            store.control_mut().set_f32(slots.rate, 0.1);
            let mut tape = Tape::new(&store);
            let vars = regions.map(|r| tape.persistent("flat", r, 0, [len]).unwrap());
            let guard = tape.input("loss", []).unwrap();
            let [weights, gradients, moment] = vars;
            let moments = &[moment];
            let copies_var = tape.persistent("copies", copies, 0, [packed.len()]).unwrap();
            let (guard_var, packs) = (Some(guard), Some((&packed, copies_var)));
            let operands = Operands {
                weights,
                gradients,
                moments,
                guard: guard_var,
                factor: None,
                packed: packs,
            };
            let segments = shapes.map(|(offset, [rows, columns])| (offset, rows * columns));
            let mut segments = segments.to_vec();
            segments.insert(0, (0, 10));
            let segments = op(MOMENTUM, &segments).segments;
            update(&mut tape, MOMENTUM, Decay::None, &segments, slots, operands).unwrap();
            let mut recording = tape.compile(&store).unwrap();
            recording.write(guard, &[loss]).unwrap();
            recording.replay(&mut store).unwrap();
            let mut new = vec![0.0; len];
            store.read(regions[0], 0, &mut new).unwrap();
            assert_eq!(new != w, loss.is_finite(), "{isa}");
            assert_packed(&packed, &new, &store, copies, isa);
        }
    }
}
