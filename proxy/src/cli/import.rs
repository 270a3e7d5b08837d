//! `uh-proxy import nginx`: the configuration of nginx as one of uh-proxy, and what it can't express.

use std::path::Path;

use super::exit::{Exit, Failed};
use super::{Done, complain, report};
use crate::import::{self, Class, ImportError, Imported};

pub(super) fn nginx(file: &Path) -> Done {
    let imported = import::import(file).map_err(|error| match error {
        ImportError::Load(error) => Failed::usage(format!("{:#}", anyhow::Error::from(error))),
        error @ ImportError::Defect { .. } => anyhow::Error::from(error).into(),
    })?;
    let name = file.file_name().unwrap_or(file.as_os_str()).display();
    for note in imported.notes.iter().filter(|note| note.class != Class::Carried) {
        report(note);
    }
    for line in &imported.defaults {
        report(format_args!("{name}: default: {line}"));
    }
    match &imported.toml {
        Some(toml) => super::print(toml.trim_end())?,
        None => complain("nothing to import: no location passes requests to an app over HTTP"),
    }
    complain(summary(&imported));
    Ok(if imported.changes_behaviour() { Exit::Incomplete } else { Exit::Done })
}

fn summary(imported: &Imported) -> String {
    let count = |class| imported.count(class);
    format!(
        "{} directives: {} carried over, {} not needed, {} to look at, {} that change behaviour",
        imported.notes.len(),
        count(Class::Carried),
        count(Class::NotNeeded),
        count(Class::Look),
        count(Class::Changes)
    )
}
