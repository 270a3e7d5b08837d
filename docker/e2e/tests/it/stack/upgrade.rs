//! Upgrades of the front door by `uh-deploy upgrade-proxy`, under load by both ways to a published port.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use uh_e2e::repository;
use uh_e2e::stack::Stack;
use uh_testkit::load::{Load, Plan, Recording, Reuse};
use uh_testkit::process::{Finished, run};
use uh_testkit::wait::until_within;

use super::{SOON, failures, group};

/// The image under a second tag, by docker/ci/images.
const NEXT: &str = "e2e-next";

/// A stack whose port is published at all addresses, so that it can be reached in both ways.
fn published(name: &str) -> Stack {
    let mut stack = Stack::new(name, &["docker-compose.yml", "docker-compose.prod.yml"]).unwrap();
    let port = stack.address.port().to_string();
    stack.set("UH_HTTP", &port).unwrap();
    stack
}

async fn up(name: &str) -> Stack {
    start(published(name)).await
}

async fn start(stack: Stack) -> Stack {
    stack.compose(&["up", "--detach", "--no-build"]).await.unwrap();
    stack.wait_for_the_first_deploy().await.unwrap();
    stack
}

/// Load through the engine's own proxy and by the kernel: keep-alive clients, new connections, exchanges of 0.7 s.
async fn both_loads(stack: &Stack) -> [Load; 2] {
    let start = |target| {
        let groups = vec![
            group("/", 10, 100.0, Reuse::KeepAlive),
            group("/", 8, 80.0, Reuse::Never),
            group("/slow?ms=700", 4, 5.0, Reuse::KeepAlive),
        ];
        Load::start(Plan { target, groups, request_timeout: SOON }).unwrap()
    };
    [start(stack.address), start(stack.forwarded().await.unwrap())]
}

/// Ends the loads, and returns every failure.
async fn ended(loads: [Load; 2], what: &str) -> Vec<String> {
    let mut failed = Vec::new();
    for (load, way) in loads.into_iter().zip(["loopback", "forwarded"]) {
        let recording = load.stop().await.unwrap();
        println!(
            "{what}, {way}: {} requests, {} failed, a new client waited {:?} at most",
            recording.samples.len(),
            failures(&recording).len(),
            longest_wait(&recording)
        );
        failed.extend(failures(&recording));
    }
    failed
}

fn longest_wait(recording: &Recording) -> Duration {
    let new = recording.samples.iter().filter(|sample| sample.group == 1);
    new.map(|sample| sample.done_at - sample.sent_at).max().unwrap_or_default()
}

/// A download of some seconds, whose bytes are counted.
fn download(stack: &Stack, seconds: u32) -> tokio::task::JoinHandle<Finished> {
    let bytes = seconds * 100_000;
    let mut command = Command::new("curl");
    command.args(["--silent", "--fail", "--output", "/dev/null", "--write-out", "%{size_download}"]);
    command.arg(format!("http://{}/bytes/{bytes}?rate=100000", stack.address));
    tokio::spawn(async move { run(command, SOON).await.unwrap() })
}

/// An image that passes `check` and then does something else.
async fn image(stack: &Stack, tag: &str, run_instead: &str) {
    let context: PathBuf = stack.dir().join(tag);
    std::fs::create_dir(&context).unwrap();
    let script = format!("#!/bin/sh\nif [ \"$1\" = check ]; then exit 0; fi\n{run_instead}\n");
    std::fs::write(context.join("front-door"), script).unwrap();
    let dockerfile = "FROM debian:bookworm-slim\nCOPY --from=uh-proxy:e2e /usr/bin/uh-proxy /usr/bin/\n\
                      COPY front-door /\nUSER 10001:10001\nENTRYPOINT [\"sh\", \"/front-door\"]\n\
                      LABEL org.opencontainers.image.title=uh-proxy\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let mut command = Command::new("docker");
    command.args(["build", "--quiet", "--tag", &format!("uh-proxy:{tag}")]).arg(context);
    let built = run(command, 2 * SOON).await.unwrap();
    assert!(built.status.success(), "{}", built.output);
}

async fn leads_in(stack: &Stack) -> String {
    stack.status().await.unwrap().proxy.host
}

