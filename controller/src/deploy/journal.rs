//! The journal: one JSON object per line, appended and synced before anything follows from it.
//!
//! Nothing followed from a torn last line (the machine lost power during the write), so a last line that can't be
//! read is ignored. Damage anywhere else is an error that needs manual intervention.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::facts::OperationFacts;
use super::machine::{Event, IllegalEvent, OperationKind, Phase, step};
use crate::{fault, files, time};

/// The version of the format. Version 1 had no final look at uh-proxy, and no settling after a rollback.
pub const SCHEMA: u32 = 2;

/// A longer journal is emptied before the next operation; the history keeps what matters.
const MAX_BYTES: u64 = 1 << 20;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The version of the format.
    pub schema: u32,
    /// ISO 8601, UTC.
    pub at: String,
    /// Which operation.
    pub operation: String,
    /// What happened.
    pub event: Event,
    /// In the first entry of an operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<OperationFacts>,
    /// A remark for operators, without secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file can't be read or written.
    #[error("can't use the journal {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file isn't the locked one any more.
    #[error("the journal {} was moved or removed while this command was running, so the command stopped. Put the file back, then run `uh-deploy recover`", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// A line other than the last can't be read.
    #[error("the journal {} is damaged at line {line}: {reason}. Inspect it, then move the file away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// Why.
        reason: String,
    },
}

/// The newest operation, reconstructed from its entries.
#[derive(Debug, Clone)]
pub struct ReplayedOperation {
    /// Its facts.
    pub facts: OperationFacts,
    /// The phase it reached.
    pub phase: Phase,
    /// The last note.
    pub note: Option<String>,
    /// The kind of operation.
    pub kind: OperationKind,
    /// Whether it may have sent uh-proxy a switch: before that, its candidate can't serve.
    pub may_serve: bool,
}

impl ReplayedOperation {
    /// Whether something is left to do.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        !matches!(self.phase, Phase::Done(_))
    }
}

/// The journal, open for writing. Only the holder of the lock has the file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Rc<File>,
}

impl Journal {
    /// Reads the newest operation, and prepares for writing. A torn last line is cut off. `file`: the locked file,
    /// from `super::lock::Lock::journal`.
    ///
    /// # Errors
    /// The file can't be read or written, is damaged, or has been replaced.
    pub fn open(directory: &Path, file: Rc<File>) -> Result<(Self, Option<ReplayedOperation>), JournalError> {
        let path = path(directory);
        must_be(&path, &file)?;
        let failed = |source| JournalError::File { path: path.clone(), source };
        let text = files::read(&path).map_err(failed)?.unwrap_or_default();
        let (replayed, whole) = replay(&text).map_err(|(line, reason)| JournalError::Damaged {
            path: path.clone(),
            line,
            reason,
        })?;
        if text.len() as u64 > MAX_BYTES && !replayed.as_ref().is_some_and(ReplayedOperation::is_unfinished) {
            // In place, because this file is the locked one. All operations in it have ended.
            file.set_len(0).and_then(|()| file.sync_all()).map_err(failed)?;
        } else if whole < text.len() {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Ok((Self { path, file }, replayed))
    }

    /// Appends an entry, and returns once it is on disk.
    ///
    /// # Errors
    /// The file can't be written; then nothing may follow from the event.
    pub fn write(
        &mut self,
        operation: &str,
        event: Event,
        facts: Option<&OperationFacts>,
        note: Option<String>,
    ) -> Result<(), JournalError> {
        let at = time::iso_millis(jiff::Timestamp::now());
        let entry = JournalEntry {
            schema: SCHEMA,
            at,
            operation: operation.to_owned(),
            event,
            facts: facts.cloned(),
            note,
        };
        let name = event_name(event);
        fault::point(&format!("journal.{name}.before"));
        must_be(&self.path, &self.file)?;
        let write = || -> io::Result<()> {
            let mut line = serde_json::to_string(&entry)?;
            line.push('\n');
            (&*self.file).write_all(line.as_bytes())?;
            fault::point(&format!("journal.{name}.written"));
            self.file.sync_data()
        };
        write().map_err(|source| JournalError::File { path: self.path.clone(), source })?;
        fault::point(&format!("journal.{name}.after"));
        Ok(())
    }
}

/// Reads the newest operation, without changing anything.
///
/// # Errors
/// It can't be read, or is damaged.
pub fn look(directory: &Path) -> Result<Option<ReplayedOperation>, JournalError> {
    let path = path(directory);
    let text = files::read(&path).map_err(|source| JournalError::File { path: path.clone(), source })?;
    let replayed = replay(&text.unwrap_or_default());
    replayed.map(|(replayed, _)| replayed).map_err(|(line, reason)| JournalError::Damaged {
        path,
        line,
        reason,
    })
}

/// The path of the journal in a state directory.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("journal.jsonl")
}

