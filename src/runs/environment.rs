//! The machine and the program that made a run.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::runs::folder::{ENVIRONMENT, RunFolder};
use crate::runs::time::Utc;

/// Where and with what a run was made; `environment.json`. What cannot be known is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Start of the run, UTC, RFC 3339.
    pub date: String,
    /// Version of this crate.
    pub twoclocks: String,
    /// Commit that the crate was built from (changes that were not committed do not show).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The compiler, as it names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rustc: Option<String>,
    /// Whether the crate was built with optimization for release.
    pub release: bool,
    /// Operating system and architecture: `linux x86_64`.
    pub os: String,
    /// Model name of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Hardware threads that this process may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,
    /// Main memory of the machine, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The device that trained: `cpu`, `cuda:0`.
    pub device: String,
    /// Why that one, where it was chosen and not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_why: Option<String>,
    /// The instruction set in use, as the device names it.
    pub isa: String,
    /// Threads that trained.
    pub threads: usize,
}

impl Environment {
    /// Describes this machine and program now, with what the training loop chose.
    pub fn collect(device: &str, isa: &str, threads: usize) -> Self {
        Environment {
            date: Utc::now().to_string(),
            twoclocks: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("TWOCLOCKS_COMMIT").map(str::to_owned),
            rustc: option_env!("TWOCLOCKS_RUSTC").map(str::to_owned),
            release: !cfg!(debug_assertions),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_model(&text)),
            cores: std::thread::available_parallelism().ok().map(usize::from),
            memory_bytes: fs::read_to_string("/proc/meminfo")
                .ok()
                .and_then(|t| memory_bytes(&t, "MemTotal:")),
            device: device.into(),
            device_why: None,
            isa: isa.into(),
            threads,
        }
    }

    /// Bytes that programs can still have without swapping, where the system tells.
    pub fn available_memory() -> Option<u64> {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        memory_bytes(&text, "MemAvailable:")
    }

    /// Refuses what cannot fit into the memory that is left, before the system ends the program
    /// for it. Where the system does not tell how much is left, nothing is refused.
    ///
    /// # Errors
    /// [`Error::Device`] with both numbers of bytes.
    pub fn require_memory(what: &str, bytes: f64) -> Result<()> {
        match Self::available_memory() {
            Some(left) if bytes > left as f64 => Err(Error::device(
                "cpu",
                format!(
                    "{what} takes {:.1} GB of memory; {:.1} GB are left",
                    bytes / 1e9,
                    left as f64 / 1e9
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Writes `environment.json`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, folder: &RunFolder) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("plain fields");
        text.push('\n');
        folder.write_atomic(ENVIRONMENT, text.as_bytes())
    }

    /// Reads `environment.json`.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read, [`Error::Data`] with the line that is damaged.
    pub fn read(folder: &RunFolder) -> Result<Self> {
        let bytes = folder.read(ENVIRONMENT)?;
        serde_json::from_slice(&bytes).map_err(|e| {
            let place = format!("line {}", e.line());
            Error::data(folder.file(ENVIRONMENT), place, e.to_string())
        })
    }
}

/// The model of the first processor in the text of `/proc/cpuinfo`. ARM kernels give no name, but
/// the numbers of implementer and part.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let field = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key && !value.trim().is_empty()).then(|| value.trim().to_owned())
        })
    };
    field("model name").or_else(|| {
        Some(format!("implementer {} part {}", field("CPU implementer")?, field("CPU part")?))
    })
}

/// A line of the text of `/proc/meminfo`, which counts in KiB.
fn memory_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::scratch::Scratch;

    #[test]
    fn is_written_and_read_back() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        let environment = Environment::collect("cpu", "avx512", 2);
        assert!(environment.rustc.as_deref().unwrap().starts_with("rustc "), "build.rs says it");
        assert!(environment.cores.unwrap() >= 1);
        environment.write(&folder).unwrap();
        assert_eq!(Environment::read(&folder).unwrap(), environment);
        folder.write_atomic(ENVIRONMENT, b"{\n\"date\": 3}").unwrap();
        let text = Environment::read(&folder).unwrap_err().to_string();
        assert!(text.contains(ENVIRONMENT) && text.contains("line 2"), "{text}");
    }

    #[test]
    fn proc_files_are_understood() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\n\nprocessor\t: 1\n";
        assert_eq!(cpu_model(text).as_deref(), Some("AMD EPYC 9B14"));
        let text = "CPU implementer\t: 0x41\nCPU part\t: 0xd40\n";
        assert_eq!(cpu_model(text).as_deref(), Some("implementer 0x41 part 0xd40"));
        assert_eq!(cpu_model(""), None);
        assert_eq!(
            memory_bytes("MemTotal:       24000000 kB\nMemFree: 1 kB\n", "MemTotal:"),
            Some(24_576_000_000)
        );
        assert_eq!(memory_bytes("MemTotal: lots\n", "MemTotal:"), None);
        let refused = |bytes| Environment::require_memory("a net", bytes);
        assert!(refused(1.0).is_ok());
        assert!(Environment::available_memory().is_none() || refused(1e18).is_err());
    }
}
