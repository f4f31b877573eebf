//! The rooms of the house: who may import whom, where unsafe code may stand, and what a folder of
//! an operation holds. Reads `src/` as text, with comments and strings taken out.
//!
//! [`ROOMS`] is the plan. A change of it is a change of the architecture: say why in
//! ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module at the crate's root.
struct Room {
    name: &'static str,
    /// Rooms that its code may name.
    may: &'static [&'static str],
    /// Rooms that its test code (`#[cfg(test)]`) may name beside those.
    tests_may: &'static [&'static str],
}

const fn room(name: &'static str, may: &'static [&'static str]) -> Room {
    Room { name, may, tests_may: &[] }
}

/// Every room, lowest first: a row may name rows above it only. `src/bin` is a crate of its own on
/// top of all, which nothing can import.
const ROOMS: &[Room] = &[
    room("error", &[]),
    room("random", &[]),
    room("tensor", &["error"]),
    room("device", &["error", "random", "tensor"]),
    room("gemm", &["error", "random", "tensor", "device"]),
    // The unit tests of an operation record it on a tape: that is how it is run.
    Room {
        name: "ops",
        may: &["error", "random", "tensor", "device", "gemm"],
        tests_may: &["tape"],
    },
    room("tape", &["error", "random", "tensor", "device", "gemm", "ops"]),
    room("optim", &["error", "random", "tensor", "device", "gemm", "ops", "tape"]),
    room("nn", &["error", "random", "tensor", "device", "gemm", "ops", "tape"]),
    room("data", &["error", "random", "tensor"]),
    // Figures in, figures out: `gemm` for the Gram matrices of weights. Tests draw noise.
    Room { name: "clocks", may: &["gemm"], tests_may: &["random"] },
    room("runs", &["error", "random", "tensor"]),
    room(
        "train",
        &[
            "error", "random", "tensor", "device", "gemm", "ops", "tape", "optim", "nn", "data",
            "clocks", "runs",
        ],
    ),
    room(
        "experiments",
        &[
            "error", "random", "tensor", "device", "gemm", "ops", "tape", "optim", "nn", "data",
            "clocks", "runs",
        ],
    ),
];

/// Operations without a kernel: their output is their input's memory seen otherwise
/// (`Operation::view`), so there is nothing to run.
const VIEWS: &[&str] = &["reshape"];

/// Text of a source file, cut into words, `::` and single characters; literals are `""`.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut i, mut line) = (Vec::new(), 0, 1);
    while i < chars.len() {
        let start = i;
        let mut text = None;
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            '"' => {
                i = after_string(&chars, i);
                text = Some("\"\"".to_owned());
            }
            // A character, or a lifetime: only the former has a closing quote.
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
                text = Some("\"\"".to_owned());
            }
            '\'' if at(i + 2) == '\'' => {
                i += 3;
                text = Some("\"\"".to_owned());
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                text = Some("::".to_owned());
            }
            c if is_word(c) => {
                while is_word(at(i)) {
                    i += 1;
                }
                let word: String = chars[start..i].iter().collect();
                let is_prefix = ["r", "b", "br", "c", "cr"].contains(&word.as_str());
                let mut quote = i;
                while word.contains('r') && at(quote) == '#' {
                    quote += 1;
                }
                if is_prefix && at(quote) == '"' {
                    i = match word.contains('r') {
                        true => after_raw_string(&chars, quote, quote - i),
                        false => after_string(&chars, quote),
                    };
                    text = Some("\"\"".to_owned());
                } else {
                    text = Some(word);
                }
            }
            c => {
                i += 1;
                text = (!c.is_whitespace()).then(|| c.to_string());
            }
        }
        found.extend(text.map(|text| Token { text, line }));
        line += chars[start..i.min(chars.len())].iter().filter(|&&c| c == '\n').count();
    }
    found
}

