//! The watch after a plain switch: a suspicion gives half of the clients back to the old version, and the comparison decides.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use uh_protocol::status::Suspect;

use crate::canary::{Clients, ended};
use crate::failing_apps;
use crate::harness::{REQUEST_TIMEOUT, Ran, SOON, Stage, until};
use crate::watching::failing;

/// What all versions share.
const OUTAGE: &str = "outage";

/// An app of which this share of requests fails also without an outage.
fn app(stage: &Stage, percent: u32, extra: &str) {
    let script = stage.path("app.py");
    std::fs::write(&script, failing_apps::fails_a_share()).unwrap();
    let command = format!("command = [\"python3\", {script:?}, {:?}, \"{percent}\"]", stage.path(OUTAGE));
    stage.configure("uh-deploy.toml", &format!("[runtime.process]\n{command}\n{extra}"));
}

/// Version 1.0.0 serves, has a history, and many clients.
fn known() -> (Stage, Clients) {
    let stage = Stage::with("trusted_proxies = [\"127.0.0.1\"]");
    app(&stage, 0, "");
    stage.deploy("1.0.0");
    let clients = Clients::start(stage.address);
    until("the old version has a history", || (clients.asked() > 200).then_some(()));
    (stage, clients)
}

const WATCHED: [&str; 6] = ["blue-green", "--version", "1.0.1", "--watch", "2m", "--auto-rollback"];

