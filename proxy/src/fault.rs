//! Named points at which a test can end the process, as `kill -9` would. Empty without the feature `fault-points`.

/// Ends the process here if the file that `UH_PROXY_FAULT_FILE` names holds this point's name. A file, so that a test
/// can let the process start first.
#[cfg(feature = "fault-points")]
pub(crate) fn point(name: &str) {
    let wanted = std::env::var_os("UH_PROXY_FAULT_FILE").and_then(|path| std::fs::read_to_string(path).ok());
    if wanted.is_some_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(crate) fn point(_name: &str) {}