/// The place behind the string that opens at `open`.
fn after_string(chars: &[char], open: usize) -> usize {
    let mut i = open + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The place behind the raw string that opens at `open`, with so many `#`.
fn after_raw_string(chars: &[char], open: usize, hashes: usize) -> usize {
    let mut i = open + 1;
    while i < chars.len() {
        let closes = chars[i] == '"'
            && chars[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes;
        i += 1;
        if closes {
            return i + hashes;
        }
    }
    i
}

/// A path that code names, with the name that a `use` gives it.
#[derive(Debug)]
struct Named {
    segments: Vec<String>,
    alias: Option<String>,
    line: usize,
}

/// Reads the path, or tree of paths, at `i`; returns the place behind it.
fn read_tree(tokens: &[Token], mut i: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let mut segments = prefix.to_vec();
    let line = tokens.get(i).map_or(0, |token| token.line);
    loop {
        match text(i) {
            "{" => {
                i += 1;
                while i < tokens.len() && text(i) != "}" {
                    i = read_tree(tokens, i, &segments, found);
                    if text(i) == "," {
                        i += 1;
                    }
                }
                return i + 1;
            }
            // A `self` within braces is the module before them.
            "self" if !segments.is_empty() => i += 1,
            word => {
                segments.push(word.to_owned());
                i += 1;
            }
        }
        let goes_on = text(i) == "::"
            && (text(i + 1).starts_with(|c: char| c.is_alphabetic() || c == '_')
                || ["{", "*"].contains(&text(i + 1)));
        if !goes_on {
            break;
        }
        i += 1;
    }
    let mut alias = None;
    if text(i) == "as" && !prefix.is_empty() {
        alias = Some(text(i + 1).to_owned());
        i += 2;
    }
    found.push(Named { segments, alias, line });
    i
}

/// Which tokens are test code: items under a `cfg` attribute that mentions `test`.
fn test_code(tokens: &[Token]) -> Vec<bool> {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let mut is_test = vec![false; tokens.len()];
    for i in 0..tokens.len() {
        if !(text(i) == "#" && text(i + 1) == "[" && text(i + 2) == "cfg") {
            continue;
        }
        let end = closing(tokens, i + 1);
        let mentions = (i..end).any(|j| text(j) == "test");
        if !mentions || (i..end).any(|j| text(j) == "not") {
            continue;
        }
        let mut j = end + 1;
        while text(j) == "#" {
            j = closing(tokens, j + 1) + 1;
        }
        let is_use = text(j) == "use" || (text(j) == "pub" && text(j + 1) == "use");
        while j < tokens.len() && text(j) != ";" {
            if ["(", "[", "{"].contains(&text(j)) {
                let is_body = text(j) == "{" && !is_use;
                j = closing(tokens, j);
                if is_body {
                    break;
                }
            }
            j += 1;
        }
        let end = (j + 1).min(tokens.len());
        is_test[i..end].fill(true);
    }
    is_test
}

/// The place of the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    tokens.len()
}

/// A source file of the library.
struct File {
    /// Path below `src/`, with `/`.
    path: String,
    /// Its module: `["ops", "copy", "cpu"]`.
    module: Vec<String>,
    tokens: Vec<Token>,
}

impl File {
    fn new(path: &str, source: &str) -> File {
        let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
        let name = module.pop().unwrap_or_default();
        match name.trim_end_matches(".rs") {
            "mod" | "lib" => {}
            name => module.push(name.to_owned()),
        }
        File { path: path.to_owned(), module, tokens: tokens(source) }
    }

    /// Modules that this file declares as test code: `#[cfg(test)] mod tests;`.
    fn test_modules(&self) -> Vec<Vec<String>> {
        let is_test = test_code(&self.tokens);
        let declares = |i: usize| {
            is_test[i]
                && self.tokens[i].text == "mod"
                && self.tokens.get(i + 2).is_some_and(|token| token.text == ";")
        };
        let named = |i: usize| [&self.module[..], &[self.tokens[i + 1].text.clone()]].concat();
        (0..self.tokens.len()).filter(|&i| declares(i)).map(named).collect()
    }

    /// What is wrong with the paths that this file names. `exports` says which room a name at the
    /// crate's root comes from, `tests` which modules are test code as a whole.
    fn violations(&self, exports: &BTreeMap<String, String>, tests: &[Vec<String>]) -> Vec<String> {
        let text = |i: usize| self.tokens.get(i).map_or("", |token| token.text.as_str());
        let mut wrong = Vec::new();
        let Some(room) = ROOMS.iter().find(|room| self.module.first() == Some(&room.name.into()))
        else {
            return vec![format!("{}: is in no room of the table", self.path)];
        };
        let all_test = tests.iter().any(|test| self.module.starts_with(test));
        let is_test = test_code(&self.tokens);
        // Modules that are open within the file, each with the depth of its brace.
        let mut open: Vec<(String, usize)> = Vec::new();
        let (mut i, mut depth) = (0, 0_usize);
        while i < self.tokens.len() {
            let starts = ["crate", "super", "self"].contains(&text(i))
                && text(i + 1) == "::"
                && (i == 0 || text(i - 1) != "::");
            if !starts {
                match text(i) {
                    "{" => depth += 1,
                    "}" => {
                        depth = depth.saturating_sub(1);
                        open.retain(|(_, opened)| *opened <= depth);
                    }
                    "mod" if text(i + 2) == "{" => open.push((text(i + 1).to_owned(), depth + 1)),
                    _ => {}
                }
                i += 1;
                continue;
            }
            let mut named = Vec::new();
            let in_test = all_test || is_test[i];
            i = read_tree(&self.tokens, i, &[], &mut named);
            for named in named {
                let inner = open.iter().map(|(name, _)| name.clone());
                let here: Vec<String> = self.module.iter().cloned().chain(inner).collect();
                if let Some(problem) = judge(room, &here, &named.segments, in_test, exports) {
                    let path = named.segments.join("::");
                    wrong.push(format!("{}:{}: `{path}` {problem}", self.path, named.line));
                }
            }
        }
        wrong
    }
}

/// What is wrong with code in the module `here` of `room` naming the path `segments`.
fn judge(
    room: &Room,
    here: &[String],
    segments: &[String],
    in_test: bool,
    exports: &BTreeMap<String, String>,
) -> Option<String> {
    let mut path = here.to_vec();
    for (i, segment) in segments.iter().enumerate() {
        match segment.as_str() {
            "crate" if i == 0 => path.clear(),
            "self" if i == 0 => {}
            "super" => drop(path.pop()),
            name => path.push(name.to_owned()),
        }
    }
    let name = path.first().map_or("*", String::as_str);
    let target = match ROOMS.iter().find(|room| room.name == name) {
        Some(found) => found.name,
        None => match exports.get(name) {
            Some(found) => found.as_str(),
            None => return Some(format!("names `{name}` at the root, which is no room")),
        },
    };
    let allowed = target == room.name
        || room.may.contains(&target)
        || (in_test && room.tests_may.contains(&target));
    (!allowed).then(|| format!("is of room {target}, which {} may not import", room.name))
}

/// Which room each name that `lib.rs` re-exports comes from.
fn exports(lib: &File) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for i in 0..lib.tokens.len() {
        let text = |j: usize| lib.tokens.get(j).map_or("", |token| token.text.as_str());
        if text(i) != "pub" || text(i + 1) != "use" {
            continue;
        }
        let (mut named, skipped) = (Vec::new(), ["crate", "self"].contains(&text(i + 2)));
        read_tree(&lib.tokens, i + 2, &[], &mut named);
        for named in named {
            let path = &named.segments[usize::from(skipped)..];
            let last = path.last().cloned().unwrap_or_default();
            assert_ne!(last, "*", "lib.rs:{}: re-export names, not all of a room", named.line);
            exports.insert(named.alias.unwrap_or(last), path[0].clone());
        }
    }
    exports
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn collect(folder: &Path, files: &mut Vec<File>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.expect("an entry of src").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).expect("a source file is UTF-8");
            let below: Vec<String> = path
                .strip_prefix(src())
                .expect("below src")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            files.push(File::new(&below.join("/"), &source));
        }
    }
}

