//! IDX, the format of MNIST and its look-alikes (Fashion-MNIST, KMNIST, EMNIST ...).
//!
//! A file is a big-endian header and then bytes: magic `0x00000803` for images (count, height,
//! width follow, 32 bits each) and `0x00000801` for labels (count follows), as described at
//! <http://yann.lecun.com/exdb/mnist/>. Files may be gzipped.

use std::path::{Path, PathBuf};

use super::dataset::{Dataset, Split, in_file};
use super::input::{Input, find, name_of};
use crate::error::{Error, Result};

/// The four files of a folder.
struct Files {
    train_images: PathBuf,
    train_labels: PathBuf,
    test_images: PathBuf,
    test_labels: PathBuf,
}

/// Loads the training and test images in the folder `dir`.
///
/// Looks for `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
/// `t10k-labels-idx1-ubyte` (or `test-` for `t10k-`), each also spelt with `.idx` for `-idx`, each
/// also with `.gz`; the plain file is taken when both are there. A prefix that ends in `-` or `_`
/// is allowed where it leaves no doubt.
///
/// The number of classes is 1 + the largest training label: images carry any labels, and EMNIST's
/// letters start at 1. Rows have the shape `[height, width]`, values are bytes.
///
/// # Errors
/// [`Error::Data`] naming the file, the byte and what was found there: a missing folder or file, a
/// wrong magic number, a file that is shorter or longer than its header promises, a corrupt gzip
/// stream, as many labels as there are not images, test images of another size, a test label that
/// no training row has room for. [`Error::Io`] when the operating system refuses.
pub fn load(dir: impl AsRef<Path>) -> Result<Split> {
    let dir = dir.as_ref();
    let files = files(dir)?;
    // Decompression takes most of the time; the larger file hides the smaller.
    let (train, test) =
        rayon::join(|| read_images(&files.train_images), || read_images(&files.test_images));
    let (train, test) = (train?, test?);
    if train.shape != test.shape {
        return Err(Error::data(
            &files.test_images,
            "bytes 8..16",
            format!(
                "images of {:?}; expected {:?}, as in {}",
                test.shape,
                train.shape,
                files.train_images.display()
            ),
        ));
    }
    let train = with_labels(train, &files.train_images, &files.train_labels, None)?;
    let classes = Some(train.classes());
    let test = with_labels(test, &files.test_images, &files.test_labels, classes)?;
    let name = name_of(dir);
    Ok(Split { train: train.with_name(&name), test: test.with_name(name) })
}

/// Whether the folder `dir` holds a file named like training images.
pub(super) fn is_here(dir: &Path) -> Result<bool> {
    Ok(find(dir, &names(&["train"], "images", 3))?.is_some())
}

/// Loads one file of images and its file of labels.
///
/// `classes` is the number of classes that labels may name; without it, 1 + the largest label.
///
/// # Errors
/// As [`load`], and [`Error::Data`] naming the byte of a label that is not below `classes`.
pub fn load_files(images: &Path, labels: &Path, classes: Option<usize>) -> Result<Dataset> {
    with_labels(read_images(images)?, images, labels, classes)
}

/// Pixels `[count, height, width]` and the shape of one image.
struct Images {
    shape: [usize; 2],
    count: usize,
    pixels: Vec<u8>,
}

fn files(dir: &Path) -> Result<Files> {
    let there = dir.try_exists().map_err(|e| Error::io("find", dir, e))?;
    if !there || !dir.is_dir() {
        let found = if there { "a file" } else { "no such folder" };
        return Err(Error::data(
            dir,
            "folder",
            format!("{found}; expected a folder with train-images-idx3-ubyte and its three kin"),
        ));
    }
    let file = |parts: &[&str], what, dimensions| {
        let names = names(parts, what, dimensions);
        find(dir, &names)?.ok_or_else(|| {
            Error::data(dir, "folder", format!("no such file; looked for {}", names.join(", ")))
        })
    };
    Ok(Files {
        train_images: file(&["train"], "images", 3)?,
        train_labels: file(&["train"], "labels", 1)?,
        test_images: file(&["t10k", "test"], "images", 3)?,
        test_labels: file(&["t10k", "test"], "labels", 1)?,
    })
}

