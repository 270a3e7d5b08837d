//! What counts as a failure.

use super::*;

#[tokio::test]
async fn errors_cut_bodies_and_closed_connections_are_failures() {
    for (does, kind) in [(503, "status"), (CUTS, "broken"), (CLOSES, "broken")] {
        let setup = Setup::start("").await;
        setup.new_one_does(does);
        setup.begin(50.0).await;
        setup.ask_until_it_ends("/").await;
        let trial = setup.until_stopped().await;
        assert!(setup.counted("new", kind).await >= trial.failures.new_clients, "{kind}");
        assert_eq!(trial.failures.old_bad, 0, "{trial:?}");
    }
}

#[tokio::test]
async fn other_errors_are_none() {
    let setup = Setup::start("").await;
    setup.new_one_does(404);
    setup.begin(50.0).await;
    setup.ask(10_000..10_200, "/").await;
    until("all are counted", async || {
        let failures = setup.trial().await.failures;
        (failures.new_requests + failures.old_requests == 200).then_some(())
    })
    .await;
    assert_eq!(setup.trial().await.failures.new_bad, 0);
    assert!(setup.is_split().await);
}
