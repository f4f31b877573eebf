//! Gate flips: which ReLUs are open on a fixed set of samples, and how many have changed.

/// The pattern of a layer's gates on a fixed set of samples, a bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    words: Vec<u64>,
    count: usize,
}

impl Gates {
    /// The gates whose activation is above zero: activations `[samples, width]` of one layer or of several, one after the other.
    pub fn of(activations: &[f32]) -> Gates {
        let words = activations.chunks(64).map(|chunk| {
            chunk.iter().enumerate().fold(0, |word, (i, &x)| word | u64::from(x > 0.0) << i)
        });
        Gates { words: words.collect(), count: activations.len() }
    }

    /// How many gates there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Share of the gates that are not as they were in `before`, 0 to 1; NaN where there are none.
    ///
    /// # Panics
    /// If these are not as many.
    pub fn flips(&self, before: &Gates) -> f64 {
        assert_eq!(self.count, before.count, "gates of the same samples and layers");
        let flipped: u32 =
            self.words.iter().zip(&before.words).map(|(a, b)| (a ^ b).count_ones()).sum();
        f64::from(flipped) / self.count as f64
    }

    /// Share of the samples of which no gate has changed; a sample has `width` gates.
    ///
    /// # Panics
    /// If `before` has not as many gates, or they are no multiple of `width`.
    pub fn fixed_samples(&self, before: &Gates, width: usize) -> f64 {
        assert_eq!(self.count, before.count, "gates of the same samples and layers");
        assert!(width > 0 && self.count.is_multiple_of(width), "{width} gates a sample");
        let changed = |i: usize| (self.words[i / 64] ^ before.words[i / 64]) >> (i % 64) & 1 == 1;
        let samples = self.count / width;
        let fixed = (0..samples).filter(|s| !(s * width..(s + 1) * width).any(changed)).count();
        fixed as f64 / samples as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_are_counted_across_words() {
        let before: Vec<f32> = (0..150).map(|i| if i % 3 == 0 { 1.0 } else { 0.0 }).collect();
        let mut after = before.clone();
        for i in [0, 63, 64, 149] {
            after[i] = 1.0 - after[i];
        }
        let (a, b) = (Gates::of(&before), Gates::of(&after));
        assert!((b.flips(&a) - 4.0 / 150.0).abs() < 1e-12);
        assert_eq!(a.flips(&a), 0.0);
        // Samples of ten gates: 0, 6 and 14 have changed.
        assert!((b.fixed_samples(&a, 10) - 12.0 / 15.0).abs() < 1e-12);
        assert!(Gates::of(&[]).flips(&Gates::of(&[])).is_nan());
    }

    #[test]
    fn a_gate_is_open_above_zero_alone() {
        let closed = Gates::of(&[0.0, -0.0, -1.0, f32::NAN]);
        assert_eq!(closed, Gates::of(&[-1.0; 4]));
        assert_eq!(Gates::of(&[f32::MIN_POSITIVE, 0.0, 0.0, 0.0]).flips(&closed), 0.25);
    }
}
