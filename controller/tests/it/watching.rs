//! The watch after a deploy: what it finds, how soon, and how it survives its process.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use uh_testkit::load::{Group, Load, Plan, Reuse};

use crate::failing_apps;
use crate::harness::{REQUEST_TIMEOUT, Ran, Stage, get, until};

/// Short intervals, so that a second stands for a minute.
const QUICK: &str = "[monitor]\ninterval = \"200ms\"";

/// Requests at a steady rate, one connection each, whether they succeed or not: uh-deploy judges the responses.
pub(crate) struct Traffic {
    address: SocketAddr,
    per_second: u32,
    load: RefCell<Load>,
}

fn one_client(target: SocketAddr, per_second: u32, path: &str) -> Load {
    let group = Group { path: path.to_owned(), clients: 1, rate: per_second.into(), reuse: Reuse::Never };
    Load::start(Plan { target, groups: vec![group], request_timeout: REQUEST_TIMEOUT }).unwrap()
}

impl Traffic {
    pub(crate) fn start(address: SocketAddr, per_second: u32, path: &str) -> Self {
        Self { address, per_second, load: one_client(address, per_second, path).into() }
    }

    pub(crate) fn ask_for(&self, path: &str) {
        self.load.replace(one_client(self.address, self.per_second, path));
    }

    /// Waits for this many more requests.
    pub(crate) fn wait_for(&self, requests: usize) {
        let sent = || self.load.borrow().so_far().0;
        let before = sent();
        until("they were sent", || (sent() >= before + requests).then_some(()));
    }
}

/// A version that fails this share of its requests.
pub(crate) fn failing(percent: u32, extra: &str) -> String {
    format!("[runtime.process]\nenv = {{ FAIL_PERCENT = \"{percent}\" }}\n{extra}")
}

fn start(stage: &Stage, args: &[&str]) -> Child {
    stage.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a deploy with a watch until the watch has counted something, then kills it as a closing terminal would.
fn lose_a_watch(stage: &Stage, args: &[&str]) {
    let mut deploy = start(stage, &[&["blue-green", "--version", "1.0.1"], args].concat());
    let requests = |watch: &Value| watch["seen"]["ended"]["GET 200"].as_u64().unwrap_or(0);
    until("the watch has seen requests", || {
        let done =
            stage.history().iter().any(|line| line["version"] == "1.0.1" && line["outcome"] == "deployed");
        saved(stage).filter(|watch| done && watch["operation"] != "" && requests(watch) > 0)
    });
    deploy.kill().unwrap();
    deploy.wait().unwrap();
}

/// The file that makes the next version fail, and no other. A failure of both isn't a reason to roll back.
pub(crate) fn turns_bad(stage: &Stage, extra: &str) -> PathBuf {
    let (script, flag) = (stage.path("app.py"), stage.path("bad"));
    std::fs::write(&script, failing_apps::turns_bad()).unwrap();
    let app = format!("[runtime.process]\ncommand = [\"python3\", {script:?}, {flag:?}]\n");
    stage.configure("uh-deploy.toml", &format!("{app}{extra}"));
    flag
}

fn saved(stage: &Stage) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(stage.path("deploy-state/watch.json")).ok()?).ok()
}

fn last_watch(stage: &Stage) -> Value {
    stage.history().into_iter().rfind(|line| line["command"] == "watch").expect("a watch in the history")
}

