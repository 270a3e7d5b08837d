//! Orphaned processes, and the shim as process 1.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::process::Command;

use crate::shim::{Lines, Shim, within};

const NOWHERE: &str = "unix:/nonexistent/app.sock";

/// An orphaned process that exits after a moment.
const ORPHAN: &str = "sh -c 'sleep 0.5 & echo orphan $!'; echo ready; exec sleep 600";

/// The state of a process and its parent, if there is such a process (`/proc/PID/stat`).
fn state_and_parent(pid: &str) -> Option<(String, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    Some((fields.next().unwrap().to_owned(), fields.next().unwrap().parse().unwrap()))
}

#[tokio::test]
async fn an_orphan_is_adopted_and_reaped() {
    let mut shim = Shim::start(NOWHERE, &[], ORPHAN);
    let line = shim.output.wait_for("orphan ").await;
    let orphan = line.strip_prefix("orphan ").unwrap();
    shim.output.wait_for("ready").await;
    let (_, parent) = state_and_parent(orphan).unwrap();
    assert_eq!(parent, shim.pid().as_raw_nonzero().get());
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Some((state, _)) = state_and_parent(orphan) {
        assert!(Instant::now() < deadline, "still there, in state {state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(0));
}

#[tokio::test]
async fn stopping_waits_for_the_whole_group() {
    // The first process exits immediately; the one it leaves behind takes a moment.
    let script =
        "(trap 'sleep 0.5; echo cleaned up; exit 0' TERM; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done) &
        trap 'exit 0' TERM; wait";
    let mut shim = Shim::start(NOWHERE, &[], script);
    shim.output.wait_for("ready").await;
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(0));
    assert!(shim.output.to_end().await.contains(&"cleaned up".to_owned()));
}

/// Runs a shim as process 1 of a new namespace. `None`, with a message, if that isn't permitted.
#[allow(clippy::print_stdout, reason = "who reads the results must know what was not run")]
async fn as_process_1(script: &str) -> Option<Shim> {
    let flags = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let permitted = Command::new("unshare").args(flags).arg("true").output().await;
    if !permitted.is_ok_and(|output| output.status.success()) {
        println!("skipped: process 1 of a namespace, unshare is not permitted here");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(flags).arg(env!("CARGO_BIN_EXE_app-shim"));
    command.args(["--listen", "127.0.0.1:0", "--app", NOWHERE, "--", "sh", "-c", script]);
    Some(Shim::spawn(crate::shim::with_streams(command)))
}

/// The process with id 1 in the namespace; `unshare` itself ignores signals.
async fn inner(output: &Lines, shim: &Shim) -> rustix::process::Pid {
    output.wait_for("ready").await;
    let children = format!("/proc/{0}/task/{0}/children", shim.pid().as_raw_nonzero());
    let children = fs::read_to_string(children).unwrap();
    rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

#[tokio::test]
async fn as_process_1_it_reaps_forwards_and_ends_with_0() {
    let script = "trap 'echo got USR1' USR1; trap 'echo got TERM; exit 0' TERM
        sh -c 'sleep 0.2 & echo orphan $!'
        echo parent $PPID
        echo ready
        while :; do sleep 0.05; echo zombies $(cat /proc/[0-9]*/stat | grep -c ') Z '); done";
    let Some(mut shim) = as_process_1(script).await else { return };
    shim.output.wait_for("parent 1").await;
    let process = inner(&shim.output, &shim).await;
    rustix::process::kill_process(process, Signal::USR1).unwrap();
    shim.output.wait_for("got USR1").await;
    // Long after the orphan has exited.
    for _ in 0..15 {
        shim.output.wait_for("zombies").await;
    }
    assert!(shim.output.wait_for("zombies").await.ends_with("zombies 0"), "{:?}", shim.output.all());
    rustix::process::kill_process(process, Signal::TERM).unwrap();
    shim.output.wait_for("got TERM").await;
    assert_eq!(shim.code().await, Some(0));
}

#[tokio::test]
async fn as_process_1_it_ends_with_the_apps_code() {
    for (script, code) in [("exit 7", 7), ("kill -KILL $$", 137)] {
        let Some(mut shim) = as_process_1(script).await else { return };
        assert_eq!(within("the end", shim.code()).await, Some(code), "{script}");
    }
}
