//! Every engine of this machine against a loop in f64: all storages, edges, strides, packed
//! operands, split K, chunk orders.

use super::*;
use std::sync::Mutex;

/// xorshift64*; enough for test data.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    }

    /// An integer in -4..=4: products and sums of a few thousand of them are exact in f32.
    fn integer(&mut self) -> f32 {
        (self.next() % 9) as f32 - 4.0
    }

    /// In [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.next() as f32) / (1u64 << 31) as f32 - 1.0
    }
}

/// In what order the chunks of a phase run.
#[derive(Clone, Copy, Debug)]
enum Order {
    Forward,
    Reverse,
    Shuffled,
    Threads,
}

/// The instruction sets of this machine without stand-ins, which are slow and have a test of their
/// own.
fn sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|&isa| isa != Isa::Amx && isa.is_available())
}

/// Every engine of this machine: instruction set and precision.
fn engines() -> impl Iterator<Item = (Isa, Precision)> {
    let both = |isa| [(isa, Precision::F32), (isa, Precision::Bf16)];
    sets().flat_map(both)
}

/// On the processor's tiles, or on the stand-in for them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn amx_is_exact() {
    if !Isa::Avx512Bf16.is_available() || !crate::device::cpu::tiles::stand_in::install() {
        println!("SKIPPED: no AVX512-BF16");
        return;
    }
    let engine_of =
        |precision| Case::new((Isa::Amx, precision), Spec::new(1, 1, 1)).plan().engine();
    assert_eq!(engine_of(Precision::Bf16), "amx_bf16_32x32");
    assert_eq!(engine_of(Precision::F32Split), "amx_f32_split_32x32");
    for precision in [Precision::Bf16, Precision::F32Split] {
        amx_engine_is_exact((Isa::Amx, precision));
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_engine_is_exact(engine: (Isa, Precision)) {
    let edges = [1, 15, 16, 17, 31, 32, 33, 70];
    for m in edges {
        for n in edges {
            for k in [1, 33] {
                for spec in storages(m, n, k) {
                    check(Case::new(engine, spec));
                }
            }
        }
    }
    for (m, n, k) in [(0, 5, 5), (5, 7, 0), (100, 60, 513), (40, 300, 100), (20, 36, 4_099)] {
        for spec in storages(m, n, k) {
            let case = Case { order: Order::Threads, ..Case::new(engine, spec.accumulating()) };
            check(case);
            let rough = Case { integers: false, ..case };
            let bits = check(rough);
            let packed = Case { packed_a: true, packed_b: true, gap: 0, ..rough };
            assert_eq!(bits, check(packed), "{packed:?}");
            let stored = if engine.1 == Precision::Bf16 { DType::Bf16 } else { DType::F32 };
            let single = Case { single: true, stored, ..rough };
            if Case::new(engine, spec).plan().reduce_chunks() == 0 {
                assert_eq!(bits, check(single), "{single:?}");
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    isa: Isa,
    spec: Spec,
    /// Type of the stored operands.
    stored: DType,
    packed_a: bool,
    packed_b: bool,
    single: bool,
    gap: usize,
    integers: bool,
    order: Order,
}

impl Case {
    fn new((isa, precision): (Isa, Precision), spec: Spec) -> Case {
        Case {
            isa,
            spec: spec.in_precision(precision),
            stored: DType::F32,
            packed_a: false,
            packed_b: false,
            single: false,
            gap: 3,
            integers: true,
            order: Order::Forward,
        }
    }

    fn plan(&self) -> Plan {
        let make = if self.single { Plan::single } else { Plan::new };
        make(self.isa, self.spec, self.packed_a, self.packed_b)
    }
}

/// A matrix with gaps between rows and guards on both sides, all NaN.
struct Stored {
    data: Vec<f32>,
    shape: (usize, usize),
    stride: usize,
}

const GUARD: usize = 19;

impl Stored {
    fn new(shape: (usize, usize), gap: usize, mut value: impl FnMut() -> f32) -> Stored {
        let stride = shape.1 + gap;
        let mut data = vec![f32::NAN; 2 * GUARD + shape.0 * stride];
        for i in 0..shape.0 {
            (0..shape.1).for_each(|j| data[GUARD + i * stride + j] = value());
        }
        Stored { data, shape, stride }
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        self.data[GUARD + i * self.stride + j]
    }

    fn check_gaps(&self, case: &Case) {
        for (place, value) in self.data.iter().enumerate() {
            let inside = place >= GUARD
                && place - GUARD < self.shape.0 * self.stride
                && (place - GUARD) % self.stride < self.shape.1;
            assert!(inside || value.is_nan(), "{case:?}: wrote outside at {place}: {value}");
        }
    }
}

/// An operand in memory, and what keeps it there.
enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Buffer {
    fn new(values: &[f32], dtype: DType) -> Buffer {
        match dtype {
            DType::Bf16 => Buffer::Bf16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
            _ => Buffer::F32(values.to_vec()),
        }
    }

    /// Packs through the documented layout, one element at a time.
    fn packed(layout: PackedLayout, value: impl Fn(usize, usize) -> f32) -> Buffer {
        let mut packed = vec![0.0; layout.len()];
        for i in 0..layout.count {
            for p in 0..layout.depth {
                let mut left = value(i, p);
                for part in 0..layout.parts {
                    packed[layout.index(i, p) + part * layout.width * layout.multiple] = left;
                    left -= rounded(left);
                }
            }
        }
        Buffer::new(&packed, layout.element)
    }

    fn address(&self, skip: usize) -> Address {
        match self {
            Buffer::F32(values) => Address::F32(values[skip..].as_ptr()),
            Buffer::Bf16(values) => Address::Bf16(values[skip..].as_ptr()),
        }
    }
}

/// Runs the chunks of one phase in the order of the case.
fn phase(chunks: usize, order: Order, run: &(dyn Fn(usize) + Sync)) {
    match order {
        Order::Forward => (0..chunks).for_each(run),
        Order::Reverse => (0..chunks).rev().for_each(run),
        Order::Shuffled => {
            let mut all: Vec<usize> = (0..chunks).collect();
            let mut random = Random(0x5EED);
            (1..chunks).for_each(|i| all.swap(i, random.next() as usize % (i + 1)));
            all.into_iter().for_each(run);
        }
        Order::Threads => {
            let next = std::sync::atomic::AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        loop {
                            let chunk = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            if chunk >= chunks {
                                break;
                            }
                            run(chunk);
                        }
                    });
                }
            });
        }
    }
}

