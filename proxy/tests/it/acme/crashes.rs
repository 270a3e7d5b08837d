//! `kill -9` between every two steps of an attempt, then a restart: it completes, without needless orders.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;

use super::authority::{Apps, Pebble, Ports, until_issued, visit};
use crate::harness::until;

/// Each step, with the orders that are placed in all. A second one is needed where the first wasn't known yet, or failed
/// because nothing answered the certificate authority.
const STEPS: [(&str, usize); 19] = [
    ("acme_attempt_saved", 1),
    ("acme_account_written", 1),
    ("acme_account_renamed", 1),
    ("acme_account_key_saved", 1),
    ("acme_registered", 1),
    ("acme_account_saved", 1),
    ("acme_record_written", 1),
    ("acme_record_renamed", 1),
    ("acme_ordered", 2),
    ("acme_order_saved", 1),
    ("acme_proofs_shown", 1),
    ("acme_checks_started", 2),
    ("acme_proven", 1),
    ("acme_requested", 1),
    ("acme_fetched", 1),
    ("acme_certificate_written", 1),
    ("acme_certificate_renamed", 1),
    ("acme_certificate_saved", 1),
    ("acme_attempt_ended", 1),
];

#[tokio::test]
async fn a_crash_at_any_step_with_http_01_is_recovered_without_needless_orders() {
    at_each_step("http-01").await;
}

#[tokio::test]
async fn a_crash_at_any_step_with_tls_alpn_01_is_recovered_without_needless_orders() {
    at_each_step("tls-alpn-01").await;
}

async fn at_each_step(challenge: &str) {
    let apps = Apps::start().await;
    for (step, most) in STEPS {
        let ports = Ports::new();
        let Some(pebble) = Pebble::start(ports).await else { return };
        let home = apps.home(&pebble, ports, &format!("challenge = {challenge:?}"));
        let fault = home.path("fault");
        fs::write(&fault, step).unwrap();
        let mut command = home.command();
        command.env("UH_PROXY_FAULT_FILE", &fault);
        let mut killed = command.spawn().unwrap();
        let status = until("it ends", async || {
            let failed = home.messages().contains("ERROR");
            assert!(!failed, "{step}: {}", home.messages());
            killed.try_wait().unwrap()
        })
        .await;
        assert_eq!(status.signal(), Some(9), "{step}: {status}\n{}", home.messages());
        let proxy = home.start().await;
        proxy.until_healthy().await;
        let issued = until_issued(&home, &proxy).await;
        assert!(issued.problem.is_none(), "{step}: {issued:?}");
        let orders = pebble.orders();
        assert!((1..=most).contains(&orders), "{step}: {orders} orders\n{}", home.messages());
        assert_eq!(pebble.accounts(), 1, "{step}: {}", pebble.log());
        assert_eq!(visit(&pebble.client().await, ports, "app.test").await.0, 200, "{step}");
        assert!(!home.messages().contains("damaged"), "{step}: {}", home.messages());
    }
}
