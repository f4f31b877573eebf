//! Data files as people have them: whole, gzipped, oddly named, truncated, corrupt.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use twoclocks::data::{
    Dataset, Label, Normalisation, NormalisationKind, Source, Split, Values, csv, idx,
};
use twoclocks::{Error, Result};

/// A folder of its own for one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("twoclocks-data-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn idx_bytes(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, sizes.len() as u8];
    sizes.iter().for_each(|s| out.extend(s.to_be_bytes()));
    out.extend(bytes);
    out
}

const NAMES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// Four training and two test images of 3 x 2.
fn small() -> [Vec<u8>; 4] {
    [
        idx_bytes(&[4, 3, 2], &(0..24).collect::<Vec<u8>>()),
        idx_bytes(&[4], &[0, 2, 1, 2]),
        idx_bytes(&[2, 3, 2], &(100..112).collect::<Vec<u8>>()),
        idx_bytes(&[2], &[2, 0]),
    ]
}

/// Loads the small set with some files changed, as (number in [`NAMES`], name's end, bytes).
fn load_changed(changes: &[(usize, &str, Vec<u8>)]) -> (Folder, Result<Split>) {
    let folder = Folder::new();
    let files = small();
    for (i, name) in NAMES.iter().enumerate() {
        match changes.iter().find(|c| c.0 == i) {
            Some((_, end, bytes)) => folder.put(&format!("{name}{end}"), bytes),
            None => folder.put(name, &files[i]),
        };
    }
    let split = idx::load(&folder.0);
    (folder, split)
}

/// The message of an [`Error::Data`], without the folder.
fn message<T: std::fmt::Debug>(result: Result<T>, folder: &Folder) -> String {
    match result {
        Err(e @ Error::Data { .. }) => {
            e.to_string().replace(&format!("{}/", folder.0.display()), "")
        }
        other => panic!("expected a data error, got {other:?}"),
    }
}

fn bytes_of(set: &Dataset) -> &[u8] {
    match set.values() {
        Values::U8(v) => v,
        Values::F32(_) => panic!("IDX gives bytes"),
    }
}

fn check_small(split: &Split) {
    assert_eq!(split.train.shape(), [3, 2]);
    assert_eq!((split.train.classes(), split.test.classes()), (3, 3));
    assert_eq!(split.train.labels(), [0, 2, 1, 2]);
    assert_eq!(split.test.labels(), [2, 0]);
    assert!(bytes_of(&split.train).iter().copied().eq(0..24));
    assert!(bytes_of(&split.test).iter().copied().eq(100..112));
}

#[test]
fn idx_in_every_spelling() {
    for gzipped in [false, true] {
        for (from, to) in
            [("", ""), ("-idx", ".idx"), ("t10k", "test"), ("train", "emnist-letters-train")]
        {
            let folder = Folder::new();
            for (name, bytes) in NAMES.iter().zip(small()) {
                let name = name.replacen(from, to, usize::from(!from.is_empty()));
                match gzipped {
                    true => folder.put(&format!("{name}.gz"), gzip(&bytes)),
                    false => folder.put(&name, bytes),
                };
            }
            check_small(&idx::load(&folder.0).unwrap());
            let source = Source::at(&folder.0, Label::Auto).unwrap();
            assert_eq!(source, Source::Idx(folder.0.clone()));
            check_small(&source.load().unwrap());
        }
    }
}

/// The compressed copy beside a plain file is not looked at.
#[test]
fn idx_beside_its_compressed_copy() {
    for prefix in ["", "emnist-letters-"] {
        let folder = Folder::new();
        for (name, bytes) in NAMES.iter().zip(small()) {
            folder.put(&format!("{prefix}{name}"), bytes);
            folder.put(&format!("{prefix}{name}.gz"), "damaged");
        }
        check_small(&idx::load(&folder.0).unwrap());
    }
}

/// A `.gz` that is unpacked already, and a gzip file of two members, as parallel compressors write.
#[test]
fn idx_goes_by_content() {
    let [images, labels, ..] = small();
    let members = [gzip(&images[..9]), gzip(&images[9..])].concat();
    let (_folder, split) = load_changed(&[(0, "", members), (1, ".gz", labels)]);
    check_small(&split.unwrap());
}

