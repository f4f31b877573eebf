//! The command as a user meets it: the two first commands, interruption and resumption, bad input.
#![cfg(feature = "cli")]

mod common;

use common::command::{json_lines, text, twoclocks};
use common::runs::{Scratch, bits};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

/// A run of a few hundred steps, with dropout, accumulation and frequent checkpoints.
const CONFIG: &str = r#"
recipe = "small"
seed = 3
[data]
source = "digits"
[model]
layers = [
    { kind = "flatten" },
    { kind = "linear", outputs = 64, activation = "gelu" },
    { kind = "layer_norm" },
    { kind = "dropout", p = 0.25 },
    { kind = "linear", outputs = 10 },
]
[optimizer]
kind = "adamw"
rate = 3e-3
[schedule]
kind = "one_cycle"
[train]
batch = 16
accumulate = 2
epochs = 12
checkpoint_seconds = 0.004
# Reviews that no delay of the machine makes too dear.
review_share = 1e9
"#;

fn train(config: &Path, out: &Path) -> Output {
    let command = &mut twoclocks();
    command.arg("train").arg(config).arg("--out").arg(out).args(["--json", "--quiet"]);
    command.output().expect("the command starts")
}

fn write(folder: &Path, name: &str, contents: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, contents).expect("written");
    path
}

#[test]
fn without_arguments_it_trains_the_digits() {
    let scratch = Scratch::new("digits");
    let output = twoclocks().current_dir(scratch.path()).output().expect("the command starts");
    assert!(output.status.success(), "{}", text(&output));
    let runs = scratch.path().join("runs");
    let folder = std::fs::read_dir(&runs).expect("runs").next().expect("a run").expect("entry");
    for name in
        ["config.toml", "metrics.jsonl", "model.safetensors", "report.html", "environment.json"]
    {
        assert!(folder.path().join(name).is_file(), "{name} is missing");
    }
    let shown = twoclocks()
        .args(["runs", "list", "--json", "--out"])
        .arg(&runs)
        .output()
        .expect("the command starts");
    let lines = json_lines(&shown);
    assert_eq!(lines.len(), 1, "{}", text(&shown));
    assert_eq!(lines[0]["state"], "finished");
    let accuracy = lines[0]["test_acc"].as_f64().expect("accuracy");
    assert!(accuracy >= 0.975, "digits reached {accuracy}");

    let scored = twoclocks().args(["eval", "--json"]).arg(folder.path()).output().expect("eval");
    let lines = json_lines(&scored);
    assert_eq!(lines[0]["test_acc"].as_f64(), Some(accuracy), "{}", text(&scored));
    let folder = folder.path().display().to_string();
    refused("threads", &["eval", &folder, "--threads", "10000000"], &["10000000 threads"]);
}

#[test]
fn a_run_ends_with_both_clocks_their_times_and_advice() {
    let scratch = Scratch::new("clocks");
    let output = twoclocks()
        .args(["train", "digits", "--epochs", "12", "--json", "--out"])
        .arg(scratch.path())
        .output()
        .expect("the command starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let before = said.lines().take_while(|line| !line.starts_with("epoch"));
    assert!(before.into_iter().any(|line| line.starts_with("this run ends at C = ")), "{said}");
    let end: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("done")).collect();
    assert!(end.len() <= 12, "{} lines: {said}", end.len());
    for (start, part) in [
        ("fast clock", "margin"),
        ("  T_fit", "at step"),
        ("slow clock", "C = "),
        ("slow clock", "stable rank"),
        ("advice", "review"),
        ("report", "report.html"),
    ] {
        let found = end.iter().any(|line| line.starts_with(start) && line.contains(part));
        assert!(found, "no '{start} ... {part}': {said}");
    }
    let lines = json_lines(&output);
    let done = lines.last().expect("a last line");
    let run = done["run"].as_str().expect("a path");
    let text = std::fs::read_to_string(Path::new(run).join("metrics.jsonl")).expect("journal");
    let rows =
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let rows: Vec<serde_json::Value> = rows.collect();
    let steps = rows.iter().filter(|row| row["event"] == "step");
    let rates: Vec<f64> = steps.map(|row| row["lr"].as_f64().expect("a rate")).collect();
    assert_eq!(rates.len() as u64, done["step"].as_u64().expect("steps"), "a short run traces all");
    let expected = 0.05 * rates.iter().sum::<f64>();
    let c = done["clocks"]["contraction"].as_f64().expect("C");
    assert!((c / expected - 1.0).abs() < 1e-9, "C = {c}, but rates times decay are {expected}");
    let planned = rows.iter().find(|row| row["event"] == "epoch").expect("a review");
    let planned = planned["planned_contraction"].as_f64().expect("a plan");
    assert!((planned / c - 1.0).abs() < 0.01, "planned {planned}, and it was {c}");
    let last = rows.iter().rfind(|row| row["event"] == "epoch").expect("a review");
    for layer in ["fc1", "fc2", "out"] {
        let rank = last["stable_rank"][layer].as_f64().expect("a rank");
        assert!((1.0..=256.0).contains(&rank), "{layer}: {rank}");
    }
    let accuracy = last["train_acc"].as_f64().expect("accuracy of the training rows");
    assert!((0.8..=1.0).contains(&accuracy), "{accuracy}");
}