#[test]
fn a_watch_shorter_than_its_interval_still_sees_that_everything_fails() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 100, "/");
    stage.configure("uh-deploy.toml", &failing(100, "[monitor]\ninterval = \"10s\""));
    stage
        .expect(3, &["blue-green", "--version", "1.0.1", "--watch", "2s", "--auto-rollback"])
        .says("2s is too short to judge latency")
        .says("requests failed: 100.0%, more than 1.0%");
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// A version that fails in a way that no status shows, watched; the old one was probed healthy all the time, and so was this.
fn watched_until_rolled_back(how: &str) -> Ran {
    let mut stage = Stage::new();
    let path = stage.path("uh-proxy.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    // For what hangs: overdue soon, and no timeout that would turn it into a 504 within the test.
    std::fs::write(&path, format!("{text}[services.app.timeouts]\noverdue = \"300ms\"\n")).unwrap();
    stage.kill_front_door();
    stage.start_front_door();
    stage.deploy("1.0.0");
    let clients: Vec<_> = (0..30).map(|_| Traffic::start(stage.address, 5, "/")).collect();
    let env = format!("[runtime.process]\nenv = {{ FAIL_PERCENT = \"100\", FAIL_HOW = {how:?} }}\n");
    stage.configure("uh-deploy.toml", &format!("{env}[monitor]\ninterval = \"1s\""));
    let began = Instant::now();
    let ran = stage.expect(3, &["blue-green", "--version", "1.0.1", "--watch", "1m", "--auto-rollback"]);
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    assert_eq!(stage.served(), "blue 1.0.0");
    let breach = &last_watch(&stage)["breach"];
    assert!(breach["reason"].as_str().unwrap().contains("requests failed"), "{breach}");
    drop(clients);
    ran
}

#[test]
fn a_version_that_hangs_is_rolled_back_for_its_overdue_requests() {
    watched_until_rolled_back("hang").says("requests failed").says(" × overdue");
}

#[test]
fn a_version_that_cuts_its_answers_is_rolled_back_for_its_broken_requests() {
    watched_until_rolled_back("cut").says("requests failed").says(" × broken off (cut_short)");
}

#[test]
fn errors_that_start_just_before_the_end_count() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let traffic = Traffic::start(stage.address, 50, "/");
    stage.configure("uh-deploy.toml", "[monitor]\ninterval = \"3s\"");
    let deploy = start(&stage, &["blue-green", "--version", "1.0.1", "--watch", "5s"]);
    until("the first tick is over", || {
        saved(&stage).filter(|watch| watch["seen"]["ended"]["GET 200"].as_u64().unwrap_or(0) > 0)
    });
    traffic.ask_for("/status/500");
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(7), "{}", ran.text);
    ran.says("requests failed");
}

#[test]
fn the_watch_starts_with_the_switch_and_waits_for_neither_drain_nor_hook() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let address = stage.address;
    // The old version is busy for a minute.
    std::thread::spawn(move || drop(get(address, "/slow?ms=60000")));
    until("it is under way", || {
        let service = stage.service();
        let blue = service.backends.iter().find(|backend| backend.name.as_str() == "blue").unwrap();
        (blue.requests_in_flight > 0).then_some(())
    });
    let _traffic = Traffic::start(stage.address, 100, "/");
    let slow =
        "[deploy]\ndrain_timeout = \"50s\"\nsettle = \"1s\"\n[hooks]\npost_switch = [\"sleep\", \"50\"]\n";
    stage.configure("uh-deploy.toml", &failing(100, &format!("{slow}{QUICK}")));
    let began = Instant::now();
    stage
        .expect(3, &["blue-green", "--version", "1.0.1", "--watch", "1m", "--auto-rollback"])
        .says("skipping post_switch and the wait for the old version to drain");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// One request of a hundred fails, as the limit allows. There are fewer than a hundred between two measurements, so in most
/// of these intervals the share is above the limit.
#[test]
fn occasional_errors_are_not_a_breach() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 80, "/");
    stage.configure("uh-deploy.toml", &failing(1, "[monitor]\ninterval = \"1s\""));
    stage.expect(0, &["blue-green", "--version", "1.0.1", "--watch", "8s", "--auto-rollback"]);
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_killed_watch_is_continued_by_recover() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 100, "/");
    let bad = turns_bad(&stage, QUICK);
    lose_a_watch(&stage, &["--watch", "10m", "--auto-rollback"]);
    std::fs::write(bad, "").unwrap();
    stage
        .expect(3, &["recover"])
        .says("The process that watched green (v1.0.1)")
        .says("continuing its watch for the remaining 9m")
        .says("requests failed")
        .says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

#[test]
fn a_killed_watch_is_continued_by_the_timer_before_it_stops_anything() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 100, "/");
    let bad = turns_bad(&stage, &format!("[deploy]\nwarm = \"1ms\"\n{QUICK}"));
    lose_a_watch(&stage, &["--watch", "10m", "--auto-rollback"]);
    std::fs::write(bad, "").unwrap();
    stage.expect(3, &["retire"]).says("✅ Rollback complete");
    assert_eq!((stage.served(), stage.apps()), ("blue 1.0.0".to_owned(), 2));
}

