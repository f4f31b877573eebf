//! What the clocks will show later, from what they show now, with intervals.

use super::regression::{Interval, line};
use super::series::{Point, Series};

/// Points of a series that estimates look at: the later half of a run says more of what comes than its beginning.
fn tail(series: &Series) -> &[Point] {
    let count = series.points().len();
    series.last((count / 2).max(count.min(4)))
}

/// Growth of a margin, the gap-growth condition: `margin(t) >= margin(0) + rate t`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Per step.
    pub per_step: Interval,
    /// Per second.
    pub per_second: Interval,
}

impl Growth {
    /// Whether the margin grows beyond doubt: then the cross-entropy of K classes is at most
    /// `(K - 1) exp(-margin)`, and falls at least exponentially.
    pub fn holds(&self) -> bool {
        self.per_step.low > 0.0
    }
}

/// The growth of a margin over the later half of its series; `None` for fewer than three points.
pub fn growth(margin: &Series) -> Option<Growth> {
    let points = tail(margin);
    Some(Growth {
        per_step: line(points.iter().map(|p| (p.step, p.value)))?.slope,
        per_second: line(points.iter().map(|p| (p.seconds, p.value)))?.slope,
    })
}

/// When a quantity will be at a level, in seconds of training from the last review on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Eta {
    /// The level.
    pub level: f64,
    /// At the earliest.
    pub early: f64,
    /// At the latest; `None` if the interval of the rate holds zero, so that it may never be.
    pub late: Option<f64>,
}

/// When a positive quantity that falls will be at `level`. Two laws are fitted to the later half of the series: exponential
/// decay, and a power of time; the range spans both with their intervals. `None` for fewer than three points, or where
/// both laws say that it does not fall.
pub fn eta(series: &Series, level: f64) -> Option<Eta> {
    let points = tail(series);
    let now = points.last()?;
    if !(now.value > level && level > 0.0) {
        return None;
    }
    // How far the logarithm has to fall.
    let way = (now.value / level).ln();
    let exponential = line(points.iter().map(|p| (p.seconds, p.value.ln())))?.slope.scaled(-1.0);
    let seconds = |rate: f64| if rate > 0.0 { way / rate } else { f64::INFINITY };
    let mut ends = vec![seconds(exponential.high), seconds(exponential.low)];
    if let Some(power) = line(points.iter().map(|p| (p.seconds.ln(), p.value.ln()))) {
        let power = power.slope.scaled(-1.0);
        let seconds = |rate: f64| match rate > 0.0 {
            true => now.seconds * ((way / rate).exp() - 1.0),
            false => f64::INFINITY,
        };
        ends.extend([seconds(power.high), seconds(power.low)]);
    }
    let early = ends.iter().copied().fold(f64::INFINITY, f64::min);
    let late = ends.iter().copied().fold(0.0, f64::max);
    let late = late.is_finite().then_some(late);
    early.is_finite().then_some(Eta { level, early, late })
}

/// How the end of a fall goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// The interval of theta holds 1/2, or lies below: no slower than an exponential as far as can be told.
    Exponential,
    /// The interval of theta lies above 1/2: a power of time, `t^(-1 / (2 theta - 1))`.
    Polynomial,
}

impl Law {
    /// As reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Law::Exponential => "exponential",
            Law::Polynomial => "polynomial",
        }
    }
}

/// The tail exponent theta of a gap, `|d gap / dt| ~ gap^(2 theta)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TailExponent {
    /// The exponent.
    pub theta: Interval,
    /// Differences that it was fitted to.
    pub points: usize,
}

impl TailExponent {
    /// Polynomial only if the interval excludes the exponential case, by more than averages and differences bend it.
    pub fn law(&self) -> Law {
        if self.theta.low > 0.5 + BENT { Law::Polynomial } else { Law::Exponential }
    }
}

/// How far averages over windows, and differences for derivatives, move theta: an exact exponential in windows of a thirtieth of
/// the time before them has 0.5007.
const BENT: f64 = 0.005;

/// Differences that a tail exponent is fitted to, at most.
const DIFFERENCES: usize = 24;

