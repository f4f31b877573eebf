//! The embedded digits: real data that needs no download.
//!
//! The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998, UCI
//! Machine Learning Repository, <https://doi.org/10.24432/C50P49>, CC BY 4.0): 1797 images of 8 x 8
//! grey values 0..=16, and a label 0..=9. `digits/ATTRIBUTION.md` stands beside the file.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::csv;
use super::dataset::{Dataset, Split, Values};
use crate::error::{Error, Result};

static FILE: &[u8] = include_bytes!("digits/digits.csv.gz");

/// What the embedded file is called in messages.
const NAME: &str = "digits";

/// The seed of the split, which is no run's seed: every run is tested on the same rows.
const SPLIT_SEED: u64 = 1998;

/// The digits, 1437 rows to train on and 360 to test on.
///
/// Rows have the shape `[8, 8]`, values are bytes `0..=16`, classes are 0..=9. The split is fixed:
/// one fifth (rounded up) of the rows, drawn at random within each class by a seed of its own.
///
/// # Errors
/// [`Error::Data`] when the embedded file is damaged.
pub fn load() -> Result<Split> {
    let file = Path::new(NAME);
    let mut text = Vec::new();
    GzDecoder::new(FILE)
        .read_to_end(&mut text)
        .map_err(|e| Error::data(file, "embedded file", e.to_string()))?;
    let set = csv::parse(&text, file, &csv::Label::Index(-1))?;
    let bytes = match set.values() {
        Values::U8(v) => v.clone(),
        Values::F32(v) => {
            let grey =
                |&x: &f32| (x.fract() == 0.0 && (0.0..=16.0).contains(&x)).then_some(x as u8);
            v.iter().map(grey).collect::<Option<_>>().ok_or_else(|| {
                Error::data(file, "embedded file", "a value that is no integer 0..=16")
            })?
        }
    };
    Dataset::from_bytes(bytes, set.features(), set.labels().to_vec(), set.classes())?
        .with_name(NAME)
        .with_shape(&[8, 8])?
        .split(0.2, SPLIT_SEED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_its_authors_counted() {
        let Split { train, test } = load().unwrap();
        assert_eq!((train.rows(), test.rows()), (1437, 360));
        for set in [&train, &test] {
            assert_eq!((set.shape(), set.classes(), set.name()), (&[8, 8][..], 10, "digits"));
            assert!(matches!(set.values(), Values::U8(v) if v.iter().max() == Some(&16)));
        }
        let counts: Vec<usize> =
            train.class_counts().iter().zip(test.class_counts()).map(|(a, b)| a + b).collect();
        // The counts that the authors' optdigits.names lists for the test part.
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    /// Figures of earlier runs can be compared only while these rows are the test rows.
    #[test]
    fn split_is_frozen() {
        let Split { train, test } = load().unwrap();
        let sum = |set: &Dataset| match set.values() {
            Values::U8(v) => crc32fast::hash(v),
            Values::F32(_) => 0,
        };
        assert_eq!((sum(&train), sum(&test)), (286677859, 3820454360));
        assert_eq!(test.class_counts(), [35, 37, 35, 37, 36, 36, 37, 36, 34, 37]);
    }
}
