//! The two clocks against theory, on the crate's own kernels: deep linear nets, trained for seconds.

use twoclocks::experiments::deep_linear::{
    Method, Settings, fast, increments, law, slow, undecayed_balance,
};

/// With coupled L2 the imbalance of adjacent layers falls as exp(-2 rate decay steps), to 1 %.
#[test]
fn imbalance_decays_with_coupled_l2() {
    for depth in [2, 3] {
        let settings = Settings { contraction: 1.7, ..Settings::default() };
        let found = slow(depth, 1e-3, &settings).expect("a run");
        assert_eq!(found.balance.len(), 3, "{found:?}");
        for (measured, predicted) in found.balance {
            assert!(
                (measured / predicted - 1.0).abs() < 0.01,
                "depth {depth}: {measured} for {predicted}"
            );
        }
    }
}

/// Without decay gradient flow conserves it; the drift of descent is of the order of the rate.
#[test]
fn imbalance_is_conserved_without_decay() {
    let drift = |rate: f64, steps| (undecayed_balance(rate, steps, 1).expect("a run") - 1.0).abs();
    let (small, large) = (drift(0.01, 4000), drift(0.08, 500));
    assert!(small < 1e-3, "{small}");
    assert!(
        large > 3.0 * small && large < 20.0 * small,
        "{large} beside {small}: an eighth of the rate"
    );
}

/// Adam's second moment bounds the fast clock: 2 ln 10 / -ln beta2 steps a decade.
#[test]
fn adam_takes_as_many_steps_a_decade_as_its_second_moment_allows() {
    for (beta2, predicted) in [(0.98, 227.9), (0.95, 89.8)] {
        for depth in [1, 2] {
            let settings = Settings { decades: 8, ..Settings::default() };
            let (hits, _) = fast(Method::Adam(beta2), depth, &settings).expect("a run");
            assert_eq!(hits.len(), 8, "beta2 {beta2}, depth {depth}: {hits:?}");
            let last = *increments(&hits).last().expect("decades");
            assert!(
                (last / predicted - 1.0).abs() < 0.1,
                "beta2 {beta2}, depth {depth}: {last} for {predicted}"
            );
            assert_eq!(law(&hits), "logarithmic");
        }
    }
}

/// Plain descent is not logarithmic, and the tool says so; normalised descent is.
#[test]
fn descent_is_polynomial_and_normalised_descent_is_not() {
    for depth in [1, 3] {
        let settings = Settings { decades: 4, ..Settings::default() };
        let (hits, _) = fast(Method::Descent, depth, &settings).expect("a run");
        let increments = increments(&hits);
        let ratios: Vec<f64> = increments.windows(2).map(|two| two[1] / two[0]).collect();
        assert!(
            ratios.iter().all(|ratio| (4.0..12.0).contains(ratio)),
            "depth {depth}: {ratios:?}"
        );
        assert_eq!(law(&hits), "polynomial, not logarithmic");
        let (hits, _) = fast(Method::Normalised, depth, &settings).expect("a run");
        assert_eq!(law(&hits), "logarithmic", "depth {depth}: {hits:?}");
    }
}

/// The slow clock is one of contraction: over an 8-fold range of decay nine tenths of the rank are gone at the same C.
#[test]
fn the_slow_clock_scales_as_one_over_rate_times_decay() {
    for depth in [2, 3] {
        let settings = Settings::default();
        let runs: Vec<_> = settings
            .decays
            .iter()
            .map(|&decay| slow(depth, decay, &settings).expect("a run"))
            .collect();
        let ends = |value: &dyn Fn(usize) -> f64| {
            let all: Vec<f64> = (0..runs.len()).map(value).collect();
            let (low, high) = (
                all.iter().copied().fold(f64::MAX, f64::min),
                all.iter().copied().fold(0.0, f64::max),
            );
            assert!(low > 0.0 && high.is_finite(), "{all:?}");
            (low, high)
        };
        assert_eq!(settings.decays[3] / settings.decays[0], 8.0);
        let (low, high) = ends(&|i| runs[i].rank);
        assert!(high / low < 1.15, "depth {depth}: C from {low} to {high}");
        // An ordinary exponential end: gap ~ exp(-2 C), theta = 1/2.
        let (low, high) = ends(&|i| runs[i].gap_rate);
        assert!(
            (1.9..2.15).contains(&low) && (1.9..2.15).contains(&high),
            "depth {depth}: {low} to {high}"
        );
        for run in &runs {
            let tail = run.tail.expect("a tail");
            assert_eq!(tail.law().name(), "exponential", "{tail:?}");
            // The penalty attains the quasi-norm late, and only late.
            assert!(run.quasi_norm.0 > 2.0 && run.quasi_norm.1 < 1.01, "{:?}", run.quasi_norm);
        }
    }
}
