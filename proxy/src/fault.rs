//! Named points at which a test can end the process, as `kill -9` would. Empty but with the feature `fault-points`.

/// Ends the process here if `UH_PROXY_FAULT` names this point.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    if std::env::var_os("UH_PROXY_FAULT").is_some_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn point(_name: &str) {}
