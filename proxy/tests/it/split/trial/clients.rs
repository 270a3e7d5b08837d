//! A client is one event, and health checks are none.

use super::*;

#[tokio::test]
async fn one_client_is_one_event_and_health_checks_are_none() {
    let setup = Setup::start("[services.app.health]\nenabled = false\npath = \"/alive\"").await;
    setup.begin(99.0).await;
    setup.new_one_does(500);
    for _ in 0..50 {
        setup.ask(40_000..40_001, "/").await;
    }
    setup.ask(50_000..50_100, "/alive?deep=1").await;
    until("all are counted", async || {
        let failures = setup.trial().await.failures;
        (failures.new_requests + failures.old_requests == 50).then_some(())
    })
    .await;
    let failures = setup.trial().await.failures;
    assert!(failures.new_clients + failures.old_clients <= 1, "{failures:?}");
    assert!(setup.is_split().await);
}

#[tokio::test]
async fn a_client_that_gets_its_cookie_in_between_is_counted_once_and_so_is_an_address() {
    let setup = Setup::start("").await;
    setup.begin(50.0).await;
    let cookie = async |client: u32| {
        let mut wire = Wire::connect(setup.proxy.address).await;
        wire.send(request(client, "/", "")).await;
        let response = wire.response().await;
        let cookie =
            response.header("set-cookie").unwrap_or_else(|| panic!("a page sets the cookie: {response:?}"));
        cookie.split(';').next().unwrap().to_owned()
    };
    setup.both_do(500);
    setup.ask(60_000..60_001, "/").await;
    // An error sets no cookie.
    setup.both_do(404);
    let (own, other) = (cookie(60_000).await, cookie(60_000).await);
    setup.both_do(500);
    // The same client, another one at its address, and the first one at another address.
    for (client, cookie) in [(60_000, own.clone()), (60_000, other), (60_001, own)] {
        let mut wire = Wire::connect(setup.proxy.address).await;
        wire.send(request(client, "/", &format!("Cookie: {cookie}\r\n"))).await;
        assert_eq!(wire.response().await.status, 500);
    }
    until("all are counted", async || {
        let failures = setup.trial().await.failures;
        (failures.new_bad + failures.old_bad == 4).then_some(())
    })
    .await;
    let failures = setup.trial().await.failures;
    assert_eq!(failures.new_clients + failures.old_clients, 1, "{failures:?}");
}