/// Twenty upgrades by hand: `UH_UPGRADES=20`.
fn upgrades() -> u32 {
    std::env::var("UH_UPGRADES").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn an_upgrade_loses_no_request_and_a_later_up_changes_nothing() {
    let mut stack = up("upgrade").await;
    let keeper = stack.inspect("keeper", ".Id").await.unwrap();
    let refused = stack.host_deploy(&["upgrade-proxy", "--to", NEXT]).await.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", refused.output);
    assert!(refused.output.contains("set UH_VERSION=e2e-next in "), "{}", refused.output);

    let loads = both_loads(&stack).await;
    for upgrade in 0..upgrades() {
        let version = if upgrade % 2 == 0 { NEXT } else { "e2e" };
        let begun_before = download(&stack, 6);
        let old = stack.running("proxy").await.unwrap();
        stack.set("UH_VERSION", version).unwrap();
        let started = Instant::now();
        let said = stack.host_deploy(&["upgrade-proxy", "--to", version]).await.unwrap();
        assert_eq!(said.status.code(), Some(0), "{}", said.output);
        let took = started.elapsed();
        let new = stack.running("proxy").await.unwrap();
        assert!(new.len() == 1 && new != old, "{old:?} {new:?}");
        assert!(new[0].starts_with(&leads_in(&stack).await));
        let downloaded = begun_before.await.unwrap();
        assert_eq!(downloaded.output.trim(), "600000", "{}", downloaded.status);
        println!("upgrade {}: {:.1} s", upgrade + 1, took.as_secs_f64());
    }
    assert_eq!(ended(loads, "upgrades").await, Vec::<String>::new());
    let same = stack.host_deploy(&["upgrade-proxy"]).await.unwrap();
    assert!(same.status.success() && same.output.contains("runs already"), "{}", same.output);

    let proxy = stack.running("proxy").await.unwrap();
    stack.compose(&["up", "--detach", "--no-build", "keeper", "proxy"]).await.unwrap();
    assert_eq!(stack.running("proxy").await.unwrap(), proxy, "`up` replaced the front door");
    assert_eq!(stack.inspect("keeper", ".Id").await.unwrap(), keeper);
    assert_eq!(stack.get("localhost").await.trim(), "blue 1.0.0");
}

/// Each bad version: its tag, what it does instead of running, the reason that is given, and whether it led for a moment.
const BAD: [(&str, &str, &str, bool); 3] = [
    ("e2e-ends", "exit 1", "it has ended", false),
    ("e2e-hangs", "trap 'exit 0' TERM; sleep 1000 & wait", "it doesn't lead after 8s", false),
    (
        "e2e-dies",
        "trap 'exit 1' TERM; uh-proxy \"$@\" & until uh-proxy status --json | grep -q \"$(hostname)\"; do sleep 0.1; done; kill -9 $!; exit 1",
        "ended",
        true,
    ),
];

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn after_a_bad_version_the_old_one_leads_on() {
    let mut stack = published("bad-upgrade");
    let config = stack.dir().join("uh-proxy.toml");
    std::fs::copy(repository::path("docker/uh-proxy.toml"), &config).unwrap();
    let mount = format!("      - {}:/etc/uh-proxy/uh-proxy.toml:ro\n", config.display());
    stack.overlay(&format!("services:\n  proxy:\n    volumes:\n{mount}")).unwrap();
    let mut stack = start(stack).await;
    let old = stack.running("proxy").await.unwrap();
    for (tag, run_instead, why, led) in BAD {
        image(&stack, tag, run_instead).await;
        stack.set("UH_VERSION", tag).unwrap();
        let loads = both_loads(&stack).await;
        let said = stack.host_deploy(&["upgrade-proxy", "--timeout", "8s"]).await.unwrap();
        println!("{}", said.output.trim().lines().last().unwrap_or_default());
        assert_eq!(said.status.code(), Some(1), "{tag}: {}", said.output);
        assert!(said.output.contains(why), "{tag}: {}", said.output);
        assert_eq!(stack.running("proxy").await.unwrap(), old, "{tag}");
        assert!(old[0].starts_with(&leads_in(&stack).await), "{tag}");
        let failed = ended(loads, tag).await;
        // What a process held that was killed is lost, but nobody was refused.
        assert!(led || failed.is_empty(), "{tag}: {failed:?}");
        assert!(!failed.iter().any(|failure| failure == "could not connect"), "{tag}: {failed:?}");
    }

    // A configuration that the new version refuses isn't tried.
    stack.set("UH_VERSION", NEXT).unwrap();
    let shipped = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, shipped.replace("\"0.0.0.0:80\"", "\"0.0.0.0:81\"")).unwrap();
    let said = stack.host_deploy(&["upgrade-proxy"]).await.unwrap();
    assert_eq!(said.status.code(), Some(1), "{}", said.output);
    assert!(said.output.contains("uh-keeper doesn't hold 0.0.0.0:81"), "{}", said.output);
    assert_eq!(stack.running("proxy").await.unwrap(), old);
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn an_old_version_that_does_not_hand_over_is_replaced_one_after_the_other() {
    let mut stack = up("old-version").await;
    // Older versions don't wait for a successor.
    std::fs::remove_file(stack.volume("admin").await.unwrap().join("admin.sock.successor")).unwrap();
    let loads = both_loads(&stack).await;
    stack.set("UH_VERSION", NEXT).unwrap();
    let said = stack.host_deploy(&["upgrade-proxy"]).await.unwrap();
    assert_eq!(said.status.code(), Some(0), "{}", said.output);
    assert!(said.output.contains("doesn't hand over"), "{}", said.output);
    assert_eq!(stack.running("proxy").await.unwrap().len(), 1);
    assert_eq!(ended(loads, "one after the other").await, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_killed_front_door_or_keeper_comes_back_by_itself() {
    let stack = up("killed-door").await;
    let door = leads_in(&stack).await;
    let uptime = async || stack.status().await.ok().map(|status| status.proxy.uptime_s);
    let until_older = async || (uptime().await? >= 2).then_some(());
    until_within(SOON, "it runs for two seconds", until_older).await.unwrap();
    let loads = both_loads(&stack).await;
    // By its process: the engine doesn't restart what it has killed itself.
    let mut kill = Command::new("kill");
    kill.args(["-KILL", &stack.inspect("proxy", ".State.Pid").await.unwrap()]);
    assert!(run(kill, SOON).await.unwrap().status.success());
    let back = async || Some(stack.status().await.ok()?.proxy.host == door).filter(|same| *same);
    until_within(SOON, "it is started again", back).await.unwrap();
    let failed = ended(loads, "killed front door").await;
    assert!(!failed.iter().any(|failure| failure == "could not connect"), "{failed:?}");

    stack.docker(&["restart", "--time", "5"], "keeper").await.unwrap();
    let gap = Instant::now();
    assert_eq!(stack.wait_for_an_answer().await.unwrap(), "blue 1.0.0");
    println!("after a restart of the keeper, it serves within {:?}", gap.elapsed());
}
