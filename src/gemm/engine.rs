//! Which code multiplies, by instruction set and precision. A new engine is a variant, a row of
//! [`Engine::new`] and an arm of [`with_kernel`].

use super::Precision;
use crate::device::cpu::Isa;

/// Which code computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    MatrixMultiply,
    PortableBf16,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Rounded,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Rounded,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    AmxSplit,
}

impl Engine {
    /// Whether it multiplies bf16 by instructions for that.
    pub fn is_native_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Engine::Avx512Bf16 | Engine::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    pub fn new(isa: Isa, precision: Precision) -> Engine {
        use Precision::{Bf16, F32, F32Split};
        match (isa, precision) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, F32 | F32Split) => Engine::Avx2,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Bf16) => Engine::Avx2Rounded,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Bf16) => Engine::Avx512Rounded,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Bf16) => Engine::Avx512Bf16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Bf16) => Engine::Amx,
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, F32Split) => Engine::AmxSplit,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, F32 | F32Split) => Engine::Avx512,
            (_, F32 | F32Split) => Engine::MatrixMultiply,
            (_, Bf16) => Engine::PortableBf16,
        }
    }
}

/// Evaluates an expression with `K` bound to the kernel of an engine, or another one for the engine
/// that has none.
macro_rules! with_kernel {
    ($engine:expr, $K:ident => $body:expr, else $other:expr) => {{
        #[cfg(target_arch = "x86_64")]
        use $crate::gemm::{
            amx::{Amx, AmxSplit},
            avx2::Avx2,
            avx512::Avx512,
            avx512_bf16::Avx512Bf16,
        };
        use $crate::gemm::{engine::Engine, portable::Panelled, rounded::Rounded};
        match $engine {
            Engine::MatrixMultiply => $other,
            Engine::PortableBf16 => {
                type $K = Rounded<Panelled>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Avx2 => {
                type $K = Avx2;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Avx2Rounded => {
                type $K = Rounded<Avx2>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512 => {
                type $K = Avx512;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512Rounded => {
                type $K = Rounded<Avx512>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512Bf16 => {
                type $K = Avx512Bf16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Amx => {
                type $K = Amx;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Engine::AmxSplit => {
                type $K = AmxSplit;
                $body
            }
        }
    }};
}
pub(super) use with_kernel;
