//! A look at a model between two steps: what a fixed batch does in it. Its weights are looked at in `spectra.rs`.
//!
//! The pass is recorded once, as a review's is, and keeps the activations of the layers with gates, the last layer's inputs and the
//! logits. Gates and neural collapse are worked out from these on the host.

use super::measure::ProbeFigures;
use super::spectra::{Spectra, Spectral};
use crate::clocks::{Collapse, Gates, Matrix, collapse};
use crate::error::Result;
use crate::nn::{LayerKind, Mode, Noted};
use crate::ops::{Activation, Recorder, Var};
use crate::tape::{Recording, Region, Tape};
use crate::train::trainer::{Pass, Resident, Trainer};

/// Most classes of which the collapse is measured: it takes the eigenvectors of a matrix with that side.
const MOST_CLASSES: usize = 64;

/// The recordings of the probe, and what the last one left.
pub(in crate::train) struct Probe {
    rows: usize,
    /// Where the weights are that it looks at.
    weights: Region,
    pass: Recording,
    labels: Vec<u32>,
    gates: Vec<Gated>,
    last: Option<Last>,
    spectra: Spectra,
}

/// Activations of a layer with gates.
struct Gated {
    layer: String,
    activations: Var,
    before: Option<Gates>,
}

/// The last layer of a classifier.
struct Last {
    /// `[rows, width]`.
    features: Var,
    /// `[rows, classes]`.
    logits: Var,
    width: usize,
    classes: usize,
    /// Where the weight `[width, classes]` begins.
    offset: usize,
}

impl Probe {
    pub(in crate::train) fn new(trainer: &mut Trainer) -> Result<Probe> {
        let all = trainer.train.rows;
        let rows = trainer.options.probe_rows.clamp(1, all);
        // From all over the set, as a file may have its classes one after another.
        let order: Vec<u32> = (0..rows).map(|i| (i * all / rows) as u32).collect();
        let mut of_all = vec![0u32; all];
        trainer.store.read(trainer.train.labels, 0, &mut of_all)?;
        let labels = order.iter().map(|&row| of_all[row as usize]).collect();
        let order = trainer.store.upload("probe.order", &order);
        let data = Resident { order, ..trainer.train };
        let mut tape = Tape::new(&trainer.store);
        // What reviews read: the average, where there is one.
        let parameters = trainer.evaluated();
        let Pass { logits, noted, .. } =
            trainer.record_forward(&mut tape, &parameters, &data, rows, Mode::Eval)?;
        let mut gates = Vec::new();
        for Noted { name, kind, output, .. } in &noted {
            let (LayerKind::Linear { activation, .. } | LayerKind::Activation(activation)) = *kind
            else {
                continue;
            };
            if activation == Activation::Relu {
                tape.output(*output)?;
                let layer = match name.is_empty() {
                    true => format!("relu{}", gates.len()),
                    false => name.clone(),
                };
                gates.push(Gated { layer, activations: *output, before: None });
            }
        }
        let last = Last::find(trainer, &tape, &noted, logits);
        if let Some(last) = &last {
            tape.output(last.features)?;
            tape.output(logits)?;
        }
        let pass = tape.compile(&trainer.store)?;
        let weights = parameters.weights();
        let spectra = Spectra::new(trainer, weights, &noted, logits)?;
        Ok(Probe { rows, weights, pass, labels, gates, last, spectra })
    }

    /// All but the effective ranks.
    pub(in crate::train) fn figures(&mut self, trainer: &mut Trainer) -> Result<ProbeFigures> {
        // Without gates or a last layer the pass has nothing to say.
        if !self.gates.is_empty() || self.last.is_some() {
            trainer.store.control_mut().set_u64(trainer.offset, 0);
            self.pass.replay(&mut trainer.store)?;
        }
        let mut flips = Vec::new();
        for gated in &mut self.gates {
            let gates = Gates::of(&self.pass.read(gated.activations)?);
            if let Some(before) = &gated.before {
                flips.push((gated.layer.clone(), gates.flips(before)));
            }
            gated.before = Some(gates);
        }
        let collapse = match &self.last {
            Some(last) => self.collapse(trainer, last)?,
            None => None,
        };
        let Spectral { weights, balance, schatten } = self.spectra.figures(trainer)?;
        Ok(ProbeFigures { weights, balance, flips, collapse, schatten })
    }

    /// Adds the effective ranks to the figures that were just found.
    pub(in crate::train) fn add_effective_ranks(
        &mut self,
        trainer: &mut Trainer,
        figures: &mut ProbeFigures,
    ) -> Result<()> {
        let ranks = self.spectra.effective_ranks(trainer)?;
        for (weight, rank) in figures.weights.iter_mut().zip(ranks) {
            weight.effective_rank = Some(rank);
        }
        Ok(())
    }

    fn collapse(&self, trainer: &Trainer, last: &Last) -> Result<Option<Collapse>> {
        let (features, logits) = (self.pass.read(last.features)?, self.pass.read(last.logits)?);
        let mut weight = vec![0f32; last.width * last.classes];
        trainer.store.read(self.weights, last.offset, &mut weight)?;
        let first_largest = |row: &[f32]| {
            let mut best = 0;
            for (class, &z) in row.iter().enumerate() {
                if z > row[best] {
                    best = class;
                }
            }
            best as u32
        };
        let predicted: Vec<u32> = logits.chunks_exact(last.classes).map(first_largest).collect();
        let features = Matrix::new(self.rows, last.width, &features);
        let weight = Matrix::new(last.width, last.classes, &weight);
        Ok(collapse(features, &self.labels, &predicted, weight))
    }
}

impl Last {
    /// The layer whose outputs are the logits, if it is a linear one.
    fn find(trainer: &Trainer, tape: &Tape, noted: &[Noted], logits: Var) -> Option<Last> {
        let layer = noted.iter().find(|layer| layer.output == logits)?;
        let LayerKind::Linear { weight, activation: Activation::None } = layer.kind else {
            return None;
        };
        let info = &trainer.parameters.infos()[weight.index()];
        let (width, classes) = (info.shape.rows(), info.shape.columns());
        let matrix = tape.tensor_type(layer.input).shape.rank() == 2;
        let possible = matrix && width > 0 && classes <= MOST_CLASSES;
        let (features, offset) = (layer.input, info.offset);
        possible.then_some(Last { features, logits, width, classes, offset })
    }
}
