//! An operation from outside the crate: forward, gradient and CPU code, used in a net that trains.
//!
//! The operation is a "squared ReLU", y = max(x, 0)^2, with dx = 2 max(x, 0) dy.
//!
//! `cargo run --release --example 03_custom_operation`

use twoclocks::data::digits;
use twoclocks::device::Control;
use twoclocks::device::cpu::simd::{Kernel, Simd, dispatch, map1};
use twoclocks::device::cpu::{Launch, rows_per_chunk};
use twoclocks::nn::{Flatten, Forward, Linear, Module, Parameters};
use twoclocks::ops::{self, Activation, Cost, Rule, Site, Values, expect_f32, push_one};
use twoclocks::train::{TrainOptions, Trainer};
use twoclocks::{Device, Operation, Recorder, Result, TensorType, Var};

#[derive(Clone, Copy, Debug)]
struct SquaredRelu;

/// Records `y = max(x, 0)^2`.
fn squared_relu(tape: &mut dyn Recorder, x: Var) -> Result<Var> {
    push_one(tape, SquaredRelu, &[x])
}

impl Operation for SquaredRelu {
    fn name(&self) -> &'static str {
        "squared_relu"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        expect_f32(self.name(), inputs, 1)?;
        Ok(inputs.to_vec())
    }

    /// The oracle; it alone would be enough for the operation to run.
    fn naive(&self, inputs: &[Values], outputs: &mut [Values], _control: &Control) {
        for (y, &x) in outputs[0].data.iter_mut().zip(&inputs[0].data) {
            *y = x.max(0.0).powi(2);
        }
    }

    /// SIMD code for every instruction set, without any `unsafe`.
    fn cpu(&self, site: &Site<'_>) -> Option<Launch> {
        let (isa, elements) = (site.isa, site.inputs[0].elements());
        Some(Launch::new(isa.name()).rows(elements, rows_per_chunk(0.5), move |chunk| {
            dispatch(isa, Forwards { x: chunk.input_rows(0), y: chunk.output(0) });
        }))
    }

    /// The gradient is recorded from other operations, so it can be differentiated again.
    fn gradient(&self, rule: &mut Rule<'_>) -> Result<()> {
        let dy = rule.only_upstream()?;
        let positive = ops::relu(rule.tape, rule.inputs[0])?;
        let slope = ops::scale(rule.tape, positive, 2.0)?;
        let dx = ops::mul(rule.tape, slope, dy)?;
        rule.give(0, dx)
    }

    fn cost(&self, site: &Site<'_>) -> Cost {
        Cost::of(2.0 * site.inputs[0].elements() as f64, site)
    }
}

struct Forwards<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forwards<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        map1(
            s,
            self.x,
            self.y,
            #[inline(always)]
            |s, x| {
                let positive = s.max(x, s.zero());
                s.mul(positive, positive)
            },
        );
    }
}

struct Net {
    hidden: Linear,
    out: Linear,
}

impl Module for Net {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let x = Flatten.forward(pass, x)?;
        let x = self.hidden.forward(pass, x)?;
        let x = squared_relu(pass.tape, x)?;
        self.out.forward(pass, x)
    }
}

fn main() -> Result<()> {
    let data = digits::load()?;
    let mut parameters = Parameters::new();
    let net = Net {
        hidden: Linear::new(&mut parameters, "hidden", 64, 128, Activation::None)?,
        out: Linear::new(&mut parameters, "out", 128, 10, Activation::None)?,
    };
    let device = Device::cpu(0)?;
    let options = TrainOptions { batch: 32, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&device, Box::new(net), parameters, &data, options)?;
    let mut step = 0;
    for epoch in 0..20 {
        trainer.start_epoch(epoch)?;
        let mut offset = 0;
        while offset < trainer.rows() {
            step += 1;
            trainer.step(step, offset, 1e-3)?;
            offset += trainer.update_rows(offset);
        }
    }
    let review = trainer.review()?;
    println!("digits with squared ReLU: test accuracy {:.2} %", review.accuracy * 100.0);
    assert!(review.accuracy > 0.95, "the custom operation did not train");
    Ok(())
}