/// All files of the library: `src` without the command.
fn library() -> Vec<File> {
    let mut files = Vec::new();
    collect(&src(), &mut files);
    files.retain(|file| !file.path.starts_with("bin/"));
    assert!(files.len() > 50, "found {} source files only", files.len());
    files
}

#[test]
fn the_table_is_in_order_and_complete() {
    let files = library();
    for (i, room) in ROOMS.iter().enumerate() {
        for lower in room.may {
            let is_above = ROOMS[..i].iter().any(|row| row.name == *lower);
            assert!(is_above, "{} may name {lower}, which is not above it", room.name);
        }
        let exists = files.iter().any(|file| file.module.first() == Some(&room.name.into()));
        assert!(exists, "the room {} is in the table and not in src", room.name);
    }
}

#[test]
fn nothing_lower_imports_anything_higher() {
    let files = library();
    let lib = files.iter().find(|file| file.path == "lib.rs").expect("lib.rs");
    let exports = exports(lib);
    let tests: Vec<_> = files.iter().flat_map(File::test_modules).collect();
    let wrong: Vec<String> = files
        .iter()
        .filter(|file| file.path != "lib.rs")
        .flat_map(|file| file.violations(&exports, &tests))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether unsafe code may be allowed again in a file below `src/`.
fn may_be_unsafe(path: &str) -> bool {
    match path.split('/').collect::<Vec<_>>()[..] {
        ["device" | "gemm", ..] => true,
        ["ops", _, file] => file == "cpu.rs" || file == "cuda.rs",
        ["ops", _, folder, ..] => folder == "cpu" || folder == "cuda",
        _ => false,
    }
}

/// Whether the file turns the lint `unsafe_code` off or down.
fn allows_unsafe(file: &File) -> bool {
    let text = |i: usize| file.tokens[i].text.as_str();
    (0..file.tokens.len()).any(|i| {
        ["allow", "expect", "warn"].contains(&text(i))
            && file.tokens.get(i + 1).is_some_and(|token| token.text == "(")
            && (i..closing(&file.tokens, i + 1)).any(|j| text(j) == "unsafe_code")
    })
}

#[test]
fn unsafe_code_stands_where_the_plan_allows_it() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("Cargo.toml");
    assert!(
        manifest.lines().any(|line| line == "unsafe_code = \"deny\""),
        "Cargo.toml does not deny unsafe code"
    );
    let mut files = Vec::new();
    collect(&src(), &mut files);
    let wrong: Vec<&str> = files
        .iter()
        .filter(|file| allows_unsafe(file) && !may_be_unsafe(&file.path))
        .map(|file| file.path.as_str())
        .collect();
    assert!(wrong.is_empty(), "these files may not allow unsafe code: {wrong:?}");
}

