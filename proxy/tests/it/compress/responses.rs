//! Which responses are compressed, and what clients get.

use http::Request;

use super::{app, ask, before, get, is_gzip, metric, text, unpacked};
use crate::harness::until;
use crate::http2::clients::{Client, h2c, url};
use crate::tls::certificates::{Authority, address, home};
use crate::tls::clients::Rustls;
use crate::wire::Wire;

#[tokio::test]
async fn bodies_of_any_size_and_framing_arrive_as_they_were() {
    let app = app().await;
    let (home, proxy) = before(&app, "compress = true").await;
    let mut wire = Wire::connect(proxy.address).await;
    let client = Client::plain(h2c(&proxy).await).await;
    let (mut bytes_in, mut bytes_out) = (0, 0);
    for bytes in [1024, 5000, 65_536, 300_000, 3_000_000] {
        for framing in ["", "?Transfer-Encoding:_chunked"] {
            let target = format!("/{bytes}{framing}");
            let response = ask(&mut wire, &target).await;
            assert!(response.complete && is_gzip(&response), "{}", response.head);
            assert_eq!(
                (response.header("content-length"), response.header("transfer-encoding")),
                (None, Some("chunked"))
            );
            assert!(response.body.len() < bytes * 2 / 3, "{} of {bytes}", response.body.len());
            assert!(unpacked(&response.body) == text(bytes), "{target}");
            let request = Request::get(url(&target)).header("accept-encoding", "gzip").body(()).unwrap();
            let answer = client.send(request).await.unwrap();
            assert_eq!(
                (&answer.headers["content-encoding"], &answer.headers["vary"]),
                (&"gzip".parse().unwrap(), &"Accept-Encoding".parse().unwrap())
            );
            assert!(!answer.headers.contains_key("content-length"));
            assert!(unpacked(&answer.body) == text(bytes), "{target} over HTTP/2");
            bytes_in += 2 * bytes;
            bytes_out += response.body.len() + answer.body.len();
        }
    }
    until("all is counted", async || {
        (metric(&proxy, "compressed_responses_total").await == Some(20.0)).then_some(())
    })
    .await;
    assert_eq!(metric(&proxy, "compression_input_bytes_total").await, Some(bytes_in as f64));
    assert_eq!(metric(&proxy, "compression_output_bytes_total").await, Some(bytes_out as f64));
    assert_eq!(metric(&proxy, "compression_skipped_total").await, Some(0.0));
    let logged = until("all is logged", async || {
        let lines = home.access_log();
        (lines.len() == 20).then_some(lines)
    })
    .await;
    let sum: u64 = logged.iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, bytes_out as u64, "the log has what was sent");
}

#[tokio::test]
async fn bodies_arrive_as_they_were_over_tls_and_over_http2_within_it() {
    let app = app().await;
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let home = home((app.address, app.address), &authority, &[("app", &pair)], "", "");
    let home = home.service("compress = true");
    let proxy = home.start().await;
    let address = address(&proxy).await;
    let mut secure = Rustls::new(&authority).connect(address, "app.test").await.unwrap();
    let speaks_h2 = Rustls::with(&authority, rustls::ALL_VERSIONS, |config| {
        config.alpn_protocols = vec![b"h2".to_vec()];
    });
    let client = Client::over(speaks_h2.connect(address, "app.test").await.unwrap().stream).await;
    for bytes in [1024, 65_536, 3_000_000] {
        for framing in ["", "?Transfer-Encoding:_chunked"] {
            let target = format!("/{bytes}{framing}");
            secure.send(get(&target).replace("Host: a", "Host: app.test")).await;
            let response = secure.response().await;
            assert!(response.complete && is_gzip(&response), "{}", response.head);
            assert!(unpacked(&response.body) == text(bytes), "{target} over TLS");
            let request = Request::get(url(&target)).header("accept-encoding", "gzip").body(()).unwrap();
            let answer = client.send(request).await.unwrap();
            assert_eq!(answer.headers["content-encoding"], "gzip");
            assert!(unpacked(&answer.body) == text(bytes), "{target} over HTTP/2 and TLS");
            let plain = client.get(&target).await;
            assert!(!plain.headers.contains_key("content-encoding") && plain.body == text(bytes));
        }
    }
    until("all is counted", async || {
        (metric(&proxy, "compressed_responses_total").await == Some(12.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn compression_is_off_unless_it_is_turned_on_and_a_path_can_turn_it_off() {
    let app = app().await;
    let (_home, proxy) = before(&app, "").await;
    let mut wire = Wire::connect(proxy.address).await;
    let response = ask(&mut wire, "/5000").await;
    assert!(!is_gzip(&response) && response.header("vary").is_none() && response.body == text(5000));
    assert_eq!(metric(&proxy, "compressed_responses_total").await, None);

    let service = "compress = { types = [\"text/html\"], min_bytes = \"4KiB\" }\n[services.app.health]\nenabled = false\n\
        [[services.app.paths]]\nmatch = \"/5000\"\ncompress = false\n\
        [[services.app.paths]]\nmatch = \"/2000\"\ncompress = { min_bytes = \"1KiB\", level = 1 }\n";
    let (_home, proxy) = before(&app, service).await;
    let mut wire = Wire::connect(proxy.address).await;
    for (target, expected) in [
        ("/5000", false),
        ("/5001", true),
        ("/4095", false),
        ("/2000", true),
        ("/2000?Content-Type:_text/css", false),
    ] {
        let response = ask(&mut wire, target).await;
        assert_eq!(is_gzip(&response), expected, "{target}");
    }
}

#[tokio::test]
async fn a_response_without_a_body_has_the_head_of_one_with_a_body_and_the_next_one_is_right() {
    let app = app().await;
    let (_home, proxy) = before(&app, "compress = true").await;
    let mut wire = Wire::connect(proxy.address).await;
    let target = "/5000?ETag:_\"a\"|Accept-Ranges:_bytes|Cache-Control:_no-cache";
    let of_get = ask(&mut wire, target).await;
    wire.send(get(target).replace("GET", "HEAD")).await;
    let of_head = wire.response_to_head().await;
    let fields = |head: &str| {
        let mut fields: Vec<String> = head.lines().skip(1).map(str::to_owned).collect();
        fields.retain(|field| !field.starts_with("Date") && !field.starts_with("X-Request-Id"));
        fields
    };
    assert_eq!(fields(&of_get.head), fields(&of_head.head));
    assert_eq!((of_get.header("etag"), of_get.header("accept-ranges")), (Some("W/\"a\""), None));
    for status in ["204", "304"] {
        wire.send(get(&format!("/5000?status={status}|ETag:_\"a\""))).await;
        let response = wire.response().await;
        assert_eq!((response.status.to_string().as_str(), is_gzip(&response)), (status, false));
        assert_eq!(response.header("etag"), Some("\"a\""));
    }
    assert_eq!(unpacked(&ask(&mut wire, "/5000").await.body), text(5000));
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_the_content_as_it_is() {
    let app = app().await;
    let (_home, proxy) = before(&app, "compress = true").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET /5000 HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n").await;
    let response = wire.response().await;
    assert!(!is_gzip(&response) && response.complete && response.body == text(5000));
}