/// Runs one case against the oracle and returns the bits of C.
fn check(case: Case) -> Vec<u32> {
    let Spec { m, n, k, .. } = case.spec;
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ (m * 31 + n * 17 + k) as u64);
    let mut value = || if case.integers { random.integer() } else { random.unit() };
    let a = Stored::new(case.spec.a_shape(), case.gap, &mut value);
    let b = Stored::new(case.spec.b_shape(), case.gap, &mut value);
    let before = || if case.spec.accumulate { value() } else { f32::NAN };
    let mut c = Stored::new((m, n), case.gap, before);
    let rounded = |x: f32| match case.spec.precision {
        Precision::F32 | Precision::F32Split => x,
        Precision::Bf16 => rounded(x),
    };
    let op_a = |i, p| rounded(if case.spec.a == Transpose::No { a.at(i, p) } else { a.at(p, i) });
    let op_b = |j, p| rounded(if case.spec.b == Transpose::No { b.at(p, j) } else { b.at(j, p) });
    let before: Vec<f32> = (0..m * n).map(|e| c.at(e / n, e % n)).collect();

    let plan = case.plan();
    assert!(!case.single || (plan.tiles() <= 1 && plan.pack_chunks() + plan.reduce_chunks() == 0));
    let (stored_a, stored_b) =
        (Buffer::new(&a.data, case.stored), Buffer::new(&b.data, case.stored));
    let packed_a = case.packed_a.then(|| Buffer::packed(plan.packed_a(), op_a));
    let packed_b = case.packed_b.then(|| Buffer::packed(plan.packed_b(), op_b));
    // NaN in the scratch: whatever is read must have been written.
    let mut scratch = vec![f32::NAN; plan.scratch_len() + 2 * GUARD];
    let operands = Operands {
        a: packed_a.as_ref().map_or(stored_a.address(GUARD), |packed| packed.address(0)),
        lda: a.stride,
        b: packed_b.as_ref().map_or(stored_b.address(GUARD), |packed| packed.address(0)),
        ldb: b.stride,
        c: c.data[GUARD..].as_mut_ptr(),
        ldc: c.stride,
        scratch: scratch[GUARD..].as_mut_ptr(),
    };
    // The epilogue subtracts 1, and counts its visits.
    let visits = Mutex::new(vec![0u8; m * n]);
    let epilogue = |block: Block| {
        let mut visits = visits.lock().unwrap();
        for i in 0..block.rows {
            // SAFETY: inside an epilogue, one row at a time.
            let row = unsafe { block.row_mut(i) };
            row.iter_mut().for_each(|c| *c -= 1.0);
            (0..block.cols).for_each(|j| visits[(block.row + i) * n + block.col + j] += 1);
        }
    };
    // SAFETY: the operands have the shapes of the plan; each phase completes before the next.
    unsafe {
        phase(plan.pack_chunks(), case.order, &|chunk| plan.pack(chunk, &operands));
        phase(plan.tiles(), case.order, &|chunk| plan.tile(chunk, &operands, Some(&epilogue)));
        phase(plan.reduce_chunks(), case.order, &|chunk| {
            plan.reduce(chunk, &operands, Some(&epilogue));
        });
    }
    assert!(visits.into_inner().unwrap().iter().all(|&v| v == 1), "{case:?}: epilogue visits");
    [&a, &b, &c].iter().for_each(|stored| stored.check_gaps(&case));
    let guards = [&scratch[..GUARD], &scratch[GUARD + plan.scratch_len()..]];
    assert!(guards.concat().iter().all(|s| s.is_nan()), "{case:?}: wrote outside scratch");

    // Rows of op(A) and columns of op(B), in f64.
    let wide = |count: usize, op: &dyn Fn(usize, usize) -> f32| -> Vec<f64> {
        (0..count * k).map(|at| f64::from(op(at / k, at % k))).collect()
    };
    let (rows, columns) = (wide(m, &op_a), wide(n, &op_b));
    for i in 0..m {
        for j in 0..n {
            let start = if case.spec.accumulate { f64::from(before[i * n + j]) } else { 0.0 };
            let (mut sum, mut size) = (start, start.abs());
            for (x, y) in rows[i * k..][..k].iter().zip(&columns[j * k..][..k]) {
                sum += x * y;
                size += (x * y).abs();
            }
            let got = f64::from(c.at(i, j));
            assert!(got.is_finite(), "{case:?}: C[{i}, {j}] = {got}");
            // Any order of k + 2 sums errs by at most (k + 2) eps/2 of the sum of magnitudes
            // (Higham, Accuracy and Stability, 3.1).
            let bound = if case.integers {
                0.0
            } else {
                (k + 2) as f64 * f64::from(f32::EPSILON) / 2.0 * (size + 1.0)
            };
            assert!(
                (got - (sum - 1.0)).abs() <= bound,
                "{case:?}: C[{i}, {j}] = {got}, not {}",
                sum - 1.0
            );
        }
    }
    (0..m * n).map(|e| c.at(e / n, e % n).to_bits()).collect()
}

