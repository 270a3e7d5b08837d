//! Whether the process at the other end still runs. When it dies, the kernel closes its connection to this one and releases
//! its locks one after the other, so the locks alone don't tell.

use std::fs;
use std::io;

/// The kernel's flag of a task that exits (`PF_EXITING`), set before any of its files is closed.
const EXITING: u64 = 4;

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It runs.
    Goes,
    /// It exits, or is gone.
    Ends,
    /// It may be in another container.
    Unknown,
}

/// The life of a process.
pub(crate) fn life(pid: Option<i32>) -> Life {
    let Some(pid) = pid.filter(|pid| *pid > 0) else { return Life::Unknown };
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => of_stat(&stat),
        Err(error) if is_gone(&error) => Life::Ends,
        Err(_) => Life::Unknown,
    }
}

/// Whether it was gone before the file was opened, or before it was read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// From the text of `/proc/PID/stat`, see `proc_pid_stat(5)`.
fn of_stat(stat: &str) -> Life {
    // The name before it may contain anything.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return Life::Unknown };
    let mut fields = rest.split(' ');
    let state = fields.next().unwrap_or_default();
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    match flags {
        _ if matches!(state, "Z" | "X") => Life::Ends,
        Some(flags) if flags & EXITING != 0 => Life::Ends,
        Some(_) => Life::Goes,
        None => Life::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_exits_or_is_gone_is_told_apart() {
        assert_eq!(life(i32::try_from(std::process::id()).ok()), Life::Goes);
        assert_eq!((life(None), life(Some(0))), (Life::Unknown, Life::Unknown));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).ok();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while life(pid) != Life::Ends && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(life(pid), Life::Ends, "not waited for yet");
        child.wait().unwrap();
        assert_eq!(life(pid), Life::Ends);
        assert_eq!(of_stat("7 (a) R) S 1 7 7 0 -1 4194560 1"), Life::Goes);
        assert_eq!(of_stat("7 (a) R 1 7 7 0 -1 4194564 1"), Life::Ends);
        assert_eq!(of_stat("7 (a"), Life::Unknown);
    }
}
