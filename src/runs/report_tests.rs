use std::fs;
use std::path::Path;

use super::*;
use crate::runs::Environment;
use crate::runs::clocks::{Clocks, Estimate, Eta, NewlyReached, REACHED, Reached, Said, Tail};
use crate::runs::closing::tests::closing;
use crate::runs::metrics::Row;
use crate::runs::metrics::tests::{done, epoch, step};
use crate::runs::scratch::{Scratch, run};

fn rendered(folder: &RunFolder) -> String {
    render(folder).unwrap();
    let html = folder.read_text(REPORT).unwrap();
    fetches_nothing(&html);
    well_formed(&html);
    html
}

/// Nothing in the page makes a browser ask for anything.
fn fetches_nothing(html: &str) {
    let lower = html.to_lowercase();
    let lower = lower.replace("src=\"data:image/png;base64,", "");
    let ways = ["http://", "https://", "src=", "href=", "@import", "url(", "<link", "<script"];
    for way in ways {
        assert!(!lower.contains(way), "{way} in the report");
    }
}

/// Elements close in the order in which they open.
fn well_formed(html: &str) {
    let html = html.replacen("<!doctype html>", "", 1);
    let mut open = Vec::new();
    for tag in html.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closing {tag}");
        } else if !tag.ends_with('/') && name != "meta" {
            open.push(name);
        }
    }
    assert_eq!(open, [""; 0]);
}

/// What a run found of its clocks.
fn clocks(steps: f64, seconds: f64) -> Clocks {
    let reached = |level, share| Reached { level, step: share * steps, seconds: share * seconds };
    let estimate = |value: f64| Estimate { value, low: 0.8 * value, high: 1.3 * value };
    let said = |verdict: &str, reviews| Said {
        verdict: verdict.into(),
        reason: "fitted, loss 0.02 < 0.05; C is <0.2>, far below 2".into(),
        reviews,
        settled: reviews >= 3,
    };
    Clocks {
        fit: vec![reached(1.0, 0.1), reached(0.3, 0.3), reached(0.1, 0.6)],
        simple: vec![reached(0.9, 0.17), reached(0.75, 0.42), reached(0.5, 0.83)],
        loss: Some(0.02),
        accuracy: Some(0.999),
        margin: Some(11.0),
        least_margin: Some(1.0),
        growth: Some(estimate(5.5)),
        saturated: Some(0.031),
        tail_exponent: Some(Tail { theta: estimate(0.52), law: "not told apart".into() }),
        next: Some(Eta { level: 0.01, early: 1.5, late: None }),
        contraction: Some(0.2),
        planned: Some(0.2),
        stable_rank: Some([9.0, 8.0]),
        effective_rank: Some(31.25),
        excess_rank: Some(0.4),
        gate_flips: Some(0.012),
        done_in: Some(40.0),
        ratio: Some([1.4, 1.5]),
        advice: vec![said("stop and bank", 3), said("norm decay is inert here", 1)],
        ..Clocks::default()
    }
}

