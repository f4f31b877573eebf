//! A model with its data on a device: steps and reviews, replayed from recordings.

mod examine;
mod record;
mod review;

pub(super) use record::Pass;
pub use review::Review;

use super::clocks::measure::{ProbeFigures, StepFigures};
use super::clocks::probe::Probe;
use super::clocks::telemetry::Telemetry;
use super::shared::Input;
use crate::data::{NormalisationKind, Split};
use crate::device::{Device, U64Slot};
use crate::error::{Error, Result};
use crate::gemm::Precision;
use crate::nn::{Bound, Module, Parameters};
use crate::ops;
use crate::optim::{Between, Optimizer, OptimizerConfig, PolarWeight, Rates, Segment};
use crate::runs::Environment;
use crate::tape::{Cache, KEPT, NotFinite, Recording, Region, Store, Tape};
use crate::tensor::DType;

/// How a [`Trainer`] trains.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Rows of a batch.
    pub batch: usize,
    /// Batches whose gradients are averaged for one update.
    pub accumulate: usize,
    /// Share of a label that is spread over all classes.
    pub label_smoothing: f32,
    /// Seed of initialisation, shuffling and dropout.
    pub seed: u64,
    /// The update rule.
    pub optimizer: OptimizerConfig,
    /// How inputs are scaled.
    pub normalise: NormalisationKind,
    /// How products are computed; weights, loss and optimizer are f32.
    pub precision: Precision,
    /// Whether steps are measured as they go ([`Trainer::take_figures`]). That changes no weight.
    pub telemetry: bool,
    /// Training rows that [`Trainer::probe`] looks at, at most.
    pub probe_rows: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            batch: 128,
            accumulate: 1,
            label_smoothing: 0.0,
            seed: 0,
            optimizer: OptimizerConfig::default(),
            normalise: NormalisationKind::Global,
            precision: Precision::F32,
            telemetry: false,
            probe_rows: 512,
        }
    }
}

/// A data set in device memory, and the rows of it that are visited, in their order.
#[derive(Clone, Copy)]
pub(super) struct Resident {
    pub(super) values: Region,
    pub(super) labels: Region,
    pub(super) order: Region,
    pub(super) rows: usize,
    pub(super) features: usize,
}

/// One recording of a step is made for each of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StepKey {
    rows: usize,
    /// Rows of the whole update.
    total: usize,
    /// Whether this batch's gradients start the sum.
    first: bool,
    /// Whether the update follows.
    last: bool,
}

/// Steps that a GPU is given at once, at most: while they run, nobody can stop the run or review it.
#[cfg(feature = "cuda")]
const MOST_AT_ONCE: usize = 32;

/// A row of the epoch's order that no data set has: a batch from there is not finite, and updates nothing.
const NO_ROW: u64 = u64::MAX >> 1;

/// A model, its parameters and optimizer, and a data set, on one device.
pub struct Trainer {
    pub(super) store: Store,
    model: Box<dyn Module>,
    pub(super) parameters: Bound,
    optimizer: Optimizer,
    pub(super) options: TrainOptions,
    pub(super) train: Resident,
    test: Resident,
    /// Some rows of the test set.
    sample: Option<Resident>,
    scale: Region,
    shift: Region,
    row_shape: Vec<usize>,
    classes: usize,
    class_names: Option<Vec<String>>,
    pub(super) offset: U64Slot,
    epoch: U64Slot,
    steps: Cache<StepKey>,
    /// By order of the rows, and rows of a batch.
    reviews: Cache<(Region, usize)>,
    reviewed: examine::Reviewed,
    orders: Cache<()>,
    /// What the optimizer does between steps.
    between: Cache<Between>,
    kept: Vec<[f32; KEPT]>,
    /// First row and rows of the updates that are under way, and their losses.
    updates: Vec<(usize, usize)>,
    losses: Vec<f64>,
    telemetry: Option<Telemetry>,
    probe: Option<Probe>,
}

impl Trainer {
    /// Puts the model's parameters and the data onto the device.
    ///
    /// # Errors
    /// The model does not fit the data (the error names the layer) or memory, a parameter is
    /// not used, the options cannot be used, or a data set is empty.
    pub fn new(
        device: &Device,
        model: Box<dyn Module>,
        parameters: Parameters,
        data: &Split,
        options: TrainOptions,
    ) -> Result<Trainer> {
        Self::of(device, model, parameters, data.into(), options)
    }

