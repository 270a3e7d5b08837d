//! What a client must keep to while its request is buffered, and how much all of them may have.

use std::time::{Duration, Instant};

use super::{IN_MEMORY, length, ok, patterned, post, recorded, until_in_flight};
use crate::harness::{Home, until};
use crate::recorder::{End, OK, Recorder};
use crate::wire::Wire;

#[tokio::test]
async fn a_client_that_stalls_or_crawls_is_given_up() {
    for service in [
        "timeouts = { client = \"300ms\" }\nlimits = { min_body_rate = \"0B\" }",
        "limits = { min_body_rate = \"1KiB\", rate_window = \"300ms\" }",
    ] {
        let (home, proxy, app) = recorded(&format!("{IN_MEMORY}\n{service}")).await;
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(post("/", &length(100))).await;
        wire.send("a").await;
        let begun = Instant::now();
        assert_eq!(wire.response().await.status, 408, "{service}");
        assert!(begun.elapsed() >= Duration::from_millis(250), "{service}: {:?}", begun.elapsed());
        assert!(app.take().is_empty());
        until("it is logged", async || (home.access_log().len() == 1).then_some(())).await;
        let line = home.access_log().remove(0);
        assert!(line["termination"] == "DT" && line["service"] == "app", "{line}");
        proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"memory\"} 0").await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_at_once() {
    let (home, proxy, app) = recorded(IN_MEMORY).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(100))).await;
    wire.send("a").await;
    drop(wire);
    until("it is logged", async || (home.access_log().len() == 1).then_some(())).await;
    let line = home.access_log().remove(0);
    assert!(line["termination"] == "DC" && line["status"] == 499, "{line}");
    assert!(app.take().is_empty());
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"memory\"} 0").await;
}

#[tokio::test]
async fn a_broken_or_too_large_body_is_refused_without_the_app() {
    let (_home, proxy, app) = recorded(&format!("{IN_MEMORY}\nlimits = {{ body_bytes = \"1KiB\" }}")).await;
    for (fields, body, status) in [
        (length(1025), String::new(), 413),
        ("Transfer-Encoding: chunked".to_owned(), format!("401\r\n{}\r\n0\r\n\r\n", patterned(1025)), 413),
        ("Transfer-Encoding: chunked".to_owned(), "zz\r\n".to_owned(), 400),
    ] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(post("/", &fields)).await;
        wire.send(&body).await;
        assert_eq!(wire.response().await.status, status, "{fields}");
        assert!(app.take().is_empty(), "{fields}");
    }
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(1024))).await;
    wire.send(patterned(1024)).await;
    ok(&mut wire).await;
}

#[tokio::test]
async fn memory_of_all_is_bounded_and_what_does_not_fit_is_streamed() {
    let app = Recorder::start(|_| (OK.to_vec(), End::Keep)).await;
    let home = Home::new(app.address, "127.0.0.1:9")
        .server("request_buffers = { memory_bytes = \"64KiB\" }")
        .service("buffer_requests = { max_bytes = \"256KiB\" }");
    let proxy = home.start().await;
    let body = patterned(60_000);
    let mut first = Wire::connect(proxy.address).await;
    first.send(post("/", &length(body.len() + 1))).await;
    first.send(&body).await;
    let has = async |bytes: &str| {
        let wanted = format!("uh_proxy_request_buffer_bytes{{place=\"memory\"}} {bytes}");
        proxy.client.metrics().await.unwrap().contains(&wanted)
    };
    until("it is buffered", async || (!has("0\n").await).then_some(())).await;
    // A length that is only announced takes nothing.
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(post("/", &length(250_000))).await;
        idle.push(wire);
    }
    let mut second = Wire::connect(proxy.address).await;
    second.send(post("/", &length(body.len() + 1))).await;
    second.send(&body).await;
    until_in_flight(&proxy).await;
    second.send("x").await;
    ok(&mut second).await;
    assert_eq!(app.take().remove(0).body, format!("{body}x"));
    first.send("y").await;
    ok(&mut first).await;
    assert_eq!(app.take().remove(0).body, format!("{body}y"));
    proxy.until_counted("result=\"memory_full\"} 1").await;
    until("nothing is held", async || has("0\n").await.then_some(())).await;
}
