//! The same endpoint for a client, by cookie or by address, with real sockets.

mod socket_io;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::harness::{Home, Proxy, read_head, until};
use crate::http2::clients::{Client, H2C, h2c, url};
use crate::tls::certificates::{Authority, address, home};
use crate::tls::clients::Rustls;
use crate::wire::{Response, Wire};

const BY_COOKIE: &str = "sticky = { by = \"cookie\" }";
const BY_ADDRESS: &str = "sticky = { by = \"address\" }";
const PROBES: &str = "[services.app.health]\ninterval = \"30ms\"\nhealthy_after = 1\nunhealthy_after = 1";

/// An app that answers with its name and the cookies it has got. The query names the fields of the answer, with `_` for
/// a space.
struct Named {
    address: SocketAddr,
    healthy: Arc<AtomicBool>,
}

async fn named(name: &'static str) -> Named {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let healthy = Arc::new(AtomicBool::new(true));
    let probed = Arc::clone(&healthy);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let probed = Arc::clone(&probed);
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    let sick = head.starts_with("GET /api/health ") && !probed.load(Ordering::SeqCst);
                    let status = if sick { "503 No" } else { "200 OK" };
                    let target = head.split(' ').nth(1).unwrap();
                    let field = target.split_once('?').map_or("X-A: b", |(_, query)| query).replace('_', " ");
                    let cookies: Vec<&str> = head
                        .lines()
                        .filter(|line| line.to_ascii_lowercase().starts_with("cookie:"))
                        .collect();
                    let body = format!("{name} {}", cookies.join("|"));
                    let reply = format!(
                        "HTTP/1.1 {status}\r\n{field}\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = stream.write_all(reply.as_bytes()).await;
                }
            });
        }
    });
    Named { address, healthy }
}

fn all(apps: &[Named]) -> String {
    apps.iter().map(|app| app.address.to_string()).collect::<Vec<_>>().join("\", \"")
}

struct Fixture {
    home: Home,
    proxy: Proxy,
    blue: Vec<Named>,
    green: Vec<Named>,
}

async fn fixture(server: &str, service: &str) -> Fixture {
    let blue = vec![named("b0").await, named("b1").await, named("b2").await];
    let green = vec![named("g0").await, named("g1").await];
    let home = Home::new(all(&blue), all(&green)).server(server).service(&format!("{service}\n{PROBES}"));
    let proxy = home.start().await;
    proxy.until_healthy().await;
    Fixture { home, proxy, blue, green }
}

/// The cookie that a response sets, as `name=value`, and its attributes.
fn cookie_of(response: &Response) -> Option<(String, String)> {
    let (pair, attributes) = response.header("set-cookie")?.split_once("; ")?;
    Some((pair.to_owned(), attributes.to_owned()))
}

async fn ask(wire: &mut Wire, target: &str, fields: &str) -> Response {
    wire.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
    let response = wire.response().await;
    assert_eq!(response.status, 200, "{response:?}");
    response
}

