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
//!
//! # Expected and found
//! Shipped settings, 2 cores (Zen 4); the expected figures are theory's, or those of a numpy toy of the same kind (other data and widths).
//!
//! | | expected | found |
//! |---|---|---|
//! | constant-step descent, factor of steps from decade to decade | 7 to 10 | 6 to 10: polynomial, not the logarithm that the paper assumes |
//! | normalised descent, steps of a decade, depth 1 | about 36 | 209 (a smaller step), the same from decade to decade |
//! | Adam, steps of the last decade, depth 1, beta2 0.999 / 0.98 / 0.95 | 4603 / 228 / 90 | 4489 / 230 / 92 |
//! | the same, depth 3 | not asymptotic yet / 200 / 80 | 3540 (called undecided) / 202 / 80 |
//! | imbalance under coupled decay | `exp(-2 C)` | within 0.5 % of it up to C = 1.6 |
//! | gap of the regularised loss | `exp(-2 C)`, 2 theta = 1 | `exp(-2.03 C)`, 2 theta = 1.00: exponential |
//! | C at 90 % of the fall of the stable rank, 8-fold range of decay, depths 2 and 3 | 1.94 to 2.15 | 2.10 to 2.31; it depends on the starting scale: 1.8 to 2.0 from `1.5 / sqrt(width)`, 2.3 to 2.5 from `2.5 / sqrt(width)` |
//! | C at 90 % of the fall of the squared norm | 1.11 to 1.13 | 1.12 to 1.15 at depth 3; 1.29 to 1.50 at depth 2 |
//! | sum of squared norms / depth over the quasi-norm | 4.9 to 7.0, then 1.000 | 2.9 to 3.6 (a smaller start), then 1.00 |
//! | gates that stand after the fit | assumed by the paper | they do not: 0.6 % of the samples keep their whole pattern over three times the steps, 4 to 9 % of the gates flip; yet the model with frozen gates agrees with the free one on 98.6 % of the test set |
//! | embedding: loss falls first, then test loss | epoch 1500, then 4000 to 8500 (p = 113) | training loss 0.01 at step 636, test accuracy 90 % at 4188 (p = 59, to stay below five minutes; `--p 113` is the paper's) |
//! | embedding: stable rank | 36 to 10 or 12 | 44 to 21 |

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
