//! The temporary directory of a run: gone after a good or interrupted one, kept and named after a bad one.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Error, Result};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

/// How many lines of each log are shown when a run fails.
const TAIL_LINES: usize = 12;

/// Makes the directory; only its owner can enter it, as the admin socket demands.
///
/// # Errors
/// When the system refuses.
pub fn create() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("uh-").tempdir()?)
}

/// Runs a program in a directory of its own, on this thread, until it is over or somebody ends it; tasks may be local to
/// the thread. See [`finish`] for its end.
#[must_use]
pub fn run(program: impl AsyncFnOnce(&Path) -> Result<()>) -> ExitCode {
    let mut kept = None;
    let result = in_directory(&mut kept, program);
    finish(kept, &result, io::stderr())
}

fn in_directory(kept: &mut Option<TempDir>, program: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = kept.insert(create()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            result = program(dir.path()) => result,
            ended = interrupted() => ended,
        }
    })
}

/// Ends a run. After a bad one, says why, shows the end of each log, and keeps the directory.
#[must_use]
pub fn finish(dir: Option<TempDir>, result: &Result<()>, mut err: impl Write) -> ExitCode {
    let ended = match (result, dir) {
        (Ok(()), dir) => dir.map_or(Ok(()), TempDir::close),
        (Err(error), Some(dir)) if !error.is::<Interrupted>() => explain(error, Some(&dir.keep()), &mut err),
        (Err(error), _) => explain(error, None, &mut err),
    };
    if result.is_ok() && ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn explain(error: &Error, kept: Option<&Path>, err: &mut impl Write) -> io::Result<()> {
    writeln!(err, "failed: {error:#}")?;
    if let Some(dir) = kept {
        show_logs(dir, err)?;
        writeln!(err, "kept: {}", dir.display())?;
    }
    Ok(())
}

fn show_logs(dir: &Path, err: &mut impl Write) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        writeln!(err, "--- end of {}", path.display())?;
        for line in log.lines().skip(log.lines().count().saturating_sub(TAIL_LINES)) {
            writeln!(err, "{line}")?;
        }
    }
    Ok(())
}

/// Somebody asked this program to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Ends when somebody asks this program to end, so that what it started can be stopped first.
async fn interrupted<T>() -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Err(Interrupted.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_or_interrupted_run_leaves_nothing() {
        for (result, code) in [(Ok(()), ExitCode::SUCCESS), (Err(Interrupted.into()), ExitCode::FAILURE)] {
            let dir = create().unwrap();
            let path = dir.path().to_owned();
            assert_eq!(finish(Some(dir), &result, io::sink()), code);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_bad_run_reports_why_and_keeps_its_directory() {
        let dir = create().unwrap();
        let path = dir.path().to_owned();
        let log: String = (1..=TAIL_LINES + 1).map(|n| format!("line {n}.\n")).collect();
        fs::write(path.join("uh-proxy.log"), log).unwrap();
        let mut err = Vec::new();
        assert_eq!(finish(Some(dir), &Err(anyhow::anyhow!("no luck")), &mut err), ExitCode::FAILURE);
        let err = String::from_utf8(err).unwrap();
        assert!(err.starts_with("failed: no luck\n") && err.contains("line 2.\n"), "{err}");
        assert!(!err.contains("line 1.\n") && err.contains(&format!("kept: {}\n", path.display())), "{err}");
        fs::remove_dir_all(path).unwrap();
    }
}
