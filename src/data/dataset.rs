//! The data set in memory.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::random::{Purpose, Random};
use crate::error::{Error, Result};

/// The values of a data set, row-major `[rows, features]`.
#[derive(Clone, PartialEq)]
pub enum Values {
    /// Bytes, as image files hold them: `0..=255`, not scaled.
    U8(Vec<u8>),
    /// Finite 32-bit floats.
    F32(Vec<f32>),
}

impl Values {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Values::U8(v) => v.len(),
            Values::F32(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rows of values, each with a label. Every value is finite and every label is below
/// [`Self::classes`]: both are checked where a `Dataset` is made.
#[derive(Clone, PartialEq)]
pub struct Dataset {
    values: Values,
    labels: Vec<u32>,
    features: usize,
    shape: Vec<usize>,
    classes: usize,
    class_names: Option<Vec<String>>,
    name: String,
}

/// What is trained on and what is only tested on. Both have the same row shape and the same
/// classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Rows to train on.
    pub train: Dataset,
    /// Rows to test on.
    pub test: Dataset,
}

/// The name of a data set whose maker gave none; the place of the file in messages about it.
const UNNAMED: &str = "arrays";

impl Dataset {
    /// A data set of floats.
    ///
    /// `values` is row-major `[labels.len(), features]`, one label per row in `0..classes`.
    ///
    /// # Errors
    /// [`Error::Data`] when there are no rows, features or classes, when `values` is not
    /// `labels.len() * features` long, when a value is NaN or infinite (naming row and column),
    /// when a label is out of range (naming the row). Rows and columns are counted from 0.
    pub fn from_arrays(
        values: Vec<f32>,
        features: usize,
        labels: Vec<u32>,
        classes: usize,
    ) -> Result<Self> {
        Self::new(Values::F32(values), features, labels, classes)
    }

    /// A data set of bytes; otherwise as [`Self::from_arrays`].
    ///
    /// # Errors
    /// As [`Self::from_arrays`].
    pub fn from_bytes(
        values: Vec<u8>,
        features: usize,
        labels: Vec<u32>,
        classes: usize,
    ) -> Result<Self> {
        Self::new(Values::U8(values), features, labels, classes)
    }

    fn new(values: Values, features: usize, labels: Vec<u32>, classes: usize) -> Result<Self> {
        let bad = |place: String, problem: String| Err(Error::data(UNNAMED, place, problem));
        let rows = labels.len();
        if rows == 0 || features == 0 || classes == 0 {
            return bad(
                "shape".into(),
                format!("{rows} rows, {features} features, {classes} classes; expected at least 1"),
            );
        }
        // Row numbers and classes are 32 bits wide on every device.
        if u32::try_from(rows).is_err() || u32::try_from(classes).is_err() {
            return bad(
                "shape".into(),
                format!("{rows} rows, {classes} classes; at most 2^32 - 1 of each"),
            );
        }
        if rows.checked_mul(features) != Some(values.len()) {
            return bad(
                "shape".into(),
                format!("{} values for {rows} labels of {features} features each", values.len()),
            );
        }
        if let Some(row) = labels.iter().position(|&l| l as usize >= classes) {
            return bad(
                format!("row {row}"),
                format!("label {}; expected 0..={}", labels[row], classes - 1),
            );
        }
        if let Values::F32(v) = &values
            && let Some(i) = first_not_finite(v)
        {
            return bad(
                format!("row {}, column {}", i / features, i % features),
                format!("value {}; expected a finite number", v[i]),
            );
        }
        Ok(Dataset {
            values,
            labels,
            features,
            shape: vec![features],
            classes,
            class_names: None,
            name: UNNAMED.into(),
        })
    }

