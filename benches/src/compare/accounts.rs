//! What the kernel charges to a process and its children: CPU time, and resident memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
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

/// CPU time of a process, all its threads and all its descendants.
///
/// # Errors
/// The process is gone.
pub fn cpu_time(pid: u32) -> Result<CpuTime> {
    let mut all = CpuTime::default();
    for pid in family(pid)? {
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let schedstat = fs::read_to_string(entry?.path().join("schedstat"))?;
            let ns = schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).context("schedstat")?;
            all.total += Duration::from_nanos(ns);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (user, kernel) = ticks(&stat).context("stat")?;
        all.user_ticks += user;
        all.kernel_ticks += kernel;
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
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        all += kib << 10;
    }
    Ok(all)
}

fn family(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![pid];
    let mut seen = 0;
    while let Some(&parent) = found.get(seen) {
        seen += 1;
        for entry in fs::read_dir(format!("/proc/{parent}/task")).context("the process is gone")? {
            let children = fs::read_to_string(entry?.path().join("children"))?;
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(found)
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
    fn a_name_with_blanks_and_brackets_does_not_move_the_fields() {
        let stat = "1 (a) b) S 0 1 2 3 4 5 6 7 8 9 70 80 0 0";
        assert_eq!(ticks(stat), Some((70, 80)));
    }
}
