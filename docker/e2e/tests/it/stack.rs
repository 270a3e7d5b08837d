//! The shipped compose files on a real engine, under load from outside the containers through the published port.
//!
//! Each test prints its measurements. Ignored by default: they need a Docker Engine and the images of
//! docker/ci/images.

mod https;
mod upgrade;

use std::time::{Duration, Instant};

use uh_e2e::stack::{Stack, is_healthy};
use uh_testkit::judgement::{Switch, Verdict};
use uh_testkit::load::{Group, Load, Plan, Recording, Reuse};
use uh_testkit::wait::until_within;

/// Time for a container's start and a few probes, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// The duration of the exchanges in flight when uh-proxy is stopped or killed.
const SLOW: Duration = Duration::from_secs(3);

fn group(path: &str, clients: usize, rate: f64, reuse: Reuse) -> Group {
    Group { path: path.to_owned(), clients, rate, reuse }
}

/// Load from keep-alive clients, new connections, and exchanges of half a second.
fn load(stack: &Stack) -> Load {
    let groups = vec![
        group("/", 20, 200.0, Reuse::KeepAlive),
        group("/", 5, 25.0, Reuse::Never),
        group("/slow?ms=500", 8, 16.0, Reuse::KeepAlive),
    ];
    Load::start(Plan { target: stack.address, groups, request_timeout: SOON }).unwrap()
}

/// A command of the deploy tool that moves traffic, from its call to its end.
async fn moves(stack: &Stack, to: &str, arguments: &[&str]) -> Switch {
    let called_at = Instant::now();
    let said = stack.deploy_tool(arguments).await.unwrap();
    let replied_at = Instant::now();
    println!("{}: {:.1} s; {}", arguments.join(" "), (replied_at - called_at).as_secs_f64(), ending(&said));
    assert_eq!(stack.active().await.unwrap().as_str(), to, "{said}");
    Switch { to: to.parse().unwrap(), called_at, replied_at }
}

async fn deploy(stack: &Stack, to: &str, version: &str) -> Switch {
    moves(stack, to, &["blue-green", "--version", version]).await
}

/// The line that reports the result.
fn ending(text: &str) -> &str {
    text.lines().rfind(|line| line.starts_with(['✅', '❌'])).unwrap_or_default()
}

/// A bad version uses the image of a good one; its environment makes it bad.
const IMAGE: &str = "uh-sample-app:{version}";
const GOOD: &str = "NODE_ENV = \"production\"";

fn bad(stack: &Stack, variable: &str, value: &str, more: &[(&str, &str)]) {
    let bad = format!("{GOOD}, {variable} = {value:?}");
    stack.configure(&[&[(IMAGE, "uh-sample-app:1.0.1"), (GOOD, &bad)], more].concat()).unwrap();
}

fn failures(recording: &Recording) -> Vec<String> {
    let failed = recording.samples.iter().filter_map(|sample| sample.outcome.as_ref().err());
    failed.map(ToString::to_string).collect()
}

/// The longest time without a successful request.
fn longest_gap(recording: &Recording) -> Duration {
    let mut answered: Vec<_> =
        recording.samples.iter().filter(|s| s.group == 0 && s.outcome.is_ok()).map(|s| s.done_at).collect();
    answered.sort_unstable();
    answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn the_stack_starts_with_only_the_privileges_it_needs() {
    let stack = Stack::new("up", &["docker-compose.yml", "docker-compose.prod.yml"]).unwrap();
    let started = Instant::now();
    stack.compose(&["up", "--detach", "--no-build"]).await.unwrap();
    assert_eq!(stack.wait_for_an_answer().await.unwrap(), "blue 1.0.0");
    println!("compose up to the first good answer: {:.1} s", started.elapsed().as_secs_f64());
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
        let healthy = async || {
            let status = stack.inspect(service, ".State.Health.Status").await.unwrap();
            (status == "healthy").then_some(())
        };
        until_within(SOON, &format!("the health check of {service} passes"), healthy).await.unwrap();
    }
}

