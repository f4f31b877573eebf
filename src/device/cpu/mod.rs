//! The CPU: which instruction set it has, its threads, its memory.

pub mod isa;
pub mod simd;

pub use isa::Isa;
