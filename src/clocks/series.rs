//! What falls over a run, as it was seen at reviews, and when it first fell to a level.

/// A quantity at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Updates done.
    pub step: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// The quantity.
    pub value: f64,
}

/// First moment at which a quantity was at or below a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The level.
    pub level: f64,
    /// Updates done, between two reviews by the logarithm of the quantity.
    pub step: f64,
    /// Seconds of training.
    pub seconds: f64,
}

/// A quantity over a run, in the order of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    points: Vec<Point>,
}

impl Series {
    /// Of these points; those whose value is not finite are left out.
    ///
    /// # Panics
    /// If steps do not rise.
    pub fn new(points: impl IntoIterator<Item = Point>) -> Series {
        let mut series = Series::default();
        points.into_iter().for_each(|point| series.push(point));
        series
    }

    /// Appends a point; one whose value is not finite is left out.
    ///
    /// # Panics
    /// If its step is not after the last one's.
    pub fn push(&mut self, point: Point) {
        if !point.value.is_finite() {
            return;
        }
        let before = self.points.last().map_or(f64::NEG_INFINITY, |last| last.step);
        assert!(point.step > before, "step {} after step {before}", point.step);
        self.points.push(point);
    }

    /// Its points.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The last `count` points, or as many as there are.
    pub fn last(&self, count: usize) -> &[Point] {
        &self.points[self.points.len().saturating_sub(count)..]
    }

    /// The first-hitting time of `level`: T = inf { t : value(t) <= level }. Between two points the quantity is
    /// taken to fall exponentially, or along a line where it is not above zero.
    pub fn first_hit(&self, level: f64) -> Option<Hit> {
        let at = self.points.iter().position(|point| point.value <= level)?;
        let after = self.points[at];
        let Some(before) = at.checked_sub(1).map(|i| self.points[i]) else {
            return Some(Hit { level, step: after.step, seconds: after.seconds });
        };
        let share = match after.value > 0.0 && level > 0.0 {
            true => (before.value / level).ln() / (before.value / after.value).ln(),
            false => (before.value - level) / (before.value - after.value),
        };
        let between = |from: f64, to: f64| from + share * (to - from);
        Some(Hit {
            level,
            step: between(before.step, after.step),
            seconds: between(before.seconds, after.seconds),
        })
    }

    /// The hits of all `levels` that were reached.
    pub fn hits(&self, levels: &[f64]) -> Vec<Hit> {
        levels.iter().filter_map(|&level| self.first_hit(level)).collect()
    }
}

/// Two levels a decade, 3 and 1 times a power of ten, from the first one below `from` on, `count` of them.
pub fn half_decades(from: f64, count: usize) -> Vec<f64> {
    if !(from.is_finite() && from > 0.0) {
        return Vec::new();
    }
    let mut decade = from.log10().floor() as i32 + 1;
    let mut levels = Vec::with_capacity(count);
    while levels.len() < count {
        for digit in [3.0, 1.0] {
            // A division is exact where a product with a power below one is not.
            let level = match decade {
                0.. => digit * 10f64.powi(decade),
                _ => digit / 10f64.powi(-decade),
            };
            if level < from && levels.len() < count {
                levels.push(level);
            }
        }
        decade -= 1;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        let point =
            |(i, &value): (usize, &f64)| Point { step: 10.0 * i as f64, seconds: i as f64, value };
        Series::new(values.iter().enumerate().map(point))
    }

    #[test]
    fn an_exponential_is_hit_between_reviews_where_it_is() {
        let falling: Vec<f64> = (0..8).map(|i| (-0.7 * f64::from(i)).exp()).collect();
        let series = series(&falling);
        for level in [0.9, 0.3, 0.05, 0.01] {
            let hit = series.first_hit(level).expect("hit");
            let seconds = -f64::ln(level) / 0.7;
            assert!((hit.seconds - seconds).abs() < 1e-9, "{level}: {hit:?}");
            assert!((hit.step - 10.0 * seconds).abs() < 1e-8);
        }
        assert_eq!(series.first_hit(1e-4), None, "not reached");
        assert_eq!(series.first_hit(2.0).map(|hit| hit.step), Some(0.0), "there from the start");
    }

    #[test]
    fn the_first_hit_counts_and_not_the_last_one() {
        let series = series(&[1.0, 0.2, 0.8, 0.1]);
        let hit = series.first_hit(0.5).expect("hit");
        assert!(hit.seconds < 1.0, "{hit:?}");
        assert_eq!(series.hits(&[0.5, 0.15, 0.01]).len(), 2);
    }

    #[test]
    fn a_quantity_that_reaches_zero_is_hit_along_a_line() {
        let hit = series(&[1.0, 0.0]).first_hit(0.25).expect("hit");
        assert!((hit.seconds - 0.75).abs() < 1e-12, "{hit:?}");
    }

    #[test]
    fn levels_are_round_numbers_below_the_start() {
        assert_eq!(half_decades(2.3, 5), [1.0, 0.3, 0.1, 0.03, 0.01]);
        assert_eq!(half_decades(1.0, 3), [0.3, 0.1, 0.03]);
        assert_eq!(half_decades(40.0, 3), [30.0, 10.0, 3.0]);
        assert!(half_decades(0.0, 3).is_empty() && half_decades(f64::NAN, 3).is_empty());
    }
}
