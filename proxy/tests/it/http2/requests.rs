//! Requests over HTTP/2: what reaches the app, what is refused, and what is logged.

use http::{Method, Request, StatusCode, header};

use super::clients::{Client, H2C, before, get, h2c, metric, pair, tls_stream, url};
use super::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PROTOCOL_ERROR, Raw, block, frame,
    request,
};
use crate::harness::{Home, until};
use crate::recorder::{End, OK, Recorder};
use crate::tls::certificates::{self, Authority, Site};
use crate::tls::clients::{Rustls, curl};
use crate::wire::Wire;

fn ok(_: &str) -> (Vec<u8>, End) {
    (OK.to_vec(), End::Keep)
}

#[tokio::test]
async fn a_request_is_answered_over_tls_and_without() {
    let site = Site::start().await;
    let client = Client::tls(&site).await;
    for _ in 0..3 {
        let answer = client.get("/headers").await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("\"x-forwarded-proto\",\"https\""), "{}", answer.text());
        for name in ["connection", "keep-alive", "transfer-encoding", "upgrade"] {
            assert!(!answer.headers.contains_key(name), "{name}");
        }
    }
    let (code, said) = curl(&site, "/headers", &["--http2"]).await;
    assert!(code == 0 && said.starts_with("HTTP/2 200"), "{said}");
    let (code, said) = curl(&site, "/headers", &["--http1.1"]).await;
    assert!(code == 0 && said.starts_with("HTTP/1.1 200"), "{said}");
    let lines = until("all is logged", async || {
        let lines = site.home.access_log();
        (lines.len() == 5).then_some(lines)
    })
    .await;
    // In any order: each worker writes its own.
    let http2: Vec<_> = lines.iter().filter(|line| line["protocol"] == "HTTP/2.0").collect();
    assert_eq!(http2.len(), 4);
    for line in http2 {
        assert_eq!(
            (&line["alpn"], &line["method"], &line["path"]),
            (&"h2".into(), &"GET".into(), &"/headers".into())
        );
    }

    let (_home, proxy, address, _apps) = pair("", "").await;
    let client = Client::plain(address).await;
    let answer = client.get("/headers").await;
    assert!(answer.status == 200 && answer.text().contains("\"x-forwarded-proto\",\"http\""));
    assert_eq!(metric(&proxy, "uh_proxy_http2_connections").await, 1);
    assert_eq!(metric(&proxy, "uh_proxy_http2_streams_total").await, 1);
}

/// A request whose frames arrive in two parts, the next one with the second part, must not wait for more input.
#[tokio::test]
async fn requests_are_answered_wherever_their_frames_are_cut() {
    let (_home, _proxy, address, _apps) = pair("", "").await;
    let get = request("GET", "/", &[]);
    let whole = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &get);
    let (front, back) = get.split_at(get.len() / 2);
    let in_two = [frame(HEADERS, END_STREAM, 3, front), frame(CONTINUATION, END_HEADERS, 3, back)].concat();
    let (first, rest) = (whole(1), [in_two, whole(5), whole(7)].concat());
    for cut in 0..=rest.len() {
        let mut raw = Raw::connect(address, b"").await;
        let mut ended = Vec::new();
        // Once the first is answered, all of the first part was read.
        raw.bytes(&[&first[..], &rest[..cut]].concat()).await;
        while !ended.contains(&1) {
            ended.push(raw.until("the first answer", Frame::ends).await.unwrap().stream);
        }
        raw.bytes(&rest[cut..]).await;
        while ended.len() < 4 {
            ended.push(raw.until("an answer", Frame::ends).await.unwrap().stream);
        }
    }
}

#[tokio::test]
async fn http2_is_never_begun_by_an_upgrade_and_never_spoken_where_it_was_not_asked_for() {
    let recorder = Recorder::start(ok).await;
    let (_home, proxy, address) = before(recorder.address, "", "").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n")
        .await;
    let response = wire.response().await;
    assert_eq!((response.status, response.header("upgrade")), (200, None));
    assert!(!recorder.take()[0].head.to_lowercase().contains("upgrade"));
    let mut wire = Wire::connect(address).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut said = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut wire.stream, &mut said).await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    assert_eq!(recorder.take(), []);
}

