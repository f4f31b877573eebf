//! Files to data sets: IDX, CSV and the embedded digits.
//!
//! A [`Dataset`] is checked once, where it is made: every value is finite, every label names a
//! class. Training copies it into device memory once, makes the order of each epoch there and gathers
//! batches there, so nothing here runs between two steps. [`order()`] gives the same order on the host.

pub mod csv;
mod dataset;
pub mod digits;
pub mod idx;
mod input;
mod normalisation;
mod order;
mod random;
mod source;
mod synthetic;

pub use csv::Label;
pub use dataset::{Dataset, Split, Values};
pub use normalisation::{Normalisation, NormalisationKind};
pub use order::{order, order_into};
pub use source::Source;
pub use synthetic::synthetic;
