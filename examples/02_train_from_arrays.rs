//! An MLP as a plain struct, trained on arrays: two interleaved spirals.
//!
//! `cargo run --release --example 02_train_from_arrays`

use twoclocks::data::Dataset;
use twoclocks::nn::{Forward, Linear, Module, Parameters};
use twoclocks::ops::Activation;
use twoclocks::optim::{Anneal, Position, Schedule};
use twoclocks::train::{TrainOptions, Trainer};
use twoclocks::{Device, Result, Var};

/// The model: any struct of layers.
struct Net {
    hidden: Linear,
    middle: Linear,
    out: Linear,
}

impl Net {
    fn new(parameters: &mut Parameters) -> Result<Net> {
        Ok(Net {
            hidden: Linear::new(parameters, "hidden", 2, 64, Activation::Relu)?,
            middle: Linear::new(parameters, "middle", 64, 64, Activation::Relu)?,
            out: Linear::new(parameters, "out", 64, 2, Activation::None)?,
        })
    }
}

impl Module for Net {
    fn forward(&self, pass: &mut Forward<'_>, x: Var) -> Result<Var> {
        let x = pass.scoped("hidden", |pass| self.hidden.forward(pass, x))?;
        let x = pass.scoped("middle", |pass| self.middle.forward(pass, x))?;
        pass.scoped("out", |pass| self.out.forward(pass, x))
    }
}

/// Points on two spirals, [rows, 2], and which spiral each is on.
fn spirals(rows: usize) -> (Vec<f32>, Vec<u32>) {
    let mut points = Vec::with_capacity(2 * rows);
    let mut labels = Vec::with_capacity(rows);
    for row in 0..rows {
        let label = row % 2;
        let along = (row / 2) as f32 / (rows / 2) as f32;
        let angle = along * 3.0 * std::f32::consts::PI + label as f32 * std::f32::consts::PI;
        let radius = 0.2 + along;
        points.extend([radius * angle.cos(), radius * angle.sin()]);
        labels.push(label as u32);
    }
    (points, labels)
}

fn main() -> Result<()> {
    let (points, labels) = spirals(2000);
    let data = Dataset::from_arrays(points, 2, labels, 2)?.split(0.2, 7)?;

    let mut parameters = Parameters::new();
    let net = Net::new(&mut parameters)?;
    println!("{} parameters", parameters.count());

    let device = Device::cpu(0)?;
    let options = TrainOptions { batch: 64, seed: 1, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&device, Box::new(net), parameters, &data, options)?;

    let epochs = 30;
    let total_steps = Some(epochs * trainer.steps_per_epoch());
    let schedule = Schedule::OneCycle {
        pct_start: 0.3,
        div: 25.0,
        final_div: 1e4,
        anneal: Anneal::Cos,
        momentum: None,
    };
    let mut step = 0;
    for epoch in 0..epochs {
        trainer.start_epoch(epoch)?;
        let mut offset = 0;
        while offset < trainer.rows() {
            let position = Position { step, total_steps, progress: 0.0 };
            step += 1;
            trainer.step(step, offset, schedule.rate(1e-2, position))?;
            offset += trainer.update_rows(offset);
        }
    }
    let review = trainer.review()?;
    println!(
        "test loss {:.4}, accuracy {:.2} %, margin {:.2}",
        review.loss,
        review.accuracy * 100.0,
        review.margin
    );
    assert!(review.accuracy > 0.95, "the spirals were not learned");
    Ok(())
}
