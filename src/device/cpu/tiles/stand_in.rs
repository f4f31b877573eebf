//! AMX for tests on machines without it: the instructions trap, and the handler does what they say.
//!
//! Decodes `ldtilecfg`, `sttilecfg`, `tilerelease`, `tilezero`, `tileloadd`, `tileloaddt1`,
//! `tilestored` and `tdpbf16ps` at the address of an illegal instruction and carries them out on
//! tile state of the thread's own. What AMX would refuse ends the process, as it would there, with a
//! line that says why. Any other illegal instruction goes to whoever handled it before.
//!
//! A handler may interrupt anything: nothing here allocates, locks or panics, and the tile state is
//! a thread-local without initialisation or destructor.
//!
//! Semantics: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2, the
//! pages of these instructions (also at felixcloutier.com/x86/tdpbf16ps and so on).

use super::hardware::{ROW_BYTES, ROWS};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

mod tests;

const TILES: usize = 8;

/// Makes tiles available to this process for as long as it lives. Does nothing where the processor
/// has them. Answers whether there are tiles now: `false` on a machine without FMA, which the
/// stand-in itself needs.
#[must_use]
pub(crate) fn install() -> bool {
    static DONE: OnceLock<bool> = OnceLock::new();
    *DONE.get_or_init(|| {
        if super::available() {
            return true;
        }
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            return false;
        }
        // SAFETY: zero is a valid `sigaction`; the handler has the signature that SA_SIGINFO asks
        // for and does only what a handler may; `before` is stored before the first trap.
        unsafe {
            let mut before = Box::new(MaybeUninit::<libc::sigaction>::zeroed());
            let read = libc::sigaction(libc::SIGILL, ptr::null(), before.as_mut_ptr());
            assert_eq!(read, 0, "the handler of SIGILL cannot be read");
            BEFORE.store(Box::into_raw(before).cast(), Ordering::Release);
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            let set = libc::sigaction(libc::SIGILL, &action, ptr::null_mut());
            assert_eq!(set, 0, "the handler of SIGILL cannot be set");
        }
        INSTALLED.store(true, Ordering::Release);
        true
    })
}

/// Whether tile instructions trap into this stand-in.
pub(crate) fn is_installed() -> bool {
    INSTALLED.load(Ordering::Acquire)
}

/// How often the calling thread trapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traps {
    /// `ldtilecfg`.
    pub(crate) configurations: usize,
    /// `tilerelease`.
    pub(crate) releases: usize,
    /// `tdpbf16ps`.
    pub(crate) products: usize,
}

/// How often the calling thread trapped so far; nothing on a processor that has tiles.
pub(crate) fn traps() -> Traps {
    COUNTERS.with(|counters| Traps {
        configurations: counters.configurations.load(Ordering::Relaxed),
        releases: counters.releases.load(Ordering::Relaxed),
        products: counters.products.load(Ordering::Relaxed),
    })
}

static INSTALLED: AtomicBool = AtomicBool::new(false);
/// Who handled SIGILL before.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Atomic, because the compiler does not know that an `asm!` of this thread writes them.
struct Counters {
    configurations: AtomicUsize,
    releases: AtomicUsize,
    products: AtomicUsize,
}

type Rows = [[u8; ROW_BYTES]; ROWS];

/// One thread's tiles.
struct Tiles {
    configured: bool,
    rows: [u8; TILES],
    row_bytes: [u16; TILES],
    data: [Rows; TILES],
}

impl Tiles {
    const RELEASED: Tiles = Tiles {
        configured: false,
        rows: [0; TILES],
        row_bytes: [0; TILES],
        data: [[[0; ROW_BYTES]; ROWS]; TILES],
    };
}

thread_local! {
    static TILE_STATE: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::RELEASED) };
    static COUNTERS: Counters = const {
        Counters {
            configurations: AtomicUsize::new(0),
            releases: AtomicUsize::new(0),
            products: AtomicUsize::new(0),
        }
    };
}

/// Registers by their number in instructions.
type Registers = [u64; 16];

const REGISTERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handle(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's `ucontext_t`.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let mut values = [0; 16];
    for (value, &register) in values.iter_mut().zip(&REGISTERS) {
        *value = registers[register as usize] as u64;
    }
    let code = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the processor was about to execute the code there.
    let Some((instruction, length)) = (unsafe { decode(code, &values) }) else {
        return pass_on();
    };
    // SAFETY: no other reference to this thread's tiles lives: only this handler makes any, and
    // SIGILL is blocked while it runs. The interrupted `asm!` answers for the memory.
    let outcome = TILE_STATE.with(|tiles| unsafe { execute(&mut *tiles.get(), instruction) });
    match outcome {
        Ok(()) => registers[libc::REG_RIP as usize] += length as i64,
        Err(reason) => {
            for text in ["AMX stand-in: ", reason, "\n"] {
                // SAFETY: the text's own bytes; `write` may be called in a handler.
                unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
            }
            pass_on();
        }
    }
}

/// Puts the earlier handler back; the instruction is then tried again, and traps there.
fn pass_on() {
    // SAFETY: `install` stored a valid action before it set the handler.
    unsafe { libc::sigaction(libc::SIGILL, BEFORE.load(Ordering::Acquire), ptr::null_mut()) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    LoadConfiguration { from: u64 },
    StoreConfiguration { to: u64 },
    Release,
    Zero { tile: usize },
    Load { tile: usize, start: u64, stride: u64 },
    Store { tile: usize, start: u64, stride: u64 },
    Multiply { c: usize, a: usize, b: usize },
}

/// Reads an instruction byte by byte, so as never to look beyond its end.
struct Code(*const u8);

impl Code {
    /// # Safety
    /// An instruction goes on here.
    unsafe fn byte(&mut self) -> u8 {
        // SAFETY: the caller's contract.
        unsafe {
            let byte = self.0.read();
            self.0 = self.0.add(1);
            byte
        }
    }

    /// # Safety
    /// As [`Code::byte`].
    unsafe fn word(&mut self) -> i32 {
        // SAFETY: the caller's contract.
        unsafe { i32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]) }
    }
}

/// The AMX instruction at `code` and its length in bytes; none if there is another one.
///
/// All have the prefix VEX of three bytes: C4, then inverted R, X, B and the opcode map 2, then W 0,
/// inverted `vvvv`, L 0 and the mandatory prefix.
///
/// # Safety
/// There is an instruction at `code`.
unsafe fn decode(code: *const u8, registers: &Registers) -> Option<(Instruction, usize)> {
    let mut reader = Code(code);
    // SAFETY: an instruction goes on as long as what was read of it asks for more.
    let mut byte = || unsafe { reader.byte() };
    if byte() != 0xC4 {
        return None;
    }
    let first = byte();
    if first & 0x1F != 2 {
        return None;
    }
    let inverted = |bit: u8| usize::from(!first >> bit & 1) << 3;
    let (extend_r, extend_x, extend_b) = (inverted(7), inverted(6), inverted(5));
    let second = byte();
    if second & 0x84 != 0 {
        return None;
    }
    let (prefix, vvvv) = (second & 3, usize::from(!second >> 3 & 15));
    let (opcode, modrm) = (byte(), byte());
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7) | extend_r, modrm & 7);
    if mode == 3 {
        let rm = usize::from(rm) | extend_b;
        let instruction = match (prefix, opcode) {
            (0, 0x49) if modrm == 0xC0 && vvvv == 0 => Instruction::Release,
            (3, 0x49) if rm == 0 && vvvv == 0 && reg < TILES => Instruction::Zero { tile: reg },
            (2, 0x5C) if reg.max(rm).max(vvvv) < TILES => {
                Instruction::Multiply { c: reg, a: rm, b: vvvv }
            }
            _ => return None,
        };
        return Some((instruction, 5));
    }
    if vvvv != 0 || !matches!(opcode, 0x49 | 0x4B) {
        return None;
    }
    let (mut base, mut index) = (usize::from(rm), 0);
    if rm == 4 {
        let sib = byte();
        base = usize::from(sib & 7);
        let number = usize::from(sib >> 3 & 7) | extend_x;
        // Number 4 stands for no index.
        index = if number == 4 { 0 } else { registers[number] << (sib >> 6) };
    }
    let from_register = mode != 0 || base != 5;
    // SAFETY: as above.
    let displacement = unsafe {
        match mode {
            1 => i32::from(reader.byte() as i8),
            0 if from_register => 0,
            _ => reader.word(),
        }
    };
    let length = reader.0 as usize - code as usize;
    let origin = match (from_register, rm == 4) {
        (true, _) => registers[base | extend_b],
        (false, true) => 0,
        // Relative to the next instruction.
        (false, false) => reader.0 as u64,
    };
    let start = origin.wrapping_add(displacement as i64 as u64);
    let tile = reg;
    let instruction = match (prefix, opcode) {
        (0, 0x49) if reg == 0 => Instruction::LoadConfiguration { from: start.wrapping_add(index) },
        (1, 0x49) if reg == 0 => Instruction::StoreConfiguration { to: start.wrapping_add(index) },
        // Prefix 1 is `tileloaddt1`, which differs in a hint for the cache.
        (1 | 3, 0x4B) if rm == 4 && tile < TILES => {
            Instruction::Load { tile, start, stride: index }
        }
        (2, 0x4B) if rm == 4 && tile < TILES => Instruction::Store { tile, start, stride: index },
        _ => return None,
    };
    Some((instruction, length))
}