/// The names in `operations! { ... }` of `ops/mod.rs`.
fn operations(ops: &File) -> BTreeSet<String> {
    let is = |i: usize, what: &str| ops.tokens.get(i).is_some_and(|token| token.text == what);
    let start = (0..ops.tokens.len())
        .find(|&i| is(i, "operations") && is(i + 1, "!") && is(i + 2, "{"))
        .expect("ops/mod.rs has a table `operations! { ... }`");
    let names = &ops.tokens[start + 3..closing(&ops.tokens, start + 2)];
    names.iter().filter(|token| token.text != ",").map(|token| token.text.clone()).collect()
}

#[test]
fn every_folder_of_an_operation_is_in_the_table_and_whole() {
    let ops = src().join("ops");
    let source = fs::read_to_string(ops.join("mod.rs")).expect("ops/mod.rs");
    let table = operations(&File::new("ops/mod.rs", &source));
    let folders: BTreeSet<String> = fs::read_dir(&ops)
        .expect("src/ops")
        .map(|entry| entry.expect("an entry of src/ops").path())
        .filter(|path| path.join("mod.rs").is_file())
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    assert_eq!(folders, table, "folders (left) against the table (right)");
    for name in &folders {
        assert!(ops.join(name).join("naive.rs").is_file(), "{name} has no oracle, naive.rs");
        let has_kernel = ops.join(name).join("cpu.rs").is_file();
        let is_view = VIEWS.contains(&name.as_str());
        assert!(has_kernel != is_view, "{name}: cpu.rs is there: {has_kernel}, a view: {is_view}");
    }
    for view in VIEWS {
        let path = ops.join(view).join("mod.rs");
        let source =
            fs::read_to_string(path).unwrap_or_else(|e| panic!("the view {view}, mod.rs: {e}"));
        let found = tokens(&source).windows(2).any(|w| w[0].text == "fn" && w[1].text == "view");
        assert!(found, "{view} is listed as a view and has no `fn view`");
    }
}

/// Violations of a source text at a path, with `Tape` and `Var` re-exported at the root.
fn check(path: &str, source: &str) -> Vec<String> {
    let lib = File::new("lib.rs", "pub use ops::{Recorder, Var as V}; pub use tape::Tape;");
    let file = File::new(path, source);
    let tests = file.test_modules();
    file.violations(&exports(&lib), &tests)
}

