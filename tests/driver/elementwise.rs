//! Elementwise kernels against the oracles of their operations.

use crate::common::{Random, assert_close, values};
use crate::gpu::{Gpu, at, digest, launch};
use crate::on_stand_in;
use half::bf16;
use twoclocks::device::Control;
use twoclocks::ops::{Case, TABLE, Tolerance, Values};

/// The cases of a folder of `src/ops`, with the values of their inputs and what the oracle makes of them.
pub fn cases(folder: &str) -> (Control, Vec<(Case, Vec<Values>, Vec<Values>)>) {
    let entry = TABLE.iter().find(|entry| entry.name == folder).expect("it is in the table");
    let mut control = Control::new();
    let cases = (entry.cases)(&mut control);
    let with_values = cases.into_iter().enumerate().map(|(number, case)| {
        let mut random = Random(number as u64 + 1);
        let inputs: Vec<Values> = case
            .inputs
            .iter()
            .map(|input| Values {
                tensor_type: input.tensor_type.clone(),
                data: values(input, &mut random),
            })
            .collect();
        let types: Vec<_> = inputs.iter().map(|input| input.tensor_type.clone()).collect();
        let outputs = case.op.infer(&types).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let mut outputs: Vec<Values> = outputs.into_iter().map(Values::zeros).collect();
        for (output, input) in case.op.in_place() {
            outputs[output].data.clone_from(&inputs[input].data);
        }
        case.op.naive(&inputs, &mut outputs, &control);
        (case, inputs, outputs)
    });
    let all = with_values.collect();
    (control, all)
}

pub fn f32s(values: &Values) -> Vec<f32> {
    values.data.iter().map(|&x| x as f32).collect()
}

/// The values as the bits of the nearest bf16, and these as f64.
pub fn bf16s(values: &[f64]) -> (Vec<u16>, Vec<f64>) {
    let rounded = values.iter().map(|&x| bf16::from_f64(x));
    (rounded.clone().map(bf16::to_bits).collect(), rounded.map(bf16::to_f64).collect())
}

/// Asserts that bf16 results are within their own rounding, and `factor` times `tolerance` of f32, of the oracle.
pub fn assert_close_bf16(what: &str, got: &[u16], want: &[f64], units: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (got, &want)) in got.iter().zip(want).enumerate() {
        let got = bf16::from_bits(*got).to_f64();
        if !want.is_finite() {
            assert!(got == want || got.is_nan() && want.is_nan(), "{what}: {got} at {i}");
            continue;
        }
        assert!(got.is_finite(), "{what}: {got} at {i}, want {want}");
        // Half a unit in the last place of 8 bits.
        let bound = units * want.abs().max(rms) / 256.0;
        let error = (got - want).abs();
        assert!(error <= bound, "{what}: {got} at {i}, want {want}: error {error:e} > {bound:e}");
    }
}

const KINDS: [&str; 9] =
    ["neg", "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "gelu", "silu"];

on_stand_in! {
    fn unary() {
        let gpu = Gpu::new();
        let mut seen = 0;
        for (case, inputs, outputs) in cases("unary").1 {
            let kind = KINDS.iter().find(|kind| case.op.name() == **kind).expect("a kernel a kind");
            let what = format!("unary {kind} {}", case.name);
            let n = inputs[0].data.len();
            if n == 0 {
                continue;
            }
            let x = gpu.upload(&f32s(&inputs[0]));
            let y = gpu.unset::<f32>(n);
            let kernel = gpu.kernel("unary", &format!("unary_{kind}_f32"));
            let grid = n.div_ceil(1024) as u32;
            launch!(gpu, kernel, grid, 256, 0, at(&x), at(&y), n as u64).expect("it runs");
            let got = gpu.download(&y);
            digest(&what, &got);
            // The library functions of the device have errors of their own, up to 4 units for erfc.
            let tolerance = match case.tolerance {
                Tolerance::Rounding(count) => Tolerance::Rounding(count + 8.0),
                other => other,
            };
            assert_close(&what, &got, &outputs[0].data, tolerance);

            let (short, wide) = bf16s(&inputs[0].data);
            let mut want = [Values::zeros(outputs[0].tensor_type.clone())];
            let inputs = [Values { tensor_type: inputs[0].tensor_type.clone(), data: wide }];
            case.op.naive(&inputs, &mut want, &Control::new());
            let x = gpu.upload(&short);
            let y = gpu.unset::<u16>(n);
            let kernel = gpu.kernel("unary", &format!("unary_{kind}_bf16"));
            launch!(gpu, kernel, grid, 256, 0, at(&x), at(&y), n as u64).expect("it runs");
            let got = gpu.download(&y);
            digest(&what, &got);
            assert_close_bf16(&what, &got, &want[0].data, 1.01);
            seen += 1;
        }
        assert!(seen > 20, "only {seen} cases");
    }
}
