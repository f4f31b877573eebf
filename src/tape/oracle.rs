//! The tape evaluated node by node in f64: what tests compare kernels and gradients with.

use super::{Origin, Tape};
use crate::device::Control;
use crate::error::{Error, Result};
use crate::ops::{Values, Var};

impl Tape {
    /// Values of all tensors, by [`crate::ops::Operation::naive`] in f64, given those of the inputs
    /// and persistent tensors. Slow and plain on purpose.
    ///
    /// # Errors
    /// An input or persistent tensor that is read has no values in `feeds`, or too few.
    pub fn evaluate(&self, feeds: &[(Var, Vec<f64>)], control: &Control) -> Result<Oracle> {
        let mut values: Vec<Option<Values>> = vec![None; self.tensors.len()];
        for (index, tensor) in self.tensors.iter().enumerate() {
            if let Origin::Fill(value) = tensor.origin {
                let mut filled = Values::zeros(tensor.tensor_type.clone());
                filled.data.fill(f64::from(value));
                values[index] = Some(filled);
            }
        }
        for (var, data) in feeds {
            let tensor = self.tensor(*var);
            if tensor.tensor_type.elements() != data.len() {
                let problem = format!("{} values for {}", data.len(), tensor.tensor_type);
                return Err(Error::operation(self.name(*var), problem));
            }
            let fed = Values { tensor_type: tensor.tensor_type.clone(), data: data.clone() };
            values[var.index as usize] = Some(fed);
        }
        for node in &self.nodes {
            let inputs = node
                .inputs
                .iter()
                .map(|input| {
                    values[input.index as usize].clone().ok_or_else(|| {
                        Error::operation(self.name(*input), "the oracle was given no values")
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            let mut outputs: Vec<Values> = node
                .outputs
                .iter()
                .map(|output| Values::zeros(self.tensor(*output).tensor_type.clone()))
                .collect();
            for (output, input) in node.op.in_place() {
                outputs[output] = inputs[input].clone();
            }
            node.op.naive(&inputs, &mut outputs, control);
            for (&output, computed) in node.outputs.iter().zip(outputs) {
                values[output.index as usize] = Some(computed);
            }
        }
        Ok(Oracle { values })
    }
}

/// Values of the tensors of a tape, in f64.
pub struct Oracle {
    values: Vec<Option<Values>>,
}

impl Oracle {
    /// Values of a tensor; `None` if it was neither fed nor computed.
    pub fn get(&self, var: Var) -> Option<&Values> {
        self.values.get(var.index as usize)?.as_ref()
    }
}