/// A shape in all four storages.
fn storages(m: usize, n: usize, k: usize) -> [Spec; 4] {
    let spec = Spec::new(m, n, k);
    [spec, spec.a_transposed(), spec.b_transposed(), spec.a_transposed().b_transposed()]
}

#[test]
fn edges_of_tiles_are_exact() {
    let rows = [1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16, 29, 64];
    let cols = [1, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 47, 64, 73, 128];
    for engine in engines() {
        for m in rows {
            for n in cols {
                for k in [1, 2, 19] {
                    for spec in storages(m, n, k) {
                        check(Case::new(engine, spec));
                    }
                }
            }
        }
    }
}

#[test]
fn edges_of_depth_are_exact() {
    for engine in engines() {
        for k in [3, 8, 64, 127, 128, 255, 256, 257, 383, 384, 385, 511, 512, 513, 769] {
            for spec in storages(15, 33, k) {
                check(Case::new(engine, spec));
                check(Case { single: true, ..Case::new(engine, spec.accumulating()) });
            }
        }
    }
}

#[test]
fn many_tiles_are_exact() {
    for engine in engines() {
        for (m, n, k) in
            [(128, 128, 128), (131, 257, 101), (37, 523, 300), (400, 65, 97), (128, 10, 512)]
        {
            for spec in storages(m, n, k) {
                check(Case::new(engine, spec));
                check(Case { gap: 0, ..Case::new(engine, spec.accumulating()) });
                check(Case { single: true, ..Case::new(engine, spec) });
            }
        }
    }
}

