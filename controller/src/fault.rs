//! Named points at which a test can kill the process, like `kill -9`, or pause it. Only with the feature
//! `fault-points`.

/// Kills the process if the file named by `UH_DEPLOY_FAULT_FILE` contains this point's name. Appends the name of
/// every point to the file named by `UH_DEPLOY_TRACE_FILE`. If the file named by `UH_DEPLOY_HOLD_FILE` contains this
/// point's name, the process waits until that file is gone, and signals that with a file of the same name plus
/// `.held`.
#[cfg(feature = "fault-points")]
pub(crate) fn point(name: &str) {
    use std::io::Write as _;

    if let Some(path) = std::env::var_os("UH_DEPLOY_TRACE_FILE")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(file, "{name}");
    }
    hold(name);
    let wanted = std::env::var_os("UH_DEPLOY_FAULT_FILE").and_then(|path| std::fs::read_to_string(path).ok());
    if wanted.is_some_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// How long a test may pause the process.
#[cfg(feature = "fault-points")]
const HELD_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

#[cfg(feature = "fault-points")]
fn hold(name: &str) {
    let Some(path) = std::env::var_os("UH_DEPLOY_HOLD_FILE") else { return };
    let is_wanted = || std::fs::read_to_string(&path).is_ok_and(|wanted| wanted == name);
    if !is_wanted() {
        return;
    }
    let mut held = path.clone();
    held.push(".held");
    let _ = std::fs::write(held, name);
    let deadline = std::time::Instant::now() + HELD_WITHIN;
    while is_wanted() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Does nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(crate) fn point(_name: &str) {}
