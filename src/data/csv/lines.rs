//! Lines of a CSV file to values and labels, in parallel.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// The classes that a label column names.
#[derive(Clone)]
pub(super) enum Classes {
    /// Integers below this.
    Number(usize),
    /// Texts, sorted and distinct.
    Text(Vec<String>),
}

/// Bytes that one task parses; a line that crosses the end belongs to the block in which it starts.
pub(super) const BLOCK: usize = 1 << 18;

/// More classes than any net here has outputs: a column of larger integers is no label.
const MOST_CLASSES: u32 = 1 << 20;

/// How the lines of a file are to be read.
pub(super) struct Layout<'a> {
    pub path: &'a Path,
    pub separator: u8,
    pub columns: usize,
    /// Column of the label.
    pub label: usize,
    /// Names of the columns.
    pub names: Option<&'a [String]>,
    /// Number of the first line, from 0.
    pub first_line: usize,
    /// The classes, where another file has set them.
    pub known: Option<&'a Classes>,
    /// Whether labels are text.
    pub text: bool,
}

/// All rows of a file.
pub(super) struct Rows {
    pub values: Vec<f32>,
    pub labels: Vec<u32>,
    pub classes: Classes,
}

/// The rows of one block; text labels are numbers into `texts`.
#[derive(Default)]
struct Block {
    values: Vec<f32>,
    labels: Vec<u32>,
    texts: Vec<String>,
    numbers: HashMap<Vec<u8>, u32>,
}

/// What is wrong on which line of a block (from 0) and in which column, when it is in one.
struct Problem {
    line: usize,
    column: Option<usize>,
    text: String,
}

impl Layout<'_> {
    /// How to name a column.
    pub(super) fn column(&self, i: usize) -> String {
        match self.names.and_then(|n| n.get(i)) {
            Some(name) => format!("column {} ({name})", i + 1),
            None => format!("column {}", i + 1),
        }
    }

    /// Reads all lines of `bytes`. Of several problems, the first in the file is reported.
    pub(super) fn rows(&self, bytes: &[u8]) -> Result<Rows> {
        let mut starts = vec![0];
        while let Some(&start) = starts.last()
            && start + BLOCK < bytes.len()
        {
            let from = start + BLOCK;
            match bytes[from..].iter().position(|&b| b == b'\n') {
                Some(i) if from + i + 1 < bytes.len() => starts.push(from + i + 1),
                _ => break,
            }
        }
        let end_of = |i: usize| starts.get(i + 1).copied().unwrap_or(bytes.len());
        let blocks: Vec<Result<Block, Problem>> = (0..starts.len())
            .into_par_iter()
            .map(|i| self.block(&bytes[starts[i]..end_of(i)]))
            .collect();

        let mut done = Vec::with_capacity(blocks.len());
        for (block, &start) in blocks.into_iter().zip(&starts) {
            done.push(block.map_err(|problem| {
                let before = bytes[..start].iter().filter(|&&b| b == b'\n').count();
                let line = self.first_line + before + problem.line + 1;
                let place = match problem.column {
                    Some(i) => format!("line {line}, {}", self.column(i)),
                    None => format!("line {line}"),
                };
                Error::data(self.path, place, problem.text)
            })?);
        }
        Ok(self.join(done))
    }

    fn join(&self, blocks: Vec<Block>) -> Rows {
        let classes = match (self.known, self.text) {
            (Some(known), _) => known.clone(),
            (None, true) => {
                let distinct: BTreeSet<&String> = blocks.iter().flat_map(|b| &b.texts).collect();
                Classes::Text(distinct.into_iter().cloned().collect())
            }
            (None, false) => {
                let largest = blocks.iter().flat_map(|b| &b.labels).max();
                Classes::Number(largest.map_or(0, |&l| l as usize + 1))
            }
        };
        let mut values = Vec::with_capacity(blocks.iter().map(|b| b.values.len()).sum());
        let mut labels = Vec::with_capacity(blocks.iter().map(|b| b.labels.len()).sum());
        for block in blocks {
            values.extend_from_slice(&block.values);
            match &classes {
                Classes::Number(_) => labels.extend_from_slice(&block.labels),
                Classes::Text(names) => {
                    // Every text of a block is among the names: they were made from it, or `label`
                    // checked it.
                    let place = |t: &String| names.partition_point(|n| n < t) as u32;
                    let places: Vec<u32> = block.texts.iter().map(place).collect();
                    labels.extend(block.labels.iter().map(|&l| places[l as usize]));
                }
            }
        }
        Rows { values, labels, classes }
    }

    fn block(&self, bytes: &[u8]) -> Result<Block, Problem> {
        let mut out = Block::default();
        // A digit and a separator are the shortest field.
        out.values.reserve(bytes.len() / 4);
        for (number, line) in bytes.split(|&b| b == b'\n').enumerate() {
            let line = trim(line);
            if line.is_empty() {
                continue;
            }
            let bad = |column, text| Problem { line: number, column, text };
            let mut fields = Fields::new(line, self.separator);
            let mut seen = 0;
            loop {
                let column = seen;
                // Most fields are small integers: they are read while their end is looked for.
                if column != self.label
                    && column < self.columns
                    && let Some(value) = fields.next_small_integer()
                {
                    out.values.push(value as f32);
                    seen += 1;
                    continue;
                }
                let Some(field) = fields.next() else { break };
                seen += 1;
                if column >= self.columns {
                    continue;
                }
                let field = field.map_err(|text| bad(Some(column), text))?;
                if column == self.label {
                    let label = self.class(&field, &mut out).map_err(|t| bad(Some(column), t))?;
                    out.labels.push(label);
                } else {
                    out.values.push(number_of(&field).map_err(|t| bad(Some(column), t))?);
                }
            }
            if seen != self.columns {
                return Err(bad(None, format!("{seen} fields; expected {}", self.columns)));
            }
        }
        Ok(out)
    }

    fn class(&self, field: &[u8], block: &mut Block) -> Result<u32, String> {
        if field.is_empty() {
            return Err("empty field; expected a label".into());
        }
        if self.text {
            if let Some(&number) = block.numbers.get(field) {
                return Ok(number);
            }
            return self.new_text(field, block);
        }
        let Some(value) = integer(field) else {
            let hint = if is_number(field) { "" } else { ", as in the first row" };
            return Err(format!("label {}; expected an integer 0, 1, 2 ...{hint}", shown(field)));
        };
        let limit = match self.known {
            Some(Classes::Number(n)) => *n as u32,
            _ => MOST_CLASSES,
        };
        match value < limit {
            true => Ok(value),
            false => Err(format!("label {}; expected 0..={}", shown(field), limit - 1)),
        }
    }

    #[cold]
    fn new_text(&self, field: &[u8], block: &mut Block) -> Result<u32, String> {
        if is_number(field) {
            return Err(format!(
                "label {}; expected a text that is no number, as in the first row (name the label column if the \
                 first line is a header)",
                shown(field)
            ));
        }
        let text = std::str::from_utf8(field)
            .map_err(|_| format!("label {}; expected UTF-8", shown(field)))?
            .to_owned();
        if let Some(Classes::Text(names)) = self.known
            && names.binary_search(&text).is_err()
        {
            return Err(format!("label {text:?}; expected one of the {} in training", names.len()));
        }
        let number = block.texts.len() as u32;
        block.texts.push(text);
        block.numbers.insert(field.to_vec(), number);
        Ok(number)
    }
}

