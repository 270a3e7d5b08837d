//! What a holder of a token gets, and what is seen of it.

use std::fs;
use std::sync::atomic::Ordering;

use uh_protocol::request::SplitRequest;

use super::{assert_private, assert_usual, by_cookie, by_field, get, green, versions};
use crate::harness::{app, backend, until};
use crate::wire::Wire;

#[tokio::test]
async fn a_link_sets_a_cookie_that_shows_the_standby_and_the_app_sees_nothing_of_it() {
    let (home, proxy, apps) = versions("", "").await;
    let token = green(&proxy).await.token;
    let mut wire = Wire::connect(proxy.address).await;
    let moved = get(&mut wire, &format!("/shop?a=1&__uh-preview={token}&b=2"), "").await;
    assert_eq!((moved.status, moved.header("location")), (303, Some("/shop?a=1&b=2")), "{}", moved.head);
    assert_private(&moved);
    let cookie = moved.header("set-cookie").unwrap();
    assert_eq!(cookie, format!("__uh-preview={token}; Path=/; HttpOnly; SameSite=Lax"));
    for fields in [by_cookie(&token), by_field(&token)] {
        let response = get(&mut wire, "/shop?a=1&b=2", &fields).await;
        assert_eq!((response.status, response.header("x-backend")), (200, Some("green")));
        assert_private(&response);
    }
    assert_usual(&get(&mut wire, "/", "").await, "blue");
    assert_usual(&get(&mut wire, "/", "Cookie: a=1\r\n").await, "blue");
    assert!(apps.iter().all(|app| !app.saw_token.load(Ordering::SeqCst)));
    proxy.until_counted("uh_proxy_preview_requests_total{service=\"app\",backend=\"green\"} 2\n").await;
    proxy.until_counted("uh_proxy_preview_requests_total{service=\"app\",backend=\"blue\"} 0\n").await;
    let green_requests =
        "uh_proxy_requests_total{service=\"app\",backend=\"green\",code=\"200\",method=\"GET\"} 2\n";
    proxy.until_counted(green_requests).await;
    let lines =
        until("all are logged", async || Some(home.access_log()).filter(|lines| lines.len() == 5)).await;
    let logged: Vec<_> =
        lines.iter().map(|line| (line["preview"].as_bool(), line["backend"].as_str())).collect();
    let (preview, usual) = ((Some(true), Some("green")), (None, Some("blue")));
    assert_eq!(logged, [(Some(true), None), preview, preview, usual, usual]);
    assert_eq!(
        (&lines[0]["termination"], &lines[0]["path"]),
        (&"PV".into(), &"/shop?a=1&__uh-preview=-&b=2".into())
    );
    let text = fs::read_to_string(home.path("access.log")).unwrap();
    assert!(!text.contains(&token) && !home.messages().contains(&token), "a log must not show the token");
}

#[tokio::test]
async fn rules_of_the_service_apply_and_those_of_old_tabs_and_splits_do_not() {
    let rules = "previous_on_404 = true\n\
                 [[services.app.paths]]\nmatch = \"/inner\"\nallow = [\"192.0.2.0/24\"]\n\
                 [[services.app.paths]]\nmatch = \"/once\"\nrate = { per_minute = 1, burst = 0 }\n\
                 [[services.app.paths]]\nmatch = \"/fields\"\nresponse_headers = { set = { Cache-Control = \"public\" } }\n";
    let (_home, proxy, _apps) = versions("", rules).await;
    let token = green(&proxy).await.token;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(get(&mut wire, "/inner", &by_field(&token)).await.status, 403);
    assert_eq!(get(&mut wire, "/once", &by_field(&token)).await.status, 200);
    assert_eq!(get(&mut wire, "/once", &by_field(&token)).await.status, 429);
    assert_private(&get(&mut wire, "/fields", &by_field(&token)).await);
    // During a split, as without one: no other backend is asked, and the client gets no cookie of the split.
    for weight in [0.0, 100.0] {
        let to = Some(backend("green"));
        let request = SplitRequest { to, weight, ..SplitRequest::default() };
        proxy.client.split(&app(), &request).await.unwrap();
        let missing = get(&mut wire, "/missing", &by_field(&token)).await;
        assert_eq!((missing.status, missing.header("x-backend")), (404, Some("green")), "{weight}");
        assert_eq!(missing.header("set-cookie"), None);
        assert_private(&missing);
    }
}

#[tokio::test]
async fn a_service_in_maintenance_shows_no_standby_unless_the_request_bypasses_it() {
    let bypass = "maintenance = { bypass_header = \"X-Look: let me in please\" }";
    let (_home, proxy, _apps) = versions("", bypass).await;
    let token = green(&proxy).await.token;
    let on = uh_protocol::request::MaintenanceRequest { on: true, message: None, retry_after_s: None };
    proxy.client.maintenance(&app(), &on).await.unwrap();
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(get(&mut wire, "/", &by_field(&token)).await.status, 503);
    let fields = format!("X-Look: let me in please\r\n{}", by_field(&token));
    let response = get(&mut wire, "/", &fields).await;
    assert_eq!((response.status, response.header("x-backend")), (200, Some("green")));
    assert_private(&response);
}

#[tokio::test]
async fn files_and_buffered_requests_are_those_of_the_standby() {
    let files = tempfile::tempdir().unwrap();
    for name in ["blue", "green"] {
        fs::create_dir_all(files.path().join(name)).unwrap();
        fs::write(files.path().join(name).join("page.html"), name).unwrap();
    }
    let root = files.path().join("{backend}");
    let service = format!("files = {root:?}\nbuffer_requests = true");
    let (_home, proxy, apps) = versions("", &service).await;
    let token = green(&proxy).await.token;
    let mut wire = Wire::connect(proxy.address).await;
    let file = get(&mut wire, "/page.html", &by_cookie(&token)).await;
    assert_eq!((file.status, file.text()), (200, "green".to_owned()));
    assert_eq!(
        (file.header("cache-control"), file.header("x-robots-tag")),
        (Some("private, no-store"), Some("noindex"))
    );
    assert_eq!(get(&mut wire, "/page.html", "").await.text(), "blue");
    wire.send(format!(
        "POST /form HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n{}\r\n",
        by_field(&token)
    ))
    .await;
    wire.send("body").await;
    let answer = wire.response().await;
    assert_eq!(answer.header("x-backend"), Some("green"), "{}", answer.head);
    assert_private(&answer);
    // A switch while the body arrives: now everybody gets that answer.
    let begin =
        format!("POST /form HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n{}\r\n", by_field(&token));
    wire.send(begin).await;
    wire.send("bo").await;
    proxy.switch("green").await;
    wire.send("dy").await;
    assert_usual(&wire.response().await, "green");
    assert_eq!(apps[0].app.seen(), 0);
}
