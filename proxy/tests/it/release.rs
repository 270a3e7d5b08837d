//! A switch of several services: all of them move in one generation, or none does.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use uh_protocol::client::ClientError;
use uh_protocol::request::{MAX_RELEASE_SERVICES, ReleaseRequest, SwitchProbeResult, WithdrawRequest};
use uh_protocol::{Code, Problem, ServiceName};

use crate::harness::{Home, Proxy, SampleApp, app, backend, cli, until};
use crate::wire::Wire;

/// Where each service is.
const PATHS: [&str; 2] = ["/", "/web"];

const HEALTH: &str = "interval = \"50ms\"\nhealthy_after = 1\n";

pub(crate) fn web() -> ServiceName {
    "web".parse().unwrap()
}

/// Two services, `app` and `web`, each with a blue and a green backend.
struct Shop {
    home: Home,
    proxy: Proxy,
    apps: Vec<SampleApp>,
}

impl Shop {
    async fn open() -> Self {
        let mut apps = Vec::new();
        for name in ["blue", "green", "blue", "green"] {
            apps.push(SampleApp::start(name, "1").await);
        }
        let home =
            two_services([&apps[0], &apps[1], &apps[2], &apps[3]].map(|app| app.address.to_string()), HEALTH);
        let proxy = home.start().await;
        proxy.until_healthy().await;
        Self { home, proxy, apps }
    }

    async fn active(&self) -> [String; 2] {
        active(&self.proxy).await
    }

    async fn served(&self) -> [String; 2] {
        let mut wire = Wire::connect(self.proxy.address).await;
        let mut served = Vec::new();
        for path in PATHS {
            served.push(answerer(&mut wire, path).await);
        }
        served.try_into().unwrap()
    }
}

/// In the order of [`PATHS`].
pub(crate) async fn active(proxy: &Proxy) -> [String; 2] {
    let services = proxy.status().await.services;
    [app(), web()].map(|name| services.iter().find(|of| of.name == name).unwrap().active.to_string())
}

/// `app` and `web`, by the addresses of their backends.
pub(crate) fn two_services([blue, green, web_blue, web_green]: [String; 4], health: &str) -> Home {
    Home::new(blue, green).service(&format!(
        "[services.app.health]\n{health}\n\
         [services.web]\npath_prefix = \"/web\"\nactive = \"blue\"\n\
         [services.web.health]\n{health}\n\
         [services.web.backends.blue]\nendpoints = [\"{web_blue}\"]\n\
         [services.web.backends.green]\nendpoints = [\"{web_green}\"]\n"
    ))
}

async fn answerer(wire: &mut Wire, path: &str) -> String {
    let response = wire.get(path).await;
    response.header("x-backend").unwrap_or_else(|| panic!("{response:?}")).to_owned()
}

/// Both to this backend.
pub(crate) fn both(to: &str) -> ReleaseRequest {
    let services = BTreeMap::from([(app(), backend(to)), (web(), backend(to))]);
    ReleaseRequest { services, expect_generation: None, force: false }
}