    /// The same data under another name.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same data with another shape of one row, such as `[28, 28]`.
    ///
    /// # Errors
    /// [`Error::Data`] when the product of `shape` is not [`Self::features`].
    pub fn with_shape(mut self, shape: &[usize]) -> Result<Self> {
        let product = shape.iter().try_fold(1usize, |p, &d| p.checked_mul(d));
        if product != Some(self.features) {
            return Err(Error::data(
                &self.name,
                "shape",
                format!("a row of shape {shape:?} for {} features", self.features),
            ));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The same data with a name for each class.
    ///
    /// # Errors
    /// [`Error::Data`] when there are not [`Self::classes`] names.
    pub fn with_class_names(mut self, names: Vec<String>) -> Result<Self> {
        if names.len() != self.classes {
            return Err(Error::data(
                &self.name,
                "class names",
                format!("{} names for {} classes", names.len(), self.classes),
            ));
        }
        self.class_names = Some(names);
        Ok(self)
    }

    /// All values, `[rows, features]`.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// One label per row, each below [`Self::classes`].
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Number of rows, at least 1 and below 2^32.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Values in one row: the product of [`Self::shape`].
    pub fn features(&self) -> usize {
        self.features
    }

    /// Shape of one row: `[28, 28]` for an image, `[features]` for a table.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of classes. Some of them may have no row here: see [`Self::class_counts`].
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The names of the classes, where the file names them.
    pub fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    /// What this data is called in messages and reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows of each class.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        counts
    }

    /// Writes `rows` as floats over `out`, `[rows.len(), features]`, not normalised.
    ///
    /// # Panics
    /// If `rows` ends beyond the data or `out` has another length.
    pub fn rows_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "{rows:?} of {}", self.rows());
        let range = rows.start * self.features..rows.end * self.features;
        assert_eq!(out.len(), range.len(), "room for {rows:?}");
        match &self.values {
            Values::F32(v) => out.copy_from_slice(&v[range]),
            Values::U8(v) => {
                for (o, &x) in out.iter_mut().zip(&v[range]) {
                    *o = f32::from(x);
                }
            }
        }
    }

    /// A data set of the given rows, in the given order; a row may come more than once.
    ///
    /// # Panics
    /// If `rows` is empty or names a row beyond the data.
    pub fn select(&self, rows: &[u32]) -> Dataset {
        assert!(!rows.is_empty(), "a selection of no rows");
        fn gather<T: Copy>(values: &[T], features: usize, rows: &[u32]) -> Vec<T> {
            let mut out = Vec::with_capacity(rows.len() * features);
            for &row in rows {
                let start = row as usize * features;
                out.extend_from_slice(&values[start..start + features]);
            }
            out
        }
        Dataset {
            values: match &self.values {
                Values::U8(v) => Values::U8(gather(v, self.features, rows)),
                Values::F32(v) => Values::F32(gather(v, self.features, rows)),
            },
            labels: rows.iter().map(|&r| self.labels[r as usize]).collect(),
            features: self.features,
            shape: self.shape.clone(),
            classes: self.classes,
            class_names: self.class_names.clone(),
            name: self.name.clone(),
        }
    }

    /// Sets aside `ceil(rows * test_fraction)` rows for testing, drawn at random within each class.
    ///
    /// Every class gives its share of the test rows to within one row. Both parts keep the order of
    /// the data. The same data, fraction and seed give the same split on every machine.
    ///
    /// # Errors
    /// [`Error::Data`] when the fraction is not between 0 and 1, or would leave no row to train on.
    pub fn split(&self, test_fraction: f64, seed: u64) -> Result<Split> {
        let rows = self.rows();
        let bad = |problem: String| Err(Error::data(&self.name, "test fraction", problem));
        if !(test_fraction > 0.0 && test_fraction < 1.0) {
            return bad(format!("{test_fraction}; expected a number between 0 and 1"));
        }
        // The small term keeps 0.1 of 30 at 3 where the product rounds up.
        let wanted = (rows as f64 * test_fraction - 1e-9).ceil().max(1.0) as usize;
        if wanted >= rows {
            return bad(format!("{test_fraction} of {rows} rows leaves none to train on"));
        }
        let mut shuffled: Vec<u32> = (0..rows as u32).collect();
        Random::new(Purpose::Split, seed, 0).shuffle(&mut shuffled);
        shuffled.sort_by_key(|&row| self.labels[row as usize]);
        // Evenly spaced picks along the rows grouped by class: `wanted` of them in all, and of each
        // class its share to within one.
        let (mut train, mut test) = (Vec::with_capacity(rows - wanted), Vec::with_capacity(wanted));
        for (i, &row) in shuffled.iter().enumerate() {
            let before = i as u128 * wanted as u128 / rows as u128;
            let after = (i as u128 + 1) * wanted as u128 / rows as u128;
            if after > before { test.push(row) } else { train.push(row) }
        }
        assert_eq!(test.len(), wanted);
        train.sort_unstable();
        test.sort_unstable();
        Ok(Split { train: self.select(&train), test: self.select(&test) })
    }
}

/// Says what the data set is without printing its values.
impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("name", &self.name)
            .field("rows", &self.rows())
            .field("shape", &self.shape)
            .field("classes", &self.classes)
            .field("values", &self.values)
            .finish_non_exhaustive()
    }
}

/// Element type and number of the values.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Values::U8(v) => write!(f, "U8 x {}", v.len()),
            Values::F32(v) => write!(f, "F32 x {}", v.len()),
        }
    }
}

