//! The journal of a run: one JSON object a line, appended while it trains.
//!
//! JSON has no infinity and no NaN. A number that is not finite is written as `null` and read back
//! as NaN.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::runs::atomic;
use crate::runs::folder::{METRICS, RunFolder};

/// One line of the journal. The same lines go to standard output under `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Row {
    /// A training step, as far as the trace keeps it.
    Step(Step),
    /// A review between epochs.
    Epoch(Epoch),
    /// The end of the run.
    Done(Done),
}

/// One training step of the trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Training step, counted from 1.
    pub step: u64,
    /// Training clock: seconds of training so far, without reviews and checkpoints.
    pub seconds: f64,
    /// Loss on the step's batch.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Learning rate of the step.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
}

/// One review: what the net does on the training and the test set after an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Epochs done, counted from 1.
    pub epoch: u64,
    /// Training steps done.
    pub step: u64,
    /// Training clock: seconds of training so far, without reviews and checkpoints.
    pub seconds: f64,
    /// Mean loss over the epoch's training batches.
    #[serde(deserialize_with = "number")]
    pub train_loss: f64,
    /// Mean loss on the test set.
    #[serde(deserialize_with = "number")]
    pub test_loss: f64,
    /// Share of the test set that is classified right, 0 to 1.
    #[serde(deserialize_with = "number")]
    pub test_acc: f64,
    /// Share of the epoch's training samples that were classified right, 0 to 1, where counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_acc: Option<f64>,
    /// Mean over the test set of the right class's logit minus the largest of the others.
    #[serde(deserialize_with = "number")]
    pub margin: f64,
    /// Learning rate of the epoch's last step.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Training samples per second of the training clock, in this epoch.
    #[serde(deserialize_with = "number")]
    pub samples_per_s: f64,
    /// Seconds that the review itself took; no part of `seconds`.
    #[serde(deserialize_with = "number")]
    pub review_seconds: f64,
    /// Further figures (`stable_rank` ...): numbers, or arrays or objects of numbers, one per
    /// layer. The report plots them.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// The last line of a run that came to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Why it ended: `target`, `epochs`, `time`, `diverged` ... A run whose reason is
    /// `interrupted` is listed as interrupted, not as finished.
    pub reason: String,
    /// Training clock at the end: seconds without reviews and checkpoints.
    pub seconds_training: f64,
    /// Seconds from start to end, everything included.
    pub seconds_total: f64,
    /// Training clock when the target accuracy was first reached, if it was.
    pub seconds_to_target: Option<f64>,
    /// Share of the test set that is classified right at the end, 0 to 1.
    #[serde(deserialize_with = "number")]
    pub test_acc: f64,
    /// Name or path of the run.
    pub run: String,
    /// Epochs done.
    pub epochs: u64,
    /// Training steps done.
    pub step: u64,
    /// Further findings: `clocks` ...
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Reads `null` as NaN.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Row {
    /// The row as one line of JSON, without the line feed.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a row has only string keys and plain values")
    }
}

impl From<Step> for Row {
    fn from(row: Step) -> Self {
        Row::Step(row)
    }
}

impl From<Epoch> for Row {
    fn from(row: Epoch) -> Self {
        Row::Epoch(row)
    }
}

impl From<Done> for Row {
    fn from(row: Done) -> Self {
        Row::Done(row)
    }
}

/// The writer of a run's `metrics.jsonl`.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal of a locked run folder for appending. A last line that a killed process
    /// did not finish is cut off, so that the next row begins a line of its own.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    ///
    /// # Panics
    /// When `folder` is not [locked](RunFolder::lock): two writers would mix their rows.
    pub fn open(folder: &RunFolder) -> Result<Self> {
        assert!(folder.is_locked(), "the journal is written under the folder's lock");
        let path = folder.file(METRICS);
        let journal = Journal { file: append_to(&path)?, path };
        let text = fs::read(&journal.path).map_err(|e| Error::io("read", &journal.path, e))?;
        let whole = whole_lines(&text);
        if whole < text.len() {
            let cut = journal.file.set_len(whole as u64);
            cut.map_err(|e| Error::io("write", &journal.path, e))?;
        }
        Ok(journal)
    }

    /// Appends a row with one write, so that a kill loses no earlier row and a reader sees it as
    /// soon as this returns.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn append(&mut self, row: impl Into<Row>) -> Result<()> {
        let mut line = row.into().to_json();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }

    /// Forces what was appended to disk, against a loss of power; a killed process needs no such
    /// thing.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn flush(&mut self) -> Result<()> {
        atomic::sync_data(&self.file).map_err(|e| Error::io("write", &self.path, e))
    }

    /// Drops the rows of steps after `step`, and every [`Done`]: a run that is resumed from the
    /// checkpoint of that step writes them again. Rows of `step` itself stay. The file is replaced
    /// atomically.
    ///
    /// # Errors
    /// [`Error::Data`] with the line that is damaged; [`Error::Io`] naming the file.
    pub fn truncate_after_step(&mut self, step: u64) -> Result<()> {
        let text = fs::read(&self.path).map_err(|e| Error::io("read", &self.path, e))?;
        let mut kept = Vec::with_capacity(text.len());
        for (row, line) in parse(&self.path, &text)? {
            let keep = match row {
                Row::Step(row) => row.step <= step,
                Row::Epoch(row) => row.step <= step,
                Row::Done(_) => false,
            };
            if keep {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
        }
        if kept != text {
            atomic::replace_forced(&self.path, |file| file.write_all(&kept))?;
            // The old handle still writes into the file that was replaced.
            self.file = append_to(&self.path)?;
        }
        Ok(())
    }
}

