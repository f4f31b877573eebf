//! The reverse walk: appends the nodes that compute gradients.

use super::{Origin, Tape};
use crate::error::{Error, Result};
use crate::ops::{self, Recorder, Rule, Var};
use std::collections::HashMap;

impl Tape {
    /// Records the gradients of `loss` (one f32) with respect to each tensor of `wrt`.
    ///
    /// Gradients are recorded operations, so the result can be differentiated again.
    ///
    /// # Errors
    /// `loss` is not one f32; an operation on the way has no gradient rule or gives no gradient for
    /// an input that needs one; `loss` does not depend on a tensor of `wrt` (unless
    /// [`Tape::detach`] named it: then its gradient is zeros).
    pub fn backward(&mut self, loss: Var, wrt: &[Var]) -> Result<Vec<Var>> {
        let loss_type = self.tensor_type(loss).clone();
        if loss_type.elements() != 1 || !loss_type.dtype.is_float() {
            let problem = format!("the loss must be one f32, not {loss_type}");
            return Err(Error::gradient(self.name(loss), problem));
        }
        let one = self.fill(loss_type.shape, 1.0);
        self.vector_jacobian(&[(loss, one)], wrt)
    }

    /// Records, for each tensor of `wrt`, the sum over `outputs` of its upstream gradient times the
    /// output's Jacobian. [`Tape::backward`] is the case of one scalar output and an upstream of 1.
    ///
    /// # Errors
    /// An upstream gradient has another shape than its output; and as [`Tape::backward`].
    pub fn vector_jacobian(&mut self, outputs: &[(Var, Var)], wrt: &[Var]) -> Result<Vec<Var>> {
        let needs = self.dependents(wrt);
        let first = self.tensors.len() as u32;
        let mut gradients: HashMap<Var, Var> = HashMap::new();
        for &(output, upstream) in outputs {
            if self.tensor_type(output).shape != self.tensor_type(upstream).shape {
                let problem = "the upstream gradient has another shape than the output";
                return Err(Error::gradient(self.name(output), problem));
            }
            if self.tensor(output).detached {
                continue;
            }
            let total = match gradients.get(&output) {
                Some(&earlier) => ops::add(self, earlier, upstream)?,
                None => upstream,
            };
            gradients.insert(output, total);
        }
        for index in (0..self.nodes.len()).rev() {
            let node = self.nodes[index].clone();
            let upstream: Vec<Option<Var>> =
                node.outputs.iter().map(|output| gradients.get(output).copied()).collect();
            if upstream.iter().all(Option::is_none) {
                continue;
            }
            let input_needs: Vec<bool> =
                node.inputs.iter().map(|input| needs[input.index as usize]).collect();
            if !input_needs.contains(&true) {
                continue;
            }
            let label = self.label(index);
            let outer = std::mem::replace(&mut self.scopes, vec![format!("{label}.backward")]);
            // Gradients that this walk made, of one tensor alone that nobody asks for.
            let owned = node.outputs.iter().zip(&upstream).map(|(output, upstream)| {
                upstream.is_some_and(|upstream| {
                    let tensors = gradients.values().filter(|&&other| other == upstream).count();
                    upstream.index >= first && tensors == 1 && !wrt.contains(output)
                })
            });
            let upstream = (&upstream[..], owned.collect());
            let given = self.node_gradient(index, &node, upstream, &input_needs, &mut gradients);
            self.scopes = outer;
            given.map_err(|error| match error {
                Error::Gradient { problem, .. } => Error::Gradient { op: label, problem },
                other => other,
            })?;
        }
        wrt.iter()
            .map(|&var| match gradients.get(&var) {
                Some(&gradient) => Ok(gradient),
                None if self.tensor(var).detached => {
                    let shape = self.tensor_type(var).shape.clone();
                    Ok(self.fill(shape, 0.0))
                }
                None => Err(Error::gradient(
                    self.name(var),
                    "the loss does not depend on it (detach it by name if that is meant)",
                )),
            })
            .collect()
    }

    fn node_gradient(
        &mut self,
        index: usize,
        node: &super::Node,
        (upstream, owned): (&[Option<Var>], Vec<bool>),
        needs: &[bool],
        gradients: &mut HashMap<Var, Var>,
    ) -> Result<()> {
        let (inputs, outputs) = (&node.inputs, &node.outputs);
        if !node.op.in_place().is_empty() {
            return Err(Error::gradient(
                self.label(index),
                "an operation that updates memory in place has no gradient",
            ));
        }
        let rule = Rule::new(self, node.op.name(), inputs, outputs, upstream, needs);
        let mut rule = rule.owning(owned);
        node.op.gradient(&mut rule)?;
        let given = rule.finish()?;
        for ((&input, gradient), &needs) in inputs.iter().zip(given).zip(needs) {
            let Some(gradient) = gradient.filter(|_| needs) else { continue };
            let total = match gradients.get(&input) {
                Some(&earlier) => ops::add(self, earlier, gradient)?,
                None => gradient,
            };
            gradients.insert(input, total);
        }
        Ok(())
    }

    /// For every tensor, whether it depends on one of `wrt` in a differentiable way.
    fn dependents(&self, wrt: &[Var]) -> Vec<bool> {
        let mut depends = vec![false; self.tensors.len()];
        for &var in wrt {
            depends[var.index as usize] = !self.tensor(var).detached;
        }
        for node in &self.nodes {
            if node.inputs.iter().any(|input| depends[input.index as usize]) {
                for &output in &node.outputs {
                    let tensor = self.tensor(output);
                    debug_assert!(matches!(tensor.origin, Origin::Node(_)));
                    depends[output.index as usize] |=
                        tensor.tensor_type.dtype.is_float() && !tensor.detached;
                }
            }
        }
        depends
    }
}