#[test]
fn idx_header_problems() {
    let [images, labels, ..] = small();
    let check = |file: usize, end: &str, bytes: Vec<u8>, want: &str| {
        let (folder, split) = load_changed(&[(file, end, bytes)]);
        assert_eq!(message(split, &folder), format!("{}{end}: {want}", NAMES[file]));
    };
    check(
        0,
        "",
        labels.clone(),
        "byte 0: magic number 0x00000801; expected 0x00000803 (IDX images: unsigned bytes of rank 3)",
    );
    check(
        3,
        "",
        images.clone(),
        "byte 0: magic number 0x00000803; expected 0x00000801 (IDX labels: unsigned bytes of rank 1)",
    );
    check(
        0,
        ".gz",
        gzip(b"<html>"),
        "byte 0 of the decompressed content: magic number 0x3c68746d; expected 0x00000803 (IDX images: unsigned bytes of rank 3)",
    );
    check(1, "", vec![], "byte 0: the file ends; expected an IDX header of 8 bytes");
    check(
        0,
        "",
        images[..13].to_vec(),
        "byte 13: the file ends; expected an IDX header of 16 bytes",
    );
    check(0, "", idx_bytes(&[4, 0, 2], &[]), "byte 8: a dimension of 0; expected at least 1");
    check(
        2,
        "",
        idx_bytes(&[u32::MAX; 3], &[0; 12]),
        "byte 4: 4294967295 x 4294967295 x 4294967295 bytes promised, which is more than any file can hold",
    );
}

#[test]
fn idx_content_problems() {
    let [images, labels, ..] = small();
    let check = |file: usize, end: &str, bytes: &[u8], want: &str| {
        let (folder, split) = load_changed(&[(file, end, bytes.to_vec())]);
        let got = message(split, &folder);
        assert!(got.starts_with(&format!("{}{end}: {want}", NAMES[file])), "{got}");
    };
    let want = "the file ends; expected 4 x 3 x 2 bytes, up to byte 40";
    check(0, "", &images[..30], &format!("byte 30: {want}"));
    check(0, ".gz", &gzip(&images[..30]), &format!("byte 30 of the decompressed content: {want}"));
    let longer = [&images[..], &[7]].concat();
    let want = "more bytes follow; expected the end after 4 x 3 x 2 bytes";
    check(0, "", &longer, &format!("byte 40: {want}"));
    check(0, ".gz", &gzip(&longer), &format!("byte 40 of the decompressed content: {want}"));
    check(
        1,
        "",
        &idx_bytes(&[5], &[0; 5]),
        "bytes 4..8: 5 labels; expected 4, as train-images-idx3-ubyte holds so many images",
    );
    check(
        3,
        "",
        &idx_bytes(&[2], &[2, 3]),
        "byte 9 (label 1, counted from 0): label 3; expected 0..=2",
    );
    check(
        2,
        "",
        &idx_bytes(&[2, 2, 3], &[0; 12]),
        "bytes 8..16: images of [2, 3]; expected [3, 2], as in train-images-idx3-ubyte",
    );

    let whole = gzip(&images);
    for len in [2, 9, whole.len() / 2, whole.len() - 8, whole.len() - 1] {
        let (folder, split) = load_changed(&[(0, ".gz", whole[..len].to_vec())]);
        let got = message(split, &folder);
        assert!(
            got.starts_with("train-images-idx3-ubyte.gz: byte ")
                && got.ends_with(&format!("the gzip stream ends early ({len} compressed bytes)")),
            "{got}"
        );
    }
    let mut wrong_sum = whole.clone();
    wrong_sum[whole.len() - 6] ^= 1;
    check(
        0,
        ".gz",
        &wrong_sum,
        "byte 40 of the decompressed content: the gzip stream is corrupt: ",
    );
    let garbage = [&whole[..], b"garbage after the end"].concat();
    check(0, ".gz", &garbage, "byte 40 of the decompressed content: the gzip stream is corrupt: ");
    // Labels are checked by their own sum: the first flipped bit does not pass as another class.
    let mut flipped = gzip(&labels);
    flipped[14] ^= 4;
    check(1, ".gz", &flipped, "byte ");
}

