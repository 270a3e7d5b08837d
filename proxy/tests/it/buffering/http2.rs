//! The same over HTTP/2.

use http::Request;

use super::{IN_MEMORY, patterned, until_buffered};
use crate::harness::{Home, Proxy, until};
use crate::http2::clients::{Client, H2C, complete, h2c, send_body, url};
use crate::recorder::{End, OK, Recorder};

async fn recorded(service: &str) -> (Home, Proxy, Recorder, Client) {
    let app = Recorder::start(|_| (OK.to_vec(), End::Keep)).await;
    let home = Home::new(app.address, "127.0.0.1:9").server(H2C).service(service);
    let proxy = home.start().await;
    let client = Client::plain(h2c(&proxy).await).await;
    (home, proxy, app, client)
}

#[tokio::test]
async fn a_slow_stream_holds_nothing_of_the_app_and_gets_a_length() {
    let (_home, proxy, app, client) = recorded(IN_MEMORY).await;
    let body = patterned(300_000);
    let request = Request::post(url("/")).body(()).unwrap();
    let (response, mut stream) = client.open(request, false).await;
    stream.send_data(bytes::Bytes::copy_from_slice(&body.as_bytes()[..1_000]), false).unwrap();
    until_buffered(&proxy).await;
    assert!(proxy.backend("blue").await.requests_in_flight == 0 && app.take().is_empty());
    send_body(&mut stream, &body.as_bytes()[1_000..]).await.unwrap();
    assert_eq!(complete(response.await.unwrap()).await.unwrap().text(), "ok");
    let seen = app.take().remove(0);
    let head = seen.head.to_ascii_lowercase();
    assert!(seen.body == body && head.ends_with("|content-length: 300000"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
}

#[tokio::test]
async fn what_is_too_large_is_streamed() {
    let (_home, proxy, app, client) = recorded("buffer_requests = { max_bytes = \"8KiB\" }").await;
    let body = patterned(200_000);
    let answer = client.post("/", body.as_bytes()).await.unwrap();
    assert_eq!(answer.text(), "ok");
    let seen = app.take().remove(0);
    let content: String = {
        let mut rest = seen.body.as_str();
        let mut content = String::new();
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            content.push_str(&after[..size]);
            rest = after[size..].strip_prefix("\r\n").unwrap_or_default();
        }
        content
    };
    assert!(content == body, "{} of {} bytes", content.len(), body.len());
    proxy.until_counted("result=\"too_large\"} 1").await;
}

#[tokio::test]
async fn a_stream_that_is_cancelled_costs_the_app_nothing() {
    let (home, proxy, app, client) = recorded(IN_MEMORY).await;
    let request = Request::post(url("/")).body(()).unwrap();
    let (response, mut stream) = client.open(request, false).await;
    stream.send_data(bytes::Bytes::from_static(b"abc"), false).unwrap();
    stream.send_reset(h2::Reason::CANCEL);
    assert!(response.await.is_err());
    until("it is logged", async || (home.access_log().len() == 1).then_some(())).await;
    assert_eq!(home.access_log()[0]["termination"], "DC");
    assert!(app.take().is_empty());
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"memory\"} 0").await;
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_from_us() {
    let (_home, _proxy, app, client) = recorded(IN_MEMORY).await;
    let request = Request::post(url("/")).header("expect", "100-continue").body(()).unwrap();
    let (mut response, mut stream) = client.open(request, false).await;
    let interim =
        crate::harness::soon("100", std::future::poll_fn(|cx| response.poll_informational(cx))).await;
    assert_eq!(interim.unwrap().unwrap().status(), 100);
    send_body(&mut stream, b"body").await.unwrap();
    assert_eq!(complete(response.await.unwrap()).await.unwrap().text(), "ok");
    let seen = app.take().remove(0);
    assert!(seen.body == "body" && !seen.head.to_ascii_lowercase().contains("expect"), "{seen:?}");
}
