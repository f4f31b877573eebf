//! A look at a trainer's test rows and weight matrices, one by one: for the end of a run.

use super::review::REVIEW_ROWS;
use super::{Pass, Trainer};
use crate::device::Device;
use crate::error::Result;
use crate::nn::Mode;
use crate::ops::Var;
use crate::runs::closing::{Classified, Mistake};
use crate::runs::picture;
use crate::tape::{Recording, Region, Store, Tape};
use crate::tensor::{DType, Element};

/// Logits that a review keeps on the host, at most: 16 MB.
const MOST_LOGITS: usize = 4 << 20;

/// The logits of the last review, `[rows, classes]`: on a CPU they are at hand, so that nothing need be computed again to look
/// at rows one by one.
#[derive(Default)]
pub(super) struct Reviewed {
    logits: Vec<f32>,
    /// How many there are when all are here; 0 where they are not kept.
    wanted: usize,
    /// Where the recordings have them, by the order of the rows and the rows of a batch.
    recorded: Vec<((Region, usize), Var)>,
}

impl Reviewed {
    /// Before a review of `count` logits; of 0 that are to be kept.
    pub(super) fn begin(&mut self, store: &Store, count: usize) {
        self.logits.clear();
        let keeps = matches!(store.device(), Device::Cpu(_)) && count <= MOST_LOGITS;
        self.wanted = if keeps { count } else { 0 };
    }

    /// A recording of a batch of so many rows has its logits there.
    pub(super) fn recorded(&mut self, key: (Region, usize), logits: Var) {
        self.recorded.push((key, logits));
    }

    /// Takes those of a batch that was just replayed.
    pub(super) fn take(
        &mut self,
        recording: &Recording,
        key: (Region, usize),
        classes: usize,
    ) -> Result<()> {
        let found = self.recorded.iter().find(|(of, _)| *of == key);
        let Some(&(_, logits)) = found.filter(|_| self.wanted > 0) else { return Ok(()) };
        let before = self.logits.len();
        self.logits.resize(before + key.1 * classes, 0.0);
        recording.read_into(logits, &mut self.logits[before..])
    }

    /// The weights are no longer those of the review.
    pub(super) fn forget(&mut self) {
        self.logits.clear();
    }

    /// All of them, if they are here.
    fn all(&self) -> Option<&[f32]> {
        (self.wanted > 0 && self.logits.len() == self.wanted).then_some(&self.logits)
    }
}

impl Trainer {
    /// How each test row is classified: counts by class, and the `most` wrong rows of the highest loss, with
    /// their pictures where rows are such. One pass over the test set, or none after a review on a CPU.
    ///
    /// Of equal logits the first class is taken, as in [`Trainer::review`].
    ///
    /// # Errors
    /// Recording fails, or the device does.
    pub fn examine(&mut self, most: usize) -> Result<Classified> {
        let logits = self.test_logits()?;
        let mut labels = vec![0u32; self.test.rows];
        self.store.read(self.test.labels, 0, &mut labels)?;
        let mut confusion = vec![vec![0u64; self.classes]; self.classes];
        let mut wrong = Vec::new();
        for (row, (logits, &label)) in logits.chunks(self.classes).zip(&labels).enumerate() {
            let label = label as usize;
            let largest = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
            let predicted = (0..self.classes).fold(0, largest);
            confusion[label][predicted] += 1;
            if predicted != label {
                let loss = -log_probability(logits, label);
                let probability = log_probability(logits, predicted).exp();
                wrong.push(Mistake { row, label, predicted, probability, loss, png: None });
            }
        }
        wrong.sort_by(|a, b| b.loss.total_cmp(&a.loss).then(a.row.cmp(&b.row)));
        wrong.truncate(most);
        self.add_pictures(&mut wrong)?;
        let classes = match &self.class_names {
            Some(names) => names.clone(),
            None => (0..self.classes).map(|class| class.to_string()).collect(),
        };
        Ok(Classified { classes, confusion, mistakes: wrong })
    }

