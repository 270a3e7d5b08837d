//! Starting and stopping.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

use crate::harness::{Home, SampleApp, Scripted, Then, cli, pair, soon, until};
use crate::wire::{Wire, get};

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for key in ["listen", "metrics"] {
        let home = Home::new("127.0.0.1:9", "127.0.0.1:9");
        let mut text = home.config();
        if key == "listen" {
            text = text.replace("listen = [\"127.0.0.1:0\"]", &format!("listen = [\"{address}\"]"));
        } else {
            text = text.replace("metrics = \"127.0.0.1:0\"", &format!("metrics = \"{address}\""));
        }
        fs::write(home.path("c.toml"), text).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_uh-proxy"));
        command.args(["run", "--config"]).arg(home.path("c.toml"));
        let output = soon("the end", command.output()).await.unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        for part in [address.to_string(), format!("server.{key}"), "in use".to_owned()] {
            assert!(message.contains(&part), "{part:?} is missing in {message:?}");
        }
        assert!(!home.socket().exists(), "an admin socket was left behind");
        let (exit, _, message) =
            cli(&home.socket(), &["check", "--config", home.path("c.toml").to_str().unwrap()]).await;
        assert_eq!(exit, 1);
        assert!(message.contains(&address.to_string()), "{message}");
    }
}

#[tokio::test]
async fn check_passes_for_a_running_front_door_and_names_every_mistake() {
    let (home, proxy, _blue, _green) = pair().await;
    let text =
        home.config().replace("listen = [\"127.0.0.1:0\"]", &format!("listen = [\"{}\"]", proxy.address));
    fs::write(home.path("same.toml"), text).unwrap();
    let (exit, stdout, stderr) =
        cli(&home.socket(), &["check", "--config", home.path("same.toml").to_str().unwrap()]).await;
    assert_eq!(exit, 0, "{stdout}{stderr}");
    let text = home.config().replace("active = \"blue\"", "active = \"red\"\ncolour = 1");
    fs::write(home.path("bad.toml"), text).unwrap();
    let (exit, _, stderr) =
        cli(&home.socket(), &["check", "--config", home.path("bad.toml").to_str().unwrap()]).await;
    assert_eq!(exit, 1);
    assert!(stderr.contains("services.app.active") && stderr.contains("services.app.colour"), "{stderr}");
    let text = home.config().replace("endpoints = [\"127", "endpoints = [\"no-such-host.invalid:1\", \"127");
    fs::write(home.path("dns.toml"), text).unwrap();
    let (exit, _, stderr) =
        cli(&home.socket(), &["check", "--config", home.path("dns.toml").to_str().unwrap()]).await;
    assert_eq!(exit, 1);
    assert!(stderr.contains("no-such-host.invalid"), "{stderr}");
}

#[tokio::test]
async fn sigterm_answers_what_is_in_flight_and_ends_at_once_after_that() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let mut idle = Wire::connect(proxy.address).await;
    assert_eq!(idle.get("/").await.status, 200);
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=1000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    assert!(idle.is_closed().await, "an idle connection was kept");
    let refused =
        until("connections are refused", async || tokio::net::TcpStream::connect(proxy.address).await.err());
    refused.await;
    assert!(proxy.status().await.proxy.stopping);
    let response = slow.response().await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    drop(slow);
    assert_eq!(proxy.ended().await.code(), Some(0));
    // Its timeout is 30 s; it didn't wait that long.
    assert!(start.elapsed() < Duration::from_secs(15));
    assert!(!home.socket().exists(), "the admin socket was left behind");
    assert_eq!(home.access_log().len(), 2, "log lines were lost");
    assert!(home.messages().contains("nothing was cut"), "{}", home.messages());
}

#[tokio::test]
async fn sigterm_with_nothing_in_flight_ends_at_once() {
    let (_home, mut proxy, _blue, _green) = pair().await;
    let _idle = Wire::connect(proxy.address).await;
    proxy.signal(Signal::INT);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let (_home, mut proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    until("it is stopping", async || proxy.status().await.proxy.stopping.then_some(())).await;
    assert!(proxy.is_running());
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    assert!(start.elapsed() < Duration::from_secs(15), "it sat out its timeout");
}

#[tokio::test]
async fn at_the_shutdown_timeout_what_is_left_is_cut_and_counted() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9").server("shutdown_timeout = \"300ms\"");
    let mut proxy = home.start().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    proxy.signal(Signal::TERM);
    assert_eq!(slow.response().await.status, 503);
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(home.messages().contains("cut=1"), "{}", home.messages());
    assert_eq!(home.access_log()[0]["termination"], "STOP");
}

