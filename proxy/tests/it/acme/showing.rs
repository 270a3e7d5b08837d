//! Where the answers to challenges are shown: an authority looks when and where it likes, and again until the order is ready.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::json;
use uh_protocol::request::MaintenanceRequest;

use super::authority::{Apps, Ports, https};
use super::failures::{Reply, problem, serve};
use crate::harness::{app, until};
use crate::http2::clients::{Client, H2C, h2c, url};
use crate::tls::certificates::{Authority, Pair, put};
use crate::tls::clients::Rustls;
use crate::wire::Wire;

const TOKEN: &str = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";

/// An authority that is still checking an order, however often it is asked.
async fn undecided(pair: &Pair) -> u16 {
    let port = Arc::new(AtomicU16::new(0));
    let known = Arc::clone(&port);
    let address = serve(pair, move |_, path| {
        let base = format!("https://localhost:{}", known.load(Ordering::SeqCst));
        let url = |path: &str| format!("{base}/{path}");
        let ok = |body: serde_json::Value| -> Reply { (200, String::new(), body.to_string()) };
        let app = json!({"type": "dns", "value": "app.test"});
        let challenge =
            json!({"type": "http-01", "url": url("challenge"), "token": TOKEN, "status": "pending"});
        let order = json!({
            "status": "pending", "identifiers": [app], "authorizations": [url("authorization")],
            "finalize": url("finalize"),
        });
        match path {
            "/dir" => ok(json!({
                "newNonce": url("nonce"), "newAccount": url("account"), "newOrder": url("order"),
                "revokeCert": url("revoke"), "keyChange": url("key"),
            })),
            "/nonce" => (200, String::new(), String::new()),
            "/account" => {
                (201, format!("Location: {base}/account/1\r\n"), json!({"status": "valid"}).to_string())
            }
            "/order" => (201, format!("Location: {base}/order/1\r\n"), order.to_string()),
            "/order/1" => ok(order),
            "/authorization" => {
                ok(json!({"status": "pending", "identifier": app, "challenges": [challenge]}))
            }
            "/challenge" => ok(challenge),
            _ => problem(404, "", "malformed", "no such resource"),
        }
    })
    .await;
    port.store(address.port(), Ordering::SeqCst);
    address.port()
}

/// On each listener and each worker, for any host, in maintenance and instead of a redirect.
#[tokio::test]
async fn a_proof_is_shown_on_every_listener_and_worker_until_the_order_is_ready() {
    let authority = Authority::new();
    let port = undecided(&authority.issue(&["localhost"])).await;
    let (apps, ports) = (Apps::start().await, Ports::new());
    let place = tempfile::tempdir().unwrap();
    let ca = place.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let directory = format!("https://localhost:{port}/dir");
    let home = apps.home_with(
        &directory,
        ca,
        ports,
        &format!("threads = 4\n{H2C}"),
        "",
        "hosts = [\"app.test\"]\nredirect_https = true",
    );
    let entry = put(&home, "files", &authority.issue(&["files.test"]));
    let home = home.server(&format!("[server.tls]\ncertificates = [{entry}]"));
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let order = MaintenanceRequest { on: true, message: None, retry_after_s: None };
    proxy.client.maintenance(&app(), &order).await.unwrap();

    let path = format!("/.well-known/acme-challenge/{TOKEN}");
    let ask = async |host: &str| {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        wire.response().await
    };
    until("the proof is shown", async || (ask("app.test").await.status == 200).then_some(())).await;
    let mut proofs = BTreeSet::new();
    // Connections are spread over the workers.
    for _ in 0..40 {
        for host in ["app.test", "unknown.test", "127.0.0.1"] {
            let response = ask(host).await;
            assert_eq!(response.status, 200, "{host}: {}", response.head);
            proofs.insert(response.text());
        }
    }
    for alpn in ["http/1.1", "h2"] {
        let rustls = Rustls::with(&authority, rustls::ALL_VERSIONS, |config| {
            config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        });
        let mut secure = rustls.connect(https(ports), "files.test").await.unwrap();
        if alpn == "http/1.1" {
            proofs.insert(secure.get(&path).await.text());
            continue;
        }
        let request = http::Request::get(format!("https://files.test{path}")).body(()).unwrap();
        let answer = Client::over(secure.stream).await.send(request).await.unwrap();
        proofs.insert(answer.text().to_owned());
    }
    let plain = Client::plain(h2c(&proxy).await).await;
    proofs.insert(plain.get(&path).await.text().to_owned());
    assert!(proofs.len() == 1 && proofs.first().unwrap().starts_with(&format!("{TOKEN}.")), "{proofs:?}");
    // What isn't a request for the proof is served as usual.
    assert_eq!(plain.send(http::Request::post(url(&path)).body(()).unwrap()).await.unwrap().status, 308);
    assert_eq!(ask("app.test").await.status, 200);
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get(&format!("{path}x")).await.status, 308);
}
