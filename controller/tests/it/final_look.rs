//! At its end, a deploy reports what uh-proxy reports then, whatever happened meanwhile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::harness::{Ran, Stage, get, until};

/// Without restarts: a killed app stays dead.
pub(crate) const NO_RESTART: &str = "[runtime.process]\nrestart = \"no\"";

/// An operation that is paused at a named point.
pub(crate) struct Held<'a> {
    stage: &'a Stage,
    child: Child,
}

impl<'a> Held<'a> {
    /// Starts it, and waits until it has reached the point.
    pub(crate) fn at(stage: &'a Stage, point: &str, args: &[&str]) -> Self {
        let held = Self::start(stage, point, args);
        held.arrived();
        held
    }

    pub(crate) fn start(stage: &'a Stage, point: &str, args: &[&str]) -> Self {
        let hold = stage.path("hold");
        let _ = fs::remove_file(stage.path("hold.held"));
        fs::write(&hold, point).unwrap();
        let mut command = stage.command(args);
        command.env("UH_DEPLOY_HOLD_FILE", &hold).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { stage, child: command.spawn().unwrap() }
    }

    pub(crate) fn arrived(&self) {
        let held = self.stage.path("hold.held");
        until("the operation is at the point", || held.exists().then_some(()));
    }

    /// Lets it continue to its end.
    pub(crate) fn end(self) -> Ran {
        let _ = fs::remove_file(self.stage.path("hold"));
        Ran::of(self.child.wait_with_output().unwrap())
    }
}

/// Runs a command of `uh-proxy`.
pub(crate) fn uh_proxy(stage: &Stage, args: &[&str]) -> Ran {
    Ran::of(stage.proxy_cli(args).output().unwrap())
}

fn outcome(stage: &Stage) -> String {
    stage.history().last().unwrap()["outcome"].as_str().unwrap().to_owned()
}

#[test]
fn a_manual_switch_during_the_drain_supersedes_the_deploy() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let held = Held::at(&stage, "effect.drain.before", &["blue-green", "--version", "1.0.1"]);
    assert_eq!(uh_proxy(&stage, &["switch", "blue"]).code, Some(0));
    let ran = held.end();
    assert_eq!(ran.code, Some(5), "{}", ran.text);
    ran.says("Superseded").says("blue (v1.0.0) serves");
    assert!(!ran.text.contains("Active: green") && !ran.text.contains("complete"), "{}", ran.text);
    assert_eq!((outcome(&stage).as_str(), stage.served().as_str()), ("superseded", "blue 1.0.0"));
    assert_eq!(stage.history().last().unwrap()["serves"], "blue");
    stage.expect(1, &["rollback"]).says("was superseded").says("blue (v1.0.0) serves");
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn a_switch_that_uh_proxy_loses_requires_intervention() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    // The state before the switch: the disk refuses later writes, and a restart restores it.
    let state = stage.path("state");
    let kept = stage.path("kept");
    copy(&state, &kept);
    let hold = stage.path("hold");
    fs::write(&hold, "effect.drain.before").unwrap();
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    command.env("UH_DEPLOY_HOLD_FILE", &hold).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let held = stage.path("hold.held");
    until("traffic has moved", || held.exists().then_some(()));
    stage.kill_front_door();
    copy(&kept, &state);
    stage.start_front_door();
    assert_eq!(stage.active(), "blue");
    fs::remove_file(&hold).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(6), "{}", ran.text);
    ran.says("uh-proxy was restarted before the switch to green was on disk").says("blue (v1.0.0)");
    assert!(!ran.text.contains("Active: green") && !ran.text.contains("complete"), "{}", ran.text);
    assert_eq!((outcome(&stage).as_str(), stage.served().as_str()), ("attention", "blue 1.0.0"));
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn downtime_is_measured_by_uh_proxy_counters() {
    let stage = Stage::new();
    stage.deploy("1.0.0").says("Downtime: not measured (no requests arrived)");
    let load = stage.load();
    stage.deploy("1.0.1").says("Downtime: 0s");
    load.must_be_unharmed();
    // Users get the maintenance page, and a complete deploy doesn't hide that.
    stage.expect(0, &["maintenance", "on"]);
    let load = stage.load();
    let ran = stage.deploy("1.0.2");
    load.end();
    ran.says("answered by uh-proxy itself").says("Maintenance is on");
    assert!(!ran.text.contains("Downtime: 0s"), "{}", ran.text);
}

