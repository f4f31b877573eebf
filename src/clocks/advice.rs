//! What the two clocks advise, by which rule and numbers. All of it is correlational: validation decides.
//!
//! | state | advice |
//! |---|---|
//! | the loss still falls to its next level | keep going, with the time to it |
//! | fitted, validation no longer better, C far below 1 or the slow clock done | stop and bank |
//! | validation worse than its best by more than chance | stop and bank |
//! | fitted, the slow clock moves, its end within the budget | keep going, with the time to it |
//! | the same, its end beyond the budget | raise the decay (or the rate) |
//! | most samples are saturated | margins are saturated |
//! | most decaying weights feed normalised layers | norm decay is inert here |
//!
//! Sources: Prechelt, "Early stopping - but when?", 1998, for stopping; Wang, Aitchison, "How to set AdamW's weight decay as you
//! scale model and dataset size", 2024, for C; the crate's own experiments (`twoclocks clocks`) for C = 2 as the end of the slow clock.

use super::estimate::Eta;
use std::fmt;

/// Reviews in a row that must say the same before it is advised.
pub const CONSECUTIVE: usize = 3;

/// Contraction at which about nine tenths of a linear net's excess rank are gone: 2.10 to 2.31 over an 8-fold range of decay in `twoclocks
/// clocks deep-linear`, 1.8 to 2.5 with other starting scales.
pub const DONE: f64 = 2.0;
/// Below this the slow clock has not moved in a way that shows.
pub const UNMOVED: f64 = 0.3;
/// Training loss below which the fast clock counts as done, in nats: the geometric mean of the right classes' probabilities is
/// 0.95 then.
pub const FITTED: f64 = 0.05;
/// More rows that are right, from which on validation gained: the reviews look at the same rows, so a net gain of k has a standard
/// error of sqrt(k) at least, and 4 are two of them.
const GAIN_ROWS: f64 = 4.0;
/// Share of saturated samples from which more training of the same kind moves nothing.
const SATURATED: f64 = 0.5;
/// Largest factor by which a decay is raised at once: threefold helped where tenfold delayed (ILDR, arXiv 2604.20923).
const RAISE: f64 = 3.0;

/// What a review gives the rules.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Mean training loss since the last review, in nats, less `floor`.
    pub train_loss: f64,
    /// The lowest loss that smoothed labels allow; 0 without smoothing.
    pub floor: f64,
    /// Test accuracy at this and at all earlier reviews, oldest first.
    pub accuracy: Vec<f64>,
    /// Test samples behind each, or behind that of the fewest.
    pub samples: usize,
    /// Share of numerically saturated training samples; NaN where it was not measured.
    pub saturated: f64,
    /// C so far: the sum of rate times decay.
    pub contraction: f64,
    /// C at the end of the run as it is planned; NaN where that is not known.
    pub planned: f64,
    /// Share of the excess stable rank that is left, 1 at the start; NaN where no layer has one.
    pub excess: f64,
    /// Its change since it was last measured; NaN before that was twice.
    pub excess_change: f64,
    /// When the loss is at its next level.
    pub fit_eta: Option<Eta>,
    /// Seconds of training until C is [`DONE`], at the rate of the last review; `None` where nothing decays.
    pub simple_eta: Option<f64>,
    /// Seconds of training that are left of the budget; `None` where it is not known.
    pub left: Option<f64>,
    /// Share of the decaying weights whose outputs are normalised.
    pub normalised: f64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More of this run buys nothing that its numbers show.
    StopAndBank,
    /// A clock is moving.
    KeepGoing,
    /// The slow clock moves too slowly for the budget.
    RaiseDecay,
    /// Gradients have rounded away.
    MarginsSaturated,
    /// Decay changes no function here.
    DecayInert,
}

impl Verdict {
    /// As reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::StopAndBank => "stop and bank",
            Verdict::KeepGoing => "keep going",
            Verdict::RaiseDecay => "raise the decay (or the learning rate)",
            Verdict::MarginsSaturated => "margins are saturated",
            Verdict::DecayInert => "norm decay is inert here (normalised layers)",
        }
    }
}

