//! `kill -9` between any two steps of a change of weight.

use std::fs;

use super::{green, split};
use crate::harness::{Home, SampleApp, app};

#[tokio::test]
async fn a_crash_at_any_step_of_a_split_loses_nothing_acknowledged() {
    let (blue, other) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    for (point, allowed) in [
        ("before_split", [10.0].as_slice()),
        ("split", &[10.0]),
        ("state_written", &[10.0]),
        ("state_renamed", &[10.0, 20.0]),
    ] {
        let home = Home::new(blue.address, other.address);
        let fault = home.path("fault");
        let mut command = home.command();
        command.env("UH_PROXY_FAULT_FILE", &fault);
        let mut proxy = home.start_as(command).await;
        proxy.until_healthy().await;
        assert!(split(&proxy, &green(10.0)).await.persisted);
        fs::write(&fault, point).unwrap();
        let broken = proxy.client.split(&app(), &green(20.0)).await;
        assert!(broken.is_err(), "{point}: it was acknowledged");
        assert!(proxy.ended().await.code().is_none(), "{point}: it was not killed");
        let proxy = home.start().await;
        let weight = proxy.service().await.split.unwrap().weight;
        assert!(allowed.contains(&weight), "{point}: {weight} %");
    }
}
