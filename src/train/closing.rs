//! What is found out about a net after its last step: within a share of the run's time, or all of it on demand.

use super::config::Config;
use super::profile::{self, Care};
use super::state;
use super::trainer::Trainer;
use crate::clocks::{Matrix, singular_values};
use crate::error::{Error, Result};
use crate::runs::closing::{LeftOut, Spectrum};
use crate::runs::{Closing, RunFolder};
use std::path::Path;
use std::time::Instant;

/// Wrong rows that are kept, the worst ones.
const MISTAKES: usize = 24;
/// Seconds that a run may always take for its closing.
const ALWAYS: f64 = 0.020;
/// Operations a second of [`singular_values`] of two matrices at once, until one was timed; measured some 10 G on two cores.
const RATE: f64 = 6e9;

/// Seconds that a run of `training` seconds may take for its closing, beside one pass over the test rows.
pub(super) fn allowance(review_share: f64, training: f64) -> f64 {
    ALWAYS.max(review_share * training)
}

/// What `allowance` seconds allow to find out about the net as it is after `step`. The pass over the test rows is always made.
/// Weights stay as they are, the optimizer's moments do not.
///
/// # Errors
/// The device failed.
pub(super) fn close(
    trainer: &mut Trainer,
    step: u64,
    step_seconds: Option<f64>,
    allowance: f64,
) -> Result<Closing> {
    let test = Some(trainer.examine(MISTAKES)?);
    let began = Instant::now();
    let mut closing = Closing { step, test, ..Closing::default() };
    spectra(trainer, Some(allowance), &mut closing)?;
    let left = allowance - began.elapsed().as_secs_f64();
    let estimate = match step_seconds {
        Some(seconds) => profile::estimate(trainer, seconds)?,
        None => None,
    };
    match estimate {
        Some(seconds) if seconds <= left => {
            closing.profile = Some(profile::profile(trainer, Care::Quick)?);
        }
        other => {
            let seconds = other.unwrap_or(1.0);
            closing.left_out.push(LeftOut { what: "the profile of a step".into(), seconds });
        }
    }
    Ok(closing)
}

/// Everything about a saved run, however long it takes; `data` and `device` as for
/// [`Config::saved_trainer`]. Writes it into the run's folder.
///
/// # Errors
/// The folder is not a run that can be read, a process trains in it, or its data set cannot be used.
pub fn examine(path: &Path, data: Option<&Path>, device: Option<String>) -> Result<Closing> {
    let folder = RunFolder::open(path)?;
    if folder.is_running() {
        let problem = "a process is training in this folder: what its net came to is not known yet";
        return Err(Error::data(path, "lock", problem));
    }
    let (_, mut trainer) = Config::saved_trainer(path, data, device, None)?;
    let step = state::load_weights(&mut trainer, &folder)?.step;
    let test = Some(trainer.examine(MISTAKES)?);
    let mut closing = Closing { step, test, ..Closing::default() };
    spectra(&trainer, None, &mut closing)?;
    closing.profile = Some(profile::profile(&mut trainer, Care::Thorough)?);
    closing.write(&folder)?;
    Ok(closing)
}

/// Adds the spectra, the smallest first, as long as they keep within the allowance; names those that do not.
fn spectra(trainer: &Trainer, allowance: Option<f64>, closing: &mut Closing) -> Result<()> {
    let mut matrices = trainer.weight_matrices();
    let places: Vec<usize> = matrices.iter().map(|&(_, place, _)| place).collect();
    matrices.sort_by(|a, b| work(a.2).total_cmp(&work(b.2)));
    let (began, mut rate) = (Instant::now(), RATE);
    let mut found = Vec::new();
    let (mut left_out, mut left_seconds) = (Vec::new(), 0.0);
    for (name, place, shape) in matrices {
        let seconds = work(shape) / rate;
        if allowance.is_some_and(|all| began.elapsed().as_secs_f64() + seconds > all) {
            left_out.push(name);
            left_seconds += seconds;
            continue;
        }
        let one = Instant::now();
        let [start, end] = trainer.weight_values(place)?;
        let of = |values: &[f32]| singular_values(Matrix::new(shape[0], shape[1], values));
        let (start, end) = rayon::join(|| of(&start), || of(&end));
        // A small one says little of the rate.
        if work(shape) > 1e6 {
            rate = work(shape) / one.elapsed().as_secs_f64();
        }
        found.push((place, Spectrum { name, shape, start, end }));
    }
    found.sort_by_key(|(place, _)| places.iter().position(|known| known == place));
    closing.spectra = found.into_iter().map(|(_, spectrum)| spectrum).collect();
    if !left_out.is_empty() {
        let what = format!("singular values of {}", left_out.join(", "));
        closing.left_out.push(LeftOut { what, seconds: left_seconds });
    }
    Ok(())
}