    /// The same with data that several trainers may share.
    pub(super) fn of(
        device: &Device,
        model: Box<dyn Module>,
        parameters: Parameters,
        input: Input<'_>,
        options: TrainOptions,
    ) -> Result<Trainer> {
        let data = input.split;
        options.optimizer.validate()?;
        if options.batch == 0 || options.accumulate == 0 {
            return Err(Error::config("batch", "a batch has at least one row"));
        }
        for (name, set) in [("train", &data.train), ("test", &data.test)] {
            if set.rows() == 0 {
                return Err(Error::config(format!("data.{name}"), "the set has no rows"));
            }
        }
        let (row, test_row) = (data.train.shape(), data.test.shape());
        if row != test_row {
            let problem = format!("its rows have shape {test_row:?}, the training rows {row:?}");
            return Err(Error::config("data.test", problem));
        }
        let classes = data.train.classes();
        let foreign = |&label: &u32| label as usize >= classes;
        if let Some(index) = data.test.labels().iter().position(foreign) {
            let label = data.test.labels()[index];
            let problem =
                format!("row {index} is of class {label}, the training set has {classes}");
            return Err(Error::config("data.test", problem));
        }
        // Weights, their gradients, two moments and an average; packed copies.
        let packed = parameters.packed_bytes(device, options.precision);
        let copies = if options.optimizer.average.is_some() { 5.0 } else { 4.0 };
        let bytes = copies * parameters.flat_len() as f64 * size_of::<f32>() as f64 + packed as f64;
        Environment::require_memory("the model with its optimizer", bytes)?;
        let normalisation = input.normalisation(options.normalise);
        let mut store = Store::new(device);
        let parameters = parameters.bind_in(options.precision, &mut store, options.seed)?;
        let segments = parameters
            .infos()
            .iter()
            .map(|info| Segment {
                offset: info.offset,
                len: info.shape.elements(),
                rate_factor: info.rate_factor,
                decay_factor: info.decay_factor,
            })
            .collect();
        let flat_len = parameters.parameters().flat_len();
        let optimizer = Optimizer::new(&options.optimizer, segments, flat_len, &mut store)?
            .with_packed(parameters.packed())
            .with_polar(polar_weights(&parameters)?, &mut store)?;
        if let Some(average) = optimizer.average() {
            let mut start = vec![0f32; flat_len];
            store.read(parameters.weights(), 0, &mut start)?;
            store.write(average, 0, &start)?;
        }
        let regions = input.train(&mut store);
        let train = resident(&mut store, "train.order", regions, data.train.features())?;
        let regions = input.test(&mut store);
        let test = resident(&mut store, "test.order", regions, data.test.features())?;
        let telemetry = options.telemetry;
        let count = parameters.infos().len();
        let telemetry = telemetry.then(|| Telemetry::new(&mut store, count)).transpose()?;
        let identity: Vec<u32> = (0..test.rows as u32).collect();
        store.write(test.order, 0, &identity)?;
        let scale = store.upload("scale", &normalisation.scale);
        let shift = store.upload("shift", &normalisation.shift);
        let control = store.control_mut();
        let offset = control.u64_slot("batch offset", 0);
        control.set_u64_halted(offset, NO_ROW);
        let epoch = control.u64_slot("epoch", 0);
        let mut trainer = Trainer {
            row_shape: data.train.shape().to_vec(),
            classes: data.train.classes(),
            class_names: data.train.class_names().map(<[String]>::to_vec),
            steps: Cache::default(),
            reviews: Cache::default(),
            reviewed: examine::Reviewed::default(),
            orders: Cache::default(),
            between: Cache::default(),
            kept: Vec::new(),
            updates: Vec::new(),
            losses: Vec::new(),
            telemetry,
            probe: None,
            store,
            model,
            parameters,
            optimizer,
            options,
            train,
            test,
            sample: None,
            scale,
            shift,
            offset,
            epoch,
        };
        trainer.prepare_step(trainer.update_rows(0))?;
        Ok(trainer)
    }

    /// The parameters.
    pub fn parameters(&self) -> &Bound {
        &self.parameters
    }

    /// How products are computed.
    pub fn precision(&self) -> Precision {
        self.options.precision
    }

