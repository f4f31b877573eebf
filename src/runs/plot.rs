//! Line and bar charts as inline SVG: axes that read well, a title on every mark, no script.
//!
//! Colours and strokes are classes, so that the page's style sheet decides about light and dark.

mod panels;

pub use panels::{Mark, Panel, Panels};

use std::fmt::Write;

/// Drawing area in user units, and the space around it for labels.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 40.0;
/// Where the x axis of a chart lies.
const AXIS: f64 = HEIGHT - BOTTOM;
/// A line of more points than this is thinned; a chart is not that many pixels wide.
const MAX_POINTS: usize = 400;
/// A line of more points than this has no mark on each.
const MAX_MARKS: usize = 100;

/// Classes of lines that a chart tells apart, at most.
pub const SERIES: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s5"];

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// In proportion.
    Linear,
    /// In proportion, from zero.
    FromZero,
    /// By their logarithm; values that have none are left out.
    Log,
    /// Shares of 1 by the logarithm of what is missing to 1, so that 98 % and 99 % lie as far
    /// apart as 80 % and 90 %; values that are no share are left out.
    Share,
}

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// Name in the legend; an empty one is not listed.
    pub name: String,
    /// Name in the titles of its marks.
    pub title: String,
    /// Class that gives its colour and stroke.
    pub class: &'static str,
    /// Whether single points are marked.
    pub marks: bool,
    /// Points in order of x. A point that is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
}

/// A line chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// What is plotted upwards, with its unit; beside the heading.
    pub y_label: String,
    /// What is plotted to the right, with its unit.
    pub x_label: String,
    /// How values become heights.
    pub scale: Scale,
    /// The lines, the first one lowest.
    pub lines: Vec<Line>,
}

/// A stacked bar chart over 1, 2, 3 ...
#[derive(Clone, Debug)]
pub struct Bars {
    /// Heading.
    pub title: String,
    /// What is plotted upwards, with its unit.
    pub y_label: String,
    /// What is counted to the right.
    pub x_label: String,
    /// Name and class of each part of a bar, the lowest first.
    pub parts: Vec<(&'static str, &'static str)>,
    /// Number of each bar and the heights of its parts.
    pub bars: Vec<(u64, Vec<f64>)>,
}

impl Line {
    /// The line of that name, in the colour of that number, with its points marked.
    pub fn new(name: &str, number: usize, points: Vec<(f64, f64)>) -> Line {
        let class = SERIES[number % SERIES.len()];
        Line { name: name.to_owned(), title: name.to_owned(), class, marks: true, points }
    }
}

impl Scale {
    /// The value in the space where lengths are in proportion; `floor` is the smallest distance to
    /// 1 that [`Scale::Share`] tells apart.
    fn forward(self, value: f64, floor: f64) -> f64 {
        match self {
            // max() below would take a NaN for the floor.
            _ if !value.is_finite() => f64::NAN,
            Scale::Linear | Scale::FromZero => value,
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => f64::NAN,
            Scale::Share if (0.0..=1.0).contains(&value) => -(1.0 - value).max(floor).log10(),
            Scale::Share => f64::NAN,
        }
    }

    fn inverse(self, at: f64) -> f64 {
        match self {
            Scale::Linear | Scale::FromZero => at,
            Scale::Log => 10f64.powf(at),
            Scale::Share => 1.0 - 10f64.powf(-at),
        }
    }

    /// Values to mark between `low` and `high`, with their labels.
    fn ticks(self, low: f64, high: f64) -> Vec<(f64, String)> {
        let candidates: Vec<(f64, String)> = match self {
            Scale::Linear | Scale::FromZero => Vec::new(),
            Scale::Log => one_two_five(low, high).map(|v| (v, short(v))).collect(),
            Scale::Share => one_two_five(1.0 - high, 1.0 - low)
                .map(|missing| {
                    (1.0 - missing, format!("{} %", trimmed(100.0 - 100.0 * missing, 6)))
                })
                .collect(),
        };
        match candidates.len() {
            // Few or none: the span is narrow, and evenly spaced values serve better.
            0..3 => linear_ticks(low, high, self == Scale::Share),
            3..=8 => candidates,
            _ => {
                let decades: Vec<_> = candidates.into_iter().step_by(3).collect();
                let every = decades.len().div_ceil(7);
                decades.into_iter().step_by(every).collect()
            }
        }
    }
}

