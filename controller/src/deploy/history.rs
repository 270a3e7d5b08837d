//! The history: one JSON object per line for every command that changed something or tried to.
//!
//! It is bounded: when it has become too long, the newest entries are kept, and those of deploys and rollbacks longer than
//! others, since a rollback needs them. A watch by cron may add one every minute.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use uh_protocol::{BackendName, ServiceName};

use super::trial::TrialVerdict;
use crate::downtime::Downtime;
use crate::evidence::Breach;
use crate::files;

/// One entry. Fields may be added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When it ended: ISO 8601, UTC.
    pub at: String,
    /// The operation's id, if the command was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// `deploy`, `rollback`, `watch`, `retire`, `maintenance`.
    pub command: String,
    /// User and host.
    pub who: String,
    /// The service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The active backend before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<BackendName>,
    /// The version there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_version: Option<String>,
    /// The target, or the backend that the command concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<BackendName>,
    /// The version there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Image digest or program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// How it ended: `deployed`, `rolled_back`, `failed`, `returned`, `superseded`, `attention`, `held` or `done`; for a
    /// watch: `ok`, `not enough data`, `breach` or `superseded`.
    pub outcome: String,
    /// Why, in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why a watch found the version bad, also for the rollback it caused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breach: Option<Breach>,
    /// What the trial of a deploy found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialVerdict>,
    /// Remarks: `health gate skipped`, `recovered after an interruption`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// How long each part took, in milliseconds.
    #[serde(default, skip_serializing_if = "Timings::is_empty")]
    pub timings_ms: Timings,
    /// Exchanges that the old backend held when traffic moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// How many of them finished during the drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<u64>,
    /// How many were cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<u64>,
    /// The active backend at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves: Option<BackendName>,
    /// The version there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves_version: Option<String>,
    /// What users noticed, from uh-proxy's counters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime: Option<Downtime>,
}

/// How long each part took, in milliseconds.
pub type Timings = std::collections::BTreeMap<String, u64>;

/// A longer history is shortened to half of this. That is some six thousand entries, and every command reads all of it.
const MAX_BYTES: usize = 4 << 20;

/// How long another process may hold the file: it writes one entry, and shortens the history at most.
const LOCKED_FOR: Duration = Duration::from_secs(10);

/// How often to try.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// The history of a state directory.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
    max_bytes: usize,
}

impl History {
    /// The history of this state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("history.jsonl"), max_bytes: MAX_BYTES }
    }

    /// Appends an entry and syncs it. An operation that already has one, from before an interruption, gets no second. Then
    /// shortens the history if it is too long.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn append(&self, line: &HistoryEntry) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            files::make_directory(directory)?;
        }
        let mut file = self.locked()?;
        let mut content = files::read(&self.path)?.unwrap_or_default();
        let known =
            line.operation.is_some() && entries(&content).any(|(_, other)| other.operation == line.operation);
        if known {
            return Ok(());
        }
        let mut text = serde_json::to_string(line)?;
        // After a torn line, start a new one.
        if !content.is_empty() && !content.ends_with(b"\n") {
            text.insert(0, '\n');
        }
        text.push('\n');
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        content.extend_from_slice(text.as_bytes());
        if content.len() <= self.max_bytes {
            return Ok(());
        }
        files::replace(&self.path, &newest(&content, self.max_bytes / 2))
    }

    /// The file, for appending. Nobody else appends until it is dropped: an entry that another process, such as a watch, adds
    /// to a file that is being replaced would be lost.
    fn locked(&self) -> io::Result<File> {
        let deadline = Instant::now() + LOCKED_FOR;
        loop {
            let file = files::append(&self.path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, &self.path)? => return Ok(file),
                // It was replaced meanwhile.
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_POLL),
                Err(e) => return Err(e.into()),
            }
            if Instant::now() >= deadline {
                let reason = format!(
                    "another process has locked {} for {} s",
                    self.path.display(),
                    LOCKED_FOR.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
        }
    }

    /// All readable entries, oldest first.
    ///
    /// # Errors
    /// The file exists but can't be read.
    pub fn lines(&self) -> io::Result<Vec<HistoryEntry>> {
        let text = files::read(&self.path)?.unwrap_or_default();
        Ok(entries(&text).map(|(_, entry)| entry).collect())
    }
}

