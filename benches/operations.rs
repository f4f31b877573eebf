//! Every operation of the table: GFLOP/s or GB/s, beside the peaks measured in the same process.
//!
//! `cargo bench --bench operations`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use twoclocks::ops::{CaseInput, Fill, TABLE};
use twoclocks::random::Random;
use twoclocks::{DType, Device, Recording, Store, Tape};

fn upload(store: &mut Store, input: &CaseInput) -> twoclocks::tape::Region {
    let n = input.tensor_type.elements();
    let mut random = Random::new(1, n as u64);
    let mut draw = |i: usize| match input.fill {
        Fill::Uniform(low, high) => random.uniform(low, high),
        Fill::Integers => random.below(9) as f64 - 4.0,
        Fill::Indices(bound) => random.below(u64::from(bound)) as f64,
        Fill::Distributions => 1.0 / input.tensor_type.shape.columns() as f64,
        Fill::Permutation => i as f64,
    };
    let values: Vec<f64> = (0..n).map(&mut draw).collect();
    match input.tensor_type.dtype {
        DType::F32 => {
            store.upload("input", &values.iter().map(|&x| x as f32).collect::<Vec<f32>>())
        }
        DType::U32 => {
            store.upload("input", &values.iter().map(|&x| x as u32).collect::<Vec<u32>>())
        }
        DType::U8 => store.upload("input", &values.iter().map(|&x| x as u8).collect::<Vec<u8>>()),
        DType::Bf16 => store.upload(
            "input",
            &values.iter().map(|&x| half::bf16::from_f64(x)).collect::<Vec<half::bf16>>(),
        ),
    }
}

fn record(store: &mut Store, case: &twoclocks::ops::Case) -> Option<Recording> {
    let regions: Vec<_> = case.inputs.iter().map(|input| upload(store, input)).collect();
    let mut tape = Tape::new(store);
    let inputs: Vec<_> = case
        .inputs
        .iter()
        .zip(regions)
        .map(|(input, region)| {
            tape.persistent("input", region, 0, &input.tensor_type.shape).expect("fits")
        })
        .collect();
    use twoclocks::Recorder;
    let outputs = tape.push(Arc::clone(&case.op), &inputs).expect("a valid case");
    for output in outputs {
        tape.output(output).expect("output");
    }
    let recording = tape.compile(store).expect("compiles");
    // A view has no kernel, so there is nothing to time.
    (!recording.nodes().is_empty()).then_some(recording)
}

fn operations(criterion: &mut Criterion) {
    let device = Device::cpu(0).expect("cpu");
    let Device::Cpu(cpu) = &device else { return };
    let peak = cpu.peak();
    println!("{device:?}: {peak:?}");
    for entry in TABLE {
        let mut store = Store::new(&device);
        for case in (entry.benches)(store.control_mut()) {
            let mut store = Store::new(&device);
            let cases = (entry.benches)(store.control_mut());
            let Some(case) = cases.into_iter().find(|other| other.name == case.name) else {
                continue;
            };
            let Some(mut recording) = record(&mut store, &case) else { continue };
            let cost = recording.cost();
            let mut group = criterion.benchmark_group(entry.name);
            // The table's figure is the one that bounds the operation on this machine.
            let bound_by_flops =
                cost.flops / peak.flops_per_s > cost.bytes / peak.memory_bytes_per_s;
            group.throughput(match bound_by_flops {
                true => Throughput::Elements(cost.flops as u64),
                false => Throughput::Bytes(cost.bytes as u64),
            });
            group.sample_size(20);
            group.measurement_time(std::time::Duration::from_secs(1));
            group.warm_up_time(std::time::Duration::from_millis(200));
            let mut fastest = f64::INFINITY;
            group.bench_function(&case.name, |bencher| {
                bencher.iter_custom(|repetitions| {
                    let start = std::time::Instant::now();
                    for _ in 0..repetitions {
                        recording.replay(&mut store).expect("replay");
                    }
                    let elapsed = start.elapsed();
                    fastest = fastest.min(elapsed.as_secs_f64() / repetitions as f64);
                    elapsed
                });
            });
            group.finish();
            if fastest.is_finite() {
                println!(
                    "{} {}: at best {:.1} GFLOP/s ({:.0} % of peak), {:.1} GB/s ({:.0} % of memory)",
                    entry.name,
                    case.name,
                    cost.flops / fastest * 1e-9,
                    100.0 * cost.flops / fastest / peak.flops_per_s,
                    cost.bytes / fastest * 1e-9,
                    100.0 * cost.bytes / fastest / peak.memory_bytes_per_s,
                );
            }
        }
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