impl Chart {
    /// The chart as a `<figure>`.
    pub fn render(&self) -> String {
        let x_high = furthest(&self.lines);
        let Some((frame, floor)) = self.scale.frame(&self.lines, x_high, TOP, AXIS) else {
            return figure(&self.title, &self.y_label, &legend(&self.lines), HEIGHT, nothing());
        };
        let mut svg = String::new();
        frame.y_axis(&mut svg, self.scale, floor);
        frame.x_axis(&mut svg, &self.x_label);
        for line in &self.lines {
            frame.line(&mut svg, line, self.scale, floor, &self.x_label);
        }
        figure(&self.title, &self.y_label, &legend(&self.lines), HEIGHT, &svg)
    }
}

/// The largest x of all points that can be drawn, or 1.
fn furthest(lines: &[Line]) -> f64 {
    let points = lines.iter().flat_map(|line| &line.points);
    let finite = points.filter(|p| p.0.is_finite() && p.1.is_finite());
    let x_high = finite.map(|p| p.0).fold(0.0, f64::max);
    if x_high > 0.0 { x_high } else { 1.0 }
}

/// The names of lines with a sample of each.
fn legend(lines: &[Line]) -> String {
    let mut legend = String::new();
    for line in lines.iter().filter(|line| !line.name.is_empty()) {
        let (class, name) = (line.class, escape(&line.name));
        let _ = write!(
            legend,
            "<span class=\"key\"><svg width=\"22\" height=\"8\" aria-hidden=\"true\">\
             <path class=\"line {class}\" d=\"M1 4H21\"/></svg>{name}</span>"
        );
    }
    legend
}

impl Scale {
    /// A frame around all values of these lines, and the `floor` of [`Scale::forward`]; `None` where there
    /// are none.
    fn frame(self, lines: &[Line], x_high: f64, top: f64, bottom: f64) -> Option<(Frame, f64)> {
        let all = || {
            let points = lines.iter().flat_map(|line| &line.points);
            points.filter(|p| p.0.is_finite() && p.1.is_finite())
        };
        // Half of the smallest distance to 1 that occurs stands for none at all.
        let floor = all().map(|p| 1.0 - p.1).filter(|&d| d > 0.0).fold(f64::MAX, f64::min);
        let floor = if floor < 1.0 { floor / 2.0 } else { 1e-3 };
        let heights = all().map(|p| self.forward(p.1, floor)).filter(|h| h.is_finite());
        let (mut low, mut high) =
            heights.fold((f64::MAX, f64::MIN), |(low, high), h| (low.min(h), high.max(h)));
        if low > high {
            return None;
        }
        if self == Scale::FromZero {
            low = low.min(0.0);
        }
        let pad = if high > low { 0.06 * (high - low) } else { 0.1 * high.abs().max(0.1) };
        high += pad;
        low = match self {
            Scale::FromZero => low,
            // No share lies under 0 %.
            Scale::Share => (low - pad).max(0.0),
            Scale::Linear | Scale::Log => low - pad,
        };
        Some((Frame { x_high, low, high, top, bottom }, floor))
    }
}

impl Bars {
    /// The chart as a `<figure>`.
    pub fn render(&self) -> String {
        let mut legend = String::new();
        for (name, class) in &self.parts {
            let _ = write!(
                legend,
                "<span class=\"key\"><svg width=\"10\" height=\"10\" aria-hidden=\"true\">\
                 <rect class=\"bar {class}\" width=\"10\" height=\"10\"/></svg>{}</span>",
                escape(name)
            );
        }
        // A part that is not known has no height.
        let height = |part: f64| if part.is_finite() { part.max(0.0) } else { 0.0 };
        let high = self.bars.iter().map(|(_, parts)| parts.iter().map(|&p| height(p)).sum());
        let high = high.fold(0.0, f64::max);
        let mut svg = String::new();
        if high == 0.0 {
            return figure(&self.title, &self.y_label, &legend, HEIGHT, nothing());
        }
        let count = self.bars.len() as f64;
        // Bars stand in the middle of their number: 1 lies at 0.5.
        let frame = Frame { x_high: count, low: 0.0, high: 1.06 * high, top: TOP, bottom: AXIS };
        for (value, label) in linear_ticks(0.0, frame.high, false) {
            frame.y_tick(&mut svg, value, &label);
        }
        let every = self.bars.len().div_ceil(10);
        let width = (0.78 * (frame.x(1.0) - frame.x(0.0))).min(44.0);
        for (index, (number, parts)) in self.bars.iter().enumerate() {
            let middle = index as f64 + 0.5;
            if index % every == 0 {
                frame.x_tick(&mut svg, middle, &number.to_string());
            }
            let mut base = 0.0;
            for (&part, (name, class)) in parts.iter().zip(&self.parts) {
                let (top, bottom) = (frame.y(base + height(part)), frame.y(base));
                base += height(part);
                let title = format!("{} {number}: {name} {}", self.x_label, short(part));
                let _ = write!(
                    svg,
                    "<rect class=\"bar {class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
                     height=\"{:.1}\"><title>{}</title></rect>",
                    frame.x(middle) - width / 2.0,
                    bottom - top,
                    escape(&title)
                );
            }
        }
        frame.x_label(&mut svg, &self.x_label);
        figure(&self.title, &self.y_label, &legend, HEIGHT, &svg)
    }
}

