//! What was found out about the net after its last step: classes and mistakes, singular values, times.

use std::fmt::Write;

use super::{duration, line};
use crate::runs::closing::{Classified, Closing, Profile, Spectrum};
use crate::runs::history::{Record, State};
use crate::runs::plot::{Chart, Scale, escape, short, trimmed};

/// Classes up to which the whole matrix is shown; beyond, only what is confused most.
const MATRIX: usize = 40;
/// Confusions that are named.
const PAIRS: usize = 5;
/// Layers whose singular values are drawn.
const LAYERS: usize = 12;

/// The findings of `closing`, and how to get those that are missing.
pub(super) fn sections(record: &Record, closing: Option<&Closing>) -> String {
    let mut html = String::new();
    if let Some(closing) = closing {
        if closing.step != record.summary.step {
            // It was killed after its checkpoint, or goes on after an end.
            let _ = writeln!(
                html,
                "<p class=\"soft\">What follows is of the net after step {}; the journal goes to step {}.</p>",
                closing.step, record.summary.step
            );
        }
        if let Some(test) = &closing.test {
            html.push_str(&classes(test));
            html.push_str(&mistakes(test));
        }
        html.push_str(&spectra(&closing.spectra));
        if let Some(profile) = &closing.profile {
            html.push_str(&times(profile));
        }
    }
    let command = format!("twoclocks clocks {}", record.summary.path.display());
    let trained = matches!(record.summary.state, State::Finished | State::Interrupted);
    let what = match closing {
        Some(closing) if closing.left_out.is_empty() => return html,
        Some(closing) => {
            let one = |left: &crate::runs::closing::LeftOut| {
                format!("{} (about {})", left.what, duration(round(left.seconds)))
            };
            let all: Vec<String> = closing.left_out.iter().map(one).collect();
            format!("Left out to keep the run short: {}.", all.join("; "))
        }
        None if trained && record.summary.step > 0 => {
            "Test rows, singular values and the times of a step were not looked at.".to_owned()
        }
        None => return html,
    };
    let _ = writeln!(
        html,
        "<p class=\"soft\">{} <code>{}</code> adds them.</p>",
        escape(&what),
        escape(&command)
    );
    html
}

/// To two digits: an estimate has no more.
fn round(value: f64) -> f64 {
    let unit = 10f64.powf(value.abs().max(1e-9).log10().floor() - 1.0);
    (value / unit).round() * unit
}

/// A length of time, with microseconds.
fn micro(seconds: f64) -> String {
    match seconds < 1e-3 {
        true => format!("{} µs", short((1e8 * seconds).round() / 100.0)),
        false => duration(seconds),
    }
}

fn classes(test: &Classified) -> String {
    let count = test.classes.len();
    let rows: u64 = test.confusion.iter().flatten().sum();
    let right: u64 = (0..count).map(|class| test.confusion[class][class]).sum();
    let mut pairs = Vec::new();
    for (label, row) in test.confusion.iter().enumerate() {
        let wrong = row.iter().enumerate().filter(|&(class, &n)| class != label && n > 0);
        pairs.extend(wrong.map(|(class, &n)| (n, label, class)));
    }
    pairs.sort_by_key(|&(n, label, class)| (std::cmp::Reverse(n), label, class));
    let most = pairs.first().map_or(1, |pair| pair.0);
    let name = |class: usize| escape(&test.classes[class]);
    let named: Vec<String> = pairs
        .iter()
        .take(PAIRS)
        .map(|&(n, label, class)| format!("{} as {} ({n} times)", name(label), name(class)))
        .collect();
    let mut html = String::from("<section><h2>Confusion</h2>\n");
    let _ = writeln!(
        html,
        "<p>{right} of {rows} test rows are right.{}</p>",
        match named.is_empty() {
            true => String::new(),
            false => format!(" Taken most often for another: {}.", named.join(", ")),
        }
    );
    if count <= MATRIX {
        html.push_str(
            "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Confusion matrix\">\
             <table class=\"confusion\"><caption>Rows: the label; columns: what it was taken for\
             </caption><thead><tr><td></td>",
        );
        (0..count).for_each(|class| {
            let _ = write!(html, "<th scope=\"col\">{}</th>", name(class));
        });
        html.push_str("<th scope=\"col\" class=\"sum\">right</th></tr></thead><tbody>\n");
        for (label, row) in test.confusion.iter().enumerate() {
            let _ = write!(html, "<tr><th scope=\"row\">{}</th>", name(label));
            let total: u64 = row.iter().sum();
            for (class, &n) in row.iter().enumerate() {
                // Mistakes are few beside what is right: each has a scale of its own.
                let (kind, share) = match class == label {
                    true => ("right", n as f64 / total.max(1) as f64),
                    false => ("wrong", n as f64 / most as f64),
                };
                match n {
                    0 => html.push_str("<td class=\"none\">0</td>"),
                    _ => {
                        let _ = write!(
                            html,
                            "<td class=\"{kind}\" style=\"--heat:{:.0}%\" title=\"{n} of {} taken for {}\">{n}</td>",
                            12.0 + 58.0 * share,
                            name(label),
                            name(class)
                        );
                    }
                }
            }
            let share = 100.0 * row[label] as f64 / total.max(1) as f64;
            let _ = writeln!(html, "<td class=\"sum\">{} %</td></tr>", trimmed(share, 1));
        }
        html.push_str("</tbody></table></div>\n");
    }
    html.push_str("</section>\n");
    html
}

