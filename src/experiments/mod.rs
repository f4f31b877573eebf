//! Experiments of the two-clocks paper, and checks of theory, on the crate's own kernels: each trains small nets for
//! seconds, fits constants to what happened, and says beside each what theory predicts.
//!
//! | experiment | what it shows |
//! |---|---|
//! | [`deep_linear`] | the fast clock depends on the optimizer; the slow one goes as 1 / (rate x decay); balance |
//! | [`relu_regions`] | from when on the pattern of ReLU gates stands, and how good the model with frozen gates is |
//! | [`embedding`] | addition mod p: the classifier fits first, the representation simplifies after |
//!
//! Source: Tan, Gai, Zhang, "Deciphering two training clocks in grokking via deep linear network theory with conditional ReLU
//! reduction", arXiv 2606.05863, 2026.

pub mod deep_linear;
pub mod embedding;
mod full_batch;
pub mod relu_regions;

use crate::error::{Error, Result};
use crate::runs::page::{Chart, Page};
use std::path::{Path, PathBuf};

/// What an experiment found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Name of the experiment.
    pub name: &'static str,
    /// What was done, in a sentence or two.
    pub about: String,
    /// Tables for people.
    pub tables: Vec<Table>,
    /// Charts.
    pub charts: Vec<Chart>,
    /// Settings and fitted constants.
    pub constants: serde_json::Value,
}

/// A table of findings.
#[derive(Clone, Debug)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: &str, columns: &[&str]) -> Table {
        let columns = columns.iter().map(|&c| c.to_owned()).collect();
        Table { title: title.to_owned(), columns, rows: Vec::new() }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = || std::iter::once(&self.columns).chain(&self.rows);
        let width =
            |column: usize| rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        writeln!(f, "{}", self.title)?;
        for row in rows() {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
            writeln!(f, "  {}", cells.join("  "))?;
        }
        Ok(())
    }
}

impl Findings {
    /// Writes `NAME.html` (it opens without a network) and `NAME.json` (settings and constants) into `folder`; returns the page's
    /// path.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let mut page = Page::new(self.name);
        page.paragraph(&self.about);
        page.charts(&self.charts);
        for table in &self.tables {
            page.table(&table.title, &table.columns, &table.rows);
        }
        let path = folder.join(format!("{}.html", self.name));
        std::fs::write(&path, page.html()).map_err(|e| Error::io("write", &path, e))?;
        let json = folder.join(format!("{}.json", self.name));
        let text = format!("{:#}\n", self.constants);
        std::fs::write(&json, text).map_err(|e| Error::io("write", &json, e))?;
        Ok(path)
    }
}

/// A number with three digits that count.
fn digits(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => "-".to_owned(),
        0.0 => "0".to_owned(),
        a if !(1e-3..1e6).contains(&a) => format!("{x:.2e}"),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.4}"),
    }
}
