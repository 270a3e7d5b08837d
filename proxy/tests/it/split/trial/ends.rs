//! Above half, at a restart, and after the fuse.

use super::*;
use crate::harness::app;

#[tokio::test]
async fn with_few_clients_left_to_compare_a_suspicion_is_only_reported() {
    let setup = Setup::start("").await;
    setup.begin(95.0).await;
    setup.ask(10_000..10_200, "/").await;
    setup.new_one_does(500);
    let failed = setup.ask(20_000..20_040, "/").await;
    assert!(failed > 20, "{failed}");
    until("it is reported", async || (setup.trial().await.state == TrialState::Suspicious).then_some(()))
        .await;
    setup.proxy.until_counted("uh_proxy_trial_state{service=\"app\",backend=\"green\"} 1").await;
    assert!(setup.is_split().await, "nothing happens by itself");
    // Whoever watches gives half of the clients back, and then the coin decides.
    split(&setup.proxy, &green(50.0)).await;
    setup.ask(30_000..30_100, "/").await;
    setup.until_stopped().await;
}

#[tokio::test]
async fn after_a_restart_the_trial_begins_again() {
    let mut setup = Setup::start("").await;
    setup.begin(50.0).await;
    setup.both_do(500);
    setup.ask(10_000..10_100, "/").await;
    until("they are counted", async || {
        let failures = setup.trial().await.failures;
        (failures.new_clients + failures.old_clients == 100).then_some(())
    })
    .await;
    setup.proxy.kill();
    setup.proxy = setup.home.start().await;
    let trial = until("the trial has begun", async || setup.proxy.service().await.trial).await;
    assert!(setup.is_split().await);
    assert_eq!((trial.failures.new_requests, trial.failures.old_requests), (0, 0));
    assert_eq!(trial.slow_after_ms, None, "nothing is known of the old version");
    setup.both_do(200);
    setup.ask(20_000..20_100, "/").await;
    let known = async || setup.trial().await.slow_after_ms.map(drop);
    until("it is known what is slow", known).await;
    setup.new_one_does(500);
    setup.ask(30_000..30_100, "/").await;
    setup.until_stopped().await;
}

#[tokio::test]
async fn who_renews_a_split_that_was_stopped_is_refused() {
    let setup = Setup::start("").await;
    setup.new_one_does(500);
    let first = split(&setup.proxy, &green(50.0)).await;
    setup.ask_until_it_ends("/").await;
    let renewal = SplitRequest { expect_generation: Some(first.generation), ..green(50.0) };
    let refused = setup.proxy.client.split(&app(), &renewal).await.unwrap_err();
    assert_eq!(code(refused), uh_protocol::Code::Conflict);
    // Another split is another trial.
    setup.new_one_does(200);
    setup.begin(50.0).await;
    assert_eq!(setup.trial().await.state, TrialState::Undecided);
}
