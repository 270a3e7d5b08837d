//! `uh-deploy start` after a reboot.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Ran, Stage, program, until};

#[test]
fn start_restores_the_active_backend_after_a_reboot() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.kill_front_door();
    stage.kill_all_instances();
    stage.start_front_door();
    stage
        .expect(0, &["start"])
        .says("green (v1.0.1) is active but isn't running")
        .says("✅ green (v1.0.1) serves");
    assert_eq!((stage.served(), stage.apps()), ("green 1.0.1".to_owned(), 1));
    stage.expect(0, &["start"]).says("green (v1.0.1) serves: nothing to start");
    assert_eq!(stage.history().last().unwrap()["command"], "start");
    // Restarts are enabled again, and all other commands find it as before.
    kill_process(Pid::from_raw(stage.app_pids().remove(0).1).unwrap(), Signal::KILL).unwrap();
    until("it is restarted", || (stage.answers("green")? == "green 1.0.1").then_some(()));
    stage.expect(0, &["rollback"]).says("starting it again from its record");
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn start_restores_the_active_backend_after_a_reboot_during_a_deploy() {
    for point in ["effect.switch.after", "effect.prove.after"] {
        let mut stage = Stage::new();
        stage.deploy("1.0.0");
        let fault = stage.path("fault");
        fs::write(&fault, point).unwrap();
        let mut deploy = stage.command(&["blue-green", "--version", "1.0.1"]);
        let ran = Ran::of(deploy.env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap());
        assert_eq!(ran.code, None, "{}", ran.text);
        stage.kill_front_door();
        stage.kill_all_instances();
        stage.start_front_door();
        let ran = stage.expect(0, &["start"]);
        let wanted = if point == "effect.switch.after" { "green 1.0.1" } else { "blue 1.0.0" };
        assert_eq!(stage.served(), wanted, "{point}: {}", ran.text);
        stage.expect(0, &["recover"]).says("Nothing to recover");
        // Although the deploy was unfinished, the active app is restarted when it exits.
        let (backend, _) = wanted.split_once(' ').unwrap();
        let part = format!(".{backend}.");
        let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(&part)).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        until("it is restarted", || (stage.answers(backend)? == wanted).then_some(()));
    }
}

#[test]
fn start_without_a_record_reports_it_and_changes_nothing() {
    let stage = Stage::new();
    stage
        .expect(1, &["start"])
        .says("green is active but unhealthy, and there is no record to start it from");
    assert!(stage.history().is_empty());
}

#[test]
fn an_active_app_that_can_not_be_started_requires_intervention() {
    let stage = Stage::new();
    let app = stage.path("app");
    fs::copy(program("uh-sample-app"), &app).unwrap();
    stage.configure("uh-deploy.toml", &format!("[runtime.process]\ncommand = [{app:?}]"));
    stage.deploy("1.0.0");
    stage.kill_all_instances();
    fs::remove_file(&app).unwrap();
    stage.expect(6, &["start"]).says("blue (v1.0.0) is active but can't be started").says("not found in");
}
