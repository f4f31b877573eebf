//! Every operation of the table, on every instruction set, against its oracle; and its gradient
//! against central differences.

mod common;

use common::{Random, assert_close, values};
use std::sync::Arc;
use twoclocks::device::cpu::{Cpu, Isa};
use twoclocks::ops::{Case, TABLE, Tolerance};
use twoclocks::{DType, Device, Recorder, Store, Tape, Var, ops};

/// Elements of guard before and after every tensor.
const GUARD: usize = 32;
const GUARD_U32: u32 = 0xDEAD_BEEF;

/// A region of the store that holds `data` between guard bands.
fn guarded(store: &mut Store, dtype: DType, data: &[f64]) -> twoclocks::tape::Region {
    let padded = |guard: f64| {
        let band = std::iter::repeat_n(guard, GUARD);
        band.clone().chain(data.iter().copied()).chain(band).collect::<Vec<f64>>()
    };
    match dtype {
        DType::F32 => {
            let all: Vec<f32> = padded(f64::NAN).iter().map(|&x| x as f32).collect();
            store.upload("guarded", &all)
        }
        DType::U32 => {
            let all: Vec<u32> = padded(f64::from(GUARD_U32)).iter().map(|&x| x as u32).collect();
            store.upload("guarded", &all)
        }
        DType::U8 => {
            let all: Vec<u8> = padded(171.0).iter().map(|&x| x as u8).collect();
            store.upload("guarded", &all)
        }
        DType::Bf16 => {
            let all: Vec<half::bf16> =
                padded(f64::NAN).iter().map(|&x| half::bf16::from_f64(x)).collect();
            store.upload("guarded", &all)
        }
    }
}

/// The tensor in a guarded region, as f32; asserts that the guard bands are whole.
fn read_guarded(
    what: &str,
    store: &Store,
    region: twoclocks::tape::Region,
    dtype: DType,
    len: usize,
) -> Vec<f32> {
    let total = len + 2 * GUARD;
    let (all, whole): (Vec<f32>, bool) = match dtype {
        DType::F32 => {
            let mut all = vec![0f32; total];
            store.read(region, 0, &mut all).expect("read");
            let whole = all[..GUARD].iter().chain(&all[GUARD + len..]).all(|x| x.is_nan());
            (all, whole)
        }
        DType::U32 => {
            let mut all = vec![0u32; total];
            store.read(region, 0, &mut all).expect("read");
            let whole = all[..GUARD].iter().chain(&all[GUARD + len..]).all(|&x| x == GUARD_U32);
            (all.iter().map(|&x| x as f32).collect(), whole)
        }
        DType::U8 => {
            let mut all = vec![0u8; total];
            store.read(region, 0, &mut all).expect("read");
            let whole = all[..GUARD].iter().chain(&all[GUARD + len..]).all(|&x| x == 171);
            (all.iter().map(|&x| f32::from(x)).collect(), whole)
        }
        DType::Bf16 => {
            let mut all = vec![half::bf16::ZERO; total];
            store.read(region, 0, &mut all).expect("read");
            let whole = all[..GUARD].iter().chain(&all[GUARD + len..]).all(|x| x.is_nan());
            (all.iter().map(|x| x.to_f32()).collect(), whole)
        }
    };
    assert!(whole, "{what}: written outside the tensor");
    all[GUARD..GUARD + len].to_vec()
}

