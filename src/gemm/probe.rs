//! Rates of the engines beside `matrixmultiply` and the peak of the registers:
//! `cargo test --release --lib gemm::probe -- --ignored --nocapture`.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Runs `work` on `threads` threads at once, after a round of warming up. One thread: median of its
/// processor time over `rounds`; more: the least time from start to the end of the last, because
/// neighbours stop threads at will.
fn seconds(threads: usize, rounds: usize, reset: &dyn Fn(), work: &(dyn Fn() + Sync)) -> f64 {
    let mut times = Vec::new();
    let (go, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                for round in 1..=rounds + 1 {
                    while go.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                    }
                    work();
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        for round in 1..=rounds + 1 {
            reset();
            let start = Instant::now();
            let own = thread_seconds();
            go.store(round, Ordering::Release);
            work();
            while done.load(Ordering::Acquire) < round * (threads - 1) {
                std::hint::spin_loop();
            }
            times.push(if threads == 1 {
                thread_seconds() - own
            } else {
                start.elapsed().as_secs_f64()
            });
        }
    });
    times.remove(0);
    times.sort_by(f64::total_cmp);
    times[if threads == 1 { times.len() / 2 } else { 0 }]
}

/// GFLOP/s of a plan, its chunks claimed by `threads` threads with spin barriers between phases.
fn rate(isa: Isa, spec: Spec, packed_b: bool, threads: usize) -> f64 {
    let plan = Plan::new(isa, spec, false, packed_b);
    let buffer = |len: usize| vec![0.5f32; len + ALIGNMENT];
    let (a, b) = (buffer(spec.m * spec.k), buffer(plan.packed_b().len().max(spec.k * spec.n)));
    let (mut c, mut scratch) = (buffer(spec.m * spec.n), buffer(plan.scratch_len()));
    let aligned = |p: *const f32| p.align_offset(64);
    let operands = Operands {
        a: Address::F32(a[aligned(a.as_ptr())..].as_ptr()),
        lda: spec.a_shape().1,
        b: Address::F32(b[aligned(b.as_ptr())..].as_ptr()),
        ldb: spec.b_shape().1,
        c: {
            let skip = aligned(c.as_ptr());
            c[skip..].as_mut_ptr()
        },
        ldc: spec.n,
        scratch: {
            let skip = aligned(scratch.as_ptr());
            scratch[skip..].as_mut_ptr()
        },
    };
    let counters: [AtomicUsize; 5] = Default::default();
    let repeats = (2_000_000 / spec.flops().max(1)).max(1) as usize;
    let phases = [plan.pack_chunks(), plan.tiles(), plan.reduce_chunks()];
    let work = || {
        for phase in 0..3 {
            loop {
                let chunk = counters[phase].fetch_add(1, Ordering::Relaxed);
                if chunk >= phases[phase] {
                    break;
                }
                // SAFETY: buffers of the plan's lengths; phases are separated by the barrier below.
                unsafe {
                    match phase {
                        0 => plan.pack(chunk, &operands),
                        1 => plan.tile(chunk, &operands, None),
                        _ => plan.reduce(chunk, &operands, None),
                    }
                }
            }
            if phase < 2 && phases[phase] > 0 && threads > 1 {
                counters[3 + phase].fetch_add(1, Ordering::AcqRel);
                while counters[3 + phase].load(Ordering::Acquire) < threads {
                    std::hint::spin_loop();
                }
            }
        }
    };
    let reset = || counters.iter().for_each(|c| c.store(0, Ordering::Release));
    let rounds = (300_000_000 / spec.flops().max(1)).clamp(15, 400) as usize;
    if threads == 1 {
        let all = || {
            (0..repeats).for_each(|_| {
                reset();
                work()
            })
        };
        spec.flops() as f64 * repeats as f64
            / seconds(1, rounds / repeats.min(rounds) + 15, &|| {}, &all)
            / 1e9
    } else {
        spec.flops() as f64 / seconds(threads, rounds, &reset, &work) / 1e9
    }
}

