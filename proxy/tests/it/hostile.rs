//! Hostile local users: what they put in the way, and what they send.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::harness::{Home, SampleApp, app, cli, pair, soon, until};
use crate::wire::Wire;

/// Starts it, and expects it to fail with this message.
async fn refused(home: &Home, wanted: &str) {
    let mut command = home.command();
    command.stderr(Stdio::piped());
    let output = soon("the end", tokio::process::Command::from(command).output()).await.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(wanted), "{message}");
}

#[tokio::test]
async fn what_is_not_a_stale_socket_of_ours_is_left_alone() {
    let home = Home::new("127.0.0.1:9", "127.0.0.1:9");
    fs::create_dir(home.path("run")).unwrap();
    fs::set_permissions(home.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let precious = home.path("precious");
    fs::write(&precious, "mine").unwrap();
    symlink(&precious, home.socket()).unwrap();
    refused(&home, "isn't a socket, so it was left in place").await;
    fs::remove_file(home.socket()).unwrap();
    // A link to another socket, dead or alive, is still a link.
    let other = UnixListener::bind(home.path("other.sock")).unwrap();
    symlink(home.path("other.sock"), home.socket()).unwrap();
    refused(&home, "isn't a socket, so it was left in place").await;
    fs::remove_file(home.socket()).unwrap();
    // At the path of the new socket, a link is removed, not followed.
    symlink(&precious, home.path("run/admin.sock.new")).unwrap();
    let proxy = home.start().await;
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
    drop((proxy, other));
    for mode in [0o777, 0o770, 0o1777] {
        fs::set_permissions(home.path("run"), fs::Permissions::from_mode(mode)).unwrap();
        refused(&home, "other users can write to").await;
    }
}

#[tokio::test]
async fn a_removed_admin_socket_is_recreated_with_its_mode() {
    let (home, proxy, _blue, _green) = pair().await;
    fs::remove_file(home.socket()).unwrap();
    until("the socket is there again", async || home.socket().exists().then_some(())).await;
    assert_eq!(fs::metadata(home.socket()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(cli(&home.socket(), &["switch", "green"]).await.0, 0);
    // uh-proxy may be writing to it right now.
    fs::rename(home.path("run"), home.path("gone")).unwrap();
    until("the directory is there again", async || home.socket().exists().then_some(())).await;
    assert_eq!(fs::metadata(home.path("run")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(cli(&home.socket(), &["switch", "blue"]).await.0, 0);
    home.until_said("the admin socket was removed; recreated it").await;
    // A second uh-proxy is refused as before.
    refused(&home, "another uh-proxy is using the admin socket").await;
    drop(proxy);
}

#[tokio::test]
async fn a_replaced_admin_socket_is_reported_and_left_in_place() {
    let (home, mut proxy, _blue, _green) = pair().await;
    fs::remove_file(home.socket()).unwrap();
    let other = UnixListener::bind(home.socket()).unwrap();
    home.until_said("the admin socket was replaced by another file").await;
    proxy.signal(rustix::process::Signal::TERM);
    proxy.ended().await;
    assert!(home.socket().exists(), "somebody else's socket was removed");
    drop(other);
}

#[tokio::test]
async fn an_operator_gets_through_a_crowd_that_asks_nothing() {
    let (home, _proxy, _blue, _green) = pair().await;
    let mut crowd = tokio::task::JoinSet::new();
    let come = Arc::new(AtomicUsize::new(0));
    for _ in 0..600 {
        let (socket, come) = (home.socket(), Arc::clone(&come));
        crowd.spawn(async move {
            loop {
                if let Ok(mut stream) = UnixStream::connect(&socket).await {
                    come.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.read(&mut [0]).await;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    until("all places are taken", async || (come.load(Ordering::Relaxed) > 300).then_some(())).await;
    for to in ["green", "blue", "green", "blue"] {
        let (code, _, message) = cli(&home.socket(), &["switch", to]).await;
        assert_eq!(code, 0, "{message}");
    }
}

#[tokio::test]
async fn an_access_log_that_is_a_pipe_without_a_reader_is_an_error_at_once() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    assert!(std::process::Command::new("mkfifo").arg(home.path("access.log")).status().unwrap().success());
    refused(&home, "a pipe without a reader").await;
}

#[tokio::test]
async fn nothing_a_client_sends_breaks_a_line_of_a_log_or_becomes_a_label() {
    let blue = SampleApp::start("blue", "1").await;
    for format in ["json", "combined", "timed_combined"] {
        let home = Home::new(blue.address, "127.0.0.1:9");
        let log = home.path("access.log");
        let home = home.server(&format!("access_log = {{ path = {log:?}, format = \"{format}\" }}"));
        let proxy = home.start().await;
        let mut sent = 0;
        for evil in [
            "evil\" 200 0 \"-\" \"x",
            "evil\\\"",
            "evil%0d%0aGET / HTTP/1.1",
            "evil\u{1b}[2J",
            "evil\r\nX-Evil: 1",
            "evil\nX-Evil: 1",
            "evil\u{9b}31m\u{e9}\u{202e}",
            "evil\"},{\"status\":200",
        ] {
            for request in [
                format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: {evil}\r\nReferer: {evil}\r\n\r\n"),
                format!("GET /{evil} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {evil}\r\n\r\n"),
                format!("{evil} / HTTP/1.1\r\nHost: a\r\n\r\n"),
                format!("GET / HTTP/1.1\r\nHost: {evil}\r\n\r\n"),
            ] {
                let mut wire = Wire::connect(proxy.address).await;
                wire.send(request).await;
                let response = wire.response().await;
                assert!(response.header("x-evil").is_none(), "{}", response.head);
                sent += 1;
            }
        }
        let mut huge = Wire::connect(proxy.address).await;
        let _ = huge
            .stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(1 << 20)).as_bytes())
            .await;
        sent += 1;
        assert_eq!(huge.read(false).await.map_or(431, |response| response.status), 431);
        let text = until("all is logged", async || {
            let text = fs::read(&log).ok()?;
            (text.iter().filter(|&&byte| byte == b'\n').count() >= sent).then_some(text)
        })
        .await;
        assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), sent, "a line was broken in two");
        assert!(
            !text.iter().any(|&byte| (byte < b' ' && byte != b'\n') || byte == 0x7f),
            "a control character"
        );
        if format == "json" {
            assert_eq!(home.access_log().len(), sent);
        }
        let metrics = proxy.client.metrics().await.unwrap();
        assert!(!metrics.contains("evil"), "{metrics}");
        assert!(!home.messages().contains('\u{1b}'), "{}", home.messages());
    }
}

#[tokio::test]
async fn no_answer_of_ours_leads_to_a_host_that_a_client_names() {
    let (_home, proxy, _blue, _green) = pair().await;
    let maintenance =
        uh_protocol::request::MaintenanceRequest { on: true, message: None, retry_after_s: None };
    for in_maintenance in [false, true] {
        if in_maintenance {
            proxy.client.maintenance(&app(), &maintenance).await.unwrap();
        }
        for request in [
            "GET /bytes/x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "GET http://evil.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET //evil.example/%2f.. HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\\evil.example HTTP/1.1\r\nHost: evil.example\r\nAccept: text/html\r\n\r\n",
            "CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: evil.example<script>\r\n\r\n",
        ] {
            let mut wire = Wire::connect(proxy.address).await;
            wire.send(request).await;
            let response = wire.response().await;
            assert!(
                response.header("location").is_none() && !(300..400).contains(&response.status),
                "{request}"
            );
            assert!(!response.text().contains("evil.example"), "{}", response.text());
        }
    }
}

#[tokio::test]
async fn a_secret_is_in_the_configuration_alone() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9")
        .service("[services.app.maintenance]\nbypass_header = \"X-Look: a-long-secret\"");
    let proxy = home.start().await;
    cli(&home.socket(), &["maintenance", "on"]).await;
    let mut wire = Wire::connect(proxy.address).await;
    for secret in ["a-long-secret", "a-long-secres"] {
        wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Look: {secret}\r\n\r\n")).await;
        wire.response().await;
    }
    until("both are logged", async || (home.access_log().len() == 2).then_some(())).await;
    fs::write(
        home.path("uh-proxy.toml"),
        home.config().replace("X-Look: a-long-secret", "X-Look a-long-secret"),
    )
    .unwrap();
    let (_, out, err) = cli(&home.socket(), &["reload"]).await;
    let status = cli(&home.socket(), &["status", "--json"]).await.1;
    let log = fs::read_to_string(home.path("access.log")).unwrap();
    for text in [out, err, status, log, home.messages(), proxy.client.metrics().await.unwrap()] {
        assert!(!text.contains("a-long-secre"), "{text}");
    }
}

#[tokio::test]
async fn foreign_text_does_not_move_the_cursor_of_a_terminal() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address);
    let mut proxy = home.start().await;
    let message = Some("all is well".to_owned());
    let order = uh_protocol::request::MaintenanceRequest { on: true, message, retry_after_s: None };
    proxy.client.maintenance(&app(), &order).await.unwrap();
    proxy.kill();
    // A call with such a message is refused, but a file written by another program isn't.
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(home.state_file()).unwrap()).unwrap();
    state.as_object_mut().unwrap().remove("checksum");
    state["services"]["app"]["maintenance"]["message"] = "\u{1b}[2Jall is well\u{9b}1A\u{7f}".into();
    fs::write(home.state_file(), state.to_string()).unwrap();
    let _proxy = home.start().await;
    for args in [&["status"][..], &["status", "--json"]] {
        let (code, out, err) = cli(&home.socket(), args).await;
        assert!(code == 0 && out.contains("all is well"), "{out}{err}");
        for text in [out, err, home.messages()] {
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
    }
}