/// A drawing area: x from 0 to `x_high`, y from `low` at the place `bottom` to `high` at `top`.
struct Frame {
    x_high: f64,
    low: f64,
    high: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn x(&self, x: f64) -> f64 {
        LEFT + x / self.x_high * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        self.bottom - (y - self.low) / (self.high - self.low) * (self.bottom - self.top)
    }

    /// Lines and labels at round values.
    fn y_axis(&self, svg: &mut String, scale: Scale, floor: f64) {
        let ticks = scale.ticks(scale.inverse(self.low), scale.inverse(self.high));
        // As many as there is room for.
        let most = ((self.bottom - self.top) / 22.0).max(2.0) as usize;
        let every = ticks.len().div_ceil(most).max(1);
        for (value, label) in ticks.into_iter().step_by(every) {
            self.y_tick(svg, scale.forward(value, floor), &label);
        }
    }

    /// The axis with its marks and what is plotted along it.
    fn x_axis(&self, svg: &mut String, label: &str) {
        for (value, label) in linear_ticks(0.0, self.x_high, false) {
            self.x_tick(svg, value, &label);
        }
        self.x_label(svg, label);
    }

    /// A line, and marks with titles on its points where they are few.
    fn line(&self, svg: &mut String, line: &Line, scale: Scale, floor: f64, x_label: &str) {
        let thinned = thin(&line.points, MAX_POINTS);
        let up = |value| scale.forward(value, floor);
        let points: Vec<(f64, f64)> =
            thinned.iter().map(|p| (self.x(p.0), self.y(up(p.1)))).collect();
        let _ = write!(svg, "<path class=\"line {}\" d=\"{}\"/>", line.class, path(&points));
        if !line.marks || line.points.len() > MAX_MARKS {
            return;
        }
        for (&(x, y), &(cx, cy)) in thinned.iter().zip(&points) {
            if !(cx.is_finite() && cy.is_finite()) {
                continue;
            }
            let value = match scale {
                Scale::Share => format!("{} %", trimmed(100.0 * y, 3)),
                _ => short(y),
            };
            let title = format!("{}: {value} at {} {x_label}", line.title, short(x));
            let _ = write!(
                svg,
                "<circle class=\"dot {}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2.2\"/>\
                 <circle class=\"hit\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"8\">\
                 <title>{}</title></circle>",
                line.class,
                escape(&title)
            );
        }
    }

    fn y_tick(&self, svg: &mut String, at: f64, label: &str) {
        let (y, right, text) = (self.y(at), WIDTH - RIGHT, LEFT - 6.0);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
             <text class=\"end\" x=\"{text}\" y=\"{:.1}\">{}</text>",
            y + 4.0,
            escape(label)
        );
    }

    fn x_tick(&self, svg: &mut String, at: f64, label: &str) {
        let (x, bottom) = (self.x(at), self.bottom);
        let _ = write!(
            svg,
            "<path class=\"axis\" d=\"M{x:.1} {bottom}v4\"/>\
             <text class=\"mid\" x=\"{x:.1}\" y=\"{}\">{}</text>",
            bottom + 17.0,
            escape(label)
        );
    }

    fn x_label(&self, svg: &mut String, label: &str) {
        let (bottom, right) = (self.bottom, WIDTH - RIGHT);
        let _ = write!(
            svg,
            "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>\
             <text class=\"mid\" x=\"{}\" y=\"{}\">{}</text>",
            (LEFT + right) / 2.0,
            bottom + 34.0,
            escape(label)
        );
    }
}

fn figure(title: &str, y_label: &str, legend: &str, height: f64, svg: &str) -> String {
    let (title, y_label) = (escape(title), escape(y_label));
    format!(
        "<figure><figcaption><b>{title}</b> <span class=\"unit\">{y_label}</span>\
         <span class=\"legend\">{legend}</span></figcaption>\
         <svg class=\"plot\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{title}, {y_label}\">{svg}</svg></figure>\n"
    )
}

