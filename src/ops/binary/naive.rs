//! The oracle of elementwise arithmetic.

use super::Kind;
use crate::ops::Values;
use crate::ops::layout::broadcast_index;

pub(super) fn binary(kind: Kind, a: &Values, b: &Values, y: &mut Values) {
    let shape = &y.tensor_type.shape;
    for (i, y) in y.data.iter_mut().enumerate() {
        let a = a.data[broadcast_index(i, &a.tensor_type.shape, shape)];
        let b = b.data[broadcast_index(i, &b.tensor_type.shape, shape)];
        *y = match kind {
            Kind::Add => a + b,
            Kind::Sub => a - b,
            Kind::Mul => a * b,
            Kind::Div => a / b,
            Kind::Equal => f64::from(a == b),
        };
    }
}
