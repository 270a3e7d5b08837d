//! Processes from `/proc`. A process id alone isn't unique: ids are reused, and start over at each boot. Id, start
//! time and boot together identify a process.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// The identity of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
    /// Which boot.
    pub boot: String,
}

impl ProcessIdentity {
    /// The process that has this id now.
    #[must_use]
    pub fn now(pid: i32) -> Option<Self> {
        Some(Self { pid, started: Stat::read(pid)?.started, boot: boot()? })
    }

    /// The processes that were started with this argument.
    #[must_use]
    pub fn with_argument(argument: &OsStr) -> Vec<Self> {
        let with_it = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()).then(|| Self::now(pid))?
        };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.filter_map(with_it).filter(Self::is_alive).collect()
    }

    /// Whether it is alive. A zombie isn't.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let stat = Stat::read(self.pid).filter(|stat| stat.started == self.started && !stat.ended);
        stat.is_some() && boot().is_some_and(|boot| boot == self.boot)
    }

    /// Sends it a signal, unless it has exited.
    ///
    /// # Errors
    /// The system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // The descriptor belongs to the process that has the id now. If that is still ours, the id can't be reused
        // any more.
        let Ok(descriptor) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        gone_is_fine(rustix::process::pidfd_send_signal(&descriptor, signal))
    }
}

fn gone_is_fine(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// Fields of `/proc/PID/stat`.
pub(super) struct Stat {
    /// Whether it is a zombie or dead.
    pub(super) ended: bool,
    /// Its parent's id.
    pub(super) parent: i32,
    /// When it started, in clock ticks since the boot.
    pub(super) started: u64,
}

impl Stat {
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// proc(5): the name is in parentheses and may have any character; the state is field 3, the parent field 4, the
    /// start field 22.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let ended = matches!(*fields.first()?, "Z" | "X");
        let parent = fields.get(1)?.parse().ok()?;
        Some(Self { ended, parent, started: fields.get(19)?.parse().ok()? })
    }
}

/// The id of this boot.
pub(super) fn boot() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// How many processes of this control group the kernel has killed for lack of memory.
#[must_use]
pub fn out_of_memory_kills() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let events = fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.events")).ok()?;
    events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_identified_by_id_and_start_time() {
        let me = ProcessIdentity::now(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessIdentity { started: me.started + 1, ..me.clone() }.is_alive());
        assert!(!ProcessIdentity { boot: "another".to_owned(), ..me }.is_alive());
    }

    #[test]
    fn a_name_with_parentheses_is_parsed() {
        let stat = "7 (a) Z (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        let stat = Stat::parse(stat).unwrap();
        assert!(!stat.ended && stat.started == 12345);
        assert!(Stat::parse("7 (x) Z").is_none());
    }
}
