//! What a rollback undoes. It isn't a toggle: a second rollback must not bring the bad version back. Pure.

use jiff::Timestamp;
use uh_protocol::BackendName;

use crate::deploy::history::HistoryEntry;
use crate::names::{named, version_text};
use crate::proxy::Serving;

/// What an operator, a pipeline or a watch wants to undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UndoRequest<'a> {
    /// Undo the last change.
    LastChange,
    /// Undo the deploy of this version, which must be active.
    Of(&'a str),
    /// Undo the change that made the active backend active; for watches.
    Active,
}

/// The change to undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undo {
    /// The backend that served before.
    pub(super) to: BackendName,
    /// The version that served there.
    version: Option<String>,
    /// When that change ended.
    pub(super) at: Option<Timestamp>,
    /// The operation that made it.
    pub(super) operation: Option<String>,
}

impl Undo {
    /// The backend may hold another version by now, which didn't serve before the change to undo and may be a bad
    /// one. An unknown version, which nobody registered and the last probe didn't report, doesn't count as another one,
    /// unless a deploy put what is there now in its place.
    ///
    /// # Errors
    /// It holds another version. The text says what an operator can do.
    pub(super) fn demand_its_version(
        &self,
        held: Option<&str>,
        history: &[HistoryEntry],
        serving: &Serving,
    ) -> Result<(), String> {
        let Some(now) = held.filter(|now| !self.may_be_its_version(now, history)) else { return Ok(()) };
        let to = &self.to;
        Err(format!(
            "nothing to roll back to: {} served before, but {to} now holds {}; {}. Nothing was changed. To switch to {} instead, run `uh-deploy rollback --to {to} --again`",
            named(to, self.version.as_deref()),
            version_text(now),
            serving.sentence(),
            named(to, held)
        ))
    }

    fn may_be_its_version(&self, held: &str, history: &[HistoryEntry]) -> bool {
        self.version
            .as_deref()
            .map_or_else(|| !was_deployed(history, &self.to, held), |before| before == held)
    }
}

/// Finds the change to undo.
///
/// # Errors
/// There is nothing to undo. The text says why, who serves, and what can be done instead.
pub(super) fn find(
    history: &[HistoryEntry],
    serving: &Serving,
    wanted: UndoRequest<'_>,
) -> Result<Undo, String> {
    let refuse = |why: &str, instead: &str| {
        Err(format!("nothing to roll back to: {why}; {}. Nothing was changed{instead}", serving.sentence()))
    };
    let made_active = |line: &&HistoryEntry| is_kept(line) && line.to.as_ref() == Some(serving.active());
    let instead = history.iter().rev().find(made_active).and_then(|line| line.version.as_deref());
    let instead = instead.map_or_else(
        || ". To switch to a backend, run `uh-deploy rollback --to BACKEND`".to_owned(),
        |version| {
            format!(
                ". To undo the deploy of {}, run `uh-deploy rollback --of {version}`",
                version_text(version)
            )
        },
    );
    let line = match wanted {
        UndoRequest::LastChange => history.iter().rev().find(|line| is_change(line)),
        UndoRequest::Of(_) | UndoRequest::Active => history.iter().rev().find(made_active),
    };
    if let UndoRequest::Of(version) = wanted
        && serving.version().as_deref() != Some(version)
    {
        return refuse(&format!("{} isn't active", version_text(version)), "");
    }
    let Some(line) = line else {
        return refuse("uh-deploy has no change on record", &instead);
    };
    let change = describe(line);
    if !is_kept(line) {
        return match line.outcome.as_str() {
            "failed" => refuse(&format!("{change} failed and changed nothing"), &instead),
            "returned" => refuse(&format!("{change} was already undone because the candidate died"), ""),
            "superseded" => refuse(&format!("{change} was superseded"), ""),
            // It needed manual intervention. If it is active, it can be undone.
            _ if line.to.as_ref() == Some(serving.active()) => target(line, serving),
            _ => refuse(&format!("{change} ended with an error and isn't serving"), ""),
        };
    }
    if wanted == UndoRequest::LastChange && line.command == "rollback" {
        return refuse(&format!("the last change was already undone by {change}"), "");
    }
    if line.to.as_ref() != Some(serving.active()) {
        return refuse(&format!("{change} was already undone"), "");
    }
    // Traffic was moved without uh-deploy since then, so the history of this backend is incomplete.
    let newer =
        history.iter().rev().take_while(|other| !std::ptr::eq(*other, line)).find(|other| is_kept(other));
    if let Some(newer) = newer.filter(|newer| newer.to.as_ref() != Some(serving.active())) {
        let to = newer.to.as_ref().map_or("BACKEND", BackendName::as_str);
        let why =
            format!("{} came after {change}, and traffic was moved back without uh-deploy", describe(newer));
        let instead = format!(
            ". To switch to {} anyway, run `uh-deploy rollback --to {to} --again`",
            newer.to.as_ref().map(|to| named(to, newer.version.as_deref())).unwrap_or_default()
        );
        return refuse(&why, &instead);
    }
    target(line, serving)
}

