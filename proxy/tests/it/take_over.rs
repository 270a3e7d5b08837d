//! One uh-proxy replaces another one under load: nobody is refused, no request fails, no change is lost, and what the old
//! one still holds counts.

mod faults;
#[cfg(feature = "fault-points")]
mod held;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use uh_protocol::request::DrainRequest;
use uh_testkit::process::Process;
use uh_testkit::wait::{SOON, free_address};

use crate::harness::{Home, Proxy, SampleApp, app, backend, soon, until};
use crate::keeper::{Keeper, Seen, new_clients};
use crate::systemd::clients;
use crate::wire::Wire;

struct Stage {
    home: Home,
    _keeper: Keeper,
    apps: Vec<SampleApp>,
}

/// A process that speaks as one that takes over does.
struct Successor(BufReader<UnixStream>);

impl Successor {
    /// Joins the process that leads.
    fn join(stage: &Stage) -> Self {
        let stream = UnixStream::connect(stage.home.path("run/admin.sock.successor")).unwrap();
        let mut successor = Self(BufReader::new(stream));
        assert!(successor.ask(&json!({"say": "join", "version": "0"})).contains("joined"));
        successor
    }

    fn ask(&mut self, message: &Value) -> String {
        self.0.get_mut().write_all(format!("{message}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer
    }
}

async fn stage() -> (Stage, Proxy) {
    stage_with("").await
}

/// With more lines in `[server]`.
async fn stage_with(lines: &str) -> (Stage, Proxy) {
    let apps = [SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await];
    let (mut stage, proxy) = Stage::of(apps[0].address, apps[1].address, lines).await;
    proxy.until_healthy().await;
    stage.apps.extend(apps);
    (stage, proxy)
}

impl Stage {
    /// For backends at these addresses, which may be down.
    async fn of(blue: SocketAddr, green: SocketAddr, lines: &str) -> (Self, Proxy) {
        let (address, metrics) = (free_address(), free_address());
        let home = Home::new(blue, green);
        let socket = home.path("keeper/sock");
        let home = home.server(&format!(
            "listen = [\"{address}\"]\nmetrics = \"{metrics}\"\nkeeper = {socket:?}\n{lines}"
        ));
        let keeper = Keeper::start(&home.path("."), &[address, metrics]).await;
        let proxy = home.start().await;
        (Self { home, _keeper: keeper, apps: Vec::new() }, proxy)
    }

    /// The locks of the process that leads.
    fn locks(&self) -> [File; 2] {
        let paths = [
            self.home.state_file().with_file_name(".deployment-state.json.lock"),
            self.home.path("run/admin.sock.lock"),
        ];
        paths.map(|path| File::options().append(true).open(path).unwrap())
    }

    fn command(&self) -> std::process::Command {
        let mut command = self.home.command();
        command.arg("--take-over");
        command
    }

    /// Starts one that takes over, and waits until it leads.
    async fn replace(&self) -> Proxy {
        self.home.start_as(self.command()).await
    }
}

/// Whoever calls is asked to call again while no process decides.
async fn switch(proxy: &Proxy, to: &str) {
    until("the switch is accepted", async || {
        let request = uh_protocol::request::SwitchRequest::to(backend(to));
        proxy.client.switch(&app(), &request).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_take_overs_refuse_nobody_and_fail_no_request() {
    let (stage, mut proxy) = stage().await;
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::new(Seen::default());
    let clients = clients(proxy.address, &stop, &answers);
    let others = new_clients(proxy.address, &stop, &seen);
    for turn in 0..20 {
        let before = answers.load(Ordering::Relaxed);
        let next = stage.replace().await;
        assert_eq!(proxy.ended().await.code(), Some(0), "{}", stage.home.messages());
        proxy = next;
        until("it answers", async || (answers.load(Ordering::Relaxed) > before).then_some(())).await;
        switch(&proxy, if turn % 2 == 0 { "green" } else { "blue" }).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        soon("a client's end", client).await.unwrap();
    }
    for client in others {
        tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
    }
    println!(
        "20 take-overs: {} requests on kept and new connections, {:?}",
        answers.load(Ordering::Relaxed),
        seen
    );
    assert_eq!((seen.refused.load(Ordering::Relaxed), seen.cut.load(Ordering::Relaxed)), (0, 0));
}

#[tokio::test]
async fn what_the_old_one_holds_counts_and_follows_a_switch() {
    // A kept connection is one of the old process until it has been used again.
    let (stage, mut old) = stage_with("shutdown_idle_grace = \"30s\"").await;
    // In flight until the rest is sent.
    let mut upload = Wire::connect(old.address).await;
    upload.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na").await;
    until("it is in flight", async || (old.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let mut kept = Wire::connect(old.address).await;
    assert_eq!(kept.get("/").await.header("x-backend"), Some("blue"));
    let new = stage.replace().await;
    // From its first answer on: a deploy may ask at once whether the backend can be stopped.
    assert_eq!(new.backend("blue").await.requests_in_flight, 1);
    switch(&new, "green").await;
    // On a connection of the old one, sent after the reply.
    assert_eq!(kept.get("/").await.header("x-backend"), Some("green"));
    let drain = |timeout_ms| DrainRequest { timeout_ms: Some(timeout_ms), cut: Some(false) };
    let reply = new.client.drain(&app(), &backend("blue"), &drain(100)).await.unwrap();
    assert!(!reply.drained && reply.remaining.requests == 1, "{reply:?}");
    let (service, blue, request) = (app(), backend("blue"), drain(60_000));
    let (reply, ()) = tokio::join!(new.client.drain(&service, &blue, &request), upload.send("b"));
    let reply = reply.unwrap();
    assert!(reply.drained, "{reply:?}");
    let response = upload.response().await;
    assert!(response.status == 200 && response.complete, "{response:?}");
    assert_eq!(old.ended().await.code(), Some(0));
}

/// Whether a process handles a signal itself.
fn handles(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (signal.as_raw() - 1)) != 0
}

#[tokio::test]
async fn a_stop_of_the_new_one_while_it_probes_leaves_the_old_one_in_the_lead() {
    let (stage, mut old) = stage().await;
    let mut command = stage.command();
    // The new one asks a path that no backend has.
    let config =
        stage.home.config().replace("[services.app.health]", "[services.app.health]\npath = \"/no\"");
    stage.home.write_config(&config);
    let mut new = Process::spawn_as("successor", &mut command, &stage.home.log()).unwrap();
    stage.home.until_said("joined the uh-proxy that leads").await;
    until("it handles signals", async || handles(new.id(), Signal::INT).then_some(())).await;
    // No reason to stop waiting for the probes.
    new.signal(Signal::HUP).unwrap();
    switch(&old, "green").await;
    switch(&old, "blue").await;
    new.signal(Signal::INT).unwrap();
    assert_eq!(new.ended(SOON).await.unwrap().code(), Some(1));
    stage.home.until_said("stopped by signal 2, and didn't take over").await;
    switch(&old, "green").await;
    assert_eq!(generation_served(old.address).await, "green");
    assert!(old.is_running());
}

/// Stops the new one at each step before it leads.
#[cfg(feature = "fault-points")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_the_new_one_is_stopped_before_it_leads_the_old_one_goes_on() {
    let (stage, mut old) = stage().await;
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let load = new_clients(old.address, &stop, &seen);
    let fault = stage.home.path("fault");
    let points =
        ["takeover_probed", "takeover_yielded", "takeover_locked", "takeover_renamed", "takeover_accepting"];
    for (turn, point) in points.into_iter().enumerate() {
        std::fs::write(&fault, format!("stop {point}")).unwrap();
        let mut command = stage.command();
        command.env("UH_PROXY_FAULT_FILE", &fault);
        let mut new = Process::spawn_as("successor", &mut command, &stage.home.log()).unwrap();
        let ended = new.ended(SOON).await.unwrap();
        assert_eq!(ended.code(), Some(1), "{point}: {}", stage.home.messages());
        let to = if turn % 2 == 0 { "green" } else { "blue" };
        switch(&old, to).await;
        assert_eq!(old.status().await.proxy.pid, old.pid(), "{point}");
        assert_eq!(generation_served(old.address).await, to, "{point}");
    }
    assert!(old.is_running());
    stop.store(true, Ordering::Relaxed);
    for client in load {
        tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
    }
    assert_eq!((seen.refused.load(Ordering::Relaxed), seen.cut.load(Ordering::Relaxed)), (0, 0));
}

#[tokio::test]
async fn the_routing_of_the_old_one_is_that_of_the_new_one() {
    let (stage, mut old) = stage().await;
    switch(&old, "green").await;
    let before = old.status().await;
    let withdrawn = old.client.withdraw(&app(), &backend("blue"), &Default::default()).await.unwrap();
    let new = stage.replace().await;
    let after = new.status().await;
    assert_eq!(after.generation, withdrawn.generation);
    assert_eq!(after.services[0].active, before.services[0].active);
    assert_eq!(after.services[0].last_switch.is_some(), before.services[0].last_switch.is_some());
    assert_eq!(new.backend("blue").await.role, uh_protocol::status::Role::Withdrawn);
    assert_eq!(old.ended().await.code(), Some(0));
}

#[tokio::test]
async fn without_an_old_one_it_simply_starts_and_without_a_keeper_it_refuses() {
    let (stage, mut old) = stage().await;
    old.kill();
    let _new = stage.replace().await;
    let home = Home::new("127.0.0.1:9", "127.0.0.1:9");
    let mut command = home.command();
    command.arg("--take-over");
    let mut child = command.spawn().unwrap();
    let status = until("it has ended", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(1));
    assert!(home.messages().contains("--take-over needs server.keeper"), "{}", home.messages());
}

/// One that says that it takes over, and then hangs, with or without the locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_hangs_stops_neither_requests_nor_for_long_changes() {
    let (stage, proxy) = stage().await;
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let load = new_clients(proxy.address, &stop, &seen);
    for with_locks in [false, true] {
        let mut successor = Successor::join(&stage);
        assert!(successor.ask(&json!({"say": "yield"})).contains("yielded"));
        let locks = stage.locks();
        if with_locks {
            locks.iter().for_each(|lock| lock.try_lock().unwrap());
            stage.home.until_said("has the locks and doesn't lead").await;
            assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
        }
        let request = uh_protocol::request::SwitchRequest::to(backend("green"));
        let problem = proxy.client.switch(&app(), &request).await;
        if with_locks {
            let problem = problem.unwrap_err().to_string();
            assert!(problem.contains("being replaced: ask again"), "{problem}");
        }
        drop(locks);
        switch(&proxy, if with_locks { "blue" } else { "green" }).await;
    }
    // It can be replaced still.
    let mut proxy = proxy;
    let next = stage.replace().await;
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert_eq!(next.service().await.active, backend("blue"));
    stop.store(true, Ordering::Relaxed);
    for client in load {
        tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
    }
    assert_eq!((seen.refused.load(Ordering::Relaxed), seen.cut.load(Ordering::Relaxed)), (0, 0));
}

/// How long until exactly one process leads again.
const LEADS_WITHIN: Duration = Duration::from_secs(10);

async fn generation_served(address: SocketAddr) -> String {
    let response = Wire::connect(address).await.get("/").await;
    assert_eq!(response.status, 200);
    response.header("x-backend").unwrap().to_owned()
}

#[cfg(feature = "fault-points")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_is_killed_at_any_step_one_leads_and_nobody_is_refused() {
    const OLD: [&str; 5] = [
        "handover_joined",
        "handover_frozen",
        "handover_released",
        "handover_superseded",
        "handover_followed",
    ];
    const NEW: [&str; 7] = [
        "takeover_joined",
        "takeover_probed",
        "takeover_yielded",
        "takeover_locked",
        "takeover_renamed",
        "takeover_accepting",
        "takeover_followed",
    ];
    for point in OLD.into_iter().chain(NEW) {
        let (stage, mut proxy) = stage().await;
        let address = proxy.address;
        switch(&proxy, "green").await;
        proxy.kill();
        let fault = stage.home.path("fault");
        let of_old = OLD.contains(&point);
        let mut command = stage.home.command();
        if of_old {
            command.env("UH_PROXY_FAULT_FILE", &fault);
        }
        let mut old = stage.home.start_as(command).await;
        old.until_healthy().await;
        let before = old.status().await.generation;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let load = new_clients(address, &stop, &seen);
        std::fs::write(&fault, point).unwrap();
        let mut command = stage.command();
        if !of_old {
            command.env("UH_PROXY_FAULT_FILE", &fault);
        }
        // Ended if this fails.
        let mut new = Process::spawn_as("successor", &mut command, &stage.home.log()).unwrap();
        let died = async || {
            let ended = if of_old { !old.is_running() } else { new.status().unwrap().is_some() };
            ended.then_some(())
        };
        until(&format!("{point}: it is killed"), died).await;
        let begun = Instant::now();
        let client = uh_protocol::client::Client::new(stage.home.socket());
        let led = async || {
            let status = client.status().await.ok()?;
            let request = uh_protocol::request::SwitchRequest::to(backend("blue"));
            assert!(status.generation >= before, "{point}: generation {} after {before}", status.generation);
            client.switch(&app(), &request).await.ok()
        };
        let what = format!("{point}: one leads");
        let switched = uh_testkit::wait::until_within(LEADS_WITHIN, &what, led);
        switched.await.unwrap_or_else(|e| panic!("{e:#}\n{}", stage.home.messages()));
        println!("{point}: switched {} ms after the kill", begun.elapsed().as_millis());
        assert_eq!(generation_served(address).await, "blue", "{point}");
        stop.store(true, Ordering::Relaxed);
        for client in load {
            tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
        }
        let cut = seen.cut.load(Ordering::Relaxed);
        println!("{point}: {seen:?}");
        assert_eq!(seen.refused.load(Ordering::Relaxed), 0, "{point}");
        // Each client has one request at a time.
        assert!(cut <= 8, "{point}: {cut} were cut");
        // One of them has ended already.
        let _ = new.kill();
        old.kill();
    }
}