fn mistakes(test: &Classified) -> String {
    if test.mistakes.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<section><h2>Worst mistakes</h2><p class=\"soft\">Test rows that are taken for another class, those \
         of the highest loss first: label → what it was taken for, with that probability.</p>\n",
    );
    let pictures = test.mistakes.iter().any(|mistake| mistake.png.is_some());
    let name = |class: usize| escape(&test.classes[class]);
    if pictures {
        html.push_str("<ul class=\"mistakes\">\n");
        for mistake in &test.mistakes {
            let (label, predicted) = (name(mistake.label), name(mistake.predicted));
            let share = super::percent(mistake.probability);
            let picture = match &mistake.png {
                Some(png) => format!(
                    "<img alt=\"test row {}\" src=\"data:image/png;base64,{}\"/>",
                    mistake.row,
                    escape(png)
                ),
                None => String::new(),
            };
            let _ = writeln!(
                html,
                "<li>{picture}<b>{label} → {predicted}</b><span>{share}</span><span>row {}, loss {}</span></li>",
                mistake.row,
                short(mistake.loss)
            );
        }
        html.push_str("</ul></section>\n");
        return html;
    }
    html.push_str(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Worst mistakes\"><table><thead><tr>\
         <th scope=\"col\">test row</th><th scope=\"col\">label</th><th scope=\"col\">taken for</th>\
         <th scope=\"col\">probability</th><th scope=\"col\">loss</th></tr></thead><tbody>\n",
    );
    for mistake in &test.mistakes {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            mistake.row,
            name(mistake.label),
            name(mistake.predicted),
            super::percent(mistake.probability),
            short(mistake.loss)
        );
    }
    html.push_str("</tbody></table></div></section>\n");
    html
}

fn spectra(spectra: &[Spectrum]) -> String {
    if spectra.is_empty() {
        return String::new();
    }
    let mut html =
        String::from("<section><h2>Singular values of the weights</h2><div class=\"plots\">\n");
    for Spectrum { name, shape: [inputs, outputs], start, end } in spectra.iter().take(LAYERS) {
        // Below that the values are noise.
        let largest = start.iter().chain(end).copied().fold(0.0, f64::max);
        let points = |values: &[f64]| -> Vec<(f64, f64)> {
            let numbered = values.iter().enumerate().map(|(i, &s)| ((i + 1) as f64, s));
            numbered.filter(|&(_, s)| s > 1e-7 * largest).collect()
        };
        let chart = Chart {
            title: name.clone(),
            y_label: format!("{inputs} × {outputs}, log scale"),
            x_label: "number, largest first".into(),
            scale: Scale::Log,
            lines: vec![line("start", "s3", points(start)), line("end", "s0", points(end))],
        };
        html.push_str(&chart.render());
    }
    html.push_str("</div>");
    if let Some(more) = spectra.len().checked_sub(LAYERS).filter(|&more| more > 0) {
        let _ = write!(html, "<p class=\"soft\">and {more} more in closing.json</p>");
    }
    html.push_str("</section>\n");
    html
}

fn times(profile: &Profile) -> String {
    let sum: f64 = profile.nodes.iter().map(|node| node.seconds).sum();
    let floor: f64 = profile.nodes.iter().map(|node| node.floor_seconds).sum();
    let mut html = format!(
        "<section><h2>Profile of a step</h2><p>The whole step takes {}; its nodes one after another {}, where \
         this machine cannot do with less than {}. On {}.{}</p>\n<div class=\"wide\" tabindex=\"0\" \
         role=\"region\" aria-label=\"Profile\"><table class=\"profile\"><thead><tr>\
         <th scope=\"col\">node</th><th scope=\"col\">kernel</th><th scope=\"col\">time</th>\
         <th scope=\"col\">share</th><th scope=\"col\">floor</th><th scope=\"col\">time / floor</th></tr>\
         </thead><tbody>\n",
        micro(profile.step_seconds),
        micro(sum),
        micro(floor),
        escape(&profile.device),
        match profile.disturbed {
            true =>
                " Other work had the processors while the peaks were measured: floors are too high.",
            false => "",
        }
    );
    for node in &profile.nodes {
        let share = 100.0 * node.seconds / sum;
        let ratio = match node.floor_seconds > 0.0 {
            true => trimmed(node.seconds / node.floor_seconds, 1),
            false => "–".to_owned(),
        };
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td>\
             <td class=\"share\" style=\"--share:{share:.0}%\">{} %</td><td>{}</td><td>{ratio}</td></tr>",
            escape(&node.node),
            escape(&node.kernel),
            micro(node.seconds),
            trimmed(share, 1),
            micro(node.floor_seconds)
        );
    }
    html.push_str("</tbody></table></div></section>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::round;

    #[test]
    fn estimates_have_two_digits() {
        for (value, expected) in [(0.2468, 0.25), (12.6, 13.0), (0.0, 0.0), (0.00311, 0.0031)] {
            let found = round(value);
            assert!((found - expected).abs() < 1e-9, "{value}: {found}");
        }
    }
}