#[test]
fn a_repeated_first_deploy_reports_who_serves_and_not_what_is_recorded() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", NO_RESTART);
    stage.expect(0, &["blue-green", "--first", "--version", "1.0.0"]);
    stage.expect(0, &["maintenance", "on"]);
    stage
        .expect(0, &["blue-green", "--first", "--version", "1.0.0"])
        .says("maintenance is on: users get the maintenance page");
    stage.deploy("1.0.1");
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill(pid);
    until("green is gone", || stage.answers("green").is_none().then_some(()));
    // Blue is running, but green should serve.
    stage
        .expect(1, &["blue-green", "--first", "--version", "1.0.0"])
        .says("green (v1.0.1) is active but doesn't answer")
        .says("nothing was changed");
    stage.expect(1, &["health-check"]).says("✗ Health: ").says("✗ Maintenance: ");
    stage.expect(6, &["recover"]).says("green (v1.0.1) is active but doesn't answer").says("uh-deploy start");
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_health_check_during_a_deploy_reports_it() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let held = Held::at(&stage, "effect.prove.before", &["blue-green", "--version", "1.0.1"]);
    let ran = stage.expect(0, &["health-check"]);
    ran.says("✓ Health: OK").says("Running: another uh-deploy is running: ").says("deploy of 1.0.1");
    assert!(!ran.text.contains("Interrupted"), "{}", ran.text);
    // The journal enforces one operation at a time, too.
    fs::remove_file(stage.path("deploy-state/lock")).unwrap();
    let second = stage.run(&["blue-green", "--version", "1.0.2"]);
    assert_eq!(second.code, Some(4), "{}", second.text);
    second.says("its lock file was removed").says("nothing was changed");
    assert_eq!(held.end().code, Some(0));
    assert_eq!(stage.served(), "green 1.0.1");
    stage.deploy("1.0.3");
}

/// A manual switch while a deploy stops the standby it would go to.
#[test]
fn nothing_can_switch_to_a_standby_that_is_about_to_be_stopped() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let load = stage.load();
    let held = Held::at(&stage, "effect.clear.withdrawn", &["blue-green", "--version", "1.0.2"]);
    for force in [&["switch", "blue"][..], &["switch", "blue", "--force"]] {
        let ran = uh_proxy(&stage, force);
        assert_eq!(ran.code, Some(3), "{}", ran.text);
    }
    let ran = held.end();
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert_eq!(stage.served(), "blue 1.0.2");
    load.must_be_unharmed();
}

#[test]
fn nothing_can_switch_to_a_standby_during_or_after_retire() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let load = stage.load();
    let held = Held::at(&stage, "retire.withdrawn", &["retire", "--now"]);
    assert_eq!(uh_proxy(&stage, &["switch", "blue"]).code, Some(3));
    assert_eq!(held.end().code, Some(0));
    assert_eq!(uh_proxy(&stage, &["switch", "blue"]).code, Some(3));
    load.must_be_unharmed();
    assert_eq!(stage.served(), "green 1.0.1");
    stage.expect(0, &["rollback"]).says("starting it again from its record");
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn a_backend_withdrawn_but_not_stopped_is_put_back_into_service() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let fault = stage.path("fault");
    for (point, args) in [
        ("retire.withdrawn", &["retire", "--now"][..]),
        ("effect.clear.withdrawn", &["blue-green", "--version", "1.0.2"]),
    ] {
        fs::write(&fault, point).unwrap();
        let killed = stage.command(args).env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap();
        assert_eq!(killed.status.code(), None, "{}", Ran::of(killed).text);
        assert_eq!(uh_proxy(&stage, &["switch", "blue"]).code, Some(3), "{point}");
        stage
            .expect(0, &["recover"])
            .says("blue (v1.0.0) was withdrawn but is still running: it was registered again");
        until("uh-proxy considers blue healthy", || {
            (uh_proxy(&stage, &["switch", "blue"]).code == Some(0)).then_some(())
        });
        assert_eq!(stage.served(), "blue 1.0.0");
        assert_eq!(uh_proxy(&stage, &["switch", "green"]).code, Some(0));
    }
}

/// A slow request keeps the drain open, as in practice.
#[test]
fn a_request_in_flight_does_not_hide_a_manual_switch() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let mut slow = TcpStream::connect(stage.address).unwrap();
    slow.write_all(b"GET /slow?ms=1500 HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").unwrap();
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("traffic has moved", || (stage.active() == "green").then_some(()));
    uh_proxy(&stage, &["switch", "blue"]);
    let ran = Ran::of(child.wait_with_output().unwrap());
    let mut answer = String::new();
    let _ = slow.read_to_string(&mut answer);
    let served = get(stage.address, "/").unwrap();
    assert_eq!(ran.code, Some(5), "{}", ran.text);
    assert!(served.starts_with("blue 1.0.0"), "{served}");
    ran.says("blue (v1.0.0) serves");
}

