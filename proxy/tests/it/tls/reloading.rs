//! Reloading certificates: valid ones are served, invalid ones change nothing, and open connections are unaffected.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;

use super::certificates::{Authority, Pair, Site, address, der, home, put};
use super::clients::{Rustls, peer_certificate, s_client, secure};
use crate::harness::{SampleApp, cli, until};

/// The certificate that a new connection gets.
async fn served(client: &Rustls, site: &Site) -> CertificateDer<'static> {
    peer_certificate(&client.connect(site.address, "app.test").await.unwrap())
}

async fn reload(site: &Site) -> (i32, String) {
    let (code, out, err) = cli(&site.home.socket(), &["reload"]).await;
    (code, out + &err)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_serves_a_renewed_certificate_without_affecting_connections() {
    let site = Site::start().await;
    let client = Rustls::new(&site.authority);
    let stop = Arc::new(AtomicBool::new(false));
    let load = (0..8).map(|_| {
        let (client, stop, address) = (Rustls(Arc::clone(&client.0)), Arc::clone(&stop), site.address);
        tokio::spawn(async move {
            let mut connection = client.connect(address, "app.test").await.unwrap();
            let mut served = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(connection.get("/").await.status, 200);
                served += 1;
            }
            served
        })
    });
    let load: Vec<_> = load.collect();
    for round in 0..5 {
        let new = site.authority.issue(&["app.test"]);
        put(&site.home, "app", &new);
        if round % 2 == 0 {
            let (code, said) = reload(&site).await;
            assert_eq!(code, 0, "{said}");
        } else {
            site.proxy.signal(Signal::HUP);
        }
        until("the new certificate is served", async || {
            (served(&client, &site).await == der(&new.cert)).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for load in load {
        assert!(load.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn an_invalid_certificate_changes_nothing_and_is_reported() {
    let site = Site::start().await;
    let client = Rustls::new(&site.authority);
    let other = site.authority.issue(&["app.test"]);
    let expired = site.authority.issue_until(&["app.test"], 2020);
    let key_of = |pair: &Pair, other: &Pair| Pair { key: other.key.clone(), ..pair.clone() };
    let file = |name: &str| site.home.path(name).display().to_string();
    for (pair, why) in [
        (key_of(&other, &site.pair), format!("{} isn't the key of {}", file("app.key"), file("app.crt"))),
        (
            Pair { cert: "nonsense".to_owned(), ..other.clone() },
            format!("{} contains no certificate", file("app.crt")),
        ),
        (Pair { key: other.cert.clone(), ..other.clone() }, "swap cert and key".to_owned()),
        (expired, format!("{} expired on 2020-01-01T00:00:00Z", file("app.crt"))),
    ] {
        put(&site.home, "app", &pair);
        let (code, said) = reload(&site).await;
        assert!(code != 0 && said.contains(&why), "{why}: {said}");
        assert!(said.contains("server.tls.certificates[0]"), "{said}");
        assert_eq!(served(&client, &site).await, der(&site.pair.cert), "{why}");
        let config = site.home.path("uh-proxy.toml").display().to_string();
        let (code, out, err) = cli(&site.home.socket(), &["check", "--config", &config]).await;
        assert!(code != 0 && err.contains(&why), "{why}: {out}{err}");
    }
    fs::remove_file(site.home.path("app.key")).unwrap();
    let (code, said) = reload(&site).await;
    assert!(code != 0 && said.contains(&format!("cannot read {}", file("app.key"))), "{said}");
    assert_eq!(served(&client, &site).await, der(&site.pair.cert));
    put(&site.home, "app", &other);
    let (code, said) = reload(&site).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("reloaded: server.tls.certificates ("), "{said}");
    assert!(reload(&site).await.1.contains("no changes"), "the same certificate again");
    assert_eq!(served(&client, &site).await, der(&other.cert));
}

#[tokio::test]
async fn an_invalid_certificate_prevents_the_start() {
    let authority = Authority::new();
    let (one, two) = (authority.issue(&["a.test"]), authority.issue(&["b.test"]));
    let mixed = Pair { key: two.key.clone(), ..one.clone() };
    let none = Pair { cert: String::new(), ..two.clone() };
    let home = home(("127.0.0.1:1", "127.0.0.1:1"), &authority, &[("one", &mixed), ("two", &none)], "", "");
    let mut child = home.command().spawn().unwrap();
    let status = until("it has ended", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(1));
    let said = home.messages();
    for mistake in [
        "server.tls.certificates[0]: ",
        "isn't the key of",
        "server.tls.certificates[1]: ",
        "contains no certificate",
    ] {
        assert!(said.contains(mistake), "{mistake} is missing in {said}");
    }
}

#[tokio::test]
async fn a_ticket_can_not_resume_a_host_whose_certificate_was_removed() {
    let authority = Authority::new();
    let (kept, removed) = (authority.issue(&["kept.test"]), authority.issue(&["removed.test"]));
    let app = SampleApp::start("blue", "1").await;
    let pairs = [("kept", &kept), ("removed", &removed)];
    let home = home((app.address, app.address), &authority, &pairs, "", "");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let address = address(&proxy).await;
    let client = Rustls::new(&authority);
    for host in ["kept.test", "removed.test"] {
        assert_eq!(client.connect(address, host).await.unwrap().get("/").await.status, 200);
        let again = client.connect(address, host).await.unwrap();
        assert_eq!(again.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    }
    let config = fs::read_to_string(home.path("uh-proxy.toml")).unwrap();
    let entry = format!(", {}", put(&home, "removed", &removed));
    assert!(config.contains(&entry), "{config}");
    home.write_config(&config.replace(&entry, ""));
    let (code, out, err) = cli(&home.socket(), &["reload"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let again = client.connect(address, "kept.test").await.unwrap();
    assert_eq!(again.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "over a reload");
    assert!(client.connect(address, "removed.test").await.is_err());
    assert!(s_client(address, &["-servername", "removed.test"]).await.contains("unrecognized name"));
}

/// certbot and Kubernetes do this: the configuration names links, and a renewal changes their targets.
#[tokio::test]
async fn a_swapped_link_is_noticed_without_a_reload() {
    let site = Site::start().await;
    let new = site.authority.issue(&["app.test"]);
    for (name, text) in [("new.crt", &new.cert), ("new.key", &new.key)] {
        fs::write(site.home.path(name), text).unwrap();
    }
    for kind in ["crt", "key"] {
        let (link, to) = (site.home.path("link"), site.home.path(&format!("new.{kind}")));
        symlink(to, &link).unwrap();
        fs::rename(link, site.home.path(&format!("app.{kind}"))).unwrap();
    }
    let client = Rustls::new(&site.authority);
    let begun = std::time::Instant::now();
    while served(&client, &site).await != der(&new.cert) {
        assert!(begun.elapsed() < Duration::from_secs(45), "the change was not noticed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    site.home.until_said("certificate loaded; new connections get it").await;
    // Then a key that doesn't match: it is noticed and reported too.
    fs::write(site.home.path("new.key"), &site.pair.key).unwrap();
    let problem = loop {
        let status = site.proxy.status().await;
        if let Some(problem) = status.proxy.certificates[0].problem.clone() {
            break problem;
        }
        assert!(begun.elapsed() < Duration::from_secs(90), "the change was not noticed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(problem.contains("isn't the key of"), "{problem}");
    let metrics = site.proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_tls_certificate_reload_failures_total 1\n"), "{metrics}");
    assert!(
        metrics.contains("uh_proxy_tls_certificate_expiry_timestamp_seconds{name=\"app.test\"} 3786912000\n"),
        "{metrics}"
    );
    let (_, said, _) = cli(&site.home.socket(), &["status"]).await;
    assert!(
        said.contains("certificate app.test: expires 2090-01-01T00:00:00Z")
            && said.contains("isn't the key of"),
        "{said}"
    );
    assert_eq!(secure(&site).await.get("/").await.status, 200);
}

#[tokio::test]
async fn a_private_key_that_every_user_can_read_is_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::start().await;
    let key = site.home.path("app.key");
    let set_mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    let config = site.home.path("uh-proxy.toml").display().to_string();
    let warning = format!("every local user can read {}; run chmod o-r on it", key.display());
    set_mode(0o640);
    let (code, out, err) = cli(&site.home.socket(), &["check", "--config", &config]).await;
    assert!(code == 0 && !err.contains("every local user"), "{out}{err}");
    set_mode(0o644);
    let (code, out, err) = cli(&site.home.socket(), &["check", "--config", &config]).await;
    assert!(code == 0 && err.contains(&warning), "a warning isn't a mistake: {out}{err}");
    put(&site.home, "app", &site.authority.issue(&["app.test"]));
    set_mode(0o644);
    let (code, said) = reload(&site).await;
    assert_eq!(code, 0, "{said}");
    site.home.until_said("every local user can read this private key; run chmod o-r on it").await;
}