/// A run as one of digits looks: loss falls, accuracy rises, one cycle of the learning rate.
fn trained(root: &Path, name: &str, epochs: u64, speed: f64, end: &str) -> RunFolder {
    let mut rows = Vec::new();
    let steps = 120 * epochs;
    for n in 1..=steps {
        let progress = n as f64 / steps as f64;
        let noise = 1.0 + 0.3 * ((n * 7919 % 101) as f64 / 101.0 - 0.5);
        let mut row = step(n, 2.4 * (-4.5 * progress).exp() * noise + 0.01);
        row.lr = 3e-3 * (1.0 - (2.0 * progress - 0.6).abs().min(1.0)).max(0.01);
        row.seconds = 0.004 * n as f64 / speed;
        let (lr, seconds) = (row.lr, row.seconds);
        rows.push(row.into());
        if n % 120 == 0 {
            let mut row = epoch(n / 120, n, 1.0 - 0.3 * (-3.0 * progress * speed).exp());
            row.train_loss = 2.4 * (-4.5 * progress).exp();
            row.test_loss = 2.4 * (-3.5 * progress).exp() + 0.02;
            row.train_acc = Some(1.0 - 0.3 * (-4.0 * progress * speed).exp());
            (row.lr, row.seconds, row.margin) = (lr, seconds, 9.0 * progress);
            row.review_seconds = 0.06 + 0.02 * progress;
            row.extra.insert("stable_rank".into(), serde_json::json!([9.0 - progress, 4.5, 2.0]));
            row.extra.insert(
                "effective_rank".into(),
                serde_json::json!([60.0 - 9.0 * progress, 41.5, 9.0]),
            );
            row.extra.insert("excess_rank".into(), serde_json::json!(1.0 - 0.6 * progress));
            row.extra.insert("contraction".into(), serde_json::json!(0.2 * progress));
            row.extra.insert("planned_contraction".into(), serde_json::json!(0.2));
            row.extra.insert("train_margin".into(), serde_json::json!(11.0 * progress));
            row.extra.insert("least_margin".into(), serde_json::json!(4.0 * progress - 3.0));
            row.extra.insert("advice".into(), serde_json::json!("keep going: the loss <falls>"));
            row.extra.insert("weight_norm".into(), serde_json::json!(20.0 - 3.0 * progress));
            row.extra.insert(TEST_ROWS.into(), 2048.into());
            rows.push(row.into());
        }
    }
    let mut row = done(steps, 1.0 - 0.3 * (-3.0 * speed).exp());
    row.reason = end.into();
    row.epochs = epochs;
    row.seconds_training = 0.004 * steps as f64 / speed;
    row.seconds_total = row.seconds_training + 1.2;
    row.seconds_to_target = Some(0.8 * row.seconds_training);
    let (all, seconds) = (steps as f64, row.seconds_training);
    row.extra.insert(crate::runs::clocks::KEY.into(), clocks(all, seconds).to_value());
    rows.push(row.into());
    let folder = run(root, name, rows);
    folder.write_config("[train]\nrecipe = \"digits\"\nlr = 0.003 # <one cycle>\n").unwrap();
    Environment::collect("cpu", "avx512", 2).write(&folder).unwrap();
    folder
}

/// With `TWOCLOCKS_TEST_REPORTS=DIR` the pages are kept there, to be looked at.
fn keep(html: &str, name: &str) {
    if let Ok(folder) = std::env::var("TWOCLOCKS_TEST_REPORTS") {
        fs::write(Path::new(&folder).join(name), html).unwrap();
    }
}

