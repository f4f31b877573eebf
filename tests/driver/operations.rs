//! Every operation of the table compiled for a GPU, on the stand-in: its kernels against its oracle, and
//! its gradient, computed there, against central differences.

use crate::common::{Random, assert_close, values};
use crate::gpu::digest;
use crate::on_stand_in;
use crate::tape::device;
use std::collections::BTreeSet;
use std::sync::Arc;
use twoclocks::ops::{Case, CaseInput, TABLE, Tolerance};
use twoclocks::tape::Region;
use twoclocks::{DType, Device, Error, Recorder, Recording, Store, Tape, Var, ops};

/// Operations of which some case has no kernel for GPUs yet. One that has all of them does not belong here.
const WITHOUT_KERNELS: [&str; 0] = [];

/// Elements of guard before and after every tensor: at addresses of 16 bytes, and beside them.
const GUARDS: [usize; 2] = [32, 5];
/// Operations whose contract asks for flat tensors at addresses of 16 bytes, as the optimizer has them.
const ALIGNED: [&str; 1] = ["update"];
/// What stands in guard bands; exact in every type.
const GUARD: f64 = 171.0;

fn upload(store: &mut Store, dtype: DType, data: &[f64]) -> Region {
    match dtype {
        DType::F32 => store.upload("f32", &data.iter().map(|&x| x as f32).collect::<Vec<_>>()),
        DType::U32 => store.upload("u32", &data.iter().map(|&x| x as u32).collect::<Vec<_>>()),
        DType::U8 => store.upload("u8", &data.iter().map(|&x| x as u8).collect::<Vec<_>>()),
        DType::Bf16 => {
            let all: Vec<half::bf16> = data.iter().map(|&x| half::bf16::from_f64(x)).collect();
            store.upload("bf16", &all)
        }
    }
}

fn read(store: &Store, region: Region, dtype: DType) -> Vec<f32> {
    fn all<T: twoclocks::tensor::Element>(
        store: &Store,
        region: Region,
        f: fn(T) -> f32,
    ) -> Vec<f32> {
        let mut all = vec![T::zeroed(); store.len(region)];
        store.read(region, 0, &mut all).expect("read");
        all.into_iter().map(f).collect()
    }
    match dtype {
        DType::F32 => all::<f32>(store, region, |x| x),
        DType::U32 => all::<u32>(store, region, |x| x as f32),
        DType::U8 => all::<u8>(store, region, f32::from),
        DType::Bf16 => all::<half::bf16>(store, region, half::bf16::to_f32),
    }
}

/// `data` between guard bands.
fn guarded(store: &mut Store, dtype: DType, data: &[f64], guard: usize) -> Region {
    let band = std::iter::repeat_n(GUARD, guard);
    let all: Vec<f64> = band.clone().chain(data.iter().copied()).chain(band).collect();
    upload(store, dtype, &all)
}

/// The tensor in a guarded region; asserts that the guard bands are whole.
fn read_guarded(what: &str, store: &Store, region: Region, dtype: DType, guard: usize) -> Vec<f32> {
    let mut all = read(store, region, dtype);
    let tensor: Vec<f32> = all.drain(guard..all.len() - guard).collect();
    assert!(all.iter().all(|&x| f64::from(x) == GUARD), "{what}: written outside the tensor");
    tensor
}

fn case(entry: &str, number: usize, store: &mut Store) -> Case {
    let entry = TABLE.iter().find(|e| e.name == entry).expect("in the table");
    (entry.cases)(store.control_mut()).swap_remove(number)
}

