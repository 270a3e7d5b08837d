//! Bodies over HTTP/2: flow control in both directions, trailers, interim and early responses, and broken ones.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::clients::{Client, before, complete, get, metric, pair, send_body, tls_stream, url};
use super::raw::{END_HEADERS, HEADERS, INTERNAL_ERROR, RST_STREAM, Raw, request};
use crate::harness::{Scripted, Then, soon, until};
use crate::recorder::{End, Recorder};
use crate::tls::certificates::Site;

fn patterned(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn bodies_arrive_whole_in_both_directions() {
    let site = Site::start().await;
    let (_home, _proxy, address, _apps) = pair("", "").await;
    for client in [Client::tls(&site).await, Client::plain(address).await] {
        for size in [0, 1, 16_384, 65_535, 65_536, 1_000_000, 5_000_000] {
            for chunked in ["", "?chunked=1"] {
                let answer = client.get(&format!("/bytes/{size}{chunked}")).await;
                assert!(answer.body == patterned(size), "{size}{chunked}");
            }
        }
        for size in [0, 1, 65_536, 3_000_000] {
            let body = patterned(size);
            let answer = client.post("/upload", &body).await.unwrap();
            assert!(answer.text().contains(&format!("\"bytes\":{size}")), "{}", answer.text());
            let length = Request::post(url("/upload")).header("content-length", size).body(()).unwrap();
            let (response, mut stream) = client.open(length, false).await;
            send_body(&mut stream, &body).await.unwrap();
            let answer = complete(response.await.unwrap()).await.unwrap();
            assert!(answer.text().contains(&format!("\"bytes\":{size}")), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn many_streams_at_once_get_what_is_theirs() {
    let site = Site::start().await;
    let client = std::sync::Arc::new(Client::tls(&site).await);
    let mut tasks = Vec::new();
    for n in 0..100 {
        let client = std::sync::Arc::clone(&client);
        tasks.push(tokio::spawn(async move {
            let size = n * 1_001;
            assert!(client.get(&format!("/bytes/{size}")).await.body == patterned(size), "{n}");
        }));
    }
    for task in tasks {
        soon("a stream", task).await.unwrap();
    }
}

/// What the client doesn't read isn't taken from the app, and what the app doesn't read isn't taken from the client.
#[tokio::test]
async fn flow_control_is_back_pressure_both_ways() {
    let app = Scripted::start(|head, mut stream: TcpStream| async move {
        if head.starts_with("POST") {
            // Reads nothing of the body.
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
        let mut written = 0_u64;
        let block = vec![0; 64 << 10];
        while let Ok(Ok(part)) = tokio::time::timeout(Duration::from_millis(500), stream.write(&block)).await
        {
            written += part as u64;
        }
        // Up to the client's window, and what is on the way.
        assert!(written < 16 << 20, "{written} bytes were taken from the app");
        (stream, Then::Close)
    })
    .await;
    let (_home, _proxy, address) = before(app.address, "", "").await;
    let client = Client::plain(address).await;
    let (response, _) = client.open(get("/"), true).await;
    let response = soon("a response", response).await.unwrap();
    let (_response, mut stream) = client.open(Request::post(url("/")).body(()).unwrap(), false).await;
    let mut sent = 0;
    loop {
        stream.reserve_capacity(64 << 10);
        let more = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        let Ok(Some(Ok(capacity))) = tokio::time::timeout(Duration::from_millis(500), more).await else {
            break;
        };
        stream.send_data(Bytes::from(vec![0; capacity]), false).unwrap();
        sent += capacity;
    }
    // The window, and what the sockets to the app take.
    assert!((200 << 10..16 << 20).contains(&sent), "{sent} bytes were taken from the client");
    // The stalled streams don't stop others.
    let (third, _) = client.open(get("/"), true).await;
    assert_eq!(soon("another response", third).await.unwrap().status(), 200);
    drop(response);
}

#[tokio::test]
async fn trailers_are_passed_on_in_both_directions() {
    let app = Scripted::start(|_, mut stream: TcpStream| async move {
        let mut body = Vec::new();
        while !body.ends_with(b"\r\n\r\n") {
            body.push(stream.read_u8().await.unwrap());
        }
        let seen = String::from_utf8(body).unwrap().replace("\r\n", "|");
        let reply = format!(
            "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{seen}\r\n0\r\nX-Sum: abc\r\nx-more: d\r\n\r\n",
            seen.len()
        );
        stream.write_all(reply.as_bytes()).await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await;
    let (_home, _proxy, address) = before(app.address, "", "").await;
    let client = Client::plain(address).await;
    let (response, mut stream) = client.open(Request::post(url("/")).body(()).unwrap(), false).await;
    stream.send_data("hello".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("1234"));
    trailers.insert("content-length", HeaderValue::from_static("99"));
    stream.send_trailers(trailers).unwrap();
    let answer = complete(soon("a response", response).await.unwrap()).await.unwrap();
    assert_eq!(answer.text(), "5|hello|0|x-checksum: 1234||");
    let trailers = answer.trailers.unwrap();
    assert!(trailers["x-sum"] == "abc" && trailers["x-more"] == "d", "{trailers:?}");
}

#[tokio::test]
async fn interim_responses_are_passed_on() {
    let app = Scripted::start(|head, mut stream: TcpStream| async move {
        if head.to_lowercase().contains("expect: 100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            let mut body = [0; 4];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"body");
        }
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await;
    let (_home, _proxy, address) = before(app.address, "", "").await;
    // h2's client skips interim responses, so these are read as frames.
    let mut raw = Raw::connect(address, b"").await;
    let fields = [("expect", "100-continue"), ("content-length", "4")];
    raw.send(HEADERS, END_HEADERS, 1, &request("POST", "/", &fields)).await;
    let interim = raw.until("100", |frame| frame.stream == 1).await.unwrap();
    assert!(interim.kind == HEADERS && !interim.ends(), "{interim:?}");
    raw.send(0, 1, 1, b"body").await;
    let hints = raw.until("103", |frame| frame.stream == 1).await.unwrap();
    let last = raw.until("200", |frame| frame.stream == 1).await.unwrap();
    assert!(hints.kind == HEADERS && last.kind == HEADERS && !hints.ends());
    assert_eq!(raw.end_of(1).await, None);
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_even_if_the_app_does_not_send_it() {
    let (_home, _proxy, address, _apps) = pair("", "").await;
    let client = Client::plain(address).await;
    let request = Request::post(url("/upload")).header("expect", "100-continue").body(()).unwrap();
    let (response, mut stream) = client.open(request, false).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    send_body(&mut stream, b"body").await.unwrap();
    let answer = complete(soon("a response", response).await.unwrap()).await.unwrap();
    assert!(answer.text().contains("\"bytes\":4"), "{}", answer.text());
}

/// The whole response arrives, and only then is the client told to stop sending.
#[tokio::test]
async fn an_early_answer_is_complete_before_the_upload_is_stopped() {
    let app = Scripted::start(|_, mut stream: TcpStream| async move {
        let body = "x".repeat(100_000);
        let reply =
            format!("HTTP/1.1 413 Too Large\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n{body}");
        let _ = stream.write_all(reply.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        (stream, Then::Close)
    })
    .await;
    let (_home, _proxy, address) = before(app.address, "", "").await;
    let client = Client::plain(address).await;
    for _ in 0..3 {
        let (response, mut stream) = client.open(Request::post(url("/")).body(()).unwrap(), false).await;
        stream.send_data(Bytes::from(vec![b'x'; 1000]), false).unwrap();
        let answer = complete(soon("a response", response).await.unwrap()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.len()), (413, 100_000));
        let stopped = soon("the end of the stream", std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
        assert_eq!(stopped.unwrap(), h2::Reason::NO_ERROR);
    }
}

#[tokio::test]
async fn a_broken_response_is_reset_and_never_looks_complete() {
    let app = Scripted::start(|head, mut stream: TcpStream| async move {
        let reply: &[u8] = match head.split(' ').nth(1).unwrap() {
            "/short" => b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
            "/chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "/garbage" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "/switch" => b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            "/close" => b"HTTP/1.0 200 OK\r\n\r\nhello",
            _ => b"not HTTP\r\n\r\n",
        };
        let _ = stream.write_all(reply).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _ = stream.write_all(b"x").await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy, address) = before(app.address, "", "").await;
    let mut raw = Raw::connect(address, b"").await;
    for (stream, path) in [(1, "/short"), (3, "/chunks"), (5, "/garbage")] {
        raw.get(stream, path).await;
        assert_eq!(raw.end_of(stream).await, Some(INTERNAL_ERROR), "{path}");
    }
    raw.get(7, "/close").await;
    assert_eq!(raw.end_of(7).await, None, "its end is its end");
    let client = Client::plain(address).await;
    assert_eq!(client.get("/nothing").await.status, 502);
    assert_eq!(client.get("/switch").await.status, 502);
    assert_eq!(
        metric(&proxy, "uh_proxy_http2_resets_total{code=\"internal_error\",direction=\"sent\"}").await,
        3
    );
}

#[tokio::test]
async fn nothing_about_the_connection_is_passed_on_to_the_client() {
    fn reply(_: &str) -> (Vec<u8>, End) {
        let reply = b"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade, x-hop\r\nUpgrade: websocket\r\nKeep-Alive: timeout=5\r\n\
                      Proxy-Connection: close\r\nX-Hop: 1\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nno";
        (reply.to_vec(), End::Keep)
    }
    let recorder = Recorder::start(reply).await;
    let (_home, _proxy, address) = before(recorder.address, "", "").await;
    let answer = Client::plain(address).await.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (426, "no"));
    assert!(answer.headers.contains_key("x-kept"));
    for name in ["connection", "upgrade", "keep-alive", "proxy-connection", "x-hop", "transfer-encoding"] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}

/// A client that cancels a request is noticed at once, and so is the backend's connection.
#[tokio::test]
async fn a_cancelled_request_ends_at_the_app_too() {
    let (closed, mut seen) = tokio::sync::mpsc::channel(1);
    let app = Scripted::start(move |_, mut stream: TcpStream| {
        let closed = closed.clone();
        async move {
            let _ = stream.read(&mut [0; 64]).await;
            let _ = closed.send(()).await;
            (stream, Then::Close)
        }
    })
    .await;
    let (home, proxy, address) = before(app.address, "", "").await;
    let client = Client::plain(address).await;
    let (response, mut stream) = client.open(get("/"), true).await;
    until("it is in flight", async || (app.seen() == 1).then_some(())).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(response);
    soon("the app sees it", seen.recv()).await.unwrap();
    proxy.until_idle("blue").await;
    until("it is logged", async || (home.access_log().len() == 1).then_some(())).await;
    let line = &home.access_log()[0];
    assert_eq!((&line["status"], &line["termination"]), (&499.into(), &"DC".into()));
    assert_eq!(
        metric(&proxy, "uh_proxy_http2_resets_total{code=\"cancel\",direction=\"received\"}").await,
        1
    );
}

/// One greedy stream doesn't hide another that takes nothing: each has its own pace.
#[tokio::test]
async fn a_stream_that_takes_nothing_is_reset_while_others_go_on() {
    let service = "[services.app.limits]\nmin_response_rate = \"10KiB\"\nrate_window = \"1s\"\n";
    let (home, _proxy, address, _apps) = pair("", service).await;
    let mut raw = Raw::connect(address, b"").await;
    raw.get(1, "/bytes/1000000").await;
    // The window of the other stream is opened again and again, and that of the connection.
    raw.get(3, "/bytes/3000000").await;
    let mut got = 0_usize;
    let stalled = soon("the stalled stream's end", async {
        loop {
            let frame = raw.next().await.unwrap();
            match (frame.kind, frame.stream) {
                (RST_STREAM, 1) => break frame.code(),
                (0, stream) if !frame.payload.is_empty() => {
                    let window = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
                    raw.send(8, 0, 0, &window).await;
                    if stream == 3 {
                        got += frame.payload.len();
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        raw.send(8, 0, 3, &window).await;
                    }
                }
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(stalled, INTERNAL_ERROR);
    assert!(got > 100_000, "the other one has got {got} bytes");
    until("it is logged", async || {
        home.access_log().iter().any(|line| line["termination"] == "DT").then_some(())
    })
    .await;
}

#[tokio::test]
async fn responses_over_tls_are_whole_for_a_slow_reader_too() {
    let site = Site::start().await;
    let client = Client::with(&h2::client::Builder::new(), tls_stream(&site, "app.test").await).await;
    let (response, _) = client.open(get("/bytes/700000"), true).await;
    let (_, mut body) = soon("a response", response).await.unwrap().into_parts();
    let mut got = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        got.extend_from_slice(&data);
        tokio::time::sleep(Duration::from_millis(2)).await;
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(got == patterned(700_000));
}