/// Carries out an instruction; the error says what AMX would refuse.
///
/// # Safety
/// The memory that the instruction names is readable or writable as it asks.
unsafe fn execute(tiles: &mut Tiles, instruction: Instruction) -> Result<(), &'static str> {
    let count = |counter: fn(&Counters) -> &AtomicUsize| {
        COUNTERS.with(|counters| counter(counters).fetch_add(1, Ordering::Relaxed));
    };
    let shape = |tiles: &Tiles, tile: usize| {
        (usize::from(tiles.rows[tile]), usize::from(tiles.row_bytes[tile]))
    };
    let usable = |tiles: &Tiles, tile: usize| match (tiles.configured, shape(tiles, tile)) {
        (false, _) => Err("a tile is used without a configuration"),
        (true, (0, _)) => Err("a tile is used that the configuration leaves out"),
        (true, shape) => Ok(shape),
    };
    match instruction {
        Instruction::LoadConfiguration { from } => {
            count(|counters| &counters.configurations);
            // SAFETY: 64 readable bytes (contract).
            let bytes: [u8; 64] = unsafe { (from as *const [u8; 64]).read_unaligned() };
            *tiles = Tiles::RELEASED;
            match bytes[0] {
                0 => return Ok(()),
                1 => {}
                _ => return Err("a configuration has an unknown palette"),
            }
            let unused = bytes[2..16].iter().chain(&bytes[32..48]).chain(&bytes[56..64]);
            if unused.copied().any(|byte| byte != 0) {
                return Err("a configuration sets bytes that must be zero");
            }
            for tile in 0..TILES {
                let rows = bytes[48 + tile];
                let row_bytes = u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]);
                let fits = usize::from(rows) <= ROWS && usize::from(row_bytes) <= ROW_BYTES;
                if !fits || (rows == 0) != (row_bytes == 0) {
                    return Err("a configuration has a tile of an impossible shape");
                }
                (tiles.rows[tile], tiles.row_bytes[tile]) = (rows, row_bytes);
            }
            tiles.configured = true;
        }
        Instruction::StoreConfiguration { to } => {
            let mut bytes = [0u8; 64];
            bytes[0] = u8::from(tiles.configured);
            for tile in 0..TILES {
                bytes[16 + 2 * tile..][..2].copy_from_slice(&tiles.row_bytes[tile].to_le_bytes());
                bytes[48 + tile] = tiles.rows[tile];
            }
            // SAFETY: 64 writable bytes (contract).
            unsafe { (to as *mut [u8; 64]).write_unaligned(bytes) };
        }
        Instruction::Release => {
            count(|counters| &counters.releases);
            *tiles = Tiles::RELEASED;
        }
        Instruction::Zero { tile } => {
            usable(tiles, tile)?;
            tiles.data[tile] = [[0; ROW_BYTES]; ROWS];
        }
        Instruction::Load { tile, start, stride } => {
            let (rows, row_bytes) = usable(tiles, tile)?;
            tiles.data[tile] = [[0; ROW_BYTES]; ROWS];
            for (row, place) in tiles.data[tile][..rows].iter_mut().enumerate() {
                let from = start.wrapping_add(stride.wrapping_mul(row as u64)) as *const u8;
                // SAFETY: `row_bytes` readable bytes (contract), at most a row.
                unsafe { ptr::copy_nonoverlapping(from, place.as_mut_ptr(), row_bytes) };
            }
        }
        Instruction::Store { tile, start, stride } => {
            let (rows, row_bytes) = usable(tiles, tile)?;
            for (row, place) in tiles.data[tile][..rows].iter().enumerate() {
                let to = start.wrapping_add(stride.wrapping_mul(row as u64)) as *mut u8;
                // SAFETY: `row_bytes` writable bytes (contract), at most a row.
                unsafe { ptr::copy_nonoverlapping(place.as_ptr(), to, row_bytes) };
            }
        }
        Instruction::Multiply { c, a, b } => {
            count(|counters| &counters.products);
            if c == a || c == b || a == b {
                return Err("a product uses one tile twice");
            }
            let (c_shape, a_shape, b_shape) =
                (usable(tiles, c)?, usable(tiles, a)?, usable(tiles, b)?);
            let whole = [c_shape.1, a_shape.1].iter().all(|bytes| bytes % 4 == 0);
            let fit = c_shape == (a_shape.0, b_shape.1) && a_shape.1 == 4 * b_shape.0;
            if !whole || !fit {
                return Err("the tiles of a product do not fit together");
            }
            let (left, right) = (tiles.data[a], tiles.data[b]);
            // SAFETY: `install` found AVX2 and FMA.
            unsafe {
                multiply(&mut tiles.data[c], &left, &right, a_shape.0, b_shape.0, c_shape.1 / 4);
            }
        }
    }
    Ok(())
}