/// Kills a deploy after its switch, together with a uh-proxy that has only the registration on disk, not the switch.
fn forgotten(stage: &mut Stage) {
    stage.deploy("1.0.0");
    let (state, kept) = (stage.path("state"), stage.path("kept"));
    let mut held = Held::at(stage, "effect.switch.before", &["blue-green", "--version", "1.0.1"]);
    copy(&state, &kept);
    fs::remove_file(stage.path("hold.held")).unwrap();
    fs::write(stage.path("hold"), "effect.drain.before").unwrap();
    held.arrived();
    held.child.kill().unwrap();
    held.child.wait().unwrap();
    fs::remove_file(stage.path("hold")).unwrap();
    stage.kill_front_door();
    copy(&kept, &state);
    stage.start_front_door();
    assert_eq!(stage.active(), "blue");
}

#[test]
fn a_lost_switch_is_detected_after_an_interruption_although_the_registration_is_on_disk() {
    let mut stage = Stage::new();
    forgotten(&mut stage);
    stage.expect(6, &["recover"]).says("the switch is lost").says("blue (v1.0.0) serves");
    assert_eq!((outcome(&stage).as_str(), stage.served().as_str()), ("attention", "blue 1.0.0"));
}

#[test]
fn nothing_is_retired_if_a_recovery_requires_intervention() {
    let mut stage = Stage::new();
    forgotten(&mut stage);
    stage.expect(6, &["retire", "--now"]).says("Manual intervention required");
    assert_eq!(stage.apps(), 2);
}

#[test]
fn no_standby_is_retired_while_the_active_backend_is_dead() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", NO_RESTART);
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill(pid);
    until("green is gone", || stage.answers("green").is_none().then_some(()));
    stage.expect(6, &["retire", "--now"]).says("green (v1.0.1)").says("uh-deploy rollback");
    assert_eq!(stage.answers("blue").as_deref(), Some("blue 1.0.0"));
}

#[test]
fn a_dead_candidate_fails_its_deploy_even_without_settle() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"0s\"");
    let held = Held::at(&stage, "effect.drain.before", &["blue-green", "--version", "1.0.1"]);
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill(pid);
    let ran = held.end();
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    assert_eq!((outcome(&stage).as_str(), stage.served().as_str()), ("returned", "blue 1.0.0"));
}

#[test]
fn an_app_that_crashes_between_the_last_check_and_the_record_is_restarted() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let held = Held::at(&stage, "effect.confirm.before", &["blue-green", "--version", "1.0.1"]);
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill(pid);
    until("it is gone", || stage.app_pids().iter().all(|(_, other)| *other != pid).then_some(()));
    let ran = held.end();
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    until("it answers again", || stage.answers("green").filter(|answer| answer == "green 1.0.1"));
}

/// An operator switches to the candidate before the deploy does: the deploy requires manual intervention, and users get
/// the candidate.
#[test]
fn a_candidate_that_serves_after_a_deploy_that_requires_intervention_is_restarted_and_recorded() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let held = Held::at(&stage, "effect.switch.before", &["blue-green", "--version", "1.0.1"]);
    assert_eq!(uh_proxy(&stage, &["switch", "green", "--force"]).code, Some(0));
    let ran = held.end();
    assert_eq!(ran.code, Some(6), "{}", ran.text);
    assert_eq!((outcome(&stage).as_str(), stage.served().as_str()), ("attention", "green 1.0.1"));
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill(pid);
    until("it answers again", || {
        let restarted = stage.app_pids().iter().all(|(_, other)| *other != pid);
        stage.answers("green").filter(|answer| restarted && answer == "green 1.0.1")
    });
    // After a reboot too, it is this version that is started.
    stage.kill_all_instances();
    stage.expect(0, &["start"]).says("green (v1.0.1) serves");
}

/// An operator switches back to the standby that the candidate was to replace, and the candidate's state can't be
/// checked: what serves there keeps its own record.
#[test]
fn a_candidate_that_never_started_does_not_take_the_record_of_what_serves() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let held = Held::at(&stage, "effect.clear.before", &["blue-green", "--version", "1.0.2"]);
    let journal = fs::read_to_string(stage.path("deploy-state/journal.jsonl")).unwrap();
    let (_, candidate) = journal.rsplit_once("\"instance\":\"").unwrap();
    let (candidate, _) = candidate.split_once('"').unwrap();
    fs::write(stage.path("deploy-state/instances").join(candidate), "not a directory").unwrap();
    assert_eq!(uh_proxy(&stage, &["switch", "blue", "--force"]).code, Some(0));
    let ran = held.end();
    assert_eq!(ran.code, Some(6), "{}", ran.text);
    assert_eq!((outcome(&stage).as_str(), stage.served().as_str()), ("attention", "blue 1.0.0"));
    let record = fs::read_to_string(stage.path("deploy-state/records/blue.json")).unwrap();
    assert!(record.contains("\"version\":\"1.0.0\""), "{record}");
}