#[test]
fn five_seeds_of_digits_reach_their_accuracy() {
    let scratch = Scratch::new("seeds");
    for seed in 1..6 {
        let output = twoclocks()
            .args(["train", "digits", "--json", "--quiet", "--seed", &seed.to_string(), "--out"])
            .arg(scratch.path())
            .output()
            .expect("the command starts");
        let lines = json_lines(&output);
        let done = lines.last().expect("a last line");
        let accuracy = done["test_acc"].as_f64().expect("accuracy");
        assert!(accuracy >= 0.97, "seed {seed}: {accuracy}");
    }
}

#[test]
fn a_run_killed_at_any_moment_and_resumed_ends_with_the_same_bits() {
    const TRIES: u64 = 20;
    let scratch = Scratch::new("kill");
    let config = write(scratch.path(), "small.toml", CONFIG);
    let whole = scratch.path().join("whole");
    let output = train(&config, &whole);
    assert!(output.status.success(), "{}", text(&output));
    let whole_run = std::fs::read_dir(&whole).expect("runs").next().expect("run").expect("entry");
    let want = bits(&whole_run.path());
    let want_metrics = metrics(&whole_run.path());
    let lines = want_metrics.len() as u64;

    let mut random = common::Random(u64::from(std::process::id()));
    let mut killed_midway = 0;
    for number in 0..TRIES {
        let out = scratch.path().join(format!("killed{number}"));
        let mut child = twoclocks()
            .arg("train")
            .arg(&config)
            .arg("--out")
            .arg(&out)
            .arg("--quiet")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        // A random moment: so many lines of the journal, and then up to a few steps more.
        let moment = random.below(lines * 9 / 10);
        let run = loop {
            let run = std::fs::read_dir(&out).ok().and_then(|mut all| all.next());
            if let Some(Ok(run)) = run
                && std::fs::read_to_string(run.path().join("metrics.jsonl"))
                    .is_ok_and(|text| text.lines().count() as u64 >= moment)
                && run.path().join("config.toml").is_file()
            {
                break run.path();
            }
            assert!(child.try_wait().expect("waited").is_none(), "it ended before it was killed");
            std::thread::sleep(Duration::from_micros(200));
        };
        std::thread::sleep(Duration::from_secs_f64(0.002 * random.unit()));
        // On Unix this is SIGKILL: nothing of the program runs any more.
        child.kill().expect("killed");
        let ended = child.wait().expect("waited");
        killed_midway += u32::from(!ended.success());
        let resumed = twoclocks()
            .args(["train", "--json", "--quiet", "--resume"])
            .arg(&run)
            .output()
            .expect("the command starts");
        assert!(resumed.status.success(), "try {number}: {}", text(&resumed));
        assert!(bits(&run) == want, "try {number}: the weights differ");
        assert_eq!(metrics(&run), want_metrics, "try {number}: the journal differs");
    }
    assert!(killed_midway >= TRIES as u32 - 2, "only {killed_midway} were killed while they ran");
}