fn nothing() -> &'static str {
    "<text class=\"mid\" x=\"240\" y=\"125\">nothing to plot yet</text>"
}

/// Path data through the finite points, broken at the others.
fn path(points: &[(f64, f64)]) -> String {
    let mut data = String::new();
    let mut command = 'M';
    for &(x, y) in points {
        if x.is_finite() && y.is_finite() {
            let _ = write!(data, "{command}{x:.1} {y:.1}");
            command = 'L';
        } else {
            command = 'M';
        }
    }
    data
}

/// At most about `limit` of the points: of each group the lowest and the highest, so that spikes
/// stay. NaN counts as highest, so that a gap stays too.
fn thin(points: &[(f64, f64)], limit: usize) -> Vec<(f64, f64)> {
    if points.len() <= limit {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(limit + 2);
    for group in points.chunks((2 * points.len()).div_ceil(limit)) {
        let order = |a: &&(f64, f64), b: &&(f64, f64)| a.1.abs().total_cmp(&b.1.abs());
        let ends = [group.iter().min_by(order), group.iter().max_by(order)];
        let [Some(&low), Some(&high)] = ends else { continue };
        if low.0 <= high.0 {
            kept.extend([low, high]);
        } else {
            kept.extend([high, low]);
        }
    }
    kept
}

/// The values 1, 2 and 5 times a power of ten from `low` (more than 0) to `high`, the first power
/// of ten first where there are three or more.
fn one_two_five(low: f64, high: f64) -> impl Iterator<Item = f64> {
    // Within what f64 holds, however far the range was stretched.
    let (low, high) = (low.max(1e-12), high.min(1e300));
    let (first, last) = (low.log10().floor() as i32, high.max(low).log10().ceil() as i32);
    let mut values: Vec<f64> = (first..=last)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
        .filter(|&value| value >= low && value <= high)
        .collect();
    // Whoever keeps every third value keeps the powers of ten.
    if values.len() > 8
        && let Some(at) = values.iter().position(|v| (v.log10() - v.log10().round()).abs() < 1e-9)
    {
        values.drain(..at);
    }
    values.into_iter()
}

/// Four to eight round values from `low` to `high`, with labels of equal precision.
fn linear_ticks(low: f64, high: f64, percent: bool) -> Vec<(f64, String)> {
    let span = high - low;
    if !(span > 0.0 && span.is_finite()) {
        return Vec::new();
    }
    let power = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    let step = step.into_iter().find(|step| span / step <= 7.0).unwrap_or(10.0 * power);
    let scale = if percent { 100.0 } else { 1.0 };
    let decimals = (-(scale * step).log10().floor()).clamp(0.0, 12.0) as usize;
    let first = (low / step - 1e-9).ceil();
    (0..12)
        .map(|n| (first + f64::from(n)) * step)
        .take_while(|&value| value <= high + 1e-9 * step)
        .map(|value| {
            // Adding turns the -0 of rounding into 0.
            let value = value + 0.0;
            let label = if percent {
                format!("{:.decimals$} %", 100.0 * value)
            } else if high.abs().max(low.abs()) >= 1e4 || step < 1e-4 {
                short(value)
            } else {
                format!("{value:.decimals$}")
            };
            (value, label)
        })
        .collect()
}

/// A number for people: about four digits, with `k`, `M`, `G`, or an exponent where it is small.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        "not a number".into()
    } else if value.is_infinite() {
        "infinite".into()
    } else if size == 0.0 {
        "0".into()
    } else if size >= 1e15 {
        format!("{value:.2e}")
    } else if size >= 1e9 {
        format!("{}G", trimmed(value / 1e9, 2))
    } else if size >= 1e6 {
        format!("{}M", trimmed(value / 1e6, 2))
    } else if size >= 1e4 {
        format!("{}k", trimmed(value / 1e3, 1))
    } else if size >= 1e-3 {
        let digits = 3 - size.log10().floor() as i32;
        trimmed(value, digits.clamp(0, 6) as usize)
    } else {
        let text = format!("{value:.2e}");
        match text.split_once('e') {
            Some((digits, power)) => {
                format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
            }
            None => text,
        }
    }
}

/// `value` with at most `decimals` decimals and no zeros at the end.
pub fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Text as text, whatever is in it, inside an element or a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            // Not allowed in HTML.
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
#[path = "plot_tests.rs"]
mod tests;
