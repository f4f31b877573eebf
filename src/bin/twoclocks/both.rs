//! Both clocks of a run as lines for people.

use crate::output;
use twoclocks::runs::Clocks;
use twoclocks::runs::clocks::{Estimate, Reached};

/// Hitting times on a line, at most: the last ones.
const SHOWN: usize = 4;

/// The clocks, hitting times and advice, a line each; what was not measured has none.
pub fn lines(clocks: &Clocks) -> Vec<String> {
    let mut lines = Vec::new();
    let fit = [
        clocks.loss.map(|loss| match clocks.floor {
            floor if floor > 0.0 => {
                format!("training loss {loss:.4} ({:.4} above its floor)", loss - floor)
            }
            _ => format!("training loss {loss:.4}"),
        }),
        clocks.accuracy.map(|share| format!("accuracy {}", percent(share))),
        clocks.margin.map(|margin| {
            let least =
                clocks.least_margin.map_or(String::new(), |least| format!(" (least {least:.2})"));
            format!("margin {margin:.2}{least}")
        }),
        clocks.growth.map(|growth| format!("growing {} a thousand steps", interval(growth))),
        clocks
            .saturated
            .filter(|&share| share > 0.0)
            .map(|share| format!("{} saturated", percent(share))),
    ];
    push(&mut lines, "fast clock", fit.into_iter().flatten().collect());
    push(&mut lines, "  T_fit", reached(&clocks.fit, |level| level.to_string()));
    if let Some(next) = clocks.next {
        let late = next.late.map_or("no bound".to_owned(), output::seconds);
        let text = format!(
            "loss {} above its floor in {} to {late}",
            next.level,
            output::seconds(next.early)
        );
        push(&mut lines, "  next", vec![text]);
    }
    let slow = [
        clocks.contraction.map(|c| format!("C = {}", twoclocks::clocks::contraction(c))),
        clocks.stable_rank.map(|[start, now]| format!("mean stable rank {start:.1} -> {now:.1}")),
        clocks.effective_rank.map(|rank| format!("effective rank {rank:.1}")),
        clocks.excess_rank.map(|share| format!("{} of its excess left", percent(share))),
        clocks
            .gate_flips
            .map(|share| format!("{} of the gates flipped since the last look", percent(share))),
    ];
    let mut slow: Vec<String> = slow.into_iter().flatten().collect();
    let unmoved = clocks.contraction.is_some_and(|c| c < twoclocks::clocks::UNMOVED);
    if unmoved && clocks.excess_rank.is_some_and(|share| share < 0.9) {
        slow.push("which is the fit's doing, at so small a C".to_owned());
    }
    push(&mut lines, "slow clock", slow);
    push(&mut lines, "  T_simple", reached(&clocks.simple, percent));
    if let Some([steps, seconds]) = clocks.ratio {
        let text = format!(
            "half the excess rank took {steps:.1} times the steps of the fit ({seconds:.1} times its seconds)"
        );
        push(&mut lines, "  apart", vec![text]);
    }
    for (number, said) in clocks.advice.iter().enumerate() {
        let reviews = match said.reviews {
            1 => "1 review".to_owned(),
            n => format!("{n} reviews"),
        };
        let settled = if said.settled { "" } else { "not settled: " };
        let label = if number == 0 { "advice" } else { "  and" };
        let text = format!("{}: {} ({settled}{reviews})", said.verdict, said.reason);
        push(&mut lines, label, vec![text]);
    }
    if !clocks.advice.is_empty() {
        lines.push("            correlational: validation decides".to_owned());
    }
    lines
}

fn push(lines: &mut Vec<String>, label: &str, parts: Vec<String>) {
    if !parts.is_empty() {
        lines.push(format!("{label:<11} {}", parts.join(", ")));
    }
}

fn percent(share: f64) -> String {
    let digits = if (0.0995..0.9995).contains(&share) { 1 } else { 2 };
    format!("{:.digits$} %", 100.0 * share)
}

fn interval(estimate: Estimate) -> String {
    format!("{:.2} ({:.2} to {:.2})", estimate.value, estimate.low, estimate.high)
}

fn reached(hits: &[Reached], level: impl Fn(f64) -> String) -> Vec<String> {
    let hit = |hit: &Reached| {
        format!("{} at step {:.0} ({})", level(hit.level), hit.step, output::seconds(hit.seconds))
    };
    hits[hits.len().saturating_sub(SHOWN)..].iter().map(hit).collect()
}