async fn refused(proxy: &Proxy, request: &ReleaseRequest) -> Problem {
    match proxy.client.release(request).await.unwrap_err() {
        ClientError::Problem(problem) => problem,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_of_several_services_moves_all_of_them_or_none() {
    const RELEASES: usize = 200;
    const CLIENTS: usize = 8;
    let shop = Shop::open().await;
    let (stop, called, replied) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let judged = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (stop, called, replied) = (Arc::clone(&stop), Arc::clone(&called), Arc::clone(&replied));
            tokio::spawn(pairs(shop.proxy.address, client, stop, called, (replied, Arc::clone(&judged))))
        })
        .collect();
    let names = ["blue", "green"];
    for release in 1..=RELEASES {
        called.store(release, Ordering::SeqCst);
        let released = shop.proxy.client.release(&both(names[release % 2])).await.unwrap();
        replied.store(release, Ordering::SeqCst);
        assert!(released.changed && released.persisted, "{released:?}");
        assert_eq!(released.generation, u64::try_from(release).unwrap());
        // Sent after the reply, on a new connection.
        assert_eq!(shop.served().await, [names[release % 2]; 2]);
        let is_judged = async || (judged.load(Ordering::SeqCst) >= release).then_some(());
        until("a pair is sent between this reply and the next call", is_judged).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = 0;
    for client in clients {
        all += client.await.unwrap();
    }
    let after_reply = judged.load(Ordering::SeqCst);
    println!(
        "{RELEASES} releases: {all} pairs, {after_reply} of them between a reply and the next call, no mixture"
    );
    assert!(after_reply >= RELEASES, "only {after_reply} pairs were sent between a reply and the next call");
}

/// Asks both services by turns on one connection until stopped. Returns how many pairs were judged, and counts those
/// that were sent after a reply and answered before the next call.
async fn pairs(
    address: std::net::SocketAddr,
    client: usize,
    stop: Arc<AtomicBool>,
    called: Arc<AtomicUsize>,
    (replied, judged): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) -> usize {
    let names = ["blue", "green"];
    let mut wire = Wire::connect(address).await;
    // Half of the clients ask web first.
    let paths = if client.is_multiple_of(2) { PATHS } else { [PATHS[1], PATHS[0]] };
    let mut all = 0;
    while !stop.load(Ordering::Relaxed) {
        let before = replied.load(Ordering::SeqCst);
        let first = answerer(&mut wire, paths[0]).await;
        let second = answerer(&mut wire, paths[1]).await;
        let after = called.load(Ordering::SeqCst);
        if after > before + 1 {
            continue;
        }
        all += 1;
        let old = names[before % 2];
        if after == before {
            assert_eq!([&first, &second], [old; 2], "a request sent after the reply got the old release");
            judged.fetch_add(1, Ordering::SeqCst);
        } else {
            // At most one release was under way: once one service has moved, so has the other.
            assert!(first == old || second != old, "{first} was followed by {second} (release {after})");
        }
    }
    all
}

#[tokio::test]
async fn a_release_is_one_reply_one_generation_one_line_and_is_counted_for_each_service() {
    let shop = Shop::open().await;
    let released = shop.proxy.client.release(&both("green")).await.unwrap();
    assert_eq!((released.generation, released.changed, released.persisted), (1, true, true));
    for name in [app(), web()] {
        let switched = &released.services[&name];
        assert_eq!((switched.from.as_str(), switched.to.as_str(), switched.changed), ("blue", "green", true));
        assert!(switched.switched_at.is_some() && switched.probe.is_some());
    }
    assert_eq!(shop.served().await, ["green"; 2]);
    shop.home.until_said("services=\"app: blue → green, web: blue → green\"").await;
    let done = |messages: String| messages.lines().filter(|line| line.contains("action=\"switch\"")).count();
    assert_eq!(done(shop.home.messages()), 1);
    let metrics = shop.proxy.client.metrics().await.unwrap();
    for service in ["app", "web"] {
        let series = format!(
            "uh_proxy_switches_total{{from=\"blue\",result=\"switched\",service=\"{service}\",to=\"green\"}} 1"
        );
        assert!(metrics.contains(&series), "{series}");
        assert!(
            metrics.contains(&format!("uh_proxy_switch_duration_seconds_count{{service=\"{service}\"}} 1"))
        );
    }
    // A caller that lost the reply asks again.
    let again = shop.proxy.client.release(&both("green")).await.unwrap();
    assert_eq!((again.generation, again.changed, again.persisted), (1, false, true));
    assert!(again.services.values().all(|switched| !switched.changed && switched.probe.is_none()));
    // One of them is active already: the other one moves, in one generation.
    shop.proxy.switch("blue").await;
    let mixed = shop.proxy.client.release(&both("green")).await.unwrap();
    assert_eq!((mixed.generation, mixed.changed), (3, true));
    assert_eq!((mixed.services[&app()].changed, mixed.services[&web()].changed), (true, false));
    shop.home.until_said("services=\"app: blue → green, web: green (was active)\"").await;
    assert_eq!(shop.active().await, ["green"; 2]);
}

#[tokio::test]
async fn a_release_survives_a_restart_whole() {
    let mut shop = Shop::open().await;
    assert!(shop.proxy.client.release(&both("green")).await.unwrap().persisted);
    shop.proxy.kill();
    shop.proxy.ended().await;
    shop.proxy = shop.home.start().await;
    assert_eq!(shop.active().await, ["green"; 2]);
    assert_eq!(shop.served().await, ["green"; 2]);
}

#[tokio::test]
async fn a_refused_release_changes_nothing_and_names_every_service_in_the_way() {
    let mut shop = Shop::open().await;
    // web's green dies; app's green is fine.
    let dead = shop.apps.pop().unwrap().address;
    until("web's green is known to be dead, and it is on disk", async || {
        let status = shop.proxy.status().await;
        let web = status.services.iter().find(|of| of.name == web())?;
        let green = web.backends.iter().find(|of| of.name == backend("green"))?;
        (green.healthy == Some(false)).then_some(())
    })
    .await;
    let settled = async || {
        let mut status = shop.proxy.status().await;
        status.proxy.uptime_s = 0;
        for backend in status.services.iter_mut().flat_map(|service| &mut service.backends) {
            backend.last_probe = None;
            backend.endpoints.iter_mut().for_each(|endpoint| endpoint.last_probe = None);
        }
        let state: serde_json::Value =
            serde_json::from_slice(&fs::read(shop.home.state_file()).unwrap_or(b"null".to_vec())).unwrap();
        (status, state["services"].clone(), state["generation"].clone())
    };
    let before = settled().await;
    let problem = refused(&shop.proxy, &both("green")).await;
    assert_eq!((problem.code, problem.status), (Code::BackendUnhealthy, 409));
    assert_eq!(problem.services.keys().collect::<Vec<_>>(), [&web()]);
    for part in ["no service was switched", "web: ", "blue stays active", &dead.to_string(), "force"] {
        assert!(problem.detail.contains(part), "{part:?} is missing in {problem}");
    }
    assert_eq!(settled().await, before);
    let services = |list: &[(&str, &str)]| ReleaseRequest {
        services: list.iter().map(|(service, to)| (service.parse().unwrap(), backend(to))).collect(),
        ..both("green")
    };
    let many: Vec<String> = (0..=MAX_RELEASE_SERVICES).map(|index| format!("s{index}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "green")).collect();
    for (request, code, named) in [
        (services(&[("app", "green"), ("other", "green")]), Code::UnknownService, vec!["other"]),
        (services(&[("app", "red"), ("web", "green")]), Code::UnknownBackend, vec!["app", "web"]),
        (ReleaseRequest { expect_generation: Some(77), ..both("green") }, Code::Conflict, vec!["app", "web"]),
        (services(&[]), Code::InvalidRequest, vec![]),
        (services(&many), Code::InvalidRequest, vec![]),
    ] {
        let problem = refused(&shop.proxy, &request).await;
        assert_eq!(problem.code, code, "{problem}");
        let found: Vec<&str> = problem.services.keys().map(|name| name.as_str()).collect();
        assert_eq!(found, named, "{problem}");
        assert_eq!(settled().await, before);
    }
    let (exit, _, message) = cli(&shop.home.socket(), &["switch", "green", "--service", "app,web"]).await;
    assert_eq!(exit, 3, "{message}");
    assert!(message.contains("no service was switched. web: green"), "{message}");
    let (exit, stdout, _) =
        cli(&shop.home.socket(), &["switch", "green", "--service", "app,other", "--json"]).await;
    let reply: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, &reply["problem"]["services"]["other"]["code"]), (1, &"unknown_service".into()));
    let metrics = shop.proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("result=\"refused\",service=\"app\",to=\"green\""), "{metrics}");
    assert!(metrics.contains("result=\"refused\",service=\"web\",to=\"green\""));
    assert!(!metrics.contains("result=\"switched\""));
    shop.home.until_said("services=\"app → green, web → green\" force=false result=\"refused\"").await;
    // Withdrawn: not even by force.
    shop.proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await.unwrap();
    let before = settled().await;
    let forced = ReleaseRequest { force: true, ..both("green") };
    let problem = refused(&shop.proxy, &forced).await;
    assert_eq!((problem.code, problem.services.len()), (Code::BackendWithdrawn, 1));
    assert_eq!(problem.services[&app()].code, Code::BackendWithdrawn);
    assert_eq!(settled().await, before);
    assert_eq!(shop.served().await, ["blue"; 2]);
}