fn target(line: &HistoryEntry, serving: &Serving) -> Result<Undo, String> {
    let to = line.from.clone().or_else(|| serving.view().service.previous.clone());
    let to =
        to.ok_or_else(|| format!("nothing to roll back to: {}. Nothing was changed", serving.sentence()))?;
    Ok(Undo {
        to,
        version: line.from_version.clone(),
        at: line.at.parse().ok(),
        operation: line.operation.clone(),
    })
}

/// A deploy, however it ended, or a rollback that moved traffic. A failed rollback can be repeated.
fn is_change(line: &HistoryEntry) -> bool {
    line.command == "deploy" || is_kept(line)
}

/// Whether it moved traffic and left it there.
fn is_kept(line: &HistoryEntry) -> bool {
    matches!(
        (line.command.as_str(), line.outcome.as_str()),
        ("deploy", "deployed") | ("rollback", "rolled_back")
    )
}

/// The last change that moved traffic and left it there.
pub(super) fn last_kept(history: &[HistoryEntry]) -> Option<&HistoryEntry> {
    history.iter().rev().find(|line| is_kept(line))
}

fn describe(line: &HistoryEntry) -> String {
    let name = line.to.as_ref().map(|to| named(to, line.version.as_deref())).unwrap_or_default();
    format!("the last {} ({name})", line.command)
}

/// Whether this version was deployed to this backend, however that ended.
fn was_deployed(history: &[HistoryEntry], backend: &BackendName, version: &str) -> bool {
    let arrived =
        |line: &HistoryEntry| line.to.as_ref() == Some(backend) && line.version.as_deref() == Some(version);
    history.iter().any(|line| line.command == "deploy" && arrived(line))
}

/// Whether this version was rolled back, and not deployed or switched to since.
pub(super) fn was_rolled_back(
    history: &[HistoryEntry],
    backend: &BackendName,
    version: Option<&str>,
) -> bool {
    let arrived =
        |line: &HistoryEntry| line.to.as_ref() == Some(backend) && line.version.as_deref() == version;
    let left =
        |line: &HistoryEntry| line.from.as_ref() == Some(backend) && line.from_version.as_deref() == version;
    for line in history.iter().rev() {
        match line.outcome.as_str() {
            "rolled_back" if left(line) => return true,
            "returned" if arrived(line) => return true,
            // Traffic was switched to it and then moved away.
            "superseded" if arrived(line) && line.in_flight.is_some() => return true,
            "deployed" | "rolled_back" if arrived(line) => return false,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(command: &str, outcome: &str, from: (&str, &str), to: (&str, &str)) -> HistoryEntry {
        HistoryEntry {
            command: command.to_owned(),
            outcome: outcome.to_owned(),
            from: Some(from.0.parse().unwrap()),
            from_version: Some(from.1.to_owned()),
            to: Some(to.0.parse().unwrap()),
            version: Some(to.1.to_owned()),
            ..HistoryEntry::default()
        }
    }

    #[test]
    fn a_version_is_rolled_back_until_it_is_deployed_or_taken_again() {
        let green = "green".parse().unwrap();
        let was = |history: &[HistoryEntry]| was_rolled_back(history, &green, Some("2"));
        let deploy = line("deploy", "deployed", ("blue", "1"), ("green", "2"));
        let back = line("rollback", "rolled_back", ("green", "2"), ("blue", "1"));
        let again = line("rollback", "rolled_back", ("blue", "1"), ("green", "2"));
        let died = line("deploy", "returned", ("blue", "1"), ("green", "2"));
        assert!(!was(std::slice::from_ref(&deploy)));
        assert!(was(&[deploy.clone(), back.clone()]));
        assert!(!was(&[deploy.clone(), back.clone(), again]));
        assert!(!was(&[deploy.clone(), back, deploy.clone()]));
        assert!(was(&[died]));
        assert!(!was_rolled_back(&[deploy], &green, Some("3")));
    }

    #[test]
    fn an_unknown_version_is_none_that_a_deploy_has_put_there() {
        let failed = line("deploy", "failed", ("green", "1"), ("blue", "2"));
        let may_be = |before: Option<&str>, held: &str| {
            let undo = Undo {
                to: "blue".parse().unwrap(),
                version: before.map(str::to_owned),
                at: None,
                operation: None,
            };
            undo.may_be_its_version(held, std::slice::from_ref(&failed))
        };
        assert!(may_be(Some("0"), "0") && !may_be(Some("0"), "9"));
        // Its app reports it only now.
        assert!(may_be(None, "0"));
        assert!(!may_be(None, "2"), "the version that failed there");
    }
}
