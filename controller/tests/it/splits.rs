//! Deploys while a split sends a share of the clients to the standby: that one serves, so it isn't replaced or stopped.

use crate::harness::{Ran, Stage};

fn proxy(stage: &Stage, args: &[&str]) {
    let ran = Ran::of(stage.proxy_cli(args).output().unwrap());
    assert_eq!(ran.code, Some(0), "uh-proxy {args:?}:\n{}", ran.text);
}

#[test]
fn a_backend_with_a_share_of_the_clients_is_not_replaced_or_stopped() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    assert_eq!(stage.served(), "green 1.0.1");
    proxy(&stage, &["split", "blue", "10%"]);
    for args in
        [&["blue-green", "--version", "1.0.2"][..], &["blue-green", "--version", "1.0.2", "--dry-run"]]
    {
        stage
            .expect(1, args)
            .says("10 % of the clients of app go to blue by a split; nothing was changed")
            .says("uh-proxy split off --service app");
    }
    stage
        .expect(1, &["retire", "--now"])
        .says("blue gets 10 % of the traffic of app by a split: end the split first");
    proxy(&stage, &["split", "off"]);
    stage.deploy("1.0.2");
    assert_eq!(stage.served(), "blue 1.0.2");
}
