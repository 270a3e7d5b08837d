//! `uh-deploy status`: what an operator sees of a service in each situation.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::final_look::{Held, kill};
use crate::harness::{Stage, until};
use crate::interruptions::kill_a_deploy;

fn json(stage: &Stage, code: i32) -> Value {
    let ran = stage.expect(code, &["status", "--json"]);
    let all: Value = serde_json::from_str(&ran.text).unwrap();
    all["services"][0].clone()
}

#[test]
fn it_says_who_serves_and_what_a_rollback_would_take() {
    let stage = Stage::new();
    stage.expect(1, &["status"]).says("green").says("doesn't answer").says("Users       get errors");
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let ran = stage.expect(0, &["status"]);
    ran.says("app behind uh-proxy ")
        .says("● green (v1.0.1)")
        .says("active for ")
        .says("healthy")
        .says("○ blue (v1.0.0)")
        .says("Rollback    instant, blue (v1.0.0) is running: `uh-deploy rollback --of 1.0.1`")
        .says("ago: deploy of green (v1.0.1): deployed, by ");
    assert!(!ran.text.contains('\x1b'), "colours in a pipe: {}", ran.text);
    let service = json(&stage, 0);
    assert_eq!(service["well"], true);
    assert_eq!((&service["service"], &service["active"]), (&"app".into(), &"green".into()));
    assert_eq!(service["backends"][0]["version"], "1.0.1");
    assert_eq!(service["rollback"]["possible"], true);
    assert_eq!(service["last"]["outcome"], "deployed");
    assert_eq!((&service["operation"], &service["watch"]), (&Value::Null, &Value::Null));
    stage.expect(0, &["retire", "--now"]);
    stage.expect(0, &["status"]).says("out of service ").says("Rollback    has to start blue (v1.0.0) first");
    stage.expect(0, &["maintenance", "on"]);
    stage.expect(1, &["status"]).says("Warning     Maintenance is on");
}

#[test]
fn it_says_what_runs_and_at_which_step_and_holds_nothing_up() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let held = Held::at(&stage, "effect.prove.before", &["blue-green", "--version", "1.0.1"]);
    stage
        .expect(0, &["status"])
        .says("Running     deploy of 1.0.1, for ")
        .says(": waiting for its health checks");
    let operation = &json(&stage, 0)["operation"];
    assert_eq!(operation["progress"], "running");
    assert!(operation["pid"].is_number(), "{operation}");
    assert_eq!(held.end().code, Some(0));
}

#[test]
fn it_says_what_was_interrupted_and_the_next_command() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    kill_a_deploy(&stage, "1.0.1", "green");
    stage
        .expect(0, &["status"])
        .says("Interrupted deploy of 1.0.1 (")
        .says("; run `uh-deploy recover`")
        .says("● blue (v1.0.0)");
    stage.expect(0, &["recover"]);
    let text = stage.expect(0, &["status"]).text;
    assert!(!text.contains("Interrupted"), "{text}");
}

#[test]
fn it_shows_a_watch_that_runs_and_one_that_was_interrupted() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let mut deploy = stage.command(&["blue-green", "--version", "1.0.1", "--watch", "10m"]);
    let mut deploy = deploy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let shown = || stage.run(&["status"]).text;
    until("the watch is shown", || shown().contains("Watch       of green (v1.0.1), 9m ").then_some(()));
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    let text = shown();
    assert!(
        text.contains("Watch       of green (v1.0.1) was interrupted; run `uh-deploy recover`"),
        "{text}"
    );
}

#[test]
fn without_a_front_door_it_shows_what_is_known() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    stage.kill_front_door();
    stage.expect(1, &["status"]).says("✗ ").says("ago: deploy of blue (v1.0.0): deployed");
    let service = json(&stage, 1);
    assert!(service["error"].is_string() && service.get("active").is_none(), "{service}");
}

#[test]
fn a_dead_app_is_said_with_the_reason() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[runtime.process]\nrestart = \"no\"");
    stage.deploy("1.0.0");
    let (_, pid) = stage.app_pids().remove(0);
    kill(pid);
    until("it is gone", || stage.answers("blue").is_none().then_some(()));
    stage.expect(1, &["status"]).says("doesn't answer").says("Users       get errors: blue doesn't answer (");
}

#[test]
fn watching_needs_a_terminal_or_prints_an_object_per_look() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.expect(2, &["status", "--watch"]).says("isn't one; with --json");
    let mut watch = stage.command(&["status", "--watch", "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((&line["event"], &line["services"][0]["active"]), (&"status".into(), &"blue".into()));
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// `script` runs it on a terminal of its own.
#[test]
fn on_a_terminal_it_is_redrawn_in_colour_unless_that_is_off() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let command = stage.command(&["status", "--watch"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    for green in [true, false] {
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--command", &words.join(" "), "/dev/null"]);
        script.env("TERM", "xterm").env_remove("NO_COLOR").env_remove("CLICOLOR");
        if !green {
            script.env("NO_COLOR", "1");
        }
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(script.stdout.take().unwrap()).lines();
        let mut seen = String::new();
        // The second look begins at the top again.
        while seen.matches("app behind uh-proxy").count() < 2 {
            seen += &lines.next().unwrap().unwrap();
        }
        script.kill().unwrap();
        script.wait().unwrap();
        assert!(seen.contains("\x1b[2J\x1b[H") && seen.contains("\x1b[J\x1b[H"), "{seen:?}");
        assert_eq!(seen.contains("\x1b[32m●"), green, "{seen:?}");
    }
}
