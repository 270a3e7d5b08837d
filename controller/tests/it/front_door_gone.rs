//! Commands while uh-proxy doesn't answer: nothing is started, and nothing is guessed.

use std::process::Stdio;

use crate::harness::{Ran, Stage, until};

#[test]
fn without_uh_proxy_nothing_is_started() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    stage.kill_front_door();
    for command in [&["blue-green", "--version", "1.0.1"][..], &["rollback"], &["retire"], &["health-check"]]
    {
        stage
            .expect(1, command)
            .says("no uh-proxy is listening on ")
            .says("nothing was changed. Start uh-proxy");
    }
    stage.expect(0, &["recover"]).says("Nothing to recover");
    assert_eq!(stage.apps(), 1);
    assert_eq!(stage.history().len(), 1);
}

#[test]
fn a_deploy_that_loses_uh_proxy_in_the_gate_changes_nothing() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[health]\nsuccesses = 40");
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    let deploy = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the candidate runs", || (stage.apps() == 2).then_some(()));
    stage.kill_front_door();
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    // No change of routing was sent: the candidate was out of service from the start and was stopped.
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    ran.says("no uh-proxy is listening on ")
        .says("can't determine the active backend: uh-proxy isn't responding");
    assert_eq!(stage.apps(), 1);
    stage.expect(0, &["recover"]).says("Nothing to recover");
    stage.start_front_door();
    until("uh-proxy serves", || (stage.served() == "blue 1.0.0").then_some(()));
    stage.deploy("1.0.2");
    assert_eq!(stage.served(), "green 1.0.2");
}

/// Only uh-proxy knows whether the candidate may be stopped: it may have become active.
#[cfg(feature = "fault-points")]
#[test]
fn a_deploy_that_loses_uh_proxy_at_the_switch_stops_and_can_be_recovered() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    let hold = stage.path("hold");
    std::fs::write(&hold, "effect.switch.before").unwrap();
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    command.env("UH_DEPLOY_HOLD_FILE", &hold).stdout(Stdio::piped()).stderr(Stdio::piped());
    let deploy = command.spawn().unwrap();
    let held = stage.path("hold.held");
    until("the candidate is registered", || held.exists().then_some(()));
    stage.kill_front_door();
    std::fs::remove_file(&hold).unwrap();
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(6), "{}", ran.text);
    ran.says("no uh-proxy is listening on ")
        .says("can't determine whether traffic has moved")
        .says("run `uh-deploy recover`");
    assert_eq!(stage.apps(), 2, "nothing is stopped on a guess");
    stage.expect(6, &["recover"]).says("no uh-proxy is listening on ").says("run `uh-deploy recover` again");
    stage.start_front_door();
    until("uh-proxy serves", || (stage.served() == "blue 1.0.0").then_some(()));
    stage.expect(0, &["recover"]).says("Undone: the candidate was removed; blue (v1.0.0) serves");
    assert_eq!(stage.apps(), 1);
    stage.deploy("1.0.2");
    assert_eq!(stage.served(), "green 1.0.2");
}

#[test]
fn a_deploy_survives_a_restart_of_uh_proxy() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[health]\nsuccesses = 40");
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    let mut deploy = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the candidate runs", || (stage.apps() == 2).then_some(()));
    stage.kill_front_door();
    // Past the moment at which it is first needed.
    until("the deploy has failed", || {
        let journal = std::fs::read_to_string(stage.path("deploy-state/journal.jsonl")).unwrap();
        journal.contains("refused").then_some(())
    });
    assert!(deploy.try_wait().unwrap().is_none(), "it waits");
    stage.start_front_door();
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    ran.says("nothing has changed for users: blue (v1.0.0) serves");
    assert_eq!(stage.apps(), 1);
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

/// A deploy whose candidate dies after the switch, while uh-proxy is gone.
fn dies_without_a_front_door(stage: &mut Stage) -> std::process::Child {
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"60s\"");
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    let deploy = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let journal = stage.path("deploy-state/journal.jsonl");
    let times = |event: &str| {
        let text = std::fs::read_to_string(&journal).unwrap();
        text.matches(&format!("\"event\":\"{event}\"")).count()
    };
    until("traffic has moved again", || (times("switched") == 2).then_some(()));
    let (_, candidate) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    stage.kill_front_door();
    let pid = rustix::process::Pid::from_raw(candidate).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("it has died", || (times("died") == 1).then_some(()));
    deploy
}

#[test]
fn moving_back_waits_for_a_restarting_uh_proxy() {
    let mut stage = Stage::new();
    let mut deploy = dies_without_a_front_door(&mut stage);
    // Longer than it takes until a connection is refused.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(deploy.try_wait().unwrap().is_none(), "it waits");
    stage.start_front_door();
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    ran.says(
        "Rolled back: green (v1.0.1) died after the switch, so traffic was moved back; blue (v1.0.0) serves",
    );
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 1));
}

#[test]
fn moving_back_without_uh_proxy_is_left_to_recover() {
    let mut stage = Stage::new();
    let deploy = dies_without_a_front_door(&mut stage);
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(6), "{}", ran.text);
    ran.says("no uh-proxy is listening on ")
        .says("can't determine whether traffic has moved")
        .says("run `uh-deploy recover`");
    stage.start_front_door();
    assert_eq!(stage.active(), "green");
    stage.expect(0, &["recover"]).says("Undone: traffic was moved back; blue (v1.0.0) serves");
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 1));
    let last = stage.history().pop().unwrap();
    assert_eq!(last["outcome"], "returned");
    let reason = last["reason"].as_str().unwrap();
    assert!(reason.contains("died after traffic was switched to it"), "{reason}");
    stage.expect(0, &["recover"]).says("Nothing to recover");
}
