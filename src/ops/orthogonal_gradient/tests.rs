use super::*;
use crate::{Device, Store, Tape};

fn projected(weights: &[f32], gradients: &[f32], lens: &[usize]) -> Vec<f32> {
    let mut store = Store::new(&Device::cpu(2).unwrap());
    let regions = [weights, gradients].map(|values| store.upload("flat", values));
    let mut segments = Vec::new();
    let mut offset = 0;
    for &len in lens {
        segments.push(Segment { offset, len, rate_factor: 1.0, decay_factor: 0.0 });
        offset += len;
    }
    let mut tape = Tape::new(&store);
    let vars = regions.map(|r| tape.persistent("flat", r, 0, [weights.len()]).unwrap());
    orthogonal_gradient(&mut tape, vars[0], vars[1], &segments).unwrap();
    tape.compile(&store).unwrap().replay(&mut store).unwrap();
    let mut result = vec![0.0; weights.len()];
    store.read(regions[1], 0, &mut result).unwrap();
    result
}

#[test]
fn what_is_left_is_orthogonal_and_as_long_as_before() {
    let w: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.37).sin()).collect();
    let g: Vec<f32> = w.iter().enumerate().map(|(i, w)| w + (i as f32 * 1.7).cos()).collect();
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let found = projected(&w, &g, &[3000, 2000]);
    for range in [0..3000, 3000..5000] {
        let (w, g, h) = (&w[range.clone()], &g[range.clone()], &found[range.clone()]);
        let (length, wanted) = (dot(h, h).sqrt(), dot(g, g).sqrt());
        assert!(dot(g, w).abs() > 0.3 * wanted * dot(w, w).sqrt(), "there is something to remove");
        assert!(dot(h, w).abs() <= 1e-6 * wanted * dot(w, w).sqrt(), "{:e}", dot(h, w));
        assert!((length - wanted).abs() <= 1e-6 * wanted, "{length}, want {wanted}");
    }
}

/// Along the weights nothing is left, and rounding errors are not made as long as the gradient was.
#[test]
fn a_gradient_along_its_weights_vanishes() {
    let w: Vec<f32> = (1..100).map(|i| (i as f32 * 0.37).sin()).collect();
    let g: Vec<f32> = w.iter().map(|w| 3.0 * w).collect();
    let found = projected(&w, &g, &[98, 1]);
    assert!(found.iter().all(|h| h.abs() <= 1e-6), "{found:?}");
    assert!(projected(&w, &[f32::NAN; 99], &[98, 1]).iter().all(|h| h.is_nan()));
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let segment = |offset, len| Segment { offset, len, rate_factor: 1.0, decay_factor: 1.0 };
    let op = OrthogonalGradient { segments: [segment(0, 3), segment(4, 4)].into() };
    let refused = |inputs: &[TensorType], words: &str| {
        let error = op.infer(inputs).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    assert!(op.infer(&vec![TensorType::f32([8]); 2]).is_ok());
    refused(&vec![TensorType::f32([7]); 2], "segment 1 has elements 4 to 4 + 4");
    refused(&[TensorType::f32([8]), TensorType::f32([9])], "f32[8] and f32[9]");
    refused(&vec![TensorType::f32([2, 4]); 2], "f32[2, 4]");
}
