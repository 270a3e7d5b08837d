//! The admin socket: as curl sees it, and as unauthorised users see it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use uh_protocol::request::DrainRequest;

use crate::harness::{Home, SampleApp, app, backend, cli, pair, soon, until};
use crate::wire::{Wire, get};

/// Runs curl against the admin socket; returns the status and the body.
async fn curl(home: &Home, args: &[&str]) -> (u16, serde_json::Value) {
    let mut command = tokio::process::Command::new("curl");
    command.args(["-sS", "-w", "\n%{http_code}", "--unix-socket"]).arg(home.socket()).args(args);
    let output = soon("curl", command.stdin(Stdio::null()).output()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.trim_end().rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn an_operator_with_only_curl_can_read_the_status_and_switch() {
    let (home, proxy, _blue, _green) = pair().await;
    let (status, body) = curl(&home, &["http://uh/v1/status"]).await;
    assert_eq!((status, &body["services"][0]["active"]), (200, &"blue".into()));
    assert_eq!(body["proxy"]["pid"], proxy.pid());
    let switch = "http://uh/v1/services/app/switch";
    let (status, body) = curl(&home, &["-d", "{\"to\":\"green\",\"expect_active\":\"blue\"}", switch]).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&body["changed"], &body["persisted"], &body["generation"]),
        (&true.into(), &true.into(), &1.into())
    );
    let (status, body) = curl(&home, &["-d", "{\"to\":\"green\",\"expect_active\":\"blue\"}", switch]).await;
    assert_eq!((status, &body["code"]), (409, &"conflict".into()));
    assert!(body["detail"].as_str().unwrap().contains("green"), "{body}");
}

#[tokio::test]
async fn a_mistake_in_a_call_is_reported() {
    let (home, _proxy, _blue, _green) = pair().await;
    let switch = "http://uh/v1/services/app/switch";
    let large = format!("{{\"to\":\"{}\"}}", "x".repeat(100_000));
    for (args, status, code) in [
        (vec!["-d", "{", switch], 400, "invalid_request"),
        (vec!["-d", "{}", switch], 422, "invalid_request"),
        (vec!["-d", "{\"to\":\"green\",\"speed\":1}", switch], 422, "invalid_request"),
        (vec!["-d", "{\"to\":\"NO\"}", switch], 422, "invalid_request"),
        (vec!["-d", &large, switch], 413, "invalid_request"),
        (vec!["-d", "{\"to\":\"red\"}", switch], 404, "unknown_backend"),
        (vec!["-d", "{\"to\":\"green\"}", "http://uh/v1/services/other/switch"], 404, "unknown_service"),
        (vec![switch], 405, "method_not_allowed"),
        (vec!["http://uh/v2/status"], 404, "unknown_call"),
        (vec!["-X", "POST", "http://uh/v1/services/app/backends/blue/withdraw"], 409, "backend_active"),
        (
            vec!["-d", "{\"to\":1}", "http://uh/v1/services/app/backends/green/withdraw"],
            422,
            "invalid_request",
        ),
        (vec!["http://uh/v1/services/app/backends/green/withdraw"], 405, "method_not_allowed"),
        (vec!["-X", "DELETE", "http://uh/v1/services/app/backends/red"], 404, "unknown_backend"),
        (
            vec![
                "-d",
                "{\"timeout_ms\":99999999999,\"cut\":false}",
                "http://uh/v1/services/app/backends/green/drain",
            ],
            422,
            "invalid_request",
        ),
        (
            vec!["-d", "{\"timeout_ms\":1}", "http://uh/v1/services/app/backends/blue/drain"],
            409,
            "backend_active",
        ),
    ] {
        let (got, body) = curl(&home, &args).await;
        let call: Vec<String> = args.iter().map(|arg| arg.chars().take(60).collect()).collect();
        assert_eq!((got, &body["code"]), (status, &code.into()), "{call:?}: {body}");
    }
}

#[tokio::test]
async fn the_command_line_has_one_exit_code_for_each_outcome() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let socket = home.socket();
    for (args, exit) in [
        (vec!["status"], 0),
        (vec!["status", "--json"], 0),
        (vec!["switch", "green"], 0),
        (vec!["switch", "green"], 0),
        (vec!["switch", "blue", "--expect-active", "blue"], 3),
        (vec!["switch", "red"], 1),
        (vec!["switch"], 2),
        (vec!["switch", "Not A Name"], 2),
        (vec!["drain", "blue", "--timeout", "5s"], 0),
        (vec!["drain", "green"], 3),
        (vec!["drain", "blue", "--timeout", "5"], 2),
        (vec!["switch", "blue", "--wait-drain", "5s", "--json"], 0),
        (vec!["maintenance", "on", "--retry-after", "0"], 1),
        (vec!["maintenance", "on"], 0),
        (vec!["maintenance", "off", "--json"], 0),
        (vec!["reload"], 0),
        (vec!["nonsense"], 2),
    ] {
        let (got, stdout, stderr) = cli(&socket, &args).await;
        assert_eq!(got, exit, "{args:?}: {stdout}{stderr}");
        if args.contains(&"--json") {
            serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
        }
    }
    let (exit, stdout, _) =
        cli(&socket, &["backend", "set", "green", "--endpoint", "127.0.0.1:9", "--version", "7"]).await;
    assert_eq!((exit, stdout.trim()), (0, "app: green is at 127.0.0.1:9, version 7"));
    proxy.kill();
    let (exit, _, stderr) = cli(&socket, &["status"]).await;
    assert_eq!(exit, 4, "{stderr}");
    assert!(stderr.contains(socket.to_str().unwrap()), "{stderr}");
}

