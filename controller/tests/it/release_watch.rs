//! The watch of a release: it judges every service, and one bad service returns all of them in one switch.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{Ran, until};
use crate::releases::{SERVICES, Shop};
use crate::watching::{Traffic, failing};

const QUICK: &str = "[monitor]\ninterval = \"200ms\"";

const WATCHED: [&str; 6] = ["blue-green", "--version", "1.0.0", "--watch", "10m", "--auto-rollback"];

/// Requests to both services.
fn traffic(shop: &Shop) -> [Traffic; 2] {
    SERVICES.map(|(_, path)| Traffic::start(shop.proxy.address, 100, path))
}

fn start(shop: &Shop, args: &[&str]) -> Child {
    shop.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(child: Child) -> Ran {
    Ran::of(child.wait_with_output().unwrap())
}

/// A member's watch, as it was saved at its last tick.
fn saved(shop: &Shop, member: usize) -> Option<Value> {
    let path = shop.members[member].state_dir().join("watch.json");
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Waits until the watch of every member has counted something, and the release is recorded.
fn wait_for_watch(shop: &Shop) {
    let counts = |member: usize| {
        let watch = saved(shop, member)?;
        let deployed = shop.history(member).iter().any(|line| line["version"] == "1.0.0");
        (deployed && watch["seen"]["ended"]["GET 200"].as_u64().unwrap_or(0) > 0).then_some(())
    };
    until("both watches have seen requests", || counts(0).and(counts(1)));
}

/// Runs a release with a watch until it has counted something, then kills it as a closing terminal would.
fn lose_the_watch(shop: &Shop) {
    let mut deploy = start(shop, &WATCHED);
    wait_for_watch(shop);
    deploy.kill().unwrap();
    deploy.wait().unwrap();
}

fn nothing_is_left_open(shop: &Shop) {
    for member in 0..2 {
        assert_ne!(saved(shop, member).unwrap()["verdict"], Value::Null, "the watch of {member} is open");
    }
    shop.expect(0, &["recover"]).says("Nothing to recover");
}

#[test]
fn one_bad_member_returns_the_whole_release_in_one_switch() {
    let shop = Shop::with_two_releases(QUICK);
    shop.members[1].configure("uh-deploy.toml", &failing(100, QUICK)).unwrap();
    let _traffic = traffic(&shop);
    let ran = shop.expect(3, &WATCHED);
    ran.says("Monitoring app: blue (v1.0.0) for 10m")
        .says("Note: a release has no cross-check with the old version")
        .says("web: blue (v1.0.0) | Health: OK")
        .says("❌ web: ")
        .says("requests failed: 100.0%")
        .says("Rolling back all services of the release automatically")
        .says("Rollback complete");
    assert_eq!(shop.served(), ["green 0.0.2"; 2]);
    let log = fs::read_to_string(shop.setup.log()).unwrap();
    let back = log.matches("services=\"app: blue → green, web: blue → green\"").count();
    // The release before, and the return.
    assert_eq!(back, 2, "one switch back: {log}");
    let rollback = |member| shop.history(member).into_iter().rfind(|line| line["command"] == "rollback");
    let lines = [0, 1].map(|member| rollback(member).unwrap());
    for line in &lines {
        assert_eq!(line["outcome"], "rolled_back", "{line}");
        assert!(line["reason"].as_str().unwrap().contains("requests failed: 100.0%"), "{line}");
        assert!(line["remarks"].to_string().contains("requested by monitor"), "{line}");
    }
    assert!(lines[0]["reason"].as_str().unwrap().starts_with("web: "), "{}", lines[0]);
    nothing_is_left_open(&shop);
}

#[test]
fn a_watch_of_a_good_release_ends_with_a_verdict_on_every_member() {
    let shop = Shop::with_two_releases(QUICK);
    let watch = ["blue-green", "--version", "1.0.0", "--watch", "500ms", "--require-verdict"];
    shop.expect(8, &watch).says("not enough data: 0 requests were answered");
    let both = traffic(&shop);
    let ran = shop.expect(0, &["blue-green", "--version", "1.0.1", "--watch", "3s", "--require-verdict"]);
    assert_eq!(ran.text.matches("No issues detected").count(), 2, "{}", ran.text);
    assert_eq!(shop.served(), ["green 1.0.1"; 2]);
    nothing_is_left_open(&shop);
    // Without automatic rollback, a breach is reported and nothing moves.
    both[1].ask_for("/web/status/500");
    shop.expect(7, &["monitor", "--duration", "30s"]).says("❌ web: ").says("uh-deploy rollback");
    assert_eq!(shop.served()[0], "green 1.0.1");
    shop.expect(3, &["monitor", "--duration", "30s", "--auto-rollback"]).says("Rollback complete");
    both[1].ask_for("/web/");
    assert_eq!(shop.served(), ["blue 1.0.0"; 2]);
}

#[test]
fn a_killed_watch_is_continued_by_the_release_and_by_no_member_alone() {
    let shop = Shop::with_two_releases(QUICK);
    let both = traffic(&shop);
    lose_the_watch(&shop);
    both[0].ask_for("/status/500");
    for command in ["recover", "retire"] {
        shop.expect_of("app", 0, &[command])
            .says("the process that watched the release of blue (v1.0.0) is gone")
            .says("release.toml");
    }
    assert_eq!(saved(&shop, 0).unwrap()["verdict"], Value::Null);
    let ran = shop.expect(3, &["recover"]);
    ran.says("continuing its watch").says("❌ app: ").says("Rollback complete");
    assert_eq!(shop.served()[1], "green 0.0.2");
    both[0].ask_for("/");
    assert_eq!(shop.served(), ["green 0.0.2"; 2]);
    nothing_is_left_open(&shop);
}

#[test]
fn the_timer_continues_a_killed_watch_before_it_stops_anything() {
    let shop = Shop::with_two_releases(&format!("[deploy]\nwarm = \"1ms\"\n{QUICK}"));
    let both = traffic(&shop);
    lose_the_watch(&shop);
    both[1].ask_for("/web/status/500");
    shop.expect(3, &["retire"]).says("Rollback complete");
    assert_eq!(shop.running().len(), 4);
    both[1].ask_for("/web/");
    assert_eq!(shop.served(), ["green 0.0.2"; 2]);
}

#[test]
fn a_member_deployed_alone_ends_the_watch_and_nothing_is_rolled_back() {
    let shop = Shop::with_two_releases(QUICK);
    let _both = traffic(&shop);
    let watching = start(&shop, &WATCHED);
    wait_for_watch(&shop);
    until("the locks are free", || {
        (shop.run_of("web", &["blue-green", "--version", "1.0.1"]).code == Some(0)).then_some(())
    });
    let ran = ended(watching);
    assert_eq!(ran.code, Some(5), "{}", ran.text);
    ran.says("stopped watching: green is active now, not blue");
    assert_eq!(shop.served(), ["blue 1.0.0", "green 1.0.1"]);
    nothing_is_left_open(&shop);
    // The release is no longer the last change of every member, so it can't be returned as a whole.
    let _failing = Traffic::start(shop.proxy.address, 100, "/status/500");
    shop.expect(7, &["monitor", "--duration", "30s", "--auto-rollback"])
        .says("the last changes of the members weren't one release");
    assert_eq!(shop.served(), ["blue 1.0.0", "green 1.0.1"]);
}

#[cfg(feature = "fault-points")]
#[test]
fn a_bad_release_is_rolled_back_wherever_its_watch_is_killed() {
    use std::os::unix::process::ExitStatusExt as _;

    let shop = Shop::with_two_releases(&format!("[deploy]\nsettle = \"20ms\"\n{QUICK}"));
    shop.members[0].configure("uh-deploy.toml", &failing(100, QUICK)).unwrap();
    let _both = traffic(&shop);
    let fault = shop.path("fault");
    // Right after the switch, before a watch was saved; and around its end.
    for point in ["effect.switch.after", "release.watch.breach", "release.watch.closing"] {
        fs::write(&fault, point).unwrap();
        let output = shop.command(&WATCHED).env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{point}: {}", Ran::of(output).text);
        let recovered = Ran::of(shop.command(&["recover"]).output().unwrap());
        // Before the last point, the rollback is complete, and the recovery only closes the watch.
        let expected = if point == "release.watch.closing" { 0 } else { 3 };
        assert_eq!(recovered.code, Some(expected), "{point}: {}", recovered.text);
        let served = shop.served();
        assert_eq!(served, ["green 0.0.2"; 2], "{point}: {}", recovered.text);
        nothing_is_left_open(&shop);
    }
}
