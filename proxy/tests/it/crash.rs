//! `kill -9` between any two steps of a switch, at a named point, then a restart.

use std::fs;

use uh_protocol::request::{SwitchRequest, WithdrawRequest};
use uh_protocol::status::Role;

use crate::harness::{Home, SampleApp, app, backend};
use crate::release;
use crate::wire::Wire;

/// What a restart must serve after a crash at a point: the last acknowledged switch was to green, and one to blue was
/// under way. Where its state had reached the disk, blue is right too: no caller got a reply saying that it had not.
const POINTS: [(&str, &[&str]); 5] = [
    ("before_swap", &["green"]),
    ("swapped", &["green"]),
    ("state_written", &["green"]),
    ("state_renamed", &["green", "blue"]),
    ("persisted", &["blue"]),
];

#[tokio::test]
async fn a_crash_at_any_step_of_a_switch_loses_nothing_acknowledged() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    for (point, allowed) in POINTS {
        let home = Home::new(blue.address, green.address);
        let fault = home.path("fault");
        let mut command = home.command();
        command.env("UH_PROXY_FAULT_FILE", &fault);
        let mut proxy = home.start_as(command).await;
        proxy.until_healthy().await;
        assert!(proxy.switch("green").await.persisted);
        fs::write(&fault, point).unwrap();
        let request = SwitchRequest::to(backend("blue"));
        let broken = proxy.client.switch(&app(), &request).await;
        assert!(broken.is_err(), "{point}: the switch was acknowledged");
        assert!(proxy.ended().await.code().is_none(), "{point}: it was not killed");
        let proxy = home.start().await;
        let service = proxy.service().await;
        assert!(allowed.contains(&service.active.as_str()), "{point}: {} is active", service.active);
        let served = Wire::connect(proxy.address).await.get("/").await;
        assert_eq!(served.header("x-backend"), Some(service.active.as_str()), "{point}");
        assert!(proxy.status().await.warnings.is_empty(), "{point}: damage was left behind");
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_release_leaves_both_services_old_or_both_new() {
    let mut apps = Vec::new();
    for name in ["blue", "green", "blue", "green"] {
        apps.push(SampleApp::start(name, "1").await);
    }
    let addresses = [&apps[0], &apps[1], &apps[2], &apps[3]].map(|app| app.address.to_string());
    for (point, allowed) in POINTS {
        let home = release::two_services(addresses.clone(), "interval = \"50ms\"\nhealthy_after = 1\n");
        let fault = home.path("fault");
        let mut command = home.command();
        command.env("UH_PROXY_FAULT_FILE", &fault);
        let mut proxy = home.start_as(command).await;
        proxy.until_healthy().await;
        assert!(proxy.client.release(&release::both("green")).await.unwrap().persisted);
        fs::write(&fault, point).unwrap();
        let broken = proxy.client.release(&release::both("blue")).await;
        assert!(broken.is_err(), "{point}: the switch was acknowledged");
        assert!(proxy.ended().await.code().is_none(), "{point}: it was not killed");
        let proxy = home.start().await;
        let [app, web] = release::active(&proxy).await;
        assert!(app == web && allowed.contains(&app.as_str()), "{point}: {app} and {web} are active");
        // The caller, who got no reply, asks again.
        proxy.until_healthy().await;
        let again = proxy.client.release(&release::both("blue")).await.unwrap();
        assert_eq!(again.changed, app == "green", "{point}");
        assert_eq!(release::active(&proxy).await, ["blue"; 2], "{point}");
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_withdrawal_forgets_none_that_was_acknowledged() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let either = [Role::Standby, Role::Withdrawn].as_slice();
    for (point, allowed) in [
        ("withdrawn", &either[..1]),
        ("state_written", &either[..1]),
        ("state_renamed", either),
        ("", &either[1..]),
    ] {
        let home = Home::new(blue.address, green.address);
        let fault = home.path("fault");
        let mut command = home.command();
        command.env("UH_PROXY_FAULT_FILE", &fault);
        let mut proxy = home.start_as(command).await;
        proxy.until_healthy().await;
        fs::write(&fault, point).unwrap();
        let done = proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await;
        assert_eq!(done.is_ok(), point.is_empty(), "{point}: {done:?}");
        proxy.kill();
        let proxy = home.start().await;
        let role = proxy.backend("green").await.role;
        assert!(allowed.contains(&role), "{point}: green is {role:?}");
    }
}
