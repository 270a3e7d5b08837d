//! Fields of requests and responses that a service and its paths set.

use http::Request;

use super::rules;
use crate::http2::clients::{self, Client, url};
use crate::recorder::{End, Recorder};
use crate::wire::{Response, Wire};

const CONFIG: &str = "\
response_headers = { set = { X-Frame-Options = \"DENY\", X-Both = \"service\" }, default = { Cache-Control = \"no-cache\" }, remove = [\"X-Powered-By\"] }
request_headers = { set = { X-Api-Key = \"service\" }, default = { Accept-Language = \"en\" }, remove = [\"Cookie\"] }
[services.app.health]
enabled = false
[[paths]]
match = \"/p\"
response_headers = { set = { X-Both = \"path\", Set-Cookie = \"only=1\" }, remove = [\"X-Frame-Options\"] }
request_headers = { set = { X-Path = \"yes\" }, remove = [\"x-api-key\"] }
[[paths]]
match = \"/plain\"
access_log = false
";

/// An app whose responses have some fields, and some twice.
fn app(target: &str) -> (Vec<u8>, End) {
    let fields = match target {
        "/plain" => "",
        "/hints" => return (b"HTTP/1.1 103 Early Hints\r\nX-Powered-By: a\r\n\r\nHTTP/1.1 204 No Content\r\nDate: then\r\n\r\n".to_vec(), End::Keep),
        "/close" => return (Vec::new(), End::Close),
        _ => {
            "X-Powered-By: a\r\nx-powered-by: b\r\nX-Both: app\r\nSet-Cookie: a=1\r\nX-BOTH: again\r\nSet-Cookie: b=2\r\ncache-control: private\r\nX-Frame-Options: SAMEORIGIN\r\n"
        }
    };
    let head = format!("HTTP/1.1 200 OK\r\nDate: then\r\n{fields}Content-Length: 2\r\n\r\nok");
    (head.into_bytes(), End::Keep)
}

/// The values of all fields with a name.
fn all<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    let fields = response.head.lines().skip(1).filter_map(|line| line.split_once(": "));
    fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn set_replaces_all_default_is_for_none_and_remove_leaves_none() {
    let recorder = Recorder::start(app).await;
    let (_home, proxy, h2) = clients::before(recorder.address, "", &rules(CONFIG)).await;
    let mut wire = Wire::connect(proxy.address).await;
    for (path, expected) in [
        ("/", [vec!["DENY"], vec!["service"], vec!["private"], vec![], vec!["a=1", "b=2"]]),
        ("/plain", [vec!["DENY"], vec!["service"], vec!["no-cache"], vec![], vec![]]),
        ("/p/x", [vec![], vec!["path"], vec!["private"], vec![], vec!["only=1"]]),
    ] {
        let response = wire.get(path).await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{path}");
        let names = ["X-Frame-Options", "X-Both", "Cache-Control", "X-Powered-By", "Set-Cookie"];
        assert_eq!(names.map(|name| all(&response, name)), expected, "{path}: {}", response.head);
        let answer = Client::plain(h2).await.get(path).await;
        for (name, values) in names.into_iter().zip(&expected) {
            let found: Vec<&str> =
                answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(found, *values, "{path} {name} over HTTP/2");
        }
    }
}

#[tokio::test]
async fn interim_responses_stay_as_they_are() {
    let recorder = Recorder::start(app).await;
    let (_home, proxy, _) = clients::before(recorder.address, "", &rules(CONFIG)).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET /hints HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let hints = wire.response_to_head().await;
    assert_eq!((hints.status, all(&hints, "X-Powered-By"), all(&hints, "X-Both")), (103, vec!["a"], vec![]));
    let last = wire.response().await;
    assert_eq!((last.status, all(&last, "X-Both")), (204, vec!["service"]));
}

#[tokio::test]
async fn the_app_gets_the_fields_that_are_set_and_no_look_alikes() {
    let recorder = Recorder::start(app).await;
    let server = "headers = { underscores = \"pass\" }";
    let (_home, proxy, h2) = clients::before(recorder.address, server, &rules(CONFIG)).await;
    let mut wire = Wire::connect(proxy.address).await;
    let head = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nX-API-key: mine\r\nX_Api_Key: mine\r\nCookie: a=1\r\nX-Path: mine\r\n\
             Connection: x-hop\r\nx-hop: 1\r\n\r\n"
        )
    };
    for (path, expected, not) in [
        ("/", &["|X-Api-Key: service|", "|X-Path: mine|", "|Accept-Language: en|"][..], "api-key: mine"),
        ("/p", &["|X-Path: yes|", "|Accept-Language: en|"][..], "api"),
    ] {
        wire.send(head(path)).await;
        assert_eq!(wire.response().await.status, 200);
        let request = Request::get(url(path))
            .header("x-api-key", "mine")
            .header("cookie", "a=1")
            .header("x-path", "mine");
        Client::plain(h2).await.send(request.body(()).unwrap()).await.unwrap();
        let seen = recorder.take();
        assert_eq!(seen.len(), 2);
        for seen in seen {
            let lower = format!("{}|", seen.head.to_lowercase());
            for field in expected {
                assert_eq!(lower.matches(&field.to_lowercase()).count(), 1, "{path}: {field}: {}", seen.head);
            }
            assert!(
                !lower.contains("cookie") && !lower.contains("api_key") && !lower.contains(not),
                "{}",
                seen.head
            );
            assert_eq!(lower.matches("x-path").count(), 1, "{}", seen.head);
        }
    }
    wire.send("GET / HTTP/1.1\r\nHost: a\r\naccept-language: de\r\n\r\n").await;
    wire.response().await;
    let head = recorder.take().remove(0).head;
    assert!(head.contains("|accept-language: de|") && !head.contains(": en|"), "{head}");
}

#[tokio::test]
async fn uh_proxys_own_answers_have_them_too() {
    let recorder = Recorder::start(app).await;
    let service = format!(
        "{CONFIG}[[paths]]\nmatch = \"/small\"\nlimits = {{ body_bytes = \"1B\" }}\nresponse_headers = {{ set = {{ X-Both = \"small\", Cache-Control = \"max-age=1\" }} }}\n"
    );
    let (home, proxy, h2) = clients::before(recorder.address, "", &rules(&service)).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await;
    let response = wire.response().await;
    assert_eq!((response.status, all(&response, "X-Both")), (413, vec!["small"]));
    assert_eq!(
        (all(&response, "Cache-Control"), all(&response, "X-Frame-Options")),
        (vec!["max-age=1"], vec!["DENY"])
    );
    let mut wire = Wire::connect(proxy.address).await;
    let response = wire.get("/close").await;
    assert_eq!(
        (response.status, all(&response, "X-Both"), all(&response, "Cache-Control")),
        (502, vec!["service"], vec!["no-store"])
    );
    assert_eq!(response.text().len(), response.header("content-length").unwrap().parse::<usize>().unwrap());
    let answer = Client::plain(h2).await.get("/close").await;
    assert_eq!((answer.status.as_u16(), answer.headers["x-both"].to_str().unwrap()), (502, "service"));
    let (exit, _, said) = crate::harness::cli(&home.socket(), &["maintenance", "on"]).await;
    assert_eq!(exit, 0, "{said}");
    let response = wire.get("/p").await;
    assert_eq!(
        (response.status, all(&response, "X-Both"), all(&response, "X-Frame-Options")),
        (503, vec!["path"], vec![])
    );
}
