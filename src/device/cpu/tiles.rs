//! AMX tile state: whether the processor has it, and which threads carry it.
//!
//! Tiles are eight registers of a thread that exist only while it has a tile configuration. Loading
//! one costs as much as some products, so that a thread does it once for a whole parallel region;
//! a thread that carries tile state costs the system 8 KiB more at every switch, so that none does
//! outside a region. The compiler knows nothing of either: whoever uses tiles holds a [`Configured`]
//! and has everything from the first to the last tile instruction in one `asm!`.
//!
//! Sources: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1,
//! chapter "Programming with Intel AMX"; Linux, Documentation/arch/x86/xstate.rst.
#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "engines elsewhere use no tiles")
)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod stand_in;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests;

/// Whether this process may use AMX tiles and their products of bf16. Asks the system for it, once
/// for the whole process: AMX works only for processes that asked. Linux on x86-64 only.
pub(crate) fn available() -> bool {
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    if stand_in::is_installed() {
        return true;
    }
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(hardware::granted)
}

/// What a thread knows of its own tiles.
struct State {
    /// Regions and configurations that are held.
    holders: Cell<usize>,
    /// Whether the configuration is loaded; only while there are holders.
    configured: Cell<bool>,
}

thread_local! {
    static STATE: State = const { State { holders: Cell::new(0), configured: Cell::new(false) } };
}

/// One thread's part in a parallel region: tiles that are configured while it is held stay so until
/// it is dropped. Entering touches nothing but a counter. Regions nest; the outermost counts.
#[must_use]
pub(crate) struct Region {
    /// Tile state belongs to a thread: not to be sent to another.
    _thread: PhantomData<*const ()>,
}

impl Region {
    #[inline]
    pub(crate) fn enter() -> Region {
        STATE.with(|state| state.holders.set(state.holders.get() + 1));
        Region { _thread: PhantomData }
    }
}

impl Drop for Region {
    #[inline]
    fn drop(&mut self) {
        STATE.with(|state| {
            let holders = state.holders.get() - 1;
            state.holders.set(holders);
            if holders == 0 && state.configured.replace(false) {
                hardware::release();
            }
        });
    }
}

/// While this is held, this thread's eight tiles have 16 rows of 64 bytes. What is in them is lost
/// between two `asm!`.
#[must_use]
pub(crate) struct Configured {
    _region: Region,
}

/// Configures this thread's tiles, for the rest of its region; outside a region, until the guard is
/// dropped.
///
/// # Panics
/// Where tiles are not [`available`].
#[inline]
pub(crate) fn configure() -> Configured {
    let region = Region::enter();
    if !is_configured() {
        configure_first();
    }
    Configured { _region: region }
}

#[cold]
fn configure_first() {
    assert!(available(), "tiles are used on a machine that has none");
    hardware::load_configuration();
    STATE.with(|state| state.configured.set(true));
}

/// Whether this thread holds a [`Configured`], or did in the region that it is in.
#[inline]
pub(crate) fn is_configured() -> bool {
    STATE.with(|state| state.configured.get())
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod hardware {
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, __cpuid_count};

    /// Rows of every tile.
    pub(super) const ROWS: usize = 16;

    /// Bytes in a row of every tile: 16 f32 or 32 bf16.
    pub(super) const ROW_BYTES: usize = 64;

    /// Operand of `ldtilecfg`.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const TILES: usize = 8;

    static CONFIGURATION: Configuration = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < TILES {
            row_bytes[tile] = ROW_BYTES as u16;
            rows[tile] = ROWS as u8;
            tile += 1;
        }
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };

    /// Whether the processor has AMX with bf16 and the system lets this process use it.
    pub(super) fn granted() -> bool {
        processor_has_it() && system_saves_it() && permitted()
    }

    fn processor_has_it() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        const TILE_LEAF: u32 = 0x1D;
        if __cpuid(0).eax < TILE_LEAF || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        if features & AMX_BF16 == 0 || features & AMX_TILE == 0 {
            return false;
        }
        // Palette 1: bytes in a row and number of tiles, then rows.
        let palette = __cpuid_count(TILE_LEAF, 1);
        palette.ebx == (TILES << 16 | ROW_BYTES) as u32 && palette.ecx & 0xFFFF == ROWS as u32
    }

    fn system_saves_it() -> bool {
        const TILE_CONFIGURATION: u32 = 1 << 17;
        const TILE_DATA: u32 = 1 << 18;
        let saved: u32;
        // SAFETY: `processor_has_it` found OSXSAVE, which xgetbv needs.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _,
                options(nomem, nostack, preserves_flags));
        }
        saved & TILE_CONFIGURATION != 0 && saved & TILE_DATA != 0
    }

    fn permitted() -> bool {
        const ARCH_PRCTL: isize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: the call takes two integers and changes nothing but what this process may use; a
        // system that does not know it answers with an error.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }

    /// Gives this thread tiles, all zero. Only where tiles are available.
    pub(super) fn load_configuration() {
        // SAFETY: `configure_first`, which alone calls this, asserted that tiles are available; the
        // operand is 64 bytes, valid for palette 1 as `processor_has_it` found it.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags));
        }
    }

    /// Takes this thread's tiles away. Only where tiles are available.
    pub(super) fn release() {
        // SAFETY: called after `load_configuration` only.
        unsafe {
            asm!("tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags));
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod hardware {
    pub(super) fn granted() -> bool {
        false
    }

    pub(super) fn load_configuration() {
        unreachable!("`configure` asserted that there are tiles");
    }

    pub(super) fn release() {
        unreachable!("nothing was configured");
    }
}