#[test]
fn a_finished_run_stands_beside_the_earlier_ones() {
    let scratch = Scratch::new();
    let root = scratch.path();
    trained(root, "digits-20260101-100000", 14, 0.7, "epochs");
    trained(root, "digits-20260101-110000", 9, 0.9, "epochs");
    trained(root, "mnist-20260101-120000", 3, 0.5, "interrupted");
    fs::create_dir(root.join("digits-20260101-130000")).unwrap();
    fs::write(root.join("digits-20260101-130000/metrics.jsonl"), "<broken>\n").unwrap();
    trained(root, "digits-20260103-100000", 9, 0.9, "the future");
    let folder = trained(root, "digits-20260102-100000", 10, 1.1, "target");
    closing(1200).write(&folder).unwrap();
    let html = rendered(&folder);
    keep(&html, "finished.html");
    for expected in [
        "Ended by: <b>target</b>",
        "98.89 %",
        "Against the run before, digits-20260101-110000",
        "earlier runs",
        "digits-20260101-130000",
        "line 1: expected value at line 1 column 1\">damaged</td>",
        "# &lt;one cycle&gt;",
        "avx512",
        "Stable rank",
        "Effective rank</b>",
        "Weight norm",
        " of 2048 rows</td>",
        "<td>31.25</td>",
        "Time per epoch",
        "<title>test: ",
        // Both clocks
        "Advice: stop and bank",
        "C is &lt;0.2&gt;, far below 2",
        "3 reviews in a row said so.",
        "One review said so: not settled.",
        "validation decides",
        "<title>excess loss 0.3 at step 360, 1.31 s</title>",
        "<title>50 % of the excess rank left at step 996, 3.62 s</title>",
        "<td>5.5 (4.4 to 7.15)</td>",
        "<td>1.50 s to never</td>",
        "1.4 in steps, 1.5 in time",
        "rate × decay, 0.2 as planned",
        "<title>excess rank left: 1 at 0 seconds of training</title>",
        // Findings
        "158 of 168 test rows are right",
        "&lt;two&gt; as one (7 times)",
        "title=\"7 of &lt;two&gt; taken for one\">7</td>",
        "alt=\"test row 17\" src=\"data:image/png;base64,iVBORw0KGgo",
        "&lt;two&gt; → one",
        "64 × 40, log scale",
        "fc1.linear",
        "singular values of fc2 (about 250 ms)",
        "twoclocks clocks ",
    ] {
        assert!(html.contains(expected), "no {expected:?}");
    }
    // What the clocks' panels draw has no chart of its own.
    assert!(!html.contains("<b>Excess rank</b>") && !html.contains("ontraction</b>"));
    let at = |title: &str| html.find(title).unwrap_or_else(|| panic!("no {title}"));
    let between = at("Effective rank</b>") - at("Stable rank</b>");
    assert!(!html[at("Stable rank</b>")..][..between].contains("Weight norm"), "not side by side");
    assert!(!html.contains("Test rows</b>"), "the size of a sample is no curve");
    assert!(!html.contains("the future"), "a later run is not an earlier one");
}

#[test]
fn findings_say_of_which_step_they_are() {
    let scratch = Scratch::new();
    let folder = trained(scratch.path(), "digits-20260102-100000", 2, 1.0, "epochs");
    assert!(rendered(&folder).contains("were not looked at"));
    let note = "of the net after step 239; the journal goes to step 240";
    closing(239).write(&folder).unwrap();
    let html = rendered(&folder);
    assert!(html.contains("<h2>Confusion</h2>") && html.contains(note));
    closing(240).write(&folder).unwrap();
    let html = rendered(&folder);
    assert!(html.contains("<h2>Confusion</h2>") && !html.contains("of the net after step"));
}

#[test]
fn a_run_under_way_says_what_its_last_review_advised() {
    let scratch = Scratch::new();
    let mut review = epoch(1, 10, 0.9);
    review.extra.insert("advice".into(), "keep going: the loss is 0.3".into());
    let html = rendered(&run(scratch.path(), "digits", vec![review.into()]));
    assert!(html.contains("Advice: keep going") && html.contains("At the last review."));
    assert!(!html.contains("were not looked at"), "it is not over");
}

/// What is known of the clocks is on the page while the run goes on, not at its end alone.
#[test]
fn a_run_under_way_shows_the_levels_that_it_has_reached() {
    let scratch = Scratch::new();
    let folder = trained(scratch.path(), "digits", 2, 1.0, "epochs");
    let journal = folder.read_text("metrics.jsonl").unwrap();
    let rows = journal.lines().filter(|line| !line.contains("\"event\":\"done\""));
    let mut rows: Vec<String> = rows.map(|row| format!("{row}\n")).collect();
    assert!(!rows.concat().contains("\"fit\""), "the last line is gone");
    let before = |rows: &[String]| {
        folder.write_atomic("metrics.jsonl", rows.concat().as_bytes()).unwrap();
        rendered(&folder)
    };
    assert!(!before(&rows).contains("class=\"mark"));
    let mut review = epoch(3, 360, 0.9);
    review.seconds = 2.0;
    let hit = |level: f64| Reached { level, step: 100.0, seconds: 0.5 };
    let new = NewlyReached { fit: vec![hit(1.0)], simple: vec![hit(0.75)] };
    review.extra.insert("excess_rank".into(), 0.7.into());
    review.extra.insert(REACHED.into(), serde_json::to_value(new).unwrap());
    rows.push(Row::from(review).to_json() + "\n");
    let html = before(&rows);
    keep(&html, "under-way.html");
    for expected in [
        "<title>excess loss 1 at step 100, 500 ms</title>",
        "<title>75 % of the excess rank left at step 100, 500 ms</title>",
        "Fit clock: first at or below",
        "<th scope=\"row\">excess rank left</th><td>70 %</td>",
    ] {
        assert!(html.contains(expected), "no {expected:?}");
    }
    assert!(!html.contains("Reached</b>"), "that is no chart");
}

