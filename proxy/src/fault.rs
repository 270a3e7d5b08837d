//! Named points at which a test can end the process, as `kill -9` would, or ask it to stop, as a service manager would.
//! Empty without the feature `fault-points`.

/// Ends the process here if the file that `UH_PROXY_FAULT_FILE` names holds this point's name, and asks it to stop if it
/// holds `stop` and the name. A file, so that a test can let the process start first.
#[cfg(feature = "fault-points")]
pub(crate) fn point(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    let wanted = std::env::var_os("UH_PROXY_FAULT_FILE").and_then(|path| std::fs::read_to_string(path).ok());
    let Some(wanted) = wanted else { return };
    if wanted == name {
        let _ = kill_process(getpid(), Signal::KILL);
    }
    if wanted.strip_prefix("stop ") == Some(name) {
        let _ = kill_process(getpid(), Signal::TERM);
    }
}

/// Does nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(crate) fn point(_name: &str) {}
