//! Bad versions: how their deploys end, and what is reported. The old version serves all the time.

use std::process::Stdio;

use crate::harness::{Ran, Stage, program, until};

/// Deploys a good version, then a bad one with this configuration. The old version must serve all the time.
fn bad(code: i32, extra: &str) -> (Stage, Ran) {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", extra);
    let load = stage.load();
    let ran = stage.expect(code, &["blue-green", "--version", "1.0.1"]);
    load.must_be_unharmed();
    assert_eq!(stage.served(), "blue 1.0.0");
    assert_eq!(stage.apps(), 1, "the candidate was removed");
    assert_eq!(stage.answers("green"), None);
    (stage, ran)
}

fn shell(script: &str) -> String {
    format!("[runtime.process]\ncommand = [\"sh\", \"-c\", {script:?}]")
}

#[test]
fn one_that_exits_at_start_fails_immediately_with_its_code_and_last_log_lines() {
    let start = std::time::Instant::now();
    let (_, ran) = bad(1, &shell("echo no database >&2; exit 3"));
    ran.says("exited: exit code 3")
        .says("no database")
        .says("nothing has changed for users: blue (v1.0.0) serves");
    assert!(start.elapsed() < std::time::Duration::from_secs(9), "the gate waits 10 s");
}

/// On a very busy machine, a supervisor records the exit with some delay.
#[test]
fn one_whose_supervisor_records_the_exit_late_is_still_reported_with_its_code() {
    let held = "(setsid sh -c \"sleep 1; kill -CONT $PPID\") & sleep 0.2; kill -STOP $PPID; exit 3";
    let (_, ran) = bad(1, &shell(held));
    ran.says("exited: exit code 3");
}

#[test]
fn one_that_is_missing_is_named() {
    let (_, ran) = bad(1, "[runtime.process]\ncommand = [\"no-such-program\"]");
    ran.says("program no-such-program not found in PATH");
}

#[test]
fn one_that_never_listens_fails_with_the_last_error() {
    let (_, ran) =
        bad(1, &format!("{}\n[health]\nwithin = \"400ms\"", shell("echo dreaming; exec sleep 60")));
    ran.says("didn't become healthy within 400ms: Connection refused")
        .says("dreaming")
        .says("uh-deploy logs --backend green");
}

#[test]
fn one_that_answers_500_is_shown_with_its_answer() {
    let (_, ran) = bad(1, "[health]\nwithin = \"400ms\"\npath = \"/status/500\"");
    ran.says("status 500 Internal Server Error")
        .says("body: 500 Internal Server Error")
        .says("content-type: text/plain");
}

#[test]
fn one_that_answers_503_on_its_health_path_is_shown_with_its_body() {
    let (_, ran) = bad(1, "[health]\nwithin = \"400ms\"\n[runtime.process]\nenv = { UNHEALTHY = \"1\" }");
    ran.says("status 503").says("\"status\":\"unhealthy\"");
}

#[test]
fn one_that_reports_another_version_is_rejected() {
    let (_, ran) = bad(1, "[runtime.process]\nenv = { APP_VERSION = \"0.9.0\" }");
    ran.says("another instance answers").says("expected green 1.0.1, but green 0.9.0 answered");
}

#[test]
fn one_that_redirects_its_health_path_is_rejected() {
    let (_, ran) = bad(1, "[health]\nwithin = \"400ms\"\npath = \"/status/302\"");
    ran.says("status 302, redirected to");
}

#[test]
fn one_whose_port_is_in_use_names_the_process() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _taken = std::net::TcpListener::bind(("127.0.0.1", stage.ports[1])).unwrap();
    let ran = stage.expect(1, &["blue-green", "--version", "1.0.1"]);
    ran.says(&format!("127.0.0.1:{} is in use by", stage.ports[1]))
        .says(&format!("(pid {})", std::process::id()));
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 1));
}

/// A standby that was started manually: the first deploy finds its port in use, stops nothing, and leaves it in
/// service.
#[test]
fn one_whose_port_is_used_by_a_foreign_standby_leaves_that_in_service() {
    let stage = Stage::new();
    let mut by_hand = std::process::Command::new(program("uh-sample-app"));
    by_hand.env("PORT", stage.ports[0].to_string()).env("HOSTNAME", "127.0.0.1");
    by_hand.env("DEPLOYMENT_ENV", "blue").env("APP_VERSION", "0.9.0");
    let mut by_hand = by_hand.stdout(Stdio::null()).spawn().unwrap();
    until("it answers", || stage.answers("blue"));
    let ran = stage.run(&["blue-green", "--version", "1.0.0"]);
    let service = stage.service();
    let blue = service.backends.iter().find(|backend| backend.name.as_str() == "blue").unwrap();
    let role = blue.role;
    by_hand.kill().unwrap();
    by_hand.wait().unwrap();
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    ran.says(&format!("127.0.0.1:{} is in use by", stage.ports[0]));
    assert_eq!(role, uh_protocol::status::Role::Standby, "{}", ran.text);
}

