//! Comma-separated numbers: one row a line, a column of labels, the rest features.
//!
//! RFC 4180 as far as numbers need it: fields may be quoted, a quoted field ends on its line. The
//! separator is the first of `,` `;` and tab that the first line holds. Spaces around fields, blank
//! lines, CRLF and a byte-order mark are passed over. Files may be gzipped.

mod lines;

use std::borrow::Cow;
use std::path::Path;

use super::dataset::{Dataset, Split, in_file};
use super::input::{Input, name_of};
use crate::error::{Error, Result};
use lines::{Classes, Fields, Layout, is_number, trim};

/// Which column holds the labels.
///
/// Labels are integers from 0; or text, all of them, and then the distinct texts in sorted order
/// are the classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Label {
    /// The column that the header calls `label`, `class` or `target` (in any case), and without one
    /// the last.
    #[default]
    Auto,
    /// The column of this name in the header, which the file then must have.
    Name(String),
    /// The column of this number: from the start 0, 1, 2 ..., from the end -1, -2 ...
    Index(i64),
}

/// An integer is a [`Label::Index`], the empty string is [`Label::Auto`], all else is a
/// [`Label::Name`].
impl From<&str> for Label {
    fn from(text: &str) -> Self {
        match text.parse() {
            Ok(index) => Label::Index(index),
            Err(_) if text.is_empty() => Label::Auto,
            Err(_) => Label::Name(text.to_owned()),
        }
    }
}

/// Loads a file; its values become floats, rows have the shape `[features]`.
///
/// The first line is a header when [`Label::Name`] asks for one or when none of its fields is a
/// number. The number of classes is 1 + the largest label, or the number of distinct texts.
///
/// # Errors
/// [`Error::Data`] naming the file, the line, the column and what was found there: a field that is
/// empty, no number, NaN or too large for 32 bits; a label that is negative or no integer, or text
/// among integers; a line with more or fewer fields than the first; a column without a name in the
/// header (an index that another program wrote would be taken for a feature); a label column that
/// is not there or that names a single class; no rows. [`Error::Io`] when the operating system
/// refuses.
pub fn load(path: impl AsRef<Path>, label: &Label) -> Result<Dataset> {
    let path = path.as_ref();
    Ok(parse(&read(path)?, path, label)?.with_name(name_of(path)))
}

/// Loads a file to train on and a file to test on, which have the same columns. Classes are those
/// of the first.
///
/// # Errors
/// As [`load`], and [`Error::Data`] for other columns than in `train` or a label that `train` does
/// not allow.
pub fn load_pair(train: impl AsRef<Path>, test: impl AsRef<Path>, label: &Label) -> Result<Split> {
    let (train, test) = (train.as_ref(), test.as_ref());
    let name = name_of(train);
    let (table, train) = table(&read(train)?, train, label, None)?;
    let (_, test) = self::table(&read(test)?, test, label, Some(&table))?;
    Ok(Split { train: train.with_name(&name), test: test.with_name(name) })
}

/// [`load`] of content that is in memory; `path` stands in messages.
pub(super) fn parse(bytes: &[u8], path: &Path, label: &Label) -> Result<Dataset> {
    Ok(table(bytes, path, label, None)?.1)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Input::open(path)?.read_up_to(u64::MAX)
}

/// What a test file must have in common with its training file.
struct Table {
    header: Option<Vec<String>>,
    columns: usize,
    label: usize,
    classes: Classes,
}

