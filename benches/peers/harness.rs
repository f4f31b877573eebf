//! What the Rust peers share: arguments, the problem file, timing and the JSON line.
//!
//! Each peer gives a name and a step, `FnMut(batch number) -> loss`; see `problem.py` for the file and `README.md` for what
//! is timed.

use safetensors::{Dtype, SafeTensors};
use std::time::Instant;

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
    /// Seconds after which no step begins.
    limit: f64,
}

type Failure = Box<dyn std::error::Error>;

/// Reads the arguments `--work --problem --threads --seconds --limit` and sets the number of threads for rayon.
/// To be called first: it takes the time of the process's start.
pub fn options() -> Result<Options, Failure> {
    let began = Instant::now();
    let (problem, work) = (String::new(), String::new());
    let mut options = Options { began, problem, work, threads: 2, seconds: 5.0, limit: 600.0 };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--work" => options.work = value,
            "--problem" => options.problem = value,
            "--threads" => options.threads = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--limit" => options.limit = value.parse()?,
            _ => return Err(format!("{flag}: not --work, --problem, --threads, --seconds, --limit").into()),
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
/// After `--limit` seconds, one pass over the batches and 5 steps no step begins: a side that is slower gives the times and
/// losses of the steps that it took.
pub fn measure(
    options: &Options,
    problem: &Problem,
    peer: &str,
    version: &str,
    mut step: impl FnMut(usize) -> Result<f32, Failure>,
) -> Result<(), Failure> {
    let batches = problem.inputs.len();
    let mut number = 0;
    let mut next = || -> Result<(f32, f64), Failure> {
        let start = Instant::now();
        let loss = step(number % batches)?;
        number += 1;
        Ok((loss, start.elapsed().as_secs_f64() * 1e3))
    };
    let in_time = || options.began.elapsed().as_secs_f64() < options.limit;
    let mut losses = vec![next()?.0];
    let first_step_ms = options.began.elapsed().as_secs_f64() * 1e3;
    let (mut times, mut last) = (Vec::new(), 0.0);
    while losses.len() < CHECKED_STEPS && (in_time() || losses.len() < batches.max(6)) {
        let (loss, time) = next()?;
        losses.push(loss);
        times.push(time);
        last = loss;
    }
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let passes: Vec<f32> = losses.chunks_exact(batches).map(mean).collect();
    let mut loss = "null".to_string();
    if losses.len() == CHECKED_STEPS {
        loss = mean(&losses[CHECKED_STEPS - batches..]).to_string();
        // The first of them are warm-up.
        for (duration, least) in [(options.seconds / 5.0, 1), (options.seconds, 5)] {
            times.clear();
            let began = Instant::now();
            while times.len() < least || (began.elapsed().as_secs_f64() < duration && in_time()) {
                let (loss, time) = next()?;
                times.push(time);
                last = loss;
            }
        }
    }
    if let Some(loss) = losses.iter().chain([&last]).find(|loss| !loss.is_finite()) {
        return Err(format!("a loss is {loss}").into());
    }
    times.sort_by(f64::total_cmp);
    let quantile = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    let mode = if cfg!(feature = "avx512") { "avx512" } else { "default" };
    println!(
        "{{\"event\": \"bench\", \"work\": \"{}\", \"device\": \"cpu\", \"precision\": \"f32\", \"threads\": {}, \"batch\": {}, \
         \"median_ms\": {}, \"p05_ms\": {}, \"p95_ms\": {}, \"n\": {}, \"peer\": \"{peer}\", \"version\": \"{version}\", \
         \"mode\": \"{mode}\", \"first_step_ms\": {first_step_ms}, \"pass_losses\": {passes:?}, \"loss_200\": {loss}, \"loss\": {last}}}",
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