/// Shapes at which engines pack A or a row-major B into scratch or into the buffer of a tile.
#[test]
fn packed_by_the_plan_is_exact() {
    let plain = Spec::new;
    let packing_a = [
        plain(20, 400, 1024),
        plain(9, 300, 8192),
        plain(1024, 260, 9).a_transposed(),
        plain(9, 1600, 40).a_transposed(),
    ];
    let packing_b = [plain(900, 780, 12), plain(400, 65, 97).b_transposed()];
    for engine in engines() {
        for spec in packing_a.into_iter().chain(packing_b) {
            let case = Case::new(engine, spec);
            assert!(
                engine == (Isa::Portable, Precision::F32) || case.plan().scratch_len() > 0,
                "{case:?}"
            );
            check(Case { order: Order::Threads, ..case });
            check(Case { single: true, gap: 0, ..case });
        }
        check(Case::new(engine, plain(100, 300, 900)));
    }
}

#[test]
fn random_values_stay_within_the_bound() {
    for engine in engines() {
        for (m, n, k) in [(13, 31, 1), (64, 64, 64), (97, 129, 611), (128, 10, 512), (3, 700, 200)]
        {
            for spec in storages(m, n, k) {
                check(Case { integers: false, ..Case::new(engine, spec) });
                check(Case { integers: false, ..Case::new(engine, spec.accumulating()) });
            }
        }
    }
}

#[test]
fn empty_products() {
    for engine in engines() {
        for (m, n, k) in [(0, 5, 5), (5, 0, 5), (0, 0, 0), (5, 7, 0), (200, 300, 0)] {
            for spec in storages(m, n, k) {
                for packed in [false, true] {
                    let case =
                        Case { packed_a: packed, packed_b: packed, ..Case::new(engine, spec) };
                    check(case);
                    check(Case { spec: spec.accumulating(), ..case });
                }
            }
        }
    }
}

#[test]
fn packed_operands_give_the_same_bits() {
    for engine in engines() {
        for (m, n, k) in
            [(1, 1, 1), (15, 33, 20), (64, 64, 64), (130, 140, 300), (128, 10, 512), (2, 300, 700)]
        {
            for spec in storages(m, n, k) {
                let case = Case { integers: false, ..Case::new(engine, spec) };
                let stored = check(case);
                for (packed_a, packed_b) in [(true, false), (false, true), (true, true)] {
                    let packed = Case { packed_a, packed_b, ..case };
                    assert_eq!(stored, check(packed), "{packed:?}");
                    assert_eq!(stored, check(Case { single: true, ..packed }), "single {packed:?}");
                }
            }
        }
    }
}