/// GFLOP/s of fused multiply-adds on registers only.
fn peak(isa: Isa, threads: usize) -> f64 {
    use core::arch::x86_64::*;
    const STEPS: usize = 100_000;
    #[target_feature(enable = "avx512f")]
    fn avx512() {
        let (x, mut sums) = (std::hint::black_box(_mm512_set1_ps(0.5)), [_mm512_set1_ps(1.0); 16]);
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(x, *s, x));
        }
        std::hint::black_box(sums);
    }
    #[target_feature(enable = "avx2,fma")]
    fn avx2() {
        let (x, mut sums) = (std::hint::black_box(_mm256_set1_ps(0.5)), [_mm256_set1_ps(1.0); 12]);
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(x, *s, x));
        }
        std::hint::black_box(sums);
    }
    let (flops, work): (usize, &(dyn Fn() + Sync)) = match isa {
        // SAFETY: the caller goes through the available instruction sets.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => (STEPS * 16 * 32, &|| unsafe { avx512() }),
        // SAFETY: as above.
        Isa::Avx2 => (STEPS * 12 * 16, &|| unsafe { avx2() }),
        Isa::Portable => return f64::NAN,
    };
    (flops * threads) as f64 / seconds(threads, 15, &|| {}, work) / 1e9
}

#[test]
#[ignore = "a measurement"]
fn rates() {
    let cube = |s| Spec::new(s, s, s);
    let specs = [
        cube(64),
        cube(128),
        cube(256),
        cube(512),
        cube(1024),
        Spec::new(128, 2048, 2048),
        Spec::new(128, 2048, 2048).b_transposed(),
        Spec::new(2048, 2048, 128).a_transposed(),
        Spec::new(128, 512, 784),
        Spec::new(784, 512, 128).a_transposed(),
        Spec::new(128, 784, 512).b_transposed(),
        Spec::new(128, 10, 512),
        Spec::new(512, 10, 128).a_transposed(),
        Spec::new(128, 512, 10).b_transposed(),
        Spec::new(128, 64, 64),
        Spec::new(64, 64, 128).a_transposed(),
        Spec::new(128, 64, 64).b_transposed(),
        Spec::new(1, 64, 64),
        Spec::new(1, 512, 784),
        Spec::new(4, 512, 784),
        Spec::new(16, 512, 784),
        Spec::new(1, 512, 784).b_transposed(),
        Spec::new(64, 64, 16384).a_transposed(),
    ];
    for threads in [1, 2] {
        println!("{threads} thread(s), GFLOP/s; packed: B arrives packed");
        for isa in Isa::available() {
            println!("peak {isa}: {:.0}", peak(isa, threads));
        }
        println!(
            "m x n x k, storage of A and B: each engine; all but matrixmultiply also with packed B"
        );
        for spec in specs {
            let letter = |t| if t == Transpose::No { 'N' } else { 'T' };
            print!(
                "{:>4} x{:>4} x{:>5} {}{}:",
                spec.m,
                spec.n,
                spec.k,
                letter(spec.a),
                letter(spec.b)
            );
            for isa in Isa::available() {
                print!(" {:6.1}", rate(isa, spec, false, threads));
                if isa != Isa::Portable {
                    print!(" {:6.1}", rate(isa, spec, true, threads));
                }
            }
            println!();
        }
    }
}

/// Seconds of processor time of this thread: neighbours on the machine do not count.
fn thread_seconds() -> f64 {
    const CLOCK_GETTIME: i64 = 228;
    const CLOCK_THREAD_CPUTIME_ID: i64 = 3;
    let mut time = [0i64; 2];
    // SAFETY: the system call writes seconds and nanoseconds into `time` and clobbers rax, rcx and
    // r11.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") CLOCK_GETTIME => _, in("rdi") CLOCK_THREAD_CPUTIME_ID,
            in("rsi") time.as_mut_ptr(), out("rcx") _, out("r11") _);
    }
    time[0] as f64 + time[1] as f64 * 1e-9
}
