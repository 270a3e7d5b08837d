//! What disturbs a hand-over: another process that has led meanwhile, a second one that wants to take over, and backends
//! that become healthy late.

use serde_json::{Value, json};
use uh_protocol::request::DrainRequest;
use uh_testkit::process::Process;
use uh_testkit::wait::SOON;

use super::{Successor, generation_served, stage, switch};
use crate::harness::{app, backend, until};
use crate::wire::Wire;

/// One that leads for a moment, and changes the routing.
#[tokio::test]
async fn a_process_that_takes_the_lead_back_follows_what_the_other_one_has_left() {
    let (stage, proxy) = stage().await;
    let mut successor = Successor::join(&stage);
    assert!(successor.ask(&json!({"say": "yield"})).contains("yielded"));
    let locks = stage.locks();
    locks.iter().for_each(|lock| lock.try_lock().unwrap());
    let mut state: Value = serde_json::from_slice(&std::fs::read(stage.home.state_file()).unwrap()).unwrap();
    let generation = state["generation"].as_u64().unwrap() + 5;
    state["generation"] = json!(generation);
    state["active"] = json!("green");
    state["services"]["app"]["active"] = json!("green");
    state.as_object_mut().unwrap().remove("checksum");
    std::fs::write(stage.home.state_file(), state.to_string()).unwrap();
    drop(successor);
    drop(locks);
    until("it leads with the other one's routing", async || {
        (proxy.status().await.generation == generation).then_some(())
    })
    .await;
    assert_eq!(proxy.service().await.active, backend("green"));
    assert_eq!(generation_served(proxy.address).await, "green");
    switch(&proxy, "blue").await;
    assert!(proxy.status().await.generation > generation);
}

#[tokio::test]
async fn a_second_process_that_wants_to_take_over_is_refused_at_once_and_told_why() {
    let (stage, mut old) = stage().await;
    let first = Successor::join(&stage);
    let mut second = Process::spawn_as("successor", &mut stage.command(), &stage.home.log()).unwrap();
    assert_eq!(second.ended(SOON).await.unwrap().code(), Some(1));
    let expected = format!("another uh-proxy (process {}) is taking over already", std::process::id());
    stage.home.until_said(&expected).await;
    drop(first);
    let next = until("it can be replaced again", async || {
        let mut next = Process::spawn_as("successor", &mut stage.command(), &stage.home.log()).unwrap();
        let led = until("it leads or ends", async || {
            let pid = old.client.status().await.ok()?.proxy.pid;
            if next.status().unwrap().is_some() { Some(false) } else { (pid == next.id()).then_some(true) }
        });
        led.await.then_some(next)
    });
    let _next = next.await;
    assert_eq!(old.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_a_drain_cuts_in_the_old_one_counts_as_cut() {
    let (stage, mut old) = stage().await;
    let mut upload = Wire::connect(old.address).await;
    upload.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na").await;
    until("it is in flight", async || (old.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let new = stage.replace().await;
    switch(&new, "green").await;
    let request = DrainRequest { timeout_ms: Some(0), cut: Some(true) };
    let reply = new.client.drain(&app(), &backend("blue"), &request).await.unwrap();
    assert!(reply.drained && reply.cut == 1 && reply.finished == 0, "{reply:?}");
    // It was the last that the old one held.
    assert_eq!(old.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_yield_is_answered_with_what_is_healthy_now() {
    let (stage, proxy) = stage().await;
    let mut successor = Successor::join(&stage);
    let address = proxy.backend("blue").await.endpoints[0].address.to_string();
    let blue = json!({"service": "app", "backend": "blue", "address": address});
    let answer = successor.ask(&json!({"say": "yield", "unhealthy": [blue]}));
    assert!(answer.contains("not_yet") && answer.contains(&address), "{answer}");
    switch(&proxy, "green").await;
    // An endpoint that isn't configured there is nothing to wait for.
    let other = json!({"service": "app", "backend": "blue", "address": "192.0.2.1:1"});
    let answer = successor.ask(&json!({"say": "yield", "unhealthy": [other]}));
    assert!(answer.contains("yielded"), "{answer}");
}
