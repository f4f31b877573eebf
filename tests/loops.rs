//! Short loops: budgets of time, branches, batches that grow, reviews of a sample, ends that are found.

mod common;

use common::runs::{Scratch, StopAfter, bits, record, steps};
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use twoclocks::data::{Dataset, Split};
use twoclocks::nn::{LayerConfig, Parameters, Sequential};
use twoclocks::runs::{Checkpoint, Clocks, Epoch};
use twoclocks::train::{
    self, Config, Observer, Outcome, Reason, Silent, Started, TrainOptions, Trainer,
};
use twoclocks::{Device, Error};

/// Held by every test as long as it trains: by one alone where it is timed.
static MACHINE: RwLock<()> = RwLock::new(());

/// A folder for one test, and the guard of the machine.
struct Place(Scratch, #[expect(dead_code, reason = "it is held")] Box<dyn Any>);

impl Place {
    fn new(name: &str) -> Place {
        let guard = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        Place(Scratch::new(name), Box::new(guard))
    }

    fn alone(name: &str) -> Place {
        let guard = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        Place(Scratch::new(name), Box::new(guard))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A run over the digits, 30 updates an epoch.
fn config(schedule: &str, bound: &str) -> Config {
    let text = format!(
        r#"
recipe = "loop"
seed = 3
threads = 2
precision = "f32"
[data]
source = "digits"
[model]
layers = [
    {{ kind = "flatten" }},
    {{ kind = "dropout", p = 0.25 }},
    {{ kind = "linear", outputs = 10 }},
]
[optimizer]
kind = "adamw"
rate = 3e-3
[schedule]
{schedule}
[train]
batch = 48
{bound}
"#
    );
    Config::parse(&text, "test").unwrap_or_else(|e| panic!("{e}"))
}

fn run(config: &Config, root: &Path) -> Outcome {
    let never = AtomicBool::new(false);
    train::run(config, root, &mut Silent, &never).unwrap_or_else(|e| panic!("{e}"))
}

/// The run interrupted after each of these numbers of steps, and then to its end.
fn in_parts(config: &Config, root: &Path, parts: &[u64]) -> Outcome {
    let stop = AtomicBool::new(false);
    let first = train::run(config, root, &mut StopAfter(parts[0], &stop), &stop).expect("a run");
    let run = PathBuf::from(&first.done.run);
    for &part in &parts[1..] {
        stop.store(false, Ordering::Relaxed);
        let outcome = train::resume(&run, &mut StopAfter(part, &stop), &stop).expect("resumed");
        assert_eq!(outcome.reason, Reason::Interrupted);
    }
    train::resume(&run, &mut Silent, &AtomicBool::new(false)).expect("resumed")
}

/// From start to end within 5 % of the time, with the rate at the end of its schedule. A machine that has other work may miss it:
/// it has three tries.
#[test]
fn a_run_of_two_seconds_takes_two_seconds() {
    let scratch = Place::alone("seconds");
    let config = config("kind = \"one_cycle\"", "seconds = 2.0");
    let mut found = Vec::new();
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let done = run(&config, scratch.path()).done;
        let took = began.elapsed().as_secs_f64();
        assert_eq!(done.reason, "time");
        let last = record(Path::new(&done.run)).epochs.pop().expect("a review at the end");
        assert_eq!(last.step, done.step);
        assert!((last.lr - 3e-3 / 25.0 / 1e4).abs() < 1e-15, "the last rate is {}", last.lr);
        found.push(took);
        if (1.9..=2.1).contains(&took) {
            return;
        }
    }
    panic!("{found:?} seconds");
}

#[test]
fn an_interrupted_run_of_some_time_goes_on_with_the_rest_of_it() {
    let scratch = Place::alone("rest");
    let stop = AtomicBool::new(false);
    let config = config("kind = \"one_cycle\"", "seconds = 1.0");
    let first = train::run(&config, scratch.path(), &mut StopAfter(200, &stop), &stop);
    let run = PathBuf::from(first.expect("a run").done.run);
    // It took longer than these steps: by 0.6 s.
    let file = run.join("model.safetensors");
    let mut checkpoint = Checkpoint::load(&file).expect("a checkpoint");
    let seconds = &mut checkpoint.state["seconds_total"];
    let before = f64::from_bits(seconds.as_u64().expect("bits"));
    *seconds = (before + 0.6).to_bits().into();
    checkpoint.save(&file).expect("saved");
    stop.store(false, Ordering::Relaxed);
    train::resume(&run, &mut StopAfter(1, &stop), &stop).expect("resumed");
    let began = std::time::Instant::now();
    let outcome = train::resume(&run, &mut Silent, &AtomicBool::new(false)).expect("resumed");
    let took = began.elapsed().as_secs_f64();
    assert_eq!(outcome.reason, Reason::Time);
    assert!(took < 0.8, "{took} s: it began anew");
    // Twice opened, loaded and reported: all of it counts. If what came before did not, it would be 1.6 s.
    assert!((0.9..1.5).contains(&outcome.done.seconds_total), "{:?}", outcome.done);
    let record = record(Path::new(&outcome.done.run));
    let rates: Vec<f64> = record.steps.iter().map(|row| row.lr).collect();
    let highest = rates.iter().copied().fold(0.0, f64::max);
    assert!(highest > 2.9e-3, "{highest}");
    let peak = rates.iter().position(|&rate| rate == highest).expect("one");
    assert!(rates[..=peak].is_sorted() && rates[peak..].iter().rev().is_sorted());
    let last = record.epochs.last().expect("a review at the end");
    assert!((last.lr - 3e-3 / 25.0 / 1e4).abs() < 1e-15, "{last:?}");
    assert!(rates.len() <= 2000 + 200, "{} of {} steps are kept", rates.len(), outcome.done.step);
    let again = train::resume(Path::new(&outcome.done.run), &mut Silent, &AtomicBool::new(false));
    assert_eq!(again.expect("resumed").done.step, outcome.done.step);
}

#[test]
fn batches_that_grow_are_the_same_across_interruptions() {
    let scratch = Place::new("batches");
    let batches = "batch_schedule = [{ at = 0.0, batch = 48 }, { at = 0.3, batch = 100 }, { at = 0.7, batch = 300 }]\n\
                   scale_rate = \"sqrt\"";
    let config =
        config("kind = \"linear\"\nfrom = 1.0\nto = 0.5", &format!("epochs = 3\n{batches}"));
    let whole = run(&config, &scratch.path().join("whole")).done;
    let rows = 1437;
    // Of 4311 rows the first 1294 and a bit by 48, on to 3018 by 100, the rest by 300; short ones end the epochs.
    let first = 27;
    let second = (rows - 27 * 48usize).div_ceil(100) + rows.div_ceil(100) + 2;
    let third = (rows - 200usize).div_ceil(300);
    assert_eq!(whole.step, (first + second + third) as u64);
    let of_whole = steps(Path::new(&whole.run));
    assert_eq!(of_whole.len() as u64, whole.step);
    let rates: Vec<f64> = of_whole.iter().map(|row| f64::from_bits(row.2)).collect();
    assert_eq!(rates[0], 3e-3);
    let last = 3e-3 * 0.5 * (300.0f64 / 48.0).sqrt();
    assert!((rates[rates.len() - 1] / last - 1.0).abs() < 1e-12, "{rates:?}");
    // What was planned for the slow clock is what came of it, though 4 of 5 updates have the first batch.
    let mut plan = Plan::default();
    let never = AtomicBool::new(false);
    let again = train::run(&config, &scratch.path().join("again"), &mut plan, &never);
    let clocks = Clocks::of(&again.expect("a run").done).expect("clocks");
    let (planned, came) = (plan.0.expect("a plan"), clocks.contraction.expect("C"));
    assert!((planned / came - 1.0).abs() < 0.02, "planned {planned}, came to {came}");
    let parts = in_parts(&config, &scratch.path().join("parts"), &[5, 21, 1, 1, 8, 12]).done;
    assert_eq!(bits(Path::new(&parts.run)), bits(Path::new(&whole.run)));
    assert_eq!(steps(Path::new(&parts.run)), of_whole);
}

/// The contraction that a run is planned to end with.
#[derive(Default)]
struct Plan(Option<f64>);

impl Observer for Plan {
    fn started(&mut self, started: &Started) {
        self.0 = started.planned_contraction;
    }
}

/// Every byte of a folder.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one").path());
    let mut files: Vec<_> = entries.map(|p| (p.clone(), std::fs::read(p).expect("read"))).collect();
    files.sort();
    files
}

#[test]
fn a_branch_is_the_run_that_was_planned_so() {
    let scratch = Place::new("branch");
    let never = AtomicBool::new(false);
    for (name, schedule, bound) in [
        ("constant", "kind = \"constant\"", "steps = 50"),
        ("stable", "kind = \"warmup_stable_decay\"\ndecay = 0.5\nfloor = 0.1", "steps = 200"),
    ] {
        let root = scratch.path().join(name);
        // The first is at its end, the second one is not.
        let stop = AtomicBool::new(false);
        let trunk = train::run(&config(schedule, bound), &root, &mut StopAfter(50, &stop), &stop);
        let trunk = PathBuf::from(trunk.expect("a run").done.run);
        let before = contents(&trunk);
        let branch = train::cool(&trunk, 0.2, &root, &mut Silent, &never).expect("a branch");
        assert_eq!((branch.reason, branch.done.step), (Reason::Steps, 60));
        assert_eq!(contents(&trunk), before, "{name}: the parent changed");
        let branch = PathBuf::from(branch.done.run);
        let text = std::fs::read_to_string(branch.join("config.toml")).expect("a configuration");
        let mut planned = Config::parse(&text, "branch").expect("valid");
        let parent = planned.branch.take().expect("it names its parent");
        assert_eq!((Path::new(&parent.run), parent.step), (trunk.as_path(), 50));
        let whole = PathBuf::from(run(&planned, &root).done.run);
        assert_eq!(bits(&branch), bits(&whole), "{name}");
        assert_eq!(steps(&branch), steps(&whole), "{name}");
        let rates: Vec<f64> = record(&branch).steps.iter().map(|row| row.lr).collect();
        assert!(rates[..50].iter().all(|&rate| (rate - 3e-3).abs() < 1e-15), "{rates:?}");
        assert!(rates[49..].iter().rev().is_sorted() && rates[50] < 2.9e-3, "{rates:?}");
        let floor = if name == "constant" { 0.0 } else { 3e-4 };
        assert!((rates[59] - floor).abs() < 1e-12, "{rates:?}");

        // Interrupted within the fall, and gone on with.
        stop.store(false, Ordering::Relaxed);
        let parts =
            train::cool(&trunk, 0.2, &root, &mut StopAfter(4, &stop), &stop).expect("a branch");
        assert_eq!((parts.reason, parts.done.step), (Reason::Interrupted, 54));
        let parts =
            train::resume(Path::new(&parts.done.run), &mut Silent, &never).expect("resumed");
        assert_eq!(bits(Path::new(&parts.done.run)), bits(&whole), "{name}");
    }
}

#[test]
fn what_cannot_branch_says_why() {
    let scratch = Place::new("stump");
    let trunk = |schedule: &str, bound: &str, stop_after: u64| {
        let stop = AtomicBool::new(stop_after == 0);
        let run = train::run(
            &config(schedule, bound),
            scratch.path(),
            &mut StopAfter(stop_after, &stop),
            &stop,
        );
        PathBuf::from(run.expect("a run").done.run)
    };
    let (constant, decaying) =
        ("kind = \"constant\"", "kind = \"warmup_stable_decay\"\nwarmup = 0.2\ndecay = 0.3");
    let refused = |run: &Path, share: f64, words: &str| {
        let runs = std::fs::read_dir(scratch.path()).expect("runs").count();
        let never = AtomicBool::new(false);
        let error = train::cool(run, share, scratch.path(), &mut Silent, &never).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(
            std::fs::read_dir(scratch.path()).expect("runs").count(),
            runs,
            "a folder was made"
        );
    };
    let run_of_nine = trunk(constant, "steps = 20", 9);
    for share in [0.0, -0.1, 1.01, f64::NAN] {
        refused(&run_of_nine, share, "not above 0 and at most 100 %");
    }
    refused(&trunk("kind = \"one_cycle\"", "steps = 20", 9), 0.2, "is not at its stable value");
    refused(&trunk(decaying, "steps = 20", 3), 0.2, "is not at its stable value after 3 steps");
    refused(&trunk(decaying, "steps = 20", 16), 0.2, "is not at its stable value after 16 steps");
    refused(&trunk(constant, "steps = 20", 0), 0.2, "has no step done");
    // The decay of the steps that are done would not be that of the branch's schedule.
    let mut of_whole = config(constant, "steps = 20");
    let decay = "decay_schedule = { kind = 'linear', from = 0.0, to = 1.0 }";
    of_whole.optimizer = toml::from_str(decay).expect("valid");
    let whole = PathBuf::from(run(&of_whole, scratch.path()).done.run);
    refused(&whole, 0.2, "optimizer.decay_schedule");
    of_whole.optimizer = toml::from_str(&decay.replace(" }", ", steps = 9 }")).expect("valid");
    let by_steps = PathBuf::from(run(&of_whole, scratch.path()).done.run);
    train::cool(&by_steps, 0.2, scratch.path(), &mut Silent, &AtomicBool::new(false))
        .expect("a branch");
    std::fs::remove_file(run_of_nine.join("model.safetensors")).expect("removed");
    refused(&run_of_nine, 0.2, "has no checkpoint yet");
    refused(scratch.path(), 0.2, "not the folder of a run");
}

fn linear(classes: usize) -> LayerConfig {
    LayerConfig::Linear {
        name: None,
        inputs: None,
        outputs: classes,
        activation: Default::default(),
        bias: true,
        initial: None,
        decay_factor: None,
        polar_decay: None,
    }
}

/// Test rows sorted by class: the sample must have some of all.
#[test]
fn a_sample_of_the_test_set_is_drawn_from_all_of_it_and_stays() {
    let rows = 1000;
    let set = |len: usize| {
        let labels: Vec<u32> = (0..len).map(|i| (i * 4 / len) as u32).collect();
        let values = labels.iter().flat_map(|&label| [label as f32, 1.0]).collect();
        Dataset::from_arrays(values, 2, labels, 4).expect("a data set")
    };
    let split = Split { train: set(40), test: set(rows) };
    let mut parameters = Parameters::new();
    let model = Sequential::new(&[linear(4)], &[2], &mut parameters).expect("a model");
    let device = Device::cpu(2).expect("a CPU");
    let options = TrainOptions::default();
    let mut trainer =
        Trainer::new(&device, Box::new(model), parameters, &split, options).expect("a trainer");
    let all = trainer.review().expect("a review");
    let sample = trainer.review_sample(200).expect("a review");
    assert_eq!(trainer.review_sample(200).expect("again"), sample);
    assert_eq!(trainer.review().expect("again"), all);
    assert_ne!(sample, all);
    assert!((sample.loss - all.loss).abs() < 0.2 * all.loss, "{sample:?} {all:?}");
    assert_eq!(trainer.review_sample(rows).expect("all of them"), all);
    assert_eq!(trainer.review_sample(rows + 1).expect("all of them"), all);
}

/// A table of two classes that a line divides, all but every tenth row.
fn table(rows: usize) -> String {
    let mut text = "a,b,label\n".to_owned();
    for i in 0..rows {
        let (a, b) = ((i * 37 % 101) as f64 / 101.0, (i * 53 % 97) as f64 / 97.0);
        let label = usize::from((a + b > 1.0) != i.is_multiple_of(10));
        text.push_str(&format!("{a:.4},{b:.4},{label}\n"));
    }
    text
}

#[derive(Default)]
struct Reviews(Vec<Epoch>);

impl Observer for Reviews {
    fn review(&mut self, epoch: &Epoch) {
        self.0.push(epoch.clone());
    }
}

fn of_tables(scratch: &Path, limits: &str) -> Config {
    let write = |name: &str, rows| {
        std::fs::write(scratch.join(name), table(rows)).expect("written");
        scratch.join(name)
    };
    let mut config = config("kind = \"constant\"", limits);
    let text = "source = \"csv\"\nlabel = \"label\"";
    config.data = toml::from_str(text).expect("valid");
    config.data.path = Some(write("train.csv", 480));
    config.data.test = Some(write("test.csv", 40_000));
    config.model.layers = vec![linear(2)];
    config.optimizer.rate = 0.05;
    config
}

#[test]
fn reviews_keep_their_share_by_samples_and_the_last_one_is_of_all() {
    let scratch = Place::new("samples");
    let config = of_tables(scratch.path(), "epochs = 400\nreview_share = 1.0");
    let mut reviews = Reviews::default();
    let never = AtomicBool::new(false);
    let outcome = train::run(&config, scratch.path(), &mut reviews, &never).expect("a run");
    assert_eq!(outcome.reason, Reason::Epochs);
    let sampled = |epoch: &&Epoch| epoch.extra.get("test_rows") == Some(&2048.into());
    let (last, before) = reviews.0.split_last().expect("reviews");
    assert!(!last.extra.contains_key("test_rows") && last.epoch == 400, "{last:?}");
    let count = before.iter().filter(sampled).count();
    // How many depends on the machine.
    assert!(count > 0, "{count} of {}", before.len());
    assert_eq!(outcome.done.test_acc, last.test_acc);
    let spent: f64 = before.iter().map(|epoch| epoch.review_seconds).sum();
    assert!(spent <= 1.5 * outcome.done.seconds_training, "{spent} of {:?}", outcome.done);
}

#[test]
fn a_target_that_a_sample_has_is_confirmed_by_all() {
    let scratch = Place::new("confirmed");
    let config = of_tables(scratch.path(), "epochs = 4000\nreview_share = 1.0\ntarget_acc = 0.88");
    let mut reviews = Reviews::default();
    let never = AtomicBool::new(false);
    let outcome = train::run(&config, scratch.path(), &mut reviews, &never).expect("a run");
    assert_eq!(outcome.reason, Reason::Target);
    let last = reviews.0.last().expect("a review");
    assert!(!last.extra.contains_key("test_rows") && last.test_acc >= 0.88, "{last:?}");
    let missed = |epoch: &&Epoch| !epoch.extra.contains_key("test_rows") && epoch.test_acc >= 0.88;
    assert_eq!(reviews.0.iter().filter(missed).count(), 1);
}

/// What ends a run may be seen on a sample; the end is of all test rows all the same.
#[test]
fn an_end_that_a_sample_finds_is_reviewed_on_all_rows() {
    let scratch = Place::new("sampled-end");
    let bound = "epochs = 4000\nreview_share = 1.0\nplateau = { reviews = 5, min_gain = 0.0 }";
    let mut config = of_tables(scratch.path(), bound);
    config.optimizer.rate = 1e-12;
    let mut reviews = Reviews::default();
    let never = AtomicBool::new(false);
    let outcome = train::run(&config, scratch.path(), &mut reviews, &never).expect("a run");
    assert_eq!(outcome.reason, Reason::Plateau);
    let [.., before, last] = &reviews.0[..] else { panic!("{:?}", reviews.0) };
    assert!(!last.extra.contains_key("test_rows"), "{last:?}");
    assert_eq!((outcome.done.test_acc, outcome.done.step), (last.test_acc, last.step));
    assert!(last.extra.contains_key("advice") && last.train_loss.is_finite(), "{last:?}");
    if before.step == last.step {
        assert_eq!(before.extra.get("test_rows"), Some(&2048.into()), "{before:?}");
    }
    let clocks = Clocks::of(&outcome.done).expect("clocks");
    assert!(clocks.accuracy.is_some() && clocks.contraction.is_some(), "{clocks:?}");
}

#[test]
fn a_run_without_gain_ends_by_itself() {
    let scratch = Place::new("plateau");
    let bound = "epochs = 40\nreview_share = 1e9\nplateau = { reviews = 3, min_gain = 0.001 }";
    let mut config = config("kind = \"constant\"", bound);
    config.optimizer.rate = 1e-9;
    let done = run(&config, scratch.path()).done;
    assert_eq!((done.reason.as_str(), done.epochs), ("plateau", 4));
    // It goes on as long as it gains: so a run that learns is longer.
    config.optimizer.rate = 3e-3;
    assert!(run(&config, scratch.path()).done.epochs > 4);
    let resumed = train::resume(Path::new(&done.run), &mut Silent, &AtomicBool::new(false));
    let resumed = resumed.expect("resumed");
    assert_eq!((resumed.reason, resumed.done.epochs), (Reason::Plateau, 4));
    // Interrupted between reviews it counts on.
    config.optimizer.rate = 1e-9;
    let parts = in_parts(&config, scratch.path(), &[31, 30, 30]);
    assert_eq!((parts.reason, parts.done.epochs), (Reason::Plateau, 4));
}

#[test]
fn reviews_may_come_within_epochs() {
    let scratch = Place::new("within");
    let config = config("kind = \"constant\"", "steps = 70\nreview_share = 1e9\nreview_steps = 20");
    let outcome = run(&config, scratch.path());
    let epochs = record(Path::new(&outcome.done.run)).epochs;
    let found: Vec<u64> = epochs.iter().map(|epoch| epoch.step).collect();
    assert_eq!(found, [20, 40, 60, 70]);
    assert!(epochs.iter().all(|epoch| epoch.train_loss.is_finite()));
}

#[test]
fn a_range_test_finds_rates_and_where_the_loss_breaks() {
    let options = train::RangeOptions::default();
    let digits = train::recipe("digits").expect("a recipe");
    let found = train::range_test(&digits, options).expect("a test");
    assert!(found.epochs <= 1.0 && found.points.len() <= 22);
    assert!(found.broke);
    assert!(found.points.windows(2).all(|pair| pair[0].rate < pair[1].rate));
    let suggestion = found.suggestion.expect("rates");
    // The best of a grid are 4e-3 to 3e-2.
    assert!((3e-3..0.1).contains(&suggestion.maximum), "{suggestion:?}");
    assert!(suggestion.minimum < suggestion.maximum);
    let config = config("kind = \"constant\"", "steps = 70");
    for (options, words) in [
        (train::RangeOptions { from: 0.0, ..options }, "--from: 0 is not"),
        (train::RangeOptions { to: 1e-7, ..options }, "--to: 0.0000001 is not above"),
        (train::RangeOptions { steps: Some(3), ..options }, "--steps: 3 steps"),
        (train::RangeOptions { steps: Some(1000), ..options }, "an epoch has 29 of 48 rows"),
    ] {
        let error = train::range_test(&config, options).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
    // A rate that never helps: nothing is suggested.
    let tiny = train::RangeOptions { from: 1e-30, to: 1e-29, ..options };
    let found = train::range_test(&config, tiny).expect("a test");
    assert_eq!((found.suggestion, found.broke), (None, false));
}

#[test]
fn an_error_of_a_branch_names_the_checkpoint() {
    let missing = Path::new("no/such/run");
    let never = AtomicBool::new(false);
    let error = train::cool(missing, 0.2, missing, &mut Silent, &never).expect_err("no run");
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[cfg(feature = "cli")]
#[test]
fn the_command_branches_and_tests_rates() {
    let scratch = Place::new("loop-command");
    let file = scratch.path().join("loop.toml");
    let config = config("kind = \"constant\"", "steps = 20");
    std::fs::write(&file, config.to_toml()).expect("written");
    let (file, plot) =
        (file.display().to_string(), scratch.path().join("lr.html").display().to_string());
    let out = scratch.path().join("runs").display().to_string();
    let command = |arguments: &[&str], status: i32| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_twoclocks"));
        let output = command.args(arguments).arg("--json").output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        let lines = String::from_utf8(output.stdout).expect("text");
        let last = lines.lines().last().map(|line| serde_json::from_str(line).expect("JSON"));
        (said, last.unwrap_or(serde_json::Value::Null))
    };
    let (_, trunk) = command(&["train", &file, "--out", &out], 0);
    let trunk = trunk["run"].as_str().expect("a run").to_owned();
    let (_, branch) = command(&["train", "--cool", "25%", &trunk, "--out", &out], 0);
    assert_eq!((branch["event"].as_str(), branch["step"].as_u64()), (Some("done"), Some(25)));
    assert_ne!(branch["run"].as_str(), Some(trunk.as_str()));
    for (arguments, words) in [
        (&["train", "--cool", "25", &trunk][..], "'25' is not a percentage"),
        (&["train", "--cool", "120%", &trunk], "120 % is not above 0"),
        (&["train", "--cool", "25%"], "required"),
        (&["train", "--cool", "25%", &trunk, "--steps", "3"], "cannot be used with"),
        (&["lr", &file, "--lr", "1e-3"], "leave out --lr"),
        (&["lr", &file, "--steps", "4", "--out", &plot], "--steps: 4 steps"),
    ] {
        let (said, _) = command(arguments, 2);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    let (said, found) = command(&["lr", &file, "--out", &plot], 0);
    assert_eq!(found["event"], "lr");
    assert!(found["epochs"].as_f64().is_some_and(|epochs| epochs <= 1.0), "{found}");
    let maximum = found["maximum"].as_f64().expect("a rate");
    assert!(said.contains(&format!("--lr {maximum:.2e}")), "{said}");
    // An epoch of the digits is too short for more.
    assert!(found["steps"].as_u64().is_some_and(|steps| steps < 50), "{found}");
    assert_eq!(found["rough"], true);
    assert!(said.contains("order of magnitude"), "{said}");
    assert!(std::fs::read_to_string(&plot).is_ok_and(|page| page.contains("<svg")));
}
