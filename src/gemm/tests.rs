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

#[derive(Clone, Copy, Debug)]
struct Case {
    isa: Isa,
    spec: Spec,
    packed_a: bool,
    packed_b: bool,
    single: bool,
    gap: usize,
    integers: bool,
    order: Order,
}

impl Case {
    fn new(isa: Isa, spec: Spec) -> Case {
        let (gap, integers, order) = (3, true, Order::Forward);
        Case { isa, spec, packed_a: false, packed_b: false, single: false, gap, integers, order }
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

/// Packs through the documented layout, one element at a time.
fn pack(layout: PackedLayout, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut packed = vec![0.0; layout.len()];
    for i in 0..layout.count {
        (0..layout.depth).for_each(|p| packed[layout.index(i, p)] = value(i, p));
    }
    packed
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
    let op_a = |i, p| if case.spec.a == Transpose::No { a.at(i, p) } else { a.at(p, i) };
    let op_b = |j, p| if case.spec.b == Transpose::No { b.at(p, j) } else { b.at(j, p) };
    let before: Vec<f32> = (0..m * n).map(|e| c.at(e / n, e % n)).collect();

    let plan = case.plan();
    assert!(!case.single || (plan.tiles() <= 1 && plan.pack_chunks() + plan.reduce_chunks() == 0));
    let packed_a = case.packed_a.then(|| pack(plan.packed_a(), op_a));
    let packed_b = case.packed_b.then(|| pack(plan.packed_b(), op_b));
    // NaN in the scratch: whatever is read must have been written.
    let mut scratch = vec![f32::NAN; plan.scratch_len() + 2 * GUARD];
    let operands = Operands {
        a: packed_a.as_ref().map_or(a.data[GUARD..].as_ptr(), |packed| packed.as_ptr()),
        lda: a.stride,
        b: packed_b.as_ref().map_or(b.data[GUARD..].as_ptr(), |packed| packed.as_ptr()),
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

    for i in 0..m {
        for j in 0..n {
            let start = if case.spec.accumulate { f64::from(before[i * n + j]) } else { 0.0 };
            let (mut sum, mut size) = (start, start.abs());
            for p in 0..k {
                let product = f64::from(op_a(i, p)) * f64::from(op_b(j, p));
                sum += product;
                size += product.abs();
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
    for isa in Isa::available() {
        for m in rows {
            for n in cols {
                for k in [1, 2, 19] {
                    for spec in storages(m, n, k) {
                        check(Case::new(isa, spec));
                    }
                }
            }
        }
    }
}

#[test]
fn edges_of_depth_are_exact() {
    for isa in Isa::available() {
        for k in [3, 8, 64, 127, 128, 255, 256, 257, 383, 384, 385, 511, 512, 513, 769] {
            for spec in storages(15, 33, k) {
                check(Case::new(isa, spec));
                check(Case { single: true, ..Case::new(isa, spec.accumulating()) });
            }
        }
    }
}

#[test]
fn many_tiles_are_exact() {
    for isa in Isa::available() {
        for (m, n, k) in
            [(128, 128, 128), (131, 257, 101), (37, 523, 300), (400, 65, 97), (128, 10, 512)]
        {
            for spec in storages(m, n, k) {
                check(Case::new(isa, spec));
                check(Case { gap: 0, ..Case::new(isa, spec.accumulating()) });
                check(Case { single: true, ..Case::new(isa, spec) });
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
    for isa in Isa::available() {
        for spec in packing_a.into_iter().chain(packing_b) {
            let case = Case::new(isa, spec);
            assert!(isa == Isa::Portable || case.plan().scratch_len() > 0, "{case:?}");
            check(Case { order: Order::Threads, ..case });
            check(Case { single: true, gap: 0, ..case });
        }
        check(Case::new(isa, plain(100, 300, 900)));
    }
}

#[test]
fn random_values_stay_within_the_bound() {
    for isa in Isa::available() {
        for (m, n, k) in [(13, 31, 1), (64, 64, 64), (97, 129, 611), (128, 10, 512), (3, 700, 200)]
        {
            for spec in storages(m, n, k) {
                check(Case { integers: false, ..Case::new(isa, spec) });
                check(Case { integers: false, ..Case::new(isa, spec.accumulating()) });
            }
        }
    }
}

#[test]
fn empty_products() {
    for isa in Isa::available() {
        for (m, n, k) in [(0, 5, 5), (5, 0, 5), (0, 0, 0), (5, 7, 0), (200, 300, 0)] {
            for spec in storages(m, n, k) {
                for packed in [false, true] {
                    let case = Case { packed_a: packed, packed_b: packed, ..Case::new(isa, spec) };
                    check(case);
                    check(Case { spec: spec.accumulating(), ..case });
                }
            }
        }
    }
}

#[test]
fn packed_operands_give_the_same_bits() {
    for isa in Isa::available() {
        for (m, n, k) in
            [(1, 1, 1), (15, 33, 20), (64, 64, 64), (130, 140, 300), (128, 10, 512), (2, 300, 700)]
        {
            for spec in storages(m, n, k) {
                let case = Case { integers: false, ..Case::new(isa, spec) };
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
    for isa in Isa::available() {
        let layout = |m, n| {
            let plan = Plan::new(isa, Spec::new(m, n, 96), true, true);
            (plan.packed_a(), plan.packed_b())
        };
        assert_eq!(layout(40, 1).0, layout(40, 500).0);
        assert_eq!(layout(1, 40).1, layout(500, 40).1);
    }
}

#[test]
fn split_depth_is_exact_and_sums_in_order() {
    for isa in Isa::available() {
        for (m, n, k) in [(10, 20, 40_000), (64, 64, 8_192), (20, 36, 20_001)] {
            for spec in storages(m, n, k) {
                let plan = Plan::new(isa, spec, false, false);
                assert!(plan.reduce_chunks() > 0, "K is split in {spec:?}");
                check(Case::new(isa, spec));
                let packed = Case { packed_a: true, packed_b: true, ..Case::new(isa, spec) };
                check(packed);
                let case = Case { integers: false, ..Case::new(isa, spec.accumulating()) };
                let bits = check(case);
                assert_eq!(bits, check(Case { order: Order::Threads, ..case }), "{case:?}");
            }
        }
    }
}

#[test]
fn any_order_of_chunks_gives_the_same_bits() {
    for isa in Isa::available() {
        for (m, n, k) in [(128, 256, 300), (400, 97, 300), (65, 33, 9_000)] {
            for spec in storages(m, n, k) {
                let case = Case { integers: false, ..Case::new(isa, spec) };
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
    for isa in Isa::available() {
        for (m, n, k) in [(32, 32, 32), (128, 10, 64), (1, 128, 128), (64, 10, 128)] {
            for spec in storages(m, n, k) {
                let plan = Plan::new(isa, spec, false, false);
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
