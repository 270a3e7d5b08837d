//! What the app learns about its clients, behind untrusted peers and behind trusted proxies.

use crate::harness::{Home, Proxy, until};
use crate::recorder::{End, OK, Recorder, Script};
use crate::wire::Wire;

const LOOPBACK: &str = "trusted_proxies = [\"127.0.0.0/8\", \"::1\", \"10.0.0.0/8\"]";

async fn before(server: &str, script: Script) -> (Home, Proxy, Recorder) {
    let recorder = Recorder::start(script).await;
    let home = Home::new(recorder.address, "127.0.0.1:9").server("threads = 1").server(server);
    let proxy = home.start().await;
    (home, proxy, recorder)
}

fn ok(_target: &str) -> (Vec<u8>, End) {
    (OK.to_vec(), End::Keep)
}

/// Sends a `GET` with these fields; returns the lines of the head that the backend received.
async fn told(proxy: &Proxy, recorder: &Recorder, fields: &str) -> Vec<String> {
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: a.test:8080\r\n{fields}\r\n")).await;
    assert_eq!(wire.response().await.status, 200);
    let seen = recorder.take();
    assert_eq!(seen.len(), 1);
    seen[0].head.split('|').skip(2).map(str::to_owned).collect()
}

const CLAIMS: &str = "X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: https\r\n\
                      X-Forwarded-Host: www.example\r\nX-Forwarded-Port: 8443\r\nX-Forwarded-Prefix: /x\r\n\
                      X-Real-IP: 6.6.6.6\r\n\
                      Forwarded: for=203.0.113.9\r\n";

#[tokio::test]
async fn a_stranger_is_not_believed_and_a_trusted_proxy_is() {
    let (home, proxy, recorder) = before("trusted_proxies = [\"192.0.2.0/24\"]", ok).await;
    let stranger = [
        "X-Forwarded-For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: a.test:8080",
        "X-Forwarded-Port: 8080",
        "X-Request-Id: *",
    ];
    assert_eq!(told(&proxy, &recorder, CLAIMS).await, stranger);
    assert_eq!(logged_client(&home).await, "127.0.0.1");
    let (home, proxy, recorder) = before(LOOPBACK, ok).await;
    let trusted = [
        "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.2.3, 127.0.0.1",
        "X-Real-IP: 203.0.113.9",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: www.example",
        "X-Forwarded-Port: 8443",
        "X-Forwarded-Prefix: /x",
        "X-Request-Id: *",
    ];
    assert_eq!(told(&proxy, &recorder, CLAIMS).await, trusted);
    assert_eq!(logged_client(&home).await, "203.0.113.9");
}

