//! What a certificate authority refuses, and what it only suggests: from a small server, because pebble can't.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::authority::{Apps, Pebble, Ports, until_certificate, until_issued};
use crate::harness::{Home, cli};
use crate::tls::certificates::{Authority, Pair};

/// A reply of the stub: status, fields, body.
pub(super) type Reply = (u16, String, String);

/// Serves HTTPS for `localhost`; `answer` gets the method and the path.
pub(super) async fn serve(
    pair: &Pair,
    answer: impl Fn(&str, &str) -> Reply + Send + Sync + 'static,
) -> SocketAddr {
    let chain = CertificateDer::pem_slice_iter(pair.cert.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let mut words = head.split(' ');
                let (method, path) = (words.next().unwrap(), words.next().unwrap());
                let (status, fields, body) = answer(method, path);
                let length = body.len();
                let body = if method == "HEAD" { String::new() } else { body };
                let text = format!(
                    "HTTP/1.1 {status} X\r\nReplay-Nonce: abc\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
                );
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

pub(super) fn problem(status: u16, fields: &str, kind: &str, detail: &str) -> Reply {
    let body =
        json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status});
    (status, format!("Content-Type: application/problem+json\r\n{fields}"), body.to_string())
}

/// An authority that answers each order like this.
async fn refusing(pair: &Pair, order: Reply) -> SocketAddr {
    let port = Arc::new(std::sync::atomic::AtomicU16::new(0));
    let known = Arc::clone(&port);
    let address = serve(pair, move |_, path| {
        let base = format!("https://localhost:{}", known.load(std::sync::atomic::Ordering::SeqCst));
        match path {
            "/dir" => {
                let url = |path: &str| format!("{base}/{path}");
                let directory = json!({
                    "newNonce": url("nonce"), "newAccount": url("account"), "newOrder": url("order"),
                    "revokeCert": url("revoke"), "keyChange": url("key"),
                    "meta": {"profiles": {"classic": "…", "shortlived": "…"}},
                });
                (200, String::new(), directory.to_string())
            }
            "/nonce" => (200, String::new(), String::new()),
            "/account" => {
                (201, format!("Location: {base}/account/1\r\n"), json!({"status": "valid"}).to_string())
            }
            "/order" => order.clone(),
            _ => problem(404, "", "malformed", "no such resource"),
        }
    })
    .await;
    port.store(address.port(), std::sync::atomic::Ordering::SeqCst);
    address
}

