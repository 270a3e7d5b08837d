//! Which clients a path is for.

use super::{echo, home, with_rules};
use crate::harness::until;
use crate::http2::clients::{Client, H2C, h2c};
use crate::wire::Wire;

const RULES: &str = "\
[[paths]]
match = \"/metrics\"
allow = [\"192.0.2.0/24\", \"2001:db8::/32\"]
[[paths]]
match = \"/mine\"
allow = [\"127.0.0.1\"]
[[paths]]
match = \"/nobody\"
allow = []
";

async fn status(wire: &mut Wire, path: &str, client: &str) -> u16 {
    let told = if client.is_empty() { String::new() } else { format!("X-Forwarded-For: {client}\r\n") };
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{told}\r\n")).await;
    wire.response().await.status
}

#[tokio::test]
async fn only_listed_clients_get_an_answer_and_no_spelling_helps_the_others() {
    let app = echo().await;
    let home = home(&app, "", RULES).server(H2C);
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    for path in [
        "/metrics",
        "/metrics/x?y",
        "//metrics",
        "/METRICS",
        "/%6Detrics",
        "/x/../metrics",
        "/x/%2e%2e/metrics",
        "/metrics;x",
        "/metrics/..;/x",
        "/nobody",
    ] {
        assert_eq!(status(&mut wire, path, "").await, 403, "{path}");
        // Nobody is believed here.
        assert_eq!(status(&mut wire, path, "192.0.2.7").await, 403, "{path}");
    }
    assert_eq!(app.seen(), 0);
    assert_eq!(Client::plain(h2c(&proxy).await).await.get("/%6Detrics").await.status, 403);
    for path in ["/mine", "/Mine", "/metricsx", "/x/metrics", "/"] {
        assert_eq!(status(&mut wire, path, "").await, 200, "{path}");
    }
    let lines = until("the refusals are logged", async || {
        let lines = home.access_log();
        (lines.len() > 20).then_some(lines)
    })
    .await;
    assert_eq!((&lines[0]["termination"], &lines[0]["status"]), (&"NA".into(), &403.into()));
}

#[tokio::test]
async fn the_client_is_the_one_that_a_trusted_proxy_names() {
    let app = echo().await;
    let home = home(&app, "", RULES).server("trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]");
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    for (path, client, expected) in [
        ("/metrics", "192.0.2.7", 200),
        ("/metrics", "2001:db8::7", 200),
        ("/metrics", "198.51.100.7", 403),
        ("/metrics", "192.0.2.7, 198.51.100.7", 403),
        ("/metrics", "198.51.100.7, 192.0.2.7, 10.0.0.1", 200),
        ("/metrics", "", 403),
        ("/mine", "", 200),
        ("/mine", "192.0.2.7", 403),
        ("/metrics", "nonsense", 403),
    ] {
        assert_eq!(status(&mut wire, path, client).await, expected, "{path} {client}");
    }
}

#[tokio::test]
async fn a_service_without_such_rules_reads_paths_in_one_way() {
    let app = echo().await;
    let (_home, proxy) = with_rules(&app, "[[paths]]\nmatch = \"/a\"\naccess_log = false\n").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(status(&mut wire, "/%61", "").await, 200);
}
