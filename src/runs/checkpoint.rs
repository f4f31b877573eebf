//! Weights, optimizer state and position of a run in one safetensors file.
//!
//! The file is plain safetensors (<https://github.com/huggingface/safetensors>): an 8-byte header
//! length, a JSON header, then the tensors as little-endian `f32` in the order in which they were
//! given. `__metadata__` holds three strings: `twoclocks_format`, `twoclocks_state` (JSON), and
//! `crc32`, the CRC-32 (IEEE) of the whole file as eight hex digits, taken with those eight
//! digits as zeros.
//!
//! Saving and loading pass over the tensors once, through a buffer that stays in cache: convert,
//! sum, write. Because the sum has a fixed width, the header is written first and patched last.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::runs::atomic;

/// The layout of metadata and state that this build writes and reads.
const FORMAT: &str = "1";
/// What precedes the eight digits of the sum in the header. It cannot occur inside a JSON string,
/// where its quotes would be escaped.
const SUM_KEY: &[u8] = b"\"crc32\":\"";
const SUM_ZERO: &str = "00000000";
/// The largest header that safetensors' own readers accept.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes converted at a time: fits the second-level cache with room to spare.
const CHUNK: usize = 256 * 1024;

/// What is needed to go on exactly where a run was.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Name, shape and elements (row-major) of each tensor, in the order of the file.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// Everything that is not a tensor: position, seeds, clocks, a description of the model.
    /// Integers come back exactly. A JSON parser may read a fraction one unit in the last place
    /// off, so an `f64` that must come back bit for bit belongs here as [`f64::to_bits`].
    pub state: Value,
}

impl Checkpoint {
    /// Saves the checkpoint; see [`save_from`].
    ///
    /// # Errors
    /// As of [`save_from`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors = self.tensors.iter().map(|(name, shape, values)| (name, shape, &values[..]));
        save_from(path, tensors, &self.state)
    }

    /// Reads a checkpoint and verifies all of it. Every bit of every element is as it was saved.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file and what is wrong: missing, cut short, damaged, saved
    /// by another program, of another format.
    pub fn load(path: &Path) -> Result<Self> {
        read(path).map_err(|problem| Error::checkpoint(path, problem))
    }

    /// Elements and shape of the tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<(&[usize], &[f32])> {
        let (_, shape, values) = self.tensors.iter().find(|(given, ..)| given == name)?;
        Some((shape, values))
    }
}

/// Saves tensors from where they lie, without a copy of them, and replaces `path` atomically: a
/// process killed while saving leaves the checkpoint before.
///
/// Each tensor is its name, its shape and its elements (row-major).
///
/// # Errors
/// [`Error::Checkpoint`] when two tensors have one name; [`Error::Io`] naming the file.
///
/// # Panics
/// When a shape does not fit the number of elements.
pub fn save_from<'a, N, S>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, S, &'a [f32])>,
    state: &Value,
) -> Result<()>
where
    N: AsRef<str>,
    S: AsRef<[usize]>,
{
    let mut header = Map::new();
    let mut names = HashSet::new();
    let mut values = Vec::new();
    let mut offset = 0;
    for (name, shape, elements) in tensors {
        let (name, shape) = (name.as_ref(), shape.as_ref());
        assert_eq!(shape.iter().product::<usize>(), elements.len(), "shape {shape:?} of {name}");
        if name == "__metadata__" || !names.insert(name.to_owned()) {
            let problem = format!("the tensor name {name:?} is taken; nothing was saved");
            return Err(Error::checkpoint(path, problem));
        }
        let end = offset + size_of_val(elements);
        let shape = shape.to_vec();
        let info = TensorInfo { dtype: Dtype::F32, shape, data_offsets: (offset, end) };
        header.insert(name.to_owned(), json(&info));
        values.push(elements);
        offset = end;
    }
    header.insert(
        "__metadata__".into(),
        serde_json::json!({
            "crc32": SUM_ZERO,
            "twoclocks_format": FORMAT,
            "twoclocks_state": state.to_string(),
        }),
    );
    let mut header = Value::Object(header).to_string().into_bytes();
    // Readers map the file and expect tensors at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    atomic::replace_forced(path, |file| write(file, &header, &values))
}

/// Writes header and tensors, and then the sum of both into the header.
fn write(file: &mut File, header: &[u8], tensors: &[&[f32]]) -> io::Result<()> {
    let length = (header.len() as u64).to_le_bytes();
    let mut sum = crc32fast::Hasher::new();
    for bytes in [&length, header] {
        sum.update(bytes);
        file.write_all(bytes)?;
    }
    let mut buffer = vec![0; CHUNK];
    let mut used = 0;
    for &elements in tensors {
        let mut rest = elements;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min((CHUNK - used) / 4));
            let bytes = &mut buffer[used..used + 4 * now.len()];
            for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(now) {
                *bytes = value.to_le_bytes();
            }
            used += 4 * now.len();
            rest = later;
            if used == CHUNK {
                sum.update(&buffer);
                file.write_all(&buffer)?;
                used = 0;
            }
        }
    }
    sum.update(&buffer[..used]);
    file.write_all(&buffer[..used])?;
    let at = sum_position(header).expect("the header was made with a place for the sum");
    file.seek(SeekFrom::Start((8 + at) as u64))?;
    file.write_all(format!("{:08x}", sum.finalize()).as_bytes())
}

