//! What a checkpoint holds, beside weights and optimizer state: where the run stands.

use super::clocks::watch::Memory;
use super::loop_config::Plateau;
use super::observer::Reason;
use super::trainer::Trainer;
use crate::error::{Error, Result};
use crate::runs::checkpoint::save_from;
use crate::runs::{Checkpoint, RunFolder, folder};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where a run stands, between two steps. Fractions are kept as bits, to come back exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// Updates done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Rows of the current epoch that are done.
    pub offset: usize,
    /// Bits of the sum of the losses since the last review.
    loss_sum: u64,
    /// Updates since the last review.
    pub loss_count: u64,
    /// Bits of the seconds of training.
    seconds_training: u64,
    /// Bits of all seconds.
    seconds_total: u64,
    /// Bits of the seconds of reviews.
    seconds_review: u64,
    /// Bits of the seconds of probes within them.
    #[serde(default)]
    seconds_probe: u64,
    /// Bits of the seconds of training when the target was first reached.
    pub seconds_to_target: Option<u64>,
    /// Bits of the last review's accuracy.
    pub accuracy: Option<u64>,
    /// Bits of the last step's learning rate; NaN before the first one.
    #[serde(default = "no_rate")]
    rate: u64,
    /// What the clocks have seen; nothing in older checkpoints.
    #[serde(default)]
    pub watch: Memory,
    /// By what the order of an epoch's rows is made, as it is saved; none in older checkpoints.
    #[serde(default)]
    row_order: String,
    /// Bits of where in the schedule the next step is, 0 to 1, where time bounds the run.
    #[serde(default)]
    progress: u64,
    /// Whether the last step that its time has room for is done.
    #[serde(default)]
    pub out_of_time: bool,
    /// Bits of the training loss that the last review said.
    #[serde(default = "no_rate")]
    reviewed_loss: u64,
    /// Bits of the best accuracy of reviews of all test rows and of a sample, and how many reviews found none that is better.
    #[serde(default)]
    best: [Option<u64>; 2],
    #[serde(default)]
    stale_reviews: u64,
    /// What ended the run, where that was found and no budget says it.
    #[serde(default)]
    pub ended_by: Option<Reason>,
}

fn no_rate() -> u64 {
    f64::NAN.to_bits()
}

impl Default for Position {
    /// Before the first step.
    fn default() -> Self {
        Position {
            step: 0,
            epoch: 0,
            offset: 0,
            loss_sum: 0,
            loss_count: 0,
            seconds_training: 0,
            seconds_total: 0,
            seconds_review: 0,
            seconds_probe: 0,
            seconds_to_target: None,
            accuracy: None,
            rate: no_rate(),
            watch: Memory::default(),
            row_order: String::new(),
            progress: 0f64.to_bits(),
            out_of_time: false,
            reviewed_loss: no_rate(),
            best: [None; 2],
            stale_reviews: 0,
            ended_by: None,
        }
    }
}

/// What [`crate::data::order()`] is. Checkpoints without a name are of an earlier one, a shuffle.
const ROW_ORDER: &str = "permutation";

macro_rules! fractions {
    ($($field:ident, $set:ident;)*) => {
        impl Position {$(
            pub(super) fn $field(&self) -> f64 {
                f64::from_bits(self.$field)
            }
            pub(super) fn $set(&mut self, value: f64) {
                self.$field = value.to_bits();
            }
        )*}
    };
}
fractions! {
    loss_sum, set_loss_sum;
    seconds_training, set_seconds_training;
    seconds_total, set_seconds_total;
    seconds_review, set_seconds_review;
    seconds_probe, set_seconds_probe;
    rate, set_rate;
    progress, set_progress;
}

impl Position {
    /// Mean loss of the updates since the last review; that of the last review, where there was none since.
    pub(super) fn train_loss(&self) -> f64 {
        match self.loss_count {
            0 => f64::from_bits(self.reviewed_loss),
            count => self.loss_sum() / count as f64,
        }
    }

    /// Takes account of a review.
    pub(super) fn reviewed(&mut self, accuracy: f64, sampled: bool, plateau: Option<Plateau>) {
        self.reviewed_loss = self.train_loss().to_bits();
        self.set_loss_sum(0.0);
        self.loss_count = 0;
        let best = &mut self.best[usize::from(sampled)];
        let least = plateau.map_or(0.0, |plateau| plateau.min_gain);
        let gained = best.is_none_or(|best| accuracy > f64::from_bits(best) + least);
        // Nothing was seen on these rows before: so nothing is known of a gain.
        self.stale_reviews = match (gained, *best) {
            (true, Some(_)) => 0,
            (true, None) => self.stale_reviews,
            (false, _) => self.stale_reviews + 1,
        };
        if gained {
            *best = Some(accuracy.to_bits());
        }
    }

    /// The same place at the start of a run that branches from here: its own ends are still to come.
    pub(super) fn branched(self) -> Position {
        Position {
            progress: 0f64.to_bits(),
            out_of_time: false,
            seconds_to_target: None,
            best: [None; 2],
            stale_reviews: 0,
            ended_by: None,
            ..self
        }
    }

    /// Whether so many reviews in a row found no gain.
    pub(super) fn on_plateau(&self, plateau: Option<Plateau>) -> bool {
        plateau.is_some_and(|plateau| self.stale_reviews >= plateau.reviews)
    }
}

