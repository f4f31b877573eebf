//! A data set that trainers side by side share.

use crate::data::{Dataset, Normalisation, NormalisationKind, Split, Values};
use crate::tape::{Region, SharedValues, Store};

/// A data set as trainers take it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    pub split: &'a Split,
    /// What is there already for several trainers.
    pub shared: Option<&'a Shared>,
}

impl<'a> From<&'a Split> for Input<'a> {
    fn from(split: &'a Split) -> Self {
        Input { split, shared: None }
    }
}

impl Input<'_> {
    pub fn normalisation(&self, kind: NormalisationKind) -> Normalisation {
        let known = self.shared.into_iter().flat_map(|shared| &shared.normalisations);
        let mut known = known.filter(|(of, _)| *of == kind);
        known.next().map_or_else(|| Normalisation::new(kind, &self.split.train), |(_, n)| n.clone())
    }

    /// Regions that hold values and labels of the training rows.
    pub fn train(&self, store: &mut Store) -> [Region; 2] {
        regions(store, "train", &self.split.train, self.shared.map(|shared| &shared.train))
    }

    /// Regions that hold values and labels of the test rows.
    pub fn test(&self, store: &mut Store) -> [Region; 2] {
        regions(store, "test", &self.split.test, self.shared.map(|shared| &shared.test))
    }
}

/// One copy of a data set for trainers on the CPU, and how its inputs are scaled.
pub(super) struct Shared {
    train: Rows,
    test: Rows,
    normalisations: Vec<(NormalisationKind, Normalisation)>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub fn new(split: &Split, kinds: impl IntoIterator<Item = NormalisationKind>) -> Shared {
        let mut normalisations: Vec<(NormalisationKind, Normalisation)> = Vec::new();
        for kind in kinds {
            if normalisations.iter().all(|(known, _)| *known != kind) {
                normalisations.push((kind, Normalisation::new(kind, &split.train)));
            }
        }
        Shared { train: Rows::new(&split.train), test: Rows::new(&split.test), normalisations }
    }
}

struct Rows {
    values: Elements,
    labels: SharedValues<u32>,
}

enum Elements {
    U8(SharedValues<u8>),
    F32(SharedValues<f32>),
}

impl Rows {
    fn new(data: &Dataset) -> Rows {
        let values = match data.values() {
            Values::U8(values) => Elements::U8(SharedValues::new(values)),
            Values::F32(values) => Elements::F32(SharedValues::new(values)),
        };
        Rows { values, labels: SharedValues::new(data.labels()) }
    }
}

fn regions(store: &mut Store, name: &str, data: &Dataset, shared: Option<&Rows>) -> [Region; 2] {
    let (values, labels) = (format!("{name}.values"), format!("{name}.labels"));
    match shared {
        Some(rows) => {
            let values = match &rows.values {
                Elements::U8(shared) => store.share(&values, shared),
                Elements::F32(shared) => store.share(&values, shared),
            };
            [values, store.share(&labels, &rows.labels)]
        }
        None => {
            let values = match data.values() {
                Values::U8(bytes) => store.upload(&values, bytes),
                Values::F32(floats) => store.upload(&values, floats),
            };
            [values, store.upload(&labels, data.labels())]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TrainOptions, Trainer};
    use super::*;
    use crate::data::synthetic;
    use crate::device::Device;
    use crate::nn::{LayerConfig, Parameters, Sequential};

    fn trained(input: Input<'_>, normalise: NormalisationKind) -> Vec<u32> {
        let layer: LayerConfig = toml::from_str("kind = \"linear\"\noutputs = 3").unwrap();
        let mut parameters = Parameters::new();
        let model = Sequential::new(&[layer], input.split.train.shape(), &mut parameters).unwrap();
        let options = TrainOptions { batch: 16, normalise, ..TrainOptions::default() };
        let device = Device::cpu(1).unwrap();
        let mut trainer =
            Trainer::of(&device, Box::new(model), parameters, input, options).unwrap();
        trainer.start_epoch(0).unwrap();
        for step in 0..4 {
            trainer.step(step + 1, 16 * step as usize, 0.01).unwrap();
        }
        let mut figures = vec![trainer.review().unwrap().loss.to_bits() as u32];
        let region = trainer.parameters().weights();
        let mut values = vec![0f32; trainer.store().len(region)];
        trainer.store().read(region, 0, &mut values).unwrap();
        figures.extend(values.into_iter().map(f32::to_bits));
        figures
    }

    #[test]
    fn trainers_of_one_copy_train_as_with_their_own() {
        let split = Split { train: synthetic(100, 5, 3, 1), test: synthetic(40, 5, 3, 2) };
        let kinds = [NormalisationKind::Global, NormalisationKind::Centred];
        let shared = Shared::new(&split, [kinds[0], kinds[0], kinds[1]]);
        assert_eq!(shared.normalisations.len(), 2);
        let input = Input { split: &split, shared: Some(&shared) };
        for kind in [kinds[0], kinds[1], NormalisationKind::PerFeature] {
            let own = trained((&split).into(), kind);
            let side_by_side: Vec<Vec<u32>> = std::thread::scope(|scope| {
                let threads = [0, 1].map(|_| scope.spawn(|| trained(input, kind)));
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(side_by_side.iter().all(|found| *found == own), "{kind:?}");
        }
        // They read that copy, and no other one: nothing of it can be written.
        let mut store = Store::new(&Device::cpu(1).unwrap());
        let [values, labels] = input.train(&mut store);
        assert!(
            store.write(values, 0, &[0f32]).is_err() && store.write(labels, 0, &[0u32]).is_err()
        );
        let [values, _] = Input::from(&split).train(&mut store);
        store.write(values, 0, &[0f32]).unwrap();
    }
}
