//! candle's training step: `candle_nn::AdamW` over plain variables.

#[path = "../../harness.rs"]
mod harness;

use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = harness::options()?;
    let problem = options.problem()?;
    let tensor = |a: &harness::Array| Tensor::from_slice(&a.values, &a.shape[..], &Device::Cpu);
    let mut batches = Vec::new();
    for (inputs, labels) in problem.inputs.iter().zip(&problem.labels) {
        batches.push((tensor(inputs)?, Tensor::from_slice(labels, labels.len(), &Device::Cpu)?));
    }
    let mut layers = Vec::new();
    for (weight, bias) in &problem.layers {
        layers.push((Var::from_tensor(&tensor(weight)?)?, Var::from_tensor(&tensor(bias)?)?));
    }
    let variables = layers.iter().flat_map(|(weight, bias)| [weight.clone(), bias.clone()]).collect();
    let [lr, beta1, beta2, eps, weight_decay] = harness::ADAMW;
    let mut optimizer = AdamW::new(variables, ParamsAdamW { lr, beta1, beta2, eps, weight_decay })?;
    harness::measure(&options, &problem, "candle", "0.11.1", |batch| {
        let (inputs, labels) = &batches[batch];
        let mut h = inputs.clone();
        for (number, (weight, bias)) in layers.iter().enumerate() {
            h = h.matmul(weight)?.broadcast_add(bias)?;
            if number + 1 < layers.len() {
                h = h.relu()?;
            }
        }
        let loss = candle_nn::loss::cross_entropy(&h, labels)?;
        optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar::<f32>()?)
    })
}
