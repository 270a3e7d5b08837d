//! Successful deploys and rollbacks, and what they leave behind.

use std::fs;

use crate::harness::{Stage, until};
use crate::hooks::Webhook;

#[test]
fn a_deploy_takes_seven_steps_and_a_rollback_four() {
    let stage = Stage::new();
    stage
        .deploy("1.0.0")
        .says("[1/7] Determining inactive environment...")
        .says("Active: green → Building: blue");
    assert_eq!(stage.served(), "blue 1.0.0");
    let load = stage.load();
    let second = stage.deploy("1.0.1");
    for line in [
        "[1/7] Determining inactive environment...",
        "[2/7] Building...",
        "[3/7] Starting process...",
        "[4/7] Waiting for health checks...",
        "Healthy ✓",
        "[5/7] Switching traffic...",
        "[6/7] Draining old environment...",
        "Connections drained ✓",
        "[7/7] Updating deployment state...",
        "✅ Deployment complete!",
        "Downtime: 0s",
    ] {
        second.says(line);
    }
    assert_eq!(stage.served(), "green 1.0.1");
    assert_eq!(stage.answers("blue").as_deref(), Some("blue 1.0.0"), "the old one stays warm");
    let state = stage.state_file();
    assert_eq!((state["active"].as_str(), state["version"].as_str()), (Some("green"), Some("1.0.1")));
    let back = stage.expect(0, &["rollback"]);
    back.says("[1/4] Reading current state...")
        .says("Active: green (v1.0.1)")
        .says("Previous: blue (v1.0.0)");
    back.says("[2/4] Validating rollback target...")
        .says("Status: Running ✓")
        .says("✅ Rollback complete in ");
    assert_eq!(stage.served(), "blue 1.0.0");
    load.must_be_unharmed();
    let outcomes: Vec<String> =
        stage.history().iter().map(|line| line["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes, ["deployed", "deployed", "rolled_back"]);
    stage.expect(0, &["history"]).says("blue → green");
    stage.expect(0, &["health-check"]).says("✓ Active: blue (v1.0.0)").says("✓ Health: OK");
    stage.expect(0, &["logs", "--tail", "5"]).says("listening on");
}

#[test]
fn a_first_deploy_happens_once() {
    let stage = Stage::new();
    // By default, what is killed below would be restarted.
    stage.configure("uh-deploy.toml", "[runtime.process]\nrestart = \"no\"");
    let first = stage.expect(0, &["blue-green", "--first", "--version", "1.0.0"]);
    first.says("✅ Deployment complete!");
    assert!(!first.text.contains("keeps running"), "nothing was there before: {}", first.text);
    stage
        .expect(0, &["blue-green", "--first", "--version", "2.0.0"])
        .says("blue (v1.0.0) was already deployed, so --first has nothing to do");
    assert_eq!(stage.served(), "blue 1.0.0");
    assert_eq!(stage.history().len(), 1);
    for (_, pid) in stage.app_pids() {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    until("nothing runs", || (stage.apps() == 0).then_some(()));
    stage
        .expect(1, &["blue-green", "--first", "--version", "2.0.0"])
        .says("blue (v1.0.0) was deployed before");
    stage.deploy("2.0.0");
}

#[test]
fn a_first_deploy_is_refused_if_uh_proxy_knows_of_others() {
    let stage = Stage::new();
    stage.deploy("1.0.1");
    let state = stage.path("deploy-state");
    fs::rename(&state, stage.path("lost")).unwrap();
    stage
        .expect(1, &["blue-green", "--first", "--version", "1.0.0"])
        .says("this isn't the first deploy: blue (v1.0.1) is active")
        .says("nothing was changed");
    assert_eq!(stage.served(), "blue 1.0.1");
    // So that the running app is found and killed at the end of the test.
    fs::remove_dir_all(&state).unwrap();
    fs::rename(stage.path("lost"), &state).unwrap();
}

#[test]
fn a_rollback_to_a_stopped_version_starts_it_from_its_record() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire"]).says("stays warm");
    stage.expect(0, &["retire", "--now"]).says("was stopped");
    until("blue is gone", || stage.answers("blue").is_none().then_some(()));
    assert_eq!(stage.apps(), 1);
    // The configuration has changed since it ran.
    stage.configure("uh-deploy.toml", "[runtime.process]\nenv = { APP_VERSION = \"other\" }");
    let load = stage.load();
    stage
        .expect(0, &["rollback"])
        .says("not running: starting it again from its record")
        .says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
    load.must_be_unharmed();
    let remarks = stage.history().last().unwrap()["remarks"].to_string();
    assert!(remarks.contains("started again from its record"), "{remarks}");
}

#[test]
fn a_dry_run_changes_nothing() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let (before, state) = (listing(&stage), stage.status().generation);
    stage
        .expect(0, &["blue-green", "--version", "1.0.1", "--dry-run"])
        .says("Active: blue (v1.0.0) → Building: green (v1.0.1)")
        .says("switch app from blue to green");
    assert_eq!((listing(&stage), stage.status().generation), (before, state));
    assert_eq!(stage.apps(), 1);
}

/// Every file of the state directory, with its length.
fn listing(stage: &Stage) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut open = vec![stage.path("deploy-state")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.metadata().unwrap() {
                dir if dir.is_dir() => open.push(entry.path()),
                file => found.push((entry.path().display().to_string(), file.len())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn skipping_the_health_gate_is_reported() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[runtime.process]\nenv = { UNHEALTHY = \"1\" }");
    stage.expect(0, &["blue-green", "--version", "1.0.0", "--skip-health"]).says("SKIPPED");
    assert_eq!(stage.active(), "blue");
    assert!(stage.history()[0]["remarks"].to_string().contains("health gate skipped"));
}

#[test]
fn a_rollback_without_a_target_changes_nothing_and_reports_it() {
    let stage = Stage::new();
    stage.expect(1, &["rollback"]).says("nothing to roll back to");
    stage.deploy("1.0.0");
    stage.expect(1, &["rollback", "--to", "red"]).says("no backend red");
    stage.expect(1, &["rollback", "--to", "blue"]).says("is already active");
    stage.expect(1, &["rollback"]).says("there is no record to start it from");
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn uh_deploy_never_stops_the_active_backend() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let pid = |stage: &Stage| stage.app_pids().into_iter().find(|(name, _)| name.contains(".green."));
    let green = pid(&stage);
    let load = stage.load();
    for _ in 0..3 {
        stage.expect(0, &["retire", "--now"]);
    }
    stage.expect(0, &["recover"]);
    stage.configure(
        "uh-deploy.toml",
        "[health]\nwithin = \"300ms\"\n[runtime.process]\nenv = { UNHEALTHY = \"1\" }",
    );
    stage.expect(1, &["blue-green", "--version", "1.0.2"]);
    stage.expect(1, &["blue-green", "--version", "1.0.3"]);
    stage.expect(0, &["retire", "--now"]);
    assert_eq!(pid(&stage), green);
    assert_eq!(stage.served(), "green 1.0.1");
    load.must_be_unharmed();
}

#[test]
fn secrets_stay_out_of_output_journal_and_history() {
    const SECRET: &str = "tr0ub4dor-and-3";
    let stage = Stage::new();
    fs::write(
        stage.path(".env"),
        format!("API_KEY={SECRET}\nDATABASE_URL=postgres://me:{SECRET}-db@db/app\n"),
    )
    .unwrap();
    let script = "echo key $API_KEY url $DATABASE_URL; exit 3";
    let extra = format!(
        "[runtime.process]\nenv_file = {:?}\ncommand = [\"sh\", \"-c\", {script:?}]\nbuild = [\"sh\", \"-c\", {:?}]",
        stage.path(".env"),
        "echo building with $API_KEY"
    );
    stage.configure("uh-deploy.toml", &extra);
    let text = stage.expect(1, &["blue-green", "--version", "1.0.0"]);
    text.says("key *** url ***").says("building with ***");
    let json = stage.expect(1, &["--json", "blue-green", "--version", "1.0.0"]);
    let logs = stage.expect(0, &["logs", "--backend", "blue"]);
    let validate = stage.run(&["validate"]);
    let files = ["journal.jsonl", "history.jsonl", "lock"]
        .map(|name| fs::read_to_string(stage.path("deploy-state").join(name)).unwrap_or_default());
    for text in [&text.text, &json.text, &logs.text, &validate.text].into_iter().chain(&files) {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[test]
fn hooks_and_the_webhook_get_the_event_and_only_pre_deploy_can_veto() {
    let stage = Stage::new();
    let webhook = Webhook::start();
    let write = |name: &str, end: &str| format!("[\"sh\", \"-c\", \"cat > {name}.json; exit {end}\"]");
    let hooks = format!(
        "[hooks]\npre_deploy = {}\npost_switch = {}\n[notice]\nwebhook = {:?}",
        write("pre", "0"),
        write("post", "1"),
        webhook.url
    );
    stage.configure("uh-deploy.toml", &hooks);
    stage.deploy("1.0.0").says("the hook post_switch failed (sh failed: exit status: 1); traffic has moved");
    let (request, event) = webhook.event();
    assert_eq!(
        (request.as_str(), &event["outcome"]["outcome"]),
        ("post /deploys http/1.1", &"deployed".into())
    );
    for name in ["pre.json", "post.json"] {
        let text = fs::read_to_string(stage.path(name)).unwrap();
        assert!(text.contains("\"version\":\"1.0.0\""), "{name}: {text}");
    }
    stage.configure(
        "uh-deploy.toml",
        "[hooks]\npre_deploy = [\"false\"]\non_failure = [\"sh\", \"-c\", \"cat > failed.json\"]",
    );
    let generation = stage.status().generation;
    stage.expect(1, &["blue-green", "--version", "1.0.1"]).says("pre_deploy vetoed the deploy");
    assert_eq!((stage.apps(), stage.status().generation), (1, generation));
    assert!(fs::read_to_string(stage.path("failed.json")).unwrap().contains("pre_deploy vetoed the deploy"));
}

#[test]
fn an_interrupt_undoes_the_changes() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure(
        "uh-deploy.toml",
        "[runtime.process]\nenv = { UNHEALTHY = \"1\" }\n[health]\nwithin = \"60s\"",
    );
    let mut child = stage
        .command(&["blue-green", "--version", "1.0.1"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    until("green is started", || stage.answers("green"));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = until("uh-deploy has ended", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1));
    assert_eq!((stage.apps(), stage.served()), (1, "blue 1.0.0".to_owned()));
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

#[test]
fn maintenance_is_set_at_uh_proxy_and_recorded() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.expect(0, &["maintenance", "on", "--message", "back at noon"]).says("app: maintenance is on");
    assert!(stage.served().contains("back at noon"));
    stage.expect(1, &["health-check"]).says("✗ Maintenance: ");
    stage.deploy("1.0.1");
    assert!(stage.served().contains("back at noon"), "a deploy does not end it");
    stage.expect(0, &["maintenance", "off"]);
    assert_eq!(stage.served(), "green 1.0.1");
    stage.expect(0, &["history"]).says("turned on").says("turned off");
}

#[test]
fn an_app_outlives_its_supervisor_and_can_still_be_stopped() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let (_, app) = stage.app_pids().remove(0);
    let status = fs::read_to_string(format!("/proc/{app}/status")).unwrap();
    let supervisor =
        status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    let supervisor = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    until("the app has another parent", || {
        let status = fs::read_to_string(format!("/proc/{app}/status")).unwrap();
        (!status.contains(&format!("PPid:\t{}\n", supervisor.as_raw_nonzero()))).then_some(())
    });
    assert_eq!(stage.served(), "blue 1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire", "--now"]).says("was stopped");
    until("blue is gone", || stage.answers("blue").is_none().then_some(()));
    stage.expect(0, &["rollback"]).says("starting it again from its record");
}

#[test]
fn without_a_warm_window_the_deploy_stops_the_old_version() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[deploy]\nwarm = \"0s\"");
    stage.deploy("1.0.0");
    let ran = stage.deploy("1.0.1");
    ran.says("blue (v1.0.0) isn't kept running (warm is 0s): a rollback has to start it first")
        .says("was stopped");
    assert!(!ran.text.contains("instantly"), "{}", ran.text);
    assert_eq!((stage.served(), stage.apps()), ("green 1.0.1".to_owned(), 1));
    // After the watch, if there is one.
    let ran = stage.expect(0, &["blue-green", "--version", "1.0.2", "--watch", "500ms"]);
    assert!(ran.text.find("Monitoring complete") < ran.text.rfind("was stopped"), "{}", ran.text);
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.2".to_owned(), 1));
    stage.expect(0, &["rollback"]).says("starting it again from its record");
    assert_eq!(stage.served(), "green 1.0.1");
}
