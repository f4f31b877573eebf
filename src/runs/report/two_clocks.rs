//! Both clocks of a run on one axis of time, when they were at which level, and what that advises.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::{duration, line};
use crate::runs::clocks::{Clocks, Estimate, Reached};
use crate::runs::history::Record;
use crate::runs::metrics::Epoch;
use crate::runs::plot::{Line, Mark, Panel, Panels, SERIES, Scale, escape, short, trimmed};

/// Keys of reviews that are drawn here, and so in no chart of their own.
pub(super) const DRAWN: [&str; 5] =
    ["contraction", "planned_contraction", "excess_rank", "train_margin", "least_margin"];

/// The clocks of the run, from its reviews and its last line.
pub(super) fn section(record: &Record) -> String {
    let epochs = &record.epochs;
    if epochs.is_empty() {
        return String::new();
    }
    let ended = record.done.as_ref().and_then(Clocks::of);
    let clocks = ended.unwrap_or_else(|| Clocks::so_far(epochs));
    let share = |level: f64| format!("{} %", short(100.0 * level));
    let found = [
        advice(record, &clocks),
        hits("Fit clock", "excess loss", &clocks.fit, short),
        hits("Simplicity clock", "excess rank left", &clocks.simple, share),
        facts(&clocks),
    ]
    .concat();
    let panels = panels(record, &clocks).render();
    match found.is_empty() {
        true => format!("<section><h2>Two clocks</h2>\n{panels}</section>\n"),
        false => format!(
            "<section><h2>Two clocks</h2><div class=\"clocks\">\n{panels}<div class=\"card\">{found}</div>\
             </div></section>\n"
        ),
    }
}

/// The cross-entropy of the smoothed labels with themselves, which no net gets below; `None` where the configuration does not say.
fn floor_of_loss(config: &str) -> Option<f64> {
    let config: toml::Table = config.parse().ok()?;
    let train = config.get("train")?;
    let smoothing = train.get("label_smoothing").map_or(Some(0.0), toml::Value::as_float)?;
    if smoothing <= 0.0 {
        return Some(0.0);
    }
    let layers = config.get("model")?.get("layers")?.as_array()?;
    let outputs = layers.iter().rev().find_map(|layer| layer.get("outputs")?.as_integer())?;
    let classes = outputs as f64;
    let other = smoothing / classes;
    let right = 1.0 - smoothing + other;
    let entropy = |share: f64| if share > 0.0 { -share * share.ln() } else { 0.0 };
    Some(entropy(right) + (classes - 1.0) * entropy(other))
}

