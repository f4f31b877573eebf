//! Sizes of the data caches, as the processor states them.

use std::sync::OnceLock;

/// Bytes of the data caches that one core sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// First level.
    pub l1: usize,
    /// Second level.
    pub l2: usize,
    /// Third level, which cores may share; 0 where there is none.
    pub l3: usize,
}

impl Caches {
    /// Those of this processor, by CPUID; where it does not say, what a small one has.
    pub fn get() -> Caches {
        static CACHES: OnceLock<Caches> = OnceLock::new();
        *CACHES.get_or_init(|| {
            let mut caches = Caches { l1: 32 << 10, l2: 512 << 10, l3: 0 };
            #[cfg(target_arch = "x86_64")]
            for (level, bytes) in stated() {
                match level {
                    1 => caches.l1 = bytes,
                    2 => caches.l2 = bytes,
                    3 => caches.l3 = bytes,
                    _ => {}
                }
            }
            caches
        })
    }
}

/// Level and bytes of each data or unified cache. Intel states them in leaf 4, AMD in leaf
/// 0x8000001D of the same form (Intel 64 SDM volume 2A, CPUID; AMD64 APM volume 3, appendix E).
#[cfg(target_arch = "x86_64")]
fn stated() -> Vec<(u32, usize)> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const INTEL: u32 = 4;
    const AMD: u32 = 0x8000_001D;
    // "AuthenticAMD" in EBX, EDX, ECX.
    let (first, vendor) = (__cpuid(0), [0x6874_7541, 0x6974_6E65, 0x444D_4163]);
    let amd = [first.ebx, first.edx, first.ecx] == vendor;
    let leaf = if amd { AMD } else { INTEL };
    if leaf > __cpuid(leaf & 0x8000_0000).eax {
        return Vec::new();
    }
    let entry = |number| {
        let found = __cpuid_count(leaf, number);
        let (kind, level) = (found.eax & 31, found.eax >> 5 & 7);
        let [ways, partitions, line, sets] =
            [found.ebx >> 22, found.ebx >> 12 & 0x3FF, found.ebx & 0xFFF, found.ecx]
                .map(|less_one| less_one as usize + 1);
        (kind, level, ways * partitions * line * sets)
    };
    // Kind 0 ends the list, 2 is for instructions.
    let entries = (0..16).map(entry).take_while(|&(kind, ..)| kind != 0);
    entries.filter(|&(kind, ..)| kind != 2).map(|(_, level, bytes)| (level, bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_a_processor() {
        let Caches { l1, l2, l3 } = Caches::get();
        assert!((8 << 10..=1 << 20).contains(&l1), "L1 {l1}");
        assert!((128 << 10..=64 << 20).contains(&l2) && l2 > l1, "L2 {l2}");
        assert!(l3 == 0 || l3 >= l2, "L3 {l3}");
    }
}