/// Reads and verifies; the error says what is wrong, and its caller where.
fn read(path: &Path) -> Result<Checkpoint, String> {
    let failed = |e: io::Error| format!("cannot be read: {e}");
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    if size < 8 {
        return Err(format!("is cut short: it has {size} bytes"));
    }
    file.read_exact(&mut length).map_err(failed)?;
    let header_length = u64::from_le_bytes(length);
    if header_length > MAX_HEADER {
        return Err(format!("is no safetensors file: its header would have {header_length} bytes"));
    }
    if header_length > size - 8 {
        let need = header_length + 8;
        return Err(format!("is cut short: {size} bytes, but its header alone needs {need}"));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(failed)?;

    // The sum cannot be compared before the end, so damage may show here first, in other words.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| format!("its header is damaged: {e}"))?;
    let text = |key| metadata.metadata().as_ref()?.get(key);
    let Some(format) = text("twoclocks_format") else {
        return Err("is a safetensors file of another program: it has no twoclocks_format".into());
    };
    if format != FORMAT {
        return Err(format!("has format {format}, but this build reads format {FORMAT}"));
    }
    let state = text("twoclocks_state").ok_or("its header is damaged: it has no state")?;
    let payload = size - 8 - header_length;
    if metadata.data_len() as u64 != payload {
        let problem =
            if payload < metadata.data_len() as u64 { "is cut short" } else { "is damaged" };
        let expected = metadata.data_len();
        return Err(format!(
            "{problem}: {payload} bytes of tensors, but its header says {expected}"
        ));
    }
    let at = sum_position(&header).ok_or("its header is damaged: it has no checksum")?;
    let saved = header[at..at + 8].to_vec();
    header[at..at + 8].copy_from_slice(SUM_ZERO.as_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length);
    sum.update(&header);

    let mut infos: Vec<(String, &TensorInfo)> = metadata.tensors().into_iter().collect();
    // Tensors without elements share an offset: the name makes their order a fixed one.
    infos.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
    let mut buffer = vec![0; CHUNK];
    let mut tensors = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        if info.dtype != Dtype::F32 {
            return Err(format!("its tensor {name:?} is {}, where F32 is expected", info.dtype));
        }
        let mut bytes_left = info.data_offsets.1 - info.data_offsets.0;
        let mut values = Vec::with_capacity(bytes_left / 4);
        while bytes_left > 0 {
            let bytes = &mut buffer[..bytes_left.min(CHUNK)];
            file.read_exact(bytes).map_err(failed)?;
            sum.update(bytes);
            values.extend(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)));
            bytes_left -= bytes.len();
        }
        tensors.push((name, info.shape.clone(), values));
    }
    if saved != format!("{:08x}", sum.finalize()).as_bytes() {
        return Err("is damaged, or was rewritten by another program: its checksum does not fit \
                    what is in it"
            .into());
    }
    let state =
        serde_json::from_str(state).map_err(|e| format!("its header is damaged: state: {e}"))?;
    Ok(Checkpoint { tensors, state })
}

/// Where in the header the eight digits of the sum begin.
fn sum_position(header: &[u8]) -> Option<usize> {
    let at = header.windows(SUM_KEY.len()).position(|window| window == SUM_KEY)? + SUM_KEY.len();
    (at + 8 <= header.len()).then_some(at)
}