fn spawn(stage: &Stage, args: &[&str]) -> Child {
    stage.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn until_watched(stage: &Stage) {
    let deployed = |line: &Value| line["version"] == "1.0.1" && line["outcome"] == "deployed";
    until("it is deployed", || stage.history().iter().any(deployed).then_some(()));
}

fn until_halved(stage: &Stage) {
    let split = until("half of the clients are back on the old version", || stage.service().split);
    assert_eq!((split.to.as_str(), split.weight), ("blue", 50.0));
    assert!(split.suspect == Suspect::Active && split.leased, "{split:?}");
}

/// A request of a client that has sent none before. The response isn't awaited.
fn send(stage: &Stage, client: usize, path: &str) -> TcpStream {
    let client = Ipv4Addr::from(0x0b00_0000 + u32::try_from(client).unwrap());
    let mut stream = TcpStream::connect_timeout(&stage.address, REQUEST_TIMEOUT).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: {client}\r\nConnection: close");
    write!(stream, "{head}\r\n\r\n").unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn last_watch(stage: &Stage) -> Value {
    stage.history().into_iter().rfind(|line| line["command"] == "watch").expect("a watch in the history")
}

#[test]
fn an_outage_of_both_versions_is_not_rolled_back() {
    let (stage, _clients) = known();
    let deploy = spawn(&stage, &["blue-green", "--version", "1.0.1", "--watch", "30s", "--auto-rollback"]);
    until_watched(&stage);
    std::fs::write(stage.path(OUTAGE), "30").unwrap();
    until_halved(&stage);
    // Another deploy waits, and doesn't end the watch.
    stage
        .expect(1, &["blue-green", "--version", "1.0.2"])
        .says("for the cross-check of a watch")
        .says("nothing was changed");
    let over = Instant::now() + Duration::from_secs(3);
    until("the outage has lasted for a while", || (Instant::now() > over).then_some(()));
    std::fs::remove_file(stage.path(OUTAGE)).unwrap();
    ended(deploy, 0)
        .says("⚠ Suspicious: ")
        .says("Cross-check: half of the clients go back to blue (v1.0.0)")
        .says("✓ Not confirmed: at the same time ")
        .says("green (v1.0.1) gets all clients again");
    assert_eq!((stage.active(), stage.service().split), ("green".to_owned(), None));
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

/// They were sent when everybody was on the new version, so the old one has none like them.
#[test]
fn requests_from_before_a_check_do_not_count_in_it() {
    const LATE: usize = 150;
    let (stage, _clients) = known();
    let deploy = spawn(&stage, &["blue-green", "--version", "1.0.1", "--watch", "40s", "--auto-rollback"]);
    until_watched(&stage);
    let late: Vec<_> = (0..LATE).map(|client| send(&stage, client, "/late")).collect();
    let open = || stage.service().backends.iter().map(|backend| backend.requests_in_flight).sum::<u64>();
    until("they wait", || (open() >= LATE as u64).then_some(()));
    std::fs::write(stage.path(OUTAGE), "30").unwrap();
    until_halved(&stage);
    std::fs::remove_file(stage.path(OUTAGE)).unwrap();
    std::fs::write(stage.path(&format!("app.py{}", failing_apps::LATE)), "").unwrap();
    for stream in late {
        let answer = answer(stream);
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    }
    ended(deploy, 0);
    assert_eq!((stage.active(), stage.service().split), ("green".to_owned(), None));
}

/// Both fail, so the check would go on until the end of the watch.
#[test]
fn a_version_whose_probes_fail_during_a_check_is_rolled_back() {
    let (stage, _clients) = known();
    app(&stage, 0, "[monitor]\ninterval = \"1s\"\n");
    let deploy = spawn(&stage, &WATCHED);
    until_watched(&stage);
    std::fs::write(stage.path(OUTAGE), "30").unwrap();
    until_halved(&stage);
    std::fs::write(stage.path(&format!("app.py.{}{}", stage.ports[1], failing_apps::SICK)), "").unwrap();
    ended(deploy, 3).says("❌ unhealthy: ").says("✅ Rollback complete");
    assert_eq!((stage.active(), stage.service().split), ("blue".to_owned(), None));
    let reason = last_watch(&stage)["breach"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("unhealthy: "), "{reason}");
}

#[test]
fn a_version_that_fails_a_twentieth_is_rolled_back_after_a_cross_check() {
    let (stage, clients) = known();
    app(&stage, 5, "");
    let ran = stage.expect(3, &WATCHED);
    ran.says("⚠ Suspicious: ").says("; at the same time ").says("✅ Rollback complete");
    assert_eq!((stage.active(), stage.service().split), ("blue".to_owned(), None));
    let reason = last_watch(&stage)["breach"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("requests failed") && reason.contains("at the same time"), "{reason}");
    drop(clients);
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

/// Faster than the first measurement, which comes after 10 s.
#[test]
fn a_version_that_fails_everything_is_rolled_back_before_the_first_interval_is_over() {
    let (stage, _clients) = known();
    app(&stage, 100, "[monitor]\ninterval = \"10s\"\n");
    let deploy = spawn(&stage, &WATCHED);
    until("it serves", || (stage.active() == "green").then_some(()));
    let start = Instant::now();
    until("it doesn't any more", || (stage.active() == "blue").then_some(()));
    let took = start.elapsed();
    println!("all failed: switched back after {took:?}");
    ended(deploy, 3).says("✅ Rollback complete");
    assert!(took < Duration::from_secs(9), "{took:?}");
}

/// All of them are behind one address, so there is nothing to compare, and it takes hardly longer.
#[test]
fn without_anything_to_compare_the_new_version_is_judged_alone() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _clients = Clients::start(stage.address);
    stage.configure("uh-deploy.toml", &failing(100, "[monitor]\ninterval = \"10s\"\n"));
    let start = Instant::now();
    stage
        .expect(3, &WATCHED)
        .says("no cross-check with the old version: ")
        .says("is judged by its own requests alone")
        .says("✅ Rollback complete");
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn an_old_version_that_is_out_of_service_is_said_to_be_no_comparison() {
    let (stage, _clients) = known();
    let deploy = spawn(&stage, &WATCHED);
    until_watched(&stage);
    let ran = Ran::of(stage.proxy_cli(&["backend", "withdraw", "blue"]).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    std::fs::write(stage.path(OUTAGE), "100").unwrap();
    ended(deploy, 3).says("no cross-check with the old version: blue (v1.0.0) is out of service");
    assert_eq!(stage.active(), "blue");
}

/// The watch looks every second, and the obstacle stays.
#[test]
fn an_obstacle_is_said_once() {
    let stage = Stage::new();
    app(&stage, 0, "");
    stage.deploy("1.0.0");
    let deploy = spawn(&stage, &["blue-green", "--version", "1.0.1", "--watch", "20s", "--auto-rollback"]);
    until_watched(&stage);
    let ran = Ran::of(stage.proxy_cli(&["backend", "withdraw", "blue"]).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    // Odds of some 3,000 to 1: a suspicion, and no breach.
    for request in 0..30 {
        if request == 25 {
            std::fs::write(stage.path(OUTAGE), "100").unwrap();
        }
        let expected = if request < 25 { "HTTP/1.1 200 " } else { "HTTP/1.1 500 " };
        let answer = answer(send(&stage, request, "/"));
        assert!(answer.starts_with(expected), "{answer}");
    }
    let ran = ended(deploy, 0);
    let obstacle = "no cross-check with the old version: blue (v1.0.0) is out of service";
    assert_eq!(ran.text.matches(obstacle).count(), 1, "{}", ran.text);
    ran.says("5 of 30 requests failed").says("too few to be sure");
}

#[test]
fn a_check_whose_split_is_ended_by_another_command_begins_again() {
    let (stage, _clients) = known();
    let deploy = spawn(&stage, &["blue-green", "--version", "1.0.1", "--watch", "40s", "--auto-rollback"]);
    until_watched(&stage);
    std::fs::write(stage.path(OUTAGE), "30").unwrap();
    until_halved(&stage);
    let ran = Ran::of(stage.proxy_cli(&["split", "off"]).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    until_halved(&stage);
    std::fs::remove_file(stage.path(OUTAGE)).unwrap();
    let ran = ended(deploy, 0);
    ran.says("The cross-check is interrupted: another command ended its split");
    assert_eq!(ran.text.matches("⚠ Suspicious: ").count(), 2, "{}", ran.text);
    assert_eq!((stage.active(), stage.service().split), ("green".to_owned(), None));
}

#[test]
fn what_only_reports_moves_nobody() {
    let (stage, _clients) = known();
    app(&stage, 100, "[monitor]\ninterval = \"1s\"\n");
    let ran = stage.expect(7, &["blue-green", "--version", "1.0.1", "--watch", "2m"]);
    ran.says("requests failed").says("Consider rollback");
    assert!(!ran.text.contains("Cross-check"), "{}", ran.text);
    assert_eq!((stage.active(), stage.service().trial), ("green".to_owned(), None));
}

#[cfg(feature = "fault-points")]
#[test]
fn a_killed_cross_check_is_continued_by_recover() {
    let (stage, _clients) = known();
    app(&stage, 20, "");
    // At once, while half of the clients are still on the old version.
    crate::canary::killed_at(&stage, "watch.cross_check", &WATCHED);
    until_halved(&stage);
    stage
        .expect(3, &["recover"])
        .says("It was in a cross-check with blue (since ")
        .says("half of the clients are still on blue")
        .says("; at the same time ")
        .says("✅ Rollback complete");
    assert_eq!((stage.active(), stage.service().split), ("blue".to_owned(), None));
    stage.expect(0, &["recover"]).says("Nothing to recover");
    // After the end of its lease: everybody is on the new version again, and uh-proxy knows that it is worse.
    crate::canary::killed_at(&stage, "watch.cross_check", &WATCHED);
    let start = Instant::now();
    while stage.service().split.is_some() {
        assert!(start.elapsed() < Duration::from_secs(17), "nobody renews it, and it is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(stage.active(), "green");
    stage
        .expect(3, &["recover"])
        .says("its split has ended meanwhile, so all clients are on green")
        .says("uh-proxy has decided it since")
        .says("✅ Rollback complete");
    assert_eq!(stage.active(), "blue");
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

/// The deploy is killed in a cross-check of a version that is fine: an outage of both was the cause.
#[cfg(feature = "fault-points")]
#[test]
fn a_killed_cross_check_of_a_good_version_ends_with_that_version() {
    let (stage, _clients) = known();
    app(&stage, 0, "");
    let fault = stage.path("fault");
    std::fs::write(&fault, "watch.cross_check").unwrap();
    let args = ["blue-green", "--version", "1.0.1", "--watch", "30s", "--auto-rollback"];
    let mut command = stage.command(&args);
    let command = command.env("UH_DEPLOY_FAULT_FILE", &fault);
    let deploy = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_watched(&stage);
    std::fs::write(stage.path(OUTAGE), "100").unwrap();
    assert_eq!(Ran::of(deploy.wait_with_output().unwrap()).code, None, "it was killed");
    std::fs::remove_file(stage.path(OUTAGE)).unwrap();
    stage
        .expect(0, &["recover"])
        .says("It was in a cross-check with blue")
        .says("✓ Not confirmed: at the same time ");
    assert_eq!((stage.active(), stage.service().split), ("green".to_owned(), None));
    stage.expect(0, &["recover"]).says("Nothing to recover");
}