#[tokio::test]
async fn a_switch_waits_for_a_drain_and_reports_if_it_did_not_end() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let (exit, stdout, _) = cli(&home.socket(), &["switch", "green", "--wait-drain", "100ms"]).await;
    assert_eq!(exit, 1, "{stdout}");
    assert!(stdout.contains("1 requests and 0 tunnels are left"), "{stdout}");
}

#[tokio::test]
async fn only_its_owner_gets_at_the_socket() {
    let (home, proxy, _blue, _green) = pair().await;
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(home.socket()), 0o600);
    assert_eq!(mode(home.path("run")), 0o700);
    drop(proxy);
}

#[tokio::test]
async fn a_user_who_is_not_listed_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9").server("admin_users = [12345]");
    let proxy = home.start().await;
    fs::set_permissions(home.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    for (user, status) in [("12345", "200"), ("65534", "403")] {
        let mut command = tokio::process::Command::new("setpriv");
        command
            .args(["--reuid", user, "--regid", user, "--clear-groups"])
            .args(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"])
            .arg(home.socket())
            .arg("http://uh/v1/status");
        let output = soon("curl", command.output()).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), status, "user {user}");
    }
    home.until_said("uid=65534").await;
    drop(proxy);
}

#[tokio::test]
async fn a_second_front_door_on_the_same_socket_or_state_is_refused() {
    let (home, mut proxy, blue, _green) = pair().await;
    let refused = |home: &Home, wanted: &'static str| {
        let mut command = home.command();
        command.stderr(Stdio::piped());
        async move {
            let output =
                soon("the second one", tokio::process::Command::from(command).output()).await.unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{message}");
            assert!(message.contains(wanted), "{message}");
        }
    };
    refused(&home, "another uh-proxy is using the admin socket").await;
    let inode = fs::metadata(home.socket()).unwrap().ino();
    let state = format!("state_file = {:?}", home.state_file());
    let other = Home::new(blue.address, "127.0.0.1:9").server(&state.replace("state_file", "#"));
    let text =
        other.config().replace(other.state_file().to_str().unwrap(), home.state_file().to_str().unwrap());
    fs::write(other.path("other.toml"), text).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_uh-proxy"));
    command.args(["run", "--config"]).arg(other.path("other.toml"));
    let output = soon("the third one", command.output()).await.unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("another uh-proxy is using the state file"), "{message}");
    assert_eq!(fs::metadata(home.socket()).unwrap().ino(), inode, "the first one's socket was replaced");
    assert!(proxy.is_running());
    assert_eq!(proxy.status().await.proxy.pid, proxy.pid());
    // After kill -9, its socket is left behind and is found to be dead.
    proxy.kill();
    assert!(home.socket().exists());
    let proxy = home.start().await;
    drop(proxy);
    // A file that isn't a socket is never replaced.
    let _ = fs::remove_file(home.socket());
    fs::write(home.socket(), "precious").unwrap();
    refused(&home, "isn't a socket").await;
    assert_eq!(fs::read(home.socket()).unwrap(), b"precious");
    // Neither is a live socket of another program.
    fs::remove_file(home.socket()).unwrap();
    let _other = UnixListener::bind(home.socket()).unwrap();
    refused(&home, "another uh-proxy is using the admin socket").await;
}

#[tokio::test]
async fn idle_and_garbled_callers_do_not_keep_others_out() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut idle = Vec::new();
    for round in 0..200 {
        let mut stream = UnixStream::connect(home.socket()).await.unwrap();
        if round % 2 == 0 {
            stream.write_all(b"\0\x01GET GARBAGE").await.unwrap();
        }
        idle.push(stream);
    }
    assert!(proxy.switch("green").await.changed);
    // They are closed when their time is up.
    let mut last = idle.pop().unwrap();
    let mut rest = Vec::new();
    soon("the idle caller's end", last.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn a_switch_is_carried_out_and_logged_however_its_caller_ends() {
    let (home, proxy, _blue, _green) = pair().await;
    let call = |to: &str| {
        let body = format!("{{\"to\":\"{to}\"}}");
        format!(
            "POST /v1/services/app/switch HTTP/1.1\r\nHost: uh\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // Callers that leave at any moment: before their call is read, while the state is written, after the reply.
    for round in 0..60 {
        let mut gone = UnixStream::connect(home.socket()).await.unwrap();
        gone.write_all(call(if round % 2 == 0 { "green" } else { "blue" }).as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_micros(100 * round)).await;
        drop(gone);
    }
    let generation = until("every switch that was made is in the audit log", async || {
        let generation = proxy.status().await.generation;
        let logged = home.messages().lines().filter(|line| line.contains("changed=true")).count();
        (u64::try_from(logged).unwrap() == generation).then_some(generation)
    })
    .await;
    assert!(generation > 5, "hardly any switch was made");
}

#[tokio::test]
async fn a_drain_ends_with_its_caller() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    proxy.switch("green").await;
    let waiting = async |count: u32| {
        until("as many drains wait", async || {
            let metrics = proxy.client.metrics().await.ok()?;
            metrics.contains(&format!("uh_proxy_drains_waiting {count}\n")).then_some(())
        })
        .await;
    };
    let client = proxy.client.clone();
    let order = DrainRequest { timeout_ms: Some(60_000), cut: Some(true) };
    let drain = tokio::spawn(async move { client.drain(&app(), &backend("blue"), &order).await });
    waiting(1).await;
    drain.abort();
    waiting(0).await;
    assert_eq!(proxy.backend("blue").await.requests_in_flight, 1, "it was cut for nobody");
}
