//! The instruction set that the kernels use, found once at run time.

use crate::error::{Error, Result};
use std::fmt;

/// Environment variable that forces an instruction set: `portable`, `avx2`, `avx512`,
/// `avx512_bf16` or `amx`.
pub const ISA_VARIABLE: &str = "TWOCLOCKS_ISA";

/// An instruction set for which there are kernels, from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; what the compiler makes of it for the build target.
    Portable,
    /// AVX2 and FMA: 8 f32 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 16 f32 lanes.
    Avx512,
    /// AVX-512 with BF16: products of bf16 pairs.
    Avx512Bf16,
    /// All of these, and AMX: tiles of bf16.
    Amx,
}

impl Isa {
    /// Every instruction set that has kernels.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// Name as printed and as accepted in [`ISA_VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512_bf16",
            Isa::Amx => "amx",
        }
    }

    /// Whether this processor, under this operating system, can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512Bf16.is_available() && super::tiles::available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The instruction sets of this machine, least capable first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The most capable instruction set of this machine, or the one that [`ISA_VARIABLE`] names.
    ///
    /// # Errors
    /// The variable names an unknown instruction set, or one that this machine lacks.
    pub fn detect() -> Result<Isa> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Isa::named(&name),
            _ => Ok(Isa::available().pop().unwrap_or(Isa::Portable)),
        }
    }

    /// The instruction set of that name.
    ///
    /// # Errors
    /// The name is unknown, or this machine lacks the instruction set.
    pub fn named(name: &str) -> Result<Isa> {
        let isa = Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            Error::device(
                name,
                format!(
                    "{ISA_VARIABLE} takes {}, not '{name}'",
                    Isa::ALL.map(Isa::name).join(", ")
                ),
            )
        })?;
        if isa.is_available() {
            Ok(isa)
        } else {
            Err(Error::device(
                name,
                format!("{ISA_VARIABLE}={name}: this machine does not have it"),
            ))
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_refused() {
        let error = Isa::named("avx9000").expect_err("no such instruction set");
        assert!(error.to_string().contains("avx9000"), "{error}");
    }

    #[test]
    fn what_is_detected_is_available() {
        assert!(Isa::available().contains(&Isa::Portable));
        assert!(Isa::named("portable").is_ok());
    }
}