    /// Memory and control block.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Memory and control block, to change them.
    pub fn store_mut(&mut self) -> &mut Store {
        // Whoever writes weights makes other logits.
        self.reviewed.forget();
        &mut self.store
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Training rows.
    pub fn rows(&self) -> usize {
        self.train.rows
    }

    /// Rows of a batch from the next step on; batches of another size are another recording.
    ///
    /// # Panics
    /// If that is 0.
    pub fn set_batch(&mut self, rows: usize) {
        assert!(rows > 0, "a batch has at least one row");
        self.options.batch = rows;
    }

    /// Updates of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        let rows = self.options.batch.saturating_mul(self.options.accumulate);
        self.train.rows.div_ceil(rows) as u64
    }

    /// Rows of the update that starts at row `offset` of the epoch; 0 past the end.
    pub fn update_rows(&self, offset: usize) -> usize {
        let rows = self.options.batch.saturating_mul(self.options.accumulate);
        rows.min(self.train.rows.saturating_sub(offset))
    }

    /// Shuffles the training rows for an epoch, where they lie: a function of seed and epoch alone.
    ///
    /// # Errors
    /// None on a CPU.
    pub fn start_epoch(&mut self, epoch: u64) -> Result<()> {
        let (store, rows, region) = (&mut self.store, self.train.rows, self.train.order);
        let seed = store.control_mut().u64_slot("seed of the orders", self.options.seed);
        store.control_mut().set_u64(self.epoch, epoch);
        let recording = self.orders.get((), || {
            let mut tape = Tape::new(store);
            let order =
                tape.scoped("data", |tape| ops::permutation(tape, rows, seed, self.epoch))?;
            tape.place(order, region, 0)?;
            tape.compile(store)
        })?;
        recording.replay(store)
    }

    /// Steps that are best given to the device at once ([`Trainer::steps`]), at most: 1 on a CPU, which
    /// gains nothing by more.
    pub fn at_once(&self) -> usize {
        match self.store.device() {
            Device::Cpu(_) => 1,
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => MOST_AT_ONCE,
        }
    }

    /// The parts of an update of `rows` rows: key and first row of each.
    fn parts(&self, rows: usize) -> impl Iterator<Item = (StepKey, usize)> + use<> {
        parts(self.options.batch, rows)
    }

    /// Records what an update of `rows` rows needs, if it is not recorded yet.
    fn prepare_step(&mut self, rows: usize) -> Result<()> {
        for (key, _) in self.parts(rows) {
            if !self.steps.contains(&key) {
                let recording = self.record_step(key)?;
                self.steps.get(key, || Ok(recording))?;
            }
        }
        Ok(())
    }

    /// Records what the optimizer does between steps, if it is not recorded yet.
    fn prepare_between(&mut self, what: Between) -> Result<()> {
        let Trainer { between, optimizer, parameters, store, .. } = self;
        between.get(what, || {
            let mut tape = Tape::new(store);
            let (weights, gradients) = (parameters.weights(), parameters.gradients());
            optimizer.record_between(&mut tape, what, weights, gradients)?;
            tape.compile(store)
        })?;
        Ok(())
    }

    /// The parameters that reviews read: the average, where there is one.
    pub(super) fn evaluated(&self) -> Bound {
        match self.optimizer.average() {
            Some(average) => self.parameters.with_weights(average),
            None => self.parameters.clone(),
        }
    }

    /// One update from the rows of the epoch's order that start at `offset`. `step` counts from 1; a number
    /// for `rates` is the learning rate.
    /// Returns the mean loss, before the update; NaN when the gradients that are to be
    /// clipped are not finite. When the result is not finite, nothing is updated.
    ///
    /// # Errors
    /// `offset` is past the end, or recording fails.
    pub fn step(&mut self, step: u64, offset: usize, rates: impl Into<Rates>) -> Result<f64> {
        let losses = self.steps(step, offset, &[rates.into()])?;
        Ok(losses[0])
    }

