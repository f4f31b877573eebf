//! Charts one above the other over one axis, with marks that go through all of them.

use std::fmt::Write;

use super::{Line, RIGHT, Scale, WIDTH, escape, figure, furthest, legend, nothing};

/// Height of a panel, the space above it for its heading, and below the last one for the axis.
const PANEL: f64 = 92.0;
const HEADING: f64 = 28.0;
const FOOT: f64 = 42.0;

/// Panels over one x axis.
#[derive(Clone, Debug)]
pub struct Panels {
    /// Heading.
    pub title: String,
    /// Beside the heading.
    pub note: String,
    /// What is plotted to the right, with its unit.
    pub x_label: String,
    /// The panels, the highest first; those without a value are left out.
    pub panels: Vec<Panel>,
}

/// One panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What is plotted upwards, with its unit.
    pub title: String,
    /// How values become heights.
    pub scale: Scale,
    /// The lines, the first one lowest.
    pub lines: Vec<Line>,
    /// Moments to mark in it.
    pub marks: Vec<Mark>,
}

/// A moment, marked by a line through its panel.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// What was then; its title.
    pub label: String,
    /// Class that gives its colour.
    pub class: &'static str,
}

impl Panels {
    /// The chart as a `<figure>`.
    pub fn render(&self) -> String {
        let lines: Vec<Line> = self.panels.iter().flat_map(|panel| panel.lines.clone()).collect();
        let x_high = furthest(&lines);
        let (mut svg, mut top, mut last) = (String::new(), 0.0, None);
        for panel in &self.panels {
            let (high, low) = (top + HEADING, top + HEADING + PANEL);
            let Some((frame, floor)) = panel.scale.frame(&panel.lines, x_high, high, low) else {
                continue;
            };
            let _ = write!(
                svg,
                "<text class=\"panel\" x=\"4\" y=\"{:.1}\">{}</text>",
                high - 8.0,
                escape(&panel.title)
            );
            frame.y_axis(&mut svg, panel.scale, floor);
            for mark in panel.marks.iter().filter(|mark| (0.0..=x_high).contains(&mark.x)) {
                let (x, label, class) = (frame.x(mark.x), escape(&mark.label), mark.class);
                let _ = write!(
                    svg,
                    "<path class=\"mark {class}\" d=\"M{x:.1} {high:.1}V{low:.1}\"/>\
                     <path class=\"hit\" d=\"M{:.1} {high:.1}h8V{low:.1}h-8z\">\
                     <title>{label}</title></path>",
                    x - 4.0
                );
            }
            for line in &panel.lines {
                frame.line(&mut svg, line, panel.scale, floor, &self.x_label);
            }
            let _ = write!(
                svg,
                "<path class=\"axis\" d=\"M{} {low:.1}H{}\"/>",
                super::LEFT,
                WIDTH - RIGHT
            );
            top = low;
            last = Some(frame);
        }
        let legend = legend(&lines);
        match last {
            None => figure(&self.title, &self.note, &legend, super::HEIGHT, nothing()),
            Some(frame) => {
                frame.x_axis(&mut svg, &self.x_label);
                figure(&self.title, &self.note, &legend, top + FOOT, &svg)
            }
        }
    }
}