#[test]
fn the_checker_finds_planted_violations() {
    for (path, source, line) in [
        ("ops/copy/mod.rs", "use crate::tape::Tape;", 1),
        ("ops/copy/mod.rs", "\n\nuse crate::{error::Error, tape::{self, Store}};", 3),
        ("ops/copy/mod.rs", "use crate::Tape;", 1),
        ("ops/copy/mod.rs", "fn f() {\n    crate::nn::linear::<u8>(1);\n}", 2),
        ("ops/copy/cpu.rs", "use super::super::super::train::Trainer;", 1),
        ("ops/copy/cpu.rs", "mod a { mod b { use super::super::super::super::super::nn::L; } }", 1),
        ("ops/mod.rs", "mod a {} use super::train;", 1),
        ("device/mod.rs", "fn f<'a>(c: char) -> bool { c == '\"' || crate::ops::g(c) }", 1),
        ("device/mod.rs", "const S: &str = r#\"\"\n\"#; use crate::ops::Var;", 2),
        ("device/mod.rs", "use crate::V;", 1),
        ("data/mod.rs", "/* /* */ */ pub(in crate::runs) struct A;", 1),
        ("data/mod.rs", "use crate::Unheard;", 1),
        ("tensor.rs", "use crate::*;", 1),
        ("tape/mod.rs", "macro_rules! m { () => { $crate::nn::f() } }", 1),
        // Test code of operations may use the tape, and nothing else above.
        ("ops/copy/mod.rs", "#[cfg(test)]\nmod tests { use crate::nn::Linear; }", 2),
        ("ops/copy/mod.rs", "#[cfg(test)] mod tests {} use crate::tape::Tape;", 1),
        ("ops/copy/mod.rs", "#[cfg(not(test))] use crate::tape::Tape;", 1),
        ("weather/mod.rs", "", 0),
    ] {
        let wrong = check(path, source);
        assert!(!wrong.is_empty(), "not found in {path}: {source}");
        let place = if line == 0 { format!("{path}: ") } else { format!("{path}:{line}: ") };
        assert!(wrong.iter().any(|text| text.starts_with(&place)), "{wrong:?} for {source}");
    }
}

#[test]
fn the_checker_accepts_what_is_allowed() {
    for (path, source) in [
        ("ops/copy/mod.rs", "use crate::error::Result;\nuse crate::device::cpu::{Launch, Isa};"),
        ("ops/copy/cpu.rs", "use super::Kind; use super::super::layout::index; use crate::V;"),
        ("ops/copy/mod.rs", "// use crate::tape::Tape;\n/// [`crate::nn`]\n/* crate::nn::x */"),
        ("ops/copy/mod.rs", "const S: &str = \"crate::nn::x \\\" crate::nn::y\";"),
        ("ops/copy/mod.rs", "const S: &[u8] = br##\"\"# crate::nn::x\"##;"),
        ("ops/copy/mod.rs", "fn f(c: char) -> bool { c == '\\'' || c == '\"' }"),
        (
            "ops/copy/mod.rs",
            "#[cfg(test)]\nmod tests { use super::*; use crate::{Tape, tape::S}; }",
        ),
        ("ops/copy/mod.rs", "#[cfg(test)]\n#[rustfmt::skip]\nuse crate::tape::{Store, Tape};"),
        ("nn/layers.rs", "use super::Module; use crate::tape::Tape; pub(crate) fn f() {}"),
        ("nn/layers.rs", "fn f() { let x = self::g::<u8>(); other::crate_name::h(); }"),
        ("train/run.rs", "use crate::optim; use crate::runs::{Done, Row}; use crate::data;"),
    ] {
        assert_eq!(check(path, source), Vec::<String>::new(), "{source}");
    }
    // A file that another one declares as test code is test code.
    let parent = File::new("ops/copy/mod.rs", "#[cfg(test)] mod tests;");
    let child = File::new("ops/copy/tests.rs", "use crate::tape::Tape;");
    let lib = File::new("lib.rs", "");
    assert_eq!(child.violations(&exports(&lib), &parent.test_modules()), Vec::<String>::new());
    assert_eq!(child.violations(&exports(&lib), &[]).len(), 1);
}

#[test]
fn the_checker_knows_where_unsafe_code_may_stand() {
    for path in ["device/cpu/team.rs", "gemm/mod.rs", "ops/copy/cpu.rs", "ops/copy/cuda.rs"] {
        assert!(may_be_unsafe(path), "{path}");
    }
    for path in ["ops/copy/mod.rs", "ops/cpu.rs", "tape/cpu.rs", "lib.rs", "bin/x/main.rs"] {
        assert!(!may_be_unsafe(path), "{path}");
    }
    let planted = |source| allows_unsafe(&File::new("nn/mod.rs", source));
    assert!(planted("#![allow(unsafe_code)]"));
    assert!(planted("#[expect(dead_code, unsafe_code)] fn f() {}"));
    assert!(!planted("#![deny(unsafe_code)] // allow(unsafe_code)"));
}

#[test]
fn the_table_of_operations_is_read() {
    let source = "macro_rules! operations { () => {} }\noperations! { copy, // reduce,\n  add, }";
    let names: Vec<String> = operations(&File::new("ops/mod.rs", source)).into_iter().collect();
    assert_eq!(names, ["add", "copy"]);
}