/// 1.0.0 on blue; 1.0.1 on green; a version that never becomes healthy changes nothing; back to 1.0.0; a version that
/// fails requests is detected and rolled back. Only that version's own responses may fail.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn deploys_under_load_fail_no_request_except_those_of_a_bad_version() {
    let stack = Stack::up("deploys").await.unwrap();
    let good = load(&stack);
    let mut switches = vec![deploy(&stack, "green", "1.0.1").await];
    assert_eq!(stack.get("localhost").await.trim(), "green 1.0.1");

    let within = [("[health]", "[health]\nwithin = \"5s\"")];
    bad(&stack, "UNHEALTHY", "1", &within);
    let refused = stack.uh_deploy(&["blue-green", "--version", "1.0.2"]).await.unwrap();
    println!("a version that never becomes healthy: {}", ending(&refused.output));
    assert_eq!(refused.status.code(), Some(1), "{}", refused.output);
    assert!(
        refused.output.contains("nothing has changed for users: green (v1.0.1) serves"),
        "{}",
        refused.output
    );

    // The bad version ran as blue, so 1.0.0 is started again from what was frozen.
    stack.configure(&[]).unwrap();
    switches.push(moves(&stack, "blue", &["rollback", "--of", "1.0.1"]).await);
    switches.push(moves(&stack, "green", &["rollback", "--to", "green", "--again"]).await);
    let recording = good.stop().await.unwrap();
    let verdict = Verdict::of(&recording, &"blue".parse().unwrap(), &switches);
    println!("deploys and rollbacks: {} requests, {} failed", verdict.requests, verdict.failed());
    assert_eq!(verdict.faults(), Vec::<String>::new());

    bad(&stack, "FAIL_PERCENT", "50", &[("[health]", "[monitor]\ninterval = \"1s\"\n[health]")]);
    let load = load(&stack);
    let watched = ["blue-green", "--version", "1.0.3", "--watch", "30s", "--auto-rollback"];
    let ended = stack.uh_deploy(&watched).await.unwrap();
    let replied_at = Instant::now();
    println!("a version that turns bad: {}", ending(&ended.output));
    assert_eq!(ended.status.code(), Some(3), "{}", ended.output);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let recording = load.stop().await.unwrap();
    let failed = failures(&recording);
    println!("a version that fails half: {} requests, {} failed", recording.samples.len(), failed.len());
    assert!(!failed.is_empty() && failed.iter().all(|failure| failure == "status 500"), "{failed:?}");
    let late = recording.samples.iter().filter(|s| s.sent_at > replied_at && s.outcome.is_err()).count();
    assert_eq!(late, 0, "requests failed that were sent after the rollback");
    println!("{}", stack.deploy_tool(&["history"]).await.unwrap());
}

/// `compose up` when everything is already running, and `health-check` in the tool's container.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn another_up_leaves_what_serves_alone() {
    let stack = Stack::up("again").await.unwrap();
    deploy(&stack, "green", "1.0.1").await;
    let container = stack.inspect("green", ".Id").await.unwrap();
    stack.compose(&["up", "--detach", "--no-build"]).await.unwrap();
    stack.wait_for_the_first_deploy().await.unwrap();
    assert_eq!(stack.inspect("green", ".Id").await.unwrap(), container);
    assert_eq!(stack.get("localhost").await.trim(), "green 1.0.1");
    let said = stack.deploy_tool(&["health-check"]).await.unwrap();
    assert!(said.contains("✓ Active: green (v1.0.1)") && said.contains("✓ Health: OK"), "{said}");
    let said = stack.deploy_tool(&["validate"]).await.unwrap();
    println!("{}", said.trim());
    let said = stack.deploy_tool(&["logs", "--tail", "5"]).await.unwrap();
    assert!(said.contains("listening on"), "{said}");
}

/// A killed deploy tool: uh-proxy keeps serving, and the next command cleans up.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_killed_deploy_is_recovered_in_the_next_container() {
    let stack = Stack::up("killed").await.unwrap();
    let load = load(&stack);
    bad(&stack, "UNHEALTHY", "1", &[]);
    let deploy = stack.uh_deploy(&["blue-green", "--version", "1.0.2"]);
    let kill = async {
        let started = async || stack.inspect("green", ".State.Running").await.ok();
        until_within(SOON, "the candidate is started", started).await.unwrap();
        stack.docker(&["kill"], "controller").await.unwrap();
    };
    let (ended, ()) = tokio::join!(deploy, kill);
    assert_eq!(ended.unwrap().status.code(), Some(137));
    let said = stack.deploy_tool(&["recover"]).await.unwrap();
    println!("{}", said.trim());
    assert!(said.contains("Undone: the candidate was removed; blue (v1.0.0) serves"), "{said}");
    assert_eq!(
        stack.inspect("green", ".State.Running").await.unwrap(),
        "false",
        "the candidate is still running"
    );
    let recording = load.stop().await.unwrap();
    println!("a killed deploy: {} requests, {} failed", recording.samples.len(), failures(&recording).len());
    assert_eq!(failures(&recording), Vec::<String>::new());
}

/// Two services on one uh-proxy: each host has its own app, and a switch of one doesn't affect the other.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_second_app_by_host_is_switched_separately() {
    let stack = Stack::new("two-apps", &["docker-compose.yml", "two-apps/docker-compose.yml"]).unwrap();
    stack.compose(&["up", "--detach", "--no-build"]).await.unwrap();
    stack.wait_for_the_first_deploy().await.unwrap();
    let shop = ["--config", "/etc/uh-deploy/shop.toml", "blue-green", "--version"];
    stack.deploy_tool(&[&shop[..], &["1.0.1"]].concat()).await.unwrap();
    let answers = async |app: &str, shop: &str| {
        let as_wanted = async || {
            let found = [stack.get("app.example.com").await, stack.get("shop.example.com").await];
            found.iter().map(|answer| answer.trim()).eq([app, shop]).then_some(())
        };
        until_within(SOON, &format!("{app} and {shop} answer"), as_wanted).await.unwrap();
    };
    answers("blue 1.0.0", "blue 1.0.1").await;
    stack.deploy_tool(&[&shop[..], &["1.0.0"]].concat()).await.unwrap();
    answers("blue 1.0.0", "green 1.0.0").await;
    // Each has its own previous version.
    stack.deploy_tool(&["--config", "/etc/uh-deploy/shop.toml", "rollback"]).await.unwrap();
    answers("blue 1.0.0", "blue 1.0.1").await;
}

