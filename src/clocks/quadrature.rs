//! The effective rank of a matrix whose singular values are not known one by one, by stochastic Lanczos quadrature.
//!
//! The effective rank needs `sum s` and `sum s ln s`: traces of functions of `W^T W`, that is means of `v^T f(W^T W) v` over
//! random vectors v. Golub and Kahan's recurrence turns each v into the bidiagonal matrix B of a few steps, and the singular
//! values of B, with weights from its right singular vectors, are the nodes of Gauss's rule for that form. With one more node,
//! at 0, it is Radau's. Gauss's rule finds `sum s` too large, Radau's too small. Near 0 the two err as the midpoint
//! and the trapezoidal rule do at a kink, so they are mixed as Simpson's rule mixes those, two parts to one, and how far
//! they are apart says how far the result can be trusted.
//!
//! Two things keep the number of vectors small. The largest singular values are given as they are, and the vectors look only at what is
//! beside them. And the sum of squares of the others is known: the weights are tilted, linearly in `s^2`, until they have it.
//!
//! Sources: Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017; Golub, Meurant, "Matrices, moments
//! and quadrature", 1994.

use super::spectrum::tridiagonal;

/// Below this share of all squares the others' sum of squares is rounding, and not what weights can be tilted by.
const LEAST_SHARE: f64 = 1e-4;
/// By how much a tilt may raise a weight at most, and lower it: beyond, the vectors say too little.
const TILT: [f64; 2] = [0.1, 4.0];

/// The upper bidiagonal matrix that a vector was turned into: as many elements on its diagonal as beside it.
#[derive(Clone, Debug, Default)]
pub struct Bidiagonal {
    /// On the diagonal.
    pub diagonal: Vec<f64>,
    /// Right of each of these.
    pub beside: Vec<f64>,
}

/// An effective rank as estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EstimatedRank {
    /// The estimate.
    pub value: f64,
    /// How far Gauss's and Radau's rule are apart, as a share of it.
    pub gap: f64,
}

/// A singular value and its weight.
type Node = (f64, f64);

/// `sum s` and `sum s ln s`.
#[derive(Clone, Copy)]
struct Sums(f64, f64);

impl Sums {
    fn of(nodes: impl Iterator<Item = Node>) -> Sums {
        nodes.filter(|&(s, _)| s > 0.0).fold(Sums(0.0, 0.0), |Sums(all, logs), (s, weight)| {
            Sums(all + weight * s, logs + weight * s * s.ln())
        })
    }

    fn rank(self) -> f64 {
        (self.0.ln() - self.1 / self.0).exp()
    }
}

/// The effective rank of a matrix with the singular values `known` and `others` more, all squares of which come to `squares`;
/// `forms` are of random vectors at right angles to the right singular vectors of the known ones. NaN if all
/// values are zero, or something is not finite.
pub fn estimated_rank(
    known: &[f64],
    others: usize,
    squares: f64,
    forms: &[Bidiagonal],
) -> EstimatedRank {
    let values = forms.iter().flat_map(|form| form.diagonal.iter().chain(&form.beside));
    if !(squares > 0.0 && squares.is_finite() && known.iter().chain(values).all(|x| x.is_finite()))
    {
        return EstimatedRank { value: f64::NAN, gap: 0.0 };
    }
    // In units in which the largest value is near 1.
    let unit = squares.sqrt();
    let share = others as f64 / forms.len() as f64;
    let rule = |last: bool| -> Vec<Node> {
        let nodes = forms.iter().flat_map(|form| nodes(form, last));
        nodes.map(|(s, weight)| (s / unit, weight * share)).collect()
    };
    let (gauss, radau) = (rule(false), rule(true));
    let known_squares: f64 = known.iter().map(|s| (s / unit).powi(2)).sum();
    let tilt = tilt(&gauss, others as f64, 1.0 - known_squares);
    let of_known = known.iter().map(|s| (s / unit, 1.0));
    let sums = |rule: &[Node]| {
        let tilted = rule.iter().map(|&(s, weight)| (s, weight * tilt(s)));
        Sums::of(of_known.clone().chain(tilted))
    };
    let (gauss, radau) = (sums(&gauss), sums(&radau));
    let mixed = Sums((2.0 * gauss.0 + radau.0) / 3.0, (2.0 * gauss.1 + radau.1) / 3.0);
    let most = (known.len() + others) as f64;
    let value = mixed.rank().clamp(1.0, most);
    EstimatedRank { value, gap: (gauss.rank() - radau.rank()).abs() / value }
}