/// The fields of one trimmed line, without spaces and quotes around them.
pub(super) struct Fields<'a> {
    /// None once the last field was given.
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Fields<'a> {
    pub(super) fn new(line: &'a [u8], separator: u8) -> Self {
        Fields { rest: Some(line), separator }
    }

    /// The next field when it is 1 to 7 digits and nothing else, which a 32-bit float holds
    /// exactly. Else nothing is taken.
    #[inline]
    fn next_small_integer(&mut self) -> Option<u32> {
        let rest = self.rest?;
        let mut value = 0;
        for (i, &b) in rest.iter().enumerate().take(8) {
            let digit = b.wrapping_sub(b'0');
            if digit <= 9 {
                value = value * 10 + u32::from(digit);
            } else if b == self.separator && i > 0 {
                self.rest = Some(&rest[i + 1..]);
                return Some(value);
            } else {
                return None;
            }
        }
        // Eight digits or the end of the line.
        if rest.is_empty() || rest.len() > 7 {
            return None;
        }
        self.rest = None;
        Some(value)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Cow<'a, [u8]>, String>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest?;
        let end = rest.iter().position(|&b| b == self.separator);
        let field = trim(&rest[..end.unwrap_or(rest.len())]);
        if field.first() == Some(&b'"') {
            return Some(self.quoted(rest));
        }
        self.rest = end.map(|i| &rest[i + 1..]);
        Some(Ok(Cow::Borrowed(field)))
    }
}

impl<'a> Fields<'a> {
    /// A field that starts with a quote: `""` stands for one quote, separators are plain text.
    #[cold]
    fn quoted(&mut self, rest: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        let open = rest.iter().position(|&b| b == b'"').map_or(0, |i| i + 1);
        let mut text = Vec::new();
        let mut i = open;
        while let Some(&b) = rest.get(i) {
            i += 1;
            if b != b'"' {
                text.push(b);
            } else if rest.get(i) == Some(&b'"') {
                text.push(b'"');
                i += 1;
            } else {
                let after = &rest[i..];
                let end = after.iter().position(|&b| b == self.separator);
                let between = trim(&after[..end.unwrap_or(after.len())]);
                self.rest = end.map(|e| &after[e + 1..]);
                return match between.is_empty() {
                    true => Ok(Cow::Owned(trim(&text).to_vec())),
                    false => Err(format!("{} after a closing quote", shown(between))),
                };
            }
        }
        self.rest = None;
        Err(format!("{}: a quote that is not closed on its line", shown(&rest[open - 1..])))
    }
}

/// `bytes` without spaces and carriage returns at either end. Tabs stay: they may separate.
#[inline]
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\r', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\r'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Whether a field reads as a number, finite or not.
pub(super) fn is_number(field: &[u8]) -> bool {
    std::str::from_utf8(field).is_ok_and(|s| s.parse::<f64>().is_ok())
}

fn number_of(field: &[u8]) -> Result<f32, String> {
    let value = std::str::from_utf8(field).ok().and_then(|s| s.parse::<f32>().ok());
    match value {
        Some(x) if x.is_finite() => Ok(x),
        Some(_) => Err(format!("{}; expected a finite number of 32 bits", shown(field))),
        None if field.is_empty() => Err("empty field; expected a number".into()),
        None => Err(format!("{}; expected a number", shown(field))),
    }
}

/// An integer from 0 however it is written (`3.0`), as other programs write integer columns.
fn integer(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?;
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    let value: f64 = text.parse().ok()?;
    let whole = value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value);
    whole.then_some(value as u32)
}

/// A field as it stands in messages: quoted, and not longer than a line.
pub(super) fn shown(field: &[u8]) -> String {
    const MOST: usize = 40;
    let text: String = String::from_utf8_lossy(field).chars().take(MOST).collect();
    format!("{text:?}{}", if field.len() > MOST { " ..." } else { "" })
}
