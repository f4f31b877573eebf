//! Rows of matrix products: of f32 matrices as steps record them, of bf16 matrices, and with a packed B.

use super::works::{self, Recorded};
use super::{Row, repeat, sizes};
use clap::ValueEnum;
use std::time::Duration;
use twoclocks::device::Control;
use twoclocks::device::cpu::program::{Bound, Span, Task};
use twoclocks::device::cpu::{Cpu, Memory, Program};
use twoclocks::gemm::{self, Plan, Precision, Spec};
use twoclocks::random::Random;
use twoclocks::tensor::DType;
use twoclocks::{Device, Error, Result};

/// What lies in memory before a product; whatever else it needs is part of its time.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(super) enum Stored {
    /// Both matrices as row-major f32.
    F32,
    /// Both as row-major bf16; in bf16 only.
    Bf16,
    /// A row-major in the precision's type, B packed, as the weights of a model are.
    Packed,
}

impl Stored {
    pub(super) fn name(self) -> &'static str {
        match self {
            Stored::F32 => "f32",
            Stored::Bf16 => "bf16",
            Stored::Packed => "packed",
        }
    }
}

pub(super) fn row(
    cpu: &Cpu,
    device: &Device,
    size: &str,
    (precision, stored): (Precision, Stored),
    budget: Duration,
) -> Result<Row> {
    if stored == Stored::Bf16 && precision != Precision::Bf16 {
        let problem = format!("bf16 is for --precision bf16, not {precision}");
        return Err(Error::config("--operands", problem));
    }
    let (spec, seconds, bytes) = match stored {
        Stored::F32 => {
            let (Recorded { mut recording, mut store, .. }, spec) =
                works::product(device, size, precision)?;
            let bytes = recording.cost().bytes;
            (spec, repeat(budget, || recording.replay(&mut store))?, bytes)
        }
        Stored::Bf16 | Stored::Packed => {
            let [m, n, k] = sizes(size, "MxNxK")?;
            works::require(size, &[[m, k], [k, n], [m, n]])?;
            let spec = Spec::new(m, n, k).in_precision(precision);
            let (seconds, bytes) = alone(cpu, &spec, stored == Stored::Packed, budget)?;
            (spec, seconds, bytes)
        }
    };
    Ok(Row {
        work: works::product_name(size),
        items: 1.0,
        batch: spec.m,
        precision,
        operands: Some(stored.name()),
        flops: spec.flops() as f64,
        bytes,
        seconds,
        updates: Vec::new(),
        start: None,
    })
}

/// Seconds of each repetition of the launch of a product, and its bytes.
fn alone(cpu: &Cpu, spec: &Spec, packed: bool, budget: Duration) -> Result<(Vec<f64>, f64)> {
    let Spec { m, n, k, .. } = *spec;
    let plan = Plan::new(cpu.isa(), *spec, false, packed);
    let element = if spec.precision == Precision::Bf16 { DType::Bf16 } else { DType::F32 };
    let layout = plan.packed_b();
    let of_b = if packed { (layout.len(), layout.element) } else { (k * n, element) };
    let launch = gemm::launch(plan, element);
    let scratch = (launch.scratch_elements(), DType::F32);
    let tensors = [(m * k, element), of_b, (m * n, DType::F32), scratch];
    let mut random = Random::new(1, (m * n * k) as u64);
    let mut memory: Vec<Memory> =
        tensors.iter().map(|(len, dtype)| Memory::zeroed(len * dtype.size())).collect();
    for (memory, (len, dtype)) in memory.iter_mut().zip(tensors).take(2) {
        let mut value = || random.uniform(-1.0, 1.0) as f32;
        match dtype {
            DType::Bf16 => {
                let to = memory.elements_mut::<half::bf16>(0, len);
                to.iter_mut().for_each(|x| *x = half::bf16::from_f32(value()));
            }
            _ => memory.elements_mut::<f32>(0, len).iter_mut().for_each(|x| *x = value()),
        }
    }
    let span = |region: usize| {
        let (len, dtype) = tensors[region];
        Span { region, offset: 0, len, dtype, in_place: false }
    };
    let bytes = (0..3).map(|region| span(region).bytes() as f64).sum();
    let stages: Vec<_> =
        (0..launch.chunks().count()).map(|phase| vec![vec![Task { node: 0, phase }]]).collect();
    let (inputs, outputs, scratch) = (vec![span(0), span(1)], vec![span(2)], span(3));
    let bound = vec![Bound { launch, inputs, outputs, scratch }];
    let mut program = Program::new(bound, &stages, tensors.len(), cpu.threads());
    let control = Control::new();
    let seconds = repeat(budget, || {
        program.replay(cpu.team(), memory.iter_mut(), &control);
        Ok(())
    })?;
    Ok((seconds, bytes))
}
