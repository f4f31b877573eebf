//! The crate's own device, found, opened and used on the stand-in.

use crate::on_stand_in;
use twoclocks::device::cuda;

on_stand_in! {
    fn the_stand_in_is_found_and_named_as_such() {
        let driver = cuda::probe().expect("the stand-in is on the loader's path");
        assert!(driver.stand_in, "{driver:?}");
        assert_eq!(driver.version, "12.0");
        let [info] = &driver.devices[..] else { panic!("{driver:?}") };
        assert_eq!((info.ordinal, info.capability), (0, (8, 0)));
        assert!(info.name.contains("no GPU") && info.memory_bytes > 1 << 20, "{info}");
        assert_eq!(cuda::find("cuda").expect("the first one").1, *info);
        assert_eq!(cuda::find("cuda:0").expect("the only one").1, *info);
        let error = cuda::find("cuda:1").expect_err("there is one").to_string();
        assert!(error.contains("cuda:1") && error.contains("only one"), "{error}");
    }
}

/// `twoclocks doctor` says that a stand-in is none, for people and for programs.
#[cfg(feature = "cli")]
#[test]
fn doctor_names_the_stand_in() {
    let Some(folder) = crate::build::library_for("device::doctor_names_the_stand_in") else {
        return;
    };
    let doctor = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_twoclocks"));
        let command = command.arg("doctor").args(flags).env("LD_LIBRARY_PATH", folder);
        let output = command.output().expect("the command starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let text = doctor(&[]);
    assert!(text.contains("NOT A GPU") && text.contains("cuda:0"), "{text}");
    assert!(text.contains("auto          the CPU: ") && text.contains("modules of PTX"), "{text}");
    let line: serde_json::Value =
        serde_json::from_str(&doctor(&["--json"])).expect("a line of JSON");
    assert_eq!(line["cuda"]["stand_in"], true, "{line}");
    assert_eq!(line["cuda"]["devices"][0]["device"], "cuda:0", "{line}");
    assert!(line["auto"]["weighs"].is_null(), "{line}");
    assert!(line["auto"]["why"].as_str().is_some_and(|why| why.contains("stand-in")), "{line}");
}

/// Runs the command on the stand-in: the lines of JSON that it prints.
#[cfg(feature = "cli")]
fn rows(folder: &std::path::Path, arguments: &[&str]) -> Vec<serde_json::Value> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_twoclocks"));
    let command = command.args(arguments).arg("--json").env("LD_LIBRARY_PATH", folder);
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// A configuration of the digits, of products and their update alone.
#[cfg(feature = "cli")]
fn plain_digits() -> String {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("plain_digits.toml");
    let config = "recipe = \"plain\"\n[data]\nsource = \"digits\"\n[model]\nlayers = [{ kind = \"flatten\" }, \
        { kind = \"linear\", outputs = 32, activation = \"relu\" }, { kind = \"linear\", outputs = 10 }]\n\
        [optimizer]\nkind = \"adamw\"\nrate = 3e-3\n[train]\nbatch = 64\nseconds = 0.1\n";
    // A test beside this one never sees half a file.
    let part = path.with_extension(format!("{}", std::process::id()));
    std::fs::write(&part, config).expect("the folder of tests can be written");
    std::fs::rename(&part, &path).expect("written just now");
    path.display().to_string()
}

/// `auto` never takes the stand-in, and says so; `cuda:0` insists on it. Without any driver it says that.
#[cfg(feature = "cli")]
#[test]
fn auto_stays_on_the_cpu_and_says_why() {
    let Some(folder) = crate::build::library_for("device::auto_stays_on_the_cpu_and_says_why")
    else {
        return;
    };
    let nowhere = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let config = plain_digits();
    let out = nowhere.join(format!("auto-{}", std::process::id()));
    let train = |folder: &std::path::Path, device: &str| {
        let _ = std::fs::remove_dir_all(&out);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_twoclocks"));
        let command = command.args(["train", &config, "--device", device, "--out"]).arg(&out);
        let output = command.env("LD_LIBRARY_PATH", folder).output().expect("the command starts");
        assert!(output.status.success(), "{device}: {output:?}");
        let run =
            std::fs::read_dir(&out).expect("runs").next().expect("a run").expect("one").path();
        let read = |name: &str| std::fs::read_to_string(run.join(name)).expect("a file of the run");
        let environment: serde_json::Value =
            serde_json::from_str(&read("environment.json")).expect("JSON");
        let said = String::from_utf8(output.stderr).expect("text");
        (read("config.toml"), environment, said)
    };
    let (written, environment, said) = train(folder, "auto");
    assert!(written.contains("device = \"cpu\""), "{written}");
    assert_eq!(environment["device"], "cpu");
    let why = environment["device_why"].as_str().expect("a reason");
    assert!(why.contains("NOT A GPU") && said.contains(why), "{why}: {said}");
    let (written, environment, _) = train(folder, "cuda:0");
    assert!(written.contains("device = \"cuda:0\""), "{written}");
    assert!(environment["device_why"].is_null(), "{environment}");
    if twoclocks::device::cuda::probe().is_err() {
        let (_, environment, said) = train(nowhere, "auto");
        let why = environment["device_why"].as_str().expect("a reason");
        assert!(why.contains("driver") && said.contains(why), "{why}: {said}");
    }
    std::fs::remove_dir_all(&out).expect("made above");
}

/// Every row of `twoclocks bench` and `profile` that a GPU has kernels for, with figures that are some.
#[cfg(feature = "cli")]
#[test]
fn works_are_timed_by_the_device() {
    let Some(folder) = crate::build::library_for("device::works_are_timed_by_the_device") else {
        return;
    };
    let device = ["--device", "cuda:0", "--seconds", "0.02"];
    for (what, count) in [
        (&["gemm", "40x24x33", "33x24x40:tn", "40x24x8:nt", "--precision", "f32"][..], 3),
        (&["gemm", "40x24x33", "--precision", "bf16"], 1),
        (&["gemm", "40x24x64", "64x24x40:tn", "--precision", "bf16", "--operands", "bf16"], 2),
        (&["ce", "16x10"], 1),
        (&["adamw", "5000x3"], 1),
        (&["reduce", "33x65"], 2),
        (&["dispatch", "5x2"], 1),
        (&["step", "--work", "mlp64"], 2),
    ] {
        let lines = rows(folder, &[&["bench"], what, &device].concat());
        let (first, rest) = lines.split_first().expect("the device");
        assert_eq!((&first["event"], &first["stand_in"]), (&"device".into(), &true.into()));
        assert_eq!(rest.len(), count, "{what:?}: {lines:?}");
        for row in rest {
            assert_eq!((&row["device"], &row["isa"]), (&"cuda:0".into(), &"sm_80".into()), "{row}");
            for key in ["median_ms", "p05_ms", "p95_ms", "bytes", "floor_ms", "ratio_to_floor"] {
                let value = row[key].as_f64().unwrap_or(f64::NAN);
                assert!(value.is_finite() && value > 0.0, "{what:?}: {key} in {row}");
            }
            assert!(row["n"].as_u64().is_some_and(|n| n >= 3), "{row}");
        }
    }
    let lines =
        rows(folder, &["profile", &plain_digits(), "--device", "cuda:0", "--seconds", "0.02"]);
    let (whole, nodes) = lines.split_last().expect("the whole step");
    assert_eq!(whole["event"], "profile", "{whole}");
    assert_eq!(whole["nodes"].as_u64(), Some(nodes.len() as u64), "{whole}");
    for node in nodes {
        assert!(node["median_us"].as_f64().is_some_and(|time| time > 0.0), "{node}");
    }
}
