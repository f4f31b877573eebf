use super::*;
use crate::device::cpu::{Cpu, Isa};
use crate::gemm::Precision;
use crate::ops::update::tests::assert_packed;
use crate::{Device, Store, Tape};

/// The copies that Lookahead leaves are those of the weights that it leaves, also where it changes nothing.
#[test]
fn packed_copies_follow_lookahead() {
    let shapes = [(2336, [784, 40]), (16, [70, 33])];
    let len = 40_000;
    for isa in Isa::available() {
        for share in [0.5f32, 0.0] {
            let packed = PackedWeights::new(isa, Precision::Bf16, shapes).expect("packed in bf16");
            let packed = Arc::new(packed);
            let cpu = Cpu::with_isa(2, isa).unwrap();
            let mut store = Store::new(&Device::Cpu(Arc::new(cpu)));
            let start: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let slow = store.upload("slow", &vec![0.5f32; len]);
            let fast = store.upload("fast", &start);
            let copies = store.allocate("copies", packed.element(), packed.len());
            let slot = store.control_mut().f32_slot("share", share);
            let mut tape = Tape::new(&store);
            let vars = [slow, fast].map(|r| tape.persistent("flat", r, 0, [len]).unwrap());
            let copies_var = tape.persistent("copies", copies, 0, [packed.len()]).unwrap();
            let packs = Some((&packed, copies_var));
            average(&mut tape, Kind::Lookahead, vars[0], vars[1], slot, packs).unwrap();
            tape.compile(&store).unwrap().replay(&mut store).unwrap();
            let read = |region| {
                let mut values = vec![0f32; len];
                store.read(region, 0, &mut values).unwrap();
                values
            };
            let (slow, fast) = (read(slow), read(fast));
            for (i, &start) in start.iter().enumerate() {
                let want = if share == 0.0 { start } else { (start - 0.5).mul_add(share, 0.5) };
                assert!((fast[i] - want).abs() <= 1e-7, "{isa} at {i}: {}, want {want}", fast[i]);
                assert!(share == 0.0 && slow[i] == 0.5 || slow[i] == fast[i], "{isa} at {i}");
            }
            assert_packed(&packed, &fast, &store, copies, isa);
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let share = Control::new().f32_slot("share", 0.5);
    let flat = |n: usize| TensorType::f32([n]);
    let refused = |kind, packed, inputs: &[TensorType], words: &str| {
        let op = Average { kind, share, packed };
        let error = op.infer(inputs).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(Kind::Ema, None, &[flat(8), flat(9)], "f32[8] and f32[9]");
    refused(Kind::Ema, None, &[TensorType::f32([2, 4]), TensorType::f32([2, 4])], "f32[2, 4]");
    refused(Kind::Lookahead, None, &[flat(8)], "takes 2 inputs, not 1");
    let isa = Isa::available()[0];
    let packed = PackedWeights::new(isa, Precision::Bf16, [(0, [4, 4])]).map(Arc::new);
    refused(Kind::Ema, packed.clone(), &[flat(16), flat(16)], "takes no copies");
    refused(Kind::Lookahead, packed.clone(), &[flat(15), flat(15)], "[4, 4] at 0");
    refused(Kind::Lookahead, packed, &[flat(16), flat(16)], "packed weights");
}