const ALL: [Verdict; 5] = [
    Verdict::StopAndBank,
    Verdict::KeepGoing,
    Verdict::RaiseDecay,
    Verdict::MarginsSaturated,
    Verdict::DecayInert,
];

/// A verdict with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// What to do.
    pub verdict: Verdict,
    /// The rule and the numbers behind it.
    pub reason: String,
    /// Reviews in a row that said so; it is advice from [`CONSECUTIVE`] on.
    pub reviews: usize,
}

impl Advice {
    /// Whether enough reviews said so.
    pub fn is_settled(&self) -> bool {
        self.reviews >= CONSECUTIVE
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verdict.name(), self.reason)
    }
}

/// Keeps count of reviews that say the same.
#[derive(Clone, Debug, Default)]
pub struct Adviser {
    counts: Vec<(Verdict, usize)>,
}

impl Adviser {
    /// An adviser that goes on from the counts of an earlier one. Verdicts of unknown names are passed over.
    pub fn resumed(counts: &[(String, usize)]) -> Adviser {
        let known = |(name, count): &(String, usize)| {
            ALL.into_iter().find(|verdict| verdict.name() == name).map(|verdict| (verdict, *count))
        };
        Adviser { counts: counts.iter().filter_map(known).collect() }
    }

    /// The verdicts of the last review by name, and how many reviews in a row have said them.
    pub fn counts(&self) -> Vec<(String, usize)> {
        self.counts.iter().map(|&(verdict, count)| (verdict.name().to_owned(), count)).collect()
    }

    /// What this review says, and how many in a row have. The first one is the verdict on the run; others, if any, are
    /// remarks beside it.
    pub fn review(&mut self, state: &State) -> Vec<Advice> {
        let said: Vec<(Verdict, String)> =
            [saturation(state), inert(state), Some(verdict(state))].into_iter().flatten().collect();
        let before = std::mem::take(&mut self.counts);
        let count = |verdict| before.iter().find(|(v, _)| *v == verdict).map_or(0, |(_, n)| *n) + 1;
        self.counts = said.iter().map(|&(verdict, _)| (verdict, count(verdict))).collect();
        let counted = said.into_iter().zip(&self.counts);
        let mut advice: Vec<Advice> = counted
            .map(|((verdict, reason), &(_, reviews))| Advice { verdict, reason, reviews })
            .collect();
        advice.reverse();
        advice
    }
}

fn saturation(state: &State) -> Option<(Verdict, String)> {
    (state.saturated > SATURATED).then(|| {
        let reason = format!(
            "{:.0} % of the training samples have a probability of 1 to the last bit, and their gradient is that of rounding",
            100.0 * state.saturated
        );
        (Verdict::MarginsSaturated, reason)
    })
}

fn inert(state: &State) -> Option<(Verdict, String)> {
    (state.normalised > 0.5 && state.planned > 0.0).then(|| {
        let reason = format!(
            "{:.0} % of the decaying weights feed a normalised layer: decay changes their effective rate, not the function",
            100.0 * state.normalised
        );
        (Verdict::DecayInert, reason)
    })
}

/// Two standard errors of a difference of accuracies around `accuracy`, each of `samples`.
fn noise(accuracy: f64, samples: usize) -> f64 {
    2.0 * (2.0 * accuracy * (1.0 - accuracy) / samples.max(1) as f64).sqrt()
}

