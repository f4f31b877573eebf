//! Tells the crate which compiler and which commit it is built from, so that a run can say so, and
//!
//! embeds the PTX and cubins of `kernels/ptx`.
//!
//! Needs neither git nor a repository, nor a CUDA toolkit: the PTX is committed. What is not known of
//! compiler and commit is not set, and `runs::environment` then reads nothing there.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    if let Some(version) = output(&rustc, &["--version"]) {
        println!("cargo:rustc-env=TWOCLOCKS_RUSTC={version}");
    }
    if let Some(commit) = packaged_commit().or_else(repository_commit) {
        println!("cargo:rustc-env=TWOCLOCKS_COMMIT={commit}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        embed_kernels();
    }
}

/// Writes `kernels.rs`, the tables of PTX and of cubins that `device::cuda` includes.
fn embed_kernels() {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).expect("cargo sets it");
    let folder = variable("CARGO_MANIFEST_DIR").join("kernels/ptx");
    println!("cargo:rerun-if-changed={}", folder.display());
    let entries = std::fs::read_dir(&folder).expect("kernels/ptx is part of the crate");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.sort();
    let mut modules = String::from("const MODULES: &[(&str, &str)] = &[\n");
    let mut cubins = String::from("const CUBINS: &[(&str, &str, &[u8])] = &[\n");
    for path in paths {
        let (stem, text) = (path.file_stem().map(Path::new), path.to_str());
        let (Some(stem), Some(text)) = (stem.and_then(Path::to_str), text) else {
            panic!("a path that is not UTF-8 cannot be embedded: {}", folder.display());
        };
        let written = match path.extension().and_then(|extension| extension.to_str()) {
            Some("ptx") => writeln!(modules, "    ({stem:?}, include_str!({text:?})),"),
            Some("cubin") => {
                // `name.sm_90a.cubin`
                let (name, architecture) = stem.split_once('.').expect("named by architecture");
                writeln!(cubins, "    ({name:?}, {architecture:?}, include_bytes!({text:?})),")
            }
            _ => Ok(()),
        };
        written.expect("a string takes it");
    }
    let table = format!("{modules}];\n{cubins}];\n");
    std::fs::write(variable("OUT_DIR").join("kernels.rs"), table)
        .expect("cargo's folder is writable");
}

/// The commit that `cargo package` wrote down; a packaged crate lies in no repository of its own.
fn packaged_commit() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let after = text.split("\"sha1\"").nth(1)?;
    let commit = after.split('"').nth(1)?;
    commit.bytes().all(|b| b.is_ascii_hexdigit()).then(|| commit.to_owned())
}

/// The commit checked out here. A repository that merely contains this folder (a vendored copy) is
/// somebody else's, and its commit would say nothing about this code.
fn repository_commit() -> Option<String> {
    let top = output("git", &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(".").canonicalize().ok()? {
        return None;
    }
    // HEAD changes on checkout, its log on commit too. A path that is not there would make cargo
    // run this again on every build, so only those that are there are named.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = output("git", &["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    output("git", &["rev-parse", "HEAD"])
}

/// What a program prints on its one line, or nothing where it is missing or fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.trim();
    (output.status.success() && !line.is_empty() && !line.contains('\n')).then(|| line.to_owned())
}