#[test]
fn an_empty_run_has_a_page() {
    let scratch = Scratch::new();
    let folder = RunFolder::create(scratch.path(), "digits").unwrap();
    let html = rendered(&folder);
    keep(&html, "empty.html");
    assert!(html.contains("nothing to plot yet") && html.contains(">running<"));
    assert!(!html.contains("Earlier runs"));
}

#[test]
fn a_single_epoch_has_a_page() {
    let scratch = Scratch::new();
    let folder = run(scratch.path(), "digits", vec![epoch(1, 10, 1.0).into()]);
    let html = rendered(&folder);
    keep(&html, "single.html");
    assert!(html.contains("100.00 %") && html.contains("<title>epoch 1: training 0.1"));
}

#[test]
fn a_diverged_run_has_a_page() {
    let scratch = Scratch::new();
    let mut bad = epoch(2, 20, f64::NAN);
    bad.margin = f64::INFINITY;
    let mut end = done(20, f64::NAN);
    (end.reason, end.seconds_to_target) = ("diverged".into(), None);
    let rows = vec![
        step(9, 2.0).into(),
        epoch(1, 10, 0.5).into(),
        step(15, f64::NAN).into(),
        step(19, f64::INFINITY).into(),
        bad.into(),
        end.into(),
    ];
    let html = rendered(&run(scratch.path(), "digits", rows));
    keep(&html, "diverged.html");
    assert!(html.contains("Ended by: <b>diverged</b>") && html.contains("not a number"));
    assert!(html.contains("class=\"state diverged\"") && !html.contains("NaN"));
}

#[test]
fn nothing_in_a_run_becomes_markup() {
    let scratch = Scratch::new();
    let evil = "<script>alert('x')</script><img onerror=\"x\">&";
    let mut review = epoch(1, 10, 0.5);
    review.extra.insert(evil.into(), serde_json::json!({evil: 1.0}));
    let mut end = done(10, 0.5);
    end.reason = evil.into();
    let rows = || vec![review.clone().into(), end.clone().into()];
    // A folder name may hold anything but a slash.
    let name = "<b onclick='x'>-20260101-000000";
    run(scratch.path(), name, rows());
    let folder = run(scratch.path(), "<b onclick='x'>-20260102-000000", rows());
    folder.write_config(evil).unwrap();
    let mut environment = Environment::collect(evil, evil, 1);
    environment.cpu = Some(evil.into());
    environment.write(&folder).unwrap();
    let html = rendered(&folder);
    assert!(!html.contains("<img") && !html.contains("<b onclick"));
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)"));
}

#[test]
fn a_page_is_small() {
    let scratch = Scratch::new();
    let html = rendered(&trained(scratch.path(), "digits", 200, 1.0, "epochs"));
    assert!(html.len() < 400_000, "{} bytes", html.len());
}

#[test]
fn durations_read_well() {
    for (seconds, expected) in [
        (0.0, "0 s"),
        (0.0004567, "0.457 ms"),
        (0.25, "250 ms"),
        (0.99999, "1.00 s"),
        (12.345, "12.35 s"),
        (59.999, "1 min 00 s"),
        (3725.0, "1 h 02 min"),
        (f64::NAN, "not a number"),
    ] {
        assert_eq!(duration(seconds), expected);
    }
}