fn json(info: &TensorInfo) -> Value {
    serde_json::to_value(info).expect("a tensor's description has only plain values")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::runs::scratch::Scratch;

    fn example() -> Checkpoint {
        let weights = vec![
            1.0,
            -0.0,
            f32::MIN_POSITIVE / 2.0,
            f32::INFINITY,
            f32::from_bits(0x7fc0_1234),
            f32::from_bits(0xffa0_0001),
        ];
        Checkpoint {
            tensors: vec![
                ("z.weight".into(), vec![2, 3], weights),
                ("a.bias \"crc32\":\"".into(), vec![], vec![0.1]),
                ("none".into(), vec![0, 4], vec![]),
                ("big".into(), vec![70_001], (0..70_001).map(|i| i as f32).collect()),
            ],
            state: json!({"step": u64::MAX, "crc32": "00000000", "lr": 0.25, "name": "é\"\n"}),
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn problem(path: &Path) -> String {
        let error = Checkpoint::load(path).unwrap_err();
        assert!(matches!(&error, Error::Checkpoint { file, .. } if file == path), "{error}");
        error.to_string()
    }

    #[test]
    fn reads_back_bit_for_bit_in_order() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        let saved = example();
        saved.save(&path).unwrap();
        let loaded = Checkpoint::load(&path).unwrap();
        assert_eq!(loaded.state, saved.state);
        assert_eq!(loaded.tensors.len(), saved.tensors.len());
        for (a, b) in loaded.tensors.iter().zip(&saved.tensors) {
            assert_eq!((&a.0, &a.1), (&b.0, &b.1));
            assert_eq!(bits(&a.2), bits(&b.2), "{}", a.0);
        }
        assert_eq!(loaded.tensor("big").unwrap().0, [70_001]);
        assert!(loaded.tensor("small").is_none());
        let first = fs::read(&path).unwrap();
        saved.save(&path).unwrap();
        assert_eq!(first, fs::read(&path).unwrap(), "the same checkpoint is the same bytes");
    }

    #[test]
    fn is_what_other_programs_call_safetensors() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        let saved = example();
        saved.save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 4);
        for (name, shape, values) in &saved.tensors {
            let view = file.tensor(name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (Dtype::F32, &shape[..]));
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(view.data(), bytes);
        }
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0, "aligned");
    }

    #[test]
    fn an_empty_checkpoint_is_one() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        let empty = Checkpoint { tensors: vec![], state: Value::Null };
        empty.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), empty);
    }

    #[test]
    fn every_damaged_byte_is_found() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        let mut saved = example();
        saved.tensors[3].2.truncate(20);
        saved.tensors[3].1 = vec![20];
        saved.save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            problem(&path);
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let text = problem(&path);
            assert!(text.contains("cut short"), "{length}: {text}");
        }
        let mut longer = whole;
        longer.extend([0; 4]);
        fs::write(&path, &longer).unwrap();
        assert!(problem(&path).contains("damaged"));
    }

    #[test]
    fn missing_and_foreign_files_are_named() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        assert!(problem(&path).contains("cannot be read"));
        assert!(problem(scratch.path()).contains("cannot be read"));
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        let foreign = safetensors::serialize([("w", view)], None).unwrap();
        fs::write(&path, foreign).unwrap();
        assert!(problem(&path).contains("another program"));
        fs::write(&path, "PK\u{3}\u{4} a zip archive, say, of another framework").unwrap();
        assert!(problem(&path).contains("no safetensors file"));
    }

    #[test]
    fn another_format_or_element_type_is_named() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        for (dtype, format, expected) in [("F32", "2", "format 2"), ("I32", "1", "is I32")] {
            let header = format!(
                r#"{{"__metadata__":{{"crc32":"00000000","twoclocks_format":"{format}","twoclocks_state":"0"}},"w":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}}}"#
            );
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes().chain([0; 4]));
            fs::write(&path, bytes).unwrap();
            let text = problem(&path);
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_name_given_twice_saves_nothing() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        let old = example();
        old.save(&path).unwrap();
        let before = fs::read(&path).unwrap();
        for names in [["w", "w"], ["w", "__metadata__"]] {
            let tensors = names.map(|name| (name, [1], &[0.0][..]));
            let text = save_from(&path, tensors, &Value::Null).unwrap_err().to_string();
            assert!(text.contains(&format!("{:?}", names[1])), "{text}");
        }
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    /// Bytes per second through conversion, sum and page cache, printed with `--nocapture`; the
    /// bound is far below what any disk-backed page cache gives and catches a byte-wise loop.
    #[test]
    fn twenty_megabytes_are_fast() {
        let scratch = Scratch::new();
        let path = scratch.path().join("model.safetensors");
        let elements: Vec<f32> = (0..5_000_000).map(|i| i as f32).collect();
        let header = br#"{"crc32":"00000000"}    "#;
        let mut best = [f64::MAX; 3];
        for _ in 0..5 {
            let start = std::time::Instant::now();
            let mut file = File::create(&path).unwrap();
            write(&mut file, header, &[&elements]).unwrap();
            best[0] = best[0].min(start.elapsed().as_secs_f64());
            let start = std::time::Instant::now();
            save_from(&path, [("w", [elements.len()], &elements[..])], &Value::Null).unwrap();
            best[1] = best[1].min(start.elapsed().as_secs_f64());
            let start = std::time::Instant::now();
            let loaded = Checkpoint::load(&path).unwrap();
            best[2] = best[2].min(start.elapsed().as_secs_f64());
            assert_eq!(loaded.tensors[0].2, elements);
        }
        for (name, seconds) in ["write", "save with fsync", "load"].iter().zip(best) {
            println!("{name}: {:.1} ms, {:.0} MB/s", seconds * 1e3, 20.0 / seconds);
        }
        assert!(best[0] < 0.1, "writing 20 MB took {} s", best[0]);
        assert!(best[2] < 0.1, "loading 20 MB took {} s", best[2]);
    }
}
