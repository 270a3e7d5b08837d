//! Finds all processes of an instance, even those that left its process group or session: a shim puts its app into
//! its own group, an app starts workers, a daemon detaches.
//!
//! While the supervisor is alive, all of them are its descendants, because it adopts orphans (it is a subreaper). If
//! it was killed, they are found by an environment variable with the instance's name that each inherited.

use std::fs;
use std::io;

use rustix::process::Signal;

use super::INSTANCE_VARIABLE;
use super::proc::{ProcessIdentity, Stat, boot};

/// The subcommands of supervisors, of this version and earlier ones.
const SUPERVISORS: [&[u8]; 2] = [b"supervise", b"keep"];

/// The live processes of an instance: those marked with its name, these roots, and their descendants. Another
/// instance's supervisor and its descendants aren't included: an app that is a CI runner may have deployed something.
pub(super) fn members(instance: &str, roots: &[&ProcessIdentity]) -> Vec<ProcessIdentity> {
    let Some(boot) = boot() else { return Vec::new() };
    let all: Vec<(i32, Stat)> = pids().filter_map(|pid| Some((pid, Stat::read(pid)?))).collect();
    let roots: Vec<i32> = roots.iter().filter(|root| root.is_alive()).map(|root| root.pid).collect();
    let mark = format!("{INSTANCE_VARIABLE}={instance}");
    let mut found: Vec<i32> = all.iter().map(|(pid, _)| *pid).filter(|pid| is_marked(*pid, &mark)).collect();
    found.extend(&roots);
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        for (pid, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
            if !stat.ended && !found.contains(pid) && !is_supervisor(*pid) {
                found.push(*pid);
            }
        }
    }
    let known = |(pid, stat): &(i32, Stat)| {
        let is_one = found.contains(pid) && !stat.ended;
        is_one.then(|| ProcessIdentity { pid: *pid, started: stat.started, boot: boot.clone() })
    };
    all.iter().filter_map(known).collect()
}

/// Kills them.
///
/// # Errors
/// The system refuses one.
pub(super) fn kill(members: &[ProcessIdentity]) -> io::Result<()> {
    members.iter().try_for_each(|member| member.signal(Signal::KILL))
}

/// The members without their supervisor.
pub(super) fn members_below(instance: &str, supervisor: &ProcessIdentity) -> Vec<ProcessIdentity> {
    let mut members = members(instance, &[supervisor]);
    members.retain(|member| member != supervisor);
    members
}

/// The memory that all descendants of a supervisor use, in bytes, if that is more than `limit`. Shared pages are
/// counted once.
pub(super) fn used_beyond(limit: u64, supervisor: i32) -> Option<u64> {
    let mut tree: Vec<i32> = children(supervisor);
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        next += 1;
        tree.extend(children(parent).into_iter().filter(|pid| !is_supervisor(*pid)));
    }
    // A cheap upper bound; the exact figure takes a walk through each process's pages.
    let at_most: u64 = tree.iter().filter_map(|pid| field(*pid, "status", "VmRSS:")).sum();
    if at_most <= limit {
        return None;
    }
    let share = |pid: &i32| field(*pid, "smaps_rollup", "Pss:").or_else(|| field(*pid, "status", "VmRSS:"));
    Some(tree.iter().filter_map(share).sum()).filter(|used| *used > limit)
}

/// The children that each thread has started (proc(5), /proc/PID/task/TID/children).
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// A size in a file of `/proc/PID`, in bytes.
fn field(pid: i32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn pids() -> impl Iterator<Item = i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_marked(pid: i32, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

fn is_supervisor(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let (word, directory) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    SUPERVISORS.contains(&word) && String::from_utf8_lossy(directory).contains("/instances/")
}