/// Reads a journal. A last line that is not finished (the run goes on, or was killed) is left out.
///
/// # Errors
/// [`Error::Io`] where it cannot be read, [`Error::Data`] with the line that is damaged.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    Ok(parse(path, &text)?.into_iter().map(|(row, _)| row).collect())
}

/// Bytes at the end of a journal in which its last review or its end is looked for first.
const TAIL: u64 = 16 << 10;

/// The last review or the end of a run, whichever its journal has last; the journal is read from behind, and
/// whole only where its end has neither.
///
/// # Errors
/// As [`read`].
pub fn last(path: &Path) -> Result<Option<Row>> {
    let wanted = |rows: Vec<(Row, &[u8])>| {
        rows.into_iter().map(|(row, _)| row).rfind(|row| !matches!(row, Row::Step(_)))
    };
    let failed = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if let Some(start) = length.checked_sub(TAIL) {
        let mut tail = Vec::with_capacity(TAIL as usize);
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        file.read_to_end(&mut tail).map_err(failed)?;
        // The first line may have begun before; and a damaged one is named by its number, which takes them all.
        let line = tail.iter().position(|&b| b == b'\n').map_or(tail.len(), |at| at + 1);
        if let Some(row) = parse(path, &tail[line..]).ok().and_then(wanted) {
            return Ok(Some(row));
        }
    }
    let text = fs::read(path).map_err(failed)?;
    Ok(wanted(parse(path, &text)?))
}

/// The rows of the whole lines of `text`, each with its line.
fn parse<'a>(path: &Path, text: &'a [u8]) -> Result<Vec<(Row, &'a [u8])>> {
    let mut rows = Vec::new();
    for (index, line) in text[..whole_lines(text)].split(|&b| b == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row = serde_json::from_slice(line)
            .map_err(|e| Error::data(path, format!("line {}", index + 1), e.to_string()))?;
        rows.push((row, line));
    }
    Ok(rows)
}

/// Length of `text` up to and including its last line feed: an append is a line and its line feed,
/// so what follows the last one is the beginning of an append that did not finish.
fn whole_lines(text: &[u8]) -> usize {
    text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)
}

fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).open(path).map_err(|e| Error::io("open", path, e))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::runs::scratch::Scratch;

    pub fn step(step: u64, loss: f64) -> Step {
        Step { step, seconds: step as f64 * 0.01, loss, lr: 1e-3 }
    }

    pub fn epoch(epoch: u64, step: u64, test_acc: f64) -> Epoch {
        Epoch {
            epoch,
            step,
            seconds: step as f64 * 0.01,
            train_loss: 0.25,
            test_loss: 0.375,
            test_acc,
            train_acc: None,
            margin: 2.5,
            lr: 1e-3,
            samples_per_s: 1e5,
            review_seconds: 0.02,
            extra: BTreeMap::new(),
        }
    }

    pub fn done(step: u64, test_acc: f64) -> Done {
        Done {
            reason: "target".into(),
            seconds_training: step as f64 * 0.01,
            seconds_total: step as f64 * 0.012,
            seconds_to_target: Some(0.5),
            test_acc,
            run: "digits".into(),
            epochs: 2,
            step,
            extra: BTreeMap::new(),
        }
    }

    #[test]
    fn rows_read_back_as_they_were_written() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        let mut journal = Journal::open(&folder).unwrap();
        let mut review = epoch(1, 10, 0.9);
        review.extra.insert("stable_rank".into(), serde_json::json!([3.5, 2.25]));
        review.extra.insert("advice".into(), serde_json::json!("keep going"));
        review.train_acc = Some(0.875);
        let rows: Vec<Row> = vec![
            step(1, 2.5).into(),
            review.into(),
            epoch(2, 20, 0.95).into(),
            done(20, 0.95).into(),
        ];
        for row in &rows {
            journal.append(row.clone()).unwrap();
        }
        journal.flush().unwrap();
        assert_eq!(read(&folder.file(METRICS)).unwrap(), rows);
        let text = folder.read_text(METRICS).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(
            text.starts_with(r#"{"event":"step","step":1,"seconds":0.01,"loss":2.5,"lr":0.001}"#)
        );
        assert!(text.lines().nth(1).unwrap().contains(r#""stable_rank":[3.5,2.25]"#));
    }

    #[test]
    fn numbers_that_are_not_finite_become_null_and_read_as_nan() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let line = Row::from(step(1, bad)).to_json();
            assert!(line.contains(r#""loss":null"#), "{line}");
            let Row::Step(back) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
            assert!(back.loss.is_nan());
            let mut review = epoch(1, 1, bad);
            (review.test_loss, review.margin) = (bad, bad);
            let line = Row::from(review).to_json();
            let Row::Epoch(back) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
            assert!(back.test_loss.is_nan() && back.test_acc.is_nan() && back.margin.is_nan());
            assert_eq!(back.lr, 1e-3);
        }
    }

    #[test]
    fn a_missing_field_is_not_a_nan() {
        let error =
            serde_json::from_str::<Row>(r#"{"event":"step","step":1,"seconds":0.1,"lr":1}"#);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("loss"), "{text}");
    }

    #[test]
    fn a_half_written_last_line_is_ignored_and_then_cut_off() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        let mut journal = Journal::open(&folder).unwrap();
        journal.append(step(1, 2.0)).unwrap();
        // After a loss of power the tail may even be zeros.
        for tail in [&b"{\"event\":\"step\",\"st"[..], b"{", b"\0\0\0\0", b"\xff\xfe"] {
            journal.file.write_all(tail).unwrap();
            assert_eq!(read(&folder.file(METRICS)).unwrap(), [step(1, 2.0).into()]);
            journal = Journal::open(&folder).unwrap();
        }
        journal.append(step(2, 1.5)).unwrap();
        let rows: [Row; 2] = [step(1, 2.0).into(), step(2, 1.5).into()];
        assert_eq!(read(&folder.file(METRICS)).unwrap(), rows);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let scratch = Scratch::new();
        let path = scratch.path().join(METRICS);
        let good = Row::from(step(1, 2.0)).to_json();
        for bad in ["{\"event\":\"step\"", "[]", "{\"event\":\"unknown\"}", "\u{0}"] {
            fs::write(&path, format!("{good}\n\n{bad}\n{good}\n")).unwrap();
            let text = read(&path).unwrap_err().to_string();
            assert!(text.contains(METRICS) && text.contains("line 3"), "{text}");
        }
    }

    #[test]
    fn the_last_review_or_end_is_found_from_behind() {
        let scratch = Scratch::new();
        let path = scratch.path().join(METRICS);
        let text = |rows: &[Row]| rows.iter().map(|row| row.to_json() + "\n").collect::<String>();
        let steps: Vec<Row> = (1..1000).map(|n| step(n, 1.0).into()).collect();
        let review = Row::from(epoch(1, 10, 0.9));
        let end = Row::from(done(20, 0.95));
        let long = |at: usize| {
            let mut rows = steps.clone();
            rows.insert(at, review.clone());
            rows
        };
        fs::write(&path, "").unwrap();
        assert_eq!(last(&path).unwrap(), None);
        for (rows, wanted) in [
            (steps.clone(), None),
            (long(0), Some(&review)),
            (long(900), Some(&review)),
            ([long(3), vec![end.clone()]].concat(), Some(&end)),
            (vec![review.clone(), step(11, 0.5).into()], Some(&review)),
        ] {
            fs::write(&path, text(&rows) + "{\"event\":\"do").unwrap();
            assert_eq!(last(&path).unwrap().as_ref(), wanted);
        }
        fs::write(&path, format!("?\n{}", text(&long(0)))).unwrap();
        assert!(last(&path).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn resuming_drops_the_rows_after_the_checkpoint() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        let mut journal = Journal::open(&folder).unwrap();
        let rows: Vec<Row> = vec![
            step(5, 2.0).into(),
            step(10, 1.0).into(),
            epoch(1, 10, 0.9).into(),
            step(15, 0.5).into(),
            epoch(2, 20, 0.95).into(),
            done(20, 0.95).into(),
        ];
        for row in &rows {
            journal.append(row.clone()).unwrap();
        }
        journal.file.write_all(b"{\"event\":\"do").unwrap();
        journal.truncate_after_step(20).unwrap();
        assert_eq!(read(&folder.file(METRICS)).unwrap(), rows[..5], "only the end is gone");
        journal.truncate_after_step(10).unwrap();
        assert_eq!(read(&folder.file(METRICS)).unwrap(), rows[..3]);
        journal.append(step(11, 0.75)).unwrap();
        assert_eq!(read(&folder.file(METRICS)).unwrap().len(), 4, "appends go to the new file");
        journal.truncate_after_step(0).unwrap();
        assert_eq!(folder.read(METRICS).unwrap(), b"");
    }

    #[test]
    fn a_damaged_journal_is_not_truncated() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        folder.write_atomic(METRICS, b"garbage\n").unwrap();
        let mut journal = Journal::open(&folder).unwrap();
        assert!(journal.truncate_after_step(0).is_err());
        assert_eq!(folder.read(METRICS).unwrap(), b"garbage\n");
    }
}