    /// Logits of all test rows, `[rows, classes]`.
    fn test_logits(&mut self) -> Result<Vec<f32>> {
        if let Some(logits) = self.reviewed.all() {
            return Ok(logits.to_vec());
        }
        let (total, classes) = (self.test.rows, self.classes);
        let mut all = vec![0f32; total * classes];
        let mut recorded: Option<(usize, Recording, Var)> = None;
        for start in (0..total).step_by(REVIEW_ROWS) {
            let rows = REVIEW_ROWS.min(total - start);
            let (recording, logits) = match &mut recorded {
                Some((of_rows, recording, logits)) if *of_rows == rows => (recording, *logits),
                other => {
                    let mut tape = Tape::new(&self.store);
                    let parameters = self.evaluated();
                    let Pass { logits, .. } =
                        self.record_forward(&mut tape, &parameters, &self.test, rows, Mode::Eval)?;
                    tape.output(logits)?;
                    let recording = tape.compile(&self.store)?;
                    let (_, recording, logits) = other.insert((rows, recording, logits));
                    (recording, *logits)
                }
            };
            self.store.control_mut().set_u64(self.offset, start as u64);
            recording.replay(&mut self.store)?;
            recording.read_into(logits, &mut all[start * classes..(start + rows) * classes])?;
        }
        Ok(all)
    }

    /// Adds the pictures of these rows; the darkest of all their values is black, the lightest white.
    fn add_pictures(&self, mistakes: &mut [Mistake]) -> Result<()> {
        let Some(dimensions) = picture::dimensions(&self.row_shape) else { return Ok(()) };
        let rows = mistakes.iter().map(|mistake| mistake.row);
        let values: Vec<Vec<f32>> = match self.store.dtype(self.test.values) {
            DType::U8 => rows.map(|row| self.row_values::<u8>(row)).collect::<Result<_>>()?,
            _ => rows.map(|row| self.row_values::<f32>(row)).collect::<Result<_>>()?,
        };
        let all = || values.iter().flatten().copied();
        let (low, high) =
            (all().fold(f32::INFINITY, f32::min), all().fold(f32::NEG_INFINITY, f32::max));
        for (mistake, values) in mistakes.iter_mut().zip(&values) {
            mistake.png = Some(picture::png(dimensions, &picture::bytes(values, low, high)));
        }
        Ok(())
    }

    /// A test row as its file has it.
    fn row_values<T: Element + Into<f32>>(&self, row: usize) -> Result<Vec<f32>> {
        let features = self.test.features;
        let mut values = vec![T::zeroed(); features];
        self.store.read(self.test.values, row * features, &mut values)?;
        Ok(values.into_iter().map(Into::into).collect())
    }

    /// Names of the layers with weight matrices, and the places of these among the parameters.
    pub(crate) fn weight_matrices(&self) -> Vec<(String, usize, [usize; 2])> {
        let infos = self.parameters.infos().iter().enumerate();
        infos
            .filter(|(_, info)| info.multiplied && info.shape.elements() > 0)
            .map(|(place, info)| {
                let name = info.name.strip_suffix(".weight").unwrap_or(&info.name).to_owned();
                (name, place, [info.shape.rows(), info.shape.columns()])
            })
            .collect()
    }

    /// The values of the weight matrix at that place at the start, which its seed gives, and now.
    pub(crate) fn weight_values(&self, place: usize) -> Result<[Vec<f32>; 2]> {
        let start = self.parameters.parameters().initial_values_of(place, self.options.seed);
        let mut end = vec![0f32; start.len()];
        let offset = self.parameters.infos()[place].offset;
        self.store.read(self.evaluated().weights(), offset, &mut end)?;
        Ok([start, end])
    }
}

/// The logarithm of the softmax at `class`: `-ln(1 + sum of the others' exp(z_j - z_class))`.
fn log_probability(logits: &[f32], class: usize) -> f64 {
    let of = |j: usize| f64::from(logits[j]);
    let largest = logits.iter().fold(f64::NEG_INFINITY, |best, &z| best.max(f64::from(z)));
    let above = largest - of(class);
    // As exp(above) * (exp(-above) + ...), so that nothing overflows.
    let rest: f64 =
        (0..logits.len()).filter(|&j| j != class).map(|j| (of(j) - largest).exp()).sum();
    match above > 0.0 {
        true => -(above + ((-above).exp() + rest).ln()),
        false => -rest.ln_1p(),
    }
}

#[cfg(test)]
mod tests {
    use super::log_probability;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, -2.0, 0.5, 1.0];
        let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        for class in 0..4 {
            let wanted = f64::from(logits[class]).exp() / sum;
            assert!((log_probability(&logits, class).exp() - wanted).abs() < 1e-14);
        }
        assert_eq!(log_probability(&[1000.0, 0.0], 1), -1000.0);
        // Far from zero where a sum of probabilities near 1 would be zero.
        let small = log_probability(&[60.0, 0.0], 0);
        assert!(small < 0.0 && small > -1e-25, "{small}");
    }
}
