//! Who configures tiles, and when they go, on the processor's own or on the stand-in.

use super::stand_in::{install, is_installed, traps};
use super::*;
use crate::device::control::Control;
use crate::device::cpu::program::{Bound, Program, Span, Task};
use crate::device::cpu::{Launch, Memory, Team};
use crate::tensor::DType;
use core::arch::asm;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether there are tiles here.
fn ready() -> bool {
    let ready = install();
    if !ready {
        println!("SKIPPED: no AMX, and no FMA for its stand-in");
    }
    ready
}

/// What `sttilecfg` stores.
fn stored() -> [u8; 64] {
    let mut bytes = [0xAAu8; 64];
    // SAFETY: `ready` found tiles; 64 writable bytes.
    unsafe {
        asm!("sttilecfg [{}]", in(reg) bytes.as_mut_ptr(), options(nostack, preserves_flags));
    }
    bytes
}

/// Whether this thread carries tile state; all bytes are zero where it does not.
fn carries_tiles() -> bool {
    assert!(stored() == [0; 64] || stored()[0] == 1);
    assert_eq!(stored()[0] == 1, is_configured());
    stored()[0] == 1
}

/// Configurations and releases since `before`, which are counted on the stand-in only.
fn assert_traps(before: stand_in::Traps, configurations: usize, releases: usize) {
    if is_installed() {
        let now = traps();
        assert_eq!(now.configurations - before.configurations, configurations);
        assert_eq!(now.releases - before.releases, releases);
    }
}

#[test]
fn all_tiles_have_sixteen_rows_of_sixty_four_bytes() {
    if !ready() {
        return;
    }
    let _tiles = configure();
    let mut expected = [0; 64];
    expected[0] = 1;
    for tile in 0..8 {
        expected[16 + 2 * tile] = 64;
        expected[48 + tile] = 16;
    }
    assert_eq!(stored(), expected);
}

#[test]
fn a_region_configures_once_and_leaves_nothing_behind() {
    if !ready() {
        return;
    }
    let sequence = || {
        for _ in 0..3 {
            let before = traps();
            assert!(!carries_tiles());
            let region = Region::enter();
            assert!(!carries_tiles(), "entering alone configures nothing");
            for _ in 0..5 {
                let tiles = configure();
                assert!(carries_tiles());
                drop(tiles);
                assert!(carries_tiles());
            }
            drop(Region::enter());
            assert!(carries_tiles(), "an inner region ended the outer one");
            assert_traps(before, 1, 0);
            drop(region);
            assert!(!carries_tiles());
            assert_traps(before, 1, 1);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(sequence);
        scope.spawn(sequence);
    });
    sequence();
}

#[test]
fn outside_a_region_each_use_configures_and_releases() {
    if !ready() {
        return;
    }
    let before = traps();
    for calls in 1..=3 {
        let tiles = configure();
        drop(configure());
        assert!(carries_tiles());
        drop(tiles);
        assert!(!carries_tiles());
        assert_traps(before, calls, calls);
    }
    // A region that ends before the use.
    let region = Region::enter();
    let tiles = configure();
    drop(region);
    assert!(carries_tiles());
    drop(tiles);
    assert!(!carries_tiles());
    assert_traps(before, 4, 4);
}

#[test]
fn a_region_without_tiles_executes_nothing() {
    if !ready() {
        return;
    }
    let before = traps();
    drop(Region::enter());
    assert_traps(before, 0, 0);
}

#[test]
fn a_panic_in_a_region_leaves_no_tiles() {
    if !ready() {
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let _region = Region::enter();
        let _tiles = configure();
        panic!("as asked");
    });
    assert!(outcome.is_err());
    assert!(!carries_tiles());
}

/// Each thread configures at most once a replay, whatever it claims, and is without tiles after it.
#[test]
fn a_replay_is_one_region_of_each_of_its_threads() {
    if !ready() {
        return;
    }
    const THREADS: usize = 3;
    const CHUNKS: usize = 40;
    /// Most configurations of one thread, and whether chunks found tiles of their replay.
    static WORST: AtomicUsize = AtomicUsize::new(0);
    static RAN: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static AT_START: Cell<Option<(u64, usize)>> = const { Cell::new(None) };
    }
    let mut control = Control::new();
    let replay = control.u64_slot("replay", 0);
    let body = move |chunk: &crate::device::cpu::Chunk<'_>| {
        let number = chunk.control().u64(replay);
        let (seen, start) = AT_START.get().unwrap_or((0, 0));
        let start = if seen == number {
            assert!(is_configured(), "a thread lost its tiles between two chunks");
            start
        } else {
            assert!(!carries_tiles(), "tiles were left over from the replay before");
            AT_START.set(Some((number, traps().configurations)));
            traps().configurations
        };
        let tiles = configure();
        assert!(carries_tiles());
        drop(tiles);
        WORST.fetch_max(traps().configurations - start, Ordering::Relaxed);
        RAN.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
    };
    let launch = Launch::new("test").rows(CHUNKS, 1, body).rows(CHUNKS, 1, body);
    let span = |len| Span { region: 0, offset: 0, len, dtype: DType::F32, in_place: false };
    let bound = Bound { launch, inputs: vec![], outputs: vec![span(CHUNKS)], scratch: span(0) };
    let stages = [0, 1].map(|phase| vec![vec![Task { node: 0, phase }]]);
    let mut program = Program::new(vec![bound], &stages, 1, THREADS);
    let team = Team::new(THREADS).expect("threads");
    let mut memory = Memory::zeroed(4 * CHUNKS);
    for number in 1..=50 {
        control.set_u64(replay, number);
        program.replay(&team, [&mut memory].into_iter(), &control);
        assert!(!carries_tiles(), "the calling thread left a replay with tiles");
    }
    assert_eq!(RAN.load(Ordering::Relaxed), 50 * 2 * CHUNKS);
    if is_installed() {
        assert_eq!(WORST.load(Ordering::Relaxed), 1);
    }
    // Whoever helped is on its way out of the last replay, or out.
    let left = Mutex::new(0);
    team.run(&|_| *left.lock().expect("no panic") += usize::from(carries_tiles()));
    assert_eq!(left.into_inner().expect("no panic"), 0);
}

/// A tile instruction on a thread without tiles ends the process by SIGILL, as AMX itself does.
#[test]
fn tiles_that_were_not_configured_are_not_there() {
    const CHILD: &str = "TWOCLOCKS_TEST_UNCONFIGURED_TILES";
    const NAME: &str = "device::cpu::tiles::tests::tiles_that_were_not_configured_are_not_there";
    if !ready() {
        return;
    }
    if std::env::var_os(CHILD).is_some() {
        drop(configure());
        // SAFETY: the signal ends the process.
        unsafe { asm!("tilezero tmm3", out("tmm3") _, options(nostack)) };
        unreachable!("the instruction was carried out");
    }
    let child = std::process::Command::new(std::env::current_exe().expect("the path of this test"))
        .args(["--exact", NAME, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("this test runs again");
    assert_eq!(child.status.signal(), Some(libc::SIGILL), "{child:?}");
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(!is_installed() || said.contains("used without a configuration"), "{said}");
}