fn table(
    bytes: &[u8],
    path: &Path,
    label: &Label,
    like: Option<&Table>,
) -> Result<(Table, Dataset)> {
    let bad =
        |line: usize, problem: String| Error::data(path, format!("line {}", line + 1), problem);
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let Some((first, start, end)) = first_line(bytes, 0) else {
        return Err(bad(0, "the file is empty; expected rows of numbers".into()));
    };
    let line = trim(&bytes[start..end]);
    let separator = *b",;\t".iter().find(|s| line.contains(s)).unwrap_or(&b',');
    let mut fields: Vec<Cow<[u8]>> = Vec::new();
    for field in Fields::new(line, separator) {
        let column = fields.len() + 1;
        let place = format!("line {}, column {column}", first + 1);
        fields.push(field.map_err(|problem| Error::data(path, place, problem))?);
    }
    let columns = fields.len();
    if columns < 2 {
        return Err(bad(
            first,
            "1 column; expected features and a label, separated by , or ; or tab".into(),
        ));
    }
    if let Some(like) = like
        && columns != like.columns
    {
        return Err(bad(
            first,
            format!("{columns} columns; expected {}, as in training", like.columns),
        ));
    }

    let texts: Vec<String> =
        fields.iter().map(|f| String::from_utf8_lossy(f).into_owned()).collect();
    let header = match (like.and_then(|l| l.header.as_ref()), label) {
        (Some(names), _) if *names == texts => true,
        (_, Label::Name(_)) if like.is_none() => true,
        _ => !fields.iter().any(|f| is_number(f)),
    };
    if header && let Some(i) = texts.iter().position(String::is_empty) {
        return Err(bad(
            first,
            format!(
                "column {} has no name; an index that another program wrote is no feature: remove it",
                i + 1
            ),
        ));
    }
    if header
        && let Some(names) = like.and_then(|l| l.header.as_ref())
        && let Some(i) = (0..columns).find(|&i| names[i] != texts[i])
    {
        return Err(bad(
            first,
            format!("column {} is {:?}; expected {:?}, as in training", i + 1, texts[i], names[i]),
        ));
    }
    let names = header.then_some(texts);
    let label = match like {
        Some(like) => like.label,
        None => label_column(label, names.as_deref(), columns).map_err(|p| bad(first, p))?,
    };

    // Line number and place of the first row of data.
    let body = if header { end } else { start };
    let Some((row_line, row_start, row_end)) = first_line(bytes, body) else {
        return Err(bad(first, "a header and no rows; expected rows of numbers".into()));
    };
    let row_line = row_line + if header { first } else { 0 };
    let layout = Layout {
        path,
        separator,
        columns,
        label,
        names: names.as_deref().or(like.and_then(|l| l.header.as_deref())),
        first_line: row_line,
        known: like.map(|l| &l.classes),
        text: match like {
            Some(like) => matches!(like.classes, Classes::Text(_)),
            None => label_is_text(trim(&bytes[row_start..row_end]), separator, label),
        },
    };
    let rows = layout.rows(&bytes[row_start..])?;
    let classes = match &rows.classes {
        Classes::Number(n) => *n,
        Classes::Text(names) => names.len(),
    };
    if classes < 2 {
        return Err(Error::data(
            path,
            layout.column(label),
            "every row has the same label; expected at least 2 classes: is this the label column?",
        ));
    }
    let mut set = Dataset::from_arrays(rows.values, columns - 1, rows.labels, classes)
        .map_err(|e| in_file(e, path))?;
    if let Classes::Text(names) = &rows.classes {
        set = set.with_class_names(names.clone()).map_err(|e| in_file(e, path))?;
    }
    Ok((Table { header: names, columns, label, classes: rows.classes }, set))
}

/// The first line from `start` on that is not blank: its number relative to `start`'s, its start,
/// its end.
fn first_line(bytes: &[u8], start: usize) -> Option<(usize, usize, usize)> {
    let mut at = start;
    for (number, line) in bytes[start..].split(|&b| b == b'\n').enumerate() {
        if !trim(line).is_empty() {
            return Some((number, at, at + line.len()));
        }
        at += line.len() + 1;
    }
    None
}

/// Whether the label in a row of data is text; a field that cannot be read is reported with its
/// line later.
fn label_is_text(line: &[u8], separator: u8, label: usize) -> bool {
    match Fields::new(line, separator).nth(label) {
        Some(Ok(field)) => !field.is_empty() && !is_number(&field),
        _ => false,
    }
}

