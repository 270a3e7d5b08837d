//! Reloads of a running uh-proxy.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use uh_protocol::Code;
use uh_protocol::client::ClientError;
use uh_protocol::request::{BackendRequest, Reloaded};

use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, app, backend, cli, pair, until};
use crate::invariants::busy_clients;
use crate::wire::{Wire, get};

/// A second service, for another host, of which blue is the only backend.
fn with_web(config: &str, blue: &SampleApp) -> String {
    format!(
        "{config}\n[services.web]\nhosts = [\"web.test\"]\nactive = \"only\"\n\
         [services.web.backends.only]\nendpoints = [\"{}\"]\n",
        blue.address
    )
}

async fn reload(home: &Home, proxy: &Proxy, config: &str) -> Reloaded {
    home.write_config(config);
    proxy.client.reload().await.unwrap()
}

/// How uh-proxy rejects a file.
async fn declined(home: &Home, proxy: &Proxy, config: &str) -> uh_protocol::Problem {
    home.write_config(config);
    match proxy.client.reload().await {
        Err(ClientError::Problem(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

async fn named_pair(service: &str) -> (Home, Proxy, SampleApp, SampleApp) {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address).service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, blue, green)
}

#[tokio::test]
async fn services_come_and_go_and_no_connection_is_touched() {
    let (home, proxy, blue, _green) = named_pair("hosts = [\"app.test\"]").await;
    let mut kept = Wire::connect(proxy.address).await;
    let web = "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";
    kept.send(web).await;
    assert_eq!(kept.response().await.status, 404);
    let mut slow = Wire::connect(proxy.address).await;
    home.write_config(&with_web(&home.config(), &blue));
    let (exit, stdout, _) = cli(&home.socket(), &["reload"]).await;
    assert_eq!((exit, stdout.as_str()), (0, "reloaded: services.web (generation 1)\n"));
    kept.send(web).await;
    assert_eq!(kept.response().await.header("x-backend"), Some("blue"));
    slow.send("GET /slow?ms=500 HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    until("it is in flight", async || {
        let services = proxy.status().await.services;
        (services[1].backends[0].requests_in_flight == 1).then_some(())
    })
    .await;
    let done = reload(&home, &proxy, &home.config()).await;
    assert_eq!((done.generation, done.changed), (2, vec!["services.web".to_owned()]));
    kept.send(web).await;
    assert_eq!(kept.response().await.status, 404);
    assert_eq!(slow.response().await.status, 200, "an exchange of a service that is gone was not finished");
    assert_eq!(kept.get("/").await.status, 200);
    let done = reload(&home, &proxy, &home.config()).await;
    assert_eq!((done.generation, done.changed.len()), (2, 0), "nothing was different");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_the_reason_is_reported() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let before = proxy.status().await;
    let bad = home.config().replace("active = \"blue\"", "active = \"red\"\ncolour = 1");
    home.write_config(&bad);
    let (exit, _, stderr) = cli(&home.socket(), &["reload"]).await;
    assert_eq!(exit, 3, "{stderr}");
    for part in ["services.app.active", "services.app.colour", "nothing was changed"] {
        assert!(stderr.contains(part), "{part:?} is missing in {stderr:?}");
    }
    proxy.signal(Signal::HUP);
    home.until_said("reason=").await;
    let unwritable = home.config().replace("access.log", "no/such/directory/access.log");
    let problem = declined(&home, &proxy, &unwritable).await;
    assert_eq!((problem.code, problem.status), (Code::InvalidConfiguration, 422));
    assert!(problem.detail.contains("no/such/directory"), "{problem}");
    fs::remove_file(home.path("uh-proxy.toml")).unwrap();
    assert!(matches!(proxy.client.reload().await, Err(ClientError::Problem(_))));
    let after = proxy.status().await;
    assert_eq!((before.generation, before.services.len()), (after.generation, after.services.len()));
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
    assert!(proxy.is_running());
}

#[tokio::test]
async fn what_only_a_restart_can_change_is_named_and_left() {
    let (home, proxy, _blue, _green) = pair().await;
    let other = home.config().replace("threads = 2", "threads = 3").replace("127.0.0.1:0", "127.0.0.1:1");
    let other = other.replace("[services.app]", "[server.limits]\nidle_timeout = \"7s\"\n[services.app]");
    home.write_config(&other);
    let (exit, stdout, _) = cli(&home.socket(), &["reload"]).await;
    assert_eq!(exit, 0);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], "reloaded: server.limits (generation 0)");
    assert_eq!(lines[1], "takes effect after a restart: server.listen, server.metrics, server.threads");
    // Still listed, as long as the file differs.
    let done = proxy.client.reload().await.unwrap();
    assert_eq!((done.changed.len(), done.needs_restart.len()), (0, 3));
    home.until_said("server.threads").await;
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
}

