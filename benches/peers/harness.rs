//! What the Rust peers share: arguments, the problem file, timing and the JSON line.
//!
//! Each peer gives a name and a step, `FnMut(batch number) -> loss`; see `problem.py` for the file and `README.md` for what
//! is timed.

use safetensors::{Dtype, SafeTensors};
use std::time::{Duration, Instant};

/// Steps after which all sides must have the same loss: the mean of the last pass over the batches.
const CHECKED_STEPS: usize = 200;

/// Row-major f32 with its shape.
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The problem file: batches and initial weights.
pub struct Problem {
    /// Rows of a batch.
    pub batch: usize,
    /// [batch, inputs] of each batch.
    pub inputs: Vec<Array>,
    /// Classes of each batch's rows.
    pub labels: Vec<Vec<u32>>,
    /// W [inputs, outputs] and b [outputs] of each layer.
    pub layers: Vec<(Array, Array)>,
}

/// lr, beta1, beta2, epsilon, decay (of all parameters) of AdamW.
pub const ADAMW: [f64; 5] = [1e-3, 0.9, 0.999, 1e-8, 0.01];

pub struct Options {
    began: Instant,
    problem: String,
    work: String,
    threads: usize,
    seconds: f64,
}

type Failure = Box<dyn std::error::Error>;

/// Reads the arguments `--work --problem --threads --seconds` and sets the number of threads for rayon.
/// To be called first: it takes the time of the process's start.
pub fn options() -> Result<Options, Failure> {
    let began = Instant::now();
    let mut options =
        Options { began, problem: String::new(), work: String::new(), threads: 2, seconds: 5.0 };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--work" => options.work = value,
            "--problem" => options.problem = value,
            "--threads" => options.threads = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            _ => return Err(format!("{flag} is not --work, --problem, --threads or --seconds").into()),
        }
    }
    // No other thread runs yet.
    std::env::set_var("RAYON_NUM_THREADS", options.threads.to_string());
    Ok(options)
}

impl Options {
    pub fn problem(&self) -> Result<Problem, Failure> {
        let bytes = std::fs::read(&self.problem).map_err(|e| format!("{}: {e}", self.problem))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let inputs = array(&file, "inputs")?;
        let [batches, batch, width] = inputs.shape[..] else {
            return Err("inputs: not [batches, batch, inputs]".into());
        };
        let labels = file.tensor("labels")?;
        if labels.dtype() != Dtype::U32 || labels.shape() != [batches, batch] {
            return Err("labels: not u32 [batches, batch]".into());
        }
        let labels: Vec<u32> =
            labels.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let layers = (0..file.names().len() / 2 - 1)
            .map(|i| Ok((array(&file, &format!("weight{i}"))?, array(&file, &format!("bias{i}"))?)))
            .collect::<Result<_, Failure>>()?;
        let rows = inputs.values.chunks_exact(batch * width);
        Ok(Problem {
            batch,
            inputs: rows.map(|v| Array { shape: vec![batch, width], values: v.to_vec() }).collect(),
            labels: labels.chunks_exact(batch).map(<[u32]>::to_vec).collect(),
            layers,
        })
    }
}

fn array(file: &SafeTensors<'_>, name: &str) -> Result<Array, Failure> {
    let tensor = file.tensor(name)?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("{name}: not f32").into());
    }
    let bytes = tensor.data().chunks_exact(4);
    let values = bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Array { shape: tensor.shape().to_vec(), values })
}

/// Takes the checked steps, then times single steps, and prints the JSON line.
/// `step` trains on a batch and returns its loss; that it reads the loss is part of the step, as on all sides.
pub fn measure(
    options: &Options,
    problem: &Problem,
    peer: &str,
    version: &str,
    mut step: impl FnMut(usize) -> Result<f32, Failure>,
) -> Result<(), Failure> {
    let batches = problem.inputs.len();
    let mut number = 0;
    let mut next = || {
        number += 1;
        step((number - 1) % batches)
    };
    let mut losses = vec![next()?];
    let first_step_ms = options.began.elapsed().as_secs_f64() * 1e3;
    for _ in 1..CHECKED_STEPS {
        losses.push(next()?);
    }
    let loss = losses.iter().rev().take(batches).sum::<f32>() / batches as f32;
    let warm = Duration::from_secs_f64(options.seconds / 5.0);
    let began = Instant::now();
    while began.elapsed() < warm {
        next()?;
    }
    let mut times = Vec::new();
    let mut last = 0.0;
    let began = Instant::now();
    while times.len() < 20 || began.elapsed().as_secs_f64() < options.seconds {
        let start = Instant::now();
        last = next()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    if !last.is_finite() {
        return Err(format!("the loss is {last}").into());
    }
    times.sort_by(f64::total_cmp);
    let quantile = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    let mode = if cfg!(feature = "avx512") { "avx512" } else { "default" };
    println!(
        "{{\"event\": \"bench\", \"work\": \"{}\", \"device\": \"cpu\", \"precision\": \"f32\", \"threads\": {}, \"batch\": {}, \
         \"median_ms\": {}, \"p05_ms\": {}, \"p95_ms\": {}, \"n\": {}, \"peer\": \"{peer}\", \"version\": \"{version}\", \
         \"mode\": \"{mode}\", \"first_step_ms\": {first_step_ms}, \"loss_200\": {loss}, \"loss\": {last}}}",
        options.work,
        options.threads,
        problem.batch,
        quantile(0.5),
        quantile(0.05),
        quantile(0.95),
        times.len(),
    );
    Ok(())
}
