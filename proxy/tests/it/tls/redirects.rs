//! Redirects to HTTPS and to the main host, and HSTS.

use super::certificates::{Authority, home, put};
use super::clients::Rustls;
use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, until};
use crate::wire::{Response, Wire};
use tokio::io::AsyncWriteExt as _;

/// A proxy with a certificate for `app.test` and `www.app.test`; adds lines to `[server.tls]` and to the service.
async fn front(tls: &str, service: &str) -> (Authority, Home, Proxy, SampleApp) {
    let authority = Authority::new();
    let pair = authority.issue(&["app.test", "www.app.test"]);
    let app = SampleApp::start("blue", "1").await;
    let home = home((app.address, app.address), &authority, &[("app", &pair)], "", tls).service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (authority, home, proxy, app)
}

async fn ask(proxy: &Proxy, method: &str, target: &str, host: &str, more: &str) -> Response {
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")).await;
    wire.response().await
}

#[tokio::test]
async fn plain_http_is_redirected_with_its_path_query_and_method() {
    let (_authority, home, proxy, _app) = front("redirect = true", "hosts = [\"app.test\"]").await;
    for (target, location) in [
        ("/", "https://app.test/"),
        ("/a/b%20c?d=e&f", "https://app.test/a/b%20c?d=e&f"),
        ("//evil.test/x", "https://app.test//evil.test/x"),
        ("http://app.test?q", "https://app.test/?q"),
    ] {
        let response = ask(&proxy, "POST", target, "App.test:8080", "Content-Length: 0\r\n").await;
        assert_eq!((response.status, response.header("location")), (308, Some(location)), "{target}");
        assert_eq!(response.header("strict-transport-security"), None);
    }
    assert_eq!(
        ask(&proxy, "GET", "/api/health?x", "app.test", "").await.status,
        200,
        "a load balancer's probe"
    );
    assert_eq!(ask(&proxy, "GET", "/", "evil.test", "").await.status, 404, "no such host");
    let line =
        until("it is logged", async || home.access_log().into_iter().find(|line| line["status"] == 308))
            .await;
    assert_eq!((line["termination"].as_str(), line["service"].as_str()), (Some("RD"), Some("app")));
    let (_authority, _home, proxy, _app) =
        front("redirect = true\nredirect_port = 8443", "redirect_https = false").await;
    assert_eq!(ask(&proxy, "GET", "/", "app.test", "").await.status, 200, "the service overrides it");
}

#[tokio::test]
async fn a_load_balancers_probe_is_served_wherever_the_health_path_is_public() {
    for (prefix, path, probe) in [
        ("path_prefix = \"/shop\"\nstrip_prefix = true", "/api/health", "/shop/api/health"),
        ("", "/api/health?deep=1", "/api/health?deep=1"),
        ("", "/api/health?deep=1", "/api/health"),
    ] {
        let health =
            format!("[services.app.health]\npath = {path:?}\ninterval = \"50ms\"\nhealthy_after = 1");
        let service = format!("hosts = [\"app.test\"]\n{prefix}\n{health}");
        let (_authority, _home, proxy, _app) = front("redirect = true", &service).await;
        assert_eq!(ask(&proxy, "GET", probe, "app.test", "").await.status, 200, "{probe} for {path}");
        let other = probe.replace("health", "healthy");
        assert_eq!(ask(&proxy, "GET", &other, "app.test", "").await.status, 308, "{other}");
    }
}

#[tokio::test]
async fn a_redirect_leads_only_to_known_hosts() {
    let (_authority, _home, proxy, _app) = front("redirect = true\nredirect_port = 8443", "").await;
    let response = ask(&proxy, "GET", "/x", "www.app.test", "").await;
    assert_eq!(response.header("location"), Some("https://www.app.test:8443/x"), "a certificate covers it");
    for host in ["evil.test", "app.test.evil.test", "127.0.0.1", "[::1]:80"] {
        let response = ask(&proxy, "GET", "/", host, "").await;
        assert_eq!((response.status, response.header("location")), (421, None), "{host}");
    }
}

