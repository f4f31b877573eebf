//! Tells the crate which compiler and which commit it is built from, so that a run can say so, and
//! embeds the PTX of `kernels/ptx`.
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

/// Writes `kernels.rs`, the table of names and texts that `device::cuda` includes.
fn embed_kernels() {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).expect("cargo sets it");
    let folder = variable("CARGO_MANIFEST_DIR").join("kernels/ptx");
    println!("cargo:rerun-if-changed={}", folder.display());
    let entries = std::fs::read_dir(&folder).expect("kernels/ptx is part of the crate");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .collect();
    paths.sort();
    let mut table = String::from("const MODULES: &[(&str, &str)] = &[\n");
    for path in paths {
        let (name, path) = (path.file_stem().map(Path::new), path.to_str());
        let (Some(name), Some(path)) = (name.and_then(Path::to_str), path) else {
            panic!("a path that is not UTF-8 cannot be embedded: {}", folder.display());
        };
        writeln!(table, "    ({name:?}, include_str!({path:?})),").expect("a string takes it");
    }
    table.push_str("];\n");
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