/// Steps, losses and accuracies of a journal: all but the clocks.
fn metrics(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("journal");
    text.lines()
        .map(|line| {
            let mut row: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let object = row.as_object_mut().expect("object");
            for clock in [
                "seconds",
                "seconds_training",
                "seconds_total",
                "seconds_to_target",
                "run",
                "samples_per_s",
                "review_seconds",
                // They tell times.
                "clocks",
                "advice",
                // What steps left since the last review, and what the probe before it saw, is no state of the run.
                "train_acc",
                "train_margin",
                "least_margin",
                "logit_rms",
                "saturated",
                "gradient_norm",
                "gate_flips",
                "stable_rank",
                "effective_rank",
                "reached",
                "excess_rank",
            ] {
                object.remove(clock);
            }
            row.to_string()
        })
        .collect()
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_cleanly_and_the_run_goes_on_later() {
    let scratch = Scratch::new("interrupt");
    let config =
        write(scratch.path(), "small.toml", CONFIG.replace("epochs = 12", "epochs = 100000"));
    let child = twoclocks()
        .arg("train")
        .arg(&config)
        .arg("--out")
        .arg(scratch.path().join("runs"))
        .args(["--json", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    std::thread::sleep(Duration::from_millis(700));
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let output = child.wait_with_output().expect("waited");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let lines = json_lines(&output);
    let done = lines.last().expect("a last line");
    assert_eq!(done["reason"], "interrupted", "{}", text(&output));
    let step = done["step"].as_u64().expect("step");
    let run = done["run"].as_str().expect("run");
    let shown = twoclocks().args(["runs", "show", "--json", run]).output().expect("runs show");
    assert_eq!(json_lines(&shown)[0]["state"], "interrupted");
    assert_eq!(json_lines(&shown)[0]["step"].as_u64(), Some(step));
}

/// Runs the command and asserts status 2 and a message that has all of `parts`.
fn refused(what: &str, arguments: &[&str], parts: &[&str]) {
    let output = twoclocks().args(arguments).output().expect("the command starts");
    assert_eq!(output.status.code(), Some(2), "{what}: {}", text(&output));
    assert!(output.stdout.is_empty(), "{what}: {}", text(&output));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in parts {
        assert!(message.contains(part), "{what}: '{part}' is not in: {message}");
    }
}

#[test]
fn bad_arguments_are_refused_before_anything_is_written() {
    let scratch = Scratch::new("arguments");
    let out = scratch.path().join("runs");
    let out = out.to_str().expect("UTF-8");
    let run = |more: &[&str], parts: &[&str]| {
        let arguments = [&["train"], more, &["--out", out, "--quiet"]].concat();
        refused(&format!("{more:?}"), &arguments, parts);
    };
    run(&["digits", "--batch", "0"], &["train.batch", "0 rows"]);
    run(&["digits", "--epochs", "0"], &["train.epochs"]);
    run(&["digits", "--time", "soon"], &["--time", "soon"]);
    run(&["digits", "--target-acc", "1.5"], &["target_acc", "1.5"]);
    run(&["digits", "--lr", "nan"], &["rate"]);
    // Its own configuration could not say it, and no other run be compared with it.
    run(&["digits", "--seed", "9223372036854775808"], &["seed", "9223372036854775808"]);
    run(&["digits", "--epochs", "18446744073709551615"], &["train.epochs", "largest"]);
    run(&["nosuch"], &["nosuch", "digits"]);
    run(&["nosuch.toml"], &["nosuch.toml"]);
    run(&["digits", "--device", "cuda:0"], &["cuda:0"]);
    run(&["digits", "--device", "tpu"], &["tpu"]);
    run(&["digits", "--precision", "fp8"], &["bf16"]);
    run(&["digits", "--data", "elsewhere"], &["data.path", "digits", "no use"]);
    run(&["mnist", "--data", "/nonexistent/mnist"], &["/nonexistent/mnist"]);
    assert!(!scratch.path().join("runs").exists(), "a refused run left a folder");
    refused("eval", &["eval", "/nonexistent/run"], &["/nonexistent/run"]);
    refused("flag", &["train", "--nosuch"], &["--nosuch"]);
    for (arguments, parts) in [
        (&["deep-linear", "--decades", "4000000000"][..], ["--decades", "1 to 30"]),
        (&["deep-linear", "--steps", "0"], ["--steps", "at least one"]),
        (&["deep-linear", "--threads", "2"], ["--threads", "no effect"]),
        (&["relu-regions", "--width", "0"], ["--width", "at least one"]),
        (&["relu-regions", "--longer", "inf"], ["--longer", "inf"]),
    ] {
        refused("experiment", &[&["clocks"], arguments, &["--out", out]].concat(), &parts);
    }
    refused("sizes", &["bench", "gemm", "1x2"], &["1x2", "MxNxK"]);
    refused("layout", &["bench", "gemm", "1x2x3:tt"], &["tt", "nn, nt or tn"]);
    refused("device", &["bench", "gemm", "--device", "auto"], &["auto", "cuda:N"]);
    let operands = ["bench", "gemm", "8x8x8", "--operands", "bf16"];
    refused("operands", &operands, &["--operands", "--precision bf16"]);
    refused("operands", &["bench", "ce", "--operands", "bf16"], &["--operands", "bench gemm"]);
    for what in ["bench", "profile"] {
        for time in ["0", "1e300", "nan", "1e-300"] {
            refused(what, &[what, "--seconds", time], &["--seconds", "is not a time"]);
        }
    }
    let forced = twoclocks().env("TWOCLOCKS_ISA", "sse9").arg("doctor").output().expect("starts");
    assert_eq!(forced.status.code(), Some(2), "{}", text(&forced));
    assert!(String::from_utf8_lossy(&forced.stderr).contains("sse9"));
}

#[test]
fn a_bad_configuration_names_file_line_and_layer() {
    let scratch = Scratch::new("config");
    let out = scratch.path().join("runs");
    let with = |name: &str, text: String, parts: &[&str]| {
        let path = write(scratch.path(), name, text);
        let path = path.to_str().expect("UTF-8");
        let arguments = ["train", path, "--quiet", "--out", out.to_str().expect("UTF-8")];
        refused(name, &arguments, &[&[name], parts].concat());
    };
    with("typo.toml", CONFIG.replace("epochs", "epoches"), &[":", "epoches"]);
    with("syntax.toml", CONFIG.replace("seed = 3", "seed = = 3"), &[":3"]);
    let useless = CONFIG.replace("source = \"digits\"", "source = \"digits\"\nlabel = \"a\"");
    with("useless.toml", useless, &["data.label", "no use"]);
    with("rate.toml", CONFIG.replace("3e-3", "-1.0"), &["rate", "-1"]);
    let scaled =
        CONFIG.replace("kind = \"flatten\"", "kind = \"embedding\", entries = 17, width = 2");
    with("scaled.toml", scaled, &["data.normalise", "whole numbers"]);
    let chain = CONFIG.replace("outputs = 10", "inputs = 32, outputs = 10");
    with("chain.toml", chain, &["model.layers[4]", "linear4", "32", "64"]);
    let classes = CONFIG.replace("outputs = 10", "outputs = 9");
    with("classes.toml", classes, &["9", "10 classes", "`outputs`"]);
    let image = CONFIG.replace("    { kind = \"flatten\" },\n", "").replace("= 64", "= 8");
    with("image.toml", image, &["[8, 10]", "`flatten`"]);
    assert!(!out.exists(), "a refused run left a folder");
}

#[test]
fn damaged_and_foreign_runs_are_refused_and_left_alone() {
    let scratch = Scratch::new("damaged");
    let config = write(scratch.path(), "small.toml", CONFIG.replace("epochs = 12", "epochs = 2"));
    let out = scratch.path().join("runs");
    let output = train(&config, &out);
    assert!(output.status.success(), "{}", text(&output));
    let run = std::fs::read_dir(&out).expect("runs").next().expect("run").expect("entry").path();
    let path = run.to_str().expect("UTF-8");
    let model = run.join("model.safetensors");
    let good = std::fs::read(&model).expect("checkpoint");

    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    std::fs::write(&model, &damaged).expect("written");
    refused("damaged", &["train", "--resume", path], &["model.safetensors"]);
    assert_eq!(std::fs::read(&model).expect("checkpoint"), damaged, "it was overwritten");
    std::fs::write(&model, &good[..middle]).expect("written");
    refused("truncated", &["train", "--resume", path], &["model.safetensors"]);
    refused("truncated", &["eval", path], &["model.safetensors"]);
    std::fs::write(&model, &good).expect("written");

    let own = std::fs::read_to_string(run.join("config.toml")).expect("config");
    std::fs::write(run.join("config.toml"), own.replace("outputs = 64", "outputs = 48"))
        .expect("written");
    refused("another model", &["train", "--resume", path], &["another model", "linear1.weight"]);
    assert_eq!(std::fs::read(&model).expect("checkpoint"), good, "it was overwritten");
    let empty = scratch.path().join("empty");
    std::fs::create_dir(&empty).expect("folder");
    refused("no run", &["train", "--resume", empty.to_str().expect("UTF-8")], &["empty"]);
}

#[test]
fn an_unwritable_run_folder_is_named() {
    let scratch = Scratch::new("unwritable");
    // A file where the folder should be: nobody can write there, not even root.
    let file = write(scratch.path(), "file", "not a folder");
    let out = file.join("runs");
    let out = out.to_str().expect("UTF-8");
    refused("unwritable", &["train", "digits", "--quiet", "--out", out], &[out]);
    assert_eq!(std::fs::read_to_string(&file).expect("whole"), "not a folder");
}

#[test]
fn divergence_names_step_layer_and_checkpoint() {
    let scratch = Scratch::new("diverge");
    let wild = CONFIG
        .replace("kind = \"adamw\"", "kind = \"sgd\"")
        .replace("rate = 3e-3", "rate = 1e30")
        .replace("checkpoint_seconds = 0.004", "checkpoint_seconds = 0.0")
        .replace("kind = \"one_cycle\"", "kind = \"constant\"");
    let config = write(scratch.path(), "wild.toml", wild);
    let out = scratch.path().join("runs");
    let output = train(&config, &out);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in ["diverged at step", "layer_norm2/layer_norm is NaN at index", "model.safetensors"]
    {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    let lines = json_lines(&output);
    assert_eq!(lines.last().expect("a last line")["reason"], "diverged");
}

#[test]
fn a_missed_target_is_a_failure() {
    let scratch = Scratch::new("target");
    let output = twoclocks()
        .args(["train", "digits", "--epochs", "1", "--target-acc", "0.999", "--json", "--quiet"])
        .arg("--out")
        .arg(scratch.path())
        .output()
        .expect("the command starts");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(json_lines(&output).last().expect("done")["reason"], "epochs");
}

#[test]
fn a_time_budget_ends_the_run() {
    let scratch = Scratch::new("time");
    let output = twoclocks()
        .args(["train", "digits", "--time", "300ms", "--json", "--quiet", "--out"])
        .arg(scratch.path())
        .output()
        .expect("the command starts");
    assert!(output.status.success(), "{}", text(&output));
    let lines = json_lines(&output);
    let done = lines.last().expect("done");
    assert_eq!(done["reason"], "time");
    // From its start to its report; how near it lands on a quiet machine is tested in `loops.rs`.
    let seconds = done["seconds_total"].as_f64().expect("seconds");
    assert!((0.2..1.0).contains(&seconds), "{seconds}");
}

#[test]
fn a_printed_configuration_trains() {
    let scratch = Scratch::new("print");
    let printed = twoclocks().args(["train", "--print-config", "digits"]).output().expect("starts");
    let config = String::from_utf8(printed.stdout).expect("UTF-8");
    let config = write(scratch.path(), "printed.toml", config);
    let output = train(&config, &scratch.path().join("runs"));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn every_line_of_bench_and_profile_is_json() {
    for arguments in [
        &["bench", "gemm", "32x32x32", "--seconds", "0.01", "--json"][..],
        &[
            "bench",
            "gemm",
            "9x8x7",
            "--precision=bf16",
            "--operands=bf16",
            "--seconds=0.01",
            "--json",
        ],
        &["bench", "gemm", "9x8x7", "--operands=packed", "--seconds=0.01", "--json"],
        &["bench", "ce", "16x10", "--seconds", "0.01", "--json"],
        &["bench", "adamw", "10000x5", "--seconds", "0.01", "--json"],
        &["bench", "reduce", "33x10", "--seconds", "0.01", "--json"],
        &["bench", "gemm", "9x8x7:tn", "--seconds", "0.01", "--json"],
        &["bench", "step", "--work", "mlp64", "--seconds", "0.05", "--json"],
        &["profile", "digits", "--seconds", "0.05", "--json"],
        &["doctor", "--json"],
    ] {
        let output = twoclocks().args(arguments).output().expect("the command starts");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        let lines = json_lines(&output);
        assert!(!lines.is_empty(), "{arguments:?}");
        if arguments[0] == "bench" {
            for key in [
                "work",
                "device",
                "isa",
                "precision",
                "threads",
                "batch",
                "median_ms",
                "p05_ms",
                "p95_ms",
                "n",
                "items_per_s",
                "flops",
                "bytes",
                "floor_ms",
                "ratio_to_floor",
                "peak_flops_per_s",
                "share_of_peak",
            ] {
                assert!(!lines[0][key].is_null(), "{arguments:?}: no {key} in {}", lines[0]);
            }
        }
        if arguments[0] == "profile" {
            let naive = lines.iter().find(|line| line["kernel"] == "naive");
            assert!(naive.is_none(), "a node of the step has no kernel: {naive:?}");
        }
    }
}

#[test]
fn a_closed_pipe_is_no_panic_and_does_not_end_a_run() {
    let scratch = Scratch::new("pipe");
    let out = scratch.path().join("runs");
    // Both ends of standard output and of standard error are closed before the first line.
    let mut child = twoclocks()
        .args(["train", "digits", "--json", "--epochs", "2", "--out"])
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    let shown = twoclocks().args(["runs", "--json", "--out"]).arg(&out).output().expect("runs");
    assert_eq!(json_lines(&shown)[0]["state"], "finished", "{}", text(&shown));

    let run = json_lines(&shown)[0]["name"].as_str().expect("a name").to_owned();
    let run = out.join(run).display().to_string();
    for arguments in [&["runs", "show", &run][..], &["train", "--print-config"], &["doctor"]] {
        let command = &mut twoclocks();
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output));
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", text(&output));
    }
}
