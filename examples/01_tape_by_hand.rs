//! A tape by hand: record y = tanh(x W + b), differentiate, replay with new values, and take a
//! gradient of a gradient.
//!
//! `cargo run --release --example 01_tape_by_hand`

use twoclocks::ops::{self, Activation};
use twoclocks::{Device, Result, Store, Tape};

fn main() -> Result<()> {
    let device = Device::cpu(0)?;
    let mut store = Store::new(&device);

    // Weights outlive the recording: they live in a region of the store.
    let weights = store.upload("w", &[0.5f32, -0.25, 0.75, 1.0, -0.5, 0.125]);
    let biases = store.upload("b", &[0.1f32, -0.1]);

    let mut tape = Tape::new(&store);
    let x = tape.input("x", [4, 3])?;
    let target = tape.input("target", [4, 2])?;
    let w = tape.persistent("w", weights, 0, [3, 2])?;
    let b = tape.persistent("b", biases, 0, [2])?;
    let y = ops::linear(&mut tape, x, w, Some(b), Activation::Tanh)?;
    let loss = ops::mse(&mut tape, y, target)?;
    let gradients = tape.backward(loss, &[w, b])?;
    tape.output(loss)?;
    for &gradient in &gradients {
        tape.output(gradient)?;
    }

    // Compiled once: the order of the nodes and every byte of memory are fixed now.
    let mut step = tape.compile(&store)?;
    println!("{} nodes, {} bytes of arena", step.nodes().len(), step.memory().arena_bytes);
    step.write(target, &[0.0f32; 8])?;
    for round in 0..3 {
        let values: Vec<f32> = (0..12).map(|i| ((i * 7 + round * 5) % 11) as f32 / 11.0).collect();
        step.write(x, &values)?;
        step.replay(&mut store)?;
        println!("loss {:?}  dw {:?}", step.read(loss)?, step.read(gradients[0])?);
    }

    // Gradients are recorded operations, so they have gradients: the second derivative of x^3.
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [3])?;
    let square = ops::mul(&mut tape, x, x)?;
    let cube = ops::mul(&mut tape, square, x)?;
    let sum = ops::sum_all(&mut tape, cube)?;
    let first = tape.backward(sum, &[x])?[0];
    let first_sum = ops::sum_all(&mut tape, first)?;
    let second = tape.backward(first_sum, &[x])?[0];
    tape.output(first)?;
    tape.output(second)?;
    let mut derivatives = tape.compile(&store)?;
    derivatives.write(x, &[1.0f32, 2.0, 3.0])?;
    derivatives.replay(&mut store)?;
    println!("3x^2 = {:?}, 6x = {:?}", derivatives.read(first)?, derivatives.read(second)?);
    assert_eq!(derivatives.read(first)?, [3.0, 12.0, 27.0]);
    assert_eq!(derivatives.read(second)?, [6.0, 12.0, 18.0]);
    Ok(())
}
