//! What changes from step to step.

/// Learning rate, decay and momentum of a step.
///
/// From a number: the learning rate, with the decay and the momentum of the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub rate: f64,
    /// Decay, as a share of the optimizer's weight decay.
    pub decay: f64,
    /// Momentum of SGD, `beta1` of Adam and Lion; `None` is the rule's own.
    pub momentum: Option<f64>,
}

impl From<f64> for Rates {
    fn from(rate: f64) -> Rates {
        Rates { rate, decay: 1.0, momentum: None }
    }
}
