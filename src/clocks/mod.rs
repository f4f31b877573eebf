//! The two clocks of a run: how far the net has fitted its data, and how far it has simplified what it learnt.
//!
//! - The *fast* clock is the fit: cross-entropy falls, margins grow. Its times are `T_fit(level)`, when the training loss first
//!   was at a level.
//! - The *slow* clock is simplicity: layerwise decay takes norm and rank. Its times are `T_simple(level)`, when the share of the excess
//!   rank that is left first was at a level. What drives it is the contraction `C = sum of rate * decay`.
//!
//! Figures in, figures out: nothing here knows of tapes or devices. [`train`](crate::train) measures a run and asks for estimates
//! and advice.
//!
//! Source: Tan, Gai, Zhang, "Deciphering two training clocks in grokking via deep linear network theory with conditional ReLU
//! reduction", arXiv 2606.05863, 2026. Its rates are assumptions: so rates are measured here, and carry intervals.

mod advice;
mod collapse;
mod estimate;
mod gates;
mod quadrature;
mod regression;
mod series;
mod spectrum;

pub use advice::{
    Advice, Adviser, CONSECUTIVE, DONE, FITTED, State, UNMOVED, Verdict, contraction, forecast,
};
pub use collapse::{Collapse, collapse};
pub use estimate::{Eta, Growth, Law, TailExponent, eta, growth, tail_exponent};
pub use gates::Gates;
pub use quadrature::{Bidiagonal, EstimatedRank, estimated_rank};
pub use regression::{Interval, Line, line};
pub use series::{Hit, Point, Series, half_decades};
pub use spectrum::{
    Imbalance, Matrix, effective_rank, imbalance, schatten, singular_values, stable_rank,
};