/// The endpoint that answered.
fn who(response: &Response) -> String {
    response.text().split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_client_with_our_cookie_stays_and_the_app_never_sees_it() {
    let fixture = fixture("threads = 2", BY_COOKIE).await;
    let (mut endpoints, mut clients) = (BTreeMap::new(), 0);
    // Each worker has turns of its own, so how many clients that takes is chance.
    while endpoints.len() < 3 {
        clients += 1;
        assert!(clients <= 60, "the load isn't spread: {endpoints:?}");
        let mut wire = Wire::connect(fixture.proxy.address).await;
        let first = ask(&mut wire, "/", "").await;
        let (cookie, attributes) = cookie_of(&first).unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        let value = cookie.strip_prefix("uh-endpoint=").unwrap();
        assert!(value.len() == 32 && value.bytes().all(|b| b.is_ascii_hexdigit()), "{value}");
        assert_eq!(first.header("cache-control"), Some("private"));
        endpoints.insert(who(&first), cookie.clone());
        for _ in 0..4 {
            let mut wire = Wire::connect(fixture.proxy.address).await;
            let fields = format!("Cookie: a=1; {cookie}; b=2\r\n");
            let next = ask(&mut wire, "/", &fields).await;
            assert_eq!(next.text(), format!("{} Cookie: a=1; b=2", who(&first)));
            assert!(cookie_of(&next).is_none() && next.header("cache-control").is_none(), "{next:?}");
        }
    }
    let kept =
        format!("uh_proxy_sticky_total{{service=\"app\",backend=\"blue\",result=\"kept\"}} {}", 4 * clients);
    fixture.proxy.until_counted(&kept).await;
    let new = format!("uh_proxy_sticky_total{{service=\"app\",backend=\"blue\",result=\"new\"}} {clients}");
    fixture.proxy.until_counted(&new).await;
}

#[tokio::test]
async fn without_it_there_is_no_cookie_and_requests_are_spread() {
    let fixture = fixture("threads = 1", "").await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    let mut seen = BTreeMap::<String, u32>::new();
    for _ in 0..9 {
        let response = ask(&mut wire, "/", "Cookie: uh-endpoint=x\r\n").await;
        assert!(
            response.text().ends_with("Cookie: uh-endpoint=x") && response.header("set-cookie").is_none()
        );
        *seen.entry(who(&response)).or_default() += 1;
    }
    assert!(seen.values().all(|&count| count == 3), "{seen:?}");
    assert!(!fixture.proxy.client.metrics().await.unwrap().contains("sticky_total"));
    assert!(!fixture.home.path("state/.deployment-state.json.cookie-key").exists());
}

#[tokio::test]
async fn a_forged_or_stale_cookie_counts_as_none() {
    let fixture = fixture("", BY_COOKIE).await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    for value in ["", "0", "127.0.0.1:80", &"0".repeat(32), &"f".repeat(400)] {
        let response = ask(&mut wire, "/", &format!("Cookie: uh-endpoint={value}\r\n")).await;
        assert!(cookie_of(&response).is_some() && response.text().trim_end() == who(&response), "{value}");
    }
    // A real one next to them is found.
    let (cookie, _) = cookie_of(&ask(&mut wire, "/", "").await).unwrap();
    let response = ask(&mut wire, "/", &format!("Cookie: uh-endpoint=x; {cookie}\r\n")).await;
    assert!(cookie_of(&response).is_none(), "{response:?}");
}

#[tokio::test]
async fn a_shared_cache_never_gets_the_cookie() {
    let fixture = fixture("", BY_COOKIE).await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    for (field, set) in [
        ("Cache-Control:_public,_max-age=60", false),
        ("Cache-Control:_max-age=60", false),
        ("Last-Modified:_Mon,_01_Jan_2024_00:00:00_GMT", false),
        ("Cache-Control:_no-store", true),
        ("Cache-Control:_private,_max-age=60", true),
        ("Set-Cookie:_session=1", true),
    ] {
        let response = ask(&mut wire, &format!("/?{field}"), "").await;
        let ours = response.head.contains("uh-endpoint=");
        assert_eq!(ours, set, "{field}: {}", response.head);
        assert!(response.head.contains(&field.replace('_', " ")), "{}", response.head);
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_replaced_and_so_is_the_cookie() {
    let fixture = fixture("", BY_COOKIE).await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    let first = ask(&mut wire, "/", "").await;
    let (cookie, _) = cookie_of(&first).unwrap();
    let at = usize::from(first.text().as_bytes()[1] - b'0');
    fixture.blue[at].healthy.store(false, Ordering::SeqCst);
    let fields = format!("Cookie: {cookie}\r\n");
    let other = until("another endpoint answers", async || {
        let response = ask(&mut wire, "/", &fields).await;
        (who(&response) != who(&first)).then_some(response)
    })
    .await;
    let (second, _) = cookie_of(&other).unwrap();
    assert_ne!(second, cookie);
    let next = ask(&mut wire, "/", &format!("Cookie: {second}\r\n")).await;
    assert!(who(&next) == who(&other) && cookie_of(&next).is_none());
    let metrics = fixture.proxy.client.metrics().await.unwrap();
    assert!(
        metrics.contains("uh_proxy_sticky_total{service=\"app\",backend=\"blue\",result=\"moved\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_switch_gives_a_new_endpoint_and_a_new_cookie_without_an_error() {
    let fixture = fixture("", BY_COOKIE).await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    let (blue, _) = cookie_of(&ask(&mut wire, "/", "").await).unwrap();
    fixture.proxy.switch("green").await;
    let response = ask(&mut wire, "/", &format!("Cookie: {blue}\r\n")).await;
    assert!(who(&response).starts_with('g'), "{response:?}");
    let (green, _) = cookie_of(&response).unwrap();
    assert_ne!(green, blue);
    let again = ask(&mut wire, "/", &format!("Cookie: {green}\r\n")).await;
    assert!(who(&again) == who(&response) && cookie_of(&again).is_none());
    assert_eq!(fixture.green.len(), 2);
}

#[tokio::test]
async fn a_restart_understands_the_cookies_of_before() {
    let fixture = fixture("", BY_COOKIE).await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    let first = ask(&mut wire, "/", "").await;
    let (cookie, _) = cookie_of(&first).unwrap();
    let Fixture { home, proxy, blue: _blue, green: _green } = fixture;
    drop((wire, proxy));
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..6 {
        let response = ask(&mut wire, "/", &format!("Cookie: {cookie}\r\n")).await;
        assert!(who(&response) == who(&first) && cookie_of(&response).is_none(), "{response:?}");
    }
}

#[tokio::test]
async fn a_reload_can_turn_it_on() {
    let fixture = fixture("", "").await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    assert!(cookie_of(&ask(&mut wire, "/", "").await).is_none());
    let config = std::fs::read_to_string(fixture.home.config_file()).unwrap();
    fixture.home.write_config(&config.replace("[services.app]\n", &format!("[services.app]\n{BY_COOKIE}\n")));
    let (code, _, said) = crate::harness::cli(&fixture.home.socket(), &["reload"]).await;
    assert_eq!(code, 0, "{said}");
    let first = ask(&mut wire, "/", "").await;
    let (cookie, _) = cookie_of(&first).unwrap();
    for _ in 0..6 {
        assert_eq!(who(&ask(&mut wire, "/", &format!("Cookie: {cookie}\r\n")).await), who(&first));
    }
}

#[tokio::test]
async fn over_tls_and_http2_it_is_the_same() {
    let fixture = fixture(H2C, BY_COOKIE).await;
    let client = Client::plain(h2c(&fixture.proxy).await).await;
    let first = client.get("/").await;
    let set = first.headers["set-cookie"].to_str().unwrap();
    let cookie = set.split(';').next().unwrap().to_owned();
    for _ in 0..5 {
        let request = http::Request::get(url("/")).header("cookie", "a=1").header("cookie", &cookie);
        let next = client.send(request.body(()).unwrap()).await.unwrap();
        assert_eq!(next.text(), format!("{} cookie: a=1", first.text().split(' ').next().unwrap()));
        assert!(!next.headers.contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn an_address_always_reaches_the_same_endpoint() {
    let fixture = fixture("trusted_proxies = [\"127.0.0.0/8\"]\nthreads = 2", BY_ADDRESS).await;
    let mut wire = Wire::connect(fixture.proxy.address).await;
    let mut seen = BTreeMap::new();
    let of = |client: u32| format!("X-Forwarded-For: 192.0.{}.{}\r\n", client / 250, client % 250 + 1);
    for client in 0..120 {
        let first = ask(&mut wire, "/", &of(client)).await;
        assert!(first.header("set-cookie").is_none());
        seen.insert(client, who(&first));
    }
    for name in ["b0", "b1", "b2"] {
        let count = seen.values().filter(|seen| *seen == name).count();
        assert!((20..=60).contains(&count), "{name}: {count} of 120");
    }
    let mut other = Wire::connect(fixture.proxy.address).await;
    for client in 0..120 {
        assert_eq!(who(&ask(&mut other, "/", &of(client)).await), seen[&client]);
    }
    // One goes: only its clients move.
    fixture.blue[1].healthy.store(false, Ordering::SeqCst);
    let mine = *seen.iter().find(|(_, name)| *name == "b1").unwrap().0;
    until("it gets nothing", async || (who(&ask(&mut wire, "/", &of(mine)).await) != "b1").then_some(()))
        .await;
    for client in 0..120 {
        let now = who(&ask(&mut wire, "/", &of(client)).await);
        assert!(now == seen[&client] || seen[&client] == "b1" && now != "b1", "{client}: {now}");
    }
    // It is back, and so are they.
    fixture.blue[1].healthy.store(true, Ordering::SeqCst);
    until("it is back", async || (who(&ask(&mut wire, "/", &of(mine)).await) == "b1").then_some(())).await;
    for client in 0..120 {
        assert_eq!(who(&ask(&mut wire, "/", &of(client)).await), seen[&client]);
    }
    // IPv6 by its network.
    let six = |end| format!("X-Forwarded-For: 2001:db8:1:2::{end}\r\n");
    let first = who(&ask(&mut wire, "/", &six(1)).await);
    for end in 2..9 {
        assert_eq!(who(&ask(&mut wire, "/", &six(end)).await), first);
    }
}

/// Over TLS, the cookie is for TLS only.
#[tokio::test]
async fn over_tls_the_cookie_is_secure() {
    let (authority, blue) = (Authority::new(), [named("b0").await, named("b1").await]);
    let pair = authority.issue(&["app.test"]);
    let home = home((all(&blue), "127.0.0.1:9"), &authority, &[("app", &pair)], "", "").service(BY_COOKIE);
    let proxy = home.start().await;
    let mut wire = Rustls::new(&authority).connect(address(&proxy).await, "app.test").await.unwrap();
    wire.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let (_, attributes) = cookie_of(&wire.response().await).unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Secure");
}