#[tokio::test]
async fn a_request_received_over_https_by_a_trusted_proxy_is_not_redirected() {
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let app = SampleApp::start("blue", "1").await;
    let trusted = "trusted_proxies = [\"127.0.0.1\"]";
    let tls = "redirect = true\nhsts = { max_age = \"24h\" }";
    let home = home((app.address, app.address), &authority, &[("app", &pair)], trusted, tls);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let response = ask(&proxy, "GET", "/", "app.test", "X-Forwarded-Proto: https\r\n").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("strict-transport-security"), Some("max-age=86400"));
    assert_eq!(ask(&proxy, "GET", "/", "app.test", "X-Forwarded-Proto: http\r\n").await.status, 308);
}

#[tokio::test]
async fn redirect_hosts_lead_to_the_main_host_in_one_step() {
    let service = "hosts = [\"app.test\", \"also.app.test\"]\nredirect_hosts = [\"www.app.test\"]";
    let (authority, _home, proxy, _app) = front("", service).await;
    let response = ask(&proxy, "GET", "/x?y", "www.app.test:8080", "").await;
    assert_eq!((response.status, response.header("location")), (308, Some("http://app.test:8080/x?y")));
    for host in ["app.test", "also.app.test"] {
        assert_eq!(ask(&proxy, "GET", "/", host, "").await.status, 200, "{host}");
    }
    let address = super::certificates::address(&proxy).await;
    let mut client = Rustls::new(&authority).connect(address, "www.app.test").await.unwrap();
    client.send("GET /x HTTP/1.1\r\nHost: www.app.test\r\n\r\n").await;
    assert_eq!(client.response().await.header("location"), Some("https://app.test/x"));
    let (_authority, _home, proxy, _app) = front("redirect = true", service).await;
    let response = ask(&proxy, "GET", "/x", "www.app.test", "").await;
    assert_eq!(response.header("location"), Some("https://app.test/x"), "both in one");
}

#[tokio::test]
async fn hsts_is_on_every_response_over_https_unless_the_app_sets_it() {
    let app = Scripted::start(|head, mut stream| async move {
        let own = if head.starts_with("GET /own") { "Strict-Transport-Security: max-age=1\r\n" } else { "" };
        let response = format!("HTTP/1.1 200 OK\r\n{own}Content-Length: 0\r\n\r\n");
        stream.write_all(response.as_bytes()).await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await;
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let hsts = "hsts = { max_age = \"8760h\", include_subdomains = true }";
    let home = home((app.address, app.address), &authority, &[("app", &pair)], "", hsts)
        .service("hosts = [\"app.test\"]");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let address = super::certificates::address(&proxy).await;
    let mut client = Rustls::new(&authority).connect(address, "app.test").await.unwrap();
    let said = |response: &Response| {
        let fields = response.head.lines().filter(|line| line.starts_with("Strict-Transport-Security"));
        fields.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let ours = ["Strict-Transport-Security: max-age=31536000; includeSubDomains".to_owned()];
    assert_eq!(said(&client.get("/").await), ours);
    assert_eq!(said(&client.get("/own").await), ["Strict-Transport-Security: max-age=1"]);
    client.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    let unrouted = client.response().await;
    assert_eq!((unrouted.status, said(&unrouted)), (404, ours.to_vec()));
    client.send("GET / HTTP/1.1\r\nbad\r\n\r\n").await;
    let bad = client.response().await;
    assert_eq!((bad.status, said(&bad)), (400, ours.to_vec()));
    let plain = ask(&proxy, "GET", "/", "app.test", "").await;
    assert_eq!((plain.status, said(&plain).len()), (200, 0));
}

#[tokio::test]
async fn a_listener_that_waits_for_a_restart_causes_no_redirects() {
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, app.address).service("hosts = [\"app.test\"]");
    let mut proxy = home.start().await;
    proxy.until_healthy().await;
    let tls = format!(
        "listen_tls = [\"127.0.0.1:0\"]\n[server.tls]\nredirect = true\ncertificates = [{}]\n\n[services.app]",
        put(&home, "app", &pair)
    );
    let config = home.config().replace("[services.app]\n", &format!("{tls}\n"));
    home.write_config(&config);
    let done = proxy.client.reload().await.unwrap();
    assert!(done.needs_restart.contains(&"server.listen_tls".to_owned()), "{done:?}");
    assert_eq!(ask(&proxy, "GET", "/", "app.test", "").await.status, 200);
    proxy.kill();
    let command = home.command();
    home.write_config(&config);
    let proxy = home.start_as(command).await;
    proxy.until_healthy().await;
    assert_eq!(ask(&proxy, "GET", "/", "app.test", "").await.status, 308);
}
