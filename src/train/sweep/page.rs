//! The page of a sweep: accuracy against seconds, and the settings in their order.

use super::halving::pareto;
use super::journal::{Ranked, Trained};
use super::state::State;
use crate::runs::page::{Chart, Line, Page, Scale};

/// The page, at the end of a sweep or of what was done of it.
pub(super) fn page(state: &State, ranked: &[Ranked], reason: &str, seconds: f64) -> String {
    let plan = &state.plan;
    let name = plan.sweep.file_name().unwrap_or_default().to_string_lossy();
    let mut page = Page::new(&name);
    let runs = state.trained.len();
    page.paragraph(&format!(
        "{} settings, {runs} runs in {seconds:.1} s of {:.1} s ({reason}); {} side by side, each on {} threads.",
        plan.settings, plan.budget, plan.workers, plan.threads
    ));
    if let Some(best) = ranked.first() {
        let accuracy = percent(best.test_acc);
        page.paragraph(&format!("Best: {} with {accuracy} on the test set.", best.setting));
    }
    page.paragraph(
        "Each rung trains its settings for a share of the run, with a whole schedule of its own; the best go on to the next. \
         Settings are chosen by the test set: the best figure of many is better than that setting is. Seconds are \
         those of runs side by side; one alone on the machine may take fewer.",
    );
    page.charts(&charts(state));
    page.table("Settings", &columns(), &rows(ranked));
    page.html()
}

fn percent(share: f64) -> String {
    if share.is_nan() { "diverged".into() } else { format!("{:.2} %", 100.0 * share) }
}

fn columns() -> Vec<String> {
    ["setting", "accuracy", "loss", "training", "share of the run", "run"]
        .map(str::to_owned)
        .to_vec()
}

fn rows(ranked: &[Ranked]) -> Vec<Vec<String>> {
    let row = |one: &Ranked| {
        let spread = one.deviation.map_or(String::new(), |d| format!(" ± {:.2}", 100.0 * d));
        let loss =
            if one.test_loss.is_nan() { "–".into() } else { format!("{:.4}", one.test_loss) };
        vec![
            format!("{}. {}", one.rank, one.setting),
            format!("{}{spread}", percent(one.test_acc)),
            loss,
            format!("{:.3} s", one.seconds_training),
            format!("{:.1} %", 100.0 * one.share),
            one.runs.join(", "),
        ]
    };
    ranked.iter().map(row).collect()
}

/// Accuracy and loss of every run against its seconds, with the front of accuracy that none is beyond.
fn charts(state: &State) -> [Chart; 2] {
    let ended: Vec<&Trained> =
        state.trained.iter().filter(|run| run.test_acc.is_finite()).collect();
    let points: Vec<(f64, f64)> =
        ended.iter().map(|run| (run.seconds_training, run.test_acc)).collect();
    let front: Vec<(f64, f64)> = pareto(&points).into_iter().map(|at| points[at]).collect();
    let mut accuracy = vec![Line { marks: false, ..Line::new("Pareto front", 3, front) }];
    accuracy.extend(marks(state, &ended, &|run| run.test_acc));
    let loss = marks(state, &ended, &|run| run.test_loss);
    let chart = |title: &str, y_label: &str, scale, lines| {
        let (title, y_label) = (title.to_owned(), y_label.to_owned());
        Chart { title, y_label, x_label: "seconds of training".to_owned(), scale, lines }
    };
    [
        chart("Accuracy against seconds", "log scale of the error", Scale::Share, accuracy),
        chart("Test loss against seconds", "nats, log scale", Scale::Log, loss),
    ]
}

/// A line for each run, so that each mark says its setting; in the colour of its rung.
fn marks(state: &State, runs: &[&Trained], value: &dyn Fn(&Trained) -> f64) -> Vec<Line> {
    let mut lines = Vec::new();
    for rung in &state.begun {
        let of_rung = runs.iter().filter(|run| run.task.rung == rung.rung);
        for (n, run) in of_rung.enumerate() {
            let point = (run.seconds_training, value(run));
            let line = Line::new("", [0, 1, 2, 4, 5][rung.rung % 5], vec![point]);
            let name = match n {
                0 => format!("{:.0} % of the run", 100.0 * rung.share),
                _ => String::new(),
            };
            lines.push(Line { name, title: run.setting.clone(), ..line });
        }
    }
    lines
}