/// `tdpbf16ps`: C\[m, n\] += sum over k of the products of pairs (2 k, 2 k + 1) of A's row m and B's
/// column n, B's row k holding the pairs of all columns next to each other.
///
/// As the manual has it: of each element, the first of the pairs are summed by FMA from zero in
/// ascending k, the second likewise, then the two sums are added, then C. Every step rounds to
/// nearest even, takes denormal operands as zero and flushes denormal results to zero. (Denormals
/// are flushed here after rounding to their precision, not to that of a normal number: a result
/// that rounds up to the least normal number may differ.)
#[target_feature(enable = "avx2,fma")]
fn multiply(c: &mut Rows, a: &Rows, b: &Rows, rows: usize, pairs: usize, cols: usize) {
    let flushed = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x };
    let word = |row: &[u8; ROW_BYTES], i: usize| {
        u32::from_le_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]])
    };
    let first = |word: u32| flushed(f32::from_bits(word << 16));
    let second = |word: u32| flushed(f32::from_bits(word & 0xFFFF_0000));
    let mut split = [[[0f32; 16]; 2]; ROWS];
    for (split, row) in split.iter_mut().zip(b) {
        let [firsts, seconds] = split;
        for (n, (one, two)) in firsts.iter_mut().zip(seconds).enumerate() {
            (*one, *two) = (first(word(row, n)), second(word(row, n)));
        }
    }
    for (c, a) in c[..rows].iter_mut().zip(a) {
        let mut sums = [[0f32; 16]; 2];
        for (k, split) in split[..pairs].iter().enumerate() {
            for n in 0..16 {
                sums[0][n] = flushed(first(word(a, k)).mul_add(split[0][n], sums[0][n]));
            }
            for n in 0..16 {
                sums[1][n] = flushed(second(word(a, k)).mul_add(split[1][n], sums[1][n]));
            }
        }
        for n in 0..16 {
            let pair = flushed(sums[0][n] + sums[1][n]);
            let sum = flushed(flushed(f32::from_bits(word(c, n))) + pair);
            let value = if n < cols { sum.to_bits() } else { 0 };
            c[4 * n..4 * n + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    c[rows..].fill([0; ROW_BYTES]);
}
