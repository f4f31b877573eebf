//! Operations: one folder each, listed in one table.
//!
//! A folder holds `mod.rs` (contract, recording, gradient, cost, cases), `naive.rs` (the oracle in
//! f64) and `cpu.rs` (the SIMD kernel). To add one, write the folder and add its row below.

pub mod case;
pub mod operation;

pub use case::{Case, CaseInput, Entry, Fill, Tolerance};
pub use operation::{Cost, Operation, Recorder, Rule, Site, Values, Var, push_one};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* pub mod $name;)*

        /// Every operation of the crate: tests, gradient checks and benchmarks run over it.
        pub const TABLE: &[Entry] = &[$(Entry {
            name: stringify!($name),
            cases: $name::cases,
            benches: $name::benches,
        }),*];
    };
}

operations! {}
