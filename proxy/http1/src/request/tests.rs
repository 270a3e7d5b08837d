//! Request heads: what is parsed, what is written for the backend, and what is rejected.

use super::*;
use crate::policy::HeaderPolicy;

fn caller<'a>(text: &'a str, headers: &'a HeaderPolicy) -> Caller<'a> {
    Caller {
        address: text.parse().unwrap(),
        text,
        request_start: None,
        scheme: Scheme::Http,
        http2: false,
        hides_cookies: false,
        headers,
    }
}

fn upstream(head: &str) -> Result<(RequestHead, String), BadRequest> {
    upstream_with(head, &HeaderPolicy::default())
}

fn upstream_with(head: &str, headers: &HeaderPolicy) -> Result<(RequestHead, String), BadRequest> {
    let mut out = Vec::new();
    let request = translate(head.as_bytes(), &caller("192.0.2.7", headers), &mut out)?;
    Ok((request, String::from_utf8(out).unwrap()))
}

#[test]
fn what_the_backend_gets() {
    let head = "POST /a?b=%zz HTTP/1.1\r\nHost: app.example\r\nUser-Agent: x\r\nX-MiXed: Kept \r\n\
                X-Forwarded-For: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
                Keep-Alive: 5\r\nTE: trailers\r\nX-Request-Id: abc-1\r\nContent-Length: 3\r\n\r\n";
    let (request, out) = upstream(head).unwrap();
    assert_eq!(
        out,
        "POST /a?b=%zz HTTP/1.1\r\nHost: app.example\r\nUser-Agent: x\r\nX-MiXed: Kept\r\nContent-Length: 3\r\n\
         X-Forwarded-For: 192.0.2.7\r\nX-Real-IP: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: app.example\r\n\
         X-Forwarded-Port: 80\r\nX-Request-Id: abc-1\r\n\r\n"
    );
    assert!(request.keep_alive);
    assert_eq!(request.framing, Framing::Length(3));
    assert_eq!(request.path.of_head(head.as_bytes()), b"/a?b=%zz");
}