/// Requires that the path still names the locked file: another file could be locked by another process.
fn must_be(path: &Path, file: &File) -> Result<(), JournalError> {
    use std::os::unix::fs::MetadataExt as _;
    let failed = |source| JournalError::File { path: path.to_owned(), source };
    let ours = file.metadata().map_err(failed)?;
    match std::fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => Ok(()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Err(JournalError::Replaced { path: path.to_owned() }),
    }
}

fn event_name(event: Event) -> String {
    // Without the details, as in `failed(unhealthy)`: fault points only need the name.
    let text = format!("{event:?}");
    text.split('(').next().unwrap_or_default().to_ascii_lowercase()
}

/// The newest operation, and how many bytes of the text are readable lines.
fn replay(text: &[u8]) -> Result<(Option<ReplayedOperation>, usize), (usize, String)> {
    let mut replayed: Option<ReplayedOperation> = None;
    let mut whole = 0;
    let mut lines = text.split_inclusive(|b| *b == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let is_last = lines.peek().is_none();
        let entry = read(line);
        match entry {
            Ok(entry) => follow(&mut replayed, entry).map_err(|reason| (index + 1, reason))?,
            Err(_) if is_last => break,
            Err(reason) => return Err((index + 1, reason)),
        }
        whole += line.len();
    }
    Ok((replayed, whole))
}

fn read(line: &[u8]) -> Result<JournalEntry, String> {
    if !line.ends_with(b"\n") {
        return Err("the line is incomplete".to_owned());
    }
    let entry: JournalEntry = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    if entry.schema > SCHEMA {
        return Err(format!("schema {} is newer than this uh-deploy supports ({SCHEMA})", entry.schema));
    }
    Ok(entry)
}

