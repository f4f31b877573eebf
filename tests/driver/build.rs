//! Builds the stand-in for libcuda from `tests/driver` and `kernels`, and runs tests on it: each
//! in a process of its own, started with the loader's path set.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Instant;

/// Says to a test that it runs on the stand-in: its process was started for it.
const INSIDE: &str = "TWOCLOCKS_INSIDE_STAND_IN";

/// A stand-in for a GPU of compute capability 9.0.
pub const HOPPER: [(&str, &str); 1] = [("TWOCLOCKS_STANDIN_CAPABILITY", "90")];

/// In what order threads go on; see `tests/driver/README.md`.
pub const ORDERS: [&str; 4] = ["forward", "reverse", "shuffle:1", "shuffle:2"];

/// `body` on the stand-in, once in each of `orders`; all must print the same digests. `name` is the
/// test's own. Says SKIPPED where there is no C++ compiler, which is a failure in CI.
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
    if std::env::var_os(INSIDE).is_some() {
        body();
        return;
    }
    let mut first: Option<(&str, String)> = None;
    for order in orders {
        let variables = [variables, &[("TWOCLOCKS_STANDIN_ORDER", order)]].concat();
        let Some(output) = start(name, &variables) else { return };
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
/// `None` where there is no compiler.
pub fn start(name: &str, variables: &[(&str, &str)]) -> Option<Output> {
    let folder = library()?;
    let own = std::env::current_exe().expect("this program has a path");
    let output = Command::new(own)
        .env("RUST_BACKTRACE", "0")
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", folder)
        .envs(variables.iter().copied())
        .output()
        .expect("this program starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("running 1 test"), "there is no test {name}:\n{text}");
    Some(output)
}

/// The folder of the library, built at most once in a process; `None` without a compiler.
pub fn library() -> Option<&'static Path> {
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
