//! How splits end by themselves, and what a restart keeps.

use std::fs;
use std::time::Duration;

use uh_protocol::request::{SplitRequest, SwitchRequest};
use uh_protocol::status::Role;

use super::{green, is_new, off, pages, split};
use crate::harness::{Home, Proxy, SampleApp, app, backend, pair, until};
use crate::wire::Wire;

async fn until_ended(proxy: &Proxy) {
    until("the split has ended", async || proxy.service().await.split.is_none().then_some(())).await;
}

fn leased(weight: f64, ttl_ms: u64) -> SplitRequest {
    SplitRequest { ttl_ms: Some(ttl_ms), ..green(weight) }
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_the_split() {
    let (home, proxy, _blue, _green) = pair().await;
    let first = split(&proxy, &leased(100.0, 60_000)).await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/").await.header("x-backend"), Some("green"));
    // Renewed, it goes on, in the same generation.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let renewed = split(&proxy, &leased(100.0, 60_000)).await;
    assert_eq!((renewed.changed, renewed.generation), (false, first.generation));
    assert!(renewed.split.unwrap().until > first.split.unwrap().until);
    assert_eq!(wire.get("/").await.header("x-backend"), Some("green"));
    split(&proxy, &leased(100.0, 200)).await;
    until_ended(&proxy).await;
    assert_eq!(wire.get("/").await.header("x-backend"), Some("blue"));
    assert!(proxy.status().await.generation > first.generation);
    home.until_said("the lease wasn't renewed in time").await;
    // A late renewal is refused.
    let late = SplitRequest { expect_generation: Some(first.generation), ..leased(100.0, 1_000) };
    assert!(proxy.client.split(&app(), &late).await.is_err());
    until("that is on disk", async || {
        let state = fs::read_to_string(home.state_file()).unwrap();
        (!state.contains("\"split\"")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_split_that_is_left_to_itself_ends_after_hold_timeout() {
    let (home, proxy, _apps) = pages("[services.app.split]\nhold_timeout = \"1s\"\n").await;
    let reply = split(&proxy, &green(50.0)).await;
    assert!(!reply.split.unwrap().leased);
    until_ended(&proxy).await;
    home.until_said("split.hold_timeout is over").await;
}

#[tokio::test]
async fn a_split_to_a_backend_that_becomes_unhealthy_ends() {
    let blue = SampleApp::start("blue", "1").await;
    let sick = SampleApp::start("green", "2").await;
    let home = Home::new(blue.address, sick.address)
        .service("[services.app.health]\ninterval = \"20ms\"\nhealthy_after = 1\nunhealthy_after = 2\n");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    split(&proxy, &green(100.0)).await;
    drop(sick);
    until_ended(&proxy).await;
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some("blue"));
    home.until_said("its backend is unhealthy").await;
}

#[tokio::test]
async fn a_switch_ends_the_split_and_only_a_switch_names_another_active_backend() {
    let (home, proxy, _blue, _green) = pair().await;
    split(&proxy, &green(100.0)).await;
    let service = proxy.service().await;
    assert_eq!((service.active.as_str(), service.previous, service.last_switch), ("blue", None, None));
    assert_eq!(proxy.backend("green").await.role, Role::Standby);
    let metrics = proxy.client.metrics().await.unwrap();
    for series in [
        "backend_active{service=\"app\",backend=\"blue\"} 1",
        "backend_active{service=\"app\",backend=\"green\"} 0",
        "split_weight{service=\"app\",backend=\"blue\"} 0",
        "split_weight{service=\"app\",backend=\"green\"} 1",
    ] {
        assert!(metrics.contains(&format!("uh_proxy_{series}")), "{series} isn't in {metrics}");
    }
    let state = fs::read_to_string(home.state_file()).unwrap();
    assert!(state.contains("\"active\": \"blue\"") && !state.contains("\"active\": \"green\""), "{state}");
    let switched = proxy.client.switch(&app(), &SwitchRequest::to(backend("green"))).await.unwrap();
    assert!(switched.changed && switched.from == backend("blue"));
    assert_eq!(proxy.service().await.split, None);
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some("green"));
    home.until_said("split_ended=\"app: 100 % to green\"").await;
}

#[tokio::test]
async fn a_restart_goes_on_with_the_last_acknowledged_weight() {
    let (home, mut proxy, _apps) = pages("").await;
    split(&proxy, &green(30.0)).await;
    let acknowledged = split(&proxy, &leased(50.0, 60_000)).await.split.unwrap();
    let mut wire = Wire::connect(proxy.address).await;
    let mut before = Vec::new();
    for n in 0..100 {
        before.push(is_new(&mut wire, &format!("10.0.0.{n}"), "").await);
    }
    proxy.kill();
    let mut proxy = home.start().await;
    assert_eq!(proxy.service().await.split, Some(acknowledged));
    let mut wire = Wire::connect(proxy.address).await;
    for (n, side) in before.iter().enumerate() {
        assert_eq!(is_new(&mut wire, &format!("10.0.0.{n}"), "").await, *side, "client {n} has moved");
    }
    // The lease runs on while uh-proxy doesn't.
    split(&proxy, &leased(50.0, 2_000)).await;
    proxy.kill();
    let mut proxy = home.start().await;
    until_ended(&proxy).await;
    proxy.kill();
    let proxy = home.start().await;
    assert_eq!(proxy.service().await.split, None);
    off(&proxy).await;
}

#[tokio::test]
async fn what_a_state_file_says_about_a_split_is_checked() {
    let (home, mut proxy, _blue, _green) = pair().await;
    split(&proxy, &green(50.0)).await;
    proxy.kill();
    let written: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(home.state_file()).unwrap()).unwrap();
    for (field, value) in [
        ("to", serde_json::json!("blue")),
        ("to", serde_json::json!("red")),
        ("weightMillionths", serde_json::json!(0)),
        ("weightMillionths", serde_json::json!(1_000_001)),
        ("salt", serde_json::json!("x")),
        ("until", serde_json::json!("soon")),
        ("until", serde_json::json!("2020-01-01T00:00:00Z")),
    ] {
        let mut state = written.clone();
        state.as_object_mut().unwrap().remove("checksum");
        state["services"]["app"]["split"][field] = value.clone();
        fs::write(home.state_file(), state.to_string()).unwrap();
        let mut proxy = home.start().await;
        let service = proxy.service().await;
        assert_eq!((service.active.as_str(), service.split), ("blue", None), "{field}: {value}");
        proxy.kill();
    }
}
