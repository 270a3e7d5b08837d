//! Signals: those sent by scripts and logrotate files for nginx must not end the process.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Home, SampleApp, pair, until};
use crate::wire::{Wire, get};

#[tokio::test]
async fn usr1_reopens_the_access_log_and_cuts_nothing() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/").await.status, 200);
    until("the line is written", async || (home.access_log().len() == 1).then_some(())).await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=1000")).await;
    fs::rename(home.path("access.log"), home.path("access.log.1")).unwrap();
    proxy.signal(Signal::USR1);
    until("there is a new log", async || home.path("access.log").exists().then_some(())).await;
    home.until_said("access log reopened").await;
    assert_eq!(wire.get("/").await.status, 200);
    assert_eq!(slow.response().await.status, 200);
    until("both lines are in the new file", async || (home.access_log().len() == 2).then_some(())).await;
    assert!(proxy.is_running());
}

#[tokio::test]
async fn usr1_without_a_log_file_is_logged() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, app.address).server("access_log = { format = \"off\" }");
    let mut proxy = home.start().await;
    proxy.signal(Signal::USR1);
    home.until_said("isn't a file").await;
    assert!(proxy.is_running());
}

#[tokio::test]
async fn a_hangup_reopens_the_access_log_whatever_the_file_says() {
    let (home, mut proxy, _blue, _green) = pair().await;
    fs::rename(home.path("access.log"), home.path("access.log.1")).unwrap();
    home.write_config(&home.config().replace("threads = 2", "threds = 2"));
    proxy.signal(Signal::HUP);
    home.until_said("server.threds").await;
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
    until("the line is in the new file", async || (home.access_log().len() == 1).then_some(())).await;
    assert!(proxy.is_running());
}

#[tokio::test]
async fn quit_is_the_graceful_stop() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=500")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    proxy.signal(Signal::QUIT);
    let response = slow.response().await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(home.messages().contains("nothing was cut"), "{}", home.messages());
}

#[tokio::test]
async fn winch_is_ignored_with_a_line_and_usr2_starts_nothing_while_stopping() {
    let (home, mut proxy, _blue, _green) = pair().await;
    proxy.signal(Signal::WINCH);
    home.until_said("SIGWINCH").await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=1000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    proxy.signal(Signal::TERM);
    until("it is stopping", async || proxy.status().await.proxy.stopping.then_some(())).await;
    for harmless in [Signal::USR2, Signal::WINCH, Signal::USR1, Signal::HUP] {
        proxy.signal(harmless);
    }
    assert_eq!(slow.response().await.status, 200, "a signal without meaning has cut a request");
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_access_log_without_a_reader_delays_no_stop_and_lost_lines_are_counted() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, app.address).server("access_log = { path = \"-\", format = \"json\" }");
    let (read, write) = std::io::pipe().unwrap();
    let mut command = home.command();
    command.stdout(write);
    let mut proxy = home.start_as(command).await;
    let mut wire = Wire::connect(proxy.address).await;
    // Some 250 bytes a line: several times what a pipe holds.
    for _ in 0..1500 {
        assert_eq!(wire.get("/").await.status, 200);
    }
    drop(wire);
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "it waited {took:?} for a log that nobody reads");
    let said = home.messages();
    assert!(said.contains("nothing was cut") && !said.contains("in-flight requests were cut"), "{said}");
    let lost = said.split("lines=").nth(1).and_then(|rest| rest.trim().parse::<u64>().ok());
    let lost = lost.or_else(|| {
        let rest = said.split("lines=").nth(1)?;
        rest.split_whitespace().next()?.parse().ok()
    });
    assert!(lost.is_some_and(|lost| (100..=1500).contains(&lost)), "{said}");
    drop(read);
}
