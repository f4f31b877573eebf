//! The oracle of `orthogonal_gradient`.

use super::Projection;
use crate::ops::update::Segment;

pub(super) fn project(segments: &[Segment], weights: &[f64], gradients: &mut [f64]) {
    for segment in segments {
        let range = segment.offset..segment.offset + segment.len;
        let (w, g) = (&weights[range.clone()], &mut gradients[range]);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let Projection { scale, along } = Projection::of([dot(g, g), dot(w, w), dot(g, w)]);
        for (g, w) in g.iter_mut().zip(w) {
            *g = scale * (*g - along * w);
        }
    }
}
