//! Reproducible random numbers on the host: initialisation and shuffling.
//!
//! SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014):
//! a counter and a mixing function, so that a stream is a pure function of its seed, and can be
//! taken up anywhere.

mod permutation;

pub use permutation::Permutation;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

/// What the counter is raised by: odd, so that it takes every value once.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    /// The stream number `stream` of that seed; streams of one seed are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        Random { state: mix(seed ^ mix(stream.wrapping_add(STEP))) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// This stream after `count` more calls of [`Random::bits`], at once.
    #[must_use]
    pub fn skip(&self, count: u64) -> Random {
        Random { state: self.state.wrapping_add(count.wrapping_mul(STEP)) }
    }

    /// Uniform in [0, 1), with 53 random bits; takes one number of the stream.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high); takes one number of the stream.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Two standard normal numbers; takes one number of the stream.
    #[inline]
    pub fn normal_pair(&mut self) -> [f32; 2] {
        normal_pair(self.bits())
    }

    /// Uniform below `bound`, without bias (Lemire, Fast Random Integer Generation in an Interval,
    /// 2019).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }
}

/// Layers of equal area under the normal density.
const LAYERS: usize = 1024;
/// Where the lowest layer's tail begins, so that the topmost layer ends where the density does.
const TAIL: f64 = 4.038_849_846_109_505;
/// Area of a layer, for the density exp(-x^2 / 2).
const AREA: f64 = 0.001_226_324_646_353_088;

/// Edges and densities there of the layers, the lowest first: layer `i` reaches from 0 to edge `i`,
/// and all of it up to edge `i + 1` is under the density. The lowest one's edge is where it would end
/// if its tail were part of its rectangle; its density is 0.
const fn layers() -> ([f64; LAYERS + 1], [f64; LAYERS + 1]) {
    let (mut edges, mut density) = ([0.0; LAYERS + 1], [0.0; LAYERS + 1]);
    edges[1] = TAIL;
    density[1] = exp(-0.5 * TAIL * TAIL);
    edges[0] = AREA / density[1];
    let mut layer = 1;
    while layer + 1 < LAYERS {
        density[layer + 1] = density[layer] + AREA / edges[layer];
        edges[layer + 1] = sqrt(-2.0 * ln(density[layer + 1]));
        layer += 1;
    }
    density[LAYERS] = 1.0;
    (edges, density)
}

struct Ziggurat {
    /// For each layer its edge over 2^21, and the next layer's edge.
    rows: [[f32; 2]; LAYERS],
    /// The density at the edges.
    density: [f64; LAYERS + 1],
}

static ZIGGURAT: Ziggurat = {
    let (edges, density) = layers();
    let mut rows = [[0.0; 2]; LAYERS];
    let mut layer = 0;
    while layer < LAYERS {
        rows[layer] = [(edges[layer] / (1u32 << 21) as f64) as f32, edges[layer + 1] as f32];
        layer += 1;
    }
    Ziggurat { rows, density }
};

/// Two standard normal numbers made of 64 random bits, by the ziggurat method (Marsaglia and Tsang,
/// The Ziggurat Method for Generating Random Variables, 2000), with the bits that choose the layer
/// apart from those of the place in it (Doornik, An Improved Ziggurat Method to Generate Normal
/// Random Samples, 2005): of the 32 bits of a number 10 are for the layer and 22 for place and sign.
/// The 0.3 % that need more take them from a stream that the bits start. Only sums, products, quotients
/// and comparisons: the same on every machine.
#[inline]
pub(crate) fn normal_pair(bits: u64) -> [f32; 2] {
    [normal(bits), normal(bits.rotate_left(32))]
}

/// Of the lower 32 bits; the others only matter where these do not suffice.
#[inline(always)]
fn normal(bits: u64) -> f32 {
    let (layer, x) = place(bits);
    if x.abs() < ZIGGURAT.rows[layer][1] { x } else { beyond(layer, x, bits) }
}

/// A layer, and a place in it.
#[inline(always)]
fn place(bits: u64) -> (usize, f32) {
    let layer = (bits % LAYERS as u64) as usize;
    (layer, (bits as i32 >> 10) as f32 * ZIGGURAT.rows[layer][0])
}

/// The number where place `x` of a layer is not surely under the density.
#[cold]
fn beyond(mut layer: usize, mut x: f32, bits: u64) -> f32 {
    let Ziggurat { rows, density } = &ZIGGURAT;
    // Not the stream itself: its next bits are those of the next numbers.
    let mut more = Random { state: mix(!bits) };
    loop {
        if layer == 0 {
            // Marsaglia, Generating a Variable from the Tail of the Normal Distribution, 1964.
            loop {
                let past = -ln(1.0 - more.unit()) / TAIL;
                if -2.0 * ln(1.0 - more.unit()) > past * past {
                    return ((TAIL + past) as f32).copysign(x);
                }
            }
        }
        let height = density[layer] + more.unit() * (density[layer + 1] - density[layer]);
        if height < exp(-0.5 * f64::from(x) * f64::from(x)) {
            return x;
        }
        (layer, x) = place(more.bits());
        if x.abs() < rows[layer][1] {
            return x;
        }
    }
}

