//! `uh-deploy history`

use anyhow::Context as _;

use super::Done;
use super::args::HistoryArgs;
use super::exit::Exit;
use super::session::Session;
use crate::cli::report::Form;
use crate::deploy::history::History;

pub(super) fn history(session: &Session, args: &HistoryArgs) -> Done {
    let mut lines =
        History::new(&session.config.deploy.state_dir).lines().context("can't read the history")?;
    if let Some(limit) = args.limit {
        lines.drain(..lines.len().saturating_sub(limit));
    }
    let report = &session.report;
    report.wait_for_reader();
    if report.form() == Form::Json {
        report.document(&lines);
        return Ok(Exit::Done);
    }
    let dash = || "-".to_owned();
    report.say(&format!(
        "{:<24}  {:<11}  {:<12}  {:<24}  {:<12}  who",
        "when", "command", "outcome", "change", "version"
    ));
    for line in lines {
        let change = match (&line.from, &line.to) {
            (Some(from), Some(to)) => format!("{from} → {to}"),
            (None, Some(to)) => to.to_string(),
            _ => dash(),
        };
        report.say(&format!(
            "{:<24}  {:<11}  {:<12}  {change:<24}  {:<12}  {}",
            line.at,
            line.command,
            line.outcome,
            line.version.unwrap_or_else(dash),
            line.who
        ));
        line.reason.iter().chain(&line.remarks).for_each(|text| report.say(&format!("    {text}")));
    }
    Ok(Exit::Done)
}
