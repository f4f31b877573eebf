//! The stand-in itself: decoding, what a product is, what is refused.

use super::*;

/// The instruction of these bytes, with the numbered registers set to values.
fn decoded(bytes: &[u8], set: &[(usize, u64)]) -> Option<Instruction> {
    let mut registers = [0xBAD; 16];
    for &(number, value) in set {
        registers[number] = value;
    }
    let mut code = [0x90; 16];
    code[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: 16 readable bytes, more than an instruction has.
    let (instruction, length) = unsafe { decode(code.as_ptr(), &registers) }?;
    assert_eq!(length, bytes.len(), "{instruction:?}");
    match instruction {
        // Relative to the instruction: said from its end on.
        Instruction::LoadConfiguration { from } if bytes[4] == 0x05 => {
            let end = code.as_ptr() as u64 + length as u64;
            Some(Instruction::LoadConfiguration { from: from - end })
        }
        _ => Some(instruction),
    }
}

/// Bytes as GNU as makes them of the text on the left.
#[test]
fn every_form_of_address_is_decoded() {
    use Instruction::*;
    let check = |text: &str, bytes: &[u8], set: &[(usize, u64)], expected: Instruction| {
        assert_eq!(decoded(bytes, set), Some(expected), "{text}");
    };
    let (rax, rcx, rbx, rsp, rbp, rsi, rdi) = (0, 1, 3, 4, 5, 6, 7);
    let (r8, r9, r12, r13, r15) = (8, 9, 12, 13, 15);
    check(
        "ldtilecfg [rax]",
        &[0xC4, 0xE2, 0x78, 0x49, 0x00],
        &[(rax, 0x1000)],
        LoadConfiguration { from: 0x1000 },
    );
    check(
        "ldtilecfg [rip + 0x100]",
        &[0xC4, 0xE2, 0x78, 0x49, 0x05, 0x00, 0x01, 0x00, 0x00],
        &[],
        LoadConfiguration { from: 0x100 },
    );
    check(
        "ldtilecfg [r13 + 8 * r12 - 16]",
        &[0xC4, 0x82, 0x78, 0x49, 0x44, 0xE5, 0xF0],
        &[(r13, 0x1000), (r12, 0x20)],
        LoadConfiguration { from: 0x10F0 },
    );
    check(
        "sttilecfg [rsp + 0x1234]",
        &[0xC4, 0xE2, 0x79, 0x49, 0x84, 0x24, 0x34, 0x12, 0x00, 0x00],
        &[(rsp, 0x10000)],
        StoreConfiguration { to: 0x11234 },
    );
    check("tilerelease", &[0xC4, 0xE2, 0x78, 0x49, 0xC0], &[], Release);
    check("tilezero tmm7", &[0xC4, 0xE2, 0x7B, 0x49, 0xF8], &[], Zero { tile: 7 });
    check(
        "tileloadd tmm5, [rbx + rcx]",
        &[0xC4, 0xE2, 0x7B, 0x4B, 0x2C, 0x0B],
        &[(rbx, 0x1000), (rcx, 64)],
        Load { tile: 5, start: 0x1000, stride: 64 },
    );
    check(
        "tileloadd tmm0, [r9 + r15 * 4 + 8]",
        &[0xC4, 0x82, 0x7B, 0x4B, 0x44, 0xB9, 0x08],
        &[(r9, 0x1000), (r15, 16)],
        Load { tile: 0, start: 0x1008, stride: 64 },
    );
    check(
        "tileloadd tmm1, [rbp + r8]",
        &[0xC4, 0xA2, 0x7B, 0x4B, 0x4C, 0x05, 0x00],
        &[(rbp, 0x1000), (r8, 128)],
        Load { tile: 1, start: 0x1000, stride: 128 },
    );
    check(
        "tileloadd tmm1, [r12]",
        &[0xC4, 0xC2, 0x7B, 0x4B, 0x0C, 0x24],
        &[(r12, 0x1000)],
        Load { tile: 1, start: 0x1000, stride: 0 },
    );
    check(
        "tileloadd tmm2, [rcx * 2 + 0x40]",
        &[0xC4, 0xE2, 0x7B, 0x4B, 0x14, 0x4D, 0x40, 0x00, 0x00, 0x00],
        &[(rcx, 32)],
        Load { tile: 2, start: 0x40, stride: 64 },
    );
    check(
        "tileloaddt1 tmm6, [r13 + rax * 8 - 128]",
        &[0xC4, 0xC2, 0x79, 0x4B, 0x74, 0xC5, 0x80],
        &[(r13, 0x1000), (rax, 8)],
        Load { tile: 6, start: 0xF80, stride: 64 },
    );
    check(
        "tilestored [rdi + rsi * 2 - 0x1000], tmm3",
        &[0xC4, 0xE2, 0x7A, 0x4B, 0x9C, 0x77, 0x00, 0xF0, 0xFF, 0xFF],
        &[(rdi, 0x3000), (rsi, 32)],
        Store { tile: 3, start: 0x2000, stride: 64 },
    );
    check(
        "tdpbf16ps tmm2, tmm5, tmm7",
        &[0xC4, 0xE2, 0x42, 0x5C, 0xD5],
        &[],
        Multiply { c: 2, a: 5, b: 7 },
    );
}

#[test]
fn other_instructions_are_not_taken_for_tiles() {
    for (text, bytes) in [
        ("ud2", &[0x0F, 0x0B][..]),
        ("tdpbssd tmm2, tmm5, tmm7", &[0xC4, 0xE2, 0x43, 0x5E, 0xD5]),
        ("tdpfp16ps tmm2, tmm5, tmm7", &[0xC4, 0xE2, 0x43, 0x5C, 0xD5]),
        ("tilezero tmm15", &[0xC4, 0x62, 0x7B, 0x49, 0xF8]),
    ] {
        assert_eq!(decoded(bytes, &[]), None, "{text}");
    }
}

/// Tiles of that many rows and row bytes, all the same.
fn tiles(rows: u8, row_bytes: u16) -> Tiles {
    Tiles {
        configured: true,
        rows: [rows; TILES],
        row_bytes: [row_bytes; TILES],
        ..Tiles::RELEASED
    }
}

fn word(tiles: &mut Tiles, tile: usize, row: usize, place: usize) -> &mut [u8; 4] {
    let bytes = &mut tiles.data[tile][row][4 * place..4 * place + 4];
    bytes.try_into().expect("four bytes")
}

fn product(tiles: &mut Tiles) -> Result<(), &'static str> {
    // SAFETY: names no memory.
    unsafe { execute(tiles, Instruction::Multiply { c: 0, a: 1, b: 2 }) }
}