#[test]
fn a_layout_does_not_depend_on_the_other_operand() {
    for engine in engines() {
        let layout = |m, n| {
            let spec = Spec::new(m, n, 96);
            let plan = Case { packed_a: true, packed_b: true, ..Case::new(engine, spec) }.plan();
            (plan.packed_a(), plan.packed_b())
        };
        assert_eq!(layout(40, 1).0, layout(40, 500).0);
        assert_eq!(layout(1, 40).1, layout(500, 40).1);
    }
}

#[test]
fn split_depth_is_exact_and_sums_in_order() {
    for engine in engines() {
        for (m, n, k) in [(10, 20, 40_000), (64, 64, 8_192), (20, 36, 20_001)] {
            for spec in storages(m, n, k) {
                let plan = Case::new(engine, spec).plan();
                assert!(plan.reduce_chunks() > 0, "K is split in {spec:?}");
                check(Case::new(engine, spec));
                let packed = Case { packed_a: true, packed_b: true, ..Case::new(engine, spec) };
                check(packed);
                let case = Case { integers: false, ..Case::new(engine, spec.accumulating()) };
                let bits = check(case);
                assert_eq!(bits, check(Case { order: Order::Threads, ..case }), "{case:?}");
            }
        }
    }
}

#[test]
fn any_order_of_chunks_gives_the_same_bits() {
    for engine in engines() {
        for (m, n, k) in [(128, 256, 300), (400, 97, 300), (65, 33, 9_000)] {
            for spec in storages(m, n, k) {
                let case = Case { integers: false, ..Case::new(engine, spec) };
                assert!(case.plan().tiles() >= 8, "{spec:?}");
                let bits = check(case);
                for order in [Order::Reverse, Order::Shuffled, Order::Threads] {
                    assert_eq!(bits, check(Case { order, ..case }), "{case:?} {order:?}");
                }
            }
        }
    }
}

#[test]
fn small_products_are_one_chunk() {
    for engine in engines() {
        for (m, n, k) in [(32, 32, 32), (128, 10, 64), (1, 128, 128), (64, 10, 128)] {
            for spec in storages(m, n, k) {
                let plan = Case::new(engine, spec).plan();
                assert_eq!(
                    (plan.pack_chunks(), plan.tiles(), plan.reduce_chunks()),
                    (0, 1, 0),
                    "{spec:?}"
                );
            }
        }
    }
}

#[test]
fn slices_are_checked() {
    let (a, b, mut c) = ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0], [0.0; 2]);
    let product = |a: &[f32], c: &mut [f32]| {
        let view = |data, stride| View { data, stride };
        let c = ViewMut { data: c, stride: 1 };
        gemm(Isa::Portable, Spec::new(2, 1, 2), view(a, 2), view(&b, 1), c, None);
    };
    product(&a, &mut c);
    assert_eq!(c, [3.0, 7.0]);
    let short = std::panic::catch_unwind(move || product(&a[..3], &mut [0.0; 2]));
    assert!(short.is_err(), "A of 3 elements cannot be 2 x 2");
}

#[test]
#[should_panic(expected = "C: 1 elements")]
fn a_short_result_is_refused() {
    let one = View { data: &[1.0], stride: 1 };
    gemm(
        Isa::Portable,
        Spec::new(1, 2, 1),
        one,
        View { data: &[1.0; 2], stride: 2 },
        ViewMut { data: &mut [0.0], stride: 2 },
        None,
    );
}

#[test]
fn stored_bf16_gives_the_bits_of_rounded_f32() {
    for isa in sets() {
        let engine = (isa, Precision::Bf16);
        for (m, n, k) in [(1, 1, 1), (17, 33, 35), (64, 64, 64), (130, 140, 300), (20, 36, 9_001)] {
            for spec in storages(m, n, k) {
                let case = Case { integers: false, ..Case::new(engine, spec) };
                assert_eq!(check(case), check(Case { stored: DType::Bf16, ..case }), "{case:?}");
            }
        }
    }
}

