//! What a rule sets, and what it leaves to its service.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::{echo, home, with_rules};
use crate::harness::{Scripted, Then, until};
use crate::wire::{Wire, get};

/// An app that never answers.
async fn silent() -> Scripted {
    Scripted::start(|_, stream: TcpStream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        (stream, Then::Close)
    })
    .await
}

#[tokio::test]
async fn a_path_has_its_own_read_timeout() {
    let app = silent().await;
    let service = "[services.app.timeouts]\nread = \"400ms\"";
    let rules = "[[paths]]\nmatch = \"/slow\"\ntimeouts = { read = \"1200ms\" }\n";
    let home = home(&app, service, rules);
    let proxy = home.start().await;
    for (path, least, most) in [("/other", 400, 1200), ("/slow", 1200, 10_000)] {
        let mut wire = Wire::connect(proxy.address).await;
        let start = Instant::now();
        assert_eq!(wire.get(path).await.status, 504);
        let took = start.elapsed().as_millis();
        assert!((least..most).contains(&took), "{path}: {took} ms");
    }
}

#[tokio::test]
async fn a_path_can_be_left_out_of_the_access_log() {
    let app = echo().await;
    let (home, proxy) = with_rules(&app, "[[paths]]\nmatch = \"/quiet\"\naccess_log = false\n").await;
    let mut wire = Wire::connect(proxy.address).await;
    for path in ["/first", "/quiet", "/quiet/x?y", "/quieter", "/last"] {
        wire.send(get(path)).await;
        assert_eq!(wire.response().await.status, 200);
    }
    let logged = until("the last request is logged", async || {
        let log = home.access_log();
        log.iter().any(|line| line["path"] == "/last").then_some(log)
    })
    .await;
    let paths: Vec<&str> = logged.iter().filter_map(|line| line["path"].as_str()).collect();
    assert_eq!(paths, ["/first", "/quieter", "/last"]);
}