fn panels(record: &Record, clocks: &Clocks) -> Panels {
    let epochs = &record.epochs;
    let longest = epochs.last().map_or(0.0, |epoch| epoch.seconds);
    let (unit, unit_seconds) = super::unit_of_time(longest);
    let over_time = |value: &dyn Fn(&Epoch) -> Option<f64>| -> Vec<(f64, f64)> {
        let point = |e: &Epoch| Some((e.seconds / unit_seconds, value(e)?));
        epochs.iter().filter_map(point).collect()
    };
    let extra = |key: &'static str| over_time(&|e| e.extra.get(key)?.as_f64());
    let marks = |hits: &[Reached], class, what: &dyn Fn(f64) -> String| -> Vec<Mark> {
        let mark = |hit: &Reached| Mark {
            x: hit.seconds / unit_seconds,
            label: format!(
                "{} at step {}, {}",
                what(hit.level),
                short(hit.step),
                duration(hit.seconds)
            ),
            class,
        };
        hits.iter().map(mark).collect()
    };

    let configured = || record.config.as_deref().and_then(floor_of_loss);
    let floor = Some(clocks.floor).filter(|&floor| floor > 0.0).or_else(configured).unwrap_or(0.0);
    let loss = over_time(&|e| Some(e.train_loss - floor));
    let steps = record.steps.iter();
    let trace = steps.map(|step| (step.seconds / unit_seconds, step.loss - floor)).collect();
    let trace = Line { marks: false, ..unnamed(line("training loss", "trace", trace)) };
    let title = match floor > 0.0 {
        true => {
            format!("Fit: training loss above {} (smoothed labels)", short(floor))
        }
        false => "Fit: training loss, nats".to_owned(),
    };
    let fit = Panel {
        title,
        scale: Scale::Log,
        lines: vec![trace, unnamed(line("training loss", "s0", loss))],
        marks: marks(&clocks.fit, "s0", &|level| format!("excess loss {}", short(level))),
    };
    let margin = Panel {
        title: "Fit: logit margin".into(),
        scale: Scale::Linear,
        lines: vec![
            line("least, train", "s3", extra("least_margin")),
            line("mean, train", "s0", extra("train_margin")),
            line("mean, test", "s1", over_time(&|e| Some(e.margin))),
        ],
        marks: Vec::new(),
    };
    let mut excess = extra("excess_rank");
    if !excess.is_empty() {
        // All of it, by its definition.
        excess.insert(0, (0.0, 1.0));
    }
    let simple = match excess.is_empty() {
        false => Panel {
            title: "Simplicity: excess stable rank that is left".into(),
            scale: Scale::Linear,
            lines: vec![unnamed(line("excess rank left", "s4", excess))],
            marks: marks(&clocks.simple, "s4", &|level| {
                format!("{} % of the excess rank left", short(100.0 * level))
            }),
        },
        true => Panel {
            title: "Simplicity: stable rank by layer".into(),
            scale: Scale::Linear,
            lines: by_layer(epochs, "stable_rank", unit_seconds),
            marks: Vec::new(),
        },
    };
    let planned = epochs.last().and_then(|e| e.extra.get("planned_contraction")?.as_f64());
    let planned = planned.map(|c| format!(", {} as planned", short(c))).unwrap_or_default();
    let contraction = Panel {
        title: format!("Simplicity: C = Σ rate × decay{planned}"),
        scale: Scale::FromZero,
        lines: vec![unnamed(line("contraction", "s2", extra("contraction")))],
        marks: Vec::new(),
    };
    let mut panels = vec![fit, margin, simple, contraction];
    panels.iter_mut().for_each(|panel| panel.lines.retain(|line| !line.points.is_empty()));
    Panels {
        title: "Both clocks".into(),
        note: "marks: first time at a level".into(),
        x_label: unit.into(),
        panels,
    }
}

fn unnamed(line: Line) -> Line {
    Line { name: String::new(), ..line }
}

/// A figure of each layer over time.
fn by_layer(epochs: &[Epoch], key: &str, unit_seconds: f64) -> Vec<Line> {
    let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for epoch in epochs {
        let layers = epoch.extra.get(key).and_then(Value::as_object);
        for (name, value) in layers.into_iter().flatten() {
            let Some(value) = value.as_f64() else { continue };
            lines.entry(name).or_default().push((epoch.seconds / unit_seconds, value));
        }
    }
    let all = lines.into_iter().zip(SERIES);
    all.map(|((name, points), class)| line(name, class, points)).collect()
}

/// What is advised at the end of the run, or at the last review so far.
fn advice(record: &Record, clocks: &Clocks) -> String {
    let mut said: Vec<(String, String, String)> = clocks
        .advice
        .iter()
        .map(|said| {
            let reviews = match (said.reviews, said.settled) {
                (1, _) => "One review said so: not settled.".to_owned(),
                (reviews, false) => format!("{reviews} reviews in a row said so: not settled."),
                (reviews, true) => format!("{reviews} reviews in a row said so."),
            };
            (said.verdict.clone(), said.reason.clone(), reviews)
        })
        .collect();
    if said.is_empty() {
        let last = record.epochs.iter().rev().find_map(|e| e.extra.get("advice")?.as_str());
        let Some(text) = last else { return String::new() };
        let (verdict, reason) = text.split_once(": ").unwrap_or((text, ""));
        said.push((verdict.to_owned(), reason.to_owned(), "At the last review.".to_owned()));
    }
    let mut html = String::from("<div class=\"advice\">");
    for (number, (verdict, reason, reviews)) in said.iter().enumerate() {
        let heading = if number == 0 { "Advice: " } else { "Also: " };
        let _ = write!(
            html,
            "<h3>{heading}{}</h3><p>{} <span class=\"soft\">{}</span></p>",
            escape(verdict),
            escape(reason),
            escape(reviews)
        );
    }
    html.push_str("<p class=\"soft\">Correlational: validation decides.</p></div>\n");
    html
}