async fn behind(order: Reply, acme: &str) -> (Home, Apps) {
    let authority = Authority::new();
    let address = refusing(&authority.issue(&["localhost"]), order).await;
    let (apps, ports) = (Apps::start().await, Ports::new());
    let directory = format!("https://localhost:{}/dir", address.port());
    let place = Home::new("127.0.0.1:1", "127.0.0.1:1");
    let ca = place.path("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let home = apps.home_at(&directory, ca.clone(), ports, acme, "hosts = [\"app.test\"]");
    // It is read at the start, and again at a reload.
    std::fs::copy(&ca, home.path("ca.pem")).unwrap();
    let text = home.config().replace(ca.to_str().unwrap(), home.path("ca.pem").to_str().unwrap());
    home.write_config(&text);
    drop(place);
    (home, apps)
}

/// A command for the configuration that is written already.
fn command(home: &Home) -> std::process::Command {
    let text = std::fs::read_to_string(home.path("uh-proxy.toml")).unwrap();
    let command = home.command();
    home.write_config(&text);
    command
}

fn wait_s(next: &str) -> i64 {
    next.parse::<Timestamp>().unwrap().as_second() - Timestamp::now().as_second()
}

#[tokio::test]
async fn a_rate_limit_is_obeyed_shown_and_outlasts_a_restart() {
    let reply = problem(429, "Retry-After: 7200\r\n", "rateLimited", "too many certificates already issued");
    let (home, _apps) = behind(reply, "").await;
    let mut proxy = home.start_as(command(&home)).await;
    let failed = until_certificate(&home, &proxy, "it is refused", |one| one.problem.is_some()).await;
    let problem = failed.problem.unwrap();
    assert_eq!(problem, "cannot place an order: too many certificates already issued (rateLimited)");
    let first = failed.next_try.unwrap();
    assert!((7000..=7201).contains(&wait_s(&first)), "{first}");
    for command in ["status", "certificates"] {
        let (_, out, _) = cli(&home.socket(), &[command]).await;
        assert!(out.contains(&problem) && out.contains(&first), "{out}");
    }
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_acme_orders_total{result=\"refused\"} 1\n"), "{metrics}");
    proxy.kill();
    let proxy = home.start_as(command(&home)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let again = until_certificate(&home, &proxy, "it waits", |one| one.problem.is_some()).await;
    assert_eq!(again.next_try.as_deref(), Some(first.as_str()), "a restart doesn't ask sooner");
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_acme_orders_total{result=\"refused\"} 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_refusal_backs_off_by_an_hour_and_a_reply_of_something_else_by_a_minute() {
    let refusal = problem(403, "", "rejectedIdentifier", "this CA will not issue for app.test");
    let (home, _apps) = behind(refusal, "").await;
    let proxy = home.start_as(command(&home)).await;
    let failed = until_certificate(&home, &proxy, "it is refused", |one| one.problem.is_some()).await;
    assert!((3590..=4320).contains(&wait_s(&failed.next_try.unwrap())));
    let page = (502, "Content-Type: text/html\r\n".to_owned(), "<html>bad gateway</html>".to_owned());
    let (home, _apps) = behind(page, "").await;
    let proxy = home.start_as(command(&home)).await;
    let failed = until_certificate(&home, &proxy, "it fails", |one| one.problem.is_some()).await;
    assert!((50..=75).contains(&wait_s(&failed.next_try.clone().unwrap())), "{failed:?}");
    let problem = failed.problem.unwrap();
    assert!(problem.contains("answered with status 502, but not as an ACME server"), "{problem}");
}

#[tokio::test]
async fn a_profile_that_the_authority_lacks_is_reported_with_those_it_has() {
    let (home, _apps) = behind(problem(500, "", "serverInternal", "never asked"), "profile = \"tls\"").await;
    let proxy = home.start_as(command(&home)).await;
    let failed = until_certificate(&home, &proxy, "it is refused", |one| one.problem.is_some()).await;
    let problem = failed.problem.unwrap();
    assert!(problem.contains("the CA has no profile \"tls\"; its profiles: "), "{problem}");
    assert!(problem.contains("classic") && problem.contains("shortlived"), "{problem}");
}

#[tokio::test]
async fn a_proof_that_can_not_be_seen_is_explained() {
    let ports = Ports::new();
    // The authority looks at ports where nothing listens.
    let Some(pebble) = Pebble::start(Ports::new()).await else { return };
    let apps = Apps::start().await;
    let home = apps.home(&pebble, ports, "");
    let proxy = home.start().await;
    let failed = until_certificate(&home, &proxy, "it fails", |one| one.problem.is_some()).await;
    let problem = failed.problem.unwrap();
    assert!(problem.contains("the CA couldn't verify the challenge: app.test: "), "{problem}");
    assert!(problem.contains("uh-proxy got no request for this challenge"), "{problem}");
    assert!(wait_s(&failed.next_try.unwrap()) >= 3590);
    home.until_said("HTTPS connections to its hosts are rejected until then").await;
}

#[tokio::test]
async fn an_authority_that_has_forgotten_the_account_gets_a_new_one() {
    let ports = Ports::new();
    let Some(pebble) = Pebble::start(ports).await else { return };
    let apps = Apps::start().await;
    let home = apps.home(&pebble, ports, "");
    let mut proxy = home.start().await;
    until_issued(&home, &proxy).await;
    proxy.kill();
    // As if the authority had been set up again: an account that it doesn't know, and no certificate.
    for entry in std::fs::read_dir(home.path("acme")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("account-") {
            let mut account: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            account["id"] =
                json!(format!("{}/unknown", account["id"].as_str().unwrap().rsplit_once('/').unwrap().0));
            std::fs::write(&path, account.to_string()).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
    let proxy = home.start().await;
    until_issued(&home, &proxy).await;
    home.until_said("doesn't know our account any more; registering it again").await;
}

#[tokio::test]
async fn a_renewal_follows_the_window_that_the_authority_suggests() {
    let ports = Ports::new();
    let Some(pebble) = Pebble::start(ports).await else { return };
    let connection = crate::tls::clients::Rustls::new(pebble.authority());
    let address: SocketAddr = format!("127.0.0.1:{}", pebble.port()).parse().unwrap();
    let mut connection = connection.connect(address, "localhost").await.unwrap();
    // It puts the host that it is asked for into its URLs.
    connection.send(format!("GET /dir HTTP/1.1\r\nHost: localhost:{}\r\n\r\n", pebble.port())).await;
    let directory: Value = serde_json::from_str(&connection.response().await.text()).unwrap();
    let port = Arc::new(std::sync::atomic::AtomicU16::new(0));
    let known = Arc::clone(&port);
    let stub = serve(&pebble.authority().issue(&["localhost"]), move |_, path| {
        let mut directory = directory.clone();
        let base = format!("https://localhost:{}", known.load(std::sync::atomic::Ordering::SeqCst));
        directory["renewalInfo"] = json!(format!("{base}/renewal"));
        match path {
            "/dir" => (200, String::new(), directory.to_string()),
            // A certificate that is to be replaced at once, such as before a revocation.
            path if path.starts_with("/renewal/") => {
                let window = json!({"start": "2025-01-02T04:00:00Z", "end": "2025-01-03T04:00:00Z"});
                (200, "Retry-After: 21600\r\n".to_owned(), json!({"suggestedWindow": window}).to_string())
            }
            _ => problem(404, "", "malformed", "no such resource"),
        }
    })
    .await;
    port.store(stub.port(), std::sync::atomic::Ordering::SeqCst);
    let apps = Apps::start().await;
    let url = format!("https://localhost:{}/dir", stub.port());
    let home = apps.home_at(&url, pebble.ca_file(), ports, "", "hosts = [\"app.test\"]");
    let proxy = home.start().await;
    until_issued(&home, &proxy).await;
    home.until_said("renewal planned as the certificate authority suggests").await;
    // It suggests a date in the past. A new certificate gets a day in any case; by its dates, it would get 60.
    let planned = until_certificate(&home, &proxy, "it is planned", |one| {
        one.next_try.as_ref().is_some_and(|next| wait_s(next) <= 24 * 60 * 60)
    })
    .await;
    assert!(planned.problem.is_none() && pebble.orders() == 1, "{planned:?}");
}
