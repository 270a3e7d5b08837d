//! What the machine says of a process, and the limits that it sets.

use std::fs;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A figure of `/proc/PID/status`, such as `VmRSS` (KiB).
///
/// # Errors
/// The process has ended, or there is no such figure.
pub fn process_figure(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let figure = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(figure.with_context(|| format!("no {name}"))?.trim().trim_end_matches(" kB").parse()?)
}

/// Raises the limit of file descriptors, of this process and of what it starts, to the most that it may have: returned.
///
/// # Errors
/// A system call failed.
pub fn raise_descriptors() -> Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    Ok(hard.unwrap_or(u64::MAX))
}
