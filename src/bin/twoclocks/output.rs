//! Standard output for programs, standard error for people.

use serde_json::Value;
use std::fmt::{Arguments, Display};
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use twoclocks::{Error, Result};

/// `println!` that ends the command where nobody reads any more, as `| head` does.
macro_rules! say {
    ($($argument:tt)*) => { $crate::output::print(format_args!($($argument)*)) };
}
pub(crate) use say;

/// Prints a line on standard output. Ends the command quietly where nobody reads it any more, and
/// with status 2 where it cannot be written.
pub fn print(text: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout().lock(), "{text}") {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        note(format_args!("error: standard output: cannot write: {error}"));
        std::process::exit(2);
    }
}

/// Prints one JSON object as a line on standard output, as [`print`] does.
pub fn line(value: &Value) {
    print(format_args!("{value}"));
}

/// Prints a line of a training run on standard output, which nobody may read any more: that must
/// not end the run. Where it cannot be written for another reason, that is said once.
pub fn event(line: impl Display) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let written = writeln!(std::io::stdout().lock(), "{line}");
    let failed = written.err().filter(|error| error.kind() != ErrorKind::BrokenPipe);
    if let Some(error) = failed
        && !SAID.swap(true, Ordering::Relaxed)
    {
        note(format_args!("warning: standard output: cannot write: {error}; the run goes on"));
    }
}

/// Prints a line for people on standard error, which nobody may read any more.
pub fn note(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The time that `--seconds` gives, above 0.
pub fn budget(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| Error::config("--seconds", format!("{seconds:?} is not a time")))
}

/// `12.3 ms`, `4.56 s`: three digits and a unit.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s >= 99.95 => format!("{}m {:02}s", (s / 60.0) as u64, (s % 60.0) as u64),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

/// `1.23 G`, `456 k`: three digits and a prefix.
pub fn quantity(value: f64) -> String {
    for (limit, prefix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value.abs() >= limit {
            return format!("{:.3} {prefix}", value / limit);
        }
    }
    format!("{value:.3} ")
}

/// Value at a share (0 to 1) of sorted numbers.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Said where peaks may be too low.
pub const NOT_TOGETHER: &str = "other work had the processors while the peaks were measured: they are too low, and so are floors";
