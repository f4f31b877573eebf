//! Ten training steps against PyTorch: losses and all weights, for every optimizer.
//!
//! The values and the program that made them are in `tests/pytorch/`.

mod common;

use twoclocks::Device;

fn check(name: &str) {
    common::trajectory::check(name, &Device::cpu(2).expect("cpu"));
}

#[test]
fn adamw() {
    check("adamw");
}

#[test]
fn adamw_with_gelu_and_layer_norm() {
    check("adamw_gelu_layer_norm");
}

#[test]
fn adamw_with_gradient_accumulation() {
    check("adamw_accumulate");
}

#[test]
fn sgd_with_nesterov_momentum_and_coupled_decay() {
    check("sgd_nesterov");
}

#[test]
fn sgd_with_clipping() {
    check("sgd_clip");
}

#[test]
fn lion() {
    check("lion");
}

#[test]
fn adamw_with_one_cycle_of_rate_and_beta1() {
    check("adamw_one_cycle");
}

#[test]
fn sgd_with_one_cycle_of_rate_and_momentum() {
    check("sgd_one_cycle");
}
