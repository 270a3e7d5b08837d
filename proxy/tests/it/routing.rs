//! Which service handles a request: hosts, path prefixes and `strip_prefix`, with the real program.

use crate::harness::{Home, Proxy, SampleApp, Scripted, Then};
use crate::wire::{Response, Wire};
use tokio::io::AsyncWriteExt as _;

/// An app that answers with its name, the requested target, and the fields that a test checks.
async fn named(name: &'static str) -> Scripted {
    Scripted::start(move |head, mut stream| async move {
        let mut body = format!("{name} {}", head.split(' ').nth(1).unwrap_or_default());
        for line in head.lines().filter(|line| line.to_ascii_lowercase().starts_with("x-forwarded-prefix")) {
            body.push_str(&format!(" [{line}]"));
        }
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(reply.as_bytes()).await;
        (stream, Then::KeepAlive)
    })
    .await
}

/// A separate service for an app.
fn service(name: &str, app: &Scripted, lines: &str) -> String {
    format!(
        "[services.{name}]\nactive = \"only\"\n{lines}\n[services.{name}.health]\nenabled = false\n\
         [services.{name}.backends.only]\nendpoints = [\"{}\"]\n",
        app.address
    )
}

async fn ask(wire: &mut Wire, host: &str, path: &str) -> Response {
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Prefix: /lie\r\n\r\n")).await;
    wire.response().await
}

/// The default service `app` (any host, `/`) is `root`; the others are given.
async fn front_door(root: &str, app: &Scripted, services: &[String]) -> (Home, Proxy) {
    let mut lines = root.to_owned();
    // The harness continues with full table names of `app`, so other services may come in between.
    for service in services {
        lines.push('\n');
        lines.push_str(service);
    }
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1").service(&lines);
    let proxy = home.start().await;
    (home, proxy)
}

/// K05-K09, K19, K20: what each host and path gets.
#[tokio::test]
async fn the_host_decides_and_then_the_longest_path_prefix() {
    let (root, exact, wild, api, deep, six) =
        tokio::join!(named("root"), named("exact"), named("wild"), named("api"), named("deep"), named("six"));
    let (_home, proxy) = front_door(
        "",
        &root,
        &[
            service("exact", &exact, "hosts = [\"Dummy.Example.com\", \"other.example.com\"]"),
            service("wild", &wild, "hosts = [\"*.first.example.com\"]"),
            service("api", &api, "hosts = [\"api.example.com\"]\npath_prefix = \"/api\""),
            service("deep", &deep, "hosts = [\"api.example.com\"]\npath_prefix = \"/api/internal/\""),
            service("six", &six, "hosts = [\"[::1]\"]"),
        ],
    )
    .await;
    let mut wire = Wire::connect(proxy.address).await;
    for (host, path, expected) in [
        ("dummy.example.com", "/x", "exact /x"),
        ("dummy.example.com:80", "/x", "exact /x"),
        ("DUMMY.example.COM.:8080", "/x", "exact /x"),
        ("other.example.com", "/", "exact /"),
        ("a.first.example.com", "/", "wild /"),
        ("a.b.first.example.com", "/", "root /"),
        ("first.example.com", "/", "root /"),
        ("nobody.example.com", "/", "root /"),
        ("[::1]:80", "/", "six /"),
        ("[0:0:0:0:0:0:0:1]", "/", "six /"),
        ("api.example.com", "/api/x?a=b;c=%zz", "api /api/x?a=b;c=%zz"),
        ("api.example.com", "/api", "api /api"),
        ("api.example.com", "/api/internal/x", "deep /api/internal/x"),
        ("api.example.com", "/api/internals", "api /api/internals"),
    ] {
        let response = ask(&mut wire, host, path).await;
        assert_eq!((response.status, response.text().as_str()), (200, expected), "{host} {path}");
    }
    for path in ["/", "/apix", "/other"] {
        assert_eq!(ask(&mut wire, "api.example.com", path).await.status, 404, "{path}");
    }
}

/// K01, K05-K07: all services have hosts.
#[tokio::test]
async fn a_host_that_no_service_has_is_404_and_the_connection_goes_on() {
    let app = named("app").await;
    let (_home, proxy) = front_door("hosts = [\"app.test\"]", &app, &[]).await;
    let mut wire = Wire::connect(proxy.address).await;
    for (host, status) in [("app.test", 200), ("other.test", 404), ("app.test:1", 200)] {
        assert_eq!(ask(&mut wire, host, "/").await.status, status, "{host}");
    }
    // An absolute target names the host (RFC 9112 §3.2.2).
    assert_eq!(ask(&mut wire, "other.test", "http://app.test/x").await.text(), "app /x");
    assert_eq!(app.seen(), 3);
}

