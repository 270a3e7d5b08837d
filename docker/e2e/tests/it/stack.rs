//! The shipped compose files on a real engine, under load from outside the containers through the published port.
//!
//! Each test prints its figures. Ignored unless asked for: they need a Docker Engine and the images of docker/ci/images.

use std::time::{Duration, Instant};

use uh_benches::judgement::{Switch, Verdict};
use uh_benches::load::{Group, Load, Plan, Recording, Reuse};
use uh_e2e::repository;
use uh_e2e::stack::{Stack, is_healthy};

/// A container's start and a few probes, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Exchanges of this length are in flight when something happens to the front door.
const SLOW: Duration = Duration::from_secs(3);

fn group(path: &str, clients: usize, rate: f64, reuse: Reuse) -> Group {
    Group { path: path.to_owned(), clients, rate, reuse }
}

/// Kept-alive clients, new connections, and exchanges of half a second.
fn load(stack: &Stack) -> Load {
    let groups = vec![
        group("/", 20, 200.0, Reuse::KeepAlive),
        group("/", 5, 25.0, Reuse::Never),
        group("/slow?ms=500", 8, 16.0, Reuse::KeepAlive),
    ];
    Load::start(Plan { target: stack.address, groups, request_timeout: SOON }).unwrap()
}

async fn switch(stack: &Stack, to: &str) -> Switch {
    let called_at = Instant::now();
    stack.must(&["switch", to, "--wait-drain", "30s"]).await.unwrap();
    Switch { to: to.parse().unwrap(), called_at, replied_at: Instant::now() }
}

fn failures(recording: &Recording) -> Vec<String> {
    let failed = recording.samples.iter().filter_map(|sample| sample.outcome.as_ref().err());
    failed.map(ToString::to_string).collect()
}

