//! What a training run leaves behind: its folder, its journal, its checkpoint, and a report that
//! shows it beside the runs before it.
//!
//! A run folder is `RECIPE-YYYYmmdd-HHMMSS` (UTC) under a root, and holds
//!
//! | file                | what                                                | written                |
//! |---------------------|-----------------------------------------------------|------------------------|
//! | `config.toml`       | the complete configuration                          | once, atomically       |
//! | `environment.json`  | machine, compiler, commit, date: [`Environment`]     | once, atomically       |
//! | `metrics.jsonl`     | one [`Row`] a line: the [`Journal`]                  | appended               |
//! | `model.safetensors` | weights, optimizer state, position: [`Checkpoint`]   | replaced, atomically   |
//! | `closing.json`      | findings after the last step: [`Closing`]            | replaced, atomically   |
//! | `report.html`       | one page that opens without a network: [`render`]   | replaced, atomically   |
//!
//! A process that is killed at any moment leaves each of them whole, but for a half-written last
//! line of the journal, which readers ignore and the next writer cuts off.

mod atomic;
pub mod checkpoint;
pub mod clocks;
pub mod closing;
pub mod compare;
pub mod environment;
pub mod folder;
pub mod history;
pub mod metrics;
pub mod nearest;
pub mod page;
pub mod picture;
mod plot;
pub mod rank;
pub mod report;
pub mod settings;
pub mod time;

#[cfg(test)]
pub(crate) use atomic::FORCED;
pub use atomic::without_sync;
pub use checkpoint::Checkpoint;
pub use clocks::Clocks;
pub use closing::Closing;
pub use environment::Environment;
pub use folder::RunFolder;
pub use history::{Record, State, Summary, list};
pub use metrics::{Done, Epoch, Journal, Row, Step};
pub use nearest::{Nearest, nearest};
pub use report::render;

/// Replaces a file: whoever opens it sees all of the old one or all of the new one.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) naming the file.
pub fn replace_file(path: &std::path::Path, text: &str) -> crate::Result<()> {
    use std::io::Write;
    atomic::replace(path, |file| file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod scratch {
    //! Folders for tests, removed when dropped.

    use super::folder::METRICS;
    use super::{Journal, Row, RunFolder};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A run of that name under `root`, with these rows in its journal; locked as long as it lives.
    pub fn run(root: &Path, name: &str, rows: Vec<Row>) -> RunFolder {
        let path = root.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(METRICS), "").unwrap();
        let mut folder = RunFolder::open(&path).unwrap();
        folder.lock().unwrap();
        let mut journal = Journal::open(&folder).unwrap();
        for row in rows {
            journal.append(row).unwrap();
        }
        folder
    }

    /// A folder of its own for one test.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("twoclocks-runs-{}-{n}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
