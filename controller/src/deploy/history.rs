//! The history: one JSON object per line for every command that changed something or tried to.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

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

/// The history of a state directory.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
}

impl History {
    /// The history of this state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("history.jsonl") }
    }

    /// Appends an entry and syncs it. An operation that already has one, from before an interruption, gets no second.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn append(&self, line: &HistoryEntry) -> io::Result<()> {
        let known = self.lines()?;
        if line.operation.is_some() && known.iter().any(|other| other.operation == line.operation) {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            files::make_directory(directory)?;
        }
        let mut file = files::append(&self.path)?;
        let mut text = serde_json::to_string(line)?;
        // After a torn line, start a new one.
        if files::read(&self.path)?.is_some_and(|text| !text.is_empty() && !text.ends_with(b"\n")) {
            text.insert(0, '\n');
        }
        text.push('\n');
        file.write_all(text.as_bytes())?;
        file.sync_data()
    }

    /// All readable entries, oldest first.
    ///
    /// # Errors
    /// The file exists but can't be read.
    pub fn lines(&self) -> io::Result<Vec<HistoryEntry>> {
        let text = files::read(&self.path)?.unwrap_or_default();
        let lines = text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        Ok(lines.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_recorded_once_and_torn_lines_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let line = |operation: &str| HistoryEntry {
            operation: Some(operation.to_owned()),
            ..HistoryEntry::default()
        };
        history.append(&line("one")).unwrap();
        history.append(&line("one")).unwrap();
        let mut file = files::append(&dir.path().join("history.jsonl")).unwrap();
        file.write_all(b"{\"at\": \"20").unwrap();
        history.append(&line("two")).unwrap();
        let names: Vec<_> = history.lines().unwrap().into_iter().filter_map(|line| line.operation).collect();
        assert_eq!(names, ["one", "two"]);
    }
}
