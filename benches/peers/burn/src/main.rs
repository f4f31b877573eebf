//! burn's training step: the Flex backend under Autodiff, `burn::optim::AdamW`.

#[path = "../../harness.rs"]
mod harness;

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, Param};
use burn::nn::{loss::CrossEntropyLossConfig, Linear};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::{activation::relu, backend::Backend, Int, Tensor, TensorData};

type Train = Autodiff<Flex>;

#[derive(Module, Debug)]
struct Net<B: Backend> {
    layers: Vec<Linear<B>>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = harness::options()?;
    let problem = options.problem()?;
    let device = Default::default();
    let data = |a: &harness::Array| TensorData::new(a.values.clone(), a.shape.clone());
    let mut batches: Vec<(Tensor<Train, 2>, Tensor<Train, 1, Int>)> = Vec::new();
    for (inputs, labels) in problem.inputs.iter().zip(&problem.labels) {
        let labels: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
        batches.push((Tensor::from_data(data(inputs), &device), Tensor::from_ints(&labels[..], &device)));
    }
    let layers = problem.layers.iter().map(|(weight, bias)| Linear {
        weight: Param::from_data(data(weight), &device),
        bias: Some(Param::from_data(data(bias), &device)),
    });
    let mut net = Some(Net::<Train> { layers: layers.collect() });
    let [lr, beta1, beta2, eps, decay] = harness::ADAMW;
    let mut optimizer = AdamWConfig::new()
        .with_beta_1(beta1 as f32)
        .with_beta_2(beta2 as f32)
        .with_epsilon(eps as f32)
        .with_weight_decay(decay as f32)
        .init();
    let cross_entropy = CrossEntropyLossConfig::new().init(&device);
    harness::measure(&options, &problem, "burn", "0.21.0", |batch| {
        let (inputs, labels) = &batches[batch];
        let current = net.take().ok_or("the last step failed")?;
        let mut h = inputs.clone();
        for (number, layer) in current.layers.iter().enumerate() {
            h = layer.forward(h);
            if number + 1 < current.layers.len() {
                h = relu(h);
            }
        }
        let loss = cross_entropy.forward(h, labels.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &current);
        net = Some(optimizer.step(lr, current, gradients));
        Ok(loss.into_scalar())
    })
}
