//! The random numbers of this room: a stream that is a pure function of what it is for, a seed and
//! a counter.
//!
//! xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021) whose
//! state is filled by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators", 2014).

/// What a stream is for, so that one seed used in two places does not give the same numbers twice.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Split = 2,
    SyntheticCentres = 3,
    SyntheticRows = 4,
}

/// A xoshiro256++ stream.
pub(super) struct Random {
    state: [u64; 4],
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser: a bijection of 64-bit words.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(GAMMA);
    mix(*state)
}

impl Random {
    /// The stream of `(purpose, seed, counter)`. Under one purpose and seed, no two counters share
    /// a state: each absorbing step is a bijection of the word that it absorbs.
    pub(super) fn new(purpose: Purpose, seed: u64, counter: u64) -> Self {
        let mut key = 0u64;
        for word in [purpose as u64, seed, counter] {
            key = mix(key.wrapping_add(GAMMA) ^ word);
        }
        // SplitMix64 gives each word once in its period, so at most one of four draws is zero:
        // never all.
        Random { state: std::array::from_fn(|_| splitmix(&mut key)) }
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in `0..bound` without bias: Lemire, "Fast random integer generation in an interval",
    /// 2019.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        assert!(bound > 0, "a draw from an empty range");
        let mut draw = || (self.next_u64() >> 32) * u64::from(bound);
        let mut product = draw();
        if (product as u32) < bound {
            // 2^32 mod bound: the low words below it would favour some results by one draw in 2^32.
            let unfair = bound.wrapping_neg() % bound;
            while (product as u32) < unfair {
                product = draw();
            }
        }
        (product >> 32) as u32
    }

    /// Fisher-Yates: every permutation equally likely, as far as the generator's state reaches.
    pub(super) fn shuffle(&mut self, items: &mut [u32]) {
        assert!(u32::try_from(items.len()).is_ok(), "{} items to shuffle", items.len());
        for i in (1..items.len()).rev() {
            let j = self.below(i as u32 + 1) as usize;
            items.swap(i, j);
        }
    }

    /// Two independent standard normal values.
    pub(super) fn normal_pair(&mut self) -> [f32; 2] {
        crate::random::normal_pair(self.next_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that the authors' C programs print for these states.
    #[test]
    fn known_answers() {
        let mut random = Random { state: [1, 2, 3, 4] };
        let got: Vec<u64> = (0..5).map(|_| random.next_u64()).collect();
        let want = [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205u64];
        assert_eq!(got, want);
        let mut state = 1234567;
        let got: Vec<u64> = (0..3).map(|_| splitmix(&mut state)).collect();
        assert_eq!(got, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn below_is_uniform() {
        let mut random = Random::new(Purpose::Split, 7, 0);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[random.below(6) as usize] += 1;
        }
        // 10000 expected, standard deviation 91: six of them.
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 550), "{counts:?}");
        // Four words for every three results: without rejection, each multiple of 3 gets two of them.
        let low = (0..30_000).filter(|_| random.below(3 << 30).is_multiple_of(3)).count();
        assert!(low.abs_diff(10_000) < 490, "{low}");
    }

    #[test]
    fn streams_differ_by_purpose_seed_and_counter() {
        let mut first: Vec<u64> = [
            (Purpose::Split, 1, 0),
            (Purpose::Split, 0, 1),
            (Purpose::Split, 1, 1),
            (Purpose::SyntheticCentres, 1, 0),
            (Purpose::SyntheticRows, 1, 0),
        ]
        .map(|(p, s, c)| Random::new(p, s, c).next_u64())
        .to_vec();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 5);
    }

    #[test]
    fn normal_moments() {
        let mut random = Random::new(Purpose::SyntheticRows, 3, 0);
        let (mut sum, mut square, n) = (0.0, 0.0, 100_000);
        for x in (0..n / 2).flat_map(|_| random.normal_pair()).map(f64::from) {
            assert!(x.is_finite());
            sum += x;
            square += x * x;
        }
        let (mean, variance) = (sum / f64::from(n), square / f64::from(n));
        assert!(mean.abs() <= 0.02 && (variance - 1.0).abs() <= 0.03, "{mean} {variance}");
    }
}