fn follow(replayed: &mut Option<ReplayedOperation>, entry: JournalEntry) -> Result<(), String> {
    let illegal = |e: IllegalEvent| e.to_string();
    if let Event::Begun(_) = entry.event {
        if let Some(before) = replayed.as_ref().filter(|replayed| replayed.is_unfinished()) {
            return Err(format!(
                "operation {} starts before {} has ended",
                entry.operation, before.facts.operation
            ));
        }
        let facts = entry.facts.ok_or("an operation starts without its facts")?;
        let (phase, _) = step(Phase::Idle, entry.event).map_err(illegal)?;
        let kind = if phase == Phase::Checking { OperationKind::Rollback } else { OperationKind::Deploy };
        *replayed = Some(ReplayedOperation { facts, phase, note: entry.note, kind, may_serve: false });
        return Ok(());
    }
    let replayed = replayed.as_mut().filter(|replayed| replayed.facts.operation == entry.operation);
    let replayed = replayed.ok_or_else(|| format!("operation {} has no first line", entry.operation))?;
    if entry.schema < 2 && entry.event == Event::Recorded {
        for implied in [Event::Settled, Event::Confirmed] {
            replayed.phase = step(replayed.phase, implied).map_or(replayed.phase, |(next, _)| next);
        }
    }
    replayed.phase = step(replayed.phase, entry.event).map_err(illegal)?.0;
    replayed.may_serve |= matches!(replayed.phase, Phase::Switching(_));
    if entry.note.is_some() {
        replayed.note = entry.note;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::machine::{FailureCause, Outcome};
    use super::*;
    use crate::runtime::InstanceId;

    pub(crate) fn facts(operation: &str) -> OperationFacts {
        let (service, blue, green) =
            ("app".parse().unwrap(), "blue".parse().unwrap(), "green".parse().unwrap());
        OperationFacts {
            operation: operation.to_owned(),
            instance: InstanceId::new(&service, &green, operation),
            service,
            from: blue,
            from_version: Some("1".to_owned()),
            to: green,
            version: Some("2".to_owned()),
            endpoints: vec!["127.0.0.1:3009".parse().unwrap()],
            generation: 7,
            last_switch: None,
            skip_health: false,
            keep_failed: false,
            who: "me@here".to_owned(),
            why: None,
            breach: None,
            watch: None,
            began_at: "2026-11-25T10:00:00.000Z".to_owned(),
        }
    }

    const WELL: [Event; 7] = [
        Event::Built,
        Event::Started,
        Event::Proven,
        Event::Switched,
        Event::Drained,
        Event::Confirmed,
        Event::Recorded,
    ];

    fn open(directory: &Path) -> (Journal, Option<ReplayedOperation>) {
        let file = files::append(&path(directory)).unwrap();
        Journal::open(directory, Rc::new(file)).unwrap()
    }

    fn write_all(directory: &Path, operation: &str, events: &[Event]) {
        let (mut journal, _) = open(directory);
        journal.write(operation, Event::Begun(OperationKind::Deploy), Some(&facts(operation)), None).unwrap();
        for event in events {
            journal.write(operation, *event, None, None).unwrap();
        }
    }

    #[test]
    fn the_newest_operation_is_read_with_its_phase() {
        let dir = tempfile::tempdir().unwrap();
        assert!(look(dir.path()).unwrap().is_none());
        write_all(dir.path(), "one", &WELL);
        write_all(dir.path(), "two", &WELL[..3]);
        let replayed = look(dir.path()).unwrap().unwrap();
        assert!(replayed.is_unfinished());
        assert_eq!(replayed.facts, facts("two"));
        assert!(matches!(replayed.phase, Phase::Draining(_) | Phase::Switching(_)));
    }

    #[test]
    fn damage_before_the_end_is_an_error_that_names_the_line() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), "one", &WELL);
        let text = std::fs::read_to_string(path(dir.path())).unwrap();
        std::fs::write(path(dir.path()), text.replacen("proven", "improven", 1)).unwrap();
        let message = look(dir.path()).unwrap_err().to_string();
        assert!(message.contains("is damaged at line 4"), "{message}");
    }

    #[test]
    fn an_operation_finished_by_an_earlier_version_counts_as_finished() {
        let dir = tempfile::tempdir().unwrap();
        let events =
            ["\"built\"", "\"started\"", "\"proven\"", "\"switched\"", "\"drained\"", "\"recorded\""];
        write_all(dir.path(), "one", &[]);
        let mut text = std::fs::read_to_string(path(dir.path())).unwrap();
        for event in events {
            text.push_str(&format!("{{\"schema\":2,\"at\":\"\",\"operation\":\"one\",\"event\":{event}}}\n"));
        }
        std::fs::write(path(dir.path()), text.replace("\"schema\":2", "\"schema\":1")).unwrap();
        assert_eq!(look(dir.path()).unwrap().unwrap().phase, Phase::Done(Outcome::Deployed));
        let text = text.replace("\"begun\":\"deploy\"", "\"begun\":\"rollback\"");
        let short =
            [text.lines().next().unwrap(), text.lines().nth(4).unwrap(), text.lines().nth(6).unwrap()];
        let alive = short[1].replace("switched", "alive");
        let text =
            [short[0], &alive, short[1], short[2], ""].join("\n").replace("\"schema\":2", "\"schema\":1");
        std::fs::write(path(dir.path()), text).unwrap();
        assert_eq!(look(dir.path()).unwrap().unwrap().phase, Phase::Done(Outcome::RolledBack));
    }

    #[test]
    fn a_journal_that_was_moved_away_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), "one", &WELL);
        let (mut journal, _) = open(dir.path());
        std::fs::rename(path(dir.path()), dir.path().join("moved")).unwrap();
        for another in [false, true] {
            if another {
                std::fs::write(path(dir.path()), "").unwrap();
            }
            let error = journal
                .write("two", Event::Begun(OperationKind::Deploy), Some(&facts("two")), None)
                .unwrap_err();
            assert!(matches!(error, JournalError::Replaced { .. }), "{error}");
        }
    }

    #[test]
    fn a_long_journal_is_emptied_once_nothing_is_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        let line = |n: usize| {
            format!(
                "{}\n",
                serde_json::json!({"schema": 1, "at": "", "operation": "one", "event": "interrupted", "note": "x".repeat(n)})
            )
        };
        write_all(dir.path(), "one", &[Event::Failed(FailureCause::Build)]);
        let mut text = std::fs::read_to_string(path(dir.path())).unwrap();
        text.push_str(&line(usize::try_from(MAX_BYTES).unwrap()));
        std::fs::write(path(dir.path()), &text).unwrap();
        let (mut journal, replayed) = open(dir.path());
        assert!(replayed.unwrap().is_unfinished());
        journal.write("one", Event::Undone, None, None).unwrap();
        journal.write("one", Event::Confirmed, None, None).unwrap();
        journal.write("one", Event::Recorded, None, None).unwrap();
        let (_, replayed) = open(dir.path());
        assert_eq!(replayed.unwrap().phase, Phase::Done(Outcome::Failed(FailureCause::Build)));
        assert!(look(dir.path()).unwrap().is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Cut anywhere, a journal reads as if the torn line had never been started, and can be appended to.
        #[test]
        fn a_journal_cut_anywhere_reads_as_if_the_torn_line_never_started(cut in 0usize..3000) {
            let dir = tempfile::tempdir().unwrap();
            write_all(dir.path(), "one", &WELL[..4]);
            let text = std::fs::read(path(dir.path())).unwrap();
            let cut = cut.min(text.len());
            std::fs::write(path(dir.path()), &text[..cut]).unwrap();
            let whole = text[..cut].iter().filter(|b| **b == b'\n').count();
            let (mut journal, replayed) = open(dir.path());
            prop_assert_eq!(replayed.is_some(), whole > 0);
            if replayed.is_some() {
                journal.write("one", Event::Interrupted, None, None).unwrap();
                let after = look(dir.path()).unwrap().unwrap();
                prop_assert!(after.is_unfinished());
            }
        }

        #[test]
        fn no_bytes_panic_the_reader(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = replay(&text);
        }
    }
}
