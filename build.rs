//! Tells the crate which compiler and which commit it is built from, so that a run can say so.
//!
//! Needs neither git nor a repository, and never fails the build: what is not known is not set, and
//! `runs::environment` then reads nothing there.

use std::path::Path;
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
