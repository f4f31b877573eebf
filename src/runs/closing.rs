//! `closing.json`: what was found out about a net after its last step.
//!
//! A run finds out what its share of time allows; the rest is named with what it would take, and filled in on
//! demand (`twoclocks clocks RUN`).

use std::fs;
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::runs::folder::RunFolder;

/// Name of the file.
pub const CLOSING: &str = "closing.json";

/// The findings, each absent where it was left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Closing {
    /// Training steps behind the weights that were examined.
    pub step: u64,
    /// How the test rows were classified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Classified>,
    /// Singular values of weight matrices, from the first layer on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spectra: Vec<Spectrum>,
    /// A training step, node by node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// What was left out for its time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// How the rows of the test set were classified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classified {
    /// Names of the classes; their numbers where the data has no names.
    pub classes: Vec<String>,
    /// Rows of class `[label]` that were taken for class `[predicted]`.
    pub confusion: Vec<Vec<u64>>,
    /// The wrong rows of the highest loss, worst first.
    pub mistakes: Vec<Mistake>,
}

/// A row of the test set that was classified wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    /// Its place in the test set, from 0.
    pub row: usize,
    /// Its class.
    pub label: usize,
    /// What it was taken for.
    pub predicted: usize,
    /// Probability that the net gave to `predicted`.
    pub probability: f64,
    /// Cross-entropy, nats.
    pub loss: f64,
    /// The row as a PNG in base64, where it is a picture ([`picture::dimensions`](super::picture::dimensions)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub png: Option<String>,
}

/// Singular values of a weight matrix, largest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spectrum {
    /// Name of the layer.
    pub name: String,
    /// Inputs and outputs.
    pub shape: [usize; 2],
    /// Those of the starting values.
    pub start: Vec<f64>,
    /// Those after the last step.
    pub end: Vec<f64>,
}

/// A training step as it was timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The device: name, instruction set, threads.
    pub device: String,
    /// Median seconds of a whole step.
    pub step_seconds: f64,
    /// Its nodes, in the order in which they were recorded.
    pub nodes: Vec<NodeTime>,
    /// Whether other work may have lowered the peaks, and with them the floors.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disturbed: bool,
}

/// A node of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeTime {
    /// Layer and operation.
    pub node: String,
    /// The kernel that ran.
    pub kernel: String,
    /// Median seconds, when nodes run one after another.
    pub seconds: f64,
    /// Seconds below which this machine cannot do it: the larger of FLOPs and bytes at their peaks.
    pub floor_seconds: f64,
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What.
    pub what: String,
    /// Seconds that it would take, estimated.
    pub seconds: f64,
}

impl Closing {
    /// Replaces `closing.json`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, folder: &RunFolder) -> Result<()> {
        let mut text = serde_json::to_string(self).expect("plain fields");
        text.push('\n');
        folder.write_atomic(CLOSING, text.as_bytes())
    }

    /// Reads `closing.json`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read, [`Error::Data`] where it is damaged.
    pub fn read(folder: &RunFolder) -> Result<Option<Self>> {
        let path = folder.file(CLOSING);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        let closing: Closing = serde_json::from_slice(&bytes).map_err(|e| {
            let place = format!("line {} column {}", e.line(), e.column());
            Error::data(&path, place, e.to_string())
        })?;
        match closing.problem() {
            Some(problem) => Err(Error::data(&path, "test", problem)),
            None => Ok(Some(closing)),
        }
    }

    /// What does not fit together in it.
    fn problem(&self) -> Option<String> {
        let test = self.test.as_ref()?;
        let classes = test.classes.len();
        if test.confusion.len() != classes || test.confusion.iter().any(|row| row.len() != classes)
        {
            return Some(format!("the confusion matrix is not {classes} x {classes}"));
        }
        let foreign = |mistake: &&Mistake| mistake.label.max(mistake.predicted) >= classes;
        let row = test.mistakes.iter().find(foreign)?.row;
        Some(format!("row {row} is of a class beyond {classes}"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::runs::scratch::Scratch;

    /// What a run of three classes may have found.
    pub fn closing(step: u64) -> Closing {
        let mistake = |row, label, predicted| Mistake {
            row,
            label,
            predicted,
            probability: 0.97,
            loss: 3.5,
            png: Some(crate::runs::picture::png([8, 8, 1], &[row as u8; 64])),
        };
        let spectrum = |name: &str, n: i32| Spectrum {
            name: name.into(),
            shape: [64, n as usize],
            start: (0..n).map(|i| 2.0 - 0.03 * f64::from(i)).collect(),
            end: (0..n).map(|i| 6.0 * f64::exp(-0.2 * f64::from(i))).collect(),
        };
        let node = |node: &str, us: f64| NodeTime {
            node: node.into(),
            kernel: "avx512_14x32".into(),
            seconds: us * 1e-6,
            floor_seconds: 0.4e-6 * us,
        };
        Closing {
            step,
            test: Some(Classified {
                classes: vec!["zero".into(), "one".into(), "<two>".into()],
                confusion: vec![vec![50, 0, 2], vec![1, 48, 0], vec![0, 7, 60]],
                mistakes: vec![mistake(17, 2, 1), mistake(3, 1, 0)],
            }),
            spectra: vec![spectrum("fc1", 40), spectrum("out", 10)],
            profile: Some(Profile {
                device: "cpu (avx512, 2 threads)".into(),
                step_seconds: 61e-6,
                nodes: vec![node("fc1.linear", 20.0), node("loss.softmax_cross_entropy", 5.0)],
                disturbed: false,
            }),
            left_out: vec![LeftOut { what: "singular values of fc2".into(), seconds: 0.25 }],
        }
    }

    #[test]
    fn comes_back_as_it_was_written() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        assert_eq!(Closing::read(&folder).unwrap(), None);
        let found = closing(40);
        found.write(&folder).unwrap();
        assert_eq!(Closing::read(&folder).unwrap(), Some(found));
        let bare = Closing { step: 3, ..Closing::default() };
        bare.write(&folder).unwrap();
        assert_eq!(Closing::read(&folder).unwrap(), Some(bare));
    }

    #[test]
    fn what_is_damaged_is_named() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        folder.write_atomic(CLOSING, b"{\"step\": -1}").unwrap();
        let text = Closing::read(&folder).unwrap_err().to_string();
        assert!(text.contains(CLOSING) && text.contains("line 1"), "{text}");
        let mut bad = closing(1);
        bad.test.as_mut().unwrap().confusion.pop();
        bad.write(&folder).unwrap();
        let text = Closing::read(&folder).unwrap_err().to_string();
        assert!(text.contains("not 3 x 3"), "{text}");
        let mut bad = closing(1);
        bad.test.as_mut().unwrap().mistakes[1].predicted = 3;
        bad.write(&folder).unwrap();
        let text = Closing::read(&folder).unwrap_err().to_string();
        assert!(text.contains("row 3 "), "{text}");
    }
}