fn label_column(label: &Label, header: Option<&[String]>, columns: usize) -> Result<usize, String> {
    let named = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
        let names = header.unwrap_or_default();
        (0..names.len()).filter(|&i| wanted(&names[i])).collect()
    };
    match label {
        Label::Index(i) => {
            let from_start = if *i < 0 { i.checked_add(columns as i64) } else { Some(*i) };
            match from_start.and_then(|i| usize::try_from(i).ok()).filter(|&i| i < columns) {
                Some(column) => Ok(column),
                None => Err(format!(
                    "no label column {i}; expected 0..={} or -1..=-{columns}",
                    columns - 1
                )),
            }
        }
        Label::Name(name) => match named(&|n| n == name).as_slice() {
            [one] => Ok(*one),
            [] => {
                let shown: Vec<&str> =
                    header.unwrap_or_default().iter().take(12).map(String::as_str).collect();
                let more = if columns > shown.len() { " ..." } else { "" };
                Err(format!("no column {name:?}; the first line has {}{more}", shown.join(", ")))
            }
            many => Err(format!("{} columns are called {name:?}; expected one", many.len())),
        },
        Label::Auto => {
            let usual = ["label", "class", "target"];
            let wanted = |n: &str| usual.iter().any(|u| n.eq_ignore_ascii_case(u));
            match named(&wanted).as_slice() {
                [] => Ok(columns - 1),
                [one] => Ok(*one),
                many => Err(format!(
                    "{} columns could be the label; expected one of {} or its name",
                    many.len(),
                    usual.join(", ")
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Values;
    use proptest::prelude::*;

    fn load(text: &str, label: &str) -> Result<Dataset> {
        parse(text.as_bytes(), Path::new("t.csv"), &Label::from(label))
    }

    fn values(set: &Dataset) -> &[f32] {
        match set.values() {
            Values::F32(v) => v,
            Values::U8(_) => panic!("CSV gives floats"),
        }
    }

    #[test]
    fn plain_numbers() {
        let set = load("1,2.5,0\n-3e-2,+4,1\n", "").unwrap();
        assert_eq!(values(&set), [1.0, 2.5, -0.03, 4.0]);
        assert_eq!((set.labels(), set.classes(), set.shape()), (&[0, 1][..], 2, &[2][..]));
    }

    #[test]
    fn header_label_column_and_layout() {
        let want = load("1,2,0\n3,4,2\n", "-1").unwrap();
        assert_eq!(want.classes(), 3);
        for (text, label) in [
            ("a,b,c\n1,2,0\n3,4,2", "c"),
            ("c,a,b\n0,1,2\n2,3,4\n", "c"),
            ("a,Label,b\n1,0,2\n3,2,4\n", ""),
            ("1,0,2\n3,2,4\n", "1"),
            ("0,1,2\n2,3,4\n", "-3"),
            // Numbers as names, as some programs write them, are a header only when the label is
            // named.
            ("0,1,y\n1,2,0\n3,4,2\n", "y"),
            ("\u{feff}a;b;c\r\n\r\n 1 ; 2;0\r\n\r\n3;\"4\"; 2.0\r\n\r\n", ""),
            ("\"a,\"\"x\"\"\",b,c\n1,2,0\n3,4,2\n", "c"),
            ("\n\n1\t2\t0\n3\t4\t2\n", ""),
        ] {
            assert_eq!(load(text, label).unwrap(), want, "{text:?} {label}");
        }
    }

    #[test]
    fn text_labels_in_sorted_order() {
        let set = load("5.1,3.5,setosa\n6,3,\"virginica\"\n5,2,Setosa\n4,4,setosa\n", "").unwrap();
        assert_eq!(set.class_names().unwrap(), ["Setosa", "setosa", "virginica"]);
        assert_eq!(set.labels(), [1, 2, 0, 1]);
        assert_eq!(values(&set)[..2], [5.1, 3.5]);
    }

    /// Large enough for several blocks: rows keep their order, errors their line.
    #[test]
    fn many_blocks() {
        let rows = 200_000;
        let line = |r: usize| format!("{r},{}.25,c{}\n", r % 1000, r % 3);
        let text: String = (0..rows).map(line).collect();
        assert!(text.len() > 5 * lines::BLOCK);
        let set = load(&text, "").unwrap();
        assert_eq!(set.rows(), rows);
        for r in 0..rows {
            assert_eq!(values(&set)[2 * r..2 * r + 2], [r as f32, (r % 1000) as f32 + 0.25]);
            assert_eq!(set.labels()[r], (r % 3) as u32);
        }
        let broken = text.replacen("150000,", "15zero,", 1).replacen("180000,", ",", 1);
        assert_eq!(
            load(&format!("a,b,c\n\n{broken}"), "").unwrap_err().to_string(),
            "t.csv: line 150003, column 1 (a): \"15zero\"; expected a number"
        );
    }

    proptest! {
        #[test]
        fn floats_come_back(x in proptest::collection::vec(
            proptest::num::f32::NORMAL | proptest::num::f32::SUBNORMAL | proptest::num::f32::ZERO, 2..40,
        )) {
            let text: String =
                x.iter().enumerate().map(|(i, x)| format!("{},{x:?},{x:e}\n", i % 2, )).collect();
            let set = load(&text, "0").unwrap();
            let bits: Vec<u32> = values(&set).iter().map(|v| v.to_bits()).collect();
            let want: Vec<u32> = x.iter().flat_map(|v| [v.to_bits(); 2]).collect();
            prop_assert_eq!(bits, want);
        }

        #[test]
        fn never_panics(text in "[0-9a,;\"\n\t .e-]{0,60}", label in "(|a|-?[0-9])") {
            if let Ok(set) = load(&text, &label) {
                prop_assert!(set.rows() > 0 && values(&set).iter().all(|x| x.is_finite()));
            }
        }
    }
}
