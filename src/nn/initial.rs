//! Starting values of parameters.

use crate::random::Random;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How a parameter starts. `fan_in` and `fan_out` are the inputs and outputs of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Initial {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in ±1/sqrt(fan_in): what PyTorch's `nn.Linear` starts with, weights and biases.
    FanIn,
    /// Normal with variance 2/fan_in, for ReLU (He et al. 2015, arXiv:1502.01852).
    KaimingNormal,
    /// Uniform with variance 2/fan_in.
    KaimingUniform,
    /// Normal with variance 2/(fan_in + fan_out) (Glorot and Bengio 2010).
    XavierNormal,
    /// Uniform with variance 2/(fan_in + fan_out).
    XavierUniform,
    /// Normal with this standard deviation.
    Normal(f32),
}

impl Initial {
    /// Fills `values` with starting values: each takes the number of the stream that its place says, so
    /// that parts are filled at the same time.
    pub fn fill(self, values: &mut [f32], fan_in: usize, fan_out: usize, random: &Random) {
        let (fan_in, fan_out) = (fan_in.max(1) as f64, fan_out.max(1) as f64);
        match self {
            Initial::Zeros => values.fill(0.0),
            Initial::Ones => values.fill(1.0),
            Initial::KaimingNormal => normal(values, (2.0 / fan_in).sqrt(), random),
            Initial::XavierNormal => normal(values, (2.0 / (fan_in + fan_out)).sqrt(), random),
            Initial::Normal(deviation) => normal(values, f64::from(deviation), random),
            Initial::FanIn => uniform(values, fan_in.sqrt().recip(), random),
            Initial::KaimingUniform => uniform(values, (6.0 / fan_in).sqrt(), random),
            Initial::XavierUniform => uniform(values, (6.0 / (fan_in + fan_out)).sqrt(), random),
        }
    }
}

/// Values that one thread fills at a time; even.
const PART: usize = 1 << 15;

/// Two values take a number of the stream.
fn normal(values: &mut [f32], deviation: f64, random: &Random) {
    let deviation = deviation as f32;
    values.par_chunks_mut(PART).enumerate().for_each(|(part, values)| {
        let mut random = random.skip((part * PART / 2) as u64);
        let (pairs, last) = values.as_chunks_mut::<2>();
        pairs.iter_mut().for_each(|pair| *pair = random.normal_pair().map(|x| deviation * x));
        last.iter_mut().for_each(|value| *value = deviation * random.normal_pair()[0]);
    });
}

/// A value takes a number of the stream.
fn uniform(values: &mut [f32], bound: f64, random: &Random) {
    values.par_chunks_mut(PART).enumerate().for_each(|(part, values)| {
        let mut random = random.skip((part * PART) as u64);
        values.iter_mut().for_each(|value| *value = random.uniform(-bound, bound) as f32);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variances_are_as_stated() {
        let (fan_in, fan_out) = (300, 100);
        let mut values = vec![0f32; fan_in * fan_out];
        for (initial, variance) in [
            (Initial::KaimingNormal, 2.0 / 300.0),
            (Initial::KaimingUniform, 2.0 / 300.0),
            (Initial::XavierNormal, 2.0 / 400.0),
            (Initial::XavierUniform, 2.0 / 400.0),
            (Initial::FanIn, 1.0 / 900.0),
            (Initial::Normal(0.02), 4e-4),
        ] {
            initial.fill(&mut values, fan_in, fan_out, &Random::new(3, 1));
            let n = values.len() as f64;
            let found = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
            assert!((found / variance - 1.0).abs() < 0.03, "{initial:?}: {found} for {variance}");
        }
    }

    /// The parts continue the stream.
    #[test]
    fn parts_do_not_show() {
        let random = Random::new(4, 9);
        let mut values = vec![0f32; 3 * PART + 77];
        for initial in [Initial::Normal(0.5), Initial::FanIn] {
            initial.fill(&mut values, 16, 4, &random);
            let mut serial = random.clone();
            let mut expected: Vec<f32> = match initial {
                Initial::FanIn => {
                    values.iter().map(|_| serial.uniform(-0.25, 0.25) as f32).collect()
                }
                _ => values.chunks(2).flat_map(|_| serial.normal_pair()).map(|x| 0.5 * x).collect(),
            };
            expected.truncate(values.len());
            assert!(values == expected, "{initial:?}");
        }
    }
}