/// A plain `http.createServer` without signal handling: the shim lets it finish.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_node_app_behind_the_shim_is_stopped_without_a_cut_response() {
    let stack = Stack::up("node").await.unwrap();
    stack.configure(&[(IMAGE, "uh-node-app:1.0.0")]).unwrap();
    deploy(&stack, "green", "1.0.0").await;
    let groups = vec![group("/?ms=8000", 20, 20.0, Reuse::KeepAlive)];
    let load = Load::start(Plan { target: stack.address, groups, request_timeout: SOON }).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Traffic is switched, and the app is stopped immediately: it must finish its requests in flight.
    stack.must(&["switch", "blue"]).await.unwrap();
    stack.docker(&["stop"], "green").await.unwrap();
    let log = stack.docker(&["logs"], "green").await.unwrap();
    assert_eq!(stack.inspect("green", ".State.ExitCode").await.unwrap(), "0", "{log}");
    let recording = load.stop().await.unwrap();
    let failed = failures(&recording);
    let drained = log.lines().find(|line| line.contains("Draining")).unwrap_or_default();
    println!("node app stopped: {} requests, {} failed; {drained}", recording.samples.len(), failed.len());
    assert!(failed.is_empty(), "{failed:?}\n{log}");
    assert!(!drained.contains("Draining 0 "), "nothing was in flight: {log}");
}

/// Clients wait in the keeper's queue meanwhile. The state is kept.
#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_restarted_uh_proxy_serves_the_backend_that_was_active() {
    let stack = Stack::up("restart").await.unwrap();
    deploy(&stack, "green", "1.0.1").await;
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
        "restart of uh-proxy: {took:?}; {} of {} requests failed; longest time without an answer {:?}",
        failed.len(),
        recording.samples.len(),
        longest_gap(&recording)
    );
    let answers = recording.samples.iter().filter_map(|sample| sample.outcome.as_ref().ok());
    assert!(
        answers.into_iter().all(|backend| backend.as_str() == "green"),
        "blue answered after the restart"
    );
    assert_eq!(failed, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_stopped_uh_proxy_completes_requests_in_flight_and_exits_cleanly() {
    let stack = Stack::up("stop").await.unwrap();
    let path = format!("/slow?ms={}", SLOW.as_millis());
    let groups = vec![group(&path, 20, 20.0, Reuse::KeepAlive)];
    let load = Load::start(Plan { target: stack.address, groups, request_timeout: SOON }).unwrap();
    let many_in_flight = async || {
        let status = stack.status().await.unwrap();
        let count: u64 = status.services[0].backends.iter().map(|backend| backend.requests_in_flight).sum();
        (count >= 15).then_some(count)
    };
    let in_flight = until_within(SOON, "many requests are in flight", many_in_flight).await.unwrap();
    let started = Instant::now();
    stack.docker(&["stop", "--time", "40"], "proxy").await.unwrap();
    let took = started.elapsed();
    assert_eq!(stack.inspect("proxy", ".State.ExitCode").await.unwrap(), "0");
    // Clients wait in the keeper's queue until somebody serves them.
    stack.docker(&["start"], "proxy").await.unwrap();
    let recording = load.stop().await.unwrap();
    let before: Vec<_> = recording.samples.iter().filter(|sample| sample.sent_at < started).collect();
    let cut = before.iter().filter(|sample| sample.outcome.is_err()).count();
    println!("docker stop with {in_flight} in flight: {took:?}, exit code 0, {cut} of {} cut", before.len());
    assert_eq!(cut, 0);
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[tokio::test]
#[ignore = "needs a Docker Engine"]
async fn a_killed_active_app_is_detected_and_fixed_by_a_rollback() {
    let stack = Stack::up("kill").await.unwrap();
    deploy(&stack, "green", "1.0.1").await;
    let load = load(&stack);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let killed_at = Instant::now();
    stack.docker(&["kill"], "green").await.unwrap();
    while is_healthy(&stack.status().await.unwrap(), "green") != Some(false) {
        assert!(killed_at.elapsed() < SOON, "the status doesn't show that green is gone");
    }
    println!("killed app: found unhealthy after {:?}", killed_at.elapsed());
    println!("{}", stack.must(&["status"]).await.unwrap().trim());
    let rolled_back = moves(&stack, "blue", &["rollback"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let recording = load.stop().await.unwrap();
    let mut failed = failures(&recording);
    let count = failed.len();
    failed.sort_unstable();
    failed.dedup();
    println!("clients saw {count} of {} requests fail: {failed:?}", recording.samples.len());
    // Only error responses: no client connection is broken.
    assert!(failed.iter().all(|failure| failure == "status 502" || failure == "status 504"), "{failed:?}");
    let after = recording.samples.iter().filter(|s| s.sent_at > rolled_back.replied_at && s.outcome.is_err());
    assert_eq!(after.count(), 0, "requests failed that were sent after the switch");
}
