//! Hand-overs in which one of the two is held at a point: by a disk that hangs, or so that something happens meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uh_testkit::process::Process;
use uh_testkit::wait::SOON;

use super::{Stage, generation_served, stage, switch};
use crate::harness::{backend, until};

/// With a last-good copy that never gets written.
#[tokio::test]
async fn a_disk_that_hangs_at_the_hand_over_delays_no_call_and_ends_the_take_over() {
    let (stage, mut first) = stage().await;
    first.kill();
    let fault = stage.home.path("fault");
    let mut command = stage.home.command();
    command.env("UH_PROXY_FAULT_FILE", &fault);
    let mut old = stage.home.start_as(command).await;
    old.until_healthy().await;
    std::fs::write(&fault, "wait state_copying").unwrap();
    let mut new = Process::spawn_as("successor", &mut stage.command(), &stage.home.log()).unwrap();
    until("the old one gives up", async || {
        // Answered all the while: a call that isn't fails.
        old.status().await;
        stage.home.messages().contains("cannot hand over; this uh-proxy goes on").then_some(())
    })
    .await;
    assert_eq!(new.ended(SOON).await.unwrap().code(), Some(1));
    stage.home.until_said("it can't write its state: the disk didn't respond within 5 s").await;
    std::fs::write(&fault, "").unwrap();
    switch(&old, "green").await;
    let next = stage.replace().await;
    assert_eq!(old.ended().await.code(), Some(0));
    assert_eq!(next.service().await.active, backend("green"));
}

/// An app whose health checks succeed once they are to, for each path by itself.
struct Checked {
    address: SocketAddr,
    old: Arc<AtomicBool>,
    new: Arc<AtomicBool>,
}

impl Checked {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let app = Self { address: listener.local_addr().unwrap(), old: Arc::default(), new: Arc::default() };
        let (old, new) = (Arc::clone(&app.old), Arc::clone(&app.new));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                let is_new = head[..read].starts_with(b"GET /new ");
                let is_good = if is_new { &new } else { &old }.load(Ordering::Relaxed);
                let status = if is_good { "200 OK" } else { "503 Service Unavailable" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        app
    }
}

#[tokio::test]
async fn what_becomes_healthy_after_the_new_one_has_joined_is_waited_for() {
    let checked = Checked::start();
    let (stage, mut old) = Stage::of(checked.address, checked.address, "").await;
    let fault = stage.home.path("fault");
    std::fs::write(&fault, "wait takeover_probed").unwrap();
    let mut command = stage.command();
    command.env("UH_PROXY_FAULT_FILE", &fault);
    let probed =
        stage.home.config().replace("[services.app.health]", "[services.app.health]\npath = \"/new\"");
    stage.home.write_config(&probed);
    let mut new = Process::spawn_as("successor", &mut command, &stage.home.log()).unwrap();
    until("it has probed", async || fault.with_extension("reached").exists().then_some(())).await;
    checked.old.store(true, Ordering::Relaxed);
    old.until_healthy().await;
    std::fs::write(&fault, "").unwrap();
    stage.home.until_said("doesn't find healthy yet what this one does").await;
    assert_eq!(old.status().await.proxy.pid, old.pid());
    checked.new.store(true, Ordering::Relaxed);
    until("the new one leads", async || {
        (old.client.status().await.ok()?.proxy.pid == new.id()).then_some(())
    })
    .await;
    assert_eq!(old.ended().await.code(), Some(0));
    assert!(new.status().unwrap().is_none());
}

/// Longer than a process takes to end that has nothing to do.
const IT_WOULD_HAVE_ENDED: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn an_old_one_that_holds_nothing_leads_again_if_the_new_one_dies_before_it_is_ready() {
    let (stage, mut old) = stage().await;
    let fault = stage.home.path("fault");
    std::fs::write(&fault, "wait takeover_followed").unwrap();
    let mut command = stage.command();
    command.env("UH_PROXY_FAULT_FILE", &fault);
    let mut new = Process::spawn_as("successor", &mut command, &stage.home.log()).unwrap();
    until("the new one leads", async || fault.with_extension("reached").exists().then_some(())).await;
    tokio::time::sleep(IT_WOULD_HAVE_ENDED).await;
    new.kill().unwrap();
    stage.home.until_said("the uh-proxy that led is gone; this one takes the lead back").await;
    switch(&old, "green").await;
    assert_eq!(generation_served(old.address).await, "green");
    // Then it can be replaced for good.
    let _next = stage.replace().await;
    assert_eq!(old.ended().await.code(), Some(0));
}
