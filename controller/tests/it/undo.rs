//! A rollback is an undo: repeated by a pipeline or in panic, it never restores a bad version.

use std::fs;

use uh_testkit::process::Process;

use crate::final_look::{NO_RESTART, kill};
use crate::harness::{SOON, Stage, block, until};

#[test]
fn a_second_rollback_is_refused_and_reports_who_serves() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["rollback"]).says("✅ Rollback complete").says("blue (v1.0.0) serves");
    let generation = stage.status().generation;
    for args in [&["rollback"][..], &["rollback", "--of", "1.0.1"], &["rollback", "--to", "green"]] {
        stage.expect(1, args).says("blue (v1.0.0) serves").says("othing was changed");
    }
    let json = stage.expect(1, &["--json", "rollback"]);
    let refused: serde_json::Value =
        json.text.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap();
    assert_eq!((refused["event"].as_str(), refused["exit"].as_u64()), (Some("refused"), Some(1)));
    assert!(refused["message"].as_str().unwrap().contains("blue (v1.0.0) serves"), "{refused}");
    assert_eq!((stage.served().as_str(), stage.status().generation), ("blue 1.0.0", generation));
    stage.expect(0, &["rollback", "--to", "green", "--again"]);
    assert_eq!(stage.served(), "green 1.0.1");
}

/// A common workflow step: `if: failure()` → `deploy:rollback`.
#[test]
fn the_rollback_step_after_a_failed_deploy_leaves_the_good_version_serving() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.configure(
        "uh-deploy.toml",
        "[health]\nwithin = \"300ms\"\n[runtime.process]\nenv = { UNHEALTHY = \"1\" }",
    );
    stage
        .expect(1, &["blue-green", "--version", "1.0.2"])
        .says("green (v1.0.1) serves")
        .says("A rollback now: has to start blue (v1.0.0) first, which isn't running: `uh-deploy rollback --of 1.0.1`");
    stage.expect(1, &["rollback"]).says("failed and changed nothing").says("--of 1.0.1");
    assert_eq!(stage.served(), "green 1.0.1");
    stage.configure("uh-deploy.toml", "");
    stage.expect(0, &["rollback", "--of", "1.0.1"]);
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn the_rollback_step_after_an_automatic_rollback_leaves_the_good_version_serving() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", NO_RESTART);
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", &format!("{NO_RESTART}\n[monitor]\ninterval = \"200ms\""));
    stage.deploy("1.0.1");
    kill_green(&stage);
    stage.expect(3, &["monitor", "--duration", "20s", "--auto-rollback"]);
    stage.expect(1, &["rollback"]).says("already undone").says("blue (v1.0.0) serves");
    assert_eq!(stage.served(), "blue 1.0.0");
    // A watch doesn't restore it either, if the old version fails too.
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".blue.")).unwrap();
    kill(pid);
    until("blue is gone", || stage.answers("blue").is_none().then_some(()));
    stage.expect(7, &["monitor", "--duration", "20s", "--auto-rollback"]).says("was rolled back before");
    assert_eq!(stage.active(), "blue");
}

#[test]
fn an_automatic_rollback_only_happens_soon_after_the_deploy() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let notified = stage.path("notified");
    let extra = format!(
        "{NO_RESTART}\n[monitor]\ninterval = \"200ms\"\nauto_rollback_within = \"1s\"\n\
         [hooks]\non_failure = [\"touch\", {notified:?}]"
    );
    stage.configure("uh-deploy.toml", &extra);
    stage.deploy("1.0.1");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    kill_green(&stage);
    stage
        .expect(7, &["monitor", "--duration", "20s", "--auto-rollback"])
        .says("monitor.auto_rollback_within is 1s")
        .says("uh-deploy rollback --to blue");
    assert_eq!(stage.active(), "green");
    assert!(notified.exists(), "no hook reported a breach that isn't rolled back");
}

#[test]
fn a_candidate_that_dies_in_settle_leaves_no_record() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"30s\"");
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    until("traffic has moved", || (stage.active() == "green").then_some(()));
    kill_green(&stage);
    let ran = crate::harness::Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    stage.configure("uh-deploy.toml", "");
    assert!(!stage.path("deploy-state/records/green.json").exists());
    stage.expect(1, &["rollback"]).says("already undone").says("blue (v1.0.0) serves");
    assert_eq!((stage.served().as_str(), stage.apps()), ("blue 1.0.0", 1));
}

