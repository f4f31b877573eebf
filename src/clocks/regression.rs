//! A straight line through points, with the interval of its slope.

/// Quantiles of Student's t at 0.975, for 1 to 5 degrees of freedom; from 6 on the expansion below is
/// exact to 0.1 %. Source: Abramowitz, Stegun, "Handbook of mathematical functions", table 26.10, 26.7.5.
const FEW: [f64; 5] = [12.706, 4.303, 3.182, 2.776, 2.571];
/// The same of the normal distribution.
const NORMAL: f64 = 1.959_964;

/// Half the width of a 95 % interval, in standard errors.
fn student(freedom: usize) -> f64 {
    if let Some(&few) = freedom.checked_sub(1).and_then(|i| FEW.get(i)) {
        return few;
    }
    let (z, nu) = (NORMAL, freedom as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / nu + second / nu.powi(2) + third / nu.powi(3)
}

/// A number with the 95 % interval around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// The estimate.
    pub value: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether the interval holds `value`.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// All three times `factor`.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Interval {
        let Interval { low, value, high } = self;
        let (low, high) = if factor < 0.0 { (high, low) } else { (low, high) };
        Interval { low: low * factor, value: value * factor, high: high * factor }
    }
}

/// A least-squares line `y = intercept + slope x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// y at x = 0.
    pub intercept: f64,
    /// Change of y with x. Its interval takes the errors of y as independent: those of a training run are not
    /// wholly so, and the true interval is somewhat wider.
    pub slope: Interval,
    /// Root mean square of what is left, with n - 2 degrees of freedom.
    pub residual: f64,
    /// Points.
    pub points: usize,
}

/// The line through points (x, y); those that are not finite are left out. `None` for fewer than three, or if
/// all x are the same.
pub fn line(points: impl IntoIterator<Item = (f64, f64)>) -> Option<Line> {
    let points: Vec<(f64, f64)> =
        points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let n = points.len();
    if n < 3 {
        return None;
    }
    let count = n as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / count;
    let xx: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    let xy: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    if xx <= 0.0 {
        return None;
    }
    let slope = xy / xx;
    let intercept = mean_y - slope * mean_x;
    let left: f64 = points.iter().map(|p| (p.1 - intercept - slope * p.0).powi(2)).sum();
    let residual = (left / (count - 2.0)).sqrt();
    let width = student(n - 2) * residual / xx.sqrt();
    let slope = Interval { low: slope - width, value: slope, high: slope + width };
    Some(Line { intercept, slope, residual, points: n })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Abramowitz, Stegun, table 26.10.
        for (freedom, quantile) in
            [(1, 12.706), (6, 2.447), (8, 2.306), (10, 2.228), (30, 2.042), (120, 1.980)]
        {
            let found = student(freedom);
            assert!((found - quantile).abs() < 2e-3, "{freedom}: {found}");
        }
    }

    #[test]
    fn an_exact_line_is_found_with_an_interval_of_no_width() {
        let found = line((0..5).map(|x| (f64::from(x), 3.0 - 2.0 * f64::from(x)))).expect("a line");
        assert!((found.slope.value + 2.0).abs() < 1e-12 && (found.intercept - 3.0).abs() < 1e-12);
        assert!(found.slope.high - found.slope.low < 1e-9 && found.points == 5);
        assert_eq!(line([(0.0, 1.0), (1.0, 2.0)]), None, "two points have no interval");
        assert_eq!(line([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None, "all at one place");
        assert_eq!(line([(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)]), None, "two that are finite");
    }

    #[test]
    fn the_interval_holds_the_slope_in_95_of_100_draws() {
        let mut random = Random::new(11, 0);
        let (mut held, draws) = (0, 2000);
        for _ in 0..draws {
            let points: Vec<(f64, f64)> = (0..8)
                .map(|x| (f64::from(x), 0.5 * f64::from(x) + f64::from(random.normal_pair()[0])))
                .collect();
            held += usize::from(line(points).expect("a line").slope.contains(0.5));
        }
        let share = held as f64 / f64::from(draws);
        // Five standard deviations of a share of 2000 draws.
        assert!((share - 0.95).abs() < 0.025, "{share}");
    }
}