/// The tail exponent of a gap that falls towards zero: the slope of `log |d gap / d step|` against `log gap` is 2 theta. Rates
/// are taken between points where the gap has fallen by equal factors, so that noise does not weigh more where points lie
/// close; each is set against the logarithmic mean of its ends, which is exact for an exponential.
///
/// `None` where the gap fell by less than a factor of e, or through fewer than four such points.
pub fn tail_exponent(gap: &Series) -> Option<TailExponent> {
    let points: Vec<Point> = gap.points().iter().copied().filter(|p| p.value > 0.0).collect();
    let (first, last) = (points.first()?, points.last()?);
    let way = (first.value / last.value).ln();
    if way < 1.0 {
        return None;
    }
    let factor = (way / DIFFERENCES as f64).exp();
    let mut kept = vec![*first];
    for point in &points[1..] {
        let before = kept[kept.len() - 1];
        if before.value / point.value >= factor {
            kept.push(*point);
        }
    }
    let rates = kept.windows(2).map(|two| {
        let fall = two[0].value - two[1].value;
        let rate = fall / (two[1].step - two[0].step);
        let mean = fall / (two[0].value / two[1].value).ln();
        (mean.ln(), rate.ln())
    });
    let points = kept.len() - 1;
    (points >= 3)
        .then(|| line(rates))?
        .map(|line| TailExponent { theta: line.slope.scaled(0.5), points })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn series(count: u32, value: impl Fn(f64) -> f64) -> Series {
        Series::new((1..=count).map(|i| {
            let step = f64::from(i) * 10.0;
            Point { step, seconds: step / 100.0, value: value(step) }
        }))
    }

    #[test]
    fn growth_has_its_rate_in_both_units() {
        let found = growth(&series(12, |step| 1.0 + 0.25 * step)).expect("points");
        assert!(
            (found.per_step.value - 0.25).abs() < 1e-9
                && (found.per_second.value - 25.0).abs() < 1e-7
        );
        assert!(found.holds());
        let flat = growth(&series(12, |step| (step / 10.0 % 2.0) - 0.5)).expect("points");
        assert!(!flat.holds(), "{flat:?}");
        assert_eq!(growth(&series(2, |step| step)), None);
    }

    #[test]
    fn the_time_to_a_level_lies_in_its_range() {
        // Exponential: 1 s for a factor of e.
        let exponential = series(40, |step| (-step / 100.0).exp());
        let found = eta(&exponential, (-6f64).exp()).expect("it falls");
        assert!(
            found.early <= 2.0 + 1e-6 && found.late.is_none_or(|late| late >= 2.0 - 1e-6),
            "{found:?}"
        );
        // A power of time: 1 / t falls from 1/4 to 1/40 in 36 s more.
        let power = series(40, |step| 100.0 / step);
        let found = eta(&power, 1.0 / 40.0).expect("it falls");
        assert!(
            found.early <= 36.0 && found.late.is_none_or(|late| late >= 36.0 - 1e-6),
            "{found:?}"
        );
        assert_eq!(eta(&series(10, |_| 1.0), 0.5), None, "does not fall");
        assert_eq!(eta(&exponential, 1.0), None, "is there already");
    }

    #[test]
    fn a_rate_that_may_be_zero_has_no_latest_time() {
        let mut random = Random::new(3, 0);
        let noise: Vec<f64> = (0..16).map(|_| f64::from(random.normal_pair()[0])).collect();
        let noisy =
            series(16, |step| (-step / 4000.0 + 0.1 * noise[(step / 10.0) as usize - 1]).exp());
        if let Some(found) = eta(&noisy, 0.5) {
            assert_eq!(found.late, None, "{found:?}");
        }
    }

    #[test]
    fn tails_are_told_apart() {
        let exponential = tail_exponent(&series(200, |step| (-step / 300.0).exp())).expect("fell");
        assert!((exponential.theta.value - 0.5).abs() < 1e-6, "{exponential:?}");
        assert_eq!(exponential.law(), Law::Exponential);
        // Gap ~ t^-1: 2 theta = 2; t^-2: 3/2.
        for (power, theta) in [(1.0, 1.0), (2.0, 0.75)] {
            let found = tail_exponent(&series(400, |step| step.powf(-power))).expect("fell");
            assert!((found.theta.value - theta).abs() < 0.02, "{power}: {found:?}");
            assert_eq!(found.law(), Law::Polynomial);
        }
        assert_eq!(tail_exponent(&series(50, |step| 1.0 - step / 2000.0)), None, "barely fell");
    }

    #[test]
    fn noise_does_not_make_an_exponential_polynomial() {
        let mut random = Random::new(5, 0);
        let mut called = 0;
        for _ in 0..200 {
            let noise: Vec<f64> = (0..200).map(|_| f64::from(random.normal_pair()[0])).collect();
            let noisy = series(200, |step| {
                (-step / 300.0 + 0.02 * noise[(step / 10.0) as usize - 1]).exp()
            });
            let found = tail_exponent(&noisy).expect("fell");
            called += usize::from(found.law() == Law::Polynomial);
        }
        // A one-sided 2.5 % of 200 are 5.
        assert!(called <= 14, "{called} of 200");
    }
}
