//! Real MNIST to 98 % with the MLP of the recipe, for five seeds.
//!
//! Needs the IDX files in `$TWOCLOCKS_DATA/mnist` or `~/.cache/twoclocks/mnist`; says SKIPPED where
//! they are not.

mod common;

use common::command;
use common::runs::Scratch;
use std::path::PathBuf;

fn mnist() -> Option<PathBuf> {
    let root = std::env::var_os("TWOCLOCKS_DATA").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/twoclocks"))
    })?;
    let folder = root.join("mnist");
    folder.is_dir().then_some(folder)
}

#[test]
fn the_mlp_reaches_98_percent_for_five_seeds() {
    let Some(data) = mnist() else {
        println!("SKIPPED: there is no MNIST on this machine");
        return;
    };
    let scratch = Scratch::new("mnist");
    for seed in 0..5 {
        let output = command::twoclocks()
            .args(["train", "mnist", "--target-acc", "0.98", "--json", "--quiet", "--seed"])
            .arg(seed.to_string())
            .arg("--data")
            .arg(&data)
            .arg("--out")
            .arg(scratch.path())
            .output()
            .expect("the command starts");
        assert!(output.status.success(), "seed {seed}: {}", command::text(&output));
        let lines = command::json_lines(&output);
        let done = lines.last().expect("a last line");
        assert_eq!(done["event"], "done");
        assert_eq!(done["reason"], "target");
        let number = |key: &str| done[key].as_f64().unwrap_or(f64::NAN);
        assert!(number("test_acc") >= 0.98, "seed {seed}: {done}");
        assert!(number("seconds_training") > 0.0, "{done}");
        assert!(number("seconds_total") >= number("seconds_training"), "{done}");
        println!("seed {seed}: {done}");
    }
}
