//! Where data comes from.

use std::path::{Path, PathBuf};

use super::csv::{self, Label};
use super::dataset::Split;
use super::input::find;
use super::{digits, idx};
use crate::error::{Error, Result};

/// A place that data can be loaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The embedded digits: [`digits::load`].
    Digits,
    /// A folder of IDX files: [`idx::load`].
    Idx(PathBuf),
    /// A CSV file, or two.
    Csv {
        /// Rows to train on; when there is no test file, rows to test on are set aside from these.
        train: PathBuf,
        /// Rows to test on.
        test: Option<PathBuf>,
        /// The column of labels.
        label: Label,
    },
}

/// The part of a single CSV file that is set aside for testing: one fifth.
const TEST_FRACTION: f64 = 0.2;

/// The seed by which it is drawn, which is no run's seed: every run is tested on the same rows.
const SPLIT_SEED: u64 = 0;

impl Source {
    /// What lies at `path`: a CSV file; or a folder with IDX files, or with `train.csv` and perhaps
    /// `test.csv` (each also with `.gz`, each also with a prefix that ends in `-` or `_`). `label`
    /// is the label column of CSV files; IDX has none.
    ///
    /// # Errors
    /// [`Error::Data`] when nothing is there, when a folder holds neither or both;
    /// [`Error::Io`] when the operating system refuses.
    pub fn at(path: impl AsRef<Path>, label: Label) -> Result<Source> {
        let path = path.as_ref();
        if path.is_file() {
            return Ok(Source::Csv { train: path.to_owned(), test: None, label });
        }
        let bad = |problem: &str| Err(Error::data(path, "folder", problem));
        if !path.try_exists().map_err(|e| Error::io("find", path, e))? {
            return bad(
                "no such file or folder; expected a CSV file or a folder of IDX or CSV files",
            );
        }
        let csv = |part: &str| find(path, &[format!("{part}.csv"), format!("{part}.csv.gz")]);
        match (idx::is_here(path)?, csv("train")?) {
            (true, None) => Ok(Source::Idx(path.to_owned())),
            (false, Some(train)) => Ok(Source::Csv { train, test: csv("test")?, label }),
            (true, Some(_)) => bad("holds both IDX and CSV training data; expected one of them"),
            (false, None) => bad(
                "no training data; looked for train-images-idx3-ubyte, train-images.idx3-ubyte and train.csv, \
                 each also with .gz",
            ),
        }
    }

    /// Loads what is there.
    ///
    /// From a single CSV file one fifth of the rows (rounded up) is set aside for testing, drawn at
    /// random within each class by a fixed seed, so that every run is tested on the same rows.
    ///
    /// # Errors
    /// As [`digits::load`], [`idx::load`], [`csv::load`].
    pub fn load(&self) -> Result<Split> {
        match self {
            Source::Digits => digits::load(),
            Source::Idx(dir) => idx::load(dir),
            Source::Csv { train, test: Some(test), label } => csv::load_pair(train, test, label),
            Source::Csv { train, test: None, label } => {
                csv::load(train, label)?.split(TEST_FRACTION, SPLIT_SEED)
            }
        }
    }
}