#[tokio::test]
async fn all_targets_are_probed_at_the_same_time_and_each_bad_one_is_named() {
    // After the first good probe, there are no regular ones for the rest of the test.
    let once = "interval = \"1h\"\ntimeout = \"5s\"\nhealthy_after = 1\nswitch_probe_timeout = \"1s\"\n";
    let mut apps = Vec::new();
    for name in ["blue", "blue"] {
        apps.push(SampleApp::start(name, "1").await);
    }
    let (app_green, app_mode) = crate::switch_probe::probed().await;
    let (web_green, web_mode) = crate::switch_probe::probed().await;
    let [blue, web_blue] = [&apps[0], &apps[1]].map(|app| app.address.to_string());
    let home = two_services([blue, app_green.to_string(), web_blue, web_green.to_string()], once);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let probe_is_old = async || {
        // Old enough to need another probe.
        tokio::time::sleep(Duration::from_millis(150)).await;
    };
    probe_is_old().await;
    app_mode.store(crate::switch_probe::BAD, Ordering::SeqCst);
    web_mode.store(crate::switch_probe::BAD, Ordering::SeqCst);
    let problem = refused(&proxy, &both("green")).await;
    assert_eq!((problem.code, problem.services.len()), (Code::BackendUnhealthy, 2), "{problem}");
    assert_eq!(proxy.status().await.generation, 0);
    app_mode.store(crate::switch_probe::NEVER, Ordering::SeqCst);
    web_mode.store(crate::switch_probe::NEVER, Ordering::SeqCst);
    let start = Instant::now();
    let released = proxy.client.release(&both("green")).await.unwrap();
    let took = start.elapsed();
    for switched in released.services.values() {
        assert_eq!(switched.probe.unwrap().result, SwitchProbeResult::NoAnswer);
        assert_eq!(switched.warnings.len(), 1, "{switched:?}");
    }
    let one_by_one: u64 = released.services.values().map(|switched| switched.probe.unwrap().took_ms).sum();
    assert!(took < Duration::from_millis(one_by_one), "{took:?} for probes of {one_by_one} ms together");
}

