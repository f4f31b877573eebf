//! A training problem in a file, so that other programs can train on the same one.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;
use twoclocks::data::{Dataset, order};
use twoclocks::train::Trainer;
use twoclocks::{Error, Result};

/// Batches and starting weights of a net of linear layers, as `benches/peers/problem.py` writes
/// them: a safetensors file with `inputs` f32 [batches, batch, features], `labels` u32
/// [batches, batch] and, for each layer, `weight0` f32 [inputs, outputs] and `bias0` f32
/// `[outputs]`.
pub struct Problem {
    /// Batches of one pass.
    pub batches: usize,
    features: usize,
    inputs: Vec<f32>,
    labels: Vec<u32>,
    /// Weight and bias of each layer in turn.
    parameters: Vec<Vec<f32>>,
}

impl Problem {
    /// Reads the file for a net of these widths and batches of `batch` rows.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold such a problem.
    pub fn read(path: &Path, widths: &[usize], batch: usize) -> Result<Problem> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let refuse = |problem: String| Error::data(path, "problem", problem);
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| refuse(format!("is no safetensors file: {e}")))?;
        let tensor = |name: &str, dtype: Dtype, shape: &[usize]| -> Result<TensorView<'_>> {
            let tensor = file.tensor(name).map_err(|_| refuse(format!("has no '{name}'")))?;
            if tensor.dtype() != dtype || tensor.shape() != shape {
                let (kind, found) = (tensor.dtype(), tensor.shape());
                let problem = format!("'{name}' is {kind:?} {found:?}, not {dtype:?} {shape:?}");
                return Err(refuse(problem));
            }
            Ok(tensor)
        };
        let batches = file.tensor("inputs").map_or(0, |t| t.shape().first().copied().unwrap_or(0));
        let features = widths[0];
        let inputs = f32s(tensor("inputs", Dtype::F32, &[batches, batch, features])?.data());
        let labels = words(tensor("labels", Dtype::U32, &[batches, batch])?.data());
        let mut parameters = Vec::new();
        for (number, pair) in widths.windows(2).enumerate() {
            let weight = format!("weight{number}");
            parameters.push(f32s(tensor(&weight, Dtype::F32, pair)?.data()));
            let bias = format!("bias{number}");
            parameters.push(f32s(tensor(&bias, Dtype::F32, &pair[1..])?.data()));
        }
        if file.len() != parameters.len() + 2 {
            return Err(refuse(format!(
                "has {} tensors, not {}",
                file.len(),
                parameters.len() + 2
            )));
        }
        Ok(Problem { batches, features, inputs, labels: labels.collect(), parameters })
    }

    /// The rows as a training set, such that an epoch shuffled with `seed` and epoch 0 visits them
    /// in the order of the file.
    ///
    /// # Errors
    /// A value is not finite, a label is no class.
    pub fn dataset(&self, classes: usize, seed: u64) -> Result<Dataset> {
        let (rows, features) = (self.labels.len(), self.features);
        let (mut inputs, mut labels) = (vec![0.0; rows * features], vec![0; rows]);
        for (place, row) in order(seed, 0, rows).into_iter().map(|row| row as usize).enumerate() {
            let from = &self.inputs[place * features..][..features];
            inputs[row * features..][..features].copy_from_slice(from);
            labels[row] = self.labels[place];
        }
        Dataset::from_arrays(inputs, features, labels, classes)
    }

    /// Puts the starting weights into a trainer of the net.
    ///
    /// # Errors
    /// None on a CPU.
    pub fn start(&self, trainer: &mut Trainer) -> Result<()> {
        let parameters = trainer.parameters().clone();
        let mut weights = vec![0.0; parameters.parameters().flat_len()];
        assert_eq!(
            parameters.infos().len(),
            self.parameters.len(),
            "weight and bias of each layer"
        );
        for (info, values) in parameters.infos().iter().zip(&self.parameters) {
            weights[info.offset..][..info.shape.elements()].copy_from_slice(values);
        }
        trainer.store_mut().write(parameters.weights(), 0, &weights)
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    words(bytes).map(f32::from_bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 batches of 2 rows of 2 values, the net 2-2.
    fn file(name: &str, labels: &[usize]) -> std::path::PathBuf {
        let bytes =
            |len: usize| -> Vec<u8> { (0..len).flat_map(|i| (i as f32).to_le_bytes()).collect() };
        let rows: Vec<u8> = (0..6u32).flat_map(|row| (row % 2).to_le_bytes()).collect();
        let (inputs, weight, bias) = (bytes(12), bytes(4), bytes(2));
        let tensors = [
            ("inputs", Dtype::F32, vec![3, 2, 2], &inputs),
            ("labels", Dtype::U32, labels.to_vec(), &rows),
            ("weight0", Dtype::F32, vec![2, 2], &weight),
            ("bias0", Dtype::F32, vec![2], &bias),
        ]
        .map(|(name, dtype, shape, data)| (name, TensorView::new(dtype, shape, data).unwrap()));
        let path = std::env::temp_dir().join(format!("twoclocks-{}-{name}", std::process::id()));
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        path
    }

    #[test]
    fn an_epoch_visits_the_rows_of_the_file_in_turn() {
        let path = file("problem", &[3, 2]);
        let problem = Problem::read(&path, &[2, 2], 2).unwrap();
        let other = Problem::read(&path, &[2, 3], 2).err().unwrap().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(other.contains("'weight0' is F32 [2, 2], not F32 [2, 3]"), "{other}");
        assert_eq!((problem.batches, problem.parameters.len()), (3, 2));
        let data = problem.dataset(2, 7).unwrap();
        for (place, row) in order(7, 0, 6).into_iter().enumerate() {
            let mut values = [0.0; 2];
            data.rows_f32(row as usize..row as usize + 1, &mut values);
            assert_eq!(values, [2.0 * place as f32, 2.0 * place as f32 + 1.0]);
            assert_eq!(data.labels()[row as usize] as usize, place % 2);
        }
    }

    #[test]
    fn labels_of_another_shape_are_refused() {
        let path = file("labels", &[6]);
        let error = Problem::read(&path, &[2, 2], 2).err().unwrap().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("'labels' is U32 [6], not U32 [3, 2]"), "{error}");
    }
}
