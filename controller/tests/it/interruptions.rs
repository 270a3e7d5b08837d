//! What becomes of an operation that was killed, or asked to end, and of those that come after it.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Stage, until};

fn start(stage: &Stage, args: &[&str]) -> Child {
    stage.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A deploy that is killed while it waits for its candidate, as by `kill -9`.
fn kill_a_deploy(stage: &Stage, version: &str, backend: &str) {
    stage.configure("uh-deploy.toml", "[health]\nsuccesses = 1000\nwithin = \"60s\"");
    let mut deploy = start(stage, &["blue-green", "--version", version]);
    until("the candidate answers", || stage.answers(backend).filter(|served| served.ends_with(version)));
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    stage.configure("uh-deploy.toml", "");
}

#[test]
fn an_automatic_rollback_first_recovers_what_was_interrupted() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    kill_a_deploy(&stage, "1.0.2", "blue");
    let (_, active) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill_process(Pid::from_raw(active).unwrap(), Signal::KILL).unwrap();
    until("green is gone", || stage.answers("green").is_none().then_some(()));
    stage
        .expect(3, &["monitor", "--duration", "20s", "--auto-rollback"])
        .says("Rolling back by itself")
        .says("Undone: the candidate is gone")
        .says("✅ Rollback complete");
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 1));
    stage.expect(0, &["recover"]).says("Nothing to recover");
    stage.deploy("1.0.3");
}