/// Whether this is the file at this path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The readable lines, oldest first.
fn entries(text: &[u8]) -> impl Iterator<Item = (&[u8], HistoryEntry)> {
    text.split(|byte| *byte == b'\n').filter_map(|line| Some((line, serde_json::from_slice(line).ok()?)))
}

/// The newest lines in at most so many bytes. Those of operations get the first half of the room, however many others are
/// newer, and the newest of them is always there.
fn newest(text: &[u8], most: usize) -> Vec<u8> {
    let mut lines: Vec<_> =
        entries(text).map(|(line, entry)| (line, entry.operation.is_some(), false)).collect();
    let mut used = 0;
    for (of_operations, room) in [(true, most / 2), (false, most)] {
        for (line, is_operation, kept) in lines.iter_mut().rev() {
            if *kept || (of_operations && !*is_operation) {
                continue;
            }
            let is_first = of_operations && used == 0;
            if used + line.len() >= room && !is_first {
                break;
            }
            used += line.len() + 1;
            *kept = true;
        }
    }
    let kept = lines.iter().filter(|(.., kept)| *kept);
    kept.flat_map(|(line, ..)| line.iter().chain(b"\n")).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(dir: &Path, max_bytes: usize) -> History {
        History { max_bytes, ..History::new(dir) }
    }

    fn of_operation(name: &str) -> HistoryEntry {
        HistoryEntry { operation: Some(name.to_owned()), ..HistoryEntry::default() }
    }

    fn of_watch(number: u32) -> HistoryEntry {
        HistoryEntry { reason: Some(format!("watch {number}")), ..HistoryEntry::default() }
    }

    #[test]
    fn a_long_history_is_shortened_to_whole_lines_and_keeps_the_last_deploys() {
        const MAX: usize = 8000;
        let dir = tempfile::tempdir().unwrap();
        let history = short(dir.path(), MAX);
        for deploy in 0..10 {
            history.append(&of_operation(&format!("deploy {deploy}"))).unwrap();
        }
        for watch in 0..400 {
            history.append(&of_watch(watch)).unwrap();
            assert!(fs::metadata(&history.path).unwrap().len() <= MAX as u64);
        }
        let text = fs::read_to_string(&history.path).unwrap();
        let lines = history.lines().unwrap();
        assert!(text.ends_with('\n') && text.lines().count() == lines.len(), "{text}");
        assert_eq!(lines.iter().filter(|line| line.operation.is_some()).count(), 10);
        let watches: Vec<_> = lines.iter().filter(|line| line.operation.is_none()).collect();
        assert!(watches.len() >= 40, "{}", watches.len());
        let first = 400 - u32::try_from(watches.len()).unwrap();
        for (number, watch) in (first..).zip(watches) {
            assert_eq!(*watch, of_watch(number), "the newest ones, in order");
        }
    }

    #[test]
    fn the_last_deploy_is_kept_even_if_its_entry_alone_is_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let history = short(dir.path(), 1000);
        let long = HistoryEntry { remarks: vec!["x".repeat(5000)], ..of_operation("deploy") };
        history.append(&of_operation("earlier")).unwrap();
        history.append(&long).unwrap();
        for watch in 0..20 {
            history.append(&of_watch(watch)).unwrap();
        }
        assert_eq!(history.lines().unwrap(), [long]);
    }

    /// A watch and a deploy write at the same time.
    #[test]
    fn nothing_is_lost_between_processes_while_the_history_is_shortened() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &'static str| {
            let history = short(dir.path(), 40_000);
            move || {
                for number in 0..50 {
                    history.append(&of_operation(&format!("{name} {number}"))).unwrap();
                    let long = HistoryEntry { remarks: vec!["x".repeat(4000)], ..of_watch(number) };
                    history.append(&long).unwrap();
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(write("one"));
            scope.spawn(write("two"));
        });
        let lines = short(dir.path(), 40_000).lines().unwrap();
        assert_eq!(lines.iter().filter(|line| line.operation.is_some()).count(), 100);
        assert!(lines.len() < 115, "it was shortened");
    }

    #[test]
    fn an_operation_is_recorded_once_and_torn_lines_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        history.append(&of_operation("one")).unwrap();
        history.append(&of_operation("one")).unwrap();
        let mut file = files::append(&dir.path().join("history.jsonl")).unwrap();
        file.write_all(b"{\"at\": \"20").unwrap();
        history.append(&of_operation("two")).unwrap();
        let names: Vec<_> = history.lines().unwrap().into_iter().filter_map(|line| line.operation).collect();
        assert_eq!(names, ["one", "two"]);
    }
}