/// exp(x) for x in [-9, 0], to some 1e-13 of it: the series at x/128, squared seven times.
const fn exp(x: f64) -> f64 {
    let x = x / 128.0;
    let squared = x * x;
    // Halves at a time, not term after term: the processor works on them at once.
    let low = (1.0 + x) + squared * (1.0 / 2.0 + x * (1.0 / 6.0));
    let high = (1.0 / 24.0 + x * (1.0 / 120.0))
        + squared * ((1.0 / 720.0 + x * (1.0 / 5040.0)) + squared * (1.0 / 40320.0));
    let mut power = low + squared * squared * high;
    let mut times = 0;
    while times < 7 {
        power *= power;
        times += 1;
    }
    power
}

/// ln(x) for normal x, to some 1e-16 of 1 or of itself: the exponent, and the series of
/// 2 artanh((m - 1) / (m + 1)) for the mantissa m in [0.75, 1.5).
const fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut mantissa = f64::from_bits(bits % (1 << 52) + (1023 << 52));
    if mantissa >= 1.5 {
        mantissa /= 2.0;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let (mut term, mut sum) = (23, 0.0);
    while term > 0 {
        sum = sum * s * s + 1.0 / term as f64;
        term -= 2;
    }
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * sum
}

/// The root of x in [0.01, 100]: Newton's method.
const fn sqrt(x: f64) -> f64 {
    let (mut root, mut rounds) = (x + 0.1, 0);
    while rounds < 16 {
        root = 0.5 * (root + x / root);
        rounds += 1;
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of standard normal numbers beyond ±4.038849846109505, from erfc.
    const BEYOND_TAIL: f64 = 5.371_393_460_685_52e-5;

    fn normals(random: &mut Random, n: u32) -> impl Iterator<Item = f64> {
        (0..n / 2).flat_map(|_| random.normal_pair()).map(f64::from)
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut random = Random::new(1, 0);
        let n = 4_000_000;
        let mut moments = [0.0; 6];
        for x in normals(&mut random, n) {
            let mut power = 1.0;
            for moment in &mut moments {
                power *= x;
                *moment += power / f64::from(n);
            }
        }
        // Of power k: its mean, and its variance, which is the mean of power 2k less the mean squared.
        let expected =
            [(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0), (0.0, 945.0), (15.0, 10170.0)];
        for (power, (found, (mean, variance))) in moments.iter().zip(expected).enumerate() {
            let bound = 4.0 * f64::sqrt(variance / f64::from(n));
            let error = (found - mean).abs();
            assert!(error <= bound, "power {}: {found}, off by {error} of {bound}", power + 1);
        }
        let n = 200_000;
        let mut counts = [0i32; 3];
        (0..n).for_each(|_| counts[random.below(3) as usize] += 1);
        assert!(counts.iter().all(|&c| (c - n / 3).abs() < 1500), "{counts:?}");
    }

    /// The integral of the normal density from `from` to `to`, by Simpson's rule.
    fn share(from: f64, to: f64) -> f64 {
        const STEPS: usize = 64;
        let h = (to - from) / STEPS as f64;
        let density = |i: usize| (-0.5 * (from + h * i as f64).powi(2)).exp();
        let weight = |i: usize| match i {
            0 | STEPS => 1.0,
            i if i % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let sum: f64 = (0..=STEPS).map(|i| weight(i) * density(i)).sum();
        sum * h / 3.0 / std::f64::consts::TAU.sqrt()
    }

    /// Counts in bins of 1/16, where layers' edges lie anywhere in them, by chi-square; and beyond
    /// the lowest layer's rectangle.
    #[test]
    fn normal_numbers_are_as_often_everywhere_as_they_should_be() {
        const BINS: usize = 120;
        let (n, width) = (4_000_000, 1.0 / 16.0);
        let low = -width * BINS as f64 / 2.0;
        let mut random = Random::new(9, 4);
        let mut counts = [0u32; BINS];
        let (mut tails, mut past) = ([0u32; 2], 0.0);
        for x in normals(&mut random, n) {
            if x.abs() > TAIL {
                tails[usize::from(x > 0.0)] += 1;
                past += x.abs() - TAIL;
            }
            if let Some(count) = counts.get_mut(((x - low) / width).floor() as usize) {
                *count += u32::from(x >= low);
            }
        }
        let chi_square: f64 = (0..BINS)
            .map(|bin| {
                let from = low + width * bin as f64;
                let expected = f64::from(n) * share(from, from + width);
                (f64::from(counts[bin]) - expected).powi(2) / expected
            })
            .sum();
        // Mean BINS, deviation sqrt(2 BINS) = 15.5.
        assert!((chi_square - BINS as f64).abs() <= 4.0 * 15.5, "{chi_square}");
        let expected = f64::from(n) * BEYOND_TAIL / 2.0;
        for tail in tails {
            let off = (f64::from(tail) - expected).abs();
            assert!(off <= 4.0 * expected.sqrt(), "{tails:?}, {expected} expected on each side");
        }
        // The mean beyond the edge is the density there over its share, less the edge; the deviation
        // is about as large.
        let mean =
            (-0.5 * TAIL * TAIL).exp() / std::f64::consts::TAU.sqrt() * 2.0 / BEYOND_TAIL - TAIL;
        let found = past / f64::from(tails[0] + tails[1]);
        let bound = 4.0 * mean / f64::from(tails[0] + tails[1]).sqrt();
        assert!((found - mean).abs() <= bound, "{found}, {mean} expected");
    }

    /// Layers of equal area that close at the density's top, from series that agree with the C
    /// library.
    #[test]
    fn the_ziggurat_has_equal_layers() {
        let (edges, density) = layers();
        for layer in 0..LAYERS {
            let area = edges[layer] * (density[layer + 1] - density[layer]);
            assert!((area / AREA - 1.0).abs() <= 1e-10, "layer {layer}: {area}");
            assert!(edges[layer] > edges[layer + 1]);
        }
        for layer in 1..LAYERS {
            let expected = (-0.5 * edges[layer].powi(2)).exp();
            assert!((density[layer] / expected - 1.0).abs() <= 1e-12, "layer {layer}");
        }
        let rest = TAIL * density[1] + BEYOND_TAIL / 2.0 * std::f64::consts::TAU.sqrt();
        assert!((rest / AREA - 1.0).abs() <= 1e-10, "the lowest layer: {rest}");
        for i in 1..=900 {
            let x = f64::from(-i) / 100.0;
            assert!((exp(x) / x.exp() - 1.0).abs() <= 1e-12, "exp({x})");
            let x = x.exp();
            assert!((ln(x) - x.ln()).abs() <= 1e-15 * (1.0 + x.ln().abs()), "ln({x})");
            let x = f64::from(i) / 50.0;
            assert!((sqrt(x) / x.sqrt() - 1.0).abs() <= 1e-15, "sqrt({x})");
        }
    }

    /// Of neighbours in the stream, and of numbers some places apart; and their squares.
    #[test]
    fn normal_numbers_do_not_depend_on_each_other() {
        let mut random = Random::new(2, 7);
        let n = 1_000_000;
        let numbers: Vec<f64> = normals(&mut random, n as u32 + 256).collect();
        for distance in [1, 2, 3, 16, 255, 256] {
            let pairs = || numbers[..n].iter().zip(&numbers[distance..]);
            let product: f64 = pairs().map(|(a, b)| a * b).sum::<f64>() / n as f64;
            // Deviations 1 and 2.
            let squares =
                pairs().map(|(a, b)| (a * a - 1.0) * (b * b - 1.0)).sum::<f64>() / n as f64;
            let bound = 4.0 / (n as f64).sqrt();
            assert!(product.abs() <= bound, "{distance} apart: {product}");
            assert!(squares.abs() <= 2.0 * bound, "squares {distance} apart: {squares}");
        }
    }

    /// What other machines must give too.
    #[test]
    fn known_answers() {
        let mut random = Random::new(11, 3);
        let sum: f64 = normals(&mut random, 10_000).sum();
        assert_eq!((random.bits(), sum.to_bits()), (12259222226472086770, 4637899790374457344));
    }

    #[test]
    fn skipping_is_drawing() {
        let mut random = Random::new(5, 2);
        let ahead = random.skip(1000).bits();
        for i in 0..1000 {
            match i % 3 {
                0 => _ = random.bits(),
                1 => _ = random.normal_pair(),
                _ => _ = random.unit(),
            }
        }
        assert_eq!(random.bits(), ahead);
    }

    #[test]
    fn streams_of_one_seed_differ() {
        assert_ne!(Random::new(7, 0).bits(), Random::new(7, 1).bits());
        assert_ne!(Random::new(7, 0).bits(), Random::new(8, 0).bits());
        assert_eq!(Random::new(7, 0).bits(), Random::new(7, 0).bits());
    }
}