/// Packed weights are what the documented layouts say, and those that plans ask for.
#[test]
fn weights_are_packed_as_documented() {
    let shapes = [[1, 1], [64, 64], [784, 10], [70, 33], [130, 200]];
    let mut end = 0;
    let offsets = shapes.map(|[inputs, outputs]| {
        end += 5 + inputs * outputs;
        end - inputs * outputs
    });
    let mut random = Random(7);
    let flat: Vec<f32> = (0..end).map(|_| random.unit()).collect();
    for isa in sets() {
        let weights = || offsets.into_iter().zip(shapes);
        assert!(PackedWeights::new(isa, Precision::F32, weights()).is_none());
        let packer = PackedWeights::new(isa, Precision::Bf16, weights()).expect("packed in bf16");
        let bytes = packer.len() * packer.element().size();
        // f32 elements align the copies for every element type.
        let mut packed = vec![f32::NAN; bytes.div_ceil(4)];
        packer.pack_all(&flat, bytemuck::cast_slice_mut(&mut packed));
        let packed: &[u8] = bytemuck::cast_slice(&packed);
        for weight in packer.weights() {
            let PackedWeight { offset, inputs, outputs, layouts, places } = *weight;
            let plan = |spec: Spec| Plan::new(isa, spec.in_precision(Precision::Bf16), false, true);
            assert_eq!(plan(Spec::new(7, outputs, inputs)).packed_b(), layouts[0]);
            assert_eq!(plan(Spec::new(7, inputs, outputs)).packed_b(), layouts[1]);
            let value = |row: usize, column: usize| rounded(flat[offset + row * outputs + column]);
            let expected =
                [Buffer::packed(layouts[0], |j, p| value(p, j)), Buffer::packed(layouts[1], value)];
            for ((expected, place), layout) in expected.iter().zip(places).zip(layouts) {
                let expected: &[u8] = match expected {
                    Buffer::F32(values) => bytemuck::cast_slice(values),
                    Buffer::Bf16(values) => bytemuck::cast_slice(values),
                };
                let start = place * layout.element.size();
                assert!(
                    packed[start..start + layout.bytes()] == *expected,
                    "{isa} {inputs} x {outputs}"
                );
            }
        }
    }
}

fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// The error test of [`Precision::F32Split`]: from sums of eight products on, its root mean square
/// error against f64 is no larger than that of plain f32, for operands of one sign and of both.
/// Where sizes differ so much that single products make a sum, the parts left out show: then it
/// may be larger by a quarter.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn split_f32_is_as_accurate_as_f32() {
    if !Isa::Avx512Bf16.is_available() || !crate::device::cpu::tiles::stand_in::install() {
        println!("SKIPPED: no AVX512-BF16");
        return;
    }
    let (m, n) = (24, 40);
    for k in [8, 64, 500, 1100] {
        for kind in 0..3 {
            let mut random = Random(k as u64 + kind);
            let mut value = || {
                let x = random.unit();
                match kind {
                    0 => x,
                    1 => x.abs(),
                    _ => x * 2f32.powi((random.next() % 20) as i32 - 10),
                }
            };
            let a: Vec<f32> = (0..m * k).map(|_| value()).collect();
            let b: Vec<f32> = (0..k * n).map(|_| value()).collect();
            let error = |isa, precision| -> f64 {
                let mut c = vec![f32::NAN; m * n];
                let spec = Spec::new(m, n, k).in_precision(precision);
                let (view_a, view_b) = (View { data: &a, stride: k }, View { data: &b, stride: n });
                gemm(isa, spec, view_a, view_b, ViewMut { data: &mut c, stride: n }, None);
                let mut sum = 0.0;
                for (at, &c) in c.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let exact: f64 =
                        (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                    sum += (f64::from(c) - exact).powi(2);
                }
                (sum / (m * n) as f64).sqrt()
            };
            let plain = error(Isa::Avx512, Precision::F32);
            let split = error(Isa::Amx, Precision::F32Split);
            println!("k {k}, kind {kind}: plain {plain:.2e}, split {split:.2e}");
            let most = if kind == 2 { 1.25 * plain } else { plain };
            assert!(split <= most, "k {k}, kind {kind}: {split:e} beside {plain:e}");
        }
    }
}
