//! `uh-deploy status`: one screen that answers what an operator asks first. It takes no lock and changes nothing.

mod picture;
mod words;

use std::time::Duration;

use serde_json::json;

use self::picture::Picture;
use super::Done;
use super::args::StatusArgs;
use super::exit::{CliError, Exit};
use super::report::Form;
use super::session::Session;
use crate::time::iso_millis;

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

/// Shows these services, which have one report.
pub(super) async fn status(sessions: &[&Session], args: &StatusArgs) -> Done {
    let Some(report) = sessions.first().map(|session| &session.report) else { return Ok(Exit::Usage) };
    let form = report.form();
    if args.watch && form == Form::Text && !report.is_on_terminal() {
        return Err(CliError::usage(
            "`status --watch` redraws a terminal, and standard output isn't one; with --json it prints a line per second",
        ));
    }
    report.wait_for_reader();
    let mut first = true;
    loop {
        let now = jiff::Timestamp::now();
        let mut pictures = Vec::with_capacity(sessions.len());
        for session in sessions {
            pictures.push(Picture::take(session, now).await);
        }
        match form {
            Form::Json if args.watch => report.event("status", json!({"services": pictures})),
            Form::Json => report.document(&json!({"at": iso_millis(now), "services": pictures})),
            Form::Text => {
                let lines = words::screen(&pictures, now);
                if args.watch { report.redraw(&lines, first) } else { report.show(&lines) }
            }
        }
        if !args.watch {
            return Ok(if pictures.iter().all(|picture| picture.well) { Exit::Done } else { Exit::Failed });
        }
        first = false;
        tokio::time::sleep(EVERY).await;
    }
}