/// The longest time in which no request was answered well.
fn longest_gap(recording: &Recording) -> Duration {
    let mut answered: Vec<_> =
        recording.samples.iter().filter(|s| s.group == 0 && s.outcome.is_ok()).map(|s| s.done_at).collect();
    answered.sort_unstable();
    answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn the_stack_comes_up_and_nothing_in_it_has_more_rights_than_it_needs() {
    let started = Instant::now();
    let stack = Stack::up("up").await.unwrap();
    println!("compose up to healthy: {:.1} s", started.elapsed().as_secs_f64());
    for service in ["proxy", "blue"] {
        for (field, expected) in [
            (".HostConfig.ReadonlyRootfs", "true"),
            (".HostConfig.CapDrop", "[ALL]"),
            (".HostConfig.SecurityOpt", "[no-new-privileges:true]"),
            (".HostConfig.RestartPolicy.Name", "unless-stopped"),
            (".Config.StopSignal", "SIGTERM"),
            (".Config.StopTimeout", "40"),
            (".State.Running", "true"),
        ] {
            assert_eq!(stack.inspect(service, field).await.unwrap(), expected, "{service} {field}");
        }
        let user = stack.inspect(service, ".Config.User").await.unwrap();
        assert!(!matches!(user.as_str(), "" | "0" | "root"), "{service} runs as {user:?}");
        let memory: u64 = stack.inspect(service, ".HostConfig.Memory").await.unwrap().parse().unwrap();
        assert!(memory > 0, "{service} has no memory limit");
        let deadline = Instant::now() + SOON;
        while stack.inspect(service, ".State.Health.Status").await.unwrap() != "healthy" {
            assert!(Instant::now() < deadline, "the health check of {service} never passes");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// 1.0.0 on blue; 1.0.1 on green; a version that never gets healthy is refused; one that fails requests is rolled
/// back. Only that one's own answers may be failures.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn versions_come_and_go_under_load_and_only_a_bad_one_fails_requests() {
    let mut stack = Stack::up("deploys").await.unwrap();
    let good = load(&stack);

    stack.set("GREEN_VERSION", "1.0.1");
    stack.compose(&["up", "--detach", "--no-build", "--no-deps", "green"]).await.unwrap();
    stack.wait_until_healthy("green").await.unwrap();
    let mut switches = vec![switch(&stack, "green").await];

    stack.set("BLUE_VERSION", "1.0.1");
    stack.override_environment("blue", "UNHEALTHY", "1").unwrap();
    stack.compose(&["up", "--detach", "--no-build", "--no-deps", "blue"]).await.unwrap();
    let deadline = Instant::now() + SOON;
    while is_healthy(&stack.status().await.unwrap(), "blue") != Some(false) {
        assert!(Instant::now() < deadline, "blue never gets unhealthy");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = stack.uh_proxy(&["switch", "blue"]).await.unwrap();
    println!("a version that never gets healthy: {}", refused.output.trim());
    assert_eq!(refused.status.code(), Some(3), "{}", refused.output);

    stack.forget_overrides();
    stack.set("BLUE_VERSION", "1.0.0");
    stack.compose(&["up", "--detach", "--no-build", "--no-deps", "blue"]).await.unwrap();
    stack.wait_until_healthy("blue").await.unwrap();
    switches.push(switch(&stack, "blue").await);
    let recording = good.stop().await.unwrap();
    let verdict = Verdict::of(&recording, &"blue".parse().unwrap(), &switches);
    println!("deploys and roll back: {} requests, {} failed", verdict.requests, verdict.failed());
    assert_eq!(verdict.faults(), Vec::<String>::new());

    stack.override_environment("green", "FAIL_PERCENT", "50").unwrap();
    stack.compose(&["up", "--detach", "--no-build", "--no-deps", "green"]).await.unwrap();
    stack.wait_until_healthy("green").await.unwrap();
    let bad = load(&stack);
    switch(&stack, "green").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let called_at = Instant::now();
    stack.must(&["switch", "blue", "--wait-drain", "30s"]).await.unwrap();
    let replied_at = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let recording = bad.stop().await.unwrap();
    let failed = failures(&recording);
    println!("a version that fails half: {} requests, {} failed", recording.samples.len(), failed.len());
    assert!(!failed.is_empty() && failed.iter().all(|failure| failure == "status 500"), "{failed:?}");
    let late = recording.samples.iter().filter(|s| s.sent_at > replied_at && s.outcome.is_err()).count();
    assert_eq!(late, 0, "requests failed that were sent after the roll back");
    println!("roll back, with docker exec and drain: {:?}", replied_at - called_at);
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn the_deploy_tool_reaches_the_front_door_from_a_container_of_its_own() {
    let stack = Stack::up("controller").await.unwrap();
    let said = stack.compose(&["run", "--rm", "-T", "controller", "health-check"]).await.unwrap();
    println!("{}", said.trim());
    assert!(said.contains("✓ Active: blue") && said.contains("✓ Health: OK"), "{said}");
}

/// Two services on one front door: each host has its own app, and a switch of one leaves the other alone.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_second_app_by_host_is_switched_on_its_own() {
    let files = ["docker-compose.yml", "two-apps/docker-compose.yml"];
    let files = files.map(|file| repository::path("docker").join(file)).to_vec();
    let mut stack = Stack::new("two-apps", files).unwrap();
    stack.set("SHOP_BLUE_VERSION", "1.0.1");
    stack.set("SHOP_GREEN_VERSION", "1.0.1");
    let services = ["proxy", "blue", "shop-blue", "shop-green"];
    stack.compose(&[&["up", "--detach", "--no-build"], services.as_slice()].concat()).await.unwrap();
    let answers = async |app: &str, shop: &str| {
        let deadline = Instant::now() + SOON;
        loop {
            let found = [stack.get("app.example.com").await, stack.get("shop.example.com").await];
            if found.iter().map(|answer| answer.trim()).eq([app, shop]) {
                return;
            }
            assert!(Instant::now() < deadline, "{found:?}, not {app} and {shop}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    answers("blue 1.0.0", "blue 1.0.1").await;
    let deadline = Instant::now() + SOON;
    while !stack.uh_proxy(&["switch", "green", "--service", "shop"]).await.unwrap().status.success() {
        assert!(Instant::now() < deadline, "shop's green never gets healthy");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    answers("blue 1.0.0", "green 1.0.1").await;
}

/// `http.createServer` and no word on signals: the shim lets it finish.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_node_app_behind_the_shim_is_stopped_without_a_cut_answer() {
    let mut stack = Stack::up("node").await.unwrap();
    stack.set("UH_APP_IMAGE", "uh-node-app");
    stack.compose(&["up", "--detach", "--no-build", "--no-deps", "green"]).await.unwrap();
    stack.wait_until_healthy("green").await.unwrap();
    switch(&stack, "green").await;
    let groups = vec![group("/?ms=8000", 20, 20.0, Reuse::KeepAlive)];
    let load = Load::start(Plan { target: stack.address, groups, request_timeout: SOON }).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Traffic is moved, and the app is stopped at once: what it still has in flight is its own to finish.
    stack.must(&["switch", "blue"]).await.unwrap();
    stack.compose(&["stop", "green"]).await.unwrap();
    let log = stack.compose(&["logs", "--no-color", "green"]).await.unwrap();
    assert_eq!(stack.inspect("green", ".State.ExitCode").await.unwrap(), "0", "{log}");
    let recording = load.stop().await.unwrap();
    let failed = failures(&recording);
    let drained = log.lines().find(|line| line.contains("Draining")).unwrap_or_default();
    println!("node app stopped: {} requests, {} failed; {drained}", recording.samples.len(), failed.len());
    assert!(failed.is_empty(), "{failed:?}\n{log}");
    assert!(!drained.contains("Draining 0 "), "nothing was in flight: {log}");
}

/// The one thing that costs requests: the front door is one process. What it serves is kept.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_restarted_front_door_serves_the_backend_that_was_active() {
    let stack = Stack::up("restart").await.unwrap();
    stack.compose(&["up", "--detach", "--no-build", "green"]).await.unwrap();
    stack.wait_until_healthy("green").await.unwrap();
    switch(&stack, "green").await;
    let load = load(&stack);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    stack.docker(&["restart", "--time", "40"], "proxy").await.unwrap();
    let took = started.elapsed();
    stack.wait_until_healthy("green").await.unwrap();
    assert_eq!(stack.active().await.unwrap().as_str(), "green");
    let recording = load.stop().await.unwrap();
    let failed = failures(&recording);
    println!(
        "restart of the front door: {took:?}; {} of {} requests failed; longest time without an answer {:?}",
        failed.len(),
        recording.samples.len(),
        longest_gap(&recording)
    );
    let answers = recording.samples.iter().filter_map(|sample| sample.outcome.as_ref().ok());
    assert!(
        answers.into_iter().all(|backend| backend.as_str() == "green"),
        "blue answered after the restart"
    );
    // New connections are refused meanwhile; nothing that was accepted is broken off within its answer.
    assert!(!failed.iter().any(|failure| failure.contains("within the")), "{failed:?}");
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_stopped_front_door_answers_what_is_in_flight_and_ends_cleanly() {
    let stack = Stack::up("stop").await.unwrap();
    let path = format!("/slow?ms={}", SLOW.as_millis());
    let groups = vec![group(&path, 20, 20.0, Reuse::KeepAlive)];
    let load = Load::start(Plan { target: stack.address, groups, request_timeout: SOON }).unwrap();
    let deadline = Instant::now() + SOON;
    let in_flight = loop {
        let status = stack.status().await.unwrap();
        let count: u64 = status.services[0].backends.iter().map(|backend| backend.requests_in_flight).sum();
        if count >= 15 {
            break count;
        }
        assert!(Instant::now() < deadline, "nothing is in flight");
    };
    let started = Instant::now();
    stack.docker(&["stop", "--time", "40"], "proxy").await.unwrap();
    let took = started.elapsed();
    assert_eq!(stack.inspect("proxy", ".State.ExitCode").await.unwrap(), "0");
    let recording = load.stop().await.unwrap();
    let before: Vec<_> = recording.samples.iter().filter(|sample| sample.sent_at < started).collect();
    let cut = before.iter().filter(|sample| sample.outcome.is_err()).count();
    println!("docker stop with {in_flight} in flight: {took:?}, exit code 0, {cut} of {} cut", before.len());
    assert_eq!(cut, 0);
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_killed_active_app_is_seen_and_one_switch_mends_it() {
    let stack = Stack::up("kill").await.unwrap();
    stack.compose(&["up", "--detach", "--no-build", "green"]).await.unwrap();
    stack.wait_until_healthy("green").await.unwrap();
    let load = load(&stack);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let killed_at = Instant::now();
    stack.docker(&["kill"], "blue").await.unwrap();
    while is_healthy(&stack.status().await.unwrap(), "blue") != Some(false) {
        assert!(killed_at.elapsed() < SOON, "nobody is told that blue is gone");
    }
    println!("killed app: found unhealthy after {:?}", killed_at.elapsed());
    println!("{}", stack.must(&["status"]).await.unwrap().trim());
    let mended = switch(&stack, "green").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let recording = load.stop().await.unwrap();
    let mut failed = failures(&recording);
    let count = failed.len();
    failed.sort_unstable();
    failed.dedup();
    println!("clients saw {count} of {} requests fail: {failed:?}", recording.samples.len());
    // Nothing but an answer that says so: no client connection is broken off.
    assert!(failed.iter().all(|failure| failure == "status 502" || failure == "status 504"), "{failed:?}");
    let after = recording.samples.iter().filter(|s| s.sent_at > mended.replied_at && s.outcome.is_err());
    assert_eq!(after.count(), 0, "requests failed that were sent after the switch");
}