#[test]
fn an_absolute_target_names_the_host() {
    let (request, out) = upstream("GET http://a.example:8080/x?q HTTP/1.1\r\nHost: evil\r\n\r\n").unwrap();
    assert!(out.starts_with("GET /x?q HTTP/1.1\r\nHost: a.example:8080\r\n"), "{out}");
    assert!(!out.contains("evil"), "{out}");
    assert!(request.keep_alive);
    let (_, out) = upstream("GET http://a.example HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(out.starts_with("GET / HTTP/1.1\r\n"), "{out}");
    let (_, out) = upstream("GET http://a.example?a=/b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(out.starts_with("GET /?a=/b HTTP/1.1\r\nHost: a.example\r\n"), "{out}");
    let (_, out) = upstream("OPTIONS http://a.example?a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(out.starts_with("OPTIONS /?a HTTP/1.1\r\n"), "{out}");
    let (_, out) = upstream("OPTIONS http://a.example HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(out.starts_with("OPTIONS * HTTP/1.1\r\n"), "{out}");
}

#[test]
fn an_absolute_target_may_have_either_scheme_and_decides_none() {
    let headers =
        HeaderPolicy { trusted_proxies: vec!["192.0.2.7".parse().unwrap()], ..HeaderPolicy::default() };
    let stranger = HeaderPolicy::default();
    for (target, scheme, headers, told) in [
        ("http", Scheme::Http, &stranger, Some("http")),
        ("HTTP", Scheme::Https, &stranger, Some("https")),
        ("https", Scheme::Https, &stranger, Some("https")),
        ("https", Scheme::Http, &headers, Some("http")),
        // RFC 9110 §7.4: only over TLS, or from a trusted proxy.
        ("https", Scheme::Http, &stranger, None),
        ("wss", Scheme::Https, &stranger, None),
    ] {
        let head = format!("GET {target}://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let mut out = Vec::new();
        let caller = Caller { scheme, ..caller("192.0.2.7", headers) };
        let understood = translate(head.as_bytes(), &caller, &mut out);
        let out = String::from_utf8(out).unwrap();
        match told {
            Some(told) => {
                assert!(understood.is_ok(), "{target} over {scheme:?}");
                assert!(out.starts_with("GET /x HTTP/1.1\r\nHost: a.example\r\n"), "{out}");
                assert!(out.contains(&format!("X-Forwarded-Proto: {told}\r\n")), "{out}");
            }
            None => assert_eq!(understood.unwrap_err().status(), 400, "{target} over {scheme:?}"),
        }
    }
}

#[test]
fn a_name_that_an_app_may_mistake_for_another_is_dropped_passed_or_refused() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nX_A: 1\r\nX.B: 2\r\nContent_Length: 3\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n";
    let with = |underscores| upstream_with(head, &HeaderPolicy { underscores, ..HeaderPolicy::default() });
    let (request, out) = with(Underscores::Drop).unwrap();
    assert_eq!(request.framing, Framing::None);
    for name in ["X_A", "X.B", "Content_Length", "X_Forwarded_For"] {
        assert!(!out.contains(name), "{out}");
    }
    let (_, out) = with(Underscores::Pass).unwrap();
    assert!(out.contains("X_A: 1\r\nX.B: 2\r\n"), "{out}");
    assert!(!out.contains("Content_Length") && !out.contains("X_Forwarded_For"), "{out}");
    assert_eq!(with(Underscores::Refuse).unwrap_err().status(), 400);
    let forwarded = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client_Cert: x\r\n\r\n";
    let refused = upstream_with(
        forwarded,
        &HeaderPolicy { underscores: Underscores::Refuse, ..HeaderPolicy::default() },
    );
    assert_eq!(refused.unwrap_err().status(), 400);
    let plain = "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n\r\n";
    let refusing = HeaderPolicy { underscores: Underscores::Refuse, ..HeaderPolicy::default() };
    assert!(upstream_with(plain, &refusing).is_ok());
}

#[test]
fn a_trace_is_passed_on_if_it_is_valid() {
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\ntracestate: s=1\r\n{fields}\r\n");
    let (_, out) = upstream(&head(&format!("traceparent: {good}\r\n"))).unwrap();
    assert!(out.contains(good) && out.contains("tracestate: s=1"), "{out}");
    for bad in [String::new(), "traceparent: x\r\n".into(), format!("traceparent: {good}\r\n").repeat(2)] {
        let (_, out) = upstream(&head(&bad)).unwrap();
        assert!(!out.contains("trace"), "{bad:?} gave {out}");
        let making = HeaderPolicy { traceparent: Traceparent::Make, ..HeaderPolicy::default() };
        let (request, out) = upstream_with(&head(&bad), &making).unwrap();
        let made = String::from_utf8(request.id.text(&[]).to_vec()).unwrap();
        assert!(out.contains(&format!("traceparent: 00-{made}-")) && !out.contains("tracestate"), "{out}");
    }
}

#[test]
fn a_trusted_proxy_tells_the_client() {
    let headers =
        HeaderPolicy { trusted_proxies: vec!["192.0.2.7".parse().unwrap()], ..HeaderPolicy::default() };
    let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n\r\n";
    let (request, out) = upstream_with(head, &headers).unwrap();
    assert_eq!(request.client.of_head(head.as_bytes()), b"203.0.113.9");
    assert!(out.contains("X-Forwarded-For: 6.6.6.6, 203.0.113.9, 192.0.2.7\r\n"), "{out}");
    let (request, out) = upstream(head).unwrap();
    assert_eq!(request.client.of_head(head.as_bytes()), b"");
    assert!(out.contains("X-Forwarded-For: 192.0.2.7\r\n"), "{out}");
}

#[test]
fn via_names_the_version_that_came() {
    let headers = HeaderPolicy { via: true, ..HeaderPolicy::default() };
    let (_, out) = upstream_with("GET / HTTP/1.0\r\nVia: 1.1 edge\r\n\r\n", &headers).unwrap();
    assert!(out.contains("Via: 1.1 edge\r\n") && out.contains("Via: 1.0 uh-proxy\r\n"), "{out}");
}

#[test]
fn what_is_ambiguous_or_not_allowed_is_refused() {
    for (head, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-for\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    ] {
        assert_eq!(upstream(head).map(|_| ()).unwrap_err().status(), status, "{head:?}");
    }
}

#[test]
fn an_upgrade_is_parsed_and_sent_only_once_the_service_is_known() {
    let head = |method: &str, upgrade: &str, extra: &str| {
        format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n{extra}\r\n")
    };
    for (method, upgrade) in [("GET", "WebSocket"), ("GET", "h2c"), ("POST", "SPDY/3.1")] {
        let head = head(method, upgrade, "");
        let (request, mut out) = upstream(&head).unwrap();
        assert_eq!(request.upgrade.of_head(head.as_bytes()), upgrade.as_bytes());
        assert!(!out.to_lowercase().contains("upgrade"), "{out}");
        let mut bytes = std::mem::take(&mut out).into_bytes();
        write_upgrade(b"websocket", &mut bytes);
        let out = String::from_utf8(bytes).unwrap();
        assert!(out.ends_with("\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), "{out}");
    }
    for (method, upgrade, extra) in [
        ("GET", "websocket", "Content-Length: 1\r\n"),
        ("POST", "websocket", ""),
        ("GET", "a, b", ""),
        ("GET", "/", ""),
        ("GET", "", ""),
    ] {
        let head = head(method, upgrade, extra);
        assert!(upstream(&head).unwrap().0.upgrade.of_head(head.as_bytes()).is_empty(), "{head}");
    }
}

#[test]
fn request_ids_are_made_or_checked() {
    for bad in ["", "a b", "ä", &"x".repeat(129), "a\"b"] {
        let (request, _) =
            upstream(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {bad}\r\n\r\n")).unwrap();
        assert!(matches!(request.id, RequestId::Made(_)), "{bad:?} was kept");
    }
    assert_ne!(RequestId::make(), RequestId::make());
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_the_parser(head in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let headers = HeaderPolicy::default();
        let _ = translate(&head, &caller("192.0.2.7", &headers), &mut Vec::new());
    }
}

#[test]
fn a_request_over_http2_is_logged_and_announced_as_such_and_otherwise_the_same() {
    let head = b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    let headers = HeaderPolicy { via: true, ..HeaderPolicy::default() };
    let (mut one, mut two) = (Vec::new(), Vec::new());
    let old = translate(head, &caller("192.0.2.7", &headers), &mut one).unwrap();
    let new = Caller { http2: true, ..caller("192.0.2.7", &headers) };
    let new = translate(head, &new, &mut two).unwrap();
    assert_eq!(new.version.as_str(), "HTTP/2.0");
    assert_eq!((new.framing, new.expects_continue, new.keep_alive), (old.framing, true, true));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let without_id =
        |text: String| text.lines().filter(|l| !l.starts_with("X-Request-Id")).collect::<String>();
    assert_eq!(without_id(text(&two)), without_id(text(&one)).replace("Via: 1.1", "Via: 2.0"));
}

#[test]
fn cookies_of_uh_proxy_s_are_hidden_once_there_can_be_any() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nCookie: a=1; __uh-client=2\r\nX-B: 2\r\ncookie: __uh-x=3\r\n\
                 Cookie: b=4\r\nX-C: 3\r\n\r\n";
    let headers = HeaderPolicy::default();
    for (hides_cookies, cookies, first) in [
        (
            false,
            "X-A: 1\r\nCookie: a=1; __uh-client=2\r\nX-B: 2\r\ncookie: __uh-x=3\r\nCookie: b=4\r\nX-C: 3\r\n",
            "",
        ),
        (true, "X-A: 1\r\nCookie: a=1\r\nX-B: 2\r\nCookie: b=4\r\nX-C: 3\r\n", "a=1; __uh-client=2"),
    ] {
        let caller = Caller { hides_cookies, ..caller("192.0.2.7", &headers) };
        let mut out = Vec::new();
        let request = translate(head, &caller, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains(&format!("Host: a\r\n{cookies}X-Forwarded-For")), "{out}");
        assert_eq!(request.cookie.of_head(head), first.as_bytes());
    }
}