/// A header that promises what the file does not hold is not believed: 16 TiB would not be granted,
/// or would be granted and end the process later.
#[test]
fn idx_header_is_not_believed() {
    let huge = idx_bytes(&[1 << 30, 128, 128], &[1, 2, 3]);
    for (end, bytes, place) in
        [("", huge.clone(), ""), (".gz", gzip(&huge), " of the decompressed content")]
    {
        let (folder, split) = load_changed(&[(0, end, bytes)]);
        assert_eq!(
            message(split, &folder),
            format!(
                "{}{end}: byte 19{place}: the file ends; expected 1073741824 x 128 x 128 bytes, up to byte \
                 17592186044432",
                NAMES[0]
            )
        );
    }
}

#[test]
fn idx_missing_folder_and_files() {
    let folder = Folder::new();
    let check = |path: &Path, want: &[&str]| {
        for result in [idx::load(path).map(|_| ()), Source::at(path, Label::Auto).map(|_| ())] {
            let got = message(result, &folder);
            assert!(want.iter().all(|w| got.contains(w)), "{got}");
        }
    };
    check(&folder.0.join("absent"), &["absent: folder: no such"]);
    check(&folder.0, &["folder: ", "looked for train-images-idx3-ubyte, train-images.idx3-ubyte"]);
    let file = folder.put("file", "");
    assert!(message(idx::load(file), &folder).contains("file: folder: a file; expected a folder"));
    for (name, bytes) in NAMES.iter().zip(small()).take(3) {
        folder.put(name, bytes);
    }
    let got = message(idx::load(&folder.0), &folder);
    let list = "t10k-labels-idx1-ubyte, t10k-labels.idx1-ubyte, t10k-labels-idx1-ubyte.gz";
    assert!(got.contains(list), "{got}");
    // Two sets in one folder: taking either would be a guess.
    for part in ["letters", "digits"] {
        folder.put(&format!("emnist-{part}-{}", NAMES[3].replace("t10k", "test")), &small()[3]);
    }
    let got = message(idx::load(&folder.0), &folder);
    assert!(
        got.contains(
            "2 files could be meant: emnist-digits-test-labels-idx1-ubyte, emnist-letters"
        ),
        "{got}"
    );
}

