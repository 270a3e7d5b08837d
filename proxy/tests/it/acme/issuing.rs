//! A certificate is issued, whatever else is going on.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use uh_protocol::request::MaintenanceRequest;
use uh_protocol::status::CertificateSource;

use super::authority::{Apps, Pebble, Ports, https, until_certificate, until_issued, visit};
use crate::harness::{app, cli};
use crate::tls::clients::s_client;
use crate::wire::Wire;

#[tokio::test]
async fn a_certificate_is_issued_by_each_challenge_and_served_without_a_restart() {
    for challenge in ["http-01", "tls-alpn-01"] {
        let ports = Ports::new();
        let Some(pebble) = Pebble::start(ports).await else { return };
        let apps = Apps::start().await;
        let contact = format!("challenge = {challenge:?}\ncontact = [\"mailto:ops@example.com\"]");
        let home = apps.home(&pebble, ports, &contact);
        let proxy = home.start().await;
        proxy.until_healthy().await;
        let issued = until_issued(&home, &proxy).await;
        assert_eq!((issued.name.as_str(), issued.source), ("app.test", CertificateSource::Acme));
        assert!(issued.problem.is_none(), "{issued:?}");
        let client = pebble.client().await;
        assert_eq!(visit(&client, ports, "app.test").await.0, 200, "{challenge}");
        assert_eq!(visit(&client, ports, "www.app.test").await.0, 308, "{challenge}");
        assert_eq!(pebble.orders(), 1, "one for all hosts: {}", pebble.log());
        for entry in fs::read_dir(home.path("acme")).unwrap() {
            let mode = entry.as_ref().unwrap().metadata().unwrap().mode() & 0o777;
            assert_eq!(mode, 0o600, "{entry:?}");
        }
        assert_eq!(fs::metadata(home.path("acme")).unwrap().mode() & 0o777, 0o700);
        let (code, out, _) = cli(&home.socket(), &["certificates"]).await;
        assert!(code == 0 && out.contains("app.test") && out.contains("acme"), "{code}: {out}");
        let metrics = proxy.client.metrics().await.unwrap();
        for line in [
            "uh_proxy_acme_orders_total{result=\"issued\"} 1\n",
            "uh_proxy_acme_orders_total{result=\"unproven\"} 0\n",
            "uh_proxy_acme_failures{name=\"app.test\"} 0\n",
            "uh_proxy_acme_next_try_timestamp_seconds{name=\"app.test\"} ",
            "uh_proxy_tls_certificate_expiry_timestamp_seconds{name=\"app.test\"} ",
        ] {
            assert!(metrics.contains(line), "{line} is missing in {metrics}");
        }
        home.until_said("certificate issued").await;
        // The protocol of the proof is for the certificate authority alone.
        let said = s_client(https(ports), &["-alpn", "acme-tls/1", "-servername", "app.test"]).await;
        assert!(said.contains("no application protocol"), "{said}");
    }
}

#[tokio::test]
async fn a_challenge_is_answered_in_maintenance_for_unknown_hosts_and_instead_of_a_redirect() {
    let ports = Ports::new();
    let Some(pebble) = Pebble::start(ports).await else { return };
    let apps = Apps::start().await;
    let list =
        "certificates = [{ hosts = [\"app.test\", \"elsewhere.test\"] }]\n[server.tls]\nredirect = true";
    let home = apps.home(&pebble, ports, list);
    // First without a certificate authority, so that maintenance begins before the order.
    let config = home.config();
    let nowhere = config.replace(&pebble.directory(), "https://localhost:1/dir");
    let command = home.command();
    home.write_config(&nowhere);
    let proxy = home.start_as(command).await;
    let request = MaintenanceRequest { on: true, message: None, retry_after_s: None };
    proxy.client.maintenance(&app(), &request).await.unwrap();
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert_eq!(wire.response().await.status, 308);
    wire.send("GET /.well-known/acme-challenge/unknown HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n").await;
    assert_eq!(wire.response().await.status, 404, "an unknown token is routed like everything else");
    home.write_config(&config);
    let (code, out, err) = cli(&home.socket(), &["reload"]).await;
    assert!(code == 0 && out.contains("server.acme.directory"), "{out}{err}");
    let issued = until_issued(&home, &proxy).await;
    assert_eq!(issued.names, ["app.test", "elsewhere.test"]);
    let client = pebble.client().await;
    assert_eq!(visit(&client, ports, "app.test").await.0, 503);
    assert_eq!(visit(&client, ports, "elsewhere.test").await.0, 404);
    let log = home.access_log();
    let proofs: Vec<_> = log
        .iter()
        .filter(|line| {
            let target = line["target"].as_str().or(line["path"].as_str()).unwrap_or_default();
            target.contains("acme-challenge") && line["status"] == 200
        })
        .collect();
    assert!(proofs.len() >= 2, "{log:?}");
}

#[tokio::test]
async fn an_authority_that_rejects_half_of_the_nonces_issues_all_the_same() {
    let ports = Ports::new();
    let Some(pebble) = Pebble::start_with(ports, 90 * 24 * 60 * 60, 50).await else { return };
    let apps = Apps::start().await;
    let home = apps.home(&pebble, ports, "");
    let proxy = home.start().await;
    until_issued(&home, &proxy).await;
    assert_eq!((pebble.orders(), pebble.accounts()), (1, 1), "{}", pebble.log());
}

#[tokio::test]
async fn a_new_host_costs_the_others_nothing_while_its_certificate_is_issued() {
    let ports = Ports::new();
    let Some(pebble) = Pebble::start(ports).await else { return };
    let apps = Apps::start().await;
    let home = apps.home_for(&pebble, ports, "", "hosts = [\"app.test\"]");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let first = until_issued(&home, &proxy).await;
    assert_eq!(first.names, ["app.test"]);
    let client = pebble.client().await;
    let config = home.config();
    // The new certificate can't be issued yet.
    let more = config.replace("hosts = [\"app.test\"]", "hosts = [\"app.test\", \"new.test\"]");
    home.write_config(&more.replace(&pebble.directory(), "https://localhost:1/dir"));
    assert_eq!(cli(&home.socket(), &["reload"]).await.0, 0);
    home.until_said("cannot get a certificate").await;
    assert_eq!(visit(&client, ports, "app.test").await.0, 200);
    let (code, out, _) = cli(&home.socket(), &["certificates"]).await;
    assert!(
        code == 1 && out.contains("not issued yet") && out.contains("app.test, new.test"),
        "{code}: {out}"
    );
    home.write_config(&more);
    assert_eq!(cli(&home.socket(), &["reload"]).await.0, 0);
    let both = until_certificate(&home, &proxy, "both hosts are covered", |one| {
        one.expires.is_some() && one.names.len() == 2
    })
    .await;
    assert!(both.problem.is_none(), "{both:?}");
    for host in ["app.test", "new.test"] {
        assert_eq!(visit(&client, ports, host).await.0, 200);
    }
}
