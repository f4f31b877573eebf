//! Reading files that may be gzipped, without trusting what they promise; finding files by name.

use std::fs::File;
use std::io::{self, Chain, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
#[cfg(unix)]
use rayon::prelude::*;

use crate::error::{Error, Result};

type Whole = Chain<Cursor<Vec<u8>>, File>;

enum Stream {
    Raw(Whole),
    Gzip(Box<MultiGzDecoder<Whole>>),
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Raw(raw) => raw.read(out),
            Stream::Gzip(gzip) => gzip.read(out),
        }
    }
}

/// An open file, decompressed on the way when its first two bytes are gzip's.
///
/// The bytes decide, not the name: files named `.gz` are often already unpacked by what fetched
/// them.
pub(super) struct Input {
    path: PathBuf,
    stream: Stream,
    /// Length that the file system states; of the compressed bytes when gzipped.
    file_len: u64,
    /// Bytes of content handed out so far.
    at: u64,
}

/// Bytes from which on a file is read on all threads, and bytes that one reads at a time.
#[cfg(unix)]
const LARGE: usize = 4 << 20;
#[cfg(unix)]
const PART: usize = 1 << 20;

/// Room made for gzipped content before any of it was seen; more is made as bytes arrive.
const GZIP_ROOM: u64 = 1 << 20;

impl Input {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let file_len = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let mut start = Vec::new();
        (&mut file).take(2).read_to_end(&mut start).map_err(|e| Error::io("read", path, e))?;
        let gzipped = start == [0x1f, 0x8b];
        let whole = Cursor::new(start).chain(file);
        let stream = match gzipped {
            true => Stream::Gzip(Box::new(MultiGzDecoder::new(whole))),
            false => Stream::Raw(whole),
        };
        Ok(Input { path: path.to_owned(), stream, file_len, at: 0 })
    }

    /// The next `n` bytes of content, fewer only at its end. Memory grows with what is there, not
    /// with `n`.
    ///
    /// # Errors
    /// [`Error::Data`] for a truncated or corrupt gzip stream (also when its checksum, reached with
    /// the end, does not match); [`Error::Io`] when the operating system refuses.
    pub(super) fn read_up_to(&mut self, n: u64) -> Result<Vec<u8>> {
        let room = match self.stream {
            Stream::Raw(_) => self.file_len.saturating_sub(self.at),
            Stream::Gzip(_) => GZIP_ROOM,
        };
        let room = usize::try_from(room.min(n)).unwrap_or(0);
        #[cfg(unix)]
        if room >= LARGE
            && let Some(out) = self.read_in_parts(room)
        {
            self.at += out.len() as u64;
            return Ok(out);
        }
        let mut out = Vec::with_capacity(room);
        let outcome = (&mut self.stream).take(n).read_to_end(&mut out);
        self.at += out.len() as u64;
        match outcome {
            Ok(_) => Ok(out),
            Err(e) if e.raw_os_error().is_some() => Err(Error::io("read", &self.path, e)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.error(
                self.at,
                format!("the gzip stream ends early ({} compressed bytes)", self.file_len),
            )),
            Err(e) => Err(self.error(self.at, format!("the gzip stream is corrupt: {e}"))),
        }
    }

    /// The next `len` bytes of a file that is not gzipped, in parts on all threads: what is left to do
    /// is copying, and clearing new memory. `None` where they cannot be read so; the stream is then as
    /// it was.
    #[cfg(unix)]
    fn read_in_parts(&mut self, len: usize) -> Option<Vec<u8>> {
        use std::io::{Seek, SeekFrom};
        use std::os::unix::fs::FileExt;
        let Stream::Raw(whole) = &mut self.stream else { return None };
        // Its first bytes, which told whether it is gzipped, are handed out.
        let (_, file) = whole.get_mut();
        if file.stream_position().ok()? != self.at {
            return None;
        }
        let mut out = vec![0; len];
        let parts = out.par_chunks_mut(PART).enumerate();
        let read = |(part, bytes): (usize, &mut [u8])| {
            file.read_exact_at(bytes, self.at + (part * PART) as u64)
        };
        parts.try_for_each(read).ok()?;
        file.seek(SeekFrom::Start(self.at + len as u64)).ok()?;
        Some(out)
    }

    /// Checks that the content ends here (and, when gzipped, that its checksum matches).
    ///
    /// # Errors
    /// As [`Self::read_up_to`], and [`Error::Data`] with `expected` when more bytes follow.
    pub(super) fn expect_end(&mut self, expected: &str) -> Result<()> {
        let end = self.at;
        match self.read_up_to(1)?.is_empty() {
            true => Ok(()),
            false => Err(self.error(end, format!("more bytes follow; expected {expected}"))),
        }
    }

    /// An [`Error::Data`] at a byte of the content.
    pub(super) fn error(&self, byte: u64, problem: impl Into<String>) -> Error {
        Error::data(&self.path, self.place(byte), problem)
    }

    /// How to name a byte of the content.
    pub(super) fn place(&self, byte: u64) -> String {
        match self.stream {
            Stream::Raw(_) => format!("byte {byte}"),
            Stream::Gzip(_) => format!("byte {byte} of the decompressed content"),
        }
    }
}

/// The file in `dir` with one of `names`, which are tried in their order; failing those, the one
/// file whose name is something, then `-` or `_`, then one of `names`
/// (`emnist-letters-train-images-idx3-ubyte.gz`).
///
/// # Errors
/// [`Error::Data`] when several files are such, as any choice would be a guess; [`Error::Io`] when
/// the folder cannot be read.
pub(super) fn find(dir: &Path, names: &[String]) -> Result<Option<PathBuf>> {
    if let Some(path) = names.iter().map(|n| dir.join(n)).find(|p| p.is_file()) {
        return Ok(Some(path));
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let file_name = entry.file_name();
        let Some(file_name) = file_name.to_str() else { continue };
        let matches = names.iter().any(|n| {
            file_name.strip_suffix(n.as_str()).is_some_and(|s| s.ends_with('-') || s.ends_with('_'))
        });
        if matches && entry.path().is_file() {
            found.push(file_name.to_owned());
        }
    }
    found.sort_unstable();
    // A file beside its own compressed copy is one file; sorting puts the copy right after it.
    found.dedup_by(|copy, plain| copy.strip_suffix(".gz") == Some(plain.as_str()));
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(dir.join(one))),
        many => Err(Error::data(
            dir,
            "folder",
            format!("{} files could be meant: {}; expected one", many.len(), many.join(", ")),
        )),
    }
}

/// A name for the data at `path`: its last part without `.csv` or `.gz`.
pub(super) fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = whole.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.strip_suffix(".csv").unwrap_or(name).to_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn large_files_are_read_in_parts() {
        let name = format!("twoclocks-input-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let content: Vec<u8> = (0..LARGE + PART + 1000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).expect("written");
        let mut input = Input::open(&path).expect("opened");
        let small = input.read_up_to(5).expect("read");
        let large = (LARGE + 10) as u64;
        let parts = input.read_in_parts(LARGE + 10).expect("in parts");
        input.at += large;
        let rest = input.read_up_to(large).expect("read");
        let all = [small, parts, rest].concat();
        // Nothing is handed out from past the end, whatever the length that was stated.
        let mut shorter = Input::open(&path).expect("opened");
        shorter.read_up_to(5).expect("read");
        std::fs::write(&path, &content[..LARGE]).expect("written");
        let left = shorter.read_up_to(u64::MAX).expect("read");
        std::fs::remove_file(&path).expect("removed");
        assert!(all == content);
        assert!(left == content[5..LARGE]);
    }
}