async fn logged_client(home: &Home) -> String {
    let line = until("the line is in the access log", async || home.access_log().pop()).await;
    line["client"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn optional_headers_are_sent_when_configured() {
    let options =
        "[server.headers]\nforwarded = true\nvia = true\nrequest_start = true\ntraceparent = \"make\"";
    let (_home, proxy, recorder) = before(&format!("{LOOPBACK}\n{options}"), ok).await;
    let fields =
        format!("{CLAIMS}Via: 1.1 edge\r\nX-Request-Start: t=1700000000000\r\nX-Request-Id: id-1\r\n");
    let lines = told(&proxy, &recorder, &fields).await;
    let forwarded = "Forwarded: for=203.0.113.9, for=127.0.0.1;host=\"a.test:8080\";proto=http";
    for wanted in [
        forwarded,
        "Via: 1.1 edge",
        "Via: 1.1 uh-proxy",
        "X-Request-Start: t=1700000000000",
        "X-Request-Id: id-1",
    ] {
        assert!(lines.iter().any(|line| line == wanted), "{wanted:?} is missing in {lines:#?}");
    }
    let trace = lines.iter().find_map(|line| line.strip_prefix("traceparent: ")).expect("a traceparent");
    assert!(trace.starts_with("00-") && trace.ends_with("-01") && trace.len() == 55, "{trace}");
    // A valid one is passed on unchanged, and so is an existing start time.
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let lines = told(&proxy, &recorder, &format!("traceparent: {given}\r\ntracestate: s=1\r\n")).await;
    assert!(
        lines.contains(&format!("traceparent: {given}")) && lines.contains(&"tracestate: s=1".to_owned())
    );
    let start = lines.iter().find_map(|line| line.strip_prefix("X-Request-Start: t=")).expect("a start");
    assert!(start.parse::<u64>().unwrap() > 1_700_000_000_000, "{start}");
}

#[tokio::test]
async fn a_request_id_is_the_clients_if_it_is_well_formed() {
    let (_home, proxy, _recorder) = before("", ok).await;
    let long = "x".repeat(129);
    for (given, kept) in
        [("abc-1", true), (long.as_str(), false), ("a b", false), ("a\"b", false), ("a\u{e9}", false)]
    {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {given}\r\n\r\n")).await;
        let response = wire.response().await;
        let id = response.header("x-request-id").unwrap();
        assert_eq!(id == given, kept, "{given:?} became {id:?}");
        assert!(kept || id.len() == 32, "{id:?}");
    }
}

#[tokio::test]
async fn fields_of_a_response_for_this_hop_only_stay_here() {
    let script: Script = |_| {
        let reply = b"HTTP/1.1 200 OK\r\nServer: app/1\r\nConnection: keep-alive, Server, X-Hop, Content-Length\r\nX-Hop: 1\r\n\
                      Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nX_Under: kept\r\nSet-Cookie: a=1\r\n\
                      Set-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok";
        (reply.to_vec(), End::Keep)
    };
    let (_home, proxy, _recorder) = before("", script).await;
    let response = Wire::connect(proxy.address).await.get("/").await;
    assert_eq!(response.text(), "ok");
    for name in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(response.header(name), None, "{name}: {response:?}");
    }
    let fields: Vec<&str> = response.head.lines().collect();
    assert!(fields.contains(&"X_Under: kept"), "{fields:?}");
    assert_eq!(fields.iter().filter(|line| line.starts_with("Set-Cookie: ")).count(), 2);
    assert!(response.header("date").is_some_and(|date| date.ends_with(" GMT")), "{fields:?}");
}

#[tokio::test]
async fn the_apps_server_field_is_forwarded_unless_configured_otherwise() {
    let script: Script =
        |_| (b"HTTP/1.1 200 OK\r\nServer: app/1\r\nContent-Length: 2\r\n\r\nok".to_vec(), End::Keep);
    for (server, wanted) in [("", Some("app/1")), ("[server.headers]\nserver = \"drop\"", None)] {
        let (_home, proxy, _recorder) = before(server, script).await;
        assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("server"), wanted);
    }
}

#[tokio::test]
async fn other_header_settings_are_for_the_next_request_on_an_open_connection() {
    let (home, proxy, recorder) = before("", ok).await;
    let mut kept = Wire::connect(proxy.address).await;
    let mut via = async || {
        assert_eq!(kept.get("/").await.status, 200);
        recorder.take()[0].head.split('|').any(|line| line.starts_with("Via: "))
    };
    assert!(!via().await);
    home.write_config(&home.config().replacen(
        "[services.app]",
        "[server.headers]\nvia = true\n[services.app]",
        1,
    ));
    assert_eq!(proxy.client.reload().await.unwrap().changed, ["server.headers"]);
    assert!(via().await);
}

#[tokio::test]
async fn names_that_apps_mistake_for_others_are_dropped_passed_or_refused() {
    let fields = "X_A: 1\r\nContent_Length: 5\r\n";
    for (policy, status, seen) in [("drop", 200, false), ("pass", 200, true), ("refuse", 400, false)] {
        let server = format!("[server.headers]\nunderscores = \"{policy}\"");
        let (_home, proxy, recorder) = before(&server, ok).await;
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
        assert_eq!(wire.response().await.status, status, "{policy}");
        let heads: Vec<String> = recorder.take().into_iter().map(|seen| seen.head).collect();
        assert_eq!(heads.iter().any(|head| head.contains("|X_A: 1")), seen, "{policy}: {heads:?}");
        assert!(!heads.iter().any(|head| head.contains("Content_Length")), "{policy}: {heads:?}");
    }
}

/// docs/http-semantics.md lists the exceptions.
#[tokio::test]
async fn fields_keep_case_and_order_except_as_documented() {
    let (_home, proxy, recorder) = before("", ok).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(
        "POST / HTTP/1.1\r\nx-B: 1\r\nContent-Length: 003\r\nX-a: 2\r\nhost: a.test\r\nX-b: 3\r\n\r\nabc",
    )
    .await;
    assert_eq!(wire.response().await.status, 200);
    let seen = recorder.take().remove(0).head;
    let begins = "POST / HTTP/1.1|Host: a.test|x-B: 1|X-a: 2|X-b: 3|Content-Length: 3|X-Forwarded-For: ";
    assert!(seen.starts_with(begins), "{seen}");
    let page = include_str!("../../../docs/http-semantics.md");
    for exception in ["`Host` moves to the front", "`Content-Length` loses leading zeros"] {
        assert!(page.contains(exception), "{exception:?} is not documented");
    }
}