#[test]
fn firsts_and_seconds_are_summed_apart_and_denormals_flushed() {
    if !is_x86_feature_detected!("fma") || !is_x86_feature_detected!("avx2") {
        println!("SKIPPED: no FMA");
        return;
    }
    // One row, one column, pairs of A against pairs of B.
    let pairs = |c: f32, a: &[[f32; 2]], b: &[[f32; 2]]| {
        let mut tiles = tiles(16, 64);
        *word(&mut tiles, 0, 0, 0) = c.to_le_bytes();
        let packed = |pair: [f32; 2]| {
            let [first, second] = pair.map(f32::to_bits);
            assert_eq!((first | second) & 0xFFFF, 0, "a value has more bits than a bf16");
            (first >> 16 | second).to_le_bytes()
        };
        for (k, (&a, &b)) in a.iter().zip(b).enumerate() {
            *word(&mut tiles, 1, 0, k) = packed(a);
            *word(&mut tiles, 2, k, 0) = packed(b);
        }
        product(&mut tiles).expect("tiles fit");
        f32::from_le_bytes(*word(&mut tiles, 0, 0, 0))
    };
    assert_eq!(pairs(1.0, &[[2.0, 3.0]], &[[5.0, 7.0]]), 32.0);
    // 2^24 + 1 rounds to 2^24; one after the other the small ones would be lost.
    let large = 16_777_216.0;
    let ones = [[large, 1.0], [0.0, 1.0]];
    assert_eq!(pairs(0.0, &ones, &[[1.0, 1.0]; 2]), large + 2.0);
    // From zero, not from C: C's size does not round the sums.
    assert_eq!(pairs(large, &[[1.0, 1.0]], &[[1.0, 1.0]]), large + 2.0);
    let (least, tiny) = (f32::MIN_POSITIVE, f32::from_bits(0x0040_0000));
    assert!(tiny.is_subnormal());
    assert_eq!(pairs(tiny, &[[0.0, 0.0]], &[[0.0, 0.0]]), 0.0);
    assert_eq!(pairs(0.0, &[[tiny, 0.0]], &[[large, 0.0]]), 0.0);
    assert_eq!(pairs(0.0, &[[least, 0.0]], &[[0.5, 0.0]]), 0.0);
    assert_eq!(pairs(0.0, &[[least, 0.0]], &[[1.0, 0.0]]), least);
    assert!(pairs(0.0, &[[f32::INFINITY, 0.0]], &[[0.0, 0.0]]).is_nan());
}