    /// Updates one after another, with these rates, as [`Trainer::step`] makes each; a GPU is given all of
    /// them at once, and nobody waits for it between two of them. The losses, up to the first one that is not
    /// finite: that step updated nothing, and those after it did not either.
    ///
    /// # Errors
    /// The epoch has fewer steps left, or recording fails.
    pub fn steps<R: Into<Rates> + Copy>(
        &mut self,
        step: u64,
        offset: usize,
        rates: &[R],
    ) -> Result<&[f64]> {
        let mut end = offset;
        self.updates.clear();
        self.reviewed.forget();
        for _ in rates {
            let rows = self.update_rows(end);
            if rows == 0 {
                let problem = format!("row {end} is past the end: there are {}", self.train.rows);
                return Err(Error::operation("step", problem));
            }
            self.prepare_step(rows)?;
            self.updates.push((end, rows));
            end += rows;
        }
        for number in 0..rates.len() as u64 {
            for what in self.optimizer.after(step + number) {
                self.prepare_between(what)?;
            }
        }
        let (_, counter) = self.parameters.randomness();
        let Trainer { store, steps: recordings, between, optimizer, offset, updates, .. } = self;
        let batch = self.options.batch;
        let mut given = 0;
        while given < updates.len() {
            let (start, rows) = updates[given];
            // Those that follow and are of one batch of as many rows are replays of the same recording.
            let alike = updates[given..].iter().take_while(|update| update.1 == rows).count();
            let count = if rows <= batch { alike } else { 1 };
            let unbroken = optimizer.unbroken(step + given as u64);
            let count = count.min(usize::try_from(unbroken).unwrap_or(usize::MAX));
            for (number, (key, first)) in parts(batch, rows).enumerate() {
                let recording = recordings.get(key, || unreachable!("prepared above"))?;
                recording.enqueue(store, count, |which, control| {
                    let step = step + (given + which) as u64;
                    optimizer.prepare(control, step, rates[given + which], 1.0);
                    control.set_u64(*offset, (start + which * rows + first) as u64);
                    // Each batch of each step has masks of its own.
                    control.set_u64(counter, (step << 16) + number as u64);
                })?;
            }
            given += count;
            let last = step + given as u64 - 1;
            for what in optimizer.after(last) {
                let recording = between.get(what, || unreachable!("prepared above"))?;
                let rates = rates[given - 1].into();
                recording.enqueue(store, 1, |_, control| {
                    optimizer.prepare_between(control, what, last, rates);
                })?;
            }
        }
        self.store.collect(&mut self.kept)?;
        let mut kept = self.kept.iter();
        self.losses.clear();
        for (number, &(_, rows)) in self.updates.iter().enumerate() {
            let loss = loss_of(self.options.batch, rows, &mut kept, self.telemetry.as_mut());
            // What came after it kept nothing.
            kept.by_ref().take(self.optimizer.after(step + number as u64).count()).for_each(drop);
            self.losses.push(loss);
            if !loss.is_finite() {
                break;
            }
        }
        Ok(&self.losses)
    }

