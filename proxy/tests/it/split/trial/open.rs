//! What is found while requests are still open. The probes of the new version are good all the time.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn a_version_that_hangs_is_found_when_its_requests_are_overdue() {
    let setup = Setup::start("[services.app.timeouts]\noverdue = \"300ms\"").await;
    setup.new_one_does(HANGS);
    setup.begin(50.0).await;
    let waiting = setup.send(10_000..10_100, "/reports/2026", "").await;
    let trial = setup.until_stopped().await;
    assert!(setup.proxy.backend("green").await.requests_in_flight > 20, "none has ended");
    assert!(setup.counted("new", "overdue").await >= trial.failures.new_clients);
    assert_eq!(trial.failures.old_bad, 0);
    assert_eq!(trial.routes[0].template, "/reports/*");
    drop(waiting);
}

/// Also while slowness doesn't count yet, and long before `timeouts.overdue`.
#[tokio::test]
async fn a_version_that_hangs_is_found_by_what_the_old_one_needs() {
    let setup = Setup::start("").await;
    setup.new_one_does(HANGS);
    setup.begin(50.0).await;
    let begun = Instant::now();
    let waiting = setup.send(10_000..10_100, "/", "").await;
    let trial = setup.until_stopped().await;
    assert!(begun.elapsed() >= Duration::from_millis(2500), "nothing is overdue before");
    assert!(setup.proxy.backend("green").await.requests_in_flight > 20, "none has ended");
    assert!(setup.counted("new", "overdue").await >= trial.failures.new_clients);
    assert!(begun.elapsed() < Duration::from_secs(30), "that would be timeouts.overdue");
    drop(waiting);
}

/// After the warm-up, which begins with the new version's first request; and not for many requests at one moment.
#[tokio::test]
async fn a_slow_version_is_found_at_many_moments() {
    let setup = Setup::start("[services.app.timeouts]\noverdue = \"off\"").await;
    setup.begin(50.0).await;
    assert!(setup.trial().await.slowness.is_none(), "not judged yet");
    let mut clients = (10_000..).step_by(10).map(|first| first..first + 10);
    until("the new version is warm", async || {
        setup.ask(clients.next()?, "/").await;
        setup.trial().await.slowness.map(drop)
    })
    .await;
    setup.new_one_does(SLOWLY);
    for wire in &mut setup.send(5000..5100, "/", "").await {
        assert_eq!(wire.response().await.status, 200);
    }
    assert_eq!(setup.trial().await.state, TrialState::Undecided, "as if it had paused");
    let (mut waiting, mut every) = (Vec::new(), tokio::time::interval(Duration::from_millis(100)));
    let stopped = async {
        while !setup.trial().await.ended {
            every.tick().await;
            waiting.extend(setup.send(clients.next().unwrap(), "/", "").await);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), stopped).await.unwrap();
    let trial = setup.trial().await;
    assert_eq!(trial.state, TrialState::Bad);
    assert!(trial.slowness.unwrap().ln_windows.is_some_and(|windows| windows > 7.0));
    assert_eq!(trial.failures.new_bad, 0, "it is only slow");
}

#[tokio::test]
async fn a_client_that_leaves_at_once_is_no_failure() {
    let setup = Setup::start("").await;
    // Longer than a client waits here, and the bound is at most a few milliseconds: so it is slow, but no failure unless the
    // client had waited.
    setup.begin(50.0).await;
    setup.both_do(HANGS);
    drop(setup.send(10_000..10_050, "/", "").await);
    until("all have left", async || {
        let failures = setup.trial().await.failures;
        (failures.new_requests + failures.old_requests == 50).then_some(())
    })
    .await;
    let (new, old) = (setup.counted("new", "left").await, setup.counted("old", "left").await);
    let (slow_new, slow_old) = (setup.counted("new", "slow").await, setup.counted("old", "slow").await);
    assert!(new <= slow_new && old <= slow_old, "only those that had waited");
}