/// The recording; `None` where an operation of [`WITHOUT_KERNELS`] has no kernel for these shapes.
fn compile(what: &str, tape: &Tape, store: &Store) -> Option<Recording> {
    match tape.compile(store) {
        Ok(recording) => Some(recording),
        Err(Error::Device { problem, .. }) if problem.contains("no kernel for GPUs") => {
            let known = |name: &&str| problem.contains(&format!("the operation '{name}'"));
            assert!(WITHOUT_KERNELS.iter().any(known), "{what}: {problem}");
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Runs a case, its tensors between guard bands of `guard` elements; false where it has no kernel.
fn check(device: &Device, entry: &str, number: usize, guard: usize) -> bool {
    let mut store = Store::new(device);
    let case = case(entry, number, &mut store);
    let what = format!("{entry} {}, guard {guard}", case.name);
    let mut random = Random(number as u64 + 1);
    let data: Vec<Vec<f64>> = case.inputs.iter().map(|input| values(input, &mut random)).collect();
    let types: Vec<_> = case.inputs.iter().map(|input| input.tensor_type.clone()).collect();
    let output_types = case.op.infer(&types).unwrap_or_else(|e| panic!("{what}: {e}"));
    let in_place = case.op.in_place();
    let inputs_at: Vec<_> = types
        .iter()
        .zip(&data)
        .map(|(t, data)| guarded(&mut store, t.dtype, data, guard))
        .collect();
    let outputs_at: Vec<_> = output_types
        .iter()
        .enumerate()
        .map(|(i, output)| match in_place.iter().find(|&&(o, _)| o == i) {
            Some(&(_, input)) => inputs_at[input],
            None => {
                let junk = if output.dtype == DType::F32 { f64::NAN } else { 77.0 };
                guarded(&mut store, output.dtype, &vec![junk; output.elements()], guard)
            }
        })
        .collect();
    let mut tape = Tape::new(&store);
    let inputs: Vec<_> = types
        .iter()
        .zip(&inputs_at)
        .map(|(t, &region)| tape.persistent("input", region, guard, &t.shape).expect("input"))
        .collect();
    let outputs = tape.push(Arc::clone(&case.op), &inputs).expect("the types were inferred");
    let outputs: Vec<Var> = outputs
        .into_iter()
        .enumerate()
        .map(|(i, output)| match in_place.iter().any(|&(o, _)| o == i) {
            true => output,
            // A copy of a view.
            false => tape.place(output, outputs_at[i], guard).expect("place"),
        })
        .collect();
    let Some(mut recording) = compile(&what, &tape, &store) else { return false };
    let feeds: Vec<_> = inputs.iter().copied().zip(data.iter().cloned()).collect();
    let oracle = tape.evaluate(&feeds, store.control()).expect("oracle");
    recording.replay(&mut store).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (i, (t, &region)) in types.iter().zip(&inputs_at).enumerate() {
        let kept = read_guarded(&what, &store, region, t.dtype, guard);
        if !in_place.iter().any(|&(_, updated)| updated == i) {
            let same = kept.iter().zip(&data[i]).all(|(&a, &b)| a == b as f32);
            assert!(same, "{what}: input {i} was changed");
        }
    }
    for (i, (&output, output_type)) in outputs.iter().zip(&output_types).enumerate() {
        let got = read_guarded(&what, &store, outputs_at[i], output_type.dtype, guard);
        let want = &oracle.get(output).expect("computed").data;
        let tolerance = match output_type.dtype {
            DType::F32 => case.tolerance,
            // No operation of the table computes in these; they are copied.
            _ => Tolerance::Exact,
        };
        assert_close(&format!("{what}, output {i}"), &got, want, tolerance);
        digest(&format!("{what} {i}"), &got);
    }
    true
}

/// Calls `each` with the entry and number of every case.
fn every_case(mut each: impl FnMut(&'static str, usize)) {
    let only = std::env::var("TWOCLOCKS_TEST_OPERATION").ok();
    for entry in TABLE.iter().filter(|entry| only.as_deref().is_none_or(|only| only == entry.name))
    {
        let count = (entry.cases)(&mut twoclocks::device::Control::new()).len();
        (0..count).for_each(|number| each(entry.name, number));
    }
}

on_stand_in! {
    fn kernels_agree_with_the_oracle() {
        let device = device();
        let (mut seen, mut without) = (BTreeSet::new(), BTreeSet::new());
        for guard in GUARDS {
            every_case(|entry, number| {
                seen.insert(entry);
                let guard = if ALIGNED.contains(&entry) { GUARDS[0] } else { guard };
                if !check(&device, entry, number, guard) {
                    without.insert(entry);
                }
            });
        }
        let listed = WITHOUT_KERNELS.into_iter().filter(|name| seen.contains(name)).collect();
        assert_eq!(without, listed, "found without kernels, and listed as such");
    }
}

/// Feeds an input of a recording.
fn write(recording: &mut Recording, var: Var, input: &CaseInput, data: &[f64]) {
    match input.tensor_type.dtype {
        DType::F32 => recording.write(var, &data.iter().map(|&x| x as f32).collect::<Vec<_>>()),
        DType::U32 => recording.write(var, &data.iter().map(|&x| x as u32).collect::<Vec<_>>()),
        other => panic!("an input of {other} in a gradient"),
    }
    .expect("write");
}

/// The gradient of a case computed on the device, along random directions, against central differences of
/// the oracle, in f64. Gives how many inputs were checked, none where a kernel is missing.
fn check_gradient(device: &Device, entry: &str, number: usize) -> Option<usize> {
    const STEP: f64 = 1e-5;
    // Of the sum of all contributions: some roundings of f32 each, of which a derivative near zero, as
    // 1 - y^2, makes more. A term that is missing or wrong shows from the third digit on.
    const BOUND: f64 = 1e-5;
    // Upstream gradients are below 1; where they cancel, as in a norm of rows of two, their roundings stay.
    const ROUNDINGS: f64 = 16.0 * f32::EPSILON as f64 / 2.0;
    let mut store = Store::new(device);
    let case = case(entry, number, &mut store);
    let what = format!("{entry} {}", case.name);
    case.gradient_tolerance?;
    let mut random = Random(1000 + number as u64);
    let data: Vec<Vec<f64>> = case.inputs.iter().map(|i| values(i, &mut random)).collect();
    let mut tape = Tape::new(&store);
    let input = |(i, input): (usize, &CaseInput)| {
        tape.input_of(&format!("input {i}"), input.tensor_type.clone()).expect("input")
    };
    let inputs: Vec<_> = case.inputs.iter().enumerate().map(input).collect();
    let output = tape.push(Arc::clone(&case.op), &inputs).expect("recorded")[0];
    let shape = tape.tensor_type(output).shape.clone();
    let weights: Vec<f64> =
        (0..shape.elements()).map(|_| f64::from((random.unit() * 2.0 - 1.0) as f32)).collect();
    let upstream = tape.input("upstream", shape).expect("input");
    let wrt: Vec<usize> = (0..inputs.len()).filter(|&i| case.inputs[i].differentiable).collect();
    let wrt_vars: Vec<_> = wrt.iter().map(|&i| inputs[i]).collect();
    let gradients = tape.vector_jacobian(&[(output, upstream)], &wrt_vars).expect("a gradient");
    // Of its own memory, also where it is the upstream one or a constant.
    let gradients: Vec<Var> =
        gradients.iter().map(|&g| ops::copy(&mut tape, g).expect("f32")).collect();
    gradients.iter().for_each(|&gradient| tape.output(gradient).expect("output"));
    let mut recording = compile(&what, &tape, &store)?;
    for ((&var, input), data) in inputs.iter().zip(&case.inputs).zip(&data) {
        write(&mut recording, var, input, data);
    }
    let weights_f32: Vec<f32> = weights.iter().map(|&x| x as f32).collect();
    recording.write(upstream, &weights_f32).expect("write");
    recording.replay(&mut store).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (&i, &gradient) in wrt.iter().zip(&gradients) {
        let gradient = recording.read(gradient).expect("read");
        digest(&format!("{what} {i}"), &gradient);
        // The bits are the same in all orders, and so would this be.
        if std::env::var("TWOCLOCKS_STANDIN_ORDER").is_ok_and(|order| order != "forward") {
            continue;
        }
        let direction: Vec<f64> = data[i].iter().map(|_| random.unit() * 2.0 - 1.0).collect();
        let loss = |sign: f64| -> f64 {
            let mut feeds: Vec<_> = inputs.iter().copied().zip(data.iter().cloned()).collect();
            for (x, d) in feeds[i].1.iter_mut().zip(&direction) {
                *x += sign * STEP * d;
            }
            feeds.push((upstream, weights.clone()));
            let values = tape.evaluate(&feeds, store.control()).expect("oracle");
            let out = &values.get(output).expect("computed").data;
            out.iter().zip(&weights).map(|(y, w)| y * w).sum()
        };
        let difference = (loss(1.0) - loss(-1.0)) / (2.0 * STEP);
        let terms = || gradient.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d);
        let (found, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
        let error = (found - difference).abs();
        let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
        let bound = BOUND * size.max(difference.abs()) + ROUNDINGS * length;
        assert!(found.is_finite() && difference.is_finite(), "{what} input {i}");
        assert!(error <= bound, "{what} input {i}: {found}, difference {difference}, size {size}");
    }
    Some(wrt.len())
}

on_stand_in! {
    fn gradients_agree_with_central_differences() {
        let device = device();
        let (mut checked, mut any) = (BTreeSet::new(), BTreeSet::new());
        every_case(|entry, number| {
            if case(entry, number, &mut Store::new(&device)).gradient_tolerance.is_some() {
                any.insert(entry);
            }
            if check_gradient(&device, entry, number).is_some_and(|count| count > 0) {
                checked.insert(entry);
            }
        });
        let unchecked: Vec<_> =
            any.difference(&checked).filter(|name| !WITHOUT_KERNELS.contains(name)).collect();
        assert!(unchecked.is_empty(), "no gradient was checked of {unchecked:?}");
    }
}
