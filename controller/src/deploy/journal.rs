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
use super::machine::{Event, FailureCause, IllegalEvent, OperationKind, Phase, step};
use crate::{fault, files, time};

/// The version of the format. Version 1 had no final look at uh-proxy, and no settling after a rollback; 2 had no trials.
pub const SCHEMA: u32 = 3;

/// The version of entries that an earlier uh-deploy can read too.
const SCHEMA_WITHOUT_TRIALS: u32 = 2;

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
    /// The facts of the other members, if several services move together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OperationFacts>,
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
    /// The facts of the other members, if several services move together.
    pub others: Vec<OperationFacts>,
    /// The phase it reached.
    pub phase: Phase,
    /// The last note.
    pub note: Option<String>,
    /// The kind of operation.
    pub kind: OperationKind,
    /// Whether it may have sent uh-proxy a switch: before that, its candidate can't serve.
    pub may_serve: bool,
    /// The last step of its trial that it reached.
    pub step: Option<u8>,
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
        facts: &[&OperationFacts],
        note: Option<String>,
    ) -> Result<(), JournalError> {
        let at = time::iso_millis(jiff::Timestamp::now());
        let entry = JournalEntry {
            schema: schema_of(event),
            at,
            operation: operation.to_owned(),
            event,
            facts: facts.first().copied().cloned(),
            others: facts.iter().skip(1).copied().cloned().collect(),
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

fn schema_of(event: Event) -> u32 {
    let of_trial = matches!(
        event,
        Event::Step(_)
            | Event::Passed
            | Event::Held
            | Event::Failed(FailureCause::Worse | FailureCause::Undecided | FailureCause::Aborted)
    );
    if of_trial { SCHEMA } else { SCHEMA_WITHOUT_TRIALS }
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
        let (others, note) = (entry.others, entry.note);
        *replayed =
            Some(ReplayedOperation { facts, others, phase, note, kind, may_serve: false, step: None });
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
    replayed.may_serve |= matches!(replayed.phase, Phase::Trying(_) | Phase::Switching(_));
    if let Phase::Trying(step) = replayed.phase {
        replayed.step = Some(step);
    }
    // Why it was held is no reason for what follows a promotion.
    if entry.event == Event::Passed {
        replayed.note = None;
    }
    if entry.note.is_some() {
        replayed.note = entry.note;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