    /// Where the step of these rows first meets a value that is not finite. Nothing is updated.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn diagnose(&mut self, step: u64, offset: usize) -> Result<Option<NotFinite>> {
        if let Some(found) = self.first_bad_weight()? {
            return Ok(Some(found));
        }
        let rows = self.update_rows(offset);
        let (_, counter) = self.parameters.randomness();
        for (number, (key, start)) in self.parts(rows).enumerate() {
            let control = self.store.control_mut();
            control.set_u64(self.offset, (offset + start) as u64);
            control.set_u64(counter, (step << 16) + number as u64);
            let recording = self.steps.get(key, || unreachable!("the step ran before"))?;
            if let Some(found) = recording.replay_checked(&mut self.store)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The first weight that is not finite.
    ///
    /// # Errors
    /// None on a CPU.
    pub fn first_bad_weight(&self) -> Result<Option<NotFinite>> {
        for info in self.parameters.infos() {
            let mut values = vec![0f32; info.shape.elements()];
            self.store.read(self.parameters.weights(), info.offset, &mut values)?;
            let bad = values.iter().enumerate().find(|(_, value)| !value.is_finite());
            if let Some((index, &value)) = bad {
                return Ok(Some(NotFinite { place: info.name.clone(), index, value }));
            }
        }
        Ok(None)
    }

    /// What the steps said of themselves since this was last called, or the trainer was made; `None` if there
    /// was no step, or they are not asked ([`TrainOptions::telemetry`]). After a step that was not finite the
    /// figures may not be either.
    ///
    /// # Errors
    /// None on a CPU.
    pub fn take_figures(&mut self) -> Result<Option<StepFigures>> {
        let Trainer { telemetry, store, parameters, .. } = self;
        match telemetry {
            Some(telemetry) => telemetry.take(store, parameters.infos()),
            None => Ok(None),
        }
    }

    /// Looks at the model on the probe batch, training rows from all over the data set, and at its weights: those that reviews
    /// read, which is the average where there is one. Not
    /// state of a run: what it compares with, and begins from, is the probe before in this process.
    ///
    /// # Errors
    /// Recording fails.
    pub fn probe(&mut self) -> Result<ProbeFigures> {
        let mut figures = self.quick_probe()?;
        self.add_effective_ranks(&mut figures)?;
        Ok(figures)
    }

    /// The same without the effective ranks, which may take as long as the rest.
    ///
    /// # Errors
    /// Recording fails.
    pub fn quick_probe(&mut self) -> Result<ProbeFigures> {
        let mut probe = match self.probe.take() {
            Some(probe) => probe,
            None => Probe::new(self)?,
        };
        let figures = probe.figures(self);
        self.probe = Some(probe);
        figures
    }

    /// Adds the effective ranks to the figures of the last quick probe; no step may lie between the two.
    pub(super) fn add_effective_ranks(&mut self, figures: &mut ProbeFigures) -> Result<()> {
        let Some(mut probe) = self.probe.take() else { return Ok(()) };
        let added = probe.add_effective_ranks(self, figures);
        self.probe = Some(probe);
        added
    }

    /// The recording of a whole step of the first batch, for profiles and cost figures.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_recording(&mut self) -> Result<(&mut Recording, &mut Store)> {
        let rows = self.options.batch.min(self.train.rows);
        let key = StepKey { rows, total: rows, first: true, last: true };
        if !self.steps.contains(&key) {
            let recording = self.record_step(key)?;
            self.steps.get(key, || Ok(recording))?;
        }
        self.store.control_mut().set_u64(self.offset, 0);
        let recording = self.steps.get(key, || unreachable!("recorded above"))?;
        Ok((recording, &mut self.store))
    }
}

/// The batches of an update of `rows` rows: key and first row of each.
fn parts(batch: usize, rows: usize) -> impl Iterator<Item = (StepKey, usize)> {
    (0..rows).step_by(batch).map(move |start| {
        let end = (start + batch).min(rows);
        let key = StepKey { rows: end - start, total: rows, first: start == 0, last: end == rows };
        (key, start)
    })
}

/// The loss of an update of `rows` rows from what its batches kept: loss, statistics where there is
/// telemetry, and norm of the gradients.
fn loss_of<'a>(
    batch: usize,
    rows: usize,
    kept: &mut impl Iterator<Item = &'a [f32; KEPT]>,
    mut telemetry: Option<&mut Telemetry>,
) -> f64 {
    let norm_at = if telemetry.is_some() { Telemetry::NORM_AT } else { 1 };
    let mut total = 0.0;
    for ((key, _), kept) in parts(batch, rows).zip(kept) {
        let (loss, norm) = (kept[0], kept[norm_at]);
        // The optimizer skipped this update; a run that skips all of them is not a run. (The norm is
        // 0 where there is none.)
        if !norm.is_finite() {
            return f64::NAN;
        }
        total += f64::from(loss) * (key.rows as f64 / key.total as f64);
        if !loss.is_finite() {
            return f64::from(loss);
        }
        if let Some(telemetry) = &mut telemetry {
            telemetry.add_batch(key.rows, kept);
        }
    }
    if let Some(telemetry) = telemetry {
        telemetry.add_update();
    }
    total
}

/// Those that decay along their polar factors.
fn polar_weights(parameters: &Bound) -> Result<Vec<PolarWeight>> {
    let polar = parameters.infos().iter().filter(|info| info.polar_factor > 0.0);
    polar
        .map(|info| {
            let &[rows, columns] = info.shape.extents() else {
                let problem = format!("{} is no matrix: it has no polar factor", info.shape);
                return Err(Error::config(&info.name, problem));
            };
            let factor = info.rate_factor * info.polar_factor;
            Ok(PolarWeight { offset: info.offset, shape: [rows, columns], factor })
        })
        .collect()
}

fn resident(
    store: &mut Store,
    order: &str,
    [values, labels]: [Region; 2],
    features: usize,
) -> Result<Resident> {
    let rows = store.len(labels);
    let order = store.try_allocate(order, DType::U32, rows)?;
    Ok(Resident { values, labels, order, rows, features })
}