#[tokio::test]
async fn what_was_decided_at_run_time_wins_over_the_file() {
    let (home, proxy, _blue, green) = pair().await;
    proxy.switch("green").await;
    let order = BackendRequest {
        endpoints: vec![green.address.to_string()],
        version: Some("9".to_owned()),
        expect_generation: None,
        force: false,
    };
    proxy.client.set_backend(&app(), &backend("blue"), &order).await.unwrap();
    until("blue is healthy", async || (proxy.backend("blue").await.healthy == Some(true)).then_some(()))
        .await;
    let generation = proxy.status().await.generation;
    let changed = home.config().replace("active = \"blue\"", "active = \"blue\"\ndrain_timeout = \"7s\"");
    let done = reload(&home, &proxy, &changed).await;
    assert_eq!(
        (done.generation, done.changed),
        (generation + 1, vec!["services.app.drain_timeout".to_owned()])
    );
    let service = proxy.service().await;
    assert_eq!(service.active.as_str(), "green");
    let blue = proxy.backend("blue").await;
    assert_eq!(blue.version.as_deref(), Some("9"));
    assert_eq!(blue.endpoints[0].address, green.address.to_string());
    // Its health checks are unchanged, so it is still healthy, not healthy again.
    assert_eq!(blue.healthy, Some(true));
    let without_green = changed.split("[services.app.backends.green]").next().unwrap().to_owned()
        + "[services.app.health]\ninterval = \"50ms\"\nhealthy_after = 1\n";
    let problem = declined(&home, &proxy, &without_green).await;
    assert_eq!((problem.code, problem.status), (Code::BackendActive, 409));
    assert!(problem.detail.contains("green is active for app"), "{problem}");
    assert_eq!(proxy.switch("blue").await.generation, generation + 2);
    let done = reload(&home, &proxy, &without_green).await;
    assert_eq!(done.generation, generation + 3);
    assert_eq!(proxy.service().await.backends.len(), 1);
    assert_eq!(proxy.service().await.previous, None);
    let text = fs::read_to_string(home.state_file()).unwrap();
    assert!(text.contains(&format!("\"generation\": {}", generation + 3)), "{text}");
}

#[tokio::test]
async fn a_reload_is_for_the_next_request_and_the_one_in_flight_keeps_its_settings() {
    // Before each answer, it waits for the requested time.
    let slow = Scripted::start(|head: String, mut stream| async move {
        if head.starts_with("GET /slow ") {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        (stream, Then::KeepAlive)
    })
    .await;
    let home = Home::new(slow.address, slow.address);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut kept = Wire::connect(proxy.address).await;
    let mut waiting = Wire::connect(proxy.address).await;
    waiting.send(get("/slow")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let hasty = home.config() + "[services.app.timeouts]\nread = \"100ms\"\n";
    let hasty = hasty.replace("[services.app]", "[server.limits]\nheader_bytes = \"1KiB\"\n[services.app]");
    reload(&home, &proxy, &hasty).await;
    assert_eq!(kept.get("/slow").await.status, 504);
    assert_eq!(waiting.response().await.status, 200);
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1100));
    kept.send(&large).await;
    assert_eq!(kept.response().await.status, 431);
    reload(&home, &proxy, &home.config()).await;
    waiting.send(&large).await;
    assert_eq!(waiting.response().await.status, 200);
}