/// Runs a case on a CPU and compares every output with the oracle.
fn check_kernel(entry: &str, number: usize, isa: Isa, threads: usize) -> Vec<Vec<u32>> {
    let device = Device::Cpu(Arc::new(Cpu::with_isa(threads, isa).expect("this machine has it")));
    let mut store = Store::new(&device);
    let case = case(entry, number, &mut store);
    let what = format!("{entry} {} on {isa}", case.name);
    let mut random = Random(number as u64 + 1);
    let data: Vec<Vec<f64>> = case.inputs.iter().map(|input| values(input, &mut random)).collect();
    let types: Vec<_> = case.inputs.iter().map(|input| input.tensor_type.clone()).collect();
    let output_types = case.op.infer(&types).unwrap_or_else(|e| panic!("{what}: {e}"));
    let in_place = case.op.in_place();

    let input_regions: Vec<_> = types
        .iter()
        .zip(&data)
        .map(|(tensor_type, data)| guarded(&mut store, tensor_type.dtype, data))
        .collect();
    let output_regions: Vec<_> = output_types
        .iter()
        .enumerate()
        .map(|(i, output)| match in_place.iter().find(|&&(o, _)| o == i) {
            Some(&(_, input)) => input_regions[input],
            None => {
                let junk = if output.dtype == DType::F32 { f64::NAN } else { 77.0 };
                guarded(&mut store, output.dtype, &vec![junk; output.elements()])
            }
        })
        .collect();
    let mut tape = Tape::new(&store);
    let inputs: Vec<_> = types
        .iter()
        .zip(&input_regions)
        .enumerate()
        .map(|(i, (t, &region))| {
            tape.persistent(&format!("input {i}"), region, GUARD, &t.shape).expect("input")
        })
        .collect();
    let outputs = tape.push(Arc::clone(&case.op), &inputs).expect("the types were inferred");
    for (i, &output) in outputs.iter().enumerate() {
        if !in_place.iter().any(|&(o, _)| o == i) {
            tape.place(output, output_regions[i], GUARD).expect("place");
        }
    }
    let feeds: Vec<_> = inputs.iter().copied().zip(data.iter().cloned()).collect();
    let oracle = tape.evaluate(&feeds, store.control()).expect("oracle");
    let mut recording = tape.compile(&store).expect("compile");
    for node in recording.nodes() {
        assert_ne!(node.kernel, "naive", "{what}: there is no kernel");
    }
    recording.replay(&mut store).expect("replay");

    for (i, (input, &region)) in types.iter().zip(&input_regions).enumerate() {
        let kept = read_guarded(&what, &store, region, input.dtype, input.elements());
        if !in_place.iter().any(|&(_, updated)| updated == i) {
            let same = kept.iter().zip(&data[i]).all(|(&a, &b)| f64::from(a) == b);
            assert!(same, "{what}: input {i} was changed");
        }
    }
    let mut bits = Vec::new();
    for (i, (&output, tensor_type)) in outputs.iter().zip(&output_types).enumerate() {
        let got = read_guarded(
            &what,
            &store,
            output_regions[i],
            tensor_type.dtype,
            tensor_type.elements(),
        );
        let want = &oracle.get(output).expect("computed").data;
        let tolerance = match tensor_type.dtype {
            DType::F32 => case.tolerance,
            // One rounding to bfloat16, 2^-8, on top of the kernel's own error.
            DType::Bf16 => Tolerance::Rounding(f64::from(1u32 << 16) * 1.01),
            DType::U32 | DType::U8 => Tolerance::Exact,
        };
        assert_close(&format!("{what}, output {i}"), &got, want, tolerance);
        bits.push(got.iter().map(|x| x.to_bits()).collect());
    }
    bits
}

fn case(entry: &str, number: usize, store: &mut Store) -> Case {
    let entry = TABLE.iter().find(|e| e.name == entry).expect("in the table");
    (entry.cases)(store.control_mut()).swap_remove(number)
}

fn all_cases() -> Vec<(&'static str, usize)> {
    let only = std::env::var("TWOCLOCKS_TEST_OPERATION").ok();
    let mut store = Store::new(&Device::cpu(1).expect("cpu"));
    TABLE
        .iter()
        .filter(|entry| only.as_deref().is_none_or(|only| only == entry.name))
        .flat_map(|entry| {
            let count = (entry.cases)(store.control_mut()).len();
            assert!(count > 0, "{} has no test cases", entry.name);
            (0..count).map(|number| (entry.name, number))
        })
        .collect()
}