/// Index of the first NaN or infinity.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const BLOCK: usize = 1 << 16;
    values.par_chunks(BLOCK).enumerate().find_map_first(|(block, chunk)| {
        // The plain `all` without early exit vectorises; the position is looked for only when there
        // is one.
        let finite = chunk.iter().fold(true, |ok, x| ok & x.is_finite());
        if finite {
            return None;
        }
        chunk.iter().position(|x| !x.is_finite()).map(|i| block * BLOCK + i)
    })
}

/// Puts a file's name in the place of [`UNNAMED`] in an error of [`Dataset::from_arrays`] and its
/// kin.
pub(super) fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Data { place, problem, .. } => Error::Data { file: path.to_owned(), place, problem },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message<T: fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let bad = |v: Vec<f32>, f, l: Vec<u32>, c| message(Dataset::from_arrays(v, f, l, c));
        assert_eq!(
            bad(vec![1.0; 5], 3, vec![0, 1], 2),
            "arrays: shape: 5 values for 2 labels of 3 features each"
        );
        assert_eq!(bad(vec![1.0; 6], 3, vec![0, 2], 2), "arrays: row 1: label 2; expected 0..=1");
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // Beyond one block, so that the block's offset counts.
            let mut v = vec![0.0; 3 * 40_000];
            v[3 * 39_999 + 2] = x;
            v[3 * 30_000 + 1] = x;
            assert_eq!(
                bad(v, 3, vec![0; 40_000], 1),
                format!("arrays: row 30000, column 1: value {x}; expected a finite number")
            );
        }
        assert!(bad(vec![], 3, vec![], 2).contains("0 rows, 3 features, 2 classes"));
        assert!(bad(vec![], 0, vec![0], 2).contains("0 features"));
        assert!(bad(vec![1.0], 1, vec![0], 0).contains("0 classes"));
        assert!(bad(vec![1.0], usize::MAX, vec![0, 0], 1).contains("1 values for 2 labels"));
        let set = Dataset::from_bytes(vec![1; 6], 3, vec![0, 1], 2).unwrap().with_name("six");
        assert!(message(set.clone().with_shape(&[2, 2])).contains("[2, 2] for 3 features"));
        assert!(message(set.with_class_names(vec![])).contains("0 names for 2 classes"));
    }

    #[test]
    fn rows_as_floats() {
        let bytes = Dataset::from_bytes(vec![0, 1, 2, 253, 254, 255], 2, vec![0, 1, 0], 2).unwrap();
        let mut out = [f32::NAN; 4];
        bytes.rows_f32(1..3, &mut out);
        assert_eq!(out, [2.0, 253.0, 254.0, 255.0]);
        let floats = Dataset::from_arrays(vec![0.5, -1.5], 1, vec![0, 1], 2).unwrap();
        floats.rows_f32(1..2, &mut out[..1]);
        assert_eq!(out[0], -1.5);
        assert_eq!(bytes.class_counts(), [2, 1]);
    }

    #[test]
    fn split_needs_a_fraction() {
        let set = Dataset::from_bytes(vec![0; 3], 1, vec![0; 3], 1).unwrap();
        for fraction in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(message(set.split(fraction, 0)).contains("between 0 and 1"));
        }
        assert!(message(set.split(0.9, 0)).contains("0.9 of 3 rows leaves none"));
    }

    proptest! {
        #[test]
        fn split_is_stratified(
            labels in proptest::collection::vec(0u32..4, 2..300),
            fraction in 0.01f64..0.6,
            seed: u64,
        ) {
            let rows = labels.len();
            // The value of each row is its number, so that rows can be told apart afterwards.
            let values = (0..rows).map(|r| r as f32).collect();
            let set = Dataset::from_arrays(values, 1, labels, 4).unwrap();
            let Ok(split) = set.split(fraction, seed) else {
                prop_assert!((rows as f64 * fraction).ceil() as usize >= rows);
                return Ok(());
            };
            let numbers = |d: &Dataset| match d.values() {
                Values::F32(v) => v.iter().map(|&x| x as u32).collect::<Vec<_>>(),
                Values::U8(_) => unreachable!(),
            };
            let (train, test) = (numbers(&split.train), numbers(&split.test));
            prop_assert!(train.is_sorted() && test.is_sorted());
            let mut all = [train, test.clone()].concat();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..rows as u32));
            for (&row, &label) in test.iter().zip(split.test.labels()) {
                prop_assert_eq!(set.labels()[row as usize], label);
            }
            let share = test.len() as f64 / rows as f64;
            for (whole, part) in set.class_counts().iter().zip(split.test.class_counts()) {
                prop_assert!((part as f64 - *whole as f64 * share).abs() <= 1.0);
            }
        }
    }
}