#[tokio::test]
async fn what_is_not_different_keeps_its_idle_connections() {
    let (home, proxy, _blue, _green) = pair().await;
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
    let idle = async || proxy.backend("blue").await.connections.idle;
    until("a connection is kept", async || (idle().await == 1).then_some(())).await;
    let other =
        home.config().replace("[services.app]", "[server.limits]\nidle_timeout = \"7s\"\n[services.app]");
    assert_eq!(reload(&home, &proxy, &other).await.changed, ["server.limits"]);
    assert_eq!(idle().await, 1);
    reload(&home, &proxy, &(other + "[services.app.timeouts]\nread = \"9s\"\n")).await;
    assert_eq!(idle().await, 0);
}

#[tokio::test]
async fn sighup_reopens_the_access_log() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/before").await.status, 404);
    until("it is logged", async || (home.access_log().len() == 1).then_some(())).await;
    fs::rename(home.path("access.log"), home.path("access.log.1")).unwrap();
    proxy.signal(Signal::HUP);
    home.until_said("action=\"reload\"").await;
    assert_eq!(wire.get("/after").await.status, 404);
    until("it is logged in the new file", async || (home.access_log().len() == 1).then_some(())).await;
    assert_eq!(home.access_log()[0]["path"], "/after");
    assert!(fs::read_to_string(home.path("access.log.1")).unwrap().contains("/before"));
    let elsewhere = home.config().replace("access.log", "other.log").replace("\"json\"", "\"combined\"");
    assert_eq!(
        reload(&home, &proxy, &elsewhere).await.changed,
        ["server.access_log.format", "server.access_log.path"]
    );
    assert_eq!(wire.get("/elsewhere").await.status, 404);
    until("it is logged elsewhere", async || {
        fs::read_to_string(home.path("other.log"))
            .ok()
            .filter(|text| text.contains("\"GET /elsewhere HTTP/1.1\" 404"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_fail_no_request_and_close_no_connection() {
    const RELOADS: usize = 100;
    let (home, proxy, blue, _green) = pair().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = busy_clients(16, proxy.address, &stop);
    let plain = home.config();
    let variants =
        [with_web(&plain, &blue), plain.clone() + "[services.app.timeouts]\nread = \"9s\"\n", plain];
    for step in 0..RELOADS {
        // Replaced atomically, as an editor or a deployment tool does it: half a file would rightly be rejected.
        fs::write(home.path("next.toml"), &variants[step % variants.len()]).unwrap();
        fs::rename(home.path("next.toml"), home.path("uh-proxy.toml")).unwrap();
        let before = proxy.status().await.generation;
        proxy.signal(Signal::HUP);
        until("it is reloaded", async || (proxy.status().await.generation > before).then_some(())).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > RELOADS / 4, "the clients hardly ran");
    }
    assert!(!home.messages().contains("result=\"refused\""), "{}", home.messages());
}

#[tokio::test]
async fn a_service_that_is_left_out_by_mistake_comes_back_with_the_backend_that_was_active() {
    let (home, mut proxy, _blue, _green) = pair().await;
    proxy.switch("green").await;
    let (right, wrong) = (home.config(), home.config().replace("services.app", "services.apt"));
    assert_eq!(reload(&home, &proxy, &wrong).await.changed, ["services.app", "services.apt"]);
    assert_eq!(proxy.service().await.active.as_str(), "blue");
    reload(&home, &proxy, &right).await;
    assert_eq!(proxy.service().await.active.as_str(), "green");
    // A restart keeps it.
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    let mut command = home.command();
    home.write_config(&wrong);
    let mut proxy = home.start_as(command).await;
    assert_eq!(proxy.service().await.name.as_str(), "apt");
    proxy.kill();
    command = home.command();
    let proxy = home.start_as(command).await;
    assert_eq!(
        (proxy.service().await.name.as_str(), proxy.service().await.active.as_str()),
        ("app", "green")
    );
}
