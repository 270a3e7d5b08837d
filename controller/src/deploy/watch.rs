//! The watch after a deploy, on disk: what it has counted so far and when it ends. Saved at every tick, so that the
//! next command can continue it if its process is gone.
//!
//! It has its own file and lock, separate from the journal's, because rollbacks and deploys must be possible during a
//! watch. The process that holds this lock is watching. If the lock is free and the watch hasn't ended, its process
//! is gone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use uh_protocol::{BackendName, ServiceName};

use super::activation::PreviousActivation;
use super::lock::lock_soon;
use super::trial::EarlierTrial;
use crate::counters::{Counters, Reading};
use crate::files;
use crate::verdict::judge::{JudgeState, Suspicion};

/// The newest version of the file's format: with what a cross-check leaves.
pub(crate) const SCHEMA: u32 = 2;

/// Its first version, which every uh-deploy can read.
const FIRST_SCHEMA: u32 = 1;

/// The planned watch of an operation. Part of its facts, and therefore in the journal before it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchPlan {
    /// How long to watch, in milliseconds.
    pub duration_ms: u64,
    /// The time between two ticks, in milliseconds.
    pub interval_ms: u64,
    /// Whether a breach causes a rollback.
    pub auto_rollback: bool,
    /// Whether all services of a release are watched together. Then only a command for the release continues it, because
    /// a rollback moves all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_release: bool,
}

impl WatchPlan {
    /// A plan.
    #[must_use]
    pub fn new(duration: Duration, interval: Duration, auto_rollback: bool) -> Self {
        let ms = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        Self { duration_ms: ms(duration), interval_ms: ms(interval), auto_rollback, of_release: false }
    }

    /// The same, for a member of a release.
    #[must_use]
    pub fn of_release(self) -> Self {
        Self { of_release: true, ..self }
    }

    /// How long to watch.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.duration_ms)
    }

    /// The time between two ticks.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.max(1))
    }
}

/// A watch, as it was at its last tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Watch {
    /// The version of the format.
    pub schema: u32,
    /// The id of its deploy.
    pub operation: String,
    pub service: ServiceName,
    /// The watched backend.
    pub backend: BackendName,
    pub version: Option<String>,
    /// uh-proxy's `last_switch` when it started: a different value means another activation.
    pub last_switch: Option<String>,
    pub plan: WatchPlan,
    /// When it started: ISO 8601, UTC.
    pub began_at: String,
    /// When it ends: ISO 8601, UTC.
    pub ends_at: String,
    /// What served before, and its counters.
    pub before: Option<PreviousActivation>,
    /// The last reading.
    pub last: Reading,
    /// Everything counted since the switch.
    pub seen: Counters,
    /// The judge's memory.
    pub memory: JudgeState,
    /// Its verdict; `None`: it hasn't ended.
    pub verdict: Option<String>,
    /// The cross-check that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_check: Option<Box<CrossCheck>>,
}

/// Half of the clients are on the old version, to see whether that one fails too. In the file before uh-proxy is asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CrossCheck {
    /// The backend of the old version.
    pub with: BackendName,
    /// When it began: ISO 8601, UTC.
    pub began_at: String,
    /// Why.
    pub suspicion: Suspicion,
    /// What uh-proxy's status showed of an earlier trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<EarlierTrial>,
}

impl Watch {
    /// Whether it has ended.
    #[must_use]
    pub(crate) fn has_ended(&self) -> bool {
        self.verdict.is_some()
    }

    /// Ends it. Nobody continues it, so what its cross-checks left isn't needed any more.
    pub(crate) fn end(&mut self, verdict: &str) {
        self.verdict = Some(verdict.to_owned());
        self.cross_check = None;
        self.memory = self.memory.without_cross_checks();
    }

    /// The file's text, in the oldest format that has room for it.
    fn text(&self) -> serde_json::Result<String> {
        let is_first = self.cross_check.is_none() && self.memory == self.memory.without_cross_checks();
        let schema = if is_first { FIRST_SCHEMA } else { SCHEMA };
        serde_json::to_string(&Self { schema, ..self.clone() })
    }

    /// Its remaining time. Never more than its whole duration, even if the clock was changed.
    #[must_use]
    pub(crate) fn left(&self, now: Timestamp) -> Duration {
        let end: Option<Timestamp> = self.ends_at.parse().ok();
        let left = end.and_then(|end| Duration::try_from(end.duration_since(now)).ok());
        left.unwrap_or_default().min(self.plan.duration())
    }
}

/// The watch's file, held by the process that watches.
#[derive(Debug)]
pub(crate) struct WatchFile {
    path: PathBuf,
    _lock: File,
}

impl WatchFile {
    /// Takes the watch's lock. `None`: another process is watching.
    ///
    /// # Errors
    /// The file can't be opened or locked.
    pub(crate) fn claim(state_dir: &Path) -> io::Result<Option<Self>> {
        files::make_directory(state_dir)?;
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path(state_dir))?;
        Ok(lock_soon(&lock)?.then(|| Self { path: path(state_dir), _lock: lock }))
    }

    /// Saves its progress.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn save(&self, watch: &Watch) -> io::Result<()> {
        files::replace(&self.path, watch.text()?.as_bytes())
    }
}

