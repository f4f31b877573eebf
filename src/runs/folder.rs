//! The folder of one run: made once, never reused, and trained in by one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serializer;

use crate::error::{Error, Result};
use crate::runs::atomic;
use crate::runs::time::Utc;

/// Name of the file with the complete configuration.
pub const CONFIG: &str = "config.toml";
/// Name of the journal. A folder is a run folder when it has one.
pub const METRICS: &str = "metrics.jsonl";
/// Name of the checkpoint.
pub const MODEL: &str = "model.safetensors";
/// Name of the report.
pub const REPORT: &str = "report.html";
/// Name of the description of machine and program.
pub const ENVIRONMENT: &str = "environment.json";
/// Name of the file whose lock the training process holds. The file itself stays.
const LOCK: &str = ".lock";

/// How often a busy lock is asked for again, 10 ms apart: whoever lists runs takes it for an
/// instant to see whether anyone trains.
const LOCK_ATTEMPTS: u32 = 20;

/// The folder of one run.
///
/// The operating system lets go of the lock when the value is dropped or the process ends, however
/// it ends.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    lock: Option<File>,
}

impl RunFolder {
    /// Makes a new folder `RECIPE-YYYYmmdd-HHMMSS` (UTC) under `root`, which is made when it is not
    /// there, and locks it for this process. A name that is taken gets `-2`, `-3` ... behind it.
    /// Characters of `recipe` that do not belong in a file name become `-`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the root or the folder that cannot be made.
    pub fn create(root: &Path, recipe: &str) -> Result<Self> {
        Self::create_at(root, recipe, Utc::now())
    }

    fn create_at(root: &Path, recipe: &str, time: Utc) -> Result<Self> {
        fs::create_dir_all(root).map_err(|e| Error::io("create", root, e))?;
        let name = format!("{}-{}", file_name(recipe), time.compact());
        let mut path = root.join(&name);
        let mut n = 1;
        // Only the one process whose create_dir succeeds owns the name.
        while let Err(source) = fs::create_dir(&path) {
            if source.kind() != io::ErrorKind::AlreadyExists {
                return Err(Error::io("create", path, source));
            }
            n += 1;
            path = root.join(format!("{name}-{n}"));
        }
        let mut folder = RunFolder { path, lock: None };
        folder.lock()?;
        let metrics = folder.file(METRICS);
        File::create_new(&metrics).map_err(|e| Error::io("create", &metrics, e))?;
        Ok(folder)
    }

    /// Opens a folder to read it, or to write a report or another copy of a file into it. To go on
    /// training in it, take the [`lock`](Self::lock) as well.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no such folder; [`Error::Data`] where it is no run folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        if !kind.is_dir() {
            return Err(Error::data(path, "run folder", "this is a file, not a folder"));
        }
        if !path.join(METRICS).is_file() {
            let problem = format!("it has no {METRICS}, so it is not the folder of a run");
            return Err(Error::data(path, "run folder", problem));
        }
        // `.` and `..` have no name, but a run does.
        let path = match path.file_name() {
            Some(_) => path.to_owned(),
            None => path.canonicalize().map_err(|e| Error::io("read", path, e))?,
        };
        Ok(RunFolder { path, lock: None })
    }

    /// Takes the right to train in this folder until the value is dropped, and removes partial
    /// files that a killed process left. Taking it twice does no harm.
    ///
    /// # Errors
    /// [`Error::Data`] naming the process that has it; [`Error::Io`] where locks cannot be had.
    pub fn lock(&mut self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = self.file(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        let mut attempt = 1;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(Error::io("lock", path, source)),
                Err(TryLockError::WouldBlock) if attempt < LOCK_ATTEMPTS => {
                    attempt += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    let holder = fs::read_to_string(&path).unwrap_or_default();
                    let holder = match holder.trim() {
                        "" => "another process".to_owned(),
                        id => format!("process {id}"),
                    };
                    let problem = format!("{holder} is training in this folder");
                    return Err(Error::data(&self.path, "lock", problem));
                }
            }
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|e| Error::io("write", &path, e))?;
        self.lock = Some(file);
        atomic::remove_partial(&self.path)
    }

    /// Whether this value holds the lock.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Whether any process is training in this folder now.
    pub fn is_running(&self) -> bool {
        // A shared lock suffices to see an exclusive one, and two who look do not see each other.
        self.is_locked()
            || File::open(self.file(LOCK))
                .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that this and other runs lie in.
    pub fn root(&self) -> &Path {
        atomic::parent(&self.path)
    }

    /// The name of the run: that of its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Forces the configuration and the name of the folder to disk: what a checkpoint in it is of no use without.
    ///
    /// # Errors
    /// [`Error::Io`] naming what could not be written.
    pub fn force(&self) -> Result<()> {
        atomic::force(&self.file(CONFIG))?;
        let root = self.root();
        atomic::sync_folder(root).map_err(|e| Error::io("write", root, e))
    }

    /// Replaces a file of the folder: whoever reads it, now or after a process was killed, sees all of the old
    /// bytes or all of the new ones.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, which is then as it was.
    pub fn write_atomic(&self, name: &str, bytes: &[u8]) -> Result<()> {
        atomic::replace(&self.file(name), |file| file.write_all(bytes))
    }

    /// The bytes of a file of the folder.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.file(name);
        fs::read(&path).map_err(|e| Error::io("read", path, e))
    }

    /// The text of a file of the folder.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, also where it is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<String> {
        let path = self.file(name);
        fs::read_to_string(&path).map_err(|e| Error::io("read", path, e))
    }

    /// Writes `config.toml`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        self.write_atomic(CONFIG, toml.as_bytes())
    }

    /// Reads `config.toml`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn config(&self) -> Result<String> {
        self.read_text(CONFIG)
    }
}