/// The training loss, with its floor where it has one.
fn loss(state: &State) -> String {
    match state.floor {
        floor if floor > 0.0 => format!(
            "training loss {:.4}, {:.4} above the floor of smoothed labels",
            state.train_loss + floor,
            state.train_loss
        ),
        _ => format!("training loss {:.4}", state.train_loss),
    }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        _ if !seconds.is_finite() => "never".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", 1000.0 * s),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn verdict(state: &State) -> (Verdict, String) {
    let best = state.accuracy.iter().copied().fold(f64::NAN, f64::max);
    let now = state.accuracy.last().copied().unwrap_or(f64::NAN);
    let doubt = noise(best, state.samples);
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    if best - now > doubt && state.accuracy.len() >= CONSECUTIVE {
        let reason = format!(
            "validation fell to {} from {}, by more than two standard errors ({})",
            percent(now),
            percent(best),
            percent(doubt)
        );
        return (Verdict::StopAndBank, reason);
    }
    // Beside the review before the last few: a step of one review is mostly chance.
    let earlier = state.accuracy.iter().rev().skip(CONSECUTIVE).copied().fold(f64::NAN, f64::max);
    let improving = earlier.is_nan() || (now - earlier) * state.samples as f64 > GAIN_ROWS - 0.5;
    // Not known to stand still: before two measurements the change is NaN.
    let stands = state.excess_change >= 0.0;
    // A loss that is not known is no fit.
    if state.train_loss > FITTED || state.train_loss.is_nan() {
        if let Some(eta) = state.fit_eta {
            let late = eta.late.map_or("no bound".to_owned(), seconds);
            let reason = format!(
                "the fast clock runs: {}, reaches {} in {} to {late}",
                loss(state),
                eta.level,
                seconds(eta.early)
            );
            return (Verdict::KeepGoing, reason);
        }
        if improving {
            let reason = format!("validation still gains: {} now", percent(now));
            return (Verdict::KeepGoing, reason);
        }
        let reason = format!(
            "neither the fit ({}) nor validation ({}) has gained over {CONSECUTIVE} reviews",
            loss(state),
            percent(now)
        );
        return (Verdict::StopAndBank, reason);
    }
    if improving {
        let reason =
            format!("fitted ({}), and validation still gains: {} now", loss(state), percent(now));
        return (Verdict::KeepGoing, reason);
    }
    if state.contraction >= DONE {
        let reason = format!(
            "both clocks are done: {}, C = {:.2}; validation stays at {}",
            loss(state),
            state.contraction,
            percent(now)
        );
        return (Verdict::StopAndBank, reason);
    }
    let slow = match state.planned < UNMOVED {
        true => format!(
            "this run ends at C = {}: the slow clock will not move",
            contraction(state.planned)
        ),
        false => "the rank has not fallen since it was last measured".to_owned(),
    };
    if state.planned < UNMOVED || stands {
        let reason =
            format!("fitted ({}), validation stays at {}, and {slow}", loss(state), percent(now));
        return (Verdict::StopAndBank, reason);
    }
    let eta = state.simple_eta.unwrap_or(f64::INFINITY);
    let excess = format!(
        "{:.0} % of the excess rank left, C = {:.2}",
        100.0 * state.excess,
        state.contraction
    );
    match state.left {
        Some(left) if eta > left => {
            let factor = (eta / left.max(1e-9)).min(RAISE);
            let reason = format!(
                "the slow clock moves ({excess}) but needs {} and the budget leaves {}; {factor:.1} times the decay, with an eye on the training loss",
                seconds(eta),
                seconds(left)
            );
            (Verdict::RaiseDecay, reason)
        }
        _ => {
            let reason = format!(
                "fitted, and the slow clock moves ({excess}): C = {DONE} in {}",
                seconds(eta)
            );
            (Verdict::KeepGoing, reason)
        }
    }
}

/// C with as many digits as it has to say.
pub fn contraction(c: f64) -> String {
    match c {
        _ if c == 0.0 => "0".to_owned(),
        _ if c < 0.001 => format!("{c:.0e}"),
        _ if c < 0.1 => format!("{c:.3}"),
        _ => format!("{c:.2}"),
    }
}

