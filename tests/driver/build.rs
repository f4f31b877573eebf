//! Builds the stand-in for libcuda from `tests/driver` and `kernels`, and runs tests on it: each
//! in a process of its own, started with the loader's path set. Or runs them on the driver of this machine.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Instant;

/// Names the test that this process was started for, to run it.
const INSIDE: &str = "TWOCLOCKS_INSIDE_STAND_IN";

/// Tests that need the stand-in, and no GPU can run: kernels that have no PTX, planted faults, calls that are
/// counted, programs that are not carried along. A name that ends in `::` is a whole file.
const OF_THE_STAND_IN: &[&str] = &[
    "tool::",
    "build::says_where_the_stand_in_is",
    "cluster::blocks_of_a_cluster_reach_each_other",
    "cluster::clusters_that_a_driver_refuses",
    "cluster::clusters_need_a_later_gpu",
    "cluster::memory_of_a_block_that_has_not_begun_is_not_touched",
    "cluster::memory_of_a_block_that_has_returned_is_not_touched",
    "cluster::a_thread_that_misses_the_barrier_of_a_cluster_is_named",
    "cluster::a_rank_outside_of_the_cluster_is_caught",
    "device::the_stand_in_is_found_and_named_as_such",
    "device::doctor_names_the_stand_in",
    "device::auto_stays_on_the_cpu_and_says_why",
    "device::works_are_timed_by_the_device",
    "graphs::a_missing_dependency_shows",
    "graphs::dependencies_that_are_none_are_refused",
    "hopper::on_a_tape::the_cubin_is_loaded_where_the_driver_takes_it",
    "hopper::tiles",
    "hopper::an_mbarrier_that_nobody_initialised_is_caught",
    "hopper::a_missing_arrival_is_a_deadlock",
    "hopper::too_many_expected_bytes_are_a_deadlock",
    "hopper::too_few_expected_bytes_are_caught",
    "hopper::a_tile_that_nobody_waits_for_is_caught",
    "hopper::a_store_that_nobody_waits_for_is_caught",
    "hopper::products_of_a_warpgroup",
    "hopper::descriptors_are_checked",
    "hopper::descriptors_agree_within_a_warp",
    "replay::calls_of_a_launch",
    "replay::memory_that_is_not_there",
    "training::the_command_trains_the_digits",
];

/// Of a file that is listed, what a GPU runs all the same.
const NOT_OF_IT: &str = "tool::every_kernel_loads";

/// A stand-in for a GPU of compute capability 9.0.
pub const HOPPER: [(&str, &str); 1] = [("TWOCLOCKS_STANDIN_CAPABILITY", "90")];

/// Where tests run: on the stand-in, or with `system` on the driver that the loader finds, of a GPU.
const DRIVER: &str = "TWOCLOCKS_TEST_DRIVER";

/// The folder that holds `kernels/ptx`, for a program that was taken to another machine.
const ROOT: &str = "TWOCLOCKS_TEST_ROOT";

/// In what order threads go on; see `tests/driver/README.md`.
pub const ORDERS: [&str; 4] = ["forward", "reverse", "shuffle:1", "shuffle:2"];

/// Whether tests run on the driver of this machine instead of the stand-in.
pub fn on_system() -> bool {
    match std::env::var(DRIVER).as_deref() {
        Err(_) | Ok("" | "stand-in") => false,
        Ok("system") => true,
        Ok(other) => panic!("{DRIVER} is '{other}', not stand-in or system"),
    }
}

/// Whether `entry` of the list names this test.
fn names(entry: &str, test: &str) -> bool {
    match entry.ends_with("::") {
        true => test.starts_with(entry) && test != NOT_OF_IT,
        false => test == entry,
    }
}

fn listed(test: &str) -> bool {
    OF_THE_STAND_IN.iter().any(|entry| names(entry, test))
}

/// Whether the test of that name is of the stand-in itself, and this is a GPU; says SKIPPED then.
pub fn skipped(name: &str) -> bool {
    let skipped = on_system() && listed(name);
    if skipped {
        println!("\nSKIPPED: {name} is a test of the stand-in, and this is a driver");
    }
    skipped
}

