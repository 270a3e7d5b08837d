//! What the kernel charges to a process and its children: CPU time, and resident memory.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPU time used up so far, in nanoseconds of which the kernel says who spent them; and how it was divided.
///
/// The sum is exact (the scheduler's own clock). The division between user and kernel is sampled by the timer tick,
/// 250 times a second here, so it needs some seconds of work to be worth anything.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuTime {
    /// All of it.
    pub total: Duration,
    user_ticks: u64,
    kernel_ticks: u64,
}

impl CpuTime {
    /// What was used since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            user_ticks: self.user_ticks.saturating_sub(earlier.user_ticks),
            kernel_ticks: self.kernel_ticks.saturating_sub(earlier.kernel_ticks),
        }
    }

    /// The part of it that was spent in the kernel, from 0 to 1.
    #[must_use]
    pub fn kernel_share(&self) -> f64 {
        self.kernel_ticks as f64 / (self.user_ticks + self.kernel_ticks).max(1) as f64
    }
}

/// CPU time of a process, all its threads and all its descendants. A thread or a descendant that ends meanwhile is left out.
///
/// # Errors
/// The process is gone.
pub fn cpu_time(pid: u32) -> Result<CpuTime> {
    let mut all = CpuTime::default();
    for pid in family(pid)? {
        for schedstat in of_each_thread(pid, "schedstat")? {
            let ns = schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).context("schedstat")?;
            all.total += Duration::from_nanos(ns);
        }
        if let Some(stat) = read(format!("/proc/{pid}/stat"))? {
            let (user, kernel) = ticks(&stat).context("stat")?;
            all.user_ticks += user;
            all.kernel_ticks += kernel;
        }
    }
    Ok(all)
}

/// `utime` and `stime` of a line of `/proc/PID/stat`; the second field is a name that may contain anything.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Resident memory of a process and all its descendants, in bytes. A page that several processes share counts in parts.
///
/// # Errors
/// The process is gone, or not ours to look at.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let mut all = 0;
    for pid in family(pid)? {
        let Some(rollup) = read(format!("/proc/{pid}/smaps_rollup"))? else { continue };
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        all += kib << 10;
    }
    Ok(all)
}

/// A process and all its descendants.
fn family(pid: u32) -> Result<Vec<u32>> {
    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is gone");
    let mut found = vec![pid];
    let mut seen = 0;
    while let Some(&parent) = found.get(seen) {
        seen += 1;
        for children in of_each_thread(parent, "children")? {
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(found)
}

/// One file of each thread that a process has.
fn of_each_thread(pid: u32, file: &str) -> Result<Vec<String>> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Ok(Vec::new()) };
    threads.flatten().filter_map(|thread| read(thread.path().join(file)).transpose()).collect()
}

/// A file under `/proc`; nothing if its process or thread has ended.
fn read(file: impl AsRef<Path>) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Keeps this thread, and what it starts from now on, on these cores.
///
/// # Errors
/// The machine has not got them.
pub fn pin_this_thread(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    sched_setaffinity(None, &set).with_context(|| format!("can't run on cores {cores:?}"))
}

/// How many cores this thread may use.
#[must_use]
pub fn cores() -> usize {
    sched_getaffinity(None).map_or(1, |set| set.count() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_busy_process_is_charged_and_its_memory_seen() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let start = Instant::now();
        while cpu_time(pid).unwrap().since(&before).total < Duration::from_millis(30) {
            assert!(start.elapsed() < Duration::from_secs(20), "work is not charged");
        }
        assert!(resident_bytes(pid).unwrap() > 1 << 20);
    }

    #[test]
    fn threads_that_come_and_go_are_no_error() {
        let pid = std::process::id();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..2_000).for_each(|_| std::thread::spawn(|| ()).join().unwrap()));
            for _ in 0..500 {
                cpu_time(pid).unwrap();
            }
        });
        assert!(cpu_time(u32::MAX >> 1).is_err(), "a process that does not exist");
    }

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_move_the_fields() {
        let stat = "1 (a) b) S 0 1 2 3 4 5 6 7 8 9 70 80 0 0";
        assert_eq!(ticks(stat), Some((70, 80)));
    }
}
