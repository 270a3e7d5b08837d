//! What a deploy says at its end is what the front door says then, whatever was done meanwhile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::harness::{Ran, Stage, get, program, until};

/// What is killed stays dead.
pub(crate) const NO_RESTART: &str = "[runtime.process]\nrestart = \"no\"";

/// An operation that waits at a named point until it is let go on.
pub(crate) struct Held<'a> {
    stage: &'a Stage,
    child: Child,
}

impl<'a> Held<'a> {
    /// Starts it, and waits until it has come to the point.
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

    fn arrived(&self) {
        let held = self.stage.path("hold.held");
        until("the operation has come to the point", || held.exists().then_some(()));
    }

    /// Lets it go on, to its end.
    pub(crate) fn end(self) -> Ran {
        let _ = fs::remove_file(self.stage.path("hold"));
        Ran::of(self.child.wait_with_output().unwrap())
    }
}

/// `uh-proxy`, as an operator types it.
pub(crate) fn uh_proxy(stage: &Stage, args: &[&str]) -> Ran {
    let mut command = Command::new(program("uh-proxy"));
    command.args(args).arg("--admin-socket").arg(stage.path("run/admin.sock"));
    Ran::of(command.output().unwrap())
}

fn outcome(stage: &Stage) -> String {
    stage.history().last().unwrap()["outcome"].as_str().unwrap().to_owned()
}

#[test]
fn a_switch_by_hand_during_the_drain_makes_the_deploy_superseded() {
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
fn a_switch_that_the_front_door_forgets_needs_somebody_to_look() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    // As it was on disk before the switch: the disk refuses what comes after, and a restart brings it back.
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
fn downtime_is_what_the_front_door_has_counted() {
    let stage = Stage::new();
    stage.deploy("1.0.0").says("Downtime: not measured (no requests came meanwhile)");
    let load = stage.load();
    stage.deploy("1.0.1").says("Downtime: 0s");
    load.must_be_unharmed();
    // The page is what users get, and a deploy that is complete does not hide it.
    stage.expect(0, &["maintenance", "on"]);
    let load = stage.load();
    let ran = stage.deploy("1.0.2");
    load.end();
    ran.says("answered by uh-proxy itself").says("Maintenance is on");
    assert!(!ran.text.contains("Downtime: 0s"), "{}", ran.text);
}

#[test]
fn a_first_deploy_that_was_made_says_who_serves_and_not_what_is_recorded() {
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
    // Blue runs, but it is green that should serve.
    stage
        .expect(1, &["blue-green", "--first", "--version", "1.0.0"])
        .says("green (v1.0.1) is active, but does not answer")
        .says("nothing was changed");
    stage.expect(1, &["health-check"]).says("✗ Health: ").says("✗ Maintenance: ");
    stage
        .expect(6, &["recover"])
        .says("green (v1.0.1) is active, but does not answer")
        .says("uh-deploy start");
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_health_check_during_a_deploy_says_that_one_runs() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let held = Held::at(&stage, "effect.prove.before", &["blue-green", "--version", "1.0.1"]);
    let ran = stage.expect(0, &["health-check"]);
    ran.says("✓ Health: OK").says("Running: another uh-deploy is at work: ").says("deploy of 1.0.1");
    assert!(!ran.text.contains("Interrupted"), "{}", ran.text);
    // The rule of the state directory is kept by the journal, too.
    fs::remove_file(stage.path("deploy-state/lock")).unwrap();
    let second = stage.run(&["blue-green", "--version", "1.0.2"]);
    assert_eq!(second.code, Some(4), "{}", second.text);
    second.says("its lock file was removed").says("nothing was changed");
    assert_eq!(held.end().code, Some(0));
    assert_eq!(stage.served(), "green 1.0.1");
    stage.deploy("1.0.3");
}

/// The operator's own rollback while a deploy stops the standby it would go to.
#[test]
fn a_standby_that_is_about_to_be_stopped_can_not_be_switched_to() {
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
fn what_retire_stops_can_not_be_switched_to_while_it_does_nor_afterwards() {
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
    stage.expect(0, &["rollback"]).says("started again as it was");
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn what_was_withdrawn_and_not_stopped_is_put_back_into_service() {
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
            .says("blue (v1.0.0) was withdrawn but still runs: it is registered again");
        until("blue is healthy for the front door", || {
            (uh_proxy(&stage, &["switch", "blue"]).code == Some(0)).then_some(())
        });
        assert_eq!(stage.served(), "blue 1.0.0");
        assert_eq!(uh_proxy(&stage, &["switch", "green"]).code, Some(0));
    }
}

/// A request that is answered slowly holds the drain open, as it does in earnest.
#[test]
fn a_request_in_flight_does_not_hide_a_switch_by_hand() {
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

/// Killed after its switch, together with a front door whose disk holds nothing of that switch, but the registration.
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
fn a_forgotten_switch_is_known_after_an_interruption_though_the_registration_is_on_disk() {
    let mut stage = Stage::new();
    forgotten(&mut stage);
    stage.expect(6, &["recover"]).says("has forgotten it").says("blue (v1.0.0) serves");
    assert_eq!((outcome(&stage).as_str(), stage.served().as_str()), ("attention", "blue 1.0.0"));
}

#[test]
fn nothing_is_retired_where_a_recovery_needs_somebody_to_look() {
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
fn a_candidate_that_is_dead_at_the_end_is_not_complete_without_settle_either() {
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
fn what_crashes_between_the_last_look_and_the_record_is_restarted() {
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