/// A path as text, for JSON: what of it is no UTF-8 is replaced.
pub(crate) fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What the name of a run folder says: recipe, start, and its number among those of that second.
/// A folder that was renamed to something else has only a recipe: its name.
pub(super) fn parse_name(name: &str) -> (&str, Option<Utc>, u32) {
    let timed = |name| -> Option<(&str, Utc)> {
        let name: &str = name;
        let dash = name.len().checked_sub(16)?;
        let (recipe, time) = (name.get(..dash)?, name.get(dash..)?.strip_prefix('-')?);
        Some((recipe, Utc::from_compact(time)?))
    };
    if let Some((recipe, time)) = timed(name) {
        return (recipe, Some(time), 1);
    }
    if let Some((front, n)) = name.rsplit_once('-')
        && let Ok(n) = n.parse()
        && let Some((recipe, time)) = timed(front)
    {
        return (recipe, Some(time), n);
    }
    (name, None, 1)
}

/// `recipe` as the beginning of a file name: short, visible, and of letters that need no quoting.
fn file_name(recipe: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = recipe.chars().map(plain).take(64).collect();
    match name.trim_start_matches(['.', '-']) {
        "" => "run".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::scratch::Scratch;

    #[test]
    fn a_name_is_never_used_twice() {
        let scratch = Scratch::new();
        let root = scratch.path().join("not/there/yet");
        let time = Utc::from_unix(1_795_294_406);
        let names: Vec<String> =
            (0..3).map(|_| RunFolder::create_at(&root, "digits", time).unwrap().name()).collect();
        let expected =
            ["digits-20261121-205326", "digits-20261121-205326-2", "digits-20261121-205326-3"];
        assert_eq!(names, expected);
        assert_eq!(parse_name(&names[0]), ("digits", Some(time), 1));
        assert_eq!(parse_name(&names[2]), ("digits", Some(time), 3));
        assert_eq!(parse_name("best-of-3"), ("best-of-3", None, 1));
        assert_eq!(parse_name("é-20261121-205326"), ("é", Some(time), 1));
    }

    #[test]
    fn recipes_become_file_names() {
        assert_eq!(file_name("../my net.toml"), "my-net.toml");
        assert_eq!(file_name("…"), "run");
        assert_eq!(file_name(&"x".repeat(500)).len(), 64);
    }

    #[test]
    fn files_are_written_whole_and_read_back() {
        let scratch = Scratch::new();
        let folder = RunFolder::create(scratch.path(), "digits").unwrap();
        folder.write_config("lr = 0.001\n").unwrap();
        folder.write_config("lr = 0.002\n").unwrap();
        let again = RunFolder::open(folder.path()).unwrap();
        assert_eq!(again.config().unwrap(), "lr = 0.002\n");
        assert_eq!(again.root(), scratch.path());
        let text = again.read(MODEL).unwrap_err().to_string();
        assert!(text.contains(MODEL), "{text}");
    }

    #[test]
    fn what_is_not_a_run_folder_is_named() {
        let scratch = Scratch::new();
        let text = RunFolder::open(scratch.path()).unwrap_err().to_string();
        assert!(text.contains("not the folder of a run"), "{text}");
        let missing = scratch.path().join("missing");
        assert!(
            matches!(RunFolder::open(&missing), Err(Error::Io { path, .. }) if path == missing)
        );
        let file = scratch.path().join("file");
        fs::write(&file, "x").unwrap();
        let text = RunFolder::open(&file).unwrap_err().to_string();
        assert!(text.contains("not a folder"), "{text}");
    }

    #[test]
    fn a_root_that_cannot_be_made_is_named() {
        let scratch = Scratch::new();
        let file = scratch.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let root = file.join("runs");
        let error = RunFolder::create(&root, "digits").unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == root), "{error}");
    }

    #[test]
    fn one_trains_at_a_time() {
        let scratch = Scratch::new();
        let first = RunFolder::create(scratch.path(), "digits").unwrap();
        let mut second = RunFolder::open(first.path()).unwrap();
        assert!(second.is_running() && !second.is_locked());
        let text = second.lock().unwrap_err().to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        drop(first);
        assert!(!second.is_running());
        second.lock().unwrap();
        assert!(second.is_running() && second.is_locked());
    }

    /// A process that is killed lets go: the parent starts itself again as the holder of the lock.
    #[test]
    fn a_killed_process_lets_go() {
        const HOLD: &str = "TWOCLOCKS_TEST_HOLD_LOCK";
        if let Ok(path) = std::env::var(HOLD) {
            let mut folder = RunFolder::open(path).unwrap();
            folder.lock().unwrap();
            folder.write_atomic("locked", b"").unwrap();
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        let scratch = Scratch::new();
        let path = RunFolder::create(scratch.path(), "digits").unwrap().path().to_owned();
        let test = "runs::folder::tests::a_killed_process_lets_go";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(HOLD, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        while !path.join("locked").exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "the child never locked");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut folder = RunFolder::open(&path).unwrap();
        let text = folder.lock().unwrap_err().to_string();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(text.contains(&format!("process {}", child.id())), "{text}");
        folder.lock().unwrap();
    }
}