fn hits(clock: &str, of: &str, hits: &[Reached], level: impl Fn(f64) -> String) -> String {
    if hits.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<div class=\"wide\"><table><caption>{clock}: first at or below</caption><thead><tr>\
         <th scope=\"col\">{of}</th><th scope=\"col\">steps</th><th scope=\"col\">time</th></tr>\
         </thead><tbody>\n"
    );
    for hit in hits {
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>",
            level(hit.level),
            short(hit.step.round()),
            duration(hit.seconds)
        );
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// The other figures of the clocks.
fn facts(clocks: &Clocks) -> String {
    let percent = |share: f64| format!("{} %", trimmed(100.0 * share, 1));
    let growth = clocks.growth.map(|of| interval(&of));
    let tail = clocks
        .tail_exponent
        .as_ref()
        .map(|tail| format!("{}: {}", interval(&tail.theta), tail.law));
    let next = clocks.next.map(|next| {
        let late = next.late.map_or("never".to_owned(), duration);
        format!("{} to {late}", duration(next.early))
    });
    let next_name = match clocks.next {
        Some(next) => format!("to excess loss {}", short(next.level)),
        None => String::new(),
    };
    let ranks = clocks.stable_rank.map(|[start, now]| format!("{} → {}", short(start), short(now)));
    let ratio = clocks
        .ratio
        .map(|[steps, seconds]| format!("{} in steps, {} in time", short(steps), short(seconds)));
    let rows = [
        ("simplicity after fit, times", ratio),
        (&next_name, next),
        ("growth of the margin in 1000 steps", growth),
        ("tail exponent of the loss", tail),
        ("training accuracy", clocks.accuracy.map(super::percent)),
        (
            "margin, mean and least",
            clocks
                .margin
                .zip(clocks.least_margin)
                .map(|(mean, least)| format!("{}, {}", short(mean), short(least))),
        ),
        ("saturated training rows", clocks.saturated.map(percent)),
        ("contraction C", clocks.contraction.map(short)),
        ("C as planned", clocks.planned.map(short)),
        ("until C simplifies a linear net", clocks.done_in.map(duration)),
        ("mean stable rank", ranks),
        ("mean effective rank", clocks.effective_rank.map(short)),
        ("excess rank left", clocks.excess_rank.map(percent)),
        ("gates that changed last", clocks.gate_flips.map(percent)),
    ];
    let mut html = String::new();
    for (name, value) in rows {
        let Some(value) = value else { continue };
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
            escape(name),
            escape(&value)
        );
    }
    match html.is_empty() {
        true => html,
        false => format!("<table class=\"facts\"><tbody>\n{html}</tbody></table>\n"),
    }
}

/// A number with its 95 % interval.
fn interval(of: &Estimate) -> String {
    format!("{} ({} to {})", short(of.value), short(of.low), short(of.high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loss_is_the_entropy_of_the_labels() {
        let config = |train: &str| {
            format!(
                "[model]\nlayers = [{{ kind = \"linear\", outputs = 4 }}, {{ kind = \"relu\" }}]\n\
                 [train]\n{train}"
            )
        };
        assert_eq!(floor_of_loss(&config("batch = 3")), Some(0.0));
        let floor = floor_of_loss(&config("label_smoothing = 0.2")).unwrap();
        // 0.85, 0.05, 0.05, 0.05
        let wanted = -0.85 * 0.85f64.ln() - 0.15 * 0.05f64.ln();
        assert!((floor - wanted).abs() < 1e-12, "{floor} {wanted}");
        assert_eq!(floor_of_loss("no configuration"), None);
    }
}
