//! Operations that were killed or interrupted, and the commands after them.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Ran, Stage, until};

fn start(stage: &Stage, args: &[&str]) -> Child {
    stage.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Kills a deploy while it waits for its candidate.
pub(crate) fn kill_a_deploy(stage: &Stage, version: &str, backend: &str) {
    stage.configure("uh-deploy.toml", "[health]\nsuccesses = 1000\nwithin = \"60s\"");
    let mut deploy = start(stage, &["blue-green", "--version", version]);
    until("the candidate answers", || stage.answers(backend).filter(|served| served.ends_with(version)));
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    stage.configure("uh-deploy.toml", "");
}

#[test]
fn an_automatic_rollback_first_recovers_an_interrupted_operation() {
    let stage = Stage::new();
    // By default, what is killed below would be restarted.
    stage.configure("uh-deploy.toml", "[runtime.process]\nrestart = \"no\"");
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    kill_a_deploy(&stage, "1.0.2", "blue");
    let (_, active) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill_process(Pid::from_raw(active).unwrap(), Signal::KILL).unwrap();
    until("green is gone", || stage.answers("green").is_none().then_some(()));
    stage
        .expect(3, &["monitor", "--duration", "20s", "--auto-rollback"])
        .says("Rolling back automatically")
        .says("Undone: the candidate was removed")
        .says("✅ Rollback complete");
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 1));
    stage.expect(0, &["recover"]).says("Nothing to recover");
    stage.deploy("1.0.3");
}

/// Sends a signal, and requires the exit code soon.
#[track_caller]
fn end(mut child: Child, signal: Signal, code: i32) -> Ran {
    kill_process(Pid::from_child(&child), signal).unwrap();
    until("it has ended", || child.try_wait().unwrap());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(code), "{}", ran.text);
    ran
}

#[test]
fn a_second_signal_ends_the_undoing_immediately_and_recover_continues_it() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let deaf = "[runtime.process]\ncommand = [\"sh\", \"-c\", \"trap '' TERM; while :; do sleep 0.1; done\"]";
    stage.configure(
        "uh-deploy.toml",
        &format!("{deaf}\n[deploy]\nstop_timeout = \"10m\"\n[health]\nwithin = \"10m\""),
    );
    let deploy = start(&stage, &["blue-green", "--version", "1.0.1"]);
    until("the candidate runs", || (stage.apps() == 2).then_some(()));
    kill_process(Pid::from_child(&deploy), Signal::INT).unwrap();
    let journal = stage.path("deploy-state/journal.jsonl");
    until("it is undone", || {
        std::fs::read_to_string(&journal).unwrap().contains("interrupted").then_some(())
    });
    end(deploy, Signal::TERM, 143).says("SIGINT received, rolling back").says("interrupted by SIGTERM");
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 2));
    stage.configure("uh-deploy.toml", "[deploy]\nstop_timeout = \"100ms\"");
    stage.expect(0, &["recover"]).says("Undone: the candidate was removed; blue (v1.0.0) serves");
    assert_eq!(stage.apps(), 1);
}

/// The same, as soon as it has printed a text.
#[track_caller]
fn end_when(mut child: Child, text: &str, signal: Signal, code: i32) {
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "it ended without {text:?}");
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(code));
}

#[test]
fn a_signal_ends_the_watch_after_a_deploy() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let state = stage.path("deploy-state/history.jsonl");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let before = std::fs::read_to_string(&state).unwrap().lines().count();
        let deploy = start(&stage, &["blue-green", "--version", "1.0.1", "--watch", "10m"]);
        until("the deploy is done", || {
            (std::fs::read_to_string(&state).unwrap().lines().count() > before).then_some(())
        });
        // The lock is free during the watch, and the watch still has its process.
        until("it watches", || (stage.run(&["recover"]).code == Some(0)).then_some(()));
        stage.expect(0, &["recover"]).says("Nothing to recover");
        end(deploy, signal, code).says("Deployment complete");
        // Now it has lost it.
        let recover = start(&stage, &["recover"]);
        end_when(recover, "continuing its watch for the remaining 9m", signal, code);
    }
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_signal_ends_a_followed_log() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut logs = start(&stage, &["logs", "--follow"]);
        let mut first = [0];
        std::io::Read::read_exact(logs.stdout.as_mut().unwrap(), &mut first).unwrap();
        end(logs, signal, code);
    }
}

#[test]
fn a_rollback_that_can_not_be_undone_does_not_report_that_nothing_has_changed() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire", "--now"]);
    stage.configure("uh-deploy.toml", "[health]\npath = \"/status/500\"\nwithin = \"2s\"");
    let rollback = start(&stage, &["rollback"]);
    let record = stage.path("deploy-state/records/candidate.record.json");
    until("the target is started again", || stage.answers("blue"));
    // A directory in its place, which can't be removed as a file.
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    let ran = Ran::of(rollback.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(6), "{}", ran.text);
    ran.says("Manual intervention required: green (v1.0.1) serves");
    assert!(!ran.text.contains("nothing has changed"), "{}", ran.text);
}
