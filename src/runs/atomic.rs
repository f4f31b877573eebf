//! Replacing a file so that a reader, and whoever comes after a killed process, sees the old or the new one.
//!
//! For that a file is written beside the old one and renamed over it. Against a loss of power it takes more, to force bytes
//! and names to disk, and milliseconds each time. So only what a run cannot be continued without is forced
//! ([`replace_forced`], [`force`]): checkpoints, with the first one the configuration, and the journal. What can be made again
//! (report, closing, environment) is not.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// How the name of a file ends that is not complete yet.
const PARTIAL: &str = ".partial";

thread_local! {
    static SYNCED: Cell<bool> = const { Cell::new(true) };
}

/// Does `work` in this thread without forcing files to disk: for many short runs that can be made again. A process
/// that is killed still leaves whole files; a loss of power may not.
pub fn without_sync<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            SYNCED.set(self.0);
        }
    }
    let _restore = Restore(SYNCED.replace(false));
    work()
}

#[cfg(test)]
thread_local! {
    /// How often this thread forced something to disk.
    pub(crate) static FORCED: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread forces files to disk.
fn forces() -> bool {
    #[cfg(test)]
    FORCED.set(FORCED.get() + usize::from(SYNCED.get()));
    SYNCED.get()
}

/// Forces the data of a file to disk, where this thread does so.
pub fn sync_data(file: &File) -> io::Result<()> {
    if forces() { file.sync_data() } else { Ok(()) }
}

/// Forces a file to disk that was written before, where this thread does so.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn force(path: &Path) -> Result<()> {
    let forced = || if forces() { File::open(path)?.sync_all() } else { Ok(()) };
    forced().map_err(|e| Error::io("write", path, e))
}

/// Replaces `path` by what `write` puts into an empty file.
///
/// The new file is written beside the old one and renamed over it. When anything fails before the rename, the old
/// file is as it was and the partial one is removed.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    put(path, write, false)
}

/// As [`replace`], and forces the file to disk before it is renamed, and the folder after that.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn replace_forced(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    put(path, write, true)?;
    sync_folder(parent(path)).map_err(|e| Error::io("write", path, e))
}

fn put(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>, forced: bool) -> Result<()> {
    let partial = partial_name(path);
    let mut file = File::create_new(&partial).map_err(|e| Error::io("create", path, e))?;
    let written =
        write(&mut file).and_then(|()| if forced && forces() { file.sync_all() } else { Ok(()) });
    drop(file);
    if let Err(source) = written.and_then(|()| fs::rename(&partial, path)) {
        // The first failure is the one to report; a leftover is removed by the next writer.
        let _ = fs::remove_file(&partial);
        return Err(Error::io("write", path, source));
    }
    Ok(())
}

/// Forces the names in a folder to disk, where the system has such a thing.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) && forces() { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Removes partial files that a killed process left in `folder`. To be called only by the process
/// that holds the folder's lock.
pub fn remove_partial(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("read", folder, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(PARTIAL) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// The folder that holds `path`.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A hidden name beside `path` that no other writer of this or another process uses.
fn partial_name(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (process, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    parent(path).join(format!(".{name}.{process}-{n}{PARTIAL}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::runs::scratch::Scratch;

    #[test]
    fn a_failing_write_leaves_the_old_file_whole() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        replace(&path, |file| file.write_all(b"old and whole")).unwrap();
        let error = replace(&path, |file| {
            file.write_all(b"half of the n")?;
            assert_eq!(fs::read(&path)?, b"old and whole", "the old file while writing");
            Err(io::Error::other("disk on fire"))
        })
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("model.safetensors") && text.contains("disk on fire"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"old and whole");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn leftovers_of_a_killed_writer_are_removed_and_nothing_else() {
        let scratch = Scratch::new();
        let path = scratch.path().join("metrics.jsonl");
        replace(&path, |file| file.write_all(b"rows")).unwrap();
        fs::write(partial_name(&path), b"ro").unwrap();
        fs::write(scratch.path().join("mine.partial"), b"a user's file").unwrap();
        remove_partial(scratch.path()).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
        assert_eq!(fs::read(&path).unwrap(), b"rows");
    }
}