#[test]
fn a_rollback_whose_target_dies_is_not_complete() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", NO_RESTART);
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"30s\"");
    let mut command = stage.command(&["rollback"]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    until("traffic has moved", || (stage.active() == "blue").then_some(()));
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".blue.")).unwrap();
    kill(pid);
    let ran = crate::harness::Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(6), "{}", ran.text);
    ran.says(
        "The rollback failed: blue died after the switch, so traffic was moved back; green (v1.0.1) serves",
    );
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_kept_failed_candidate_is_out_of_service() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure(
        "uh-deploy.toml",
        "[health]\nwithin = \"300ms\"\n[runtime.process]\nenv = { UNHEALTHY = \"1\" }",
    );
    let ran = stage.expect(1, &["blue-green", "--version", "1.0.1", "--keep-failed"]);
    ran.says("keeps running, out of service").says("curl -i http://127.0.0.1:");
    assert_eq!(stage.answers("green").as_deref(), Some("green 1.0.1"));
    assert_eq!(crate::final_look::uh_proxy(&stage, &["switch", "green", "--force"]).code, Some(3));
    stage.expect(0, &["recover"]);
    assert_eq!(crate::final_look::uh_proxy(&stage, &["switch", "green", "--force"]).code, Some(3));
    stage.configure("uh-deploy.toml", "");
    stage.deploy("1.0.2");
    assert_eq!(stage.served(), "green 1.0.2");
    // Without a running candidate there is nothing to probe.
    stage.configure(
        "uh-deploy.toml",
        "[health]\nwithin = \"300ms\"\n[runtime.process]\nenv = { UNHEALTHY = \"1\" }",
    );
    let ran = stage.expect(1, &["blue-green", "--version", "1.0.3"]);
    ran.says("uh-deploy logs --backend blue").says("--keep-failed");
    assert!(!ran.text.contains("curl"), "{}", ran.text);
}

#[test]
fn a_damaged_record_is_named_with_its_backend_and_what_to_do() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("v2");
    stage.expect(0, &["health-check"]).says("Active: green (v2)");
    let record = stage.path("deploy-state/records/blue.json");
    fs::write(&record, "").unwrap();
    stage
        .expect(1, &["rollback"])
        .says("the record of blue, ")
        .says("records/blue.json, is damaged")
        .says("Move the file away")
        .says("nothing was changed");
    assert_eq!(stage.served(), "green v2");
}

/// Kills the app on green, and starts a monitor that wants to roll back and waits for the lock.
fn waiting_monitor(stage: &Stage) -> Process {
    kill_green(stage);
    let mut command = stage.command(&["monitor", "--duration", "20s", "--auto-rollback"]);
    let monitor = Process::spawn("monitor", &mut command, &stage.path("")).unwrap();
    until("it waits", || monitor.output().unwrap().contains("for the lock").then_some(()));
    monitor
}

fn kill_green(stage: &Stage) {
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill(pid);
}

#[test]
fn an_automatic_rollback_waits_for_the_holder_of_the_lock() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", &format!("{NO_RESTART}\n[monitor]\ninterval = \"200ms\""));
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let retire = crate::final_look::Held::at(&stage, "retire.begun", &["retire"]);
    let mut monitor = waiting_monitor(&stage);
    assert_eq!(retire.end().code, Some(0));
    let ended = block(monitor.ended(SOON)).unwrap();
    assert_eq!(ended.code(), Some(3), "{}", monitor.output().unwrap());
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn an_undo_does_not_return_to_a_backend_that_holds_another_version_by_now() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", &format!("{NO_RESTART}\n[monitor]\ninterval = \"200ms\""));
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.deploy("1.0.2");
    assert_eq!(crate::final_look::uh_proxy(&stage, &["switch", "green"]).code, Some(0));
    let ran = stage.expect(1, &["rollback", "--of", "1.0.1"]);
    ran.says("blue (v1.0.2)").says("--to blue --again").says("green (v1.0.1) serves");
    kill_green(&stage);
    stage.expect(7, &["monitor", "--duration", "20s", "--auto-rollback"]).says("--to blue --again");
    assert_eq!(stage.active(), "green");
}

#[test]
fn a_rollback_does_not_return_to_the_version_of_a_superseded_deploy() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let held =
        crate::final_look::Held::at(&stage, "effect.confirm.before", &["blue-green", "--version", "1.0.2"]);
    assert_eq!(crate::final_look::uh_proxy(&stage, &["switch", "green"]).code, Some(0));
    assert_eq!(held.end().code, Some(5));
    stage.expect(1, &["rollback", "--of", "1.0.1"]).says("--to blue --again").says("green (v1.0.1) serves");
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_switch_made_meanwhile_is_not_undone_for_an_earlier_breach() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", &format!("{NO_RESTART}\n[monitor]\ninterval = \"200ms\""));
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let retire = crate::final_look::Held::at(&stage, "retire.begun", &["retire"]);
    let mut monitor = waiting_monitor(&stage);
    // Switches are distinguished by the second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    for args in [&["switch", "blue"][..], &["switch", "green", "--force"]] {
        assert_eq!(crate::final_look::uh_proxy(&stage, args).code, Some(0));
    }
    retire.end();
    let ended = block(monitor.ended(SOON)).unwrap();
    assert_eq!(ended.code(), Some(5), "{}", monitor.output().unwrap());
    assert_eq!(stage.active(), "green");
}