/// The same where our standby has exited and another was started manually in its place.
#[test]
fn one_whose_port_is_taken_leaves_the_standby_in_service_though_one_of_ours_has_ended_there() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[runtime.process]\nrestart = \"no\"");
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let (_, ours) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".blue.")).unwrap();
    let pid = rustix::process::Pid::from_raw(ours).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("ours has ended", || stage.app_pids().iter().all(|(_, other)| *other != ours).then_some(()));
    let mut by_hand = std::process::Command::new(program("uh-sample-app"));
    by_hand.env("PORT", stage.ports[0].to_string()).env("HOSTNAME", "127.0.0.1");
    by_hand.env("DEPLOYMENT_ENV", "blue").env("APP_VERSION", "0.9.0");
    let mut by_hand = by_hand.stdout(Stdio::null()).spawn().unwrap();
    until("it answers", || stage.answers("blue"));
    let ran = stage.run(&["blue-green", "--version", "1.0.2"]);
    let service = stage.service();
    by_hand.kill().unwrap();
    by_hand.wait().unwrap();
    assert_eq!(ran.code, Some(1), "{}", ran.text);
    ran.says(&format!("127.0.0.1:{} is in use by uh-sample-app (pid {})", stage.ports[0], by_hand.id()));
    let blue = service.backends.iter().find(|backend| backend.name.as_str() == "blue").unwrap();
    assert_eq!(blue.role, uh_protocol::status::Role::Standby, "{}", ran.text);
}

#[test]
fn one_that_leaks_memory_is_killed_and_reported() {
    let leak = "c=$(head -c 262144 /dev/zero | tr '\\0' x); while :; do x=$x$c; sleep 0.01; done";
    let (_, ran) = bad(1, &format!("{}\nmemory_limit = \"24MiB\"", shell(leak)));
    ran.says("killed for using too much memory").says("raise memory_limit");
}

#[test]
fn one_whose_build_fails_shows_the_build_output() {
    let (stage, ran) = bad(1, "[runtime.process]\nbuild = [\"sh\", \"-c\", \"echo type error; exit 2\"]");
    ran.says("sh failed: exit status: 2").says("type error");
    assert_eq!(stage.history().last().unwrap()["outcome"], "failed");
}

/// An app that dies as soon as the file `die` exists.
fn dies_when_asked(stage: &Stage) -> String {
    let script = format!(
        "{} & app=$!; until [ -e {:?} ]; do sleep 0.02; done; kill -9 $app; exit 9",
        program("uh-sample-app").display(),
        stage.path("die")
    );
    shell(&script)
}

/// An app that dies after the switch: the `post_switch` hook creates the file.
fn dies_after_the_switch(stage: &Stage) -> String {
    format!(
        "{}\n[hooks]\npost_switch = [\"touch\", {:?}]\non_rollback = [\"touch\", {:?}]",
        dies_when_asked(stage),
        stage.path("die"),
        stage.path("rolled-back")
    )
}

#[test]
fn one_that_dies_after_the_switch_loses_traffic_automatically() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let extra = format!("{}\n[deploy]\nsettle = \"5s\"", dies_after_the_switch(&stage));
    stage.configure("uh-deploy.toml", &extra);
    let ran = stage.expect(3, &["blue-green", "--version", "1.0.1"]);
    ran.says("died after traffic was switched to it: exit code 9").says(
        "Rolled back: green (v1.0.1) died after the switch, so traffic was moved back; blue (v1.0.0) serves",
    );
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 1));
    assert_eq!(stage.history().last().unwrap()["outcome"], "returned");
    assert!(stage.path("rolled-back").exists(), "on_rollback ran");
}

#[test]
fn one_that_dies_while_it_is_watched_is_rolled_back_automatically() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    // Not before the deploy is complete: a candidate that has died by the end of the drain fails its deploy.
    let extra = "[runtime.process]\nrestart = \"no\"\n[deploy]\nsettle = \"0s\"";
    stage.configure("uh-deploy.toml", &format!("{}\n{extra}", dies_when_asked(&stage)));
    let mut command =
        stage.command(&["blue-green", "--version", "1.0.1", "--watch", "20s", "--auto-rollback"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is deployed", || stage.history().iter().any(|line| line["version"] == "1.0.1").then_some(()));
    std::fs::write(stage.path("die"), "").unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    ran.says("exited: exit code 9").says("Rolling back automatically").says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn one_that_fails_requests_while_it_looks_healthy_is_a_breach() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let extra = "[runtime.process]\nenv = { FAIL_PERCENT = \"50\" }\n[monitor]\ninterval = \"200ms\"\nmin_requests = 5";
    stage.configure("uh-deploy.toml", extra);
    let load = stage.load();
    stage.deploy("1.0.1");
    stage
        .expect(7, &["monitor", "--duration", "20s"])
        .says("requests failed: ")
        .says("Consider rollback with");
    assert_eq!(stage.active(), "green");
    stage.expect(3, &["monitor", "--duration", "20s", "--auto-rollback"]).says("Rolling back automatically");
    assert_eq!(stage.served(), "blue 1.0.0");
    stage.expect(0, &["monitor", "--duration", "700ms"]).says("✓ Monitoring complete - No issues detected");
    let (_, failures) = load.end();
    assert!(failures.iter().all(|failure| failure == "status 500"), "{failures:?}");
    stage.expect(0, &["history"]).says("requested by monitor");
}