#[test]
fn kernels_agree_with_the_oracle_on_every_instruction_set() {
    let forced = std::env::var("TWOCLOCKS_ISA").ok().filter(|name| !name.is_empty());
    let sets = match forced {
        Some(name) => vec![Isa::named(&name).expect("TWOCLOCKS_ISA")],
        None => Isa::available(),
    };
    for isa in sets {
        for (entry, number) in all_cases() {
            check_kernel(entry, number, isa, 1);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let isa = Isa::detect().expect("isa");
    for (entry, number) in all_cases() {
        let one = check_kernel(entry, number, isa, 1);
        for threads in [2, 3] {
            assert_eq!(one, check_kernel(entry, number, isa, threads), "{entry} {number}");
        }
    }
}

/// Outputs that take the memory of an input ([`twoclocks::Operation::may_reuse`]) have the bits of
/// those that do not.
#[test]
fn outputs_over_their_inputs_have_the_same_bits() {
    for (entry, number) in all_cases() {
        let pairs =
            case(entry, number, &mut Store::new(&Device::cpu(1).expect("cpu"))).op.may_reuse();
        for ((_, over), isa) in
            pairs.iter().flat_map(|&pair| Isa::available().into_iter().map(move |isa| (pair, isa)))
        {
            let run = |keep: bool| -> (usize, Vec<Vec<u32>>) {
                let cpu = Cpu::with_isa(2, isa).expect("this machine has it");
                let mut store = Store::new(&Device::Cpu(Arc::new(cpu)));
                let case = case(entry, number, &mut store);
                let mut random = Random(number as u64 + 1);
                let mut tape = Tape::new(&store);
                let mut feeds = Vec::new();
                let mut inputs = Vec::new();
                for (i, input) in case.inputs.iter().enumerate() {
                    let given =
                        tape.input_of(&format!("{i}"), input.tensor_type.clone()).expect("input");
                    feeds.push((given, input.tensor_type.dtype, values(input, &mut random)));
                    inputs.push(if i == over {
                        ops::copy(&mut tape, given).expect("f32")
                    } else {
                        given
                    });
                }
                if keep {
                    tape.output(inputs[over]).expect("output");
                }
                let outputs = tape.push(Arc::clone(&case.op), &inputs).expect("recorded");
                outputs.iter().for_each(|&output| tape.output(output).expect("output"));
                let mut recording = tape.compile(&store).expect("compile");
                for (var, dtype, data) in feeds {
                    match dtype {
                        DType::F32 => {
                            let data: Vec<f32> = data.iter().map(|&x| x as f32).collect();
                            recording.write(var, &data).expect("write");
                        }
                        DType::U32 => {
                            let data: Vec<u32> = data.iter().map(|&x| x as u32).collect();
                            recording.write(var, &data).expect("write");
                        }
                        other => panic!("{entry}: an input of {other}"),
                    }
                }
                recording.replay(&mut store).expect("replay");
                let bits = |&var: &Var| {
                    recording.read(var).expect("read").iter().map(|x| x.to_bits()).collect()
                };
                (recording.memory().arena_bytes, outputs.iter().map(bits).collect())
            };
            let ((kept, apart), (reused, over_input)) = (run(true), run(false));
            assert_eq!(apart, over_input, "{entry} {number} on {isa}");
            let empty = over_input.iter().all(Vec::is_empty);
            assert!(empty || reused < kept, "{entry} {number}: {reused} bytes, kept {kept}");
        }
    }
}

/// The recorded gradient, evaluated in f64, against central differences of the oracle along a
/// random direction, for each differentiable input.
#[test]
fn gradients_agree_with_central_differences() {
    const STEP: f64 = 1e-5;
    for (entry, number) in all_cases() {
        let mut store = Store::new(&Device::cpu(1).expect("cpu"));
        let case = case(entry, number, &mut store);
        let Some(tolerance) = case.gradient_tolerance else { continue };
        let mut random = Random(1000 + number as u64);
        let data: Vec<Vec<f64>> = case.inputs.iter().map(|i| values(i, &mut random)).collect();
        let mut tape = Tape::new(&store);
        let inputs: Vec<_> = case
            .inputs
            .iter()
            .enumerate()
            .map(|(i, input)| {
                tape.input_of(&format!("input {i}"), input.tensor_type.clone()).expect("input")
            })
            .collect();
        let output = tape.push(Arc::clone(&case.op), &inputs).expect("recorded")[0];
        let shape = tape.tensor_type(output).shape.clone();
        let weights: Vec<f64> = (0..shape.elements()).map(|_| random.unit() * 2.0 - 1.0).collect();
        let upstream = tape.input("upstream", shape).expect("input");
        let wrt: Vec<usize> =
            (0..inputs.len()).filter(|&i| case.inputs[i].differentiable).collect();
        assert!(!wrt.is_empty(), "{entry} {}: nothing to differentiate", case.name);
        let wrt_vars: Vec<_> = wrt.iter().map(|&i| inputs[i]).collect();
        let gradients = tape
            .vector_jacobian(&[(output, upstream)], &wrt_vars)
            .unwrap_or_else(|e| panic!("{entry} {}: {e}", case.name));
        let feeds = |data: &[Vec<f64>]| {
            let mut feeds: Vec<_> = inputs.iter().copied().zip(data.iter().cloned()).collect();
            feeds.push((upstream, weights.clone()));
            feeds
        };
        let at = tape.evaluate(&feeds(&data), store.control()).expect("oracle");
        for (&i, gradient) in wrt.iter().zip(gradients) {
            let gradient = &at.get(gradient).expect("computed").data;
            let direction: Vec<f64> = data[i].iter().map(|_| random.unit() * 2.0 - 1.0).collect();
            let loss = |sign: f64| -> f64 {
                let mut moved = data.clone();
                for (x, d) in moved[i].iter_mut().zip(&direction) {
                    *x += sign * STEP * d;
                }
                let values = tape.evaluate(&feeds(&moved), store.control()).expect("oracle");
                let out = &values.get(output).expect("computed").data;
                out.iter().zip(&weights).map(|(y, w)| y * w).sum()
            };
            let difference = (loss(1.0) - loss(-1.0)) / (2.0 * STEP);
            let recorded: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let size: f64 = gradient.iter().zip(&direction).map(|(g, d)| (g * d).abs()).sum();
            let error = (recorded - difference).abs();
            let bound = tolerance * (size.max(difference.abs()) + 1e-3);
            assert!(recorded.is_finite() && difference.is_finite(), "{entry} {}", case.name);
            assert!(
                error <= bound,
                "{entry} {} input {i}: recorded {recorded}, difference {difference}",
                case.name
            );
        }
    }
}
