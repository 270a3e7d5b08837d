//! What is checked before anything is ordered.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::authority::{Apps, Ports};
use crate::harness::{Home, cli, until};

fn home(acme: &str, service: &str) -> Home {
    let Ports { http, tls } = Ports::new();
    Home::new("127.0.0.1:1", "127.0.0.1:1")
        .server(&format!(
            "listen = [\"127.0.0.1:{http}\"]\nlisten_tls = [\"127.0.0.1:{tls}\"]\n[server.acme]\n{acme}"
        ))
        .service(service)
}

async fn refused(home: &Home) -> String {
    let mut child = home.command().spawn().unwrap();
    let status = until("it has ended", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(1));
    home.messages()
}

async fn check(home: &Home) -> (i32, String) {
    home.write_config(&home.config());
    let config = home.path("uh-proxy.toml").display().to_string();
    let (code, out, err) = cli(&home.socket(), &["check", "--config", &config]).await;
    (code, format!("{out}{err}"))
}

#[tokio::test]
async fn a_state_directory_that_can_not_be_used_is_refused_at_start_and_by_check() {
    // Not even root can create anything there.
    let home = home("state_dir = \"/proc/uh-proxy-acme\"", "hosts = [\"app.test\"]");
    let said = refused(&home).await;
    assert!(said.contains("server.acme.state_dir: cannot create /proc/uh-proxy-acme"), "{said}");
    let place = Home::new("127.0.0.1:1", "127.0.0.1:1");
    let open = place.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let other = self::home(&format!("state_dir = {open:?}"), "hosts = [\"app.test\"]");
    let (code, said) = check(&other).await;
    assert!(code == 1 && said.contains("other users can access") && said.contains("chmod 700"), "{said}");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).unwrap();
    let (code, said) = check(&other).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read_dir(&open).unwrap().count(), 0, "a check writes nothing");
}

#[tokio::test]
async fn a_ca_file_that_can_not_be_used_is_refused_at_start_and_by_check() {
    let place = Home::new("127.0.0.1:1", "127.0.0.1:1");
    let (state, ca) = (place.path("acme"), place.path("ca.pem"));
    let home = home(&format!("state_dir = {state:?}\nca_file = {ca:?}"), "hosts = [\"app.test\"]");
    let said = refused(&home).await;
    assert!(said.contains("cannot read server.acme.ca_file"), "{said}");
    fs::write(&ca, "nothing").unwrap();
    let (code, said) = check(&home).await;
    assert!(code == 1 && said.contains("contains no CA certificate"), "{said}");
}

#[tokio::test]
async fn hosts_that_acme_will_cover_may_be_redirected_and_others_not() {
    let place = Home::new("127.0.0.1:1", "127.0.0.1:1");
    let state = place.path("acme");
    let with =
        |service: &str| home(&format!("state_dir = {state:?}\n[server.tls]\nredirect = true"), service);
    let (code, said) = check(&with("hosts = [\"app.test\"]")).await;
    assert_eq!(code, 0, "{said}");
    let (code, said) = check(&with("hosts = [\"app.test\", \"*.app.test\"]")).await;
    assert!(
        code == 1 && said.contains("*.app.test is redirected to HTTPS, but no certificate covers it"),
        "{said}"
    );
}

#[tokio::test]
async fn an_authority_out_of_reach_delays_no_start_and_is_reported() {
    let apps = Apps::start().await;
    let ports = Ports::new();
    let authority = crate::tls::certificates::Authority::new();
    let place = Home::new("127.0.0.1:1", "127.0.0.1:1");
    fs::write(place.path("ca.pem"), authority.pem()).unwrap();
    let home =
        apps.home_at("https://localhost:1/dir", place.path("ca.pem"), ports, "", "hosts = [\"app.test\"]");
    let proxy = home.start().await;
    home.until_said("no certificate yet; until the certificate authority issues one").await;
    home.until_said("cannot reach localhost; check the network, DNS and server.acme.directory").await;
    let said =
        crate::tls::clients::s_client(super::authority::https(ports), &["-servername", "app.test"]).await;
    assert!(said.contains("unrecognized name"), "{said}");
    let (code, out, _) = cli(&home.socket(), &["certificates"]).await;
    assert!(
        code == 1 && out.contains("not issued yet") && out.contains("last error: cannot connect to the CA")
            || out.contains("last error: cannot register an account at the CA"),
        "{code}: {out}"
    );
    let (_, out, _) = cli(&home.socket(), &["status"]).await;
    assert!(out.contains("certificate app.test: not issued yet") && out.contains("; next try at 2"), "{out}");
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_acme_orders_total{result=\"unreachable\"} 1\n"), "{metrics}");
    assert!(metrics.contains("uh_proxy_acme_failures{name=\"app.test\"} 1\n"), "{metrics}");
}
