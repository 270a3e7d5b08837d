//! Named points at which a test can end the process, as `kill -9` would, ask it to stop, as a service manager would, or hold
//! a thread, as a slow disk would. Empty without the feature `fault-points`.

/// Ends the process here if the file that `UH_PROXY_FAULT_FILE` names holds this point's name, and asks it to stop if it
/// holds `stop` and the name. Waits here as long as it holds `wait` and the name, and
/// makes a file next to it, `.reached`. A file, so that a test can let the process start first.
#[cfg(feature = "fault-points")]
pub(crate) fn point(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    let Some(path) = std::env::var_os("UH_PROXY_FAULT_FILE") else { return };
    let wanted = || std::fs::read_to_string(&path).unwrap_or_default();
    while wanted().strip_prefix("wait ") == Some(name) {
        let _ = std::fs::write(std::path::Path::new(&path).with_extension("reached"), name);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let wanted = wanted();
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
