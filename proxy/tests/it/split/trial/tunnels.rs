//! Tunnels: those that the app closes at once, or because of an error of its own, are failures.

use super::*;

#[tokio::test]
async fn tunnels_that_die_at_once_are_failures() {
    let setup = Setup::start("").await;
    setup.does[0].store(FOLLOWS, Ordering::SeqCst);
    setup.new_one_does(DIES);
    setup.begin(50.0).await;
    let _open = setup.tunnels(10_000..10_100).await;
    let trial = setup.until_stopped().await;
    assert!(setup.counted("new", "tunnel").await >= trial.failures.new_clients);
    assert_eq!(trial.failures.old_bad, 0, "{trial:?}");
    // The open ones are counted.
    assert!(trial.failures.old_requests > 20, "{trial:?}");
}

#[tokio::test]
async fn a_tunnel_that_is_closed_with_1011_is_a_failure_at_any_time() {
    let setup = Setup::start("").await;
    setup.does[0].store(ENDS_LATER, Ordering::SeqCst);
    setup.new_one_does(FAILS_LATER);
    setup.begin(50.0).await;
    let mut open = setup.tunnels(10_000..10_100).await;
    for wire in &mut open {
        let mut frame = Vec::new();
        let read = tokio::io::AsyncReadExt::read_buf(&mut wire.stream, &mut frame);
        let _ = crate::harness::soon("the end of the tunnel", read).await;
        if frame == b"\x88\x02\x03\xf3" {
            // A masked close frame in reply.
            wire.send(b"\x88\x82\0\0\0\0\x03\xf3").await;
        }
    }
    let trial = setup.until_stopped().await;
    assert!(setup.counted("new", "tunnel").await >= trial.failures.new_clients);
    assert_eq!(trial.failures.old_bad, 0, "a quiet tunnel that is closed later isn't one: {trial:?}");
}

#[tokio::test]
async fn a_tunnel_that_its_client_closes_is_none() {
    let setup = Setup::start("").await;
    setup.both_do(FOLLOWS);
    setup.begin(50.0).await;
    for mut wire in setup.tunnels(10_000..10_040).await {
        wire.send(b"\x88\x82\0\0\0\0\x03\xe8").await;
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut wire.stream, &mut rest);
        crate::harness::soon("the end of the tunnel", read).await.unwrap();
        assert_eq!(rest, b"\x88\x02\x03\xe8", "the app's reply");
    }
    for name in ["blue", "green"] {
        setup.proxy.until_idle(name).await;
    }
    let failures = setup.trial().await.failures;
    assert_eq!(failures.new_requests + failures.old_requests, 40);
    assert_eq!(failures.new_bad + failures.old_bad, 0, "{failures:?}");
}