#[test]
fn idx_with_given_classes() {
    let folder = Folder::new();
    let [images, labels, ..] = small();
    let (images, labels) = (folder.put("i", images), folder.put("l", labels));
    assert_eq!(idx::load_files(&images, &labels, Some(10)).unwrap().classes(), 10);
    assert_eq!(
        message(idx::load_files(&images, &labels, Some(2)), &folder),
        "l: byte 9 (label 1, counted from 0): label 2; expected 0..=1"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn idx_round_trip(
        (height, width, train, test) in (1u32..9, 1u32..9).prop_flat_map(|(h, w)| {
            let row = (proptest::collection::vec(any::<u8>(), (h * w) as usize), any::<u8>());
            let rows = |row| proptest::collection::vec(row, 1..9);
            (Just(h), Just(w), rows(row.clone()), rows(row))
        }),
        gzipped: bool,
    ) {
        let folder = Folder::new();
        let largest = train.iter().map(|r| r.1).max().unwrap();
        let test: Vec<_> = test.into_iter().map(|(x, l)| (x, l.min(largest))).collect();
        for (rows, names) in [(&train, &NAMES[..2]), (&test, &NAMES[2..])] {
            let n = rows.len() as u32;
            let pixels: Vec<u8> = rows.iter().flat_map(|r| r.0.clone()).collect();
            let labels: Vec<u8> = rows.iter().map(|r| r.1).collect();
            for (name, bytes) in names.iter().zip([
                idx_bytes(&[n, height, width], &pixels),
                idx_bytes(&[n], &labels),
            ]) {
                folder.put(name, if gzipped { gzip(&bytes) } else { bytes });
            }
        }
        let split = idx::load(&folder.0).unwrap();
        for (rows, set) in [(&train, &split.train), (&test, &split.test)] {
            prop_assert_eq!(set.shape(), &[height as usize, width as usize]);
            prop_assert_eq!(set.classes(), usize::from(largest) + 1);
            for (i, (x, label)) in rows.iter().enumerate() {
                let features = set.features();
                prop_assert_eq!(&bytes_of(set)[i * features..(i + 1) * features], &x[..]);
                prop_assert_eq!(set.labels()[i], u32::from(*label));
            }
        }
    }
}

/// Cut or flipped anywhere, a gzipped file is refused or read as it was: never a panic, never other
/// values.
#[test]
fn idx_damaged_gzip() {
    let folder = Folder::new();
    let [images, labels, ..] = small();
    let whole = gzip(&images);
    let labels = folder.put("labels", labels);
    let undamaged = idx::load_files(&folder.put("images", &whole), &labels, None).unwrap();
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for _ in 0..500 {
        let mut bytes = whole.clone();
        for _ in 0..draw(3) {
            let at = draw(bytes.len());
            bytes[at] ^= 1 << draw(8);
        }
        if draw(2) == 0 {
            bytes.truncate(draw(bytes.len()));
        }
        match idx::load_files(&folder.put("images", &bytes), &labels, None) {
            Ok(set) => assert_eq!(set, undamaged),
            Err(Error::Data { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 250, "{refused}");
}

#[test]
fn csv_problems() {
    let folder = Folder::new();
    let check = |text: &str, label: &str, want: &str| {
        for (name, bytes) in
            [("d.csv", text.as_bytes().to_vec()), ("d.csv.gz", gzip(text.as_bytes()))]
        {
            let path = folder.put(name, bytes);
            let got = message(csv::load(&path, &Label::from(label)), &folder);
            assert_eq!(got, format!("{name}: {want}"));
        }
    };
    check("a,b,y\n1,x,0\n2,3,1\n", "y", "line 2, column 2 (b): \"x\"; expected a number");
    check("1,2,0\n2,,1\n", "", "line 2, column 2: empty field; expected a number");
    for x in ["NaN", "inf", "-Infinity", "1e39"] {
        let want = format!("line 2, column 1: {x:?}; expected a finite number of 32 bits");
        check(&format!("1,2,0\n{x},2,1\n"), "", &want);
    }
    check("1,2,0\n1,1\n", "", "line 2: 2 fields; expected 3");
    check("a,b,y\n1,2,0\n\n1,1,2,1\n", "", "line 4: 4 fields; expected 3");
    check("a,b,y\n1,2,0\n1,1,\n", "", "line 3, column 3 (y): empty field; expected a label");
    for label in ["0.5", "-1", "1e300"] {
        let want = format!("line 2, column 1: label {label:?}; expected an integer 0, 1, 2 ...");
        check(&format!("0,1\n{label},2\n"), "0", &want);
    }
    check("0,1\n9000000,2\n", "0", "line 2, column 1: label \"9000000\"; expected 0..=1048575");
    check(
        "0,1\nsix,2\n",
        "0",
        "line 2, column 1: label \"six\"; expected an integer 0, 1, 2 ..., as in the first row",
    );
    check(
        "0,1,label\n1,2,0\n",
        "",
        "line 2, column 3: label \"0\"; expected a text that is no number, as in the first row (name the label column \
         if the first line is a header)",
    );
    check("a,b,y\n1,2,0\n", "z", "line 1: no column \"z\"; the first line has a, b, y");
    check("y,b,y\n1,2,0\n", "y", "line 1: 2 columns are called \"y\"; expected one");
    check("1,2,0\n", "3", "line 1: no label column 3; expected 0..=2 or -1..=-3");
    check("1,2,0\n", "-4", "line 1: no label column -4; expected 0..=2 or -1..=-3");
    check(
        "1,2,0\n3,4,0\n",
        "",
        "column 3: every row has the same label; expected at least 2 classes: is this the label column?",
    );
    check(
        ",a,y\n0,1,0\n",
        "y",
        "line 1: column 1 has no name; an index that another program wrote is no feature: remove it",
    );
    check("\n\n", "", "line 1: the file is empty; expected rows of numbers");
    check("a,b\n", "", "line 1: a header and no rows; expected rows of numbers");
    check(
        "1 2 0\n",
        "",
        "line 1: 1 column; expected features and a label, separated by , or ; or tab",
    );
    check(
        "a,b,y\n1,\"2\n3\",0\n",
        "",
        "line 2, column 2: \"\\\"2\": a quote that is not closed on its line"
            .replace("column 2", "column 2 (b)")
            .as_str(),
    );
    check("1,\"2\"3,0\n", "", "line 1, column 2: \"3\" after a closing quote");
    let absent = csv::load(folder.0.join("absent.csv"), &Label::Auto).unwrap_err().to_string();
    assert!(absent.contains("absent.csv: cannot open"), "{absent}");
    let whole = gzip(b"1,2,0\n2,3,1\n");
    let cut = folder.put("cut.csv.gz", &whole[..whole.len() - 3]);
    assert!(message(csv::load(cut, &Label::Auto), &folder).contains("gzip stream ends early"));
}

#[test]
fn csv_train_and_test() {
    let folder = Folder::new();
    folder.put("my_train.csv", "a,b,kind\n1,2,cat\n3,4,dog\n5,6,cat\n");
    let load = |test: &[u8]| {
        folder.put("my_test.csv.gz", gzip(test));
        Source::at(&folder.0, Label::Auto).and_then(|s| s.load())
    };
    for test in ["a,b,kind\n7,8,dog\n", "7,8,dog\n"] {
        let split = load(test.as_bytes()).unwrap();
        assert_eq!((split.train.labels(), split.test.labels()), (&[0, 1, 0][..], &[1][..]));
        assert_eq!(split.test.class_names().unwrap(), ["cat", "dog"]);
    }
    let check = |test: &str, want: &str| {
        let got = message(load(test.as_bytes()), &folder);
        assert_eq!(got, format!("my_test.csv.gz: {want}"));
    };
    check(
        "a,b,kind\n7,8,cow\n",
        "line 2, column 3 (kind): label \"cow\"; expected one of the 2 in training",
    );
    check("b,a,kind\n7,8,cat\n", "line 1: column 1 is \"b\"; expected \"a\", as in training");
    check("7,cat\n", "line 1: 2 columns; expected 3, as in training");

    folder.put("my_train.csv", "1,2,0\n3,4,1\n");
    check("7,8,1\n7,8,2\n", "line 2, column 3: label \"2\"; expected 0..=1");
}

/// One file: a fifth is set aside, the same rows every time.
#[test]
fn csv_alone_is_split() {
    let folder = Folder::new();
    let text: String = (0..50).map(|r| format!("{r},{}\n", r % 2)).collect();
    let path = folder.put("table.csv", text);
    let source = Source::at(&path, Label::from("1")).unwrap();
    let split = source.load().unwrap();
    assert_eq!((split.train.rows(), split.test.class_counts()), (40, vec![5, 5]));
    assert_eq!(split.train.name(), "table");
    assert_eq!(source.load().unwrap(), split);
}

#[test]
fn folder_of_both_kinds_is_refused() {
    let folder = Folder::new();
    folder.put(NAMES[0], "");
    folder.put("train.csv", "");
    let got = message(Source::at(&folder.0, Label::Auto), &folder);
    assert!(got.contains("holds both IDX and CSV"), "{got}");
}

#[test]
fn mnist() {
    let base = std::env::var_os("TWOCLOCKS_DATA").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/twoclocks"))
    });
    let Some(dir) = base.map(|b| b.join("mnist")).filter(|d| d.is_dir()) else {
        println!("SKIPPED: no MNIST under TWOCLOCKS_DATA or ~/.cache/twoclocks");
        return;
    };
    let Split { train, test } = Source::at(dir, Label::Auto).unwrap().load().unwrap();
    assert_eq!((train.rows(), test.rows(), train.classes()), (60_000, 10_000, 10));
    assert_eq!((train.shape(), train.name()), (&[28, 28][..], "mnist"));
    assert_eq!(train.labels()[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
    assert_eq!(test.labels()[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    let n = Normalisation::new(NormalisationKind::Global, &train);
    let std = 1.0 / f64::from(n.scale[0]);
    let mean = -f64::from(n.shift[0]) * std;
    assert!((mean - 33.3184).abs() <= 5e-5, "{mean}");
    assert!((std / 255.0 - 0.3081).abs() <= 5e-5, "{std}");
    // The corners are black in every training image.
    let n = Normalisation::new(NormalisationKind::PerFeature, &train);
    assert_eq!((n.scale[0], n.shift[0]), (0.0, 0.0));
    assert!(n.scale.iter().chain(&n.shift).all(|x| x.is_finite()));
    let n = Normalisation::new(NormalisationKind::Centred, &train);
    assert_eq!((n.scale[0], n.shift[0]), (0.0, 0.0));
    // Less than 0.3081: each pixel's own mean is taken away.
    let std = 1.0 / f64::from(n.scale[14 * 28 + 14]) / 255.0;
    assert!((std - 0.2593).abs() <= 5e-5, "{std}");
}
