use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

/// A file of its own for each text.
fn read(text: &str) -> Result<Sweep> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "twoclocks-sweep-{}-{}.toml",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    let sweep = Sweep::read(&path, None, None);
    std::fs::remove_file(&path).unwrap();
    sweep
}

fn vary(text: &str) -> Result<Sweep> {
    read(&format!("recipe = \"digits\"\n[vary]\n{text}\n[sweep]\ntime = \"1s\"\n"))
}

fn labels(sweep: &Sweep) -> Vec<String> {
    sweep.points.iter().map(Point::label).collect()
}

#[test]
fn a_grid_has_every_combination() {
    let sweep = read(
        "recipe = \"digits\"\n[set]\ntrain.epochs = 4\n\"optimizer.weight_decay\" = 0\n[vary]\n\
         optimizer.rate = { log = [1e-3, 1e-2], count = 3 }\n\"train.batch\" = [32, 64]\n\
         [sweep]\ntime = \"2m\"\nseeds = 2\nkeep = \"1/4\"\nwhole_runs = true\n",
    )
    .unwrap();
    let expected = [
        "lr 0.001, batch 32",
        "lr 0.001, batch 64",
        "lr 0.003162, batch 32",
        "lr 0.003162, batch 64",
        "lr 0.01, batch 32",
        "lr 0.01, batch 64",
    ];
    assert_eq!(labels(&sweep), expected);
    assert_eq!((sweep.seconds, sweep.seeds, sweep.keep), (120.0, 2, 0.25));
    assert!(sweep.whole_runs);
    let third = &sweep.points[3].config;
    assert_eq!((third.optimizer.rate, third.train.batch), (0.003162, 64));
    assert_eq!((third.train.epochs, third.optimizer.weight_decay), (Some(4), 0.0));
    assert_eq!(sweep.base.train.epochs, Some(4));
}

#[test]
fn layers_lists_and_whole_tables_vary() {
    let sweep = vary("\"model.layers.fc1.outputs\" = { log = [64, 256], count = 3 }").unwrap();
    assert_eq!(labels(&sweep), ["fc1.outputs 64", "fc1.outputs 128", "fc1.outputs 256"]);
    let sweep = vary("model.layers.2.p = [0.1, 0.3]").unwrap();
    assert_eq!(labels(&sweep), ["2.p 0.1", "2.p 0.3"]);
    let sweep = vary("schedule = [{ kind = \"constant\" }, { kind = \"one_cycle\" }]").unwrap();
    assert_eq!(labels(&sweep), ["schedule kind constant", "schedule kind one_cycle"]);
    let sweep = vary("\"optimizer.betas\" = [[0.9, 0.98], [0.9, 0.999]]").unwrap();
    assert_eq!(labels(&sweep), ["betas [0.9, 0.98]", "betas [0.9, 0.999]"]);
    let sweep = vary("\"train.batch\" = { linear = [10, 12], count = 5 }").unwrap();
    assert_eq!(labels(&sweep), ["batch 10", "batch 11", "batch 12"], "rounded ones once");
}

#[test]
fn what_cannot_be_swept_is_named() {
    for (text, parts) in [
        ("\"optimizer.ratee\" = [1e-3]", ["vary.\"optimizer.ratee\"", "ratee"]),
        ("\"optimzer.rate\" = [1e-3]", ["vary.\"optimzer.rate\"", "optimzer"]),
        ("optimizer.rate = { logg = [1, 2], count = 2 }", ["optimizer.rate", "logg"]),
        ("\"optimizer.rate\" = { log = [1, 2], cont = 2 }", ["vary.\"optimizer.rate\"", "'cont'"]),
        (
            "\"optimizer.rate\" = { log = [0, 2], count = 2 }",
            ["vary.\"optimizer.rate\"", "above 0"],
        ),
        (
            "\"optimizer.rate\" = { log = [1, 2] }",
            ["vary.\"optimizer.rate\"", "`count` is missing"],
        ),
        ("\"optimizer.rate\" = { log = [1, 2], count = 1 }", ["count = 1", "from 2 on"]),
        ("\"optimizer.rate\" = { log = [1], count = 3 }", ["[1]", "first and a last"]),
        ("\"optimizer.rate\" = 1e-3", ["vary.\"optimizer.rate\"", "neither a list"]),
        ("\"optimizer.rate\" = []", ["vary.\"optimizer.rate\"", "no values"]),
        ("\"optimizer.rate\" = [1e-3, -1.0]", ["lr -1", "rate"]),
        ("\"train.batch\" = [1, \"two\"]", ["vary.\"train.batch\"", "two"]),
        ("\"train.batch\" = [0]", ["batch 0", "train.batch"]),
        ("\"model.layers.fc9.outputs\" = [1]", ["fc9", "fc1"]),
        ("\"recipe.name\" = [1]", ["vary.\"recipe.name\"", "name"]),
        (
            "\"train.batch\" = { linear = [1, 20000], count = 20000 }",
            ["train.batch", "count = 20000"],
        ),
        ("seed = [1, 2]", ["vary.\"seed\"", "sweep.seeds"]),
        ("", ["vary", "nothing varies"]),
    ] {
        let message = vary(text).expect_err(text).to_string();
        for part in parts {
            assert!(message.contains(part), "{text}: '{part}' is not in: {message}");
        }
    }
    let limits = |text: &str| {
        read(&format!("recipe = \"digits\"\nvary.train.batch = [1, 2]\n[sweep]\n{text}\n"))
            .unwrap_err()
            .to_string()
    };
    assert!(limits("").contains("sweep.time"));
    assert!(limits("time = \"soon\"").contains("'soon'"));
    assert!(limits("time = 60").contains("\"30s\""));
    assert!(limits("time = \"1s\"\nkeep = \"4/3\"").contains("sweep.keep"));
    assert!(limits("time = \"1s\"\nkeep = 0").contains("sweep.keep"));
    assert!(limits("time = \"1s\"\nseeds = 0").contains("sweep.seeds"));
    assert!(limits("tme = \"1s\"").contains(":4"));
    let none = read("vary.train.batch = [1]\n").unwrap_err().to_string();
    assert!(none.contains("`recipe` or `config`"), "{none}");
    let set =
        read("recipe = \"digits\"\nset.train.epoch = 1\nvary.train.batch = [1]\n").unwrap_err();
    assert!(set.to_string().contains("set.\"train.epoch\""), "{set}");
}

#[test]
fn a_written_sweep_reads_back_the_same() {
    let sweep =
        vary("\"optimizer.rate\" = { log = [1e-3, 1e-2], count = 4 }\ntrain.batch = [64, 32]")
            .unwrap();
    let folder = std::env::temp_dir().join(format!("twoclocks-sweep-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("base.toml"), sweep.base.to_toml()).unwrap();
    std::fs::write(folder.join("sweep.toml"), sweep.to_toml("base.toml")).unwrap();
    let again = Sweep::read(&folder.join("sweep.toml"), None, None);
    let other = Sweep::read(&folder.join("sweep.toml"), None, Some(9.0));
    std::fs::remove_dir_all(&folder).unwrap();
    let again = again.unwrap();
    assert_eq!((again.points, again.base), (sweep.points, sweep.base));
    assert_eq!((again.seconds, again.seeds, again.keep), (sweep.seconds, sweep.seeds, sweep.keep));
    assert_eq!(again.whole_runs, sweep.whole_runs);
    assert_eq!(other.unwrap().seconds, 9.0);
}