/// K18: what the app gets of the path.
#[tokio::test]
async fn a_stripped_prefix_is_removed_and_forwarded() {
    let (root, app, api, kept) = tokio::join!(named("root"), named("app"), named("api"), named("kept"));
    let (_home, proxy) = front_door(
        "",
        &root,
        &[
            service("one", &app, "path_prefix = \"/app\"\nstrip_prefix = true"),
            service("two", &api, "path_prefix = \"/api/internal\"\nstrip_prefix = true"),
            service("three", &kept, "path_prefix = \"/kept\""),
        ],
    )
    .await;
    let mut wire = Wire::connect(proxy.address).await;
    for (path, expected) in [
        ("/app/show", "app /show [X-Forwarded-Prefix: /app]"),
        ("/app", "app / [X-Forwarded-Prefix: /app]"),
        ("/app/", "app / [X-Forwarded-Prefix: /app]"),
        ("/app?a=b", "app /?a=b [X-Forwarded-Prefix: /app]"),
        ("/app/%2e/a%20b;c?d=%zz&e", "app /%2e/a%20b;c?d=%zz&e [X-Forwarded-Prefix: /app]"),
        ("/api/internal/x?a=b", "api /x?a=b [X-Forwarded-Prefix: /api/internal]"),
        ("/api", "root /api"),
        ("/appointment", "root /appointment"),
        ("/kept/x", "kept /kept/x"),
        ("/kept", "kept /kept"),
    ] {
        let response = ask(&mut wire, "a.test", path).await;
        assert_eq!(response.text(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_path_that_climbs_out_of_a_prefix_is_not_for_its_service() {
    let (root, app) = tokio::join!(named("root"), named("app"));
    let services = [service("one", &app, "path_prefix = \"/app\"\nstrip_prefix = true")];
    let (_home, proxy) = front_door("", &root, &services).await;
    let mut wire = Wire::connect(proxy.address).await;
    for path in ["/app/../admin", "/app/%2E%2e/admin", "/app/..%2fadmin", "/app/x/../../admin", "/x/../app/y"]
    {
        assert_eq!(ask(&mut wire, "a.test", path).await.text(), format!("root {path}"));
    }
    assert_eq!(
        ask(&mut wire, "a.test", "/app/x/../y").await.text(),
        "app /x/../y [X-Forwarded-Prefix: /app]"
    );
    assert_eq!(ask(&mut wire, "a.test", "/x/../app").await.text(), "root /x/../app");
}

/// K16, K17, K24: `check` and `run` name the services that conflict.
#[tokio::test]
async fn two_services_for_the_same_host_and_path_are_refused() {
    let app = named("app").await;
    let services = [service("two", &app, "hosts = [\"a.test\", \"APP.test.\"]")];
    let home =
        Home::new(app.address, "127.0.0.1:9").service(&format!("hosts = [\"app.TEST\"]\n{}", services[0]));
    std::fs::write(home.path("c.toml"), home.config()).unwrap();
    let config = home.path("c.toml");
    for command in ["check", "run"] {
        let arguments = [command, "--config", config.to_str().unwrap()];
        let (exit, _, stderr) = crate::harness::cli(&home.socket(), &arguments).await;
        assert_eq!(exit, 1, "{stderr}");
        assert!(
            stderr.contains("services.two: service app already handles app.test with path /"),
            "{stderr}"
        );
    }
}

/// K02, K10: after an app is replaced, every later response comes from the new one.
#[tokio::test]
async fn each_service_switches_by_itself() {
    let (blue, green, other) =
        (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await, named("other").await);
    let lines = service("other", &other, "path_prefix = \"/other\"");
    let home = Home::new(blue.address, green.address).service(&lines);
    let proxy = home.start().await;
    crate::harness::until("both are healthy", async || {
        let app = proxy.service().await;
        app.backends.iter().all(|backend| backend.healthy == Some(true)).then_some(())
    })
    .await;
    let mut wire = Wire::connect(proxy.address).await;
    assert!(ask(&mut wire, "a", "/").await.text().starts_with("blue"));
    proxy.switch("green").await;
    for _ in 0..5 {
        assert!(ask(&mut wire, "a", "/").await.text().starts_with("green"));
        assert_eq!(ask(&mut wire, "a", "/other").await.text(), "other /other");
    }
}
