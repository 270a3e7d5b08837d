//! Named points at which a test can end the process, as `kill -9` would. Empty but with the feature `fault-points`.

/// Ends the process here if the file that `UH_DEPLOY_FAULT_FILE` names holds this point's name; the file that
/// `UH_DEPLOY_TRACE_FILE` names gets the name of every point that is passed.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    use std::io::Write as _;

    if let Some(path) = std::env::var_os("UH_DEPLOY_TRACE_FILE")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(file, "{name}");
    }
    let wanted = std::env::var_os("UH_DEPLOY_FAULT_FILE").and_then(|path| std::fs::read_to_string(path).ok());
    if wanted.is_some_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn point(_name: &str) {}
