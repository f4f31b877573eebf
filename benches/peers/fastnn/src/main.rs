//! fastnn's training step: its `matmul_nt`, `cross_entropy` and `AdamW`.

#[path = "../../harness.rs"]
mod harness;

use fastnn::nn::Param;
use fastnn::optim::AdamW;
use fastnn::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = harness::options()?;
    let problem = options.problem()?;
    let tensor = |a: &harness::Array| Tensor::from_vec(a.values.clone(), &a.shape);
    let mut batches = Vec::new();
    for (inputs, labels) in problem.inputs.iter().zip(&problem.labels) {
        batches.push((tensor(inputs), labels.iter().map(|&label| label as usize).collect::<Vec<_>>()));
    }
    // Its linear layer keeps weights as [outputs, inputs].
    let transposed = |a: &harness::Array| {
        let (rows, columns) = (a.shape[0], a.shape[1]);
        let values = (0..rows * columns).map(|i| a.values[i % rows * columns + i / rows]).collect();
        Tensor::from_vec(values, &[columns, rows])
    };
    let layers: Vec<(Param, Param)> = (problem.layers.iter())
        .map(|(weight, bias)| (Param::new(transposed(weight)), Param::new(tensor(bias))))
        .collect();
    let parameters = layers.iter().flat_map(|(weight, bias)| [weight.clone(), bias.clone()]).collect();
    let [lr, beta1, beta2, eps, decay] = harness::ADAMW.map(|value| value as f32);
    let mut optimizer = AdamW::new(parameters, lr).betas(beta1, beta2).eps(eps).weight_decay(decay);
    harness::measure(&options, &problem, "fastnn", "0.3.3", |batch| {
        let (inputs, labels) = &batches[batch];
        let mut h = inputs.clone();
        for (number, (weight, bias)) in layers.iter().enumerate() {
            let bias = bias.tensor();
            let width = bias.shape()[0] as i64;
            h = h.matmul_nt(&weight.tensor()).add(&bias.reshape(&[1, width]));
            if number + 1 < layers.len() {
                h = h.relu();
            }
        }
        let loss = cross_entropy(&h, labels);
        optimizer.zero_grad();
        loss.backward();
        optimizer.step();
        Ok(loss.item())
    })
}
