//! The oracle as a kernel: what runs on the CPU where an operation has none.

use crate::device::cpu::launch::{Chunk, Launch};
use crate::ops::{Operation, Site, Values};
use crate::tensor::{DType, TensorType};
use std::sync::Arc;

/// The oracle as a kernel: what runs where an operation has no kernel of its own.
pub(super) fn naive_launch(op: Arc<dyn Operation>, site: &Site<'_>) -> Launch {
    let (inputs, outputs) = (site.inputs.to_vec(), site.outputs.to_vec());
    let used = site.used.to_vec();
    let in_place = op.in_place();
    Launch::new("naive").serial(move |chunk| {
        let updates = |i: usize| in_place.iter().find(|&&(_, input)| input == i);
        let values = |i: usize, tensor_type: &TensorType| -> Values {
            let mut values = Values::zeros(tensor_type.clone());
            match updates(i) {
                Some(_) => {}
                None => widen(chunk, i, &mut values),
            }
            values
        };
        let mut given: Vec<Values> =
            inputs.iter().enumerate().map(|(i, tensor_type)| values(i, tensor_type)).collect();
        let mut computed: Vec<Values> = outputs.iter().cloned().map(Values::zeros).collect();
        let mut targets: Vec<Option<&mut [f32]>> = Vec::new();
        for (i, output) in outputs.iter().enumerate() {
            assert_eq!(output.dtype, DType::F32, "the naive fallback writes f32 outputs only");
            let target = chunk.output::<f32>(i);
            if let Some(&(_, input)) = in_place.iter().find(|&&(output, _)| output == i) {
                computed[i].data = target.iter().map(|&x| f64::from(x)).collect();
                given[input].data.clone_from(&computed[i].data);
            }
            targets.push(used[i].then_some(target));
        }
        op.naive(&given, &mut computed, chunk.control());
        for (target, computed) in targets.into_iter().zip(&computed) {
            if let Some(target) = target {
                for (to, &from) in target.iter_mut().zip(&computed.data) {
                    *to = from as f32;
                }
            }
        }
    })
}

fn widen(chunk: &Chunk<'_>, i: usize, values: &mut Values) {
    let data = &mut values.data;
    match values.tensor_type.dtype {
        DType::F32 => fill(data, chunk.input::<f32>(i).iter().map(|&x| f64::from(x))),
        DType::Bf16 => fill(data, chunk.input::<half::bf16>(i).iter().map(|x| x.to_f64())),
        DType::U32 => fill(data, chunk.input::<u32>(i).iter().map(|&x| f64::from(x))),
        DType::U8 => fill(data, chunk.input::<u8>(i).iter().map(|&x| f64::from(x))),
    }
}

fn fill(data: &mut [f64], values: impl Iterator<Item = f64>) {
    for (to, from) in data.iter_mut().zip(values) {
        *to = from;
    }
}