#[tokio::test]
async fn the_command_line_switches_several_services_and_drains_each() {
    let shop = Shop::open().await;
    let socket = shop.home.socket();
    let (exit, stdout, stderr) =
        cli(&socket, &["switch", "green", "--service", "web,app", "--wait-drain", "5s"]).await;
    assert_eq!(exit, 0, "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("app: blue → green (generation 1), "), "{stdout}");
    assert!(lines[1].starts_with("web: blue → green (generation 1), "), "{stdout}");
    assert_eq!(stdout.matches("blue: drained in ").count(), 2, "{stdout}");
    let (exit, stdout, _) =
        cli(&socket, &["switch", "blue", "--service", "web,app", "--wait-drain", "5s", "--json"]).await;
    let reply: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, &reply["switch"]["services"]["web"]["to"]), (0, &"blue".into()));
    assert_eq!(reply["drains"]["app"]["drained"], true, "{stdout}");
    // One service is the call that it always was.
    let (exit, stdout, _) = cli(&socket, &["switch", "blue", "--service", "web"]).await;
    assert_eq!((exit, stdout.trim()), (0, "web: blue is already active (generation 2)"));
    let (exit, _, stderr) =
        cli(&socket, &["switch", "green", "--service", "web,app", "--expect-active", "blue"]).await;
    assert_eq!((exit, stderr.contains("--expect-generation")), (2, true), "{stderr}");
    let twice = r#"{"services": {"app": "green", "app": "blue"}}"#;
    let reply = raw(&socket, twice).await;
    assert!(reply.starts_with("HTTP/1.1 422") && reply.contains("app occurs twice"), "{reply}");
}

/// `POST /v1/switch` with this body.
async fn raw(socket: &std::path::Path, body: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let head = format!(
        "POST /v1/switch HTTP/1.1\r\nHost: uh\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}
