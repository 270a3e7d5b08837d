//! The short forms of the programs that load the machine. Side by side they would measure each other.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use uh_testkit::process::{Finished, program};

fn succeeds(name: &str, args: &[&str], out: Option<&Path>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(program(name).unwrap());
    command.args(args).args(out.map(|dir| format!("--out={}", dir.display())));
    let Finished { status, output } = command.output().unwrap().into();
    assert!(status.success(), "{output}");
}

#[test]
fn every_fault_is_detected_reported_and_survived() {
    succeeds("faults", &["--short"], None);
}

/// The same as always, with fewer clients and shorter deadlines. What is healthy has to be so under any load of the machine,
/// but how fast it is says nothing here.
#[test]
fn slow_clients_are_closed_at_their_deadlines_and_harm_no_one() {
    let args = ["--clients=60", "--deadline-ms=2000", "--quiet-ms=500", "--p99-factor=0", "--idle=200"];
    succeeds("slow_clients", &args, None);
}

/// Nothing can grow much in ten seconds, but the books must be balanced.
#[test]
fn after_switches_drains_reloads_and_tunnels_the_books_are_balanced() {
    let dir = tempfile::tempdir().unwrap();
    succeeds("soak", &["--minutes=0.15", "--rate=100", "--pause-ms=500"], Some(dir.path()));
    assert!(dir.path().join("soak.csv").exists() && dir.path().join("soak.svg").exists());
}