/// The newest watch, no matter which process holds it.
///
/// # Errors
/// The file exists but can't be read.
pub(crate) fn look(state_dir: &Path) -> io::Result<Option<Watch>> {
    let path = path(state_dir);
    let Some(text) = files::read(&path)? else { return Ok(None) };
    let watch: Watch = serde_json::from_slice(&text).map_err(|e| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {e}", path.display()))
    })?;
    if watch.schema > SCHEMA {
        let message =
            format!("{}: schema {} is newer than this uh-deploy supports", path.display(), watch.schema);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Some(watch))
}

/// Whether a process is watching now. Holds the lock for a moment, which `claim` waits for.
///
/// # Errors
/// The file can't be opened or locked.
pub(crate) fn is_running(state_dir: &Path) -> io::Result<bool> {
    let lock = match File::open(lock_path(state_dir)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Closes the watch of an operation that failed. Only for the process that was watching.
///
/// # Errors
/// The file can't be read or written.
pub(crate) fn close(state_dir: &Path, operation: &str, verdict: &str) -> io::Result<()> {
    match look(state_dir)? {
        Some(mut watch) if watch.operation == operation && !watch.has_ended() => {
            watch.end(verdict);
            files::replace(&path(state_dir), watch.text()?.as_bytes())
        }
        _ => Ok(()),
    }
}

fn lock_path(state_dir: &Path) -> PathBuf {
    state_dir.join("watch.lock")
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("watch.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_process_can_watch_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = WatchFile::claim(dir.path()).unwrap().unwrap();
        assert!(WatchFile::claim(dir.path()).unwrap().is_none());
        assert!(is_running(dir.path()).unwrap());
        drop(first);
        assert!(!is_running(dir.path()).unwrap());
        assert!(WatchFile::claim(dir.path()).unwrap().is_some());
    }

    /// As an uh-deploy of this format has written it, in a cross-check after another one.
    const IN_A_CHECK: &str = r#"{"schema":2,"operation":"one","service":"app","backend":"green","version":"2","last_switch":"2026-11-30T10:00:00.000Z",
        "plan":{"duration_ms":300000,"interval_ms":10000,"auto_rollback":true},"began_at":"2026-11-30T10:00:00.000Z","ends_at":"2026-11-30T10:05:00.000Z",
        "before":{"backend":"blue","version":"1","counters":{"ended":{"GET 200":900},"broken":{},"overdue":0,"took":{"+Inf":900}}},
        "last":{"process":{"pid":7,"started_s":100,"boot":"b"},"counters":{"ended":{"GET 200":80,"GET 500":20},"broken":{},"overdue":0,"took":{}}},
        "seen":{"ended":{"GET 200":80,"GET 500":20},"broken":{},"overdue":0,"took":{}},
        "memory":{"bad_in_a_row":0,"last_reason":null,"settled":{"ended":{"GET 200":40,"GET 500":4},"broken":{},"overdue":0,"took":{}},"cross_checks":1},
        "verdict":null,
        "cross_check":{"with":"blue","began_at":"2026-11-30T10:01:00.000Z","suspicion":{"reason":"16 of 56 requests failed","enough":true,"slow":false},
            "earlier":{"backend":"green","new_requests":9,"new_bad":1,"old_requests":9,"old_bad":0,"request_ids":["a"]}}}"#;

    #[test]
    fn a_watch_in_a_cross_check_is_read_and_written_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        files::replace(&path(dir.path()), IN_A_CHECK.as_bytes()).unwrap();
        let watch = look(dir.path()).unwrap().unwrap();
        let check = watch.cross_check.as_ref().unwrap();
        assert_eq!((check.with.as_str(), &*check.suspicion.reason), ("blue", "16 of 56 requests failed"));
        assert_ne!(watch.memory, watch.memory.without_cross_checks());
        let file = WatchFile::claim(dir.path()).unwrap().unwrap();
        file.save(&watch).unwrap();
        let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
        let written = std::fs::read(path(dir.path())).unwrap();
        assert_eq!(json(&written), json(IN_A_CHECK.as_bytes()));
        // One that has ended leaves nothing that an earlier uh-deploy can't read.
        drop(file);
        close(dir.path(), "one", "breach").unwrap();
        let ended = json(&std::fs::read(path(dir.path())).unwrap());
        assert_eq!((&ended["schema"], &ended["verdict"]), (&1.into(), &"breach".into()));
        assert!(ended.get("cross_check").is_none() && ended["memory"].get("settled").is_none(), "{ended}");
        let newer = IN_A_CHECK.replace("\"schema\":2", "\"schema\":3");
        files::replace(&path(dir.path()), newer.as_bytes()).unwrap();
        assert!(look(dir.path()).unwrap_err().to_string().contains("schema 3 is newer"));
    }

    #[test]
    fn a_damaged_file_is_an_error_rather_than_no_watch() {
        let dir = tempfile::tempdir().unwrap();
        assert!(look(dir.path()).unwrap().is_none());
        std::fs::write(path(dir.path()), "{\"schema\": 1").unwrap();
        assert!(look(dir.path()).unwrap_err().to_string().contains("is damaged"));
    }
}
