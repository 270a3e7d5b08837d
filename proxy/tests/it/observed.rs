//! Metrics and access logs.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use uh_protocol::request::SwitchRequest;

use crate::harness::{Home, SampleApp, app, backend, cli, pair, soon, until};
use crate::wire::{Wire, get};

async fn scrape(address: std::net::SocketAddr) -> String {
    let mut wire = Wire::connect(address).await;
    let response = wire.get("/metrics").await;
    assert_eq!(response.status, 200);
    response.text()
}

#[tokio::test]
async fn the_metrics_tell_what_happened() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    for path in ["/", "/", "/status/404"] {
        wire.get(path).await;
    }
    wire.send("BREW / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    wire.response().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    // A tunnel is counted, but its lifetime isn't a latency.
    let mut socket = Wire::connect(proxy.address).await;
    socket.send(crate::exchanges::WEBSOCKET).await;
    assert_eq!(socket.response().await.status, 101);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    drop(socket);
    until("the tunnel is over", async || (proxy.backend("blue").await.tunnels == 0).then_some(())).await;
    proxy.switch("green").await;
    let _ = proxy
        .client
        .switch(&app(), &SwitchRequest { expect_generation: Some(9), ..SwitchRequest::to(backend("blue")) })
        .await;
    cli(&home.socket(), &["drain", "blue", "--timeout", "10ms"]).await;
    let text = scrape(proxy.metrics).await;
    for line in [
        "uh_proxy_backend_active{service=\"app\",backend=\"blue\"} 0",
        "uh_proxy_backend_active{service=\"app\",backend=\"green\"} 1",
        "uh_proxy_backend_healthy{service=\"app\",backend=\"green\"} 1",
        "uh_proxy_backend_requests_in_flight{service=\"app\",backend=\"blue\"} 1",
        "uh_proxy_backend_tunnels{service=\"app\",backend=\"blue\"} 0",
        "uh_proxy_backend_connections{service=\"app\",backend=\"blue\",state=\"active\"} 1",
        "uh_proxy_backend_connections{service=\"app\",backend=\"blue\",state=\"idle\"} 0",
        "uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"200\",method=\"GET\"} 2",
        "uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"404\",method=\"GET\"} 1",
        "method=\"OTHER\"} 1",
        "uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"101\",method=\"GET\"} 1",
        "uh_proxy_request_duration_seconds_count{service=\"app\",backend=\"blue\"} 5",
        "uh_proxy_request_duration_seconds_bucket{service=\"app\",backend=\"blue\",le=\"1\"} 5",
        "uh_proxy_upstream_connect_duration_seconds_count{service=\"app\",backend=\"blue\"}",
        "uh_proxy_retries_total{service=\"app\",backend=\"blue\",reason=\"stale_connection\"} 0",
        "result=\"switched\"",
        "result=\"refused\"",
        "uh_proxy_switch_duration_seconds_count{service=\"app\"} 1",
        "uh_proxy_last_switch_timestamp_seconds{service=\"app\"} 1",
        "uh_proxy_drain_duration_seconds_count{backend=\"blue\",service=\"app\"} 1",
        "uh_proxy_drain_cut_total{service=\"app\",backend=\"blue\"} 0",
        "uh_proxy_client_connections{state=\"active\"} 1",
        "uh_proxy_state_persisted 1",
        "uh_proxy_build_info{version=\"0.1.0\"} 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert_eq!(
        Wire::connect(proxy.metrics).await.get("/v1/status").await.status,
        404,
        "the admin API is on the metrics listener"
    );
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    let (_home, proxy, _blue, _green) = pair().await;
    Wire::connect(proxy.address).await.get("/").await;
    proxy.switch("green").await;
    let text = scrape(proxy.metrics).await;
    let mut promtool = tokio::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("promtool is needed: .ci/needs test installs it");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let output = soon("promtool", promtool.wait_with_output()).await.unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[tokio::test]
async fn each_exchange_is_one_line_of_json() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET /bytes/7?q=%22 HTTP/1.1\r\nHost: app.test\r\nUser-Agent: a\"b\\\x01c\r\nX-Request-Id: id-1\r\n\r\n").await;
    let refused = wire.response().await;
    assert_eq!(refused.status, 400, "a control byte in a field");
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(
        "GET /bytes/7?q=%22 HTTP/1.1\r\nHost: app.test\r\nUser-Agent: a\"b\\c\r\nX-Request-Id: id-1\r\n\r\n",
    )
    .await;
    wire.response().await;
    let lines =
        until("both lines are there", async || Some(home.access_log()).filter(|lines| lines.len() == 2))
            .await;
    // Lines of different workers may be out of order.
    let of = |status: u16| lines.iter().find(|line| line["status"] == status).unwrap();
    assert_eq!(of(400)["termination"], "BR");
    let line = of(200);
    for (key, value) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("host", "app.test"),
        ("path", "/bytes/7?q=%22"),
        ("service", "app"),
        ("backend", "blue"),
        ("version", "1.0.0"),
        ("request_id", "id-1"),
        ("user_agent", "a\"b\\c"),
        ("termination", "-"),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &7.into()));
    assert!(line["request_time"].is_number() && line["upstream_time"].is_number());
}

#[tokio::test]
async fn the_guides_awk_pipeline_reads_timed_combined() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    let path = home.path("timed.log");
    let home = home.server(&format!("access_log = {{ path = {path:?}, format = \"timed_combined\" }}"));
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..3 {
        wire.get("/slow?ms=20").await;
    }
    let script = format!("awk '{{print $NF}}' {} | grep -E '^[0-9]' | sort -n | wc -l", path.display());
    until("the pipeline sees three latencies", async || {
        let output = tokio::process::Command::new("sh").args(["-c", &script]).output().await.unwrap();
        (String::from_utf8_lossy(&output.stdout).trim() == "3").then_some(())
    })
    .await;
    let text = fs::read_to_string(&path).unwrap();
    let line = text.lines().next().unwrap();
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains("] \"GET /slow?ms=20 HTTP/1.1\" 200 "), "{line}");
}
