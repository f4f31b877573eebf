//! What is refused at recording.

use super::*;

fn problem(targets: Targets, logits: TensorType, given: TensorType) -> String {
    let op = SoftmaxCrossEntropy { targets };
    op.infer(&[logits, given]).expect_err("does not fit").to_string()
}

#[test]
fn what_does_not_fit_is_refused_by_shape() {
    let labels = Targets::Labels { smoothing: 0.0 };
    let found = problem(labels, TensorType::f32([3, 4, 5]), TensorType::u32([3]));
    assert!(found.contains("f32[3, 4, 5] are not [rows, classes]"), "{found}");
    let found = problem(labels, TensorType::f32([3, 4]), TensorType::u32([4]));
    assert!(found.contains("are [3], not u32[4]"), "{found}");
    let found = problem(labels, TensorType::f32([3, 4]), TensorType::f32([3]));
    assert!(found.contains("input 1 is f32[3], not u32"), "{found}");
    for empty in [[0, 4], [4, 0]] {
        let found = problem(labels, TensorType::f32(empty), TensorType::u32([empty[0]]));
        assert!(found.contains("no mean"), "{found}");
    }
    let found =
        problem(Targets::Distributions, TensorType::f32([3, 4]), TensorType::f32([3, 5]));
    assert!(found.contains("are [3, 4], not f32[3, 5]"), "{found}");
    for smoothing in [-0.1, 1.1, f32::NAN] {
        let targets = Targets::Labels { smoothing };
        let found = problem(targets, TensorType::f32([3, 4]), TensorType::u32([3]));
        assert!(found.contains("from 0 to 1"), "{found}");
    }
}