/// Running `monitor` must not cancel a deploy's automatic rollback.
#[test]
fn monitor_continues_a_watch_with_automatic_rollback_that_lost_its_process() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let traffic = Traffic::start(stage.address, 100, "/");
    let bad = turns_bad(&stage, QUICK);
    lose_a_watch(&stage, &["--watch", "10m", "--auto-rollback"]);
    let monitor = start(&stage, &["monitor", "--duration", "1s"]);
    // Longer than its own watch would take.
    traffic.wait_for(300);
    std::fs::write(bad, "").unwrap();
    let ran = Ran::of(monitor.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    ran.says("continuing its watch for the remaining 9m").says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// A restart of uh-proxy just at the end must not roll back a good version.
#[test]
fn a_failed_last_measurement_is_repeated() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[monitor]\ninterval = \"1s\"");
    let mut monitor = start(&stage, &["monitor", "--duration", "3s"]);
    std::thread::sleep(Duration::from_millis(1500));
    stage.kill_front_door();
    let over = Instant::now() + Duration::from_secs(4);
    until("its time is over", || (Instant::now() > over).then_some(()));
    assert!(monitor.try_wait().unwrap().is_none_or(|status| !status.success()), "who answered it?");
    stage.start_front_door();
    let ran = Ran::of(monitor.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    ran.says("no uh-proxy is listening").says("Monitoring complete");
}

#[test]
fn what_happened_while_the_watch_had_no_process_counts() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let traffic = Traffic::start(stage.address, 100, "/");
    let bad = turns_bad(&stage, QUICK);
    lose_a_watch(&stage, &["--watch", "10m", "--auto-rollback"]);
    std::fs::write(&bad, "").unwrap();
    traffic.wait_for(150);
    std::fs::remove_file(bad).unwrap();
    let began = Instant::now();
    stage.expect(3, &["recover"]).says("✅ Rollback complete");
    assert!(began.elapsed() < Duration::from_secs(60), "the first look decides");
}

#[test]
fn a_watch_whose_time_ran_out_without_a_process_ends_with_a_verdict() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let traffic = Traffic::start(stage.address, 10, "/");
    stage.configure("uh-deploy.toml", "[monitor]\ninterval = \"100ms\"\nmin_requests = 100000");
    let began = Instant::now();
    lose_a_watch(&stage, &["--watch", "4s"]);
    drop(traffic);
    until("its time is over", || (began.elapsed() > Duration::from_secs(10)).then_some(()));
    stage.expect(0, &["recover"]).says("judging what was counted so far").says("not enough data");
    assert_eq!(last_watch(&stage)["outcome"], "not enough data");
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

#[test]
fn a_manual_rollback_is_possible_during_a_watch() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", QUICK);
    let deploy = start(&stage, &["blue-green", "--version", "1.0.1", "--watch", "10m", "--auto-rollback"]);
    until("it watches", || stage.history().iter().any(|line| line["version"] == "1.0.1").then_some(()));
    until("the lock is free", || (stage.run(&["rollback"]).code == Some(0)).then_some(()));
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(5), "{}", ran.text);
    assert_eq!(stage.served(), "blue 1.0.0");
    assert_eq!(last_watch(&stage)["outcome"], "superseded");
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

#[test]
fn another_deploy_ends_a_watch_that_lost_its_process() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 50, "/");
    stage.configure("uh-deploy.toml", QUICK);
    lose_a_watch(&stage, &["--watch", "10m"]);
    stage.deploy("1.0.2").says("the deploy of 1.0.2 ended a watch");
    assert_eq!(last_watch(&stage)["outcome"], "not enough data");
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