/// The weights that are trained, where the model itself is their average.
const TRAINED: &str = "optimizer.trained";

/// Path of a folder's checkpoint.
pub(super) fn path(run: &RunFolder) -> PathBuf {
    run.file(folder::MODEL)
}

/// Saves weights, optimizer state and position, beside the old checkpoint and then in its place.
pub(super) fn save(trainer: &Trainer, folder: &RunFolder, position: &Position) -> Result<()> {
    let store = trainer.store();
    let parameters = trainer.parameters();
    let read = |region| -> Result<Vec<f32>> {
        let mut values = vec![0f32; store.len(region)];
        store.read(region, 0, &mut values)?;
        Ok(values)
    };
    let trained = read(parameters.weights())?;
    // The model is the average, where there is one; what it is the average of is beside it.
    let (weights, trained) = match trainer.optimizer().average() {
        Some(average) => (read(average)?, Some(trained)),
        None => (trained, None),
    };
    let state = trainer
        .optimizer()
        .state()
        .iter()
        .map(|&(name, region)| Ok((name, read(region)?)))
        .collect::<Result<Vec<_>>>()?;
    let named = parameters.infos().iter().map(|info| {
        let values = &weights[info.offset..info.offset + info.shape.elements()];
        (info.name.as_str(), info.shape.extents().to_vec(), values)
    });
    let moments = state.iter().map(|(name, values)| (*name, vec![values.len()], &values[..]));
    let trained = trained.iter().map(|values| (TRAINED, vec![values.len()], &values[..]));
    let moments = moments.chain(trained);
    let position = Position { row_order: ROW_ORDER.to_owned(), ..position.clone() };
    let position =
        serde_json::to_value(position).unwrap_or_else(|e| panic!("a position is always JSON: {e}"));
    save_from(&path(folder), named.chain(moments), &position)
}

/// Removes a folder's checkpoint.
pub(super) fn remove(folder: &RunFolder) -> Result<()> {
    let file = path(folder);
    std::fs::remove_file(&file).map_err(|e| Error::io("remove", file, e))
}

/// Loads weights only: for evaluation.
pub(super) fn load_weights(trainer: &mut Trainer, folder: &RunFolder) -> Result<Position> {
    let file = path(folder);
    let checkpoint = Checkpoint::load(&file)?;
    let parameters = trainer.parameters().clone();
    let mut weights = vec![0f32; parameters.parameters().flat_len()];
    for info in parameters.infos() {
        let shape = info.shape.extents();
        let (found, values) = checkpoint.tensor(&info.name).ok_or_else(|| {
            let problem = format!("is of another model: it has no tensor '{}'", info.name);
            Error::checkpoint(&file, problem)
        })?;
        if found != shape {
            let problem = format!(
                "is of another model: '{}' has shape {found:?}, the configured model {shape:?}",
                info.name
            );
            return Err(Error::checkpoint(&file, problem));
        }
        weights[info.offset..info.offset + values.len()].copy_from_slice(values);
    }
    let states = trainer.optimizer().state();
    for (name, ..) in &checkpoint.tensors {
        let known = parameters.infos().iter().any(|info| info.name == *name)
            || states.iter().any(|(state, _)| state == name)
            || name == TRAINED && trainer.optimizer().average().is_some();
        if !known {
            let problem = format!("is of another model or optimizer: it has a tensor '{name}'");
            return Err(Error::checkpoint(&file, problem));
        }
    }
    for region in [Some(parameters.weights()), trainer.optimizer().average()].into_iter().flatten()
    {
        trainer.store_mut().write(region, 0, &weights)?;
    }
    serde_json::from_value(checkpoint.state)
        .map_err(|e| Error::checkpoint(&file, format!("its position cannot be read: {e}")))
}

/// Loads everything: the run goes on exactly where it was.
pub(super) fn load(trainer: &mut Trainer, folder: &RunFolder) -> Result<Position> {
    let file = path(folder);
    let position = load_weights(trainer, folder)?;
    let checkpoint = Checkpoint::load(&file)?;
    let mut state = trainer.optimizer().state().to_vec();
    if trainer.optimizer().average().is_some() {
        state.push((TRAINED, trainer.parameters().weights()));
    }
    for (name, region) in state {
        let wanted = trainer.store().len(region);
        let values = checkpoint.tensor(name).map(|(_, values)| values);
        let Some(values) = values.filter(|values| values.len() == wanted) else {
            let problem = format!("is of another optimizer: no '{name}' of {wanted} values");
            return Err(Error::checkpoint(&file, problem));
        };
        trainer.store_mut().write(region, 0, values)?;
    }
    // Between two epochs it does not matter how the rows of earlier ones were ordered.
    if position.row_order != ROW_ORDER && position.offset > 0 {
        let problem = format!(
            "stands within an epoch (row {}) whose order another version of twoclocks made: it cannot be \
             continued from there, only evaluated",
            position.offset
        );
        return Err(Error::checkpoint(&file, problem));
    }
    if position.offset >= trainer.rows() {
        let problem = format!("stands at row {} of {}", position.offset, trainer.rows());
        return Err(Error::checkpoint(&file, problem));
    }
    Ok(position)
}