#[tokio::test]
async fn the_parts_of_a_cookie_reach_the_app_as_one() {
    let recorder = Recorder::start(ok).await;
    let (_home, _proxy, address) = before(recorder.address, "", "").await;
    let client = Client::plain(address).await;
    let request = Request::get(url("/"))
        .header("cookie", "a=1")
        .header("x-between", "2")
        .header("cookie", "b=2")
        .header("cookie", "c=3");
    assert_eq!(client.send(request.body(()).unwrap()).await.unwrap().status, 200);
    let head = recorder.take().remove(0).head;
    assert!(head.contains("|cookie: a=1; b=2; c=3|") && head.matches("cookie").count() == 1, "{head}");
}

/// What HTTP/1 would read as something else never reaches the app.
#[tokio::test]
async fn malformed_requests_are_refused() {
    let recorder = Recorder::start(ok).await;
    let (_home, _proxy, address) = before(recorder.address, "", "").await;
    let fields: &[&[(&str, &str)]] = &[
        &[("x", "a\r\nevil: 1")],
        &[("x", "a\nb")],
        &[("x", "a\0b")],
        &[("x\r\nevil", "1")],
        &[("x y", "1")],
        &[("X-Upper", "1")],
        &[("x:y", "1")],
        &[("", "1")],
        &[("connection", "close")],
        &[("keep-alive", "timeout=5")],
        &[("proxy-connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "h2c")],
        &[("te", "gzip")],
        &[("host", "other.test")],
        &[("host", "app.test"), ("host", "app.test")],
        &[("x", " leading")],
        &[("x", "trailing ")],
        &[(":path", "/again")],
        &[("x", "1"), (":late", "1")],
        &[("content-length", "5")],
        &[("content-length", "x")],
        &[("content-length", "0"), ("content-length", "1")],
        &[("expect", "the unexpected")],
    ];
    let mut blocks: Vec<(String, Vec<u8>)> =
        fields.iter().map(|more| (format!("{more:?}"), request("GET", "/", more))).collect();
    for (method, path) in [
        ("GET", ""),
        ("GET", "http://evil.test/"),
        ("GET", "a"),
        ("GET", "?a"),
        ("GET", "/a b"),
        ("GET", "/a\r\nb: c"),
        ("GET", "/a\0"),
        ("GET", "*"),
        ("GE T", "/"),
        ("GET / HTTP/1.1\r\nHost: b\r\n\r\nGET", "/"),
        ("TRACE", "/"),
    ] {
        blocks.push((format!("{method:?} {path:?}"), request(method, path, &[])));
    }
    for missing in [":method", ":scheme", ":path"] {
        let all = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "app.test")];
        let some: Vec<_> = all.into_iter().filter(|(name, _)| *name != missing).collect();
        blocks.push((format!("no {missing}"), block(&some)));
    }
    blocks.push(("no host".into(), block(&[(":method", "GET"), (":scheme", "http"), (":path", "/")])));
    for authority in ["user@app.test", "app.test/x", "app test", "app.test:x", "a\r\nb"] {
        let all = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", authority)];
        blocks.push((format!("authority {authority:?}"), block(&all)));
    }
    for (what, block) in blocks {
        let mut raw = Raw::connect(address, b"").await;
        raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &block).await;
        let answer = raw.until("an answer", |frame| frame.stream == 1 || frame.kind == GOAWAY).await;
        let answer = answer.unwrap_or_else(|| panic!("{what}: the connection was closed"));
        // A 4xx response, a reset, or the end of the connection.
        assert!(answer.kind == HEADERS || answer.code() == PROTOCOL_ERROR, "{what}: {answer:?}");
        let seen = recorder.take();
        assert_eq!(seen, [], "{what} reached the app");
        if answer.kind == GOAWAY {
            continue;
        }
        // Other streams aren't affected.
        raw.get(3, "/").await;
        assert_eq!(raw.end_of(3).await, None, "{what}");
        assert_eq!(recorder.take().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn connect_is_refused_and_what_follows_it_is_never_forwarded() {
    let recorder = Recorder::start(ok).await;
    let (_home, proxy, address) = before(recorder.address, "", "").await;
    let client = Client::plain(address).await;
    let connect = Request::builder().method(Method::CONNECT).uri("app.test:443").body(()).unwrap();
    let (response, mut stream) = client.open(connect, false).await;
    let _ = stream.send_data("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".into(), false);
    let response = crate::harness::soon("a response", response).await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(client.get("/").await.status, 200);
    let seen = recorder.take();
    assert!(seen.len() == 1 && seen[0].head.starts_with("GET / "), "{seen:?}");
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn a_host_that_the_connections_certificate_does_not_cover_is_misdirected() {
    let site = Site::start().await;
    let client = Client::over(tls_stream(&site, "app.test").await).await;
    let status = async |host: &str| {
        client.send(Request::get(format!("https://{host}/")).body(()).unwrap()).await.unwrap().status
    };
    assert_eq!(status("app.test").await, 200);
    assert_eq!(status("APP.test:8443").await, 200);
    assert_eq!(status("elsewhere.test").await, 421);
    assert_eq!(status("app.test").await, 200, "the connection is kept");
}

/// Browsers use one connection for all hosts that its certificate covers (RFC 9113 §9.1.1), and only for those.
#[tokio::test]
async fn a_connection_serves_all_hosts_of_its_certificate_and_no_others() {
    let recorder = Recorder::start(ok).await;
    let authority = Authority::new();
    let (shared, own) = (authority.issue(&["a.test", "b.test", "*.c.test"]), authority.issue(&["d.test"]));
    let pairs = [("shared", &shared), ("own", &own)];
    let home = certificates::home((recorder.address, recorder.address), &authority, &pairs, "", "");
    let proxy = home.start().await;
    let address = certificates::address(&proxy).await;
    let rustls =
        Rustls::with(&authority, rustls::ALL_VERSIONS, |config| config.alpn_protocols = vec![b"h2".to_vec()]);
    for (sni, host, status) in [
        ("a.test", "b.test", 200),
        ("a.test", "x.c.test", 200),
        ("x.c.test", "y.c.test", 200),
        ("x.c.test", "a.test", 200),
        ("a.test", "x.y.c.test", 421),
        ("a.test", "c.test", 421),
        // Another certificate of the same uh-proxy covers it.
        ("a.test", "d.test", 421),
        ("d.test", "a.test", 421),
        ("d.test", "127.0.0.1", 421),
    ] {
        let client = Client::over(rustls.connect(address, sni).await.unwrap().stream).await;
        let request = || Request::get(format!("https://{host}/")).body(()).unwrap();
        let answer = client.send(request()).await.unwrap();
        assert_eq!(answer.status, status, "{host} on a connection for {sni}");
        assert_eq!(recorder.take().len(), usize::from(status == 200), "{host} on a connection for {sni}");
    }
}

/// A body's end is known twice: by its length, and by its frames. If they differ, the app must not take it for complete, nor
/// what follows for another request.
#[tokio::test]
async fn a_body_of_another_length_than_announced_is_reset() {
    let recorder = Recorder::start(ok).await;
    let (_home, proxy, address) = before(recorder.address, "", "").await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let too_long = format!("hello{smuggled}");
    for (length, parts) in [
        ("5", &["hel"][..]),
        ("5", &[&too_long]),
        ("5", &["hello", smuggled]),
        ("0", &["x"]),
        ("0", &[smuggled]),
        ("5", &[]),
    ] {
        let mut raw = Raw::connect(address, b"").await;
        // At once: an app may answer a request with a body of no bytes before they arrive.
        let head = request("POST", "/first", &[("content-length", length)]);
        let mut frames = frame(HEADERS, END_HEADERS, 1, &head);
        parts.iter().for_each(|part| frames.extend(frame(DATA, 0, 1, part.as_bytes())));
        frames.extend(frame(DATA, END_STREAM, 1, b""));
        raw.bytes(&frames).await;
        assert_eq!(raw.end_of(1).await, Some(PROTOCOL_ERROR), "{length}: {parts:?}");
        raw.get(3, "/second").await;
        assert_eq!(raw.end_of(3).await, None, "{length}: {parts:?}");
        proxy.until_idle("blue").await;
        let mut complete = Vec::new();
        until("the second request arrives", async || {
            complete.extend(recorder.take().into_iter().filter(|seen| seen.complete));
            complete.iter().any(|seen| seen.head.starts_with("GET /second ")).then_some(())
        })
        .await;
        // As much as was announced may be there before the rest is: the rest goes nowhere.
        let first = &"hello"[..length.parse().unwrap()];
        for seen in complete {
            let is_first = seen.head.starts_with("POST /first ") && seen.body == first;
            assert!(is_first || seen.head.starts_with("GET /second "), "{length}: {parts:?}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn a_head_with_too_many_fields_or_bytes_is_refused_like_over_http1() {
    let recorder = Recorder::start(ok).await;
    let limits = "limits = { header_bytes = \"8KiB\", header_fields = 20 }";
    let (_home, _proxy, address) = before(recorder.address, limits, "").await;
    let client = Client::plain(address).await;
    let with = |count: usize, name: &str, value: &str| {
        let mut request = Request::get(url("/"));
        for n in 0..count {
            let name = if name == "cookie" { name.to_owned() } else { format!("{name}-{n}") };
            request = request.header(name, value);
        }
        request.body(()).unwrap()
    };
    for (request, status) in [
        (with(20, "x", "1"), 200),
        (with(21, "x", "1"), 431),
        (with(20, "cookie", "a=b"), 200),
        (with(21, "cookie", "a=b"), 431),
        (with(1, "x", &"v".repeat(7000)), 200),
        (with(1, "x", &"v".repeat(8192)), 431),
    ] {
        let answer = client.send(request).await;
        match answer {
            Ok(answer) => assert_eq!(answer.status, status),
            // `h2` itself answers and resets the stream.
            Err(error) => assert!(status == 431 && error.is_reset(), "{error}"),
        }
    }
    assert_eq!(recorder.take().len(), 3);
}

#[tokio::test]
async fn a_path_is_stripped_and_routed_and_an_unknown_one_is_a_404() {
    let recorder = Recorder::start(ok).await;
    let service = "path_prefix = \"/api\"\nstrip_prefix = true\n";
    let (home, _proxy, address) = before(recorder.address, "", service).await;
    let client = Client::plain(address).await;
    assert_eq!(client.get("/api/x?y=1").await.status, 200);
    assert!(recorder.take()[0].head.starts_with("GET /x?y=1 HTTP/1.1|"));
    let answer = client.get("/elsewhere").await;
    assert_eq!(answer.status, 404);
    assert!(answer.headers.contains_key(header::DATE) && !answer.body.is_empty());
    assert!(!answer.headers.contains_key(header::CONNECTION));
    let head = Request::head(url("/elsewhere")).body(()).unwrap();
    let answer = client.send(head).await.unwrap();
    assert!(answer.status == 404 && answer.body.is_empty());
    until("all are logged", async || (home.access_log().len() == 3).then_some(())).await;
    assert_eq!(home.access_log()[1]["termination"], "NR");
}

#[tokio::test]
async fn an_address_has_a_limit_of_requests_in_flight() {
    let (home, proxy, address, _apps) = pair("limits = { requests_in_flight_per_address = 5 }", "").await;
    let clients = [Client::plain(address).await, Client::plain(address).await];
    let slow = get("/slow?ms=1500");
    let mut waiting = Vec::new();
    for n in 0..5 {
        waiting.push(clients[n % 2].open(slow.clone(), true).await.0);
    }
    until("all are in flight", async || (proxy.backend("blue").await.requests_in_flight == 5).then_some(()))
        .await;
    assert_eq!(clients[0].get("/").await.status, 429);
    for response in waiting {
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert_eq!(clients[1].get("/").await.status, 200);
    assert_eq!(metric(&proxy, "uh_proxy_requests_refused_total").await, 1);
    assert!(home.access_log().iter().any(|line| line["termination"] == "TM"));
    home.until_said("requests_in_flight_per_address").await;
    // A trusted proxy has many clients.
    let home = Home::new("127.0.0.1:9", "127.0.0.1:9")
        .server(H2C)
        .server("limits = { requests_in_flight_per_address = 1 }\ntrusted_proxies = [\"127.0.0.0/8\"]");
    let proxy = home.start().await;
    let client = Client::plain(h2c(&proxy).await).await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.status, 502);
    }
}
