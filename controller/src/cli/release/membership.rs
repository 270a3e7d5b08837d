//! What a service knows of the release that it is a member of: where the journal is that says whether that release is
//! finished. Until then, no command for the service alone may change anything.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::exit::{CliError, Exit, journal_failed};
use crate::deploy::journal::{self, ReplayedOperation};
use crate::files;

/// The last release that a service was a member of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    /// The release's configuration file.
    pub config: PathBuf,
    /// The directory of its journal.
    pub state_dir: PathBuf,
}

fn path(member: &Path) -> PathBuf {
    member.join("release.json")
}

/// Writes it to the member's state directory, before the release's first journal entry.
///
/// # Errors
/// The file can't be written.
pub(super) fn write(member: &Path, membership: &Membership) -> io::Result<()> {
    files::replace(&path(member), serde_json::to_string(membership)?.as_bytes())
}

fn read(member: &Path) -> Result<Option<Membership>, CliError> {
    let path = path(member);
    let unusable = |e: io::Error| {
        CliError::new(Exit::Attention, format!("can't read {}: {e}; nothing was changed", path.display()))
    };
    let text = files::read(&path).map_err(unusable)?;
    let membership = text.map(|text| serde_json::from_slice(&text)).transpose();
    membership.map_err(|e| unusable(e.into()))
}

/// Whether it was a member of this release the last time.
pub(super) fn is_of(member: &Path, membership: &Membership) -> Result<bool, CliError> {
    Ok(read(member)?.as_ref() == Some(membership))
}

/// The configuration of the last release that this service was a member of.
pub(in crate::cli) fn config(member: &Path) -> Result<PathBuf, CliError> {
    Ok(read(member)?.map_or_else(PathBuf::new, |membership| membership.config))
}

/// The interrupted release that this service is a member of, if there is one.
pub(in crate::cli) fn unfinished(member: &Path) -> Result<Option<ReplayedOperation>, CliError> {
    let Some(membership) = read(member)? else { return Ok(None) };
    let replayed = journal::look(&membership.state_dir).map_err(|e| journal_failed(&e))?;
    Ok(replayed.filter(ReplayedOperation::is_unfinished))
}

/// Refuses while a release that this service is a member of is unfinished.
pub(in crate::cli) fn demand_finished(member: &Path) -> Result<(), CliError> {
    let Some(replayed) = unfinished(member)? else { return Ok(()) };
    let (interrupted, recover) = (interrupted(&replayed), recover(&config(member)?));
    Err(CliError::new(Exit::Attention, format!("{interrupted}; nothing was changed. Run {recover}")))
}

/// The interrupted release that this service is a member of, with the command that finishes it, for a command that only shows
/// something.
pub(in crate::cli) fn in_words(member: &Path) -> Result<Option<String>, CliError> {
    let Some(replayed) = unfinished(member)? else { return Ok(None) };
    Ok(Some(format!("{}. Run {}", interrupted(&replayed), recover(&config(member)?))))
}

fn interrupted(replayed: &ReplayedOperation) -> String {
    format!("this service is part of the release {}, which was interrupted", replayed.facts.operation)
}

fn recover(config: &Path) -> String {
    format!("`uh-deploy recover --config {}`", config.display())
}