#[tokio::test]
async fn a_failing_disk_blocks_no_switch_and_is_reported() {
    let (home, proxy, _blue, _green) = pair().await;
    // The directory is gone: every write fails, as on a full or read-only disk.
    let (state, away) = (home.path("state"), home.path("away"));
    fs::rename(&state, &away).unwrap();
    let switched = proxy.switch("green").await;
    assert!(switched.changed && !switched.persisted);
    assert!(switched.persist_error.is_some());
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some("green"));
    assert!(!proxy.status().await.persisted);
    assert!(proxy.client.metrics().await.unwrap().contains("uh_proxy_state_persisted 0"));
    let (exit, stdout, _) = cli(&home.socket(), &["switch", "blue"]).await;
    assert_eq!(exit, 5, "{stdout}");
    assert!(stdout.contains("not saved to disk"), "{stdout}");
    fs::rename(&away, &state).unwrap();
    until("it is written after all", async || proxy.status().await.persisted.then_some(())).await;
    let text = fs::read_to_string(home.state_file()).unwrap();
    assert!(text.contains("\"active\": \"blue\""), "{text}");
    home.until_said("the state file is saved again").await;
}

#[tokio::test]
async fn a_full_disk_blocks_no_switch() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address);
    let config = home.command();
    drop(config);
    fs::create_dir(home.path("state")).unwrap();
    // A file system of one page in its own mount namespace, filled completely before the switch.
    let script = "mount -t tmpfs -o size=4k,mode=0755 tmpfs \"$1\" || exit 77; echo x > \"$1/full\"; exec \"$2\" run --config \"$3\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", script, "sh"]);
    command.arg(home.path("state")).arg(env!("CARGO_BIN_EXE_uh-proxy")).arg(home.path("uh-proxy.toml"));
    let log = fs::File::create(home.log()).unwrap();
    command.stdout(std::process::Stdio::null()).stderr(log);
    let probe = std::process::Command::new("unshare").args(["--mount", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no right to make a mount namespace here");
        return;
    }
    let proxy = home.start_as(command).await;
    proxy.until_healthy().await;
    let switched = proxy.switch("green").await;
    assert!(switched.changed && !switched.persisted, "{switched:?}");
    assert!(switched.persist_error.unwrap().contains("No space left"));
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some("green"));
}

#[tokio::test]
async fn half_a_request_does_not_hold_up_the_end() {
    let (_home, mut proxy, _blue, _green) = pair().await;
    let mut half = Wire::connect(proxy.address).await;
    half.send("GET / HTTP/1.1\r\nHo").await;
    // An empty line after a request is no new request.
    let mut stray = Wire::connect(proxy.address).await;
    assert_eq!(stray.get("/").await.status, 200);
    stray.send("\r\n").await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    assert!(stray.is_closed().await);
    assert_eq!(half.response().await.status, 408);
    drop(half);
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "it waited for the whole header_timeout");
}

#[tokio::test]
async fn a_log_without_a_reader_delays_nothing() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    for reader in ["gone", "stuck"] {
        let home = Home::new(blue.address, green.address);
        let (read, write) = std::io::pipe().unwrap();
        let mut command = home.command();
        command.stderr(write);
        let mut proxy = home.start_as(command).await;
        proxy.until_healthy().await;
        let kept = if reader == "gone" { None } else { Some(read) };
        // Far more lines than a pipe holds.
        for round in 0..400 {
            proxy.switch(if round % 2 == 0 { "green" } else { "blue" }).await;
        }
        assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some("blue"));
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.ended().await.code(), Some(0), "its log's reader is {reader}");
        drop(kept);
    }
}

#[tokio::test]
async fn an_answer_that_came_while_we_were_stopped_is_no_timeout() {
    // It answers once uh-proxy is stopping.
    let answers = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&answers);
    let app = Scripted::start(move |_, mut stream| {
        let told = Arc::clone(&told);
        async move {
            told.acquire().await.unwrap().forget();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            (stream, Then::KeepAlive)
        }
    })
    .await;
    let timeouts = "[services.app.timeouts]\nread = \"5s\"\nclient = \"5s\"\n\
                    [services.app.health]\nenabled = false";
    let home = Home::new(app.address, "127.0.0.1:9").service(timeouts);
    let proxy = home.start().await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(get("/")).await;
        waiting.push(wire);
    }
    until("all are with the app", async || (app.seen() == 5).then_some(())).await;
    proxy.signal(Signal::STOP);
    answers.add_permits(5);
    tokio::time::sleep(Duration::from_secs(6)).await;
    proxy.signal(Signal::CONT);
    for wire in &mut waiting {
        assert_eq!(wire.response().await.status, 200);
    }
    // A request that is really late is still late.
    let mut late = Wire::connect(proxy.address).await;
    assert_eq!(late.get("/").await.status, 504);
}