#[test]
fn what_amx_refuses_is_refused() {
    let mut released = Tiles::RELEASED;
    assert!(product(&mut released).is_err());
    // 16 rows of A against 8 columns' worth of pairs.
    let mut unfit = tiles(16, 64);
    unfit.rows[2] = 8;
    assert!(product(&mut unfit).is_err());
    // SAFETY: names no memory.
    let twice = unsafe { execute(&mut tiles(16, 64), Instruction::Multiply { c: 0, a: 1, b: 1 }) };
    assert!(twice.is_err());
    let configure = |change: fn(&mut [u8; 64])| {
        let mut bytes = [0; 64];
        (bytes[0], bytes[16], bytes[48]) = (1, 64, 16);
        change(&mut bytes);
        let mut tiles = Tiles::RELEASED;
        let from = bytes.as_ptr() as u64;
        // SAFETY: 64 readable bytes.
        let outcome = unsafe { execute(&mut tiles, Instruction::LoadConfiguration { from }) };
        outcome.map(|()| tiles.configured)
    };
    assert_eq!(configure(|_| {}), Ok(true));
    assert_eq!(configure(|bytes| bytes[0] = 0), Ok(false));
    assert!(configure(|bytes| bytes[0] = 2).is_err());
    assert!(configure(|bytes| bytes[5] = 1).is_err());
    assert!(configure(|bytes| bytes[48] = 17).is_err());
    assert!(configure(|bytes| bytes[16] = 65).is_err());
    assert!(configure(|bytes| bytes[48] = 0).is_err());
}

/// Tiles smaller than the largest, through real traps.
#[test]
fn loads_and_stores_keep_to_the_shape_of_a_tile() {
    if !install() {
        println!("SKIPPED: no AMX, and no FMA for its stand-in");
        return;
    }
    let mut configuration = [0u8; 64];
    (configuration[0], configuration[16 + 2 * 3], configuration[48 + 3]) = (1, 20, 5);
    let from: Vec<u8> = (0..100).collect();
    let mut to = [0xEEu8; 16 * 64];
    // SAFETY: five rows of 20 bytes at a distance of 19 and 64 bytes are inside both buffers;
    // the thread is left without tiles.
    unsafe {
        core::arch::asm!(
            "ldtilecfg [{configuration}]",
            "tileloadd tmm3, [{from} + {stride} * 1 + 1]",
            "mov {stride:e}, 32",
            "tilestored [{to} + {stride} * 2], tmm3",
            "tilerelease",
            configuration = in(reg) configuration.as_ptr(),
            from = in(reg) from.as_ptr(),
            to = in(reg) to.as_mut_ptr(),
            stride = inout(reg) 19usize => _,
            out("tmm3") _,
            options(nostack),
        );
    }
    for (place, &byte) in to.iter().enumerate() {
        let (row, col) = (place / 64, place % 64);
        let expected = if row < 5 && col < 20 { (row * 19 + col + 1) as u8 } else { 0xEE };
        assert_eq!(byte, expected, "row {row}, byte {col}");
    }
}