/// The names that a file may have, plain before gzipped.
fn names(parts: &[&str], what: &str, dimensions: usize) -> Vec<String> {
    let mut out = Vec::new();
    for part in parts {
        for end in ["", ".gz"] {
            for dot in ['-', '.'] {
                out.push(format!("{part}-{what}{dot}idx{dimensions}-ubyte{end}"));
            }
        }
    }
    out
}

fn read_images(path: &Path) -> Result<Images> {
    let ([count, height, width], pixels) = read(path, "images")?;
    Ok(Images { shape: [height, width], count, pixels })
}

fn with_labels(
    images: Images,
    images_path: &Path,
    labels_path: &Path,
    classes: Option<usize>,
) -> Result<Dataset> {
    let ([count], labels) = read(labels_path, "labels")?;
    if count != images.count {
        return Err(Error::data(
            labels_path,
            "bytes 4..8",
            format!(
                "{count} labels; expected {}, as {} holds so many images",
                images.count,
                images_path.display()
            ),
        ));
    }
    if let Some(classes) = classes
        && let Some(i) = labels.iter().position(|&l| usize::from(l) >= classes)
    {
        return Err(Error::data(
            labels_path,
            format!("byte {} (label {i}, counted from 0)", i + 8),
            format!("label {}; expected 0..={}", labels[i], classes as i64 - 1),
        ));
    }
    let largest = labels.iter().max().map_or(0, |&l| usize::from(l));
    let classes = classes.unwrap_or(largest + 1);
    let labels = labels.into_iter().map(u32::from).collect();
    Dataset::from_bytes(images.pixels, images.shape.iter().product(), labels, classes)
        .and_then(|set| set.with_shape(&images.shape))
        .map(|set| set.with_name(name_of(images_path)))
        .map_err(|e| in_file(e, images_path))
}

/// The sizes and the bytes of an IDX file of `D` dimensions.
fn read<const D: usize>(path: &Path, what: &str) -> Result<([usize; D], Vec<u8>)> {
    let mut input = Input::open(path)?;
    let header_len = 4 + 4 * D;
    let header = input.read_up_to(header_len as u64)?;
    let word = |i: usize| header.get(4 * i..4 * i + 4).map(|b| [b[0], b[1], b[2], b[3]]);
    // 0, 0, element type (8: unsigned byte), number of dimensions.
    let magic = [0, 0, 8, D as u8];
    if let Some(found) = word(0)
        && found != magic
    {
        return Err(input.error(
            0,
            format!(
                "magic number 0x{:08x}; expected 0x{:08x} (IDX {what}: unsigned bytes of rank {D})",
                u32::from_be_bytes(found),
                u32::from_be_bytes(magic),
            ),
        ));
    }
    if header.len() < header_len {
        return Err(input.error(
            header.len() as u64,
            format!("the file ends; expected an IDX header of {header_len} bytes"),
        ));
    }
    let mut sizes = [0usize; D];
    for (i, size) in sizes.iter_mut().enumerate() {
        let value = word(i + 1).map_or(0, u32::from_be_bytes);
        if value == 0 {
            return Err(input.error(4 * (i as u64 + 1), "a dimension of 0; expected at least 1"));
        }
        *size = value as usize;
    }
    // Three sizes of 32 bits: the product can need 96.
    let promised: u128 = sizes.iter().map(|&s| s as u128).product();
    let sizes_text = sizes.map(|s| s.to_string()).join(" x ");
    let end = promised + header_len as u128;
    // What no address space holds is refused here; what no file holds, by its end.
    if end > isize::MAX as u128 {
        return Err(input.error(
            4,
            format!("{sizes_text} bytes promised, which is more than any file can hold"),
        ));
    }
    let bytes = input.read_up_to(promised as u64)?;
    if (bytes.len() as u128) < promised {
        return Err(input.error(
            (header_len + bytes.len()) as u64,
            format!("the file ends; expected {sizes_text} bytes, up to byte {end}"),
        ));
    }
    input.expect_end(&format!("the end after {sizes_text} bytes"))?;
    Ok((sizes, bytes))
}
