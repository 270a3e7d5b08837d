//! The conformance test suite h2spec, where it is installed: see docs/testing.md.

use std::net::SocketAddr;

use tokio::process::Command;

use super::clients::{H2C, h2c};
use crate::harness::Home;
use crate::recorder::{End, OK, Recorder};
use crate::tls::certificates::{Authority, address, home};

fn ok(_: &str) -> (Vec<u8>, End) {
    (OK.to_vec(), End::Keep)
}

/// Runs the suite, and returns the last line of its report and the names of the tests that failed; `None`: it isn't
/// installed.
async fn h2spec(address: SocketAddr, more: &[&str]) -> Option<(String, Vec<String>)> {
    let port = address.port().to_string();
    let mut command = Command::new("h2spec");
    command.args(["-h", "127.0.0.1", "-p", &port, "-o", "3", "-S"]).args(more).kill_on_drop(true);
    let output = match command.output().await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = report.split_once("Failures:").map_or("", |(_, failures)| failures);
    let failed = failed.lines().filter_map(|line| Some(line.trim().strip_prefix('×')?.trim().to_owned()));
    let failed = failed.collect();
    let summary = report.lines().rev().find(|line| line.contains(" tests, "))?.to_owned();
    Some((summary, failed))
}

/// A backend that reads each request to its end: an early answer may hide what follows it.
async fn check(address: SocketAddr, more: &[&str]) {
    let Some((summary, failed)) = h2spec(address, more).await else {
        println!("skipped: h2spec isn't installed (see docs/testing.md)");
        return;
    };
    println!("{summary}");
    // With the strict tests. One of them is skipped by the suite itself.
    assert!(summary.starts_with("147 tests, 146 passed, 1 skipped, 0 failed"), "{summary}\n{failed:#?}");
}

#[tokio::test]
async fn h2spec_is_satisfied_without_tls() {
    let recorder = Recorder::start(ok).await;
    let home = Home::new(recorder.address, "127.0.0.1:9").server(H2C);
    let proxy = home.start().await;
    check(h2c(&proxy).await, &[]).await;
}

#[tokio::test]
async fn h2spec_is_satisfied_over_tls() {
    let recorder = Recorder::start(ok).await;
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let home = home((recorder.address, recorder.address), &authority, &[("app", &pair)], "", "");
    let proxy = home.start().await;
    check(address(&proxy).await, &["-t", "-k"]).await;
}