/// By what the weight of a node is to be multiplied, for the sum of squares to be `squares` and the number of values to stay.
fn tilt(nodes: &[Node], others: f64, squares: f64) -> impl Fn(f64) -> f64 + use<> {
    let sum = |f: &dyn Fn(f64) -> f64| nodes.iter().map(|&(s, w)| w * f(s * s)).sum::<f64>();
    let mean = sum(&|x| x) / others;
    let spread = sum(&|x| (x - mean).powi(2));
    let slope = (squares - others * mean) / spread;
    let factor = move |s: f64| 1.0 + slope * (s * s - mean);
    let within = |s: f64| (TILT[0]..=TILT[1]).contains(&factor(s));
    let tells = squares > LEAST_SHARE && spread > 1e-9 * others * mean * mean;
    let possible = tells && nodes.iter().all(|&(s, _)| within(s));
    move |s| if possible { factor(s) } else { 1.0 }
}

/// The nodes of Gauss's rule, or with `last` of Radau's, which has one more, at 0.
fn nodes(form: &Bidiagonal, last: bool) -> Vec<Node> {
    let Bidiagonal { diagonal: a, beside: b } = form;
    let steps = a.len();
    let count = steps + usize::from(last);
    // B^T B.
    let above = |i: usize| if i > 0 { b[i - 1] } else { 0.0 };
    let on = |i: usize| if i < steps { a[i] } else { 0.0 };
    let mut d: Vec<f64> = (0..count).map(|i| on(i).powi(2) + above(i).powi(2)).collect();
    let mut e: Vec<f64> =
        (0..count).map(|i| if i + 1 < count { a[i] * b[i] } else { 0.0 }).collect();
    let mut first = vec![0.0; count];
    if let Some(first) = first.first_mut() {
        *first = 1.0;
    }
    tridiagonal(&mut d, &mut e, &mut first);
    d.into_iter().zip(first).map(|(d, first)| (d.max(0.0).sqrt(), first * first)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clocks::effective_rank;
    use crate::random::Random;

    /// Golub and Kahan's recurrence on a diagonal matrix, in f64.
    fn form(values: &[f64], random: &mut Random, steps: usize) -> Bidiagonal {
        let mut v: Vec<f64> =
            values.iter().map(|_| if random.bits() & 1 == 0 { -1.0 } else { 1.0 }).collect();
        let mut u = vec![0.0; v.len()];
        let mut beside = (v.len() as f64).sqrt();
        let mut form = Bidiagonal::default();
        let unit = |x: &mut [f64]| {
            let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            x.iter_mut().for_each(|x| *x /= norm);
            norm
        };
        unit(&mut v);
        for step in 0..steps {
            let along = if step > 0 { beside } else { 0.0 };
            u = values.iter().zip(&v).zip(&u).map(|((s, v), u)| s * v - along * u).collect();
            let diagonal = unit(&mut u);
            v = values.iter().zip(&u).zip(&v).map(|((s, u), v)| s * u - diagonal * v).collect();
            beside = unit(&mut v);
            form.diagonal.push(diagonal);
            form.beside.push(beside);
        }
        form
    }

    fn estimate(values: &[f64], known: usize, steps: usize) -> EstimatedRank {
        let mut random = Random::new(3, 0);
        let forms: Vec<_> = (0..16).map(|_| form(&values[known..], &mut random, steps)).collect();
        let squares = values.iter().map(|s| s * s).sum();
        estimated_rank(&values[..known], values.len() - known, squares, &forms)
    }

    #[test]
    fn the_rules_bracket_the_sum() {
        // Values from 1 down to 0, as those of a square random matrix are near 0.
        let values: Vec<f64> = (0..400).map(|i| 1.0 - f64::from(i) / 400.0).collect();
        let mut random = Random::new(5, 0);
        let form = form(&values, &mut random, 6);
        // A vector of signs has the same part in each direction of a diagonal matrix: the mean of f is its form.
        let exact = values.iter().sum::<f64>() / 400.0;
        let mean = |last| nodes(&form, last).iter().map(|(s, weight)| s * weight).sum::<f64>();
        let (gauss, radau) = (mean(false), mean(true));
        assert!(radau < exact && exact < gauss, "{radau} {exact} {gauss}");
        let simpson = (2.0 * gauss + radau) / 3.0;
        assert!((simpson - exact).abs() < 0.1 * (gauss - radau), "{radau} {exact} {gauss}");
        let squares: f64 = nodes(&form, true).iter().map(|(s, weight)| s * s * weight).sum();
        let wanted = values.iter().map(|s| s * s).sum::<f64>() / 400.0;
        assert!((squares - wanted).abs() < 1e-9, "squares are found exactly: {squares} {wanted}");
    }

    #[test]
    fn estimates_are_those_of_the_values() {
        let flat: Vec<f64> = (0..500).map(|i| 2.0 - 1.9 * f64::from(i) / 500.0).collect();
        let peaks = |i: i32| 30.0 * f64::exp(-f64::from(i) / 5.0);
        let trained: Vec<f64> = (0..16).map(peaks).chain(flat.iter().copied()).collect();
        for (values, known, bound) in [(&flat, 0, 0.01), (&flat, 16, 0.01), (&trained, 16, 0.01)] {
            let found = estimate(values, known, 8);
            let exact = effective_rank(values);
            let error = found.value / exact - 1.0;
            assert!(error.abs() < bound, "{known}: {found:?}, exact {exact}");
            assert!(found.gap < 0.05, "{found:?}");
        }
    }

    /// A value of 1 among those near 0 would be missed or seen twice, were the sum of squares not known.
    #[test]
    fn weights_are_tilted_to_the_sum_of_squares() {
        let nodes = [(0.1, 50.0), (0.3, 30.0), (0.5, 20.0)];
        let squares = 7.0;
        let factor = tilt(&nodes, 100.0, squares);
        let sum = |power: i32| {
            nodes.iter().map(|&(s, w): &Node| w * factor(s) * s.powi(power)).sum::<f64>()
        };
        assert!((sum(0) - 100.0).abs() < 1e-9 && (sum(2) - squares).abs() < 1e-9);
        // Too far, or nothing to tilt by: as they were.
        assert_eq!(tilt(&nodes, 100.0, 25.0)(0.5), 1.0);
        assert_eq!(tilt(&nodes[..1], 50.0, 0.6)(0.1), 1.0);
    }

    #[test]
    fn nothing_and_what_is_not_finite_have_no_rank() {
        let form = |x| Bidiagonal { diagonal: vec![x, 1.0], beside: vec![0.5, 0.0] };
        assert!(estimated_rank(&[1.0], 5, 4.0, &[form(1.0)]).value.is_finite());
        for (known, squares, x) in
            [(f64::NAN, 4.0, 1.0), (1.0, f64::NAN, 1.0), (1.0, 4.0, f64::NAN)]
        {
            let found = estimated_rank(&[known], 5, squares, &[form(x)]);
            assert!(found.value.is_nan() && found.gap == 0.0, "{found:?}");
        }
        assert!(estimated_rank(&[0.0], 5, 0.0, &[Bidiagonal::default()]).value.is_nan());
        // All of it in the known values: dead forms add nothing.
        let dead = Bidiagonal { diagonal: vec![0.0; 4], beside: vec![0.0; 4] };
        let found = estimated_rank(&[2.0, 2.0], 30, 8.0, &[dead]);
        assert!((found.value - 2.0).abs() < 1e-12, "{found:?}");
    }
}