/// What only the stand-in has asks this first, so that the list above is found wanting without a GPU too.
pub fn needs_the_stand_in() {
    let name = std::env::var(INSIDE).unwrap_or_default();
    let whose = "needs the stand-in: add it to OF_THE_STAND_IN in tests/driver/build.rs";
    assert!(listed(&name), "the test '{name}' {whose}");
    assert!(!on_system(), "the test '{name}' is of the stand-in, and this is a driver");
}

/// The folder of the library, for a test that starts other programs on it: `None` where it is skipped.
#[cfg(all(feature = "cuda", feature = "cli"))]
pub fn library_for(name: &str) -> Option<&'static Path> {
    assert!(listed(name), "add '{name}' to OF_THE_STAND_IN in tests/driver/build.rs");
    if skipped(name) { None } else { library() }
}

/// A file of the crate that tests read when they run.
pub fn file(path: &str) -> PathBuf {
    let root = std::env::var_os(ROOT).unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join(path)
}

/// `body` on the stand-in, once in each of `orders`, or twice on a GPU; all must print the same digests.
/// `name` is the test's own. Says SKIPPED where there is no C++ compiler, which is a failure in CI.
pub fn on_stand_in(name: &str, orders: &[&str], body: impl FnOnce()) {
    on_stand_in_with(name, orders, &[], body);
}

/// The same with `variables` set.
pub fn on_stand_in_with(
    name: &str,
    orders: &[&str],
    variables: &[(&str, &str)],
    body: impl FnOnce(),
) {
    if skipped(name) {
        return;
    }
    if inside() {
        body();
        return;
    }
    let mut first: Option<(&str, String)> = None;
    let orders = if on_system() { &["the first run", "the second run"] } else { orders };
    for order in orders {
        let ordered = [variables, &[("TWOCLOCKS_STANDIN_ORDER", order)]].concat();
        let variables = if on_system() { &[][..] } else { &ordered };
        let Some(output) = start(name, variables) else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}, {order}: {}\n{text}{errors}", output.status);
        let digests: String = text.lines().filter(|line| line.starts_with("digest ")).collect();
        match &first {
            None => first = Some((order, digests)),
            Some((other, known)) => {
                assert_eq!(*known, digests, "{name}: {other} and {order} give the same bits");
            }
        }
    }
}

/// Whether this process was started to run its test on the stand-in.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The test `name` of this program on the stand-in, in a process of its own, with `variables` set.
/// `None` where there is no compiler. On a GPU the variables of the stand-in are set too, and mean nothing.
pub fn start(name: &str, variables: &[(&str, &str)]) -> Option<Output> {
    if skipped(name) {
        return None;
    }
    let own = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(own);
    if !on_system() {
        command.env("LD_LIBRARY_PATH", library()?);
    }
    let output = command
        .env("RUST_BACKTRACE", "0")
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .envs(variables.iter().copied())
        .output()
        .expect("this program starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("running 1 test"), "there is no test {name}:\n{text}");
    Some(output)
}

/// The folder of the library, built at most once in a process; `None` without a compiler.
fn library() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(build).as_deref()
}

fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let all = named.into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned));
    let mut found = all.filter(|name| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    found.next()
}

/// Files of a folder with one of these endings, in order of their names.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let ends = |path: &PathBuf| {
        path.extension().is_some_and(|ending| endings.iter().any(|one| ending == *one))
    };
    let mut paths: Vec<PathBuf> = paths.filter(ends).collect();
    paths.sort();
    paths
}