#[test]
fn too_little_data_is_exit_0_or_8_if_a_verdict_is_required() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", QUICK);
    let words = "not enough data: 0 requests were answered, and at least 20 are needed";
    stage.expect(0, &["blue-green", "--version", "1.0.1", "--watch", "500ms"]).says(words);
    assert_eq!(last_watch(&stage)["outcome"], "not enough data");
    stage.expect(8, &["blue-green", "--version", "1.0.2", "--watch", "500ms", "--require-verdict"]);
    stage.expect(8, &["monitor", "--duration", "500ms", "--require-verdict"]);
    let ran = stage.expect(0, &["--json", "monitor", "--duration", "500ms"]);
    ran.says("\"verdict\":\"not enough data\"");
    stage.configure("uh-deploy.toml", &format!("{QUICK}\nrequire_verdict = true"));
    stage.expect(8, &["monitor", "--duration", "500ms"]);
    let _traffic = Traffic::start(stage.address, 200, "/");
    stage.expect(0, &["monitor", "--duration", "3s"]).says("No issues detected");
}

#[test]
fn the_reason_of_a_breach_reaches_history_and_hooks_with_request_ids() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 100, "/");
    let files = [stage.path("rolled-back.json"), stage.path("failed.json")];
    let hooks = format!(
        "[hooks]\non_rollback = [\"sh\", \"-c\", \"cat > {}\"]\non_failure = [\"sh\", \"-c\", \"cat > {}\"]\n\
         [deploy.proxy]\nconfig = {:?}\n{QUICK}",
        files[0].display(),
        files[1].display(),
        stage.path("uh-proxy.toml"),
    );
    stage.configure("uh-deploy.toml", &failing(100, &hooks));
    stage.deploy("1.0.1");
    stage.expect(7, &["monitor", "--duration", "30s"]).says("× 500").says("request ids: ");
    stage.expect(3, &["monitor", "--duration", "30s", "--auto-rollback"]);
    let of = |path: &std::path::Path| -> Value {
        let event: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        event["outcome"].clone()
    };
    let rollback = stage.history().into_iter().rfind(|line| line["command"] == "rollback").unwrap();
    for line in [rollback, last_watch(&stage), of(&files[0]), of(&files[1])] {
        assert!(line["reason"].as_str().unwrap().contains("requests failed"), "{line}");
        assert_eq!(line["breach"]["failures"][0]["kind"], "500", "{line}");
        assert_eq!(line["breach"]["request_ids"].as_array().unwrap().len(), 5, "{line}");
    }
    stage.expect(0, &["history"]).says("requests failed: 100.0%");
}

#[test]
fn the_new_version_is_compared_with_the_old_one_only_and_not_with_earlier_ones_of_its_backend() {
    let stage = Stage::new();
    let traffic = Traffic::start(stage.address, 100, "/");
    stage.configure("uh-deploy.toml", &failing(100, QUICK));
    stage.deploy("1.0.0");
    traffic.wait_for(50);
    stage.configure("uh-deploy.toml", QUICK);
    stage.deploy("1.0.1");
    stage.deploy("1.0.2");
    traffic.wait_for(50);
    let ran = stage.expect(0, &["--json", "blue-green", "--version", "1.0.3", "--watch", "1s"]);
    let figures = ran.text.lines().find(|line| line.contains("\"event\":\"figures\"")).unwrap();
    let figures: Value = serde_json::from_str(figures).unwrap();
    // 1.0.2 ran as blue, like 1.0.0, which failed everything.
    assert_eq!(figures["before"]["backend"], "blue");
    assert!(figures["before"]["requests"].as_u64().unwrap() >= 40, "{figures}");
    assert_eq!(figures["before"]["errors"], 0, "{figures}");
}

#[test]
fn a_restart_of_uh_proxy_during_the_watch_is_reported_and_loses_no_errors() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    let traffic = Traffic::start(stage.address, 200, "/");
    let bad = turns_bad(&stage, QUICK);
    let deploy = start(&stage, &["blue-green", "--version", "1.0.1", "--watch", "5m", "--auto-rollback"]);
    until("it has seen many", || {
        saved(&stage).filter(|watch| watch["seen"]["ended"]["GET 200"].as_u64().unwrap_or(0) > 100)
    });
    drop(traffic);
    stage.kill_front_door();
    stage.start_front_door();
    std::fs::write(bad, "").unwrap();
    let _traffic = Traffic::start(stage.address, 200, "/");
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    ran.says("uh-proxy was restarted").says("✅ Rollback complete");
    assert_eq!(stage.served(), "blue 1.0.0");
}
