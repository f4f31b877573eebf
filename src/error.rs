//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// The result of everything that can meet bad input or a failing environment.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the place where it did.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation was given operands that it cannot take.
    #[error("{op}: {problem}")]
    Operation {
        /// Name of the operation, or of the layer that records it.
        op: String,
        /// What does not fit, with the shapes.
        problem: String,
    },
    /// A gradient was asked for that cannot be given; it is never replaced by zero.
    #[error("gradient of {op}: {problem}")]
    Gradient {
        /// The operation or tensor at which the reverse walk stopped.
        op: String,
        /// Why.
        problem: String,
    },
    /// A device, an instruction set or its memory is not to be had.
    #[error("device {device}: {problem}")]
    Device {
        /// `cpu`, `cuda:0`, or the name of an instruction set.
        device: String,
        /// Why.
        problem: String,
    },
    /// A value of the configuration (or of a command-line flag) cannot be used.
    #[error("{place}: {problem}")]
    Config {
        /// The key, flag or layer, with the file when there is one.
        place: String,
        /// The value and what would be accepted.
        problem: String,
    },
    /// A data file does not hold what it should.
    #[error("{}: {place}: {problem}", file.display())]
    Data {
        /// The file.
        file: PathBuf,
        /// Byte, line, row or column in it.
        place: String,
        /// The value found and what was expected.
        problem: String,
    },
    /// A checkpoint cannot be read, or belongs to another model.
    #[error("checkpoint {}: {problem}", file.display())]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The loss, or a tensor on the way to it, is no longer finite.
    #[error("diverged at step {step}: {place}; last good checkpoint: {checkpoint}")]
    Diverged {
        /// Training step, counted from 1.
        step: u64,
        /// Layer, tensor and index of the first value that is not finite.
        place: String,
        /// Path of the last good checkpoint, or `none yet`.
        checkpoint: String,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// `read`, `write`, `create`, `rename` ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::Operation`].
    pub fn operation(op: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Operation { op: op.into(), problem: problem.into() }
    }

    /// An [`Error::Gradient`].
    pub fn gradient(op: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Gradient { op: op.into(), problem: problem.into() }
    }

    /// An [`Error::Device`].
    pub fn device(device: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Device { device: device.into(), problem: problem.into() }
    }

    /// An [`Error::Config`].
    pub fn config(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Config { place: place.into(), problem: problem.into() }
    }

    /// An [`Error::Data`].
    pub fn data(
        file: impl AsRef<Path>,
        place: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Error::Data { file: file.as_ref().to_owned(), place: place.into(), problem: problem.into() }
    }

    /// An [`Error::Io`]; use as `.map_err(|e| Error::io("read", path, e))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// An [`Error::Checkpoint`].
    pub fn checkpoint(file: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Error::Checkpoint { file: file.as_ref().to_owned(), problem: problem.into() }
    }
}