/// What a run's plan says of the slow clock before it starts.
pub fn forecast(planned: f64) -> String {
    let says = match planned {
        _ if planned <= 0.0 => "nothing decays: the slow clock stands still",
        _ if planned < UNMOVED => "the slow clock will not move",
        _ if planned < DONE => "the slow clock will begin to move",
        _ => "the slow clock has time to finish",
    };
    format!("this run ends at C = {}: {says}", contraction(planned))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fitted, validation flat, the slow clock moving.
    fn state() -> State {
        State {
            train_loss: 0.01,
            floor: 0.0,
            accuracy: vec![0.9, 0.95, 0.95, 0.95, 0.95, 0.95],
            samples: 10_000,
            saturated: 0.0,
            contraction: 0.8,
            planned: 1.5,
            excess: 0.6,
            excess_change: -0.02,
            fit_eta: None,
            simple_eta: Some(30.0),
            left: Some(60.0),
            normalised: 0.0,
        }
    }

    fn of(state: &State) -> Verdict {
        Adviser::default().review(state)[0].verdict
    }

    #[test]
    fn each_state_has_its_verdict() {
        assert_eq!(of(&state()), Verdict::KeepGoing, "the slow clock moves");
        assert_eq!(of(&State { left: Some(10.0), ..state() }), Verdict::RaiseDecay);
        assert_eq!(of(&State { contraction: 2.5, ..state() }), Verdict::StopAndBank, "both done");
        assert_eq!(of(&State { planned: 0.02, ..state() }), Verdict::StopAndBank, "will not move");
        assert_eq!(of(&State { excess_change: 0.0, ..state() }), Verdict::StopAndBank, "stands");
        assert_eq!(
            of(&State { excess_change: f64::NAN, ..state() }),
            Verdict::KeepGoing,
            "not known"
        );
        let falling = State { accuracy: vec![0.9, 0.95, 0.96, 0.93], ..state() };
        assert_eq!(of(&falling), Verdict::StopAndBank, "validation falls");
        let gains = State { accuracy: vec![0.9, 0.91, 0.92, 0.93, 0.94], ..state() };
        assert_eq!(of(&gains), Verdict::KeepGoing, "validation gains");
        let eta = Some(Eta { level: 0.1, early: 2.0, late: None });
        assert_eq!(of(&State { train_loss: 0.4, fit_eta: eta, ..state() }), Verdict::KeepGoing);
        assert_eq!(of(&State { train_loss: 0.4, ..state() }), Verdict::StopAndBank, "stuck");
    }

    #[test]
    fn a_fall_within_chance_is_none() {
        let dip = State { accuracy: vec![0.9, 0.95, 0.955, 0.953], samples: 360, ..state() };
        assert_ne!(of(&dip), Verdict::StopAndBank, "0.2 % of 360 samples");
    }

    #[test]
    fn a_gain_of_a_row_or_two_is_none() {
        let done = State { contraction: 2.5, samples: 360, ..state() };
        for (rows, verdict) in [(2.0, Verdict::StopAndBank), (4.0, Verdict::KeepGoing)] {
            let now = 0.95 + rows / 360.0;
            let accuracy = vec![0.9, 0.95, 0.95, 0.95, now];
            assert_eq!(of(&State { accuracy, ..done.clone() }), verdict, "{rows} rows");
        }
        let unknown = State { train_loss: f64::NAN, accuracy: vec![0.9], ..done };
        let said = &Adviser::default().review(&unknown)[0];
        assert!(!said.reason.contains("fitted"), "{said}");
    }

    #[test]
    fn remarks_stand_beside_the_verdict() {
        let advice =
            Adviser::default().review(&State { saturated: 0.9, normalised: 0.8, ..state() });
        let verdicts: Vec<Verdict> = advice.iter().map(|a| a.verdict).collect();
        assert_eq!(verdicts, [Verdict::KeepGoing, Verdict::DecayInert, Verdict::MarginsSaturated]);
        assert!(advice[2].reason.contains("90 %"), "{}", advice[2]);
    }

    #[test]
    fn it_takes_reviews_in_a_row() {
        let mut adviser = Adviser::default();
        let stop = State { contraction: 2.5, ..state() };
        for reviews in 1..=CONSECUTIVE {
            let advice = adviser.review(&stop);
            assert_eq!(
                (advice[0].reviews, advice[0].is_settled()),
                (reviews, reviews >= CONSECUTIVE)
            );
        }
        adviser.review(&state());
        assert_eq!(adviser.review(&stop)[0].reviews, 1, "another verdict came between");
    }

    #[test]
    fn a_plan_is_judged_before_it_starts() {
        assert_eq!(forecast(0.02), "this run ends at C = 0.020: the slow clock will not move");
        assert!(forecast(0.0).contains("stands still") && forecast(3.0).contains("C = 3.00"));
        assert!(forecast(5e-5).contains("5e-5"));
    }
}
