//! Earlier runs and sweeps as a user meets them.
#![cfg(feature = "cli")]

mod common;

use common::command::{json_lines, text, twoclocks};
use common::runs::Scratch;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

fn command(arguments: &[&str]) -> Output {
    twoclocks().args(arguments).output().expect("the command starts")
}

/// A short run, with nothing left to `auto`, which may choose otherwise on a machine with other work.
const SHORT: [&str; 8] =
    ["train", "digits", "--steps", "30", "--device", "cpu", "--precision", "f32"];

/// Trains the digits for a few steps; the lines of the run.
fn train(root: &str, more: &[&str]) -> Vec<Value> {
    let output = command(&[&SHORT[..], &["--json", "--quiet", "--out", root], more].concat());
    assert!(output.status.success(), "{}", text(&output));
    json_lines(&output)
}

fn refused(arguments: &[&str], parts: &[&str]) {
    let output = command(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in parts {
        assert!(message.contains(part), "{arguments:?}: '{part}' is not in: {message}");
    }
}

fn name(lines: &[Value]) -> String {
    let run = lines.last().and_then(|done| done["run"].as_str()).expect("a run");
    Path::new(run).file_name().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn earlier_runs_are_shown_sorted_and_compared() {
    let scratch = Scratch::new("journal");
    let root = scratch.path().to_str().expect("UTF-8");
    let first = train(root, &["--lr", "0.004"]);
    assert!(first.iter().all(|line| line["event"] != "nearest"), "there was none before");
    // Names have seconds: the second run is to have another one.
    let second = train(root, &["--lr", "0.002"]);
    let nearest = second.iter().find(|line| line["event"] == "nearest").expect("a nearest run");
    assert_eq!(nearest["runs"][0]["name"], name(&first).as_str());
    assert_eq!(nearest["runs"][0]["differences"][0]["key"], "optimizer.rate");
    assert_eq!(nearest["runs"][0]["reason"], "steps");
    let said = command(&[&SHORT[..], &["--out", root, "--lr", "0.004"]].concat());
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let line = format!("earlier {}: same configuration: ", name(&first));
    assert!(said.contains(&line), "{said}");
    let line = format!("earlier {}: lr 0.002 -> 0.004: ", name(&second));
    assert!(said.contains(&line), "{said}");

    let sorted =
        command(&["runs", "list", "--out", root, "--json", "--sort", "lr", "--limit", "2"]);
    let rates: Vec<f64> =
        json_lines(&sorted).iter().map(|run| run["sorted_by"]["value"].as_f64().unwrap()).collect();
    assert_eq!(rates, [0.002, 0.004]);
    let reversed = command(&["runs", "list", "--out", root, "--sort", "lr", "--reverse"]);
    let reversed = String::from_utf8_lossy(&reversed.stdout).into_owned();
    assert!(reversed.lines().last().unwrap().contains(&name(&second)), "{reversed}");
    let newest = command(&["runs", "list", "--out", root, "--json", "--reverse", "--limit", "1"]);
    assert_ne!(json_lines(&newest)[0]["name"], name(&first).as_str());
    refused(&["runs", "list", "--out", root, "--sort", "speed"], &["'speed'", "test_loss", "lr"]);

    let (a, b) = (name(&first), name(&second));
    let compared = command(&["runs", "compare", &a, &b, "--out", root, "--json"]);
    assert!(compared.status.success(), "{}", text(&compared));
    let lines = json_lines(&compared);
    assert_eq!(lines[2]["event"], "compare");
    assert_eq!(lines[2]["differences"][0]["key"], "optimizer.rate");
    let page = std::fs::read_to_string(scratch.path().join("compare.html")).expect("a page");
    assert!(page.contains(&a) && page.contains(&b) && page.contains("Test accuracy"));
    assert!(!page.contains("http://") && !page.contains("https://"), "it would fetch something");
    let said = command(&["runs", "compare", &a, &b, "--out", root]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("lr ") && said.contains("0.002"), "{said}");
    refused(&["runs", "compare", "digits", &b, "--out", root], &["'digits'", "3 runs begin so"]);
    refused(&["runs", "report", "digits", "--out", root], &["'digits'", "3 runs begin so"]);
    let none = command(&["runs", "list", "--out", root, "--limit", "0"]);
    assert!(!text(&none).contains("no runs"), "{}", text(&none));
    refused(&["runs", "compare", "mnist", &b, "--out", root], &["'mnist'", "no run"]);
    refused(&["runs", "compare", &b, &b, "--out", root], &["named twice"]);
}

const SWEEP: &str = r#"
recipe = "digits"
[set]
"train.epochs" = 9
[vary]
"optimizer.rate" = { log = [1e-4, 1e-2], count = 5 }
"train.batch" = [32, 64]
[sweep]
time = "TIME"
"#;

fn sweep_file(scratch: &Scratch, time: &str) -> String {
    let path = scratch.path().join("rates.toml");
    std::fs::write(&path, SWEEP.replace("TIME", time)).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn events<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

#[test]
fn a_sweep_ranks_its_settings_within_its_time() {
    let scratch = Scratch::new("sweep");
    let out = scratch.path().join("runs");
    let out = out.to_str().expect("UTF-8");
    // Other work on the machine may take the time of a sweep: one of three has it.
    let (mut output, mut tries) = (None, 0);
    while output.is_none() {
        let began = Instant::now();
        let tried = command(&["sweep", &sweep_file(&scratch, "6s"), "--out", out, "--json"]);
        let seconds = began.elapsed().as_secs_f64();
        assert!(tried.status.success(), "{}", text(&tried));
        let all_ranked = events(&json_lines(&tried), "result").len() == 10;
        tries += 1;
        if all_ranked && seconds < 1.05 * 6.0 {
            output = Some(tried);
        } else {
            assert!(tries < 3, "{seconds} s: {}", text(&tried));
            std::fs::remove_dir_all(out).expect("removed");
        }
    }
    let output = output.expect("one of them");
    let lines = json_lines(&output);
    let plan = events(&lines, "sweep")[0];
    let done = lines.last().expect("a last line");
    assert_eq!(done["event"], "done");
    let folder = PathBuf::from(plan["sweep"].as_str().expect("a folder"));
    let results = events(&lines, "result");
    assert_eq!(results.len(), 10, "every setting has its place: {}", text(&output));
    // A rate that is too small does not win.
    assert!(!results[0]["setting"].as_str().unwrap().contains("lr 0.0001,"), "{}", results[0]);
    assert_eq!(events(&lines, "trained").len(), done["runs"].as_u64().unwrap() as usize);
    let page = std::fs::read_to_string(folder.join("sweep.html")).expect("a page");
    assert!(page.contains("Pareto front") && page.contains("lr 0.01, batch 64"));
    let best = std::fs::read_to_string(folder.join("best.toml")).expect("the best");
    assert!(best.contains("epochs = 9"), "in full: {best}");
    let runs = command(&["runs", "--json", "--out", folder.join("runs").to_str().expect("UTF-8")]);
    assert_eq!(json_lines(&runs).len(), events(&lines, "trained").len());
    // The folder of a sweep is no run.
    assert!(json_lines(&command(&["runs", "--json", "--out", out])).is_empty());

    let again = command(&["sweep", "--resume", folder.to_str().expect("UTF-8"), "--json"]);
    if done["reason"] == "complete" {
        let again = json_lines(&again);
        assert!(events(&again, "trained").is_empty(), "{again:?}");
        assert_eq!(events(&again, "result"), results);
    }
}

#[test]
fn a_killed_sweep_goes_on_with_what_it_has() {
    let scratch = Scratch::new("killed-sweep");
    let out = scratch.path().join("runs");
    let mut child = twoclocks()
        .args(["sweep", &sweep_file(&scratch, "60s"), "--quiet", "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let journal = || {
        let sweep = std::fs::read_dir(&out).ok()?.next()?.ok()?.path();
        let text = std::fs::read_to_string(sweep.join("sweep.jsonl")).ok()?;
        Some((sweep, text))
    };
    let began = Instant::now();
    let (folder, before) = loop {
        assert!(began.elapsed() < Duration::from_secs(60), "no run was over");
        match journal() {
            Some((sweep, text)) if text.matches("\"event\":\"trained\"").count() >= 3 => {
                break (sweep, text);
            }
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    child.kill().expect("killed");
    child.wait().expect("waited");
    let path = folder.to_str().expect("UTF-8");
    let output = command(&["sweep", "--resume", path, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let lines = json_lines(&output);
    assert_eq!(lines.last().expect("a last line")["reason"], "complete");
    let (_, after) = journal().expect("a journal");
    assert!(after.starts_with(before.as_str()), "what was there is kept");
    // Every run of the plan, and none of them twice.
    let all: Vec<Value> = after.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut runs: Vec<String> = events(&all, "trained")
        .iter()
        .map(|run| format!("{} {} {}", run["rung"], run["point"], run["seed"]))
        .collect();
    let planned: u64 =
        events(&all, "rung").iter().map(|r| r["points"].as_array().unwrap().len() as u64).sum();
    runs.sort();
    assert_eq!(runs.len() as u64, planned, "{runs:?}");
    runs.dedup();
    assert_eq!(runs.len() as u64, planned, "one was made twice");
    assert!(events(&lines, "trained").len() < runs.len());
    // The best setting by itself gives the bits that it gave in the sweep.
    let best = events(&lines, "result")[0];
    let alone = scratch.path().join("alone");
    let config = folder.join("best.toml");
    let arguments =
        ["train", config.to_str().unwrap(), "--json", "--quiet", "--out", alone.to_str().unwrap()];
    let alone = json_lines(&command(&arguments));
    assert_eq!(best["share"], 1.0);
    assert_eq!(alone.last().expect("done")["test_acc"], best["test_acc"]);
    // Killed before it wrote that its last run was over: it finds that run whole, in its folder.
    let (cut, _) = after.rsplit_once("{\"event\":\"trained\"").expect("one is over");
    std::fs::write(folder.join("sweep.jsonl"), cut).expect("cut");
    let output = command(&["sweep", "--resume", path, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let again = json_lines(&output);
    assert_eq!(events(&again, "trained").len(), 1);
    assert_eq!(events(&again, "result"), events(&lines, "result"));
    let used = command(&["sweep", "--resume", alone_run(&alone).as_str()]);
    assert_eq!(used.status.code(), Some(2), "{}", text(&used));
}

/// Names of files need not be text, JSON and TOML are.
#[cfg(unix)]
#[test]
fn folders_whose_names_are_no_text_do_no_harm() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new("no-text");
    let root = scratch.path().join(std::ffi::OsStr::from_bytes(b"r\xff"));
    let with_root = |arguments: &[&str]| {
        let mut command = twoclocks();
        command.args(arguments).arg("--out").arg(&root).output().expect("the command starts")
    };
    let run = with_root(&[&SHORT[..], &["--json", "--quiet"]].concat());
    assert!(run.status.success(), "{}", text(&run));
    let listed = with_root(&["runs", "list", "--json"]);
    assert_eq!(listed.status.code(), Some(0), "{}", text(&listed));
    let path = json_lines(&listed)[0]["path"].as_str().expect("a path").to_owned();
    assert!(path.contains("r\u{fffd}/digits-"), "{path}");
    let file = scratch.path().join("rate.toml");
    let sweep = SWEEP.replace("count = 5", "count = 2").replace("[32, 64]", "[64]");
    std::fs::write(&file, sweep.replace("TIME", "20s")).expect("written");
    let swept = with_root(&["sweep", file.to_str().expect("UTF-8"), "--json"]);
    assert_eq!(swept.status.code(), Some(0), "{}", text(&swept));
    assert_eq!(events(&json_lines(&swept), "result").len(), 2);
    // What a configuration has to say is refused.
    let output =
        twoclocks().args(["train", "mnist", "--data"]).arg(&root).output().expect("starts");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(
        text(&output).contains("data.path: ") && text(&output).contains("UTF-8"),
        "{}",
        text(&output)
    );
}

/// Longer than its time, so that it has several rungs.
const RUNGS: &str = r#"
recipe = "digits"
[set]
"train.epochs" = 4000
device = "cpu"
precision = "f32"
[vary]
"optimizer.rate" = { log = [1e-4, 1e-2], count = 5 }
"train.batch" = [32, 64]
[sweep]
"#;

#[test]
fn runs_of_shorter_rungs_keep_their_journals_only() {
    let scratch = Scratch::new("lean-sweep");
    let file = scratch.path().join("rungs.toml");
    for whole in [false, true] {
        std::fs::write(&file, format!("{RUNGS}whole_runs = {whole}\n")).expect("written");
        let out = scratch.path().join(format!("whole-{whole}"));
        let sweep = ["sweep", file.to_str().unwrap(), "--json", "--out", out.to_str().unwrap()];
        // Other work on the machine may take the time of a sweep: one of three has enough for its first rung.
        let enough = ["4s", "12s", "40s"].into_iter().find_map(|time| {
            let output = command(&[&sweep[..], &["--time", time]].concat());
            let rungs = events(&json_lines(&output), "rung").len();
            (rungs > 1).then_some(output)
        });
        let output = enough.expect("a sweep of more than one rung");
        let lines = json_lines(&output);
        let plan = events(&lines, "sweep")[0];
        let rungs = plan["rungs"].as_array().expect("rungs").len() as u64;
        assert!(rungs > 1, "{plan}");
        let begun = events(&lines, "rung");
        let runs = Path::new(plan["sweep"].as_str().expect("a folder")).join("runs");
        let mut lean = 0;
        for run in events(&lines, "trained") {
            let rung = run["rung"].as_u64().expect("a number");
            let alone = begun[rung as usize]["points"].as_array().expect("points").len() == 1;
            let last = rung + 1 == rungs || alone;
            let folder = runs.join(run["run"].as_str().expect("a folder"));
            assert_eq!(folder.join("model.safetensors").exists(), whole || last, "{run}");
            let config = std::fs::read_to_string(folder.join("config.toml")).expect("a config");
            assert_eq!(config.contains("telemetry = true"), whole || last, "{config}");
            let journal = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("a journal");
            assert!(journal.contains("\"event\":\"done\""), "{run}");
            let reviews = journal.matches("\"event\":\"epoch\"").count();
            assert!(reviews >= 1 && (whole || last || reviews == 1), "{reviews}: {run}");
            lean += usize::from(!last);
        }
        assert!(lean >= 10, "{}", text(&output));
    }
}

fn alone_run(lines: &[Value]) -> String {
    lines.last().and_then(|done| done["run"].as_str()).expect("a run").to_owned()
}

#[test]
fn a_sweep_that_cannot_be_is_refused_before_anything_is_written() {
    let scratch = Scratch::new("bad-sweep");
    let out = scratch.path().join("runs");
    let out = out.to_str().expect("UTF-8");
    let with = |from: &str, to: &str, parts: &[&str]| {
        let path = scratch.path().join("bad.toml");
        assert!(SWEEP.contains(from), "{from}");
        let good = SWEEP.replace("TIME", "5s");
        std::fs::write(&path, good.replace(from, to)).expect("written");
        let path = path.to_str().expect("UTF-8");
        refused(&["sweep", path, "--out", out, "--quiet"], &[&["bad.toml"], parts].concat());
    };
    with("optimizer.rate", "optimizer.rat", &["vary.\"optimizer.rat\"", "rat"]);
    with("[32, 64]", "[0, 64]", &["batch 0", "train.batch"]);
    with("count = 5", "cout = 5", &["'cout'"]);
    with("train.epochs", "train.epoch", &["set.\"train.epoch\"", "epoch"]);
    let file = sweep_file(&scratch, "50ms");
    refused(&["sweep", &file, "--out", out], &["sweep.time", "too short", "it takes about"]);
    refused(&["sweep", &file, "--time", "soon", "--out", out], &["--time", "soon"]);
    refused(&["sweep", "/nonexistent.toml", "--out", out], &["/nonexistent.toml"]);
    let layers = scratch.path().join("layers.toml");
    std::fs::write(
        &layers,
        SWEEP
            .replace("TIME", "9s")
            .replace("\"train.batch\" = [32, 64]", "\"model.layers.out.outputs\" = [9, 10]"),
    )
    .expect("written");
    refused(&["sweep", layers.to_str().unwrap(), "--out", out, "--quiet"], &["10 classes"]);
    assert!(!Path::new(out).exists(), "a refused sweep left a folder");
    refused(
        &["sweep", "--resume", scratch.path().to_str().unwrap()],
        &["sweep.toml", "not the folder"],
    );
    refused(&["sweep"], &["CONFIG.toml"]);
}
