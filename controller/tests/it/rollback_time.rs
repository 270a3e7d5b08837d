//! The time from `uh-deploy rollback` to the first response of the restored version.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Stage, get};

/// How many rollbacks, unless `UH_ROLLBACK_ROUNDS` is set.
const ROUNDS: usize = 10;

/// The goal is 0.8 s. A busy machine may take longer; the measured time is printed.
const LIMIT: Duration = Duration::from_secs(3);

#[test]
fn a_rollback_takes_effect_quickly_and_fails_no_request() {
    let rounds =
        std::env::var("UH_ROLLBACK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let load = stage.load();
    let mut times = Vec::new();
    for _ in 0..rounds {
        let wanted = if stage.active() == "green" { "blue " } else { "green " };
        let (address, found) = (stage.address, Arc::new(AtomicBool::new(false)));
        let start = Instant::now();
        let mut command = stage.command(&["rollback", "--to", wanted.trim(), "--again"]);
        let watcher = std::thread::spawn(move || {
            loop {
                if get(address, "/").is_ok_and(|served| served.starts_with(wanted)) {
                    found.store(true, Ordering::SeqCst);
                    return start.elapsed();
                }
                assert!(start.elapsed() < Duration::from_secs(30), "{wanted}never answered");
            }
        });
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        times.push(watcher.join().unwrap());
    }
    load.must_be_unharmed();
    times.sort_unstable();
    let at = |permille: usize| times[(times.len() * permille / 1000).min(times.len() - 1)];
    println!(
        "rollback, {rounds} times, from command to first answer: p50 {:?}, p99 {:?}, max {:?}",
        at(500),
        at(990),
        at(1000)
    );
    assert!(at(990) < LIMIT, "p99 {:?}", at(990));
}
