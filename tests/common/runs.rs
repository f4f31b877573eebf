//! Runs in folders of their own: to interrupt them, and to read what they left.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use twoclocks::runs::{Checkpoint, Record, RunFolder};
use twoclocks::train::{Observer, Progress};

/// A folder for one test, removed at its end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("twoclocks-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        Scratch(folder)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Path of the only folder in it.
    pub fn only_folder(&self) -> PathBuf {
        let mut folders: Vec<PathBuf> = std::fs::read_dir(&self.0)
            .expect("readable")
            .map(|entry| entry.expect("entry").path())
            .filter(|path| path.is_dir())
            .collect();
        assert_eq!(folders.len(), 1, "{folders:?}");
        folders.remove(0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sets `stop` after so many steps of this process.
pub struct StopAfter<'a>(pub u64, pub &'a AtomicBool);

impl Observer for StopAfter<'_> {
    fn step(&mut self, _progress: &Progress) {
        self.0 -= 1;
        self.1.store(self.0 == 0, Ordering::Relaxed);
    }
}

/// All that the folder of a run says.
pub fn record(run: &Path) -> Record {
    Record::load(&RunFolder::open(run).expect("a run")).expect("a readable run")
}

/// Everything of a checkpoint that must not depend on interruptions: the tensors.
pub fn bits(run: &Path) -> Vec<(String, Vec<u32>)> {
    let checkpoint =
        Checkpoint::load(&run.join("model.safetensors")).unwrap_or_else(|e| panic!("{e}"));
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    checkpoint.tensors.into_iter().map(|(name, _, values)| (name, bits(values))).collect()
}

/// Losses and rates of the steps.
pub fn steps(run: &Path) -> Vec<(u64, u64, u64)> {
    let steps = record(run).steps;
    steps.iter().map(|row| (row.step, row.loss.to_bits(), row.lr.to_bits())).collect()
}