fn build() -> Option<PathBuf> {
    let Some(compiler) = compiler() else {
        assert!(std::env::var_os("CI").is_none(), "CI needs a C++ compiler for the stand-in");
        println!("SKIPPED: there is no C++ compiler to build the stand-in for libcuda with");
        return None;
    };
    let start = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (driver, kernels) = (root.join("tests/driver"), root.join("kernels"));
    // Contraction is off in the PTX as well: both round at the same places.
    let flags = [
        "-std=c++20",
        "-O2",
        "-march=native",
        "-ffp-contract=off",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-missing-field-initializers",
        "-Wno-unknown-pragmas",
        "-Werror",
    ];
    // An object is named by all that goes into it, so one that is there is the right one.
    let mut common = DefaultHasher::new();
    let version = Command::new(&compiler).arg("--version").output().expect("it ran before");
    (version.stdout, flags).hash(&mut common);
    if let Ok(machine) = std::fs::read_to_string("/proc/cpuinfo") {
        machine.lines().find(|line| line.starts_with("flags")).hash(&mut common);
    }
    let headers = [files(&driver, &["hpp"]), files(&kernels.join("common"), &["cuh"])].concat();
    for header in headers {
        std::fs::read(header).expect("it was listed").hash(&mut common);
    }
    let sources =
        [files(&driver, &["cpp"]), files(&driver, &["cu"]), files(&kernels, &["cu"])].concat();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand_in");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let (mut objects, mut compiled, mut all) = (Vec::new(), 0, common.clone());
    for source in &sources {
        let mut hasher = common.clone();
        (source, std::fs::read(source).expect("it was listed")).hash(&mut hasher);
        let name = source.file_stem().expect("it has one").to_string_lossy();
        let object = folder.join(format!("{name}_{:016x}.o", hasher.finish()));
        if !object.exists() {
            let partial = object.with_extension(format!("{}.partial", std::process::id()));
            let mut command = Command::new(&compiler);
            command.args(flags).arg("-I").arg(&driver).arg("-I").arg(&kernels);
            command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&partial);
            run(command);
            std::fs::rename(&partial, &object).expect("it was written");
            compiled += 1;
        }
        object.hash(&mut all);
        objects.push(object);
    }
    let folder = folder.join(format!("{:016x}", all.finish()));
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let library = folder.join("libcuda.so.1");
    if !library.exists() {
        let partial = folder.join(format!("{}.partial", std::process::id()));
        let mut command = Command::new(&compiler);
        // It stays loaded: cudarc closes it after asking whether it is there.
        command.args(["-shared", "-Wl,-soname,libcuda.so.1", "-Wl,-z,nodelete"]);
        command.args(&objects).arg("-ldl").arg("-o").arg(&partial);
        run(command);
        // cudarc asks for this name first.
        std::fs::copy(&partial, folder.join("libcuda.so")).expect("the folder can be written");
        std::fs::rename(&partial, &library).expect("it was written");
        let seconds = start.elapsed().as_secs_f64();
        println!("stand-in built: {compiled} of {} files, {seconds:.1} s", sources.len());
    }
    Some(folder)
}

fn run(mut command: Command) {
    let output = command.output().expect("the compiler ran before");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
}

/// Prints the folder of the library, for scripts that run other programs on it.
#[test]
fn says_where_the_stand_in_is() {
    if skipped("build::says_where_the_stand_in_is") {
        return;
    }
    if let Some(folder) = library() {
        println!("\nstand-in {}", folder.display());
        assert!(folder.join("libcuda.so.1").exists());
    }
}

/// Each name of the list is one of a test: one that was given another name is not forgotten. Prints these tests, for
/// `scripts/gpu-check`.
#[cfg(all(feature = "cuda", feature = "cli"))]
#[test]
fn tests_of_the_stand_in_are_there() {
    let own = std::env::current_exe().expect("this program has a path");
    let output = Command::new(own).arg("--list").output().expect("this program starts again");
    let text = String::from_utf8(output.stdout).expect("names");
    let tests: Vec<&str> = text.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    for entry in OF_THE_STAND_IN {
        assert!(tests.iter().any(|test| names(entry, test)), "there is no test {entry}");
    }
    assert!(tests.contains(&NOT_OF_IT), "{NOT_OF_IT}");
    for test in tests.iter().filter(|test| listed(test)) {
        println!("\nof the stand-in: {test}");
    }
}