/// Operations of a spectrum: the Gram matrix and its tridiagonal form.
fn work([rows, columns]: [usize; 2]) -> f64 {
    let (side, depth) = (rows.min(columns) as f64, rows.max(columns) as f64);
    2.0 * side * side * depth + 2.0 * side.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, Values, synthetic};
    use crate::device::Device;
    use crate::nn::{ActivationName, LayerConfig, Parameters, Sequential};
    use crate::train::TrainOptions;

    fn trainer(sizes: &[usize], data: &Split) -> Trainer {
        let layers: Vec<LayerConfig> = sizes
            .iter()
            .map(|&outputs| LayerConfig::Linear {
                name: None,
                inputs: None,
                outputs,
                activation: ActivationName::None,
                bias: true,
                initial: None,
                decay_factor: None,
                polar_decay: None,
            })
            .collect();
        let layers = [&[LayerConfig::Flatten][..], &layers].concat();
        let mut parameters = Parameters::new();
        let model = Sequential::new(&layers, data.train.shape(), &mut parameters).unwrap();
        let options = TrainOptions { batch: 16, seed: 5, ..TrainOptions::default() };
        Trainer::new(&Device::cpu(1).unwrap(), Box::new(model), parameters, data, options).unwrap()
    }

    fn weights(trainer: &Trainer) -> Vec<u32> {
        let region = trainer.parameters().weights();
        let mut values = vec![0f32; trainer.store().len(region)];
        trainer.store().read(region, 0, &mut values).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    /// More rows than a review batch, of a shape that is a picture.
    fn data() -> Split {
        let of = |rows, seed| synthetic(rows, 12, 3, seed).with_shape(&[3, 4]).unwrap();
        Split { train: of(200, 1), test: of(1100, 2) }
    }

    #[test]
    fn rows_are_classified_as_the_review_counts_them() {
        let data = data();
        let mut trainer = trainer(&[8, 3], &data);
        trainer.start_epoch(0).unwrap();
        for step in 1..=6 {
            trainer.step(step, 16 * step as usize, 0.01).unwrap();
        }
        let found = trainer.examine(usize::MAX).unwrap();
        let review = trainer.review().unwrap();
        assert_eq!(trainer.examine(usize::MAX).unwrap(), found, "by the logits of the review");
        let right: u64 = (0..3).map(|class| found.confusion[class][class]).sum();
        let wrong = found.mistakes.len() as u64;
        assert!(wrong > 20 && right > 20, "{right} right, {wrong} wrong: a test of nothing");
        assert_eq!(right as f64 / 1100.0, review.accuracy);
        assert_eq!(right + wrong, 1100);
        for (label, row) in found.confusion.iter().enumerate() {
            let of_class = data.test.labels().iter().filter(|&&l| l as usize == label).count();
            assert_eq!(row.iter().sum::<u64>(), of_class as u64);
            for (predicted, &count) in row.iter().enumerate().filter(|&(p, _)| p != label) {
                let mistakes = found.mistakes.iter();
                let these = mistakes.filter(|m| (m.label, m.predicted) == (label, predicted));
                assert_eq!(these.count() as u64, count);
            }
        }
        assert!(found.mistakes.is_sorted_by(|a, b| a.loss >= b.loss));
        for mistake in &found.mistakes {
            assert_eq!(data.test.labels()[mistake.row] as usize, mistake.label);
            assert!(mistake.loss > 0.69, "the label has at most half: {mistake:?}");
            assert!(mistake.probability > 1.0 / 3.0 && mistake.probability <= 1.0, "{mistake:?}");
        }
        // The picture is that of the row.
        let Values::F32(values) = data.test.values() else { panic!("synthetic data are floats") };
        let rows: Vec<&[f32]> =
            found.mistakes.iter().map(|m| &values[12 * m.row..][..12]).collect();
        let all = || rows.iter().flat_map(|row| row.iter().copied());
        let (low, high) = (all().fold(f32::MAX, f32::min), all().fold(f32::MIN, f32::max));
        let bytes = crate::runs::picture::bytes(rows[1], low, high);
        let png = crate::runs::picture::png([3, 4, 1], &bytes);
        assert_eq!(found.mistakes[1].png.as_ref(), Some(&png));
        trainer.step(7, 112, 0.01).unwrap();
        let later = trainer.examine(usize::MAX).unwrap();
        assert_ne!(later.mistakes, found.mistakes, "those of the review, though it trained since");
        let region = trainer.parameters().weights();
        let zeros = vec![0f32; trainer.store().len(region)];
        trainer.review().unwrap();
        trainer.store_mut().write(region, 0, &zeros).unwrap();
        let none = trainer.examine(usize::MAX).unwrap();
        let first: u64 = none.confusion.iter().map(|row| row[0]).sum();
        assert_eq!(first, 1100, "of equal logits the first class is taken");
        let worst = trainer.examine(2).unwrap().mistakes;
        assert_eq!([worst[0].row, worst[1].row], [none.mistakes[0].row, none.mistakes[1].row]);
        assert_eq!(worst.len(), 2);
    }

    #[test]
    fn a_closing_holds_what_the_time_allows_and_names_the_rest() {
        let data = data();
        let mut trainer = trainer(&[400, 3], &data);
        let start = weights(&trainer);
        trainer.start_epoch(0).unwrap();
        trainer.step(1, 0, 0.01).unwrap();
        let before = weights(&trainer);
        assert_ne!(before, start, "it was trained");
        let names = |closing: &Closing| -> Vec<String> {
            closing.spectra.iter().map(|spectrum| spectrum.name.clone()).collect()
        };
        let all = close(&mut trainer, 1, Some(1e-4), 1e3).unwrap();
        assert_eq!(names(&all), ["linear1", "linear2"], "in the order of the layers");
        assert_eq!(all.left_out, []);
        let profile = all.profile.unwrap();
        let product = profile.nodes.iter().find(|node| node.node.starts_with("linear1")).unwrap();
        assert!(product.seconds > 0.0 && product.floor_seconds > 0.0, "{product:?}");
        assert!(profile.step_seconds > 0.0);
        assert_eq!(weights(&trainer), before, "a profile trains nothing");
        // The start is that of the seed: sums of squares are those of the weights.
        for (spectrum, place) in all.spectra.iter().zip([0, 2]) {
            let info = &trainer.parameters().infos()[place];
            for (singular, bits) in [(&spectrum.start, &start), (&spectrum.end, &before)] {
                let values = &bits[info.offset..info.offset + info.shape.elements()];
                let norm2: f64 = values.iter().map(|&x| f64::from(f32::from_bits(x)).powi(2)).sum();
                let found: f64 = singular.iter().map(|s| s * s).sum();
                assert!((found / norm2 - 1.0).abs() < 1e-6, "{}: {found} {norm2}", spectrum.name);
            }
        }
        let nothing = close(&mut trainer, 1, Some(1e-4), 0.0).unwrap();
        assert!(nothing.test.is_some() && names(&nothing).is_empty() && nothing.profile.is_none());
        let left_out: Vec<&str> = nothing.left_out.iter().map(|left| &left.what[..]).collect();
        assert_eq!(left_out, ["singular values of linear2, linear1", "the profile of a step"]);
        assert!(nothing.left_out.iter().all(|left| left.seconds > 0.0));
    }
}
